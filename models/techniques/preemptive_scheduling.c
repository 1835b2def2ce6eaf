/* Survey: System-level Optimization > Scheduling > Preemptive and Fairness-oriented Scheduling. */
#include "models/techniques/build.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- FastServe --- */

static gboolean fastserve_engine(const KvTechniqueUse *use, const KvModel *model,
                                 KvEngineConfig *config, GError **error) {
  (void)model;
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("fastserve");
  config->allocator = g_intern_static_string("paged");
  config->fastserve.quantum_seconds = kv_technique_value(use, "q1");
  config->fastserve.quantum_ratio = kv_technique_value(use, "ratio");
  config->fastserve.demotion_levels = (guint)kv_technique_value(use, "eta");
  double alpha = kv_technique_value(use, "alpha");
  gboolean released = kv_technique_value(use, "impl") == 1.0;
  config->fastserve.starving_seconds = alpha >= 0.0 ? alpha : released ? 3.0 : 0.3;
  config->fastserve.check_iterations = (guint)kv_technique_value(use, "check_period");
  config->fastserve.host_guard = kv_technique_value(use, "cpu_guard");
  config->fastserve.reserve_blocks = (guint)kv_technique_value(use, "reserve");
  config->fastserve.proactive = kv_technique_value(use, "proactive") != 0.0;
  config->max_seqs = (guint)kv_technique_value(use, "max_batch_size");
  config->fastserve.prompt_tokens = (guint)kv_technique_value(use, "max_tokens_per_batch");
  config->block_tokens = (guint)kv_technique_value(use, "block_size");
  config->swap_bytes = kv_technique_value(use, "swap_space") * 1e9;
  config->memory_utilization = kv_technique_value(use, "gpu_memory_utilization");
  config->preemption = KV_PREEMPT_RECOMPUTE; /* of what cannot be swapped */
  config->chunked_prefill = config->prefix_caching = config->async_scheduling = FALSE;
  config->cuda_graphs = FALSE;
  return TRUE;
}

static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam fastserve_params[] = {
    {"q1", KV_PARAM_REAL, 0.01, 1e-6, 1000, NULL, "s",
     "quantum of the highest level: the least time of an iteration, 10 ms in the code"},
    {"ratio", KV_PARAM_REAL, 2, 1.0001, 1000, NULL, "", "of a level's quantum to the one's above"},
    {"eta", KV_PARAM_INTEGER, 1, 1, 31, NULL, "levels", "that a used-up quantum demotes"},
    {"alpha", KV_PARAM_REAL, -1, -1, 1e6, NULL, "s",
     "not run for so long, a request goes to the highest level; -1: 0.3, and 3 in impl=released"},
    {"check_period", KV_PARAM_INTEGER, 1000, 1, 1000000, NULL, "iterations",
     "how often that is looked for"},
    {"max_batch_size", KV_PARAM_INTEGER, 16, 1, 4096, NULL, "requests", "in an iteration"},
    {"max_tokens_per_batch", KV_PARAM_INTEGER, 2048, 1, 1048576, NULL, "prompt tokens",
     "in an iteration; a longer prompt runs without other prompts"},
    {"block_size", KV_PARAM_INTEGER, 16, 1, 256, NULL, "tokens", "tokens per block"},
    {"reserve", KV_PARAM_INTEGER, 0, 0, 1048576, NULL, "GPU blocks",
     "kept free for requests to come; at least max_batch_size"},
    {"proactive", KV_PARAM_FLAG, 1, 0, 1, NULL, "",
     "swap ahead of need; off: only what the next batch needs"},
    {"swap_space", KV_PARAM_REAL, 56, 0, 65536, NULL, "GB", "host memory for caches, per instance"},
    {"cpu_guard", KV_PARAM_REAL, 0.1, 0, 1, NULL, "fraction",
     "with less of the swap space free no new prompt is begun"},
    {"gpu_memory_utilization", KV_PARAM_REAL, 0.9, 0.01, 1, NULL, "fraction",
     "GPU memory for weights, activations and blocks"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: the paper's threshold of starvation; released: the code's"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula fastserve_formulas[] = {
    {"min{i: q1*r^i >= t_prefill}", "level that a request joins"},
    {"t_process + t_iteration > q1*r^i", "when it falls"},
    {"kappa*p*ceil(n/p)", "bytes of every request that has started, on the GPU or the host"},
    {"n*kappa + kappa", "HBM bytes of a decode step"},
    {"kappa*p*ceil(n/p) / BWp", "seconds of a swap, each way, beside the iterations"},
    {NULL, NULL},
};

static const char *const fastserve_sections[] = {
    "System-level Optimization > Scheduling > Preemptive and Fairness-oriented Scheduling",
    "System-level Optimization > Hardware-aware Design > Heterogeneous Design", NULL};

const KvTechnique kv_technique_fastserve = {
    .id = "fastserve",
    .name = "FastServe",
    .title = "Fast Distributed Inference Serving for Large Language Models",
    .paper = "arXiv:2305.05920",
    .code = "github.com/LLMServe/FastServe",
    .year = 2023,
    .sections = fastserve_sections,
    .mechanism =
        "Output lengths are unknown, so long requests hold up short ones when served first come, "
        "first served. FastServe may change the batch at every iteration, by a feedback queue of levels "
        "whose quanta double. The time of a request's prefill is known from its length, so it joins the "
        "first level whose quantum covers it instead of sinking there. Whoever uses up the quantum of "
        "a level falls to the next. Batch members return to the front of their level, so within a level "
        "the last to run is the first to go on. Requests left alone for too long are promoted to the top.\n\n"
        "A preempted request keeps its cache, so more caches live than fit. Whole requests are swapped to "
        "the host, from the back of the lowest level, while iterations run and before the room is "
        "needed; those at the front come back when nothing had to leave.",
    .params = fastserve_params,
    .formulas = fastserve_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with paging, grouped heads, quantization and tensor parallelism. Excludes the other "
        "serving systems. A batch per stage of a pipeline is not modelled: there is one stage.",
    .pitfalls =
        "Process time is the wall time of the whole batch, prefill included, not a request's own work. "
        "Pushing to the front makes a level last in, first out. The paper promotes after 0.3 s, the code "
        "after 3 s and looks only every 1000 iterations. The reserve is in blocks: one decode step of a "
        "full batch, not room for as many requests. Most of the gap to early vLLM is the engine's speed.",
    .confidence =
        "high: scheduler, block manager and scripts of the artifact read; results from notes",
    .engine = fastserve_engine,
};
