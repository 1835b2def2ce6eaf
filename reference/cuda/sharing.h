/* The work of kv_cuda_shared_attention() in a step: what its decoding sequences share
 * (reference/host/sharing.h), cut into tiles of rows and pieces of context that fill the GPU
 * together. */
#ifndef KV_REFERENCE_CUDA_SHARING_H
#define KV_REFERENCE_CUDA_SHARING_H

#include "reference/cuda/device.h"
#include "reference/cuda/weights.h"
#include "reference/host/sharing.h"

typedef struct {
  KvHostSharing found;
  GArray *tiles;       /* of KvCudaSharedTile; `table` is the decoding sequence whose table it is */
  GArray *part_starts; /* of guint32, one more than there are decoding sequences */
  guint over, block_tokens;
  guint tile_members, least_kv_heads, multiprocessors;
} KvCudaSharing;

/* Blocks that more than `over` sequences share are read once. */
KvCudaSharing *kv_cuda_sharing_new(const KvCudaDevice *device, const KvCudaWeights *weights,
                                   guint block_tokens, guint over);
void kv_cuda_sharing_free(KvCudaSharing *sharing);
void kv_cuda_sharing_plan(KvCudaSharing *sharing, const KvHostSpan *spans, guint n_spans);

/* Parts of all sequences together. */
guint kv_cuda_sharing_parts(const KvCudaSharing *sharing);

#endif
