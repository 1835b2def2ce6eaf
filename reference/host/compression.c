#include "reference/host/compression.h"

#include <math.h>
#include <string.h>

#include "reference/host/format.h"
#include "sim/base/error.h"

const KvHostFormatClass *kv_host_format(KvHostFormat format) {
  static const KvHostFormatClass exact = {.exact = TRUE};
  static const KvHostFormatClass *const formats[] = {
      [KV_HOST_EXACT] = &exact,
      [KV_HOST_FP8] = &kv_host_format_fp8,
      [KV_HOST_KIVI] = &kv_host_format_kivi,
      [KV_HOST_SNAPKV] = &kv_host_format_snapkv,
      [KV_HOST_QUEST] = &kv_host_format_quest,
      [KV_HOST_PYRAMIDKV] = &kv_host_format_pyramidkv,
      [KV_HOST_H2O] = &kv_host_format_h2o,
      [KV_HOST_PALU] = &kv_host_format_palu,
      [KV_HOST_MINICACHE] = &kv_host_format_minicache,
      [KV_HOST_FLEXGEN] = &kv_host_format_flexgen,
      [KV_HOST_INFINIGEN] = &kv_host_format_infinigen};
  G_STATIC_ASSERT(G_N_ELEMENTS(formats) == KV_HOST_N_FORMATS);
  return formats[format];
}

/* --- what is executed ------------------------------------------------------------------------ */

gboolean kv_host_format_refuse(GError **error, const char *id, const char *what,
                               const char *expected) {
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%s: %s, which the real executors do not carry out, expected %s", id, what, expected);
  return FALSE;
}

gboolean kv_host_format_check_full(const KvHostCompression *c, const KvAttention *attention,
                                   GError **error) {
  return attention->kind == KV_ATTENTION_FULL ||
         kv_host_format_refuse(error, kv_host_format(c->format)->technique,
                               "a layer without full attention", "full attention in every layer");
}

static gboolean check_layers(const KvHostCompression *c, const KvModel *model, GError **error) {
  const KvHostFormatClass *format = kv_host_format(c->format);
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *a = &model->groups[g].attention;
    if (model->groups[g].count == 0)
      continue;
    /* palu's factors are such weights */
    if (a->kind != KV_ATTENTION_NONE && a->mixer_parameters && c->format != KV_HOST_PALU)
      return kv_host_format_refuse(error, model->id, "weights beside attention's projections",
                                   "queries, keys, values and an output alone");
    if (c->format != KV_HOST_EXACT && a->kind == KV_ATTENTION_LATENT)
      return kv_host_format_refuse(error, format->technique ? format->technique : "precision.cache",
                                   "a cache of latents in another form", "bf16 latents");
    if (format->check && !format->check(c, a, error))
      return FALSE;
  }
  return TRUE;
}

/* What formats need to know of the model and the engine. */
static void note_layers(KvHostCompression *c, const KvModel *model, const KvEngineConfig *engine) {
  const KvAttention *first = NULL;
  c->block_tokens = engine->block_tokens;
  c->equal_layers = TRUE;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *a = &model->groups[g].attention;
    if (model->groups[g].count == 0)
      continue;
    first = first ? first : a;
    c->n_layers += model->groups[g].count;
    c->equal_layers &= a->n_kv_heads == first->n_kv_heads && a->head_dim == first->head_dim;
  }
}

/* The format that a technique asks for; KV_HOST_EXACT if it is none of them. */
static KvHostFormat format_of(const char *technique) {
  for (guint f = 0; f < KV_HOST_N_FORMATS; f++)
    if (g_strcmp0(kv_host_format((KvHostFormat)f)->technique, technique) == 0)
      return (KvHostFormat)f;
  return KV_HOST_EXACT;
}

/* Blocks that several sequences share are read once: of a whole cache, all of whose layers read all
 * of it. */
static gboolean init_sharing(KvHostCompression *c, const KvStack *stack, const KvModel *model,
                             GError **error) {
  const char *const id = "chunkattention";
  for (guint i = 0; i < stack->uses->len; i++) {
    const KvTechniqueUse *use = &g_array_index(stack->uses, KvTechniqueUse, i);
    if (strcmp(use->technique->id, id) == 0)
      c->shared_over = (guint)kv_technique_value(use, "tpp_threshold");
  }
  if (!c->shared_over)
    return TRUE;
  if (c->format != KV_HOST_EXACT)
    return kv_host_format_refuse(error, id, "beside a change of the cache", "a cache of bf16");
  for (guint g = 0; g < model->n_groups; g++)
    if (model->groups[g].count && model->groups[g].attention.kind != KV_ATTENTION_FULL)
      return kv_host_format_refuse(error, id, "a layer without full attention",
                                   "full attention in every layer");
  return TRUE;
}

gboolean kv_host_compression_init(KvHostCompression *c, const KvStack *stack, const KvModel *model,
                                  KvDtype cache_dtype, const KvEngineConfig *engine,
                                  GError **error) {
  *c = (KvHostCompression){0};
  note_layers(c, model, engine);
  if (cache_dtype == KV_DTYPE_FP8)
    c->format = KV_HOST_FP8;
  else if (cache_dtype != KV_DTYPE_BF16 && cache_dtype != KV_DTYPE_FP16 &&
           cache_dtype != KV_DTYPE_FP32)
    return kv_host_format_refuse(error, "precision.cache", kv_dtype_names[cache_dtype],
                                 "bf16 or fp8");
  for (guint i = 0; i < stack->uses->len; i++) {
    const KvTechniqueUse *use = &g_array_index(stack->uses, KvTechniqueUse, i);
    if (strcmp(use->technique->id, "mla") == 0 && kv_technique_value(use, "kv_bits") < 16.0)
      return kv_host_format_refuse(error, "mla", "kv_bits below 16", "kv_bits=16");
    KvHostFormat format = format_of(use->technique->id);
    if (format == KV_HOST_EXACT)
      continue;
    if (c->format != KV_HOST_EXACT)
      return kv_host_format_refuse(error, use->technique->id, "a second change of the cache",
                                   "one of them alone");
    c->format = format;
    if (!kv_host_format(format)->init(c, use, engine, error))
      return FALSE;
  }
  return check_layers(c, model, error) && init_sharing(c, stack, model, error);
}

gboolean kv_host_compression_streams(const KvHostCompression *c) {
  return c->format == KV_HOST_FLEXGEN || c->format == KV_HOST_INFINIGEN;
}

guint32 kv_host_compression_kept(const KvHostCompression *c, guint32 prompt_tokens) {
  const KvHostFormatClass *format = kv_host_format(c->format);
  return format->kept ? format->kept(c, prompt_tokens) : prompt_tokens;
}

guint32 kv_host_compression_dropped(const KvHostCompression *c, guint32 prompt_tokens,
                                    guint32 context) {
  guint32 kept = kv_host_compression_kept(c, prompt_tokens);
  guint32 held = kv_host_format(c->format)->evicts ? context : prompt_tokens;
  return held > kept ? held - kept : 0;
}

/* --- choices --------------------------------------------------------------------------------- */

int kv_host_by_votes(const void *a, const void *b) {
  const KvHostCandidate *x = a, *y = b;
  return x->votes != y->votes ? (x->votes < y->votes ? 1 : -1)
                              : (x->position > y->position) - (x->position < y->position);
}

int kv_host_by_position(const void *a, const void *b) {
  guint32 x = *(const guint32 *)a, y = *(const guint32 *)b;
  return (x > y) - (x < y);
}

/* --- small floats ---------------------------------------------------------------------------- */

/* x in a format with that many bits after the point and that smallest exponent. */
static float round_to(float x, int mantissa_bits, int lowest_exponent, float largest) {
  int exponent;
  if (!isfinite(x) || x == 0.0f)
    return isinf(x) ? copysignf(largest, x) : x;
  (void)frexpf(x, &exponent); /* |x| in [2^(exponent - 1), 2^exponent) */
  int unit = MAX(exponent - 1, lowest_exponent) - mantissa_bits;
  float rounded = ldexpf(rintf(ldexpf(x, -unit)), unit);
  return fabsf(rounded) > largest ? copysignf(largest, x) : rounded;
}

float kv_host_round_e4m3(float x) {
  return round_to(x, 3, -6, 448.0f);
}

float kv_host_round_fp16(float x) {
  return round_to(x, 10, -14, 65504.0f);
}
