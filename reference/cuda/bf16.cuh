/* bf16 in registers: eight of them are one 16-byte access. */
#ifndef KV_REFERENCE_CUDA_BF16_CUH
#define KV_REFERENCE_CUDA_BF16_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "reference/cuda/kernels.h"

static __device__ __forceinline__ float to_float(KvBf16 x) {
  return __uint_as_float((uint32_t)x << 16);
}

static __device__ __forceinline__ KvBf16 to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

/* Two floats as one register, `low` in the lower half. */
static __device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  return (uint32_t)to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}

static __device__ __forceinline__ float low_float(uint32_t pair) {
  return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float high_float(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

#endif
