/* CachedAttention (ATC 2024, section 3.3): the queue tells the future.
 *
 * Sessions without a job in the look-ahead window leave first, the least recently used of them
 * before the others; if every session has one, the one whose job is the farthest leaves. */
#include "sim/engine/tier_policy.h"

static KvStored *victim(KvStored *oldest) {
  KvStored *farthest = NULL;
  for (KvStored *x = oldest; x; x = x->newer) {
    if (x->moving)
      continue;
    if (x->position == 0)
      return x;
    if (!farthest || x->position > farthest->position)
      farthest = x;
  }
  return farthest;
}

const KvTierPolicyClass kv_tier_policy_look_ahead = {
    .name = "look-ahead",
    .description = "CachedAttention: fetched and kept by the jobs that wait",
    .looks_ahead = TRUE,
    .victim = victim,
};
