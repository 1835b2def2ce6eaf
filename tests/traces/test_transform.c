/* What slices, scales, smears, repeats and the writer do to a trace, seen in the trace that they
 * write. */
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "traces/transform.h"
#include "traces/writer.h"

/* 12 requests in ticks of 3 s, 4 in each; request i has i + 1 tokens and shares block 0. */
static char *ticks(void) {
  GString *text = g_string_new(NULL);
  for (guint i = 0; i < 12; i++)
    g_string_append_printf(text,
                           "{\"timestamp\": %u, \"input_length\": %u, \"output_length\": 2, "
                           "\"hash_ids\": [%u]}\n",
                           i / 4 * 3000, i + 1, i % 2);
  return g_string_free(text, FALSE);
}

static const char sessions[] =
    "session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"
    "0,0,0,0,10,1,100\n0,0,1,11,10,1,0\n1,1000,0,0,20,1,100\n"
    "1,1000,1,21,10,1,0\n2,2000,0,0,30,1,0\n";

static KvTraceReader *open_text(const char *text) {
  g_autoptr(GError) error = NULL;
  KvTraceReader *reader = kv_trace_reader_open_memory("trace", text, strlen(text), NULL, &error);
  g_assert_no_error(error);
  return reader;
}

/* "arrival:input" of every request; closes the reader. */
static char *drain(KvTraceReader *reader) {
  GString *out = g_string_new(NULL);
  g_autoptr(GError) error = NULL;
  KvTraceRequest q;
  while (kv_trace_reader_next(reader, &q, &error))
    g_string_append_printf(out, "%s%g:%u", out->len ? " " : "",
                           kv_trace_reader_timing(reader) == KV_TRACE_SESSIONS
                               ? q.session_start_seconds
                               : q.arrival_seconds,
                           q.input_tokens);
  g_assert_no_error(error);
  kv_trace_reader_close(reader);
  return g_string_free(out, FALSE);
}

static void assert_slice(const char *text, KvTraceSlice slice, const char *expected) {
  g_autoptr(GError) error = NULL;
  KvTraceReader *reader = kv_trace_slice(open_text(text), &slice, &error);
  g_assert_no_error(error);
  g_autofree char *got = drain(reader);
  g_assert_cmpstr(got, ==, expected);
}

static void test_slice(void) {
  g_autofree char *text = ticks();
  KvTraceSlice slice = KV_TRACE_SLICE_ALL;
  slice.from_seconds = 3;
  slice.to_seconds = 6;
  assert_slice(text, slice, "0:5 0:6 0:7 0:8");
  slice.skip = 1;
  slice.every = 2;
  assert_slice(text, slice, "0:6 0:8");
  slice = KV_TRACE_SLICE_ALL;
  slice.every = 5;
  slice.count = 2;
  assert_slice(text, slice, "0:1 3:6");
  slice = KV_TRACE_SLICE_ALL;
  slice.skip = 1;
  slice.count = 1; /* sessions, with all their turns */
  assert_slice(sessions, slice, "1:20 1:31");
  slice = KV_TRACE_SLICE_ALL;
  slice.from_seconds = 1;
  assert_slice(sessions, slice, "0:20 0:31 1:30");
}

static void test_slice_refuses(void) {
  g_autoptr(GError) error = NULL;
  KvTraceSlice slice = KV_TRACE_SLICE_ALL;
  slice.to_seconds = 0;
  g_assert_null(kv_trace_slice(open_text(sessions), &slice, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_clear_error(&error);
  slice.to_seconds = 5;
  g_assert_null(kv_trace_slice(open_text("input_length,output_length\n3,4\n"), &slice, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
}

static void test_scale(void) {
  g_autofree char *text = ticks();
  g_autoptr(GError) error = NULL;
  KvTraceSlice slice = KV_TRACE_SLICE_ALL;
  slice.skip = 3;
  slice.count = 2;
  KvTraceReader *reader = kv_trace_slice(open_text(text), &slice, &error);
  reader = kv_trace_scale(reader, 2, &error); /* they nest */
  g_assert_no_error(error);
  g_autofree char *got = drain(reader);
  g_assert_cmpstr(got, ==, "0:4 1.5:5");
  g_assert_null(kv_trace_scale(open_text(text), 0, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
}

static void test_smear(void) {
  g_autofree char *text = ticks();
  g_autoptr(GError) error = NULL;
  double arrivals[2][12];
  for (guint seed = 0; seed < 2; seed++) {
    g_autoptr(KvTraceReader) reader = kv_trace_smear(open_text(text), 2, seed, &error);
    KvTraceRequest q;
    g_assert_no_error(error);
    for (guint i = 0; i < 12; i++) {
      g_assert_true(kv_trace_reader_next(reader, &q, &error));
      g_assert_cmpuint(q.input_tokens, ==, i + 1);
      g_assert_cmpuint(q.hashes[0], ==, i % 2);
      double tick = i / 4 * 3.0;
      g_assert_true(q.arrival_seconds >= tick && q.arrival_seconds < tick + 2);
      g_assert_true(i == 0 || q.arrival_seconds >= arrivals[seed][i - 1]);
      arrivals[seed][i] = q.arrival_seconds;
    }
    g_assert_false(kv_trace_reader_next(reader, &q, &error));
  }
  g_assert_true(arrivals[0][1] != arrivals[0][2]);
  g_assert_true(arrivals[0][1] != arrivals[1][1]);
  KvTraceReader *again = kv_trace_smear(open_text(text), 2, 1, &error);
  KvTraceRequest q;
  g_assert_true(kv_trace_reader_next(again, &q, &error));
  g_assert_true(q.arrival_seconds == arrivals[1][0]);
  kv_trace_reader_close(again);
}

/* A file that is removed at the end of the test. */
static char *temporary(const char *text, const char *suffix) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  char *path = g_strconcat(folder, "/trace", suffix, NULL);
  if (text)
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
  return path;
}

static void remove_temporary(char *path) {
  g_autofree char *folder = g_path_get_dirname(path);
  g_unlink(path);
  g_assert_cmpint(g_rmdir(folder), ==, 0);
  g_free(path);
}

static void test_repeat(void) {
  char *path = temporary(
      "{\"timestamp\": 1000, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [7], \"session_id\": 4}\n"
      "{\"timestamp\": 3000, \"input_length\": 2, \"output_length\": 1}\n",
      ".jsonl");
  g_autoptr(GError) error = NULL;
  for (guint fresh = 0; fresh < 2; fresh++) {
    g_autoptr(KvTraceReader) reader = kv_trace_repeat(path, NULL, 2, fresh, &error);
    KvTraceRequest q[4];
    guint64 names[4] = {0};
    g_assert_no_error(error);
    for (guint i = 0; i < 4; i++) {
      g_assert_true(kv_trace_reader_next(reader, &q[i], &error));
      names[i] = q[i].n_hashes ? q[i].hashes[0] : 0;
    }
    g_assert_false(kv_trace_reader_next(reader, &q[0], &error));
    /* span 2 s and a mean gap of 2 s */
    g_assert_cmpfloat(q[2].arrival_seconds, ==, 5);
    g_assert_cmpfloat(q[3].arrival_seconds, ==, 7);
    g_assert_true((names[2] != 7) == (fresh == 1));
    g_assert_true(q[2].session >= 0 && q[2].session != 4);
    g_assert_cmpint(q[3].session, ==, -1);
    g_assert_cmpint(q[3].id, ==, 3);
  }
  g_assert_null(kv_trace_repeat("-", NULL, 2, FALSE, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  remove_temporary(path);
}

static void write_all(KvTraceReader *reader, const char *path) {
  g_autoptr(GError) error = NULL;
  KvTraceRequest q;
  KvTraceWriter *writer = kv_trace_writer_open(path, kv_trace_reader_timing(reader),
                                               kv_trace_reader_block_tokens(reader), &error);
  g_assert_no_error(error);
  while (kv_trace_reader_next(reader, &q, &error))
    kv_trace_writer_write(writer, &q);
  g_assert_no_error(error);
  g_assert_true(kv_trace_writer_commit(writer, &error));
  kv_trace_reader_close(reader);
}

/* Written as it was read, where blocks are numbered as they appear. */
static void test_writer_keeps_everything(void) {
  static const char text[] =
      "{\"kvsim_trace\": 1, \"block_tokens\": 4, \"timing\": \"timed\"}\n"
      "{\"timestamp\": 0.25, \"input_length\": 9, \"output_length\": 8, \"id\": 77, \"priority\": -3, "
      "\"deadline_ms\": 12.5, \"api_calls\": [{\"position\": 2, \"duration_ms\": 1.5, "
      "\"returned_tokens\": 0}, {\"position\": 7, \"duration_ms\": 0, \"returned_tokens\": 64}], "
      "\"hash_ids\": [0, 1, 2]}\n"
      "{\"timestamp\": 1000000.000001, \"input_length\": 2, \"output_length\": 1, \"session_id\": 4, "
      "\"turn\": 1, \"think_ms\": 3, \"hash_ids\": [3], \"token_ids\": [5, 4294967295]}\n";
  g_autofree char *got = NULL;
  char *path = temporary(NULL, ".jsonl");
  write_all(open_text(text), path);
  g_assert_true(g_file_get_contents(path, &got, NULL, NULL));
  g_assert_cmpstr(got, ==, text);
  remove_temporary(path);
}

static void test_writer_of_sessions_and_gzip(void) {
  g_autoptr(GError) error = NULL;
  char *path = temporary(NULL, ".jsonl.gz");
  g_autofree char *bytes = NULL;
  gsize length;
  write_all(open_text(sessions), path);
  g_assert_true(g_file_get_contents(path, &bytes, &length, NULL));
  g_assert_cmpmem(bytes, 2, "\x1f\x8b", 2);
  KvTraceReader *reader = kv_trace_reader_open(path, "native", &error);
  g_assert_no_error(error);
  g_assert_cmpint(kv_trace_reader_timing(reader), ==, KV_TRACE_SESSIONS);
  g_assert_cmpuint(kv_trace_reader_block_tokens(reader), ==, 16);
  g_autofree char *got = drain(reader), *expected = drain(open_text(sessions));
  g_assert_cmpstr(got, ==, expected);
  remove_temporary(path);
}

static void test_writer_leaves_nothing(void) {
  g_autoptr(GError) error = NULL;
  char *path = temporary(NULL, ".jsonl");
  KvTraceWriter *writer = kv_trace_writer_open(path, KV_TRACE_UNTIMED, 0, &error);
  kv_trace_writer_write(writer,
                        &(KvTraceRequest){.input_tokens = 1, .output_tokens = 1, .session = -1});
  kv_trace_writer_discard(writer);
  g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
  remove_temporary(path);
  g_assert_null(kv_trace_writer_open("/nonexistent/x", KV_TRACE_UNTIMED, 0, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/traces/transform/slice", test_slice);
  g_test_add_func("/traces/transform/slice-refuses", test_slice_refuses);
  g_test_add_func("/traces/transform/scale", test_scale);
  g_test_add_func("/traces/transform/smear", test_smear);
  g_test_add_func("/traces/transform/repeat", test_repeat);
  g_test_add_func("/traces/writer/keeps-everything", test_writer_keeps_everything);
  g_test_add_func("/traces/writer/sessions-and-gzip", test_writer_of_sessions_and_gzip);
  g_test_add_func("/traces/writer/leaves-nothing", test_writer_leaves_nothing);
  return g_test_run();
}
