#include "reference/host/product.h"

#include <string.h>

#include "reference/host/wide.h"

/* A tile of ROWS x COLUMNS sums stays in registers while it walks over DEPTH of the inner index;
 * both operands are laid out so that the walk is along memory, in caches that hold them. */
enum { ROWS = 4, COLUMNS = 8, LANES = 4, DEPTH = 256, MOST_ROWS = 128 };
typedef double Doubles __attribute__((vector_size(LANES * sizeof(double))));

/* sums[ROWS][COLUMNS] of a[k][ROWS] and b[k][COLUMNS]. */
KV_FOR_EACH_WIDTH
static void multiply_tile(double *sums, const double *a, const double *b, guint k) {
  Doubles sum[ROWS][2] = {0};
  for (guint i = 0; i < k; i++, a += ROWS, b += COLUMNS) {
    Doubles low, high;
    memcpy(&low, b, sizeof low);
    memcpy(&high, b + LANES, sizeof high);
    for (guint r = 0; r < ROWS; r++) {
      sum[r][0] += a[r] * low;
      sum[r][1] += a[r] * high;
    }
  }
  memcpy(sums, sum, sizeof sum);
}

/* to[k][width] = the first `there` of `width` vectors, vectors `apart`, their elements `step`; then
 * zeros. */
static void pack(double *to, const float *from, gsize apart, gsize step, guint width, guint there,
                 guint k) {
  for (guint i = 0; i < k; i++, from += step)
    for (guint j = 0; j < width; j++)
      *to++ = j < there ? from[j * apart] : 0.0;
}

static void add_tile(double *out, gsize stride, const double *sums, guint rows, guint columns) {
  for (guint r = 0; r < rows; r++)
    for (guint c = 0; c < columns; c++)
      out[r * stride + c] += sums[r * COLUMNS + c];
}

/* out += a b for at most MOST_ROWS rows and a depth of at most DEPTH. */
static void add_strip(double *out, gsize stride, const KvHostMatrix *a, const KvHostMatrix *b,
                      guint m, guint n, guint k, double *rows, double *columns) {
  double sums[ROWS * COLUMNS];
  for (guint r = 0; r < m; r += ROWS)
    pack(rows + (gsize)r * k, a->x + r * a->row, a->row, a->column, ROWS, MIN(ROWS, m - r), k);
  for (guint c = 0; c < n; c += COLUMNS) {
    guint there = MIN(COLUMNS, n - c);
    pack(columns, b->x + c * b->column, b->column, b->row, COLUMNS, there, k);
    for (guint r = 0; r < m; r += ROWS) {
      multiply_tile(sums, rows + (gsize)r * k, columns, k);
      add_tile(out + r * stride + c, stride, sums, MIN(ROWS, m - r), there);
    }
  }
}

void kv_host_product(double *out, gsize stride, const KvHostMatrix *a, const KvHostMatrix *b,
                     guint m, guint n, guint k) {
  double rows[MOST_ROWS * DEPTH], columns[COLUMNS * DEPTH]; /* a thread has 8 MiB for such */
  for (guint r = 0; r < m; r++)
    memset(out + r * stride, 0, n * sizeof *out);
  for (guint r = 0; r < m; r += MOST_ROWS)
    for (guint i = 0; i < k; i += DEPTH) {
      const KvHostMatrix of_a = {a->x + r * a->row + i * a->column, a->row, a->column};
      const KvHostMatrix of_b = {b->x + i * b->row, b->row, b->column};
      add_strip(out + r * stride, stride, &of_a, &of_b, MIN(MOST_ROWS, m - r), n, MIN(DEPTH, k - i),
                rows, columns);
    }
}
