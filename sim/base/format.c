#include "sim/base/format.h"

#include <math.h>

char *kv_format_u64(char *at, guint64 value) {
  char digits[20];
  guint n = 0;
  do {
    digits[n++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (n)
    *at++ = digits[--n];
  return at;
}

char *kv_format_fixed6(char *at, double value) {
  if (!isfinite(value))
    return g_stpcpy(at, "nan");
  if (fabs(value) > 1e12)
    return at + g_snprintf(at, 32, "%.17g", value);
  /* The two parts apart: their difference is exact, where 1e6 times a large value is not. */
  guint64 whole = (guint64)fabs(value);
  guint64 rest = (guint64)((fabs(value) - (double)whole) * 1e6 + 0.5);
  if (rest == 1000000) {
    whole++;
    rest = 0;
  }
  if (value < 0.0 && whole + rest > 0)
    *at++ = '-';
  at = kv_format_u64(at, whole);
  *at++ = '.';
  for (guint64 unit = 100000; unit; unit /= 10)
    *at++ = (char)('0' + rest / unit % 10);
  return at;
}

typedef struct {
  double scale;
  const char *unit;
} Unit;

/* Rounded to three digits first, so that 999.9 becomes 1.00 of the next unit and not 1000 of this
 * one. */
static double three_digits(double value) {
  if (value == 0.0 || !isfinite(value))
    return value;
  double last = pow(10.0, floor(log10(fabs(value))) - 2.0);
  return round(value / last) * last;
}

/* Among `units`, from the largest; zero is shown in the one whose scale is 1. */
static char *in_unit(double value, const Unit *units) {
  const Unit *unit = units;
  double rounded = three_digits(value), least = rounded == 0.0 ? 1.0 : fabs(rounded);
  while (unit[1].unit && least < unit->scale * (1.0 - 1e-9))
    unit++;
  double shown = rounded / unit->scale, size = fabs(shown) * (1.0 + 1e-9);
  return g_strdup_printf("%.*f%s", size >= 100.0 ? 0 : size >= 10.0 ? 1 : 2, shown, unit->unit);
}

char *kv_format_bytes(double bytes) {
  static const Unit units[] = {{1e15, " PB"}, {1e12, " TB"}, {1e9, " GB"}, {1e6, " MB"},
                               {1e3, " kB"},  {1.0, " B"},   {0.0, NULL}};
  return in_unit(bytes, units);
}

char *kv_format_seconds(double seconds) {
  static const Unit units[] = {
      {1.0, " s"}, {1e-3, " ms"}, {1e-6, " us"}, {1e-9, " ns"}, {0.0, NULL}};
  return in_unit(seconds, units);
}

char *kv_format_count(double count) {
  static const Unit units[] = {{1e12, " T"}, {1e9, " G"}, {1e6, " M"},
                               {1e3, " k"},  {1.0, ""},   {0.0, NULL}};
  return in_unit(count, units);
}
