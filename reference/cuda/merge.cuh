/* How the parts of decode attention become one. A context is cut into pieces, one for each of the
 * blocks along x, and a piece is shared by the warps of its block. Each part leaves of a query head
 * its output, not divided by the sum of exponentials, that sum, and the largest score. The warps
 * merge through shared memory; if there are several pieces, the block that finishes last merges
 * those.
 *
 * A part that saw no token has the largest score -infinity, and 0 elsewhere; it weighs nothing. */
#ifndef KV_REFERENCE_CUDA_MERGE_CUH
#define KV_REFERENCE_CUDA_MERGE_CUH

#include <float.h>

#include "reference/cuda/mma.cuh"

/* Where blocks leave their pieces. */
struct Pieces {
  uint32_t *counters; /* [S][gridDim.y] blocks that have finished; 0 between launches */
  float2 *sums;       /* [S][H][most]: largest score, as a power of two, and sum of exponentials */
  float *outputs;     /* [S][H][most][d] */
  uint32_t n_heads, most;
};

static inline uint64_t piece_sums_bytes(uint32_t sequences, uint32_t n_heads, uint32_t most) {
  return ((uint64_t)sequences * n_heads * most * sizeof(float2) + 255) / 256 * 256;
}

/* In scratch of kv_cuda_decode_scratch_bytes(). */
static inline Pieces pieces_in(void *scratch, uint32_t *counters, uint32_t sequences,
                               uint32_t n_heads, uint32_t most) {
  char *outputs = (char *)scratch + piece_sums_bytes(sequences, n_heads, most);
  return {counters, (float2 *)scratch, (float *)outputs, n_heads, most};
}

/* A block's place: query heads first_head ... of a sequence, over one piece of its context. */
struct Place {
  uint32_t sequence, first_head, heads, split, splits;
};

static __device__ __forceinline__ uint64_t head_of(const Pieces &pieces, const Place &place,
                                                   uint32_t row) {
  return (uint64_t)place.sequence * pieces.n_heads + place.first_head + row;
}

/* Zeros of an empty context. */
static __device__ __forceinline__ void store_nothing(KvBf16 *out, const Pieces &pieces,
                                                     const Place &place, uint32_t d) {
  for (uint32_t i = threadIdx.x; i < place.heads * d; i += blockDim.x)
    out[head_of(pieces, place, 0) * d + i] = 0;
}

/* --- columns of a head ------------------------------------------------------------------------ */

/* `wide` (1, 2 or 4) floats that lie side by side, moved at once. */
template <int wide> struct Vector;
template <> struct Vector<1> { typedef float Type; };
template <> struct Vector<2> { typedef float2 Type; };
template <> struct Vector<4> { typedef float4 Type; };

template <int wide> struct Part {
  alignas(wide * sizeof(float)) float o[wide];
  float largest, sum;
};

/* Nothing yet. Not -infinity, from which a part that saw no token would be no distance away. */
template <int wide> static __device__ __forceinline__ Part<wide> no_part() {
  Part<wide> part = {};
  part.largest = -FLT_MAX;
  return part;
}

template <int wide>
static __device__ __forceinline__ void
add_scaled(Part<wide> &to, const typename Vector<wide>::Type &o, float sum, float weight) {
  to.sum += sum * weight;
#pragma unroll
  for (int i = 0; i < wide; i++)
    to.o[i] += ((const float *)&o)[i] * weight;
}

/* One more part, whose largest score may be greater than those before. */
template <int wide>
static __device__ __forceinline__ void add_part(Part<wide> &to,
                                                const typename Vector<wide>::Type &o, float2 sums) {
  float higher = fmaxf(to.largest, sums.x), kept = power_of_2(to.largest - higher);
  to.sum *= kept;
#pragma unroll
  for (int i = 0; i < wide; i++)
    to.o[i] *= kept;
  add_scaled<wide>(to, o, sums.y, power_of_2(sums.x - higher));
  to.largest = higher;
}

template <int wide>
static __device__ __forceinline__ void store_result(KvBf16 *out, const Part<wide> &part) {
  float factor = 1.0f / part.sum;
  if constexpr (wide == 1)
    *out = to_bf16(part.o[0] * factor);
  else if constexpr (wide == 2)
    *(uint32_t *)out = pack_bf16(part.o[0] * factor, part.o[1] * factor);
  else
    *(uint2 *)out = make_uint2(pack_bf16(part.o[0] * factor, part.o[1] * factor),
                               pack_bf16(part.o[2] * factor, part.o[3] * factor));
}

/* --- the warps of a block --------------------------------------------------------------------- */

/* What they hand over: o[heads][d], and of each row its largest score and sum. */
template <int d, int warps, int heads> struct Merge {
  float o[warps][heads][d], largest[warps][heads], sum[warps][heads];
};

template <int d, int warps, int heads>
static __device__ __forceinline__ void hand_over(Merge<d, warps, heads> &merge,
                                                 const RunningRows<d> &run, int warp, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int head = lane / 4 + half * 8;
    float sum = row_sum(run.sum[half]);
#pragma unroll
    for (int n = 0; n < d / 8; n++)
      *(float2 *)&merge.o[warp][head][n * 8 + lane % 4 * 2] =
          make_float2(run.o[n][half * 2], run.o[n][half * 2 + 1]);
    if (lane % 4 == 0) {
      merge.largest[warp][head] = run.largest[half];
      merge.sum[warp][head] = sum;
    }
  }
}

template <int wide, int d, int warps, int heads>
static __device__ __forceinline__ Part<wide> part_of_warps(const Merge<d, warps, heads> &merge,
                                                           uint32_t row, uint32_t column) {
  Part<wide> part = no_part<wide>();
#pragma unroll
  for (int w = 0; w < warps; w++)
    part.largest = fmaxf(part.largest, merge.largest[w][row]);
#pragma unroll
  for (int w = 0; w < warps; w++)
    add_scaled<wide>(part, *(const typename Vector<wide>::Type *)&merge.o[w][row][column],
                     merge.sum[w][row], power_of_2(merge.largest[w][row] - part.largest));
  return part;
}

/* Merge the warps: the result, if the context is in one piece, or this piece. finish(part, row,
 * column) may add to a result. */
template <int wide, int d, int warps, int heads, typename Finish>
static __device__ void merge_warps(KvBf16 *out, const Merge<d, warps, heads> &merge,
                                   const Pieces &pieces, const Place &place, Finish finish) {
  for (uint32_t i = threadIdx.x; i < place.heads * (d / wide); i += warps * 32) {
    uint32_t row = i / (d / wide), column = i % (d / wide) * wide;
    Part<wide> part = part_of_warps<wide>(merge, row, column);
    uint64_t head = head_of(pieces, place, row);
    if (place.splits == 1) {
      finish(part, row, column);
      store_result(out + head * d + column, part);
    } else {
      uint64_t slot = head * pieces.most + place.split;
      __stcg((typename Vector<wide>::Type *)&pieces.outputs[slot * d + column],
             *(const typename Vector<wide>::Type *)part.o);
      if (column == 0)
        __stcg(&pieces.sums[slot], make_float2(part.largest, part.sum));
    }
  }
}

/* --- the pieces of a context ------------------------------------------------------------------ */

/* TRUE in every thread of the block that finishes this context last. */
static __device__ bool is_last(const Pieces &pieces, const Place &place) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t *counter = &pieces.counters[place.sequence * gridDim.y + blockIdx.y];
    last = atomicAdd(counter, 1) == place.splits - 1;
    if (last)
      *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

template <int wide, int threads, typename Finish>
static __device__ __forceinline__ void merge_pieces(KvBf16 *out, const Pieces &pieces,
                                                    const Place &place, uint32_t d, Finish finish) {
  for (uint32_t i = threadIdx.x; i < place.heads * (d / wide); i += threads) {
    uint32_t row = i / (d / wide), column = i % (d / wide) * wide;
    uint64_t head = head_of(pieces, place, row);
    const float2 *sums = pieces.sums + head * pieces.most;
    const float *outputs = pieces.outputs + head * pieces.most * d + column;
    Part<wide> part = no_part<wide>();
#pragma unroll 8
    for (uint32_t s = 0; s < place.splits; s++)
      part.largest = fmaxf(part.largest, __ldcg(&sums[s]).x);
#pragma unroll 8
    for (uint32_t s = 0; s < place.splits; s++) {
      float2 of_piece = __ldcg(&sums[s]);
      add_scaled<wide>(part, __ldcg((const typename Vector<wide>::Type *)&outputs[(uint64_t)s * d]),
                       of_piece.y, power_of_2(of_piece.x - part.largest));
    }
    finish(part, row, column);
    store_result(out + head * d + column, part);
  }
}

/* For merges that add nothing. */
struct Finished {
  template <int wide>
  __device__ __forceinline__ void operator()(Part<wide> &, uint32_t, uint32_t) const {
  }
};

#endif
