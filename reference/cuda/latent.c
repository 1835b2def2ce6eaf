#include "reference/cuda/latent.h"

guint kv_cuda_latents_width(const KvAttention *a) {
  return (a->q_lora_rank ? a->q_lora_rank : a->n_heads * a->head_dim) + a->kv_lora_rank +
         a->rope_head_dim;
}

/* Where in `work` what stands. */
typedef struct {
  KvBf16 *absorbed, *mixed; /* [R][H][576], [R][H][512] */
  KvBf16 *down, *queries;   /* [R][Rq], [R][H d]: with a latent of queries */
  gsize bytes;
} Work;

static KvBf16 *take(Work *work, void *base, gsize elements) {
  KvBf16 *at = base ? (KvBf16 *)(void *)((char *)base + work->bytes) : NULL;
  work->bytes += (elements * sizeof(KvBf16) + 255) / 256 * 256;
  return at;
}

static Work work_at(void *base, const KvAttention *a, gsize rows) {
  Work work = {0};
  gsize heads = rows * a->n_heads;
  work.absorbed = take(&work, base, heads * (a->kv_lora_rank + a->rope_head_dim));
  work.mixed = take(&work, base, heads * a->kv_lora_rank);
  work.down = take(&work, base, rows * a->q_lora_rank);
  work.queries = take(&work, base, a->q_lora_rank ? heads * a->head_dim : 0);
  return work;
}

gsize kv_cuda_latents_work_bytes(const KvAttention *attention, guint rows) {
  return work_at(NULL, attention, rows).bytes;
}

/* Queries through their own latent: [R][H d] in the workspace. */
static gboolean raise_queries(const KvCudaLatents *l, const Work *work, GError **error) {
  const KvAttention *a = &l->layer->attention;
  KvCudaProduct product = {.out = work->queries,
                           .x = work->down,
                           .weight = l->layer->query_up,
                           .rows = l->rows,
                           .inputs = a->q_lora_rank,
                           .outputs = a->n_heads * a->head_dim};
  return kv_cuda_ok(kv_cuda_norm_rows(work->down, l->qkv, kv_cuda_latents_width(a),
                                      l->layer->query_down_norm, l->epsilon, l->rows,
                                      a->q_lora_rank, l->stream),
                    "norm of the queries' latent", error) &&
         kv_cuda_gemm_run(l->gemm, &product, l->stream, error);
}

gboolean kv_cuda_latents_prepare(const KvCudaLatents *l, GError **error) {
  const KvAttention *a = &l->layer->attention;
  const KvHostLatent *s = &l->shape;
  const Work work = work_at(l->work, a, l->rows);
  const gboolean down = a->q_lora_rank > 0;
  guint width = kv_cuda_latents_width(a), latent = s->rank + s->rope, d = s->nope + s->rope;
  const KvBf16 *queries = down ? work.queries : l->qkv;
  gsize stride = down ? (gsize)s->n_heads * d : width;
  if (down && !raise_queries(l, &work, error))
    return FALSE;
  const KvCudaGrouped absorb = {.out = work.absorbed,
                                .x = queries,
                                .weight = l->layer->key_up,
                                .x_stride = stride,
                                .x_group = d,
                                .out_stride = (gsize)s->n_heads * latent,
                                .out_group = latent,
                                .inputs = s->nope,
                                .outputs = s->rank,
                                .groups = s->n_heads,
                                .rows = l->rows,
                                .tile_rows = kv_cuda_grouped_tile_rows(l->rows, 1)};
  return kv_cuda_ok(kv_cuda_latent_store(work.absorbed, queries, stride, l->qkv + (width - latent),
                                         width, &l->pages, &l->tables, l->row_sequences,
                                         l->positions, l->angles, l->layer->latent_norm, l->epsilon,
                                         l->rows, s->n_heads, s->nope, l->stream),
                    "cache write", error) &&
         kv_cuda_ok(kv_cuda_grouped_product(&absorb, l->stream), "absorbed queries", error);
}

gboolean kv_cuda_latents_prefill(const KvCudaLatents *l, GError **error) {
  const Work work = work_at(l->work, &l->layer->attention, l->rows);
  return kv_cuda_ok(kv_cuda_latent_prefill(work.mixed, work.absorbed, &l->pages, &l->tables,
                                           l->tiles, l->n_tiles, l->shape.n_heads, l->shape.scale,
                                           l->stream),
                    "prefill attention", error);
}

gboolean kv_cuda_latents_decode(const KvCudaLatents *l, GError **error) {
  const Work work = work_at(l->work, &l->layer->attention, l->rows);
  const KvHostLatent *s = &l->shape;
  const KvCudaTables tables = {l->tables.table, l->tables.table_starts + l->prefill};
  gsize before = (gsize)l->prefill_rows * s->n_heads;
  return kv_cuda_ok(kv_cuda_latent_decode(work.mixed + before * s->rank,
                                          work.absorbed + before * (s->rank + s->rope), &l->pages,
                                          &tables, l->contexts, l->decode, s->n_heads, s->scale,
                                          l->split_tokens, l->max_splits, l->scratch, l->stream),
                    "decode attention", error);
}

gboolean kv_cuda_latents_expand(const KvCudaLatents *l, GError **error) {
  const Work work = work_at(l->work, &l->layer->attention, l->rows);
  const KvHostLatent *s = &l->shape;
  const KvCudaGrouped expand = {.out = l->attended,
                                .x = work.mixed,
                                .weight = l->layer->value_up,
                                .x_stride = (gsize)s->n_heads * s->rank,
                                .x_group = s->rank,
                                .out_stride = (gsize)s->n_heads * s->value,
                                .out_group = s->value,
                                .inputs = s->rank,
                                .outputs = s->value,
                                .groups = s->n_heads,
                                .rows = l->rows,
                                .tile_rows = kv_cuda_grouped_tile_rows(l->rows, 1)};
  return kv_cuda_ok(kv_cuda_grouped_product(&expand, l->stream), "expanded latents", error);
}
