/* snapkv: the engine's own blocks, bf16; the queries of a prompt's window are kept until it is
 * done. */
#include "reference/cuda/window.h"

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  return kv_cuda_window_begin(c, prompts, error);
}

static gboolean cut_layers(KvCudaCompressed *c, const KvHostSpan *span, const KvCudaCut *cuts,
                           guint lanes, GError **error) {
  KvCudaCutTarget target = {.budget = c->settings->budget, .table = cuts[0].tables};
  if (!kv_cuda_format_fork(c, lanes, error))
    return FALSE;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    target.pages = c->cache->layers[l];
    if (!KV_CUDA_OK(
            kv_cuda_cut_layer(c, span, &cuts[l % lanes], l, &target, FALSE, c->lanes[l % lanes]),
            error))
      return FALSE;
  }
  return kv_cuda_format_join(c, lanes, error);
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  KvCudaCut cuts[KV_CUDA_LANES];
  guint lanes = KV_CUDA_LANES;
  KvCudaCutTarget first = {.budget = c->settings->budget};
  if (span->prompt_tokens <= first.budget)
    return TRUE;
  if (!kv_cuda_cut_begin(c, span, first.budget, NULL, 0, cuts, &lanes, error) ||
      (!c->warm &&
       !KV_CUDA_OK(kv_cuda_cut_layer(c, span, &cuts[0], 0, &first, TRUE, c->device->stream),
                   error)) ||
      !kv_cuda_clock_start(c->device, error) || !cut_layers(c, span, cuts, lanes, error) ||
      !kv_cuda_clock_stop(c->device, seconds, error))
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
