#include "traces/commands.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/base/output.h"
#include "traces/generate.h"
#include "traces/statistics.h"
#include "traces/transform.h"
#include "traces/writer.h"

typedef struct {
  const char *name, *arguments, *summary, *example;
  gboolean (*run)(GOptionContext *context, int argc, char **argv, GError **error);
} Command;

static gboolean usage(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static gboolean usage(GError **error, const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *message = g_strdup_vprintf(format, args);
  va_end(args);
  g_set_error_literal(error, KV_ERROR, KV_ERROR_USAGE, message);
  return FALSE;
}

/* Parse the options; exactly `n_files` arguments must be left, which argv[1] and so on then are. */
static gboolean parse(GOptionContext *context, const GOptionEntry *entries, int *argc, char ***argv,
                      int n_files, GError **error) {
  g_option_context_add_main_entries(context, entries, NULL);
  if (!g_option_context_parse(context, argc, argv, error))
    return FALSE;
  if (*argc - 1 != n_files)
    return usage(error, "trace %s: %d arguments found, expected %s", (*argv)[0], *argc - 1,
                 n_files ? "one trace file (or -)" : "none");
  return TRUE;
}

/* Write what `reader` gives to `path` and close it. */
static gboolean copy(KvTraceReader *source, const char *path, GError **error) {
  g_autoptr(KvTraceReader) reader = source;
  KvTraceWriter *writer = kv_trace_writer_open(path ? path : "-", kv_trace_reader_timing(reader),
                                               kv_trace_reader_block_tokens(reader), error);
  if (!writer)
    return FALSE;
  KvTraceRequest request;
  GError *problem = NULL;
  while (kv_trace_reader_next(reader, &request, &problem))
    kv_trace_writer_write(writer, &request);
  if (!problem && kv_trace_writer_count(writer) == 0)
    usage(&problem, "%s: no request is left, expected some", kv_trace_reader_name(reader));
  if (problem) {
    kv_trace_writer_discard(writer);
    g_propagate_error(error, problem);
    return FALSE;
  }
  return kv_trace_writer_commit(writer, error);
}

/* A number that stands alone in `text`; `fallback` for NULL. */
static gboolean number(const char *text, const char *option, double fallback, double *value,
                       GError **error) {
  *value = fallback;
  if (!text)
    return TRUE;
  char *end;
  *value = g_ascii_strtod(text, &end);
  if (end == text || *end != '\0' || isnan(*value))
    return usage(error, "--%s: '%s' found, expected a number", option, text);
  return TRUE;
}

/* stat */

static const char *const timing_names[] = {"timed", "sessions", "untimed"};

static json_t *distribution_json(const KvTraceDistribution *d) {
  return json_pack("{s:f, s:f, s:f, s:f, s:f}", "mean", d->mean, "p50", d->p50, "p95", d->p95,
                   "p99", d->p99, "max", d->max);
}

static double share(guint64 part, guint64 whole) {
  return whole ? (double)part / (double)whole : 0;
}

static char *statistics_json(const KvTraceReader *reader, const KvTraceStatistics *s) {
  g_autofree char *name = g_utf8_make_valid(kv_trace_reader_name(reader), -1);
  json_t *root =
      json_pack("{s:s, s:s, s:s, s:I}", "trace", name, "format", kv_trace_reader_format(reader)->id,
                "timing", timing_names[s->timing], "requests", (json_int_t)s->n_requests);
  if (s->timing == KV_TRACE_TIMED)
    json_object_set_new(root, "arrivals",
                        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "first_seconds",
                                  s->first_seconds, "last_seconds", s->last_seconds, "rate_rps",
                                  s->rate_rps, "inter_arrival_cv", s->inter_arrival_cv,
                                  "same_time_share", s->same_time_share, "tick_seconds",
                                  s->tick_seconds));
  json_object_set_new(root, "input_tokens", distribution_json(&s->input_tokens));
  json_object_set_new(root, "output_tokens", distribution_json(&s->output_tokens));
  json_object_set_new(root, "total_tokens", distribution_json(&s->total_tokens));
  if (s->n_sessions > 0)
    json_object_set_new(root, "sessions",
                        json_pack("{s:I, s:f, s:f, s:f, s:f}", "count", (json_int_t)s->n_sessions,
                                  "turns_mean", s->turns_mean, "turns_max", s->turns_max,
                                  "think_seconds_mean", s->think_seconds_mean, "think_seconds_p50",
                                  s->think_seconds_p50));
  if (s->n_blocks > 0)
    json_object_set_new(root, "prefix",
                        json_pack("{s:I, s:I, s:I, s:I, s:f, s:f}", "block_tokens",
                                  (json_int_t)s->block_tokens, "blocks", (json_int_t)s->n_blocks,
                                  "distinct_blocks", (json_int_t)s->n_distinct_blocks,
                                  "most_reused", (json_int_t)s->most_reused, "ideal_hit_of_tokens",
                                  share(s->hit_tokens, s->sum_input_tokens), "ideal_hit_of_blocks",
                                  share(s->hit_blocks, s->n_blocks)));
  char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  json_decref(root);
  return text;
}

/* 1234567 as 1,234,567; newly allocated. */
static char *grouped(double value) {
  char digits[32];
  int n = g_snprintf(digits, sizeof digits, "%.0f", value);
  GString *text = g_string_new(NULL);
  for (int i = 0; i < n; i++) {
    if (i > 0 && (n - i) % 3 == 0)
      g_string_append_c(text, ',');
    g_string_append_c(text, digits[i]);
  }
  return g_string_free(text, FALSE);
}

static void print_distribution(KvOutput *out, const char *name, const KvTraceDistribution *d) {
  const double values[] = {d->mean, d->p50, d->p95, d->p99, d->max};
  kv_output_print(out, "  %-14s", name);
  for (guint i = 0; i < G_N_ELEMENTS(values); i++) {
    g_autofree char *text = grouped(values[i]);
    kv_output_print(out, " %11s", text);
  }
  kv_output_print(out, "\n");
}

static void print_arrivals(KvOutput *out, const KvTraceStatistics *s) {
  kv_output_print(out, "Arrivals         %.3f to %.3f s, %.4g/s, gaps' CV %.2f (Poisson: 1)\n",
                  s->first_seconds, s->last_seconds, s->rate_rps, s->inter_arrival_cv);
  if (s->tick_seconds > 0)
    kv_output_print(out,
                    "Ticks            %.3g s; %.1f %% arrive at the same time as the one before "
                    "(see `kvsim trace smear`)\n",
                    s->tick_seconds, 100 * s->same_time_share);
}

static void print_statistics(KvOutput *out, const KvTraceReader *reader,
                             const KvTraceStatistics *s) {
  g_autofree char *requests = grouped((double)s->n_requests);
  kv_output_print(out, "Trace            %s (%s, %s)\n", kv_trace_reader_name(reader),
                  kv_trace_reader_format(reader)->id, timing_names[s->timing]);
  kv_output_print(out, "Requests         %s\n", requests);
  if (s->timing == KV_TRACE_TIMED)
    print_arrivals(out, s);
  kv_output_print(out,
                  "Tokens                  mean         p50         p95         p99         max\n");
  print_distribution(out, "input", &s->input_tokens);
  print_distribution(out, "output", &s->output_tokens);
  print_distribution(out, "total", &s->total_tokens);
  if (s->n_sessions > 0) {
    g_autofree char *sessions = grouped((double)s->n_sessions);
    kv_output_print(
        out, "Sessions         %s; turns mean %.1f, max %.0f; think time mean %.1f s, p50 %.1f s\n",
        sessions, s->turns_mean, s->turns_max, s->think_seconds_mean, s->think_seconds_p50);
  }
  if (s->n_blocks == 0)
    return;
  g_autofree char *blocks = grouped((double)s->n_blocks);
  g_autofree char *distinct = grouped((double)s->n_distinct_blocks);
  g_autofree char *most = grouped((double)s->most_reused);
  kv_output_print(out, "Prefix blocks    %s of %u tokens, %s distinct, one used %s times\n", blocks,
                  s->block_tokens, distinct, most);
  kv_output_print(
      out, "Ideal hit        %.1f %% of tokens, %.1f %% of blocks (cold cache, unlimited)\n",
      100 * share(s->hit_tokens, s->sum_input_tokens), 100 * share(s->hit_blocks, s->n_blocks));
}

static gboolean run_stat(GOptionContext *context, int argc, char **argv, GError **error) {
  g_autofree char *format = NULL;
  gboolean as_json = FALSE;
  const GOptionEntry entries[] = {{"format", 'f', 0, G_OPTION_ARG_STRING, &format,
                                   "The trace's format (default: by its content)", "FORMAT"},
                                  {"json", 0, 0, G_OPTION_ARG_NONE, &as_json, "Print JSON", NULL},
                                  G_OPTION_ENTRY_NULL};
  if (!parse(context, entries, &argc, &argv, 1, error))
    return FALSE;
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(argv[1], format, error);
  KvTraceStatistics statistics;
  if (!reader || !kv_trace_statistics(reader, &statistics, error))
    return FALSE;
  KvOutput *out = kv_output_open("-", error);
  if (!out)
    return FALSE;
  if (as_json) {
    char *text = statistics_json(reader, &statistics);
    kv_output_print(out, "%s\n", text);
    free(text);
  } else {
    print_statistics(out, reader, &statistics);
  }
  return kv_output_commit(out, error);
}

/* Commands that make a trace of a trace share these options. */

typedef struct {
  char *format, *output;
} Common;

#define COMMON_ENTRIES(common)                                                                     \
  {"format",                                                                                       \
   'f',                                                                                            \
   0,                                                                                              \
   G_OPTION_ARG_STRING,                                                                            \
   &(common).format,                                                                               \
   "The trace's format (default: by its content)",                                                 \
   "FORMAT"},                                                                                      \
  {                                                                                                \
    "output", 'o', 0, G_OPTION_ARG_FILENAME, &(common).output,                                     \
        "The file to write, gzip if it ends in .gz (default: standard output)", "OUT"              \
  }

static void common_clear(Common *common) {
  g_free(common->format);
  g_free(common->output);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Common, common_clear)

static gboolean run_convert(GOptionContext *context, int argc, char **argv, GError **error) {
  g_auto(Common) common = {0};
  const GOptionEntry entries[] = {COMMON_ENTRIES(common), G_OPTION_ENTRY_NULL};
  if (!parse(context, entries, &argc, &argv, 1, error))
    return FALSE;
  KvTraceReader *reader = kv_trace_reader_open(argv[1], common.format, error);
  return reader && copy(reader, common.output, error);
}

static gboolean run_slice(GOptionContext *context, int argc, char **argv, GError **error) {
  g_auto(Common) common = {0};
  g_autofree char *from = NULL, *to = NULL;
  gint64 head = -1, skip = 0, every = 1;
  const GOptionEntry entries[] = {
      COMMON_ENTRIES(common),
      {"from", 0, 0, G_OPTION_ARG_STRING, &from, "Keep what arrives from SECONDS on; it becomes 0",
       "SECONDS"},
      {"to", 0, 0, G_OPTION_ARG_STRING, &to, "Keep what arrives before SECONDS", "SECONDS"},
      {"skip", 0, 0, G_OPTION_ARG_INT64, &skip, "Leave out the first N", "N"},
      {"every", 0, 0, G_OPTION_ARG_INT64, &every, "Keep every N-th", "N"},
      {"head", 'n', 0, G_OPTION_ARG_INT64, &head,
       "Keep N at most (sessions, in a trace of sessions)", "N"},
      G_OPTION_ENTRY_NULL};
  KvTraceSlice slice = KV_TRACE_SLICE_ALL;
  if (!parse(context, entries, &argc, &argv, 1, error) ||
      !number(from, "from", 0, &slice.from_seconds, error) ||
      !number(to, "to", HUGE_VAL, &slice.to_seconds, error))
    return FALSE;
  if (skip < 0 || every < 1 || head < -1)
    return usage(error,
                 "trace slice: --skip, --every and --head must not be negative, and --every not 0");
  slice.skip = (guint64)skip;
  slice.every = (guint64)every;
  slice.count = head < 0 ? G_MAXUINT64 : (guint64)head;
  KvTraceReader *reader = kv_trace_reader_open(argv[1], common.format, error);
  reader = reader ? kv_trace_slice(reader, &slice, error) : NULL;
  return reader && copy(reader, common.output, error);
}

static gboolean run_scale(GOptionContext *context, int argc, char **argv, GError **error) {
  g_auto(Common) common = {0};
  g_autofree char *rate = NULL;
  const GOptionEntry entries[] = {
      COMMON_ENTRIES(common),
      {"rate", 'r', 0, G_OPTION_ARG_STRING, &rate, "Arrivals FACTOR times as often", "FACTOR"},
      G_OPTION_ENTRY_NULL};
  double factor;
  if (!parse(context, entries, &argc, &argv, 1, error) || !number(rate, "rate", 0, &factor, error))
    return FALSE;
  if (!rate)
    return usage(error, "trace scale: --rate=FACTOR is missing");
  KvTraceReader *reader = kv_trace_reader_open(argv[1], common.format, error);
  reader = reader ? kv_trace_scale(reader, factor, error) : NULL;
  return reader && copy(reader, common.output, error);
}

/* The tick that the statistics of the trace find. */
static gboolean find_tick(const char *path, const char *format, double *tick, GError **error) {
  if (strcmp(path, "-") == 0)
    return usage(error,
                 "trace smear: standard input cannot be read twice, expected --tick=SECONDS");
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(path, format, error);
  KvTraceStatistics statistics;
  if (!reader || !kv_trace_statistics(reader, &statistics, error))
    return FALSE;
  *tick = statistics.tick_seconds;
  return *tick > 0 ||
         usage(error, "%s: its arrivals stand on no ticks, expected some or --tick=SECONDS", path);
}

static gboolean run_smear(GOptionContext *context, int argc, char **argv, GError **error) {
  g_auto(Common) common = {0};
  g_autofree char *tick_text = NULL;
  gint64 seed = 0;
  double tick;
  const GOptionEntry entries[] = {
      COMMON_ENTRIES(common),
      {"tick", 't', 0, G_OPTION_ARG_STRING, &tick_text,
       "The ticks' size (default: found in the trace)", "SECONDS"},
      {"seed", 0, 0, G_OPTION_ARG_INT64, &seed, "Seed of the random places in a tick", "N"},
      G_OPTION_ENTRY_NULL};
  if (!parse(context, entries, &argc, &argv, 1, error) ||
      !number(tick_text, "tick", 0, &tick, error) ||
      (!tick_text && !find_tick(argv[1], common.format, &tick, error)))
    return FALSE;
  KvTraceReader *reader = kv_trace_reader_open(argv[1], common.format, error);
  reader = reader ? kv_trace_smear(reader, tick, (guint64)seed, error) : NULL;
  return reader && copy(reader, common.output, error);
}

static gboolean run_repeat(GOptionContext *context, int argc, char **argv, GError **error) {
  g_auto(Common) common = {0};
  gint64 times = 2;
  gboolean fresh = FALSE;
  const GOptionEntry entries[] = {
      COMMON_ENTRIES(common),
      {"times", 'n', 0, G_OPTION_ARG_INT64, &times, "How often in all (default 2)", "N"},
      {"fresh", 0, 0, G_OPTION_ARG_NONE, &fresh, "Give each copy prefix blocks of its own", NULL},
      G_OPTION_ENTRY_NULL};
  if (!parse(context, entries, &argc, &argv, 1, error))
    return FALSE;
  KvTraceReader *reader =
      kv_trace_repeat(argv[1], common.format, (guint64)MAX(times, 0), fresh, error);
  return reader && copy(reader, common.output, error);
}

/* generate */

typedef struct {
  char *preset, *rate, *arrivals, *cv, *shape, *input, *output, *turn_input, *lengths, *turns,
      *think, *zipf, *out, *calls, *call_seconds, *call_tokens;
  gint64 n, seed, block, shared, shared_tokens, header, limit, compact;
} Wanted;

static void wanted_clear(Wanted *w) {
  char *texts[] = {w->preset, w->rate,  w->arrivals,     w->cv,         w->shape, w->input,
                   w->output, w->out,   w->turn_input,   w->lengths,    w->turns, w->think,
                   w->zipf,   w->calls, w->call_seconds, w->call_tokens};
  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Wanted, wanted_clear)

static gboolean set_whole(gint64 value, const char *option, guint32 *into, GError **error) {
  if (value == -1)
    return TRUE;
  if (value < 0 || value > G_MAXINT32)
    return usage(error, "--%s: %" G_GINT64_FORMAT " found, expected 0 to 2147483647", option,
                 value);
  *into = (guint32)value;
  return TRUE;
}

static gboolean set_arrivals(const Wanted *w, KvTraceGenerator *g, GError **error) {
  static const char *const names[] = {"poisson", "gamma", "weibull", "constant", "at-once", NULL};
  if (w->arrivals) {
    guint kind = 0;
    while (names[kind] && strcmp(names[kind], w->arrivals) != 0)
      kind++;
    if (!names[kind]) {
      g_autofree char *message = kv_names_unknown("arrival process", w->arrivals, names);
      return usage(error, "--arrivals: %s", message);
    }
    g->arrivals.kind = (KvArrivalsKind)kind; /* in the order of the enumeration */
  }
  if (w->cv && !w->arrivals)
    g->arrivals.kind = KV_ARRIVALS_GAMMA;
  if (w->shape && !w->arrivals)
    g->arrivals.kind = KV_ARRIVALS_WEIBULL;
  return number(w->rate, "rate", g->arrivals.rate_rps, &g->arrivals.rate_rps, error) &&
         number(w->cv, "cv", g->arrivals.cv, &g->arrivals.cv, error) &&
         number(w->shape, "shape", g->arrivals.shape, &g->arrivals.shape, error);
}

/* MEAN or MEAN:P50, in seconds. */
static gboolean set_seconds(const char *text, const char *option, double *mean, double *p50,
                            GError **error) {
  if (!text)
    return TRUE;
  g_auto(GStrv) parts = g_strsplit(text, ":", 2);
  return number(parts[0] ? parts[0] : "", option, 0, mean, error) &&
         number(parts[0] ? parts[1] : NULL, option, 0, p50, error);
}

static gboolean set_generator(const Wanted *w, KvTraceGenerator *g, GError **error) {
  kv_trace_generator_default(g);
  if (w->preset) {
    const KvTracePreset *preset = kv_trace_preset(w->preset, error);
    if (!preset)
      return FALSE;
    *g = preset->generator;
  }
  if (w->n < -1)
    return usage(error, "--requests: a negative number, expected 0 or more");
  if (w->n >= 0)
    g->n_requests = (guint64)w->n;
  g->seed = (guint64)w->seed;
  g->lengths_path = w->lengths;
  return set_arrivals(w, g, error) &&
         set_seconds(w->think, "think", &g->think_mean_seconds, &g->think_p50_seconds, error) &&
         number(w->calls, "calls", g->calls_mean, &g->calls_mean, error) &&
         set_seconds(w->call_seconds, "call-seconds", &g->call_mean_seconds, &g->call_p50_seconds,
                     error) &&
         (!w->call_tokens ||
          kv_lengths_parse(w->call_tokens, "--call-tokens", &g->call_tokens, error)) &&
         number(w->turns, "turns", g->turns_mean, &g->turns_mean, error) &&
         number(w->zipf, "zipf", g->zipf, &g->zipf, error) &&
         (!w->input || kv_lengths_parse(w->input, "--input", &g->input_tokens, error)) &&
         (!w->output || kv_lengths_parse(w->output, "--answers", &g->output_tokens, error)) &&
         (!w->turn_input ||
          kv_lengths_parse(w->turn_input, "--turn-input", &g->turn_input_tokens, error)) &&
         set_whole(w->block, "block-tokens", &g->block_tokens, error) &&
         set_whole(w->shared, "shared-prompts", &g->shared_prompts, error) &&
         set_whole(w->shared_tokens, "shared-tokens", &g->shared_tokens, error) &&
         set_whole(w->header, "header-tokens", &g->header_tokens, error) &&
         set_whole(w->limit, "context-limit", &g->context_limit_tokens, error) &&
         set_whole(w->compact, "compact-to", &g->compact_tokens, error);
}

static void describe_presets(GOptionContext *context, const char *example) {
  g_autoptr(GString) text =
      g_string_new("Presets (their figures' sources are in traces/presets.c):\n");
  for (const KvTracePreset *p = kv_trace_presets; p->id; p++)
    g_string_append_printf(text, "  %-22s %s\n", p->id, p->description);
  g_string_append_printf(
      text, "\nLengths are fixed:N, uniform:LOW:HIGH or lognormal:MEAN:P50.\n\n%s", example);
  g_option_context_set_description(context, text->str);
}

static gboolean run_generate(GOptionContext *context, int argc, char **argv, GError **error) {
  g_auto(Wanted) w = {.n = -1,
                      .block = -1,
                      .shared = -1,
                      .shared_tokens = -1,
                      .header = -1,
                      .limit = -1,
                      .compact = -1};
  const GOptionEntry entries[] = {
      {"preset", 'p', 0, G_OPTION_ARG_STRING, &w.preset, "Start from a published workload", "NAME"},
      {"requests", 'n', 0, G_OPTION_ARG_INT64, &w.n, "How many (default 1000)", "N"},
      {"seed", 0, 0, G_OPTION_ARG_INT64, &w.seed, "Seed of every draw (default 0)", "N"},
      {"rate", 'r', 0, G_OPTION_ARG_STRING, &w.rate, "Arrivals a second; of sessions, their starts",
       "RATE"},
      {"arrivals", 'a', 0, G_OPTION_ARG_STRING, &w.arrivals,
       "poisson, gamma, weibull, constant or at-once", "KIND"},
      {"cv", 0, 0, G_OPTION_ARG_STRING, &w.cv, "Coefficient of variation of gamma gaps", "CV"},
      {"shape", 0, 0, G_OPTION_ARG_STRING, &w.shape, "Shape of Weibull gaps", "SHAPE"},
      {"input", 'i', 0, G_OPTION_ARG_STRING, &w.input, "Prompt lengths (behind what is shared)",
       "LENGTHS"},
      {"answers", 'u', 0, G_OPTION_ARG_STRING, &w.output, "Answer lengths", "LENGTHS"},
      {"lengths-of", 0, 0, G_OPTION_ARG_FILENAME, &w.lengths, "Draw pairs of both from this trace",
       "FILE"},
      {"turns", 0, 0, G_OPTION_ARG_STRING, &w.turns, "Mean turns of a session (default 1)", "MEAN"},
      {"turn-input", 0, 0, G_OPTION_ARG_STRING, &w.turn_input, "New tokens of a later turn",
       "LENGTHS"},
      {"think", 0, 0, G_OPTION_ARG_STRING, &w.think, "Think time in seconds", "MEAN[:P50]"},
      {"calls", 0, 0, G_OPTION_ARG_STRING, &w.calls,
       "Mean API calls in the middle of an answer (default 0)", "MEAN"},
      {"call-seconds", 0, 0, G_OPTION_ARG_STRING, &w.call_seconds, "How long one takes (default 2)",
       "MEAN[:P50]"},
      {"call-tokens", 0, 0, G_OPTION_ARG_STRING, &w.call_tokens,
       "Tokens that one returns (default fixed:64)", "LENGTHS"},
      {"shared-prompts", 0, 0, G_OPTION_ARG_INT64, &w.shared, "Number of system prompts", "N"},
      {"shared-tokens", 0, 0, G_OPTION_ARG_INT64, &w.shared_tokens, "Length of a system prompt",
       "N"},
      {"header-tokens", 0, 0, G_OPTION_ARG_INT64, &w.header, "Length of a few-shot header", "N"},
      {"zipf", 0, 0, G_OPTION_ARG_STRING, &w.zipf,
       "Exponent of the prompts' popularity (default 1)", "S"},
      {"block-tokens", 0, 0, G_OPTION_ARG_INT64, &w.block,
       "Tokens of a prefix block, 0 for none (default 16)", "N"},
      {"context-limit", 0, 0, G_OPTION_ARG_INT64, &w.limit,
       "Longest prompt of a session, 0 for none", "N"},
      {"compact-to", 0, 0, G_OPTION_ARG_INT64, &w.compact, "What is left of a longer one", "N"},
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &w.out,
       "The file to write, gzip if it ends in .gz (default: standard output)", "OUT"},
      G_OPTION_ENTRY_NULL};
  describe_presets(
      context,
      "Example:\n  kvsim trace generate --preset=sharegpt-chat -n 5000 --rate=2 -o chat.jsonl.gz\n");
  KvTraceGenerator generator;
  if (!parse(context, entries, &argc, &argv, 0, error) || !set_generator(&w, &generator, error))
    return FALSE;
  KvTraceReader *reader = kv_trace_generate(&generator, error);
  return reader && copy(reader, w.out, error);
}

static const Command commands[] = {
    {"stat", "FILE", "What a trace is like: arrivals, lengths, sessions, prefix reuse.",
     "kvsim trace stat --json conversation_trace.jsonl", run_stat},
    {"convert", "FILE", "Rewrite a trace of any format in kvsim's own.",
     "kvsim trace convert AzureLLMInferenceTrace_conv.csv -o azure.jsonl.gz", run_convert},
    {"slice", "FILE", "Keep a part of a trace.",
     "kvsim trace slice --from=600 --to=1200 trace.jsonl.gz -o ten_minutes.jsonl", run_slice},
    {"scale", "FILE", "Change the arrival rate by a factor.",
     "kvsim trace scale --rate=2.5 trace.jsonl -o faster.jsonl", run_scale},
    {"smear", "FILE", "Spread arrivals recorded on coarse ticks over the ticks.",
     "kvsim trace smear conversation_trace.jsonl -o smeared.jsonl", run_smear},
    {"repeat", "FILE", "Append copies of a trace to it.",
     "kvsim trace repeat --times=4 --fresh trace.jsonl -o longer.jsonl", run_repeat},
    {"generate", "", "Make a trace from distributions or after a published workload.", NULL,
     run_generate},
};

static void print_commands(void) {
  g_print("Usage:\n  kvsim trace COMMAND [OPTION...] FILE\n\nCommands:\n");
  for (guint i = 0; i < G_N_ELEMENTS(commands); i++)
    g_print("  %-10s %s\n", commands[i].name, commands[i].summary);
  g_print(
      "\nFILE may be plain or gzip, in any format of `kvsim list formats`, or - for standard input.\n"
      "`kvsim trace COMMAND --help` says more.\n\nExample:\n  %s\n",
      commands[0].example);
}

static const Command *find_command(const char *name, GError **error) {
  const char *names[G_N_ELEMENTS(commands) + 1] = {NULL};
  for (guint i = 0; i < G_N_ELEMENTS(commands); i++) {
    if (strcmp(commands[i].name, name) == 0)
      return &commands[i];
    names[i] = commands[i].name;
  }
  g_autofree char *message = kv_names_unknown("trace command", name, names);
  usage(error, "%s", message);
  return NULL;
}

int kv_trace_command(int argc, char **argv, GError **error) {
  GError *problem = NULL;
  if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
    print_commands();
    return 0;
  }
  if (argc < 2) {
    usage(&problem,
          "trace: no command, expected one of stat, convert, slice, scale, smear, repeat, "
          "generate (see `kvsim trace --help`)");
  } else {
    const Command *command = find_command(argv[1], &problem);
    if (command) {
      g_autofree char *parameters = g_strdup_printf("%s", command->arguments);
      g_autoptr(GOptionContext) context = g_option_context_new(parameters);
      g_option_context_set_summary(context, command->summary);
      if (command->example) {
        g_autofree char *example = g_strdup_printf("Example:\n  %s\n", command->example);
        g_option_context_set_description(context, example);
      }
      g_autofree char *program = g_strdup_printf("kvsim trace %s", command->name);
      g_set_prgname(program);
      command->run(context, argc - 1, argv + 1, &problem);
    }
  }
  if (!problem)
    return 0;
  int status = kv_error_exit_status(problem);
  g_propagate_error(error, problem);
  return status;
}
