/* Sequences that do not run for a while: paused by a scheduler, swapped out beside the steps, or
 * waiting for an API call to return; and what these share with sim/engine/instance.c.
 *
 * A paused sequence holds its blocks and can go on at any decision. One that a scheduler swaps out
 * beside the steps gives its blocks back at once; a batch that cannot do without them before the
 * copy is over waits for it. An API call begins when the token before it comes out. Its cache is
 * then preserved, discarded or copied to the host; when the call returns the request is at the end
 * of the queue, with what came back as more prompt to compute. A cache on the host is brought back
 * as soon as there is room; if there is none when the request's turn comes, it is recomputed.
 */
#ifndef KV_SIM_ENGINE_PARK_H
#define KV_SIM_ENGINE_PARK_H

#include "sim/engine/instance.h"

void kv_queue_push_tail(KvQueue *queue, KvSequence *sequence);
void kv_queue_push_head(KvQueue *queue, KvSequence *sequence);
void kv_queue_remove(KvQueue *queue, KvSequence *sequence);

/* For schedulers. */

/* A decoding sequence stops, and keeps its blocks. */
void kv_instance_pause(KvInstance *instance, KvSequence *sequence);
/* It decodes again in this batch, which waits for its copy if that is not over. */
void kv_instance_resume(KvInstance *instance, KvBatch *batch, KvSequence *sequence);
/* A paused sequence's cache goes to the host beside the steps; FALSE if there is no room for it. */
gboolean kv_instance_swap_out(KvInstance *instance, KvSequence *sequence);
/* A swapped sequence's cache comes back beside the steps; it is then paused. The room must be
 * there.
 */
void kv_instance_swap_in_ahead(KvInstance *instance, KvSequence *sequence);
/* The batch takes `blocks` blocks that were free when it was decided on: it waits for what is still
 * being copied out of them. */
void kv_instance_await_room(KvInstance *instance, KvBatch *batch, guint64 blocks);
/* Give up a paused sequence's cache: it is computed again. */
void kv_instance_drop_paused(KvInstance *instance, KvBatch *batch, KvSequence *sequence);

/* What the executor expects of one prompt chunk alone, and of a copy alone; 0 where it measures. */
double kv_instance_prefill_seconds(const KvInstance *instance, guint32 past, guint32 tokens);
double kv_instance_copy_seconds(const KvInstance *instance, KvTier from, KvTier to, guint64 blocks);

/* Sequences whose call has preserved their cache, in order of return: the next after `after` (NULL:
 * the first), or NULL. */
KvSequence *kv_instance_next_preserved(const KvInstance *instance, const KvSequence *after);
/* Discard such a cache after all. */
void kv_instance_discard(KvInstance *instance, KvSequence *sequence);

/* For sim/engine/instance.c. */
void kv_instance_begin_call(KvInstance *instance, KvSequence *sequence, double now);
double kv_instance_next_return(const KvInstance *instance);
void kv_instance_take_returns(KvInstance *instance);
void kv_instance_load_back(KvInstance *instance);
void kv_instance_loaded_back(KvInstance *instance, KvSequence *sequence);
void kv_instance_begin_copy(KvInstance *instance, const KvCopy *copy);

void kv_instance_join_decode(KvInstance *instance, KvSequence *sequence);
void kv_instance_leave_decode(KvInstance *instance, KvSequence *sequence);
void kv_instance_give_back(KvInstance *instance, KvSequence *sequence, gboolean keep);
/* Copy a sequence's blocks to or from the host and return when that is done, if nothing else is
 * copied. */
double kv_instance_swap(KvInstance *instance, KvSequence *sequence, guint64 blocks, gboolean out);
void kv_instance_shorten_jump(KvInstance *instance, KvBatch *batch, double now, gboolean decided);

#endif
