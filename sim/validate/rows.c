#include "sim/validate/rows.h"

#include <string.h>

const char *kv_row_text(const KvCsv *csv, const char *name) {
  int column = kv_csv_column(csv, name);
  return column >= 0 ? csv->fields[column] : "";
}

gboolean kv_row_count(const KvCsv *csv, const char *name, guint *value, GError **error) {
  gint64 whole;
  if (!kv_csv_whole(csv, kv_csv_column(csv, name), 1, 100000000, &whole, error))
    return FALSE;
  *value = (guint)whole;
  return TRUE;
}

gboolean kv_rows_read(const char *path, const char *kind, const char *filter, const char *value,
                      KvReadRow read_row, const KvMeasuredOptions *options, GPtrArray *runs,
                      GError **error) {
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return FALSE;
  g_autoptr(GError) problem = NULL;
  while (kv_csv_row(&csv, &problem)) {
    if (filter && strcmp(kv_row_text(&csv, filter), value) != 0)
      continue;
    KvMeasuredRun *run = kv_measured_run_new(kind);
    run->source =
        g_strdup_printf("%s:%" G_GUINT64_FORMAT, path, kv_trace_stream_line_number(stream));
    if (!read_row(&csv, options, run, &problem)) {
      kv_measured_run_free(run);
      break;
    }
    g_ptr_array_add(runs, run);
  }
  kv_csv_clear(&csv);
  if (!problem)
    return TRUE;
  g_propagate_error(error, g_steal_pointer(&problem));
  return FALSE;
}
