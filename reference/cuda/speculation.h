/* Guessing which tokens a layer will attend to, and bringing them from host memory (infinigen): the
 * kernels of speculation.cu. Twins: reference/host/speculation.h,
 * reference/host/format_infinigen.c.
 *
 * As kernels.h: device pointers, aligned to 16 bytes; nothing is allocated, synchronized or looked
 * at. Pools of keys and values may also be pinned host memory. To run any of them again changes
 * nothing.
 */
#ifndef KV_REFERENCE_CUDA_SPECULATION_H
#define KV_REFERENCE_CUDA_SPECULATION_H

#include "reference/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One layer: directions[Hkv][d][d]; partial keys, blocks without values of heads as long as there
 * are columns of one, a multiple of 8, as is d (up to 128). */
typedef struct {
  const float *directions;
  KvCudaPages partial;
  uint32_t head_dim;     /* d */
  uint64_t first_column; /* of a sequence's, those of this layer, [Hkv][columns] */
} KvCudaSkew;

/* A decoding sequence: its columns, of all layers; tokens before its newest, and how many of them
 * are fetched at most. */
typedef struct {
  const uint32_t *columns;
  uint32_t past, most;
} KvCudaSpeculated;

/* columns[Hkv][columns], ascending: those along which the queries q[n][H][d] are longest in sum, of
 * equals the first. scratch: kv_cuda_choose_columns_scratch_bytes(). */
cudaError_t kv_cuda_choose_columns(uint32_t *columns, const KvCudaSkew *skew, const KvBf16 *q,
                                   uint32_t n, uint32_t n_heads, void *scratch,
                                   cudaStream_t stream);
uint64_t kv_cuda_choose_columns_scratch_bytes(uint32_t n_kv_heads);
/* Partial keys, under partial_table, of the n first tokens of a sequence whose keys stand in
 * `pages` under `table`; columns of the layer. */
cudaError_t kv_cuda_partial_keys(const KvCudaSkew *skew, const uint32_t *columns,
                                 const uint32_t *partial_table, const KvCudaPages *pages,
                                 const uint32_t *table, uint32_t n, cudaStream_t stream);
/* out[S][H][columns] of the queries q[S][H][d]. */
cudaError_t kv_cuda_partial_queries(float *out, const KvCudaSkew *skew,
                                    const KvCudaSpeculated *sequences, const KvBf16 *q, uint32_t n,
                                    uint32_t n_heads, cudaStream_t stream);

/* What n sequences fetch: of each KV head the lengths[s] - 1 tokens chosen[S][Hkv][most], ascending
 * (not written where that is all of them), with partial queries q[S][H][columns] over the partial
 * keys under `tables`. No context is longer than `longest`, no sequence fetches more than `most`.
 * scratch: kv_cuda_speculate_scratch_bytes(). */
cudaError_t kv_cuda_speculate(uint32_t *lengths, uint32_t *chosen, const KvCudaSkew *skew,
                              const KvCudaSpeculated *sequences, const float *q,
                              const KvCudaTables *tables, uint32_t n, uint32_t n_heads,
                              uint32_t longest, uint32_t most, float alpha, void *scratch,
                              cudaStream_t stream);
uint64_t kv_cuda_speculate_scratch_bytes(uint32_t n, uint32_t n_heads, uint32_t n_kv_heads,
                                         uint32_t longest);

/* Keys and values of the chosen tokens from `home` to the first slots of each head of `area`, of at
 * most `most` tokens a sequence; lengths NULL: of all. Only `groups` thread blocks do it, so that
 * other kernels run beside. */
cudaError_t kv_cuda_gather_chosen(const KvCudaPages *area, const KvCudaTables *area_tables,
                                  const KvCudaPages *home, const KvCudaTables *home_tables,
                                  const KvCudaSpeculated *sequences, const uint32_t *lengths,
                                  const uint32_t *chosen, uint32_t n, uint32_t most,
                                  uint32_t groups, cudaStream_t stream);
/* Row s of qkv is the newest token of sequence s: its keys and values go behind what was fetched in
 * `area`, and to their place in `home`; their partial keys to their own, under home_tables, unless
 * `skew` is NULL. */
cudaError_t kv_cuda_store_newest(const KvBf16 *qkv, const KvCudaPages *area,
                                 const KvCudaTables *area_tables, const KvCudaPages *home,
                                 const KvCudaTables *home_tables, const KvCudaSkew *skew,
                                 const KvCudaSpeculated *sequences, const uint32_t *lengths,
                                 uint32_t n, uint32_t n_heads, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
