#include "sim/validate/step_log.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/engine/model_executor.h"

const char *const kv_step_kind_names[] = {"decode steps", "prefill steps", "mixed steps", NULL};
G_STATIC_ASSERT(G_N_ELEMENTS(kv_step_kind_names) == KV_N_STEP_KINDS + 1);

KvStepLog *kv_step_log_new(const char *executor) {
  KvStepLog *log = g_new0(KvStepLog, 1);
  log->executor = g_strdup(executor);
  log->steps = g_array_new(FALSE, TRUE, sizeof(KvLoggedStep));
  log->chunks = g_array_new(FALSE, TRUE, sizeof(KvChunk));
  log->contexts = g_array_new(FALSE, FALSE, sizeof(guint32));
  log->copies = g_array_new(FALSE, FALSE, sizeof(KvLoggedCopy));
  return log;
}

void kv_step_log_free(KvStepLog *log) {
  if (!log)
    return;
  g_free(log->executor);
  json_decref(log->gpu);
  g_clear_pointer(&log->scenario, kv_scenario_free);
  g_array_unref(log->steps);
  g_array_unref(log->chunks);
  g_array_unref(log->contexts);
  g_array_unref(log->copies);
  g_free(log);
}

KvStepKind kv_logged_step_kind(const KvLoggedStep *step) {
  return step->n_chunks == 0 ? KV_STEP_DECODE : step->n_decode ? KV_STEP_MIXED : KV_STEP_PREFILL;
}

/* --- pricing --------------------------------------------------------------------------------- */

/* The sums over the decoding sequences that a price depends on, as the engine keeps them. */
static void sum_contexts(const KvStepLog *log, const KvLoggedStep *logged,
                         const KvPlanCurves *curves, double *values, KvDecodeBatch *batch) {
  static const double no_slopes[KV_MAX_CHANNELS]; /* of one repeat */
  *batch = (KvDecodeBatch){.n = logged->n_decode,
                           .values = values,
                           .slopes = no_slopes,
                           .shared_once_tokens = logged->shared_once_tokens,
                           .shared_repeated_tokens = logged->shared_repeated_tokens};
  memset(values, 0, KV_MAX_CHANNELS * sizeof *values);
  for (guint i = 0; i < logged->n_decode; i++) {
    double context = g_array_index(log->contexts, guint32, logged->first_context + i);
    batch->context_tokens += context;
    batch->longest_tokens = MAX(batch->longest_tokens, context);
    for (guint c = 0; c < curves->n_channels; c++)
      values[c] += kv_law_value(&curves->laws[c], context, context, TRUE, NULL, NULL);
  }
}

static gboolean price_step(const KvStepLog *log, const KvPlanCurves *curves, KvExecutor *model,
                           KvLoggedStep *logged, GError **error) {
  double values[KV_MAX_CHANNELS];
  KvStep step = {.chunks = &g_array_index(log->chunks, KvChunk, logged->first_chunk),
                 .n_chunks = logged->n_chunks,
                 .repeat = 1};
  KvStepCost cost;
  sum_contexts(log, logged, curves, values, &step.decode);
  if (!model->class->step(model, &step, &cost, error))
    return FALSE;
  logged->predicted_seconds = cost.seconds;
  memcpy(logged->predicted_parts, cost.component_seconds, sizeof cost.component_seconds);
  return TRUE;
}

/* Each alone on its link. */
static void price_copies(KvStepLog *log, KvExecutor *model) {
  for (guint i = 0; i < log->copies->len; i++) {
    KvLoggedCopy *logged = &g_array_index(log->copies, KvLoggedCopy, i);
    logged->predicted_seconds = model->class->copy_seconds(model, &logged->copy);
  }
}

gboolean kv_step_log_price(KvStepLog *log, GError **error) {
  return kv_step_log_price_by(log, NULL, error);
}

gboolean kv_step_log_price_by(KvStepLog *log, const KvDevice *device, GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(log->scenario, FALSE, error);
  if (!setup)
    return FALSE;
  if (device)
    kv_device_take_times(setup->platform->device, device);
  KvExecutor *model =
      kv_model_executor_new(setup->model, setup->plan, &setup->curves, setup->platform,
                            &setup->scenario->engine, setup->scenario->tensor_parallel);
  gboolean priced = TRUE;
  for (guint i = 0; priced && i < log->steps->len; i++)
    priced =
        price_step(log, &setup->curves, model, &g_array_index(log->steps, KvLoggedStep, i), error);
  if (priced)
    price_copies(log, model);
  model->class->destroy(model);
  return priced;
}

/* --- accuracy -------------------------------------------------------------------------------- */

static gint by_value(gconstpointer a, gconstpointer b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Linear between the closest ranks; sorts. */
static double quantile(GArray *values, double share) {
  g_array_sort(values, by_value);
  double at = share * (values->len - 1.0);
  guint low = (guint)at;
  double from = g_array_index(values, double, low);
  return from + (at - low) * (g_array_index(values, double, MIN(low + 1, values->len - 1)) - from);
}

/* What is gathered for one row. */
typedef struct {
  KvOperationAccuracy row;
  GArray *errors;
} Gathered;

static void gather(Gathered *g, double measured, double predicted) {
  if (!(measured > 0.0))
    return;
  double error = predicted / measured - 1.0;
  if (!g->errors)
    g->errors = g_array_new(FALSE, FALSE, sizeof(double));
  g_array_append_val(g->errors, error);
  g->row.n++;
  g->row.measured_seconds += measured;
  g->row.predicted_seconds += predicted;
}

static void finish(Gathered *g, GArray *rows) {
  if (!g->errors)
    return;
  g->row.bias = quantile(g->errors, 0.5);
  for (guint i = 0; i < g->errors->len; i++)
    g_array_index(g->errors, double, i) = fabs(g_array_index(g->errors, double, i));
  g->row.median = quantile(g->errors, 0.5);
  g->row.p95 = quantile(g->errors, 0.95);
  g_array_unref(g->errors);
  g_array_append_val(rows, g->row);
}

static gboolean timed_in_parts(const KvLoggedStep *step) {
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (step->measured_parts[c] > 0.0)
      return TRUE;
  return FALSE;
}

GArray *kv_step_log_accuracy(const KvStepLog *log) {
  GArray *rows = g_array_new(FALSE, FALSE, sizeof(KvOperationAccuracy));
  Gathered kinds[KV_N_STEP_KINDS + 1] = {0}, parts[KV_N_COMPONENTS] = {0}, copies[2] = {0};
  for (guint k = 0; k < KV_N_STEP_KINDS; k++)
    kinds[k].row.name = kv_step_kind_names[k];
  kinds[KV_N_STEP_KINDS].row.name = "all steps";
  for (guint i = 0; i < log->steps->len; i++) {
    const KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
    gather(&kinds[kv_logged_step_kind(step)], step->measured_seconds, step->predicted_seconds);
    gather(&kinds[KV_N_STEP_KINDS], step->measured_seconds, step->predicted_seconds);
    for (guint c = 0; timed_in_parts(step) && c < KV_N_COMPONENTS; c++) {
      parts[c].row.name = kv_component_names[c];
      gather(&parts[c], step->measured_parts[c], step->predicted_parts[c]);
    }
  }
  copies[0].row.name = "copies to the GPU";
  copies[1].row.name = "copies from the GPU";
  for (guint i = 0; i < log->copies->len; i++) {
    const KvLoggedCopy *copy = &g_array_index(log->copies, KvLoggedCopy, i);
    gather(&copies[copy->copy.from == KV_TIER_HBM], copy->measured_seconds,
           copy->predicted_seconds);
  }
  for (guint k = 0; k < G_N_ELEMENTS(kinds); k++)
    finish(&kinds[k], rows);
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    finish(&parts[c], rows);
  for (guint c = 0; c < G_N_ELEMENTS(copies); c++)
    finish(&copies[c], rows);
  return rows;
}

static void describe_chunks(const KvStepLog *log, const KvLoggedStep *step, GString *text) {
  double new_tokens = 0.0, past = 0.0;
  for (guint i = 0; i < step->n_chunks; i++) {
    const KvChunk *chunk = &g_array_index(log->chunks, KvChunk, step->first_chunk + i);
    new_tokens += chunk->tokens;
    past += chunk->past;
  }
  g_string_append_printf(text, "%8u %8.0f %8.0f", step->n_chunks, new_tokens, past);
}

static void add_steps(const KvStepLog *log, GString *text) {
  g_string_append_printf(text, "  %-14s %8s %8s %8s %8s %10s %12s %12s %9s\n", "step", "chunks",
                         "new", "past", "decoding", "contexts", "measured us", "predicted us",
                         "error");
  for (guint i = 0; i < log->steps->len; i++) {
    const KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
    double contexts = 0.0;
    for (guint k = 0; k < step->n_decode; k++)
      contexts += g_array_index(log->contexts, guint32, step->first_context + k);
    g_string_append_printf(text, "  %-14s ", kv_step_kind_names[kv_logged_step_kind(step)]);
    describe_chunks(log, step, text);
    g_string_append_printf(text, " %8u %10.0f %12.1f %12.1f %+7.1f %%\n", step->n_decode, contexts,
                           1e6 * step->measured_seconds, 1e6 * step->predicted_seconds,
                           100.0 * (step->predicted_seconds / step->measured_seconds - 1.0));
  }
  g_string_append_c(text, '\n');
}

char *kv_step_log_table(const KvStepLog *log, gboolean each) {
  GString *text = g_string_new(NULL);
  const char *gpu = log->gpu ? json_string_value(json_object_get(log->gpu, "name")) : NULL;
  g_string_append_printf(text, "%s, executor %s%s%s, priced for %s\n\n", log->scenario->model,
                         log->executor, gpu ? " on " : "", gpu ? gpu : "", log->scenario->platform);
  if (each)
    add_steps(log, text);
  g_string_append_printf(text, "  %-20s %7s %12s %12s %9s %9s %9s %9s\n", "operation", "n",
                         "measured ms", "predicted ms", "total", "median", "p95", "bias");
  g_autoptr(GArray) rows = kv_step_log_accuracy(log);
  for (guint i = 0; i < rows->len; i++) {
    const KvOperationAccuracy *row = &g_array_index(rows, KvOperationAccuracy, i);
    g_string_append_printf(
        text, "  %-20s %7u %12.3f %12.3f %+7.1f %% %7.1f %% %7.1f %% %+7.1f %%\n", row->name,
        row->n, 1e3 * row->measured_seconds, 1e3 * row->predicted_seconds,
        100.0 * (row->predicted_seconds / row->measured_seconds - 1.0), 100.0 * row->median,
        100.0 * row->p95, 100.0 * row->bias);
  }
  return g_string_free(text, FALSE);
}

json_t *kv_step_log_to_json(const KvStepLog *log) {
  json_t *list = json_array();
  g_autoptr(GArray) rows = kv_step_log_accuracy(log);
  for (guint i = 0; i < rows->len; i++) {
    const KvOperationAccuracy *row = &g_array_index(rows, KvOperationAccuracy, i);
    json_array_append_new(list,
                          json_pack("{s:s, s:i, s:f, s:f, s:f, s:f, s:f}", "operation", row->name,
                                    "n", (int)row->n, "measured_seconds", row->measured_seconds,
                                    "predicted_seconds", row->predicted_seconds, "median_error",
                                    row->median, "p95_error", row->p95, "bias", row->bias));
  }
  return list;
}
