/* Prefill attention, for heads that attention_prefill_wgmma.cu does not take: a chunk's queries
 * over the paged cache, theirs included, on the tensor cores.
 *
 * A block takes the queries of TILE_ROWS (token, head) pairs that share a KV head, so keys and
 * values are read once for all heads of a group, and walks over the visible tokens KEYS at a time,
 * the next KEYS under way while it computes. Scores never leave registers: Dao, "FlashAttention-2:
 * Faster Attention with Better Parallelism and Work Partitioning" (2023), algorithm 1. Twin:
 * kv_host_attention().
 */
#include "reference/cuda/mma.cuh"
#include "reference/cuda/prefill.cuh"

enum { WARPS = 4, ROWS = 32, TILE_ROWS = WARPS * ROWS, KEYS = 64, THREADS = WARPS * 32 };
static_assert(TILE_ROWS == KV_PREFILL_TILE_ROWS, "both kernels take the same tiles");

template <int d> struct Shared {
  KvBf16 queries[TILE_ROWS][SharedRow<d>::elements];
  KvBf16 keys[2][KEYS][SharedRow<d>::elements], values[2][KEYS][SharedRow<d>::elements];
};

/* Row r is token r / G, head r % G; rows past the tile's tokens are zeros. */
template <int d>
static __device__ __forceinline__ void load_queries(Shared<d> &shared, const Prefill &p,
                                                    const KvCudaTile &tile, uint32_t kv_head) {
  const int chunks = SharedRow<d>::chunks;
  const KvBf16 *q = p.q + tile.row * p.row_stride + (uint64_t)kv_head * p.group * d;
  for (int i = threadIdx.x; i < TILE_ROWS * chunks; i += THREADS) {
    uint32_t row = i / chunks, column = i % chunks * 8, token = row / p.group;
    bool wanted = token < tile.count;
    const KvBf16 *source =
        wanted ? q + token * p.row_stride + (row - token * p.group) * d + column : q;
    copy_16_async(&shared.queries[row][column], source, wanted ? 16 : 0);
  }
}

/* Begin to load tokens t .. t + KEYS - 1; those from `end` on become zeros. */
template <int d>
static __device__ __forceinline__ void load_keys(Shared<d> &shared, int stage, const Prefill &p,
                                                 const uint32_t *table, uint32_t kv_head,
                                                 uint32_t t, uint32_t end) {
  const int chunks = SharedRow<d>::chunks;
  uint32_t shift = p.pages.block_shift, mask = (1u << shift) - 1;
#pragma unroll
  for (int i = threadIdx.x; i < KEYS * chunks; i += THREADS) {
    uint32_t row = i / chunks, column = i % chunks * 8, token = t + row;
    bool wanted = token < end;
    const KvBf16 *source = p.pages.pool;
    if (wanted)
      source += __ldg(&table[token >> shift]) * p.pages.block_elements +
                (((uint64_t)kv_head << shift) + (token & mask)) * d + column;
    copy_16_async(&shared.keys[stage][row][column], source, wanted ? 16 : 0);
    copy_16_async(&shared.values[stage][row][column],
                  wanted ? source + p.pages.value_offset : source, wanted ? 16 : 0);
  }
}

/* A warp's ROWS rows as two of the product's: [m] of 16 rows each. */
template <int d> struct Running {
  float o[2][d / 8][4], largest[2][2], sum[2][2];
  uint32_t position[2][2]; /* of the row's token */
};

/* s = queries . keys of one tile of tokens. */
template <int d>
static __device__ __forceinline__ void
score_tile(float (&s)[2][KEYS / 8][4], const Shared<d> &shared, int stage, int warp, int lane) {
#pragma unroll
  for (int k = 0; k < d / 16; k++) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; m++)
      load_tiles(a[m], &shared.queries[warp * ROWS + m * 16 + lane % 16][k * 16 + lane / 16 * 8]);
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
      uint32_t b[4];
      load_tiles(b,
                 &shared.keys[stage][n * 16 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
#pragma unroll
      for (int m = 0; m < 2; m++) {
        mma_bf16(s[m][2 * n], a[m], b[0], b[1]);
        mma_bf16(s[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/* Forbid what a row must not see: the tokens after its own, and those before its window. */
template <int d>
static __device__ __forceinline__ void mask_tile(float (&s)[2][KEYS / 8][4], const Running<d> &run,
                                                 uint32_t t, uint32_t window, int lane) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32_t token = t + n * 8 + lane % 4 * 2 + i % 2, own = run.position[m][i / 2];
        if (token > own || (window && token + window <= own))
          s[m][n][i] = -INFINITY;
      }
}

/* s becomes the exponentials, and `run` moves to the new maximum. */
template <int d>
static __device__ __forceinline__ void soften(float (&s)[2][KEYS / 8][4], Running<d> &run,
                                              float scale) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = run.largest[m][half];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
        largest = fmaxf(largest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      largest = row_max(largest);
      /* A row that has seen nothing yet stays at minus infinity, without a NaN. */
      float reference = largest == -INFINITY ? 0.0f : largest * scale;
      float shrink = power_of_2(run.largest[m][half] * scale - reference), sum = 0.0f;
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          s[m][n][i] = power_of_2(fmaf(s[m][n][i], scale, -reference));
          sum += s[m][n][i];
        }
      run.sum[m][half] = run.sum[m][half] * shrink + sum;
      run.largest[m][half] = largest;
#pragma unroll
      for (int n = 0; n < d / 8; n++) {
        run.o[m][n][2 * half] *= shrink;
        run.o[m][n][2 * half + 1] *= shrink;
      }
    }
}

/* o += p . values. */
template <int d>
static __device__ __forceinline__ void mix_tile(Running<d> &run, const float (&s)[2][KEYS / 8][4],
                                                const Shared<d> &shared, int stage, int lane) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; m++) {
      a[m][0] = pack_bf16(s[m][2 * k][0], s[m][2 * k][1]);
      a[m][1] = pack_bf16(s[m][2 * k][2], s[m][2 * k][3]);
      a[m][2] = pack_bf16(s[m][2 * k + 1][0], s[m][2 * k + 1][1]);
      a[m][3] = pack_bf16(s[m][2 * k + 1][2], s[m][2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < d / 16; n++) {
      uint32_t b[4];
      load_tiles_transposed(b, &shared.values[stage][k * 16 + lane % 16][n * 16 + lane / 16 * 8]);
#pragma unroll
      for (int m = 0; m < 2; m++) {
        mma_bf16(run.o[m][2 * n], a[m], b[0], b[1]);
        mma_bf16(run.o[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <int d>
static __device__ __forceinline__ void run_init(Running<d> &run, const Prefill &p,
                                                const KvCudaTile &tile, int warp, int lane) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t row = warp * ROWS + m * 16 + half * 8 + lane / 4;
      run.position[m][half] = tile.position + row / p.group;
      run.largest[m][half] = -INFINITY;
      run.sum[m][half] = 0.0f;
#pragma unroll
      for (int n = 0; n < d / 8; n++)
        run.o[m][n][2 * half] = run.o[m][n][2 * half + 1] = 0.0f;
    }
}

template <int d>
static __device__ __forceinline__ void store(const Running<d> &run, const Prefill &p,
                                             const KvCudaTile &tile, uint32_t kv_head, int warp,
                                             int lane) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t row = warp * ROWS + m * 16 + half * 8 + lane / 4, token = row / p.group;
      float factor = 1.0f / row_sum(run.sum[m][half]);
      if (token >= tile.count)
        continue;
      uint64_t head = (uint64_t)kv_head * p.group + (row - token * p.group);
      KvBf16 *out = p.out + ((uint64_t)(tile.row + token) * p.n_heads + head) * d + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < d / 8; n++)
        *(uint32_t *)(out + n * 8) =
            pack_bf16(run.o[m][n][2 * half] * factor, run.o[m][n][2 * half + 1] * factor);
    }
}

/* grid (tiles, Hkv) */
template <int d>
static __global__ void __launch_bounds__(THREADS, 2) prefill_attention(const Prefill p) {
  extern __shared__ __align__(16) char bytes[];
  Shared<d> &shared = *(Shared<d> *)bytes;
  const KvCudaTile tile = p.tiles[blockIdx.x];
  const uint32_t kv_head = blockIdx.y, end = tile.position + tile.count;
  const uint32_t *table = p.tables.table + p.tables.table_starts[tile.sequence];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t first = p.window && tile.position + 1 > p.window ? tile.position + 1 - p.window : 0;
  first = first / KEYS * KEYS;
  load_queries<d>(shared, p, tile, kv_head);
  load_keys<d>(shared, 0, p, table, kv_head, first, end);
  copies_commit();
  Running<d> run;
  run_init<d>(run, p, tile, warp, lane);
  int stage = 0;
  for (uint32_t t = first; t < end; t += KEYS, stage ^= 1) {
    copies_wait<0>();
    __syncthreads(); /* everyone's copies are there, and everyone is done with the other stage */
    if (t + KEYS < end)
      load_keys<d>(shared, stage ^ 1, p, table, kv_head, t + KEYS, end);
    copies_commit();
    float s[2][KEYS / 8][4] = {};
    score_tile<d>(s, shared, stage, warp, lane);
    if (t + KEYS - 1 > tile.position || (p.window && t + p.window < end))
      mask_tile<d>(s, run, t, p.window, lane);
    soften<d>(s, run, p.scale);
    mix_tile<d>(run, s, shared, stage, lane);
  }
  store<d>(run, p, tile, kv_head, warp, lane);
}

template <int d>
static cudaError_t launch(const Prefill &p, uint32_t n_tiles, cudaStream_t stream) {
  static bool ready = false; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status = cudaFuncSetAttribute(
        prefill_attention<d>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(Shared<d>));
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  dim3 grid(n_tiles, p.pages.n_kv_heads);
  prefill_attention<d><<<grid, THREADS, sizeof(Shared<d>), stream>>>(p);
  return cudaGetLastError();
}

uint32_t kv_cuda_prefill_tile_tokens(uint32_t n_heads, uint32_t n_kv_heads) {
  return TILE_ROWS / (n_heads / n_kv_heads);
}

cudaError_t kv_cuda_prefill_attention(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                      const KvCudaPages *pages, const KvCudaTables *tables,
                                      const KvCudaTile *tiles, uint32_t n_tiles, uint32_t n_heads,
                                      uint32_t window, cudaStream_t stream) {
  if (n_tiles == 0)
    return cudaSuccess;
  Prefill p = {};
  p.out = out;
  p.q = q;
  p.row_stride = row_stride;
  p.pages = *pages;
  p.tables = *tables;
  p.tiles = tiles;
  p.n_tiles = n_tiles;
  p.n_heads = n_heads;
  p.group = n_heads / pages->n_kv_heads;
  p.window = window;
  p.scale = 1.4426950408889634f / sqrtf((float)pages->head_dim);
  if (p.group > TILE_ROWS)
    return cudaErrorInvalidValue;
  if (pages->head_dim == 64 || pages->head_dim == 128)
    return kv_prefill_wgmma(p, stream);
  switch (pages->head_dim) {
  case 80:
    return launch<80>(p, n_tiles, stream);
  case 96:
    return launch<96>(p, n_tiles, stream);
  default:
    return cudaErrorInvalidValue;
  }
}
