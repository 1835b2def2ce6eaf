#include "traces/trace.h"

#include <string.h>

#include "sim/base/error.h"
#include "sim/base/names.h"
#include "traces/formats.h"
#include "traces/stream.h"

/* In the order in which a file is offered to them: those that ask for most come first. */
const KvTraceFormat *const kv_trace_formats[] = {
    &kv_trace_native,     &kv_trace_azure,   &kv_trace_vidur,           &kv_trace_splitwise,
    &kv_trace_burstgpt,   &kv_trace_lengths, &kv_trace_sharegpt_tokens, &kv_trace_agent_sessions,
    &kv_trace_replay_csv, &kv_trace_bailian, &kv_trace_vllm_bench,      NULL};

struct KvTraceReader {
  char *name;
  KvTraceStream *stream; /* NULL for made traces */
  const KvTraceFormat *format;
  gpointer state;
  guint64 n_requests;
  gboolean ended;
};

KvTraceReader *kv_trace_reader_new(const char *name, const KvTraceFormat *format, gpointer state) {
  KvTraceReader *reader = g_new0(KvTraceReader, 1);
  reader->name = g_strdup(name);
  reader->format = format;
  reader->state = state;
  return reader;
}

static const KvTraceFormat *format_named(const char *id, GError **error) {
  const char *ids[G_N_ELEMENTS(kv_trace_formats)] = {NULL};
  for (guint i = 0; kv_trace_formats[i]; i++) {
    if (strcmp(kv_trace_formats[i]->id, id) == 0)
      return kv_trace_formats[i];
    ids[i] = kv_trace_formats[i]->id;
  }
  g_autofree char *message = kv_names_unknown("trace format", id, ids);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s", message);
  return NULL;
}

static const KvTraceFormat *format_of(KvTraceStream *stream, GError **error) {
  gsize length;
  const char *head = kv_trace_stream_head(stream, &length, error);
  if (!head)
    return NULL;
  gsize blank = 0;
  while (blank < length && g_ascii_isspace(head[blank]))
    blank++;
  if (blank == length) {
    kv_error_at(error, kv_trace_stream_name(stream), 0, "is empty, expected a trace");
    return NULL;
  }
  g_autoptr(GString) ids = g_string_new(NULL);
  for (guint i = 0; kv_trace_formats[i]; i++) {
    if (kv_trace_formats[i]->recognise(head, length))
      return kv_trace_formats[i];
    g_string_append_printf(ids, "%s%s", i ? ", " : "", kv_trace_formats[i]->id);
  }
  kv_error_at(error, kv_trace_stream_name(stream), 1,
              "not recognised as a trace, expected one of: %s (see `kvsim list formats`)",
              ids->str);
  return NULL;
}

static KvTraceReader *open_stream(KvTraceStream *stream, const char *id, GError **error) {
  const KvTraceFormat *format = id ? format_named(id, error) : format_of(stream, error);
  gpointer state = format ? format->create(stream, error) : NULL;
  if (!state) {
    kv_trace_stream_close(stream);
    return NULL;
  }
  KvTraceReader *reader = kv_trace_reader_new(kv_trace_stream_name(stream), format, state);
  reader->stream = stream;
  return reader;
}

KvTraceReader *kv_trace_reader_open(const char *path, const char *format, GError **error) {
  KvTraceStream *stream = kv_trace_stream_open(path, error);
  return stream ? open_stream(stream, format, error) : NULL;
}

KvTraceReader *kv_trace_reader_open_memory(const char *name, const char *bytes, gsize length,
                                           const char *format, GError **error) {
  return open_stream(kv_trace_stream_open_memory(name, bytes, length), format, error);
}

void kv_trace_reader_close(KvTraceReader *reader) {
  if (!reader)
    return;
  reader->format->destroy(reader->state);
  kv_trace_stream_close(reader->stream);
  g_free(reader->name);
  g_free(reader);
}

gboolean kv_trace_reader_next(KvTraceReader *reader, KvTraceRequest *request, GError **error) {
  if (reader->ended || kv_error_if_interrupted(error))
    return FALSE;
  *request = (KvTraceRequest){
      .line = reader->n_requests + 1, .session = -1, .id = (gint64)reader->n_requests};
  if (reader->stream)
    request->line = 0;
  if (!reader->format->next(reader->state, request, error)) {
    reader->ended = TRUE;
    return FALSE;
  }
  if (request->line == 0)
    request->line = kv_trace_stream_line_number(reader->stream);
  reader->n_requests++;
  return TRUE;
}

const KvTraceFormat *kv_trace_reader_format(const KvTraceReader *reader) {
  return reader->format;
}

KvTraceTiming kv_trace_reader_timing(const KvTraceReader *reader) {
  return reader->format->timing(reader->state);
}

guint32 kv_trace_reader_block_tokens(const KvTraceReader *reader) {
  return reader->format->block_tokens(reader->state);
}

const char *kv_trace_reader_name(const KvTraceReader *reader) {
  return reader->name;
}

void kv_trace_reader_progress(const KvTraceReader *reader, guint64 *done, guint64 *total) {
  *done = *total = 0;
  if (reader->stream)
    kv_trace_stream_progress(reader->stream, done, total);
}
