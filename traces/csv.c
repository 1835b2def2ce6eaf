#include "traces/csv.h"

#include <math.h>
#include <string.h>

/* Split `line` in place at its commas; -1 if there are more fields than fit. */
static int split(char *line, char **fields) {
  guint n = 0;
  for (char *c = line;; c++) {
    if (n == KV_CSV_MOST_COLUMNS)
      return -1;
    while (*c == ' ' || *c == '\t')
      c++;
    if (*c == '"') { /* a doubled quote stands for one */
      char *out = fields[n++] = ++c;
      for (; *c && (*c != '"' || c[1] == '"'); c++) {
        c += *c == '"';
        *out++ = *c;
      }
      c += *c == '"';
      char *comma = strchr(c, ',');
      *out = '\0';
      if (!comma)
        return (int)n;
      c = comma;
      continue;
    }
    fields[n++] = c;
    while (*c && *c != ',')
      c++;
    char *end = c;
    while (end > fields[n - 1] && (end[-1] == ' ' || end[-1] == '\t'))
      end--;
    gboolean last = *c == '\0';
    *end = '\0';
    if (last)
      return (int)n;
  }
}

gboolean kv_csv_recognise(const char *head, gsize length, ...) {
  const char *newline = memchr(head, '\n', length);
  gsize end = newline ? (gsize)(newline - head) : length;
  if (end > 0 && head[end - 1] == '\r')
    end--;
  if (end == 0 || end > 4096 || head[0] == '{' || head[0] == '[') /* JSON has quoted names too */
    return FALSE;
  g_autofree char *line = g_strndup(head, end);
  char *fields[KV_CSV_MOST_COLUMNS];
  int n = split(line, fields);
  gboolean all = n > 0;
  va_list names;
  va_start(names, length);
  for (const char *name; all && (name = va_arg(names, const char *));) {
    all = FALSE;
    for (int i = 0; i < n && !all; i++)
      all = g_ascii_strcasecmp(fields[i], name) == 0;
  }
  va_end(names);
  return all;
}

gboolean kv_csv_begin(KvCsv *csv, KvTraceStream *stream, GError **error) {
  char *line, *fields[KV_CSV_MOST_COLUMNS];
  gsize length;
  GError *problem = NULL;
  *csv = (KvCsv){.stream = stream};
  if (!kv_trace_stream_filled_line(stream, &line, &length, &problem)) {
    if (!problem)
      return kv_trace_stream_fail(stream, error, NULL, "is empty, expected a header line");
    g_propagate_error(error, problem);
    return FALSE;
  }
  int n = split(line, fields);
  if (n < 0)
    return kv_trace_stream_fail(stream, error, NULL, "more than %d columns, expected fewer",
                                KV_CSV_MOST_COLUMNS);
  csv->n_columns = (guint)n;
  for (int i = 0; i < n; i++)
    csv->names[i] = g_strdup(fields[i]);
  return TRUE;
}

void kv_csv_clear(KvCsv *csv) {
  for (guint i = 0; i < csv->n_columns; i++)
    g_free(csv->names[i]);
  csv->n_columns = 0;
}

int kv_csv_column(const KvCsv *csv, const char *name) {
  for (guint i = 0; i < csv->n_columns; i++)
    if (g_ascii_strcasecmp(csv->names[i], name) == 0)
      return (int)i;
  return -1;
}

gboolean kv_csv_row(KvCsv *csv, GError **error) {
  char *line;
  gsize length;
  if (!kv_trace_stream_filled_line(csv->stream, &line, &length, error))
    return FALSE;
  int n = memchr(line, '\0', length) ? -2 : split(line, csv->fields);
  if (n == -2)
    return kv_trace_stream_fail(csv->stream, error, NULL, "a NUL byte in the line, expected text");
  if (n != (int)csv->n_columns)
    return kv_trace_stream_fail(csv->stream, error, NULL,
                                "%s%d fields, expected %u as in the header", n < 0 ? "over " : "",
                                n < 0 ? KV_CSV_MOST_COLUMNS : n, csv->n_columns);
  return TRUE;
}

gboolean kv_csv_fail(const KvCsv *csv, int column, const char *expected, GError **error) {
  const char *field = csv->fields[column];
  g_autofree char *printable = g_strescape(field, NULL);
  return kv_trace_stream_fail(csv->stream, error, csv->names[column],
                              "%s%.60s%s found, expected %s", *field ? "'" : "nothing", printable,
                              *field ? "'" : "", expected);
}

gboolean kv_csv_number(const KvCsv *csv, int column, double min, double max, double *value,
                       GError **error) {
  const char *field = csv->fields[column];
  char *end = NULL;
  /* strtod's hexadecimal, "inf" and "nan" are nothing that a trace should hold */
  if (strspn(field, "0123456789+-.eE") == strlen(field))
    *value = g_ascii_strtod(field, &end);
  if (!end || end == field || *end != '\0')
    return kv_csv_fail(csv, column, "a number", error);
  if (!isfinite(*value) || *value < min || *value > max) {
    g_autofree char *expected = g_strdup_printf("a number from %g to %g", min, max);
    return kv_csv_fail(csv, column, expected, error);
  }
  return TRUE;
}

gboolean kv_csv_whole(const KvCsv *csv, int column, gint64 min, gint64 max, gint64 *value,
                      GError **error) {
  const char *field = csv->fields[column], *c = field;
  gint64 v = 0;
  for (; g_ascii_isdigit(*c) && c - field < 18; c++)
    v = v * 10 + (*c - '0');
  if (c == field || *c != '\0') { /* a sign, a fraction, an exponent, a long or a wrong field */
    double real;
    if (!kv_csv_number(csv, column, -G_MAXDOUBLE, G_MAXDOUBLE, &real, error))
      return FALSE;
    if (real != floor(real))
      return kv_csv_fail(csv, column, "a whole number", error);
    v = fabs(real) < 0x1p62 ? (gint64)real : real < 0 ? G_MININT64 : G_MAXINT64;
  }
  if (v < min || v > max) {
    g_autofree char *expected =
        g_strdup_printf("a whole number from %" G_GINT64_FORMAT " to %" G_GINT64_FORMAT, min, max);
    return kv_csv_fail(csv, column, expected, error);
  }
  *value = v;
  return TRUE;
}

gboolean kv_csv_tokens(const KvCsv *csv, int column, guint32 *tokens, GError **error) {
  gint64 value;
  if (!kv_csv_whole(csv, column, 1, G_MAXINT32, &value, error))
    return FALSE;
  *tokens = (guint32)value;
  return TRUE;
}
