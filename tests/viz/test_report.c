#include <string.h>

#include "fixtures.h"
#include "folder.h"
#include "viz/viz.h"

static const char *const notes[] = {"h200 is <not> calibrated & estimated", NULL};

static char *report(const KvSummary *const *runs, guint n_runs) {
  Folder folder = folder_make();
  g_autoptr(GError) error = NULL;
  g_autofree char *reason = NULL;
  g_auto(GStrv) missing = kv_plots_draw(folder.directory, runs, n_runs, &reason);
  kv_report_write(folder.directory, runs, n_runs, "{\"note\": \"</pre><script>alert(1)</script>\"}",
                  notes, &error);
  g_assert_no_error(error);
  char *html = folder_read(&folder, "report.html");
  g_assert_nonnull(html);
  folder_remove(&folder);
  return html;
}

static void expect_closed(const char *html, const char *tag) {
  g_autofree char *open = g_strdup_printf("<%s[ >]", tag), *close = g_strdup_printf("</%s>", tag);
  g_autoptr(GRegex) regex = g_regex_new(open, 0, 0, NULL);
  g_autoptr(GMatchInfo) match = NULL;
  guint opened = 0, closed = 0;
  for (g_regex_match(regex, html, 0, &match); g_match_info_matches(match);
       g_match_info_next(match, NULL))
    opened++;
  for (const char *at = html; (at = strstr(at, close)); at += strlen(close))
    closed++;
  if (opened != closed)
    g_error("<%s> opened %u times, closed %u times", tag, opened, closed);
}

static void nothing_is_fetched(void) {
  static const char *const outside[] = {"http:",   "https:", "<script", "<link",
                                        "<iframe", "src=",   "@import", "url("};
  g_autoptr(KvSummary) run = fixture_normal();
  g_autofree char *html = report((const KvSummary *[]){run}, 1);
  for (guint i = 0; i < G_N_ELEMENTS(outside); i++)
    if (strstr(html, outside[i]))
      g_error("the report holds %s", outside[i]);
}

static void names_within_the_page_are_unique(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autofree char *html = report((const KvSummary *[]){run}, 1);
  g_autoptr(GRegex) regex = g_regex_new("\\sid=[\"']([^\"']+)", 0, 0, NULL);
  g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  g_autoptr(GMatchInfo) match = NULL;
  for (g_regex_match(regex, html, 0, &match); g_match_info_matches(match);
       g_match_info_next(match, NULL)) {
    char *id = g_match_info_fetch(match, 1);
    if (!g_hash_table_add(seen, id))
      g_error("two elements are called %s", id);
  }
}

static void everything_is_escaped(void) {
  g_autoptr(KvSummary) run = fixture_single(); /* its label holds tags and quotes */
  g_autofree char *html = report((const KvSummary *[]){run}, 1);
  g_assert_null(strstr(html, "<b>\"it"));
  g_assert_nonnull(strstr(html, "&lt;b&gt;&quot;it"));
  g_assert_nonnull(strstr(html, "s&quot; &amp; more&lt;/b&gt;"));
  g_assert_nonnull(strstr(html, "&lt;not&gt; calibrated &amp; estimated"));
  g_assert_nonnull(strstr(html, "&lt;script&gt;alert(1)"));
}

static void tags_close(void) {
  static const char *const tags[] = {"main", "section", "table",  "tr",  "th",  "td",
                                     "p",    "details", "figure", "svg", "div", "small",
                                     "span", "h1",      "h2",     "ol",  "li",  "dl"};
  g_autoptr(KvSummary) run = fixture_normal();
  g_autoptr(KvSummary) slower = fixture_slower();
  const KvSummary *runs[] = {run, slower};
  for (guint n = 1; n <= 2; n++) {
    g_autofree char *html = report(runs, n);
    for (guint i = 0; i < G_N_ELEMENTS(tags); i++)
      expect_closed(html, tags[i]);
  }
}

static void says_what_happened(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autofree char *html = report((const KvSummary *[]){run}, 1);
  g_assert_nonnull(strstr(html, "served 19,366 requests in 60.0 min"));
  g_assert_nonnull(strstr(html, "uncalibrated"));
  g_assert_nonnull(strstr(html, "kept up with the load"));
}

static void compares(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autoptr(KvSummary) faster = fixture_faster();
  g_autofree char *html = report((const KvSummary *[]){run, faster}, 2);
  g_assert_nonnull(strstr(html, "2 runs of azure-conversation.csv"));
  g_assert_nonnull(strstr(html, "median TTFT −31 %"));
  g_assert_nonnull(strstr(html, "<td class=\"good\">−31 %</td>"));
}

static void stands_without_pictures(void) {
  g_autoptr(KvSummary) run = fixture_empty();
  const KvSummary *runs[] = {run};
  Folder folder = folder_make();
  g_autoptr(GError) error = NULL;
  kv_report_write(folder.directory, runs, 1, NULL, NULL, &error);
  g_assert_no_error(error);
  g_autofree char *html = folder_read(&folder, "report.html");
  g_assert_null(strstr(html, "<svg"));
  g_assert_null(strstr(html, "nan"));
  g_assert_nonnull(strstr(html, "No request finished"));
  folder_remove(&folder);
}

static void the_same_twice(void) {
  g_autoptr(KvSummary) run = fixture_slower();
  const KvSummary *runs[] = {run};
  g_autofree char *first = report(runs, 1), *second = report(runs, 1);
  g_assert_cmpstr(first, ==, second);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/viz/report/self-contained", nothing_is_fetched);
  g_test_add_func("/viz/report/unique-names", names_within_the_page_are_unique);
  g_test_add_func("/viz/report/escaped", everything_is_escaped);
  g_test_add_func("/viz/report/well-formed", tags_close);
  g_test_add_func("/viz/report/content", says_what_happened);
  g_test_add_func("/viz/report/compare", compares);
  g_test_add_func("/viz/report/no-pictures", stands_without_pictures);
  g_test_add_func("/viz/report/the-same-twice", the_same_twice);
  return g_test_run();
}
