/* The project's own format, which is that of the public Mooncake traces: a JSON object a line (or
 * an array of them), in any order of the fields. Source of the four first fields:
 * github.com/kvcache-ai/Mooncake.
 *
 *     timestamp      ms from the start; absent from lists of lengths
 *     input_length   tokens of the prompt          output_length   tokens of the answer
 *     hash_ids       names of the prompt's prefix blocks, one for each block_tokens tokens begun
 *     id, session_id, turn, parent_id, think_ms, priority, deadline_ms, token_ids, api_calls
 * optional
 *
 * api_calls are objects {"position": 40, "duration_ms": 900, "returned_tokens": 64}: after so many
 * tokens of the answer a call that takes so long and gives back so much; positions ascend.
 *
 * A first line {"kvsim_trace":1,"block_tokens":512,"timing":"timed|sessions|untimed"} may say how
 * the rest is meant; without it blocks have 512 tokens and the first request decides the timing. In
 * a trace of sessions, session_start_ms says when a session starts, and every turn after its first
 * has think_ms. */
#include <string.h>

#include "traces/formats.h"
#include "traces/scan.h"

enum { DEFAULT_BLOCK_TOKENS = 512 };

typedef struct {
  KvTraceStream *stream;
  gboolean array, array_begun;
  guint32 block_tokens;
  gboolean blocks_known; /* the header or a request speaks of blocks */
  gboolean timing_known;
  KvTraceTiming timing;
  double last_ms;
  gboolean pending; /* create() has read the first request into `first` */
  KvTraceRequest first;
  GArray *hashes, *tokens, *calls;
} Native;

/* Which optional fields a record has. */
typedef enum {
  HAS_TIMESTAMP = 1 << 0,
  HAS_INPUT = 1 << 1,
  HAS_OUTPUT = 1 << 2,
  HAS_HASHES = 1 << 3,
  HAS_TOKENS = 1 << 4,
  HAS_THINK = 1 << 5,
  HAS_HEADER = 1 << 6,
  HAS_CALLS = 1 << 7,
} Has;

typedef struct {
  Native *native;
  KvScan scan;
  KvTraceRequest *request;
  guint has;
} Record;

#define LATEST_MS 1e15 /* about 30,000 years: far above any date in ms */

static void read_timestamp(Record *r, const char *field) {
  r->request->arrival_seconds = kv_scan_number(&r->scan, field, 0, LATEST_MS);
}
static void read_input(Record *r, const char *field) {
  r->request->input_tokens = kv_scan_tokens(&r->scan, field);
}
static void read_output(Record *r, const char *field) {
  r->request->output_tokens = kv_scan_tokens(&r->scan, field);
}
static void read_hashes(Record *r, const char *field) {
  g_array_set_size(r->native->hashes, 0);
  kv_scan_array_u64(&r->scan, field, r->native->hashes);
}
static void read_tokens(Record *r, const char *field) {
  g_array_set_size(r->native->tokens, 0);
  kv_scan_array_u32(&r->scan, field, r->native->tokens);
}
/* One call; its members in any order, each once. */
static void read_call(Record *r, KvTraceCall *call) {
  static const char *const names[] = {"position", "duration_ms", "returned_tokens"};
  const char *key;
  gsize length;
  guint count = 0, seen = 0;
  if (!kv_scan_open(&r->scan, '{', "api_calls"))
    return;
  while (kv_scan_member(&r->scan, &count, &key, &length)) {
    guint i = 0;
    while (i < G_N_ELEMENTS(names) && !kv_scan_is(key, length, names[i]))
      i++;
    if (i == G_N_ELEMENTS(names) || seen & 1U << i) {
      kv_scan_fail(&r->scan, "api_calls",
                   "'%.*s' found, expected position, duration_ms and returned_tokens, each once",
                   (int)MIN(length, 40), key);
      return;
    }
    seen |= 1U << i;
    if (i == 0)
      call->position = (guint32)kv_scan_whole(&r->scan, "api_calls: position", 1, G_MAXINT32);
    else if (i == 1)
      call->duration_seconds =
          kv_scan_number(&r->scan, "api_calls: duration_ms", 0, LATEST_MS) / 1e3;
    else
      call->returned_tokens =
          (guint32)kv_scan_whole(&r->scan, "api_calls: returned_tokens", 0, G_MAXINT32);
  }
  if (!r->scan.failed && seen != 7)
    kv_scan_fail(&r->scan, "api_calls", "%s is missing", names[seen & 1 ? (seen & 2 ? 2 : 1) : 0]);
}
static void read_calls(Record *r, const char *field) {
  guint count = 0;
  g_array_set_size(r->native->calls, 0);
  if (!kv_scan_open(&r->scan, '[', field))
    return;
  while (kv_scan_element(&r->scan, &count, field)) {
    KvTraceCall call = {0};
    read_call(r, &call);
    if (r->scan.failed)
      return;
    g_array_append_val(r->native->calls, call);
  }
}
static void read_id(Record *r, const char *field) {
  r->request->id = kv_scan_name(&r->scan, field);
}
static void read_session(Record *r, const char *field) {
  r->request->session = kv_scan_name(&r->scan, field);
}
static void read_turn(Record *r, const char *field) {
  r->request->turn = (guint32)kv_scan_whole(&r->scan, field, 0, G_MAXINT32);
}
static void read_session_start(Record *r, const char *field) {
  r->request->session_start_seconds = kv_scan_number(&r->scan, field, 0, LATEST_MS) / 1e3;
}
static void read_think(Record *r, const char *field) {
  r->request->think_seconds = kv_scan_number(&r->scan, field, 0, LATEST_MS) / 1e3;
}
static void read_priority(Record *r, const char *field) {
  r->request->priority = (gint32)kv_scan_whole(&r->scan, field, G_MININT32, G_MAXINT32);
}
static void read_deadline(Record *r, const char *field) {
  r->request->deadline_seconds = kv_scan_number(&r->scan, field, 0, LATEST_MS) / 1e3;
}
static void read_and_ignore(Record *r, const char *field) {
  kv_scan_skip(&r->scan, field);
}
static void read_version(Record *r, const char *field) {
  kv_scan_whole(&r->scan, field, 1, 1);
}
static void read_block_tokens(Record *r, const char *field) {
  r->native->block_tokens = (guint32)kv_scan_whole(&r->scan, field, 1, 1 << 20);
  r->native->blocks_known = TRUE;
}

static void read_timing(Record *r, const char *field) {
  static const char *const names[] = {"timed", "sessions", "untimed"};
  gsize length;
  const char *name = kv_scan_string(&r->scan, field, &length);
  for (guint i = 0; i < G_N_ELEMENTS(names); i++)
    if (kv_scan_is(name, length, names[i])) {
      r->native->timing = (KvTraceTiming)i; /* in the order of the enumeration */
      r->native->timing_known = TRUE;
      return;
    }
  kv_scan_fail(&r->scan, field, "'%.*s' found, expected timed, sessions or untimed",
               (int)MIN(length, 40), name);
}

typedef struct {
  const char *name;
  void (*read)(Record *record, const char *field);
  guint has;
} Field;

static const Field request_fields[] = {
    {"timestamp", read_timestamp, HAS_TIMESTAMP},
    {"input_length", read_input, HAS_INPUT},
    {"output_length", read_output, HAS_OUTPUT},
    {"hash_ids", read_hashes, HAS_HASHES},
    {"token_ids", read_tokens, HAS_TOKENS},
    {"think_ms", read_think, HAS_THINK},
    {"api_calls", read_calls, HAS_CALLS},
    {"id", read_id, 0},
    {"session_id", read_session, 0},
    {"turn", read_turn, 0},
    {"session_start_ms", read_session_start, 0},
    {"priority", read_priority, 0},
    {"deadline_ms", read_deadline, 0},
    /* Known, and of no effect on a request as a reader gives it. */
    {"parent_id", read_and_ignore, 0},
    {"tenant", read_and_ignore, 0},
    {"images", read_and_ignore, 0},
    {"draft", read_and_ignore, 0},
    {"type", read_and_ignore, 0},
};

static const Field header_fields[] = {
    {"kvsim_trace", read_version, HAS_HEADER},
    {"block_tokens", read_block_tokens, 0},
    {"timing", read_timing, 0},
    {"comment", read_and_ignore, 0},
    {"source", read_and_ignore, 0},
};

static const Field *find_field(const Field *fields, guint n, const char *key, gsize length) {
  for (guint i = 0; i < n; i++) /* names mostly differ in their first letter: ask for that first */
    if (fields[i].name[0] == key[0] && kv_scan_is(key, length, fields[i].name))
      return &fields[i];
  return NULL;
}

/* Read the members of one object through `fields`. */
static void read_members(Record *r, const Field *fields, guint n_fields) {
  const char *key;
  gsize length;
  guint64 seen = 0;
  guint count = 0;
  if (!kv_scan_open(&r->scan, '{', NULL))
    return;
  while (kv_scan_member(&r->scan, &count, &key, &length)) {
    const Field *field = find_field(fields, n_fields, key, length);
    if (!field) {
      g_autofree char *name = g_strndup(key, MIN(length, 60));
      kv_trace_stream_note(r->native->stream, "unknown",
                           "the field '%s' is not known and is ignored (so are other unknown ones)",
                           name);
      kv_scan_skip(&r->scan, name);
      continue;
    }
    guint64 bit = G_GUINT64_CONSTANT(1) << (field - fields);
    if (seen & bit)
      kv_scan_fail(&r->scan, field->name, "stands twice, expected once");
    seen |= bit;
    r->has |= field->has;
    field->read(r, field->name);
  }
  kv_scan_finish(&r->scan);
}

static void require(Record *r, guint has, const char *field) {
  if (!(r->has & has))
    kv_scan_fail(&r->scan, field, "is missing");
}

static void check_time(Record *r) {
  Native *n = r->native;
  double ms = r->request->arrival_seconds;
  r->request->arrival_seconds = ms / 1e3;
  if (n->timing == KV_TRACE_TIMED) {
    require(r, HAS_TIMESTAMP, "timestamp");
    if (!r->scan.failed && ms < n->last_ms)
      kv_scan_fail(&r->scan, "timestamp",
                   "%.10g after %.10g goes back, expected times that do not decrease", ms,
                   n->last_ms);
    n->last_ms = ms;
  } else if (n->timing == KV_TRACE_SESSIONS) {
    if (!r->scan.failed && r->request->session < 0)
      kv_scan_fail(&r->scan, "session_id", "is missing");
    if (r->request->turn > 0)
      require(r, HAS_THINK, "think_ms");
  }
}

static void check_calls(Record *r) {
  const GArray *calls = r->native->calls;
  guint32 after = 0;
  for (guint i = 0; i < calls->len; i++) {
    const KvTraceCall *call = &g_array_index(calls, KvTraceCall, i);
    if (call->position <= after || call->position >= r->request->output_tokens) {
      kv_scan_fail(&r->scan, "api_calls",
                   "position %u found, expected one from %u to %u: they ascend, and the answer "
                   "(output_length %u) goes on after the last",
                   call->position, after + 1, r->request->output_tokens - 1,
                   r->request->output_tokens);
      return;
    }
    after = call->position;
  }
  r->request->n_calls = calls->len;
  r->request->calls = (const KvTraceCall *)(const void *)calls->data;
}

/* Fields that must agree with one another. */
static void check(Record *r) {
  Native *n = r->native;
  KvTraceRequest *q = r->request;
  require(r, HAS_INPUT, "input_length");
  require(r, HAS_OUTPUT, "output_length");
  if (!n->timing_known && !r->scan.failed) {
    n->timing = r->has & HAS_TIMESTAMP ? KV_TRACE_TIMED
                : q->session >= 0      ? KV_TRACE_SESSIONS
                                       : KV_TRACE_UNTIMED;
    n->timing_known = TRUE;
  }
  check_time(r);
  if (r->scan.failed)
    return;
  guint64 blocks = ((guint64)q->input_tokens + n->block_tokens - 1) / n->block_tokens;
  if (r->has & HAS_HASHES && n->hashes->len > 0) {
    if (n->hashes->len != blocks)
      kv_scan_fail(&r->scan, "hash_ids",
                   "%u blocks found, expected %" G_GUINT64_FORMAT " (%u tokens in blocks of %u)",
                   n->hashes->len, blocks, q->input_tokens, n->block_tokens);
    q->n_hashes = n->hashes->len;
    q->hashes = (const guint64 *)n->hashes->data;
    n->blocks_known = TRUE;
  }
  if (r->has & HAS_TOKENS && n->tokens->len > 0) {
    if (n->tokens->len != q->input_tokens)
      kv_scan_fail(&r->scan, "token_ids", "%u ids found, expected %u (input_length)",
                   n->tokens->len, q->input_tokens);
    q->n_tokens = n->tokens->len;
    q->tokens = (const guint32 *)n->tokens->data;
  }
  if (r->has & HAS_CALLS)
    check_calls(r);
}

/* Take the text of the next object: a line, or an element of the array. */
static gboolean next_text(Native *n, char **text, gsize *length, GError **error) {
  if (!n->array)
    return kv_trace_stream_filled_line(n->stream, text, length, error);
  GError *problem = NULL;
  char separator = n->array_begun ? ',' : '[';
  if (kv_trace_stream_take(n->stream, separator, &problem)) {
    if (!n->array_begun && kv_trace_stream_take(n->stream, ']', &problem))
      return FALSE;
    n->array_begun = TRUE;
    if (kv_trace_stream_object(n->stream, text, length, &problem))
      return TRUE;
    if (!problem)
      kv_trace_stream_fail(n->stream, &problem, NULL, "the array is cut off, expected an object");
  } else if (!problem && !kv_trace_stream_take(n->stream, ']', &problem) && !problem) {
    kv_trace_stream_fail(n->stream, &problem, NULL, "expected ',' or ']' after an object");
  } else if (!problem && !kv_trace_stream_at_end(n->stream, &problem) && !problem) {
    kv_trace_stream_fail(n->stream, &problem, NULL, "text after the array, expected its end");
  }
  if (problem)
    g_propagate_error(error, problem);
  return FALSE;
}

static gboolean begins_header(const char *text, gsize length) {
  gsize i = 1;
  while (i < length && g_ascii_isspace(text[i]))
    i++;
  return length - MIN(i, length) > 13 && memcmp(text + i, "\"kvsim_trace\"", 13) == 0;
}

static gboolean read_request(Native *n, char *text, gsize length, KvTraceRequest *request,
                             GError **error) {
  Record r = {.native = n, .request = request};
  kv_scan_begin(&r.scan, n->stream, text, length, error);
  read_members(&r, request_fields, G_N_ELEMENTS(request_fields));
  check(&r);
  request->line = kv_trace_stream_line_number(n->stream);
  return !r.scan.failed;
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  Native *n = state;
  char *text;
  gsize length;
  if (n->pending) {
    *request = n->first;
    n->pending = FALSE;
    return TRUE;
  }
  return next_text(n, &text, &length, error) && read_request(n, text, length, request, error);
}

static void destroy(gpointer state) {
  Native *n = state;
  g_array_unref(n->hashes);
  g_array_unref(n->tokens);
  g_array_unref(n->calls);
  g_free(n);
}

/* Read the header, if there is one, and the first request, whose fields say what kind of trace this
 * is. */
static gboolean begin(Native *n, GError **error) {
  char *text;
  gsize length;
  GError *problem = NULL;
  n->pending = next_text(n, &text, &length, &problem);
  if (n->pending && begins_header(text, length)) {
    Record r = {.native = n};
    kv_scan_begin(&r.scan, n->stream, text, length, error);
    read_members(&r, header_fields, G_N_ELEMENTS(header_fields));
    if (r.scan.failed)
      return FALSE;
    n->pending = next_text(n, &text, &length, &problem);
  }
  if (problem) {
    g_propagate_error(error, problem);
    return FALSE;
  }
  n->first = (KvTraceRequest){.session = -1};
  return !n->pending || read_request(n, text, length, &n->first, error);
}

static gpointer create(KvTraceStream *stream, GError **error) {
  Native *n = g_new0(Native, 1);
  n->stream = stream;
  n->block_tokens = DEFAULT_BLOCK_TOKENS;
  n->hashes = g_array_new(FALSE, FALSE, sizeof(guint64));
  n->tokens = g_array_new(FALSE, FALSE, sizeof(guint32));
  n->calls = g_array_new(FALSE, FALSE, sizeof(KvTraceCall));
  gsize length, blank = 0;
  const char *head = kv_trace_stream_head(stream, &length, error);
  while (head && blank < length && g_ascii_isspace(head[blank]))
    blank++;
  n->array = head && blank < length && head[blank] == '[';
  if (!head || !begin(n, error)) {
    destroy(n);
    return NULL;
  }
  return n;
}

static gboolean recognise(const char *head, gsize length) {
  gsize at = 0;
  while (at < length && g_ascii_isspace(head[at]))
    at++;
  if (at < length && head[at] == '[')
    at++;
  while (at < length && g_ascii_isspace(head[at]))
    at++;
  if (at == length || head[at] != '{')
    return FALSE;
  const char *end = memchr(head + at, '}', length - at);
  gsize first = end ? (gsize)(end - head) - at : length - at;
  return g_strstr_len(head + at, (gssize)first, "\"chat_id\"") == NULL &&
         (g_strstr_len(head + at, (gssize)first, "\"input_length\"") != NULL ||
          g_strstr_len(head + at, (gssize)first, "\"output_length\"") != NULL ||
          g_strstr_len(head + at, (gssize)first, "\"kvsim_trace\"") != NULL);
}

static KvTraceTiming timing(gpointer state) {
  const Native *n = state;
  return n->timing_known ? n->timing : KV_TRACE_TIMED;
}

static guint32 block_tokens(gpointer state) {
  const Native *n = state;
  return n->blocks_known ? n->block_tokens : 0;
}

const KvTraceFormat kv_trace_native = {
    .id = "native",
    .description =
        "JSON Lines (or a JSON array) of requests: kvsim's own and the public Mooncake traces",
    .example =
        "{\"timestamp\": 27482, \"input_length\": 1024, \"output_length\": 52, \"hash_ids\": [46, 47]}",
    .recognise = recognise,
    .create = create,
    .next = next,
    .destroy = destroy,
    .timing = timing,
    .block_tokens = block_tokens,
};
