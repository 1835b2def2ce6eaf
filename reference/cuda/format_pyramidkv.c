/* pyramidkv: as snapkv, but a layer's part of a block may hold tokens of another layer
 * (reference/host/pyramid.h). The layers' pools are one, so a table can lead to any part; at the
 * first layer of a pass each layer gets its tables of the decoding sequences. What follows a prompt
 * stands where it would without a pyramid, so it is stored there. */
#include <string.h>

#include "reference/cuda/window.h"
#include "reference/host/pyramid.h"
#include "sim/base/error.h"

typedef struct {
  KvHostPyramid *pyramid;
  guint32 *words; /* device: starts, whole, parts */
  KvCudaPyramid gpu;
  guint32 *applies; /* device, [KV_CUDA_FORMAT_ROWS]: of the pass's decoding rows */
  KvCudaLayerTables tables;
  guint32 *starts; /* device, [tables.sequences] */
} Pyramid;

/* --- beginning and end ---------------------------------------------------------------------- */

static gboolean upload_pyramid(KvCudaCompressed *c, Pyramid *y, GError **error) {
  const KvHostPyramid *p = y->pyramid;
  gsize L = p->n_layers, parts = 2 * L * p->whole_mean, n = 2 * L + parts;
  g_autofree guint32 *words = g_new(guint32, n);
  memcpy(words, p->starts, L * sizeof *words);
  memcpy(words + L, p->whole, L * sizeof *words);
  memcpy(words + 2 * L, p->parts, parts * sizeof *words);
  if (!(y->words = kv_cuda_alloc(n * sizeof *words, "the blocks of each layer", error)))
    return FALSE;
  y->gpu = (KvCudaPyramid){.starts = y->words,
                           .whole = y->words + L,
                           .parts = (const uint2 *)(const void *)(y->words + 2 * L),
                           .n_layers = p->n_layers,
                           .whole_mean = p->whole_mean,
                           .block_shift = c->cache->layers[0].block_shift,
                           .blocks = (guint32)c->cache->hbm_blocks};
  return kv_cuda_upload(c->device, y->words, words, n * sizeof *words, error);
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  Pyramid *y = c->state = g_new0(Pyramid, 1);
  gsize bytes = KV_CUDA_FORMAT_ROWS * sizeof(guint32);
  y->pyramid = kv_host_pyramid_new(c->settings);
  if (c->cache->hbm_blocks * c->weights->n_layers > G_MAXUINT32) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%" G_GUINT64_FORMAT " blocks of %u layers, pyramidkv on the cuda executor counts "
                "at most 2^32 parts of them: expected fewer blocks",
                c->cache->hbm_blocks, c->weights->n_layers);
    return FALSE;
  }
  return upload_pyramid(c, y, error) &&
         (y->applies = kv_cuda_alloc(bytes, "the pyramids of a step", error)) &&
         kv_cuda_fill(c->device, y->applies, 0, bytes, error);
}

static void tables_clear(Pyramid *y) {
  void *memory[] = {y->tables.table, y->tables.contexts, y->tables.split_tokens, y->starts};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
  y->tables = (KvCudaLayerTables){0};
  y->starts = NULL;
}

static void release(KvCudaCompressed *c) {
  Pyramid *y = c->state;
  tables_clear(y);
  kv_cuda_free(y->words);
  kv_cuda_free(y->applies);
  g_free(y->pyramid);
  g_free(y);
}

/* --- before a pass --------------------------------------------------------------------------- */

/* Room for so many decoding sequences, and blocks of one. */
static gboolean make_tables(KvCudaCompressed *c, guint sequences, guint room, gboolean *moved,
                            GError **error) {
  Pyramid *y = c->state;
  gsize L = c->weights->n_layers;
  const char *what = "each layer's tables";
  if (sequences <= y->tables.sequences && room <= y->tables.room)
    return TRUE;
  sequences = MAX(2 * sequences, y->tables.sequences);
  room = MAX(2 * room, y->tables.room);
  if (!kv_cuda_wait(c->device, error))
    return FALSE;
  tables_clear(y);
  *moved = TRUE;
  gsize rows = L * sequences;
  g_autofree guint32 *starts = g_new(guint32, sequences);
  for (guint s = 0; s < sequences; s++)
    starts[s] = s * room;
  y->tables.table = kv_cuda_alloc(rows * room * sizeof(guint32), what, error);
  y->tables.contexts = y->tables.table ? kv_cuda_alloc(rows * sizeof(guint32), what, error) : NULL;
  y->tables.split_tokens =
      y->tables.contexts ? kv_cuda_alloc(L * sizeof(guint32), what, error) : NULL;
  y->starts =
      y->tables.split_tokens ? kv_cuda_alloc(sequences * sizeof(guint32), what, error) : NULL;
  y->tables.sequences = sequences;
  y->tables.room = room;
  return y->starts &&
         kv_cuda_upload(c->device, y->starts, starts, sequences * sizeof *starts, error);
}

/* The engine fills a batch up to one that it has a graph of: by fewer than 8 rows. */
static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  Pyramid *y = c->state;
  guint32 applies[KV_CUDA_FORMAT_ROWS];
  guint decoding = c->n_spans - prompts, most = 1;
  guint more = y->pyramid->whole[0] - y->pyramid->whole_mean;
  for (guint s = 0; s < decoding; s++) {
    const KvHostSpan *span = &c->spans[prompts + s];
    applies[s] = kv_host_pyramid_applies(y->pyramid, c->settings, span->prompt_tokens);
    most = MAX(most, kv_cuda_format_blocks(c, span) + more);
  }
  return kv_cuda_window_begin(c, prompts, error) &&
         (decoding == 0 ||
          (make_tables(c, decoding + 7, most, moved, error) &&
           kv_cuda_upload(c->device, y->applies, applies, decoding * sizeof *applies, error)));
}

/* --- in a pass ------------------------------------------------------------------------------- */

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Pyramid *y = c->state;
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  cudaError_t status = layer > 0 ? cudaSuccess
                                 : kv_cuda_pyramid_tables(&y->tables, &y->gpu, &tables, r->contexts,
                                                          y->applies, r->decode, r->split_tokens,
                                                          r->max_splits, c->device->stream);
  return status != cudaSuccess ? status : kv_cuda_window_store(c, layer, r);
}

/* The layer's blocks by the numbers of all layers' parts. */
static KvCudaPages all_parts(const KvCudaCompressed *c, guint layer) {
  KvCudaPages pages = c->cache->layers[layer];
  pages.pool = c->cache->layers[0].pool;
  return pages;
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Pyramid *y = c->state;
  const KvCudaPages pages = all_parts(c, layer);
  gsize rows = (gsize)layer * y->tables.sequences;
  const KvCudaTables tables = {y->tables.table + rows * y->tables.room, y->starts};
  return kv_cuda_decode_attention(kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r),
                                  r->stride, &pages, &tables, y->tables.contexts + rows, r->decode,
                                  r->n_heads, r->window, y->tables.split_tokens + layer,
                                  r->max_splits, r->counters, r->scratch, c->device->stream);
}

/* --- after a pass ---------------------------------------------------------------------------- */

/* Where the layers of a prompt that gets a pyramid go, and their tables there, one after another.
 * The parts of late layers are taken by early ones, which are cut after them. */
static GArray *layer_targets(const KvCudaCompressed *c, const KvHostSpan *span,
                             KvCudaCutTarget *targets) {
  const KvHostPyramid *p = ((const Pyramid *)c->state)->pyramid;
  GArray *words = g_array_new(FALSE, FALSE, sizeof(guint32));
  guint32 after = span->past + span->n_tokens - span->prompt_tokens;
  for (guint l = 0; l < p->n_layers; l++) {
    targets[l] = (KvCudaCutTarget){
        .budget = kv_host_pyramid_budget(p, l), .pool = all_parts(c, l).pool, .table = words->len};
    for (guint32 i = 0; i * p->block_tokens < targets[l].budget + after; i++) {
      KvHostPart part = kv_host_pyramid_part(p, l, i);
      guint32 word = part.layer * (guint32)c->cache->hbm_blocks + span->block_table[part.block];
      g_array_append_val(words, word);
    }
  }
  return words;
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  const Pyramid *y = c->state;
  guint32 kept = kv_host_compression_kept(c->settings, span->prompt_tokens);
  g_autofree KvCudaCutTarget *targets = g_new(KvCudaCutTarget, c->weights->n_layers);
  if (kept == span->prompt_tokens)
    return TRUE;
  if (kv_host_pyramid_applies(y->pyramid, c->settings, span->prompt_tokens)) {
    g_autoptr(GArray) tables = layer_targets(c, span, targets);
    return kv_cuda_window_cut(c, span, targets, (const guint32 *)(const void *)tables->data,
                              tables->len, seconds, error);
  }
  for (guint l = 0; l < c->weights->n_layers; l++)
    targets[l] =
        (KvCudaCutTarget){.budget = kept, .pool = c->cache->layers[l].pool, .own_table = TRUE};
  return kv_cuda_window_cut(c, span, targets, NULL, 0, seconds, error);
}

const KvCudaFormat kv_cuda_format_pyramidkv = {.owner_bytes = sizeof(KvCudaWindow),
                                               .make = make,
                                               .release = release,
                                               .begin = begin,
                                               .store = store,
                                               .decode = decode,
                                               .finish = finish,
                                               .forget = kv_cuda_window_forget};
