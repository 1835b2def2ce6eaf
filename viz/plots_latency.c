/* How latencies are distributed: small multiples of cumulative distributions. */
#include <math.h>

#include "viz/format.h"
#include "viz/plots.h"

typedef struct {
  const char *title;
  KvLatency main, dashed; /* the same where there is no second one */
} Panel;

enum { WIDTH = 900 };

static const Panel panels[] = {
    {"TTFT: to the first token", KV_LATENCY_TTFT, KV_LATENCY_TTFT},
    {"TPOT and ITL: between tokens", KV_LATENCY_TPOT, KV_LATENCY_ITL},
    {"E2E: to the last token", KV_LATENCY_E2E, KV_LATENCY_E2E},
};

/* Times below this are drawn at it; no latency of a real engine is shorter. */
static const double least_seconds = 1e-6;

/* The times that a panel spans: from 1-in-200 of the quickest to the slowest. FALSE if there is no
 * sample. */
static gboolean span(const Panel *panel, const KvSummary *const *runs, guint n_runs, double *low,
                     double *high) {
  *low = INFINITY, *high = 0;
  for (guint r = 0; r < n_runs; r++)
    for (guint k = 0; k < 2; k++) {
      KvLatency latency = k ? panel->dashed : panel->main;
      if (!runs[r]->latency[latency].n)
        continue;
      *low = MIN(*low, MAX(runs[r]->cdf[latency].value[1], least_seconds));
      *high = MAX(*high, MAX(runs[r]->cdf[latency].value[KV_CDF_POINTS - 1], least_seconds));
    }
  if (!(*high > 0) || !isfinite(*low))
    return FALSE;
  *low /= 1.15, *high *= 1.15;
  if (*high < 4 * *low) { /* one request, or all alike: room on both sides */
    double middle = sqrt(*low * *high);
    *low = middle / 3, *high = middle * 3;
  }
  return TRUE;
}

/* Tics at 1, 2 and 5 (1 and 3, or 1 alone, where that would crowd), named in the unit that fits. */
static void write_tics(GString *script, double low, double high) {
  static const double all_steps[][3] = {{1}, {1, 3}, {1, 2, 5}};
  double decades = log10(high / low);
  guint n_steps = decades <= 1 ? 3 : decades <= 2.2 ? 2 : 1, stride = decades > 5 ? 2 : 1;
  const char *separator = "set xtics (";
  for (int d = (int)floor(log10(low)); d <= (int)ceil(log10(high)); d++)
    for (guint s = 0; s < n_steps; s++) {
      double at = all_steps[n_steps - 1][s] * pow(10, d);
      if (at < low || at > high || (d % (int)stride) != 0)
        continue;
      static const struct {
        double size;
        const char *unit;
      } units[] = {{1, "s"}, {1e-3, "ms"}, {1e-6, "\302\265s"}};
      guint u = at >= 0.999 ? 0 : at >= 0.999e-3 ? 1 : 2;
      kv_say(script, "%s'%.10g %s' %.10g", separator, at / units[u].size, units[u].unit, at);
      separator = ", ";
    }
  kv_say(script, "%s)\n", *separator == ',' ? "" : "set xtics (");
}

static void write_cdf(GString *script, const KvSummary *run, guint r, KvLatency latency) {
  kv_say(script, "$c%u_%s << EOD\n", r, kv_latency_names[latency]);
  for (guint i = 0; i < KV_CDF_POINTS; i++)
    kv_say(script, "%.6g %.6g\n", MAX(run->cdf[latency].value[i], least_seconds),
           100.0 * i / (KV_CDF_POINTS - 1));
  kv_say(script, "EOD\n");
}

static void plot_curve(GString *script, const KvSummary *run, guint r, guint n_runs,
                       const Panel *panel, gboolean dashed, const char **separator) {
  KvLatency latency = dashed ? panel->dashed : panel->main;
  if (!run->latency[latency].n)
    return;
  kv_say(script, "%s$c%u_%s using 1:2 with lines lw 2 dt %u lc rgb '%s' ", *separator, r,
         kv_latency_names[latency], dashed ? 2 : 1, kv_colours[r % KV_N_COLOURS]);
  if (n_runs == 1 && panel->main != panel->dashed)
    kv_say(script, "title '%s'", kv_latency_titles[latency]);
  else
    kv_say(script, "notitle");
  *separator = ", \\\n  ";
}

/* A service-level objective as an upright dashed line. */
static void draw_objective(GString *script, double seconds, double low, double high) {
  if (!(seconds > low && seconds < high))
    return;
  g_autofree char *text = kv_format(KV_UNIT_SECONDS, seconds);
  kv_say(
      script,
      "set arrow 9 from first %.10g, graph 0 to first %.10g, graph 1 nohead dt 3 lw 1.2 lc rgb '" KV_INK
      "'\n"
      "set label 9 'SLO %s' at first %.10g, graph 0.35 %s offset character %s,0 textcolor rgb '" KV_INK
      "'\n",
      seconds, seconds, text, seconds, seconds > sqrt(low * high) ? "right" : "left",
      seconds > sqrt(low * high) ? "-0.5" : "0.5");
}

static void draw_panel(GString *script, const Panel *panel, const KvSummary *const *runs,
                       guint n_runs) {
  double low, high;
  const char *separator = "plot ";
  kv_say(script, "unset arrow 9\nunset label 9\n");
  if (!span(panel, runs, n_runs, &low, &high)) {
    kv_plot_note(script, panel->title, "no sample");
    return;
  }
  kv_say(
      script,
      "set title '%s'\nset logscale x\nset xrange [%.10g:%.10g]\nset yrange [0:100]\nset format y '%%.0f %%%%'\n"
      "set ytics (0, 25, 50, 75, 90, 99)\nset xlabel 'time (logarithmic)'\nset ylabel '%s'\n",
      panel->title, low, high, panel == &panels[0] ? "share that was at least as quick" : "");
  write_tics(script, low, high);
  draw_objective(script,
                 panel->main == KV_LATENCY_TTFT   ? runs[0]->slo_ttft_seconds
                 : panel->main == KV_LATENCY_TPOT ? runs[0]->slo_tpot_seconds
                                                  : 0,
                 low, high);
  for (guint r = 0; r < n_runs; r++)
    for (guint k = 0; k < (panel->main == panel->dashed || n_runs > 1 ? 1u : 2u); k++)
      plot_curve(script, runs[r], r, n_runs, panel, k, &separator);
  kv_say(script, "\n");
}

static gboolean draw_cdf(GString *script, const KvSummary *const *runs, guint n_runs) {
  n_runs = MIN(n_runs, KV_PLOT_RUNS);
  KvMargins margins = {.left = 88, .right = 22, .top = 34, .bottom = 62, .across = 70};
  margins.top += kv_plot_runs_key(NULL, margins.left, WIDTH, 1, runs, n_runs);
  double height = margins.top + 270 + margins.bottom;
  kv_gnuplot_begin(script, WIDTH, (guint)height);
  for (guint r = 0; r < n_runs; r++)
    for (guint l = KV_LATENCY_TTFT; l < KV_N_LATENCIES; l++)
      write_cdf(script, runs[r], r, (KvLatency)l);
  kv_gnuplot_panels(script, 1, G_N_ELEMENTS(panels), WIDTH, height, &margins);
  kv_plot_runs_key(script, margins.left, WIDTH, height, runs, n_runs);
  for (guint p = 0; p < G_N_ELEMENTS(panels); p++) {
    draw_panel(script, &panels[p], runs, n_runs);
    kv_gnuplot_end_key(script, n_runs);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

const KvPlot kv_plot_latency_cdf = {
    "latency-cdf", "Latency distributions",
    "Read across from a share of requests to the curve, and down to the time that this share stayed within: 50 % is the median. "
    "A steep curve means that requests fare alike; a long flat top is a tail. A line moved left is better.",
    draw_cdf};
