/* The text behind a trace reader, a line or a JSON object at a time.
 *
 * A stream reads a plain or gzip file (told apart by the content), standard input ("-") or memory,
 * through one buffer that holds the current record and a little more; nothing else is kept. Its
 * first 64 KiB can be looked at before anything is taken, so a format can be recognised even on a
 * pipe. It knows where it is: errors and notes are made here, as "FILE:LINE: field: what is wrong,
 * what was expected".
 *
 * Ownership: text handed out is the stream's, writable, ended by a NUL, and valid until the next
 * call that takes from it.
 */
#ifndef KV_TRACES_STREAM_H
#define KV_TRACES_STREAM_H

#include "traces/trace.h"

/* The longest line or object that a stream takes. */
#define KV_TRACE_LONGEST_RECORD_BYTES ((gsize)256 << 20)
#define KV_TRACE_HEAD_BYTES ((gsize)64 << 10)

KvTraceStream *kv_trace_stream_open(const char *path, GError **error);
/* `bytes` must outlive the stream. Gzip is recognised here too. */
KvTraceStream *kv_trace_stream_open_memory(const char *name, const char *bytes, gsize length);
void kv_trace_stream_close(KvTraceStream *stream);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvTraceStream, kv_trace_stream_close)

/* What is left of the first 64 KiB of text (all of it before anything is taken); NULL on failure.
 */
const char *kv_trace_stream_head(KvTraceStream *stream, gsize *length, GError **error);

/* Take the next line, without its end ("\n" or "\r\n"). FALSE at the end of the text or on failure.
 */
gboolean kv_trace_stream_line(KvTraceStream *stream, char **line, gsize *length, GError **error);

/* Take the next line that is not blank. */
gboolean kv_trace_stream_filled_line(KvTraceStream *stream, char **line, gsize *length,
                                     GError **error);

/* Skip blanks, then take one byte if it is `wanted`. FALSE if it is another, at the end, or on
 * failure. */
gboolean kv_trace_stream_take(KvTraceStream *stream, char wanted, GError **error);

/* Skip blanks; TRUE if nothing follows them. */
gboolean kv_trace_stream_at_end(KvTraceStream *stream, GError **error);

/* Skip blanks, then take one JSON object, which may run over many lines. */
gboolean kv_trace_stream_object(KvTraceStream *stream, char **text, gsize *length, GError **error);

/* The line on which the text last taken begins, from 1. */
guint64 kv_trace_stream_line_number(const KvTraceStream *stream);
const char *kv_trace_stream_name(const KvTraceStream *stream);
void kv_trace_stream_progress(const KvTraceStream *stream, guint64 *done, guint64 *total);

/* Set the error "NAME:LINE: field: message" (`field` may be NULL); always FALSE, for `return`. */
gboolean kv_trace_stream_fail(const KvTraceStream *stream, GError **error, const char *field,
                              const char *format, ...) G_GNUC_PRINTF(4, 5);

/* Tell the user, once for each `kind` (a string constant) and stream, of something that is not an
 * error. */
void kv_trace_stream_note(KvTraceStream *stream, const char *kind, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* The times of a timed trace, as formats read them: rebased to 0 if they are dates (`rebase`, or a
 * first one later than KV_TRACE_EPOCH_SECONDS), and never going backwards. Begin with all else
 * zero. */
typedef struct {
  gboolean rebase;
  gboolean begun;
  double base_seconds, last_seconds;
} KvTraceClock;

#define KV_TRACE_EPOCH_SECONDS 1e8

/* Turn the time `seconds` that `field` holds into the arrival time; FALSE with *error if it goes
 * back. */
gboolean kv_trace_clock_read(KvTraceClock *clock, const KvTraceStream *stream, const char *field,
                             double seconds, double *arrival_seconds, GError **error);

#endif
