/* Routers: which instance an arriving request goes to. One entry of kv_routers each. A router may
 * keep a state of its own for a run; those that do have the three functions for it. */
#ifndef KV_SIM_ENGINE_ROUTER_H
#define KV_SIM_ENGINE_ROUTER_H

#include "sim/engine/instance.h"

typedef struct {
  const char *name, *description;
  guint (*choose)(gpointer state, KvInstance *const *instances, guint n,
                  const KvSequence *sequence);
  gpointer (*state_new)(void);
  void (*state_free)(gpointer state);
  /* The sequence's answer is complete, or it was rejected. */
  void (*finished)(gpointer state, const KvSequence *sequence, double now);
} KvRouterClass;

extern const KvRouterClass kv_routers[]; /* ends with name NULL */
const KvRouterClass *kv_router_find(const char *name);

#endif
