/* The block pool and the prefix index of one instance, with the semantics of vLLM v1's KV cache
 * manager.
 *
 * A pool has `total` blocks of `block_tokens` tokens. Free blocks stand in a queue; allocation
 * takes from its head, freeing appends at its tail, a sequence's last block first, so that among
 * blocks freed together the deepest is reused first. A free block whose content is known stays
 * findable until it is reused: this is the prefix cache, LRU by construction.
 *
 * The queue holds extents, not blocks: the blocks of one prefix node (the tokens that one prefix
 * hash names), or a run of blocks that nobody can find. An operation costs O(extents), however long
 * the prompts are, and takes the same blocks in the same order as a block-by-block queue would.
 * Deviation: a node is referenced as a whole, so a request that must recompute the last block of a
 * fully cached prompt also refreshes that block's age.
 *
 * With `explicit_ids` the pool also tracks which physical block is where, for executors with real
 * memory: node and extent carry ids, and kv_pool_* keep sequence->block_ids in token order.
 *
 * A sequence that is preempted leaves its private blocks in the queue under its own name and finds
 * what is left of them when it resumes.
 */
#ifndef KV_SIM_ENGINE_POOL_H
#define KV_SIM_ENGINE_POOL_H

#include <glib.h>

#include "sim/engine/sequence.h"

typedef struct KvPool KvPool;

/* `hash_block_tokens`: tokens that a prefix hash covers (0: no prefix index). One of the two block
 * sizes must divide the other. */
KvPool *kv_pool_new(guint64 total, guint block_tokens, guint hash_block_tokens,
                    gboolean prefix_caching, gboolean explicit_ids);
void kv_pool_free(KvPool *pool);

/* Of equal blocks computed by two sequences at the same time the second's are given back, and it
 * holds the first's (SGLang); otherwise they stay its own (vLLM). */
void kv_pool_set_merging(KvPool *pool, gboolean merges);
/* Keep findable only so many of the blocks that nobody holds: 0 forgets a prefix with its last user
 * (ChunkAttention). Without a call: all. */
void kv_pool_set_retained(KvPool *pool, guint64 blocks);

guint64 kv_pool_total(const KvPool *pool);
guint64 kv_pool_free_blocks(const KvPool *pool);   /* empty or findable */
guint64 kv_pool_cached_blocks(const KvPool *pool); /* of them, findable by a prefix */
guint kv_pool_block_tokens(const KvPool *pool);
guint kv_pool_node_tokens(const KvPool *pool);
guint kv_pool_hash_block_tokens(const KvPool *pool); /* 0: no prefix index */

/* What the index holds of the sequence's first `limit_tokens` tokens. */
typedef struct {
  guint64 tokens;      /* a multiple of block_tokens */
  guint64 free_blocks; /* of the blocks hit, those nobody holds: taking them uses up free blocks */
  guint n_nodes;
  guint64 own_blocks;  /* blocks of its own private ones, after the nodes */
  guint64 tier_tokens; /* further tokens found on the lower tier, consecutive after `tokens` */
} KvPrefixHit;
KvPrefixHit kv_pool_lookup(KvPool *pool, const KvSequence *sequence, guint32 limit_tokens);

/* The nodes of `hit` that nobody holds are as if used now: SGLang's matching refreshes what waiting
 * requests will need. */
void kv_pool_touch(KvPool *pool, const KvSequence *sequence, const KvPrefixHit *hit);
/* The name of the sequence's `i`-th node. */
guint64 kv_pool_node_name(const KvPool *pool, const KvSequence *sequence, guint i);

/* Hold the blocks of `hit` for the sequence (which holds nothing yet). */
void kv_pool_take_hit(KvPool *pool, KvSequence *sequence, const KvPrefixHit *hit);

/* Blocks that the sequence holds now. */
guint64 kv_pool_held(const KvPool *pool, const KvSequence *sequence);

/* Hold `blocks` in all, of which the tokens up to `computed_tokens` will be findable from now on.
 * The blocks must be free. */
void kv_pool_grow(KvPool *pool, KvSequence *sequence, guint64 blocks, guint32 computed_tokens);

/* Take or return `blocks` private blocks of decoding sequences as a whole (their own counts are
 * settled later with kv_pool_settle). */
void kv_pool_take_private(KvPool *pool, guint64 blocks);
void kv_pool_settle(KvSequence *sequence, guint64 private_blocks);

/* Let go of everything the sequence holds. With `keep` its private blocks stay findable to itself,
 * as far as computed_tokens filled them. */
void kv_pool_release(KvPool *pool, KvSequence *sequence, gboolean keep);
/* Forget the private blocks kept for the sequence (it will not come back). */
void kv_pool_forget(KvPool *pool, KvSequence *sequence);

/* Give back private blocks beyond `blocks` held in all: a technique shrank the cache. */
void kv_pool_shrink(KvPool *pool, KvSequence *sequence, guint64 blocks);

/* Attention that reads a shared prefix once for all its readers: say, before anything is held, that
 * nodes with more than `readers_over` (>= 1) readers count, then who begins and who ends to decode.
 */
typedef struct {
  guint64 once_tokens;     /* of all nodes that are shared */
  guint64 repeated_tokens; /* which their other readers need not read again */
} KvSharedReads;
void kv_pool_count_shared(KvPool *pool, guint readers_over);
void kv_pool_read(KvPool *pool, const KvSequence *sequence, gboolean begins);
const KvSharedReads *kv_pool_shared_reads(const KvPool *pool);

/* Match length for a router: tokens of the sequence's prompt that the index holds. */
guint64 kv_pool_match_tokens(const KvPool *pool, const KvSequence *sequence);

/* The lower tier of the prefix cache: `capacity` blocks, LRU; write-through. With explicit ids its
 * blocks are numbered from `first_id`, and `move` (may be NULL) is told each block that is copied:
 * down to the tier, or up from it. */
typedef void (*KvPoolMove)(gboolean down, guint32 pool_id, guint32 tier_id, gpointer user);
void kv_pool_set_tier(KvPool *pool, guint64 capacity_blocks, guint32 first_id, KvPoolMove move,
                      gpointer user);
guint64 kv_pool_tier_blocks(const KvPool *pool);
/* Blocks of the sequence's nodes that are not on the lower tier yet: mark them as stored there,
 * evicting what is least recently used, and return their number. */
guint64 kv_pool_store(KvPool *pool, KvSequence *sequence);
/* Hold and fill from the lower tier the nodes that `hit.tier_tokens` covers; their blocks must be
 * free. */
void kv_pool_take_tier(KvPool *pool, KvSequence *sequence, const KvPrefixHit *hit);

/* Check every invariant by walking everything (tests): blocks are conserved, counts agree. NULL if
 * all hold, otherwise what does not. `sequences` are all that hold blocks. */
const char *kv_pool_check(const KvPool *pool, KvSequence *const *sequences, guint n_sequences,
                          guint64 taken_private);

#endif
