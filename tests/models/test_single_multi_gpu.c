/* DistServe's and Tree Attention's entries: what they set, what is split, and what they refuse. The
 * schedulers and the pull are followed in tests/sim/test_scheduler_distserve.c. */
#include "applied.h"
#include "models/kernels/kernels.h"
#include "sim/engine/predict.h"

static void test_distserve(void) {
  Applied x = apply(llama2_7b(), "distserve:prefill_instances=2:decode_instances=3:prefill_tp=2");
  g_assert_cmpstr(x.config.scheduler, ==, "distserve");
  g_assert_cmpstr(x.config.router, ==, "shortest-queue");
  g_assert_cmpuint(x.config.prefill_instances, ==, 2);
  g_assert_cmpuint(x.config.decode_instances, ==, 3);
  g_assert_cmpuint(x.config.prefill_tensor_parallel, ==, 2);
  g_assert_cmpuint(x.config.max_batched_tokens, ==, 8192);
  g_assert_cmpuint(x.config.max_seqs, ==, 128);
  g_assert_cmpuint(x.config.decode_max_seqs, ==, 1024);
  g_assert_cmpfloat(x.config.pull_share, ==, 0.05);
  /* The cache is that of the model: what is pulled per token is 2 L Hkv d e. */
  g_assert_cmpfloat(cost(&x, 1000, 1000).resident_bytes[KV_TIER_HBM], ==, 1000.0 * 524288);
  kv_plan_free(x.plan);
  Applied few = apply(llama3_8b(), "distserve:decode_max_tokens=64");
  g_assert_cmpuint(few.config.decode_max_seqs, ==, 64);
  g_assert_cmpfloat(cost(&few, 4000, 4000).resident_bytes[KV_TIER_HBM], ==, 4000.0 * 131072);
  kv_plan_free(few.plan);
  refused(
      llama2_7b(), "orca,distserve",
      "distserve: scheduling and memory are already those of orca, expected one serving system");
}

static KvScenario *scenario_of(const char *model, const char *platform, const char *use) {
  KvScenario *s = kv_scenario_new();
  g_free(s->model);
  g_free(s->platform);
  g_free(s->use);
  s->model = g_strdup(model);
  s->platform = g_strdup(platform);
  s->use = g_strdup(use);
  return s;
}

typedef struct {
  double seconds, attention, communication, hbm_bytes, flops;
  KvPlatform *platform;
} Step;

static Step step_of(const char *model, const char *platform, const char *use, guint batch,
                    guint context) {
  g_autoptr(KvScenario) s = scenario_of(model, platform, use);
  g_autoptr(GError) error = NULL;
  g_autoptr(KvSetup) setup = kv_setup_new(s, TRUE, &error);
  g_assert_no_error(error);
  KvStepQuestion q = {.decode = TRUE, .batch = batch, .context_tokens = context};
  KvPrediction p;
  g_assert_true(kv_predict(setup, &q, &p, &error));
  const KvStepCost *c = &p.cost;
  Step step = {c->seconds,
               c->component_seconds[KV_COMPONENT_DECODE_ATTENTION],
               c->component_seconds[KV_COMPONENT_COMMUNICATION],
               c->component_bytes[KV_COMPONENT_DECODE_ATTENTION],
               c->component_flops[KV_COMPONENT_DECODE_ATTENTION],
               g_steal_pointer(&setup->platform)};
  kv_prediction_clear(&p);
  return step;
}

/* A GPU of eight reads and multiplies an eighth; three reductions a layer, whatever the context. */
static void test_tree(void) {
  const char *const models[] = {"llama-2-7b", "llama-3.1-8b"};
  for (guint m = 0; m < 2; m++) {
    double communication = 0.0;
    for (guint n = 4096; n <= 65536; n *= 16) {
      Step one = step_of(models[m], "8xh100-sxm", "", 1, n);
      Step eight = step_of(models[m], "8xh100-sxm", "tree-attention:P=8", 1, n);
      g_assert_cmpfloat_with_epsilon(eight.hbm_bytes, one.hbm_bytes / 8, 1.0);
      g_assert_cmpfloat_with_epsilon(eight.flops, one.flops / 8, 1.0);
      if (communication > 0.0)
        g_assert_cmpfloat_with_epsilon(eight.communication, communication, 1e-12);
      communication = eight.communication;
      /* 32 layers: [32 heads x 128] of 2 bytes, and twice 32 of 4, along trees of depth 3. */
      const KvLink *link = one.platform->gpu_link;
      double rate = link->peak_Bps * link->achievable_share;
      double expected = 32.0 * (3 * (20e-6 + 3 * link->latency_seconds) +
                                2.0 * 7 / 8 * (32 * 128 * 2.0 + 2 * 32 * 4.0) / rate);
      g_assert_cmpfloat_with_epsilon(communication, expected, 1e-9);
      kv_platform_free(one.platform);
      kv_platform_free(eight.platform);
    }
  }
  /* Two reductions spare a third of the latency. */
  Step fused = step_of("llama-2-7b", "8xh100-sxm", "tree-attention:P=8:collectives=2", 1, 4096);
  Step apart = step_of("llama-2-7b", "8xh100-sxm", "tree-attention:P=8", 1, 4096);
  double spared = apart.communication - fused.communication;
  g_assert_cmpfloat_with_epsilon(
      spared, 32.0 * (20e-6 + 3 * fused.platform->gpu_link->latency_seconds), 1e-9);
  kv_platform_free(fused.platform);
  kv_platform_free(apart.platform);
}

/* Eight shards pass by: each of seven hops of 32 heads x 128 x 2 x 2 bytes x n/8, or the attention
 * to a shard if that is longer. */
static void test_ring(void) {
  guint n = 65536;
  Step tree = step_of("llama-2-7b", "8xh100-sxm", "tree-attention:P=8", 1, n);
  Step ring = step_of("llama-2-7b", "8xh100-sxm", "tree-attention:P=8:combine=ring", 1, n);
  double shard = 32 * 128 * 4.0 * n / 8, t = tree.attention / 32;
  double hop = kv_kernel_send(ring.platform->gpu_link, shard).seconds + 20e-6;
  double expected = 32 * (t + 7 * MAX(t, hop));
  g_assert_cmpfloat_with_epsilon(ring.attention, expected, 1e-3 * expected);
  g_assert_cmpfloat(ring.communication, ==, 0.0);
  g_assert_cmpfloat_with_epsilon(ring.flops, 8 * tree.flops, 1.0);
  g_assert_cmpfloat(ring.seconds, >, 2.0 * tree.seconds);
  kv_platform_free(tree.platform);
  kv_platform_free(ring.platform);
}

/* Between nodes the network's latency counts, and a ring is as slow as the network. */
static void test_nodes(void) {
  Step node = step_of("llama-2-7b", "16xh100-sxm", "tree-attention:P=16", 1, 65536);
  Step two = step_of("llama-2-7b", "2x8xh100-sxm", "tree-attention:P=16", 1, 65536);
  Step ring = step_of("llama-2-7b", "2x8xh100-sxm", "tree-attention:P=16:combine=ring", 1, 65536);
  const KvLink *link = two.platform->gpu_link, *network = two.platform->network;
  double scores = 2 * 32 * 4.0, payload = 32 * 128 * 2.0 + scores;
  double rate = link->peak_Bps * link->achievable_share;
  double slow = network->peak_Bps * network->achievable_share;
  double one_level = 3 * 4 * link->latency_seconds + 2.0 * 15 / 16 * payload / rate;
  double levels = 3 * (3 * link->latency_seconds + network->latency_seconds) +
                  2.0 * 7 / 8 * payload / rate + 2.0 * 1 / 2 * payload / slow;
  g_assert_cmpfloat_with_epsilon(two.communication - node.communication, 32 * (levels - one_level),
                                 1e-9);
  double hop = kv_kernel_send(network, 32 * 128 * 4.0 * 65536 / 16).seconds + 20e-6;
  g_assert_cmpfloat(ring.attention, >, 32 * 15 * hop);
  kv_platform_free(node.platform);
  kv_platform_free(two.platform);
  kv_platform_free(ring.platform);
}

/* The groups' memory is one: eight times the blocks, but for rounding. */
static void test_memory(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvScenario) one = scenario_of("llama-2-7b", "8xh100-sxm", "");
  g_autoptr(KvScenario) eight = scenario_of("llama-2-7b", "8xh100-sxm", "tree-attention");
  g_autoptr(KvSetup) a = kv_setup_new(one, TRUE, &error);
  g_autoptr(KvSetup) b = kv_setup_new(eight, TRUE, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(b->scenario->engine.context_parallel, ==, 8);
  g_assert_cmpfloat_with_epsilon((double)b->memory.blocks, 8.0 * (double)a->memory.blocks, 16.0);
  g_autoptr(KvScenario) many = scenario_of("llama-2-7b", "8xh100-sxm", "tree-attention:P=16");
  g_autoptr(KvSetup) none = kv_setup_new(many, TRUE, &error);
  g_assert_null(none);
  g_assert_cmpstr(error->message, ==,
                  "1 replicas of 16 groups of 1 GPUs need 16 GPUs, platform 8xh100-sxm has 8 (8 a "
                  "node), expected a larger platform such as 16xh100-sxm");
}

static void test_refusals(void) {
  refused(llama2_7b(), "distserve,tree-attention",
          "tree-attention: instances have roles already (distserve), expected instances that do "
          "everything");
  refused(llama2_7b(), "instinfer,tree-attention",
          "tree-attention: 'tokens' of the cache lives in csd, expected a cache in the GPUs' own "
          "memory");
  KvModel sliding = llama2_7b();
  sliding.groups[0].attention.kind = KV_ATTENTION_SLIDING;
  sliding.groups[0].attention.window_tokens = 1024;
  refused(sliding, "tree-attention",
          "tree-attention: layers of llama-2-7b have sliding attention, expected attention to the "
          "whole context, which is what is split");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/single-multi-gpu/distserve", test_distserve);
  g_test_add_func("/single-multi-gpu/tree", test_tree);
  g_test_add_func("/single-multi-gpu/ring", test_ring);
  g_test_add_func("/single-multi-gpu/nodes", test_nodes);
  g_test_add_func("/single-multi-gpu/memory", test_memory);
  g_test_add_func("/single-multi-gpu/refusals", test_refusals);
  return g_test_run();
}
