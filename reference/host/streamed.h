/* A cache part of which lies in host memory, on the host executor: an array of its own, of which
 * blocks are brought to a staging area, the end of HBM's, for one layer at a time (staging.h).
 * What a format keeps of the cache begins with it; the functions are those of format.h.
 */
#ifndef KV_REFERENCE_HOST_STREAMED_H
#define KV_REFERENCE_HOST_STREAMED_H

#include "reference/host/cache.h"
#include "reference/host/staging.h"

typedef struct {
  KvHostStaging staging;
  float *away; /* [staging.away][block_floats] */
  /* Of the pass under way: its spans, and their own tables. */
  const KvHostSpan *spans;
  const guint32 **tables;
} KvHostStreamed;

/* With that share of the blocks in HBM. */
void kv_host_streamed_init(KvHostStreamed *streamed, const KvHostCache *cache, double share,
                           KvHostDecoding decoding);
void kv_host_streamed_clear(KvHostStreamed *streamed);

void kv_host_streamed_begin(KvHostCache *cache, KvHostSpan *spans, guint n);
void kv_host_streamed_end(KvHostCache *cache, KvHostSpan *spans, guint n);
void kv_host_streamed_enter(KvHostCache *cache, guint layer);
void kv_host_streamed_leave(KvHostCache *cache, guint layer);

/* A layer's blocks in host memory. Where none is resident, a block's id is its index there. */
KvHostPages kv_host_streamed_away(const KvHostCache *cache, guint layer);
/* The table of a span of the pass that leads to them. */
const guint32 *kv_host_streamed_table(const KvHostCache *cache, const KvHostSpan *span);

#endif
