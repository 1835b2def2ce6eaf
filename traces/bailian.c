/* Qwen-Bailian usage traces: a chat call a line, times in seconds, prefix blocks of 16 tokens.
 * Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon. A call names the call that it
 * continues, so sessions are chains of calls; turns count from 1 there and from 0 here. The calls'
 * sessions are the one thing that is kept: 16 bytes or so for each. */
#include "traces/blocks.h"
#include "traces/formats.h"
#include "traces/scan.h"

enum { BLOCK_TOKENS = 16 };

typedef struct {
  KvTraceStream *stream;
  KvTraceClock clock;
  GArray *hashes;
  GHashTable *session_of; /* chat id -> the first chat of its session */
  guint64 n_records;
} Bailian;

typedef struct {
  gint64 chat, parent;
  double timestamp;
} Call;

static gboolean recognise(const char *head, gsize length) {
  return length > 0 && head[0] == '{' && g_strstr_len(head, (gssize)length, "\"chat_id\"") &&
         g_strstr_len(head, (gssize)length, "\"parent_chat_id\"");
}

static gpointer create(KvTraceStream *stream, GError **error) {
  Bailian *b = g_new0(Bailian, 1);
  b->stream = stream;
  b->hashes = g_array_new(FALSE, FALSE, sizeof(guint64));
  b->session_of = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
  return b;
}

static gboolean read_call(Bailian *b, KvScan *scan, Call *call, KvTraceRequest *request) {
  const char *key;
  gsize length;
  guint count = 0;
  *call = (Call){.chat = -1, .parent = -1, .timestamp = -1};
  g_array_set_size(b->hashes, 0);
  kv_scan_open(scan, '{', NULL);
  while (kv_scan_member(scan, &count, &key, &length)) {
    if (kv_scan_is(key, length, "chat_id"))
      call->chat = kv_scan_whole(scan, "chat_id", 0, G_MAXINT64 >> 2);
    else if (kv_scan_is(key, length, "parent_chat_id"))
      call->parent = kv_scan_whole(scan, "parent_chat_id", -1, G_MAXINT64 >> 2);
    else if (kv_scan_is(key, length, "timestamp"))
      call->timestamp = kv_scan_number(scan, "timestamp", 0, 1e12);
    else if (kv_scan_is(key, length, "input_length"))
      request->input_tokens = kv_scan_tokens(scan, "input_length");
    else if (kv_scan_is(key, length, "output_length"))
      request->output_tokens = kv_scan_tokens(scan, "output_length");
    else if (kv_scan_is(key, length, "turn"))
      request->turn = (guint32)kv_scan_whole(scan, "turn", 1, G_MAXINT32);
    else if (kv_scan_is(key, length, "hash_ids"))
      kv_scan_array_u64(scan, "hash_ids", b->hashes);
    else
      kv_scan_skip(scan, NULL);
  }
  kv_scan_finish(scan);
  return !scan->failed;
}

static gint64 session_of(Bailian *b, const Call *call) {
  const gint64 *parent = g_hash_table_lookup(b->session_of, &call->parent);
  gint64 session = parent ? *parent : call->parent >= 0 ? call->parent : call->chat;
  g_hash_table_insert(b->session_of, g_memdup2(&call->chat, sizeof call->chat),
                      g_memdup2(&session, sizeof session));
  return session;
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  Bailian *b = state;
  char *text;
  gsize length;
  KvScan scan;
  Call call;
  if (!kv_trace_stream_filled_line(b->stream, &text, &length, error))
    return FALSE;
  kv_scan_begin(&scan, b->stream, text, length, error);
  if (!read_call(b, &scan, &call, request))
    return FALSE;
  const char *missing = call.chat < 0                 ? "chat_id"
                        : call.timestamp < 0          ? "timestamp"
                        : request->input_tokens == 0  ? "input_length"
                        : request->output_tokens == 0 ? "output_length"
                        : request->turn == 0          ? "turn"
                                                      : NULL;
  if (missing)
    return kv_scan_fail(&scan, missing, "is missing");
  if (b->hashes->len > 0 &&
      !kv_blocks_complete(b->hashes, request->input_tokens, BLOCK_TOKENS, b->n_records))
    return kv_scan_fail(&scan, "hash_ids",
                        "%u blocks found, expected %u (%u tokens in blocks of %d)", b->hashes->len,
                        (request->input_tokens - 1) / BLOCK_TOKENS + 1, request->input_tokens,
                        BLOCK_TOKENS);
  b->n_records++;
  request->id = call.chat;
  request->session = session_of(b, &call);
  request->turn--;
  request->n_hashes = b->hashes->len;
  request->hashes = b->hashes->len ? (const guint64 *)b->hashes->data : NULL;
  return kv_trace_clock_read(&b->clock, b->stream, "timestamp", call.timestamp,
                             &request->arrival_seconds, error);
}

static void destroy(gpointer state) {
  Bailian *b = state;
  g_array_unref(b->hashes);
  g_hash_table_unref(b->session_of);
  g_free(b);
}

static KvTraceTiming timing(gpointer state) {
  return KV_TRACE_TIMED;
}

static guint32 block_tokens(gpointer state) {
  return BLOCK_TOKENS;
}

const KvTraceFormat kv_trace_bailian = {
    .id = "bailian",
    .description = "Qwen-Bailian usage trace, JSON Lines with chats and 16-token prefix blocks",
    .example =
        "{\"chat_id\": 159, \"parent_chat_id\": 55, \"timestamp\": 61.1, \"input_length\": 21, "
        "\"output_length\": 132, \"type\": \"text\", \"turn\": 2, \"hash_ids\": [13, 14]}",
    .recognise = recognise,
    .create = create,
    .next = next,
    .destroy = destroy,
    .timing = timing,
    .block_tokens = block_tokens,
};
