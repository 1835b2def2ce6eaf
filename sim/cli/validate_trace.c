#include "sim/cli/validate_trace.h"

#include <math.h>
#include <stdio.h>

#include "sim/base/error.h"
#include "sim/cli/cli.h"
#include "sim/validate/answers.h"
#include "sim/validate/reference_run.h"
#include "viz/plots_validate.h"

/* Everything that is compared. */
typedef struct {
  const KvReferenceRun *reference;
  const KvComparison *comparison;
  const KvAnswers *quality; /* or NULL */
} Compared;

static void print_time(KvOutput *output, double seconds) {
  if (isfinite(seconds))
    kv_output_print(output, ",%.9f", seconds);
  else
    kv_output_print(output, ",");
}

/* requests.csv: a row a request, measured beside predicted. */
static gboolean write_requests(const Compared *c, const char *path, GError **error) {
  static const KvLatency latencies[] = {KV_LATENCY_QUEUE, KV_LATENCY_TTFT, KV_LATENCY_TPOT,
                                        KV_LATENCY_E2E};
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return FALSE;
  kv_output_print(output, "index,input_tokens,output_tokens");
  for (guint l = 0; l < G_N_ELEMENTS(latencies); l++)
    kv_output_print(output, ",measured_%s_seconds,predicted_%s_seconds",
                    kv_latency_names[latencies[l]], kv_latency_names[latencies[l]]);
  kv_output_print(output, "\n");
  const GArray *measured = c->reference->run->requests, *predicted = c->comparison->requests;
  for (guint i = 0; i < MIN(measured->len, predicted->len); i++) {
    const KvMeasuredRequest *m = &g_array_index(measured, KvMeasuredRequest, i);
    const KvMeasuredRequest *p = &g_array_index(predicted, KvMeasuredRequest, i);
    kv_output_print(output, "%u,%u,%u", i, m->input_tokens, m->output_tokens);
    for (guint l = 0; l < G_N_ELEMENTS(latencies); l++) {
      print_time(output, m->seconds[latencies[l]]);
      print_time(output, p->seconds[latencies[l]]);
    }
    kv_output_print(output, "\n");
  }
  return kv_output_commit(output, error);
}

static gboolean write_scenario(const KvScenario *scenario, const char *path, GError **error) {
  json_t *json = kv_scenario_to_json(scenario);
  char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  json_decref(json);
  g_autofree char *line = g_strconcat(text, "\n", NULL);
  free(text);
  return kv_output_write_file(path, line, -1, error);
}

static gboolean write_directory(KvRunDirectory *directory, const KvScenario *scenario,
                                const Compared *c, GError **error) {
  g_autofree char *of_scenario = kv_run_directory_file(directory, "scenario.json");
  g_autofree char *of_steps = kv_run_directory_file(directory, "steps.csv");
  g_autofree char *of_run = kv_run_directory_file(directory, "measured.json");
  g_autofree char *of_requests = kv_run_directory_file(directory, "requests.csv");
  g_autofree char *of_quality = kv_run_directory_file(directory, "quality.json");
  g_autoptr(GPtrArray) comparisons = g_ptr_array_new();
  g_autoptr(GPtrArray) logs = g_ptr_array_new();
  g_ptr_array_add(comparisons, (gpointer)c->comparison);
  g_ptr_array_add(logs, c->reference->log);
  return write_scenario(scenario, of_scenario, error) &&
         kv_step_log_write(c->reference->log, of_steps, error) &&
         kv_reference_run_write(c->reference, of_run, error) &&
         write_requests(c, of_requests, error) &&
         (!c->quality || kv_answers_write(c->quality, of_quality, error)) &&
         kv_validate_report_write(directory, comparisons, logs, error);
}

static void print(const Compared *c, const KvValidateTrace *asked) {
  if (asked->as_json) {
    json_t *root = json_pack("{s:o, s:o}", "operations", kv_step_log_to_json(c->reference->log),
                             "run", kv_comparison_to_json(c->comparison));
    if (c->quality)
      json_object_set_new(root, "quality", kv_answers_to_json(c->quality));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    puts(text);
    free(text);
    json_decref(root);
    return;
  }
  g_autofree char *steps = kv_step_log_table(c->reference->log, asked->each);
  g_autofree char *run = kv_comparison_table(c->comparison);
  printf("%s\n%s", steps, run);
  if (c->quality) {
    g_autofree char *quality = kv_answers_table(c->quality);
    printf("\n%s", quality);
  }
  if (asked->directory)
    printf("\nreport: %s/report.html\n", asked->directory);
}

gboolean kv_validate_trace(const KvValidateTrace *asked, GError **error) {
  if (asked->quality && !kv_answers_check(asked->scenario, error))
    return FALSE;
  g_autoptr(KvRunDirectory) directory =
      asked->directory ? kv_run_directory_begin(asked->directory, error) : NULL;
  if (asked->directory && !directory)
    return FALSE;
  g_autofree char *of_outputs =
      directory ? kv_run_directory_file(directory, "outputs.jsonl") : NULL;
  g_autoptr(KvOutput) file = of_outputs ? kv_output_open(of_outputs, error) : NULL;
  if (of_outputs && !file)
    return FALSE;
  g_autoptr(KvOutputs) outputs = file ? kv_outputs_new(file) : NULL;
  KvReferenceOptions options = {.trace = asked->trace,
                                .format = asked->format,
                                .pace_wall = asked->pace_wall,
                                .outputs = outputs,
                                .interrupted = &kv_interrupted};
  g_autoptr(KvReferenceRun) reference = kv_reference_run_new(asked->scenario, &options, error);
  if (!reference || (file && !kv_output_commit(g_steal_pointer(&file), error)))
    return FALSE;
  g_autoptr(KvComparison) comparison = kv_comparison_new(reference->run, &kv_interrupted, error);
  if (!comparison || !kv_step_log_price(reference->log, error))
    return FALSE;
  g_autoptr(KvAnswers) quality =
      asked->quality ? kv_answers_new(asked->scenario, asked->trace, asked->format, error) : NULL;
  if (asked->quality && !quality)
    return FALSE;
  Compared compared = {reference, comparison, quality};
  if (directory && (!write_directory(directory, asked->scenario, &compared, error) ||
                    !kv_run_directory_commit(g_steal_pointer(&directory), error)))
    return FALSE;
  print(&compared, asked);
  return TRUE;
}
