/* What a person looks at: the terminal table, the plots, the report.
 *
 * Everything is drawn from KvSummary alone, so any run (and any set of runs) can be drawn. Plots
 * are SVG files written by gnuplot from scripts made here; without gnuplot, or if it fails, the run
 * goes on and the report says which pictures are missing.
 */
#ifndef KV_VIZ_VIZ_H
#define KV_VIZ_VIZ_H

#include <glib.h>

#include "sim/base/output.h"
#include "sim/engine/summary.h"

/* One picture: an entry of kv_plots. Each is written from one or more runs (several: overlaid or
 * side by side). */
typedef struct {
  const char *id, *title, *caption; /* file name without .svg; one line; what to look for */
  /* Append a gnuplot script (data inline) that draws `runs` to the terminal set before; FALSE if
   * there is nothing to draw. */
  gboolean (*script)(GString *script, const KvSummary *const *runs, guint n_runs);
} KvPlot;

extern const KvPlot *const kv_plots[]; /* NULL-terminated, in the report's order */

/* Draw every plot of `runs` into `directory` as ID.svg. Returns the ids that could not be drawn,
 * NULL-terminated (free with g_strfreev), with the reason in *reason (newly allocated, NULL if all
 * were drawn). */
char **kv_plots_draw(const KvRunDirectory *directory, const KvSummary *const *runs, guint n_runs,
                     char **reason);

/* Write report.html into `directory`: self-contained (SVGs and style inline, no script needed,
 * nothing fetched). `scenario_json` is the complete scenario as text, shown at the end; `notes` are
 * lines of caution (uncalibrated device, missing pictures, rejected requests), NULL-terminated. */
gboolean kv_report_write(const KvRunDirectory *directory, const KvSummary *const *runs,
                         guint n_runs, const char *scenario_json, const char *const *notes,
                         GError **error);

/* The table of one run on the terminal, at most `columns` wide; newly allocated. */
char *kv_table_run(const KvSummary *run, guint columns, gboolean colour);

/* Several runs side by side, the first being the baseline: each value with its change. */
char *kv_table_compare(const KvSummary *const *runs, guint n_runs, guint columns, gboolean colour);

#endif
