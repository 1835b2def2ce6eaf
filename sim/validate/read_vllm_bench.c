/* The result of vLLM's serving benchmark at one open-loop rate: `vllm bench serve --save-result`.
 * Aggregates in ms; the prompts' own lengths are not in it (unless saved in detail), so the
 * workload has the recorded means, spread log-normally as ShareGPT's are. The GPU stands in the
 * path, as one of its words. The server's settings are vLLM's defaults: the file does not hold
 * them. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/random.h"
#include "models/hardware/hardware.h"
#include "sim/validate/kinds.h"

/* Prompt and answer of ShareGPT conversations as vLLM's benchmark samples them: log-normal with a
 * mean of 1.8 and 1.5 times the median (estimate: from the spread of public samples). */
static const double INPUT_SPREAD = 1.8, OUTPUT_SPREAD = 1.5;

/* vLLM's benchmark drops longer prompts of that data set. */
static const double LONGEST_SHAREGPT_TOKENS = 1024.0;

static gboolean recognise(const char *head, gsize length) {
  return length > 0 && head[0] == '{' && g_strstr_len(head, (gssize)length, "\"request_rate\"") &&
         g_strstr_len(head, (gssize)length, "\"mean_ttft_ms\"");
}

static const struct {
  const char *key;
  KvLatency latency;
  KvStatistic statistic;
} keys[] = {
    {"mean_ttft_ms", KV_LATENCY_TTFT, KV_STATISTIC_MEAN},
    {"median_ttft_ms", KV_LATENCY_TTFT, KV_STATISTIC_P50},
    {"p99_ttft_ms", KV_LATENCY_TTFT, KV_STATISTIC_P99},
    {"mean_tpot_ms", KV_LATENCY_TPOT, KV_STATISTIC_MEAN},
    {"median_tpot_ms", KV_LATENCY_TPOT, KV_STATISTIC_P50},
    {"p99_tpot_ms", KV_LATENCY_TPOT, KV_STATISTIC_P99},
    {"mean_e2el_ms", KV_LATENCY_E2E, KV_STATISTIC_MEAN},
};

/* The first word of the path, from its end, that names a device; NULL if none does. */
static const char *device_in(const char *path) {
  g_auto(GStrv) words = g_strsplit_set(path, "/_-. ", -1);
  const char *const *ids = kv_device_ids();
  for (guint w = g_strv_length(words); w-- > 0;)
    for (guint i = 0; ids[i] && strlen(words[w]) > 2; i++)
      if (g_ascii_strncasecmp(ids[i], words[w], strlen(words[w])) == 0)
        return ids[i];
  return NULL;
}

static guint32 drawn(KvRandom *random, double mean, double spread) {
  double sigma = sqrt(2.0 * log(spread));
  return (guint32)MAX(1.0,
                      round(kv_random_lognormal(random, log(mean) - 0.5 * sigma * sigma, sigma)));
}

/* Arrivals as the client draws them: exponential gaps, scaled so that the last comes at n / rate.
 * `warm`: the server has seen the same prompts at other rates before, so they come once in a row
 * ahead of the run. Prompts share nothing; block names say which request they belong to. */
static char *workload_of(guint64 n, double rate, double input_mean, double output_mean,
                         gboolean warm) {
  enum { BLOCK_TOKENS = 16 };
  static const double WARM_SECONDS = 1.0; /* a request: the server is never busy with them */
  KvRandom arrivals, lengths;
  kv_random_seed(&arrivals, 0, 0);
  kv_random_seed(&lengths, 0, 1);
  g_autofree double *at = g_new(double, n), *in = g_new(double, n), *out = g_new(double, n);
  double clock = 0.0, in_sum = 0.0, out_sum = 0.0;
  for (guint64 i = 0; i < n; i++) {
    at[i] = clock += kv_random_exponential(&arrivals);
    in_sum += in[i] = drawn(&lengths, input_mean, INPUT_SPREAD);
    out_sum += out[i] = drawn(&lengths, output_mean, OUTPUT_SPREAD);
  }
  GString *text = g_string_new("{\"kvsim_trace\":1,\"timing\":\"timed\",\"block_tokens\":16}\n");
  for (guint64 i = warm ? 0 : n; i < 2 * n; i++) {
    guint64 request = i % n;
    char stamp[G_ASCII_DTOSTR_BUF_SIZE];
    double start = warm ? WARM_SECONDS * (double)n + 60.0 : 0.0;
    double seconds = i < n            ? WARM_SECONDS * (double)i
                     : isfinite(rate) ? start + at[request] / clock * (double)n / rate
                                      : start;
    double tokens = MAX(1.0, round(in[request] * input_mean * (double)n / in_sum));
    double answer = MAX(1.0, round(out[request] * output_mean * (double)n / out_sum));
    g_ascii_formatd(stamp, sizeof stamp, "%.3f", 1e3 * seconds);
    g_string_append_printf(
        text, "{\"timestamp\":%s,\"input_length\":%.0f,\"output_length\":%.0f,\"hash_ids\":[",
        stamp, tokens, i < n ? 1.0 : answer);
    for (guint64 b = 0; (double)(b * BLOCK_TOKENS) < tokens; b++)
      g_string_append_printf(text, "%s%" G_GUINT64_FORMAT, b ? "," : "", request * 1000000 + b);
    g_string_append(text, "]}\n");
  }
  return g_string_free(text, FALSE);
}

/* Whether the folder holds a run of the same prompts that was made before this one. */
static gboolean seen_before(const char *path, const char *date, gint64 input_tokens) {
  g_autofree char *folder = g_path_get_dirname(path);
  g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
  gboolean found = FALSE;
  for (const char *name; dir && !found && (name = g_dir_read_name(dir));) {
    g_autofree char *other = g_build_filename(folder, name, NULL);
    g_autoptr(KvJson) json = g_str_has_suffix(name, ".json") && strcmp(other, path) != 0
                                 ? kv_json_load(other, NULL)
                                 : NULL;
    json_t *root = json ? kv_json_root(json) : NULL;
    found = root &&
            json_integer_value(json_object_get(root, "total_input_tokens")) == input_tokens &&
            g_strcmp0(json_string_value(json_object_get(root, "date")), date) < 0;
  }
  return found;
}

static gboolean fill(KvMeasuredRun *run, const char *path, KvJson *json,
                     const KvMeasuredOptions *options, GError **error) {
  json_t *root = kv_json_root(json);
  const char *model = kv_json_string(json, root, "model_id", "", TRUE);
  gint64 n = kv_json_integer(json, root, "completed", KV_JSON_REQUIRED, 1, 100000000);
  double in = kv_json_number(json, root, "total_input_tokens", KV_JSON_REQUIRED, 1, 1e15);
  double out = kv_json_number(json, root, "total_output_tokens", KV_JSON_REQUIRED, 1, 1e15);
  json_t *recorded = json_object_get(root, "request_rate"); /* "inf": all at once */
  double rate = json_is_number(recorded) ? json_number_value(recorded) : INFINITY;
  for (guint i = 0; i < G_N_ELEMENTS(keys); i++)
    if (kv_json_has(root, keys[i].key))
      run->latency[keys[i].latency][keys[i].statistic] =
          1e-3 * kv_json_number(json, root, keys[i].key, 0.0, 0, 1e12);
  run->rate[KV_RATE_MAKESPAN] = kv_json_number(json, root, "duration", NAN, 0, 1e12);
  run->rate[KV_RATE_OUTPUT_TOKENS] = kv_json_number(json, root, "output_throughput", NAN, 0, 1e12);
  if (!kv_json_finish(json, error))
    return FALSE;
  const char *device = device_in(path);
  if (!kv_measured_name(run, path, model, device ? device : "(none in the path)", 1, options,
                        error))
    return FALSE;
  if (strstr(model, "FP8")) {
    run->scenario->weight_dtype = 1 + KV_DTYPE_FP8;
    run->scenario->cache_dtype = KV_DTYPE_FP8;
  }
  run->scenario->arrivals = KV_ARRIVE_TRACE;
  kv_measured_over_http(run->scenario);
  if (in / (double)n > LONGEST_SHAREGPT_TOKENS) {
    g_set_error(
        error, KV_ERROR, KV_ERROR_USAGE,
        "%s: prompts of %.0f tokens are not ShareGPT's single ones, and the file does not say "
        "what they share, expected a mean of at most %.0f",
        path, in / (double)n, LONGEST_SHAREGPT_TOKENS);
    return FALSE;
  }
  const char *date = kv_json_string(json, root, "date", "", FALSE);
  gboolean warm = seen_before(path, date, (gint64)in);
  run->warm_requests = warm ? (guint64)n : 0;
  run->workload = workload_of((guint64)n, rate, in / (double)n, out / (double)n, warm);
  run->group = g_strdup_printf("%s, %s, vllm", run->scenario->model, run->scenario->platform);
  run->name = g_strdup_printf("%s on %s, vLLM, %g requests/s", run->scenario->model,
                              run->scenario->platform, rate);
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  return kv_measured_read_json(kv_measured_vllm_bench.id, path, fill, options, runs, error);
}

const KvMeasuredKind kv_measured_vllm_bench = {
    .id = "vllm-bench",
    .description = "aggregates of `vllm bench serve` at one rate (JSON)",
    .recognise = recognise,
    .read = read_runs,
};
