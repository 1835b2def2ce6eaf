#include "sim/validate/measured.h"

#include <math.h>
#include <string.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/validate/kinds.h"
#include "traces/stream.h"

const char *const kv_statistic_names[] = {"mean", "p50", "p90", "p95", "p99", NULL};
const char *const kv_rate_names[] = {"makespan", "requests_per_second", "output_tokens_per_second",
                                     "total_tokens_per_second", NULL};

const KvMeasuredKind *const kv_measured_kinds[] = {
    &kv_measured_vllm_log,       &kv_measured_inferencemax,
    &kv_measured_silicon,        &kv_measured_vllm_bench,
    &kv_measured_inference_perf, &kv_measured_multi_round_qa,
    &kv_measured_reference,      NULL,
};

KvMeasuredRun *kv_measured_run_new(const char *kind) {
  KvMeasuredRun *run = g_new0(KvMeasuredRun, 1);
  run->kind = g_strdup(kind);
  run->scenario = kv_scenario_new();
  for (guint l = 0; l < KV_N_LATENCIES; l++)
    for (guint s = 0; s < KV_N_STATISTICS; s++)
      run->latency[l][s] = NAN;
  for (guint r = 0; r < KV_N_RATES; r++)
    run->rate[r] = NAN;
  return run;
}

void kv_measured_run_free(KvMeasuredRun *run) {
  if (!run)
    return;
  g_free(run->kind);
  g_free(run->name);
  g_free(run->group);
  g_free(run->source);
  g_free(run->trace);
  g_free(run->workload);
  kv_scenario_free(run->scenario);
  g_clear_pointer(&run->requests, g_array_unref);
  g_clear_pointer(&run->levels, g_array_unref);
  g_free(run);
}

gboolean kv_measured_read_json(const char *kind, const char *path, KvMeasuredFill fill,
                               const KvMeasuredOptions *options, GPtrArray *runs, GError **error) {
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  KvMeasuredRun *run = kv_measured_run_new(kind);
  run->source = g_strdup(path);
  if (!fill(run, path, json, options, error)) {
    kv_measured_run_free(run);
    return FALSE;
  }
  g_ptr_array_add(runs, run);
  return TRUE;
}

static char *plain(const char *name) {
  g_autofree char *base = g_path_get_basename(name);
  GString *letters = g_string_new(NULL);
  for (const char *c = base; *c; c++)
    if (g_ascii_isalnum(*c))
      g_string_append_c(letters, g_ascii_tolower(*c));
  return g_string_free(letters, FALSE);
}

/* How well `id` fits `name`, both plain: the length in common if one begins with the other. */
static gsize fit(const char *name, const char *id) {
  gboolean begins = g_str_has_prefix(name, id) || g_str_has_prefix(id, name);
  return begins ? 2 * MIN(strlen(name), strlen(id)) + (strlen(name) == strlen(id)) : 0;
}

static const char *best_fit(const char *name, const char *const *ids) {
  g_autofree char *wanted = plain(name);
  const char *best = NULL;
  gsize longest = 0;
  for (guint i = 0; ids[i]; i++) {
    g_autofree char *id = plain(ids[i]);
    gsize common = fit(wanted, id);
    if (common > longest) {
      longest = common;
      best = ids[i];
    }
  }
  return best;
}

const char *kv_measured_model(const char *name) {
  return best_fit(name, kv_model_ids());
}

const char *kv_measured_device(const char *name) {
  return best_fit(name, kv_device_ids());
}

gboolean kv_measured_name(KvMeasuredRun *run, const char *place, const char *model,
                          const char *device, guint n_gpus, const KvMeasuredOptions *options,
                          GError **error) {
  KvScenario *s = run->scenario;
  const char *known = kv_measured_model(model);
  const char *gpu = options->platform ? options->platform : kv_measured_device(device);
  if (!known || !gpu) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: %s '%s' is not in the catalogue, expected %s",
                place, known ? "GPU" : "model", known ? device : model,
                known ? "one of `kvsim list platforms` (or --platform)"
                      : "one of `kvsim list models`");
    return FALSE;
  }
  g_free(s->model);
  g_free(s->platform);
  s->model = g_strdup(known);
  s->platform =
      options->platform || n_gpus < 2 ? g_strdup(gpu) : g_strdup_printf("%ux%s", n_gpus, gpu);
  return TRUE;
}

/* InferenceMAX, autumn 2025: median TTFT less two median inter-token times and the step with the
 * prompt (the 99th percentile of inter-token time at 16 in flight) is a whole number of further
 * steps. It becomes 0 where a step takes more than about 10 ms (prompts of 1k; between 8 and 12 ms
 * by steps of 4 ms), and is 22 to 30 ms for prompts of 8k at steps of 4 ms. An H200's 70B at one
 * request/s, prompts of 200 tokens, leaves 4 to 6 ms; an A100's 8B whose prompt of 21k is cached
 * leaves 39 to 50. */
void kv_measured_over_http(KvScenario *scenario) {
  scenario->client_request_seconds = 5e-3;
  scenario->client_token_seconds = 2.1e-6;
}

/* CPU time for a sequence between a step's results and the next launch: in inference-perf's sweep
 * of an H100's 8B with at most 128 sequences, 1 to 92 requests/s, a step takes longer than its
 * kernels by 0.8 ms with one sequence, 1.2 with 17, 2.1 with 42 and 4.1 with 92, part of which are
 * prompts. The sweep with 192 sequences agrees. */
void kv_measured_synchronous(KvScenario *scenario) {
  KvEngineConfig *e = &scenario->engine;
  e->async_scheduling = FALSE;
  e->reserve_full_prompt = FALSE; /* since 0.19 */
  e->per_sequence_seconds = 20e-6;
}

char *kv_measured_closed_workload(guint64 n, guint32 input_tokens, guint32 output_tokens,
                                  double share) {
  KvRandom random;
  kv_random_seed(&random, 0, 0);
  GString *text = g_string_new("{\"kvsim_trace\":1,\"timing\":\"untimed\"}\n");
  for (guint64 i = 0; i < n; i++) {
    gint64 in = kv_random_integer(&random, (gint64)(share * input_tokens), input_tokens);
    gint64 out = kv_random_integer(&random, (gint64)(share * output_tokens), output_tokens);
    g_string_append_printf(
        text, "{\"input_length\":%" G_GINT64_FORMAT ",\"output_length\":%" G_GINT64_FORMAT "}\n",
        MAX(1, in), MAX(1, out));
  }
  return g_string_free(text, FALSE);
}

char *kv_measured_find_trace(const char *dataset, const char *log,
                             const KvMeasuredOptions *options) {
  g_autoptr(GPtrArray) places = g_ptr_array_new_with_free_func(g_free);
  g_autofree char *base = g_path_get_basename(dataset);
  for (guint i = 0; options->trace_folders && options->trace_folders[i]; i++)
    g_ptr_array_add(places, g_build_filename(options->trace_folders[i], base, NULL));
  g_autofree char *above = g_path_get_dirname(log);
  for (guint level = 0; level < 8 && strcmp(above, "/") != 0 && strcmp(above, ".") != 0; level++) {
    g_ptr_array_add(places, g_build_filename(above, dataset, NULL));
    g_ptr_array_add(places, g_build_filename(above, base, NULL));
    g_autofree char *traces = g_build_filename(above, "traces", NULL);
    g_autoptr(GDir) folder = g_dir_open(traces, 0, NULL);
    for (const char *name; folder && (name = g_dir_read_name(folder));)
      g_ptr_array_add(places, g_build_filename(traces, name, base, NULL));
    char *parent = g_path_get_dirname(above);
    g_free(above);
    above = parent;
  }
  for (guint i = 0; i < places->len; i++) {
    const char *place = g_ptr_array_index(places, i);
    g_autofree char *packed = g_strconcat(place, ".gz", NULL);
    if (g_file_test(place, G_FILE_TEST_IS_REGULAR))
      return g_strdup(place);
    if (g_file_test(packed, G_FILE_TEST_IS_REGULAR))
      return g_steal_pointer(&packed);
  }
  return NULL;
}

void kv_measured_request_of(const KvSequence *s, gboolean from_drain, KvMeasuredRequest *r) {
  double from = from_drain ? s->drained_seconds : s->arrival_seconds;
  *r = (KvMeasuredRequest){.input_tokens = s->input_tokens,
                           .output_tokens = s->output_tokens,
                           .arrival_seconds = s->arrival_seconds};
  r->seconds[KV_LATENCY_QUEUE] = s->scheduled_seconds - from;
  r->seconds[KV_LATENCY_TTFT] = s->first_token_seconds - from;
  r->seconds[KV_LATENCY_TPOT] =
      s->output_tokens > 1
          ? (s->last_token_seconds - s->first_token_seconds) / (s->output_tokens - 1.0)
          : NAN;
  r->seconds[KV_LATENCY_ITL] = NAN;
  r->seconds[KV_LATENCY_E2E] = s->last_token_seconds - from;
}

void kv_measured_rates(const GArray *requests, double rate[KV_N_RATES]) {
  double first = G_MAXDOUBLE, last = 0.0, input = 0.0, output = 0.0;
  for (guint i = 0; i < requests->len; i++) {
    const KvMeasuredRequest *r = &g_array_index(requests, KvMeasuredRequest, i);
    first = MIN(first, r->arrival_seconds);
    last = MAX(last, r->arrival_seconds + r->seconds[KV_LATENCY_E2E]);
    input += r->input_tokens;
    output += r->output_tokens;
  }
  double seconds = last - first;
  gboolean any = seconds > 0.0;
  rate[KV_RATE_MAKESPAN] = any ? seconds : NAN;
  rate[KV_RATE_REQUESTS] = any ? requests->len / seconds : NAN;
  rate[KV_RATE_OUTPUT_TOKENS] = any ? output / seconds : NAN;
  rate[KV_RATE_TOTAL_TOKENS] = any ? (input + output) / seconds : NAN;
}

/* The kind of the file at `path`; NULL if it is none, or cannot be read. */
static const KvMeasuredKind *kind_of(const char *path) {
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, NULL);
  gsize length = 0;
  const char *head = stream ? kv_trace_stream_head(stream, &length, NULL) : NULL;
  for (guint k = 0; head && kv_measured_kinds[k]; k++)
    if (kv_measured_kinds[k]->recognise(head, length))
      return kv_measured_kinds[k];
  return NULL;
}

static gint by_name(gconstpointer a, gconstpointer b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static gboolean read_folder(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                            GError **error) {
  g_autoptr(GDir) folder = g_dir_open(path, 0, NULL);
  g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
  for (const char *name; folder && (name = g_dir_read_name(folder));)
    g_ptr_array_add(names, g_build_filename(path, name, NULL));
  g_ptr_array_sort(names, by_name);
  for (guint i = 0; i < names->len; i++) {
    const char *member = g_ptr_array_index(names, i);
    const KvMeasuredKind *kind;
    if (g_file_test(member, G_FILE_TEST_IS_DIR)) {
      if (!read_folder(member, options, runs, error))
        return FALSE;
    } else if ((kind = kind_of(member))) {
      g_autoptr(GError) problem = NULL;
      if (kind->read(member, options, runs, &problem))
        continue;
      if (!g_error_matches(problem, KV_ERROR, KV_ERROR_USAGE)) {
        g_propagate_error(error, g_steal_pointer(&problem));
        return FALSE;
      }
      g_printerr("kvsim: not simulated: %s\n", problem->message);
    }
  }
  return TRUE;
}

gboolean kv_measured_read(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  guint before = runs->len;
  if (g_file_test(path, G_FILE_TEST_IS_DIR)) {
    if (!read_folder(path, options, runs, error))
      return FALSE;
  } else {
    const KvMeasuredKind *kind = kind_of(path);
    if (kind && !kind->read(path, options, runs, error))
      return FALSE;
  }
  if (runs->len > before)
    return TRUE;
  g_autoptr(GString) known = g_string_new(NULL);
  for (guint k = 0; kv_measured_kinds[k]; k++)
    g_string_append_printf(known, "%s%s", k ? ", " : "", kv_measured_kinds[k]->id);
  g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
              "%s: holds no measured run that can be read, expected a file or folder of: %s", path,
              known->str);
  return FALSE;
}
