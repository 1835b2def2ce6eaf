#include <string.h>

#include "reference/host/format.h"
#include "reference/host/pyramid.h"

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  if (!kv_host_format_snapkv.init(c, use, engine, error))
    return FALSE;
  c->beta = kv_technique_value(use, "beta");
  return TRUE;
}

static gboolean check(const KvHostCompression *c, const KvAttention *attention, GError **error) {
  if (!c->equal_layers)
    return kv_host_format_refuse(error, "pyramidkv", "layers of different heads",
                                 "as many KV heads of one size in every layer");
  return kv_host_format_check_full(c, attention, error);
}

/* --- arithmetic ------------------------------------------------------------------------------ */

/* All layers' parts of the blocks as pages of one layer: block b's part of layer l is page
 * b * L + l. */
static KvHostPages all_parts(const KvHostCache *cache) {
  KvHostPages pages = cache->layers[0];
  pages.block_floats = cache->block_floats / cache->n_layers;
  return pages;
}

/* The layer's table of them, for so many slots. */
static guint32 *table_of(const KvHostPyramid *p, guint layer, const guint32 *block_table,
                         guint32 slots) {
  guint32 n = (slots + p->block_tokens - 1) / p->block_tokens, *table = g_new(guint32, n);
  for (guint32 i = 0; i < n; i++) {
    KvHostPart part = kv_host_pyramid_part(p, layer, i);
    table[i] = block_table[part.block] * p->n_layers + part.layer;
  }
  return table;
}

/* Bring each head's kept[Hkv][budget] tokens and those from the prompt's end on, from where the
 * prompt stands to slots of `parts`, which may be the same memory. */
static void move_kept(const KvHostPages *pages, const guint32 *from, const KvHostPages *parts,
                      const guint32 *to, const guint32 *kept, guint32 budget, guint32 prompt,
                      guint32 tokens) {
  gsize d = pages->head_dim, slots = budget + tokens - prompt, bytes = d * sizeof(float);
  g_autofree float *rows = g_new(float, 2 * d * slots);
  for (guint h = 0; h < pages->n_kv_heads; h++, kept += budget) {
    for (guint32 i = 0; i < slots; i++) {
      const float *at = kv_host_slot(pages, from, h, i < budget ? kept[i] : prompt + i - budget);
      memcpy(rows + 2 * d * i, at + pages->key_offset, bytes);
      memcpy(rows + 2 * d * i + d, at + pages->value_offset, bytes);
    }
    for (guint32 i = 0; i < slots; i++) {
      float *at = kv_host_slot(parts, to, h, i);
      memcpy(at + parts->key_offset, rows + 2 * d * i, bytes);
      memcpy(at + parts->value_offset, rows + 2 * d * i + d, bytes);
    }
  }
}

/* Cut the layer's prompt to `budget` tokens a head. */
static void cut_layer(const KvHostFormatLayer *at, const KvHostSpan *span, guint layer,
                      const float *window, const KvHostPyramid *p) {
  const KvHostPages *pages = &at->cache->layers[layer];
  const KvHostPages parts = all_parts(at->cache);
  KvHostCompression c = at->cache->compression;
  gsize voted = span->prompt_tokens - c.window;
  c.budget = kv_host_pyramid_budget(p, layer);
  guint32 slots = c.budget + span->past + span->n_tokens - span->prompt_tokens;
  g_autofree float *votes = g_new(float, pages->n_kv_heads *voted);
  g_autofree guint32 *kept = g_new(guint32, (gsize)pages->n_kv_heads * c.budget);
  g_autofree guint32 *table = table_of(p, layer, span->block_table, slots);
  kv_host_snapkv_vote(votes, window, pages, span->block_table, span->prompt_tokens,
                      at->weights->layers[layer].attention.n_heads, c.window, at->scores);
  for (guint h = 0; h < pages->n_kv_heads; h++)
    kv_host_snapkv_select(&c, kept + (gsize)h * c.budget, votes + h * voted, span->prompt_tokens);
  move_kept(pages, span->block_table, &parts, table, kept, c.budget, span->prompt_tokens,
            span->past + span->n_tokens);
}

/* --- in a pass ------------------------------------------------------------------------------- */

static guint32 kept_of(const KvHostCompression *c, guint32 prompt_tokens) {
  return kv_host_pyramid_kept(c, prompt_tokens);
}

/* Cut all layers, the last ones first: by the time that their parts are taken they are done. What
 * is kept of the sequence is then its pyramid, if it has one. */
static void cut_prompt(const KvHostFormatLayer *at, const KvHostSpan *span, float **window) {
  KvHostCompression flat = at->cache->compression;
  g_autofree KvHostPyramid *p = kv_host_pyramid_new(&flat);
  gboolean applies = kv_host_pyramid_applies(p, &flat, span->prompt_tokens);
  if (!applies) { /* every layer keeps the mean, in its own parts */
    flat.budget = kept_of(&flat, span->prompt_tokens);
    flat.beta = 1.0;
    g_free(p);
    p = kv_host_pyramid_new(&flat);
  }
  for (guint l = at->weights->n_layers; l-- > 0;)
    cut_layer(at, span, l, window[l], p);
  kv_host_cache_forget(at->cache, span->owner);
  if (applies)
    g_hash_table_insert(at->cache->owners, g_memdup2(&span->owner, sizeof span->owner),
                        g_steal_pointer(&p));
}

static void attended(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostCompression *c = &at->cache->compression;
  if (span->decoding)
    return;
  if (span->past == 0 && at->layer == 0) /* of what a preemption lost */
    kv_host_cache_forget(at->cache, span->owner);
  if (kept_of(c, span->prompt_tokens) == span->prompt_tokens)
    return;
  float **window = kv_host_window_keep(at, span, row);
  if (span->last && at->layer + 1 == at->weights->n_layers)
    cut_prompt(at, span, window);
}

/* What follows the prompt stands where the mean has it, so it was written there. */
static gboolean attend(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostPyramid *p = g_hash_table_lookup(at->cache->owners, &span->owner);
  gsize width = (gsize)at->n_heads * at->pages->head_dim;
  if (!span->decoding || !p)
    return FALSE;
  const KvHostPages parts = all_parts(at->cache);
  guint32 past = kv_host_pyramid_budget(p, at->layer) + span->past - span->prompt_tokens;
  g_autofree guint32 *table = table_of(p, at->layer, span->block_table, past + 1);
  kv_host_attention(at->out + row * width, at->q + row * width, &parts, table, past, 1, at->n_heads,
                    0, at->scores);
  return TRUE;
}

const KvHostFormatClass kv_host_format_pyramidkv = {.technique = "pyramidkv",
                                                    .init = init,
                                                    .check = check,
                                                    .kept = kept_of,
                                                    .attend = attend,
                                                    .attended = attended};
