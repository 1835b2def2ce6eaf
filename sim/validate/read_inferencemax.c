/* InferenceMAX result rows: a closed loop of `conc` requests, 10 x conc prompts in all, both
 * lengths uniform in [0.8, 1] times nominal, random tokens; latencies in seconds, rates per GPU.
 * Source: github.com/SemiAnalysisAI/InferenceX (formerly InferenceMAX), utils/process_result.py;
 * the servers' settings are those of its launch scripts of autumn 2025. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/validate/closed_loop.h"
#include "sim/validate/kinds.h"
#include "traces/csv.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "isl", "osl", "hw", "tp", "conc", "framework", "mean_ttft",
                          "mean_tpot", NULL);
}

static const struct {
  const char *column;
  KvLatency latency;
  KvStatistic statistic;
} columns[] = {
    {"mean_ttft", KV_LATENCY_TTFT, KV_STATISTIC_MEAN},
    {"median_ttft", KV_LATENCY_TTFT, KV_STATISTIC_P50},
    {"p99_ttft", KV_LATENCY_TTFT, KV_STATISTIC_P99},
    {"mean_tpot", KV_LATENCY_TPOT, KV_STATISTIC_MEAN},
    {"median_tpot", KV_LATENCY_TPOT, KV_STATISTIC_P50},
    {"p99_tpot", KV_LATENCY_TPOT, KV_STATISTIC_P99},
    {"mean_e2el", KV_LATENCY_E2E, KV_STATISTIC_MEAN},
    {"median_e2el", KV_LATENCY_E2E, KV_STATISTIC_P50},
    {"p99_e2el", KV_LATENCY_E2E, KV_STATISTIC_P99},
};

static const char *field(const KvCsv *csv, const char *name) {
  int column = kv_csv_column(csv, name);
  return column >= 0 ? csv->fields[column] : "";
}

static gboolean count(const KvCsv *csv, const char *name, guint *value, GError **error) {
  gint64 whole;
  if (!kv_csv_whole(csv, kv_csv_column(csv, name), 1, 100000000, &whole, error))
    return FALSE;
  *value = (guint)whole;
  return TRUE;
}

static gboolean read_row(const KvCsv *csv, const char *place, const KvMeasuredOptions *options,
                         KvMeasuredRun *run, GError **error) {
  KvClosedLoop loop = {.place = place,
                       .model = field(csv, "model"),
                       .device = field(csv, "hw"),
                       .engine = field(csv, "framework"),
                       .precision = field(csv, "precision")};
  if (!count(csv, "isl", &loop.input_tokens, error) ||
      !count(csv, "osl", &loop.output_tokens, error) ||
      !count(csv, "conc", &loop.concurrency, error) ||
      !count(csv, "tp", &loop.tensor_parallel, error))
    return FALSE;
  if (*field(csv, "ep") && !count(csv, "ep", &loop.expert_parallel, error))
    return FALSE;
  loop.attention_parallel = strcmp(field(csv, "dp_attention"), "true") == 0;
  if (!kv_closed_loop_fill(&loop, run, options, error))
    return FALSE;
  for (guint i = 0; i < G_N_ELEMENTS(columns); i++)
    if (*field(csv, columns[i].column) &&
        !kv_csv_number(csv, kv_csv_column(csv, columns[i].column), 0, 1e6,
                       &run->latency[columns[i].latency][columns[i].statistic], error))
      return FALSE;
  static const struct {
    const char *column;
    KvRate rate;
  } rates[] = {{"tput_per_gpu", KV_RATE_TOTAL_TOKENS},
               {"output_tput_per_gpu", KV_RATE_OUTPUT_TOKENS}};
  for (guint i = 0; i < G_N_ELEMENTS(rates); i++) {
    double *rate = &run->rate[rates[i].rate];
    if (*field(csv, rates[i].column) &&
        !kv_csv_number(csv, kv_csv_column(csv, rates[i].column), 0, 1e12, rate, error))
      return FALSE;
    *rate *= loop.tensor_parallel;
  }
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return FALSE;
  g_autoptr(GError) problem = NULL;
  while (kv_csv_row(&csv, &problem)) {
    KvMeasuredRun *run = kv_measured_run_new(kv_measured_inferencemax.id);
    run->source =
        g_strdup_printf("%s:%" G_GUINT64_FORMAT, path, kv_trace_stream_line_number(stream));
    if (!read_row(&csv, run->source, options, run, &problem)) {
      kv_measured_run_free(run);
      break;
    }
    g_ptr_array_add(runs, run);
  }
  kv_csv_clear(&csv);
  if (problem)
    g_propagate_error(error, g_steal_pointer(&problem));
  return !(error && *error);
}

const KvMeasuredKind kv_measured_inferencemax = {
    .id = "inferencemax",
    .description = "closed-loop rows of InferenceMAX (CSV)",
    .recognise = recognise,
    .read = read_runs,
};
