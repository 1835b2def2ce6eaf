/* Survey: System-level Optimization > Hardware-aware Design > SSD-based Design. */
#include "models/techniques/build.h"
#include "models/techniques/flexgen_search.h"

/* --- FlexGen --- */

/* An fp16 scale and an fp16 minimum per group of 64 elements of 4 bits. */
#define FLEXGEN_PACKED_BYTES 0.5
#define FLEXGEN_SCALE_BYTES (4.0 / 64.0)

typedef struct {
  double share[KV_N_TIERS];
} Shares;

static gboolean flexgen_shares(const KvTechniqueUse *use, const char *gpu, const char *cpu,
                               Shares *shares, GError **error) {
  double on_gpu = kv_technique_value(use, gpu), on_cpu = kv_technique_value(use, cpu);
  if (on_gpu + on_cpu > 100.0)
    return kv_technique_refuse(use, error, "%s and %s add up to %g %%, expected at most 100 %%",
                               gpu, cpu, on_gpu + on_cpu);
  *shares = (Shares){{0}};
  shares->share[KV_TIER_HBM] = on_gpu / 100.0;
  shares->share[KV_TIER_DRAM] = on_cpu / 100.0;
  shares->share[KV_TIER_SSD] = (100.0 - on_gpu - on_cpu) / 100.0;
  return TRUE;
}

enum { CPU_AUTO, CPU_OFF, CPU_ON };

static gboolean flexgen_check(const KvTechniqueUse *use, GError **error) {
  gboolean compressed = kv_technique_value(use, "compress_cache") != 0.0;
  if (compressed && kv_technique_value(use, "attn_sparsity") < 1.0)
    return kv_technique_refuse(
        use, error,
        "compress_cache excludes attn_sparsity below 1: single rows of packed "
        "values cannot be fetched, expected one of the two");
  if (compressed && kv_technique_value(use, "cpu_cache_compute") == CPU_ON)
    return kv_technique_refuse(use, error,
                               "compress_cache excludes attention on the CPU, which has no kernel "
                               "for packed keys, expected cpu_cache_compute=off or auto");
  return TRUE;
}

static gboolean flexgen_weights(const KvTechniqueUse *use, KvPlan *plan, GError **error) {
  Shares weights;
  double on_gpu = kv_technique_value(use, "hg"), on_cpu = kv_technique_value(use, "hc");
  if (!flexgen_shares(use, "wg", "wc", &weights, error))
    return FALSE;
  if (on_gpu + on_cpu != 100.0)
    return kv_technique_refuse(
        use, error,
        "hg and hc add up to %g %%, expected 100 %%: activations on disk are "
        "not modelled",
        on_gpu + on_cpu);
  for (guint t = 0; t < KV_N_TIERS; t++)
    plan->weights.share[t] = weights.share[t];
  if (kv_technique_value(use, "compress_weight") != 0.0)
    plan->weights.bytes_per_parameter = FLEXGEN_PACKED_BYTES + FLEXGEN_SCALE_BYTES;
  plan->weights.stream_overlaps = kv_technique_value(use, "overlap") != 0.0;
  plan->weights.loads_apart = kv_technique_value(use, "impl") == 1.0;
  plan->weights.activation_share_host = on_cpu / 100.0;
  return TRUE;
}

static gboolean flexgen_compress(const KvTechniqueUse *use, double e, KvSegment *segment,
                                 GError **error) {
  if (!kv_segment_quantize(use, segment, KV_DTYPE_INT4, error))
    return FALSE;
  double elements = (segment->key_bytes + segment->value_bytes) / e;
  segment->key_bytes *= FLEXGEN_PACKED_BYTES / e;
  segment->value_bytes *= FLEXGEN_PACKED_BYTES / e;
  segment->metadata_bytes += elements * FLEXGEN_SCALE_BYTES;
  return TRUE;
}

/* Split every segment of `cache` into its keys and its values, for a reader that skips values. */
static void split_keys_values(KvCache *cache) {
  KvCache old = *cache;
  cache->n_segments = 0;
  for (guint s = 0; s < old.n_segments; s++) {
    KvSegment keys = old.segments[s], values = old.segments[s];
    keys.name = "keys";
    keys.value_bytes = 0.0;
    values.name = "values";
    values.key_bytes = 0.0;
    cache->segments[cache->n_segments++] = keys;
    cache->segments[cache->n_segments++] = values;
  }
}

/* Split every segment over the tiers that have a share, as a fraction of its tokens. */
static gboolean split_tiers(const KvTechniqueUse *use, KvCache *cache, const Shares *shares,
                            GError **error) {
  KvCache old = *cache;
  cache->n_segments = 0;
  for (guint s = 0; s < old.n_segments; s++) {
    for (guint t = 0; t < KV_N_TIERS; t++) {
      if (shares->share[t] == 0.0)
        continue;
      if (cache->n_segments == KV_MAX_SEGMENTS)
        return kv_technique_refuse(use, error,
                                   "the cache has %u segments, too many to spread over these "
                                   "tiers, expected all of it on one tier",
                                   old.n_segments);
      KvSegment x = old.segments[s];
      x.tier = (KvTier)t;
      x.tokens.scale *= shares->share[t];
      if (x.tokens.cap < G_MAXDOUBLE)
        x.tokens.cap *= shares->share[t];
      cache->segments[cache->n_segments++] = x;
    }
  }
  return TRUE;
}

/* The GPU reads what is in HBM, or everything; the CPU reads the rest. */
static void flexgen_readers(const KvTechniqueUse *use, KvPlan *plan, guint index,
                            const KvCache *cache, const KvAttention *x, gboolean on_cpu) {
  KvReader *gpu = kv_plan_reader_of(plan, index);
  double sparsity = kv_technique_value(use, "attn_sparsity");
  gpu->overlap = kv_technique_value(use, "overlap") != 0.0 ? KV_OVERLAP_STEP : KV_OVERLAP_NONE;
  if (kv_technique_value(use, "compress_cache") != 0.0) {
    /* Decompression is a kernel of its own for K and for V: it writes the elements out, and
     * attention reads them again. */
    double elements = (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
    gpu->extra_bytes_per_token += 2.0 * elements * plan->element_bytes;
    gpu->flops_per_token += 2.0 * elements;
    gpu->extra_launches += 2.0;
  }
  KvReader cpu = *gpu;
  cpu.processor = KV_PROCESSOR_CPU;
  cpu.overlap = KV_OVERLAP_NONE; /* the layer waits for it */
  gboolean any_gpu = FALSE, any_cpu = FALSE;
  for (guint s = 0; s < cache->n_segments; s++) {
    const KvSegment *segment = &cache->segments[s];
    KvLaw read = segment->tokens, nothing = kv_law(KV_LAW_FIXED, 0);
    if (sparsity < 1.0 && segment->key_bytes == 0.0)
      read.scale *= sparsity;
    gboolean by_cpu = on_cpu && segment->tier != KV_TIER_HBM;
    gpu->read[s] = by_cpu ? nothing : read;
    cpu.read[s] = by_cpu ? read : nothing;
    any_gpu |= !by_cpu;
    any_cpu |= by_cpu;
  }
  if (!any_gpu)
    *gpu = cpu;
  else if (any_cpu)
    g_array_append_val(plan->readers, cpu);
}

static void flexgen_work(KvPlan *plan, const KvCache *cache, const KvAttention *x) {
  double elements =
      cache->layers * (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
  double bytes = plan->element_bytes + FLEXGEN_PACKED_BYTES + FLEXGEN_SCALE_BYTES;
  kv_plan_add_work(plan, (KvWork){.name = "compress the prompt's cache",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .flops = 8.0 * elements,
                                  .bytes = bytes * elements,
                                  .launches = 2.0 * cache->layers,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "compress the new token",
                                  .moment = KV_MOMENT_DECODE_STEP,
                                  .flops = 8.0 * elements,
                                  .bytes = bytes * elements,
                                  .launches = 2.0 * cache->layers,
                                  .critical = TRUE});
}

static gboolean flexgen_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                              guint index, const Shares *shares, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  const KvAttention *x = kv_plan_attention(model, cache);
  gboolean compress = kv_technique_value(use, "compress_cache") != 0.0;
  gboolean on_cpu = kv_technique_value(use, "cpu_cache_compute") != CPU_OFF && !compress;
  if (x->kind != KV_ATTENTION_FULL)
    return kv_technique_refuse(use, error,
                               "layers of %s have %s attention, expected full attention", model->id,
                               kv_attention_kind_names[x->kind]);
  if (cache->read_by)
    return kv_technique_refuse(use, error,
                               "%s chooses what is read of the cache, expected a technique that "
                               "reads all of it",
                               cache->read_by);
  for (guint s = 0; s < cache->n_segments; s++) {
    KvSegment *segment = &cache->segments[s];
    if (segment->tier != KV_TIER_HBM)
      return kv_technique_refuse(use, error,
                                 "segment '%s' of the cache already lies in %s, expected one "
                                 "technique that says where it lies",
                                 segment->name, kv_tier_names[segment->tier]);
    if (on_cpu && segment->quantizer && shares->share[KV_TIER_HBM] < 1.0)
      return kv_technique_refuse(use, error,
                                 "attention on the CPU needs an uncompressed cache, but '%s' is "
                                 "quantized by %s, expected cpu_cache_compute=off",
                                 segment->name, segment->quantizer);
    if (compress && !flexgen_compress(use, plan->element_bytes, segment, error))
      return FALSE;
  }
  if (kv_technique_value(use, "attn_sparsity") < 1.0 && cache->n_segments == 1)
    split_keys_values(cache);
  if (!split_tiers(use, cache, shares, error))
    return FALSE;
  flexgen_readers(use, plan, index, cache, x, on_cpu);
  if (compress)
    flexgen_work(plan, cache, x);
  return TRUE;
}

static gboolean flexgen_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                             GError **error) {
  Shares shares;
  if (!flexgen_check(use, error) || !flexgen_weights(use, plan, error) ||
      !flexgen_shares(use, "cg", "cc", &shares, error))
    return FALSE;
  for (guint i = 0; i < plan->caches->len; i++)
    if (!flexgen_cache(use, model, plan, i, &shares, error))
      return FALSE;
  plan->paged = FALSE;
  plan->shareable = FALSE;
  plan->unshareable_by = use->technique->id;
  plan->prefill_peak_layers = 1.0; /* a layer's cache is stored away while the next is computed */
  return TRUE;
}

static gboolean flexgen_engine(const KvTechniqueUse *use, const KvModel *model,
                               KvEngineConfig *config, GError **error) {
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("flexgen");
  config->allocator = g_intern_static_string("reserved");
  config->reservation = KV_RESERVE_ORACLE; /* a block's output length is given beforehand */
  config->gpu_batch = (guint)kv_technique_value(use, "gbs");
  config->n_gpu_batches = (guint)kv_technique_value(use, "num_gpu_batches");
  config->max_seqs = config->gpu_batch * config->n_gpu_batches;
  config->memory_utilization = 1.0; /* the placement is the user's; nothing is held back */
  config->chunked_prefill = config->prefix_caching = FALSE;
  config->async_scheduling = config->cuda_graphs = FALSE;
  return TRUE;
}

/* Placement alone leaves every number as it is. */
static gboolean flexgen_exact(const KvTechniqueUse *use) {
  return kv_technique_value(use, "compress_weight") == 0.0 &&
         kv_technique_value(use, "compress_cache") == 0.0 &&
         kv_technique_value(use, "attn_sparsity") == 1.0;
}

static const char *const cpu_choices[] = {"auto", "off", "on", NULL};

enum { POLICY_GIVEN, POLICY_SEARCH };

static gboolean flexgen_tune(KvTechniqueUse *use, const KvModel *model, const KvPlatform *platform,
                             GError **error) {
  if (kv_technique_value(use, "policy") == POLICY_GIVEN)
    return TRUE;
  KvFlexgenQuestion question = {(guint)kv_technique_value(use, "prompt_len"),
                                (guint)kv_technique_value(use, "gen_len"),
                                kv_technique_value(use, "impl") == 1.0};
  KvFlexgenPolicy p;
  if (!kv_flexgen_search(&question, model, platform, &p))
    return kv_technique_refuse(use, error,
                               "no placement of %s fits %s, expected more host memory or a disk",
                               model->id, platform->id);
  const struct {
    const char *name;
    double value;
  } found[] = {{"gbs", p.gpu_batch},          {"num_gpu_batches", p.n_gpu_batches},
               {"wg", 100.0 * p.weights_gpu}, {"wc", 100.0 * p.weights_host},
               {"cg", 100.0 * p.cache_gpu},   {"cc", 100.0 * p.cache_host},
               {"hg", 100.0 * p.hidden_gpu},  {"hc", 100.0 * (1.0 - p.hidden_gpu)}};
  for (guint i = 0; i < G_N_ELEMENTS(found); i++)
    kv_technique_set(use, found[i].name, found[i].value);
  return TRUE;
}

static const char *const flexgen_policies[] = {"given", "search", NULL};
static const char *const flexgen_implementations[] = {"ideal", "released", NULL};

static const KvParam flexgen_params[] = {
    {"gbs", KV_PARAM_INTEGER, 48, 1, 4096, NULL, "sequences",
     "sequences of one GPU batch; the paper uses multiples of 4"},
    {"num_gpu_batches", KV_PARAM_INTEGER, 3, 1, 20, NULL, "batches",
     "GPU batches of a block: a layer's weights are loaded once for all of them"},
    {"wg", KV_PARAM_REAL, 20, 0, 100, NULL, "%", "weights on the GPU"},
    {"wc", KV_PARAM_REAL, 80, 0, 100, NULL, "%", "weights in host memory; the rest on disk"},
    {"cg", KV_PARAM_REAL, 0, 0, 100, NULL, "%", "KV cache on the GPU"},
    {"cc", KV_PARAM_REAL, 100, 0, 100, NULL, "%", "KV cache in host memory; the rest on disk"},
    {"hg", KV_PARAM_REAL, 0, 0, 100, NULL, "%", "activations on the GPU"},
    {"hc", KV_PARAM_REAL, 100, 0, 100, NULL, "%", "activations in host memory"},
    {"cpu_cache_compute", KV_PARAM_CHOICE, CPU_AUTO, 0, 2, cpu_choices, "",
     "attention on the CPU over the cache outside the GPU; auto: on unless compress_cache"},
    {"overlap", KV_PARAM_FLAG, 1, 0, 1, NULL, "", "transfers run beside the compute"},
    {"compress_weight", KV_PARAM_FLAG, 0, 0, 1, NULL, "", "4-bit weights in groups of 64"},
    {"compress_cache", KV_PARAM_FLAG, 0, 0, 1, NULL, "", "4-bit cache in groups of 64"},
    {"q", KV_PARAM_INTEGER, 4, 4, 4, NULL, "bit", "code width; only 4 is implemented"},
    {"G", KV_PARAM_INTEGER, 64, 64, 64, NULL, "elements", "quantization group; only 64"},
    {"attn_sparsity", KV_PARAM_REAL, 1, 0.1, 1, NULL, "fraction",
     "share of the value rows that are loaded, those of the highest scores"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, flexgen_implementations, "",
     "ideal: all transfers overlap; released: what comes to the GPU adds to the longest of the rest, "
     "as in the authors' fitted cost model"},
    {"policy", KV_PARAM_CHOICE, POLICY_GIVEN, 0, 1, flexgen_policies, "",
     "search: block shape and placement of the least time a token, by the authors' cost model, instead "
     "of the ones given"},
    {"prompt_len", KV_PARAM_INTEGER, 512, 1, 1048576, NULL, "tokens",
     "policy=search: of a sequence"},
    {"gen_len", KV_PARAM_INTEGER, 32, 1, 1048576, NULL, "tokens", "policy=search: of a sequence"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula flexgen_formulas[] = {
    {"4*n*D*L", "bytes of the fp16 cache of a multi-head model (D = H*d)"},
    {"2*L*H*d*n*(0.5+4/64)", "bytes of the compressed cache: 4.5 bits an element"},
    {"8*D^2+4*D*E", "fp16 bytes of a layer's weights; 0.28 of it compressed"},
    {"T_pre*L + T_gen*(g-1)*L", "seconds of a block of bls = gbs*num_gpu_batches sequences"},
    {"(wc+wd)*(8*D^2+4*D*E) + 2*(hc+hd)*D*bls", "bytes to the GPU per layer and decode step"},
    {"4*(cc+cd)*bls*(s+g/2)*D", "... and the cache, if attention is not on the CPU"},
    {"4*bls*(s+g/2)*D", "FLOPs of attention per layer and decode step"},
    {NULL, NULL},
};

static const KvQualityPoint flexgen_quality[] = {
    {"OPT-30B", "WikiText ppl", "4-bit weights+KV", 12.72, 12.9, "Table 5, seen in text copy",
     "compress_cache", 1, NULL},
    {"OPT-175B", "WikiText ppl", "4-bit weights+KV", 10.82, 10.94, "Table 5, seen in text copy",
     "compress_cache", 1, NULL},
    {"OPT-30B", "Lambada acc", "4-bit", 0.725, 0.724, "Table 5, seen in text copy",
     "compress_cache", 1, NULL},
    {"OPT-30B", "Lambada acc", "4-bit + 10% sparse V", 0.725, 0.718, "Table 5, seen in text copy",
     NULL, 0, NULL},
    {"OPT-175B", "Lambada acc", "4-bit", 0.758, 0.756, "Table 5, seen in text copy",
     "compress_cache", 1, NULL},
    {"OPT-175B", "Lambada acc", "4-bit + 10% sparse V", 0.758, 0.756, "Table 5, seen in text copy",
     NULL, 0, NULL},
    {"LLaMA-7B", "WikiText2 ppl", "3-bit FlexGen scheme (G=64) on KV only", 5.68, 5.93,
     "KVQuant Table 1 via notes, seen", NULL, 0, NULL},
    {0},
};

static const char *const flexgen_sections[] = {
    "Token-level Optimization > KV Cache Quantization > Fixed-precision Quantization",
    "System-level Optimization > Hardware-aware Design > SSD-based Design", NULL};

const KvTechnique kv_technique_flexgen = {
    .id = "flexgen",
    .name = "FlexGen",
    .title =
        "FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU",
    .paper = "arXiv:2303.06865",
    .code = "github.com/FMInference/FlexLLMGen",
    .year = 2023,
    .sections = flexgen_sections,
    .mechanism =
        "Offline batches on one GPU, with weights, cache and activations spread over GPU, host "
        "memory and disk by percentages. A block of several GPU batches walks through the model layer "
        "by layer, so that a layer's weights are loaded once for the whole block, while the next "
        "weights load, the next batch's cache loads and the last batch's is stored.\n\n"
        "Where the cache is outside the GPU, decode attention can run on the CPU: then "
        "only queries and outputs cross the link. Weights and cache can be packed to 4 bits in "
        "groups of 64, which are unpacked by separate kernels before use. Optionally only the "
        "value rows with the highest scores are loaded.",
    .params = flexgen_params,
    .formulas = flexgen_formulas,
    .quality = flexgen_quality,
    .composes =
        "Excludes other serving systems (vllm, orca), paging and prefix sharing: memory is "
        "allocated per block. compress_cache excludes attn_sparsity below 1, attention on the "
        "CPU, and any other quantizer of the cache. Needs full attention in every layer.",
    .pitfalls =
        "Achieved bandwidths are far below nominal and differ by kind of tensor (the cache "
        "is stored at 0.97 GB/s on the authors' T4 machine). The released cost model adds the "
        "loading of weights to the rest rather than overlapping it. Outputs are 32 "
        "tokens, so prefill dominates the throughput. Compression saves capacity and link bytes "
        "and costs HBM traffic.",
    .confidence =
        "high: README, benchmark scripts, compression and cost-model code and a text copy "
        "of the paper were read",
    .executed = TRUE, /* placement, without attention on the CPU */
    .exact = flexgen_exact,
    .tune = flexgen_tune,
    .plan = flexgen_plan,
    .engine = flexgen_engine,
};

/* --- InstInfer --- */

/* A mapping entry of 8 bytes for each page. */
#define INSTINFER_ENTRY_BYTES 8.0

static gboolean instinfer_exact(const KvTechniqueUse *use) {
  return kv_technique_value(use, "compression") == 1.0;
}

static gboolean instinfer_sparse(const KvTechniqueUse *use) {
  return kv_technique_value(use, "compression") < 1.0;
}

/* Move a segment into the drives. SparF stores keys twice: by token, and by channel. */
static gboolean instinfer_segment(const KvTechniqueUse *use, KvSegment *segment, GError **error) {
  if (segment->quantizer)
    return kv_technique_refuse(use, error,
                               "the drives multiply 16-bit elements, but '%s' is quantized by %s, "
                               "expected one of the two",
                               segment->name, segment->quantizer);
  if (segment->tier != KV_TIER_HBM)
    return kv_technique_refuse(use, error,
                               "'%s' of the cache is in %s already, expected a cache in HBM, which "
                               "moves to the drives as a whole",
                               segment->name, kv_tier_names[segment->tier]);
  double bytes = segment->key_bytes + segment->value_bytes;
  if (instinfer_sparse(use))
    segment->metadata_bytes += segment->key_bytes;
  segment->metadata_bytes +=
      (bytes + segment->metadata_bytes) * INSTINFER_ENTRY_BYTES / kv_technique_value(use, "page");
  segment->tier = KV_TIER_CSD;
  return TRUE;
}

/* Of the stored bytes, those that flash channels carry: keys and values once, or the pages of them
 * in which something is needed. */
static void instinfer_reader(const KvTechniqueUse *use, const KvCache *cache, const KvAttention *x,
                             KvReader *reader) {
  double once = 0.0, stored = 0.0;
  for (guint s = 0; s < cache->n_segments; s++) {
    const KvSegment *segment = &cache->segments[s];
    once += segment->key_bytes + segment->value_bytes;
    stored += segment->key_bytes + segment->value_bytes + segment->metadata_bytes;
  }
  reader->processor = KV_PROCESSOR_STORAGE;
  reader->overlap =
      kv_technique_value(use, "half_batches") > 1.0 ? KV_OVERLAP_STEP : KV_OVERLAP_NONE;
  reader->read_bytes_scale *= once / stored;
  if (!instinfer_sparse(use))
    return;
  /* 2 r for approximate scores and 4 d k for the chosen tokens, of r = c d channels and k = c n. */
  double c = kv_technique_value(use, "compression");
  reader->read_bytes_scale *= MAX(c, kv_technique_value(use, "page_share"));
  reader->flops_per_token =
      x->n_heads * (2.0 * c * x->head_dim + 2.0 * c * ((double)x->head_dim + x->value_head_dim));
}

static gboolean instinfer_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                               GError **error) {
  if (!plan->fused_attention)
    return kv_technique_refuse(use, error,
                               "another technique needs attention probabilities, which stay inside "
                               "the drives, expected one of the two");
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    const KvAttention *x = kv_plan_attention(model, cache);
    if (x->kind != KV_ATTENTION_FULL)
      return kv_technique_refuse(use, error,
                                 "layers of %s have %s attention, expected full attention",
                                 model->id, kv_attention_kind_names[x->kind]);
    for (guint s = 0; s < cache->n_segments; s++)
      if (!instinfer_segment(use, &cache->segments[s], error))
        return FALSE;
  }
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    const KvCache *cache = &g_array_index(plan->caches, KvCache, reader->cache);
    if (reader->processor != KV_PROCESSOR_GPU || reader->rebuild_rank > 0.0 ||
        reader->index_bytes_per_token > 0.0 || reader->extra_bytes_per_token > 0.0)
      return kv_technique_refuse(use, error,
                                 "another technique has changed how attention reads the cache, "
                                 "expected plain attention");
    instinfer_reader(use, cache, kv_plan_attention(model, cache), reader);
  }
  plan->paged = FALSE;
  plan->shareable = FALSE;
  plan->unshareable_by = use->technique->id;
  plan->prefill_peak_layers = 1.0; /* a layer is written out while the next is computed */
  return TRUE;
}

static gboolean instinfer_engine(const KvTechniqueUse *use, const KvModel *model,
                                 KvEngineConfig *config, GError **error) {
  if (!kv_engine_config_claim(config, use->technique->id, error))
    return FALSE;
  config->scheduler = g_intern_static_string("static");
  config->allocator = g_intern_static_string("reserved");
  config->reservation =
      KV_RESERVE_ORACLE; /* an offline batch's output length is given beforehand */
  config->chunked_prefill = config->prefix_caching = FALSE;
  config->async_scheduling = config->cuda_graphs = FALSE;
  config->csd_drives = (guint)kv_technique_value(use, "drives");
  config->csd_channels = (guint)kv_technique_value(use, "flash_channels");
  config->csd_channel_Bps = kv_technique_value(use, "channel_GBps") * 1e9;
  config->csd_link_Bps = kv_technique_value(use, "link_GBps") * 1e9;
  config->csd_flops = kv_technique_value(use, "gemv_GFLOPs") * 1e9;
  return TRUE;
}

static const KvParam instinfer_params[] = {
    {"compression", KV_PARAM_REAL, 0.125, 0.1, 1, NULL, "fraction",
     "SparF: of the channels (r/d) and of the tokens (k/n); 1: dense attention"},
    {"page_share", KV_PARAM_REAL, 0.5, 0.1, 1, NULL, "fraction",
     "SparF: of the dense cache's flash pages, those that are read; half at 1/8"},
    {"page", KV_PARAM_INTEGER, 4096, 4096, 16384, NULL, "bytes", "flash page"},
    {"token_group", KV_PARAM_INTEGER, 16, 16, 16, NULL, "tokens",
     "of one head in a page: page/(d*e); what is not full waits in the drive's DRAM"},
    {"channels_per_page", KV_PARAM_INTEGER, 4, 2, 8, NULL, "channels",
     "of the keys stored by channel; chosen from the input length"},
    {"half_batches", KV_PARAM_INTEGER, 2, 1, 2, NULL, "halves",
     "2: the drives attend for one half while the GPU computes the other; 1: one waits for the other"},
    {"drives", KV_PARAM_INTEGER, 1, 1, 20, NULL, "drives",
     "over which heads are spread, each like the platform's"},
    {"flash_channels", KV_PARAM_INTEGER, 0, 0, 16, NULL, "channels",
     "of a drive; 0: the platform's (8 emulated, 4 on the real board)"},
    {"channel_GBps", KV_PARAM_REAL, 0, 0, 2, NULL, "GB/s",
     "of a flash channel; 0: the platform's (1.4)"},
    {"link_GBps", KV_PARAM_REAL, 0, 0, 64, NULL, "GB/s",
     "of a drive's link; 0: the platform's (7.0; 3.5 on the real board)"},
    {"gemv_GFLOPs", KV_PARAM_REAL, 0, 0, 1000, NULL, "GFLOP/s",
     "of a drive's engine; 0: the platform's (12.7)"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula instinfer_formulas[] = {
    {"2*L*Hkv*d*e*n", "bytes in flash, dense; 3*L*Hkv*d*e*n with SparF, which stores keys twice"},
    {"8/page", "bytes of mapping per byte stored"},
    {"2*L*Hkv*d*e*n*page_share",
     "bytes that flash channels carry per step (page_share 1 if dense)"},
    {"4*L*H*d*n", "FLOPs in the drives, dense; L*H*(2*r*n + 4*d*k) with SparF"},
    {"L*(2*H + 2*Hkv)*d*e", "bytes on the link per sequence and step: q, k, v down, o up"},
    {"0.684*channels*rate*drives", "bytes per second out of flash, in pages"},
    {"max(T_gpu, T_drives)", "seconds of a step of two half-batches"},
    {NULL, NULL},
};

static const KvQualityPoint instinfer_quality[] = {
    {"Qwen2.5-32B (32K)", "long-context tasks, difference to the full cache (best task)",
     "1/8 lossy in-storage sparsity", 0, -3.52,
     "reading notes of a later paper (HILOS): range -3.52 to -5.73 points over tasks, seen; which "
     "task gives which end is not known",
     "compression", 0.125, NULL},
    {"Qwen2.5-32B (32K)", "long-context tasks, difference to the full cache (worst task)",
     "1/8 lossy in-storage sparsity", 0, -5.73,
     "reading notes of a later paper (HILOS): range -3.52 to -5.73 points over tasks, seen; which "
     "task gives which end is not known",
     "compression", 0.125, NULL},
    {0},
};

static const char *const instinfer_sections[] = {
    "System-level Optimization > Hardware-aware Design > SSD-based Design", NULL};

const KvTechnique kv_technique_instinfer = {
    .id = "instinfer",
    .name = "InstInfer (published as InstAttention)",
    .title =
        "InstInfer: In-Storage Attention Offloading for Cost-Effective Long-Context LLM Inference",
    .paper = "arXiv:2409.04992",
    .code = "github.com/ChaseLab-PKU/InstAttention",
    .year = 2024,
    .sections = instinfer_sections,
    .mechanism =
        "Offline batches on one GPU, with the whole cache and the attention of decoding in "
        "computational SSDs; everything else, prompts' attention too, is on the GPU. A prompt's keys and "
        "values are written to the drives layer by layer while the next is computed. At each step "
        "only queries, keys and values go down and outputs come back, and a drive reads its flash at "
        "the sum of its channels, not through its link.\n\n"
        "SparF chooses twice: the channels in which the query is largest give approximate scores "
        "of all tokens, and the tokens with the highest get exact attention; what is left out "
        "is made up by the mean of the values. Keys are stored by token and again by channel, so that "
        "pages in which nothing is needed need not be read; filters drop the rest of a page that was.",
    .params = instinfer_params,
    .formulas = instinfer_formulas,
    .quality = instinfer_quality,
    .composes =
        "Goes with GQA, which divides the bytes and not the FLOPs, and with smaller weights. "
        "Excludes quantized caches, caches on other tiers, techniques that read attention "
        "probabilities or rebuild the cache, paging, and the other serving systems.",
    .pitfalls =
        "Dense attention in one drive is no faster than offloading to DRAM: flash channels are "
        "slower than PCIe. The gains over FlexGen come from its path to the SSD, of 1.1 to 1.6 "
        "GB/s. Pages let through 68 % of the channels' rate. The engine is sized for dense multi-head "
        "attention at one FLOP a byte: more channels, or GQA, leave it behind. Filters save the engine's "
        "work, not the channels'. The half of pages at 1/8 is the design's; other settings keep it.",
    .confidence = "high: text of the paper and two sets of reading notes, seen in third-party "
                  "repositories; the algorithm from notes",
    .exact = instinfer_exact,
    .plan = instinfer_plan,
    .engine = instinfer_engine,
};
