/* The inner product that attention's scores are. */
#ifndef KV_REFERENCE_HOST_DOT_H
#define KV_REFERENCE_HOST_DOT_H

#include <glib.h>

enum { KV_HOST_LANES = 8 };

/* x[d] . y[d], as KV_HOST_LANES partial sums so that it vectorizes; the order depends on d alone.
 */
static inline float kv_host_dot(const float *restrict x, const float *restrict y, guint d) {
  float lanes[KV_HOST_LANES] = {0}, sum = 0.0f;
  guint i = 0;
  for (; i + KV_HOST_LANES <= d; i += KV_HOST_LANES)
    for (guint l = 0; l < KV_HOST_LANES; l++)
      lanes[l] += x[i + l] * y[i + l];
  for (; i < d; i++)
    sum += x[i] * y[i];
  for (guint l = 0; l < KV_HOST_LANES; l++)
    sum += lanes[l];
  return sum;
}

#endif
