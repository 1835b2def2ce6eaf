#include "reference/cuda/device.h"

#include <string.h>

#include "sim/base/error.h"

/* The kernels are compiled for one generation (sm_90a): see meson.build. */
enum { CAPABILITY = 90 };

gboolean kv_cuda_ok(cudaError_t status, const char *what, GError **error) {
  if (status == cudaSuccess)
    return TRUE;
  int length = (int)strcspn(what, "("); /* of a call, the name */
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "cuda executor: %.*s: %s", length, what,
              cudaGetErrorString(status));
  return FALSE;
}

static gboolean check_driver(guint *version, GError **error) {
  int driver = 0, runtime = 0, count = 0;
  cudaError_t status = cudaDriverGetVersion(&driver);
  if (status != cudaSuccess || driver == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: no NVIDIA driver on this machine, expected a GPU (--executor model "
                "needs none)");
    return FALSE;
  }
  if (!KV_CUDA_OK(cudaRuntimeGetVersion(&runtime), error))
    return FALSE;
  *version = (guint)driver;
  if (driver / 1000 < runtime / 1000) { /* minor versions of one major are compatible */
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: the NVIDIA driver is for CUDA %d.%d, expected one for CUDA %d.0 or "
                "later",
                driver / 1000, driver % 1000 / 10, runtime / 1000);
    return FALSE;
  }
  status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "cuda executor: no GPU can be used: %s",
                status == cudaSuccess ? "the driver knows of none" : cudaGetErrorString(status));
    return FALSE;
  }
  return TRUE;
}

static gboolean device_init(KvCudaDevice *device, GError **error) {
  struct cudaDeviceProp properties;
  if (!KV_CUDA_OK(cudaSetDevice(0), error) ||
      !KV_CUDA_OK(cudaGetDeviceProperties(&properties, 0), error))
    return FALSE;
  if (properties.major * 10 + properties.minor != CAPABILITY) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: %s has compute capability %d.%d, expected %d.%d (H100, H200): its "
                "kernels are compiled for that alone",
                properties.name, properties.major, properties.minor, CAPABILITY / 10,
                CAPABILITY % 10);
    return FALSE;
  }
  g_strlcpy(device->name, properties.name, sizeof device->name);
  device->multiprocessors = (guint)properties.multiProcessorCount;
  device->memory_bytes = properties.totalGlobalMem;
  device->l2_bytes = (gsize)properties.l2CacheSize;
  return KV_CUDA_OK(cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking), error) &&
         KV_CUDA_OK(cudaStreamCreateWithFlags(&device->copies, cudaStreamNonBlocking), error) &&
         KV_CUDA_OK(cudaEventCreate(&device->begin), error) &&
         KV_CUDA_OK(cudaEventCreate(&device->end), error);
}

KvCudaDevice *kv_cuda_device_open(GError **error) {
  guint version = 0;
  if (!check_driver(&version, error))
    return NULL;
  g_autoptr(KvCudaDevice) device = g_new0(KvCudaDevice, 1);
  device->driver_version = version;
  return device_init(device, error) ? g_steal_pointer(&device) : NULL;
}

/* Nothing is left to do about a failure here: it is the same that was reported before. */
void kv_cuda_device_close(KvCudaDevice *device) {
  if (!device)
    return;
  if (device->begin)
    (void)cudaEventDestroy(device->begin);
  if (device->end)
    (void)cudaEventDestroy(device->end);
  if (device->copies)
    (void)cudaStreamDestroy(device->copies);
  if (device->stream)
    (void)cudaStreamDestroy(device->stream);
  g_free(device);
}

void *kv_cuda_alloc(gsize bytes, const char *what, GError **error) {
  void *memory = NULL;
  cudaError_t status = cudaMalloc(&memory, MAX(bytes, 256));
  if (status == cudaSuccess)
    return memory;
  if (status == cudaErrorMemoryAllocation) {
    gsize available = 0, all = 0;
    (void)cudaGetLastError(); /* an allocation that fails is not sticky */
    (void)cudaMemGetInfo(&available, &all);
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: out of GPU memory: %s need %.2f GB, of %.2f GB %.2f are free; "
                "expected fewer KV blocks (engine.num_blocks) or a smaller model",
                what, (double)bytes / 1e9, (double)all / 1e9, (double)available / 1e9);
    return NULL;
  }
  kv_cuda_ok(status, "cudaMalloc", error);
  return NULL;
}

void kv_cuda_free(void *memory) {
  if (memory)
    (void)cudaFree(memory);
}

gboolean kv_cuda_wait(KvCudaDevice *device, GError **error) {
  return KV_CUDA_OK(cudaStreamSynchronize(device->stream), error);
}

gboolean kv_cuda_upload(KvCudaDevice *device, void *to, const void *from, gsize bytes,
                        GError **error) {
  return KV_CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, device->stream),
                    error) &&
         kv_cuda_wait(device, error);
}

gboolean kv_cuda_download(KvCudaDevice *device, void *to, const void *from, gsize bytes,
                          GError **error) {
  return KV_CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, device->stream),
                    error) &&
         kv_cuda_wait(device, error);
}

gboolean kv_cuda_copy(KvCudaDevice *device, void *to, const void *from, gsize bytes,
                      GError **error) {
  return KV_CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device->stream),
                    error);
}

gboolean kv_cuda_fill(KvCudaDevice *device, void *memory, int value, gsize bytes, GError **error) {
  return KV_CUDA_OK(cudaMemsetAsync(memory, value, bytes, device->stream), error);
}

gboolean kv_cuda_clock_start(KvCudaDevice *device, GError **error) {
  return KV_CUDA_OK(cudaEventRecord(device->begin, device->stream), error);
}

gboolean kv_cuda_clock_stop(KvCudaDevice *device, double *seconds, GError **error) {
  float milliseconds = 0.0f;
  if (!KV_CUDA_OK(cudaEventRecord(device->end, device->stream), error) ||
      !KV_CUDA_OK(cudaEventSynchronize(device->end), error) ||
      !KV_CUDA_OK(cudaEventElapsedTime(&milliseconds, device->begin, device->end), error))
    return FALSE;
  *seconds = 1e-3 * (double)milliseconds;
  return TRUE;
}
