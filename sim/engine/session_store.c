#include "sim/engine/session_store.h"

#include <math.h>
#include <string.h>

#include "sim/engine/park.h"

const KvTierPolicyClass *const kv_tier_policies[] = {
    &kv_tier_policy_look_ahead,
    &kv_tier_policy_lru,
    &kv_tier_policy_fifo,
    NULL,
};

const KvTierPolicyClass *kv_tier_policy_find(const char *name) {
  for (guint i = 0; kv_tier_policies[i]; i++)
    if (strcmp(kv_tier_policies[i]->name, name) == 0)
      return kv_tier_policies[i];
  return NULL;
}

/* One tier: what it holds by use, the oldest first. */
typedef struct {
  guint64 capacity, used; /* blocks */
  KvStored *oldest, *newest;
} Shelf;

struct KvSessionStore {
  KvInstance *instance;
  const KvTierPolicyClass *policy;
  GHashTable *sessions; /* by session: KvStored */
  Shelf shelves[KV_N_TIERS];
  guint64 blocks; /* of all sessions */
  guint64 n_saved;
  GPtrArray *numbered; /* of KvStored: those with a position */
};

KvSessionStore *kv_session_store_new(KvInstance *instance) {
  KvSessionStore *store = g_new0(KvSessionStore, 1);
  const KvEngineConfig *config = instance->config;
  store->instance = instance;
  store->policy = kv_tier_policy_find(config->store.policy);
  store->sessions = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
  store->numbered = g_ptr_array_new();
  store->shelves[KV_TIER_DRAM].capacity =
      (guint64)(config->store.dram_bytes / instance->demand.block_bytes);
  store->shelves[KV_TIER_SSD].capacity =
      (guint64)(config->store.ssd_bytes / instance->demand.block_bytes);
  return store;
}

void kv_session_store_free(KvSessionStore *store) {
  if (!store)
    return;
  g_hash_table_unref(store->sessions);
  g_ptr_array_unref(store->numbered);
  g_free(store);
}

const KvStored *kv_session_store_find(const KvSessionStore *store, gint64 session) {
  return g_hash_table_lookup(store->sessions, &session);
}

double kv_session_store_bytes(const KvSessionStore *store, KvTier tier) {
  return (double)store->shelves[tier].used * store->instance->demand.block_bytes;
}

/* Shelves. */

static void put(KvSessionStore *store, KvStored *x, KvTier tier) {
  Shelf *shelf = &store->shelves[tier];
  x->tier = tier;
  x->newer = NULL;
  x->older = shelf->newest;
  *(shelf->newest ? &shelf->newest->newer : &shelf->oldest) = x;
  shelf->newest = x;
  shelf->used += x->blocks;
}

static void take(KvSessionStore *store, KvStored *x) {
  Shelf *shelf = &store->shelves[x->tier];
  *(x->older ? &x->older->newer : &shelf->oldest) = x->newer;
  *(x->newer ? &x->newer->older : &shelf->newest) = x->older;
  shelf->used -= x->blocks;
}

static void forget(KvSessionStore *store, KvStored *x) {
  take(store, x);
  store->blocks -= x->blocks;
  g_ptr_array_remove_fast(store->numbered, x);
  g_hash_table_remove(store->sessions, &x->session);
}

static void copy(KvSessionStore *store, KvTier from, KvTier to, guint64 blocks, gpointer tag) {
  KvCopy moved = {.from = from,
                  .to = to,
                  .bytes = (double)blocks * store->instance->demand.block_bytes,
                  .blocks = blocks,
                  .tag = tag,
                  .pinned = TRUE};
  if (blocks > 0)
    kv_instance_begin_copy(store->instance, &moved);
}

/* Make room for `blocks` on the tier: sessions go down, or for good. Not for the sake of a job
 * further behind than theirs: `position`, 0 for what is being saved. FALSE if there cannot be room.
 */
static gboolean make_room(KvSessionStore *store, KvTier tier, guint64 blocks, guint position) {
  Shelf *shelf = &store->shelves[tier];
  while (shelf->used + blocks > shelf->capacity) {
    KvStored *victim = shelf->oldest ? store->policy->victim(shelf->oldest) : NULL;
    if (!victim || blocks > shelf->capacity ||
        (position > 0 && victim->position > 0 && victim->position <= position))
      return FALSE;
    if (tier == KV_TIER_DRAM && make_room(store, KV_TIER_SSD, victim->blocks, 0)) {
      take(store, victim);
      put(store, victim, KV_TIER_SSD);
      copy(store, KV_TIER_DRAM, KV_TIER_SSD, victim->blocks, NULL);
    } else {
      forget(store, victim);
    }
  }
  return TRUE;
}

/* Turns. */

guint32 kv_session_store_tokens(KvSessionStore *store, const KvSequence *sequence) {
  const KvEngineConfig *config = store->instance->config;
  KvStored *x =
      sequence->session >= 0 ? g_hash_table_lookup(store->sessions, &sequence->session) : NULL;
  if (!x)
    return 0;
  if (config->store.ttl_seconds > 0.0 && !x->moving &&
      store->instance->now - x->used_seconds > config->store.ttl_seconds) {
    forget(store, x);
    return 0;
  }
  if (x->tokens < sequence->input_tokens)
    return x->tokens;
  /* The conversation was cut: its oldest part is gone, and with it all that knows its position. */
  double left = floor((1.0 - config->store.truncation) * x->tokens);
  return config->store.decoupled ? (guint32)MIN(left, sequence->input_tokens - 1.0) : 0;
}

void kv_session_store_load(KvSessionStore *store, KvSequence *sequence, guint32 tokens) {
  KvInstance *instance = store->instance;
  KvStored *x = g_hash_table_lookup(store->sessions, &sequence->session);
  guint block = instance->config->block_tokens;
  guint64 blocks = MIN(x->blocks, ((guint64)tokens + block - 1) / block);
  double now = instance->now, ready = x->moving ? MAX(now, x->ready_seconds) : now;
  double since = MAX(sequence->drained_seconds, x->moving ? now : x->ready_seconds);
  double preloaded = instance->config->store.preload ? MAX(0.0, now - since) : 0.0;
  double load =
      kv_instance_copy_seconds(instance, x->moving ? KV_TIER_DRAM : x->tier, KV_TIER_HBM, blocks);
  sequence->load_seconds = MAX(0.0, load - preloaded) + (ready - now);
  copy(store, x->tier, KV_TIER_HBM, blocks, NULL);
  x->used_seconds = now;
  take(store, x);
  put(store, x, x->tier);
}

void kv_session_store_save(KvSessionStore *store, const KvSequence *sequence) {
  KvInstance *instance = store->instance;
  guint64 blocks =
      kv_demand_blocks(&instance->demand, sequence->computed_tokens, sequence->input_tokens, TRUE);
  if (sequence->session < 0)
    return;
  KvStored *x = g_hash_table_lookup(store->sessions, &sequence->session);
  guint64 known = x && x->tier == KV_TIER_DRAM ? MIN(x->blocks, blocks) : 0;
  if (x) {
    take(store, x);
    store->blocks -= x->blocks;
  } else {
    x = g_new0(KvStored, 1);
    x->session = sequence->session;
    x->saved = store->n_saved++;
    g_hash_table_insert(store->sessions, &x->session, x);
  }
  x->tokens = sequence->computed_tokens;
  x->blocks = 0; /* not in the way while room is made */
  x->used_seconds = x->ready_seconds = instance->now;
  gboolean room = make_room(store, KV_TIER_DRAM, blocks, 0);
  if (room)
    x->blocks = blocks;
  store->blocks += x->blocks;
  put(store, x, KV_TIER_DRAM);
  if (room)
    copy(store, KV_TIER_HBM, KV_TIER_DRAM, blocks - known, NULL);
  else if (!x->moving)
    forget(store, x);
}

/* Looking ahead. */

static void fetch(KvSessionStore *store, KvStored *x) {
  if (!make_room(store, KV_TIER_DRAM, x->blocks, x->position))
    return;
  take(store, x);
  put(store, x, KV_TIER_DRAM);
  x->moving = TRUE;
  x->ready_seconds = store->instance->now + kv_instance_copy_seconds(store->instance, KV_TIER_SSD,
                                                                     KV_TIER_DRAM, x->blocks);
  copy(store, KV_TIER_SSD, KV_TIER_DRAM, x->blocks, x);
}

void kv_session_store_fetched(KvSessionStore *store, gpointer tag) {
  KvStored *x = tag;
  x->moving = FALSE;
  if (x->blocks == 0)
    forget(store, x);
}

void kv_session_store_look_ahead(KvSessionStore *store) {
  guint n = g_hash_table_size(store->sessions), at = 0;
  if (!store->policy->looks_ahead || n == 0)
    return;
  /* Windows in jobs: what the tiers hold over the mean size of a session. */
  double mean = MAX(1.0, (double)store->blocks / n);
  double fetched = (double)store->shelves[KV_TIER_DRAM].capacity / mean;
  double kept = fetched + (double)store->shelves[KV_TIER_SSD].capacity / mean;
  for (guint i = 0; i < store->numbered->len; i++)
    ((KvStored *)g_ptr_array_index(store->numbered, i))->position = 0;
  g_ptr_array_set_size(store->numbered, 0);
  for (const KvSequence *s = store->instance->waiting.head; s && ++at <= kept; s = s->next) {
    KvStored *x = s->session >= 0 ? g_hash_table_lookup(store->sessions, &s->session) : NULL;
    if (!x || x->position > 0)
      continue;
    x->position = at;
    g_ptr_array_add(store->numbered, x);
  }
  for (guint i = 0; i < store->numbered->len; i++) {
    KvStored *x = g_ptr_array_index(store->numbered, i);
    if (x->position <= fetched && x->tier == KV_TIER_SSD && !x->moving)
      fetch(store, x);
  }
}
