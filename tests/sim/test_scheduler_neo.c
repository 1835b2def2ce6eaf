/* NEO's scheduler, decision by decision, against an executor whose prices can be worked out in the
 * head; and whole runs. */
#include <string.h>

#include "replay.h"
#include "sim/engine/metrics.h"

/* A step takes `seconds`, with sequences on the host `pair_seconds`. Of h0 and h1 of them in the
 * two sub-batches, slack is 5 + h1 - 4 h0 and 10 - 4 h1, less `tight`. */
typedef struct {
  KvExecutor base;
  KvExecutorClass class;
  double seconds, pair_seconds, tight;
  guint64 host, first; /* of the last step that was carried out or priced */
} Fake;

static gboolean fake_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                          GError **error) {
  Fake *fake = (Fake *)executor;
  double h0 = (double)step->host_first, h1 = (double)(step->host.n - step->host_first);
  *cost = (KvStepCost){.seconds = step->host.n ? fake->pair_seconds : fake->seconds};
  cost->slack_seconds[0] = 5.0 + h1 - 4.0 * h0 - fake->tight;
  cost->slack_seconds[1] = 10.0 - 4.0 * h1 - fake->tight;
  return TRUE;
}

static void fake_copy(KvExecutor *executor, const KvCopy *copy, double now) {
}

static double fake_next_copy(KvExecutor *executor) {
  return G_MAXDOUBLE;
}

typedef struct {
  Fake fake;
  KvEngineConfig config;
  KvPlanCurves curves;
  KvPlan plan;
  KvMetrics *metrics;
  KvInstance *instance;
  GPtrArray *sequences, *batches;
} Bench;

static void drop(KvInstance *instance, KvSequence *sequence, gpointer user) {
}

/* 10 blocks of 16 tokens on the GPU, `host` in host memory. */
static Bench *bench_new(guint64 host) {
  Bench *b = g_new0(Bench, 1);
  b->fake.class = (KvExecutorClass){
      .closed_form = TRUE, .step = fake_step, .copy = fake_copy, .next_copy = fake_next_copy};
  b->fake.base.class = &b->fake.class;
  b->fake.seconds = b->fake.pair_seconds = 1.0;
  kv_engine_config_init(&b->config);
  b->config.scheduler = "neo";
  b->config.preemption = KV_PREEMPT_SWAP;
  b->config.step_by_step = TRUE;
  b->config.between_steps_seconds = 0.0;
  b->config.prefix_caching = b->config.chunked_prefill = FALSE;
  b->config.max_seqs = 100;
  b->config.max_batched_tokens = 1000;
  b->config.max_model_len = 1000;
  b->curves.n_channels = 1;
  b->curves.laws[0] = kv_law(KV_LAW_ALL, 0);
  b->curves.stored_bytes[KV_TIER_HBM][0] = 1.0;
  b->config.swap_bytes = (double)host * 16.0;
  b->metrics = kv_metrics_new(0, 0, NULL, NULL);
  b->instance = kv_instance_new(0, &b->config, &b->curves, &b->fake.base,
                                kv_metrics_observer(b->metrics), 10, 0, &b->plan);
  b->instance->finished = drop;
  b->sequences = g_ptr_array_new_with_free_func(g_free);
  return b;
}

static void bench_free(Bench *b) {
  g_ptr_array_unref(b->sequences);
  kv_instance_free(b->instance);
  kv_metrics_free(b->metrics);
  g_free(b);
}

static KvSequence *arrive(Bench *b, guint32 input, guint32 output) {
  KvSequence *s = g_new0(KvSequence, 1);
  s->index = b->sequences->len;
  s->input_tokens = s->target_tokens = input;
  s->output_tokens = output;
  s->scheduled_seconds = s->first_token_seconds = -1.0;
  g_ptr_array_add(b->sequences, s);
  kv_instance_arrive(b->instance, s, b->instance->now);
  return s;
}

/* One more decision: wake the instance until its next batch is under way. */
static const KvBatch *decide(Bench *b) {
  g_autoptr(GError) error = NULL;
  double at = kv_instance_next(b->instance);
  g_assert_cmpfloat(at, <, G_MAXDOUBLE);
  g_assert_true(kv_instance_wake(b->instance, at, &error));
  g_assert_cmpstr(kv_instance_check(b->instance), ==, NULL);
  return b->instance->n_batches ? b->instance->batches[0] : NULL;
}

/* Prompts of 4, 4, 4 and 1 blocks come to 10: the third has no room, so it goes to the host, and
 * the fourth after it, though it would fit on the GPU. */
static void test_placement(void) {
  Bench *b = bench_new(20);
  const guint32 prompts[] = {64, 64, 64, 16};
  for (guint i = 0; i < 4; i++)
    arrive(b, prompts[i], 10);
  const KvBatch *batch = decide(b);
  g_assert_cmpuint(batch->chunks->len, ==, 4);
  g_assert_cmpuint(kv_pool_free_blocks(b->instance->pool), ==, 2);
  g_assert_cmpuint(b->instance->host_free_blocks, ==, 20 - 4 - 1);
  g_assert_cmpuint(b->instance->swapped.n, ==, 2);
  g_assert_cmpuint(b->instance->n_running, ==, 2);
  bench_free(b);
}

/* With room for neither, the queue waits, in order. */
static void test_no_room(void) {
  Bench *b = bench_new(3);
  const guint32 prompts[] = {160, 64, 16};
  for (guint i = 0; i < 3; i++)
    arrive(b, prompts[i], 10);
  g_assert_cmpuint(decide(b)->chunks->len, ==, 1);
  g_assert_cmpuint(b->instance->waiting.n, ==, 2);
  bench_free(b);
}

/* Put `n` sequences on the host beside one that fills most of the GPU. */
static void fill(Bench *b, guint n) {
  arrive(b, 150, 100);
  for (guint i = 0; i < n; i++)
    arrive(b, 32, 20);
  decide(b);
  g_assert_cmpuint(b->instance->swapped.n, ==, n);
}

/* Slack (first, second) is (5, 10) with nobody. The first joins the second sub-batch: (6, 6).
 * Equal: so does the second: (7, 2). The third finds more slack in the first: (3, 2), and the
 * fourth, too:
 * (-1, 2), so it must not. */
static void test_greedy(void) {
  Bench *b = bench_new(40);
  fill(b, 6);
  const KvBatch *batch = decide(b);
  g_assert_true(batch->decodes);
  g_assert_cmpuint(batch->host->len, ==, 3);
  g_assert_cmpuint(batch->host_first, ==, 1);
  for (guint i = 0; i < 3; i++) { /* in order, and they are one token further */
    const KvSequence *s = g_ptr_array_index(b->sequences, 1 + i);
    g_assert_true(g_ptr_array_index(batch->host, i) == s);
    g_assert_cmpuint(s->computed_tokens, ==, 33);
    g_assert_cmpuint(s->emitted_tokens, ==, 2);
    g_assert_cmpuint(s->swapped_blocks, ==, 3);
  }
  g_assert_cmpuint(b->instance->host_free_blocks, ==, 40 - 6 * 2 - 3);
  bench_free(b);
}

/* Where none can be hidden, the GPU's own sequences go alone. */
static void test_hidden_always(void) {
  Bench *b = bench_new(40);
  fill(b, 6);
  b->fake.tight = 6.5; /* the first would find (-0.5, -0.5) */
  const KvBatch *batch = decide(b);
  g_assert_cmpuint(batch->host->len, ==, 0);
  g_assert_cmpuint(batch->decode_n, ==, 1);
  bench_free(b);
}

/* Three on the host and one on the GPU in a pair of 4 s serve as many a second as that one alone in
 * 1 s: then the GPU goes alone. In 3.9 s the pair serves more. */
static void test_rates(void) {
  const double seconds[] = {4.0, 3.9};
  const guint expected[] = {0, 3};
  for (guint i = 0; i < 2; i++) {
    Bench *b = bench_new(40);
    fill(b, 6);
    b->fake.pair_seconds = seconds[i];
    g_assert_cmpuint(decide(b)->host->len, ==, expected[i]);
    bench_free(b);
  }
}

/* The GPU's sequence ends: 2 blocks of the first on the host and one to grow into are within 95 %
 * of the 10, so it comes back, and so do the next two; the fourth would make it 10. */
static void test_swap_in(void) {
  Bench *b = bench_new(40);
  arrive(b, 150, 2);
  for (guint i = 0; i < 5; i++)
    arrive(b, 32, 20);
  decide(b);
  b->fake.tight = 100.0;
  decide(b); /* the first sequence's last token */
  const KvBatch *batch = decide(b);
  g_assert_cmpuint(b->instance->running.n, ==, 3);
  g_assert_cmpuint(batch->decode_n, ==, 3);
  g_assert_cmpuint(b->instance->swapped.n, ==, 2);
  bench_free(b);
}

/* GPU blocks run out: the latest goes to the host. */
static void test_overflow(void) {
  Bench *b = bench_new(40);
  arrive(b, 80, 20);
  KvSequence *latest = arrive(b, 80, 20);
  decide(b);
  b->fake.tight = 100.0;
  const KvBatch *batch = decide(b); /* both need a sixth block */
  g_assert_cmpuint(batch->decode_n, ==, 1);
  g_assert_true(b->instance->swapped.head == latest);
  g_assert_cmpuint(latest->swapped_blocks, ==, 5);
  g_assert_cmpuint(b->instance->host_free_blocks, ==, 35);
  bench_free(b);
}

/* A prompt that nothing needs to hide behind is put off, but not the first, and not below the least
 * tokens of a step. */
static void test_drop(void) {
  const guint least[] = {0, 60, 128};
  const guint taken[] = {1, 2, 2};
  for (guint i = 0; i < 3; i++) {
    Bench *b = bench_new(40);
    fill(b, 1);
    b->config.least_step_tokens = least[i];
    b->fake.pair_seconds = 0.5;
    arrive(b, 30, 5);
    arrive(b, 30, 5);
    const KvBatch *batch = decide(b);
    g_assert_cmpuint(batch->host->len, ==, 1);
    g_assert_cmpuint(batch->chunks->len, ==, taken[i]);
    bench_free(b);
  }
}

/* A T4 with 864 tokens of cache: requests wait for the GPU's blocks, unless the host holds them,
 * too. Everything is served, and more a second. */
static void test_run(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 60; i++)
    workload_add(workload, 0.2 * i, 300, 40, -1, 0);
  const char *common = "platform=t4 model=llama-2-7b engine.num_blocks=54 engine.max_model_len=832";
  g_autoptr(Replay) without = replay(
      workload, "use=vllm:gpu_memory_utilization=0.99:max_num_batched_tokens=832 %s", common);
  g_autoptr(Replay) with = replay(workload, "use=neo:max_tokens_in_batch=832 %s", common);
  g_assert_cmpuint(with->summary->requests_finished, ==, 60);
  g_assert_cmpuint(with->summary->output_tokens, ==, (guint64)60 * 40);
  g_assert_cmpfloat(with->summary->makespan_seconds, <, without->summary->makespan_seconds);
  g_assert_cmpfloat(with->summary->peak_running, >, without->summary->peak_running);
  /* One gap for each token after the first. */
  g_assert_cmpuint(with->summary->latency[KV_LATENCY_ITL].n, ==, (guint64)60 * 39);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/sim/neo/placement", test_placement);
  g_test_add_func("/sim/neo/no-room", test_no_room);
  g_test_add_func("/sim/neo/greedy", test_greedy);
  g_test_add_func("/sim/neo/hidden-always", test_hidden_always);
  g_test_add_func("/sim/neo/rates", test_rates);
  g_test_add_func("/sim/neo/swap-in", test_swap_in);
  g_test_add_func("/sim/neo/overflow", test_overflow);
  g_test_add_func("/sim/neo/drop", test_drop);
  g_test_add_func("/sim/neo/run", test_run);
  return g_test_run();
}
