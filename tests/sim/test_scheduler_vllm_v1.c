/* vLLM v1, decision by decision, on examples small enough to follow by hand. Where nothing else is
 * said every step is decided by itself and scheduling is synchronous. */
#include "shapes.h"

#define SYNC                                                                                       \
  "engine.step_by_step=true engine.async_scheduling=false engine.between_steps_seconds=0 "
#define ASYNC "engine.step_by_step=true engine.between_steps_seconds=0 "

/* A and B decode; C and D come while operation 2 runs. */
static Workload *four_requests(const char *settings) {
  g_autoptr(Workload) two = workload_new(0);
  workload_add(two, 0.0, 100, 20, -1, 0);
  workload_add(two, 0.0, 100, 20, -1, 0);
  g_autoptr(Replay) alone = replay(two, "%s", settings);
  Workload *four = workload_new(0);
  workload_add(four, 0.0, 100, 20, -1, 0);
  workload_add(four, 0.0, 100, 20, -1, 0);
  workload_add(four, within(alone, 2), 3000, 20, -1, 0);
  workload_add(four, within(alone, 2), 500, 20, -1, 0);
  return four;
}

/* Running sequences first, then prompts in order, the one that exceeds the budget cut; D and the
 * rest of C share the next step and both emit at its end. */
static void test_budget(void) {
  const char *settings = SYNC "engine.max_batched_tokens=2048";
  g_autoptr(Workload) four = four_requests(settings);
  g_autoptr(Replay) run = replay(four, "%s", settings);
  assert_shape(run, "2:200:0 0:0:2 0:0:2 1:2046:2 2:1454:2 0:0:4 0:0:4");
  assert_at(run->outcomes[2].scheduled, end_of(run, 2));
  assert_at(run->outcomes[3].scheduled, end_of(run, 3));
  assert_at(run->outcomes[2].first, end_of(run, 4));
  assert_at(run->outcomes[3].first, end_of(run, 4));
}

/* Asynchronous: what comes while step m runs is decided when it ends and runs as m + 2. */
static void test_async_arrival(void) {
  const char *settings = ASYNC "engine.max_batched_tokens=2048";
  g_autoptr(Workload) four = four_requests(settings);
  g_autoptr(Replay) run = replay(four, "%s", settings);
  assert_shape(run, "2:200:0 0:0:2 0:0:2 0:0:2 1:2046:2 2:1454:2 0:0:4");
  assert_at(run->outcomes[2].scheduled, end_of(run, 2));
  assert_at(run->outcomes[2].first, end_of(run, 5));
  /* No gap: each step starts when the one before it ends. */
  for (guint i = 1; i < run->n_operations; i++)
    assert_at(run->operations[i].start, end_of(run, i - 1));
}

/* C is admitted only if the blocks of its whole prompt are free: 188 beside the 14 of A and B,
 * although its first chunk needs 128. D, which would fit, does not pass it. */
static void test_whole_prompt(void) {
  const char *settings = SYNC "engine.max_batched_tokens=2048";
  g_autoptr(Workload) four = four_requests(settings);
  g_autoptr(Replay) fits = replay(four, "%s engine.num_blocks=202", settings);
  assert_shape(fits, "2:200:0 0:0:2 0:0:2 1:2046:2 1:954:2 0:0:3");
  g_autoptr(Replay) short_of_one = replay(four, "%s engine.num_blocks=201", settings);
  assert_shape(short_of_one, "2:200:0 0:0:2 0:0:2 0:0:2 0:0:2");
  assert_at(short_of_one->outcomes[2].scheduled, short_of_one->outcomes[0].last);
  g_assert_cmpfloat(short_of_one->outcomes[3].scheduled, >=, short_of_one->outcomes[2].scheduled);
  g_autoptr(Replay) chunk_only =
      replay(four, "%s engine.num_blocks=201 engine.reserve_full_prompt=false", settings);
  assert_shape(chunk_only, "2:200:0 0:0:2 0:0:2 1:2046:2");
}

/* Three sequences of 63 tokens take 12 of 13 blocks. The second decode step needs a block for each:
 * the one admitted last is preempted, nothing is admitted in that step, and D waits behind the
 * victim, which stands at the head again. */
static void test_preemption(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 3; i++)
    workload_add(workload, 0.0, 63, 20, -1, 0);
  workload_add(workload, 1e-6, 10, 5, -1, 0);
  g_autoptr(Replay) run = replay(workload, SYNC "engine.num_blocks=13 engine.max_seqs=4");
  /* D's single block is free at first, then the victim's. 63 + 20 tokens: 18 steps for two. */
  assert_shape(run, "3:189:0 1:10:3");
  const Outcome *o = run->outcomes;
  g_assert_cmpuint(o[0].preemptions + o[1].preemptions, ==, 0);
  g_autoptr(Workload) later = workload_new(0);
  for (guint i = 0; i < 3; i++)
    workload_add(later, 0.0, 63, 20, -1, 0);
  workload_add(later, within(run, 1), 10, 5, -1, 0);
  g_autoptr(Replay) queued = replay(later, SYNC "engine.num_blocks=13 engine.max_seqs=3");
  /* Then C (65 tokens, 64 of them lost) and D, in this order, when A and B have gone. */
  assert_shape(queued, "3:189:0 0:0:3 0:0:2 0:0:2");
  o = queued->outcomes;
  g_assert_cmpuint(o[0].preemptions + o[1].preemptions + o[3].preemptions, ==, 0);
  g_assert_cmpuint(o[2].preemptions, ==, 1);
  g_assert_cmpuint(o[2].recomputed_tokens, ==, 64);
  assert_at(o[0].last, end_of(queued, 19));
  g_assert_cmpuint(queued->operations[20].chunks, ==, 2);
  assert_at(o[3].scheduled, o[0].last);
  /* What is left of its own blocks is found: of four, A and B have taken one each for 80 tokens. */
  g_assert_cmpuint(queued->operations[20].chunk_tokens, <, 65 + 10);
  g_assert_cmpuint(queued->summary->output_tokens, ==, 65);
}

/* The same with the cache off: all 65 tokens again. */
static void test_recomputation(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 3; i++)
    workload_add(workload, 0.0, 63, 20, -1, 0);
  g_autoptr(Replay) run = replay(workload, SYNC "engine.num_blocks=13 engine.prefix_caching=false");
  g_assert_cmpuint(run->operations[20].chunks, ==, 1);
  g_assert_cmpuint(run->operations[20].chunk_tokens, ==, 65);
  g_assert_cmpuint(run->n_operations, ==, 20 + 18); /* two tokens were out before */
}

/* A freed place is taken at the next step; asynchronously one step later. */
static void test_max_seqs(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 50, 3, -1, 0);
  workload_add(workload, 0.0, 50, 10, -1, 0);
  workload_add(workload, 0.0, 70, 10, -1, 0);
  g_autoptr(Replay) sync = replay(workload, SYNC "engine.max_seqs=2");
  assert_shape(sync, "2:100:0 0:0:2 0:0:2 1:70:1 0:0:2");
  g_autoptr(Replay) async = replay(workload, ASYNC "engine.max_seqs=2");
  assert_shape(async, "2:100:0 0:0:2 0:0:2 0:0:1 1:70:1 0:0:2");
}

/* Closed loop: the answer's end lets the next request come, which misses the step decided at that
 * moment; asynchronously it misses two. */
static void test_closed_loop(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 50, 3, -1, 0);
  workload_add(workload, 0.0, 50, 12, -1, 0);
  workload_add(workload, 0.0, 70, 2, -1, 0);
  workload->timing = KV_TRACE_UNTIMED;
  g_autoptr(Replay) sync = replay(workload, SYNC "arrivals.concurrency=2");
  assert_shape(sync, "2:100:0 0:0:2 0:0:2 0:0:1 1:70:1 0:0:2");
  g_autoptr(Replay) async = replay(workload, ASYNC "arrivals.concurrency=2");
  assert_shape(async, "2:100:0 0:0:2 0:0:2 0:0:1 0:0:1 1:70:1 0:0:2");
  assert_at(async->outcomes[2].arrival, end_of(async, 2));
}

/* What no scheduling hides comes once a step, in jumps too; what only a synchronous engine waits
 * for comes on top there. */
static void test_between_steps(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 50, 10, -1, 0);
  static const struct {
    const char *settings;
    double gap; /* of the CPU, in each of nine steps after the first token's */
  } cases[] = {
      {"", 0.0},
      {"engine.step_by_step=true ", 0.0},
      {"engine.async_scheduling=false ", 1e-4},
      {"engine.async_scheduling=false engine.step_by_step=true ", 1e-4},
  };
  g_autoptr(Replay) bare = replay(workload, "engine.between_steps_seconds=0");
  double kernels = bare->outcomes[0].last - bare->outcomes[0].first;
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(Replay) run =
        replay(workload, "%sengine.between_steps_seconds=0.003", cases[i].settings);
    assert_at(run->outcomes[0].last - run->outcomes[0].first, kernels + 9 * (0.003 + cases[i].gap));
  }
  g_autoptr(Replay) own = replay(workload, "engine.async_scheduling=true");
  assert_at(own->outcomes[0].last - own->outcomes[0].first, kernels + 9 * 0.0008);
}

/* Only last tokens in flight: what comes meanwhile starts when they are out. */
static void test_last_token_in_flight(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 50, 1, -1, 0);
  workload_add(workload, 1e-3, 70, 1, -1, 0);
  g_autoptr(Replay) run = replay(workload, ASYNC);
  assert_shape(run, "1:50:0 1:70:0");
  assert_at(run->outcomes[1].scheduled, end_of(run, 0));
  assert_at(run->operations[1].start, end_of(run, 0) + 1e-4); /* the CPU's time */
}

/* One token budget for everything, and a threshold for one prompt's share of it. */
static void test_chunks(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 100, 4, -1, 0);
  workload_add(workload, 0.0, 30, 4, -1, 0);
  g_autoptr(Replay) cut = replay(workload, SYNC "engine.max_batched_tokens=64");
  assert_shape(cut, "1:64:0 2:64:0 1:2:1 0:0:2 0:0:2 0:0:1");
  g_autoptr(Replay) threshold =
      replay(workload, SYNC "engine.max_batched_tokens=64 engine.long_prefill_threshold=40");
  assert_shape(threshold, "2:64:0 2:46:0 1:20:1 0:0:2 0:0:2");
  g_autoptr(Replay) whole = replay(workload, SYNC "engine.max_batched_tokens=120 "
                                                  "engine.max_model_len=120 "
                                                  "engine.chunked_prefill=false");
  assert_shape(whole, "1:100:0 1:30:1 0:0:2");
}

/* Prefix hits: whole blocks, never the whole prompt, also of a prompt admitted in the same step. */
static void test_prefix_hits(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 64, 3, -1, 0);
  workload_add(workload, 0.0, 64, 3, 0, 64);  /* the same prompt: all but its last block */
  workload_add(workload, 0.0, 100, 3, 0, 40); /* two blocks in common */
  workload_add(workload, 1.0, 65, 3, 0, 64);  /* later: four blocks */
  g_autoptr(Replay) run = replay(workload, SYNC);
  assert_shape(run, "3:148:0 0:0:3 0:0:3 1:1:0");
  g_assert_cmpuint(run->outcomes[0].hit_tokens, ==, 0);
  g_assert_cmpuint(run->outcomes[1].hit_tokens, ==, 48);
  g_assert_cmpuint(run->outcomes[2].hit_tokens, ==, 32);
  g_assert_cmpuint(run->outcomes[3].hit_tokens, ==, 64);
}

/* Blocks that nobody holds are reused least recently freed first, and a prompt's last ones before
 * its first. */
static void test_eviction(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 80, 1, -1, 0); /* five blocks, found again or not */
  workload_add(workload, 1.0, 80, 1, -1, 0);
  workload_add(workload, 2.0, 48, 1, -1, 0); /* of ten blocks in all: the first's last three */
  workload_add(workload, 3.0, 81, 1, 1, 80); /* the second prompt is whole; takes one more */
  workload_add(workload, 4.0, 81, 1, 0, 80); /* the first's first block has survived that */
  g_autoptr(Replay) run = replay(workload, SYNC "engine.num_blocks=10");
  g_assert_cmpuint(run->outcomes[3].hit_tokens, ==, 80);
  g_assert_cmpuint(run->outcomes[4].hit_tokens, ==, 16);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/sim/vllm-v1/budget", test_budget);
  g_test_add_func("/sim/vllm-v1/async-arrival", test_async_arrival);
  g_test_add_func("/sim/vllm-v1/whole-prompt", test_whole_prompt);
  g_test_add_func("/sim/vllm-v1/preemption", test_preemption);
  g_test_add_func("/sim/vllm-v1/recomputation", test_recomputation);
  g_test_add_func("/sim/vllm-v1/max-seqs", test_max_seqs);
  g_test_add_func("/sim/vllm-v1/closed-loop", test_closed_loop);
  g_test_add_func("/sim/vllm-v1/last-token-in-flight", test_last_token_in_flight);
  g_test_add_func("/sim/vllm-v1/chunks", test_chunks);
  g_test_add_func("/sim/vllm-v1/prefix-hits", test_prefix_hits);
  g_test_add_func("/sim/vllm-v1/eviction", test_eviction);
  g_test_add_func("/sim/vllm-v1/between-steps", test_between_steps);
  return g_test_run();
}
