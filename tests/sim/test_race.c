/* A prefix that is computed from its start while it loads from its end (Cake): chunk by chunk. */
#include <math.h>
#include <string.h>

#include "replay.h"

enum { PREFIX = 16384, SUFFIX = 64, CHUNK = 512 };

/* A prompt that is stored below, another that takes its blocks in HBM, and the first one again with
 * a suffix of its own. */
static Workload *again(void) {
  Workload *workload = workload_new(16);
  workload_add(workload, 0.0, PREFIX, 1, -1, 0);
  workload_add(workload, 100.0, PREFIX + 3200, 1, -1, 0);
  workload_add(workload, 200.0, PREFIX + SUFFIX, 1, 0, PREFIX);
  return workload;
}

#define COMMON                                                                                     \
  " model=llama-2-13b engine.max_model_len=32768 engine.num_blocks=1230 platform=2xa100-80gb "     \
  "deployment.tensor_parallel=2 engine.max_batched_tokens=8192 "

static double ttft(const Replay *run) {
  return run->outcomes[2].first - run->outcomes[2].arrival;
}

/* At these speeds of loading, the time is the harmonic sum of computing alone and loading alone,
 * but for a chunk at the end, the suffix, and that the first chunks are cheaper than the mean. */
static void test_harmonic(void) {
  const double gbps[] = {16, 32, 64};
  g_autoptr(Workload) workload = again();
  g_autoptr(Replay) computed = replay(workload, "%s engine.long_prefill_threshold=512", COMMON);
  for (guint i = 0; i < G_N_ELEMENTS(gbps); i++) {
    g_autoptr(Replay) loaded = replay(
        workload, "%s prefix_cache.tier=dram prefix_cache.load_Bps=%g", COMMON, gbps[i] * 1e9 / 8);
    g_autoptr(Replay) both =
        replay(workload, "use=cake:bandwidth=%g prefix_cache.tier=dram %s", gbps[i], COMMON);
    double sum = ttft(both) / ttft(computed) + ttft(both) / ttft(loaded);
    g_assert_cmpfloat(sum, >, 0.85);
    g_assert_cmpfloat(sum, <, 1.15);
    g_assert_cmpfloat(ttft(both), <, ttft(computed));
    g_assert_cmpfloat(ttft(both), <, ttft(loaded));
  }
}

/* What is computed and what is loaded is the whole prefix, and they meet where neither waits for
 * the other: when the last chunk was decided the one behind it had not arrived, and when it was
 * done all others had. */
static void test_meeting_point(void) {
  g_autoptr(Workload) workload = again();
  g_autoptr(Replay) run = replay(
      workload, "use=cake:bandwidth=32 prefix_cache.tier=dram engine.async_scheduling=false %s",
      COMMON);
  const Outcome *o = &run->outcomes[2];
  double load_seconds = 0.0, start = o->scheduled;
  guint chunks = 0;
  guint32 computed = 0, hbm = o->hit_tokens - o->tier_tokens;
  const KvLink *link = run->setup->platform->host_link;
  double bytes = run->setup->demand.block_bytes * CHUNK / 16;
  load_seconds = link->latency_seconds + CHUNK / 16 * link->per_copy_seconds + bytes / 4e9;
  for (guint i = 0; i < run->n_operations; i++) {
    const Operation *p = &run->operations[i];
    if (p->start < o->arrival)
      continue;
    if (p->chunk_tokens != CHUNK) /* the suffix, and what the last chunk left */
      break;
    guint32 arrived = CHUNK * (guint32)floor((p->start - start + 1e-9) / load_seconds);
    g_assert_cmpuint(computed + arrived, <, PREFIX);
    computed += CHUNK;
    chunks++;
  }
  g_assert_cmpuint(chunks, >, 10);
  g_assert_cmpuint(chunks, <, 30);
  g_assert_cmpuint(o->tier_tokens % CHUNK, ==, 0);
  g_assert_cmpuint(hbm + o->tier_tokens + computed, >=, PREFIX - CHUNK);
  g_assert_cmpuint(o->tier_tokens + computed, <=, PREFIX);
}

/* Stored in fewer bits, more of it is loaded. */
static void test_bits(void) {
  g_autoptr(Workload) workload = again();
  const char *const bits[] = {"16", "8", "3"};
  double before = G_MAXDOUBLE;
  guint32 loaded = 0;
  for (guint i = 0; i < 3; i++) {
    g_autoptr(Replay) run = replay(
        workload, "use=cake:bandwidth=32:kv_bits=%s prefix_cache.tier=dram %s", bits[i], COMMON);
    g_assert_cmpfloat(ttft(run), <, before);
    g_assert_cmpuint(run->outcomes[2].tier_tokens, >, loaded);
    before = ttft(run);
    loaded = run->outcomes[2].tier_tokens;
  }
}

/* Two loads share the path and two prompts the GPU: both ends move half as fast, and meet at the
 * same place. */
static void test_shared_path(void) {
  guint32 loaded[2];
  double seconds[2];
  for (guint two = 0; two < 2; two++) {
    g_autoptr(Workload) workload = workload_new(16);
    workload_add(workload, 0.0, PREFIX, 1, -1, 0);
    workload_add(workload, 50.0, PREFIX, 1, -1, 0);
    workload_add(workload, 100.0, 17600, 1, -1, 0); /* these take all 2200 blocks */
    workload_add(workload, 150.0, 17600, 1, -1, 0);
    workload_add(workload, 200.0, PREFIX + SUFFIX, 1, 0, PREFIX);
    if (two)
      workload_add(workload, 200.0, PREFIX + SUFFIX, 1, 1, PREFIX);
    g_autoptr(Replay) run = replay(
        workload, "use=cake:bandwidth=32 prefix_cache.tier=dram %s engine.num_blocks=2200", COMMON);
    loaded[two] = run->outcomes[4].tier_tokens;
    seconds[two] = run->outcomes[4].first - run->outcomes[4].arrival;
    g_assert_cmpuint(run->outcomes[4].hit_tokens, >=, loaded[two]);
    if (two)
      g_assert_cmpuint(run->outcomes[5].tier_tokens, >, 0);
  }
  g_assert_cmpuint(loaded[0], >, CHUNK);
  g_assert_cmpfloat_with_epsilon(loaded[1], loaded[0], 2 * CHUNK);
  g_assert_cmpfloat(seconds[1], >, 1.6 * seconds[0]);
  g_assert_cmpfloat(seconds[1], <, 2.2 * seconds[0]);
}

static void test_refused(void) {
  static const struct {
    const char *settings, *message;
  } cases[] = {
      {"use=cake engine.prefix_caching=false",
       "prefixes are loaded and computed at once by the default engine only, expected "
       "engine.prefix_caching, engine.scheduler=vllm-v1 and executor=model"},
      {"use=vllm,cake prefix_cache.tier=dram",
       "cake: prompts are in the hands of vllm, expected the default engine, which computes them in "
       "chunks"},
      {"use=snapkv,cake prefix_cache.tier=dram",
       "cake: prefixes cannot be shared under snapkv, expected a cache that is the same for equal "
       "prefixes"},
  };
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 10, 2, -1, 0);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(Replay) run = replay_try(workload, cases[i].settings, &error);
    g_assert_null(run);
    g_assert_cmpstr(error->message, ==, cases[i].message);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/sim/race/harmonic", test_harmonic);
  g_test_add_func("/sim/race/meeting-point", test_meeting_point);
  g_test_add_func("/sim/race/bits", test_bits);
  g_test_add_func("/sim/race/shared-path", test_shared_path);
  g_test_add_func("/sim/race/refused", test_refused);
  return g_test_run();
}
