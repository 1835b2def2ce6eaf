/* sim/base/output.h: outputs are whole or absent, and nothing of the user's is lost. */
#include "sim/base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim/base/error.h"

/* Each test has an empty folder of its own. */
typedef struct {
  char *folder;
} Place;

static char *at(const Place *place, const char *name) {
  return g_build_filename(place->folder, name, NULL);
}

static guint entries(const char *folder) {
  g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
  guint count = 0;
  while (dir && g_dir_read_name(dir))
    count++;
  return count;
}

static void remove_all(const char *path) {
  GDir *dir = g_file_test(path, G_FILE_TEST_IS_SYMLINK) ? NULL : g_dir_open(path, 0, NULL);
  for (const char *name; dir && (name = g_dir_read_name(dir));) {
    g_autofree char *file = g_build_filename(path, name, NULL);
    remove_all(file);
  }
  if (dir)
    g_dir_close(dir);
  g_remove(path);
}

static void set_up(Place *place, gconstpointer unused) {
  place->folder = g_dir_make_tmp("kvsim-output-XXXXXX", NULL);
  g_assert_nonnull(place->folder);
}

static void tear_down(Place *place, gconstpointer unused) {
  kv_output_discard_all();
  remove_all(place->folder);
  g_free(place->folder);
}

static void put(const char *path, const char *text) {
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
}

static void put_in(const char *folder, const char *name, const char *text) {
  g_autofree char *path = g_build_filename(folder, name, NULL);
  put(path, text);
}

static void assert_holds(const char *path, const char *text) {
  g_autofree char *found = NULL;
  g_assert_true(g_file_get_contents(path, &found, NULL, NULL));
  g_assert_cmpstr(found, ==, text);
}

static void file_appears_at_the_commit(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "a.csv");
  g_autoptr(GError) error = NULL;
  KvOutput *output = kv_output_open(path, &error);
  g_assert_no_error(error);
  kv_output_print(output, "%d,%s\n", 7, "seven");
  kv_output_write(output, "x\0y", 3);
  char *room = kv_output_reserve(output, 10);
  memcpy(room, "ten", 3);
  kv_output_advance(output, 3);
  g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
  g_assert_true(kv_output_commit(output, &error));
  g_autofree char *found = NULL;
  gsize length;
  g_assert_true(g_file_get_contents(path, &found, &length, NULL));
  g_assert_cmpmem(found, length, "7,seven\nx\0yten", 14);
  g_assert_cmpuint(entries(place->folder), ==, 1);
}

static void file_is_as_readable_as_the_umask_says(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "a");
  mode_t before = umask(027);
  g_assert_true(kv_output_write_file(path, "x", -1, NULL));
  umask(before);
  struct stat status;
  g_assert_cmpint(stat(path, &status), ==, 0);
  g_assert_cmphex(status.st_mode & 0777, ==, 0640);
}

static void large_files_are_whole(Place *place, gconstpointer unused) {
  enum { BYTES = 1000003 };
  g_autofree char *path = at(place, "large"), *text = g_malloc(BYTES);
  for (guint i = 0; i < BYTES; i++)
    text[i] = (char)('a' + i % 23);
  KvOutput *output = kv_output_open(path, NULL);
  kv_output_write(output, text, 70001); /* in pieces around the buffer's size, and one beyond it */
  for (guint i = 70001; i < 300000; i++)
    kv_output_write(output, text + i, 1);
  kv_output_write(output, text + 300000, BYTES - 300000);
  g_assert_true(kv_output_commit(output, NULL));
  g_autofree char *found = NULL;
  gsize length;
  g_assert_true(g_file_get_contents(path, &found, &length, NULL));
  g_assert_true(length == BYTES && memcmp(found, text, BYTES) == 0);
}

static void discarded_file_leaves_the_old_one(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "a");
  put(path, "old");
  KvOutput *output = kv_output_open(path, NULL);
  kv_output_print(output, "new");
  kv_output_discard(output);
  assert_holds(path, "old");
  g_assert_cmpuint(entries(place->folder), ==, 1);
  g_assert_true(kv_output_write_file(path, "newer\n", 5, NULL));
  assert_holds(path, "newer");
}

static void two_outputs_of_one_name_do_not_mix(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "a");
  KvOutput *one = kv_output_open(path, NULL), *two = kv_output_open(path, NULL);
  g_assert_true(one && two);
  kv_output_print(one, "one");
  kv_output_print(two, "two");
  g_assert_true(kv_output_commit(two, NULL));
  assert_holds(path, "two");
  g_assert_true(kv_output_commit(one, NULL));
  assert_holds(path, "one");
  g_assert_cmpuint(entries(place->folder), ==, 1);
}

static void link_stays_a_link(Place *place, gconstpointer unused) {
  g_autofree char *file = at(place, "file"), *link = at(place, "link");
  put(file, "old");
  g_assert_cmpint(symlink("file", link), ==, 0);
  g_assert_true(kv_output_write_file(link, "new", -1, NULL));
  g_assert_true(g_file_test(link, G_FILE_TEST_IS_SYMLINK));
  assert_holds(file, "new");
}

static void devices_and_pipes_are_written_in_place(Place *place, gconstpointer unused) {
  struct stat status;
  g_assert_true(kv_output_write_file("/dev/null", "x", -1, NULL));
  g_assert_cmpint(stat("/dev/null", &status), ==, 0);
  g_assert_true(S_ISCHR(status.st_mode));
  g_autofree char *pipe = at(place, "pipe");
  g_assert_cmpint(mkfifo(pipe, 0600), ==, 0);
  int reader = g_open(pipe, O_RDONLY | O_NONBLOCK, 0);
  g_assert_true(kv_output_write_file(pipe, "through", -1, NULL));
  char found[16] = "";
  g_assert_cmpint(read(reader, found, sizeof found - 1), ==, 7);
  g_assert_cmpstr(found, ==, "through");
  close(reader);
}

static void full_disk_is_said_at_the_commit(Place *place, gconstpointer unused) {
  if (!g_file_test("/dev/full", G_FILE_TEST_EXISTS)) {
    g_test_skip("no /dev/full");
    return;
  }
  g_autoptr(GError) error = NULL;
  KvOutput *output = kv_output_open("/dev/full", &error);
  g_assert_no_error(error);
  for (guint i = 0; i < 100000; i++)
    kv_output_print(output, "%u\n", i);
  g_assert_false(kv_output_commit(output, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_autofree char *expected =
      g_strdup_printf("/dev/full: cannot be written (%s)", g_strerror(ENOSPC));
  g_assert_cmpstr(error->message, ==, expected);
}

static void unwritable_file_is_said_at_once(Place *place, gconstpointer unused) {
  g_autofree char *file = at(place, "file"), *below = at(place, "file/a"), *slash = at(place, "a/");
  g_autofree char *missing = at(place, "missing/a");
  put(file, "x");
  const struct {
    const char *path;
    int problem;
  } cases[] = {
      {missing, ENOENT}, {below, ENOTDIR}, {place->folder, EISDIR}, {slash, ENOENT}, {"", ENOENT}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(kv_output_open(cases[i].path, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    g_autofree char *expected =
        g_strdup_printf("%s: cannot be written (%s)", cases[i].path, g_strerror(cases[i].problem));
    g_assert_cmpstr(error->message, ==, expected);
  }
  g_assert_cmpuint(entries(place->folder), ==, 1);
}

/* Make and commit a run in `path`, of a scenario, a summary and `extra`. */
static void commit_run(const char *path, const char *extra) {
  g_autoptr(GError) error = NULL;
  KvRunDirectory *run = kv_run_directory_begin(path, &error);
  g_assert_no_error(error);
  const char *const names[] = {"scenario.json", "summary.json", extra};
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autofree char *file = kv_run_directory_file(run, names[i]);
    g_assert_true(kv_output_write_file(file, "{}", -1, NULL));
  }
  g_assert_true(kv_run_directory_commit(run, &error));
}

static void run_appears_whole_at_the_commit(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "runs/one"), *parent = at(place, "runs");
  KvRunDirectory *run = kv_run_directory_begin(path, NULL);
  g_assert_cmpstr(kv_run_directory_path(run), ==, path);
  g_autofree char *file = kv_run_directory_file(run, "summary.json");
  g_assert_true(kv_output_write_file(file, "{}", -1, NULL));
  g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
  g_assert_true(kv_run_directory_commit(run, NULL));
  g_assert_cmpuint(entries(path), ==, 1);
  g_assert_cmpuint(entries(parent), ==, 1);
}

static void discarded_run_leaves_nothing(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "one");
  KvRunDirectory *run = kv_run_directory_begin(path, NULL);
  g_autofree char *file = kv_run_directory_file(run, "a"),
                  *folder = kv_run_directory_file(run, "plots");
  g_assert_true(kv_output_write_file(file, "x", -1, NULL));
  g_assert_cmpint(g_mkdir(folder, 0777), ==, 0);
  put_in(folder, "b.svg", "x");
  kv_run_directory_discard(run);
  g_assert_cmpuint(entries(place->folder), ==, 0);
}

static void earlier_run_is_replaced_whole(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "one"), *slash = g_strconcat(path, "/", NULL);
  commit_run(path, "old.csv");
  commit_run(slash, "new.csv");
  g_autofree char *old = g_build_filename(path, "old.csv", NULL);
  g_assert_false(g_file_test(old, G_FILE_TEST_EXISTS));
  g_assert_cmpuint(entries(path), ==, 3);
  g_assert_cmpuint(entries(place->folder), ==, 1);
}

static void replacing_does_not_follow_links(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "one"), *precious = at(place, "precious"),
                  *link = at(place, "one/link");
  commit_run(path, "a");
  g_assert_cmpint(g_mkdir(precious, 0777), ==, 0);
  put_in(precious, "thesis", "x");
  g_assert_cmpint(symlink("../precious", link), ==, 0);
  commit_run(path, "b");
  g_assert_cmpuint(entries(path), ==, 3);
  g_assert_cmpuint(entries(precious), ==, 1);
}

static void empty_folder_is_taken(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "one");
  g_assert_cmpint(g_mkdir(path, 0777), ==, 0);
  commit_run(path, "a");
  g_assert_cmpuint(entries(path), ==, 3);
}

static void a_users_folder_is_refused(Place *place, gconstpointer unused) {
  g_autofree char *notes = at(place, "notes"), *scenarios = at(place, "scenarios"),
                  *file = at(place, "file");
  g_assert_cmpint(g_mkdir(notes, 0777), ==, 0);
  put_in(notes, "notes.txt", "x");
  g_assert_cmpint(g_mkdir(scenarios, 0777), ==, 0);
  put_in(scenarios, "scenario.json", "{}"); /* a user's own, beside a trace */
  put_in(scenarios, "trace.jsonl", "{}");
  put(file, "x");
  g_autofree char *here = g_get_current_dir();
  const char *const paths[] = {notes, scenarios, file, ".", here};
  for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(kv_run_directory_begin(paths[i], &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    g_autofree char *expected = g_strdup_printf(
        "%s: exists and is not an earlier run, expected a new name or a run's folder", paths[i]);
    g_assert_cmpstr(error->message, ==, expected);
  }
  g_assert_cmpuint(entries(scenarios), ==, 2);
  g_assert_cmpuint(entries(place->folder), ==, 3);
}

static void unwritable_run_is_said_at_once(Place *place, gconstpointer unused) {
  g_autofree char *file = at(place, "file"), *below = at(place, "file/one");
  put(file, "x");
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_run_directory_begin(below, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_assert_true(g_str_has_prefix(error->message, below));
  g_assert_true(g_str_has_prefix(error->message + strlen(below), ": cannot be written ("));
}

static void failed_commit_keeps_what_stands_there(Place *place, gconstpointer unused) {
  g_autofree char *path = at(place, "one"), *temporary = NULL;
  commit_run(path, "old");
  KvRunDirectory *run = kv_run_directory_begin(path, NULL);
  temporary = kv_run_directory_file(run, ".");
  remove_all(temporary); /* someone tidies up meanwhile */
  g_autofree char *itself = g_path_get_dirname(temporary);
  g_rmdir(itself);
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_run_directory_commit(run, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_assert_cmpuint(entries(path), ==, 3);
  g_assert_cmpuint(entries(place->folder), ==, 1);
}

static void leftovers_of_a_killed_process_are_no_trouble(Place *place, gconstpointer unused) {
  for (guint i = 0; i < 3; i++) { /* what this process, killed, would have left */
    g_autofree char *left = g_strdup_printf("%s/one.tmp-%d-%u", place->folder, (int)getpid(), i);
    g_assert_cmpint(g_mkdir(left, 0777), ==, 0);
  }
  g_autofree char *path = at(place, "one");
  commit_run(path, "a");
  g_assert_cmpuint(entries(path), ==, 3);
}

static gpointer write_many(gpointer folder) {
  for (guint i = 0; i < 200; i++) {
    g_autofree char *path = g_strdup_printf("%s/same-%u", (const char *)folder, i % 10);
    g_assert_true(kv_output_write_file(path, "whole", -1, NULL));
  }
  return NULL;
}

static void threads_can_write_at_once(Place *place, gconstpointer unused) {
  GThread *threads[8];
  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    threads[i] = g_thread_new("writer", write_many, place->folder);
  for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
    g_thread_join(threads[i]);
  g_assert_cmpuint(entries(place->folder), ==, 10);
  for (guint i = 0; i < 10; i++) {
    g_autofree char *path = g_strdup_printf("%s/same-%u", place->folder, i);
    assert_holds(path, "whole");
  }
}

static void everything_uncommitted_can_be_discarded(Place *place, gconstpointer unused) {
  g_autofree char *file = at(place, "a"), *folder = at(place, "one");
  KvOutput *output = kv_output_open(file, NULL);
  KvRunDirectory *run = kv_run_directory_begin(folder, NULL);
  g_autofree char *inside = kv_run_directory_file(run, "b");
  g_assert_nonnull(kv_output_open(inside, NULL));
  kv_output_print(output, "x");
  kv_output_discard_all();
  g_assert_cmpuint(entries(place->folder), ==, 0);
  kv_output_discard_all();
}

int main(int argc, char **argv) {
  static const struct {
    const char *path;
    void (*test)(Place *place, gconstpointer unused);
  } tests[] = {
      {"/output/file-appears-at-the-commit", file_appears_at_the_commit},
      {"/output/file-is-as-readable-as-the-umask-says", file_is_as_readable_as_the_umask_says},
      {"/output/large-files-are-whole", large_files_are_whole},
      {"/output/discarded-file-leaves-the-old-one", discarded_file_leaves_the_old_one},
      {"/output/two-outputs-of-one-name-do-not-mix", two_outputs_of_one_name_do_not_mix},
      {"/output/link-stays-a-link", link_stays_a_link},
      {"/output/devices-and-pipes-are-written-in-place", devices_and_pipes_are_written_in_place},
      {"/output/full-disk-is-said-at-the-commit", full_disk_is_said_at_the_commit},
      {"/output/unwritable-file-is-said-at-once", unwritable_file_is_said_at_once},
      {"/output/run-appears-whole-at-the-commit", run_appears_whole_at_the_commit},
      {"/output/discarded-run-leaves-nothing", discarded_run_leaves_nothing},
      {"/output/earlier-run-is-replaced-whole", earlier_run_is_replaced_whole},
      {"/output/replacing-does-not-follow-links", replacing_does_not_follow_links},
      {"/output/empty-folder-is-taken", empty_folder_is_taken},
      {"/output/a-users-folder-is-refused", a_users_folder_is_refused},
      {"/output/unwritable-run-is-said-at-once", unwritable_run_is_said_at_once},
      {"/output/failed-commit-keeps-what-stands-there", failed_commit_keeps_what_stands_there},
      {"/output/leftovers-of-a-killed-process-are-no-trouble",
       leftovers_of_a_killed_process_are_no_trouble},
      {"/output/threads-can-write-at-once", threads_can_write_at_once},
      {"/output/everything-uncommitted-can-be-discarded", everything_uncommitted_can_be_discarded},
  };
  g_test_init(&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(tests); i++)
    g_test_add(tests[i].path, Place, NULL, set_up, tests[i].test, tear_down);
  return g_test_run();
}
