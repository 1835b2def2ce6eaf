#include "sim/engine/memory.h"

#include <math.h>

#include "sim/base/error.h"
#include "sim/base/format.h"

/* CUDA context, libraries and what the allocator cannot use grow with the GPU. Chosen so that with
 * weights and activations the blocks of two real vLLM servers come out: 2,588 on a 24 GB RTX 4090
 * (Llama-3.1-8B in bf16, 0.19, 256 sequences, 2,048 tokens) and 21,769 on a 141 GB H200
 * (Llama-3.1-70B in fp8 with an fp8 cache, 0.14.1, 1,024 sequences, 8,192 tokens). */
static const double FRAMEWORK_BYTES = 2e8, FRAMEWORK_SHARE = 0.0043;

static gboolean as_published(const KvModel *model, const KvPlan *plan) {
  return plan->weights.dtype == model->weight_dtype;
}

static double expert_weights(const KvModel *model) {
  double weights = 0.0;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvMlp *mlp = &model->groups[g].mlp;
    weights += (double)model->groups[g].count * mlp->n_experts * (double)mlp->expert_intermediate *
               model->hidden * (mlp->gated ? 3.0 : 2.0);
  }
  return weights;
}

KvDtype kv_memory_expert_dtype(const KvModel *model, const KvPlan *plan) {
  if (plan->weights.expert_dtype > 0)
    return plan->weights.expert_dtype - 1;
  return as_published(model, plan) ? model->expert_dtype : plan->weights.dtype;
}

double kv_memory_expert_bytes(const KvModel *model, const KvPlan *plan) {
  KvDtype dtype = kv_memory_expert_dtype(model, plan);
  return dtype == plan->weights.dtype ? plan->weights.bytes_per_parameter
                                      : kv_dtype_weight_bytes(dtype);
}

static double token_tables(const KvModel *model) {
  return (double)model->vocab * model->embedding_dim * (model->tied_embeddings ? 1.0 : 2.0);
}

double kv_memory_table_bytes(const KvModel *model, const KvPlan *plan) {
  return token_tables(model) * MAX(plan->weights.bytes_per_parameter, 2.0);
}

double kv_memory_weight_bytes(const KvModel *model, const KvPlan *plan) {
  double all = (double)kv_model_parameters(model), experts = expert_weights(model);
  return (all - experts - token_tables(model)) * plan->weights.bytes_per_parameter +
         kv_memory_table_bytes(model, plan) + experts * kv_memory_expert_bytes(model, plan);
}

/* Of one GPU: experts are spread over every GPU that shares them. */
static double own_weight_bytes(const KvModel *model, const KvPlan *plan,
                               const KvEngineConfig *config, guint tp) {
  double experts = expert_weights(model) * kv_memory_expert_bytes(model, plan);
  double others = kv_memory_weight_bytes(model, plan) - experts;
  return others / tp + experts / MAX(tp, config->expert_parallel);
}

/* Peak of the profiling pass: the residual stream twice, the widest MLP's gate, up and product; and
 * the sampler's for each row of the vocabulary: logits as they come and in fp32, sorted with their
 * indices, and probabilities. */
static double activation_bytes(const KvModel *model, const KvEngineConfig *config, guint tp) {
  double widest = 0.0;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvMlp *mlp = &model->groups[g].mlp;
    double width = (double)(mlp->intermediate + mlp->shared_intermediate) +
                   (double)mlp->expert_intermediate * mlp->n_experts_per_token;
    widest = MAX(widest, 3.0 * width / tp);
  }
  return config->max_batched_tokens * (2.0 * model->hidden + widest) * 2.0 +
         (2.0 + 4.0 + 4.0 + 8.0 + 4.0) * config->max_seqs * (double)model->vocab;
}

/* Blocks of a demand whose tiers fill at rates of their own. */
static gboolean divide_tiers(const KvModel *model, const KvPlatform *platform, KvDemand *demand,
                             const double capacity_bytes[KV_N_TIERS], double blocks,
                             GError **error) {
  for (guint t = 0; t < KV_N_TIERS; t++) {
    gboolean used = FALSE;
    for (guint c = 0; c < demand->n_channels; c++)
      used |= demand->tier_bytes[t][c] > 0.0;
    if (used && capacity_bytes[t] <= 0.0) {
      g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                  "%s on %s: the stack keeps a part of the cache on the tier %s, for which this "
                  "platform has no memory left, expected a platform with it",
                  model->id, platform->id, kv_tier_names[t]);
      return FALSE;
    }
  }
  kv_demand_set_tiers(demand, capacity_bytes, blocks);
  return TRUE;
}

gboolean kv_memory_divide(const KvModel *model, const KvPlan *plan, KvDemand *demand,
                          const KvPlatform *platform, const KvEngineConfig *config,
                          guint tensor_parallel, KvMemory *memory, GError **error) {
  double tp = tensor_parallel, weights = kv_memory_weight_bytes(model, plan);
  double usable = platform->device->memory_bytes * config->memory_utilization;
  memory->weight_bytes =
      own_weight_bytes(model, plan, config, tensor_parallel) * plan->weights.share[KV_TIER_HBM];
  if (config->as_executed)
    memory->weight_bytes +=
        kv_memory_table_bytes(model, plan) / tp * (1.0 - plan->weights.share[KV_TIER_HBM]);
  memory->activation_bytes = activation_bytes(model, config, tensor_parallel);
  memory->framework_bytes = FRAMEWORK_BYTES + FRAMEWORK_SHARE * platform->device->memory_bytes;
  memory->cache_bytes =
      usable - memory->weight_bytes - memory->activation_bytes - memory->framework_bytes;
  g_autofree char *has = kv_format_bytes(usable);
  if (memory->cache_bytes <= 0.0) {
    g_autofree char *needs = kv_format_bytes(usable - memory->cache_bytes);
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s on %s: weights, activations and framework need %s per GPU of the %s usable, "
                "expected a larger GPU, more tensor parallelism or smaller weights",
                model->id, platform->id, needs, has);
    return FALSE;
  }
  double capacity[KV_N_TIERS] = {[KV_TIER_HBM] =
                                     memory->cache_bytes * tp * config->context_parallel};
  capacity[KV_TIER_DRAM] =
      platform->host_memory
          ? MAX(0.0, platform->host_memory->capacity_bytes * config->memory_utilization -
                         weights * plan->weights.share[KV_TIER_DRAM])
          : 0.0;
  capacity[KV_TIER_SSD] =
      platform->ssd
          ? MAX(0.0, platform->ssd->capacity_bytes - weights * plan->weights.share[KV_TIER_SSD])
          : 0.0;
  capacity[KV_TIER_CSD] = platform->csd ? platform->csd->capacity_bytes : 0.0;
  double blocks = G_MAXDOUBLE;
  /* Heads that tensor parallelism cannot split are held by several GPUs. */
  double replication = 1.0;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *a = &model->groups[g].attention;
    double heads = a->kind == KV_ATTENTION_LATENT ? 1.0 : MAX(1u, a->n_kv_heads);
    replication = MAX(replication, tp / heads);
  }
  for (guint t = 0; t < KV_N_TIERS; t++) {
    double share = demand->tier_share[t] * (t == KV_TIER_HBM ? replication : 1.0);
    if (share > 0.0)
      blocks = MIN(blocks, floor(capacity[t] / (demand->block_bytes * share)));
  }
  capacity[KV_TIER_HBM] /= replication;
  if (demand->uneven && !divide_tiers(model, platform, demand, capacity, blocks, error))
    return FALSE;
  memory->blocks = config->num_blocks ? config->num_blocks : (guint64)blocks;
  /* vLLM: block 0 is the null block. */
  if (!config->num_blocks && memory->blocks > 0)
    memory->blocks -= 1;
  memory->blocks *= config->data_parallel; /* each rank has its own */
  if (memory->blocks == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s on %s: no block of the cache fits beside the weights in %s per GPU", model->id,
                platform->id, has);
    return FALSE;
  }
  return TRUE;
}
