/* Pictures over the time of the run: panels one above the other, one line per run in each. */
#include <math.h>
#include <stddef.h>

#include "viz/format.h"
#include "viz/plots.h"

typedef struct {
  const char *title, *unit; /* of the panel; what its axis counts, NULL for a time */
  double (*value)(const KvInterval *interval, const KvSummary *run); /* NaN: a gap */
  gboolean points; /* marks, where neighbours need not be related */
} Panel;

enum { WIDTH = 900, PANEL_HEIGHT = 160, MOST_PANELS = 3 };

/* The first arrival: traces need not begin at zero. */
static double origin(const KvSummary *run) {
  return run->timeline && run->timeline->len
             ? g_array_index(run->timeline, KvInterval, 0).start_seconds
             : 0;
}

/* The run's time in a unit that keeps the numbers small. */
static double time_unit(const KvSummary *const *runs, guint n_runs, const char **name) {
  static const struct {
    double above, seconds;
    const char *name;
  } units[] = {{3 * 86400, 86400, "days"},
               {3 * 3600, 3600, "h"},
               {300, 60, "min"},
               {1, 1, "s"},
               {0, 1e-3, "ms"}};
  double last = 0;
  for (guint r = 0; r < n_runs; r++)
    for (guint i = 0; runs[r]->timeline && i < runs[r]->timeline->len; i++) {
      const KvInterval *interval = &g_array_index(runs[r]->timeline, KvInterval, i);
      last = MAX(last, interval->start_seconds - origin(runs[r]) + interval->seconds);
    }
  guint u = 0;
  while (last < units[u].above)
    u++;
  *name = units[u].name;
  return units[u].seconds;
}

static guint n_intervals(const KvSummary *run) {
  return run->timeline ? run->timeline->len : 0;
}

/* More points than this are noise in a picture 900 pixels wide. */
enum { MOST_POINTS = 300 };

/* Levels are averaged over time, amounts are added. */
static void add_interval(KvInterval *to, const KvInterval *from) {
#define LEVEL(field) offsetof(KvInterval, field)
  static const gsize levels[] = {LEVEL(running), LEVEL(waiting), LEVEL(blocks_held),
                                 LEVEL(blocks_cached), LEVEL(blocks_free)};
  static const gsize amounts[] = {LEVEL(link_bytes),    LEVEL(host_bytes),   LEVEL(prompt_tokens),
                                  LEVEL(output_tokens), LEVEL(busy_seconds), LEVEL(ttft_sum),
                                  LEVEL(tpot_sum)};
#undef LEVEL
  double both = to->seconds + from->seconds;
  for (guint i = 0; both > 0 && i < G_N_ELEMENTS(levels); i++) {
    double *level = G_STRUCT_MEMBER_P(to, levels[i]);
    *level =
        (*level * to->seconds + G_STRUCT_MEMBER(double, from, levels[i]) * from->seconds) / both;
  }
  for (guint i = 0; i < G_N_ELEMENTS(amounts); i++)
    *(double *)G_STRUCT_MEMBER_P(to, amounts[i]) += G_STRUCT_MEMBER(double, from, amounts[i]);
  to->ttft_count += from->ttft_count;
  to->tpot_count += from->tpot_count;
  to->finished += from->finished;
  to->preemptions += from->preemptions;
  to->seconds = both;
}

static GArray *thinned(const GArray *timeline) {
  guint n = timeline ? timeline->len : 0, group = MAX(1u, (n + MOST_POINTS - 1) / MOST_POINTS);
  GArray *thin = g_array_new(FALSE, TRUE, sizeof(KvInterval));
  for (guint i = 0; i < n; i++) {
    const KvInterval *interval = &g_array_index(timeline, KvInterval, i);
    if (i % group == 0)
      g_array_append_val(thin, *interval);
    else
      add_interval(&g_array_index(thin, KvInterval, thin->len - 1), interval);
  }
  return thin;
}

typedef gboolean (*DrawThinned)(GString *script, const void *panels, guint n_panels,
                                const KvSummary *const *runs, guint n_runs);

/* Draw shallow copies of the runs whose timelines are thinned. */
static gboolean draw_thinned(DrawThinned draw, GString *script, const void *panels, guint n_panels,
                             const KvSummary *const *runs, guint n_runs) {
  const KvSummary *thin[KV_PLOT_RUNS] = {NULL};
  n_runs = MIN(n_runs, KV_PLOT_RUNS);
  for (guint r = 0; r < n_runs; r++) {
    KvSummary *copy = g_memdup2(runs[r], sizeof *copy);
    copy->timeline = thinned(runs[r]->timeline);
    thin[r] = copy;
  }
  gboolean drawn = draw(script, panels, n_panels, thin, n_runs);
  for (guint r = 0; r < n_runs; r++) {
    g_array_unref(thin[r]->timeline);
    g_free((gpointer)thin[r]);
  }
  return drawn;
}

/* $rN_P: the time of an interval's middle, and the panel's value in it. */
static gboolean write_panel_data(GString *script, const Panel *panel, guint p, const KvSummary *run,
                                 guint r, double unit_seconds) {
  gboolean any = FALSE;
  kv_say(script, "$r%u_%u << EOD\n", r, p);
  for (guint i = 0; i < n_intervals(run); i++) {
    const KvInterval *interval = &g_array_index(run->timeline, KvInterval, i);
    double value = panel->value(interval, run);
    double at = (interval->start_seconds - origin(run) + interval->seconds / 2) / unit_seconds;
    if (isfinite(value))
      kv_say(script, "%.6g %.6g\n", at, value);
    else if (!panel->points)
      kv_say(script, "%.6g ?\n", at);
    any |= isfinite(value);
  }
  kv_say(script, "EOD\n");
  return any;
}

/* What the panel's values are multiplied by, and the name of the unit that they then have. */
static double value_unit(const Panel *panel, const KvSummary *const *runs, guint n_runs,
                         const char **name) {
  double most = 0;
  *name = panel->unit;
  if (panel->unit)
    return 1;
  for (guint r = 0; r < n_runs; r++)
    for (guint i = 0; i < n_intervals(runs[r]); i++) {
      double value = panel->value(&g_array_index(runs[r]->timeline, KvInterval, i), runs[r]);
      most = MAX(most, isfinite(value) ? value : 0);
    }
  *name = most < 1 ? "milliseconds" : "seconds";
  return most < 1 ? 1e3 : 1;
}

static void plot_panel(GString *script, const Panel *panel, guint p, const KvSummary *const *runs,
                       guint n_runs, const gboolean *any, double scale) {
  const char *separator = "plot ";
  for (guint r = 0; r < n_runs; r++) {
    const char *colour = kv_colours[n_runs == 1 ? p : r];
    gboolean marks = panel->points || n_intervals(runs[r]) == 1;
    if (!any[r])
      continue;
    if (n_runs == 1 && !marks) {
      kv_say(
          script,
          "%s$r%u_%u using 1:($2*%g) with filledcurves y1=0 fs transparent solid 0.18 lc rgb '%s' notitle",
          separator, r, p, scale, colour);
      separator = ", \\\n  ";
    }
    kv_say(script, "%s$r%u_%u using 1:($2*%g) with %s lc rgb '%s' lw 1.6 pt 7 notitle", separator,
           r, p, scale,
           n_intervals(runs[r]) == 1 ? "points ps 1"
           : panel->points           ? "linespoints ps 0.3"
                                     : "lines",
           colour);
    separator = ", \\\n  ";
  }
  kv_say(script, "\n");
}

static void draw_panel(GString *script, const Panel *panel, guint p, gboolean lowest,
                       const char *unit, const KvSummary *const *runs, guint n_runs,
                       const gboolean *any) {
  gboolean drawn = FALSE;
  const char *value_name;
  double scale = value_unit(panel, runs, n_runs, &value_name);
  for (guint r = 0; r < n_runs; r++)
    drawn |= any[r];
  if (!drawn) {
    kv_plot_note(script, panel->title, "nothing to show: no request got that far");
    return;
  }
  kv_say(
      script,
      "set title '%s'\nset ylabel '%s'\nset yrange [0:*]\nset xrange [0:*]\nset format y '%%.6g'\nset xlabel ''\n",
      panel->title, value_name);
  if (lowest)
    kv_say(script, "set xlabel 'time since the first arrival (%s)'\n", unit);
  plot_panel(script, panel, p, runs, n_runs, any, scale);
}

static gboolean draw_panels(GString *script, const void *all, guint n_panels,
                            const KvSummary *const *runs, guint n_runs) {
  const Panel *panels = all;
  const char *unit;
  double unit_seconds = time_unit(runs, n_runs, &unit);
  gboolean any[MOST_PANELS][KV_PLOT_RUNS] = {{FALSE}};
  KvMargins margins = {.left = 96, .right = 25, .top = 34, .bottom = 62, .down = 78};
  margins.top += kv_plot_runs_key(NULL, margins.left, WIDTH, 1, runs, n_runs);
  double height =
      margins.top + n_panels * PANEL_HEIGHT + (n_panels - 1) * margins.down + margins.bottom;
  kv_gnuplot_begin(script, WIDTH, (guint)height);
  for (guint p = 0; p < n_panels; p++)
    for (guint r = 0; r < n_runs; r++)
      any[p][r] = write_panel_data(script, &panels[p], p, runs[r], r, unit_seconds);
  kv_gnuplot_panels(script, n_panels, 1, WIDTH, height, &margins);
  kv_plot_runs_key(script, margins.left, WIDTH, height, runs, n_runs);
  for (guint p = 0; p < n_panels; p++) {
    draw_panel(script, &panels[p], p, p + 1 == n_panels, unit, runs, n_runs, any[p]);
    kv_gnuplot_end_key(script, n_runs);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

#define DRAW(name, panels)                                                                         \
  static gboolean name(GString *script, const KvSummary *const *runs, guint n_runs) {              \
    return draw_thinned(draw_panels, script, panels, G_N_ELEMENTS(panels), runs, n_runs);          \
  }

static double per_second(double amount, const KvInterval *interval) {
  return interval->seconds > 0 ? amount / interval->seconds : NAN;
}

static double ttft(const KvInterval *interval, const KvSummary *run) {
  return interval->ttft_count ? interval->ttft_sum / (double)interval->ttft_count : NAN;
}

static double tpot(const KvInterval *interval, const KvSummary *run) {
  return interval->tpot_count ? interval->tpot_sum / (double)interval->tpot_count : NAN;
}

static double running(const KvInterval *interval, const KvSummary *run) {
  return interval->running;
}

static double waiting(const KvInterval *interval, const KvSummary *run) {
  return interval->waiting;
}

static double output_rate(const KvInterval *interval, const KvSummary *run) {
  return per_second(interval->output_tokens, interval);
}

static double prompt_rate(const KvInterval *interval, const KvSummary *run) {
  return per_second(interval->prompt_tokens, interval);
}

static double busy_percent(const KvInterval *interval, const KvSummary *run) {
  double instances = MAX(run->n_instances, 1u);
  return 100 * per_second(interval->busy_seconds, interval) / instances;
}

static double preemptions(const KvInterval *interval, const KvSummary *run) {
  return (double)interval->preemptions;
}

static double copied_GBps(const KvInterval *interval, const KvSummary *run) {
  return per_second(interval->host_bytes + interval->link_bytes, interval) / 1e9;
}

static const Panel latency_panels[] = {
    {"Time to first token (TTFT): mean of the requests that got it then", NULL, ttft, TRUE},
    {"Time per output token (TPOT): mean of the requests that ended then", NULL, tpot, TRUE},
};
DRAW(draw_latency, latency_panels)
const KvPlot kv_plot_latency_time = {
    "latency-time", "TTFT and TPOT over time",
    "Means over short intervals. A TTFT that climbs and does not come back is a queue that grows: more requests arrive "
    "than are served. TPOT rises with the number and the length of the sequences decoded together, and with prompts "
    "computed beside them.",
    draw_latency};

static const Panel sequence_panels[] = {
    {"Running: sequences in the batch", "sequences", running, FALSE},
    {"Waiting: arrived and not yet scheduled, or preempted", "sequences", waiting, FALSE},
};
DRAW(draw_sequences, sequence_panels)
const KvPlot kv_plot_sequences = {
    "sequences", "Running and waiting requests",
    "Where waiting stays at zero, the machine keeps up. Running flat at its top with a queue behind it means that a "
    "limit was reached: the number of sequences, the token budget, or the blocks (next picture).",
    draw_sequences};

static const Panel throughput_panels[] = {
    {"Output tokens generated", "tokens per second", output_rate, FALSE},
    {"Prompt tokens computed", "tokens per second", prompt_rate, FALSE},
};
DRAW(draw_throughput, throughput_panels)
const KvPlot kv_plot_throughput = {
    "throughput", "Throughput over time",
    "Tokens found in the prefix cache need no computing and are not counted among the prompt tokens here.",
    draw_throughput};

static const Panel utilization_panels[] = {
    {"GPU busy", "% of the time", busy_percent, FALSE},
    {"Copied between GPUs and over host links", "GB per second", copied_GBps, FALSE},
    {"Preemptions in each interval", "preemptions", preemptions, FALSE},
};
DRAW(draw_utilization, utilization_panels)
const KvPlot kv_plot_utilization = {
    "utilization", "GPU, links and preemptions over time",
    "A GPU that is busy all the time with a queue behind it is the limit; a GPU that idles while requests wait is held up "
    "by something else, such as copies.",
    draw_utilization};

/* Blocks by state: one stacked panel per run. */

static void write_block_data(GString *script, const KvSummary *run, guint r, double unit_seconds) {
  kv_say(script, "$b%u << EOD\n", r);
  for (guint i = 0; i < n_intervals(run); i++) {
    const KvInterval *interval = &g_array_index(run->timeline, KvInterval, i);
    double held = interval->blocks_held, cached = interval->blocks_cached,
           unused = interval->blocks_free;
    kv_say(script, "%.6g %.6g %.6g %.6g\n", (interval->start_seconds - origin(run)) / unit_seconds,
           held, held + cached, held + cached + unused);
    if (i + 1 == n_intervals(run)) /* steps: close the last one */
      kv_say(script, "%.6g %.6g %.6g %.6g\n",
             (interval->start_seconds - origin(run) + interval->seconds) / unit_seconds, held,
             held + cached, held + cached + unused);
  }
  kv_say(script, "EOD\n");
}

static const char *const state_names[] = {"held by requests",
                                          "cached: free, but still found by prefix", "empty"};
static const char *const state_colours[] = {"#0072b2", "#56b4e9", "#c9d0d6"};

/* Where the axis ends: at all the blocks, unless those in use would be a line at the bottom. */
static double blocks_shown(const KvSummary *run) {
  double used = 0, all = 0;
  for (guint i = 0; i < n_intervals(run); i++) {
    const KvInterval *interval = &g_array_index(run->timeline, KvInterval, i);
    used = MAX(used, interval->blocks_held + interval->blocks_cached);
    all = MAX(all, interval->blocks_held + interval->blocks_cached + interval->blocks_free);
  }
  return used > 0 && used < 0.25 * all ? 1.3 * used : 1.06 * all;
}

static void plot_blocks(GString *script, const KvSummary *run, guint r, gboolean several) {
  g_autofree char *name = kv_plot_run_name(run, 80),
                  *quoted = kv_gnuplot_quote(several ? name : "");
  if (!n_intervals(run)) {
    kv_plot_note(script, several ? name : "", "nothing to show: nothing ran");
    return;
  }
  g_autofree char *all = kv_format_whole(run->total_blocks * MAX(run->n_instances, 1u));
  kv_say(script, "set ylabel 'blocks, of %s'\nset yrange [0:%.8g]\n", all,
         MAX(blocks_shown(run), 1));
  kv_say(script,
         "set title %s\n"
         "plot $b%u using 1:3:4 with filledcurves lc rgb '%s' notitle, \\\n"
         "  $b%u using 1:2:3 with filledcurves lc rgb '%s' notitle, \\\n"
         "  $b%u using 1:2 with filledcurves y1=0 lc rgb '%s' notitle\n",
         quoted, r, state_colours[2], r, state_colours[1], r, state_colours[0]);
}

static gboolean draw_block_panels(GString *script, const void *panels, guint n_panels,
                                  const KvSummary *const *runs, guint n_runs) {
  const char *unit;
  enum { N_STATES = G_N_ELEMENTS(state_names), MOST_RUNS = 4 /* panels that fit a page */ };
  n_runs = MIN(n_runs, (guint)MOST_RUNS);
  double unit_seconds = time_unit(runs, n_runs, &unit), panel = n_runs == 1 ? 280 : PANEL_HEIGHT;
  KvMargins margins = {
      .left = 96, .right = 25, .top = n_runs == 1 ? 14 : 34, .bottom = 62, .down = 78};
  margins.top += kv_gnuplot_key(NULL, margins.left, WIDTH, 1, state_names, state_colours, N_STATES);
  double height = margins.top + n_runs * panel + (n_runs - 1) * margins.down + margins.bottom;
  kv_gnuplot_begin(script, WIDTH, (guint)height);
  for (guint r = 0; r < n_runs; r++)
    write_block_data(script, runs[r], r, unit_seconds);
  kv_gnuplot_panels(script, n_runs, 1, WIDTH, height, &margins);
  kv_gnuplot_key(script, margins.left, WIDTH, height, state_names, state_colours, N_STATES);
  for (guint r = 0; r < n_runs; r++) {
    kv_say(
        script,
        "set style fill solid 1 noborder\nset xrange [0:*]\nset yrange [0:*]\nset format y '%%.0f'\n"
        "set ylabel 'blocks'\n");
    if (r + 1 == n_runs)
      kv_say(script, "set xlabel 'time since the first arrival (%s)'\n", unit);
    plot_blocks(script, runs[r], r, n_runs > 1);
    kv_gnuplot_end_key(script, N_STATES);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

static gboolean draw_blocks(GString *script, const KvSummary *const *runs, guint n_runs) {
  return draw_thinned(draw_block_panels, script, NULL, 0, runs, n_runs);
}

const KvPlot kv_plot_blocks = {
    "blocks", "KV-cache blocks by state",
    "Blocks held by requests cannot be taken away without preempting one. Cached blocks are free to be overwritten, and until "
    "then they serve requests that begin with the same tokens. When held blocks reach the top, requests wait or are "
    "preempted.",
    draw_blocks};
