#include "reference/host/merging.h"

#include <math.h>

#include "reference/host/compression.h"

KvHostRole kv_host_merge_role(const KvHostCompression *c, guint layer, guint n_layers,
                              const KvAttention *(*attention)(gconstpointer user, guint layer),
                              gconstpointer user, guint *pair) {
  guint start = c->first_merged < 0 ? n_layers / 2 : (guint)c->first_merged;
  if (layer < start)
    return KV_HOST_ALONE;
  *pair = (layer - start) / 2;
  guint first = start + 2 * *pair;
  if (first + 1 >= n_layers)
    return KV_HOST_ALONE;
  const KvAttention *a = attention(user, first), *b = attention(user, first + 1);
  if (a->n_kv_heads != b->n_kv_heads || a->head_dim != b->head_dim)
    return KV_HOST_ALONE;
  return layer == first ? KV_HOST_FIRST_OF_PAIR : KV_HOST_SECOND_OF_PAIR;
}

/* Norms, and the angle between x and y; 0 where one of them is zero. */
static double angle_of(const float *x, const float *y, guint n, double *norm_x, double *norm_y) {
  double xx = 0.0, yy = 0.0, xy = 0.0;
  for (guint i = 0; i < n; i++) {
    xx += (double)x[i] * x[i];
    yy += (double)y[i] * y[i];
    xy += (double)x[i] * y[i];
  }
  *norm_x = sqrt(xx);
  *norm_y = sqrt(yy);
  if (xx == 0.0 || yy == 0.0)
    return 0.0;
  return acos(CLAMP(xy / (*norm_x * *norm_y), -1.0, 1.0));
}

float kv_host_merge_distance(const float *x, const float *y, guint n) {
  double norm_x, norm_y;
  return (float)(angle_of(x, y, n, &norm_x, &norm_y) / G_PI);
}

float kv_host_merge_threshold(const KvHostCompression *c, float least, float greatest) {
  return c->gamma <= 0.0f   ? INFINITY
         : c->gamma >= 1.0f ? 0.0f
                            : greatest - c->gamma * (greatest - least);
}

/* The sine below which two directions are taken for one (or for opposite ones): the straight mean
 * differs from the spherical one by less than fp32 shows, and opposite ones have no mean. */
#define LEAST_SINE 1e-4

void kv_host_merge(const KvHostCompression *c, float *x, float *y, guint n, float *direction) {
  double norm_x, norm_y, angle = angle_of(x, y, n, &norm_x, &norm_y), sine = sin(angle);
  double of_x = 1.0 - c->slerp, of_y = c->slerp;
  if (sine > LEAST_SINE) {
    of_x = sin((1.0 - c->slerp) * angle) / sine;
    of_y = sin(c->slerp * angle) / sine;
  }
  of_x = norm_x > 0.0 ? of_x / norm_x : 0.0;
  of_y = norm_y > 0.0 ? of_y / norm_y : 0.0;
  float read_x = kv_host_round_fp16((float)norm_x), read_y = kv_host_round_fp16((float)norm_y);
  for (guint i = 0; i < n; i++) {
    float e = (float)(of_x * x[i] + of_y * y[i]);
    if (direction)
      direction[i] = e;
    x[i] = e * read_x;
    y[i] = e * read_y;
  }
}
