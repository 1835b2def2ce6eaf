#include "sim/engine/pool.h"

#include <string.h>

/* A place in the free queue: the start of a node or of a run. */
typedef struct KvExtent KvExtent;
struct KvExtent {
  guint64 position;    /* in the free queue, counted from the first that was ever appended */
  guint64 blocks : 60; /* a node's: in the pool, queued or not */
  guint64 is_node : 1, queued : 1, pinned : 1;
};

/* Blocks that nobody can find, but for the sequence that left them. */
typedef struct {
  KvExtent extent;
  KvSequence *owner; /* preempted sequence that may reclaim them, or NULL */
  guint64 full;      /* with an owner: blocks from the first that were complete */
  guint32 *ids;      /* explicit ids, in the order they were filled */
} Run;

/* Blocks that hold the tokens named by one prefix hash, from its first token on. One cache line: a
 * run over many replicas spends most of its time fetching these. */
struct KvPrefixNode {
  KvExtent extent; /* queued while nobody holds it; pinned: not a victim of its own store */
  guint64 hash;
  guint32 references;  /* sequences that hold it */
  guint32 tier_blocks; /* of it that are on the lower tier */
  guint32 readers;     /* of them, those that decode */
  KvPrefixNode *tier_previous,
      *tier_next; /* the lower tier's own order; tier_next links spare nodes too */
  guint32 *ids;   /* explicit ids only: the pool's, then node_blocks further on the tier's */
};
G_STATIC_ASSERT(sizeof(KvPrefixNode) <= 64);

/* An entry of the prefix index; the hash stands beside the node so that probing does not visit
 * nodes. */
typedef struct {
  guint64 hash;
  KvPrefixNode *node; /* NULL: empty */
} Slot;

struct KvPool {
  guint64 total, free_blocks, cached_blocks;
  guint block_tokens, hash_block_tokens, node_tokens, node_blocks;
  gboolean prefix_caching, explicit_ids, merges;
  guint64 retained;   /* blocks at most that nobody holds and that stay findable */
  guint readers_over; /* nodes that more sequences than this read are read once; 0: nobody asks */
  KvSharedReads shared;
  /* The free queue: a ring of places, NULL where an extent was taken out of the middle. A ring and
   * not a list, so that what comes next is known, and can be fetched, before what comes now is
   * touched. */
  KvExtent **ring;
  guint64 head, tail, ring_mask; /* positions [head, tail) are in use */
  Slot *table;                   /* open addressing, linear probing */
  gsize table_mask, table_used;
  guint table_shift;
  KvPrefixNode *spare; /* nodes to use again, linked by tier_next */
  guint64 tier_capacity, tier_used;
  KvPoolMove move;
  gpointer move_user;
  guint32 *tier_free_ids; /* a stack of tier_capacity - tier_used ids */
  KvPrefixNode tier;      /* sentinel: tier_next is the least recently used */
};

/* Prefix index. */

/* Fibonacci hashing: the high bits of a product with 2^64 over the golden ratio. */
static gsize slot_of(const KvPool *pool, guint64 hash) {
  return (gsize)((hash * 0x9e3779b97f4a7c15u) >> pool->table_shift);
}

static KvPrefixNode *index_find(const KvPool *pool, guint64 hash) {
  for (gsize i = slot_of(pool, hash); pool->table[i].node; i = (i + 1) & pool->table_mask)
    if (pool->table[i].hash == hash)
      return pool->table[i].node;
  return NULL;
}

static void index_place(KvPool *pool, Slot slot) {
  gsize i = slot_of(pool, slot.hash);
  while (pool->table[i].node)
    i = (i + 1) & pool->table_mask;
  pool->table[i] = slot;
}

static KvPrefixNode *index_add(KvPool *pool, guint64 hash) {
  if (2 * ++pool->table_used > pool->table_mask) {
    Slot *old = pool->table;
    gsize old_size = pool->table_mask + 1;
    pool->table_mask = 2 * old_size - 1;
    pool->table_shift--;
    pool->table = g_new0(Slot, pool->table_mask + 1);
    for (gsize i = 0; i < old_size; i++)
      if (old[i].node)
        index_place(pool, old[i]);
    g_free(old);
  }
  KvPrefixNode *node = pool->spare;
  if (node) {
    pool->spare = node->tier_next;
    *node = (KvPrefixNode){.hash = hash};
  } else {
    node = g_aligned_alloc0(1, sizeof *node, 64);
    node->hash = hash;
  }
  node->extent.is_node = TRUE;
  if (pool->explicit_ids)
    node->ids = g_new(guint32, 2 * pool->node_blocks);
  index_place(pool, (Slot){hash, node});
  return node;
}

static guint32 *tier_ids(const KvPool *pool, const KvPrefixNode *node) {
  return node->ids + pool->node_blocks;
}

static void node_release(KvPool *pool, KvPrefixNode *node) {
  g_clear_pointer(&node->ids, g_free);
  node->tier_next = pool->spare;
  pool->spare = node;
}

/* Knuth's deletion for linear probing: close the gap behind the removed entry. */
static void index_remove(KvPool *pool, KvPrefixNode *node) {
  gsize i = slot_of(pool, node->hash);
  while (pool->table[i].node != node)
    i = (i + 1) & pool->table_mask;
  for (gsize j = i;;) {
    pool->table[i].node = NULL;
    for (;;) {
      j = (j + 1) & pool->table_mask;
      if (!pool->table[j].node)
        goto closed;
      gsize home = slot_of(pool, pool->table[j].hash);
      if (((j - home) & pool->table_mask) >= ((j - i) & pool->table_mask))
        break;
    }
    pool->table[i] = pool->table[j];
    i = j;
  }
closed:
  pool->table_used--;
  node_release(pool, node);
}

static void node_drop_if_nowhere(KvPool *pool, KvPrefixNode *node) {
  if (node->extent.blocks == 0 && node->references == 0 && node->tier_blocks == 0)
    index_remove(pool, node);
}

/* Free queue. */

/* Take the extent out of the queue. A run is freed. */
static void extent_remove(KvPool *pool, KvExtent *extent) {
  pool->ring[extent->position & pool->ring_mask] = NULL;
  extent->queued = FALSE;
  if (!extent->is_node) {
    Run *run = (Run *)extent;
    if (run->owner)
      run->owner->kept = NULL;
    g_free(run->ids);
    g_free(run);
  }
}

/* Close the gaps of a full ring, and double it if there are few. */
static void ring_make_room(KvPool *pool) {
  guint64 size = pool->ring_mask + 1, used = 0;
  KvExtent **old = pool->ring;
  for (guint64 at = pool->head; at < pool->tail; at++)
    used += old[at & pool->ring_mask] != NULL;
  guint64 new_mask = (2 * used > size ? 2 * size : size) - 1, new_tail = pool->head;
  KvExtent **ring = g_new0(KvExtent *, new_mask + 1);
  for (guint64 at = pool->head; at < pool->tail; at++) {
    KvExtent *extent = old[at & pool->ring_mask];
    if (extent) {
      extent->position = new_tail;
      ring[new_tail++ & new_mask] = extent;
    }
  }
  g_free(old);
  pool->ring = ring;
  pool->ring_mask = new_mask;
  pool->tail = new_tail;
}

static void queue_append(KvPool *pool, KvExtent *extent) {
  if (pool->tail - pool->head > pool->ring_mask)
    ring_make_room(pool);
  extent->queued = TRUE;
  extent->position = pool->tail;
  pool->ring[pool->tail++ & pool->ring_mask] = extent;
  pool->free_blocks += extent->blocks;
}

/* The extent at the head of the queue, which is not empty. */
static KvExtent *queue_head(KvPool *pool) {
  while (!pool->ring[pool->head & pool->ring_mask])
    pool->head++;
  for (guint ahead = 1; ahead <= 3; ahead++)
    __builtin_prefetch(pool->ring[(pool->head + ahead) & pool->ring_mask]);
  return pool->ring[pool->head & pool->ring_mask];
}

static Run *queue_append_run(KvPool *pool, guint64 blocks) {
  Run *run = g_new0(Run, 1);
  run->extent.blocks = blocks;
  queue_append(pool, &run->extent);
  return run;
}

/* Append blocks that nobody can find; runs of them merge while it does not matter which is which.
 */
static void queue_append_anonymous(KvPool *pool, guint64 blocks) {
  KvExtent *tail = pool->tail > pool->head ? pool->ring[(pool->tail - 1) & pool->ring_mask] : NULL;
  if (blocks == 0)
    return;
  if (tail && !tail->is_node && !((Run *)tail)->owner && !pool->explicit_ids) {
    tail->blocks += blocks;
    pool->free_blocks += blocks;
  } else {
    queue_append_run(pool, blocks);
  }
}

static void queue_append_node(KvPool *pool, KvPrefixNode *node) {
  if (node->extent.blocks == 0) {
    node_drop_if_nowhere(pool, node);
    return;
  }
  queue_append(pool, &node->extent);
  pool->cached_blocks += node->extent.blocks;
}

/* What was nobody's any more, and will not be kept. */
static void forget_node(KvPool *pool, KvPrefixNode *node) {
  guint64 blocks = node->extent.blocks;
  if (pool->explicit_ids && blocks > 0) {
    guint32 *ids = g_memdup2(node->ids, blocks * sizeof(guint32));
    queue_append_run(pool, blocks)->ids = ids;
  } else {
    queue_append_anonymous(pool, blocks);
  }
  node->extent.blocks = 0;
  node_drop_if_nowhere(pool, node);
}

/* Take `count` blocks from the head of the queue; their ids go to `ids` if it is not NULL. */
static void queue_pop(KvPool *pool, guint64 count, guint32 *ids) {
  g_assert(count <= pool->free_blocks);
  pool->free_blocks -= count;
  while (count > 0) {
    KvExtent *extent = queue_head(pool);
    KvPrefixNode *node = extent->is_node ? (KvPrefixNode *)extent : NULL;
    guint64 taken = MIN(count, extent->blocks);
    if (ids) {
      const guint32 *source = node ? node->ids : ((Run *)extent)->ids;
      for (guint64 i = 0; i < taken; i++) /* the deepest first */
        *ids++ = source[extent->blocks - 1 - i];
    }
    extent->blocks -= taken;
    count -= taken;
    if (node)
      pool->cached_blocks -= taken;
    if (extent->blocks == 0) {
      extent_remove(pool, extent);
      if (node)
        node_drop_if_nowhere(pool, node);
    }
  }
}

static void node_hold(KvPool *pool, KvPrefixNode *node) {
  if (node->references++ == 0 && node->extent.queued) {
    pool->free_blocks -= node->extent.blocks;
    pool->cached_blocks -= node->extent.blocks;
    extent_remove(pool, &node->extent);
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
  pool->retained = G_MAXUINT64;
  pool->ring_mask = 1023;
  pool->ring = g_new0(KvExtent *, pool->ring_mask + 1);
  pool->tier.tier_previous = pool->tier.tier_next = &pool->tier;
  pool->table_mask = 1023;
  pool->table_shift = 64 - 10;
  pool->table = g_new0(Slot, pool->table_mask + 1);
  if (total > 0) {
    Run *all = queue_append_run(pool, total);
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
  for (guint64 at = pool->head; at < pool->tail; at++)
    if (pool->ring[at & pool->ring_mask])
      extent_remove(pool, pool->ring[at & pool->ring_mask]);
  g_free(pool->ring);
  for (gsize i = 0; i <= pool->table_mask; i++) {
    if (pool->table[i].node)
      node_release(pool, pool->table[i].node);
  }
  for (KvPrefixNode *node = pool->spare, *next; node; node = next) {
    next = node->tier_next;
    g_aligned_free(node);
  }
  g_free(pool->table);
  g_free(pool->tier_free_ids);
  g_free(pool);
}

void kv_pool_set_merging(KvPool *pool, gboolean merges) {
  pool->merges = merges;
}

void kv_pool_set_retained(KvPool *pool, guint64 blocks) {
  pool->retained = blocks;
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

guint kv_pool_hash_block_tokens(const KvPool *pool) {
  return pool->hash_block_tokens;
}

/* Full blocks of the prompt that prefix hashes name. */
static guint64 named_blocks(const KvPool *pool, const KvSequence *sequence) {
  return pool->prefix_caching && sequence->n_hashes > 0 && pool->hash_block_tokens > 0
             ? (sequence->input_tokens + sequence->answer_tokens) / pool->block_tokens
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
    if (!node || node->extent.blocks == 0)
      break;
    guint32 found = MIN(node->extent.blocks, share);
    blocks += found;
    hit.n_nodes++;
    if (node->references == 0)
      hit.free_blocks += node->extent.blocks;
    if (found < share)
      break;
  }
  if (sequence->kept && blocks == named && limit > named) {
    guint64 complete = MIN(sequence->kept->blocks, ((const Run *)sequence->kept)->full);
    hit.own_blocks = MIN(complete, limit - named);
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
  sequence->n_duplicates += node == NULL;
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

/* Blocks that the sequence holds through its nodes. All but the last are whole: it has computed
 * beyond them. */
static guint64 shared_blocks(const KvPool *pool, const KvSequence *sequence) {
  guint64 whole = sequence->n_nodes - sequence->n_duplicates;
  const KvPrefixNode *last = sequence->n_nodes ? sequence->nodes[sequence->n_nodes - 1] : NULL;
  if (!last)
    return whole * pool->node_blocks;
  guint32 share = node_share(pool, sequence->n_nodes - 1, named_blocks(pool, sequence));
  return (whole - 1) * pool->node_blocks + MIN(last->extent.blocks, share);
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
  guint64 end = start + MIN(node->extent.blocks, node_share(pool, i, named_blocks(pool, sequence)));
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
    queue_append_run(pool, surplus)->ids =
        g_memdup2(sequence->block_ids + had, surplus * sizeof(guint32));
  if (end > in_table)
    more_block_ids(sequence, end - in_table);
  memcpy(sequence->block_ids + had, node->ids + (had - start), (end - had) * sizeof(guint32));
}

void kv_pool_touch(KvPool *pool, const KvSequence *sequence, const KvPrefixHit *hit) {
  for (guint i = hit->n_nodes; i-- > 0;) {
    KvPrefixNode *node = index_find(pool, node_key(pool, sequence, i));
    if (!node->extent.queued)
      continue;
    pool->free_blocks -= node->extent.blocks;
    pool->cached_blocks -= node->extent.blocks;
    extent_remove(pool, &node->extent);
    queue_append_node(pool, node);
  }
}

guint64 kv_pool_node_name(const KvPool *pool, const KvSequence *sequence, guint i) {
  return node_key(pool, sequence, i);
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
      guint32 *ids = ((Run *)kept)->ids;
      memcpy(more_block_ids(sequence, hit->own_blocks), ids, hit->own_blocks * sizeof(guint32));
      memmove(ids, ids + hit->own_blocks, (kept->blocks - hit->own_blocks) * sizeof(guint32));
    }
    kept->blocks -= hit->own_blocks;
    pool->free_blocks -= hit->own_blocks;
    sequence->private_blocks += hit->own_blocks;
    if (kept->blocks == 0) {
      extent_remove(pool, kept);
    }
  }
  kv_pool_forget(pool, sequence);
}

/* Reads that are saved: all but one of a node's readers' where enough read it. */
static void count_shared(KvPool *pool, guint64 readers, guint64 blocks, gboolean add) {
  if (readers <= pool->readers_over || readers < 2)
    return;
  guint64 tokens = blocks * pool->block_tokens, repeated = tokens * (readers - 1);
  pool->shared.once_tokens += add ? tokens : -tokens;
  pool->shared.repeated_tokens += add ? repeated : -repeated;
}

static void grow_node(KvPool *pool, KvPrefixNode *node, guint32 blocks) {
  count_shared(pool, node->readers, node->extent.blocks, FALSE);
  node->extent.blocks = blocks;
  count_shared(pool, node->readers, node->extent.blocks, TRUE);
}

void kv_pool_count_shared(KvPool *pool, guint readers_over) {
  pool->readers_over = readers_over;
}

const KvSharedReads *kv_pool_shared_reads(const KvPool *pool) {
  return &pool->shared;
}

void kv_pool_read(KvPool *pool, const KvSequence *sequence, gboolean begins) {
  for (guint i = 0; pool->readers_over > 0 && i < sequence->n_nodes; i++) {
    KvPrefixNode *node = sequence->nodes[i];
    if (!node)
      continue;
    count_shared(pool, node->readers, node->extent.blocks, FALSE);
    node->readers += begins ? 1 : -1;
    count_shared(pool, node->readers, node->extent.blocks, TRUE);
  }
}

/* Make the blocks that are complete at `computed_tokens` findable: private blocks become the
 * nodes'. */
static void publish(KvPool *pool, KvSequence *sequence, guint32 computed_tokens) {
  guint64 full = MIN(computed_tokens / pool->block_tokens, named_blocks(pool, sequence));
  guint64 i = sequence->n_nodes > 0 ? sequence->n_nodes - 1 : 0;
  for (guint32 share; (share = node_share(pool, i, full)) > 0; i++) {
    if (i >= sequence->n_nodes) {
      KvPrefixNode *known = index_find(pool, node_key(pool, sequence, i));
      gboolean taken = known && (known->extent.blocks > 0 || known->references > 0);
      /* Somebody else computed the same content at the same time: ours goes back, or stays a
       * private duplicate. */
      KvPrefixNode *node = taken   ? NULL
                           : known ? known
                                   : index_add(pool, node_key(pool, sequence, i));
      if (node)
        node->references = 1;
      else if (pool->merges)
        node_hold(pool, known);
      remember_node(sequence, taken && pool->merges ? known : node);
      if (taken && pool->merges)
        adopt_last_node(pool, sequence);
    }
    KvPrefixNode *node = sequence->nodes[i];
    if (node && node->extent.blocks < share) {
      guint32 fresh = share - node->extent.blocks;
      if (pool->explicit_ids)
        memcpy(node->ids + node->extent.blocks,
               sequence->block_ids + i * pool->node_blocks + node->extent.blocks,
               fresh * sizeof(guint32));
      grow_node(pool, node, share);
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
    if (!node || at >= named || at % pool->node_blocks >= node->extent.blocks)
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
  keep = keep && pool->prefix_caching && full > named && shared_blocks(pool, sequence) == named &&
         pool->retained == G_MAXUINT64;
  kv_pool_forget(pool, sequence);
  if (sequence->private_blocks > 0 && (keep || pool->explicit_ids)) {
    Run *run = queue_append_run(pool, sequence->private_blocks);
    if (pool->explicit_ids)
      run->ids = private_ids(pool, sequence);
    if (keep) {
      run->owner = sequence;
      run->full = full - named;
      sequence->kept = &run->extent;
    }
  } else {
    queue_append_anonymous(pool, sequence->private_blocks);
  }
  for (guint i = sequence->n_nodes; i-- > 0;) {
    KvPrefixNode *node = sequence->nodes[i];
    if (!node || --node->references > 0)
      continue;
    if (pool->retained - pool->cached_blocks >= node->extent.blocks)
      queue_append_node(pool, node);
    else
      forget_node(pool, node);
  }
  sequence->n_nodes = 0;
  sequence->node_end_blocks = 0;
  sequence->n_duplicates = 0;
  sequence->private_blocks = 0;
  sequence->n_block_ids = 0;
}

void kv_pool_forget(KvPool *pool, KvSequence *sequence) {
  if (sequence->kept) {
    ((Run *)sequence->kept)->owner = NULL;
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
    blocks += MIN(MAX(node->extent.blocks, node->tier_blocks), share);
    if (MAX(node->extent.blocks, node->tier_blocks) < share)
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
    if (node->extent.pinned)
      continue;
    tier_unlink(node);
    for (guint32 b = 0; b < node->tier_blocks && pool->tier_free_ids; b++)
      pool->tier_free_ids[pool->tier_capacity - pool->tier_used + b] = tier_ids(pool, node)[b];
    pool->tier_used -= node->tier_blocks;
    node->tier_blocks = 0;
    node_drop_if_nowhere(pool, node);
  }
}

void kv_pool_set_tier(KvPool *pool, guint64 capacity_blocks, guint32 first_id, KvPoolMove move,
                      gpointer user) {
  g_return_if_fail(pool->tier_capacity == 0);
  pool->tier_capacity = capacity_blocks;
  pool->move = move;
  pool->move_user = user;
  if (pool->explicit_ids) {
    pool->tier_free_ids = g_new(guint32, capacity_blocks + 1);
    for (guint64 i = 0; i < capacity_blocks; i++)
      pool->tier_free_ids[i] = first_id + (guint32)(capacity_blocks - 1 - i);
  }
}

/* Copy `count` more blocks of the node down. */
static void tier_fill(KvPool *pool, KvPrefixNode *node, guint32 count) {
  for (guint32 b = node->tier_blocks; b < node->tier_blocks + count && pool->explicit_ids; b++) {
    guint64 top = pool->tier_capacity - pool->tier_used - 1 - (b - node->tier_blocks);
    tier_ids(pool, node)[b] = pool->tier_free_ids[top];
    if (pool->move)
      pool->move(TRUE, node->ids[b], tier_ids(pool, node)[b], pool->move_user);
  }
  node->tier_blocks += count;
  pool->tier_used += count;
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
    guint32 fresh =
        node->extent.blocks > node->tier_blocks ? node->extent.blocks - node->tier_blocks : 0;
    node->extent.pinned = TRUE;
    if (node->tier_blocks > 0)
      tier_append(pool, node);
    tier_evict(pool, fresh);
    node->extent.pinned = FALSE;
    if (pool->tier_used + fresh > pool->tier_capacity)
      continue;
    if (node->tier_blocks == 0 && fresh > 0)
      tier_append(pool, node);
    tier_fill(pool, node, fresh);
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
    if (node->extent.blocks < share) {
      guint32 fresh = share - node->extent.blocks;
      grow_node(pool, node,
                share); /* findable from now on, as vLLM's delayed caching allows after the load */
      queue_pop(pool, fresh, pool->explicit_ids ? node->ids + share - fresh : NULL);
      for (guint32 b = share - fresh; b < share && pool->explicit_ids && pool->move; b++)
        pool->move(FALSE, node->ids[b], tier_ids(pool, node)[b], pool->move_user);
    }
    adopt_last_node(pool, sequence);
  }
}

/* Checking. */

const char *kv_pool_check(const KvPool *pool, KvSequence *const *sequences, guint n_sequences,
                          guint64 taken_private) {
  guint64 queued = 0, cached = 0, held = taken_private;
  for (guint64 at = pool->head; at < pool->tail; at++) {
    const KvExtent *e = pool->ring[at & pool->ring_mask];
    if (!e)
      continue;
    const Run *run = e->is_node ? NULL : (const Run *)e;
    if (e->blocks == 0)
      return "an empty extent is queued";
    if (!e->queued || e->position != at)
      return "a queued extent does not know it";
    if (e->is_node && ((const KvPrefixNode *)e)->references > 0)
      return "a held node is queued";
    if (run && run->owner && run->owner->kept != e)
      return "an owner does not know its extent";
    queued += e->blocks;
    cached += e->is_node ? e->blocks : 0;
  }
  gsize used = 0;
  guint64 tier = 0;
  for (gsize i = 0; i <= pool->table_mask; i++) {
    const KvPrefixNode *node = pool->table[i].node;
    if (!node)
      continue;
    used++;
    tier += node->tier_blocks;
    if (node->references > 0)
      held += node->extent.blocks;
    else if (node->extent.blocks > 0 && !node->extent.queued)
      return "a node that nobody holds is not queued";
    if (node->extent.blocks > pool->node_blocks)
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
