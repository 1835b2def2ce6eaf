/* Survey: System-level Optimization > Memory Management > Prefix-aware Design. */
#include "models/techniques/build.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- ChunkAttention --- */

/* Phase one leaves, for each chunk and each of its sequences and heads, an output in the cache's
 * type and two fp32 numbers (row maximum and sum), which phase two reads: per token of shared
 * context 2 H (d e + 8) / c bytes. */
static double partial_bytes(const KvTechniqueUse *use, const KvAttention *x, double e) {
  return 2.0 * x->n_heads * (x->value_head_dim * e + 8.0) / kv_technique_value(use, "c");
}

static gboolean chunkattention_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                    GError **error) {
  guint whole = 0;
  if (!plan->shareable)
    return kv_technique_refuse(use, error,
                               "equal prefixes do not have equal caches (%s), expected caches that "
                               "can be shared",
                               plan->unshareable_by ? plan->unshareable_by : "recurrent state");
  for (guint r = 0; r < plan->readers->len; r++) {
    const KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    const KvCache *cache = &g_array_index(plan->caches, KvCache, reader->cache);
    if (cache->n_segments == 0)
      continue;
    if (reader->processor != KV_PROCESSOR_GPU)
      return kv_technique_refuse(
          use, error,
          "the cache '%s' is not read on the GPU, where the two-phase kernel "
          "runs, expected attention on the GPU",
          cache->name);
    for (guint s = 0; s < cache->n_segments; s++)
      if (cache->segments[s].tier != KV_TIER_HBM)
        return kv_technique_refuse(use, error,
                                   "segment '%s' is on %s, expected a cache that is wholly in HBM",
                                   cache->segments[s].name, kv_tier_names[cache->segments[s].tier]);
    whole += reader->read[0].kind == KV_LAW_ALL;
    plan->shared_partial_bytes =
        partial_bytes(use, kv_plan_attention(model, cache), plan->element_bytes);
  }
  if (whole == 0)
    return kv_technique_refuse(use, error,
                               "no layer of %s reads its whole context, expected full attention to "
                               "share prefixes in",
                               model->id);
  plan->reads_shared_once = TRUE;
  plan->shared_readers_over = (guint)kv_technique_value(use, "tpp_threshold");
  return TRUE;
}

static gboolean chunkattention_engine(const KvTechniqueUse *use, const KvModel *model,
                                      KvEngineConfig *config, GError **error) {
  (void)model;
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("vllm-v1");
  config->allocator = g_intern_static_string("paged");
  config->block_tokens = (guint)kv_technique_value(use, "c");
  config->memory_utilization = kv_technique_value(use, "memory");
  config->max_seqs = (guint)kv_technique_value(use, "max_batch");
  config->prefix_caching = config->merge_duplicates = TRUE;
  config->retained_blocks = 0;
  config->async_scheduling = config->chunked_prefill = FALSE;
  return TRUE;
}

static const KvParam chunkattention_params[] = {
    {"c", KV_PARAM_INTEGER, 64, 16, 512, NULL, "tokens", "tokens of a chunk, a node of the tree"},
    {"tpp_threshold", KV_PARAM_INTEGER, 1, 1, 4096, NULL, "sequences",
     "chunks that more sequences than this share are read once, in the chunk-first phase"},
    {"memory", KV_PARAM_REAL, 0.8, 0.01, 1, NULL, "fraction",
     "of the GPU's memory that weights, activations and the pool of chunks may take; the authors' is "
     "of what the weights leave"},
    {"max_batch", KV_PARAM_INTEGER, 32, 1, 4096, NULL, "sequences",
     "running sequences; kernels were built for up to 128"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula chunkattention_formulas[] = {
    {"kappa*c*nodes, kappa = 2*L*Hkv*d*e", "bytes of the cache: distinct chunks"},
    {"kappa*(ns + b*c*ceil(m/c))",
     "... of b sequences with ns tokens in common and m of their own"},
    {"kappa*(ns + b*m) + b*kappa", "HBM bytes of a decode step of the batch: read, written"},
    {"2*L*H*b*(ns/c)*(d*e + 8)", "bytes of partial results, written and read"},
    {"4*L*H*d*n", "FLOPs of a sequence's decode step, unchanged"},
    {NULL, NULL},
};

static const char *const chunkattention_sections[] = {
    "System-level Optimization > Memory Management > Prefix-aware Design", NULL};

const KvTechnique kv_technique_chunkattention = {
    .id = "chunkattention",
    .name = "ChunkAttention",
    .title = "ChunkAttention: Efficient Self-Attention with Prefix-Aware KV Cache and Two-Phase "
             "Partition",
    .paper = "arXiv:2402.15220",
    .code = "github.com/microsoft/chunk-attention",
    .year = 2024,
    .sections = chunkattention_sections,
    .mechanism =
        "The caches of all live sequences form a prefix tree of chunks of c tokens. A new sequence "
        "walks down as far as whole chunks equal its tokens and shares them; the rest of its prompt "
        "becomes chunks of its own, the last of which nobody shares. A chunk is freed when the last "
        "sequence that covers it leaves: nothing is kept for later.\n\n"
        "A decode step attends in two phases. First, for every chunk that several sequences cover, "
        "their queries are multiplied with it as one matrix, so it is read once for all of them, and "
        "partial outputs are stored. Then each sequence merges its partial results and goes "
        "through its own chunks.",
    .params = chunkattention_params,
    .formulas = chunkattention_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with grouped heads, quantization and anything else that leaves equal prefixes equal "
        "and in HBM. Excludes evictions that depend on the prompt's end, caches on lower tiers, attention "
        "on the CPU, and the other serving systems.",
    .pitfalls =
        "The prefix goes with its last user, so sparse arrivals share nothing. Only whole chunks are "
        "shared. The gain fades as answers grow. Partial results are not free: beyond some 60 "
        "sharers they weigh as much as the chunk they save. The empty chunk that the authors append to a "
        "full tail is not counted.",
    .confidence =
        "high: sources of tree, allocator and kernels read; figures from two digests of the "
        "tables",
    .executed = TRUE,
    .plan = chunkattention_plan,
    .engine = chunkattention_engine,
};
