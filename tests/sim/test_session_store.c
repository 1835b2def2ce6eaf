/* vTensor's chunks, and the session store with its tier policies. */
#include "sim/engine/session_store.h"

#include <string.h>

#include "shapes.h"

/* Four sessions in order of use, the second on its way up. Positions in the queue: the third and
 * the fourth have jobs; the fourth was saved first. */
static void test_victims(void) {
  static const struct {
    const char *policy;
    guint positions[4];
    gint victim;
  } cases[] = {
      {"look-ahead", {0, 0, 3, 1}, 0}, /* no job: the least recently used of those */
      {"look-ahead", {2, 0, 3, 1}, 2}, /* all have jobs (who moves apart): the farthest */
      {"look-ahead", {2, 9, 0, 1}, 2}, /* one without a job */
      {"lru", {1, 1, 1, 1}, 0},        {"fifo", {1, 1, 1, 1}, 3},
  };
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    KvStored stored[4];
    memset(stored, 0, sizeof stored);
    for (guint i = 0; i < 4; i++) {
      stored[i].position = cases[c].positions[i];
      stored[i].saved = 3 - i;
      stored[i].moving = i == 1;
      stored[i].newer = i < 3 ? &stored[i + 1] : NULL;
      stored[i].older = i > 0 ? &stored[i - 1] : NULL;
    }
    KvStored *victim = kv_tier_policy_find(cases[c].policy)->victim(&stored[0]);
    g_assert_true(victim == &stored[cases[c].victim]);
  }
}

static void add_turn(Workload *workload, double when, gint64 session, guint turn, guint32 input,
                     guint32 output) {
  workload_add(workload, when, input, output, -1, 0);
  Request *r = &g_array_index(workload->requests, Request, workload->requests->len - 1);
  r->session = session;
  r->turn = turn;
}

/* Llama-2-7B in fp16 has 524,288 bytes a token, 8.39 MB a block. A turn of 160 and 40 tokens leaves
 * 199 (13 blocks, 0.109 GB). Three sessions of them, then each again. */
static Workload *three_sessions(void) {
  Workload *workload = workload_new(0);
  for (gint64 s = 0; s < 3; s++)
    add_turn(workload, 2.0 * (double)s, s, 0, 160, 40);
  for (gint64 s = 0; s < 3; s++)
    add_turn(workload, 10.0 + 2.0 * (double)s, s, 1, 300, 5);
  return workload;
}

static void test_store(void) {
  static const struct {
    const char *settings;
    guint hits[3];
  } cases[] = {
      {"dram=1:ssd=0", {199, 199, 199}},
      /* Room for two: the third saving sends the first away, session 0's second turn (304 tokens,
       * 19 blocks) the second and the third. */
      {"dram=0.22:ssd=0", {0, 0, 0}},
      {"dram=0.22:ssd=1", {199, 199, 199}},
      {"dram=0.22:ssd=1:policy=lru", {199, 199, 199}},
      {"dram=0.22:ssd=1:policy=fifo", {199, 199, 199}},
      {"dram=1:ssd=0:ttl=5", {0, 0, 0}},
      {"dram=1:ssd=0:ttl=20", {199, 199, 199}},
      {"dram=0:ssd=1", {0, 0, 0}}, /* nothing can be saved without DRAM */
  };
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    g_autoptr(Workload) workload = three_sessions();
    g_autoptr(Replay) run = replay(
        workload, "model=llama-2-7b platform=h200 use=cachedattention:%s", cases[c].settings);
    for (guint i = 0; i < 3; i++)
      if (run->outcomes[3 + i].hit_tokens != cases[c].hits[i])
        g_error("%s: session %u found %u tokens", cases[c].settings, i,
                run->outcomes[3 + i].hit_tokens);
  }
}

/* What does not fit beside the computation of the new tokens, or before it, delays the step: a slow
 * link shows, and a wait in the queue hides it. An SSD is slower than DRAM; without a queue nothing
 * is fetched in time. */
static void test_loading(void) {
  g_autoptr(Workload) workload = workload_new(0);
  add_turn(workload, 0.0, 1, 0, 3000, 100);
  add_turn(workload, 10.0, 2, 0, 3000, 100);
  add_turn(workload, 30.0, 1, 1, 3200, 2);
  const char *on = "model=llama-2-7b platform=h200 ";
  g_autoptr(Replay) dram = replay(workload, "%s use=cachedattention", on);
  g_autoptr(Replay) ssd = replay(workload, "%s use=cachedattention:dram=1.7", on);
  g_autoptr(Replay) none = replay(workload, "%s engine.prefix_caching=false", on);
  double of_dram = dram->outcomes[2].first - dram->outcomes[2].arrival;
  double of_ssd = ssd->outcomes[2].first - ssd->outcomes[2].arrival;
  double of_none = none->outcomes[2].first - none->outcomes[2].arrival;
  g_assert_cmpuint(dram->outcomes[2].hit_tokens, ==, 3099);
  g_assert_cmpuint(ssd->outcomes[2].hit_tokens, ==, 3099);
  g_assert_cmpuint(dram->outcomes[2].tier_tokens, ==, 3099);
  g_assert_cmpfloat(of_dram, <, of_none);
  g_assert_cmpfloat(of_ssd, >, of_dram);
  g_assert_cmpfloat(ssd->summary->fetched_bytes[KV_TIER_SSD], >, 0.0);
}

/* A conversation that outgrew the context comes back shorter than its history: half of that is good
 * if positions are applied after loading, nothing otherwise. */
static void test_truncation(void) {
  g_autoptr(Workload) workload = workload_new(0);
  add_turn(workload, 0.0, 1, 0, 1000, 101); /* leaves 1100 */
  add_turn(workload, 20.0, 1, 1, 700, 2);
  g_autoptr(Replay) decoupled = replay(workload, "use=cachedattention");
  g_autoptr(Replay) coupled = replay(workload, "use=cachedattention:decoupled=off");
  g_autoptr(Replay) more = replay(workload, "use=cachedattention:truncation=0.25");
  g_assert_cmpuint(decoupled->outcomes[1].hit_tokens, ==, 550);
  g_assert_cmpuint(coupled->outcomes[1].hit_tokens, ==, 0);
  g_assert_cmpuint(more->outcomes[1].hit_tokens, ==, 699); /* one token is left to compute */
}

/* A chunk of Llama-2-7B holds 2 MiB / (32 heads * 128 * 2 bytes) = 256 tokens of keys or values.
 * With 100 spare tokens a prompt of 156 takes one of each layer, one of 157 two. 64 mappings of 40
 * us each. */
static void test_chunks(void) {
  const char *on = "model=llama-2-7b platform=a100-80gb engine.step_by_step=true";
  static const guint prompts[] = {156, 157};
  for (guint i = 0; i < 2; i++) {
    g_autoptr(Workload) workload = workload_new(0);
    workload_add(workload, 0.0, prompts[i], 3, -1, 0);
    g_autoptr(Replay) mapped = replay(workload, "%s use=vtensor", on);
    g_autoptr(Replay) free_of = replay(workload, "%s use=vtensor:map_us=0", on);
    g_assert_cmpuint(mapped->setup->scenario->engine.block_tokens, ==, 256);
    assert_at(mapped->outcomes[0].first - free_of->outcomes[0].first, (i + 1) * 64 * 40e-6);
  }
  g_autoptr(Workload) one = workload_new(0);
  workload_add(one, 0.0, 156, 3, -1, 0);
  g_autoptr(Replay) halves =
      replay(one, "%s use=vtensor platform=2xa100-80gb deployment.tensor_parallel=2", on);
  g_assert_cmpuint(halves->setup->scenario->engine.block_tokens, ==, 512);
}

/* Chunks are shared while somebody maps them, two of 256 tokens of 600; ten chunks, 1 % kept free:
 * the youngest is preempted and recomputed. */
static void test_chunked_prefixes(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 610, 200, -1, 0);
  workload_add(workload, 0.5, 610, 20, 0, 600);
  workload_add(workload, 60.0, 610, 20, 0, 600);
  const char *on = "model=llama-2-7b platform=a100-80gb";
  g_autoptr(Replay) run = replay(workload, "%s use=vtensor", on);
  g_assert_cmpuint(run->outcomes[1].hit_tokens, ==, 512);
  g_assert_cmpuint(run->outcomes[2].hit_tokens, ==, 0);
  g_autoptr(Replay) kept = replay(workload, "%s use=vtensor:cache_seqs=1:cache_tokens=8", on);
  g_assert_cmpuint(kept->outcomes[2].hit_tokens, ==, 512);
  g_autoptr(Replay) off = replay(workload, "%s use=vtensor:prefix=off", on);
  g_assert_cmpuint(off->outcomes[1].hit_tokens, ==, 0);
  /* 3 chunks at 610 + 100 tokens and, apart, 3 more; at 669 and 925 tokens the first takes another.
   */
  g_autoptr(Workload) tight = workload_new(0);
  workload_add(tight, 0.0, 610, 200, -1, 0);
  workload_add(tight, 0.0, 610, 200, -1, 0);
  g_autoptr(Replay) preempts = replay(tight, "%s use=vtensor engine.num_blocks=7", on);
  g_assert_cmpuint(preempts->outcomes[0].preemptions, ==, 0);
  g_assert_cmpuint(preempts->outcomes[1].preemptions, ==, 1);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/session-store/victims", test_victims);
  g_test_add_func("/session-store/hits", test_store);
  g_test_add_func("/session-store/loading", test_loading);
  g_test_add_func("/session-store/truncation", test_truncation);
  g_test_add_func("/chunks/mapping", test_chunks);
  g_test_add_func("/chunks/prefixes", test_chunked_prefixes);
  return g_test_run();
}
