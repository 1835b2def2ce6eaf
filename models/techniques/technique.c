#include "models/techniques/technique.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "models/techniques/build.h"
#include "sim/base/error.h"
#include "sim/base/names.h"

const KvTechnique *const kv_techniques[] = {
    &kv_technique_accelerate_offload,
    &kv_technique_block_transformer,
    &kv_technique_cachedattention,
    &kv_technique_cake,
    &kv_technique_chunkattention,
    &kv_technique_deepspeed_offload,
    &kv_technique_distserve,
    &kv_technique_dmc,
    &kv_technique_fastertransformer,
    &kv_technique_fastgen,
    &kv_technique_fastserve,
    &kv_technique_flexgen,
    &kv_technique_goldfinch,
    &kv_technique_gqa,
    &kv_technique_h2o,
    &kv_technique_hf_eager,
    &kv_technique_infinigen,
    &kv_technique_instinfer,
    &kv_technique_kivi,
    &kv_technique_kvquant,
    &kv_technique_lamps,
    &kv_technique_lckv,
    &kv_technique_leankv,
    &kv_technique_less,
    &kv_technique_mamba,
    &kv_technique_minicache,
    &kv_technique_mla,
    &kv_technique_neo,
    &kv_technique_orca,
    &kv_technique_palu,
    &kv_technique_pyramidkv,
    &kv_technique_qcqa,
    &kv_technique_quarot,
    &kv_technique_quest,
    &kv_technique_radixattention,
    &kv_technique_retrieval_attention,
    &kv_technique_shadowkv,
    &kv_technique_snapkv,
    &kv_technique_tree_attention,
    &kv_technique_vllm,
    &kv_technique_vtensor,
    NULL,
};

/* Looking up. */

const KvTechnique *kv_technique_find(const char *id, GError **error) {
  g_autoptr(GPtrArray) ids = g_ptr_array_new();
  for (guint i = 0; kv_techniques[i]; i++) {
    if (strcmp(kv_techniques[i]->id, id) == 0)
      return kv_techniques[i];
    g_ptr_array_add(ids, (gpointer)kv_techniques[i]->id);
  }
  g_ptr_array_add(ids, NULL);
  g_autofree char *unknown = kv_names_unknown("technique", id, (const char *const *)ids->pdata);
  g_set_error_literal(error, KV_ERROR, KV_ERROR_USAGE, unknown);
  return NULL;
}

static int param_index(const KvTechnique *technique, const char *name) {
  for (guint i = 0; technique->params && technique->params[i].name; i++)
    if (strcmp(technique->params[i].name, name) == 0)
      return (int)i;
  return -1;
}

static guint n_params(const KvTechnique *technique) {
  guint n = 0;
  while (technique->params && technique->params[n].name)
    n++;
  return n;
}

double kv_technique_value(const KvTechniqueUse *use, const char *name) {
  int i = param_index(use->technique, name);
  g_return_val_if_fail(i >= 0, 0.0);
  return use->values[i];
}

void kv_technique_set(KvTechniqueUse *use, const char *name, double value) {
  int i = param_index(use->technique, name);
  g_return_if_fail(i >= 0);
  use->values[i] = value;
}

double kv_technique_choice_number(const KvTechniqueUse *use, const char *name) {
  int i = param_index(use->technique, name);
  g_return_val_if_fail(i >= 0, 0.0);
  return g_ascii_strtod(use->technique->params[i].choices[(guint)use->values[i]], NULL);
}

/* What the definitions share. */

gboolean kv_technique_refuse(const KvTechniqueUse *use, GError **error, const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *message = g_strdup_vprintf(format, args);
  va_end(args);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: %s", use->technique->id, message);
  return FALSE;
}

const KvAttention *kv_plan_attention(const KvModel *model, const KvCache *cache) {
  return &model->groups[cache->group].attention;
}

KvReader *kv_plan_reader_of(const KvPlan *plan, guint index) {
  for (guint i = 0; i < plan->readers->len; i++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, i);
    if (reader->cache == index)
      return reader;
  }
  return NULL;
}

gboolean kv_segment_quantize(const KvTechniqueUse *use, KvSegment *segment, KvDtype format,
                             GError **error) {
  if (segment->quantizer)
    return kv_technique_refuse(
        use, error, "segment '%s' of the cache is already quantized by %s, expected one quantizer",
        segment->name, segment->quantizer);
  segment->quantizer = use->technique->id;
  segment->format = format;
  return TRUE;
}

gboolean kv_plan_each_full_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                 KvCacheFunc apply, GError **error) {
  guint n = plan->caches->len, applied = 0;
  for (guint i = 0; i < n; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    KvAttentionKind kind = kv_plan_attention(model, cache)->kind;
    if (kind == KV_ATTENTION_LATENT)
      return kv_technique_refuse(use, error,
                                 "tokens are treated head by head, but the latent cache of %s is "
                                 "one for all heads, expected full attention",
                                 model->id);
    if (kind != KV_ATTENTION_FULL)
      continue;
    if (!apply(use, model, plan, i, error))
      return FALSE;
    applied++;
  }
  return applied > 0 ||
         kv_technique_refuse(
             use, error, "%s has no layer with full attention, expected at least one", model->id);
}

gboolean kv_cache_claim_kept(const KvTechniqueUse *use, KvCache *cache, GError **error) {
  if (cache->kept_by)
    return kv_technique_refuse(
        use, error, "%s already chooses which tokens of the cache stay, expected one selection",
        cache->kept_by);
  if (cache->read_by)
    return kv_technique_refuse(
        use, error,
        "%s chooses what is read of the cache, expected a technique that reads all of it",
        cache->read_by);
  cache->kept_by = use->technique->id;
  return TRUE;
}

gboolean kv_cache_claim_read(const KvTechniqueUse *use, KvCache *cache, GError **error) {
  if (cache->read_by)
    return kv_technique_refuse(
        use, error, "%s already chooses what is read of the cache, expected one such technique",
        cache->read_by);
  if (cache->kept_by)
    return kv_technique_refuse(
        use, error, "%s chooses which tokens of the cache stay, expected a cache of all tokens",
        cache->kept_by);
  cache->read_by = use->technique->id;
  return TRUE;
}

KvSegment *kv_cache_undivided(const KvTechniqueUse *use, KvCache *cache, gboolean quantized,
                              GError **error) {
  KvSegment *segment = &cache->segments[0];
  const KvLaw *law = &segment->tokens;
  if (segment->quantizer && !quantized) {
    kv_technique_refuse(use, error,
                        "segment '%s' of the cache is already quantized by %s, expected 16-bit "
                        "keys and values",
                        segment->name, segment->quantizer);
    return NULL;
  }
  if (segment->tier != KV_TIER_HBM) {
    kv_technique_refuse(use, error,
                        "segment '%s' of the cache already lies in %s, expected one technique that "
                        "says where it lies",
                        segment->name, kv_tier_names[segment->tier]);
    return NULL;
  }
  if (cache->n_segments != 1 || segment->key_bytes == 0.0 || segment->value_bytes == 0.0 ||
      law->cap < G_MAXDOUBLE || law->prompt_share > 0.0 || law->kept_prompt > 0.0 ||
      (law->kind != KV_LAW_ALL && law->kind != KV_LAW_PROMPT_CAPPED)) {
    kv_technique_refuse(use, error,
                        "the cache '%s' is already divided or filled by a law of its own, expected "
                        "one with whole tokens, keys and values together",
                        cache->name);
    return NULL;
  }
  return segment;
}

gboolean kv_law_keep_prompt(const KvTechniqueUse *use, KvLaw *law, double budget,
                            double short_prompt, double short_kept, GError **error) {
  double cut = law->kind == KV_LAW_PROMPT_CAPPED ? law->a : law->kept_prompt;
  if (cut > 0.0)
    return kv_technique_refuse(
        use, error, "the prompt's cache is already cut to %g tokens, expected one selection", cut);
  if (law->prompt_share > 0.0)
    return kv_technique_refuse(use, error,
                               "the cache already follows the prompt's length, expected the "
                               "selection before the technique that does so");
  if (law->kind == KV_LAW_FIXED)
    return TRUE;
  if (law->kind == KV_LAW_ALL) {
    law->kind = KV_LAW_PROMPT_CAPPED;
    law->a = budget;
  } else {
    law->kept_prompt = budget;
  }
  law->short_prompt = short_prompt;
  law->short_kept = short_kept;
  return TRUE;
}

void kv_plan_vote_on_prompt(KvPlan *plan, const KvCache *cache, const KvAttention *x, double budget,
                            double window, double kernel, gboolean released) {
  double layers = cache->layers, heads = x->n_heads, e = plan->element_bytes;
  double stored_heads = released ? heads : x->n_kv_heads;
  /* Window queries times all keys, a softmax over them, pooling, and a comparison each for the
   * top-k. */
  double flops = heads * (2.0 * window * x->head_dim + window + kernel + 1.0);
  /* Keys are read once, and a vote (fp32) per head is written and read. The released code also
   * stores the weights in fp32. */
  double bytes = stored_heads * x->head_dim * e + heads * 8.0;
  if (released)
    bytes += heads * window * 8.0;
  kv_plan_add_work(plan, (KvWork){.name = "vote on the prompt",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .flops_per_token = layers * flops,
                                  .bytes_per_token = layers * bytes,
                                  .launches = layers * (released ? 5.0 : 3.0),
                                  .over_tokens = budget,
                                  .critical = TRUE});
  kv_plan_add_work(plan, (KvWork){.name = "gather the kept tokens",
                                  .moment = KV_MOMENT_PREFILL_END,
                                  .bytes = layers * 2.0 * budget * stored_heads * e *
                                           ((double)x->head_dim + x->value_head_dim),
                                  .launches = layers * 2.0,
                                  .over_tokens = budget,
                                  .critical = TRUE});
}

void kv_plan_repeat_heads(KvPlan *plan, guint index, const KvAttention *x) {
  KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  double repeat = (double)x->n_heads / x->n_kv_heads;
  for (guint s = 0; s < cache->n_segments; s++) {
    cache->segments[s].key_bytes *= repeat;
    cache->segments[s].value_bytes *= repeat;
    cache->segments[s].metadata_bytes *= repeat;
  }
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    if (reader->cache != index)
      continue;
    reader->n_kv_heads = x->n_heads;
    reader->read_bytes_scale = 1.0; /* every query head now has its own */
  }
}

void kv_plan_share_at(KvPlan *plan, guint tokens) {
  guint a = plan->share_multiple, b = tokens;
  while (b != 0) {
    guint rest = a % b;
    a = b;
    b = rest;
  }
  plan->share_multiple = plan->share_multiple / a * tokens;
}

void kv_plan_end_sharing(const KvTechniqueUse *use, KvPlan *plan) {
  plan->shareable = FALSE;
  plan->unshareable_by = use->technique->id;
}

void kv_plan_add_work(KvPlan *plan, KvWork work) {
  g_array_append_val(plan->work, work);
}

void kv_plan_need_scores(KvPlan *plan, const KvCache *cache, const KvAttention *x,
                         gboolean released, double score_bytes, double passes) {
  double layers = cache->layers, heads = x->n_heads;
  plan->fused_attention = FALSE;
  KvWork work = {
      .name = "scores of the prompt", .moment = KV_MOMENT_PREFILL_TOKEN, .critical = TRUE};
  if (released) {
    work.bytes_per_token = layers * heads * score_bytes * passes;
  } else {
    work.flops_per_token = layers * 2.0 * heads * x->head_dim;
    work.matrix = TRUE;
    work.launches = layers;
  }
  kv_plan_add_work(plan, work);
}

gboolean kv_cache_is_cut(const KvCache *cache) {
  for (guint s = 0; s < cache->n_segments; s++) {
    const KvLaw *law = &cache->segments[s].tokens;
    if (law->kind == KV_LAW_PROMPT_CAPPED || law->kind == KV_LAW_EVICTED || law->kept_prompt > 0.0)
      return TRUE;
  }
  return FALSE;
}

gboolean kv_plan_reads_all(const KvPlan *plan, guint index) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  for (guint r = 0; r < plan->readers->len; r++) {
    const KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    for (guint s = 0; s < cache->n_segments && reader->cache == index; s++)
      if (!kv_law_equal(&reader->read[s], &cache->segments[s].tokens))
        return FALSE;
  }
  return TRUE;
}

void kv_plan_read_all(KvPlan *plan, guint index) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, index);
  for (guint r = 0; r < plan->readers->len; r++) {
    KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    for (guint s = 0; s < cache->n_segments && reader->cache == index; s++)
      reader->read[s] = cache->segments[s].tokens;
  }
}

guint kv_plan_split_layers(KvPlan *plan, guint index, guint layers) {
  KvCache cache = g_array_index(plan->caches, KvCache, index);
  guint all = cache.layers;
  g_assert(layers > 0 && layers < all);
  g_array_index(plan->caches, KvCache, index).layers -= layers;
  cache.layers = layers;
  g_array_append_val(plan->caches, cache);
  guint added = plan->caches->len - 1, n_readers = plan->readers->len;
  for (guint r = 0; r < n_readers; r++) {
    KvReader *old = &g_array_index(plan->readers, KvReader, r);
    if (old->cache != index)
      continue;
    KvReader reader = *old;
    reader.cache = added;
    reader.layers = layers * old->layers / all; /* in proportion, where layers share a cache */
    if (reader.layers == 0)
      continue;
    old->layers -= reader.layers;
    g_array_append_val(plan->readers, reader);
  }
  return added;
}

/* Parsing. */

static gboolean parse_number(const KvTechniqueUse *use, const KvParam *param, const char *text,
                             double *value, GError **error) {
  char *end;
  *value = g_ascii_strtod(text, &end);
  gboolean whole = param->kind == KV_PARAM_INTEGER;
  if (*text != '\0' && *end == '\0' && isfinite(*value) && *value >= param->min &&
      *value <= param->max && (!whole || floor(*value) == *value))
    return TRUE;
  g_autofree char *unit =
      param->unit && *param->unit ? g_strdup_printf(" (%s)", param->unit) : g_strdup("");
  return kv_technique_refuse(use, error, "%s is '%s', expected a %s from %.10g to %.10g%s",
                             param->name, text, whole ? "whole number" : "number", param->min,
                             param->max, unit);
}

static gboolean parse_choice(const KvTechniqueUse *use, const KvParam *param, const char *text,
                             double *value, GError **error) {
  for (guint i = 0; param->choices[i]; i++) {
    if (strcmp(param->choices[i], text) == 0) {
      *value = i;
      return TRUE;
    }
  }
  g_autofree char *choices = g_strjoinv("|", (char **)param->choices);
  return kv_technique_refuse(use, error, "%s is '%s', expected %s", param->name, text, choices);
}

static gboolean parse_flag(const KvTechniqueUse *use, const KvParam *param, const char *text,
                           double *value, GError **error) {
  static const char *const words[] = {"off", "on", "0", "1", "no", "yes", "false", "true", NULL};
  for (guint i = 0; words[i]; i++) {
    if (strcmp(words[i], text) == 0) {
      *value = i % 2;
      return TRUE;
    }
  }
  return kv_technique_refuse(use, error, "%s is '%s', expected on|off", param->name, text);
}

static gboolean parse_value(const KvTechniqueUse *use, const KvParam *param, const char *text,
                            double *value, GError **error) {
  switch (param->kind) {
  case KV_PARAM_CHOICE:
    return parse_choice(use, param, text, value, error);
  case KV_PARAM_FLAG:
    return parse_flag(use, param, text, value, error);
  case KV_PARAM_INTEGER:
  case KV_PARAM_REAL:
    break;
  }
  return parse_number(use, param, text, value, error);
}

static int unknown_param(const KvTechniqueUse *use, const char *name, GError **error) {
  g_autoptr(GPtrArray) names = g_ptr_array_new();
  for (guint i = 0; i < n_params(use->technique); i++)
    g_ptr_array_add(names, (gpointer)use->technique->params[i].name);
  g_ptr_array_add(names, NULL);
  g_autofree char *unknown = kv_names_unknown("parameter", name, (const char *const *)names->pdata);
  kv_technique_refuse(use, error, "%s", unknown);
  return -1;
}

/* The parameter that `field` sets: NAME=VALUE, the NAME of a flag, or a VALUE by its place. */
static int field_param(const KvTechniqueUse *use, const char *field, guint *place,
                       const char **value, GError **error) {
  const char *equals = strchr(field, '=');
  if (equals) {
    g_autofree char *name = g_strndup(field, (gsize)(equals - field));
    *value = equals + 1;
    int i = param_index(use->technique, name);
    return i >= 0 ? i : unknown_param(use, name, error);
  }
  int flag = param_index(use->technique, field);
  if (flag >= 0 && use->technique->params[flag].kind == KV_PARAM_FLAG) {
    *value = "on";
    return flag;
  }
  *value = field;
  if (*place < n_params(use->technique))
    return (int)(*place)++;
  kv_technique_refuse(use, error, "'%s' is one value too many, expected at most %u", field,
                      n_params(use->technique));
  return -1;
}

/* Parse "ID:FIELD:FIELD" into `use`, whose values are allocated here. */
static gboolean parse_use(const char *entry, KvTechniqueUse *use, GError **error) {
  g_auto(GStrv) fields = g_strsplit(entry, ":", -1);
  use->technique = kv_technique_find(g_strstrip(fields[0]), error);
  if (!use->technique)
    return FALSE;
  guint n = n_params(use->technique), place = 0;
  use->values = g_new(double, n + 1);
  g_autofree gboolean *given = g_new0(gboolean, n + 1);
  for (guint i = 0; i < n; i++)
    use->values[i] = use->technique->params[i].fallback;
  for (guint f = 1; fields[f]; f++) {
    const char *value;
    int i = field_param(use, g_strstrip(fields[f]), &place, &value, error);
    if (i < 0)
      return FALSE;
    if (given[i])
      return kv_technique_refuse(use, error, "%s is given twice, expected once",
                                 use->technique->params[i].name);
    given[i] = TRUE;
    if (!parse_value(use, &use->technique->params[i], value, &use->values[i], error))
      return FALSE;
  }
  return TRUE;
}

static void use_clear(gpointer use) {
  g_free(((KvTechniqueUse *)use)->values);
}

static gboolean stack_has(const KvStack *stack, const KvTechnique *technique) {
  for (guint i = 0; i < stack->uses->len; i++)
    if (g_array_index(stack->uses, KvTechniqueUse, i).technique == technique)
      return TRUE;
  return FALSE;
}

KvStack *kv_stack_parse(const char *text, GError **error) {
  g_autoptr(KvStack) stack = g_new0(KvStack, 1);
  stack->text = g_strdup(text ? text : "");
  stack->uses = g_array_new(FALSE, TRUE, sizeof(KvTechniqueUse));
  g_array_set_clear_func(stack->uses, use_clear);
  g_autofree char *trimmed = g_strstrip(g_strdup(stack->text));
  if (*trimmed == '\0')
    return g_steal_pointer(&stack);
  g_auto(GStrv) entries = g_strsplit(trimmed, ",", -1);
  for (guint i = 0; entries[i]; i++) {
    KvTechniqueUse use = {NULL, NULL};
    if (*g_strstrip(entries[i]) == '\0') {
      g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                  "the stack '%s' has an empty entry, expected technique[:param=value...],...",
                  stack->text);
      return NULL;
    }
    gboolean parsed = parse_use(entries[i], &use, error);
    if (parsed && stack_has(stack, use.technique))
      parsed = kv_technique_refuse(&use, error, "is in the stack twice, expected once");
    if (!parsed) {
      g_free(use.values);
      return NULL;
    }
    g_array_append_val(stack->uses, use);
  }
  return g_steal_pointer(&stack);
}

void kv_stack_free(KvStack *stack) {
  if (!stack)
    return;
  g_free(stack->text);
  if (stack->uses)
    g_array_unref(stack->uses);
  g_free(stack);
}

/* Applying. */

gboolean kv_stack_tune(KvStack *stack, const KvModel *model, const KvPlatform *platform,
                       GError **error) {
  KvTechniqueUse *uses = (KvTechniqueUse *)stack->uses->data;
  for (guint i = 0; i < stack->uses->len; i++)
    if (uses[i].technique->tune && !uses[i].technique->tune(&uses[i], model, platform, error))
      return FALSE;
  return TRUE;
}

static gboolean change_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                            GError **error) {
  guint before = plan->work->len;
  g_ptr_array_add(plan->techniques, (gpointer)use->technique->id);
  if (use->technique->plan && !use->technique->plan(use, model, plan, error))
    return FALSE;
  for (guint i = before; i < plan->work->len; i++)
    g_array_index(plan->work, KvWork, i).technique = use->technique->id;
  return TRUE;
}

KvPlan *kv_stack_apply(const KvStack *stack, KvModel *model, KvDtype dtype, KvEngineConfig *config,
                       GError **error) {
  const KvTechniqueUse *uses = (const KvTechniqueUse *)stack->uses->data;
  guint n = stack->uses->len;
  for (guint i = 0; i < n; i++)
    if (uses[i].technique->arch && !uses[i].technique->arch(&uses[i], model, error))
      return NULL;
  g_autoptr(KvPlan) plan = kv_plan_new(model, dtype);
  for (guint i = 0; i < n; i++)
    if (!change_plan(&uses[i], model, plan, error))
      return NULL;
  for (guint i = 0; i < n; i++)
    if (uses[i].technique->engine && !uses[i].technique->engine(&uses[i], model, config, error))
      return NULL;
  /* Caches that differ although their prefixes are equal cannot be found by prefix. */
  if (!plan->shareable)
    config->prefix_caching = FALSE;
  return g_steal_pointer(&plan);
}
