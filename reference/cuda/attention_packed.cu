/* Decode attention over caches of 2, 4 and 8 bits: codes go from memory to shared memory as they
 * are stored, several tiles ahead, and become fp16 in registers, as operands of the tensor cores.
 *
 * The products are transposed: tokens (of S = K q) and dimensions (of o = V p) are the rows, so
 * that the at most HEADS query heads of a KV head are the 8 columns of an instruction and nothing
 * is computed for heads that are not there. A product's inner index and its rows may be permuted if
 * both operands are. So a lane takes a contiguous run of a token's key codes (d / 4 channels) and
 * of its value codes (d / 8): lane l, with g = l / 4 and t = l % 4, has channels t d/4 ... of the
 * keys of tokens g, g + 8, ..., and dimensions g d/8 ... of the values of tokens 2t, 2t + 1, 2t +
 * 8, ... Otherwise as attention_decode.cu: a warp has every WARPS-th tile of its piece of the
 * context and a running softmax; warps merge, then pieces.
 *
 * A code c of b bits stands in the upper bits of a fraction, as h = 1 + c / U with U = 2^b, so a
 * shift and a mask make a pair of them. A key is minimum + scale c = U (scale h + (minimum / U -
 * scale)): the scale goes to the query, the rest is one more product for a tile (its tokens have
 * one scale for each channel), and U to the softmax. A value is one multiply-add of h.
 *
 * kivi (KvCudaPacked): keys are packed up to a multiple of R, values up to the context less R, the
 * rest is in the ring. The tile in which the values' part ends is walked twice, with one side
 * masked each time. Twin: kv_host_attention() over pages packed by kv_host_kivi_group().
 */
#include "reference/cuda/launch.cuh"
#include "reference/cuda/merge.cuh"
#include "reference/cuda/packed.cuh"

enum { WARPS = 8, HEADS = 8, SHARED_BYTES = 110 << 10 }; /* two blocks on a multiprocessor */
/* How far scores may pass the running maximum before it is brought up to date: 2^8 is far from
 * fp16's end. */
#define SLACK 8.0f

struct Decode {
  KvBf16 *out;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaPacked cache;
  KvCudaTables tables;
  const uint32_t *slots, *contexts, *split_tokens;
  uint32_t group, window;
  uint32_t group_shift; /* cache.group = 1 << group_shift */
  uint32_t
      fraction_mask; /* of a pair of codes; an argument, since an instruction holds one constant */
  float scale;
  Pieces pieces;
};

/* A block's part of the work. Tiles 0 .. packed_tiles - 1 have packed values, those after them
 * values of the ring. */
struct Piece : Place {
  uint32_t kv_head, context, start;    /* tokens [start, context) are attended to */
  uint32_t packed_keys, packed_values; /* the first ones */
  uint32_t packed_tiles, begin, end;   /* tiles */
  const uint32_t *table;
  const uint16_t *ring;
};

/* A tile in shared memory. Rows of codes are cut into lines of 128 bytes, whose 16-byte chunks are
 * exchanged so that the lanes of a load lie in different banks. */
template <int d, int bits> struct Stage {
  static const int tile = bits == 8 ? 16 : 32; /* tokens */
  static const int row = d * bits / 8;         /* bytes of a token's codes */
  static const int codes = tile * row;
  static const int scales_at = codes, scale_bytes = bits == 8 ? 0 : 4 * d;
  static const int values_at = scales_at + scale_bytes;
  static const int value_scales_at = values_at + codes;
  static const int value_scale_bytes = bits == 8 ? 0 : tile * (d / 32) * 4; /* at most */
  static const int bytes = value_scales_at + value_scale_bytes;
  static const int stages = 3 * bytes * WARPS <= SHARED_BYTES ? 3 : 2;

  static __device__ __forceinline__ uint32_t key_at(uint32_t byte) {
    return row == 128 ? byte ^ (byte >> 7 & 1) << 4 : byte;
  }
  static __device__ __forceinline__ uint32_t value_at(uint32_t byte) {
    uint32_t line = byte >> 7;
    return values_at + (row == 128  ? byte ^ (line >> 1 & 3) << 5
                        : row == 64 ? byte ^ (line & 3) << 5
                        : row == 32 ? byte ^ (line & 1) << 5
                                    : byte);
  }
};

/* A tile: its first token, and which of its tokens count. */
struct Tile {
  uint32_t token, low, high;
};

static __device__ __forceinline__ bool is_packed(const Piece &piece, uint32_t j) {
  return j < piece.packed_tiles;
}

template <int tile> static __device__ __forceinline__ Tile tile_at(const Piece &piece, uint32_t j) {
  Tile t;
  if (is_packed(piece, j)) {
    t.token = (piece.start / tile + j) * tile;
    t.low = piece.start;
    t.high = piece.packed_values;
  } else {
    t.token = (piece.packed_values / tile + j - piece.packed_tiles) * tile;
    t.low = max(piece.start, piece.packed_values);
    t.high = piece.context;
  }
  return t;
}

/* FALSE if there is nothing to do. */
template <int tile> static __device__ bool piece_of_block(const Decode &p, Piece &piece) {
  uint32_t before = blockIdx.y / p.cache.n_kv_heads * HEADS, tiles = 0;
  piece.sequence = blockIdx.z;
  piece.kv_head = blockIdx.y % p.cache.n_kv_heads;
  piece.first_head = piece.kv_head * p.group + before;
  piece.heads = min(p.group - before, (uint32_t)HEADS);
  piece.split = blockIdx.x;
  piece.table = p.tables.table + p.tables.table_starts[blockIdx.z];
  uint32_t n = piece.context = p.contexts[blockIdx.z], r = p.cache.residual;
  piece.start = p.window && p.window < n ? n - p.window : 0;
  piece.packed_keys = r ? n / r * r : n;
  piece.packed_values = r == 0 ? n : n > r ? n - r : 0;
  piece.packed_tiles = (piece.packed_values + tile - 1) / tile - piece.start / tile;
  tiles = piece.packed_tiles;
  if (piece.packed_values < n)
    tiles += (n + tile - 1) / tile - piece.packed_values / tile;
  piece.ring = r ? p.cache.ring + p.slots[blockIdx.z] * p.cache.ring_elements : NULL;
  uint32_t each = *p.split_tokens / tile;
  piece.splits = min((tiles + each - 1) / each, p.pieces.most);
  if (piece.split >= piece.splits)
    return false;
  piece.begin = piece.split * each;
  piece.end = piece.split + 1 == piece.splits ? tiles : piece.begin + each;
  return true;
}

/* --- loads ----------------------------------------------------------------------------------- */

template <int n> static __device__ __forceinline__ void load(uint32_t (&to)[n], const void *from) {
  if (n == 1) {
    to[0] = *(const uint32_t *)from;
  } else if (n == 2) {
    uint2 x = *(const uint2 *)from;
    to[0] = x.x;
    to[1 % n] = x.y;
  } else {
#pragma unroll
    for (int i = 0; i + 4 <= n; i += 4) {
      uint4 x = ((const uint4 *)from)[i / 4];
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

/* The block that the lane's token of tile j lies in; of a packed tile of kivi, whose groups lie in
 * one block, that of its first token. */
template <int d, int bits>
static __device__ __forceinline__ uint32_t block_of_lane(const Decode &p, const Piece &piece,
                                                         uint32_t j, int lane) {
  const int tile = Stage<d, bits>::tile;
  if (j >= piece.end)
    return 0;
  uint32_t token = tile_at<tile>(piece, j).token + (bits == 8 ? lane % tile : 0);
  return token < piece.context ? __ldg(&piece.table[token >> p.cache.block_shift]) : 0;
}

static __device__ __forceinline__ uint32_t row_of(const KvCudaPacked &c, uint32_t head,
                                                  uint32_t token) {
  return (head << c.block_shift) + (token & ((1u << c.block_shift) - 1));
}

/* Begin to load a packed tile of e4m3. Tokens that do not count become zeros: what stands there may
 * be anything, NaN too. */
template <int d>
static __device__ __forceinline__ void load_e4m3(char *stage, const Decode &p, const Piece &piece,
                                                 const Tile &tile, uint32_t block, int lane) {
  typedef Stage<d, 8> Layout;
  const int chunks = Layout::row / 16;
  const KvCudaPacked &c = p.cache;
  uint32_t token = tile.token + lane % Layout::tile;
  uint64_t row = token >= tile.low && token < tile.high
                     ? block * c.block_bytes + row_of(c, piece.kv_head, token) * Layout::row
                     : UINT64_MAX;
#pragma unroll
  for (int i = 0; i < Layout::codes / 16; i += 32) {
    uint32_t r = (i + lane) / chunks, at = (i + lane) * 16;
    uint64_t offset = __shfl_sync(0xffffffffu, row, (int)r);
    int bytes = offset == UINT64_MAX ? 0 : 16;
    const uint8_t *keys = c.pool + (bytes ? offset + at % Layout::row : 0);
    copy_16_async(stage + Layout::key_at(at), keys, bytes);
    copy_16_async(stage + Layout::value_at(at), bytes ? keys + c.values : keys, bytes);
  }
}

/* The keys, and the values if wanted, of a packed tile of kivi. */
template <int d, int bits>
static __device__ __forceinline__ void load_codes(char *stage, const Decode &p, const Piece &piece,
                                                  const Tile &tile, uint32_t block, bool values,
                                                  int lane) {
  typedef Stage<d, bits> Layout;
  const KvCudaPacked &c = p.cache;
  uint32_t mask = (1u << c.block_shift) - 1, groups_shift = c.block_shift - p.group_shift;
  const uint8_t *base = c.pool + block * c.block_bytes;
  uint32_t row = row_of(c, piece.kv_head, tile.token);
  const uint8_t *scales =
      base + c.key_scales +
      ((piece.kv_head << groups_shift) + ((tile.token & mask) >> p.group_shift)) * (4 * d);
#pragma unroll
  for (int at = lane * 16; at < Layout::codes; at += 512) {
    copy_16_async(stage + Layout::key_at(at), base + row * Layout::row + at, 16);
    if (values)
      copy_16_async(stage + Layout::value_at(at), base + c.values + row * Layout::row + at, 16);
  }
  if (lane * 16 < Layout::scale_bytes)
    copy_16_async(stage + Layout::scales_at + lane * 16, scales + lane * 16, 16);
  int scale_bytes = Layout::tile * (d >> p.group_shift) * 4;
  if (values && lane * 16 < scale_bytes)
    copy_16_async(stage + Layout::value_scales_at + lane * 16,
                  base + c.value_scales + row * (d >> p.group_shift) * 4 + lane * 16, 16);
}

/* Queries as the product's columns, heads beyond the group zero. */
template <int d>
static __device__ __forceinline__ void load_queries(uint32_t (&b)[d / 16][2], const Decode &p,
                                                    const Piece &piece, int lane) {
  uint32_t head = lane / 4;
  const KvBf16 *q = p.q + piece.sequence * p.row_stride + (uint64_t)(piece.first_head + head) * d +
                    lane % 4 * (d / 4);
#pragma unroll
  for (int k = 0; k < d / 16; k++) {
    uint2 pairs = head < piece.heads ? *(const uint2 *)(q + 4 * k) : make_uint2(0, 0);
    b[k][0] = bits_of(__floats2half2_rn(low_float(pairs.x), high_float(pairs.x)));
    b[k][1] = bits_of(__floats2half2_rn(low_float(pairs.y), high_float(pairs.y)));
  }
}

/* --- scores ---------------------------------------------------------------------------------- */

/* Pair `pair` of a word of codes: 1 + code / U of each. */
template <int bits>
static __device__ __forceinline__ uint32_t fractions(uint32_t x, int pair, uint32_t mask) {
  int shift = pair * bits - (10 - bits);
  return ((shift > 0 ? x >> shift : x << -shift) & mask) | 0x3c003c00u;
}

/* Channels 2 `pair` and the next of a lane's run of a key. */
template <int bits, int n>
static __device__ __forceinline__ uint32_t key_pair(const uint32_t (&key)[n], int pair,
                                                    uint32_t mask) {
  const int per_word = 16 / bits;
  uint32_t x = key[pair / per_word];
  return bits == 8 ? e4m3_to_half2((uint16_t)(pair % 2 ? x >> 16 : x))
                   : fractions<bits>(x, pair % per_word, mask);
}

/* s[i]: scores of tokens 16 i + g (and g + 8) for heads 2t and 2t + 1; of kivi, over U. */
template <int d, int bits, int rows>
static __device__ __forceinline__ void score_packed(float (&s)[rows][4], const char *stage,
                                                    const uint32_t (&q)[d / 16][2], uint32_t mask,
                                                    int lane) {
  typedef Stage<d, bits> Layout;
  const int words = d * bits / 128;
  uint32_t scaled[d / 16][2];
  float rest[4] = {};
#pragma unroll
  for (int k = 0; k < d / 16; k++) {
    scaled[k][0] = q[k][0];
    scaled[k][1] = q[k][1];
    if (bits < 8) {
      const char *at = stage + Layout::scales_at + (lane % 4 * (d / 4) + 4 * k) * 2;
      uint2 scale = *(const uint2 *)at, minimum = *(const uint2 *)(at + 2 * d);
      const __half2 part = __float2half2_rn(1.0f / (1 << bits));
      uint32_t low = bits_of(__hfma2(half2_of(minimum.x), part, __hneg2(half2_of(scale.x))));
      uint32_t high = bits_of(__hfma2(half2_of(minimum.y), part, __hneg2(half2_of(scale.y))));
      const uint32_t same[4] = {low, low, high, high};
      mma_half(rest, same, q[k][0], q[k][1]);
      scaled[k][0] = bits_of(__hmul2(half2_of(q[k][0]), half2_of(scale.x)));
      scaled[k][1] = bits_of(__hmul2(half2_of(q[k][1]), half2_of(scale.y)));
    }
  }
#pragma unroll
  for (int i = 0; i < rows; i++) {
    uint32_t upper[words], lower[words];
    uint32_t at = (i * 16 + lane / 4) * Layout::row + lane % 4 * (Layout::row / 4);
#pragma unroll
    for (int w = 0; w < words; w += 4) { /* 16 bytes at most: what is exchanged stays whole */
      uint32_t part[words < 4 ? words : 4];
      load(part, stage + Layout::key_at(at + 4 * w));
#pragma unroll
      for (int n = 0; n < 4 && w + n < words; n++)
        upper[w + n] = part[n % (words < 4 ? words : 4)];
      load(part, stage + Layout::key_at(at + 8 * Layout::row + 4 * w));
#pragma unroll
      for (int n = 0; n < 4 && w + n < words; n++)
        lower[w + n] = part[n % (words < 4 ? words : 4)];
    }
#pragma unroll
    for (int k = 0; k < d / 16; k++) {
      const uint32_t a[4] = {key_pair<bits>(upper, 2 * k, mask), key_pair<bits>(lower, 2 * k, mask),
                             key_pair<bits>(upper, 2 * k + 1, mask),
                             key_pair<bits>(lower, 2 * k + 1, mask)};
      mma_half(s[i], a, scaled[k][0], scaled[k][1]);
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
      s[i][n] += rest[n];
  }
}

static __device__ __forceinline__ const uint16_t *ring_row(const Decode &p, const Piece &piece,
                                                           uint32_t part, uint32_t token) {
  const KvCudaPacked &c = p.cache;
  return piece.ring +
         (((uint64_t)part * c.n_kv_heads + piece.kv_head) * c.ring_tokens + token % c.ring_tokens) *
             c.head_dim;
}

template <int d, int rows>
static __device__ __forceinline__ void score_ring(float (&s)[rows][4], const Decode &p,
                                                  const Piece &piece, const Tile &tile,
                                                  const uint32_t (&q)[d / 16][2], int lane) {
#pragma unroll
  for (int i = 0; i < rows; i++) {
    uint32_t token = tile.token + i * 16 + lane / 4, upper[d / 8], lower[d / 8];
    clear(upper);
    clear(lower);
    if (token < tile.high)
      load(upper, ring_row(p, piece, 0, token) + lane % 4 * (d / 4));
    if (token + 8 < tile.high)
      load(lower, ring_row(p, piece, 0, token + 8) + lane % 4 * (d / 4));
#pragma unroll
    for (int k = 0; k < d / 16; k++) {
      const uint32_t a[4] = {upper[2 * k], lower[2 * k], upper[2 * k + 1], lower[2 * k + 1]};
      mma_half(s[i], a, q[k][0], q[k][1]);
    }
  }
}

/* --- softmax --------------------------------------------------------------------------------- */

/* The running softmax of a warp, of heads 2t and 2t + 1; o[j]: dimensions g d/8 + 2j of both heads,
 * then the next one of both. Sums are of this lane's tokens. */
template <int d> struct Running { float o[d / 16][4], largest[2], sum[2]; };

/* Over the lanes that have the same heads. */
static __device__ __forceinline__ float column_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
}

static __device__ __forceinline__ float column_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 4);
  x += __shfl_xor_sync(0xffffffffu, x, 8);
  return x + __shfl_xor_sync(0xffffffffu, x, 16);
}

template <int d>
static __device__ __forceinline__ void raise(Running<d> &run, const float (&most)[2]) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float largest = fmaxf(column_max(most[h]), run.largest[h]);
    float shrink = largest == run.largest[h] ? 1.0f : power_of_2(run.largest[h] - largest);
    run.largest[h] = largest;
    run.sum[h] *= shrink;
#pragma unroll
    for (int j = 0; j < d / 16; j++) {
      run.o[j][h] *= shrink;
      run.o[j][2 + h] *= shrink;
    }
  }
}

/* Scale, mask and exponentiate the scores, and bring `run` to a new maximum where they ask for it.
 */
template <int d, int rows>
static __device__ __forceinline__ void soften(float (&s)[rows][4], Running<d> &run, float scale,
                                              const Tile &tile, int lane) {
  float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < rows; i++)
#pragma unroll
    for (int n = 0; n < 4; n++) {
      uint32_t token = tile.token + i * 16 + n / 2 * 8 + lane / 4;
      s[i][n] = token >= tile.low && token < tile.high ? s[i][n] * scale : -INFINITY;
      most[n % 2] = fmaxf(most[n % 2], s[i][n]);
    }
  if (__any_sync(0xffffffffu, most[0] > run.largest[0] + SLACK || most[1] > run.largest[1] + SLACK))
    raise(run, most);
#pragma unroll
  for (int i = 0; i < rows; i++)
#pragma unroll
    for (int n = 0; n < 4; n++) {
      s[i][n] = power_of_2(s[i][n] - run.largest[n % 2]);
      run.sum[n % 2] += s[i][n];
    }
}

/* --- values ---------------------------------------------------------------------------------- */

/* The weights of 16 tokens as the product's columns: tokens 2t, 2t + 1 (and 8 further) of head g.
 */
static __device__ __forceinline__ void weights_of(uint32_t (&b)[2], const float (&s)[4]) {
#pragma unroll
  for (int i = 0; i < 2; i++)
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n"
                 : "=r"(b[i])
                 : "r"(bits_of(__floats2half2_rn(s[2 * i], s[2 * i + 1]))));
}

/* Scale and minimum of two tokens: U scale, minimum - U scale. */
struct Factors {
  __half2 scale, rest;
};

template <int d, int bits>
static __device__ __forceinline__ Factors factors_of(const char *stage, const Tile &tile,
                                                     uint32_t shift, uint32_t row, int lane) {
  const uint32_t *at = (const uint32_t *)(stage + Stage<d, bits>::value_scales_at);
  uint32_t part = lane / 4 * (d / 8) >> shift, each = d >> shift, token = tile.token + row;
  uint32_t a = token < tile.high ? at[row * each + part] : 0; /* beyond, anything may stand */
  uint32_t b = token + 1 < tile.high ? at[(row + 1) * each + part] : 0;
  __half2 scale = half2_of(__byte_perm(a, b, 0x5410u)), whole = __float2half2_rn(1 << bits);
  return {__hmul2(scale, whole),
          __hfma2(scale, __hneg2(whole), half2_of(__byte_perm(a, b, 0x7632u)))};
}

/* Dimension e of a lane's run of two tokens' values. */
template <int d, int bits, int n>
static __device__ __forceinline__ uint32_t value_pair(const uint32_t (&a)[n],
                                                      const uint32_t (&b)[n], int e,
                                                      const Factors &f, uint32_t mask, int lane) {
  if (bits == 8)
    return e4m3_to_half2(
        (uint16_t)__byte_perm(a[e / 4 % n], b[e / 4 % n], (uint32_t)(e % 4 | (4 + e % 4) << 4)));
  const int per_word = 16 / bits, pair = e / 2;
  uint32_t x =
      __byte_perm(a[pair / per_word % n], b[pair / per_word % n], e % 2 ? 0x7632u : 0x5410u);
  if (d * bits < 256) /* half a word a lane */
    x >>= lane / 4 % 2 * (d / 16) * bits;
  x = fractions<bits>(x, pair % per_word, mask);
  return bits_of(__hfma2(half2_of(x), f.scale, f.rest));
}

template <int d, int bits, int rows>
static __device__ __forceinline__ void mix_packed(Running<d> &run, const float (&s)[rows][4],
                                                  const char *stage, const Decode &p,
                                                  const Tile &tile, int lane) {
  typedef Stage<d, bits> Layout;
  const int words = d * bits >= 256 ? d * bits / 256 : 1;
#pragma unroll
  for (int k = 0; k < rows; k++) {
    uint32_t weights[2], v[4][words];
    Factors f[2];
    weights_of(weights, s[k]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t row = k * 16 + i / 2 * 8 + lane % 4 * 2 + i % 2;
      load(v[i],
           stage + Layout::value_at(row * Layout::row + lane / 4 * (Layout::row / 8) / 4 * 4));
    }
    if (bits < 8) {
      f[0] = factors_of<d, bits>(stage, tile, p.group_shift, k * 16 + lane % 4 * 2, lane);
      f[1] = factors_of<d, bits>(stage, tile, p.group_shift, k * 16 + lane % 4 * 2 + 8, lane);
    }
#pragma unroll
    for (int j = 0; j < d / 16; j++) {
      const uint32_t a[4] = {
          value_pair<d, bits>(v[0], v[1], 2 * j, f[0], p.fraction_mask, lane),
          value_pair<d, bits>(v[0], v[1], 2 * j + 1, f[0], p.fraction_mask, lane),
          value_pair<d, bits>(v[2], v[3], 2 * j, f[1], p.fraction_mask, lane),
          value_pair<d, bits>(v[2], v[3], 2 * j + 1, f[1], p.fraction_mask, lane)};
      mma_half(run.o[j], a, weights[0], weights[1]);
    }
  }
}

template <int d, int rows>
static __device__ __forceinline__ void mix_ring(Running<d> &run, const float (&s)[rows][4],
                                                const Decode &p, const Piece &piece,
                                                const Tile &tile, int lane) {
#pragma unroll
  for (int k = 0; k < rows; k++) {
    uint32_t weights[2], v[4][d / 16];
    weights_of(weights, s[k]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t token = tile.token + k * 16 + i / 2 * 8 + lane % 4 * 2 + i % 2;
      clear(v[i]);
      if (token >= tile.low && token < tile.high)
        load(v[i], ring_row(p, piece, 1, token) + lane / 4 * (d / 8));
    }
#pragma unroll
    for (int j = 0; j < d / 16; j++) {
      const uint32_t a[4] = {
          __byte_perm(v[0][j], v[1][j], 0x5410u), __byte_perm(v[0][j], v[1][j], 0x7632u),
          __byte_perm(v[2][j], v[3][j], 0x5410u), __byte_perm(v[2][j], v[3][j], 0x7632u)};
      mma_half(run.o[j], a, weights[0], weights[1]);
    }
  }
}

/* --- all tiles of a warp --------------------------------------------------------------------- */

/* The last R tokens, from tile j on. */
template <int d, int bits>
static __device__ __forceinline__ void
run_ring(Running<d> &run, char *stage, const Decode &p, const Piece &piece,
         const uint32_t (&queries)[d / 16][2], uint32_t j, int lane) {
  const int tokens = Stage<d, bits>::tile, rows = tokens / 16;
  for (; j < piece.end; j += WARPS) {
    Tile tile = tile_at<tokens>(piece, j);
    float s[rows][4] = {};
    bool packed = tile.token < piece.packed_keys;
    if (packed) {
      load_codes<d, bits>(stage, p, piece, tile, block_of_lane<d, bits>(p, piece, j, lane), false,
                          lane);
      copies_wait_all();
      __syncwarp();
      score_packed<d, bits>(s, stage, queries, p.fraction_mask, lane);
      __syncwarp();
    } else {
      score_ring<d>(s, p, piece, tile, queries, lane);
    }
    soften<d>(s, run, packed ? p.scale * (1 << bits) : p.scale, tile, lane);
    mix_ring<d>(run, s, p, piece, tile, lane);
  }
}

template <int d, int bits>
static __device__ __forceinline__ void run_tiles(Running<d> &run, char *ring, const Decode &p,
                                                 const Piece &piece, int warp, int lane) {
  typedef Stage<d, bits> Layout;
  const int stages = Layout::stages, rows = Layout::tile / 16;
  uint32_t queries[d / 16][2], j = piece.begin + warp, loaded = j;
  uint32_t block = block_of_lane<d, bits>(p, piece, loaded, lane);
  auto load_next = [&](int stage) {
    if (loaded < piece.end && is_packed(piece, loaded)) {
      Tile tile = tile_at<Layout::tile>(piece, loaded);
      char *to = ring + stage * Layout::bytes;
      if (bits == 8)
        load_e4m3<d>(to, p, piece, tile, block, lane);
      else
        load_codes<d, bits>(to, p, piece, tile, block, true, lane);
      loaded += WARPS;
      block = block_of_lane<d, bits>(p, piece, loaded, lane);
    }
    copies_commit();
  };
#pragma unroll
  for (int stage = 0; stage < stages - 1; stage++)
    load_next(stage);
  load_queries<d>(queries, p, piece, lane);
  int stage = 0;
  for (; j < piece.end && is_packed(piece, j); j += WARPS) {
    const char *codes = ring + stage * Layout::bytes;
    Tile tile = tile_at<Layout::tile>(piece, j);
    float s[rows][4] = {};
    load_next((stage + stages - 1) % stages);
    copies_wait<stages - 1>();
    __syncwarp();
    score_packed<d, bits>(s, codes, queries, p.fraction_mask, lane);
    soften<d>(s, run, bits == 8 ? p.scale : p.scale * (1 << bits), tile, lane);
    mix_packed<d, bits>(run, s, codes, p, tile, lane);
    __syncwarp(); /* the tile may be overwritten */
    stage = (stage + 1) % stages;
  }
  copies_wait<0>();
  __syncwarp();
  if (bits < 8)
    run_ring<d, bits>(run, ring, p, piece, queries, j, lane);
}

/* --- merging --------------------------------------------------------------------------------- */

template <int d>
static __device__ __forceinline__ void hand_over(Merge<d, WARPS, HEADS> &merge,
                                                 const Running<d> &run, int warp, int lane) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int head = lane % 4 * 2 + h;
    float sum = column_sum(run.sum[h]);
#pragma unroll
    for (int j = 0; j < d / 16; j++)
      *(float2 *)&merge.o[warp][head][lane / 4 * (d / 8) + 2 * j] =
          make_float2(run.o[j][h], run.o[j][2 + h]);
    if (lane < 4) {
      merge.largest[warp][head] = run.largest[h];
      merge.sum[warp][head] = sum;
    }
  }
}

/* grid (splits, Hkv * groups of HEADS query heads, S) */
template <int d, int bits>
static __global__ void __launch_bounds__(WARPS * 32, 2) decode_packed(const Decode p) {
  extern __shared__ __align__(16) char shared[];
  typedef Stage<d, bits> Layout;
  Piece piece;
  await_previous();
  if (!piece_of_block<Layout::tile>(p, piece)) {
    if (piece.splits == 0 && piece.split == 0) /* an empty context */
      store_nothing(p.out, p.pieces, piece, d);
    return;
  }
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Running<d> run = {};
  run.largest[0] = run.largest[1] = -INFINITY;
  run_tiles<d, bits>(run, shared + warp * Layout::stages * Layout::bytes, p, piece, warp, lane);
  __syncthreads(); /* the rings become the hand-over */
  auto &merge = *(Merge<d, WARPS, HEADS> *)shared;
  hand_over<d>(merge, run, warp, lane);
  __syncthreads();
  merge_warps<1>(p.out, merge, p.pieces, piece, Finished());
  if (piece.splits > 1 && is_last(p.pieces, piece))
    merge_pieces<1, WARPS * 32>(p.out, p.pieces, piece, d, Finished());
}

template <int d, int bits>
static cudaError_t launch(const Decode &p, dim3 grid, cudaStream_t stream) {
  const int bytes = Stage<d, bits>::bytes * Stage<d, bits>::stages * WARPS;
  static_assert(bytes >= (int)sizeof(Merge<d, WARPS, HEADS>), "the hand-over fits");
  static_assert(bytes <= SHARED_BYTES, "two blocks fit");
  static bool ready; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status = cudaFuncSetAttribute(decode_packed<d, bits>,
                                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  return launch_early(decode_packed<d, bits>, grid, WARPS * 32, bytes, stream, 1, p);
}

template <int d> static cudaError_t launch(const Decode &p, dim3 grid, cudaStream_t stream) {
  return p.cache.bits == 8   ? launch<d, 8>(p, grid, stream)
         : p.cache.bits == 4 ? launch<d, 4>(p, grid, stream)
                             : launch<d, 2>(p, grid, stream);
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
  if ((d != 64 && d != 128) ||
      (packed->bits != 8 &&
       (window || (packed->group != 32 && packed->group != 64 && packed->group != 128))))
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
  p.group = n_heads / packed->n_kv_heads;
  p.group_shift = packed->group == 128 ? 7 : packed->group == 64 ? 6 : 5;
  p.fraction_mask = packed->bits == 4 ? 0x03c003c0u : 0x03000300u;
  p.window = window;
  p.scale = 1.4426950408889634f / sqrtf((float)d);
  p.pieces = pieces_in(scratch, counters, sequences, n_heads, max_splits);
  dim3 grid(max_splits, packed->n_kv_heads * ((p.group + HEADS - 1) / HEADS), sequences);
  return d == 64 ? launch<64>(p, grid, stream) : launch<128>(p, grid, stream);
}
