#include "tests/models/applied.h"

/* K8V4 of head size 128: 128 + 64 + 8 + 8 = 208 bytes a token and head; K4V2: 64 + 32 + 16 = 112.
 * Half of the older tokens high and 30 % low, the last 64 high; half a page of 6784 bytes per head
 * and precision. */
static void test_leankv_bytes(void) {
  static const double at[] = {1064, 8064};
  for (guint i = 0; i < G_N_ELEMENTS(at); i++) {
    double older = at[i] - 64, head = 64 * 208 + older * (0.5 * 208 + 0.3 * 112) + 6784;
    g_assert_cmpfloat_with_epsilon(hbm_bytes(llama2_7b(), "leankv", at[i], 1000), 32 * 32 * head,
                                   1e-3);
    g_assert_cmpfloat_with_epsilon(hbm_bytes(llama3_8b(), "leankv", at[i], 1000), 32 * 8 * head,
                                   1e-3);
  }
  /* One precision, four groups of values: 64 + 64 + 4 * 5 + 8 bytes. */
  double head = 64 * 156 + 1000 * 0.7 * 156 + 3392;
  g_assert_cmpfloat_with_epsilon(
      hbm_bytes(llama3_8b(), "leankv:high=4-4:high_share=0.7:low_share=0:value_groups=4", 1064,
                900),
      32 * 8 * head, 1e-3);
}

static void test_leankv_plan(void) {
  Applied x = apply(llama3_8b(), "leankv");
  KvPlanCost c = cost(&x, 8064, 8000);
  double kept = 64 + 8000 * 0.8, data = 64 * 208 + 8000 * (0.5 * 208 + 0.3 * 112);
  /* Scores are written back: 4 bytes a kept token and head. Empty slots are not read. */
  g_assert_cmpfloat_with_epsilon(c.read_bytes, 32 * 8 * (data + 4 * kept), 1e-3);
  g_assert_cmpfloat_with_epsilon(c.attention_flops, 32 * kept * (4 * 32 * 128 + 2 * 8 * 257), 1e-1);
  g_assert_cmpfloat(c.fetched_bytes, ==, 0);
  g_assert_cmpfloat(c.written_bytes, ==, 32.0 * 8 * 208);
  /* Until it is sorted the prompt has a high entry per token, here with 64 counted twice in part.
   */
  double whole = kv_plan_cost(x.plan, &x.curves, 8000, 8000, FALSE).resident_bytes[KV_TIER_HBM];
  g_assert_cmpfloat_with_epsilon(
      whole, 32 * 8 * (8000 * 208.0 + 64 * (208 - 0.5 * 208 - 0.3 * 112) - 8000 * 0.2 * 0 + 6784),
      1e-3);
  g_assert_false(x.plan->shareable);
  g_assert_cmpfloat(work_of(&x, "score the prompt by its last queries")->flops_per_token, ==,
                    32.0 * 2 * 32 * 64 * 128);
  g_assert_cmpfloat(work_of(&x, "requantize a token per head")->bytes, ==, 32.0 * 8 * (208 + 112));
  kv_plan_free(x.plan);
}

static void test_leankv_refusals(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"leankv:high_share=0.8:low_share=0.3",
       "leankv: high_share and low_share add up to 1.1, expected more than 0 and at most 1"},
      {"leankv:high=4-4:low=8-2",
       "leankv: high is 4-4 and low is 8-2, expected fewer bits for the latter"},
      {"kivi,leankv",
       "leankv: segment 'keys, packed' of the cache is already quantized by kivi, expected 16-bit keys "
       "and values"},
      {"leankv,kivi",
       "kivi: segment 'high precision' of the cache is already quantized by leankv, expected one "
       "quantizer"},
      {"flexgen,leankv", "leankv: pages per head exclude contiguous memory, expected a paged plan"},
      {"h2o,leankv",
       "leankv: h2o already chooses which tokens of the cache stay, expected one selection"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
  KvModel wide = model_of("wide", 32, 16, 16);
  group.attention.head_dim = group.attention.value_head_dim = 256;
  refused(wide, "leankv:page_bytes=256",
          "leankv: page_bytes is 256, but one token of a head takes 400 bytes in wide, expected at "
          "least one token a page");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/leankv/bytes", test_leankv_bytes);
  g_test_add_func("/techniques/leankv/plan", test_leankv_plan);
  g_test_add_func("/techniques/leankv/refusals", test_leankv_refusals);
  return g_test_run();
}
