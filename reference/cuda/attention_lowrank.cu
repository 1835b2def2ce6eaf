/* Low-rank keys and values (palu): latents are stored, keys are rebuilt where they are read.
 *
 * A block of WARPS warps takes a group of KV heads, or as many of it as have HEADS query heads
 * together, and a piece of the context, TILE tokens at a time; both latents of the next tile are on
 * their way into shared memory meanwhile. Of a tile:
 * - Each warp rebuilds 8 dimensions of the first half of the keys and their rotary partners, of all
 *   tokens and up to `joint` KV heads: the product latent . V^T, its bias, and the rotation stay in
 *   registers, whose layout as a result is that of an operand of the product with the queries. The
 *   rows of queries of other KV heads are zero there. So each warp has a part of every score.
 * - Two rows of queries a warp: the parts are added, the running softmax goes on.
 * - Each warp mixes the values' latents of its own columns.
 * The bases stay in shared memory where there is room for them, else they are read from the L2
 * cache. Pieces merge as in attention_decode.cu. Twins: kv_host_low_rank_keys(),
 * kv_host_low_rank_attention().
 */
#include "reference/cuda/low_rank.h"
#include "reference/cuda/merge.cuh"

enum { WARPS = 8, TILE = 32, HEADS = 16, STAGES = 2, THREADS = WARPS * 32 };
enum { SCORES = TILE + 8 }; /* a row of scores or weights in shared memory */
static_assert(KV_CUDA_SPLIT_UNIT % TILE == 0, "a piece is whole tiles");

/* --- what decode attention and rebuilding have in common -------------------------------------- */

static __host__ __device__ __forceinline__ uint32_t row_elements(uint32_t rank) {
  return rank + 8; /* the eight rows of a tile lie in different banks */
}

uint64_t kv_cuda_low_rank_arrange(uint32_t d, uint32_t n_ranks, uint32_t head, uint32_t rank,
                                  uint32_t c) {
  uint32_t half = c / (d / 2), pair = c % (d / 2) / 8, step = rank / 16;
  uint32_t lane = c % 8 * 4 + rank % 8 / 2, element = half * 4 + rank % 16 / 8 * 2 + rank % 2;
  return ((((uint64_t)head * (d / 16) + pair) * (n_ranks / 16) + step) * 32 + lane) * 8 + element;
}

/* What a warp rebuilds: of `joint` heads, 32 tokens as two tiles of 16, 8 dimensions of the first
 * half and their partners in the second. */
template <int joint> struct Rebuilt { float c[joint][2][2][4]; };

/* The bias of dimensions 8 pair + 2t, + 1 and of their partners, of head `head` and following. */
template <int joint>
static __device__ __forceinline__ void start(Rebuilt<joint> &x, const KvBf16 *bias, uint32_t d,
                                             uint32_t head, uint32_t heads, uint32_t pair,
                                             int lane) {
#pragma unroll
  for (int j = 0; j < joint; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t two = 0;
      if (bias && (uint32_t)j < heads)
        two = *(const uint32_t *)(bias + (uint64_t)(head + j) * d + half * (d / 2) + pair * 8 +
                                  lane % 4 * 2);
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          x.c[j][m][half][i] = i % 2 ? high_float(two) : low_float(two);
    }
}

/* x += latents[TILE][rank] . basis of `heads` heads from where `basis` points; head_stride: from
 * one head's part of that pair to the next's. */
template <int joint>
static __device__ __forceinline__ void rebuild(Rebuilt<joint> &x, const KvBf16 *latents,
                                               uint32_t rank, const KvBf16 *basis,
                                               uint32_t head_stride, uint32_t heads, int lane) {
  const KvBf16 *row = latents + lane % 16 * row_elements(rank) + lane / 16 * 8;
  const KvBf16 *columns = basis + lane * 8;
  for (uint32_t k = 0; k < rank / 16; k++) {
    uint32_t a[2][4];
    load_tiles(a[0], row + k * 16);
    load_tiles(a[1], row + 16 * row_elements(rank) + k * 16);
#pragma unroll
    for (int j = 0; j < joint; j++)
      if ((uint32_t)j < heads) {
        uint4 b = *(const uint4 *)(columns + j * head_stride + k * 256);
#pragma unroll
        for (int m = 0; m < 2; m++) {
          mma_bf16(x.c[j][m][0], a[m], b.x, b.y);
          mma_bf16(x.c[j][m][1], a[m], b.z, b.w);
        }
      }
  }
}

/* Cosine and sine of the dimensions 2t and 2t + 1 of a pair, of tokens g, g + 8, g + 16, g + 24. */
struct Turn {
  float4 at[4];
};

/* Angles at `angles`[d / 2] of positions position[0] ... position[3]. */
static __device__ __forceinline__ void load_turn(Turn &turn, const float2 *angles, uint32_t d,
                                                 uint32_t pair, const uint32_t (&position)[4],
                                                 int lane) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    turn.at[i] = angles ? __ldg((const float4 *)(angles + (uint64_t)position[i] * (d / 2) +
                                                 pair * 8 + lane % 4 * 2))
                        : make_float4(1.0f, 0.0f, 1.0f, 0.0f);
}

/* Tokens g + 8 row of x: elements 2 (row % 2) and the next of tile row / 2. */
template <int joint>
static __device__ __forceinline__ void turn_row(Rebuilt<joint> &x, const Turn &turn, int j,
                                                int row) {
  float *low = &x.c[j][row / 2][0][row % 2 * 2], *high = &x.c[j][row / 2][1][row % 2 * 2];
  float4 by = turn.at[row];
  float first = low[0] * by.x - high[0] * by.y, second = low[1] * by.z - high[1] * by.w;
  high[0] = high[0] * by.x + low[0] * by.y;
  high[1] = high[1] * by.z + low[1] * by.w;
  low[0] = first;
  low[1] = second;
}

/* --- decode attention ------------------------------------------------------------------------- */

struct Decode {
  KvBf16 *out;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaLowRank cache;
  KvCudaTables tables;
  const uint32_t *contexts, *split_tokens;
  const float2 *angles;
  uint32_t group;       /* query heads of a KV head */
  uint32_t joint_heads; /* KV heads of a block */
  uint32_t parts;       /* blocks of a group */
  bool basis_is_shared;
  float scale;
  Pieces pieces; /* of value_rank columns */
};

/* A block's part of the work: query heads first_head ... of KV heads first_kv ... */
struct Piece : Place {
  uint32_t cache_group, first_kv, kv_heads, begin, end;
  const uint32_t *table;
};

/* Where things stand in a block's shared memory, in bytes. */
struct Layout {
  uint32_t basis, values, queries, weights, scores, rows, bytes; /* values: of a stage */
  uint32_t latents, stage;
};

static __host__ __device__ __forceinline__ Layout layout_of(const KvCudaLowRank &c,
                                                            uint32_t basis_heads) {
  Layout y;
  y.basis = 0;
  y.latents = basis_heads * c.key_rank * c.head_dim * 2;
  y.values = TILE * row_elements(c.key_rank) * 2;
  y.stage = y.values + TILE * row_elements(c.value_rank) * 2;
  y.queries = y.latents + STAGES * y.stage;
  y.weights = y.queries + HEADS * (c.head_dim + 8) * 2;
  y.scores = y.weights + HEADS * SCORES * 2;
  y.rows = y.scores + WARPS * HEADS * SCORES * 4;
  y.bytes = y.rows + 3 * HEADS * 4;
  return y;
}

/* FALSE if there is nothing to do. */
static __device__ bool piece_of_block(const Decode &p, Piece &piece) {
  const KvCudaLowRank &c = p.cache;
  uint32_t part = blockIdx.y % p.parts, split_tokens = *p.split_tokens;
  uint32_t per_head = (p.group + HEADS - 1) / HEADS; /* blocks of a KV head with many queries */
  piece.sequence = blockIdx.z;
  piece.split = blockIdx.x;
  piece.cache_group = blockIdx.y / p.parts;
  piece.first_kv = piece.cache_group * c.heads + part / per_head * p.joint_heads;
  piece.kv_heads = min(p.joint_heads, (piece.cache_group + 1) * c.heads - piece.first_kv);
  piece.first_head = piece.first_kv * p.group + part % per_head * HEADS;
  piece.heads = min(piece.kv_heads * p.group - part % per_head * HEADS, (uint32_t)HEADS);
  uint32_t context = p.contexts[piece.sequence];
  piece.table = p.tables.table + p.tables.table_starts[piece.sequence];
  piece.splits = (context + split_tokens - 1) / split_tokens;
  piece.begin = piece.split * split_tokens;
  piece.end = min(context, piece.begin + split_tokens);
  return piece.split < piece.splits;
}

/* Begin to load the tile at token t. A warp has rows warp + WARPS * (0 .. 3), whose blocks its
 * lanes 0 .. 3 know. Tokens outside the piece become zeros: what stands there may be NaN. */
static __device__ __forceinline__ void load_tile(char *stage, const Layout &y, const Decode &p,
                                                 const Piece &piece, uint32_t t, uint32_t block,
                                                 int warp, int lane) {
  const KvCudaLowRank &c = p.cache;
  uint32_t mask = (1u << c.block_shift) - 1, keys = c.key_rank / 8, all = keys + c.value_rank / 8;
#pragma unroll
  for (int i = 0; i < TILE / WARPS; i++) {
    uint32_t row = warp + WARPS * i, token = t + row;
    uint64_t at = __shfl_sync(0xffffffffu, block, i) * c.block_elements;
    uint64_t slot = ((uint64_t)piece.cache_group << c.block_shift) + (token & mask);
    int bytes = token < piece.end ? 16 : 0;
    const KvBf16 *key = c.pool + (bytes ? at + slot * c.key_rank : 0);
    const KvBf16 *value = c.pool + (bytes ? at + c.value_offset + slot * c.value_rank : 0);
    KvBf16 *to_key = (KvBf16 *)stage + row * row_elements(c.key_rank);
    KvBf16 *to_value = (KvBf16 *)(stage + y.values) + row * row_elements(c.value_rank);
    for (uint32_t k = lane; k < all; k += 32)
      if (k < keys)
        copy_16_async(to_key + k * 8, bytes ? key + k * 8 : key, bytes);
      else
        copy_16_async(to_value + (k - keys) * 8, bytes ? value + (k - keys) * 8 : value, bytes);
  }
}

static __device__ __forceinline__ uint32_t block_of_lane(const Decode &p, const Piece &piece,
                                                         uint32_t t, int warp, int lane) {
  uint32_t token = t + warp + WARPS * (lane % (TILE / WARPS));
  return token < piece.end ? piece.table[token >> p.cache.block_shift] : 0;
}

/* Queries [HEADS][d], rows beyond the piece's heads zero; the bases of its KV heads. */
static __device__ void load_constants(char *shared, const Layout &y, const Decode &p,
                                      const Piece &piece) {
  const uint32_t d = p.cache.head_dim, chunks = d / 8;
  const KvBf16 *q = p.q + piece.sequence * p.row_stride + (uint64_t)piece.first_head * d;
  KvBf16 *queries = (KvBf16 *)(shared + y.queries);
  for (uint32_t i = threadIdx.x; i < HEADS * chunks; i += THREADS) {
    uint32_t row = i / chunks, c = i % chunks * 8;
    bool there = row < piece.heads;
    copy_16_async(queries + row * (d + 8) + c, there ? q + row * d + c : q, there ? 16 : 0);
  }
  if (!p.basis_is_shared)
    return;
  const uint32_t head = p.cache.key_rank * d / 8; /* 16-byte pieces */
  const KvBf16 *basis = p.cache.key_basis + (uint64_t)piece.first_kv * head * 8;
  for (uint32_t i = threadIdx.x; i < piece.kv_heads * head; i += THREADS)
    copy_16_async((KvBf16 *)(shared + y.basis) + (uint64_t)i * 8, basis + (uint64_t)i * 8, 16);
}

/* The two rows of queries g and g + 8, dimensions of one pair, where they are of KV head `kv`. */
static __device__ __forceinline__ void mask_queries(uint32_t (&a)[4], const uint32_t (&q)[4],
                                                    const uint32_t (&kv_of)[2], uint32_t kv) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    a[i] = kv_of[i % 2] == kv ? q[i] : 0;
}

/* This warp's parts of the scores of the tile at t: s[4][4], columns 8 n + ... */
template <int joint>
static __device__ __forceinline__ void
score_tile(float (&s)[4][4], const char *shared, const Layout &y, const char *stage,
           const Decode &p, const Piece &piece, uint32_t t, int warp, int lane) {
  const KvCudaLowRank &c = p.cache;
  const uint32_t d = c.head_dim, pairs = d / 16, head_elements = c.key_rank * d;
  const uint32_t items = pairs * ((piece.kv_heads + joint - 1) / joint);
  const KvBf16 *bases = p.basis_is_shared ? (const KvBf16 *)(shared + y.basis)
                                          : c.key_basis + (uint64_t)piece.first_kv * head_elements;
  const KvBf16 *queries = (const KvBf16 *)(shared + y.queries);
  const uint32_t row = lane / 4;
  const uint32_t first_query = piece.first_head - piece.first_kv * p.group;
  const uint32_t kv_of[2] = {(first_query + row) / p.group, (first_query + row + 8) / p.group};
  uint32_t position[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    position[i] = min(t + row + 8 * i, piece.end - 1); /* there is an angle for it */
  for (uint32_t item = warp; item < items; item += WARPS) {
    uint32_t pair = item % pairs, kv = item / pairs * joint;
    uint32_t heads = min((uint32_t)joint, piece.kv_heads - kv);
    Rebuilt<joint> x;
    Turn turn;
    load_turn(turn, p.angles, d, pair, position, lane);
    start(x, c.key_bias, d, piece.first_kv + kv, heads, pair, lane);
    rebuild(x, (const KvBf16 *)stage, c.key_rank,
            bases + (uint64_t)kv * head_elements + (uint64_t)pair * c.key_rank * 16, head_elements,
            heads, lane);
    const KvBf16 *at = queries + row * (d + 8) + pair * 8 + lane % 4 * 2;
    const uint32_t q[4] = {*(const uint32_t *)at, *(const uint32_t *)(at + 8 * (d + 8)),
                           *(const uint32_t *)(at + d / 2),
                           *(const uint32_t *)(at + 8 * (d + 8) + d / 2)};
#pragma unroll
    for (int j = 0; j < joint; j++)
      if ((uint32_t)j < heads) {
        uint32_t a[4];
        mask_queries(a, q, kv_of, kv + j);
#pragma unroll
        for (int i = 0; i < 4; i++) { /* tokens 8 i ... */
          turn_row(x, turn, j, i);
          const float *low = &x.c[j][i / 2][0][i % 2 * 2], *high = &x.c[j][i / 2][1][i % 2 * 2];
          mma_bf16(s[i], a, pack_bf16(low[0], low[1]), pack_bf16(high[0], high[1]));
        }
      }
  }
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

/* The running softmax of two rows of queries a warp. */
struct Running {
  float largest[HEADS / WARPS], sum[HEADS / WARPS];
};

/* Add the warps' parts of the scores; weights and what earlier ones shrink by go to shared memory.
 * A lane is a token. */
static __device__ __forceinline__ void soften(Running &run, char *shared, const Layout &y,
                                              const Decode &p, const Piece &piece, uint32_t t,
                                              uint32_t parts, int warp, int lane) {
  const float *scores = (const float *)(shared + y.scores);
  KvBf16 *weights = (KvBf16 *)(shared + y.weights);
  float *shrink = (float *)(shared + y.rows);
#pragma unroll
  for (int i = 0; i < HEADS / WARPS; i++) {
    uint32_t row = warp * (HEADS / WARPS) + i;
    float score = 0.0f;
    for (uint32_t w = 0; w < parts; w++)
      score += scores[(w * HEADS + row) * SCORES + lane];
    score = t + lane < piece.end ? score * p.scale : -INFINITY;
    float largest = fmaxf(run.largest[i], warp_max(score)); /* finite: the tile has a token */
    float weight = power_of_2(score - largest), less = power_of_2(run.largest[i] - largest);
    weights[row * SCORES + lane] = to_bf16(weight);
    run.sum[i] = run.sum[i] * less + warp_sum(weight);
    run.largest[i] = largest;
    if (lane == 0)
      shrink[row] = less;
  }
}

/* o += weights . values' latents, in 16 columns `pair`, pair + WARPS, ... of them. */
template <int most>
static __device__ __forceinline__ void mix_tile(float (&o)[most][2][4], const char *shared,
                                                const Layout &y, const char *stage, uint32_t rank,
                                                int warp, int lane) {
  const KvBf16 *weights = (const KvBf16 *)(shared + y.weights);
  const float *shrink = (const float *)(shared + y.rows);
  const KvBf16 *values = (const KvBf16 *)(stage + y.values);
  const float less[2] = {shrink[lane / 4], shrink[lane / 4 + 8]};
  uint32_t a[TILE / 16][4];
#pragma unroll
  for (int k = 0; k < TILE / 16; k++)
    load_tiles(a[k], weights + lane % 16 * SCORES + k * 16 + lane / 16 * 8);
#pragma unroll
  for (int n = 0; n < most; n++) {
    uint32_t pair = warp + n * WARPS;
    if (pair >= rank / 16)
      break;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        o[n][half][i] *= less[i / 2];
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
      uint32_t b[4];
      load_tiles_transposed(b, values + (k * 16 + lane % 16) * row_elements(rank) + pair * 16 +
                                   lane / 16 * 8);
      mma_bf16(o[n][0], a[k], b[0], b[1]);
      mma_bf16(o[n][1], a[k], b[2], b[3]);
    }
  }
}

/* The result, if the context is in one piece, or this piece's share of it. */
template <int most>
static __device__ __forceinline__ void store_piece(const float (&o)[most][2][4], const char *shared,
                                                   const Layout &y, const Decode &p,
                                                   const Piece &piece, int warp, int lane) {
  const uint32_t rank = p.cache.value_rank;
  const float *largest = (const float *)(shared + y.rows) + HEADS, *sum = largest + HEADS;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    uint32_t row = lane / 4 + 8 * r;
    if (row >= piece.heads)
      continue;
    uint64_t head = head_of(p.pieces, piece, row);
    uint64_t slot = head * p.pieces.most + piece.split;
    float factor = 1.0f / sum[row];
#pragma unroll
    for (int n = 0; n < most; n++) {
      uint32_t pair = warp + n * WARPS;
      if (pair >= rank / 16)
        break;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t column = pair * 16 + half * 8 + lane % 4 * 2;
        float x = o[n][half][2 * r], z = o[n][half][2 * r + 1];
        if (piece.splits == 1)
          *(uint32_t *)(p.out + head * rank + column) = pack_bf16(x * factor, z * factor);
        else
          __stcg((float2 *)&p.pieces.outputs[slot * rank + column], make_float2(x, z));
      }
    }
    if (piece.splits > 1 && warp == 0 && lane % 4 == 0)
      __stcg(&p.pieces.sums[slot], make_float2(largest[row], sum[row]));
  }
}

/* All tiles of the piece; leaves each row's largest score and sum in shared memory. */
template <int joint, int most>
static __device__ __forceinline__ void run_tiles(float (&o)[most][2][4], char *shared,
                                                 const Layout &y, const Decode &p,
                                                 const Piece &piece, int warp, int lane) {
  char *stages = shared + y.latents;
  const uint32_t items = p.cache.head_dim / 16 * ((piece.kv_heads + joint - 1) / joint);
  const uint32_t parts = min(items, (uint32_t)WARPS);
  Running run;
#pragma unroll
  for (int i = 0; i < HEADS / WARPS; i++) {
    run.largest[i] = -INFINITY;
    run.sum[i] = 0.0f;
  }
  load_constants(shared, y, p, piece);
  uint32_t block = block_of_lane(p, piece, piece.begin, warp, lane), stage = 0;
  load_tile(stages, y, p, piece, piece.begin, block, warp, lane);
  copies_commit();
  block = block_of_lane(p, piece, piece.begin + TILE, warp, lane);
  for (uint32_t t = piece.begin; t < piece.end; t += TILE, stage ^= 1) {
    const char *now = stages + stage * y.stage;
    copies_wait<0>();
    __syncthreads(); /* the tile is there, and nobody reads the other one any more */
    if (t + TILE < piece.end) {
      load_tile(stages + (stage ^ 1) * y.stage, y, p, piece, t + TILE, block, warp, lane);
      copies_commit();
      block = block_of_lane(p, piece, t + 2 * TILE, warp, lane);
    }
    if ((uint32_t)warp < parts) {
      float s[4][4] = {};
      score_tile<joint>(s, shared, y, now, p, piece, t, warp, lane);
      float *scores = (float *)(shared + y.scores) + warp * HEADS * SCORES + lane / 4 * SCORES;
#pragma unroll
      for (int n = 0; n < 4; n++) {
        *(float2 *)&scores[n * 8 + lane % 4 * 2] = make_float2(s[n][0], s[n][1]);
        *(float2 *)&scores[8 * SCORES + n * 8 + lane % 4 * 2] = make_float2(s[n][2], s[n][3]);
      }
    }
    __syncthreads();
    soften(run, shared, y, p, piece, t, parts, warp, lane);
    __syncthreads();
    mix_tile<most>(o, shared, y, now, p.cache.value_rank, warp, lane);
  }
  float *rows = (float *)(shared + y.rows) + HEADS + warp * (HEADS / WARPS);
  if (lane < HEADS / WARPS) {
    rows[lane] = lane ? run.largest[1] : run.largest[0];
    rows[HEADS + lane] = lane ? run.sum[1] : run.sum[0];
  }
  __syncthreads();
}

/* grid (splits, groups * parts, S) */
template <int joint, int most>
static __global__ void __launch_bounds__(THREADS, 1) decode_low_rank(const Decode p) {
  static_assert(HEADS / WARPS == 2, "a warp has two rows of queries");
  extern __shared__ __align__(16) char shared[];
  const Layout y = layout_of(p.cache, p.basis_is_shared ? p.joint_heads : 0);
  const uint32_t rank = p.cache.value_rank;
  Piece piece;
  if (!piece_of_block(p, piece)) {
    if (piece.splits == 0 && piece.split == 0) /* an empty context */
      store_nothing(p.out, p.pieces, piece, rank);
    return;
  }
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float o[most][2][4] = {};
  run_tiles<joint, most>(o, shared, y, p, piece, warp, lane);
  store_piece<most>(o, shared, y, p, piece, warp, lane);
  if (piece.splits > 1 && is_last(p.pieces, piece))
    merge_pieces<2, THREADS>(p.out, p.pieces, piece, rank, Finished());
}

/* KV heads of a block, and blocks of a group. */
static uint32_t joint_heads(const KvCudaLowRank &c, uint32_t group) {
  uint32_t joint = group >= HEADS ? 1 : HEADS / group;
  return joint < c.heads ? joint : c.heads;
}

static uint32_t parts_of(const KvCudaLowRank &c, uint32_t group) {
  uint32_t joint = joint_heads(c, group);
  return (c.heads + joint - 1) / joint * ((group + HEADS - 1) / HEADS);
}

uint32_t kv_cuda_low_rank_parts(const KvCudaLowRank *c, uint32_t n_heads) {
  return c->groups * parts_of(*c, n_heads / (c->groups * c->heads));
}

uint64_t kv_cuda_low_rank_shared_bytes(const KvCudaLowRank *c) {
  return layout_of(*c, 0).bytes;
}

template <int joint, int most>
static cudaError_t launch(const Decode &p, dim3 grid, uint32_t bytes, cudaStream_t stream) {
  static bool ready; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status = cudaFuncSetAttribute(decode_low_rank<joint, most>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              KV_CUDA_LOW_RANK_SHARED - 1024);
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  decode_low_rank<joint, most><<<grid, THREADS, bytes, stream>>>(p);
  return cudaGetLastError();
}

template <int joint>
static cudaError_t launch_joint(const Decode &p, dim3 grid, uint32_t bytes, cudaStream_t stream) {
  return p.cache.value_rank <= 32 * 16 ? launch<joint, 4>(p, grid, bytes, stream)
                                       : launch<joint, 8>(p, grid, bytes, stream);
}

cudaError_t kv_cuda_decode_attention_low_rank(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                              const KvCudaLowRank *cache,
                                              const KvCudaTables *tables, const uint32_t *contexts,
                                              const float2 *angles, uint32_t sequences,
                                              uint32_t n_heads, const uint32_t *split_tokens,
                                              uint32_t max_splits, uint32_t *counters,
                                              void *scratch, cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  Decode p = {};
  p.cache = *cache;
  p.group = n_heads / (cache->groups * cache->heads);
  if (cache->head_dim % 16 || cache->key_rank % 16 || cache->value_rank % 16 ||
      cache->value_rank > KV_CUDA_LOW_RANK_MAX ||
      kv_cuda_low_rank_shared_bytes(cache) > KV_CUDA_LOW_RANK_SHARED - 1024)
    return cudaErrorInvalidValue;
  p.out = out;
  p.q = q;
  p.row_stride = row_stride;
  p.tables = *tables;
  p.contexts = contexts;
  p.split_tokens = split_tokens;
  p.angles = angles;
  p.joint_heads = joint_heads(*cache, p.group);
  p.parts = parts_of(*cache, p.group);
  p.basis_is_shared = layout_of(*cache, p.joint_heads).bytes <= KV_CUDA_LOW_RANK_SHARED - 1024;
  p.scale = 1.4426950408889634f / sqrtf((float)cache->head_dim);
  p.pieces = pieces_in(scratch, counters, sequences, n_heads, max_splits);
  const uint32_t bytes = layout_of(*cache, p.basis_is_shared ? p.joint_heads : 0).bytes;
  const uint32_t pairs = cache->head_dim / 16;
  dim3 grid(max_splits, cache->groups * p.parts, sequences);
  /* As many heads at once as leave work for every warp: latents are loaded once for all of them. */
  if (pairs * ((p.joint_heads + 3) / 4) >= WARPS)
    return launch_joint<4>(p, grid, bytes, stream);
  if (pairs * ((p.joint_heads + 1) / 2) >= WARPS)
    return launch_joint<2>(p, grid, bytes, stream);
  return launch_joint<1>(p, grid, bytes, stream);
}

/* --- rebuilding for prompts ------------------------------------------------------------------- */

enum { JOINT = 4 };

struct Rebuild {
  KvCudaPages pages;
  KvCudaLowRank cache;
  const uint32_t *from, *positions;
  const float2 *angles;
  uint32_t slots; /* of all blocks */
};

/* TILE slots of the target's blocks, one group. grid (slots / TILE, groups, keys and values) */
static __global__ void __launch_bounds__(THREADS) rebuild_blocks(const Rebuild p) {
  extern __shared__ __align__(16) char shared[];
  const KvCudaLowRank &c = p.cache;
  const bool keys = blockIdx.z == 0;
  const uint32_t d = c.head_dim, pairs = d / 16, rank = keys ? c.key_rank : c.value_rank;
  const uint32_t mask = (1u << c.block_shift) - 1, first = blockIdx.x * TILE, group = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  KvBf16 *latents = (KvBf16 *)shared;
  for (uint32_t i = threadIdx.x; i < TILE * (rank / 8); i += THREADS) {
    uint32_t row = i / (rank / 8), k = i % (rank / 8) * 8, slot = first + row;
    bool there = slot < p.slots;
    const KvBf16 *latent = c.pool;
    if (there)
      latent += p.from[slot >> c.block_shift] * c.block_elements + (keys ? 0 : c.value_offset) +
                (((uint64_t)group << c.block_shift) + (slot & mask)) * rank + k;
    copy_16_async(latents + row * row_elements(rank) + k, latent, there ? 16 : 0);
  }
  copies_wait_all();
  __syncthreads();
  const KvBf16 *bases = (keys ? c.key_basis : c.value_basis) + (uint64_t)group * c.heads * rank * d;
  for (uint32_t item = warp; item < pairs * ((c.heads + JOINT - 1) / JOINT); item += WARPS) {
    uint32_t pair = item % pairs, head = item / pairs * JOINT, position[4];
    uint32_t heads = min((uint32_t)JOINT, c.heads - head), kv = group * c.heads + head;
    Rebuilt<JOINT> x;
    Turn turn;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t slot = min(first + lane / 4 + 8 * i, p.slots - 1);
      position[i] = p.positions[slot >> c.block_shift] + (slot & mask);
    }
    load_turn(turn, keys ? p.angles : nullptr, d, pair, position, lane);
    start(x, keys ? c.key_bias : c.value_bias, d, kv, heads, pair, lane);
    rebuild(x, latents, rank, bases + ((uint64_t)head * pairs + pair) * rank * 16, rank * d, heads,
            lane);
#pragma unroll
    for (int j = 0; j < JOINT; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32_t slot = first + lane / 4 + 8 * i;
        if ((uint32_t)j >= heads || slot >= p.slots)
          continue;
        turn_row(x, turn, j, i);
        const float *low = &x.c[j][i / 2][0][i % 2 * 2], *high = &x.c[j][i / 2][1][i % 2 * 2];
        KvBf16 *to = p.pages.pool + (slot >> c.block_shift) * p.pages.block_elements +
                     (keys ? 0 : p.pages.value_offset) +
                     (((uint64_t)(kv + j) << c.block_shift) + (slot & mask)) * d + pair * 8 +
                     lane % 4 * 2;
        *(uint32_t *)to = pack_bf16(low[0], low[1]);
        *(uint32_t *)(to + d / 2) = pack_bf16(high[0], high[1]);
      }
  }
}

cudaError_t kv_cuda_low_rank_rebuild(const KvCudaPages *pages, const KvCudaLowRank *cache,
                                     const uint32_t *from, const uint32_t *positions,
                                     const float2 *angles, uint32_t n, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  const uint32_t widest = cache->key_rank > cache->value_rank ? cache->key_rank : cache->value_rank;
  if (cache->head_dim % 16 || cache->key_rank % 16 || cache->value_rank % 16 ||
      widest > KV_CUDA_LOW_RANK_MAX)
    return cudaErrorInvalidValue;
  static bool ready; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status =
        cudaFuncSetAttribute(rebuild_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)(TILE * row_elements(KV_CUDA_LOW_RANK_MAX) * sizeof(KvBf16)));
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  Rebuild p = {};
  p.pages = *pages;
  p.cache = *cache;
  p.from = from;
  p.positions = positions;
  p.angles = angles;
  p.slots = n << cache->block_shift;
  rebuild_blocks<<<dim3((p.slots + TILE - 1) / TILE, cache->groups, 2), THREADS,
                   TILE * row_elements(widest) * sizeof(KvBf16), stream>>>(p);
  return cudaGetLastError();
}

/* --- storing ---------------------------------------------------------------------------------- */

/* A block a row. */
static __global__ void __launch_bounds__(THREADS)
    store_low_rank(KvBf16 *rows, const KvCudaLowRank c, const KvCudaTables tables,
                   const uint32_t *row_sequences, const uint32_t *slots, const uint32_t *positions,
                   const float2 *angles, uint32_t n_heads) {
  const uint32_t d = c.head_dim, half = d / 2, sequence = row_sequences[blockIdx.x];
  const uint32_t keys = c.groups * c.key_rank, latents = keys + c.groups * c.value_rank;
  if (sequence == UINT32_MAX)
    return;
  KvBf16 *row = rows + (uint64_t)blockIdx.x * (n_heads * d + latents);
  const uint32_t slot = slots[blockIdx.x], in_block = slot & ((1u << c.block_shift) - 1);
  KvBf16 *block = c.pool + tables.table[tables.table_starts[sequence] + (slot >> c.block_shift)] *
                               c.block_elements;
  for (uint32_t i = threadIdx.x; i < latents / 8; i += THREADS) {
    uint32_t e = i * 8, of_values = e >= keys, rank = of_values ? c.value_rank : c.key_rank;
    uint32_t group = (e - of_values * keys) / rank, at = (e - of_values * keys) % rank;
    KvBf16 *to = block + (of_values ? c.value_offset : 0) +
                 (((uint64_t)group << c.block_shift) + in_block) * rank + at;
    *(uint4 *)to = *(const uint4 *)(row + n_heads * d + e);
  }
  if (!angles)
    return;
  const float2 *turns = angles + (uint64_t)positions[blockIdx.x] * half;
  for (uint32_t i = threadIdx.x; i < n_heads * (half / 2); i += THREADS) {
    uint32_t at = i % (half / 2) * 2;
    uint32_t *low = (uint32_t *)(row + i / (half / 2) * d + at);
    uint32_t *high = (uint32_t *)(row + i / (half / 2) * d + half + at);
    float4 turn = *(const float4 *)(turns + at);
    float a = low_float(*low), b = high_float(*low), x = low_float(*high), z = high_float(*high);
    *low = pack_bf16(a * turn.x - x * turn.y, b * turn.z - z * turn.w);
    *high = pack_bf16(x * turn.x + a * turn.y, z * turn.z + b * turn.w);
  }
}

cudaError_t kv_cuda_low_rank_store(KvBf16 *rows, const KvCudaLowRank *cache,
                                   const KvCudaTables *tables, const uint32_t *row_sequences,
                                   const uint32_t *slots, const uint32_t *positions,
                                   const float2 *angles, uint32_t n_rows, uint32_t n_heads,
                                   cudaStream_t stream) {
  if (n_rows == 0)
    return cudaSuccess;
  store_low_rank<<<n_rows, THREADS, 0, stream>>>(rows, *cache, *tables, row_sequences, slots,
                                                 positions, angles, n_heads);
  return cudaGetLastError();
}
