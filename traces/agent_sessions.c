/* Recorded coding-agent sessions, one session a line with all its calls. Source:
 * github.com/callanjfox/kv-cache-tester.
 *
 *     {"id", "block_size": 64, "hash_id_scope": "local", ...,
 *      "requests": [{"t": s, "in", "out", "hash_ids", "think_time": s, "api_time": s, ...},
 *                   {"t": s, "type": "subagent", "requests": [...]}, ...]}
 *
 * A session's calls are its turns. A subagent is a session of its own, given after the one that it
 * belongs to, and it starts (session_start_seconds) at its `t` after that session's start; its own
 * calls' `t` count from there. Block ids belong to the line: the line's number is folded into the
 * names, so a subagent shares blocks with its session and lines share nothing. The ids name whole
 * blocks; the partial last block of a prompt gets a name of its own. Where think_time is missing it
 * is the time between the end of the call before (its t + api_time, if known) and this call. A call
 * that was broken off before its first token counts one token. */
#include <string.h>

#include "sim/base/random.h"
#include "traces/blocks.h"
#include "traces/formats.h"
#include "traces/scan.h"

enum { DEFAULT_BLOCK_TOKENS = 64, DEEPEST_AGENT = 8 };

typedef struct {
  guint agent;                                  /* 0 is the session itself */
  double t_seconds, api_seconds, think_seconds; /* think < 0: not given */
  double start_seconds;                         /* of its agent */
  guint32 input_tokens, output_tokens;
  guint first_hash, n_hashes; /* in the line's hashes */
} Call;

typedef struct {
  KvTraceStream *stream;
  guint32 block_tokens;
  GArray *calls;  /* Call, of the present line, by agent */
  GArray *hashes; /* guint64, of all calls of the line */
  GArray *own;    /* guint64, of one call */
  guint next_call, n_agents;
  gint64 first_session; /* the number of agent 0 */
  guint32 turn;
  guint64 n_lines;
  gboolean local;
} Sessions;

static gboolean recognise(const char *head, gsize length) {
  gssize n = (gssize)length;
  return length > 0 && head[0] == '{' && g_strstr_len(head, n, "\"requests\"") &&
         (g_strstr_len(head, n, "\"hash_id_scope\"") || g_strstr_len(head, n, "\"block_size\""));
}

static gpointer create(KvTraceStream *stream, GError **error) {
  gsize length;
  const char *head = kv_trace_stream_head(stream, &length, error);
  if (!head)
    return NULL;
  Sessions *s = g_new0(Sessions, 1);
  s->stream = stream;
  s->block_tokens = DEFAULT_BLOCK_TOKENS;
  /* The first session's block size must be known before it is read; each session's is checked
   * against it. */
  const char *at = g_strstr_len(head, (gssize)length, "\"block_size\":");
  if (at && head + length - at > 24) {
    guint64 size = g_ascii_strtoull(at + strlen("\"block_size\":"), NULL, 10);
    if (size >= 1 && size <= 1 << 20)
      s->block_tokens = (guint32)size;
  }
  s->calls = g_array_new(FALSE, FALSE, sizeof(Call));
  s->hashes = g_array_new(FALSE, FALSE, sizeof(guint64));
  s->own = g_array_new(FALSE, FALSE, sizeof(guint64));
  return s;
}

static void destroy(gpointer state) {
  Sessions *s = state;
  g_array_unref(s->calls);
  g_array_unref(s->hashes);
  g_array_unref(s->own);
  g_free(s);
}

static void read_calls(Sessions *s, KvScan *scan, guint agent, double start_seconds, guint depth);

/* Name the call's blocks and put it on the line's list. */
static void add_call(Sessions *s, KvScan *scan, Call *call) {
  guint64 line_seed = s->local ? kv_random_mix(s->n_lines + 1) : 0;
  guint64 ordinal = (s->n_lines << 32) + s->calls->len;
  for (guint i = 0; i < s->own->len; i++) {
    guint64 *name = &g_array_index(s->own, guint64, i);
    *name = kv_random_mix(line_seed + *name);
  }
  if (s->own->len > 0 &&
      !kv_blocks_complete(s->own, call->input_tokens, s->block_tokens, ordinal)) {
    kv_scan_fail(scan, "hash_ids", "%u blocks found, expected %u (%u tokens in blocks of %u)",
                 s->own->len, (call->input_tokens - 1) / s->block_tokens + 1, call->input_tokens,
                 s->block_tokens);
    return;
  }
  if (call->output_tokens == 0) {
    kv_trace_stream_note(s->stream, "empty",
                         "out is 0: calls that were broken off before their first token count one");
    call->output_tokens = 1;
  }
  call->first_hash = s->hashes->len;
  call->n_hashes = s->own->len;
  g_array_append_vals(s->hashes, s->own->data, s->own->len);
  g_array_append_val(s->calls, *call);
}

static void read_call(Sessions *s, KvScan *scan, guint agent, double start_seconds, guint depth) {
  Call call = {
      .agent = agent, .start_seconds = start_seconds, .t_seconds = -1, .think_seconds = -1};
  gboolean has_out = FALSE, subagent = FALSE;
  const char *key;
  gsize length;
  guint count = 0;
  g_array_set_size(s->own, 0);
  kv_scan_open(scan, '{', "requests");
  while (kv_scan_member(scan, &count, &key, &length)) {
    if (kv_scan_is(key, length, "t")) {
      call.t_seconds = kv_scan_number(scan, "t", 0, 1e12);
    } else if (kv_scan_is(key, length, "in")) {
      call.input_tokens = kv_scan_tokens(scan, "in");
    } else if (kv_scan_is(key, length, "out")) {
      call.output_tokens = (guint32)kv_scan_whole(scan, "out", 0, G_MAXINT32);
      has_out = TRUE;
    } else if (kv_scan_is(key, length, "hash_ids")) {
      g_array_set_size(s->own, 0);
      kv_scan_array_u64(scan, "hash_ids", s->own);
    } else if (kv_scan_is(key, length, "think_time")) {
      call.think_seconds = kv_scan_number(scan, "think_time", 0, 1e12);
    } else if (kv_scan_is(key, length, "api_time")) {
      call.api_seconds = kv_scan_number(scan, "api_time", 0, 1e12);
    } else if (kv_scan_is(key, length, "requests")) {
      subagent = TRUE;
      if (depth >= DEEPEST_AGENT)
        kv_scan_fail(scan, "requests", "subagents nested deeper than %d, expected less",
                     DEEPEST_AGENT);
      else
        read_calls(s, scan, ++s->n_agents, start_seconds + MAX(call.t_seconds, 0), depth + 1);
    } else {
      kv_scan_skip(scan, NULL);
    }
  }
  if (scan->failed || subagent)
    return;
  if (call.t_seconds < 0 || call.input_tokens == 0 || !has_out)
    kv_scan_fail(scan,
                 call.t_seconds < 0       ? "t"
                 : call.input_tokens == 0 ? "in"
                                          : "out",
                 "is missing");
  else
    add_call(s, scan, &call);
}

static void read_calls(Sessions *s, KvScan *scan, guint agent, double start_seconds, guint depth) {
  guint count = 0;
  if (!kv_scan_open(scan, '[', "requests"))
    return;
  while (kv_scan_element(scan, &count, "requests"))
    read_call(s, scan, agent, start_seconds, depth);
}

static void read_scope(Sessions *s, KvScan *scan) {
  gsize length;
  const char *scope = kv_scan_string(scan, "hash_id_scope", &length);
  s->local = !kv_scan_is(scope, length, "global");
  if (s->local && !kv_scan_is(scope, length, "local"))
    kv_scan_fail(scan, "hash_id_scope", "'%.*s' found, expected local or global",
                 (int)MIN(length, 40), scope);
}

static gboolean read_session(Sessions *s, KvScan *scan) {
  const char *key;
  gsize length;
  guint count = 0;
  gboolean has_requests = FALSE;
  kv_scan_open(scan, '{', NULL);
  while (kv_scan_member(scan, &count, &key, &length)) {
    if (kv_scan_is(key, length, "block_size")) {
      gint64 size = kv_scan_whole(scan, "block_size", 1, 1 << 20);
      if (size != s->block_tokens)
        kv_scan_fail(scan, "block_size", "%" G_GINT64_FORMAT " found, expected %u as before", size,
                     s->block_tokens);
    } else if (kv_scan_is(key, length, "hash_id_scope")) {
      read_scope(s, scan);
    } else if (kv_scan_is(key, length, "requests")) {
      has_requests = TRUE;
      read_calls(s, scan, 0, 0, 0);
    } else {
      kv_scan_skip(scan, NULL);
    }
  }
  kv_scan_finish(scan);
  return !scan->failed && (has_requests || kv_scan_fail(scan, "requests", "is missing"));
}

static int by_agent(gconstpointer a, gconstpointer b) {
  const Call *x = a, *y = b;
  if (x->agent != y->agent)
    return x->agent < y->agent ? -1 : 1;
  return x->first_hash < y->first_hash ? -1 : x->first_hash > y->first_hash;
}

/* Read lines until one has a call. */
static gboolean next_session(Sessions *s, GError **error) {
  char *text;
  gsize length;
  KvScan scan;
  do {
    if (!kv_trace_stream_filled_line(s->stream, &text, &length, error))
      return FALSE;
    if (s->n_lines > 0)
      s->first_session += s->n_agents + 1;
    g_array_set_size(s->calls, 0);
    g_array_set_size(s->hashes, 0);
    s->next_call = s->n_agents = s->turn = 0;
    s->local = TRUE;
    kv_scan_begin(&scan, s->stream, text, length, error);
    if (!read_session(s, &scan))
      return FALSE;
    s->n_lines++;
    if (s->n_agents > 0)
      g_array_sort(s->calls, by_agent); /* stable: GLib merges */
  } while (s->calls->len == 0);
  return TRUE;
}

static double think_seconds(const Call *before, const Call *call) {
  if (call->think_seconds >= 0)
    return call->think_seconds;
  return MAX(0.0, call->t_seconds - before->t_seconds - before->api_seconds);
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  Sessions *s = state;
  if (s->next_call == s->calls->len && !next_session(s, error))
    return FALSE;
  const Call *call = &g_array_index(s->calls, Call, s->next_call);
  const Call *before = s->next_call > 0 ? call - 1 : NULL;
  if (before && before->agent == call->agent) {
    if (call->t_seconds < before->t_seconds)
      return kv_trace_stream_fail(s->stream, error, "t",
                                  "goes back by %g s, expected times that do not decrease",
                                  before->t_seconds - call->t_seconds);
    request->turn = ++s->turn;
    request->think_seconds = think_seconds(before, call);
  } else {
    request->turn = s->turn = 0;
  }
  s->next_call++;
  request->session = s->first_session + call->agent;
  request->session_start_seconds = call->start_seconds;
  request->arrival_seconds = call->t_seconds;
  request->input_tokens = call->input_tokens;
  request->output_tokens = call->output_tokens;
  request->n_hashes = call->n_hashes;
  if (call->n_hashes > 0)
    request->hashes = &g_array_index(s->hashes, guint64, call->first_hash);
  return TRUE;
}

static KvTraceTiming timing(gpointer state) {
  return KV_TRACE_SESSIONS;
}

static guint32 block_tokens(gpointer state) {
  return ((const Sessions *)state)->block_tokens;
}

const KvTraceFormat kv_trace_agent_sessions = {
    .id = "agent-sessions",
    .description = "kv-cache-tester coding-agent sessions, JSON Lines with a session a line",
    .example =
        "{\"id\": \"a\", \"block_size\": 64, \"hash_id_scope\": \"local\", \"requests\": [{\"t\": 0.0, "
        "\"in\": 70, \"out\": 9, \"hash_ids\": [1], \"think_time\": 0.0}]}",
    .recognise = recognise,
    .create = create,
    .next = next,
    .destroy = destroy,
    .timing = timing,
    .block_tokens = block_tokens,
};
