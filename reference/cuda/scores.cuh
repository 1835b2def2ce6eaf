/* Scores of queries on the keys of a paged cache, tile by tile on the tensor cores, without ever
 * writing them down: of each row of their matrix the sum of exponentials, then of each column what
 * its softmax sums up to (the votes of snapkv, the attention of h2o). A block is WARPS warps. */
#ifndef KV_REFERENCE_CUDA_SCORES_CUH
#define KV_REFERENCE_CUDA_SCORES_CUH

#include "reference/cuda/mma.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, TILE = 64 };

static __device__ __forceinline__ KvBf16 *key_row(const KvCudaPages &pages, const uint32_t *table,
                                                  uint32_t head, uint32_t slot) {
  uint32_t mask = (1u << pages.block_shift) - 1;
  return pages.pool + table[slot >> pages.block_shift] * pages.block_elements +
         (((uint64_t)head << pages.block_shift) + (slot & mask)) * pages.head_dim;
}

static float scale_of(uint32_t head_dim) {
  return 1.4426950408889634f / sqrtf((float)head_dim); /* of a score, as a power of two */
}

template <int d> struct Tile { KvBf16 rows[TILE][SharedRow<d>::elements]; };

/* Begin to load TILE rows, row r from where at(r) says; NULL: zeros. */
template <int d, typename At>
static __device__ __forceinline__ void load_rows(Tile<d> &tile, const KvBf16 *any, At at) {
  const int chunks = SharedRow<d>::chunks;
  for (int i = threadIdx.x; i < TILE * chunks; i += THREADS) {
    int r = i / chunks, c = i % chunks;
    const KvBf16 *from = at((uint32_t)r);
    copy_16_async(&tile.rows[r][c * 8], from ? from + c * 8 : any, from ? 16 : 0);
  }
}

/* The same with the keys of tokens from `first` on, as far as they are before `end`. */
template <int d>
static __device__ __forceinline__ void load_keys(Tile<d> &tile, const KvCudaPages &pages,
                                                 const uint32_t *table, uint32_t head,
                                                 uint32_t first, uint32_t end) {
  load_rows<d>(tile, pages.pool, [&](uint32_t r) -> const KvBf16 * {
    return first + r < end ? key_row(pages, table, head, first + r) : nullptr;
  });
}

/* --- rows: a warp is 16 queries, a tile 64 keys ---------------------------------------------- */

/* The warp's queries: rows[half] is the lane's row lane / 4 + half * 8. */
template <int d>
static __device__ __forceinline__ void hold_queries(uint32_t (&q)[d / 16][4],
                                                    const KvBf16 *const (&rows)[2]) {
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      q[k][i] = *(const uint32_t *)(rows[i % 2] + k * 16 + i / 2 * 8 + threadIdx.x % 4 * 2);
}

/* Of a row, as far as it was seen: the largest of this lane's scores, and their exponentials'
 * sum. */
struct Running {
  float largest, sum;
};

/* Add the tile's scores in one of the lane's two rows, which sees the keys up to `position`. */
static __device__ __forceinline__ void add_scores(Running &run, const float (&s)[8][4], int half,
                                                  uint32_t first, uint32_t position, float scale) {
  float x[16], largest = run.largest;
#pragma unroll
  for (int i = 0; i < 16; i++) {
    uint32_t token = first + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    x[i] = token <= position ? s[i / 2][half * 2 + i % 2] * scale : -INFINITY;
    largest = fmaxf(largest, x[i]);
  }
  if (largest == -INFINITY)
    return;
  run.sum *= power_of_2(run.largest - largest);
#pragma unroll
  for (int i = 0; i < 16; i++)
    run.sum += power_of_2(x[i] - largest);
  run.largest = largest;
}

/* Add a tile of keys from token `first` on; the lane's rows see those up to positions[half]. */
template <int d>
static __device__ __forceinline__ void add_tile(Running (&run)[2], const uint32_t (&q)[d / 16][4],
                                                const Tile<d> &keys, uint32_t first,
                                                const uint32_t (&positions)[2], float scale) {
  int lane = threadIdx.x % 32;
  float s[8][4] = {};
#pragma unroll
  for (int n = 0; n < 4; n++)
#pragma unroll
    for (int k = 0; k < d / 16; k++) {
      uint32_t b[4];
      load_tiles(b, &keys.rows[n * 16 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
      mma_bf16(s[2 * n], q[k], b[0], b[1]);
      mma_bf16(s[2 * n + 1], q[k], b[2], b[3]);
    }
#pragma unroll
  for (int half = 0; half < 2; half++)
    add_scores(run[half], s, half, first, positions[half], scale);
}

/* Of the four lanes that share the row. */
static __device__ __forceinline__ Running whole_row(const Running &run) {
  float largest = row_max(run.largest), base = largest == -INFINITY ? 0.0f : largest;
  return {largest, row_sum(run.sum * power_of_2(run.largest - base))};
}

/* --- columns: a warp is 16 keys, a tile 64 queries -------------------------------------------- */

/* The warp's keys of a tile that is loaded. */
template <int d>
static __device__ __forceinline__ void hold_keys(uint32_t (&keys)[d / 16][4], const Tile<d> &tile) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < d / 16; k++)
    load_tiles(keys[k],
               &tile.rows[warp * 16 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
}

/* Add the shares of a tile's queries to sums[i / 2][i % 2] of the keys i / 2 * 8 + i % 2 from the
 * lane's first on, which is 2 (lane % 4). logs: of the rows' sums; seen(row, i / 2 * 8 + i % 2):
 * whether the query sees that key. */
template <int d, typename Seen>
static __device__ __forceinline__ void
add_columns(float (&sums)[2][2], const uint32_t (&keys)[d / 16][4], const Tile<d> &queries,
            const float (&logs)[TILE], float scale, Seen seen) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < TILE / 16; r++) {
    float s[2][4] = {};
#pragma unroll
    for (int k = 0; k < d / 16; k++) {
      uint32_t a[4];
      load_tiles(a, &queries.rows[r * 16 + lane % 16][k * 16 + lane / 16 * 8]);
      mma_bf16(s[0], a, keys[k][0], keys[k][1]);
      mma_bf16(s[1], a, keys[k][2], keys[k][3]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      uint32_t row = r * 16 + lane / 4 + i / 2 % 2 * 8;
      sums[i / 4][i % 2] +=
          seen(row, i / 4 * 8 + i % 2) ? power_of_2(s[i / 4][i % 4] * scale - logs[row]) : 0.0f;
    }
  }
}

/* Of all lanes that have the same keys: put(key's offset from the lane's first, sum). */
template <typename Put>
static __device__ __forceinline__ void put_columns(const float (&sums)[2][2], Put put) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float sum = sums[i / 2][i % 2];
#pragma unroll
    for (int step = 4; step < 32; step *= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 < 4)
      put(i / 2 * 8 + i % 2, sum);
  }
}

#endif
