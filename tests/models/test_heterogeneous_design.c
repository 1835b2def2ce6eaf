#include "models/techniques/quality.h"
#include "tests/models/applied.h"

/* All on the host; on the GPU a fifth of the keys in 31 layers, and a tenth of two layers' tokens.
 */
static void test_infinigen_bytes(void) {
  for (guint m = 0; m < 2; m++) {
    double layer = 2.0 * (m ? 8 : 32) * 128 * 2;
    static const double at[] = {2000, 20000};
    for (guint i = 0; i < G_N_ELEMENTS(at); i++) {
      double n = at[i];
      Applied x = apply(m ? llama3_8b() : llama2_7b(), "infinigen");
      KvPlanCost c = cost(&x, n, n - 100);
      g_assert_cmpfloat_with_epsilon(c.resident_bytes[KV_TIER_DRAM], 32 * n * layer, 1e-3);
      g_assert_cmpfloat_with_epsilon(c.resident_bytes[KV_TIER_HBM],
                                     31 * n * (0.1 * layer + 0.1 * 2 / 32 * layer), 1e-3);
      /* The first layer fetches everything. */
      g_assert_cmpfloat_with_epsilon(c.fetched_bytes, (1 + 3.1) * n * layer, 1e-3);
      g_assert_cmpfloat_with_epsilon(c.read_bytes, (1 + 3.1 + 31 * 0.1) * n * layer, 1e-3);
      g_assert_cmpfloat_with_epsilon(c.attention_flops,
                                     32.0 * 128 * n * (4 * (1 + 3.1) + 31 * 2 * 0.2), 1e-2);
      kv_plan_free(x.plan);
    }
  }
}

static void test_infinigen_settings(void) {
  double token = 2.0 * 32 * 128 * 2;
  KvModel model = llama2_7b();
  model.hidden = 4096;
  /* Capped at 5 %; a pool of 80 % of the context. */
  Applied x = apply(model, "infinigen:max_num_kv=0.05:capacity=0.8");
  KvPlanCost c = cost(&x, 1000, 900);
  g_assert_cmpfloat_with_epsilon(c.resident_bytes[KV_TIER_DRAM], 32 * 800 * token, 1e-3);
  g_assert_cmpfloat_with_epsilon(c.fetched_bytes, (1 + 31 * 0.05) * 800 * token, 1e-3);
  g_assert_cmpfloat(work_of(&x, "partial queries")->flops, ==, 31 * 2 * 0.2 * 4096 * 4096);
  const KvReader *first = &x.curves.readers[0].reader, *others = &x.curves.readers[1].reader;
  g_assert_cmpuint(first->layers, ==, 1);
  g_assert_cmpint(first->overlap, ==, KV_OVERLAP_NONE);
  g_assert_cmpfloat(first->fetch_efficiency, ==, 0); /* one large copy */
  g_assert_cmpuint(others->layers, ==, 31);
  g_assert_cmpint(others->overlap, ==, KV_OVERLAP_STEP);
  g_assert_cmpfloat(others->fetch_efficiency, ==, 0.3);
  kv_plan_free(x.plan);
  x = apply(model, "infinigen:overlap");
  g_assert_cmpint(x.curves.readers[0].reader.overlap, ==, KV_OVERLAP_STEP);
  kv_plan_free(x.plan);
}

/* FlexGen has moved the cache already, and would have attended to it on the CPU. */
static void test_infinigen_in_flexgen(void) {
  Applied x = apply(llama2_7b(), "flexgen:gbs=20:num_gpu_batches=1,infinigen");
  KvPlanCost c = cost(&x, 2000, 1900);
  g_assert_cmpfloat_with_epsilon(c.fetched_bytes, (1 + 3.1) * 2000 * 2.0 * 32 * 128 * 2, 1e-3);
  g_assert_cmpint(x.curves.readers[0].reader.processor, ==, KV_PROCESSOR_GPU);
  g_assert_cmpstr(x.config.scheduler, ==, "flexgen");
  kv_plan_free(x.plan);
}

/* No figure is on record, and yet answers change. */
static void test_infinigen_quality_is_unknown(void) {
  g_autoptr(KvStack) stack = kv_stack_parse("infinigen", NULL);
  g_autoptr(KvQuality) quality = kv_stack_quality(stack);
  g_assert_false(quality->exact);
  g_assert_false(quality->known);
  g_autofree char *page = kv_technique_page(kv_technique_find("infinigen", NULL));
  g_assert_nonnull(strstr(page, "no figure is on record"));
  g_assert_null(strstr(page, "Exact: outputs equal"));
}

static void test_infinigen_refusals(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"flexgen:cg=50:cc=50,infinigen",
       "infinigen: the cache 'cache' is already divided or filled by a law of its own, expected one with "
       "whole tokens, keys and values together"},
      {"flexgen:cg=0:cc=0,infinigen",
       "infinigen: segment 'tokens' of the cache already lies in ssd, expected one technique that says "
       "where it lies"},
      {"infinigen,flexgen",
       "flexgen: infinigen chooses what is read of the cache, expected a technique that reads all of it"},
      {"kivi,infinigen",
       "infinigen: segment 'keys, packed' of the cache is already quantized by kivi, expected 16-bit keys "
       "and values"},
      {"quest,infinigen",
       "infinigen: the cache 'cache' is already divided or filled by a law of its own, expected one with "
       "whole tokens, keys and values together"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/infinigen/bytes", test_infinigen_bytes);
  g_test_add_func("/techniques/infinigen/settings", test_infinigen_settings);
  g_test_add_func("/techniques/infinigen/in-flexgen", test_infinigen_in_flexgen);
  g_test_add_func("/techniques/infinigen/quality", test_infinigen_quality_is_unknown);
  g_test_add_func("/techniques/infinigen/refusals", test_infinigen_refusals);
  return g_test_run();
}
