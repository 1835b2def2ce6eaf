/* flexgen: Sheng et al., "FlexGen" (2023). A share of the blocks lies in host memory and is brought
 * to the GPU a layer at a time; a block of sequences goes through the layers together, so weights
 * in host memory are brought once for all of them. No number changes. */
#include "reference/host/format.h"
#include "reference/host/streamed.h"

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

static void flexgen_free(gpointer state) {
  kv_host_streamed_clear(state);
  g_free(state);
}

static void begin(KvHostCache *cache, KvHostSpan *spans, guint n) {
  const KvHostCompression *c = &cache->compression;
  if (!cache->state) {
    cache->state = g_new0(KvHostStreamed, 1);
    cache->free_state = flexgen_free;
    kv_host_streamed_init(cache->state, cache, c->cache_share,
                          c->cpu_attention ? KV_HOST_DECODING_ELSEWHERE : KV_HOST_DECODING_STAGED);
  }
  kv_host_streamed_begin(cache, spans, n);
}

/* Attention where the cache lies: no block is resident. */
static gboolean attend(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  if (!at->cache->compression.cpu_attention || !span->decoding)
    return FALSE;
  const KvHostPages away = kv_host_streamed_away(at->cache, at->layer);
  gsize d = away.head_dim, keys = row * away.n_kv_heads * d, queries = row * at->n_heads * d;
  const guint32 *table = kv_host_streamed_table(at->cache, span);
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
                                                  .end = kv_host_streamed_end,
                                                  .enter = kv_host_streamed_enter,
                                                  .leave = kv_host_streamed_leave,
                                                  .attend = attend,
                                                  .exact = TRUE};
