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

/* RadixAttention's order. Pages of 16 tokens here, so that prefixes are those of the workload. */
#define RADIX                                                                                      \
  "use=radixattention:page_size=16%s engine.async_scheduling=false engine.step_by_step=true "

/* One at a time: after request 0 has left its 64 tokens in the cache, request 3 matches 48 of them,
 * request 2 32, request 1 nothing. Longest first they are served 3, 2, 1; a limit of two waiting
 * lets three of them go as they came, and the last two in order again. */
static void test_longest_prefix_first(void) {
  static const struct {
    const char *settings;
    guint order[3];
  } cases[] = {{"", {3, 2, 1}},
               {":policy=fcfs", {1, 2, 3}},
               {":queue_limit=2", {1, 3, 2}},
               {":policy=lof", {2, 3, 1}}};
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    g_autoptr(Workload) workload = workload_new(16);
    workload_add(workload, 0.0, 64, 1, -1, 0);
    workload_add(workload, 1e-6, 64, 1, -1, 0);
    workload_add(workload, 2e-6, 64, 3, 0, 32);
    workload_add(workload, 3e-6, 64, 2, 0, 48);
    g_autoptr(Replay) run = replay(workload, RADIX "engine.max_seqs=1", cases[c].settings);
    for (guint i = 0; i + 1 < 3; i++)
      g_assert_cmpfloat(run->outcomes[cases[c].order[i]].last, <=,
                        run->outcomes[cases[c].order[i + 1]].scheduled);
    g_assert_cmpuint(run->outcomes[3].hit_tokens, ==, 48);
    g_assert_cmpuint(run->outcomes[2].hit_tokens, ==, 32);
  }
}

/* Equal matches keep the order of arrival; depth first, the prefix that most wait for comes first,
 * among equals the one whose first request is earlier. Requests 2 and 5 continue request 0, 3, 4
 * and 6 request 1: 3 of 5 wait for the latter's prefix, then 2 of 4, then 1 of 3. */
static void test_ties(void) {
  static const struct {
    const char *settings;
    guint order[5];
  } cases[] = {{"", {2, 3, 4, 5, 6}}, {":policy=dfs-weight", {3, 4, 2, 5, 6}}};
  static const gint parents[] = {0, 1, 1, 0, 1};
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    g_autoptr(Workload) workload = workload_new(16);
    workload_add(workload, 0.0, 64, 1, -1, 0);
    workload_add(workload, 0.0, 64, 1, -1, 0);
    for (guint i = 0; i < G_N_ELEMENTS(parents); i++)
      workload_add(workload, 5.0, 64, 1, parents[i], 48);
    g_autoptr(Replay) run = replay(workload, RADIX "engine.max_seqs=1", cases[c].settings);
    for (guint i = 0; i + 1 < 5; i++)
      g_assert_cmpfloat(run->outcomes[cases[c].order[i]].last, <=,
                        run->outcomes[cases[c].order[i + 1]].last);
  }
}

/* Three prompts of 70 tokens wait, the second begins with 64 of the first's. A batch of 80 tokens
 * takes the first and ten tokens of the third; then the second finds what the first has left. In
 * order of arrival its beginning is computed beside the first. */
static void test_repeats_wait(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 70, 1, -1, 0);
  workload_add(workload, 0.0, 70, 1, 0, 64);
  workload_add(workload, 0.0, 70, 1, -1, 0);
  g_autoptr(Replay) run = replay(workload, RADIX "engine.max_batched_tokens=80", "");
  assert_shape(run, "2:80:0 2:66:0");
  g_assert_cmpuint(run->outcomes[1].hit_tokens, ==, 64);
  g_autoptr(Replay) fcfs = replay(workload, RADIX "engine.max_batched_tokens=80", ":policy=fcfs");
  assert_shape(fcfs, "2:80:0 2:80:0 1:50:0");
  g_assert_cmpuint(fcfs->outcomes[1].hit_tokens, ==, 0);
  /* 64 tokens in common are not more than 64. */
  g_autoptr(Replay) lax =
      replay(workload, RADIX "engine.max_batched_tokens=80", ":defer_tokens=64");
  assert_shape(lax, "2:80:0 2:80:0 1:50:0");
}

/* What waits is refreshed. 10 blocks; the four of request 0 are older than those of request 1, but
 * request 2 waits for them while request 3, which runs alone, needs the room of one of both. */
static void test_matching_refreshes(void) {
  for (guint lpm = 0; lpm < 2; lpm++) {
    g_autoptr(Workload) workload = workload_new(16);
    workload_add(workload, 0.0, 64, 1, -1, 0);
    workload_add(workload, 0.0, 64, 1, -1, 0);
    workload_add(workload, 1e-6, 95, 1, -1, 0); /* 6 blocks: 2 empty, 4 of somebody's */
    workload_add(workload, 1e-6, 65, 1, 0, 64);
    g_autoptr(Replay) run =
        replay(workload, RADIX "engine.max_seqs=1 engine.num_blocks=10", lpm ? "" : ":policy=fcfs");
    /* Longest prefix first serves request 3 before its prefix can go. */
    g_assert_cmpuint(run->outcomes[3].hit_tokens, ==, lpm ? 64 : 0);
  }
}

/* A page of one token: a hit ends where the trace's blocks do, whatever the engine's blocks were.
 */
static void test_single_token_slots(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 70, 1, -1, 0);
  workload_add(workload, 1e-6, 70, 1, 0, 48);
  g_autoptr(Replay) run = replay(workload, "use=radixattention engine.max_seqs=1");
  g_assert_cmpuint(run->setup->scenario->engine.block_tokens, ==, 1);
  g_assert_cmpuint(run->outcomes[1].hit_tokens, ==, 48);
  /* A pool of 200 slots holds one of 70 + 1 tokens exactly as long as it lives. */
  g_autoptr(Replay) tight = replay(workload, "use=radixattention engine.num_blocks=71");
  g_assert_cmpuint(tight->summary->requests_finished, ==, 2);
}

/* An answer is found by the next turn of its session, but for its last token. */
static void test_answers_are_found(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload->timing = KV_TRACE_SESSIONS;
  workload_add(workload, 0.0, 64, 33, -1, 0);
  workload_add(workload, 0.0, 128, 1, 0, 64);
  for (guint i = 0; i < 2; i++) {
    Request *r = &g_array_index(workload->requests, Request, i);
    r->session = 7;
    r->turn = i;
  }
  g_autoptr(Replay) run = replay(workload, "use=radixattention");
  g_assert_cmpuint(run->outcomes[1].hit_tokens, ==, 64 + 32);
  g_autoptr(Replay) other = replay(workload, "engine.scheduler=sglang");
  g_assert_cmpuint(other->outcomes[1].hit_tokens, ==, 64);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/scheduler/sglang/prompts-first", test_prompts_first);
  g_test_add_func("/scheduler/sglang/one-is-cut", test_one_is_cut);
  g_test_add_func("/scheduler/sglang/room-for-answers", test_room_for_answers);
  g_test_add_func("/scheduler/sglang/retraction", test_retraction);
  g_test_add_func("/scheduler/sglang/longest-prefix-first", test_longest_prefix_first);
  g_test_add_func("/scheduler/sglang/ties", test_ties);
  g_test_add_func("/scheduler/sglang/repeats-wait", test_repeats_wait);
  g_test_add_func("/scheduler/sglang/matching-refreshes", test_matching_refreshes);
  g_test_add_func("/scheduler/sglang/single-token-slots", test_single_token_slots);
  g_test_add_func("/scheduler/sglang/answers-are-found", test_answers_are_found);
  return g_test_run();
}
