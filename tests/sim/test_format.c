/* sim/base/format.h: numbers as tables and CSV files show them. */
#include "sim/base/format.h"

#include <math.h>

static void whole_numbers(void) {
  const guint64 values[] = {0, 7, 10, 1234567890, G_MAXUINT64};
  for (guint i = 0; i < G_N_ELEMENTS(values); i++) {
    char text[21];
    *kv_format_u64(text, values[i]) = '\0';
    g_autofree char *expected = g_strdup_printf("%" G_GUINT64_FORMAT, values[i]);
    g_assert_cmpstr(text, ==, expected);
  }
}

static void six_decimals(void) {
  const struct {
    double value;
    const char *text;
  } cases[] = {
      {0, "0.000000"},
      {1.5, "1.500000"},
      {-2.25, "-2.250000"},
      {0.0000005, "0.000001"},
      {0.9999996, "1.000000"},
      {-1e-9, "0.000000"}, /* not "-0" */
      {123456.789, "123456.789000"},
      {999999999999, "999999999999.000000"},
      {1e15, "1000000000000000"},
      {-1e300, "-1.0000000000000001e+300"},
      {NAN, "nan"},
      {-INFINITY, "nan"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    char text[33];
    char *end = kv_format_fixed6(text, cases[i].value);
    g_assert_cmpint(end - text, <=, 32);
    *end = '\0';
    g_assert_cmpstr(text, ==, cases[i].text);
  }
}

static void three_digits_in_a_fitting_unit(void) {
  const struct {
    char *(*format)(double value);
    double value;
    const char *text;
  } cases[] = {
      {kv_format_bytes, 0, "0.00 B"},
      {kv_format_bytes, 1.5e9, "1.50 GB"},
      {kv_format_bytes, 80e9, "80.0 GB"},
      {kv_format_bytes, 999.6, "1.00 kB"}, /* not "1000 B" */
      {kv_format_bytes, 999.4, "999 B"},
      {kv_format_bytes, 9.996e6, "10.0 MB"}, /* not "10.00 MB" */
      {kv_format_bytes, 5e18, "5000 PB"},
      {kv_format_bytes, -2e6, "-2.00 MB"},
      {kv_format_seconds, 0, "0.00 s"},
      {kv_format_seconds, 1, "1.00 s"},
      {kv_format_seconds, 0.0123, "12.3 ms"},
      {kv_format_seconds, 0.9999, "1.00 s"},
      {kv_format_seconds, 1e-3, "1.00 ms"},
      {kv_format_seconds, 4.5e-7, "450 ns"},
      {kv_format_seconds, 7200, "7200 s"},
      {kv_format_count, 0, "0.00"},
      {kv_format_count, 42, "42.0"},
      {kv_format_count, 4200, "4.20 k"},
      {kv_format_count, 1e6, "1.00 M"},
      {kv_format_count, 0.25, "0.25"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *text = cases[i].format(cases[i].value);
    g_assert_cmpstr(text, ==, cases[i].text);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/format/whole-numbers", whole_numbers);
  g_test_add_func("/format/six-decimals", six_decimals);
  g_test_add_func("/format/three-digits-in-a-fitting-unit", three_digits_in_a_fitting_unit);
  return g_test_run();
}
