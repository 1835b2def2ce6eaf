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
  if (!isfinite(value) || fabs(value) > 1e12)
    return g_stpcpy(at, "nan");
  if (value < 0.0)
    *at++ = '-';
  guint64 micro = (guint64)(fabs(value) * 1e6 + 0.5);
  at = kv_format_u64(at, micro / 1000000);
  guint64 rest = micro % 1000000;
  *at++ = '.';
  for (guint64 unit = 100000; unit; unit /= 10)
    *at++ = (char)('0' + rest / unit % 10);
  return at;
}

typedef struct {
  double scale;
  const char *unit;
} Unit;

static char *in_unit(double value, const Unit *units) {
  /* The bounds are where rounding to three digits carries into a fourth. */
  const Unit *unit = units;
  while (unit[1].unit && fabs(value) < unit->scale &&
         !(fabs(value) >= 999.5 * unit[1].scale))
    unit++;
  double shown = value / unit->scale, size = fabs(shown);
  return g_strdup_printf("%.*f%s", size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2, shown, unit->unit);
}

char *kv_format_bytes(double bytes) {
  static const Unit units[] = {{1e15, " PB"}, {1e12, " TB"}, {1e9, " GB"}, {1e6, " MB"},
                               {1e3, " kB"},  {1.0, " B"},   {0.0, NULL}};
  return in_unit(bytes, units);
}

char *kv_format_seconds(double seconds) {
  static const Unit units[] = {{1.0, " s"}, {1e-3, " ms"}, {1e-6, " us"}, {1e-9, " ns"}, {0.0, NULL}};
  return in_unit(seconds, units);
}

char *kv_format_count(double count) {
  static const Unit units[] = {{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}, {1.0, ""}, {0.0, NULL}};
  return in_unit(count, units);
}
