/* Survey: Token-level Optimization > KV Cache Low-rank Decomposition > Learned Low-rank
 * Approximation. */
#include <math.h>

#include "models/techniques/build.h"

/* --- LESS --- */

enum { LESS_SINKS = 4 }; /* tokens at the start that a Lambda-shaped mask keeps */

typedef struct {
  double rank, hidden, budget_tokens;
  gboolean lambda; /* start and window, instead of heavy hitters */
  gboolean released;
} Less;

static Less less_of(const KvTechniqueUse *use, const KvModel *model) {
  double share = kv_technique_value(use, "budget");
  return (Less){.rank = kv_technique_value(use, "r"),
                .hidden = kv_technique_value(use, "hidden"),
                .budget_tokens = round(share * model->max_context_tokens),
                .lambda = kv_technique_value(use, "policy") == 1.0,
                .released = kv_technique_value(use, "impl") == 1.0};
}

/* Products of one feature map: d to hidden to r. */
static double less_map(const Less *k, const KvAttention *x) {
  return x->head_dim * k->hidden + k->hidden * k->rank;
}

/* Each head has two feature maps, of queries and of keys, and a small interaction. */
static gboolean less_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  Less k = less_of(use, model);
  guint changed = 0;
  for (guint g = 0; g < model->n_groups; g++) {
    KvAttention *x = &model->groups[g].attention;
    if (x->kind != KV_ATTENTION_FULL)
      continue;
    x->mixer_parameters +=
        (guint64)(x->n_heads * (2.0 * less_map(&k, x) + k.rank * k.rank + 2.0 * k.rank));
    changed++;
  }
  return changed > 0 ||
         kv_technique_refuse(use, error, "%s has no layer with full attention, expected one",
                             model->id);
}

static gboolean less_accepts(const KvTechniqueUse *use, const KvPlan *plan, guint i,
                             GError **error) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  if (cache->n_segments == 1 && cache->segments[0].tokens.kind == KV_LAW_ALL &&
      cache->segments[0].tokens.scale == 1.0 && kv_plan_reads_all(plan, i))
    return TRUE;
  return kv_technique_refuse(use, error,
                             "the cache '%s' is already divided or selected from, expected less "
                             "before that technique",
                             cache->name);
}

static void less_cache(const Less *k, const KvAttention *x, KvPlan *plan, guint i) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  cache->name = "kept tokens and state";
  /* A head's state sums psi(k) v and psi(k), in fp32. */
  cache->state_bytes += x->n_kv_heads * k->rank * (x->value_head_dim + 1.0) * 4.0;
  cache->segments[0].name = "kept tokens";
  if (k->lambda) {
    cache->n_segments = 2;
    cache->segments[1] = cache->segments[0];
    cache->segments[0].name = "first tokens";
    cache->segments[0].role = KV_ROLE_SINK;
    cache->segments[0].tokens = kv_law(KV_LAW_FIRST, LESS_SINKS);
    cache->segments[1].name = "latest tokens";
    cache->segments[1].role = KV_ROLE_RECENT;
    cache->segments[1].tokens = kv_law(KV_LAW_BEYOND, LESS_SINKS);
    cache->segments[1].tokens.cap = k->budget_tokens - LESS_SINKS;
  } else {
    cache->segments[0].tokens = kv_law(KV_LAW_EVICTED, k->budget_tokens);
    cache->segments[0].metadata_bytes += 4.0 * x->n_heads; /* attention summed so far */
  }
  kv_plan_read_all(plan, i);
}

static void less_work(const Less *k, const KvCache *cache, const KvAttention *x, KvPlan *plan) {
  double layers = cache->layers, heads = x->n_heads;
  double state = k->rank * x->value_head_dim;
  kv_plan_add_work(plan, (KvWork){.name = "fold the evicted token, read the state",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .flops = layers * 4.0 * heads * state,
                                  .launches = layers * 3.0,
                                  .over_tokens = k->budget_tokens,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "fold the prompt's evicted tokens",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * 2.0 * heads * state,
                                  .bytes_per_token = layers * x->n_kv_heads * plan->element_bytes *
                                                     ((double)x->head_dim + x->value_head_dim),
                                  .launches = layers,
                                  .over_tokens = k->budget_tokens,
                                  .matrix = TRUE,
                                  .critical = TRUE});
  if (k->released)
    kv_plan_add_work(plan, (KvWork){.name = "map all keys again",
                                    .moment = KV_MOMENT_DECODE_STEP,
                                    .flops_per_token = layers * 2.0 * heads * less_map(k, x),
                                    .launches = layers * 3.0,
                                    .over_tokens = k->budget_tokens,
                                    .matrix = TRUE,
                                    .critical = TRUE});
}

static gboolean less_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                          GError **error) {
  Less k = less_of(use, model);
  if (k.budget_tokens <= LESS_SINKS)
    return kv_technique_refuse(
        use, error, "budget is %g of %u tokens of context, expected more than %d tokens",
        kv_technique_value(use, "budget"), model->max_context_tokens, LESS_SINKS);
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (cache->n_segments == 0 || x->kind != KV_ATTENTION_FULL)
      continue; /* a window or a state is bounded already */
    if (!less_accepts(use, plan, i, error))
      return FALSE;
    less_cache(&k, x, plan, i);
    less_work(&k, cache, x, plan);
    if (!k.lambda)
      kv_plan_need_scores(plan, cache, x, k.released, 4.0, 4.0);
    for (guint r = 0; r < plan->readers->len; r++) {
      KvReader *reader = &g_array_index(plan->readers, KvReader, r);
      if (reader->cache == i && !k.lambda)
        reader->extra_bytes_per_token += 8.0 * x->n_heads; /* summed attention, read and written */
    }
  }
  plan->prefill_peak_layers = MIN(plan->prefill_peak_layers, 1.0);
  plan->shareable = FALSE;
  plan->unshareable_by = use->technique->id;
  return TRUE;
}

static const char *const less_policies[] = {"h2o", "lambda", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam less_params[] = {
    {"r", KV_PARAM_INTEGER, 8, 1, 256, NULL, "features", "width of a head's constant state"},
    {"hidden", KV_PARAM_INTEGER, 512, 1, 16384, NULL, "elements",
     "width of the feature maps' hidden layer"},
    {"budget", KV_PARAM_REAL, 0.05, 0.001, 1, NULL, "of the longest context",
     "tokens kept exact; the authors take 2 to 10 %"},
    {"policy", KV_PARAM_CHOICE, 0, 0, 1, less_policies, "",
     "which tokens stay exact: h2o keeps those most attended to and the latest, lambda the first 4 "
     "and the latest"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: one evicted key a step goes through the feature map; released: the authors' code, which "
     "maps all keys again and stores attention scores"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula less_formulas[] = {
    {"2*L*Hkv*d*e*B + L*Hkv*r*(d+1)*4", "bytes of the cache: kept tokens, and state in fp32"},
    {"4*B*L*H", "bytes of summed attention (h2o)"},
    {"2*L*Hkv*d*e*B + 2*L*Hkv*r*(d+1)*4", "HBM bytes that a decode step reads and writes"},
    {"4*L*H*d*B + 4*L*H*r*d", "FLOPs of a decode step's attention, and of the state"},
    {"2*L*H*(2*(d*hidden + hidden*r) + r^2 + 2*r)", "FLOPs of the feature maps, per token"},
    {"L*H*(2*(d*hidden + hidden*r) + r^2 + 2*r)", "parameters that the feature maps add"},
    {NULL, NULL},
};

static const KvQualityPoint less_quality[] = {
    {"Llama-2-7B", "WikiText ppl", "2% H2O alone", 8.791, 13.333, "third-party note, seen", NULL, 0,
     NULL},
    {"Llama-2-7B", "WikiText ppl", "2% H2O + LESS", 8.791, 10.745, "third-party note, seen",
     "budget", 0.02, NULL},
    {"Llama-2-7B", "PG-19 ppl", "2% H2O + LESS; the baseline is H2O alone, not the full cache",
     37.013, 32.157, "third-party note, seen", NULL, 0, NULL},
    {"Falcon-7B", "CNN/DailyMail ROUGE-1, share of H2O's loss recovered (%)", "10% H2O + LESS", 0,
     41.4, "abstract-level claim via note, seen", NULL, 0, NULL},
    {0},
};

static const char *const less_sections[] = {
    "Token-level Optimization > KV Cache Low-rank Decomposition > Learned Low-rank Approximation",
    NULL};

const KvTechnique kv_technique_less = {
    .id = "less",
    .name = "LESS",
    .title =
        "Get More with LESS: Synthesizing Recurrence with KV Cache Compression for Efficient LLM "
        "Inference",
    .paper = "arXiv:2402.09398",
    .code = "github.com/hdong920/LESS",
    .year = 2024,
    .sections = less_sections,
    .mechanism =
        "An eviction policy keeps B tokens exact. A token that it drops is not lost but folded "
        "into a small state of each head: learned maps turn keys and queries into r positive "
        "features, and the state sums features times values, as linear attention does. A step "
        "attends to the kept tokens and reads the state with the query's features, both under one "
        "normalisation. The maps are trained layer by layer while the model stays as it is.",
    .params = less_params,
    .formulas = less_formulas,
    .quality = less_quality,
    .composes = "It brings its own eviction policy, so it refuses a cache that another technique "
                "divided or selected from, and quantizers that need one growing segment refuse "
                "it. Goes with grouped heads (a state per KV head) and serving systems. Ends "
                "prefix sharing. Only layers with full attention are changed.",
    .pitfalls =
        "It is slower than its eviction policy alone and should be compared with the full "
        "cache. The state is tiny, but the feature maps weigh 2 % of Llama-2-7B and are read "
        "each step; prompts go through both maps wholly, slightly more than the evicted tokens. "
        "The released code is for batch 1.",
    .confidence = "high on the mechanism (attention and training code were read), medium on the "
                  "figures, which are from a third-party note",
    .arch = less_arch,
    .plan = less_plan,
};
