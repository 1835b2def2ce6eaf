/* snapkv: the engine's own blocks, bf16; the queries of a prompt's window are kept until it is
 * done. */
#include "reference/cuda/window.h"

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  return kv_cuda_window_begin(c, prompts, error);
}

static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  g_autofree KvCudaCutTarget *targets = g_new(KvCudaCutTarget, c->weights->n_layers);
  if (span->prompt_tokens <= c->settings->budget)
    return TRUE;
  for (guint l = 0; l < c->weights->n_layers; l++)
    targets[l] = (KvCudaCutTarget){
        .budget = c->settings->budget, .pool = c->cache->layers[l].pool, .own_table = TRUE};
  return kv_cuda_window_cut(c, span, targets, NULL, 0, seconds, error);
}

const KvCudaFormat kv_cuda_format_snapkv = {.owner_bytes = sizeof(KvCudaWindow),
                                            .begin = begin,
                                            .store = kv_cuda_window_store,
                                            .finish = finish,
                                            .forget = kv_cuda_window_forget};
