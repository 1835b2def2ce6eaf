/* The instructions that attention is made of: asynchronous 16-byte copies into shared memory, 8 x 8
 * tiles from there into registers, and the bf16 product of a warp.
 *
 * mma_bf16: c[16][8] += a[16][16] b[16][8]. Of lane l, with g = l / 4 and t = l % 4: c holds rows g
 * (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2t and 2t + 1; a holds in its four registers rows g,
 * g + 8, g, g + 8 and columns 2t, 2t + 1 of the first (a[0], a[1]) and of the second half; b holds
 * rows 2t, 2t + 1 of the first (b0) and second half, column g.
 */
#ifndef KV_REFERENCE_CUDA_MMA_CUH
#define KV_REFERENCE_CUDA_MMA_CUH

#include "reference/cuda/bf16.cuh"

/* As instructions take it that name shared memory. */
static __device__ __forceinline__ uint32_t address(const void *shared) {
  return (uint32_t)__cvta_generic_to_shared(shared);
}

/* Begin to copy `bytes` (16, or 0: zeros are written and nothing is read) to an address in shared
 * memory. The line that holds them comes to the second-level cache as one. */
static __device__ __forceinline__ void copy_16_async(uint32_t shared, const void *global,
                                                     int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global), "r"(bytes)
               : "memory");
}

static __device__ __forceinline__ void copy_16_async(void *shared, const void *global, int bytes) {
  copy_16_async(address(shared), global, bytes);
}

static __device__ __forceinline__ void copies_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Wait until at most `pending` of this thread's groups are under way. */
template <int pending> static __device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

/* Wait for all of this thread's copies, committed or not. */
static __device__ __forceinline__ void copies_wait_all() {
  asm volatile("cp.async.wait_all;\n" ::: "memory");
}

/* Four 8 x 8 tiles; lane l gives the address of row l % 8 of tile l / 8. */
static __device__ __forceinline__ void load_tiles(uint32_t (&r)[4], const KvBf16 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address(row))
               : "memory");
}

/* The same, each tile transposed. */
static __device__ __forceinline__ void load_tiles_transposed(uint32_t (&r)[4], const KvBf16 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address(row))
               : "memory");
}

static __device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 2^x; 0 below -126. */
static __device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/* Largest and sum over the four lanes that share a row of c. */
static __device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* The running softmax of a warp: rows g and g + 8 of lane / 4; the sums are of a lane's columns. */
template <int d> struct RunningRows { float o[d / 8][4], largest[2], sum[2]; };

template <int d> static __device__ __forceinline__ void start(RunningRows<d> &run) {
#pragma unroll
  for (int n = 0; n < d / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      run.o[n][i] = 0.0f;
  run.largest[0] = run.largest[1] = -INFINITY;
  run.sum[0] = run.sum[1] = 0.0f;
}

/* Shared rows are 16 bytes longer than a head, so that the eight rows of a tile lie in different
 * banks. */
template <int d> struct SharedRow {
  static const int elements = d + 8;
  static const int chunks = d / 8; /* 16-byte pieces of a head */
};

#endif
