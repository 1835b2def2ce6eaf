/* flexgen: Sheng et al., "FlexGen" (2023). A share of the blocks lies in host memory and is brought
 * to the GPU a layer at a time; a block of sequences goes through the layers together, so weights
 * in host memory are brought once for all of them. Here host memory is an array of its own, and the
 * staging area the end of HBM's. No number changes. */
#include <math.h>
#include <string.h>

#include "reference/host/format.h"
#include "reference/host/staging.h"

/* Values of the choice cpu_cache_compute. */
enum { CPU_AUTO, CPU_OFF, CPU_ON };

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  double cache = kv_technique_value(use, "cg"), weights = kv_technique_value(use, "wg");
  gboolean on_cpu = cache < 100.0 && kv_technique_value(use, "cpu_cache_compute") != CPU_OFF;
  const struct {
    gboolean is;
    const char *what, *expected;
  } refused[] = {
      {kv_technique_value(use, "compress_weight") != 0.0 ||
           kv_technique_value(use, "compress_cache") != 0.0,
       "4-bit weights or a 4-bit cache", "compress_weight=off:compress_cache=off"},
      {kv_technique_value(use, "attn_sparsity") < 1.0, "attn_sparsity below 1", "attn_sparsity=1"},
      {kv_technique_value(use, "impl") == 1.0, "impl=released", "impl=ideal"},
      {kv_technique_value(use, "hg") < 100.0, "activations in host memory", "hg=100:hc=0"},
      {weights + kv_technique_value(use, "wc") < 100.0 ||
           cache + kv_technique_value(use, "cc") < 100.0,
       "weights or a cache on disk", "wg and wc, cg and cc of 100 % together"},
      {on_cpu && cache > 0.0, "attention on the CPU over a part of the cache",
       "cg=0:cc=100 or cpu_cache_compute=off"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(refused); i++)
    if (refused[i].is)
      return kv_host_format_refuse(error, "flexgen", refused[i].what, refused[i].expected);
  c->cache_share = cache / 100.0;
  c->weights_share = weights / 100.0;
  c->cpu_attention = on_cpu;
  c->overlap = kv_technique_value(use, "overlap") != 0.0;
  return TRUE;
}

/* --- a pass ---------------------------------------------------------------------------------- */

/* The cache's state. */
typedef struct {
  KvHostStaging staging;
  float *away; /* [staging.away][block_floats] */
  /* Of the pass under way: its spans, and their own tables. */
  const KvHostSpan *spans;
  const guint32 **tables;
} Flexgen;

static void flexgen_free(gpointer state) {
  Flexgen *f = state;
  kv_host_staging_clear(&f->staging);
  g_free(f->away);
  g_free(f->tables);
  g_free(f);
}

static Flexgen *state_of(KvHostCache *cache) {
  Flexgen *f = cache->state;
  if (f)
    return f;
  cache->state = f = g_new0(Flexgen, 1);
  cache->free_state = flexgen_free;
  kv_host_staging_init(&f->staging, cache->compression.cache_share, (guint32)cache->hbm.n_blocks);
  f->staging.prompts_only = cache->compression.cpu_attention;
  f->away = g_new0(float, f->staging.away * cache->block_floats);
  return f;
}

static void begin(KvHostCache *cache, KvHostSpan *spans, guint n) {
  Flexgen *f = state_of(cache);
  kv_host_staging_plan(&f->staging, spans, n, cache->block_tokens);
  const guint32 *table = (const guint32 *)(void *)f->staging.table->data;
  f->tables = g_renew(const guint32 *, f->tables, n);
  f->spans = spans;
  for (guint s = 0; s < n; s++) {
    guint32 tokens = spans[s].past - spans[s].dropped + spans[s].n_tokens;
    f->tables[s] = spans[s].block_table;
    spans[s].block_table = table;
    table += (tokens + cache->block_tokens - 1) / cache->block_tokens;
  }
}

static void end(KvHostCache *cache, KvHostSpan *spans, guint n) {
  for (guint s = 0; s < n; s++)
    spans[s].block_table = state_of(cache)->tables[s];
}

/* A layer's part of a block in host memory, and of one in HBM. */
static float *part(const KvHostCache *cache, float *blocks, guint32 block, guint layer) {
  return blocks + block * cache->block_floats + cache->layers[layer].key_offset;
}

static gsize part_floats(const KvHostCache *cache, guint layer) {
  return 2 * (cache->layers[layer].value_offset - cache->layers[layer].key_offset);
}

/* What another layer left in the staging area must not be read. */
static void enter(KvHostCache *cache, guint layer) {
  Flexgen *f = state_of(cache);
  const KvHostStaging *s = &f->staging;
  gsize n = part_floats(cache, layer);
  for (guint32 place = 0; place < s->homes->len; place++) {
    float *to = part(cache, cache->hbm.floats, s->resident + place, layer);
    for (gsize i = 0; i < n; i++)
      to[i] = NAN;
  }
  for (guint i = 0; i < s->fetched->len; i++) {
    const KvHostStaged *b = &g_array_index(s->fetched, KvHostStaged, i);
    memcpy(part(cache, cache->hbm.floats, s->resident + b->place, layer),
           part(cache, f->away, b->home, layer), n * sizeof(float));
  }
}

static void leave(KvHostCache *cache, guint layer) {
  Flexgen *f = state_of(cache);
  const KvHostStaging *s = &f->staging;
  for (guint i = 0; i < s->stored->len; i++) {
    const KvHostStaged *b = &g_array_index(s->stored, KvHostStaged, i);
    memcpy(part(cache, f->away, b->home, layer),
           part(cache, cache->hbm.floats, s->resident + b->place, layer),
           part_floats(cache, layer) * sizeof(float));
  }
}

/* Attention where the cache lies: no block is resident, so a block's id is its index there. */
static gboolean attend(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  Flexgen *f = state_of(at->cache);
  if (!at->cache->compression.cpu_attention || !span->decoding)
    return FALSE;
  KvHostPages away = *at->pages;
  away.pool = f->away;
  gsize d = away.head_dim, keys = row * away.n_kv_heads * d, queries = row * at->n_heads * d;
  const guint32 *table = f->tables[span - f->spans];
  guint32 slot = span->past - span->dropped;
  kv_host_pages_write(&away, table, slot, at->k + keys, at->v + keys);
  kv_host_attention(at->out + queries, at->q + queries, &away, table, slot, 1, at->n_heads, 0,
                    at->scores);
  return TRUE;
}

const KvHostFormatClass kv_host_format_flexgen = {.technique = "flexgen",
                                                  .init = init,
                                                  .check = kv_host_format_check_full,
                                                  .begin = begin,
                                                  .end = end,
                                                  .enter = enter,
                                                  .leave = leave,
                                                  .attend = attend,
                                                  .exact = TRUE};
