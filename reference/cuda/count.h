/* The FLOPs and bytes of a pass, counted from its spans: products and attention, a multiply-add
 * counting two; weights once, the cache read once and written.
 */
#ifndef KV_REFERENCE_CUDA_COUNT_H
#define KV_REFERENCE_CUDA_COUNT_H

#include "reference/cuda/cache.h"
#include "reference/cuda/weights.h"
#include "reference/host/forward.h"

typedef struct {
  const KvCudaWeights *weights;
  const KvCudaCache *cache;
  const KvHostSpan *spans;
  guint n_spans;
  guint samples;               /* rows whose logits are computed */
  const double *unread_tokens; /* [layers]: of contexts, that decoding rows did not read */
  double repeated_tokens;      /* reads that shared prefixes spare */
} KvCudaCount;

/* Adds to both. */
void kv_cuda_count(const KvCudaCount *count, double *flops, double *bytes);

#endif
