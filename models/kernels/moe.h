/* The routed experts of one layer. Internal to models/kernels/. */
#ifndef KV_MODELS_KERNELS_MOE_H
#define KV_MODELS_KERNELS_MOE_H

#include "models/kernels/kernels.h"

enum { KV_MOE_TILES = 5 };

/* Heights of the row tiles that kernels choose from. */
extern const double kv_moe_tile_rows[KV_MOE_TILES];

/* What routing leaves to one GPU's experts. */
typedef struct {
  double touched, rows;       /* experts with a row; rows of all of them */
  double tiles[KV_MOE_TILES]; /* sum over experts of ceil(rows / kv_moe_tile_rows[i]) */
} KvExpertLoad;

/* One GPU's experts. */
typedef struct {
  double hidden, intermediate, n_experts;
  gboolean gated;
} KvMoeShape;

/* `experts` more experts of `rows` rows each; a number below 1 is the chance of one row. */
void kv_moe_add_experts(KvExpertLoad *load, double experts, double rows);

/* The expected load where each token picks its experts evenly at random. */
KvExpertLoad kv_moe_uniform_load(double tokens, double n_experts, double n_experts_per_token);

/* The loads of synthetic benchmarks: tokens dealt in turn, and a share of experts distributed as
 * x^-exponent (aiconfigurator's: x from 1 to 0.8 tokens, from 0.01 to 2 where there is at most one
 * row an expert), of which the fullest of `ranks` equal groups is measured. n_experts: of all ranks
 * in the latter. */
KvExpertLoad kv_moe_balanced_load(double tokens, double n_experts, double n_experts_per_token);
KvExpertLoad kv_moe_power_law_load(double tokens, double n_experts, double n_experts_per_token,
                                   double exponent, double ranks);

/* The layer without its router's product. read_share: time of reading the weights over that of
 * reading them from memory. */
KvCost kv_moe_cost(const KvDevice *device, KvDtype dtype, double weight_bytes,
                   const KvMoeShape *shape, double tokens, const KvExpertLoad *load,
                   double read_share);

#endif
