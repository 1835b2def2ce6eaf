#include <string.h>

#include "fixtures.h"
#include "folder.h"
#include "viz/gnuplot.h"
#include "viz/viz.h"

static gboolean gnuplot_is_missing(void) {
  g_autofree char *program = g_find_program_in_path("gnuplot");
  if (program)
    return FALSE;
  g_test_skip("gnuplot was not found");
  return TRUE;
}

/* Draw the runs, and expect every picture that has something to show. Returns all SVGs as one text.
 */
static char *draw(const KvSummary *const *runs, guint n_runs) {
  Folder folder = folder_make();
  g_autofree char *reason = NULL;
  g_auto(GStrv) missing = kv_plots_draw(folder.directory, runs, n_runs, &reason);
  GString *all = g_string_new(NULL);
  if (missing[0])
    g_error("%s: %s", missing[0], reason);
  g_assert_null(reason);
  for (guint i = 0; kv_plots[i]; i++) {
    GString *script = g_string_new(NULL);
    gboolean expected = kv_plots[i]->script(script, runs, n_runs);
    g_autofree char *name = g_strconcat(kv_plots[i]->id, ".svg", NULL);
    g_autofree char *svg = folder_read(&folder, name);
    g_assert_true(expected == (svg != NULL));
    if (svg) {
      g_assert_true(g_str_has_prefix(svg, "<svg"));
      g_assert_nonnull(strstr(svg, kv_plots[i]->title));
      g_assert_null(strstr(svg, "GNUPLOT")); /* no version: the same file from every release */
      g_string_append(all, svg);
    }
    g_string_free(script, TRUE);
  }
  folder_remove(&folder);
  return g_string_free(all, FALSE);
}

static void every_picture_of_one_run(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  if (gnuplot_is_missing())
    return;
  g_autofree char *svg = draw((const KvSummary *[]){run}, 1);
  g_assert_nonnull(strstr(svg, "Decode attention"));
  g_assert_nonnull(strstr(svg, "time since the first arrival (min)"));
}

static void every_picture_of_several_runs(void) {
  g_autoptr(KvSummary) base = fixture_normal();
  g_autoptr(KvSummary) faster = fixture_faster();
  g_autoptr(KvSummary) empty = fixture_empty();
  if (gnuplot_is_missing())
    return;
  g_autofree char *svg = draw((const KvSummary *[]){base, faster, empty}, 3);
  g_assert_nonnull(strstr(svg, "kivi:bits=2"));
}

static void more_runs_than_colours(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  const KvSummary *runs[KV_N_COLOURS + 3];
  for (guint i = 0; i < G_N_ELEMENTS(runs); i++)
    runs[i] = run;
  if (gnuplot_is_missing())
    return;
  g_autofree char *svg = draw(runs, G_N_ELEMENTS(runs));
  g_assert_nonnull(svg);
}

static void one_request_and_none(void) {
  g_autoptr(KvSummary) single = fixture_single();
  g_autoptr(KvSummary) empty = fixture_empty();
  if (gnuplot_is_missing())
    return;
  g_autofree char *one = draw((const KvSummary *[]){single}, 1);
  g_autofree char *none = draw((const KvSummary *[]){empty}, 1);
  g_assert_nonnull(strstr(none, "no sample"));
}

static void the_same_twice(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autoptr(KvSummary) slower = fixture_slower();
  const KvSummary *runs[] = {run, slower};
  if (gnuplot_is_missing())
    return;
  g_autofree char *first = draw(runs, 2), *second = draw(runs, 2);
  g_assert_cmpstr(first, ==, second);
}

static void labels_cannot_reach_gnuplot(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autoptr(KvSummary) other = fixture_faster();
  g_free(run->label);
  run->label =
      g_strdup("'\nsystem(\"touch /tmp/owned\")\n`date` ${x} EOD\n\\ \"@ {/=80 big}_^ \377");
  if (gnuplot_is_missing())
    return;
  g_autofree char *svg = draw((const KvSummary *[]){run, other}, 2);
  g_assert_nonnull(strstr(svg, "‘date‘"));
}

static void without_gnuplot_the_run_goes_on(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  const KvSummary *runs[] = {run};
  Folder folder = folder_make();
  g_autofree char *path = g_strdup(g_getenv("PATH")), *reason = NULL;
  g_setenv("PATH", folder.root, TRUE);
  g_auto(GStrv) missing = kv_plots_draw(folder.directory, runs, 1, &reason);
  g_setenv("PATH", path, TRUE);
  g_assert_cmpuint(g_strv_length(missing), >=, 8);
  g_assert_true(g_strv_contains((const char *const *)missing, "latency-cdf"));
  g_assert_false(
      g_strv_contains((const char *const *)missing, "comparison")); /* nothing to compare */
  g_assert_cmpstr(reason, ==, "gnuplot was not found");
  folder_remove(&folder);
}

static void a_wrong_script_says_why(void) {
  static const char *const scripts[] = {"plot nonsense(\n", "set terminal svg\nplot x\n"};
  KvDrawing drawings[2];
  if (gnuplot_is_missing())
    return;
  kv_gnuplot_draw(scripts, 2, drawings);
  g_assert_null(drawings[0].svg);
  g_assert_nonnull(strstr(drawings[0].reason, "gnuplot failed: "));
  g_assert_null(drawings[1].reason);
  g_assert_nonnull(strstr(drawings[1].svg, "</svg>"));
  for (guint i = 0; i < 2; i++) {
    g_free(drawings[i].svg);
    g_free(drawings[i].reason);
  }
}

/* A gnuplot that dies at once, before it has read a script longer than a pipe holds. */
static void a_gnuplot_that_dies_is_survived(void) {
  static const char program[] = "#!/bin/sh\necho 'no such library' >&2\nexit 3\n";
  g_autofree char *root = g_dir_make_tmp("kvsim-viz-XXXXXX", NULL);
  g_autofree char *fake = g_build_filename(root, "gnuplot", NULL),
                  *path = g_strdup(g_getenv("PATH"));
  g_autofree char *script = g_strnfill(1 << 20, '#');
  g_assert_true(g_file_set_contents(fake, program, -1, NULL));
  g_assert_cmpint(g_chmod(fake, 0755), ==, 0);
  g_setenv("PATH", root, TRUE);
  KvDrawing drawing;
  kv_gnuplot_draw((const char *const[]){script}, 1, &drawing);
  g_setenv("PATH", path, TRUE);
  g_assert_null(drawing.svg);
  g_assert_true(g_str_has_prefix(drawing.reason, "gnuplot failed: "));
  g_free(drawing.reason);
  g_unlink(fake);
  g_rmdir(root);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/viz/plots/one-run", every_picture_of_one_run);
  g_test_add_func("/viz/plots/several-runs", every_picture_of_several_runs);
  g_test_add_func("/viz/plots/many-runs", more_runs_than_colours);
  g_test_add_func("/viz/plots/one-request-and-none", one_request_and_none);
  g_test_add_func("/viz/plots/the-same-twice", the_same_twice);
  g_test_add_func("/viz/plots/hostile-label", labels_cannot_reach_gnuplot);
  g_test_add_func("/viz/plots/no-gnuplot", without_gnuplot_the_run_goes_on);
  g_test_add_func("/viz/plots/wrong-script", a_wrong_script_says_why);
  g_test_add_func("/viz/plots/dying-gnuplot", a_gnuplot_that_dies_is_survived);
  return g_test_run();
}
