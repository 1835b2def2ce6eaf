/* Following a run decision by decision: moments of its operations, and what they look like. */
#ifndef KV_TESTS_SIM_SHAPES_H
#define KV_TESTS_SIM_SHAPES_H

#include "replay.h"

/* A moment inside operation `index`, and its end. */
static inline double within(const Replay *run, guint index) {
  return run->operations[index].start + 0.5 * run->operations[index].seconds;
}

static inline double end_of(const Replay *run, guint index) {
  return run->operations[index].start + run->operations[index].seconds;
}

static inline void assert_at(double a, double b) {
  g_assert_cmpfloat_with_epsilon(a, b, 3e-9); /* operations.csv has nine decimals */
}

/* The first operations look like this (replay_shape). */
static inline void assert_shape(const Replay *run, const char *expected) {
  g_autofree char *shape = replay_shape(run);
  if (!g_str_has_prefix(shape, expected))
    g_error("operations %s, expected %s", shape, expected);
}

#endif
