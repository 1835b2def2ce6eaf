/* What the two kernels of prefill attention share: attention_prefill_wgmma.cu, for heads of
 * 64 and 128, and attention_prefill.cu, for others. */
#ifndef KV_REFERENCE_CUDA_PREFILL_CUH
#define KV_REFERENCE_CUDA_PREFILL_CUH

#include "reference/cuda/kernels.h"

#define KV_PREFILL_TILE_ROWS 128 /* (token, head) pairs of a tile */

struct Prefill {
  KvBf16 *out;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaPages pages;
  KvCudaTables tables;
  const KvCudaTile *tiles;
  uint32_t n_tiles, n_heads, group, window;
  float scale; /* of a score, as a power of two: log2(e) / sqrt(d) */
};

/* Heads of 64 or 128. */
cudaError_t kv_prefill_wgmma(const Prefill &p, cudaStream_t stream);

#endif
