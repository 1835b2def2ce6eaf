/* `kvsim trace ...` as a user types it: what it writes, and what it says when it is typed wrong. */
#include <glib/gstdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "traces/commands.h"

static const char *samples;

/* Run the words of `line`, of which FOLDER and SAMPLES stand for those folders. */
static int run(const char *line, const char *folder, GError **error) {
  g_auto(GStrv) words = g_strsplit(line, " ", -1);
  for (guint i = 0; words[i]; i++) {
    g_autoptr(GString) word = g_string_new(words[i]);
    g_string_replace(word, "FOLDER", folder, 0);
    g_string_replace(word, "SAMPLES", samples, 0);
    g_free(words[i]);
    words[i] = g_strdup(word->str);
  }
  g_autofree char **argv = g_memdup2(words, (g_strv_length(words) + 1) * sizeof *words);
  return kv_trace_command((int)g_strv_length(words), argv, error);
}

static void assert_same(const char *folder, const char *made, const char *wanted) {
  g_autofree char *made_path = g_build_filename(folder, made, NULL), *made_text = NULL;
  g_autofree char *wanted_path = g_build_filename(samples, wanted, NULL), *wanted_text = NULL;
  g_assert_true(g_file_get_contents(made_path, &made_text, NULL, NULL));
  g_assert_true(g_file_get_contents(wanted_path, &wanted_text, NULL, NULL));
  g_assert_cmpstr(made_text, ==, wanted_text);
  g_assert_cmpint(g_unlink(made_path), ==, 0);
}

/* The command lines of traces/samples/README.md make the committed files. */
static void test_samples(void) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  g_autoptr(GError) error = NULL;
  run("trace generate --preset=sharegpt-chat --requests=300 --rate=0.5 --shared-prompts=3 "
      "--shared-tokens=640 --block-tokens=64 --seed=7 -o FOLDER/a.jsonl",
      folder, &error);
  g_assert_no_error(error);
  assert_same(folder, "a.jsonl", "chat.jsonl");
  run("trace generate --requests=300 --rate=4 --cv=1.5 --input=lognormal:300:200 "
      "--answers=lognormal:150:100 --shared-prompts=4 --shared-tokens=512 --block-tokens=64 "
      "--seed=11 -o FOLDER/a.jsonl",
      folder, &error);
  g_assert_no_error(error);
  assert_same(folder, "a.jsonl", "calls.jsonl");
  g_assert_cmpint(g_rmdir(folder), ==, 0);
}

/* What leaves the trace as it is writes it as it is. */
static void test_identities(void) {
  static const char *const lines[] = {
      "trace convert SAMPLES/calls.jsonl -o FOLDER/a.jsonl",
      "trace slice --head=300 SAMPLES/calls.jsonl --output=FOLDER/a.jsonl",
      "trace scale --rate=1 -f native SAMPLES/calls.jsonl -o FOLDER/a.jsonl",
      "trace repeat --times=1 SAMPLES/calls.jsonl -o FOLDER/a.jsonl",
  };
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  for (guint i = 0; i < G_N_ELEMENTS(lines); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(run(lines[i], folder, &error), ==, 0);
    g_assert_no_error(error);
    assert_same(folder, "a.jsonl", "calls.jsonl");
  }
  g_assert_cmpint(g_rmdir(folder), ==, 0);
}

static void test_misuse(void) {
  static const struct {
    const char *line, *message;
  } cases[] = {
      {"trace", "trace: no command, expected one of stat, convert"},
      {"trace stet x", "unknown trace command 'stet', did you mean 'stat'?"},
      {"trace stat", "0 arguments found, expected one trace file"},
      {"trace stat a b", "2 arguments found, expected one trace file"},
      {"trace stat --jsn x", "--jsn"},
      {"trace stat -f azur SAMPLES/calls.jsonl", "did you mean 'azure'?"},
      {"trace stat FOLDER/none", "FOLDER/none: cannot be read"},
      {"trace scale SAMPLES/calls.jsonl", "--rate=FACTOR is missing"},
      {"trace scale --rate=fast SAMPLES/calls.jsonl", "--rate: 'fast' found, expected a number"},
      {"trace scale --rate=-1 SAMPLES/calls.jsonl", "the factor must be a positive number"},
      {"trace slice --from=9 --to=3 SAMPLES/calls.jsonl", "the window is empty"},
      {"trace slice --every=0 SAMPLES/calls.jsonl", "must not be negative"},
      {"trace slice --from=1e6 SAMPLES/calls.jsonl -o FOLDER/x", "no request is left"},
      {"trace smear SAMPLES/calls.jsonl", "stand on no ticks"},
      {"trace smear --tick=1 SAMPLES/chat.jsonl", "have no arrival times"},
      {"trace repeat --times=0 SAMPLES/calls.jsonl", "0 times, expected 1 or more"},
      {"trace repeat -", "standard input cannot be read twice"},
      {"trace generate --preset=sharegtp", "did you mean 'sharegpt'?"},
      {"trace generate --arrivals=poison", "did you mean 'poisson'?"},
      {"trace generate --input=3", "--input: '3' found, expected fixed:N"},
      {"trace generate --rate=0", "expected a positive rate"},
      {"trace generate --think=x", "--think: 'x' found, expected a number"},
      {"trace generate --shared-tokens=-4", "--shared-tokens: -4 found"},
      {"trace generate -n 0 -o FOLDER/x", "no request is left"},
      {"trace convert SAMPLES/calls.jsonl -o FOLDER/none/x", "cannot be written"},
  };
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(GString) message = g_string_new(cases[i].message);
    g_string_replace(message, "FOLDER", folder, 0);
    g_test_message("%s", cases[i].line);
    g_assert_cmpint(run(cases[i].line, folder, &error), ==, 2);
    g_assert_nonnull(error);
    if (!strstr(error->message, message->str))
      g_error("%s: '%s', expected '%s' in it", cases[i].line, error->message, message->str);
  }
  g_assert_cmpint(g_rmdir(folder), ==, 0); /* nothing was left behind */
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  samples = g_getenv("KVSIM_TEST_SAMPLES");
  if (!samples)
    g_error("KVSIM_TEST_SAMPLES must name traces/samples");
  g_test_add_func("/traces/commands/samples", test_samples);
  g_test_add_func("/traces/commands/identities", test_identities);
  g_test_add_func("/traces/commands/misuse", test_misuse);
  return g_test_run();
}
