/* fp8: blocks of e4m3. Decoding reads them as they are; a prompt's chunk reads its whole context
 * widened into bf16 blocks of a workspace, a layer at a time. */
#include "reference/cuda/format.h"

typedef struct {
  KvCudaWorkspace workspace;
  guint n_widened; /* blocks, in the pass under way */
} Fp8;

static gboolean make(KvCudaCompressed *c, GError **error) {
  Fp8 *f = c->state = g_new0(Fp8, 1);
  kv_cuda_workspace_init(&f->workspace, c, TRUE);
  return TRUE;
}

static void release(KvCudaCompressed *c) {
  kv_cuda_workspace_clear(&((Fp8 *)c->state)->workspace, c->weights->n_layers);
  g_free(c->state);
}

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  Fp8 *f = c->state;
  return kv_cuda_workspace_widen(&f->workspace, c, prompts, &f->n_widened, error);
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return kv_cuda_store_fp8(r->qkv, &c->cache->packed[layer], &r->tables, r->row_sequences, r->slots,
                           r->rows, r->n_heads, c->device->stream);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  Fp8 *f = c->state;
  cudaError_t status = kv_cuda_widen_fp8(&f->workspace.layers[layer], &c->cache->packed[layer],
                                         kv_cuda_workspace_sources(&f->workspace, f->n_widened),
                                         f->n_widened, c->device->stream);
  return status != cudaSuccess ? status : kv_cuda_workspace_prefill(&f->workspace, c, layer, r);
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  return kv_cuda_decode_attention_packed(
      kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r), r->stride,
      &c->cache->packed[layer], &tables, NULL, r->contexts, r->decode, r->n_heads, r->window,
      r->split_tokens, r->max_splits, r->counters, r->scratch, c->device->stream);
}

const KvCudaFormat kv_cuda_format_fp8 = {.make = make,
                                         .release = release,
                                         .begin = begin,
                                         .store = store,
                                         .prefill = prefill,
                                         .decode = decode};
