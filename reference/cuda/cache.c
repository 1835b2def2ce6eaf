#include "reference/cuda/cache.h"

#include <string.h>

#include "reference/cuda/merging.h"
#include "reference/host/format.h"
#include "reference/host/low_rank.h"
#include "reference/host/recurrent.h"
#include "reference/host/staging.h"
#include "sim/base/error.h"

enum { SLAB_BLOCKS = 64 };

static gsize block_part_bytes(const KvCudaCache *cache, guint layer) {
  return cache->layers[layer].block_elements * sizeof(KvBf16);
}

gsize kv_cuda_cache_block_bytes(const KvCudaCache *cache) {
  return cache->layer_offsets[cache->n_layers];
}

/* Make the layer's blocks those of a packed cache. */
static gboolean lay_out_packed(KvCudaCache *cache, guint l, GError **error) {
  const KvHostCompression *c = &cache->compression;
  KvCudaPages *pages = &cache->layers[l];
  KvCudaPacked *packed = &cache->packed[l];
  gboolean kivi = c->format == KV_HOST_KIVI;
  if (pages->head_dim != 64 && pages->head_dim != 128) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "heads of %u with a packed cache, the cuda executor expects 64 or 128",
                pages->head_dim);
    return FALSE;
  }
  *packed = (KvCudaPacked){.bits = kivi ? c->bits : 8,
                           .group = kivi ? c->group : 1,
                           .residual = kivi ? c->residual : 0,
                           .block_shift = pages->block_shift,
                           .n_kv_heads = pages->n_kv_heads,
                           .head_dim = pages->head_dim};
  kv_cuda_packed_lay_out(packed);
  pages->block_elements = packed->block_bytes / sizeof(KvBf16);
  pages->value_offset = 0;
  return TRUE;
}

/* pyramidkv: layers use each other's parts of the blocks, so their pools are one. Where blocks lie
 * in host memory, tables lead from every layer's pool to the staging areas. */
static gboolean is_one_pool(const KvCudaCache *cache) {
  return cache->compression.format == KV_HOST_PYRAMIDKV ||
         kv_host_compression_streams(&cache->compression);
}

/* The resident blocks of all layers and two staging areas, each with room for a layer of all
 * others, one after another (streamed_cache.h). */
static KvBf16 *streamed_pool(const KvCudaCache *cache, guint l, GError **error) {
  const KvCudaPages *first = &cache->layers[0];
  guint64 resident =
      kv_host_staging_resident(cache->compression.cache_share, (guint32)cache->hbm_blocks);
  guint64 blocks = cache->n_layers * resident + 2 * (cache->hbm_blocks - resident);
  if (cache->layers[l].block_elements != first->block_elements || blocks > G_MAXUINT32) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s: layers whose caches differ, or more than 2^32 blocks of a layer, expected "
                "layers that are alike and a smaller engine.num_blocks",
                kv_host_format(cache->compression.format)->technique);
    return NULL;
  }
  return l > 0 ? first->pool + l * resident * first->block_elements
               : kv_cuda_alloc(blocks * block_part_bytes(cache, 0), "KV blocks", error);
}

/* Latents in the place of keys and values, where their ranks are less than those. */
static void lay_out_low_rank(KvCudaCache *cache, const KvAttention *a, guint l) {
  KvCudaPages *pages = &cache->layers[l];
  KvHostRanks r;
  if (!kv_host_low_rank_ranks(&r, &cache->compression.palu, a, l, cache->n_layers))
    return;
  pages->value_offset = (gsize)cache->block_tokens * r.groups * r.key_rank;
  pages->block_elements = (gsize)cache->block_tokens * r.groups * (r.key_rank + r.value_rank);
}

static const KvAttention *attention_of(gconstpointer weights, guint layer) {
  return &((const KvCudaWeights *)weights)->layers[layer].attention;
}

KvHostRole kv_cuda_cache_role(const KvHostCompression *c, const KvCudaWeights *weights, guint layer,
                              guint *pair) {
  if (c->format != KV_HOST_MINICACHE || c->gamma >= 1.0f)
    return KV_HOST_ALONE;
  return kv_host_merge_role(c, layer, weights->n_layers, attention_of, weights, pair);
}

/* The first layer of a pair has its blocks, the second none. */
static void lay_out_pair(KvCudaCache *cache, const KvCudaWeights *weights, guint l) {
  KvCudaPages *pages = &cache->layers[l];
  KvCudaMerged merged = {.block_shift = pages->block_shift,
                         .n_kv_heads = pages->n_kv_heads,
                         .head_dim = pages->head_dim};
  guint pair;
  KvHostRole role = kv_cuda_cache_role(&cache->compression, weights, l, &pair);
  if (role == KV_HOST_ALONE)
    return;
  kv_cuda_merged_lay_out(&merged);
  pages->block_elements = role == KV_HOST_FIRST_OF_PAIR ? merged.block_elements : 0;
}

/* Sizes of the layers' parts, and their pools. */
static gboolean lay_out(KvCudaCache *cache, const KvCudaWeights *weights, GError **error) {
  guint shift = 0;
  while (1u << shift < cache->block_tokens)
    shift++;
  cache->layers = g_new0(KvCudaPages, cache->n_layers);
  cache->layer_offsets = g_new0(gsize, cache->n_layers + 1);
  for (guint l = 0; l < cache->n_layers; l++) {
    const KvAttention *a = &weights->layers[l].attention;
    KvCudaPages *pages = &cache->layers[l];
    pages->value_offset = a->kind == KV_ATTENTION_NONE
                              ? kv_host_state_floats(a) * sizeof(float) / sizeof(KvBf16)
                              : (gsize)a->n_kv_heads * cache->block_tokens * a->head_dim;
    pages->block_elements = 2 * pages->value_offset;
    pages->block_shift = shift;
    pages->n_kv_heads = a->n_kv_heads;
    pages->head_dim = a->head_dim;
    if (a->kind == KV_ATTENTION_LATENT) { /* latent and rotated key, one for all heads */
      pages->n_kv_heads = 1;
      pages->head_dim = a->kv_lora_rank + a->rope_head_dim;
      pages->value_offset = 0;
      pages->block_elements = (gsize)cache->block_tokens * pages->head_dim;
    }
    if (cache->compression.format == KV_HOST_QUEST) /* least and greatest keys */
      pages->block_elements += 2 * (gsize)a->n_kv_heads * a->head_dim;
    if (cache->compression.format == KV_HOST_MINICACHE)
      lay_out_pair(cache, weights, l);
    if (cache->compression.format == KV_HOST_PALU)
      lay_out_low_rank(cache, &weights->layers[l].attention, l);
    if (cache->packed && !lay_out_packed(cache, l, error))
      return FALSE;
    cache->layer_offsets[l + 1] = cache->layer_offsets[l] + block_part_bytes(cache, l);
    gsize bytes = block_part_bytes(cache, l) * cache->hbm_blocks;
    if (kv_host_compression_streams(&cache->compression))
      pages->pool = streamed_pool(cache, l, error);
    else if (is_one_pool(cache) && l > 0)
      pages->pool = cache->layers[0].pool + l * bytes / sizeof(KvBf16);
    else
      pages->pool = kv_cuda_alloc(is_one_pool(cache) ? bytes * cache->n_layers : bytes,
                                  "the KV blocks of a layer", error);
    if (!pages->pool)
      return FALSE;
    if (cache->packed)
      cache->packed[l].pool = (guint8 *)pages->pool;
  }
  return TRUE;
}

KvCudaCache *kv_cuda_cache_new(KvCudaDevice *device, const KvCudaWeights *weights,
                               guint block_tokens, guint64 hbm_blocks, guint64 dram_blocks,
                               GError **error) {
  return kv_cuda_cache_new_compressed(device, weights, block_tokens, hbm_blocks, dram_blocks, NULL,
                                      error);
}

KvCudaCache *kv_cuda_cache_new_compressed(KvCudaDevice *device, const KvCudaWeights *weights,
                                          guint block_tokens, guint64 hbm_blocks,
                                          guint64 dram_blocks, const KvHostCompression *compression,
                                          GError **error) {
  g_return_val_if_fail(device && weights && block_tokens, NULL);
  if (block_tokens & (block_tokens - 1)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "engine.block_tokens is %u, the cuda executor expects a power of two",
                block_tokens);
    return NULL;
  }
  g_autoptr(KvCudaCache) cache = g_new0(KvCudaCache, 1);
  cache->device = device;
  cache->block_tokens = block_tokens;
  cache->n_layers = weights->n_layers;
  cache->hbm_blocks = hbm_blocks;
  cache->dram_blocks = dram_blocks;
  if (compression)
    cache->compression = *compression;
  if (cache->compression.format == KV_HOST_FP8 || cache->compression.format == KV_HOST_KIVI)
    cache->packed = g_new0(KvCudaPacked, cache->n_layers);
  cache->moves = g_array_new(FALSE, FALSE, sizeof(KvCudaMove));
  cache->batch = g_array_new(FALSE, FALSE, sizeof(KvCudaPiece));
  if (!lay_out(cache, weights, error))
    return NULL;
  cache->hbm_names = g_try_new0(guint64, hbm_blocks * block_tokens);
  cache->dram_names = g_try_new0(guint64, dram_blocks * block_tokens);
  cache->slabs = g_try_new0(char *, dram_blocks / SLAB_BLOCKS + 1);
  if ((hbm_blocks && !cache->hbm_names) || (dram_blocks && !cache->dram_names) || !cache->slabs) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "no memory to keep the books of %" G_GUINT64_FORMAT " + %" G_GUINT64_FORMAT
                " KV blocks, expected fewer",
                hbm_blocks, dram_blocks);
    return NULL;
  }
  return g_steal_pointer(&cache);
}

void kv_cuda_cache_free(KvCudaCache *cache) {
  if (!cache)
    return;
  for (guint l = 0; l < (is_one_pool(cache) ? 1 : cache->n_layers) && cache->layers; l++)
    kv_cuda_free(cache->layers[l].pool);
  for (guint64 i = 0; cache->slabs && i <= cache->dram_blocks / SLAB_BLOCKS; i++)
    if (cache->slabs[i])
      (void)cudaFreeHost(cache->slabs[i]);
  GArray *arrays[] = {cache->moves, cache->batch};
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_array_unref(arrays[i]);
  kv_cuda_free(cache->pieces);
  kv_cuda_file_tier_free(cache->file);
  g_free(cache->slabs);
  g_free(cache->hbm_names);
  g_free(cache->dram_names);
  g_free(cache->layer_offsets);
  g_free(cache->layers);
  g_free(cache->packed);
  g_free(cache);
}

/* The pinned memory of a DRAM block, taken now if nobody has used its slab. */
static char *dram_block(KvCudaCache *cache, guint32 block, GError **error) {
  char **slab = &cache->slabs[block / SLAB_BLOCKS];
  gsize bytes = kv_cuda_cache_block_bytes(cache);
  if (!*slab &&
      !KV_CUDA_OK(cudaHostAlloc((void **)slab, bytes * SLAB_BLOCKS, cudaHostAllocDefault), error))
    return NULL;
  return *slab + block % SLAB_BLOCKS * bytes;
}

/* Where layer `l` of a block stands. `whole` is the block's DRAM memory. */
static char *layer_part(const KvCudaCache *cache, KvTier tier, guint32 block, char *whole,
                        guint l) {
  return tier == KV_TIER_HBM
             ? (char *)(cache->layers[l].pool + block * cache->layers[l].block_elements)
             : whole + cache->layer_offsets[l];
}

/* Add the layers of one move to the batch. */
static gboolean add_move(KvCudaCache *cache, const KvCudaMove *move, GError **error) {
  char *source = NULL, *target = NULL;
  if (move->from_tier != KV_TIER_HBM && !(source = dram_block(cache, move->from, error)))
    return FALSE;
  if (move->to_tier != KV_TIER_HBM && !(target = dram_block(cache, move->to, error)))
    return FALSE;
  for (guint l = 0; l < cache->n_layers; l++) {
    KvCudaPiece piece = {layer_part(cache, move->to_tier, move->to, target, l),
                         layer_part(cache, move->from_tier, move->from, source, l),
                         block_part_bytes(cache, l)};
    g_array_append_val(cache->batch, piece);
  }
  return TRUE;
}

/* A block of HBM or DRAM to `whole`, pinned memory laid out as a block of DRAM, or back. */
static gboolean add_copy(KvCudaCache *cache, KvTier tier, guint32 block, char *whole, gboolean back,
                         GError **error) {
  char *home = NULL;
  if (tier != KV_TIER_HBM && !(home = dram_block(cache, block, error)))
    return FALSE;
  for (guint l = 0; l < cache->n_layers; l++) {
    char *part = layer_part(cache, tier, block, home, l), *other = whole + cache->layer_offsets[l];
    KvCudaPiece piece = {back ? part : other, back ? other : part, block_part_bytes(cache, l)};
    g_array_append_val(cache->batch, piece);
  }
  return TRUE;
}

/* The list of pieces to the GPU, and its copies. */
static gboolean launch_batch(KvCudaCache *cache, GError **error) {
  cudaStream_t stream = cache->device->copies;
  guint n = cache->batch->len;
  if (n > cache->room_pieces) {
    kv_cuda_free(cache->pieces);
    cache->room_pieces = 0;
    cache->pieces =
        kv_cuda_alloc((gsize)2 * n * sizeof(KvCudaPiece), "the list of a batch of copies", error);
    if (!cache->pieces)
      return FALSE;
    cache->room_pieces = 2 * n;
  }
  return KV_CUDA_OK(cudaMemcpyAsync(cache->pieces, cache->batch->data, n * sizeof(KvCudaPiece),
                                    cudaMemcpyHostToDevice, stream),
                    error) &&
         KV_CUDA_OK(kv_cuda_copy_pieces(cache->pieces, n, stream), error);
}

/* KvCudaBus: the blocks' side of what goes to or comes from the file. */
static gboolean copy_for_file(gpointer blocks, const KvCudaMove *moves, guint n, char *slots,
                              gsize slot_bytes, gboolean back, GError **error) {
  KvCudaCache *cache = blocks;
  g_array_set_size(cache->batch, 0);
  for (guint i = 0; i < n; i++)
    if (!add_copy(cache, back ? moves[i].to_tier : moves[i].from_tier,
                  back ? moves[i].to : moves[i].from, slots + i * slot_bytes, back, error))
      return FALSE;
  return launch_batch(cache, error);
}

/* The batch on the copy stream, between the device's two events. */
static gboolean copy_batch(KvCudaCache *cache, double *seconds, GError **error) {
  KvCudaDevice *device = cache->device;
  float milliseconds = 0.0f;
  if (!kv_cuda_wait(device, error) ||
      !KV_CUDA_OK(cudaEventRecord(device->begin, device->copies), error) ||
      !launch_batch(cache, error) ||
      !KV_CUDA_OK(cudaEventRecord(device->end, device->copies), error) ||
      !KV_CUDA_OK(cudaEventSynchronize(device->end), error) ||
      !KV_CUDA_OK(cudaEventElapsedTime(&milliseconds, device->begin, device->end), error))
    return FALSE;
  *seconds = 1e-3 * (double)milliseconds;
  return TRUE;
}

static gboolean uses_file(const KvCudaMove *move) {
  return move->from_tier == KV_TIER_SSD || move->to_tier == KV_TIER_SSD;
}

/* Every remembered move: none depends on another. */
static gboolean make_moves(KvCudaCache *cache, GError **error) {
  double seconds = 0.0;
  g_array_set_size(cache->batch, 0);
  for (guint i = 0; i < cache->moves->len; i++) {
    const KvCudaMove *move = &g_array_index(cache->moves, KvCudaMove, i);
    if (!uses_file(move) && !add_move(cache, move, error))
      return FALSE;
  }
  if (cache->batch->len > 0 && !copy_batch(cache, &seconds, error))
    return FALSE;
  cache->early_seconds += seconds;
  const KvCudaBus bus = {cache, copy_for_file, cache->device};
  if (cache->file &&
      !kv_cuda_file_tier_run(cache->file, &bus, (const KvCudaMove *)(void *)cache->moves->data,
                             cache->moves->len, &cache->early_file_seconds, error))
    return FALSE;
  g_array_set_size(cache->moves, 0);
  return TRUE;
}

gboolean kv_cuda_cache_flush(KvCudaCache *cache, double *seconds, double *file_seconds,
                             GError **error) {
  if (!make_moves(cache, error))
    return FALSE;
  *seconds = cache->early_seconds;
  if (file_seconds)
    *file_seconds = cache->early_file_seconds;
  cache->early_seconds = cache->early_file_seconds = 0.0;
  return TRUE;
}

gboolean kv_cuda_cache_open_file(KvCudaCache *cache, const char *folder, guint64 blocks,
                                 GError **error) {
  g_return_val_if_fail(!cache->file, FALSE);
  cache->file = kv_cuda_file_tier_new(folder, kv_cuda_cache_block_bytes(cache), cache->block_tokens,
                                      blocks, error);
  return cache->file != NULL;
}

static gboolean exists(const KvCudaCache *cache, KvTier tier, guint32 block) {
  return tier == KV_TIER_HBM    ? block < cache->hbm_blocks
         : tier == KV_TIER_DRAM ? block < cache->dram_blocks
         : tier == KV_TIER_SSD  ? cache->file && block < kv_file_store_blocks(cache->file->store)
                                : FALSE;
}

/* Whether the move touches a block that a remembered one writes, or writes one that it reads. */
static gboolean depends(const KvCudaCache *cache, const KvCudaMove *move) {
  for (guint i = 0; i < cache->moves->len; i++) {
    const KvCudaMove *m = &g_array_index(cache->moves, KvCudaMove, i);
    if ((m->to_tier == move->from_tier && m->to == move->from) ||
        (m->to_tier == move->to_tier && m->to == move->to) ||
        (m->from_tier == move->to_tier && m->from == move->to))
      return TRUE;
  }
  return FALSE;
}

static guint64 *names_of(KvCudaCache *cache, KvTier tier, guint32 block) {
  if (tier == KV_TIER_SSD)
    return kv_file_store_names(cache->file->store, block);
  return (tier == KV_TIER_HBM ? cache->hbm_names : cache->dram_names) +
         (gsize)block * cache->block_tokens;
}

gboolean kv_cuda_cache_move(KvCudaCache *cache, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to, GError **error) {
  KvCudaMove move = {from_tier, to_tier, from, to};
  if (!exists(cache, from_tier, from) || !exists(cache, to_tier, to) ||
      (from_tier == KV_TIER_SSD && to_tier == KV_TIER_SSD)) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: a move of block %u to block %u, which the pools do not have", from,
                to);
    return FALSE;
  }
  if (from_tier == to_tier && from == to)
    return TRUE;
  if (kv_host_compression_streams(&cache->compression)) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: block %u is to be moved, but those of %s stay where they are", from,
                kv_host_format(cache->compression.format)->technique);
    return FALSE;
  }
  if (depends(cache, &move) && !make_moves(cache, error))
    return FALSE;
  g_array_append_val(cache->moves, move);
  memcpy(names_of(cache, to_tier, to), names_of(cache, from_tier, from),
         cache->block_tokens * sizeof(guint64));
  return TRUE;
}
