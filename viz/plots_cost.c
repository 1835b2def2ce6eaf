/* Where time goes and what it is held against: components, roofline, runs side by side. */
#include <math.h>

#include "viz/figures.h"
#include "viz/plots.h"

/* Twelve components: the eight colours, then four paler ones for what is seldom large. */
static const char *const component_colours[KV_N_COMPONENTS] = {
    [KV_COMPONENT_QKV] = "#56b4e9",
    [KV_COMPONENT_PREFILL_ATTENTION] = "#d55e00",
    [KV_COMPONENT_DECODE_ATTENTION] = "#e69f00",
    [KV_COMPONENT_OUTPUT_PROJECTION] = "#009e73",
    [KV_COMPONENT_MLP] = "#0072b2",
    [KV_COMPONENT_ELEMENTWISE] = "#b8a800",
    [KV_COMPONENT_LM_HEAD] = "#7b4f9d",
    [KV_COMPONENT_SAMPLING] = "#c9b6dc",
    [KV_COMPONENT_COMMUNICATION] = "#a8432f",
    [KV_COMPONENT_TECHNIQUE] = "#cc79a7",
    [KV_COMPONENT_TRANSFER] = "#5c4632",
    [KV_COMPONENT_LAUNCH] = "#8a8f98",
};

enum { WIDTH = 900 };

/* Components, one run: bars by size */

static gboolean draw_own_components(GString *script, const KvSummary *run) {
  KvComponent order[KV_N_COMPONENTS];
  double total;
  guint n = kv_components_by_time(run, order, &total);
  kv_gnuplot_begin(script, 900, n ? 90 + 32 * n : 200);
  if (n == 0) {
    kv_plot_note(script, "", "nothing to show: no step was run");
    return TRUE;
  }
  kv_say(script, "$c << EOD\n");
  for (guint i = 0; i < n; i++)
    kv_say(script, "%u %.6g\n", i, 100 * run->component_seconds[order[i]] / total);
  kv_say(script, "EOD\nset ytics () scale 0\n");
  for (guint i = 0; i < n; i++) {
    double percent = 100 * run->component_seconds[order[i]] / total;
    g_autofree char *seconds = kv_format(KV_UNIT_SECONDS, run->component_seconds[order[i]]);
    kv_say(script, "set ytics add ('%s' %u)\n", kv_component_titles[order[i]], i);
    kv_say(
        script,
        "set object %u rect from 0,%.2f to %.6g,%.2f fc rgb '%s' fs solid 0.9 noborder\n"
        "set label %u '%.1f %%   %s' at %.6g,%u left offset character 0.6,0 textcolor rgb '" KV_INK
        "'\n",
        i + 1, i - 0.36, percent, i + 0.36, component_colours[order[i]], i + 1, percent, seconds,
        percent, i);
  }
  kv_say(
      script,
      "set lmargin 23\nset rmargin 4\nset border 0\nset grid noy x\nset xrange [0:%.4g]\nset yrange [%.1f:-0.6]\n"
      "set xlabel 'share of the GPU''s busy time (%%)'\nplot $c using (NaN):1 notitle\n",
      100 * run->component_seconds[order[0]] / total * 1.22, n - 0.4);
  return TRUE;
}

/* Components, several runs: one stacked bar each, GPU time per output token */

static double per_output_token_ms(const KvSummary *run, guint component) {
  return run->output_tokens ? 1e3 * run->component_seconds[component] / (double)run->output_tokens
                            : 0;
}

static gboolean any_component(const KvSummary *const *runs, guint n_runs, guint component) {
  for (guint r = 0; r < n_runs; r++)
    if (per_output_token_ms(runs[r], component) > 0)
      return TRUE;
  return FALSE;
}

static gboolean draw_stacked_components(GString *script, const KvSummary *const *runs,
                                        guint n_runs) {
  guint object = 1;
  double longest = 0;
  const char *names[KV_N_COMPONENTS], *colours[KV_N_COMPONENTS];
  guint n = 0;
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (any_component(runs, n_runs, c)) {
      names[n] = kv_component_titles[c];
      colours[n++] = component_colours[c];
    }
  double left = 190, top = 12 + kv_gnuplot_key(NULL, left, WIDTH, 1, names, colours, n);
  double height = top + 54 * n_runs + 66;
  kv_gnuplot_begin(script, WIDTH, (guint)height);
  kv_gnuplot_key(script, left, WIDTH, height, names, colours, n);
  kv_say(script,
         "set ytics () scale 0\nset lmargin at screen %.4f\nset rmargin at screen 0.97\n"
         "set tmargin at screen %.4f\nset bmargin at screen %.4f\n",
         left / WIDTH, 1 - top / height, 60 / height);
  for (guint r = 0; r < n_runs; r++) {
    double from = 0;
    g_autofree char *name = kv_plot_run_name(runs[r], 22), *quoted = kv_gnuplot_quote(name);
    kv_say(script, "set ytics add (%s %u)\n", quoted, r);
    for (guint c = 0; c < KV_N_COMPONENTS; c++) {
      double ms = per_output_token_ms(runs[r], c);
      if (!(ms > 0))
        continue;
      kv_say(script,
             "set object %u rect from %.8g,%.2f to %.8g,%.2f fc rgb '%s' fs solid 0.9 noborder\n",
             object++, from, r - 0.33, from + ms, r + 0.33, component_colours[c]);
      from += ms;
    }
    kv_say(script,
           "set label %u '%.3g ms' at %.8g,%u left offset character 0.6,0 textcolor rgb '" KV_INK
           "'\n",
           r + 1, from, from, r);
    longest = MAX(longest, from);
  }
  kv_say(script,
         "set border 0\nset grid noy x\nset xrange [0:%.6g]\nset yrange [%.1f:-0.6]\n"
         "set xlabel 'GPU time per output token (ms)'\nset ytics noenhanced\nplot NaN notitle\n",
         longest > 0 ? longest * 1.12 : 1, n_runs - 0.4);
  return TRUE;
}

static gboolean draw_components(GString *script, const KvSummary *const *runs, guint n_runs) {
  return n_runs == 1 ? draw_own_components(script, runs[0])
                     : draw_stacked_components(script, runs, MIN(n_runs, KV_PLOT_RUNS));
}

const KvPlot kv_plot_components = {
    "components", "Where the time of the steps goes",
    "The time that the GPU was busy, by what it did, over the whole run. A technique that shrinks the cache shortens decode "
    "attention alone: this bar says how much there is to win.",
    draw_components};

/* Roofline */

typedef struct {
  double intensity, rate, share; /* FLOP per byte, FLOP per second, of the run's time */
  const char *name, *colour;
} Point;

enum { MOST_POINTS = KV_N_COMPONENTS + 1 };

static gboolean make_point(Point *point, double flops, double bytes, double seconds) {
  if (!(flops > 0 && bytes > 0 && seconds > 0))
    return FALSE;
  point->intensity = flops / bytes;
  point->rate = flops / seconds;
  return TRUE;
}

/* The components that take at least a hundredth of the time, most first, and the whole. */
static guint collect_points(const KvSummary *run, Point points[MOST_POINTS]) {
  KvComponent order[KV_N_COMPONENTS];
  double total;
  guint n = 0, n_components = kv_components_by_time(run, order, &total);
  for (guint i = 0; i < n_components; i++) {
    KvComponent c = order[i];
    Point point = {.share = run->component_seconds[c] / total,
                   .name = kv_component_titles[c],
                   .colour = component_colours[c]};
    if (point.share >= 0.01 && make_point(&point, run->component_flops[c], run->component_bytes[c],
                                          run->component_seconds[c]))
      points[n++] = point;
  }
  Point whole = {.share = 1, .name = "The whole", .colour = KV_INK};
  if (make_point(&whole, run->flops, run->hbm_bytes, total))
    points[n++] = whole;
  return n;
}

typedef struct {
  double x0, x1, y0, y1; /* exponents of ten */
} Range;

static void extend(Range *range, const KvSummary *run, const Point *points, guint n) {
  double ridge = log10(run->peak_flops_rate / run->peak_hbm_Bps), top = log10(run->peak_flops_rate);
  range->x0 = MIN(range->x0, ridge - 2), range->x1 = MAX(range->x1, ridge + 0.8);
  range->y1 = MAX(range->y1, top + 0.35), range->y0 = MIN(range->y0, top - 2);
  for (guint i = 0; i < n; i++) {
    range->x0 = MIN(range->x0, log10(points[i].intensity) - 0.3);
    range->x1 = MAX(range->x1, log10(points[i].intensity) + 0.3);
    range->y0 = MIN(range->y0, log10(points[i].rate) - 0.3);
    range->y1 = MAX(range->y1, log10(points[i].rate) + 0.3);
  }
}

/* log10(1e12): rates are drawn in TFLOP/s */
static const double tera = 12;

static void draw_ceiling(GString *script, const KvSummary *run, const Range *range, guint r,
                         const char *colour) {
  double ridge = log10(run->peak_flops_rate / run->peak_hbm_Bps);
  g_autofree char *bandwidth = kv_format(KV_UNIT_BYTES, run->peak_hbm_Bps);
  g_autofree char *flops = kv_format(KV_UNIT_FLOPS, run->peak_flops_rate);
  kv_say(script, "$ceiling%u << EOD\n%.8g %.8g\n%.8g %.8g\n%.8g %.8g\nEOD\n", r, pow(10, range->x0),
         run->peak_hbm_Bps * pow(10, range->x0 - tera), pow(10, ridge), run->peak_flops_rate / 1e12,
         pow(10, range->x1), run->peak_flops_rate / 1e12);
  if (r > 0)
    return;
  double width = 760,
         height = 400; /* of the axes, in the picture's pixels: the slope to write along */
  double slope =
      atan2(height / (range->y1 - range->y0), width / (range->x1 - range->x0)) * 180 / G_PI;
  double at = range->x0 + 0.12 * (range->x1 - range->x0);
  at = MAX(at, log10(pow(10, range->y0) / run->peak_hbm_Bps) + 0.1 * (range->x1 - range->x0));
  kv_say(
      script,
      "set label 90 '%s/s of arithmetic' at graph 0.985, first %.8g right offset 0,0.7 textcolor rgb '%s'\n"
      "set label 91 '%s/s from HBM' at %.8g,%.8g left rotate by %.1f offset 0,0.8 textcolor rgb '%s'\n",
      flops, run->peak_flops_rate / 1e12, colour, bandwidth, pow(10, at),
      run->peak_hbm_Bps * pow(10, at - tera), slope, colour);
}

/* Names beside points, moved apart where they would overlap: from the top down, each at least a
 * line below the last that stands near it. */
static void draw_names(GString *script, const Point *points, guint n, const Range *range) {
  double line = (range->y1 - range->y0) * 0.047, beside = (range->x1 - range->x0) * 0.27;
  guint order[MOST_POINTS];
  double placed[MOST_POINTS];
  for (guint i = 0; i < n; i++) {
    guint at = i;
    for (; at > 0 && points[order[at - 1]].rate < points[i].rate; at--)
      order[at] = order[at - 1];
    order[at] = i;
  }
  for (guint i = 0; i < n; i++) {
    const Point *point = &points[order[i]];
    double x = log10(point->intensity), y = log10(point->rate);
    gboolean left = x > range->x1 - beside;
    for (guint j = 0; j < i; j++)
      if (fabs(log10(points[order[j]].intensity) - x) < beside && y > placed[j] - line)
        y = placed[j] - line;
    placed[i] = y;
    if (log10(point->rate) - y > line / 2) /* moved: a thin line leads back */
      kv_say(script,
             "set arrow %u from %.8g,%.8g to %.8g,%.8g nohead lw 0.7 lc rgb '" KV_INK "' back\n",
             i + 1, point->intensity, point->rate / 1e12, point->intensity * (left ? 0.9 : 1.11),
             pow(10, y - tera));
    kv_say(script,
           "set label %u '%s  %.0f %%' at %.8g,%.8g %s offset character %s,0 textcolor rgb '" KV_INK
           "'\n",
           i + 1, point->name, 100 * point->share, point->intensity, pow(10, y - tera),
           left ? "right" : "left", left ? "-1.4" : "1.4");
  }
}

static void write_points(GString *script, const Point *points, guint n, guint r) {
  for (guint i = 0; i < n; i++)
    kv_say(script, "$p%u_%u << EOD\n%.8g %.8g\nEOD\n", r, i, points[i].intensity,
           points[i].rate / 1e12);
}

static gboolean has_roofline(const KvSummary *run) {
  return run->peak_flops_rate > 0 && run->peak_hbm_Bps > 0;
}

static void plot_run_points(GString *script, guint r, guint n_runs, const Point *points, guint n) {
  enum { DISC = 7, RING = 6, DIAMOND = 13 };
  for (guint i = 0; i < n; i++) {
    gboolean whole = points[i].share == 1 && i + 1 == n;
    double size = whole ? 1.5 : n_runs > 1 ? 0.6 : 0.6 + 1.4 * sqrt(points[i].share);
    kv_say(script, ", \\\n  $p%u_%u with points pt %u ps %.2f lc rgb '%s' notitle", r, i,
           (guint)(whole        ? DIAMOND
                   : n_runs > 1 ? RING
                                : DISC),
           size, n_runs > 1 ? kv_colours[r] : points[i].colour);
  }
}

static gboolean draw_roofline(GString *script, const KvSummary *const *runs, guint n_runs) {
  Point points[KV_PLOT_RUNS][MOST_POINTS];
  guint n[KV_PLOT_RUNS] = {0}, drawn = 0;
  Range range = {INFINITY, -INFINITY, INFINITY, -INFINITY};
  n_runs = MIN(n_runs, KV_PLOT_RUNS);
  for (guint r = 0; r < n_runs; r++) {
    if (!has_roofline(runs[r]))
      continue;
    n[r] = collect_points(runs[r], points[r]);
    extend(&range, runs[r], points[r], n[r]);
    drawn++;
  }
  if (!drawn)
    return FALSE;
  double top = 20 + kv_plot_runs_key(NULL, 92, WIDTH, 520, runs, n_runs);
  kv_gnuplot_begin(script, WIDTH, 520);
  kv_plot_runs_key(script, 92, WIDTH, 520, runs, n_runs);
  kv_say(script, "set tmargin at screen %.4f\n", 1 - top / 520);
  kv_say(
      script,
      "set logscale xy\nset xrange [%.8g:%.8g]\nset yrange [%.8g:%.8g]\nset format '%%.10g'\nset lmargin 10\n"
      "set xlabel 'arithmetic per byte of HBM traffic (FLOP/byte)'\nset ylabel 'arithmetic done (TFLOP/s)'\n",
      pow(10, range.x0), pow(10, range.x1), pow(10, range.y0 - tera), pow(10, range.y1 - tera));
  for (guint r = 0; r < n_runs; r++) {
    if (!has_roofline(runs[r]))
      continue;
    draw_ceiling(script, runs[r], &range, r, KV_INK);
    write_points(script, points[r], n[r], r);
  }
  if (n_runs == 1)
    draw_names(script, points[0], n[0], &range);
  kv_say(script, "plot NaN notitle");
  for (guint r = 0; r < n_runs; r++)
    if (has_roofline(runs[r]))
      kv_say(script, ", \\\n  $ceiling%u with lines lw 2.2 lc rgb '" KV_INK "' notitle", r);
  for (guint r = 0; r < n_runs; r++)
    plot_run_points(script, r, n_runs, points[r], n[r]);
  kv_say(script, "\n");
  return TRUE;
}

const KvPlot kv_plot_roofline = {
    "roofline", "Position under the roofline of one GPU",
    "Below the slope, memory traffic bounds an operation; below the flat top, arithmetic does. The distance to the line is what "
    "better kernels or fuller batches could win. The diamond is the run as a whole; percentages are shares of busy time.",
    draw_roofline};

/* Runs side by side */

enum { BAR_COLUMNS = 4, BAR_HEIGHT = 140 };

static gboolean any_value(const KvFigure *figure, const KvSummary *const *runs, guint n_runs) {
  for (guint r = 0; r < n_runs; r++)
    if (isfinite(kv_figure_value(figure, runs[r])) && kv_figure_value(figure, runs[r]) != 0)
      return TRUE;
  return FALSE;
}

static void draw_bars(GString *script, const KvFigure *figure, const KvSummary *const *runs,
                      guint n_runs) {
  double most = 0;
  for (guint r = 0; r < n_runs; r++) {
    double value = kv_figure_value(figure, runs[r]);
    g_autofree char *text = kv_format(figure->unit, value);
    if (isfinite(value)) {
      most = MAX(most, value);
      kv_say(script,
             "set object %u rect from %.2f,0 to %.2f,%.8g fc rgb '%s' fs solid 0.9 noborder\n",
             r + 1, r - 0.36, r + 0.36, value, kv_colours[r]);
    } else {
      kv_say(script, "unset object %u\n", r + 1);
    }
    kv_say(script,
           "set label %u \"%s\" at %u,%.8g center offset 0,0.6 font ',%u' textcolor rgb '" KV_INK
           "'\n",
           r + 1, text, r, isfinite(value) ? value : 0, n_runs > 4 ? 9 : 11);
  }
  static const char *const better[] = {"", " (lower is better)", " (higher is better)"};
  kv_say(script,
         "set title \"%s\\n{/=10 %s}\" enhanced\nset yrange [0:%.8g]\nset xrange [-0.6:%.1f]\n",
         figure->label, better[figure->better][0] ? better[figure->better] + 1 : "",
         most > 0 ? most * 1.2 : 1, n_runs - 0.4);
  kv_say(script, "plot NaN notitle\n");
}

static gboolean draw_comparison(GString *script, const KvSummary *const *runs, guint n_runs) {
  const KvFigure *shown[2 * BAR_COLUMNS];
  guint n = 0;
  if (n_runs < 2)
    return FALSE;
  n_runs = MIN(n_runs, KV_PLOT_RUNS);
  for (guint f = 0; f < kv_n_figures && n < G_N_ELEMENTS(shown); f++)
    if (kv_figures[f].bar && any_value(&kv_figures[f], runs, n_runs))
      shown[n++] = &kv_figures[f];
  if (n == 0)
    return FALSE;
  guint rows = (n + BAR_COLUMNS - 1) / BAR_COLUMNS;
  KvMargins margins = {.left = 24, .right = 16, .top = 58, .bottom = 16, .across = 30, .down = 62};
  margins.top += kv_plot_runs_key(NULL, margins.left, WIDTH, 1, runs, n_runs);
  double height = margins.top + rows * BAR_HEIGHT + (rows - 1) * margins.down + margins.bottom;
  kv_gnuplot_begin(script, WIDTH, (guint)height);
  kv_gnuplot_panels(script, rows, BAR_COLUMNS, WIDTH, height, &margins);
  kv_say(script, "unset ytics\nunset xtics\nunset grid\nset border 1\n");
  kv_plot_runs_key(script, margins.left, WIDTH, height, runs, n_runs);
  for (guint f = 0; f < n; f++) {
    draw_bars(script, shown[f], runs, n_runs);
    kv_gnuplot_end_key(script, n_runs);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

const KvPlot kv_plot_comparison = {
    "comparison", "Runs side by side",
    "Each panel is one figure, its bars from zero; the first bar is the baseline.",
    draw_comparison};
