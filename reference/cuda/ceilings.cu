/* What one GPU can do at best: memory bandwidth, copies over its host link, launch costs.
 *
 *     ceilings > ceilings.json
 *
 * Times are microseconds, medians of REPEATS runs between two events of one stream (host clock
 * where the host is what is measured); rates are 1e9 bytes a second; `_rw` counts a copied byte
 * twice, once read and once written. Buffers of rates are far larger than the second-level cache.
 * Exit status 1 if the GPU refuses something.
 */
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>

#define CHECK(call) check((call), #call, __LINE__)

static void check(cudaError_t status, const char *call, int line) {
  if (status == cudaSuccess)
    return;
  fprintf(stderr, "ceilings: %s:%d: %s: %s\n", __FILE__, line, call, cudaGetErrorString(status));
  exit(1);
}

static const int REPEATS = 11;
static const size_t KiB = 1024, MiB = 1024 * KiB, GiB = 1024 * MiB;

static double median(std::vector<double> &times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/* Microseconds on the GPU's own clock of what `work` puts on `stream`. */
template <typename Work> static double gpu_us(cudaStream_t stream, Work work) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = -2; i < REPEATS; i++) { /* two to warm up */
    CHECK(cudaEventRecord(begin, stream));
    work();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0)
      times.push_back(1e3 * ms);
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  return median(times);
}

/* Microseconds on the host's clock of `work`, which returns when the GPU is done. */
template <typename Work> static double host_us(Work work) {
  typedef std::chrono::steady_clock Clock;
  std::vector<double> times;
  for (int i = -2; i < REPEATS; i++) {
    Clock::time_point begin = Clock::now();
    work();
    if (i >= 0)
      times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  return median(times);
}

/* x[n]: every element read; `sum` is written only if they add up to what they never do, so the
 * loads stay. */
__global__ void read_all(const float4 *x, size_t n, float *sum) {
  float total = 0.0f;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
       i += gridDim.x * (size_t)blockDim.x) {
    float4 v = x[i];
    total += v.x + v.y + v.z + v.w;
  }
  if (total == -1.0f)
    *sum = total;
}

/* x[n] = 0. */
__global__ void write_all(float4 *x, size_t n) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
       i += gridDim.x * (size_t)blockDim.x)
    x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

__global__ void nothing() {
}

/* Buffers of one GiB each, and two streams for the two directions of the link. */
struct Bench {
  cudaDeviceProp device;
  cudaStream_t stream, back;
  char *gpu, *gpu_other, *pinned, *pinned_other;
};

static void bench_begin(Bench *b) {
  CHECK(cudaSetDevice(0));
  CHECK(cudaGetDeviceProperties(&b->device, 0));
  CHECK(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
  CHECK(cudaStreamCreateWithFlags(&b->back, cudaStreamNonBlocking));
  CHECK(cudaMalloc((void **)&b->gpu, GiB));
  CHECK(cudaMalloc((void **)&b->gpu_other, GiB));
  CHECK(cudaMemset(b->gpu, 0, GiB));
  CHECK(cudaMallocHost((void **)&b->pinned, GiB));
  CHECK(cudaMallocHost((void **)&b->pinned_other, GiB));
  std::fill(b->pinned, b->pinned + GiB, 1);
  std::fill(b->pinned_other, b->pinned_other + GiB, 1);
}

static void bench_end(Bench *b) {
  CHECK(cudaFreeHost(b->pinned));
  CHECK(cudaFreeHost(b->pinned_other));
  CHECK(cudaFree(b->gpu));
  CHECK(cudaFree(b->gpu_other));
  CHECK(cudaStreamDestroy(b->stream));
  CHECK(cudaStreamDestroy(b->back));
}

static void print_memory(const Bench *b) {
  const size_t n = GiB / sizeof(float4);
  const int blocks = 8 * b->device.multiProcessorCount, threads = 512;
  double copy_us = gpu_us(b->stream, [=] {
    CHECK(cudaMemcpyAsync(b->gpu_other, b->gpu, GiB, cudaMemcpyDeviceToDevice, b->stream));
  });
  double read_us = gpu_us(b->stream, [=] {
    read_all<<<blocks, threads, 0, b->stream>>>((const float4 *)b->gpu, n, (float *)b->gpu_other);
    CHECK(cudaGetLastError());
  });
  double write_us = gpu_us(b->stream, [=] {
    write_all<<<blocks, threads, 0, b->stream>>>((float4 *)b->gpu_other, n);
    CHECK(cudaGetLastError());
  });
  printf(" \"d2d_copy_GBps_rw\": %.6g,\n", 2e-3 * GiB / copy_us);
  printf(" \"read_GBps\": %.6g,\n", 1e-3 * GiB / read_us);
  printf(" \"write_GBps\": %.6g,\n", 1e-3 * GiB / write_us);
}

/* {"BYTES": us, ...} of single copies. */
static void print_copies(const Bench *b, const char *name, cudaMemcpyKind kind, char *to,
                         const char *from, const std::vector<size_t> &sizes) {
  printf(" \"%s\": {", name);
  for (size_t i = 0; i < sizes.size(); i++) {
    double us =
        gpu_us(b->stream, [&] { CHECK(cudaMemcpyAsync(to, from, sizes[i], kind, b->stream)); });
    printf("%s\n  \"%zu\": %.6g", i ? "," : "", sizes[i], us);
  }
  printf("\n },\n");
}

/* From memory that the driver must first copy into its own pinned buffers: the call blocks, the
 * host's clock counts. */
static void print_pageable(const Bench *b) {
  std::vector<char> pageable(256 * MiB, 1);
  double us = host_us([&] {
    CHECK(cudaMemcpyAsync(b->gpu, pageable.data(), pageable.size(), cudaMemcpyHostToDevice,
                          b->stream));
    CHECK(cudaStreamSynchronize(b->stream));
  });
  printf(" \"h2d_pageable_us_256MiB\": %.6g,\n", us);
}

/* One GiB each way at once. */
static void print_bidirectional(const Bench *b) {
  double us = host_us([=] {
    CHECK(cudaMemcpyAsync(b->gpu, b->pinned, GiB, cudaMemcpyHostToDevice, b->stream));
    CHECK(cudaMemcpyAsync(b->pinned_other, b->gpu_other, GiB, cudaMemcpyDeviceToHost, b->back));
    CHECK(cudaStreamSynchronize(b->stream));
    CHECK(cudaStreamSynchronize(b->back));
  });
  printf(" \"bidir_1GiB_each_us\": %.6g,\n", us);
}

/* Many small copies, as the blocks of a swapped sequence make. */
static void print_many(const Bench *b) {
  static const struct {
    size_t count, bytes;
  } cases[] = {{256, 4 * KiB}, {256, 16 * KiB}, {256, 64 * KiB}, {256, 256 * KiB}, {128, MiB}};
  printf(" \"h2d_many_us\": {");
  const char *separator = "";
  for (const auto &c : cases) {
    double us = host_us([&] {
      for (size_t i = 0; i < c.count; i++)
        CHECK(cudaMemcpyAsync(b->gpu + i * c.bytes, b->pinned + i * c.bytes, c.bytes,
                              cudaMemcpyHostToDevice, b->stream));
      CHECK(cudaStreamSynchronize(b->stream));
    });
    printf("%s\n  \"%zux%zu\": %.6g", separator, c.count, c.bytes, us);
    separator = ",";
  }
  printf("\n },\n");
}

static void launch(cudaStream_t stream, int count) {
  for (int i = 0; i < count; i++)
    nothing<<<1, 32, 0, stream>>>();
  CHECK(cudaGetLastError());
}

/* An empty kernel: one of many on a stream, one of many in a graph, one alone and waited for. */
static void print_launches(const Bench *b) {
  const int count = 1000;
  double eager_us = host_us([=] {
    launch(b->stream, count);
    CHECK(cudaStreamSynchronize(b->stream));
  });
  double alone_us = host_us([=] {
    launch(b->stream, 1);
    CHECK(cudaStreamSynchronize(b->stream));
  });
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeGlobal));
  launch(b->stream, count);
  CHECK(cudaStreamEndCapture(b->stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  double graph_us = gpu_us(b->stream, [=] { CHECK(cudaGraphLaunch(executable, b->stream)); });
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  printf(" \"launch_us_eager_stream\": %.6g,\n", eager_us / count);
  printf(" \"launch_us_graph_node\": %.6g,\n", graph_us / count);
  printf(" \"launch_sync_us\": %.6g\n", alone_us);
}

int main() {
  int runtime;
  CHECK(cudaRuntimeGetVersion(&runtime));
  Bench bench;
  bench_begin(&bench);
  printf("{\n \"device\": \"%s\",\n \"cuda\": \"%d.%d\",\n \"sm\": %d,\n", bench.device.name,
         runtime / 1000, runtime % 1000 / 10, bench.device.multiProcessorCount);
  printf(" \"mem_bytes\": %zu,\n \"l2_bytes\": %d,\n", bench.device.totalGlobalMem,
         bench.device.l2CacheSize);
  print_memory(&bench);
  print_copies(&bench, "d2d_by_size_us", cudaMemcpyDeviceToDevice, bench.gpu_other, bench.gpu,
               {4 * KiB, 64 * KiB, MiB, 8 * MiB, 64 * MiB, 512 * MiB});
  std::vector<size_t> sizes;
  for (size_t bytes = KiB; bytes <= GiB; bytes *= 4)
    sizes.push_back(bytes);
  print_copies(&bench, "h2d_us", cudaMemcpyHostToDevice, bench.gpu, bench.pinned, sizes);
  print_copies(&bench, "d2h_us", cudaMemcpyDeviceToHost, bench.pinned, bench.gpu, sizes);
  print_pageable(&bench);
  print_bidirectional(&bench);
  print_many(&bench);
  print_launches(&bench);
  printf("}\n");
  bench_end(&bench);
  if (fflush(stdout) || ferror(stdout)) {
    perror("ceilings: standard output");
    return 1;
  }
  return 0;
}
