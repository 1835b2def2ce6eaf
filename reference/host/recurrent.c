#include "reference/host/recurrent.h"

#include <math.h>
#include <string.h>

gsize kv_host_state_floats(const KvAttention *a) {
  return (gsize)a->inner * (a->conv_width - 1 + a->state_dim);
}

static float silu(float x) {
  return x / (1.0f + expf(-x));
}

/* The logarithm of 1 + e^x; x where they are the same number. */
static float softplus(float x) {
  return x > 20.0f ? x : log1pf(expf(x));
}

void kv_host_causal_convolution(float *out, const float *x, gsize stride, const float *weight,
                                const float *bias, const float *from, float *to, guint tokens,
                                guint inner, guint width) {
  guint kept = width - 1;
  /* The inputs that the tokens see: token t the W from t on. */
  g_autofree float *inputs = g_new0(float, (gsize)(kept + tokens) * inner);
  if (from)
    memcpy(inputs, from, (gsize)kept * inner * sizeof *inputs);
  for (gsize t = 0; t < tokens; t++)
    memcpy(inputs + (kept + t) * inner, x + t * stride, inner * sizeof *inputs);
  for (gsize t = 0; t < tokens; t++)
    for (gsize i = 0; i < inner; i++) {
      float sum = bias ? bias[i] : 0.0f;
      for (gsize k = 0; k < width; k++)
        sum += weight[i * width + k] * inputs[(t + k) * inner + i];
      out[t * inner + i] = silu(sum);
    }
  memcpy(to, inputs + (gsize)tokens * inner, (gsize)kept * inner * sizeof *to);
}

void kv_host_selective_scan(float *out, const float *x, const float *gate, gsize gate_stride,
                            const float *delta, const float *bias, const float *bc, gsize bc_stride,
                            const float *decay, const float *skip, const float *from, float *to,
                            guint tokens, guint inner, guint state) {
  gsize I = inner, N = state;
  for (gsize n = 0; n < I * N; n++)
    to[n] = from ? from[n] : 0.0f;
  g_autofree float *rates = g_new(float, I *N);
  for (gsize n = 0; n < I * N; n++)
    rates[n] = -expf(decay[n]);
  for (gsize t = 0; t < tokens; t++) {
    const float *B = bc + t * bc_stride, *C = B + N;
    for (gsize i = 0; i < I; i++) {
      float step = softplus(delta[t * I + i] + bias[i]), input = x[t * I + i], sum = 0.0f;
      float *h = to + i * N;
      for (gsize n = 0; n < N; n++) {
        h[n] = expf(step * rates[i * N + n]) * h[n] + step * input * B[n];
        sum += C[n] * h[n];
      }
      out[t * I + i] = (sum + skip[i] * input) * silu(gate[t * gate_stride + i]);
    }
  }
}
