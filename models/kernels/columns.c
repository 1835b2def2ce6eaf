#include "models/kernels/columns.h"

#include <errno.h>
#include <float.h>
#include <string.h>
#include <zlib.h>

#include "sim/base/error.h"

struct KvColumns {
  gzFile file;
  char *path;
  guint64 line;
  char **names, **fields;
  guint n_fields;
};

enum { LONGEST_LINE = 16384 };

gboolean kv_columns_named(const char *path, const char *name) {
  g_autofree char *base = g_path_get_basename(path);
  gsize length = strlen(name);
  return g_str_has_prefix(base, name) &&
         (g_str_equal(base + length, ".csv") || g_str_equal(base + length, ".csv.gz"));
}

static char **read_fields(KvColumns *table, GError **error) {
  char text[LONGEST_LINE];
  while (gzgets(table->file, text, sizeof text)) {
    table->line++;
    if (*g_strstrip(text))
      return g_strsplit(text, ",", -1);
  }
  int code = Z_OK;
  const char *reason = gzerror(table->file, &code);
  if (code < 0)
    kv_error_at(error, table->path, table->line, "%s", reason);
  return NULL;
}

KvColumns *kv_columns_open(const char *path, GError **error) {
  gzFile file = gzopen(path, "rb");
  if (!file) {
    kv_error_at(error, path, 0, "cannot be opened: %s", g_strerror(errno));
    return NULL;
  }
  g_autoptr(KvColumns) table = g_new0(KvColumns, 1);
  GError *problem = NULL;
  table->file = file;
  table->path = g_strdup(path);
  table->names = read_fields(table, &problem);
  if (table->names)
    return g_steal_pointer(&table);
  if (problem)
    g_propagate_error(error, problem);
  else
    kv_error_at(error, path, 0, "is empty, expected a header of columns");
  return NULL;
}

void kv_columns_free(KvColumns *table) {
  if (!table)
    return;
  gzclose(table->file);
  g_strfreev(table->names);
  g_strfreev(table->fields);
  g_free(table->path);
  g_free(table);
}

static int find_column(const KvColumns *table, const char *column) {
  for (int i = 0; table->names[i]; i++)
    if (g_str_equal(table->names[i], column))
      return i;
  return -1;
}

gboolean kv_columns_has(const KvColumns *table, const char *column) {
  return find_column(table, column) >= 0;
}

gboolean kv_columns_next(KvColumns *table, GError **error) {
  g_strfreev(table->fields);
  table->fields = read_fields(table, error);
  table->n_fields = table->fields ? g_strv_length(table->fields) : 0;
  return table->fields != NULL;
}

const char *kv_columns_text(const KvColumns *table, const char *column) {
  int at = find_column(table, column);
  return at >= 0 && (guint)at < table->n_fields ? table->fields[at] : "";
}

static gboolean parse(const KvColumns *table, const char *column, double above, double *value,
                      const char *expected, GError **error) {
  const char *text = kv_columns_text(table, column);
  char *end;
  *value = g_ascii_strtod(text, &end);
  if (*text && !*end && *value > above && *value < 1e15)
    return TRUE;
  kv_error_at(error, table->path, table->line, "column '%s' holds '%s', expected %s", column, text,
              expected);
  return FALSE;
}

gboolean kv_columns_number(const KvColumns *table, const char *column, double *value,
                           GError **error) {
  return parse(table, column, -DBL_MIN, value, "a number", error);
}

gboolean kv_columns_positive(const KvColumns *table, const char *column, double *value,
                             GError **error) {
  return parse(table, column, 0, value, "a number above 0", error);
}
