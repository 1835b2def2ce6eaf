/* Made traces: the same for the same seed, true to their distributions, and true to the published
 * figures. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "traces/generate.h"
#include "traces/statistics.h"

enum { REQUESTS = 20000 };

static KvTraceReader *generate(const KvTraceGenerator *spec) {
  g_autoptr(GError) error = NULL;
  KvTraceReader *reader = kv_trace_generate(spec, &error);
  g_assert_no_error(error);
  return reader;
}

static KvTraceStatistics statistics_of(const KvTraceGenerator *spec) {
  g_autoptr(GError) error = NULL;
  KvTraceStatistics s;
  g_autoptr(KvTraceReader) reader = generate(spec);
  g_assert_true(kv_trace_statistics(reader, &s, &error));
  return s;
}

/* One number of everything that a trace says. */
static guint64 fingerprint(const KvTraceGenerator *spec) {
  g_autoptr(KvTraceReader) reader = generate(spec);
  KvTraceRequest q;
  guint64 h = 0;
  while (kv_trace_reader_next(reader, &q, NULL)) {
    guint64 arrival;
    memcpy(&arrival, &q.arrival_seconds, sizeof arrival);
    h = kv_random_mix(h ^ arrival);
    h = kv_random_mix(h ^ q.input_tokens ^ ((guint64)q.output_tokens << 32));
    for (guint32 i = 0; i < q.n_hashes; i++)
      h = kv_random_mix(h ^ q.hashes[i]);
  }
  return h;
}

static void test_same_seed_same_trace(void) {
  const KvTracePreset *preset = kv_trace_preset("sharegpt-chat", NULL);
  KvTraceGenerator spec = preset->generator;
  guint64 first = fingerprint(&spec);
  g_assert_true(fingerprint(&spec) == first);
  spec.seed = 1;
  g_assert_true(fingerprint(&spec) != first);
}

static void test_arrivals(void) {
  KvTraceGenerator spec;
  kv_trace_generator_default(&spec);
  spec.n_requests = REQUESTS;
  spec.arrivals.rate_rps = 4;
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).rate_rps, 4, 0.12);
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).inter_arrival_cv, 1, 0.03);
  spec.arrivals.kind = KV_ARRIVALS_GAMMA;
  spec.arrivals.cv = 2;
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).rate_rps, 4, 0.25);
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).inter_arrival_cv, 2, 0.15);
  spec.arrivals.kind = KV_ARRIVALS_WEIBULL;
  spec.arrivals.shape = 0.5; /* CV of Weibull(1/2): sqrt(Gamma(5)/Gamma(3)^2 - 1) = sqrt(5) */
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).rate_rps, 4, 0.25);
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).inter_arrival_cv, sqrt(5), 0.25);
  spec.arrivals.kind = KV_ARRIVALS_CONSTANT;
  g_assert_cmpfloat_with_epsilon(statistics_of(&spec).last_seconds, (REQUESTS - 1) / 4.0, 1e-6);
  spec.arrivals.kind = KV_ARRIVALS_AT_ONCE;
  g_assert_cmpfloat(statistics_of(&spec).last_seconds, ==, 0);
}

static void test_lengths(void) {
  KvTraceGenerator spec;
  g_autoptr(GError) error = NULL;
  kv_trace_generator_default(&spec);
  spec.n_requests = REQUESTS;
  g_assert_true(kv_lengths_parse("uniform:10:20", "x", &spec.input_tokens, &error));
  g_assert_true(kv_lengths_parse("lognormal:300:200", "x", &spec.output_tokens, &error));
  KvTraceStatistics s = statistics_of(&spec);
  g_assert_cmpfloat_with_epsilon(s.input_tokens.mean, 15, 0.1);
  g_assert_cmpfloat(s.input_tokens.max, ==, 20);
  g_assert_cmpfloat_with_epsilon(s.output_tokens.mean, 300, 8);
  g_assert_cmpfloat_with_epsilon(s.output_tokens.p50, 200, 5);
  static const char *const wrong[] = {"fixed",       "fixed:0",  "fixed:x",   "uniform:5:4",
                                      "normal:1:2",  "",         "fixed:1:2", "lognormal:100:200",
                                      "fixed:1e300", "fixed:nan"};
  for (guint i = 0; i < G_N_ELEMENTS(wrong); i++) {
    g_assert_false(kv_lengths_parse(wrong[i], "--input", &spec.input_tokens, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    g_clear_error(&error);
  }
}

static void test_shared_prompts(void) {
  /* 2 prompts of 32 tokens and a header of 16: 3 blocks; then 16 tokens of one's own */
  KvTraceGenerator spec;
  kv_trace_generator_default(&spec);
  spec.n_requests = 500;
  spec.shared_prompts = 2;
  spec.shared_tokens = 32;
  spec.header_tokens = 16;
  spec.input_tokens.a = 16;
  KvTraceStatistics s = statistics_of(&spec);
  g_assert_cmpuint(s.n_blocks, ==, (guint64)4 * 500);
  g_assert_cmpuint(s.n_distinct_blocks, ==, 2 * 3 + 500);
  g_assert_cmpuint(s.hit_blocks, ==, (guint64)3 * (500 - 2));
  /* Zipf of exponent 1 over two: the first has 2/3 */
  g_assert_cmpfloat_with_epsilon((double)s.most_reused / 500, 2.0 / 3, 0.07);
}

static void test_sessions_extend_history(void) {
  KvTraceGenerator spec;
  kv_trace_generator_default(&spec);
  spec.n_requests = 2000;
  spec.turns_mean = 5;
  spec.input_tokens.a = 32;
  spec.output_tokens.a = 8;
  spec.turn_input_tokens.a = 10;
  spec.context_limit_tokens = 200;
  spec.compact_tokens = 50;
  g_autoptr(KvTraceReader) reader = generate(&spec);
  KvTraceRequest q;
  guint64 before = 0, blocks[20];
  guint compacted = 0;
  g_assert_cmpint(kv_trace_reader_timing(reader), ==, KV_TRACE_SESSIONS);
  for (guint n = 0; kv_trace_reader_next(reader, &q, NULL); n++) {
    g_assert_cmpuint(q.n_hashes, ==, (q.input_tokens + 15) / 16);
    if (q.turn == 0) {
      g_assert_cmpuint(q.input_tokens, ==, 32);
    } else if (before + 18 > 200) {
      g_assert_cmpuint(q.input_tokens, ==, 60);
      g_assert_true(q.hashes[0] != blocks[0]);
      compacted++;
    } else {
      g_assert_cmpuint(q.input_tokens, ==, before + 18);
      guint64 whole = before / 16;
      g_assert_cmpmem(q.hashes, whole * sizeof *blocks, blocks, whole * sizeof *blocks);
      g_assert_true(before % 16 == 0 || q.hashes[whole] != blocks[whole]);
    }
    before = q.input_tokens;
    memcpy(blocks, q.hashes, q.n_hashes * sizeof *blocks);
  }
  g_assert_cmpuint(compacted, >, 10);
}

static void test_refuses(void) {
  KvTraceGenerator spec;
  g_autoptr(GError) error = NULL;
  kv_trace_generator_default(&spec);
  spec.arrivals.rate_rps = 0;
  g_assert_null(kv_trace_generate(&spec, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_clear_error(&error);
  kv_trace_generator_default(&spec);
  spec.turns_mean = NAN;
  g_assert_null(kv_trace_generate(&spec, &error));
  g_clear_error(&error);
  kv_trace_generator_default(&spec);
  spec.lengths_path = "/nonexistent";
  g_assert_null(kv_trace_generate(&spec, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_clear_error(&error);
  g_assert_null(kv_trace_preset("azure-cony", &error));
  g_assert_nonnull(strstr(error->message, "did you mean 'azure-conv'?"));
}

/* |value / published - 1| <= tolerance, where something is published. */
static void assert_published(const KvTracePreset *p, const char *what, double value,
                             double published) {
  if (published > 0 && fabs(value / published - 1) > p->tolerance)
    g_error("preset %s: %s is %.1f, published %.1f, tolerance %.0f %%", p->id, what, value,
            published, 100 * p->tolerance);
}

static int by_double(gconstpointer a, gconstpointer b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* Mean and median of the new tokens of each turn: what `input` means for the presets of chats. */
static void new_tokens(const KvTraceGenerator *spec, double *mean, double *p50) {
  g_autoptr(GArray) added = g_array_new(FALSE, FALSE, sizeof(double));
  g_autoptr(KvTraceReader) reader = generate(spec);
  KvTraceRequest q;
  double before = 0, sum = 0;
  while (kv_trace_reader_next(reader, &q, NULL)) {
    double tokens = q.input_tokens - (q.turn > 0 ? before : 0);
    if (tokens > 0) { /* less: the context was cut */
      g_array_append_val(added, tokens);
      sum += tokens;
    }
    before = (double)q.input_tokens + q.output_tokens;
  }
  g_array_sort(added, by_double);
  *mean = sum / added->len;
  *p50 = g_array_index(added, double, added->len / 2);
}

static void test_preset(gconstpointer user) {
  const KvTracePreset *p = user;
  KvTraceGenerator spec = p->generator;
  spec.n_requests = REQUESTS;
  spec.block_tokens = 0; /* lengths are what is published, and blocks take time */
  KvTraceStatistics s = statistics_of(&spec);
  double mean = s.input_tokens.mean, p50 = s.input_tokens.p50;
  if (strstr(p->description, "new tokens of a turn"))
    new_tokens(&spec, &mean, &p50);
  g_assert_cmpuint(s.n_requests, ==, REQUESTS);
  g_assert_cmpuint(strlen(p->source), >, 10);
  g_assert_cmpfloat(p->tolerance, <=, 0.12);
  assert_published(p, "mean input", mean, p->input_mean);
  assert_published(p, "median input", p50, p->input_p50);
  assert_published(p, "mean output", s.output_tokens.mean, p->output_mean);
  assert_published(p, "median output", s.output_tokens.p50, p->output_p50);
  if (spec.turns_mean > 1 &&
      spec.turns_mean < 20) /* longer ones are cut off by the number of requests */
    g_assert_cmpfloat_with_epsilon(s.turns_mean, spec.turns_mean, 0.05 * spec.turns_mean);
}

/* Calls: of the mean asked for, in order and inside of the answer; without them nothing else
 * changes. */
static void test_calls(void) {
  KvTraceGenerator g;
  kv_trace_generator_default(&g);
  g.n_requests = 4000;
  g.output_tokens = (KvLengths){.kind = KV_LENGTHS_FIXED, .a = 1000};
  g_autoptr(KvTraceReader) plain = kv_trace_generate(&g, NULL);
  g.calls_mean = 2.0;
  g.call_mean_seconds = 3.0;
  g.call_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 10, .b = 30};
  g_autoptr(KvTraceReader) calling = kv_trace_generate(&g, NULL);
  KvTraceRequest a, b;
  guint64 n = 0, tokens = 0;
  double seconds = 0.0;
  while (kv_trace_reader_next(calling, &a, NULL)) {
    guint32 after = 0;
    g_assert_true(kv_trace_reader_next(plain, &b, NULL));
    g_assert_cmpfloat(a.arrival_seconds, ==, b.arrival_seconds);
    for (guint32 i = 0; i < a.n_calls; i++, n++) {
      g_assert_cmpuint(a.calls[i].position, >, after);
      g_assert_cmpuint(a.calls[i].position, <, a.output_tokens);
      after = a.calls[i].position;
      tokens += a.calls[i].returned_tokens;
      seconds += a.calls[i].duration_seconds;
    }
  }
  g_assert_cmpfloat_with_epsilon((double)n / 4000.0, 2.0, 0.15);
  g_assert_cmpfloat_with_epsilon((double)tokens / (double)n, 20.0, 0.5);
  g_assert_cmpfloat_with_epsilon(seconds / (double)n, 3.0, 0.2);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/traces/generate/same-seed-same-trace", test_same_seed_same_trace);
  g_test_add_func("/traces/generate/arrivals", test_arrivals);
  g_test_add_func("/traces/generate/lengths", test_lengths);
  g_test_add_func("/traces/generate/shared-prompts", test_shared_prompts);
  g_test_add_func("/traces/generate/sessions-extend-history", test_sessions_extend_history);
  g_test_add_func("/traces/generate/refuses", test_refuses);
  for (const KvTracePreset *p = kv_trace_presets; p->id; p++) {
    g_autofree char *name = g_strconcat("/traces/presets/", p->id, NULL);
    g_test_add_data_func(name, p, test_preset);
  }
  g_test_add_func("/traces/generate/calls", test_calls);
  return g_test_run();
}
