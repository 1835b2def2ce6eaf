/* Where attention_shared.cu leaves its parts and attention_decode.cu finds them: part i of head h
 * at slot i * H + h. */
#ifndef KV_REFERENCE_CUDA_SHARED_CUH
#define KV_REFERENCE_CUDA_SHARED_CUH

#include "reference/cuda/kernels.h"

struct SharedParts {
  float2 *sums;   /* [parts][H]: largest score, as a power of two, and sum of exponentials */
  float *outputs; /* [parts][H][d]: not divided by that sum */
};

static inline uint64_t shared_sums_bytes(uint32_t parts, uint32_t n_heads) {
  return ((uint64_t)parts * n_heads * sizeof(float2) + 255) / 256 * 256;
}

static inline SharedParts shared_parts(const KvCudaShared &shared, uint32_t n_heads) {
  char *scratch = (char *)shared.scratch;
  return {(float2 *)scratch, (float *)(scratch + shared_sums_bytes(shared.most_parts, n_heads))};
}

#endif
