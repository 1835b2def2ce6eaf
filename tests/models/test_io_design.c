/* Cake's entry: what it sets and refuses. The race is followed in tests/sim/test_race.c. */
#include "applied.h"

static void test_entry(void) {
  Applied x = apply(llama2_7b(), "cake:chunk=256:bandwidth=32:kv_bits=8");
  g_assert_true(x.config.load_race);
  g_assert_cmpuint(x.config.load_chunk_tokens, ==, 256);
  g_assert_cmpfloat(x.config.load_Bps, ==, 4e9); /* 32 Gbit/s */
  g_assert_cmpfloat(x.config.load_share, ==, 0.5);
  /* On the GPU the cache is as ever, read as ever, at every length. */
  g_assert_cmpfloat(cost(&x, 1000, 1000).resident_bytes[KV_TIER_HBM], ==, 1000.0 * 524288);
  g_assert_cmpfloat(cost(&x, 4000, 1000).read_bytes, ==, 4000.0 * 524288);
  g_assert_cmpfloat(cost(&x, 4000, 1000).fetched_bytes, ==, 0.0);
  g_assert_cmpfloat(cost(&x, 4000, 1000).attention_flops, ==, 4.0 * 32 * 32 * 128 * 4000);
  kv_plan_free(x.plan);
  Applied plain = apply(llama3_8b(), "cake");
  g_assert_cmpfloat(plain.config.load_Bps, ==, 0.0); /* the tier's own */
  g_assert_cmpfloat(plain.config.load_share, ==, 1.0);
  g_assert_cmpfloat(cost(&plain, 1000, 1000).resident_bytes[KV_TIER_HBM], ==, 1000.0 * 131072);
  kv_plan_free(plain.plan);
}

static void test_refusals(void) {
  refused(llama2_7b(), "snapkv,cake",
          "cake: prefixes cannot be shared under snapkv, expected a cache that is the same for "
          "equal prefixes");
  refused(llama2_7b(), "instinfer,cake",
          "cake: prefixes cannot be shared under instinfer, expected a cache that is the same for "
          "equal prefixes");
  refused(
      llama2_7b(), "orca,cake",
      "cake: prompts are in the hands of orca, expected the default engine, which computes them "
      "in chunks");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/cake/entry", test_entry);
  g_test_add_func("/cake/refusals", test_refusals);
  return g_test_run();
}
