/* Measuring a run while it goes: constant memory but for 16 bytes a finished request.
 *
 * Latencies of requests are kept as floats for exact percentiles. Inter-token latencies are too
 * many: they go into a histogram with buckets 0.5 % wide. The timeline has at most 2,048 intervals;
 * when it is full, neighbours merge and the interval doubles. Definitions: docs/metrics.md.
 */
#ifndef KV_SIM_ENGINE_METRICS_H
#define KV_SIM_ENGINE_METRICS_H

#include <glib.h>

#include "sim/base/output.h"
#include "sim/engine/instance.h"
#include "sim/engine/summary.h"

typedef struct KvMetrics KvMetrics;

/* `requests` receives requests.csv, `operations` operations.csv; either may be NULL. Both are
 * borrowed. */
KvMetrics *kv_metrics_new(double slo_ttft_seconds, double slo_tpot_seconds, KvOutput *requests,
                          KvOutput *operations);
void kv_metrics_free(KvMetrics *metrics);

void kv_metrics_arrived(KvMetrics *metrics, const KvSequence *sequence);
void kv_metrics_rejected(KvMetrics *metrics, const KvSequence *sequence);
/* To be told what instances do; borrowed. */
KvObserver *kv_metrics_observer(KvMetrics *metrics);

guint64 kv_metrics_done(const KvMetrics *metrics); /* finished or rejected, for progress */
double kv_metrics_now(const KvMetrics *metrics);   /* latest end of a batch */

/* Fill what follows from measurements: latencies, rates, counts, shares, the timeline. The caller
 * fills names and hardware first (n_gpus, peaks, total_blocks, prices are used). */
void kv_metrics_summarize(KvMetrics *metrics, KvSummary *summary);

#endif
