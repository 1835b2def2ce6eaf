/* Low-rank keys and values (palu) on the GPU: the kernels of attention_lowrank.cu, and the factors
 * of a model's layers. Twins: reference/host/low_rank.h.
 *
 * As kernels.h: device pointers, aligned to 16 bytes; nothing is allocated, synchronized or looked
 * at, so launches can be captured.
 */
#ifndef KV_REFERENCE_CUDA_LOW_RANK_H
#define KV_REFERENCE_CUDA_LOW_RANK_H

#include "reference/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One layer. Block b starts at pool + b * block_elements: latents of keys
 * [groups][block_tokens][key_rank], value_offset elements later those of values. A group is of
 * `heads` KV heads; d and the ranks are multiples of 16.
 * A basis [Hkv][d / 16][rank / 16][32 lanes][8] holds V^T as the tensor cores take it
 * (kv_cuda_low_rank_arrange()). Biases [Hkv d] are of the keys and of the values, or NULL. */
typedef struct {
  KvBf16 *pool;
  uint64_t block_elements, value_offset;
  uint32_t block_shift, groups, heads, head_dim, key_rank, value_rank;
  const KvBf16 *key_basis, *value_basis, *key_bias, *value_bias;
} KvCudaLowRank;

/* Largest rank of a group, and bytes of shared memory that decode attention needs at least;
 * more than KV_CUDA_LOW_RANK_SHARED cannot be launched. */
#define KV_CUDA_LOW_RANK_MAX 1024
#define KV_CUDA_LOW_RANK_SHARED (227 * 1024)
uint64_t kv_cuda_low_rank_shared_bytes(const KvCudaLowRank *cache);

/* Host memory: where element c (of 0 .. d - 1) of head `head`'s row `rank` stands in an arranged
 * basis. */
uint64_t kv_cuda_low_rank_arrange(uint32_t head_dim, uint32_t n_ranks, uint32_t head, uint32_t rank,
                                  uint32_t c);

/* rows[R]: queries [H][d], then latents of keys [groups][key_rank] and of values. Turn the queries
 * in place by their position's angles (NULL: not), store the latents: row r in slot slots[r] of
 * sequence row_sequences[r]; rows of sequence UINT32_MAX are skipped. */
cudaError_t kv_cuda_low_rank_store(KvBf16 *rows, const KvCudaLowRank *cache,
                                   const KvCudaTables *tables, const uint32_t *row_sequences,
                                   const uint32_t *slots, const uint32_t *positions,
                                   const float2 *angles, uint32_t n_rows, uint32_t n_heads,
                                   cudaStream_t stream);

/* Rebuild blocks from[i] into blocks i of `pages`, i < n: keys [Hkv][block_tokens][d], turned as at
 * positions[i] and following ones, then values. */
cudaError_t kv_cuda_low_rank_rebuild(const KvCudaPages *pages, const KvCudaLowRank *cache,
                                     const uint32_t *from, const uint32_t *positions,
                                     const float2 *angles, uint32_t n, cudaStream_t stream);

/* As kv_cuda_decode_attention(), but out[S][H][value_rank]: what the folded output projection
 * takes. scratch: kv_cuda_decode_scratch_bytes() with heads of value_rank; angles NULL: keys are
 * not turned. Token t of a context stands at position t. */
cudaError_t kv_cuda_decode_attention_low_rank(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                              const KvCudaLowRank *cache,
                                              const KvCudaTables *tables, const uint32_t *contexts,
                                              const float2 *angles, uint32_t sequences,
                                              uint32_t n_heads, const uint32_t *split_tokens,
                                              uint32_t max_splits, uint32_t *counters,
                                              void *scratch, cudaStream_t stream);
/* Blocks that share a context at one split: the counterpart of KV heads. */
uint32_t kv_cuda_low_rank_parts(const KvCudaLowRank *cache, uint32_t n_heads);

#ifdef __cplusplus
}
#endif

#endif
