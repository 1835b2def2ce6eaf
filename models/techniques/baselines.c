/* The systems that papers compare against: no entries of the survey, but techniques like any other,
 * so that a claim can name them. Their facts are those of docs/baselines.md. */
#include <math.h>

#include "models/techniques/build.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

static const char *const baseline_sections[] = {"Baselines", NULL};

/* Take over scheduling: static batches, contiguous memory, synchronous steps. */
static gboolean static_engine(const KvTechniqueUse *use, KvEngineConfig *config, GError **error) {
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("static");
  config->allocator = g_intern_static_string("reserved");
  config->reservation = KV_RESERVE_ORACLE;
  config->static_batch = (guint)kv_technique_value(use, "batch");
  config->chunked_prefill = config->prefix_caching = FALSE;
  config->async_scheduling = config->cuda_graphs = FALSE;
  return TRUE;
}

/* Contiguous memory: no sharing of equal prefixes. */
static void contiguous(const KvTechniqueUse *use, KvPlan *plan) {
  plan->paged = FALSE;
  plan->shareable = FALSE;
  plan->unshareable_by = use->technique->id;
}

/* --- Hugging Face transformers, eager --- */

enum { HF_SDPA, HF_EAGER };

/* Kernels of a decoder layer beside the nine that the engine's own fused layer has: 44 with SDPA,
 * 50 with eager attention (two norms of 8 kernels, rotary 10, projections 4, cache 2, and so on).
 */
static const double HF_SDPA_KERNELS = 44.0, HF_EAGER_KERNELS = 50.0, FUSED_KERNELS = 9.0;

static void hf_reader(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                      KvReader *reader) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, reader->cache);
  const KvAttention *x = kv_plan_attention(model, cache);
  gboolean eager = kv_technique_value(use, "attention") == HF_EAGER;
  double e = plan->element_bytes, elements = (double)x->head_dim + x->value_head_dim;
  double group = x->n_kv_heads ? (double)x->n_heads / x->n_kv_heads : 1.0;
  reader->extra_launches += (eager ? HF_EAGER_KERNELS : HF_SDPA_KERNELS) - FUSED_KERNELS;
  if (x->kind == KV_ATTENTION_LATENT)
    return;
  if (group > 1.0) { /* repeat_kv writes a copy for every query head, and attention reads that */
    reader->extra_bytes_per_token += x->n_heads * elements * e;
    reader->read_bytes_scale *= 1.0 + group;
    reader->n_kv_heads = x->n_heads;
  }
  if (eager) /* scores in fp32: scaled, masked, softmax, cast */
    reader->extra_bytes_per_token += x->n_heads * 24.0;
}

static gboolean hf_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                        GError **error) {
  gboolean eager = kv_technique_value(use, "attention") == HF_EAGER;
  for (guint r = 0; r < plan->readers->len; r++)
    hf_reader(use, model, plan, &g_array_index(plan->readers, KvReader, r));
  double token_bytes = 0.0, layers = 0.0;
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    layers += cache->layers;
    for (guint s = 0; s < cache->n_segments; s++)
      if (cache->segments[s].tokens.kind == KV_LAW_ALL)
        token_bytes += cache->layers * cache->segments[s].tokens.scale *
                       (cache->segments[s].key_bytes + cache->segments[s].value_bytes);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (eager && x->kind == KV_ATTENTION_FULL)
      kv_plan_need_scores(plan, cache, x, TRUE, 4.0, 6.0);
  }
  /* DynamicCache: each step copies every layer's keys and values into tensors one token longer. */
  kv_plan_add_work(plan, (KvWork){.name = "concatenate the cache",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .bytes_per_token = 2.0 * token_bytes,
                                  .critical = TRUE});
  /* A norm is 8 kernels that read or write 36 bytes an element in all, where a fused one moves 8.
   */
  kv_plan_add_work(plan, (KvWork){.name = "norms and rotary in small kernels",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .bytes = layers * 2.0 * 28.0 * model->hidden,
                                  .launches = layers * (HF_SDPA_KERNELS - FUSED_KERNELS),
                                  .critical = TRUE});
  contiguous(use, plan);
  return TRUE;
}

static gboolean hf_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                          GError **error) {
  if (!static_engine(use, config, error))
    return FALSE;
  config->eager_kernel_seconds = kv_technique_value(use, "launch_us") * 1e-6;
  config->step_gap_seconds = kv_technique_value(use, "step_ms") * 1e-3;
  config->memory_utilization = kv_technique_value(use, "memory");
  return TRUE;
}

static const char *const hf_attentions[] = {"sdpa", "eager", NULL};

static const KvParam hf_params[] = {
    {"batch", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "sequences",
     "rows of a static batch; 0: as many as memory holds"},
    {"attention", KV_PARAM_CHOICE, HF_SDPA, 0, 1, hf_attentions, "",
     "sdpa: one fused kernel; eager: products, mask and softmax in kernels of their own"},
    {"launch_us", KV_PARAM_REAL, 18, 0, 1000, NULL, "us",
     "CPU time to launch a kernel through the modules; 18 gives 26 ms at 32 layers, the middle of "
     "what is reported"},
    {"step_ms", KV_PARAM_REAL, 1, 0, 1000, NULL, "ms",
     "CPU work between two steps: inputs, logits processors, stopping criteria (estimate)"},
    {"memory", KV_PARAM_REAL, 1, 0.1, 1, NULL, "fraction", "of the GPU's memory that may be used"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula hf_formulas[] = {
    {"kappa*n", "bytes of the cache, padded to the longest of the batch"},
    {"3*kappa*n", "HBM bytes of a decode step: attention reads it, concatenation copies it"},
    {"44*L (sdpa), 50*L (eager)", "kernels of a step"},
    {"max(GPU, kernels*launch_us)", "time of a step: launches are a floor"},
    {NULL, NULL},
};

const KvTechnique kv_technique_hf_eager = {
    .id = "hf-eager",
    .name = "Hugging Face transformers",
    .title = "transformers generate(), eager mode, with its concatenating cache",
    .paper = "github.com/huggingface/transformers",
    .code = "github.com/huggingface/transformers",
    .year = 2023,
    .sections = baseline_sections,
    .mechanism =
        "One static batch runs until its longest member is done; rows that are finished are "
        "computed on. Every step makes each layer's keys and values anew, one token longer, "
        "by copying them. Python launches some 44 small kernels a layer, which puts a floor "
        "under the time of a step whatever its size.",
    .params = hf_params,
    .formulas = hf_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with techniques that change the model or the cache. Excludes serving systems, "
        "paging and prefix sharing.",
    .pitfalls = "Most papers' speed-ups are against this baseline: part of them is its copies and "
                "launches. What a technique's released code itself launches comes on top.",
    .confidence =
        "medium: concatenation and the kernels of a layer were read and counted in the "
        "source; the launch time is recalled (5 to 10 us and Python between them; 22 to 32 "
        "ms at 32 layers are reported)",
    .plan = hf_plan,
    .engine = hf_engine,
};

/* --- FasterTransformer --- */

static gboolean contiguous_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                GError **error) {
  contiguous(use, plan);
  return TRUE;
}

static gboolean ft_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                          GError **error) {
  if (!static_engine(use, config, error))
    return FALSE;
  config->reservation = KV_RESERVE_MAX;
  config->memory_utilization = 1.0;
  config->eager_kernel_seconds = 4e-6; /* C++ launches (recalled: "about 10 to 12 a layer") */
  config->step_gap_seconds = 5e-5;
  return TRUE;
}

static const KvParam ft_params[] = {
    {"batch", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "sequences",
     "the largest batch; 0: as many as fit at the model's longest length"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula ft_formulas[] = {
    {"kappa*(max_input+max_output)", "bytes reserved for each row of the batch"},
    {NULL, NULL},
};

const KvTechnique kv_technique_fastertransformer = {
    .id = "fastertransformer",
    .name = "FasterTransformer",
    .title = "NVIDIA FasterTransformer behind a batcher that takes the earliest arrivals",
    .paper = "github.com/NVIDIA/FasterTransformer",
    .code = "github.com/NVIDIA/FasterTransformer",
    .year = 2022,
    .sections = baseline_sections,
    .mechanism = "Batches of requests: the earliest arrivals, as many as memory reserved for the "
                 "longest possible length allows, run together to the end of the last of them, and "
                 "only then the next batch begins. Kernels are fused and launched from C++.",
    .params = ft_params,
    .formulas = ft_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with techniques that change the model or the cache. Excludes serving systems, "
        "paging and prefix sharing.",
    .pitfalls = "Under load its latency is the wait for whole batches: ratios against it are of "
                "queueing, not of kernels.",
    .confidence = "recalled: the repository ended in 2023; behaviour as the Orca and vLLM papers "
                  "describe their use of it",
    .plan = contiguous_plan,
    .engine = ft_engine,
};

/* --- Offloading --- */

/* Share of the weights that the GPU's memory holds beside what the cache and activations need. */
static double share_on_gpu(const KvModel *model, const KvPlatform *platform, double left_free) {
  double weights = kv_model_weight_bytes(model);
  double room = platform->device->memory_bytes * (1.0 - left_free);
  return weights > 0.0 ? CLAMP(room / weights, 0.0, 1.0) : 1.0;
}

/* What neither the GPU nor the host holds goes to disk. */
static void share_below(const KvModel *model, const KvPlatform *platform, double on_gpu,
                        double *on_host) {
  double weights = kv_model_weight_bytes(model);
  double room = platform->host_memory ? platform->host_memory->capacity_bytes * 0.9 : 0.0;
  *on_host = weights > 0.0 ? MIN(1.0 - on_gpu, room / weights) : 0.0;
}

static void set_percent(KvTechniqueUse *use, const char *name, double share) {
  kv_technique_set(use, name, floor(1000.0 * share) / 10.0);
}

static gboolean offload_tune(KvTechniqueUse *use, const KvModel *model, const KvPlatform *platform,
                             GError **error) {
  double on_host;
  if (kv_technique_value(use, "wg") < 0.0)
    set_percent(use, "wg",
                share_on_gpu(model, platform, kv_technique_value(use, "left_free") / 100.0));
  share_below(model, platform, kv_technique_value(use, "wg") / 100.0, &on_host);
  if (kv_technique_value(use, "wc") < 0.0)
    set_percent(use, "wc", on_host);
  return TRUE;
}

static gboolean offload_weights(const KvTechniqueUse *use, KvPlan *plan, GError **error) {
  double on_gpu = MAX(0.0, kv_technique_value(use, "wg")) / 100.0;
  double on_host = kv_technique_value(use, "wc") / 100.0;
  if (on_host < 0.0) /* priced without a platform: all of the rest */
    on_host = 1.0 - on_gpu;
  if (on_gpu + on_host > 1.0 + 1e-9)
    return kv_technique_refuse(use, error, "wg and wc add up to %g %%, expected at most 100 %%",
                               100.0 * (on_gpu + on_host));
  plan->weights.share[KV_TIER_HBM] = on_gpu;
  plan->weights.share[KV_TIER_DRAM] = on_host;
  plan->weights.share[KV_TIER_SSD] = MAX(0.0, 1.0 - on_gpu - on_host);
  return TRUE;
}

static gboolean deepspeed_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                               GError **error) {
  contiguous(use, plan);
  return offload_weights(use, plan, error);
}

static gboolean deepspeed_engine(const KvTechniqueUse *use, const KvModel *model,
                                 KvEngineConfig *config, GError **error) {
  if (!static_engine(use, config, error))
    return FALSE;
  config->memory_utilization = 1.0;
  config->eager_kernel_seconds = 1e-5; /* injected kernels under Python modules (estimate) */
  config->step_gap_seconds = 1e-3;
  return TRUE;
}

static const KvParam deepspeed_params[] = {
    {"batch", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "sequences",
     "rows of a static batch; 0: as many as memory holds"},
    {"wg", KV_PARAM_REAL, 0, -1, 100, NULL, "%", "weights on the GPU; -1: as many as fit"},
    {"wc", KV_PARAM_REAL, -1, -1, 100, NULL, "%",
     "weights in host memory; -1: as many as fit, the rest on disk"},
    {"left_free", KV_PARAM_REAL, 30, 0, 99, NULL, "%",
     "of the GPU's memory, for cache and activations, where wg is -1"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula deepspeed_formulas[] = {
    {"L*max(layer bytes/BWp, compute)",
     "time of a step: a layer's weights come while the one before is computed"},
    {"kappa*n", "bytes of the cache, on the GPU"},
    {NULL, NULL},
};

const KvTechnique kv_technique_deepspeed_offload = {
    .id = "deepspeed-offload",
    .name = "DeepSpeed ZeRO-Inference",
    .title = "DeepSpeed ZeRO-Inference: weights streamed from host memory or disk",
    .paper = "github.com/microsoft/DeepSpeed",
    .code = "github.com/microsoft/DeepSpeed",
    .year = 2022,
    .sections = baseline_sections,
    .mechanism =
        "Weights live in host memory, or on disk where that is too small, and every forward "
        "pass streams them layer by layer, the next layer's while this one is computed. "
        "The cache stays on the GPU, so the batch is what its memory holds.",
    .params = deepspeed_params,
    .formulas = deepspeed_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with techniques that change the model or the cache. Excludes serving systems, "
        "paging and prefix sharing.",
    .pitfalls = "Throughput grows with the batch until the GPU's memory is full: figures depend on "
                "the batch that was chosen.",
    .confidence = "recalled; prefetching and its defaults were seen in the configuration",
    .tune = offload_tune,
    .plan = deepspeed_plan,
    .engine = deepspeed_engine,
};

static gboolean accelerate_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                GError **error) {
  if (!hf_plan(use, model, plan, error) || !offload_weights(use, plan, error))
    return FALSE;
  plan->weights.stream_overlaps = FALSE; /* a module's weights are copied just before it runs */
  plan->weights.pageable = TRUE;
  return TRUE;
}

static const KvParam accelerate_params[] = {
    {"batch", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "sequences",
     "rows of a static batch; 0: as many as memory holds"},
    {"attention", KV_PARAM_CHOICE, HF_SDPA, 0, 1, hf_attentions, "", "as in hf-eager"},
    {"launch_us", KV_PARAM_REAL, 18, 0, 1000, NULL, "us", "as in hf-eager"},
    {"step_ms", KV_PARAM_REAL, 1, 0, 1000, NULL, "ms", "as in hf-eager"},
    {"memory", KV_PARAM_REAL, 1, 0.1, 1, NULL, "fraction", "as in hf-eager"},
    {"wg", KV_PARAM_REAL, -1, -1, 100, NULL, "%", "weights on the GPU; -1: as many as fit"},
    {"wc", KV_PARAM_REAL, -1, -1, 100, NULL, "%",
     "weights in host memory; -1: as many as fit, the rest on disk"},
    {"left_free", KV_PARAM_REAL, 30, 0, 99, NULL, "%",
     "of the GPU's memory, for cache and activations, where wg is -1"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula accelerate_formulas[] = {
    {"resident compute + offloaded bytes/BW", "time of a step: nothing overlaps"},
    {"BW = pageable_share of the link", "weights in memory that is not pinned"},
    {NULL, NULL},
};

const KvTechnique kv_technique_accelerate_offload = {
    .id = "accelerate-offload",
    .name = "Hugging Face Accelerate",
    .title = "Accelerate's device_map offloading under transformers generate()",
    .paper = "github.com/huggingface/accelerate",
    .code = "github.com/huggingface/accelerate",
    .year = 2022,
    .sections = baseline_sections,
    .mechanism =
        "Layers fill the GPU first, then host memory, then disk. A layer that is not on the "
        "GPU is copied there, from memory that is not pinned, just before it runs and "
        "dropped after; nothing overlaps. Everything else is as in hf-eager.",
    .params = accelerate_params,
    .formulas = accelerate_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with techniques that change the model or the cache. Excludes serving systems, "
        "paging and prefix sharing.",
    .pitfalls = "The rate of a pageable copy, 3 to 8 GB/s, decides everything.",
    .confidence = "medium: the hooks were read in the source; the copies' rate is recalled",
    .tune = offload_tune,
    .plan = accelerate_plan,
    .engine = hf_engine,
};
