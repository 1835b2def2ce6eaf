#include <math.h>

#include "fixtures.h"

static double number(json_t *object, const char *key) {
  json_t *value = json_object_get(object, key);
  if (!json_is_number(value))
    g_error("%s: no such number", key);
  return json_number_value(value);
}

static void holds_what_it_promises(void) {
  static const char *const keys[] = {"requests_arrived",
                                     "requests_finished",
                                     "requests_rejected",
                                     "makespan_seconds",
                                     "prompt_tokens",
                                     "output_tokens",
                                     "requests_per_second",
                                     "prompt_tokens_per_second",
                                     "output_tokens_per_second",
                                     "total_tokens_per_second",
                                     "slo_ttft_seconds",
                                     "slo_tpot_seconds",
                                     "goodput_requests_per_second",
                                     "slo_attainment",
                                     "prefix_hit_ratio",
                                     "lower_tier_hit_ratio",
                                     "hit_tokens",
                                     "looked_up_tokens",
                                     "block_tokens",
                                     "total_blocks",
                                     "block_bytes_per_gpu",
                                     "cache_bytes_per_gpu",
                                     "weight_bytes_per_gpu",
                                     "activation_bytes_per_gpu",
                                     "mean_blocks_held_share",
                                     "peak_blocks_held_share",
                                     "fragmentation_share",
                                     "mean_running_sequences",
                                     "peak_running_sequences",
                                     "mean_waiting_sequences",
                                     "peak_waiting_sequences",
                                     "preemptions",
                                     "recomputed_tokens",
                                     "swapped_out_blocks",
                                     "swapped_in_blocks",
                                     "steps",
                                     "busy_share",
                                     "prefill_busy_share",
                                     "mfu_share",
                                     "mbu_share",
                                     "flops",
                                     "hbm_bytes",
                                     "link_bytes",
                                     "peak_flops_per_second",
                                     "peak_hbm_bytes_per_second",
                                     "energy_joules",
                                     "energy_joules_per_output_token",
                                     "cost_usd",
                                     "usd_per_million_output_tokens",
                                     "carbon_grams",
                                     "gpus",
                                     "instances",
                                     "tensor_parallel"};
  static const char *const statistics[] = {"n", "mean", "p50", "p90", "p95", "p99", "min", "max"};
  g_autoptr(KvSummary) run = fixture_normal();
  json_t *json = kv_summary_to_json(run);
  for (guint i = 0; i < G_N_ELEMENTS(keys); i++)
    number(json, keys[i]);
  for (guint l = 0; l < KV_N_LATENCIES; l++) {
    g_autofree char *key = g_strconcat(kv_latency_names[l], "_seconds", NULL);
    for (guint s = 0; s < G_N_ELEMENTS(statistics); s++)
      number(json_object_get(json, key), statistics[s]);
  }
  g_assert_cmpfloat(number(json_object_get(json, "ttft_seconds"), "p50"), ==,
                    run->latency[KV_LATENCY_TTFT].p50);
  g_assert_cmpfloat(number(json, "requests_finished"), ==, 19366);
  g_assert_cmpfloat(number(json_object_get(json, "component_seconds"), "mlp"), ==,
                    run->component_seconds[KV_COMPONENT_MLP]);
  g_assert_cmpuint(json_object_size(json_object_get(json, "component_flops")), ==, KV_N_COMPONENTS);
  g_assert_cmpuint(json_object_size(json_object_get(json, "fetched_bytes")), ==, KV_N_TIERS);
  g_assert_true(json_is_false(json_object_get(json, "calibrated")));
  g_assert_cmpstr(json_string_value(json_object_get(json, "model")), ==, "llama-3.1-8b");
  json_decref(json);
}

static void leaves_out_the_clock_on_the_wall(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  json_t *before = kv_summary_to_json(run);
  run->wall_seconds = 3, run->simulated_requests_per_second = 7;
  json_t *after = kv_summary_to_json(run);
  g_assert_true(json_equal(before, after));
  json_decref(before);
  json_decref(after);
}

static void what_has_no_value_is_null(void) {
  g_autoptr(KvSummary) run = fixture_empty();
  run->mfu = NAN;
  run->compressed = TRUE;
  g_free(run->trace);
  run->trace = g_strdup("bad\377name.csv"); /* a file name need not be UTF-8 */
  json_t *json = kv_summary_to_json(run);
  char *text = json_dumps(json, JSON_COMPACT);
  g_assert_nonnull(text);
  g_assert_true(json_is_null(json_object_get(json_object_get(json, "ttft_seconds"), "mean")));
  g_assert_cmpfloat(number(json_object_get(json, "ttft_seconds"), "n"), ==, 0);
  g_assert_true(json_is_null(json_object_get(json, "mfu_share")));
  g_assert_true(json_is_null(json_object_get(json, "fragmentation_share")));
  g_assert_null(json_object_get(json, "component_flops")); /* no executor told them */
  g_assert_true(json_is_null(json_object_get(json, "goodput_requests_per_second")));
  g_assert_true(json_is_null(json_object_get(json, "slo_ttft_seconds")));
  g_assert_true(json_is_string(json_object_get(json, "trace")));
  free(text);
  json_decref(json);
}

static void an_absent_summary_is_freed(void) {
  kv_summary_free(NULL);
  KvSummary *bare = g_new0(KvSummary, 1);
  kv_summary_free(bare);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/engine/summary/keys", holds_what_it_promises);
  g_test_add_func("/engine/summary/deterministic", leaves_out_the_clock_on_the_wall);
  g_test_add_func("/engine/summary/null", what_has_no_value_is_null);
  g_test_add_func("/engine/summary/free", an_absent_summary_is_freed);
  return g_test_run();
}
