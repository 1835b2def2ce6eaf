/* Products of a few rows with a weight matrix, where all that counts is to read the weights once at
 * the speed of memory. Twin: kv_host_linear(). */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { WARPS = 4, OUTPUTS = 2, AHEAD = 4 }; /* outputs of a warp; loads before the first use */
enum { BATCH_CHUNKS = 32 * AHEAD };         /* of 8 inputs */

/* 16 bytes that nobody reads again. */
static __device__ __forceinline__ uint4 load_once(const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

static __device__ __forceinline__ float dot_8(uint4 a, uint4 b, float sum) {
  sum = fmaf(low_float(a.x), low_float(b.x), sum);
  sum = fmaf(high_float(a.x), high_float(b.x), sum);
  sum = fmaf(low_float(a.y), low_float(b.y), sum);
  sum = fmaf(high_float(a.y), high_float(b.y), sum);
  sum = fmaf(low_float(a.z), low_float(b.z), sum);
  sum = fmaf(high_float(a.z), high_float(b.z), sum);
  sum = fmaf(low_float(a.w), low_float(b.w), sum);
  return fmaf(high_float(a.w), high_float(b.w), sum);
}

struct Gemv {
  void *out;
  const KvBf16 *x, *weight, *bias;
  uint32_t inputs, outputs;
  int out_f32, accumulate;
};

static __device__ void store(const Gemv &p, uint32_t row, uint32_t output, float sum) {
  uint64_t at = (uint64_t)row * p.outputs + output;
  if (p.bias)
    sum += to_float(p.bias[output]);
  if (!p.out_f32)
    ((KvBf16 *)p.out)[at] = to_bf16(sum);
  else if (p.accumulate)
    ((float *)p.out)[at] += sum;
  else
    ((float *)p.out)[at] = sum;
}

/* The weights of AHEAD chunks, 32 apart, of OUTPUTS outputs; zeros past the last chunk. */
struct Batch {
  uint4 w[AHEAD][OUTPUTS];
};

static __device__ __forceinline__ void load(Batch &batch, const uint4 *const (&weights)[OUTPUTS],
                                            uint32_t chunks, uint32_t c) {
#pragma unroll
  for (int a = 0; a < AHEAD; a++)
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
      batch.w[a][o] = c + 32 * a < chunks ? load_once(weights[o] + c + 32 * a) : uint4{};
}

template <int rows>
static __device__ __forceinline__ void add(float (&sums)[rows][OUTPUTS], const Batch &batch,
                                           const uint4 *x, uint32_t chunks, uint32_t c) {
#pragma unroll
  for (int a = 0; a < AHEAD; a++)
#pragma unroll
    for (int r = 0; r < rows; r++) {
      uint4 v = c + 32 * a < chunks ? x[(uint64_t)r * chunks + c + 32 * a] : uint4{};
#pragma unroll
      for (int o = 0; o < OUTPUTS; o++)
        sums[r][o] = dot_8(batch.w[a][o], v, sums[r][o]);
    }
}

/* OUTPUTS neighbouring outputs of all rows by `sharers` warps of a block, each a part of the
 * inputs; lane l takes chunks l, l + 32 ... of 8 inputs of its warp's part. Weights are constants,
 * so the first are under way before the rows are there. */
template <int rows, int sharers>
static __global__ void __launch_bounds__(WARPS * 32) gemv(const Gemv p) {
  __shared__ float parts[WARPS][rows][OUTPUTS];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = p.inputs / 8;
  uint32_t first = (blockIdx.x * (WARPS / sharers) + warp / sharers) * OUTPUTS;
  const uint4 *weights[OUTPUTS];
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) /* outputs past the last are computed for nothing */
    weights[o] = (const uint4 *)(p.weight + (uint64_t)min(first + o, p.outputs - 1) * p.inputs);
  const uint4 *x = (const uint4 *)p.x;
  float sums[rows][OUTPUTS] = {};
  const uint32_t step = BATCH_CHUNKS * sharers;
  uint32_t c = warp % sharers * BATCH_CHUNKS + lane; /* parts interleave by batches */
  Batch batch;
  load(batch, weights, chunks, c);
  await_previous();
  for (; c - lane < chunks; c += step) {
    Batch next;
    load(next, weights, chunks, c + step);
    add<rows>(sums, batch, x, chunks, c);
    batch = next;
  }
#pragma unroll
  for (int r = 0; r < rows; r++)
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      float sum = warp_sum(sums[r][o]);
      if (lane == 0)
        parts[warp][r][o] = sum;
    }
  __syncthreads();
  if (warp % sharers == 0 && lane < rows * OUTPUTS && first + lane % OUTPUTS < p.outputs) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < sharers; w++)
      sum += parts[warp + w][lane / OUTPUTS][lane % OUTPUTS];
    store(p, lane / OUTPUTS, first + lane % OUTPUTS, sum);
  }
}

template <int rows> static cudaError_t launch(const Gemv &p, cudaStream_t stream) {
  /* Few outputs: more warps an output, so that there are blocks enough to fill the GPU; but none
   * that would have no input. */
  uint32_t batches = (p.inputs / 8 + BATCH_CHUNKS - 1) / BATCH_CHUNKS;
  uint32_t sharers = p.outputs >= 16384 || batches <= 1 ? 1 : batches == 2 ? 2 : WARPS;
  uint32_t outputs = OUTPUTS * (WARPS / sharers);
  return launch_early(sharers == 1   ? gemv<rows, 1>
                      : sharers == 2 ? gemv<rows, 2>
                                     : gemv<rows, WARPS>,
                      (p.outputs + outputs - 1) / outputs, WARPS * 32, 0, stream, 1, p);
}

cudaError_t kv_cuda_gemv(void *out, int out_f32, int accumulate, const KvBf16 *x,
                         const KvBf16 *weight, const KvBf16 *bias, uint32_t rows, uint32_t inputs,
                         uint32_t outputs, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (inputs % 8 || (accumulate && !out_f32))
    return cudaErrorInvalidValue;
  Gemv p = {out, x, weight, bias, inputs, outputs, out_f32, accumulate};
  switch (rows) {
  case 1:
    return launch<1>(p, stream);
  case 2:
    return launch<2>(p, stream);
  case 3:
    return launch<3>(p, stream);
  case 4:
    return launch<4>(p, stream);
  default:
    return cudaErrorInvalidValue;
  }
}
