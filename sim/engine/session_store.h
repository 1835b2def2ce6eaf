/* The session store: the caches of conversations between their turns, on DRAM and on SSD.
 *
 * When a turn ends the cache of its whole session is saved, and HBM keeps nothing of it. The next
 * turn loads it and computes only what is new. Saving is asynchronous, a layer at a time beside the
 * steps, so nobody waits for it; loading goes layer by layer beside the computation of the new
 * tokens, and while the turn waits in the queue, and only what is left of it delays the step.
 *
 * Caches move as wholes, counted in the engine's blocks. Which leaves DRAM for SSD, or SSD for
 * good, and what comes up ahead of time is the policy's (sim/engine/tier_policy.h). A cache that
 * goes down leaves its DRAM at once: an engine evicts ahead, in the background.
 *
 * If a conversation was cut because it outgrew the model's context, what is stored is still good
 * but for the part that was dropped, if positions are applied after loading; otherwise it is lost.
 */
#ifndef KV_SIM_ENGINE_SESSION_STORE_H
#define KV_SIM_ENGINE_SESSION_STORE_H

#include "sim/engine/instance.h"
#include "sim/engine/tier_policy.h"

typedef struct KvSessionStore KvSessionStore;

/* For `instance`, whose config.store says which policy and how much room. */
KvSessionStore *kv_session_store_new(KvInstance *instance);
void kv_session_store_free(KvSessionStore *store);

/* Tokens of its history that the sequence would find. */
guint32 kv_session_store_tokens(KvSessionStore *store, const KvSequence *sequence);
/* It starts with so many of them: sets its load_seconds. */
void kv_session_store_load(KvSessionStore *store, KvSequence *sequence, guint32 tokens);
/* Its turn has ended with computed_tokens in its cache. */
void kv_session_store_save(KvSessionStore *store, const KvSequence *sequence);
/* The queue may have changed: number its jobs, and fetch what the first of them need. */
void kv_session_store_look_ahead(KvSessionStore *store);
/* The copy with this tag has come up. */
void kv_session_store_fetched(KvSessionStore *store, gpointer tag);

double kv_session_store_bytes(const KvSessionStore *store, KvTier tier);
/* For tests: the session's entry, or NULL. */
const KvStored *kv_session_store_find(const KvSessionStore *store, gint64 session);

#endif
