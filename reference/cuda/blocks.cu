/* Copies of KV blocks: inside the GPU's memory (copy on write), and to and from pinned host memory,
 * which threads read and write over the bus as they do their own. A copy engine takes as long to
 * begin a piece of 32 KiB as to move it; threads have many pieces under way. Twin:
 * kv_host_cache_move(). */
#include "reference/cuda/bf16.cuh"

enum { THREADS = 256, AHEAD = 8 };

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

/* grid (n): a block a piece, AHEAD loads of a thread under way before the first store. */
static __global__ void __launch_bounds__(THREADS) copy_pieces(const KvCudaPiece *pieces) {
  const KvCudaPiece piece = pieces[blockIdx.x];
  const uint4 *from = (const uint4 *)piece.from;
  uint4 *to = (uint4 *)piece.to;
  const uint64_t n = piece.bytes / sizeof(uint4);
  for (uint64_t first = threadIdx.x; first < n; first += AHEAD * THREADS) {
    uint4 v[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
      if (first + a * THREADS < n)
        v[a] = from[first + a * THREADS];
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
      if (first + a * THREADS < n)
        to[first + a * THREADS] = v[a];
  }
}

cudaError_t kv_cuda_copy_pieces(const KvCudaPiece *pieces, uint32_t n, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  copy_pieces<<<n, THREADS, 0, stream>>>(pieces);
  return cudaGetLastError();
}
