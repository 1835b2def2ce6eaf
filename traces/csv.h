/* Comma-separated traces: a header that names the columns, then a record a line.
 *
 * Formats ask for columns by name, so their order and further columns do not matter. Fields may
 * stand in quotes. A wrong field gives "FILE:LINE: column: ...".
 */
#ifndef KV_TRACES_CSV_H
#define KV_TRACES_CSV_H

#include "traces/stream.h"

enum { KV_CSV_MOST_COLUMNS = 64 };

typedef struct {
  KvTraceStream *stream;
  guint n_columns;
  char *names[KV_CSV_MOST_COLUMNS];
  char *fields[KV_CSV_MOST_COLUMNS]; /* of the last row, each ended by a NUL */
} KvCsv;

/* Whether the first line of `head` names all of the columns given (NULL-terminated). */
gboolean kv_csv_recognise(const char *head, gsize length, ...) G_GNUC_NULL_TERMINATED;

/* Read the header. */
gboolean kv_csv_begin(KvCsv *csv, KvTraceStream *stream, GError **error);
void kv_csv_clear(KvCsv *csv);

/* The column called `name`, in letters of either case; -1 if there is none. */
int kv_csv_column(const KvCsv *csv, const char *name);

/* The next row. FALSE at the end, or with *error set. */
gboolean kv_csv_row(KvCsv *csv, GError **error);

/* The row's field of `column` as a finite number in [min, max], or as a whole one. */
gboolean kv_csv_number(const KvCsv *csv, int column, double min, double max, double *value,
                       GError **error);
gboolean kv_csv_whole(const KvCsv *csv, int column, gint64 min, gint64 max, gint64 *value,
                      GError **error);
/* A token count of a request, 1 to 2^31-1. */
gboolean kv_csv_tokens(const KvCsv *csv, int column, guint32 *tokens, GError **error);

/* Complain about the field of `column`; always FALSE. */
gboolean kv_csv_fail(const KvCsv *csv, int column, const char *expected, GError **error);

#endif
