/* Survey: Model-level Optimization > Intra-layer > Grouped Attention. */
#include <math.h>

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

/* --- QCQA --- */

/* Groups per grouped layer, and how many of `count` layers are grouped to meet the budget. */
typedef struct {
  guint heads;
  double layers;
} Qcqa;

static gboolean qcqa_of(const KvTechniqueUse *use, const KvModel *model, const KvAttention *x,
                        guint count, Qcqa *q, GError **error) {
  guint groups = (guint)kv_technique_value(use, "num_groups");
  double budget = kv_technique_value(use, "cache_budget");
  q->heads = groups ? groups : MAX(1u, x->n_kv_heads / 4);
  if (q->heads >= x->n_kv_heads)
    return kv_technique_refuse(use, error,
                               "num_groups is %u, but %s has %u KV heads, expected fewer groups",
                               q->heads, model->id, x->n_kv_heads);
  gboolean equal = kv_technique_value(use, "mode") == 1.0;
  if (equal && x->n_kv_heads % q->heads != 0)
    return kv_technique_refuse(
        use, error,
        "num_groups is %u with groups of equal size, expected a divisor of the "
        "%u KV heads of %s",
        q->heads, x->n_kv_heads, model->id);
  double least = (double)q->heads / x->n_kv_heads;
  if (budget < least)
    return kv_technique_refuse(
        use, error,
        "cache_budget is %g, expected at least %g, which is all layers with %u "
        "of %u KV heads",
        budget, least, q->heads, x->n_kv_heads);
  /* k layers of `heads`, the rest as they are: (k heads + (count-k) Hkv) / (count Hkv) = budget. */
  q->layers = MIN(ceil(count * (1.0 - budget) / (1.0 - least) - 1e-9), (double)count);
  return TRUE;
}

static gboolean qcqa_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  guint grouped = 0;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *x = &model->groups[g].attention;
    if (x->borrows_cache)
      return kv_technique_refuse(
          use, error,
          "layers of %s share a cache, expected qcqa before the technique that "
          "shares it",
          model->id);
    if (x->kind != KV_ATTENTION_FULL && x->kind != KV_ATTENTION_SLIDING)
      continue;
    guint count = model->groups[g].count;
    Qcqa q;
    if (!qcqa_of(use, model, x, count, &q, error))
      return FALSE;
    grouped++;
    if (q.layers >= count)
      model->groups[g].attention.n_kv_heads = q.heads;
    else if (q.layers > 0.0)
      kv_model_split_group(model, g++, (guint)q.layers)->attention.n_kv_heads = q.heads;
  }
  return grouped > 0 ||
         kv_technique_refuse(use, error,
                             "%s has no layer with KV heads, expected full or sliding attention",
                             model->id);
}

static const char *const qcqa_modes[] = {"AC", "EC", NULL};

static const KvParam qcqa_params[] = {
    {"num_groups", KV_PARAM_INTEGER, 0, 0, 1024, NULL, "groups",
     "KV heads that a grouped layer is left with; 0: a quarter (the reproduction's demonstration "
     "takes 6 of 12)"},
    {"cache_budget", KV_PARAM_REAL, 0.5, 0.001, 1, NULL, "fraction",
     "of the model's cache: which point of the search's front is taken, and so how many layers are "
     "grouped; the paper leaves it to the user"},
    {"mode", KV_PARAM_CHOICE, 0, 0, 1, qcqa_modes, "", "AC: groups of any size; EC: of equal size"},
    {"population", KV_PARAM_INTEGER, 100, 1, 1000000, NULL, "individuals",
     "of the search, which is offline; quality only"},
    {"generations", KV_PARAM_INTEGER, 10, 1, 1000000, NULL, "generations",
     "of the search; quality only"},
    {"crossover_prob", KV_PARAM_REAL, 0.9, 0, 1, NULL, "", "of the search; quality only"},
    {"mutation_prob", KV_PARAM_REAL, 0.03125, 0, 1, NULL, "", "of the search; quality only"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula qcqa_formulas[] = {
    {"2*n*d*e*sum_l h_l", "bytes of the cache; h_l is Hkv or num_groups"},
    {"k = ceil(L*(1-budget)/(1-G/Hkv))", "layers that are grouped"},
    {"4*n*H*d", "FLOPs of the attention core per layer and decode step, unchanged"},
    {"2*D*d*sum_l h_l", "parameters of the K and V projections"},
    {NULL, NULL},
};

static const KvQualityPoint qcqa_quality[] = {
    {"Llama2-7B", "accuracy gain over GQA at equal cache, percent", "no fine-tuning", 0, 20,
     "abstract, seen", NULL, 0, NULL},
    {"Llama2-7B", "accuracy gain over GQA at equal cache, percent", "fine-tuned", 0, 10.55,
     "abstract, seen", NULL, 0, NULL},
    {0},
};

const KvTechnique kv_technique_qcqa = {
    .id = "qcqa",
    .name = "QCQA",
    .title = "QCQA: Quality and Capacity-aware grouped Query Attention",
    .paper = "arXiv:2406.10247",
    .code = "github.com/vinayjoshi22/qcqa (a reproduction by the first author)",
    .year = 2024,
    .sections = gqa_sections,
    .mechanism =
        "Which heads share keys and values is searched for, layer by layer, by an evolutionary "
        "algorithm that weighs the cache's size against how far the averaged projections are from "
        "each head's own. A second search decides which layers are grouped at all and which keep "
        "all their heads; from the resulting front a cache budget is picked. Serving is grouped "
        "attention whose number of KV heads depends on the layer.",
    .params = qcqa_params,
    .formulas = qcqa_formulas,
    .quality = qcqa_quality,
    .composes = "Goes with paging, quantization and eviction. Put it before techniques that share "
                "caches between layers. Latent and recurrent models have no KV heads to group.",
    .pitfalls =
        "The saving needs a runtime whose layers may differ in bytes per token; one that pads all "
        "layers to the widest loses it. Which layers are grouped is not published and does "
        "not change any cost here. Groups of unequal size keep a kernel waiting for the largest, "
        "which is not priced. Tensor parallelism needs each layer's heads to divide or replicates "
        "them.",
    .confidence = "medium: abstract and reproduction were seen, the tables were not",
    .arch = qcqa_arch,
};
