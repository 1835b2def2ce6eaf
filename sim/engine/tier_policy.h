/* Tier policies: which session's cache leaves a tier of the session store, and whether caches come
 * up before they are needed.
 *
 * One file and one entry of kv_tier_policies each. A policy chooses among whole sessions; the store
 * (sim/engine/session_store.h) moves them and keeps the counts. The prefix cache's own lower tier
 * is of blocks, written through and LRU (sim/engine/pool.h).
 */
#ifndef KV_SIM_ENGINE_TIER_POLICY_H
#define KV_SIM_ENGINE_TIER_POLICY_H

#include "models/techniques/plan.h"

typedef struct KvStored KvStored;
struct KvStored {
  gint64 session;
  guint32 tokens;
  guint64 blocks;
  KvTier tier;          /* DRAM or SSD */
  gboolean moving;      /* on its way up; counted in DRAM already */
  double ready_seconds; /* when that is expected to be over */
  double used_seconds;  /* last saved or loaded */
  guint64 saved;        /* ordinal number of its first saving since it was last gone */
  guint position;       /* of its session's job in the queue, from 1; 0: none within the window */
  KvStored *older, *newer; /* of its tier, by use */
};

typedef struct {
  const char *name, *description;
  gboolean looks_ahead; /* fetches what the first jobs of the queue need */
  /* Who leaves the tier whose sessions stand from `oldest` on; one that is moving cannot. NULL:
   * none should. */
  KvStored *(*victim)(KvStored *oldest);
} KvTierPolicyClass;

extern const KvTierPolicyClass kv_tier_policy_look_ahead; /* tier_look_ahead.c */
extern const KvTierPolicyClass kv_tier_policy_lru;        /* tier_lru.c */
extern const KvTierPolicyClass kv_tier_policy_fifo;       /* tier_fifo.c */

/* Every policy, NULL-terminated. */
extern const KvTierPolicyClass *const kv_tier_policies[];
const KvTierPolicyClass *kv_tier_policy_find(const char *name);

#endif
