/* Survey: Token-level Optimization > KV Cache Low-rank Decomposition > Singular Value
 * Decomposition. */
#include <math.h>

#include "models/techniques/build.h"
#include "models/techniques/palu.h"

/* --- Palu --- */

/* Rank of one group for a layer's total, a multiple of `rounding`, at most the group's width. */
static double palu_rank(double total, double groups, double width, double rounding) {
  double rank = rounding * round(total / groups / rounding);
  return MIN(MAX(rank, rounding), width);
}

KvPaluSettings kv_palu_settings(const KvTechniqueUse *use) {
  return (KvPaluSettings){.rank_ratio = kv_technique_value(use, "rank_ratio"),
                          .rank_spread = kv_technique_value(use, "rank_spread"),
                          .group_size = kv_technique_value(use, "group_size"),
                          .value_share = kv_technique_value(use, "value_share"),
                          .rank_k = kv_technique_value(use, "rank_k"),
                          .rank_v = kv_technique_value(use, "rank_v"),
                          .rank_rounding = kv_technique_value(use, "rank_rounding")};
}

KvPaluRanks kv_palu_ranks(const KvPaluSettings *s, const KvAttention *x, double kept) {
  double group = MIN(s->group_size, x->n_kv_heads);
  double keys = (double)x->n_kv_heads * x->head_dim;
  double values = (double)x->n_kv_heads * x->value_head_dim;
  double total = kept * (keys + values);
  double rank_v = MIN(values, s->value_share * total);
  double rank_k = s->rank_k > 0.0 ? s->rank_k : total - rank_v;
  KvPaluRanks r = {.groups = x->n_kv_heads / group};
  if (s->rank_v > 0.0)
    rank_v = s->rank_v;
  r.key_rank = palu_rank(rank_k, r.groups, group * x->head_dim, s->rank_rounding);
  r.value_rank = palu_rank(rank_v, r.groups, group * x->value_head_dim, s->rank_rounding);
  return r;
}

static gboolean palu_is_for(const KvAttention *x) {
  return (x->kind == KV_ATTENTION_FULL || x->kind == KV_ATTENTION_SLIDING) && !x->borrows_cache;
}

/* Weights beyond the projections that the factors replace: both down-projections and the keys' up-
 * projection in place of W_K and W_V, and an output projection that takes the values' latents head
 * by head. */
static gboolean palu_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  guint changed = 0;
  const KvPaluSettings settings = kv_palu_settings(use);
  double group = settings.group_size;
  for (guint g = 0; g < model->n_groups; g++) {
    KvAttention *x = &model->groups[g].attention;
    if (!palu_is_for(x))
      continue;
    if (fmod(x->n_kv_heads, MIN(group, x->n_kv_heads)) != 0.0)
      return kv_technique_refuse(use, error,
                                 "group_size is %g, expected a divisor of the %u KV heads of %s",
                                 group, x->n_kv_heads, model->id);
    KvPaluRanks r = kv_palu_ranks(&settings, x, settings.rank_ratio);
    double hidden = model->hidden, heads = MIN(group, x->n_kv_heads);
    double keys = r.groups * r.key_rank, values = r.groups * r.value_rank;
    double replaced = (double)x->n_kv_heads * ((double)x->head_dim + x->value_head_dim);
    double more = hidden * (keys + values - replaced) + keys * heads * x->head_dim +
                  hidden * x->n_heads * (r.value_rank - x->value_head_dim);
    x->mixer_parameters += (guint64)MAX(0.0, more);
    changed++;
  }
  return changed > 0 || kv_technique_refuse(use, error,
                                            "%s has no keys and values, expected full or sliding "
                                            "attention",
                                            model->id);
}

static gboolean palu_cache(const KvTechniqueUse *use, const KvPaluRanks *r, double bits, double e,
                           const KvAttention *x, KvCache *cache, GError **error) {
  double keys = r->groups * r->key_rank / ((double)x->n_kv_heads * x->head_dim);
  double values = r->groups * r->value_rank / ((double)x->n_kv_heads * x->value_head_dim);
  for (guint s = 0; s < cache->n_segments; s++) {
    KvSegment *segment = &cache->segments[s];
    if (segment->quantizer)
      return kv_technique_refuse(use, error,
                                 "segment '%s' of the cache is already quantized by %s, expected "
                                 "palu before it",
                                 segment->name, segment->quantizer);
    segment->key_bytes *= keys;
    segment->value_bytes *= values;
    if (bits >= 16.0)
      continue;
    if (!kv_segment_quantize(use, segment, KV_DTYPE_INT4, error))
      return FALSE;
    /* An fp16 scale and zero point for each token and group of heads. */
    segment->metadata_bytes += 4.0 * r->groups * (segment->key_bytes > 0.0) +
                               4.0 * r->groups * (segment->value_bytes > 0.0);
    segment->key_bytes *= bits / 8.0 / e;
    segment->value_bytes *= bits / 8.0 / e;
  }
  return TRUE;
}

static void palu_reader(const KvPaluRanks *r, double bits, gboolean released, double e,
                        const KvAttention *x, KvReader *reader) {
  double width = (double)x->n_kv_heads * x->head_dim;
  reader->rebuild_rank = r->key_rank;
  reader->rebuild_width = width;
  reader->rebuild_share = 1.0;
  reader->rebuild_fused = TRUE;
  /* Probabilities times latents instead of values; rebuilt keys are rotated. */
  reader->flops_per_token += 2.0 * x->n_heads * (r->value_rank - x->value_head_dim) + 3.0 * width;
  if (bits < 16.0) {
    reader->format = KV_DTYPE_INT4;
    reader->flops_per_token += 2.0 * r->groups * (r->key_rank + r->value_rank);
  }
  if (!released)
    return;
  reader->extra_bytes_per_token += 2.0 * x->n_heads * e; /* scores, written and read */
  reader->extra_launches += 2.0;                         /* scores, softmax and product apart */
}

static void palu_work(const KvPaluRanks *r, double bits, const KvCache *cache, const KvAttention *x,
                      KvPlan *plan) {
  double layers = cache->layers, latents = r->groups * (r->key_rank + r->value_rank);
  kv_plan_add_work(plan, (KvWork){.name = "rebuild the prompt's keys",
                                  .moment = KV_MOMENT_PREFILL_TOKEN,
                                  .flops = layers * 2.0 * r->key_rank * x->n_kv_heads * x->head_dim,
                                  .launches = layers,
                                  .matrix = TRUE,
                                  .critical = TRUE});
  if (bits >= 16.0)
    return;
  KvWork work = {.name = "quantize the new latents",
                 .moment = KV_MOMENT_DECODE_STEP,
                 .flops = layers * 8.0 * latents,
                 .bytes = layers * latents * (plan->element_bytes + bits / 8.0),
                 .launches = layers,
                 .critical = TRUE};
  kv_plan_add_work(plan, work);
  work.name = "quantize the prompt's latents";
  work.moment = KV_MOMENT_PREFILL_TOKEN;
  kv_plan_add_work(plan, work);
}

/* One class of layers: cache `i`, keeping `kept` of its width. */
static gboolean palu_class(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan, guint i,
                           double kept, GError **error) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  const KvAttention *x = kv_plan_attention(model, cache);
  double bits = kv_technique_choice_number(use, "bits");
  const KvPaluSettings settings = kv_palu_settings(use);
  KvPaluRanks r = kv_palu_ranks(&settings, x, kept);
  if (!palu_cache(use, &r, bits, plan->element_bytes, x, cache, error))
    return FALSE;
  palu_work(&r, bits, cache, x, plan);
  for (guint k = 0; k < plan->readers->len; k++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, k);
    if (reader->cache == i)
      palu_reader(&r, bits, kv_technique_value(use, "impl") == 1.0, plan->element_bytes, x, reader);
  }
  return TRUE;
}

static gboolean palu_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                          GError **error) {
  double kept = kv_technique_value(use, "rank_ratio");
  double spread = kv_technique_value(use, "rank_spread");
  guint n = plan->caches->len;
  for (guint i = 0; i < n; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    if (cache->n_segments == 0 || !palu_is_for(kv_plan_attention(model, cache)))
      continue;
    if (spread == 0.0 || cache->layers < 2) {
      if (!palu_class(use, model, plan, i, kept, error))
        return FALSE;
      continue;
    }
    guint rest = kv_plan_split_layers(plan, i, cache->layers / 2);
    if (!palu_class(use, model, plan, i, MIN(1.0, kept * (1.0 + spread)), error) ||
        !palu_class(use, model, plan, rest, kept * (1.0 - spread), error))
      return FALSE;
  }
  if (kv_technique_value(use, "impl") == 1.0)
    plan->fused_attention = FALSE;
  return TRUE;
}

static const char *const palu_bits[] = {"2", "3", "4", "16", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam palu_params[] = {
    {"rank_ratio", KV_PARAM_REAL, 0.5, 0.1, 0.9, NULL, "of the width",
     "rank kept of keys and values together"},
    {"group_size", KV_PARAM_INTEGER, 4, 1, 32, NULL, "heads",
     "KV heads that are factorised together: 1 each head, 32 all of them"},
    {"value_share", KV_PARAM_REAL, 0.75, 0.1, 0.9, NULL, "fraction",
     "of the rank that values get, as the authors' search gives on average"},
    {"rank_k", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "elements",
     "rank of a layer's keys; 0: from rank_ratio (the authors' latency script takes 1024 of 4096)"},
    {"rank_v", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "elements",
     "rank of a layer's values; 0: from rank_ratio (the latency script takes 2048, the README 3072)"},
    {"rank_rounding", KV_PARAM_INTEGER, 32, 1, 256, NULL, "elements",
     "a group's rank is a multiple of this"},
    {"rank_spread", KV_PARAM_REAL, 0, 0, 0.9, NULL, "fraction",
     "half of the layers keep so much more, half so much less; 0: all alike. The search "
     "gives every matrix a rank of its own, of which only the mean is published"},
    {"bits", KV_PARAM_CHOICE, 3, 0, 3, palu_bits, "bit", "width of a cached element"},
    {"calib", KV_PARAM_INTEGER, 32, 1, 4096, NULL, "samples",
     "samples of 1024 tokens that decide on ranks; quality only"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: one fused kernel; released: scores, softmax and product apart, without FlashAttention"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula palu_formulas[] = {
    {"n*L*(RK+RV)*q/8", "bytes of the cache; RK and RV are the ranks of a layer"},
    {"8*n*L*Hkv/group", "bytes of scales and zero points, below 16 bits"},
    {"2*n*Hkv*d*RK*group/Hkv", "FLOPs per layer and step to rebuild the keys"},
    {"2*n*H*(d + RV*group/Hkv)", "FLOPs per layer and step of scores, and of probabilities times "
                                 "latents"},
    {"D*(RK+RV) + RK*group*d + H*RV*group/Hkv*D", "parameters in place of W_K, W_V and W_O"},
    {"4*n*H*e", "released: bytes of the scores, of all layers times L"},
    {NULL, NULL},
};

static const KvQualityPoint palu_quality[] = {
    {"Llama-2-7B", "WikiText2 ppl (4096)", "30% cut, 3 bit", 5.12, 5.33,
     "Table 1 via note, seen (baseline recalled)", NULL, 0, NULL},
    {"Llama-2-7B", "WikiText2 ppl (4096)", "30% cut, 2 bit", 5.12, 5.76,
     "Table 1 via note, seen (baseline recalled)", NULL, 0, NULL},
    {"Llama-2-7B", "WikiText2 ppl (4096)", "50% cut, 3 bit", 5.12, 5.77,
     "third-party audit of Table 1, seen", "bits", 3, NULL},
    {"Llama-2-7B", "WikiText2 ppl (4096)", "50% cut, 2 bit", 5.12, 6.41,
     "third-party audit of Table 1, seen", "bits", 2, NULL},
    {"Llama-2-7B", "WikiText2 ppl (4096)", "KVQuant at 2 bit (87.5 % cut), for contrast", 5.12,
     6.95, "third-party audit of Table 1, seen", NULL, 0, NULL},
    {"Llama-2-7B", "WikiText2 ppl (4096)", "30% cut, 2 bit without Hadamard", 5.12, 9.48,
     "third-party audit of Table 1, seen", NULL, 0, NULL},
    {0},
};

static const char *const palu_sections[] = {
    "Token-level Optimization > KV Cache Low-rank Decomposition > Singular Value Decomposition",
    NULL};

const KvTechnique kv_technique_palu = {
    .id = "palu",
    .name = "Palu",
    .title = "Palu: Compressing KV-Cache with Low-Rank Projection",
    .paper = "arXiv:2407.21118",
    .code = "github.com/shadowpa0327/Palu",
    .year = 2024,
    .sections = palu_sections,
    .mechanism =
        "The projections of each group of heads to keys and to values are split into two thin "
        "factors; the product of a token with the first is cached. Values are never rebuilt: "
        "attention sums latents, and the second factor is multiplied into the output projection. "
        "Keys are rotated by their position, so each step rebuilds them tile by tile inside the "
        "attention kernel, rotates them and multiplies them by the query. A search gives each "
        "matrix a rank; latents can be quantized too, after a Hadamard rotation that is merged "
        "into the factors.",
    .params = palu_params,
    .formulas = palu_formulas,
    .quality = palu_quality,
    .composes = "Goes with grouped heads, paging, prefix sharing, eviction, and with a quantizer "
                "that comes after it when bits is 16. Refuses a cache that is quantized "
                "already and latent attention. Layers that share a cache are not split.",
    .pitfalls =
        "Rebuilding costs as many times more FLOPs than the plain product as a group's rank says, "
        "so long contexts are bound by arithmetic. The published sizes leave out scales and zero "
        "points. The published speedups are against eager attention on an RTX 4090 at batch 1 and "
        "64K tokens; against a fused kernel little is left. The output projection grows when a "
        "group's value rank is above the head size, which is counted; parameters saved elsewhere "
        "are counted only against it.",
    .confidence = "high: kernels, attention module and rank search were read; figures are from "
                  "third-party notes",
    .executed = TRUE, /* impl=ideal, 16 bits */
    .arch = palu_arch,
    .plan = palu_plan,
};
