/* Products with a matrix of each group: experts, whose rows were sorted by expert on the GPU, and
 * heads, each with its part of the up-projection. On the tensor cores, with tiles of 16 rows where
 * groups have few (reading the weights once is all that counts then) or of 64. Twin:
 * kv_host_linear() of each group. */
#include "reference/cuda/launch.cuh"
#include "reference/cuda/mma.cuh"

enum { DEPTH = 64, WARPS = 4, THREADS = WARPS * 32, CHUNKS = DEPTH / 8 };

/* A block's tile of ROWS x OUTPUTS, as warps of ROW_WARPS x (WARPS / ROW_WARPS). */
template <int rows, int outputs, int row_warps, int stages> struct Tile {
  static const int ROWS = rows, OUTPUTS = outputs, STAGES = stages, ROW_WARPS = row_warps;
  static const int WARP_ROWS = rows / row_warps, WARP_OUTPUTS = outputs / (WARPS / row_warps);
  static const int M = WARP_ROWS / 16, N = WARP_OUTPUTS / 16; /* fragments of a warp */
  KvBf16 x[stages][rows][SharedRow<DEPTH>::elements];
  KvBf16 weight[stages][outputs][SharedRow<DEPTH>::elements];
};
using Few = Tile<16, 64, 1, 4>;
using Many = Tile<64, 128, 2, 3>;

/* Where this thread's chunks of a stage come from: every (THREADS / CHUNKS)-th row. */
template <class T> struct Sources {
  static const int STRIDE = THREADS / CHUNKS, X = T::ROWS / STRIDE, W = T::OUTPUTS / STRIDE;
  const KvBf16 *x[X], *weight;
  bool there[X];
  uint32_t outputs; /* rows of weight from `weight` on */
};

static __device__ KvCudaGroupTile tile_of(const KvCudaGrouped &p, uint32_t i) {
  if (p.tiles)
    return p.tiles[i];
  uint32_t of_group = (p.rows + p.tile_rows - 1) / p.tile_rows;
  KvCudaGroupTile tile;
  tile.group = i / of_group;
  tile.first = i % of_group * p.tile_rows;
  tile.count = min(p.tile_rows, p.rows - tile.first);
  return tile;
}

template <class T>
static __device__ __forceinline__ Sources<T>
sources_of(const KvCudaGrouped &p, const KvCudaGroupTile &tile, uint32_t first_output) {
  Sources<T> s;
  const uint32_t row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
#pragma unroll
  for (int i = 0; i < Sources<T>::X; i++) {
    uint32_t r = row + i * Sources<T>::STRIDE;
    s.there[i] = r < tile.count;
    uint64_t at = s.there[i] ? (p.x_rows ? p.x_rows[tile.first + r] : tile.first + r) : 0;
    s.x[i] = p.x + at * p.x_stride + tile.group * p.x_group + column;
  }
  uint64_t output = (uint64_t)tile.group * p.outputs + first_output + row;
  s.weight = p.weight + output * p.inputs + column;
  s.outputs = p.outputs > first_output + row ? p.outputs - first_output - row : 0;
  return s;
}

/* Begin to load DEPTH inputs from k on; what is past the inputs, rows or outputs is zeros. */
template <class T>
static __device__ __forceinline__ void load_stage(T &shared, int stage, const Sources<T> &s,
                                                  const KvCudaGrouped &p, uint32_t k) {
  const uint32_t row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
  const bool inside = k + column < p.inputs;
#pragma unroll
  for (int i = 0; i < Sources<T>::X; i++) {
    bool wanted = inside && s.there[i];
    copy_16_async(&shared.x[stage][row + i * Sources<T>::STRIDE][column], wanted ? s.x[i] + k : p.x,
                  wanted ? 16 : 0);
  }
#pragma unroll
  for (int i = 0; i < Sources<T>::W; i++) {
    bool wanted = inside && (uint32_t)i * Sources<T>::STRIDE < s.outputs;
    copy_16_async(&shared.weight[stage][row + i * Sources<T>::STRIDE][column],
                  wanted ? s.weight + (uint64_t)i * Sources<T>::STRIDE * p.inputs + k : p.weight,
                  wanted ? 16 : 0);
  }
}

template <class T>
static __device__ __forceinline__ void multiply_stage(float (&c)[T::M][2 * T::N][4],
                                                      const T &shared, int stage, int first_row,
                                                      int first_output, int lane) {
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    uint32_t a[T::M][4];
#pragma unroll
    for (int m = 0; m < T::M; m++)
      load_tiles(a[m], &shared.x[stage][first_row + m * 16 + lane % 16][k * 16 + lane / 16 * 8]);
#pragma unroll
    for (int n = 0; n < T::N; n++) {
      uint32_t b[4];
      load_tiles(b, &shared.weight[stage][first_output + n * 16 + lane / 16 * 8 + lane % 8]
                                  [k * 16 + lane / 8 % 2 * 8]);
#pragma unroll
      for (int m = 0; m < T::M; m++) {
        mma_bf16(c[m][2 * n], a[m], b[0], b[1]);
        mma_bf16(c[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <class T>
static __device__ __forceinline__ void
store_tile(const float (&c)[T::M][2 * T::N][4], const KvCudaGrouped &p, const KvCudaGroupTile &tile,
           int first_row, uint32_t first_output, int lane) {
#pragma unroll
  for (int m = 0; m < T::M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t row = first_row + m * 16 + half * 8 + lane / 4;
      if (row >= tile.count)
        continue;
      KvBf16 *out = p.out + (tile.first + row) * p.out_stride + tile.group * p.out_group;
#pragma unroll
      for (int n = 0; n < 2 * T::N; n++) {
        uint32_t output = first_output + n * 8 + lane % 4 * 2;
        if (output < p.outputs)
          *(uint32_t *)(out + output) = pack_bf16(c[m][n][2 * half], c[m][n][2 * half + 1]);
      }
    }
}

/* grid (outputs / OUTPUTS, tiles): blocks past the last tile have nothing to do. */
template <class T>
static __global__ void __launch_bounds__(THREADS) grouped(const KvCudaGrouped p) {
  extern __shared__ __align__(16) char bytes[];
  T &shared = *(T *)bytes;
  await_previous();
  if (p.tiles && blockIdx.y >= *p.n_tiles)
    return;
  const KvCudaGroupTile tile = tile_of(p, blockIdx.y);
  const uint32_t first_output = blockIdx.x * T::OUTPUTS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = warp % T::ROW_WARPS * T::WARP_ROWS;
  const int of_warp = warp / T::ROW_WARPS * T::WARP_OUTPUTS;
  const Sources<T> sources = sources_of<T>(p, tile, first_output);
  float c[T::M][2 * T::N][4] = {};
#pragma unroll
  for (int s = 0; s < T::STAGES - 1; s++) {
    if (s * DEPTH < p.inputs)
      load_stage(shared, s, sources, p, s * DEPTH);
    copies_commit();
  }
  int stage = 0;
  for (uint32_t k = 0; k < p.inputs; k += DEPTH) {
    copies_wait<T::STAGES - 2>();
    __syncthreads(); /* everyone's copies are there, and everyone is done with the stage before */
    uint32_t next = k + (T::STAGES - 1) * DEPTH;
    if (next < p.inputs)
      load_stage(shared, (stage + T::STAGES - 1) % T::STAGES, sources, p, next);
    copies_commit();
    multiply_stage<T>(c, shared, stage, first_row, of_warp, lane);
    stage = (stage + 1) % T::STAGES;
  }
  store_tile<T>(c, p, tile, first_row, first_output + of_warp, lane);
}

template <class T> static cudaError_t launch(const KvCudaGrouped &p, cudaStream_t stream) {
  static bool ready = false; /* one GPU, one thread */
  if (!ready) {
    cudaError_t status = cudaFuncSetAttribute(
        grouped<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(T));
    if (status != cudaSuccess)
      return status;
    ready = true;
  }
  uint32_t tiles = p.tiles ? p.most_tiles : p.groups * ((p.rows + p.tile_rows - 1) / p.tile_rows);
  dim3 grid((p.outputs + T::OUTPUTS - 1) / T::OUTPUTS, tiles);
  return launch_early(grouped<T>, grid, THREADS, sizeof(T), stream, 1, p);
}

uint32_t kv_cuda_grouped_tile_rows(uint64_t rows, uint32_t groups) {
  return rows > 16 * (uint64_t)groups ? Many::ROWS : Few::ROWS;
}

cudaError_t kv_cuda_grouped_product(const KvCudaGrouped *product, cudaStream_t stream) {
  const KvCudaGrouped &p = *product;
  if (p.rows == 0 || p.groups == 0)
    return cudaSuccess;
  if (p.inputs % 8 || p.outputs % 8 || p.x_stride % 8 || p.x_group % 8 || p.out_stride % 8 ||
      p.out_group % 8)
    return cudaErrorInvalidValue;
  return p.tile_rows == Many::ROWS  ? launch<Many>(p, stream)
         : p.tile_rows == Few::ROWS ? launch<Few>(p, stream)
                                    : cudaErrorInvalidValue;
}
