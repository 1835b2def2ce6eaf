/* In a program that was built without CUDA. */
#include "reference/cuda/executor.h"

#include "sim/base/error.h"

gboolean kv_cuda_executor_is_built(void) {
  return FALSE;
}

KvExecutor *kv_cuda_executor_new(const KvCudaSettings *settings, GError **error) {
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
              "executor cuda: this program was built without CUDA, expected a build where nvcc is "
              "found (meson setup -Dcuda=enabled)");
  return NULL;
}
