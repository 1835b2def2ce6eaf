#include "traces/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/base/random.h"
#include "traces/blocks.h"

enum { MOST_PAIRS = 1 << 20, LARGEST_TOKENS = G_MAXINT32 / 2 };

typedef struct {
  guint32 input_tokens, output_tokens;
} Pair;

typedef struct {
  KvTraceGenerator spec;
  KvRandom arrivals, lengths, sessions, sharing, calling;
  GArray *pairs;      /* Pair, or NULL */
  double *popularity; /* cumulative share of the shared prompts, or NULL */
  KvBlockHistory history;
  guint64 n_made, n_sessions;
  double start_seconds; /* of the present session */
  guint64 turn, n_turns;
  guint64 prompt_tokens, answer_tokens; /* of the last turn */
  GArray *calls;                        /* KvTraceCall, of the present request */
  guint64 shared;                       /* which prompt the session shares */
} State;

void kv_trace_generator_default(KvTraceGenerator *generator) {
  *generator = (KvTraceGenerator){
      .n_requests = 1000,
      .block_tokens = 16,
      .arrivals = {.kind = KV_ARRIVALS_POISSON, .rate_rps = 1, .cv = 1, .shape = 1},
      .input_tokens = {.kind = KV_LENGTHS_FIXED, .a = 512},
      .output_tokens = {.kind = KV_LENGTHS_FIXED, .a = 128},
      .zipf = 1,
      .turns_mean = 1,
      .turn_input_tokens = {.kind = KV_LENGTHS_FIXED, .a = 64},
      .think_mean_seconds = 60,
      .call_mean_seconds = 2,
      .call_tokens = {.kind = KV_LENGTHS_FIXED, .a = 64},
  };
}

/* Distributions */

static double draw_gap(State *g) {
  const KvArrivals *a = &g->spec.arrivals;
  double mean = 1 / a->rate_rps;
  switch (a->kind) {
  case KV_ARRIVALS_POISSON:
    return mean * kv_random_exponential(&g->arrivals);
  case KV_ARRIVALS_GAMMA: /* cv^2 = 1 / shape */
    return a->cv > 0 ? kv_random_gamma(&g->arrivals, 1 / (a->cv * a->cv), mean * a->cv * a->cv)
                     : mean;
  case KV_ARRIVALS_WEIBULL: /* mean = scale * Gamma(1 + 1 / shape) */
    return kv_random_weibull(&g->arrivals, a->shape, mean / tgamma(1 + 1 / a->shape));
  case KV_ARRIVALS_CONSTANT:
    return mean;
  case KV_ARRIVALS_AT_ONCE:
    break;
  }
  return 0;
}

/* mean = exp(mu + sigma^2/2) and median = exp(mu). */
static double draw_lognormal(KvRandom *random, double mean, double median) {
  return kv_random_lognormal(random, log(median), sqrt(2 * log(mean / median)));
}

static double draw_quantiles(KvRandom *random, const KvLengths *l) {
  double u = kv_random_unit(random);
  guint i = 1;
  while (i + 1 < l->n_quantiles && l->quantiles[i].share < u)
    i++;
  const KvQuantilePoint *low = &l->quantiles[i - 1], *high = &l->quantiles[i];
  double part = (u - low->share) / (high->share - low->share);
  return exp(log(low->value) + part * (log(high->value) - log(low->value)));
}

static guint64 draw_length(KvRandom *random, const KvLengths *l) {
  double value = l->a;
  if (l->kind == KV_LENGTHS_UNIFORM)
    value = (double)kv_random_integer(random, (gint64)l->a, (gint64)l->b);
  else if (l->kind == KV_LENGTHS_LOGNORMAL)
    value = draw_lognormal(random, l->a, l->b);
  else if (l->kind == KV_LENGTHS_QUANTILES)
    value = draw_quantiles(random, l);
  double largest = l->largest_tokens ? l->largest_tokens : LARGEST_TOKENS;
  return (guint64)MAX(1.0, MIN(round(value), largest));
}

static void draw_lengths(State *g, const KvLengths *input, guint64 *input_tokens,
                         guint64 *output_tokens) {
  if (g->pairs) {
    guint64 i = (guint64)kv_random_integer(&g->lengths, 0, (gint64)g->pairs->len - 1);
    *input_tokens = g_array_index(g->pairs, Pair, i).input_tokens;
    *output_tokens = g_array_index(g->pairs, Pair, i).output_tokens;
    if (input == &g->spec.input_tokens)
      return;
  } else {
    *output_tokens = draw_length(&g->lengths, &g->spec.output_tokens);
  }
  *input_tokens = draw_length(&g->lengths, input);
}

static guint64 draw_shared(State *g) {
  if (!g->popularity)
    return 0;
  double u = kv_random_unit(&g->sharing);
  guint64 low = 0, high = g->spec.shared_prompts - 1;
  while (low < high) {
    guint64 middle = (low + high) / 2;
    if (g->popularity[middle] < u)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static double draw_think(State *g) {
  const KvTraceGenerator *s = &g->spec;
  if (s->think_p50_seconds > 0)
    return draw_lognormal(&g->sessions, s->think_mean_seconds, s->think_p50_seconds);
  return s->think_mean_seconds * kv_random_exponential(&g->sessions);
}

/* Turns of a session: 1 + geometric, of the mean asked for. */
static guint64 draw_turns(State *g) {
  double mean = g->spec.turns_mean;
  if (mean <= 1)
    return 1;
  return 1 + (guint64)floor(kv_random_exponential(&g->sessions) / -log1p(-1 / mean));
}

static int by_position(gconstpointer a, gconstpointer b) {
  guint32 x = ((const KvTraceCall *)a)->position, y = ((const KvTraceCall *)b)->position;
  return x < y ? -1 : x > y;
}

/* Calls at places of the answer drawn evenly; two at one place are one. */
static void draw_calls(State *g, KvTraceRequest *request) {
  const KvTraceGenerator *s = &g->spec;
  g_array_set_size(g->calls, 0);
  if (s->calls_mean <= 0 || request->output_tokens < 2)
    return;
  /* Geometric from 0 on, of the mean asked for. */
  double n = floor(kv_random_exponential(&g->calling) / log1p(1 / s->calls_mean));
  for (guint i = 0; i < (guint)MIN(n, request->output_tokens - 1.0); i++) {
    KvTraceCall call = {
        .position = (guint32)kv_random_integer(&g->calling, 1, (gint64)request->output_tokens - 1)};
    call.duration_seconds =
        s->call_p50_seconds > 0
            ? draw_lognormal(&g->calling, s->call_mean_seconds, s->call_p50_seconds)
            : s->call_mean_seconds * kv_random_exponential(&g->calling);
    call.returned_tokens = (guint32)draw_length(&g->calling, &s->call_tokens);
    g_array_append_val(g->calls, call);
  }
  g_array_sort(g->calls, by_position);
  for (guint i = 1; i < g->calls->len;)
    if (g_array_index(g->calls, KvTraceCall, i).position ==
        g_array_index(g->calls, KvTraceCall, i - 1).position)
      g_array_remove_index(g->calls, i);
    else
      i++;
  request->n_calls = g->calls->len;
  request->calls = (const KvTraceCall *)(const void *)g->calls->data;
}

/* The trace */

/* The blocks of the prompt, if any are asked for. */
static void name_blocks(State *g, guint64 kept_tokens) {
  if (g->spec.block_tokens > 0)
    kv_block_history_prompt(&g->history, kept_tokens, g->prompt_tokens);
}

static guint64 shared_tokens(const State *g) {
  return (guint64)g->spec.shared_tokens + g->spec.header_tokens;
}

static void begin_session(State *g) {
  if (g->n_sessions++ > 0)
    g->start_seconds += draw_gap(g);
  g->turn = 0;
  g->n_turns = draw_turns(g);
  g->shared = draw_shared(g);
  guint64 drawn;
  draw_lengths(g, &g->spec.input_tokens, &drawn, &g->answer_tokens);
  g->prompt_tokens =
      g->spec.input_is_total ? MAX(drawn, shared_tokens(g) + 1) : drawn + shared_tokens(g);
  kv_block_history_restart(&g->history, kv_random_mix(g->spec.seed) ^ g->n_sessions);
  name_blocks(g, 0);
  kv_block_history_share(&g->history, kv_random_mix(g->spec.seed ^ (g->shared + 1) << 32),
                         shared_tokens(g));
}

static void go_on(State *g) {
  guint64 added, kept = g->prompt_tokens + g->answer_tokens;
  g->turn++;
  draw_lengths(g, &g->spec.turn_input_tokens, &added, &g->answer_tokens);
  guint64 prompt = kept + added, limit = g->spec.context_limit_tokens;
  if (limit > 0 && prompt > limit) {
    kept = shared_tokens(g);
    prompt = MIN(MAX(g->spec.compact_tokens, kept) + added, limit);
  }
  g->prompt_tokens = MIN(prompt, LARGEST_TOKENS);
  name_blocks(g, kept);
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  State *g = state;
  gboolean sessions = g->spec.turns_mean > 1;
  if (g->n_made == g->spec.n_requests)
    return FALSE;
  if (g->n_made == 0 || g->turn + 1 == g->n_turns)
    begin_session(g);
  else
    go_on(g);
  g->n_made++;
  request->input_tokens = (guint32)g->prompt_tokens;
  request->output_tokens = (guint32)g->answer_tokens;
  if (sessions) {
    request->session = (gint64)g->n_sessions - 1;
    request->turn = (guint32)g->turn;
    request->session_start_seconds = g->start_seconds;
    request->think_seconds = g->turn > 0 ? draw_think(g) : 0;
  } else {
    request->arrival_seconds = g->start_seconds;
  }
  if (g->spec.block_tokens > 0) {
    request->n_hashes = g->history.names->len;
    request->hashes = (const guint64 *)g->history.names->data;
  }
  draw_calls(g, request);
  return TRUE;
}

static void destroy(gpointer state) {
  State *g = state;
  g_clear_pointer(&g->pairs, g_array_unref);
  g_array_unref(g->calls);
  g_free(g->popularity);
  kv_block_history_clear(&g->history);
  g_free(g);
}

static KvTraceTiming timing(gpointer state) {
  return ((const State *)state)->spec.turns_mean > 1 ? KV_TRACE_SESSIONS : KV_TRACE_TIMED;
}

static guint32 block_tokens(gpointer state) {
  return ((const State *)state)->spec.block_tokens;
}

static const KvTraceFormat generated = {.id = "generated",
                                        .description = "a made trace",
                                        .next = next,
                                        .destroy = destroy,
                                        .timing = timing,
                                        .block_tokens = block_tokens};

/* Length pairs of a trace; of a longer one than MOST_PAIRS, its beginning. */
static GArray *read_pairs(const char *path, GError **error) {
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(path, NULL, error);
  if (!reader)
    return NULL;
  GArray *pairs = g_array_new(FALSE, FALSE, sizeof(Pair));
  KvTraceRequest request;
  GError *problem = NULL;
  while (pairs->len < MOST_PAIRS && kv_trace_reader_next(reader, &request, &problem)) {
    Pair pair = {request.input_tokens, request.output_tokens};
    g_array_append_val(pairs, pair);
  }
  if (!problem && pairs->len == 0)
    kv_error_at(&problem, path, 0, "has no request, expected lengths to draw from");
  if (!problem)
    return pairs;
  g_propagate_error(error, problem);
  g_array_unref(pairs);
  return NULL;
}

static const char *wrong_lengths(const KvLengths *l) {
  double most = LARGEST_TOKENS;
  switch (l->kind) {
  case KV_LENGTHS_FIXED:
    return l->a >= 1 && l->a <= most ? NULL : "a fixed length from 1 to 2^30";
  case KV_LENGTHS_UNIFORM:
    return l->a >= 1 && l->a <= l->b && l->b <= most ? NULL : "lengths 1 <= LOW <= HIGH <= 2^30";
  case KV_LENGTHS_LOGNORMAL:
    return l->b > 0 && l->a >= l->b && l->a <= most ? NULL : "a mean not below the median (p50)";
  case KV_LENGTHS_QUANTILES:
    break;
  }
  return NULL;
}

/* What is wrong with the specification, as what was expected; NULL if it is sound. */
static const char *wrong(const KvTraceGenerator *s) {
  const KvLengths *lengths[] = {&s->input_tokens, &s->output_tokens, &s->turn_input_tokens,
                                s->calls_mean > 0 ? &s->call_tokens : &s->input_tokens};
  const KvArrivals *a = &s->arrivals;
  for (guint i = 0; i < G_N_ELEMENTS(lengths); i++)
    if (wrong_lengths(lengths[i]))
      return wrong_lengths(lengths[i]);
  if (!(a->rate_rps > 0 && isfinite(a->rate_rps)))
    return "a positive rate";
  if (!(a->cv >= 0 && a->cv <= 1000))
    return "a coefficient of variation from 0 to 1000";
  if (!(a->shape >= 0.05 && a->shape <= 1000))
    return "a Weibull shape from 0.05 to 1000";
  if (!(s->turns_mean >= 1 && s->turns_mean <= 1e6))
    return "1 turn a session or more";
  if (!(s->zipf >= 0 && s->zipf <= 100))
    return "a Zipf exponent from 0 to 100";
  if (!(s->think_mean_seconds >= 0 && isfinite(s->think_mean_seconds)) ||
      !(s->think_p50_seconds >= 0 && s->think_p50_seconds <= s->think_mean_seconds))
    return "a mean think time not below its median (p50)";
  if (!(s->calls_mean >= 0 && s->calls_mean <= 1e4))
    return "0 to 10,000 API calls in an answer";
  if (!(s->call_mean_seconds >= 0 && isfinite(s->call_mean_seconds)) ||
      !(s->call_p50_seconds >= 0 && s->call_p50_seconds <= s->call_mean_seconds))
    return "a mean time of a call not below its median (p50)";
  if (s->shared_prompts > 1 << 24)
    return "at most 2^24 shared prompts";
  if ((guint64)s->shared_tokens + s->header_tokens > LARGEST_TOKENS / 2)
    return "a shorter shared prompt";
  if (s->context_limit_tokens > 0 &&
      (guint64)MAX(s->compact_tokens, s->shared_tokens + s->header_tokens) >=
          s->context_limit_tokens)
    return "a context limit above the shared prompt and what a context is cut to";
  return NULL;
}

KvTraceReader *kv_trace_generate(const KvTraceGenerator *generator, GError **error) {
  const char *expected = wrong(generator);
  if (expected) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "generate: expected %s", expected);
    return NULL;
  }
  GArray *pairs = NULL;
  if (generator->lengths_path && !(pairs = read_pairs(generator->lengths_path, error)))
    return NULL;
  State *g = g_new0(State, 1);
  g->spec = *generator;
  g->spec.lengths_path = NULL;
  g->pairs = pairs;
  kv_random_seed(&g->arrivals, generator->seed, 1);
  kv_random_seed(&g->lengths, generator->seed, 2);
  kv_random_seed(&g->sessions, generator->seed, 3);
  kv_random_seed(&g->sharing, generator->seed, 4);
  kv_random_seed(&g->calling, generator->seed, 5);
  g->calls = g_array_new(FALSE, FALSE, sizeof(KvTraceCall));
  kv_block_history_begin(&g->history, MAX(generator->block_tokens, 1));
  if (generator->shared_prompts > 1) {
    g->popularity = g_new(double, generator->shared_prompts);
    double sum = 0;
    for (guint32 i = 0; i < generator->shared_prompts; i++)
      g->popularity[i] = sum += pow(i + 1, -generator->zipf);
    for (guint32 i = 0; i < generator->shared_prompts; i++)
      g->popularity[i] /= sum;
  }
  return kv_trace_reader_new("generated", &generated, g);
}

gboolean kv_lengths_parse(const char *text, const char *what, KvLengths *lengths, GError **error) {
  static const struct {
    const char *name;
    KvLengthsKind kind;
    guint n_numbers;
  } kinds[] = {{"fixed", KV_LENGTHS_FIXED, 1},
               {"uniform", KV_LENGTHS_UNIFORM, 2},
               {"lognormal", KV_LENGTHS_LOGNORMAL, 2}};
  g_auto(GStrv) parts = g_strsplit(text, ":", -1);
  guint n = g_strv_length(parts);
  for (guint i = 0; n > 0 && i < G_N_ELEMENTS(kinds); i++) {
    double numbers[2] = {0};
    gboolean read = strcmp(parts[0], kinds[i].name) == 0 && n == kinds[i].n_numbers + 1;
    for (guint k = 0; read && k < kinds[i].n_numbers; k++) {
      char *end;
      numbers[k] = g_ascii_strtod(parts[k + 1], &end);
      read = end != parts[k + 1] && *end == '\0';
    }
    if (!read)
      continue;
    *lengths = (KvLengths){.kind = kinds[i].kind, .a = numbers[0], .b = numbers[1]};
    const char *expected = wrong_lengths(lengths);
    if (!expected)
      return TRUE;
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: '%s' found, expected %s", what, text,
                expected);
    return FALSE;
  }
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%s: '%s' found, expected fixed:N, uniform:LOW:HIGH or lognormal:MEAN:P50", what,
              text);
  return FALSE;
}

const KvTracePreset *kv_trace_preset(const char *id, GError **error) {
  g_autoptr(GPtrArray) ids = g_ptr_array_new();
  for (const KvTracePreset *p = kv_trace_presets; p->id; p++) {
    if (strcmp(p->id, id) == 0)
      return p;
    g_ptr_array_add(ids, (gpointer)p->id);
  }
  g_ptr_array_add(ids, NULL);
  g_autofree char *message = kv_names_unknown("trace preset", id, (const char *const *)ids->pdata);
  g_set_error_literal(error, KV_ERROR, KV_ERROR_USAGE, message);
  return NULL;
}
