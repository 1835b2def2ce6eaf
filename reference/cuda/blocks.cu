/* Copies of KV blocks inside the GPU's memory (copy on write). Copies to and from the host are
 * batched asynchronous ones, in cache.c. Twin: kv_host_cache_move(). */
#include "reference/cuda/bf16.cuh"

enum { THREADS = 256 };

/* grid (blocks, layers) */
static __global__ void __launch_bounds__(THREADS)
    copy_blocks(char *const *pools, const uint64_t *block_bytes, const uint32_t *from,
                const uint32_t *to) {
  uint64_t bytes = block_bytes[blockIdx.y];
  char *pool = pools[blockIdx.y];
  const uint4 *source = (const uint4 *)(pool + from[blockIdx.x] * bytes);
  uint4 *target = (uint4 *)(pool + to[blockIdx.x] * bytes);
  for (uint64_t i = threadIdx.x; i < bytes / sizeof(uint4); i += THREADS)
    target[i] = source[i];
}

cudaError_t kv_cuda_copy_blocks(char *const *pools, const uint64_t *block_bytes, uint32_t n_layers,
                                const uint32_t *from, const uint32_t *to, uint32_t n,
                                cudaStream_t stream) {
  if (n == 0 || n_layers == 0)
    return cudaSuccess;
  copy_blocks<<<dim3(n, n_layers), THREADS, 0, stream>>>(pools, block_bytes, from, to);
  return cudaGetLastError();
}
