/* RMSNorm and LayerNorm of the fp32 residual stream into the bf16 input of the next product. The
 * residual itself is added by that product's epilogue (gemm.h). Twin: reference/host/norm.c. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { THREADS = 256 };

/* Sum of `x` over the block; every thread gets it. */
static __device__ float block_sum(float x) {
  __shared__ float parts[THREADS / 32];
  x = warp_sum(x);
  __syncthreads(); /* a sum before this one has been read */
  if (threadIdx.x % 32 == 0)
    parts[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < THREADS / 32; w++)
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

/* The same for widths that are a multiple of 4: 16-byte loads, 8-byte stores. */
static __global__ void __launch_bounds__(THREADS)
    rms_norm_by_4(KvBf16 *out, const float *x, const KvBf16 *weight, float epsilon,
                  uint32_t width) {
  await_previous();
  const float4 *row = (const float4 *)(x + (uint64_t)blockIdx.x * width);
  const uint2 *gains = (const uint2 *)weight;
  uint2 *result = (uint2 *)(out + (uint64_t)blockIdx.x * width);
  float squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < width / 4; i += THREADS) {
    float4 v = row[i];
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  float scale = rsqrtf(block_sum(squares) / (float)width + epsilon);
  for (uint32_t i = threadIdx.x; i < width / 4; i += THREADS) {
    float4 v = row[i];
    uint2 g = gains[i];
    result[i] = make_uint2(pack_bf16(v.x * scale * low_float(g.x), v.y * scale * high_float(g.x)),
                           pack_bf16(v.z * scale * low_float(g.y), v.w * scale * high_float(g.y)));
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
  if (width % 4 == 0)
    return launch_early(rms_norm_by_4, rows, THREADS, 0, stream, 1, out, x, weight, epsilon, width);
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
