#include "viz/viz.h"

#include <math.h>
#include <string.h>

#include "viz/figures.h"
#include "viz/words.h"

enum { LEAST_COLUMNS = 60, MOST_COLUMNS = 110, LABEL_WIDTH = 14, INDENT = 2 };

#define DOT "\302\267"

typedef enum { PLAIN, BOLD, DIM, GOOD, BAD, CAUTION, BAR } Ink;

static const char *const escapes[] = {
    [PLAIN] = "",       [BOLD] = "\033[1m",     [DIM] = "\033[2m",  [GOOD] = "\033[32m",
    [BAD] = "\033[31m", [CAUTION] = "\033[33m", [BAR] = "\033[36m",
};

typedef struct {
  GString *text;
  guint columns, used;   /* used: of the current line */
  gboolean colour, bare; /* bare: no item stands on the current line yet */
} Page;

static guint width_of(const char *text) {
  return (guint)g_utf8_strlen(text, -1);
}

static void put(Page *page, Ink ink, const char *text) {
  gboolean dress = page->colour && ink != PLAIN;
  g_string_append_printf(page->text, "%s%s%s", dress ? escapes[ink] : "", text,
                         dress ? "\033[0m" : "");
  page->used += width_of(text);
}

static void pad_to(Page *page, guint column) {
  for (; page->used < column; page->used++)
    g_string_append_c(page->text, ' ');
}

/* The text at the right of a cell that ends at `column`. */
static void put_right(Page *page, Ink ink, const char *text, guint column) {
  guint width = width_of(text);
  pad_to(page, column > width ? column - width : 0);
  put(page, ink, text);
}

static void end_line(Page *page) {
  while (page->text->len && page->text->str[page->text->len - 1] == ' ')
    g_string_truncate(page->text, page->text->len - 1);
  g_string_append_c(page->text, '\n');
  page->used = 0;
}

static char *shortened(const char *text, guint width) {
  if (width_of(text) <= width)
    return g_strdup(text);
  g_autofree char *head = g_utf8_substring(text, 0, (glong)width - 1);
  return g_strconcat(head, "\342\200\246", NULL);
}

/* A row begins with its label; items follow, separated by dots, and wrap under the first one. */
static void begin_row(Page *page, const char *label) {
  pad_to(page, INDENT);
  put(page, DIM, label);
  pad_to(page, INDENT + LABEL_WIDTH);
  page->bare = TRUE;
}

G_GNUC_PRINTF(3, 4)
static void add_item(Page *page, Ink ink, const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *text = g_strdup_vprintf(format, args);
  va_end(args);
  if (!page->bare && page->used + 3 + width_of(text) > page->columns) {
    end_line(page);
    pad_to(page, INDENT + LABEL_WIDTH);
    page->bare = TRUE;
  }
  if (!page->bare)
    put(page, DIM, " " DOT " ");
  put(page, ink, text);
  page->bare = FALSE;
}

/* A value in words, for use as one %s; freed with the page's scratch strings. */
#define SAY(unit, value)                                                                           \
  (g_ptr_array_add(scratch, kv_format(KV_UNIT_##unit, value)),                                     \
   (const char *)g_ptr_array_index(scratch, scratch->len - 1))

static void header(Page *page, const KvSummary *run) {
  g_autofree char *where = kv_words_platform(run);
  g_autofree char *trace = g_path_get_basename(run->trace ? run->trace : "-");
  g_autofree char *first = g_strdup_printf("%s on %s", run->model ? run->model : "?", where);
  const struct {
    Ink ink;
    const char *text;
  } items[] = {
      {BOLD, first},
      {PLAIN, trace},
      {PLAIN, run->label ? run->label : "default"},
      {DIM, run->executor ? run->executor : "model"},
      {run->calibrated ? DIM : CAUTION, run->calibrated ? "calibrated" : "uncalibrated"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(items); i++) {
    g_autofree char *text = shortened(items[i].text, page->columns);
    if (i && page->used + 3 + width_of(text) > page->columns)
      end_line(page);
    else if (i)
      put(page, DIM, " " DOT " ");
    put(page, items[i].ink, text);
  }
  end_line(page);
}

static void counts(Page *page, const KvSummary *run) {
  g_autofree char *finished = kv_format_whole(run->requests_finished);
  g_autofree char *span = kv_format(KV_UNIT_SECONDS, run->makespan_seconds);
  g_autofree char *line = g_strdup_printf("%s request%s finished in %s", finished,
                                          run->requests_finished == 1 ? "" : "s", span);
  put(page, PLAIN, line);
  if (run->requests_rejected) {
    g_autofree char *rejected = kv_format_whole(run->requests_rejected);
    gboolean fits = page->used + 12 + width_of(rejected) <= page->columns;
    g_autofree char *text = g_strdup_printf("%s%s rejected", fits ? ", " : "", rejected);
    if (!fits)
      end_line(page);
    put(page, BAD, text);
  }
  end_line(page);
}

static void latencies(Page *page, const KvSummary *run) {
  static const struct {
    const char *title;
    gsize offset;
  } statistics[] = {
      {"mean", G_STRUCT_OFFSET(KvDistribution, mean)},
      {"p50", G_STRUCT_OFFSET(KvDistribution, p50)},
      {"p90", G_STRUCT_OFFSET(KvDistribution, p90)},
      {"p99", G_STRUCT_OFFSET(KvDistribution, p99)},
      {"max", G_STRUCT_OFFSET(KvDistribution, max)},
  };
  guint cell = page->columns >= INDENT + LABEL_WIDTH + 5 * 11 ? 11 : 9;
  guint n = MIN(G_N_ELEMENTS(statistics), (page->columns - INDENT - LABEL_WIDTH) / cell);
  begin_row(page, "Latency");
  for (guint s = 0; s < n; s++)
    put_right(page, DIM, statistics[s].title, INDENT + LABEL_WIDTH - 4 + (s + 1) * cell);
  end_line(page);
  for (guint l = 0; l < KV_N_LATENCIES; l++) {
    const KvDistribution *d = &run->latency[l];
    begin_row(page, kv_latency_titles[l]);
    for (guint s = 0; s < n; s++) {
      double value = d->n ? *(const double *)G_STRUCT_MEMBER_P(d, statistics[s].offset) : NAN;
      g_autofree char *text = kv_format(KV_UNIT_SECONDS, value);
      put_right(page, s == 1 ? BOLD : PLAIN, text, INDENT + LABEL_WIDTH - 4 + (s + 1) * cell);
    }
    end_line(page);
  }
}

static void service(Page *page, const KvSummary *run, GPtrArray *scratch) {
  begin_row(page, "Throughput");
  add_item(page, BOLD, "%s output tokens/s", SAY(NONE, run->output_tokens_per_second));
  add_item(page, PLAIN, "%s prompt tokens/s", SAY(NONE, run->prompt_tokens_per_second));
  add_item(page, PLAIN, "%s requests/s", SAY(NONE, run->requests_per_second));
  end_line(page);
  if (!kv_summary_has_slo(run))
    return;
  begin_row(page, "Goodput");
  add_item(page, BOLD, "%s requests/s", SAY(NONE, run->goodput_requests_per_second));
  add_item(page, PLAIN, "%s within the SLO", SAY(SHARE, run->slo_attainment));
  if (run->slo_ttft_seconds > 0)
    add_item(page, PLAIN, "TTFT \342\211\244 %s", SAY(SECONDS, run->slo_ttft_seconds));
  if (run->slo_tpot_seconds > 0)
    add_item(page, PLAIN, "TPOT \342\211\244 %s", SAY(SECONDS, run->slo_tpot_seconds));
  end_line(page);
}

static void memory(Page *page, const KvSummary *run, GPtrArray *scratch) {
  begin_row(page, "Prefix hits");
  add_item(page, BOLD, "%s of prompt tokens", SAY(SHARE, run->prefix_hit_ratio));
  if (run->hit_tokens)
    add_item(page, PLAIN, "%s of %s tokens", SAY(COUNT, (double)run->hit_tokens),
             SAY(COUNT, (double)run->looked_up_tokens));
  if (run->lower_tier_hit_ratio > 0)
    add_item(page, PLAIN, "%s from lower tiers", SAY(SHARE, run->lower_tier_hit_ratio));
  end_line(page);
  begin_row(page, "KV memory");
  add_item(page, BOLD, "%s%s", SAY(BYTES, run->cache_bytes), run->n_gpus > 1 ? " per GPU" : "");
  add_item(page, PLAIN, "%s blocks of %s tokens%s", SAY(COUNT, (double)run->total_blocks),
           SAY(COUNT, (double)run->block_tokens), run->n_instances > 1 ? " per replica" : "");
  add_item(page, PLAIN, "held %s mean, %s peak", SAY(SHARE, run->mean_blocks_held_share),
           SAY(SHARE, run->peak_blocks_held_share));
  if (!run->compressed)
    add_item(page, PLAIN, "fragmentation %s", SAY(SHARE, run->fragmentation));
  end_line(page);
  begin_row(page, "Sequences");
  add_item(page, PLAIN, "running %s mean, %s peak", SAY(NONE, run->mean_running),
           SAY(NONE, run->peak_running));
  add_item(page, PLAIN, "waiting %s mean, %s peak", SAY(NONE, run->mean_waiting),
           SAY(NONE, run->peak_waiting));
  end_line(page);
  begin_row(page, "Preemptions");
  add_item(page, run->preemptions ? CAUTION : PLAIN, "%s", SAY(COUNT, (double)run->preemptions));
  if (run->recomputed_tokens)
    add_item(page, PLAIN, "%s tokens recomputed", SAY(COUNT, (double)run->recomputed_tokens));
  if (run->swapped_out_blocks)
    add_item(page, PLAIN, "%s blocks swapped out, %s in",
             SAY(COUNT, (double)run->swapped_out_blocks),
             SAY(COUNT, (double)run->swapped_in_blocks));
  end_line(page);
}

static void traffic(Page *page, const KvSummary *run, GPtrArray *scratch) {
  begin_row(page, "Bytes moved");
  add_item(page, PLAIN, "HBM %s", SAY(BYTES, run->hbm_bytes));
  if (run->link_bytes > 0)
    add_item(page, PLAIN, "between GPUs %s", SAY(BYTES, run->link_bytes));
  for (guint t = 0; t < KV_N_TIERS; t++) {
    if (t == KV_TIER_HBM)
      continue;
    if (run->fetched_bytes[t] > 0)
      add_item(page, PLAIN, "from %s %s", kv_tier_titles[t], SAY(BYTES, run->fetched_bytes[t]));
    if (run->stored_bytes[t] > 0)
      add_item(page, PLAIN, "to %s %s", kv_tier_titles[t], SAY(BYTES, run->stored_bytes[t]));
  }
  end_line(page);
}

static void device(Page *page, const KvSummary *run, GPtrArray *scratch) {
  traffic(page, run, scratch);
  begin_row(page, "GPU");
  add_item(page, BOLD, "busy %s", SAY(SHARE, run->busy_share));
  add_item(page, PLAIN, "MFU %s", SAY(SHARE, run->mfu));
  add_item(page, PLAIN, "MBU %s", SAY(SHARE, run->mbu));
  add_item(page, PLAIN, "%s step%s", SAY(COUNT, (double)run->steps), run->steps == 1 ? "" : "s");
  end_line(page);
  begin_row(page, "Energy");
  add_item(page, PLAIN, "%s", SAY(JOULES, run->energy_joules));
  add_item(page, PLAIN, "%s per output token", SAY(JOULES, run->energy_joules_per_output_token));
  add_item(page, PLAIN, "%s CO2", SAY(GRAMS, run->carbon_grams));
  end_line(page);
  begin_row(page, "Money");
  add_item(page, PLAIN, "%s", SAY(USD, run->cost_usd));
  add_item(page, BOLD, "%s per million output tokens",
           SAY(USD, run->usd_per_million_output_tokens));
  end_line(page);
  if (run->quality) {
    begin_row(page, "Quality");
    add_item(page, PLAIN, "%s", run->quality);
    end_line(page);
  }
}

/* A bar of `cells` eighth-block characters at most. */
static char *bar(double share, guint cells) {
  static const char *const eighths[] = {"",
                                        "\342\226\217",
                                        "\342\226\216",
                                        "\342\226\215",
                                        "\342\226\214",
                                        "\342\226\213",
                                        "\342\226\212",
                                        "\342\226\211"};
  guint n = (guint)(CLAMP(share, 0, 1) * cells * 8 + 0.5);
  GString *text = g_string_new(NULL);
  for (guint i = 0; i < n / 8; i++)
    g_string_append(text, "\342\226\210");
  g_string_append(text, eighths[n % 8]);
  return g_string_free(text, FALSE);
}

/* The components that take at least a hundredth, and the rest as one. */
static void components(Page *page, const KvSummary *run) {
  KvComponent order[KV_N_COMPONENTS];
  double total, listed = 0;
  guint n = kv_components_by_time(run, order, &total);
  guint label_width = 22, cells = MIN(40u, page->columns - INDENT - label_width - 10);
  if (n == 0)
    return;
  end_line(page);
  pad_to(page, INDENT);
  put(page, DIM, "Where the GPU's time goes");
  end_line(page);
  for (guint i = 0; i <= n; i++) {
    double share = i < n ? run->component_seconds[order[i]] / total : 1 - listed;
    if ((i < n && share < 0.01) || (i == n && share < 0.0005))
      continue;
    listed += i < n ? share : 0;
    g_autofree char *text = kv_format(KV_UNIT_SHARE, share), *drawn = bar(share, cells);
    pad_to(page, INDENT);
    put(page, PLAIN, i < n ? kv_component_titles[order[i]] : "Other");
    put_right(page, PLAIN, text, INDENT + label_width + 7);
    pad_to(page, INDENT + label_width + 9);
    put(page, BAR, drawn);
    end_line(page);
  }
}

static void begin_page(Page *page, guint columns, gboolean colour) {
  *page = (Page){.text = g_string_new(NULL),
                 .columns = CLAMP(columns, LEAST_COLUMNS, MOST_COLUMNS),
                 .colour = colour};
}

char *kv_table_run(const KvSummary *run, guint columns, gboolean colour) {
  g_return_val_if_fail(run, NULL);
  g_autoptr(GPtrArray) scratch = g_ptr_array_new_with_free_func(g_free);
  Page page;
  begin_page(&page, columns, colour);
  header(&page, run);
  counts(&page, run);
  end_line(&page);
  latencies(&page, run);
  end_line(&page);
  service(&page, run, scratch);
  memory(&page, run, scratch);
  device(&page, run, scratch);
  components(&page, run);
  return g_string_free(page.text, FALSE);
}

/* Side by side */

enum {
  FIGURE_WIDTH = 27,
  VALUE_WIDTH = 11,
  CHANGE_WIDTH = 9,
  RUN_WIDTH = VALUE_WIDTH + CHANGE_WIDTH
};

/* Runs are called A, B, C ... over the columns. */
static void legend(Page *page, const KvSummary *const *runs, guint n_runs) {
  for (guint r = 0; r < n_runs; r++) {
    char letter[] = {(char)('A' + r % 26), ' ', ' ', '\0'};
    g_autofree char *where = kv_words_platform(runs[r]);
    g_autofree char *name =
        g_strdup_printf("%s, %s on %s%s%s", runs[r]->label ? runs[r]->label : "default",
                        runs[r]->model ? runs[r]->model : "?", where,
                        runs[r]->calibrated ? "" : ", uncalibrated", r ? "" : " (baseline)");
    g_autofree char *text = shortened(name, page->columns - 5);
    pad_to(page, INDENT);
    put(page, BOLD, letter);
    put(page, PLAIN, text);
    end_line(page);
  }
}

static void compare_head(Page *page, const KvSummary *const *runs, guint first, guint end) {
  end_line(page);
  put_right(page, BOLD, "A", FIGURE_WIDTH + VALUE_WIDTH);
  for (guint r = first; r < end; r++) {
    char letter[] = {(char)('A' + r % 26), '\0'};
    guint start = FIGURE_WIDTH + VALUE_WIDTH + (r - first) * RUN_WIDTH;
    put_right(page, BOLD, letter, start + VALUE_WIDTH);
    put_right(page, DIM, "vs A", start + RUN_WIDTH);
  }
  end_line(page);
}

static gboolean differs_from_zero(const KvFigure *figure, const KvSummary *const *runs,
                                  guint n_runs) {
  for (guint r = 0; r < n_runs; r++) {
    double value = kv_figure_value(figure, runs[r]);
    if (isfinite(value) && value != 0)
      return TRUE;
  }
  return FALSE;
}

static void compare_row(Page *page, const KvFigure *figure, const KvSummary *const *runs,
                        guint first, guint end) {
  static const Ink inks[] = {BAD, DIM, GOOD};
  double baseline = kv_figure_value(figure, runs[0]);
  g_autofree char *base = kv_format(figure->unit, baseline);
  pad_to(page, INDENT);
  put(page, PLAIN, figure->label);
  put_right(page, PLAIN, base, FIGURE_WIDTH + VALUE_WIDTH);
  for (guint r = first; r < end; r++) {
    double value = kv_figure_value(figure, runs[r]);
    guint start = FIGURE_WIDTH + VALUE_WIDTH + (r - first) * RUN_WIDTH;
    g_autofree char *text = kv_format(figure->unit, value);
    g_autofree char *change = kv_format_change(figure->unit, value, baseline);
    put_right(page, PLAIN, text, start + VALUE_WIDTH);
    put_right(page, inks[1 + kv_figure_judge(figure, value, baseline)], change, start + RUN_WIDTH);
  }
  end_line(page);
}

/* Runs [first, end) beside the baseline; figures that are zero or absent everywhere are left out.
 */
static void compare_panel(Page *page, const KvSummary *const *runs, guint n_runs, guint first,
                          guint end) {
  const char *group = "";
  compare_head(page, runs, first, end);
  for (guint f = 0; f < kv_n_figures; f++) {
    const KvFigure *figure = &kv_figures[f];
    if (!differs_from_zero(figure, runs, n_runs))
      continue;
    if (strcmp(group, figure->group) != 0) {
      group = figure->group;
      put(page, DIM, group);
      end_line(page);
    }
    compare_row(page, figure, runs, first, end);
  }
}

char *kv_table_compare(const KvSummary *const *runs, guint n_runs, guint columns, gboolean colour) {
  g_return_val_if_fail(runs && n_runs > 0, NULL);
  Page page;
  begin_page(&page, MAX(columns, FIGURE_WIDTH + VALUE_WIDTH + RUN_WIDTH), colour);
  page.columns = MAX(page.columns, MIN(columns, 200u)); /* more runs fit on a wide terminal */
  g_autofree char *trace = g_path_get_basename(runs[0]->trace ? runs[0]->trace : "-");
  put(&page, BOLD, trace);
  end_line(&page);
  legend(&page, runs, n_runs);
  guint fit = MAX(1u, (page.columns - FIGURE_WIDTH - VALUE_WIDTH) / RUN_WIDTH);
  guint first = 1;
  do {
    guint end = MIN(n_runs, first + fit);
    compare_panel(&page, runs, n_runs, first, end);
    first += fit;
  } while (first < n_runs);
  return g_string_free(page.text, FALSE);
}
