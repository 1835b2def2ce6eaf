#include "traces/transform.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/random.h"

static gboolean wrong(GError **error, const char *message) {
  g_set_error_literal(error, KV_ERROR, KV_ERROR_USAGE, message);
  return FALSE;
}

/* Every transformation's state begins with its source. */
typedef struct {
  KvTraceReader *source;
} Over;

static KvTraceTiming timing_of_source(gpointer state) {
  return kv_trace_reader_timing(((Over *)state)->source);
}

static guint32 block_tokens_of_source(gpointer state) {
  return kv_trace_reader_block_tokens(((Over *)state)->source);
}

static void destroy_over(gpointer state) {
  kv_trace_reader_close(((Over *)state)->source);
  g_free(state);
}

/* slice */

typedef struct {
  Over over;
  KvTraceSlice slice;
  guint64 n_in_window, n_kept; /* requests, or sessions */
  gboolean begun, keeps;       /* whether the present session is kept */
  gint64 session;
} Slice;

/* Whether to keep the request, or session, that starts then; units are numbered within the window.
 */
static gboolean keeps(Slice *s, double start_seconds) {
  if (start_seconds < s->slice.from_seconds || start_seconds >= s->slice.to_seconds)
    return FALSE;
  guint64 number = s->n_in_window++;
  if (number < s->slice.skip || (number - s->slice.skip) % s->slice.every != 0)
    return FALSE;
  s->n_kept++;
  return TRUE;
}

static gboolean next_of_slice(gpointer state, KvTraceRequest *request, GError **error) {
  Slice *s = state;
  KvTraceTiming timing = timing_of_source(s);
  for (;;) {
    if (timing != KV_TRACE_SESSIONS && s->n_kept >= s->slice.count)
      return FALSE;
    if (!kv_trace_reader_next(s->over.source, request, error))
      return FALSE;
    if (timing == KV_TRACE_SESSIONS) {
      if (!s->begun || request->session != s->session) {
        if (s->n_kept >= s->slice.count)
          return FALSE;
        s->keeps = keeps(s, request->session_start_seconds);
      }
      s->begun = TRUE;
      s->session = request->session;
      request->session_start_seconds -= s->keeps ? s->slice.from_seconds : 0;
    } else {
      if (timing == KV_TRACE_TIMED && request->arrival_seconds >= s->slice.to_seconds)
        return FALSE;
      s->keeps = keeps(s, request->arrival_seconds);
      request->arrival_seconds -= s->keeps ? s->slice.from_seconds : 0;
    }
    if (s->keeps)
      return TRUE;
  }
}

static const KvTraceFormat slice_format = {.id = "slice",
                                           .description = "a part of a trace",
                                           .next = next_of_slice,
                                           .destroy = destroy_over,
                                           .timing = timing_of_source,
                                           .block_tokens = block_tokens_of_source};

KvTraceReader *kv_trace_slice(KvTraceReader *source, const KvTraceSlice *slice, GError **error) {
  gboolean window = slice->from_seconds > 0 || isfinite(slice->to_seconds);
  if ((slice->every == 0 && !wrong(error, "slice: every 0th request, expected 1 or more")) ||
      (!(slice->from_seconds >= 0 && slice->from_seconds < slice->to_seconds) &&
       !wrong(error, "slice: the window is empty, expected 0 <= from < to")) ||
      (window && kv_trace_reader_timing(source) == KV_TRACE_UNTIMED &&
       !wrong(error,
              "slice: a window of time of a trace without times, expected --head or --every"))) {
    kv_trace_reader_close(source);
    return NULL;
  }
  Slice *s = g_new0(Slice, 1);
  *s = (Slice){.over = {source}, .slice = *slice};
  return kv_trace_reader_new(kv_trace_reader_name(source), &slice_format, s);
}

/* scale */

typedef struct {
  Over over;
  double factor;
} Scale;

static gboolean next_of_scale(gpointer state, KvTraceRequest *request, GError **error) {
  Scale *s = state;
  if (!kv_trace_reader_next(s->over.source, request, error))
    return FALSE;
  if (timing_of_source(s) == KV_TRACE_TIMED)
    request->arrival_seconds /= s->factor;
  request->session_start_seconds /= s->factor;
  return TRUE;
}

static const KvTraceFormat scale_format = {.id = "scale",
                                           .description = "a trace at another rate",
                                           .next = next_of_scale,
                                           .destroy = destroy_over,
                                           .timing = timing_of_source,
                                           .block_tokens = block_tokens_of_source};

KvTraceReader *kv_trace_scale(KvTraceReader *source, double factor, GError **error) {
  if ((!(factor > 0 && isfinite(factor)) &&
       !wrong(error, "scale: the factor must be a positive number")) ||
      (kv_trace_reader_timing(source) == KV_TRACE_UNTIMED &&
       !wrong(error, "scale: the trace has no times, expected one that does"))) {
    kv_trace_reader_close(source);
    return NULL;
  }
  Scale *s = g_new0(Scale, 1);
  *s = (Scale){.over = {source}, .factor = factor};
  return kv_trace_reader_new(kv_trace_reader_name(source), &scale_format, s);
}

/* smear */

typedef struct {
  Over over;
  double tick_seconds;
  KvRandom random;
  GArray *held;     /* KvTraceRequest with blocks and tokens of their own: one tick's, and the next
                       one's first */
  GArray *arrivals; /* double, of that tick, ascending */
  guint at;
  gboolean ended;
} Smear;

static void hold(GArray *held, const KvTraceRequest *request) {
  KvTraceRequest own = *request;
  own.hashes = g_memdup2(request->hashes, request->n_hashes * sizeof *request->hashes);
  own.tokens = g_memdup2(request->tokens, request->n_tokens * sizeof *request->tokens);
  own.calls = g_memdup2(request->calls, request->n_calls * sizeof *request->calls);
  g_array_append_val(held, own);
}

static void release(GArray *held, guint n) {
  for (guint i = 0; i < n; i++) {
    KvTraceRequest *request = &g_array_index(held, KvTraceRequest, i);
    g_free((gpointer)request->hashes);
    g_free((gpointer)request->tokens);
    g_free((gpointer)request->calls);
  }
  if (n > 0)
    g_array_remove_range(held, 0, n);
}

static int by_double(gconstpointer a, gconstpointer b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* Take the requests of the next recorded time, and the first behind them; draw their arrivals. */
static gboolean next_tick(Smear *s, GError **error) {
  KvTraceRequest request;
  GError *problem = NULL;
  release(s->held, s->arrivals->len);
  g_array_set_size(s->arrivals, 0);
  s->at = 0;
  while (!s->ended) {
    if (!kv_trace_reader_next(s->over.source, &request, &problem)) {
      s->ended = TRUE;
      break;
    }
    hold(s->held, &request);
    if (request.arrival_seconds > g_array_index(s->held, KvTraceRequest, 0).arrival_seconds)
      break;
  }
  if (problem) {
    g_propagate_error(error, problem);
    return FALSE;
  }
  if (s->held->len == 0)
    return FALSE;
  double from = g_array_index(s->held, KvTraceRequest, 0).arrival_seconds;
  double to = g_array_index(s->held, KvTraceRequest, s->held->len - 1).arrival_seconds;
  guint n = to > from ? s->held->len - 1 : s->held->len;
  double width = to > from ? MIN(s->tick_seconds, to - from) : s->tick_seconds;
  for (guint i = 0; i < n; i++) {
    double arrival = from + width * kv_random_unit(&s->random);
    g_array_append_val(s->arrivals, arrival);
  }
  g_array_sort(s->arrivals, by_double);
  return TRUE;
}

static gboolean next_of_smear(gpointer state, KvTraceRequest *request, GError **error) {
  Smear *s = state;
  if (s->at == s->arrivals->len && !next_tick(s, error))
    return FALSE;
  *request = g_array_index(s->held, KvTraceRequest, s->at);
  request->arrival_seconds = g_array_index(s->arrivals, double, s->at);
  s->at++;
  return TRUE;
}

static void destroy_smear(gpointer state) {
  Smear *s = state;
  release(s->held, s->held->len);
  g_array_unref(s->held);
  g_array_unref(s->arrivals);
  destroy_over(s);
}

static const KvTraceFormat smear_format = {.id = "smear",
                                           .description = "a trace without its coarse ticks",
                                           .next = next_of_smear,
                                           .destroy = destroy_smear,
                                           .timing = timing_of_source,
                                           .block_tokens = block_tokens_of_source};

KvTraceReader *kv_trace_smear(KvTraceReader *source, double tick_seconds, guint64 seed,
                              GError **error) {
  if ((!(tick_seconds > 0 && isfinite(tick_seconds)) &&
       !wrong(error, "smear: the tick must be a positive number of seconds")) ||
      (kv_trace_reader_timing(source) != KV_TRACE_TIMED &&
       !wrong(error, "smear: the trace's requests have no arrival times, expected some"))) {
    kv_trace_reader_close(source);
    return NULL;
  }
  Smear *s = g_new0(Smear, 1);
  *s = (Smear){.over = {source},
               .tick_seconds = tick_seconds,
               .held = g_array_new(FALSE, FALSE, sizeof(KvTraceRequest)),
               .arrivals = g_array_new(FALSE, FALSE, sizeof(double))};
  kv_random_seed(&s->random, seed, 0);
  return kv_trace_reader_new(kv_trace_reader_name(source), &smear_format, s);
}

/* repeat */

typedef struct {
  Over over;
  char *path, *format;
  guint64 times, copy, n_in_copy, n_all;
  gboolean fresh;
  double shift_seconds, first_seconds, last_seconds;
  GArray *hashes;
} Repeat;

static gboolean next_copy(Repeat *r, GError **error) {
  double span = r->last_seconds - r->first_seconds;
  double gap = r->n_in_copy > 1 ? span / (double)(r->n_in_copy - 1) : 1.0;
  r->shift_seconds += span + gap;
  r->copy++;
  r->n_in_copy = 0;
  KvTraceReader *again = kv_trace_reader_open(r->path, r->format, error);
  if (!again)
    return FALSE;
  kv_trace_reader_close(r->over.source);
  r->over.source = again;
  return TRUE;
}

/* Blocks of the present copy. */
static void rename_blocks(Repeat *r, KvTraceRequest *request) {
  guint64 salt = kv_random_mix(r->copy);
  g_array_set_size(r->hashes, request->n_hashes);
  for (guint32 i = 0; i < request->n_hashes; i++)
    g_array_index(r->hashes, guint64, i) = kv_random_mix(request->hashes[i] ^ salt);
  request->hashes = request->n_hashes ? (const guint64 *)r->hashes->data : NULL;
}

static gboolean next_of_repeat(gpointer state, KvTraceRequest *request, GError **error) {
  Repeat *r = state;
  GError *problem = NULL;
  while (!kv_trace_reader_next(r->over.source, request, &problem)) {
    if (problem) {
      g_propagate_error(error, problem);
      return FALSE;
    }
    if (r->n_in_copy == 0 || r->copy + 1 == r->times || !next_copy(r, error))
      return FALSE;
  }
  double seconds = timing_of_source(r) == KV_TRACE_SESSIONS ? request->session_start_seconds
                                                            : request->arrival_seconds;
  if (r->n_in_copy++ == 0)
    r->first_seconds = r->last_seconds = seconds;
  r->last_seconds = MAX(r->last_seconds, seconds);
  if (timing_of_source(r) == KV_TRACE_TIMED)
    request->arrival_seconds += r->shift_seconds;
  else if (timing_of_source(r) == KV_TRACE_SESSIONS)
    request->session_start_seconds += r->shift_seconds;
  if (r->copy > 0 && request->session >= 0)
    request->session =
        (gint64)(kv_random_mix((guint64)request->session ^ kv_random_mix(r->copy)) >> 1);
  if (r->copy > 0 && r->fresh)
    rename_blocks(r, request);
  if (r->copy > 0)
    request->id = (gint64)r->n_all;
  r->n_all++;
  return TRUE;
}

static void destroy_repeat(gpointer state) {
  Repeat *r = state;
  g_array_unref(r->hashes);
  g_free(r->path);
  g_free(r->format);
  destroy_over(r);
}

static const KvTraceFormat repeat_format = {.id = "repeat",
                                            .description = "a trace several times over",
                                            .next = next_of_repeat,
                                            .destroy = destroy_repeat,
                                            .timing = timing_of_source,
                                            .block_tokens = block_tokens_of_source};

KvTraceReader *kv_trace_repeat(const char *path, const char *format, guint64 times, gboolean fresh,
                               GError **error) {
  if (times == 0 || strcmp(path, "-") == 0) {
    wrong(error, times ? "repeat: standard input cannot be read twice, expected a file"
                       : "repeat: 0 times, expected 1 or more");
    return NULL;
  }
  KvTraceReader *source = kv_trace_reader_open(path, format, error);
  if (!source)
    return NULL;
  Repeat *r = g_new0(Repeat, 1);
  *r = (Repeat){.over = {source},
                .path = g_strdup(path),
                .format = g_strdup(format),
                .times = times,
                .fresh = fresh,
                .hashes = g_array_new(FALSE, FALSE, sizeof(guint64))};
  return kv_trace_reader_new(path, &repeat_format, r);
}
