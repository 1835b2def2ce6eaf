/* Attention over latents (multi-head latent attention, absorbed): every head of a query attends to
 * the same 576 numbers of a token, whose first 512 are also what is mixed. So a tile of tokens is
 * brought to shared memory once for all heads, and read from there twice.
 *
 * A block of eight warps takes 16 or 64 rows, (token, head) pairs, and walks over the visible
 * tokens. Scores: each warp those of 16 rows with a part of the tile's tokens; through shared
 * memory, the rows' new largest scores and the exponentials go to all. Mixing: each warp 64 of the
 * 512 columns of all rows. While decoding, the context is cut into pieces, which a second kernel
 * merges. Twins: reference/host/latent.c. */
#include "reference/cuda/launch.cuh"
#include "reference/cuda/mma.cuh"

enum {
  RANK = KV_CUDA_LATENT_RANK,
  ROPE = KV_CUDA_LATENT_ROPE,
  WIDTH = KV_CUDA_LATENT_WIDTH,
  WARPS = 8,
  THREADS = WARPS * 32,
  COLUMNS = RANK / WARPS, /* of a warp */
  CHUNKS = WIDTH / 8,
  MERGE_THREADS = RANK / 4
};

struct Latent {
  KvBf16 *out;
  const KvBf16 *q;
  KvCudaPages pages;
  KvCudaTables tables;
  uint32_t n_heads;
  float scale;             /* of a score, as a power of two */
  const KvCudaTile *tiles; /* of prompts */
  const uint32_t *contexts, *split_tokens;
  uint32_t max_splits;
  float2 *sums;   /* [S][H][splits]: largest score and sum of exponentials */
  float *partial; /* [S][H][splits][512]: not divided by that sum */
};

/* `groups` times 16 rows. With one group (decoding few heads) memory is the bound: more tiles are
 * under way, and half of the warps have enough time to score. */
template <int groups> struct Shared {
  static const int ROWS = groups * 16, KEYS = 32, STAGES = groups == 1 ? 4 : 3;
  static const int PARTS = groups == 1 ? 4 : WARPS / groups; /* warps that score the same rows */
  static const int PART = KEYS / PARTS;                      /* tokens that such a warp scores */
  static const int N = PART / 8, CHAINS = 4 / N; /* sums in parallel, to hide a product's latency */
  KvBf16 queries[ROWS][SharedRow<WIDTH>::elements];
  KvBf16 latents[STAGES][KEYS][SharedRow<WIDTH>::elements];
  KvBf16 p[ROWS][KEYS + 8];
  float largest[PARTS][ROWS], sums[PARTS][ROWS];
  uint64_t rows[ROWS];      /* of q and out: row * H + head; UINT64_MAX: none */
  uint32_t positions[ROWS]; /* the row sees position + 1 tokens */
};

template <int groups> struct Running {
  float o[groups][COLUMNS / 8][4], largest[groups][2]; /* of all rows */
  float own_largest[2], own_sum[2]; /* of the rows that this warp scores, its tokens alone */
};

template <int groups>
static __device__ __forceinline__ void load_queries(Shared<groups> &shared, const Latent &p) {
  for (int i = threadIdx.x; i < Shared<groups>::ROWS * CHUNKS; i += THREADS) {
    int row = i / CHUNKS, column = i % CHUNKS * 8;
    bool wanted = shared.rows[row] != UINT64_MAX;
    copy_16_async(&shared.queries[row][column],
                  wanted ? p.q + shared.rows[row] * WIDTH + column : p.q, wanted ? 16 : 0);
  }
}

/* Begin to load the tokens from t on; those from `end` on become zeros. */
template <int groups>
static __device__ __forceinline__ void load_latents(Shared<groups> &shared, int stage,
                                                    const Latent &p, const uint32_t *table,
                                                    uint32_t t, uint32_t end) {
  const uint32_t shift = p.pages.block_shift, mask = (1u << shift) - 1;
#pragma unroll 6
  for (int i = threadIdx.x; i < Shared<groups>::KEYS * CHUNKS; i += THREADS) {
    uint32_t row = i / CHUNKS, column = i % CHUNKS * 8, token = t + row;
    bool wanted = token < end;
    const KvBf16 *source = p.pages.pool;
    if (wanted)
      source += __ldg(&table[token >> shift]) * p.pages.block_elements +
                (uint64_t)(token & mask) * WIDTH + column;
    copy_16_async(&shared.latents[stage][row][column], source, wanted ? 16 : 0);
  }
}

/* s: scores of the warp's rows with its part of the tile. */
template <int groups>
static __device__ __forceinline__ void score_part(float (&s)[Shared<groups>::N][4],
                                                  const Shared<groups> &shared, int stage,
                                                  int group, int part, int lane) {
  using S = Shared<groups>;
  float sums[S::CHAINS][S::N][4] = {};
  const int first = part * S::PART;
#pragma unroll
  for (int k = 0; k < WIDTH / 16; k += 2) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
      load_tiles(a[i], &shared.queries[group * 16 + lane % 16][(k + i) * 16 + lane / 16 * 8]);
    if constexpr (S::N == 1) { /* both steps of eight tokens */
      load_tiles(b[0], &shared.latents[stage][first + lane % 8][k * 16 + lane / 8 * 8]);
      mma_bf16(sums[k % S::CHAINS][0], a[0], b[0][0], b[0][1]);
      mma_bf16(sums[(k + 1) % S::CHAINS][0], a[1], b[0][2], b[0][3]);
    } else {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        load_tiles(b[i], &shared.latents[stage][first + lane / 16 * 8 + lane % 8]
                                        [(k + i) * 16 + lane / 8 % 2 * 8]);
        mma_bf16(sums[i][0], a[i], b[i][0], b[i][1]);
        mma_bf16(sums[i][1], a[i], b[i][2], b[i][3]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < S::N; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s[n][i] = sums[0][n][i];
#pragma unroll
      for (int c = 1; c < S::CHAINS; c++)
        s[n][i] += sums[c][n][i];
    }
}

/* Forbid what a row must not see, and show everyone its largest score. */
template <int groups>
static __device__ __forceinline__ void mask_part(float (&s)[Shared<groups>::N][4],
                                                 Shared<groups> &shared, uint32_t t, uint32_t end,
                                                 int group, int part, int lane) {
  using S = Shared<groups>;
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t position = shared.positions[group * 16 + i / 2 * 8 + lane / 4];
#pragma unroll
    for (int n = 0; n < S::N; n++) {
      uint32_t token = t + part * S::PART + n * 8 + lane % 4 * 2 + i % 2;
      if (token >= end || token > position)
        s[n][i] = -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    largest[half] = row_max(largest[half]);
    if (lane % 4 == 0)
      shared.largest[part][group * 16 + half * 8 + lane / 4] = largest[half];
  }
}

template <int groups>
static __device__ __forceinline__ float largest_of(const Shared<groups> &shared, int row,
                                                   float before) {
#pragma unroll
  for (int part = 0; part < Shared<groups>::PARTS; part++)
    before = fmaxf(before, shared.largest[part][row]);
  return before;
}

/* What a sum up to `before` is worth beside the maximum `now`. */
static __device__ __forceinline__ float shrink_of(float before, float now, float scale) {
  return now == -INFINITY ? 1.0f : power_of_2((before - now) * scale);
}

/* The warp's scores become exponentials in shared memory. */
template <int groups>
static __device__ __forceinline__ void soften_part(const float (&s)[Shared<groups>::N][4],
                                                   Running<groups> &run, Shared<groups> &shared,
                                                   float scale, int group, int part, int lane) {
  using S = Shared<groups>;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = group * 16 + half * 8 + lane / 4;
    float largest = largest_of<groups>(shared, row, run.own_largest[half]);
    float reference = largest == -INFINITY ? 0.0f : largest * scale, sum = 0.0f;
#pragma unroll
    for (int n = 0; n < S::N; n++) {
      float low = power_of_2(fmaf(s[n][2 * half], scale, -reference));
      float high = power_of_2(fmaf(s[n][2 * half + 1], scale, -reference));
      sum += low + high;
      *(uint32_t *)&shared.p[row][part * S::PART + n * 8 + lane % 4 * 2] = pack_bf16(low, high);
    }
    run.own_sum[half] = run.own_sum[half] * shrink_of(run.own_largest[half], largest, scale) + sum;
    run.own_largest[half] = largest;
  }
}

/* Bring what was mixed so far to the new maxima. */
template <int groups>
static __device__ __forceinline__ void
shrink_all(Running<groups> &run, const Shared<groups> &shared, float scale, int lane) {
#pragma unroll
  for (int g = 0; g < groups; g++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float before = run.largest[g][half];
      float largest = largest_of<groups>(shared, g * 16 + half * 8 + lane / 4, before);
      run.largest[g][half] = largest;
      if (!__any_sync(0xffffffffu, largest > before))
        continue;
      float shrink = shrink_of(before, largest, scale);
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; n++) {
        run.o[g][n][2 * half] *= shrink;
        run.o[g][n][2 * half + 1] *= shrink;
      }
    }
}

/* o += p . latents, the warp's columns of all rows. */
template <int groups>
static __device__ __forceinline__ void mix(Running<groups> &run, const Shared<groups> &shared,
                                           int stage, int warp, int lane) {
#pragma unroll
  for (int k = 0; k < Shared<groups>::KEYS / 16; k++) {
    uint32_t a[groups][4];
#pragma unroll
    for (int g = 0; g < groups; g++)
      load_tiles(a[g], &shared.p[g * 16 + lane % 16][k * 16 + lane / 16 * 8]);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      uint32_t b[4];
      load_tiles_transposed(
          b, &shared.latents[stage][k * 16 + lane % 16][warp * COLUMNS + n * 16 + lane / 16 * 8]);
#pragma unroll
      for (int g = 0; g < groups; g++) {
        mma_bf16(run.o[g][2 * n], a[g], b[0], b[1]);
        mma_bf16(run.o[g][2 * n + 1], a[g], b[2], b[3]);
      }
    }
  }
}

/* The block's rows, whose places are in `shared`, over tokens begin .. end - 1; then shared.sums
 * hold, of each row, the parts of its sum. */
template <int groups>
static __device__ __forceinline__ void walk(Running<groups> &run, Shared<groups> &shared,
                                            const Latent &p, const uint32_t *table, uint32_t begin,
                                            uint32_t end) {
  using S = Shared<groups>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = warp % groups, part = warp / groups;
  const bool scores = part < S::PARTS;
#pragma unroll
  for (int g = 0; g < groups; g++) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
      run.o[g][n][0] = run.o[g][n][1] = run.o[g][n][2] = run.o[g][n][3] = 0.0f;
    run.largest[g][0] = run.largest[g][1] = -INFINITY;
  }
  run.own_largest[0] = run.own_largest[1] = -INFINITY;
  run.own_sum[0] = run.own_sum[1] = 0.0f;
  load_queries<groups>(shared, p);
#pragma unroll
  for (int s = 0; s < S::STAGES - 1; s++) {
    if (begin + s * S::KEYS < end)
      load_latents<groups>(shared, s, p, table, begin + s * S::KEYS, end);
    copies_commit();
  }
  int stage = 0;
  for (uint32_t t = begin; t < end; t += S::KEYS) {
    float s[S::N][4];
    copies_wait<S::STAGES - 2>();
    __syncthreads(); /* everyone's copies are there, and everyone is done with the tile before */
    uint32_t next = t + (S::STAGES - 1) * S::KEYS;
    if (next < end)
      load_latents<groups>(shared, (stage + S::STAGES - 1) % S::STAGES, p, table, next, end);
    copies_commit();
    if (scores) {
      score_part<groups>(s, shared, stage, group, part, lane);
      mask_part<groups>(s, shared, t, end, group, part, lane);
    }
    __syncthreads(); /* the largest scores are there */
    if (scores)
      soften_part<groups>(s, run, shared, p.scale, group, part, lane);
    shrink_all<groups>(run, shared, p.scale, lane);
    __syncthreads(); /* the exponentials are there */
    mix<groups>(run, shared, stage, warp, lane);
    stage = (stage + 1) % S::STAGES;
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = row_sum(run.own_sum[half]);
    if (scores && lane % 4 == 0)
      shared.sums[part][group * 16 + half * 8 + lane / 4] = sum;
  }
  __syncthreads();
}

template <int groups>
static __device__ __forceinline__ float sum_of(const Shared<groups> &shared, int row) {
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < Shared<groups>::PARTS; part++)
    sum += shared.sums[part][row];
  return sum;
}

template <int groups>
static __device__ __forceinline__ void store(const Running<groups> &run,
                                             const Shared<groups> &shared, const Latent &p) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int g = 0; g < groups; g++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = g * 16 + half * 8 + lane / 4;
      if (shared.rows[row] == UINT64_MAX)
        continue;
      float factor = 1.0f / sum_of<groups>(shared, row);
      KvBf16 *out = p.out + shared.rows[row] * RANK + warp * COLUMNS + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; n++)
        *(uint32_t *)(out + n * 8) =
            pack_bf16(run.o[g][n][2 * half] * factor, run.o[g][n][2 * half + 1] * factor);
    }
}

/* grid (tiles, groups of ROWS rows of a tile) */
template <int groups>
static __global__ void __launch_bounds__(THREADS, 1) latent_prefill(const Latent p) {
  extern __shared__ __align__(16) char bytes[];
  Shared<groups> &shared = *(Shared<groups> *)bytes;
  await_previous();
  const KvCudaTile tile = p.tiles[blockIdx.x];
  const uint32_t first = blockIdx.y * Shared<groups>::ROWS;
  if (first >= tile.count * p.n_heads)
    return;
  if (threadIdx.x < Shared<groups>::ROWS) {
    uint32_t pair = first + threadIdx.x, token = pair / p.n_heads, head = pair % p.n_heads;
    bool there = token < tile.count;
    shared.rows[threadIdx.x] = there ? (uint64_t)(tile.row + token) * p.n_heads + head : UINT64_MAX;
    shared.positions[threadIdx.x] = tile.position + (there ? token : 0);
  }
  __syncthreads();
  Running<groups> run;
  /* The tokens that the block's last row sees. */
  uint32_t last = min((first + Shared<groups>::ROWS - 1) / p.n_heads, tile.count - 1);
  walk<groups>(run, shared, p, p.tables.table + p.tables.table_starts[tile.sequence], 0,
               tile.position + last + 1);
  store<groups>(run, shared, p);
}

/* grid (splits, groups of ROWS heads, S) */
template <int groups>
static __global__ void __launch_bounds__(THREADS, 1) latent_decode(const Latent p) {
  extern __shared__ __align__(16) char bytes[];
  using S = Shared<groups>;
  S &shared = *(S *)bytes;
  await_previous();
  const uint32_t sequence = blockIdx.z, split = blockIdx.x, first = blockIdx.y * S::ROWS;
  const uint32_t context = p.contexts[sequence], split_tokens = *p.split_tokens;
  const uint32_t splits = (context + split_tokens - 1) / split_tokens;
  const uint64_t heads = (uint64_t)sequence * p.n_heads;
  if (context == 0 && split == 0) {
    uint32_t n = min((uint32_t)S::ROWS, p.n_heads - first) * RANK;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
      p.out[(heads + first) * RANK + i] = 0;
  }
  if (split >= splits)
    return;
  if (threadIdx.x < S::ROWS) {
    uint32_t head = first + threadIdx.x;
    shared.rows[threadIdx.x] = head < p.n_heads ? heads + head : UINT64_MAX;
    shared.positions[threadIdx.x] = context - 1;
  }
  __syncthreads();
  Running<groups> run;
  walk<groups>(run, shared, p, p.tables.table + p.tables.table_starts[sequence],
               split * split_tokens, min(context, (split + 1) * split_tokens));
  if (splits == 1) {
    store<groups>(run, shared, p);
    return;
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int g = 0; g < groups; g++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = g * 16 + half * 8 + lane / 4;
      if (shared.rows[row] == UINT64_MAX)
        continue;
      uint64_t slot = shared.rows[row] * p.max_splits + split;
      float *partial = p.partial + slot * RANK + warp * COLUMNS + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; n++)
        *(float2 *)(partial + n * 8) =
            make_float2(run.o[g][n][2 * half], run.o[g][n][2 * half + 1]);
      if (warp == 0 && lane % 4 == 0)
        p.sums[slot] = make_float2(run.largest[g][half] * p.scale, sum_of<groups>(shared, row));
    }
}

/* Merge the pieces of one head of a sequence; grid (H, S), a thread four columns. */
static __global__ void __launch_bounds__(MERGE_THREADS) latent_merge(const Latent p) {
  await_previous();
  const uint32_t split_tokens = *p.split_tokens;
  const uint32_t splits = (p.contexts[blockIdx.y] + split_tokens - 1) / split_tokens;
  if (splits < 2) /* done, or nothing */
    return;
  const uint64_t head = (uint64_t)blockIdx.y * p.n_heads + blockIdx.x;
  const float2 *sums = p.sums + head * p.max_splits;
  const float4 *partial = (const float4 *)(p.partial + head * p.max_splits * RANK) + threadIdx.x;
  float largest = -INFINITY, sum = 0.0f;
  float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (uint32_t s = 0; s < splits; s++)
    largest = fmaxf(largest, sums[s].x);
#pragma unroll 8
  for (uint32_t s = 0; s < splits; s++) {
    float2 part = sums[s];
    float4 o = partial[(uint64_t)s * (RANK / 4)];
    float weight = power_of_2(part.x - largest);
    sum += part.y * weight;
    total.x = fmaf(o.x, weight, total.x);
    total.y = fmaf(o.y, weight, total.y);
    total.z = fmaf(o.z, weight, total.z);
    total.w = fmaf(o.w, weight, total.w);
  }
  float factor = 1.0f / sum;
  ((uint2 *)(p.out + head * RANK))[threadIdx.x] = make_uint2(
      pack_bf16(total.x * factor, total.y * factor), pack_bf16(total.z * factor, total.w * factor));
}

template <int groups>
static cudaError_t launch(void (*kernel)(Latent), const Latent &p, dim3 grid, bool &ready,
                          cudaStream_t stream) {
  if (!ready) { /* one GPU, one thread */
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              (int)sizeof(Shared<groups>));
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  return launch_early(kernel, grid, THREADS, sizeof(Shared<groups>), stream, 1, p);
}

static Latent latent_of(KvBf16 *out, const KvBf16 *q, const KvCudaPages *pages,
                        const KvCudaTables *tables, uint32_t n_heads, float scale) {
  Latent p = {};
  p.out = out;
  p.q = q;
  p.pages = *pages;
  p.tables = *tables;
  p.n_heads = n_heads;
  p.scale = 1.4426950408889634f * scale;
  return p;
}

uint32_t kv_cuda_latent_tile_tokens(uint32_t n_heads) {
  uint32_t tokens = Shared<4>::ROWS / n_heads;
  return tokens ? tokens : 1;
}

cudaError_t kv_cuda_latent_prefill(KvBf16 *out, const KvBf16 *q, const KvCudaPages *pages,
                                   const KvCudaTables *tables, const KvCudaTile *tiles,
                                   uint32_t n_tiles, uint32_t n_heads, float scale,
                                   cudaStream_t stream) {
  static bool ready = false;
  if (n_tiles == 0)
    return cudaSuccess;
  if (pages->head_dim != WIDTH || pages->n_kv_heads != 1 || n_heads == 0)
    return cudaErrorInvalidValue;
  Latent p = latent_of(out, q, pages, tables, n_heads, scale);
  p.tiles = tiles;
  uint32_t rows = kv_cuda_latent_tile_tokens(n_heads) * n_heads;
  dim3 grid(n_tiles, (rows + Shared<4>::ROWS - 1) / Shared<4>::ROWS);
  return launch<4>(latent_prefill<4>, p, grid, ready, stream);
}

/* Rows of a decoding block. */
static uint32_t decode_rows(uint32_t n_heads) {
  return n_heads > Shared<1>::ROWS ? Shared<4>::ROWS : Shared<1>::ROWS;
}

/* The fewest pieces whose blocks, one on a multiprocessor, fill whole waves to 90 %. */
uint32_t kv_cuda_latent_max_splits(uint32_t sequences, uint32_t n_heads, uint32_t multiprocessors) {
  uint64_t blocks =
      (uint64_t)sequences * ((n_heads + decode_rows(n_heads) - 1) / decode_rows(n_heads));
  uint32_t best = 1;
  double best_share = 0.0;
  for (uint32_t splits = 1; splits <= multiprocessors && blocks; splits++) {
    uint64_t waves = (splits * blocks + multiprocessors - 1) / multiprocessors;
    double share = (double)(splits * blocks) / (double)(waves * multiprocessors);
    if (share > best_share) {
      best_share = share;
      best = splits;
    }
    if (share >= 0.9)
      break;
  }
  return best;
}

cudaError_t kv_cuda_latent_decode(KvBf16 *out, const KvBf16 *q, const KvCudaPages *pages,
                                  const KvCudaTables *tables, const uint32_t *contexts,
                                  uint32_t sequences, uint32_t n_heads, float scale,
                                  const uint32_t *split_tokens, uint32_t max_splits, void *scratch,
                                  cudaStream_t stream) {
  static bool few_ready = false, many_ready = false;
  if (sequences == 0)
    return cudaSuccess;
  if (pages->head_dim != WIDTH || pages->n_kv_heads != 1 || n_heads == 0)
    return cudaErrorInvalidValue;
  Latent p = latent_of(out, q, pages, tables, n_heads, scale);
  p.contexts = contexts;
  p.split_tokens = split_tokens;
  p.max_splits = max_splits;
  p.sums = (float2 *)scratch; /* then the pieces */
  p.partial =
      (float *)((char *)scratch + kv_cuda_decode_scratch_bytes(sequences, n_heads, 0, max_splits));
  const uint32_t rows = decode_rows(n_heads);
  dim3 grid(max_splits, (n_heads + rows - 1) / rows, sequences);
  cudaError_t status = rows == Shared<1>::ROWS
                           ? launch<1>(latent_decode<1>, p, grid, few_ready, stream)
                           : launch<4>(latent_decode<4>, p, grid, many_ready, stream);
  if (status != cudaSuccess || max_splits == 1)
    return status;
  return launch_early(latent_merge, dim3(n_heads, sequences), MERGE_THREADS, 0, stream, 1, p);
}

/* --- around attention ------------------------------------------------------------------------ */

/* grid (H, 512): the row of one head and rank number, turned for the keys. */
static __global__ void split_latent_up(KvBf16 *keys, KvBf16 *values, const KvBf16 *up,
                                       uint32_t nope, uint32_t value) {
  const uint64_t head = blockIdx.x, rank = blockIdx.y;
  const KvBf16 *from = up + head * (nope + value) * RANK + rank;
  for (uint32_t i = threadIdx.x; i < nope; i += blockDim.x)
    keys[(head * RANK + rank) * nope + i] = from[(uint64_t)i * RANK];
  for (uint32_t i = threadIdx.x; i < value; i += blockDim.x)
    values[(head * value + i) * RANK + rank] = from[(uint64_t)(nope + i) * RANK];
}

cudaError_t kv_cuda_split_latent_up(KvBf16 *keys, KvBf16 *values, const KvBf16 *up,
                                    uint32_t n_heads, uint32_t nope, uint32_t value,
                                    cudaStream_t stream) {
  split_latent_up<<<dim3(n_heads, RANK), 128, 0, stream>>>(keys, values, up, nope, value);
  return cudaGetLastError();
}

/* 1 / rms of a row of pairs, by a block of THREADS. */
static __device__ float scale_of_row(const KvBf16 *x, uint32_t width, float epsilon) {
  __shared__ float parts[WARPS];
  float squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < width / 2; i += THREADS) {
    uint32_t pair = ((const uint32_t *)x)[i];
    squares += low_float(pair) * low_float(pair) + high_float(pair) * high_float(pair);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0)
    parts[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; w++)
    total += parts[w];
  return rsqrtf(total / (float)width + epsilon);
}

static __device__ __forceinline__ uint32_t scale_pair(uint32_t pair, uint32_t gains, float scale) {
  return pack_bf16(low_float(pair) * scale * low_float(gains),
                   high_float(pair) * scale * high_float(gains));
}

/* grid (R) */
static __global__ void __launch_bounds__(THREADS)
    norm_rows(KvBf16 *out, const KvBf16 *x, uint64_t x_stride, const KvBf16 *weight, float epsilon,
              uint32_t width) {
  await_previous();
  x += blockIdx.x * x_stride;
  float scale = scale_of_row(x, width, epsilon);
  uint32_t *target = (uint32_t *)(out + (uint64_t)blockIdx.x * width);
  for (uint32_t i = threadIdx.x; i < width / 2; i += THREADS)
    target[i] = scale_pair(((const uint32_t *)x)[i], ((const uint32_t *)weight)[i], scale);
}

cudaError_t kv_cuda_norm_rows(KvBf16 *out, const KvBf16 *x, uint64_t x_stride, const KvBf16 *weight,
                              float epsilon, uint32_t rows, uint32_t width, cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (width % 2 || x_stride % 2)
    return cudaErrorInvalidValue;
  return launch_early(norm_rows, rows, THREADS, 0, stream, 1, out, x, x_stride, weight, epsilon,
                      width);
}

static __device__ __forceinline__ uint32_t turn(uint32_t pair, float2 angle) {
  return pack_bf16(low_float(pair) * angle.x - high_float(pair) * angle.y,
                   high_float(pair) * angle.x + low_float(pair) * angle.y);
}

/* grid (R): latents first, then the rotated parts, a warp a head. */
static __global__ void __launch_bounds__(THREADS)
    latent_store(KvBf16 *absorbed, const KvBf16 *q, uint64_t q_stride, const KvBf16 *latents,
                 uint64_t latent_stride, const KvCudaPages pages, const KvCudaTables tables,
                 const uint32_t *row_sequences, const uint32_t *positions, const float2 *angles,
                 const KvBf16 *norm, float epsilon, uint32_t n_heads, uint32_t nope) {
  static_assert(RANK == 2 * THREADS && ROPE == 64,
                "a thread a pair of the latent, a lane of a key");
  await_previous();
  const uint64_t row = blockIdx.x;
  const uint32_t sequence = row_sequences[row], position = positions[row];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (sequence == UINT32_MAX)
    return;
  const KvBf16 *latent = latents + row * latent_stride;
  uint32_t block = tables.table[tables.table_starts[sequence] + (position >> pages.block_shift)];
  uint32_t slot = position & ((1u << pages.block_shift) - 1);
  uint32_t *target =
      (uint32_t *)(pages.pool + block * pages.block_elements + (uint64_t)slot * WIDTH);
  float scale = scale_of_row(latent, RANK, epsilon);
  target[threadIdx.x] = scale_pair(((const uint32_t *)latent)[threadIdx.x],
                                   ((const uint32_t *)norm)[threadIdx.x], scale);
  float2 angle = angles[(uint64_t)position * (ROPE / 2) + lane];
  if (warp == 0)
    target[RANK / 2 + lane] = turn(((const uint32_t *)(latent + RANK))[lane], angle);
  q += row * q_stride + nope;
  absorbed += row * n_heads * WIDTH + RANK;
  for (uint32_t h = warp; h < n_heads; h += WARPS)
    ((uint32_t *)(absorbed + (uint64_t)h * WIDTH))[lane] =
        turn(((const uint32_t *)(q + (uint64_t)h * (nope + ROPE)))[lane], angle);
}

cudaError_t kv_cuda_latent_store(KvBf16 *absorbed, const KvBf16 *q, uint64_t q_stride,
                                 const KvBf16 *latents, uint64_t latent_stride,
                                 const KvCudaPages *pages, const KvCudaTables *tables,
                                 const uint32_t *row_sequences, const uint32_t *positions,
                                 const float2 *angles, const KvBf16 *norm, float epsilon,
                                 uint32_t rows, uint32_t n_heads, uint32_t nope,
                                 cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (pages->head_dim != WIDTH || pages->n_kv_heads != 1 || nope % 2 || q_stride % 2 ||
      latent_stride % 2)
    return cudaErrorInvalidValue;
  return launch_early(latent_store, rows, THREADS, 0, stream, 1, absorbed, q, q_stride, latents,
                      latent_stride, *pages, *tables, row_sequences, positions, angles, norm,
                      epsilon, n_heads, nope);
}
