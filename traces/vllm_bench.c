/* The result file of vLLM's serving benchmark: one JSON object with the lengths of every request
 * that it sent, without their times. Source: github.com/vllm-project/vllm, benchmarks. A request
 * that failed has no answer and is left out. */
#include "traces/formats.h"
#include "traces/scan.h"

typedef struct {
  KvTraceStream *stream;
  GArray *inputs, *outputs; /* guint32; two numbers for each request of one record */
  guint at;
} VllmBench;

static gboolean recognise(const char *head, gsize length) {
  gsize at = 0;
  while (at < length && g_ascii_isspace(head[at]))
    at++;
  return at < length && head[at] == '{' &&
         (g_strstr_len(head, (gssize)length, "\"input_lens\"") ||
          (g_strstr_len(head, (gssize)length, "\"backend\"") &&
           g_strstr_len(head, (gssize)length, "\"num_prompts\"")));
}

static void destroy(gpointer state) {
  VllmBench *v = state;
  g_array_unref(v->inputs);
  g_array_unref(v->outputs);
  g_free(v);
}

static gboolean read_result(VllmBench *v, KvScan *scan) {
  const char *key;
  gsize length;
  guint count = 0;
  gboolean has_inputs = FALSE, has_outputs = FALSE;
  kv_scan_open(scan, '{', NULL);
  while (kv_scan_member(scan, &count, &key, &length)) {
    if (!has_inputs && kv_scan_is(key, length, "input_lens")) {
      has_inputs = TRUE;
      kv_scan_array_u32(scan, "input_lens", v->inputs);
    } else if (!has_outputs && kv_scan_is(key, length, "output_lens")) {
      has_outputs = TRUE;
      kv_scan_array_u32(scan, "output_lens", v->outputs);
    } else {
      kv_scan_skip(scan, NULL);
    }
  }
  kv_scan_finish(scan);
  if (!has_inputs || !has_outputs)
    return kv_scan_fail(scan, has_inputs ? "output_lens" : "input_lens",
                        "is missing (vllm bench serve writes it with --save-detailed)");
  if (v->inputs->len != v->outputs->len)
    return kv_scan_fail(scan, "output_lens", "%u lengths found, expected %u as in input_lens",
                        v->outputs->len, v->inputs->len);
  return !scan->failed;
}

static gpointer create(KvTraceStream *stream, GError **error) {
  VllmBench *v = g_new0(VllmBench, 1);
  v->stream = stream;
  v->inputs = g_array_new(FALSE, FALSE, sizeof(guint32));
  v->outputs = g_array_new(FALSE, FALSE, sizeof(guint32));
  char *text;
  gsize length;
  KvScan scan;
  GError *problem = NULL;
  gboolean read = kv_trace_stream_object(stream, &text, &length, &problem);
  if (read) {
    kv_scan_begin(&scan, stream, text, length, &problem);
    read = read_result(v, &scan);
  } else if (!problem) {
    kv_trace_stream_fail(stream, &problem, NULL, "is empty, expected a JSON object");
  }
  if (read && !kv_trace_stream_at_end(stream, &problem) && !problem)
    read = kv_trace_stream_fail(stream, &problem, NULL, "text after the object, expected its end");
  if (read && !problem)
    return v;
  g_propagate_error(error, problem);
  destroy(v);
  return NULL;
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  VllmBench *v = state;
  for (; v->at < v->inputs->len; v->at++) {
    guint32 input = g_array_index(v->inputs, guint32, v->at);
    guint32 output = g_array_index(v->outputs, guint32, v->at);
    if (input > G_MAXINT32 || output > G_MAXINT32)
      return kv_trace_stream_fail(v->stream, error,
                                  input > G_MAXINT32 ? "input_lens" : "output_lens",
                                  "element %u is too large, expected up to %d", v->at, G_MAXINT32);
    if (input > 0 && output > 0) {
      request->input_tokens = input;
      request->output_tokens = output;
      v->at++;
      return TRUE;
    }
    kv_trace_stream_note(v->stream, "empty",
                         "request %u has no prompt or no answer: such requests are left out",
                         v->at);
  }
  return FALSE;
}

static KvTraceTiming timing(gpointer state) {
  return KV_TRACE_UNTIMED;
}

static guint32 block_tokens(gpointer state) {
  return 0;
}

const KvTraceFormat kv_trace_vllm_bench = {
    .id = "vllm-bench",
    .description = "vLLM serving benchmark result JSON: lengths of its requests, untimed",
    .example =
        "{\"backend\": \"vllm\", \"num_prompts\": 2, \"input_lens\": [30, 12], \"output_lens\": [5, 9]}",
    .recognise = recognise,
    .create = create,
    .next = next,
    .destroy = destroy,
    .timing = timing,
    .block_tokens = block_tokens,
};
