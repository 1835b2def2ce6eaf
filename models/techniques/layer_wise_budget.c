/* Survey: Token-level Optimization > KV Cache Budget Allocation > Layer-wise Budget Allocation. */
#include <math.h>

#include "models/techniques/build.h"

/* --- PyramidKV --- */

/* Tokens that layer `l` of `n_layers` selects beside its window, b the mean: from (2 - 1/beta) * b
 * down to b / beta in equal steps. The released code divides whole numbers. */
static double pyramid_tokens(const KvTechniqueUse *use, guint l, guint n_layers) {
  double b = kv_technique_value(use, "budget") - kv_technique_value(use, "window_size");
  double least = b / kv_technique_value(use, "beta");
  if (n_layers < 2)
    return b;
  gboolean whole = kv_technique_value(use, "impl") == 1.0;
  if (whole)
    least = floor(least);
  double most = 2.0 * b - least, step = (most - least) / (n_layers - 1.0);
  return most - l * (whole ? floor(step) : step);
}

/* A layer's laws: so many tokens of the prompt, window included, and the mean of prompts below 2 b,
 * for which there is no pyramid. */
static gboolean pyramid_layer(const KvTechniqueUse *use, KvPlan *plan, guint index, double tokens,
                              GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  double window = kv_technique_value(use, "window_size"),
         budget = kv_technique_value(use, "budget");
  double short_prompt = 2.0 * (budget - window), kept = tokens + window;
  for (guint s = 0; s < cache->n_segments; s++)
    if (!kv_law_keep_prompt(use, &cache->segments[s].tokens, kept, short_prompt, budget, error))
      return FALSE;
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    for (guint s = 0; reader->cache == index && s < cache->n_segments; s++)
      if (!kv_law_keep_prompt(use, &reader->read[s], kept, short_prompt, budget, error))
        return FALSE;
  }
  return TRUE;
}

static gboolean pyramid_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                              guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  gboolean released = kv_technique_value(use, "impl") == 1.0;
  if (!kv_cache_claim_kept(use, cache, error))
    return FALSE;
  if (released)
    kv_plan_repeat_heads(plan, index, x);
  kv_plan_vote_on_prompt(plan, cache, x, kv_technique_value(use, "budget"),
                         kv_technique_value(use, "window_size"),
                         kv_technique_value(use, "kernel_size"), released);
  return TRUE;
}

/* Give each layer that pyramid_cache() has seen a cache of its own. */
static gboolean pyramid_layers(const KvTechniqueUse *use, KvPlan *plan, GError **error) {
  guint n = plan->caches->len, n_layers = 0, first = 0;
  for (guint i = 0; i < n; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    n_layers += cache->kept_by == use->technique->id ? cache->layers : 0;
  }
  for (guint i = 0; i < n; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    guint layers = cache->layers;
    if (cache->kept_by != use->technique->id)
      continue;
    for (guint l = layers; l-- > 0;) {
      guint own = l > 0 ? kv_plan_split_layers(plan, i, 1) : i;
      if (!pyramid_layer(use, plan, own, pyramid_tokens(use, first + l, n_layers), error))
        return FALSE;
    }
    first += layers;
  }
  return TRUE;
}

static gboolean pyramid_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             GError **error) {
  double budget = kv_technique_value(use, "budget"),
         window = kv_technique_value(use, "window_size");
  if ((guint)kv_technique_value(use, "kernel_size") % 2 == 0)
    return kv_technique_refuse(use, error, "kernel_size is %g, expected an odd number",
                               kv_technique_value(use, "kernel_size"));
  if (window >= budget)
    return kv_technique_refuse(use, error,
                               "window_size is %g, expected less than the budget of %g tokens",
                               window, budget);
  if (!kv_plan_each_full_cache(use, model, plan, pyramid_cache, error) ||
      !pyramid_layers(use, plan, error))
    return FALSE;
  plan->prefill_peak_layers = 1.0; /* a layer is cut before the next one begins */
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const char *const poolings[] = {"avgpool", "maxpool", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam pyramid_params[] = {
    {"budget", KV_PARAM_INTEGER, 2048, 64, 131072, NULL, "tokens",
     "max_capacity_prompt: prompt tokens kept per head, window included, as the mean of the layers; "
     "published at 64 to 2048"},
    {"window_size", KV_PARAM_INTEGER, 8, 8, 64, NULL, "tokens",
     "observation window at the end of the prompt (8 in the paper, recalled; the class's own 64)"},
    {"beta", KV_PARAM_REAL, 20, 1, 100, NULL, "",
     "steepness: the last layer selects 1/beta of the mean; 1 is flat, the paper uses 5 to 30"},
    {"kernel_size", KV_PARAM_INTEGER, 7, 3, 13, NULL, "tokens",
     "pooling of the votes, odd; the scripts use 7, the class's own is 5"},
    {"pooling", KV_PARAM_CHOICE, 1, 0, 1, poolings, "", "pooling operator; quality only"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: tokens kept per KV head, exact steps; released: per query head, steps of whole tokens"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula pyramid_formulas[] = {
    {"b = B-w, B_l = (2-1/beta)*b - l*2*(1-1/beta)*b/(L-1)",
     "tokens that layer l = 0..L-1 selects; all layers together L*b"},
    {"2*Hs*d*e*sum_l(min(p,B_l+w)+g), Hs = Hkv (ideal) or H (released)",
     "bytes of the cache after a prompt of p >= 2*b; min(p,B) a layer after a shorter one"},
    {"2*L*Hs*d*e*(B+i)", "HBM bytes that decode step i reads"},
    {"4*L*H*d*(B+i)", "FLOPs of the attention of decode step i"},
    {"2*L*H*w*p*d + L*H*(w*p + p*kernel + p)",
     "operations to choose the tokens, once the prompt is done"},
    {NULL, NULL},
};

static const KvQualityPoint pyramid_quality[] = {
    {"Llama-3-8B-Instruct", "LongBench avg", "KV 128", 41.46, 37.25, "Table 1 image, seen",
     "budget", 128, NULL},
    {"Llama-3-8B-Instruct", "LongBench avg", "KV 2048", 41.46, 41.49, "Table 1 image, seen",
     "budget", 2048, NULL},
    {"Mistral-7B-Instruct", "LongBench avg", "KV 128", 39.75, 35.72, "Table 1 image, seen",
     "budget", 128, NULL},
    {"Mistral-7B-Instruct", "LongBench avg", "KV 2048", 39.75, 41.63, "Table 1 image, seen",
     "budget", 2048, NULL},
    {"Llama-3-8B-Instruct", "6 QA tasks avg (HeadKV authors' run)", "KV 128", 32.9, 26.20,
     "HeadKV table image, seen", "budget", 128, NULL},
    {"Llama-3-8B-Instruct", "6 QA tasks avg (HeadKV authors' run)", "KV 1024", 32.9, 31.49,
     "HeadKV table image, seen", "budget", 1024, NULL},
    {"Llama-3-8B-Instruct", "LongBench avg (DynamicKV authors' run)", "KV 512", 41.95, 40.18,
     "DynamicKV README, seen", "budget", 512, NULL},
    {0},
};

static const char *const pyramid_sections[] = {
    "Token-level Optimization > KV Cache Budget Allocation > Layer-wise Budget Allocation", NULL};

const KvTechnique kv_technique_pyramidkv = {
    .id = "pyramidkv",
    .name = "PyramidKV",
    .title = "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    .paper = "arXiv:2406.02069",
    .code = "github.com/Zefan-Cai/KVCache-Factory",
    .year = 2024,
    .sections = pyramid_sections,
    .mechanism =
        "Chooses as SnapKV does, once, by the votes of the prompt's last w queries, but how many "
        "tokens a layer may keep falls in equal steps from the first layer to the last: early layers "
        "spread their attention, late ones gather it on few tokens. The mean over the layers is the "
        "budget B, window included; the first layer selects (2-1/beta) times the mean b = B-w and the "
        "last one b/beta.\n\n"
        "Prompts of fewer than 2 b tokens get the flat budget B in every layer, and those of at most B "
        "are left alone. Generated tokens are appended in all layers.",
    .params = pyramid_params,
    .formulas = pyramid_formulas,
    .quality = pyramid_quality,
    .composes =
        "As snapkv: grouped heads, quantizers, paging, fused attention. Ends prefix sharing; "
        "excludes a second selection and latent attention. Pipeline stages would hold unequal "
        "shares: the early ones more.",
    .pitfalls =
        "All layers together hold what SnapKV holds, so a model of bytes shows no gain in speed over "
        "it. Others' runs find it level with or below SnapKV at budgets of 512 to 2048. The released "
        "steps are whole numbers, so the total is a little over L*b, and its heads are query heads. "
        "For prompts between 2 b and (2-1/beta) b + w tokens, a band that exists only where w > "
        "b/beta, the authors clip the first layers and raise the last; here the first are clipped only.",
    .confidence =
        "high: the allocation's code and the result table were read; the abstract's figures "
        "and the paper's window are recalled",
    .executed = TRUE, /* impl=ideal */
    .plan = pyramid_plan,
};
