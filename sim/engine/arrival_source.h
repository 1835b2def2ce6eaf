/* When requests come.
 *
 *   trace     at the trace's own times (divided by rate_scale)
 *   limited   at those times too, but only `concurrency` are in flight: the client holds the others
 *             back, and their time counts from when it sends them
 *   closed    `concurrency` requests are always in flight; the next starts when one finishes
 *   sessions  a session's next turn starts when its previous answer is complete, plus its think
 * time. Timed traces: first turns come at their own times. Traces of sessions: a session starts
 * when the trace says; of those whose start is not recorded, `concurrency` are always active
 *
 * The source reads the trace as it goes; it holds one request, or the turns of the active sessions.
 */
#ifndef KV_SIM_ENGINE_ARRIVAL_SOURCE_H
#define KV_SIM_ENGINE_ARRIVAL_SOURCE_H

#include <glib.h>

#include "sim/engine/sequence.h"
#include "traces/trace.h"

typedef enum {
  KV_ARRIVE_AUTO, /* timed: trace; sessions: sessions; untimed: closed */
  KV_ARRIVE_TRACE,
  KV_ARRIVE_CLOSED,
  KV_ARRIVE_SESSIONS,
  KV_ARRIVE_LIMITED,
} KvArrivalMode;

extern const char *const kv_arrival_mode_names[];

typedef struct KvArrivalSource KvArrivalSource;

/* The reader is borrowed. `limit` requests at most (0: all). FALSE modes: an untimed trace in mode
 * `trace` is an error. */
KvArrivalSource *kv_arrival_source_new(KvTraceReader *reader, KvArrivalMode mode, guint concurrency,
                                       double rate_scale, guint64 limit, GError **error);
void kv_arrival_source_free(KvArrivalSource *source);

/* When the next request comes, as far as is known now; G_MAXDOUBLE if none will before something
 * finishes, or ever. FALSE with *error set if the trace is bad. */
gboolean kv_arrival_source_next(KvArrivalSource *source, double *seconds, GError **error);

/* Take that request; the caller owns it (kv_sequence_free). */
KvSequence *kv_arrival_source_take(KvArrivalSource *source);

/* A request that this source gave has finished or was rejected at `now`. */
void kv_arrival_source_finished(KvArrivalSource *source, const KvSequence *sequence, double now);

/* Name the blocks of answers as the next turn does, in traces of sessions, whose next turn is
 * known.
 */
void kv_arrival_source_name_answers(KvArrivalSource *source);

KvArrivalMode kv_arrival_source_mode(const KvArrivalSource *source);

KvSequence *kv_sequence_new(const KvTraceRequest *request, guint64 index);
void kv_sequence_free(KvSequence *sequence);

#endif
