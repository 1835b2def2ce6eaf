#include "viz/plots_claims.h"

#include <math.h>
#include <string.h>

#include "viz/plots.h"
#include "viz/report_style.h"

enum { WIDTH = 760, HEIGHT = 620 };

/* The survey's three parts, and what belongs to none. */
static const char *const parts[] = {"Token-level", "Model-level", "System-level", "Other"};

static guint part_of(const KvClaim *claim) {
  const KvTechnique *technique = kv_technique_find(claim->technique, NULL);
  const char *section = technique && technique->sections ? technique->sections[0] : NULL;
  for (guint p = 0; section && p + 1 < G_N_ELEMENTS(parts); p++)
    if (g_str_has_prefix(section, parts[p]))
      return p;
  return G_N_ELEMENTS(parts) - 1;
}

/* Data block of one part; widens [low, high]. */
static guint write_part(GString *script, const GArray *results, guint part, double *low,
                        double *high) {
  guint n = 0;
  kv_say(script, "$part%u << EOD\n", part);
  for (guint i = 0; i < results->len; i++) {
    const KvClaimResult *r = &g_array_index(results, KvClaimResult, i);
    if (kv_claim_verdict(r) > KV_VERDICT_OFF || !r->claim->is_ratio || part_of(r->claim) != part)
      continue;
    kv_say(script, "%.6g %.6g\n", r->claim->claimed, r->simulated);
    *low = MIN(*low, MIN(r->claim->claimed, r->simulated));
    *high = MAX(*high, MAX(r->claim->claimed, r->simulated));
    n++;
  }
  kv_say(script, "EOD\n");
  return n;
}

gboolean kv_claims_scatter_script(GString *script, const GArray *results) {
  double low = INFINITY, high = 0.0;
  guint n[G_N_ELEMENTS(parts)], all = 0;
  kv_gnuplot_begin(script, WIDTH, HEIGHT);
  for (guint p = 0; p < G_N_ELEMENTS(parts); p++)
    all += n[p] = write_part(script, results, p, &low, &high);
  if (all == 0)
    return FALSE;
  kv_say(script,
         "set logscale xy\nset xrange [%.6g:%.6g]\nset yrange [%.6g:%.6g]\nset xlabel 'claimed, "
         "with over without'\nset ylabel 'simulated'\nset key top left\nplot x with lines lc rgb "
         "'" KV_INK "' title 'equal', 1.3*x with lines dt 3 lc rgb '" KV_INK
         "' title '30 %% off', x/1.3 with lines dt 3 lc rgb '" KV_INK "' notitle",
         low / 1.3, high * 1.3, low / 1.3, high * 1.3);
  for (guint p = 0; p < G_N_ELEMENTS(parts); p++)
    if (n[p] > 0)
      kv_say(script, ", $part%u using 1:2 with points pt 7 ps 0.6 lc rgb '%s' title '%s'", p,
             kv_colours[p], parts[p]);
  kv_say(script, "\n");
  return TRUE;
}

/* The picture, into the page and as a file of its own; FALSE only if a file cannot be written. */
static gboolean append_scatter(GString *html, const KvRunDirectory *directory,
                               const GArray *results, GError **error) {
  g_autoptr(GString) script = g_string_new(NULL);
  if (!kv_claims_scatter_script(script, results))
    return TRUE;
  const char *const scripts[] = {script->str};
  KvDrawing drawing = {0};
  kv_gnuplot_draw(scripts, 1, &drawing);
  g_autofree char *svg = drawing.svg ? kv_gnuplot_tidy(drawing.svg, "claims", "Claims") : NULL;
  g_autofree char *path = kv_run_directory_file(directory, "claims.svg");
  gboolean ok = !drawing.svg || kv_output_write_file(path, drawing.svg, -1, error);
  g_autofree char *reason = g_markup_escape_text(drawing.reason ? drawing.reason : "", -1);
  g_string_append_printf(html,
                         "<figure>%s%s<figcaption>Each point is a ratio that a paper gives: on the "
                         "line the simulator finds the same, between the dotted ones it is off by "
                         "at most 30 %%.</figcaption></figure>\n",
                         svg ? svg : "<p>picture missing: ", svg ? "" : reason);
  g_free(drawing.svg);
  g_free(drawing.reason);
  return ok;
}

gboolean kv_claims_report_write(const KvRunDirectory *directory, const GArray *results,
                                GError **error) {
  g_autoptr(GString) html = g_string_new(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>kvsim claims"
      "</title>\n<style>" KV_REPORT_STYLE "</style></head><body><main>\n"
      "<p class=\"eyebrow\">kvsim &middot; claims</p><h1>Claimed beside simulated</h1>\n");
  if (!append_scatter(html, directory, results, error))
    return FALSE;
  g_autofree char *table = kv_claims_table(results, TRUE);
  g_autofree char *escaped = g_markup_escape_text(table, -1);
  g_string_append_printf(html, "<section><pre>%s</pre></section>\n</main></body></html>\n",
                         escaped);
  json_t *document = kv_claims_to_json(results);
  char *json = json_dumps(document, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  g_autofree char *page_path = kv_run_directory_file(directory, "report.html");
  g_autofree char *json_path = kv_run_directory_file(directory, "claims.json");
  gboolean ok = kv_output_write_file(page_path, html->str, -1, error) &&
                kv_output_write_file(json_path, json, -1, error);
  free(json);
  json_decref(document);
  return ok;
}
