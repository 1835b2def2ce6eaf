/* sim/engine/router.h: who gets a request. */
#include "sim/engine/router.h"

enum { N = 3, BLOCK = 16 };

static KvInstance instances[N];
static KvInstance *const list[N] = {&instances[0], &instances[1], &instances[2]};
static guint64 hashes[] = {11, 12, 13, 14};
static KvSequence asked;

static guint choice(const char *router) {
  return kv_router_find(router)->choose(NULL, list, N, &asked);
}

static void set_loads(const guint waiting[N], const guint running[N]) {
  for (guint i = 0; i < N; i++) {
    instances[i].waiting.n = waiting[i];
    instances[i].n_running = running[i];
  }
}

/* Let the instance hold the first `blocks` blocks of the prompt in its index. */
static void cache(KvInstance *instance, guint blocks) {
  KvSequence holder = {.input_tokens = 4 * BLOCK, .n_hashes = 4, .hashes = hashes};
  kv_pool_grow(instance->pool, &holder, blocks, blocks * BLOCK);
  kv_pool_release(instance->pool, &holder, FALSE);
  g_free(holder.nodes);
}

static void set_up(void) {
  asked = (KvSequence){.input_tokens = 4 * BLOCK, .n_hashes = 4, .hashes = hashes};
  for (guint i = 0; i < N; i++)
    instances[i] = (KvInstance){.index = i, .pool = kv_pool_new(100, BLOCK, BLOCK, TRUE, FALSE)};
}

static void tear_down(void) {
  for (guint i = 0; i < N; i++)
    kv_pool_free(instances[i].pool);
}

static void names_are_found(void) {
  g_assert_cmpstr(kv_router_find("prefix")->name, ==, "prefix");
  g_assert_null(kv_router_find("prefi"));
  g_assert_null(kv_router_find(""));
}

static void round_robin_takes_turns(void) {
  set_up();
  for (asked.index = 0; asked.index < 10; asked.index++)
    g_assert_cmpuint(choice("round-robin"), ==, asked.index % N);
  asked.index = G_MAXUINT64;
  g_assert_cmpuint(choice("round-robin"), ==, G_MAXUINT64 % N);
  tear_down();
}

static void least_loaded_counts_waiting_fourfold(void) {
  set_up();
  g_assert_cmpuint(choice("least-loaded"), ==, 0); /* the first of equals */
  set_loads((guint[]){1, 0, 0}, (guint[]){0, 4, 3});
  g_assert_cmpuint(choice("least-loaded"), ==, 2);
  set_loads((guint[]){1, 0, 0}, (guint[]){0, 4, 5}); /* 4, 4, 5 */
  g_assert_cmpuint(choice("least-loaded"), ==, 0);
  set_loads((guint[]){0, 0, 0}, (guint[]){2, 2, 2});
  instances[0].swapped.n = 1; /* swapped out and loading ones wait too */
  instances[1].n_loading = 1;
  g_assert_cmpuint(choice("least-loaded"), ==, 2);
  tear_down();
}

static void prefix_prefers_the_longest_match(void) {
  set_up();
  cache(&instances[1], 2);
  cache(&instances[2], 3);
  g_assert_cmpuint(choice("prefix"), ==, 2);
  set_loads((guint[]){0, 0, 0}, (guint[]){0, 0, 30}); /* not far apart: stays with its prefix */
  g_assert_cmpuint(choice("prefix"), ==, 2);
  cache(&instances[1], 3);
  g_assert_cmpuint(choice("prefix"), ==, 1);           /* equal matches: the less loaded */
  set_loads((guint[]){0, 0, 0}, (guint[]){5, 33, 34}); /* 34 > 5 * 1.5 but not > 5 + 32 */
  g_assert_cmpuint(choice("prefix"), ==, 1);
  set_loads((guint[]){0, 0, 0}, (guint[]){5, 33, 38});
  g_assert_cmpuint(choice("prefix"), ==, 0);               /* too far apart */
  set_loads((guint[]){0, 0, 0}, (guint[]){100, 130, 140}); /* by more than 32, but not by half */
  g_assert_cmpuint(choice("prefix"), ==, 1);
  tear_down();
}

static void prefix_without_names_is_least_loaded(void) {
  set_up();
  cache(&instances[0], 3);
  set_loads((guint[]){0, 0, 0}, (guint[]){2, 1, 2});
  asked.n_hashes = 0;
  g_assert_cmpuint(choice("prefix"), ==, 1);
  asked.n_hashes = 4;
  hashes[0] = 99; /* nobody has it */
  g_assert_cmpuint(choice("prefix"), ==, 1);
  hashes[0] = 11;
  g_assert_cmpuint(choice("prefix"), ==, 0);
  tear_down();
}

static void session_stays(void) {
  guint counts[N] = {0};
  set_up();
  for (gint64 session = 0; session < 300; session++) {
    asked.session = session;
    asked.index = 0;
    guint first = choice("session");
    asked.index = (guint64)session + 17;
    set_loads((guint[]){7, 0, 3}, (guint[]){1, 2, 3}); /* loads do not matter */
    g_assert_cmpuint(choice("session"), ==, first);
    counts[first]++;
  }
  for (guint i = 0; i < N; i++) /* 100 each, give or take four standard deviations */
    g_assert_cmpfloat_with_epsilon(counts[i], 100.0, 33.0);
  asked.session = -1; /* of none: each by itself */
  gboolean differ = FALSE;
  for (asked.index = 0; asked.index < 20; asked.index++) {
    guint first = choice("session");
    asked.index++;
    differ |= choice("session") != first;
  }
  g_assert_true(differ);
  tear_down();
}

/* A client's requests in order: sent at, complete at. */
static guint send_at(const KvRouterClass *router, gpointer state, guint64 index, double seconds) {
  asked.index = index;
  asked.arrival_seconds = seconds;
  return router->choose(state, list, N, &asked);
}

static void finish_at(const KvRouterClass *router, gpointer state, guint64 index, double seconds) {
  asked.index = index;
  router->finished(state, &asked, seconds);
}

static void connections_are_reused(void) {
  const KvRouterClass *router = kv_router_find("connection");
  set_up();
  gpointer state = router->state_new();
  guint places[12];
  for (guint i = 0; i < 12; i++) /* all at once: a connection each */
    places[i] = send_at(router, state, i, 0.0);
  gboolean differ = FALSE;
  for (guint i = 1; i < 12; i++)
    differ |= places[i] != places[0];
  g_assert_true(differ);
  finish_at(router, state, 7, 1.0);
  finish_at(router, state, 3, 2.0);
  /* The one opened first, not the one idle longest; then the other; and a new one. */
  g_assert_cmpuint(send_at(router, state, 20, 2.5), ==, places[3]);
  g_assert_cmpuint(send_at(router, state, 21, 2.5), ==, places[7]);
  finish_at(router, state, 21, 3.0);
  /* Sent before the answer was complete, whenever the engine sees it. */
  gpointer other = router->state_new();
  guint first = send_at(router, other, 0, 0.0), second = send_at(router, other, 1, 0.0);
  finish_at(router, other, 1, 1.0);
  g_assert_cmpuint(send_at(router, other, 2, 1.0), ==, second);
  finish_at(router, other, 0, 1.5);
  finish_at(router, other, 2, 2.0);
  /* Five seconds idle are the most: only the second is still open at 6.9. */
  g_assert_cmpuint(send_at(router, other, 3, 6.9), ==, second);
  g_assert_cmpuint(first, <, N);
  router->state_free(other);
  router->state_free(state);
  tear_down();
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/router/names-are-found", names_are_found);
  g_test_add_func("/router/round-robin-takes-turns", round_robin_takes_turns);
  g_test_add_func("/router/least-loaded-counts-waiting-fourfold",
                  least_loaded_counts_waiting_fourfold);
  g_test_add_func("/router/prefix-prefers-the-longest-match", prefix_prefers_the_longest_match);
  g_test_add_func("/router/prefix-without-names-is-least-loaded",
                  prefix_without_names_is_least_loaded);
  g_test_add_func("/router/session-stays", session_stays);
  g_test_add_func("/router/connections-are-reused", connections_are_reused);
  return g_test_run();
}
