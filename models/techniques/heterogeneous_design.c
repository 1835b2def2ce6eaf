/* Survey: System-level Optimization > Hardware-aware Design > Heterogeneous Design. */
#include "models/techniques/build.h"

/* --- InfiniGen --- */

/* Expected share of the context that a layer fetches. */
static double infinigen_fetched(const KvTechniqueUse *use) {
  return MIN(kv_technique_value(use, "fetch_share"), kv_technique_value(use, "max_num_kv"));
}

/* All keys and values lie in host memory; the GPU holds the columns of the keys that speculation
 * needs, and what two layers have fetched. The first layer has none before it to speculate in. */
static void infinigen_segments(const KvTechniqueUse *use, const KvModel *model,
                               const KvAttention *x, double e, gboolean first, KvCache *cache) {
  KvSegment *host = &cache->segments[0];
  double ratio = kv_technique_value(use, "partial_weight_ratio");
  KvSegment partial = *host, staged = *host;
  partial.name = "partial keys";
  partial.key_bytes = partial.value_bytes = 0.0;
  partial.metadata_bytes = ratio * x->n_kv_heads * x->head_dim * e;
  staged.name = "fetched, two layers of all";
  staged.key_bytes = staged.value_bytes = 0.0;
  staged.metadata_bytes = host->key_bytes + host->value_bytes;
  staged.tokens.scale *= infinigen_fetched(use) * 2.0 / kv_model_layers(model);
  host->name = "pool";
  host->tier = KV_TIER_DRAM;
  host->tokens.scale *= kv_technique_value(use, "capacity");
  if (first)
    return;
  cache->segments[cache->n_segments++] = partial;
  cache->segments[cache->n_segments++] = staged;
}

static void infinigen_reader(const KvTechniqueUse *use, const KvAttention *x, const KvCache *cache,
                             double e, gboolean first, KvReader *reader) {
  double ratio = kv_technique_value(use, "partial_weight_ratio");
  gboolean overlap = !first || kv_technique_value(use, "overlap") != 0.0;
  reader->processor = KV_PROCESSOR_GPU;
  reader->overlap = overlap ? KV_OVERLAP_STEP : KV_OVERLAP_NONE;
  reader->read[0] = cache->segments[0].tokens;
  if (first)
    return;
  reader->read[0].scale *= infinigen_fetched(use);
  reader->read[1] = reader->read[2] = kv_law(KV_LAW_FIXED, 0);
  reader->fetch_efficiency = kv_technique_value(use, "gather_efficiency");
  reader->index_bytes_per_token = ratio * x->n_kv_heads * x->head_dim * e;
  reader->index_flops_per_token = 2.0 * ratio * x->n_heads * x->head_dim;
  reader->extra_launches += 4.0; /* partial query, scores, count, top-k */
}

static void infinigen_work(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                           const KvCache *cache, const KvAttention *x) {
  double layers = cache->layers, ratio = kv_technique_value(use, "partial_weight_ratio");
  double width = (double)x->n_heads * x->head_dim;
  kv_plan_add_work(plan, (KvWork){.name = "choose columns",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .flops = layers * width,
                                  .launches = layers,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "partial queries",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .flops = layers * 2.0 * ratio * model->hidden * width,
                                  .launches = layers,
                                  .matrix = TRUE,
                                  .critical = TRUE});
}

static void infinigen_layers(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             guint index, gboolean first) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  infinigen_segments(use, model, x, plan->element_bytes, first, cache);
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache == index)
      infinigen_reader(use, x, cache, plan->element_bytes, first, reader);
  }
  if (!first)
    infinigen_work(use, model, plan, cache, x);
}

static gboolean infinigen_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  guint layers = cache->layers;
  /* FlexGen may have moved it to where it is to be. */
  if (cache->segments[0].tier == KV_TIER_DRAM)
    cache->segments[0].tier = KV_TIER_HBM;
  if (!kv_cache_undivided(use, cache, FALSE, error) || !kv_cache_claim_read(use, cache, error))
    return FALSE;
  gboolean has_first = TRUE;
  for (guint i = 0; i < index; i++)
    has_first &= kv_plan_attention(model, &g_array_index(plan->caches, KvCache, i))->kind !=
                 KV_ATTENTION_FULL;
  if (has_first && layers > 1)
    infinigen_layers(use, model, plan, kv_plan_split_layers(plan, index, layers - 1), FALSE);
  infinigen_layers(use, model, plan, index, has_first);
  return TRUE;
}

static gboolean infinigen_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                               GError **error) {
  if (!kv_plan_each_full_cache(use, model, plan, infinigen_cache, error))
    return FALSE;
  plan->prefill_peak_layers = 1.0; /* a layer's cache leaves while the next is computed */
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const KvParam infinigen_params[] = {
    {"partial_weight_ratio", KV_PARAM_REAL, 0.2, 0.1, 1, NULL, "fraction of the head size",
     "columns of queries and keys kept on the GPU to speculate with"},
    {"alpha", KV_PARAM_REAL, 4, 1, 1e6, NULL, "logits",
     "how far below the highest score a token still counts: 4 for OPT, about 5 for Llama-2, usually 1 "
     "to 9; quality only, what it fetches is fetch_share"},
    {"max_num_kv", KV_PARAM_REAL, 0.2, 0.001, 1, NULL, "fraction of the context",
     "cap of what a layer fetches"},
    {"fetch_share", KV_PARAM_REAL, 0.1, 0.001, 1, NULL, "fraction of the context",
     "expected share that a layer fetches, the mean of heads and sequences; depends on the text: about "
     "10 % or less in the paper (recalled)"},
    {"capacity", KV_PARAM_REAL, 1, 0.8, 1, NULL, "fraction of the context",
     "what the pool in host memory holds; above it the token chosen least often goes"},
    {"gather_efficiency", KV_PARAM_REAL, 0.3, 0.01, 1, NULL, "fraction",
     "of the link's rate when the CPU gathers rows of one head (256 bytes) first (estimate)"},
    {"overlap", KV_PARAM_FLAG, 0, 0, 1, NULL, "",
     "the first layer, which fetches everything, hides behind the step too; off in the authors' "
     "scripts. Speculated fetches always do"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula infinigen_formulas[] = {
    {"2*L*Hkv*d*e*n*capacity", "bytes in host memory"},
    {"(L-1)*(ratio*Hkv*d*e*n + 2*(2/L)*Hkv*d*e*n')",
     "bytes on the GPU: partial keys, and what two layers have fetched"},
    {"n' = min(fetch_share, max_num_kv)*n", "tokens that a layer fetches, the first one n"},
    {"2*Hkv*d*e*(n + (L-1)*n')", "bytes that a decode step fetches"},
    {"ratio*(L-1)*Hkv*d*e*n + 2*Hkv*d*e*(n + (L-1)*n')",
     "HBM bytes that a step reads; as many as are fetched are written"},
    {"(L-1)*(2*ratio*D*H*d + 2*ratio*H*d*n) + 4*H*d*(n + (L-1)*n')",
     "FLOPs of a step: partial queries, their scores, attention"},
    {NULL, NULL},
};

static const KvQualityPoint infinigen_quality[] = {
    {0},
};

static const char *const infinigen_sections[] = {
    "System-level Optimization > Hardware-aware Design > Heterogeneous Design", NULL};

const KvTechnique kv_technique_infinigen = {
    .id = "infinigen",
    .name = "InfiniGen",
    .title =
        "InfiniGen: Efficient Generative Inference of Large Language Models with Dynamic KV Cache "
        "Management",
    .paper = "arXiv:2406.19707",
    .code = "github.com/snu-comparch/InfiniGen",
    .year = 2024,
    .sections = infinigen_sections,
    .mechanism =
        "The cache lies in host memory, and a layer fetches only the tokens that it is going to need. "
        "Which ones they are is guessed one layer ahead: what goes into attention hardly changes from "
        "layer to layer, so the input of the layer before, with a few columns of the query weights and "
        "of the keys, gives nearly the right scores. The columns tell much because the weights have been "
        "rotated, once and without changing any product, to gather the energy of queries and keys in "
        "few of them.\n\n"
        "Tokens that score within alpha of the highest are counted head by head; the mean count, capped, "
        "is how many each head fetches. The CPU gathers them and sends them while the layer before "
        "computes. The first layer fetches everything. Nothing is dropped unless the pool is limited: "
        "then the token chosen least often goes.",
    .params = infinigen_params,
    .formulas = infinigen_formulas,
    .quality = infinigen_quality,
    .quality_note =
        "Approximate, and no figure is on record: the paper's was not seen. At about 10 % of the "
        "cache, 5-shot tasks are said to stay close to the full cache (recalled, unsure).",
    .composes =
        "Runs inside FlexGen (flexgen before it, for its batches and weights), with weight quantization and "
        "grouped heads, though released for ungrouped ones. Excludes other techniques that choose, "
        "move or quantize the cache, and latent attention; ends prefix sharing.",
    .pitfalls =
        "What is fetched depends on the text and differs by layer, the first ones most. The gathering of "
        "short rows is limited by the CPU, not the link. Partial keys stay on the GPU and become the "
        "limit at long contexts. The partial query weights (ratio*D^2 elements a layer) are counted neither "
        "in memory nor in traffic, and the access counters of a limited pool not at all.",
    .confidence =
        "high on mechanism and parameters: the code was read; the abstract's figure was seen, "
        "others are recalled; gathering is an estimate, and no quality figure is on record",
    .plan = infinigen_plan,
    .executed = TRUE, /* capacity=1, without flexgen */
};
