/* sim/engine/metrics.h: against sorted arrays and sums. */
#include "sim/engine/metrics.h"

#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "sim/base/random.h"

/* An instance with 100 blocks that nobody serves: what a batch's record reads of it. */
typedef struct {
  KvExecutorClass class;
  KvExecutor executor;
  KvEngineConfig config;
  KvPlanCurves curves;
  KvPlan plan;
  KvInstance *instance;
  KvMetrics *metrics;
  KvObserver *observer;
  KvBatch batch;
} Bench;

static Bench *bench_new(double slo_ttft, double slo_tpot, KvOutput *requests) {
  Bench *b = g_new0(Bench, 1);
  b->class.closed_form = TRUE;
  b->executor.class = &b->class;
  kv_engine_config_init(&b->config);
  b->curves.n_channels = 1;
  b->curves.laws[0] = kv_law(KV_LAW_ALL, 0);
  b->curves.stored_bytes[KV_TIER_HBM][0] = 1000.0;
  b->metrics = kv_metrics_new(slo_ttft, slo_tpot, requests, NULL);
  b->observer = kv_metrics_observer(b->metrics);
  b->plan.shareable = TRUE;
  b->plan.share_multiple = 1;
  b->instance =
      kv_instance_new(0, &b->config, &b->curves, &b->executor, b->observer, 100, 16, &b->plan);
  b->batch.chunks = g_array_new(FALSE, FALSE, sizeof(KvChunk));
  return b;
}

static void bench_free(Bench *b) {
  g_array_unref(b->batch.chunks);
  kv_instance_free(b->instance);
  kv_metrics_free(b->metrics);
  g_free(b);
}

static KvSummary *summary_of(Bench *b) {
  KvSummary *s = g_new0(KvSummary, 1);
  s->total_blocks = 100;
  s->n_instances = 1;
  kv_metrics_summarize(b->metrics, s);
  return s;
}

static void record(Bench *b, double start, double seconds, guint prompt_tokens, guint64 decode_n,
                   guint64 repeat) {
  KvChunk chunk = {.tokens = prompt_tokens};
  g_array_set_size(b->batch.chunks, 0);
  if (prompt_tokens > 0)
    g_array_append_val(b->batch.chunks, chunk);
  b->batch.start = start;
  b->batch.end = start + seconds;
  b->batch.decode_n = decode_n;
  b->batch.repeat = repeat;
  b->batch.cost.seconds = seconds;
  b->observer->class->batch(b->observer, b->instance, &b->batch);
}

/* A request that arrives at `arrival`, waits, has its first token after `ttft` and its last after
 * `e2e`. */
static void serve(Bench *b, double arrival, double queue, double ttft, double e2e,
                  guint32 output_tokens) {
  KvSequence s = {.input_tokens = 10,
                  .output_tokens = output_tokens,
                  .session = -1,
                  .arrival_seconds = arrival,
                  .scheduled_seconds = arrival + queue,
                  .first_token_seconds = arrival + ttft,
                  .last_token_seconds = arrival + e2e};
  kv_metrics_arrived(b->metrics, &s);
  b->observer->class->first_token(b->observer, &s);
  b->observer->class->finished(b->observer, &s);
}

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* numpy's percentile with linear interpolation; `values` are sorted. */
static double percentile(const double *values, guint n, double p) {
  double position = p * (n - 1.0);
  guint below = (guint)floor(position);
  double high = values[MIN(below + 1, n - 1)];
  return values[below] + (position - below) * (high - values[below]);
}

static void assert_within(double found, double expected, double relative) {
  if (fabs(found - expected) > relative * fabs(expected) + 1e-12)
    g_error("%.12g is not within %g of %.12g", found, relative, expected);
}

static void assert_distribution(const KvDistribution *d, const KvCdf *cdf, double *values, guint n,
                                double relative) {
  double sum = 0.0;
  qsort(values, n, sizeof *values, compare_doubles);
  for (guint i = 0; i < n; i++)
    sum += values[i];
  g_assert_cmpuint(d->n, ==, n);
  assert_within(d->mean, sum / n, 1e-6);
  assert_within(d->min, values[0], 1e-6);
  assert_within(d->max, values[n - 1], 1e-6);
  assert_within(d->p50, percentile(values, n, 0.5), relative);
  assert_within(d->p90, percentile(values, n, 0.9), relative);
  assert_within(d->p95, percentile(values, n, 0.95), relative);
  assert_within(d->p99, percentile(values, n, 0.99), relative);
  for (guint i = 0; i < KV_CDF_POINTS; i++)
    assert_within(cdf->value[i], percentile(values, n, i / (KV_CDF_POINTS - 1.0)), relative);
}

static void percentiles_are_numpys(void) {
  const guint sizes[] = {1, 2, 3, 10, 101, 1000, 1025, 20000};
  KvRandom random;
  kv_random_seed(&random, 80, 0);
  for (guint k = 0; k < G_N_ELEMENTS(sizes); k++) {
    guint n = sizes[k];
    Bench *b = bench_new(0.0, 0.0, NULL);
    g_autofree double *queue = g_new(double, n), *ttft = g_new(double, n), *tpot = g_new(double, n),
                      *e2e = g_new(double, n);
    for (guint i = 0; i < n; i++) {
      queue[i] = kv_random_integer(&random, 0, 3) ? kv_random_exponential(&random) : 0.0;
      ttft[i] = queue[i] + kv_random_lognormal(&random, -3.0, 3.0);
      guint32 output = (guint32)kv_random_integer(&random, 2, 300);
      e2e[i] = ttft[i] + output * kv_random_unit(&random);
      tpot[i] = (e2e[i] - ttft[i]) / (output - 1.0);
      serve(b, 0.0, queue[i], ttft[i], e2e[i], output);
    }
    g_autoptr(KvSummary) s = summary_of(b);
    assert_distribution(&s->latency[KV_LATENCY_QUEUE], &s->cdf[KV_LATENCY_QUEUE], queue, n, 1e-6);
    assert_distribution(&s->latency[KV_LATENCY_TTFT], &s->cdf[KV_LATENCY_TTFT], ttft, n, 1e-6);
    assert_distribution(&s->latency[KV_LATENCY_TPOT], &s->cdf[KV_LATENCY_TPOT], tpot, n, 1e-6);
    assert_distribution(&s->latency[KV_LATENCY_E2E], &s->cdf[KV_LATENCY_E2E], e2e, n, 1e-6);
    g_assert_cmpuint(s->requests_finished, ==, n);
    bench_free(b);
  }
}

static void nothing_measured_is_zero(void) {
  Bench *b = bench_new(1.0, 1.0, NULL);
  g_autoptr(KvSummary) s = summary_of(b);
  for (guint l = 0; l < KV_N_LATENCIES; l++) {
    g_assert_cmpuint(s->latency[l].n, ==, 0);
    g_assert_cmpfloat(s->latency[l].p99, ==, 0.0);
    g_assert_cmpfloat(s->latency[l].min, ==, 0.0);
  }
  g_assert_cmpfloat(s->makespan_seconds, ==, 0.0);
  g_assert_cmpfloat(s->slo_attainment, ==, 0.0);
  g_assert_cmpuint(s->timeline->len, ==, 0);
  bench_free(b);
  kv_metrics_free(NULL);
}

static void single_tokens_have_no_tpot(void) {
  Bench *b = bench_new(0.0, 0.5, NULL);
  serve(b, 0.0, 0.0, 1.0, 1.0, 1);
  serve(b, 0.0, 0.0, 1.0, 3.0, 3); /* 1 s a token: misses the objective */
  serve(b, 0.0, 0.0, 1.0, 2.0, 3); /* 0.5 s: meets it */
  g_autoptr(KvSummary) s = summary_of(b);
  g_assert_cmpuint(s->latency[KV_LATENCY_TTFT].n, ==, 3);
  g_assert_cmpuint(s->latency[KV_LATENCY_TPOT].n, ==, 2);
  assert_within(s->latency[KV_LATENCY_TPOT].min, 0.5, 1e-6);
  assert_within(s->latency[KV_LATENCY_TPOT].mean, 0.75, 1e-6);
  assert_within(s->slo_attainment, 2.0 / 3.0,
                1e-12); /* a single token cannot be late after the first */
  bench_free(b);
}

static void objectives_are_counted(void) {
  const struct {
    double slo_ttft, slo_tpot, attained;
  } cases[] = {
      {0.0, 0.0, 1.0}, {1.5, 0.0, 0.5}, {0.0, 0.3, 0.5}, {1.5, 0.3, 0.25}, {0.1, 0.1, 0.0}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    Bench *b = bench_new(cases[i].slo_ttft, cases[i].slo_tpot, NULL);
    for (guint k = 0; k < 4; k++) {
      double ttft = k & 1 ? 1.0 : 2.0;
      serve(b, 0.0, 0.0, ttft, ttft + (k & 2 ? 0.2 : 0.4) * 10, 11);
    }
    record(b, 0.0, 8.0, 10, 0, 1);
    g_autoptr(KvSummary) s = summary_of(b);
    assert_within(s->slo_attainment, cases[i].attained, 1e-12);
    assert_within(s->goodput_requests_per_second, 4 * cases[i].attained / 8.0, 1e-12);
    bench_free(b);
  }
}

static void inter_token_sketch_is_close(void) {
  enum { N = 20000 };
  const double spreads[] = {0.0, 0.2, 1.0, 3.0};
  KvRandom random;
  kv_random_seed(&random, 81, 0);
  for (guint k = 0; k < G_N_ELEMENTS(spreads); k++) {
    Bench *b = bench_new(0.0, 0.0, NULL);
    g_autofree double *values = g_new(double, N);
    for (guint i = 0; i < N; i++) {
      values[i] = 0.02 * kv_random_lognormal(&random, 0.0, spreads[k]);
      b->observer->class->stalled_token(b->observer, values[i]);
    }
    g_autoptr(KvSummary) s = summary_of(b);
    const KvDistribution *d = &s->latency[KV_LATENCY_ITL];
    qsort(values, N, sizeof *values, compare_doubles);
    g_assert_cmpuint(d->n, ==, N);
    assert_within(d->min, values[0], 1e-12);
    assert_within(d->max, values[N - 1], 1e-12);
    const double p[] = {0.5, 0.9, 0.95, 0.99}, found[] = {d->p50, d->p90, d->p95, d->p99};
    for (guint i = 0; i < G_N_ELEMENTS(p); i++)
      assert_within(found[i], values[(guint)(p[i] * N) - 1], 0.005);
    bench_free(b);
  }
}

/* Jumps of many steps put their tokens between the first and the last step's time. */
static void jumps_spread_over_the_sketch(void) {
  const double ranges[][2] = {{0.010, 0.011}, {0.011, 0.010}, {0.010, 0.100}, {0.02, 0.02}};
  for (guint k = 0; k < G_N_ELEMENTS(ranges); k++) {
    enum { REPEAT = 4001 };
    Bench *b = bench_new(0.0, 0.0, NULL);
    double first = ranges[k][0], last = ranges[k][1], values[REPEAT], sum = 0.0;
    for (guint i = 0; i < REPEAT; i++) {
      values[i] = first + (last - first) * i / (REPEAT - 1.0);
      sum += values[i];
    }
    b->batch.cost.first_seconds = first;
    b->batch.cost.last_seconds = last;
    record(b, 0.0, sum, 0, 3,
           REPEAT); /* the last token before was at time 0: the first gap is `first` */
    g_autoptr(KvSummary) s = summary_of(b);
    const KvDistribution *d = &s->latency[KV_LATENCY_ITL];
    qsort(values, REPEAT, sizeof *values, compare_doubles);
    g_assert_cmpuint(d->n, ==, (guint64)3 * REPEAT);
    assert_within(d->mean, sum / REPEAT, 1e-6);
    assert_within(d->p50, values[REPEAT / 2], 0.006);
    assert_within(d->p90, values[REPEAT * 9 / 10], 0.006);
    assert_within(d->p99, values[REPEAT * 99 / 100], 0.006);
    g_assert_cmpfloat(d->p50, <=, d->p90);
    g_assert_cmpfloat(d->p90, <=, d->p99);
    g_assert_cmpfloat(d->p99, <=, d->max);
    bench_free(b);
  }
}

/* Half of a jump below the sketch's smallest bucket is still half. */
static void tiny_latencies_keep_their_weight(void) {
  Bench *b = bench_new(0.0, 0.0, NULL);
  b->batch.cost.first_seconds = 0.0;
  b->batch.cost.last_seconds = 2e-6;
  record(b, 0.0, 1e-3, 0, 1, 1001);
  g_autoptr(KvSummary) s = summary_of(b);
  assert_within(s->latency[KV_LATENCY_ITL].p50, 1e-6, 0.01);
  assert_within(s->latency[KV_LATENCY_ITL].p90, 1.8e-6, 0.01);
  bench_free(b);
}

/* Sequences that have just had their first token count from there, the others from the last decode
 * step. */
static void gaps_begin_where_the_last_token_was(void) {
  Bench *b = bench_new(0.0, 0.0, NULL);
  b->instance->last_decode_end = 1.0;
  b->instance->last_prefill_end = 1.5;
  b->instance->joined_since_decode = 2;
  b->batch.cost.first_seconds = 0.5;
  record(b, 2.0, 0.5, 0, 5, 1); /* ends at 2.5: three gaps of 1.5 s and two of 1 s */
  g_autoptr(KvSummary) s = summary_of(b);
  const KvDistribution *d = &s->latency[KV_LATENCY_ITL];
  g_assert_cmpuint(d->n, ==, 5);
  assert_within(d->mean, (3 * 1.5 + 2 * 1.0) / 5, 1e-12);
  assert_within(d->min, 1.0, 1e-12);
  assert_within(d->max, 1.5, 1e-12);
  bench_free(b);
}

/* Whatever the length of a run, no token and no second of it is lost when intervals double. */
static void timeline_conserves(void) {
  const double lengths[] = {0.5, 2.0, 60.0, 5000.0, 3e6};
  KvRandom random;
  kv_random_seed(&random, 82, 0);
  for (guint k = 0; k < G_N_ELEMENTS(lengths); k++) {
    enum { BATCHES = 3000 };
    Bench *b = bench_new(0.0, 0.0, NULL);
    double origin = 100.0, now = origin, busy = 0.0, prompt = 0.0, output = 0.0, moved = 0.0,
           ttft = 0.0;
    double running = 0.0;
    guint preemptions = 0;
    for (guint i = 0; i < BATCHES; i++) {
      double seconds = 1.5 * lengths[k] / BATCHES * kv_random_unit(&random);
      guint chunk = (guint)kv_random_integer(&random, 0, 2) ? 0 : 500;
      guint64 repeat = chunk ? 1 : (guint64)kv_random_integer(&random, 1, 100);
      guint64 n = (guint64)kv_random_integer(&random, chunk ? 0 : 1, 50);
      serve(b, now, 0.0, 0.5 * seconds, seconds, 2);
      ttft += 0.5 * seconds;
      b->instance->n_running = (guint)n;
      record(b, now, seconds, chunk, n, repeat);
      running += (double)n * seconds;
      busy += seconds;
      prompt += chunk;
      output += (double)(n * repeat);
      if (kv_random_integer(&random, 0, 9) == 0) {
        KvCopy copy = {.from = KV_TIER_HBM, .to = KV_TIER_DRAM, .bytes = 1000.0, .blocks = 1};
        b->observer->class->preempted(b->observer, 7, now);
        b->observer->class->moved(b->observer, &copy, now);
        preemptions++;
        moved += 1000.0;
      }
      now += seconds * (kv_random_integer(&random, 0, 3) ? 1.0 : 1.5); /* idle at times */
    }
    g_autoptr(KvSummary) s = summary_of(b);
    double busy_found = 0.0, prompt_found = 0.0, output_found = 0.0, moved_found = 0.0,
           ttft_found = 0.0;
    double running_found = 0.0, expected_start = origin;
    guint64 preemptions_found = 0, finished = 0, tokens = 0, held = 0;
    g_assert_cmpuint(s->timeline->len, <=, 2048);
    g_assert_cmpuint(s->timeline->len, >=, lengths[k] > 1.0 ? 600 : 100);
    for (guint i = 0; i < s->timeline->len; i++) {
      const KvInterval *interval = &g_array_index(s->timeline, KvInterval, i);
      g_assert_cmpfloat_with_epsilon(interval->start_seconds, expected_start, 1e-6);
      g_assert_cmpfloat(interval->busy_seconds, <=, interval->seconds * (1 + 1e-6) + 1e-9);
      if (i + 1 < s->timeline->len)
        expected_start += interval->seconds;
      busy_found += interval->busy_seconds;
      prompt_found += interval->prompt_tokens;
      output_found += interval->output_tokens;
      moved_found += interval->host_bytes;
      ttft_found += interval->ttft_sum;
      running_found += interval->running * interval->seconds;
      preemptions_found += interval->preemptions;
      finished += interval->finished;
      tokens += interval->tpot_count;
      held += interval->blocks_held != 0.0;
    }
    assert_within(busy_found, busy, 1e-6);
    assert_within(prompt_found, prompt, 1e-6);
    assert_within(output_found, output, 1e-6);
    assert_within(moved_found, moved, 1e-12);
    assert_within(ttft_found, ttft, 1e-9);
    assert_within(running_found, running, 1e-6);
    g_assert_cmpuint(preemptions_found, ==, preemptions);
    g_assert_cmpuint(finished, ==, BATCHES);
    g_assert_cmpuint(tokens, ==, BATCHES);
    g_assert_cmpuint(held, ==, 0); /* nobody held a block */
    g_assert_cmpuint(s->prompt_tokens, ==, (guint64)prompt);
    g_assert_cmpuint(s->output_tokens, ==, (guint64)output);
    g_assert_cmpuint(s->recomputed_tokens, ==, (guint64)7 * preemptions);
    /* Each batch serves one request, which lives as long as it: Little's law. */
    assert_within(s->mean_running, busy / s->makespan_seconds, 1e-6);
    bench_free(b);
  }
}

static void totals_by_hand(void) {
  Bench *b = bench_new(0.0, 0.0, NULL);
  KvSequence rejected = {.arrival_seconds = 1.0, .session = -1};
  serve(b, 10.0, 0.0, 2.0, 6.0, 5);
  kv_metrics_arrived(b->metrics, &rejected);
  kv_metrics_rejected(b->metrics, &rejected);
  kv_pool_take_private(b->instance->pool, 40);
  record(b, 10.0, 2.0, 100, 0, 1);
  kv_pool_take_private(b->instance->pool, 20);
  record(b, 12.0, 4.0, 0, 1, 4);
  g_assert_cmpuint(kv_metrics_done(b->metrics), ==, 2);
  g_assert_cmpfloat(kv_metrics_now(b->metrics), ==, 16.0);
  g_autoptr(KvSummary) s = summary_of(b);
  g_assert_cmpuint(s->requests_arrived, ==, 2);
  g_assert_cmpuint(s->requests_finished, ==, 1);
  g_assert_cmpuint(s->requests_rejected, ==, 1);
  assert_within(s->makespan_seconds, 15.0,
                1e-12); /* from the first arrival, though it was rejected */
  assert_within(s->requests_per_second, 1.0 / 15.0, 1e-12);
  assert_within(s->output_tokens_per_second, 4.0 / 15.0, 1e-12);
  assert_within(s->prompt_tokens_per_second, 100.0 / 15.0, 1e-12);
  assert_within(s->busy_share, 6.0 / 15.0, 1e-12);
  assert_within(s->prefill_busy_share, 2.0 / 6.0, 1e-12);
  assert_within(s->mean_blocks_held_share, (0.4 * 2.0 + 0.6 * 4.0) / 6.0, 1e-12);
  assert_within(s->peak_blocks_held_share, 0.6, 1e-12);
  g_assert_cmpuint(s->steps, ==, 5);
  bench_free(b);
}

static void rows_of_requests(void) {
  g_autoptr(GError) error = NULL;
  g_autofree char *folder = g_dir_make_tmp("kvsim-metrics-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "requests.csv", NULL), *text = NULL;
  KvOutput *output = kv_output_open(path, &error);
  g_assert_no_error(error);
  Bench *b = bench_new(0.0, 0.0, output);
  KvSequence s = {.index = 3,
                  .id = -5,
                  .session = 7,
                  .turn = 2,
                  .instance = 1,
                  .input_tokens = 30,
                  .output_tokens = 5,
                  .prompt_hit_tokens = 16,
                  .preemptions = 2,
                  .arrival_seconds = 1.0,
                  .scheduled_seconds = 1.25,
                  .first_token_seconds = 2.0,
                  .last_token_seconds = 4.0};
  b->observer->class->finished(b->observer, &s);
  s.output_tokens = 1;
  s.session = -1;
  s.last_token_seconds = 2.0;
  b->observer->class->finished(b->observer, &s);
  kv_metrics_rejected(b->metrics, &s);
  bench_free(b);
  g_assert_true(kv_output_commit(output, &error));
  g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
  g_assert_cmpstr(
      text, ==,
      "index,id,session,turn,instance,status,arrival_seconds,input_tokens,output_tokens,hit_tokens,"
      "queue_seconds,ttft_seconds,tpot_seconds,e2e_seconds,preemptions\n"
      "3,-5,7,2,1,finished,1.000000,30,5,16,0.250000,1.000000,0.500000,3.000000,2\n"
      "3,-5,,2,1,finished,1.000000,30,1,16,0.250000,1.000000,,1.000000,2\n"
      "3,-5,,2,1,rejected,1.000000,30,1,16,,,,,2\n");
  g_remove(path);
  g_rmdir(folder);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/metrics/percentiles-are-numpys", percentiles_are_numpys);
  g_test_add_func("/metrics/nothing-measured-is-zero", nothing_measured_is_zero);
  g_test_add_func("/metrics/single-tokens-have-no-tpot", single_tokens_have_no_tpot);
  g_test_add_func("/metrics/objectives-are-counted", objectives_are_counted);
  g_test_add_func("/metrics/inter-token-sketch-is-close", inter_token_sketch_is_close);
  g_test_add_func("/metrics/jumps-spread-over-the-sketch", jumps_spread_over_the_sketch);
  g_test_add_func("/metrics/tiny-latencies-keep-their-weight", tiny_latencies_keep_their_weight);
  g_test_add_func("/metrics/gaps-begin-where-the-last-token-was",
                  gaps_begin_where_the_last_token_was);
  g_test_add_func("/metrics/timeline-conserves", timeline_conserves);
  g_test_add_func("/metrics/totals-by-hand", totals_by_hand);
  g_test_add_func("/metrics/rows-of-requests", rows_of_requests);
  return g_test_run();
}
