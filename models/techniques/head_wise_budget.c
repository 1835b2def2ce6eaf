/* Survey: Token-level Optimization > KV Cache Budget Allocation > Head-wise Budget Allocation. */
#include <string.h>

#include "models/techniques/build.h"

/* --- LeanKV (DiffKV) --- */

/* A token's entry of one head: score (fp32) and position, and per group an fp16 scale and an fp16
 * minimum. */
#define LEANKV_SCORE_BYTES 4.0
#define LEANKV_PLACE_BYTES 8.0
#define LEANKV_SCALE_BYTES 4.0
#define LEANKV_SCORED_QUERIES 64.0

typedef struct {
  double key, value, metadata; /* bytes per token of all KV heads */
} Entry;

/* "8-4": bits of keys and of values. */
static Entry leankv_entry(const KvTechniqueUse *use, const KvAttention *x, const char *format) {
  double heads = x->n_kv_heads;
  double scales = kv_technique_value(use, "key_groups") + kv_technique_value(use, "value_groups");
  return (Entry){heads * x->head_dim * (format[0] - '0') / 8.0,
                 heads * x->value_head_dim * (format[2] - '0') / 8.0,
                 heads * (LEANKV_SCALE_BYTES * scales + LEANKV_PLACE_BYTES)};
}

static double entry_bytes(const Entry *entry) {
  return entry->key + entry->value + entry->metadata;
}

static const char *const high_formats[] = {"8-8", "8-4", "8-2", "4-4", NULL};
static const char *const low_formats[] = {"8-4", "8-2", "4-4", "4-2", "4-1", NULL};

static gboolean leankv_part(const KvTechniqueUse *use, const KvSegment *whole, const char *name,
                            KvRole role, KvLaw law, double share, const Entry *entry,
                            KvDtype format, KvCache *cache, GError **error) {
  KvSegment *x = &cache->segments[cache->n_segments++];
  *x = *whole;
  x->name = name;
  x->role = role;
  x->tokens = law;
  x->tokens.scale = share * whole->tokens.scale;
  x->key_bytes = entry->key;
  x->value_bytes = entry->value;
  x->metadata_bytes = entry->metadata;
  return kv_segment_quantize(use, x, format, error);
}

static gboolean leankv_segments(const KvTechniqueUse *use, const KvAttention *x, KvCache *cache,
                                GError **error) {
  const KvSegment whole = cache->segments[0];
  double buffer = kv_technique_value(use, "kv_buffer"),
         high_share = kv_technique_value(use, "high_share"),
         low_share = kv_technique_value(use, "low_share");
  Entry high = leankv_entry(use, x, high_formats[(guint)kv_technique_value(use, "high")]);
  Entry low = leankv_entry(use, x, low_formats[(guint)kv_technique_value(use, "low")]);
  double precisions =
      (high_share > 0.0 || buffer > 0.0 ? 1.0 : 0.0) + (low_share > 0.0 ? 1.0 : 0.0);
  double kept = high_share + low_share;
  /* The prompt first gets high-precision entries for all of its tokens; the surplus goes back once
   * they are sorted. */
  Entry surplus = {MAX(0.0, high.key - high_share * high.key - low_share * low.key),
                   MAX(0.0, high.value - high_share * high.value - low_share * low.value),
                   (1.0 - kept) * high.metadata};
  Entry page = {0.0, 0.0, x->n_kv_heads * kv_technique_value(use, "page_bytes") / 2.0 * precisions};
  KvLaw beyond = kv_law(KV_LAW_BEYOND, buffer);
  cache->n_segments = 0;
  return leankv_part(use, &whole, "high precision", KV_ROLE_MIDDLE, beyond, high_share, &high,
                     KV_DTYPE_INT8, cache, error) &&
         leankv_part(use, &whole, "low precision", KV_ROLE_MIDDLE, beyond, low_share, &low,
                     KV_DTYPE_INT4, cache, error) &&
         leankv_part(use, &whole, "recent, high precision", KV_ROLE_RECENT,
                     kv_law(KV_LAW_LAST, buffer), 1.0, &high, KV_DTYPE_INT8, cache, error) &&
         leankv_part(use, &whole, "not yet sorted", KV_ROLE_MIDDLE, kv_law(KV_LAW_EVICTED, 0), 1.0,
                     &surplus, KV_DTYPE_INT8, cache, error) &&
         leankv_part(use, &whole, "half a page per head and precision", KV_ROLE_MIDDLE,
                     kv_law(KV_LAW_FIXED, 1), 1.0 / whole.tokens.scale, &page, KV_DTYPE_INT8, cache,
                     error);
}

static void leankv_work(const KvTechniqueUse *use, KvPlan *plan, const KvCache *cache,
                        const KvAttention *x) {
  double layers = cache->layers, kv_heads = x->n_kv_heads;
  double width = kv_heads * ((double)x->head_dim + x->value_head_dim), e = plan->element_bytes;
  Entry high = leankv_entry(use, x, high_formats[(guint)kv_technique_value(use, "high")]);
  Entry low = leankv_entry(use, x, low_formats[(guint)kv_technique_value(use, "low")]);
  kv_plan_add_work(plan, (KvWork){.name = "score the prompt by its last queries",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * 2.0 * x->n_heads *
                                                     LEANKV_SCORED_QUERIES * x->head_dim,
                                  .bytes_per_token = layers * kv_heads * x->head_dim * e,
                                  .launches = layers,
                                  .matrix = TRUE,
                                  .critical = TRUE});
  /* A bitonic sort passes over the scores about log2(n)^2 / 2 times: 98 at n = 16384. */
  kv_plan_add_work(plan, (KvWork){.name = "sort, quantize and compact the prompt",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * (98.0 * kv_heads + 8.0 * width),
                                  .bytes_per_token = layers * (width * e + entry_bytes(&high)),
                                  .launches = layers * 3.0,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "requantize a token per head",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .flops = layers * 8.0 * width,
                                  .bytes = layers * (entry_bytes(&high) + entry_bytes(&low)),
                                  .launches = layers,
                                  .critical = TRUE});
  /* One prefix sum over all heads and layers, and the free list's two cuts. */
  kv_plan_add_work(plan, (KvWork){.name = "allocate and free pages",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .bytes = layers * kv_heads * 8.0,
                                  .launches = 3.0,
                                  .critical = TRUE});
}

static gboolean leankv_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  Entry high = leankv_entry(use, x, high_formats[(guint)kv_technique_value(use, "high")]);
  double page = kv_technique_value(use, "page_bytes"), entry = entry_bytes(&high) / x->n_kv_heads;
  if (page < entry)
    return kv_technique_refuse(use, error,
                               "page_bytes is %g, but one token of a head takes %g bytes in %s, "
                               "expected at least one token a page",
                               page, entry, model->id);
  if (!kv_cache_claim_kept(use, cache, error) || !kv_cache_undivided(use, cache, FALSE, error) ||
      !leankv_segments(use, x, cache, error))
    return FALSE;
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != index)
      continue;
    for (guint s = 0; s < cache->n_segments; s++)
      reader->read[s] = s < 3 ? cache->segments[s].tokens : kv_law(KV_LAW_FIXED, 0);
    reader->format = KV_DTYPE_INT8;
    /* Scores and positions come with the entries; scores are written back. Dequantization: two
     * operations per element; a comparison per head for the least score. */
    reader->extra_bytes_per_token += x->n_kv_heads * LEANKV_SCORE_BYTES;
    reader->flops_per_token +=
        2.0 * x->n_kv_heads * ((double)x->head_dim + x->value_head_dim + 1.0);
    reader->extra_launches += 1.0;
  }
  leankv_work(use, plan, cache, x);
  return TRUE;
}

static gboolean leankv_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                            GError **error) {
  double high = kv_technique_value(use, "high_share"), low = kv_technique_value(use, "low_share");
  if (high + low <= 0.0 || high + low > 1.0)
    return kv_technique_refuse(use, error,
                               "high_share and low_share add up to %g, expected more than 0 and at "
                               "most 1",
                               high + low);
  if (strcmp(high_formats[(guint)kv_technique_value(use, "high")],
             low_formats[(guint)kv_technique_value(use, "low")]) <= 0)
    return kv_technique_refuse(use, error,
                               "high is %s and low is %s, expected fewer bits for the latter",
                               high_formats[(guint)kv_technique_value(use, "high")],
                               low_formats[(guint)kv_technique_value(use, "low")]);
  if (!plan->paged)
    return kv_technique_refuse(use, error,
                               "pages per head exclude contiguous memory, expected a paged plan");
  if (!kv_plan_each_full_cache(use, model, plan, leankv_cache, error))
    return FALSE;
  plan->fused_attention = FALSE;
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const KvParam leankv_params[] = {
    {"alpha_h", KV_PARAM_REAL, 1.0, 0, 5, NULL, "x uniform attention",
     "below it a token is stored in low precision: 1.0 Llama-3, 0.04 Qwen2.5-7B, 3.0 Qwen2.5-32B and "
     "QwQ-32B; quality only, what it keeps is high_share"},
    {"alpha_l", KV_PARAM_REAL, 0.02, 0, 0.2, NULL, "x uniform attention",
     "below it a token is dropped: 0.02 Llama-3-8B, 0.04 Qwen2.5-7B, 0 for 32B and 70B; quality only, "
     "what it keeps is high_share and low_share"},
    {"kv_buffer", KV_PARAM_INTEGER, 64, 1, 1024, NULL, "tokens",
     "latest tokens, always in high precision"},
    {"high_share", KV_PARAM_REAL, 0.5, 0, 1, NULL, "fraction of tokens",
     "expected share of older tokens in high precision, as the mean of the heads"},
    {"low_share", KV_PARAM_REAL, 0.3, 0, 1, NULL, "fraction of tokens",
     "expected share in low precision; the rest is dropped. With 0.5 and 0.3 a long cache takes 27 % of "
     "fp16, amid the published 15 to 37 %; the split between the two is not published"},
    {"high", KV_PARAM_CHOICE, 1, 0, 3, high_formats, "bits of K-V", "high precision"},
    {"low", KV_PARAM_CHOICE, 3, 0, 4, low_formats, "bits of K-V", "low precision"},
    {"key_groups", KV_PARAM_INTEGER, 1, 1, 4, NULL, "groups",
     "scales and minima per token and head of keys"},
    {"value_groups", KV_PARAM_INTEGER, 1, 1, 4, NULL, "groups", "the same of values"},
    {"page_bytes", KV_PARAM_INTEGER, 6784, 256, 1048576, NULL, "bytes",
     "page of one head and one precision; 6784 holds 32 K8V4 or 60 K4V2 tokens of head size 128"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula leankv_formulas[] = {
    {"B = (k+v)*d/8 + 4*(gk+gv) + 8",
     "bytes of a token and head at k and v bits: 208 for K8V4 and 112 for K4V2 at d = 128, of 512"},
    {"L*Hkv*(B_hi*(w + f_h*(n-w)) + B_lo*f_l*(n-w)) + L*Hkv*page",
     "bytes of the cache: w recent tokens, shares f_h and f_l of the others, half a page per head and "
     "precision"},
    {"L*Hkv*B_hi*p", "bytes of the prompt until it is sorted"},
    {"L*Hkv*(bytes of the kept entries + 4 per token)",
     "HBM bytes that a decode step reads, and scores that it writes back"},
    {"4*L*H*d*m + 2*L*Hkv*(2*d+1)*m",
     "FLOPs of a step over m kept tokens: attention, unpacking, least "
     "score"},
    {"2*L*H*64*p*d", "FLOPs to score the prompt by its last 64 queries"},
    {NULL, NULL},
};

static const KvQualityPoint leankv_quality[] = {
    {"non-thinking models (average)", "reasoning and coding suites, relative",
     "19.3-36.7% of fp16 memory", 100, 99.7, "DiffKV paper, evaluation, seen (relative)", NULL, 0,
     NULL},
    {"Llama-3.1-8B, Qwen2.5-7B", "LongBench, relative", "14.9% and 27.0% of fp16 memory", 100, 99.6,
     "DiffKV paper, evaluation, seen (relative)", NULL, 0, NULL},
    {0},
};

static const char *const leankv_sections[] = {
    "Token-level Optimization > KV Cache Budget Allocation > Head-wise Budget Allocation",
    "System-level Optimization > Memory Management > Architectural Design", NULL};

const KvTechnique kv_technique_leankv = {
    .id = "leankv",
    .name = "LeanKV (DiffKV)",
    .title = "Unifying KV Cache Compression for Large Language Models with LeanKV",
    .paper = "arXiv:2412.03131",
    .code = "github.com/zyqCSL/DiffKV",
    .year = 2024,
    .sections = leankv_sections,
    .mechanism =
        "Every head of every request sorts its tokens into three: important ones are stored with 8-bit "
        "keys and 4-bit values, less important ones with 4 and 2 bits, the rest is dropped. Importance is "
        "the attention a token drew, the highest of the group's queries, averaged over the queries "
        "that could see it, against what uniform attention would give. The latest tokens are always "
        "stored high.\n\n"
        "In a decode step each head looks for its least important old token in high and in low "
        "precision. In this order: a token below the pruning bound is overwritten by the new one; below "
        "the precision bound it is requantized onto a prunable low entry, or else onto a new low entry, "
        "and the new one takes its place; otherwise the new one is appended.\n\n"
        "Memory is one pool of pages of equal bytes. A page holds one head's tokens of one precision; a "
        "head's table fills from the left with high pages and from the right with low ones. The free "
        "list and all allocations live on the GPU and are cut by prefix sums over all heads at once.\n\n"
        "How many tokens end where depends on request and head; the plan holds expected shares.",
    .params = leankv_params,
    .formulas = leankv_formulas,
    .quality = leankv_quality,
    .composes =
        "Goes with continuous batching, tensor parallelism, weight quantization and grouped heads. It is "
        "selection, quantization and paging in one, so it excludes other techniques of these kinds, "
        "contiguous memory and latent attention, and it ends prefix sharing. Needs Ada or Hopper.",
    .pitfalls =
        "16 bytes of metadata per token and head are 14 % of a K4V2 entry. Every head holds at least a "
        "page per precision: 1.7 MB a sequence of an 8B model. The prompt is first stored in high "
        "precision, which bounds admission. Nearly all of the gain in throughput is batch, so it depends "
        "on what the weights leave of the card's memory. The prompt's unsorted cache is counted up to "
        "kv_buffer tokens too high.",
    .confidence =
        "high: formats, thresholds and allocator of the code and the paper's evaluation were read; "
        "per-task tables in part; the shares of tokens by precision are an assumption",
    .plan = leankv_plan,
};
