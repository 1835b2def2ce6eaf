/* A prompt cut to the tokens that its last queries look at most (snapkv): scores of the window's
 * queries on all keys, their softmax summed into votes, votes pooled, the best of each KV head, and
 * those tokens brought together; and of a decoding context the pages that may hold the greatest
 * scores (quest). Twins: kv_host_snapkv_vote(), _select(), _compact(), kv_host_quest_choose(). */
#include "reference/cuda/choose.cuh"
#include "reference/cuda/mma.cuh"

enum { THREADS = 128, MAX_HEAD = 128, MAX_WINDOW = 64 };

static __device__ __forceinline__ const KvBf16 *
key_row(const KvCudaPages &pages, const uint32_t *table, uint32_t head, uint32_t slot) {
  uint32_t mask = (1u << pages.block_shift) - 1;
  return pages.pool + table[slot >> pages.block_shift] * pages.block_elements +
         (((uint64_t)head << pages.block_shift) + (slot & mask)) * pages.head_dim;
}

/* A thread is a key, for all queries of one head. scores[H][window][prompt], as powers of two.
 * grid (prompt / THREADS, H) */
static __global__ void __launch_bounds__(THREADS)
    score_window(float *scores, const KvBf16 *q, const KvCudaPages pages, const uint32_t *table,
                 uint32_t prompt, uint32_t n_heads, uint32_t window, float scale) {
  __shared__ float queries[MAX_HEAD];
  uint32_t head = blockIdx.y, d = pages.head_dim, token = blockIdx.x * THREADS + threadIdx.x;
  float key[MAX_HEAD];
  const KvBf16 *row =
      key_row(pages, table, head / (n_heads / pages.n_kv_heads), min(token, prompt - 1));
#pragma unroll
  for (uint32_t i = 0; i < MAX_HEAD; i++)
    key[i] = i < d ? to_float(row[i]) : 0.0f;
  for (uint32_t w = 0; w < window; w++) {
    __syncthreads();
    if (threadIdx.x < MAX_HEAD)
      queries[threadIdx.x] =
          threadIdx.x < d ? to_float(q[((uint64_t)w * n_heads + head) * d + threadIdx.x]) : 0.0f;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < MAX_HEAD; i++)
      sum += queries[i] * key[i];
    if (token < prompt)
      scores[((uint64_t)head * window + w) * prompt + token] =
          token <= prompt - window + w ? sum * scale : -INFINITY;
  }
}

/* Largest and sum of exponentials of each row. grid (H * window) */
static __global__ void __launch_bounds__(THREADS)
    sum_rows(float2 *sums, const float *scores, uint32_t prompt) {
  __shared__ float2 parts[THREADS];
  const float *row = scores + (uint64_t)blockIdx.x * prompt;
  float largest = -INFINITY, sum = 0.0f;
  for (uint32_t i = threadIdx.x; i < prompt; i += THREADS)
    largest = fmaxf(largest, row[i]);
  float reference = largest == -INFINITY ? 0.0f : largest;
  for (uint32_t i = threadIdx.x; i < prompt; i += THREADS)
    sum += power_of_2(row[i] - reference);
  parts[threadIdx.x] = make_float2(largest, sum);
  __syncthreads();
  for (uint32_t step = THREADS / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      float2 a = parts[threadIdx.x], b = parts[threadIdx.x + step];
      float most = fmaxf(a.x, b.x), base = most == -INFINITY ? 0.0f : most;
      parts[threadIdx.x] =
          make_float2(most, a.y * power_of_2(a.x - base) + b.y * power_of_2(b.x - base));
    }
    __syncthreads();
  }
  if (threadIdx.x == 0)
    sums[blockIdx.x] = parts[0];
}

/* grid (voted / THREADS, Hkv) */
static __global__ void __launch_bounds__(THREADS)
    add_votes(float *votes, const float *scores, const float2 *sums, uint32_t prompt,
              uint32_t group, uint32_t window) {
  uint32_t token = blockIdx.x * THREADS + threadIdx.x, voted = prompt - window;
  if (token >= voted)
    return;
  float total = 0.0f;
  uint64_t first = (uint64_t)blockIdx.y * group * window;
  for (uint32_t r = 0; r < group * window; r++) {
    float2 sum = sums[first + r];
    total += power_of_2(scores[(first + r) * prompt + token] - sum.x) / sum.y;
  }
  votes[(uint64_t)blockIdx.y * voted + token] = total;
}

static uint64_t scores_bytes(uint32_t prompt, uint32_t n_heads, uint32_t window) {
  return ((uint64_t)n_heads * window * prompt * sizeof(float) + 255) / 256 * 256;
}

uint64_t kv_cuda_vote_scratch_bytes(uint32_t prompt, uint32_t n_heads, uint32_t window) {
  return scores_bytes(prompt, n_heads, window) + (uint64_t)n_heads * window * sizeof(float2);
}

cudaError_t kv_cuda_vote(float *votes, const KvBf16 *q, const KvCudaPages *pages,
                         const uint32_t *table, uint32_t prompt, uint32_t n_heads, uint32_t window,
                         void *scratch, cudaStream_t stream) {
  if (window == 0 || window > MAX_WINDOW || prompt <= window || pages->head_dim > MAX_HEAD)
    return cudaErrorInvalidValue;
  float *scores = (float *)scratch;
  float2 *sums = (float2 *)((char *)scratch + scores_bytes(prompt, n_heads, window));
  float scale = 1.4426950408889634f / sqrtf((float)pages->head_dim);
  dim3 keys((prompt + THREADS - 1) / THREADS, n_heads);
  dim3 tokens((prompt - window + THREADS - 1) / THREADS, pages->n_kv_heads);
  score_window<<<keys, THREADS, 0, stream>>>(scores, q, *pages, table, prompt, n_heads, window,
                                             scale);
  sum_rows<<<n_heads * window, THREADS, 0, stream>>>(sums, scores, prompt);
  add_votes<<<tokens, THREADS, 0, stream>>>(votes, scores, sums, prompt,
                                            n_heads / pages->n_kv_heads, window);
  return cudaGetLastError();
}

/* --- the best -------------------------------------------------------------------------------- */

/* grid (voted / THREADS, Hkv). Sums go from the lowest token, as the twin's. */
static __global__ void __launch_bounds__(THREADS)
    pool_votes(float *pooled, const float *votes, uint32_t voted, uint32_t kernel, int by_largest) {
  uint32_t token = blockIdx.x * THREADS + threadIdx.x, reach = kernel / 2;
  if (token >= voted)
    return;
  const float *row = votes + (uint64_t)blockIdx.y * voted;
  float sum = 0.0f, largest = 0.0f;
  for (uint32_t j = token > reach ? token - reach : 0; j <= min(voted - 1, token + reach); j++) {
    sum += row[j];
    largest = fmaxf(largest, row[j]);
  }
  pooled[(uint64_t)blockIdx.y * voted + token] = by_largest ? largest : __fdiv_rn(sum, kernel);
}

/* Votes are not negative, so their bits are in their order. grid (Hkv) */
static __global__ void __launch_bounds__(SELECTORS)
    select_best(uint32_t *kept, const float *pooled, uint32_t voted, uint32_t best,
                uint32_t window) {
  const uint32_t *bits = (const uint32_t *)(pooled + (uint64_t)blockIdx.x * voted);
  kept += (uint64_t)blockIdx.x * (best + window);
  choose(
      voted, best, [&](uint32_t i) { return bits[i]; },
      [&](uint32_t place, uint32_t i) { kept[place] = i; });
  if (threadIdx.x < window)
    kept[best + threadIdx.x] = voted + threadIdx.x;
}

cudaError_t kv_cuda_select(uint32_t *kept, const float *votes, float *pooled, uint32_t prompt,
                           uint32_t n_kv_heads, uint32_t budget, uint32_t window, uint32_t kernel,
                           int largest, cudaStream_t stream) {
  if (window == 0 || budget <= window || prompt < budget || kernel % 2 == 0)
    return cudaErrorInvalidValue;
  uint32_t voted = prompt - window;
  pool_votes<<<dim3((voted + THREADS - 1) / THREADS, n_kv_heads), THREADS, 0, stream>>>(
      pooled, votes, voted, kernel, largest);
  select_best<<<n_kv_heads, SELECTORS, 0, stream>>>(kept, pooled, voted, budget - window, window);
  return cudaGetLastError();
}

/* --- bringing them together ------------------------------------------------------------------ */

/* Where element threadIdx.x of the part (0 keys, 1 values) of a head's slot stands. */
static __device__ __forceinline__ KvBf16 *element(const KvCudaPages &pages, const uint32_t *table,
                                                  uint32_t head, uint32_t slot, uint32_t part) {
  return (KvBf16 *)key_row(pages, table, head, slot) + part * pages.value_offset + threadIdx.x;
}

/* grid (count, Hkv, 2), d threads; scratch[2][Hkv][count][d] */
static __global__ void gather(KvBf16 *scratch, const KvCudaPages pages, const uint32_t *table,
                              const uint32_t *kept, uint32_t budget, uint32_t prompt) {
  uint32_t i = blockIdx.x, head = blockIdx.y, part = blockIdx.z;
  uint32_t from = i < budget ? kept[(uint64_t)head * budget + i] : prompt + i - budget;
  scratch[(((uint64_t)part * gridDim.y + head) * gridDim.x + i) * pages.head_dim + threadIdx.x] =
      *element(pages, table, head, from, part);
}

static __global__ void scatter(const KvCudaPages pages, const uint32_t *table,
                               const KvBf16 *scratch) {
  uint32_t i = blockIdx.x, head = blockIdx.y, part = blockIdx.z;
  *element(pages, table, head, i, part) =
      scratch[(((uint64_t)part * gridDim.y + head) * gridDim.x + i) * pages.head_dim + threadIdx.x];
}

cudaError_t kv_cuda_gather_kept(KvBf16 *scratch, const KvCudaPages *pages, const uint32_t *table,
                                const uint32_t *kept, uint32_t budget, uint32_t prompt,
                                uint32_t tokens, cudaStream_t stream) {
  dim3 grid(budget + tokens - prompt, pages->n_kv_heads, 2);
  gather<<<grid, pages->head_dim, 0, stream>>>(scratch, *pages, table, kept, budget, prompt);
  return cudaGetLastError();
}

cudaError_t kv_cuda_scatter_kept(const KvCudaPages *pages, const uint32_t *table,
                                 const KvBf16 *scratch, uint32_t count, cudaStream_t stream) {
  dim3 grid(count, pages->n_kv_heads, 2);
  scatter<<<grid, pages->head_dim, 0, stream>>>(*pages, table, scratch);
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
