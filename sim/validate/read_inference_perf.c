/* One stage of a rate sweep by inference-perf (kubernetes-sigs): stage_N_lifecycle_metrics.json.
 *
 * Aggregates in seconds over one stage: requests at a constant mean rate (exponential gaps scaled
 * to the stage's length), sent by workers that hold a request back while too many are in flight;
 * the latencies count from its sending. Lengths are the client's own count of tokens, with a BOS in
 * front, and answers often re-tokenize shorter: their 90th percentile less one is the length that
 * all were asked for. The client counts each piece of a stream
 * twice in the sweeps known, so that its time per output token is half the true one: TPOT is taken
 * from what the two other latencies leave.
 *
 * Model, GPU and server are not in the file: the table below says them of published sweeps, by the
 * folder's name. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/random.h"
#include "sim/validate/kinds.h"

/* What is known of a published sweep beside its files. The limits follow from its saturated stages
 * by Little's law. Running: requests/s times the time from a prompt's step to the last token
 * (101.2/s times 1.23 + 0.04 s: 128; 113 to 114/s times 1.63 + 0.05 s: 192). In flight: the sending
 * rate of a saturated stage times the latency (106.5/s times 4.14 s, 117.7/s times 3.74 s: 440). */
typedef struct {
  const char *folder, *below; /* words of the path, in this order */
  const char *model, *device;
  guint max_seqs, in_flight;
} Sweep;

static const Sweep sweeps[] = {
    {"inference_perf_kubecon2025", "vllm+batch_size", "llama-3.1-8b", "h100-sxm", 192, 440},
    {"inference_perf_kubecon2025", "vllm", "llama-3.1-8b", "h100-sxm", 128, 440},
};

static const Sweep *sweep_of(const char *path) {
  for (guint i = 0; i < G_N_ELEMENTS(sweeps); i++) {
    const char *folder = strstr(path, sweeps[i].folder);
    if (folder && strstr(folder + strlen(sweeps[i].folder), sweeps[i].below))
      return &sweeps[i];
  }
  return NULL;
}

static gboolean recognise(const char *head, gsize length) {
  return length > 0 && head[0] == '{' && g_strstr_len(head, (gssize)length, "\"requested_rate\"") &&
         g_strstr_len(head, (gssize)length, "\"schedule_delay\"");
}

static const char *const statistic_keys[KV_N_STATISTICS] = {"mean", "median", "p90", "p95", "p99"};

static void read_latency(KvJson *json, json_t *latencies, const char *key, double *to) {
  json_t *one = latencies ? kv_json_object(json, latencies, key, TRUE) : NULL;
  for (guint s = 0; one && s < KV_N_STATISTICS; s++)
    to[s] = kv_json_number(json, one, statistic_keys[s], KV_JSON_REQUIRED, 0, 1e9);
}

/* One statistic of a length. */
static double read_length(KvJson *json, json_t *successes, const char *key, const char *statistic) {
  json_t *one = successes ? kv_json_object(json, successes, key, TRUE) : NULL;
  return one ? kv_json_number(json, one, statistic, KV_JSON_REQUIRED, 1, 1e9) : NAN;
}

static char *workload_of(guint64 n, double rate, double input_tokens, double output_tokens) {
  KvRandom random;
  kv_random_seed(&random, 0, 0);
  g_autofree double *at = g_new(double, n);
  double clock = 0.0;
  for (guint64 i = 0; i < n; i++)
    at[i] = clock += kv_random_exponential(&random);
  GString *text = g_string_new("{\"kvsim_trace\":1,\"timing\":\"timed\"}\n");
  for (guint64 i = 0; i < n; i++) {
    char stamp[G_ASCII_DTOSTR_BUF_SIZE];
    g_ascii_formatd(stamp, sizeof stamp, "%.3f", 1e3 * at[i] / clock * (double)n / rate);
    g_string_append_printf(text,
                           "{\"timestamp\":%s,\"input_length\":%.0f,\"output_length\":%.0f}\n",
                           stamp, round(input_tokens), round(output_tokens));
  }
  return g_string_free(text, FALSE);
}

static gboolean fill(KvMeasuredRun *run, const char *path, KvJson *json,
                     const KvMeasuredOptions *options, GError **error) {
  json_t *root = kv_json_root(json);
  json_t *load = kv_json_object(json, root, "load_summary", TRUE);
  json_t *done = kv_json_object(json, root, "successes", TRUE);
  json_t *latencies = done ? kv_json_object(json, done, "latency", TRUE) : NULL;
  json_t *rates = done ? kv_json_object(json, done, "throughput", TRUE) : NULL;
  double *ttft = run->latency[KV_LATENCY_TTFT], *e2e = run->latency[KV_LATENCY_E2E];
  read_latency(json, latencies, "request_latency", e2e);
  read_latency(json, latencies, "time_to_first_token", ttft);
  gint64 n = done ? kv_json_integer(json, done, "count", KV_JSON_REQUIRED, 1, 100000000) : 0;
  double rate =
      load ? kv_json_number(json, load, "requested_rate", KV_JSON_REQUIRED, 1e-6, 1e9) : NAN;
  double input_tokens = read_length(json, done, "prompt_len", "mean");
  double output_tokens = MAX(1.0, read_length(json, done, "output_len", "p90") - 1.0);
  if (rates)
    run->rate[KV_RATE_REQUESTS] =
        kv_json_number(json, rates, "requests_per_sec", KV_JSON_REQUIRED, 0, 1e9);
  if (!kv_json_finish(json, error))
    return FALSE;
  if (output_tokens > 1.0)
    run->latency[KV_LATENCY_TPOT][KV_STATISTIC_MEAN] =
        (e2e[KV_STATISTIC_MEAN] - ttft[KV_STATISTIC_MEAN]) / (round(output_tokens) - 1.0);
  const Sweep *sweep = sweep_of(path);
  if (!sweep) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s: a stage of inference-perf does not say its model, expected a path of a "
                "published sweep (such as %s/%s)",
                path, sweeps[0].folder, sweeps[0].below);
    return FALSE;
  }
  if (!kv_measured_name(run, path, sweep->model, sweep->device, 1, options, error))
    return FALSE;
  KvScenario *s = run->scenario;
  s->arrivals = KV_ARRIVE_LIMITED;
  s->concurrency = sweep->in_flight;
  s->engine.max_seqs = sweep->max_seqs;
  kv_measured_synchronous(s); /* of 2025 */
  kv_measured_over_http(s);
  run->workload = workload_of((guint64)n, rate, input_tokens, output_tokens);
  run->group =
      g_strdup_printf("%s, %s, vllm, %u sequences", s->model, s->platform, s->engine.max_seqs);
  run->name = g_strdup_printf("%s on %s, vLLM, %u sequences, %g requests/s", s->model, s->platform,
                              s->engine.max_seqs, rate);
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  return kv_measured_read_json(kv_measured_inference_perf.id, path, fill, options, runs, error);
}

const KvMeasuredKind kv_measured_inference_perf = {
    .id = "inference-perf",
    .description = "aggregates of one stage of an inference-perf rate sweep (JSON)",
    .recognise = recognise,
    .read = read_runs,
};
