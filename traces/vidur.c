/* Vidur request traces: arrival in seconds, prefill and decode lengths a row; without the first
 * column, a list of lengths. Source: github.com/microsoft/vidur. */
#include "traces/csv_trace.h"
#include "traces/formats.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "num_prefill_tokens", "num_decode_tokens", NULL);
}

static const KvCsvShape shape = {
    .time = "arrived_at", .input = "num_prefill_tokens", .output = "num_decode_tokens"};

static gpointer create(KvTraceStream *stream, GError **error) {
  return kv_csv_trace_create(stream, &shape, error);
}

const KvTraceFormat kv_trace_vidur = {
    .id = "vidur",
    .description = "Vidur request CSV (and its lists of lengths)",
    .example = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.21,374,44",
    .recognise = recognise,
    .create = create,
    .next = kv_csv_trace_next,
    .destroy = kv_csv_trace_destroy,
    .timing = kv_csv_trace_timing,
    .block_tokens = kv_csv_trace_block_tokens,
};
