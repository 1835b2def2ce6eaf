/* Merging the caches of two layers (minicache): a warp a token's keys or values, over all KV heads.
 * Twins: kv_host_merge_distance(), kv_host_merge(). */
#include <cuda_fp16.h>

#include "reference/cuda/bf16.cuh"
#include "reference/cuda/merging.h"

enum { WARPS = 8, CHOOSERS = 1024 };

void kv_cuda_merged_lay_out(KvCudaMerged *m) {
  uint64_t tokens = (uint64_t)1 << m->block_shift;
  m->value_offset = tokens * m->n_kv_heads * m->head_dim;
  m->norms = 2 * m->value_offset;
  m->index = m->norms + 4 * tokens;
  m->block_elements = (m->index + 4 * tokens + 7) / 8 * 8; /* whole 16 bytes */
}

/* --- a pair of vectors ------------------------------------------------------------------------ */

struct Sums {
  float xx, yy, xy;
};

static __device__ __forceinline__ void add_pair(Sums &s, uint32_t x, uint32_t y) {
  float a = low_float(x), b = high_float(x), c = low_float(y), d = high_float(y);
  s.xx += a * a + b * b;
  s.yy += c * c + d * d;
  s.xy += a * c + b * d;
}

/* x(c), y(c): eight elements from 8 c, of `chunks`. The sums of the warp. */
template <typename X, typename Y>
static __device__ __forceinline__ Sums sums_of(uint32_t chunks, uint32_t lane, X x, Y y) {
  Sums s = {0.0f, 0.0f, 0.0f};
  for (uint32_t c = lane; c < chunks; c += 32) {
    uint4 a = *x(c), b = *y(c);
    add_pair(s, a.x, b.x);
    add_pair(s, a.y, b.y);
    add_pair(s, a.z, b.z);
    add_pair(s, a.w, b.w);
  }
  s.xx = warp_sum(s.xx);
  s.yy = warp_sum(s.yy);
  s.xy = warp_sum(s.xy);
  return s;
}

static __device__ __forceinline__ float angle_of(const Sums &s) {
  if (!(s.xx > 0.0f) || !(s.yy > 0.0f))
    return 0.0f;
  return acosf(fminf(fmaxf(s.xy / (sqrtf(s.xx) * sqrtf(s.yy)), -1.0f), 1.0f));
}

static __device__ __forceinline__ float distance_of(const Sums &s) {
  return angle_of(s) * 0.3183098861837907f; /* over pi */
}

/* What x and y are multiplied by in the direction between them. */
static __device__ __forceinline__ float2 shares_of(const Sums &s, float slerp) {
  float angle = angle_of(s), sine = sinf(angle), of_x = 1.0f - slerp, of_y = slerp;
  if (sine > 1e-4f) {
    of_x = sinf((1.0f - slerp) * angle) / sine;
    of_y = sinf(slerp * angle) / sine;
  }
  return make_float2(s.xx > 0.0f ? of_x / sqrtf(s.xx) : 0.0f,
                     s.yy > 0.0f ? of_y / sqrtf(s.yy) : 0.0f);
}

static __device__ __forceinline__ uint32_t mix_pair(uint32_t x, uint32_t y, float2 by) {
  return pack_bf16(by.x * low_float(x) + by.y * low_float(y),
                   by.x * high_float(x) + by.y * high_float(y));
}

/* Eight elements from 8 c of a token's vector in blocks laid out as those of KvCudaPages. */
static __device__ __forceinline__ uint4 *chunk_at(KvBf16 *block, uint32_t shift, uint32_t d,
                                                  uint32_t slot, uint32_t c) {
  uint32_t per_head = d / 8, head = c / per_head;
  return (uint4 *)(block + (((uint64_t)head << shift) + slot) * d + c % per_head * 8);
}

/* One token's merged entry: where its parts stand. */
struct Entry {
  KvBf16 *block; /* of the part's directions */
  __half *norm_x, *norm_y;
  uint32_t *index, slot;
};

static __device__ __forceinline__ Entry entry_of(const KvCudaMerged &m, uint32_t block,
                                                 uint32_t part, uint32_t slot) {
  Entry e;
  KvBf16 *base = m.pool + block * m.block_elements;
  __half *norms = (__half *)(base + m.norms) + (part << m.block_shift) + slot;
  e.block = base + part * m.value_offset;
  e.norm_x = norms;
  e.norm_y = norms + (2u << m.block_shift);
  e.index = (uint32_t *)(base + m.index) + (part << m.block_shift) + slot;
  e.slot = slot;
  return e;
}

/* Where a token's originals stand: x, then y `width` elements later. */
static __device__ __forceinline__ KvBf16 *kept_row(const KvCudaKept &kept, uint32_t pair,
                                                   uint32_t part, uint32_t row, uint32_t width) {
  return kept.rows + (((uint64_t)pair * 2 + part) * kept.capacity + row) * 2 * width;
}

/* Write the direction and norms; with `index` not 0 the originals too. */
template <typename X, typename Y>
static __device__ __forceinline__ void write_entry(const KvCudaMerged &m, const Entry &e,
                                                   const Sums &s, float slerp, uint32_t index,
                                                   KvBf16 *originals, uint32_t lane, X x, Y y) {
  const uint32_t width = m.n_kv_heads * m.head_dim;
  float2 by = shares_of(s, slerp);
  for (uint32_t c = lane; c < width / 8; c += 32) {
    uint4 a = *x(c), b = *y(c);
    *chunk_at(e.block, m.block_shift, m.head_dim, e.slot, c) =
        make_uint4(mix_pair(a.x, b.x, by), mix_pair(a.y, b.y, by), mix_pair(a.z, b.z, by),
                   mix_pair(a.w, b.w, by));
    if (index) {
      *(uint4 *)(originals + c * 8) = a;
      *(uint4 *)(originals + width + c * 8) = b;
    }
  }
  if (lane == 0) {
    *e.norm_x = __float2half_rn(fminf(sqrtf(s.xx), 65504.0f));
    *e.norm_y = __float2half_rn(fminf(sqrtf(s.yy), 65504.0f));
    *e.index = index;
  }
}

/* --- a prompt --------------------------------------------------------------------------------- */

/* A token's part in the exact blocks of both layers. */
struct Exact {
  KvBf16 *x, *y;
  uint32_t shift, d, slot;
};

static __device__ __forceinline__ Exact exact_at(const KvCudaPages &first,
                                                 const KvCudaPages &second, const uint32_t *table,
                                                 uint32_t part, uint32_t t) {
  uint32_t block = table[t >> first.block_shift];
  Exact e;
  e.x = first.pool + block * first.block_elements + part * first.value_offset;
  e.y = second.pool + block * second.block_elements + part * second.value_offset;
  e.shift = first.block_shift;
  e.d = first.head_dim;
  e.slot = t & ((1u << first.block_shift) - 1);
  return e;
}

/* grid (n / WARPS, 2) */
static __global__ void __launch_bounds__(32 * WARPS)
    measure(float *distances, const KvCudaPages first, const KvCudaPages second,
            const uint32_t *table, uint32_t n) {
  uint32_t t = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, part = blockIdx.y;
  if (t >= n)
    return;
  Exact at = exact_at(first, second, table, part, t);
  Sums s = sums_of(
      first.n_kv_heads * at.d / 8, lane,
      [&](uint32_t c) { return chunk_at(at.x, at.shift, at.d, at.slot, c); },
      [&](uint32_t c) { return chunk_at(at.y, at.shift, at.d, at.slot, c); });
  if (lane == 0)
    distances[(uint64_t)part * n + t] = distance_of(s);
}

cudaError_t kv_cuda_merge_measure(float *distances, const KvCudaPages *first,
                                  const KvCudaPages *second, const uint32_t *exact_table,
                                  uint32_t n, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  measure<<<dim3((n + WARPS - 1) / WARPS, 2), 32 * WARPS, 0, stream>>>(distances, *first, *second,
                                                                       exact_table, n);
  return cudaGetLastError();
}

/* The least of `least` and the greatest of `greatest` over the block, in every thread. */
static __device__ void reach_of(float &least, float &greatest) {
  __shared__ float2 warps[CHOOSERS / 32];
  for (int step = 16; step > 0; step /= 2) {
    least = fminf(least, __shfl_xor_sync(0xffffffffu, least, step));
    greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, step));
  }
  if (threadIdx.x % 32 == 0)
    warps[threadIdx.x / 32] = make_float2(least, greatest);
  __syncthreads();
  for (int w = 0; w < CHOOSERS / 32; w++) {
    least = fminf(least, warps[w].x);
    greatest = fmaxf(greatest, warps[w].y);
  }
}

/* A block a part; what stays apart is numbered in the order of the tokens. */
static __global__ void __launch_bounds__(CHOOSERS)
    choose(KvCudaKeptState *states, uint32_t *index, const float *distances, uint32_t n,
           float gamma) {
  __shared__ uint32_t warps[CHOOSERS / 32];
  const uint32_t part = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float least = INFINITY, greatest = 0.0f;
  distances += (uint64_t)part * n;
  index += (uint64_t)part * n;
  for (uint32_t t = threadIdx.x; t < n; t += CHOOSERS) {
    least = fminf(least, distances[t]);
    greatest = fmaxf(greatest, distances[t]);
  }
  reach_of(least, greatest);
  float threshold = gamma <= 0.0f   ? INFINITY
                    : gamma >= 1.0f ? 0.0f
                                    : greatest - gamma * (greatest - least);
  uint32_t count = 0;
  for (uint32_t base = 0; base < n; base += CHOOSERS) {
    uint32_t t = base + threadIdx.x, before = count;
    bool apart = t < n && distances[t] >= threshold;
    uint32_t votes = __ballot_sync(0xffffffffu, apart);
    if (lane == 0)
      warps[warp] = __popc(votes);
    __syncthreads();
    for (uint32_t w = 0; w < CHOOSERS / 32; w++) {
      before += w < warp ? warps[w] : 0;
      count += warps[w];
    }
    if (t < n)
      index[t] = apart ? 1 + before + __popc(votes & ((1u << lane) - 1)) : 0;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    KvCudaKeptState state = {threshold, count, 0, 0};
    states[part] = state;
  }
}

cudaError_t kv_cuda_merge_choose(KvCudaKeptState *states, uint32_t *index, const float *distances,
                                 uint32_t n, float gamma, cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  choose<<<2, CHOOSERS, 0, stream>>>(states, index, distances, n, gamma);
  return cudaGetLastError();
}

/* grid (n / WARPS, 2) */
static __global__ void __launch_bounds__(32 * WARPS)
    write_merged(const KvCudaMerged m, const uint32_t *table, const KvCudaPages first,
                 const KvCudaPages second, const uint32_t *exact_table, const uint32_t *index,
                 const KvCudaKept kept, uint32_t n, float slerp) {
  uint32_t t = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, part = blockIdx.y;
  const uint32_t width = m.n_kv_heads * m.head_dim;
  if (t >= n)
    return;
  Exact at = exact_at(first, second, exact_table, part, t);
  auto x = [&](uint32_t c) { return chunk_at(at.x, at.shift, at.d, at.slot, c); };
  auto y = [&](uint32_t c) { return chunk_at(at.y, at.shift, at.d, at.slot, c); };
  Sums s = sums_of(width / 8, lane, x, y);
  uint32_t apart = index[(uint64_t)part * n + t];
  write_entry(m, entry_of(m, table[t >> m.block_shift], part, at.slot), s, slerp, apart,
              kept_row(kept, m.pair, part, apart ? apart - 1 : 0, width), lane, x, y);
}

cudaError_t kv_cuda_merge_write(const KvCudaMerged *merged, const uint32_t *table,
                                const KvCudaPages *first, const KvCudaPages *second,
                                const uint32_t *exact_table, const uint32_t *index,
                                const KvCudaKept *kept, uint32_t n, float slerp,
                                cudaStream_t stream) {
  if (n == 0)
    return cudaSuccess;
  write_merged<<<dim3((n + WARPS - 1) / WARPS, 2), 32 * WARPS, 0, stream>>>(
      *merged, table, *first, *second, exact_table, index, *kept, n, slerp);
  return cudaGetLastError();
}

/* --- a token ---------------------------------------------------------------------------------- */

/* A warp a sequence and part. grid (S, 2) */
static __global__ void append(const KvCudaMerged m, const KvCudaTables tables,
                              const KvCudaKept *kept, const KvBf16 *staged,
                              const uint32_t *contexts, float slerp) {
  const uint32_t s = blockIdx.x, part = blockIdx.y, lane = threadIdx.x, n = contexts[s];
  const uint32_t width = m.n_kv_heads * m.head_dim;
  if (n == 0)
    return;
  const KvBf16 *from = staged + ((uint64_t)s * 4 + part) * width;
  auto x = [&](uint32_t c) { return (const uint4 *)(from + c * 8); };
  auto y = [&](uint32_t c) { return (const uint4 *)(from + 2 * width + c * 8); };
  Sums sums = sums_of(width / 8, lane, x, y);
  KvCudaKeptState *state = &kept[s].states[m.pair * 2 + part];
  KvCudaKeptState was = *state;
  uint32_t before = was.context == n ? was.before : was.count; /* the same token once more */
  bool apart = distance_of(sums) >= was.threshold && before < kept[s].capacity;
  __syncwarp(); /* every lane has read it */
  if (lane == 0) {
    KvCudaKeptState now = {was.threshold, before + apart, before, n};
    *state = now;
  }
  uint32_t slot = (n - 1) & ((1u << m.block_shift) - 1);
  uint32_t block = tables.table[tables.table_starts[s] + ((n - 1) >> m.block_shift)];
  write_entry(m, entry_of(m, block, part, slot), sums, slerp, apart ? before + 1 : 0,
              kept_row(kept[s], m.pair, part, apart ? before : 0, width), lane, x, y);
}

cudaError_t kv_cuda_merge_append(const KvCudaMerged *merged, const KvCudaTables *tables,
                                 const KvCudaKept *kept, const KvBf16 *staged,
                                 const uint32_t *contexts, uint32_t sequences, float slerp,
                                 cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  append<<<dim3(sequences, 2), 32, 0, stream>>>(*merged, *tables, kept, staged, contexts, slerp);
  return cudaGetLastError();
}
