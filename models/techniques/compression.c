/* Survey: Model-level Optimization > Intra-layer > Compression. */
#include "models/techniques/build.h"

/* --- MLA --- */

/* Give the layers of `x` a latent in place of keys and values: DeepSeek-V2 (2024), section 2.1. */
static void mla_layer(const KvTechniqueUse *use, KvAttention *x) {
  guint heads = (guint)kv_technique_value(use, "H"), d = (guint)kv_technique_value(use, "d");
  guint rope = (guint)kv_technique_value(use, "dR");
  guint content = d ? d : x->head_dim;
  x->kind = KV_ATTENTION_LATENT;
  x->n_heads = heads ? heads : x->n_heads;
  x->n_kv_heads = x->n_heads;
  x->head_dim = content + rope;
  x->value_head_dim = content;
  x->kv_lora_rank = (guint)kv_technique_value(use, "dc");
  x->q_lora_rank = (guint)kv_technique_value(use, "dcq");
  x->rope_head_dim = rope;
  x->qk_norm = FALSE;
}

static gboolean mla_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  gboolean quantizes = kv_technique_value(use, "kv_bits") < 16.0;
  guint changed = 0, latent = 0;
  for (guint g = 0; g < model->n_groups; g++) {
    KvAttention *x = &model->groups[g].attention;
    if (x->kind == KV_ATTENTION_LATENT) {
      latent++;
      continue;
    }
    if (x->kind != KV_ATTENTION_FULL || x->borrows_cache)
      return kv_technique_refuse(
          use, error, "%s has layers %s, expected full attention in every layer", model->id,
          x->borrows_cache                  ? "that borrow a cache"
          : x->kind == KV_ATTENTION_SLIDING ? "with sliding windows"
                                            : "without attention");
    mla_layer(use, x);
    changed++;
  }
  if (changed == 0 && latent > 0 && !quantizes)
    return kv_technique_refuse(use, error,
                               "%s has latent attention already, expected another model or "
                               "kv_bits below 16",
                               model->id);
  return TRUE;
}

static gboolean mla_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                         GError **error) {
  double bits = kv_technique_value(use, "kv_bits");
  if (bits >= 16.0)
    return TRUE;
  KvDtype format = bits <= 4.0 ? KV_DTYPE_INT4 : KV_DTYPE_INT8;
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    if (kv_plan_attention(model, cache)->kind != KV_ATTENTION_LATENT)
      continue;
    for (guint s = 0; s < cache->n_segments; s++) {
      if (!kv_segment_quantize(use, &cache->segments[s], format, error))
        return FALSE;
      cache->segments[s].key_bytes *= bits / 8.0 / plan->element_bytes;
    }
    for (guint r = 0; r < plan->readers->len; r++) {
      KvReader *reader = &g_array_index(plan->readers, KvReader, r);
      if (reader->cache == i)
        reader->format = format;
    }
  }
  return TRUE;
}

static const KvParam mla_params[] = {
    {"dc", KV_PARAM_INTEGER, 512, 16, 65536, NULL, "elements",
     "width of the latent that is cached in place of keys and values; the authors take 4 head sizes"},
    {"dR", KV_PARAM_INTEGER, 64, 0, 1024, NULL, "elements",
     "width of the rotated key that all heads share; the authors take half a head"},
    {"dcq", KV_PARAM_INTEGER, 1536, 0, 65536, NULL, "elements",
     "width of the latent of queries, which is not cached; 0: none, as in V2-Lite"},
    {"H", KV_PARAM_INTEGER, 0, 0, 1024, NULL, "heads",
     "query heads; 0: those of the model (DeepSeek-V2 has 128)"},
    {"d", KV_PARAM_INTEGER, 0, 0, 1024, NULL, "elements",
     "head size without position; 0: that of the model (DeepSeek-V2 has 128)"},
    {"kv_bits", KV_PARAM_REAL, 16, 4, 16, NULL, "bit",
     "mean width of a cached element; the service behind the published throughput stored 6"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula mla_formulas[] = {
    {"n*L*(dc+dR)*e", "bytes of the cache, whatever the number of heads"},
    {"n*L*(dc+dR)*e", "HBM bytes that a decode step reads: keys and values are the same bytes"},
    {"2*n*H*(2*dc+dR)", "FLOPs of a decode step's attention per layer, absorbed"},
    {"4*H*d*dc", "FLOPs to absorb the query and expand the output, per layer and token"},
    {"n^2*H*((d+dR)+d)", "FLOPs of prefill attention per layer, not absorbed"},
    {"4*nc*dc*H*d", "FLOPs per layer to expand again the nc tokens of earlier chunks"},
    {"D*dcq + dcq*H*(d+dR) + D*(dc+dR) + 2*dc*H*d + H*d*D", "parameters per layer"},
    {NULL, NULL},
};

static const KvQualityPoint mla_quality[] = {
    {"16B MoE, 1.33T tokens", "MMLU 5-shot", "MLA vs MHA", 48.7, 50.0, "Table 9, seen", "dc", 512,
     NULL},
    {"16B MoE", "BBH 3-shot", "MLA vs MHA", 37.9, 39.0, "Table 9, seen", "dc", 512, NULL},
    {"250B MoE, 420B tokens", "MMLU 5-shot", "MLA vs MHA", 57.5, 59.0, "Table 9, seen", "dc", 512,
     NULL},
    {"250B MoE", "BBH 3-shot", "MLA vs MHA", 46.6, 50.7, "Table 9, seen", "dc", 512, NULL},
    {"16B MoE", "C-Eval 5-shot", "MLA vs MHA", 51.6, 50.9, "Table 9, seen", "dc", 512, NULL},
    {0},
};

static const char *const mla_sections[] = {"Model-level Optimization > Intra-layer > Compression",
                                           NULL};

const KvTechnique kv_technique_mla = {
    .id = "mla",
    .name = "MLA",
    .title = "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model "
             "(Multi-head Latent Attention)",
    .paper = "arXiv:2405.04434",
    .code = "github.com/deepseek-ai/DeepSeek-V2, github.com/deepseek-ai/FlashMLA",
    .year = 2024,
    .sections = mla_sections,
    .mechanism =
        "A layer stores one vector of dc numbers per token, from which every head's keys and values "
        "can be made by a matrix, and one rotated key of dR numbers for all heads, which carries "
        "the position. While decoding, the matrix of the keys is multiplied into the query and "
        "that of the values into the output, so attention runs on the latents themselves, as "
        "if there were a single KV head of width dc+dR. A prompt is cheaper the other way: "
        "keys and values are expanded and attended to head by head. Layers and hidden size are the "
        "model's own, and so are heads and head size unless given.",
    .params = mla_params,
    .formulas = mla_formulas,
    .quality = mla_quality,
    .composes =
        "Goes with paging, prefix sharing and serving systems. It replaces the model's KV heads, so "
        "techniques that group heads (gqa, qcqa) come to nothing before it and are refused after "
        "it. Quantizers and low-rank methods made for separate keys and values refuse the latent; "
        "its own kv_bits stands for the latent's quantization.",
    .pitfalls =
        "The published 93.3 % and 5.76x contain 6-bit caches, fp8 weights and sparse experts, not "
        "only the latent. Bytes fall, but decode FLOPs rise about fourfold, so a large batch is bound by "
        "arithmetic. Tensor parallelism divides the FLOPs but not the cache: every GPU holds "
        "and reads all of it. Each later chunk of a prompt expands the earlier ones again.",
    .confidence = "high: the report and the kernels' documentation were read",
    .executed = TRUE, /* kv_bits=16 */
    .arch = mla_arch,
    .plan = mla_plan,
};
