/* sim/engine/event_queue.h: against a walk over all sources. */
#include "sim/engine/event_queue.h"

#include "sim/base/random.h"

/* The earliest of `seconds`, the first of equals. */
static guint first_of(const double *seconds, guint n) {
  guint best = 0;
  for (guint i = 1; i < n; i++)
    if (seconds[i] < seconds[best])
      best = i;
  return best;
}

static void follows_a_walk(void) {
  KvRandom random;
  kv_random_seed(&random, 4, 0);
  for (guint n = 1; n <= 40; n++) {
    KvEventQueue *queue = kv_event_queue_new(n);
    g_autofree double *seconds = g_new(double, n);
    for (guint i = 0; i < n; i++)
      seconds[i] = G_MAXDOUBLE;
    for (guint step = 0; step < 2000; step++) {
      guint source = (guint)kv_random_integer(&random, 0, n - 1);
      /* Few different times, so that there are many equal ones; none; and before all others. */
      gint64 kind = kv_random_integer(&random, 0, 9);
      seconds[source] = kind == 0   ? G_MAXDOUBLE
                        : kind == 1 ? -1.0
                                    : (double)kv_random_integer(&random, 0, 7);
      kv_event_queue_set(queue, source, seconds[source]);
      guint found = G_MAXUINT, expected = first_of(seconds, n);
      double when = kv_event_queue_next(queue, &found);
      g_assert_cmpfloat(when, ==, seconds[expected]);
      if (when < G_MAXDOUBLE)
        g_assert_cmpuint(found, ==, expected);
    }
    kv_event_queue_free(queue);
  }
}

/* Taking events off one after the other gives them sorted by time, then source. */
static void drains_in_order(void) {
  enum { N = 500 };
  KvRandom random;
  KvEventQueue *queue = kv_event_queue_new(N);
  double last = -1.0;
  guint last_source = 0, source;
  kv_random_seed(&random, 5, 0);
  for (guint i = 0; i < N; i++)
    kv_event_queue_set(queue, i, (double)kv_random_integer(&random, 0, 50));
  for (guint i = 0; i < N; i++) {
    double when = kv_event_queue_next(queue, &source);
    g_assert_cmpfloat(when, >=, last);
    if (when == last)
      g_assert_cmpuint(source, >, last_source);
    last = when;
    last_source = source;
    kv_event_queue_set(queue, source, G_MAXDOUBLE);
  }
  g_assert_cmpfloat(kv_event_queue_next(queue, &source), ==, G_MAXDOUBLE);
  kv_event_queue_free(queue);
}

static void nothing_comes_from_no_source(void) {
  KvEventQueue *queue = kv_event_queue_new(0);
  guint source = 7;
  g_assert_cmpfloat(kv_event_queue_next(queue, &source), ==, G_MAXDOUBLE);
  kv_event_queue_free(queue);
  kv_event_queue_free(NULL);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/event-queue/follows-a-walk", follows_a_walk);
  g_test_add_func("/event-queue/drains-in-order", drains_in_order);
  g_test_add_func("/event-queue/nothing-comes-from-no-source", nothing_comes_from_no_source);
  return g_test_run();
}
