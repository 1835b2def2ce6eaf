/* The arithmetic of a transformer on an NVIDIA GPU in bf16, one kernel family per file.
 *
 * Each function puts its work on `stream`, returns the launch's status and computes what its plain
 * C twin in reference/host/kernels.h does, on bf16 operands with fp32 sums; the residual stream and
 * the logits are fp32. No function allocates, synchronizes or looks at device memory, so all of
 * them can be captured in a graph. Pointers are device pointers, aligned to 16 bytes; arrays are
 * dense, the last axis contiguous.
 *
 * Axes: R rows (tokens), D hidden size, K inputs and N outputs of a matrix, S sequences, H query
 * heads, Hkv KV heads, G = H / Hkv, d head size, E intermediate size, V vocabulary.
 */
#ifndef KV_REFERENCE_CUDA_KERNELS_H
#define KV_REFERENCE_CUDA_KERNELS_H

#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t KvBf16; /* the upper half of a float's bits */

/* Layers that one launch takes at most, where a finished prompt's layers go together. */
#define KV_CUDA_TOGETHER 32

/* --- norm.cu ------------------------------------------------------------------------------- */

/* out[R][D] = x / rms(x) * weight[D]. */
cudaError_t kv_cuda_rms_norm(KvBf16 *out, const float *x, const KvBf16 *weight, float epsilon,
                             uint32_t rows, uint32_t width, cudaStream_t stream);
/* out[R][D] = (x - mean(x)) / deviation(x) * weight[D] + bias[D]. */
cudaError_t kv_cuda_layer_norm(KvBf16 *out, const float *x, const KvBf16 *weight,
                               const KvBf16 *bias, float epsilon, uint32_t rows, uint32_t width,
                               cudaStream_t stream);

/* --- embedding.cu -------------------------------------------------------------------------- */

/* x[R][D] = embedding[tokens[R]][D] + learned[positions[R]][D]; `learned` may be NULL. */
cudaError_t kv_cuda_embed(float *x, const uint32_t *tokens, const uint32_t *positions,
                          const KvBf16 *embedding, const KvBf16 *learned, uint32_t rows,
                          uint32_t width, cudaStream_t stream);
/* out[S][D] = x[rows[S]][D]. */
cudaError_t kv_cuda_gather_rows(float *out, const float *x, const uint32_t *rows, uint32_t count,
                                uint32_t width, cudaStream_t stream);
/* Every element uniform in mean +- reach: a function of (seed, its index). */
cudaError_t kv_cuda_fill_random(KvBf16 *out, uint64_t n, float mean, float reach, uint64_t seed,
                                cudaStream_t stream);

/* --- activation.cu ------------------------------------------------------------------------- */

typedef enum { KV_CUDA_RELU, KV_CUDA_GELU } KvCudaActivation;

/* out[R][E] = silu(gate_up[R][0 .. E-1]) * gate_up[R][E .. 2E-1]. */
cudaError_t kv_cuda_swiglu(KvBf16 *out, const KvBf16 *gate_up, uint32_t rows, uint32_t width,
                           cudaStream_t stream);
/* x[n] in place; GELU is the one with erf. */
cudaError_t kv_cuda_activate(KvBf16 *x, uint64_t n, KvCudaActivation activation,
                             cudaStream_t stream);

/* x[R][N] += bias[N]. */
cudaError_t kv_cuda_add_bias(float *x, const KvBf16 *bias, uint32_t rows, uint32_t width,
                             cudaStream_t stream);

/* --- sampling.cu --------------------------------------------------------------------------- */

/* out[S] = index of the largest of logits[S][V]; the lowest such index. */
cudaError_t kv_cuda_argmax(uint32_t *out, const float *logits, uint32_t count, uint32_t vocab,
                           cudaStream_t stream);

/* --- the paged cache: rotary.cu writes it, attention_*.cu read it ---------------------------- */

/* One layer's keys and values: block b's keys [Hkv][block_tokens][d] stand at
 * pool + b * block_elements, its values value_offset elements later. */
typedef struct {
  KvBf16 *pool;
  uint64_t block_elements, value_offset;
  uint32_t block_shift; /* block_tokens = 1 << block_shift */
  uint32_t n_kv_heads, head_dim;
} KvCudaPages;

/* Sequence s's block table is table[table_starts[s]] ... */
typedef struct {
  const uint32_t *table, *table_starts;
} KvCudaTables;

/* qkv[R][H + 2 Hkv][d]: normalize each query and key head (norm weights [d], or NULL), turn it by
 * its position's angles (angles[position][d/2] of cosine and sine, or NULL), leave queries in
 * place, store keys and values in the cache, or leave them in place too where pages->pool is NULL.
 * Row r belongs to sequence row_sequences[r]; rows of sequence UINT32_MAX are skipped. */
cudaError_t kv_cuda_rotate_and_store(KvBf16 *qkv, const KvCudaPages *pages,
                                     const KvCudaTables *tables, const uint32_t *row_sequences,
                                     const uint32_t *positions, const float2 *angles,
                                     const KvBf16 *query_norm, const KvBf16 *key_norm,
                                     float epsilon, uint32_t rows, uint32_t n_heads,
                                     cudaStream_t stream);

/* --- attention_decode.cu ------------------------------------------------------------------- */

/* One query a sequence. Query s stands at q + s * row_stride elements, [H][d]; contexts[s] tokens
 * of its table are attended to (the last `window` of them if not 0); 0: none, and out is zero.
 * out[S][H][d]. The context is cut into pieces of *split_tokens (device memory, so that a captured
 * launch can serve other contexts; a multiple of KV_CUDA_SPLIT_UNIT), at most max_splits of them:
 * max_splits * *split_tokens must cover the longest context. Of the cache, only the last token of a
 * context may be written by the kernel before this one on the stream. counters: S * H numbers, zero
 * at first and left so. scratch: kv_cuda_decode_scratch_bytes(). d is 64, 80, 96 or 128. */
#define KV_CUDA_SPLIT_UNIT 64
cudaError_t kv_cuda_decode_attention(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                     const KvCudaPages *pages, const KvCudaTables *tables,
                                     const uint32_t *contexts, uint32_t sequences, uint32_t n_heads,
                                     uint32_t window, const uint32_t *split_tokens,
                                     uint32_t max_splits, uint32_t *counters, void *scratch,
                                     cudaStream_t stream);
uint64_t kv_cuda_decode_scratch_bytes(uint32_t sequences, uint32_t n_heads, uint32_t head_dim,
                                      uint32_t max_splits);
/* Pieces that fill a GPU of `multiprocessors` with `sequences` equal contexts. */
uint32_t kv_cuda_decode_max_splits(uint32_t sequences, uint32_t n_kv_heads,
                                   uint32_t multiprocessors);

/* --- attention_shared.cu: tokens that several sequences have in common ------------------------ */

#define KV_CUDA_SHARED_ROWS 64 /* (sequence, head) pairs of a tile */
#define KV_CUDA_SHARED_UNIT 64 /* tokens of which pieces are best a multiple */

/* Queries of several sequences over a piece of context that stands in the same blocks of all. */
typedef struct {
  uint32_t table;          /* word of the tables where the block ids of one of them begin */
  uint32_t begin, end;     /* tokens, at least one */
  uint32_t first, members; /* sequences members[first] ..; at most
                              kv_cuda_shared_tile_members() */
  uint32_t part;           /* of each of these sequences' parts, which one this is */
} KvCudaSharedTile;

/* The shared tokens of a step, in device memory, so that a captured launch can serve others: only
 * most_tiles and most_parts, of which fewer may be used, are fixed. */
typedef struct {
  const KvCudaSharedTile *tiles;
  const uint32_t *n_tiles; /* [1] */
  const uint32_t *members;
  const uint32_t *first_tokens; /* [S]: leading tokens of a sequence that its parts cover */
  const uint32_t *part_starts;  /* [S + 1]: part i of sequence s is part_starts[s] + i of all */
  uint32_t most_tiles, most_parts;
  void *scratch; /* kv_cuda_shared_scratch_bytes(most_parts, ...): the parts of a layer */
} KvCudaShared;

/* The tiles of one layer, into the scratch; q as of decode attention. Nothing of the tiles' context
 * may be written by the kernel before this one on the stream. */
cudaError_t kv_cuda_shared_attention(const KvCudaShared *shared, const KvBf16 *q,
                                     uint64_t row_stride, const KvCudaPages *pages,
                                     const uint32_t *table, uint32_t n_heads, cudaStream_t stream);
/* As kv_cuda_decode_attention() without a window, over the tokens after the first first_tokens[s]
 * of each context, of which at least one must be there where there is a context; the parts are
 * merged with them. max_splits * *split_tokens must cover the longest rest, counted from a multiple
 * of 16. */
cudaError_t kv_cuda_decode_attention_shared(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                            const KvCudaPages *pages, const KvCudaTables *tables,
                                            const uint32_t *contexts, uint32_t sequences,
                                            uint32_t n_heads, const KvCudaShared *shared,
                                            const uint32_t *split_tokens, uint32_t max_splits,
                                            uint32_t *counters, void *scratch, cudaStream_t stream);
uint64_t kv_cuda_shared_scratch_bytes(uint32_t parts, uint32_t n_heads, uint32_t head_dim);
/* Sequences that one tile may hold: all query heads of a KV head share it. */
uint32_t kv_cuda_shared_tile_members(uint32_t n_heads, uint32_t n_kv_heads);

/* --- packing.cu: caches of fewer bits -------------------------------------------------------- */

/* One layer's packed cache. Block b starts at pool + b * block_bytes: key codes
 * [Hkv][block_tokens][d], key scales [Hkv][block_tokens / group][scale, minimum][d] in fp16, value
 * codes like the keys', value scales [Hkv][block_tokens][d / group][scale, minimum] in fp16. bits
 * is 2 or 4; or 8: e4m3 without scales. What kivi has not packed stands in a ring of each sequence,
 * fp16, position i at i % ring_tokens: ring + slot * ring_elements, keys [Hkv][ring_tokens][d],
 * then values. d is 64 or 128, block_tokens a multiple of group. */
typedef struct {
  uint8_t *pool;
  uint64_t block_bytes, key_scales, values, value_scales;
  uint16_t *ring;
  uint64_t ring_elements;
  uint32_t ring_tokens, residual; /* residual: R, less than ring_tokens */
  uint32_t bits, group;
  uint32_t block_shift, n_kv_heads, head_dim;
} KvCudaPacked;

/* Fill the sizes and offsets: bits, group, residual, block_shift, n_kv_heads and head_dim are set.
 */
void kv_cuda_packed_lay_out(KvCudaPacked *packed);

/* Store the keys and values of qkv[R][H + 2 Hkv][d] as they are, row r in slot slots[r] of sequence
 * row_sequences[r]; rows of sequence UINT32_MAX are skipped. */
cudaError_t kv_cuda_store(const KvBf16 *qkv, const KvCudaPages *pages, const KvCudaTables *tables,
                          const uint32_t *row_sequences, const uint32_t *slots, uint32_t rows,
                          uint32_t n_heads, cudaStream_t stream);
/* The same in e4m3. */
cudaError_t kv_cuda_store_fp8(const KvBf16 *qkv, const KvCudaPacked *packed,
                              const KvCudaTables *tables, const uint32_t *row_sequences,
                              const uint32_t *slots, uint32_t rows, uint32_t n_heads,
                              cudaStream_t stream);
/* Widen e4m3 blocks from[i] into bf16 blocks i of `pages`, i < n. */
cudaError_t kv_cuda_widen_fp8(const KvCudaPages *pages, const KvCudaPacked *packed,
                              const uint32_t *from, uint32_t n, cudaStream_t stream);
/* A prompt of n tokens is done, exact in `pages` under `exact_table`: pack what kivi packs of it
 * into the blocks of `table`, the rest goes to the ring `slot`. Of each of the layers packed[l] and
 * pages[l], in host memory, which differ at most in their heads and where they stand; up to
 * KV_CUDA_TOGETHER of the same heads are one launch. */
cudaError_t kv_cuda_kivi_pack(const KvCudaPacked *packed, const uint32_t *table,
                              const KvCudaPages *pages, const uint32_t *exact_table, uint32_t slot,
                              uint32_t n, uint32_t n_layers, cudaStream_t stream);
/* Row r of qkv is the token at contexts[r] - 1 of sequence r: it enters ring slots[r], and what it
 * pushes out is packed. Contexts of 0 are skipped. */
cudaError_t kv_cuda_kivi_append(const KvBf16 *qkv, const KvCudaPacked *packed,
                                const KvCudaTables *tables, const uint32_t *slots,
                                const uint32_t *contexts, uint32_t rows, uint32_t n_heads,
                                cudaStream_t stream);

/* --- attention_packed.cu --------------------------------------------------------------------- */

/* As kv_cuda_decode_attention() with the same scratch and counters; `slots` [S] are the rings (NULL
 * for e4m3). Codes are widened in registers, products are fp16. */
cudaError_t kv_cuda_decode_attention_packed(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                            const KvCudaPacked *packed, const KvCudaTables *tables,
                                            const uint32_t *slots, const uint32_t *contexts,
                                            uint32_t sequences, uint32_t n_heads, uint32_t window,
                                            const uint32_t *split_tokens, uint32_t max_splits,
                                            uint32_t *counters, void *scratch, cudaStream_t stream);

/* --- selection.cu: a prompt cut to its most wanted tokens ------------------------------------- */

/* A layer of a prompt that is cut. */
typedef struct {
  const KvBf16 *q; /* [window][H][d]: the prompt's last queries */
  KvBf16 *pool;    /* of its blocks, under `table` */
  KvBf16 *to;      /* of the blocks that its kept tokens go to, under `to_table` */
  const uint32_t *table, *to_table;
  uint32_t budget; /* tokens that each KV head keeps */
} KvCudaCutLayer;

/* Layers that differ in nothing else, in host memory. Tokens prompt .. tokens - 1 follow the prompt
 * and stay; `most` is the largest budget. */
typedef struct {
  KvCudaCutLayer layers[KV_CUDA_TOGETHER];
  KvCudaPages pages; /* without a pool */
  uint32_t n_layers, n_heads, prompt, tokens, window, most;
} KvCudaCut;

/* votes[layers][Hkv][prompt - window]: attention of the window's queries on each earlier token,
 * summed over queries and the heads of a group. scratch: kv_cuda_vote_scratch_bytes(). d is 64, 80,
 * 96 or 128. */
cudaError_t kv_cuda_vote(float *votes, const KvCudaCut *cut, void *scratch, cudaStream_t stream);
uint64_t kv_cuda_vote_scratch_bytes(uint32_t n_layers, uint32_t n_heads, uint32_t window);
/* kept[layers][Hkv][most], of which a layer's budget is filled, ascending: the budget - window best
 * of the votes, pooled over `kernel` (mean, or the largest), of equals the lowest; then the window.
 * pooled: room for as many floats as votes. */
cudaError_t kv_cuda_select(uint32_t *kept, const float *votes, void *pooled, const KvCudaCut *cut,
                           uint32_t kernel, int largest, cudaStream_t stream);
/* Bring each head's kept tokens to its first slots, and those after the prompt behind them. rows:
 * of each layer 2 Hkv (most + tokens - prompt) d elements. First gathered, which changes nothing,
 * then scattered; the layers' queries are not looked at. d is a multiple of 8. */
cudaError_t kv_cuda_gather_kept(KvBf16 *rows, const KvCudaCut *cut, const uint32_t *kept,
                                cudaStream_t stream);
cudaError_t kv_cuda_scatter_kept(const KvCudaCut *cut, const KvBf16 *rows, cudaStream_t stream);

/* quest: behind the values of each block stand the least and the greatest key of each channel,
 * [Hkv][2][d], so block_elements is 2 Hkv d more. Bring up to date the pages (blocks) that the rows
 * wrote to, row r in slot slots[r]; rows of a sequence are together, in order. */
cudaError_t kv_cuda_summarize(const KvCudaPages *pages, const KvCudaTables *tables,
                              const uint32_t *row_sequences, const uint32_t *slots, uint32_t rows,
                              cudaStream_t stream);
/* For each sequence and KV head, the last page and those with the greatest bounds, `chosen`
 * together (2 to 1024), or all: chosen_table[S][Hkv][chosen], and the tokens in them,
 * chosen_contexts[S][Hkv]. They address that head's part of a block as a block of its own: decode
 * attention with S Hkv sequences, one KV head, H / Hkv heads, and block_elements = d.
 * bounds[S][Hkv][most], for contexts of at most `most` pages. */
cudaError_t kv_cuda_choose_pages(uint32_t *chosen_table, uint32_t *chosen_contexts, float *bounds,
                                 const KvBf16 *q, uint64_t row_stride, const KvCudaPages *pages,
                                 const KvCudaTables *tables, const uint32_t *contexts,
                                 uint32_t sequences, uint32_t n_heads, uint32_t chosen,
                                 uint32_t most, cudaStream_t stream);

/* --- eviction.cu: a token out for each one in (h2o) ------------------------------------------- */

/* Attention of a chunk's `tokens` queries at positions past .. on each token of their context
 * through `table`, summed over queries and the heads of a group: out[Hkv][stride], added to in[][]
 * of the tokens before `past`; in is not out. Query t stands at q + t * row_stride, [H][d].
 * scratch: kv_cuda_sum_attention_scratch_bytes(). d is 64, 80, 96 or 128. */
cudaError_t kv_cuda_sum_attention(float *out, const float *in, uint64_t stride, const KvBf16 *q,
                                  uint64_t row_stride, const KvCudaPages *pages,
                                  const uint32_t *table, uint32_t past, uint32_t tokens,
                                  uint32_t n_heads, void *scratch, cudaStream_t stream);
uint64_t kv_cuda_sum_attention_scratch_bytes(uint32_t past, uint32_t tokens, uint32_t n_heads);
/* Of each of `rows` KV heads, of a layer or of several, kept[rows][slots], ascending: of n tokens
 * with scores[rows][stride] the slots - recent best of all but the last `recent`, of equals the
 * lowest; then those. */
cudaError_t kv_cuda_h2o_select(uint32_t *kept, const float *scores, uint64_t stride, uint32_t n,
                               uint32_t slots, uint32_t recent, uint32_t rows, cudaStream_t stream);

/* A sequence's slots, of which `recent` belong to the last tokens, and the position of the token
 * that comes. words: rows (a head of a layer) of KV_CUDA_SLOT_WORDS(slots): scores, positions
 * (UINT32_MAX: none), and the context whose last token's attention is in the scores. */
typedef struct {
  uint32_t *words;
  uint32_t slots, recent, position;
} KvCudaSlots;
#define KV_CUDA_SLOT_WORDS(slots) (2 * (uint64_t)(slots) + 1)

/* The rows from first_row on of the prompt's n tokens with scores[rows][stride]: kept[rows][slots]
 * of them, or all if `kept` is NULL. `slots` is in host memory. */
cudaError_t kv_cuda_h2o_fill(const KvCudaSlots *slots, uint32_t first_row, const float *scores,
                             uint64_t stride, const uint32_t *kept, uint32_t n, uint32_t rows,
                             cudaStream_t stream);
/* Row s of qkv is the next token of sequence s: its keys and values go to a slot of their own in
 * each head, whose token leaves. Contexts of 0 are skipped. slots[S]. To run it again changes
 * nothing, nor does kv_cuda_h2o_score(). */
cudaError_t kv_cuda_h2o_store(const KvBf16 *qkv, const KvCudaPages *pages,
                              const KvCudaTables *tables, const uint32_t *contexts,
                              const KvCudaSlots *slots, uint32_t first_row, uint32_t sequences,
                              uint32_t n_heads, cudaStream_t stream);
/* Add the attention of the tokens' queries on the contexts[s] slots that are held. Query s stands
 * at q + s * row_stride, [H][d]. scratch[S][H][most], for at most so many slots. */
cudaError_t kv_cuda_h2o_score(const KvCudaSlots *slots, uint32_t first_row, float *scratch,
                              const KvBf16 *q, uint64_t row_stride, const KvCudaPages *pages,
                              const KvCudaTables *tables, const uint32_t *contexts,
                              uint32_t sequences, uint32_t n_heads, uint32_t most,
                              cudaStream_t stream);

/* --- pyramid.cu: blocks whose parts belong to other layers (pyramidkv) -------------------------
 */

/* reference/host/pyramid.h on the GPU. All layers' pools are one: layer l's part of block b is
 * block l * blocks + b of it. parts are (place in a sequence's table, layer). */
typedef struct {
  const uint2 *parts;
  const uint32_t *starts, *whole; /* [L] */
  uint32_t n_layers, whole_mean, block_shift, blocks;
} KvCudaPyramid;

/* Of each layer and sequence, for as many `sequences` and at most `room` blocks of each. */
typedef struct {
  uint32_t *table;        /* [L][sequences][room] */
  uint32_t *contexts;     /* [L][sequences] */
  uint32_t *split_tokens; /* [L]: as kv_cuda_decode_attention() needs it */
  uint32_t sequences, room;
} KvCudaLayerTables;

/* Fill them from the engine's tables, and contexts that count the mean's slots; applies[S]: whether
 * a sequence has a pyramid or the mean in all layers. Not for the next kernel on the stream, but
 * for those after it. */
cudaError_t kv_cuda_pyramid_tables(const KvCudaLayerTables *out, const KvCudaPyramid *pyramid,
                                   const KvCudaTables *tables, const uint32_t *contexts,
                                   const uint32_t *applies, uint32_t sequences,
                                   const uint32_t *split_tokens, uint32_t max_splits,
                                   cudaStream_t stream);

/* --- attention_prefill.cu ------------------------------------------------------------------ */

/* A tile of one sequence's queries: tokens first .. first + count - 1 of its chunk. */
typedef struct {
  uint32_t sequence; /* of the tables */
  uint32_t row;      /* of the tile's first token in q and out */
  uint32_t position; /* of that token in its sequence: it sees position + 1 tokens */
  uint32_t count;    /* tokens, at most kv_cuda_prefill_tile_tokens() */
} KvCudaTile;

/* Causal attention of the tiles' queries over the cache, their own tokens included; each sees the
 * last `window` positions (0: all). q + row * row_stride: [H][d]; out[R][H][d]. Heaviest tiles
 * first balances best. */
cudaError_t kv_cuda_prefill_attention(KvBf16 *out, const KvBf16 *q, uint64_t row_stride,
                                      const KvCudaPages *pages, const KvCudaTables *tables,
                                      const KvCudaTile *tiles, uint32_t n_tiles, uint32_t n_heads,
                                      uint32_t window, cudaStream_t stream);
/* Tokens that one tile may hold: all query heads of a KV head share it. */
uint32_t kv_cuda_prefill_tile_tokens(uint32_t n_heads, uint32_t n_kv_heads);

/* --- recurrent.cu: Mamba blocks ----------------------------------------------------------------
 */

/* One layer's states, fp32: state i stands at pool + i * floats, the last conv_width - 1 inputs of
 * the convolution, oldest first, [conv_width - 1][I], then [I][N]. Sequence s continues state
 * from[s] (UINT32_MAX: it begins) and leaves its own in to[s], which nobody reads. I is a multiple
 * of 8, N a power of two from 4 to 128, conv_width 2 to 4, floats a multiple of 4. */
typedef struct {
  float *pool;
  uint64_t floats;
  uint32_t inner, state_dim, conv_width;
  const uint32_t *from, *to;
} KvCudaStates;

/* out[R][I] = silu(bias + sum over the last conv_width inputs, weight[I][conv_width]); row r, the
 * places[r]-th of its span, has its input at x + r * stride (a multiple of 8), and belongs to
 * sequence row_sequences[r], whose rows are together, in order. Rows of sequence UINT32_MAX become
 * zero. bias may be NULL. */
cudaError_t kv_cuda_causal_convolution(KvBf16 *out, const KvBf16 *x, uint64_t stride,
                                       const KvBf16 *weight, const KvBf16 *bias,
                                       const KvCudaStates *states, const uint32_t *row_sequences,
                                       const uint32_t *places, uint32_t rows, cudaStream_t stream);
/* Of each span (sequence, row and count of it; NULL: span s is row s of sequence s), token by
 * token and channel by channel, with step = softplus(delta + bias): h = exp(-step exp(decay)) h +
 * step B x and out = (sum of C h + skip x) silu(gate). out, x[R][I], delta[R][I]; row r's B[N] and
 * C[N] at bc + r * 2 N, its gate [I] at gate + r * gate_stride; decay[I][N]; bias, skip [I]. A row
 * whose sequence leaves its state in UINT32_MAX becomes zero. */
cudaError_t kv_cuda_selective_scan(KvBf16 *out, const KvBf16 *x, const KvBf16 *gate,
                                   uint64_t gate_stride, const float *delta, const KvBf16 *bias,
                                   const float *bc, const KvBf16 *decay, const KvBf16 *skip,
                                   const KvCudaStates *states, const KvCudaTile *spans,
                                   uint32_t n_spans, cudaStream_t stream);
/* --- grouped.cu: products with a matrix of each group ---------------------------------------- */

/* Rows first .. first + count - 1 of a group. */
typedef struct {
  uint32_t group, first, count;
} KvCudaGroupTile;

/* out[r][N] = x[r][K] . weight[group][N][K] for the rows of each tile, K and N multiples of 8. Row
 * r stands at x + r * x_stride + group * x_group, or instead of r at x_rows[r]; in `out` likewise,
 * always at r. With tiles, *n_tiles of them in device memory, at most most_tiles, of at most
 * tile_rows rows; without (NULL), rows 0 .. rows - 1 of each of the groups. tile_rows is
 * kv_cuda_grouped_tile_rows(). Strides are multiples of 8. */
typedef struct {
  KvBf16 *out;
  const KvBf16 *x, *weight;
  uint64_t x_stride, x_group, out_stride, out_group;
  const uint32_t *x_rows;
  uint32_t inputs, outputs, groups, rows, tile_rows;
  const KvCudaGroupTile *tiles;
  const uint32_t *n_tiles;
  uint32_t most_tiles;
} KvCudaGrouped;
cudaError_t kv_cuda_grouped_product(const KvCudaGrouped *product, cudaStream_t stream);
/* Rows of a tile where `rows` rows are spread over the groups. */
uint32_t kv_cuda_grouped_tile_rows(uint64_t rows, uint32_t groups);

/* --- attention_latent.cu: latents of 512 numbers and rotated keys of 64 ----------------------- */

#define KV_CUDA_LATENT_RANK 512
#define KV_CUDA_LATENT_ROPE 64
#define KV_CUDA_LATENT_WIDTH (KV_CUDA_LATENT_RANK + KV_CUDA_LATENT_ROPE)

/* up[H][nope + value][512] as its two parts: keys[H][512][nope], values[H][value][512]. */
cudaError_t kv_cuda_split_latent_up(KvBf16 *keys, KvBf16 *values, const KvBf16 *up,
                                    uint32_t n_heads, uint32_t nope, uint32_t value,
                                    cudaStream_t stream);
/* out[R][width] = x / rms(x) * weight, of rows x_stride elements apart; width a multiple of 2. */
cudaError_t kv_cuda_norm_rows(KvBf16 *out, const KvBf16 *x, uint64_t x_stride, const KvBf16 *weight,
                              float epsilon, uint32_t rows, uint32_t width, cudaStream_t stream);
/* Of row r: normalize latents[r * latent_stride], 512 numbers, turn the 64 after them, and store
 * both in the cache (pages of one head of 576, no values); turn the last 64 of each query head
 * q[r * q_stride][H][nope + 64] into absorbed[R][H][576], whose first 512 stay. Elements 2i and
 * 2i + 1 turn by angles[position][i]. Rows of sequence UINT32_MAX are skipped. */
cudaError_t kv_cuda_latent_store(KvBf16 *absorbed, const KvBf16 *q, uint64_t q_stride,
                                 const KvBf16 *latents, uint64_t latent_stride,
                                 const KvCudaPages *pages, const KvCudaTables *tables,
                                 const uint32_t *row_sequences, const uint32_t *positions,
                                 const float2 *angles, const KvBf16 *norm, float epsilon,
                                 uint32_t rows, uint32_t n_heads, uint32_t nope,
                                 cudaStream_t stream);
/* Attention of absorbed queries q[R][H][576] over latents: out[R][H][512]. Scores are multiplied by
 * `scale`. Prefill: as kv_cuda_prefill_attention(), tiles of kv_cuda_latent_tile_tokens(). Decode:
 * as kv_cuda_decode_attention(), without counters; scratch is kv_cuda_decode_scratch_bytes() of
 * heads of 512. */
cudaError_t kv_cuda_latent_prefill(KvBf16 *out, const KvBf16 *q, const KvCudaPages *pages,
                                   const KvCudaTables *tables, const KvCudaTile *tiles,
                                   uint32_t n_tiles, uint32_t n_heads, float scale,
                                   cudaStream_t stream);
cudaError_t kv_cuda_latent_decode(KvBf16 *out, const KvBf16 *q, const KvCudaPages *pages,
                                  const KvCudaTables *tables, const uint32_t *contexts,
                                  uint32_t sequences, uint32_t n_heads, float scale,
                                  const uint32_t *split_tokens, uint32_t max_splits, void *scratch,
                                  cudaStream_t stream);
uint32_t kv_cuda_latent_tile_tokens(uint32_t n_heads);
/* Pieces that fill a GPU of `multiprocessors` with `sequences` equal contexts. */
uint32_t kv_cuda_latent_max_splits(uint32_t sequences, uint32_t n_heads, uint32_t multiprocessors);

/* --- experts.cu ---------------------------------------------------------------------------- */

#define KV_CUDA_MOST_EXPERTS 1024

/* As kv_host_route(), of each row of logits[R][X]: experts[R][k] and shares[R][k]. Rows of sequence
 * UINT32_MAX get no expert, which is UINT32_MAX. */
cudaError_t kv_cuda_route(uint32_t *experts, float *shares, const float *logits,
                          const uint32_t *row_sequences, uint32_t rows, uint32_t n_experts,
                          uint32_t chosen, int normalized, float scale, uint32_t groups,
                          uint32_t groups_kept, cudaStream_t stream);
/* Give every (row, choice) of experts[R][k] a place beside those of the same expert: places[R][k]
 * (UINT32_MAX of no expert), of each place its row, and the tiles of tile_rows places. */
cudaError_t kv_cuda_sort_by_expert(uint32_t *places, uint32_t *place_rows, KvCudaGroupTile *tiles,
                                   uint32_t *n_tiles, const uint32_t *experts, uint32_t rows,
                                   uint32_t n_experts, uint32_t chosen, uint32_t tile_rows,
                                   cudaStream_t stream);
/* Tiles at most. */
uint32_t kv_cuda_most_expert_tiles(uint32_t rows, uint32_t n_experts, uint32_t chosen,
                                   uint32_t tile_rows);
/* x[R][D] += the sum of shares[R][k] * mixed[places[R][k]][D]; D a multiple of 4. */
cudaError_t kv_cuda_combine_experts(float *x, const KvBf16 *mixed, const uint32_t *places,
                                    const float *shares, uint32_t rows, uint32_t width,
                                    uint32_t chosen, cudaStream_t stream);

/* --- gemv.cu ------------------------------------------------------------------------------- */

#define KV_CUDA_GEMV_MAX_ROWS 4

/* y[R][N] = x[R][K] . weight[N][K] + bias[N] (NULL for none), for R <= KV_CUDA_GEMV_MAX_ROWS and K
 * a multiple of 8: every weight is read once. `out` is bf16; or fp32 if `out_f32`, and then added
 * to what is there if `accumulate`. */
cudaError_t kv_cuda_gemv(void *out, int out_f32, int accumulate, const KvBf16 *x,
                         const KvBf16 *weight, const KvBf16 *bias, uint32_t rows, uint32_t inputs,
                         uint32_t outputs, cudaStream_t stream);

/* --- blocks.cu ----------------------------------------------------------------------------- */

/* Copy block from[i] to to[i], i < n, of every layer: layer l's pool starts at pools[l], and its
 * blocks have block_bytes[l] bytes (a multiple of 16). from, to, pools and block_bytes are in
 * device memory. No block may be both a source and a target. */
cudaError_t kv_cuda_copy_blocks(char *const *pools, const uint64_t *block_bytes, uint32_t n_layers,
                                const uint32_t *from, const uint32_t *to, uint32_t n,
                                cudaStream_t stream);

/* A copy of `bytes` (a multiple of 16); either end may be pinned host memory. */
typedef struct {
  void *to;
  const void *from;
  uint64_t bytes;
} KvCudaPiece;

/* Make n copies in any order; pieces is in device memory. */
cudaError_t kv_cuda_copy_pieces(const KvCudaPiece *pieces, uint32_t n, cudaStream_t stream);

/* --- streaming.cu: caches in host memory, brought to the GPU a layer at a time ---------------- */

/* A block on its way: its index in pinned host memory, and its place in a staging area. */
typedef struct {
  uint32_t home, place;
} KvCudaStaged;

/* Copy n blocks of `bytes` (a multiple of 16): to[place] = from[home], or if `back` to[home] =
 * from[place]. Only `groups` thread blocks do it, so that other kernels run beside. */
cudaError_t kv_cuda_copy_staged(char *to, const char *from, const KvCudaStaged *staged, uint32_t n,
                                uint64_t bytes, int back, uint32_t groups, cudaStream_t stream);
/* out[n] = in[n], but `shift` more where that is `first` or more. */
cudaError_t kv_cuda_shift_table(uint32_t *out, const uint32_t *in, uint32_t n, uint32_t first,
                                uint32_t shift, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
