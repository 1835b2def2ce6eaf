/* TensorRT-LLM, decision by decision, without its overlap: every step is decided by itself. */
#include "shapes.h"

#define TRTLLM "engine.scheduler=trtllm engine.async_scheduling=false engine.step_by_step=true "

/* Decodes and prompts share a step; without chunks a prompt waits until it fits whole. */
static void test_whole_prompts(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 60, 4, -1, 0);
  workload_add(workload, 0.0, 41, 4, -1, 0);
  workload_add(workload, 0.0, 10, 4, -1, 0);
  g_autoptr(Replay) whole = replay(workload, TRTLLM "engine.chunked_prefill=false "
                                                    "engine.max_batched_tokens=100 "
                                                    "engine.max_model_len=99");
  assert_shape(whole, "1:60:0 2:51:1 0:0:3");
  /* Chunks are whole blocks. */
  g_autoptr(Replay) cut = replay(workload, TRTLLM "engine.max_batched_tokens=100");
  assert_shape(cut, "2:92:0 2:19:1 0:0:3");
}

/* A request is admitted only with room for all of its answer, so nobody is ever preempted. */
static void test_no_eviction(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 64, 64, -1, 0); /* 8 blocks in the end */
  workload_add(workload, 0.0, 32, 32, -1, 0); /* 4 */
  workload_add(workload, 0.0, 16, 16, -1, 0); /* 2, behind the one that does not fit */
  g_autoptr(Replay) run = replay(workload, TRTLLM "engine.num_blocks=11");
  assert_shape(run, "1:64:0 0:0:1");
  g_assert_cmpuint(run->summary->preemptions, ==, 0);
  g_autoptr(Replay) roomy = replay(workload, TRTLLM "engine.num_blocks=12");
  assert_shape(roomy, "2:96:0 0:0:2");
  g_assert_cmpuint(roomy->summary->preemptions, ==, 0);
}

/* Beside decodes a prompt waits for more to come, three steps here; alone it does not. */
static void test_batch_waiting(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 60, 20, -1, 0);
  g_autoptr(Replay) alone = replay(workload, TRTLLM "engine.batch_wait_steps=3");
  workload_add(workload, within(alone, 1), 50, 4, -1, 0);
  g_autoptr(Replay) run = replay(workload, TRTLLM "engine.batch_wait_steps=3 "
                                                  "engine.batch_wait_share=0.9");
  assert_shape(run, "1:60:0 0:0:1 0:0:1 0:0:1 0:0:1 1:50:1 0:0:2");
  g_autoptr(Replay) full = replay(workload, TRTLLM "engine.batch_wait_steps=3 "
                                                   "engine.max_batched_tokens=128 "
                                                   "engine.batch_wait_share=0.3");
  assert_shape(full, "1:60:0 0:0:1 1:50:1 0:0:2");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/scheduler/trtllm/whole-prompts", test_whole_prompts);
  g_test_add_func("/scheduler/trtllm/no-eviction", test_no_eviction);
  g_test_add_func("/scheduler/trtllm/batch-waiting", test_batch_waiting);
  return g_test_run();
}
