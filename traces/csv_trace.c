#include "traces/csv_trace.h"

#include <string.h>

#include "traces/scan.h"

typedef struct {
  KvCsv csv;
  const KvCsvShape *shape;
  int time, input, output, id, session; /* columns, -1 if absent */
  KvTraceClock clock;
  GHashTable *turns; /* turns seen by session, if there is that column */
} CsvTrace;

/* Whether the first row's time says that there are none. */
static gboolean first_row_is_untimed(KvTraceStream *stream, const char *no_time) {
  gsize length;
  const char *head = no_time ? kv_trace_stream_head(stream, &length, NULL) : NULL;
  return head && length > strlen(no_time) && memcmp(head, no_time, strlen(no_time)) == 0;
}

gpointer kv_csv_trace_create(KvTraceStream *stream, const KvCsvShape *shape, GError **error) {
  CsvTrace *trace = g_new0(CsvTrace, 1);
  trace->shape = shape;
  trace->clock.rebase = shape->read_time != NULL; /* dates */
  if (!kv_csv_begin(&trace->csv, stream, error)) {
    g_free(trace);
    return NULL;
  }
  const KvCsv *csv = &trace->csv;
  trace->time = shape->time ? kv_csv_column(csv, shape->time) : -1;
  trace->input = kv_csv_column(csv, shape->input);
  trace->output = kv_csv_column(csv, shape->output);
  trace->id = shape->id ? kv_csv_column(csv, shape->id) : -1;
  trace->session = shape->session ? kv_csv_column(csv, shape->session) : -1;
  if (trace->session >= 0)
    trace->turns = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  if (first_row_is_untimed(stream, shape->no_time))
    trace->time = -1;
  if (trace->input < 0 || trace->output < 0) {
    kv_trace_stream_fail(stream, error, trace->input < 0 ? shape->input : shape->output,
                         "no such column, expected it in the header");
    kv_csv_trace_destroy(trace);
    return NULL;
  }
  return trace;
}

static void count_turn(CsvTrace *trace, KvTraceRequest *request) {
  gpointer turn = g_hash_table_lookup(trace->turns, &request->session);
  request->turn = GPOINTER_TO_UINT(turn);
  g_hash_table_insert(trace->turns, g_memdup2(&request->session, sizeof request->session),
                      GUINT_TO_POINTER(request->turn + 1));
}

static gboolean read_time(CsvTrace *trace, KvTraceRequest *request, GError **error) {
  double seconds;
  const KvCsv *csv = &trace->csv;
  gboolean read = trace->shape->read_time
                      ? trace->shape->read_time(csv, trace->time, &seconds, error)
                      : kv_csv_number(csv, trace->time, 0, 1e12, &seconds, error);
  return read && kv_trace_clock_read(&trace->clock, csv->stream, csv->names[trace->time], seconds,
                                     &request->arrival_seconds, error);
}

gboolean kv_csv_trace_next(gpointer state, KvTraceRequest *request, GError **error) {
  CsvTrace *trace = state;
  const KvCsv *csv = &trace->csv;
  gint64 smallest = trace->shape->leaves_out_empty ? 0 : 1, input, output;
  for (;;) {
    if (!kv_csv_row(&trace->csv, error) ||
        (trace->time >= 0 && !read_time(trace, request, error)) ||
        !kv_csv_whole(csv, trace->input, smallest, G_MAXINT32, &input, error) ||
        !kv_csv_whole(csv, trace->output, smallest, G_MAXINT32, &output, error))
      return FALSE;
    if (input > 0 && output > 0)
      break;
    kv_trace_stream_note(csv->stream, "empty",
                         "%s is 0: requests without a prompt or an answer are left out",
                         csv->names[input > 0 ? trace->output : trace->input]);
  }
  request->input_tokens = (guint32)input;
  request->output_tokens = (guint32)output;
  if (trace->id >= 0 && !kv_csv_whole(csv, trace->id, 0, G_MAXINT64 >> 2, &request->id, error))
    return FALSE;
  if (trace->session >= 0 && *csv->fields[trace->session]) {
    const char *name = csv->fields[trace->session];
    request->session = kv_trace_name_number(name, strlen(name));
    count_turn(trace, request);
  }
  return TRUE;
}

void kv_csv_trace_destroy(gpointer state) {
  CsvTrace *trace = state;
  kv_csv_clear(&trace->csv);
  g_clear_pointer(&trace->turns, g_hash_table_unref);
  g_free(trace);
}

KvTraceTiming kv_csv_trace_timing(gpointer state) {
  const CsvTrace *trace = state;
  return trace->time >= 0 ? KV_TRACE_TIMED : KV_TRACE_UNTIMED;
}

guint32 kv_csv_trace_block_tokens(gpointer state) {
  return 0;
}
