#include "reference/cuda/streamed_weights.h"

#include "sim/base/error.h"

/* Of a matrix in its buffer. */
enum { ALIGNMENT = 256 };

void *kv_cuda_pin(gsize bytes, const char *what, GError **error) {
  void *memory = NULL;
  cudaError_t status = cudaHostAlloc(&memory, MAX(bytes, ALIGNMENT), cudaHostAllocDefault);
  if (status == cudaSuccess)
    return memory;
  (void)cudaGetLastError(); /* an allocation that fails is not sticky */
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
              "cuda executor: %s need %.2f GB of pinned host memory: %s; expected fewer KV blocks "
              "(engine.num_blocks) or a larger share on the GPU",
              what, (double)bytes / 1e9, cudaGetErrorString(status));
  return NULL;
}

static void matrix_clear(gpointer matrix) {
  (void)cudaFreeHost(((KvCudaStreamedMatrix *)matrix)->host);
}

KvCudaStreamedWeights *kv_cuda_streamed_weights_new(double share) {
  KvCudaStreamedWeights *s = g_new0(KvCudaStreamedWeights, 1);
  s->share = share;
  s->matrices = g_array_new(FALSE, FALSE, sizeof(KvCudaStreamedMatrix));
  g_array_set_clear_func(s->matrices, matrix_clear);
  return s;
}

void kv_cuda_streamed_weights_free(KvCudaStreamedWeights *s) {
  if (!s)
    return;
  g_array_unref(s->matrices);
  for (guint b = 0; b < 2; b++)
    kv_cuda_free(s->buffers[b]);
  g_free(s);
}

gboolean kv_cuda_streamed_weights_take(KvCudaStreamedWeights *s, KvCudaDevice *device,
                                       GPtrArray *owner, guint layer, KvBf16 **slot, gsize bytes,
                                       GError **error) {
  s->bytes += (double)bytes;
  if (s->away_bytes + 0.5 * (double)bytes > (1.0 - s->share) * s->bytes)
    return TRUE;
  KvCudaStreamedMatrix matrix = {layer, slot, kv_cuda_pin(bytes, "weights", error), bytes, 0};
  if (!matrix.host)
    return FALSE;
  g_array_append_val(s->matrices, matrix);
  s->away_bytes += (double)bytes;
  if (!kv_cuda_download(device, matrix.host, *slot, bytes, error))
    return FALSE;
  g_ptr_array_remove_fast(owner, *slot);
  *slot = NULL;
  return TRUE;
}

gboolean kv_cuda_streamed_weights_place(KvCudaStreamedWeights *s, GError **error) {
  gsize used = 0, most = 0;
  for (guint i = 0; i < s->matrices->len; i++) {
    KvCudaStreamedMatrix *m = &g_array_index(s->matrices, KvCudaStreamedMatrix, i);
    if (i == 0 || m->layer != m[-1].layer)
      used = 0;
    m->offset = used;
    used += (m->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    most = MAX(most, used);
  }
  for (guint b = 0; most > 0 && b < 2; b++)
    if (!(s->buffers[b] = kv_cuda_alloc(most, "the weights of a layer on their way", error)))
      return FALSE;
  for (guint i = 0; i < s->matrices->len; i++) {
    const KvCudaStreamedMatrix *m = &g_array_index(s->matrices, KvCudaStreamedMatrix, i);
    *m->slot = (KvBf16 *)(void *)(s->buffers[m->layer % 2] + m->offset);
  }
  return TRUE;
}

gboolean kv_cuda_streamed_weights_load(const KvCudaStreamedWeights *s, guint layer,
                                       cudaStream_t stream, GError **error) {
  for (guint i = 0; i < s->matrices->len; i++) {
    const KvCudaStreamedMatrix *m = &g_array_index(s->matrices, KvCudaStreamedMatrix, i);
    if (m->layer == layer &&
        !KV_CUDA_OK(cudaMemcpyAsync(*m->slot, m->host, m->bytes, cudaMemcpyHostToDevice, stream),
                    error))
      return FALSE;
  }
  return TRUE;
}
