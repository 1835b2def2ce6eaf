/* Tokens that leave as others come (h2o): attention summed over a prompt's queries, the choice of
 * what stays of it, and at each step the slot that the next token takes and the attention that the
 * slots draw. Twins: kv_host_h2o_add(), kv_host_h2o_slot(), kv_host_snapkv_select(). */
#include "reference/cuda/choose.cuh"
#include "reference/cuda/scores.cuh"

enum { HEADS = 16, MAX_GROUP = 128 };

/* --- a prompt: the columns of its matrix of probabilities ------------------------------------ */

/* One chunk of one prompt. Of each query head: logs[H][tokens], of its rows' sums of exponentials;
 * columns[H][past + tokens]. */
struct Chunk {
  float *logs, *columns;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaPages pages;
  const uint32_t *table;
  uint32_t past, tokens, group;
  float scale;
};

template <int d>
static __device__ __forceinline__ void load_queries(Tile<d> &tile, const Chunk &p, uint32_t head,
                                                    uint32_t first) {
  load_rows<d>(tile, p.q, [&](uint32_t r) -> const KvBf16 * {
    return first + r < p.tokens ? p.q + (first + r) * p.row_stride + head * d : nullptr;
  });
}

/* A warp is 16 queries of one head, over all keys that they see. grid (tokens / TILE, H) */
template <int d> static __global__ void __launch_bounds__(THREADS) sum_rows(const Chunk p) {
  __shared__ __align__(16) Tile<d> keys[2];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stage = 0;
  uint32_t head = blockIdx.y, kv_head = head / p.group, context = p.past + p.tokens;
  uint32_t first = (gridDim.x - 1 - blockIdx.x) * TILE; /* the longest first */
  uint32_t end = p.past + min(first + TILE, p.tokens), row = first + warp * 16 + lane / 4;
  const uint32_t positions[2] = {p.past + row, p.past + row + 8};
  const KvBf16 *const rows[2] = {p.q + min(row, p.tokens - 1) * p.row_stride + head * d,
                                 p.q + min(row + 8, p.tokens - 1) * p.row_stride + head * d};
  uint32_t q[d / 16][4];
  Running run[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  hold_queries<d>(q, rows);
  load_keys<d>(keys[0], p.pages, p.table, kv_head, 0, context);
  copies_commit();
  for (uint32_t k0 = 0; k0 < end; k0 += TILE, stage ^= 1) {
    if (k0 + TILE < end)
      load_keys<d>(keys[stage ^ 1], p.pages, p.table, kv_head, k0 + TILE, context);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    add_tile<d>(run, q, keys[stage], k0, positions, p.scale);
    __syncthreads(); /* the tile may be overwritten */
  }
#pragma unroll
  for (int half = 0; half < 2; half++) { /* every row sees the first key */
    const Running all = whole_row(run[half]);
    if (lane % 4 == 0 && row + half * 8 < p.tokens)
      p.logs[(uint64_t)head * p.tokens + row + half * 8] = all.largest + __log2f(all.sum);
  }
}

/* A warp is 16 keys, over all queries of one head that see them. grid (context / TILE, H) */
template <int d> static __global__ void __launch_bounds__(THREADS) sum_columns(const Chunk p) {
  __shared__ __align__(16) Tile<d> queries[2];
  __shared__ float logs[2][TILE];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stage = 0;
  uint32_t head = blockIdx.y, context = p.past + p.tokens, k0 = blockIdx.x * TILE;
  uint32_t begin = k0 > p.past ? (k0 - p.past) / TILE * TILE : 0;
  uint32_t token = k0 + warp * 16 + lane % 4 * 2, keys[d / 16][4];
  float sums[2][2] = {};
  load_keys<d>(queries[0], p.pages, p.table, head / p.group, k0, context);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  hold_keys<d>(keys, queries[0]);
  __syncthreads();
  auto load = [&](int to, uint32_t t0) {
    load_queries<d>(queries[to], p, head, t0);
    if (threadIdx.x < TILE)
      logs[to][threadIdx.x] =
          t0 + threadIdx.x < p.tokens ? p.logs[(uint64_t)head * p.tokens + t0 + threadIdx.x] : 0.0f;
  };
  load(0, begin);
  copies_commit();
  for (uint32_t t0 = begin; t0 < p.tokens; t0 += TILE, stage ^= 1) {
    if (t0 + TILE < p.tokens)
      load(stage ^ 1, t0 + TILE);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    add_columns<d>(sums, keys, queries[stage], logs[stage], p.scale, [&](uint32_t row, uint32_t i) {
      return t0 + row < p.tokens && token + i <= p.past + t0 + row;
    });
    __syncthreads(); /* the tile may be overwritten */
  }
  put_columns(sums, [&](uint32_t i, float sum) {
    if (token + i < context)
      p.columns[(uint64_t)head * context + token + i] = sum;
  });
}

/* grid (context / THREADS, Hkv) */
static __global__ void __launch_bounds__(THREADS)
    add_heads(float *out, const float *in, uint64_t stride, const float *columns, uint32_t past,
              uint32_t context, uint32_t group) {
  uint32_t token = blockIdx.x * THREADS + threadIdx.x;
  if (token >= context)
    return;
  uint64_t at = blockIdx.y * stride + token;
  float sum = token < past ? in[at] : 0.0f;
  for (uint32_t g = 0; g < group; g++)
    sum += columns[((uint64_t)blockIdx.y * group + g) * context + token];
  out[at] = sum;
}

static uint64_t logs_bytes(uint32_t tokens, uint32_t n_heads) {
  return ((uint64_t)n_heads * tokens * sizeof(float) + 255) / 256 * 256;
}

uint64_t kv_cuda_sum_attention_scratch_bytes(uint32_t past, uint32_t tokens, uint32_t n_heads) {
  return logs_bytes(tokens, n_heads) + (uint64_t)n_heads * (past + tokens) * sizeof(float);
}

template <int d> static void launch_sums(const Chunk &p, uint32_t n_heads, cudaStream_t stream) {
  dim3 rows((p.tokens + TILE - 1) / TILE, n_heads);
  dim3 columns((p.past + p.tokens + TILE - 1) / TILE, n_heads);
  sum_rows<d><<<rows, THREADS, 0, stream>>>(p);
  sum_columns<d><<<columns, THREADS, 0, stream>>>(p);
}

cudaError_t kv_cuda_sum_attention(float *out, const float *in, uint64_t stride, const KvBf16 *q,
                                  uint64_t row_stride, const KvCudaPages *pages,
                                  const uint32_t *table, uint32_t past, uint32_t tokens,
                                  uint32_t n_heads, void *scratch, cudaStream_t stream) {
  if (tokens == 0)
    return cudaErrorInvalidValue;
  Chunk p = {};
  p.logs = (float *)scratch;
  p.columns = (float *)((char *)scratch + logs_bytes(tokens, n_heads));
  p.q = q;
  p.row_stride = row_stride;
  p.pages = *pages;
  p.table = table;
  p.past = past;
  p.tokens = tokens;
  p.group = n_heads / pages->n_kv_heads;
  p.scale = scale_of(pages->head_dim);
  switch (pages->head_dim) {
  case 64:
    launch_sums<64>(p, n_heads, stream);
    break;
  case 80:
    launch_sums<80>(p, n_heads, stream);
    break;
  case 96:
    launch_sums<96>(p, n_heads, stream);
    break;
  case 128:
    launch_sums<128>(p, n_heads, stream);
    break;
  default:
    return cudaErrorInvalidValue;
  }
  dim3 grid((past + tokens + THREADS - 1) / THREADS, pages->n_kv_heads);
  add_heads<<<grid, THREADS, 0, stream>>>(out, in, stride, p.columns, past, past + tokens, p.group);
  return cudaGetLastError();
}

/* --- what stays of a prompt ------------------------------------------------------------------ */

/* Scores are not negative, so their bits are in their order. grid (rows) */
static __global__ void __launch_bounds__(SELECTORS)
    select_slots(uint32_t *kept, const float *scores, uint64_t stride, uint32_t n, uint32_t slots,
                 uint32_t recent) {
  const uint32_t *bits = (const uint32_t *)(scores + blockIdx.x * stride);
  kept += (uint64_t)blockIdx.x * slots;
  choose(
      n - recent, slots - recent, [&](uint32_t i) { return bits[i]; },
      [&](uint32_t place, uint32_t i) { kept[place] = i; });
  for (uint32_t i = threadIdx.x; i < recent; i += SELECTORS)
    kept[slots - recent + i] = n - recent + i;
}

cudaError_t kv_cuda_h2o_select(uint32_t *kept, const float *scores, uint64_t stride, uint32_t n,
                               uint32_t slots, uint32_t recent, uint32_t rows,
                               cudaStream_t stream) {
  if (recent == 0 || recent >= slots || slots > n)
    return cudaErrorInvalidValue;
  select_slots<<<rows, SELECTORS, 0, stream>>>(kept, scores, stride, n, slots, recent);
  return cudaGetLastError();
}

/* One row of a sequence's slots. */
struct SlotRow {
  float *scores;
  uint32_t *positions, *seen;
};

static __device__ __forceinline__ SlotRow slot_row(const KvCudaSlots &known, uint32_t row) {
  uint32_t *words = known.words + row * KV_CUDA_SLOT_WORDS(known.slots);
  return {(float *)words, words + known.slots, words + 2 * (uint64_t)known.slots};
}

/* grid (rows) */
static __global__ void __launch_bounds__(THREADS)
    fill_slots(const KvCudaSlots known, uint32_t first_row, const float *scores, uint64_t stride,
               const uint32_t *kept, uint32_t n) {
  SlotRow row = slot_row(known, first_row + blockIdx.x);
  for (uint32_t i = threadIdx.x; i < known.slots; i += THREADS) {
    uint32_t from = kept ? kept[(uint64_t)blockIdx.x * known.slots + i] : i;
    row.positions[i] = from < n ? from : UINT32_MAX;
    row.scores[i] = from < n ? scores[blockIdx.x * stride + from] : 0.0f;
  }
  if (threadIdx.x == 0)
    *row.seen = n;
}

cudaError_t kv_cuda_h2o_fill(const KvCudaSlots *slots, uint32_t first_row, const float *scores,
                             uint64_t stride, const uint32_t *kept, uint32_t n, uint32_t rows,
                             cudaStream_t stream) {
  fill_slots<<<rows, THREADS, 0, stream>>>(*slots, first_row, scores, stride, kept, n);
  return cudaGetLastError();
}

/* --- a step ---------------------------------------------------------------------------------- */

/* What a slot counts as where the one with the least is taken: its score, of equals the lowest.
 * The token's own slot is before all others: a step that is run again finds it there. */
static __device__ __forceinline__ unsigned long long slot_rank(const KvCudaSlots &known,
                                                               const SlotRow &row, uint32_t slot) {
  uint32_t at = row.positions[slot];
  if (at == known.position)
    return slot;
  bool leaves = at < known.position && known.position - at >= known.recent;
  return leaves ? ((unsigned long long)__float_as_uint(row.scores[slot]) + 1) << 32 | slot : ~0ull;
}

/* grid (Hkv, S) */
static __global__ void __launch_bounds__(THREADS)
    store_tokens(const KvBf16 *qkv, const KvCudaPages pages, const KvCudaTables tables,
                 const uint32_t *contexts, const KvCudaSlots *sequences, uint32_t first_row,
                 uint32_t n_heads) {
  __shared__ unsigned long long ranks[WARPS];
  uint32_t head = blockIdx.x, s = blockIdx.y, kv = pages.n_kv_heads, d = pages.head_dim;
  if (contexts[s] == 0)
    return;
  const KvCudaSlots known = sequences[s];
  SlotRow row = slot_row(known, first_row + head);
  unsigned long long least = known.position < known.slots ? known.position : ~0ull;
  for (uint32_t i = threadIdx.x; known.position >= known.slots && i < known.slots; i += THREADS)
    least = min(least, slot_rank(known, row, i));
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    least = min(least, __shfl_xor_sync(0xffffffffu, least, step));
  if (threadIdx.x % 32 == 0)
    ranks[threadIdx.x / 32] = least;
  __syncthreads();
  for (int w = 0; w < WARPS; w++)
    least = min(least, ranks[w]);
  uint32_t slot = (uint32_t)least;
  KvBf16 *key = key_row(pages, tables.table + tables.table_starts[s], head, slot);
  const KvBf16 *from = qkv + ((uint64_t)s * (n_heads + 2 * kv) + n_heads + head) * d;
  for (uint32_t i = threadIdx.x; i < d / 4; i += THREADS) {
    uint32_t part = i / (d / 8), c = i % (d / 8) * 8;
    *(uint4 *)(key + part * pages.value_offset + c) =
        *(const uint4 *)(from + (uint64_t)part * kv * d + c);
  }
  if (threadIdx.x == 0 && row.positions[slot] != known.position) {
    row.positions[slot] = known.position;
    row.scores[slot] = 0.0f;
  }
}

cudaError_t kv_cuda_h2o_store(const KvBf16 *qkv, const KvCudaPages *pages,
                              const KvCudaTables *tables, const uint32_t *contexts,
                              const KvCudaSlots *slots, uint32_t first_row, uint32_t sequences,
                              uint32_t n_heads, cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  store_tokens<<<dim3(pages->n_kv_heads, sequences), THREADS, 0, stream>>>(
      qkv, *pages, *tables, contexts, slots, first_row, n_heads);
  return cudaGetLastError();
}

/* A warp is 16 slots at a time, for up to HEADS queries of their KV head. Lane l reads elements
 * 4 (l % 4) .. of each 16 of a key as one access, and of the queries the same: the order of a
 * product's inner elements is free. scores[S][H][most], as powers of two.
 * grid (some, Hkv * groups of HEADS query heads, S) */
template <int d>
static __global__ void __launch_bounds__(THREADS)
    score_slots(float *scores, const KvBf16 *q, uint64_t row_stride, const KvCudaPages pages,
                const KvCudaTables tables, const uint32_t *contexts, uint32_t n_heads,
                uint32_t most, float scale) {
  uint32_t s = blockIdx.z, group = n_heads / pages.n_kv_heads, held = contexts[s];
  uint32_t kv_head = blockIdx.y % pages.n_kv_heads, before = blockIdx.y / pages.n_kv_heads * HEADS;
  uint32_t first_head = kv_head * group + before, heads = min(group - before, (uint32_t)HEADS);
  uint32_t lane = threadIdx.x % 32, first = (blockIdx.x * WARPS + threadIdx.x / 32) * 16;
  const uint32_t *table = tables.table + tables.table_starts[s];
  uint32_t queries[d / 16][4];
  if (first >= held)
    return;
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t head = lane / 4 + half * 8;
      const KvBf16 *from =
          q + s * row_stride + (uint64_t)(first_head + head) * d + k * 16 + lane % 4 * 4;
      uint2 four = head < heads ? *(const uint2 *)from : make_uint2(0, 0);
      queries[k][half] = four.x;
      queries[k][2 + half] = four.y;
    }
  for (uint32_t t = first; t < held; t += gridDim.x * WARPS * 16) {
    float x[2][4] = {};
    uint2 keys[2][d / 16];
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const KvBf16 *key = key_row(pages, table, kv_head, min(t + n * 8 + lane / 4, held - 1));
#pragma unroll
      for (int k = 0; k < d / 16; k++)
        keys[n][k] = *(const uint2 *)(key + k * 16 + lane % 4 * 4);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int k = 0; k < d / 16; k++)
        mma_bf16(x[n], queries[k], keys[n][k].x, keys[n][k].y);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      uint32_t head = lane / 4 + i / 2 % 2 * 8, slot = t + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (head < heads && slot < held)
        scores[((uint64_t)s * n_heads + first_head + head) * most + slot] = x[i / 4][i % 4] * scale;
    }
  }
}

/* A warp sums a query head's exponentials; then a thread is a slot. A step that is run again adds
 * nothing. grid (Hkv, S) */
static __global__ void __launch_bounds__(THREADS)
    draw(const KvCudaSlots *sequences, const float *scores, const uint32_t *contexts,
         uint32_t first_row, uint32_t n_heads, uint32_t most) {
  __shared__ float logs[MAX_GROUP];
  uint32_t s = blockIdx.y, group = n_heads / gridDim.x, held = contexts[s], lane = threadIdx.x % 32;
  if (held == 0)
    return;
  const KvCudaSlots known = sequences[s];
  SlotRow row = slot_row(known, first_row + blockIdx.x);
  bool again = *row.seen == known.position + 1;
  scores += ((uint64_t)s * n_heads + blockIdx.x * group) * most;
  for (uint32_t h = threadIdx.x / 32; h < group; h += WARPS) {
    const float *x = scores + (uint64_t)h * most;
    float largest = -INFINITY, sum = 0.0f;
    for (uint32_t i = lane; i < held; i += 32)
      largest = fmaxf(largest, x[i]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    for (uint32_t i = lane; i < held; i += 32)
      sum += power_of_2(x[i] - largest);
    sum = warp_sum(sum);
    if (lane == 0)
      logs[h] = largest + __log2f(sum);
  }
  __syncthreads();
  if (again)
    return;
  for (uint32_t i = threadIdx.x; i < held; i += THREADS) {
    float sum = 0.0f;
    for (uint32_t h = 0; h < group; h++)
      sum += power_of_2(scores[(uint64_t)h * most + i] - logs[h]);
    row.scores[i] += sum;
  }
  if (threadIdx.x == 0)
    *row.seen = known.position + 1;
}

template <int d>
static void launch_scores(float *scores, const KvBf16 *q, uint64_t row_stride,
                          const KvCudaPages *pages, const KvCudaTables *tables,
                          const uint32_t *contexts, uint32_t sequences, uint32_t n_heads,
                          uint32_t most, cudaStream_t stream) {
  uint32_t kv = pages->n_kv_heads, groups = (n_heads / kv + HEADS - 1) / HEADS;
  uint32_t tiles = (most + WARPS * 16 - 1) / (WARPS * 16), rows = sequences * kv * groups;
  uint32_t enough = (4096 + rows - 1) / rows; /* blocks to fill any GPU several times */
  dim3 grid(tiles < enough ? tiles : enough, kv * groups, sequences);
  score_slots<d><<<grid, THREADS, 0, stream>>>(scores, q, row_stride, *pages, *tables, contexts,
                                               n_heads, most, scale_of(d));
}

cudaError_t kv_cuda_h2o_score(const KvCudaSlots *slots, uint32_t first_row, float *scratch,
                              const KvBf16 *q, uint64_t row_stride, const KvCudaPages *pages,
                              const KvCudaTables *tables, const uint32_t *contexts,
                              uint32_t sequences, uint32_t n_heads, uint32_t most,
                              cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  if (n_heads / pages->n_kv_heads > MAX_GROUP || most == 0)
    return cudaErrorInvalidValue;
  switch (pages->head_dim) {
  case 64:
    launch_scores<64>(scratch, q, row_stride, pages, tables, contexts, sequences, n_heads, most,
                      stream);
    break;
  case 80:
    launch_scores<80>(scratch, q, row_stride, pages, tables, contexts, sequences, n_heads, most,
                      stream);
    break;
  case 96:
    launch_scores<96>(scratch, q, row_stride, pages, tables, contexts, sequences, n_heads, most,
                      stream);
    break;
  case 128:
    launch_scores<128>(scratch, q, row_stride, pages, tables, contexts, sequences, n_heads, most,
                       stream);
    break;
  default:
    return cudaErrorInvalidValue;
  }
  draw<<<dim3(pages->n_kv_heads, sequences), THREADS, 0, stream>>>(slots, scratch, contexts,
                                                                   first_row, n_heads, most);
  return cudaGetLastError();
}
