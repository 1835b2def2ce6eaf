/* Rows of measured serving runs of many models and dates, from the same closed loop as
 * InferenceMAX: parallelism, nominal lengths, concurrency, mean TTFT and TPOT in ms. Source: the
 * silicon samples of github.com/ai-dynamo/aiconfigurator. Disaggregated rows are left out: nothing
 * here prices them. */
#include <string.h>

#include "sim/validate/closed_loop.h"
#include "sim/validate/kinds.h"
#include "sim/validate/rows.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "silicon_data_source", "backend", "model_path", "system",
                          "silicon_ttft_ms", "silicon_tpot_ms", "concurrency", NULL);
}

static gboolean read_row(const KvCsv *csv, const KvMeasuredOptions *options, KvMeasuredRun *run,
                         GError **error) {
  guint attention_gpus, expert_slices;
  KvClosedLoop loop = {.place = run->source,
                       .model = kv_row_text(csv, "model_path"),
                       .device = kv_row_text(csv, "system"),
                       .engine = kv_row_text(csv, "backend"),
                       .precision = kv_row_text(csv, "precision")};
  double ttft_ms, tpot_ms;
  if (!kv_row_count(csv, "isl", &loop.input_tokens, error) ||
      !kv_row_count(csv, "osl", &loop.output_tokens, error) ||
      !kv_row_count(csv, "concurrency", &loop.concurrency, error) ||
      !kv_row_count(csv, "tp_size", &loop.tensor_parallel, error) ||
      !kv_row_count(csv, "moe_ep_size", &loop.expert_parallel, error) ||
      !kv_row_count(csv, "moe_tp_size", &expert_slices, error) ||
      !kv_row_count(csv, "attention_dp_size", &attention_gpus, error) ||
      !kv_csv_number(csv, kv_csv_column(csv, "silicon_ttft_ms"), 0, 1e9, &ttft_ms, error) ||
      !kv_csv_number(csv, kv_csv_column(csv, "silicon_tpot_ms"), 0, 1e9, &tpot_ms, error))
    return FALSE;
  loop.attention_parallel = attention_gpus > 1;
  /* Where attention is data-parallel, the GPUs are those of the experts. Rows of more GPUs than a
   * node has repeat, to the last digit, figures of expert_parallel GPUs: they multiply one group
   * twice. */
  if (loop.attention_parallel) {
    guint gpus = expert_slices * loop.expert_parallel;
    loop.tensor_parallel = gpus > 8 ? loop.expert_parallel : gpus;
  }
  if (!kv_closed_loop_fill(&loop, run, options, error))
    return FALSE;
  run->latency[KV_LATENCY_TTFT][KV_STATISTIC_MEAN] = ttft_ms * 1e-3;
  run->latency[KV_LATENCY_TPOT][KV_STATISTIC_MEAN] = tpot_ms * 1e-3;
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  return kv_rows_read(path, kv_measured_silicon.id, "mode", "agg", read_row, options, runs, error);
}

const KvMeasuredKind kv_measured_silicon = {
    .id = "silicon",
    .description = "closed-loop rows of measured servers (CSV of aiconfigurator)",
    .recognise = recognise,
    .read = read_runs,
};
