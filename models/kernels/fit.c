#include "models/kernels/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FAMILY_MEASURING = KV_N_KERNELS };

/* What may be fitted: a member of the efficiency of a family, or of KvMeasuring; `start` and bounds
 * in its own unit; fitted on a log scale. */
typedef struct {
  const char *name;
  guint family;
  gsize offset;
  double start, low, high;
  guint kinds; /* bit set of the observations that tell about it */
  enum { ALWAYS, EAGER, REPEATED, VECTOR } where; /* rows that it matters to */
} Parameter;

#define BIT(kind) (1u << (kind))
#define STEPS (BIT(KV_OBSERVED_DECODE_STEP) | BIT(KV_OBSERVED_PREFILL_STEP))
#define IN(family, member, start, low, high, kinds)                                                \
  {                                                                                                \
#member, KV_KERNEL_##family, G_STRUCT_OFFSET(KvEfficiency, member), start, low, high, kinds,   \
        ALWAYS                                                                                     \
  }
#define OF_VECTORS(member, start, low, high)                                                       \
  {                                                                                                \
#member, KV_KERNEL_GEMM, G_STRUCT_OFFSET(KvEfficiency, member), start, low, high,              \
        BIT(KV_OBSERVED_GEMM), VECTOR                                                              \
  }
#define MEASURED(member, start, low, high, kinds, where)                                           \
  {                                                                                                \
#member, FAMILY_MEASURING, G_STRUCT_OFFSET(KvMeasuring, member), start, low, high, kinds,      \
        where                                                                                      \
  }

#define PREFILL (BIT(KV_OBSERVED_PREFILL_ATTENTION) | BIT(KV_OBSERVED_MIXED_ATTENTION))
#define MOE BIT(KV_OBSERVED_MOE)
#define DECODE BIT(KV_OBSERVED_DECODE_ATTENTION)
#define LATENT_PREFILL BIT(KV_OBSERVED_LATENT_PREFILL)
#define LATENT_DECODE BIT(KV_OBSERVED_LATENT_DECODE)
#define NCCL BIT(KV_OBSERVED_NCCL)

/* What steps alone cannot tell apart (the compute share of decode attention, the bandwidth of
 * prefill attention) is fitted on rows of that kernel only. */
static const Parameter parameters[] = {
    IN(GEMM, fixed_seconds, 4e-6, 5e-7, 3e-5, BIT(KV_OBSERVED_GEMM) | STEPS),
    IN(GEMM, flops_share, 0.7, 0.1, 1, BIT(KV_OBSERVED_GEMM) | STEPS),
    IN(GEMM, bandwidth_share, 0.85, 0.2, 1, BIT(KV_OBSERVED_GEMM) | STEPS),
    IN(GEMM, sustained_share, 0.9, 0.5, 1, BIT(KV_OBSERVED_GEMM) | BIT(KV_OBSERVED_PREFILL_STEP)),
    IN(GEMM, quantize_share, 0.6, 0.05, 1, BIT(KV_OBSERVED_GEMM)),
    IN(GEMM, block_seconds, 3e-7, 1e-9, 2e-5, BIT(KV_OBSERVED_GEMM)),
    IN(GEMM, combine_seconds, 2e-6, 1e-7, 5e-5, BIT(KV_OBSERVED_GEMM)),
    IN(GEMM, fill_share, 0.5, 0.05, 1, BIT(KV_OBSERVED_GEMM)),
    IN(GEMM, ramp_seconds, 4e-6, 1e-7, 2e-5, BIT(KV_OBSERVED_GEMM)),
    IN(GEMM, sharpness, 3, 1, 20, BIT(KV_OBSERVED_GEMM)),
    OF_VECTORS(vector_share, 0.85, 0.3, 1),
    OF_VECTORS(vector_seconds, 2e-6, 1e-7, 2e-5),
    IN(PREFILL_ATTENTION, fixed_seconds, 8e-6, 5e-7, 5e-5, PREFILL),
    IN(PREFILL_ATTENTION, flops_share, 0.7, 0.03, 1, PREFILL | BIT(KV_OBSERVED_PREFILL_STEP)),
    IN(PREFILL_ATTENTION, bandwidth_share, 0.8, 0.05, 1, PREFILL),
    IN(PREFILL_ATTENTION, sustained_share, 0.95, 0.5, 1, PREFILL),
    IN(PREFILL_ATTENTION, sharpness, 2, 1, 20, PREFILL),
    IN(PREFILL_ATTENTION, block_seconds, 2e-6, 1e-8, 2e-5, PREFILL),
    IN(PREFILL_ATTENTION, softmax_dims, 30, 1, 200, PREFILL),
    IN(PREFILL_ATTENTION, tail_waves, 0.7, 0.01, 3, PREFILL),
    IN(PREFILL_ATTENTION, lone_factor, 1, 0.2, 2.5, PREFILL),
    IN(DECODE_ATTENTION, fixed_seconds, 8e-6, 5e-7, 5e-5, DECODE | BIT(KV_OBSERVED_DECODE_STEP)),
    IN(DECODE_ATTENTION, flops_share, 0.3, 0.01, 1, DECODE),
    IN(DECODE_ATTENTION, bandwidth_share, 0.85, 0.05, 1, DECODE | BIT(KV_OBSERVED_DECODE_STEP)),
    IN(DECODE_ATTENTION, block_seconds, 3e-6, 1e-8, 2e-5, DECODE | BIT(KV_OBSERVED_DECODE_STEP)),
    IN(DECODE_ATTENTION, block_exposed, 0.2, 0.01, 1, DECODE),
    IN(DECODE_ATTENTION, combine_seconds, 2e-6, 1e-7, 1e-5, DECODE),
    IN(DECODE_ATTENTION, pack_seconds, 3e-6, 1e-7, 1e-5, DECODE),
    IN(DECODE_ATTENTION, fill_share, 0.5, 0.1, 1.5, DECODE),
    IN(ELEMENTWISE, fixed_seconds, 2e-6, 5e-7, 1e-5, STEPS | BIT(KV_OBSERVED_ELEMENTWISE)),
    IN(ELEMENTWISE, bandwidth_share, 0.85, 0.3, 1, STEPS | BIT(KV_OBSERVED_ELEMENTWISE)),
    IN(ALL_REDUCE, fixed_seconds, 3e-6, 5e-7, 5e-5, BIT(KV_OBSERVED_ALL_REDUCE)),
    IN(ALL_REDUCE, bandwidth_share, 0.75, 0.05, 1, BIT(KV_OBSERVED_ALL_REDUCE)),
    IN(NCCL, fixed_seconds, 5e-6, 5e-7, 5e-5, NCCL),
    IN(NCCL, step_seconds, 9e-7, 1e-7, 1e-5, NCCL),
    IN(NCCL, bulk_seconds, 2e-5, 1e-6, 2e-4, NCCL),
    IN(NCCL, bandwidth_share, 0.7, 0.05, 1, NCCL),
    IN(NCCL, quick_share, 0.5, 0.05, 1, NCCL),
    IN(NCCL, crowding, 1.8, 0.1, 4, NCCL),
    IN(LATENT_PREFILL, fixed_seconds, 8e-6, 5e-7, 5e-5, LATENT_PREFILL),
    IN(LATENT_PREFILL, flops_share, 0.7, 0.03, 1, LATENT_PREFILL),
    IN(LATENT_PREFILL, bandwidth_share, 0.8, 0.05, 1, LATENT_PREFILL),
    IN(LATENT_PREFILL, sharpness, 2, 1, 20, LATENT_PREFILL),
    IN(LATENT_PREFILL, block_seconds, 2e-6, 1e-8, 2e-5, LATENT_PREFILL),
    IN(LATENT_PREFILL, softmax_dims, 30, 1, 200, LATENT_PREFILL),
    IN(LATENT_PREFILL, tail_waves, 0.7, 0.01, 3, LATENT_PREFILL),
    IN(LATENT_PREFILL, lone_factor, 1, 0.2, 2.5, LATENT_PREFILL),
    IN(LATENT_DECODE, fixed_seconds, 8e-6, 5e-7, 5e-5, LATENT_DECODE),
    IN(LATENT_DECODE, flops_share, 0.5, 0.01, 1, LATENT_DECODE),
    IN(LATENT_DECODE, bandwidth_share, 0.85, 0.05, 1, LATENT_DECODE),
    IN(LATENT_DECODE, block_seconds, 3e-6, 1e-8, 2e-5, LATENT_DECODE),
    IN(LATENT_DECODE, block_exposed, 0.2, 0.01, 1, LATENT_DECODE),
    IN(LATENT_DECODE, combine_seconds, 2e-6, 1e-7, 1e-5, LATENT_DECODE),
    IN(LATENT_DECODE, fill_share, 0.5, 0.1, 1.5, LATENT_DECODE),
    IN(MOE, fixed_seconds, 2e-5, 1e-6, 2e-4, MOE),
    IN(MOE, combine_seconds, 1e-6, 1e-8, 2e-5, MOE),
    IN(MOE, flops_share, 0.5, 0.02, 1, MOE),
    IN(MOE, bandwidth_share, 0.7, 0.1, 1, MOE),
    IN(MOE, quantize_share, 0.6, 0.05, 1, MOE),
    IN(MOE, block_seconds, 3e-7, 1e-9, 2e-5, MOE),
    IN(MOE, fill_share, 0.5, 0.1, 1.5, MOE),
    IN(MOE, sharpness, 3, 1, 20, MOE),
    MEASURED(floor_seconds, 3e-5, 1e-6, 1e-4, BIT(KV_OBSERVED_GEMM), EAGER),
    MEASURED(host_kernel_seconds, 2e-5, 1e-6, 1e-3, BIT(KV_OBSERVED_PREFILL_STEP), EAGER),
    MEASURED(l2_speedup, 2, 1, 8, DECODE | LATENT_DECODE | MOE, REPEATED),
    MEASURED(l2_share, 0.7, 0.3, 1.5, DECODE | LATENT_DECODE | MOE, REPEATED),
    MEASURED(write_passes, 1, 0.01, 6, BIT(KV_OBSERVED_PREFILL_ATTENTION), REPEATED),
};
enum { MOST_DIMENSIONS = G_N_ELEMENTS(parameters) };

typedef struct {
  KvDevice *device;
  KvMeasuring *measuring;
  KvDtype dtype;
  KvObservation *rows;
  guint n_rows;
  double weight[KV_N_OBSERVED]; /* of one row of the kind */
  const Parameter *active[MOST_DIMENSIONS];
  guint n_active;
  double *errors, *slopes; /* a row each; a column of rows for each active parameter */
} Problem;

static double *parameter_place(const Parameter *parameter, KvDevice *device, KvMeasuring *measuring,
                               KvDtype dtype) {
  /* Element-wise kernels have one efficiency, under bf16. */
  KvDtype type = parameter->family == KV_KERNEL_ELEMENTWISE ? KV_DTYPE_BF16 : dtype;
  char *base = parameter->family == FAMILY_MEASURING
                   ? (char *)measuring
                   : (char *)&device->efficiency[parameter->family][type];
  return (double *)(base + parameter->offset);
}

static void problem_set(Problem *problem, const double *x) {
  for (guint i = 0; i < problem->n_active; i++) {
    const Parameter *parameter = problem->active[i];
    *parameter_place(parameter, problem->device, problem->measuring, problem->dtype) =
        CLAMP(exp(x[i]), parameter->low, parameter->high);
  }
}

/* A weak pull to the usual values decides between parameters that only add up in the measurements.
 */
static const double prior_weight = 0.02;

/* log(predicted / measured) of every row at x, in units of the error that a good fit leaves. */
static void problem_errors(Problem *problem, const double *x, double *errors) {
  const double usual_error = 0.06;
  problem_set(problem, x);
  for (guint i = 0; i < problem->n_rows; i++) {
    const KvObservation *row = &problem->rows[i];
    errors[i] =
        log(kv_observation_predict(problem->device, problem->measuring, row) / row->seconds) /
        usual_error;
  }
}

static double problem_loss(Problem *problem, const double *x) {
  double loss = 0;
  problem_errors(problem, x, problem->errors);
  for (guint i = 0; i < problem->n_rows; i++)
    loss += problem->weight[problem->rows[i].kind] *
            (sqrt(1 + problem->errors[i] * problem->errors[i]) - 1);
  for (guint j = 0; j < problem->n_active; j++) {
    double apart = x[j] - log(problem->active[j]->start);
    loss += prior_weight * apart * apart;
  }
  return loss;
}

/* Solve the symmetric positive definite system `matrix` x = `vector` in place by Cholesky's
 * factors. */
static void solve(guint n, double matrix[MOST_DIMENSIONS][MOST_DIMENSIONS], double *vector) {
  for (guint j = 0; j < n; j++) {
    for (guint k = 0; k < j; k++)
      for (guint i = j; i < n; i++)
        matrix[i][j] -= matrix[i][k] * matrix[j][k];
    double root = sqrt(MAX(matrix[j][j], 1e-30));
    for (guint i = j; i < n; i++)
      matrix[i][j] /= root;
  }
  for (guint i = 0; i < n; i++) {
    for (guint k = 0; k < i; k++)
      vector[i] -= matrix[i][k] * vector[k];
    vector[i] /= matrix[i][i];
  }
  for (guint i = n; i-- > 0;) {
    for (guint k = i + 1; k < n; k++)
      vector[i] -= matrix[k][i] * vector[k];
    vector[i] /= matrix[i][i];
  }
}

typedef struct {
  double hessian[MOST_DIMENSIONS][MOST_DIMENSIONS], gradient[MOST_DIMENSIONS];
} Curvature;

/* Gauss and Newton's curvature of the loss at x: slopes of every row by differences wide enough to
 * step over the kinks of tile counts, weighted as the pseudo-Huber loss weights them. */
static void problem_curvature(Problem *problem, const double *x, Curvature *curvature) {
  const double step = 0.02;
  guint n = problem->n_active;
  memset(curvature, 0, sizeof *curvature);
  problem_errors(problem, x, problem->errors);
  for (guint j = 0; j < n; j++) {
    double moved[MOST_DIMENSIONS];
    memcpy(moved, x, n * sizeof *x);
    moved[j] += x[j] + step > log(problem->active[j]->high) ? -step : step;
    double *slopes = problem->slopes + (gsize)j * problem->n_rows;
    problem_errors(problem, moved, slopes);
    for (guint i = 0; i < problem->n_rows; i++)
      slopes[i] = (slopes[i] - problem->errors[i]) / (moved[j] - x[j]);
  }
  for (guint i = 0; i < problem->n_rows; i++) {
    double error = problem->errors[i];
    double weight = problem->weight[problem->rows[i].kind] / sqrt(1 + error * error);
    for (guint j = 0; j < n; j++) {
      double slope = weight * problem->slopes[(gsize)j * problem->n_rows + i];
      curvature->gradient[j] += slope * error;
      for (guint k = 0; k <= j; k++)
        curvature->hessian[j][k] += slope * problem->slopes[(gsize)k * problem->n_rows + i];
    }
  }
  for (guint j = 0; j < n; j++) {
    curvature->gradient[j] += 2 * prior_weight * (x[j] - log(problem->active[j]->start));
    curvature->hessian[j][j] += 2 * prior_weight;
  }
}

/* A parameter at its bound that the loss pulls further out stays there: take it out of the system.
 */
static void hold_at_bounds(const Problem *problem, const double *x, Curvature *curvature) {
  for (guint j = 0; j < problem->n_active; j++) {
    gboolean outward = curvature->gradient[j] > 0 ? x[j] <= log(problem->active[j]->low) + 1e-9
                                                  : x[j] >= log(problem->active[j]->high) - 1e-9;
    if (!outward)
      continue;
    for (guint k = 0; k < problem->n_active; k++)
      curvature->hessian[MAX(j, k)][MIN(j, k)] = j == k ? 1 : 0;
    curvature->gradient[j] = 0;
  }
}

/* x less the step, shortened to a factor of e^0.5 in the parameter that moves most, inside the
 * bounds. */
static void step_from(const Problem *problem, const double *x, const double *step, double *trial) {
  double longest = 0.5;
  for (guint j = 0; j < problem->n_active; j++)
    longest = MAX(longest, fabs(step[j]));
  for (guint j = 0; j < problem->n_active; j++)
    trial[j] = CLAMP(x[j] - step[j] * 0.5 / longest, log(problem->active[j]->low),
                     log(problem->active[j]->high));
}

static void problem_minimize(Problem *problem) {
  guint n = problem->n_active;
  double x[MOST_DIMENSIONS], damping = 0.1;
  /* From the usual values, not from the device's, so that a fit does not depend on the one before.
   */
  for (guint j = 0; j < n; j++)
    x[j] = log(problem->active[j]->start);
  double loss = problem_loss(problem, x);
  for (guint round = 0; round < 80 && damping < 1e6; round++) {
    Curvature curvature;
    problem_curvature(problem, x, &curvature);
    hold_at_bounds(problem, x, &curvature);
    gboolean better = FALSE;
    while (!better && damping < 1e6) {
      Curvature damped = curvature;
      double trial[MOST_DIMENSIONS];
      for (guint j = 0; j < n; j++)
        damped.hessian[j][j] *= 1 + damping;
      solve(n, damped.hessian, damped.gradient);
      step_from(problem, x, damped.gradient, trial);
      double trial_loss = problem_loss(problem, trial);
      better = trial_loss < loss - 1e-9;
      damping *= better ? 0.3 : 4;
      if (better) {
        memcpy(x, trial, sizeof x);
        loss = trial_loss;
      }
    }
  }
  problem_set(problem, x);
}

static gboolean of_dtype(const KvObservation *observation, KvDtype dtype) {
  return observation->dtype == dtype;
}

/* Whole steps are what a simulation adds up, and a few of them stand against hundreds of kernels.
 */
static const double step_weight = 3;

/* Thin the table evenly to rows_per_kind rows a kind; the kinds weigh the same whatever their
 * number of rows. */
static guint problem_rows(Problem *problem, const GArray *observations, guint rows_per_kind) {
  guint count[KV_N_OBSERVED] = {0}, seen[KV_N_OBSERVED] = {0}, kept[KV_N_OBSERVED] = {0}, kinds = 0;
  for (guint i = 0; i < observations->len; i++)
    count[g_array_index(observations, KvObservation, i).kind] +=
        of_dtype(&g_array_index(observations, KvObservation, i), problem->dtype);
  problem->rows = g_new(KvObservation, observations->len + 1);
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (!of_dtype(row, problem->dtype))
      continue;
    guint64 take = MIN(count[row->kind], rows_per_kind);
    guint place = seen[row->kind]++;
    if (kv_observation_predict(problem->device, problem->measuring, row) <= 0)
      continue; /* nothing is known of what it ran on: an all-reduce without a link */
    if (place * take / count[row->kind] == (place + 1) * take / count[row->kind])
      continue;
    problem->rows[problem->n_rows++] = *row;
    kept[row->kind]++;
    kinds |= BIT(row->kind);
  }
  for (guint kind = 0; kind < KV_N_OBSERVED; kind++)
    problem->weight[kind] = kept[kind] ? (BIT(kind) & STEPS ? step_weight : 1) / kept[kind] : 0;
  return kinds;
}

/* Which of EAGER, REPEATED and VECTOR some row is, as bits. */
static guint problem_conditions(const Problem *problem) {
  guint conditions = BIT(ALWAYS);
  for (guint i = 0; i < problem->n_rows; i++) {
    conditions |= problem->rows[i].eager ? BIT(EAGER) : 0;
    conditions |= problem->rows[i].repeated ? BIT(REPEATED) : 0;
    conditions |= problem->rows[i].vector ? BIT(VECTOR) : 0;
  }
  return conditions;
}

void kv_fit_start(KvDevice *device, KvMeasuring *measuring) {
  for (guint dtype = 0; dtype < KV_N_DTYPES; dtype++)
    device->efficiency[KV_KERNEL_GEMM][dtype].vector_ramp_seconds = 0;
  for (guint i = 0; i < G_N_ELEMENTS(parameters); i++) {
    if (parameters[i].where == VECTOR)
      continue; /* most devices have no such kernel */
    for (guint dtype = 0; dtype < KV_N_DTYPES; dtype++) {
      double *value = parameter_place(&parameters[i], device, measuring, dtype);
      if (*value <= 0)
        *value = parameters[i].start;
    }
  }
}

void kv_fit(KvDevice *device, KvMeasuring *measuring, const GArray *observations, KvDtype dtype,
            guint rows_per_kind) {
  Problem problem = {.device = device, .measuring = measuring, .dtype = dtype};
  guint kinds = problem_rows(&problem, observations, rows_per_kind);
  guint conditions = problem_conditions(&problem);
  for (guint i = 0; i < G_N_ELEMENTS(parameters); i++)
    if (parameters[i].kinds & kinds && BIT(parameters[i].where) & conditions)
      problem.active[problem.n_active++] = &parameters[i];
  if (problem.n_active > 0) {
    problem.errors = g_new(double, problem.n_rows);
    problem.slopes = g_new(double, (gsize)problem.n_rows *problem.n_active);
    problem_minimize(&problem);
  }
  g_free(problem.errors);
  g_free(problem.slopes);
  g_free(problem.rows);
}

static int number_compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double quantile(const double *sorted, guint n, double share) {
  double place = share * (n - 1);
  guint below = (guint)place;
  return below + 1 < n ? sorted[below] + (place - below) * (sorted[below + 1] - sorted[below])
                       : sorted[n - 1];
}

/* The interval of log(measured / predicted) is taken from every other row and its coverage counted
 * on the rest. */
static void find_interval(const double *log_errors, guint n, KvResidual *residual) {
  g_autofree double *given = g_new(double, n + 1);
  guint n_given = 0, n_held = 0, n_inside = 0;
  for (guint i = 0; i < n; i += 2)
    given[n_given++] = log_errors[i];
  qsort(given, n_given, sizeof *given, number_compare);
  residual->low_log_error = quantile(given, n_given, 0.05);
  residual->high_log_error = quantile(given, n_given, 0.95);
  for (guint i = 1; i < n; i += 2, n_held++)
    n_inside +=
        log_errors[i] >= residual->low_log_error && log_errors[i] <= residual->high_log_error;
  residual->coverage = n_held > 0 ? (double)n_inside / n_held : 0;
}

KvResidual kv_fit_residual(const GArray *observations, const double *predicted, KvObserved kind,
                           KvDtype dtype, double shortest_seconds) {
  KvResidual residual = {0};
  g_autofree double *signed_errors = g_new(double, observations->len + 1);
  g_autofree double *errors = g_new(double, observations->len + 1);
  g_autofree double *log_errors = g_new(double, observations->len + 1);
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (row->kind != kind || row->dtype != dtype || row->seconds < shortest_seconds ||
        predicted[i] <= 0)
      continue;
    double error = predicted[i] / row->seconds - 1;
    signed_errors[residual.n] = error;
    log_errors[residual.n] = -log1p(error);
    errors[residual.n++] = fabs(error);
  }
  if (residual.n == 0)
    return residual;
  find_interval(log_errors, residual.n, &residual);
  qsort(signed_errors, residual.n, sizeof(double), number_compare);
  qsort(errors, residual.n, sizeof(double), number_compare);
  residual.median = quantile(errors, residual.n, 0.5);
  residual.p95 = quantile(errors, residual.n, 0.95);
  residual.bias = quantile(signed_errors, residual.n, 0.5);
  return residual;
}

static guint64 mixed_with(guint64 hash, double value) {
  union {
    double value;
    guint64 bits;
  } word = {.value = value};
  hash = (hash ^ word.bits) * 0x9e3779b97f4a7c15ull;
  return hash ^ hash >> 29;
}

/* Rows of one shape family have one key: products of the same weights, attention of the same heads,
 * a mixed call of the same chunk and number of sequences. */
static guint64 family_key(const KvObservation *row) {
  const double fields[] = {
      row->n,
      row->k,
      row->n_heads,
      row->n_kv_heads,
      row->head_dim,
      row->kind == KV_OBSERVED_MIXED_ATTENTION ? row->chunk : 0,
      row->decode_batch,
      row->experts.hidden,
      row->experts.intermediate,
      row->experts.n_experts,
      row->bytes * (row->kind == KV_OBSERVED_ALL_REDUCE || row->kind == KV_OBSERVED_NCCL)};
  guint64 hash = 0x2545f4914f6cdd1dull;
  for (guint i = 0; i < G_N_ELEMENTS(fields); i++)
    hash = mixed_with(hash, fields[i]);
  return hash;
}

enum { LEAST_FAMILIES = 8 };

/* odd[i]: the half that row i belongs to. Families are kept whole, where a kind has at least
 * LEAST_FAMILIES of them; else rows alternate. */
static gboolean *halves(const GArray *observations) {
  gboolean *odd = g_new(gboolean, observations->len + 1);
  guint seen[KV_N_OBSERVED][KV_N_DTYPES] = {0};
  GHashTable *families[KV_N_OBSERVED][KV_N_DTYPES] = {0};
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    GHashTable **found = &families[row->kind][row->dtype];
    if (!*found)
      *found = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    guint64 key = family_key(row);
    if (!g_hash_table_contains(*found, &key))
      g_hash_table_insert(*found, g_memdup2(&key, sizeof key),
                          GUINT_TO_POINTER(g_hash_table_size(*found)));
  }
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    GHashTable *found = families[row->kind][row->dtype];
    guint64 key = family_key(row);
    guint place = seen[row->kind][row->dtype]++;
    odd[i] = (g_hash_table_size(found) >= LEAST_FAMILIES
                  ? GPOINTER_TO_UINT(g_hash_table_lookup(found, &key))
                  : place) %
             2;
  }
  for (guint kind = 0; kind < KV_N_OBSERVED; kind++)
    for (guint dtype = 0; dtype < KV_N_DTYPES; dtype++)
      g_clear_pointer(&families[kind][dtype], g_hash_table_destroy);
  return odd;
}

void kv_fit_cross_validate(const KvDevice *device, const GArray *observations, KvDtype dtype,
                           guint rows_per_kind, double shortest_seconds,
                           KvResidual residual[KV_N_OBSERVED], double *predicted) {
  g_autofree gboolean *odd = halves(observations);
  g_autofree double *scored = g_new0(double, observations->len + 1);
  for (guint half = 0; half < 2; half++) {
    g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(KvObservation));
    for (guint i = 0; i < observations->len; i++)
      if (odd[i] == (gboolean)half)
        g_array_append_val(rows, g_array_index(observations, KvObservation, i));
    KvDevice fitted = *device;
    KvMeasuring measuring = {0};
    kv_fit_start(&fitted, &measuring);
    kv_fit(&fitted, &measuring, rows, dtype, rows_per_kind);
    for (guint i = 0; i < observations->len; i++) {
      const KvObservation *row = &g_array_index(observations, KvObservation, i);
      if (odd[i] != (gboolean)half && row->dtype == dtype)
        scored[i] = kv_observation_predict(&fitted, &measuring, row);
    }
  }
  for (guint kind = 0; kind < KV_N_OBSERVED; kind++)
    residual[kind] = kv_fit_residual(observations, scored, kind, dtype, shortest_seconds);
  if (predicted)
    memcpy(predicted, scored, observations->len * sizeof *predicted);
}
