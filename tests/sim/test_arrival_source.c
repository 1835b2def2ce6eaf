/* sim/engine/arrival_source.h: tiny traces, served by an engine that takes a known time for each
 * request. */
#include "sim/engine/arrival_source.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/random.h"

enum { MOST = 400 };

/* A request as it was served: by input_tokens, which the traces here count up from 1. */
typedef struct {
  guint times; /* given out */
  double arrival, finish;
  gint64 session;
  double think;
} Served;

typedef struct {
  Served served[MOST + 1];
  guint n, most_in_flight, order[MOST];
} Log;

typedef double (*ServiceTime)(guint input_tokens);

static KvTraceReader *reader_of(const char *text) {
  g_autoptr(GError) error = NULL;
  KvTraceReader *reader = kv_trace_reader_open_memory("tiny", text, strlen(text), "native", &error);
  g_assert_no_error(error);
  return reader;
}

/* Serve all; a request that finishes at the time at which another arrives has finished before. */
static void serve(const char *text, KvArrivalMode mode, guint concurrency, double rate_scale,
                  guint64 limit, ServiceTime service, Log *log) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvTraceReader) reader = reader_of(text);
  KvArrivalSource *source =
      kv_arrival_source_new(reader, mode, concurrency, rate_scale, limit, &error);
  g_assert_no_error(error);
  KvSequence *active[MOST];
  double ends[MOST], now = 0.0;
  guint n = 0;
  *log = (Log){0};
  for (;;) {
    double when;
    g_assert_true(kv_arrival_source_next(source, &when, &error));
    guint first = 0;
    for (guint i = 1; i < n; i++)
      if (ends[i] < ends[first])
        first = i;
    if (n > 0 && ends[first] <= when) {
      now = ends[first];
      log->served[active[first]->input_tokens].finish = now;
      kv_arrival_source_finished(source, active[first], now);
      kv_sequence_free(active[first]);
      n--;
      active[first] = active[n];
      ends[first] = ends[n];
    } else if (when < G_MAXDOUBLE) {
      g_assert_cmpfloat(when, >=, now); /* never in the past */
      KvSequence *s = kv_arrival_source_take(source);
      g_assert_cmpfloat(s->arrival_seconds, ==, when);
      now = when;
      Served *served = &log->served[s->input_tokens];
      served->times++;
      served->arrival = when;
      served->session = s->session;
      served->think = s->think_seconds;
      log->order[log->n++] = s->input_tokens;
      active[n] = s;
      ends[n++] = now + service(s->input_tokens);
      log->most_in_flight = MAX(log->most_in_flight, n);
    } else {
      break;
    }
  }
  g_assert_cmpuint(n, ==, 0);
  kv_arrival_source_free(source);
}

/* The requests 1 to n were given out, each once. */
static void assert_all(const Log *log, guint n) {
  g_assert_cmpuint(log->n, ==, n);
  for (guint i = 1; i <= n; i++)
    g_assert_cmpuint(log->served[i].times, ==, 1);
}

static double ten_seconds(guint input_tokens) {
  return 10.0;
}

static double no_time(guint input_tokens) { /* as if all were rejected */
  return 0.0;
}

static double by_number(guint input_tokens) {
  return (double)(input_tokens * 7 % 5) + 0.25;
}

static const char timed[] = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n"
                            "{\"timestamp\":1000,\"input_length\":2,\"output_length\":1}\n"
                            "{\"timestamp\":1000,\"input_length\":3,\"output_length\":1}\n"
                            "{\"timestamp\":4500,\"input_length\":4,\"output_length\":1}\n";

static void trace_keeps_its_times(void) {
  const double times[] = {0.0, 1.0, 1.0, 4.5}, scales[] = {1.0, 2.0, 0.5};
  for (guint k = 0; k < G_N_ELEMENTS(scales); k++) {
    Log log;
    serve(timed, KV_ARRIVE_AUTO, 1, scales[k], 0, ten_seconds, &log);
    assert_all(&log, 4);
    for (guint i = 0; i < 4; i++) {
      g_assert_cmpuint(log.order[i], ==, i + 1);
      g_assert_cmpfloat(log.served[i + 1].arrival, ==, times[i] / scales[k]);
    }
  }
}

static void limit_stops(void) {
  const KvArrivalMode modes[] = {KV_ARRIVE_TRACE, KV_ARRIVE_CLOSED, KV_ARRIVE_SESSIONS};
  for (guint m = 0; m < G_N_ELEMENTS(modes); m++) {
    for (guint64 limit = 1; limit < 8; limit++) {
      Log log;
      serve(timed, modes[m], 2, 1.0, limit, ten_seconds, &log);
      assert_all(&log, (guint)MIN(limit, 4));
    }
  }
}

static void closed_keeps_places_filled(void) {
  Log log;
  serve(timed, KV_ARRIVE_CLOSED, 2, 1.0, 0, ten_seconds, &log);
  assert_all(&log, 4);
  g_assert_cmpuint(log.most_in_flight, ==, 2);
  for (guint i = 1; i <= 4; i++)
    g_assert_cmpfloat(log.served[i].arrival, ==, i <= 2 ? 0.0 : 10.0);
  serve(timed, KV_ARRIVE_CLOSED, 1, 1.0, 0, by_number, &log);
  for (guint i = 2; i <= 4; i++) /* one after the other, in the trace's order */
    g_assert_cmpfloat(log.served[i].arrival, ==, log.served[i - 1].finish);
  serve(timed, KV_ARRIVE_CLOSED, 0, 1.0, 0, ten_seconds, &log); /* at least one */
  assert_all(&log, 4);
  serve(timed, KV_ARRIVE_CLOSED, 2, 1.0, 0, no_time, &log); /* rejected ones free their place */
  assert_all(&log, 4);
}

/* The trace's own times, and places: requests 3 and 4 wait until one is free. */
static void limited_holds_back(void) {
  Log log;
  serve(timed, KV_ARRIVE_LIMITED, 2, 1.0, 0, ten_seconds, &log);
  assert_all(&log, 4);
  g_assert_cmpuint(log.most_in_flight, ==, 2);
  const double times[] = {0.0, 1.0, 10.0, 11.0};
  for (guint i = 0; i < 4; i++)
    g_assert_cmpfloat(log.served[i + 1].arrival, ==, times[i]);
  serve(timed, KV_ARRIVE_LIMITED, 4, 1.0, 0, ten_seconds, &log); /* nobody waits */
  g_assert_cmpfloat(log.served[4].arrival, ==, 4.5);
  serve(timed, KV_ARRIVE_LIMITED, 1, 1.0, 0, no_time, &log);
  g_assert_cmpfloat(log.served[4].arrival, ==, 4.5); /* not before its own time */
}

static void untimed_is_closed(void) {
  g_autoptr(GError) error = NULL;
  static const char text[] =
      "{\"input_length\":1,\"output_length\":1}\n{\"input_length\":2,\"output_length\":1}\n";
  g_autoptr(KvTraceReader) reader = reader_of(text);
  KvArrivalSource *source = kv_arrival_source_new(reader, KV_ARRIVE_AUTO, 1, 1.0, 0, &error);
  g_assert_cmpint(kv_arrival_source_mode(source), ==, KV_ARRIVE_CLOSED);
  kv_arrival_source_free(source);
  g_assert_null(kv_arrival_source_new(reader, KV_ARRIVE_TRACE, 1, 1.0, 0, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_assert_cmpstr(error->message, ==, "tiny: has no arrival times, expected arrivals 'closed'");
  kv_arrival_source_free(NULL);
}

static void empty_trace_gives_nothing(void) {
  static const char text[] = "{\"kvsim_trace\":1,\"timing\":\"timed\"}\n";
  for (guint mode = KV_ARRIVE_TRACE; mode <= KV_ARRIVE_SESSIONS; mode++) {
    Log log;
    serve(text, mode, 3, 1.0, 0, ten_seconds, &log);
    g_assert_cmpuint(log.n, ==, 0);
  }
}

static void bad_line_is_told(void) {
  const KvArrivalMode modes[] = {KV_ARRIVE_TRACE, KV_ARRIVE_CLOSED, KV_ARRIVE_SESSIONS};
  static const char text[] =
      "{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n{\"timestamp\":0}\n";
  for (guint m = 0; m < G_N_ELEMENTS(modes); m++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(KvTraceReader) reader = reader_of(text);
    KvArrivalSource *source = kv_arrival_source_new(reader, modes[m], 4, 1.0, 0, &error);
    double when;
    g_assert_true(kv_arrival_source_next(source, &when, &error));
    kv_sequence_free(kv_arrival_source_take(source));
    g_assert_false(kv_arrival_source_next(source, &when, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_assert_true(g_str_has_prefix(error->message, "tiny:2: "));
    kv_arrival_source_free(source);
  }
}

/* Sessions a: 1 2 3 (thinking 2 s and 0 s), b: 4, c: 5 6 (1 s). */
static const char sessions[] =
    "{\"kvsim_trace\":1,\"timing\":\"sessions\"}\n"
    "{\"session_id\":10,\"turn\":0,\"input_length\":1,\"output_length\":1}\n"
    "{\"session_id\":10,\"turn\":1,\"think_ms\":2000,\"input_length\":2,\"output_length\":1}\n"
    "{\"session_id\":10,\"turn\":2,\"think_ms\":0,\"input_length\":3,\"output_length\":1}\n"
    "{\"session_id\":11,\"turn\":0,\"input_length\":4,\"output_length\":1}\n"
    "{\"session_id\":12,\"turn\":0,\"input_length\":5,\"output_length\":1}\n"
    "{\"session_id\":12,\"turn\":1,\"think_ms\":1000,\"input_length\":6,\"output_length\":1}\n";

static void sessions_by_hand(void) {
  Log log;
  serve(sessions, KV_ARRIVE_AUTO, 2, 1.0, 0, ten_seconds, &log);
  assert_all(&log, 6);
  /* a and b start at once; c when b is done. */
  const double arrivals[] = {0.0, 12.0, 22.0, 0.0, 10.0, 21.0};
  for (guint i = 0; i < 6; i++)
    g_assert_cmpfloat(log.served[i + 1].arrival, ==, arrivals[i]);
  serve(sessions, KV_ARRIVE_AUTO, 2, 1.0, 0, no_time,
        &log); /* rejected turns do not stop their session */
  assert_all(&log, 6);
  serve(sessions, KV_ARRIVE_CLOSED, 1, 1.0, 0, ten_seconds, &log); /* as a list of requests */
  assert_all(&log, 6);
  for (guint i = 1; i <= 6; i++)
    g_assert_cmpfloat(log.served[i].arrival, ==, 10.0 * (i - 1));
}

/* The same session's name stands at two places of the file: no turn may be lost. */
static void torn_sessions_lose_nothing(void) {
  GString *text = g_string_new("{\"kvsim_trace\":1,\"timing\":\"sessions\"}\n");
  const guint ids[] = {1, 1, 2, 2, 1, 1, 2, 3, 1, 3, 3, 1};
  for (guint i = 0; i < G_N_ELEMENTS(ids); i++)
    g_string_append_printf(text,
                           "{\"session_id\":%u,\"turn\":%u,\"think_ms\":500,\"input_length\":%u,"
                           "\"output_length\":1}\n",
                           ids[i], i > 0, i + 1);
  for (guint concurrency = 1; concurrency < 6; concurrency++) {
    Log log;
    serve(text->str, KV_ARRIVE_AUTO, concurrency, 1.0, 0, by_number, &log);
    assert_all(&log, G_N_ELEMENTS(ids));
    g_assert_cmpuint(log.most_in_flight, <=, concurrency);
  }
  g_string_free(text, TRUE);
}

/* Timed traces of conversations: a turn comes at its own time, unless its history is not there yet.
 */
static void timed_turns_wait_for_answers(void) {
  static const char text[] =
      "{\"timestamp\":0,\"session_id\":1,\"turn\":0,\"input_length\":1,\"output_length\":1}\n"
      "{\"timestamp\":3000,\"session_id\":1,\"turn\":1,\"think_ms\":2000,\"input_length\":2,\"output_length\":1}\n"
      "{\"timestamp\":4000,\"input_length\":3,\"output_length\":1}\n"
      "{\"timestamp\":50000,\"session_id\":1,\"turn\":2,\"input_length\":4,\"output_length\":1}\n"
      "{\"timestamp\":51000,\"session_id\":2,\"turn\":0,\"input_length\":5,\"output_length\":1}\n";
  Log log;
  serve(text, KV_ARRIVE_SESSIONS, 1, 1.0, 0, ten_seconds, &log);
  assert_all(&log, 5);
  const double arrivals[] = {0.0, 12.0, 4.0, 50.0, 51.0};
  for (guint i = 0; i < 5; i++)
    g_assert_cmpfloat(log.served[i + 1].arrival, ==, arrivals[i]);
}

/* The rule, whatever stands ahead of the turn in the file when its history is complete:
 * max(recorded, answer + think). */
static void think_time_does_not_depend_on_reading(void) {
  static const char text[] =
      "{\"timestamp\":0,\"session_id\":1,\"turn\":0,\"input_length\":1,\"output_length\":1}\n"
      "{\"timestamp\":11000,\"input_length\":2,\"output_length\":1}\n"
      "{\"timestamp\":12000,\"session_id\":1,\"turn\":1,\"think_ms\":5000,\"input_length\":3,\"output_length\":1}\n"
      "{\"timestamp\":13000,\"input_length\":4,\"output_length\":1}\n";
  Log log;
  serve(text, KV_ARRIVE_SESSIONS, 1, 1.0, 0, ten_seconds, &log);
  assert_all(&log, 4);
  g_assert_cmpfloat(log.served[3].arrival, ==, 15.0);
  g_assert_cmpfloat(log.served[4].arrival, ==, 13.0);
}

/* Random conversations with recorded times, against the rule. */
static void random_conversations(void) {
  KvRandom random;
  kv_random_seed(&random, 60, 0);
  for (guint run = 0; run < 200; run++) {
    GString *text = g_string_new(NULL);
    guint n = (guint)kv_random_integer(&random, 1, 60);
    gint64 session[MOST + 1];
    guint64 ms = 0, at[MOST + 1], think[MOST + 1];
    for (guint i = 1; i <= n; i++) {
      ms += (guint64)kv_random_integer(&random, 0, 3) * 500;
      at[i] = ms;
      session[i] = kv_random_integer(&random, 0, 6);
      think[i] = (guint64)kv_random_integer(&random, 0, 4) * 1000;
      g_string_append_printf(text,
                             "{\"timestamp\":%" G_GUINT64_FORMAT ",\"think_ms\":%" G_GUINT64_FORMAT,
                             ms, think[i]);
      if (session[i] > 0) /* otherwise alone */
        g_string_append_printf(text, ",\"session_id\":%" G_GINT64_FORMAT, session[i]);
      g_string_append_printf(text, ",\"input_length\":%u,\"output_length\":1}\n", i);
    }
    Log log;
    serve(text->str, KV_ARRIVE_SESSIONS, 1, 1.0, 0, by_number, &log);
    assert_all(&log, n);
    for (guint i = 1; i <= n; i++) {
      double expected = (double)at[i] / 1e3;
      for (guint j = i - 1; j > 0 && session[i] > 0; j--) {
        if (session[j] == session[i]) {
          expected = MAX(expected, log.served[j].finish + (double)think[i] / 1e3);
          break;
        }
      }
      g_assert_cmpfloat(log.served[i].arrival, ==, expected);
    }
    g_string_free(text, TRUE);
  }
}

/* Given back in the middle, with turns held and deferred: nothing leaks, nothing crashes. */
static void freed_in_the_middle(void) {
  for (guint taken = 0; taken < 3; taken++) {
    g_autoptr(KvTraceReader) reader = reader_of(sessions);
    KvArrivalSource *source = kv_arrival_source_new(reader, KV_ARRIVE_AUTO, 2, 1.0, 0, NULL);
    double when;
    for (guint i = 0; i < taken; i++) {
      g_assert_true(kv_arrival_source_next(source, &when, NULL));
      KvSequence *s = kv_arrival_source_take(source);
      kv_arrival_source_finished(source, s, 1.0);
      kv_sequence_free(s);
    }
    g_assert_true(kv_arrival_source_next(source, &when, NULL));
    kv_arrival_source_free(source);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/arrival-source/trace-keeps-its-times", trace_keeps_its_times);
  g_test_add_func("/arrival-source/limit-stops", limit_stops);
  g_test_add_func("/arrival-source/closed-keeps-places-filled", closed_keeps_places_filled);
  g_test_add_func("/arrival-source/limited-holds-back", limited_holds_back);
  g_test_add_func("/arrival-source/untimed-is-closed", untimed_is_closed);
  g_test_add_func("/arrival-source/empty-trace-gives-nothing", empty_trace_gives_nothing);
  g_test_add_func("/arrival-source/bad-line-is-told", bad_line_is_told);
  g_test_add_func("/arrival-source/sessions-by-hand", sessions_by_hand);
  g_test_add_func("/arrival-source/torn-sessions-lose-nothing", torn_sessions_lose_nothing);
  g_test_add_func("/arrival-source/timed-turns-wait-for-answers", timed_turns_wait_for_answers);
  g_test_add_func("/arrival-source/think-time-does-not-depend-on-reading",
                  think_time_does_not_depend_on_reading);
  g_test_add_func("/arrival-source/random-conversations", random_conversations);
  g_test_add_func("/arrival-source/freed-in-the-middle", freed_in_the_middle);
  return g_test_run();
}
