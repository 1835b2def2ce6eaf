/* Lists of prompt and answer lengths without times, as data sets are often summarised. */
#include "traces/csv_trace.h"
#include "traces/formats.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "input_length", "output_length", NULL);
}

static const KvCsvShape shape = {
    .input = "input_length", .output = "output_length", .leaves_out_empty = TRUE};

static gpointer create(KvTraceStream *stream, GError **error) {
  return kv_csv_trace_create(stream, &shape, error);
}

const KvTraceFormat kv_trace_lengths = {
    .id = "lengths",
    .description = "CSV of input_length,output_length, untimed",
    .example = "input_length,output_length\n146,195",
    .recognise = recognise,
    .create = create,
    .next = kv_csv_trace_next,
    .destroy = kv_csv_trace_destroy,
    .timing = kv_csv_trace_timing,
    .block_tokens = kv_csv_trace_block_tokens,
};
