/* Tables of measured runs: a row of CSV each. What their readers share. */
#ifndef KV_SIM_VALIDATE_ROWS_H
#define KV_SIM_VALIDATE_ROWS_H

#include "sim/validate/measured.h"
#include "traces/csv.h"

/* The row's cell in the column `name`, "" if there is no such column. */
const char *kv_row_text(const KvCsv *csv, const char *name);
/* The same as a whole number from 1 on. */
gboolean kv_row_count(const KvCsv *csv, const char *name, guint *value, GError **error);

/* Fill `run` from the row; `run->source` names its place. */
typedef gboolean (*KvReadRow)(const KvCsv *csv, const KvMeasuredOptions *options,
                              KvMeasuredRun *run, GError **error);

/* Add a run of the kind `kind` for each row of the file whose column `filter` holds `value` (NULL:
 * of every row). */
gboolean kv_rows_read(const char *path, const char *kind, const char *filter, const char *value,
                      KvReadRow read_row, const KvMeasuredOptions *options, GPtrArray *runs,
                      GError **error);

#endif
