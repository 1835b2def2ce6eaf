/* Greedy sampling. Twin: reference/host/sample.c. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { THREADS = 1024 };

struct Best {
  float value;
  uint32_t index;
};

/* The larger; of equals the lower index. NaN never wins. */
static __device__ __forceinline__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

static __device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    best = better(best, {__shfl_xor_sync(0xffffffffu, best.value, step),
                         __shfl_xor_sync(0xffffffffu, best.index, step)});
  return best;
}

/* One block a row of logits[S][V]. */
static __global__ void __launch_bounds__(THREADS)
    argmax(uint32_t *out, const float *logits, uint32_t vocab) {
  __shared__ Best parts[THREADS / 32];
  await_previous();
  const float *row = logits + (uint64_t)blockIdx.x * vocab;
  Best best = {-INFINITY, threadIdx.x < vocab ? threadIdx.x : 0};
  uint32_t fours = vocab % 4 == 0 ? vocab / 4 : 0; /* else rows do not begin at 16 bytes */
#pragma unroll 4
  for (uint32_t v = threadIdx.x; v < fours; v += THREADS) {
    float4 x = ((const float4 *)row)[v];
    best = better(better(best, {x.x, 4 * v}), {x.y, 4 * v + 1});
    best = better(better(best, {x.z, 4 * v + 2}), {x.w, 4 * v + 3});
  }
  for (uint32_t v = 4 * fours + threadIdx.x; v < vocab; v += THREADS)
    best = better(best, {row[v], v});
  best = warp_best(best);
  if (threadIdx.x % 32 == 0)
    parts[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x < 32) {
    best = warp_best(parts[threadIdx.x]);
    if (threadIdx.x == 0)
      out[blockIdx.x] = best.index;
  }
}

cudaError_t kv_cuda_argmax(uint32_t *out, const float *logits, uint32_t count, uint32_t vocab,
                           cudaStream_t stream) {
  if (count == 0)
    return cudaSuccess;
  return launch_early(argmax, count, THREADS, 0, stream, 1, out, logits, vocab);
}
