/* The session that was saved first leaves; nothing comes up before it is asked for. */
#include "sim/engine/tier_policy.h"

static KvStored *victim(KvStored *oldest) {
  KvStored *first = NULL;
  for (KvStored *x = oldest; x; x = x->newer)
    if (!x->moving && (!first || x->saved < first->saved))
      first = x;
  return first;
}

const KvTierPolicyClass kv_tier_policy_fifo = {
    .name = "fifo",
    .description = "the session saved first leaves; nothing is fetched ahead",
    .victim = victim,
};
