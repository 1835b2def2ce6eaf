#include "sim/validate/steps.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/engine/predict.h"

static void clear_step(gpointer data) {
  KvMeasuredStep *step = data;
  g_free(step->group);
  g_free(step->model);
  g_free(step->platform);
}

static GArray *steps_new(void) {
  GArray *steps = g_array_new(FALSE, TRUE, sizeof(KvMeasuredStep));
  g_array_set_clear_func(steps, clear_step);
  return steps;
}

static gboolean same_case(const KvMeasuredStep *a, const KvMeasuredStep *b) {
  return strcmp(a->model, b->model) == 0 && strcmp(a->platform, b->platform) == 0 &&
         a->decode == b->decode && a->batch == b->batch && a->context_tokens == b->context_tokens &&
         a->tensor_parallel == b->tensor_parallel;
}

/* Our own JSON. */

/* The catalogue's id of a device that names itself as the driver does. */
static const char *device_id(const char *name) {
  static const struct {
    const char *name, *id;
  } known[] = {{"NVIDIA H200", "h200"}, {"NVIDIA H100 80GB HBM3", "h100-sxm"}};
  for (guint i = 0; i < G_N_ELEMENTS(known); i++)
    if (strcmp(name, known[i].name) == 0)
      return known[i].id;
  return name;
}

static gboolean read_json(GArray *steps, const char *path, const char *platform, GError **error) {
  static const char *const phases[] = {"decode", "prefill", NULL};
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  json_t *root = kv_json_root(json);
  json_t *list = json_is_array(root) ? root : kv_json_array(json, root, "steps", TRUE);
  const char *device =
      json_is_object(root) ? kv_json_string(json, root, "device", NULL, FALSE) : NULL;
  if (!platform && !device)
    kv_json_fail(json, root, NULL, "does not name its device, expected --platform");
  gsize index;
  json_t *row;
  json_array_foreach(list, index, row) {
    KvMeasuredStep step = {.tensor_parallel = 1};
    step.model = g_strdup(kv_json_string(json, row, "model", NULL, TRUE));
    step.platform = g_strdup(platform ? platform : device_id(device ? device : ""));
    step.decode = kv_json_choice(json, row, "phase", phases, 0) == 0;
    step.eager = !step.decode;
    step.batch = (guint)kv_json_integer(json, row, "batch", KV_JSON_REQUIRED, 1, 100000);
    step.context_tokens =
        (guint)kv_json_integer(json, row, "context", KV_JSON_REQUIRED, 1, 100000000);
    step.measured_seconds = kv_json_number(json, row, "us", KV_JSON_REQUIRED, 1e-3, 1e12) * 1e-6;
    KvMeasuredStep *last =
        steps->len ? &g_array_index(steps, KvMeasuredStep, steps->len - 1) : NULL;
    if (last && same_case(last, &step)) { /* another backend: the quicker counts */
      last->measured_seconds = MIN(last->measured_seconds, step.measured_seconds);
      clear_step(&step);
    } else {
      g_array_append_val(steps, step);
    }
  }
  return kv_json_finish(json, error);
}

/* Splitwise's CSV. */

typedef struct {
  KvMeasuredStep step;
  GArray *seconds;
} Repeats;

static void clear_repeats(gpointer data) {
  g_array_unref(((Repeats *)data)->seconds);
}

static gint compare_doubles(gconstpointer a, gconstpointer b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double quantile(GArray *values, double p) {
  g_array_sort(values, compare_doubles);
  double at = p * (values->len - 1.0);
  guint low = (guint)at;
  double from = g_array_index(values, double, low);
  double to = g_array_index(values, double, MIN(low + 1, values->len - 1));
  return from + (at - low) * (to - from);
}

static void add_repeat(GArray *cases, const KvMeasuredStep *step) {
  for (guint i = 0; i < cases->len; i++) {
    Repeats *known = &g_array_index(cases, Repeats, i);
    if (same_case(&known->step, step)) {
      g_array_append_val(known->seconds, step->measured_seconds);
      return;
    }
  }
  Repeats fresh = {*step, g_array_new(FALSE, FALSE, sizeof(double))};
  fresh.step.model = g_strdup(step->model);
  fresh.step.platform = g_strdup(step->platform);
  g_array_append_val(fresh.seconds, step->measured_seconds);
  g_array_append_val(cases, fresh);
}

/* Columns: model, hardware, prompt_size, batch_size, token_size, peak_power, average_power,
 * prompt_time, token_time, e2e_time, tensor_parallel; times in ms. A token's time is the mean over
 * its answer: the context half way through. */
static gboolean read_splitwise_row(GArray *cases, char **cell, const char *platform) {
  static const struct {
    const char *name, *id;
  } gpus[] = {{"a100-80gb", "8xa100-80gb"}, {"h100-80gb", "8xh100-sxm"}};
  KvMeasuredStep step = {.model = strcmp(cell[0], "llama2-70b") == 0 ? "llama-2-70b" : cell[0],
                         .platform = (char *)platform,
                         .eager = TRUE};
  for (guint i = 0; i < G_N_ELEMENTS(gpus) && !platform; i++)
    if (strcmp(cell[1], gpus[i].name) == 0)
      step.platform = (char *)gpus[i].id;
  double number[11];
  for (guint i = 2; i < 11; i++) {
    char *end;
    number[i] = g_ascii_strtod(cell[i], &end);
    if (end == cell[i] || !isfinite(number[i]) || number[i] < 0.0 || number[i] > 1e9)
      return FALSE;
  }
  if (!step.platform || number[2] < 1 || number[3] < 1 || number[10] < 1)
    return FALSE;
  step.batch = (guint)number[3];
  step.tensor_parallel = (guint)number[10];
  step.context_tokens = (guint)number[2];
  step.measured_seconds = number[7] * 1e-3;
  add_repeat(cases, &step);
  step.decode = TRUE;
  step.context_tokens = (guint)(number[2] + number[4] / 2.0);
  step.measured_seconds = number[8] * 1e-3;
  add_repeat(cases, &step);
  return TRUE;
}

static gboolean read_splitwise(GArray *steps, const char *path, const char *text,
                               const char *platform, GError **error) {
  g_autoptr(GArray) cases = g_array_new(FALSE, TRUE, sizeof(Repeats));
  g_array_set_clear_func(cases, clear_repeats);
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
  for (guint i = 1; lines[i]; i++) {
    g_auto(GStrv) cell = g_strsplit(g_strchomp(lines[i]), ",", -1);
    if (*lines[i] && (g_strv_length(cell) != 11 || !read_splitwise_row(cases, cell, platform))) {
      kv_error_at(error, path, i + 1,
                  "not a row of measured steps, expected 11 columns as the header");
      return FALSE;
    }
  }
  for (guint i = 0; i < cases->len; i++) {
    Repeats *one = &g_array_index(cases, Repeats, i);
    one->step.measured_seconds = quantile(one->seconds, 0.5);
    g_array_append_val(steps, one->step);
  }
  return TRUE;
}

/* Predicting. */

static gboolean predict_step(KvMeasuredStep *step, GError **error) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_autofree char *tp = g_strdup_printf("deployment.tensor_parallel=%u", step->tensor_parallel);
  g_free(scenario->model);
  scenario->model = g_strdup(step->model);
  g_free(scenario->platform);
  scenario->platform = g_strdup(step->platform);
  if (!kv_scenario_set(scenario, tp, error) ||
      (step->eager && !kv_scenario_set(scenario, "engine.cuda_graphs=false", error)))
    return FALSE;
  /* A decode step was replayed as one graph, whatever its size. */
  if (!step->eager && !kv_scenario_set(scenario, "engine.cuda_graph_max_tokens=100000", error))
    return FALSE;
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  KvStepQuestion question = {step->decode, step->batch, step->context_tokens, 0};
  KvPrediction prediction;
  if (!setup || !kv_predict(setup, &question, &prediction, error))
    return FALSE;
  step->predicted_seconds = prediction.cost.seconds;
  kv_prediction_clear(&prediction);
  step->group = step->tensor_parallel > 1
                    ? g_strdup_printf("%s on %s, TP %u, %s", step->model, step->platform,
                                      step->tensor_parallel, step->decode ? "decode" : "prefill")
                    : g_strdup_printf("%s on %s, %s", step->model, step->platform,
                                      step->decode ? "decode" : "prefill");
  return TRUE;
}

GArray *kv_measured_steps(const char *path, const char *platform, GError **error) {
  g_autoptr(GArray) steps = steps_new();
  g_autofree char *text = NULL;
  if (!g_file_get_contents(path, &text, NULL, NULL)) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: cannot be read, expected measured steps",
                path);
    return NULL;
  }
  gboolean csv = g_str_has_prefix(text, "model,hardware,");
  if (!(csv ? read_splitwise(steps, path, text, platform, error)
            : read_json(steps, path, platform, error)))
    return NULL;
  for (guint i = 0; i < steps->len; i++)
    if (!predict_step(&g_array_index(steps, KvMeasuredStep, i), error))
      return NULL;
  return g_steal_pointer(&steps);
}

/* Tables. */

static double error_of(const KvMeasuredStep *step) {
  return step->predicted_seconds / step->measured_seconds - 1.0;
}

static void add_summary(GString *table, const char *name, const GArray *steps, const char *group) {
  g_autoptr(GArray) sizes = g_array_new(FALSE, FALSE, sizeof(double));
  g_autoptr(GArray) signed_errors = g_array_new(FALSE, FALSE, sizeof(double));
  for (guint i = 0; i < steps->len; i++) {
    const KvMeasuredStep *step = &g_array_index(steps, KvMeasuredStep, i);
    if (group && strcmp(step->group, group) != 0)
      continue;
    double error = error_of(step), size = fabs(error);
    g_array_append_val(sizes, size);
    g_array_append_val(signed_errors, error);
  }
  if (sizes->len > 0)
    g_string_append_printf(table, "| %s | %u | %.1f %% | %.1f %% | %+.1f %% |\n", name, sizes->len,
                           100.0 * quantile(sizes, 0.5), 100.0 * quantile(sizes, 0.95),
                           100.0 * quantile(signed_errors, 0.5));
}

char *kv_measured_steps_table(const GArray *steps, gboolean each) {
  GString *table = g_string_new(NULL);
  if (each) {
    g_string_append(table, "| step | batch | context | measured ms | predicted ms | error |\n"
                           "|---|---:|---:|---:|---:|---:|\n");
    for (guint i = 0; i < steps->len; i++) {
      const KvMeasuredStep *s = &g_array_index(steps, KvMeasuredStep, i);
      g_string_append_printf(table, "| %s | %u | %u | %.3f | %.3f | %+.1f %% |\n", s->group,
                             s->batch, s->context_tokens, s->measured_seconds * 1e3,
                             s->predicted_seconds * 1e3, 100.0 * error_of(s));
    }
    g_string_append_c(table, '\n');
  }
  g_string_append(table, "| steps | n | median | p95 | bias |\n|---|---:|---:|---:|---:|\n");
  g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
  for (guint i = 0; i < steps->len; i++) {
    char *group = g_array_index(steps, KvMeasuredStep, i).group;
    if (g_hash_table_add(seen, group))
      add_summary(table, group, steps, group);
  }
  add_summary(table, "all", steps, NULL);
  return g_string_free(table, FALSE);
}
