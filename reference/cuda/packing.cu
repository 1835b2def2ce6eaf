/* Writing to caches that are not bf16, and packing (kivi): min and max of a group, codes, words.
 * A thread is a channel. Twins: kv_host_round_e4m3(), kv_host_kivi_group(). */
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

/* The words of codes[d]; every thread of the block comes here. */
static __device__ void write_words(uint8_t *to, const uint8_t *codes, uint32_t d, uint32_t bits) {
  uint32_t per_word = 32 / bits, i = threadIdx.x;
  __syncthreads();
  if (i < d / per_word) {
    uint32_t word = 0;
    for (uint32_t e = 0; e < per_word; e++)
      word |= (uint32_t)codes[i * per_word + e] << (e / 2 * bits + e % 2 * 16);
    ((uint32_t *)to)[i] = word;
  }
  __syncthreads();
}

/* This channel of the `group` keys from token `first`, a multiple of it. */
template <typename Get>
static __device__ void pack_key_group(const KvCudaPacked &p, uint8_t *block, uint32_t head,
                                      uint32_t first, Codes &shared, Get get) {
  uint32_t c = threadIdx.x, mask = (1u << p.block_shift) - 1, d = p.head_dim;
  float low = INFINITY, high = -INFINITY;
  for (uint32_t j = 0; j < p.group; j++) {
    float x = get(first + j);
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
  Scale s = scale_of(low, high, p.bits);
  uint32_t groups = (1u << p.block_shift) / p.group, group = (first & mask) / p.group;
  uint16_t *scales = (uint16_t *)(block + p.key_scales) + ((uint64_t)head * groups + group) * 2 * d;
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

/* grid (groups of tokens, Hkv), d threads */
static __global__ void kivi_pack(const KvCudaPacked p, const uint32_t *table,
                                 const KvCudaPages pages, const uint32_t *exact_table,
                                 uint32_t slot, uint32_t n) {
  __shared__ Codes shared;
  uint32_t head = blockIdx.y, first = blockIdx.x * p.group, c = threadIdx.x, d = p.head_dim;
  uint32_t keys = n / p.residual * p.residual, values = n > p.residual ? n - p.residual : 0;
  uint8_t *block = p.pool + table[first >> p.block_shift] * p.block_bytes;
  auto exact = [&](uint32_t token, uint64_t part) {
    return to_float(pages.pool[exact_table[token >> pages.block_shift] * pages.block_elements +
                               part + slot_offset(pages.block_shift, d, head, token) + c]);
  };
  if (first + p.group <= keys)
    pack_key_group(p, block, head, first, shared, [&](uint32_t t) { return exact(t, 0); });
  else
    for (uint32_t t = first; t < min(n, first + p.group); t++)
      ring_slot(p, slot, 0, head, t)[c] = to_half(exact(t, 0));
  for (uint32_t t = first; t < min(n, first + p.group); t++) {
    float x = exact(t, pages.value_offset);
    if (t < values)
      pack_value(p, block, head, t, shared, x);
    else
      ring_slot(p, slot, 1, head, t)[c] = to_half(x);
  }
}

cudaError_t kv_cuda_kivi_pack(const KvCudaPacked *packed, const uint32_t *table,
                              const KvCudaPages *pages, const uint32_t *exact_table, uint32_t slot,
                              uint32_t n, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  if (packed->bits == 8 || packed->head_dim > MAX_HEAD || packed->head_dim % packed->group)
    return cudaErrorInvalidValue;
  dim3 grid((n + packed->group - 1) / packed->group, packed->n_kv_heads);
  kivi_pack<<<grid, packed->head_dim, 0, stream>>>(*packed, table, *pages, exact_table, slot, n);
  return cudaGetLastError();
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
