#include "sim/engine/router.h"

#include <string.h>

static guint round_robin(KvInstance *const *instances, guint n, const KvSequence *sequence) {
  return (guint)(sequence->index % n);
}

/* vLLM v1's internal balancer (section 6 of its notes): 4 * waiting + running, the first of the
 * smallest. */
static guint64 load(const KvInstance *instance) {
  return 4 * (guint64)kv_instance_waiting(instance) + kv_instance_running(instance);
}

static guint least_loaded(KvInstance *const *instances, guint n, const KvSequence *sequence) {
  guint best = 0;
  for (guint i = 1; i < n; i++)
    if (load(instances[i]) < load(instances[best]))
      best = i;
  return best;
}

/* DistServe's dispatch of prompts: the least work queued, the first of the smallest. */
static guint shortest_queue(KvInstance *const *instances, guint n, const KvSequence *sequence) {
  guint best = 0;
  for (guint i = 1; i < n; i++)
    if (instances[i]->prompt_tokens < instances[best]->prompt_tokens)
      best = i;
  return best;
}

/* What an instance has of a sequence's prompt. */
typedef struct {
  guint64 tokens;
  gboolean settled;
} Match;

/* The longest cached prefix, the least loaded among equals; but the least loaded where loads are
 * far apart (by more than 32 and a half: SGLang's cache-aware router uses such a guard). */
static guint longest_prefix(KvInstance *const *instances, guint n, const KvSequence *sequence) {
  guint idle = least_loaded(instances, n, sequence), best;
  guint64 heaviest = 0, lightest = load(instances[idle]);
  if (sequence->n_hashes == 0)
    return idle;
  for (guint i = 0; i < n; i++)
    heaviest = MAX(heaviest, load(instances[i]));
  if (heaviest > lightest + 32 && 2 * heaviest > 3 * lightest)
    return idle;
  Match *matches = g_newa(Match, n);
  for (guint i = 0; i < n; i++)
    matches[i] = (Match){kv_pool_match_tokens(instances[i]->pool, sequence), FALSE};
  /* Settling a pool can only shorten its match, so it is enough to settle those that would win. */
  for (;;) {
    best = 0;
    for (guint i = 1; i < n; i++)
      if (matches[i].tokens > matches[best].tokens ||
          (matches[i].tokens == matches[best].tokens && load(instances[i]) < load(instances[best])))
        best = i;
    if (matches[best].settled || matches[best].tokens == 0)
      return best;
    matches[best].settled = TRUE;
    if (kv_instance_settle(instances[best], sequence->arrival_seconds))
      matches[best].tokens = kv_pool_match_tokens(instances[best]->pool, sequence);
  }
}

const KvRouterClass kv_routers[] = {
    {"round-robin", "each in turn", round_robin},
    {"least-loaded", "fewest waiting (counted four times) and running", least_loaded},
    {"prefix", "longest cached prefix, unless loads are far apart", longest_prefix},
    {"shortest-queue", "fewest prompt tokens that wait or are being computed", shortest_queue},
    {NULL, NULL, NULL},
};

const KvRouterClass *kv_router_find(const char *name) {
  for (guint i = 0; kv_routers[i].name; i++)
    if (strcmp(kv_routers[i].name, name) == 0)
      return &kv_routers[i];
  return NULL;
}
