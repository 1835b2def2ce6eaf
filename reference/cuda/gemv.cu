/* Products of a few rows with a weight matrix, where all that counts is to read the weights once at
 * the speed of memory. Twin: kv_host_linear(). */
#include "reference/cuda/bf16.cuh"

enum { WARPS = 4, OUTPUTS = 2, AHEAD = 4 }; /* outputs of a warp; loads before the first use */

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

/* A warp computes OUTPUTS neighbouring outputs of all rows; lane l takes chunks l, l + 32 ... of 8
 * inputs. */
template <int rows> static __global__ void __launch_bounds__(WARPS * 32) gemv(const Gemv p) {
  uint32_t lane = threadIdx.x % 32, chunks = p.inputs / 8;
  uint32_t first = (blockIdx.x * WARPS + threadIdx.x / 32) * OUTPUTS;
  if (first >= p.outputs)
    return;
  const uint4 *weights[OUTPUTS];
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) /* an odd last output is computed twice */
    weights[o] = (const uint4 *)(p.weight + (uint64_t)min(first + o, p.outputs - 1) * p.inputs);
  const uint4 *x = (const uint4 *)p.x;
  float sums[rows][OUTPUTS] = {};
  uint32_t c = lane;
  for (; c + 32 * (AHEAD - 1) < chunks; c += 32 * AHEAD) {
    uint4 w[AHEAD][OUTPUTS];
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
#pragma unroll
      for (int o = 0; o < OUTPUTS; o++)
        w[a][o] = load_once(weights[o] + c + 32 * a);
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
#pragma unroll
      for (int r = 0; r < rows; r++) {
        uint4 v = x[(uint64_t)r * chunks + c + 32 * a];
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
          sums[r][o] = dot_8(w[a][o], v, sums[r][o]);
      }
  }
  for (; c < chunks; c += 32)
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      uint4 w = load_once(weights[o] + c);
#pragma unroll
      for (int r = 0; r < rows; r++)
        sums[r][o] = dot_8(w, x[(uint64_t)r * chunks + c], sums[r][o]);
    }
#pragma unroll
  for (int r = 0; r < rows; r++)
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      float sum = warp_sum(sums[r][o]);
      if (lane == 0 && first + o < p.outputs)
        store(p, r, first + o, sum);
    }
}

cudaError_t kv_cuda_gemv(void *out, int out_f32, int accumulate, const KvBf16 *x,
                         const KvBf16 *weight, const KvBf16 *bias, uint32_t rows, uint32_t inputs,
                         uint32_t outputs, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (inputs % 8 || (accumulate && !out_f32))
    return cudaErrorInvalidValue;
  Gemv p = {out, x, weight, bias, inputs, outputs, out_f32, accumulate};
  uint32_t grid = (outputs + WARPS * OUTPUTS - 1) / (WARPS * OUTPUTS);
  switch (rows) {
  case 1:
    gemv<1><<<grid, WARPS * 32, 0, stream>>>(p);
    break;
  case 2:
    gemv<2><<<grid, WARPS * 32, 0, stream>>>(p);
    break;
  case 3:
    gemv<3><<<grid, WARPS * 32, 0, stream>>>(p);
    break;
  case 4:
    gemv<4><<<grid, WARPS * 32, 0, stream>>>(p);
    break;
  default:
    return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}
