/* Every trace reader over arbitrary bytes: none may crash, hang, or yield a request that the
 * interface rules out. The bytes go to the format that recognises them, and to each format by name.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "sim/base/error.h"
#include "traces/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

static void require(gboolean holds) {
  if (!holds)
    abort();
}

static void check_request(const KvTraceReader *reader, const KvTraceRequest *q) {
  guint32 block = kv_trace_reader_block_tokens(reader);
  require(q->line >= 1);
  require(isfinite(q->arrival_seconds) && q->arrival_seconds >= 0);
  require(isfinite(q->think_seconds) && q->think_seconds >= 0);
  require(isfinite(q->session_start_seconds) && q->session_start_seconds >= 0);
  require(q->input_tokens >= 1 && q->input_tokens <= G_MAXINT32);
  require(q->output_tokens >= 1 && q->output_tokens <= G_MAXINT32);
  require(q->n_hashes == 0 || (block > 0 && q->n_hashes == (q->input_tokens - 1) / block + 1));
  require(q->n_tokens == 0 || q->n_tokens == q->input_tokens);
  require(q->session >= -1);
  volatile guint64 sum = 0; /* read it all: the pointers must be good */
  for (guint32 i = 0; i < q->n_hashes; i++)
    sum += q->hashes[i];
  for (guint32 i = 0; i < q->n_tokens; i++)
    sum += q->tokens[i];
  (void)sum;
}

static void read_as(const uint8_t *bytes, size_t length, const char *format) {
  GError *error = NULL;
  KvTraceRequest request;
  double last = 0;
  KvTraceReader *reader =
      kv_trace_reader_open_memory("fuzz", (const char *)bytes, length, format, &error);
  require((reader == NULL) == (error != NULL));
  while (reader && kv_trace_reader_next(reader, &request, &error)) {
    check_request(reader, &request);
    if (kv_trace_reader_timing(reader) == KV_TRACE_TIMED) {
      require(request.arrival_seconds >= last);
      last = request.arrival_seconds;
    }
  }
  require(!error || (error->domain == KV_ERROR && error->message[0] != '\0'));
  g_clear_error(&error);
  kv_trace_reader_close(reader);
}

static GLogWriterOutput silence(GLogLevelFlags level, const GLogField *fields, gsize n,
                                gpointer user) {
  return level & G_LOG_LEVEL_MESSAGE ? G_LOG_WRITER_HANDLED
                                     : g_log_writer_default(level, fields, n, user);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
  static gsize silenced;
  if (g_once_init_enter(&silenced)) {
    g_log_set_writer_func(silence, NULL, NULL);
    g_once_init_leave(&silenced, 1);
  }
  read_as(bytes, length, NULL);
  for (guint i = 0; kv_trace_formats[i]; i++)
    read_as(bytes, length, kv_trace_formats[i]->id);
  return 0;
}
