/* Each layer's blocks of each decoding sequence where layers hold unequal shares of a prompt
 * (pyramidkv). Twin: kv_host_pyramid_part(). */
#include <stdint.h>

#include "reference/cuda/bf16.cuh"

enum { THREADS = 64 };

/* Slots of the layer that hold tokens; the new token's is the last. */
static __device__ __forceinline__ uint32_t context_of(const KvCudaPyramid &p, uint32_t layer,
                                                      uint32_t context, uint32_t applies) {
  return context && applies
             ? context + (p.whole[layer] << p.block_shift) - (p.whole_mean << p.block_shift)
             : context;
}

/* As many tokens a piece as the longest context of the layer asks for; a warp. */
static __device__ void split_layer(const KvCudaLayerTables &out, const KvCudaPyramid &p,
                                   const uint32_t *contexts, const uint32_t *applies,
                                   uint32_t sequences, uint32_t split_tokens, uint32_t max_splits) {
  uint32_t longest = 0;
  for (uint32_t s = threadIdx.x; s < sequences; s += 32)
    longest = max(longest, context_of(p, blockIdx.x, contexts[s], applies[s]));
  longest = __reduce_max_sync(0xffffffffu, longest);
  uint32_t need = (longest + max_splits - 1) / max_splits;
  need = (need + KV_CUDA_SPLIT_UNIT - 1) / KV_CUDA_SPLIT_UNIT * KV_CUDA_SPLIT_UNIT;
  if (threadIdx.x == 0)
    out.split_tokens[blockIdx.x] = max(split_tokens, need);
}

/* grid (L, S) */
static __global__ void __launch_bounds__(THREADS)
    fill_tables(const KvCudaLayerTables out, const KvCudaPyramid p, const KvCudaTables tables,
                const uint32_t *contexts, const uint32_t *applies, const uint32_t *split_tokens,
                uint32_t max_splits) {
  uint32_t layer = blockIdx.x, s = blockIdx.y;
  uint32_t whole = applies[s] ? p.whole[layer] : p.whole_mean, mask = (1u << p.block_shift) - 1;
  uint32_t context = context_of(p, layer, contexts[s], applies[s]);
  uint64_t row = (uint64_t)layer * out.sequences + s;
  const uint32_t *table = tables.table + tables.table_starts[s];
  const uint2 *parts = p.parts + p.starts[layer];
  if (s == 0 && threadIdx.x < 32)
    split_layer(out, p, contexts, applies, gridDim.y, *split_tokens, max_splits);
  if (threadIdx.x == 0)
    out.contexts[row] = context;
  for (uint32_t i = threadIdx.x; i < (context + mask) >> p.block_shift; i += THREADS) {
    uint2 part = make_uint2(i, layer); /* block, layer */
    if (applies[s])
      part = i < whole ? parts[i] : make_uint2(p.whole_mean + i - whole, layer);
    out.table[row * out.room + i] = part.y * p.blocks + table[part.x];
  }
}

cudaError_t kv_cuda_pyramid_tables(const KvCudaLayerTables *out, const KvCudaPyramid *pyramid,
                                   const KvCudaTables *tables, const uint32_t *contexts,
                                   const uint32_t *applies, uint32_t sequences,
                                   const uint32_t *split_tokens, uint32_t max_splits,
                                   cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  if (sequences > out->sequences || max_splits == 0)
    return cudaErrorInvalidValue;
  fill_tables<<<dim3(pyramid->n_layers, sequences), THREADS, 0, stream>>>(
      *out, *pyramid, *tables, contexts, applies, split_tokens, max_splits);
  return cudaGetLastError();
}
