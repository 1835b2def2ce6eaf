/* Survey: Model-level Optimization > Cross-layer > Augmented Architectures. */
#include <math.h>

#include "models/techniques/build.h"

/* --- Block Transformer --- */

static gboolean block_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  guint block = (guint)kv_technique_value(use, "L_B"), layers = kv_model_layers(model);
  double prefix = kv_technique_value(use, "P");
  if (model->n_groups != 1 || model->groups[0].attention.kind != KV_ATTENTION_FULL ||
      model->groups[0].attention.borrows_cache || model->groups[0].stride_tokens > 1)
    return kv_technique_refuse(
        use, error,
        "the layers of %s are not all alike with full attention, expected such "
        "a model",
        model->id);
  double lower = round(layers * kv_technique_value(use, "split"));
  if (lower < 1.0 || lower >= layers)
    return kv_technique_refuse(use, error,
                               "split is %g of %u layers, expected a block decoder and a token "
                               "decoder of at least one layer",
                               kv_technique_value(use, "split"), layers);
  KvLayerGroup *tokens = kv_model_split_group(model, 0, layers - (guint)lower);
  tokens->attention.kind = KV_ATTENTION_SLIDING;
  tokens->attention.window_tokens = (guint)prefix + block;
  tokens->extra_prefill_passes = -1.0;
  KvLayerGroup *blocks = &model->groups[0];
  blocks->stride_tokens = block;
  /* The layer that expands a block's embedding to the prefix: counted evenly with the layers. */
  blocks->attention.mixer_parameters +=
      (guint64)(prefix * model->hidden * (double)model->hidden / lower);
  return TRUE;
}

/* Weights of one layer that each token is multiplied by. */
static double block_layer_parameters(const KvModel *model, const KvLayerGroup *layer) {
  const KvAttention *x = &layer->attention;
  double d = model->hidden, heads = x->n_heads, kv = x->n_kv_heads;
  double mlp = (double)(layer->mlp.intermediate + layer->mlp.shared_intermediate) +
               (double)layer->mlp.expert_intermediate * layer->mlp.n_experts_per_token;
  return d * (heads * x->head_dim + kv * ((double)x->head_dim + x->value_head_dim)) +
         d * heads * x->value_head_dim + (layer->mlp.gated ? 3.0 : 2.0) * d * mlp;
}

static gboolean block_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                           GError **error) {
  (void)error;
  double block = kv_technique_value(use, "L_B"), prefix = kv_technique_value(use, "P");
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvLayerGroup *layer = &model->groups[cache->group];
    if (layer->stride_tokens > 1 || layer->extra_prefill_passes >= 0.0) {
      cache->name = "blocks";
      continue;
    }
    cache->name = "prefix and block";
    if (kv_plan_reads_all(plan, i) && cache->n_segments == 1) {
      KvReader *reader = kv_plan_reader_of(plan, i);
      reader->read[0] = kv_law(KV_LAW_LAST, prefix + block / 2.0); /* the mean over a block */
    }
    kv_plan_add_work(plan, (KvWork){.name = "prefix of the next block",
                                    .moment = KV_MOMENT_DECODE_STEP,
                                    .flops = layer->count * 2.0 * prefix / block *
                                             block_layer_parameters(model, layer),
                                    .launches = 1.0,
                                    .matrix = TRUE,
                                    .critical = TRUE});
  }
  plan->share_multiple = MAX(plan->share_multiple, (guint)block);
  return TRUE;
}

static const KvParam block_params[] = {
    {"L_B", KV_PARAM_INTEGER, 4, 2, 64, NULL, "tokens", "tokens of a block"},
    {"P", KV_PARAM_INTEGER, 2, 1, 64, NULL, "vectors",
     "that a block's embedding is expanded to, for its tokens to attend to"},
    {"split", KV_PARAM_REAL, 0.5, 0.01, 0.99, NULL, "fraction",
     "of the layers that decode blocks; the rest decodes tokens"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula block_formulas[] = {
    {"2*n/LB*Lb*Hkv*d*e + 2*(P+LB)*Lt*Hkv*d*e", "bytes of the cache"},
    {"2*n/LB^2*Lb*Hkv*d*e + 2*(P+LB/2)*Lt*Hkv*d*e",
     "HBM bytes that a decode step reads on average: the lower layers run once in LB steps"},
    {"4*n/LB^2*H*d*Lb + 4*(P+LB/2)*H*d*Lt", "FLOPs of a decode step's attention on average"},
    {"2*P/LB*parameters of the token decoder", "FLOPs per token of the prefix"},
    {"n/LB positions of the lower layers", "work of a prompt; the upper layers see only its end"},
    {NULL, NULL},
};

static const KvQualityPoint block_quality[] = {
    {"302M non-embedding", "training loss (Pile), lower is better", "Block 420M vs vanilla 410M",
     2.224, 2.445, "Table 1, seen", "L_B", 4, NULL},
    {"Block 1.4B vs vanilla 410M", "training loss", "L_B=4", 2.224, 2.188, "Table 1, seen", NULL, 0,
     NULL},
    {"Block 1.4B vs vanilla 410M", "WikiText perplexity", "L_B=4", 20.1, 19.1, "Table 1, seen",
     NULL, 0, NULL},
    {"Block 1.4B vs vanilla 410M", "LAMBADA perplexity", "L_B=4", 10.0, 12.2, "Table 1, seen", NULL,
     0, NULL},
    {"Block 1.4B vs vanilla 410M", "HellaSwag", "L_B=4", 35.05, 36.66, "Table 1, seen", NULL, 0,
     NULL},
    {"Block 1.0B vs vanilla 410M", "training loss", "L_B=4", 2.224, 2.268, "Table 1, seen", NULL, 0,
     NULL},
    {0},
};

static const char *const block_sections[] = {
    "Model-level Optimization > Cross-layer > Augmented Architectures", NULL};

const KvTechnique kv_technique_block_transformer = {
    .id = "block-transformer",
    .name = "Block Transformer",
    .title = "Block Transformer: Global-to-Local Language Modeling for Fast Inference",
    .paper = "arXiv:2406.02657",
    .code = "github.com/itsnamgyu/block-transformer",
    .year = 2024,
    .sections = block_sections,
    .mechanism =
        "Tokens are taken in blocks of L_B. The lower layers see a block as one position, attend "
        "to all blocks before it and predict an embedding of the next one, once in L_B tokens. The "
        "upper layers write that block's tokens one by one; they attend only to P vectors made of "
        "the embedding and to the tokens written so far, so their cache is a few tokens and they "
        "have nothing to do with a prompt.",
    .params = block_params,
    .formulas = block_formulas,
    .quality = block_quality,
    .composes =
        "Goes with grouped heads (before it), paging, quantization and eviction of the block "
        "cache, and prefix sharing at multiples of a block. Refuses models whose layers differ "
        "or do not attend to everything.",
    .pitfalls =
        "Compare at equal loss, for which it needs about three times the parameters, not at equal "
        "parameters. Steps are uneven: the lower layers run in every L_B-th, which is priced as a mean "
        "over sequences whose blocks are not aligned. The embedder's table of vocabulary times "
        "D/L_B is not counted. The published throughputs are at the largest batch with eager code.",
    .confidence =
        "high: the paper's text with its main table, and code and configurations, were read",
    .arch = block_arch,
    .plan = block_plan,
};
