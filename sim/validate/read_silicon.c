/* Rows of measured serving runs of many models and dates, from the same closed loop as
 * InferenceMAX: parallelism, nominal lengths, concurrency, mean TTFT and TPOT in ms. Source: the
 * silicon samples of github.com/ai-dynamo/aiconfigurator. Disaggregated rows are left out: nothing
 * here prices them. */
#include <math.h>
#include <string.h>

#include "sim/validate/closed_loop.h"
#include "sim/validate/kinds.h"
#include "traces/csv.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "silicon_data_source", "backend", "model_path", "system",
                          "silicon_ttft_ms", "silicon_tpot_ms", "concurrency", NULL);
}

static gboolean count(const KvCsv *csv, const char *name, guint *value, GError **error) {
  gint64 whole;
  if (!kv_csv_whole(csv, kv_csv_column(csv, name), 1, 100000000, &whole, error))
    return FALSE;
  *value = (guint)whole;
  return TRUE;
}

static const char *field(const KvCsv *csv, const char *name) {
  int column = kv_csv_column(csv, name);
  return column >= 0 ? csv->fields[column] : "";
}

static gboolean read_row(const KvCsv *csv, const char *place, const KvMeasuredOptions *options,
                         KvMeasuredRun *run, GError **error) {
  guint attention_gpus, expert_slices;
  KvClosedLoop loop = {.place = place,
                       .model = field(csv, "model_path"),
                       .device = field(csv, "system"),
                       .engine = field(csv, "backend"),
                       .precision = field(csv, "precision")};
  double ttft_ms, tpot_ms;
  if (!count(csv, "isl", &loop.input_tokens, error) ||
      !count(csv, "osl", &loop.output_tokens, error) ||
      !count(csv, "concurrency", &loop.concurrency, error) ||
      !count(csv, "tp_size", &loop.tensor_parallel, error) ||
      !count(csv, "moe_ep_size", &loop.expert_parallel, error) ||
      !count(csv, "moe_tp_size", &expert_slices, error) ||
      !count(csv, "attention_dp_size", &attention_gpus, error) ||
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
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return FALSE;
  g_autoptr(GError) problem = NULL;
  while (kv_csv_row(&csv, &problem)) {
    if (strcmp(field(&csv, "mode"), "agg") != 0)
      continue;
    KvMeasuredRun *run = kv_measured_run_new(kv_measured_silicon.id);
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

const KvMeasuredKind kv_measured_silicon = {
    .id = "silicon",
    .description = "closed-loop rows of measured servers (CSV of aiconfigurator)",
    .recognise = recognise,
    .read = read_runs,
};
