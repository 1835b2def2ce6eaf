/* Summaries to draw: made up, round, and the same every time. Each is the caller's to free. */
#ifndef KV_TESTS_VIZ_FIXTURES_H
#define KV_TESTS_VIZ_FIXTURES_H

#include "sim/engine/summary.h"

KvSummary *
fixture_normal(void); /* a day-like load on one GPU, with an SLO and a burst that fills the cache */
KvSummary *fixture_faster(void); /* the same under a technique that shrinks the cache */
KvSummary *fixture_slower(void); /* the same with preemptions, transfers and a long label */
KvSummary *fixture_single(void); /* one request with one output token */
KvSummary *fixture_empty(void);  /* no request at all */

#endif
