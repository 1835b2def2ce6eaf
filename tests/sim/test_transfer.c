/* sim/engine/transfer.h: fair shares worked out by hand, and what must hold for any schedule. */
#include "sim/engine/transfer.h"

#include <math.h>

#include "sim/base/random.h"

static KvTransfers *with_path(double down, double up, double duplex, double latency,
                              double per_copy) {
  KvTransfers *transfers = kv_transfers_new();
  KvPath path = {down, up, duplex, latency, per_copy};
  kv_transfers_set_path(transfers, KV_TIER_HBM, KV_TIER_DRAM, &path);
  return transfers;
}

/* A copy named by its tag: a small number. */
static KvCopy copy_of(guint tag, KvTier from, KvTier to, double bytes) {
  return (KvCopy){.from = from, .to = to, .bytes = bytes, .tag = GUINT_TO_POINTER(tag)};
}

static void begin(KvTransfers *t, guint tag, gboolean down, double bytes, double now) {
  KvCopy copy =
      copy_of(tag, down ? KV_TIER_HBM : KV_TIER_DRAM, down ? KV_TIER_DRAM : KV_TIER_HBM, bytes);
  kv_transfers_begin(t, &copy, 1.0, now);
}

/* The next copy to complete is `tag`, at `seconds`. */
static void expect(KvTransfers *t, guint tag, double seconds) {
  KvCopy copy;
  for (;;) {
    double next = kv_transfers_next(t);
    g_assert_cmpfloat(next, <, G_MAXDOUBLE);
    if (!kv_transfers_pop(t, next, &copy))
      continue; /* only a fixed part ended */
    g_assert_cmpuint(GPOINTER_TO_UINT(copy.tag), ==, tag);
    g_assert_cmpfloat_with_epsilon(next, seconds, 1e-9);
    return;
  }
}

static void expect_nothing(KvTransfers *t) {
  KvCopy copy;
  g_assert_cmpfloat(kv_transfers_next(t), ==, G_MAXDOUBLE);
  g_assert_false(kv_transfers_pop(t, 1e9, &copy));
  kv_transfers_free(t);
}

static void one_copy_takes_its_time(void) {
  KvTransfers *t = with_path(10.0, 20.0, 1.0, 0.5, 0.25);
  begin(t, 1, TRUE, 100.0, 2.0);
  expect(t, 1, 2.0 + 0.5 + 0.25 + 10.0);
  begin(t, 2, FALSE, 100.0, 20.0);
  expect(t, 2, 20.0 + 0.75 + 5.0);
  KvCopy pieces = copy_of(3, KV_TIER_HBM, KV_TIER_DRAM, 100.0);
  kv_transfers_begin(t, &pieces, 8.0, 40.0); /* each piece is issued by itself */
  expect(t, 3, 40.0 + 0.5 + 8 * 0.25 + 10.0);
  expect_nothing(t);
}

static void equal_copies_share(void) {
  KvTransfers *t = with_path(10.0, 10.0, 1.0, 0.0, 0.0);
  begin(t, 1, TRUE, 100.0, 0.0);
  begin(t, 2, TRUE, 100.0, 0.0);
  expect(t, 1, 20.0);
  expect(t, 2, 20.0);
  begin(t, 3, TRUE, 30.0, 100.0); /* 30 and 60 bytes at 5 B/s each: 6 s, and then 30 alone: 3 s */
  begin(t, 4, TRUE, 60.0, 100.0);
  expect(t, 3, 106.0);
  expect(t, 4, 109.0);
  expect_nothing(t);
}

static void later_copy_slows_the_first(void) {
  KvTransfers *t = with_path(10.0, 10.0, 1.0, 0.0, 0.0);
  begin(t, 1, TRUE, 100.0, 0.0);
  begin(t, 2, TRUE, 100.0,
        5.0); /* the first has 50 left: 10 s at half the rate; the other then 50 alone */
  expect(t, 1, 15.0);
  expect(t, 2, 20.0);
  expect_nothing(t);
}

/* The fixed part shares nothing: the first flows alone while the second waits its latency out. */
static void latency_is_not_shared(void) {
  KvTransfers *t = with_path(10.0, 10.0, 1.0, 2.0, 0.0);
  begin(t, 1, TRUE, 100.0, 0.0); /* flows from 2 */
  begin(t, 2, TRUE, 100.0, 5.0); /* flows from 7: the first has 50 left */
  expect(t, 1, 17.0);
  expect(t, 2, 22.0);
  begin(t, 3, TRUE, 0.0, 30.0); /* nothing to move: its latency */
  expect(t, 3, 32.0);
  expect_nothing(t);
}

static void directions_share_a_duplex_link(void) {
  KvTransfers *t = with_path(10.0, 10.0, 0.8, 0.0, 0.0);
  begin(t, 1, TRUE, 80.0, 0.0);
  begin(t, 2, FALSE, 40.0,
        0.0); /* both at 8 B/s: done after 5 s; the first has 40 left at 10 B/s */
  expect(t, 2, 5.0);
  expect(t, 1, 9.0);
  expect_nothing(t);
}

static void paths_do_not_share(void) {
  KvTransfers *t = with_path(10.0, 10.0, 1.0, 0.0, 0.0);
  KvPath ssd = {5.0, 5.0, 1.0, 0.0, 0.0};
  kv_transfers_set_path(t, KV_TIER_SSD, KV_TIER_HBM, &ssd); /* the order does not matter */
  begin(t, 1, TRUE, 100.0, 0.0);
  KvCopy copy = copy_of(2, KV_TIER_SSD, KV_TIER_HBM, 100.0);
  kv_transfers_begin(t, &copy, 1.0, 0.0);
  expect(t, 1, 10.0);
  expect(t, 2, 20.0);
  expect_nothing(t);
}

static void nothing_is_popped_early(void) {
  KvTransfers *t = with_path(10.0, 10.0, 1.0, 0.0, 0.0);
  KvCopy copy;
  begin(t, 1, TRUE, 100.0, 0.0);
  g_assert_false(kv_transfers_pop(t, 9.999, &copy));
  begin(t, 2, TRUE, 1000.0,
        9.999); /* looking did not disturb the first's progress: 0.01 left of it */
  expect(t, 1, 10.001);
  g_assert_false(kv_transfers_pop(t, 10.5, &copy));
  expect(t, 2, 110.0);
  expect_nothing(t);
}

/* Completed long ago, not yet taken off: neither lost nor in the way of those that begin later. */
static void late_pops_find_all(void) {
  KvTransfers *t = with_path(10.0, 10.0, 1.0, 0.0, 0.0);
  KvCopy copy;
  begin(t, 1, TRUE, 10.0, 0.0);
  begin(t, 2, TRUE, 100.0, 50.0);
  guint seen = 0;
  g_assert_true(kv_transfers_pop(t, 55.0, &copy));
  g_assert_cmpuint(GPOINTER_TO_UINT(copy.tag), ==, 1);
  g_assert_false(kv_transfers_pop(t, 55.0, &copy));
  while (kv_transfers_pop(t, 60.0 + 1e-9, &copy))
    seen += GPOINTER_TO_UINT(copy.tag);
  g_assert_cmpuint(seen, ==, 2);
  expect_nothing(t);
}

enum { N_COPIES = 60 };

typedef struct {
  gboolean down;
  double bytes, begins;
} Plan;

static void replay(const Plan *plan, double Bps, double duplex, double latency, double *ends) {
  KvTransfers *t = with_path(Bps, 2.0 * Bps, duplex, latency, 0.0);
  KvCopy copy;
  double now = 0.0;
  guint done = 0;
  for (guint next = 0; done < N_COPIES;) {
    double completes = kv_transfers_next(t);
    if (next < N_COPIES && plan[next].begins <= completes) {
      now = plan[next].begins;
      begin(t, next, plan[next].down, plan[next].bytes, now);
      next++;
      continue;
    }
    g_assert_cmpfloat(completes, <, G_MAXDOUBLE);
    g_assert_cmpfloat(completes, >=, now - 1e-9); /* time does not run backwards */
    now = completes;
    while (kv_transfers_pop(t, now, &copy)) {
      guint tag = GPOINTER_TO_UINT(copy.tag);
      g_assert_cmpfloat(copy.bytes, ==, plan[tag].bytes);
      g_assert_cmpfloat(ends[tag], <, 0.0); /* once */
      ends[tag] = now;
      done++;
    }
  }
  expect_nothing(t);
}

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* All that had completed by any time fits into what the link can carry, copies of one direction and
 * no latency keep it busy, and a faster link never completes a copy later. */
static void any_schedule_is_possible(void) {
  KvRandom random;
  kv_random_seed(&random, 7, 0);
  for (guint run = 0; run < 300; run++) {
    Plan plan[N_COPIES];
    double now = 0.0, slow[N_COPIES], fast[N_COPIES];
    gboolean one_way = run % 3 == 0;
    double latency = run % 3 == 1 ? 0.3 : 0.0, duplex = run % 2 ? 1.0 : 0.7;
    for (guint i = 0; i < N_COPIES; i++) {
      now += kv_random_integer(&random, 0, 2) ? kv_random_exponential(&random) : 0.0;
      plan[i] =
          (Plan){one_way || kv_random_integer(&random, 0, 1),
                 kv_random_integer(&random, 0, 9) ? 20.0 * kv_random_unit(&random) : 0.0, now};
      slow[i] = fast[i] = -1.0;
    }
    replay(plan, 10.0, duplex, latency, slow);
    replay(plan, 15.0, duplex, latency, fast);
    double bytes[2] = {0.0, 0.0}, first[2] = {G_MAXDOUBLE, G_MAXDOUBLE}, last[2] = {0.0, 0.0};
    for (guint i = 0; i < N_COPIES; i++) {
      double rate = plan[i].down ? 10.0 : 20.0;
      g_assert_cmpfloat(slow[i], >=, plan[i].begins + latency + plan[i].bytes / rate - 1e-9);
      g_assert_cmpfloat(fast[i], <=, slow[i] + 1e-9);
      bytes[plan[i].down] += plan[i].bytes;
      first[plan[i].down] = MIN(first[plan[i].down], plan[i].begins);
      last[plan[i].down] = MAX(last[plan[i].down], slow[i]);
    }
    for (guint down = 0; down < 2; down++)
      if (bytes[down] > 0.0)
        g_assert_cmpfloat((last[down] - first[down]) * (down ? 10.0 : 20.0), >=,
                          bytes[down] - 1e-6);
    if (one_way) {
      /* A link that is never idle while there is work: completion of the last by the
       * work-conserving recursion. */
      double free_at = 0.0;
      for (guint i = 0; i < N_COPIES; i++)
        free_at = MAX(free_at, plan[i].begins) + plan[i].bytes / 10.0;
      qsort(slow, N_COPIES, sizeof *slow, compare_doubles);
      g_assert_cmpfloat_with_epsilon(slow[N_COPIES - 1], MAX(free_at, plan[N_COPIES - 1].begins),
                                     1e-6);
    }
  }
}

/* Giving a copy up leaves its path to the others: 50 bytes left at half of 100 bytes/s, after that
 * alone. */
static void test_cancel(void) {
  KvTransfers *transfers = kv_transfers_new();
  KvPath path = {.down_Bps = 100.0, .up_Bps = 100.0, .duplex_share = 1.0};
  KvSequence one = {0}, other = {0};
  kv_transfers_set_path(transfers, KV_TIER_HBM, KV_TIER_DRAM, &path);
  KvCopy copy = {.from = KV_TIER_DRAM, .to = KV_TIER_HBM, .bytes = 100.0, .sequence = &one};
  kv_transfers_begin(transfers, &copy, 0, 0.0);
  copy.sequence = &other;
  kv_transfers_begin(transfers, &copy, 0, 0.0);
  kv_transfers_cancel(transfers, &one, 1.0); /* both have 50 bytes left */
  g_assert_cmpfloat_with_epsilon(kv_transfers_next(transfers), 1.5, 1e-12);
  g_assert_true(kv_transfers_pop(transfers, 1.5, &copy));
  g_assert_true(copy.sequence == &other);
  g_assert_cmpfloat(kv_transfers_next(transfers), ==, G_MAXDOUBLE);
  kv_transfers_cancel(transfers, &one, 2.0); /* there is none: nothing happens */
  kv_transfers_free(transfers);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/transfer/one-copy-takes-its-time", one_copy_takes_its_time);
  g_test_add_func("/transfer/equal-copies-share", equal_copies_share);
  g_test_add_func("/transfer/later-copy-slows-the-first", later_copy_slows_the_first);
  g_test_add_func("/transfer/latency-is-not-shared", latency_is_not_shared);
  g_test_add_func("/transfer/directions-share-a-duplex-link", directions_share_a_duplex_link);
  g_test_add_func("/transfer/paths-do-not-share", paths_do_not_share);
  g_test_add_func("/transfer/nothing-is-popped-early", nothing_is_popped_early);
  g_test_add_func("/transfer/late-pops-find-all", late_pops_find_all);
  g_test_add_func("/transfer/any-schedule-is-possible", any_schedule_is_possible);
  g_test_add_func("/sim/transfer/cancel", test_cancel);
  return g_test_run();
}
