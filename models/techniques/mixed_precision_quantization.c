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
  x.short_prompt = law->short_prompt;
  x.short_kept = law->short_kept;
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
    x.key_bytes = x.metadata_bytes = 0.0; /* what belongs to a token stays with its keys */
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
  if (old.tokens.kind == KV_LAW_EVICTED)
    return kv_technique_refuse(use, error,
                               "%s drops tokens one at a time, but keys are packed in blocks of %g "
                               "tokens, expected a quantizer of single tokens",
                               cache->kept_by ? cache->kept_by : "the stack", k->residual);
  if (cache->read_by)
    return kv_technique_refuse(use, error,
                               "%s chooses what is read of the cache, expected a technique that "
                               "reads all of it",
                               cache->read_by);
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
  kv_plan_share_at(plan, (guint)residual);
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

/* --- KVQuant --- */

/* Bandwidth of the released kernel over that of the fp16 one: at 16K tokens nuq4-1% moves 36 MB in
 * 126.3 us, fp16 134 MB in 219.4 us (the paper's Table 6; derived). */
static const double KVQUANT_RELEASED_EFFICIENCY = (36.0 / 126.3) / (134.0 / 219.4);
/* A synchronous copy to the CPU and back, for each layer of a step (recalled: 10 us each way). */
static const double KVQUANT_ROUND_TRIP_SECONDS = 20e-6;

typedef struct {
  double bits, outliers; /* share of elements that are kept exact */
  double cap; /* outliers a token, of keys and of values; 0: two even halves of outliers */
  double sinks;
  gboolean released;
} KvQuant;

/* Bytes beside the codes for `elements` keys (or values) of a token. */
static double kvquant_metadata(const KvQuant *k, double elements, gboolean keys) {
  if (!k->released) /* 16-bit values and indices, a pointer; values: scale and zero point */
    return k->outliers * elements * 4.0 + 4.0 + (keys ? 0.0 : 4.0);
  double cap = k->cap > 0.0 ? k->cap : 2.0 * ceil(0.5 * k->outliers * elements);
  /* fp32 values and int32 indices; each token has a table of values of its own, in fp32. */
  return MIN(cap, elements) * 8.0 + (keys ? 0.0 : pow(2.0, k->bits) * 4.0);
}

static double kvquant_codes(const KvQuant *k, double elements) {
  double bytes = elements * k->bits / 8.0;
  return k->released ? 4.0 * ceil(bytes / 4.0) : bytes;
}

static gboolean kvquant_segment(const KvTechniqueUse *use, const KvQuant *k, double e,
                                KvSegment *segment, GError **error) {
  if (!kv_segment_quantize(use, segment, KV_DTYPE_INT4, error))
    return FALSE;
  double keys = segment->key_bytes / e, values = segment->value_bytes / e;
  segment->key_bytes = kvquant_codes(k, keys);
  segment->value_bytes = kvquant_codes(k, values);
  if (keys > 0.0)
    segment->metadata_bytes += kvquant_metadata(k, keys, TRUE);
  if (values > 0.0)
    segment->metadata_bytes += kvquant_metadata(k, values, FALSE);
  return TRUE;
}

/* Quantize what is there. The first tokens are set apart where all tokens are in one segment; a
 * cache that is divided already keeps its division. */
static gboolean kvquant_cache(const KvTechniqueUse *use, const KvQuant *k, KvPlan *plan, guint i,
                              GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  const KvLaw law = cache->segments[0].tokens;
  gboolean one = cache->n_segments == 1 && law.scale == 1.0 && law.cap == G_MAXDOUBLE &&
                 (law.kind == KV_LAW_ALL || law.kind == KV_LAW_PROMPT_CAPPED);
  if (one && k->sinks > 0.0 && kv_plan_reads_all(plan, i)) {
    cache->n_segments = 2;
    cache->segments[1] = cache->segments[0];
    cache->segments[0].name = "first tokens";
    cache->segments[0].role = KV_ROLE_SINK;
    cache->segments[0].tokens = kv_law(KV_LAW_FIRST, k->sinks);
    cache->segments[1].tokens = law_of_tokens(&law, KV_LAW_BEYOND, k->sinks);
    kv_plan_read_all(plan, i);
  }
  for (guint s = 0; s < cache->n_segments; s++) {
    KvSegment *segment = &cache->segments[s];
    if (segment->role != KV_ROLE_SINK && segment->key_bytes + segment->value_bytes > 0.0 &&
        !kvquant_segment(use, k, plan->element_bytes, segment, error))
      return FALSE;
  }
  return TRUE;
}

static void kvquant_reader(const KvQuant *k, const KvAttention *x, KvReader *reader) {
  double keys = (double)x->n_kv_heads * x->head_dim;
  double values = (double)x->n_kv_heads * x->value_head_dim;
  reader->format = KV_DTYPE_INT4;
  /* A table look-up for each element, rotation of every stored key, and the outliers' products. */
  reader->flops_per_token +=
      keys + values + 6.0 * keys +
      2.0 * k->outliers * x->n_heads * ((double)x->head_dim + x->value_head_dim);
  if (!k->released)
    return;
  reader->extra_bytes_per_token += 8.0 * x->n_heads; /* fp32 scores, written and read */
  reader->extra_launches += 4.0; /* dense and sparse kernels of keys and of values, and a softmax */
  reader->efficiency *= KVQUANT_RELEASED_EFFICIENCY;
}

/* Thresholds, look-up of the nearest level, and packing: about 10 operations an element. */
static void kvquant_work(const KvQuant *k, const KvCache *cache, const KvAttention *x,
                         KvPlan *plan) {
  double layers = cache->layers;
  double elements = (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
  double bytes = elements * (plan->element_bytes + k->bits / 8.0 + 4.0 * k->outliers);
  KvWork work = {.name = "quantize the new token",
                 .moment = KV_MOMENT_DECODE_STEP,
                 .flops = layers * 10.0 * elements,
                 .bytes = layers * bytes,
                 .launches = layers * (k->released ? 4.0 : 1.0),
                 .fixed_seconds = k->released ? layers * KVQUANT_ROUND_TRIP_SECONDS : 0.0,
                 .critical = TRUE};
  kv_plan_add_work(plan, work);
  work.name = "quantize the prompt";
  work.moment = KV_MOMENT_PREFILL_TOKEN;
  work.fixed_seconds = 0.0;
  kv_plan_add_work(plan, work);
}

static gboolean kvquant_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             GError **error) {
  KvQuant k = {.bits = kv_technique_choice_number(use, "bits"),
               .outliers = kv_technique_value(use, "outlier_frac"),
               .cap = kv_technique_value(use, "cap_per_token"),
               .sinks = kv_technique_value(use, "first_few_fp16"),
               .released = kv_technique_value(use, "impl") == 1.0};
  guint quantized = 0;
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (cache->n_segments == 0)
      continue;
    if (x->kind == KV_ATTENTION_LATENT)
      return kv_technique_refuse(use, error,
                                 "the latent cache of %s has no separate keys and values, expected "
                                 "full or sliding attention",
                                 model->id);
    if (!kvquant_cache(use, &k, plan, i, error))
      return FALSE;
    kvquant_work(&k, cache, x, plan);
    for (guint r = 0; r < plan->readers->len; r++) {
      KvReader *reader = &g_array_index(plan->readers, KvReader, r);
      if (reader->cache == i)
        kvquant_reader(&k, x, reader);
    }
    quantized++;
  }
  if (quantized == 0)
    return kv_technique_refuse(use, error, "%s has no KV cache, expected full or sliding attention",
                               model->id);
  plan->prefill_peak_layers = MIN(plan->prefill_peak_layers, 1.0);
  if (k.released)
    plan->paged = FALSE;
  return TRUE;
}

static const char *const kvquant_bits[] = {"2", "3", "4", NULL};
static const char *const kvquant_qnorm[] = {"auto", "off", "on", NULL};

static const KvParam kvquant_params[] = {
    {"bits", KV_PARAM_CHOICE, 1, 0, 2, kvquant_bits, "bit", "width of the codes: 2^bits levels"},
    {"outlier_frac", KV_PARAM_REAL, 0.01, 0, 0.01, NULL, "fraction",
     "elements of largest magnitude that are kept exact in a sparse matrix"},
    {"first_few_fp16", KV_PARAM_INTEGER, 1, 0, 5, NULL, "tokens",
     "tokens at the start that stay fp16; 5 for LWM, 0: none"},
    {"cap_per_token", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "elements",
     "released: outliers that a token's keys, and its values, have room for; 0: an even number that "
     "holds outlier_frac, which is the authors' 42 for 4096 channels"},
    {"calib", KV_PARAM_INTEGER, 16, 1, 1024, NULL, "samples",
     "samples of 2K tokens from which tables and thresholds are learned; quality only"},
    {"qnorm", KV_PARAM_CHOICE, 0, 0, 2, kvquant_qnorm, "",
     "shift and scale the levels after clustering; auto: at 2 bits; quality only"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: one fused kernel and the paper's layout; released: the authors' code, with wider "
     "outliers, a table for each token, separate kernels, a round trip to the CPU and a cache of "
     "fixed length"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula kvquant_formulas[] = {
    {"2*L*Hkv*d*(n-s)*(q/8 + 4*f) + L*(n-s)*12 + 2*L*Hkv*d*s*e",
     "bytes of the cache: codes and outliers (16-bit value and index), two pointers and a scale "
     "with zero point a token, s exact tokens"},
    {"q + 32*f bits, and 12 bytes a token and layer",
     "of an element: 3.33 at 3 bits, 1 % and 4096 channels"},
    {"2*L*n*(Hkv*d*q/8 + 8*cap) + L*n*4*2^q", "released: bytes of codes, outliers and tables"},
    {"L*n*(4*H*d*(1+f) + 2*Hkv*d + 6*Hkv*d)",
     "FLOPs of a decode step: products, outliers, look-ups, rotation of stored keys"},
    {"8*L*H*n", "released: bytes of the fp32 scores"},
    {NULL, NULL},
};

static const KvQualityPoint kvquant_quality[] = {
    {"LLaMA-7B", "WikiText2 ppl", "nuq3-1%", 5.68, 5.75, "Table 1 via notes, seen", "bits", 3,
     NULL},
    {"LLaMA-7B", "WikiText2 ppl", "nuq3-1%", 5.68, 5.75, "Table 1 via notes, seen", "outlier_frac",
     0.01, NULL},
    {"LLaMA-7B", "WikiText2 ppl", "nuq2-1%", 5.68, 6.01, "Table 1 via notes, seen", "bits", 2,
     NULL},
    {"LLaMA-7B", "WikiText2 ppl", "nuq3 without outliers", 5.68, 5.87, "Table 1 via notes, seen",
     "outlier_frac", 0, NULL},
    {"LLaMA-7B", "WikiText2 ppl", "int3 per token, for contrast", 5.68, 10.87,
     "Table 1 via notes, seen", NULL, 0, NULL},
    {"LLaMA-2-7B-32K", "LongBench avg", "nuq3-1%", 31.96, 31.21, "Table 3 via notes, seen", "bits",
     3, NULL},
    {"LLaMA-2-7B-32K", "RULER avg", "nuq3-1%", 56.4, 53.65, "Table 4, seen in text copy", "bits", 3,
     NULL},
    {"LLaMA-2-7B-32K", "RULER avg", "nuq2-1%", 56.4, 36.54, "Table 4, seen in text copy", "bits", 2,
     NULL},
    {"DBRX-Base", "WikiText2 ppl", "nuq4-1%", 3.96, 3.98, "quant/README, seen", "bits", 4, NULL},
    {"DBRX-Base", "WikiText2 ppl", "nuq3-1%", 3.96, 4.03, "quant/README, seen", "bits", 3, NULL},
    {"DBRX-Base", "WikiText2 ppl", "nuq2-1%", 3.96, 4.26, "quant/README, seen", "bits", 2, NULL},
    {"LWM-Text-Chat-1M", "ppl 2K", "nuq4-1%", 8.9, 8.98, "lwm README, seen", "bits", 4, NULL},
    {"LWM-Text-Chat-1M", "ppl 2K", "nuq3-1%", 8.9, 9.22, "lwm README, seen", "bits", 3, NULL},
    {"LWM-Text-Chat-1M", "ppl 2K", "nuq2-1%", 8.9, 10.80, "lwm README, seen", "bits", 2, NULL},
    {0},
};

const KvTechnique kv_technique_kvquant = {
    .id = "kvquant",
    .name = "KVQuant",
    .title = "KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
    .paper = "arXiv:2401.18079",
    .code = "github.com/SqueezeAILab/KVQuant",
    .year = 2024,
    .sections = kivi_sections,
    .mechanism =
        "Keys are quantized channel by channel before they are rotated, with ranges learned "
        "offline, so nothing changes as a sequence grows; values are quantized token by token when "
        "they are appended. A code is an index into 2^q uneven levels, found by clustering with "
        "weights that say how much each element matters. The largest hundredth of the elements is "
        "kept exact in a sparse matrix, and the first tokens stay fp16. Decoding looks the codes "
        "up, rotates the keys on the fly and adds what the outliers contribute.",
    .params = kvquant_params,
    .formulas = kvquant_formulas,
    .quality = kvquant_quality,
    .composes = "Goes with weight quantization, grouped heads, paging, prefix sharing (keys do not "
                "know their position yet and their scales are fixed) and eviction. The first "
                "tokens are set apart only where no technique divided the cache before. "
                "Excludes a second quantizer of the same cache and latent attention.",
    .pitfalls =
        "An outlier costs 0.32 bits an element on paper and 0.66 in the released layout. Speedup "
        "stays far from the byte ratio: look-up, rotation and sparse products limit the kernel to "
        "about half the fp16 one's bandwidth, which impl=released takes from the paper's Table 6. "
        "The look-up's price is counted as one operation an element. Long-context retrieval "
        "suffers at 2 bits long before perplexity.",
    .confidence =
        "high: code and READMEs were read, the paper mostly in a text copy, some perplexities in "
        "notes; the CPU round trip of impl=released is recalled",
    .plan = kvquant_plan,
};
