/* Matrices of the layers that stand in pinned host memory and come to the GPU when their layer is
 * next (flexgen): into one of two buffers, a layer's into the one that the layer before does not
 * use. Pointers of a layer lead into its buffer, so who multiplies knows nothing of it.
 *
 * Whole matrices are placed, in the order in which they are made, so that of what was made so far
 * the share is on the GPU as nearly as can be. Norms, biases, token tables and the head stay there.
 */
#ifndef KV_REFERENCE_CUDA_STREAMED_WEIGHTS_H
#define KV_REFERENCE_CUDA_STREAMED_WEIGHTS_H

#include "reference/cuda/device.h"
#include "reference/cuda/kernels.h"

typedef struct {
  guint layer;
  KvBf16 **slot; /* of the layer: leads into a buffer */
  char *host;    /* pinned */
  gsize bytes, offset;
} KvCudaStreamedMatrix;

typedef struct {
  double share;             /* of the matrices' bytes that is on the GPU, 0 to 1 */
  double bytes, away_bytes; /* of the matrices so far, and of those in host memory */
  GArray *matrices;         /* of KvCudaStreamedMatrix, those in host memory */
  char *buffers[2];         /* device */
} KvCudaStreamedWeights;

KvCudaStreamedWeights *kv_cuda_streamed_weights_new(double share);
void kv_cuda_streamed_weights_free(KvCudaStreamedWeights *streamed);

/* A layer's matrix was made at *slot, device memory that `owner` holds: if it is one that goes to
 * host memory, copy it there and take it out of `owner`, which frees it. */
gboolean kv_cuda_streamed_weights_take(KvCudaStreamedWeights *streamed, KvCudaDevice *device,
                                       GPtrArray *owner, guint layer, KvBf16 **slot, gsize bytes,
                                       GError **error);
/* All matrices are made: the buffers, and every slot into them. */
gboolean kv_cuda_streamed_weights_place(KvCudaStreamedWeights *streamed, GError **error);

/* Put the copies of a layer's matrices on `stream`. */
gboolean kv_cuda_streamed_weights_load(const KvCudaStreamedWeights *streamed, guint layer,
                                       cudaStream_t stream, GError **error);

/* Pinned host memory for `what`; NULL with *error set. Never of size 0. */
void *kv_cuda_pin(gsize bytes, const char *what, GError **error);

#endif
