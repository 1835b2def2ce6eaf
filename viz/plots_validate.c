#include "viz/plots_validate.h"

#include <math.h>
#include <string.h>

#include "viz/plots.h"
#include "viz/report_style.h"

enum { WIDTH = 900, HEIGHT = 620, MOST_RUN_PICTURES = 12 };

static const char *const sides[] = {"measured", "predicted"};

static const struct {
  KvLatency latency;
  const char *title;
} panels[] = {{KV_LATENCY_TTFT, "TTFT"}, {KV_LATENCY_TPOT, "TPOT"}, {KV_LATENCY_E2E, "E2E"}};

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* Latencies that are all shorter than a second are drawn in milliseconds. */
static gboolean in_milliseconds(const KvComparison *c, KvLatency latency) {
  const GArray *both[] = {c->run->requests, c->requests};
  for (guint side = 0; side < G_N_ELEMENTS(both); side++)
    for (guint i = 0; i < both[side]->len; i++) {
      double value = g_array_index(both[side], KvMeasuredRequest, i).seconds[latency];
      if (isfinite(value) && value >= 1.0)
        return FALSE;
    }
  return TRUE;
}

/* Data block $SIDE_LATENCY: seconds times `unit`, and share. */
static void write_distribution(GString *script, const GArray *requests, guint side,
                               KvLatency latency, double unit) {
  g_autofree double *values = g_new(double, requests->len + 1);
  guint n = 0;
  for (guint i = 0; i < requests->len; i++) {
    double value = g_array_index(requests, KvMeasuredRequest, i).seconds[latency];
    if (isfinite(value))
      values[n++] = unit * value;
  }
  qsort(values, n, sizeof *values, by_value);
  kv_say(script, "$%s_%s << EOD\n", sides[side], kv_latency_names[latency]);
  for (guint i = 0; i < n; i++)
    kv_say(script, "%.6g %.6g\n", values[i], 100.0 * (i + 1.0) / n);
  kv_say(script, "EOD\n");
}

static void write_levels(GString *script, const KvComparison *c) {
  kv_say(script, "$measured_levels << EOD\n");
  for (guint i = 0; c->run->levels && i < c->run->levels->len; i++) {
    const KvMeasuredLevel *level = &g_array_index(c->run->levels, KvMeasuredLevel, i);
    kv_say(script, "%.6g %.6g %.6g\n", level->seconds, level->running, level->waiting);
  }
  kv_say(script, "EOD\n$predicted_levels << EOD\n");
  guint n = c->summary->timeline->len, stride = MAX(1, n / 400);
  for (guint i = 0; i < n; i += stride) {
    const KvInterval *at = &g_array_index(c->summary->timeline, KvInterval, i);
    kv_say(script, "%.6g %.6g %.6g\n", at->start_seconds, at->running, at->waiting);
  }
  kv_say(script, "EOD\n");
}

static void draw_distribution(GString *script, guint panel, const char *unit) {
  const char *name = kv_latency_names[panels[panel].latency];
  kv_say(script,
         "set title '%s'\nset xrange [0:*]\nset yrange [0:100]\nset xlabel '%s'\nset ylabel "
         "'%s'\nplot $measured_%s using 1:2 with steps lw 2 lc rgb '%s' notitle, $predicted_%s "
         "using 1:2 with steps lw 2 lc rgb '%s' notitle\n",
         panels[panel].title, unit, panel ? "" : "share of requests, %", name, kv_colours[0], name,
         kv_colours[1]);
}

static void draw_level(GString *script, const char *title, guint column) {
  kv_say(script,
         "set title '%s'\nset xrange [0:*]\nset yrange [0:*]\nset xlabel 'seconds'\nset ylabel ''\n"
         "plot $measured_levels using 1:%u with lines lw 2 lc rgb '%s' notitle, $predicted_levels "
         "using 1:%u with lines lw 2 lc rgb '%s' notitle\n",
         title, column, kv_colours[0], column, kv_colours[1]);
}

gboolean kv_validate_run_script(GString *script, const KvComparison *c) {
  enum { ROW_HEIGHT = 330 };
  if (!c->run->requests)
    return FALSE;
  KvMargins margins = {.left = 84, .right = 22, .top = 64, .bottom = 56, .across = 60, .down = 90};
  gboolean milliseconds[G_N_ELEMENTS(panels)], levels = c->run->levels != NULL;
  guint height = levels ? HEIGHT : ROW_HEIGHT;
  kv_gnuplot_begin(script, WIDTH, height);
  for (guint p = 0; p < G_N_ELEMENTS(panels); p++) {
    milliseconds[p] = in_milliseconds(c, panels[p].latency);
    double unit = milliseconds[p] ? 1e3 : 1.0;
    write_distribution(script, c->run->requests, 0, panels[p].latency, unit);
    write_distribution(script, c->requests, 1, panels[p].latency, unit);
  }
  write_levels(script, c);
  kv_gnuplot_panels(script, levels ? 2 : 1, 3, WIDTH, height, &margins);
  kv_gnuplot_key(script, margins.left, WIDTH, height, sides, kv_colours, 2);
  for (guint p = 0; p < G_N_ELEMENTS(panels); p++) {
    draw_distribution(script, p, milliseconds[p] ? "milliseconds" : "seconds");
    if (p == 0)
      kv_gnuplot_end_key(script, 2);
  }
  if (levels) {
    draw_level(script, "running sequences", 2);
    draw_level(script, "waiting sequences", 3);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

/* Axes of a scatter. A logarithmic axis has figures at its decades alone: within one it is linear.
 */
static const char *scale_of(double low, double high) {
  return high < 10.0 * low ? "unset" : "set";
}

/* Figures of the scatter. */
static const struct {
  const char *metric, *statistic, *title;
} scattered[] = {{"ttft", "mean", "mean TTFT, s"},
                 {"tpot", "mean", "mean TPOT, s"},
                 {"output_tokens_per_second", "", "output tokens/s"}};

static guint write_points(GString *script, const GPtrArray *comparisons, guint f, double *low,
                          double *high) {
  guint n = 0;
  kv_say(script, "$points%u << EOD\n", f);
  for (guint i = 0; i < comparisons->len; i++) {
    const KvComparison *c = g_ptr_array_index(comparisons, i);
    for (guint r = 0; r < c->rows->len; r++) {
      const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, r);
      if (strcmp(row->metric, scattered[f].metric) != 0 ||
          strcmp(row->statistic, scattered[f].statistic) != 0 || row->measured <= 0.0 ||
          row->predicted <= 0.0)
        continue;
      kv_say(script, "%.6g %.6g\n", row->measured, row->predicted);
      *low = MIN(*low, MIN(row->measured, row->predicted));
      *high = MAX(*high, MAX(row->measured, row->predicted));
      n++;
    }
  }
  kv_say(script, "EOD\n");
  return n;
}

gboolean kv_validate_scatter_script(GString *script, const GPtrArray *comparisons) {
  enum { SCATTER_HEIGHT = 380 };
  KvMargins margins = {.left = 80, .right = 30, .top = 40, .bottom = 62, .across = 80};
  double low[G_N_ELEMENTS(scattered)], high[G_N_ELEMENTS(scattered)];
  guint n[G_N_ELEMENTS(scattered)];
  if (comparisons->len < 2)
    return FALSE;
  kv_gnuplot_begin(script, WIDTH, SCATTER_HEIGHT);
  for (guint f = 0; f < G_N_ELEMENTS(scattered); f++) {
    low[f] = INFINITY, high[f] = 0.0;
    n[f] = write_points(script, comparisons, f, &low[f], &high[f]);
  }
  kv_gnuplot_panels(script, 1, G_N_ELEMENTS(scattered), WIDTH, SCATTER_HEIGHT, &margins);
  for (guint f = 0; f < G_N_ELEMENTS(scattered); f++) {
    if (n[f] == 0) {
      kv_plot_note(script, scattered[f].title, "no figure");
      continue;
    }
    kv_say(script,
           "set title '%s'\n%s logscale xy\nset xrange [%.6g:%.6g]\nset yrange [%.6g:%.6g]\nset "
           "xlabel 'measured'\nset ylabel '%s'\nplot x with lines lc rgb '" KV_INK
           "' notitle, 1.1*x with lines dt 3 lc rgb '" KV_INK
           "' notitle, x/1.1 with lines dt 3 lc rgb '" KV_INK
           "' notitle, $points%u using 1:2 with points pt 7 ps 0.4 lc rgb '%s' notitle\n",
           scattered[f].title, scale_of(low[f], high[f]), low[f] / 1.2, high[f] * 1.2, low[f] / 1.2,
           high[f] * 1.2, f ? "" : "predicted", f, kv_colours[0]);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

/* Data block $stepsK of kind K's points, in ms; widens the range. */
static guint write_steps(GString *script, const KvStepLog *log, KvStepKind kind, double *low,
                         double *high) {
  guint n = 0;
  kv_say(script, "$steps%u << EOD\n", kind);
  for (guint i = 0; i < log->steps->len; i++) {
    const KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
    if (kv_logged_step_kind(step) != kind || step->measured_seconds <= 0.0)
      continue;
    kv_say(script, "%.6g %.6g\n", 1e3 * step->measured_seconds, 1e3 * step->predicted_seconds);
    *low = MIN(*low, 1e3 * MIN(step->measured_seconds, step->predicted_seconds));
    *high = MAX(*high, 1e3 * MAX(step->measured_seconds, step->predicted_seconds));
    n++;
  }
  kv_say(script, "EOD\n");
  return n;
}

gboolean kv_validate_steps_script(GString *script, const KvStepLog *log) {
  enum { STEPS_HEIGHT = 380 };
  KvMargins margins = {.left = 80, .right = 30, .top = 40, .bottom = 62, .across = 80};
  double low[KV_N_STEP_KINDS], high[KV_N_STEP_KINDS];
  guint n[KV_N_STEP_KINDS];
  if (log->steps->len == 0)
    return FALSE;
  kv_gnuplot_begin(script, WIDTH, STEPS_HEIGHT);
  for (guint k = 0; k < KV_N_STEP_KINDS; k++) {
    low[k] = INFINITY, high[k] = 0.0;
    n[k] = write_steps(script, log, k, &low[k], &high[k]);
  }
  kv_gnuplot_panels(script, 1, KV_N_STEP_KINDS, WIDTH, STEPS_HEIGHT, &margins);
  for (guint k = 0; k < KV_N_STEP_KINDS; k++) {
    if (n[k] == 0) {
      kv_plot_note(script, kv_step_kind_names[k], "none");
      continue;
    }
    kv_say(script,
           "set title '%s, ms'\n%s logscale xy\nset xrange [%.6g:%.6g]\nset yrange "
           "[%.6g:%.6g]\nset xlabel 'measured'\nset ylabel '%s'\nplot x with lines lc rgb '" KV_INK
           "' notitle, 1.1*x with lines dt 3 lc rgb '" KV_INK
           "' notitle, x/1.1 with lines dt 3 lc rgb '" KV_INK
           "' notitle, $steps%u using 1:2 with points pt 7 ps 0.3 lc rgb '%s' notitle\n",
           kv_step_kind_names[k], scale_of(low[k], high[k]), low[k] / 1.1, high[k] * 1.1,
           low[k] / 1.1, high[k] * 1.1, k ? "" : "predicted", k, kv_colours[0]);
  }
  kv_say(script, "unset multiplot\n");
  return TRUE;
}

static void text(GString *html, const char *open, const char *plain, const char *close) {
  g_autofree char *escaped = g_markup_escape_text(plain, -1);
  g_string_append_printf(html, "%s%s%s\n", open, escaped, close);
}

/* The picture of `script`, or why it is missing; the script is freed. */
static void figure(GString *html, GString *script, const char *id, const char *caption) {
  const char *const scripts[] = {script->str};
  KvDrawing drawing = {0};
  kv_gnuplot_draw(scripts, 1, &drawing);
  g_autofree char *svg = drawing.svg ? kv_gnuplot_tidy(drawing.svg, id, caption) : NULL;
  g_string_append(html, "<figure>\n");
  if (svg)
    g_string_append(html, svg);
  else
    text(html, "<p>picture missing: ", drawing.reason ? drawing.reason : "not drawn", "</p>");
  text(html, "<figcaption>", caption, "</figcaption></figure>");
  g_free(drawing.svg);
  g_free(drawing.reason);
  g_string_free(script, TRUE);
}

static void write_run(GString *html, const KvComparison *c, guint index) {
  GString *script = g_string_new(NULL);
  g_autofree char *id = g_strdup_printf("run-%u", index);
  if (kv_validate_run_script(script, c))
    figure(html, script, id, c->run->name);
  else
    g_string_free(script, TRUE);
  g_autofree char *table = kv_comparison_table(c);
  text(html, "<section><pre>", table, "</pre></section>");
}

static void write_log(GString *html, const KvStepLog *log, guint index) {
  GString *script = g_string_new(NULL);
  if (kv_validate_steps_script(script, log))
    figure(
        html, script, "steps",
        "Every step: on the line the prediction is exact, within the dotted ones it is off by at "
        "most a tenth.");
  else
    g_string_free(script, TRUE);
  g_autofree char *table = kv_step_log_table(log, FALSE);
  text(html, "<section><pre>", table, "</pre></section>");
}

gboolean kv_validate_report_write(const KvRunDirectory *directory, const GPtrArray *comparisons,
                                  const GPtrArray *logs, GError **error) {
  g_autoptr(GString) html = g_string_new(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>kvsim validate"
      "</title>\n<style>" KV_REPORT_STYLE "</style></head><body><main>\n"
      "<p class=\"eyebrow\">kvsim &middot; validation</p><h1>Predicted beside measured</h1>\n");
  for (guint i = 0; i < logs->len; i++)
    write_log(html, g_ptr_array_index(logs, i), i);
  g_autoptr(GArray) accuracy = kv_accuracy_collect(comparisons, FALSE);
  g_autofree char *table = kv_accuracy_table(accuracy, FALSE);
  GString *scatter = g_string_new(NULL);
  if (kv_validate_scatter_script(scatter, comparisons))
    figure(html, scatter, "scatter",
           "Every run: on the line the prediction is exact, within the "
           "dotted ones it is off by at most a tenth.");
  else
    g_string_free(scatter, TRUE);
  if (comparisons->len > 0)
    text(html, "<section><pre>", table, "</pre></section>");
  for (guint i = 0, drawn = 0; i < comparisons->len && drawn < MOST_RUN_PICTURES; i++) {
    const KvComparison *c = g_ptr_array_index(comparisons, i);
    if (c->run->requests || comparisons->len <= MOST_RUN_PICTURES) {
      write_run(html, c, i);
      drawn++;
    }
  }
  g_string_append(html, "</main></body></html>\n");
  json_t *runs = json_array();
  for (guint i = 0; i < comparisons->len; i++)
    json_array_append_new(runs, kv_comparison_to_json(g_ptr_array_index(comparisons, i)));
  g_autofree char *json = json_dumps(runs, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
  json_decref(runs);
  g_autofree char *page = kv_run_directory_file(directory, "report.html");
  g_autofree char *data = kv_run_directory_file(directory, "comparisons.json");
  return kv_output_write_file(page, html->str, (gssize)html->len, error) &&
         kv_output_write_file(data, json, -1, error);
}
