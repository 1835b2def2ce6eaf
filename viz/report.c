#include "viz/viz.h"

#include <math.h>
#include <string.h>

#include "viz/figures.h"
#include "viz/gnuplot.h"
#include "viz/report_style.h"
#include "viz/words.h"

/* Everything that comes from outside is written through this. */
static void text(GString *html, const char *plain) {
  g_autofree char *valid = g_utf8_make_valid(plain ? plain : "", -1);
  g_autofree char *escaped = g_markup_escape_text(valid, -1);
  g_string_append(html, escaped);
}

/* <tag attributes>text</tag>; `open` is "tag attributes". */
static void element(GString *html, const char *open, const char *plain) {
  g_autofree char *tag = g_strndup(open, strcspn(open, " "));
  g_string_append_printf(html, "<%s>", open);
  text(html, plain);
  g_string_append_printf(html, "</%s>\n", tag);
}

static void element_value(GString *html, const char *open, KvUnit unit, double value) {
  g_autofree char *said = kv_format(unit, value);
  element(html, open, said);
}

static const char *label_of(const KvSummary *run) {
  return run->label && *run->label ? run->label : "default";
}

static char *trace_of(const KvSummary *run) {
  return g_path_get_basename(run->trace && *run->trace ? run->trace : "-");
}

static char *title_of(const KvSummary *const *runs, guint n_runs) {
  g_autofree char *where = kv_words_platform(runs[0]), *trace = trace_of(runs[0]);
  return n_runs == 1 ? g_strdup_printf("%s on %s", runs[0]->model ? runs[0]->model : "?", where)
                     : g_strdup_printf("%u runs of %s", n_runs, trace);
}

static void write_tags(GString *html, const KvSummary *run) {
  g_autofree char *trace = trace_of(run);
  g_string_append(html, "<p class=\"tags\">");
  element(html, "span", trace);
  element(html, "span", label_of(run));
  element(html, "span", run->executor ? run->executor : "model");
  element(html, run->calibrated ? "span" : "span class=\"caution\"",
          run->calibrated ? "calibrated" : "uncalibrated: data-sheet figures");
  g_string_append(html, "</p>\n");
}

static void write_header(GString *html, const KvSummary *const *runs, guint n_runs) {
  g_autofree char *title = title_of(runs, n_runs), *headline = kv_words_headline(runs[0]);
  g_string_append(html, "<header>\n");
  element(html, "p class=\"eyebrow\"",
          n_runs == 1 ? "kvsim \302\267 report of a run" : "kvsim \302\267 comparison");
  element(html, "h1", title);
  if (n_runs == 1) {
    element(html, "p class=\"headline\"", headline);
    write_tags(html, runs[0]);
  } else {
    g_string_append(html, "<ol class=\"runs\">\n");
    for (guint r = 0; r < n_runs; r++) {
      g_autofree char *change = r ? kv_words_change(runs[0], runs[r]) : g_strdup("the baseline");
      g_autofree char *own = kv_words_headline(runs[r]);
      g_string_append_printf(html, "<li><i style=\"background:%s\"></i><b>",
                             kv_colours[r % KV_N_COLOURS]);
      text(html, label_of(runs[r]));
      g_string_append(html, "</b>: ");
      text(html, change);
      element(html, "small", own);
      g_string_append(html, "</li>\n");
    }
    g_string_append(html, "</ol>\n");
  }
  g_string_append(html, "</header>\n");
}

static void write_notes(GString *html, const char *const *notes) {
  if (!notes || !notes[0])
    return;
  g_string_append(html, "<aside class=\"notes\">\n");
  for (guint i = 0; notes[i]; i++)
    element(html, "p", notes[i]);
  g_string_append(html, "</aside>\n");
}

typedef struct {
  const char *title;
  KvUnit unit;
  gsize offset;
  int latency;        /* -1: none */
  const char *beside; /* the second value, at the @ */
  KvUnit beside_unit;
  gsize beside_offset;
  const char *measure; /* after the value */
} Card;

#define AT(field) G_STRUCT_OFFSET(KvSummary, field)
#define LATENCY_CARD(title, of)                                                                    \
  {                                                                                                \
    title, KV_UNIT_SECONDS, AT(latency[of].p50), of, "p99 @", KV_UNIT_SECONDS,                     \
        AT(latency[of].p99), ""                                                                    \
  }

static const Card cards[] = {
    LATENCY_CARD("TTFT, median", KV_LATENCY_TTFT),
    LATENCY_CARD("TPOT, median", KV_LATENCY_TPOT),
    LATENCY_CARD("E2E, median", KV_LATENCY_E2E),
    {"Output", KV_UNIT_NONE, AT(output_tokens_per_second), -1, "@ requests/s", KV_UNIT_NONE,
     AT(requests_per_second), " tokens/s"},
    {"Goodput", KV_UNIT_NONE, AT(goodput_requests_per_second), -1, "@ within the SLO",
     KV_UNIT_SHARE, AT(slo_attainment), " requests/s"},
    {"Prefix hits", KV_UNIT_SHARE, AT(prefix_hit_ratio), -1, "@ from lower tiers", KV_UNIT_SHARE,
     AT(lower_tier_hit_ratio), ""},
    {"KV blocks held, mean", KV_UNIT_SHARE, AT(mean_blocks_held_share), -1, "peak @", KV_UNIT_SHARE,
     AT(peak_blocks_held_share), ""},
    {"GPU busy", KV_UNIT_SHARE, AT(busy_share), -1, "MBU @", KV_UNIT_SHARE, AT(mbu), ""},
    {"Energy", KV_UNIT_JOULES, AT(energy_joules), -1, "@ per output token", KV_UNIT_JOULES,
     AT(energy_joules_per_output_token), ""},
    {"Money", KV_UNIT_USD, AT(cost_usd), -1, "@ per million output tokens", KV_UNIT_USD,
     AT(usd_per_million_output_tokens), ""},
};

static void write_cards(GString *html, const KvSummary *run) {
  g_string_append(html, "<section class=\"cards\">\n");
  for (guint i = 0; i < G_N_ELEMENTS(cards); i++) {
    const Card *card = &cards[i];
    gboolean of_slo = card->offset == AT(goodput_requests_per_second);
    if (of_slo && !kv_summary_has_slo(run))
      continue;
    gboolean absent = card->latency >= 0 && run->latency[card->latency].n == 0;
    double value = absent ? NAN : *(const double *)G_STRUCT_MEMBER_P(run, card->offset);
    double beside = absent ? NAN : *(const double *)G_STRUCT_MEMBER_P(run, card->beside_offset);
    g_autofree char *said = kv_format(card->unit, value),
                    *also = kv_format(card->beside_unit, beside);
    GString *line = g_string_new(card->beside);
    g_string_replace(line, "@", also, 0);
    g_string_append(html, "<div>");
    element(html, "h3", card->title);
    g_string_append(html, "<p>");
    text(html, said);
    element(html, "small", card->measure);
    g_string_append(html, "</p>");
    element(html, "span", line->str);
    g_string_free(line, TRUE);
    g_string_append(html, "</div>\n");
  }
  g_string_append(html, "</section>\n");
}

static void write_explanation(GString *html, const KvSummary *run, gboolean several) {
  g_autofree char *limit = kv_words_limit(run);
  g_auto(GStrv) sentences = kv_words_explain(run);
  g_string_append(html, "<section class=\"limit\">\n");
  if (several)
    element(html, "p class=\"eyebrow\"", label_of(run));
  element(html, "h2", limit);
  g_string_append(html, "<p>");
  for (guint i = 0; sentences[i]; i++) {
    text(html, sentences[i]);
    g_string_append(html, " ");
  }
  g_string_append(html, "</p>\n</section>\n");
}

static void write_latency_table(GString *html, const KvSummary *run) {
  static const char *const heads[] = {"mean", "p50", "p90", "p95", "p99", "min", "max"};
  g_string_append(html,
                  "<section><h2>Latencies</h2>\n<div class=\"wide\"><table>\n<thead><tr><th></th>");
  for (guint i = 0; i < G_N_ELEMENTS(heads); i++)
    element(html, "th", heads[i]);
  g_string_append(html, "<th>samples</th></tr></thead>\n<tbody>\n");
  for (guint l = 0; l < KV_N_LATENCIES; l++) {
    const KvDistribution *d = &run->latency[l];
    const double values[] = {d->mean, d->p50, d->p90, d->p95, d->p99, d->min, d->max};
    g_string_append(html, "<tr>");
    element(html, "th", kv_latency_titles[l]);
    for (guint i = 0; i < G_N_ELEMENTS(values); i++)
      element_value(html, "td", KV_UNIT_SECONDS, d->n ? values[i] : NAN);
    element_value(html, "td", KV_UNIT_COUNT, (double)d->n);
    g_string_append(html, "</tr>\n");
  }
  g_string_append(html, "</tbody></table></div></section>\n");
}

static void write_figure_row(GString *html, const KvFigure *figure, const KvSummary *const *runs,
                             guint n_runs) {
  static const char *const classes[] = {"td class=\"bad\"", "td class=\"same\"",
                                        "td class=\"good\""};
  double baseline = kv_figure_value(figure, runs[0]);
  g_string_append(html, "<tr>");
  element(html, "th", figure->label);
  for (guint r = 0; r < n_runs; r++) {
    double value = kv_figure_value(figure, runs[r]);
    element_value(html, "td", figure->unit, value);
    if (r == 0)
      continue;
    g_autofree char *change = kv_format_change(figure->unit, value, baseline);
    element(html, classes[1 + kv_figure_judge(figure, value, baseline)], change);
  }
  g_string_append(html, "</tr>\n");
}

static void write_figures_table(GString *html, const KvSummary *const *runs, guint n_runs) {
  const char *group = "";
  g_string_append(html, "<section><h2>All figures</h2>\n<div class=\"wide\"><table>\n");
  if (n_runs > 1) {
    g_string_append(html, "<thead><tr><th></th>");
    for (guint r = 0; r < n_runs; r++)
      element(html, r ? "th colspan=\"2\"" : "th", label_of(runs[r]));
    g_string_append(html, "</tr></thead>\n");
  }
  g_string_append(html, "<tbody>\n");
  for (guint f = 0; f < kv_n_figures; f++) {
    if (strcmp(group, kv_figures[f].group) != 0) {
      g_autofree char *open = g_strdup_printf("th colspan=\"%u\"", 2 * n_runs);
      group = kv_figures[f].group;
      g_string_append(html, "<tr class=\"group\">");
      element(html, open, group);
      g_string_append(html, "</tr>\n");
    }
    write_figure_row(html, &kv_figures[f], runs, n_runs);
  }
  g_string_append(html, "</tbody></table></div></section>\n");
}

/* An SVG file's root element for use inside the page: the page says what language it is in, so
 * names of name spaces can go, and with them every address. */
static char *inline_svg(const char *svg) {
  static const char *const spaces[] = {" xmlns=\"http://www.w3.org/2000/svg\"",
                                       " xmlns:xlink=\"http://www.w3.org/1999/xlink\""};
  GString *inlined = g_string_new(svg);
  for (guint i = 0; i < G_N_ELEMENTS(spaces); i++)
    g_string_replace(inlined, spaces[i], "", 0);
  return g_string_free(inlined, FALSE);
}

static void write_plots(GString *html, const KvRunDirectory *directory) {
  g_string_append(html, "<section class=\"plots\">\n");
  for (guint i = 0; kv_plots[i]; i++) {
    const KvPlot *plot = kv_plots[i];
    g_autofree char *name = g_strconcat(plot->id, ".svg", NULL);
    g_autofree char *path = kv_run_directory_file(directory, name), *svg = NULL;
    if (!g_file_get_contents(path, &svg, NULL, NULL))
      continue;
    g_autofree char *inlined = inline_svg(svg);
    g_string_append(html, "<figure>\n");
    element(html, "h2", plot->title);
    g_string_append(html, inlined);
    element(html, "figcaption", plot->caption);
    g_string_append(html, "</figure>\n");
  }
  g_string_append(html, "</section>\n");
}

static const struct {
  const char *term, *meaning;
} definitions[] = {
    {"Queueing", "from a request's arrival to the step that first computes any of it"},
    {"TTFT",
     "time to first token: from the arrival to the end of the step that gives the first output token"},
    {"TPOT",
     "time per output token: (last token \342\210\222 first token) / (output tokens \342\210\222 1), per request; "
     "requests with one output token have none"},
    {"ITL",
     "inter-token latency: every gap between successive tokens of a request, all requests pooled; its percentiles "
     "come from a histogram with cells 0.5 % wide"},
    {"E2E", "from the arrival to the last token"},
    {"p50, p90, p99",
     "the value that this share of samples does not exceed, interpolated linearly between samples"},
    {"Throughput",
     "requests finished, or tokens sampled, over the time from the first arrival to the last token"},
    {"Goodput", "finished requests that met every objective set, per second of the same time"},
    {"Prefix hits",
     "prompt tokens found in the prefix cache when the request was first admitted, over all prompt tokens "
     "looked up"},
    {"Blocks held",
     "blocks that running requests use, of all blocks; time-weighted mean, and peak"},
    {"Fragmentation", "share of the held blocks' space that holds no token, time-weighted"},
    {"GPU busy", "time in which a step was running, of the time span, over all GPUs"},
    {"MFU", "FLOPs done, of what the GPU could have done at its peak while busy"},
    {"MBU", "bytes of HBM traffic, of what the GPU could have moved at its peak while busy"},
    {"Energy", "GPUs and their share of the hosts, with the facility's overhead (PUE)"},
    {"Money", "GPU hours of the time span at the scenario's price"},
    {"Quality",
     "relative change of published task results at the stack's settings, interpolated only between a "
     "paper's own points; negative is worse"},
};

static void write_definitions(GString *html) {
  g_string_append(html, "<details><summary>What the metrics mean</summary>\n<dl>\n");
  for (guint i = 0; i < G_N_ELEMENTS(definitions); i++) {
    element(html, "dt", definitions[i].term);
    element(html, "dd", definitions[i].meaning);
  }
  g_string_append(html, "</dl></details>\n");
}

/* What each stack does to answers, and who says so. */
static void write_quality(GString *html, const KvSummary *const *runs, guint n_runs) {
  gboolean any = FALSE;
  for (guint r = 0; r < n_runs; r++)
    any |= runs[r]->quality_detail && *runs[r]->quality_detail;
  if (!any)
    return;
  g_string_append(html, "<section><h2>Quality of answers</h2>\n<dl>\n");
  for (guint r = 0; r < n_runs; r++) {
    element(html, "dt", label_of(runs[r]));
    g_autofree char *said = g_strdup_printf("%s. %s", runs[r]->quality ? runs[r]->quality : "",
                                            runs[r]->quality_detail ? runs[r]->quality_detail : "");
    element(html, "dd", said);
  }
  g_string_append(html, "</dl></section>\n");
}

static char *page(const KvRunDirectory *directory, const KvSummary *const *runs, guint n_runs,
                  const char *scenario_json, const char *const *notes) {
  GString *html =
      g_string_new("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                   "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
  g_autofree char *title = title_of(runs, n_runs);
  element(html, "title", title);
  g_string_append(html, "<style>\n" KV_REPORT_STYLE "</style>\n</head>\n<body>\n<main>\n");
  write_header(html, runs, n_runs);
  write_notes(html, notes);
  if (n_runs == 1)
    write_cards(html, runs[0]);
  for (guint r = 0; r < n_runs; r++)
    write_explanation(html, runs[r], n_runs > 1);
  write_plots(html, directory);
  if (n_runs == 1)
    write_latency_table(html, runs[0]);
  write_figures_table(html, runs, n_runs);
  write_quality(html, runs, n_runs);
  write_definitions(html);
  if (scenario_json) {
    g_string_append(html, "<details><summary>The scenario, complete</summary>\n");
    element(html, "pre", scenario_json);
    g_string_append(html, "</details>\n");
  }
  g_string_append(html, "</main>\n</body>\n</html>\n");
  return g_string_free(html, FALSE);
}

gboolean kv_report_write(const KvRunDirectory *directory, const KvSummary *const *runs,
                         guint n_runs, const char *scenario_json, const char *const *notes,
                         GError **error) {
  g_return_val_if_fail(directory && runs && n_runs > 0, FALSE);
  g_autofree char *path = kv_run_directory_file(directory, "report.html");
  g_autofree char *html = page(directory, runs, n_runs, scenario_json, notes);
  return kv_output_write_file(path, html, -1, error);
}
