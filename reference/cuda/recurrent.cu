/* What a Mamba block does between its products: the causal convolution, and the selective scan with
 * its gate. Twin: reference/host/recurrent.c.
 *
 * A state is read from one place and left in another, so a pass may be run twice, and a captured
 * one finds both through device arrays. A prompt's chunk is scanned in segments side by side,
 * twice: first each from zero, for what it adds to the state and how far it lets an earlier one
 * decay, so that the states between segments are known; then each from its own. A decoding token
 * needs none of it. */
#include "reference/cuda/launch.cuh"
#include "reference/cuda/mma.cuh"

enum { THREADS = 128 };

static __device__ __forceinline__ float silu(float x) {
  return x / (1.0f + __expf(-x));
}

/* --- convolution ----------------------------------------------------------------------------- */

struct Convolution {
  KvBf16 *out;
  const KvBf16 *x, *weight, *bias;
  uint64_t stride;
  KvCudaStates states;
  const uint32_t *row_sequences, *places;
  uint32_t rows;
};

static __device__ __forceinline__ void unpack(float (&to)[8], uint4 from) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int c = 0; c < 8; c++)
    to[c] = c % 2 ? high_float(words[c / 2]) : low_float(words[c / 2]);
}

static __device__ __forceinline__ void load_floats(float (&to)[8], const float *from) {
  float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

/* Eight channels of one row; grid (R, I / 8 / THREADS). */
template <int width>
static __global__ void __launch_bounds__(THREADS) convolve(const Convolution p) {
  const uint32_t row = blockIdx.x, I = p.states.inner;
  const uint32_t i = 8 * (blockIdx.y * THREADS + threadIdx.x);
  await_previous();
  if (i >= I)
    return;
  const uint32_t sequence = p.row_sequences[row];
  uint4 *out = (uint4 *)(p.out + (uint64_t)row * I + i);
  if (sequence == UINT32_MAX) {
    *out = make_uint4(0, 0, 0, 0);
    return;
  }
  const uint32_t place = p.places[row], from = p.states.from[sequence];
  float inputs[width][8], sums[8] = {};
#pragma unroll
  for (int k = 0; k < width; k++) {
    const uint32_t back = width - 1 - k; /* tokens before this one */
    if (place >= back)
      unpack(inputs[k], *(const uint4 *)(p.x + (uint64_t)(row - back) * p.stride + i));
    else if (from != UINT32_MAX)
      load_floats(inputs[k],
                  p.states.pool + from * p.states.floats + (uint64_t)(place + k) * I + i);
    else
      unpack(inputs[k], make_uint4(0, 0, 0, 0));
  }
  float weights[width][8]; /* [8][width] in memory: element n is weights[n / 8][n % 8] */
#pragma unroll
  for (int k = 0; k < width; k++)
    unpack(weights[k], ((const uint4 *)(p.weight + (uint64_t)i * width))[k]);
  if (p.bias)
    unpack(sums, *(const uint4 *)(p.bias + i));
#pragma unroll
  for (int c = 0; c < 8; c++) {
#pragma unroll
    for (int k = 0; k < width; k++)
      sums[c] = fmaf(weights[(c * width + k) / 8][(c * width + k) % 8], inputs[k][c], sums[c]);
    sums[c] = silu(sums[c]);
  }
  *out = make_uint4(pack_bf16(sums[0], sums[1]), pack_bf16(sums[2], sums[3]),
                    pack_bf16(sums[4], sums[5]), pack_bf16(sums[6], sums[7]));
  if (row + 1 < p.rows && p.row_sequences[row + 1] == sequence)
    return;
  float *to = p.states.pool + p.states.to[sequence] * p.states.floats + i; /* the last row's */
#pragma unroll
  for (int k = 1; k < width; k++, to += I) {
    ((float4 *)to)[0] = make_float4(inputs[k][0], inputs[k][1], inputs[k][2], inputs[k][3]);
    ((float4 *)to)[1] = make_float4(inputs[k][4], inputs[k][5], inputs[k][6], inputs[k][7]);
  }
}

cudaError_t kv_cuda_causal_convolution(KvBf16 *out, const KvBf16 *x, uint64_t stride,
                                       const KvBf16 *weight, const KvBf16 *bias,
                                       const KvCudaStates *states, const uint32_t *row_sequences,
                                       const uint32_t *places, uint32_t rows, cudaStream_t stream) {
  if (states->inner % 8 || stride % 8)
    return cudaErrorInvalidValue;
  if (rows == 0)
    return cudaSuccess;
  Convolution p = {out, x, weight, bias, stride, *states, row_sequences, places, rows};
  dim3 grid(rows, (states->inner / 8 + THREADS - 1) / THREADS);
  switch (states->conv_width) {
  case 2:
    return launch_early(convolve<2>, grid, THREADS, 0, stream, 1, p);
  case 3:
    return launch_early(convolve<3>, grid, THREADS, 0, stream, 1, p);
  case 4:
    return launch_early(convolve<4>, grid, THREADS, 0, stream, 1, p);
  default:
    return cudaErrorInvalidValue;
  }
}

/* --- scan ------------------------------------------------------------------------------------ */

struct Scan {
  KvBf16 *out;
  const KvBf16 *x, *gate;
  uint64_t gate_stride;
  const float *delta, *bc;
  const KvBf16 *bias, *decay, *skip;
  KvCudaStates states;
  const KvCudaTile *spans;
};

static __device__ __forceinline__ float softplus(float x) {
  return x > 20.0f ? x : log1pf(__expf(x));
}

/* Of four states, by which power of two they decay in a step of 1. */
static __device__ __forceinline__ void load_rates(float *rates, const KvBf16 *decay) {
  const uint2 four = *(const uint2 *)decay;
  const float log2e = 1.44269504f;
  rates[0] = -log2e * __expf(low_float(four.x)), rates[1] = -log2e * __expf(high_float(four.x));
  rates[2] = -log2e * __expf(low_float(four.y)), rates[3] = -log2e * __expf(high_float(four.y));
}

/* Four states after one more token; input: its step times its x. */
static __device__ __forceinline__ void advance(float *h, const float *rates, float step,
                                               float input, float4 b) {
  h[0] = fmaf(power_of_2(step * rates[0]), h[0], input * b.x);
  h[1] = fmaf(power_of_2(step * rates[1]), h[1], input * b.y);
  h[2] = fmaf(power_of_2(step * rates[2]), h[2], input * b.z);
  h[3] = fmaf(power_of_2(step * rates[3]), h[3], input * b.w);
}

/* What a token sees of four states, added to `sum`. */
static __device__ __forceinline__ float observe(float sum, const float *h, float4 c) {
  return fmaf(c.w, h[3], fmaf(c.z, h[2], fmaf(c.y, h[1], fmaf(c.x, h[0], sum))));
}

/* The sum over the lanes of a channel. */
template <int lanes> static __device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int other = lanes / 2; other > 0; other /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, other, lanes);
  return x;
}

/* x of the channel's lane `from`. */
template <int lanes> static __device__ __forceinline__ float of_lane(float x, int from) {
  return lanes == 1 ? x : __shfl_sync(0xffffffffu, x, from, lanes);
}

/* One token of each sequence, `lanes` threads a channel, four states each;
 * grid (S, I lanes / THREADS). Threads past the last channel compute it too, for the shuffles'
 * sake, and write nothing. */
template <int lanes> static __global__ void __launch_bounds__(THREADS) update(const Scan p) {
  const uint32_t I = p.states.inner, thread = blockIdx.y * THREADS + threadIdx.x, row = blockIdx.x;
  const uint32_t lane = thread % lanes, channel = min(thread / lanes, I - 1);
  const bool live = thread / lanes < I;
  const uint64_t states = ((uint64_t)channel * lanes + lane) * 4, at = (uint64_t)row * I + channel;
  float rates[4], h[4] = {};
  load_rates(rates, p.decay + states);
  const float bias = to_float(p.bias[channel]), skip = to_float(p.skip[channel]);
  await_previous();
  const uint32_t from = p.states.from[row], to = p.states.to[row];
  if (to == UINT32_MAX) { /* a spare row */
    if (live && lane == 0)
      p.out[at] = 0;
    return;
  }
  const uint64_t kept = (uint64_t)(p.states.conv_width - 1) * I + states;
  const float4 *bc = (const float4 *)p.bc + (uint64_t)row * 2 * lanes + lane;
  const float x = to_float(p.x[at]), gate = to_float(p.gate[row * p.gate_stride + channel]);
  const float4 b = bc[0], c = bc[lanes];
  if (from != UINT32_MAX) {
    const float4 four = *(const float4 *)(p.states.pool + from * p.states.floats + kept);
    h[0] = four.x, h[1] = four.y, h[2] = four.z, h[3] = four.w;
  }
  const float step = softplus(p.delta[at] + bias);
  advance(h, rates, step, step * x, b);
  const float y = sum_lanes<lanes>(observe(0.0f, h, c));
  if (!live)
    return;
  if (lane == 0)
    p.out[at] = to_bf16((y + skip * x) * silu(gate));
  *(float4 *)(p.states.pool + to * p.states.floats + kept) = make_float4(h[0], h[1], h[2], h[3]);
}

/* AHEAD: tokens that are loaded while as many before them are computed. SHORTEST: tokens of a
 * segment, where there are more. */
enum { AHEAD = 4, SHORTEST = 8 };

/* Warps of a block, a segment each; states of a thread; threads of a channel; channels of a block.
 * Fewer warps where the tokens' B and C would not fit into shared memory. */
template <int state> struct Division {
  static constexpr int warps = state <= 32 ? 16 : 512 / state;
  static constexpr int held = state < 8 ? state : 8;
  static constexpr int lanes = state / held;
  static constexpr int channels = 32 / lanes;
  static constexpr int owned = lanes >= AHEAD ? 1 : AHEAD / lanes;
};

/* B and C of AHEAD tokens. */
template <int state> struct Staged { float4 rows[AHEAD][state / 2]; };

/* AHEAD tokens as a thread holds them: of the numbers that all lanes of a channel need, lane l
 * loads those of tokens l, l + lanes ... */
template <int owned> struct Batch { float delta[owned], x[owned], gate[owned]; };

/* A thread's place in its channel, and what it knows of it. */
template <int state> struct Channel {
  uint32_t index, lane;
  bool live; /* not a copy of the last */
  float rates[Division<state>::held], bias, skip;
};

/* Begin to load the tokens from `row` on, of which `left` are there. A token past the end has a
 * step of 0, which changes nothing. */
template <int state>
static __device__ __forceinline__ void
load(Staged<state> &staged, Batch<Division<state>::owned> &batch, const Scan &p,
     const Channel<state> &channel, uint32_t row, uint32_t left) {
  const uint32_t I = p.states.inner;
  constexpr uint32_t pieces = state / 2; /* of a token's B and C */
  for (uint32_t i = threadIdx.x % 32; i < AHEAD * pieces; i += 32) {
    const bool there = i / pieces < left;
    copy_16_async(&staged.rows[i / pieces][i % pieces],
                  there ? p.bc + (uint64_t)row * 4 * pieces + 4 * i : p.bc, there ? 16 : 0);
  }
  copies_commit();
#pragma unroll
  for (int o = 0; o < Division<state>::owned; o++) {
    const uint32_t u = channel.lane + Division<state>::lanes * o;
    const bool there = u < AHEAD && u < left;
    const uint64_t at = (uint64_t)(row + u) * I + channel.index;
    batch.delta[o] = there ? p.delta[at] : -1e30f;
    batch.x[o] = there ? to_float(p.x[at]) : 0.0f;
    batch.gate[o] = there ? to_float(p.gate[(row + u) * p.gate_stride + channel.index]) : 0.0f;
  }
}

/* The states h after `count` tokens from `row` on, and the sum of their steps; `writes`: also their
 * outputs. The lanes of a warp come here together. */
template <int state, bool writes>
static __device__ __forceinline__ float
walk(float (&h)[Division<state>::held], Staged<state> (&staged)[2], const Scan &p,
     const Channel<state> &channel, uint32_t row, uint32_t count) {
  constexpr int owned = Division<state>::owned, lanes = Division<state>::lanes;
  constexpr int held = Division<state>::held;
  Batch<owned> batch;
  float total = 0.0f;
  int stage = 0;
  load<state>(staged[0], batch, p, channel, row, count);
  for (uint32_t t = 0; t < count; t += AHEAD, stage ^= 1) {
    const uint32_t left = count - t;
    Batch<owned> next;
    load<state>(staged[stage ^ 1], next, p, channel, row + t + AHEAD,
                left > AHEAD ? left - AHEAD : 0);
    float steps[owned], inputs[owned], y[owned];
#pragma unroll
    for (int o = 0; o < owned; o++) {
      steps[o] = softplus(batch.delta[o] + channel.bias);
      inputs[o] = steps[o] * batch.x[o];
      y[o] = 0.0f;
    }
    copies_wait<1>();
    __syncwarp(); /* the other lanes' copies too */
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
      const float step = of_lane<lanes>(steps[u / lanes], u % lanes);
      const float input = of_lane<lanes>(inputs[u / lanes], u % lanes);
      const float4 *b = staged[stage].rows[u] + channel.lane * (held / 4), *c = b + state / 4;
      float sum = 0.0f;
      total += step;
#pragma unroll
      for (int k = 0; k < held / 4; k++) {
        advance(h + 4 * k, channel.rates + 4 * k, step, input, b[k]);
        if (writes)
          sum = observe(sum, h + 4 * k, c[k]);
      }
      if (writes) {
        sum = sum_lanes<lanes>(sum);
        if (channel.lane == u % lanes)
          y[u / lanes] = sum;
      }
    }
#pragma unroll
    for (int o = 0; writes && o < owned; o++) {
      const uint32_t u = channel.lane + lanes * o;
      if (channel.live && u < AHEAD && u < left)
        p.out[(uint64_t)(row + t + u) * p.states.inner + channel.index] =
            to_bf16((y[o] + channel.skip * batch.x[o]) * silu(batch.gate[o]));
    }
    __syncwarp(); /* the tokens may be overwritten */
    batch = next;
  }
  copies_wait<0>();
  __syncwarp(); /* and so may those that were begun in vain */
  return total;
}

/* Some channels of a span, a warp a segment; grid (spans, I / channels). Threads past the last
 * channel compute it too, for the shuffles' sake, and write nothing. */
template <int state>
static __global__ void __launch_bounds__(32 * Division<state>::warps) scan(const Scan p) {
  using D = Division<state>;
  constexpr int held = D::held;
  __shared__ Staged<state> staged[D::warps][2];
  __shared__ float carry[held][32]; /* the state between two segments */
  const uint32_t I = p.states.inner, warp = threadIdx.x / 32, thread = threadIdx.x % 32;
  const uint32_t mine = blockIdx.y * D::channels + thread / D::lanes;
  Channel<state> channel = {min(mine, I - 1), thread % D::lanes, mine < I};
  const uint64_t states = (uint64_t)channel.index * state + channel.lane * held;
#pragma unroll
  for (int i = 0; i < held; i += 4)
    load_rates(channel.rates + i, p.decay + states + i);
  channel.bias = to_float(p.bias[channel.index]);
  channel.skip = to_float(p.skip[channel.index]);
  await_previous();
  const KvCudaTile span = p.spans[blockIdx.x];
  const uint32_t from = p.states.from[span.sequence], to = p.states.to[span.sequence];
  if (to == UINT32_MAX) { /* spare rows */
    for (uint32_t t = warp; channel.live && channel.lane == 0 && t < span.count; t += D::warps)
      p.out[(uint64_t)(span.row + t) * I + channel.index] = 0;
    return;
  }
  const uint64_t kept = (uint64_t)(p.states.conv_width - 1) * I + states;
  const uint32_t even = (span.count + D::warps - 1) / D::warps;
  const uint32_t length = max((even + AHEAD - 1) / AHEAD * AHEAD, (uint32_t)SHORTEST);
  const uint32_t segments = (span.count + length - 1) / length, first = warp * length;
  const uint32_t count = first < span.count ? min(length, span.count - first) : 0;
  float h[held] = {}, stepped = 0.0f;
  if (warp == 0)
#pragma unroll
    for (int i = 0; i < held; i++)
      carry[i][thread] =
          from == UINT32_MAX ? 0.0f : p.states.pool[from * p.states.floats + kept + i];
  if (warp + 1 < segments)
    stepped = walk<state, false>(h, staged[warp], p, channel, span.row + first, count);
  for (uint32_t s = 0; s < segments; s++) { /* h becomes where the segment begins */
    if (warp == s)
#pragma unroll
      for (int i = 0; i < held; i++) {
        const float before = carry[i][thread];
        carry[i][thread] = fmaf(power_of_2(stepped * channel.rates[i]), before, h[i]);
        h[i] = before;
      }
    __syncthreads();
  }
  (void)walk<state, true>(h, staged[warp], p, channel, span.row + first, count);
  if (warp + 1 == segments && channel.live)
#pragma unroll
    for (int i = 0; i < held; i += 4)
      *(float4 *)(p.states.pool + to * p.states.floats + kept + i) =
          make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]);
}

template <int state>
static cudaError_t launch_scan(const Scan &p, uint32_t n_spans, cudaStream_t stream) {
  using D = Division<state>;
  const uint32_t I = p.states.inner;
  if (!p.spans)
    return launch_early(update<state / 4>, dim3(n_spans, (I * (state / 4) + THREADS - 1) / THREADS),
                        THREADS, 0, stream, 1, p);
  return launch_early(scan<state>, dim3(n_spans, (I + D::channels - 1) / D::channels),
                      32 * D::warps, 0, stream, 1, p);
}

cudaError_t kv_cuda_selective_scan(KvBf16 *out, const KvBf16 *x, const KvBf16 *gate,
                                   uint64_t gate_stride, const float *delta, const KvBf16 *bias,
                                   const float *bc, const KvBf16 *decay, const KvBf16 *skip,
                                   const KvCudaStates *states, const KvCudaTile *spans,
                                   uint32_t n_spans, cudaStream_t stream) {
  if (n_spans == 0)
    return cudaSuccess;
  Scan p = {out, x, gate, gate_stride, delta, bc, bias, decay, skip, *states, spans};
  switch (states->state_dim) {
  case 4:
    return launch_scan<4>(p, n_spans, stream);
  case 8:
    return launch_scan<8>(p, n_spans, stream);
  case 16:
    return launch_scan<16>(p, n_spans, stream);
  case 32:
    return launch_scan<32>(p, n_spans, stream);
  case 64:
    return launch_scan<64>(p, n_spans, stream);
  case 128:
    return launch_scan<128>(p, n_spans, stream);
  default:
    return cudaErrorInvalidValue;
  }
}
