/* Prefill attention on Hopper's asynchronous tensor cores, for heads of 64 and 128.
 *
 * Work and tiles are those of attention_prefill.cu. A block stays on its multiprocessor and takes
 * one job after the other, a tile of queries and a KV head each. It is three warp groups: one
 * copies keys and values into rings of STAGES tiles of KEYS tokens, the next job's while this one
 * ends; two compute 64 rows each. A computing group launches the scores of the next tile and the
 * mix of the present one together, and softens the scores while the mix runs; the two groups take
 * turns at the tensor cores, so that one multiplies while the other exponentiates. Shah et al.,
 * "FlashAttention-3: Fast and Accurate Attention with Asynchrony and Low-precision" (2024),
 * algorithm 2. Twin: kv_host_attention().
 */
#include "reference/cuda/prefill.cuh"
#include "reference/cuda/wgmma.cuh"

enum { GROUPS = 2, GROUP = 128, ROWS = 64, KEYS = 128, STAGES = 3, THREADS = (GROUPS + 1) * GROUP };
static_assert(GROUPS * ROWS == KV_PREFILL_TILE_ROWS, "a tile is the computing groups' rows");

/* How far scores may pass the running maximum, as a power of two, before it is raised. */
#define SLACK 8.0f

enum { AT_ONCE = 8 }; /* copies by a thread whose addresses are known before the first begins */

/* Registers of a thread after the roles are known: 65536 in all. */
#define REGISTERS_COPYING 88
#define REGISTERS_COMPUTING 208

template <int d> struct Shared {
  KvBf16 queries[GROUPS * ROWS * d];
  KvBf16 keys[STAGES][KEYS * d], values[STAGES][KEYS * d];
  uint64_t keys_full[STAGES], keys_free[STAGES], values_full[STAGES], values_free[STAGES];
  uint64_t queries_full, queries_free;
};

/* What every thread of a block knows. */
struct Job {
  KvCudaTile tile;
  uint32_t kv_head, first, end; /* tokens first (a multiple of KEYS) .. end - 1 are visible */
  uint32_t tiles;               /* of KEYS tokens */
  uint32_t before;              /* tiles of the block's earlier jobs */
};

/* The block's n-th job, FALSE if it has none. Jobs are dealt out in rounds, heaviest first, each
 * round against the direction of the last, so that no block gets the heavier end every time. */
static __device__ __forceinline__ bool job_of(Job &job, const Prefill &p, uint32_t n,
                                              uint32_t before) {
  uint32_t place = n % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  uint32_t index = n * gridDim.x + place;
  if (index >= p.n_tiles * p.pages.n_kv_heads)
    return false;
  job.tile = p.tiles[index / p.pages.n_kv_heads];
  job.kv_head = index % p.pages.n_kv_heads;
  job.end = job.tile.position + job.tile.count;
  job.first = p.window && job.tile.position + 1 > p.window ? job.tile.position + 1 - p.window : 0;
  job.first = job.first / KEYS * KEYS;
  job.tiles = (job.end - job.first + KEYS - 1) / KEYS;
  job.before = before;
  return true;
}

/* The parity of the phase in which tile t of a block fills its stage. */
static __device__ __forceinline__ uint32_t phase_of(uint32_t t) {
  return t / STAGES & 1;
}

/* --- the copying group ----------------------------------------------------------------------- */

/* Row r is token r / G, head r % G; rows past the tile's tokens are zeros. */
template <int d>
static __device__ __forceinline__ void load_queries(Shared<d> &shared, const Prefill &p,
                                                    const Job &job, int thread) {
  const int chunks = d / 8;
  const KvBf16 *q = p.q + job.tile.row * p.row_stride + (uint64_t)job.kv_head * p.group * d;
  for (int i = thread; i < GROUPS * ROWS * chunks; i += GROUP) {
    int row = i / chunks, chunk = i % chunks;
    uint32_t token = row / p.group;
    bool wanted = token < job.tile.count;
    const KvBf16 *source =
        wanted ? q + token * p.row_stride + (row - token * p.group) * d + chunk * 8 : q;
    copy_16_async((char *)shared.queries + swizzled(GROUPS * ROWS, row, chunk), source,
                  wanted ? 16 : 0);
  }
}

/* Which row of the pool, of d elements, the token's keys are; that of one that is not visible is
 * the first. */
template <int d>
static __device__ __forceinline__ uint32_t row_of(const Prefill &p, const Job &job,
                                                  const uint32_t *table, uint32_t token) {
  uint32_t shift = p.pages.block_shift;
  if (token >= job.end)
    return 0;
  return __ldg(&table[token >> shift]) * (uint32_t)(p.pages.block_elements / d) +
         (job.kv_head << shift) + (token & ((1u << shift) - 1));
}

/* Begin to copy a warp's 32 rows of a tile, of which lane l gives row l's place in `pool`; those
 * from `rows` on become zeros. A copy holds the registers of its addresses for long, so those of
 * AT_ONCE copies are worked out first, each in registers of its own: otherwise one copy waits for
 * the other, and the computing groups for both. */
template <int d, bool whole>
static __device__ __forceinline__ void load_rows(KvBf16 *tile, const KvBf16 *pool, uint32_t row,
                                                 uint32_t rows, int warp, int lane) {
  const int chunks = d / 8, of_copy = 32 / chunks; /* rows */
  const int own = lane / chunks, chunk = lane % chunks, swizzles = 8 / of_copy;
  uint32_t to[swizzles]; /* as swizzled() has it; the same for every eighth row */
#pragma unroll
  for (int i = 0; i < swizzles; i++) {
    to[i] = address(tile) + (chunk / 8 * KEYS + warp * 32 + own + i * of_copy) * 128 +
            (chunk % 8 ^ own ^ i * of_copy) * 16;
    asm volatile("" : "+r"(to[i]));
  }
#pragma unroll
  for (int first = 0; first < 32; first += AT_ONCE * of_copy) {
    const KvBf16 *from[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      uint64_t from_row = __shfl_sync(0xffffffffu, row, first + i * of_copy + own);
      from[i] = pool + from_row * d + chunk * 8;
      asm volatile("" : "+l"(from[i]));
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      int r = first + i * of_copy;
      copy_16_async(to[i % swizzles] + r / 8 * 1024, from[i],
                    whole || (uint32_t)(warp * 32 + r + own) < rows ? 16 : 0);
    }
  }
}

/* The tile of the tokens from `first` on. */
template <int d>
static __device__ __forceinline__ void load_tile(KvBf16 *tile, const KvBf16 *pool, const Job &job,
                                                 uint32_t first, uint32_t row, int thread) {
  uint32_t rows = job.end - first;
  if (rows >= KEYS)
    load_rows<d, true>(tile, pool, row, KEYS, thread / 32, thread % 32);
  else
    load_rows<d, false>(tile, pool, row, rows, thread / 32, thread % 32);
}

/* All tiles of a job, the n-th of its block. Keys run one tile ahead of values, as they are used;
 * the first of them do not wait for the job before to be done with its queries. */
template <int d>
static __device__ __forceinline__ void copy_tiles(Shared<d> &shared, const Prefill &p,
                                                  const Job &job, uint32_t n, int thread) {
  const uint32_t *table = p.tables.table + p.tables.table_starts[job.tile.sequence];
  uint32_t next = row_of<d>(p, job, table, job.first + thread), present = next;
  for (uint32_t j = 0; j <= job.tiles; j++) {
    uint32_t t = job.before + j;
    if (j < job.tiles) {
      uint32_t stage = t % STAGES;
      if (t >= STAGES)
        barrier_wait(address(&shared.keys_free[stage]), phase_of(t - STAGES));
      load_tile<d>(shared.keys[stage], p.pages.pool, job, job.first + j * KEYS, next, thread);
      barrier_arrive_after_copies(address(&shared.keys_full[stage]));
    }
    if (j == 0) {
      if (n > 0)
        barrier_wait(address(&shared.queries_free), n - 1 & 1);
      load_queries<d>(shared, p, job, thread);
      barrier_arrive_after_copies(address(&shared.queries_full));
    } else {
      uint32_t stage = (t - 1) % STAGES;
      if (t > STAGES)
        barrier_wait(address(&shared.values_free[stage]), phase_of(t - 1 - STAGES));
      load_tile<d>(shared.values[stage], p.pages.pool + p.pages.value_offset, job,
                   job.first + (j - 1) * KEYS, present, thread);
      barrier_arrive_after_copies(address(&shared.values_full[stage]));
    }
    present = next;
    next = row_of<d>(p, job, table, job.first + (j + 1) * KEYS + thread);
  }
}

/* --- a computing group ----------------------------------------------------------------------- */

/* A thread's share of 64 rows: rows lane / 4 and + 8 of its warp. */
template <int d> struct Running {
  float o[d / 2], s[KEYS / 2];    /* accumulators of the mix and of the scores */
  uint32_t weights[KEYS / 16][4]; /* the exponentials, as the next mix's operand */
  float largest[2], sum[2], shrink[2];
  uint32_t position[2]; /* of the row's token */
};

/* Launch s = queries . keys of a stage. */
template <int d>
static __device__ __forceinline__ void launch_scores(Running<d> &run, const Shared<d> &shared,
                                                     int group, int stage) {
  Operand queries(address(shared.queries) + group * ROWS * 128, 16);
  Operand keys(address(shared.keys[stage]), 16);
#pragma unroll
  for (int k = 0; k < d / 16; k++)
    wgmma_shared(run.s, queries.at(k / 4 * GROUPS * ROWS * 128 + k % 4 * 32),
                 keys.at(k / 4 * KEYS * 128 + k % 4 * 32), k > 0);
  wgmma_commit();
}

/* Launch o += weights . values of a stage. */
template <int d>
static __device__ __forceinline__ void launch_mix(Running<d> &run, const Shared<d> &shared,
                                                  int stage) {
  Operand values(address(shared.values[stage]), KEYS * 128);
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
    wgmma_registers(run.o, run.weights[k], values.at(k * 16 * 128));
  wgmma_commit();
}

/* Forbid what a row must not see: the tokens after its own, and those before its window. */
template <int d>
static __device__ __forceinline__ void mask_scores(Running<d> &run, uint32_t t, uint32_t window,
                                                   int lane) {
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++) {
    uint32_t token = t + i / 4 * 8 + lane % 4 * 2 + i % 2, own = run.position[i % 4 / 2];
    if (token > own || (window && token + window <= own))
      run.s[i] = -INFINITY;
  }
}

/* The maximum moves up, and with it the sum; o has yet to shrink. */
template <int d>
static __device__ __forceinline__ void raise(Running<d> &run, const float (&most)[2], float scale) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float largest = fmaxf(run.largest[half], row_max(most[half]));
    /* A row that has seen nothing yet stays at minus infinity, without a NaN. */
    float reference = largest == -INFINITY ? 0.0f : largest;
    run.shrink[half] = power_of_2((run.largest[half] - reference) * scale);
    run.sum[half] *= run.shrink[half];
    run.largest[half] = largest;
  }
}

/* s becomes the exponentials, against a maximum that is raised only where scores pass it by more
 * than SLACK. TRUE if it was. */
template <int d> static __device__ __forceinline__ bool soften(Running<d> &run, float scale) {
  float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++)
    most[i % 4 / 2] = fmaxf(most[i % 4 / 2], run.s[i]);
  bool raised = __any_sync(0xffffffffu, (most[0] - run.largest[0]) * scale > SLACK ||
                                            (most[1] - run.largest[1]) * scale > SLACK);
  if (raised)
    raise(run, most, scale);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float reference = run.largest[half] == -INFINITY ? 0.0f : run.largest[half] * scale;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = n * 4 + half * 2; i < n * 4 + half * 2 + 2; i++) {
        run.s[i] = power_of_2(fmaf(run.s[i], scale, -reference));
        run.sum[half] += run.s[i];
      }
  }
  return raised;
}

template <int d> static __device__ __forceinline__ void pack_weights(Running<d> &run) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      run.weights[k][i] = pack_bf16(run.s[k * 8 + i * 2], run.s[k * 8 + i * 2 + 1]);
}

/* Turns at the tensor cores. */
static __device__ __forceinline__ void take_turn(int group) {
  named_sync(1 + group, GROUPS * GROUP);
}

static __device__ __forceinline__ void pass_turn(int group) {
  named_arrive(1 + (group ^ 1), GROUPS * GROUP);
}

/* The scores of the job's tile j beside the mix of tile j - 1. */
template <int d, bool masked>
static __device__ __forceinline__ void step(Running<d> &run, Shared<d> &shared, const Prefill &p,
                                            const Job &job, uint32_t j, int group, int lane) {
  uint32_t t = job.before + j, stage = t % STAGES, before = (t - 1) % STAGES;
  barrier_wait(address(&shared.keys_full[stage]), phase_of(t));
  barrier_wait(address(&shared.values_full[before]), phase_of(t - 1));
  publish_shared();
  take_turn(group);
  pin(run.o);
  pin(run.s);
  wgmma_fence();
  launch_scores<d>(run, shared, group, stage);
  launch_mix<d>(run, shared, before);
  pass_turn(group);
  wgmma_wait<1>();
  pin(run.s);
  if (masked)
    mask_scores<d>(run, job.first + j * KEYS, p.window, lane);
  bool raised = soften<d>(run, p.scale);
  /* A sum is never negative. That the address seems to depend on it keeps the assembler from
   * moving the exponentials behind the next wait, where no product of this group runs beside
   * them. */
  uint32_t nothing = run.sum[0] + run.sum[1] < 0.0f ? sizeof(uint64_t) : 0;
  if (lane == 0)
    barrier_arrive(address(&shared.keys_free[stage]) + nothing);
  wgmma_wait<0>();
  pin(run.o);
  if (lane == 0)
    barrier_arrive(address(&shared.values_free[before]));
  if (raised)
#pragma unroll
    for (int i = 0; i < d / 2; i++)
      run.o[i] *= run.shrink[i % 4 / 2];
  pack_weights<d>(run);
}

template <int d>
static __device__ __forceinline__ void store(const Running<d> &run, const Prefill &p,
                                             const Job &job, int first_row, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t row = first_row + half * 8, token = row / p.group;
    float factor = 1.0f / row_sum(run.sum[half]);
    if (token >= job.tile.count)
      continue;
    uint64_t head = (uint64_t)job.kv_head * p.group + (row - token * p.group);
    KvBf16 *out = p.out + ((uint64_t)(job.tile.row + token) * p.n_heads + head) * d + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < d / 8; n++)
      *(uint32_t *)(out + n * 8) =
          pack_bf16(run.o[n * 4 + half * 2] * factor, run.o[n * 4 + half * 2 + 1] * factor);
  }
}

/* A job, the n-th of its block. The groups take turns from the first job to the last. */
template <int d>
static __device__ __forceinline__ void compute(Shared<d> &shared, const Prefill &p, const Job &job,
                                               uint32_t n, bool last, int group, int thread) {
  const int lane = thread % 32, first_row = group * ROWS + thread / 32 * 16 + lane / 4;
  const uint32_t t = job.before, stage = t % STAGES;
  Running<d> run;
#pragma unroll
  for (int i = 0; i < d / 2; i++)
    run.o[i] = 0.0f;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    run.position[half] = job.tile.position + (first_row + half * 8) / p.group;
    run.largest[half] = -INFINITY;
    run.sum[half] = 0.0f;
  }
  if (group == 1 && n == 0)
    pass_turn(group); /* the first group begins */
  barrier_wait(address(&shared.queries_full), n & 1);
  barrier_wait(address(&shared.keys_full[stage]), phase_of(t));
  publish_shared();
  take_turn(group);
  pin(run.s);
  wgmma_fence();
  launch_scores<d>(run, shared, group, stage);
  pass_turn(group);
  wgmma_wait<0>();
  pin(run.s);
  if (lane == 0)
    barrier_arrive(address(&shared.keys_free[stage]));
  mask_scores<d>(run, job.first, p.window, lane);
  soften<d>(run, p.scale);
  pack_weights<d>(run);
  /* Tiles that the tile's first token sees whole need no mask; with a window, all take it. */
  uint32_t whole = p.window ? 0 : (job.tile.position + 1 - job.first) / KEYS, j = 1;
  for (; j < min(whole, job.tiles); j++)
    step<d, false>(run, shared, p, job, j, group, lane);
  for (; j < job.tiles; j++)
    step<d, true>(run, shared, p, job, j, group, lane);
  if (lane == 0)
    barrier_arrive(address(&shared.queries_free));
  const uint32_t end = t + job.tiles - 1;
  barrier_wait(address(&shared.values_full[end % STAGES]), phase_of(end));
  publish_shared();
  take_turn(group);
  pin(run.o);
  wgmma_fence();
  launch_mix<d>(run, shared, end % STAGES);
  if (group == 0 || !last)
    pass_turn(group); /* the second group ends */
  wgmma_wait<0>();
  pin(run.o);
  if (lane == 0)
    barrier_arrive(address(&shared.values_free[end % STAGES]));
  store<d>(run, p, job, first_row, lane);
}

/* As many blocks as there are multiprocessors, at most. */
template <int d>
static __global__ void __launch_bounds__(THREADS, 1)
    prefill_attention_wgmma(const __grid_constant__ Prefill p) {
  extern __shared__ __align__(1024) char bytes[];
  Shared<d> &shared = *(Shared<d> *)bytes;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(address(&shared.keys_full[s]), GROUP);
      barrier_init(address(&shared.values_full[s]), GROUP);
      barrier_init(address(&shared.keys_free[s]), GROUPS * 4); /* a lane of each warp */
      barrier_init(address(&shared.values_free[s]), GROUPS * 4);
    }
    barrier_init(address(&shared.queries_full), GROUP);
    barrier_init(address(&shared.queries_free), GROUPS * 4);
    publish_shared();
  }
  __syncthreads();
  /* The same in all lanes, which the compiler then knows. */
  int group = __shfl_sync(0xffffffffu, threadIdx.x / GROUP, 0), thread = threadIdx.x % GROUP;
  Job job;
  uint32_t before = 0;
  if (group == GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS_COPYING));
    for (uint32_t n = 0; job_of(job, p, n, before); n++, before += job.tiles)
      copy_tiles<d>(shared, p, job, n, thread);
    copies_wait_all();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS_COMPUTING));
    bool more = job_of(job, p, 0, 0);
    for (uint32_t n = 0; more; n++) {
      Job next;
      before += job.tiles;
      more = job_of(next, p, n + 1, before);
      compute<d>(shared, p, job, n, !more, group, thread);
      job = next;
    }
  }
}

template <int d> static cudaError_t launch(const Prefill &p, cudaStream_t stream) {
  static int multiprocessors = 0; /* one GPU, one thread */
  if (!multiprocessors) {
    cudaError_t status =
        cudaFuncSetAttribute(prefill_attention_wgmma<d>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(Shared<d>));
    if (status == cudaSuccess)
      status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
    if (status != cudaSuccess)
      return status;
  }
  uint32_t jobs = p.n_tiles * p.pages.n_kv_heads;
  prefill_attention_wgmma<d>
      <<<min(jobs, (uint32_t)multiprocessors), THREADS, sizeof(Shared<d>), stream>>>(p);
  return cudaGetLastError();
}

cudaError_t kv_prefill_wgmma(const Prefill &p, cudaStream_t stream) {
  return p.pages.head_dim == 64 ? launch<64>(p, stream) : launch<128>(p, stream);
}
