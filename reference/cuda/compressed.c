#include "reference/cuda/compressed.h"

#include <string.h>

#include "reference/cuda/format.h"
#include "sim/base/error.h"

static const KvCudaFormat *const formats[KV_HOST_N_FORMATS] = {
    [KV_HOST_FP8] = &kv_cuda_format_fp8,
    [KV_HOST_KIVI] = &kv_cuda_format_kivi,
    [KV_HOST_SNAPKV] = &kv_cuda_format_snapkv,
    [KV_HOST_QUEST] = &kv_cuda_format_quest,
    [KV_HOST_PYRAMIDKV] = &kv_cuda_format_pyramidkv,
    [KV_HOST_H2O] = &kv_cuda_format_h2o,
    [KV_HOST_PALU] = &kv_cuda_format_palu,
    [KV_HOST_MINICACHE] = &kv_cuda_format_minicache,
    [KV_HOST_FLEXGEN] = &kv_cuda_format_flexgen,
    [KV_HOST_INFINIGEN] = &kv_cuda_format_infinigen,
};

/* --- beginning and end ---------------------------------------------------------------------- */

KvCudaCompressed *kv_cuda_compressed_new(KvCudaDevice *device, const KvCudaWeights *weights,
                                         KvCudaCache *cache, GError **error) {
  const KvCudaFormat *format = formats[cache->compression.format];
  g_return_val_if_fail(format, NULL);
  KvCudaCompressed *c = g_new0(KvCudaCompressed, 1);
  c->device = device;
  c->weights = weights;
  c->cache = cache;
  c->settings = &cache->compression;
  c->format = format;
  c->owners = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
  if (!format->make || format->make(c, error))
    return c;
  kv_cuda_compressed_free(c);
  return NULL;
}

void kv_cuda_compressed_free(KvCudaCompressed *c) {
  if (!c)
    return;
  GHashTableIter owners;
  gpointer owner;
  g_hash_table_iter_init(&owners, c->owners);
  while (c->format->forget && g_hash_table_iter_next(&owners, NULL, &owner))
    c->format->forget(c, owner);
  if (c->format->release)
    c->format->release(c);
  g_hash_table_unref(c->owners);
  kv_cuda_free(c->scratch);
  g_free(c);
}

gpointer kv_cuda_format_find(const KvCudaCompressed *c, guint64 owner) {
  return g_hash_table_lookup(c->owners, &owner);
}

gpointer kv_cuda_format_owner(KvCudaCompressed *c, guint64 id) {
  gpointer owner = kv_cuda_format_find(c, id);
  if (owner)
    return owner;
  owner = g_malloc0(c->format->owner_bytes);
  g_hash_table_insert(c->owners, g_memdup2(&id, sizeof id), owner);
  return owner;
}

void kv_cuda_compressed_forget(KvCudaCompressed *c, guint64 id) {
  gpointer owner = kv_cuda_format_find(c, id);
  if (!owner)
    return;
  if (c->format->forget)
    c->format->forget(c, owner);
  g_hash_table_remove(c->owners, &id);
}

/* --- what formats have in common ------------------------------------------------------------- */

gboolean kv_cuda_format_grow(KvCudaCompressed *c, void *memory, gsize old, gsize bytes,
                             const char *what, GError **error) {
  void *before, *after = kv_cuda_alloc(bytes, what, error);
  memcpy(&before, memory, sizeof before);
  if (!after || (old && !kv_cuda_copy(c->device, after, before, old, error)) ||
      !kv_cuda_wait(c->device, error)) {
    kv_cuda_free(after);
    return FALSE;
  }
  kv_cuda_free(before);
  memcpy(memory, &after, sizeof after);
  return TRUE;
}

gboolean kv_cuda_format_scratch(KvCudaCompressed *c, gsize bytes, const char *what,
                                GError **error) {
  if (bytes <= c->scratch_bytes)
    return TRUE;
  if (!kv_cuda_format_grow(c, &c->scratch, 0, 2 * bytes, what, error))
    return FALSE;
  c->scratch_bytes = 2 * bytes;
  return TRUE;
}

guint kv_cuda_format_together(const KvCudaCompressed *c, gsize bytes) {
  const gsize most = 128 << 20; /* the scratch grows to twice what is asked for */
  return (guint)CLAMP(most / bytes, 1, MIN(c->weights->n_layers, KV_CUDA_TOGETHER));
}

guint kv_cuda_format_alike(const KvCudaCompressed *c, guint end, guint most) {
  const KvAttention *last = &c->weights->layers[end - 1].attention;
  guint n = 1;
  for (; n < MIN(most, end); n++) {
    const KvAttention *a = &c->weights->layers[end - 1 - n].attention;
    if (a->n_heads != last->n_heads || a->n_kv_heads != last->n_kv_heads ||
        a->head_dim != last->head_dim)
      break;
  }
  return n;
}

cudaError_t kv_cuda_format_bring(KvCudaCompressed *c, const KvCudaCut *cut, const guint32 *kept,
                                 KvBf16 *rows, gboolean dry) {
  KvCudaCut moved = *cut;
  if (dry) { /* the first token of a layer, to where it is */
    moved.n_layers = moved.tokens = 1;
    moved.prompt = moved.most = moved.layers[0].budget = 0;
    moved.layers[0].to = moved.layers[0].pool;
    moved.layers[0].to_table = moved.layers[0].table;
  }
  cudaError_t status = kv_cuda_gather_kept(rows, &moved, kept, c->device->stream);
  return status != cudaSuccess ? status : kv_cuda_scatter_kept(&moved, rows, c->device->stream);
}

guint kv_cuda_format_blocks(const KvCudaCompressed *c, const KvHostSpan *span) {
  return (span->past + span->n_tokens - span->dropped + c->cache->block_tokens - 1) /
         c->cache->block_tokens;
}

KvCudaTables kv_cuda_format_decode_tables(const KvCudaRows *r) {
  return (KvCudaTables){r->tables.table, r->tables.table_starts + r->prefill};
}

KvBf16 *kv_cuda_format_decode_out(const KvCudaRows *r) {
  return r->attended + (gsize)r->prefill_rows * r->n_heads * r->head_dim;
}

const KvBf16 *kv_cuda_format_decode_queries(const KvCudaRows *r) {
  return r->qkv + r->prefill_rows * r->stride;
}

cudaError_t kv_cuda_format_store_exact(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return kv_cuda_store(r->qkv, &c->cache->layers[layer], &r->tables, r->row_sequences, r->slots,
                       r->rows, r->n_heads, c->device->stream);
}

cudaError_t kv_cuda_format_prefill_exact(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return kv_cuda_prefill_attention(r->attended, r->qkv, r->stride, &c->cache->layers[layer],
                                   &r->tables, r->tiles, r->n_tiles, r->n_heads, r->window,
                                   c->device->stream);
}

cudaError_t kv_cuda_format_decode_exact(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  return kv_cuda_decode_attention(kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r),
                                  r->stride, &c->cache->layers[layer], &tables, r->contexts,
                                  r->decode, r->n_heads, r->window, r->split_tokens, r->max_splits,
                                  r->counters, r->scratch, c->device->stream);
}

/* --- the workspace --------------------------------------------------------------------------- */

void kv_cuda_workspace_init(KvCudaWorkspace *w, const KvCudaCompressed *c, gboolean one_pool) {
  *w = (KvCudaWorkspace){.one_pool = one_pool,
                         .layers = g_new0(KvCudaPages, c->weights->n_layers),
                         .words = g_array_new(FALSE, FALSE, sizeof(guint32))};
  for (guint l = 0; l < c->weights->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    KvCudaPages *pages = &w->layers[l];
    *pages = c->cache->layers[l];
    pages->pool = NULL;
    pages->value_offset = (gsize)a->n_kv_heads * c->cache->block_tokens * a->head_dim;
    pages->block_elements = 2 * pages->value_offset;
  }
}

void kv_cuda_workspace_clear(KvCudaWorkspace *w, guint n_layers) {
  for (guint l = 0; w->layers && l < (w->one_pool ? 1 : n_layers); l++)
    kv_cuda_free(w->layers[l].pool);
  if (w->words)
    g_array_unref(w->words);
  kv_cuda_free(w->device);
  g_free(w->layers);
  *w = (KvCudaWorkspace){0};
}

gboolean kv_cuda_workspace_grow(KvCudaWorkspace *w, KvCudaCompressed *c, guint blocks,
                                GError **error) {
  guint old = w->blocks, n_layers = c->weights->n_layers;
  gsize widest = 0;
  if (blocks <= old)
    return TRUE;
  blocks = MAX(blocks, 2 * old);
  for (guint l = 0; l < n_layers; l++)
    widest = MAX(widest, w->layers[l].block_elements * sizeof(KvBf16));
  for (guint l = 0; l < n_layers; l++) {
    gsize bytes = w->one_pool ? widest : w->layers[l].block_elements * sizeof(KvBf16);
    if (w->one_pool && l > 0)
      w->layers[l].pool = w->layers[0].pool;
    else if (!kv_cuda_format_grow(c, &w->layers[l].pool, w->one_pool ? 0 : old * bytes,
                                  blocks * bytes, "the exact keys and values of prompts", error))
      return FALSE;
  }
  w->blocks = blocks;
  return TRUE;
}

gboolean kv_cuda_workspace_upload(KvCudaWorkspace *w, KvCudaCompressed *c, GError **error) {
  gsize bytes = w->words->len * sizeof(guint32);
  if (w->words->len > w->room) {
    if (!kv_cuda_format_grow(c, &w->device, 0, 2 * bytes, "the tables of prompts", error))
      return FALSE;
    w->room = 2 * (gsize)w->words->len;
  }
  return bytes == 0 || kv_cuda_upload(c->device, w->device, w->words->data, bytes, error);
}

KvCudaTables kv_cuda_workspace_tables(const KvCudaWorkspace *w) {
  return (KvCudaTables){w->device + w->n_starts, w->device};
}

gboolean kv_cuda_workspace_widen(KvCudaWorkspace *w, KvCudaCompressed *c, guint prompts, guint *n,
                                 GError **error) {
  guint32 widened = 0;
  w->n_starts = prompts;
  g_array_set_size(w->words, prompts);
  for (guint s = 0; s < prompts; s++) {
    g_array_index(w->words, guint32, s) = widened;
    for (guint i = 0; i < kv_cuda_format_blocks(c, &c->spans[s]); i++, widened++)
      g_array_append_val(w->words, widened);
  }
  for (guint s = 0; s < prompts; s++)
    g_array_append_vals(w->words, c->spans[s].block_table, kv_cuda_format_blocks(c, &c->spans[s]));
  *n = widened;
  return kv_cuda_workspace_grow(w, c, widened, error) && kv_cuda_workspace_upload(w, c, error);
}

const guint32 *kv_cuda_workspace_sources(const KvCudaWorkspace *w, guint n) {
  return w->device + w->n_starts + n;
}

cudaError_t kv_cuda_workspace_prefill(const KvCudaWorkspace *w, KvCudaCompressed *c, guint layer,
                                      const KvCudaRows *r) {
  KvCudaTables tables = kv_cuda_workspace_tables(w);
  return kv_cuda_prefill_attention(r->attended, r->qkv, r->stride, &w->layers[layer], &tables,
                                   r->tiles, r->n_tiles, r->n_heads, r->window, c->device->stream);
}

/* --- a pass ---------------------------------------------------------------------------------- */

const KvCudaProjections *kv_cuda_compressed_projections(const KvCudaCompressed *c, guint layer) {
  return c->format->projections ? c->format->projections(c, layer) : NULL;
}

guint kv_cuda_compressed_parts(const KvCudaCompressed *c) {
  return c->format->parts ? c->format->parts(c) : c->weights->layers[0].attention.n_kv_heads;
}

gboolean kv_cuda_compressed_begin(KvCudaCompressed *c, const KvHostSpan *spans, guint n,
                                  gboolean *moved, GError **error) {
  guint prompts = 0;
  *moved = FALSE;
  c->spans = spans;
  c->n_spans = n;
  while (prompts < n && !spans[prompts].decoding)
    prompts++;
  if (n - prompts > KV_CUDA_FORMAT_ROWS) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: %u sequences decode together with a compressed cache, expected at "
                "most %d",
                n - prompts, KV_CUDA_FORMAT_ROWS);
    return FALSE;
  }
  return !c->format->begin || c->format->begin(c, prompts, moved, error);
}

gboolean kv_cuda_compressed_streams(const KvCudaCompressed *c) {
  return c->format->enter != NULL;
}

gboolean kv_cuda_compressed_enter(KvCudaCompressed *c, guint layer, GError **error) {
  return c->format->enter(c, layer, error);
}

gboolean kv_cuda_compressed_leave(KvCudaCompressed *c, guint layer, GError **error) {
  return c->format->leave(c, layer, error);
}

gboolean kv_cuda_compressed_looks_ahead(const KvCudaCompressed *c) {
  return c->format->look_ahead != NULL;
}

gboolean kv_cuda_compressed_look_ahead(KvCudaCompressed *c, guint layer, const KvCudaInput *input,
                                       GError **error) {
  return c->format->look_ahead(c, layer, input, error);
}

gboolean kv_cuda_compressed_await(KvCudaCompressed *c, guint layer, GError **error) {
  return c->format->await(c, layer, error);
}

gboolean kv_cuda_compressed_unread(KvCudaCompressed *c, double *tokens, GError **error) {
  return !c->format->unread || c->format->unread(c, tokens, error);
}

cudaError_t kv_cuda_compressed_store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return c->format->store ? c->format->store(c, layer, r) : kv_cuda_format_store_exact(c, layer, r);
}

cudaError_t kv_cuda_compressed_prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return c->format->prefill ? c->format->prefill(c, layer, r)
                            : kv_cuda_format_prefill_exact(c, layer, r);
}

cudaError_t kv_cuda_compressed_decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return c->format->decode ? c->format->decode(c, layer, r)
                           : kv_cuda_format_decode_exact(c, layer, r);
}

gboolean kv_cuda_compressed_finish(KvCudaCompressed *c, const KvHostSpan *spans, guint n,
                                   double *seconds, GError **error) {
  *seconds = 0.0;
  for (guint s = 0; c->format->finish && s < n && !spans[s].decoding; s++) {
    double took = 0.0;
    if (!spans[s].last)
      continue;
    if (!c->format->finish(c, &spans[s], s, &took, error))
      return FALSE;
    *seconds += took;
  }
  return TRUE;
}
