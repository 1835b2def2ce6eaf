/* What a trace is like: one pass over its requests.
 *
 * Lengths are exact, quantiles too (numpy's linear interpolation). The ideal hit is what a cold
 * cache of unlimited size would find: the leading blocks of each prompt that an earlier request's
 * prompt named. Memory grows with the number of distinct blocks, sessions and lengths, not with
 * that of requests. */
#ifndef KV_TRACES_STATISTICS_H
#define KV_TRACES_STATISTICS_H

#include "traces/trace.h"

typedef struct {
  double mean, p50, p95, p99, max;
} KvTraceDistribution;

typedef struct {
  guint64 n_requests;
  KvTraceTiming timing;
  guint32 block_tokens;

  /* KV_TRACE_TIMED only. */
  double first_seconds, last_seconds;
  double rate_rps;         /* (n - 1) / span; 0 if the span is 0 */
  double inter_arrival_cv; /* standard deviation / mean of the gaps; Poisson has 1 */
  double same_time_share;  /* of requests that arrive at the same time as the one before */
  double tick_seconds;     /* arrivals stand on ticks of this size; 0: they do not */

  KvTraceDistribution input_tokens, output_tokens, total_tokens;
  guint64 sum_input_tokens, sum_output_tokens;

  guint64 n_sessions; /* 0: no request belongs to one */
  double turns_mean, turns_max;
  double think_seconds_mean, think_seconds_p50; /* of the turns after the first */

  guint64 n_blocks, n_distinct_blocks, most_reused; /* uses of the block used most */
  guint64 hit_tokens, hit_blocks;                   /* ideal */
} KvTraceStatistics;

/* Read `reader` to its end. FALSE with *error if a record is wrong or there is none. */
gboolean kv_trace_statistics(KvTraceReader *reader, KvTraceStatistics *statistics, GError **error);

#endif
