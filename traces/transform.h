/* Traces made of traces: each function takes a reader and gives one that changes what passes
 * through, a request at a time. They nest. The reader given away is the new one's, and is closed
 * with it, also on failure.
 *
 * In a trace of sessions the unit that is counted and chosen is the session: its turns stay
 * together. */
#ifndef KV_TRACES_TRANSFORM_H
#define KV_TRACES_TRANSFORM_H

#include "traces/trace.h"

/* What to keep: arrivals in [from, to), then of those all but the first `skip`, then every
 * `every`-th (from the first on), then `count` of them. Arrival times count from `from` in the new
 * trace. */
typedef struct {
  double from_seconds, to_seconds; /* 0 and infinity keep all; for sessions, their starts */
  guint64 skip, every, count;      /* 0, 1, G_MAXUINT64 keep all */
} KvTraceSlice;

#define KV_TRACE_SLICE_ALL                                                                         \
  (KvTraceSlice) {                                                                                 \
    .to_seconds = HUGE_VAL, .every = 1, .count = G_MAXUINT64                                       \
  }

KvTraceReader *kv_trace_slice(KvTraceReader *source, const KvTraceSlice *slice, GError **error);

/* Arrivals `factor` times as often. Think times stay: they are people's. */
KvTraceReader *kv_trace_scale(KvTraceReader *source, double factor, GError **error);

/* Spread the requests of one recorded time uniformly over the tick that it stands for: from it on,
 * for `tick` seconds or until the next recorded time, in the order they have. Holds the requests of
 * one tick. */
KvTraceReader *kv_trace_smear(KvTraceReader *source, double tick_seconds, guint64 seed,
                              GError **error);

/* The trace at `path` (not standard input) `times` over, each copy one mean gap after the last
 * arrival of the one before. Copies have sessions of their own; with `fresh` also prefix blocks of
 * their own, otherwise the second copy hits what the first left. */
KvTraceReader *kv_trace_repeat(const char *path, const char *format, guint64 times, gboolean fresh,
                               GError **error);

#endif
