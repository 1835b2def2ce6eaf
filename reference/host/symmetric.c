/* The matrix becomes tridiagonal by reflections and that one diagonal by turns. Neither is
 * multiplied out: the turns are noted, and applied to a strip of columns at a time, which a cache
 * holds; the reflections are applied to the eigenvectors that are wanted. */
#include "reference/host/symmetric.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reference/host/wide.h"

/* STRIP: columns; TOGETHER: vectors that are reflected by turns, while a cache holds the mirror. */
enum { LANES = 4, STRIP = 32, TOGETHER = 16 };
typedef double Doubles __attribute__((vector_size(LANES * sizeof(double))));

static inline double sum_of(const Doubles *x) {
  double sum = 0.0;
  for (guint l = 0; l < LANES; l++)
    sum += (*x)[l];
  return sum;
}

/* --- reflections ----------------------------------------------------------------------------- */

/* row -= v p_before + p v_before; sums += scale row. The return value: row . vector. */
KV_FOR_EACH_WIDTH
static double advance_row(double *restrict row, double v, double p, const double *v_before,
                          const double *p_before, double *restrict sums, double scale,
                          const double *vector, guint n) {
  Doubles lanes = {0.0};
  guint i = 0;
  for (; i + LANES <= n; i += LANES) {
    Doubles x, y, z;
    memcpy(&x, row + i, sizeof x);
    memcpy(&y, p_before + i, sizeof y);
    memcpy(&z, v_before + i, sizeof z);
    x -= v * y + p * z;
    memcpy(row + i, &x, sizeof x);
    memcpy(&y, sums + i, sizeof y);
    y += scale * x;
    memcpy(sums + i, &y, sizeof y);
    memcpy(&z, vector + i, sizeof z);
    lanes += x * z;
  }
  double sum = sum_of(&lanes);
  for (; i < n; i++) {
    row[i] -= v * p_before[i] + p * v_before[i];
    sums[i] += scale * row[i];
    sum += row[i] * vector[i];
  }
  return sum;
}

/* The reflection that leaves of row[n] its first element alone takes the row's place: x becomes
 * x - factor (x . row) row. *beside: what it leaves. */
static double mirror_of(double *row, guint n, double *beside) {
  double length = 0.0, squares = 0.0;
  for (guint i = 0; i < n; i++)
    length += row[i] * row[i];
  length = sqrt(length);
  *beside = row[0] > 0.0 ? -length : length;
  if (n == 1 || length == 0.0) { /* already so */
    *beside = row[0];
    memset(row, 0, n * sizeof *row);
    return 0.0;
  }
  row[0] -= *beside;
  for (guint i = 0; i < n; i++)
    squares += row[i] * row[i];
  return 2.0 / squares;
}

/* Householder's reflections bring a to a tridiagonal form: diagonal[n], and beside[i] between i and
 * i + 1. Row k of a becomes, right of the diagonal, the mirror of reflection k, factors[k] its
 * factor. A reflection reaches the rows below in the next one's pass. */
static void tridiagonalize(double *a, guint n, double *diagonal, double *beside, double *factors) {
  g_autofree double *p = g_new0(double, n), *before = g_new0(double, n);
  g_autofree double *none = g_new0(double, n);
  const double *v_before = none;
  for (guint k = 0; k < n; k++) {
    double *v = a + (gsize)k * n, along = 0.0, of_v = v_before[k], of_p = before[k];
    for (guint i = k; i < n; i++)
      v[i] -= of_v * before[i] + of_p * v_before[i];
    diagonal[k] = v[k];
    beside[k] = factors[k] = 0.0;
    if (k + 1 == n)
      break;
    double factor = factors[k] = mirror_of(v + k + 1, n - k - 1, &beside[k]);
    memset(p, 0, n * sizeof *p);
    for (guint j = k + 1; j < n; j++) {
      double *row = a + (gsize)j * n;
      row[j] -= 2.0 * v_before[j] * before[j];
      p[j] += row[j] * v[j] + advance_row(row + j + 1, v_before[j], before[j], v_before + j + 1,
                                          before + j + 1, p + j + 1, v[j], v + j + 1, n - j - 1);
    }
    for (guint i = k + 1; i < n; i++)
      along += p[i] * v[i];
    for (guint i = k + 1; i < n; i++)
      before[i] = factor * (p[i] - 0.5 * factor * along * v[i]);
    v_before = v;
  }
}

/* x -= factor (x . v) v. */
KV_FOR_EACH_WIDTH
static void reflect(double *restrict x, const double *restrict v, double factor, guint n) {
  Doubles lanes = {0.0}, y, z;
  guint i = 0;
  for (; i + LANES <= n; i += LANES) {
    memcpy(&y, x + i, sizeof y);
    memcpy(&z, v + i, sizeof z);
    lanes += y * z;
  }
  double sum = sum_of(&lanes);
  for (; i < n; i++)
    sum += x[i] * v[i];
  sum *= factor;
  for (i = 0; i + LANES <= n; i += LANES) {
    memcpy(&y, x + i, sizeof y);
    memcpy(&z, v + i, sizeof z);
    y -= sum * z;
    memcpy(x + i, &y, sizeof y);
  }
  for (; i < n; i++)
    x[i] -= sum * v[i];
}

/* The tridiagonal form's vectors become those of the matrix. */
static void reflect_back(double *vectors, guint count, const double *a, const double *factors,
                         guint n) {
  for (guint first = 0; first < count; first += TOGETHER)
    for (guint k = n - 1; k-- > 0;)
      for (guint r = first; r < MIN(first + TOGETHER, count); r++)
        reflect(vectors + (gsize)r * n + k + 1, a + (gsize)k * n + k + 1, factors[k], n - k - 1);
}

/* --- turns ----------------------------------------------------------------------------------- */

/* Of rows `row` and the next one. */
typedef struct {
  double c, s;
  guint row;
} Turn;

/* One sweep of the QL algorithm with an implicit shift (Bowdler et al., "The QR and QL algorithms
 * for symmetric matrices", 1968) over low .. high. */
static void sweep(double *diagonal, double *beside, GArray *turns, guint low, guint high) {
  double g = (diagonal[low + 1] - diagonal[low]) / (2.0 * beside[low]), s = 1.0, c = 1.0, p = 0.0;
  g = diagonal[high] - diagonal[low] + beside[low] / (g + copysign(hypot(g, 1.0), g));
  for (guint i = high; i-- > low;) {
    double f = s * beside[i], b = c * beside[i], r = hypot(f, g);
    beside[i + 1] = r;
    if (r == 0.0) {
      diagonal[i + 1] -= p;
      beside[high] = 0.0;
      return;
    }
    s = f / r;
    c = g / r;
    g = diagonal[i + 1] - p;
    r = (diagonal[i] - g) * s + 2.0 * c * b;
    p = s * r;
    diagonal[i + 1] = g + p;
    g = c * r - b;
    const Turn turn = {c, s, i};
    g_array_append_val(turns, turn);
  }
  diagonal[low] -= p;
  beside[low] = g;
  beside[high] = 0.0;
}

/* The tridiagonal form becomes diagonal. */
static void diagonalize(double *diagonal, double *beside, GArray *turns, guint n) {
  double largest = 0.0;
  for (guint i = 0; i < n; i++)
    largest = MAX(largest, fabs(diagonal[i]) + fabs(beside[i]));
  for (guint low = 0; low < n; low++)
    for (;;) {
      guint high = low;
      while (high + 1 < n &&
             fabs(beside[high]) > DBL_EPSILON * (fabs(diagonal[high]) + fabs(diagonal[high + 1]) +
                                                 DBL_EPSILON * largest))
        high++;
      if (high == low)
        break;
      sweep(diagonal, beside, turns, low, high);
    }
}

KV_FOR_EACH_WIDTH
static void turn_strip(double *strip, const Turn *turns, guint n_turns) {
  for (guint t = 0; t < n_turns; t++) {
    double *restrict x = strip + (gsize)turns[t].row * STRIP, *restrict y = x + STRIP;
    double c = turns[t].c, s = turns[t].s;
    for (guint i = 0; i < STRIP; i++) {
      double first = x[i], second = y[i];
      y[i] = s * first + c * second;
      x[i] = c * first - s * second;
    }
  }
}

typedef struct {
  double value;
  guint row;
} Direction;

static int by_value(const void *a, const void *b) {
  const Direction *x = a, *y = b;
  return x->value != y->value ? (x->value < y->value ? 1 : -1)
                              : (x->row > y->row) - (x->row < y->row);
}

/* vectors[count][n]: the wanted rows of the turned identity. */
static void turn_identity(double *vectors, guint count, const Direction *order, const GArray *turns,
                          guint n) {
  g_autofree double *strip = g_new(double, (gsize)n *STRIP);
  for (guint first = 0; first < n; first += STRIP) {
    guint columns = MIN(STRIP, n - first);
    memset(strip, 0, (gsize)n * STRIP * sizeof *strip);
    for (guint i = 0; i < columns; i++)
      strip[(gsize)(first + i) * STRIP + i] = 1.0;
    turn_strip(strip, (const Turn *)(const void *)turns->data, turns->len);
    for (guint r = 0; r < count; r++)
      memcpy(vectors + (gsize)r * n + first, strip + (gsize)order[r].row * STRIP,
             columns * sizeof *vectors);
  }
}

void kv_host_symmetric_eigenvectors(double *vectors, guint count, double *a, guint n) {
  g_autofree double *diagonal = g_new(double, n), *beside = g_new(double, n);
  g_autofree double *factors = g_new(double, n);
  g_autofree Direction *order = g_new(Direction, n);
  g_autoptr(GArray) turns = g_array_new(FALSE, FALSE, sizeof(Turn));
  g_return_if_fail(count <= n);
  tridiagonalize(a, n, diagonal, beside, factors);
  diagonalize(diagonal, beside, turns, n);
  for (guint i = 0; i < n; i++)
    order[i] = (Direction){diagonal[i], i};
  qsort(order, n, sizeof *order, by_value);
  turn_identity(vectors, count, order, turns, n);
  reflect_back(vectors, count, a, factors, n);
}
