/* vLLM of 2023, decision by decision, on examples small enough to follow by hand: every step is
 * decided by itself. */
#include "shapes.h"

#define PROMPTS_FIRST "use=vllm engine.step_by_step=true "
#define MIXED "use=vllm:version=2023-mixed engine.step_by_step=true "

/* Three sequences of 63 tokens, and a short one that comes while operation 1 of them runs. */
static Workload *three_and_one(const char *settings) {
  Workload *workload = workload_new(0);
  for (guint i = 0; i < 3; i++)
    workload_add(workload, 0.0, 63, 20, -1, 0);
  g_autoptr(Replay) alone = replay(workload, "%s", settings);
  workload_add(workload, within(alone, 1), 10, 5, -1, 0);
  return workload;
}

/* An iteration runs either prompts or decodes, and prompts go first. */
static void test_prompts_alone(void) {
  g_autoptr(Workload) workload = three_and_one(PROMPTS_FIRST);
  g_autoptr(Replay) run = replay(workload, PROMPTS_FIRST);
  assert_shape(run, "3:189:0 0:0:3 1:10:0 0:0:4 0:0:4");
  g_autoptr(Replay) mixed = replay(workload, MIXED);
  assert_shape(mixed, "3:189:0 0:0:3 1:10:3 0:0:4");
}

/* Whole prompts only, in order: what exceeds the budget waits for the next iteration, and those
 * behind it with it. The mixed form counts running sequences in the budget. */
static void test_budget(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 60, 4, -1, 0);
  workload_add(workload, 0.0, 41, 4, -1, 0);
  workload_add(workload, 0.0, 10, 4, -1, 0);
  g_autoptr(Replay) first =
      replay(workload, PROMPTS_FIRST "engine.max_batched_tokens=100 engine.max_model_len=99");
  assert_shape(first, "1:60:0 2:51:0 0:0:3");
  g_autoptr(Replay) equal =
      replay(workload, PROMPTS_FIRST "engine.max_batched_tokens=101 engine.max_model_len=99");
  assert_shape(equal, "2:101:0 1:10:0 0:0:3");
  g_autoptr(Replay) mixed =
      replay(workload, MIXED "engine.max_batched_tokens=100 engine.max_model_len=99");
  assert_shape(mixed, "1:60:0 2:51:1 0:0:3");
  g_autoptr(Workload) crowded = workload_new(0);
  workload_add(crowded, 0.0, 60, 4, -1, 0);
  workload_add(crowded, 0.0, 61, 4, -1, 0);
  workload_add(crowded, 0.0, 39, 4, -1, 0);
  g_autoptr(Replay) counted =
      replay(crowded, MIXED "engine.max_batched_tokens=100 engine.max_model_len=99");
  assert_shape(counted, "1:60:0 1:61:1 1:39:2 0:0:3");
}

/* A tenth of 100 blocks stays free when a prompt is admitted, not when sequences grow. */
static void test_watermark(void) {
  g_autoptr(Workload) fits = workload_new(0), waits = workload_new(0);
  workload_add(fits, 0.0, 960, 3, -1, 0); /* 60 blocks, and one more later */
  workload_add(fits, 0.0, 480, 2, -1, 0); /* 30 */
  workload_add(waits, 0.0, 960, 3, -1, 0);
  workload_add(waits, 0.0, 481, 2, -1, 0); /* 31 */
  const char *settings = "use=vllm:watermark=0.1 engine.step_by_step=true engine.num_blocks=100";
  g_autoptr(Replay) a = replay(fits, "%s", settings);
  assert_shape(a, "2:1440:0 0:0:2 0:0:1");
  g_autoptr(Replay) b = replay(waits, "%s", settings);
  assert_shape(b, "1:960:0 0:0:1 0:0:1 1:481:0 0:0:1");
  g_assert_cmpuint(a->summary->preemptions, ==, 0);
}

/* The youngest goes back to the head of the queue and is computed again, prompt and answer as one
 * prompt. */
static void test_recompute(void) {
  g_autoptr(Workload) workload = three_and_one(PROMPTS_FIRST);
  g_autoptr(Replay) run =
      replay(workload, "use=vllm:watermark=0 engine.step_by_step=true engine.num_blocks=13 "
                       "engine.max_seqs=3");
  /* The second decode step needs a block for each, and one is free. */
  assert_shape(run, "3:189:0 0:0:3 0:0:2 0:0:2");
  const Outcome *o = run->outcomes;
  g_assert_cmpuint(o[2].preemptions, ==, 1);
  g_assert_cmpuint(o[2].recomputed_tokens, ==, 64);
  g_assert_cmpuint(o[0].preemptions + o[1].preemptions + o[3].preemptions, ==, 0);
  g_assert_cmpuint(run->operations[20].chunks, ==, 2); /* it and the one behind it */
  g_assert_cmpuint(run->operations[20].chunk_tokens, ==, 65 + 10);
  assert_at(o[3].scheduled, o[0].last);
}

/* The youngest is copied to the host. While it is there nobody is admitted, though there is room;
 * it comes back whole and goes on decoding at once. */
static void test_swap(void) {
  g_autoptr(Workload) workload = three_and_one(PROMPTS_FIRST);
  g_autoptr(Replay) run =
      replay(workload, "use=vllm:watermark=0:preemption_mode=swap engine.step_by_step=true "
                       "engine.num_blocks=13 engine.max_seqs=3");
  assert_shape(run, "3:189:0 0:0:3 0:0:2 0:0:2");
  const Outcome *o = run->outcomes;
  g_assert_cmpuint(o[2].preemptions, ==, 1);
  g_assert_cmpuint(o[2].recomputed_tokens, ==, 0);
  g_assert_cmpuint(run->summary->swapped_out_blocks, ==, 4);
  g_assert_cmpuint(run->summary->swapped_in_blocks, ==, 4);
  /* Both copies lie before the step that waits for them. */
  double plain = run->operations[3].seconds;
  g_assert_cmpfloat(run->operations[2].seconds, >, plain);
  g_assert_cmpuint(run->operations[20].chunks, ==, 0);
  g_assert_cmpuint(run->operations[20].decodes, ==, 1);
  g_assert_cmpfloat(run->operations[20].seconds, >, run->operations[22].seconds);
  /* Then the one that waited, alone. */
  g_assert_cmpuint(run->operations[21].chunks, ==, 1);
  g_assert_cmpuint(run->operations[21].chunk_tokens, ==, 10);
  assert_at(o[3].scheduled, end_of(run, 20));
}

/* What was swapped out comes back when nothing else runs, though it leaves less than the watermark
 * free: all but one of 100 blocks. */
static void test_swap_in_alone(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 2, 30, -1, 0);    /* its second block: at the 15th decode step */
  workload_add(workload, 0.0, 1560, 24, -1, 0); /* 98 blocks, and the 99th before that */
  g_autoptr(Replay) run =
      replay(workload, "use=vllm:watermark=0.01:preemption_mode=swap engine.num_blocks=100");
  g_assert_cmpuint(run->outcomes[1].preemptions, ==, 1);
  g_assert_cmpuint(run->summary->swapped_in_blocks, ==, 99);
  g_assert_cmpfloat(run->outcomes[1].last, >, run->outcomes[0].last);
}

/* A host without room: recomputation. */
static void test_swap_space_full(void) {
  g_autoptr(Workload) workload = three_and_one(PROMPTS_FIRST);
  g_autoptr(Replay) run = replay(
      workload, "use=vllm:watermark=0:preemption_mode=swap:swap_space=0 engine.step_by_step=true "
                "engine.num_blocks=13 engine.max_seqs=3");
  g_assert_cmpuint(run->summary->swapped_out_blocks, ==, 0);
  g_assert_cmpuint(run->outcomes[2].recomputed_tokens, ==, 64);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/sim/vllm-2023/prompts-alone", test_prompts_alone);
  g_test_add_func("/sim/vllm-2023/budget", test_budget);
  g_test_add_func("/sim/vllm-2023/watermark", test_watermark);
  g_test_add_func("/sim/vllm-2023/recompute", test_recompute);
  g_test_add_func("/sim/vllm-2023/swap", test_swap);
  g_test_add_func("/sim/vllm-2023/swap-in-alone", test_swap_in_alone);
  g_test_add_func("/sim/vllm-2023/swap-space-full", test_swap_space_full);
  return g_test_run();
}
