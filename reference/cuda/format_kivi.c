/* kivi: the engine's blocks hold packed codes; the rest of a sequence stands in a ring of its own.
 * A prompt is held in bf16, all layers, in blocks of an exact pool until it is done: memory that
 * the plan, which cuts a layer before the next begins, does not count. Pool and rings grow as
 * needed. */
#include "reference/cuda/exact.h"

enum { FIRST_RINGS = 64 };

typedef struct {
  KvCudaExact exact;
  guint n_rings;      /* of each layer */
  GArray *free_rings; /* of guint */
  guint32 *rings;     /* device, [KV_CUDA_FORMAT_ROWS]: of the pass's decoding rows */
} Kivi;

typedef struct {
  guint ring;    /* 1 + its number; 0: none yet */
  GArray *exact; /* of guint32: blocks of the exact pool; NULL: none yet */
} Owner;

/* --- beginning and end ---------------------------------------------------------------------- */

static gboolean make(KvCudaCompressed *c, GError **error) {
  Kivi *k = c->state = g_new0(Kivi, 1);
  kv_cuda_exact_init(&k->exact, c);
  k->free_rings = g_array_new(FALSE, FALSE, sizeof(guint));
  gsize bytes = KV_CUDA_FORMAT_ROWS * sizeof(guint32);
  k->rings = kv_cuda_alloc(bytes, "the rings of a step", error);
  return k->rings && kv_cuda_fill(c->device, k->rings, 0, bytes, error);
}

static void release(KvCudaCompressed *c) {
  Kivi *k = c->state;
  for (guint l = 0; l < c->weights->n_layers; l++)
    g_clear_pointer(&c->cache->packed[l].ring, kv_cuda_free);
  kv_cuda_exact_clear(&k->exact, c->weights->n_layers);
  kv_cuda_free(k->rings);
  g_array_unref(k->free_rings);
  g_free(k);
}

static GArray **exact_of(gpointer owner) {
  return &((Owner *)owner)->exact;
}

static void forget(KvCudaCompressed *c, gpointer data) {
  Kivi *k = c->state;
  Owner *owner = data;
  kv_cuda_exact_release(&k->exact, &owner->exact);
  if (owner->ring)
    g_array_append_val(k->free_rings, owner->ring);
}

/* --- before a pass --------------------------------------------------------------------------- */

static gboolean take_ring(KvCudaCompressed *c, Owner *owner, gboolean *moved, GError **error) {
  Kivi *k = c->state;
  if (owner->ring)
    return TRUE;
  if (k->free_rings->len == 0) {
    guint old = k->n_rings, n = old ? 2 * old : FIRST_RINGS;
    for (guint l = 0; l < c->weights->n_layers; l++) {
      gsize bytes = c->cache->packed[l].ring_elements * sizeof(guint16);
      if (!kv_cuda_format_grow(c, &c->cache->packed[l].ring, old * bytes, n * bytes,
                               "the last tokens of each sequence", error))
        return FALSE;
    }
    for (guint i = n; i > old; i--)
      g_array_append_val(k->free_rings, i);
    k->n_rings = n;
    *moved = TRUE;
  }
  owner->ring = g_array_index(k->free_rings, guint, k->free_rings->len - 1);
  g_array_set_size(k->free_rings, k->free_rings->len - 1);
  return TRUE;
}

static gboolean give_rings(KvCudaCompressed *c, gboolean *moved, GError **error) {
  Kivi *k = c->state;
  guint32 rings[KV_CUDA_FORMAT_ROWS];
  guint decoding = 0;
  for (guint s = 0; s < c->n_spans; s++) {
    const KvHostSpan *span = &c->spans[s];
    Owner *owner = kv_cuda_format_owner(c, span->owner);
    if (!span->decoding && !span->last)
      continue;
    if (!take_ring(c, owner, moved, error))
      return FALSE;
    if (span->decoding)
      rings[decoding++] = owner->ring - 1;
  }
  return decoding == 0 ||
         kv_cuda_upload(c->device, k->rings, rings, decoding * sizeof *rings, error);
}

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  return give_rings(c, moved, error) &&
         kv_cuda_exact_begin(&((Kivi *)c->state)->exact, c, prompts, exact_of, error);
}

/* --- in a pass ------------------------------------------------------------------------------- */

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  Kivi *k = c->state;
  KvCudaTables exact = kv_cuda_workspace_tables(&k->exact.workspace);
  KvCudaTables decoding = kv_cuda_format_decode_tables(r);
  cudaError_t status =
      kv_cuda_store(r->qkv, &k->exact.workspace.layers[layer], &exact, r->row_sequences, r->slots,
                    r->prefill_rows, r->n_heads, c->device->stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_kivi_append(kv_cuda_format_decode_queries(r), &c->cache->packed[layer],
                                   &decoding, k->rings, r->contexts, r->decode, r->n_heads,
                                   c->device->stream);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return kv_cuda_workspace_prefill(&((Kivi *)c->state)->exact.workspace, c, layer, r);
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  return kv_cuda_decode_attention_packed(
      kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r), r->stride,
      &c->cache->packed[layer], &tables, ((Kivi *)c->state)->rings, r->contexts, r->decode,
      r->n_heads, r->window, r->split_tokens, r->max_splits, r->counters, r->scratch,
      c->device->stream);
}

/* --- after a pass ---------------------------------------------------------------------------- */

static cudaError_t pack(KvCudaCompressed *c, const KvHostSpan *span, guint32 ring,
                        const guint32 *exact, const guint32 *table) {
  const Kivi *k = c->state;
  return kv_cuda_kivi_pack(c->cache->packed, table, k->exact.workspace.layers, exact, ring,
                           span->past + span->n_tokens, c->weights->n_layers, c->device->stream);
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  Kivi *k = c->state;
  Owner *owner = kv_cuda_format_owner(c, span->owner);
  gsize bytes = kv_cuda_format_blocks(c, span) * sizeof(guint32);
  const guint32 *exact = kv_cuda_exact_table(&k->exact, index);
  if (!kv_cuda_format_scratch(c, bytes, "the table of a prompt", error) ||
      !kv_cuda_upload(c->device, c->scratch, span->block_table, bytes, error) ||
      (!c->warm && !KV_CUDA_OK(pack(c, span, owner->ring - 1, exact, c->scratch), error)) ||
      !kv_cuda_clock_start(c->device, error) ||
      !KV_CUDA_OK(pack(c, span, owner->ring - 1, exact, c->scratch), error) ||
      !kv_cuda_clock_stop(c->device, seconds, error))
    return FALSE;
  c->warm = TRUE;
  kv_cuda_exact_release(&k->exact, &owner->exact);
  return TRUE;
}

const KvCudaFormat kv_cuda_format_kivi = {.owner_bytes = sizeof(Owner),
                                          .make = make,
                                          .release = release,
                                          .begin = begin,
                                          .store = store,
                                          .prefill = prefill,
                                          .decode = decode,
                                          .finish = finish,
                                          .forget = forget};
