#include "sim/validate/reference_run.h"

#include <math.h>
#include <string.h>

#include "reference/cuda/monitor.h"
#include "sim/base/error.h"
#include "sim/validate/logged_executor.h"
#include "traces/transform.h"

/* Host time to launch one kernel from C, and an event after it: a launch on a stream takes 4.3 us
 * (reference/measured/h200/ceilings.json), an event about as long as a third of it (an estimate).
 */
static const double launch_seconds = 5.7e-6;

typedef struct {
  KvReferenceRun *reference;
  const KvReferenceOptions *options;
} Serving;

static KvExecutor *listen(KvExecutor *real, gpointer user) {
  return kv_logged_executor_new(real, ((Serving *)user)->reference->log);
}

static void note_generated(guint64 index, const guint32 *tokens, guint n, gpointer user) {
  KvOutputs *outputs = ((Serving *)user)->options->outputs;
  if (outputs)
    kv_outputs_generated(outputs, index, tokens, n);
}

static void note_left(const KvSequence *s, gpointer user) {
  const Serving *serving = user;
  GArray *requests = serving->reference->run->requests;
  if (serving->options->outputs)
    kv_outputs_left(serving->options->outputs, s);
  if (s->scheduled_seconds < 0.0) /* rejected, and so in the simulation */
    return;
  if (s->index >= requests->len)
    g_array_set_size(requests, (guint)s->index + 1);
  kv_measured_request_of(s, FALSE, &g_array_index(requests, KvMeasuredRequest, s->index));
}

/* What the simulator is told: everything resolved, by way of its own text so that nothing which a
 * technique has noted is left in it. */
static KvScenario *scenario_to_simulate(const KvSetup *setup, GError **error) {
  json_t *json = kv_scenario_to_json(setup->scenario);
  char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(17));
  json_decref(json);
  g_autoptr(KvScenario) s = kv_scenario_new();
  gboolean parsed = kv_scenario_parse(s, "scenario", text, strlen(text), error);
  free(text);
  if (!parsed)
    return NULL;
  g_free(s->executor);
  s->executor = g_strdup("model");
  s->engine.num_blocks = setup->memory.blocks;
  s->engine.step_gap_seconds = 0.0;
  s->engine.between_steps_seconds = 0.0;
  s->engine.per_sequence_seconds = 0.0;
  s->engine.eager_kernel_seconds = launch_seconds;
  s->engine.cuda_graph_prompts = FALSE;
  s->engine.as_executed = TRUE;
  return g_steal_pointer(&s);
}

static gboolean serve(KvReferenceRun *reference, const KvSetup *setup,
                      const KvReferenceOptions *options, GError **error) {
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(options->trace, options->format, error);
  if (reader && setup->scenario->smear_seconds > 0.0)
    reader = kv_trace_smear(g_steal_pointer(&reader), setup->scenario->smear_seconds,
                            setup->scenario->seed, error);
  if (!reader)
    return FALSE;
  Serving serving = {reference, options};
  KvSimulateOptions simulate = {.left = note_left,
                                .generated = note_generated,
                                .wrap = listen,
                                .pace_wall = options->pace_wall,
                                .user = &serving,
                                .interrupted = options->interrupted};
  gboolean on_gpu = strcmp(setup->scenario->executor, "cuda") == 0;
  KvGpuMonitor *monitor = on_gpu ? kv_gpu_monitor_start() : NULL;
  g_autoptr(KvSummary) summary = kv_simulate(setup, reader, &simulate, error);
  reference->log->gpu = kv_gpu_monitor_stop(monitor);
  return summary != NULL;
}

static void name_run(KvReferenceRun *reference, const KvSetup *setup, const char *trace) {
  KvMeasuredRun *run = reference->run;
  run->source = g_strdup(trace);
  run->trace = g_strdup(trace);
  run->group = g_strdup_printf("%s, %s, %s executor", setup->model->id, setup->platform->id,
                               setup->scenario->executor);
  g_autofree char *base = g_path_get_basename(trace);
  run->name = g_strdup_printf("%s on %s, %s executor, %s", setup->model->id, setup->platform->id,
                              setup->scenario->executor, base);
  kv_measured_rates(run->requests, run->rate);
}

KvReferenceRun *kv_reference_run_new(const KvScenario *scenario, const KvReferenceOptions *options,
                                     GError **error) {
  if (strcmp(scenario->executor, "model") == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "executor 'model' measures nothing, expected --executor cuda or host");
    return NULL;
  }
  if (strcmp(options->trace, "-") == 0) { /* it is read twice */
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "validate: a trace from standard input, expected a file: it is served twice");
    return NULL;
  }
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, TRUE, error);
  if (!setup)
    return NULL;
  g_autoptr(KvReferenceRun) reference = g_new0(KvReferenceRun, 1);
  reference->pace = g_strdup(options->pace_wall ? "wall" : "virtual");
  reference->log = kv_step_log_new(scenario->executor);
  reference->run = kv_measured_run_new("reference");
  reference->run->requests = g_array_new(FALSE, TRUE, sizeof(KvMeasuredRequest));
  kv_scenario_free(reference->run->scenario);
  if (!(reference->run->scenario = scenario_to_simulate(setup, error)) ||
      !serve(reference, setup, options, error))
    return NULL;
  reference->log->scenario = kv_scenario_copy(reference->run->scenario);
  name_run(reference, setup, options->trace);
  return g_steal_pointer(&reference);
}

void kv_reference_run_free(KvReferenceRun *reference) {
  if (!reference)
    return;
  kv_measured_run_free(reference->run);
  kv_step_log_free(reference->log);
  g_free(reference->pace);
  g_free(reference);
}

static void write_requests(const GArray *requests, KvOutput *output) {
  for (guint i = 0; i < requests->len; i++) {
    const KvMeasuredRequest *r = &g_array_index(requests, KvMeasuredRequest, i);
    g_autofree char *tpot = isfinite(r->seconds[KV_LATENCY_TPOT])
                                ? g_strdup_printf("%.9f", r->seconds[KV_LATENCY_TPOT])
                                : g_strdup("null");
    kv_output_print(output, "%s\n  [%u, %u, %.6f, %.9f, %.9f, %s, %.9f]", i ? "," : "",
                    r->input_tokens, r->output_tokens, r->arrival_seconds,
                    r->seconds[KV_LATENCY_QUEUE], r->seconds[KV_LATENCY_TTFT], tpot,
                    r->seconds[KV_LATENCY_E2E]);
  }
}

gboolean kv_reference_run_write(const KvReferenceRun *reference, const char *path, GError **error) {
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return FALSE;
  g_autoptr(GDateTime) now = g_date_time_new_now_utc();
  g_autofree char *date = g_date_time_format(now, "%Y-%m-%d");
  g_autofree char *base = g_path_get_basename(reference->run->trace);
  json_t *head = json_pack("{s:i, s:s, s:s, s:s, s:s, s:o}", "kvsim_measured", 1, "executor",
                           reference->log->executor, "pace", reference->pace, "date", date, "trace",
                           base, "scenario", kv_scenario_to_json(reference->run->scenario));
  if (reference->log->gpu)
    json_object_set(head, "gpu", reference->log->gpu);
  char *text = json_dumps(head, JSON_COMPACT | JSON_REAL_PRECISION(12));
  json_decref(head);
  kv_output_print(output, "%.*s,\n \"requests\": [", (int)strlen(text) - 1, text);
  free(text);
  write_requests(reference->run->requests, output);
  kv_output_print(output, "\n ]}\n");
  return kv_output_commit(output, error);
}
