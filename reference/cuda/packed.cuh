/* The packed cache in registers: codes of 2, 4 or 8 bits become fp16 pairs.
 *
 * Codes of one token and head are words of 16 / bits pairs: of the word's 32 / bits elements,
 * element 2p stands at bit p * bits, element 2p + 1 sixteen bits higher, so that a shift and a mask
 * make a pair. e4m3 elements are plain bytes.
 */
#ifndef KV_REFERENCE_CUDA_PACKED_CUH
#define KV_REFERENCE_CUDA_PACKED_CUH

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "reference/cuda/bf16.cuh"

/* Casts, not conversions by halves, which would cost two instructions. */
static __device__ __forceinline__ __half2 half2_of(uint32_t bits) {
  return *(__half2 *)&bits;
}

static __device__ __forceinline__ uint32_t bits_of(__half2 x) {
  return *(uint32_t *)&x;
}

/* Two codes, the lower at bit 0 and the other at bit 16, as fp16: 1024 + code, less 1024, exact. */
template <int bits> static __device__ __forceinline__ __half2 codes_to_half2(uint32_t x) {
  const uint32_t mask = ((1u << bits) - 1) * 0x00010001u;
  return __hsub2(half2_of((x & mask) | 0x64006400u), half2_of(0x64006400u));
}

/* Two e4m3 as fp16, exact. */
static __device__ __forceinline__ uint32_t e4m3_to_half2(uint16_t pair) {
  uint32_t x;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(x) : "h"(pair));
  return x;
}

static __device__ __forceinline__ uint8_t to_e4m3(float x) {
  return (uint8_t)__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

static __device__ __forceinline__ uint16_t to_half(float x) {
  return __half_as_ushort(__float2half_rn(x));
}

static __device__ __forceinline__ float half_to_float(uint16_t x) {
  return __half2float(__ushort_as_half(x));
}

static __device__ __forceinline__ void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
