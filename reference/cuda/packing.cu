/* Writing to caches that are not bf16, and packing (kivi): min and max of a group, codes, words.
 * Where tokens come one by one, a thread is a channel. Twins: kv_host_round_e4m3(),
 * kv_host_kivi_group(). */
#include "reference/cuda/packed.cuh"

enum { WARPS = 8 };

void kv_cuda_packed_lay_out(KvCudaPacked *p) {
  uint64_t tokens = (uint64_t)p->n_kv_heads << p->block_shift, elements = tokens * p->head_dim;
  uint64_t codes = elements * p->bits / 8, scales = p->bits == 8 ? 0 : elements / p->group * 4;
  p->key_scales = codes;
  p->values = codes + scales;
  p->value_scales = p->values + codes;
  p->block_bytes = p->value_scales + scales;
  p->ring_tokens = p->residual ? p->residual + 8 : 0;
  p->ring_elements = 2 * (uint64_t)p->n_kv_heads * p->ring_tokens * p->head_dim;
}

/* --- stores ---------------------------------------------------------------------------------- */

/* Elements from a block's start (or its values') to the head's of `slot`. */
static __device__ __forceinline__ uint64_t slot_offset(uint32_t shift, uint32_t d, uint32_t head,
                                                       uint32_t slot) {
  return (((uint64_t)head << shift) + (slot & ((1u << shift) - 1))) * d;
}

static __device__ __forceinline__ uint32_t block_at(const KvCudaTables &tables, uint32_t sequence,
                                                    uint32_t slot, uint32_t shift) {
  return tables.table[tables.table_starts[sequence] + (slot >> shift)];
}

/* One warp a key or value head of a row. grid (R, 2 Hkv / WARPS) */
template <bool fp8>
static __global__ void store(const KvBf16 *qkv, const KvCudaPages pages, const KvCudaPacked packed,
                             const KvCudaTables tables, const uint32_t *row_sequences,
                             const uint32_t *slots, uint32_t n_heads) {
  uint32_t d = fp8 ? packed.head_dim : pages.head_dim;
  uint32_t kv = fp8 ? packed.n_kv_heads : pages.n_kv_heads;
  uint32_t shift = fp8 ? packed.block_shift : pages.block_shift;
  uint32_t row = blockIdx.x, i = blockIdx.y * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t sequence = row_sequences[row];
  if (i >= 2 * kv || sequence == UINT32_MAX)
    return;
  uint32_t slot = slots[row], block = block_at(tables, sequence, slot, shift);
  uint64_t offset = slot_offset(shift, d, i % kv, slot);
  const KvBf16 *x = qkv + ((uint64_t)row * (n_heads + 2 * kv) + n_heads + i) * d;
  if (fp8) {
    uint8_t *to = packed.pool + block * packed.block_bytes + (i < kv ? 0 : packed.values) + offset;
    for (uint32_t c = lane; c < d; c += 32)
      to[c] = to_e4m3(to_float(x[c]));
  } else {
    KvBf16 *to =
        pages.pool + block * pages.block_elements + (i < kv ? 0 : pages.value_offset) + offset;
    for (uint32_t c = lane; c < d; c += 32)
      to[c] = x[c];
  }
}

template <bool fp8>
static cudaError_t launch_store(const KvBf16 *qkv, const KvCudaPages &pages,
                                const KvCudaPacked &packed, const KvCudaTables *tables,
                                const uint32_t *row_sequences, const uint32_t *slots, uint32_t rows,
                                uint32_t n_heads, cudaStream_t stream) {
  uint32_t kv = fp8 ? packed.n_kv_heads : pages.n_kv_heads;
  if (rows == 0)
    return cudaSuccess;
  store<fp8><<<dim3(rows, (2 * kv + WARPS - 1) / WARPS), 32 * WARPS, 0, stream>>>(
      qkv, pages, packed, *tables, row_sequences, slots, n_heads);
  return cudaGetLastError();
}

cudaError_t kv_cuda_store(const KvBf16 *qkv, const KvCudaPages *pages, const KvCudaTables *tables,
                          const uint32_t *row_sequences, const uint32_t *slots, uint32_t rows,
                          uint32_t n_heads, cudaStream_t stream) {
  return launch_store<false>(qkv, *pages, KvCudaPacked{}, tables, row_sequences, slots, rows,
                             n_heads, stream);
}

cudaError_t kv_cuda_store_fp8(const KvBf16 *qkv, const KvCudaPacked *packed,
                              const KvCudaTables *tables, const uint32_t *row_sequences,
                              const uint32_t *slots, uint32_t rows, uint32_t n_heads,
                              cudaStream_t stream) {
  return launch_store<true>(qkv, KvCudaPages{}, *packed, tables, row_sequences, slots, rows,
                            n_heads, stream);
}

/* Four elements a thread; an e4m3 block has as many elements as a bf16 one. grid (n, 2): keys,
 * values */
static __global__ void widen_fp8(const KvCudaPages pages, const KvCudaPacked packed,
                                 const uint32_t *from) {
  uint64_t half = pages.value_offset;
  const uint32_t *source = (const uint32_t *)(packed.pool + from[blockIdx.x] * packed.block_bytes +
                                              blockIdx.y * packed.values);
  KvBf16 *to = pages.pool + blockIdx.x * pages.block_elements + blockIdx.y * half;
  for (uint64_t i = threadIdx.x; i < half / 4; i += blockDim.x) {
    uint32_t four = source[i];
    float2 low = __half22float2(half2_of(e4m3_to_half2(four & 0xffffu)));
    float2 high = __half22float2(half2_of(e4m3_to_half2(four >> 16)));
    *(uint2 *)(to + 4 * i) = make_uint2(pack_bf16(low.x, low.y), pack_bf16(high.x, high.y));
  }
}

cudaError_t kv_cuda_widen_fp8(const KvCudaPages *pages, const KvCudaPacked *packed,
                              const uint32_t *from, uint32_t n, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  widen_fp8<<<dim3(n, 2), 256, 0, stream>>>(*pages, *packed, from);
  return cudaGetLastError();
}

/* --- kivi ------------------------------------------------------------------------------------ */

enum { MAX_HEAD = 128 };

/* What a block shares while it packs: one token's or group's codes. */
struct Codes {
  float x[MAX_HEAD];
  uint8_t codes[MAX_HEAD];
};

/* A group's scale and minimum, in fp16 and as floats. */
struct Scale {
  uint16_t scale_bits, minimum_bits;
  float scale, minimum;
};

static __device__ __forceinline__ Scale scale_of(float low, float high, uint32_t bits) {
  Scale s;
  s.minimum_bits = to_half(low);
  s.scale_bits = to_half(__fdiv_rn(high - low, (float)((1u << bits) - 1)));
  s.scale = half_to_float(s.scale_bits);
  s.minimum = half_to_float(s.minimum_bits);
  return s;
}

static __device__ __forceinline__ uint8_t code_of(float x, const Scale &s, uint32_t bits) {
  if (!(s.scale > 0.0f))
    return 0;
  float code = rintf(__fdiv_rn(x - s.minimum, s.scale));
  return (uint8_t)fminf(fmaxf(code, 0.0f), (float)((1u << bits) - 1));
}

/* Where in its word element e of it stands. */
static __device__ __forceinline__ uint32_t place_of(uint32_t e, uint32_t bits) {
  return e / 2 * bits + e % 2 * 16;
}

/* The words of codes[d]; every thread of the block comes here. */
static __device__ void write_words(uint8_t *to, const uint8_t *codes, uint32_t d, uint32_t bits) {
  uint32_t per_word = 32 / bits, i = threadIdx.x;
  __syncthreads();
  if (i < d / per_word) {
    uint32_t word = 0;
    for (uint32_t e = 0; e < per_word; e++)
      word |= (uint32_t)codes[i * per_word + e] << place_of(e, bits);
    ((uint32_t *)to)[i] = word;
  }
  __syncthreads();
}

/* Scales, then minima, of the keys' channels from token `first`, a multiple of the group. */
static __device__ __forceinline__ uint16_t *key_scales(const KvCudaPacked &p, uint8_t *block,
                                                       uint32_t head, uint32_t first) {
  uint32_t tokens = 1u << p.block_shift, groups = tokens / p.group;
  uint32_t group = (first & (tokens - 1)) / p.group;
  return (uint16_t *)(block + p.key_scales) + ((uint64_t)head * groups + group) * 2 * p.head_dim;
}

/* This channel of the `group` keys from token `first`, a multiple of it. */
template <typename Get>
static __device__ void pack_key_group(const KvCudaPacked &p, uint8_t *block, uint32_t head,
                                      uint32_t first, Codes &shared, Get get) {
  uint32_t c = threadIdx.x, d = p.head_dim;
  float low = INFINITY, high = -INFINITY;
  for (uint32_t j = 0; j < p.group; j++) {
    float x = get(first + j);
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
  Scale s = scale_of(low, high, p.bits);
  uint16_t *scales = key_scales(p, block, head, first);
  scales[c] = s.scale_bits;
  scales[d + c] = s.minimum_bits;
  for (uint32_t j = 0; j < p.group; j++) {
    shared.codes[c] = code_of(get(first + j), s, p.bits);
    write_words(block + slot_offset(p.block_shift, d, head, first + j) * p.bits / 8, shared.codes,
                d, p.bits);
  }
}

/* The value of `token`, of which this thread has channel threadIdx.x. */
static __device__ void pack_value(const KvCudaPacked &p, uint8_t *block, uint32_t head,
                                  uint32_t token, Codes &shared, float x) {
  uint32_t c = threadIdx.x, d = p.head_dim, first = c / p.group * p.group;
  float low = INFINITY, high = -INFINITY;
  __syncthreads();
  shared.x[c] = x;
  __syncthreads();
  for (uint32_t j = 0; j < p.group; j++) {
    low = fminf(low, shared.x[first + j]);
    high = fmaxf(high, shared.x[first + j]);
  }
  Scale s = scale_of(low, high, p.bits);
  uint64_t offset = slot_offset(p.block_shift, d, head, token);
  if (c == first)
    ((uint32_t *)(block + p.value_scales))[(offset + c) / p.group] =
        (uint32_t)s.scale_bits | (uint32_t)s.minimum_bits << 16;
  shared.codes[c] = code_of(x, s, p.bits);
  write_words(block + p.values + offset * p.bits / 8, shared.codes, d, p.bits);
}

static __device__ __forceinline__ uint16_t *
ring_slot(const KvCudaPacked &p, uint32_t slot, uint32_t part, uint32_t head, uint32_t token) {
  return p.ring + slot * p.ring_elements +
         (((uint64_t)part * p.n_kv_heads + head) * p.ring_tokens + token % p.ring_tokens) *
             p.head_dim;
}

/* Layers that differ in nothing but where they stand. */
struct PackedLayers {
  KvCudaPacked packed;
  KvCudaPages pages;
  struct {
    uint8_t *pool;
    uint16_t *ring;
    KvBf16 *exact;
  } at[KV_CUDA_TOGETHER];
};

/* Keys or values of as many tokens as a group has, of which a block has as many scales as channels.
 * Rows are two elements longer than a head, so that a column lies in different banks.
 * grid (groups of tokens, Hkv * 2, layers), d threads; shared: rows, scales, minima */
static __global__ void kivi_pack(const __grid_constant__ PackedLayers layers, const uint32_t *table,
                                 const uint32_t *exact_table, uint32_t slot, uint32_t n) {
  extern __shared__ uint32_t rows[];
  KvCudaPacked p = layers.packed;
  p.pool = layers.at[blockIdx.z].pool;
  p.ring = layers.at[blockIdx.z].ring;
  const KvCudaPages &pages = layers.pages;
  const KvBf16 *exact = layers.at[blockIdx.z].exact;
  const uint32_t head = blockIdx.y / 2, part = blockIdx.y % 2, c = threadIdx.x, d = p.head_dim;
  const uint32_t pairs = d / 2 + 1; /* of a row */
  const uint32_t first = blockIdx.x * p.group, count = min(n - first, p.group);
  const uint32_t keys = n / p.residual * p.residual, values = n > p.residual ? n - p.residual : 0;
  uint32_t packed = first + p.group <= keys ? p.group : 0; /* of the tokens; the others: the ring */
  if (part)
    packed = values > first ? min(values - first, count) : 0;
  float *scales = (float *)(rows + p.group * pairs), *minima = scales + d;
  uint8_t *block = p.pool + table[first >> p.block_shift] * p.block_bytes;
  for (uint32_t i = c; i < count * (d / 8); i += d) {
    const uint32_t t = i / (d / 8), eight = i % (d / 8), token = first + t;
    const uint4 four =
        *(const uint4 *)(exact + exact_table[token >> pages.block_shift] * pages.block_elements +
                         part * pages.value_offset +
                         slot_offset(pages.block_shift, d, head, token) + eight * 8);
    uint32_t *to = rows + t * pairs + eight * 4;
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  }
  __syncthreads();
  auto element = [&](uint32_t t, uint32_t channel) {
    return to_float(((const KvBf16 *)(rows + t * pairs))[channel]);
  };
  for (uint32_t i = c; i < (count - packed) * (d / 2); i += d) {
    const uint32_t t = packed + i / (d / 2), pair = i % (d / 2), two = rows[t * pairs + pair];
    ((uint32_t *)ring_slot(p, slot, part, head, first + t))[pair] =
        to_half(low_float(two)) | (uint32_t)to_half(high_float(two)) << 16;
  }
  /* A thread has a channel of the keys; or a token's group of the values, lanes different tokens.
   */
  const uint32_t token = c % p.group, begin = c / p.group * p.group;
  if (part ? token < packed : packed > 0) {
    float low = INFINITY, high = -INFINITY;
    for (uint32_t j = 0; j < p.group; j++) {
      const float x = part ? element(token, begin + j) : element(j, c);
      low = fminf(low, x);
      high = fmaxf(high, x);
    }
    const Scale s = scale_of(low, high, p.bits);
    const uint32_t at = part ? (token * d + begin) / p.group : c;
    scales[at] = s.scale;
    minima[at] = s.minimum;
    if (part) {
      const uint64_t offset = slot_offset(p.block_shift, d, head, first + token) + begin;
      ((uint32_t *)(block + p.value_scales))[offset / p.group] =
          (uint32_t)s.scale_bits | (uint32_t)s.minimum_bits << 16;
    } else {
      uint16_t *to = key_scales(p, block, head, first);
      to[c] = s.scale_bits;
      to[d + c] = s.minimum_bits;
    }
  }
  __syncthreads();
  const uint32_t per_word = 32 / p.bits, words = d / per_word;
  for (uint32_t i = c; i < packed * words; i += d) {
    const uint32_t t = i / words, w = i % words;
    uint32_t word = 0;
    for (uint32_t step = 0; step < per_word; step++) { /* neighbours begin at different elements */
      const uint32_t e = (step + w) % per_word, channel = w * per_word + e;
      const uint32_t at = part ? (t * d + channel) / p.group : channel;
      const Scale s = {0, 0, scales[at], minima[at]};
      word |= (uint32_t)code_of(element(t, channel), s, p.bits) << place_of(e, p.bits);
    }
    const uint64_t offset = slot_offset(p.block_shift, d, head, first + t);
    ((uint32_t *)(block + (part ? p.values : 0) + offset * p.bits / 8))[w] = word;
  }
}

static cudaError_t launch_pack(const PackedLayers &layers, uint32_t n_layers, const uint32_t *table,
                               const uint32_t *exact_table, uint32_t slot, uint32_t n,
                               cudaStream_t stream) {
  const KvCudaPacked &p = layers.packed;
  if (p.bits == 8 || p.head_dim > MAX_HEAD || p.head_dim % 8 || p.head_dim % p.group)
    return cudaErrorInvalidValue;
  const uint32_t bytes =
      p.group * (p.head_dim + 2) * sizeof(KvBf16) + 2 * p.head_dim * sizeof(float);
  dim3 grid((n + p.group - 1) / p.group, p.n_kv_heads * 2, n_layers);
  kivi_pack<<<grid, p.head_dim, bytes, stream>>>(layers, table, exact_table, slot, n);
  return cudaGetLastError();
}

cudaError_t kv_cuda_kivi_pack(const KvCudaPacked *packed, const uint32_t *table,
                              const KvCudaPages *pages, const uint32_t *exact_table, uint32_t slot,
                              uint32_t n, uint32_t n_layers, cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  for (uint32_t l = 0; n > 0 && l < n_layers && status == cudaSuccess;) {
    PackedLayers layers = {};
    layers.packed = packed[l];
    layers.pages = pages[l];
    uint32_t together = 0;
    do {
      layers.at[together++] = {packed[l].pool, packed[l].ring, pages[l].pool};
      l++;
    } while (l < n_layers && together < KV_CUDA_TOGETHER &&
             packed[l].n_kv_heads == layers.packed.n_kv_heads &&
             packed[l].head_dim == layers.packed.head_dim);
    status = launch_pack(layers, together, table, exact_table, slot, n, stream);
  }
  return status;
}

/* grid (R, Hkv), d threads. The ring is longer than R, so to do it again changes nothing. */
static __global__ void kivi_append(const KvBf16 *qkv, const KvCudaPacked p,
                                   const KvCudaTables tables, const uint32_t *slots,
                                   const uint32_t *contexts, uint32_t n_heads) {
  __shared__ Codes shared;
  uint32_t row = blockIdx.x, head = blockIdx.y, c = threadIdx.x, d = p.head_dim;
  uint32_t n = contexts[row], slot = slots[row];
  if (n == 0)
    return;
  const KvBf16 *key = qkv + ((uint64_t)row * (n_heads + 2 * p.n_kv_heads) + n_heads + head) * d + c;
  ring_slot(p, slot, 0, head, n - 1)[c] = to_half(to_float(key[0]));
  ring_slot(p, slot, 1, head, n - 1)[c] = to_half(to_float(key[(uint64_t)p.n_kv_heads * d]));
  auto block_of = [&](uint32_t t) {
    return p.pool + block_at(tables, row, t, p.block_shift) * p.block_bytes;
  };
  if (n > p.residual) {
    uint32_t t = n - 1 - p.residual;
    pack_value(p, block_of(t), head, t, shared, half_to_float(ring_slot(p, slot, 1, head, t)[c]));
  }
  if (n % p.residual == 0)
    for (uint32_t first = n - p.residual; first < n; first += p.group)
      pack_key_group(p, block_of(first), head, first, shared,
                     [&](uint32_t t) { return half_to_float(ring_slot(p, slot, 0, head, t)[c]); });
}

cudaError_t kv_cuda_kivi_append(const KvBf16 *qkv, const KvCudaPacked *packed,
                                const KvCudaTables *tables, const uint32_t *slots,
                                const uint32_t *contexts, uint32_t rows, uint32_t n_heads,
                                cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (packed->bits == 8 || packed->head_dim > MAX_HEAD || packed->head_dim % packed->group)
    return cudaErrorInvalidValue;
  kivi_append<<<dim3(rows, packed->n_kv_heads), packed->head_dim, 0, stream>>>(
      qkv, *packed, *tables, slots, contexts, n_heads);
  return cudaGetLastError();
}
