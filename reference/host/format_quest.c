#include "reference/host/format.h"

#include <math.h>

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  guint page = (guint)kv_technique_value(use, "page_size");
  c->pages = (guint)kv_technique_value(use, "token_budget") / page;
  c->dense_layers = (guint)kv_technique_value(use, "skip_layers");
  if (kv_technique_value(use, "impl") == 1.0)
    return kv_host_format_refuse(error, "quest", "impl=released", "impl=ideal");
  if (engine->block_tokens != page)
    return kv_host_format_refuse(error, "quest", "a page_size that is not engine.block_tokens",
                                 "both equal");
  return TRUE;
}

/* --- arithmetic ------------------------------------------------------------------------------ */

/* The most that a key of the page could score with one of the queries. */
static float page_bound(const float *q, const KvHostPages *pages, const guint32 *block_table,
                        guint head, guint group, guint32 page) {
  guint d = pages->head_dim;
  const float *keys =
      kv_host_slot(pages, block_table, head, page * pages->block_tokens) + pages->key_offset;
  float most = -INFINITY;
  for (guint h = 0; h < group; h++, q += d) {
    float bound = 0.0f;
    for (guint i = 0; i < d; i++) {
      float low = keys[i], high = keys[i];
      for (guint t = 1; t < pages->block_tokens; t++) {
        low = MIN(low, keys[t * d + i]);
        high = MAX(high, keys[t * d + i]);
      }
      bound += MAX(q[i] * low, q[i] * high);
    }
    most = MAX(most, bound);
  }
  return most;
}

void kv_host_quest_choose(const KvHostCompression *c, guint32 *chosen, const float *q,
                          const KvHostPages *pages, const guint32 *block_table, guint head,
                          guint group, guint32 n) {
  guint32 last = (n - 1) / pages->block_tokens;
  g_autofree KvHostCandidate *candidates = g_new(KvHostCandidate, last);
  for (guint32 p = 0; p < last; p++)
    candidates[p] = (KvHostCandidate){page_bound(q, pages, block_table, head, group, p), p};
  qsort(candidates, last, sizeof *candidates, kv_host_by_votes);
  for (guint32 i = 0; i + 1 < c->pages; i++)
    chosen[i] = candidates[i].position;
  qsort(chosen, c->pages - 1, sizeof *chosen, kv_host_by_position);
  chosen[c->pages - 1] = last;
}

void kv_host_quest_attention(const KvHostCompression *c, float *out, const float *q,
                             const KvHostPages *pages, const guint32 *block_table, guint32 n,
                             guint n_heads, float *scores) {
  guint32 last = (n - 1) / pages->block_tokens;
  guint group = n_heads / pages->n_kv_heads;
  gsize width = (gsize)group * pages->head_dim;
  if (last < c->pages) {
    kv_host_attention(out, q, pages, block_table, n - 1, 1, n_heads, 0, scores);
    return;
  }
  g_autofree guint32 *chosen = g_new(guint32, c->pages), *table = g_new(guint32, c->pages);
  for (guint h = 0; h < pages->n_kv_heads; h++, q += width, out += width) {
    KvHostPages one = *pages; /* this head's part of every block */
    one.n_kv_heads = 1;
    one.key_offset += (gsize)h * pages->block_tokens * pages->head_dim;
    one.value_offset += (gsize)h * pages->block_tokens * pages->head_dim;
    kv_host_quest_choose(c, chosen, q, pages, block_table, h, group, n);
    for (guint i = 0; i < c->pages; i++)
      table[i] = block_table[chosen[i]];
    guint32 held = (c->pages - 1) * pages->block_tokens + (n - 1) % pages->block_tokens;
    kv_host_attention(out, q, &one, table, held, 1, group, 0, scores);
  }
}

/* --- in a pass ------------------------------------------------------------------------------- */

static gboolean attend(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostCompression *c = &at->cache->compression;
  gsize width = (gsize)at->n_heads * at->pages->head_dim;
  if (!span->decoding || at->layer < c->dense_layers)
    return FALSE;
  kv_host_quest_attention(c, at->out + row * width, at->q + row * width, at->pages,
                          span->block_table, span->past + 1, at->n_heads, at->scores);
  return TRUE;
}

const KvHostFormatClass kv_host_format_quest = {
    .technique = "quest", .init = init, .check = kv_host_format_check_full, .attend = attend};
