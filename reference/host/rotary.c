/* Rotary position embedding: Su et al., "RoFormer" (2021), equation 34, in the half-split layout of
 * Llama. */
#include "reference/host/kernels.h"

#include <math.h>

#define THETA 10000.0

void kv_host_rotary_angles(float *cosine, float *sine, guint32 position, guint head_dim) {
  for (guint i = 0; i < head_dim / 2; i++) {
    double angle = position * pow(THETA, -2.0 * i / head_dim);
    cosine[i] = (float)cos(angle);
    sine[i] = (float)sin(angle);
  }
}

void kv_host_rotary(float *x, const float *cosine, const float *sine, guint n_heads,
                    guint head_dim) {
  guint half = head_dim / 2;
  for (guint h = 0; h < n_heads; h++, x += head_dim)
    for (guint i = 0; i < half; i++) {
      float a = x[i], b = x[i + half];
      x[i] = a * cosine[i] - b * sine[i];
      x[i + half] = b * cosine[i] + a * sine[i];
    }
}
