#include <math.h>
#include <string.h>

#include "reference/host/format.h"

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  double heavy = kv_technique_value(use, "hh_ratio");
  double recent = kv_technique_value(use, "recent_ratio");
  double total = kv_technique_value(use, "budget_total");
  c->slots = total * kv_technique_value(use, "output_tokens");
  c->slot_share = total > 0.0 ? total : heavy + recent;
  c->recent_share = recent / (heavy + recent);
  if (kv_technique_value(use, "impl") == 1.0)
    return kv_host_format_refuse(error, "h2o", "impl=released", "impl=ideal");
  if (engine->block_tokens < 2) /* a short prompt's two slots are in one block of the plan's */
    return kv_host_format_refuse(error, "h2o", "engine.block_tokens=1", "2 or more");
  return TRUE;
}

/* --- arithmetic ------------------------------------------------------------------------------ */

guint32 kv_host_h2o_slots(const KvHostCompression *c, guint32 prompt_tokens) {
  return MAX(2, (guint32)(c->slots + c->slot_share * prompt_tokens + 1e-6));
}

guint32 kv_host_h2o_recent(const KvHostCompression *c, guint32 slots) {
  return CLAMP((guint32)(c->recent_share * slots + 1e-6), 1, slots - 1);
}

static float dot(const float *x, const float *y, guint d) {
  float sum = 0.0f;
  for (guint i = 0; i < d; i++)
    sum += x[i] * y[i];
  return sum;
}

void kv_host_h2o_add(float *scores, const float *q, const KvHostPages *pages,
                     const guint32 *block_table, guint head, guint group, guint32 visible,
                     float *scratch) {
  guint d = pages->head_dim;
  float scale = 1.0f / sqrtf((float)d);
  for (guint g = 0; g < group; g++, q += d) {
    float largest = -INFINITY, total = 0.0f;
    for (guint32 j = 0; j < visible; j++) {
      scratch[j] = scale * dot(q, kv_host_slot(pages, block_table, head, j) + pages->key_offset, d);
      largest = MAX(largest, scratch[j]);
    }
    for (guint32 j = 0; j < visible; j++)
      total += scratch[j] = expf(scratch[j] - largest);
    for (guint32 j = 0; j < visible; j++)
      scores[j] += scratch[j] / total;
  }
}

guint32 kv_host_h2o_slot(const float *scores, const guint32 *positions, guint32 slots,
                         guint32 recent, guint32 position) {
  guint32 least = slots;
  if (position < slots)
    return position;
  for (guint32 i = 0; i < slots; i++)
    if (positions[i] + recent <= position && (least == slots || scores[i] < scores[least]))
      least = i;
  return least;
}

/* --- what is kept of a sequence -------------------------------------------------------------- */

/* Of each layer and KV head the scores of the prompt's tokens, and once it is done those of the
 * slots and the positions that stand in them. */
typedef struct {
  guint heads;     /* of the layer with most */
  guint32 room;    /* tokens, or slots */
  guint32 words[]; /* [layers][heads]: scores[room], positions[room] */
} Held;

static float *scores_of(Held *held, guint layer, guint head) {
  return (float *)(void *)(held->words + 2 * ((gsize)layer * held->heads + head) * held->room);
}

static guint32 *positions_of(Held *held, guint layer, guint head) {
  return held->words + (2 * ((gsize)layer * held->heads + head) + 1) * held->room;
}

/* Room for so many tokens, with what was there. */
static Held *held_of(const KvHostFormatLayer *at, guint64 owner, guint32 room) {
  Held *before = g_hash_table_lookup(at->cache->owners, &owner);
  guint heads = 0, n_layers = at->weights->n_layers;
  if (before && before->room >= room)
    return before;
  for (guint l = 0; l < n_layers; l++)
    heads = MAX(heads, at->cache->layers[l].n_kv_heads);
  Held *held = g_malloc0(sizeof *held + 2 * (gsize)n_layers * heads * room * sizeof(guint32));
  held->heads = heads;
  held->room = room;
  for (guint l = 0; before && l < n_layers; l++)
    for (guint h = 0; h < heads; h++) {
      memcpy(scores_of(held, l, h), scores_of(before, l, h), before->room * sizeof(float));
      memcpy(positions_of(held, l, h), positions_of(before, l, h), before->room * sizeof(guint32));
    }
  g_hash_table_replace(at->cache->owners, g_memdup2(&owner, sizeof owner), held);
  return held;
}

/* --- in a pass ------------------------------------------------------------------------------- */

/* The prompt's tokens, or the best of them, move into the slots with their scores. */
static void cut_prompt(const KvHostFormatLayer *at, const KvHostSpan *span, Held *held) {
  const KvHostPages *pages = at->pages;
  guint32 n = span->past + span->n_tokens;
  guint32 slots = kv_host_h2o_slots(&at->cache->compression, span->prompt_tokens);
  const KvHostCompression choice = {.budget = MIN(slots, n),
                                    .window = kv_host_h2o_recent(&at->cache->compression, slots),
                                    .kernel = 1};
  g_autofree guint32 *kept = g_new(guint32, (gsize)pages->n_kv_heads * choice.budget);
  for (guint h = 0; h < pages->n_kv_heads; h++) {
    float *scores = scores_of(held, at->layer, h);
    guint32 *positions = positions_of(held, at->layer, h), *own = kept + (gsize)h * choice.budget;
    if (n > slots)
      kv_host_snapkv_select(&choice, own, scores, n);
    for (guint32 i = 0; i < choice.budget; i++) {
      positions[i] = n > slots ? own[i] : i;
      scores[i] = scores[positions[i]]; /* never from a lower place */
    }
  }
  if (n > slots)
    kv_host_snapkv_compact(&choice, pages, span->block_table, kept, n, n);
}

/* A decoding token's keys and values go to a slot of their own in each head. */
static gboolean write_token(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostPages *pages = at->pages;
  gsize d = pages->head_dim, width = pages->n_kv_heads * d, bytes = d * sizeof(float);
  const KvHostCompression *c = &at->cache->compression;
  guint32 slots = kv_host_h2o_slots(c, span->prompt_tokens);
  if (!span->decoding)
    return FALSE;
  Held *held = held_of(at, span->owner, slots);
  for (guint h = 0; h < pages->n_kv_heads; h++) {
    float *scores = scores_of(held, at->layer, h);
    guint32 *positions = positions_of(held, at->layer, h);
    guint32 slot =
        kv_host_h2o_slot(scores, positions, slots, kv_host_h2o_recent(c, slots), span->past);
    float *to = kv_host_slot(pages, span->block_table, h, slot);
    memcpy(to + pages->key_offset, at->k + row * width + h * d, bytes);
    memcpy(to + pages->value_offset, at->v + row * width + h * d, bytes);
    positions[slot] = span->past;
    scores[slot] = 0.0f;
  }
  return TRUE;
}

/* The span's queries draw on scores: a prompt's of positions, a decoding token's of slots. */
static void attended(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostPages *pages = at->pages;
  guint32 slots = kv_host_h2o_slots(&at->cache->compression, span->prompt_tokens);
  guint group = at->n_heads / pages->n_kv_heads;
  if (span->past == 0 && at->layer == 0) /* of what a preemption lost */
    kv_host_cache_forget(at->cache, span->owner);
  guint32 tokens = MAX(span->prompt_tokens, span->past + span->n_tokens);
  Held *held = held_of(at, span->owner, span->decoding ? slots : MAX(slots, tokens));
  for (guint32 t = 0; t < span->n_tokens; t++)
    for (guint h = 0; h < pages->n_kv_heads; h++)
      kv_host_h2o_add(scores_of(held, at->layer, h),
                      at->q + ((row + t) * at->n_heads + (gsize)h * group) * pages->head_dim, pages,
                      span->block_table, h, group, span->past - span->dropped + t + 1, at->scores);
  if (span->last)
    cut_prompt(at, span, held);
}

const KvHostFormatClass kv_host_format_h2o = {.technique = "h2o",
                                              .init = init,
                                              .check = kv_host_format_check_full,
                                              .kept = kv_host_h2o_slots,
                                              .evicts = TRUE,
                                              .write = write_token,
                                              .attended = attended};
