/* snapkv: the engine's own blocks, bf16; the queries of a prompt's window are kept until it is
 * done. */
#include "reference/cuda/window.h"

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  return kv_cuda_window_begin(c, prompts, error);
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  KvCudaCut cut;
  KvCudaCutTarget target = {.budget = c->settings->budget};
  if (span->prompt_tokens <= target.budget)
    return TRUE;
  if (!kv_cuda_cut_begin(c, span, target.budget, NULL, 0, &cut, error) ||
      (!c->warm && !KV_CUDA_OK(kv_cuda_cut_layer(c, span, &cut, 0, &target, TRUE), error)) ||
      !kv_cuda_clock_start(c->device, error))
    return FALSE;
  target.table = cut.tables;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    target.pages = c->cache->layers[l];
    if (!KV_CUDA_OK(kv_cuda_cut_layer(c, span, &cut, l, &target, FALSE), error))
      return FALSE;
  }
  if (!kv_cuda_clock_stop(c->device, seconds, error))
    return FALSE;
  c->warm = TRUE;
  kv_cuda_window_forget(c, kv_cuda_format_owner(c, span->owner));
  return TRUE;
}

const KvCudaFormat kv_cuda_format_snapkv = {.owner_bytes = sizeof(KvCudaWindow),
                                            .begin = begin,
                                            .store = kv_cuda_window_store,
                                            .finish = finish,
                                            .forget = kv_cuda_window_forget};
