/* Survey: Token-level Optimization > KV Cache Selection > Static KV Cache Selection. */
#include "models/techniques/build.h"

/* --- SnapKV --- */

static gboolean snapkv_law(const KvTechniqueUse *use, KvLaw *law, double budget, GError **error) {
  double cut = law->kind == KV_LAW_PROMPT_CAPPED ? law->a : law->kept_prompt;
  if (cut > 0.0)
    return kv_technique_refuse(
        use, error, "the prompt's cache is already cut to %g tokens, expected one selection", cut);
  if (law->kind == KV_LAW_ALL) {
    law->kind = KV_LAW_PROMPT_CAPPED;
    law->a = budget;
  } else if (law->kind != KV_LAW_FIXED) {
    law->kept_prompt = budget;
  }
  return TRUE;
}

static gboolean snapkv_cache(const KvTechniqueUse *use, KvCache *cache, double budget,
                             double repeat, GError **error) {
  for (guint s = 0; s < cache->n_segments; s++) {
    KvSegment *segment = &cache->segments[s];
    if (!snapkv_law(use, &segment->tokens, budget, error))
      return FALSE;
    segment->key_bytes *= repeat;
    segment->value_bytes *= repeat;
    segment->metadata_bytes *= repeat;
  }
  return TRUE;
}

static gboolean snapkv_readers(const KvTechniqueUse *use, KvPlan *plan, guint cache, double budget,
                               gboolean per_query_head, guint n_heads, GError **error) {
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != cache)
      continue;
    guint n = g_array_index(plan->caches, KvCache, cache).n_segments;
    for (guint s = 0; s < n; s++)
      if (!snapkv_law(use, &reader->read[s], budget, error))
        return FALSE;
    if (per_query_head) {
      reader->n_kv_heads = n_heads;
      reader->read_bytes_scale = 1.0; /* every query head now has its own */
    }
  }
  return TRUE;
}

static void snapkv_work(const KvTechniqueUse *use, KvPlan *plan, const KvCache *cache,
                        const KvAttention *x, gboolean released) {
  double layers = cache->layers, heads = x->n_heads, w = kv_technique_value(use, "window_size");
  double kernel = kv_technique_value(use, "kernel_size"), e = plan->element_bytes;
  double budget = kv_technique_value(use, "budget");
  double stored_heads = released ? heads : x->n_kv_heads;
  /* Window queries times all keys, a softmax over them, pooling, and a comparison each for the
   * top-k. */
  double flops = heads * (2.0 * w * x->head_dim + w + kernel + 1.0);
  /* Keys are read once, and a vote (fp32) per head is written and read. The released code also
   * stores the weights in fp32. */
  double bytes = stored_heads * x->head_dim * e + heads * 8.0;
  if (released)
    bytes += heads * w * 8.0;
  kv_plan_add_work(plan, (KvWork){.name = "vote on the prompt",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * flops,
                                  .bytes_per_token = layers * bytes,
                                  .launches = layers * (released ? 5.0 : 3.0),
                                  .over_tokens = budget,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "gather the kept tokens",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .bytes = layers * 2.0 * budget * stored_heads * e *
                                           ((double)x->head_dim + x->value_head_dim),
                                  .launches = layers * 2.0,
                                  .over_tokens = budget,
                                  .critical = TRUE});
}

static gboolean snapkv_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                            GError **error) {
  double budget = kv_technique_value(use, "budget"), w = kv_technique_value(use, "window_size");
  gboolean released = kv_technique_value(use, "impl") == 1.0;
  if ((guint)kv_technique_value(use, "kernel_size") % 2 == 0)
    return kv_technique_refuse(use, error, "kernel_size is %g, expected an odd number",
                               kv_technique_value(use, "kernel_size"));
  if (w >= budget)
    return kv_technique_refuse(
        use, error, "window_size is %g, expected less than the budget of %g tokens", w, budget);
  guint cut = 0;
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (x->kind == KV_ATTENTION_LATENT)
      return kv_technique_refuse(use, error,
                                 "tokens are kept head by head, but the latent cache of %s is one "
                                 "for all heads, expected full attention",
                                 model->id);
    if (x->kind != KV_ATTENTION_FULL)
      continue; /* a window or a state is bounded already */
    double repeat = released ? (double)x->n_heads / x->n_kv_heads : 1.0;
    if (!snapkv_cache(use, cache, budget, repeat, error) ||
        !snapkv_readers(use, plan, i, budget, released, x->n_heads, error))
      return FALSE;
    snapkv_work(use, plan, cache, x, released);
    cut++;
  }
  if (cut == 0)
    return kv_technique_refuse(use, error, "%s has no layer with full attention to select from",
                               model->id);
  plan->prefill_peak_layers = 1.0; /* a layer is cut before the next one begins */
  plan->shareable = FALSE;
  plan->unshareable_by = use->technique->id;
  return TRUE;
}

static const char *const poolings[] = {"avgpool", "maxpool", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam snapkv_params[] = {
    {"budget", KV_PARAM_INTEGER, 2048, 64, 131072, NULL, "tokens",
     "max_capacity_prompt: prompt tokens kept per head, window included; the paper uses 256 to 4096"},
    {"window_size", KV_PARAM_INTEGER, 32, 8, 64, NULL, "tokens",
     "observation window at the end of the prompt, whose queries vote"},
    {"kernel_size", KV_PARAM_INTEGER, 5, 3, 13, NULL, "tokens",
     "pooling of the votes, odd; the LongBench runs use 7 with maxpool"},
    {"pooling", KV_PARAM_CHOICE, 0, 0, 1, poolings, "", "pooling operator; quality only"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: tokens kept per KV head; released: the authors' code, which repeats keys and values to "
     "the query heads first and stores them so"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula snapkv_formulas[] = {
    {"2*L*Hs*d*e*(min(p,B)+g), Hs = Hkv (ideal) or H (released)",
     "bytes of the cache after a prompt of p and g generated tokens"},
    {"2*L*Hs*d*e*(B+i)", "HBM bytes that decode step i reads"},
    {"4*L*H*d*(B+i)", "FLOPs of the attention of decode step i"},
    {"2*L*H*w*p*d + L*H*(w*p + p*kernel + p)",
     "operations to choose the tokens, once the prompt is done"},
    {NULL, NULL},
};

static const KvQualityPoint snapkv_quality[] = {
    {"Mistral-7B-Instruct-v0.2", "LongBench 16-task avg", "B=1024, w=32, k=7 maxpool", 42.56, 41.45,
     "README table (averaged here), seen", "budget", 1024, NULL},
    {"Mistral-7B-Instruct-v0.2", "LongBench 16-task avg", "B=2048", 42.56, 41.99,
     "README table (averaged here), seen", "budget", 2048, NULL},
    {"Mistral-7B-Instruct-v0.2", "LongBench 16-task avg", "B=4096", 42.56, 42.38,
     "README table (averaged here), seen", "budget", 4096, NULL},
    {"Llama-3-8B-Instruct", "LongBench avg", "KV 128", 41.46, 35.5, "PyramidKV Table 1 image, seen",
     "budget", 128, NULL},
    {"Llama-3-8B-Instruct", "LongBench avg", "KV 2048", 41.46, 41.35,
     "PyramidKV Table 1 image, seen", "budget", 2048, NULL},
    {"Llama-3.1-8B-Instruct", "RULER-4K avg, question hidden at compression time", "20% cache",
     95.5, 39.0, "DefensiveKV README (10% sample), seen; baseline approximate", NULL, 0, NULL},
    {"Llama-3-8B-Instruct-262k", "RULER avg over 4K..128K",
     "B about 2K, as run by the RetrievalAttention authors", 86.54, 73.78,
     "RetrievalAttention paper tables, seen", "budget", 2048, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench avg", "as run by the RetrievalAttention authors",
     50.4, 48.2, "RetrievalAttention paper tables, seen", NULL, 0, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench Retrieve.KV",
     "as run by the RetrievalAttention authors", 17.5, 0.5, "RetrievalAttention paper tables, seen",
     NULL, 0, NULL},
    {0},
};

static const char *const snapkv_sections[] = {
    "Token-level Optimization > KV Cache Selection > Static KV Cache Selection", NULL};

const KvTechnique kv_technique_snapkv = {
    .id = "snapkv",
    .name = "SnapKV",
    .title = "SnapKV: LLM Knows What You are Looking for Before Generation",
    .paper = "arXiv:2404.14469",
    .code = "github.com/FasterDecoding/SnapKV",
    .year = 2024,
    .sections = snapkv_sections,
    .mechanism =
        "The cache of the prompt is cut once, layer by layer and head by head, when its prefill "
        "ends. The queries of the last w tokens vote: their attention weights on all earlier "
        "keys are summed, and pooled so that neighbourhoods survive together. The B-w positions with "
        "most votes and the window itself are kept. A prompt of at most B tokens is left alone. "
        "Generated tokens are appended as usual and nothing is evicted any more.",
    .params = snapkv_params,
    .formulas = snapkv_formulas,
    .quality = snapkv_quality,
    .composes = "Goes with grouped heads, quantizers (kivi), paging, tensor parallelism and fused "
                "attention: the votes are a separate small product. Ends prefix sharing, because "
                "what is kept depends on the end of the prompt. Excludes a second selection "
                "of the prompt, and latent attention.",
    .pitfalls =
        "Long generations are not helped: the cache grows by a full token a step. The "
        "released code stores keys and values per query head, H/Hkv times more. "
        "Prefill compute does not fall, so the time to the first token rises slightly. Quality "
        "depends on the question being inside the window.",
    .confidence =
        "high: the algorithm's code and result table were read; the abstract's figures are "
        "recalled",
    .plan = snapkv_plan,
};
