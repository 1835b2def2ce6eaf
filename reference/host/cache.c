#include "reference/host/cache.h"

#include <string.h>

#include "reference/host/format.h"
#include "reference/host/recurrent.h"
#include "sim/base/error.h"

enum { SLOT_ALIGNMENT = 4096 };

static gboolean pool_init(KvHostPool *pool, const KvHostCache *cache, guint64 n_blocks) {
  gsize floats, names;
  if (!g_size_checked_mul(&floats, cache->block_floats, n_blocks) ||
      !g_size_checked_mul(&names, cache->block_tokens, n_blocks))
    return FALSE;
  pool->n_blocks = n_blocks;
  /* Zeroed memory comes from the system page by page as it is touched: a large unused pool is free.
   */
  pool->floats = g_try_new0(float, floats);
  pool->names = g_try_new0(guint64, names);
  return !n_blocks || (pool->floats && pool->names);
}

static void lay_out(KvHostCache *cache, const KvHostWeights *weights) {
  cache->n_layers = weights->n_layers;
  cache->layers = g_new0(KvHostPages, cache->n_layers);
  for (guint l = 0; l < cache->n_layers; l++) {
    const KvAttention *a = &weights->layers[l].attention;
    if (a->kind == KV_ATTENTION_LATENT) { /* latent and rotated key, one for all heads */
      guint width = a->kv_lora_rank + a->rope_head_dim;
      cache->layers[l] = (KvHostPages){.key_offset = cache->block_floats,
                                       .block_tokens = cache->block_tokens,
                                       .n_kv_heads = 1,
                                       .head_dim = width};
      cache->block_floats += (gsize)cache->block_tokens * width;
      continue;
    }
    gsize floats = a->kind == KV_ATTENTION_NONE
                       ? kv_host_state_floats(a)
                       : (gsize)a->n_kv_heads * cache->block_tokens * a->head_dim;
    cache->layers[l] = (KvHostPages){.key_offset = cache->block_floats,
                                     .value_offset = cache->block_floats + floats,
                                     .block_tokens = cache->block_tokens,
                                     .n_kv_heads = a->n_kv_heads,
                                     .head_dim = a->head_dim};
    cache->block_floats += 2 * floats;
  }
}

KvHostCache *kv_host_cache_new(const KvHostWeights *weights, guint block_tokens, guint64 hbm_blocks,
                               guint64 dram_blocks, GError **error) {
  g_return_val_if_fail(weights && block_tokens, NULL);
  g_autoptr(KvHostCache) cache = g_new0(KvHostCache, 1);
  cache->block_tokens = block_tokens;
  cache->owners = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
  lay_out(cache, weights);
  if (!pool_init(&cache->hbm, cache, hbm_blocks) || !pool_init(&cache->dram, cache, dram_blocks)) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "no memory for %" G_GUINT64_FORMAT " + %" G_GUINT64_FORMAT
                " KV blocks of %.0f bytes, expected fewer blocks",
                hbm_blocks, dram_blocks, (double)cache->block_floats * sizeof(float));
    return NULL;
  }
  for (guint l = 0; l < cache->n_layers; l++) {
    cache->layers[l].pool = cache->hbm.floats;
    cache->layers[l].block_floats = cache->block_floats;
  }
  return g_steal_pointer(&cache);
}

static void pool_clear(KvHostPool *pool) {
  g_free(pool->floats);
  g_free(pool->names);
}

void kv_host_cache_free(KvHostCache *cache) {
  if (!cache)
    return;
  pool_clear(&cache->hbm);
  pool_clear(&cache->dram);
  kv_file_store_free(cache->file);
  g_aligned_free(cache->slot);
  if (cache->state)
    cache->free_state(cache->state);
  g_hash_table_unref(cache->owners);
  g_free(cache->layers);
  g_free(cache);
}

float *kv_host_cache_state(const KvHostCache *cache, guint layer, guint32 block, guint which) {
  const KvHostPages *pages = &cache->layers[layer];
  return pages->pool + block * pages->block_floats +
         (which ? pages->value_offset : pages->key_offset);
}

void kv_host_cache_forget(KvHostCache *cache, guint64 owner) {
  const KvHostFormatClass *format = kv_host_format(cache->compression.format);
  if (format->forget)
    format->forget(cache, owner);
  g_hash_table_remove(cache->owners, &owner);
}

KvHostPool *kv_host_cache_pool(KvHostCache *cache, KvTier tier) {
  return tier == KV_TIER_HBM ? &cache->hbm : tier == KV_TIER_DRAM ? &cache->dram : NULL;
}

gboolean kv_host_cache_open_file(KvHostCache *cache, const char *folder, guint64 blocks,
                                 GError **error) {
  g_return_val_if_fail(!cache->file, FALSE);
  cache->file = kv_file_store_new(folder, cache->block_floats * sizeof(float), cache->block_tokens,
                                  blocks, error);
  if (cache->file)
    cache->slot = g_aligned_alloc0(1, kv_file_store_slot_bytes(cache->file), SLOT_ALIGNMENT);
  return cache->file != NULL;
}

static gboolean exists(KvHostCache *cache, KvTier tier, guint32 block) {
  if (tier == KV_TIER_SSD)
    return cache->file && block < kv_file_store_blocks(cache->file);
  const KvHostPool *pool = kv_host_cache_pool(cache, tier);
  return pool && block < pool->n_blocks;
}

static guint64 *names_of(KvHostCache *cache, KvTier tier, guint32 block) {
  return tier == KV_TIER_SSD
             ? kv_file_store_names(cache->file, block)
             : kv_host_cache_pool(cache, tier)->names + (gsize)block * cache->block_tokens;
}

/* The memory of a block; the file's are seen through the slot. */
static void *memory_of(KvHostCache *cache, KvTier tier, guint32 block) {
  return tier == KV_TIER_SSD
             ? cache->slot
             : (void *)(kv_host_cache_pool(cache, tier)->floats + block * cache->block_floats);
}

static gboolean transfer(KvHostCache *cache, gboolean write, guint32 block, GError **error) {
  const KvFileTransfer whole = {.write = write, .block = block, .memory = cache->slot};
  kv_file_store_begin(cache->file, &whole, 1);
  return kv_file_store_wait(cache->file, error);
}

gboolean kv_host_cache_move(KvHostCache *cache, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to, GError **error) {
  g_return_val_if_fail(exists(cache, from_tier, from) && exists(cache, to_tier, to), FALSE);
  if (kv_host_compression_streams(&cache->compression)) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "host executor: block %u is to be moved, but those of %s stay where they are", from,
                kv_host_format(cache->compression.format)->technique);
    return FALSE;
  }
  if (from_tier == KV_TIER_SSD && !transfer(cache, FALSE, from, error))
    return FALSE;
  memmove(memory_of(cache, to_tier, to), memory_of(cache, from_tier, from),
          cache->block_floats * sizeof(float));
  memmove(names_of(cache, to_tier, to), names_of(cache, from_tier, from),
          cache->block_tokens * sizeof(guint64));
  return to_tier != KV_TIER_SSD || transfer(cache, TRUE, to, error);
}
