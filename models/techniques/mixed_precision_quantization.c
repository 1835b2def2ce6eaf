/* Survey: Token-level Optimization > KV Cache Quantization > Mixed-precision Quantization. */
#include <math.h>

#include "models/techniques/build.h"

/* --- KIVI --- */

typedef struct {
  double packed_bytes; /* per element, without scales: q/8 */
  double scale_bytes;  /* per element: an fp16 scale and an fp16 minimum per group of G */
  double residual;     /* R */
  gboolean released;
} Kivi;

/* `law` restated as another kind over the same tokens. */
static KvLaw law_of_tokens(const KvLaw *law, KvLawKind kind, double residual) {
  KvLaw x = kv_law(kind, residual);
  x.kept_prompt = law->kind == KV_LAW_PROMPT_CAPPED ? law->a : law->kept_prompt;
  if (law->kind == KV_LAW_LAST && kind == KV_LAW_FLUSHED)
    x.cap = law->a;
  if (law->kind == KV_LAW_LAST && kind == KV_LAW_BEYOND)
    x.cap = MAX(0.0, law->a - residual);
  if (law->kind == KV_LAW_LAST && kind == KV_LAW_LAST)
    x.a = MIN(residual, law->a);
  return x;
}

static KvSegment part(const KvSegment *from, const char *name, KvRole role, KvLaw tokens,
                      gboolean keys) {
  KvSegment x = *from;
  x.name = name;
  x.role = role;
  x.tokens = tokens;
  if (keys)
    x.value_bytes = 0.0;
  else
    x.key_bytes = 0.0;
  return x;
}

static gboolean kivi_quantize(const KvTechniqueUse *use, const Kivi *k, double e,
                              KvSegment *segment, GError **error) {
  if (!kv_segment_quantize(use, segment, KV_DTYPE_INT4, error))
    return FALSE;
  double elements = (segment->key_bytes + segment->value_bytes) / e;
  segment->key_bytes *= k->packed_bytes / e;
  segment->value_bytes *= k->packed_bytes / e;
  segment->metadata_bytes += elements * k->scale_bytes;
  return TRUE;
}

/* Replace the one growing segment by four: keys in whole blocks of R and the rest, values beyond
 * the last R and those. */
static gboolean kivi_cache(const KvTechniqueUse *use, const Kivi *k, double e, KvCache *cache,
                           GError **error) {
  const KvSegment old = cache->segments[0];
  if (old.quantizer) {
    KvSegment again = old;
    return kv_segment_quantize(use, &again, KV_DTYPE_INT4, error);
  }
  if (cache->n_segments != 1 || old.tokens.scale != 1.0 || old.tokens.cap < G_MAXDOUBLE ||
      (old.tokens.kind != KV_LAW_ALL && old.tokens.kind != KV_LAW_PROMPT_CAPPED &&
       old.tokens.kind != KV_LAW_LAST))
    return kv_technique_refuse(use, error,
                               "the cache '%s' is already divided into segments, expected kivi "
                               "before the technique that divides it",
                               cache->name);
  const KvLaw *law = &old.tokens;
  double r = k->residual;
  cache->n_segments = 4;
  cache->segments[0] =
      part(&old, "keys, packed", KV_ROLE_MIDDLE, law_of_tokens(law, KV_LAW_FLUSHED, r), TRUE);
  cache->segments[1] =
      part(&old, "keys, residual", KV_ROLE_RECENT, law_of_tokens(law, KV_LAW_PENDING, r), TRUE);
  cache->segments[2] =
      part(&old, "values, packed", KV_ROLE_MIDDLE, law_of_tokens(law, KV_LAW_BEYOND, r), FALSE);
  cache->segments[3] =
      part(&old, "values, residual", KV_ROLE_RECENT, law_of_tokens(law, KV_LAW_LAST, r), FALSE);
  return kivi_quantize(use, k, e, &cache->segments[0], error) &&
         kivi_quantize(use, k, e, &cache->segments[2], error);
}

static void kivi_reader(const Kivi *k, const KvCache *cache, const KvAttention *x,
                        KvReader *reader) {
  for (guint s = 0; s < cache->n_segments; s++)
    reader->read[s] = cache->segments[s].tokens;
  reader->format = KV_DTYPE_INT4;
  /* Dequantization: one multiplication and one addition per element. */
  reader->flops_per_token += 2.0 * x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
  if (!k->released)
    return;
  /* The released code writes the scores, concatenates them, takes a softmax in fp32 and reads them
   * again. */
  reader->extra_bytes_per_token += 6.0 * x->n_heads * 2.0;
  /* Every query head's product reads its KV head again. */
  reader->read_bytes_scale *= (double)x->n_heads / x->n_kv_heads;
  /* Two products each for keys and values, concatenation, softmax and a sum, instead of one kernel.
   */
  reader->extra_launches += 6.0;
}

/* min/max, quantize, pack: 8 elementwise operations. In separate kernels the released code also
 * stores the codes between. */
static double quantize_bytes(const Kivi *k, double e) {
  double packed = k->packed_bytes + k->scale_bytes;
  return k->released ? 4.0 * e + packed : e + packed;
}

static void kivi_work(const Kivi *k, double e, const KvCache *cache, const KvAttention *x,
                      KvPlan *plan) {
  double layers = cache->layers, keys = (double)x->n_kv_heads * x->head_dim,
         values = (double)x->n_kv_heads * x->value_head_dim;
  double kernels =
      k->released ? 8.0 : 1.0; /* min, max, scale, subtract, divide, clamp, round, pack */
  double per_element = quantize_bytes(k, e);
  kv_plan_add_work(plan, (KvWork){.name = "quantize the prompt",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * 8.0 * (keys + values),
                                  .bytes_per_token = layers * per_element * (keys + values),
                                  .launches = layers * 2.0 * kernels,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "quantize the oldest residual value",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .flops = layers * 8.0 * values,
                                  .bytes = layers * per_element * values,
                                  .launches = layers * kernels,
                                  .over_tokens = k->residual,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "quantize a block of keys",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .flops = layers * 8.0 * keys * k->residual,
                                  .bytes = layers * per_element * keys * k->residual,
                                  .launches = layers * kernels,
                                  .every_steps = (guint)k->residual,
                                  .critical = TRUE});
  if (!k->released)
    return;
  double packed = k->packed_bytes + k->scale_bytes;
  /* Concatenation reads and writes: the packed values (n - R tokens), R values and on average
   * (R-1)/2 keys. */
  kv_plan_add_work(plan,
                   (KvWork){.name = "concatenate values and residuals",
                            .moment = KV_MOMENT_DECODE_STEP,
                            .bytes = layers * 2.0 *
                                     (values * k->residual * (e - packed) +
                                      keys * e * (k->residual - 1.0) / 2.0),
                            .bytes_per_token = layers * 2.0 * values * packed,
                            .launches = layers * 5.0, /* codes, scales, minima, two residuals */
                            .over_tokens = k->residual,
                            .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "concatenate packed keys",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .bytes_per_token = layers * 2.0 * keys * packed,
                                  .launches = layers * 3.0,
                                  .every_steps = (guint)k->residual,
                                  .critical = TRUE});
}

static guint least_common_multiple(guint a, guint b) {
  guint x = a, y = b;
  while (y != 0) {
    guint rest = x % y;
    x = y;
    y = rest;
  }
  return a / x * b;
}

static gboolean kivi_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                          GError **error) {
  double group = kv_technique_value(use, "G"), residual = kv_technique_value(use, "R");
  if (fmod(residual, group) != 0.0)
    return kv_technique_refuse(use, error, "R is %g, expected a multiple of G (%g)", residual,
                               group);
  Kivi k = {.packed_bytes = kv_technique_choice_number(use, "bits") / 8.0,
            .scale_bytes = 4.0 / group,
            .residual = residual,
            .released = kv_technique_value(use, "impl") == 1.0};
  guint quantized = 0;
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (x->kind == KV_ATTENTION_NONE)
      continue;
    if (x->kind == KV_ATTENTION_LATENT)
      return kv_technique_refuse(use, error,
                                 "the latent cache of %s has no separate keys and values, expected "
                                 "full or sliding attention",
                                 model->id);
    if (!kivi_cache(use, &k, plan->element_bytes, cache, error))
      return FALSE;
    kivi_work(&k, plan->element_bytes, cache, x, plan);
    for (guint r = 0; r < plan->readers->len; r++) {
      KvReader *reader = &g_array_index(plan->readers, KvReader, r);
      if (reader->cache == i)
        kivi_reader(&k, cache, x, reader);
    }
    quantized++;
  }
  if (quantized == 0)
    return kv_technique_refuse(use, error, "%s has no KV cache, expected full or sliding attention",
                               model->id);
  plan->prefill_peak_layers = 1.0;
  /* Keys are packed in whole blocks of R, so a prefix ends on one. */
  plan->share_multiple = least_common_multiple(plan->share_multiple, (guint)residual);
  return TRUE;
}

static const char *const kivi_bits[] = {"2", "4", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam kivi_params[] = {
    {"bits", KV_PARAM_CHOICE, 0, 0, 1, kivi_bits, "bit", "width of the codes of keys and values"},
    {"G", KV_PARAM_INTEGER, 32, 32, 128, NULL, "elements",
     "quantization group; accuracy is flat for 32 and 64 and drops at 128"},
    {"R", KV_PARAM_INTEGER, 128, 32, 128, NULL, "tokens",
     "fp16 residual, a multiple of G: keys are packed in blocks of R, values wait in a queue of R"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: one fused kernel; released: the authors' code, which concatenates copies, stores "
     "the scores, reads a KV head once per query head and launches many small kernels"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula kivi_formulas[] = {
    {"L*Hkv*d*(nK*(q/8+4/G) + (n-nK)*e), nK = R*floor(n/R)", "bytes of keys"},
    {"L*Hkv*d*(nV*(q/8+4/G) + (n-nV)*e), nV = max(0, n-R)", "bytes of values"},
    {"4/G per quantized element", "bytes of scales and minima, counted above"},
    {"4*L*H*d*n", "FLOPs of a decode step's attention, and 2 per element to dequantize"},
    {"8*2*L*Hkv*d*n", "operations to quantize a prompt, once it is done"},
    {"2*L*Hkv*d*nV*(q/8+4/G)",
     "released: bytes that concatenating the packed values moves each step"},
    {"6*L*H*n*2", "released: bytes of the scores that are stored each step"},
    {NULL, NULL},
};

static const KvQualityPoint kivi_quality[] = {
    {"Llama-2-7B", "GSM8K EM", "4 bit G=32 R=128", 13.5, 13.8, "Table 3, seen in text copy", "bits",
     4, NULL},
    {"Llama-2-7B", "GSM8K EM", "2 bit G=32 R=128", 13.5, 12.74, "Table 3, seen in text copy",
     "bits", 2, NULL},
    {"Llama-2-7B", "GSM8K EM", "fake 2 bit K-per-channel V-per-token, no residual window", 13.5,
     5.76, "Table 3, seen in text copy", NULL, 0, NULL},
    {"Llama-2-7B", "GSM8K EM", "fake 2 bit per-token K and V, no residual window", 13.5, 0.83,
     "Table 3, seen in text copy", NULL, 0, NULL},
    {"Mistral-7B", "GSM8K EM", "2 bit G=32 R=128", 38.36, 36.01, "Table 3, seen in text copy",
     "bits", 2, NULL},
    {"Llama-2-13B", "GSM8K EM", "2 bit G=32 R=128", 22.67, 20.77,
     "Tables 3 and 5, seen in text copy", "bits", 2, NULL},
    {"Llama-2-13B", "GSM8K EM", "2 bit G=32 R=128", 22.67, 20.77,
     "Tables 3 and 5, seen in text copy", "G", 32, NULL},
    {"Llama-2-13B", "GSM8K EM", "2 bit G=64 R=128", 22.67, 21.00,
     "Tables 3 and 5, seen in text copy", "G", 64, NULL},
    {"Llama-2-13B", "GSM8K EM", "2 bit G=128 R=128", 22.67, 17.29,
     "Tables 3 and 5, seen in text copy", "G", 128, NULL},
    {"Llama-2-7B", "LongBench avg of 8", "4 bit", 44.52, 44.59, "Table 4, seen in text copy",
     "bits", 4, NULL},
    {"Llama-2-7B", "LongBench avg of 8", "2 bit", 44.52, 44.27, "Table 4, seen in text copy",
     "bits", 2, NULL},
    {"LongChat-7B-v1.5-32K", "LongBench avg of 15", "2 bit", 38.72, 38.30,
     "repo docs/long_bench.md, seen", "bits", 2, NULL},
    {"LongChat-7B-v1.5-32K", "LongBench avg of 15", "4 bit", 38.72, 38.79,
     "repo docs/long_bench.md, seen", "bits", 4, NULL},
    {"Mistral-7B-Instruct-v0.2", "LongBench avg of 15", "2 bit", 43.54, 42.43,
     "repo docs/long_bench.md, seen", "bits", 2, NULL},
    {"Mistral-7B-Instruct-v0.2", "LongBench avg of 15", "4 bit", 43.54, 43.53,
     "repo docs/long_bench.md, seen", "bits", 4, NULL},
    {"LLaMA-2-7B-32K", "RULER avg", "2 bit G=32 R=128", 56.4, 39.78,
     "KVQuant Table 4, seen in text copy", "bits", 2, NULL},
    {0},
};

static const char *const kivi_sections[] = {
    "Token-level Optimization > KV Cache Quantization > Mixed-precision Quantization", NULL};

const KvTechnique kv_technique_kivi = {
    .id = "kivi",
    .name = "KIVI",
    .title = "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    .paper = "arXiv:2402.02750",
    .code = "github.com/jy-yuan/KIVI",
    .year = 2024,
    .sections = kivi_sections,
    .mechanism =
        "Keys are quantized channel by channel over groups of G tokens, values token by token over "
        "groups of G channels, each group with its own fp16 scale and minimum. A key group needs G "
        "whole tokens, so new keys stay in fp16 until R of them have come and are packed as one "
        "block; new values wait in a queue of R, from which one leaves and is packed at each "
        "step. Prefill attends to exact keys and values and packs them afterwards. No token is "
        "dropped and nothing is calibrated.",
    .params = kivi_params,
    .formulas = kivi_formulas,
    .quality = kivi_quality,
    .composes = "Goes with eviction (snapkv), grouped heads, paging and prefix sharing, the last "
                "only at multiples of R tokens. Excludes a second quantizer of the same cache "
                "and latent attention. The authors advise 4 bits for models with grouped heads.",
    .pitfalls =
        "2 bits are 3 with scales and minima at G = 32, and the last R tokens stay fp16: "
        "at 500 tokens the whole is 2.6 times smaller by the formulas above, not 8. The throughput comes "
        "from a larger batch; at batch 1 the released kernels are slower than the "
        "fused ones until contexts are long. Retrieval (RULER) suffers long before LongBench.",
    .confidence =
        "high: repository, README, LongBench page and a text copy of the paper were read; "
        "kernel counts of impl=released are our estimate from its steps",
    .plan = kivi_plan,
};
