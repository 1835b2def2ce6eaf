#include "reference/host/kernels.h"

#include <math.h>

void kv_host_swiglu(float *restrict gate, const float *restrict up, gsize n) {
  for (gsize i = 0; i < n; i++)
    gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void kv_host_relu(float *x, gsize n) {
  for (gsize i = 0; i < n; i++)
    x[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void kv_host_gelu(float *x, gsize n) {
  for (gsize i = 0; i < n; i++)
    x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * (float)M_SQRT1_2));
}
