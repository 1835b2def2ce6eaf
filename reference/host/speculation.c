#include "reference/host/speculation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reference/host/dot.h"
#include "reference/host/format.h"
#include "reference/host/low_rank.h"

guint kv_host_speculation_columns(double share, guint head_dim) {
  return MIN(head_dim, MAX(8, 8 * (guint)lround(share * head_dim / 8.0)));
}

guint32 kv_host_speculation_most(double share, guint32 n) {
  return MIN(n, MAX(1, (guint32)(share * n + 1e-6)));
}

/* --- the sample ------------------------------------------------------------------------------ */

typedef struct {
  const KvHostSample *sample;
  float *directions;
} Job;

/* Of n vectors x + i * stride, the length of what they have along v. */
static float length_along(const float *v, const float *x, gsize stride, guint n, guint d) {
  double squares = 0.0;
  for (guint i = 0; i < n; i++, x += stride) {
    double along = (double)kv_host_dot(v, x, d);
    squares += along * along;
  }
  return (float)sqrt(squares);
}

static void calibrate_head(const Job *job, guint head) {
  const KvHostSample *s = job->sample;
  guint d = s->head_dim, group = s->n_heads / s->n_kv_heads, n = s->n_queries * group;
  gsize query_stride = (gsize)s->n_heads * d, key_stride = (gsize)s->n_kv_heads * d;
  const float *queries = s->queries + (gsize)head * group * d, *keys = s->keys + (gsize)head * d;
  g_autofree float *turned = g_new(float, (gsize)d *n), *vectors = g_new(float, (gsize)d *d);
  g_autofree KvHostCandidate *order = g_new0(KvHostCandidate, d); /* longest first */
  for (guint i = 0; i < s->n_queries; i++)
    for (guint g = 0; g < group; g++)
      for (guint c = 0; c < d; c++)
        turned[(gsize)c * n + (gsize)i * group + g] = queries[i * query_stride + (gsize)g * d + c];
  kv_host_low_rank_basis(vectors, turned, d, n, d);
  for (guint r = 0; r < d; r++) {
    const float *v = vectors + (gsize)r * d;
    double squares = 0.0;
    for (guint g = 0; g < group; g++) {
      double part = (double)length_along(v, queries + (gsize)g * d, query_stride, s->n_queries, d);
      squares += part * part;
    }
    order[r].position = r;
    order[r].votes = (float)sqrt(squares) * length_along(v, keys, key_stride, s->n_keys, d);
  }
  qsort(order, d, sizeof *order, kv_host_by_votes);
  for (guint r = 0; r < d; r++)
    memcpy(job->directions + ((gsize)head * d + r) * d, vectors + (gsize)order[r].position * d,
           d * sizeof(float));
}

static void run_head(gpointer index, gpointer user) {
  calibrate_head(user, GPOINTER_TO_UINT(index) - 1);
}

void kv_host_speculation_calibrate(float *directions, const KvHostSample *sample) {
  Job job = {sample, directions};
  GThreadPool *pool = g_thread_pool_new(run_head, &job, (gint)g_get_num_processors(), FALSE, NULL);
  for (guint h = 1; h <= sample->n_kv_heads; h++)
    g_thread_pool_push(pool, GUINT_TO_POINTER(h), NULL);
  g_thread_pool_free(pool, FALSE, TRUE);
}

/* --- columns --------------------------------------------------------------------------------- */

void kv_host_speculation_choose_columns(guint32 *columns, const float *directions, const float *q,
                                        gsize stride, guint n, guint group, guint head_dim,
                                        guint count) {
  g_autofree KvHostCandidate *sums = g_new(KvHostCandidate, head_dim);
  for (guint r = 0; r < head_dim; r++) {
    sums[r] = (KvHostCandidate){0.0f, r};
    for (guint i = 0; i < n; i++)
      for (guint g = 0; g < group; g++)
        sums[r].votes += fabsf(kv_host_dot(directions + (gsize)r * head_dim,
                                           q + i * stride + (gsize)g * head_dim, head_dim));
  }
  qsort(sums, head_dim, sizeof *sums, kv_host_by_votes);
  for (guint i = 0; i < count; i++)
    columns[i] = sums[i].position;
  qsort(columns, count, sizeof *columns, kv_host_by_position);
}

void kv_host_speculation_project(float *out, const float *x, const float *directions,
                                 const guint32 *columns, guint count, guint head_dim) {
  for (guint i = 0; i < count; i++)
    out[i] = kv_host_dot(directions + (gsize)columns[i] * head_dim, x, head_dim);
}

/* --- tokens ---------------------------------------------------------------------------------- */

guint32 kv_host_speculation_score(float *relative, const float *q, const KvHostPages *partial,
                                  const guint32 *block_table, guint head, guint group, guint32 n,
                                  float scale, float alpha, float *scores) {
  guint32 counted = 0;
  for (guint g = 0; g < group; g++, q += partial->head_dim) {
    float largest = -INFINITY;
    for (guint32 t = 0; t < n; t++) {
      scores[t] =
          scale * kv_host_dot(q, kv_host_slot(partial, block_table, head, t), partial->head_dim);
      largest = MAX(largest, scores[t]);
    }
    for (guint32 t = 0; t < n; t++)
      relative[t] = g == 0 ? scores[t] - largest : MAX(relative[t], scores[t] - largest);
  }
  for (guint32 t = 0; t < n; t++)
    counted += relative[t] > -alpha;
  return counted;
}

guint32 kv_host_speculation_tokens(guint64 counted, guint n_kv_heads, guint32 most) {
  guint64 mean = (2 * counted + n_kv_heads) / (2 * (guint64)n_kv_heads);
  return (guint32)MIN(MAX(mean, 1), (guint64)most);
}

void kv_host_speculation_choose(guint32 *chosen, const float *relative, guint32 n, guint32 wanted) {
  g_autofree KvHostCandidate *candidates = g_new(KvHostCandidate, n);
  for (guint32 t = 0; t < n; t++)
    candidates[t] = (KvHostCandidate){relative[t], t};
  qsort(candidates, n, sizeof *candidates, kv_host_by_votes);
  for (guint32 i = 0; i < wanted; i++)
    chosen[i] = candidates[i].position;
  qsort(chosen, wanted, sizeof *chosen, kv_host_by_position);
}
