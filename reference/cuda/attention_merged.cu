/* Decode attention over the merged caches of two layers (minicache): as attention_decode.cu, but
 * what a tile's rows are is looked up token by token. A merged token's key is its direction, and
 * the score is multiplied by the norm of the layer that reads; its value likewise, by way of the
 * weight. A token that stays apart is read from its sequence's own memory, the newest one from
 * where it was staged. Blocks' numbers are known two tiles ahead, norms and indices one, so that
 * three loads that depend on one another do not follow one another. Twin: kv_host_attention() over
 * what kv_host_merge() leaves.
 */
#include <cuda_fp16.h>

#include "reference/cuda/launch.cuh"
#include "reference/cuda/merge.cuh"
#include "reference/cuda/merging.h"

enum { WARPS = 4, TILE = 16, STAGES = 3, HEADS = 16 };
static_assert(KV_CUDA_SPLIT_UNIT == WARPS * TILE, "a piece is whole tiles of every warp");

struct Decode {
  KvBf16 *out;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaMerged cache;
  uint32_t layer; /* 0: x, 1: y */
  KvCudaTables tables;
  const KvCudaKept *kept;
  const KvBf16 *staged;
  const uint32_t *contexts, *split_tokens;
  uint32_t group;
  float scale;
  Pieces pieces;
};

struct Piece : Place {
  uint32_t kv_head, context, begin, end;
  const uint32_t *table;
  KvCudaKept kept;
};

/* FALSE if there is nothing to do. */
static __device__ bool piece_of_block(const Decode &p, Piece &piece) {
  uint32_t before = blockIdx.y / p.cache.n_kv_heads * HEADS, split_tokens = *p.split_tokens;
  piece.sequence = blockIdx.z;
  piece.kv_head = blockIdx.y % p.cache.n_kv_heads;
  piece.first_head = piece.kv_head * p.group + before;
  piece.heads = min(p.group - before, (uint32_t)HEADS);
  piece.split = blockIdx.x;
  piece.context = p.contexts[piece.sequence];
  piece.table = p.tables.table + p.tables.table_starts[piece.sequence];
  piece.splits = (piece.context + split_tokens - 1) / split_tokens;
  piece.begin = piece.split * split_tokens;
  piece.end = min(piece.context, piece.begin + split_tokens);
  if (piece.split >= piece.splits)
    return false;
  piece.kept = p.kept[piece.sequence];
  return true;
}

/* --- loads ------------------------------------------------------------------------------------ */

/* A warp's tile: rows of keys and values, and what their products are multiplied by. */
template <int d> struct Stage {
  KvBf16 keys[TILE][SharedRow<d>::elements], values[TILE][SharedRow<d>::elements];
  float factors[2][TILE];
};

/* Lanes 0 .. 15 look up the keys of a tile's tokens, lanes 16 .. 31 their values. */
struct Lookup {
  uint32_t block, index;
  uint16_t norm;
};

static __device__ __forceinline__ uint32_t token_of(uint32_t t, int lane) {
  return t + lane % TILE;
}

static __device__ __forceinline__ uint32_t block_at(const Decode &p, const Piece &piece, uint32_t t,
                                                    int lane) {
  uint32_t token = token_of(t, lane);
  return token < piece.end ? piece.table[token >> p.cache.block_shift] : 0;
}

/* What the block says of the lane's token; nothing of the newest one, which is not in it yet. */
static __device__ __forceinline__ Lookup look_up(const Decode &p, const Piece &piece, uint32_t t,
                                                 uint32_t block, int lane) {
  const KvCudaMerged &m = p.cache;
  Lookup x = {block, 0, 0};
  uint32_t token = token_of(t, lane), part = lane / TILE;
  if (token >= piece.end || token + 1 == piece.context)
    return x;
  const KvBf16 *base = m.pool + block * m.block_elements;
  uint32_t slot = (part << m.block_shift) + (token & ((1u << m.block_shift) - 1));
  x.index = ((const uint32_t *)(base + m.index))[slot];
  x.norm = base[m.norms + ((uint64_t)p.layer * 2 << m.block_shift) + slot];
  return x;
}

/* The lane's row; NULL of a token outside the piece. *factor: its norm, 1 of an original. */
static __device__ __forceinline__ const KvBf16 *
row_of(const Decode &p, const Piece &piece, uint32_t t, const Lookup &x, int lane, float *factor) {
  const KvCudaMerged &m = p.cache;
  const uint32_t token = token_of(t, lane), part = lane / TILE, width = m.n_kv_heads * m.head_dim;
  const uint32_t head = piece.kv_head * m.head_dim;
  *factor = 1.0f;
  if (token >= piece.end) {
    *factor = 0.0f;
    return nullptr;
  }
  if (token + 1 == piece.context)
    return p.staged + (((uint64_t)piece.sequence * 2 + p.layer) * 2 + part) * width + head;
  if (x.index)
    return piece.kept.rows +
           ((((uint64_t)m.pair * 2 + part) * piece.kept.capacity + x.index - 1) * 2 + p.layer) *
               width +
           head;
  *factor = __half2float(__ushort_as_half(x.norm));
  return m.pool + x.block * m.block_elements + part * m.value_offset +
         (((uint64_t)piece.kv_head << m.block_shift) + (token & ((1u << m.block_shift) - 1))) *
             m.head_dim;
}

/* Begin to load the tile at t. Rows outside the piece become zeros. */
template <int d>
static __device__ __forceinline__ void load_tile(Stage<d> &stage, const Decode &p,
                                                 const Piece &piece, uint32_t t, const Lookup &x,
                                                 int lane) {
  const int chunks = SharedRow<d>::chunks;
  uint64_t row = (uint64_t)row_of(p, piece, t, x, lane, &stage.factors[lane / TILE][lane % TILE]);
#pragma unroll
  for (int i = 0; i < TILE * chunks; i += 32) {
    int r = (i + lane) / chunks, c = (i + lane) % chunks * 8;
    const KvBf16 *key = (const KvBf16 *)__shfl_sync(0xffffffffu, row, r);
    const KvBf16 *value = (const KvBf16 *)__shfl_sync(0xffffffffu, row, r + TILE);
    int bytes = key ? 16 : 0;
    copy_16_async(&stage.keys[r][c], bytes ? key + c : p.cache.pool, bytes);
    copy_16_async(&stage.values[r][c], bytes ? value + c : p.cache.pool, bytes);
  }
}

/* --- one tile --------------------------------------------------------------------------------- */

/* Queries as the product's rows, heads beyond the group zero. */
template <int d>
static __device__ __forceinline__ void load_queries(uint32_t (&a)[d / 16][4], const Decode &p,
                                                    const Piece &piece, int lane) {
  const KvBf16 *q = p.q + piece.sequence * p.row_stride + (uint64_t)piece.first_head * d;
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t head = lane / 4 + i % 2 * 8, column = k * 16 + i / 2 * 8 + lane % 4 * 2;
      a[k][i] = head < piece.heads ? *(const uint32_t *)(q + head * d + column) : 0;
    }
}

/* s[2][4]: scores of one tile, columns 8 n + ... */
template <int d>
static __device__ __forceinline__ void score_tile(float (&s)[2][4], const Stage<d> &stage,
                                                  const uint32_t (&q)[d / 16][4], int lane) {
#pragma unroll
  for (int k = 0; k < d / 16; k++) {
    uint32_t b[4];
    load_tiles(b, &stage.keys[lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
    mma_bf16(s[0], q[k], b[0], b[1]);
    mma_bf16(s[1], q[k], b[2], b[3]);
  }
}

/* Scale, mask and exponentiate the scores of the tile at t, and bring `run` to the new maximum. */
template <int d>
static __device__ __forceinline__ void soften(float (&s)[2][4], RunningRows<d> &run,
                                              const Stage<d> &stage, const Decode &p,
                                              const Piece &piece, uint32_t t, int lane) {
  float largest[2] = {run.largest[0], run.largest[1]};
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t column = n * 8 + lane % 4 * 2 + i % 2;
      s[n][i] = t + column < piece.end ? s[n][i] * p.scale * stage.factors[0][column] : -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
    }
  largest[0] = row_max(largest[0]);
  largest[1] = row_max(largest[1]);
  float shrink[2] = {power_of_2(run.largest[0] - largest[0]),
                     power_of_2(run.largest[1] - largest[1])};
  if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f))
#pragma unroll
    for (int n = 0; n < d / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        run.o[n][i] *= shrink[i / 2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    run.sum[r] *= shrink[r];
    run.largest[r] = largest[r];
  }
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s[n][i] = power_of_2(s[n][i] - largest[i / 2]);
      run.sum[i / 2] += s[n][i]; /* of this lane's columns; the lanes are added at the end */
      s[n][i] *= stage.factors[1][n * 8 + lane % 4 * 2 + i % 2];
    }
}

/* o += weights . values. */
template <int d>
static __device__ __forceinline__ void mix_tile(RunningRows<d> &run, const float (&s)[2][4],
                                                const Stage<d> &stage, int lane) {
  const uint32_t a[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                         pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
#pragma unroll
  for (int n = 0; n < d / 16; n++) {
    uint32_t b[4];
    load_tiles_transposed(b, &stage.values[lane % 16][n * 16 + lane / 16 * 8]);
    mma_bf16(run.o[2 * n], a, b[0], b[1]);
    mma_bf16(run.o[2 * n + 1], a, b[2], b[3]);
  }
}

/* All tiles of this warp. */
template <int d>
static __device__ __forceinline__ void run_tiles(RunningRows<d> &run, Stage<d> *ring,
                                                 const Decode &p, const Piece &piece, int warp,
                                                 int lane) {
  const uint32_t stride = WARPS * TILE;
  uint32_t queries[d / 16][4], loaded = piece.begin + warp * TILE; /* the next tile to load */
  Lookup next = look_up(p, piece, loaded, block_at(p, piece, loaded, lane), lane);
  uint32_t block = block_at(p, piece, loaded + stride, lane); /* of the one after */
  auto load_next = [&](int stage) {
    if (loaded < piece.end) {
      load_tile<d>(ring[stage], p, piece, loaded, next, lane);
      loaded += stride;
      next = look_up(p, piece, loaded, block, lane);
      block = block_at(p, piece, loaded + stride, lane);
    }
    copies_commit();
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++)
    load_next(s);
  load_queries<d>(queries, p, piece, lane);
  int stage = 0;
  for (uint32_t t = piece.begin + warp * TILE; t < piece.end; t += stride) {
    load_next((stage + STAGES - 1) % STAGES);
    copies_wait<STAGES - 1>();
    __syncwarp();
    float s[2][4] = {};
    score_tile<d>(s, ring[stage], queries, lane);
    soften<d>(s, run, ring[stage], p, piece, t, lane);
    mix_tile<d>(run, s, ring[stage], lane);
    __syncwarp(); /* the tile may be overwritten */
    stage = (stage + 1) % STAGES;
  }
  copies_wait<0>();
}

/* grid (splits, Hkv * groups of HEADS query heads, S) */
template <int d>
static __global__ void __launch_bounds__(WARPS * 32) decode_merged(const Decode p) {
  extern __shared__ __align__(16) char shared[];
  Piece piece;
  if (!piece_of_block(p, piece)) {
    if (piece.splits == 0 && piece.split == 0) /* an empty context */
      store_nothing(p.out, p.pieces, piece, d);
    return;
  }
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  RunningRows<d> run;
  start<d>(run);
  run_tiles<d>(run, (Stage<d> *)shared + warp * STAGES, p, piece, warp, lane);
  __syncthreads(); /* the rings become the hand-over */
  auto &merge = *(Merge<d, WARPS, HEADS> *)shared;
  hand_over(merge, run, warp, lane);
  __syncthreads();
  merge_warps<1>(p.out, merge, p.pieces, piece, Finished());
  if (piece.splits > 1 && is_last(p.pieces, piece))
    merge_pieces<1, WARPS * 32>(p.out, p.pieces, piece, d, Finished());
}

template <int d> static cudaError_t launch(const Decode &p, dim3 grid, cudaStream_t stream) {
  const int bytes = sizeof(Stage<d>) * WARPS * STAGES;
  static_assert(sizeof(Stage<d>) * WARPS * STAGES >= sizeof(Merge<d, WARPS, HEADS>),
                "the hand-over fits");
  static_assert(sizeof(Stage<d>) % 16 == 0, "rows are aligned");
  static bool ready; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status =
        cudaFuncSetAttribute(decode_merged<d>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  decode_merged<d><<<grid, WARPS * 32, bytes, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t kv_cuda_decode_attention_merged(
    KvBf16 *out, const KvBf16 *q, uint64_t row_stride, const KvCudaMerged *merged, uint32_t layer,
    const KvCudaTables *tables, const KvCudaKept *kept, const KvBf16 *staged,
    const uint32_t *contexts, uint32_t sequences, uint32_t n_heads, const uint32_t *split_tokens,
    uint32_t max_splits, uint32_t *counters, void *scratch, cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  Decode p = {};
  p.out = out;
  p.q = q;
  p.row_stride = row_stride;
  p.cache = *merged;
  p.layer = layer;
  p.tables = *tables;
  p.kept = kept;
  p.staged = staged;
  p.contexts = contexts;
  p.split_tokens = split_tokens;
  p.group = n_heads / merged->n_kv_heads;
  p.scale = 1.4426950408889634f / sqrtf((float)merged->head_dim);
  p.pieces = pieces_in(scratch, counters, sequences, n_heads, max_splits);
  dim3 grid(max_splits, merged->n_kv_heads * ((p.group + HEADS - 1) / HEADS), sequences);
  return for_head_dim(merged->head_dim, [&](auto d) { return launch<d.value>(p, grid, stream); });
}
