/* minicache: a pair's blocks stand in the pool of its first layer, the second has none. A prompt is
 * held exactly until it is done, the merged layers alone; decoding stages the new token of both
 * layers, which attention reads there, and merges it after the second. What stays apart stands in
 * memory of each sequence's own, which grows with it: so many rows for each pair and part. */
#include "reference/cuda/exact.h"
#include "reference/cuda/merging.h"
#include "reference/host/merging.h"
#include "sim/base/error.h"

/* SLACK: rows that are free when there is new memory for them. */
enum { SLACK = 32 };

typedef struct {
  KvHostRole role;
  KvCudaMerged merged; /* of the pair */
} Layer;

typedef struct {
  Layer *layers;
  guint n_layers, n_pairs;
  gsize width; /* Hkv d of every merged layer */
  KvCudaExact exact;
  KvBf16 *staged; /* [staged_rows][x, y][part][width] */
  guint staged_rows;
  KvCudaKept *kept; /* device, [KV_CUDA_FORMAT_ROWS]: of the pass's decoding rows */
} MiniCache;

typedef struct {
  GArray *exact; /* of guint32: blocks of the exact pool */
  KvCudaKept kept;
  guint most; /* rows that are taken in some pair and part, at most */
} Owner;

/* --- beginning and end ---------------------------------------------------------------------- */

static gboolean make_layers(KvCudaCompressed *c, GError **error) {
  MiniCache *m = c->state;
  for (guint l = 0; l < m->n_layers; l++) {
    Layer *layer = &m->layers[l];
    const KvAttention *a = &c->weights->layers[l].attention;
    gsize width = (gsize)a->n_kv_heads * a->head_dim;
    guint pair = 0;
    layer->role = kv_cuda_cache_role(&c->cache->compression, c->weights, l, &pair);
    if (layer->role == KV_HOST_ALONE) {
      m->exact.workspace.layers[l].block_elements = 0; /* never held there */
      continue;
    }
    if (m->width && m->width != width) {
      g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                  "minicache: merged layers of %" G_GSIZE_FORMAT " and %" G_GSIZE_FORMAT
                  " elements, the cuda executor expects equal ones",
                  m->width, width);
      return FALSE;
    }
    guint first = layer->role == KV_HOST_FIRST_OF_PAIR ? l : l - 1;
    const KvCudaPages *pages = &c->cache->layers[first];
    layer->merged = (KvCudaMerged){.pool = pages->pool,
                                   .block_shift = pages->block_shift,
                                   .n_kv_heads = pages->n_kv_heads,
                                   .head_dim = pages->head_dim,
                                   .pair = pair};
    kv_cuda_merged_lay_out(&layer->merged);
    m->width = width;
    m->n_pairs = pair + 1;
  }
  return TRUE;
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  MiniCache *m = c->state = g_new0(MiniCache, 1);
  m->n_layers = c->weights->n_layers;
  m->layers = g_new0(Layer, m->n_layers);
  kv_cuda_exact_init(&m->exact, c);
  gsize bytes = KV_CUDA_FORMAT_ROWS * sizeof(KvCudaKept);
  m->kept = kv_cuda_alloc(bytes, "the kept tokens of a step", error);
  return m->kept && kv_cuda_fill(c->device, m->kept, 0, bytes, error) && make_layers(c, error);
}

static void release(KvCudaCompressed *c) {
  MiniCache *m = c->state;
  kv_cuda_exact_clear(&m->exact, m->n_layers);
  kv_cuda_free(m->staged);
  kv_cuda_free(m->kept);
  g_free(m->layers);
  g_free(m);
}

static GArray **exact_of(gpointer owner) {
  return &((Owner *)owner)->exact;
}

static void forget(KvCudaCompressed *c, gpointer data) {
  Owner *owner = data;
  kv_cuda_exact_release(&((MiniCache *)c->state)->exact, &owner->exact);
  kv_cuda_free(owner->kept.states);
  kv_cuda_free(owner->kept.rows);
}

/* --- tokens that stay apart ------------------------------------------------------------------ */

/* The most rows that are taken in a pair and part, by states[pairs][part] on the device. */
static gboolean most_kept(KvCudaCompressed *c, const KvCudaKeptState *states, guint *most,
                          GError **error) {
  guint n = 2 * ((const MiniCache *)c->state)->n_pairs;
  g_autofree KvCudaKeptState *read = g_new(KvCudaKeptState, n);
  *most = 0;
  if (n && !kv_cuda_download(c->device, read, states, n * sizeof *read, error))
    return FALSE;
  for (guint i = 0; i < n; i++)
    *most = MAX(*most, read[i].count);
  return TRUE;
}

/* Room for `rows` rows of each pair and part; those that are there stay. */
static gboolean grow_kept(KvCudaCompressed *c, Owner *owner, guint rows, GError **error) {
  const MiniCache *m = c->state;
  gsize parts = 2 * (gsize)m->n_pairs, row = 2 * m->width * sizeof(KvBf16);
  guint old = owner->kept.capacity;
  if (rows <= old)
    return TRUE;
  rows = MAX(rows, 2 * old);
  KvBf16 *memory = kv_cuda_alloc(parts * rows * row, "tokens that are not merged", error);
  if (!memory)
    return FALSE;
  gboolean copied =
      (old == 0 ||
       KV_CUDA_OK(cudaMemcpy2DAsync(memory, rows * row, owner->kept.rows, old * row, old * row,
                                    parts, cudaMemcpyDeviceToDevice, c->device->stream),
                  error)) &&
      kv_cuda_wait(c->device, error);
  if (!copied) {
    kv_cuda_free(memory);
    return FALSE;
  }
  kv_cuda_free(owner->kept.rows);
  owner->kept.rows = memory;
  owner->kept.capacity = rows;
  return TRUE;
}

/* One more token may stay apart. How many do is known on the GPU alone, and asked for only where
 * there might be no room. */
static gboolean expect_token(KvCudaCompressed *c, Owner *owner, GError **error) {
  if (owner->most + 1 > owner->kept.capacity) {
    if (!most_kept(c, owner->kept.states, &owner->most, error) ||
        !grow_kept(c, owner, owner->most + SLACK, error))
      return FALSE;
  }
  owner->most++;
  return TRUE;
}

/* --- a pass ---------------------------------------------------------------------------------- */

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  MiniCache *m = c->state;
  guint decoding = c->n_spans - prompts, rows = decoding + 7; /* a graph's spare rows */
  g_autofree KvCudaKept *kept = g_new(KvCudaKept, decoding + 1);
  if (decoding && rows > m->staged_rows) {
    if (!kv_cuda_format_grow(c, &m->staged, 0, 2 * (gsize)rows * 4 * m->width * sizeof(KvBf16),
                             "the new tokens of a step", error))
      return FALSE;
    m->staged_rows = 2 * rows;
    *moved = TRUE;
  }
  for (guint i = 0; i < decoding; i++) {
    Owner *owner = kv_cuda_format_owner(c, c->spans[prompts + i].owner);
    g_return_val_if_fail(owner->kept.states, FALSE); /* its prompt is done */
    if (!expect_token(c, owner, error))
      return FALSE;
    kept[i] = owner->kept;
  }
  return (decoding == 0 ||
          kv_cuda_upload(c->device, m->kept, kept, decoding * sizeof *kept, error)) &&
         kv_cuda_exact_begin(&m->exact, c, prompts, exact_of, error);
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  MiniCache *m = c->state;
  const Layer *l = &m->layers[layer];
  gsize part = 2 * m->width, bytes = sizeof(KvBf16);
  if (l->role == KV_HOST_ALONE)
    return kv_cuda_format_store_exact(c, layer, r);
  KvCudaTables exact = kv_cuda_workspace_tables(&m->exact.workspace);
  cudaError_t status =
      kv_cuda_store(r->qkv, &m->exact.workspace.layers[layer], &exact, r->row_sequences, r->slots,
                    r->prefill_rows, r->n_heads, c->device->stream);
  if (status != cudaSuccess || r->decode == 0)
    return status;
  return cudaMemcpy2DAsync(
      m->staged + (l->role == KV_HOST_SECOND_OF_PAIR ? part : 0), 2 * part * bytes,
      kv_cuda_format_decode_queries(r) + (gsize)r->n_heads * r->head_dim, r->stride * bytes,
      part * bytes, r->decode, cudaMemcpyDeviceToDevice, c->device->stream);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  MiniCache *m = c->state;
  return m->layers[layer].role == KV_HOST_ALONE
             ? kv_cuda_prefill_attention(r->attended, r->qkv, r->stride, &c->cache->layers[layer],
                                         &r->tables, r->tiles, r->n_tiles, r->n_heads, r->window,
                                         c->device->stream)
             : kv_cuda_workspace_prefill(&m->exact.workspace, c, layer, r);
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  MiniCache *m = c->state;
  const Layer *l = &m->layers[layer];
  if (l->role == KV_HOST_ALONE)
    return kv_cuda_format_decode_exact(c, layer, r);
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  gboolean second = l->role == KV_HOST_SECOND_OF_PAIR;
  cudaError_t status = kv_cuda_decode_attention_merged(
      kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r), r->stride, &l->merged, second,
      &tables, m->kept, m->staged, r->contexts, r->decode, r->n_heads, r->split_tokens,
      r->max_splits, r->counters, r->scratch, c->device->stream);
  return status != cudaSuccess || !second
             ? status
             : kv_cuda_merge_append(&l->merged, &tables, m->kept, m->staged, r->contexts, r->decode,
                                    c->settings->slerp, c->device->stream);
}

/* --- after a prompt -------------------------------------------------------------------------- */

/* Where things stand in the scratch of merging one prompt of n tokens. */
typedef struct {
  gsize states, table, pairs, pair, bytes; /* pairs: of each, index[part][n], distances[part][n] */
  guint32 n;
} Layout;

static gsize aligned(gsize bytes) {
  return (bytes + 255) / 256 * 256;
}

static Layout layout_of(const KvCudaCompressed *c, const KvHostSpan *span) {
  const MiniCache *m = c->state;
  Layout y = {.n = span->past + span->n_tokens};
  y.table = aligned(2 * (gsize)m->n_pairs * sizeof(KvCudaKeptState));
  y.pairs = y.table + aligned(kv_cuda_format_blocks(c, span) * sizeof(guint32));
  y.pair = aligned(2 * (gsize)y.n * (sizeof(guint32) + sizeof(float)));
  y.bytes = y.pairs + m->n_pairs * y.pair;
  return y;
}

/* Of every pair: how far its tokens are apart, and which stay so; or, if `write`, what follows. */
static cudaError_t merge_pairs(KvCudaCompressed *c, const Layout *y, const guint32 *exact,
                               const KvCudaKept *kept, gboolean write) {
  const MiniCache *m = c->state;
  const KvCudaPages *pages = m->exact.workspace.layers;
  char *at = c->scratch;
  cudaStream_t stream = c->device->stream;
  cudaError_t status = cudaSuccess;
  for (guint l = 0; l + 1 < m->n_layers && status == cudaSuccess; l++) {
    const KvCudaMerged *merged = &m->layers[l].merged;
    char *pair = at + y->pairs + merged->pair * y->pair;
    guint32 *index = (guint32 *)(void *)pair;
    float *distances = (float *)(void *)(index + 2 * (gsize)y->n);
    if (m->layers[l].role != KV_HOST_FIRST_OF_PAIR)
      continue;
    if (write) {
      status =
          kv_cuda_merge_write(merged, (const guint32 *)(const void *)(at + y->table), &pages[l],
                              &pages[l + 1], exact, index, kept, y->n, c->settings->slerp, stream);
      continue;
    }
    status = kv_cuda_merge_measure(distances, &pages[l], &pages[l + 1], exact, y->n, stream);
    if (status == cudaSuccess)
      status = kv_cuda_merge_choose((KvCudaKeptState *)(void *)(at + y->states) +
                                        2 * (gsize)merged->pair,
                                    index, distances, y->n, c->settings->gamma, stream);
  }
  return status;
}

/* One of both halves, timed; before the first prompt once untimed, which changes nothing more. */
static gboolean timed(KvCudaCompressed *c, const Layout *y, const guint32 *exact,
                      const KvCudaKept *kept, gboolean write, double *seconds, GError **error) {
  double took = 0.0;
  if ((!c->warm && !KV_CUDA_OK(merge_pairs(c, y, exact, kept, write), error)) ||
      !kv_cuda_clock_start(c->device, error) ||
      !KV_CUDA_OK(merge_pairs(c, y, exact, kept, write), error) ||
      !kv_cuda_clock_stop(c->device, &took, error))
    return FALSE;
  *seconds += took;
  return TRUE;
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  MiniCache *m = c->state;
  Owner *owner = kv_cuda_format_owner(c, span->owner);
  const Layout y = layout_of(c, span);
  const guint32 *exact = kv_cuda_exact_table(&m->exact, index);
  gsize states = 2 * (gsize)m->n_pairs * sizeof(KvCudaKeptState);
  *seconds = 0.0;
  if (!owner->kept.states &&
      !(owner->kept.states = kv_cuda_alloc(states, "tokens that are not merged", error)))
    return FALSE;
  if (!kv_cuda_format_scratch(c, y.bytes, "merging a prompt", error) ||
      !kv_cuda_upload(c->device, (char *)c->scratch + y.table, span->block_table,
                      kv_cuda_format_blocks(c, span) * sizeof(guint32), error) ||
      !timed(c, &y, exact, &owner->kept, FALSE, seconds, error) ||
      !kv_cuda_copy(c->device, owner->kept.states, (char *)c->scratch + y.states, states, error) ||
      !most_kept(c, owner->kept.states, &owner->most, error) ||
      !grow_kept(c, owner, owner->most + SLACK, error) ||
      !timed(c, &y, exact, &owner->kept, TRUE, seconds, error))
    return FALSE;
  c->warm = TRUE;
  kv_cuda_exact_release(&m->exact, &owner->exact);
  return TRUE;
}

const KvCudaFormat kv_cuda_format_minicache = {.owner_bytes = sizeof(Owner),
                                               .make = make,
                                               .release = release,
                                               .begin = begin,
                                               .store = store,
                                               .prefill = prefill,
                                               .decode = decode,
                                               .finish = finish,
                                               .forget = forget};
