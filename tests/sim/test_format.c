/* sim/base/format.h: numbers as tables and CSV files show them. */
#include "sim/base/format.h"

#include <math.h>
#include <string.h>

#include "sim/base/random.h"

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

/* The same as printf, but for the sign of what rounds to zero. */
static void decimals_are_printfs(void) {
  KvRandom random;
  kv_random_seed(&random, 2, 0);
  for (guint i = 0; i < 200000; i++) {
    char ours[40], theirs[40];
    double value = (double)kv_random_integer(&random, -999999999, 999999999) /
                   pow(10.0, (double)kv_random_integer(&random, 0, 9));
    double micros = fabs(value) * 1e6, beside_half = fabs(micros - floor(micros) - 0.5);
    *kv_format_fixed6(ours, value) = '\0';
    g_snprintf(theirs, sizeof theirs, "%.6f", value);
    if (micros < 0.4)
      g_assert_cmpstr(ours, ==, "0.000000");
    else if (beside_half > 1e-4) /* at a half, printf goes by digits that a double does not have */
      g_assert_cmpstr(ours, ==, theirs);
    else
      g_assert_cmpfloat_with_epsilon(g_ascii_strtod(ours, NULL), value, 0.501e-6);
  }
}

/* Whatever the value: one to three digits before the point, and the value within half a last digit.
 */
static void units_hold_for_all_sizes(void) {
  static const struct {
    const char *unit;
    double scale;
  } units[] = {{" PB", 1e15}, {" TB", 1e12}, {" GB", 1e9}, {" MB", 1e6}, {" kB", 1e3}, {" B", 1.0}};
  KvRandom random;
  kv_random_seed(&random, 3, 0);
  for (guint i = 0; i < 20000; i++) {
    double value = pow(10.0, 17.9 * kv_random_unit(&random));
    g_autofree char *text = kv_format_bytes(value);
    char *end;
    double shown = g_ascii_strtod(text, &end);
    guint u = 0;
    while (strcmp(units[u].unit, end) != 0)
      g_assert_cmpuint(++u, <, G_N_ELEMENTS(units));
    g_assert_cmpfloat(shown, >=, 1.0);
    g_assert_cmpfloat(shown, <, 1000.0);
    g_assert_cmpuint((guint)(end - text), <=, 4);
    g_assert_cmpfloat(fabs(shown * units[u].scale - value), <=, 0.00501 * value);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/format/whole-numbers", whole_numbers);
  g_test_add_func("/format/six-decimals", six_decimals);
  g_test_add_func("/format/three-digits-in-a-fitting-unit", three_digits_in_a_fitting_unit);
  g_test_add_func("/format/decimals-are-printfs", decimals_are_printfs);
  g_test_add_func("/format/units-hold-for-all-sizes", units_hold_for_all_sizes);
  return g_test_run();
}
