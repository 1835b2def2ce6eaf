/* Survey: Token-level Optimization > KV Cache Selection > Static KV Cache Selection. */
#include <math.h>

#include "models/techniques/build.h"

/* --- SnapKV --- */

static gboolean snapkv_laws(const KvTechniqueUse *use, KvPlan *plan, guint index, double budget,
                            GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  if (!kv_cache_claim_kept(use, cache, error))
    return FALSE;
  for (guint s = 0; s < cache->n_segments; s++)
    if (!kv_law_keep_prompt(use, &cache->segments[s].tokens, budget, 0.0, 0.0, error))
      return FALSE;
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    for (guint s = 0; reader->cache == index && s < cache->n_segments; s++)
      if (!kv_law_keep_prompt(use, &reader->read[s], budget, 0.0, 0.0, error))
        return FALSE;
  }
  return TRUE;
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
    if (!snapkv_laws(use, plan, i, budget, error))
      return FALSE;
    if (released)
      kv_plan_repeat_heads(plan, i, x);
    kv_plan_vote_on_prompt(plan, cache, x, budget, w, kv_technique_value(use, "kernel_size"),
                           released);
    cut++;
  }
  if (cut == 0)
    return kv_technique_refuse(
        use, error, "%s has no layer with full attention to select from, expected one", model->id);
  plan->prefill_peak_layers = 1.0; /* a layer is cut before the next one begins */
  kv_plan_end_sharing(use, plan);
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

/* --- FastGen --- */

/* Table 1: the share of the cache that is dropped, by the recovery ratio T, at 512 tokens, for the
 * models of these depths (7B, 13B, 30B, 65B). */
enum { FASTGEN_TABLE_TOKENS = 512, FASTGEN_POINTS = 3 };
static const struct {
  guint layers;
  double recovery[FASTGEN_POINTS], dropped[FASTGEN_POINTS];
} fastgen_table[] = {
    {32, {0.91, 0.95, 0.98}, {0.566, 0.398, 0.169}},
    {40, {0.91, 0.95, 0.98}, {0.534, 0.390, 0.183}},
    {60, {0.93, 0.95, 0.98}, {0.567, 0.488, 0.274}},
    {80, {0.93, 0.95, 0.98}, {0.563, 0.449, 0.360}},
};

/* The nested policies' tokens, and which share of the heads goes as far as each (or further). */
typedef struct {
  double special;                            /* tokens */
  double punctuation, frequent, local, rest; /* shares of the context; they add up to 1 */
  double reach_punctuation, reach_frequent, reach_local, reach_full; /* shares of the heads */
  double kept;   /* expected share of the context, special tokens apart */
  double scored; /* of the kept tokens, those whose head accumulates scores */
} Mix;

/* Dropped at recovery T by the table's model of the nearest depth, between two of its points. */
static gboolean fastgen_dropped(const KvTechniqueUse *use, guint layers, double *dropped,
                                GError **error) {
  guint nearest = 0;
  double t = kv_technique_value(use, "T");
  for (guint i = 1; i < G_N_ELEMENTS(fastgen_table); i++)
    if (ABS((int)fastgen_table[i].layers - (int)layers) <
        ABS((int)fastgen_table[nearest].layers - (int)layers))
      nearest = i;
  const double *at = fastgen_table[nearest].recovery, *value = fastgen_table[nearest].dropped;
  if (t < at[0])
    return kv_technique_refuse(
        use, error, "T is %g, but a model of %u layers was measured from %g on, expected %g to %g",
        t, layers, at[0], at[0], at[FASTGEN_POINTS - 1]);
  guint i = t <= at[1] ? 0 : 1;
  *dropped = value[i] + (value[i + 1] - value[i]) * (t - at[i]) / (at[i + 1] - at[i]);
  return TRUE;
}

/* The share of heads on each policy is not published, only what all drop together: heads that
 * compress are taken to spread evenly over the four policies, and the others keep everything. */
static gboolean fastgen_mix(const KvTechniqueUse *use, guint layers, Mix *mix, GError **error) {
  *mix = (Mix){.special = kv_technique_value(use, "special_tokens"),
               .punctuation = kv_technique_value(use, "punctuation"),
               .frequent = kv_technique_value(use, "r_f"),
               .local = kv_technique_value(use, "r_l")};
  double sum = mix->punctuation + mix->frequent + mix->local;
  mix->rest = 1.0 - sum;
  if (sum >= 1.0)
    return kv_technique_refuse(
        use, error,
        "r_l, r_f and punctuation add up to %g of the context, expected less "
        "than all of it",
        sum);
  double full = kv_technique_value(use, "full_share"), dropped;
  if (full < 0.0) {
    if (!fastgen_dropped(use, layers, &dropped, error))
      return FALSE;
    double compressed = mix->special / FASTGEN_TABLE_TOKENS +
                        (3.0 * mix->punctuation + 2.0 * mix->frequent + mix->local) / 4.0;
    full = (1.0 - dropped - compressed) / (1.0 - compressed);
    if (full < 0.0)
      return kv_technique_refuse(use, error,
                                 "r_l and r_f keep %.3g of the context on average without any full "
                                 "head, but at this T only %.3g is kept, expected smaller ones",
                                 compressed, 1.0 - dropped);
  }
  double each = (1.0 - full) / 4.0;
  mix->reach_punctuation = full + 3.0 * each;
  mix->reach_frequent = full + 2.0 * each;
  mix->reach_local = full + each;
  mix->reach_full = full;
  mix->kept = mix->punctuation * mix->reach_punctuation + mix->frequent * mix->reach_frequent +
              mix->local * mix->reach_local + mix->rest * mix->reach_full;
  mix->scored =
      each * (2.0 * (mix->punctuation + mix->frequent) + mix->local) / fmax(mix->kept, 1e-9);
  return TRUE;
}

/* Accumulated scores are fp32. */
#define FASTGEN_SCORE_BYTES 4.0

static KvSegment fastgen_part(const KvSegment *whole, const char *name, KvRole role, KvLaw law,
                              double share) {
  KvSegment x = *whole;
  x.name = name;
  x.role = role;
  x.tokens = law;
  x.tokens.scale = share * whole->tokens.scale;
  return x;
}

/* Tokens of a segment are means over the heads, so that bytes and FLOPs both follow them. */
static void fastgen_segments(const KvTechniqueUse *use, const Mix *mix, double score_bytes,
                             KvCache *cache) {
  const KvSegment whole = cache->segments[0];
  double page = kv_technique_value(use, "page_tokens");
  double rounding = page > 0.0 ? (page - 1.0) / 2.0 : 0.0;
  KvLaw all = kv_law(KV_LAW_ALL, 0), fixed = kv_law(KV_LAW_FIXED, mix->special + rounding);
  const KvSegment parts[] = {
      fastgen_part(&whole, "special tokens, half a page", KV_ROLE_SINK, fixed, 1.0),
      fastgen_part(&whole, "punctuation", KV_ROLE_MIDDLE, all,
                   mix->punctuation * mix->reach_punctuation),
      fastgen_part(&whole, "frequent tokens", KV_ROLE_MIDDLE, all,
                   mix->frequent * mix->reach_frequent),
      fastgen_part(&whole, "local window", KV_ROLE_RECENT, all, mix->local * mix->reach_local),
      fastgen_part(&whole, "rest, full heads", KV_ROLE_MIDDLE,
                   kv_law(KV_LAW_BEYOND, mix->special / mix->rest), mix->rest * mix->reach_full),
      /* The whole prompt is there until its heads have been profiled. */
      fastgen_part(&whole, "not yet dropped", KV_ROLE_MIDDLE, kv_law(KV_LAW_EVICTED, 0),
                   1.0 - mix->kept),
  };
  cache->n_segments = G_N_ELEMENTS(parts);
  for (guint s = 0; s < cache->n_segments; s++) {
    cache->segments[s] = parts[s];
    if (s > 0 && s + 1 < cache->n_segments)
      cache->segments[s].metadata_bytes += score_bytes * mix->scored;
  }
}

static void fastgen_work(KvPlan *plan, const KvCache *cache, const KvAttention *x, const Mix *mix,
                         gboolean released) {
  double layers = cache->layers, heads = x->n_heads, e = plan->element_bytes;
  double width = (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
  kv_plan_need_scores(plan, cache, x, released, 2.0, 8.0); /* softmax and four masks, square */
  /* Sums under four masks, column sums and a top-k: six operations per element of the triangle. */
  kv_plan_add_work(plan, (KvWork){.name = "profile the heads",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .flops_per_token = layers * 6.0 * heads,
                                  .launches = layers,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "gather the kept tokens",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .bytes = layers * 2.0 * mix->special * width * e,
                                  .bytes_per_token = layers * 2.0 * mix->kept * width * e,
                                  .launches = layers * 2.0,
                                  .critical = TRUE});
}

static gboolean fastgen_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                              guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  double score_bytes = x->n_kv_heads * FASTGEN_SCORE_BYTES;
  Mix mix;
  if (!kv_cache_claim_kept(use, cache, error) || !kv_cache_undivided(use, cache, TRUE, error) ||
      !fastgen_mix(use, kv_model_layers(model), &mix, error))
    return FALSE;
  fastgen_segments(use, &mix, score_bytes, cache);
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != index)
      continue;
    for (guint s = 0; s < cache->n_segments; s++)
      reader->read[s] = cache->segments[s].tokens;
    reader->read[0] = kv_law(KV_LAW_FIRST, mix.special);
    reader->read[cache->n_segments - 1] = kv_law(KV_LAW_FIXED, 0);
    /* Scores come with the tokens and are written back; a sum and a comparison each. */
    reader->extra_bytes_per_token += score_bytes * mix.scored;
    reader->flops_per_token += 2.0 * x->n_kv_heads * mix.scored;
    reader->extra_launches += 1.0;
  }
  fastgen_work(plan, cache, x, &mix, kv_technique_value(use, "impl") == 1.0);
  return TRUE;
}

static gboolean fastgen_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             GError **error) {
  if (!kv_plan_each_full_cache(use, model, plan, fastgen_cache, error))
    return FALSE;
  plan->prefill_peak_layers = 1.0; /* a layer is cut before the next one begins */
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const KvParam fastgen_params[] = {
    {"T", KV_PARAM_REAL, 0.95, 0.91, 0.98, NULL, "fraction",
     "recovery ratio: attention mass that a head's policy must keep; what is dropped comes from the "
     "paper's table for the model of nearest depth"},
    {"r_l", KV_PARAM_REAL, 0.3, 0.1, 0.5, NULL, "fraction of the context", "local window"},
    {"r_f", KV_PARAM_REAL, 0.3, 0.1, 0.5, NULL, "fraction of the context", "heavy hitters"},
    {"special_tokens", KV_PARAM_INTEGER, 4, 0, 64, NULL, "tokens",
     "begin-of-text and chat markers, kept by every head"},
    {"punctuation", KV_PARAM_REAL, 0.12, 0, 0.3, NULL, "fraction of the context",
     "punctuation among the tokens, 10 to 15 % of text"},
    {"full_share", KV_PARAM_REAL, -1, -1, 1, NULL, "fraction of the heads",
     "heads that keep everything, the others spread evenly over the four policies; negative: so "
     "many that T's entry of the table comes out"},
    {"page_tokens", KV_PARAM_INTEGER, 16, 0, 256, NULL, "tokens",
     "page of one head's tokens, half of the last one empty on average; 0: packed without pages"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: profiles from a second product beside the fused kernel; released: from the whole matrix "
     "of probabilities in memory"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula fastgen_formulas[] = {
    {"m_h in {s, s+u*n, s+(u+r_f)*n, s+(u+r_f+r_l)*n, n}",
     "tokens that a head keeps under each policy: s special, u punctuation"},
    {"2*L*Hkv*d*e*(s + phi*n), phi = sum of share of heads * share of context",
     "bytes of the cache, half a page per head beside them"},
    {"8*L*Hkv*m", "bytes of scores read and written on heads with heavy hitters"},
    {"4*L*H*d*(s + phi*n)", "FLOPs of the attention of a decode step"},
    {"2*L*H*d*p^2/2 + 6*L*H*p^2/2", "operations to profile the heads on the prompt"},
    {NULL, NULL},
};

#define FASTGEN_TASK "AlpacaEval-style win rate against the full cache (50 = parity)"
static const KvQualityPoint fastgen_quality[] = {
    {"Llama-1 7B fine-tuned", FASTGEN_TASK, "T=0.91, 56.6% pruned", 50, 30.8, "Table 1, seen", "T",
     0.91, NULL},
    {"Llama-1 7B fine-tuned", FASTGEN_TASK, "T=0.95, 39.8% pruned", 50, 37.7, "Table 1, seen", "T",
     0.95, NULL},
    {"Llama-1 7B fine-tuned", FASTGEN_TASK, "T=0.98, 16.9% pruned", 50, 47.4, "Table 1, seen", "T",
     0.98, NULL},
    {"Llama-1 13B fine-tuned", FASTGEN_TASK, "T=0.91, 53.4% pruned", 50, 32.0, "Table 1, seen", "T",
     0.91, NULL},
    {"Llama-1 13B fine-tuned", FASTGEN_TASK, "T=0.95, 39.0% pruned", 50, 39.9, "Table 1, seen", "T",
     0.95, NULL},
    {"Llama-1 13B fine-tuned", FASTGEN_TASK, "T=0.98, 18.3% pruned", 50, 48.7, "Table 1, seen", "T",
     0.98, NULL},
    {"Llama-1 30B fine-tuned", FASTGEN_TASK, "T=0.93, 56.7% pruned", 50, 37.0, "Table 1, seen", "T",
     0.93, NULL},
    {"Llama-1 30B fine-tuned", FASTGEN_TASK, "T=0.95, 48.8% pruned", 50, 42.5, "Table 1, seen", "T",
     0.95, NULL},
    {"Llama-1 30B fine-tuned", FASTGEN_TASK, "T=0.98, 27.4% pruned", 50, 47.5, "Table 1, seen", "T",
     0.98, NULL},
    {"Llama-1 65B fine-tuned", FASTGEN_TASK, "T=0.93, 56.3% pruned", 50, 40.9, "Table 1, seen", "T",
     0.93, NULL},
    {"Llama-1 65B fine-tuned", FASTGEN_TASK, "T=0.95, 44.9% pruned", 50, 44.2, "Table 1, seen", "T",
     0.95, NULL},
    {"Llama-1 65B fine-tuned", FASTGEN_TASK, "T=0.98, 36.0% pruned", 50, 49.8, "Table 1, seen", "T",
     0.98, NULL},
    {0},
};

const KvTechnique kv_technique_fastgen = {
    .id = "fastgen",
    .name = "FastGen",
    .title = "Model Tells You What to Discard: Adaptive KV Cache Compression for LLMs",
    .paper = "arXiv:2310.01801",
    .code = "github.com/machilusZ/FastGen (a README; a reimplementation is in "
            "github.com/AnswerDotAI/cold-compress)",
    .year = 2024,
    .sections = snapkv_sections,
    .mechanism =
        "When the prompt is done every head is profiled on its own attention map and given the "
        "cheapest of five nested policies that keeps a share T of the attention mass: special tokens; "
        "punctuation too; heavy hitters too; a local window too; everything. The choice holds for the "
        "rest of the request.\n\n"
        "Generated tokens enter a head's cache if its policy covers them: the window slides, heavy "
        "hitters keep their quota by dropping the lowest accumulated score, special tokens and punctuation "
        "add up, full heads append. Every head reads its own tokens only, so lengths are ragged.\n\n"
        "Which head gets which policy depends on the prompt and is known in distribution only, so the "
        "plan holds the expected mix: means over the heads of a layer and over depth.",
    .params = fastgen_params,
    .formulas = fastgen_formulas,
    .quality = fastgen_quality,
    .composes =
        "Needs the prompt's attention probabilities. Goes with quantizers of single tokens, "
        "paging per head and tensor parallelism. Heads of a group would share one policy; the paper has no "
        "grouped heads. Excludes a second selection and latent attention, and ends prefix sharing.",
    .pitfalls =
        "How much is dropped is an outcome of prompt, T and model: the table is of fine-tuned "
        "Llama-1 models at 512 tokens, and larger models drop more. The split of the compressing heads "
        "over the four policies is an assumption; first and last layers keep more full heads and the "
        "middle ones more special-token heads, which changes no sum here. All parts but the special "
        "tokens grow with the context. A kernel without split-K waits for the longest head.",
    .confidence =
        "high on the figures: the paper's text and tables were read; its kernels are not "
        "released, a reimplementation was read; the mix of policies is derived from totals",
    .plan = fastgen_plan,
};
