#include "fixtures.h"

#include <math.h>

/* A log-normal-looking latency around `median`, 201 points and the statistics to go with them. */
static void spread(KvSummary *run, KvLatency latency, guint64 n, double median, double width) {
  KvDistribution *d = &run->latency[latency];
  KvCdf *cdf = &run->cdf[latency];
  for (guint i = 0; i < KV_CDF_POINTS; i++) {
    double p = CLAMP(i / (KV_CDF_POINTS - 1.0), 0.002, 0.998);
    cdf->value[i] = median * exp(width * log(p / (1 - p)));
  }
  *d = (KvDistribution){.n = n,
                        .mean = median * 1.25,
                        .p50 = cdf->value[100],
                        .p90 = cdf->value[180],
                        .p95 = cdf->value[190],
                        .p99 = cdf->value[198],
                        .min = cdf->value[0],
                        .max = cdf->value[200]};
}

static void name(KvSummary *run, const char *label) {
  run->trace = g_strdup("traces/azure-conversation.csv");
  run->label = g_strdup(label);
  run->model = g_strdup("llama-3.1-8b");
  run->platform = g_strdup("h200");
  run->executor = "model";
  run->n_gpus = run->n_instances = run->tensor_parallel = 1;
}

static void give_components(KvSummary *run, double scale, double attention) {
  static const struct {
    double share, intensity, rate_tflops;
  } parts[KV_N_COMPONENTS] = {
      [KV_COMPONENT_QKV] = {0.11, 60, 150},
      [KV_COMPONENT_PREFILL_ATTENTION] = {0.06, 380, 310},
      [KV_COMPONENT_DECODE_ATTENTION] = {0.17, 6.5, 19},
      [KV_COMPONENT_OUTPUT_PROJECTION] = {0.07, 55, 140},
      [KV_COMPONENT_MLP] = {0.38, 70, 190},
      [KV_COMPONENT_ELEMENTWISE] = {0.05, 0.6, 1.5},
      [KV_COMPONENT_LM_HEAD] = {0.06, 40, 110},
      [KV_COMPONENT_SAMPLING] = {0.01, 0.4, 0.9},
      [KV_COMPONENT_LAUNCH] = {0.09, 0, 0},
  };
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    double seconds = parts[c].share * 2196 * scale;
    seconds *= c == KV_COMPONENT_DECODE_ATTENTION ? attention : 1;
    run->component_seconds[c] = seconds;
    run->component_flops[c] = parts[c].rate_tflops * 1e12 * seconds;
    run->component_bytes[c] =
        parts[c].intensity > 0 ? run->component_flops[c] / parts[c].intensity : 0;
    run->flops += run->component_flops[c];
    run->hbm_bytes += run->component_bytes[c];
  }
}

/* An hour in `n` intervals: a smooth load with one burst at 60 % of it. */
static void give_timeline(KvSummary *run, guint n, double load) {
  run->timeline = g_array_new(FALSE, TRUE, sizeof(KvInterval));
  for (guint i = 0; i < n; i++) {
    double x = i / (double)n, wave = 0.6 + 0.3 * sin(2 * G_PI * 2 * x) + 0.04 * sin(131 * x);
    double burst = exp(-400 * (x - 0.6) * (x - 0.6)), seconds = 3600.0 / n;
    double held = MIN(1, load * (0.3 * wave + 0.75 * burst)), rest = 1 - held;
    double cached = rest * (1 - exp(-6 * x));
    KvInterval interval = {
        .start_seconds = i * seconds,
        .seconds = seconds,
        .running = 40 * load * (wave + burst),
        .waiting = MAX(0, 60 * load * (burst - 0.4)),
        .blocks_held = 46000 * held,
        .blocks_cached = 46000 * cached,
        .blocks_free = 46000 * (rest - cached),
        .host_bytes = 2e9 * load * burst * seconds,
        .prompt_tokens = 6200 * wave * seconds,
        .output_tokens = 1400 * (wave + 0.3 * burst) * seconds,
        .busy_seconds = MIN(1, 0.7 * load * (wave + 0.5 * burst)) * seconds,
        .ttft_sum = 50 * (0.04 + 0.01 * wave + 2 * load * burst),
        .tpot_sum = 50 * (0.011 + 0.006 * wave + 0.01 * burst),
        .ttft_count = i % 37 == 5 ? 0 : 50,
        .tpot_count = 50,
        .finished = 50,
        .preemptions = load > 1 && burst > 0.5 ? 4 : 0,
    };
    g_array_append_val(run->timeline, interval);
  }
}

static void give_machine(KvSummary *run) {
  run->block_tokens = 16;
  run->total_blocks = 46000;
  run->block_bytes = 2097152;
  run->cache_bytes = 46000 * 2097152.0;
  run->weight_bytes = 16.06e9;
  run->activation_bytes = 1.2e9;
  run->peak_flops_rate = 989e12;
  run->peak_hbm_Bps = 4.8e12;
}

static void give_traffic(KvSummary *run) {
  run->requests_arrived = 19369;
  run->requests_finished = 19366;
  run->requests_rejected = 3;
  run->makespan_seconds = 3598;
  run->prompt_tokens = 22361870;
  run->output_tokens = 4088665;
  run->requests_per_second = 19366 / 3598.0;
  run->prompt_tokens_per_second = 22361870 / 3598.0;
  run->output_tokens_per_second = 4088665 / 3598.0;
  run->total_tokens_per_second = run->prompt_tokens_per_second + run->output_tokens_per_second;
  run->slo_ttft_seconds = 1;
  run->slo_tpot_seconds = 0.05;
  run->slo_attainment = 0.983;
  run->goodput_requests_per_second = 0.983 * run->requests_per_second;
  run->prefix_hit_ratio = 0.341;
  run->hit_tokens = 7625398;
  run->looked_up_tokens = 22361870;
}

static void give_rest(KvSummary *run) {
  run->mean_blocks_held_share = 0.231;
  run->peak_blocks_held_share = 0.972;
  run->fragmentation = 0.021;
  run->mean_running = 24.3;
  run->peak_running = 64;
  run->mean_waiting = 1.1;
  run->peak_waiting = 36;
  run->steps = 184211;
  run->busy_share = 0.61;
  run->prefill_busy_share = 0.34;
  run->mfu = 0.128;
  run->mbu = 0.372;
  run->energy_joules = 2.31e6;
  run->energy_joules_per_output_token = 2.31e6 / 4088665;
  run->cost_usd = 3.79;
  run->usd_per_million_output_tokens = 3.79 / 4.088665;
  run->carbon_grams = 246;
}

KvSummary *fixture_normal(void) {
  KvSummary *run = g_new0(KvSummary, 1);
  name(run, "vllm");
  give_traffic(run);
  give_machine(run);
  give_rest(run);
  give_components(run, 1, 1);
  give_timeline(run, 240, 1);
  spread(run, KV_LATENCY_QUEUE, 19366, 0.003, 0.8);
  spread(run, KV_LATENCY_TTFT, 19366, 0.045, 0.45);
  spread(run, KV_LATENCY_TPOT, 19012, 0.0132, 0.12);
  spread(run, KV_LATENCY_ITL, 4069299, 0.0121, 0.2);
  spread(run, KV_LATENCY_E2E, 19366, 2.31, 0.5);
  return run;
}

KvSummary *fixture_faster(void) {
  KvSummary *run = fixture_normal();
  g_free(run->label);
  run->label = g_strdup("kivi:bits=2");
  run->calibrated = TRUE;
  g_array_unref(run->timeline);
  give_timeline(run, 240, 0.35);
  run->flops = run->hbm_bytes = 0;
  give_components(run, 0.93, 0.3);
  run->block_bytes *= 0.17;
  run->total_blocks = 270000;
  run->mean_blocks_held_share = 0.05;
  run->peak_blocks_held_share = 0.21;
  run->busy_share = 0.55;
  run->energy_joules *= 0.94;
  run->energy_joules_per_output_token *= 0.94;
  spread(run, KV_LATENCY_TTFT, 19366, 0.031, 0.3);
  spread(run, KV_LATENCY_TPOT, 19012, 0.0109, 0.1);
  spread(run, KV_LATENCY_E2E, 19366, 1.92, 0.45);
  return run;
}

KvSummary *fixture_slower(void) {
  KvSummary *run = fixture_normal();
  g_free(run->label);
  run->label = g_strdup("gqa,snapkv:budget=1024,kivi:bits=4,flexgen:cache=0.5");
  g_array_unref(run->timeline);
  give_timeline(run, 240, 1.4);
  run->preemptions = 412;
  run->recomputed_tokens = 913000;
  run->swapped_out_blocks = 9120;
  run->swapped_in_blocks = 8800;
  run->lower_tier_hit_ratio = 0.22;
  run->fetched_bytes[KV_TIER_DRAM] = 61e9;
  run->stored_bytes[KV_TIER_DRAM] = 88e9;
  run->link_bytes = 3e9;
  run->component_seconds[KV_COMPONENT_TRANSFER] = 300;
  run->component_seconds[KV_COMPONENT_TECHNIQUE] = 120;
  run->output_tokens_per_second *= 0.7;
  run->busy_share = 0.83;
  run->slo_attainment = 0.61;
  run->goodput_requests_per_second *= 0.62;
  spread(run, KV_LATENCY_QUEUE, 19366, 0.8, 0.6);
  spread(run, KV_LATENCY_TTFT, 19366, 1.31, 0.6);
  spread(run, KV_LATENCY_TPOT, 19012, 0.0171, 0.2);
  spread(run, KV_LATENCY_E2E, 19366, 4.7, 0.5);
  return run;
}

KvSummary *fixture_single(void) {
  KvSummary *run = g_new0(KvSummary, 1);
  static const KvLatency had[] = {KV_LATENCY_QUEUE, KV_LATENCY_TTFT, KV_LATENCY_E2E};
  name(run, "<b>\"it's\" & more</b>");
  give_machine(run);
  run->requests_arrived = run->requests_finished = 1;
  run->prompt_tokens = 512;
  run->output_tokens = 1;
  run->makespan_seconds = 0.0183;
  run->output_tokens_per_second = run->requests_per_second = 1 / 0.0183;
  run->prompt_tokens_per_second = 512 / 0.0183;
  run->steps = 1;
  run->busy_share = 1;
  run->mfu = 0.44;
  run->mbu = 0.19;
  for (guint i = 0; i < G_N_ELEMENTS(had); i++) {
    double value = had[i] == KV_LATENCY_QUEUE ? 0 : 0.0183;
    run->latency[had[i]] = (KvDistribution){1, value, value, value, value, value, value, value};
    for (guint p = 0; p < KV_CDF_POINTS; p++)
      run->cdf[had[i]].value[p] = value;
  }
  run->component_seconds[KV_COMPONENT_MLP] = 0.0183;
  run->component_flops[KV_COMPONENT_MLP] = run->flops = 8.2e12;
  run->component_bytes[KV_COMPONENT_MLP] = run->hbm_bytes = 16.6e9;
  run->timeline = g_array_new(FALSE, TRUE, sizeof(KvInterval));
  KvInterval interval = {.seconds = 0.0183,
                         .running = 1,
                         .blocks_held = 32,
                         .blocks_free = 45968,
                         .prompt_tokens = 512,
                         .output_tokens = 1,
                         .busy_seconds = 0.0183,
                         .ttft_sum = 0.0183,
                         .ttft_count = 1,
                         .finished = 1};
  g_array_append_val(run->timeline, interval);
  return run;
}

KvSummary *fixture_empty(void) {
  KvSummary *run = g_new0(KvSummary, 1);
  name(run, "vllm");
  give_machine(run);
  run->requests_arrived = run->requests_rejected = 2;
  run->timeline = g_array_new(FALSE, TRUE, sizeof(KvInterval));
  return run;
}
