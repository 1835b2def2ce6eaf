/* Decode attention over tokens that several sequences have in common: the first of ChunkAttention's
 * two phases (Ye et al., 2024, section 3.3); attention_decode.cu is the second.
 *
 * A block takes TILE_ROWS (sequence, head) pairs that share a KV head and walks over a piece of the
 * common tokens, KEYS at a time, the next KEYS under way while it computes, as prefill attention
 * does without a mask. What it leaves of each row is a part: the output not divided by the sum of
 * exponentials, that sum, and the largest score, which attention_decode.cu merges with what the
 * sequence's own tokens give. Twin: kv_host_attention(), over the whole context.
 */
#include "reference/cuda/launch.cuh"
#include "reference/cuda/mma.cuh"
#include "reference/cuda/shared.cuh"

enum { WARPS = 4, ROWS = 16, TILE_ROWS = WARPS * ROWS, KEYS = 64, THREADS = WARPS * 32 };
static_assert(KV_CUDA_SHARED_ROWS == TILE_ROWS, "tiles are cut to what a block takes");

struct Shared {
  KvCudaShared work;
  SharedParts parts;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaPages pages;
  const uint32_t *table;
  uint32_t n_heads, group;
  float scale; /* of a score, as a power of two: log2(e) / sqrt(d) */
};

/* A block's tile: rows of sequence members[row / heads], head first_head + row % heads. */
struct Tile {
  KvCudaSharedTile t;
  uint32_t kv_head, first_head, heads, rows;
};

template <int d> struct Stage {
  KvBf16 keys[KEYS][SharedRow<d>::elements], values[KEYS][SharedRow<d>::elements];
};

/* The queries of rows g and g + 8 of the warp, g = lane / 4; rows past the tile's are zeros. */
template <int d>
static __device__ __forceinline__ void load_queries(uint32_t (&a)[d / 16][4], const Shared &p,
                                                    const Tile &tile, int warp, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t row = warp * ROWS + half * 8 + lane / 4;
    bool wanted = row < tile.rows;
    uint32_t member = wanted ? p.work.members[tile.t.first + row / tile.heads] : 0;
    const KvBf16 *q = p.q + member * p.row_stride +
                      (uint64_t)(tile.first_head + row % tile.heads) * d + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < d / 16; k++) {
      a[k][half] = wanted ? *(const uint32_t *)(q + k * 16) : 0;
      a[k][half + 2] = wanted ? *(const uint32_t *)(q + k * 16 + 8) : 0;
    }
  }
}

/* Begin to load tokens t .. t + KEYS - 1; those from the piece's end on become zeros. */
template <int d>
static __device__ __forceinline__ void load_keys(Stage<d> &stage, const Shared &p, const Tile &tile,
                                                 uint32_t t) {
  const int chunks = SharedRow<d>::chunks;
  const uint32_t shift = p.pages.block_shift, mask = (1u << shift) - 1;
  const uint32_t *table = p.table + tile.t.table;
#pragma unroll 2
  for (int i = threadIdx.x; i < KEYS * chunks; i += THREADS) {
    uint32_t row = i / chunks, column = i % chunks * 8, token = t + row;
    bool wanted = token < tile.t.end;
    const KvBf16 *source = p.pages.pool;
    if (wanted)
      source += __ldg(&table[token >> shift]) * p.pages.block_elements +
                (((uint64_t)tile.kv_head << shift) + (token & mask)) * d + column;
    copy_16_async(&stage.keys[row][column], source, wanted ? 16 : 0);
    copy_16_async(&stage.values[row][column], wanted ? source + p.pages.value_offset : source,
                  wanted ? 16 : 0);
  }
}

/* s = queries . keys of one stage. */
template <int d>
static __device__ __forceinline__ void score_keys(float (&s)[KEYS / 8][4], const Stage<d> &stage,
                                                  const uint32_t (&q)[d / 16][4], int lane) {
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
      uint32_t b[4];
      load_tiles(b, &stage.keys[n * 16 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
      mma_bf16(s[2 * n], q[k], b[0], b[1]);
      mma_bf16(s[2 * n + 1], q[k], b[2], b[3]);
    }
}

/* Scores of the first `valid` tokens, at least one, become exponentials, the others zero; `run`
 * moves to the new maximum. */
template <int d>
static __device__ __forceinline__ void soften(float (&s)[KEYS / 8][4], RunningRows<d> &run,
                                              float scale, uint32_t valid, int lane) {
  if (valid < KEYS) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (n * 8 + lane % 4 * 2 + i % 2 >= valid)
          s[n][i] = -INFINITY;
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float largest = run.largest[half];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
      largest = fmaxf(largest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    largest = row_max(largest);
    float reference = largest * scale;
    float shrink = power_of_2(run.largest[half] * scale - reference), sum = 0.0f;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; i++) {
        s[n][i] = power_of_2(fmaf(s[n][i], scale, -reference));
        sum += s[n][i];
      }
    run.sum[half] = run.sum[half] * shrink + sum; /* of this lane's columns */
    run.largest[half] = largest;
#pragma unroll
    for (int n = 0; n < d / 8; n++) {
      run.o[n][2 * half] *= shrink;
      run.o[n][2 * half + 1] *= shrink;
    }
  }
}

/* o += p . values. */
template <int d>
static __device__ __forceinline__ void
mix_values(RunningRows<d> &run, const float (&s)[KEYS / 8][4], const Stage<d> &stage, int lane) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
    const uint32_t a[4] = {pack_bf16(s[2 * k][0], s[2 * k][1]), pack_bf16(s[2 * k][2], s[2 * k][3]),
                           pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]),
                           pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < d / 16; n++) {
      uint32_t b[4];
      load_tiles_transposed(b, &stage.values[k * 16 + lane % 16][n * 16 + lane / 16 * 8]);
      mma_bf16(run.o[2 * n], a, b[0], b[1]);
      mma_bf16(run.o[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/* Leave this warp's rows as parts. */
template <int d>
static __device__ __forceinline__ void store(const RunningRows<d> &run, const Shared &p,
                                             const Tile &tile, int warp, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t row = warp * ROWS + half * 8 + lane / 4;
    float sum = row_sum(run.sum[half]);
    if (row >= tile.rows)
      continue;
    uint32_t member = p.work.members[tile.t.first + row / tile.heads];
    uint64_t part = p.work.part_starts[member] + tile.t.part;
    uint64_t slot = part * p.n_heads + tile.first_head + row % tile.heads;
    float *out = p.parts.outputs + slot * d + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < d / 8; n++)
      __stcg((float2 *)(out + n * 8), make_float2(run.o[n][2 * half], run.o[n][2 * half + 1]));
    if (lane % 4 == 0)
      __stcg(&p.parts.sums[slot], make_float2(run.largest[half] * p.scale, sum));
  }
}

static __device__ __forceinline__ Tile tile_of_block(const Shared &p) {
  Tile tile;
  uint32_t before = blockIdx.y / p.pages.n_kv_heads * TILE_ROWS;
  tile.t = p.work.tiles[blockIdx.x];
  tile.kv_head = blockIdx.y % p.pages.n_kv_heads;
  tile.first_head = tile.kv_head * p.group + before;
  tile.heads = min(p.group - before, (uint32_t)TILE_ROWS);
  tile.rows = tile.t.members * tile.heads;
  return tile;
}

/* grid (tiles, Hkv * groups of TILE_ROWS query heads). What is read of the cache and of the tables
 * is older than the kernel before: the first tokens are on their way before that one is known to be
 * done. */
template <int d>
static __global__ void __launch_bounds__(THREADS, 3) shared_attention(const Shared p) {
  extern __shared__ __align__(16) char bytes[];
  Stage<d> *stages = (Stage<d> *)bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (blockIdx.x >= *p.work.n_tiles) {
    await_previous();
    return;
  }
  const Tile tile = tile_of_block(p);
  const bool busy = warp * ROWS < tile.rows;
  load_keys<d>(stages[0], p, tile, tile.t.begin);
  copies_commit();
  await_previous();
  uint32_t queries[d / 16][4];
  load_queries<d>(queries, p, tile, warp, lane);
  RunningRows<d> run; /* `largest` is not scaled */
  start<d>(run);
  int stage = 0;
  for (uint32_t t = tile.t.begin; t < tile.t.end; t += KEYS, stage ^= 1) {
    copies_wait<0>();
    __syncthreads(); /* everyone's copies are there, and everyone is done with the other stage */
    if (t + KEYS < tile.t.end)
      load_keys<d>(stages[stage ^ 1], p, tile, t + KEYS);
    copies_commit();
    if (!busy)
      continue;
    float s[KEYS / 8][4] = {};
    score_keys<d>(s, stages[stage], queries, lane);
    soften<d>(s, run, p.scale, tile.t.end - t, lane);
    mix_values<d>(run, s, stages[stage], lane);
  }
  if (busy)
    store<d>(run, p, tile, warp, lane);
}

template <int d> static cudaError_t launch(const Shared &p, dim3 grid, cudaStream_t stream) {
  const int bytes = 2 * sizeof(Stage<d>);
  static bool ready = false; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status = cudaFuncSetAttribute(shared_attention<d>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  return launch_early(shared_attention<d>, grid, THREADS, bytes, stream, 1, p);
}

uint64_t kv_cuda_shared_scratch_bytes(uint32_t parts, uint32_t n_heads, uint32_t head_dim) {
  return shared_sums_bytes(parts, n_heads) + (uint64_t)parts * n_heads * head_dim * sizeof(float);
}

uint32_t kv_cuda_shared_tile_members(uint32_t n_heads, uint32_t n_kv_heads) {
  uint32_t group = n_heads / n_kv_heads;
  return group < TILE_ROWS ? TILE_ROWS / group : 1;
}

cudaError_t kv_cuda_shared_attention(const KvCudaShared *shared, const KvBf16 *q,
                                     uint64_t row_stride, const KvCudaPages *pages,
                                     const uint32_t *table, uint32_t n_heads, cudaStream_t stream) {
  if (shared->most_tiles == 0)
    return cudaSuccess;
  Shared p = {};
  p.work = *shared;
  p.parts = shared_parts(*shared, n_heads);
  p.q = q;
  p.row_stride = row_stride;
  p.pages = *pages;
  p.table = table;
  p.n_heads = n_heads;
  p.group = n_heads / pages->n_kv_heads;
  p.scale = 1.4426950408889634f / sqrtf((float)pages->head_dim);
  dim3 grid(shared->most_tiles, pages->n_kv_heads * ((p.group + TILE_ROWS - 1) / TILE_ROWS));
  return for_head_dim(pages->head_dim, [&](auto d) { return launch<d.value>(p, grid, stream); });
}
