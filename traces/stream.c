#include "traces/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "sim/base/error.h"

enum { READ_BYTES = 1 << 16 };

struct KvTraceStream {
  char *name;
  int fd;             /* -1: memory */
  const char *memory; /* what is left of it */
  gsize memory_bytes;
  guint64 done_bytes, total_bytes;
  gboolean source_ended; /* no more bytes come from the file */
  gboolean gzip, text_ended;
  z_stream inflater;
  guint8 *compressed; /* READ_BYTES, for gzip only */
  char *text;         /* [begin, end) is text not taken yet; size has one byte more for a NUL */
  gsize begin, end, size;
  char *held; /* a byte overwritten by the NUL of the last record, to be put back */
  char held_byte;
  guint64 line, next_line; /* of the last record, and of text[begin] */
  GPtrArray *noted;
};

static KvTraceStream *stream_new(const char *name, int fd) {
  KvTraceStream *stream = g_new0(KvTraceStream, 1);
  stream->name = g_strdup(name);
  stream->fd = fd;
  stream->size = 2 * KV_TRACE_HEAD_BYTES;
  stream->text = g_malloc(stream->size + 1);
  stream->next_line = 1;
  stream->noted = g_ptr_array_new();
  return stream;
}

KvTraceStream *kv_trace_stream_open(const char *path, GError **error) {
  gboolean standard = strcmp(path, "-") == 0;
  int fd = standard ? STDIN_FILENO : g_open(path, O_RDONLY | O_CLOEXEC, 0);
  struct stat status;
  int problem = fd < 0 || fstat(fd, &status) != 0 ? errno : S_ISDIR(status.st_mode) ? EISDIR : 0;
  if (problem) {
    kv_error_at(error, path, 0, "cannot be read (%s), expected a trace file or -",
                g_strerror(problem));
    if (fd >= 0 && !standard)
      close(fd);
    return NULL;
  }
  KvTraceStream *stream = stream_new(standard ? "standard input" : path, fd);
  if (S_ISREG(status.st_mode))
    stream->total_bytes = (guint64)status.st_size;
  return stream;
}

KvTraceStream *kv_trace_stream_open_memory(const char *name, const char *bytes, gsize length) {
  KvTraceStream *stream = stream_new(name, -1);
  stream->memory = bytes;
  stream->memory_bytes = length;
  stream->total_bytes = length;
  return stream;
}

void kv_trace_stream_close(KvTraceStream *stream) {
  if (!stream)
    return;
  if (stream->gzip)
    inflateEnd(&stream->inflater);
  if (stream->fd > STDIN_FILENO)
    close(stream->fd);
  g_ptr_array_unref(stream->noted);
  g_free(stream->compressed);
  g_free(stream->text);
  g_free(stream->name);
  g_free(stream);
}

/* Up to `room` bytes as the file has them; 0 at its end; -1 with *error. */
static gssize read_source(KvTraceStream *stream, void *into, gsize room, GError **error) {
  gssize n;
  if (stream->fd < 0) {
    n = (gssize)MIN(room, stream->memory_bytes);
    if (n > 0)
      memcpy(into, stream->memory, (gsize)n);
    stream->memory += n;
    stream->memory_bytes -= (gsize)n;
  } else {
    do
      n = read(stream->fd, into, room);
    while (n < 0 && errno == EINTR && !g_atomic_int_get(&kv_interrupted));
    if (n < 0) {
      if (kv_error_if_interrupted(error))
        return -1;
      kv_error_at(error, stream->name, stream->next_line, "cannot be read (%s)", g_strerror(errno));
      return -1;
    }
  }
  stream->source_ended = n == 0;
  stream->done_bytes += (guint64)n;
  return n;
}

static gboolean gzip_problem(KvTraceStream *stream, GError **error) {
  if (stream->source_ended)
    return kv_trace_stream_fail(stream, error, NULL,
                                "truncated gzip stream, expected a complete file");
  return kv_trace_stream_fail(stream, error, NULL,
                              "damaged gzip stream (%s), expected a sound file",
                              stream->inflater.msg ? stream->inflater.msg : "bad data");
}

/* Inflate at least a byte into text[end]; members of a file of several follow one another. */
static gboolean fill_inflated(KvTraceStream *stream, GError **error) {
  z_stream *z = &stream->inflater;
  z->next_out = (Bytef *)stream->text + stream->end;
  gsize room = z->avail_out = (uInt)MIN(stream->size - stream->end, G_MAXINT);
  while (z->avail_out == room) {
    if (z->avail_in == 0) {
      gssize n = read_source(stream, stream->compressed, READ_BYTES, error);
      if (n < 0)
        return FALSE;
      z->next_in = stream->compressed;
      z->avail_in = (uInt)n;
      if (n == 0) {
        stream->text_ended = z->total_in == 0; /* between members: a whole file */
        return stream->text_ended || gzip_problem(stream, error);
      }
    }
    if (z->total_in == 0 && z->next_in[0] == 0) { /* padding after the last member */
      z->next_in++;
      z->avail_in--;
      continue;
    }
    int status = inflate(z, Z_NO_FLUSH);
    if (status == Z_STREAM_END)
      inflateReset(z);
    else if (status != Z_OK)
      return gzip_problem(stream, error);
  }
  stream->end += room - z->avail_out;
  return TRUE;
}

/* More text behind text[end]; the buffer moves and grows. FALSE on failure; sets text_ended at the
 * end. */
static gboolean fill(KvTraceStream *stream, GError **error) {
  if (stream->begin > 0) {
    memmove(stream->text, stream->text + stream->begin, stream->end - stream->begin);
    stream->end -= stream->begin;
    stream->begin = 0;
  }
  if (stream->size - stream->end < READ_BYTES) {
    if (stream->size > KV_TRACE_LONGEST_RECORD_BYTES) {
      stream->line = stream->next_line;
      return kv_trace_stream_fail(stream, error, NULL,
                                  "record is longer than %u MiB, expected less",
                                  (guint)(KV_TRACE_LONGEST_RECORD_BYTES >> 20));
    }
    stream->size *= 2;
    stream->text = g_realloc(stream->text, stream->size + 1);
  }
  if (stream->gzip)
    return fill_inflated(stream, error);
  gsize room = MIN(stream->size - stream->end, READ_BYTES);
  gssize n = read_source(stream, stream->text + stream->end, room, error);
  if (n < 0)
    return FALSE;
  stream->end += (gsize)n;
  stream->text_ended = n == 0;
  return TRUE;
}

/* The first bytes of the file have come: what are they? */
static gboolean begin_text(KvTraceStream *stream, GError **error) {
  while (stream->end < 3 && !stream->text_ended)
    if (!fill(stream, error))
      return FALSE;
  if (stream->end >= 2 && memcmp(stream->text, "\x1f\x8b", 2) == 0) {
    stream->gzip = TRUE;
    stream->compressed = g_malloc((gsize)2 * READ_BYTES + stream->end);
    memcpy(stream->compressed, stream->text, stream->end);
    stream->inflater.next_in = stream->compressed;
    stream->inflater.avail_in = (uInt)stream->end;
    stream->end = 0;
    stream->text_ended = FALSE;
    if (inflateInit2(&stream->inflater, 15 + 16) != Z_OK)
      g_error("zlib cannot start: out of memory");
    if (!fill(stream, error))
      return FALSE;
  }
  if (stream->end >= 3 && memcmp(stream->text, "\xef\xbb\xbf", 3) == 0)
    stream->begin = 3; /* byte-order mark */
  return TRUE;
}

static void put_back(KvTraceStream *stream) {
  if (stream->held)
    *stream->held = stream->held_byte;
  stream->held = NULL;
}

/* Before text is taken: the first bytes are there, and the last record's NUL is undone. */
static gboolean prepare(KvTraceStream *stream, GError **error) {
  put_back(stream);
  return stream->end > 0 || stream->text_ended || begin_text(stream, error);
}

/* Hand out text[begin, begin+length) and go on behind `used` bytes that hold `lines` line ends. */
static void take(KvTraceStream *stream, char **text, gsize length, gsize used, guint64 lines) {
  *text = stream->text + stream->begin;
  stream->held = *text + length;
  stream->held_byte = *stream->held;
  *stream->held = '\0';
  stream->begin += used;
  stream->line = stream->next_line;
  stream->next_line += lines;
}

const char *kv_trace_stream_head(KvTraceStream *stream, gsize *length, GError **error) {
  if (!prepare(stream, error))
    return NULL;
  while (stream->end - stream->begin < KV_TRACE_HEAD_BYTES && !stream->text_ended)
    if (!fill(stream, error))
      return NULL;
  *length = MIN(stream->end - stream->begin, KV_TRACE_HEAD_BYTES);
  return stream->text + stream->begin;
}

gboolean kv_trace_stream_line(KvTraceStream *stream, char **line, gsize *length, GError **error) {
  if (!prepare(stream, error))
    return FALSE;
  gsize searched = 0;
  for (;;) {
    char *from = stream->text + stream->begin;
    gsize have = stream->end - stream->begin;
    char *newline = have > searched ? memchr(from + searched, '\n', have - searched) : NULL;
    if (!newline && !stream->text_ended) {
      searched = have;
      if (!fill(stream, error))
        return FALSE;
      continue;
    }
    if (!newline && have == 0)
      return FALSE;
    gsize end = newline ? (gsize)(newline - from) : have;
    *length = end > 0 && from[end - 1] == '\r' ? end - 1 : end;
    take(stream, line, *length, end + (newline != NULL), 1);
    return TRUE;
  }
}

gboolean kv_trace_stream_filled_line(KvTraceStream *stream, char **line, gsize *length,
                                     GError **error) {
  while (kv_trace_stream_line(stream, line, length, error))
    for (gsize i = 0; i < *length; i++)
      if (!g_ascii_isspace((*line)[i]))
        return TRUE;
  return FALSE;
}

/* Pass blanks; TRUE if a byte follows. */
static gboolean skip_blanks(KvTraceStream *stream, GError **error) {
  if (!prepare(stream, error))
    return FALSE;
  for (;;) {
    for (; stream->begin < stream->end; stream->begin++) {
      char c = stream->text[stream->begin];
      if (!g_ascii_isspace(c))
        return TRUE;
      stream->next_line += c == '\n';
    }
    if (stream->text_ended || !fill(stream, error))
      return FALSE;
  }
}

gboolean kv_trace_stream_take(KvTraceStream *stream, char wanted, GError **error) {
  if (!skip_blanks(stream, error))
    return FALSE;
  stream->line = stream->next_line;
  if (stream->text[stream->begin] != wanted)
    return FALSE;
  stream->begin++;
  return TRUE;
}

gboolean kv_trace_stream_at_end(KvTraceStream *stream, GError **error) {
  gboolean more = skip_blanks(stream, error);
  stream->line = stream->next_line;
  return !more;
}

gboolean kv_trace_stream_object(KvTraceStream *stream, char **text, gsize *length, GError **error) {
  if (!skip_blanks(stream, error))
    return FALSE;
  stream->line = stream->next_line;
  if (stream->text[stream->begin] != '{')
    return kv_trace_stream_fail(
        stream, error, NULL, "'%c' found, expected a JSON object",
        g_ascii_isprint(stream->text[stream->begin]) ? stream->text[stream->begin] : '?');
  guint64 depth = 0, lines = 0;
  gboolean quoted = FALSE, escaped = FALSE;
  for (gsize i = 0;; i++) {
    while (stream->begin + i == stream->end) {
      if (stream->text_ended)
        return kv_trace_stream_fail(stream, error, NULL,
                                    "the object is cut off, expected its closing brace");
      if (!fill(stream, error))
        return FALSE;
    }
    char c = stream->text[stream->begin + i];
    lines += c == '\n';
    if (quoted) {
      quoted = escaped || c != '"';
      escaped = !escaped && c == '\\';
    } else if (c == '"') {
      quoted = TRUE;
    } else if (c == '{' || c == '[') {
      depth++;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      *length = i + 1;
      take(stream, text, i + 1, i + 1, lines);
      return TRUE;
    }
  }
}

guint64 kv_trace_stream_line_number(const KvTraceStream *stream) {
  return stream->line;
}

const char *kv_trace_stream_name(const KvTraceStream *stream) {
  return stream->name;
}

void kv_trace_stream_progress(const KvTraceStream *stream, guint64 *done, guint64 *total) {
  *done = stream->done_bytes;
  *total = stream->total_bytes;
}

gboolean kv_trace_stream_fail(const KvTraceStream *stream, GError **error, const char *field,
                              const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *message = g_strdup_vprintf(format, args);
  va_end(args);
  kv_error_at(error, stream->name, MAX(stream->line, 1), "%s%s%s", field ? field : "",
              field ? ": " : "", message);
  return FALSE;
}

void kv_trace_stream_note(KvTraceStream *stream, const char *kind, const char *format, ...) {
  for (guint i = 0; i < stream->noted->len; i++)
    if (strcmp(g_ptr_array_index(stream->noted, i), kind) == 0)
      return;
  g_ptr_array_add(stream->noted, (gpointer)kind);
  va_list args;
  va_start(args, format);
  g_autofree char *message = g_strdup_vprintf(format, args);
  va_end(args);
  g_message("%s:%" G_GUINT64_FORMAT ": %s", stream->name, stream->line, message);
}

gboolean kv_trace_clock_read(KvTraceClock *clock, const KvTraceStream *stream, const char *field,
                             double seconds, double *arrival_seconds, GError **error) {
  if (!clock->begun) {
    clock->begun = TRUE;
    clock->base_seconds = clock->rebase || seconds >= KV_TRACE_EPOCH_SECONDS ? seconds : 0;
    clock->last_seconds = seconds;
  }
  if (seconds < clock->last_seconds)
    return kv_trace_stream_fail(stream, error, field,
                                "goes back by %g s, expected times that do not decrease",
                                clock->last_seconds - seconds);
  clock->last_seconds = seconds;
  *arrival_seconds = seconds - clock->base_seconds;
  return TRUE;
}
