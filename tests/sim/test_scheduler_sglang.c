/* SGLang, decision by decision, without its overlap: every step is decided by itself. */
#include "shapes.h"

#define SGLANG "engine.scheduler=sglang engine.async_scheduling=false engine.step_by_step=true "

/* A prompt that comes while others decode runs alone, and they wait for all of its chunks. */
static void test_prompts_first(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 60, 20, -1, 0);
  workload_add(workload, 0.0, 60, 20, -1, 0);
  g_autoptr(Replay) alone = replay(workload, SGLANG "engine.max_batched_tokens=128");
  assert_shape(alone, "2:120:0 0:0:2 0:0:2");
  workload_add(workload, within(alone, 1), 300, 5, -1, 0);
  g_autoptr(Replay) run = replay(workload, SGLANG "engine.max_batched_tokens=128");
  assert_shape(run, "2:120:0 0:0:2 1:128:0 1:128:0 1:44:0 0:0:3");
}

/* The rest of a cut prompt goes first; what it leaves of the chunk is for the next one. */
static void test_one_is_cut(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 100, 4, -1, 0);
  workload_add(workload, 0.0, 100, 4, -1, 0);
  g_autoptr(Replay) run = replay(workload, SGLANG "engine.max_batched_tokens=128");
  assert_shape(run, "2:128:0 1:72:0 0:0:2");
}

/* Without the prefix cache admission follows completions: two answers of 64 tokens do not fit into
 * 12 blocks beside prompts of 48, one does. */
static void test_room_for_answers(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 48, 64, -1, 0);
  workload_add(workload, 0.0, 48, 64, -1, 0);
  g_autoptr(Replay) run =
      replay(workload, SGLANG "engine.prefix_caching=false engine.num_blocks=12");
  assert_shape(run, "1:48:0 0:0:1");
  g_assert_cmpuint(run->summary->preemptions, ==, 0);
  g_autoptr(Replay) roomy =
      replay(workload, SGLANG "engine.prefix_caching=false engine.num_blocks=16");
  assert_shape(roomy, "2:96:0 0:0:2");
}

/* With it only a share of running answers is set aside, after 600 steps a tenth, so a decode step
 * may find no room: the sequence that has generated least gives its blocks back and is computed
 * again.
 */
static void test_retraction(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 32, 1000, -1, 0); /* 65 blocks in the end */
  g_autoptr(Replay) alone = replay(workload, SGLANG "engine.num_blocks=70");
  workload_add(workload, within(alone, 700), 32, 300, -1, 0); /* 21 */
  g_autoptr(Replay) run = replay(workload, SGLANG "engine.num_blocks=70");
  g_assert_cmpuint(run->outcomes[0].preemptions, ==, 0);
  g_assert_cmpuint(run->outcomes[1].preemptions, >, 0);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/scheduler/sglang/prompts-first", test_prompts_first);
  g_test_add_func("/scheduler/sglang/one-is-cut", test_one_is_cut);
  g_test_add_func("/scheduler/sglang/room-for-answers", test_room_for_answers);
  g_test_add_func("/scheduler/sglang/retraction", test_retraction);
  return g_test_run();
}
