/* What the comma-separated formats share: a time, a prompt length and an answer length a row.
 *
 * A format says in a KvCsvShape what its columns are called; the rest is here. A table without the
 * time column is a list of lengths (KV_TRACE_UNTIMED).
 */
#ifndef KV_TRACES_CSV_TRACE_H
#define KV_TRACES_CSV_TRACE_H

#include "traces/csv.h"

typedef struct {
  const char *time, *input, *output;
  const char *id, *session; /* NULL where the format has none; optional columns otherwise */
  /* Some sources record failed requests with an empty prompt or answer: those rows are left out,
   * with a note. */
  gboolean leaves_out_empty;
  /* The time in seconds as the column says it; NULL where it is a number of seconds. */
  gboolean (*read_time)(const KvCsv *csv, int column, double *seconds, GError **error);
  const char *no_time; /* what stands in the time column of a list of lengths, or NULL */
} KvCsvShape;

gpointer kv_csv_trace_create(KvTraceStream *stream, const KvCsvShape *shape, GError **error);
gboolean kv_csv_trace_next(gpointer state, KvTraceRequest *request, GError **error);
void kv_csv_trace_destroy(gpointer state);
KvTraceTiming kv_csv_trace_timing(gpointer state);
guint32 kv_csv_trace_block_tokens(gpointer state);

#endif
