/* h2o: the engine's own blocks, bf16, of which a sequence keeps a fixed number of slots. While a
 * prompt is under way the attention that its tokens draw is summed: a chunk reads one buffer and
 * writes the other, so that it may be run twice. Then each row, a KV head of a layer, has scores
 * and positions of its slots beside the blocks. */
#include <string.h>

#include "reference/cuda/format.h"
#include "sim/base/error.h"

typedef struct {
  KvCudaSlots *slots; /* device, [KV_CUDA_FORMAT_ROWS]: of the pass's decoding rows */
  float *scores;      /* device: of the rows' queries on `most` slots */
  guint sequences, most;
  void *sums; /* device: scratch of a chunk's attention */
  gsize sums_bytes;
} H2o;

typedef struct {
  float *sums[2];      /* device, [layers][heads][room]: of the prompt under way */
  guint room, written; /* written: the buffer of the last chunk */
  KvCudaSlots slots;
} Owner;

static guint most_heads(const KvCudaCompressed *c) {
  guint heads = 0;
  for (guint l = 0; l < c->weights->n_layers; l++)
    heads = MAX(heads, c->weights->layers[l].attention.n_kv_heads);
  return heads;
}

/* --- beginning and end ---------------------------------------------------------------------- */

static gboolean make(KvCudaCompressed *c, GError **error) {
  H2o *h = c->state = g_new0(H2o, 1);
  gsize bytes = KV_CUDA_FORMAT_ROWS * sizeof(KvCudaSlots);
  h->slots = kv_cuda_alloc(bytes, "the slots of a step", error);
  return h->slots && kv_cuda_fill(c->device, h->slots, 0, bytes, error);
}

static void release(KvCudaCompressed *c) {
  H2o *h = c->state;
  kv_cuda_free(h->slots);
  kv_cuda_free(h->scores);
  kv_cuda_free(h->sums);
  g_free(h);
}

static void drop_sums(Owner *owner) {
  for (guint i = 0; i < 2; i++)
    g_clear_pointer(&owner->sums[i], kv_cuda_free);
  owner->room = 0;
}

static void forget(KvCudaCompressed *c, gpointer data) {
  Owner *owner = data;
  drop_sums(owner);
  kv_cuda_free(owner->slots.words);
}

/* --- before a pass --------------------------------------------------------------------------- */

/* Room for the sums of so many tokens of the prompt; what the last chunk wrote stays. */
static gboolean make_sums(KvCudaCompressed *c, Owner *owner, guint tokens, GError **error) {
  gsize rows = (gsize)c->weights->n_layers * most_heads(c), old = owner->room * sizeof(float);
  Owner grown = {.room = tokens + tokens / 4};
  gsize pitch = grown.room * sizeof(float);
  if (tokens <= owner->room)
    return TRUE;
  for (guint i = 0; i < 2; i++)
    if (!(grown.sums[i] = kv_cuda_alloc(rows * pitch, "the attention of a prompt", error))) {
      drop_sums(&grown);
      return FALSE;
    }
  float *kept = owner->sums[owner->written];
  if (kept && (!KV_CUDA_OK(cudaMemcpy2DAsync(grown.sums[owner->written], pitch, kept, old, old,
                                             rows, cudaMemcpyDeviceToDevice, c->device->stream),
                           error) ||
               !kv_cuda_wait(c->device, error))) {
    drop_sums(&grown);
    return FALSE;
  }
  drop_sums(owner);
  memcpy(owner->sums, grown.sums, sizeof grown.sums);
  owner->room = grown.room;
  return TRUE;
}

static gboolean make_slots(KvCudaCompressed *c, Owner *owner, guint32 prompt_tokens,
                           GError **error) {
  KvCudaSlots *x = &owner->slots;
  gsize rows = (gsize)c->weights->n_layers * most_heads(c);
  if (x->words)
    return TRUE;
  x->slots = kv_host_h2o_slots(c->settings, prompt_tokens);
  x->recent = kv_host_h2o_recent(c->settings, x->slots);
  x->words = kv_cuda_alloc(rows * KV_CUDA_SLOT_WORDS(x->slots) * sizeof(guint32),
                           "the scores of a sequence's slots", error);
  return x->words != NULL;
}

static gboolean begin_prompt(KvCudaCompressed *c, const KvHostSpan *span, GError **error) {
  H2o *h = c->state;
  Owner *owner = kv_cuda_format_owner(c, span->owner);
  guint heads = 0;
  for (guint l = 0; l < c->weights->n_layers; l++)
    heads = MAX(heads, c->weights->layers[l].attention.n_heads);
  gsize bytes = kv_cuda_sum_attention_scratch_bytes(span->past, span->n_tokens, heads);
  if (bytes > h->sums_bytes) {
    if (!kv_cuda_format_grow(c, &h->sums, 0, bytes, "the attention of a chunk", error))
      return FALSE;
    h->sums_bytes = bytes;
  }
  if (!make_sums(c, owner, MAX(span->prompt_tokens, span->past + span->n_tokens), error))
    return FALSE;
  owner->written ^= 1;
  return !span->last || make_slots(c, owner, span->prompt_tokens, error);
}

/* Room for the scores of so many sequences. */
static gboolean make_scores(KvCudaCompressed *c, guint sequences, guint most, gboolean *moved,
                            GError **error) {
  H2o *h = c->state;
  guint heads = 0;
  if (sequences <= h->sequences && most <= h->most)
    return TRUE;
  for (guint l = 0; l < c->weights->n_layers; l++)
    heads = MAX(heads, c->weights->layers[l].attention.n_heads);
  sequences = MAX(2 * sequences, h->sequences);
  most = MAX(2 * most, h->most);
  *moved = TRUE;
  h->sequences = h->most = 0;
  if (!kv_cuda_format_grow(c, &h->scores, 0, (gsize)sequences * heads * most * sizeof(float),
                           "the scores of a step", error))
    return FALSE;
  h->sequences = sequences;
  h->most = most;
  return TRUE;
}

/* The engine fills a batch up to one that it has a graph of: by fewer than 8 rows. */
static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  H2o *h = c->state;
  guint decoding = c->n_spans - prompts, most = 1;
  g_autofree KvCudaSlots *slots = g_new(KvCudaSlots, decoding + 1);
  for (guint s = 0; s < prompts; s++)
    if (!begin_prompt(c, &c->spans[s], error))
      return FALSE;
  for (guint s = 0; s < decoding; s++) {
    const KvHostSpan *span = &c->spans[prompts + s];
    const Owner *owner = kv_cuda_format_find(c, span->owner);
    if (!owner || !owner->slots.words) {
      g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                  "cuda executor: request %" G_GUINT64_FORMAT " decodes, expected its prompt first",
                  span->owner);
      return FALSE;
    }
    slots[s] = owner->slots;
    slots[s].position = span->past;
    most = MAX(most, slots[s].slots);
  }
  return decoding == 0 ||
         (make_scores(c, decoding + 7, most, moved, error) &&
          kv_cuda_upload(c->device, h->slots, slots, decoding * sizeof *slots, error));
}

/* --- in a pass ------------------------------------------------------------------------------- */

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const H2o *h = c->state;
  KvCudaTables decoding = kv_cuda_format_decode_tables(r);
  const KvCudaPages *pages = &c->cache->layers[layer];
  cudaError_t status = kv_cuda_store(r->qkv, pages, &r->tables, r->row_sequences, r->slots,
                                     r->prefill_rows, r->n_heads, c->device->stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_h2o_store(kv_cuda_format_decode_queries(r), pages, &decoding, r->contexts,
                                 h->slots, layer * most_heads(c), r->decode, r->n_heads,
                                 c->device->stream);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const H2o *h = c->state;
  const KvCudaPages *pages = &c->cache->layers[layer];
  gsize row = 0, table = 0;
  cudaError_t status =
      kv_cuda_prefill_attention(r->attended, r->qkv, r->stride, pages, &r->tables, r->tiles,
                                r->n_tiles, r->n_heads, r->window, c->device->stream);
  for (guint s = 0; s < r->prefill && status == cudaSuccess; s++) {
    const KvHostSpan *span = &c->spans[s];
    const Owner *owner = kv_cuda_format_find(c, span->owner);
    gsize at = (gsize)layer * most_heads(c) * owner->room;
    status = kv_cuda_sum_attention(
        owner->sums[owner->written] + at, owner->sums[owner->written ^ 1] + at, owner->room,
        r->qkv + row * r->stride, r->stride, pages, r->tables.table + table, span->past,
        span->n_tokens, r->n_heads, h->sums, c->device->stream);
    row += span->n_tokens;
    table += kv_cuda_format_blocks(c, span);
  }
  return status;
}

/* The scores first: attention begins before the kernel that it follows has ended, and reads all but
 * the last slot at once, while the token may have gone to any. */
static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const H2o *h = c->state;
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  cudaError_t status =
      kv_cuda_h2o_score(h->slots, layer * most_heads(c), h->scores,
                        kv_cuda_format_decode_queries(r), r->stride, &c->cache->layers[layer],
                        &tables, r->contexts, r->decode, r->n_heads, h->most, c->device->stream);
  return status != cudaSuccess ? status : kv_cuda_format_decode_exact(c, layer, r);
}

/* --- after a pass ---------------------------------------------------------------------------- */

/* What cutting `together` layers needs beside the cache. */
typedef struct {
  guint32 *kept, *table;
  KvBf16 *rows;
  guint together;
} Scratch;

static gboolean begin_cut(KvCudaCompressed *c, const KvHostSpan *span, guint32 slots, Scratch *s,
                          GError **error) {
  gsize heads = most_heads(c), elements = 0, blocks = kv_cuda_format_blocks(c, span);
  for (guint l = 0; l < c->weights->n_layers; l++)
    elements = MAX(elements, (gsize)c->cache->layers[l].n_kv_heads * c->cache->layers[l].head_dim);
  gsize rows = 2 * elements * slots * sizeof(KvBf16), kept = heads * slots * sizeof(guint32);
  s->together = kv_cuda_format_together(c, rows + kept);
  if (!kv_cuda_format_scratch(c, s->together * (rows + kept) + blocks * sizeof(guint32),
                              "choosing the tokens of a prompt", error))
    return FALSE;
  s->rows = c->scratch;
  s->kept = (guint32 *)(void *)((char *)c->scratch + s->together * rows);
  s->table = s->kept + s->together * heads * slots;
  return kv_cuda_upload(c->device, s->table, span->block_table, blocks * sizeof(guint32), error);
}

/* The layers first .. end - 1, which are alike, of a prompt of n tokens: choose, keep the scores,
 * gather, scatter; if `dry`, what changes nothing of the blocks. A prompt that fits into the slots
 * stays as it is. */
static cudaError_t cut_together(KvCudaCompressed *c, const Owner *owner, const Scratch *s,
                                guint32 n, guint first, guint end, gboolean dry) {
  const KvCudaSlots *x = &owner->slots;
  guint32 row = first * most_heads(c);
  const float *sums = owner->sums[owner->written] + (gsize)row * owner->room;
  cudaStream_t stream = c->device->stream;
  KvCudaCut cut = {.pages = c->cache->layers[first],
                   .n_layers = end - first,
                   .prompt = n,
                   .tokens = n,
                   .most = x->slots};
  guint32 rows = cut.n_layers * cut.pages.n_kv_heads;
  for (guint l = first; l < end; l++)
    cut.layers[l - first] = (KvCudaCutLayer){.pool = c->cache->layers[l].pool,
                                             .to = c->cache->layers[l].pool,
                                             .table = s->table,
                                             .to_table = s->table,
                                             .budget = x->slots};
  if (n <= x->slots)
    return kv_cuda_h2o_fill(x, row, sums, owner->room, NULL, n, rows, stream);
  cudaError_t status =
      kv_cuda_h2o_select(s->kept, sums, owner->room, n, x->slots, x->recent, rows, stream);
  if (status == cudaSuccess)
    status = kv_cuda_h2o_fill(x, row, sums, owner->room, s->kept, n, rows, stream);
  return status != cudaSuccess ? status : kv_cuda_format_bring(c, &cut, s->kept, s->rows, dry);
}

/* Layers of fewer heads than the most have rows of nobody between theirs, and go one by one. */
static cudaError_t cut_layers(KvCudaCompressed *c, const KvHostSpan *span, const Scratch *s,
                              gboolean dry) {
  const Owner *owner = kv_cuda_format_find(c, span->owner);
  cudaError_t status = cudaSuccess;
  for (guint end = c->weights->n_layers, n; end > 0 && status == cudaSuccess; end -= n) {
    gboolean dense = c->cache->layers[end - 1].n_kv_heads == most_heads(c);
    n = kv_cuda_format_alike(c, end, dense ? s->together : 1);
    status = cut_together(c, owner, s, span->past + span->n_tokens, end - n, end, dry);
    if (dry)
      break;
  }
  return status;
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  Owner *owner = kv_cuda_format_owner(c, span->owner);
  Scratch s;
  if (!begin_cut(c, span, owner->slots.slots, &s, error) ||
      (!c->warm && !KV_CUDA_OK(cut_layers(c, span, &s, TRUE), error)) ||
      !kv_cuda_clock_start(c->device, error) ||
      !KV_CUDA_OK(cut_layers(c, span, &s, FALSE), error) ||
      !kv_cuda_clock_stop(c->device, seconds, error))
    return FALSE;
  c->warm |= span->past + span->n_tokens > owner->slots.slots;
  drop_sums(owner);
  return TRUE;
}

const KvCudaFormat kv_cuda_format_h2o = {.owner_bytes = sizeof(Owner),
                                         .make = make,
                                         .release = release,
                                         .begin = begin,
                                         .store = store,
                                         .prefill = prefill,
                                         .decode = decode,
                                         .finish = finish,
                                         .forget = forget};
