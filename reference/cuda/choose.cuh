/* The greatest of many numbers, by one block of SELECTORS threads. */
#ifndef KV_REFERENCE_CUDA_CHOOSE_CUH
#define KV_REFERENCE_CUDA_CHOOSE_CUH

#include <stdint.h>

#include <cuda_runtime.h>

enum { SELECTORS = 1024 };

/* The sum of x over the warp's lanes before this one. */
static __device__ uint32_t warp_sum_before(uint32_t x) {
  uint32_t lane = threadIdx.x % 32, sum = x;
#pragma unroll
  for (uint32_t step = 1; step < 32; step *= 2) {
    uint32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    sum += lane >= step ? other : 0;
  }
  return sum - x;
}

/* The sum of x over the block's threads before this one, and in *total over all. */
static __device__ uint32_t sum_before(uint32_t x, uint32_t *total) {
  __shared__ uint32_t warps[SELECTORS / 32];
  uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = warp_sum_before(x);
  __syncthreads();
  if (lane == 31)
    warps[warp] = sum + x;
  __syncthreads();
  uint32_t before = 0, all = 0;
  for (uint32_t w = 0; w < SELECTORS / 32; w++) {
    before += w < warp ? warps[w] : 0;
    all += warps[w];
  }
  *total = all;
  return before + sum;
}

/* The `best` greatest of key(0) .. key(n - 1), of equals the first: take(place, i) for each, in
 * ascending order. The bits of the best-th are found a byte at a time; then a walk from the lowest
 * takes those above it, and of its equals the first. Every thread of a block of SELECTORS comes
 * here; best is at most n. */
template <typename Key, typename Take>
static __device__ void choose(uint32_t n, uint32_t best, Key key, Take take) {
  __shared__ uint32_t counts[256], found[2];
  uint32_t prefix = 0, wanted = best; /* of those that share the prefix */
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256)
      counts[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += SELECTORS)
      if (shift == 24 || key(i) >> (shift + 8) == prefix)
        atomicAdd(&counts[key(i) >> shift & 255], 1);
    __syncthreads();
    if (threadIdx.x < 32) { /* a lane has eight counts, the first lane the greatest bytes */
      uint32_t byte = 255 - threadIdx.x * 8, here = 0;
      for (uint32_t i = 0; i < 8; i++)
        here += counts[byte - i];
      uint32_t before = warp_sum_before(here);
      if (before < wanted && wanted <= before + here) {
        uint32_t left = wanted - before;
        while (counts[byte] < left)
          left -= counts[byte--];
        found[0] = byte;
        found[1] = left;
      }
    }
    __syncthreads();
    prefix = prefix << 8 | found[0];
    wanted = found[1];
    __syncthreads();
  }
  uint32_t taken = 0, equal = 0; /* before this stretch */
  for (uint32_t first = 0; first < n; first += SELECTORS) {
    uint32_t i = first + threadIdx.x, x = i < n ? key(i) : 0, total;
    bool is_equal = i < n && x == prefix;
    uint32_t equals = equal + sum_before(is_equal, &total);
    equal += total;
    bool wants = i < n && (x > prefix || (is_equal && equals < wanted));
    uint32_t place = taken + sum_before(wants, &total);
    taken += total;
    if (wants)
      take(place, i);
  }
}

#endif
