/* The GPU: found, asked what it is, and every call to it checked.
 *
 * One device, the first that is visible, used from one thread. Work goes to `stream` in order;
 * copies of blocks to and from the host have a stream of their own. What goes wrong is one line:
 * what was called and what CUDA answered, or what is missing. Headers of this folder that speak of
 * cudaStream_t need CUDA's headers; none of them is installed.
 */
#ifndef KV_REFERENCE_CUDA_DEVICE_H
#define KV_REFERENCE_CUDA_DEVICE_H

#include <cuda_runtime_api.h>
#include <glib.h>

typedef struct {
  char name[256];
  guint multiprocessors;
  guint driver_version; /* 1000 * major + 10 * minor of the CUDA that it supports */
  gsize memory_bytes, l2_bytes;
  cudaStream_t stream, copies;
  cudaEvent_t begin, end;
} KvCudaDevice;

/* NULL with *error set where there is no GPU, its driver is older than this build's CUDA, or it is
 * not of the generation that the kernels were compiled for. */
KvCudaDevice *kv_cuda_device_open(GError **error);
void kv_cuda_device_close(KvCudaDevice *device);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCudaDevice, kv_cuda_device_close)

/* TRUE for cudaSuccess; otherwise *error says what failed and how. */
gboolean kv_cuda_ok(cudaError_t status, const char *what, GError **error);
#define KV_CUDA_OK(call, error) kv_cuda_ok((call), #call, error)

/* Device memory for `what`; NULL with *error set, which says how much is free. Never of size 0. */
void *kv_cuda_alloc(gsize bytes, const char *what, GError **error);
void kv_cuda_free(void *memory);
/* Wait for the device's stream, and copy. */
gboolean kv_cuda_upload(KvCudaDevice *device, void *to, const void *from, gsize bytes,
                        GError **error);
gboolean kv_cuda_download(KvCudaDevice *device, void *to, const void *from, gsize bytes,
                          GError **error);
/* Inside the device's memory, without waiting. */
gboolean kv_cuda_copy(KvCudaDevice *device, void *to, const void *from, gsize bytes,
                      GError **error);
/* Every byte becomes `value`, on the device's stream. */
gboolean kv_cuda_fill(KvCudaDevice *device, void *memory, int value, gsize bytes, GError **error);
gboolean kv_cuda_wait(KvCudaDevice *device, GError **error);

/* Seconds between kv_cuda_clock_start() and _stop() on the GPU's own clock. */
gboolean kv_cuda_clock_start(KvCudaDevice *device, GError **error);
gboolean kv_cuda_clock_stop(KvCudaDevice *device, double *seconds, GError **error);

#endif
