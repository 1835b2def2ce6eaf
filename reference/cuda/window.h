/* The last queries of a prompt, kept until it is done (snapkv, pyramidkv, infinigen), and the cut
 * of a layer by their votes. */
#ifndef KV_REFERENCE_CUDA_WINDOW_H
#define KV_REFERENCE_CUDA_WINDOW_H

#include "reference/cuda/format.h"

/* Of a sequence; begins what such a format keeps of it. queries[layers]: of its prompt's window (of
 * all its tokens, if they are fewer), device; one piece of memory. */
typedef struct {
  KvBf16 **queries;
} KvCudaWindow;

/* Room for the windows that the pass's prompts reach; where prompts are cut, of those that will be.
 */
gboolean kv_cuda_window_begin(KvCudaCompressed *c, guint prompts, GError **error);
/* Keep the queries that lie in a window. */
cudaError_t kv_cuda_window_keep(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
/* The same, and store the rows in the engine's blocks. */
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
 * the prompt's blocks. */
gboolean kv_cuda_cut_begin(KvCudaCompressed *c, const KvHostSpan *span, guint budget,
                           const guint32 *tables, gsize n, KvCudaCut *cut, GError **error);
/* Vote, choose, gather, scatter; if `dry`, what changes nothing of it. */
cudaError_t kv_cuda_cut_layer(KvCudaCompressed *c, const KvHostSpan *span, const KvCudaCut *cut,
                              guint layer, const KvCudaCutTarget *target, gboolean dry);

#endif
