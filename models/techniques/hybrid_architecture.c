/* Survey: Model-level Optimization > Non-transformer Architecture > Hybrid Architecture. */
#include <math.h>

#include "models/techniques/build.h"

/* --- GoldFinch --- */

enum { FINCH_HEAD = 64, GOLD_SHIFT_RANK = 32 };

typedef struct {
  double hidden; /* D */
  double gold_layers, finch_layers;
  double compressed; /* elements of an entry */
  double rank;       /* of the low-rank corrections */
  gboolean released;
} GoldFinch;

static GoldFinch goldfinch_of(const KvTechniqueUse *use, const KvModel *model) {
  double layers = kv_model_layers(model), rank = kv_technique_value(use, "lora_rank");
  GoldFinch x = {.hidden = model->hidden, .released = kv_technique_value(use, "impl") == 1.0};
  x.gold_layers = MAX(1.0, round(layers * kv_technique_value(use, "gold_fraction")));
  x.finch_layers = layers - x.gold_layers;
  x.compressed = ceil(x.hidden / kv_technique_value(use, "compression"));
  x.rank = rank > 0.0 ? rank : MAX(ceil(x.hidden / 16.0), 64.0);
  return x;
}

/* Elements of a Finch layer's state in fp32 (a matrix per head), and of the token that it shifts
 * in. */
static double finch_state_bytes(const GoldFinch *x, double e) {
  return FINCH_HEAD * x->hidden * 4.0 + 2.0 * x->hidden * e;
}

static KvLayerGroup finch_layers(const GoldFinch *x) {
  KvLayerGroup group = {.count = (guint)x->finch_layers};
  group.attention.kind = KV_ATTENTION_NONE;
  group.attention.state_elements = (guint64)(finch_state_bytes(x, 2.0) / 2.0);
  /* Receptance, keys, values and output; the MLP's own receptance. */
  group.attention.mixer_parameters = (guint64)(5.0 * x->hidden * x->hidden);
  group.mlp.intermediate = (guint64)(3.5 * x->hidden);
  return group;
}

/* Queries and output as usual, no keys and values of their own. Beside them the MLP's receptance,
 * low-rank corrections of keys and of values, and an equal part of what compresses and expands the
 * shared entry. */
static KvLayerGroup gold_layers(const GoldFinch *x) {
  double d = x->hidden, heads = floor(d / FINCH_HEAD);
  KvLayerGroup group = {.count = (guint)x->gold_layers, .extra_prefill_passes = -1.0};
  double shared = d * x->compressed + (d + x->compressed) * d;
  double own = d * d + 4.0 * d * x->rank + 4.0 * d * GOLD_SHIFT_RANK;
  group.attention = (KvAttention){.kind = KV_ATTENTION_FULL,
                                  .n_heads = (guint)heads,
                                  .n_kv_heads = (guint)heads,
                                  .head_dim = FINCH_HEAD,
                                  .value_head_dim = FINCH_HEAD,
                                  .borrows_cache = TRUE,
                                  .mixer_parameters = (guint64)(own + shared / x->gold_layers)};
  group.mlp.intermediate = (guint64)(3.5 * d);
  return group;
}

static gboolean goldfinch_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  for (guint g = 0; g < model->n_groups; g++) {
    if (model->groups[g].attention.kind == KV_ATTENTION_NONE)
      return kv_technique_refuse(use, error, "%s is recurrent already, expected a transformer",
                                 model->id);
    if (model->groups[g].mlp.n_experts > 0)
      return kv_technique_refuse(use, error, "%s has experts, expected a dense model", model->id);
  }
  GoldFinch x = goldfinch_of(use, model);
  if (x.hidden < FINCH_HEAD || fmod(x.hidden, FINCH_HEAD) != 0.0)
    return kv_technique_refuse(
        use, error,
        "the hidden size of %s is %g, expected a multiple of the %d channels "
        "of a head",
        model->id, x.hidden, FINCH_HEAD);
  if (x.finch_layers < 1.0)
    return kv_technique_refuse(use, error, "%s has %u layers, expected at least 2", model->id,
                               kv_model_layers(model));
  model->groups = g_renew(KvLayerGroup, model->groups, 2);
  model->n_groups = 2;
  model->groups[0] = finch_layers(&x);
  model->groups[1] = gold_layers(&x);
  model->learned_positions = FALSE;
  return TRUE;
}

/* The shared entries: compressed, with the token's id; released: the expanded basis of keys. */
static void goldfinch_cache(const KvTechniqueUse *use, const GoldFinch *x, KvPlan *plan) {
  double e = plan->element_bytes, entry = kv_technique_choice_number(use, "entry_bits") / 8.0;
  KvCache cache = {.name = "shared entries", .group = 1, .layers = 1, .n_segments = 1};
  cache.segments[0] = (KvSegment){
      .name = x->released ? "expanded keys" : "compressed keys",
      .role = KV_ROLE_MIDDLE,
      .tokens = kv_law(KV_LAW_ALL, 0),
      .key_bytes = x->released ? x->hidden * e : x->compressed * entry,
      .metadata_bytes = x->released ? 8.0 : 4.0,
      .tier = KV_TIER_HBM,
      .format = KV_DTYPE_FP16,
  };
  if (!x->released && entry < 2.0) {
    cache.segments[0].quantizer = use->technique->id;
    cache.segments[0].format = KV_DTYPE_INT8;
  }
  /* GOLD layers shift in the last token. */
  cache.state_bytes = x->gold_layers * 2.0 * x->hidden * e;
  g_array_append_val(plan->caches, cache);
}

static gboolean goldfinch_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                               GError **error) {
  GoldFinch x = goldfinch_of(use, model);
  double d = x.hidden, e = plan->element_bytes;
  if (model->n_groups != 2 || plan->caches->len != 1)
    return kv_technique_refuse(
        use, error,
        "a later technique changed the layers of %s, expected goldfinch last "
        "of those that change the architecture",
        model->id);
  g_array_index(plan->caches, KvCache, 0).state_bytes = finch_state_bytes(&x, e);
  goldfinch_cache(use, &x, plan);
  const KvCache *cache = &g_array_index(plan->caches, KvCache, 1);
  KvReader reader = {.cache = 1,
                     .layers = (guint)x.gold_layers,
                     .read_bytes_scale = 1.0,
                     .flops_per_token = 4.0 * d,
                     .efficiency = 1.0,
                     .processor = KV_PROCESSOR_GPU,
                     .overlap = KV_OVERLAP_STEP,
                     .format = KV_DTYPE_FP16,
                     .n_kv_heads = model->groups[1].attention.n_kv_heads};
  reader.read[0] = cache->segments[0].tokens;
  /* Each token's row of the embedding is the basis of its value, and part of its key. */
  reader.extra_bytes_per_token = d * e;
  /* Low-rank corrections and token shift of keys and values, in each layer; the expansion of the
   * entries, once for all of them unless it is kept. */
  reader.rebuild_rank = d;
  reader.rebuild_width = 4.0 * x.rank + 4.0 * GOLD_SHIFT_RANK;
  reader.rebuild_share = 1.0;
  reader.rebuild_fused = TRUE;
  if (x.released)
    reader.extra_bytes_per_token += 4.0 * d * e; /* keys and values, written and read */
  else
    reader.rebuild_width += (d + x.compressed) / x.gold_layers;
  g_array_append_val(plan->readers, reader);
  /* Finch's recurrence: 5 operations for each element of a head's matrix. */
  KvWork work = {.name = "update the state",
                 .moment = KV_MOMENT_DECODE_STEP,
                 .flops = x.finch_layers * 5.0 * FINCH_HEAD * d,
                 .launches = x.finch_layers,
                 .critical = TRUE};
  kv_plan_add_work(plan, work);
  work.name = "scan the prompt";
  work.moment = KV_MOMENT_PREFILL_TOKEN;
  work.bytes = x.finch_layers * 6.0 * d * 2.0; /* five inputs and an output */
  kv_plan_add_work(plan, work);
  return TRUE;
}

static const char *const entry_bits[] = {"8", "16", NULL};
static const char *const implementations[] = {"ideal", "released", NULL};

static const KvParam goldfinch_params[] = {
    {"gold_fraction", KV_PARAM_REAL, 1.0 / 3.0, 1.0 / 6.0, 0.5, NULL, "fraction",
     "of the layers that attend; the rest is recurrent"},
    {"compression", KV_PARAM_REAL, 16, 1, 256, NULL, "x",
     "hidden size over elements of a shared entry"},
    {"lora_rank", KV_PARAM_INTEGER, 0, 0, 4096, NULL, "elements",
     "rank of a layer's corrections of keys and values; 0: a sixteenth of the hidden size, at least "
     "64"},
    {"entry_bits", KV_PARAM_CHOICE, 1, 0, 1, entry_bits, "bit",
     "width of a compressed element; the published sizes need 8"},
    {"impl", KV_PARAM_CHOICE, 0, 0, 1, implementations, "",
     "ideal: entries stay compressed, one kernel expands and attends; released: the authors' code, "
     "which keeps the expanded keys and writes each layer's keys and values"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula goldfinch_formulas[] = {
    {"n*(D/16*ek + 4)", "bytes of the shared entries"},
    {"Lf*(64*D*4 + 2*D*e) + Lg*2*D*e", "bytes of the states, whatever the context"},
    {"n*(D*e + 8)", "released: bytes of the shared entries, expanded"},
    {"Lg*n*(D/16*ek + 4 + D*e)", "HBM bytes that a decode step reads for its keys and values"},
    {"2*n*D*(D + D/16) + Lg*2*n*D*(4*r + 128)",
     "FLOPs of a decode step to expand all entries, and to correct them in each attending layer"},
    {"4*n*D*Lg", "FLOPs of a decode step's attention"},
    {"Lf*12*D^2 + Lg*(10*D^2 + 4*D*(r+32)) + D*D/16 + (D+D/16)*D", "parameters of the layers"},
    {NULL, NULL},
};

static const KvQualityPoint goldfinch_quality[] = {
    {"1.45-1.6B on minipile", "LAMBADA perplexity", "GoldFinch vs Llama", 71.7, 48.2,
     "Table 3, seen", "compression", 16, NULL},
    {"1.45-1.6B on minipile", "8-task average accuracy", "GoldFinch vs Llama", 43.0, 44.2,
     "Table 3, seen", "compression", 16, NULL},
    {"1.45-1.6B on minipile", "8-task average accuracy", "GoldFinch vs Finch 1.60B", 42.8, 44.2,
     "Table 3, seen", NULL, 0, NULL},
    {"1.45-1.6B on minipile", "HellaSwag", "GoldFinch vs Llama", 28.1, 29.1, "Table 3, seen",
     "compression", 16, NULL},
    {0},
};

static const char *const goldfinch_sections[] = {
    "Model-level Optimization > Non-transformer Architecture > Hybrid Architecture", NULL};

const KvTechnique kv_technique_goldfinch = {
    .id = "goldfinch",
    .name = "GoldFinch",
    .title = "GoldFinch: High Performance RWKV/Transformer Hybrid with Linear Pre-Fill and Extreme "
             "KV-Cache Compression",
    .paper = "arXiv:2407.12077",
    .code = "github.com/recursal/GoldFinch-paper",
    .year = 2024,
    .sections = goldfinch_sections,
    .mechanism =
        "The lower two thirds of the layers are recurrent, with a matrix per head as their state. "
        "What comes out of them is compressed to a sixteenth of the hidden size; that and the "
        "token's id are all that is cached of a token, once for all layers above. These attend: from "
        "the token's embedding and the entry a common basis of keys is expanded, the embedding "
        "is the basis of values, and each layer shifts and corrects both with matrices of low rank. "
        "Only the end of a prompt has to go through the attending layers.",
    .params = goldfinch_params,
    .formulas = goldfinch_formulas,
    .quality = goldfinch_quality,
    .composes =
        "It replaces all layers of a dense model, so it has to be the last technique that "
        "changes the architecture. Quantizers that come after it may pack the shared entries. "
        "Prefixes are not shared, because the recurrent states cannot be cut.",
    .pitfalls =
        "Bytes are traded for arithmetic: without kept expansions a decode step costs a product of "
        "all entries with a D by D matrix. The released code keeps the expanded keys, 16 times the "
        "advertised cache. The advertised size of 0.068 GB needs one byte per element and leaves out the "
        "states, which are most of it at short contexts. Only a prompt's last token is "
        "sent through the attending layers here; the authors send one per such layer and one more.",
    .confidence =
        "high: code, configuration and table images were read; the paper's text is recalled, "
        "and that the MLP has a matrix of receptances is derived from the published count",
    .arch = goldfinch_arch,
    .plan = goldfinch_plan,
};
