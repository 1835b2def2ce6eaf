/* Asking the simulator for the figure that a paper gives. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/engine/predict.h"
#include "sim/engine/simulation.h"
#include "sim/validate/claims.h"
#include "traces/generate.h"

const KvClaimMetric kv_claim_metrics[] = {
    {"cache_bytes", KV_CLAIM_PLAN, "bytes of the cache on every tier"},
    {"hbm_cache_bytes", KV_CLAIM_PLAN, "bytes of the cache in the GPU's memory"},
    {"read_bytes", KV_CLAIM_PLAN, "bytes that a decode step's attention reads from HBM"},
    {"fetched_bytes", KV_CLAIM_PLAN, "bytes that a decode step fetches from lower tiers"},
    {"attention_flops", KV_CLAIM_PLAN, "FLOPs of a decode step's attention"},
    {"step_seconds", KV_CLAIM_STEP, "time of the step"},
    {"attention_seconds", KV_CLAIM_STEP, "time of its attention kernels"},
    {"tokens_per_second", KV_CLAIM_STEP, "tokens that the step computes, over its time"},
    {"output_tokens_per_second", KV_CLAIM_BATCH, "generated tokens over the whole time"},
    {"total_tokens_per_second", KV_CLAIM_BATCH, "prompt and generated tokens over the whole time"},
    {"decode_tokens_per_second", KV_CLAIM_BATCH,
     "generated tokens after the first ones, over the time after the last prompt"},
    {"e2e_seconds", KV_CLAIM_BATCH, "time until the last request is done"},
    {"ttft_seconds", KV_CLAIM_BATCH, "mean time to the first token"},
    {"tpot_seconds", KV_CLAIM_BATCH, "mean time per output token"},
    {"peak_memory_bytes", KV_CLAIM_BATCH,
     "weights, activations, framework and the most cache held, of one GPU"},
    {"max_batch", KV_CLAIM_BATCH, "sequences that memory holds to their last token"},
    {"ttft_seconds", KV_CLAIM_LOAD, "mean time to the first token"},
    {"ttft_p99_seconds", KV_CLAIM_LOAD, "its 99th percentile"},
    {"tpot_seconds", KV_CLAIM_LOAD, "mean time per output token"},
    {"e2e_seconds", KV_CLAIM_LOAD, "mean time from arrival to the last token"},
    {"normalized_latency", KV_CLAIM_LOAD, "mean of that, per output token"},
    {"goodput", KV_CLAIM_LOAD, "highest rate at which enough requests meet the objective"},
    {"sustained_rate", KV_CLAIM_LOAD,
     "highest rate at which the normalized latency stays within latency_per_token_seconds"},
    {"mean_running", KV_CLAIM_LOAD, "sequences that run, over time"},
    {"output_tokens_per_second", KV_CLAIM_LOAD, "generated tokens over the whole time"},
    {"hit_ratio", KV_CLAIM_LOAD, "prompt tokens found in the prefix cache, as a share"},
    {NULL, 0, NULL},
};

const char *const kv_verdict_names[] = {"close", "near", "off", "not replayed", "failed", NULL};

void kv_claim_result_clear(KvClaimResult *result) {
  g_clear_pointer(&result->problem, g_free);
}

static gboolean is(const KvClaim *claim, const char *metric) {
  return strcmp(claim->metric->name, metric) == 0;
}

/* --- plan --- */

static gboolean replay_plan(const KvClaim *claim, const KvScenario *scenario, guint batch,
                            double *value, GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  if (!setup)
    return FALSE;
  double n = claim->workload.context_tokens;
  double prompt = claim->workload.prompt_tokens ? claim->workload.prompt_tokens : n;
  KvPlanCost cost = kv_plan_cost(setup->plan, &setup->curves, n, prompt, TRUE);
  double everywhere = 0.0;
  for (guint t = 0; t < KV_N_TIERS; t++)
    everywhere += cost.resident_bytes[t];
  *value = batch * (is(claim, "cache_bytes")       ? everywhere
                    : is(claim, "hbm_cache_bytes") ? cost.resident_bytes[KV_TIER_HBM]
                    : is(claim, "read_bytes")      ? cost.read_bytes
                    : is(claim, "fetched_bytes")   ? cost.fetched_bytes
                                                   : cost.attention_flops);
  return TRUE;
}

/* --- step --- */

static gboolean replay_step(const KvClaim *claim, const KvScenario *scenario, guint batch,
                            double *value, GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  if (!setup)
    return FALSE;
  const KvClaimWorkload *w = &claim->workload;
  KvStepQuestion question = {!w->prefill, batch, w->context_tokens, 0};
  KvPrediction prediction;
  if (!kv_predict(setup, &question, &prediction, error))
    return FALSE;
  double tokens = w->prefill ? (double)batch * w->context_tokens : batch;
  double attention = prediction.cost.component_seconds[w->prefill ? KV_COMPONENT_PREFILL_ATTENTION
                                                                  : KV_COMPONENT_DECODE_ATTENTION];
  *value = is(claim, "step_seconds")        ? prediction.cost.seconds
           : is(claim, "attention_seconds") ? attention
                                            : tokens / prediction.cost.seconds;
  kv_prediction_clear(&prediction);
  return TRUE;
}

/* --- runs --- */

/* `summary`, unless nothing was served in it: then it is freed. */
static KvSummary *need_finished(KvSummary *summary, GError **error) {
  if (!summary || summary->requests_finished > 0)
    return summary;
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "no request could be served");
  kv_summary_free(summary);
  return NULL;
}

/* Sequences that memory holds to their last token. */
static guint most_sequences(const KvSetup *setup, const KvClaimWorkload *w) {
  double n = (double)w->prompt_tokens + w->output_tokens;
  guint64 each = kv_demand_blocks(&setup->demand, n, w->prompt_tokens, TRUE);
  /* A technique that shrinks the cache after the prompt needs room for one whole prompt at a time;
   * the engine sees to it. */
  return (guint)MIN(setup->memory.blocks / MAX(1, each), 10000000);
}

/* The scenario for a batch of `batch` sequences. */
static KvSetup *batch_setup(const KvClaim *claim, const KvScenario *scenario, guint batch,
                            GError **error) {
  g_autoptr(KvScenario) s = kv_scenario_copy(scenario);
  const KvClaimWorkload *w = &claim->workload;
  if (s->engine.max_model_len == 0)
    s->engine.max_model_len = w->prompt_tokens + w->output_tokens;
  if (s->engine.max_seqs == 0)
    s->engine.max_seqs = MAX(batch, 1);
  if (s->engine.static_batch == 0)
    s->engine.static_batch = batch;
  s->engine.max_batched_tokens = MAX(s->engine.max_batched_tokens, s->engine.max_seqs);
  return kv_setup_new(s, TRUE, error);
}

static double batch_value(const KvClaim *claim, const KvSummary *s) {
  double first = s->latency[KV_LATENCY_TTFT].max;
  if (is(claim, "output_tokens_per_second"))
    return s->output_tokens_per_second;
  if (is(claim, "total_tokens_per_second"))
    return s->total_tokens_per_second;
  if (is(claim, "decode_tokens_per_second"))
    return ((double)s->output_tokens - (double)s->requests_finished) /
           (s->makespan_seconds - first);
  if (is(claim, "e2e_seconds"))
    return s->makespan_seconds;
  if (is(claim, "ttft_seconds"))
    return s->latency[KV_LATENCY_TTFT].mean;
  if (is(claim, "tpot_seconds"))
    return s->latency[KV_LATENCY_TPOT].mean;
  return s->weight_bytes + s->activation_bytes + s->peak_blocks_held_share * s->cache_bytes;
}

/* Every prompt begins alike. */
static void share(const KvClaimWorkload *w, KvTraceGenerator *g) {
  if (w->shared_tokens == 0)
    return;
  g->block_tokens = 16;
  g->shared_prompts = 1;
  g->shared_tokens = w->shared_tokens;
  g->header_tokens = 0;
  g->input_is_total = TRUE;
}

static gboolean replay_batch(const KvClaim *claim, const KvScenario *scenario, guint batch,
                             const volatile gint *interrupted, double *value, GError **error) {
  g_autoptr(KvSetup) setup = batch_setup(claim, scenario, batch, error);
  if (!setup)
    return FALSE;
  const KvClaimWorkload *w = &claim->workload;
  if (batch == 0 || is(claim, "max_batch")) {
    batch = most_sequences(setup, w);
    if (batch == 0) {
      g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "memory does not hold a single sequence");
      return FALSE;
    }
    if (is(claim, "max_batch")) {
      *value = batch;
      return TRUE;
    }
    g_clear_pointer(&setup, kv_setup_free);
    if (!(setup = batch_setup(claim, scenario, batch, error)))
      return FALSE;
  }
  KvTraceGenerator g;
  kv_trace_generator_default(&g);
  g.n_requests = batch;
  g.block_tokens = 0;
  g.arrivals.kind = KV_ARRIVALS_AT_ONCE;
  g.input_tokens = (KvLengths){.kind = KV_LENGTHS_FIXED, .a = w->prompt_tokens};
  g.output_tokens = (KvLengths){.kind = KV_LENGTHS_FIXED, .a = w->output_tokens};
  share(w, &g);
  g_autoptr(KvTraceReader) reader = kv_trace_generate(&g, error);
  KvSimulateOptions options = {.interrupted = interrupted};
  g_autoptr(KvSummary) summary =
      reader ? need_finished(kv_simulate(setup, reader, &options, error), error) : NULL;
  if (summary)
    *value = batch_value(claim, summary);
  return summary != NULL;
}

static gboolean load_generator(const KvClaimWorkload *w, double rate, KvTraceGenerator *g,
                               GError **error) {
  kv_trace_generator_default(g);
  if (w->trace) {
    const KvTracePreset *preset = kv_trace_preset(w->trace, error);
    if (!preset)
      return FALSE;
    *g = preset->generator;
  }
  g->n_requests = w->requests;
  g->arrivals.rate_rps = rate;
  share(w, g);
  if (w->prompt_tokens)
    g->input_tokens = (KvLengths){.kind = KV_LENGTHS_FIXED, .a = w->prompt_tokens};
  if (w->output_tokens)
    g->output_tokens = (KvLengths){.kind = KV_LENGTHS_FIXED, .a = w->output_tokens};
  return (!w->prompt_lengths ||
          kv_lengths_parse(w->prompt_lengths, "prompt_tokens", &g->input_tokens, error)) &&
         (!w->output_lengths ||
          kv_lengths_parse(w->output_lengths, "output_tokens", &g->output_tokens, error));
}

/* Sums E2E per output token over the requests of a run. */
typedef struct {
  double sum;
  guint64 n;
} Normalized;

static void add_normalized(const KvSequence *sequence, gpointer user) {
  Normalized *all = user;
  if (sequence->scheduled_seconds < 0.0)
    return;
  all->sum += (sequence->last_token_seconds - sequence->arrival_seconds) / sequence->output_tokens;
  all->n++;
}

/* A run at `rate`; *normalized is the mean latency per output token. */
static KvSummary *simulate_load(const KvClaim *claim, const KvSetup *setup, double rate,
                                const volatile gint *interrupted, double *normalized,
                                GError **error) {
  KvTraceGenerator g;
  if (!load_generator(&claim->workload, rate, &g, error))
    return NULL;
  g_autoptr(KvTraceReader) reader = kv_trace_generate(&g, error);
  Normalized all = {0};
  KvSimulateOptions options = {.left = add_normalized, .user = &all, .interrupted = interrupted};
  KvSummary *summary = reader ? kv_simulate(setup, reader, &options, error) : NULL;
  *normalized = all.n ? all.sum / (double)all.n : NAN;
  return need_finished(summary, error);
}

/* Whether the run is as good as the claim's metric asks. */
static gboolean is_good(const KvClaim *claim, const KvSummary *s, double normalized) {
  const KvClaimWorkload *w = &claim->workload;
  return is(claim, "goodput") ? s->slo_attainment >= w->attainment
                              : normalized <= w->latency_per_token_seconds;
}

/* The highest good rate, within 1 %: doubling until it is bad, then halving. */
static gboolean find_rate(const KvClaim *claim, const KvSetup *setup,
                          const volatile gint *interrupted, double *value, GError **error) {
  const double lowest = 1e-4, highest = 1e5;
  double good = 0.0, bad = 0.0, rate = 0.25;
  while (good == 0.0 || bad == 0.0 || bad / good > 1.01) {
    double normalized;
    g_autoptr(KvSummary) s = simulate_load(claim, setup, rate, interrupted, &normalized, error);
    if (!s)
      return FALSE;
    *(is_good(claim, s, normalized) ? &good : &bad) = rate;
    rate = bad == 0.0 ? 2.0 * rate : good == 0.0 ? 0.5 * rate : sqrt(good * bad);
    if (rate < lowest || rate > highest)
      break;
  }
  if (good == 0.0 || bad == 0.0) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "the objective is %s at every rate",
                good == 0.0 ? "missed" : "met");
    return FALSE;
  }
  *value = sqrt(good * bad);
  return TRUE;
}

static double load_value(const KvClaim *claim, const KvSummary *s) {
  if (is(claim, "ttft_seconds"))
    return s->latency[KV_LATENCY_TTFT].mean;
  if (is(claim, "ttft_p99_seconds"))
    return s->latency[KV_LATENCY_TTFT].p99;
  if (is(claim, "tpot_seconds"))
    return s->latency[KV_LATENCY_TPOT].mean;
  if (is(claim, "e2e_seconds"))
    return s->latency[KV_LATENCY_E2E].mean;
  if (is(claim, "output_tokens_per_second"))
    return s->output_tokens_per_second;
  return is(claim, "mean_running") ? s->mean_running : s->prefix_hit_ratio;
}

static gboolean replay_load(const KvClaim *claim, const KvScenario *scenario,
                            const volatile gint *interrupted, double *value, GError **error) {
  g_autoptr(KvScenario) s = kv_scenario_copy(scenario);
  const KvClaimWorkload *w = &claim->workload;
  if (w->slo_ttft_seconds > 0.0 || w->slo_tpot_seconds > 0.0) {
    s->slo_ttft_seconds = w->slo_ttft_seconds;
    s->slo_tpot_seconds = w->slo_tpot_seconds;
  }
  g_autoptr(KvSetup) setup = kv_setup_new(s, TRUE, error);
  if (!setup)
    return FALSE;
  if (is(claim, "goodput") || is(claim, "sustained_rate"))
    return find_rate(claim, setup, interrupted, value, error);
  if (w->rate <= 0.0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "the workload has no 'rate', expected requests/s");
    return FALSE;
  }
  double normalized;
  g_autoptr(KvSummary) summary =
      simulate_load(claim, setup, w->rate, interrupted, &normalized, error);
  if (summary)
    *value = is(claim, "normalized_latency") ? normalized : load_value(claim, summary);
  return summary != NULL;
}

static gboolean replay_one(const KvClaim *claim, const KvScenario *scenario, guint batch,
                           const volatile gint *interrupted, double *value, GError **error) {
  switch (claim->workload.kind) {
  case KV_CLAIM_PLAN:
    return replay_plan(claim, scenario, batch, value, error);
  case KV_CLAIM_STEP:
    return replay_step(claim, scenario, batch, value, error);
  case KV_CLAIM_BATCH:
    return replay_batch(claim, scenario, batch, interrupted, value, error);
  case KV_CLAIM_LOAD:
  case KV_N_CLAIM_WORKLOADS:
    break;
  }
  return replay_load(claim, scenario, interrupted, value, error);
}

gboolean kv_claim_replay(const KvClaim *claim, const volatile gint *interrupted,
                         KvClaimResult *result, GError **error) {
  *result = (KvClaimResult){claim, NAN, NAN, NAN, NULL};
  if (claim->cannot)
    return TRUE;
  g_autoptr(GError) problem = NULL;
  const char *which = "with";
  gboolean ok =
      replay_one(claim, claim->with, claim->workload.batch, interrupted, &result->with, &problem);
  if (ok && claim->is_ratio) {
    which = "without";
    ok = replay_one(claim, claim->without, claim->workload.batch_without, interrupted,
                    &result->without, &problem);
  }
  if (!ok && g_error_matches(problem, KV_ERROR, KV_ERROR_INTERRUPTED)) {
    g_propagate_error(error, g_steal_pointer(&problem));
    return FALSE;
  }
  if (!ok) {
    result->problem = g_strdup_printf("%s: %s", which, problem->message);
    return TRUE;
  }
  result->simulated = claim->is_ratio ? result->with / result->without : result->with;
  if (!(result->simulated > 0.0) || !isfinite(result->simulated)) {
    result->problem = g_strdup("the figure is not a positive number");
    result->simulated = NAN;
  }
  return TRUE;
}
