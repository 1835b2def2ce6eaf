/* Formatting numbers fast enough for a row per request. */
#ifndef KV_SIM_BASE_FORMAT_H
#define KV_SIM_BASE_FORMAT_H

#include <glib.h>

/* Write `value` at `at` (20 bytes at most), return the end. */
char *kv_format_u64(char *at, guint64 value);
/* Write `value` with six decimals (rounded), or in full where it is beyond 1e12, 32 bytes at most
 * and no NUL promised; "nan" if it is not finite. */
char *kv_format_fixed6(char *at, double value);

/* "1.50 GB", "12.3 ms", "4.2 k": `value` in a unit that gives one to three digits before the point;
 * newly allocated. */
char *kv_format_bytes(double bytes);
char *kv_format_seconds(double seconds);
char *kv_format_count(double count);

#endif
