/* Our own measured runs: measured.json of `kvsim validate TRACE --executor cuda` (or host). */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/validate/kinds.h"

static gboolean recognise(const char *head, gsize length) {
  static const char opening[] = "{\"kvsim_measured\":";
  return length >= strlen(opening) && memcmp(head, opening, strlen(opening)) == 0;
}

/* Queue, TTFT, TPOT and E2E stand after the lengths and the arrival. */
static const KvLatency latencies[] = {KV_LATENCY_QUEUE, KV_LATENCY_TTFT, KV_LATENCY_TPOT,
                                      KV_LATENCY_E2E};
enum { N_BEFORE = 3, N_NUMBERS = N_BEFORE + G_N_ELEMENTS(latencies) };

static gboolean read_request(json_t *row, KvMeasuredRequest *request) {
  double numbers[N_NUMBERS];
  if (json_array_size(row) != N_NUMBERS)
    return FALSE;
  for (guint i = 0; i < N_NUMBERS; i++) {
    json_t *number = json_array_get(row, i);
    gboolean absent = i == N_BEFORE + 2 && json_is_null(number);
    if (!absent && (!json_is_number(number) || json_number_value(number) < 0.0))
      return FALSE;
    numbers[i] = absent ? NAN : json_number_value(number);
  }
  if (numbers[0] > G_MAXUINT32 || numbers[1] > G_MAXUINT32)
    return FALSE;
  *request = (KvMeasuredRequest){.input_tokens = (guint32)numbers[0],
                                 .output_tokens = (guint32)numbers[1],
                                 .arrival_seconds = numbers[2]};
  request->seconds[KV_LATENCY_ITL] = NAN;
  for (guint l = 0; l < G_N_ELEMENTS(latencies); l++)
    request->seconds[latencies[l]] = numbers[N_BEFORE + l];
  return TRUE;
}

static void read_requests(KvJson *json, json_t *root, KvMeasuredRun *run) {
  json_t *rows = kv_json_array(json, root, "requests", TRUE), *row;
  gsize index;
  run->requests = g_array_new(FALSE, TRUE, sizeof(KvMeasuredRequest));
  json_array_foreach(rows, index, row) {
    KvMeasuredRequest request;
    if (!read_request(row, &request)) {
      kv_json_fail(json, row, NULL,
                   "request %u is none, expected [prompt tokens, output tokens, arrival, queue, "
                   "TTFT, TPOT or null, E2E]",
                   (guint)index);
      return;
    }
    g_array_append_val(run->requests, request);
  }
}

static gboolean read_scenario(KvMeasuredRun *run, const char *path, json_t *scenario,
                              const KvMeasuredOptions *options, GError **error) {
  char *text = json_dumps(scenario, JSON_COMPACT | JSON_REAL_PRECISION(17));
  gboolean parsed = kv_scenario_parse(run->scenario, path, text, strlen(text), error);
  free(text);
  /* The reference engine's clock is the GPU's: no host's time lies between its steps. */
  run->scenario->engine.between_steps_seconds = 0.0;
  run->scenario->engine.as_executed = TRUE;
  if (parsed && options->platform) {
    g_free(run->scenario->platform);
    run->scenario->platform = g_strdup(options->platform);
  }
  return parsed;
}

static gboolean fill(KvMeasuredRun *run, const char *path, const KvMeasuredOptions *options,
                     GError **error) {
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  json_t *root = kv_json_root(json);
  const char *executor = kv_json_string(json, root, "executor", "", TRUE);
  const char *trace = kv_json_string(json, root, "trace", "", TRUE);
  json_t *scenario = kv_json_object(json, root, "scenario", TRUE);
  read_requests(json, root, run);
  if (!kv_json_finish(json, error) || !read_scenario(run, path, scenario, options, error))
    return FALSE;
  if (!(run->trace = kv_measured_find_trace(trace, path, options))) {
    kv_error_at(error, path, 0,
                "its trace '%s' was not found, expected it beside the file (or "
                "--traces DIR)",
                trace);
    return FALSE;
  }
  kv_measured_rates(run->requests, run->rate);
  run->group = g_strdup_printf("%s, %s, %s executor", run->scenario->model, run->scenario->platform,
                               executor);
  run->name = g_strdup_printf("%s on %s, %s executor, %s", run->scenario->model,
                              run->scenario->platform, executor, trace);
  return TRUE;
}

static gboolean read_run(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                         GError **error) {
  KvMeasuredRun *run = kv_measured_run_new(kv_measured_reference.id);
  run->source = g_strdup(path);
  if (!fill(run, path, options, error)) {
    kv_measured_run_free(run);
    return FALSE;
  }
  g_ptr_array_add(runs, run);
  return TRUE;
}

const KvMeasuredKind kv_measured_reference = {
    .id = "reference",
    .description = "a run of the reference engine (measured.json of `kvsim validate TRACE`)",
    .recognise = recognise,
    .read = read_run,
};
