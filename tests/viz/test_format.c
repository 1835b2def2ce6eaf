#include <math.h>

#include "viz/format.h"

static void expect(KvUnit unit, double value, const char *text) {
  g_autofree char *said = kv_format(unit, value);
  g_assert_cmpstr(said, ==, text);
}

static void seconds_take_the_unit_that_fits(void) {
  expect(KV_UNIT_SECONDS, 0, "0 s");
  expect(KV_UNIT_SECONDS, 12.34e-6, "12.3 µs");
  expect(KV_UNIT_SECONDS, 0.0451, "45.1 ms");
  expect(KV_UNIT_SECONDS, 0.9999, "1.00 s");
  expect(KV_UNIT_SECONDS, 99.96, "100 s");
  expect(KV_UNIT_SECONDS, 3598, "60.0 min");
  expect(KV_UNIT_SECONDS, 7200, "2.00 h");
  expect(KV_UNIT_SECONDS, 200 * 3600.0, "8.33 d");
}

static void other_units_take_three_digits(void) {
  expect(KV_UNIT_COUNT, 1234567, "1,234,567");
  expect(KV_UNIT_COUNT, 22361870, "22.4 M");
  expect(KV_UNIT_BYTES, 999, "999 B");
  expect(KV_UNIT_BYTES, 96.469e9, "96.5 GB");
  expect(KV_UNIT_SHARE, 0.3412, "34.1 %");
  expect(KV_UNIT_PER_SECOND, 6215.1, "6,215 /s");
  expect(KV_UNIT_FLOPS, 2.789e17, "279 PFLOP");
  expect(KV_UNIT_FLOPS, 6.711e7, "67.1 MFLOP");
  expect(KV_UNIT_JOULES, 0.565, "565 mJ");
  expect(KV_UNIT_USD, 0.0123, "$0.012");
  expect(KV_UNIT_GRAMS, 1500, "1.50 kg");
}

static void what_is_no_number_is_a_dash(void) {
  for (KvUnit unit = 0; unit < KV_N_UNITS; unit++) {
    expect(unit, NAN, KV_NO_VALUE);
    expect(unit, INFINITY, KV_NO_VALUE);
  }
  expect(KV_UNIT_SECONDS, -0.5, "−500 ms");
}

static void expect_change(KvUnit unit, double value, double baseline, const char *text) {
  g_autofree char *said = kv_format_change(unit, value, baseline);
  g_assert_cmpstr(said, ==, text);
}

static void changes_are_percent_ratio_or_points(void) {
  expect_change(KV_UNIT_SECONDS, 1.12, 1, "+12 %");
  expect_change(KV_UNIT_SECONDS, 0.88, 1, "−12 %");
  expect_change(KV_UNIT_SECONDS, 1.034, 1, "+3.4 %");
  expect_change(KV_UNIT_SECONDS, 2.4, 1, "×2.40");
  expect_change(KV_UNIT_SECONDS, 0.35, 1, "×0.35");
  expect_change(KV_UNIT_SECONDS, 267, 1, "×267");
  expect_change(KV_UNIT_SHARE, 0.373, 0.341, "+3.2 pt");
  expect_change(KV_UNIT_SECONDS, 1.0004, 1, "=");
  expect_change(KV_UNIT_COUNT, 0, 0, "=");
  expect_change(KV_UNIT_COUNT, 412, 0, "from 0");
  expect_change(KV_UNIT_COUNT, 0, 412, "−100 %");
  expect_change(KV_UNIT_SECONDS, NAN, 1, KV_NO_VALUE);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/viz/format/seconds", seconds_take_the_unit_that_fits);
  g_test_add_func("/viz/format/units", other_units_take_three_digits);
  g_test_add_func("/viz/format/no-number", what_is_no_number_is_a_dash);
  g_test_add_func("/viz/format/change", changes_are_percent_ratio_or_points);
  return g_test_run();
}
