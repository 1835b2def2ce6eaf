/* How the attention kernels that serving engines call divide their work, and the work of one call.
 *
 * A call is a set of blocks, each of which keeps one multiprocessor: a tile of query rows and a
 * head of a prompt chunk, or a decoding sequence and a head. Multiprocessors take blocks as they
 * become free, so a call lasts as long as all blocks' work shared out, or as its longest block, or
 * as its memory traffic, whatever is longest. Works add: prompt chunks and decoding sequences of
 * one variable-length call share the multiprocessors. Internal to models/kernels/ and the
 * executor.
 */
#ifndef KV_MODELS_KERNELS_ATTENTION_H
#define KV_MODELS_KERNELS_ATTENTION_H

#include "models/kernels/kernels.h"

/* What of a benchmark's operands is still in the second-level cache from the run before, and how
 * many times faster than memory that cache is. Serving reads every layer's cache once a step: none.
 */
typedef struct {
  double resident, l2_speedup;
} KvResidency;

KvCost kv_attention_decode(const KvDevice *device, KvDtype dtype, const KvDecodeAttention *operands,
                           KvResidency residency);

#endif
