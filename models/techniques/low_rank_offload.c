/* Survey: Token-level Optimization > KV Cache Low-rank Decomposition > Singular Value
 * Decomposition: the part that keeps values on the host. */
#include "models/techniques/build.h"

/* --- ShadowKV --- */

/* Per head: of a chunk's landmark, and of a chosen chunk. */
#define SHADOW_INDEX_BYTES 8.0
/* Slots of the buffer that take up what a prompt leaves over a whole number of chunks, and the
 * first generated tokens. */
#define SHADOW_SPARE_TOKENS 128.0

enum {
  SHADOW_KEYS,
  SHADOW_LANDMARKS,
  SHADOW_BUFFER,
  SHADOW_GENERATED,
  SHADOW_VALUES,
  SHADOW_UNSORTED
};

static double shadow_outliers(const KvTechniqueUse *use) {
  double chunks = kv_technique_value(use, "outlier_chunks");
  return kv_technique_value(use, "chunk") * chunks;
}

/* Tokens that a step attends to beside the generated ones. */
static double shadow_attended(const KvTechniqueUse *use) {
  return kv_technique_value(use, "sparse_budget") + shadow_outliers(use) +
         kv_technique_value(use, "chunk") * kv_technique_value(use, "local_chunks");
}

/* Chosen tokens that the step before had not chosen. */
static double shadow_misses(const KvTechniqueUse *use) {
  return (1.0 - kv_technique_value(use, "hit_rate")) * kv_technique_value(use, "sparse_budget");
}

static void shadow_segments(const KvTechniqueUse *use, const KvAttention *x, double e,
                            KvCache *cache) {
  const KvSegment whole = cache->segments[0];
  double rank = kv_technique_value(use, "rank"), chunk = kv_technique_value(use, "chunk");
  double width = (double)x->n_kv_heads * x->head_dim;
  double landmark = width * e + x->n_kv_heads * SHADOW_INDEX_BYTES;
  KvLaw prompt = kv_law(KV_LAW_FIRST, 0), generated = kv_law(KV_LAW_BEYOND, 0);
  prompt.prompt_share = generated.prompt_share = 1.0;
  KvSegment *keys = &cache->segments[SHADOW_KEYS], *landmarks = &cache->segments[SHADOW_LANDMARKS],
            *buffer = &cache->segments[SHADOW_BUFFER], *grown = &cache->segments[SHADOW_GENERATED],
            *values = &cache->segments[SHADOW_VALUES],
            *unsorted = &cache->segments[SHADOW_UNSORTED];
  cache->n_segments = SHADOW_UNSORTED + 1;
  for (guint s = 0; s < cache->n_segments; s++)
    cache->segments[s] = whole;
  keys->name = "keys, low rank";
  keys->tokens = prompt;
  keys->key_bytes = rank * e; /* one row for all heads */
  keys->value_bytes = 0.0;
  landmarks->name = "landmarks";
  landmarks->tokens = prompt;
  landmarks->tokens.scale = 1.0 / chunk;
  landmarks->key_bytes = landmarks->value_bytes = 0.0;
  landmarks->metadata_bytes = landmark;
  buffer->name = "chosen, outliers and last chunks";
  buffer->tokens = kv_law(KV_LAW_FIXED, shadow_attended(use) + SHADOW_SPARE_TOKENS);
  /* The basis beside them; outliers have no landmarks. */
  buffer->metadata_bytes =
      (rank * width * e - kv_technique_value(use, "outlier_chunks") * landmark) / buffer->tokens.a;
  grown->name = "generated";
  grown->role = KV_ROLE_RECENT;
  grown->tokens = generated;
  values->name = "values";
  values->tokens = prompt;
  values->tier = KV_TIER_DRAM;
  values->key_bytes = 0.0;
  unsorted->name = "not yet decomposed";
  unsorted->tokens = kv_law(KV_LAW_EVICTED, 0);
  unsorted->key_bytes = MAX(0.0, whole.key_bytes - rank * e - landmark / chunk);
}

/* Attention over the buffer, chosen by the landmarks. */
static void shadow_attention(const KvTechniqueUse *use, const KvAttention *x, const KvCache *cache,
                             double e, KvReader *reader) {
  double chunk = kv_technique_value(use, "chunk");
  for (guint s = 0; s < cache->n_segments; s++)
    reader->read[s] = kv_law(KV_LAW_FIXED, 0);
  reader->read[SHADOW_BUFFER] = kv_law(KV_LAW_FIRST, shadow_attended(use));
  reader->read[SHADOW_GENERATED] = cache->segments[SHADOW_GENERATED].tokens;
  /* The product writes a score (fp16) per query head and chunk, the softmax reads and writes it,
   * and the maximum over the group reads it. */
  reader->index_bytes_per_token =
      (x->n_kv_heads * (double)x->head_dim * e + 4.0 * x->n_heads * 2.0) / chunk;
  reader->index_flops_per_token = 2.0 * x->n_heads * x->head_dim / chunk;
  reader->extra_launches +=
      5.0; /* product, softmax, maximum, top-k, comparison with the last one */
}

/* Values of the misses come from the host while their keys are rebuilt from their rows: every KV
 * head chooses for itself, so a row is gathered for each. */
static KvReader shadow_fetch(const KvTechniqueUse *use, const KvAttention *x, const KvCache *cache,
                             const KvReader *attention) {
  KvReader fetch = *attention;
  for (guint s = 0; s < cache->n_segments; s++)
    fetch.read[s] = kv_law(KV_LAW_FIXED, 0);
  fetch.read[SHADOW_KEYS] = fetch.read[SHADOW_VALUES] = kv_law(KV_LAW_FIRST, shadow_misses(use));
  fetch.read[SHADOW_KEYS].scale = x->n_kv_heads;
  fetch.flops_per_token = 0.0;
  fetch.index_bytes_per_token = fetch.index_flops_per_token = 0.0;
  fetch.extra_launches = 2.0; /* gathering values, moving hits; the product itself is the kernel */
  fetch.overlap = KV_OVERLAP_REBUILD;
  fetch.rebuild_rank = kv_technique_value(use, "rank");
  fetch.rebuild_width = (double)x->n_kv_heads * x->head_dim;
  /* Rows and values count as half a token each: (Hkv + 1) / 2 tokens a miss. */
  fetch.rebuild_share = 2.0 / (x->n_kv_heads + 1.0);
  return fetch;
}

static void shadow_work(const KvTechniqueUse *use, KvPlan *plan, const KvCache *cache,
                        const KvAttention *x) {
  double layers = cache->layers, e = plan->element_bytes;
  double keys = (double)x->n_kv_heads * x->head_dim,
         values = (double)x->n_kv_heads * x->value_head_dim;
  double hits = kv_technique_value(use, "hit_rate") * kv_technique_value(use, "sparse_budget");
  /* Decomposing [n, Hkv d] in fp32: about 4 n (Hkv d)^2 operations. Table 12 has 26.6 ms a layer at
   * 128K on an A100, whose 19.5 TFLOP/s would take 28 ms for them. Landmarks: a mean; outliers: a
   * product and two norms. */
  kv_plan_add_work(plan, (KvWork){.name = "decompose the keys, choose landmarks and outliers",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * (4.0 * keys * keys + 4.0 * keys),
                                  .bytes_per_token = layers * keys * 3.0 * e,
                                  .launches = layers * 6.0,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "move what was chosen before",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .bytes = layers * 2.0 * hits * (keys + values) * e,
                                  .launches = 1.0,
                                  .critical = TRUE});
}

static gboolean shadow_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  double rank = kv_technique_value(use, "rank"), width = (double)x->n_kv_heads * x->head_dim;
  if (rank >= width)
    return kv_technique_refuse(use, error,
                               "rank is %g, but a token's keys in %s have %g elements, expected a "
                               "lower rank",
                               rank, model->id, width);
  if (!kv_cache_undivided(use, cache, FALSE, error) || !kv_cache_claim_read(use, cache, error))
    return FALSE;
  shadow_segments(use, x, plan->element_bytes, cache);
  guint n_readers = plan->readers->len;
  for (guint r = 0; r < n_readers; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != index)
      continue;
    shadow_attention(use, x, cache, plan->element_bytes, reader);
    KvReader fetch = shadow_fetch(use, x, cache, reader);
    g_array_append_val(plan->readers, fetch);
  }
  shadow_work(use, plan, cache, x);
  return TRUE;
}

static gboolean shadow_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                            GError **error) {
  double budget = kv_technique_value(use, "sparse_budget"),
         chunk = kv_technique_value(use, "chunk");
  if (budget < chunk)
    return kv_technique_refuse(
        use, error, "sparse_budget is %g, expected at least one chunk of %g tokens", budget, chunk);
  if (!kv_plan_each_full_cache(use, model, plan, shadow_cache, error))
    return FALSE;
  plan->prefill_peak_layers = 1.0; /* a layer is decomposed before the next one begins */
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const KvParam shadow_params[] = {
    {"rank", KV_PARAM_INTEGER, 160, 64, 256, NULL, "",
     "of the keys' decomposition over all KV heads of a layer together"},
    {"chunk", KV_PARAM_INTEGER, 8, 1, 64, NULL, "tokens",
     "of one landmark, and the unit of choice and transfer"},
    {"sparse_budget", KV_PARAM_INTEGER, 2048, 8, 65536, NULL, "tokens",
     "chosen per KV head; the paper takes 1.56 % of the context: 1024 at 60K, 2048 at 122K, 4096 at 244K"},
    {"outlier_chunks", KV_PARAM_INTEGER, 48, 0, 1024, NULL, "chunks",
     "per KV head, kept exactly on the GPU; 24 per 1024 of budget in the code"},
    {"local_chunks", KV_PARAM_INTEGER, 4, 0, 1024, NULL, "chunks",
     "last ones of the prompt, kept exactly on the GPU"},
    {"hit_rate", KV_PARAM_REAL, 0.6, 0, 1, NULL, "fraction",
     "of the chosen chunks that the step before had chosen too; 0.5 to 0.75, depends on the text"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula shadow_formulas[] = {
    {"p*r*e + r*Hkv*d*e + (p/c - O)*Hkv*(d*e + 8) + 2*Hkv*d*e*(B + c*(O+l) + 128 + g)",
     "bytes on the GPU per layer: rows, basis, landmarks, buffer; c chunk, O outlier and l local chunks, "
     "B budget"},
    {"p*Hkv*d*e", "bytes in host memory per layer"},
    {"(1-a)*B*Hkv*d*e", "bytes fetched per layer and step, hit rate a"},
    {"Hkv*(n/c)*d*e + 8*H*n/c + (1-a)*B*Hkv*(r+d)*e + r*Hkv*d*e + 2*Hkv*d*e*(B + c*(O+l) + g)",
     "HBM bytes per layer and step: landmarks, scores, rows and arriving values, basis, attention"},
    {"2*H*d*n/c + 2*(1-a)*B*Hkv*r*d + 4*H*d*(B + c*(O+l) + g)",
     "FLOPs of a step per layer: landmarks, rebuilding, attention"},
    {"4*p*(Hkv*d)^2", "FLOPs (fp32) per layer to decompose the keys"},
    {NULL, NULL},
};

static const KvQualityPoint shadow_quality[] = {
    {"Llama-3-8B-1M", "RULER 128K avg", "1.56 % budget", 86.68, 86.88, "Table 1, seen",
     "sparse_budget", 2048, NULL},
    {"GLM-4-9B-1M", "RULER 128K avg", "1.56 % budget", 86.82, 85.62, "Table 1, seen",
     "sparse_budget", 2048, NULL},
    {"Llama-3.1-8B", "RULER 128K avg", "1.56 % budget", 85.53, 83.57, "Table 1, seen",
     "sparse_budget", 2048, NULL},
    {"Llama-3-8B-1M", "LongBench avg", "budget 256", 39.86, 39.94, "Table 1, seen", "sparse_budget",
     256, NULL},
    {"Llama-3.1-8B", "LongBench avg", "budget 256", 48.96, 48.13, "Table 1, seen", "sparse_budget",
     256, NULL},
    {"Llama-3-8B-1M", "RULER 128K avg, by outliers", "0 outlier chunks", 86.68, 74.05,
     "Table 15, seen", "outlier_chunks", 0, NULL},
    {"Llama-3-8B-1M", "RULER 128K avg, by outliers", "8 outlier chunks", 86.68, 86.22,
     "Table 15, seen", "outlier_chunks", 8, NULL},
    {0},
};

static const char *const shadow_sections[] = {
    "Token-level Optimization > KV Cache Low-rank Decomposition > Singular Value Decomposition",
    NULL};

const KvTechnique kv_technique_shadowkv = {
    .id = "shadowkv",
    .name = "ShadowKV",
    .title = "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference",
    .paper = "arXiv:2410.21465",
    .code = "github.com/bytedance/ShadowKV",
    .year = 2024,
    .sections = shadow_sections,
    .mechanism =
        "Keys before rotation have low rank. When a prompt is done, its keys of all heads of a layer are "
        "decomposed into a short row per token and a basis, which stay on the GPU, and the values move to "
        "the host. Chunks of keys leave their mean as a landmark; the chunks whose mean stands for them "
        "worst, and the last ones, stay on the GPU as they are.\n\n"
        "In a step the query meets the landmarks, and the best chunks of each KV head are chosen. "
        "Those chosen in the step before are there already and are only moved. For the others the values "
        "are fetched from the host while the keys are rebuilt from rows and basis and rotated. Attention "
        "is exact over chosen, outlying, last and generated tokens; generated ones stay whole.",
    .params = shadow_params,
    .formulas = shadow_formulas,
    .quality = shadow_quality,
    .composes =
        "Goes with grouped heads, fused attention and weight quantization. The decomposition is of one prompt, "
        "so prefixes are not shared. Excludes other techniques that choose, move or quantize the "
        "cache, and latent attention; tensor parallelism would repeat the rows on every GPU.",
    .pitfalls =
        "Fetching decides a step, and the link is one for the whole batch, so throughput levels off. Stages "
        "of a layer follow one another but for rebuilding and fetching. Generated tokens are never moved: "
        "long answers eat the saving. A prompt that is computed in chunks is on the GPU as a whole "
        "until its end. The authors leave prompts below 4K alone; here they are treated like others.",
    .confidence =
        "high: code, kernels, tables and the breakdown of a layer's time were read; the count of "
        "operations of the decomposition is derived and agrees with the table",
    .plan = shadow_plan,
};
