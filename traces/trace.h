/* Request traces: what arrives, when, how long it is, and what it shares with what came before.
 *
 * A reader yields requests one at a time, in file order, from a plain or gzip file or from standard
 * input
 * ("-"); it never holds more than what one record needs. Formats register in one table
 * (kv_trace_formats) and are recognised by the content's first bytes, never by the file's name.
 *
 * Times are seconds from the start of the trace (readers convert ms, us, ns and dates). Token
 * counts are tokens of the model's own tokenizer. Prefix blocks: `hashes[i]` names the content of
 * the tokens [i*block_tokens, (i+1)*block_tokens) of the prompt AND of everything before them, so
 * equal names mean an equal prefix; the last one may cover a partial block. Names are 64 bits,
 * unique across the whole trace (readers of formats whose ids are local to a session fold the
 * session in).
 *
 * Errors: "FILE:LINE: field: what is wrong, what was expected" (KV_ERROR_INPUT). After an error the
 * reader yields nothing more.
 */
#ifndef KV_TRACES_TRACE_H
#define KV_TRACES_TRACE_H

#include <glib.h>

/* How a trace says when its requests come. */
typedef enum {
  KV_TRACE_TIMED,    /* every request has its arrival time; they do not go backwards */
  KV_TRACE_SESSIONS, /* turns of a session come together; a turn after the first says how long its
                        user thought after the previous answer. Arrival times, where recorded, are
                        relative to the session's start */
  KV_TRACE_UNTIMED,  /* lengths only */
} KvTraceTiming;

/* A call of a tool or an API in the middle of an answer: after `position` tokens of it the request
 * waits for so long, and what comes back is read like a prompt before the answer goes on. */
typedef struct {
  guint32 position;        /* 1 <= position < output_tokens; ascending in a request */
  guint32 returned_tokens; /* 0 and more */
  double duration_seconds;
} KvTraceCall;

typedef struct {
  guint64 line;           /* where it stands in the file, from 1 */
  double arrival_seconds; /* see KvTraceTiming; 0 where the trace has none */
  guint32 input_tokens;   /* >= 1 */
  guint32 output_tokens;  /* >= 1 */
  guint32 n_hashes; /* ceil(input_tokens / block_tokens), or 0 if nothing is known of the content */
  guint32 n_tokens; /* input_tokens if the ids are known, else 0 */
  const guint64 *hashes; /* valid until the next call on the reader */
  const guint32 *tokens; /* token ids, likewise */
  guint32 n_calls;
  const KvTraceCall *calls; /* likewise */
  gint64 session;           /* -1 if it belongs to none; otherwise turns of a session share it */
  guint32 turn;             /* 0 is the first of its session */
  double session_start_seconds; /* KV_TRACE_SESSIONS: when its session starts; 0 where the trace has
                                   none */
  double think_seconds;    /* from the end of the previous turn's answer to this turn's arrival */
  gint32 priority;         /* smaller is more urgent; 0 by default */
  double deadline_seconds; /* from arrival; 0 is none */
  gint64 id;               /* the file's own id, or the request's ordinal number from 0 */
} KvTraceRequest;

typedef struct KvTraceReader KvTraceReader;
typedef struct KvTraceStream KvTraceStream; /* the text behind a reader: traces/stream.h */

/* One format: a file of traces/ each. */
typedef struct {
  const char *id;          /* "native", "azure", "vidur" ... */
  const char *description; /* one line, for `kvsim list formats` */
  const char *example;     /* a first record, for the documentation */
  /* Whether text that begins with these bytes (at most 64 KiB, at least a line if there is one) is
   * ours. */
  gboolean (*recognise)(const char *head, gsize length);
  gpointer (*create)(KvTraceStream *stream, GError **error); /* read the header */
  /* TRUE with *request filled; FALSE at the end, or with *error set. */
  gboolean (*next)(gpointer state, KvTraceRequest *request, GError **error);
  void (*destroy)(gpointer state);
  KvTraceTiming (*timing)(gpointer state);
  guint32 (*block_tokens)(gpointer state); /* tokens a prefix hash covers; 0 if there are none */
} KvTraceFormat;

/* Every format, NULL-terminated. */
extern const KvTraceFormat *const kv_trace_formats[];

/* Open `path`, recognise its format (or take the one named `format`, unless NULL). */
KvTraceReader *kv_trace_reader_open(const char *path, const char *format, GError **error);
/* The same of `length` bytes (plain or gzip) that must outlive the reader; errors call them `name`.
 */
KvTraceReader *kv_trace_reader_open_memory(const char *name, const char *bytes, gsize length,
                                           const char *format, GError **error);

/* A reader of requests that are made and not read (transformations, generators): `format` needs no
 * recognise and no create; the reader takes `state` and calls format->destroy on it. */
KvTraceReader *kv_trace_reader_new(const char *name, const KvTraceFormat *format, gpointer state);

void kv_trace_reader_close(KvTraceReader *reader);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvTraceReader, kv_trace_reader_close)

/* The next request; FALSE at the end, or with *error set. */
gboolean kv_trace_reader_next(KvTraceReader *reader, KvTraceRequest *request, GError **error);

const KvTraceFormat *kv_trace_reader_format(const KvTraceReader *reader);
KvTraceTiming kv_trace_reader_timing(const KvTraceReader *reader);
guint32 kv_trace_reader_block_tokens(const KvTraceReader *reader);
const char *kv_trace_reader_name(const KvTraceReader *reader);
/* Bytes of the file consumed so far, and its size (0 if it is not known), for progress. */
void kv_trace_reader_progress(const KvTraceReader *reader, guint64 *done, guint64 *total);

#endif
