/* The sequences of an instance that decode, one token each step, as a whole.
 *
 * Nothing here walks the set when time passes: a member knows the step count at which it joined,
 * the set carries sums (context, the plan's channels, slopes), counts of members by the phase at
 * which they need their next block, a heap of finish steps, and a heap of steps at which a member's
 * law bends. Moving k steps on costs O(1), joining and leaving O(log n).
 */
#ifndef KV_SIM_ENGINE_DECODE_SET_H
#define KV_SIM_ENGINE_DECODE_SET_H

#include <glib.h>

#include "sim/engine/demand.h"
#include "sim/engine/executor.h"

typedef struct KvDecodeSet KvDecodeSet;

KvDecodeSet *kv_decode_set_new(const KvPlanCurves *curves, const KvDemand *demand);
void kv_decode_set_free(KvDecodeSet *set);

guint64 kv_decode_set_size(const KvDecodeSet *set);
guint64 kv_decode_set_step(const KvDecodeSet *set); /* decode steps taken by the instance so far */

/* Tokens in the cache of a member (or of any sequence) now. */
guint32 kv_sequence_context(const KvSequence *sequence, const KvDecodeSet *set);
/* Tokens it has generated so far, those of steps taken counted. */
guint32 kv_sequence_emitted(const KvSequence *sequence, const KvDecodeSet *set);

/* The sequence has computed all of its target and emitted a token: let it decode until it has
 * emitted output_tokens. */
void kv_decode_set_join(KvDecodeSet *set, KvSequence *sequence);
/* Take a member out and settle its computed_tokens, emitted_tokens and private blocks. */
void kv_decode_set_leave(KvDecodeSet *set, KvSequence *sequence, guint64 node_blocks);

/* Steps until the first member has emitted its last token (>= 1); G_MAXUINT64 for an empty set. */
guint64 kv_decode_set_until_finish(const KvDecodeSet *set);
/* Steps that can be priced at once, before a member's law bends. */
guint64 kv_decode_set_until_bend(const KvDecodeSet *set);
/* A member that has emitted its last token, or NULL. */
KvSequence *kv_decode_set_finished(const KvDecodeSet *set);

/* Blocks that the next `steps` steps take. */
guint64 kv_decode_set_growth(const KvDecodeSet *set, guint64 steps);
/* The largest number of steps, at most `limit`, that `free_blocks` allow. */
guint64 kv_decode_set_affordable(const KvDecodeSet *set, guint64 free_blocks, guint64 limit);

void kv_decode_set_advance(KvDecodeSet *set, guint64 steps);

/* The batch of the next step; its arrays live until the set changes. */
void kv_decode_set_batch(const KvDecodeSet *set, KvDecodeBatch *batch);
/* Members in heap order, for executors that need them. */
KvSequence *const *kv_decode_set_members(const KvDecodeSet *set);

/* Sum of tokens held by members now (for fragmentation). */
double kv_decode_set_context_tokens(const KvDecodeSet *set);

#endif
