#include "reference/cuda/window.h"

#include <string.h>

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

/* The next `bytes` of the scratch; with `at` NULL they are only counted. */
static void *take(char *at, gsize *used, gsize bytes) {
  char *taken = at ? at + *used : NULL;
  *used += (bytes + 255) / 256 * 256;
  return taken;
}

static gsize lay_out(const KvCudaCompressed *c, const KvHostSpan *span, guint budget, gsize words,
                     char *at, KvCudaCut *cut) {
  gsize heads = 0, kv_heads = 0, elements = 0, used = 0, prompt = span->prompt_tokens;
  gsize slots = budget + span->past + span->n_tokens - prompt;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    heads = MAX(heads, a->n_heads);
    kv_heads = MAX(kv_heads, a->n_kv_heads);
    elements = MAX(elements, (gsize)a->n_kv_heads * a->head_dim);
  }
  cut->votes = take(at, &used, kv_heads * prompt * sizeof(float));
  cut->pooled = take(at, &used, kv_heads * prompt * sizeof(float));
  cut->kept = take(at, &used, kv_heads * budget * sizeof(guint32));
  cut->vote_scratch =
      take(at, &used, kv_cuda_vote_scratch_bytes((guint)prompt, (guint)heads, c->settings->window));
  cut->rows = take(at, &used, 2 * elements * slots * sizeof(KvBf16));
  cut->tables = take(at, &used, words * sizeof(guint32));
  return used;
}

gboolean kv_cuda_cut_begin(KvCudaCompressed *c, const KvHostSpan *span, guint budget,
                           const guint32 *tables, gsize n, KvCudaCut *cut, GError **error) {
  gsize own = kv_cuda_format_blocks(c, span);
  gsize bytes = lay_out(c, span, budget, own + n, NULL, cut);
  g_autofree guint32 *words = g_new(guint32, own + n);
  memcpy(words, span->block_table, own * sizeof *words);
  if (n)
    memcpy(words + own, tables, n * sizeof *words);
  if (!kv_cuda_format_scratch(c, bytes, "choosing the tokens of a prompt", error))
    return FALSE;
  (void)lay_out(c, span, budget, own + n, c->scratch, cut);
  return kv_cuda_upload(c->device, cut->tables, words, (own + n) * sizeof *words, error);
}

cudaError_t kv_cuda_cut_layer(KvCudaCompressed *c, const KvHostSpan *span, const KvCudaCut *cut,
                              guint layer, const KvCudaCutTarget *target, gboolean dry) {
  const KvHostCompression *k = c->settings;
  const KvCudaPages *pages = &c->cache->layers[layer];
  const KvCudaWindow *window = kv_cuda_format_find(c, span->owner);
  guint prompt = span->prompt_tokens, tokens = span->past + span->n_tokens;
  cudaStream_t stream = c->device->stream;
  cudaError_t status = kv_cuda_vote(cut->votes, window->queries[layer], pages, cut->tables, prompt,
                                    c->weights->layers[layer].attention.n_heads, k->window,
                                    cut->vote_scratch, stream);
  if (status == cudaSuccess)
    status = kv_cuda_select(cut->kept, cut->votes, cut->pooled, prompt, pages->n_kv_heads,
                            target->budget, k->window, k->kernel, k->max_pooling, stream);
  if (status == cudaSuccess)
    status = dry ? kv_cuda_gather_kept(cut->rows, pages, cut->tables, cut->kept, 0, 0, 1, stream)
                 : kv_cuda_gather_kept(cut->rows, pages, cut->tables, cut->kept, target->budget,
                                       prompt, tokens, stream);
  if (status != cudaSuccess)
    return status;
  return dry ? kv_cuda_scatter_kept(pages, cut->tables, cut->rows, 1, stream)
             : kv_cuda_scatter_kept(&target->pages, target->table, cut->rows,
                                    target->budget + tokens - prompt, stream);
}
