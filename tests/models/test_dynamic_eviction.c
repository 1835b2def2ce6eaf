#include "tests/models/applied.h"

/* A prompt of 1000 keeps 2 * 0.1 * 1000 = 200 slots a head, of 2 * 128 fp16 elements and an fp16
 * score. */
static void test_h2o_bytes(void) {
  double mha = 32.0 * 32 * (2 * 128 * 2 + 2), gqa = 32.0 * 8 * (2 * 128 * 2 + 2);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "h2o", 1100, 1000), ==, 200 * mha);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "h2o", 5000, 1000), ==, 200 * mha);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "h2o", 1100, 1000), ==, 200 * gqa);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "h2o:hh_ratio=0.3:recent_ratio=0.05", 8200, 8000), ==,
                    2800 * gqa);
  /* Every query head has its own slots. */
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "h2o:impl=released", 1100, 1000), ==, 200 * mha);
}

/* 20 % of 512 + 512 tokens are 204.8 slots; of 8 prompt tokens no more than there are. */
static void test_h2o_budget_of_prompt_and_output(void) {
  double token = 32.0 * 32 * (2 * 128 * 2 + 2);
  const char *stack = "h2o:budget_total=0.2:output_tokens=512";
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), stack, 600, 512), ==, 204.8 * token);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), stack, 9, 8), ==, 9 * token);
}

static void test_h2o_plan(void) {
  Applied ideal = apply(llama3_8b(), "h2o"), released = apply(llama3_8b(), "h2o:impl=released");
  KvPlanCost a = cost(&ideal, 1100, 1000), b = cost(&released, 1100, 1000);
  /* The whole prompt is there until it is done. */
  g_assert_cmpfloat(
      kv_plan_cost(ideal.plan, &ideal.curves, 1000, 1000, FALSE).resident_bytes[KV_TIER_HBM], ==,
      1000 * 32.0 * 8 * (2 * 128 * 2 + 2));
  /* Keys, values and scores read, scores written. */
  g_assert_cmpfloat(a.read_bytes, ==, 200 * 32.0 * 8 * (2 * 128 * 2 + 2 + 2));
  /* ... and seven passes over fp16 probabilities. */
  g_assert_cmpfloat(b.read_bytes, ==, 200 * 32.0 * 32 * (2 * 128 * 2 + 2 + 2 + 7 * 2));
  g_assert_cmpfloat(a.attention_flops, ==, 200 * 32.0 * (4 * 32 * 128 + 2 * 8));
  g_assert_cmpfloat(b.attention_flops, ==, 200 * 32.0 * (4 * 32 * 128 + 2 * 32));
  g_assert_cmpfloat(a.fetched_bytes, ==, 0);
  g_assert_false(ideal.plan->shareable);
  g_assert_false(ideal.config.prefix_caching);
  g_assert_false(ideal.plan->fused_attention);
  /* Ideal: queries times keys once more. Released: 14 bytes * 2 over half a matrix. */
  g_assert_cmpfloat(work_of(&ideal, "scores of the prompt")->flops_per_token, ==,
                    32.0 * 2 * 32 * 128);
  g_assert_cmpfloat(work_of(&released, "scores of the prompt")->bytes_per_token, ==,
                    32.0 * 32 * 2 * 14);
  /* Read and written: 2 * 0.2 of the prompt. */
  g_assert_cmpfloat(work_of(&ideal, "gather the kept tokens")->bytes_per_token, ==,
                    32.0 * 2 * 0.2 * 8 * 256 * 2);
  g_assert_cmpfloat(work_of(&ideal, "choose the heavy hitters")->flops_per_token, ==, 32.0 * 8);
  kv_plan_free(ideal.plan);
  kv_plan_free(released.plan);
}

/* Inside FlexGen, in either order, the slots lie in host memory and cross the link each step. */
static void test_h2o_in_flexgen(void) {
  static const char *const stacks[] = {"h2o,flexgen:cpu_cache_compute=off",
                                       "flexgen:cpu_cache_compute=off,h2o"};
  for (guint i = 0; i < G_N_ELEMENTS(stacks); i++) {
    Applied x = apply(llama2_7b(), stacks[i]);
    KvPlanCost c = cost(&x, 1100, 1000);
    double slots = 200 * 32.0 * 32 * (2 * 128 * 2 + 2);
    g_assert_cmpfloat(c.resident_bytes[KV_TIER_HBM], ==, 0);
    g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, slots);
    g_assert_cmpfloat(c.fetched_bytes, ==, slots);
    kv_plan_free(x.plan);
  }
  /* 4.5 bits an element and a score. */
  Applied x = apply(llama2_7b(), "h2o,flexgen:compress_cache");
  g_assert_cmpfloat(cost(&x, 1100, 1000).resident_bytes[KV_TIER_DRAM], ==,
                    200 * 32.0 * 32 * (2 * 128 * 4.5 / 8 + 2));
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "h2o,flexgen:cg=50:cc=50:cpu_cache_compute=off");
  g_assert_cmpfloat(cost(&x, 1100, 1000).fetched_bytes, ==, 100 * 32.0 * 32 * (2 * 128 * 2 + 2));
  kv_plan_free(x.plan);
}

static void test_h2o_refusals(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"h2o:output_tokens=512",
       "h2o: output_tokens is of no use without budget_total, expected both"},
      {"snapkv,h2o",
       "h2o: snapkv already chooses which tokens of the cache stay, expected one selection"},
      {"h2o,snapkv",
       "snapkv: h2o already chooses which tokens of the cache stay, expected one selection"},
      {"kivi,h2o",
       "h2o: single tokens cannot leave segment 'keys, packed' of the cache, which holds whole blocks "
       "of 128, expected one that holds all tokens one by one"},
      {"h2o,kivi",
       "kivi: h2o drops tokens one at a time, but keys are packed in blocks of 128 tokens, expected a "
       "quantizer of single tokens"},
      {"quest,h2o",
       "h2o: quest chooses what is read of the cache, expected a technique that reads all of it"},
      {"h2o:hh_ratio=0.6",
       "h2o: hh_ratio is '0.6', expected a number from 0.02 to 0.5 (fraction of the prompt)"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
  KvModel latent = model_of("deepseek-v2", 60, 128, 128);
  group.attention.kind = KV_ATTENTION_LATENT;
  refused(
      latent, "h2o",
      "h2o: tokens are treated head by head, but the latent cache of deepseek-v2 is one for all "
      "heads, expected full attention");
  KvModel sliding = model_of("mistral", 32, 32, 8);
  group.attention.kind = KV_ATTENTION_SLIDING;
  group.attention.window_tokens = 4096;
  refused(sliding, "h2o", "h2o: mistral has no layer with full attention, expected at least one");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/h2o/bytes", test_h2o_bytes);
  g_test_add_func("/techniques/h2o/budget-total", test_h2o_budget_of_prompt_and_output);
  g_test_add_func("/techniques/h2o/plan", test_h2o_plan);
  g_test_add_func("/techniques/h2o/in-flexgen", test_h2o_in_flexgen);
  g_test_add_func("/techniques/h2o/refusals", test_h2o_refusals);
  return g_test_run();
}
