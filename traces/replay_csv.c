/* TraceLab replay tables: a round of an agent's session a row. Source: github.com/uw-syfi/TraceLab.
 *
 * The prompt of a round is prefix_len tokens that the session already had and input_len new ones;
 * its tool runs tool_wait_after_ms, after which the next round comes, so that is the next turn's
 * think time. arrival_time, in ms and optional, is when the session starts. The table says how much
 * is kept, not what: blocks of 16 tokens are named so that exactly the kept prefix is shared within
 * the session, and nothing across sessions. */
#include "traces/blocks.h"
#include "traces/csv.h"
#include "traces/formats.h"

enum { BLOCK_TOKENS = 16 };

typedef struct {
  KvCsv csv;
  int session, arrival, round, prefix, input, output, wait; /* columns */
  KvBlockHistory history;
  gint64 last_session; /* -1: none yet */
  gint64 last_round;
  double wait_seconds;
} Replay;

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "session_id", "round_idx", "prefix_len", "input_len",
                          "output_len", "tool_wait_after_ms", NULL);
}

static void destroy(gpointer state) {
  Replay *r = state;
  kv_csv_clear(&r->csv);
  kv_block_history_clear(&r->history);
  g_free(r);
}

static gpointer create(KvTraceStream *stream, GError **error) {
  Replay *r = g_new0(Replay, 1);
  kv_block_history_begin(&r->history, BLOCK_TOKENS);
  r->last_session = -1;
  if (!kv_csv_begin(&r->csv, stream, error)) {
    destroy(r);
    return NULL;
  }
  const struct {
    const char *name;
    int *column;
    gboolean optional;
  } columns[] = {
      {"session_id", &r->session, FALSE},      {"arrival_time", &r->arrival, TRUE},
      {"round_idx", &r->round, FALSE},         {"prefix_len", &r->prefix, FALSE},
      {"input_len", &r->input, FALSE},         {"output_len", &r->output, FALSE},
      {"tool_wait_after_ms", &r->wait, FALSE},
  };
  for (guint i = 0; i < G_N_ELEMENTS(columns); i++) {
    *columns[i].column = kv_csv_column(&r->csv, columns[i].name);
    if (*columns[i].column < 0 && !columns[i].optional) {
      kv_trace_stream_fail(stream, error, columns[i].name,
                           "no such column, expected it in the header");
      destroy(r);
      return NULL;
    }
  }
  return r;
}

/* The round's place: the next of the same session, or the first of another. */
static gboolean place(Replay *r, gint64 session, gint64 round, KvTraceRequest *request,
                      GError **error) {
  if (session == r->last_session && round != r->last_round + 1) {
    g_autofree char *expected = g_strdup_printf("round %" G_GINT64_FORMAT, r->last_round + 1);
    return kv_csv_fail(&r->csv, r->round, expected, error);
  }
  if (session != r->last_session) {
    if (round != 0)
      return kv_csv_fail(&r->csv, r->round,
                         "round 0 of a new session (rounds of one come together)", error);
    kv_block_history_restart(&r->history, (guint64)session);
  } else {
    request->think_seconds = r->wait_seconds;
  }
  r->last_session = session;
  r->last_round = round;
  request->session = session;
  request->turn = (guint32)round;
  return TRUE;
}

static gboolean next(gpointer state, KvTraceRequest *request, GError **error) {
  Replay *r = state;
  const KvCsv *csv = &r->csv;
  gint64 session, round, prefix, input;
  double wait_ms, arrival_ms = 0;
  if (!kv_csv_row(&r->csv, error) ||
      !kv_csv_whole(csv, r->session, 0, G_MAXINT64 >> 2, &session, error) ||
      !kv_csv_whole(csv, r->round, 0, G_MAXINT32, &round, error) ||
      !kv_csv_whole(csv, r->prefix, 0, G_MAXINT32, &prefix, error) ||
      !kv_csv_whole(csv, r->input, 0, G_MAXINT32, &input, error) ||
      !kv_csv_tokens(csv, r->output, &request->output_tokens, error) ||
      !kv_csv_number(csv, r->wait, 0, 1e15, &wait_ms, error) ||
      (r->arrival >= 0 && !kv_csv_number(csv, r->arrival, 0, 1e15, &arrival_ms, error)))
    return FALSE;
  if (prefix + input < 1 || prefix + input > G_MAXINT32)
    return kv_csv_fail(csv, r->input, "prefix_len + input_len from 1 to 2147483647", error);
  if (!place(r, session, round, request, error))
    return FALSE;
  r->wait_seconds = wait_ms / 1e3;
  request->session_start_seconds = arrival_ms / 1e3;
  request->input_tokens = (guint32)(prefix + input);
  kv_block_history_prompt(&r->history, (guint64)prefix, request->input_tokens);
  request->n_hashes = r->history.names->len;
  request->hashes = (const guint64 *)r->history.names->data;
  return TRUE;
}

static KvTraceTiming timing(gpointer state) {
  return KV_TRACE_SESSIONS;
}

static guint32 block_tokens(gpointer state) {
  return BLOCK_TOKENS;
}

const KvTraceFormat kv_trace_replay_csv = {
    .id = "replay-csv",
    .description = "TraceLab replay CSV: rounds of agent sessions with kept prefix and tool waits",
    .example =
        "session_id,arrival_time,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"
        "0,117,0,0,2318,200,300",
    .recognise = recognise,
    .create = create,
    .next = next,
    .destroy = destroy,
    .timing = timing,
    .block_tokens = block_tokens,
};
