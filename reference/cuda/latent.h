/* Latent attention of a pass on the GPU, between the product of a layer's input with
 * `KvCudaLayer.qkv` and the output projection: the CUDA twin of what reference/host/forward.c does
 * with reference/host/latent.c.
 *
 * Queries are multiplied into the latents' space head by head, attention runs on the latents as
 * they stand in the cache, for prompts as for decoding, and what was mixed is expanded head by
 * head.
 */
#ifndef KV_REFERENCE_CUDA_LATENT_H
#define KV_REFERENCE_CUDA_LATENT_H

#include "reference/cuda/gemm.h"
#include "reference/cuda/weights.h"
#include "reference/host/kernels.h"

/* The rows of a pass at one layer, prompts first; all arrays in device memory. */
typedef struct {
  const KvCudaLayer *layer;
  KvHostLatent shape;
  KvCudaPages pages;
  KvCudaTables tables; /* of all sequences */
  guint rows, prefill_rows, prefill, decode, n_tiles, max_splits;
  const guint32 *row_sequences, *positions, *contexts, *split_tokens;
  const KvCudaTile *tiles; /* of at most kv_cuda_latent_tile_tokens() */
  const float2 *angles;    /* of heads of shape.rope */
  float epsilon;
  KvBf16 *qkv, *attended; /* [R][H d or Rq, + 576], [R][H value] */
  void *work, *scratch;   /* kv_cuda_latents_work_bytes(); of decode attention */
  KvCudaGemm *gemm;
  cudaStream_t stream;
} KvCudaLatents;

/* Elements of a row of qkv, and bytes of `work`. */
guint kv_cuda_latents_width(const KvAttention *attention);
gsize kv_cuda_latents_work_bytes(const KvAttention *attention, guint rows);

/* qkv is there: store the latents, absorb the queries. */
gboolean kv_cuda_latents_prepare(const KvCudaLatents *l, GError **error);
/* Attention of the prompts' rows, of the decoding ones. */
gboolean kv_cuda_latents_prefill(const KvCudaLatents *l, GError **error);
gboolean kv_cuda_latents_decode(const KvCudaLatents *l, GError **error);
/* Into `attended`. */
gboolean kv_cuda_latents_expand(const KvCudaLatents *l, GError **error);

#endif
