/* Prompts that are cut by the votes of their last queries (snapkv, pyramidkv): those queries, kept
 * until the prompt is done, and the cut of a layer. */
#ifndef KV_REFERENCE_CUDA_WINDOW_H
#define KV_REFERENCE_CUDA_WINDOW_H

#include "reference/cuda/format.h"

/* Of a sequence; begins what such a format keeps of it. queries[layers]: of its prompt's window,
 * device; one piece of memory. */
typedef struct {
  KvBf16 **queries;
} KvCudaWindow;

/* Room for the windows that the pass's prompts reach, of those that will be cut. */
gboolean kv_cuda_window_begin(KvCudaCompressed *c, guint prompts, GError **error);
/* Store the rows in the engine's blocks, and keep the queries that lie in a window. */
cudaError_t kv_cuda_window_store(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
void kv_cuda_window_forget(KvCudaCompressed *c, gpointer owner);

/* The scratch of cutting one prompt. */
typedef struct {
  float *votes, *pooled;
  guint32 *kept;
  void *vote_scratch;
  KvBf16 *rows;
  guint32 *tables; /* the prompt's blocks, then what was given */
} KvCudaCut;

/* Where a layer's kept tokens go. */
typedef struct {
  guint budget;
  KvCudaPages pages;
  const guint32 *table; /* device */
} KvCudaCutTarget;

/* Scratch for layers that keep up to `budget` tokens, with the n words of `tables` uploaded behind
 * the prompt's blocks: one for each of *lanes layers that are cut side by side, or of fewer if they
 * are large. */
gboolean kv_cuda_cut_begin(KvCudaCompressed *c, const KvHostSpan *span, guint budget,
                           const guint32 *tables, gsize n, KvCudaCut *cuts, guint *lanes,
                           GError **error);
/* Vote, choose, gather, scatter; if `dry`, what changes nothing of it. */
cudaError_t kv_cuda_cut_layer(KvCudaCompressed *c, const KvHostSpan *span, const KvCudaCut *cut,
                              guint layer, const KvCudaCutTarget *target, gboolean dry,
                              cudaStream_t stream);

#endif
