/* Survey: Token-level Optimization > KV Cache Selection > Dynamic Selection with Permanent
 * Eviction. */
#include "models/techniques/build.h"

/* --- H2O --- */

/* Accumulated scores are fp16. */
#define H2O_SCORE_BYTES 2.0

/* Slots per head: a + share * prompt. */
typedef struct {
  double a, share;
} Slots;

static Slots h2o_slots(const KvTechniqueUse *use) {
  double total = kv_technique_value(use, "budget_total");
  if (total > 0.0)
    return (Slots){total * kv_technique_value(use, "output_tokens"), total};
  return (Slots){0.0,
                 kv_technique_value(use, "hh_ratio") + kv_technique_value(use, "recent_ratio")};
}

static gboolean h2o_law(const KvTechniqueUse *use, const char *name, KvLaw *law, GError **error) {
  Slots slots = h2o_slots(use);
  if (law->kind == KV_LAW_FIXED)
    return TRUE;
  if (law->kind != KV_LAW_ALL || law->kept_prompt > 0.0) {
    g_autofree char *words = kv_law_describe(law);
    return kv_technique_refuse(use, error,
                               "single tokens cannot leave segment '%s' of the cache, which holds "
                               "%s, expected one that holds all tokens one by one",
                               name, words);
  }
  law->kind = KV_LAW_EVICTED;
  law->a = slots.a;
  law->prompt_share = slots.share;
  return TRUE;
}

/* The oldest accumulated score goes: a sum and a comparison per slot, and its slot is overwritten.
 */
static void h2o_reader(const KvAttention *x, double heads, gboolean released, KvReader *reader) {
  reader->flops_per_token += 2.0 * heads;
  reader->extra_bytes_per_token += heads * H2O_SCORE_BYTES;
  reader->extra_launches += 1.0;
  if (!released)
    return;
  /* The port to FlexGen forms the probabilities (2 bytes): the product writes them, the mask and
   * the softmax read and write them, the product with the values and the sum read them. Product,
   * mask, softmax and product instead of one kernel, then a sum, a minimum, and three writes (key,
   * value, score). */
  reader->extra_bytes_per_token += 7.0 * x->n_heads * 2.0;
  reader->extra_launches += 7.0;
}

static void h2o_work(const KvTechniqueUse *use, KvPlan *plan, const KvCache *cache,
                     const KvAttention *x, double heads, gboolean released) {
  double layers = cache->layers, e = plan->element_bytes;
  double width = heads * ((double)x->head_dim + x->value_head_dim);
  Slots slots = h2o_slots(use);
  /* The released code's matrix of probabilities is square, and the work's law counts half of it. */
  kv_plan_need_scores(plan, cache, x, released, 2.0, 14.0);
  kv_plan_add_work(plan, (KvWork){.name = "choose the heavy hitters",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * heads,
                                  .bytes_per_token = layers * heads * H2O_SCORE_BYTES,
                                  .launches = layers,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "gather the kept tokens",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .bytes = layers * 2.0 * slots.a * width * e,
                                  .bytes_per_token = layers * 2.0 * slots.share * width * e,
                                  .launches = layers * 2.0,
                                  .critical = TRUE});
}

static gboolean h2o_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                          guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  gboolean released = kv_technique_value(use, "impl") == 1.0;
  double heads = released ? x->n_heads : x->n_kv_heads;
  if (!kv_cache_claim_kept(use, cache, error))
    return FALSE;
  for (guint s = 0; s < cache->n_segments; s++)
    if (!h2o_law(use, cache->segments[s].name, &cache->segments[s].tokens, error))
      return FALSE;
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != index)
      continue;
    for (guint s = 0; s < cache->n_segments; s++)
      if (!h2o_law(use, cache->segments[s].name, &reader->read[s], error))
        return FALSE;
    h2o_reader(x, heads, released, reader);
  }
  if (released)
    kv_plan_repeat_heads(plan, index, x);
  for (guint s = 0; s < cache->n_segments; s++)
    if (cache->segments[s].key_bytes > 0.0)
      cache->segments[s].metadata_bytes += heads * H2O_SCORE_BYTES;
  h2o_work(use, plan, cache, x, heads, released);
  return TRUE;
}

static gboolean h2o_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                         GError **error) {
  gboolean total = kv_technique_value(use, "budget_total") > 0.0;
  if (!total && kv_technique_value(use, "output_tokens") > 0.0)
    return kv_technique_refuse(use, error,
                               "output_tokens is of no use without budget_total, expected both");
  if (!kv_plan_each_full_cache(use, model, plan, h2o_cache, error))
    return FALSE;
  plan->prefill_peak_layers = 1.0; /* a layer is cut before the next one begins */
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam h2o_params[] = {
    {"hh_ratio", KV_PARAM_REAL, 0.1, 0.02, 0.5, NULL, "fraction of the prompt",
     "slots per head for heavy hitters; the published runs use 0.05 to 0.3"},
    {"recent_ratio", KV_PARAM_REAL, 0.1, 0.02, 0.5, NULL, "fraction of the prompt",
     "slots per head for the last tokens; the published runs give them as many"},
    {"budget_total", KV_PARAM_REAL, 0, 0, 1, NULL, "fraction of prompt and output",
     "all slots, as the paper counts them, in place of the two ratios; 0: the ratios hold"},
    {"output_tokens", KV_PARAM_INTEGER, 0, 0, 1048576, NULL, "tokens",
     "generated tokens that budget_total counts on: the number of slots is fixed before they come"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: slots per KV head, and scores from a second product beside the fused kernel; released: "
     "slots per query head, and the whole matrix of probabilities in memory"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula h2o_formulas[] = {
    {"K = (hh_ratio+recent_ratio)*p, or budget_total*(p+g)", "slots per head"},
    {"2*L*Hs*d*e*min(n,K) + 2*L*Hs*min(n,K), Hs = Hkv (ideal) or H (released)",
     "bytes of the cache and of the accumulated scores (fp16)"},
    {"2*L*Hs*d*e*K + 4*L*Hs*K", "HBM bytes that a decode step reads, scores read and written"},
    {"4*L*H*d*K + 2*L*Hs*K", "FLOPs of a decode step: attention, a sum and a comparison per slot"},
    {"2*L*H*d*p^2/2 (ideal), 14*L*H*p^2 bytes (released)",
     "FLOPs, or traffic, for the column sums of the prompt's probabilities"},
    {NULL, NULL},
};

static const KvQualityPoint h2o_quality[] = {
    {"MPT-7B", "CNN/DailyMail ROUGE-2", "50% of prompt KV", 17.5, 15.5,
     "Keyformer repository, figure read off, seen (approximate)", "hh_ratio", 0.25, NULL},
    {"MPT-7B", "CNN/DailyMail ROUGE-2", "90% of prompt KV", 17.5, 17.0,
     "Keyformer repository, figure read off, seen (approximate)", "hh_ratio", 0.45, NULL},
    {"Mistral-7B-Instruct-v0.2", "LongBench 16-task avg", "4096 tokens (prompt-phase H2O)", 42.56,
     40.45, "SnapKV README table (averaged here), seen", NULL, 0, NULL},
    {"Llama-3-8B-Instruct", "LongBench avg", "KV 2048", 41.46, 39.35,
     "PyramidKV Table 1 image, seen", NULL, 0, NULL},
    {"Llama-3-8B-Instruct", "LongBench avg", "KV 128", 41.46, 35.37,
     "PyramidKV Table 1 image, seen", NULL, 0, NULL},
    {"LongChat-7B-v1.5-32k", "passkey 10k accuracy (question fed by decode)", "512 tokens", 100, 3,
     "Quest Table 1, seen", NULL, 0, NULL},
    {"OPT-30B", "COPA 5-shot", "20% budget", 85.0, 84.0, "Table 2, seen", "hh_ratio", 0.1, NULL},
    {"OPT-30B", "OpenBookQA 5-shot", "20% budget", 43.2, 43.0, "Table 2, seen", "hh_ratio", 0.1,
     NULL},
    {"OPT-30B", "PiQA 5-shot", "20% budget", 78.51, 78.45, "Table 2, seen", "hh_ratio", 0.1, NULL},
    {"OPT-30B", "Winogrande 5-shot", "20% budget", 70.24, 69.06, "Table 2, seen", "hh_ratio", 0.1,
     NULL},
    {"OPT-30B", "PiQA, heavy hitters only", "20% budget, no recent tokens", 78.51, 67.25,
     "Table 9, seen", NULL, 0, NULL},
    {"OPT-66B", "OpenBookQA 5-shot", "20% budget", 44.4, 44.2, "Table 10, seen", "hh_ratio", 0.1,
     NULL},
    {"OPT-66B", "COPA 5-shot", "20% budget", 83.0, 82.0, "Table 10, seen", "hh_ratio", 0.1, NULL},
    {"OPT-66B", "MathQA 5-shot", "20% budget", 27.87, 27.67, "Table 10, seen", "hh_ratio", 0.1,
     NULL},
    {0},
};

static const char *const h2o_sections[] = {"Token-level Optimization > KV Cache Selection > "
                                           "Dynamic Selection with Permanent Eviction",
                                           NULL};

const KvTechnique kv_technique_h2o = {
    .id = "h2o",
    .name = "H2O",
    .title = "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    .paper = "arXiv:2306.14048",
    .code = "github.com/FMInference/H2O",
    .year = 2023,
    .sections = h2o_sections,
    .mechanism =
        "A head owns a fixed number of slots, so many for the tokens that have drawn most attention "
        "so far and so many for the latest. When the prompt is done its matrix of "
        "probabilities is summed over the queries, which scores every key; the winners outside of the "
        "recent part and the recent part move into the slots with their scores.\n\n"
        "From then on a token comes and a token goes. Each step attends to the slots, adds its row of "
        "probabilities to the scores, and puts the next token where the lowest score outside of "
        "the recent part stood, head by head. What has left does not return. Scores do not age, so early "
        "tokens are at an advantage.",
    .params = h2o_params,
    .formulas = h2o_formulas,
    .quality = h2o_quality,
    .composes =
        "Goes with grouped heads, weight quantization, quantizers that treat each token alone "
        "(flexgen:compress_cache) and offloading: with flexgen the slots lie in host memory and cross "
        "the link, as in the paper. Excludes a second selection, quantizers that pack several tokens "
        "together (kivi) and latent attention, and ends prefix sharing.",
    .pitfalls =
        "The 20 % are of the final length and a constant: early in a long generation they are a "
        "larger share. Gains come from the larger batch and from less traffic over the link; at equal "
        "batch weights dominate. The prompt's peak does not fall: the released code even holds "
        "a layer's n x n probabilities, whose memory is not counted here. The question has to be in "
        "the prompt: retrieval collapses when it comes after the eviction.",
    .confidence =
        "high: text and tables, README, kernels and the benchmark logs were read; how often the "
        "released code passes over the probabilities is counted from its operations",
    .executed = TRUE, /* impl=ideal */
    .plan = h2o_plan,
};
