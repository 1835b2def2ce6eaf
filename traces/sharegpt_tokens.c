/* Requests with their token ids, as LLMServingSim writes them from ShareGPT: an object a line.
 * Source: github.com/casys-kaist/LLMServingSim. A block is 16 tokens; its name is a hash of its ids
 * chained to the name before, so equal ids under an equal prefix have equal names, and so does an
 * equal partial block. */
#include "sim/base/random.h"
#include "traces/formats.h"
#include "traces/scan.h"

enum { BLOCK_TOKENS = 16 };

typedef struct {
  KvTraceStream *stream;
  gboolean untimed, tokens_known;
  KvTraceClock clock;
  GArray *tokens, *hashes;
} ShareGpt;

static gboolean recognise(const char *head, gsize length) {
  return length > 0 && head[0] == '{' && g_strstr_len(head, (gssize)length, "\"input_toks\"");
}

static gpointer create(KvTraceStream *stream, GError **error) {
  gsize length;
  const char *head = kv_trace_stream_head(stream, &length, error);
  if (!head)
    return NULL;
  ShareGpt *s = g_new0(ShareGpt, 1);
  s->stream = stream;
  /* The first record decides; its ids, which stand last, may fill the head. */
  s->untimed = g_strstr_len(head, (gssize)length, "\"arrival_time_ns\"") == NULL;
  s->tokens_known = g_strstr_len(head, (gssize)length, "\"input_tok_ids\"") != NULL;
  s->tokens = g_array_new(FALSE, FALSE, sizeof(guint32));
  s->hashes = g_array_new(FALSE, FALSE, sizeof(guint64));
  return s;
}

static void name_blocks(const GArray *tokens, GArray *hashes) {
  guint64 h = 0;
  g_array_set_size(hashes, 0);
  for (guint i = 0; i < tokens->len; i++) {
    h = kv_random_mix(h ^ ((guint64)g_array_index(tokens, guint32, i) + 1));
    if ((i + 1) % BLOCK_TOKENS == 0) {
      g_array_append_val(hashes, h);
    } else if (i + 1 == tokens->len) {
      guint64 partial = kv_random_mix(~h);
      g_array_append_val(hashes, partial);
    }
  }
}

static gboolean read_record(ShareGpt *s, KvScan *scan, KvTraceRequest *request) {
  const char *key;
  gsize length;
  guint count = 0;
  double arrival_ns = -1;
  g_array_set_size(s->tokens, 0);
  kv_scan_open(scan, '{', NULL);
  while (kv_scan_member(scan, &count, &key, &length)) {
    if (kv_scan_is(key, length, "input_toks"))
      request->input_tokens = kv_scan_tokens(scan, "input_toks");
    else if (kv_scan_is(key, length, "output_toks"))
      request->output_tokens = kv_scan_tokens(scan, "output_toks");
    else if (kv_scan_is(key, length, "arrival_time_ns"))
      arrival_ns = kv_scan_number(scan, "arrival_time_ns", 0, 1e21);
    else if (kv_scan_is(key, length, "input_tok_ids"))
      kv_scan_array_u32(scan, "input_tok_ids", s->tokens);
    else
      kv_scan_skip(scan, NULL);
  }
  kv_scan_finish(scan);
  if (request->input_tokens == 0)
    return kv_scan_fail(scan, "input_toks", "is missing");
  if (request->output_tokens == 0)
    return kv_scan_fail(scan, "output_toks", "is missing");
  if (arrival_ns < 0 && !s->untimed)
    return kv_scan_fail(scan, "arrival_time_ns", "is missing");
  if (s->tokens->len > 0 && s->tokens->len != request->input_tokens)
    return kv_scan_fail(scan, "input_tok_ids", "%u ids found, expected %u (input_toks)",
                        s->tokens->len, request->input_tokens);
  return !scan->failed &&
         (s->untimed ||
          kv_trace_clock_read(&s->clock, s->stream, "arrival_time_ns", arrival_ns / 1e9,
                              &request->arrival_seconds, scan->error));
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  ShareGpt *s = state;
  char *text;
  gsize length;
  KvScan scan;
  if (!kv_trace_stream_filled_line(s->stream, &text, &length, error))
    return FALSE;
  kv_scan_begin(&scan, s->stream, text, length, error);
  if (!read_record(s, &scan, request))
    return FALSE;
  name_blocks(s->tokens, s->hashes);
  request->n_tokens = s->tokens->len;
  request->tokens = s->tokens->len ? (const guint32 *)s->tokens->data : NULL;
  request->n_hashes = s->hashes->len;
  request->hashes = s->hashes->len ? (const guint64 *)s->hashes->data : NULL;
  return TRUE;
}

static void destroy(gpointer state) {
  ShareGpt *s = state;
  g_array_unref(s->tokens);
  g_array_unref(s->hashes);
  g_free(s);
}

static KvTraceTiming timing(gpointer state) {
  return ((const ShareGpt *)state)->untimed ? KV_TRACE_UNTIMED : KV_TRACE_TIMED;
}

static guint32 block_tokens(gpointer state) {
  return ((const ShareGpt *)state)->tokens_known ? BLOCK_TOKENS : 0;
}

const KvTraceFormat kv_trace_sharegpt_tokens = {
    .id = "sharegpt-tokens",
    .description = "JSON Lines with token ids, as LLMServingSim reads them",
    .example =
        "{\"input_toks\": 3, \"output_toks\": 8, \"arrival_time_ns\": 46926808, \"input_tok_ids\": [5, 7, 2]}",
    .recognise = recognise,
    .create = create,
    .next = next,
    .destroy = destroy,
    .timing = timing,
    .block_tokens = block_tokens,
};
