/* The table against text that a person has looked at. KV_TEST_UPDATE=1 rewrites the files instead.
 */
#include <string.h>

#include "fixtures.h"
#include "viz/viz.h"

static void expect_file(const char *name, const char *text) {
  g_autofree char *path = g_build_filename(TEST_DATA, name, NULL), *expected = NULL;
  g_autoptr(GError) error = NULL;
  if (g_getenv("KV_TEST_UPDATE")) {
    g_assert_true(g_file_set_contents(path, text, -1, &error));
    return;
  }
  g_file_get_contents(path, &expected, NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpstr(text, ==, expected);
}

static void expect_narrower(const char *text, guint columns) {
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
  for (guint i = 0; lines[i]; i++) {
    if (g_utf8_strlen(lines[i], -1) > (glong)columns)
      g_error("wider than %u: %s", columns, lines[i]);
    g_assert_false(g_str_has_suffix(lines[i], " "));
  }
}

static void one_run(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autofree char *text = kv_table_run(run, 100, FALSE);
  expect_file("normal.txt", text);
}

static void a_run_with_everything(void) {
  g_autoptr(KvSummary) run = fixture_slower();
  g_autofree char *text = kv_table_run(run, 80, FALSE);
  expect_file("slower.txt", text);
}

static void one_request(void) {
  g_autoptr(KvSummary) run = fixture_single();
  g_autofree char *text = kv_table_run(run, 100, FALSE);
  expect_file("single.txt", text);
}

static void no_request(void) {
  g_autoptr(KvSummary) run = fixture_empty();
  g_autofree char *text = kv_table_run(run, 80, FALSE);
  expect_file("empty.txt", text);
}

static void side_by_side(void) {
  g_autoptr(KvSummary) base = fixture_normal();
  g_autoptr(KvSummary) faster = fixture_faster();
  g_autoptr(KvSummary) slower = fixture_slower();
  const KvSummary *runs[] = {base, faster, slower};
  g_autofree char *text = kv_table_compare(runs, 3, 100, FALSE);
  expect_file("compare.txt", text);
}

static void fits_every_width(void) {
  g_autoptr(KvSummary) normal = fixture_normal();
  g_autoptr(KvSummary) slower = fixture_slower();
  g_autoptr(KvSummary) empty = fixture_empty();
  const KvSummary *runs[] = {normal, slower, empty};
  for (guint columns = 60; columns <= 160; columns += 7)
    for (guint r = 0; r < G_N_ELEMENTS(runs); r++) {
      g_autofree char *text = kv_table_run(runs[r], columns, FALSE);
      expect_narrower(text, columns);
    }
  for (guint columns = 60; columns <= 200; columns += 7) {
    g_autofree char *text = kv_table_compare(runs, 3, columns, FALSE);
    expect_narrower(text, columns);
  }
}

/* Take the escape sequences out. */
static char *plain(const char *text) {
  g_autoptr(GRegex) escape = g_regex_new("\033\\[[0-9;]*m", 0, 0, NULL);
  return g_regex_replace_literal(escape, text, -1, 0, "", 0, NULL);
}

static void colour_changes_no_letter(void) {
  g_autoptr(KvSummary) base = fixture_normal();
  g_autoptr(KvSummary) slower = fixture_slower();
  const KvSummary *runs[] = {base, slower};
  g_autofree char *without = kv_table_run(base, 90, FALSE), *with = kv_table_run(base, 90, TRUE);
  g_autofree char *stripped = plain(with);
  g_assert_null(strchr(without, '\033'));
  g_assert_nonnull(strchr(with, '\033'));
  g_assert_cmpstr(stripped, ==, without);
  g_autofree char *compared = kv_table_compare(runs, 2, 90, TRUE);
  g_assert_nonnull(strstr(compared, "\033[31m+30 %"));  /* a slower TPOT is bad */
  g_assert_nonnull(strstr(compared, "\033[31mfrom 0")); /* so are preemptions */
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/viz/table/one-run", one_run);
  g_test_add_func("/viz/table/everything", a_run_with_everything);
  g_test_add_func("/viz/table/one-request", one_request);
  g_test_add_func("/viz/table/no-request", no_request);
  g_test_add_func("/viz/table/compare", side_by_side);
  g_test_add_func("/viz/table/width", fits_every_width);
  g_test_add_func("/viz/table/colour", colour_changes_no_letter);
  return g_test_run();
}
