/* Survey: System-level Optimization > Memory Management > Architectural Design. */
#include "models/techniques/build.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- vTensor --- */

static gboolean vtensor_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             GError **error) {
  guint chunks = 0;
  (void)model;
  for (guint c = 0; c < plan->caches->len; c++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, c);
    for (guint s = 0; s < cache->n_segments; s++)
      if (cache->segments[s].tokens.kind == KV_LAW_EVICTED)
        return kv_technique_refuse(
            use, error,
            "segment '%s' loses a token for each that comes, expected a cache "
            "that grows at its end: mapped memory is never compacted",
            cache->segments[s].name);
    chunks += cache->n_segments > 0;
  }
  if (chunks == 0)
    return kv_technique_refuse(
        use, error, "%s has no KV cache to map, expected full or sliding attention", model->id);
  plan->paged = FALSE; /* kernels see one contiguous tensor */
  return TRUE;
}

static gboolean vtensor_engine(const KvTechniqueUse *use, const KvModel *model,
                               KvEngineConfig *config, GError **error) {
  guint length = config->max_model_len ? config->max_model_len : model->max_context_tokens;
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("vtensor");
  config->allocator = g_intern_static_string("chunked");
  config->chunks.chunk_bytes = kv_technique_value(use, "granularity");
  config->chunks.map_seconds = kv_technique_value(use, "map_us") * 1e-6;
  config->chunks.slack_tokens = (guint)kv_technique_value(use, "slack");
  config->chunks.shares = config->prefix_caching = kv_technique_value(use, "prefix") != 0.0;
  config->retained_blocks = (guint64)kv_technique_value(use, "cache_seqs") *
                            (guint64)kv_technique_value(use, "cache_tokens");
  config->watermark = kv_technique_value(use, "watermark");
  config->max_seqs = (guint)kv_technique_value(use, "max_num_seqs");
  config->preemption = KV_PREEMPT_RECOMPUTE;
  if (config->max_batched_tokens == 0)
    config->max_batched_tokens = MAX(length, 2048);
  config->chunked_prefill = config->async_scheduling = FALSE;
  config->reserve_full_prompt = TRUE;
  return TRUE;
}

static const KvParam vtensor_params[] = {
    {"granularity", KV_PARAM_INTEGER, 2097152, 65536, 1073741824, NULL, "bytes",
     "physical chunk, of one layer's keys or values of one sequence; the driver's is 2 MiB"},
    {"slack", KV_PARAM_INTEGER, 100, 0, 65536, NULL, "tokens",
     "mapped beyond what is used: spare tokens of a prompt, then the iterations that a mapping is "
     "begun ahead"},
    {"map_us", KV_PARAM_REAL, 40, 0, 1e6, NULL, "us",
     "CPU time to map a chunk and allow access to it (recalled); prompts wait for it, decode steps "
     "do not"},
    {"prefix", KV_PARAM_FLAG, 1, 0, 1, NULL, "",
     "map chunks of equal prefixes into several ranges"},
    {"cache_seqs", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "slots",
     "slots that keep chunks mapped when their request ends"},
    {"cache_tokens", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "chunks",
     "chunks that each of them keeps"},
    {"watermark", KV_PARAM_REAL, 0.01, 0, 0.9, NULL, "fraction",
     "of the chunks, kept free at admission"},
    {"max_num_seqs", KV_PARAM_INTEGER, 256, 1, 65536, NULL, "slots", "virtual slots"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula vtensor_formulas[] = {
    {"2*L*g*ceil((n + slack)*Hkv*d*e/g)", "bytes of the cache, g the granularity"},
    {"L*g", "bytes wasted by rounding per sequence, on average, beside the slack"},
    {"n*kappa + kappa", "HBM bytes of a decode step: read contiguously, no block table"},
    {"g/(Hkv*d*e)", "tokens of a chunk: the step in which prefixes are shared"},
    {"2*L*t_map", "CPU time of a growth by one chunk of each layer's keys and values"},
    {NULL, NULL},
};

static const char *const vtensor_sections[] = {
    "System-level Optimization > Memory Management > Architectural Design", NULL};

const KvTechnique kv_technique_vtensor = {
    .id = "vtensor",
    .name = "vTensor (FlexInfer)",
    .title = "vTensor: Flexible Virtual Tensor Management for Efficient LLM Serving",
    .paper = "arXiv:2407.15309",
    .code = "github.com/antgroup/glake (GLakeServe/)",
    .year = 2024,
    .sections = vtensor_sections,
    .mechanism =
        "The GPU's own page tables take the place of block tables. Each slot reserves a range of "
        "virtual addresses for every layer's keys and values, as long as the longest context; physical "
        "chunks of 2 MiB come from one pool and are mapped at the end of a range as it grows, so kernels "
        "see contiguous tensors and need no change. A prompt's chunks are mapped before it runs; while a "
        "sequence decodes, a thread maps the next chunk many iterations ahead.\n\n"
        "A prefix is shared by mapping its chunks into several ranges. Requests are scheduled first "
        "come, first served, prompts before decodes; under pressure the youngest gives up all its "
        "chunks and is recomputed. Chunks go back to the pool when the last range that maps them ends, "
        "unless slots are told to keep some.",
    .params = vtensor_params,
    .formulas = vtensor_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with kernels for contiguous caches, grouped heads, quantization and tensor parallelism (a "
        "chunk then holds more tokens). Excludes evictions token by token, which leave holes, and the "
        "other serving systems.",
    .pitfalls =
        "At full load it holds more per sequence than pages of 16 tokens do: half a chunk per layer and "
        "tensor and the slack. The memory that it sets free is what a static pool would only reserve. "
        "Prefixes are shared in whole chunks, 256 to 1024 tokens and more, and only where a chunk's "
        "tokens and the trace's prefix blocks divide one another. The speedups of its kernels are "
        "against paged kernels of mid-2024, which the model's default kernels have left behind.",
    .confidence =
        "high on the mechanism (allocator and scheduler read), medium on results (abstract); "
        "the time to map a chunk is recalled",
    .plan = vtensor_plan,
    .engine = vtensor_engine,
};
