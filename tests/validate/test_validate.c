/* Measured runs: what readers make of the files, what a comparison says, and that the predictions
 * of a few transcribed figures stay as good as they are. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/validate/comparison.h"

static char *data(const char *name) {
  return g_build_filename(g_getenv("KVSIM_TEST_DATA"), name, NULL);
}

static GPtrArray *read_all(const char *name) {
  g_autofree char *path = data(name);
  GPtrArray *runs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_measured_run_free);
  KvMeasuredOptions options = {0};
  GError *error = NULL;
  kv_measured_read(path, &options, runs, &error);
  g_assert_no_error(error);
  return runs;
}

static void test_log(void) {
  g_autoptr(GPtrArray) runs = read_all("log");
  g_assert_cmpuint(runs->len, ==, 1);
  const KvMeasuredRun *run = g_ptr_array_index(runs, 0);
  g_assert_cmpstr(run->scenario->model, ==, "llama-3.1-8b");
  g_assert_cmpstr(run->scenario->platform, ==, "rtx-4090");
  g_assert_cmpuint(run->scenario->engine.max_seqs, ==, 256);
  g_assert_cmpuint(run->scenario->engine.num_blocks, ==, 2587);
  g_assert_cmpuint(run->requests->len, ==, 4);
  /* In the order of the trace, not of the file. */
  const KvMeasuredRequest *first = &g_array_index(run->requests, KvMeasuredRequest, 0);
  g_assert_cmpuint(first->input_tokens, ==, 512);
  g_assert_cmpfloat_with_epsilon(first->seconds[KV_LATENCY_TTFT], 0.08, 1e-9);
  g_assert_cmpfloat_with_epsilon(first->seconds[KV_LATENCY_TPOT], 0.52 / 39.0, 1e-9);
  g_assert_cmpfloat_with_epsilon(first->seconds[KV_LATENCY_E2E], 0.6, 1e-9);
  /* One token has no time between tokens. */
  g_assert_true(isnan(g_array_index(run->requests, KvMeasuredRequest, 3).seconds[KV_LATENCY_TPOT]));
  g_assert_cmpfloat_with_epsilon(run->rate[KV_RATE_MAKESPAN], 0.83, 1e-9);
  g_assert_cmpuint(run->levels->len, ==, 2);
}

static void test_comparison(void) {
  g_autoptr(GPtrArray) runs = read_all("log");
  GError *error = NULL;
  g_autoptr(KvComparison) c = kv_comparison_new(g_ptr_array_index(runs, 0), NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(c->requests->len, ==, 4);
  g_assert_cmpfloat(c->agreement[KV_LATENCY_E2E].ks, >=, 0.0);
  g_assert_cmpfloat(c->agreement[KV_LATENCY_E2E].ks, <=, 1.0);
  g_assert_true(isnan(c->agreement[KV_LATENCY_ITL].ks));
  const KvComparisonRow *row = NULL;
  for (guint i = 0; i < c->rows->len && !row; i++) {
    const KvComparisonRow *at = &g_array_index(c->rows, KvComparisonRow, i);
    if (strcmp(at->metric, "ttft") == 0 && strcmp(at->statistic, "p50") == 0)
      row = at;
  }
  g_assert_nonnull(row);
  /* 0.06, 0.08, 0.12 and 0.13: halfway between the middle ones. */
  g_assert_cmpfloat_with_epsilon(row->measured, 0.1, 1e-6);
  json_t *json = kv_comparison_to_json(c);
  g_assert_cmpstr(json_string_value(json_object_get(json, "kind")), ==, "vllm-log");
  json_decref(json);
}

/* A trace that is not this log's is refused, and said. */
static void test_other_trace(void) {
  g_autoptr(GPtrArray) runs = read_all("log");
  KvMeasuredRun *run = g_ptr_array_index(runs, 0);
  g_array_index(run->requests, KvMeasuredRequest, 2).input_tokens = 999;
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_comparison_new(run, NULL, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_nonnull(strstr(error->message, "request 2 has 999 and 30 tokens"));
}

static void test_names(void) {
  g_assert_cmpstr(kv_measured_model("Qwen/Qwen3-30B-A3B-Instruct-2507"), ==, "qwen3-30b-a3b");
  g_assert_cmpstr(kv_measured_model("deepseek-ai/DeepSeek-R1-0528"), ==, "deepseek-r1");
  g_assert_cmpstr(kv_measured_device("RTXPRO6000"), ==, "rtx-pro-6000-server");
  g_assert_cmpstr(kv_measured_device("h200-trt"), ==, "h200");
  g_assert_cmpstr(kv_measured_device("b200_sxm"), ==, "b200");
  g_assert_null(kv_measured_model("no-such-model"));
}

static void test_closed_loop(void) {
  g_autoptr(GPtrArray) runs = read_all("inferencemax.csv");
  g_assert_cmpuint(runs->len, ==, 1);
  const KvMeasuredRun *run = g_ptr_array_index(runs, 0);
  g_assert_cmpuint(run->scenario->concurrency, ==, 64);
  g_assert_cmpuint(run->scenario->engine.max_seqs, ==, 64);
  g_assert_false(run->scenario->engine.prefix_caching);
  g_assert_cmpuint(run->scenario->weight_dtype, ==, 1 + KV_DTYPE_FP8);
  g_assert_cmpfloat_with_epsilon(run->rate[KV_RATE_OUTPUT_TOKENS], 2619.14, 1e-9);
  guint lines = 0; /* a header and 10 x 64 requests */
  for (const char *at = run->workload; *at; at++)
    lines += *at == '\n';
  g_assert_cmpuint(lines, ==, 641);
}

static void test_rate_sweep(void) {
  g_autoptr(GPtrArray) runs = read_all("inference_perf_kubecon2025");
  g_assert_cmpuint(runs->len, ==, 1);
  const KvMeasuredRun *run = g_ptr_array_index(runs, 0);
  g_assert_cmpstr(run->kind, ==, "inference-perf");
  g_assert_cmpstr(run->scenario->model, ==, "llama-3.1-8b");
  g_assert_cmpstr(run->scenario->platform, ==, "h100-sxm");
  g_assert_cmpuint(run->scenario->engine.max_seqs, ==, 128);
  g_assert_cmpuint(run->scenario->concurrency, ==, 440);
  g_assert_cmpint(run->scenario->arrivals, ==, KV_ARRIVE_LIMITED);
  /* From the two other latencies, over the 63 gaps of 64 tokens. */
  g_assert_cmpfloat_with_epsilon(run->latency[KV_LATENCY_TPOT][KV_STATISTIC_MEAN],
                                 (run->latency[KV_LATENCY_E2E][KV_STATISTIC_MEAN] -
                                  run->latency[KV_LATENCY_TTFT][KV_STATISTIC_MEAN]) /
                                     63.0,
                                 1e-12);
  guint lines = 0;
  for (const char *at = run->workload; *at; at++)
    lines += *at == '\n';
  g_assert_cmpuint(lines, ==, 5532);
  /* The last of 5531 requests at 92.19/s. */
  g_assert_nonnull(strstr(run->workload, "{\"timestamp\":59995.661,\"input_length\":204,"
                                         "\"output_length\":64}\n"));
}

static void test_multi_round(void) {
  g_autoptr(GPtrArray) runs = read_all("multi_round.csv");
  g_assert_cmpuint(runs->len, ==, 3); /* of a deployment that nothing is known of: none */
  const KvMeasuredRun *first = g_ptr_array_index(runs, 0), *second = g_ptr_array_index(runs, 1),
                      *naive = g_ptr_array_index(runs, 2);
  g_assert_cmpstr(first->scenario->platform, ==, "8xa100-80gb");
  g_assert_cmpstr(first->scenario->engine.router, ==, "session");
  g_assert_cmpuint(first->scenario->tier, ==, 1);
  g_assert_true(first->scenario->engine.tier_only);
  g_assert_cmpstr(naive->scenario->engine.router, ==, "connection");
  g_assert_cmpuint(naive->scenario->tier, ==, 0);
  /* By launch, behind the warm-up; the next rate behind both. */
  g_assert_cmpuint(first->requests->len, ==, 2);
  g_assert_cmpfloat(g_array_index(first->requests, KvMeasuredRequest, 0).seconds[KV_LATENCY_TTFT],
                    ==, 2.0);
  g_assert_cmpuint(first->warm_requests, ==, 400);
  g_assert_cmpuint(second->warm_requests, ==, 402);
  g_assert_true(g_str_has_prefix(second->workload, first->workload));
  g_assert_cmpfloat_with_epsilon(first->rate[KV_RATE_MAKESPAN], 3.61, 1e-9);
  GError *error = NULL;
  g_autoptr(KvComparison) c = kv_comparison_new(second, NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(c->requests->len, ==, 1);
  /* His second question finds the first conversation in DRAM. */
  double ttft = g_array_index(c->requests, KvMeasuredRequest, 0).seconds[KV_LATENCY_TTFT];
  g_assert_cmpfloat(ttft, >, 0.15);
  g_assert_cmpfloat(ttft, <, 0.35);
}

/* So that accuracy cannot be lost unseen: the largest error allowed is the present one and a
 * little.
 */
static void check_accuracy(const char *name, const char *metric, double most) {
  g_autoptr(GPtrArray) runs = read_all(name);
  GError *error = NULL;
  g_autoptr(KvComparison) c = kv_comparison_new(g_ptr_array_index(runs, 0), NULL, &error);
  g_assert_no_error(error);
  for (guint i = 0; i < c->rows->len; i++) {
    const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, i);
    if (strcmp(row->metric, metric) != 0 ||
        (*row->statistic && strcmp(row->statistic, "mean") != 0))
      continue;
    g_test_message("%s %s: %.4g measured, %.4g predicted", name, metric, row->measured,
                   row->predicted);
    g_assert_cmpfloat(fabs(kv_comparison_error(row)), <=, most);
    return;
  }
  g_assert_not_reached();
}

static void test_accuracy(void) {
  check_accuracy("inferencemax.csv", "tpot", 0.03);
  check_accuracy("inferencemax.csv", "output_tokens_per_second", 0.03);
  check_accuracy("h200", "tpot", 0.17);
  check_accuracy("h200", "e2e", 0.17);
  check_accuracy("inference_perf_kubecon2025", "tpot", 0.05);
  check_accuracy("inference_perf_kubecon2025", "e2e", 0.05);
}

static void test_nothing_to_read(void) {
  g_autofree char *path = data("log/RTX4090/Llama-3.1-8B/vllm/meta.json");
  g_autoptr(GPtrArray) runs = g_ptr_array_new();
  KvMeasuredOptions options = {0};
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_measured_read(path, &options, runs, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_true(g_str_has_prefix(error->message, path));
}

static void test_tables(void) {
  g_autoptr(GPtrArray) runs = read_all("log");
  g_autoptr(GPtrArray) comparisons =
      g_ptr_array_new_with_free_func((GDestroyNotify)kv_comparison_free);
  GError *error = NULL;
  for (guint i = 0; i < 2; i++) {
    g_ptr_array_add(comparisons, kv_comparison_new(g_ptr_array_index(runs, 0), NULL, &error));
    g_assert_no_error(error);
  }
  g_autoptr(GArray) accuracy = kv_accuracy_collect(comparisons, FALSE);
  const KvAccuracy *first = &g_array_index(accuracy, KvAccuracy, 0);
  g_assert_cmpuint(first->n, ==, 2);
  g_autofree char *table = kv_accuracy_table(accuracy, TRUE);
  g_assert_nonnull(strstr(table, "| vllm-log | ttft mean | 2 |"));
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/validate/log", test_log);
  g_test_add_func("/validate/comparison", test_comparison);
  g_test_add_func("/validate/other-trace", test_other_trace);
  g_test_add_func("/validate/names", test_names);
  g_test_add_func("/validate/closed-loop", test_closed_loop);
  g_test_add_func("/validate/rate-sweep", test_rate_sweep);
  g_test_add_func("/validate/multi-round", test_multi_round);
  g_test_add_func("/validate/accuracy", test_accuracy);
  g_test_add_func("/validate/nothing-to-read", test_nothing_to_read);
  g_test_add_func("/validate/tables", test_tables);
  return g_test_run();
}
