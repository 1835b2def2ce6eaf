/* In a program that was built without CUDA. */
#include "reference/cuda/executor.h"
#include "reference/cuda/measure.h"
#include "reference/cuda/pair.h"

#include "sim/base/error.h"

gboolean kv_cuda_executor_is_built(void) {
  return FALSE;
}

static void say(const char *what, GError **error) {
  g_set_error(
      error, KV_ERROR, KV_ERROR_FAILED,
      "%s: this program was built without CUDA, expected a build where nvcc is found (meson "
      "setup -Dcuda=enabled)",
      what);
}

KvExecutor *kv_cuda_executor_new(const KvCudaSettings *settings, GError **error) {
  say("executor cuda", error);
  return NULL;
}

gboolean kv_cuda_measure(KvOutput *table, char **name, GError **error) {
  say("calibrate --measure", error);
  return FALSE;
}

KvEnginePair *kv_cuda_pair_new(const KvPairSettings *settings, GError **error) {
  say("executor cuda", error);
  return NULL;
}
