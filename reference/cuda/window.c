#include "reference/cuda/window.h"

#include "reference/host/format.h"

/* --- the last queries ------------------------------------------------------------------------ */

void kv_cuda_window_forget(KvCudaCompressed *c, gpointer owner) {
  KvCudaWindow *window = owner;
  if (window->queries)
    kv_cuda_free(window->queries[0]);
  g_clear_pointer(&window->queries, g_free);
}

static gsize query_width(const KvCudaCompressed *c, guint layer) {
  const KvAttention *a = &c->weights->layers[layer].attention;
  return (gsize)a->n_heads * a->head_dim;
}

/* A prompt that will not be cut, although others are. */
static gboolean stays_whole(const KvCudaCompressed *c, const KvHostSpan *span) {
  return kv_host_format(c->settings->format)->kept &&
         kv_host_compression_kept(c->settings, span->prompt_tokens) == span->prompt_tokens;
}

static gboolean make_window(KvCudaCompressed *c, const KvHostSpan *span, GError **error) {
  KvCudaWindow *window = kv_cuda_format_owner(c, span->owner);
  gsize elements = 0;
  if (window->queries || stays_whole(c, span) ||
      span->past + span->n_tokens + c->settings->window <= span->prompt_tokens)
    return TRUE;
  for (guint l = 0; l < c->weights->n_layers; l++)
    elements += c->settings->window * query_width(c, l);
  KvBf16 *memory = kv_cuda_alloc(elements * sizeof(KvBf16), "the window of a prompt", error);
  if (!memory)
    return FALSE;
  window->queries = g_new(KvBf16 *, c->weights->n_layers);
  for (guint l = 0; l < c->weights->n_layers; memory += c->settings->window * query_width(c, l++))
    window->queries[l] = memory;
  return TRUE;
}

gboolean kv_cuda_window_begin(KvCudaCompressed *c, guint prompts, GError **error) {
  for (guint s = 0; s < prompts; s++)
    if (!make_window(c, &c->spans[s], error))
      return FALSE;
  return TRUE;
}

cudaError_t kv_cuda_window_keep(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  gsize width = query_width(c, layer), row = 0;
  for (guint s = 0; s < c->n_spans && !c->spans[s].decoding; row += c->spans[s++].n_tokens) {
    const KvHostSpan *span = &c->spans[s];
    const KvCudaWindow *window = kv_cuda_format_find(c, span->owner);
    guint32 first = span->prompt_tokens - MIN(c->settings->window, span->prompt_tokens);
    guint32 from = MAX(first, span->past);
    guint32 to = MIN(span->prompt_tokens, span->past + span->n_tokens);
    if (!window || !window->queries || from >= to)
      continue;
    cudaError_t status = cudaMemcpy2DAsync(
        window->queries[layer] + (from - first) * width, width * sizeof(KvBf16),
        r->qkv + (row + from - span->past) * r->stride, r->stride * sizeof(KvBf16),
        width * sizeof(KvBf16), to - from, cudaMemcpyDeviceToDevice, c->device->stream);
    if (status != cudaSuccess)
      return status;
  }
  return cudaSuccess;
}

cudaError_t kv_cuda_window_store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  cudaError_t status = kv_cuda_format_store_exact(c, layer, r);
  return status != cudaSuccess ? status : kv_cuda_window_keep(c, layer, r);
}

/* --- the cut --------------------------------------------------------------------------------- */

/* What cutting some layers of one prompt needs beside the cache. */
typedef struct {
  float *votes;
  void *pooled, *vote_scratch;
  guint32 *kept;
  KvBf16 *rows;
  guint32 *table, *tables; /* the prompt's, and those that were given */
} Scratch;

/* The next `bytes` of the scratch; with `at` NULL they are only counted. */
static void *take(char *at, gsize *used, gsize bytes) {
  char *taken = at ? at + *used : NULL;
  *used += (bytes + 255) / 256 * 256;
  return taken;
}

/* For `layers` of them at once, and n words of tables beside the prompt's. */
static gsize lay_out(const KvCudaCompressed *c, const KvHostSpan *span, guint budget, gsize n,
                     gsize layers, char *at, Scratch *s) {
  gsize heads = 0, kv_heads = 0, elements = 0, used = 0, prompt = span->prompt_tokens;
  gsize slots = budget + span->past + span->n_tokens - prompt;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    heads = MAX(heads, a->n_heads);
    kv_heads = MAX(kv_heads, a->n_kv_heads);
    elements = MAX(elements, (gsize)a->n_kv_heads * a->head_dim);
  }
  s->votes = take(at, &used, layers * kv_heads * prompt * sizeof(float));
  s->pooled = take(at, &used, layers * kv_heads * prompt * sizeof(float));
  s->kept = take(at, &used, layers * kv_heads * budget * sizeof(guint32));
  s->vote_scratch = take(
      at, &used, kv_cuda_vote_scratch_bytes((guint32)layers, (guint32)heads, c->settings->window));
  s->rows = take(at, &used, layers * 2 * elements * slots * sizeof(KvBf16));
  s->table = take(at, &used, kv_cuda_format_blocks(c, span) * sizeof(guint32));
  s->tables = take(at, &used, n * sizeof(guint32));
  return used;
}

/* The scratch, with the tables in it, for *together layers. */
static gboolean begin_cut(KvCudaCompressed *c, const KvHostSpan *span, guint budget,
                          const guint32 *tables, gsize n, guint *together, Scratch *s,
                          GError **error) {
  *together = kv_cuda_format_together(c, lay_out(c, span, budget, n, 1, NULL, s));
  if (!kv_cuda_format_scratch(c, lay_out(c, span, budget, n, *together, NULL, s),
                              "choosing the tokens of a prompt", error))
    return FALSE;
  (void)lay_out(c, span, budget, n, *together, c->scratch, s);
  return kv_cuda_upload(c->device, s->table, span->block_table,
                        kv_cuda_format_blocks(c, span) * sizeof(guint32), error) &&
         (n == 0 || kv_cuda_upload(c->device, s->tables, tables, n * sizeof *tables, error));
}

/* The layers first .. end - 1, which are alike. */
static KvCudaCut cut_of(const KvCudaCompressed *c, const KvHostSpan *span, const Scratch *s,
                        const KvCudaCutTarget *targets, guint first, guint end) {
  const KvCudaWindow *window = kv_cuda_format_find(c, span->owner);
  KvCudaCut cut = {.pages = c->cache->layers[first],
                   .n_layers = end - first,
                   .n_heads = c->weights->layers[first].attention.n_heads,
                   .prompt = span->prompt_tokens,
                   .tokens = span->past + span->n_tokens,
                   .window = c->settings->window};
  for (guint l = first; l < end; l++) {
    const KvCudaCutTarget *t = &targets[l];
    cut.layers[l - first] =
        (KvCudaCutLayer){.q = window->queries[l],
                         .pool = c->cache->layers[l].pool,
                         .to = t->pool,
                         .table = s->table,
                         .to_table = t->own_table ? s->table : s->tables + t->table,
                         .budget = t->budget};
    cut.most = MAX(cut.most, t->budget);
  }
  return cut;
}

/* All layers; if `dry`, what changes nothing of it, of the last ones. */
static cudaError_t cut_layers(KvCudaCompressed *c, const KvHostSpan *span, const Scratch *s,
                              const KvCudaCutTarget *targets, guint together, gboolean dry) {
  const KvHostCompression *k = c->settings;
  cudaStream_t stream = c->device->stream;
  cudaError_t status = cudaSuccess;
  for (guint end = c->weights->n_layers, n; end > 0 && status == cudaSuccess; end -= n) {
    n = kv_cuda_format_alike(c, end, together);
    const KvCudaCut cut = cut_of(c, span, s, targets, end - n, end);
    status = kv_cuda_vote(s->votes, &cut, s->vote_scratch, stream);
    if (status == cudaSuccess)
      status =
          kv_cuda_select(s->kept, s->votes, s->pooled, &cut, k->kernel, k->max_pooling, stream);
    if (status == cudaSuccess)
      status = kv_cuda_format_bring(c, &cut, s->kept, s->rows, dry);
    if (dry)
      break;
  }
  return status;
}

gboolean kv_cuda_window_cut(KvCudaCompressed *c, const KvHostSpan *span,
                            const KvCudaCutTarget *targets, const guint32 *tables, gsize n,
                            double *seconds, GError **error) {
  Scratch s;
  guint budget = 0, together;
  for (guint l = 0; l < c->weights->n_layers; l++)
    budget = MAX(budget, targets[l].budget);
  if (!begin_cut(c, span, budget, tables, n, &together, &s, error) ||
      (!c->warm && !KV_CUDA_OK(cut_layers(c, span, &s, targets, together, TRUE), error)) ||
      !kv_cuda_clock_start(c->device, error) ||
      !KV_CUDA_OK(cut_layers(c, span, &s, targets, together, FALSE), error) ||
      !kv_cuda_clock_stop(c->device, seconds, error))
    return FALSE;
  c->warm = TRUE;
  kv_cuda_window_forget(c, kv_cuda_format_owner(c, span->owner));
  return TRUE;
}
