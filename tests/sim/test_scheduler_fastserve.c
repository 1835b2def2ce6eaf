/* FastServe, decision by decision: quanta of the levels, who goes on, who is promoted, who is
 * swapped. */
#include "shapes.h"

#define ONE_BY_ONE "engine.step_by_step=true use=fastserve:q1=0.1"

/* The first operation whose end lies more than a quantum after the beginning. */
static guint quantum_ends(const Replay *run, double quantum) {
  guint i = 0;
  while (end_of(run, i) <= quantum)
    i++;
  return i;
}

/* Two requests in batches of one: the first goes on, being at the front, until its quantum of the
 * first level is used up; then the second runs to its end, and the first continues a level below.
 */
static void test_quantum(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 32, 60, -1, 0);
  workload_add(workload, 0.0, 32, 5, -1, 0);
  g_autoptr(Replay) run = replay(workload, ONE_BY_ONE ":max_batch_size=1");
  guint last = quantum_ends(run, 0.1);
  g_assert_cmpuint(last, >, 2);
  assert_at(run->outcomes[1].scheduled, end_of(run, last));
  assert_at(run->outcomes[1].last, end_of(run, last + 5));
  g_assert_cmpuint(run->operations[last + 1].chunks, ==, 1);
  g_assert_cmpuint(run->operations[last + 6].decodes, ==, 1);
  g_assert_cmpuint(run->n_operations, ==, 65);        /* nothing is computed twice */
  g_assert_cmpuint(run->summary->preemptions, ==, 0); /* it kept its blocks */
}

/* Three in batches of two. The pair is pushed to the front member by member, so its order turns
 * around at every iteration; both use up the quantum together and fall in the order of their last
 * batch. The one that was last is the first of its level, and runs beside the third request. */
static void test_last_in_first_out(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 32, 60, -1, 0);
  workload_add(workload, 0.0, 32, 60, -1, 0);
  workload_add(workload, 0.0, 32, 5, -1, 0);
  g_autoptr(Replay) run = replay(workload, ONE_BY_ONE ":max_batch_size=2");
  guint last = quantum_ends(run, 0.1), iterations = last + 1;
  assert_at(run->outcomes[2].scheduled, end_of(run, last));
  /* An odd iteration takes them as they came: 0, 1. */
  guint beside = iterations % 2 ? 1 : 0;
  g_assert_cmpfloat(run->outcomes[beside].last, <, run->outcomes[1 - beside].last);
  g_assert_cmpuint(run->operations[last + 1].chunks, ==, 1);
  g_assert_cmpuint(run->operations[last + 1].decodes, ==, 1);
}

/* A prompt whose prefill takes longer than the first quantum joins where it is covered, behind one
 * that comes later and is short; with a quantum that covers both, order of arrival decides. */
static void test_skip_join(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 3000, 2, -1, 0);
  workload_add(workload, 0.0, 32, 2, -1, 0);
  g_autoptr(Replay) skips = replay(workload, "use=fastserve:max_batch_size=1:q1=0.02");
  g_assert_cmpfloat(skips->outcomes[1].last, <=, skips->outcomes[0].scheduled);
  g_autoptr(Replay) joins = replay(workload, "use=fastserve:max_batch_size=1:q1=10");
  g_assert_cmpfloat(joins->outcomes[0].last, <=, joins->outcomes[1].scheduled);
}

/* Prompts of a batch stop before their tokens exceed the limit; the scan ends there. */
static void test_prompt_tokens(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 300, 3, -1, 0);
  workload_add(workload, 0.0, 300, 3, -1, 0);
  workload_add(workload, 0.0, 100, 3, -1, 0);
  g_autoptr(Replay) run = replay(workload, ONE_BY_ONE ":max_tokens_per_batch=500");
  assert_shape(run, "1:300:0 2:400:1 ");
}

/* While short requests keep coming, one that fell waits for them all, unless it is promoted. */
static void test_starvation(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 32, 40, -1, 0);
  for (guint i = 0; i < 60; i++)
    workload_add(workload, 0.05 * i, 32, 6, -1, 0);
  g_autoptr(Replay) starves =
      replay(workload, "use=fastserve:max_batch_size=1:q1=0.08:check_period=1:alpha=1000");
  g_autoptr(Replay) helped =
      replay(workload, "use=fastserve:max_batch_size=1:q1=0.08:check_period=1:alpha=0.2");
  g_assert_cmpfloat(helped->outcomes[0].last, <, starves->outcomes[0].last);
  for (guint i = 1; i <= 60; i++)
    g_assert_cmpfloat(starves->outcomes[i].last, <, starves->outcomes[0].last);
}

/* Fourteen blocks, a reserve of one. The first request holds ten when the second, of six, takes its
 * turn: ten go to the host and come back, nothing is computed again. Without a host it is. */
static void test_swapping(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 145, 40, -1, 0);
  workload_add(workload, 0.0, 81, 10, -1, 0);
  const char *on = ONE_BY_ONE ":max_batch_size=1:cpu_guard=0";
  g_autoptr(Replay) run = replay(workload, "%s engine.num_blocks=14", on);
  g_assert_cmpuint(run->summary->recomputed_tokens, ==, 0);
  g_assert_cmpuint(run->outcomes[0].preemptions, ==, 1);
  g_assert_cmpuint(run->outcomes[1].preemptions, ==, 0);
  guint held = (145 + quantum_ends(run, 0.1) + 15) / 16;
  g_assert_cmpuint(run->summary->swapped_out_blocks, ==, held);
  g_autoptr(Replay) alone = replay(workload, "%s:swap_space=0 engine.num_blocks=14", on);
  g_assert_cmpuint(alone->summary->swapped_out_blocks, ==, 0);
  g_assert_cmpuint(alone->summary->recomputed_tokens, >, 0);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/scheduler/fastserve/quantum", test_quantum);
  g_test_add_func("/scheduler/fastserve/last-in-first-out", test_last_in_first_out);
  g_test_add_func("/scheduler/fastserve/skip-join", test_skip_join);
  g_test_add_func("/scheduler/fastserve/prompt-tokens", test_prompt_tokens);
  g_test_add_func("/scheduler/fastserve/starvation", test_starvation);
  g_test_add_func("/scheduler/fastserve/swapping", test_swapping);
  return g_test_run();
}
