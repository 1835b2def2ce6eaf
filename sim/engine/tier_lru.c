/* The least recently used session leaves; nothing comes up before it is asked for. */
#include "sim/engine/tier_policy.h"

static KvStored *victim(KvStored *oldest) {
  while (oldest && oldest->moving)
    oldest = oldest->newer;
  return oldest;
}

const KvTierPolicyClass kv_tier_policy_lru = {
    .name = "lru",
    .description = "the session used least recently leaves; nothing is fetched ahead",
    .victim = victim,
};
