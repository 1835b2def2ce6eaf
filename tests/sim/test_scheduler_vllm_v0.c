/* vLLM's first engine without chunked prefill, decision by decision: every step is decided by
 * itself. */
#include "shapes.h"

#define V0                                                                                         \
  "engine.scheduler=vllm-v0 engine.chunked_prefill=false engine.async_scheduling=false "           \
  "engine.reserve_full_prompt=false engine.step_by_step=true "

/* Prompts first and alone, whatever decodes; several in one step. */
static void test_prompts_alone(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 3; i++)
    workload_add(workload, 0.0, 63, 20, -1, 0);
  g_autoptr(Replay) alone = replay(workload, V0);
  workload_add(workload, within(alone, 1), 10, 5, -1, 0);
  g_autoptr(Replay) run = replay(workload, V0);
  assert_shape(run, "3:189:0 0:0:3 1:10:0 0:0:4 0:0:4");
}

/* What is found in the cache is not computed, and does not count in the budget. */
static void test_prefix(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 80, 2, -1, 0);
  workload_add(workload, 1.0, 90, 2, 0, 80);
  workload_add(workload, 1.0, 85, 2, 0, 80);
  workload_add(workload, 1.0, 95, 2, -1, 0);
  g_autoptr(Replay) run =
      replay(workload, V0 "engine.max_batched_tokens=100 engine.max_model_len=100");
  /* 10 and 5 tokens fit beside each other, 95 more do not. */
  assert_shape(run, "1:80:0 0:0:1 2:15:0 1:95:0 0:0:3");
  g_assert_cmpuint(run->outcomes[1].hit_tokens, ==, 80);
  g_autoptr(Replay) unknown = replay(workload, V0 "engine.prefix_caching=false");
  g_assert_cmpuint(unknown->outcomes[1].hit_tokens, ==, 0);
}

/* A prompt whose blocks are on the lower tier only is loaded by the step that needs it: the running
 * sequence stands still meanwhile. */
static Workload *lost_from_memory(const char *settings) {
  Workload *workload = workload_new(16);
  workload_add(workload, 0.0, 800, 1, -1, 0);
  workload_add(workload, 1.0, 1200, 1, -1, 0); /* takes the place of the first */
  workload_add(workload, 2.0, 32, 60, -1, 0);
  g_autoptr(Replay) alone = replay(workload, "%s", settings);
  workload_add(workload, within(alone, 5), 810, 1, 0, 800);
  return workload;
}

static void test_load(void) {
  const char *settings = V0 "engine.num_blocks=80 prefix_cache.tier=dram";
  g_autoptr(Workload) workload = lost_from_memory(settings);
  g_autoptr(Replay) run = replay(workload, "%s", settings);
  g_assert_cmpuint(run->outcomes[3].hit_tokens, ==, 800);
  g_assert_cmpuint(run->outcomes[3].tier_tokens, ==, 768); /* two blocks were left in HBM */
  assert_shape(run, "1:800:0 1:1200:0 1:32:0 0:0:1 0:0:1 0:0:1 1:10:0 0:0:1");
  /* 768 tokens of 128 KiB at some 50 GB/s: 2 ms in which nothing else runs. */
  double gap = run->operations[6].start - end_of(run, 5);
  g_assert_cmpfloat(gap, >, 1e-3);
  g_assert_cmpfloat(gap, <, 1e-2);
  /* vLLM v1 parks the request, and goes on. */
  g_autoptr(Replay) v1 = replay(workload, "engine.num_blocks=80 prefix_cache.tier=dram "
                                          "engine.async_scheduling=false engine.step_by_step=true");
  g_assert_cmpfloat(v1->operations[6].start - end_of(v1, 5), <, 1e-3);
}

/* With `tier_only` HBM's own copy does not help. */
static void test_tier_only(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 800, 1, -1, 0);
  workload_add(workload, 1.0, 810, 1, 0, 800);
  g_autoptr(Replay) kept = replay(workload, V0 "prefix_cache.tier=dram");
  g_autoptr(Replay) loaded =
      replay(workload, V0 "prefix_cache.tier=dram prefix_cache.tier_only=true");
  g_autoptr(Replay) none = replay(workload, V0 "prefix_cache.tier_only=true");
  g_assert_cmpuint(kept->outcomes[1].tier_tokens, ==, 0);
  g_assert_cmpuint(loaded->outcomes[1].hit_tokens, ==, 800);
  g_assert_cmpuint(loaded->outcomes[1].tier_tokens, ==, 800);
  g_assert_cmpfloat(loaded->outcomes[1].first - kept->outcomes[1].first, >, 1e-3);
  assert_at(none->outcomes[1].first, kept->outcomes[1].first); /* no tier: HBM it is */
}

/* Blocks stay free at admission, and the youngest is computed again. */
static void test_room(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 960, 3, -1, 0);
  workload_add(workload, 0.0, 481, 2, -1, 0);
  g_autoptr(Replay) waits = replay(workload, V0 "engine.num_blocks=100 engine.watermark=0.1");
  assert_shape(waits, "1:960:0 0:0:1 0:0:1 1:481:0 0:0:1");
  g_autoptr(Workload) full = workload_new(0);
  workload_add(full, 0.0, 63, 20, -1, 0);
  workload_add(full, 0.0, 63, 20, -1, 0);
  g_autoptr(Replay) run = replay(full, V0 "engine.num_blocks=9");
  g_assert_cmpuint(run->outcomes[0].preemptions, ==, 0);
  g_assert_cmpuint(run->outcomes[1].preemptions, ==, 1);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/vllm-v0/prompts-alone", test_prompts_alone);
  g_test_add_func("/vllm-v0/prefix", test_prefix);
  g_test_add_func("/vllm-v0/load", test_load);
  g_test_add_func("/vllm-v0/tier-only", test_tier_only);
  g_test_add_func("/vllm-v0/room", test_room);
  return g_test_run();
}
