/* One forward pass on the GPU over the new tokens of several sequences, through the block store:
 * the CUDA twin of reference/host/forward.h, and the same spans.
 *
 * A pass of decoding sequences alone is replayed as a CUDA graph, captured once for each batch size
 * (rounded up; the rows between compute nothing that is kept). A pass with a prompt in it is
 * launched kernel by kernel, and now and then timed part by part besides. Time is the GPU's own,
 * from the upload of the step's inputs to the download of its tokens, and warm: a shape that is new
 * is computed once before it is timed.
 */
#ifndef KV_REFERENCE_CUDA_FORWARD_H
#define KV_REFERENCE_CUDA_FORWARD_H

#include "reference/cuda/cache.h"
#include "reference/cuda/compressed.h"
#include "reference/cuda/device.h"
#include "reference/cuda/gemm.h"
#include "reference/cuda/weights.h"
#include "reference/host/forward.h"

typedef struct KvCudaEngine KvCudaEngine;

/* What a pass took. */
typedef struct {
  double seconds;
  double component_seconds[KV_N_COMPONENTS]; /* zero where the step was not divided */
  double flops; /* products and attention, a multiply-add counting two */
  double bytes; /* weights once, the cache read once and written */
  gboolean replayed;
} KvCudaWork;

/* Borrows its arguments. Positions up to max_positions - 1 can be computed. */
KvCudaEngine *kv_cuda_engine_new(KvCudaDevice *device, const KvCudaWeights *weights,
                                 KvCudaCache *cache, guint max_positions, GError **error);
void kv_cuda_engine_free(KvCudaEngine *engine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCudaEngine, kv_cuda_engine_free)

/* Largest batch that is replayed as a graph; 0: none, as always where the host brings the layers to
 * the GPU. 512 at first. */
void kv_cuda_engine_set_graph_rows(KvCudaEngine *engine, guint rows);

/* Of steps that are launched kernel by kernel, how often one is divided into components: every so
 * many (8 at first), 0: none. Such a step is computed twice. */
void kv_cuda_engine_set_divided_every(KvCudaEngine *engine, guint steps);

/* Compute the logits of every row, and not only those after a span: for comparisons. */
void kv_cuda_engine_set_all_logits(KvCudaEngine *engine, gboolean all);

/* Run the pass over spans (those that decode last) and set `sampled` where asked. */
gboolean kv_cuda_engine_run(KvCudaEngine *engine, KvHostSpan *spans, guint n_spans,
                            KvCudaWork *work, GError **error);

/* The sequence that spans called `owner` is over. */
void kv_cuda_engine_forget(KvCudaEngine *engine, guint64 owner);

/* Device memory, fp32, of the last pass: [rows][V] if all logits are computed, else
 * [spans that sample][V]. */
const float *kv_cuda_engine_logits(const KvCudaEngine *engine);

#endif
