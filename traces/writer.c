#include "traces/writer.h"

#include <math.h>
#include <string.h>
#include <zlib.h>

#include "sim/base/output.h"
#include "traces/table.h"

enum { DEFAULT_BLOCK_TOKENS = 512, COMPRESSED_BYTES = 1 << 16 };

struct KvTraceWriter {
  KvOutput *output;
  KvTraceTiming timing;
  guint64 n_written;
  GString *line;
  KvTable numbers; /* block name -> number + 1 */
  gboolean gzip;
  z_stream deflater;
};

/* Append to the line. GString's own way, through vprintf, is too slow for block lists. */
static void put_u64(GString *line, guint64 value) {
  char digits[20];
  gsize n = sizeof digits;
  do
    digits[--n] = (char)('0' + value % 10);
  while (value /= 10);
  g_string_append_len(line, digits + n, (gssize)(sizeof digits - n));
}

static void put_i64(GString *line, gint64 value) {
  if (value < 0)
    g_string_append_c(line, '-');
  put_u64(line, value < 0 ? -(guint64)value : (guint64)value);
}

/* Seconds as ms, to the nanosecond, without trailing zeros. */
static void put_ms(GString *line, double seconds) {
  gint64 ns = (gint64)llround(MIN(seconds, 9e9) * 1e9);
  put_i64(line, ns / 1000000);
  guint fraction = (guint)(ns % 1000000);
  if (fraction == 0)
    return;
  char digits[8];
  g_snprintf(digits, sizeof digits, ".%06u", fraction);
  gsize n = strlen(digits);
  while (digits[n - 1] == '0')
    n--;
  g_string_append_len(line, digits, (gssize)n);
}

static void put_field(GString *line, const char *name) {
  g_string_append(line, line->len > 1 ? ", \"" : "\"");
  g_string_append(line, name);
  g_string_append(line, "\": ");
}

/* Hand the line to the file, through zlib if it is to be compressed. */
static void flush_line(KvTraceWriter *w, int flush) {
  if (!w->gzip) {
    kv_output_write(w->output, w->line->str, w->line->len);
  } else {
    z_stream *z = &w->deflater;
    z->next_in = (Bytef *)w->line->str;
    z->avail_in = (uInt)w->line->len;
    do {
      z->next_out = (Bytef *)kv_output_reserve(w->output, COMPRESSED_BYTES);
      z->avail_out = COMPRESSED_BYTES;
      deflate(z, flush);
      kv_output_advance(w->output, COMPRESSED_BYTES - z->avail_out);
    } while (z->avail_out == 0);
  }
  g_string_truncate(w->line, 0);
}

static void put_header(KvTraceWriter *w, guint32 block_tokens) {
  static const char *const timings[] = {"timed", "sessions", "untimed"};
  gboolean blocks = block_tokens > 0 && block_tokens != DEFAULT_BLOCK_TOKENS;
  if (!blocks && w->timing != KV_TRACE_SESSIONS)
    return;
  g_string_append(w->line, "{\"kvsim_trace\": 1");
  if (block_tokens > 0)
    g_string_append_printf(w->line, ", \"block_tokens\": %u", block_tokens);
  g_string_append_printf(w->line, ", \"timing\": \"%s\"}\n", timings[w->timing]);
  flush_line(w, Z_NO_FLUSH);
}

KvTraceWriter *kv_trace_writer_open(const char *path, KvTraceTiming timing, guint32 block_tokens,
                                    GError **error) {
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return NULL;
  KvTraceWriter *w = g_new0(KvTraceWriter, 1);
  w->output = output;
  w->timing = timing;
  w->line = g_string_sized_new(4096);
  w->gzip = g_str_has_suffix(path, ".gz");
  kv_table_begin(&w->numbers);
  if (w->gzip && deflateInit2(&w->deflater, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    g_error("zlib cannot start: out of memory");
  put_header(w, block_tokens);
  return w;
}

static void put_blocks(KvTraceWriter *w, const KvTraceRequest *request) {
  put_field(w->line, "hash_ids");
  for (guint32 i = 0; i < request->n_hashes; i++) {
    guint64 *number = kv_table_at(&w->numbers, request->hashes[i]);
    if (*number == 0)
      *number = w->numbers.n_used;
    g_string_append(w->line, i ? ", " : "[");
    put_u64(w->line, *number - 1);
  }
  g_string_append_c(w->line, ']');
}

static void put_session(KvTraceWriter *w, const KvTraceRequest *request) {
  put_field(w->line, "session_id");
  put_i64(w->line, request->session);
  put_field(w->line, "turn");
  put_u64(w->line, request->turn);
  if (request->turn > 0 && (request->think_seconds > 0 || w->timing == KV_TRACE_SESSIONS)) {
    put_field(w->line, "think_ms");
    put_ms(w->line, request->think_seconds);
  }
  if (request->session_start_seconds > 0) {
    put_field(w->line, "session_start_ms");
    put_ms(w->line, request->session_start_seconds);
  }
}

static void put_calls(GString *line, const KvTraceRequest *request) {
  put_field(line, "api_calls");
  for (guint32 i = 0; i < request->n_calls; i++) {
    const KvTraceCall *call = &request->calls[i];
    g_string_append(line, i ? ", {\"position\": " : "[{\"position\": ");
    put_u64(line, call->position);
    g_string_append(line, ", \"duration_ms\": ");
    put_ms(line, call->duration_seconds);
    g_string_append(line, ", \"returned_tokens\": ");
    put_u64(line, call->returned_tokens);
    g_string_append_c(line, '}');
  }
  g_string_append_c(line, ']');
}

void kv_trace_writer_write(KvTraceWriter *w, const KvTraceRequest *request) {
  GString *line = w->line;
  g_string_append_c(line, '{');
  if (w->timing == KV_TRACE_TIMED ||
      (w->timing == KV_TRACE_SESSIONS && request->arrival_seconds > 0)) {
    put_field(line, "timestamp");
    put_ms(line, request->arrival_seconds);
  }
  put_field(line, "input_length");
  put_u64(line, request->input_tokens);
  put_field(line, "output_length");
  put_u64(line, request->output_tokens);
  if (request->id != (gint64)w->n_written) {
    put_field(line, "id");
    put_i64(line, request->id);
  }
  if (request->session >= 0)
    put_session(w, request);
  if (request->priority != 0) {
    put_field(line, "priority");
    put_i64(line, request->priority);
  }
  if (request->deadline_seconds > 0) {
    put_field(line, "deadline_ms");
    put_ms(line, request->deadline_seconds);
  }
  if (request->n_calls > 0)
    put_calls(line, request);
  if (request->n_hashes > 0)
    put_blocks(w, request);
  if (request->n_tokens > 0) {
    put_field(line, "token_ids");
    for (guint32 i = 0; i < request->n_tokens; i++) {
      g_string_append(line, i ? ", " : "[");
      put_u64(line, request->tokens[i]);
    }
    g_string_append_c(line, ']');
  }
  g_string_append(line, "}\n");
  flush_line(w, Z_NO_FLUSH);
  w->n_written++;
}

guint64 kv_trace_writer_count(const KvTraceWriter *w) {
  return w->n_written;
}

static void writer_free(KvTraceWriter *w) {
  if (w->gzip)
    deflateEnd(&w->deflater);
  kv_table_clear(&w->numbers);
  g_string_free(w->line, TRUE);
  g_free(w);
}

gboolean kv_trace_writer_commit(KvTraceWriter *w, GError **error) {
  if (w->gzip)
    flush_line(w, Z_FINISH);
  KvOutput *output = w->output;
  writer_free(w);
  return kv_output_commit(output, error);
}

void kv_trace_writer_discard(KvTraceWriter *w) {
  if (!w)
    return;
  kv_output_discard(w->output);
  writer_free(w);
}
