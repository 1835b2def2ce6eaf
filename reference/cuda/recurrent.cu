/* What a Mamba block does between its products: the causal convolution, and the selective scan with
 * its gate. Twin: reference/host/recurrent.c.
 *
 * A state is read from one place and left in another, so a pass may be run twice, and a captured
 * one finds both through device arrays. A prompt's chunk is scanned token by token, its channels
 * and their states side by side; a decoding token is a chunk of one. */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

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

/* Tokens that are loaded while as many before them are computed; states of a thread. */
enum { AHEAD = 4, HELD = 4 };

struct Scan {
  KvBf16 *out;
  const KvBf16 *x, *gate;
  uint64_t gate_stride;
  const float *delta, *bc;
  const KvBf16 *bias, *decay, *skip;
  KvCudaStates states;
  const KvCudaTile *spans;
};

/* AHEAD tokens as a thread holds them. Of the numbers that all lanes of a channel need, lane l
 * loads those of tokens l, l + lanes ... */
template <int lanes> struct Batch {
  static constexpr int owned = lanes >= AHEAD ? 1 : AHEAD / lanes;
  float4 b[AHEAD], c[AHEAD];
  float delta[owned], x[owned], gate[owned];
};

/* A token past the end has a step of 0, which changes nothing. */
template <int lanes>
static __device__ __forceinline__ void load(Batch<lanes> &batch, const Scan &p, uint32_t row,
                                            uint32_t left, uint32_t channel, uint32_t lane) {
  const uint32_t I = p.states.inner;
#pragma unroll
  for (int u = 0; u < AHEAD; u++) {
    const float4 *bc = (const float4 *)p.bc + (uint64_t)(row + u) * 2 * lanes;
    batch.b[u] = u < left ? bc[lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    batch.c[u] = u < left ? bc[lanes + lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
#pragma unroll
  for (int o = 0; o < Batch<lanes>::owned; o++) {
    const uint32_t u = lane + lanes * o;
    const bool there = u < AHEAD && u < left;
    const uint64_t at = (uint64_t)(row + u) * I + channel;
    batch.delta[o] = there ? p.delta[at] : -1e30f;
    batch.x[o] = there ? to_float(p.x[at]) : 0.0f;
    batch.gate[o] = there ? to_float(p.gate[(row + u) * p.gate_stride + channel]) : 0.0f;
  }
}

static __device__ __forceinline__ float softplus(float x) {
  return x > 20.0f ? x : log1pf(__expf(x));
}

static __device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* The states h of a channel after the batch; y: the owned tokens' outputs before their gate. */
template <int lanes>
static __device__ __forceinline__ void
advance(float4 &h, float (&y)[Batch<lanes>::owned], const Batch<lanes> &batch,
        const float (&rates)[HELD], float bias, uint32_t lane) {
  constexpr int owned = Batch<lanes>::owned;
  float steps[owned], inputs[owned];
#pragma unroll
  for (int o = 0; o < owned; o++) {
    steps[o] = softplus(batch.delta[o] + bias);
    inputs[o] = steps[o] * batch.x[o];
    y[o] = 0.0f;
  }
#pragma unroll
  for (int u = 0; u < AHEAD; u++) {
    const float step = __shfl_sync(0xffffffffu, steps[u / lanes], u % lanes, lanes);
    const float input = __shfl_sync(0xffffffffu, inputs[u / lanes], u % lanes, lanes);
    h.x = fmaf(power_of_2(step * rates[0]), h.x, input * batch.b[u].x);
    h.y = fmaf(power_of_2(step * rates[1]), h.y, input * batch.b[u].y);
    h.z = fmaf(power_of_2(step * rates[2]), h.z, input * batch.b[u].z);
    h.w = fmaf(power_of_2(step * rates[3]), h.w, input * batch.b[u].w);
    float sum = batch.c[u].x * h.x;
    sum = fmaf(batch.c[u].y, h.y, sum);
    sum = fmaf(batch.c[u].z, h.z, sum);
    sum = fmaf(batch.c[u].w, h.w, sum);
#pragma unroll
    for (int other = lanes / 2; other > 0; other /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, other, lanes);
    if (lane == u % lanes)
      y[u / lanes] = sum;
  }
}

/* One span's tokens, `lanes` threads a channel; grid (spans, I lanes / THREADS). Threads past the
 * last channel compute it too, for the shuffles' sake, and write nothing. */
template <int lanes> static __global__ void __launch_bounds__(THREADS) scan(const Scan p) {
  const uint32_t I = p.states.inner, thread = blockIdx.y * THREADS + threadIdx.x;
  const uint32_t lane = thread % lanes, channel = min(thread / lanes, I - 1);
  const bool live = thread / lanes < I;
  const uint64_t states = ((uint64_t)channel * lanes + lane) * HELD;
  const uint2 decay = *(const uint2 *)(p.decay + states);
  const float log2e = 1.44269504f;
  const float rates[HELD] = {
      -log2e * __expf(low_float(decay.x)), -log2e * __expf(high_float(decay.x)),
      -log2e * __expf(low_float(decay.y)), -log2e * __expf(high_float(decay.y))};
  const float bias = to_float(p.bias[channel]), skip = to_float(p.skip[channel]);
  await_previous();
  const KvCudaTile span = p.spans ? p.spans[blockIdx.x] : KvCudaTile{blockIdx.x, blockIdx.x, 0, 1};
  const uint32_t from = p.states.from[span.sequence], to = p.states.to[span.sequence];
  if (to == UINT32_MAX) { /* a spare row */
    if (live && lane == 0)
      p.out[(uint64_t)span.row * I + channel] = 0;
    return;
  }
  const uint64_t kept = (uint64_t)(p.states.conv_width - 1) * I + states;
  float4 h = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (from != UINT32_MAX)
    h = *(const float4 *)(p.states.pool + from * p.states.floats + kept);
  Batch<lanes> batch;
  load<lanes>(batch, p, span.row, span.count, channel, lane);
  for (uint32_t t = 0; t < span.count; t += AHEAD) {
    const uint32_t left = span.count - t;
    Batch<lanes> next;
    load<lanes>(next, p, span.row + t + AHEAD, left > AHEAD ? left - AHEAD : 0, channel, lane);
    float y[Batch<lanes>::owned];
    advance<lanes>(h, y, batch, rates, bias, lane);
#pragma unroll
    for (int o = 0; o < Batch<lanes>::owned; o++) {
      const uint32_t u = lane + lanes * o;
      if (live && u < AHEAD && u < left)
        p.out[(uint64_t)(span.row + t + u) * I + channel] =
            to_bf16((y[o] + skip * batch.x[o]) * silu(batch.gate[o]));
    }
    batch = next;
  }
  if (live)
    *(float4 *)(p.states.pool + to * p.states.floats + kept) = h;
}

template <int lanes>
static cudaError_t launch_scan(const Scan &p, uint32_t n_spans, cudaStream_t stream) {
  dim3 grid(n_spans, (p.states.inner * lanes + THREADS - 1) / THREADS);
  return launch_early(scan<lanes>, grid, THREADS, 0, stream, 1, p);
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
    return launch_scan<1>(p, n_spans, stream);
  case 8:
    return launch_scan<2>(p, n_spans, stream);
  case 16:
    return launch_scan<4>(p, n_spans, stream);
  case 32:
    return launch_scan<8>(p, n_spans, stream);
  case 64:
    return launch_scan<16>(p, n_spans, stream);
  case 128:
    return launch_scan<32>(p, n_spans, stream);
  default:
    return cudaErrorInvalidValue;
  }
}
