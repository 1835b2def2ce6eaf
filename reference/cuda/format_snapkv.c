/* snapkv: the engine's own blocks, bf16; the queries of a prompt's window are kept until it is
 * done. */
#include "reference/cuda/format.h"

typedef struct {
  KvBf16 **window; /* [layers]: queries of the prompt's window, device; one piece of memory */
} Owner;

static void drop_window(Owner *owner) {
  if (owner->window)
    kv_cuda_free(owner->window[0]);
  g_clear_pointer(&owner->window, g_free);
}

static void forget(KvCudaCompressed *c, gpointer owner) {
  drop_window(owner);
}

static gsize query_width(const KvCudaCompressed *c, guint layer) {
  const KvAttention *a = &c->weights->layers[layer].attention;
  return (gsize)a->n_heads * a->head_dim;
}

static gboolean make_window(KvCudaCompressed *c, const KvHostSpan *span, GError **error) {
  Owner *owner = kv_cuda_format_owner(c, span->owner);
  gsize elements = 0;
  if (owner->window || span->prompt_tokens <= c->settings->budget ||
      span->past + span->n_tokens + c->settings->window <= span->prompt_tokens)
    return TRUE;
  for (guint l = 0; l < c->weights->n_layers; l++)
    elements += c->settings->window * query_width(c, l);
  KvBf16 *memory = kv_cuda_alloc(elements * sizeof(KvBf16), "the window of a prompt", error);
  if (!memory)
    return FALSE;
  owner->window = g_new(KvBf16 *, c->weights->n_layers);
  for (guint l = 0; l < c->weights->n_layers; memory += c->settings->window * query_width(c, l++))
    owner->window[l] = memory;
  return TRUE;
}

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  for (guint s = 0; s < prompts; s++)
    if (!make_window(c, &c->spans[s], error))
      return FALSE;
  return TRUE;
}

/* --- in a pass ------------------------------------------------------------------------------- */

/* Keep the queries that lie in a prompt's window. */
static cudaError_t keep_windows(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  gsize width = query_width(c, layer), row = 0;
  for (guint s = 0; s < c->n_spans && !c->spans[s].decoding; row += c->spans[s++].n_tokens) {
    const KvHostSpan *span = &c->spans[s];
    const Owner *owner = kv_cuda_format_find(c, span->owner);
    guint32 first = span->prompt_tokens - c->settings->window;
    guint32 from = MAX(first, span->past);
    guint32 to = MIN(span->prompt_tokens, span->past + span->n_tokens);
    if (!owner || !owner->window || from >= to)
      continue;
    cudaError_t status = cudaMemcpy2DAsync(
        owner->window[layer] + (from - first) * width, width * sizeof(KvBf16),
        r->qkv + (row + from - span->past) * r->stride, r->stride * sizeof(KvBf16),
        width * sizeof(KvBf16), to - from, cudaMemcpyDeviceToDevice, c->device->stream);
    if (status != cudaSuccess)
      return status;
  }
  return cudaSuccess;
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  cudaError_t status = kv_cuda_format_store_exact(c, layer, r);
  return status != cudaSuccess ? status : keep_windows(c, layer, r);
}

/* --- after a pass ---------------------------------------------------------------------------- */

/* Where things stand in the scratch of cutting one layer. */
typedef struct {
  gsize votes, pooled, kept, vote_scratch, rows, table, bytes;
  guint count; /* slots that are left */
} Layout;

static gsize aligned(gsize bytes) {
  return (bytes + 255) / 256 * 256;
}

static Layout layout_of(const KvCudaCompressed *c, const KvHostSpan *span) {
  guint prompt = span->prompt_tokens, budget = c->settings->budget;
  gsize heads = 0, kv_heads = 0, elements = 0;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    heads = MAX(heads, a->n_heads);
    kv_heads = MAX(kv_heads, a->n_kv_heads);
    elements = MAX(elements, (gsize)a->n_kv_heads * a->head_dim);
  }
  Layout y = {.count = budget + span->past + span->n_tokens - prompt};
  y.pooled = aligned(kv_heads * prompt * sizeof(float));
  y.kept = 2 * y.pooled;
  y.vote_scratch = y.kept + aligned(kv_heads * budget * sizeof(guint32));
  y.rows = y.vote_scratch +
           aligned(kv_cuda_vote_scratch_bytes(prompt, (guint)heads, c->settings->window));
  y.table = y.rows + aligned(2 * elements * y.count * sizeof(KvBf16));
  y.bytes = y.table + aligned(kv_cuda_format_blocks(c, span) * sizeof(guint32));
  return y;
}

/* Vote, choose, gather, scatter; of all but the first two, only what changes nothing if `dry`. */
static cudaError_t cut_layer(KvCudaCompressed *c, const KvHostSpan *span, const Layout *y,
                             guint layer, gboolean dry) {
  const KvHostCompression *k = c->settings;
  const KvCudaPages *pages = &c->cache->layers[layer];
  const Owner *owner = kv_cuda_format_find(c, span->owner);
  char *at = c->scratch;
  float *votes = (float *)(void *)(at + y->votes), *pooled = (float *)(void *)(at + y->pooled);
  guint32 *kept = (guint32 *)(void *)(at + y->kept), *table = (guint32 *)(void *)(at + y->table);
  KvBf16 *rows = (KvBf16 *)(void *)(at + y->rows);
  guint prompt = span->prompt_tokens;
  cudaStream_t stream = c->device->stream;
  cudaError_t status = kv_cuda_vote(votes, owner->window[layer], pages, table, prompt,
                                    c->weights->layers[layer].attention.n_heads, k->window,
                                    at + y->vote_scratch, stream);
  if (status == cudaSuccess)
    status = kv_cuda_select(kept, votes, pooled, prompt, pages->n_kv_heads, k->budget, k->window,
                            k->kernel, k->max_pooling, stream);
  if (status == cudaSuccess)
    status = dry ? kv_cuda_gather_kept(rows, pages, table, kept, 0, 0, 1, stream)
                 : kv_cuda_gather_kept(rows, pages, table, kept, k->budget, prompt,
                                       span->past + span->n_tokens, stream);
  return status == cudaSuccess
             ? kv_cuda_scatter_kept(pages, table, rows, dry ? 1 : y->count, stream)
             : status;
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  if (span->prompt_tokens <= c->settings->budget)
    return TRUE;
  Layout y = layout_of(c, span);
  if (!kv_cuda_format_scratch(c, y.bytes, "choosing the tokens of a prompt", error) ||
      !kv_cuda_upload(c->device, (char *)c->scratch + y.table, span->block_table,
                      kv_cuda_format_blocks(c, span) * sizeof(guint32), error) ||
      (!c->warm && !KV_CUDA_OK(cut_layer(c, span, &y, 0, TRUE), error)) ||
      !kv_cuda_clock_start(c->device, error))
    return FALSE;
  for (guint l = 0; l < c->weights->n_layers; l++)
    if (!KV_CUDA_OK(cut_layer(c, span, &y, l, FALSE), error))
      return FALSE;
  if (!kv_cuda_clock_stop(c->device, seconds, error))
    return FALSE;
  c->warm = TRUE;
  drop_window(kv_cuda_format_owner(c, span->owner));
  return TRUE;
}

const KvCudaFormat kv_cuda_format_snapkv = {.owner_bytes = sizeof(Owner),
                                            .begin = begin,
                                            .store = store,
                                            .finish = finish,
                                            .forget = forget};
