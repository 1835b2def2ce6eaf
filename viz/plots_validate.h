/* What validation looks like: measured beside predicted.
 *
 * A run whose requests are known gets its cumulative distributions and, where they were sampled,
 * its running and waiting sequences over time; a table of many runs gets one scatter a figure. The
 * pictures and the tables stand in one page. */
#ifndef KV_VIZ_PLOTS_VALIDATE_H
#define KV_VIZ_PLOTS_VALIDATE_H

#include "sim/base/output.h"
#include "sim/validate/comparison.h"
#include "sim/validate/step_log.h"

/* Append a script that draws one run; FALSE if its requests are unknown. */
gboolean kv_validate_run_script(GString *script, const KvComparison *comparison);

/* Append a script that draws every run's measured and predicted TTFT, TPOT and output rate; FALSE
 * for fewer than two. */
gboolean kv_validate_scatter_script(GString *script, const GPtrArray *comparisons);

/* Append a script that draws every step of a priced log, decoding and with prompts: predicted over
 * measured. FALSE if there is none. */
gboolean kv_validate_steps_script(GString *script, const KvStepLog *log);

/* Write report.html with pictures inline, and comparisons.json, into the folder; with the steps of
 * `logs` (KvStepLog, priced). Without gnuplot the page says which picture is missing. */
gboolean kv_validate_report_write(const KvRunDirectory *directory, const GPtrArray *comparisons,
                                  const GPtrArray *logs, GError **error);

#endif
