#include "viz/format.h"

#include <math.h>

#define MINUS "\342\210\222"
#define TIMES "\303\227"

typedef struct {
  double from; /* the smallest value shown with this scale */
  double size;
  const char *suffix;
} Scale;

/* Descending; the last entry takes everything below. */
static const Scale seconds_scales[] = {
    {48 * 3600, 86400, " d"}, {7200, 3600, " h"},       {120, 60, " min"},
    {0.9995, 1, " s"},        {0.9995e-3, 1e-3, " ms"}, {0, 1e-6, " \302\265s"},
};
static const Scale bytes_scales[] = {
    {0.9995e15, 1e15, " PB"}, {0.9995e12, 1e12, " TB"}, {0.9995e9, 1e9, " GB"},
    {0.9995e6, 1e6, " MB"},   {0.9995e3, 1e3, " kB"},   {0, 1, " B"},
};
static const Scale flops_scales[] = {
    {0.9995e21, 1e21, " ZFLOP"},
    {0.9995e18, 1e18, " EFLOP"},
    {0.9995e15, 1e15, " PFLOP"},
    {0.9995e12, 1e12, " TFLOP"},
    {0.9995e9, 1e9, " GFLOP"},
    {0.9995e6, 1e6, " MFLOP"},
    {0, 1, " FLOP"},
};
static const Scale joules_scales[] = {
    {0.9995e9, 1e9, " GJ"}, {0.9995e6, 1e6, " MJ"}, {0.9995e3, 1e3, " kJ"},
    {0.9995, 1, " J"},      {0, 1e-3, " mJ"},
};
static const Scale grams_scales[] = {
    {0.9995e6, 1e6, " t"}, {0.9995e3, 1e3, " kg"}, {0.9995, 1, " g"}, {0, 1e-3, " mg"}};
static const Scale number_scales[] = {
    {0.9995e12, 1e12, " T"}, {0.9995e9, 1e9, " G"}, {0.9995e7, 1e6, " M"}, {0, 1, ""}};

static const Scale *const scales[KV_N_UNITS] = {
    [KV_UNIT_NONE] = number_scales, [KV_UNIT_SECONDS] = seconds_scales,
    [KV_UNIT_BYTES] = bytes_scales, [KV_UNIT_PER_SECOND] = number_scales,
    [KV_UNIT_FLOPS] = flops_scales, [KV_UNIT_JOULES] = joules_scales,
    [KV_UNIT_GRAMS] = grams_scales,
};

static char *grouped(const char *digits) {
  GString *text = g_string_new(digits);
  for (gssize at = (gssize)text->len - 3; at > 0; at -= 3)
    g_string_insert_c(text, at, ',');
  return g_string_free(text, FALSE);
}

char *kv_format_whole(guint64 value) {
  g_autofree char *digits = g_strdup_printf("%" G_GUINT64_FORMAT, value);
  return grouped(digits);
}

/* Three significant digits, four from 1,000 on, of a value that is not negative. */
static char *significant(double value) {
  if (value >= 99.95) {
    g_autofree char *digits = g_strdup_printf("%.0f", value);
    return grouped(digits);
  }
  int decimals = value >= 9.995 ? 1 : value >= 0.0995 ? 2 : value >= 0.00995 ? 3 : 4;
  return value == 0 ? g_strdup("0") : g_strdup_printf("%.*f", decimals, value);
}

static char *scaled(const Scale *scale, double value) {
  while (value < scale->from)
    scale++;
  g_autofree char *number = significant(value / scale->size);
  return g_strconcat(number, scale->suffix, NULL);
}

static char *format_positive(KvUnit unit, double value) {
  if (value == 0 && (unit == KV_UNIT_SECONDS || unit == KV_UNIT_JOULES || unit == KV_UNIT_GRAMS))
    return g_strdup(unit == KV_UNIT_SECONDS ? "0 s" : unit == KV_UNIT_JOULES ? "0 J" : "0 g");
  if (unit == KV_UNIT_SHARE)
    return g_strdup_printf("%.1f %%", 100 * value);
  if (unit == KV_UNIT_COUNT && value < 1e7)
    return kv_format_whole((guint64)(value + 0.5));
  if (unit == KV_UNIT_COUNT)
    return scaled(number_scales, value);
  if (unit == KV_UNIT_USD) {
    g_autofree char *number = significant(value);
    return g_strconcat("$", number, NULL);
  }
  char *text = scaled(scales[unit], value);
  if (unit != KV_UNIT_PER_SECOND)
    return text;
  g_autofree char *number = text;
  return g_strconcat(number, " /s", NULL);
}

char *kv_format(KvUnit unit, double value) {
  g_return_val_if_fail(unit < KV_N_UNITS, NULL);
  if (!isfinite(value))
    return g_strdup(KV_NO_VALUE);
  g_autofree char *text = format_positive(unit, fabs(value));
  return value < 0 ? g_strconcat(MINUS, text, NULL) : g_steal_pointer(&text);
}

char *kv_format_change(KvUnit unit, double value, double baseline) {
  if (!isfinite(value) || !isfinite(baseline))
    return g_strdup(KV_NO_VALUE);
  double change = unit == KV_UNIT_SHARE ? value - baseline
                  : baseline == 0       ? 0
                                        : value / baseline - 1;
  if (fabs(value - baseline) <= 0.0005 * (unit == KV_UNIT_SHARE ? 1 : fabs(baseline)))
    return g_strdup("=");
  if (unit != KV_UNIT_SHARE && baseline == 0)
    return g_strdup("from 0");
  const char *sign = change < 0 ? MINUS : "+";
  if (unit == KV_UNIT_SHARE)
    return g_strdup_printf("%s%.1f pt", sign, 100 * fabs(change));
  double ratio = 1 + change;
  if (ratio >= 2 || (ratio < 0.5 && ratio > 0))
    return g_strdup_printf(TIMES "%.*f",
                           ratio >= 100   ? 0
                           : ratio >= 10  ? 1
                           : ratio >= 0.1 ? 2
                                          : 3,
                           ratio);
  return g_strdup_printf("%s%.*f %%", sign, fabs(change) < 0.0995 ? 1 : 0, 100 * fabs(change));
}
