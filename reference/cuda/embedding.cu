/* Rows in and out of the residual stream: token and position embeddings, the rows whose logits are
 * wanted; and random weights. Twin: kv_host_weights_embed(). */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { THREADS = 256 };

/* One block a row of x[R][D]. */
static __global__ void __launch_bounds__(THREADS)
    embed(float *x, const uint32_t *tokens, const uint32_t *positions, const KvBf16 *embedding,
          const KvBf16 *learned, uint32_t width) {
  await_previous();
  const KvBf16 *row = embedding + (uint64_t)tokens[blockIdx.x] * width;
  const KvBf16 *place = learned ? learned + (uint64_t)positions[blockIdx.x] * width : nullptr;
  x += (uint64_t)blockIdx.x * width;
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    x[i] = to_float(row[i]) + (place ? to_float(place[i]) : 0.0f);
}

static __global__ void __launch_bounds__(THREADS)
    gather_rows(float *out, const float *x, const uint32_t *rows, uint32_t width) {
  out += (uint64_t)blockIdx.x * width;
  x += (uint64_t)rows[blockIdx.x] * width;
  for (uint32_t i = threadIdx.x; i < width; i += THREADS)
    out[i] = x[i];
}

/* splitmix64's finalizer of a counter: 24 bits of it are the number. */
static __global__ void __launch_bounds__(THREADS)
    fill_random(KvBf16 *out, uint64_t n, float mean, float reach, uint64_t seed) {
  for (uint64_t i = blockIdx.x * (uint64_t)THREADS + threadIdx.x; i < n;
       i += gridDim.x * (uint64_t)THREADS) {
    uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    float unit = (float)(z >> 40) * 0x1p-24f;
    out[i] = to_bf16(mean + reach * (2.0f * unit - 1.0f));
  }
}

cudaError_t kv_cuda_embed(float *x, const uint32_t *tokens, const uint32_t *positions,
                          const KvBf16 *embedding, const KvBf16 *learned, uint32_t rows,
                          uint32_t width, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  return launch_early(embed, rows, THREADS, 0, stream, 1, x, tokens, positions, embedding, learned,
                      width);
}

cudaError_t kv_cuda_gather_rows(float *out, const float *x, const uint32_t *rows, uint32_t count,
                                uint32_t width, cudaStream_t stream) {
  if (count == 0)
    return cudaSuccess;
  gather_rows<<<count, THREADS, 0, stream>>>(out, x, rows, width);
  return cudaGetLastError();
}

cudaError_t kv_cuda_fill_random(KvBf16 *out, uint64_t n, float mean, float reach, uint64_t seed,
                                cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  uint64_t blocks = (n + THREADS - 1) / THREADS;
  fill_random<<<(uint32_t)(blocks < 65536 ? blocks : 65536), THREADS, 0, stream>>>(out, n, mean,
                                                                                   reach, seed);
  return cudaGetLastError();
}
