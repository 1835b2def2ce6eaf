/* Claimed beside simulated. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/validate/claims.h"

KvVerdict kv_claim_verdict(const KvClaimResult *result) {
  if (result->claim->cannot)
    return KV_VERDICT_NOT_REPLAYED;
  if (result->problem)
    return KV_VERDICT_FAILED;
  double error = fabs(log(result->simulated / result->claim->claimed));
  return error <= log(1.15)  ? KV_VERDICT_CLOSE
         : error <= log(1.3) ? KV_VERDICT_NEAR
                             : KV_VERDICT_OFF;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double median(double *values, guint n) {
  qsort(values, n, sizeof *values, by_value);
  return n == 0 ? NAN : n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

KvClaimSummary kv_claims_summarize(const GArray *results) {
  KvClaimSummary x = {.n = results->len};
  g_autofree double *errors = g_new(double, results->len + 1);
  g_autofree double *signs = g_new(double, results->len + 1);
  for (guint i = 0; i < results->len; i++) {
    const KvClaimResult *r = &g_array_index(results, KvClaimResult, i);
    KvVerdict verdict = kv_claim_verdict(r);
    if (verdict > KV_VERDICT_OFF)
      continue;
    signs[x.replayed] = log(r->simulated / r->claim->claimed);
    errors[x.replayed] = fabs(signs[x.replayed]);
    x.replayed++;
    x.within_15 += verdict == KV_VERDICT_CLOSE;
    x.within_30 += verdict != KV_VERDICT_OFF;
  }
  x.median_error = median(errors, x.replayed);
  x.bias = median(signs, x.replayed);
  return x;
}

/* The first survey section of the claim's technique. */
static const char *section_of(const KvClaim *claim) {
  const KvTechnique *technique = kv_technique_find(claim->technique, NULL);
  return technique && technique->sections && technique->sections[0] ? technique->sections[0]
                                                                    : "Other";
}

static int by_section(const void *a, const void *b) {
  const KvClaimResult *x = *(const KvClaimResult *const *)a, *y = *(const KvClaimResult *const *)b;
  int order = strcmp(section_of(x->claim), section_of(y->claim));
  if (order == 0)
    order = strcmp(x->claim->technique, y->claim->technique);
  return order ? order : x < y ? -1 : x > y; /* else the file's order */
}

/* The results by section; free the array alone. */
static const KvClaimResult **sorted(const GArray *results) {
  const KvClaimResult **order = g_new(const KvClaimResult *, results->len + 1);
  for (guint i = 0; i < results->len; i++)
    order[i] = &g_array_index(results, KvClaimResult, i);
  qsort(order, results->len, sizeof *order, by_section);
  return order;
}

static char *figure(double value, const char *unit) {
  if (!isfinite(value))
    return g_strdup("");
  gboolean ratio = strcmp(unit, "x") == 0;
  return g_strdup_printf("%.3g%s%s", value, ratio ? "" : " ", unit);
}

static void append_summary(GString *text, const GArray *results) {
  KvClaimSummary x = kv_claims_summarize(results);
  g_string_append_printf(text, "%u claims, %u replayed", x.n, x.replayed);
  if (x.replayed > 0)
    g_string_append_printf(
        text,
        ": median |log ratio| %.1f %%, bias %+.1f %%, within 15 %% %u (%.0f %%), "
        "within 30 %% %u (%.0f %%)",
        100.0 * x.median_error, 100.0 * x.bias, x.within_15, 100.0 * x.within_15 / x.replayed,
        x.within_30, 100.0 * x.within_30 / x.replayed);
  g_string_append(text, ".\n");
}

static void append_detail(GString *text, const char *what, const char *detail) {
  if (detail)
    g_string_append_printf(text, "      %s: %s\n", what, detail);
}

char *kv_claims_table(const GArray *results, gboolean details) {
  GString *text = g_string_new(NULL);
  g_autofree const KvClaimResult **order = sorted(results);
  const char *section = "";
  for (guint i = 0; i < results->len; i++) {
    const KvClaimResult *r = order[i];
    const KvClaim *c = r->claim;
    if (strcmp(section, section_of(c)) != 0) {
      section = section_of(c);
      g_string_append_printf(text, "%s%s\n  %-20s %-34s %-24s %12s %12s %6s  %s\n", i ? "\n" : "",
                             section, "technique", "claim", "metric", "claimed", "simulated",
                             "ratio", "verdict");
    }
    g_autofree char *claimed = figure(c->claimed, c->unit);
    g_autofree char *simulated = figure(r->simulated, c->unit);
    g_autofree char *ratio =
        isfinite(r->simulated) ? g_strdup_printf("%.2f", r->simulated / c->claimed) : g_strdup("");
    g_string_append_printf(text, "  %-20s %-34s %-24s %12s %12s %6s  %s\n", c->technique, c->id,
                           c->metric_name, claimed, simulated, ratio,
                           kv_verdict_names[kv_claim_verdict(r)]);
    if (c->cannot || r->problem)
      append_detail(text, "because", c->cannot ? c->cannot : r->problem);
    if (details) {
      append_detail(text, "source", c->source);
      append_detail(text, "unsaid", c->unsaid);
      append_detail(text, "assumed", c->assumed);
      append_detail(text, "found", c->found);
    }
  }
  g_string_append_c(text, '\n');
  append_summary(text, results);
  return g_string_free(text, FALSE);
}

/* A text in one cell of a Markdown table. */
static void append_cell(GString *page, const char *text) {
  for (const char *c = text ? text : ""; *c; c++) {
    if (*c == '|')
      g_string_append(page, "\\|");
    else
      g_string_append_c(page, *c == '\n' ? ' ' : *c);
  }
}

static void append_note(GString *page, const char *what, const char *note, const char **separator) {
  if (!note)
    return;
  g_string_append_printf(page, "%s%s", *separator, what);
  append_cell(page, note);
  *separator = " ";
}

static void append_row(GString *page, const KvClaimResult *r) {
  const KvClaim *c = r->claim;
  g_autofree char *claimed = figure(c->claimed, c->unit);
  g_autofree char *simulated = figure(r->simulated, c->unit);
  g_string_append_printf(page, "| %s | %s | %s | %s | %s | ", c->technique, c->id, c->metric_name,
                         claimed, simulated);
  if (isfinite(r->simulated))
    g_string_append_printf(page, "%.2f", r->simulated / c->claimed);
  g_string_append_printf(page, " | %s | ", kv_verdict_names[kv_claim_verdict(r)]);
  const char *separator = "";
  append_note(page, "", c->source, &separator);
  append_note(page, "Not replayed: ", c->cannot, &separator);
  append_note(page, "Failed: ", r->problem, &separator);
  append_note(page, "Unsaid: ", c->unsaid, &separator);
  append_note(page, "Assumed: ", c->assumed, &separator);
  append_note(page, "Found: ", c->found, &separator);
  g_string_append(page, " |\n");
}

char *kv_claims_markdown(const GArray *results) {
  GString *page = g_string_new(NULL);
  g_autofree const KvClaimResult **order = sorted(results);
  append_summary(page, results);
  for (guint i = 0; i < results->len;) {
    const char *section = section_of(order[i]->claim);
    g_autoptr(GArray) own = g_array_new(FALSE, FALSE, sizeof(KvClaimResult));
    for (; i < results->len && strcmp(section, section_of(order[i]->claim)) == 0; i++)
      g_array_append_val(own, *order[i]);
    g_string_append_printf(page, "\n### %s\n\n", section);
    append_summary(page, own);
    g_string_append(page,
                    "\n| technique | claim | metric | claimed | simulated | ratio | verdict | "
                    "source and notes |\n|---|---|---|---:|---:|---:|---|---|\n");
    for (guint k = 0; k < own->len; k++)
      append_row(page, &g_array_index(own, KvClaimResult, k));
  }
  return g_string_free(page, FALSE);
}

static void set_text(json_t *object, const char *key, const char *text) {
  if (text)
    json_object_set_new(object, key, json_string(text));
}

static void set_number(json_t *object, const char *key, double number) {
  if (isfinite(number))
    json_object_set_new(object, key, json_real(number));
}

json_t *kv_claims_to_json(const GArray *results) {
  json_t *all = json_array();
  for (guint i = 0; i < results->len; i++) {
    const KvClaimResult *r = &g_array_index(results, KvClaimResult, i);
    const KvClaim *c = r->claim;
    json_t *object = json_object();
    set_text(object, "technique", c->technique);
    set_text(object, "section", section_of(c));
    set_text(object, "claim", c->id);
    set_text(object, "metric", c->metric_name);
    set_text(object, "unit", c->unit);
    set_number(object, "claimed", c->claimed);
    set_number(object, "simulated", r->simulated);
    set_number(object, "with", r->with);
    set_number(object, "without", r->without);
    set_text(object, "verdict", kv_verdict_names[kv_claim_verdict(r)]);
    set_text(object, "source", c->source);
    set_text(object, "unsaid", c->unsaid);
    set_text(object, "assumed", c->assumed);
    set_text(object, "found", c->found);
    set_text(object, "cannot", c->cannot);
    set_text(object, "problem", r->problem);
    json_array_append_new(all, object);
  }
  KvClaimSummary x = kv_claims_summarize(results);
  json_t *root = json_pack("{s:I, s:I, s:I, s:I, s:o}", "claims", (json_int_t)x.n, "replayed",
                           (json_int_t)x.replayed, "within_15_percent", (json_int_t)x.within_15,
                           "within_30_percent", (json_int_t)x.within_30, "results", all);
  set_number(root, "median_abs_log_ratio", x.median_error);
  set_number(root, "median_log_ratio", x.bias);
  return root;
}
