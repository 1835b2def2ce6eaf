#include "reference/host/low_rank.h"

#include <float.h>
#include <math.h>
#include <string.h>

gboolean kv_host_low_rank_ranks(KvHostRanks *ranks, const KvPaluSettings *s, const KvAttention *a,
                                guint layer, guint n_layers) {
  gboolean more = layer < n_layers - n_layers / 2;
  double kept = s->rank_ratio * (more ? 1.0 + s->rank_spread : 1.0 - s->rank_spread);
  KvPaluRanks r = kv_palu_ranks(s, a, MIN(1.0, kept));
  *ranks = (KvHostRanks){.groups = (guint)r.groups,
                         .heads = a->n_kv_heads / (guint)r.groups,
                         .head_dim = a->head_dim,
                         .key_rank = (guint)r.key_rank,
                         .value_rank = (guint)r.value_rank};
  guint width = ranks->heads * a->head_dim;
  return ranks->key_rank < width || ranks->value_rank < width;
}

/* --- eigenvectors ---------------------------------------------------------------------------- */

/* Householder's reflections bring the symmetric a[n][n] to a tridiagonal form: diagonal[n], and
 * beside[i] between i and i + 1. rows[n][n] becomes the product of the reflections. */
static void tridiagonalize(double *a, guint n, double *diagonal, double *beside, double *rows) {
  g_autofree double *v = g_new0(double, n), *p = g_new(double, n);
  memset(rows, 0, (gsize)n * n * sizeof *rows);
  for (guint i = 0; i < n; i++)
    rows[(gsize)i * n + i] = 1.0;
  for (guint k = 0; k + 1 < n; k++) {
    double *row = a + (gsize)k * n, length = 0.0, squares = 0.0, along = 0.0;
    for (guint i = k + 1; i < n; i++)
      length += row[i] * row[i];
    length = sqrt(length);
    memcpy(v + k + 1, row + k + 1, (n - k - 1) * sizeof *v);
    diagonal[k] = row[k];
    beside[k] = row[k + 1] > 0.0 ? -length : length;
    if (k + 2 == n || length == 0.0) { /* already of that form */
      beside[k] = row[k + 1];
      continue;
    }
    v[k + 1] -= beside[k];
    for (guint i = k + 1; i < n; i++)
      squares += v[i] * v[i];
    double factor = 2.0 / squares;
    memset(p, 0, n * sizeof *p);
    for (guint j = k + 1; j < n; j++)
      for (guint i = k + 1; i < n; i++)
        p[i] += v[j] * a[(gsize)j * n + i];
    for (guint i = k + 1; i < n; i++)
      along += p[i] * v[i];
    for (guint i = k + 1; i < n; i++)
      p[i] = factor * (p[i] - 0.5 * factor * along * v[i]);
    for (guint j = k + 1; j < n; j++)
      for (guint i = k + 1; i < n; i++)
        a[(gsize)j * n + i] -= v[j] * p[i] + p[j] * v[i];
    memset(p, 0, n * sizeof *p);
    for (guint j = k + 1; j < n; j++)
      for (guint i = 0; i < n; i++)
        p[i] += v[j] * rows[(gsize)j * n + i];
    for (guint j = k + 1; j < n; j++)
      for (guint i = 0; i < n; i++)
        rows[(gsize)j * n + i] -= factor * v[j] * p[i];
  }
  diagonal[n - 1] = a[(gsize)n * n - 1];
  beside[n - 1] = 0.0;
}

/* Turn rows x and y of n. */
static void turn_rows(double *restrict x, double *restrict y, guint n, double c, double s) {
  for (guint k = 0; k < n; k++) {
    double first = x[k], second = y[k];
    y[k] = s * first + c * second;
    x[k] = c * first - s * second;
  }
}

/* One sweep of the QL algorithm with an implicit shift (Bowdler et al., "The QR and QL algorithms
 * for symmetric matrices", 1968) over low .. high. */
static void sweep(double *diagonal, double *beside, double *rows, guint n, guint low, guint high) {
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
    turn_rows(rows + (gsize)i * n, rows + (gsize)(i + 1) * n, n, c, s);
  }
  diagonal[low] -= p;
  beside[low] = g;
  beside[high] = 0.0;
}

/* The tridiagonal form becomes diagonal, rows[n][n] its eigenvectors. */
static void diagonalize(double *diagonal, double *beside, double *rows, guint n) {
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
      sweep(diagonal, beside, rows, n, low, high);
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

enum { LANES = 8 };

static double dot(const float *x, const float *y, guint n) {
  double lanes[LANES] = {0}, sum = 0.0;
  guint i = 0;
  for (; i + LANES <= n; i += LANES)
    for (guint l = 0; l < LANES; l++)
      lanes[l] += (double)x[i + l] * y[i + l];
  for (; i < n; i++)
    sum += (double)x[i] * y[i];
  for (guint l = 0; l < LANES; l++)
    sum += lanes[l];
  return sum;
}

void kv_host_low_rank_basis(float *basis, const float *rows, guint width, guint inputs,
                            guint rank) {
  gsize n = width;
  g_autofree double *gram = g_new(double, n *n), *vectors = g_new(double, n *n);
  g_autofree double *diagonal = g_new(double, n), *beside = g_new(double, n);
  g_autofree Direction *order = g_new(Direction, n);
  g_return_if_fail(rank <= width);
  for (gsize i = 0; i < n; i++)
    for (gsize j = 0; j <= i; j++)
      gram[i * n + j] = gram[j * n + i] = dot(rows + i * inputs, rows + j * inputs, inputs);
  tridiagonalize(gram, width, diagonal, beside, vectors);
  diagonalize(diagonal, beside, vectors, width);
  for (guint i = 0; i < width; i++)
    order[i] = (Direction){diagonal[i], i};
  qsort(order, n, sizeof *order, by_value);
  for (guint r = 0; r < rank; r++)
    for (gsize i = 0; i < n; i++)
      basis[r * n + i] = (float)vectors[order[r].row * n + i];
}

/* --- factors --------------------------------------------------------------------------------- */

enum { FOLD_ROWS = 64 };

typedef struct {
  KvHostFactors *factors;
  const KvHostProjections *from;
} Job;

/* down[rank][inputs] = basis[rank][width] rows[width][inputs]. */
static void multiply_basis(float *down, const float *basis, const float *rows, guint width,
                           guint inputs, guint rank) {
  memset(down, 0, (gsize)rank * inputs * sizeof *down);
  for (guint r = 0; r < rank; r++)
    for (guint o = 0; o < width; o++)
      for (guint i = 0; i < inputs; i++)
        down[(gsize)r * inputs + i] += basis[(gsize)r * width + o] * rows[(gsize)o * inputs + i];
}

static void factor_group(const Job *job, guint group, gboolean keys) {
  KvHostFactors *f = job->factors;
  guint width = f->ranks.heads * f->ranks.head_dim, D = job->from->inputs;
  guint rank = keys ? f->ranks.key_rank : f->ranks.value_rank;
  const float *rows = (keys ? job->from->key : job->from->value) + (gsize)group * width * D;
  float *basis = (keys ? f->key_basis : f->value_basis) + (gsize)group * rank * width;
  float *down = (keys ? f->key_down : f->value_down) + (gsize)group * rank * D;
  kv_host_low_rank_basis(basis, rows, width, D, rank);
  multiply_basis(down, basis, rows, width, D, rank);
}

/* A row of the output projection takes latents in the place of values. */
static void fold_row(const Job *job, guint row) {
  const KvHostProjections *from = job->from;
  KvHostFactors *f = job->factors;
  guint d = f->ranks.head_dim, rank = f->ranks.value_rank, width = f->ranks.heads * d;
  guint group_heads = from->n_heads / (f->ranks.groups * f->ranks.heads); /* queries of a KV head */
  const float *output = from->output + (gsize)row * from->n_heads * d;
  float *folded = f->output + (gsize)row * from->n_heads * rank;
  double bias = from->output_bias ? from->output_bias[row] : 0.0;
  for (guint h = 0; h < from->n_heads; h++, output += d, folded += rank) {
    guint kv = h / group_heads;
    const float *basis = f->value_basis + (gsize)(kv / f->ranks.heads) * rank * width +
                         (gsize)(kv % f->ranks.heads) * d;
    for (guint r = 0; r < rank; r++)
      folded[r] = (float)dot(output, basis + (gsize)r * width, d);
    if (from->value_bias)
      bias += dot(output, from->value_bias + (gsize)kv * d, d);
  }
  if (f->output_bias)
    f->output_bias[row] = (float)bias;
}

static void run_factor(gpointer index, gpointer user) {
  guint i = GPOINTER_TO_UINT(index) - 1;
  factor_group(user, i / 2, i % 2 == 0);
}

static void run_fold(gpointer index, gpointer user) {
  const Job *job = user;
  guint first = (GPOINTER_TO_UINT(index) - 1) * FOLD_ROWS;
  for (guint row = first; row < MIN(first + FOLD_ROWS, job->from->inputs); row++)
    fold_row(job, row);
}

/* run(1), ... run(n), each on a thread of its own. */
static void in_parallel(GFunc run, Job *job, guint n) {
  GThreadPool *pool = g_thread_pool_new(run, job, (gint)g_get_num_processors(), FALSE, NULL);
  for (guint i = 1; i <= n; i++)
    g_thread_pool_push(pool, GUINT_TO_POINTER(i), NULL);
  g_thread_pool_free(pool, FALSE, TRUE);
}

void kv_host_factors_init(KvHostFactors *f, const KvHostRanks *ranks,
                          const KvHostProjections *from) {
  gsize width = (gsize)ranks->heads * ranks->head_dim, D = from->inputs;
  gsize keys = (gsize)ranks->groups * ranks->key_rank;
  gsize values = (gsize)ranks->groups * ranks->value_rank;
  *f = (KvHostFactors){.ranks = *ranks,
                       .key_basis = g_new(float, keys *width),
                       .value_basis = g_new(float, values *width),
                       .key_down = g_new(float, keys *D),
                       .value_down = g_new(float, values *D),
                       .output = g_new(float, D * from->n_heads * ranks->value_rank)};
  if (from->value_bias || from->output_bias)
    f->output_bias = g_new(float, D);
  Job job = {f, from};
  in_parallel(run_factor, &job, 2 * ranks->groups);
  in_parallel(run_fold, &job, (from->inputs + FOLD_ROWS - 1) / FOLD_ROWS);
}

void kv_host_factors_clear(KvHostFactors *f) {
  float *const arrays[] = {f->key_basis,  f->value_basis, f->key_down,
                           f->value_down, f->output,      f->output_bias};
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_free(arrays[i]);
  *f = (KvHostFactors){0};
}

/* --- attention ------------------------------------------------------------------------------- */

/* The latent of a group's token; its first element is at `offset` of a block. */
static float *latent_of(const KvHostPages *pages, const guint32 *block_table, gsize offset,
                        guint group, guint rank, guint32 position) {
  return pages->pool + block_table[position / pages->block_tokens] * pages->block_floats + offset +
         ((gsize)group * pages->block_tokens + position % pages->block_tokens) * rank;
}

void kv_host_low_rank_write(const KvHostRanks *r, const KvHostPages *pages,
                            const guint32 *block_table, guint32 position, const float *keys,
                            const float *values) {
  for (guint g = 0; g < r->groups; g++) {
    memcpy(latent_of(pages, block_table, pages->key_offset, g, r->key_rank, position),
           keys + (gsize)g * r->key_rank, r->key_rank * sizeof *keys);
    memcpy(latent_of(pages, block_table, pages->value_offset, g, r->value_rank, position),
           values + (gsize)g * r->value_rank, r->value_rank * sizeof *values);
  }
}

/* key[width] = latent[rank] basis[rank][width] + bias[width]. */
static void rebuild(float *restrict key, const float *restrict latent, const float *restrict basis,
                    const float *bias, guint rank, guint width) {
  for (guint i = 0; i < width; i++)
    key[i] = bias ? bias[i] : 0.0f;
  for (guint r = 0; r < rank; r++)
    for (guint i = 0; i < width; i++)
      key[i] += latent[r] * basis[(gsize)r * width + i];
}

void kv_host_low_rank_keys(float *keys, const KvHostRanks *r, const KvHostPages *pages,
                           const guint32 *block_table, guint32 n, const float *basis,
                           const float *bias, const KvHostRotary *rotary) {
  guint d = r->head_dim, width = r->heads * d;
  g_autofree float *cosine = g_new(float, d / 2 + 1), *sine = g_new(float, d / 2 + 1);
  for (guint32 t = 0; t < n; t++, keys += (gsize)r->groups * width) {
    for (guint g = 0; g < r->groups; g++)
      rebuild(keys + (gsize)g * width,
              latent_of(pages, block_table, pages->key_offset, g, r->key_rank, t),
              basis + (gsize)g * r->key_rank * width, bias ? bias + (gsize)g * width : NULL,
              r->key_rank, width);
    if (!rotary)
      continue;
    kv_host_rotary_angles(cosine, sine, t, d, rotary);
    kv_host_rotary(keys, cosine, sine, r->groups * r->heads, d);
  }
}

/* One query head: out[value_rank]. */
static void attend(float *out, const float *q, const float *keys, const KvHostRanks *r,
                   const KvHostPages *pages, const guint32 *block_table, guint head,
                   guint32 visible, float *scores) {
  guint d = r->head_dim;
  float scale = 1.0f / sqrtf((float)d), largest = -INFINITY, total = 0.0f;
  gsize width = (gsize)r->groups * r->heads * d;
  for (guint32 j = 0; j < visible; j++) {
    scores[j] = scale * (float)dot(q, keys + j * width + (gsize)head * d, d);
    largest = MAX(largest, scores[j]);
  }
  memset(out, 0, r->value_rank * sizeof *out);
  for (guint32 j = 0; j < visible; j++) {
    const float *latent =
        latent_of(pages, block_table, pages->value_offset, head / r->heads, r->value_rank, j);
    float p = expf(scores[j] - largest);
    total += p;
    for (guint i = 0; i < r->value_rank; i++)
      out[i] += p * latent[i];
  }
  for (guint i = 0; i < r->value_rank; i++)
    out[i] /= total;
}

void kv_host_low_rank_attention(float *out, const float *q, const float *keys, const KvHostRanks *r,
                                const KvHostPages *pages, const guint32 *block_table, guint32 past,
                                guint32 tokens, guint n_heads, float *scores) {
  guint group = n_heads / (r->groups * r->heads);
  for (guint32 t = 0; t < tokens; t++)
    for (guint h = 0; h < n_heads; h++, q += r->head_dim, out += r->value_rank)
      attend(out, q, keys, r, pages, block_table, h / group, past + t + 1, scores);
}
