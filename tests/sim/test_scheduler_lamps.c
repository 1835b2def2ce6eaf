/* API calls in the middle of answers, and LAMPS: how a call is handled, and who runs first. */
#include "shapes.h"

#define EXACT "engine.step_by_step=true use=lamps:block_size=16:bin_tokens=0:predictor_ms=0"

/* 100 tokens of prompt, ten of the answer, a call of one second that returns 50, ten more. Kept,
 * the call's 51 tokens (the last one generated and what came back) are all that is computed;
 * dropped, all 160. The first token after it comes a second and a step after the last one before
 * it. */
static void test_handling(void) {
  static const struct {
    const char *strategy;
    guint computed, recomputed;
  } cases[] = {{"preserve", 51, 0}, {"discard", 160, 109}, {"swap", 51, 0}};
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    g_autoptr(Workload) workload = workload_new(0);
    workload_add(workload, 0.0, 100, 20, -1, 0);
    workload_call(workload, 10, 1.0, 50);
    g_autoptr(Replay) run = replay(workload, EXACT ":strategy=%s", cases[c].strategy);
    g_assert_cmpuint(run->n_operations, ==, 10 + 10); /* a prompt and nine steps, twice */
    g_assert_cmpuint(run->operations[0].chunk_tokens, ==, 100);
    g_assert_cmpuint(run->operations[10].chunk_tokens, ==, cases[c].computed);
    g_assert_cmpuint(run->operations[11].context, ==, 161);
    g_assert_cmpuint(run->outcomes[0].recomputed_tokens, ==, cases[c].recomputed);
    double back = run->operations[10].start - end_of(run, 9);
    g_assert_cmpfloat(back, >=, 1.0);
    g_assert_cmpfloat(back, <, c == 2 ? 1.1 : 1.001);
  }
}

/* Any other scheduler takes each part as a request: dropped, and to the end of the queue. */
static void test_other_schedulers(void) {
  static const char *const schedulers[] = {"vllm-v1",   "sglang", "trtllm",
                                           "vllm-2023", "orca",   "static"};
  for (guint s = 0; s < G_N_ELEMENTS(schedulers); s++) {
    g_autoptr(Workload) workload = workload_new(0);
    workload_add(workload, 0.0, 100, 20, -1, 0);
    workload_call(workload, 1, 0.5, 50);
    workload_call(workload, 19, 0.5, 1);
    g_autoptr(Replay) run =
        replay(workload, "engine.scheduler=%s engine.async_scheduling=false", schedulers[s]);
    g_assert_cmpfloat(run->outcomes[0].last, >, 1.0);
    g_assert_cmpuint(run->summary->output_tokens, ==, 20);
    g_assert_cmpuint(run->outcomes[0].recomputed_tokens, >, 0);
  }
}

/* Least waste without swap space and without others: kept while the call is shorter than computing
 * the context again, dropped if it is longer. A prompt of 3000 takes some tens of milliseconds. */
static void test_least_waste(void) {
  static const double seconds[] = {0.001, 10.0};
  for (guint c = 0; c < G_N_ELEMENTS(seconds); c++) {
    g_autoptr(Workload) workload = workload_new(0);
    workload_add(workload, 0.0, 3000, 20, -1, 0);
    workload_call(workload, 10, seconds[c], 0);
    g_autoptr(Replay) run = replay(workload, EXACT ":swap_space=0");
    g_assert_cmpuint(run->outcomes[0].recomputed_tokens, ==, c ? 3009 : 0);
  }
}

/* Behind a running request three wait: a long answer, a short one, and a short one with a long call
 * that must be kept. Memory over time puts the short one first and the one with the call last. */
static void test_order(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 64, 20, -1, 0);
  workload_add(workload, 0.001, 64, 20, -1, 0);
  workload_call(workload, 10, 30.0, 0);
  workload_add(workload, 0.002, 64, 200, -1, 0);
  workload_add(workload, 0.003, 64, 20, -1, 0);
  const char *one = "engine.max_seqs=1";
  g_autoptr(Replay) ranked = replay(workload, EXACT ":strategy=preserve:threshold=100000 %s", one);
  g_assert_cmpfloat(ranked->outcomes[3].last, <=, ranked->outcomes[2].scheduled);
  g_assert_cmpfloat(ranked->outcomes[2].last, <=, ranked->outcomes[1].scheduled);
  g_autoptr(Replay) released =
      replay(workload, EXACT ":strategy=preserve:threshold=100000:impl=released %s", one);
  g_assert_cmpfloat(released->outcomes[2].scheduled, <=, released->outcomes[1].scheduled);
  g_autoptr(Replay) arrival = replay(workload, EXACT ":strategy=preserve:rank=off %s", one);
  g_assert_cmpfloat(arrival->outcomes[1].scheduled, <, arrival->outcomes[2].scheduled);
  g_assert_cmpfloat(arrival->outcomes[2].last, <=, arrival->outcomes[3].scheduled);
}

/* Who has waited for more than the threshold goes first, however long its answer. */
static void test_starvation(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 64, 30, -1, 0);
  workload_add(workload, 0.001, 64, 300, -1, 0);
  for (guint i = 0; i < 20; i++)
    workload_add(workload, 0.002, 64, 30, -1, 0);
  g_autoptr(Replay) run = replay(workload, EXACT ":threshold=100 engine.max_seqs=1");
  guint before = 0;
  for (guint i = 2; i < 22; i++)
    before += run->outcomes[i].last <= run->outcomes[1].scheduled;
  /* It is seen at iteration 1; 30 iterations a request: after 120, with the first, three have run.
   */
  g_assert_cmpuint(before, ==, 3);
  g_autoptr(Replay) patient = replay(workload, EXACT ":threshold=1000000 engine.max_seqs=1");
  for (guint i = 2; i < 22; i++)
    g_assert_cmpfloat(patient->outcomes[i].last, <=, patient->outcomes[1].scheduled);
}

/* A call keeps eight of ten blocks for ten seconds; the next request needs five: what is kept goes,
 * although it was to be preserved, as computing it again wastes less. */
static void test_pressure(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 120, 20, -1, 0);
  workload_call(workload, 5, 10.0, 0);
  workload_add(workload, 1.0, 70, 5, -1, 0);
  g_autoptr(Replay) run = replay(workload, EXACT ":strategy=preserve engine.num_blocks=10");
  g_assert_cmpfloat(run->outcomes[1].last, <, 2.0);
  g_assert_cmpuint(run->outcomes[0].recomputed_tokens, ==, 124);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/scheduler/lamps/handling", test_handling);
  g_test_add_func("/scheduler/lamps/other-schedulers", test_other_schedulers);
  g_test_add_func("/scheduler/lamps/least-waste", test_least_waste);
  g_test_add_func("/scheduler/lamps/order", test_order);
  g_test_add_func("/scheduler/lamps/starvation", test_starvation);
  g_test_add_func("/scheduler/lamps/pressure", test_pressure);
  return g_test_run();
}
