/* Techniques that schedule, allocate and keep: what they do to the engine's settings and the plan.
 * Their policies are followed step by step in tests/sim. */
#include "tests/models/applied.h"

static void test_radixattention(void) {
  Applied x = apply(llama3_8b(), "radixattention");
  g_assert_cmpstr(x.config.scheduler, ==, "sglang");
  g_assert_cmpuint(x.config.block_tokens, ==, 1);
  g_assert_cmpint(x.config.sglang.order, ==, KV_ORDER_LPM);
  g_assert_true(x.config.prefix_caching && x.config.cache_answers && x.config.merge_duplicates);
  /* kappa is unchanged: 2 L Hkv d e a token, stored and read. */
  g_assert_cmpfloat(cost(&x, 1000, 500).resident_bytes[KV_TIER_HBM], ==,
                    1000.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(cost(&x, 3000, 500).read_bytes, ==, 3000.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(cost(&x, 1000, 500).attention_flops, ==, 4.0 * 32 * 32 * 128 * 1000);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "radixattention:policy=fcfs", 3000, 500), ==,
                    3000.0 * 2 * 32 * 32 * 128 * 2);
  kv_plan_free(x.plan);
  Applied y = apply(llama2_7b(), "snapkv,radixattention");
  g_assert_false(y.config.prefix_caching);
  kv_plan_free(y.plan);
  refused(llama2_7b(), "vllm,radixattention",
          "radixattention: scheduling and memory are already those of vllm, expected one serving "
          "system");
}

static void test_chunkattention(void) {
  Applied mha = apply(llama2_7b(), "chunkattention"),
          gqa = apply(llama3_8b(), "chunkattention:c=32");
  g_assert_true(mha.plan->reads_shared_once);
  g_assert_cmpuint(mha.config.block_tokens, ==, 64);
  g_assert_cmpuint(mha.config.retained_blocks, ==, 0);
  g_assert_cmpuint(mha.config.max_seqs, ==, 32);
  /* 2 H (d e + 8) / c = 2 * 32 * (128 * 2 + 8) / 64, and twice that for chunks of 32. */
  g_assert_cmpfloat(mha.plan->shared_partial_bytes, ==, 264.0);
  g_assert_cmpfloat(gqa.plan->shared_partial_bytes, ==, 528.0);
  g_assert_cmpfloat(cost(&mha, 1000, 900).resident_bytes[KV_TIER_HBM], ==,
                    1000.0 * 2 * 32 * 32 * 128 * 2);
  g_assert_cmpfloat(cost(&gqa, 4000, 900).read_bytes, ==, 4000.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(cost(&gqa, 4000, 900).attention_flops, ==, 4.0 * 32 * 32 * 128 * 4000);
  kv_plan_free(mha.plan);
  kv_plan_free(gqa.plan);
  refused(
      llama2_7b(), "snapkv,chunkattention",
      "chunkattention: equal prefixes do not have equal caches (snapkv), expected caches that can "
      "be shared");
  KvModel recurrent = model_of("made-up", 24, 32, 32);
  group.attention = (KvAttention){.kind = KV_ATTENTION_NONE, .state_elements = 4096};
  refused(
      recurrent, "chunkattention",
      "chunkattention: equal prefixes do not have equal caches (recurrent state), expected caches "
      "that can be shared");
  KvModel sliding = model_of("made-up", 24, 32, 32);
  group.attention.kind = KV_ATTENTION_SLIDING;
  group.attention.window_tokens = 512;
  refused(sliding, "chunkattention",
          "chunkattention: no layer of made-up reads its whole context, expected full attention to "
          "share prefixes in");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/serving/radixattention", test_radixattention);
  g_test_add_func("/serving/chunkattention", test_chunkattention);
  return g_test_run();
}
