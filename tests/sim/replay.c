#include "replay.h"

#include <glib/gstdio.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

Workload *workload_new(guint32 block_tokens) {
  Workload *workload = g_new0(Workload, 1);
  workload->requests = g_array_new(FALSE, FALSE, sizeof(Request));
  workload->block_tokens = block_tokens;
  return workload;
}

static void workload_forget(Request *request) {
  g_clear_pointer(&request->hashes, g_array_unref);
  g_clear_pointer(&request->calls, g_array_unref);
}

void workload_free(Workload *workload) {
  if (!workload)
    return;
  for (guint i = 0; i < workload->requests->len; i++)
    workload_forget(&g_array_index(workload->requests, Request, i));
  g_array_unref(workload->requests);
  g_free(workload);
}

void workload_add(Workload *workload, double arrival_seconds, guint32 input_tokens,
                  guint32 output_tokens, gint parent, guint32 shared_tokens) {
  Request request = {.arrival_seconds = arrival_seconds,
                     .input_tokens = input_tokens,
                     .output_tokens = output_tokens,
                     .session = -1};
  guint32 block = workload->block_tokens;
  if (block) {
    guint64 blocks = (input_tokens + block - 1) / block, shared = 0;
    request.hashes = g_array_new(FALSE, FALSE, sizeof(guint64));
    if (parent >= 0) {
      const Request *other = &g_array_index(workload->requests, Request, parent);
      shared = MIN(MIN(shared_tokens, input_tokens), other->input_tokens) / block;
      g_array_append_vals(request.hashes, other->hashes->data, (guint)shared);
    }
    for (guint64 i = shared; i < blocks; i++) {
      guint64 name = kv_random_mix((guint64)workload->requests->len << 32 | i);
      g_array_append_val(request.hashes, name);
    }
  }
  g_array_append_val(workload->requests, request);
}

void workload_call(Workload *workload, guint32 position, double seconds, guint32 returned_tokens) {
  Request *last = &g_array_index(workload->requests, Request, workload->requests->len - 1);
  KvTraceCall call = {position, returned_tokens, seconds};
  if (!last->calls)
    last->calls = g_array_new(FALSE, FALSE, sizeof call);
  g_array_append_val(last->calls, call);
}

Workload *workload_random(KvRandom *random, guint n, guint32 most_input, guint32 most_output,
                          double rate_rps, guint32 block_tokens, double sharing) {
  Workload *workload = workload_new(block_tokens);
  double now = 0.0;
  for (guint i = 0; i < n; i++) {
    guint32 input = (guint32)kv_random_integer(random, 1, most_input);
    guint32 output = (guint32)kv_random_integer(random, 1, most_output);
    gint parent = i > 0 && kv_random_unit(random) < sharing
                      ? (gint)kv_random_integer(random, 0, (gint)i - 1)
                      : -1;
    guint32 shared = (guint32)kv_random_integer(random, 0, most_input);
    workload_add(workload, now, input, output, parent, shared);
    if (kv_random_unit(random) > 0.2) /* some come together */
      now += kv_random_exponential(random) / rate_rps;
  }
  return workload;
}

Workload *workload_read(KvTraceReader *reader) {
  Workload *workload = workload_new(kv_trace_reader_block_tokens(reader));
  workload->timing = kv_trace_reader_timing(reader);
  g_autoptr(GError) error = NULL;
  for (KvTraceRequest r; kv_trace_reader_next(reader, &r, &error);) {
    Request request = {.arrival_seconds = r.arrival_seconds,
                       .input_tokens = r.input_tokens,
                       .output_tokens = r.output_tokens,
                       .session = r.session,
                       .turn = r.turn,
                       .think_seconds = r.think_seconds};
    if (workload->block_tokens) {
      request.hashes = g_array_new(FALSE, FALSE, sizeof(guint64));
      g_array_append_vals(request.hashes, r.hashes, r.n_hashes);
    }
    g_array_append_val(workload->requests, request);
    for (guint32 i = 0; i < r.n_calls; i++)
      workload_call(workload, r.calls[i].position, r.calls[i].duration_seconds,
                    r.calls[i].returned_tokens);
  }
  g_assert_no_error(error);
  kv_trace_reader_close(reader);
  return workload;
}

typedef struct {
  const Workload *workload;
  guint next;
} Cursor;

static gboolean cursor_next(gpointer state, KvTraceRequest *request, GError **error) {
  Cursor *cursor = state;
  if (cursor->next == cursor->workload->requests->len)
    return FALSE;
  const Request *r = &g_array_index(cursor->workload->requests, Request, cursor->next);
  *request = (KvTraceRequest){
      .line = cursor->next + 1,
      .arrival_seconds = r->arrival_seconds,
      .input_tokens = r->input_tokens,
      .output_tokens = r->output_tokens,
      .n_hashes = r->hashes ? r->hashes->len : 0,
      .n_calls = r->calls ? r->calls->len : 0,
      .calls = r->calls ? (const KvTraceCall *)(const void *)r->calls->data : NULL,
      .hashes = r->hashes ? (const guint64 *)(const void *)r->hashes->data : NULL,
      .session = r->session,
      .turn = r->turn,
      .think_seconds = r->think_seconds,
      .id = cursor->next,
  };
  cursor->next++;
  return TRUE;
}

static KvTraceTiming cursor_timing(gpointer state) {
  return ((Cursor *)state)->workload->timing;
}

static guint32 cursor_block_tokens(gpointer state) {
  return ((Cursor *)state)->workload->block_tokens;
}

static const KvTraceFormat cursor_format = {.id = "memory",
                                            .next = cursor_next,
                                            .destroy = g_free,
                                            .timing = cursor_timing,
                                            .block_tokens = cursor_block_tokens};

KvTraceReader *workload_reader(const Workload *workload) {
  Cursor *cursor = g_new0(Cursor, 1);
  cursor->workload = workload;
  return kv_trace_reader_new("workload", &cursor_format, cursor);
}

/* What a run tells as it goes. */

static void request_left(const KvSequence *s, gpointer user) {
  Replay *replay = user;
  g_assert_cmpuint(s->index, <, replay->n);
  Outcome *o = &replay->outcomes[s->index];
  g_assert_cmpfloat(o->arrival, <, 0.0); /* it leaves once */
  GArray *tokens = o->tokens;
  *o = (Outcome){
      .rejected = s->scheduled_seconds < 0.0,
      .instance = s->instance,
      .input_tokens = s->input_tokens,
      .output_tokens = s->output_tokens,
      .hit_tokens = s->prompt_hit_tokens,
      .tier_tokens = s->lower_tier_tokens,
      .preemptions = s->preemptions,
      .recomputed_tokens = s->recomputed_tokens,
      .arrival = s->arrival_seconds,
      .scheduled = s->scheduled_seconds,
      .first = s->first_token_seconds,
      .last = s->last_token_seconds,
      .tokens = tokens,
  };
  replay->n_left++;
}

static void request_generated(guint64 index, const guint32 *tokens, guint n, gpointer user) {
  Replay *replay = user;
  GArray *copy = g_array_new(FALSE, FALSE, sizeof(guint32));
  g_array_append_vals(copy, tokens, n);
  replay->outcomes[index].tokens = copy;
}

static void read_operations(Replay *replay) {
  GArray *operations = g_array_new(FALSE, FALSE, sizeof(Operation));
  g_auto(GStrv) lines = g_strsplit(replay->operations_csv, "\n", -1);
  for (guint i = 1; lines[i] && *lines[i]; i++) {
    Operation o;
    int fields = sscanf(lines[i],
                        "%u,%lf,%lf,%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT
                        ",%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT,
                        &o.instance, &o.start, &o.seconds, &o.repeat, &o.chunks, &o.chunk_tokens,
                        &o.decodes, &o.context);
    g_assert_cmpint(fields, ==, 8);
    g_array_append_val(operations, o);
  }
  replay->n_operations = operations->len;
  replay->operations = (Operation *)(void *)g_array_free(operations, FALSE);
}

static char *commit_and_read(KvOutput *output, const char *path) {
  char *text;
  g_autoptr(GError) error = NULL;
  kv_output_commit(output, &error);
  g_assert_no_error(error);
  g_file_get_contents(path, &text, NULL, &error);
  g_assert_no_error(error);
  g_unlink(path);
  return text;
}

static KvScenario *scenario_of(const char *settings) {
  KvScenario *scenario = kv_scenario_new();
  g_auto(GStrv) words = g_strsplit(settings, " ", -1);
  for (guint i = 0; words[i]; i++) {
    g_autoptr(GError) error = NULL;
    if (*words[i])
      kv_scenario_set(scenario, words[i], &error);
    g_assert_no_error(error);
  }
  return scenario;
}

Replay *replay_try(const Workload *workload, const char *settings, GError **error) {
  g_autoptr(KvScenario) scenario = scenario_of(settings);
  g_autoptr(Replay) run = g_new0(Replay, 1);
  g_autofree char *folder = g_dir_make_tmp("kvsim-replay-XXXXXX", NULL);
  g_autofree char *requests = g_build_filename(folder, "requests.csv", NULL);
  g_autofree char *operations = g_build_filename(folder, "operations.csv", NULL);
  KvSimulateOptions options = {.requests = kv_output_open(requests, NULL),
                               .operations = kv_output_open(operations, NULL),
                               .left = request_left,
                               .generated = request_generated,
                               .user = run,
                               .check = TRUE};
  run->n = workload->requests->len;
  run->outcomes = g_new0(Outcome, run->n);
  for (guint i = 0; i < run->n; i++)
    run->outcomes[i].arrival = -1.0;
  g_autoptr(KvTraceReader) reader = workload_reader(workload);
  run->setup = kv_setup_new(scenario, TRUE, error);
  if (run->setup)
    run->summary = kv_simulate(run->setup, reader, &options, error);
  run->requests_csv = commit_and_read(options.requests, requests);
  run->operations_csv = commit_and_read(options.operations, operations);
  g_rmdir(folder);
  if (!run->summary)
    return NULL;
  read_operations(run);
  json_t *json = kv_summary_to_json(run->summary);
  run->summary_json = json_dumps(json, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
  json_decref(json);
  return g_steal_pointer(&run);
}

Replay *replay(const Workload *workload, const char *settings_format, ...) {
  va_list arguments;
  va_start(arguments, settings_format);
  g_autofree char *settings = g_strdup_vprintf(settings_format, arguments);
  va_end(arguments);
  GError *error = NULL;
  Replay *run = replay_try(workload, settings, &error);
  if (error)
    g_error("%s\nwith %s", error->message, settings);
  return run;
}

void replay_free(Replay *replay) {
  if (!replay)
    return;
  for (guint i = 0; i < replay->n; i++)
    g_clear_pointer(&replay->outcomes[i].tokens, g_array_unref);
  g_clear_pointer(&replay->summary, kv_summary_free);
  g_clear_pointer(&replay->setup, kv_setup_free);
  g_free(replay->outcomes);
  g_free(replay->operations);
  g_free(replay->requests_csv);
  g_free(replay->operations_csv);
  free(replay->summary_json);
  g_free(replay);
}

char *replay_shape(const Replay *replay) {
  GString *text = g_string_new(NULL);
  for (guint i = 0; i < replay->n_operations; i++) {
    const Operation *o = &replay->operations[i];
    g_string_append_printf(text, "%s%u:%u:%u", i ? " " : "", (guint)o->chunks,
                           (guint)o->chunk_tokens, (guint)o->decodes);
    if (o->repeat > 1)
      g_string_append_printf(text, "x%u", (guint)o->repeat);
  }
  return g_string_free(text, FALSE);
}
