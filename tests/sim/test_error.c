/* sim/base/error.h: the line that a user reads and the status that the program exits with. */
#include "sim/base/error.h"

static void line_names_file_and_line(void) {
  g_autoptr(GError) error = NULL;
  kv_error_at(&error, "trace.jsonl", 12, "length: %d, expected at least 1", -3);
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_cmpstr(error->message, ==, "trace.jsonl:12: length: -3, expected at least 1");
}

static void line_zero_is_left_out(void) {
  g_autoptr(GError) error = NULL;
  kv_error_at(&error, "trace.jsonl", 0, "is empty");
  g_assert_cmpstr(error->message, ==, "trace.jsonl: is empty");
}

static void largest_line_is_printed(void) {
  g_autoptr(GError) error = NULL;
  kv_error_at(&error, "t", G_MAXUINT64, "x");
  g_assert_cmpstr(error->message, ==, "t:18446744073709551615: x");
}

static void message_is_one_line(void) {
  g_autoptr(GError) error = NULL;
  kv_error_at(&error, "t", 1, "'%s' is unknown", "a\nb\x1b[31m\x7f\tc");
  g_assert_cmpstr(error->message, ==, "t:1: 'a?b?[31m??c' is unknown");
}

static void text_beyond_ascii_is_kept(void) {
  char text[] = "modèle\r\n";
  g_assert_cmpstr(kv_error_one_line(text), ==, "modèle??");
}

static void nobody_listening_is_fine(void) {
  kv_error_at(NULL, "t", 1, "x");
}

static void exit_status_follows_the_code(void) {
  const struct {
    GQuark domain;
    int code, status;
  } cases[] = {
      {KV_ERROR, KV_ERROR_USAGE, 2},
      {KV_ERROR, KV_ERROR_INPUT, 2},
      {KV_ERROR, KV_ERROR_FAILED, 1},
      {KV_ERROR, KV_ERROR_INTERRUPTED, 130},
      {G_OPTION_ERROR, G_OPTION_ERROR_UNKNOWN_OPTION, 2},
      {G_FILE_ERROR, G_FILE_ERROR_NOSPC, 1},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = g_error_new(cases[i].domain, cases[i].code, "x");
    g_assert_cmpint(kv_error_exit_status(error), ==, cases[i].status);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/error/line-names-file-and-line", line_names_file_and_line);
  g_test_add_func("/error/line-zero-is-left-out", line_zero_is_left_out);
  g_test_add_func("/error/largest-line-is-printed", largest_line_is_printed);
  g_test_add_func("/error/message-is-one-line", message_is_one_line);
  g_test_add_func("/error/text-beyond-ascii-is-kept", text_beyond_ascii_is_kept);
  g_test_add_func("/error/nobody-listening-is-fine", nobody_listening_is_fine);
  g_test_add_func("/error/exit-status-follows-the-code", exit_status_follows_the_code);
  return g_test_run();
}
