#include "sim/engine/arrival_source.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"

const char *const kv_arrival_mode_names[] = {"auto",     "trace",   "closed",
                                             "sessions", "limited", NULL};

/* Turns of one session that have not been given out. */
typedef struct {
  gint64 id;
  GQueue turns;            /* of KvSequence */
  gboolean answering;      /* a turn is with the engine, or its time is known */
  double answered_seconds; /* when the last answer was complete; -G_MAXDOUBLE: none yet */
  gboolean pending;        /* its start is recorded and has not come */
  gboolean counted;        /* takes one of the concurrent places: its start is not recorded */
} Session;

struct KvArrivalSource {
  KvTraceReader *reader;
  KvArrivalMode mode;
  gboolean by_session;          /* the trace is a list of sessions */
  guint concurrency, in_flight; /* requests (closed) or sessions */
  double rate_scale, released;  /* when the last place became free */
  double base;                  /* when the last session without a recorded start began */
  guint pending;                /* sessions that wait for their recorded start */
  double now;                   /* latest moment that the source has heard of */
  guint64 limit, given, read;
  gboolean at_end;
  gboolean names_answers;
  KvSequence *ahead;    /* read, not given out */
  GHashTable *sessions; /* by id: Session */
  GPtrArray *deferred;  /* binary heap by arrival: turns whose time is known */
};

KvSequence *kv_sequence_new(const KvTraceRequest *request, guint64 index) {
  KvSequence *s = g_new0(KvSequence, 1);
  s->index = index;
  s->id = request->id;
  s->session = request->session;
  s->turn = request->turn;
  s->priority = request->priority;
  s->input_tokens = request->input_tokens;
  s->output_tokens = request->output_tokens;
  s->target_tokens = request->input_tokens;
  s->n_hashes = request->n_hashes;
  s->n_tokens = request->n_tokens;
  s->hashes = g_memdup2(request->hashes, request->n_hashes * sizeof(guint64));
  s->tokens = g_memdup2(request->tokens, request->n_tokens * sizeof(guint32));
  s->calls = g_memdup2(request->calls, request->n_calls * sizeof *request->calls);
  s->n_calls = request->n_calls;
  for (guint i = 0; i < s->n_calls; i++)
    s->call_tokens += s->calls[i].returned_tokens;
  s->link.data = s;
  s->arrival_seconds = request->arrival_seconds;
  s->deadline_seconds = request->deadline_seconds;
  s->think_seconds = request->think_seconds;
  s->session_start_seconds = request->session_start_seconds;
  s->scheduled_seconds = s->first_token_seconds = s->last_token_seconds = -1.0;
  return s;
}

void kv_sequence_free(KvSequence *sequence) {
  if (!sequence)
    return;
  g_free(sequence->hashes);
  g_free(sequence->tokens);
  g_free(sequence->calls);
  g_free(sequence->nodes);
  g_free(sequence->block_ids);
  g_free(sequence->swapped_ids);
  g_free(sequence);
}

static Session *session_new(gint64 id) {
  Session *session = g_new0(Session, 1);
  session->id = id;
  session->answered_seconds = -G_MAXDOUBLE;
  return session;
}

static void session_free(gpointer data) {
  Session *session = data;
  g_queue_clear_full(&session->turns, (GDestroyNotify)kv_sequence_free);
  g_free(session);
}

KvArrivalSource *kv_arrival_source_new(KvTraceReader *reader, KvArrivalMode mode, guint concurrency,
                                       double rate_scale, guint64 limit, GError **error) {
  KvTraceTiming timing = kv_trace_reader_timing(reader);
  if (mode == KV_ARRIVE_AUTO)
    mode = timing == KV_TRACE_TIMED      ? KV_ARRIVE_TRACE
           : timing == KV_TRACE_SESSIONS ? KV_ARRIVE_SESSIONS
                                         : KV_ARRIVE_CLOSED;
  if ((mode == KV_ARRIVE_TRACE || mode == KV_ARRIVE_LIMITED) && timing != KV_TRACE_TIMED) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s: has no arrival times, expected arrivals 'closed'%s",
                kv_trace_reader_name(reader), timing == KV_TRACE_SESSIONS ? " or 'sessions'" : "");
    return NULL;
  }
  KvArrivalSource *source = g_new0(KvArrivalSource, 1);
  source->reader = reader;
  source->mode = mode;
  source->by_session = timing == KV_TRACE_SESSIONS && mode == KV_ARRIVE_SESSIONS;
  source->concurrency = MAX(1, concurrency);
  source->rate_scale = rate_scale;
  source->limit = limit ? limit : G_MAXUINT64;
  source->sessions = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, session_free);
  source->deferred = g_ptr_array_new();
  return source;
}

void kv_arrival_source_free(KvArrivalSource *source) {
  if (!source)
    return;
  for (guint i = 0; i < source->deferred->len; i++)
    kv_sequence_free(g_ptr_array_index(source->deferred, i));
  g_ptr_array_unref(source->deferred);
  g_hash_table_unref(source->sessions);
  kv_sequence_free(source->ahead);
  g_free(source);
}

KvArrivalMode kv_arrival_source_mode(const KvArrivalSource *source) {
  return source->mode;
}

void kv_arrival_source_name_answers(KvArrivalSource *source) {
  source->names_answers = TRUE;
}

static gboolean earlier(const KvSequence *a, const KvSequence *b) {
  return a->arrival_seconds != b->arrival_seconds ? a->arrival_seconds < b->arrival_seconds
                                                  : a->index < b->index;
}

static void defer(KvArrivalSource *source, KvSequence *turn, double when) {
  turn->arrival_seconds = when;
  g_ptr_array_add(source->deferred, turn);
  gpointer *heap = source->deferred->pdata;
  guint at = source->deferred->len - 1;
  for (; at > 0 && earlier(turn, heap[(at - 1) / 2]); at = (at - 1) / 2)
    heap[at] = heap[(at - 1) / 2];
  heap[at] = turn;
}

static KvSequence *take_deferred(KvArrivalSource *source) {
  gpointer *heap = source->deferred->pdata;
  KvSequence *first = heap[0], *last = heap[source->deferred->len - 1];
  g_ptr_array_set_size(source->deferred, (gint)source->deferred->len - 1);
  guint n = source->deferred->len, at = 0;
  for (guint child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && earlier(heap[child + 1], heap[child]))
      child++;
    if (!earlier(heap[child], last))
      break;
    heap[at] = heap[child];
  }
  if (n > 0)
    heap[at] = last;
  return first;
}

/* Have a request in `ahead`, unless the trace (or the limit) is at its end. */
static gboolean read_ahead(KvArrivalSource *source, GError **error) {
  KvTraceRequest request;
  if (source->ahead || source->at_end)
    return TRUE;
  if (source->read >= source->limit) {
    source->at_end = TRUE;
    return TRUE;
  }
  GError *problem = NULL;
  if (!kv_trace_reader_next(source->reader, &request, &problem)) {
    source->at_end = TRUE;
    if (problem) {
      g_propagate_error(error, problem);
      return FALSE;
    }
    return TRUE;
  }
  source->ahead = kv_sequence_new(&request, source->read++);
  source->ahead->arrival_seconds /= source->rate_scale;
  return TRUE;
}

/* Start the next session of a trace of sessions: all its turns stand together. Should its name come
 * up again while it is active, the turns continue it. */
static gboolean start_session(KvArrivalSource *source, GError **error) {
  gint64 id = source->ahead->session;
  KvSequence *before = source->ahead;
  guint32 block_tokens = kv_trace_reader_block_tokens(source->reader);
  Session *session = g_hash_table_lookup(source->sessions, &id);
  if (!session) {
    KvSequence *first = g_steal_pointer(&source->ahead);
    double start = first->session_start_seconds / source->rate_scale;
    session = session_new(id);
    session->answering = TRUE;
    session->counted = start <= 0.0;
    g_hash_table_insert(source->sessions, &session->id, session);
    if (session->counted) {
      source->in_flight++;
      source->base = source->now;
      defer(source, first, source->now);
    } else {
      /* A recorded start counts from that of the last session without one: a subagent's from its
       * parent's. */
      source->pending++;
      session->pending = TRUE;
      defer(source, first, MAX(source->base + start, source->now));
    }
  }
  while (read_ahead(source, error)) {
    if (!source->ahead || source->ahead->session != id)
      return TRUE;
    if (source->names_answers && before != source->ahead)
      kv_sequence_name_answer(before, source->ahead, block_tokens);
    before = source->ahead;
    g_queue_push_tail(&session->turns, g_steal_pointer(&source->ahead));
  }
  return FALSE;
}

/* Have the turns of every session in memory that may start: as many as there are places of those
 * whose start is not recorded, and as many again of those whose start is. */
static gboolean start_sessions(KvArrivalSource *source, GError **error) {
  while (read_ahead(source, error)) {
    if (!source->ahead)
      return TRUE;
    gboolean recorded = source->ahead->session_start_seconds > 0.0;
    if ((recorded ? source->pending : source->in_flight) >= source->concurrency)
      return TRUE;
    if (!start_session(source, error))
      return FALSE;
  }
  return FALSE;
}

/* Timed traces in mode `sessions`: hold turns back whose session still waits for an answer. */
static gboolean hold_back_turns(KvArrivalSource *source, GError **error) {
  while (read_ahead(source, error)) {
    KvSequence *ahead = source->ahead;
    if (!ahead || ahead->session < 0)
      return TRUE;
    Session *session = g_hash_table_lookup(source->sessions, &ahead->session);
    if (!session) {
      session = session_new(ahead->session);
      g_hash_table_insert(source->sessions, &session->id, session);
    }
    if (!session->answering) {
      double ready = session->answered_seconds + ahead->think_seconds;
      if (ready <= ahead->arrival_seconds)
        return TRUE;
      session->answering = TRUE;
      defer(source, g_steal_pointer(&source->ahead), ready);
    } else {
      g_queue_push_tail(&session->turns, g_steal_pointer(&source->ahead));
    }
  }
  return FALSE;
}

/* When the request read ahead comes. Without a place it is not known yet. */
static double time_of_ahead(const KvArrivalSource *source) {
  double recorded = source->ahead->arrival_seconds;
  if (source->mode != KV_ARRIVE_CLOSED && source->mode != KV_ARRIVE_LIMITED)
    return recorded;
  if (source->in_flight >= source->concurrency)
    return G_MAXDOUBLE;
  return source->mode == KV_ARRIVE_CLOSED ? source->released : MAX(recorded, source->released);
}

gboolean kv_arrival_source_next(KvArrivalSource *source, double *seconds, GError **error) {
  *seconds = G_MAXDOUBLE;
  if (source->by_session) {
    if (!start_sessions(source, error))
      return FALSE;
  } else if (source->mode == KV_ARRIVE_SESSIONS) {
    if (!hold_back_turns(source, error))
      return FALSE;
  } else if (!read_ahead(source, error)) {
    return FALSE;
  }
  if (source->ahead && !source->by_session)
    *seconds = time_of_ahead(source);
  if (source->deferred->len > 0) {
    const KvSequence *turn = g_ptr_array_index(source->deferred, 0);
    *seconds = MIN(*seconds, turn->arrival_seconds);
  }
  return TRUE;
}

KvSequence *kv_arrival_source_take(KvArrivalSource *source) {
  const KvSequence *turn = source->deferred->len ? g_ptr_array_index(source->deferred, 0) : NULL;
  gboolean from_file = source->ahead && !source->by_session &&
                       (!turn || source->ahead->arrival_seconds <= turn->arrival_seconds);
  KvSequence *sequence = from_file ? g_steal_pointer(&source->ahead) : take_deferred(source);
  source->given++;
  source->now = MAX(source->now, sequence->arrival_seconds);
  if (source->mode == KV_ARRIVE_CLOSED || source->mode == KV_ARRIVE_LIMITED) {
    gboolean waits = source->mode == KV_ARRIVE_LIMITED; /* for its own time, too */
    sequence->arrival_seconds =
        waits ? MAX(sequence->arrival_seconds, source->released) : source->released;
    source->in_flight++;
  }
  Session *session = source->mode == KV_ARRIVE_SESSIONS && sequence->session >= 0
                         ? g_hash_table_lookup(source->sessions, &sequence->session)
                         : NULL;
  if (session) {
    session->answering = TRUE;
    source->pending -= session->pending;
    session->pending = FALSE;
  }
  return sequence;
}

void kv_arrival_source_finished(KvArrivalSource *source, const KvSequence *sequence, double now) {
  source->released = MAX(source->released, now);
  source->now = MAX(source->now, now);
  if (source->mode == KV_ARRIVE_CLOSED || source->mode == KV_ARRIVE_LIMITED)
    source->in_flight--;
  if (source->mode != KV_ARRIVE_SESSIONS)
    return;
  Session *session = g_hash_table_lookup(source->sessions, &sequence->session);
  KvSequence *next = session ? g_queue_pop_head(&session->turns) : NULL;
  if (next) {
    /* Recorded times are when the turn was ready then; it cannot come before its own history. */
    double ready = now + next->think_seconds;
    defer(source, next, source->by_session ? ready : MAX(next->arrival_seconds, ready));
    return;
  }
  if (session) {
    session->answering = FALSE;
    session->answered_seconds = now;
  }
  if (source->by_session) {
    source->in_flight -= session && session->counted;
    g_hash_table_remove(source->sessions, &sequence->session);
  }
}
