/* The ranks that Palu's parameters give a layer, for its plan and for who carries it out. */
#ifndef KV_MODELS_TECHNIQUES_PALU_H
#define KV_MODELS_TECHNIQUES_PALU_H

#include "models/techniques/technique.h"

/* Ranks of one layer's keys and values. */
typedef struct {
  double groups;               /* of heads */
  double key_rank, value_rank; /* of a group */
} KvPaluRanks;

/* The parameters that decide on them. */
typedef struct {
  double rank_ratio, rank_spread, group_size, value_share, rank_k, rank_v, rank_rounding;
} KvPaluSettings;

KvPaluSettings kv_palu_settings(const KvTechniqueUse *use);
/* Of a layer with attention `x` that keeps `kept` of its width, where no rank is given. */
KvPaluRanks kv_palu_ranks(const KvPaluSettings *settings, const KvAttention *x, double kept);

#endif
