/* InferenceMAX result rows: a closed loop of `conc` requests, 10 x conc prompts in all, both
 * lengths uniform in [0.8, 1] times nominal, random tokens; latencies in seconds, rates per GPU.
 * Source: github.com/SemiAnalysisAI/InferenceX (formerly InferenceMAX), utils/process_result.py;
 * the servers' settings are those of its launch scripts of autumn 2025. */
#include <string.h>

#include "sim/validate/closed_loop.h"
#include "sim/validate/kinds.h"
#include "sim/validate/rows.h"

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

static gboolean read_row(const KvCsv *csv, const KvMeasuredOptions *options, KvMeasuredRun *run,
                         GError **error) {
  KvClosedLoop loop = {.place = run->source,
                       .model = kv_row_text(csv, "model"),
                       .device = kv_row_text(csv, "hw"),
                       .engine = kv_row_text(csv, "framework"),
                       .precision = kv_row_text(csv, "precision")};
  if (!kv_row_count(csv, "isl", &loop.input_tokens, error) ||
      !kv_row_count(csv, "osl", &loop.output_tokens, error) ||
      !kv_row_count(csv, "conc", &loop.concurrency, error) ||
      !kv_row_count(csv, "tp", &loop.tensor_parallel, error))
    return FALSE;
  if (*kv_row_text(csv, "ep") && !kv_row_count(csv, "ep", &loop.expert_parallel, error))
    return FALSE;
  loop.attention_parallel = strcmp(kv_row_text(csv, "dp_attention"), "true") == 0;
  if (!kv_closed_loop_fill(&loop, run, options, error))
    return FALSE;
  for (guint i = 0; i < G_N_ELEMENTS(columns); i++)
    if (*kv_row_text(csv, columns[i].column) &&
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
    if (*kv_row_text(csv, rates[i].column) &&
        !kv_csv_number(csv, kv_csv_column(csv, rates[i].column), 0, 1e12, rate, error))
      return FALSE;
    *rate *= loop.tensor_parallel;
  }
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  return kv_rows_read(path, kv_measured_inferencemax.id, NULL, NULL, read_row, options, runs,
                      error);
}

const KvMeasuredKind kv_measured_inferencemax = {
    .id = "inferencemax",
    .description = "closed-loop rows of InferenceMAX (CSV)",
    .recognise = recognise,
    .read = read_runs,
};
