/* sim/base/format.h: against printf. */
#include "sim/base/format.h"

#include <math.h>
#include <string.h>

#include "sim/base/random.h"

static void whole_numbers_are_printfs(void) {
  KvRandom random;
  kv_random_seed(&random, 1, 0);
  guint64 value = 0;
  for (guint i = 0; i < 20000; i++) {
    char ours[32] = "", theirs[32];
    char *end = kv_format_u64(ours, value);
    g_snprintf(theirs, sizeof theirs, "%" G_GUINT64_FORMAT, value);
    *end = '\0';
    g_assert_cmpstr(ours, ==, theirs);
    g_assert_cmpuint((guint)(end - ours), <=, 20);
    value = i == 0 ? G_MAXUINT64 : kv_random_u64(&random) >> kv_random_integer(&random, 0, 63);
  }
}

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
    if (beside_half > 1e-4) /* at a half, printf goes by digits that a double does not have */
      g_assert_cmpstr(ours, ==, theirs);
    else
      g_assert_cmpfloat_with_epsilon(g_ascii_strtod(ours, NULL), value, 0.501e-6);
  }
}

static void decimals_at_the_edges(void) {
  const struct {
    double value;
    const char *text;
  } cases[] = {
      {0.0, "0.000000"},
      {-0.0, "0.000000"},
      {1e-7, "0.000000"},
      {0.9999999, "1.000000"},
      {-0.9999999, "-1.000000"},
      {59.9999996, "60.000000"},
      {1e12, "1000000000000.000000"},
      {-1e12, "-1000000000000.000000"},
      {1.1e12, "nan"}, /* beyond what a time can be */
      {G_MAXDOUBLE, "nan"},
      {INFINITY, "nan"},
      {-INFINITY, "nan"},
      {NAN, "nan"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    char text[40];
    *kv_format_fixed6(text, cases[i].value) = '\0';
    g_assert_cmpuint(strlen(text), <=, 32);
    g_assert_cmpstr(text, ==, cases[i].text);
  }
}

static void units_give_one_to_three_digits(void) {
  const struct {
    char *(*format)(double);
    double value;
    const char *text;
  } cases[] = {
      {kv_format_bytes, 0.0, "0.00 B"},         {kv_format_bytes, 1.0, "1.00 B"},
      {kv_format_bytes, 999.0, "999 B"},        {kv_format_bytes, 999.6, "1.00 kB"},
      {kv_format_bytes, 1000.0, "1.00 kB"},     {kv_format_bytes, 1.5e9, "1.50 GB"},
      {kv_format_bytes, 999.4e6, "999 MB"},     {kv_format_bytes, 999.5e6, "1.00 GB"},
      {kv_format_bytes, -999.96e6, "-1.00 GB"}, {kv_format_bytes, 99.96e6, "100 MB"},
      {kv_format_bytes, 9.996e6, "10.0 MB"},    {kv_format_bytes, 9.994e6, "9.99 MB"},
      {kv_format_bytes, 9.999e17, "1000 PB"}, /* there is no larger unit */
      {kv_format_seconds, 0.0123, "12.3 ms"},   {kv_format_seconds, 0.99999, "1.00 s"},
      {kv_format_seconds, 3600.0, "3600 s"},    {kv_format_seconds, 2e-9, "2.00 ns"},
      {kv_format_seconds, 999.7e-9, "1.00 us"}, {kv_format_count, 4200.0, "4.20 k"},
      {kv_format_count, 7.0, "7.00"},           {kv_format_count, 999.9e9, "1.00 T"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *text = cases[i].format(cases[i].value);
    g_assert_cmpstr(text, ==, cases[i].text);
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
  g_test_add_func("/format/whole-numbers-are-printfs", whole_numbers_are_printfs);
  g_test_add_func("/format/decimals-are-printfs", decimals_are_printfs);
  g_test_add_func("/format/decimals-at-the-edges", decimals_at_the_edges);
  g_test_add_func("/format/units-give-one-to-three-digits", units_give_one_to_three_digits);
  g_test_add_func("/format/units-hold-for-all-sizes", units_hold_for_all_sizes);
  return g_test_run();
}
