/* Reading one JSON record in place, in a single pass and without building a tree.
 *
 * A KvScan walks over the text of one record. The caller asks for what it expects next (an object's
 * next member, a whole number, an array's next element); the scan takes it or remembers the first
 * error, with the line and the field, after which every call says "nothing more". So code that
 * reads a record is a loop over its members, and looks at the error once, at the end. What is
 * skipped is checked to be JSON all the same.
 */
#ifndef KV_TRACES_SCAN_H
#define KV_TRACES_SCAN_H

#include "traces/stream.h"

typedef struct {
  const KvTraceStream *stream;
  const char *text, *at, *end; /* *end is NUL */
  GError **error;
  gboolean failed;
} KvScan;

/* Walk over `length` bytes of `text`, as the stream gave them. */
void kv_scan_begin(KvScan *scan, const KvTraceStream *stream, const char *text, gsize length,
                   GError **error);

/* Take the '{' or '[' that must come now. */
gboolean kv_scan_open(KvScan *scan, char bracket, const char *field);

/* After kv_scan_open(scan, '{'): the next member's key, borrowed, without its quotes. FALSE at the
 * closing brace, which is taken, or after an error. `count` starts at 0 and counts the members. */
gboolean kv_scan_member(KvScan *scan, guint *count, const char **key, gsize *length);

/* After kv_scan_open(scan, '['): TRUE if an element comes now; FALSE at the bracket, which is
 * taken. */
gboolean kv_scan_element(KvScan *scan, guint *count, const char *field);

gboolean kv_scan_is(const char *key, gsize length, const char *name);

/* The first byte of what comes now ('"', '{', '[', '-', a digit, t, f, n), or NUL. */
char kv_scan_peek(KvScan *scan);

/* What comes now must be a number in [min, max]; a whole one. 0 after an error. */
double kv_scan_number(KvScan *scan, const char *field, double min, double max);
gint64 kv_scan_whole(KvScan *scan, const char *field, gint64 min, gint64 max);

/* A string, borrowed, as it stands between its quotes (escapes are not resolved). */
const char *kv_scan_string(KvScan *scan, const char *field, gsize *length);

/* Append an array of whole numbers: of 64 bits, and of 32 bits. */
void kv_scan_array_u64(KvScan *scan, const char *field, GArray *into);
void kv_scan_array_u32(KvScan *scan, const char *field, GArray *into);

/* Any value. */
void kv_scan_skip(KvScan *scan, const char *field);

/* Nothing but blanks may follow. */
void kv_scan_finish(KvScan *scan);

/* Remember the error "FILE:LINE: field: ..." at the present place; always FALSE. */
gboolean kv_scan_fail(KvScan *scan, const char *field, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* A token count of a request, 1 to 2^31-1. */
guint32 kv_scan_tokens(KvScan *scan, const char *field);

/* A session or chat name that may be a number or a string, as a number from 0. */
gint64 kv_scan_name(KvScan *scan, const char *field);

/* The 63-bit number that stands for the name `text`. */
gint64 kv_trace_name_number(const char *text, gsize length);

#endif
