#include "sim/engine/pool.h"

#include <string.h>

#include "sim/base/random.h"

typedef struct KvExtent KvExtent;
struct KvExtent {
  KvExtent *previous, *next; /* towards the head and the tail of the free queue */
  KvPrefixNode *node;        /* whose blocks these are, or NULL */
  KvSequence *owner;         /* preempted sequence that may reclaim them, or NULL */
  guint64 blocks;            /* equals node->blocks if there is a node */
  guint64 full;              /* with an owner: blocks from the first that were complete */
  guint32 *ids; /* explicit ids of a run without a node, in the order they were filled */
};

struct KvPool {
  guint64 total, free_blocks, cached_blocks;
  guint block_tokens, hash_block_tokens, node_tokens, node_blocks;
  gboolean prefix_caching, explicit_ids;
  KvExtent queue;       /* sentinel of a circular list: next is the head, previous the tail */
  KvPrefixNode **table; /* open addressing, linear probing */
  gsize table_mask, table_used;
  guint64 tier_capacity, tier_used;
  KvPrefixNode tier; /* sentinel: tier_next is the least recently used */
};

/* Prefix index. */

static gsize slot_of(const KvPool *pool, guint64 hash) {
  return kv_random_mix(hash) & pool->table_mask;
}

static KvPrefixNode *index_find(const KvPool *pool, guint64 hash) {
  for (gsize i = slot_of(pool, hash); pool->table[i]; i = (i + 1) & pool->table_mask)
    if (pool->table[i]->hash == hash)
      return pool->table[i];
  return NULL;
}

static void index_place(KvPool *pool, KvPrefixNode *node) {
  gsize i = slot_of(pool, node->hash);
  while (pool->table[i])
    i = (i + 1) & pool->table_mask;
  pool->table[i] = node;
}

static KvPrefixNode *index_add(KvPool *pool, guint64 hash) {
  if (2 * ++pool->table_used > pool->table_mask) {
    KvPrefixNode **old = pool->table;
    gsize old_size = pool->table_mask + 1;
    pool->table_mask = 2 * old_size - 1;
    pool->table = g_new0(KvPrefixNode *, pool->table_mask + 1);
    for (gsize i = 0; i < old_size; i++)
      if (old[i])
        index_place(pool, old[i]);
    g_free(old);
  }
  KvPrefixNode *node = g_new0(KvPrefixNode, 1);
  node->hash = hash;
  if (pool->explicit_ids)
    node->ids = g_new(guint32, pool->node_blocks);
  index_place(pool, node);
  return node;
}

/* Knuth's deletion for linear probing: close the gap behind the removed entry. */
static void index_remove(KvPool *pool, KvPrefixNode *node) {
  gsize i = slot_of(pool, node->hash);
  while (pool->table[i] != node)
    i = (i + 1) & pool->table_mask;
  for (gsize j = i;;) {
    pool->table[i] = NULL;
    for (;;) {
      j = (j + 1) & pool->table_mask;
      if (!pool->table[j])
        goto closed;
      gsize home = slot_of(pool, pool->table[j]->hash);
      if (((j - home) & pool->table_mask) >= ((j - i) & pool->table_mask))
        break;
    }
    pool->table[i] = pool->table[j];
    i = j;
  }
closed:
  pool->table_used--;
  g_free(node->ids);
  g_free(node);
}

static void node_drop_if_nowhere(KvPool *pool, KvPrefixNode *node) {
  if (node->blocks == 0 && node->references == 0 && node->tier_blocks == 0)
    index_remove(pool, node);
}

/* Free queue. */

static void extent_unlink(KvExtent *extent) {
  extent->previous->next = extent->next;
  extent->next->previous = extent->previous;
  if (extent->node)
    extent->node->extent = NULL;
  if (extent->owner)
    extent->owner->kept = NULL;
}

static void extent_free(KvExtent *extent) {
  g_free(extent->ids);
  g_free(extent);
}

static KvExtent *queue_append(KvPool *pool, guint64 blocks) {
  KvExtent *extent = g_new0(KvExtent, 1);
  extent->blocks = blocks;
  extent->previous = pool->queue.previous;
  extent->next = &pool->queue;
  extent->previous->next = pool->queue.previous = extent;
  pool->free_blocks += blocks;
  return extent;
}

/* Append blocks that nobody can find; runs of them merge while it does not matter which is which.
 */
static void queue_append_anonymous(KvPool *pool, guint64 blocks) {
  KvExtent *tail = pool->queue.previous;
  if (blocks == 0)
    return;
  if (tail != &pool->queue && !tail->node && !tail->owner && !pool->explicit_ids) {
    tail->blocks += blocks;
    pool->free_blocks += blocks;
  } else {
    queue_append(pool, blocks);
  }
}

static void queue_append_node(KvPool *pool, KvPrefixNode *node) {
  if (node->blocks == 0) {
    node_drop_if_nowhere(pool, node);
    return;
  }
  KvExtent *extent = queue_append(pool, node->blocks);
  extent->node = node;
  node->extent = extent;
  pool->cached_blocks += node->blocks;
}

/* Take `count` blocks from the head of the queue; their ids go to `ids` if it is not NULL. */
static void queue_pop(KvPool *pool, guint64 count, guint32 *ids) {
  g_assert(count <= pool->free_blocks);
  pool->free_blocks -= count;
  while (count > 0) {
    KvExtent *extent = pool->queue.next;
    KvPrefixNode *node = extent->node;
    guint64 taken = MIN(count, extent->blocks);
    if (ids) {
      const guint32 *source = node ? node->ids : extent->ids;
      for (guint64 i = 0; i < taken; i++) /* the deepest first */
        *ids++ = source[extent->blocks - 1 - i];
    }
    extent->blocks -= taken;
    count -= taken;
    if (node) {
      node->blocks -= (guint32)taken;
      pool->cached_blocks -= taken;
    }
    if (extent->blocks == 0) {
      extent_unlink(extent);
      extent_free(extent);
      if (node)
        node_drop_if_nowhere(pool, node);
    }
  }
}

static void node_hold(KvPool *pool, KvPrefixNode *node) {
  if (node->references++ == 0 && node->extent) {
    KvExtent *extent = node->extent;
    pool->free_blocks -= node->blocks;
    pool->cached_blocks -= node->blocks;
    extent_unlink(extent);
    extent_free(extent);
  }
}

KvPool *kv_pool_new(guint64 total, guint block_tokens, guint hash_block_tokens,
                    gboolean prefix_caching, gboolean explicit_ids) {
  g_return_val_if_fail(block_tokens > 0, NULL);
  g_return_val_if_fail(hash_block_tokens == 0 || hash_block_tokens % block_tokens == 0 ||
                           block_tokens % hash_block_tokens == 0,
                       NULL);
  KvPool *pool = g_new0(KvPool, 1);
  pool->total = total;
  pool->block_tokens = block_tokens;
  pool->hash_block_tokens = hash_block_tokens;
  pool->node_tokens = MAX(block_tokens, hash_block_tokens);
  pool->node_blocks = pool->node_tokens / block_tokens;
  pool->prefix_caching = prefix_caching;
  pool->explicit_ids = explicit_ids;
  pool->queue.previous = pool->queue.next = &pool->queue;
  pool->tier.tier_previous = pool->tier.tier_next = &pool->tier;
  pool->table_mask = 1023;
  pool->table = g_new0(KvPrefixNode *, pool->table_mask + 1);
  if (total > 0) {
    KvExtent *all = queue_append(pool, total);
    if (explicit_ids) {
      all->ids = g_new(guint32, total);
      for (guint64 i = 0; i < total; i++) /* popped from the end: ascending */
        all->ids[i] = (guint32)(total - 1 - i);
    }
  }
  return pool;
}

void kv_pool_free(KvPool *pool) {
  if (!pool)
    return;
  while (pool->queue.next != &pool->queue) {
    KvExtent *extent = pool->queue.next;
    extent_unlink(extent);
    extent_free(extent);
  }
  for (gsize i = 0; i <= pool->table_mask; i++) {
    if (pool->table[i]) {
      g_free(pool->table[i]->ids);
      g_free(pool->table[i]);
    }
  }
  g_free(pool->table);
  g_free(pool);
}

guint64 kv_pool_total(const KvPool *pool) {
  return pool->total;
}

guint64 kv_pool_free_blocks(const KvPool *pool) {
  return pool->free_blocks;
}

guint64 kv_pool_cached_blocks(const KvPool *pool) {
  return pool->cached_blocks;
}

guint kv_pool_block_tokens(const KvPool *pool) {
  return pool->block_tokens;
}

guint kv_pool_node_tokens(const KvPool *pool) {
  return pool->node_tokens;
}

/* Full blocks of the prompt that prefix hashes name. */
static guint64 named_blocks(const KvPool *pool, const KvSequence *sequence) {
  return pool->prefix_caching && sequence->n_hashes > 0 && pool->hash_block_tokens > 0
             ? sequence->input_tokens / pool->block_tokens
             : 0;
}

static guint64 node_key(const KvPool *pool, const KvSequence *sequence, guint64 i) {
  guint64 last = (i + 1) * (pool->node_tokens / pool->hash_block_tokens) - 1;
  return sequence->hashes[MIN(last, sequence->n_hashes - 1)];
}

/* Blocks of node `i` that lie within the sequence's first `blocks` blocks. */
static guint32 node_share(const KvPool *pool, guint64 i, guint64 blocks) {
  guint64 start = i * pool->node_blocks;
  return start >= blocks ? 0 : (guint32)MIN(blocks - start, pool->node_blocks);
}

KvPrefixHit kv_pool_lookup(KvPool *pool, const KvSequence *sequence, guint32 limit_tokens) {
  KvPrefixHit hit = {0};
  guint64 limit = limit_tokens / pool->block_tokens, named = named_blocks(pool, sequence);
  guint64 reachable = MIN(limit, named), blocks = 0, i = 0;
  guint32 share = 0;
  KvPrefixNode *node = NULL;
  for (; (share = node_share(pool, i, reachable)) > 0; i++) {
    node = index_find(pool, node_key(pool, sequence, i));
    if (!node || node->blocks == 0)
      break;
    guint32 found = MIN(node->blocks, share);
    blocks += found;
    hit.n_nodes++;
    if (node->references == 0)
      hit.free_blocks += node->blocks;
    if (found < share)
      break;
  }
  if (sequence->kept && blocks == named && limit > named) {
    hit.own_blocks = MIN(MIN(sequence->kept->blocks, sequence->kept->full), limit - named);
    hit.free_blocks += hit.own_blocks;
  }
  hit.tokens = (blocks + hit.own_blocks) * pool->block_tokens;
  if (pool->tier_capacity > 0) {
    guint64 upper = blocks;
    for (; (share = node_share(pool, i, reachable)) > 0; i++) {
      node = index_find(pool, node_key(pool, sequence, i));
      guint64 here = i * pool->node_blocks;
      if (!node || here + MIN(node->tier_blocks, share) <= upper)
        break;
      upper = here + MIN(node->tier_blocks, share);
      if (node->tier_blocks < share)
        break;
    }
    hit.tier_tokens = (upper - blocks) * pool->block_tokens;
  }
  return hit;
}

static void remember_node(KvSequence *sequence, KvPrefixNode *node) {
  if (sequence->n_nodes == sequence->nodes_size) {
    sequence->nodes_size = MAX(8, 2 * sequence->nodes_size);
    sequence->nodes = g_renew(KvPrefixNode *, sequence->nodes, sequence->nodes_size);
  }
  sequence->nodes[sequence->n_nodes++] = node;
}

static guint32 *more_block_ids(KvSequence *sequence, guint64 count) {
  guint64 needed = sequence->n_block_ids + count;
  if (needed > sequence->block_ids_size) {
    sequence->block_ids_size = (guint32)MAX(needed, 2 * (guint64)sequence->block_ids_size);
    sequence->block_ids = g_renew(guint32, sequence->block_ids, sequence->block_ids_size);
  }
  guint32 *place = sequence->block_ids + sequence->n_block_ids;
  sequence->n_block_ids += (guint32)count;
  return place;
}

/* Blocks that the sequence holds through its nodes. */
static guint64 shared_blocks(const KvPool *pool, const KvSequence *sequence) {
  guint64 blocks = 0, named = named_blocks(pool, sequence);
  for (guint i = 0; i < sequence->n_nodes; i++)
    if (sequence->nodes[i])
      blocks += MIN(sequence->nodes[i]->blocks, node_share(pool, i, named));
  return blocks;
}

guint64 kv_pool_held(const KvPool *pool, const KvSequence *sequence) {
  return shared_blocks(pool, sequence) + sequence->private_blocks;
}

/* Another sequence that holds the last node may have completed more of it: these blocks are the
 * sequence's, too, and blocks of its own that they make superfluous go back. */
static void adopt_last_node(KvPool *pool, KvSequence *sequence) {
  KvPrefixNode *node = sequence->n_nodes > 0 ? sequence->nodes[sequence->n_nodes - 1] : NULL;
  if (!node)
    return;
  guint i = sequence->n_nodes - 1;
  guint64 start = (guint64)i * pool->node_blocks, had = MAX(start, sequence->node_end_blocks);
  guint64 end = start + MIN(node->blocks, node_share(pool, i, named_blocks(pool, sequence)));
  if (end <= had)
    return;
  guint64 in_table = kv_pool_held(pool, sequence) - (end - had);
  guint64 surplus = MIN(end, in_table) - had;
  sequence->private_blocks -= surplus;
  sequence->node_end_blocks = end;
  if (!pool->explicit_ids) {
    queue_append_anonymous(pool, surplus);
    return;
  }
  if (surplus > 0)
    queue_append(pool, surplus)->ids =
        g_memdup2(sequence->block_ids + had, surplus * sizeof(guint32));
  if (end > in_table)
    more_block_ids(sequence, end - in_table);
  memcpy(sequence->block_ids + had, node->ids + (had - start), (end - had) * sizeof(guint32));
}

void kv_pool_take_hit(KvPool *pool, KvSequence *sequence, const KvPrefixHit *hit) {
  for (guint i = 0; i < hit->n_nodes; i++) {
    KvPrefixNode *node = index_find(pool, node_key(pool, sequence, i));
    node_hold(pool, node);
    remember_node(sequence, node);
    adopt_last_node(pool, sequence);
  }
  if (hit->own_blocks > 0) {
    KvExtent *kept = sequence->kept;
    if (pool->explicit_ids) {
      memcpy(more_block_ids(sequence, hit->own_blocks), kept->ids,
             hit->own_blocks * sizeof(guint32));
      memmove(kept->ids, kept->ids + hit->own_blocks,
              (kept->blocks - hit->own_blocks) * sizeof(guint32));
    }
    kept->blocks -= hit->own_blocks;
    pool->free_blocks -= hit->own_blocks;
    sequence->private_blocks += hit->own_blocks;
    if (kept->blocks == 0) {
      extent_unlink(kept);
      extent_free(kept);
    }
  }
  kv_pool_forget(pool, sequence);
}

/* Make the blocks that are complete at `computed_tokens` findable: private blocks become the
 * nodes'. */
static void publish(KvPool *pool, KvSequence *sequence, guint32 computed_tokens) {
  guint64 full = MIN(computed_tokens / pool->block_tokens, named_blocks(pool, sequence));
  guint64 i = sequence->n_nodes > 0 ? sequence->n_nodes - 1 : 0;
  for (guint32 share; (share = node_share(pool, i, full)) > 0; i++) {
    if (i >= sequence->n_nodes) {
      KvPrefixNode *known = index_find(pool, node_key(pool, sequence, i));
      gboolean taken = known && (known->blocks > 0 || known->references > 0);
      /* Somebody else computed the same content at the same time: ours stays a private duplicate.
       */
      KvPrefixNode *node = taken   ? NULL
                           : known ? known
                                   : index_add(pool, node_key(pool, sequence, i));
      if (node)
        node->references = 1;
      remember_node(sequence, node);
    }
    KvPrefixNode *node = sequence->nodes[i];
    if (node && node->blocks < share) {
      guint32 fresh = share - node->blocks;
      if (pool->explicit_ids)
        memcpy(node->ids + node->blocks, sequence->block_ids + i * pool->node_blocks + node->blocks,
               fresh * sizeof(guint32));
      node->blocks = share;
      sequence->private_blocks -= fresh;
    }
    sequence->node_end_blocks = MAX(sequence->node_end_blocks, i * pool->node_blocks + share);
  }
}

void kv_pool_grow(KvPool *pool, KvSequence *sequence, guint64 blocks, guint32 computed_tokens) {
  adopt_last_node(pool, sequence);
  guint64 held = kv_pool_held(pool, sequence);
  if (blocks > held) {
    guint64 count = blocks - held;
    queue_pop(pool, count, pool->explicit_ids ? more_block_ids(sequence, count) : NULL);
    sequence->private_blocks += count;
  }
  if (pool->prefix_caching && sequence->n_hashes > 0)
    publish(pool, sequence, computed_tokens);
}

void kv_pool_take_private(KvPool *pool, guint64 blocks) {
  g_assert(!pool->explicit_ids);
  queue_pop(pool, blocks, NULL);
}

void kv_pool_settle(KvSequence *sequence, guint64 private_blocks) {
  sequence->private_blocks = private_blocks;
}

/* The ids of the sequence's private blocks, in token order, newly allocated. */
static guint32 *private_ids(const KvPool *pool, const KvSequence *sequence) {
  guint32 *ids = g_new(guint32, sequence->private_blocks + 1);
  guint64 n = 0, named = named_blocks(pool, sequence);
  for (guint64 at = 0; at < sequence->n_block_ids && n < sequence->private_blocks; at++) {
    guint64 i = at / pool->node_blocks;
    const KvPrefixNode *node = i < sequence->n_nodes ? sequence->nodes[i] : NULL;
    if (!node || at >= named || at % pool->node_blocks >= node->blocks)
      ids[n++] = sequence->block_ids[at];
  }
  g_assert(n == sequence->private_blocks);
  return ids;
}

void kv_pool_release(KvPool *pool, KvSequence *sequence, gboolean keep) {
  /* Only full blocks can be found again, and only those that follow all the named ones. */
  guint64 full = sequence->computed_tokens / pool->block_tokens;
  guint64 named = named_blocks(pool, sequence);
  adopt_last_node(pool, sequence);
  keep = keep && pool->prefix_caching && full > named && shared_blocks(pool, sequence) == named;
  kv_pool_forget(pool, sequence);
  if (sequence->private_blocks > 0 && (keep || pool->explicit_ids)) {
    KvExtent *extent = queue_append(pool, sequence->private_blocks);
    if (pool->explicit_ids)
      extent->ids = private_ids(pool, sequence);
    if (keep) {
      extent->owner = sequence;
      extent->full = full - named;
      sequence->kept = extent;
    }
  } else {
    queue_append_anonymous(pool, sequence->private_blocks);
  }
  for (guint i = sequence->n_nodes; i-- > 0;) {
    KvPrefixNode *node = sequence->nodes[i];
    if (node && --node->references == 0)
      queue_append_node(pool, node);
  }
  sequence->n_nodes = 0;
  sequence->node_end_blocks = 0;
  sequence->private_blocks = 0;
  sequence->n_block_ids = 0;
}

void kv_pool_forget(KvPool *pool, KvSequence *sequence) {
  if (sequence->kept) {
    sequence->kept->owner = NULL;
    sequence->kept = NULL;
  }
}

void kv_pool_shrink(KvPool *pool, KvSequence *sequence, guint64 blocks) {
  guint64 held = kv_pool_held(pool, sequence);
  g_assert(!pool->explicit_ids);
  if (blocks >= held)
    return;
  guint64 surplus = MIN(held - blocks, sequence->private_blocks);
  sequence->private_blocks -= surplus;
  queue_append_anonymous(pool, surplus);
}

guint64 kv_pool_match_tokens(const KvPool *pool, const KvSequence *sequence) {
  guint64 named = named_blocks(pool, sequence), blocks = 0;
  for (guint64 i = 0;; i++) {
    guint32 share = node_share(pool, i, named);
    const KvPrefixNode *node = share ? index_find(pool, node_key(pool, sequence, i)) : NULL;
    if (!node)
      break;
    blocks += MIN(MAX(node->blocks, node->tier_blocks), share);
    if (MAX(node->blocks, node->tier_blocks) < share)
      break;
  }
  return blocks * pool->block_tokens;
}

/* The lower tier. */

static void tier_unlink(KvPrefixNode *node) {
  node->tier_previous->tier_next = node->tier_next;
  node->tier_next->tier_previous = node->tier_previous;
}

static void tier_append(KvPool *pool, KvPrefixNode *node) {
  node->tier_previous = pool->tier.tier_previous;
  node->tier_next = &pool->tier;
  node->tier_previous->tier_next = pool->tier.tier_previous = node;
}

static void tier_evict(KvPool *pool, guint64 room) {
  for (KvPrefixNode *node = pool->tier.tier_next, *next;
       node != &pool->tier && pool->tier_used + room > pool->tier_capacity; node = next) {
    next = node->tier_next;
    if (node->loading > 0)
      continue;
    tier_unlink(node);
    pool->tier_used -= node->tier_blocks;
    node->tier_blocks = 0;
    node_drop_if_nowhere(pool, node);
  }
}

void kv_pool_set_tier(KvPool *pool, guint64 capacity_blocks) {
  pool->tier_capacity = capacity_blocks;
}

guint64 kv_pool_tier_blocks(const KvPool *pool) {
  return pool->tier_used;
}

guint64 kv_pool_store(KvPool *pool, KvSequence *sequence) {
  guint64 stored = 0;
  for (guint i = sequence->n_nodes; pool->tier_capacity > 0 && i-- > 0;) {
    KvPrefixNode *node = sequence->nodes[i];
    if (!node)
      continue;
    if (node->tier_blocks > 0)
      tier_unlink(node); /* used again: to the recent end */
    guint32 fresh = node->blocks > node->tier_blocks ? node->blocks - node->tier_blocks : 0;
    node->loading++; /* not a victim of its own store */
    if (node->tier_blocks > 0)
      tier_append(pool, node);
    tier_evict(pool, fresh);
    node->loading--;
    if (pool->tier_used + fresh > pool->tier_capacity)
      continue;
    if (node->tier_blocks == 0 && fresh > 0)
      tier_append(pool, node);
    node->tier_blocks += fresh;
    pool->tier_used += fresh;
    stored += fresh;
  }
  return stored;
}

void kv_pool_take_tier(KvPool *pool, KvSequence *sequence, const KvPrefixHit *hit) {
  guint64 end = (hit->tokens + hit->tier_tokens) / pool->block_tokens;
  guint64 i = hit->tokens / pool->block_tokens / pool->node_blocks;
  for (guint32 share; (share = node_share(pool, i, end)) > 0; i++) {
    if (i >= sequence->n_nodes) {
      KvPrefixNode *node = index_find(pool, node_key(pool, sequence, i));
      node_hold(pool, node);
      remember_node(sequence, node);
    }
    KvPrefixNode *node = sequence->nodes[i];
    if (node->blocks < share) {
      guint32 fresh = share - node->blocks;
      node->blocks =
          share; /* findable from now on, as vLLM's delayed caching allows after the load */
      queue_pop(pool, fresh, pool->explicit_ids ? node->ids + share - fresh : NULL);
    }
    adopt_last_node(pool, sequence);
  }
}

/* Checking. */

const char *kv_pool_check(const KvPool *pool, KvSequence *const *sequences, guint n_sequences,
                          guint64 taken_private) {
  guint64 queued = 0, cached = 0, held = taken_private;
  for (const KvExtent *e = pool->queue.next; e != &pool->queue; e = e->next) {
    if (e->blocks == 0)
      return "an empty extent is queued";
    if (e->node && (e->node->extent != e || e->node->blocks != e->blocks))
      return "a queued node and its extent disagree";
    if (e->node && e->node->references > 0)
      return "a held node is queued";
    if (e->owner && e->owner->kept != e)
      return "an owner does not know its extent";
    queued += e->blocks;
    cached += e->node ? e->blocks : 0;
  }
  gsize used = 0;
  guint64 tier = 0;
  for (gsize i = 0; i <= pool->table_mask; i++) {
    const KvPrefixNode *node = pool->table[i];
    if (!node)
      continue;
    used++;
    tier += node->tier_blocks;
    if (node->references > 0)
      held += node->blocks;
    else if (node->blocks > 0 && !node->extent)
      return "a node that nobody holds is not queued";
    if (node->blocks > pool->node_blocks)
      return "a node holds more blocks than it covers";
  }
  for (guint i = 0; i < n_sequences; i++)
    held += sequences[i]->private_blocks;
  if (queued != pool->free_blocks || cached != pool->cached_blocks)
    return "the counts of free or cached blocks are wrong";
  if (used != pool->table_used)
    return "the index's count is wrong";
  if (tier != pool->tier_used || tier > pool->tier_capacity)
    return "the lower tier's count is wrong";
  if (queued + held != pool->total)
    return "blocks were lost or made";
  return NULL;
}
