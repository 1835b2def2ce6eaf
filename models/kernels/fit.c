#include "models/kernels/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FAMILY_MEASURING = KV_N_KERNELS, N_BLOCKS };

/* What may be fitted: a member of the efficiency of a family, or of KvMeasuring; `start` and bounds
 * in its own unit; fitted on a log scale. */
typedef struct {
  const char *name;
  guint family;
  gsize offset;
  double start, low, high;
  guint kinds; /* bit set of the observations that tell about it */
} Parameter;

#define BIT(kind) (1u << (kind))
#define STEPS (BIT(KV_OBSERVED_DECODE_STEP) | BIT(KV_OBSERVED_PREFILL_STEP))
#define IN(family, member, start, low, high, kinds)                                                \
  { #member, KV_KERNEL_##family, G_STRUCT_OFFSET(KvEfficiency, member), start, low, high, kinds }
#define MEASURED(member, start, low, high, kinds)                                                  \
  { #member, FAMILY_MEASURING, G_STRUCT_OFFSET(KvMeasuring, member), start, low, high, kinds }

/* What steps alone cannot tell apart (the compute share of decode attention, the bandwidth of
 * prefill attention) is fitted on rows of that kernel only. */
static const Parameter parameters[] = {
    IN(GEMM, fixed_seconds, 4e-6, 5e-7, 3e-5, BIT(KV_OBSERVED_GEMM) | STEPS),
    IN(GEMM, flops_share, 0.7, 0.1, 1.2, BIT(KV_OBSERVED_GEMM) | STEPS),
    IN(GEMM, bandwidth_share, 0.85, 0.2, 1.2, BIT(KV_OBSERVED_GEMM) | STEPS),
    IN(GEMM, sharpness, 4, 1, 20, BIT(KV_OBSERVED_GEMM)),
    IN(PREFILL_ATTENTION, fixed_seconds, 6e-6, 5e-7, 5e-5, BIT(KV_OBSERVED_PREFILL_ATTENTION)),
    IN(PREFILL_ATTENTION, flops_share, 0.5, 0.03, 1.2,
       BIT(KV_OBSERVED_PREFILL_ATTENTION) | BIT(KV_OBSERVED_PREFILL_STEP)),
    IN(PREFILL_ATTENTION, bandwidth_share, 0.7, 0.05, 1.2, BIT(KV_OBSERVED_PREFILL_ATTENTION)),
    IN(PREFILL_ATTENTION, sharpness, 2, 1, 20, BIT(KV_OBSERVED_PREFILL_ATTENTION)),
    IN(DECODE_ATTENTION, fixed_seconds, 5e-6, 5e-7, 5e-5,
       BIT(KV_OBSERVED_DECODE_ATTENTION) | BIT(KV_OBSERVED_DECODE_STEP)),
    IN(DECODE_ATTENTION, flops_share, 0.3, 0.01, 1.2, BIT(KV_OBSERVED_DECODE_ATTENTION)),
    IN(DECODE_ATTENTION, bandwidth_share, 0.8, 0.05, 1.2,
       BIT(KV_OBSERVED_DECODE_ATTENTION) | BIT(KV_OBSERVED_DECODE_STEP)),
    IN(DECODE_ATTENTION, sharpness, 4, 1, 20, BIT(KV_OBSERVED_DECODE_ATTENTION)),
    IN(ELEMENTWISE, fixed_seconds, 2e-6, 1e-6, 1e-5, STEPS),
    IN(ELEMENTWISE, bandwidth_share, 0.85, 0.3, 1.2, STEPS),
    MEASURED(floor_seconds, 3e-5, 1e-6, 1e-4, BIT(KV_OBSERVED_GEMM)),
    MEASURED(burst_share, 1.1, 1, 1.5, BIT(KV_OBSERVED_GEMM)),
    MEASURED(host_kernel_seconds, 2e-5, 1e-6, 1e-3, BIT(KV_OBSERVED_PREFILL_STEP)),
};
enum { MOST_DIMENSIONS = 8 };

typedef struct {
  KvDevice *device;
  KvMeasuring *measuring;
  KvDtype dtype;
  KvObservation *rows;
  guint n_rows;
  double weight[KV_N_OBSERVED]; /* of one row of the kind */
  const Parameter *active[MOST_DIMENSIONS];
  guint n_active;
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

static double problem_loss(Problem *problem, const double *x) {
  const double usual_error = 0.06;
  /* A weak pull to the usual values decides between parameters that only add up in the
   * measurements. */
  const double prior_weight = 0.002;
  double loss = 0;
  problem_set(problem, x);
  for (guint i = 0; i < problem->n_active; i++) {
    double apart = x[i] - log(problem->active[i]->start);
    loss += prior_weight * apart * apart;
  }
  for (guint i = 0; i < problem->n_rows; i++) {
    const KvObservation *row = &problem->rows[i];
    double error =
        log(kv_observation_predict(problem->device, problem->measuring, row) / row->seconds) /
        usual_error;
    loss += problem->weight[row->kind] * (sqrt(1 + error * error) - 1);
  }
  return loss;
}

typedef struct {
  double x[MOST_DIMENSIONS], loss;
} Vertex;

static int vertex_compare(const void *a, const void *b) {
  double x = ((const Vertex *)a)->loss, y = ((const Vertex *)b)->loss;
  return (x > y) - (x < y);
}

/* from + factor (to - from), evaluated. */
static Vertex vertex_along(Problem *problem, const double *from, const double *to, double factor) {
  Vertex vertex;
  for (guint i = 0; i < problem->n_active; i++)
    vertex.x[i] = from[i] + factor * (to[i] - from[i]);
  vertex.loss = problem_loss(problem, vertex.x);
  return vertex;
}

/* One step of the simplex: reflect the worst vertex, then expand, contract or shrink. */
static void simplex_step(Problem *problem, Vertex *simplex) {
  guint n = problem->n_active;
  double middle[MOST_DIMENSIONS] = {0};
  for (guint i = 0; i < n; i++)
    for (guint j = 0; j < n; j++)
      middle[j] += simplex[i].x[j] / n;
  Vertex *worst = &simplex[n];
  Vertex reflected = vertex_along(problem, middle, worst->x, -1);
  if (reflected.loss < simplex[0].loss) {
    Vertex expanded = vertex_along(problem, middle, worst->x, -2);
    *worst = expanded.loss < reflected.loss ? expanded : reflected;
  } else if (reflected.loss < simplex[n - 1].loss) {
    *worst = reflected;
  } else {
    Vertex contracted =
        vertex_along(problem, middle, worst->x, reflected.loss < worst->loss ? -0.5 : 0.5);
    if (contracted.loss < MIN(reflected.loss, worst->loss))
      *worst = contracted;
    else
      for (guint i = 1; i <= n; i++)
        simplex[i] = vertex_along(problem, simplex[0].x, simplex[i].x, 0.5);
  }
  qsort(simplex, n + 1, sizeof *simplex, vertex_compare);
}

static double problem_minimize(Problem *problem, double size) {
  guint n = problem->n_active;
  Vertex simplex[MOST_DIMENSIONS + 1];
  for (guint i = 0; i <= n; i++) {
    for (guint j = 0; j < n; j++)
      simplex[i].x[j] = log(*parameter_place(problem->active[j], problem->device,
                                             problem->measuring, problem->dtype));
  }
  for (guint i = 0; i <= n; i++) {
    if (i > 0)
      simplex[i].x[i - 1] +=
          simplex[i].x[i - 1] + size > log(problem->active[i - 1]->high) ? -size : size;
    simplex[i].loss = problem_loss(problem, simplex[i].x);
  }
  qsort(simplex, n + 1, sizeof *simplex, vertex_compare);
  for (guint i = 0; i < 60 * n && simplex[n].loss - simplex[0].loss > 1e-7; i++)
    simplex_step(problem, simplex);
  problem_set(problem, simplex[0].x);
  return simplex[0].loss;
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

static gboolean any_eager(const Problem *problem) {
  for (guint i = 0; i < problem->n_rows; i++)
    if (problem->rows[i].eager)
      return TRUE;
  return FALSE;
}

void kv_fit_start(KvDevice *device, KvMeasuring *measuring) {
  for (guint i = 0; i < G_N_ELEMENTS(parameters); i++) {
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
  gboolean eager = any_eager(&problem);
  double before = G_MAXDOUBLE;
  for (guint round = 0; round < 12; round++) {
    double loss = 0;
    for (guint block = 0; block < N_BLOCKS; block++) {
      problem.n_active = 0;
      for (guint i = 0; i < G_N_ELEMENTS(parameters); i++)
        if (parameters[i].family == block && parameters[i].kinds & kinds &&
            (block != FAMILY_MEASURING || eager))
          problem.active[problem.n_active++] = &parameters[i];
      if (problem.n_active > 0)
        loss = problem_minimize(&problem, round ? 0.05 : 0.3);
    }
    if (before - loss < 1e-5)
      break;
    before = loss;
  }
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

KvResidual kv_fit_residual(const KvDevice *device, const KvMeasuring *measuring,
                           const GArray *observations, KvObserved kind, KvDtype dtype,
                           double shortest_seconds) {
  KvResidual residual = {0};
  g_autofree double *signed_errors = g_new(double, observations->len + 1);
  g_autofree double *errors = g_new(double, observations->len + 1);
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (row->kind != kind || row->dtype != dtype || row->seconds < shortest_seconds)
      continue;
    double error = kv_observation_predict(device, measuring, row) / row->seconds - 1;
    signed_errors[residual.n] = error;
    errors[residual.n++] = fabs(error);
  }
  if (residual.n == 0)
    return residual;
  qsort(signed_errors, residual.n, sizeof(double), number_compare);
  qsort(errors, residual.n, sizeof(double), number_compare);
  residual.median = quantile(errors, residual.n, 0.5);
  residual.p95 = quantile(errors, residual.n, 0.95);
  residual.bias = quantile(signed_errors, residual.n, 0.5);
  return residual;
}

GArray *kv_fit_half(const GArray *observations, gboolean odd) {
  GArray *half = g_array_new(FALSE, FALSE, sizeof(KvObservation));
  guint seen[KV_N_OBSERVED][KV_N_DTYPES] = {0};
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (seen[row->kind][row->dtype]++ % 2 == (odd ? 1 : 0))
      g_array_append_val(half, *row);
  }
  return half;
}
