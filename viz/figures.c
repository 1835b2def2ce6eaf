#include "viz/figures.h"

#include <math.h>

#define IS_WHOLE(field) _Generic(((KvSummary *)0)->field, guint64 : TRUE, default : FALSE)
#define FIGURE(group, label, unit, better, field, latency, bar)                                    \
  {                                                                                                \
    group, label, KV_UNIT_##unit, KV_BETTER_##better, G_STRUCT_OFFSET(KvSummary, field),           \
        IS_WHOLE(field), latency, bar                                                              \
  }
#define LATENCY(title, of, statistic, bar)                                                         \
  FIGURE("Latency", title, SECONDS, LOWER, latency[KV_LATENCY_##of].statistic, KV_LATENCY_##of, bar)
#define PLAIN(group, label, unit, better, field)                                                   \
  FIGURE(group, label, unit, better, field, -1, FALSE)
#define BAR(group, label, unit, better, field) FIGURE(group, label, unit, better, field, -1, TRUE)

const KvFigure kv_figures[] = {
    LATENCY("Queueing, mean", QUEUE, mean, FALSE),
    LATENCY("TTFT, median", TTFT, p50, TRUE),
    LATENCY("TTFT, p99", TTFT, p99, TRUE),
    LATENCY("TPOT, median", TPOT, p50, TRUE),
    LATENCY("TPOT, p99", TPOT, p99, FALSE),
    LATENCY("ITL, p99", ITL, p99, FALSE),
    LATENCY("E2E, median", E2E, p50, TRUE),
    LATENCY("E2E, p99", E2E, p99, FALSE),
    PLAIN("Throughput", "Requests finished", COUNT, NEITHER, requests_finished),
    PLAIN("Throughput", "Requests rejected", COUNT, LOWER, requests_rejected),
    PLAIN("Throughput", "Time span", SECONDS, NEITHER, makespan_seconds),
    PLAIN("Throughput", "Requests", PER_SECOND, HIGHER, requests_per_second),
    BAR("Throughput", "Output tokens", PER_SECOND, HIGHER, output_tokens_per_second),
    PLAIN("Throughput", "Goodput, requests", PER_SECOND, HIGHER, goodput_requests_per_second),
    PLAIN("Throughput", "Within the SLO", SHARE, HIGHER, slo_attainment),
    BAR("KV cache", "Prefix hits", SHARE, HIGHER, prefix_hit_ratio),
    PLAIN("KV cache", "Size of a block", BYTES, NEITHER, block_bytes),
    PLAIN("KV cache", "Room", BYTES, NEITHER, cache_bytes),
    PLAIN("KV cache", "Blocks held, mean", SHARE, NEITHER, mean_blocks_held_share),
    BAR("KV cache", "Blocks held, peak", SHARE, NEITHER, peak_blocks_held_share),
    PLAIN("KV cache", "Fragmentation", SHARE, LOWER, fragmentation),
    PLAIN("KV cache", "Preemptions", COUNT, LOWER, preemptions),
    PLAIN("KV cache", "Tokens recomputed", COUNT, LOWER, recomputed_tokens),
    PLAIN("Load", "Running, mean", NONE, NEITHER, mean_running),
    PLAIN("Load", "Waiting, mean", NONE, LOWER, mean_waiting),
    PLAIN("GPU", "Busy", SHARE, NEITHER, busy_share),
    PLAIN("GPU", "Busy with prompts", SHARE, NEITHER, prefill_busy_share),
    PLAIN("GPU", "MFU", SHARE, NEITHER, mfu),
    PLAIN("GPU", "MBU", SHARE, NEITHER, mbu),
    PLAIN("GPU", "FLOPs", FLOPS, NEITHER, flops),
    PLAIN("GPU", "HBM traffic", BYTES, NEITHER, hbm_bytes),
    PLAIN("GPU", "Between GPUs", BYTES, LOWER, link_bytes),
    BAR("Cost", "Energy per output token", JOULES, LOWER, energy_joules_per_output_token),
    PLAIN("Cost", "Energy", JOULES, LOWER, energy_joules),
    PLAIN("Cost", "Money", USD, LOWER, cost_usd),
    PLAIN("Cost", "Per million output tokens", USD, LOWER, usd_per_million_output_tokens),
    PLAIN("Cost", "Carbon (CO2)", GRAMS, LOWER, carbon_grams),
    PLAIN("Quality", "Change, worst published", SHARE, HIGHER, quality_low),
    PLAIN("Quality", "Change, best published", SHARE, HIGHER, quality_high),
};
const guint kv_n_figures = G_N_ELEMENTS(kv_figures);

const char *const kv_component_titles[KV_N_COMPONENTS] = {
    [KV_COMPONENT_QKV] = "QKV projection",
    [KV_COMPONENT_PREFILL_ATTENTION] = "Prefill attention",
    [KV_COMPONENT_DECODE_ATTENTION] = "Decode attention",
    [KV_COMPONENT_OUTPUT_PROJECTION] = "Output projection",
    [KV_COMPONENT_MLP] = "MLP",
    [KV_COMPONENT_ELEMENTWISE] = "Norms, activations",
    [KV_COMPONENT_LM_HEAD] = "LM head",
    [KV_COMPONENT_SAMPLING] = "Sampling",
    [KV_COMPONENT_COMMUNICATION] = "Communication",
    [KV_COMPONENT_TECHNIQUE] = "Technique",
    [KV_COMPONENT_TRANSFER] = "Waiting for transfers",
    [KV_COMPONENT_LAUNCH] = "Launches and CPU",
};

const char *const kv_tier_titles[KV_N_TIERS] = {
    [KV_TIER_HBM] = "HBM", [KV_TIER_DRAM] = "DRAM", [KV_TIER_CXL] = "CXL",
    [KV_TIER_SSD] = "SSD", [KV_TIER_CSD] = "CSD",   [KV_TIER_REMOTE] = "remote",
};

gboolean kv_summary_has_slo(const KvSummary *run) {
  return run->slo_ttft_seconds > 0 || run->slo_tpot_seconds > 0;
}

double kv_figure_value(const KvFigure *figure, const KvSummary *run) {
  gboolean of_slo = figure->offset == G_STRUCT_OFFSET(KvSummary, goodput_requests_per_second) ||
                    figure->offset == G_STRUCT_OFFSET(KvSummary, slo_attainment);
  gboolean of_space = figure->offset == G_STRUCT_OFFSET(KvSummary, fragmentation);
  if ((of_slo && !kv_summary_has_slo(run)) || (of_space && run->compressed) ||
      (figure->latency >= 0 && run->latency[figure->latency].n == 0))
    return NAN;
  const void *field = G_STRUCT_MEMBER_P(run, figure->offset);
  return figure->whole ? (double)*(const guint64 *)field : *(const double *)field;
}

int kv_figure_judge(const KvFigure *figure, double value, double baseline) {
  double change = value - baseline;
  double least = 0.01 * (figure->unit == KV_UNIT_SHARE ? 1 : fabs(baseline));
  if (figure->better == KV_BETTER_NEITHER || !isfinite(change) || change == 0 ||
      fabs(change) < least)
    return 0;
  return (change > 0) == (figure->better == KV_BETTER_HIGHER) ? 1 : -1;
}

guint kv_components_by_time(const KvSummary *run, KvComponent order[KV_N_COMPONENTS],
                            double *total) {
  guint n = 0;
  *total = 0;
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    double seconds = run->component_seconds[c];
    if (!(seconds > 0))
      continue;
    *total += seconds;
    guint at = n++;
    for (; at > 0 && run->component_seconds[order[at - 1]] < seconds; at--)
      order[at] = order[at - 1];
    order[at] = (KvComponent)c;
  }
  return n;
}
