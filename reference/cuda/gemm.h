/* Products with a weight matrix: a few rows by our own kernel (gemv.cu), more by cuBLASLt.
 *
 * cuBLASLt is opened when the first product needs it, by name, so that the program starts where it
 * is not installed. Of its heuristic's algorithms the fastest is found by timing them at the first
 * product of a shape; the choice, with its descriptors, is kept. Sums are fp32; bias and the
 * residual are added by the product's epilogue.
 */
#ifndef KV_REFERENCE_CUDA_GEMM_H
#define KV_REFERENCE_CUDA_GEMM_H

#include "reference/cuda/device.h"
#include "reference/cuda/kernels.h"

typedef struct KvCudaGemm KvCudaGemm;

/* out[R][N] = x[R][K] weight[N][K]^T + bias[N]. */
typedef struct {
  void *out; /* bf16, or fp32 if out_f32 */
  gboolean out_f32;
  gboolean accumulate;             /* add to what is in `out` (fp32 only) */
  const KvBf16 *x, *weight, *bias; /* bias: NULL for none */
  guint rows, inputs, outputs;
} KvCudaProduct;

/* NULL with *error set if cuBLASLt cannot be opened: it is looked for by name, then beside the
 * CUDA toolkit. */
KvCudaGemm *kv_cuda_gemm_new(GError **error);
void kv_cuda_gemm_free(KvCudaGemm *gemm);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCudaGemm, kv_cuda_gemm_free)

/* Put the product on `stream`. The first call of a shape must not be inside a capture. */
gboolean kv_cuda_gemm_run(KvCudaGemm *gemm, const KvCudaProduct *product, cudaStream_t stream,
                          GError **error);

#endif
