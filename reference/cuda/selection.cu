/* Prompts cut to the tokens that their last queries look at most (snapkv): the softmax of the
 * window's queries over all keys summed into votes, votes pooled, the best of each KV head, and
 * those tokens brought together, several layers at once; and of a decoding context the pages that
 * may hold the greatest scores (quest). Twins: kv_host_snapkv_vote(), _select(), _compact(),
 * kv_host_quest_choose(). */
#include "reference/cuda/choose.cuh"
#include "reference/cuda/scores.cuh"

/* A row's exponentials are summed in parts of the context: of PART tokens, or as many more that
 * there are MOST_PARTS. */
enum { MAX_WINDOW = 64, PART = 256, MOST_PARTS = 8 };

static __device__ __forceinline__ KvCudaPages layer_pages(const KvCudaCut &cut, KvBf16 *pool) {
  KvCudaPages pages = cut.pages;
  pages.pool = pool;
  return pages;
}

/* --- votes ----------------------------------------------------------------------------------- */

/* A KV head's rows are all queries of its group, row r the head r % group of token r / group of the
 * window. sums[layers][Hkv][rows][parts] */
struct Votes {
  KvCudaCut cut;
  float *votes;
  Running *sums;
  uint32_t group, rows, parts, part_tokens;
  float scale;
};

static __device__ __forceinline__ const KvBf16 *query_row(const Votes &p, uint32_t row) {
  const KvCudaCut &cut = p.cut;
  return cut.layers[blockIdx.z].q +
         ((uint64_t)(row / p.group) * cut.n_heads + blockIdx.y * p.group + row % p.group) *
             cut.pages.head_dim;
}

static __device__ __forceinline__ uint64_t sum_index(const Votes &p, uint32_t row, uint32_t part) {
  return (((uint64_t)blockIdx.z * gridDim.y + blockIdx.y) * p.rows + row) * p.parts + part;
}

/* A warp is 16 rows, over the keys of a part that they see.
 * grid (parts * rows / TILE, Hkv, layers) */
template <int d>
static __global__ void __launch_bounds__(THREADS) sum_rows(const __grid_constant__ Votes p) {
  __shared__ __align__(16) Tile<d> keys[2];
  const KvCudaCutLayer &layer = p.cut.layers[blockIdx.z];
  const KvCudaPages pages = layer_pages(p.cut, layer.pool);
  int lane = threadIdx.x % 32, stage = 0;
  uint32_t voted = p.cut.prompt - p.cut.window, part = blockIdx.x % p.parts;
  uint32_t first = part * p.part_tokens, end = min(first + p.part_tokens, p.cut.prompt);
  uint32_t row = blockIdx.x / p.parts * TILE + threadIdx.x / 32 * 16 + lane / 4;
  const uint32_t positions[2] = {voted + row / p.group, voted + (row + 8) / p.group};
  const KvBf16 *const rows[2] = {query_row(p, min(row, p.rows - 1)),
                                 query_row(p, min(row + 8, p.rows - 1))};
  uint32_t q[d / 16][4];
  Running run[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  hold_queries<d>(q, rows);
  load_keys<d>(keys[0], pages, layer.table, blockIdx.y, first, end);
  copies_commit();
  for (uint32_t k0 = first; k0 < end; k0 += TILE, stage ^= 1) {
    if (k0 + TILE < end)
      load_keys<d>(keys[stage ^ 1], pages, layer.table, blockIdx.y, k0 + TILE, end);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    add_tile<d>(run, q, keys[stage], k0, positions, p.scale);
    __syncthreads(); /* the tile may be overwritten */
  }
#pragma unroll
  for (int half = 0; half < 2; half++) { /* of the last part a row may see nothing */
    const Running all = whole_row(run[half]);
    if (lane % 4 == 0 && row + half * 8 < p.rows)
      p.sums[sum_index(p, row + half * 8, part)] = all;
  }
}

/* The logarithm of a row's sum, from its parts, which are loaded all at once; the first key is seen
 * by all. */
static __device__ __forceinline__ float log_of_row(const Votes &p, uint32_t row) {
  const Running *sums = p.sums + sum_index(p, row, 0);
  Running parts[MOST_PARTS];
  float largest = -INFINITY, sum = 0.0f;
#pragma unroll
  for (uint32_t i = 0; i < MOST_PARTS; i++)
    parts[i] = i < p.parts ? sums[i] : Running{-INFINITY, 0.0f};
#pragma unroll
  for (uint32_t i = 0; i < MOST_PARTS; i++)
    largest = fmaxf(largest, parts[i].largest);
#pragma unroll
  for (uint32_t i = 0; i < MOST_PARTS; i++)
    sum += parts[i].sum * power_of_2(parts[i].largest - largest);
  return largest + __log2f(sum);
}

/* A warp is 16 keys before the window, which all rows see. grid (voted / TILE, Hkv, layers) */
template <int d>
static __global__ void __launch_bounds__(THREADS) vote(const __grid_constant__ Votes p) {
  __shared__ __align__(16) Tile<d> queries[2];
  __shared__ float logs[2][TILE];
  const KvCudaCutLayer &layer = p.cut.layers[blockIdx.z];
  const KvCudaPages pages = layer_pages(p.cut, layer.pool);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stage = 0;
  uint32_t voted = p.cut.prompt - p.cut.window, k0 = blockIdx.x * TILE;
  uint32_t token = k0 + warp * 16 + lane % 4 * 2, keys[d / 16][4];
  float sums[2][2] = {};
  load_keys<d>(queries[0], pages, layer.table, blockIdx.y, k0, voted);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  hold_keys<d>(keys, queries[0]);
  __syncthreads();
  auto load = [&](int to, uint32_t first) {
    load_rows<d>(queries[to], layer.q, [&](uint32_t r) -> const KvBf16 * {
      return first + r < p.rows ? query_row(p, first + r) : nullptr;
    });
    if (threadIdx.x < TILE)
      logs[to][threadIdx.x] =
          first + threadIdx.x < p.rows ? log_of_row(p, first + threadIdx.x) : 0.0f;
  };
  load(0, 0);
  copies_commit();
  for (uint32_t first = 0; first < p.rows; first += TILE, stage ^= 1) {
    if (first + TILE < p.rows)
      load(stage ^ 1, first + TILE);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    add_columns<d>(sums, keys, queries[stage], logs[stage], p.scale,
                   [&](uint32_t row, uint32_t) { return first + row < p.rows; });
    __syncthreads(); /* the tile may be overwritten */
  }
  float *votes = p.votes + ((uint64_t)blockIdx.z * gridDim.y + blockIdx.y) * voted;
  put_columns(sums, [&](uint32_t i, float sum) {
    if (token + i < voted)
      votes[token + i] = sum;
  });
}

uint64_t kv_cuda_vote_scratch_bytes(uint32_t n_layers, uint32_t n_heads, uint32_t window) {
  return (uint64_t)n_layers * n_heads * window * MOST_PARTS * sizeof(Running);
}

template <int d> static cudaError_t launch_votes(const Votes &p, cudaStream_t stream) {
  uint32_t voted = p.cut.prompt - p.cut.window, kv = p.cut.pages.n_kv_heads;
  dim3 rows(p.parts * ((p.rows + TILE - 1) / TILE), kv, p.cut.n_layers);
  dim3 columns((voted + TILE - 1) / TILE, kv, p.cut.n_layers);
  sum_rows<d><<<rows, THREADS, 0, stream>>>(p);
  vote<d><<<columns, THREADS, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t kv_cuda_vote(float *votes, const KvCudaCut *cut, void *scratch, cudaStream_t stream) {
  if (cut->window == 0 || cut->window > MAX_WINDOW || cut->prompt <= cut->window)
    return cudaErrorInvalidValue;
  Votes p = {};
  p.cut = *cut;
  p.votes = votes;
  p.sums = (Running *)scratch;
  uint32_t parts = (cut->prompt + PART - 1) / PART;
  if (parts > MOST_PARTS)
    parts = MOST_PARTS;
  p.part_tokens = ((cut->prompt + parts - 1) / parts + TILE - 1) / TILE * TILE;
  p.parts = (cut->prompt + p.part_tokens - 1) / p.part_tokens;
  p.group = cut->n_heads / cut->pages.n_kv_heads;
  p.rows = p.group * cut->window;
  p.scale = scale_of(cut->pages.head_dim);
  switch (cut->pages.head_dim) {
  case 64:
    return launch_votes<64>(p, stream);
  case 80:
    return launch_votes<80>(p, stream);
  case 96:
    return launch_votes<96>(p, stream);
  case 128:
    return launch_votes<128>(p, stream);
  default:
    return cudaErrorInvalidValue;
  }
}

/* --- the best -------------------------------------------------------------------------------- */

/* Votes are pooled, and the best chosen. They are not negative, so their bits are in their order;
 * sums go from the lowest token, as the twin's. grid (Hkv, layers) */
static __global__ void __launch_bounds__(SELECTORS)
    select_best(uint32_t *kept, uint32_t *pooled, const float *votes,
                const __grid_constant__ KvCudaCut cut, uint32_t kernel, int by_largest) {
  uint32_t voted = cut.prompt - cut.window, reach = kernel / 2;
  uint32_t best = cut.layers[blockIdx.y].budget - cut.window;
  uint64_t head = (uint64_t)blockIdx.y * gridDim.x + blockIdx.x;
  votes += head * voted;
  pooled += head * voted;
  kept += head * cut.most;
  for (uint32_t i = threadIdx.x; i < voted; i += SELECTORS) {
    float sum = 0.0f, largest = 0.0f;
    for (uint32_t j = i > reach ? i - reach : 0; j <= min(voted - 1, i + reach); j++) {
      sum += votes[j];
      largest = fmaxf(largest, votes[j]);
    }
    pooled[i] = __float_as_uint(by_largest ? largest : __fdiv_rn(sum, kernel));
  }
  __syncthreads();
  choose(
      voted, best, [&](uint32_t i) { return pooled[i]; },
      [&](uint32_t place, uint32_t i) { kept[place] = i; });
  if (threadIdx.x < cut.window)
    kept[best + threadIdx.x] = voted + threadIdx.x;
}

cudaError_t kv_cuda_select(uint32_t *kept, const float *votes, void *pooled, const KvCudaCut *cut,
                           uint32_t kernel, int largest, cudaStream_t stream) {
  for (uint32_t l = 0; l < cut->n_layers; l++)
    if (cut->layers[l].budget <= cut->window || cut->layers[l].budget > cut->most)
      return cudaErrorInvalidValue;
  if (cut->window == 0 || cut->prompt < cut->most || kernel % 2 == 0)
    return cudaErrorInvalidValue;
  select_best<<<dim3(cut->pages.n_kv_heads, cut->n_layers), SELECTORS, 0, stream>>>(
      kept, (uint32_t *)pooled, votes, *cut, kernel, largest);
  return cudaGetLastError();
}

/* --- bringing them together ------------------------------------------------------------------ */

/* Eight elements of a key or a value, which a thread moves: token `slot` of those that stay of a
 * head, and where it is meanwhile, rows[layers][Hkv][keys, values][most + tokens - prompt][d]. */
struct Moved {
  uint32_t head, part, slot, first; /* first: of the eight */
  uint64_t row;
  bool there;
};

/* grid (some, Hkv * 2, layers) */
static __device__ __forceinline__ Moved moved_here(const KvCudaCut &cut) {
  uint32_t i = blockIdx.x * THREADS + threadIdx.x, d = cut.pages.head_dim;
  uint32_t after = cut.tokens - cut.prompt, slot = i / (d / 8), first = i % (d / 8) * 8;
  uint64_t head = (uint64_t)blockIdx.z * gridDim.y + blockIdx.y;
  return {blockIdx.y / 2,
          blockIdx.y % 2,
          slot,
          first,
          (head * (cut.most + after) + slot) * d + first,
          slot < cut.layers[blockIdx.z].budget + after};
}

static __global__ void __launch_bounds__(THREADS)
    gather(KvBf16 *rows, const __grid_constant__ KvCudaCut cut, const uint32_t *kept) {
  const KvCudaCutLayer &layer = cut.layers[blockIdx.z];
  const Moved m = moved_here(cut);
  if (!m.there)
    return;
  uint64_t head = (uint64_t)blockIdx.z * cut.pages.n_kv_heads + m.head;
  uint32_t from =
      m.slot < layer.budget ? kept[head * cut.most + m.slot] : cut.prompt + m.slot - layer.budget;
  const KvCudaPages pages = layer_pages(cut, layer.pool);
  *(uint4 *)(rows + m.row) = *(const uint4 *)(key_row(pages, layer.table, m.head, from) +
                                              m.part * pages.value_offset + m.first);
}

static __global__ void __launch_bounds__(THREADS)
    scatter(const __grid_constant__ KvCudaCut cut, const KvBf16 *rows) {
  const KvCudaCutLayer &layer = cut.layers[blockIdx.z];
  const Moved m = moved_here(cut);
  if (!m.there)
    return;
  const KvCudaPages pages = layer_pages(cut, layer.to);
  *(uint4 *)(key_row(pages, layer.to_table, m.head, m.slot) + m.part * pages.value_offset +
             m.first) = *(const uint4 *)(rows + m.row);
}

static dim3 moving_grid(const KvCudaCut *cut) {
  uint32_t pieces = (cut->most + cut->tokens - cut->prompt) * (cut->pages.head_dim / 8);
  return dim3((pieces + THREADS - 1) / THREADS, cut->pages.n_kv_heads * 2, cut->n_layers);
}

cudaError_t kv_cuda_gather_kept(KvBf16 *rows, const KvCudaCut *cut, const uint32_t *kept,
                                cudaStream_t stream) {
  if (cut->pages.head_dim % 8)
    return cudaErrorInvalidValue;
  gather<<<moving_grid(cut), THREADS, 0, stream>>>(rows, *cut, kept);
  return cudaGetLastError();
}

cudaError_t kv_cuda_scatter_kept(const KvCudaCut *cut, const KvBf16 *rows, cudaStream_t stream) {
  if (cut->pages.head_dim % 8)
    return cudaErrorInvalidValue;
  scatter<<<moving_grid(cut), THREADS, 0, stream>>>(*cut, rows);
  return cudaGetLastError();
}

/* --- pages (quest) --------------------------------------------------------------------------- */

/* Least, then greatest key of each channel of a block's head. */
static __device__ __forceinline__ KvBf16 *summary_of(const KvCudaPages &pages, uint32_t block,
                                                     uint32_t head) {
  return pages.pool + block * pages.block_elements + 2 * pages.value_offset +
         (uint64_t)head * 2 * pages.head_dim;
}

/* Of each page that the rows wrote to, by the last of them. grid (R, Hkv), d threads */
static __global__ void summarize(const KvCudaPages pages, const KvCudaTables tables,
                                 const uint32_t *row_sequences, const uint32_t *slots) {
  uint32_t row = blockIdx.x, head = blockIdx.y, sequence = row_sequences[row];
  uint32_t mask = (1u << pages.block_shift) - 1, slot = slots[row];
  if (sequence == UINT32_MAX ||
      ((slot & mask) != mask && row + 1 < gridDim.x && row_sequences[row + 1] == sequence))
    return;
  const uint32_t *table = tables.table + tables.table_starts[sequence];
  const KvBf16 *key = key_row(pages, table, head, slot & ~mask) + threadIdx.x;
  float low = to_float(key[0]), high = low;
  for (uint32_t t = 1; t <= (slot & mask); t++) {
    float x = to_float(key[(uint64_t)t * pages.head_dim]);
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
  KvBf16 *summary = summary_of(pages, table[slot >> pages.block_shift], head) + threadIdx.x;
  summary[0] = to_bf16(low);
  summary[pages.head_dim] = to_bf16(high);
}

cudaError_t kv_cuda_summarize(const KvCudaPages *pages, const KvCudaTables *tables,
                              const uint32_t *row_sequences, const uint32_t *slots, uint32_t rows,
                              cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  summarize<<<dim3(rows, pages->n_kv_heads), pages->head_dim, 0, stream>>>(*pages, *tables,
                                                                           row_sequences, slots);
  return cudaGetLastError();
}

static __device__ __forceinline__ uint32_t pages_of(const KvCudaPages &pages, uint32_t context) {
  return (context + (1u << pages.block_shift) - 1) >> pages.block_shift;
}

/* The most that a channel between the two could add to a score. */
static __device__ __forceinline__ float bound(float q, float least, float greatest) {
  return fmaxf(q * least, q * greatest);
}

/* A warp is a page. bounds[S][Hkv][most], of all pages but the last, where there are more than
 * `chosen`. grid (some, Hkv, S) */
static __global__ void __launch_bounds__(THREADS)
    bound_pages(float *bounds, const KvBf16 *q, uint64_t row_stride, const KvCudaPages pages,
                const KvCudaTables tables, const uint32_t *contexts, uint32_t group,
                uint32_t chosen, uint32_t most) {
  uint32_t head = blockIdx.y, s = blockIdx.z, lane = threadIdx.x % 32, d = pages.head_dim;
  uint32_t n = pages_of(pages, contexts[s]), stride = gridDim.x * (THREADS / 32);
  if (n <= chosen)
    return;
  const uint32_t *table = tables.table + tables.table_starts[s];
  q += s * row_stride + (uint64_t)head * group * d;
  for (uint32_t page = blockIdx.x * (THREADS / 32) + threadIdx.x / 32; page < n - 1;
       page += stride) {
    const KvBf16 *summary = summary_of(pages, table[page], head);
    bool mine = lane * 4 < d; /* a lane has four channels */
    uint2 least = mine ? *(const uint2 *)(summary + lane * 4) : make_uint2(0, 0);
    uint2 greatest = mine ? *(const uint2 *)(summary + d + lane * 4) : make_uint2(0, 0);
    float best = -INFINITY;
    for (uint32_t h = 0; h < group; h++) {
      uint2 x = mine ? *(const uint2 *)(q + h * d + lane * 4) : make_uint2(0, 0);
      float sum = bound(low_float(x.x), low_float(least.x), low_float(greatest.x)) +
                  bound(high_float(x.x), high_float(least.x), high_float(greatest.x)) +
                  bound(low_float(x.y), low_float(least.y), low_float(greatest.y)) +
                  bound(high_float(x.y), high_float(least.y), high_float(greatest.y));
      best = fmaxf(best, warp_sum(sum));
    }
    if (lane == 0)
      bounds[((uint64_t)s * gridDim.y + head) * most + page] = best;
  }
}

/* Bits in the order of the numbers. */
static __device__ __forceinline__ uint32_t ordered(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* grid (Hkv, S) */
static __global__ void __launch_bounds__(SELECTORS)
    choose_pages(uint32_t *chosen_table, uint32_t *chosen_contexts, const float *bounds,
                 const KvCudaPages pages, const KvCudaTables tables, const uint32_t *contexts,
                 uint32_t chosen, uint32_t most) {
  uint32_t head = blockIdx.x, s = blockIdx.y, one = s * gridDim.x + head;
  uint32_t context = contexts[s], n = pages_of(pages, context), shift = pages.block_shift;
  const uint32_t *table = tables.table + tables.table_starts[s];
  chosen_table += (uint64_t)one * chosen;
  bounds += (uint64_t)one * most;
  auto put = [&](uint32_t place, uint32_t page) {
    chosen_table[place] =
        table[page] * (uint32_t)(pages.block_elements / pages.head_dim) + (head << shift);
  };
  if (threadIdx.x == 0) {
    chosen_contexts[one] = n <= chosen ? context : context - ((n - chosen) << shift);
    if (n > chosen)
      put(chosen - 1, n - 1);
  }
  if (n > chosen)
    choose(
        n - 1, chosen - 1, [&](uint32_t i) { return ordered(bounds[i]); }, put);
  else if (threadIdx.x < n)
    put(threadIdx.x, threadIdx.x);
}

cudaError_t kv_cuda_choose_pages(uint32_t *chosen_table, uint32_t *chosen_contexts, float *bounds,
                                 const KvBf16 *q, uint64_t row_stride, const KvCudaPages *pages,
                                 const KvCudaTables *tables, const uint32_t *contexts,
                                 uint32_t sequences, uint32_t n_heads, uint32_t chosen,
                                 uint32_t most, cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  if (chosen < 2 || chosen > SELECTORS)
    return cudaErrorInvalidValue;
  uint32_t some = (most + THREADS / 32 - 1) / (THREADS / 32), kv = pages->n_kv_heads;
  bound_pages<<<dim3(some < 64 ? some : 64, kv, sequences), THREADS, 0, stream>>>(
      bounds, q, row_stride, *pages, *tables, contexts, n_heads / kv, chosen, most);
  choose_pages<<<dim3(kv, sequences), SELECTORS, 0, stream>>>(
      chosen_table, chosen_contexts, bounds, *pages, *tables, contexts, chosen, most);
  return cudaGetLastError();
}
