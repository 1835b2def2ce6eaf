/* Static batching, FlexGen's blocks and Orca, decision by decision: every step is decided by
 * itself. */
#include "shapes.h"

#define STEPS "engine.step_by_step=true "

/* A batch runs until its last member is done; all answers come back then, and only then the next
 * batch begins. */
static void test_static(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 10, 3, -1, 0);
  workload_add(workload, 0.0, 20, 6, -1, 0);
  workload_add(workload, 0.0, 30, 2, -1, 0);
  g_autoptr(Replay) run = replay(workload, STEPS "engine.scheduler=static engine.static_batch=2 "
                                                 "engine.max_model_len=1024");
  assert_shape(run, "2:30:0 0:0:2 0:0:2 0:0:1 0:0:1 0:0:1 1:30:0 0:0:1");
  const Outcome *o = run->outcomes;
  assert_at(o[0].first, end_of(run, 0));
  assert_at(o[0].last, end_of(run, 5));
  assert_at(o[1].last, end_of(run, 5));
  assert_at(o[2].scheduled, end_of(run, 5));
  /* The finished row is computed on: a step of one costs at least what two rows did at first. */
  g_assert_cmpfloat(run->operations[5].seconds, >=, run->operations[1].seconds);
  g_autoptr(Workload) alone = workload_new(0);
  workload_add(alone, 0.0, 20, 6, -1, 0);
  g_autoptr(Replay) single = replay(alone, STEPS "engine.scheduler=static");
  g_assert_cmpfloat(run->operations[5].seconds, >, single->operations[5].seconds);
}

/* With as many as memory allows, what a batch reserves is its members' prompts and outputs. */
static void test_static_memory(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 5; i++)
    workload_add(workload, 0.0, 40, 8, -1, 0); /* three blocks */
  g_autoptr(Replay) run = replay(workload, STEPS "engine.scheduler=static engine.num_blocks=8");
  assert_shape(run, "2:80:0 0:0:2");
  g_assert_cmpuint(run->operations[8].chunks, ==, 2);
  g_assert_cmpuint(run->operations[16].chunks, ==, 1);
}

/* FlexGen: blocks of gpu_batch * n_gpu_batches, one after another. */
static void test_flexgen(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 7; i++)
    workload_add(workload, 0.0, 10, 3, -1, 0);
  g_autoptr(Replay) run =
      replay(workload, STEPS "engine.scheduler=flexgen engine.gpu_batch=3 "
                             "engine.n_gpu_batches=2 engine.max_model_len=1024");
  assert_shape(run, "6:60:0 0:0:6 0:0:6 1:10:0 0:0:1 0:0:1");
}

/* Orca: requests join and leave at every iteration, whole prompts beside decodes, up to max_bs. */
static void test_orca(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 10, 3, -1, 0);
  workload_add(workload, 0.0, 20, 6, -1, 0);
  workload_add(workload, 0.0, 30, 4, -1, 0);
  g_autoptr(Replay) run = replay(workload, "use=orca:max_bs=2 " STEPS "engine.max_model_len=1024");
  assert_shape(run, "2:30:0 0:0:2 0:0:2 1:30:1 0:0:2 0:0:2 0:0:1");
  assert_at(run->outcomes[0].last, end_of(run, 2));
  assert_at(run->outcomes[2].first, end_of(run, 3));
}

/* The head waits for a hole, and everybody behind it. Eight blocks hold, of requests of 33 tokens
 * (three blocks) that will be 48: two reservations of four by the buddy allocator, though the third
 * needs two and two are left over; with the greatest length of 64 likewise. */
static void test_orca_reservations(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 33, 15, -1, 0);
  workload_add(workload, 0.0, 33, 15, -1, 0);
  workload_add(workload, 0.0, 20, 12, -1, 0);
  const char *rest = STEPS "engine.num_blocks=8 engine.max_model_len=64";
  g_autoptr(Replay) oracle = replay(workload, "use=orca:max_bs=8:reservation=oracle %s", rest);
  assert_shape(oracle, "2:66:0 0:0:2");
  assert_at(oracle->outcomes[2].scheduled, oracle->outcomes[0].last);
  g_autoptr(Replay) max = replay(workload, "use=orca:max_bs=8:reservation=max %s", rest);
  assert_shape(max, "2:66:0 0:0:2");
  /* One block more is of use to a reservation of one block only. */
  g_autoptr(Replay) more =
      replay(workload, "use=orca:max_bs=8:reservation=oracle " STEPS "engine.num_blocks=9");
  assert_shape(more, "2:66:0 0:0:2");
  g_autoptr(Replay) enough =
      replay(workload, "use=orca:max_bs=8:reservation=oracle " STEPS "engine.num_blocks=10");
  assert_shape(enough, "3:86:0 0:0:3");
}

/* The next power of two of the output: 17 tokens reserve 32, so 16 + 32 tokens need three blocks,
 * which the allocator rounds to four; exactly, 33 tokens are three blocks too, but 16 + 16 only
 * two. */
static void test_orca_pow2(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 4; i++)
    workload_add(workload, 0.0, 15, 17, -1, 0); /* 32 tokens: two blocks; by powers of two 47 */
  const char *rest = STEPS "engine.num_blocks=8 engine.max_model_len=64";
  g_autoptr(Replay) oracle = replay(workload, "use=orca:max_bs=8:reservation=oracle %s", rest);
  assert_shape(oracle, "4:60:0");
  g_autoptr(Replay) pow2 = replay(workload, "use=orca:max_bs=8:reservation=pow2 %s", rest);
  assert_shape(pow2, "2:30:0");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/sim/static/batch", test_static);
  g_test_add_func("/sim/static/memory", test_static_memory);
  g_test_add_func("/sim/flexgen/blocks", test_flexgen);
  g_test_add_func("/sim/orca/iterations", test_orca);
  g_test_add_func("/sim/orca/reservations", test_orca_reservations);
  g_test_add_func("/sim/orca/pow2", test_orca_pow2);
  return g_test_run();
}
