#include "sim/base/error.h"

G_DEFINE_QUARK(kv - error - quark, kv_error)

char *kv_error_one_line(char *text) {
  for (char *c = text; *c; c++)
    if (g_ascii_iscntrl(*c))
      *c = '?';
  return text;
}

void kv_error_at(GError **error, const char *file, guint64 line, const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *message = kv_error_one_line(g_strdup_vprintf(format, args));
  va_end(args);
  if (line > 0)
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s:%" G_GUINT64_FORMAT ": %s", file, line,
                message);
  else
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: %s", file, message);
}

volatile gint kv_interrupted;

gboolean kv_error_if_interrupted(GError **error) {
  if (G_LIKELY(!g_atomic_int_get(&kv_interrupted)))
    return FALSE;
  g_set_error(error, KV_ERROR, KV_ERROR_INTERRUPTED, "interrupted");
  return TRUE;
}

int kv_error_exit_status(const GError *error) {
  if (error->domain != KV_ERROR)
    return error->domain == G_OPTION_ERROR ? 2 : 1;
  switch ((KvError)error->code) {
  case KV_ERROR_USAGE:
  case KV_ERROR_INPUT:
    return 2;
  case KV_ERROR_INTERRUPTED:
    return 130;
  case KV_ERROR_FAILED:
    break;
  }
  return 1;
}
