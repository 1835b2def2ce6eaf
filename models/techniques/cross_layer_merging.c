/* Survey: Token-level Optimization > KV Cache Merging > Cross-layer Merging. */
#include <math.h>

#include "models/techniques/build.h"

/* --- MiniCache --- */

enum { MINICACHE_GROUP = 32 }; /* elements that share a scale and a minimum, as KIVI's */

typedef struct {
  double exempt; /* share of tokens whose pair stays apart */
  double bits;
  gboolean restores_apart;
} MiniCache;

static gboolean minicache_accepts(const KvTechniqueUse *use, const KvModel *model,
                                  const KvPlan *plan, guint i, GError **error) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  if (kv_plan_attention(model, cache)->kind == KV_ATTENTION_LATENT)
    return kv_technique_refuse(use, error,
                               "the latent cache of %s has no keys and values whose directions "
                               "could be shared, expected full or sliding attention",
                               model->id);
  if (kv_cache_is_cut(cache))
    return kv_technique_refuse(use, error,
                               "the tokens that are left differ between the layers of a pair, "
                               "expected minicache before the technique that selects them");
  for (guint s = 0; s < cache->n_segments; s++) {
    const KvSegment *segment = &cache->segments[s];
    if (segment->quantizer)
      return kv_technique_refuse(use, error,
                                 "segment '%s' of the cache is already quantized by %s, expected "
                                 "minicache before it",
                                 segment->name, segment->quantizer);
    if (segment->tokens.kind == KV_LAW_FIXED)
      return kv_technique_refuse(use, error,
                                 "the cache '%s' has slots whose number differs by head, expected "
                                 "one entry per token",
                                 cache->name);
  }
  for (guint r = 0; r < plan->readers->len; r++) {
    const KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache == i && reader->layers != cache->layers)
      return kv_technique_refuse(
          use, error,
          "layers of %s share a cache already, expected one of their own for "
          "each layer",
          model->id);
  }
  return TRUE;
}

/* One stored entry stands for two layers: a common direction, both norms of keys and of values, and
 * both originals of exempt tokens with their index. */
static gboolean minicache_cache(const KvTechniqueUse *use, const MiniCache *m, double e,
                                KvCache *cache, GError **error) {
  cache->name = "merged pairs";
  cache->layers /= 2;
  for (guint s = 0; s < cache->n_segments; s++) {
    KvSegment *segment = &cache->segments[s];
    double parts = (segment->key_bytes > 0.0) + (segment->value_bytes > 0.0);
    if (parts == 0.0)
      continue;
    segment->key_bytes *= 1.0 + 2.0 * m->exempt;
    segment->value_bytes *= 1.0 + 2.0 * m->exempt;
    segment->metadata_bytes += 2.0 * 2.0 * parts + 4.0 * m->exempt;
    if (m->bits < 16.0) {
      if (!kv_segment_quantize(use, segment, KV_DTYPE_INT4, error))
        return FALSE;
      double elements = (segment->key_bytes + segment->value_bytes) / e;
      segment->key_bytes *= m->bits / 8.0 / e;
      segment->value_bytes *= m->bits / 8.0 / e;
      segment->metadata_bytes += elements * 4.0 / MINICACHE_GROUP;
    }
  }
  return TRUE;
}

static void minicache_reader(const MiniCache *m, double e, const KvAttention *x, KvReader *reader) {
  double elements = (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
  /* Each layer of a pair reads the direction, and its own of the two originals. */
  reader->read_bytes_scale *= (1.0 + m->exempt) / (1.0 + 2.0 * m->exempt);
  reader->flops_per_token += elements * (m->bits < 16.0 ? 3.0 : 1.0);
  if (m->bits < 16.0)
    reader->format = KV_DTYPE_INT4;
  if (m->restores_apart) {
    reader->extra_bytes_per_token += 2.0 * elements * e;
    reader->extra_launches += 2.0;
  }
}

/* A dot product, two norms, an angle and a weighted sum: 10 operations an element of one layer. */
static void minicache_work(const KvCache *cache, const KvAttention *x, KvPlan *plan) {
  double elements = (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
  KvWork work = {.name = "merge the new token's pairs",
                 .moment = KV_MOMENT_DECODE_STEP,
                 .flops = cache->layers * 10.0 * elements,
                 .bytes = cache->layers * 3.0 * elements * plan->element_bytes,
                 .launches = cache->layers,
                 .critical = TRUE};
  kv_plan_add_work(plan, work);
  work.name = "merge the prompt's pairs";
  work.moment = KV_MOMENT_PREFILL_TOKEN;
  kv_plan_add_work(plan, work);
}

/* Layers of the cache that are merged, an even number: its share of the layers from S on. */
static guint minicache_merged(const KvCache *cache, guint first, guint layers) {
  double share = (double)(layers - first) / layers;
  return (guint)(share * cache->layers / 2.0) * 2;
}

static gboolean minicache_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                               GError **error) {
  double s = kv_technique_value(use, "S");
  guint layers = kv_model_layers(model), first = s < 0.0 ? layers / 2 : (guint)s;
  MiniCache m = {.exempt = kv_technique_value(use, "gamma"),
                 .bits = kv_technique_choice_number(use, "bits"),
                 .restores_apart = kv_technique_value(use, "restore") == 1.0};
  if (first >= layers)
    return kv_technique_refuse(use, error, "S is %u, expected less than the %u layers of %s", first,
                               layers, model->id);
  guint n = plan->caches->len, pairs = 0;
  for (guint i = 0; i < n; i++) {
    const KvCache *whole = &g_array_index(plan->caches, KvCache, i);
    guint merged = whole->n_segments > 0 ? minicache_merged(whole, first, layers) : 0;
    if (merged == 0)
      continue;
    if (!minicache_accepts(use, model, plan, i, error))
      return FALSE;
    guint at = merged < whole->layers ? kv_plan_split_layers(plan, i, merged) : i;
    KvCache *cache = &g_array_index(plan->caches, KvCache, at);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (!minicache_cache(use, &m, plan->element_bytes, cache, error))
      return FALSE;
    minicache_work(cache, x, plan);
    for (guint r = 0; r < plan->readers->len; r++) {
      KvReader *reader = &g_array_index(plan->readers, KvReader, r);
      if (reader->cache == at)
        minicache_reader(&m, plan->element_bytes, x, reader);
    }
    pairs += cache->layers;
  }
  if (pairs == 0)
    return kv_technique_refuse(use, error,
                               "%s has no two layers with a KV cache from layer %u on, expected a "
                               "smaller S",
                               model->id, first);
  plan->prefill_peak_layers = MIN(plan->prefill_peak_layers, 2.0);
  if (m.exempt > 0.0) { /* thresholds are of the whole sequence */
    plan->shareable = FALSE;
    plan->unshareable_by = use->technique->id;
  }
  return TRUE;
}

static const char *const minicache_bits[] = {"4", "16", NULL};
static const char *const restores[] = {"fused", "apart", NULL};

static const KvParam minicache_params[] = {
    {"S", KV_PARAM_INTEGER, -1, -1, 1000, NULL, "layer",
     "first layer that is merged; -1: half of them"},
    {"t", KV_PARAM_REAL, 0.6, 0, 1, NULL, "",
     "how far the common direction leans to the deeper layer; quality only"},
    {"gamma", KV_PARAM_REAL, 0.05, 0, 1, NULL, "fraction",
     "of the range of distances that counts as too far apart to merge, and about the share of tokens "
     "that are so"},
    {"bits", KV_PARAM_CHOICE, 1, 0, 1, minicache_bits, "bit",
     "width of what is stored of merged pairs, with a scale and a minimum per 32 elements; the "
     "headline figures take 4 bits"},
    {"restore", KV_PARAM_CHOICE, 0, 0, 1, restores, "",
     "fused: keys and values are scaled inside the attention kernel; apart: they are written and "
     "read once more"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula minicache_formulas[] = {
    {"n*2*Hkv*d*e*(S + (L-S)/2 + f*(L-S))",
     "bytes of the cache: 0.775 of all at S = L/2, f = 0.05"},
    {"n*(8 + 4*f)*(L-S)/2", "bytes of norms and of the exempt tokens' indices"},
    {"n*2*Hkv*d*e*(S + (1+f)*(L-S))", "HBM bytes that a decode step reads: no fewer than before"},
    {"2*n*Hkv*d per merged layer", "multiplications that restore keys and values"},
    {"20*Hkv*d per pair and token", "operations to merge"},
    {NULL, NULL},
};

static const KvQualityPoint minicache_quality[] = {
    {"Llama-2-7B-Chat", "LongBench avg (7 tasks)", "4-bit, 5.02x", 36.41, 35.44, "Table 1, seen",
     "bits", 4, NULL},
    {"Llama-2-13B-Chat", "LongBench avg", "4-bit, 5.02x", 32.71, 32.61, "Table 1, seen", "bits", 4,
     NULL},
    {"Mistral-7B", "LongBench avg", "4-bit, 5.02x", 37.33, 35.75, "Table 1, seen", "bits", 4, NULL},
    {"Mistral-7B-Instruct", "LongBench avg", "4-bit, 5.02x", 48.32, 46.99, "Table 1, seen", "bits",
     4, NULL},
    {"LLaMA-2-7B", "GSM8K", "gamma=0", 0.159, 0.108, "Table 2 via note, seen", "gamma", 0, NULL},
    {"LLaMA-2-7B", "GSM8K", "gamma=0.05", 0.159, 0.152, "Table 2 via note, seen", "gamma", 0.05,
     NULL},
    {"LLaMA-2-7B", "GSM8K", "gamma=1", 0.159, 0.159, "Table 2 via note, seen", "gamma", 1, NULL},
    {"LLaMA-2-7B", "COQA", "gamma=0", 0.643, 0.603, "Table 2 via note, seen", "gamma", 0, NULL},
    {"LLaMA-2-7B", "COQA", "gamma=0.05", 0.643, 0.647, "Table 2 via note, seen", "gamma", 0.05,
     NULL},
    {0},
};

static const char *const minicache_sections[] = {
    "Token-level Optimization > KV Cache Merging > Cross-layer Merging", NULL};

const KvTechnique kv_technique_minicache = {
    .id = "minicache",
    .name = "MiniCache",
    .title = "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models",
    .paper = "arXiv:2405.14366",
    .code = "github.com/AkideLiu/MiniCache",
    .year = 2024,
    .sections = minicache_sections,
    .mechanism =
        "From layer S on, layers are taken two by two. For each token, keys and values apart, the "
        "two layers' vectors are reduced to one direction between them and their two norms; each "
        "layer gets its own back by scaling the direction. Tokens whose two vectors point too far "
        "apart keep both originals. A layer of the prompt waits uncompressed until its partner is "
        "done; a new token's pair is merged after the second layer.",
    .params = minicache_params,
    .formulas = minicache_formulas,
    .quality = minicache_quality,
    .composes = "Goes with grouped heads, paging, and a quantizer (kivi) or an eviction that comes "
                "after it. Refuses a cache that is quantized, selected from or shared by layers "
                "already, and latent attention. Ends prefix sharing unless gamma is 0, because "
                "what is too far apart depends on the whole sequence.",
    .pitfalls =
        "The published 5x is a quantizer's 3.95x times 1.27x, and a larger batch. Merging saves "
        "memory, not traffic: both layers read the common direction. With S at half the layers "
        "at most a quarter of the cache is saved. Pairs must not lie on two pipeline stages.",
    .confidence = "high: the project's tables and a detailed note were read; no inference code is "
                  "published",
    .executed = TRUE, /* bits=16, restore=fused */
    .plan = minicache_plan,
};
