/* RMSNorm and LayerNorm of the fp32 residual stream into the bf16 input of the next product. The
 * residual itself is added by that product's epilogue (gemm.h). Twin: reference/host/norm.c. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { THREADS = 256, WIDE_THREADS = 512 };

/* Sum of `x` over the block; every thread gets it. */
template <int threads = THREADS> static __device__ float block_sum(float x) {
  __shared__ float parts[threads / 32];
  x = warp_sum(x);
  __syncthreads(); /* a sum before this one has been read */
  if (threadIdx.x % 32 == 0)
    parts[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < threads / 32; w++)
    total += parts[w];
  return total;
}

/* One block a row of x[R][D]; the row is read again from the first-level cache. */
static __global__ void __launch_bounds__(THREADS)
    rms_norm(KvBf16 *out, const float *x, const KvBf16 *weight, float epsilon, uint32_t width) {
  await_previous();
  x += (uint64_t)blockIdx.x * width;
  out += (uint64_t)blockIdx.x * width;
  float squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    squares += x[i] * x[i];
  float scale = rsqrtf(block_sum(squares) / (float)width + epsilon);
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    out[i] = to_bf16(x[i] * scale * to_float(weight[i]));
}

/* The same for widths that are a multiple of 4 and at most 4 * WIDE_THREADS * most: the row is read
 * once, 16 bytes a load and all of them at once, and stays in registers. Gains are constants, and
 * so on their way before the row is known to be written. */
template <int most>
static __global__ void __launch_bounds__(WIDE_THREADS)
    rms_norm_by_4(KvBf16 *out, const float *x, const KvBf16 *weight, float epsilon,
                  uint32_t width) {
  const float4 *row = (const float4 *)(x + (uint64_t)blockIdx.x * width);
  uint2 *result = (uint2 *)(out + (uint64_t)blockIdx.x * width);
  float4 v[most];
  uint2 g[most];
  float squares = 0.0f;
#pragma unroll
  for (int n = 0; n < most; n++) {
    uint32_t i = n * WIDE_THREADS + threadIdx.x;
    g[n] = i < width / 4 ? ((const uint2 *)weight)[i] : make_uint2(0, 0);
  }
  await_previous();
#pragma unroll
  for (int n = 0; n < most; n++) {
    uint32_t i = n * WIDE_THREADS + threadIdx.x;
    v[n] = i < width / 4 ? row[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
#pragma unroll
  for (int n = 0; n < most; n++)
    squares += v[n].x * v[n].x + v[n].y * v[n].y + v[n].z * v[n].z + v[n].w * v[n].w;
  float scale = rsqrtf(block_sum<WIDE_THREADS>(squares) / (float)width + epsilon);
#pragma unroll
  for (int n = 0; n < most; n++) {
    uint32_t i = n * WIDE_THREADS + threadIdx.x;
    if (i < width / 4)
      result[i] = make_uint2(
          pack_bf16(v[n].x * scale * low_float(g[n].x), v[n].y * scale * high_float(g[n].x)),
          pack_bf16(v[n].z * scale * low_float(g[n].y), v[n].w * scale * high_float(g[n].y)));
  }
}

static __global__ void __launch_bounds__(THREADS)
    layer_norm(KvBf16 *out, const float *x, const KvBf16 *weight, const KvBf16 *bias, float epsilon,
               uint32_t width) {
  await_previous();
  x += (uint64_t)blockIdx.x * width;
  out += (uint64_t)blockIdx.x * width;
  float sum = 0.0f, squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    sum += x[i];
  float mean = block_sum(sum) / (float)width;
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    squares += (x[i] - mean) * (x[i] - mean);
  float scale = rsqrtf(block_sum(squares) / (float)width + epsilon);
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    out[i] = to_bf16((x[i] - mean) * scale * to_float(weight[i]) + to_float(bias[i]));
}

cudaError_t kv_cuda_rms_norm(KvBf16 *out, const float *x, const KvBf16 *weight, float epsilon,
                             uint32_t rows, uint32_t width, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  uint32_t loads = width % 4 ? UINT32_MAX : (width / 4 + WIDE_THREADS - 1) / WIDE_THREADS;
  auto by_4 = loads <= 1   ? rms_norm_by_4<1>
              : loads <= 2 ? rms_norm_by_4<2>
              : loads <= 4 ? rms_norm_by_4<4>
                           : rms_norm_by_4<8>;
  if (loads <= 8)
    return launch_early(by_4, rows, WIDE_THREADS, 0, stream, 1, out, x, weight, epsilon, width);
  return launch_early(rms_norm, rows, THREADS, 0, stream, 1, out, x, weight, epsilon, width);
}

cudaError_t kv_cuda_layer_norm(KvBf16 *out, const float *x, const KvBf16 *weight,
                               const KvBf16 *bias, float epsilon, uint32_t rows, uint32_t width,
                               cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  return launch_early(layer_norm, rows, THREADS, 0, stream, 1, out, x, weight, bias, epsilon,
                      width);
}
