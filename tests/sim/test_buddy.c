/* sim/engine/buddy.h: against a map of every unit, in which a hole is looked for by walking. */
#include "sim/engine/buddy.h"

#include <string.h>

#include "sim/base/random.h"

enum { MOST_UNITS = 600 };

typedef struct {
  guint64 start, wanted, taken;
} Reservation;

/* Whether an aligned run of `size` units is free somewhere. Buddies merge at once and never reach
 * beyond the space's own largest pieces, so a run counts if it lies at a multiple of its size. */
static gboolean has_hole(const gboolean *taken, guint64 units, guint64 size) {
  for (guint64 start = 0; start + size <= units; start += size)
    if (!memchr(taken + start, 1, size * sizeof *taken))
      return TRUE;
  return FALSE;
}

static void check_rounding(void) {
  const guint64 cases[][2] = {{1, 1}, {2, 2}, {3, 4}, {4, 4}, {5, 8}, {1023, 1024}, {1025, 2048}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    g_assert_cmpuint(kv_buddy_rounded(cases[i][0]), ==, cases[i][1]);
}

static void follows_a_map(void) {
  KvRandom random;
  kv_random_seed(&random, 6, 0);
  for (guint run = 0; run < 60; run++) {
    guint64 units = (guint64)kv_random_integer(&random, 1, MOST_UNITS), n_free = units;
    KvBuddy *buddy = kv_buddy_new(units, FALSE);
    gboolean taken[MOST_UNITS] = {FALSE};
    GArray *live = g_array_new(FALSE, FALSE, sizeof(Reservation));
    for (guint step = 0; step < 600; step++) {
      if (live->len && kv_random_integer(&random, 0, 2) == 0) {
        guint at = (guint)kv_random_integer(&random, 0, live->len - 1);
        Reservation r = g_array_index(live, Reservation, at);
        kv_buddy_release(buddy, r.start, r.wanted);
        memset(taken + r.start, 0, r.taken * sizeof *taken);
        n_free += r.taken;
        g_array_remove_index_fast(live, at);
      } else {
        Reservation r = {.wanted = (guint64)kv_random_integer(&random, 1, 1 + (gint64)units / 3)};
        r.taken = kv_buddy_rounded(r.wanted);
        gboolean expected = has_hole(taken, units, r.taken);
        g_assert_cmpint(kv_buddy_fits(buddy, r.wanted), ==, expected);
        g_assert_cmpint(kv_buddy_reserve(buddy, r.wanted, &r.start), ==, expected);
        if (expected) {
          g_assert_cmpuint(r.start % r.taken, ==, 0);
          g_assert_cmpuint(r.start + r.taken, <=, units);
          for (guint64 u = r.start; u < r.start + r.taken; u++) {
            g_assert_false(taken[u]); /* nobody else's */
            taken[u] = TRUE;
          }
          n_free -= r.taken;
          g_array_append_val(live, r);
        }
      }
      g_assert_cmpuint(kv_buddy_free_units(buddy), ==, n_free);
    }
    while (live->len) { /* all of it comes back, in any order, and merges */
      Reservation r = g_array_index(live, Reservation, live->len / 2);
      kv_buddy_release(buddy, r.start, r.wanted);
      g_array_remove_index_fast(live, live->len / 2);
    }
    g_assert_cmpuint(kv_buddy_free_units(buddy), ==, units);
    for (guint64 size = 1; size <= 2 * units; size *= 2) {
      g_assert_cmpint(kv_buddy_fits(buddy, size), ==, size <= units);
      g_assert_cmpint(kv_buddy_can_ever_fit(buddy, size), ==, size <= units);
    }
    g_array_unref(live);
    kv_buddy_free(buddy);
  }
}

/* 13 = 8 + 4 + 1: two holes of 4 stand beside each other but are no buddies; reserving all leaves
 * nothing. */
static void odd_space_by_hand(void) {
  KvBuddy *buddy = kv_buddy_new(13, FALSE);
  guint64 start;
  g_assert_true(kv_buddy_can_ever_fit(buddy, 8));
  g_assert_false(kv_buddy_can_ever_fit(buddy, 9));
  g_assert_false(kv_buddy_reserve(buddy, 9, &start));
  g_assert_true(kv_buddy_reserve(buddy, 4, &start)); /* the smallest hole that is large enough */
  g_assert_cmpuint(start, ==, 8);
  g_assert_true(kv_buddy_reserve(buddy, 3, &start)); /* takes four of the eight */
  g_assert_cmpuint(start, ==, 0);
  g_assert_false(kv_buddy_fits(buddy, 5)); /* five free, four of them together */
  g_assert_cmpuint(kv_buddy_free_units(buddy), ==, 5);
  g_assert_true(kv_buddy_reserve(buddy, 1, &start));
  g_assert_cmpuint(start, ==, 12);
  kv_buddy_release(buddy, 8, 4);
  g_assert_false(kv_buddy_fits(buddy, 8)); /* [4, 12) is free but lies across two buddies */
  kv_buddy_release(buddy, 0, 3);
  g_assert_true(kv_buddy_fits(buddy, 8));
  kv_buddy_free(buddy);
}

static void exact_stands_one_behind_another(void) {
  KvBuddy *buddy = kv_buddy_new(10, TRUE);
  guint64 start = 99;
  g_assert_true(kv_buddy_can_ever_fit(buddy, 10));
  g_assert_false(kv_buddy_can_ever_fit(buddy, 11));
  g_assert_true(kv_buddy_reserve(buddy, 7, &start));
  g_assert_cmpuint(start, ==, 0);
  g_assert_cmpuint(kv_buddy_free_units(buddy), ==, 3);
  g_assert_false(kv_buddy_reserve(buddy, 4, &start));
  g_assert_true(kv_buddy_reserve(buddy, 3, &start));
  g_assert_cmpuint(start, ==, 7); /* behind the first */
  g_assert_false(kv_buddy_fits(buddy, 1));
  kv_buddy_release(buddy, 0, 7);
  g_assert_cmpuint(kv_buddy_free_units(buddy), ==, 7);
  kv_buddy_free(buddy);
}

static void nothing_fits_into_nothing(void) {
  for (guint exact = 0; exact < 2; exact++) {
    KvBuddy *buddy = kv_buddy_new(0, exact);
    guint64 start;
    g_assert_false(kv_buddy_fits(buddy, 1));
    g_assert_false(kv_buddy_can_ever_fit(buddy, 1));
    g_assert_false(kv_buddy_reserve(buddy, 1, &start));
    g_assert_cmpuint(kv_buddy_free_units(buddy), ==, 0);
    kv_buddy_free(buddy);
  }
  kv_buddy_free(NULL);
}

/* More than any machine has: an answer, not a crash. */
static void huge_requests_are_refused(void) {
  for (guint exact = 0; exact < 2; exact++) {
    KvBuddy *buddy = kv_buddy_new(1000, exact);
    guint64 start;
    for (guint64 units = 2000; units < G_MAXUINT64 / 4; units *= 3) {
      g_assert_false(kv_buddy_fits(buddy, units));
      g_assert_false(kv_buddy_reserve(buddy, units, &start));
      g_assert_false(kv_buddy_can_ever_fit(buddy, units));
    }
    kv_buddy_free(buddy);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/buddy/rounds-to-powers-of-two", check_rounding);
  g_test_add_func("/buddy/follows-a-map", follows_a_map);
  g_test_add_func("/buddy/odd-space-by-hand", odd_space_by_hand);
  g_test_add_func("/buddy/exact-stands-one-behind-another", exact_stands_one_behind_another);
  g_test_add_func("/buddy/nothing-fits-into-nothing", nothing_fits_into_nothing);
  g_test_add_func("/buddy/huge-requests-are-refused", huge_requests_are_refused);
  return g_test_run();
}
