/* Survey: Token-level Optimization > KV Cache Merging > Intra-layer Merging. */
#include "models/techniques/build.h"

/* --- DMC --- */

typedef struct {
  double ratio;  /* tokens per slot, the mean over heads */
  double spread; /* half of the layers has 1 + spread times as many slots, half 1 - spread */
  double window;
  guint page_tokens;
} Dmc;

static gboolean dmc_accepts(const KvTechniqueUse *use, const KvModel *model, const KvPlan *plan,
                            guint i, GError **error) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  KvAttentionKind kind = kv_plan_attention(model, cache)->kind;
  if (kind != KV_ATTENTION_FULL)
    return kv_technique_refuse(use, error,
                               "%s has layers with %s attention, expected full attention",
                               model->id, kv_attention_kind_names[kind]);
  const KvSegment *segment = &cache->segments[0];
  if (segment->quantizer)
    return kv_technique_refuse(use, error,
                               "the last slot is merged into, but segment '%s' of the cache is "
                               "quantized by %s, expected an unquantized cache",
                               segment->name, segment->quantizer);
  if (cache->n_segments != 1 || segment->tokens.kind != KV_LAW_ALL || !kv_plan_reads_all(plan, i))
    return kv_technique_refuse(use, error,
                               "the cache '%s' is already divided or selected from, expected dmc "
                               "before that technique",
                               cache->name);
  return TRUE;
}

/* Slots in place of tokens, and per sequence what a head needs beside them: half a page that is not
 * filled, on average; weighted keys and values of a window, their sum and weights; a block table
 * and two lengths. */
static void dmc_cache(const Dmc *k, const KvModel *model, const KvAttention *x, double slots,
                      KvPlan *plan, guint i) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  double e = plan->element_bytes;
  double row = ((double)x->head_dim + x->value_head_dim) * e;
  double table = 4.0 * (double)((model->max_context_tokens + k->page_tokens - 1) / k->page_tokens);
  cache->segments[0].name = "slots";
  cache->segments[0].tokens.scale *= slots;
  cache->segments[0].page_tokens = k->page_tokens;
  cache->segments[1] = (KvSegment){
      .name = "running sums and tables",
      .role = KV_ROLE_SINK,
      .tokens = kv_law(KV_LAW_FIXED, 1),
      .metadata_bytes = x->n_kv_heads * ((k->window + 1.0) * (row + e) + table + 8.0),
      .tier = cache->segments[0].tier,
      .format = cache->segments[0].format,
  };
  cache->segments[2] = cache->segments[1];
  cache->segments[2].name = "unfilled pages";
  cache->segments[2].tokens = kv_law(KV_LAW_FIXED, (k->page_tokens - 1.0) / 2.0);
  cache->segments[2].metadata_bytes = x->n_kv_heads * row;
  cache->n_segments = 3;
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != i)
      continue;
    reader->read[0] = cache->segments[0].tokens;
    reader->read[1] = reader->read[2] = kv_law(KV_LAW_FIXED, 0); /* not attention's */
  }
}

static void dmc_work(const KvCache *cache, const KvAttention *x, KvPlan *plan) {
  double layers = cache->layers, width = (double)x->n_kv_heads * x->head_dim;
  KvWork work = {.name = "merge or append",
                 .moment = KV_MOMENT_DECODE_STEP,
                 .flops = layers * 10.0 * width,
                 .bytes = layers * 6.0 * width * plan->element_bytes,
                 .launches = layers,
                 .critical = TRUE};
  kv_plan_add_work(plan, work);
  work.name = "merge or append the prompt";
  work.moment = KV_MOMENT_PREFILL_TOKEN;
  kv_plan_add_work(plan, work);
  kv_plan_add_work(plan, (KvWork){.name = "scan the heads' lengths",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .bytes = layers * 8.0 * x->n_kv_heads,
                                  .launches = 1.0,
                                  .critical = TRUE});
}

static void dmc_class(const Dmc *k, const KvModel *model, double slots, KvPlan *plan, guint i) {
  const KvAttention *x = kv_plan_attention(model, &g_array_index(plan->caches, KvCache, i));
  dmc_cache(k, model, x, slots, plan, i);
  dmc_work(&g_array_index(plan->caches, KvCache, i), x, plan);
}

static gboolean dmc_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                         GError **error) {
  Dmc k = {.ratio = kv_technique_value(use, "CR"),
           .spread = kv_technique_value(use, "spread"),
           .window = kv_technique_value(use, "window"),
           .page_tokens = (guint)kv_technique_value(use, "page_size")};
  if ((1.0 + k.spread) / k.ratio > 1.0)
    return kv_technique_refuse(
        use, error,
        "spread is %g, expected at most %g: no layer can have more slots than "
        "tokens",
        k.spread, k.ratio - 1.0);
  guint n = plan->caches->len, merged = 0;
  for (guint i = 0; i < n; i++) {
    if (g_array_index(plan->caches, KvCache, i).n_segments == 0)
      continue;
    if (!dmc_accepts(use, model, plan, i, error))
      return FALSE;
    guint layers = g_array_index(plan->caches, KvCache, i).layers;
    merged += layers;
    if (k.spread == 0.0 || layers < 2) {
      dmc_class(&k, model, 1.0 / k.ratio, plan, i);
      continue;
    }
    guint upper = kv_plan_split_layers(plan, i, layers / 2);
    dmc_class(&k, model, (1.0 + k.spread) / k.ratio, plan, i);
    dmc_class(&k, model, (1.0 - k.spread) / k.ratio, plan, upper);
  }
  if (merged == 0)
    return kv_technique_refuse(use, error, "%s has no KV cache, expected full attention",
                               model->id);
  plan->shareable = FALSE; /* a slot holds tokens of both sides of any cut, each head its own */
  plan->unshareable_by = use->technique->id;
  return TRUE;
}

static const KvParam dmc_params[] = {
    {"CR", KV_PARAM_REAL, 4, 1, 16, NULL, "ratio",
     "tokens per slot, the mean over heads and layers; the authors trained 2, 3, 4, 6 and 8"},
    {"window", KV_PARAM_INTEGER, 12, 0, 4096, NULL, "tokens",
     "latest tokens of a slot whose weighted mean it is"},
    {"page_size", KV_PARAM_INTEGER, 256, 1, 4096, NULL, "slots",
     "page of one head's slots; 256 was the least that the kernel of the release took"},
    {"spread", KV_PARAM_REAL, 0, 0, 0.9, NULL, "fraction",
     "the lower half of the layers has so many more slots, the upper so many fewer; 0: all alike. "
     "Upper layers end up merged more, but how much more is not published"},
    {"init_val", KV_PARAM_REAL, 5, 0, 20, NULL, "logit",
     "bias from which training starts to decide; quality only"},
    {"temperature", KV_PARAM_REAL, 0.1, 0.01, 10, NULL, "",
     "of the relaxed decision in training; quality only"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula dmc_formulas[] = {
    {"2*L*Hkv*d*e*(n/CR + (p-1)/2)", "bytes of the slots, and of unfilled pages on average"},
    {"L*Hkv*((w+1)*(2*d+1)*e + 4*ceil(nmax/p) + 8)",
     "bytes a sequence of running sums, block tables and lengths"},
    {"2*L*Hkv*d*e*n/CR + 6*L*Hkv*d*e", "HBM bytes that a decode step reads, and updates"},
    {"4*L*H*d*n/CR + 10*L*Hkv*d", "FLOPs of a decode step's attention, and of the update"},
    {NULL, NULL},
};

static const KvQualityPoint dmc_quality[] = {
    {"Llama-2-7B", "MMLU", "DMC 2x", 44.6, 45.2, "Table 1, recalled", "CR", 2, NULL},
    {"Llama-2-7B", "MMLU", "DMC 4x", 44.6, 43.9, "Table 1, recalled", "CR", 4, NULL},
    {"Llama-2-7B", "commonsense QA avg", "DMC 4x", 70.5, 70.2, "Table 1, recalled", "CR", 4, NULL},
    {"Llama-2-7B", "MMLU", "GQA 4x uptrained, for contrast", 44.6, 34.7, "Table 1, recalled", NULL,
     0, NULL},
    {"Llama-2-13B", "MMLU", "DMC 4x", 54.5, 54.2, "Table 1, recalled", "CR", 4, NULL},
    {"Llama-2-70B", "MMLU", "DMC 2x on GQA 8x", 68.8, 68.8, "Table 1, recalled", "CR", 2, NULL},
    {0},
};

static const char *const dmc_sections[] = {
    "Token-level Optimization > KV Cache Merging > Intra-layer Merging", NULL};

const KvTechnique kv_technique_dmc = {
    .id = "dmc",
    .name = "DMC",
    .title = "Dynamic Memory Compression: Retrofitting LLMs for Accelerated Inference",
    .paper = "arXiv:2403.09636",
    .code = "github.com/NVIDIA/Megatron-LM/tree/dmc",
    .year = 2024,
    .sections = dmc_sections,
    .mechanism =
        "Every KV head decides for every token whether to append a slot or to merge the token into "
        "its last one. One dimension of the key says which, one of the query how much the token "
        "weighs; a slot is the weighted mean of the latest tokens merged into it. The model is "
        "trained a little further until the mean share of merged tokens reaches 1 - 1/CR. "
        "Attention then sees n/CR slots instead of n tokens, a different number in each head, so "
        "each head has its own pages.",
    .params = dmc_params,
    .formulas = dmc_formulas,
    .quality = dmc_quality,
    .composes =
        "Goes with grouped heads (the ratios multiply), paging and tensor parallelism by head. "
        "Refuses sliding windows, latent attention, and a cache that is "
        "quantized or divided already; a quantizer of closed slots that comes after it "
        "must accept slots. Ends prefix sharing.",
    .pitfalls =
        "Pages are of one head: with 256 slots a page and a few hundred slots a head, rounding "
        "cancels much of the saving. The gain is a larger batch; at small batches "
        "there is almost none. How many slots a sequence will need is known only as a mean. The "
        "prompt is attended to as densely as without it; the authors' sequential update of a "
        "prompt is not priced, and the pool is what memory is left, not a fixed 40 GiB.",
    .confidence =
        "high on the mechanism (kernel, paged cache and training code were read), medium on "
        "the figures: the quality table is recalled",
    .plan = dmc_plan,
};
