/* Decode attention: one query a sequence over its paged cache. Bound by memory, so everything here
 * serves the reads: each key and value is read once for all query heads of its KV head, 16 bytes a
 * lane, several tiles ahead.
 *
 * Every warp runs alone: it owns each WARPS-th tile of TILE tokens of its piece of the context, a
 * ring of STAGES tiles in shared memory, and a running softmax (Milakov & Gimelshein, "Online
 * normalizer calculation for softmax", 2018). The warps of a block then merge; if the context was
 * cut into several pieces, the block that finishes last merges those. Where leading tokens were
 * attended to before (`shares`; attention_shared.cu), the context begins after them, and what they
 * gave is merged last. Twin: kv_host_attention().
 */
#include <cooperative_groups.h>

#include "reference/cuda/launch.cuh"
#include "reference/cuda/merge.cuh"
#include "reference/cuda/shared.cuh"

enum { WARPS = 4, TILE = 16, STAGES = 3, HEADS = 16 }; /* HEADS: rows of the product */
static_assert(KV_CUDA_SPLIT_UNIT == WARPS * TILE, "a piece is whole tiles of every warp");

struct Decode {
  KvBf16 *out;
  const KvBf16 *q;
  uint64_t row_stride;
  KvCudaPages pages;
  KvCudaTables tables;
  const uint32_t *contexts, *split_tokens;
  uint32_t group, window;
  float scale; /* of a score, as a power of two: log2(e) / sqrt(d) */
  Pieces pieces;
  /* Of sequences that share leading tokens: those, and where their parts are. */
  const uint32_t *first_tokens, *part_starts;
  SharedParts parts;
};

/* A block's part of the work. */
struct Piece : Place {
  uint32_t kv_head, context;
  uint32_t start;      /* first token that is attended to at all */
  uint32_t begin, end; /* tokens of this piece, begin a multiple of TILE */
  const uint32_t *table;
};

/* FALSE if there is nothing to do. */
template <bool shares> static __device__ bool piece_of_block(const Decode &p, Piece &piece) {
  uint32_t heads_before = blockIdx.y / p.pages.n_kv_heads * HEADS;
  piece.sequence = blockIdx.z;
  piece.kv_head = blockIdx.y % p.pages.n_kv_heads;
  piece.first_head = piece.kv_head * p.group + heads_before;
  piece.heads = min(p.group - heads_before, (uint32_t)HEADS);
  piece.split = blockIdx.x;
  uint32_t context = p.contexts[blockIdx.z], split_tokens = *p.split_tokens;
  piece.context = context;
  piece.table = p.tables.table + p.tables.table_starts[blockIdx.z];
  piece.start = shares                           ? p.first_tokens[blockIdx.z]
                : p.window && p.window < context ? context - p.window
                                                 : 0;
  uint32_t base = piece.start / TILE * TILE;
  piece.splits = (context - base + split_tokens - 1) / split_tokens;
  if (piece.split >= piece.splits)
    return false;
  piece.begin = base + piece.split * split_tokens;
  piece.end = min(context, piece.begin + split_tokens);
  return true;
}

/* Queries as the product's rows, heads beyond the group zero. */
template <int d>
static __device__ __forceinline__ void load_queries(uint32_t (&a)[d / 16][4], const Decode &p,
                                                    const Piece &piece, int lane) {
  const KvBf16 *q = p.q + piece.sequence * p.row_stride + (uint64_t)piece.first_head * d;
#pragma unroll
  for (int k = 0; k < d / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t head = lane / 4 + i % 2 * 8, column = k * 16 + i / 2 * 8 + lane % 4 * 2;
      a[k][i] = head < piece.heads ? *(const uint32_t *)(q + head * d + column) : 0;
    }
}

/* A warp's ring: K and V rows of one tile, [2][TILE][row]. */
template <int d> struct Stage {
  KvBf16 keys[TILE][SharedRow<d>::elements], values[TILE][SharedRow<d>::elements];
};

/* Begin to load the tile at token `t`; lane l < TILE knows the block of token t + l. Tokens outside
 * the piece become zeros: what stands there may be anything, NaN too. */
template <int d>
static __device__ __forceinline__ void load_tile(Stage<d> &stage, const Decode &p,
                                                 const Piece &piece, uint32_t t, uint32_t block,
                                                 int lane) {
  const int chunks = SharedRow<d>::chunks;
  uint32_t mask = (1u << p.pages.block_shift) - 1, token = t + lane % TILE;
  bool wanted = token >= piece.start && token < piece.end;
  uint64_t row = wanted
                     ? block * p.pages.block_elements +
                           (((uint64_t)piece.kv_head << p.pages.block_shift) + (token & mask)) * d
                     : UINT64_MAX;
#pragma unroll
  for (int i = 0; i < TILE * chunks; i += 32) {
    int r = (i + lane) / chunks, c = (i + lane) % chunks;
    uint64_t offset = __shfl_sync(0xffffffffu, row, r);
    int bytes = offset == UINT64_MAX ? 0 : 16;
    const KvBf16 *keys = p.pages.pool + (bytes ? offset + c * 8 : 0);
    copy_16_async(&stage.keys[r][c * 8], keys, bytes);
    copy_16_async(&stage.values[r][c * 8], bytes ? keys + p.pages.value_offset : keys, bytes);
  }
}

/* s[2][4]: scores of one tile, columns 8 n + ... */
template <int d>
static __device__ __forceinline__ void score_tile(float (&s)[2][4], const Stage<d> &stage,
                                                  const uint32_t (&q)[d / 16][4], int lane) {
#pragma unroll
  for (int k = 0; k < d / 16; k++) {
    uint32_t b[4];
    load_tiles(b, &stage.keys[lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
    mma_bf16(s[0], q[k], b[0], b[1]);
    mma_bf16(s[1], q[k], b[2], b[3]);
  }
}

/* Scale, mask and exponentiate the scores of the tile at t, and bring `run` to the new maximum. */
template <int d>
static __device__ __forceinline__ void soften(float (&s)[2][4], RunningRows<d> &run,
                                              const Decode &p, const Piece &piece, uint32_t t,
                                              int lane) {
  float largest[2] = {run.largest[0], run.largest[1]};
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t token = t + n * 8 + lane % 4 * 2 + i % 2;
      s[n][i] = token >= piece.start && token < piece.end ? s[n][i] * p.scale : -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], s[n][i]);
    }
  largest[0] = row_max(largest[0]);
  largest[1] = row_max(largest[1]);
  if (__any_sync(0xffffffffu, largest[0] > run.largest[0] || largest[1] > run.largest[1])) {
    float shrink[2] = {power_of_2(run.largest[0] - largest[0]),
                       power_of_2(run.largest[1] - largest[1])};
#pragma unroll
    for (int n = 0; n < d / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        run.o[n][i] *= shrink[i / 2];
    run.sum[0] *= shrink[0];
    run.sum[1] *= shrink[1];
  }
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s[n][i] = power_of_2(s[n][i] - largest[i / 2]);
      run.sum[i / 2] += s[n][i]; /* of this lane's columns; the lanes are added at the end */
    }
  run.largest[0] = largest[0];
  run.largest[1] = largest[1];
}

/* o += p . values. */
template <int d>
static __device__ __forceinline__ void mix_tile(RunningRows<d> &run, const float (&s)[2][4],
                                                const Stage<d> &stage, int lane) {
  const uint32_t a[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                         pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
#pragma unroll
  for (int n = 0; n < d / 16; n++) {
    uint32_t b[4];
    load_tiles_transposed(b, &stage.values[lane % 16][n * 16 + lane / 16 * 8]);
    mma_bf16(run.o[2 * n], a, b[0], b[1]);
    mma_bf16(run.o[2 * n + 1], a, b[2], b[3]);
  }
}

/* All tiles of this warp. Tables, and all tokens of a context but its last, are older than the
 * kernel before this one: the first tiles are on their way before that one is known to be done. */
template <int d>
static __device__ __forceinline__ void run_tiles(RunningRows<d> &run, Stage<d> *ring,
                                                 const Decode &p, const Piece &piece, int warp,
                                                 int lane) {
  const uint32_t stride = WARPS * TILE, shift = p.pages.block_shift;
  const uint32_t *table = piece.table;
  uint32_t loaded = piece.begin + warp * TILE; /* the next tile to load, and its tokens' blocks */
  uint32_t queries[d / 16][4];
  auto block_at = [&](uint32_t t) {
    uint32_t token = t + lane % TILE;
    return token < piece.end ? table[token >> shift] : 0;
  };
  uint32_t block = block_at(loaded);
  auto load_next = [&](int stage) {
    if (loaded < piece.end) {
      load_tile<d>(ring[stage], p, piece, loaded, block, lane);
      loaded += stride;
      block = block_at(loaded);
    }
    copies_commit();
  };
  bool old = piece.begin + warp * TILE + (STAGES - 2) * stride + TILE < piece.context;
  if (!old)
    await_previous();
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++)
    load_next(s);
  if (old)
    await_previous();
  load_queries<d>(queries, p, piece, lane);
  int stage = 0;
  for (uint32_t t = piece.begin + warp * TILE; t < piece.end; t += stride) {
    load_next((stage + STAGES - 1) % STAGES);
    copies_wait<STAGES - 1>();
    __syncwarp();
    float s[2][4] = {};
    score_tile<d>(s, ring[stage], queries, lane);
    soften<d>(s, run, p, piece, t, lane);
    mix_tile<d>(run, s, ring[stage], lane);
    __syncwarp(); /* the tile may be overwritten */
    stage = (stage + 1) % STAGES;
  }
  copies_wait<0>();
}

/* What the tokens that the sequence shares gave the head, after its own. */
template <int d>
static __device__ __forceinline__ void add_shared(Part<4> &to, const Decode &p, const Piece &piece,
                                                  uint32_t row, uint32_t column) {
  for (uint32_t i = p.part_starts[piece.sequence]; i < p.part_starts[piece.sequence + 1]; i++) {
    uint64_t slot = (uint64_t)i * p.pieces.n_heads + piece.first_head + row;
    add_part(to, __ldcg((const float4 *)&p.parts.outputs[slot * d + column]),
             __ldcg(&p.parts.sums[slot]));
  }
}

/* What a block of a cluster shows to the others: its piece, merged over its warps. */
template <int d> struct Share {
  float o[HEADS][d];
  float2 sums[HEADS]; /* largest score and sum of exponentials */
};

template <int d>
static __device__ void share_piece(Share<d> &share, const Merge<d, WARPS, HEADS> &merge,
                                   uint32_t heads) {
  for (uint32_t i = threadIdx.x; i < heads * (d / 4); i += WARPS * 32) {
    uint32_t row = i / (d / 4), column = i % (d / 4) * 4;
    Part<4> part = part_of_warps<4>(merge, row, column);
    *(float4 *)&share.o[row][column] = *(const float4 *)part.o;
    if (column == 0)
      share.sums[row] = make_float2(part.largest, part.sum);
  }
}

/* Every block of the cluster merges its part of the rows and columns. */
template <int d, bool shares>
static __device__ void merge_cluster(Share<d> &share, const Decode &p, const Piece &piece,
                                     const cooperative_groups::cluster_group &cluster) {
  for (uint32_t i = piece.split * WARPS * 32 + threadIdx.x; i < piece.heads * (d / 4);
       i += gridDim.x * WARPS * 32) {
    uint32_t row = i / (d / 4), column = i % (d / 4) * 4;
    Part<4> part = no_part<4>();
    for (uint32_t s = 0; s < piece.splits; s++) {
      const Share<d> &other = *cluster.map_shared_rank(&share, s);
      add_part(part, *(const float4 *)&other.o[row][column], other.sums[row]);
    }
    if (shares)
      add_shared<d>(part, p, piece, row, column);
    store_result(p.out + head_of(p.pieces, piece, row) * d + column, part);
  }
}

/* The block's piece of the context, its warps' shares in `merge`. */
template <int d>
static __device__ __forceinline__ void run_piece(char *shared, const Decode &p,
                                                 const Piece &piece) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  RunningRows<d> run;
  start<d>(run);
  run_tiles<d>(run, (Stage<d> *)shared + warp * STAGES, p, piece, warp, lane);
  __syncthreads(); /* the rings become the hand-over */
  hand_over(*(Merge<d, WARPS, HEADS> *)shared, run, warp, lane);
  __syncthreads();
}

/* grid (splits, Hkv * groups of HEADS query heads, S) */
template <int d, bool shares>
static __global__ void __launch_bounds__(WARPS * 32) decode_attention(const Decode p) {
  extern __shared__ __align__(16) char shared[];
  Piece piece;
  if (!piece_of_block<shares>(p, piece)) {
    await_previous();
    if (piece.splits == 0 && piece.split == 0) /* an empty context */
      store_nothing(p.out, p.pieces, piece, d);
    return;
  }
  run_piece<d>(shared, p, piece);
  auto finish = [&](Part<4> &part, uint32_t row, uint32_t column) {
    if (shares)
      add_shared<d>(part, p, piece, row, column);
  };
  merge_warps<4>(p.out, *(Merge<d, WARPS, HEADS> *)shared, p.pieces, piece, finish);
  if (piece.splits > 1 && is_last(p.pieces, piece))
    merge_pieces<4, WARPS * 32>(p.out, p.pieces, piece, d, finish);
}

/* The same grid, the blocks of a context a cluster: they merge through each other's shared memory,
 * without a way to global memory and back. */
template <int d, bool shares>
static __global__ void __launch_bounds__(WARPS * 32) decode_attention_cluster(const Decode p) {
  extern __shared__ __align__(16) char shared[];
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  Share<d> &share = *(Share<d> *)(shared + sizeof(Merge<d, WARPS, HEADS>));
  Piece piece;
  if (piece_of_block<shares>(p, piece)) {
    run_piece<d>(shared, p, piece);
    share_piece<d>(share, *(Merge<d, WARPS, HEADS> *)shared, piece.heads);
  } else {
    await_previous();
    if (piece.splits == 0 && piece.split == 0) /* an empty context */
      store_nothing(p.out, p.pieces, piece, d);
  }
  cluster.sync();
  if (piece.splits > 0)
    merge_cluster<d, shares>(share, p, piece, cluster);
  cluster.sync(); /* shared memory lasts until its last reader */
}

template <int d, bool shares>
static cudaError_t launch(const Decode &p, dim3 grid, cudaStream_t stream) {
  const int bytes = sizeof(Stage<d>) * WARPS * STAGES;
  static_assert(sizeof(Stage<d>) * WARPS * STAGES >= sizeof(Merge<d, WARPS, HEADS>),
                "the hand-over fits");
  static_assert(sizeof(Merge<d, WARPS, HEADS>) % 16 == 0, "what follows it is aligned");
  /* A larger cluster waits for room on so many neighbouring multiprocessors: from four blocks on,
   * merging through memory is quicker. */
  const bool clustered = grid.x > 1 && grid.x <= 3;
  const int needed = clustered && bytes < (int)(sizeof(Merge<d, WARPS, HEADS>) + sizeof(Share<d>))
                         ? (int)(sizeof(Merge<d, WARPS, HEADS>) + sizeof(Share<d>))
                         : bytes;
  auto kernel = clustered ? decode_attention_cluster<d, shares> : decode_attention<d, shares>;
  static bool ready[2]; /* one GPU, one thread */
  if (!ready[clustered]) {
    cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, needed);
    if (status != cudaSuccess)
      return status;
    ready[clustered] = true;
  }
  return launch_early(kernel, grid, WARPS * 32, needed, stream, clustered ? grid.x : 1, p);
}

/* Groups of at most HEADS query heads that share a KV head. */
static uint32_t head_groups(uint32_t n_heads, uint32_t n_kv_heads) {
  return (n_heads / n_kv_heads + HEADS - 1) / HEADS;
}

uint64_t kv_cuda_decode_scratch_bytes(uint32_t sequences, uint32_t n_heads, uint32_t head_dim,
                                      uint32_t max_splits) {
  return piece_sums_bytes(sequences, n_heads, max_splits) +
         (uint64_t)sequences * n_heads * max_splits * head_dim * sizeof(float);
}

/* The fewest pieces whose blocks, two on a multiprocessor, fill whole waves to 95 %. */
uint32_t kv_cuda_decode_max_splits(uint32_t sequences, uint32_t n_kv_heads,
                                   uint32_t multiprocessors) {
  uint64_t slots = 2 * (uint64_t)multiprocessors, blocks = (uint64_t)sequences * n_kv_heads;
  uint32_t best = 1;
  double best_share = 0.0;
  for (uint32_t splits = 1; splits <= 64 && blocks; splits++) {
    uint64_t waves = (splits * blocks + slots - 1) / slots;
    double share = (double)(splits * blocks) / (double)(waves * slots);
    if (share > best_share) {
      best_share = share;
      best = splits;
    }
    if (share >= 0.95)
      break;
  }
  return best;
}

template <bool shares>
static cudaError_t launch_heads(const Decode &p, dim3 grid, cudaStream_t stream) {
  return for_head_dim(p.pages.head_dim,
                      [&](auto d) { return launch<d.value, shares>(p, grid, stream); });
}

static Decode decode_of(KvBf16 *out, const KvBf16 *q, uint64_t row_stride, const KvCudaPages *pages,
                        const KvCudaTables *tables, const uint32_t *contexts, uint32_t sequences,
                        uint32_t n_heads, const uint32_t *split_tokens, uint32_t max_splits,
                        uint32_t *counters, void *scratch) {
  Decode p = {};
  p.out = out;
  p.q = q;
  p.row_stride = row_stride;
  p.pages = *pages;
  p.tables = *tables;
  p.contexts = contexts;
  p.split_tokens = split_tokens;
  p.group = n_heads / pages->n_kv_heads;
  p.scale = 1.4426950408889634f / sqrtf((float)pages->head_dim);
  p.pieces = pieces_in(scratch, counters, sequences, n_heads, max_splits);
  return p;
}

static dim3 grid_of(const KvCudaPages *pages, uint32_t sequences, uint32_t n_heads,
                    uint32_t max_splits) {
  return dim3(max_splits, pages->n_kv_heads * head_groups(n_heads, pages->n_kv_heads), sequences);
}

cudaError_t kv_cuda_decode_attention(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                     const KvCudaPages *pages, const KvCudaTables *tables,
                                     const uint32_t *contexts, uint32_t sequences, uint32_t n_heads,
                                     uint32_t window, const uint32_t *split_tokens,
                                     uint32_t max_splits, uint32_t *counters, void *scratch,
                                     cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  Decode p = decode_of(out, q, row_stride, pages, tables, contexts, sequences, n_heads,
                       split_tokens, max_splits, counters, scratch);
  p.window = window;
  return launch_heads<false>(p, grid_of(pages, sequences, n_heads, max_splits), stream);
}

cudaError_t kv_cuda_decode_attention_shared(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                            const KvCudaPages *pages, const KvCudaTables *tables,
                                            const uint32_t *contexts, uint32_t sequences,
                                            uint32_t n_heads, const KvCudaShared *shared,
                                            const uint32_t *split_tokens, uint32_t max_splits,
                                            uint32_t *counters, void *scratch,
                                            cudaStream_t stream) {
  if (sequences == 0)
    return cudaSuccess;
  Decode p = decode_of(out, q, row_stride, pages, tables, contexts, sequences, n_heads,
                       split_tokens, max_splits, counters, scratch);
  p.first_tokens = shared->first_tokens;
  p.part_starts = shared->part_starts;
  p.parts = shared_parts(*shared, n_heads);
  return launch_heads<true>(p, grid_of(pages, sequences, n_heads, max_splits), stream);
}
