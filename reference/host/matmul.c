#include "reference/host/kernels.h"

#include <string.h>

/* The outputs run in the inner loop, so it vectorizes without reordering any sum; a tile of them
 * and of rows keeps the weights that it reads in the first-level cache while the rows pass. */
enum { TILE_OUTPUTS = 64, TILE_ROWS = 16 };

/* out[R][N] tile of `width` outputs and `rows` rows, its start values already in place. */
static void accumulate_tile(float *restrict out, const float *restrict x,
                            const float *restrict weight, guint rows, guint inputs, guint outputs,
                            guint width) {
  for (guint r = 0; r < rows; r++) {
    float *restrict o = out + (gsize)r * outputs;
    const float *restrict row = x + (gsize)r * inputs;
    for (guint k = 0; k < inputs; k++) {
      const float *restrict w = weight + (gsize)k * outputs;
      float a = row[k];
      for (guint n = 0; n < width; n++)
        o[n] += a * w[n];
    }
  }
}

void kv_host_linear(float *restrict out, const float *restrict x, const float *restrict weight,
                    const float *bias, guint rows, guint inputs, guint outputs) {
  for (guint r = 0; r < rows; r++)
    if (bias)
      memcpy(out + (gsize)r * outputs, bias, outputs * sizeof *out);
    else
      memset(out + (gsize)r * outputs, 0, outputs * sizeof *out);
  for (guint r = 0; r < rows; r += TILE_ROWS)
    for (guint n = 0; n < outputs; n += TILE_OUTPUTS)
      accumulate_tile(out + (gsize)r * outputs + n, x + (gsize)r * inputs, weight + n,
                      MIN(TILE_ROWS, rows - r), inputs, outputs, MIN(TILE_OUTPUTS, outputs - n));
}

void kv_host_add(float *restrict x, const float *restrict y, gsize n) {
  for (gsize i = 0; i < n; i++)
    x[i] += y[i];
}
