/* Blocks in host memory that are brought to the GPU a layer at a time: copies that leave most of
 * the GPU to the kernels beside them, and the block tables that lead to where a layer's are. Twins:
 * reference/host/format_flexgen.c. */
#include "reference/cuda/bf16.cuh"

enum { THREADS = 256, AHEAD = 8 };

/* grid (any): a block takes every gridDim.x-th piece, AHEAD loads of a thread under way before the
 * first store. */
static __global__ void __launch_bounds__(THREADS)
    copy_staged(char *to, const char *from, const KvCudaStaged *staged, uint32_t n, uint64_t bytes,
                int back) {
  const uint64_t count = bytes / sizeof(uint4);
  for (uint32_t i = blockIdx.x; i < n; i += gridDim.x) {
    const KvCudaStaged s = staged[i];
    const uint4 *source = (const uint4 *)(from + (back ? s.place : s.home) * bytes);
    uint4 *target = (uint4 *)(to + (back ? s.home : s.place) * bytes);
    for (uint64_t first = threadIdx.x; first < count; first += AHEAD * THREADS) {
      uint4 v[AHEAD];
#pragma unroll
      for (int a = 0; a < AHEAD; a++)
        if (first + a * THREADS < count)
          v[a] = source[first + a * THREADS];
#pragma unroll
      for (int a = 0; a < AHEAD; a++)
        if (first + a * THREADS < count)
          target[first + a * THREADS] = v[a];
    }
  }
}

cudaError_t kv_cuda_copy_staged(char *to, const char *from, const KvCudaStaged *staged, uint32_t n,
                                uint64_t bytes, int back, uint32_t groups, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  if (groups == 0 || bytes % sizeof(uint4))
    return cudaErrorInvalidValue;
  uint32_t grid = groups < n ? groups : n;
  copy_staged<<<grid, THREADS, 0, stream>>>(to, from, staged, n, bytes, back);
  return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS)
    shift_table(uint32_t *out, const uint32_t *in, uint32_t n, uint32_t first, uint32_t shift) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i < n)
    out[i] = in[i] < first ? in[i] : in[i] + shift;
}

cudaError_t kv_cuda_shift_table(uint32_t *out, const uint32_t *in, uint32_t n, uint32_t first,
                                uint32_t shift, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  shift_table<<<(n - 1) / THREADS + 1, THREADS, 0, stream>>>(out, in, n, first, shift);
  return cudaGetLastError();
}
