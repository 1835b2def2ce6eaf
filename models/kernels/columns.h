/* A CSV file with a header, plain or gzipped, read line by line; fields by the header's names.
 *
 * Internal to models/kernels/. Fields with separators in quotes do not occur in the tables that the
 * readers know.
 */
#ifndef KV_MODELS_KERNELS_COLUMNS_H
#define KV_MODELS_KERNELS_COLUMNS_H

#include <glib.h>

typedef struct KvColumns KvColumns;

/* The file's name is `name` and .csv or .csv.gz. */
gboolean kv_columns_named(const char *path, const char *name);

/* NULL and *error if `path` cannot be read or is empty. */
KvColumns *kv_columns_open(const char *path, GError **error);
void kv_columns_free(KvColumns *table);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvColumns, kv_columns_free)

/* The header has this column. */
gboolean kv_columns_has(const KvColumns *table, const char *column);

/* Go to the next line that is not blank; FALSE at the end or on an error. */
gboolean kv_columns_next(KvColumns *table, GError **error);

/* The field of this line, "" if there is none; borrowed until the next line. */
const char *kv_columns_text(const KvColumns *table, const char *column);

/* The field as a number of at least 0, or above 0; *error says file, line and column if it is none.
 */
gboolean kv_columns_number(const KvColumns *table, const char *column, double *value,
                           GError **error);
gboolean kv_columns_positive(const KvColumns *table, const char *column, double *value,
                             GError **error);

#endif
