/* A mixture of experts on the GPU: the router, the rows sorted by expert, the experts' products,
 * and their sum into the residual. Nothing is read back, and launches depend on the number of rows
 * alone, so a captured pass serves any choice. The shared expert is an MLP like any other. */
#ifndef KV_REFERENCE_CUDA_MIXTURE_H
#define KV_REFERENCE_CUDA_MIXTURE_H

#include "reference/cuda/gemm.h"
#include "reference/cuda/weights.h"

/* All arrays in device memory. */
typedef struct {
  const KvCudaLayer *layer;
  KvHostRouting routing;
  guint rows, hidden;
  const guint32 *row_sequences; /* G_MAXUINT32: no expert */
  const KvBf16 *normed;         /* [R][D] */
  float *x;                     /* [R][D], added to */
  void *work;                   /* kv_cuda_mixture_work_bytes() */
  KvCudaGemm *gemm;
  cudaStream_t stream;
} KvCudaMixture;

gsize kv_cuda_mixture_work_bytes(const KvMlp *mlp, guint hidden, guint rows);
gboolean kv_cuda_mixture_run(const KvCudaMixture *mixture, GError **error);

#endif
