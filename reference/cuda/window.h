/* The last queries of a prompt, kept until it is done (snapkv, pyramidkv, infinigen), and the cut
 * by their votes. */
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

/* Where a layer's kept tokens go: `budget` of each KV head, into the blocks of `pool` under the
 * prompt's own table, or under the one that begins at word `table` of those that were given. */
typedef struct {
  guint budget;
  KvBf16 *pool;
  gboolean own_table;
  gsize table;
} KvCudaCutTarget;

/* Cut all layers of a prompt that is done, layer l to targets[l], with n words of `tables`: vote,
 * choose, gather, scatter. As many layers at once as there is scratch for, the last ones first: all
 * of a batch is gathered before any of it is scattered. The prompt's window is given up. */
gboolean kv_cuda_window_cut(KvCudaCompressed *c, const KvHostSpan *span,
                            const KvCudaCutTarget *targets, const guint32 *tables, gsize n,
                            double *seconds, GError **error);

#endif
