/* Which experts a row goes through, the rows sorted by expert, and their results added up; all on
 * the GPU, so that a captured pass serves any choice. Twins: reference/host/experts.c. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { ROUTE_WARPS = 4, SORT_THREADS = KV_CUDA_MOST_EXPERTS, THREADS = 256 };

/* The largest of the warp's (value, index) pairs; of equal values that of the lowest index. */
static __device__ __forceinline__ void best_of_warp(float &value, uint32_t &index) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, value, step);
    uint32_t at = __shfl_xor_sync(0xffffffffu, index, step);
    if (other > value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
}

/* Of x[first .. end - 1]; every lane gets it. */
static __device__ __forceinline__ void best_of(const float *x, uint32_t first, uint32_t end,
                                               uint32_t lane, float &value, uint32_t &index) {
  value = -INFINITY;
  index = UINT32_MAX;
  for (uint32_t i = first + lane; i < end; i += 32)
    if (x[i] > value) {
      value = x[i];
      index = i;
    }
  best_of_warp(value, index);
}

static __device__ void softmax(float *scores, const float *logits, uint32_t n, uint32_t lane) {
  float largest, total = 0.0f;
  uint32_t index;
  best_of(logits, 0, n, lane, largest, index);
  for (uint32_t i = lane; i < n; i += 32) {
    scores[i] = expf(logits[i] - largest);
    total += scores[i];
  }
  total = warp_sum(total);
  for (uint32_t i = lane; i < n; i += 32)
    scores[i] /= total;
  __syncwarp();
}

static __device__ void limit_to_groups(float *scores, uint32_t n, uint32_t groups, uint32_t kept,
                                       uint32_t lane) {
  const uint32_t size = n / groups;
  for (uint32_t dropped = groups - kept; dropped > 0; dropped--) {
    uint32_t worst = groups - 1, index;
    float least = INFINITY, greatest;
    for (uint32_t g = 0; g < groups; g++) {
      best_of(scores, g * size, (g + 1) * size, lane, greatest, index);
      if (greatest >= 0.0f && greatest <= least) {
        least = greatest;
        worst = g;
      }
    }
    __syncwarp();
    for (uint32_t i = lane; i < size; i += 32)
      scores[worst * size + i] = -1.0f;
    __syncwarp();
  }
}

/* A warp a row; grid (R / ROUTE_WARPS). */
static __global__ void __launch_bounds__(32 * ROUTE_WARPS)
    route(uint32_t *experts, float *shares, const float *logits, const uint32_t *row_sequences,
          uint32_t rows, uint32_t n, uint32_t chosen, int normalized, float scale, uint32_t groups,
          uint32_t kept) {
  extern __shared__ float of_warps[];
  await_previous();
  const uint32_t row = blockIdx.x * ROUTE_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows)
    return;
  experts += (uint64_t)row * chosen;
  shares += (uint64_t)row * chosen;
  if (row_sequences[row] == UINT32_MAX) {
    for (uint32_t k = lane; k < chosen; k += 32) {
      experts[k] = UINT32_MAX;
      shares[k] = 0.0f;
    }
    return;
  }
  float *scores = of_warps + threadIdx.x / 32 * n, total = 0.0f;
  softmax(scores, logits + (uint64_t)row * n, n, lane);
  if (groups)
    limit_to_groups(scores, n, groups, kept, lane);
  for (uint32_t k = 0; k < chosen; k++) {
    float share;
    uint32_t expert;
    best_of(scores, 0, n, lane, share, expert);
    total += share;
    __syncwarp();
    if (lane == 0) {
      experts[k] = expert;
      shares[k] = share;
      if (expert < n) /* none is better than another among NaNs */
        scores[expert] = -2.0f;
    }
    __syncwarp();
  }
  const float factor = normalized ? scale / total : scale;
  if (lane == 0)
    for (uint32_t k = 0; k < chosen; k++)
      shares[k] *= factor;
}

cudaError_t kv_cuda_route(uint32_t *experts, float *shares, const float *logits,
                          const uint32_t *row_sequences, uint32_t rows, uint32_t n_experts,
                          uint32_t chosen, int normalized, float scale, uint32_t groups,
                          uint32_t groups_kept, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (n_experts == 0 || n_experts > KV_CUDA_MOST_EXPERTS || chosen > n_experts)
    return cudaErrorInvalidValue;
  return launch_early(route, (rows + ROUTE_WARPS - 1) / ROUTE_WARPS, 32 * ROUTE_WARPS,
                      ROUTE_WARPS * n_experts * sizeof(float), stream, 1, experts, shares, logits,
                      row_sequences, rows, n_experts, chosen, normalized, scale, groups,
                      groups_kept);
}

/* x[i] becomes the sum of x[0 .. i - 1], i < n, and the whole sum is returned; one thread an
 * element. */
static __device__ uint32_t exclusive_sums(uint32_t *x, uint32_t n) {
  const uint32_t i = threadIdx.x, own = x[i];
  for (uint32_t step = 1; step < n; step *= 2) {
    __syncthreads();
    uint32_t before = i >= step ? x[i - step] : 0;
    __syncthreads();
    x[i] += before;
  }
  __syncthreads();
  const uint32_t total = x[n - 1];
  __syncthreads();
  x[i] -= own;
  __syncthreads();
  return total;
}

/* One block, a thread an expert. Within an expert, places go to whoever comes first: no result
 * depends on the order. */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort_by_expert(uint32_t *places, uint32_t *place_rows, KvCudaGroupTile *tiles,
                   uint32_t *n_tiles, const uint32_t *experts, uint32_t n, uint32_t n_experts,
                   uint32_t chosen, uint32_t tile_rows) {
  __shared__ uint32_t counts[SORT_THREADS], starts[SORT_THREADS], tile_starts[SORT_THREADS];
  const uint32_t e = threadIdx.x;
  await_previous();
  counts[e] = 0;
  __syncthreads();
  for (uint32_t i = e; i < n; i += SORT_THREADS)
    if (experts[i] < n_experts)
      atomicAdd(&counts[experts[i]], 1);
  __syncthreads();
  const uint32_t count = counts[e];
  starts[e] = count;
  tile_starts[e] = (count + tile_rows - 1) / tile_rows;
  __syncthreads();
  exclusive_sums(starts, n_experts);
  const uint32_t total = exclusive_sums(tile_starts, n_experts);
  if (e == 0)
    *n_tiles = total;
  for (uint32_t t = 0; t * tile_rows < count; t++) {
    KvCudaGroupTile tile;
    tile.group = e;
    tile.first = starts[e] + t * tile_rows;
    tile.count = min(tile_rows, count - t * tile_rows);
    tiles[tile_starts[e] + t] = tile;
  }
  __syncthreads(); /* starts become the next free places */
  for (uint32_t i = e; i < n; i += SORT_THREADS) {
    uint32_t place = UINT32_MAX;
    if (experts[i] < n_experts) {
      place = atomicAdd(&starts[experts[i]], 1);
      place_rows[place] = i / chosen;
    }
    places[i] = place;
  }
}

uint32_t kv_cuda_most_expert_tiles(uint32_t rows, uint32_t n_experts, uint32_t chosen,
                                   uint32_t tile_rows) {
  uint64_t n = (uint64_t)rows * chosen;
  return (uint32_t)((n < n_experts ? n : n_experts) + n / tile_rows);
}

cudaError_t kv_cuda_sort_by_expert(uint32_t *places, uint32_t *place_rows, KvCudaGroupTile *tiles,
                                   uint32_t *n_tiles, const uint32_t *experts, uint32_t rows,
                                   uint32_t n_experts, uint32_t chosen, uint32_t tile_rows,
                                   cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (n_experts == 0 || n_experts > KV_CUDA_MOST_EXPERTS || tile_rows == 0)
    return cudaErrorInvalidValue;
  return launch_early(sort_by_expert, 1, SORT_THREADS, 0, stream, 1, places, place_rows, tiles,
                      n_tiles, experts, rows * chosen, n_experts, chosen, tile_rows);
}

/* grid (R) */
static __global__ void __launch_bounds__(THREADS)
    combine(float *x, const KvBf16 *mixed, const uint32_t *places, const float *shares,
            uint32_t width, uint32_t chosen) {
  await_previous();
  const uint64_t row = blockIdx.x;
  places += row * chosen;
  shares += row * chosen;
  for (uint32_t i = threadIdx.x; i < width / 4; i += THREADS) {
    float4 *at = (float4 *)(x + row * width) + i;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (uint32_t k = 0; k < chosen; k++) {
      if (places[k] == UINT32_MAX)
        continue;
      uint2 v = ((const uint2 *)(mixed + (uint64_t)places[k] * width))[i];
      float share = shares[k];
      sum.x = fmaf(share, low_float(v.x), sum.x);
      sum.y = fmaf(share, high_float(v.x), sum.y);
      sum.z = fmaf(share, low_float(v.y), sum.z);
      sum.w = fmaf(share, high_float(v.y), sum.w);
    }
    float4 before = *at;
    *at = make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w);
  }
}

cudaError_t kv_cuda_combine_experts(float *x, const KvBf16 *mixed, const uint32_t *places,
                                    const float *shares, uint32_t rows, uint32_t width,
                                    uint32_t chosen, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (width % 4)
    return cudaErrorInvalidValue;
  return launch_early(combine, rows, THREADS, 0, stream, 1, x, mixed, places, shares, width,
                      chosen);
}
