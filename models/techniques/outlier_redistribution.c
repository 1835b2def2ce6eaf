/* Survey: Token-level Optimization > KV Cache Quantization > Outlier Redistribution. */
#include <math.h>
#include <string.h>

#include "models/techniques/build.h"

/* --- QuaRot --- */

/* The paper's Table 15 (RTX 3090, one layer): INT4 attention takes 0.77 ms + bytes / 716 GB/s, fp16
 * 0.63 ms + bytes / 733 GB/s, and the online transforms 0.05 to 0.13 ms (derived). */
static const double RELEASED_ATTENTION_SECONDS = 0.77e-3 - 0.63e-3;
static const double RELEASED_HADAMARD_SECONDS = 0.09e-3;

typedef struct {
  double weight_bits, activation_bits, key_bits, value_bits; /* 16: left alone */
  double group;
  double hadamard_bytes; /* of an element while it is transformed */
  guint page_tokens;     /* 0: the engine's */
  gboolean released;
} QuaRot;

static gboolean quarot_rotates_cache(const QuaRot *q) {
  return q->key_bits < 16.0 || q->value_bits < 16.0;
}

/* Packed bytes in place of `*bytes`, and what an fp16 scale and zero point per group add. */
static double quarot_pack(double *bytes, double bits, double group, double e) {
  if (bits >= 16.0 || *bytes == 0.0)
    return 0.0;
  double elements = *bytes / e;
  *bytes = elements * bits / 8.0;
  return 4.0 * elements / group;
}

static gboolean quarot_cache(const KvTechniqueUse *use, const QuaRot *q, double e,
                             const KvAttention *x, KvCache *cache, GError **error) {
  double group = MIN(q->group, MAX(1.0, x->head_dim));
  for (guint s = 0; s < cache->n_segments; s++) {
    KvSegment *segment = &cache->segments[s];
    gboolean packs = (segment->key_bytes > 0.0 && q->key_bits < 16.0) ||
                     (segment->value_bytes > 0.0 && q->value_bits < 16.0);
    if (!packs)
      continue;
    if (!kv_segment_quantize(use, segment, KV_DTYPE_INT4, error))
      return FALSE;
    segment->metadata_bytes += quarot_pack(&segment->key_bytes, q->key_bits, group, e);
    segment->metadata_bytes += quarot_pack(&segment->value_bytes, q->value_bits, group, e);
    if (q->page_tokens > 0)
      segment->page_tokens = q->page_tokens;
  }
  return TRUE;
}

static void quarot_reader(const QuaRot *q, const KvAttention *x, KvReader *reader) {
  reader->format = KV_DTYPE_INT4;
  /* Dequantization: one multiplication and one addition per packed element. */
  reader->flops_per_token +=
      2.0 * x->n_kv_heads *
      ((q->key_bits < 16.0 ? x->head_dim : 0.0) + (q->value_bits < 16.0 ? x->value_head_dim : 0.0));
  if (q->released)
    reader->fixed_seconds += RELEASED_ATTENTION_SECONDS;
}

/* The same amounts for each prompt token and each decoded one. */
static void quarot_per_token(KvPlan *plan, KvWork work, const char *of_prompt) {
  work.critical = TRUE;
  work.moment = KV_MOMENT_DECODE_STEP;
  kv_plan_add_work(plan, work);
  work.name = of_prompt;
  work.moment = KV_MOMENT_PREFILL_TOKEN;
  kv_plan_add_work(plan, work);
}

/* Transforms of queries and keys head by head, where keys are packed. */
static void quarot_cache_work(const QuaRot *q, const KvCache *cache, const KvAttention *x,
                              KvPlan *plan) {
  double layers = cache->layers, d = x->head_dim, e = plan->element_bytes;
  double rotated = ((double)x->n_heads + x->n_kv_heads) * d;
  if (q->key_bits < 16.0)
    quarot_per_token(
        plan,
        (KvWork){.name = "rotate queries and keys",
                 .flops = layers * rotated * log2(MAX(2.0, d)),
                 .bytes = layers * 2.0 * rotated * q->hadamard_bytes,
                 .launches = layers,
                 .fixed_seconds = q->released ? layers * RELEASED_HADAMARD_SECONDS : 0.0},
        "rotate the prompt's queries and keys");
  double keys = q->key_bits < 16.0 ? x->n_kv_heads * d : 0.0;
  double values = q->value_bits < 16.0 ? (double)x->n_kv_heads * x->value_head_dim : 0.0;
  double packed = keys * q->key_bits / 8.0 + values * q->value_bits / 8.0;
  /* min/max, quantize, pack: 8 elementwise operations, as KIVI's. */
  quarot_per_token(plan,
                   (KvWork){.name = "quantize the new token",
                            .flops = layers * 8.0 * (keys + values),
                            .bytes = layers * ((keys + values) * e + packed),
                            .launches = layers},
                   "quantize the prompt");
}

/* Before W4A4 products: a transform across heads for the output projection, one of the MLP's width
 * for the down projection, and every input is quantized token by token. */
static void quarot_product_work(const QuaRot *q, const KvModel *model, const KvLayerGroup *group,
                                KvPlan *plan) {
  const KvAttention *x = &group->attention;
  const KvMlp *mlp = &group->mlp;
  double layers = group->count, hidden = model->hidden;
  double heads = (double)x->n_heads * x->value_head_dim;
  double wide = (double)(mlp->intermediate + mlp->shared_intermediate) +
                (double)mlp->expert_intermediate * mlp->n_experts_per_token;
  double flops = heads * log2(MAX(2.0, x->n_heads)) + (wide > 1.0 ? wide * log2(wide) : 0.0);
  quarot_per_token(plan,
                   (KvWork){.name = "transform inputs of output and down projection",
                            .flops = layers * flops,
                            .bytes = layers * 2.0 * (heads + wide) * q->hadamard_bytes,
                            .launches = layers * 2.0},
                   "transform the prompt's inputs of output and down projection");
  double elements = 2.0 * hidden + heads + wide;
  quarot_per_token(plan,
                   (KvWork){.name = "quantize activations",
                            .flops = layers * 4.0 * elements,
                            .bytes = layers * elements * (2.0 + q->activation_bits / 8.0),
                            .launches = layers * 4.0},
                   "quantize the prompt's activations");
}

/* The authors' products leave int32 sums, which a kernel of its own reads and scales (recalled). */
static void quarot_released_work(const KvModel *model, const KvLayerGroup *group, KvPlan *plan) {
  const KvAttention *x = &group->attention;
  const KvMlp *mlp = &group->mlp;
  double layers = group->count;
  double wide = (double)(mlp->intermediate + mlp->shared_intermediate) +
                (double)mlp->expert_intermediate * mlp->n_experts_per_token;
  double outputs = (double)x->n_heads * x->head_dim +
                   (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim) +
                   2.0 * model->hidden + (mlp->gated ? 2.0 : 1.0) * wide;
  quarot_per_token(plan,
                   (KvWork){.name = "scale the products' sums",
                            .flops = layers * 2.0 * outputs,
                            .bytes = layers * 8.0 * outputs, /* int32 written and read */
                            .launches = layers * 7.0},
                   "scale the sums of the prompt's products");
}

static gboolean quarot_weights(const KvTechniqueUse *use, const QuaRot *q, const KvModel *model,
                               KvPlan *plan, GError **error) {
  if (q->weight_bits >= 16.0 && q->activation_bits >= 16.0)
    return TRUE;
  if (q->weight_bits >= 16.0)
    return kv_technique_refuse(
        use, error,
        "a_bits is %g with w_bits 16, but no product takes narrow activations "
        "and wide weights, expected w_bits at most 8",
        q->activation_bits);
  KvWeights *weights = &plan->weights;
  if (weights->bytes_per_parameter < kv_dtype_bytes(model->weight_dtype) ||
      weights->dtype != model->weight_dtype)
    return kv_technique_refuse(use, error,
                               "the weights are already quantized, expected w_bits=16:a_bits=16");
  if (kv_dtype_bytes(model->weight_dtype) < 2.0)
    return kv_technique_refuse(use, error,
                               "the weights of %s are published as %s, expected a 16-bit model or "
                               "w_bits=16:a_bits=16",
                               model->id, kv_dtype_names[model->weight_dtype]);
  /* An fp16 scale for each column, of as many rows as the hidden size. */
  weights->bytes_per_parameter = q->weight_bits / 8.0 + (model->hidden ? 2.0 / model->hidden : 0.0);
  /* The wider operand decides: 6 bits are multiplied as 8. Weights alone are widened to 16. */
  double widest = MAX(q->weight_bits, q->activation_bits);
  if (widest <= 8.0)
    weights->dtype = widest <= 4.0 ? KV_DTYPE_INT4 : KV_DTYPE_INT8;
  for (guint g = 0; g < model->n_groups && q->activation_bits < 16.0; g++) {
    quarot_product_work(q, model, &model->groups[g], plan);
    if (q->released)
      quarot_released_work(model, &model->groups[g], plan);
  }
  return TRUE;
}

static gboolean quarot_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                            GError **error) {
  double kv = kv_technique_choice_number(use, "kv_bits");
  gboolean keys_too = kv_technique_value(use, "k_bits") == 0.0;
  gboolean values_too = kv_technique_value(use, "v_bits") == 0.0;
  QuaRot q = {.weight_bits = kv_technique_choice_number(use, "w_bits"),
              .activation_bits = kv_technique_choice_number(use, "a_bits"),
              .key_bits = keys_too ? kv : kv_technique_choice_number(use, "k_bits"),
              .value_bits = values_too ? kv : kv_technique_choice_number(use, "v_bits"),
              .group = kv_technique_value(use, "kv_group"),
              .hadamard_bytes = kv_technique_value(use, "had_dtype") == 1.0 ? 4.0 : 2.0,
              .page_tokens = (guint)kv_technique_value(use, "page"),
              .released = kv_technique_value(use, "impl") == 1.0};
  if (!quarot_weights(use, &q, model, plan, error))
    return FALSE;
  if (!quarot_rotates_cache(&q))
    return TRUE;
  guint quantized = 0;
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (cache->n_segments == 0)
      continue;
    if (x->kind == KV_ATTENTION_LATENT)
      return kv_technique_refuse(use, error,
                                 "the latent cache of %s has no heads to rotate, expected full or "
                                 "sliding attention, or kv_bits=16",
                                 model->id);
    if (!quarot_cache(use, &q, plan->element_bytes, x, cache, error))
      return FALSE;
    quarot_cache_work(&q, cache, x, plan);
    for (guint r = 0; r < plan->readers->len; r++) {
      KvReader *reader = &g_array_index(plan->readers, KvReader, r);
      if (reader->cache == i)
        quarot_reader(&q, x, reader);
    }
    quantized++;
  }
  if (quantized == 0)
    return kv_technique_refuse(use, error,
                               "%s has no KV cache, expected full or sliding attention, or "
                               "kv_bits=16",
                               model->id);
  plan->prefill_peak_layers = MIN(plan->prefill_peak_layers, 1.0);
  return TRUE;
}

static const char *const quarot_operands[] = {"4", "6", "8", "16", NULL};
static const char *const quarot_kv[] = {"2", "3", "4", "16", NULL};
static const char *const quarot_part[] = {"same", "2", "3", "4", "16", NULL};
static const char *const quarot_had[] = {"fp16", "fp32", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam quarot_params[] = {
    {"w_bits", KV_PARAM_CHOICE, 0, 0, 3, quarot_operands, "bit", "weights; 16: as they are"},
    {"a_bits", KV_PARAM_CHOICE, 0, 0, 3, quarot_operands, "bit",
     "inputs of the products; 16: as they are, weights are then only stored narrow"},
    {"kv_bits", KV_PARAM_CHOICE, 2, 0, 3, quarot_kv, "bit", "keys and values; 16: as they are"},
    {"k_bits", KV_PARAM_CHOICE, 0, 0, 4, quarot_part, "bit", "keys alone; same: kv_bits"},
    {"v_bits", KV_PARAM_CHOICE, 0, 0, 4, quarot_part, "bit", "values alone; same: kv_bits"},
    {"kv_group", KV_PARAM_INTEGER, 128, 16, 256, NULL, "elements",
     "elements of the cache that share a scale and a zero point; at most a head"},
    {"kv_clip", KV_PARAM_REAL, 0.95, 0, 1, NULL, "",
     "share of the range that the cache's codes cover; quality only"},
    {"a_clip", KV_PARAM_REAL, 0.9, 0, 1, NULL, "",
     "share of the range that the activations' codes cover; quality only"},
    {"had_dtype", KV_PARAM_CHOICE, 0, 0, 1, quarot_had, "", "precision of the online transforms"},
    {"page", KV_PARAM_INTEGER, 0, 0, 1048576, NULL, "tokens",
     "page of the cache; 0: the engine's (the released benchmark takes the longest sequence)"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: one fused kernel; released: the authors' kernels, with their fixed cost per layer on "
     "an RTX 3090, and products that leave 32-bit sums"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula quarot_formulas[] = {
    {"L*Hkv*n*(d*(qk+qv)/8 + 8*d/G)", "bytes of the cache: 4.25 bits an element at 4 bits, G = d"},
    {"qw/8 + 2/D", "bytes per weight, with an fp16 scale per column"},
    {"(H+Hkv)*d*log2(d)", "operations per layer and token to rotate queries and keys"},
    {"D*log2(H) + E*log2(E)",
     "operations per layer and token to transform inputs of output and down projection"},
    {"4*L*H*d*n + 2*L*Hkv*(dk+dv)*n", "FLOPs of a decode step's attention, and to dequantize"},
    {"0.14 ms + 0.09 ms", "released: per layer and step, of attention and of the transforms"},
    {NULL, NULL},
};

static const KvQualityPoint quarot_quality[] = {
    {"LLAMA2-7B", "WikiText2 ppl, cache alone", "KV only: K4V4", 5.47, 5.51,
     "Table 6, seen in text copy", "kv_bits", 4, NULL},
    {"LLAMA2-7B", "WikiText2 ppl, cache alone", "KV only: K3V3", 5.47, 5.68,
     "Table 6, seen in text copy", "kv_bits", 3, NULL},
    {"LLAMA2-7B", "WikiText2 ppl, cache alone", "KV only: K2V2", 5.47, 9.23,
     "Table 6, seen in text copy", "kv_bits", 2, NULL},
    {"LLAMA2-7B", "WikiText2 ppl, cache alone", "KV only: K4V3", 5.47, 5.54,
     "Table 6, seen in text copy", "v_bits", 3, "V"},
    {"LLAMA2-7B", "WikiText2 ppl, cache alone", "KV only: K4V2", 5.47, 5.75,
     "Table 6, seen in text copy", "v_bits", 2, "V"},
    {"LLAMA2-7B", "WikiText2 ppl, cache alone", "KV only: K3V4", 5.47, 5.65,
     "Table 6, seen in text copy", "k_bits", 3, "K"},
    {"LLAMA2-70B", "WikiText2 ppl, cache alone", "KV only: K4V4", 3.32, 3.33,
     "Table 6, seen in text copy", "kv_bits", 4, NULL},
    {"LLAMA2-70B", "WikiText2 ppl, cache alone", "KV only: K3V3", 3.32, 3.39,
     "Table 6, seen in text copy", "kv_bits", 3, NULL},
    {"LLAMA2-70B", "WikiText2 ppl, cache alone", "KV only: K2V2", 3.32, 4.13,
     "Table 6, seen in text copy", "kv_bits", 2, NULL},
    {"LLAMA2-7B", "WikiText2 ppl, all at 4 bits", "W4A4KV4 GPTQ", 5.47, 6.10,
     "Table 1, seen in text copy", "kv_bits", 4, NULL},
    {"LLAMA2-7B", "WikiText2 ppl, all at 4 bits", "W4A4KV4 RTN", 5.47, 8.37,
     "Table 3, seen in text copy", NULL, 0, NULL},
    {"LLAMA2-70B", "WikiText2 ppl, all at 4 bits", "W4A4KV4 GPTQ", 3.32, 3.79, "seen in text copy",
     "kv_bits", 4, NULL},
    {"LLAMA2-70B", "WikiText2 ppl, all at 4 bits", "W4A4KV4 RTN", 3.32, 4.14, "seen in text copy",
     NULL, 0, NULL},
    {"LLAMA3-8B", "WikiText2 ppl, all at 4 bits", "W4A4KV4 GPTQ", 6.14, 8.16,
     "Table 11, seen in text copy", "kv_bits", 4, NULL},
    {"LLAMA2-7B", "6 zero-shot avg", "W4A4KV4 GPTQ", 69.82, 65.64, "Table 2, seen in text copy",
     "kv_bits", 4, NULL},
    {0},
};

static const char *const quarot_sections[] = {
    "Token-level Optimization > KV Cache Quantization > Outlier Redistribution", NULL};

const KvTechnique kv_technique_quarot = {
    .id = "quarot",
    .name = "QuaRot",
    .title = "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
    .paper = "arXiv:2404.00456",
    .code = "github.com/spcl/QuaRot",
    .year = 2024,
    .sections = quarot_sections,
    .mechanism =
        "A random Hadamard rotation is multiplied into the weights, so that no channel of the "
        "activations stands out and 4 bits suffice for them. What cannot be merged is "
        "transformed as it comes: the inputs of the output and of the down projection, "
        "and queries and keys head by head after their rotary embedding, which leaves their product "
        "as it was. Weights, activations, keys and values are then quantized, each with its own "
        "switch; the cache has a scale and a zero point for each token and head. A prompt attends "
        "to exact keys and values before they are packed.",
    .params = quarot_params,
    .formulas = quarot_formulas,
    .quality = quarot_quality,
    .composes = "Goes with grouped heads, paging, prefix sharing and eviction. With kv_bits=16 it "
                "leaves the cache to another quantizer, with w_bits=16:a_bits=16 the weights. "
                "Excludes a second quantizer of what it quantizes, and latent attention unless "
                "kv_bits=16.",
    .pitfalls =
        "4-bit products need a 4-bit rate of the device: where its data sheet has none, they are "
        "priced at the 16-bit rate and only the bytes fall. The published figures are of "
        "one block, not of a model with embeddings. The authors' 4-bit attention is slower "
        "than fp16 below a batch of 8 to 16 at 2K tokens on an RTX 3090, because of its fixed cost. "
        "Transforms whose size is no power of two cost a little more than counted. "
        "Versions of the paper differ. Keys suffer before values.",
    .confidence = "high: code, README and a text copy with appendices were read; fixed costs of "
                  "impl=released are derived from Table 15",
    .plan = quarot_plan,
};
