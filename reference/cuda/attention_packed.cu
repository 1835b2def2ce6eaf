/* Decode attention over caches of 2, 4 and 8 bits: codes go from memory to registers as they are
 * stored, and become fp16 there, as operands of the tensor cores.
 *
 * A product's inner index and its columns may be permuted if both operands are. So a lane takes a
 * contiguous run of a token's key codes (d / 4 channels) and of its value codes (d / 8): lane l,
 * with g = l / 4 and t = l % 4, has channels t d/4 ... of the keys of tokens g, g + 8, ..., and
 * dimensions g d/8 ... of the values of tokens 2t, 2t + 1, 2t + 8, ... The next tile's codes are
 * under way while this one is computed. Otherwise as attention_decode.cu: a warp has every WARPS-th
 * tile of its piece of the context and a running softmax; warps merge, then pieces.
 *
 * kivi (KvCudaPacked): keys are packed up to a multiple of R, values up to the context less R, the
 * rest is in the ring. The tile in which the values' part ends is walked twice, with one side
 * masked each time. Twin: kv_host_attention() over pages packed by kv_host_kivi_group().
 */
#include "reference/cuda/mma.cuh"
#include "reference/cuda/packed.cuh"

enum { WARPS = 4, TILE = 32, HEADS = 16 };

struct Decode {
  KvBf16 *out;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaPacked cache;
  KvCudaTables tables;
  const uint32_t *slots, *contexts, *split_tokens;
  uint32_t n_heads, group, window, max_splits;
  float scale;
  uint32_t *counters;
  float2 *sums;
  float *partial;
};

/* A block's part of the work. Tiles 0 .. packed_tiles - 1 have packed values, those after them
 * values of the ring. */
struct Piece {
  uint32_t sequence, kv_head, first_head, heads, split, splits;
  uint32_t context, start;             /* tokens [start, context) are attended to */
  uint32_t packed_keys, packed_values; /* the first ones */
  uint32_t packed_tiles, begin, end;   /* tiles */
  const uint16_t *ring;
};

/* What a lane holds of a tile. */
template <int d, int bits> struct Raw {
  static const int key_words = d * bits / 128, value_words = d * bits >= 256 ? d * bits / 256 : 1;
  static const int scale_words = bits == 8 ? 1 : d / 8, n_value_scales = bits == 8 ? 1 : 8;
  uint32_t keys[TILE / 8][key_words], values[TILE / 4][value_words];
  uint32_t scales[scale_words], minima[scale_words], value_scales[n_value_scales];
};

/* A tile: its first token, and which of its tokens count. */
struct Tile {
  uint32_t token, low, high;
};

static __device__ __forceinline__ bool is_packed(const Piece &piece, uint32_t j) {
  return j < piece.packed_tiles;
}

static __device__ __forceinline__ Tile tile_at(const Piece &piece, uint32_t j) {
  Tile tile;
  if (is_packed(piece, j)) {
    tile.token = (piece.start / TILE + j) * TILE;
    tile.low = piece.start;
    tile.high = piece.packed_values;
  } else {
    tile.token = (piece.packed_values / TILE + j - piece.packed_tiles) * TILE;
    tile.low = max(piece.start, piece.packed_values);
    tile.high = piece.context;
  }
  return tile;
}

/* FALSE if there is nothing to do. */
static __device__ bool piece_of_block(const Decode &p, Piece &piece) {
  uint32_t before = blockIdx.y / p.cache.n_kv_heads * HEADS, tiles = 0;
  piece.sequence = blockIdx.z;
  piece.kv_head = blockIdx.y % p.cache.n_kv_heads;
  piece.first_head = piece.kv_head * p.group + before;
  piece.heads = min(p.group - before, (uint32_t)HEADS);
  piece.split = blockIdx.x;
  uint32_t n = piece.context = p.contexts[blockIdx.z], r = p.cache.residual;
  piece.start = p.window && p.window < n ? n - p.window : 0;
  piece.packed_keys = r ? n / r * r : n;
  piece.packed_values = r == 0 ? n : n > r ? n - r : 0;
  piece.packed_tiles = (piece.packed_values + TILE - 1) / TILE - piece.start / TILE;
  tiles = piece.packed_tiles;
  if (piece.packed_values < n)
    tiles += (n + TILE - 1) / TILE - piece.packed_values / TILE;
  piece.ring = r ? p.cache.ring + p.slots[blockIdx.z] * p.cache.ring_elements : NULL;
  uint32_t each = *p.split_tokens / TILE;
  piece.splits = min((tiles + each - 1) / each, p.max_splits);
  if (piece.split >= piece.splits)
    return false;
  piece.begin = piece.split * each;
  piece.end = piece.split + 1 == piece.splits ? tiles : piece.begin + each;
  return true;
}

/* --- loads ----------------------------------------------------------------------------------- */

template <int n> static __device__ __forceinline__ void load(uint32_t (&to)[n], const void *from) {
  if (n == 1) {
    to[0] = __ldg((const uint32_t *)from);
  } else if (n == 2) {
    uint2 x = __ldg((const uint2 *)from);
    to[0] = x.x;
    to[1 % n] = x.y;
  } else {
#pragma unroll
    for (int i = 0; i + 4 <= n; i += 4) {
      uint4 x = __ldg((const uint4 *)from + i / 4);
      to[i] = x.x;
      to[(i + 1) % n] = x.y;
      to[(i + 2) % n] = x.z;
      to[(i + 3) % n] = x.w;
    }
  }
}

template <int n> static __device__ __forceinline__ void clear(uint32_t (&to)[n]) {
#pragma unroll
  for (int i = 0; i < n; i++)
    to[i] = 0;
}

/* Tokens of the tile that a lane has values of: i of 8. */
static __device__ __forceinline__ uint32_t value_token(int i, int lane) {
  return i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2;
}

/* The block of the lane's token of the tile. */
static __device__ __forceinline__ uint32_t block_of_lane(const Decode &p, const Piece &piece,
                                                         uint32_t j, int lane) {
  if (j >= piece.end)
    return 0;
  uint32_t token = tile_at(piece, j).token + lane;
  const uint32_t *table = p.tables.table + p.tables.table_starts[piece.sequence];
  return token < piece.context ? __ldg(&table[token >> p.cache.block_shift]) : 0;
}

static __device__ __forceinline__ uint64_t row_of(const KvCudaPacked &c, uint32_t head,
                                                  uint32_t token) {
  return ((uint64_t)head << c.block_shift) + (token & ((1u << c.block_shift) - 1));
}

template <int d, int bits>
static __device__ __forceinline__ void load_keys(Raw<d, bits> &raw, const Decode &p,
                                                 const Piece &piece, const Tile &tile,
                                                 uint32_t block, int lane) {
  const KvCudaPacked &c = p.cache;
#pragma unroll
  for (int i = 0; i < TILE / 8; i++) {
    int r = i * 8 + lane / 4;
    const uint8_t *base = c.pool + __shfl_sync(0xffffffffu, block, r) * c.block_bytes;
    load(raw.keys[i], base + row_of(c, piece.kv_head, tile.token + r) * (d * bits / 8) +
                          lane % 4 * (d * bits / 32));
  }
  if (bits == 8)
    return;
  uint32_t first = __shfl_sync(0xffffffffu, block, 0);
  uint32_t mask = (1u << c.block_shift) - 1, groups = (1u << c.block_shift) / c.group;
  const uint16_t *scales =
      (const uint16_t *)(c.pool + first * c.block_bytes + c.key_scales) +
      ((uint64_t)piece.kv_head * groups + (tile.token & mask) / c.group) * 2 * d +
      lane % 4 * (d / 4);
  load(raw.scales, scales);
  load(raw.minima, scales + d);
}

/* What does not count becomes zero: there anything may stand, NaN too. */
template <int d, int bits>
static __device__ __forceinline__ void load_values(Raw<d, bits> &raw, const Decode &p,
                                                   const Piece &piece, const Tile &tile,
                                                   uint32_t block, int lane) {
  const KvCudaPacked &c = p.cache;
#pragma unroll
  for (int i = 0; i < TILE / 4; i++) {
    uint32_t r = value_token(i, lane), token = tile.token + r;
    const uint8_t *base =
        c.pool + __shfl_sync(0xffffffffu, block, (int)r) * c.block_bytes + c.values;
    uint64_t row = row_of(c, piece.kv_head, token);
    clear(raw.values[i]);
    if (bits < 8)
      raw.value_scales[i % Raw<d, bits>::n_value_scales] = 0;
    if (token < tile.low || token >= tile.high)
      continue;
    /* d * bits / 64 bytes a lane; where that is half a word, two lanes share one. */
    load(raw.values[i], base + row * (d * bits / 8) + lane / 4 * (d * bits / 64) / 4 * 4);
    if (bits < 8) {
      const uint32_t *scales = (const uint32_t *)(base - c.values + c.value_scales);
      raw.value_scales[i % Raw<d, bits>::n_value_scales] =
          __ldg(&scales[(row * d + lane / 4 * (d / 8)) / c.group]);
    }
  }
}

/* --- a tile ---------------------------------------------------------------------------------- */

template <int d>
static __device__ __forceinline__ void load_queries(uint32_t (&a)[d / 16][4], const Decode &p,
                                                    const Piece &piece, int lane) {
  const KvBf16 *q = p.q + piece.sequence * p.row_stride + (uint64_t)piece.first_head * d;
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t head = lane / 4 + i % 2 * 8, channel = lane % 4 * (d / 4) + 4 * k + i / 2 * 2;
      uint32_t pair = head < piece.heads ? *(const uint32_t *)(q + head * d + channel) : 0;
      a[k][i] = bits_of(__floats2half2_rn(low_float(pair), high_float(pair)));
    }
}

/* Channels 2 `pair` and the next of the lane's key of row i. */
template <int d, int bits>
static __device__ __forceinline__ uint32_t key_pair(const Raw<d, bits> &raw, int i, int pair) {
  const int per_word = 16 / bits;
  uint32_t x = raw.keys[i][pair / per_word] >> (pair % per_word * (bits == 8 ? 16 : bits));
  if (bits == 8)
    return e4m3_to_half2(x & 0xffffu);
  return bits_of(__hfma2(codes_to_half2<bits>(x),
                         half2_of(raw.scales[pair % Raw<d, bits>::scale_words]),
                         half2_of(raw.minima[pair % Raw<d, bits>::scale_words])));
}

template <int d, int bits>
static __device__ __forceinline__ void
score_packed(float (&s)[TILE / 8][4], const Raw<d, bits> &raw, const uint32_t (&q)[d / 16][4]) {
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
      mma_half(s[i], q[k], key_pair(raw, i, 2 * k), key_pair(raw, i, 2 * k + 1));
}

static __device__ __forceinline__ const uint16_t *ring_row(const Decode &p, const Piece &piece,
                                                           uint32_t part, uint32_t token) {
  const KvCudaPacked &c = p.cache;
  return piece.ring +
         (((uint64_t)part * c.n_kv_heads + piece.kv_head) * c.ring_tokens + token % c.ring_tokens) *
             c.head_dim;
}

template <int d>
static __device__ __forceinline__ void score_ring(float (&s)[TILE / 8][4], const Decode &p,
                                                  const Piece &piece, const Tile &tile,
                                                  const uint32_t (&q)[d / 16][4], int lane) {
#pragma unroll
  for (int i = 0; i < TILE / 8; i++) {
    uint32_t token = tile.token + i * 8 + lane / 4, key[d / 8];
    clear(key);
    if (token < tile.high)
      load(key, ring_row(p, piece, 0, token) + lane % 4 * (d / 4));
#pragma unroll
    for (int k = 0; k < d / 16; k++)
      mma_half(s[i], q[k], key[2 * k], key[2 * k + 1]);
  }
}

/* The running softmax of a warp: rows g and g + 8; columns of o[n]: dimensions 2t d/8 + n and
 * (2t + 1) d/8 + n. */
template <int d> struct Running { float o[d / 8][4], largest[2], sum[2]; };

/* Scale, mask and exponentiate the scores, and bring `run` to the new maximum. */
template <int d>
static __device__ __forceinline__ void soften(float (&s)[TILE / 8][4], Running<d> &run,
                                              const Decode &p, const Tile &tile, int lane) {
  float largest[2] = {run.largest[0], run.largest[1]};
#pragma unroll
  for (int n = 0; n < TILE / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t token = tile.token + n * 8 + lane % 4 * 2 + i % 2;
      s[n][i] = token >= tile.low && token < tile.high ? s[n][i] * p.scale : -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
    }
  largest[0] = row_max(largest[0]);
  largest[1] = row_max(largest[1]);
  if (__any_sync(0xffffffffu, largest[0] > run.largest[0] || largest[1] > run.largest[1])) {
    float shrink[2] = {power_of_2(run.largest[0] - largest[0]),
                       power_of_2(run.largest[1] - largest[1])};
#pragma unroll
    for (int n = 0; n < d / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        run.o[n][i] *= shrink[i / 2];
    run.sum[0] *= shrink[0];
    run.sum[1] *= shrink[1];
  }
#pragma unroll
  for (int n = 0; n < TILE / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s[n][i] = power_of_2(s[n][i] - largest[i / 2]);
      run.sum[i / 2] += s[n][i];
    }
  run.largest[0] = largest[0];
  run.largest[1] = largest[1];
}

static __device__ __forceinline__ void weights_of(uint32_t (&a)[4], const float (&s)[TILE / 8][4],
                                                  int k) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    a[i] = bits_of(__floats2half2_rn(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]));
}

/* Dimension j of the lane's values i and i + 1. */
template <int d, int bits>
static __device__ __forceinline__ uint32_t value_pair(const Raw<d, bits> &raw, int i, int j,
                                                      int lane) {
  const int n = Raw<d, bits>::value_words;
  if (bits == 8)
    return e4m3_to_half2(__byte_perm(raw.values[i][j / 4 % n], raw.values[i + 1][j / 4 % n],
                                     (uint32_t)(j % 4 | (4 + j % 4) << 4)) &
                         0xffffu);
  const int per_word = 16 / bits, pair = j / 2;
  uint32_t x = __byte_perm(raw.values[i][pair / per_word % n],
                           raw.values[i + 1][pair / per_word % n], j % 2 ? 0x7632u : 0x5410u);
  uint32_t shift = pair % per_word * bits;
  if (d * bits < 256) /* half a word a lane */
    shift += lane / 4 % 2 * (d / 16) * bits;
  const int scales = Raw<d, bits>::n_value_scales;
  uint32_t a = raw.value_scales[i % scales], b = raw.value_scales[(i + 1) % scales];
  return bits_of(__hfma2(codes_to_half2<bits>(x >> shift), half2_of(__byte_perm(a, b, 0x5410u)),
                         half2_of(__byte_perm(a, b, 0x7632u))));
}

template <int d, int bits>
static __device__ __forceinline__ void mix_packed(Running<d> &run, const float (&s)[TILE / 8][4],
                                                  const Raw<d, bits> &raw, int lane) {
#pragma unroll
  for (int k = 0; k < TILE / 16; k++) {
    uint32_t a[4];
    weights_of(a, s, k);
#pragma unroll
    for (int j = 0; j < d / 8; j++)
      mma_half(run.o[j], a, value_pair(raw, 4 * k, j, lane), value_pair(raw, 4 * k + 2, j, lane));
  }
}

template <int d>
static __device__ __forceinline__ void mix_ring(Running<d> &run, const float (&s)[TILE / 8][4],
                                                const Decode &p, const Piece &piece,
                                                const Tile &tile, int lane) {
#pragma unroll
  for (int k = 0; k < TILE / 16; k++) {
    uint32_t a[4], v[4][d / 16];
    weights_of(a, s, k);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t token = tile.token + value_token(4 * k + i, lane);
      clear(v[i]);
      if (token >= tile.low && token < tile.high)
        load(v[i], ring_row(p, piece, 1, token) + lane / 4 * (d / 8));
    }
#pragma unroll
    for (int j = 0; j < d / 8; j++) {
      const uint32_t select = j % 2 ? 0x7632u : 0x5410u;
      mma_half(run.o[j], a, __byte_perm(v[0][j / 2], v[1][j / 2], select),
               __byte_perm(v[2][j / 2], v[3][j / 2], select));
    }
  }
}

/* All tiles of this warp. */
template <int d, int bits>
static __device__ __forceinline__ void run_tiles(Running<d> &run, const Decode &p,
                                                 const Piece &piece, int warp, int lane) {
  uint32_t queries[d / 16][4], j = piece.begin + warp;
  Raw<d, bits> next;
  uint32_t block = block_of_lane(p, piece, j, lane);
  load_queries<d>(queries, p, piece, lane);
  auto load_next = [&](uint32_t i) { /* `block` is of tile i, and then of the one after */
                                     if (i < piece.end && is_packed(piece, i)) {
                                       Tile tile = tile_at(piece, i);
                                       load_keys(next, p, piece, tile, block, lane);
                                       load_values(next, p, piece, tile, block, lane);
                                       block = block_of_lane(p, piece, i + WARPS, lane);
                                     }
  };
  load_next(j);
  for (; j < piece.end && is_packed(piece, j); j += WARPS) {
    Raw<d, bits> raw = next;
    float s[TILE / 8][4] = {};
    load_next(j + WARPS);
    score_packed(s, raw, queries);
    soften<d>(s, run, p, tile_at(piece, j), lane);
    mix_packed(run, s, raw, lane);
  }
  for (; bits < 8 && j < piece.end; j += WARPS) { /* the last R tokens */
    Tile tile = tile_at(piece, j);
    float s[TILE / 8][4] = {};
    block = block_of_lane(p, piece, j, lane);
    if (tile.token < piece.packed_keys) {
      load_keys(next, p, piece, tile, block, lane);
      score_packed(s, next, queries);
    } else {
      score_ring<d>(s, p, piece, tile, queries, lane);
    }
    soften<d>(s, run, p, tile, lane);
    mix_ring<d>(run, s, p, piece, tile, lane);
  }
}

/* --- merging --------------------------------------------------------------------------------- */

template <int d> struct Merge {
  float o[WARPS][HEADS][d], largest[WARPS][HEADS], sum[WARPS][HEADS];
};

template <int d>
static __device__ __forceinline__ void hand_over(Merge<d> &merge, const Running<d> &run, int warp,
                                                 int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int head = lane / 4 + half * 8;
    float sum = row_sum(run.sum[half]);
#pragma unroll
    for (int n = 0; n < d / 8; n++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        merge.o[warp][head][(lane % 4 * 2 + i) * (d / 8) + n] = run.o[n][half * 2 + i];
    if (lane % 4 == 0) {
      merge.largest[warp][head] = run.largest[half];
      merge.sum[warp][head] = sum;
    }
  }
}

/* The weight of a part beside the whole: 0 of one that saw nothing. */
static __device__ __forceinline__ float weight_of(float part, float whole) {
  return part == -INFINITY ? 0.0f : power_of_2(part - whole);
}

template <int d>
static __device__ void merge_warps(const Merge<d> &merge, const Decode &p, const Piece &piece) {
  for (uint32_t i = threadIdx.x; i < piece.heads * d; i += WARPS * 32) {
    uint32_t row = i / d, column = i % d;
    float largest = -INFINITY, sum = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
      largest = fmaxf(largest, merge.largest[w][row]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float weight = weight_of(merge.largest[w][row], largest);
      sum += weight > 0.0f ? merge.sum[w][row] * weight : 0.0f;
      total += weight > 0.0f ? merge.o[w][row][column] * weight : 0.0f;
    }
    uint64_t head = (uint64_t)piece.sequence * p.n_heads + piece.first_head + row;
    if (piece.splits == 1) {
      p.out[head * d + column] = to_bf16(total / sum);
    } else {
      uint64_t slot = head * p.max_splits + piece.split;
      __stcg(&p.partial[slot * d + column], total);
      if (column == 0)
        __stcg(&p.sums[slot], make_float2(largest, sum));
    }
  }
}

/* TRUE in every thread of the block that finishes this context last. */
static __device__ bool is_last(const Decode &p, const Piece &piece) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t *counter = &p.counters[piece.sequence * gridDim.y + blockIdx.y];
    last = atomicAdd(counter, 1) == piece.splits - 1;
    if (last)
      *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

template <int d> static __device__ void merge_pieces(const Decode &p, const Piece &piece) {
  for (uint32_t i = threadIdx.x; i < piece.heads * d; i += WARPS * 32) {
    uint64_t head = (uint64_t)piece.sequence * p.n_heads + piece.first_head + i / d;
    const float2 *sums = p.sums + head * p.max_splits;
    const float *partial = p.partial + head * p.max_splits * d + i % d;
    float largest = -INFINITY, sum = 0.0f, total = 0.0f;
#pragma unroll 8
    for (uint32_t s = 0; s < piece.splits; s++)
      largest = fmaxf(largest, __ldcg(&sums[s]).x);
#pragma unroll 8
    for (uint32_t s = 0; s < piece.splits; s++) {
      float2 part = __ldcg(&sums[s]);
      float weight = weight_of(part.x, largest);
      sum += part.y * weight;
      total += __ldcg(&partial[(uint64_t)s * d]) * weight;
    }
    p.out[head * d + i % d] = to_bf16(total / sum);
  }
}

/* grid (splits, Hkv * groups of HEADS query heads, S) */
template <int d, int bits>
static __global__ void __launch_bounds__(WARPS * 32, 2) decode_packed(const Decode p) {
  __shared__ Merge<d> merge;
  Piece piece;
  if (!piece_of_block(p, piece)) {
    if (piece.splits == 0 && piece.split == 0) /* an empty context */
      for (uint32_t i = threadIdx.x; i < piece.heads * d; i += WARPS * 32)
        p.out[((uint64_t)piece.sequence * p.n_heads + piece.first_head) * d + i] = 0;
    return;
  }
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Running<d> run;
#pragma unroll
  for (int n = 0; n < d / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      run.o[n][i] = 0.0f;
  run.largest[0] = run.largest[1] = -INFINITY;
  run.sum[0] = run.sum[1] = 0.0f;
  run_tiles<d, bits>(run, p, piece, warp, lane);
  hand_over<d>(merge, run, warp, lane);
  __syncthreads();
  merge_warps<d>(merge, p, piece);
  if (piece.splits > 1 && is_last(p, piece))
    merge_pieces<d>(p, piece);
}

template <int d> static cudaError_t launch(const Decode &p, dim3 grid, cudaStream_t stream) {
  if (p.cache.bits == 8)
    decode_packed<d, 8><<<grid, WARPS * 32, 0, stream>>>(p);
  else if (p.cache.bits == 4)
    decode_packed<d, 4><<<grid, WARPS * 32, 0, stream>>>(p);
  else
    decode_packed<d, 2><<<grid, WARPS * 32, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t kv_cuda_decode_attention_packed(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                            const KvCudaPacked *packed, const KvCudaTables *tables,
                                            const uint32_t *slots, const uint32_t *contexts,
                                            uint32_t sequences, uint32_t n_heads, uint32_t window,
                                            const uint32_t *split_tokens, uint32_t max_splits,
                                            uint32_t *counters, void *scratch,
                                            cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  uint32_t d = packed->head_dim;
  if ((d != 64 && d != 128) || (packed->bits != 8 && (window || packed->group % TILE)))
    return cudaErrorInvalidValue;
  Decode p = {};
  p.out = out;
  p.q = q;
  p.row_stride = row_stride;
  p.cache = *packed;
  p.tables = *tables;
  p.slots = slots;
  p.contexts = contexts;
  p.split_tokens = split_tokens;
  p.n_heads = n_heads;
  p.group = n_heads / packed->n_kv_heads;
  p.window = window;
  p.max_splits = max_splits;
  p.scale = 1.4426950408889634f / sqrtf((float)d);
  p.counters = counters;
  p.sums = (float2 *)scratch;
  p.partial =
      (float *)((char *)scratch +
                ((uint64_t)sequences * n_heads * max_splits * sizeof(float2) + 255) / 256 * 256);
  dim3 grid(max_splits, packed->n_kv_heads * ((p.group + HEADS - 1) / HEADS), sequences);
  return d == 64 ? launch<64>(p, grid, stream) : launch<128>(p, grid, stream);
}
