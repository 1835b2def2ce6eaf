/* Survey: System-level Optimization > Scheduling > Layer-specific and Hierarchical Scheduling. */
#include "models/techniques/build.h"
#include "sim/engine/tier_policy.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- LAMPS --- */

static gboolean lamps_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                           GError **error) {
  (void)model;
  (void)error;
  double predictor = kv_technique_value(use, "predictor_ms") * 1e-3;
  if (predictor > 0.0) /* a small model beside the prompt's */
    kv_plan_add_work(plan, (KvWork){.name = "predict lengths",
                                    .moment = KV_MOMENT_PREFILL_END,
                                    .launches = 1.0,
                                    .fixed_seconds = predictor});
  return TRUE;
}

static gboolean lamps_engine(const KvTechniqueUse *use, const KvModel *model,
                             KvEngineConfig *config, GError **error) {
  (void)model;
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("lamps");
  config->allocator = g_intern_static_string("paged");
  config->block_tokens = (guint)kv_technique_value(use, "block_size");
  config->calls.strategy = (guint)kv_technique_value(use, "strategy");
  config->calls.ranks = kv_technique_value(use, "rank") != 0.0;
  config->calls.released = kv_technique_value(use, "impl") == 1.0;
  config->calls.headroom_tokens = (guint)kv_technique_value(use, "headroom");
  config->calls.starving_iterations = (guint)kv_technique_value(use, "threshold");
  config->calls.bins = (guint)kv_technique_value(use, "bins");
  config->calls.bin_tokens = (guint)kv_technique_value(use, "bin_tokens");
  config->max_batched_tokens = (guint)kv_technique_value(use, "headroom");
  config->swap_bytes = kv_technique_value(use, "swap_space") * 1024.0 * 1024.0 * 1024.0;
  config->preemption = KV_PREEMPT_RECOMPUTE;
  config->chunked_prefill = TRUE;
  config->prefix_caching = config->async_scheduling = config->reserve_full_prompt = FALSE;
  return TRUE;
}

static const char *const lamps_strategies[] = {"preserve", "discard", "swap", "least-waste", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam lamps_params[] = {
    {"strategy", KV_PARAM_CHOICE, KV_CALL_LEAST_WASTE, 0, 3, lamps_strategies, "",
     "what happens to a cache while its request waits for an API"},
    {"rank", KV_PARAM_FLAG, 1, 0, 1, NULL, "",
     "sort the queue by memory over time; off: order of arrival, which with least-waste is InferCept"},
    {"threshold", KV_PARAM_INTEGER, 100, 1, 1000000000, NULL, "iterations",
     "waited for more, a request goes to the front; a large number turns it off"},
    {"headroom", KV_PARAM_INTEGER, 384, 1, 1048576, NULL, "tokens/iteration",
     "size of a ragged batch of prompt chunks and decodes"},
    {"bins", KV_PARAM_INTEGER, 50, 1, 100000, NULL, "", "classes of the length predictor"},
    {"bin_tokens", KV_PARAM_INTEGER, 10, 0, 100000, NULL, "tokens",
     "width of a class; 0: lengths are known exactly"},
    {"predictor_ms", KV_PARAM_REAL, 13.7, 0, 1e5, NULL, "ms/request",
     "of the predictor, beside the step that ends the prompt (OPT-125M on an A100)"},
    {"block_size", KV_PARAM_INTEGER, 64, 1, 256, NULL, "tokens", "tokens per block"},
    {"swap_space", KV_PARAM_REAL, 64, 0, 65536, NULL, "GiB", "host memory for swapped caches"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: the area as the paper draws it; released: the formula of the authors' code"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula lamps_formulas[] = {
    {"T_api*C*M", "waste of preserving C tokens of M bytes during a call"},
    {"T_fwd(C)*C*M + T_fwd(C)*C_other*M", "waste of discarding them"},
    {"2*T_swap(C)*C_batch*M", "waste of swapping them out and in"},
    {"C/2*T_fwd(C) + sum(C+i)*t + (area of the call) + sum(C'+i)*t", "score: memory over time"},
    {"f*n*(n+1)/2*c, n = ceil(m/c)", "released: area of m tokens at a headroom of c"},
    {"n*kappa + kappa", "HBM bytes of a decode step, unchanged"},
    {NULL, NULL},
};

static const char *const layer_sections[] = {
    "System-level Optimization > Scheduling > Layer-specific and Hierarchical Scheduling", NULL};

const KvTechnique kv_technique_lamps = {
    .id = "lamps",
    .name = "LAMPS (later MARS)",
    .title = "Fast Inference for Augmented Large Language Models",
    .paper = "arXiv:2410.18248",
    .code = "the MARS code base (its repository's name was not established)",
    .year = 2024,
    .sections = layer_sections,
    .mechanism =
        "Requests that call tools or APIs in mid-answer hold memory while they wait. For each call one of "
        "three ways is chosen by the memory that it wastes over time: keep the cache for as long as the "
        "call lasts, drop it and compute it again (which makes everybody else wait), or copy it to the "
        "host and back.\n\n"
        "With that choice known, a request's memory over time can be drawn before it runs: the prompt, "
        "the tokens to the call, the call, the way back, the tokens after it. The queue is "
        "sorted by the area, smaller first; running requests stay as they are. Requests with "
        "several calls are ranked again when each returns. Who has waited for more than a "
        "threshold of iterations goes to the front. Lengths come from a small predictor in classes.",
    .params = lamps_params,
    .formulas = lamps_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with techniques that change the model or the cache. Excludes the other serving systems. Calls "
        "come with the trace (api_calls; `kvsim trace generate --calls`). Under any other "
        "scheduler a call's cache is discarded.",
    .pitfalls =
        "Most of the gain is the order, which is shortest first by memory and time; the handling alone "
        "gives little. Times of computing and of copying must be the machine's own. The prediction is "
        "taken to be right up to its classes; durations are known.",
    .confidence = "high on the policy (equations and released source read), medium on results "
                  "(abstract and summary)",
    .plan = lamps_plan,
    .engine = lamps_engine,
};

/* --- CachedAttention --- */

static gboolean cachedattention_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                     GError **error) {
  guint caches = 0;
  for (guint c = 0; c < plan->caches->len; c++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, c);
    for (guint s = 0; s < cache->n_segments; s++)
      if (cache->segments[s].tier != KV_TIER_HBM)
        return kv_technique_refuse(use, error,
                                   "segment '%s' is on %s, expected a cache that is wholly in HBM "
                                   "while its session runs",
                                   cache->segments[s].name, kv_tier_names[cache->segments[s].tier]);
    caches += cache->n_segments > 0;
  }
  if (!plan->shareable)
    return kv_technique_refuse(
        use, error,
        "a longer history does not begin with the cache of a shorter one (%s), "
        "expected caches that a next turn can continue",
        plan->unshareable_by ? plan->unshareable_by : "recurrent state");
  if (caches == 0)
    return kv_technique_refuse(use, error, "%s has no KV cache to keep, expected attention",
                               model->id);
  if (kv_technique_value(use, "decoupled") == 0.0)
    return TRUE;
  for (guint c = 0; c < plan->caches->len; c++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, c);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (x->kind == KV_ATTENTION_NONE)
      continue;
    /* Keys are stored before rotation: each that a chunk attends to is rotated. */
    kv_plan_add_work(plan,
                     (KvWork){.name = "rotate loaded keys",
                              .moment = KV_MOMENT_PREFILL_CHUNK,
                              .flops_per_token = 2.0 * x->n_kv_heads * x->head_dim * cache->layers,
                              .bytes_per_token = 2.0 * x->n_kv_heads * x->head_dim *
                                                 plan->element_bytes * cache->layers,
                              .launches = cache->layers,
                              .critical = TRUE});
  }
  return TRUE;
}

static const char *const cachedattention_policies[] = {"look-ahead", "lru", "fifo", NULL};

static gboolean cachedattention_engine(const KvTechniqueUse *use, const KvModel *model,
                                       KvEngineConfig *config, GError **error) {
  (void)model;
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("vllm-v1");
  config->allocator = g_intern_static_string("paged");
  config->store.policy = cachedattention_policies[(guint)kv_technique_value(use, "policy")];
  config->store.dram_bytes = kv_technique_value(use, "dram") * 1e9;
  config->store.ssd_bytes = kv_technique_value(use, "ssd") * 1e12;
  config->store.truncation = kv_technique_value(use, "truncation");
  config->store.decoupled = kv_technique_value(use, "decoupled") != 0.0;
  config->store.preload = kv_technique_value(use, "preload") != 0.0;
  config->store.ttl_seconds = kv_technique_value(use, "ttl");
  config->max_seqs = (guint)kv_technique_value(use, "batch");
  config->async_scheduling = FALSE;
  config->prefix_caching = FALSE; /* nothing stays in HBM between turns */
  return TRUE;
}

static const KvParam cachedattention_params[] = {
    {"dram", KV_PARAM_REAL, 128, 0, 1e6, NULL, "GB",
     "of the store, per instance; not more than the platform has"},
    {"ssd", KV_PARAM_REAL, 10, 0, 1e5, NULL, "TB", "of the store, likewise"},
    {"policy", KV_PARAM_CHOICE, 0, 0, 2, cachedattention_policies, "",
     "who leaves and who is fetched (kvsim list tier-policies): by the queue, or as the paper's "
     "baselines"},
    {"preload", KV_PARAM_FLAG, 1, 0, 1, NULL, "",
     "read a waiting request's first layers ahead, as far as its prefill cannot hide them"},
    {"truncation", KV_PARAM_REAL, 0.5, 0, 1, NULL, "fraction",
     "of a history that outgrew the context, the oldest, which is dropped (recalled)"},
    {"decoupled", KV_PARAM_FLAG, 1, 0, 1, NULL, "",
     "store keys before positions are applied, so that a cut history stays good"},
    {"ttl", KV_PARAM_REAL, 0, 0, 1e9, NULL, "s",
     "idle sessions expire; 0: never (1 h was studied)"},
    {"batch", KV_PARAM_INTEGER, 24, 1, 65536, NULL, "sequences", "running at once (recalled)"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula cachedattention_formulas[] = {
    {"max(0, T_load*L_hist - T_pref*L_new - preloaded)", "seconds of a load that a step waits for"},
    {"BWp*(T_load*L_hist - T_pref*L_new)", "read buffer: bytes of the first layers to read ahead"},
    {"C_mem/S_kv", "jobs within the window of fetches, S_kv the mean bytes of a session"},
    {"(C_mem + C_disk)/S_kv", "jobs within the window of evictions"},
    {"kappa*n", "bytes stored per session; read by a decode step, and kappa written"},
    {"2*L*Hkv*d per key", "FLOPs to apply positions to loaded keys, and 2*L*Hkv*d*e bytes"},
    {NULL, NULL},
};

const KvTechnique kv_technique_cachedattention = {
    .id = "cachedattention",
    .name = "CachedAttention (AttentionStore)",
    .title = "Cost-Efficient Large Language Model Serving for Multi-turn Conversations with "
             "CachedAttention",
    .paper = "arXiv:2403.19708",
    .year = 2024,
    .sections = layer_sections,
    .mechanism =
        "Between the turns of a conversation its whole cache is kept in host memory and on SSD, and "
        "nothing of it in HBM; the next turn loads it and computes only the new tokens. Layers are "
        "loaded one ahead of the other beside the computation, and the first of them while the turn "
        "waits, so a long history need not leave a gap. New keys and values are saved layer by "
        "layer beside the steps.\n\n"
        "The queue says which sessions are needed soon. Those of the first jobs, as many as DRAM "
        "holds, come up from SSD; those without a job among as many as both tiers hold leave first, and "
        "then the one whose job is the farthest. Sessions move as wholes, and SSD drops by the same rule.\n\n"
        "Keys are stored without positions, which are applied after loading; a conversation that outgrows "
        "the context then loses its oldest part and keeps the rest.",
    .params = cachedattention_params,
    .formulas = cachedattention_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with grouped heads, quantization (less to load) and tensor parallelism. Needs sessions in "
        "the trace (`kvsim trace generate --turns`). Excludes evictions that depend on the prompt's end, "
        "caches on lower tiers, and the other serving systems.",
    .pitfalls =
        "Looking ahead needs a queue: at low load SSD reads are exposed. HBM keeps nothing, even "
        "for an immediate next turn. The SSD's bandwidth is the limit of the second tier. A cache that "
        "goes down frees its DRAM at once. A load is timed as if it had the link to itself. Quality after "
        "a cut is said to be the same within 0.02 of perplexity (recalled, unsure).",
    .confidence =
        "medium: abstract and three notes (windows, hit rates, hardware) seen; figures per model, "
        "batch and share of truncation recalled",
    .plan = cachedattention_plan,
    .engine = cachedattention_engine,
};
