#include "sim/engine/demand.h"

#include <math.h>

/* A law that never falls and never lies below `law`. */
static KvLaw envelope(const KvLaw *law) {
  KvLaw upper = *law;
  if (law->kind == KV_LAW_FLUSHED)
    upper.kind = KV_LAW_ALL;
  if (law->kind == KV_LAW_PENDING)
    upper.kind = KV_LAW_LAST;
  return upper;
}

/* Whether the law holds less once the prompt is done. */
static gboolean drops_prompt(const KvLaw *law) {
  return law->kind == KV_LAW_PROMPT_CAPPED || law->kind == KV_LAW_EVICTED || law->kept_prompt > 0.0;
}

void kv_demand_init(KvDemand *demand, const KvPlanCurves *curves, guint block_tokens) {
  const double far = 1e9; /* tokens: beyond every window */
  double per_token = 0.0, tier_bytes[KV_N_TIERS] = {0};
  gboolean holds[KV_N_TIERS] = {FALSE};
  guint growing = 0, grower = 0;
  *demand = (KvDemand){.block_tokens = block_tokens,
                       .n_channels = curves->n_channels,
                       .peak_share = 1.0,
                       .state_bytes = curves->state_bytes};
  for (guint c = 0; c < curves->n_channels; c++) {
    double slope, bytes = 0.0;
    demand->laws[c] = envelope(&curves->laws[c]);
    kv_law_value(&demand->laws[c], far, 0.0, TRUE, &slope, NULL);
    for (guint t = 0; t < KV_N_TIERS; t++) {
      bytes += curves->stored_bytes[t][c];
      tier_bytes[t] += curves->stored_bytes[t][c] * slope;
      demand->tier_bytes[t][c] = curves->stored_bytes[t][c];
      holds[t] |= curves->stored_bytes[t][c] > 0.0;
    }
    demand->bytes[c] = bytes;
    demand->drops_prompt |= bytes > 0.0 && drops_prompt(&curves->laws[c]);
    per_token += bytes * slope;
    if (bytes > 0.0) {
      growing++;
      grower = c;
    }
  }
  for (guint t = 0; t < KV_N_TIERS; t++)
    demand->uneven |= per_token > 0.0 && holds[t] && tier_bytes[t] <= 0.0;
  if (per_token <= 0.0) { /* windows and states only: a block is the largest window's token */
    for (guint c = 0; c < curves->n_channels; c++) {
      per_token += demand->bytes[c];
      for (guint t = 0; t < KV_N_TIERS; t++)
        tier_bytes[t] += curves->stored_bytes[t][c];
    }
    if (per_token <= 0.0) {
      per_token = MAX(1.0, demand->state_bytes / block_tokens);
      tier_bytes[KV_TIER_HBM] = per_token;
    }
  }
  demand->block_bytes = block_tokens * per_token;
  for (guint t = 0; t < KV_N_TIERS; t++)
    demand->tier_share[t] = tier_bytes[t] / per_token;
  const KvLaw *law = &demand->laws[grower];
  demand->law = *law;
  demand->simple = growing == 1 && demand->state_bytes == 0.0 && law->scale == 1.0 &&
                   law->cap >= G_MAXDOUBLE && law->prompt_share == 0.0 &&
                   (law->kind == KV_LAW_ALL || law->kind == KV_LAW_PROMPT_CAPPED);
}

void kv_demand_set_tiers(KvDemand *demand, const double capacity_bytes[KV_N_TIERS], double blocks) {
  for (guint t = 0; t < KV_N_TIERS; t++)
    demand->tier_block_bytes[t] = blocks > 0.0 ? capacity_bytes[t] / blocks : 0.0;
}

/* Tokens that the law holds. */
static double held_tokens(const KvDemand *demand, const KvLaw *law, double n, double prompt,
                          gboolean decoding) {
  double tokens = kv_law_value(law, n, prompt, decoding, NULL, NULL);
  if (decoding || demand->peak_share >= 1.0 || !drops_prompt(law))
    return tokens;
  double kept = kv_law_value(law, n, n, TRUE, NULL, NULL);
  return kept + (tokens - kept) * demand->peak_share;
}

/* Blocks of the tier that a sequence fills most; a tier without memory cannot be filled. */
static guint64 uneven_blocks(const KvDemand *demand, double n, double prompt, gboolean decoding) {
  double bytes[KV_N_TIERS] = {[KV_TIER_HBM] = demand->state_bytes}, most = 0.0;
  for (guint c = 0; c < demand->n_channels; c++) {
    if (demand->bytes[c] <= 0.0)
      continue;
    double tokens = held_tokens(demand, &demand->laws[c], n, prompt, decoding);
    for (guint t = 0; t < KV_N_TIERS; t++)
      bytes[t] += demand->tier_bytes[t][c] * tokens;
  }
  for (guint t = 0; t < KV_N_TIERS; t++)
    if (demand->tier_block_bytes[t] > 0.0)
      most = MAX(most, bytes[t] / demand->tier_block_bytes[t]);
  return (guint64)ceil(most - 1e-9);
}

gint64 kv_demand_tokens(const KvDemand *demand, double n, double prompt, gboolean decoding) {
  n += demand->slack_tokens;
  return demand->law.kind == KV_LAW_ALL && demand->law.kept_prompt <= 0.0
             ? (gint64)n
             : (gint64)ceil(held_tokens(demand, &demand->law, n, prompt, decoding));
}

guint64 kv_demand_blocks(const KvDemand *demand, double n, double prompt, gboolean decoding) {
  if (demand->simple) {
    guint64 m = (guint64)kv_demand_tokens(demand, n, prompt, decoding);
    return (m + demand->block_tokens - 1) / demand->block_tokens;
  }
  if (demand->uneven && demand->tier_block_bytes[KV_TIER_HBM] > 0.0)
    return uneven_blocks(demand, n, prompt, decoding);
  double bytes = demand->state_bytes;
  n += demand->slack_tokens;
  for (guint c = 0; c < demand->n_channels; c++)
    if (demand->bytes[c] > 0.0)
      bytes += demand->bytes[c] * held_tokens(demand, &demand->laws[c], n, prompt, decoding);
  /* A billionth of a block: sums of products that are whole in exact arithmetic stay whole. */
  return (guint64)ceil(bytes / demand->block_bytes - 1e-9);
}
