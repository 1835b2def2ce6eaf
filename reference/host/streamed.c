#include "reference/host/streamed.h"

#include <math.h>
#include <string.h>

void kv_host_streamed_init(KvHostStreamed *s, const KvHostCache *cache, double share,
                           KvHostDecoding decoding) {
  *s = (KvHostStreamed){0};
  kv_host_staging_init(&s->staging, share, (guint32)cache->hbm.n_blocks);
  s->staging.decoding = decoding;
  s->away = g_new0(float, s->staging.away * cache->block_floats);
}

void kv_host_streamed_clear(KvHostStreamed *s) {
  kv_host_staging_clear(&s->staging);
  g_free(s->away);
  g_free(s->tables);
}

void kv_host_streamed_begin(KvHostCache *cache, KvHostSpan *spans, guint n) {
  KvHostStreamed *s = cache->state;
  kv_host_staging_plan(&s->staging, spans, n, cache->block_tokens);
  const guint32 *table = (const guint32 *)(void *)s->staging.table->data;
  s->tables = g_renew(const guint32 *, s->tables, n);
  s->spans = spans;
  for (guint i = 0; i < n; i++) {
    guint32 tokens = spans[i].past - spans[i].dropped + spans[i].n_tokens;
    s->tables[i] = spans[i].block_table;
    spans[i].block_table = table;
    table += (tokens + cache->block_tokens - 1) / cache->block_tokens;
  }
}

void kv_host_streamed_end(KvHostCache *cache, KvHostSpan *spans, guint n) {
  const KvHostStreamed *s = cache->state;
  for (guint i = 0; i < n; i++)
    spans[i].block_table = s->tables[i];
}

/* A layer's part of a block in host memory, and of one in HBM. */
static float *part(const KvHostCache *cache, float *blocks, guint32 block, guint layer) {
  return blocks + block * cache->block_floats + cache->layers[layer].key_offset;
}

static gsize part_floats(const KvHostCache *cache, guint layer) {
  return 2 * (cache->layers[layer].value_offset - cache->layers[layer].key_offset);
}

/* What another layer left in the staging area must not be read. */
void kv_host_streamed_enter(KvHostCache *cache, guint layer) {
  const KvHostStreamed *streamed = cache->state;
  const KvHostStaging *s = &streamed->staging;
  gsize n = part_floats(cache, layer);
  for (guint32 place = 0; place < s->homes->len; place++) {
    float *to = part(cache, cache->hbm.floats, s->resident + place, layer);
    for (gsize i = 0; i < n; i++)
      to[i] = NAN;
  }
  for (guint i = 0; i < s->fetched->len; i++) {
    const KvHostStaged *b = &g_array_index(s->fetched, KvHostStaged, i);
    memcpy(part(cache, cache->hbm.floats, s->resident + b->place, layer),
           part(cache, streamed->away, b->home, layer), n * sizeof(float));
  }
}

void kv_host_streamed_leave(KvHostCache *cache, guint layer) {
  const KvHostStreamed *streamed = cache->state;
  const KvHostStaging *s = &streamed->staging;
  for (guint i = 0; i < s->stored->len; i++) {
    const KvHostStaged *b = &g_array_index(s->stored, KvHostStaged, i);
    memcpy(part(cache, streamed->away, b->home, layer),
           part(cache, cache->hbm.floats, s->resident + b->place, layer),
           part_floats(cache, layer) * sizeof(float));
  }
}

KvHostPages kv_host_streamed_away(const KvHostCache *cache, guint layer) {
  KvHostPages away = cache->layers[layer];
  away.pool = ((const KvHostStreamed *)cache->state)->away;
  return away;
}

const guint32 *kv_host_streamed_table(const KvHostCache *cache, const KvHostSpan *span) {
  const KvHostStreamed *s = cache->state;
  return s->tables[span - s->spans];
}
