/* minicache: what is merged is held as its layers read it, where keys and values stand. */
#include <math.h>
#include <string.h>

#include "reference/host/format.h"
#include "reference/host/merging.h"

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  c->first_merged = (gint)kv_technique_value(use, "S");
  c->slerp = (float)kv_technique_value(use, "t");
  c->gamma = (float)kv_technique_value(use, "gamma");
  if (kv_technique_value(use, "bits") == 0.0)
    return kv_host_format_refuse(error, "minicache", "merged pairs of 4 bits", "bits=16");
  if (kv_technique_value(use, "restore") == 1.0)
    return kv_host_format_refuse(error, "minicache", "restore=apart", "restore=fused");
  if (engine->prefix_caching)
    return kv_host_format_refuse(error, "minicache", "engine.prefix_caching=true",
                                 "engine.prefix_caching=false");
  return TRUE;
}

static const KvAttention *attention_of(gconstpointer weights, guint layer) {
  return &((const KvHostWeights *)weights)->layers[layer].attention;
}

static gsize part_offset(const KvHostPages *pages, guint part) {
  return part ? pages->value_offset : pages->key_offset;
}

/* Keys (part 0) or values of one token, all heads: out of the pages, and back. */
static void gather(float *x, const KvHostPages *pages, const guint32 *block_table, guint part,
                   guint32 t) {
  for (guint h = 0; h < pages->n_kv_heads; h++, x += pages->head_dim)
    memcpy(x, kv_host_slot(pages, block_table, h, t) + part_offset(pages, part),
           pages->head_dim * sizeof *x);
}

static void scatter(const float *x, const KvHostPages *pages, const guint32 *block_table,
                    guint part, guint32 t) {
  for (guint h = 0; h < pages->n_kv_heads; h++, x += pages->head_dim)
    memcpy(kv_host_slot(pages, block_table, h, t) + part_offset(pages, part), x,
           pages->head_dim * sizeof *x);
}

/* The sequence's thresholds, [pairs][keys, values]; made zeroed where it is new. */
static float *thresholds_of(const KvHostFormatLayer *at, guint64 owner) {
  float *thresholds = g_hash_table_lookup(at->cache->owners, &owner);
  if (thresholds)
    return thresholds;
  thresholds = g_new0(float, at->weights->n_layers + 1);
  g_hash_table_insert(at->cache->owners, g_memdup2(&owner, sizeof owner), thresholds);
  return thresholds;
}

typedef struct {
  const KvHostFormatLayer *at;
  const KvHostPages *first, *second;
  const guint32 *block_table;
  float *x, *y; /* [Hkv d] */
  guint width;
} Pair;

static float distance_of(const Pair *p, guint part, guint32 t) {
  gather(p->x, p->first, p->block_table, part, t);
  gather(p->y, p->second, p->block_table, part, t);
  return kv_host_merge_distance(p->x, p->y, p->width);
}

static void merge_token(const Pair *p, guint part, guint32 t, float threshold) {
  if (distance_of(p, part, t) >= threshold)
    return;
  kv_host_merge(&p->at->cache->compression, p->x, p->y, p->width, NULL);
  scatter(p->x, p->first, p->block_table, part, t);
  scatter(p->y, p->second, p->block_table, part, t);
}

/* The prompt's threshold, then its tokens. */
static void merge_prompt(const Pair *p, guint part, guint32 n, float *threshold) {
  float least = INFINITY, greatest = 0.0f;
  for (guint32 t = 0; t < n; t++) {
    float distance = distance_of(p, part, t);
    least = MIN(least, distance);
    greatest = MAX(greatest, distance);
  }
  *threshold = kv_host_merge_threshold(&p->at->cache->compression, least, greatest);
  for (guint32 t = 0; t < n; t++)
    merge_token(p, part, t, *threshold);
}

static void attended(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  guint pair = 0, width = at->pages->n_kv_heads * at->pages->head_dim;
  guint32 n = span->past + span->n_tokens;
  if (kv_host_merge_role(&at->cache->compression, at->layer, at->weights->n_layers, attention_of,
                         at->weights, &pair) != KV_HOST_SECOND_OF_PAIR ||
      !(span->decoding || span->last))
    return;
  g_autofree float *x = g_new(float, width), *y = g_new(float, width);
  const Pair p = {at, at->pages - 1, at->pages, span->block_table, x, y, width};
  float *thresholds = thresholds_of(at, span->owner) + 2 * (gsize)pair;
  for (guint part = 0; part < 2; part++)
    if (span->decoding)
      merge_token(&p, part, n - 1, thresholds[part]);
    else
      merge_prompt(&p, part, n, &thresholds[part]);
}

const KvHostFormatClass kv_host_format_minicache = {.technique = "minicache",
                                                    .init = init,
                                                    .check = kv_host_format_check_full,
                                                    .attended = attended};
