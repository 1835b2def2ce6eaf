/* Adjacent layers merged (minicache) on the GPU: the kernels of merging.cu and
 * attention_merged.cu. Twins: reference/host/merging.h.
 *
 * As kernels.h: device pointers, aligned to 16 bytes; nothing is allocated, synchronized or looked
 * at, so launches can be captured. x is the first layer of a pair and y the second; part 0 is keys,
 * 1 values; W = Hkv d.
 */
#ifndef KV_REFERENCE_CUDA_MERGING_H
#define KV_REFERENCE_CUDA_MERGING_H

#include "reference/cuda/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One pair's blocks: block b starts at pool + b * block_elements; directions as keys and values
 * stand in KvCudaPages, `norms` elements from the block's start norms in fp16
 * [x, y][part][block_tokens], `index` elements from it 32-bit numbers [part][block_tokens]: 0 of a
 * merged token, else 1 + the row of KvCudaKept where its originals are. `pair` is the number of the
 * pair. */
typedef struct {
  KvBf16 *pool;
  uint64_t block_elements, value_offset, norms, index;
  uint32_t block_shift, n_kv_heads, head_dim, pair;
} KvCudaMerged;

/* Fill value_offset, norms, index and block_elements from the rest. */
void kv_cuda_merged_lay_out(KvCudaMerged *merged);

/* Of a sequence, a pair and a part: tokens of at least `threshold` stay apart; how many do, and how
 * many did before the token of context `context`. */
typedef struct {
  float threshold;
  uint32_t count, before, context;
} KvCudaKeptState;

/* What stays apart of one sequence: states[pairs][part], rows[pairs][part][capacity][x, y][W]. */
typedef struct {
  KvCudaKeptState *states;
  KvBf16 *rows;
  uint32_t capacity;
} KvCudaKept;

/* A prompt of n tokens is done, exact in `first` and `second` under `exact_table`. Its distances
 * [part][n]; then its states[part], zero but for threshold and count, and index[part][n]; then,
 * with room for as many rows, all of it into the blocks of `table`. */
cudaError_t kv_cuda_merge_measure(float *distances, const KvCudaPages *first,
                                  const KvCudaPages *second, const uint32_t *exact_table,
                                  uint32_t n, cudaStream_t stream);
cudaError_t kv_cuda_merge_choose(KvCudaKeptState *states, uint32_t *index, const float *distances,
                                 uint32_t n, float gamma, cudaStream_t stream);
cudaError_t kv_cuda_merge_write(const KvCudaMerged *merged, const uint32_t *table,
                                const KvCudaPages *first, const KvCudaPages *second,
                                const uint32_t *exact_table, const uint32_t *index,
                                const KvCudaKept *kept, uint32_t n, float slerp,
                                cudaStream_t stream);

/* staged[S][x, y][part][W] holds the token at contexts[s] - 1 of sequence s: merge it, or keep it
 * apart, by kept[s]. Contexts of 0 are skipped. May be run again for the same contexts. */
cudaError_t kv_cuda_merge_append(const KvCudaMerged *merged, const KvCudaTables *tables,
                                 const KvCudaKept *kept, const KvBf16 *staged,
                                 const uint32_t *contexts, uint32_t sequences, float slerp,
                                 cudaStream_t stream);

/* As kv_cuda_decode_attention() without a window, for layer x (0) or y (1) of the pair; the last
 * token of each context is read from `staged`. */
cudaError_t kv_cuda_decode_attention_merged(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                            const KvCudaMerged *merged, uint32_t layer,
                                            const KvCudaTables *tables, const KvCudaKept *kept,
                                            const KvBf16 *staged, const uint32_t *contexts,
                                            uint32_t sequences, uint32_t n_heads,
                                            const uint32_t *split_tokens, uint32_t max_splits,
                                            uint32_t *counters, void *scratch, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
