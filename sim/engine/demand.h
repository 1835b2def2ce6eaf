/* How many blocks a sequence's cache takes, as the plan says.
 *
 * A block holds `block_tokens` tokens at the bytes per token that the plan tends to for long
 * contexts, over all tiers together: for an unchanged cache exactly vLLM's block. A sequence at
 * context n takes
 *
 *     ceil( sum over channels of bytes * law(n)  +  recurrent state,  / block_bytes )
 *
 * blocks. Laws that go up and down (a residual that is flushed) count with their upper envelope: a
 * real allocator keeps the buffer. Where tiers fill at rates of their own (a prompt that lies in
 * host memory while what is generated stays in HBM), a block is the same share of every tier's
 * memory, and a sequence takes as many as the tier that it fills most asks for. In the common case
 * the demand is "simple": blocks = ceil(m / block_tokens), where m grows by one a step.
 */
#ifndef KV_SIM_ENGINE_DEMAND_H
#define KV_SIM_ENGINE_DEMAND_H

#include <glib.h>

#include "models/techniques/plan.h"

typedef struct {
  guint block_tokens;
  double block_bytes; /* over all tiers and GPUs */
  gboolean simple;
  KvLaw law; /* simple: m = law(n) */
  guint n_channels;
  KvLaw laws[KV_MAX_CHANNELS]; /* envelopes */
  double bytes[KV_MAX_CHANNELS];
  gboolean uneven; /* tiers fill at rates of their own */
  double tier_bytes[KV_N_TIERS][KV_MAX_CHANNELS];
  double tier_block_bytes[KV_N_TIERS]; /* uneven: of each tier, per block; 0: not known yet */
  double state_bytes;
  guint slack_tokens;    /* that a sequence holds room for beyond its own (chunks mapped ahead) */
  gboolean drops_prompt; /* a sequence takes fewer blocks once its prompt is done */
  double tier_share[KV_N_TIERS]; /* of block_bytes */
  double
      peak_share; /* of what a prompt drops when it is done, held until then: 1, or less where
                     whole prompts go through the layers one by one and each layer drops its own */
} KvDemand;

void kv_demand_init(KvDemand *demand, const KvPlanCurves *curves, guint block_tokens);

/* An uneven demand's blocks: each is this share of every tier's memory. */
void kv_demand_set_tiers(KvDemand *demand, const double capacity_bytes[KV_N_TIERS], double blocks);

guint64 kv_demand_blocks(const KvDemand *demand, double n, double prompt, gboolean decoding);

/* Simple demands: m at context n, so that blocks = ceil(m / block_tokens). */
gint64 kv_demand_tokens(const KvDemand *demand, double n, double prompt, gboolean decoding);

#endif
