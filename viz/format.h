/* Quantities as a person reads them: three significant digits and a unit that fits the size.
 *
 * Every text is UTF-8 and newly allocated. What is not a finite number is shown as an en dash.
 * Bytes are decimal (1 GB = 1e9 bytes).
 */
#ifndef KV_VIZ_FORMAT_H
#define KV_VIZ_FORMAT_H

#include <glib.h>

typedef enum {
  KV_UNIT_NONE,       /* a plain number: 12.3 */
  KV_UNIT_COUNT,      /* a whole number: 19,366 */
  KV_UNIT_SECONDS,    /* 45.1 ms */
  KV_UNIT_SHARE,      /* of one: 34.1 % */
  KV_UNIT_BYTES,      /* 94.2 GB */
  KV_UNIT_PER_SECOND, /* 5.38 /s */
  KV_UNIT_FLOPS,      /* 1.20 PFLOP */
  KV_UNIT_JOULES,     /* 1.25 MJ */
  KV_UNIT_USD,        /* $1.25 */
  KV_UNIT_GRAMS,      /* 1.25 kg */
  KV_N_UNITS,
} KvUnit;

#define KV_NO_VALUE "\342\200\223" /* en dash */

char *kv_format(KvUnit unit, double value);

/* A whole number with thousands separators: 1,234,567. */
char *kv_format_whole(guint64 value);

/* How `value` differs from `baseline`: "+12 %", "×2.40", in points of a share "+3.2 pt"; "=" below
 * half a thousandth, "from 0" where no ratio can be formed. An en dash where a value is missing. */
char *kv_format_change(KvUnit unit, double value, double baseline);

#endif
