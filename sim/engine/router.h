/* Routers: which instance an arriving request goes to. One entry of kv_routers each. */
#ifndef KV_SIM_ENGINE_ROUTER_H
#define KV_SIM_ENGINE_ROUTER_H

#include "sim/engine/instance.h"

typedef struct {
  const char *name, *description;
  guint (*choose)(KvInstance *const *instances, guint n, const KvSequence *sequence);
} KvRouterClass;

extern const KvRouterClass kv_routers[]; /* ends with name NULL */
const KvRouterClass *kv_router_find(const char *name);

#endif
