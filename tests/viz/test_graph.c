#include <string.h>

#include "models/techniques/technique.h"
#include "viz/graph.h"

static void has(const char *text, const char *part) {
  if (!strstr(text, part))
    g_error("'%s' is not in:\n%s", part, text);
}

static void test_platform(void) {
  g_autoptr(GError) error = NULL;
  KvPlatform *platform = kv_platform_load("2x4xh100-sxm", &error);
  g_assert_no_error(error);
  json_t *summary = json_pack("{s:f, s:{s:f}}", "link_bytes", 3e9, "fetched_bytes", "dram", 5e9);
  g_autofree char *dot = kv_graph_platform(platform, summary);
  has(dot, "gpu3");
  has(dot, "NVLink");
  has(dot, "moved 3.00 GB");
  has(dot, "to the GPUs 5.00 GB");
  has(dot, "1 further node");
  g_assert_null(strstr(dot, "gpu4"));
  json_decref(summary);
  kv_platform_free(platform);
}

static char *plan_of(const char *use) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvModel) model = kv_model_load("llama-3.1-8b", &error);
  g_autoptr(KvStack) stack = kv_stack_parse(use, &error);
  KvEngineConfig config;
  kv_engine_config_init(&config);
  g_autoptr(KvPlan) plan = kv_stack_apply(stack, model, KV_DTYPE_BF16, &config, &error);
  g_assert_no_error(error);
  char *dot = kv_graph_plan(model, plan, use, 1000, 900, &error);
  g_assert_no_error(error);
  return dot;
}

/* KIVI at 1,000 tokens: 7 whole blocks of 128 keys, 104 beyond; 872 values packed. */
static void test_plan(void) {
  g_autofree char *plain = plan_of("");
  has(plain, "1000 tokens a layer");
  has(plain, "cluster_hbm");
  g_autofree char *kivi = plan_of("kivi");
  has(kivi, "896 tokens a layer");
  has(kivi, "872 tokens a layer");
  has(kivi, "quantize a block of keys");
  g_autofree char *flexgen = plan_of("flexgen");
  has(flexgen, "cluster_dram");
  has(flexgen, "attention on the CPU");
}

static const char trace[] = "{\"kvsim_trace\":1,\"block_tokens\":16}\n"
                            "{\"timestamp\":0,\"input_length\":48,\"output_length\":1,"
                            "\"hash_ids\":[1,2,3]}\n"
                            "{\"timestamp\":1,\"input_length\":48,\"output_length\":1,"
                            "\"hash_ids\":[1,2,4]}\n"
                            "{\"timestamp\":2,\"input_length\":16,\"output_length\":1,"
                            "\"hash_ids\":[9]}\n";

/* Two requests share 32 tokens and part; the third stands alone. */
static void test_prefixes(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvTraceReader) reader =
      kv_trace_reader_open_memory("t.jsonl", trace, strlen(trace), NULL, &error);
  g_assert_no_error(error);
  g_autofree char *dot = kv_graph_prefixes(reader, 10, &error);
  g_assert_no_error(error);
  has(dot, "3 requests, 5 different blocks of 16 tokens");
  has(dot, "32 tokens\\n2 requests");
  has(dot, "2 of one request each");
  has(dot, "1 of one request each");
}

static void test_a_trace_without_blocks(void) {
  static const char text[] = "{\"timestamp\":0,\"input_length\":48,\"output_length\":1}\n";
  g_autoptr(GError) error = NULL;
  g_autoptr(KvTraceReader) reader =
      kv_trace_reader_open_memory("t.jsonl", text, strlen(text), NULL, &error);
  g_assert_null(kv_graph_prefixes(reader, 10, &error));
  g_assert_cmpstr(error->message, ==,
                  "t.jsonl: no request names its prefix blocks, expected hash_ids or token ids");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/graph/platform", test_platform);
  g_test_add_func("/graph/plan", test_plan);
  g_test_add_func("/graph/prefixes", test_prefixes);
  g_test_add_func("/graph/no-blocks", test_a_trace_without_blocks);
  return g_test_run();
}
