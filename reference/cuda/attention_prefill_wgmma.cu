/* Prefill attention on Hopper's asynchronous tensor cores, for heads of 64 and 128.
 *
 * Work and tiles are those of attention_prefill.cu. A block is three warp groups: one copies keys
 * and values into rings of STAGES tiles of KEYS tokens, two compute 64 rows each. A computing group
 * launches the scores of the next tile and the mix of the present one together, and softens the
 * scores while the mix runs; the two groups take turns at the tensor cores, so that one multiplies
 * while the other exponentiates. Shah et al., "FlashAttention-3: Fast and Accurate Attention with
 * Asynchrony and Low-precision" (2024), algorithm 2. Twin: kv_host_attention().
 */
#include "reference/cuda/prefill.cuh"
#include "reference/cuda/wgmma.cuh"

enum { GROUPS = 2, GROUP = 128, ROWS = 64, KEYS = 128, STAGES = 2, THREADS = (GROUPS + 1) * GROUP };
static_assert(GROUPS * ROWS == KV_PREFILL_TILE_ROWS, "a tile is the computing groups' rows");

/* How far scores may pass the running maximum, as a power of two, before it is raised. */
#define SLACK 8.0f

/* Registers of a thread after the roles are known: 65536 in all. */
#define REGISTERS_COPYING 40
#define REGISTERS_COMPUTING 232

template <int d> struct Shared {
  KvBf16 queries[GROUPS * ROWS * d];
  KvBf16 keys[STAGES][KEYS * d], values[STAGES][KEYS * d];
  uint64_t keys_full[STAGES], keys_free[STAGES], values_full[STAGES], values_free[STAGES];
};

static __device__ __forceinline__ uint32_t address(const void *shared) {
  return (uint32_t)__cvta_generic_to_shared(shared);
}

/* What every thread of a block knows. */
struct Job {
  KvCudaTile tile;
  uint32_t kv_head, first, end; /* tokens first (a multiple of KEYS) .. end - 1 are visible */
  const uint32_t *table;
  int tiles; /* of KEYS tokens */
};

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

/* Where the token's keys stand in the pool; UINT64_MAX of one that is not visible. */
template <int d>
static __device__ __forceinline__ uint64_t offset_of(const Prefill &p, const Job &job,
                                                     uint32_t token) {
  uint32_t shift = p.pages.block_shift;
  if (token >= job.end)
    return UINT64_MAX;
  return __ldg(&job.table[token >> shift]) * p.pages.block_elements +
         (((uint64_t)job.kv_head << shift) + (token & ((1u << shift) - 1))) * d;
}

/* Begin to copy 32 rows of a tile, lane l giving row l's place in `pool`; absent rows become
 * zeros. */
template <int d>
static __device__ __forceinline__ void load_rows(char *tile, const KvBf16 *pool, uint64_t offset,
                                                 int warp, int lane) {
  const int chunks = d / 8;
#pragma unroll 4
  for (int i = 0; i < chunks; i++) {
    int r = (i * 32 + lane) / chunks, chunk = lane % chunks;
    uint64_t at = __shfl_sync(0xffffffffu, offset, r);
    bool wanted = at != UINT64_MAX;
    copy_16_async(tile + swizzled(KEYS, warp * 32 + r, chunk), pool + (wanted ? at + chunk * 8 : 0),
                  wanted ? 16 : 0);
  }
}

/* Keys run one tile ahead of values, as they are used. */
template <int d>
static __device__ __forceinline__ void copy_tiles(Shared<d> &shared, const Prefill &p,
                                                  const Job &job, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  uint64_t next = offset_of<d>(p, job, job.first + thread), present = next;
  load_queries<d>(shared, p, job, thread);
  for (int j = 0; j <= job.tiles; j++) {
    if (j < job.tiles) {
      int stage = j % STAGES;
      if (j >= STAGES)
        barrier_wait(address(&shared.keys_free[stage]), (j / STAGES - 1) & 1);
      load_rows<d>((char *)shared.keys[stage], p.pages.pool, next, warp, lane);
      barrier_arrive_after_copies(address(&shared.keys_full[stage]));
    }
    if (j > 0) {
      int stage = (j - 1) % STAGES;
      if (j > STAGES)
        barrier_wait(address(&shared.values_free[stage]), ((j - 1) / STAGES - 1) & 1);
      load_rows<d>((char *)shared.values[stage], p.pages.pool + p.pages.value_offset, present, warp,
                   lane);
      barrier_arrive_after_copies(address(&shared.values_full[stage]));
    }
    present = next;
    next = offset_of<d>(p, job, job.first + (j + 1) * KEYS + thread);
  }
  copies_wait_all();
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
  uint32_t queries = address(shared.queries) + group * ROWS * 128;
  uint32_t keys = address(shared.keys[stage]);
#pragma unroll
  for (int k = 0; k < d / 16; k++)
    wgmma_shared(run.s, wgmma_operand(queries + k / 4 * GROUPS * ROWS * 128 + k % 4 * 32, 16),
                 wgmma_operand(keys + k / 4 * KEYS * 128 + k % 4 * 32, 16), k > 0);
  wgmma_commit();
}

/* Launch o += weights . values of a stage. */
template <int d>
static __device__ __forceinline__ void launch_mix(Running<d> &run, const Shared<d> &shared,
                                                  int stage) {
  uint32_t values = address(shared.values[stage]);
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
    wgmma_registers(run.o, run.weights[k], wgmma_operand(values + k * 16 * 128, KEYS * 128));
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

/* The scores of tile j beside the mix of tile j - 1. */
template <int d, bool masked>
static __device__ __forceinline__ void step(Running<d> &run, Shared<d> &shared, const Prefill &p,
                                            const Job &job, int j, int group, int lane) {
  int stage = j % STAGES, before = (j - 1) % STAGES;
  barrier_wait(address(&shared.keys_full[stage]), j / STAGES & 1);
  barrier_wait(address(&shared.values_full[before]), (j - 1) / STAGES & 1);
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

template <int d>
static __device__ __forceinline__ void compute(Shared<d> &shared, const Prefill &p, const Job &job,
                                               int group, int thread) {
  const int lane = thread % 32, first_row = group * ROWS + thread / 32 * 16 + lane / 4;
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
  if (group == 1)
    pass_turn(group); /* the first group begins */
  barrier_wait(address(&shared.keys_full[0]), 0);
  publish_shared();
  take_turn(group);
  pin(run.s);
  wgmma_fence();
  launch_scores<d>(run, shared, group, 0);
  pass_turn(group);
  wgmma_wait<0>();
  pin(run.s);
  if (lane == 0)
    barrier_arrive(address(&shared.keys_free[0]));
  mask_scores<d>(run, job.first, p.window, lane);
  soften<d>(run, p.scale);
  pack_weights<d>(run);
  /* Tiles that the tile's first token sees whole need no mask; with a window, all take it. */
  int whole = p.window ? 0 : (int)((job.tile.position + 1 - job.first) / KEYS), j = 1;
  for (; j < min(whole, job.tiles); j++)
    step<d, false>(run, shared, p, job, j, group, lane);
  for (; j < job.tiles; j++)
    step<d, true>(run, shared, p, job, j, group, lane);
  barrier_wait(address(&shared.values_full[(j - 1) % STAGES]), (j - 1) / STAGES & 1);
  publish_shared();
  take_turn(group);
  pin(run.o);
  wgmma_fence();
  launch_mix<d>(run, shared, (j - 1) % STAGES);
  if (group == 0)
    pass_turn(group); /* the second group ends */
  wgmma_wait<0>();
  pin(run.o);
  store<d>(run, p, job, first_row, lane);
}

/* grid (Hkv, tiles): the heaviest tiles of all heads come first */
template <int d>
static __global__ void __launch_bounds__(THREADS, 1)
    prefill_attention_wgmma(const __grid_constant__ Prefill p) {
  extern __shared__ __align__(1024) char bytes[];
  Shared<d> &shared = *(Shared<d> *)bytes;
  Job job;
  job.tile = p.tiles[blockIdx.y];
  job.kv_head = blockIdx.x;
  job.end = job.tile.position + job.tile.count;
  job.first = p.window && job.tile.position + 1 > p.window ? job.tile.position + 1 - p.window : 0;
  job.first = job.first / KEYS * KEYS;
  job.tiles = (job.end - job.first + KEYS - 1) / KEYS;
  job.table = p.tables.table + p.tables.table_starts[job.tile.sequence];
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(address(&shared.keys_full[s]), GROUP);
      barrier_init(address(&shared.values_full[s]), GROUP);
      barrier_init(address(&shared.keys_free[s]), GROUPS * 4); /* a lane of each warp */
      barrier_init(address(&shared.values_free[s]), GROUPS * 4);
    }
    publish_shared();
  }
  __syncthreads();
  int group = threadIdx.x / GROUP;
  if (group == GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS_COPYING));
    copy_tiles<d>(shared, p, job, threadIdx.x % GROUP);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS_COMPUTING));
    compute<d>(shared, p, job, group, threadIdx.x % GROUP);
  }
}

template <int d>
static cudaError_t launch(const Prefill &p, uint32_t n_tiles, cudaStream_t stream) {
  static bool ready = false; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status =
        cudaFuncSetAttribute(prefill_attention_wgmma<d>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(Shared<d>));
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  dim3 grid(p.pages.n_kv_heads, n_tiles);
  prefill_attention_wgmma<d><<<grid, THREADS, sizeof(Shared<d>), stream>>>(p);
  return cudaGetLastError();
}

cudaError_t kv_prefill_wgmma(const Prefill &p, uint32_t n_tiles, cudaStream_t stream) {
  return p.pages.head_dim == 64 ? launch<64>(p, n_tiles, stream) : launch<128>(p, n_tiles, stream);
}
