/* A prompt cut to the tokens that its last queries look at most (snapkv): scores of the window's
 * queries on all keys, their softmax summed into votes, votes pooled, the best of each KV head, and
 * those tokens brought together. Twins: kv_host_snapkv_vote(), _select(), _compact(). */
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

enum { SELECTORS = 1024 };

/* The sum of x over the block's threads before this one, and in *total over all. */
static __device__ uint32_t sum_before(uint32_t x, uint32_t *total) {
  __shared__ uint32_t warps[SELECTORS / 32];
  uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
#pragma unroll
  for (uint32_t step = 1; step < 32; step *= 2) {
    uint32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    sum += lane >= step ? other : 0;
  }
  __syncthreads();
  if (lane == 31)
    warps[warp] = sum;
  __syncthreads();
  uint32_t before = 0, all = 0;
  for (uint32_t w = 0; w < SELECTORS / 32; w++) {
    before += w < warp ? warps[w] : 0;
    all += warps[w];
  }
  *total = all;
  return before + sum - x;
}

/* Votes are not negative, so their bits are in their order. The bits of the best-th are found a
 * byte at a time; then a walk from the lowest token takes those above it, and of its equals the
 * first. grid (Hkv) */
static __global__ void __launch_bounds__(SELECTORS)
    select_best(uint32_t *kept, const float *pooled, uint32_t voted, uint32_t best,
                uint32_t window) {
  __shared__ uint32_t counts[256], found[2];
  const uint32_t *bits = (const uint32_t *)(pooled + (uint64_t)blockIdx.x * voted);
  uint32_t prefix = 0, wanted = best; /* of those that share the prefix */
  kept += (uint64_t)blockIdx.x * (best + window);
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256)
      counts[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < voted; i += SELECTORS)
      if (shift == 24 || bits[i] >> (shift + 8) == prefix)
        atomicAdd(&counts[bits[i] >> shift & 255], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t byte = 255, left = wanted;
      while (byte > 0 && counts[byte] < left)
        left -= counts[byte--];
      found[0] = byte;
      found[1] = left;
    }
    __syncthreads();
    prefix = prefix << 8 | found[0];
    wanted = found[1];
    __syncthreads();
  }
  uint32_t taken = 0, equal = 0; /* before this stretch */
  for (uint32_t first = 0; first < voted; first += SELECTORS) {
    uint32_t i = first + threadIdx.x, x = i < voted ? bits[i] : 0, total;
    bool is_equal = i < voted && x == prefix;
    uint32_t equals = equal + sum_before(is_equal, &total);
    equal += total;
    bool take = i < voted && (x > prefix || (is_equal && equals < wanted));
    uint32_t place = taken + sum_before(take, &total);
    taken += total;
    if (take)
      kept[place] = i;
  }
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
