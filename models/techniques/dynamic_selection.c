/* Survey: Token-level Optimization > KV Cache Selection > Dynamic Selection without Permanent
 * Eviction. */
#include "models/techniques/build.h"

static const char *const implementations[] = {"ideal", "released", NULL};

/* --- Quest --- */

/* A page's bound of a head (fp16), written by the estimate, and its index of 32 bits, written by
 * the top-k. */
#define QUEST_BOUND_BYTES (2.0 + 4.0)
/* Section 4.3: RAFT's batched top-k takes 5 to 10 us a call on an RTX 4090. */
#define QUEST_TOP_K_SECONDS 7.5e-6

/* The least and the greatest key of each page, channel by channel. */
static gboolean quest_summaries(const KvTechniqueUse *use, const KvAttention *x, double e,
                                KvCache *cache, GError **error) {
  KvSegment *tokens = kv_cache_undivided(use, cache, TRUE, error);
  if (!tokens || !kv_cache_claim_read(use, cache, error))
    return FALSE;
  KvSegment *summaries = &cache->segments[cache->n_segments++];
  *summaries = *tokens;
  summaries->name = "least and greatest keys of the pages";
  summaries->tokens.scale /= kv_technique_value(use, "page_size");
  summaries->key_bytes = summaries->value_bytes = 0.0;
  summaries->metadata_bytes = 2.0 * x->n_kv_heads * x->head_dim * e;
  summaries->quantizer = NULL;
  return TRUE;
}

static void quest_reader(const KvTechniqueUse *use, const KvAttention *x, double e, gboolean sparse,
                         KvReader *reader) {
  double page = kv_technique_value(use, "page_size"),
         budget = kv_technique_value(use, "token_budget");
  gboolean released = kv_technique_value(use, "impl") == 1.0;
  reader->read[1] = kv_law(KV_LAW_FIXED, 0);
  if (!sparse)
    return;
  reader->read[0].cap = budget;
  reader->index_over_tokens = budget; /* pages within the budget are read without a choice */
  reader->index_bytes_per_token +=
      (2.0 * x->n_kv_heads * x->head_dim * e + x->n_heads * QUEST_BOUND_BYTES) / page;
  /* Two products, the greater of them, and a sum, per channel. */
  reader->index_flops_per_token += 4.0 * x->n_heads * x->head_dim / page;
  reader->extra_launches += 2.0; /* estimate and top-k */
  if (!released)
    return;
  reader->read_bytes_scale *= (double)x->n_heads / x->n_kv_heads; /* no union over a group */
  reader->fixed_seconds += QUEST_TOP_K_SECONDS;
}

static void quest_readers(const KvTechniqueUse *use, const KvAttention *x, KvPlan *plan,
                          guint index, gboolean sparse) {
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache == index)
      quest_reader(use, x, plan->element_bytes, sparse, reader);
  }
}

static gboolean quest_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                            guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  guint skip = (guint)kv_technique_value(use, "skip_layers"), before = 0, layers = cache->layers;
  for (guint i = 0; i < index; i++) {
    const KvCache *other = &g_array_index(plan->caches, KvCache, i);
    before += kv_plan_attention(model, other)->kind == KV_ATTENTION_FULL ? other->layers : 0;
  }
  guint dense = skip > before ? MIN(skip - before, layers) : 0;
  double width = (double)x->n_kv_heads * x->head_dim;
  if (!quest_summaries(use, x, plan->element_bytes, cache, error))
    return FALSE;
  kv_plan_add_work(plan, (KvWork){.name = "least and greatest keys of the prompt's pages",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .flops = layers * 2.0 * width,
                                  .launches = 1.0, /* the cache's write does it */
                                  .critical = TRUE});
  if (dense == 0 || dense == layers) {
    quest_readers(use, x, plan, index, dense == 0);
    return TRUE;
  }
  guint sparse = kv_plan_split_layers(plan, index, layers - dense);
  quest_readers(use, x, plan, index, FALSE);
  quest_readers(use, x, plan, sparse, TRUE);
  return TRUE;
}

static gboolean quest_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                           GError **error) {
  double page = kv_technique_value(use, "page_size"),
         budget = kv_technique_value(use, "token_budget");
  if (budget < 3.0 * page)
    return kv_technique_refuse(
        use, error, "token_budget is %g, expected at least three pages of %g tokens", budget, page);
  if (!plan->paged)
    return kv_technique_refuse(
        use, error,
        "pages are chosen, but the cache lies in contiguous memory, expected a paged plan");
  if (!kv_plan_each_full_cache(use, model, plan, quest_cache, error))
    return FALSE;
  kv_plan_share_at(plan, (guint)page);
  return TRUE;
}

static gboolean quest_engine(const KvTechniqueUse *use, const KvModel *model,
                             KvEngineConfig *config, GError **error) {
  if (kv_technique_value(use, "impl") == 1.0)
    config->max_seqs = 1; /* the released engine asserts it */
  return TRUE;
}

static const KvParam quest_params[] = {
    {"page_size", KV_PARAM_INTEGER, 16, 8, 64, NULL, "tokens", "tokens of a page and of a summary"},
    {"token_budget", KV_PARAM_INTEGER, 2048, 32, 1048576, NULL, "tokens",
     "tokens of the chosen pages, the last page counted; published at 256 to 4096, three pages at least"},
    {"skip_layers", KV_PARAM_INTEGER, 2, 0, 1024, NULL, "layers",
     "first layers, which attend to everything"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: one choice per KV head; released: one per query head, so that a group's pages are read "
     "for each of its heads, and one sequence at a time"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula quest_formulas[] = {
    {"2*L*Hkv*d*e*n*(1 + 1/p)", "bytes of the cache and its summaries, p tokens a page"},
    {"2*s*Hkv*d*e*n + (L-s)*(2*Hkv*d*e*n/p + 2*Hu*d*e*B + 6*H*n/p), Hu = Hkv (ideal) or H (released)",
     "HBM bytes that a decode step reads where n > B: s dense layers; summaries, chosen pages, bounds"},
    {"4*H*d*(s*n + (L-s)*(n/p + B))", "FLOPs of a decode step: attention and estimates"},
    {"2*L*Hkv*d*p", "comparisons for the prompt's summaries, p the prompt"},
    {NULL, NULL},
};

#define QUEST_PASSKEY_10K "passkey 10k accuracy"
#define QUEST_PASSKEY_100K "passkey 100k accuracy"
static const KvQualityPoint quest_quality[] = {
    {"LongChat-7B-v1.5-32k", QUEST_PASSKEY_10K, "B=32", 100, 65, "Table 1, seen", "token_budget",
     32, NULL},
    {"LongChat-7B-v1.5-32k", QUEST_PASSKEY_10K, "B=64", 100, 99, "Table 1, seen", "token_budget",
     64, NULL},
    {"LongChat-7B-v1.5-32k", QUEST_PASSKEY_10K, "B=128", 100, 99, "Table 1, seen", "token_budget",
     128, NULL},
    {"LongChat-7B-v1.5-32k", QUEST_PASSKEY_10K, "B=256", 100, 99, "Table 1, seen", "token_budget",
     256, NULL},
    {"LongChat-7B-v1.5-32k", QUEST_PASSKEY_10K, "B=512", 100, 100, "Table 1, seen", "token_budget",
     512, NULL},
    {"Yarn-Llama-2-7B-128k", QUEST_PASSKEY_100K, "B=256", 100, 88, "Table 1, seen", "token_budget",
     256, NULL},
    {"Yarn-Llama-2-7B-128k", QUEST_PASSKEY_100K, "B=512", 100, 92, "Table 1, seen", "token_budget",
     512, NULL},
    {"Yarn-Llama-2-7B-128k", QUEST_PASSKEY_100K, "B=1024", 100, 96, "Table 1, seen", "token_budget",
     1024, NULL},
    {"Yarn-Llama-2-7B-128k", QUEST_PASSKEY_100K, "B=2048", 100, 100, "Table 1, seen",
     "token_budget", 2048, NULL},
    {"Yarn-Llama-2-7B-128k", QUEST_PASSKEY_100K, "B=4096", 100, 100, "Table 1, seen",
     "token_budget", 4096, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench avg", "as run by the RetrievalAttention authors",
     50.4, 47.6, "RetrievalAttention paper tables, seen", NULL, 0, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench Retrieve.KV",
     "as run by the RetrievalAttention authors", 17.5, 0, "RetrievalAttention paper tables, seen",
     NULL, 0, NULL},
    {"Llama-3-8B-Instruct-262k", "RULER avg at 128K", "2K active tokens", 78.7, 60.5,
     "RetrievalAttention Table 9, seen", "token_budget", 2048, NULL},
    {"Llama-3-70B-262k", "InfiniteBench Retrieve.KV", "as run by the RetrievalAttention authors",
     35.0, 13.0, "RetrievalAttention Table 11, seen", NULL, 0, NULL},
    {0},
};

static const char *const dynamic_sections[] = {"Token-level Optimization > KV Cache Selection > "
                                               "Dynamic Selection without Permanent Eviction",
                                               NULL};

const KvTechnique kv_technique_quest = {
    .id = "quest",
    .name = "Quest",
    .title = "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
    .paper = "arXiv:2406.10774",
    .code = "github.com/mit-han-lab/Quest",
    .year = 2024,
    .sections = dynamic_sections,
    .mechanism =
        "Everything stays in memory, in pages, and each page also has the least and the greatest value "
        "of every key channel, brought up to date with every token that comes in. From these and a query "
        "follows a bound that no key of the page can exceed. In each step, layer and head the pages with "
        "the highest bounds are attended to, exactly, and the last page always is.\n\n"
        "The choice is made anew each time, so a page passed over now can be read later. The first "
        "layers attend to everything, prompts are computed as usual, and while all pages fit the budget "
        "nothing is estimated.",
    .params = quest_params,
    .formulas = quest_formulas,
    .quality = quest_quality,
    .composes =
        "Needs pages. Goes with grouped heads, quantizers of single tokens, weight quantization, prefix "
        "sharing at whole pages and tensor parallelism. Excludes techniques that drop tokens, split the "
        "cache into parts or move it to another tier, and latent attention.",
    .pitfalls =
        "Saves traffic and no memory: the cache grows by 1/p, so no larger batch fits. The dense layers "
        "put a floor under the traffic, and the summaries' part grows with the context. Three kernels a "
        "layer instead of one lose at short contexts. The summaries follow the mean of n/p pages, "
        "not whole ones.",
    .confidence = "high: paper, code and figures were read",
    .plan = quest_plan,
    .engine = quest_engine,
};

/* --- RetrievalAttention --- */

enum { INDEX_GRAPH, INDEX_IVF, INDEX_FLAT };

/* An inverted file reaches the recall of the graph at about 30 % of the keys; a flat index looks at
 * all. Both read their lists in order. */
static double retrieval_scan(const KvTechniqueUse *use) {
  switch ((int)kv_technique_value(use, "index")) {
  case INDEX_IVF:
    return 0.3;
  case INDEX_FLAT:
    return 1.0;
  default:
    return kv_technique_value(use, "scan");
  }
}

/* Table 4: at 4K tokens, where there is next to nothing to search, a token takes 0.137 s; the same
 * model and GPU with a cache that is small and on the GPU takes 0.028 s. Of 32 layers, each: */
#define RETRIEVAL_RELEASED_LAYER_SECONDS ((0.137 - 0.028) / 32.0)
/* A query's and a result's copy and two wake-ups (estimate). */
#define RETRIEVAL_IDEAL_LAYER_SECONDS 50e-6

/* Of an element in host memory: the released port keeps fp32 there. */
static double retrieval_host_bytes(const KvTechniqueUse *use, double e) {
  return kv_technique_value(use, "impl") == 1.0 ? 4.0 : e;
}

static void retrieval_cpu_reader(const KvTechniqueUse *use, const KvAttention *x, double e,
                                 KvReader *reader) {
  double scan = retrieval_scan(use), floor_ms = kv_technique_value(use, "layer_floor");
  gboolean released = kv_technique_value(use, "impl") == 1.0;
  reader->processor = KV_PROCESSOR_CPU;
  reader->overlap = KV_OVERLAP_ATTENTION;
  reader->read[0] = reader->read[1] = reader->read[3] = kv_law(KV_LAW_FIXED, 0);
  reader->read[2] = kv_law(KV_LAW_FIRST, kv_technique_value(use, "top_k"));
  reader->read_bytes_scale = (double)x->n_heads / x->n_kv_heads; /* each query head its own */
  reader->index_bytes_per_token = scan * x->n_heads * x->head_dim * retrieval_host_bytes(use, e);
  reader->index_flops_per_token = scan * 2.0 * x->n_heads * x->head_dim;
  if (kv_technique_value(use, "index") == INDEX_GRAPH)
    reader->efficiency = kv_technique_value(use, "random_efficiency");
  reader->fixed_seconds = floor_ms >= 0.0 ? floor_ms / 1e3
                          : released      ? RETRIEVAL_RELEASED_LAYER_SECONDS
                                          : RETRIEVAL_IDEAL_LAYER_SECONDS;
}

static void retrieval_segments(const KvTechniqueUse *use, const KvAttention *x, double e,
                               KvCache *cache) {
  const KvSegment whole = cache->segments[0];
  double fixed =
      kv_technique_value(use, "initial_tokens") + kv_technique_value(use, "recent_tokens");
  gboolean graph = kv_technique_value(use, "index") == INDEX_GRAPH;
  KvLaw prompt = kv_law(KV_LAW_FIRST, 0), beyond = kv_law(KV_LAW_BEYOND, 0);
  prompt.prompt_share = beyond.prompt_share = 1.0;
  cache->n_segments = 4;
  for (guint s = 0; s < cache->n_segments; s++)
    cache->segments[s] = whole;
  cache->segments[0].name = "first and last of the prompt";
  cache->segments[0].role = KV_ROLE_SINK;
  cache->segments[0].tokens = kv_law(KV_LAW_FIRST, fixed);
  cache->segments[1].name = "generated";
  cache->segments[1].role = KV_ROLE_RECENT;
  cache->segments[1].tokens = beyond;
  cache->segments[2].name = "prompt, indexed";
  cache->segments[2].tokens = prompt;
  cache->segments[2].tier = KV_TIER_DRAM;
  cache->segments[2].key_bytes *= retrieval_host_bytes(use, e) / e;
  cache->segments[2].value_bytes *= retrieval_host_bytes(use, e) / e;
  cache->segments[3].name = "index";
  cache->segments[3].tokens = prompt;
  cache->segments[3].tier = KV_TIER_DRAM;
  cache->segments[3].key_bytes = cache->segments[3].value_bytes = 0.0;
  cache->segments[3].metadata_bytes =
      graph ? x->n_heads * kv_technique_value(use, "degree") * 4.0 : 0.0;
}

static void retrieval_work(const KvTechniqueUse *use, KvPlan *plan, const KvCache *cache,
                           const KvAttention *x) {
  double layers = cache->layers, heads = x->n_heads, d = x->head_dim, e = plan->element_bytes;
  double degree = kv_technique_value(use, "degree");
  if (kv_technique_value(use, "index") != INDEX_GRAPH)
    return;
  /* All keys against all queries of the prompt, later keys too: twice the triangle. */
  kv_plan_add_work(plan, (KvWork){.name = "nearest keys of the prompt's queries",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .flops_per_token = layers * 4.0 * heads * d,
                                  .launches = layers,
                                  .matrix = TRUE,
                                  .critical = TRUE});
  /* At least one distance and one link per edge. */
  kv_plan_add_work(plan, (KvWork){.name = "build the graphs",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * heads * degree * 2.0 * d,
                                  .bytes_per_token = layers * heads * degree * (d * e + 4.0),
                                  .processor = KV_PROCESSOR_CPU,
                                  .efficiency = kv_technique_value(use, "random_efficiency"),
                                  .critical = TRUE});
}

static gboolean retrieval_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                guint index, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  if (!kv_cache_undivided(use, cache, FALSE, error) || !kv_cache_claim_read(use, cache, error))
    return FALSE;
  retrieval_segments(use, x, plan->element_bytes, cache);
  guint n_readers = plan->readers->len;
  for (guint r = 0; r < n_readers; r++) {
    KvReader *gpu = &g_array_index(plan->readers, KvReader, r);
    if (gpu->cache != index)
      continue;
    KvReader cpu = *gpu;
    retrieval_cpu_reader(use, x, plan->element_bytes, &cpu);
    gpu->read[0] = cache->segments[0].tokens;
    gpu->read[1] = cache->segments[1].tokens;
    gpu->read[2] = gpu->read[3] = kv_law(KV_LAW_FIXED, 0);
    gpu->extra_launches += 1.0; /* the two parts are joined by their sums of exponentials */
    g_array_append_val(plan->readers, cpu);
  }
  retrieval_work(use, plan, cache, x);
  return TRUE;
}

static gboolean retrieval_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                               GError **error) {
  if (!kv_plan_each_full_cache(use, model, plan, retrieval_cache, error))
    return FALSE;
  plan->prefill_peak_layers = 1.0; /* a layer's cache leaves while the next is computed */
  kv_plan_end_sharing(use, plan);
  return TRUE;
}

static const char *const indexes[] = {"graph", "ivf", "flat", NULL};

static const KvParam retrieval_params[] = {
    {"top_k", KV_PARAM_INTEGER, 100, 1, 65536, NULL, "tokens",
     "keys retrieved per query head; published at 100 and 2000"},
    {"initial_tokens", KV_PARAM_INTEGER, 128, 0, 65536, NULL, "tokens",
     "first tokens of the prompt, on the GPU"},
    {"recent_tokens", KV_PARAM_INTEGER, 512, 1, 65536, NULL, "tokens",
     "last tokens of the prompt, on the GPU"},
    {"index", KV_PARAM_CHOICE, INDEX_GRAPH, 0, 2, indexes, "",
     "graph: across the distributions of queries and keys, one per query head; ivf: an inverted file, "
     "which scans 30 % of the keys for the same recall; flat: all of them"},
    {"scan", KV_PARAM_REAL, 0.02, 0.0001, 1, NULL, "fraction of the context",
     "keys that the graph's search visits; published at 0.01 to 0.03"},
    {"degree", KV_PARAM_INTEGER, 32, 1, 1024, NULL, "edges",
     "of a key in a graph, 4 bytes each (estimate: 32 to 64)"},
    {"random_efficiency", KV_PARAM_REAL, 0.3, 0.01, 1, NULL, "fraction",
     "of host memory's bandwidth that rows visited in a graph's order get (estimate)"},
    {"layer_floor", KV_PARAM_REAL, -1, -1, 1000, NULL, "ms",
     "per layer and step on the CPU, however few tokens; negative: 0.05 (estimate), and 3.4 in "
     "released, from the paper's time at 4K tokens"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal; released: the floor per layer that the paper's own system shows, and fp32 in host memory as in "
     "the released port"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula retrieval_formulas[] = {
    {"2*L*Hkv*d*e*(min(n,i+r) + g)", "bytes on the GPU: i initial, r recent, g generated tokens"},
    {"2*L*Hkv*d*eh*p + 4*L*H*degree*p, eh = e (ideal) or 4 (released)",
     "bytes in host memory: keys and values once, a graph per query head"},
    {"L*H*(scan*n*d*eh + 2*top_k*d*eh)", "bytes of host memory that a step reads"},
    {"4*L*H*d*(i+r+g)", "FLOPs of a step on the GPU"},
    {"2*L*H*d*scan*n + 4*L*H*d*top_k", "FLOPs of a step on the CPU"},
    {"2*L*H*d*p^2", "FLOPs on the GPU for the nearest keys of the prompt's queries"},
    {"2*L*Hkv*d*e*p", "bytes that leave the GPU with the prompt"},
    {NULL, NULL},
};

static const KvQualityPoint retrieval_quality[] = {
    {"Llama-3-8B-Instruct-262k", "InfiniteBench avg", "top-100", 50.4, 48.9, "paper tables, seen",
     "top_k", 100, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench avg", "top-2000", 50.4, 49.6, "paper tables, seen",
     "top_k", 2000, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench Retrieve.KV", "top-100", 17.5, 9.0,
     "paper tables, seen", "top_k", 100, NULL},
    {"Llama-3-8B-Instruct-262k", "InfiniteBench Retrieve.KV", "top-2000", 17.5, 14.0,
     "paper tables, seen", "top_k", 2000, NULL},
    {"Yi-9B-200K", "InfiniteBench avg", "top-100", 52.8, 50.8, "paper tables, seen", "top_k", 100,
     NULL},
    {"Yi-9B-200K", "InfiniteBench avg", "top-2000", 52.8, 52.2, "paper tables, seen", "top_k", 2000,
     NULL},
    {"Yi-6B-200K", "InfiniteBench avg", "top-100", 45.5, 45.0, "paper tables, seen", "top_k", 100,
     NULL},
    {"Llama-3-8B-Instruct-262k", "RULER avg 4K..128K", "top-100", 86.54, 84.7, "paper tables, seen",
     "top_k", 100, NULL},
    {"Llama-3-8B-Instruct-262k", "RULER at 128K", "top-100", 78.74, 74.7, "paper tables, seen",
     "top_k", 100, NULL},
    {0},
};

const KvTechnique kv_technique_retrieval_attention = {
    .id = "retrieval-attention",
    .name = "RetrievalAttention",
    .title = "RetrievalAttention: Accelerating Long-Context LLM Inference via Vector Retrieval",
    .paper = "arXiv:2409.10516",
    .code = "github.com/microsoft/RetrievalAttention (now of its successor RetroInfer)",
    .year = 2024,
    .sections = dynamic_sections,
    .mechanism =
        "The GPU keeps the prompt's first and last tokens and what is generated, and attends to these. "
        "All of the prompt's keys and values lie in host memory under an index per query head; the heads "
        "of a group share the vectors and not the index. In each layer the query goes to the CPU, which "
        "looks for its nearest keys and attends to them while the GPU attends to its own part; the two "
        "results are joined exactly.\n\n"
        "Queries and keys are distributed differently, so an index built from keys alone has to visit "
        "a third of them. Here the prompt's own queries build it: the nearest keys of each are found "
        "exactly, keys that share a query are linked, and the graph is reduced to keys. A search then "
        "visits 1 to 3 %.",
    .params = retrieval_params,
    .formulas = retrieval_formulas,
    .quality = retrieval_quality,
    .composes =
        "Goes with grouped heads, fused attention, weight quantization and any scheduler. Excludes other "
        "techniques that choose, move or quantize the cache, and latent attention. The index is of one "
        "prompt, so prefixes are not shared.",
    .pitfalls =
        "Its worth is capacity: where the cache fits the GPU, attention there is several times faster. "
        "The time is nearly flat in the context but stands on a floor per layer, and grows with the "
        "batch, which one CPU serves. Building the index costs another pass quadratic in the prompt and "
        "CPU time, for which only a lower bound is counted. Neighbours per query when building and the "
        "graph's degree are not published. Search counts generated tokens too, which are not indexed.",
    .confidence =
        "high on mechanism and figures: the paper with its appendix and a port were read; degree and "
        "building parameters are estimates, and the released floor is derived from the paper's 4K row",
    .plan = retrieval_plan,
};
