/* Logs of vLLM's own request times: requests.jsonl, an object a request, beside meta.json (the
 * engine's settings) and timeseries.csv (running and waiting each second). Source: the bench
 * folder of github.com/casys-kaist/LLMServingSim.
 *
 * queued_ts, scheduled_ts, first_token_ts and last_token_ts are the engine core's clock. queued_ts
 * is set when the core's loop takes its input in, between steps, so latencies count from there.
 * The GPU is the folder above the model's. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/validate/kinds.h"
#include "traces/csv.h"
#include "traces/stream.h"

static gboolean recognise(const char *head, gsize length) {
  return length > 0 && head[0] == '{' && g_strstr_len(head, (gssize)length, "\"queued_ts\"") &&
         g_strstr_len(head, (gssize)length, "\"first_token_ts\"");
}

typedef struct {
  KvMeasuredRequest request;
  guint64 number; /* of "bench-N": the order of the trace */
} Numbered;

static int by_number(const void *a, const void *b) {
  guint64 x = ((const Numbered *)a)->number, y = ((const Numbered *)b)->number;
  return x < y ? -1 : x > y;
}

static guint64 number_of(const char *id) {
  gsize digits = strlen(id);
  while (digits > 0 && g_ascii_isdigit(id[digits - 1]))
    digits--;
  return g_ascii_strtoull(id + digits, NULL, 10);
}

static void read_request(KvJson *json, Numbered *to, double *first, double *last) {
  json_t *o = kv_json_root(json);
  double never = KV_JSON_REQUIRED;
  double queued = kv_json_number(json, o, "queued_ts", never, 0, 1e12);
  double scheduled = kv_json_number(json, o, "scheduled_ts", never, 0, 1e12);
  double token = kv_json_number(json, o, "first_token_ts", never, 0, 1e12);
  double end = kv_json_number(json, o, "last_token_ts", never, 0, 1e12);
  KvMeasuredRequest *r = &to->request;
  to->number = number_of(kv_json_string(json, o, "request_id", "", TRUE));
  r->input_tokens = (guint32)kv_json_integer(json, o, "input_toks", never, 1, G_MAXINT32);
  r->output_tokens = (guint32)kv_json_integer(json, o, "output_toks", never, 1, G_MAXINT32);
  r->arrival_seconds = kv_json_number(json, o, "arrival_time", queued, 0, 1e12);
  r->seconds[KV_LATENCY_QUEUE] = scheduled - queued;
  r->seconds[KV_LATENCY_TTFT] = token - queued;
  r->seconds[KV_LATENCY_TPOT] =
      r->output_tokens > 1 ? (end - token) / (r->output_tokens - 1.0) : NAN;
  r->seconds[KV_LATENCY_ITL] = NAN;
  r->seconds[KV_LATENCY_E2E] = end - queued;
  *first = MIN(*first, queued);
  *last = MAX(*last, end);
}

static GArray *read_requests(const char *path, double *makespan, GError **error) {
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  g_autoptr(GArray) numbered = g_array_new(FALSE, TRUE, sizeof(Numbered));
  char *line;
  gsize length;
  double first = G_MAXDOUBLE, last = 0.0;
  g_autoptr(GError) problem = NULL;
  while (stream && kv_trace_stream_filled_line(stream, &line, &length, &problem)) {
    g_autofree char *place =
        g_strdup_printf("%s:%" G_GUINT64_FORMAT, path, kv_trace_stream_line_number(stream));
    g_autoptr(KvJson) json = kv_json_parse(place, line, length, error);
    if (!json)
      return NULL;
    Numbered one = {0};
    read_request(json, &one, &first, &last);
    if (!kv_json_finish(json, error))
      return NULL;
    g_array_append_val(numbered, one);
  }
  if (problem)
    g_propagate_error(error, g_steal_pointer(&problem));
  if (!stream || (error && *error))
    return NULL;
  g_array_sort(numbered, by_number);
  GArray *requests = g_array_new(FALSE, FALSE, sizeof(KvMeasuredRequest));
  for (guint i = 0; i < numbered->len; i++)
    g_array_append_val(requests, g_array_index(numbered, Numbered, i).request);
  *makespan = last - first;
  return requests;
}

/* timeseries.csv, if it is there. */
static GArray *read_levels(const char *path, GError **error) {
  if (!g_file_test(path, G_FILE_TEST_EXISTS))
    return NULL;
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return NULL;
  g_autoptr(GArray) levels = g_array_new(FALSE, FALSE, sizeof(KvMeasuredLevel));
  g_autoptr(GError) problem = NULL;
  while (kv_csv_row(&csv, &problem)) {
    KvMeasuredLevel level;
    if (!kv_csv_number(&csv, kv_csv_column(&csv, "t"), 0, 1e9, &level.seconds, &problem) ||
        !kv_csv_number(&csv, kv_csv_column(&csv, "running"), 0, 1e9, &level.running, &problem) ||
        !kv_csv_number(&csv, kv_csv_column(&csv, "waiting"), 0, 1e9, &level.waiting, &problem))
      break;
    g_array_append_val(levels, level);
  }
  kv_csv_clear(&csv);
  if (problem) {
    g_propagate_error(error, g_steal_pointer(&problem));
    return NULL;
  }
  return g_steal_pointer(&levels);
}

static void set_engine(KvJson *json, KvMeasuredRun *run) {
  json_t *root = kv_json_root(json), *kwargs = kv_json_object(json, root, "engine_kwargs", TRUE);
  json_t *cache = kv_json_object(json, root, "kv_cache", FALSE);
  KvScenario *s = run->scenario;
  if (!kwargs)
    return;
  KvEngineConfig *e = &s->engine;
  s->tensor_parallel = (guint)kv_json_integer(json, kwargs, "tensor_parallel_size", 1, 1, 1024);
  guint ranks = (guint)kv_json_integer(json, kwargs, "data_parallel_size", 1, 1, 4096);
  if (kv_json_boolean(json, kwargs, "enable_expert_parallel", FALSE)) {
    /* Ranks that share experts step together; others are replicas. */
    e->expert_parallel = s->tensor_parallel * ranks;
    e->data_parallel = ranks;
  } else {
    s->replicas = ranks;
  }
  e->max_seqs = (guint)kv_json_integer(json, kwargs, "max_num_seqs", 0, 0, 1000000);
  e->max_batched_tokens =
      (guint)kv_json_integer(json, kwargs, "max_num_batched_tokens", 0, 0, 10000000);
  json_t *longest = json_object_get(kwargs, "max_model_len");
  if (longest && !json_is_null(longest))
    e->max_model_len = (guint)kv_json_integer(json, kwargs, "max_model_len", 0, 1, 100000000);
  if (g_str_has_prefix(kv_json_string(json, kwargs, "kv_cache_dtype", "auto", FALSE), "fp8"))
    s->cache_dtype = KV_DTYPE_FP8;
  if (s->replicas > 1)
    e->router = g_intern_static_string("least-loaded");
  s->arrivals = KV_ARRIVE_TRACE;
  if (cache) {
    json_t *blocks = json_object_get(cache, "num_gpu_blocks");
    if (blocks && !json_is_null(blocks)) /* block 0 holds nothing */
      e->num_blocks = (guint64)kv_json_integer(json, cache, "num_gpu_blocks", 0, 2, G_MAXINT64) - 1;
    e->block_tokens = (guint)kv_json_integer(json, cache, "block_size", 16, 1, 65536);
    e->prefix_caching = kv_json_boolean(json, cache, "enable_prefix_caching", TRUE);
  }
}

/* Without the trace its lengths and the log's own arrival times stand in; prefixes are unknown. */
static char *workload_of(const GArray *requests) {
  GString *text = g_string_new("{\"kvsim_trace\":1,\"timing\":\"timed\"}\n");
  double first = G_MAXDOUBLE, last = 0.0;
  for (guint i = 0; i < requests->len; i++)
    first = MIN(first, g_array_index(requests, KvMeasuredRequest, i).arrival_seconds);
  for (guint i = 0; i < requests->len; i++) {
    const KvMeasuredRequest *r = &g_array_index(requests, KvMeasuredRequest, i);
    char stamp[G_ASCII_DTOSTR_BUF_SIZE];
    last = MAX(last, (r->arrival_seconds - first) * 1e3); /* never back in time */
    g_ascii_formatd(stamp, sizeof stamp, "%.3f", last);
    g_string_append_printf(text, "{\"timestamp\":%s,\"input_length\":%u,\"output_length\":%u}\n",
                           stamp, r->input_tokens, r->output_tokens);
  }
  return g_string_free(text, FALSE);
}

static gboolean fill(KvMeasuredRun *run, const char *path, const char *folder,
                     const KvMeasuredOptions *options, GError **error) {
  g_autofree char *meta = g_build_filename(folder, "meta.json", NULL);
  g_autofree char *series = g_build_filename(folder, "timeseries.csv", NULL);
  g_autoptr(KvJson) json = kv_json_load(meta, error);
  if (!json)
    return FALSE;
  json_t *root = kv_json_root(json);
  const char *model = kv_json_string(json, root, "model", "", TRUE);
  const char *dataset = kv_json_string(json, root, "dataset_path", "", FALSE);
  json_t *hardware = kv_json_object(json, root, "hardware", FALSE);
  set_engine(json, run);
  g_autofree char *of_model = g_path_get_dirname(folder);
  g_autofree char *of_gpu = g_path_get_dirname(of_model);
  g_autofree char *gpu = g_path_get_basename(of_gpu);
  if (!kv_measured_device(gpu) && hardware) {
    const char *name = kv_json_string(json, hardware, "device_name", "", FALSE);
    const char *geforce = strstr(name, "RTX");
    g_free(gpu);
    gpu = g_strdup(geforce ? geforce : name);
  }
  if (!kv_json_finish(json, error))
    return FALSE;
  guint n_gpus = run->scenario->replicas * run->scenario->tensor_parallel *
                 run->scenario->engine.data_parallel;
  if (!kv_measured_name(run, meta, model, gpu, n_gpus, options, error) ||
      !(run->requests = read_requests(path, &run->rate[KV_RATE_MAKESPAN], error)))
    return FALSE;
  g_autoptr(GError) problem = NULL;
  run->levels = read_levels(series, &problem);
  if (problem) {
    g_propagate_error(error, g_steal_pointer(&problem));
    return FALSE;
  }
  run->trace = *dataset ? kv_measured_find_trace(dataset, path, options) : NULL;
  if (!run->trace)
    run->workload = workload_of(run->requests);
  run->group = g_strdup_printf("%s, %s", run->scenario->model, run->scenario->platform);
  run->name = g_strdup_printf(
      "%s on %s, vLLM %s, %u requests", run->scenario->model, run->scenario->platform,
      kv_json_string(json, root, "vllm_version", "", FALSE), run->requests->len);
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  g_autofree char *folder = g_path_get_dirname(path);
  KvMeasuredRun *run = kv_measured_run_new(kv_measured_vllm_log.id);
  run->source = g_strdup(path);
  run->from_drain = TRUE;
  if (!fill(run, path, folder, options, error)) {
    kv_measured_run_free(run);
    return FALSE;
  }
  g_ptr_array_add(runs, run);
  return TRUE;
}

const KvMeasuredKind kv_measured_vllm_log = {
    .id = "vllm-log",
    .description = "vLLM's per-request times (requests.jsonl beside meta.json)",
    .recognise = recognise,
    .read = read_runs,
};
