/* Survey: System-level Optimization > Hardware-aware Design > Single/Multi-GPU Design. */
#include "models/techniques/build.h"

static const char *const sections[] = {
    "System-level Optimization > Hardware-aware Design > Single/Multi-GPU Design", NULL};

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- DistServe --- */

static gboolean distserve_engine(const KvTechniqueUse *use, const KvModel *model,
                                 KvEngineConfig *config, GError **error) {
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  double most_seqs = kv_technique_value(use, "decode_max_batch");
  config->scheduler = g_intern_static_string("distserve");
  config->allocator = g_intern_static_string("paged");
  config->router = g_intern_static_string("shortest-queue");
  config->prefill_instances = (guint)kv_technique_value(use, "prefill_instances");
  config->decode_instances = (guint)kv_technique_value(use, "decode_instances");
  config->prefill_tensor_parallel = (guint)kv_technique_value(use, "prefill_tp");
  config->decode_tensor_parallel = (guint)kv_technique_value(use, "decode_tp");
  config->max_batched_tokens = (guint)kv_technique_value(use, "prefill_max_tokens");
  config->max_seqs = (guint)kv_technique_value(use, "prefill_max_batch");
  config->decode_max_seqs = (guint)MIN(most_seqs, kv_technique_value(use, "decode_max_tokens"));
  config->block_tokens = (guint)kv_technique_value(use, "block_size");
  config->pull_share = kv_technique_value(use, "pull_threshold");
  config->pull_in_node = kv_technique_value(use, "same_node") != 0.0;
  config->memory_utilization = kv_technique_value(use, "gpu_memory_utilization");
  config->swap_bytes = kv_technique_value(use, "swap_space") * 1e9;
  config->preemption = KV_PREEMPT_SWAP;
  config->chunked_prefill = config->prefix_caching = config->async_scheduling = FALSE;
  return TRUE;
}

static const KvParam distserve_params[] = {
    {"prefill_instances", KV_PARAM_INTEGER, 1, 1, 4096, NULL, "instances",
     "that compute prompts and first tokens"},
    {"decode_instances", KV_PARAM_INTEGER, 1, 1, 4096, NULL, "instances", "that decode"},
    {"prefill_tp", KV_PARAM_INTEGER, 0, 0, 1024, NULL, "GPUs",
     "tensor parallelism of a prefill instance; 0: the scenario's"},
    {"decode_tp", KV_PARAM_INTEGER, 0, 0, 1024, NULL, "GPUs",
     "tensor parallelism of a decode instance; 0: the scenario's"},
    {"prefill_pp", KV_PARAM_INTEGER, 1, 1, 1, NULL, "stages",
     "pipeline stages of a prefill instance; only 1 is modelled"},
    {"decode_pp", KV_PARAM_INTEGER, 1, 1, 1, NULL, "stages",
     "pipeline stages of a decode instance; only 1 is modelled"},
    {"prefill_max_tokens", KV_PARAM_INTEGER, 8192, 1, 1048576, NULL, "tokens",
     "of a batch of prompts: about the length that saturates the GPU; a longer prompt runs alone"},
    {"prefill_max_batch", KV_PARAM_INTEGER, 128, 1, 65536, NULL, "requests",
     "of a batch of prompts"},
    {"decode_max_batch", KV_PARAM_INTEGER, 1024, 1, 65536, NULL, "requests",
     "that decode together"},
    {"decode_max_tokens", KV_PARAM_INTEGER, 65536, 1, 1048576, NULL, "tokens",
     "of a decode step, one per request"},
    {"block_size", KV_PARAM_INTEGER, 16, 1, 256, NULL, "tokens", "tokens of a block"},
    {"pull_threshold", KV_PARAM_REAL, 0.05, 1e-6, 1, NULL, "fraction of blocks",
     "a decode instance pulls while requests that it has pulled and does not run yet hold less"},
    {"same_node", KV_PARAM_FLAG, 1, 0, 1, NULL, "",
     "decode in the node of the prefill where it has a decode instance (slow networks)"},
    {"gpu_memory_utilization", KV_PARAM_REAL, 0.95, 0.01, 1, NULL, "fraction",
     "GPU memory for weights, activations and blocks"},
    {"swap_space", KV_PARAM_REAL, 16, 0, 4096, NULL, "GB",
     "host memory for blocks that a decode instance swaps out"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula distserve_formulas[] = {
    {"kappa*p*ceil(n/p), kappa = 2*L*Hkv*d*e",
     "bytes of a prompt: on the prefill side until pulled"},
    {"kappa*n", "bytes that cross the link once per request"},
    {"min(TPp, TPd)*B", "rate of the pull, with B of one GPU's link"},
    {"blocks(pulled, not running) < 0.05*blocks", "when the next prompt is pulled"},
    {"blocks(new) <= blocks - blocks(in flight) - blocks(not pulled)", "when a prompt is admitted"},
    {"2*W", "bytes of weights of a pair"},
    {NULL, NULL},
};

const KvTechnique kv_technique_distserve = {
    .id = "distserve",
    .name = "DistServe",
    .title = "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language "
             "Model Serving",
    .paper = "arXiv:2401.09670",
    .code = "github.com/LLMServe/DistServe",
    .year = 2024,
    .sections = sections,
    .mechanism =
        "Prompts and answers are computed by different instances, each with its own weights and its "
        "own parallelism, so that a long prompt never delays a token that others wait for, and each "
        "side can be sized for its own latency target.\n\n"
        "A request goes to the prefill instance that has the least queued. It batches whole prompts "
        "in order up to a token budget and emits first tokens. The finished prompt is announced to "
        "the least loaded decode instance and keeps its blocks until that one pulls them, which it "
        "does while the requests that it has pulled and does not run yet hold less than a twentieth of "
        "its blocks: bursts back up in prefill memory. The pull is a copy over the links between "
        "GPUs, or over the network between nodes. The decode side batches all it can hold, and "
        "swaps out the last of its batch when blocks run short.",
    .params = distserve_params,
    .formulas = distserve_formulas,
    .quality = exact_quality,
    .composes = "Goes with techniques that change the model or the cache: a smaller cache is a "
                "smaller transfer. Excludes the other serving systems (vllm, orca, flexgen) and "
                "replicas beside its own instances. Prefixes are not shared.",
    .pitfalls =
        "Compare goodput per GPU: a pair has two copies of the weights. The ratio of prefill to "
        "decode GPUs must fit the workload, or one side idles. Blocks that are not pulled yet make new "
        "prompts wait. Pulls share the receiving instance's links only. The paper's baseline does not "
        "chunk prompts. The search for a placement is not part of a run: compare placements with "
        "goodput searches.",
    .confidence =
        "high: schedulers, simulator and settings of the repository were read; results are "
        "from the abstract and a detailed digest",
    .engine = distserve_engine,
};

/* --- Tree Attention --- */

static gboolean tree_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                          GError **error) {
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (x->kind != KV_ATTENTION_FULL && x->kind != KV_ATTENTION_LATENT)
      return kv_technique_refuse(use, error,
                                 "layers of %s have %s attention, expected attention to the whole "
                                 "context, which is what is split",
                                 model->id, kv_attention_kind_names[x->kind]);
    for (guint s = 0; s < cache->n_segments; s++)
      if (cache->segments[s].tier != KV_TIER_HBM)
        return kv_technique_refuse(
            use, error,
            "'%s' of the cache lives in %s, expected a cache in the GPUs' own "
            "memory",
            cache->segments[s].name, kv_tier_names[cache->segments[s].tier]);
  }
  for (guint r = 0; r < plan->readers->len; r++)
    if (g_array_index(plan->readers, KvReader, r).processor != KV_PROCESSOR_GPU)
      return kv_technique_refuse(use, error,
                                 "some attention is elsewhere than on the GPU, expected "
                                 "all of it there");
  return TRUE;
}

static gboolean tree_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                            GError **error) {
  if (config->prefill_instances > 0)
    return kv_technique_refuse(use, error,
                               "instances have roles already (%s), expected instances that do "
                               "everything",
                               config->scheduled_by ? config->scheduled_by : "the scenario");
  config->context_parallel = (guint)kv_technique_value(use, "P");
  config->combine = (KvCombine)kv_technique_value(use, "combine");
  config->combine_fused = kv_technique_value(use, "collectives") < 3.0;
  return TRUE;
}

static const KvParam tree_params[] = {
    {"P", KV_PARAM_INTEGER, 0, 0, 1024, NULL, "groups of GPUs",
     "over which each context is split, one GPU each unless tensor_parallel says more; 0: all the "
     "platform has; 8 to 128 in the paper"},
    {"combine", KV_PARAM_CHOICE, KV_COMBINE_TREE, 0, 1, kv_combine_names, "",
     "tree: reductions of query-sized results; ring: every shard passes by every GPU (Ring Attention, "
     "the paper's baseline)"},
    {"collectives", KV_PARAM_INTEGER, 3, 2, 3, NULL, "per layer",
     "largest score, outputs, sum of weights; 2: the sums go with the outputs"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula tree_formulas[] = {
    {"kappa*n/P", "bytes of cache stored and read by each GPU"},
    {"4*L*H*d*n/P", "FLOPs of attention on each GPU"},
    {"b*H*d*e + 2*4*b*H", "bytes reduced per layer and step, whatever n is"},
    {"a1*log2(P_node) + a2*log2(nodes) + 2*(P-1)/P*payload/B", "seconds of a reduction"},
    {"t + (P-1)*max(t, 2*b*(n/P)*Hkv*d*e/B)", "seconds of a layer around a ring, t of one shard"},
    {"2*b*t*D + 2*b*D + 2*b*H against 4*b*t*D + 2*b*D, t = n/P",
     "elements at the peak of attention, tree against ring (recalled)"},
    {NULL, NULL},
};

const KvTechnique kv_technique_tree_attention = {
    .id = "tree-attention",
    .name = "Tree Attention",
    .title = "Tree Attention: Topology-aware Decoding for Long-Context Attention on GPU Clusters",
    .paper = "arXiv:2408.04093",
    .code = "github.com/Zyphra/tree_attention",
    .year = 2024,
    .sections = sections,
    .mechanism =
        "The cache of a long context is split along its tokens over many GPUs. For a new token every GPU "
        "attends to its own part and keeps the output and the log of the sum of its weights, per head. "
        "Softmax attention is an associative reduction, so three all-reduces of query-sized "
        "tensors give the result: of the largest score, of the outputs and of the weights, both "
        "scaled to that score.\n\n"
        "The reductions run as trees that follow the topology, first over the fast links of a node, then "
        "between nodes: latency grows with the logarithm of the number of GPUs and the volume "
        "does not depend on the context. Ring Attention, the alternative, passes the keys and values "
        "themselves around, though there is one query only.",
    .params = tree_params,
    .formulas = tree_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with GQA, quantized and paged caches (each GPU has its share) and tensor "
        "parallelism within a group. Excludes caches below HBM, attention on other processors, "
        "windows and states, and instances with roles (distserve).",
    .pitfalls =
        "The baseline is a ring for decoding, which is naive: engines that split a context over GPUs "
        "reduce as this does. Three collectives a layer cost more than short contexts save. Payloads "
        "grow with the batch. Weights are whole in each group. The last shard grows until the cache "
        "is balanced again, which is not modelled. Prompts are priced as one group computes them: the "
        "paper leaves them to others.",
    .confidence =
        "medium: the README, a JAX kernel and abstracts were read; the scale of the 8x point "
        "and the formulas of memory are recalled",
    .plan = tree_plan,
    .engine = tree_engine,
};
