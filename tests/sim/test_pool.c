/* sim/engine/pool.h: against a queue of single blocks, as vLLM has it.
 *
 * The reference below knows every block by number: a free list of blocks, the content of each,
 * references per prefix node, and each sequence's table of blocks. It shares with the pool what the
 * pool's header gives as its deviation: the blocks that one hash names are referenced together.
 * Both get the same random operations; free blocks, cached blocks, hits, tables and evictions must
 * agree after each.
 */
#include "sim/engine/pool.h"

#include "sim/base/random.h"

enum { N_SEQUENCES = 12, STEPS = 4000, NOBODY = -1 };

typedef struct {
  guint64 key;
  GArray *ids; /* its blocks in the pool, the first first */
  guint references, tier_blocks;
} Node;

typedef struct {
  KvSequence sequence;
  gboolean running;
  GPtrArray *nodes;    /* held; NULL where it has duplicates */
  GArray *table;       /* blocks held, in token order */
  GArray *kept;        /* blocks in the free list under its name */
  guint64 kept_usable; /* of them, those that were complete */
} Actor;

typedef struct {
  guint block_tokens, hash_tokens, node_tokens, node_blocks;
  guint64 total, tier_capacity, evictions;
  gboolean prefix_caching, explicit_ids;
  KvPool *pool;
  GArray *queue; /* of guint32: the free list, head first */
  GHashTable *nodes;
  GPtrArray *tier; /* of Node: least recently used first */
  Node **node_of;  /* by block */
  gint *owner_of;  /* by block: whose kept block it is */
  Actor actors[N_SEQUENCES];
  KvRandom random;
} World;

static guint32 id_at(const GArray *ids, guint64 i) {
  return g_array_index(ids, guint32, i);
}

/* The reference. */

static guint64 named(const World *w, const Actor *a) {
  return w->prefix_caching && a->sequence.n_hashes && w->hash_tokens
             ? a->sequence.input_tokens / w->block_tokens
             : 0;
}

static guint64 key_of(const World *w, const Actor *a, guint64 block) {
  guint64 last_token = (block / w->node_blocks + 1) * w->node_tokens - 1;
  return a->sequence.hashes[MIN(last_token / w->hash_tokens, a->sequence.n_hashes - 1)];
}

static Node *find(const World *w, guint64 key) {
  return g_hash_table_lookup(w->nodes, &key);
}

static void drop_if_nowhere(World *w, Node *node) {
  if (node->ids->len == 0 && node->references == 0 && node->tier_blocks == 0)
    g_hash_table_remove(w->nodes, &node->key);
}

static void node_free(gpointer data) {
  Node *node = data;
  g_array_unref(node->ids);
  g_free(node);
}

static void push(World *w, guint32 id) {
  g_array_append_val(w->queue, id);
}

static void unqueue(World *w, guint32 id) {
  for (guint i = 0; i < w->queue->len; i++)
    if (id_at(w->queue, i) == id) {
      g_array_remove_index(w->queue, i);
      return;
    }
  g_assert_not_reached();
}

/* Take the head of the free list; whoever could find it no longer does. */
static guint32 pop(World *w) {
  guint32 id = id_at(w->queue, 0);
  g_array_remove_index(w->queue, 0);
  Node *node = w->node_of[id];
  if (node) {
    g_assert_cmpuint(id_at(node->ids, node->ids->len - 1), ==, id); /* the deepest goes first */
    g_array_set_size(node->ids, node->ids->len - 1);
    w->node_of[id] = NULL;
    w->evictions++;
    drop_if_nowhere(w, node);
  } else if (w->owner_of[id] != NOBODY) {
    GArray *kept = w->actors[w->owner_of[id]].kept;
    g_assert_cmpuint(id_at(kept, kept->len - 1), ==, id);
    g_array_set_size(kept, kept->len - 1);
    w->owner_of[id] = NOBODY;
  }
  return id;
}

static void forget(World *w, Actor *a) {
  for (guint i = 0; i < a->kept->len; i++)
    w->owner_of[id_at(a->kept, i)] = NOBODY;
  g_array_set_size(a->kept, 0);
  a->kept_usable = 0;
}

static gboolean is_private(const World *w, const Actor *a, guint64 position) {
  guint64 i = position / w->node_blocks;
  const Node *node = i < a->nodes->len ? g_ptr_array_index(a->nodes, i) : NULL;
  return !node || position % w->node_blocks >= node->ids->len ||
         id_at(node->ids, position % w->node_blocks) != id_at(a->table, position);
}

static void hold(World *w, Actor *a, Node *node) {
  if (node->references++ == 0)
    for (guint i = 0; i < node->ids->len; i++)
      unqueue(w, id_at(node->ids, i));
  g_ptr_array_add(a->nodes, node);
}

/* Another sequence that holds the last node may have completed more of it: those blocks count, and
 * blocks of our own that they make superfluous go back. */
static void adopt(World *w, Actor *a) {
  Node *node = a->nodes->len ? g_ptr_array_index(a->nodes, a->nodes->len - 1) : NULL;
  guint64 start = (a->nodes->len - 1) * (guint64)w->node_blocks;
  if (!node)
    return;
  GArray *surplus = g_array_new(FALSE, FALSE, sizeof(guint32));
  for (guint64 i = 0; i < node->ids->len && start + i < named(w, a); i++) {
    guint32 id = id_at(node->ids, i);
    if (start + i == a->table->len) {
      g_array_append_val(a->table, id);
    } else if (id_at(a->table, start + i) != id) {
      g_array_append_val(surplus, g_array_index(a->table, guint32, start + i));
      g_array_index(a->table, guint32, start + i) = id;
    }
  }
  for (guint i = surplus->len; i-- > 0;)
    push(w, id_at(surplus, i));
  g_array_unref(surplus);
}

static KvPrefixHit reference_lookup(World *w, Actor *a, guint32 limit_tokens) {
  KvPrefixHit hit = {0};
  guint64 limit = limit_tokens / w->block_tokens, reachable = MIN(limit, named(w, a)), n = 0, upper;
  for (; n < reachable; n++) {
    Node *node = find(w, key_of(w, a, n));
    if (!node || node->ids->len <= n % w->node_blocks)
      break;
    if (n % w->node_blocks == 0) {
      hit.n_nodes++;
      hit.free_blocks += node->references ? 0 : node->ids->len;
    }
  }
  if (n == named(w, a) && limit > n)
    hit.own_blocks = MIN(MIN(a->kept->len, a->kept_usable), limit - n);
  hit.free_blocks += hit.own_blocks;
  hit.tokens = (n + hit.own_blocks) * w->block_tokens;
  for (upper = n; w->tier_capacity && upper < reachable; upper++) {
    Node *node = find(w, key_of(w, a, upper));
    if (!node || node->tier_blocks <= upper % w->node_blocks)
      break;
  }
  hit.tier_tokens = (upper - n) * w->block_tokens;
  return hit;
}

static void reference_take_hit(World *w, Actor *a, const KvPrefixHit *hit) {
  guint64 blocks = hit->tokens / w->block_tokens - hit->own_blocks;
  for (guint64 n = 0; n < blocks; n += w->node_blocks) {
    hold(w, a, find(w, key_of(w, a, n)));
    adopt(w, a);
  }
  for (guint i = 0; i < hit->own_blocks; i++) {
    guint32 id = id_at(a->kept, i);
    unqueue(w, id);
    g_array_append_val(a->table, id);
  }
  forget(w, a);
}

static void reference_take_tier(World *w, Actor *a, const KvPrefixHit *hit) {
  guint64 end = (hit->tokens + hit->tier_tokens) / w->block_tokens;
  for (guint64 n = hit->tokens / w->block_tokens; n < end; n++) {
    Node *node = find(w, key_of(w, a, n));
    if (n / w->node_blocks >= a->nodes->len) {
      hold(w, a, node);
      adopt(w, a);
    }
    if (node->ids->len <= n % w->node_blocks) {
      guint32 id = pop(w);
      w->node_of[id] = node;
      g_array_append_val(node->ids, id);
    }
    adopt(w, a);
  }
}

static void reference_publish(World *w, Actor *a, guint32 computed_tokens) {
  guint64 full = MIN(computed_tokens / w->block_tokens, named(w, a));
  for (guint64 n = a->nodes->len ? (a->nodes->len - 1) * (guint64)w->node_blocks : 0; n < full;
       n++) {
    guint64 i = n / w->node_blocks;
    if (i >= a->nodes->len) {
      guint64 key = key_of(w, a, n);
      Node *node = find(w, key);
      if (node && (node->ids->len || node->references)) {
        g_ptr_array_add(a->nodes, NULL);
      } else {
        if (!node) {
          node = g_new0(Node, 1);
          node->key = key;
          node->ids = g_array_new(FALSE, FALSE, sizeof(guint32));
          g_hash_table_insert(w->nodes, &node->key, node);
        }
        node->references = 1;
        g_ptr_array_add(a->nodes, node);
      }
    }
    Node *node = g_ptr_array_index(a->nodes, i);
    if (node && node->ids->len == n % w->node_blocks) {
      guint32 id = id_at(a->table, n);
      g_array_append_val(node->ids, id);
      w->node_of[id] = node;
    }
  }
}

static void reference_grow(World *w, Actor *a, guint64 blocks, guint32 computed_tokens) {
  adopt(w, a);
  while (a->table->len < blocks) {
    guint32 id = pop(w);
    g_array_append_val(a->table, id);
  }
  if (w->prefix_caching && a->sequence.n_hashes)
    reference_publish(w, a, computed_tokens);
}

static void reference_release(World *w, Actor *a, gboolean keep) {
  guint64 n_private = 0, full = a->sequence.computed_tokens / w->block_tokens;
  adopt(w, a);
  forget(w, a);
  GArray *mine = g_array_new(FALSE, FALSE, sizeof(guint32));
  for (guint64 n = 0; n < a->table->len; n++) {
    guint32 id = id_at(a->table, n);
    if (is_private(w, a, n))
      g_array_append_val(mine, id);
    n_private += is_private(w, a, n);
  }
  for (guint i = 0; i < a->nodes->len; i++)
    keep &= g_ptr_array_index(a->nodes, i) != NULL;
  /* Kept blocks follow the named ones; they are of use only if those were all there. */
  keep =
      keep && w->prefix_caching && a->table->len - n_private == named(w, a) && full > named(w, a);
  for (guint i = mine->len; i-- > 0;) {
    push(w, id_at(mine, i));
    w->owner_of[id_at(mine, i)] = keep ? (gint)(a - w->actors) : NOBODY;
  }
  if (keep) {
    g_array_append_vals(a->kept, mine->data, mine->len);
    a->kept_usable = full - named(w, a);
  }
  g_array_unref(mine);
  for (guint i = a->nodes->len; i-- > 0;) {
    Node *node = g_ptr_array_index(a->nodes, i);
    if (!node || --node->references > 0)
      continue;
    for (guint j = node->ids->len; j-- > 0;)
      push(w, id_at(node->ids, j));
    drop_if_nowhere(w, node);
  }
  g_ptr_array_set_size(a->nodes, 0);
  g_array_set_size(a->table, 0);
}

static void reference_shrink(World *w, Actor *a, guint64 blocks) {
  while (a->table->len > blocks && is_private(w, a, a->table->len - 1)) {
    push(w, id_at(a->table, a->table->len - 1));
    g_array_set_size(a->table, a->table->len - 1);
  }
}

static guint64 tier_used(const World *w) {
  guint64 used = 0;
  for (guint i = 0; i < w->tier->len; i++)
    used += ((const Node *)g_ptr_array_index(w->tier, i))->tier_blocks;
  return used;
}

static guint64 reference_store(World *w, Actor *a) {
  guint64 stored = 0;
  for (guint i = a->nodes->len; w->tier_capacity && i-- > 0;) {
    Node *node = g_ptr_array_index(a->nodes, i);
    if (!node)
      continue;
    if (g_ptr_array_remove(w->tier, node))
      g_ptr_array_add(w->tier, node);
    guint fresh = node->ids->len > node->tier_blocks ? node->ids->len - node->tier_blocks : 0;
    for (guint v = 0; v < w->tier->len && tier_used(w) + fresh > w->tier_capacity;) {
      Node *victim = g_ptr_array_index(w->tier, v);
      if (victim == node) {
        v++;
        continue;
      }
      g_ptr_array_remove_index(w->tier, v);
      victim->tier_blocks = 0;
      drop_if_nowhere(w, victim);
    }
    if (tier_used(w) + fresh > w->tier_capacity)
      continue;
    if (node->tier_blocks == 0 && fresh > 0)
      g_ptr_array_add(w->tier, node);
    node->tier_blocks += fresh;
    stored += fresh;
  }
  return stored;
}

/* Both at once. */

static void compare(World *w) {
  KvSequence *list[N_SEQUENCES];
  guint64 cached = 0;
  for (guint i = 0; i < w->queue->len; i++)
    cached += w->node_of[id_at(w->queue, i)] != NULL;
  g_assert_cmpuint(kv_pool_free_blocks(w->pool), ==, w->queue->len);
  g_assert_cmpuint(kv_pool_cached_blocks(w->pool), ==, cached);
  g_assert_cmpuint(kv_pool_tier_blocks(w->pool), ==, tier_used(w));
  for (guint i = 0; i < N_SEQUENCES; i++) {
    Actor *a = &w->actors[i];
    list[i] = &a->sequence;
    if (w->explicit_ids && a->running) {
      g_assert_cmpuint(a->sequence.n_block_ids, <=, a->table->len);
      for (guint b = 0; b < a->sequence.n_block_ids; b++)
        g_assert_cmpuint(a->sequence.block_ids[b], ==, id_at(a->table, b));
    }
  }
  g_assert_cmpstr(kv_pool_check(w->pool, list, N_SEQUENCES, 0), ==, NULL);
}

static void compare_hits(World *w, Actor *a, KvPrefixHit *hit) {
  guint32 limit = (guint32)kv_random_integer(&w->random, 0, 3)
                      ? a->sequence.target_tokens - 1
                      : (guint32)kv_random_integer(&w->random, 0, a->sequence.target_tokens - 1);
  *hit = kv_pool_lookup(w->pool, &a->sequence, limit);
  KvPrefixHit expected = reference_lookup(w, a, limit);
  g_assert_cmpuint(hit->tokens, ==, expected.tokens);
  g_assert_cmpuint(hit->own_blocks, ==, expected.own_blocks);
  g_assert_cmpuint(hit->free_blocks, ==, expected.free_blocks);
  g_assert_cmpuint(hit->n_nodes, ==, expected.n_nodes);
  g_assert_cmpuint(hit->tier_tokens, ==, expected.tier_tokens);
  guint64 match = 0;
  for (; match < named(w, a); match++) {
    const Node *node = find(w, key_of(w, a, match));
    if (!node || MAX(node->ids->len, node->tier_blocks) <= match % w->node_blocks)
      break;
  }
  g_assert_cmpuint(kv_pool_match_tokens(w->pool, &a->sequence), ==, match * w->block_tokens);
}

/* A new request: a walk down a tree of prefixes, most of it common. */
static void renew(World *w, Actor *a) {
  KvSequence *s = &a->sequence;
  kv_pool_forget(w->pool, s);
  forget(w, a);
  g_free(s->hashes);
  guint unit = w->node_tokens;
  s->input_tokens = (guint32)kv_random_integer(&w->random, 1, (gint64)5 * unit);
  s->output_tokens = 6 * w->block_tokens;
  s->target_tokens = s->input_tokens;
  s->computed_tokens = s->emitted_tokens = 0;
  guint hash_tokens = w->hash_tokens ? w->hash_tokens : 16;
  s->n_hashes = (s->input_tokens + hash_tokens - 1) / hash_tokens;
  s->hashes = g_new(guint64, s->n_hashes);
  guint64 hash = 1 + (guint64)kv_random_integer(&w->random, 0, 1);
  for (guint i = 0; i < s->n_hashes; i++) {
    gboolean fork = kv_random_integer(&w->random, 0, 2 + 2 * unit / hash_tokens) == 0;
    hash = kv_random_mix(2 * hash + fork);
    s->hashes[i] = hash;
  }
  if (kv_random_integer(&w->random, 0, 9) == 0)
    s->n_hashes = 0; /* nothing is known of it */
}

static guint64 blocks_for(const World *w, guint64 tokens) {
  return (tokens + w->block_tokens - 1) / w->block_tokens;
}

/* Compute some more of the target, if there are blocks for it. */
static void grow(World *w, Actor *a) {
  KvSequence *s = &a->sequence;
  guint left = s->target_tokens - s->computed_tokens;
  if (left == 0) { /* decode a few */
    if (s->emitted_tokens + 40 > s->output_tokens)
      return;
    left = (guint)kv_random_integer(&w->random, 1, 40);
    if (kv_pool_held(w->pool, s) + kv_pool_free_blocks(w->pool) <
        blocks_for(w, s->computed_tokens + left))
      return;
    s->emitted_tokens += left;
    s->target_tokens += left;
    if (!w->explicit_ids && kv_random_integer(&w->random, 0, 1)) { /* as a part of a decoding set */
      guint64 more = blocks_for(w, s->target_tokens) - kv_pool_held(w->pool, s);
      kv_pool_take_private(w->pool, more);
      kv_pool_settle(s, s->private_blocks + more);
      while (a->table->len < blocks_for(w, s->target_tokens)) {
        guint32 id = pop(w);
        g_array_append_val(a->table, id);
      }
      s->computed_tokens = s->target_tokens;
      return;
    }
  } else {
    left = (guint)kv_random_integer(&w->random, 1, left);
  }
  guint64 blocks = blocks_for(w, s->computed_tokens + left), held = kv_pool_held(w->pool, s);
  if (blocks > held && blocks - held > kv_pool_free_blocks(w->pool))
    return;
  s->computed_tokens += left;
  kv_pool_grow(w->pool, s, blocks, s->computed_tokens);
  reference_grow(w, a, blocks, s->computed_tokens);
  g_assert_cmpuint(kv_pool_held(w->pool, s), ==, a->table->len);
  if (w->explicit_ids)
    g_assert_cmpuint(s->n_block_ids, ==, a->table->len);
}

static void admit(World *w, Actor *a) {
  KvSequence *s = &a->sequence;
  KvPrefixHit hit;
  compare_hits(w, a, &hit);
  guint64 fresh = hit.tier_tokens / w->block_tokens + 1;
  if (hit.free_blocks + fresh > kv_pool_free_blocks(w->pool))
    return;
  kv_pool_take_hit(w->pool, s, &hit);
  reference_take_hit(w, a, &hit);
  compare(w);
  if (hit.tier_tokens > 0) {
    kv_pool_take_tier(w->pool, s, &hit);
    reference_take_tier(w, a, &hit);
  }
  s->computed_tokens = (guint32)(hit.tokens + hit.tier_tokens);
  a->running = TRUE;
  g_assert_cmpuint(kv_pool_held(w->pool, s), >=, s->computed_tokens / w->block_tokens);
}

static void release(World *w, Actor *a, gboolean keep) {
  KvSequence *s = &a->sequence;
  if (w->tier_capacity && kv_random_integer(&w->random, 0, 1))
    g_assert_cmpuint(kv_pool_store(w->pool, s), ==, reference_store(w, a));
  kv_pool_release(w->pool, s, keep);
  reference_release(w, a, keep);
  g_assert_cmpuint(kv_pool_held(w->pool, s), ==, 0);
  a->running = FALSE;
  s->target_tokens = s->input_tokens + s->emitted_tokens;
  s->computed_tokens = 0;
  if (!keep)
    renew(w, a);
}

static void act(World *w) {
  Actor *a = &w->actors[kv_random_integer(&w->random, 0, N_SEQUENCES - 1)];
  gint64 what = kv_random_integer(&w->random, 0, 19);
  if (!a->running && what == 0) {
    renew(w, a);
  } else if (!a->running) {
    admit(w, a);
  } else if (what < 13) {
    grow(w, a);
  } else if (what < 16) {
    release(w, a, TRUE);
  } else if (what < 19) {
    release(w, a, FALSE);
  } else if ((!w->explicit_ids || a->sequence.n_nodes == 0) &&
             !g_ptr_array_find(a->nodes, NULL, NULL) &&
             a->sequence.computed_tokens == a->sequence.target_tokens) {
    guint64 blocks = (guint64)kv_random_integer(&w->random, 0, 1 + a->table->len);
    guint64 held = kv_pool_held(w->pool, &a->sequence);
    kv_pool_shrink(w->pool, &a->sequence, blocks);
    reference_shrink(w, a, blocks);
    g_assert_cmpuint(kv_pool_held(w->pool, &a->sequence), <=, held);
    compare(w);
    release(w, a, FALSE); /* what was computed is no longer there */
  }
}

static void world_init(World *w, guint block_tokens, guint hash_tokens, gboolean prefix_caching,
                       gboolean explicit_ids, guint64 total, guint64 tier) {
  *w = (World){.block_tokens = block_tokens,
               .hash_tokens = hash_tokens,
               .node_tokens = MAX(block_tokens, hash_tokens),
               .node_blocks = MAX(block_tokens, hash_tokens) / block_tokens,
               .total = total,
               .tier_capacity = tier,
               .prefix_caching = prefix_caching,
               .explicit_ids = explicit_ids};
  w->pool = kv_pool_new(total, block_tokens, hash_tokens, prefix_caching, explicit_ids);
  kv_pool_set_tier(w->pool, tier, 0, NULL, NULL);
  w->queue = g_array_new(FALSE, FALSE, sizeof(guint32));
  w->nodes = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, node_free);
  w->tier = g_ptr_array_new();
  w->node_of = g_new0(Node *, total + 1);
  w->owner_of = g_new0(gint, total + 1);
  for (guint32 id = 0; id < total; id++) {
    push(w, id);
    w->owner_of[id] = NOBODY;
  }
  for (guint i = 0; i < N_SEQUENCES; i++) {
    w->actors[i].nodes = g_ptr_array_new();
    w->actors[i].table = g_array_new(FALSE, FALSE, sizeof(guint32));
    w->actors[i].kept = g_array_new(FALSE, FALSE, sizeof(guint32));
    w->actors[i].sequence.index = i;
  }
}

static void world_clear(World *w) {
  for (guint i = 0; i < N_SEQUENCES; i++) {
    Actor *a = &w->actors[i];
    if (a->running) {
      kv_pool_release(w->pool, &a->sequence, FALSE);
      reference_release(w, a, FALSE);
      a->running = FALSE;
    }
    compare(w);
  }
  for (guint i = 0; i < N_SEQUENCES; i++) {
    Actor *a = &w->actors[i];
    kv_pool_forget(w->pool, &a->sequence);
    g_free(a->sequence.hashes);
    g_free(a->sequence.nodes);
    g_free(a->sequence.block_ids);
    g_ptr_array_unref(a->nodes);
    g_array_unref(a->table);
    g_array_unref(a->kept);
  }
  g_assert_cmpuint(kv_pool_free_blocks(w->pool), ==, w->total); /* nothing was lost */
  kv_pool_free(w->pool);
  g_array_unref(w->queue);
  g_hash_table_unref(w->nodes);
  g_ptr_array_unref(w->tier);
  g_free(w->node_of);
  g_free(w->owner_of);
}

static void play(guint block_tokens, guint hash_tokens, gboolean prefix_caching,
                 gboolean explicit_ids, gboolean with_tier, guint64 seed) {
  World *w = g_new(World, 1);
  guint64 per_prompt = 5 * MAX(block_tokens, hash_tokens) / block_tokens + 6;
  world_init(w, block_tokens, hash_tokens, prefix_caching, explicit_ids, 3 * per_prompt,
             with_tier ? 2 * per_prompt : 0);
  kv_random_seed(&w->random, seed, 0);
  for (guint i = 0; i < N_SEQUENCES; i++)
    renew(w, &w->actors[i]);
  for (guint step = 0; step < STEPS; step++) {
    act(w);
    compare(w);
  }
  if (prefix_caching && hash_tokens)
    g_assert_cmpuint(w->evictions, >, 100); /* the pool was small enough to be a test */
  world_clear(w);
  g_free(w);
}

static void follows_the_reference(void) {
  const guint hashes[] = {512, 64, 16}, blocks[] = {16, 32, 128};
  for (guint h = 0; h < G_N_ELEMENTS(hashes); h++)
    for (guint b = 0; b < G_N_ELEMENTS(blocks); b++)
      for (guint kind = 0; kind < 4; kind++)
        play(blocks[b], hashes[h], TRUE, kind & 1, kind & 2, 100 * h + 10 * b + kind);
}

static void without_an_index(void) {
  play(16, 0, TRUE, FALSE, FALSE, 1);
  play(16, 0, TRUE, TRUE, FALSE, 2);
  play(16, 512, FALSE, FALSE, FALSE, 3);
  play(16, 512, FALSE, TRUE, FALSE, 4);
}

/* By hand: four blocks of 16 tokens, a prefix hash for each. */

typedef struct {
  KvSequence sequence;
  guint64 hashes[8];
} Prompt;

static void prompt_init(Prompt *p, guint32 tokens, guint64 first_hash) {
  *p = (Prompt){.sequence = {.input_tokens = tokens,
                             .target_tokens = tokens,
                             .n_hashes = (tokens + 15) / 16}};
  p->sequence.hashes = p->hashes;
  for (guint i = 0; i < G_N_ELEMENTS(p->hashes); i++)
    p->hashes[i] = first_hash + i;
}

static void prompt_clear(Prompt *p) {
  g_free(p->sequence.nodes);
  g_free(p->sequence.block_ids);
}

static guint64 hit_tokens(KvPool *pool, Prompt *p) {
  return kv_pool_lookup(pool, &p->sequence, p->sequence.target_tokens - 1).tokens;
}

static void deepest_blocks_go_first(void) {
  KvPool *pool = kv_pool_new(4, 16, 16, TRUE, FALSE);
  Prompt a, b, c;
  prompt_init(&a, 49, 100);
  prompt_init(&b, 16, 200);
  prompt_init(&c, 32, 300);
  kv_pool_grow(pool, &a.sequence, 4, 49);
  g_assert_cmpuint(kv_pool_free_blocks(pool), ==, 0);
  kv_pool_release(pool, &a.sequence, FALSE);
  g_assert_cmpuint(kv_pool_cached_blocks(pool), ==, 3); /* the fourth is not full */
  g_assert_cmpuint(hit_tokens(pool, &a), ==, 48);
  kv_pool_grow(pool, &b.sequence, 1, 16); /* takes the fourth: nobody could find it */
  g_assert_cmpuint(hit_tokens(pool, &a), ==, 48);
  kv_pool_grow(pool, &c.sequence, 1, 16);
  g_assert_cmpuint(hit_tokens(pool, &a), ==, 32);
  kv_pool_grow(pool, &c.sequence, 2, 32);
  g_assert_cmpuint(hit_tokens(pool, &a), ==, 16);
  kv_pool_release(pool, &b.sequence, FALSE);
  kv_pool_release(pool, &c.sequence, FALSE);
  prompt_clear(&a);
  prompt_clear(&b);
  prompt_clear(&c);
  kv_pool_free(pool);
}

/* A hit on free blocks moves them behind all others. */
static void used_again_is_recent(void) {
  KvPool *pool = kv_pool_new(4, 16, 16, TRUE, FALSE);
  Prompt a, b, c;
  prompt_init(&a, 33, 100);
  prompt_init(&b, 33, 200);
  prompt_init(&c, 32, 300);
  kv_pool_grow(pool, &a.sequence, 2, 32);
  kv_pool_release(pool, &a.sequence, FALSE);
  kv_pool_grow(pool, &b.sequence, 2, 32);
  kv_pool_release(pool, &b.sequence, FALSE);
  KvPrefixHit hit = kv_pool_lookup(pool, &a.sequence, 32);
  g_assert_cmpuint(hit.tokens, ==, 32);
  g_assert_cmpuint(hit.free_blocks, ==, 2);
  kv_pool_take_hit(pool, &a.sequence, &hit);
  g_assert_cmpuint(kv_pool_free_blocks(pool), ==, 2);
  g_assert_cmpuint(kv_pool_lookup(pool, &a.sequence, 32).free_blocks, ==,
                   0); /* held: costs nothing */
  kv_pool_release(pool, &a.sequence, FALSE);
  kv_pool_grow(pool, &c.sequence, 2, 32);
  g_assert_cmpuint(hit_tokens(pool, &a), ==, 32);
  g_assert_cmpuint(hit_tokens(pool, &b), ==, 0);
  kv_pool_release(pool, &c.sequence, FALSE);
  prompt_clear(&a);
  prompt_clear(&b);
  prompt_clear(&c);
  kv_pool_free(pool);
}

/* Of a prompt that is cached whole, the last token is computed again, and so its whole block. */
static void whole_prompt_is_never_hit(void) {
  KvPool *pool = kv_pool_new(8, 16, 16, TRUE, FALSE);
  Prompt a;
  prompt_init(&a, 48, 100);
  kv_pool_grow(pool, &a.sequence, 3, 48);
  kv_pool_release(pool, &a.sequence, FALSE);
  g_assert_cmpuint(hit_tokens(pool, &a), ==, 32);
  g_assert_cmpuint(kv_pool_match_tokens(pool, &a.sequence), ==, 48);
  prompt_clear(&a);
  kv_pool_free(pool);
}

/* Two that compute the same at the same time keep their own blocks; the first one's are found. */
static void duplicates_stay_private(void) {
  KvPool *pool = kv_pool_new(8, 16, 16, TRUE, FALSE);
  Prompt a, b;
  prompt_init(&a, 32, 100);
  prompt_init(&b, 32, 100);
  g_assert_cmpuint(hit_tokens(pool, &b), ==, 0);
  kv_pool_grow(pool, &a.sequence, 2, 32);
  kv_pool_grow(pool, &b.sequence, 2, 32);
  g_assert_cmpuint(kv_pool_free_blocks(pool), ==, 4);
  kv_pool_release(pool, &b.sequence, FALSE);
  g_assert_cmpuint(kv_pool_cached_blocks(pool), ==, 0);
  kv_pool_release(pool, &a.sequence, FALSE);
  g_assert_cmpuint(kv_pool_cached_blocks(pool), ==, 2);
  prompt_clear(&a);
  prompt_clear(&b);
  kv_pool_free(pool);
}

/* A preempted sequence finds its own answer again, as far as its blocks were full and were not
 * reused. */
static void preempted_finds_its_own(void) {
  for (guint taken = 0; taken < 4; taken++) {
    KvPool *pool = kv_pool_new(5, 16, 16, TRUE, FALSE);
    Prompt a, b;
    prompt_init(&a, 32, 100);
    prompt_init(&b, 80, 200);
    kv_pool_grow(pool, &a.sequence, 5,
                 70); /* 32 of prompt, 38 of answer: two full blocks and six tokens */
    a.sequence.computed_tokens = 70;
    kv_pool_release(pool, &a.sequence, TRUE);
    a.sequence.target_tokens = 100;
    kv_pool_grow(pool, &b.sequence, taken, 0);
    guint64 own = MIN(2, 3 - taken);
    KvPrefixHit hit = kv_pool_lookup(pool, &a.sequence, 99);
    g_assert_cmpuint(hit.tokens, ==, (2 + own) * 16);
    g_assert_cmpuint(hit.own_blocks, ==, own);
    kv_pool_forget(pool, &a.sequence);
    g_assert_cmpuint(kv_pool_lookup(pool, &a.sequence, 99).tokens, ==, 32);
    kv_pool_release(pool, &b.sequence, FALSE);
    prompt_clear(&a);
    prompt_clear(&b);
    kv_pool_free(pool);
  }
}

/* Preempted in its prompt: the block that it had begun is not the block after the prompt, even if
 * others have meanwhile completed the prompt. */
static void begun_block_is_not_the_answers(void) {
  KvPool *pool = kv_pool_new(12, 16, 16, TRUE, FALSE);
  Prompt a, b;
  prompt_init(&a, 64, 100);
  prompt_init(&b, 64, 100);
  a.sequence.target_tokens = 104; /* it had generated 40 tokens before a first preemption */
  kv_pool_grow(pool, &a.sequence, 2, 24);
  a.sequence.computed_tokens = 24;
  kv_pool_release(pool, &a.sequence, TRUE);
  kv_pool_grow(pool, &b.sequence, 4, 64);
  KvPrefixHit hit = kv_pool_lookup(pool, &a.sequence, 103);
  g_assert_cmpuint(hit.tokens, ==, 64);
  g_assert_cmpuint(hit.own_blocks, ==, 0);
  kv_pool_release(pool, &b.sequence, FALSE);
  kv_pool_forget(pool, &a.sequence);
  prompt_clear(&a);
  prompt_clear(&b);
  kv_pool_free(pool);
}

static void nothing_fits_into_nothing(void) {
  for (guint explicit_ids = 0; explicit_ids < 2; explicit_ids++) {
    KvPool *pool = kv_pool_new(0, 16, 16, TRUE, explicit_ids);
    Prompt a;
    prompt_init(&a, 64, 100);
    g_assert_cmpuint(kv_pool_total(pool), ==, 0);
    g_assert_cmpuint(kv_pool_free_blocks(pool), ==, 0);
    g_assert_cmpuint(hit_tokens(pool, &a), ==, 0);
    g_assert_cmpuint(kv_pool_match_tokens(pool, &a.sequence), ==, 0);
    kv_pool_grow(pool, &a.sequence, 0, 0);
    kv_pool_release(pool, &a.sequence, TRUE);
    kv_pool_release(pool, &a.sequence, FALSE);
    g_assert_cmpstr(kv_pool_check(pool, NULL, 0, 0), ==, NULL);
    kv_pool_free(pool);
  }
  kv_pool_free(NULL);
}

/* The check itself must see what is wrong. */
static void check_sees_lost_blocks(void) {
  KvPool *pool = kv_pool_new(8, 16, 16, TRUE, FALSE);
  Prompt a;
  prompt_init(&a, 64, 100);
  KvSequence *const list[] = {&a.sequence};
  kv_pool_grow(pool, &a.sequence, 5, 64);
  g_assert_cmpstr(kv_pool_check(pool, list, 1, 0), ==, NULL);
  g_assert_nonnull(kv_pool_check(pool, NULL, 0, 0));
  kv_pool_take_private(pool, 1);
  g_assert_nonnull(kv_pool_check(pool, list, 1, 0));
  g_assert_cmpstr(kv_pool_check(pool, list, 1, 1), ==, NULL);
  prompt_clear(&a);
  kv_pool_free(pool);
}

/* Written through, found after its blocks have been reused, and least recently used goes first. */
static void lower_tier_by_hand(void) {
  KvPool *pool = kv_pool_new(3, 16, 16, TRUE, FALSE);
  Prompt a, b;
  prompt_init(&a, 33, 100);
  prompt_init(&b, 33, 200);
  kv_pool_set_tier(pool, 3, 0, NULL, NULL);
  kv_pool_grow(pool, &a.sequence, 3, 33);
  g_assert_cmpuint(kv_pool_store(pool, &a.sequence), ==, 2);
  g_assert_cmpuint(kv_pool_store(pool, &a.sequence), ==, 0); /* already there */
  kv_pool_release(pool, &a.sequence, FALSE);
  kv_pool_grow(pool, &b.sequence, 3, 33);
  KvPrefixHit hit = kv_pool_lookup(pool, &a.sequence, 32);
  g_assert_cmpuint(hit.tokens, ==, 0);
  g_assert_cmpuint(hit.tier_tokens, ==, 32);
  g_assert_cmpuint(kv_pool_match_tokens(pool, &a.sequence), ==, 32);
  g_assert_cmpuint(kv_pool_store(pool, &b.sequence), ==,
                   2); /* the deeper block of a is evicted for one of them */
  g_assert_cmpuint(kv_pool_tier_blocks(pool), ==, 3);
  g_assert_cmpuint(kv_pool_lookup(pool, &a.sequence, 32).tier_tokens, ==, 16);
  kv_pool_release(pool, &b.sequence, FALSE);
  hit = kv_pool_lookup(pool, &a.sequence, 32);
  kv_pool_take_hit(pool, &a.sequence, &hit);
  kv_pool_take_tier(pool, &a.sequence, &hit);
  g_assert_cmpuint(kv_pool_held(pool, &a.sequence), ==, 1);
  g_assert_cmpuint(kv_pool_lookup(pool, &a.sequence, 32).tokens, ==, 16);
  kv_pool_release(pool, &a.sequence, FALSE);
  prompt_clear(&a);
  prompt_clear(&b);
  kv_pool_free(pool);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/pool/deepest-blocks-go-first", deepest_blocks_go_first);
  g_test_add_func("/pool/used-again-is-recent", used_again_is_recent);
  g_test_add_func("/pool/whole-prompt-is-never-hit", whole_prompt_is_never_hit);
  g_test_add_func("/pool/duplicates-stay-private", duplicates_stay_private);
  g_test_add_func("/pool/preempted-finds-its-own", preempted_finds_its_own);
  g_test_add_func("/pool/begun-block-is-not-the-answers", begun_block_is_not_the_answers);
  g_test_add_func("/pool/nothing-fits-into-nothing", nothing_fits_into_nothing);
  g_test_add_func("/pool/check-sees-lost-blocks", check_sees_lost_blocks);
  g_test_add_func("/pool/lower-tier-by-hand", lower_tier_by_hand);
  g_test_add_func("/pool/without-an-index", without_an_index);
  g_test_add_func("/pool/follows-the-reference", follows_the_reference);
  return g_test_run();
}
