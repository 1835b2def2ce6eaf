/* Survey: System-level Optimization > Hardware-aware Design > Heterogeneous Design: NEO. */
#include "models/techniques/build.h"

/* The CPU's kernel reads 16-bit keys and values of full attention as they are, and whole pages. */
static gboolean neo_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                         GError **error) {
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (x->kind != KV_ATTENTION_FULL)
      return kv_technique_refuse(use, error,
                                 "layers of %s have %s attention, expected full attention",
                                 model->id, kv_attention_kind_names[x->kind]);
    for (guint s = 0; s < cache->n_segments; s++) {
      const KvSegment *segment = &cache->segments[s];
      if (segment->quantizer)
        return kv_technique_refuse(use, error,
                                   "attention on the CPU needs an uncompressed cache, but '%s' is "
                                   "quantized by %s, expected one of the two",
                                   segment->name, segment->quantizer);
      if (segment->tier != KV_TIER_HBM)
        return kv_technique_refuse(
            use, error,
            "'%s' of the cache is in %s already, expected a cache in HBM, of "
            "which whole sequences move",
            segment->name, kv_tier_names[segment->tier]);
    }
  }
  for (guint i = 0; i < plan->readers->len; i++)
    if (g_array_index(plan->readers, KvReader, i).processor != KV_PROCESSOR_GPU)
      return kv_technique_refuse(
          use, error,
          "some attention is already elsewhere than on the GPU, expected all "
          "of it there");
  if (!plan->paged)
    return kv_technique_refuse(use, error,
                               "the cache is laid out in contiguous memory, expected pages");
  plan->shareable = FALSE; /* a block on the host is of one sequence */
  plan->unshareable_by = use->technique->id;
  return TRUE;
}

static gboolean neo_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                           GError **error) {
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("neo");
  config->allocator = g_intern_static_string("paged");
  config->block_tokens = (guint)kv_technique_value(use, "block_size");
  config->max_seqs = (guint)kv_technique_value(use, "max_batch_size");
  config->max_batched_tokens = (guint)kv_technique_value(use, "max_tokens_in_batch");
  config->swap_in_below = kv_technique_value(use, "swap_in_watermark");
  config->least_step_tokens = (guint)kv_technique_value(use, "linr_S_threshold");
  config->host_launch_seconds = kv_technique_value(use, "launch_ms") * 1e-3;
  config->swap_bytes = kv_technique_value(use, "swap_space") * 1e9;
  config->memory_utilization = kv_technique_value(use, "gpu_mem_utilization");
  config->preemption = KV_PREEMPT_SWAP;
  config->chunked_prefill = config->prefix_caching = FALSE;
  config->async_scheduling = config->cuda_graphs = FALSE;
  return TRUE;
}

static const KvParam neo_params[] = {
    {"block_size", KV_PARAM_INTEGER, 16, 1, 256, NULL, "tokens", "tokens of a page"},
    {"max_batch_size", KV_PARAM_INTEGER, 512, 1, 65536, NULL, "requests", "of an iteration"},
    {"max_tokens_in_batch", KV_PARAM_INTEGER, 3072, 1, 1048576, NULL, "tokens",
     "of an iteration; 832 in the T4's configuration, 20480 in the A10's"},
    {"swap_in_watermark", KV_PARAM_REAL, 0.95, 0, 1, NULL, "fraction",
     "use of the GPU's blocks below which requests come back from the CPU"},
    {"linr_S_threshold", KV_PARAM_INTEGER, 128, 0, 1048576, NULL, "tokens",
     "a prompt is not put off if that leaves the iteration fewer"},
    {"launch_ms", KV_PARAM_REAL, 0.8, 0, 100, NULL, "ms",
     "constant beside reading the cache, per sub-batch and layer"},
    {"swap_space", KV_PARAM_REAL, 20, 0, 4096, NULL, "GB", "host memory for the cache; up to 120"},
    {"gpu_mem_utilization", KV_PARAM_REAL, 0.99, 0.01, 1, NULL, "fraction",
     "GPU memory for weights, activations and pages"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula neo_formulas[] = {
    {"2*L*Hkv*d*e*n", "bytes of a sequence, in HBM or in host memory; read there at each step"},
    {"4*L*H*d*n", "FLOPs of a step's attention, on the GPU or on the CPU"},
    {"L*(H + 2*Hkv)*d*e down, 4*L*H*d up", "bytes on the link per CPU sequence and step"},
    {"2*L*Hkv*d*e*n down", "bytes of a prompt that is placed on the CPU, beside its prefill"},
    {"T_linear(S1) + T_prefill + T_gpu_dec - (T_cpu_dec(0) + L*T_launch) >= 0",
     "the CPU's part of the first sub-batch is hidden"},
    {"T_linear(S0) - (T_cpu_dec(1) + L*T_launch) >= 0", "... and of the second"},
    {"len/(T_linear(S0) + T_linear(S1) + T_prefill + T_gpu_dec)",
     "requests a second of the pair, against those of the GPU's part alone"},
    {NULL, NULL},
};

static const KvQualityPoint neo_quality[] = {
    {0},
};

static const char *const neo_sections[] = {
    "System-level Optimization > Hardware-aware Design > Heterogeneous Design", NULL};

const KvTechnique kv_technique_neo = {
    .id = "neo",
    .name = "NEO",
    .title = "NEO: Saving GPU Memory Crisis with CPU Offloading for Online LLM Inference",
    .paper = "arXiv:2411.01142",
    .code = "github.com/NEO-MLSys25/NEO",
    .year = 2024,
    .sections = neo_sections,
    .mechanism =
        "Some requests keep their cache in host memory, and the CPU does the attention of their decode "
        "steps; linear layers of all requests run on the GPU. An iteration is a pair of sub-batches: "
        "the first has all prompts, all requests whose cache is on the GPU and a few of the "
        "others, the second only others. While the GPU runs the linear layers of one, the CPU "
        "attends for the other, so a wider batch goes through the weights and nothing waits for the "
        "CPU. Of a CPU request only the current query, key, value and output cross the link.\n\n"
        "Prompts go to the GPU as long as their pages fit, from the first that does not fit on to the "
        "host, written there layer by layer as they are computed. CPU requests join one by one, "
        "where there is more slack, only while the CPU stays hidden in both sub-batches. The pair runs "
        "if it serves more requests a second than the GPU's part alone. When GPU pages run short "
        "the latest request moves to the CPU; when use is below a watermark, the first comes back.",
    .params = neo_params,
    .formulas = neo_formulas,
    .quality = neo_quality,
    .composes =
        "Goes with GQA (fewer bytes for the CPU to read, so more requests there) and tensor "
        "parallelism. Excludes quantized caches and caches on other tiers, attention other than "
        "full, and the other serving systems. Prompts are not chunked and prefixes not shared.",
    .pitfalls =
        "The 7.5x on a T4 is an effect of capacity: the GPU holds 864 tokens there. The CPU's speed is "
        "its memory bandwidth, which cloud instances share out with cores. Hiding is a condition at "
        "each step, not on average. On an H100 linear layers are short and hide little. The constant "
        "of 0.8 ms is taken per layer, as the published slack is (unsure).",
    .confidence =
        "high: scheduler, predictor and configurations of the repository were read; details "
        "of the baseline recalled",
    .plan = neo_plan,
    .engine = neo_engine,
};
