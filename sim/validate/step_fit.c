#include "sim/validate/step_fit.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"

/* --- which logs ------------------------------------------------------------------------------ */

/* What the log's steps tell of: "" of the unchanged engine, "experts" of mixtures of them, else as
 * in KvTechniqueTimes. */
static gboolean subject_of(const KvStepLog *log, const char **subject, GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(log->scenario, FALSE, error);
  const char *told[8];
  guint n = 0;
  if (!setup)
    return FALSE;
  for (guint g = 0; g < setup->model->n_groups && n == 0; g++) {
    const KvLayerGroup *group = &setup->model->groups[g];
    if (group->attention.inner > 0)
      told[n++] = "recurrent";
    if (group->attention.kind == KV_ATTENTION_LATENT)
      told[n++] = "latent";
    if (group->mlp.n_experts > 0)
      told[n++] = "experts";
  }
  if (log->scenario->cache_dtype == KV_DTYPE_FP8)
    told[n++] = "fp8";
  for (guint i = 0; i < setup->stack->uses->len && n < G_N_ELEMENTS(told); i++) {
    const KvTechnique *technique = g_array_index(setup->stack->uses, KvTechniqueUse, i).technique;
    if (!technique->arch || n == 0) /* else what it makes of the model tells */
      told[n++] = technique->id;
  }
  if (n > 1) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "steps of %s with '%s': %s and %s at once, expected one, to tell what it takes",
                log->scenario->model, log->scenario->use, told[0], told[1]);
    return FALSE;
  }
  *subject = n ? told[0] : "";
  return TRUE;
}

/* --- one number after another ---------------------------------------------------------------- */

/* A batch that decodes for long is many steps of nearly one shape: n of them weigh as sqrt(n). */
static gint64 shape_of(const KvLoggedStep *step) {
  return ((gint64)step->n_decode << 32) | (step->n_chunks ? step->first_chunk + 1 : 0);
}

/* The weight of each of the log's steps; newly allocated. */
static double *weights_of(const KvStepLog *log) {
  g_autoptr(GHashTable) counts = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  double *weights = g_new(double, log->steps->len + 1);
  for (guint pass = 0; pass < 2; pass++)
    for (guint i = 0; i < log->steps->len; i++) {
      gint64 shape = shape_of(&g_array_index(log->steps, KvLoggedStep, i));
      guint count = GPOINTER_TO_UINT(g_hash_table_lookup(counts, &shape));
      if (pass == 0)
        g_hash_table_insert(counts, g_memdup2(&shape, sizeof shape), GUINT_TO_POINTER(count + 1));
      else
        weights[i] = 1.0 / sqrt(count);
    }
  return weights;
}

/* The logs of a subject, and of each what weights_of() gives. */
typedef struct {
  GPtrArray *logs, *weights;
} Steps;

/* An error of this size weighs as its square; larger ones less and less. */
static const double usual_error = 0.02;

static double huber(double error) {
  double x = error / usual_error;
  return sqrt(1.0 + x * x) - 1.0;
}

static gboolean loss_of(const KvDevice *device, const Steps *steps, double *loss, GError **error) {
  *loss = 0.0;
  for (guint l = 0; l < steps->logs->len; l++) {
    KvStepLog *log = g_ptr_array_index(steps->logs, l);
    const double *weights = g_ptr_array_index(steps->weights, l);
    if (kv_error_if_interrupted(error) || !kv_step_log_price_by(log, device, error))
      return FALSE;
    for (guint i = 0; i < log->steps->len; i++) {
      const KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
      if (step->measured_seconds > 0.0 && step->predicted_seconds > 0.0)
        *loss += weights[i] * huber(log1p(step->predicted_seconds / step->measured_seconds - 1.0));
    }
  }
  return TRUE;
}

/* The least loss for *value between the bounds, by golden sections. */
static gboolean search(KvDevice *device, const Steps *steps, double *value, double low, double high,
                       GError **error) {
  const double golden = 0.6180339887498949;
  double at[2], loss[2];
  for (guint i = 0; i < 2; i++) {
    *value = at[i] = i ? low + golden * (high - low) : high - golden * (high - low);
    if (!loss_of(device, steps, &loss[i], error))
      return FALSE;
  }
  for (guint round = 0; round < 18; round++) {
    guint worse = loss[0] < loss[1];
    if (worse) {
      high = at[1];
      at[1] = at[0];
      loss[1] = loss[0];
      at[0] = high - golden * (high - low);
    } else {
      low = at[0];
      at[0] = at[1];
      loss[0] = loss[1];
      at[1] = low + golden * (high - low);
    }
    *value = at[!worse];
    if (!loss_of(device, steps, &loss[!worse], error))
      return FALSE;
  }
  *value = 0.5 * (low + high);
  return TRUE;
}

/* What a launch of experts costs, and how quickly their weights come. */
static gboolean fit_experts(KvDevice *device, const Steps *steps, GError **error) {
  KvEfficiency *moe = &device->efficiency[KV_KERNEL_MOE][KV_DTYPE_BF16];
  const double costliest = 6e-5;
  for (guint round = 0; round < 4; round++)
    if (!search(device, steps, &moe->fixed_seconds, 0.0, costliest, error) ||
        !search(device, steps, &moe->bandwidth_share, 0.2, 1.0, error))
      return FALSE;
  return TRUE;
}

/* Search one value after another until none moves: gaps and ramps make up for each other for long.
 */
static gboolean fit_engine(KvDevice *device, const Steps *steps, GError **error) {
  enum { MOST_ROUNDS = 30 };
  const double settled = 2e-3;
  KvEfficiency *gemm = &device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16];
  const struct {
    double *value, low, high;
  } searched[] = {{&device->gap_seconds, 0.0, 5e-6},
                  {&device->stream_gap_seconds, 0.0, 5e-6},
                  {&gemm->ramp_seconds, 1e-7, 4e-5},
                  {&gemm->vector_ramp_seconds, 0.0, 1e-5}};
  gboolean moved = TRUE;
  for (guint round = 0; round < MOST_ROUNDS && moved; round++) {
    moved = FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(searched); i++) {
      double before = *searched[i].value;
      if (!search(device, steps, searched[i].value, searched[i].low, searched[i].high, error))
        return FALSE;
      moved |= fabs(*searched[i].value - before) > settled * searched[i].high;
    }
  }
  return TRUE;
}

/* --- a technique ----------------------------------------------------------------------------- */

/* A step: what is measured beyond the rest of it, and what each part adds for a second of it; all
 * over what is measured. */
typedef struct {
  double weight, beyond, part[KV_N_TECHNIQUE_PARTS];
} Row;

static gboolean price_all(const KvDevice *device, GPtrArray *logs, GError **error) {
  for (guint l = 0; l < logs->len; l++)
    if (kv_error_if_interrupted(error) ||
        !kv_step_log_price_by(g_ptr_array_index(logs, l), device, error))
      return FALSE;
  return TRUE;
}

/* Add the prices to a column of the rows: part -1 to `beyond`, negative. */
static void note_prices(GPtrArray *logs, GArray *rows, gint part, double unit) {
  guint r = 0;
  for (guint l = 0; l < logs->len; l++) {
    const KvStepLog *log = g_ptr_array_index(logs, l);
    for (guint i = 0; i < log->steps->len; i++, r++) {
      const KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
      Row *row = &g_array_index(rows, Row, r);
      if (part < 0)
        row->beyond = 1.0 - step->predicted_seconds / step->measured_seconds;
      else /* beyond what it is without */
        row->part[part] =
            (step->predicted_seconds / step->measured_seconds - 1.0 + row->beyond) / unit;
    }
  }
}

/* Prices are linear in the parts' seconds, so each is tried alone. */
static gboolean fill_rows(KvDevice *device, KvTechniqueTimes *times, const Steps *steps,
                          GArray *rows, GError **error) {
  GPtrArray *logs = steps->logs;
  guint n = 0;
  for (guint l = 0; l < logs->len; l++)
    n += ((const KvStepLog *)g_ptr_array_index(logs, l))->steps->len;
  g_array_set_size(rows, n);
  if (!price_all(device, logs, error))
    return FALSE;
  note_prices(logs, rows, -1, 0.0);
  for (guint l = 0, r = 0; l < logs->len; l++) {
    const KvStepLog *log = g_ptr_array_index(logs, l);
    const double *weights = g_ptr_array_index(steps->weights, l);
    for (guint i = 0; i < log->steps->len; i++)
      g_array_index(rows, Row, r++).weight = weights[i];
  }
  for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++) {
    double unit = kv_technique_parts[p].unit;
    times->seconds[p] = unit;
    if (!price_all(device, logs, error))
      return FALSE;
    note_prices(logs, rows, (gint)p, unit);
    times->seconds[p] = 0.0;
  }
  return TRUE;
}

static double beyond_fit(const Row *row, const double *seconds) {
  double beyond = row->beyond;
  for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++)
    beyond -= row->part[p] * seconds[p];
  return beyond;
}

/* Least weighted squares with no part below 0: one part after another until none moves. Rows that
 * are far off weigh less. */
static void solve(const GArray *rows, double *seconds) {
  enum { ROUNDS = 400 };
  for (guint round = 0; round < ROUNDS; round++)
    for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++) {
      double square = 0.0, product = 0.0;
      for (guint i = 0; i < rows->len; i++) {
        const Row *row = &g_array_index(rows, Row, i);
        double x = beyond_fit(row, seconds) / usual_error, weight = row->weight / sqrt(1.0 + x * x);
        square += weight * row->part[p] * row->part[p];
        product += weight * row->part[p] * x * usual_error;
      }
      if (square > 0.0)
        seconds[p] = fmax(0.0, seconds[p] + product / square);
    }
}

static gboolean fit_technique(KvDevice *device, const char *id, const Steps *steps,
                              GError **error) {
  KvTechniqueTimes *times = (KvTechniqueTimes *)kv_device_technique(device, id);
  if (!times) {
    if (device->n_techniques == KV_MAX_TECHNIQUE_TIMES) {
      g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: one technique too many, expected %d", id,
                  KV_MAX_TECHNIQUE_TIMES);
      return FALSE;
    }
    times = &device->techniques[device->n_techniques++];
  }
  *times = (KvTechniqueTimes){0};
  g_strlcpy(times->id, id, sizeof times->id);
  g_autoptr(GArray) rows = g_array_new(FALSE, TRUE, sizeof(Row));
  double seconds[KV_N_TECHNIQUE_PARTS] = {0};
  if (!fill_rows(device, times, steps, rows, error))
    return FALSE;
  solve(rows, seconds);
  memcpy(times->seconds, seconds, sizeof seconds);
  return TRUE;
}

/* --- all ------------------------------------------------------------------------------------- */

static void describe(GString *report, const KvDevice *device, const char *id, GPtrArray *logs) {
  g_autoptr(KvStepLog) all = kv_step_log_new("");
  for (guint l = 0; l < logs->len; l++) {
    const KvStepLog *log = g_ptr_array_index(logs, l);
    g_array_append_vals(all->steps, log->steps->data, log->steps->len);
  }
  g_autoptr(GArray) accuracy = kv_step_log_accuracy(all);
  g_string_append_printf(report, "  %-16s", *id ? id : "the engine");
  for (guint i = 0; i < accuracy->len; i++) {
    const KvOperationAccuracy *row = &g_array_index(accuracy, KvOperationAccuracy, i);
    if (strcmp(row->name, "all steps") == 0)
      g_string_append_printf(report, " %6u %8.1f %% %7.1f %% %+7.1f %%  ", row->n,
                             100.0 * row->median, 100.0 * row->p95, 100.0 * row->bias);
  }
  const KvTechniqueTimes *times = *id ? kv_device_technique(device, id) : NULL;
  const KvEfficiency *moe = &device->efficiency[KV_KERNEL_MOE][KV_DTYPE_BF16],
                     *gemm = &device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16];
  for (guint p = 0; times && p < KV_N_TECHNIQUE_PARTS; p++)
    if (times->seconds[p] > 0.0)
      g_string_append_printf(report, " %s %.4g", kv_technique_parts[p].key,
                             times->seconds[p] / kv_technique_parts[p].unit);
  if (strcmp(id, "experts") == 0)
    g_string_append_printf(report, " fixed_us %.4g bandwidth_share %.4g", 1e6 * moe->fixed_seconds,
                           moe->bandwidth_share);
  else if (!times)
    g_string_append_printf(report,
                           " gap_us %.4g stream_gap_us %.4g ramp_us %.4g vector_ramp_us %.4g",
                           1e6 * device->gap_seconds, 1e6 * device->stream_gap_seconds,
                           1e6 * gemm->ramp_seconds, 1e6 * gemm->vector_ramp_seconds);
  g_string_append_c(report, '\n');
}

static gboolean fit_subject(KvDevice *device, const char *subject, GPtrArray *logs, GString *report,
                            GError **error) {
  g_autoptr(GPtrArray) weights = g_ptr_array_new_with_free_func(g_free);
  const Steps steps = {logs, weights};
  for (guint l = 0; l < logs->len; l++)
    g_ptr_array_add(weights, weights_of(g_ptr_array_index(logs, l)));
  gboolean fitted = strcmp(subject, "experts") == 0 ? fit_experts(device, &steps, error)
                    : *subject                      ? fit_technique(device, subject, &steps, error)
                                                    : fit_engine(device, &steps, error);
  if (!fitted || !price_all(device, logs, error))
    return FALSE;
  describe(report, device, subject, logs);
  return TRUE;
}

gboolean kv_step_fit(KvDevice *device, GPtrArray *logs, GString *report, GError **error) {
  g_autoptr(GPtrArray) subjects = g_ptr_array_new(); /* "" first: the others build on it */
  g_autoptr(GHashTable) groups =
      g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)g_ptr_array_unref);
  g_string_append_printf(report, "\n  %-16s %6s %10s %9s %9s\n", "steps of", "n", "median", "p95",
                         "bias");
  for (guint l = 0; l < logs->len; l++) {
    const char *subject;
    if (!subject_of(g_ptr_array_index(logs, l), &subject, error))
      return FALSE;
    if (!g_hash_table_contains(groups, subject)) {
      g_hash_table_insert(groups, (gpointer)subject, g_ptr_array_new());
      g_ptr_array_insert(subjects, *subject ? -1 : 0, (gpointer)subject);
    }
    g_ptr_array_add(g_hash_table_lookup(groups, subject), g_ptr_array_index(logs, l));
  }
  for (guint i = 0; i < subjects->len; i++) {
    const char *subject = g_ptr_array_index(subjects, i);
    if (!fit_subject(device, subject, g_hash_table_lookup(groups, subject), report, error))
      return FALSE;
  }
  return TRUE;
}
