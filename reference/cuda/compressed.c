#include "reference/cuda/compressed.h"

#include <string.h>

#include "sim/base/error.h"

/* CHOICE_SPLIT: tokens of chosen pages that one block attends to. */
enum { CHOICE_SPLIT = 4 * KV_CUDA_SPLIT_UNIT };
enum { MOST_ROWS = 8192, FIRST_RINGS = 64, NO_RING = -1 };

/* What belongs to a sequence. */
typedef struct {
  gint ring;
  GArray *exact;   /* of guint32: blocks of the exact pool */
  KvBf16 **window; /* [layers]: queries of the prompt's window, device; one piece of memory */
} Owner;

/* Where decoding tokens choose their pages. */
typedef struct {
  guint sequences, most_pages, max_splits; /* room for */
  guint32 *table, *contexts, *starts, *split;
  float *bounds;
  KvBf16 *queries;
  void *scratch;
} Choice;

struct KvCudaCompressed {
  KvCudaDevice *device;
  const KvCudaWeights *weights;
  KvCudaCache *cache;
  const KvHostCompression *settings;
  GHashTable *owners;      /* of Owner, by guint64 */
  KvCudaPages *exact;      /* [layers]; fp8: all of them the same memory */
  guint exact_blocks;      /* of the pool */
  GArray *free_exact;      /* of guint32 */
  guint n_rings;           /* of each layer */
  GArray *free_rings;      /* of gint */
  guint32 *rings;          /* device, [MOST_ROWS]: of the pass's decoding rows */
  GArray *words;           /* of guint32: starts, table, and what fp8 widens */
  guint32 *tables;         /* the same on the device */
  gsize table_words;       /* room for */
  guint n_starts, n_from;  /* in `words` */
  const KvHostSpan *spans; /* of the pass under way */
  guint n_spans;
  void *scratch; /* of cutting */
  gsize scratch_bytes;
  gboolean warm, all_fit; /* all_fit: no context of the pass has more pages than are chosen */
  Choice choice;
};

/* --- beginning and end ---------------------------------------------------------------------- */

static void owner_free(gpointer data) {
  Owner *owner = data;
  g_array_unref(owner->exact);
  if (owner->window)
    kv_cuda_free(owner->window[0]);
  g_free(owner->window);
  g_free(owner);
}

KvCudaCompressed *kv_cuda_compressed_new(KvCudaDevice *device, const KvCudaWeights *weights,
                                         KvCudaCache *cache, GError **error) {
  KvCudaCompressed *c = g_new0(KvCudaCompressed, 1);
  c->device = device;
  c->weights = weights;
  c->cache = cache;
  c->settings = &cache->compression;
  c->owners = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, owner_free);
  c->free_exact = g_array_new(FALSE, FALSE, sizeof(guint32));
  c->free_rings = g_array_new(FALSE, FALSE, sizeof(gint));
  c->words = g_array_new(FALSE, FALSE, sizeof(guint32));
  c->exact = g_new0(KvCudaPages, weights->n_layers);
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvAttention *a = &weights->layers[l].attention;
    KvCudaPages *pages = &c->exact[l];
    *pages = cache->layers[l];
    pages->pool = NULL;
    pages->value_offset = (gsize)a->n_kv_heads * cache->block_tokens * a->head_dim;
    pages->block_elements = 2 * pages->value_offset;
  }
  c->rings = kv_cuda_alloc(MOST_ROWS * sizeof(guint32), "the rings of a step", error);
  if (!c->rings || !kv_cuda_fill(device, c->rings, 0, MOST_ROWS * sizeof(guint32), error)) {
    kv_cuda_compressed_free(c);
    return NULL;
  }
  return c;
}

static void choice_clear(Choice *y) {
  void *memory[] = {y->table, y->contexts, y->starts, y->split, y->bounds, y->queries, y->scratch};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
  *y = (Choice){0};
}

static gboolean shares_exact(const KvCudaCompressed *c) {
  return c->settings->format == KV_HOST_FP8;
}

void kv_cuda_compressed_free(KvCudaCompressed *c) {
  if (!c)
    return;
  g_hash_table_unref(c->owners);
  for (guint l = 0; l < (shares_exact(c) ? 1 : c->weights->n_layers); l++)
    kv_cuda_free(c->exact[l].pool);
  for (guint l = 0; c->cache->packed && l < c->weights->n_layers; l++)
    g_clear_pointer(&c->cache->packed[l].ring, kv_cuda_free);
  choice_clear(&c->choice);
  kv_cuda_free(c->rings);
  kv_cuda_free(c->tables);
  kv_cuda_free(c->scratch);
  GArray *arrays[] = {c->free_exact, c->free_rings, c->words};
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_array_unref(arrays[i]);
  g_free(c->exact);
  g_free(c);
}

static Owner *owner_of(KvCudaCompressed *c, guint64 id) {
  Owner *owner = g_hash_table_lookup(c->owners, &id);
  if (!owner) {
    owner = g_new0(Owner, 1);
    owner->ring = NO_RING;
    owner->exact = g_array_new(FALSE, FALSE, sizeof(guint32));
    g_hash_table_insert(c->owners, g_memdup2(&id, sizeof id), owner);
  }
  return owner;
}

static void release_exact(KvCudaCompressed *c, Owner *owner) {
  g_array_append_vals(c->free_exact, owner->exact->data, owner->exact->len);
  g_array_set_size(owner->exact, 0);
}

void kv_cuda_compressed_forget(KvCudaCompressed *c, guint64 id) {
  Owner *owner = g_hash_table_lookup(c->owners, &id);
  if (!owner)
    return;
  release_exact(c, owner);
  if (owner->ring != NO_RING)
    g_array_append_val(c->free_rings, owner->ring);
  g_hash_table_remove(c->owners, &id);
}

/* --- room ------------------------------------------------------------------------------------ */

/* `*memory` of `old` bytes becomes one of `bytes`, with what was in it. */
static gboolean grow(KvCudaCompressed *c, void *memory, gsize old, gsize bytes, const char *what,
                     GError **error) {
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

/* At least so many exact blocks in all. */
static gboolean grow_exact(KvCudaCompressed *c, guint blocks, GError **error) {
  guint old = c->exact_blocks, n_layers = c->weights->n_layers;
  gsize widest = 0;
  if (blocks <= old)
    return TRUE;
  blocks = MAX(blocks, 2 * old);
  for (guint l = 0; l < n_layers; l++)
    widest = MAX(widest, c->exact[l].block_elements * sizeof(KvBf16));
  for (guint l = 0; l < n_layers; l++) {
    gsize bytes = shares_exact(c) ? widest : c->exact[l].block_elements * sizeof(KvBf16);
    if (shares_exact(c) && l > 0)
      c->exact[l].pool = c->exact[0].pool;
    else if (!grow(c, &c->exact[l].pool, shares_exact(c) ? 0 : old * bytes, blocks * bytes,
                   "the exact keys and values of prompts", error))
      return FALSE;
  }
  c->exact_blocks = blocks;
  for (guint32 i = blocks; i-- > old && !shares_exact(c);)
    g_array_append_val(c->free_exact, i);
  return TRUE;
}

static gboolean take_ring(KvCudaCompressed *c, Owner *owner, gboolean *moved, GError **error) {
  if (owner->ring != NO_RING)
    return TRUE;
  if (c->free_rings->len == 0) {
    guint old = c->n_rings, n = old ? 2 * old : FIRST_RINGS;
    for (guint l = 0; l < c->weights->n_layers; l++) {
      gsize bytes = c->cache->packed[l].ring_elements * sizeof(guint16);
      if (!grow(c, &c->cache->packed[l].ring, old * bytes, n * bytes,
                "the last tokens of each sequence", error))
        return FALSE;
    }
    for (gint i = (gint)n; i-- > (gint)old;)
      g_array_append_val(c->free_rings, i);
    c->n_rings = n;
    *moved = TRUE;
  }
  owner->ring = g_array_index(c->free_rings, gint, c->free_rings->len - 1);
  g_array_set_size(c->free_rings, c->free_rings->len - 1);
  return TRUE;
}

static guint blocks_of(const KvCudaCompressed *c, const KvHostSpan *span) {
  return (span->past + span->n_tokens - span->dropped + c->cache->block_tokens - 1) /
         c->cache->block_tokens;
}

/* The exact blocks of a prompt so far, appended to the table. */
static gboolean add_exact(KvCudaCompressed *c, const KvHostSpan *span, GError **error) {
  Owner *owner = owner_of(c, span->owner);
  guint need = blocks_of(c, span);
  if (span->past == 0)
    release_exact(c, owner);
  if (need > owner->exact->len) {
    guint more = need - owner->exact->len;
    if (more > c->free_exact->len &&
        !grow_exact(c, c->exact_blocks + more - c->free_exact->len, error))
      return FALSE;
    g_array_set_size(c->free_exact, c->free_exact->len - more);
    g_array_append_vals(owner->exact, (guint32 *)(void *)c->free_exact->data + c->free_exact->len,
                        more);
  }
  g_array_append_vals(c->words, owner->exact->data, need);
  return TRUE;
}

static gsize query_width(const KvCudaCompressed *c, guint layer) {
  const KvAttention *a = &c->weights->layers[layer].attention;
  return (gsize)a->n_heads * a->head_dim;
}

static gboolean make_window(KvCudaCompressed *c, const KvHostSpan *span, GError **error) {
  Owner *owner = owner_of(c, span->owner);
  gsize elements = 0;
  if (owner->window || !kv_host_compression_dropped(c->settings, span->prompt_tokens) ||
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

/* --- before a pass ---------------------------------------------------------------------------- */

/* The starts of the prompts' tables, to be filled in, then the tables themselves. */
static gboolean fill_tables(KvCudaCompressed *c, guint prompts, GError **error) {
  guint32 widened = 0;
  g_array_set_size(c->words, prompts);
  for (guint s = 0; s < prompts; s++) {
    guint n = blocks_of(c, &c->spans[s]);
    g_array_index(c->words, guint32, s) = c->words->len - prompts;
    if (!shares_exact(c)) {
      if (!add_exact(c, &c->spans[s], error))
        return FALSE;
      continue;
    }
    for (guint i = 0; i < n; i++, widened++)
      g_array_append_val(c->words, widened);
  }
  c->n_starts = prompts;
  c->n_from = widened;
  for (guint s = 0; shares_exact(c) && s < prompts; s++)
    g_array_append_vals(c->words, c->spans[s].block_table, blocks_of(c, &c->spans[s]));
  return grow_exact(c, widened, error);
}

static gboolean upload_tables(KvCudaCompressed *c, GError **error) {
  if (c->words->len > c->table_words) {
    if (!grow(c, &c->tables, 0, 2 * (gsize)c->words->len * sizeof(guint32), "the tables of prompts",
              error))
      return FALSE;
    c->table_words = 2 * (gsize)c->words->len;
  }
  return c->words->len == 0 || kv_cuda_upload(c->device, c->tables, c->words->data,
                                              c->words->len * sizeof(guint32), error);
}

static gboolean begin_kivi(KvCudaCompressed *c, gboolean *moved, GError **error) {
  guint32 rings[MOST_ROWS];
  guint decoding = 0;
  for (guint s = 0; s < c->n_spans; s++) {
    const KvHostSpan *span = &c->spans[s];
    Owner *owner = owner_of(c, span->owner);
    if (!span->decoding && !span->last)
      continue;
    if (!take_ring(c, owner, moved, error))
      return FALSE;
    if (span->decoding)
      rings[decoding++] = (guint32)owner->ring;
  }
  return decoding == 0 ||
         kv_cuda_upload(c->device, c->rings, rings, decoding * sizeof *rings, error);
}

/* Room for so many decoding sequences and pages. */
static gboolean make_choice(KvCudaCompressed *c, guint sequences, guint most_pages, gboolean *moved,
                            GError **error) {
  Choice *y = &c->choice, need = {0};
  guint heads = 0, kv = 0, d = 0, chosen = c->settings->pages;
  if (sequences <= y->sequences && most_pages <= y->most_pages)
    return TRUE;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    heads = MAX(heads, a->n_heads);
    kv = MAX(kv, a->n_kv_heads);
    d = MAX(d, a->head_dim);
  }
  need.sequences = MAX(2 * sequences, y->sequences);
  need.most_pages = MAX(2 * most_pages, y->most_pages);
  need.max_splits = (chosen * c->cache->block_tokens + CHOICE_SPLIT - 1) / CHOICE_SPLIT;
  gsize ones = (gsize)need.sequences * kv;
  if (!kv_cuda_wait(c->device, error))
    return FALSE;
  choice_clear(y);
  *moved = TRUE;
  const char *what = "the choice of pages";
  *y = need;
  g_autofree guint32 *starts = g_new(guint32, ones);
  for (gsize i = 0; i < ones; i++)
    starts[i] = (guint32)i * chosen;
  const guint32 split = CHOICE_SPLIT;
  return (y->table = kv_cuda_alloc(ones * chosen * sizeof(guint32), what, error)) &&
         (y->contexts = kv_cuda_alloc(ones * sizeof(guint32), what, error)) &&
         (y->starts = kv_cuda_alloc(ones * sizeof(guint32), what, error)) &&
         (y->split = kv_cuda_alloc(sizeof split, what, error)) &&
         (y->bounds = kv_cuda_alloc(ones * need.most_pages * sizeof(float), what, error)) &&
         (y->queries =
              kv_cuda_alloc((gsize)need.sequences * heads * d * sizeof(KvBf16), what, error)) &&
         (y->scratch =
              kv_cuda_alloc(kv_cuda_decode_scratch_bytes(need.sequences, heads, d, need.max_splits),
                            what, error)) &&
         kv_cuda_upload(c->device, y->starts, starts, ones * sizeof *starts, error) &&
         kv_cuda_upload(c->device, y->split, &split, sizeof split, error);
}

/* The engine fills a batch up to one that it has a graph of: by fewer than 8 rows. */
static gboolean begin_quest(KvCudaCompressed *c, guint decoding, gboolean *moved, GError **error) {
  guint most = 1;
  for (guint s = 0; s < c->n_spans; s++)
    if (c->spans[s].decoding)
      most = MAX(most, blocks_of(c, &c->spans[s]));
  if (decoding == 0)
    return TRUE;
  *moved = c->all_fit != (most <= c->settings->pages);
  c->all_fit = most <= c->settings->pages;
  return make_choice(c, decoding + 7, most, moved, error);
}

gboolean kv_cuda_compressed_begin(KvCudaCompressed *c, const KvHostSpan *spans, guint n,
                                  gboolean *moved, GError **error) {
  guint prompts = 0;
  *moved = FALSE;
  c->spans = spans;
  c->n_spans = n;
  while (prompts < n && !spans[prompts].decoding)
    prompts++;
  if (n - prompts > MOST_ROWS) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: %u sequences decode together with a compressed cache, expected at "
                "most %d",
                n - prompts, MOST_ROWS);
    return FALSE;
  }
  if (c->settings->format == KV_HOST_SNAPKV) {
    for (guint s = 0; s < prompts; s++)
      if (!make_window(c, &spans[s], error))
        return FALSE;
    return TRUE;
  }
  if (c->settings->format == KV_HOST_QUEST)
    return begin_quest(c, n - prompts, moved, error);
  if (c->settings->format == KV_HOST_KIVI && !begin_kivi(c, moved, error))
    return FALSE;
  return fill_tables(c, prompts, error) && upload_tables(c, error);
}

/* --- in a pass -------------------------------------------------------------------------------- */

static KvCudaTables exact_tables(const KvCudaCompressed *c) {
  return (KvCudaTables){c->tables + c->n_starts, c->tables};
}

static KvCudaTables decode_tables(const KvCudaRows *r) {
  return (KvCudaTables){r->tables.table, r->tables.table_starts + r->prefill};
}

/* Keep the queries that lie in a prompt's window. */
static cudaError_t keep_windows(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  gsize width = query_width(c, layer), row = 0;
  for (guint s = 0; s < c->n_spans && !c->spans[s].decoding; row += c->spans[s++].n_tokens) {
    const KvHostSpan *span = &c->spans[s];
    const Owner *owner = g_hash_table_lookup(c->owners, &span->owner);
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

cudaError_t kv_cuda_compressed_store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  cudaStream_t stream = c->device->stream;
  const KvCudaPacked *packed = c->cache->packed ? &c->cache->packed[layer] : NULL;
  KvCudaTables exact = exact_tables(c), decoding = decode_tables(r);
  cudaError_t status;
  switch (c->settings->format) {
  case KV_HOST_FP8:
    return kv_cuda_store_fp8(r->qkv, packed, &r->tables, r->row_sequences, r->slots, r->rows,
                             r->n_heads, stream);
  case KV_HOST_KIVI:
    status = kv_cuda_store(r->qkv, &c->exact[layer], &exact, r->row_sequences, r->slots,
                           r->prefill_rows, r->n_heads, stream);
    return status != cudaSuccess
               ? status
               : kv_cuda_kivi_append(r->qkv + r->prefill_rows * r->stride, packed, &decoding,
                                     c->rings, r->contexts, r->decode, r->n_heads, stream);
  default:
    status = kv_cuda_store(r->qkv, &c->cache->layers[layer], &r->tables, r->row_sequences, r->slots,
                           r->rows, r->n_heads, stream);
    if (status == cudaSuccess && c->settings->format == KV_HOST_QUEST)
      return kv_cuda_summarize(&c->cache->layers[layer], &r->tables, r->row_sequences, r->slots,
                               r->rows, stream);
    return status != cudaSuccess ? status : keep_windows(c, layer, r);
  }
}

cudaError_t kv_cuda_compressed_prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  gboolean cut = !c->cache->packed; /* snapkv, quest: the engine's own blocks */
  const KvCudaPages *pages = cut ? &c->cache->layers[layer] : &c->exact[layer];
  KvCudaTables tables = cut ? r->tables : exact_tables(c);
  if (c->settings->format == KV_HOST_FP8) {
    const guint32 *from = c->tables + c->n_starts + c->n_from;
    cudaError_t status =
        kv_cuda_widen_fp8(pages, &c->cache->packed[layer], from, c->n_from, c->device->stream);
    if (status != cudaSuccess)
      return status;
  }
  return kv_cuda_prefill_attention(r->attended, r->qkv, r->stride, pages, &tables, r->tiles,
                                   r->n_tiles, r->n_heads, r->window, c->device->stream);
}

/* Each KV head of each sequence is a sequence of its own, over the pages that it chose. */
static cudaError_t decode_chosen(KvCudaCompressed *c, guint layer, const KvCudaRows *r,
                                 const KvCudaTables *tables, KvBf16 *out, const KvBf16 *q) {
  const Choice *y = &c->choice;
  const KvCudaPages *pages = &c->cache->layers[layer];
  KvCudaPages parts = *pages;
  KvCudaTables chosen = {y->table, y->starts};
  guint group = r->n_heads / pages->n_kv_heads;
  gsize width = (gsize)r->n_heads * r->head_dim, bytes = sizeof(KvBf16);
  cudaStream_t stream = c->device->stream;
  parts.block_elements = r->head_dim;
  parts.n_kv_heads = 1;
  cudaError_t status = kv_cuda_choose_pages(y->table, y->contexts, y->bounds, q, r->stride, pages,
                                            tables, r->contexts, r->decode, r->n_heads,
                                            c->settings->pages, y->most_pages, stream);
  if (status == cudaSuccess) /* rows side by side, so that heads follow one another everywhere */
    status = cudaMemcpy2DAsync(y->queries, width * bytes, q, r->stride * bytes, width * bytes,
                               r->decode, cudaMemcpyDeviceToDevice, stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_decode_attention(out, y->queries, (gsize)group * r->head_dim, &parts,
                                        &chosen, y->contexts, r->decode * pages->n_kv_heads, group,
                                        0, y->split, y->max_splits, r->counters, y->scratch,
                                        stream);
}

cudaError_t kv_cuda_compressed_decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  KvCudaTables tables = decode_tables(r);
  KvBf16 *out = r->attended + (gsize)r->prefill_rows * r->n_heads * r->head_dim;
  const KvBf16 *q = r->qkv + r->prefill_rows * r->stride;
  if (c->settings->format == KV_HOST_QUEST && layer >= c->settings->dense_layers && !c->all_fit)
    return decode_chosen(c, layer, r, &tables, out, q);
  if (!c->cache->packed)
    return kv_cuda_decode_attention(out, q, r->stride, &c->cache->layers[layer], &tables,
                                    r->contexts, r->decode, r->n_heads, r->window, r->split_tokens,
                                    r->max_splits, r->counters, r->scratch, c->device->stream);
  return kv_cuda_decode_attention_packed(out, q, r->stride, &c->cache->packed[layer], &tables,
                                         c->rings, r->contexts, r->decode, r->n_heads, r->window,
                                         r->split_tokens, r->max_splits, r->counters, r->scratch,
                                         c->device->stream);
}

/* --- after a pass ----------------------------------------------------------------------------- */

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
  y.bytes = y.table + aligned(blocks_of(c, span) * sizeof(guint32));
  return y;
}

/* Vote, choose, gather, scatter; of all but the first two, only what changes nothing if `dry`. */
static cudaError_t cut_layer(KvCudaCompressed *c, const KvHostSpan *span, const Layout *y,
                             guint layer, gboolean dry) {
  const KvHostCompression *k = c->settings;
  const KvCudaPages *pages = &c->cache->layers[layer];
  const Owner *owner = g_hash_table_lookup(c->owners, &span->owner);
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

static gboolean cut_prompt(KvCudaCompressed *c, const KvHostSpan *span, double *seconds,
                           GError **error) {
  Layout y = layout_of(c, span);
  if (y.bytes > c->scratch_bytes) {
    if (!grow(c, &c->scratch, 0, y.bytes, "choosing the tokens of a prompt", error))
      return FALSE;
    c->scratch_bytes = y.bytes;
  }
  if (!kv_cuda_upload(c->device, (char *)c->scratch + y.table, span->block_table,
                      blocks_of(c, span) * sizeof(guint32), error) ||
      (!c->warm && !KV_CUDA_OK(cut_layer(c, span, &y, 0, TRUE), error)) ||
      !kv_cuda_clock_start(c->device, error))
    return FALSE;
  for (guint l = 0; l < c->weights->n_layers; l++)
    if (!KV_CUDA_OK(cut_layer(c, span, &y, l, FALSE), error))
      return FALSE;
  return kv_cuda_clock_stop(c->device, seconds, error);
}

static cudaError_t pack_layers(KvCudaCompressed *c, const KvHostSpan *span, gint ring,
                               const guint32 *exact, const guint32 *table) {
  cudaError_t status = cudaSuccess;
  for (guint l = 0; l < c->weights->n_layers && status == cudaSuccess; l++)
    status = kv_cuda_kivi_pack(&c->cache->packed[l], table, &c->exact[l], exact, (guint32)ring,
                               span->past + span->n_tokens, c->device->stream);
  return status;
}

static gboolean pack_prompt(KvCudaCompressed *c, const KvHostSpan *span, guint index,
                            double *seconds, GError **error) {
  Owner *owner = owner_of(c, span->owner);
  gsize bytes = blocks_of(c, span) * sizeof(guint32);
  const guint32 *exact = c->tables + c->n_starts + g_array_index(c->words, guint32, index);
  if (bytes > c->scratch_bytes) {
    if (!grow(c, &c->scratch, 0, 2 * bytes, "the table of a prompt", error))
      return FALSE;
    c->scratch_bytes = 2 * bytes;
  }
  if (!kv_cuda_upload(c->device, c->scratch, span->block_table, bytes, error) ||
      (!c->warm && !KV_CUDA_OK(pack_layers(c, span, owner->ring, exact, c->scratch), error)) ||
      !kv_cuda_clock_start(c->device, error) ||
      !KV_CUDA_OK(pack_layers(c, span, owner->ring, exact, c->scratch), error) ||
      !kv_cuda_clock_stop(c->device, seconds, error))
    return FALSE;
  release_exact(c, owner);
  return TRUE;
}

gboolean kv_cuda_compressed_finish(KvCudaCompressed *c, const KvHostSpan *spans, guint n,
                                   double *seconds, GError **error) {
  *seconds = 0.0;
  for (guint s = 0; s < n && !spans[s].decoding; s++) {
    const KvHostSpan *span = &spans[s];
    gboolean cut = c->settings->format == KV_HOST_SNAPKV &&
                   kv_host_compression_dropped(c->settings, span->prompt_tokens);
    double took = 0.0;
    if (!span->last || !(cut || c->settings->format == KV_HOST_KIVI))
      continue;
    if (!(cut ? cut_prompt(c, span, &took, error) : pack_prompt(c, span, s, &took, error)))
      return FALSE;
    c->warm = TRUE;
    *seconds += took;
    if (cut) {
      Owner *owner = owner_of(c, span->owner);
      kv_cuda_free(owner->window[0]);
      g_clear_pointer(&owner->window, g_free);
    }
  }
  return TRUE;
}
