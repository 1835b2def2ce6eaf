/* Splitwise simulator traces: arrival in seconds, prompt and token sizes a row.
 * Source: github.com/Mutinifni/splitwise-sim. */
#include "traces/csv_trace.h"
#include "traces/formats.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "arrival_timestamp", "prompt_size", "token_size", NULL);
}

static const KvCsvShape shape = {.id = "request_id",
                                 .time = "arrival_timestamp",
                                 .input = "prompt_size",
                                 .output = "token_size"};

static gpointer create(KvTraceStream *stream, GError **error) {
  return kv_csv_trace_create(stream, &shape, error);
}

const KvTraceFormat kv_trace_splitwise = {
    .id = "splitwise",
    .description = "splitwise-sim request CSV",
    .example =
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n0,2,0,0.25,1,374,44",
    .recognise = recognise,
    .create = create,
    .next = kv_csv_trace_next,
    .destroy = kv_csv_trace_destroy,
    .timing = kv_csv_trace_timing,
    .block_tokens = kv_csv_trace_block_tokens,
};
