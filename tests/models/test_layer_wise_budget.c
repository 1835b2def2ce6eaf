#include <math.h>

#include "tests/models/applied.h"

/* B = 2048, w = 8: b = 2040, the first layer selects 2 * 2040 - 102 = 3978 and the last 102; all
 * together 32 * 2040, and the window in each. */
static void test_pyramidkv_bytes(void) {
  double mha = 32.0 * 2 * 128 * 2, gqa = 8.0 * 2 * 128 * 2;
  g_assert_cmpfloat_with_epsilon(hbm_bytes(llama2_7b(), "pyramidkv", 8100, 8000),
                                 32 * (2048 + 100) * mha, 1e-3);
  g_assert_cmpfloat_with_epsilon(hbm_bytes(llama3_8b(), "pyramidkv", 20500, 20000),
                                 32 * (2048 + 500) * gqa, 1e-3);
  /* Below 2 b = 4080 every layer keeps the budget, below that everything. */
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "pyramidkv", 4079, 4079), ==, 32 * 2048 * mha);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "pyramidkv", 1100, 1000), ==, 32 * 1100 * mha);
}

static void test_pyramidkv_layers(void) {
  Applied x = apply(llama2_7b(), "pyramidkv");
  g_assert_cmpuint(x.plan->caches->len, ==, 32);
  g_assert_cmpuint(x.curves.n_readers, ==, 32);
  double most = 0.0, least = G_MAXDOUBLE;
  for (guint i = 0; i < 32; i++) {
    const KvSegment *segment = &g_array_index(x.plan->caches, KvCache, i).segments[0];
    double tokens = kv_law_value(&segment->tokens, 8000, 8000, TRUE, NULL, NULL);
    most = MAX(most, tokens);
    least = MIN(least, tokens);
  }
  g_assert_cmpfloat_with_epsilon(most, 3978 + 8, 1e-9);
  g_assert_cmpfloat_with_epsilon(least, 102 + 8, 1e-9);
  KvPlanCost c = cost(&x, 8100, 8000);
  g_assert_cmpfloat_with_epsilon(c.read_bytes, c.resident_bytes[KV_TIER_HBM], 1e-3);
  g_assert_cmpfloat_with_epsilon(c.attention_flops, 32 * 2148 * 4.0 * 32 * 128, 1e-3);
  g_assert_cmpfloat(c.fetched_bytes, ==, 0);
  const KvWork *vote = work_of(&x, "vote on the prompt");
  g_assert_cmpfloat(vote->flops_per_token, ==, 32.0 * 32 * (2 * 8 * 128 + 8 + 7 + 1));
  g_assert_cmpfloat(vote->over_tokens, ==, 2048);
  g_assert_false(x.plan->shareable);
  kv_plan_free(x.plan);
}

/* Whole numbers: from 3978 in steps of 125 (3876 / 31 = 125.03), which adds up to
 * 32 * 3978 - 125 * 496 = 65296 instead of 65280; and every query head has its own. */
static void test_pyramidkv_released(void) {
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "pyramidkv:impl=released", 8100, 8000), ==,
                    (65296 + 32 * 108) * 32.0 * 2 * 128 * 2);
}

/* In both orders the packed keys of each layer are whole blocks of what it keeps. */
static void test_pyramidkv_with_kivi(void) {
  double elements = 8.0 * 128, bytes = 0.0;
  for (guint l = 0; l < 32; l++) {
    double tokens = 3978 - l * (3876.0 / 31) + 8 + 100, packed = floor(tokens / 128) * 128;
    bytes += elements * (packed * 0.375 + (tokens - packed) * 2);
    bytes += elements * (MAX(0.0, tokens - 128) * 0.375 + 128 * 2);
  }
  g_assert_cmpfloat_with_epsilon(hbm_bytes(llama3_8b(), "pyramidkv,kivi", 8100, 8000), bytes, 1e-3);
  g_assert_cmpfloat_with_epsilon(hbm_bytes(llama3_8b(), "kivi,pyramidkv", 8100, 8000), bytes, 1e-3);
}

static void test_pyramidkv_refusals(void) {
  refused(llama2_7b(), "pyramidkv:kernel_size=4",
          "pyramidkv: kernel_size is 4, expected an odd number");
  refused(llama2_7b(), "pyramidkv:budget=64:window_size=64",
          "pyramidkv: window_size is 64, expected less than the budget of 64 tokens");
  refused(
      llama2_7b(), "snapkv,pyramidkv",
      "pyramidkv: snapkv already chooses which tokens of the cache stay, expected one selection");
  KvModel recurrent = model_of("mamba", 60, 128, 128);
  group.attention = (KvAttention){.kind = KV_ATTENTION_NONE, .state_elements = 10};
  refused(recurrent, "pyramidkv",
          "pyramidkv: mamba has no layer with full attention, expected at least one");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/pyramidkv/bytes", test_pyramidkv_bytes);
  g_test_add_func("/techniques/pyramidkv/layers", test_pyramidkv_layers);
  g_test_add_func("/techniques/pyramidkv/released", test_pyramidkv_released);
  g_test_add_func("/techniques/pyramidkv/with-kivi", test_pyramidkv_with_kivi);
  g_test_add_func("/techniques/pyramidkv/refusals", test_pyramidkv_refusals);
  return g_test_run();
}
