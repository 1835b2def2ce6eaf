/* Every file under tests/traces/data/FORMAT reads as the file NAME.expected beside it says: the
 * format that was recognised, each request, notes to the user, and the error that ended it. With
 * KVSIM_UPDATE_EXPECTED set the expectations are rewritten, for review. */
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "sim/base/error.h"
#include "traces/trace.h"

static GString *transcript;

static GLogWriterOutput record_note(GLogLevelFlags level, const GLogField *fields, gsize n,
                                    gpointer user) {
  if (!(level & G_LOG_LEVEL_MESSAGE))
    return g_log_writer_default(level, fields, n, user);
  for (gsize i = 0; i < n; i++)
    if (strcmp(fields[i].key, "MESSAGE") == 0)
      g_string_append_printf(transcript, "note: %s\n", (const char *)fields[i].value);
  return G_LOG_WRITER_HANDLED;
}

static void append_request(const KvTraceRequest *q) {
  g_string_append_printf(
      transcript, "line %" G_GUINT64_FORMAT ": at %.9g, %u + %u tokens, id %" G_GINT64_FORMAT,
      q->line, q->arrival_seconds, q->input_tokens, q->output_tokens, q->id);
  if (q->session >= 0)
    g_string_append_printf(transcript, ", session %" G_GINT64_FORMAT " turn %u start %g think %g",
                           q->session, q->turn, q->session_start_seconds, q->think_seconds);
  if (q->priority != 0 || q->deadline_seconds > 0)
    g_string_append_printf(transcript, ", priority %d deadline %g", q->priority,
                           q->deadline_seconds);
  for (guint32 i = 0; i < q->n_hashes; i++)
    g_string_append_printf(transcript, "%s%" G_GUINT64_FORMAT, i ? " " : ", blocks ", q->hashes[i]);
  for (guint32 i = 0; i < q->n_tokens; i++)
    g_string_append_printf(transcript, "%s%u", i ? " " : ", ids ", q->tokens[i]);
  for (guint32 i = 0; i < q->n_calls; i++)
    g_string_append_printf(transcript, "%s%u for %g s gives %u", i ? ", " : ", calls at ",
                           q->calls[i].position, q->calls[i].duration_seconds,
                           q->calls[i].returned_tokens);
  g_string_append_c(transcript, '\n');
}

static void read_reader(KvTraceReader *reader, GError *problem) {
  static const char *const timings[] = {"timed", "sessions", "untimed"};
  KvTraceRequest request;
  if (reader) {
    g_string_append_printf(transcript, "%s, %s, blocks of %u\n", kv_trace_reader_format(reader)->id,
                           timings[kv_trace_reader_timing(reader)],
                           kv_trace_reader_block_tokens(reader));
    while (kv_trace_reader_next(reader, &request, &problem))
      append_request(&request);
    g_assert_false(kv_trace_reader_next(reader, &request, NULL));
    kv_trace_reader_close(reader);
  }
  if (problem) {
    g_assert_cmpint(kv_error_exit_status(problem), ==, 2);
    g_string_append_printf(transcript, "error: %s\n", problem->message);
    g_error_free(problem);
  }
}

/* Read the file at `path` from the disk and from memory: the same must come. */
static void check_file(gconstpointer user) {
  const char *path = user;
  g_autofree char *folder = g_path_get_dirname(path), *name = g_path_get_basename(path);
  g_autofree char *expected_path = g_strconcat(name, ".expected", NULL), *expected = NULL;
  g_autofree char *bytes = NULL;
  gsize length;
  GError *problem = NULL;
  g_assert_cmpint(g_chdir(folder), ==, 0);
  transcript = g_string_new(NULL);
  KvTraceReader *reader = kv_trace_reader_open(name, NULL, &problem);
  read_reader(reader, problem);
  g_autofree char *from_disk = g_string_free(transcript, FALSE);

  if (g_getenv("KVSIM_UPDATE_EXPECTED"))
    g_assert_true(g_file_set_contents(expected_path, from_disk, -1, NULL));
  g_assert_true(g_file_get_contents(expected_path, &expected, NULL, NULL));
  g_assert_cmpstr(from_disk, ==, expected);

  transcript = g_string_new(NULL);
  g_assert_true(g_file_get_contents(name, &bytes, &length, NULL));
  problem = NULL;
  reader = kv_trace_reader_open_memory(name, bytes, length, NULL, &problem);
  read_reader(reader, problem);
  g_autofree char *from_memory = g_string_free(transcript, FALSE);
  g_assert_cmpstr(from_memory, ==, expected);
}

static void add_folder(const char *path, const char *name) {
  g_autoptr(GDir) folder = g_dir_open(path, 0, NULL);
  g_assert_nonnull(folder);
  for (const char *file; (file = g_dir_read_name(folder));) {
    if (g_str_has_suffix(file, ".expected"))
      continue;
    g_autofree char *test = g_strdup_printf("/traces/%s/%s", name, file);
    g_test_add_data_func_full(test, g_build_filename(path, file, NULL), check_file, g_free);
  }
}

/* Every format of the table has its own folder of cases. */
static void test_every_format_has_cases(gconstpointer user) {
  for (guint i = 0; kv_trace_formats[i]; i++) {
    g_autofree char *path = g_build_filename(user, kv_trace_formats[i]->id, NULL);
    g_assert_true(g_file_test(path, G_FILE_TEST_IS_DIR));
  }
}

/* The example that the documentation shows is read, and recognised as what it is. */
static void test_examples(void) {
  for (guint i = 0; kv_trace_formats[i]; i++) {
    const KvTraceFormat *format = kv_trace_formats[i];
    g_autoptr(GError) error = NULL;
    KvTraceRequest request;
    g_autoptr(KvTraceReader) reader = kv_trace_reader_open_memory(
        format->id, format->example, strlen(format->example), NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(kv_trace_reader_format(reader)->id, ==, format->id);
    g_assert_true(kv_trace_reader_next(reader, &request, &error));
    g_assert_no_error(error);
  }
}

static void test_standard_input(void) {
  static const char text[] = "input_length,output_length\n3,4\n5,6\n";
  int ends[2], saved = dup(STDIN_FILENO);
  g_assert_cmpint(pipe(ends), ==, 0);
  g_assert_cmpint(write(ends[1], text, strlen(text)), ==, (gssize)strlen(text));
  close(ends[1]);
  dup2(ends[0], STDIN_FILENO);
  close(ends[0]);
  g_autoptr(GError) error = NULL;
  KvTraceRequest request;
  KvTraceReader *reader = kv_trace_reader_open("-", NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpstr(kv_trace_reader_name(reader), ==, "standard input");
  g_assert_true(kv_trace_reader_next(reader, &request, &error));
  g_assert_cmpuint(request.input_tokens, ==, 3);
  g_assert_true(kv_trace_reader_next(reader, &request, &error));
  g_assert_cmpuint(request.output_tokens, ==, 6);
  g_assert_cmpuint(request.line, ==, 3);
  g_assert_false(kv_trace_reader_next(reader, &request, &error));
  g_assert_no_error(error);
  kv_trace_reader_close(reader);
  dup2(saved, STDIN_FILENO);
  close(saved);
}

static void test_missing_file_and_format(void) {
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_trace_reader_open("/nonexistent/trace", NULL, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_nonnull(strstr(error->message, "/nonexistent/trace: cannot be read"));
  g_clear_error(&error);
  g_assert_null(kv_trace_reader_open_memory("x", "", 0, "azur", &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_assert_nonnull(strstr(error->message, "did you mean 'azure'?"));
}

/* A record far longer than the buffer, and progress that ends at the file's size. */
static void test_long_line(void) {
  enum { BLOCKS = 200000 };
  g_autoptr(GString) text =
      g_string_new("{\"timestamp\": 0, \"output_length\": 1, \"hash_ids\": [");
  for (guint i = 0; i < BLOCKS; i++)
    g_string_append_printf(text, "%s%u", i ? ", " : "", i);
  g_string_append_printf(text, "], \"input_length\": %u}\n", BLOCKS * 512);
  g_autoptr(GError) error = NULL;
  KvTraceRequest request;
  guint64 done, total;
  g_autoptr(KvTraceReader) reader =
      kv_trace_reader_open_memory("long", text->str, text->len, NULL, &error);
  g_assert_no_error(error);
  g_assert_true(kv_trace_reader_next(reader, &request, &error));
  g_assert_cmpuint(request.n_hashes, ==, BLOCKS);
  g_assert_cmpuint(request.hashes[BLOCKS - 1], ==, BLOCKS - 1);
  g_assert_false(kv_trace_reader_next(reader, &request, &error));
  kv_trace_reader_progress(reader, &done, &total);
  g_assert_cmpuint(total, ==, text->len);
  g_assert_cmpuint(done, ==, total);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_log_set_writer_func(record_note, NULL, NULL);
  const char *data = g_getenv("KVSIM_TEST_DATA");
  if (!data)
    g_error("KVSIM_TEST_DATA must name tests/traces/data");
  g_autoptr(GDir) folders = g_dir_open(data, 0, NULL);
  for (const char *name; folders && (name = g_dir_read_name(folders));) {
    g_autofree char *path = g_build_filename(data, name, NULL);
    add_folder(path, name);
  }
  g_test_add_data_func("/traces/every-format-has-cases", data, test_every_format_has_cases);
  g_test_add_func("/traces/examples", test_examples);
  g_test_add_func("/traces/standard-input", test_standard_input);
  g_test_add_func("/traces/missing-file-and-format", test_missing_file_and_format);
  g_test_add_func("/traces/long-line", test_long_line);
  return g_test_run();
}
