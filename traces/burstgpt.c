/* BurstGPT: seconds from the start, model, prompt and answer lengths a row; later releases add the
 * session. An answer of no token marks a failed request. Source: github.com/HPMLL/BurstGPT. */
#include "traces/csv_trace.h"
#include "traces/formats.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "Timestamp", "Request tokens", "Response tokens", NULL);
}

static const KvCsvShape shape = {.session = "Session ID",
                                 .time = "Timestamp",
                                 .input = "Request tokens",
                                 .output = "Response tokens",
                                 .leaves_out_empty = TRUE};

static gpointer create(KvTraceStream *stream, GError **error) {
  return kv_csv_trace_create(stream, &shape, error);
}

const KvTraceFormat kv_trace_burstgpt = {
    .id = "burstgpt",
    .description = "BurstGPT CSV, with or without session columns",
    .example =
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log",
    .recognise = recognise,
    .create = create,
    .next = kv_csv_trace_next,
    .destroy = kv_csv_trace_destroy,
    .timing = kv_csv_trace_timing,
    .block_tokens = kv_csv_trace_block_tokens,
};
