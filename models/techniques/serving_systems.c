/* Survey: System-level Optimization > Hardware-aware Design > Single/Multi-GPU Design, and Memory
 * Management. */
#include "models/techniques/build.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- Orca --- */

static gboolean orca_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                            GError **error) {
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("orca");
  config->allocator = g_intern_static_string("reserved");
  config->reservation = (KvReservation)kv_technique_value(use, "reservation");
  config->max_seqs = (guint)kv_technique_value(use, "max_bs");
  config->chunked_prefill = config->prefix_caching = FALSE;
  config->async_scheduling = config->cuda_graphs = FALSE;
  return TRUE;
}

static const KvParam orca_params[] = {
    {"max_bs", KV_PARAM_INTEGER, 8, 1, 4096, NULL, "requests",
     "cap of a batch; tuned for a latency target"},
    {"reservation", KV_PARAM_CHOICE, KV_RESERVE_MAX, 0, 2, kv_reservation_names, "",
     "slots a request reserves (the vLLM paper's variants): the model's maximum length, the prompt "
     "and the output's next power of two, or exactly what it will use"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula orca_formulas[] = {
    {"kappa*max_tokens", "bytes reserved per request from admission to completion"},
    {"n*kappa + kappa", "HBM bytes that a decode step reads and writes"},
    {"max_tokens - n", "tokens of a reservation that are not used"},
    {NULL, NULL},
};

static const char *const orca_sections[] = {
    "System-level Optimization > Hardware-aware Design > Single/Multi-GPU Design", NULL};

const KvTechnique kv_technique_orca = {
    .id = "orca",
    .name = "ORCA",
    .title = "Orca: A Distributed Serving System for Transformer-Based Generative Models",
    .paper = "usenix.org/conference/osdi22/presentation/yu (no arXiv)",
    .year = 2022,
    .sections = orca_sections,
    .mechanism =
        "Scheduling by iteration: the engine runs one model iteration and returns, so finished "
        "requests leave and new ones join at every step. Tokens of all requests, whole prompts "
        "and single decode tokens alike, go through the linear layers together; only attention runs "
        "per request.\n\n"
        "Requests are taken in order of arrival, up to max_bs. A request joins only if contiguous slots "
        "for its whole life can be reserved; the first that does not fit blocks those behind it. "
        "Reservations end with the request, so nothing is ever preempted.",
    .params = orca_params,
    .formulas = orca_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with any technique that changes the model or the cache, and with tensor "
        "parallelism. Excludes the other serving systems (vllm, flexgen). Keeping one batch "
        "in flight per pipeline stage (n_workers) is not modelled: there is one stage.",
    .pitfalls =
        "The batch depends on the declared maximum output, not on the real one: compare the "
        "three reservations. Prompts are not chunked, so decodes wait for them. Most of the "
        "36.9x over FasterTransformer is the equal-latency operating point.",
    .confidence =
        "medium: abstract seen; the scheduling algorithm and the evaluation's setting are "
        "recalled; the variants are those of the vLLM paper, seen",
    .engine = orca_engine,
};

/* --- vLLM --- */

enum { VLLM_2023, VLLM_2023_MIXED, VLLM_V1 };
enum { VLLM_PREEMPT_AUTO, VLLM_PREEMPT_RECOMPUTE, VLLM_PREEMPT_SWAP };

static const char *const vllm_versions[] = {"2023", "2023-mixed", "v1", NULL};
static const char *const vllm_schedulers[] = {"vllm-2023", "vllm-2023-mixed", "vllm-v1"};
static const char *const vllm_preemptions[] = {"auto", "recompute", "swap", NULL};

static void vllm_2023(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config) {
  guint length = config->max_model_len ? config->max_model_len : model->max_context_tokens;
  if (config->max_seqs == 0)
    config->max_seqs = 256;
  /* 2560 up to v0.1.7, the longer of 2048 and the model's length from v0.2.0. */
  if (config->max_batched_tokens == 0)
    config->max_batched_tokens =
        kv_technique_value(use, "version") == VLLM_2023_MIXED ? 2560 : MAX(length, 2048);
  config->swap_bytes = kv_technique_value(use, "swap_space") * 1024.0 * 1024.0 * 1024.0;
  config->chunked_prefill = config->prefix_caching = FALSE;
  config->async_scheduling = FALSE;
  config->cuda_graphs = FALSE; /* from v0.2.7 only */
  /* Launches alone put 15 to 25 ms under a step of a 13B model's 40 layers on an A100, some 10
   * kernels each; each group is sampled in Python, tens of ms at over 200 (both recalled). */
  config->eager_kernel_seconds = 5e-5;
  config->per_sequence_seconds = 1e-4;
  config->reserve_full_prompt = TRUE;
}

static gboolean vllm_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                            GError **error) {
  guint version = (guint)kv_technique_value(use, "version");
  gboolean swaps = kv_technique_value(use, "preemption_mode") == VLLM_PREEMPT_SWAP;
  double watermark = kv_technique_value(use, "watermark");
  if (version == VLLM_V1 && swaps)
    return kv_technique_refuse(use, error,
                               "version v1 preempts by recomputation only, expected "
                               "preemption_mode=recompute or auto");
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string(vllm_schedulers[version]);
  config->allocator = g_intern_static_string("paged");
  config->block_tokens = (guint)kv_technique_value(use, "block_size");
  config->memory_utilization = kv_technique_value(use, "gpu_memory_utilization");
  config->preemption = swaps ? KV_PREEMPT_SWAP : KV_PREEMPT_RECOMPUTE;
  config->watermark = watermark >= 0.0 ? watermark : version == VLLM_V1 ? 0.0 : 0.01;
  if (kv_technique_value(use, "max_num_seqs") > 0.0)
    config->max_seqs = (guint)kv_technique_value(use, "max_num_seqs");
  if (kv_technique_value(use, "max_num_batched_tokens") > 0.0)
    config->max_batched_tokens = (guint)kv_technique_value(use, "max_num_batched_tokens");
  if (version != VLLM_V1)
    vllm_2023(use, model, config);
  return TRUE;
}

static const KvParam vllm_params[] = {
    {"version", KV_PARAM_CHOICE, VLLM_2023, 0, 2, vllm_versions, "",
     "2023: prompt-only or decode-only iterations (v0.1.3 to v0.2); 2023-mixed: both in one iteration "
     "(v0.1.0 to v0.1.2, the paper's text); v1: today's engine, the default without a technique"},
    {"block_size", KV_PARAM_INTEGER, 16, 1, 256, NULL, "tokens", "tokens per physical block"},
    {"gpu_memory_utilization", KV_PARAM_REAL, 0.9, 0.01, 1, NULL, "fraction",
     "GPU memory for weights, activations and blocks"},
    {"swap_space", KV_PARAM_REAL, 4, 0, 4096, NULL, "GiB per GPU",
     "host memory for swapped blocks; unused by v1"},
    {"watermark", KV_PARAM_REAL, -1, -1, 1, NULL, "fraction of blocks",
     "kept free at admission and swap-in, not at append; -1: 0.01, and 0 in v1"},
    {"max_num_seqs", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "sequences",
     "running sequences; 0: 256, and by platform in v1"},
    {"max_num_batched_tokens", KV_PARAM_INTEGER, 0, 0, 1048576, NULL, "tokens",
     "tokens of an iteration; 0: max(2048, model's length), 2560 in 2023-mixed, by platform in v1"},
    {"preemption_mode", KV_PARAM_CHOICE, VLLM_PREEMPT_AUTO, 0, 2, vllm_preemptions, "",
     "auto: recompute, the rule for requests of one sequence"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula vllm_formulas[] = {
    {"ceil(n/p)*p*kappa, kappa = 2*L*Hkv*d*e", "bytes of the cache; shared blocks count once"},
    {"n*kappa + kappa + 4*ceil(n/p)", "HBM bytes of a decode step: read, written, block table"},
    {"(p-1)/2", "tokens wasted per sequence, on average"},
    {"free - needed >= watermark*blocks", "the test at admission"},
    {"blocks*p*kappa in 2*L copies of p*Hkv*d*e per block", "bytes of a swap, each way"},
    {NULL, NULL},
};

static const char *const vllm_sections[] = {
    "System-level Optimization > Memory Management > Architectural Design",
    "System-level Optimization > Hardware-aware Design > Single/Multi-GPU Design", NULL};

const KvTechnique kv_technique_vllm = {
    .id = "vllm",
    .name = "vLLM (PagedAttention)",
    .title = "Efficient Memory Management for Large Language Model Serving with PagedAttention",
    .paper = "arXiv:2309.06180",
    .code = "github.com/vllm-project/vllm",
    .year = 2023,
    .sections = vllm_sections,
    .mechanism =
        "The cache of a sequence is a table of blocks of p tokens, taken from one pool as it grows: "
        "nothing is reserved and nothing has to be contiguous, so at most p-1 slots per sequence are "
        "wasted. Blocks carry reference counts; a write to a shared one copies it first.\n\n"
        "Requests are scheduled first come, first served. If a decode needs a block and none is free, the "
        "youngest running request is preempted: its blocks are dropped and recomputed later with "
        "the generated tokens as part of the prompt, or copied to host memory and back. While "
        "any request is swapped out, no new prompt is admitted.",
    .params = vllm_params,
    .formulas = vllm_formulas,
    .quality = exact_quality,
    .composes = "Goes with every technique that changes the model or the cache and does not need "
                "contiguous memory. Excludes the other serving systems (orca, flexgen).",
    .pitfalls = "Shared blocks save capacity, not bandwidth. In version 2023 a prompt stops all "
                "decodes for its whole prefill. The watermark holds at admission and swap-in only. "
                "Swapping is slow for small blocks, because a block is 2*L separate copies. "
                "The 20 to 26 % slower attention kernel of the paper is gone from today's engines.",
    .confidence = "high: most of the paper's text and the sources of v0.1.0 to v0.2.7 were read; "
                  "the default swap space is seen in all of them",
    .engine = vllm_engine,
};
