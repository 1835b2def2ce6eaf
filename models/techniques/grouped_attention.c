/* Survey: Model-level Optimization > Intra-layer > Grouped Attention. */
#include "models/techniques/build.h"

/* --- GQA --- */

static gboolean gqa_group(const KvTechniqueUse *use, const KvModel *model, KvAttention *attention,
                          guint heads, GError **error) {
  if (heads > attention->n_kv_heads)
    return kv_technique_refuse(use, error,
                               "num_kv_heads is %u, but %s has %u KV heads, expected at most %u",
                               heads, model->id, attention->n_kv_heads, attention->n_kv_heads);
  if (attention->n_heads % heads != 0 || attention->n_kv_heads % heads != 0)
    return kv_technique_refuse(
        use, error, "num_kv_heads is %u, expected a divisor of the %u query and %u KV heads of %s",
        heads, attention->n_heads, attention->n_kv_heads, model->id);
  attention->n_kv_heads = heads;
  return TRUE;
}

static gboolean gqa_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  guint heads = (guint)kv_technique_value(use, "num_kv_heads"), groups = 0;
  for (guint g = 0; g < model->n_groups; g++) {
    KvAttention *attention = &model->groups[g].attention;
    if (attention->kind != KV_ATTENTION_FULL && attention->kind != KV_ATTENTION_SLIDING)
      continue;
    if (!gqa_group(use, model, attention, heads, error))
      return FALSE;
    groups++;
  }
  return groups > 0 ||
         kv_technique_refuse(use, error,
                             "%s has no layer with KV heads, expected full or sliding attention",
                             model->id);
}

static const char *const conversions[] = {"mean", "first", "random", NULL};

static const KvParam gqa_params[] = {
    {"num_kv_heads", KV_PARAM_INTEGER, 8, 1, 1024, NULL, "heads",
     "KV heads per layer; 8 is the authors' middle ground, 1 is MQA"},
    {"alpha", KV_PARAM_REAL, 0.05, 0, 0.1, NULL, "fraction",
     "share of the original pre-training steps spent on uptraining; quality only"},
    {"conversion", KV_PARAM_CHOICE, 0, 0, 2, conversions, "",
     "how the K and V projections of a group are initialised; quality only"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula gqa_formulas[] = {
    {"2*n*L*Hkv*d*e", "bytes of the cache"},
    {"2*n*L*Hkv*d*e + 2*L*Hkv*d*e", "HBM bytes that a decode step reads and writes"},
    {"4*n*H*d", "FLOPs of the attention core per layer and decode step, unchanged"},
    {"4*D*Hkv*d", "FLOPs of the K and V projections per layer and token"},
    {"2*D*(H-Hkv)*d", "parameters saved per layer"},
    {NULL, NULL},
};

static const KvQualityPoint gqa_quality[] = {
    {"T5-XXL", "average over CNN/DM, arXiv, PubMed, MediaSum, MultiNews, WMT, TriviaQA",
     "GQA-8, alpha=0.05", 47.2, 47.1, "Table 1, seen (section notes)", "num_kv_heads", 8, NULL},
    {"T5-XXL", "TriviaQA F1", "GQA-8", 81.9, 81.6, "Table 1, seen", "num_kv_heads", 8, NULL},
    {"T5-XXL", "CNN/DM R1", "GQA-8", 43.8, 43.5, "Table 1, seen", "num_kv_heads", 8, NULL},
    {"dense 7B, 1.33T tokens", "MMLU 5-shot", "GQA-8 vs MHA from scratch", 45.2, 41.2,
     "DeepSeek-V2 Table 8, seen", "num_kv_heads", 8, NULL},
    {"dense 7B, 1.33T tokens", "C-Eval 5-shot", "GQA-8 vs MHA from scratch", 42.9, 37.7,
     "DeepSeek-V2 Table 8, seen", "num_kv_heads", 8, NULL},
    {"Pythia-160M uptrained 5% of Pile", "LAMBADA acc", "4 of 12 KV heads", 33.63, 29.38,
     "pythia-mlkv repository results, seen", NULL, 0, NULL},
    {0},
};

static const char *const gqa_sections[] = {
    "Model-level Optimization > Intra-layer > Grouped Attention", NULL};

const KvTechnique kv_technique_gqa = {
    .id = "gqa",
    .name = "GQA",
    .title = "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
    .paper = "arXiv:2305.13245",
    .code = "github.com/fkodom/grouped-query-attention-pytorch (unofficial)",
    .year = 2023,
    .sections = gqa_sections,
    .mechanism =
        "Consecutive query heads form Hkv groups of H/Hkv, and a group shares one key head and one "
        "value head: Hkv = 1 is multi-query attention, Hkv = H the usual multi-head attention. A "
        "trained model is converted by averaging the K and V projections within each group "
        "and training a little further. A decode step stores and reads only Hkv heads; each is "
        "used by H/Hkv queries, so the attention FLOPs stay as they were.",
    .params = gqa_params,
    .formulas = gqa_formulas,
    .quality = gqa_quality,
    .composes = "The base of most other techniques: paging, prefix sharing, quantization and "
                "eviction all apply. Put it first. Models whose attention is latent or recurrent "
                "have no KV heads to group. Tensor parallelism beyond Hkv replicates the cache.",
    .pitfalls = "The paper's speedups are of T5 on TPUs with replicated KV heads and do not carry "
                "over to decoder-only GPU serving. A decode kernel without tensor cores can become "
                "compute-bound at large H/Hkv. Averaging without further training is poor.",
    .confidence = "high: the main table and the text were seen through section notes; the "
                  "definition is exact",
    .arch = gqa_arch,
};
