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

/* Chunks of 2 MiB are the allocator's; the plan's bytes are the model's. */
static void test_vtensor(void) {
  Applied mha = apply(llama2_7b(), "vtensor"),
          gqa = apply(llama3_8b(), "vtensor:slack=0:prefix=off");
  g_assert_cmpstr(mha.config.allocator, ==, "chunked");
  g_assert_cmpfloat(mha.config.chunks.chunk_bytes, ==, 2097152.0);
  g_assert_cmpuint(mha.config.chunks.slack_tokens, ==, 100);
  g_assert_cmpfloat(mha.config.watermark, ==, 0.01);
  g_assert_cmpuint(mha.config.retained_blocks, ==, 0);
  g_assert_true(mha.config.prefix_caching && !gqa.config.prefix_caching);
  g_assert_false(mha.plan->paged);
  g_assert_cmpfloat(cost(&mha, 1000, 900).resident_bytes[KV_TIER_HBM], ==,
                    1000.0 * 2 * 32 * 32 * 128 * 2);
  g_assert_cmpfloat(cost(&gqa, 3000, 900).read_bytes, ==, 3000.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(cost(&gqa, 3000, 900).attention_flops, ==, 4.0 * 32 * 32 * 128 * 3000);
  kv_plan_free(mha.plan);
  kv_plan_free(gqa.plan);
  KvModel recurrent = model_of("made-up", 24, 32, 32);
  group.attention = (KvAttention){.kind = KV_ATTENTION_NONE, .state_elements = 4096};
  refused(recurrent, "vtensor",
          "vtensor: made-up has no KV cache to map, expected full or sliding attention");
  refused(llama2_7b(), "orca,vtensor",
          "vtensor: scheduling and memory are already those of orca, expected one serving system");
}

static void test_fastserve(void) {
  Applied ideal = apply(llama2_7b(), "fastserve"),
          released = apply(llama3_8b(), "fastserve:impl=released");
  g_assert_cmpstr(ideal.config.scheduler, ==, "fastserve");
  g_assert_cmpuint(ideal.config.fastserve.check_iterations, ==, 1000);
  g_assert_cmpfloat(ideal.config.fastserve.starving_seconds, ==, 0.3);
  g_assert_cmpuint(released.config.fastserve.check_iterations, ==, 1000);
  g_assert_cmpfloat(released.config.fastserve.starving_seconds, ==, 3.0);
  g_assert_cmpuint(ideal.config.max_seqs, ==, 16);
  g_assert_cmpfloat(ideal.config.swap_bytes, ==, 56e9);
  g_assert_cmpfloat(cost(&ideal, 1000, 900).resident_bytes[KV_TIER_HBM], ==,
                    1000.0 * 2 * 32 * 32 * 128 * 2);
  g_assert_cmpfloat(cost(&released, 3000, 900).read_bytes, ==, 3000.0 * 2 * 32 * 8 * 128 * 2);
  kv_plan_free(ideal.plan);
  kv_plan_free(released.plan);
  refused(llama2_7b(), "fastserve:q1=0",
          "fastserve: q1 is '0', expected a number from 1e-06 to 1000 (s)");
}

static void test_lamps(void) {
  Applied x = apply(llama3_8b(), "lamps"), exact = apply(llama2_7b(), "lamps:predictor_ms=0");
  g_assert_cmpstr(x.config.scheduler, ==, "lamps");
  g_assert_cmpuint(x.config.calls.strategy, ==, KV_CALL_LEAST_WASTE);
  g_assert_cmpuint(x.config.max_batched_tokens, ==, 384);
  const KvWork *predictor = work_of(&x, "predict lengths");
  g_assert_cmpfloat(predictor->fixed_seconds, ==, 0.0137);
  g_assert_false(predictor->critical);
  g_assert_cmpuint(exact.plan->work->len, ==, 0);
  g_assert_cmpfloat(cost(&x, 1000, 900).resident_bytes[KV_TIER_HBM], ==,
                    1000.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(cost(&exact, 2000, 900).read_bytes, ==, 2000.0 * 2 * 32 * 32 * 128 * 2);
  kv_plan_free(x.plan);
  kv_plan_free(exact.plan);
  refused(llama2_7b(), "lamps:strategy=keep",
          "lamps: strategy is 'keep', expected preserve|discard|swap|least-waste");
}

static void test_cachedattention(void) {
  Applied x = apply(llama2_7b(), "cachedattention"),
          y = apply(llama3_8b(), "cachedattention:decoupled=off:policy=fifo");
  g_assert_cmpstr(x.config.store.policy, ==, "look-ahead");
  g_assert_cmpstr(y.config.store.policy, ==, "fifo");
  g_assert_cmpfloat(x.config.store.dram_bytes, ==, 128e9);
  g_assert_cmpfloat(x.config.store.ssd_bytes, ==, 10e12);
  g_assert_false(x.config.prefix_caching);
  /* Positions: two operations an element of every key, read and written in place. */
  const KvWork *rotate = work_of(&x, "rotate loaded keys");
  g_assert_cmpfloat(rotate->flops_per_token, ==, 2.0 * 32 * 32 * 128);
  g_assert_cmpfloat(rotate->bytes_per_token, ==, 2.0 * 32 * 32 * 128 * 2);
  g_assert_cmpuint(y.plan->work->len, ==, 0);
  g_assert_cmpfloat(cost(&x, 1000, 900).resident_bytes[KV_TIER_HBM], ==,
                    1000.0 * 2 * 32 * 32 * 128 * 2);
  g_assert_cmpfloat(cost(&y, 2000, 900).read_bytes, ==, 2000.0 * 2 * 32 * 8 * 128 * 2);
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
  refused(llama2_7b(), "snapkv,cachedattention",
          "cachedattention: a longer history does not begin with the cache of a shorter one "
          "(snapkv), expected caches that a next turn can continue");
  refused(
      llama2_7b(), "radixattention,cachedattention",
      "cachedattention: scheduling and memory are already those of radixattention, expected one "
      "serving system");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/serving/radixattention", test_radixattention);
  g_test_add_func("/serving/chunkattention", test_chunkattention);
  g_test_add_func("/serving/vtensor", test_vtensor);
  g_test_add_func("/serving/fastserve", test_fastserve);
  g_test_add_func("/serving/lamps", test_lamps);
  g_test_add_func("/serving/cachedattention", test_cachedattention);
  return g_test_run();
}
