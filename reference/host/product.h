/* Products of matrices of floats, summed in double precision. */
#ifndef KV_REFERENCE_HOST_PRODUCT_H
#define KV_REFERENCE_HOST_PRODUCT_H

#include <glib.h>

/* Element (i, j) is x[i * row + j * column]. */
typedef struct {
  const float *x;
  gsize row, column;
} KvHostMatrix;

/* out[m][n], rows `stride` apart, = a[m][k] b[k][n]. The order of a sum depends on k alone. */
void kv_host_product(double *out, gsize stride, const KvHostMatrix *a, const KvHostMatrix *b,
                     guint m, guint n, guint k);

#endif
