#include "reference/host/low_rank.h"

#include <math.h>
#include <string.h>

#include "reference/host/product.h"
#include "reference/host/symmetric.h"

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

/* --- factors --------------------------------------------------------------------------------- */

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

/* What a thread takes at a time. */
enum { STRIP = 128, COLUMNS = 256 };

void kv_host_low_rank_basis(float *basis, const float *rows, guint width, guint inputs,
                            guint rank) {
  gsize n = width;
  g_autofree double *gram = g_new(double, n *n), *vectors = g_new(double, n *rank);
  g_return_if_fail(rank <= width);
  for (gsize i = 0; i < n; i += STRIP) { /* from the diagonal on */
    const float *first = rows + i * inputs;
    const KvHostMatrix left = {first, inputs, 1}, right = {first, 1, inputs};
    kv_host_product(gram + i * n + i, n, &left, &right, (guint)MIN(STRIP, n - i), (guint)(n - i),
                    inputs);
  }
  kv_host_symmetric_eigenvectors(vectors, rank, gram, width);
  for (gsize i = 0; i < n * rank; i++)
    basis[i] = (float)vectors[i];
}

/* out[m][n], rows `stride` apart, = a[m][k] b[k][n]; m is at most STRIP. */
static void multiply(float *out, gsize stride, const KvHostMatrix *a, const KvHostMatrix *b,
                     guint m, guint n, guint k) {
  double sums[STRIP * COLUMNS];
  for (guint c = 0; c < n; c += COLUMNS) {
    const KvHostMatrix right = {b->x + c * b->column, b->row, b->column};
    guint width = MIN(COLUMNS, n - c);
    kv_host_product(sums, COLUMNS, a, &right, m, width, k);
    for (guint r = 0; r < m; r++)
      for (guint i = 0; i < width; i++)
        out[r * stride + c + i] = (float)sums[r * COLUMNS + i];
  }
}

/* A thread's part of a layer. */
typedef struct Task Task;
struct Task {
  void (*run)(const Task *task);
  KvHostFactors *factors;
  const KvHostProjections *from;
  guint group, first; /* row */
  gboolean keys;
};

/* A group's matrix, and its place among the factors. */
typedef struct {
  guint width, rank;
  const float *rows;
  float *basis, *down;
} Group;

static Group group_of(const Task *task) {
  KvHostFactors *f = task->factors;
  guint width = f->ranks.heads * f->ranks.head_dim;
  guint rank = task->keys ? f->ranks.key_rank : f->ranks.value_rank;
  gsize first = (gsize)task->group * rank;
  return (Group){.width = width,
                 .rank = rank,
                 .rows = (task->keys ? task->from->key : task->from->value) +
                         (gsize)task->group * width * task->from->inputs,
                 .basis = (task->keys ? f->key_basis : f->value_basis) + first * width,
                 .down = (task->keys ? f->key_down : f->value_down) + first * task->from->inputs};
}

static void find_basis(const Task *task) {
  const Group g = group_of(task);
  kv_host_low_rank_basis(g.basis, g.rows, g.width, task->from->inputs, g.rank);
}

/* down[rank][inputs] = basis[rank][width] rows[width][inputs]. */
static void multiply_basis(const Task *task) {
  const Group g = group_of(task);
  guint D = task->from->inputs;
  const KvHostMatrix basis = {g.basis + (gsize)task->first * g.width, g.width, 1};
  const KvHostMatrix rows = {g.rows, D, 1};
  multiply(g.down + (gsize)task->first * D, D, &basis, &rows, MIN(STRIP, g.rank - task->first), D,
           g.width);
}

/* The biases of values, by way of a row of the output projection. */
static float folded_bias(const KvHostProjections *from, guint d, guint group_heads, guint row) {
  const float *output = from->output + (gsize)row * from->n_heads * d;
  double bias = from->output_bias ? from->output_bias[row] : 0.0;
  for (guint h = 0; h < from->n_heads && from->value_bias; h++)
    bias += dot(output + (gsize)h * d, from->value_bias + (gsize)(h / group_heads) * d, d);
  return (float)bias;
}

/* Rows of the output projection take latents in the place of values. */
static void fold_rows(const Task *task) {
  const KvHostProjections *from = task->from;
  KvHostFactors *f = task->factors;
  guint d = f->ranks.head_dim, rank = f->ranks.value_rank, width = f->ranks.heads * d;
  guint group_heads = from->n_heads / (f->ranks.groups * f->ranks.heads); /* queries of a KV head */
  gsize wide = (gsize)from->n_heads * d, folded = (gsize)from->n_heads * rank, first = task->first;
  guint n = MIN(STRIP, from->inputs - task->first);
  for (guint h = 0; h < from->n_heads; h++) {
    guint kv = h / group_heads;
    const KvHostMatrix output = {from->output + first * wide + (gsize)h * d, wide, 1};
    const KvHostMatrix basis = {f->value_basis + (gsize)(kv / f->ranks.heads) * rank * width +
                                    (gsize)(kv % f->ranks.heads) * d,
                                1, width};
    multiply(f->output + first * folded + (gsize)h * rank, folded, &output, &basis, n, rank, d);
  }
  for (guint row = task->first; row < task->first + n && f->output_bias; row++)
    f->output_bias[row] = folded_bias(from, d, group_heads, row);
}

static void run_task(gpointer task, gpointer user) {
  ((const Task *)task)->run(task);
}

/* All of them on all processors; the array is empty then. */
static void run_tasks(GArray *tasks) {
  GThreadPool *pool = g_thread_pool_new(run_task, NULL, (gint)g_get_num_processors(), FALSE, NULL);
  for (guint i = 0; i < tasks->len; i++)
    g_thread_pool_push(pool, &g_array_index(tasks, Task, i), NULL);
  g_thread_pool_free(pool, FALSE, TRUE);
  g_array_set_size(tasks, 0);
}

static void add_strips(GArray *tasks, Task task, guint rows) {
  for (; task.first < rows; task.first += STRIP)
    g_array_append_val(tasks, task);
}

static void allocate(KvHostFactors *f, const KvHostRanks *ranks, const KvHostProjections *from) {
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
}

void kv_host_factors_init(KvHostFactors *factors, const KvHostRanks *ranks,
                          const KvHostProjections *projections, guint n) {
  g_autoptr(GArray) tasks = g_array_new(FALSE, FALSE, sizeof(Task));
  for (guint l = 0; l < n; l++) {
    allocate(&factors[l], &ranks[l], &projections[l]);
    for (guint i = 0; i < 2 * ranks[l].groups; i++) {
      const Task task = {find_basis, &factors[l], &projections[l], i / 2, 0, i % 2 == 0};
      g_array_append_val(tasks, task);
    }
  }
  run_tasks(tasks);
  for (guint l = 0; l < n; l++) {
    for (guint i = 0; i < 2 * ranks[l].groups; i++)
      add_strips(tasks, (Task){multiply_basis, &factors[l], &projections[l], i / 2, 0, i % 2 == 0},
                 i % 2 ? ranks[l].value_rank : ranks[l].key_rank);
    add_strips(tasks, (Task){fold_rows, &factors[l], &projections[l], 0, 0, FALSE},
               projections[l].inputs);
  }
  run_tasks(tasks);
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
