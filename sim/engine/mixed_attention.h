/* Decoding sequences in the same attention launch as prompt chunks.
 *
 * A launch over sequences of different query lengths takes the tile of the longest. What a decoding
 * sequence, whose queries are one row, costs then depends on the library:
 *
 *   apart     decodes have a launch of their own (TensorRT-LLM's kernels, FlashInfer): as in a pure
 *             decode step
 *   packed    the query heads of a KV head share a tile of 128 rows (FlashAttention-3, which always
 *             packs where query lengths vary)
 *   unpacked  every query head has a tile of 64 rows of its own (FlashAttention-2, which packs
 * heads only where the longest query is one row). Its thread blocks go through the whole batch one
 * head after the other, so the heads of a group read the same cache from L2 if that KV head's cache
 * of the whole batch fits there, and from memory if not
 *
 * Which it is follows from the GPU's generation, as vLLM picks its backend by it. The context is
 * not split. On vLLM 0.19's kernels of an RTX PRO 6000 (Llama-3.1-8B, 128 decodes beside 16 prompt
 * tokens) this meets 380 to 21,000 us from 512 to 16,384 tokens of context within a tenth.
 */
#ifndef KV_SIM_ENGINE_MIXED_ATTENTION_H
#define KV_SIM_ENGINE_MIXED_ATTENTION_H

#include "models/hardware/hardware.h"

typedef enum { KV_MIXED_APART, KV_MIXED_PACKED, KV_MIXED_UNPACKED } KvMixedAttention;

KvMixedAttention kv_mixed_attention_of(const KvDevice *device);

/* One layer's decode part, `flops` (4 H d for each token read) and `read_bytes` of cache over the
 * batch; `group` query heads a KV head, of which the GPU has n_kv_heads. */
double kv_mixed_attention_seconds(const KvDevice *device, KvMixedAttention kind, KvDtype format,
                                  double read_bytes, double flops, double n_kv_heads, double group);

#endif
