#include "sim/engine/router.h"

#include <string.h>

#include "sim/base/random.h"

static guint round_robin(gpointer state, KvInstance *const *instances, guint n,
                         const KvSequence *sequence) {
  return (guint)(sequence->index % n);
}

/* vLLM v1's internal balancer (section 6 of its notes): 4 * waiting + running, the first of the
 * smallest. */
static guint64 load(const KvInstance *instance) {
  return 4 * (guint64)kv_instance_waiting(instance) + kv_instance_running(instance);
}

static guint least_loaded(gpointer state, KvInstance *const *instances, guint n,
                          const KvSequence *sequence) {
  guint best = 0;
  for (guint i = 1; i < n; i++)
    if (load(instances[i]) < load(instances[best]))
      best = i;
  return best;
}

/* DistServe's dispatch of prompts: the least work queued, the first of the smallest. */
static guint shortest_queue(gpointer state, KvInstance *const *instances, guint n,
                            const KvSequence *sequence) {
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
static guint longest_prefix(gpointer state, KvInstance *const *instances, guint n,
                            const KvSequence *sequence) {
  guint idle = least_loaded(NULL, instances, n, sequence), best;
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

/* Session affinity by a hash, as vLLM's production stack has it. Requests of no session go by
 * themselves. */
static guint by_session(gpointer state, KvInstance *const *instances, guint n,
                        const KvSequence *sequence) {
  guint64 key = sequence->session >= 0 ? (guint64)sequence->session : ~sequence->index;
  return (guint)(kv_random_mix(key) % n);
}

/* A client's pool of connections before a balancer that knows only connections (a Kubernetes
 * service): each is pinned to an instance picked at random when it is opened. A request takes the
 * first idle one in the order of opening, which the client closes after 5 s of idleness (httpx, the
 * client of OpenAI's library). */
static const double KEEP_ALIVE_SECONDS = 5.0;

typedef struct {
  guint instance;
  gboolean busy;
  guint64 sequence; /* the last that took it */
  double idle_from;
} Connection;

typedef struct {
  GArray *open; /* of Connection */
  guint64 opened;
} Connections;

static gpointer connections_new(void) {
  Connections *c = g_new0(Connections, 1);
  c->open = g_array_new(FALSE, FALSE, sizeof(Connection));
  return c;
}

static void connections_free(gpointer state) {
  Connections *c = state;
  g_array_unref(c->open);
  g_free(c);
}

static guint by_connection(gpointer state, KvInstance *const *instances, guint n,
                           const KvSequence *sequence) {
  Connections *c = state;
  double now = sequence->arrival_seconds;
  Connection *taken = NULL;
  for (guint i = c->open->len; i-- > 0;) {
    const Connection *at = &g_array_index(c->open, Connection, i);
    if (!at->busy && at->idle_from + KEEP_ALIVE_SECONDS < now)
      g_array_remove_index(c->open, i);
  }
  for (guint i = 0; i < c->open->len && !taken; i++) {
    Connection *at = &g_array_index(c->open, Connection, i);
    if (!at->busy && at->idle_from <= now)
      taken = at;
  }
  if (!taken) {
    Connection fresh = {.instance = (guint)(kv_random_mix(++c->opened) % n)};
    g_array_append_val(c->open, fresh);
    taken = &g_array_index(c->open, Connection, c->open->len - 1);
  }
  taken->busy = TRUE;
  taken->sequence = sequence->index;
  return taken->instance;
}

static void connection_finished(gpointer state, const KvSequence *sequence, double now) {
  Connections *c = state;
  for (guint i = 0; i < c->open->len; i++) {
    Connection *at = &g_array_index(c->open, Connection, i);
    if (!at->busy || at->sequence != sequence->index)
      continue;
    at->busy = FALSE;
    at->idle_from = now;
    return;
  }
}

const KvRouterClass kv_routers[] = {
    {.name = "round-robin", .description = "each in turn", .choose = round_robin},
    {.name = "least-loaded",
     .description = "fewest waiting (counted four times) and running",
     .choose = least_loaded},
    {.name = "prefix",
     .description = "longest cached prefix, unless loads are far apart",
     .choose = longest_prefix},
    {.name = "session",
     .description = "by a hash of the session: all of its requests to one instance",
     .choose = by_session},
    {.name = "connection",
     .description = "where the client's idle connection leads; new ones lead anywhere",
     .choose = by_connection,
     .state_new = connections_new,
     .state_free = connections_free,
     .finished = connection_finished},
    {.name = "shortest-queue",
     .description = "fewest prompt tokens that wait or are being computed",
     .choose = shortest_queue},
    {.name = NULL},
};

const KvRouterClass *kv_router_find(const char *name) {
  for (guint i = 0; kv_routers[i].name; i++)
    if (strcmp(kv_routers[i].name, name) == 0)
      return &kv_routers[i];
  return NULL;
}
