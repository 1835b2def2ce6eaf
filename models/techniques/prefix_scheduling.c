/* Survey: System-level Optimization > Scheduling > Prefix-aware Scheduling. */
#include "models/techniques/build.h"

static const KvQualityPoint exact_quality[] = {
    {0},
};

/* --- RadixAttention (SGLang) --- */

static gboolean radixattention_engine(const KvTechniqueUse *use, const KvModel *model,
                                      KvEngineConfig *config, GError **error) {
  (void)model;
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("sglang");
  config->allocator = g_intern_static_string("paged");
  config->block_tokens = (guint)kv_technique_value(use, "page_size");
  config->prefix_caching = TRUE;
  config->merge_duplicates = config->cache_answers = TRUE;
  config->sglang.order = (KvQueueOrder)kv_technique_value(use, "policy");
  config->sglang.check_tokens = (guint)kv_technique_value(use, "check_tokens");
  config->sglang.defer_tokens = (guint)kv_technique_value(use, "defer_tokens");
  config->sglang.order_limit = (guint)kv_technique_value(use, "queue_limit");
  config->sglang.first_new_ratio = kv_technique_value(use, "new_token_ratio");
  config->sglang.most_new_tokens = (guint)kv_technique_value(use, "clip_new_tokens");
  return TRUE;
}

static const KvParam radixattention_params[] = {
    {"page_size", KV_PARAM_INTEGER, 1, 1, 1024, NULL, "tokens",
     "slot of the pool and step of the tree; a match is cut to whole pages"},
    {"policy", KV_PARAM_CHOICE, KV_ORDER_LPM, 0, 4, kv_queue_order_names, "",
     "order of the queue: lpm, longest cached prefix first (the paper's); dfs-weight, depth first "
     "through the tree; fcfs (the default of many releases); lof, longest answer first; random"},
    {"check_tokens", KV_PARAM_INTEGER, 32, 0, 1048576, NULL, "tokens",
     "requests that match at most so much are also matched against each other"},
    {"defer_tokens", KV_PARAM_INTEGER, 32, 0, 1048576, NULL, "tokens",
     "with more than so much in common with one before it, such a request goes last"},
    {"queue_limit", KV_PARAM_INTEGER, 128, 0, 1048576, NULL, "requests",
     "above so many waiting, lpm and dfs-weight fall back to order of arrival"},
    {"new_token_ratio", KV_PARAM_REAL, 0.7, 0, 1, NULL, "fraction",
     "share of running requests' remaining answers set aside at admission; falls to 0.14 of it "
     "over 600 decode steps (recalled)"},
    {"clip_new_tokens", KV_PARAM_INTEGER, 4096, 1, 1048576, NULL, "tokens",
     "of an answer, as far as admission looks"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula radixattention_formulas[] = {
    {"kappa*(T + U), kappa = 2*L*Hkv*d*e",
     "bytes of the cache: T distinct tokens of the tree, U tokens of running answers"},
    {"n*kappa + kappa", "HBM bytes of a decode step: a shared prefix is read by each sequence"},
    {"n - page*floor(match/page)", "prompt tokens to compute"},
    {"u + a + r*sum(remaining) < free + evictable",
     "the test at admission: u tokens to compute, a its answer, r the new-token ratio"},
    {NULL, NULL},
};

static const char *const radixattention_sections[] = {
    "System-level Optimization > Scheduling > Prefix-aware Scheduling", NULL};

const KvTechnique kv_technique_radixattention = {
    .id = "radixattention",
    .name = "RadixAttention (SGLang)",
    .title = "SGLang: Efficient Execution of Structured Language Model Programs",
    .paper = "arXiv:2312.07104",
    .code = "github.com/sgl-project/sglang",
    .year = 2024,
    .sections = radixattention_sections,
    .mechanism =
        "Keys and values of running and of finished requests share one pool of single-token slots, "
        "found through a radix tree over token strings. A request takes over the slots of the longest "
        "prefix that the tree holds and computes the rest; its own tokens enter the tree chunk by "
        "chunk, its answer when it is complete, and slots that turn out to be there already are given "
        "back. What running requests use is locked. When slots run out, leaves that nobody uses "
        "go, the least recently used first, and then parents that have become leaves.\n\n"
        "The queue follows the cache. Before prompts are taken, every waiting request is matched, which "
        "also refreshes the age of what it matched, and the queue is sorted by the length of the "
        "match, ties in order of arrival. Requests that match almost nothing are compared with "
        "each other: where several begin alike, one goes ahead to compute what they share and the "
        "others go to the end. Behind a long queue sorting stops and order of arrival takes over.",
    .params = radixattention_params,
    .formulas = radixattention_formulas,
    .quality = exact_quality,
    .composes =
        "Goes with techniques that change the model or the cache, as long as equal prefixes keep "
        "equal caches (an eviction by scores ends sharing, and only the scheduler remains), with tensor "
        "parallelism, and with replicas behind the router 'prefix'. Excludes the other serving "
        "systems. Leaves go by LRU: the other orders of eviction of later releases are not modelled. "
        "Answers are found again in traces of sessions, whose next turn names them.",
    .pitfalls =
        "Longest match first has no ageing: unpopular prefixes starve while popular ones come. "
        "Cached tokens are free memory to admission; to subtract them is to run too small a batch. "
        "A hit saves prefill and not a byte of decode bandwidth. A larger page cuts every match.",
    .confidence =
        "high: sources of scheduler and cache read; the constants of the new-token ratio and the "
        "order of retraction recalled",
    .engine = radixattention_engine,
};
