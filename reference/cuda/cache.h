/* The block store on the GPU: pools of KV blocks in two tiers, HBM and pinned host memory, and a
 * file for the SSD (file_tier.h).
 *
 * In HBM each layer has a pool of its own, [block][k, v][Hkv][block_tokens][d] in bf16, so that a
 * layer's kernel reads from one region; in DRAM a block is whole, its layers one after another.
 * Of a recurrent layer a block holds two states in fp32, the second at value_offset (host/cache.h).
 * DRAM blocks are taken from the system a slab at a time, when they are first used.
 *
 * Moves are remembered and made together: kv_cuda_cache_flush() puts them on the copy stream as one
 * batch of copies and says how long the GPU took. Names move at once (ledger.h).
 */
#ifndef KV_REFERENCE_CUDA_CACHE_H
#define KV_REFERENCE_CUDA_CACHE_H

#include "models/techniques/plan.h"
#include "reference/cuda/device.h"
#include "reference/cuda/file_tier.h"
#include "reference/cuda/kernels.h"
#include "reference/cuda/weights.h"
#include "reference/host/compression.h"
#include "reference/host/merging.h"

typedef struct {
  KvCudaDevice *device; /* borrowed */
  guint block_tokens, n_layers;
  guint64 hbm_blocks, dram_blocks;
  KvHostCompression compression;
  KvCudaPages *layers;  /* of a packed cache, memory and size of a block alone */
  KvCudaPacked *packed; /* [layers], NULL where blocks are bf16; same memory */
  gsize *layer_offsets; /* bytes from a DRAM block's start to a layer's part; [n_layers] is its size
                         */
  guint64 *hbm_names, *dram_names; /* [blocks][block_tokens]; 0: never written */
  char **slabs;                    /* pinned; NULL until one of their blocks is used */
  GArray *moves;                   /* of KvCudaMove, not yet made */
  GArray *batch;                   /* of KvCudaPiece: what is copied next */
  KvCudaPiece *pieces;             /* the batch on the device */
  guint room_pieces;               /* that there is room for there */
  KvCudaFileTier *file;            /* NULL: no tier SSD */
  /* Of moves that were made before they were asked for: over the bus, and from and to the file. */
  double early_seconds, early_file_seconds;
} KvCudaCache;

/* NULL with *error set if there is no such memory, or block_tokens is not a power of two. */
KvCudaCache *kv_cuda_cache_new(KvCudaDevice *device, const KvCudaWeights *weights,
                               guint block_tokens, guint64 hbm_blocks, guint64 dram_blocks,
                               GError **error);
/* The same with blocks as the compression stores them; NULL: bf16. */
KvCudaCache *kv_cuda_cache_new_compressed(KvCudaDevice *device, const KvCudaWeights *weights,
                                          guint block_tokens, guint64 hbm_blocks,
                                          guint64 dram_blocks, const KvHostCompression *compression,
                                          GError **error);
void kv_cuda_cache_free(KvCudaCache *cache);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCudaCache, kv_cuda_cache_free)

/* What minicache makes of a layer; alone where nothing would be merged. */
KvHostRole kv_cuda_cache_role(const KvHostCompression *compression, const KvCudaWeights *weights,
                              guint layer, guint *pair);
/* Give the cache a tier SSD of that many blocks, a file in `folder`. */
gboolean kv_cuda_cache_open_file(KvCudaCache *cache, const char *folder, guint64 blocks,
                                 GError **error);

/* Bytes of a block, all layers. */
gsize kv_cuda_cache_block_bytes(const KvCudaCache *cache);

/* Remember to copy a block; a move that depends on one remembered before makes those first. */
gboolean kv_cuda_cache_move(KvCudaCache *cache, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to, GError **error);
/* Make every remembered move, wait, and set *seconds to the GPU's time and *file_seconds (may be
 * NULL) to the wall's of those from and to the file (0 if there was none). */
gboolean kv_cuda_cache_flush(KvCudaCache *cache, double *seconds, double *file_seconds,
                             GError **error);

#endif
