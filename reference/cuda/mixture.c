#include "reference/cuda/mixture.h"

/* Where in `work` what stands; n = R k places. */
typedef struct {
  float *logits, *shares;                 /* [R][X], [R][k] */
  guint32 *experts, *places, *place_rows; /* [R][k], [R][k], [n] */
  guint32 *n_tiles;                       /* [1] */
  KvCudaGroupTile *tiles;
  KvBf16 *gate_up, *inner, *mixed; /* [n][2E], [n][E], [n][D] */
  guint tile_rows, most_tiles;
  gsize bytes;
} Work;

static void *take(Work *work, void *base, gsize bytes) {
  void *at = base ? (char *)base + work->bytes : NULL;
  work->bytes += (bytes + 255) / 256 * 256;
  return at;
}

static Work work_at(void *base, const KvMlp *m, guint hidden, guint rows) {
  Work work = {0};
  gsize n = (gsize)rows * m->n_experts_per_token, E = m->expert_intermediate;
  work.tile_rows = kv_cuda_grouped_tile_rows(n, m->n_experts);
  work.most_tiles =
      kv_cuda_most_expert_tiles(rows, m->n_experts, m->n_experts_per_token, work.tile_rows);
  work.logits = take(&work, base, (gsize)rows * m->n_experts * sizeof(float));
  work.shares = take(&work, base, n * sizeof(float));
  work.experts = take(&work, base, n * sizeof(guint32));
  work.places = take(&work, base, n * sizeof(guint32));
  work.place_rows = take(&work, base, n * sizeof(guint32));
  work.n_tiles = take(&work, base, sizeof(guint32));
  /* Room for tiles of one row: a pass of fewer rows, in smaller tiles, never needs more. */
  work.tiles = take(&work, base,
                    kv_cuda_most_expert_tiles(rows, m->n_experts, m->n_experts_per_token, 1) *
                        sizeof(KvCudaGroupTile));
  work.gate_up = take(&work, base, n * 2 * E * sizeof(KvBf16));
  work.inner = take(&work, base, n * E * sizeof(KvBf16));
  work.mixed = take(&work, base, n * hidden * sizeof(KvBf16));
  return work;
}

gsize kv_cuda_mixture_work_bytes(const KvMlp *mlp, guint hidden, guint rows) {
  return work_at(NULL, mlp, hidden, rows).bytes;
}

/* Every row's experts, and the rows by expert. */
static gboolean route(const KvCudaMixture *m, const Work *work, GError **error) {
  const KvMlp *mlp = &m->layer->mlp;
  KvCudaProduct product = {.out = work->logits,
                           .out_f32 = TRUE,
                           .x = m->normed,
                           .weight = m->layer->router,
                           .rows = m->rows,
                           .inputs = m->hidden,
                           .outputs = mlp->n_experts};
  return kv_cuda_gemm_run(m->gemm, &product, m->stream, error) &&
         kv_cuda_ok(kv_cuda_route(work->experts, work->shares, work->logits, m->row_sequences,
                                  m->rows, mlp->n_experts, mlp->n_experts_per_token,
                                  m->routing.normalized, m->routing.scale, m->routing.groups,
                                  m->routing.groups_kept, m->stream),
                    "router", error) &&
         kv_cuda_ok(kv_cuda_sort_by_expert(work->places, work->place_rows, work->tiles,
                                           work->n_tiles, work->experts, m->rows, mlp->n_experts,
                                           mlp->n_experts_per_token, work->tile_rows, m->stream),
                    "rows by expert", error);
}

gboolean kv_cuda_mixture_run(const KvCudaMixture *m, GError **error) {
  const KvMlp *mlp = &m->layer->mlp;
  const guint E = (guint)mlp->expert_intermediate, k = mlp->n_experts_per_token, D = m->hidden;
  const Work work = work_at(m->work, mlp, D, m->rows);
  KvCudaGrouped up = {.out = work.gate_up,
                      .x = m->normed,
                      .weight = m->layer->expert_up,
                      .x_stride = D,
                      .out_stride = 2 * (gsize)E,
                      .x_rows = work.place_rows,
                      .inputs = D,
                      .outputs = 2 * E,
                      .groups = mlp->n_experts,
                      .rows = m->rows * k,
                      .tile_rows = work.tile_rows,
                      .tiles = work.tiles,
                      .n_tiles = work.n_tiles,
                      .most_tiles = work.most_tiles};
  KvCudaGrouped down = up;
  down.out = work.mixed;
  down.x = work.inner;
  down.weight = m->layer->expert_down;
  down.x_stride = E;
  down.out_stride = D;
  down.x_rows = NULL;
  down.inputs = E;
  down.outputs = D;
  return route(m, &work, error) &&
         kv_cuda_ok(kv_cuda_grouped_product(&up, m->stream), "experts", error) &&
         kv_cuda_ok(kv_cuda_swiglu(work.inner, work.gate_up, m->rows * k, E, m->stream),
                    "activation", error) &&
         kv_cuda_ok(kv_cuda_grouped_product(&down, m->stream), "experts", error) &&
         kv_cuda_ok(kv_cuda_combine_experts(m->x, work.mixed, work.places, work.shares, m->rows, D,
                                            k, m->stream),
                    "sum of experts", error);
}
