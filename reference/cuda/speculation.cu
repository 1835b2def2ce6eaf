/* Guessing which tokens a layer will attend to (infinigen): the columns of a prompt, its partial
 * keys, partial queries and their scores, how many tokens count and which; and those tokens brought
 * from pinned host memory, row by row. Twins: reference/host/speculation.h,
 * reference/host/format_infinigen.c. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/choose.cuh"
#include "reference/cuda/speculation.h"

enum { THREADS = 256, WARPS = THREADS / 32, MAX_HEAD = 128, MAX_GROUP = 128 };

static __device__ __forceinline__ KvBf16 *key_row(const KvCudaPages &pages, const uint32_t *table,
                                                  uint32_t head, uint32_t slot) {
  uint32_t mask = (1u << pages.block_shift) - 1;
  return pages.pool + table[slot >> pages.block_shift] * pages.block_elements +
         (((uint64_t)head << pages.block_shift) + (slot & mask)) * pages.head_dim;
}

/* What x has along a direction, of d elements, a multiple of 4. */
static __device__ __forceinline__ float along(const float *direction, const float *x, uint32_t d) {
  float sum = 0.0f;
  for (uint32_t i = 0; i < d; i += 4) {
    float4 v = *(const float4 *)(direction + i), y = *(const float4 *)(x + i);
    sum += v.x * y.x + v.y * y.y + v.z * y.z + v.w * y.w;
  }
  return sum;
}

static __device__ __forceinline__ const float *direction_of(const KvCudaSkew &skew, uint32_t head,
                                                            uint32_t column) {
  return skew.directions + ((uint64_t)head * skew.head_dim + column) * skew.head_dim;
}

/* --- columns --------------------------------------------------------------------------------- */

enum { PARTS = 16 };

/* A thread is a direction, over every PARTS-th query. sums[Hkv][PARTS][MAX_HEAD]. grid (PARTS,
 * Hkv), MAX_HEAD threads */
static __global__ void __launch_bounds__(MAX_HEAD)
    sum_along(float *sums, const KvCudaSkew skew, const KvBf16 *q, uint32_t n, uint32_t n_heads,
              uint32_t group) {
  __shared__ __align__(16) float query[MAX_HEAD];
  uint32_t head = blockIdx.y, d = skew.head_dim, column = threadIdx.x;
  const float *direction = direction_of(skew, head, min(column, d - 1));
  float sum = 0.0f;
  for (uint32_t i = blockIdx.x; i < n * group; i += PARTS) {
    __syncthreads();
    if (column < d)
      query[column] =
          to_float(q[((uint64_t)(i / group) * n_heads + head * group + i % group) * d + column]);
    __syncthreads();
    sum += fabsf(along(direction, query, d));
  }
  sums[((uint64_t)head * PARTS + blockIdx.x) * MAX_HEAD + column] = sum;
}

/* Its place among the chosen is the number of those before it. grid (Hkv), MAX_HEAD threads */
static __global__ void __launch_bounds__(MAX_HEAD)
    take_columns(uint32_t *columns, const float *sums, uint32_t d, uint32_t count) {
  __shared__ float totals[MAX_HEAD];
  __shared__ uint32_t taken[MAX_HEAD];
  uint32_t column = threadIdx.x, before = 0, place = 0;
  float total = 0.0f;
  for (uint32_t p = 0; p < PARTS; p++)
    total += sums[((uint64_t)blockIdx.x * PARTS + p) * MAX_HEAD + column];
  totals[column] = total;
  __syncthreads();
  for (uint32_t i = 0; i < d; i++)
    before += totals[i] > total || (totals[i] == total && i < column);
  taken[column] = column < d && before < count;
  __syncthreads();
  for (uint32_t i = 0; i < column; i++)
    place += taken[i];
  if (taken[column])
    columns[blockIdx.x * count + place] = column;
}

static bool fits(const KvCudaSkew &skew) {
  uint32_t d = skew.head_dim, count = skew.partial.head_dim;
  return d > 0 && d <= MAX_HEAD && d % 8 == 0 && count > 0 && count <= d && count % 8 == 0;
}

uint64_t kv_cuda_choose_columns_scratch_bytes(uint32_t n_kv_heads) {
  return (uint64_t)n_kv_heads * PARTS * MAX_HEAD * sizeof(float);
}

cudaError_t kv_cuda_choose_columns(uint32_t *columns, const KvCudaSkew *skew, const KvBf16 *q,
                                   uint32_t n, uint32_t n_heads, void *scratch,
                                   cudaStream_t stream) {
  uint32_t kv = skew->partial.n_kv_heads;
  if (!fits(*skew) || n == 0)
    return cudaErrorInvalidValue;
  sum_along<<<dim3(PARTS, kv), MAX_HEAD, 0, stream>>>((float *)scratch, *skew, q, n, n_heads,
                                                      n_heads / kv);
  take_columns<<<kv, MAX_HEAD, 0, stream>>>(columns, (const float *)scratch, skew->head_dim,
                                            skew->partial.head_dim);
  return cudaGetLastError();
}

/* --- partial keys and queries ---------------------------------------------------------------- */

enum { TOKENS = 4 };

/* A warp is TOKENS tokens at a time, so that a direction is read once for them; a lane is a column.
 * grid (some, Hkv) */
static __global__ void __launch_bounds__(THREADS)
    partial_keys(const KvCudaSkew skew, const uint32_t *columns, const uint32_t *partial_table,
                 const KvCudaPages pages, const uint32_t *table, uint32_t n) {
  __shared__ __align__(16) float keys[WARPS][TOKENS][MAX_HEAD];
  uint32_t head = blockIdx.y, d = skew.head_dim, count = skew.partial.head_dim;
  uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  columns += head * count;
  for (uint32_t first = (blockIdx.x * WARPS + warp) * TOKENS; first < n;
       first += gridDim.x * WARPS * TOKENS) {
    __syncwarp();
    for (uint32_t t = 0; t < TOKENS; t++) {
      const KvBf16 *key = key_row(pages, table, head, min(first + t, n - 1));
      for (uint32_t i = lane * 2; i < d; i += 64) {
        uint32_t pair = *(const uint32_t *)(key + i);
        keys[warp][t][i] = low_float(pair);
        keys[warp][t][i + 1] = high_float(pair);
      }
    }
    __syncwarp();
    for (uint32_t j = lane; j < count; j += 32) {
      const float *direction = direction_of(skew, head, columns[j]);
      float sums[TOKENS] = {};
      for (uint32_t i = 0; i < d; i += 4) {
        float4 v = *(const float4 *)(direction + i);
#pragma unroll
        for (uint32_t t = 0; t < TOKENS; t++) {
          float4 x = *(const float4 *)&keys[warp][t][i];
          sums[t] += v.x * x.x + v.y * x.y + v.z * x.z + v.w * x.w;
        }
      }
#pragma unroll
      for (uint32_t t = 0; t < TOKENS; t++)
        if (first + t < n)
          key_row(skew.partial, partial_table, head, first + t)[j] = to_bf16(sums[t]);
    }
  }
}

cudaError_t kv_cuda_partial_keys(const KvCudaSkew *skew, const uint32_t *columns,
                                 const uint32_t *partial_table, const KvCudaPages *pages,
                                 const uint32_t *table, uint32_t n, cudaStream_t stream) {
  if (!fits(*skew))
    return cudaErrorInvalidValue;
  if (n == 0)
    return cudaSuccess;
  uint32_t some = (n + WARPS * TOKENS - 1) / (WARPS * TOKENS);
  partial_keys<<<dim3(some < 256 ? some : 256, pages->n_kv_heads), THREADS, 0, stream>>>(
      *skew, columns, partial_table, *pages, table, n);
  return cudaGetLastError();
}

/* grid (H, S), MAX_HEAD threads */
static __global__ void __launch_bounds__(MAX_HEAD)
    partial_queries(float *out, const KvCudaSkew skew, const KvCudaSpeculated *sequences,
                    const KvBf16 *q, uint32_t group) {
  __shared__ __align__(16) float query[MAX_HEAD];
  uint32_t head = blockIdx.x / group, d = skew.head_dim, count = skew.partial.head_dim;
  uint64_t row = (uint64_t)blockIdx.y * gridDim.x + blockIdx.x;
  if (threadIdx.x < d)
    query[threadIdx.x] = to_float(q[row * d + threadIdx.x]);
  __syncthreads();
  if (threadIdx.x >= count)
    return;
  uint32_t column = sequences[blockIdx.y].columns[skew.first_column + head * count + threadIdx.x];
  out[row * count + threadIdx.x] = along(direction_of(skew, head, column), query, d);
}

cudaError_t kv_cuda_partial_queries(float *out, const KvCudaSkew *skew,
                                    const KvCudaSpeculated *sequences, const KvBf16 *q, uint32_t n,
                                    uint32_t n_heads, cudaStream_t stream) {
  if (!fits(*skew))
    return cudaErrorInvalidValue;
  if (n == 0)
    return cudaSuccess;
  partial_queries<<<dim3(n_heads, n), MAX_HEAD, 0, stream>>>(out, *skew, sequences, q,
                                                             n_heads / skew->partial.n_kv_heads);
  return cudaGetLastError();
}

/* --- scores, and what counts ----------------------------------------------------------------- */

enum { HEADS = 8 }; /* for which a thread reads its key at once */

/* Where things stand in the scratch. */
struct Scores {
  float *scores;    /* [S][H][longest] */
  float *largest;   /* [S][H][tiles] */
  float *relative;  /* [S][Hkv][longest] */
  uint32_t *counts; /* [S][Hkv] */
  uint64_t longest;
  uint32_t tiles;
};

static uint64_t round_up(uint64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

static uint64_t lay_out(Scores &s, char *at, uint64_t n, uint64_t n_heads, uint64_t n_kv_heads,
                        uint32_t longest) {
  s.longest = longest;
  s.tiles = (longest + THREADS - 1) / THREADS;
  uint64_t largest = round_up(n * n_heads * longest * sizeof(float));
  uint64_t relative = largest + round_up(n * n_heads * s.tiles * sizeof(float));
  uint64_t counts = relative + round_up(n * n_kv_heads * longest * sizeof(float));
  s.scores = (float *)at;
  s.largest = (float *)(at + largest);
  s.relative = (float *)(at + relative);
  s.counts = (uint32_t *)(at + counts);
  return counts + n * n_kv_heads * sizeof(uint32_t);
}

uint64_t kv_cuda_speculate_scratch_bytes(uint32_t n, uint32_t n_heads, uint32_t n_kv_heads,
                                         uint32_t longest) {
  Scores unused;
  return lay_out(unused, nullptr, n, n_heads, n_kv_heads, longest);
}

/* A thread is a token, over all query heads of a KV head. grid (tiles, Hkv, S) */
static __global__ void __launch_bounds__(THREADS)
    score_partial(const Scores s, const KvCudaSkew skew, const KvCudaSpeculated *sequences,
                  const float *q, const KvCudaTables tables, uint32_t group, float scale) {
  __shared__ __align__(16) float queries[HEADS][MAX_HEAD];
  __shared__ float parts[HEADS][WARPS];
  uint32_t head = blockIdx.y, sequence = blockIdx.z, count = skew.partial.head_dim;
  uint32_t n = sequences[sequence].past, token = blockIdx.x * THREADS + threadIdx.x;
  if (blockIdx.x * THREADS >= n)
    return;
  uint64_t first_head = ((uint64_t)sequence * gridDim.y + head) * group;
  const KvBf16 *key =
      key_row(skew.partial, tables.table + tables.table_starts[sequence], head, min(token, n - 1));
  for (uint32_t g0 = 0; g0 < group; g0 += HEADS) {
    uint32_t heads = min(group - g0, (uint32_t)HEADS);
    float sums[HEADS] = {};
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < HEADS * count; i += THREADS)
      queries[i / count][i % count] =
          i / count < heads ? q[(first_head + g0 + i / count) * count + i % count] : 0.0f;
    __syncthreads();
    for (uint32_t i = 0; i < count; i += 4) {
      uint2 pairs = *(const uint2 *)(key + i);
      float k[4] = {low_float(pairs.x), high_float(pairs.x), low_float(pairs.y),
                    high_float(pairs.y)};
#pragma unroll
      for (int g = 0; g < HEADS; g++) {
        float4 x = *(const float4 *)&queries[g][i];
        sums[g] += k[0] * x.x + k[1] * x.y + k[2] * x.z + k[3] * x.w;
      }
    }
#pragma unroll
    for (uint32_t g = 0; g < HEADS; g++) {
      float score = token < n && g < heads ? sums[g] * scale : -INFINITY, largest = score;
      if (token < n && g < heads)
        s.scores[(first_head + g0 + g) * s.longest + token] = score;
      for (int step = 16; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
      if (threadIdx.x % 32 == 0)
        parts[g][threadIdx.x / 32] = largest;
    }
    __syncthreads();
    if (threadIdx.x < heads) {
      float largest = parts[threadIdx.x][0];
      for (uint32_t w = 1; w < WARPS; w++)
        largest = fmaxf(largest, parts[threadIdx.x][w]);
      s.largest[(first_head + g0 + threadIdx.x) * s.tiles + blockIdx.x] = largest;
    }
  }
}

/* Each token's distance to the highest score, and how many are near enough. grid (Hkv, S) */
static __global__ void __launch_bounds__(SELECTORS)
    relate(const Scores s, const KvCudaSpeculated *sequences, uint32_t group, float alpha) {
  __shared__ float largest[MAX_GROUP];
  uint32_t n = sequences[blockIdx.y].past, near = 0, total;
  uint64_t one = (uint64_t)blockIdx.y * gridDim.x + blockIdx.x, first_head = one * group;
  for (uint32_t g = threadIdx.x / 32; g < group; g += SELECTORS / 32) {
    float most = -INFINITY;
    for (uint32_t t = threadIdx.x % 32; t < (n + THREADS - 1) / THREADS; t += 32)
      most = fmaxf(most, s.largest[(first_head + g) * s.tiles + t]);
    for (int step = 16; step > 0; step /= 2)
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    if (threadIdx.x % 32 == 0)
      largest[g] = most;
  }
  __syncthreads();
  for (uint32_t t = threadIdx.x; t < n; t += SELECTORS) {
    float relative = -INFINITY;
    for (uint32_t g = 0; g < group; g++)
      relative = fmaxf(relative, s.scores[(first_head + g) * s.longest + t] - largest[g]);
    s.relative[one * s.longest + t] = relative;
    near += relative > -alpha;
  }
  (void)sum_before(near, &total);
  if (threadIdx.x == 0)
    s.counts[one] = total;
}

/* Bits in the order of the numbers. */
static __device__ __forceinline__ uint32_t ordered(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* As many of each head as count in the mean. grid (Hkv, S) */
static __global__ void __launch_bounds__(SELECTORS)
    choose_tokens(uint32_t *lengths, uint32_t *chosen, const Scores s,
                  const KvCudaSpeculated *sequences, uint32_t most) {
  uint32_t kv = gridDim.x, n = sequences[blockIdx.y].past;
  uint64_t one = (uint64_t)blockIdx.y * kv + blockIdx.x, counted = 0;
  for (uint32_t h = 0; h < kv; h++)
    counted += s.counts[(uint64_t)blockIdx.y * kv + h];
  uint64_t mean = (2 * counted + kv) / (2 * kv), cap = sequences[blockIdx.y].most;
  uint32_t wanted = (uint32_t)min(max(mean, (uint64_t)1), cap);
  if (blockIdx.x == 0 && threadIdx.x == 0)
    lengths[blockIdx.y] = wanted + 1;
  if (wanted >= n)
    return;
  const float *relative = s.relative + one * s.longest;
  chosen += one * most;
  choose(
      n, wanted, [&](uint32_t i) { return ordered(relative[i]); },
      [&](uint32_t place, uint32_t i) { chosen[place] = i; });
}

cudaError_t kv_cuda_speculate(uint32_t *lengths, uint32_t *chosen, const KvCudaSkew *skew,
                              const KvCudaSpeculated *sequences, const float *q,
                              const KvCudaTables *tables, uint32_t n, uint32_t n_heads,
                              uint32_t longest, uint32_t most, float alpha, void *scratch,
                              cudaStream_t stream) {
  uint32_t kv = skew->partial.n_kv_heads, group = n_heads / kv;
  Scores s;
  if (!fits(*skew) || group > MAX_GROUP)
    return cudaErrorInvalidValue;
  if (n == 0)
    return cudaSuccess;
  (void)lay_out(s, (char *)scratch, n, n_heads, kv, longest);
  if (s.tiles > 0)
    score_partial<<<dim3(s.tiles, kv, n), THREADS, 0, stream>>>(
        s, *skew, sequences, q, *tables, group, 1.0f / sqrtf((float)skew->head_dim));
  relate<<<dim3(kv, n), SELECTORS, 0, stream>>>(s, sequences, group, alpha);
  choose_tokens<<<dim3(kv, n), SELECTORS, 0, stream>>>(lengths, chosen, s, sequences, most);
  return cudaGetLastError();
}

/* --- from and to host memory ----------------------------------------------------------------- */

enum { AHEAD = 4 }; /* rows that a warp has under way */

struct Gather {
  KvCudaPages area, home;
  KvCudaTables area_tables, home_tables;
  const KvCudaSpeculated *sequences;
  const uint32_t *lengths, *chosen;
  uint32_t n, most;
};

/* A warp takes AHEAD tokens of a head of a sequence: half of its lanes their keys, half their
 * values, 16 bytes each. grid (any) */
static __global__ void __launch_bounds__(THREADS) gather_chosen(const Gather p) {
  const uint32_t kv = p.area.n_kv_heads, lane = threadIdx.x % 16, chunks = p.area.head_dim / 8;
  const uint64_t value = threadIdx.x % 32 / 16 ? p.area.value_offset : 0;
  const uint32_t pieces = (p.most + AHEAD - 1) / AHEAD;
  const uint64_t all = (uint64_t)p.n * kv * pieces;
  for (uint64_t i = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32; i < all;
       i += (uint64_t)gridDim.x * WARPS) {
    uint64_t one = i / pieces;
    uint32_t s = (uint32_t)(one / kv), head = (uint32_t)(one % kv);
    uint32_t first = (uint32_t)(i % pieces) * AHEAD, past = p.sequences[s].past;
    uint32_t wanted = p.lengths ? p.lengths[s] - 1 : past;
    if (first >= wanted)
      continue;
    const uint32_t *from = p.home_tables.table + p.home_tables.table_starts[s];
    const uint32_t *to = p.area_tables.table + p.area_tables.table_starts[s];
    const uint32_t *chosen = wanted < past ? p.chosen + one * p.most : nullptr;
    uint4 row[AHEAD];
#pragma unroll
    for (uint32_t a = 0; a < AHEAD; a++)
      if (first + a < wanted && lane < chunks) {
        uint32_t token = chosen ? chosen[first + a] : first + a;
        row[a] = ((const uint4 *)(key_row(p.home, from, head, token) + value))[lane];
      }
#pragma unroll
    for (uint32_t a = 0; a < AHEAD; a++)
      if (first + a < wanted && lane < chunks)
        ((uint4 *)(key_row(p.area, to, head, first + a) + value))[lane] = row[a];
  }
}

cudaError_t kv_cuda_gather_chosen(const KvCudaPages *area, const KvCudaTables *area_tables,
                                  const KvCudaPages *home, const KvCudaTables *home_tables,
                                  const KvCudaSpeculated *sequences, const uint32_t *lengths,
                                  const uint32_t *chosen, uint32_t n, uint32_t most,
                                  uint32_t groups, cudaStream_t stream) {
  if (groups == 0 || area->head_dim > MAX_HEAD || area->head_dim % 8)
    return cudaErrorInvalidValue;
  if (n == 0 || most == 0)
    return cudaSuccess;
  const Gather p = {*area, *home, *area_tables, *home_tables, sequences, lengths, chosen, n, most};
  gather_chosen<<<groups, THREADS, 0, stream>>>(p);
  return cudaGetLastError();
}

/* grid (Hkv, S), MAX_HEAD threads */
static __global__ void __launch_bounds__(MAX_HEAD)
    store_newest(const KvBf16 *qkv, const Gather p, const KvCudaSkew skew, bool skewed,
                 uint32_t n_heads) {
  __shared__ __align__(16) float key[MAX_HEAD];
  const uint32_t head = blockIdx.x, s = blockIdx.y, kv = gridDim.x, d = p.area.head_dim;
  const uint32_t past = p.sequences[s].past, slot = p.lengths ? p.lengths[s] - 1 : past;
  const uint32_t *from = p.home_tables.table + p.home_tables.table_starts[s];
  const uint32_t *to = p.area_tables.table + p.area_tables.table_starts[s];
  const KvBf16 *keys = qkv + ((uint64_t)s * (n_heads + 2 * kv) + n_heads + head) * d;
  for (uint32_t i = threadIdx.x; i < d / 4; i += MAX_HEAD) {
    uint32_t part = i / (d / 8), chunk = i % (d / 8);
    uint4 row = ((const uint4 *)(keys + part * (uint64_t)kv * d))[chunk];
    ((uint4 *)(key_row(p.area, to, head, slot) + part * p.area.value_offset))[chunk] = row;
    ((uint4 *)(key_row(p.home, from, head, past) + part * p.home.value_offset))[chunk] = row;
  }
  if (!skewed)
    return;
  if (threadIdx.x < d)
    key[threadIdx.x] = to_float(keys[threadIdx.x]);
  __syncthreads();
  const uint32_t count = skew.partial.head_dim;
  if (threadIdx.x >= count)
    return;
  uint32_t column = p.sequences[s].columns[skew.first_column + head * count + threadIdx.x];
  key_row(skew.partial, from, head, past)[threadIdx.x] =
      to_bf16(along(direction_of(skew, head, column), key, d));
}

cudaError_t kv_cuda_store_newest(const KvBf16 *qkv, const KvCudaPages *area,
                                 const KvCudaTables *area_tables, const KvCudaPages *home,
                                 const KvCudaTables *home_tables, const KvCudaSkew *skew,
                                 const KvCudaSpeculated *sequences, const uint32_t *lengths,
                                 uint32_t n, uint32_t n_heads, cudaStream_t stream) {
  if (area->head_dim > MAX_HEAD || area->head_dim % 8 || (skew && !fits(*skew)))
    return cudaErrorInvalidValue;
  if (n == 0)
    return cudaSuccess;
  const Gather p = {*area, *home, *area_tables, *home_tables, sequences, lengths, nullptr, n, 0};
  const KvCudaSkew none = {};
  store_newest<<<dim3(area->n_kv_heads, n), MAX_HEAD, 0, stream>>>(qkv, p, skew ? *skew : none,
                                                                   skew != nullptr, n_heads);
  return cudaGetLastError();
}
