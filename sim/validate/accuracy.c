/* What comparisons say together, and how they are printed. */
#include <math.h>
#include <string.h>

#include "sim/base/format.h"
#include "sim/validate/comparison.h"

typedef struct {
  KvAccuracy accuracy;
  GArray *errors; /* of double, signed */
} Group;

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double middle(GArray *values, double share) {
  g_array_sort(values, by_value);
  return g_array_index(values, double, (guint)(share * (values->len - 1.0) + 0.5));
}

static Group *group_of(GPtrArray *groups, const char *kind, const KvComparisonRow *row) {
  for (guint g = 0; g < groups->len; g++) {
    Group *group = g_ptr_array_index(groups, g);
    if (strcmp(group->accuracy.kind, kind) == 0 &&
        strcmp(group->accuracy.metric, row->metric) == 0 &&
        strcmp(group->accuracy.statistic, row->statistic) == 0)
      return group;
  }
  Group *group = g_new0(Group, 1);
  group->accuracy = (KvAccuracy){.kind = kind, .metric = row->metric, .statistic = row->statistic};
  group->errors = g_array_new(FALSE, FALSE, sizeof(double));
  g_ptr_array_add(groups, group);
  return group;
}

static void finish_group(Group *group, GArray *to) {
  KvAccuracy *a = &group->accuracy;
  a->n = group->errors->len;
  a->bias = middle(group->errors, 0.5);
  for (guint i = 0; i < group->errors->len; i++)
    g_array_index(group->errors, double, i) = fabs(g_array_index(group->errors, double, i));
  a->median = middle(group->errors, 0.5);
  a->p95 = middle(group->errors, 0.95);
  g_array_append_val(to, *a);
  g_array_unref(group->errors);
  g_free(group);
}

GArray *kv_accuracy_collect(const GPtrArray *comparisons, gboolean by_group) {
  g_autoptr(GPtrArray) groups = g_ptr_array_new();
  for (guint i = 0; i < comparisons->len; i++) {
    const KvComparison *c = g_ptr_array_index(comparisons, i);
    for (guint r = 0; r < c->rows->len; r++) {
      const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, r);
      double error = kv_comparison_error(row);
      if (isfinite(error))
        g_array_append_val(group_of(groups, by_group ? c->run->group : c->run->kind, row)->errors,
                           error);
    }
  }
  GArray *accuracy = g_array_new(FALSE, FALSE, sizeof(KvAccuracy));
  for (guint g = 0; g < groups->len; g++)
    finish_group(g_ptr_array_index(groups, g), accuracy);
  return accuracy;
}

char *kv_accuracy_table(const GArray *accuracy, gboolean markdown) {
  GString *text = g_string_new(
      markdown
          ? "| kind | figure | n | median | p95 | bias |\n|---|---|---:|---:|---:|---:|\n"
          : "  kind           figure                              n    median       p95      bias\n");
  for (guint i = 0; i < accuracy->len; i++) {
    const KvAccuracy *a = &g_array_index(accuracy, KvAccuracy, i);
    g_autofree char *figure = g_strdup_printf("%s %s", a->metric, a->statistic);
    g_string_append_printf(text,
                           markdown ? "| %s | %s | %u | %.1f %% | %.1f %% | %+.1f %% |\n"
                                    : "  %-14s %-30s %6u %7.1f %% %7.1f %% %+7.1f %%\n",
                           a->kind, g_strchomp(figure), a->n, 100.0 * a->median, 100.0 * a->p95,
                           100.0 * a->bias);
  }
  return g_string_free(text, FALSE);
}

/* "+1.2 %"; "-" of what was nothing, as nobody can say how far off it is. */
static char *signed_percent(double share) {
  return isfinite(share) ? g_strdup_printf("%+.1f %%", 100.0 * share) : g_strdup("-");
}

static char *in_unit(const KvComparisonRow *row, double value) {
  gboolean seconds = *row->statistic || strcmp(row->metric, "makespan") == 0;
  return seconds ? kv_format_seconds(value) : kv_format_count(value);
}

char *kv_comparison_table(const KvComparison *c) {
  GString *text = g_string_new(NULL);
  g_string_append_printf(text, "%s%s\n  %s\n\n  %-32s %12s %12s %9s\n", c->run->name,
                         c->summary->calibrated ? "" : " (uncalibrated)", c->run->source, "figure",
                         "measured", "predicted", "error");
  for (guint r = 0; r < c->rows->len; r++) {
    const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, r);
    g_autofree char *measured = in_unit(row, row->measured);
    g_autofree char *predicted = in_unit(row, row->predicted);
    g_autofree char *figure = g_strdup_printf("%s %s", row->metric, row->statistic);
    g_autofree char *error = signed_percent(kv_comparison_error(row));
    g_string_append_printf(text, "  %-32s %12s %12s %9s\n", figure, g_strstrip(measured),
                           g_strstrip(predicted), error);
  }
  for (guint l = 0; l < KV_N_LATENCIES; l++)
    if (isfinite(c->agreement[l].ks) && isfinite(c->agreement[l].median_error))
      g_string_append_printf(text, "  %-6s KS distance %.3f, median error of a request %.1f %%\n",
                             kv_latency_names[l], c->agreement[l].ks,
                             100.0 * c->agreement[l].median_error);
  if (isfinite(c->running_rms))
    g_string_append_printf(text, "  running and waiting apart by %.1f and %.1f sequences (rms)\n",
                           c->running_rms, c->waiting_rms);
  return g_string_free(text, FALSE);
}

json_t *kv_comparison_to_json(const KvComparison *c) {
  json_t *rows = json_array(), *agreement = json_object();
  for (guint r = 0; r < c->rows->len; r++) {
    const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, r);
    json_array_append_new(rows, json_pack("{s:s, s:s, s:f, s:f}", "metric", row->metric,
                                          "statistic", row->statistic, "measured", row->measured,
                                          "predicted", row->predicted));
  }
  for (guint l = 0; l < KV_N_LATENCIES; l++)
    if (isfinite(c->agreement[l].ks) && isfinite(c->agreement[l].median_error))
      json_object_set_new(agreement, kv_latency_names[l],
                          json_pack("{s:f, s:f}", "ks_distance", c->agreement[l].ks,
                                    "median_request_error", c->agreement[l].median_error));
  json_t *root =
      json_pack("{s:s, s:s, s:s, s:b, s:o, s:o, s:o}", "kind", c->run->kind, "name", c->run->name,
                "source", c->run->source, "calibrated", c->summary->calibrated, "rows", rows,
                "agreement", agreement, "scenario", kv_scenario_to_json(c->run->scenario));
  if (isfinite(c->running_rms))
    json_object_set_new(
        root, "levels_rms",
        json_pack("{s:f, s:f}", "running", c->running_rms, "waiting", c->waiting_rms));
  return root;
}

/* A run that belongs to a sweep of rates: others of its group are in open loop too. */
static gboolean in_sweep(const KvComparison *c, const GPtrArray *comparisons) {
  guint n = 0;
  if (c->run->scenario->arrivals == KV_ARRIVE_CLOSED)
    return FALSE;
  for (guint i = 0; i < comparisons->len; i++)
    n += strcmp(((const KvComparison *)g_ptr_array_index(comparisons, i))->run->group,
                c->run->group) == 0;
  return n > 1;
}

static const KvComparisonRow *row_of(const KvComparison *c, const char *metric,
                                     const char *statistic) {
  for (guint r = 0; r < c->rows->len; r++) {
    const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, r);
    if (strcmp(row->metric, metric) == 0 && strcmp(row->statistic, statistic) == 0)
      return row;
  }
  return NULL;
}

/* A line for each run of a sweep: what was measured, and the errors. */
static void write_sweeps(GString *text, const GPtrArray *comparisons) {
  static const struct {
    const char *heading, *metric, *statistic;
    gboolean with_value;
  } columns[] = {
      {"TTFT mean", "ttft", "mean", TRUE}, {"TTFT p50", "ttft", "p50", TRUE},
      {"TTFT p99", "ttft", "p99", TRUE},   {"TPOT mean", "tpot", "mean", TRUE},
      {"E2E mean", "e2e", "mean", TRUE},   {"E2E p50", "e2e", "p50", TRUE},
      {"E2E p99", "e2e", "p99", TRUE},     {"requests/s", "requests_per_second", "", FALSE},
      {"makespan", "makespan", "", FALSE},
  };
  g_string_append(text,
                  "\n## Sweeps, rate by rate\n\nMeasured, and the prediction's error.\n\n| run |");
  for (guint k = 0; k < G_N_ELEMENTS(columns); k++)
    g_string_append_printf(text, " %s |", columns[k].heading);
  g_string_append(text, " KS of TTFT, E2E |\n|---|");
  for (guint k = 0; k <= G_N_ELEMENTS(columns); k++)
    g_string_append(text, "---:|");
  g_string_append_c(text, '\n');
  for (guint i = 0; i < comparisons->len; i++) {
    const KvComparison *c = g_ptr_array_index(comparisons, i);
    if (!in_sweep(c, comparisons))
      continue;
    g_string_append_printf(text, "| %s |", c->run->name);
    for (guint k = 0; k < G_N_ELEMENTS(columns); k++) {
      const KvComparisonRow *row = row_of(c, columns[k].metric, columns[k].statistic);
      g_autofree char *value =
          row && columns[k].with_value ? in_unit(row, row->measured) : g_strdup("");
      g_autofree char *error = row ? signed_percent(kv_comparison_error(row)) : g_strdup("");
      g_string_append_printf(text, " %s%s%s%s|", g_strstrip(value), *value ? " " : "", error,
                             row ? " " : "");
    }
    if (isfinite(c->agreement[KV_LATENCY_E2E].ks))
      g_string_append_printf(text, " %.2f, %.2f |\n", c->agreement[KV_LATENCY_TTFT].ks,
                             c->agreement[KV_LATENCY_E2E].ks);
    else
      g_string_append(text, " |\n");
  }
}

/* A table for each run whose requests are known, of those that stand alone. */
static void write_logs(GString *text, const GPtrArray *comparisons) {
  static const KvLatency latencies[] = {KV_LATENCY_TTFT, KV_LATENCY_TPOT, KV_LATENCY_E2E};
  for (guint i = 0; i < comparisons->len; i++) {
    const KvComparison *c = g_ptr_array_index(comparisons, i);
    if (!c->run->requests || in_sweep(c, comparisons))
      continue;
    g_string_append_printf(text,
                           "\n### %s%s\n\n| figure | measured | predicted | error | KS distance | "
                           "median error of a request |\n|---|---:|---:|---:|---:|---:|\n",
                           c->run->name, c->summary->calibrated ? "" : " (uncalibrated GPU)");
    for (guint r = 0; r < c->rows->len; r++) {
      const KvComparisonRow *row = &g_array_index(c->rows, KvComparisonRow, r);
      g_autofree char *measured = in_unit(row, row->measured);
      g_autofree char *predicted = in_unit(row, row->predicted);
      g_autofree char *error = signed_percent(kv_comparison_error(row));
      g_string_append_printf(text, "| %s %s | %s | %s | %s |", row->metric, row->statistic,
                             g_strstrip(measured), g_strstrip(predicted), error);
      const KvAgreement *agreement = NULL;
      for (guint l = 0; l < G_N_ELEMENTS(latencies); l++)
        if (strcmp(row->metric, kv_latency_names[latencies[l]]) == 0 &&
            strcmp(row->statistic, "mean") == 0)
          agreement = &c->agreement[latencies[l]];
      if (agreement)
        g_string_append_printf(text, " %.3f | %.1f %% |\n", agreement->ks,
                               100.0 * agreement->median_error);
      else
        g_string_append(text, " | |\n");
    }
    if (isfinite(c->running_rms))
      g_string_append_printf(text,
                             "\nRunning and waiting sequences over time differ by %.1f and %.1f "
                             "(root mean square).\n",
                             c->running_rms, c->waiting_rms);
  }
}

/* The mean figures only, of which every kind has some. */
static GArray *mean_figures(const GArray *accuracy) {
  GArray *means = g_array_new(FALSE, FALSE, sizeof(KvAccuracy));
  for (guint i = 0; i < accuracy->len; i++) {
    const KvAccuracy *a = &g_array_index(accuracy, KvAccuracy, i);
    if (strcmp(a->statistic, "mean") == 0 || strcmp(a->metric, "output_tokens_per_second") == 0)
      g_array_append_val(means, *a);
  }
  return means;
}

char *kv_accuracy_page(const GPtrArray *comparisons) {
  GString *text = g_string_new("## Runs, request by request\n");
  write_logs(text, comparisons);
  write_sweeps(text, comparisons);
  g_autoptr(GArray) kinds = kv_accuracy_collect(comparisons, FALSE);
  g_autoptr(GArray) groups = kv_accuracy_collect(comparisons, TRUE);
  g_autoptr(GArray) means = mean_figures(groups);
  g_autofree char *by_kind = kv_accuracy_table(kinds, TRUE);
  g_autofree char *by_group = kv_accuracy_table(means, TRUE);
  g_string_append_printf(text,
                         "\n## All runs, by the kind of file\n\n%s\n## Means, by model, GPU and "
                         "engine\n\n%s",
                         by_kind, by_group);
  return g_string_free(text, FALSE);
}
