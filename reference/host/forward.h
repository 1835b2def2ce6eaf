/* One forward pass of the transformer over the new tokens of several sequences, through a block
 * store.
 *
 * As on a GPU, the pass goes layer by layer over the whole batch: every token's keys and values of
 * a layer are stored before any attention of that layer, so a sequence may share blocks that
 * another writes in the same pass.
 */
#ifndef KV_REFERENCE_HOST_FORWARD_H
#define KV_REFERENCE_HOST_FORWARD_H

#include <glib.h>

#include "reference/host/cache.h"
#include "reference/host/weights.h"
#include "sim/engine/executor.h"

/* The new tokens of one sequence: a chunk of its prompt, or the one token that it decodes. */
typedef struct {
  const guint32 *block_table; /* covers past + n_tokens - dropped tokens; of a recurrent model: one
                                 block */
  const guint32 *tokens;      /* ids, [n_tokens] */
  guint32 past, n_tokens;
  guint32 dropped;       /* position i stands in slot i - dropped of the block table */
  guint32 prompt_tokens; /* of the sequence: for caches that are compressed when it is done */
  guint state; /* recurrent layers: of the two states in its block, which it continues (unless past
                  is 0); it leaves its own in the other */
  guint64 owner;     /* tells sequences apart */
  gboolean last;     /* it completes the prompt, or what a preemption lost */
  gboolean decoding; /* which component its attention counts as */
  gboolean sample;   /* the token after the last one is wanted */
  guint32 sampled;   /* out */
  float *logits;     /* out where not NULL, [V]: of the token after the last one */
} KvHostSpan;

/* What a pass took. Products and attention count their multiply-adds as two FLOPs; the rest counts
 * none. */
typedef struct {
  double flops[KV_N_COMPONENTS];
  double wall_seconds[KV_N_COMPONENTS];
  double bytes; /* weights once a pass, and the cache read and written */
} KvHostWork;

/* Run the pass, set `sampled` where asked, and add to *work. */
void kv_host_forward(const KvHostWeights *weights, KvHostCache *cache, KvHostSpan *spans,
                     guint n_spans, KvHostWork *work);

#endif
