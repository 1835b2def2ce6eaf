#include "reference/host/kernels.h"

#include <math.h>

void kv_host_rms_norm(float *out, const float *x, const float *weight, float epsilon, guint rows,
                      guint width) {
  for (guint r = 0; r < rows; r++, x += width, out += width) {
    float squares = 0.0f;
    for (guint i = 0; i < width; i++)
      squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
    for (guint i = 0; i < width; i++)
      out[i] = x[i] * scale * weight[i];
  }
}

void kv_host_layer_norm(float *out, const float *x, const float *weight, const float *bias,
                        float epsilon, guint rows, guint width) {
  for (guint r = 0; r < rows; r++, x += width, out += width) {
    float sum = 0.0f, squares = 0.0f;
    for (guint i = 0; i < width; i++)
      sum += x[i];
    float mean = sum / (float)width;
    for (guint i = 0; i < width; i++)
      squares += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
    for (guint i = 0; i < width; i++)
      out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
  }
}
