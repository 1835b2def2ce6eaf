/* The pictures themselves, and what their scripts share. Internal to viz/. */
#ifndef KV_VIZ_PLOTS_H
#define KV_VIZ_PLOTS_H

#include "viz/gnuplot.h"
#include "viz/viz.h"

extern const KvPlot kv_plot_latency_cdf, kv_plot_latency_time, kv_plot_sequences, kv_plot_blocks,
    kv_plot_throughput, kv_plot_utilization, kv_plot_components, kv_plot_roofline,
    kv_plot_comparison;

/* More runs than this are not told apart in one picture; the rest is left out of it. */
enum { KV_PLOT_RUNS = KV_N_COLOURS };

/* What a run is called in a picture: its label, shortened to `width` characters. Newly allocated.
 */
char *kv_plot_run_name(const KvSummary *run, guint width);

/* The key of several runs, in their colours: as kv_gnuplot_key(), and nothing for one run. */
double kv_plot_runs_key(GString *script, double left, double width, double height,
                        const KvSummary *const *runs, guint n_runs);

/* A panel without data: axes off, `note` in the middle. */
void kv_plot_note(GString *script, const char *title, const char *note);

/* Append printf-style, with numbers as C writes them. */
#define kv_say g_string_append_printf

#endif
