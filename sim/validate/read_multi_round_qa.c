/* Requests of the multi-round question-answering benchmark of LMCache and vLLM's production stack:
 * a CSV with a request a row, of several deployments and rates.
 *
 * Every user has a long history of his own behind a system prompt that all share, asks a question,
 * and later the next one, whose prompt is the whole conversation so far. Users are numbered, and
 * a rate's run asks the same users as the one before it: its prompts are where that left them, in
 * HBM or below. So a run here is one rate of one deployment, and its workload begins with the
 * warm-up and all the rates before, which are simulated and not compared.
 *
 * The rows give launch times, lengths and users. What they do not give is assumed, for all alike:
 *   - The system prompt is the first 1,000 tokens (the benchmark's setting for these lengths;
 *     recalled). Block names follow from user and question.
 *   - Before the first rate, 400 users asked once, two a second (recalled; which of the first users
 *     are found in HBM and which in DRAM agrees: about the last 160, and the last 350).
 *   - The engine is vLLM of March 2025: V0, no chunked prefill, max_model_len 32,000. A request's
 *     answer stands still for whole prompts of others (1.4 s, 3.4 s, 5.4 s ...), as it would then.
 */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/validate/kinds.h"
#include "sim/validate/rows.h"

enum { SYSTEM_TOKENS = 1000, WARM_USERS = 400, BLOCK_TOKENS = 64 };
static const double WARM_GAP_SECONDS = 0.5, PAUSE_SECONDS = 12.0;

typedef struct {
  const char *name; /* the last word of the column "config" */
  const char *description;
  const char *model, *device;
  guint replicas;
  const char *router;
  double dram_GB; /* of LMCache, a replica; 0: none */
} Deployment;

/* March 2025, eight A100 (the authors' description) of 80 GB (what HBM keeps). Without a routing
 * policy AIBrix's gateway leaves the choice to the service, as the plain deployment does: both runs
 * show the same triples of requests in one queue that a reused connection makes. LMCache counts its
 * 120 GB in GiB. */
static const Deployment deployments[] = {
    {"naive", "connections", "llama-3.1-8b", "a100-80gb", 8, "connection", 0},
    {"aibrix_naive_7", "connections behind AIBrix", "llama-3.1-8b", "a100-80gb", 8, "connection",
     0},
    {"ps_naive", "affinity", "llama-3.1-8b", "a100-80gb", 8, "session", 0},
    {"ps_stack_low_high", "LMCache, rising", "llama-3.1-8b", "a100-80gb", 8, "session", 128.8},
    {"ps_stack_high_low", "LMCache, falling", "llama-3.1-8b", "a100-80gb", 8, "session", 128.8},
};

static const Deployment *deployment_of(const char *config) {
  const char *slash = strrchr(config, '/');
  for (guint i = 0; i < G_N_ELEMENTS(deployments); i++)
    if (strcmp(deployments[i].name, slash ? slash + 1 : config) == 0)
      return &deployments[i];
  return NULL;
}

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "config", "qps", "prompt_tokens", "generation_tokens",
                          "ttft", "generation_time", "user_id", "launch_time", "finish_time", NULL);
}

typedef struct {
  const char *config; /* interned */
  double rate, launch, finish, ttft, generation;
  guint32 input_tokens, output_tokens;
  gint64 user;
  guint64 line;
} Row;

static int by_launch(const void *a, const void *b) {
  const Row *x = a, *y = b;
  return x->launch != y->launch ? (x->launch > y->launch) - (x->launch < y->launch)
                                : (x->line > y->line) - (x->line < y->line);
}

static gboolean read_row(const KvCsv *csv, Row *row, GError **error) {
  static const double LATEST = 1e11; /* seconds since 1970 */
  row->config = g_intern_string(kv_row_text(csv, "config"));
  row->line = kv_trace_stream_line_number(csv->stream);
  return kv_csv_number(csv, kv_csv_column(csv, "qps"), 1e-6, 1e6, &row->rate, error) &&
         kv_csv_number(csv, kv_csv_column(csv, "launch_time"), 0, LATEST, &row->launch, error) &&
         kv_csv_number(csv, kv_csv_column(csv, "finish_time"), row->launch, LATEST, &row->finish,
                       error) &&
         kv_csv_number(csv, kv_csv_column(csv, "ttft"), 0, 1e6, &row->ttft, error) &&
         kv_csv_number(csv, kv_csv_column(csv, "generation_time"), 0, 1e6, &row->generation,
                       error) &&
         kv_csv_tokens(csv, kv_csv_column(csv, "prompt_tokens"), &row->input_tokens, error) &&
         kv_csv_tokens(csv, kv_csv_column(csv, "generation_tokens"), &row->output_tokens, error) &&
         kv_csv_whole(csv, kv_csv_column(csv, "user_id"), 0, 1000000000, &row->user, error);
}

static GArray *read_rows(const char *path, GError **error) {
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return NULL;
  GArray *rows = g_array_new(FALSE, TRUE, sizeof(Row));
  g_autoptr(GError) problem = NULL;
  while (kv_csv_row(&csv, &problem)) {
    Row row = {0};
    if (!read_row(&csv, &row, &problem))
      break;
    g_array_append_val(rows, row);
  }
  kv_csv_clear(&csv);
  if (!problem)
    return rows;
  g_array_unref(rows);
  g_propagate_error(error, g_steal_pointer(&problem));
  return NULL;
}

/* A request as a line of the workload. Blocks of the system prompt are everybody's, the others of
 * the user's conversation, which only grows. */
static void add_request(GString *text, double seconds, const Row *row) {
  char stamp[G_ASCII_DTOSTR_BUF_SIZE];
  g_ascii_formatd(stamp, sizeof stamp, "%.3f", 1e3 * seconds);
  g_string_append_printf(text, "{\"timestamp\":%s,\"input_length\":%u,\"output_length\":%u,", stamp,
                         row->input_tokens, row->output_tokens);
  g_string_append_printf(text, "\"session_id\":%" G_GINT64_FORMAT ",\"hash_ids\":[", row->user);
  gint64 n = (row->input_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  for (gint64 b = 0; b < n; b++) {
    gint64 owner = (b + 1) * BLOCK_TOKENS <= SYSTEM_TOKENS ? 0 : row->user + 1;
    g_string_append_printf(text, "%s%" G_GINT64_FORMAT, b ? "," : "", owner * 1000000 + b);
  }
  g_string_append(text, "]}\n");
}

static void add_warm_up(GString *text, const Row *like) {
  for (guint user = 1; user <= WARM_USERS; user++) {
    Row row = {.input_tokens = like->input_tokens, .output_tokens = like->output_tokens};
    row.user = user;
    add_request(text, WARM_GAP_SECONDS * user, &row);
  }
}

static gboolean set_scenario(KvMeasuredRun *run, const Deployment *d,
                             const KvMeasuredOptions *options, GError **error) {
  if (!kv_measured_name(run, run->source, d->model, d->device, d->replicas, options, error))
    return FALSE;
  KvScenario *s = run->scenario;
  KvEngineConfig *e = &s->engine;
  s->replicas = d->replicas;
  s->arrivals = KV_ARRIVE_TRACE;
  e->router = g_intern_static_string(d->router);
  e->scheduler = g_intern_static_string("vllm-v0");
  e->max_model_len = 32000;
  e->chunked_prefill = FALSE;
  kv_measured_synchronous(s);
  e->watermark = 0.01;
  if (d->dram_GB > 0.0) {
    s->tier = 1;
    s->tier_GB = d->dram_GB;
    e->tier_only = TRUE; /* the stack's engines run without vLLM's own prefix cache: no request is
                            quicker than a load from DRAM, however recent its prompt */
  }
  kv_measured_over_http(s);
  return TRUE;
}

static void add_measured(KvMeasuredRun *run, const Row *row, double *last) {
  KvMeasuredRequest r = {.input_tokens = row->input_tokens,
                         .output_tokens = row->output_tokens,
                         .arrival_seconds = row->launch};
  r.seconds[KV_LATENCY_QUEUE] = r.seconds[KV_LATENCY_ITL] = NAN;
  r.seconds[KV_LATENCY_TTFT] = row->ttft;
  r.seconds[KV_LATENCY_TPOT] =
      row->output_tokens > 1 ? row->generation / (row->output_tokens - 1.0) : NAN;
  r.seconds[KV_LATENCY_E2E] = row->ttft + row->generation;
  g_array_append_val(run->requests, r);
  *last = MAX(*last, row->launch + r.seconds[KV_LATENCY_E2E]);
}

/* The `n` rows of one deployment, by launch: a run for each rate in turn. */
static gboolean add_runs(const char *path, Row *rows, guint n, const Deployment *deployment,
                         const KvMeasuredOptions *options, GPtrArray *runs, GError **error) {
  g_autoptr(GString) text = g_string_new("{\"kvsim_trace\":1,\"timing\":\"timed\",");
  g_string_append_printf(text, "\"block_tokens\":%d}\n", BLOCK_TOKENS);
  add_warm_up(text, &rows[0]);
  double zero = rows[0].launch - WARM_GAP_SECONDS * WARM_USERS - PAUSE_SECONDS;
  for (guint from = 0, to = 0; from < n; from = to) {
    KvMeasuredRun *run = kv_measured_run_new(kv_measured_multi_round_qa.id);
    run->source = g_strdup_printf("%s:%" G_GUINT64_FORMAT, path, rows[from].line);
    run->requests = g_array_new(FALSE, FALSE, sizeof(KvMeasuredRequest));
    run->warm_requests = WARM_USERS + from;
    while (to < n && rows[to].rate == rows[from].rate)
      to++;
    double last = 0.0;
    for (guint i = from; i < to; i++) {
      add_request(text, rows[i].launch - zero, &rows[i]);
      add_measured(run, &rows[i], &last);
    }
    run->rate[KV_RATE_MAKESPAN] = last - rows[from].launch;
    run->workload = g_strdup(text->str);
    if (!set_scenario(run, deployment, options, error)) {
      kv_measured_run_free(run);
      return FALSE;
    }
    run->group = g_strdup_printf("%s, %s, multi-round, %s", run->scenario->model,
                                 run->scenario->platform, deployment->description);
    run->name = g_strdup_printf("%s on %s, multi-round, %s, %g requests/s", run->scenario->model,
                                run->scenario->platform, deployment->description, rows[from].rate);
    g_ptr_array_add(runs, run);
  }
  return TRUE;
}

static gboolean read_runs(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error) {
  g_autoptr(GArray) rows = read_rows(path, error);
  if (!rows)
    return FALSE;
  g_autoptr(GHashTable) done = g_hash_table_new(g_direct_hash, g_direct_equal);
  guint before = runs->len;
  for (guint i = 0; i < rows->len; i++) {
    const Row *first = &g_array_index(rows, Row, i);
    if (!g_hash_table_add(done, (gpointer)first->config))
      continue;
    const Deployment *deployment = deployment_of(first->config);
    if (!deployment) {
      g_printerr("kvsim: not simulated: %s:%" G_GUINT64_FORMAT ": nothing is known of '%s'\n", path,
                 first->line, first->config);
      continue;
    }
    g_autoptr(GArray) own = g_array_new(FALSE, FALSE, sizeof(Row));
    for (guint k = i; k < rows->len; k++)
      if (g_array_index(rows, Row, k).config == first->config)
        g_array_append_val(own, g_array_index(rows, Row, k));
    qsort(own->data, own->len, sizeof(Row), by_launch);
    if (!add_runs(path, (Row *)(void *)own->data, own->len, deployment, options, runs, error))
      return FALSE;
  }
  if (runs->len > before)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%s: holds no deployment that is known, expected one such as '%s' in 'config'", path,
              deployments[0].name);
  return FALSE;
}

const KvMeasuredKind kv_measured_multi_round_qa = {
    .id = "multi-round-qa",
    .description = "requests of the multi-round question-answering benchmark (CSV)",
    .recognise = recognise,
    .read = read_runs,
};
