/* A measured run beside its simulation: what was measured, what was predicted, how far apart.
 *
 * Every figure that the measured side has becomes one row. Distributions that are known request by
 * request add the Kolmogorov-Smirnov distance (the largest difference of the two cumulative shares)
 * and the median error of one request; levels over time add their root mean square difference.
 */
#ifndef KV_SIM_VALIDATE_COMPARISON_H
#define KV_SIM_VALIDATE_COMPARISON_H

#include <jansson.h>

#include "sim/engine/summary.h"
#include "sim/validate/measured.h"

typedef struct {
  const char *metric, *statistic; /* "ttft", "mean"; rates: "makespan", "" */
  double measured, predicted;
} KvComparisonRow;

typedef struct {
  double ks;           /* of the two distributions */
  double median_error; /* of |predicted / measured - 1|, over requests */
} KvAgreement;

typedef struct {
  const KvMeasuredRun *run; /* borrowed */
  KvSummary *summary;
  GArray *rows;                          /* of KvComparisonRow */
  GArray *requests;                      /* of KvMeasuredRequest, simulated, in the trace's order */
  KvAgreement agreement[KV_N_LATENCIES]; /* NaN without measured requests */
  double running_rms, waiting_rms;       /* sequences; NaN without measured levels */
} KvComparison;

/* Simulate the run and compare. */
KvComparison *kv_comparison_new(const KvMeasuredRun *run, const volatile gint *interrupted,
                                GError **error);
void kv_comparison_free(KvComparison *comparison);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvComparison, kv_comparison_free)

/* Signed relative error of a row. */
double kv_comparison_error(const KvComparisonRow *row);

/* How the rows of one metric and statistic fare over many runs. */
typedef struct {
  const char *kind, *metric, *statistic;
  guint n;
  double median, p95, bias; /* of |error|; bias: the median of the signed error */
} KvAccuracy;

/* Of `comparisons` (KvComparison), by kind (or, finer, by the runs' group), metric and statistic;
 * of KvAccuracy, whose texts the comparisons own. */
GArray *kv_accuracy_collect(const GPtrArray *comparisons, gboolean by_group);

json_t *kv_comparison_to_json(const KvComparison *comparison); /* a new reference */
/* A table of one run for the terminal; and one line per run. Newly allocated. */
char *kv_comparison_table(const KvComparison *comparison);
char *kv_accuracy_table(const GArray *accuracy, gboolean markdown);
/* docs/accuracy-runs.md, all but its remarks: every table. */
char *kv_accuracy_page(const GPtrArray *comparisons);

#endif
