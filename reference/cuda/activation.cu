/* The element-wise part of an MLP. Twin: reference/host/mlp.c. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { THREADS = 256 };

static __device__ __forceinline__ float silu_times(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

/* out[R][E] from gate_up[R][2E]; grid (E / STEP / THREADS, R). */
static __global__ void __launch_bounds__(THREADS)
    swiglu(KvBf16 *out, const KvBf16 *gate_up, uint32_t width) {
  await_previous();
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= width)
    return;
  const KvBf16 *row = gate_up + (uint64_t)blockIdx.y * 2 * width;
  out[(uint64_t)blockIdx.y * width + i] =
      to_bf16(silu_times(to_float(row[i]), to_float(row[width + i])));
}

static __device__ __forceinline__ uint32_t silu_times_pair(uint32_t gate, uint32_t up) {
  return pack_bf16(silu_times(low_float(gate), low_float(up)),
                   silu_times(high_float(gate), high_float(up)));
}

/* The same for widths that are a multiple of 8. */
static __global__ void __launch_bounds__(THREADS)
    swiglu_by_8(KvBf16 *out, const KvBf16 *gate_up, uint32_t width) {
  await_previous();
  uint32_t i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= width / 8)
    return;
  const uint4 *row = (const uint4 *)(gate_up + (uint64_t)blockIdx.y * 2 * width);
  uint4 gate = row[i], up = row[width / 8 + i];
  ((uint4 *)(out + (uint64_t)blockIdx.y * width))[i] =
      make_uint4(silu_times_pair(gate.x, up.x), silu_times_pair(gate.y, up.y),
                 silu_times_pair(gate.z, up.z), silu_times_pair(gate.w, up.w));
}

static __global__ void __launch_bounds__(THREADS)
    activate(KvBf16 *x, uint64_t n, KvCudaActivation activation) {
  for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
       i += gridDim.x * (uint64_t)THREADS) {
    float v = to_float(x[i]);
    x[i] = to_bf16(activation == KV_CUDA_RELU ? (v > 0.0f ? v : 0.0f)
                                              : 0.5f * v * (1.0f + erff(v * 0.70710678f)));
  }
}

/* x[n] += bias[i % N] */
static __global__ void __launch_bounds__(THREADS)
    add_bias(float *x, const KvBf16 *bias, uint64_t n, uint32_t width) {
  for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
       i += gridDim.x * (uint64_t)THREADS)
    x[i] += to_float(bias[i % width]);
}

cudaError_t kv_cuda_add_bias(float *x, const KvBf16 *bias, uint32_t rows, uint32_t width,
                             cudaStream_t stream) {
  uint64_t n = (uint64_t)rows * width, blocks = (n + THREADS - 1) / THREADS;
  if (n == 0)
    return cudaSuccess;
  add_bias<<<(uint32_t)(blocks < 8192 ? blocks : 8192), THREADS, 0, stream>>>(x, bias, n, width);
  return cudaGetLastError();
}

cudaError_t kv_cuda_swiglu(KvBf16 *out, const KvBf16 *gate_up, uint32_t rows, uint32_t width,
                           cudaStream_t stream) {
  const uint32_t most = 32768; /* the grid's second axis ends at 65535 */
  for (uint32_t first = 0; first < rows; first += most) {
    uint32_t part = rows - first < most ? rows - first : most;
    KvBf16 *o = out + (uint64_t)first * width;
    const KvBf16 *x = gate_up + (uint64_t)first * 2 * width;
    dim3 grid((width % 8 == 0 ? width / 8 + THREADS - 1 : width + THREADS - 1) / THREADS, part);
    cudaError_t status = launch_early(width % 8 == 0 ? swiglu_by_8 : swiglu, grid, THREADS, 0,
                                      stream, 1, o, x, width);
    if (status != cudaSuccess)
      return status;
  }
  return cudaSuccess;
}

cudaError_t kv_cuda_activate(KvBf16 *x, uint64_t n, KvCudaActivation activation,
                             cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  uint64_t blocks = (n + THREADS - 1) / THREADS;
  activate<<<(uint32_t)(blocks < 8192 ? blocks : 8192), THREADS, 0, stream>>>(x, n, activation);
  return cudaGetLastError();
}
