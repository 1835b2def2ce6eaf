/* A step log as a file: see step_log.h. */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <zlib.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/output.h"
#include "sim/validate/step_log.h"

static const char *const fixed_columns[] = {"chunks", "contexts", "measured_us", "predicted_us"};
enum { N_FIXED = G_N_ELEMENTS(fixed_columns), MOST_BYTES = 1 << 28 };
static const char opening[] = "# {\"kvsim_steps\":";

/* "qkv_projection_us" of "qkv projection"; newly allocated. */
static char *part_column(guint component) {
  g_autofree char *name = g_ascii_strdown(kv_component_names[component], -1);
  return g_strdup_printf("%s_us", g_strdelimit(name, " -", '_'));
}

/* --- writing --------------------------------------------------------------------------------- */

static void write_head(const KvStepLog *log, KvOutput *output) {
  json_t *head = json_pack("{s:i, s:s, s:o}", "kvsim_steps", 1, "executor", log->executor,
                           "scenario", kv_scenario_to_json(log->scenario));
  if (log->gpu)
    json_object_set(head, "gpu", log->gpu);
  char *text = json_dumps(head, JSON_COMPACT | JSON_REAL_PRECISION(10));
  kv_output_print(output, "# %s\n", text);
  free(text);
  json_decref(head);
  for (guint i = 0; i < N_FIXED; i++)
    kv_output_print(output, "%s%s", i ? "," : "", fixed_columns[i]);
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    g_autofree char *name = part_column(c);
    kv_output_print(output, ",%s", name);
  }
  kv_output_print(output, "\n");
}

static void write_step(const KvStepLog *log, const KvLoggedStep *step, KvOutput *output) {
  for (guint i = 0; i < step->n_chunks; i++) {
    const KvChunk *chunk = &g_array_index(log->chunks, KvChunk, step->first_chunk + i);
    kv_output_print(output, "%s%u+%u%s", i ? " " : "", chunk->past, chunk->tokens,
                    chunk->last ? "*" : "");
  }
  kv_output_print(output, ",");
  const guint32 *contexts = &g_array_index(log->contexts, guint32, step->first_context);
  for (guint i = 0, n; i < step->n_decode; i += n) {
    for (n = 1; i + n < step->n_decode && contexts[i + n] == contexts[i];)
      n++;
    kv_output_print(output, "%s%u", i ? " " : "", contexts[i]);
    if (n > 1)
      kv_output_print(output, "x%u", n);
  }
  if (step->shared_repeated_tokens > 0.0)
    kv_output_print(output, " &%.0f+%.0f", step->shared_once_tokens, step->shared_repeated_tokens);
  kv_output_print(output, ",%.7g,%.7g", 1e6 * step->measured_seconds,
                  1e6 * step->predicted_seconds);
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (step->measured_parts[c] > 0.0)
      kv_output_print(output, ",%.6g", 1e6 * step->measured_parts[c]);
    else
      kv_output_print(output, ",");
  kv_output_print(output, "\n");
}

gboolean kv_step_log_write(const KvStepLog *log, const char *path, GError **error) {
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return FALSE;
  write_head(log, output);
  for (guint i = 0; i < log->steps->len; i++)
    write_step(log, &g_array_index(log->steps, KvLoggedStep, i), output);
  return kv_output_commit(output, error);
}

/* --- reading --------------------------------------------------------------------------------- */

gboolean kv_step_log_recognise(const char *path) {
  char head[sizeof opening] = "";
  gzFile file = gzopen(path, "rb");
  if (!file)
    return FALSE;
  gboolean ours = gzread(file, head, sizeof opening - 1) == (int)sizeof opening - 1 &&
                  strcmp(head, opening) == 0;
  gzclose(file);
  return ours;
}

static char *read_whole(const char *path, GError **error) {
  gzFile file = gzopen(path, "rb");
  if (!file) {
    kv_error_at(error, path, 0, "cannot be opened: %s", g_strerror(errno));
    return NULL;
  }
  g_autoptr(GString) text = g_string_new(NULL);
  char piece[65536];
  int n;
  while ((n = gzread(file, piece, sizeof piece)) > 0 && text->len < MOST_BYTES)
    g_string_append_len(text, piece, n);
  int code = Z_OK;
  const char *reason = gzerror(file, &code);
  if (n < 0 || text->len >= MOST_BYTES)
    kv_error_at(error, path, 0, "%s", n < 0 ? reason : "is longer than 256 MiB");
  gzclose(file);
  return n < 0 || text->len >= MOST_BYTES ? NULL : g_strdup(text->str);
}

static gboolean read_head(KvStepLog *log, const char *path, const char *line, const char *platform,
                          GError **error) {
  g_autoptr(KvJson) json = kv_json_parse(path, line + 2, strlen(line + 2), error);
  if (!json)
    return FALSE;
  json_t *root = kv_json_root(json);
  log->executor = g_strdup(kv_json_string(json, root, "executor", "", TRUE));
  log->gpu = json_incref(kv_json_object(json, root, "gpu", FALSE));
  json_t *scenario = kv_json_object(json, root, "scenario", TRUE);
  if (!kv_json_finish(json, error))
    return FALSE;
  char *text = json_dumps(scenario, JSON_COMPACT);
  log->scenario = kv_scenario_new();
  gboolean parsed = kv_scenario_parse(log->scenario, path, text, strlen(text), error);
  free(text);
  log->scenario->engine.as_executed = TRUE; /* also of logs that are older than the setting */
  if (parsed && platform) {
    g_free(log->scenario->platform);
    log->scenario->platform = g_strdup(platform);
  }
  return parsed;
}

/* A whole number at *at, which moves behind it; FALSE if there is none, or one of more than 32
 * bits.
 */
static gboolean take_number(const char **at, guint32 *number) {
  char *end;
  errno = 0;
  guint64 value = g_ascii_isdigit(**at) ? g_ascii_strtoull(*at, &end, 10) : G_MAXUINT64;
  if (errno || value > G_MAXUINT32)
    return FALSE;
  *number = (guint32)value;
  *at = end;
  return TRUE;
}

static gboolean read_chunks(KvStepLog *log, const char *at) {
  while (*at) {
    KvChunk chunk = {0};
    if (!take_number(&at, &chunk.past) || *at++ != '+' || !take_number(&at, &chunk.tokens) ||
        chunk.tokens == 0)
      return FALSE;
    chunk.last = *at == '*';
    at += chunk.last;
    g_array_append_val(log->chunks, chunk);
    if (*at == ' ' && at[1])
      at++;
    else if (*at)
      return FALSE;
  }
  return TRUE;
}

/* What follows the "&", to the end. */
static gboolean read_shared(KvLoggedStep *step, const char *at) {
  char *end;
  if (!g_ascii_isdigit(*at))
    return FALSE;
  step->shared_once_tokens = (double)g_ascii_strtoull(at, &end, 10);
  if (*end != '+' || !g_ascii_isdigit(end[1]))
    return FALSE;
  step->shared_repeated_tokens = (double)g_ascii_strtoull(end + 1, &end, 10);
  return !*end;
}

static gboolean read_contexts(KvStepLog *log, KvLoggedStep *step, const char *at) {
  static const guint32 most_sequences = 1 << 20;
  while (*at) {
    guint32 context = 0, n = 1;
    if (*at == '&' && log->contexts->len > step->first_context)
      return read_shared(step, at + 1);
    if (!take_number(&at, &context) || context == 0)
      return FALSE;
    if (*at == 'x' && (!take_number((at++, &at), &n) || n == 0 || n > most_sequences))
      return FALSE;
    for (guint32 i = 0; i < n; i++)
      g_array_append_val(log->contexts, context);
    if (*at == ' ' && at[1])
      at++;
    else if (*at)
      return FALSE;
  }
  return TRUE;
}

static gboolean read_seconds(const char *text, gboolean required, double *seconds) {
  char *end;
  double us = g_ascii_strtod(text, &end);
  if (!*text)
    return !required;
  *seconds = 1e-6 * us;
  return !*end && isfinite(us) && us >= 0.0 && (us > 0.0 || !required);
}

/* Which column is wrong, or NULL. */
static const char *read_step(KvStepLog *log, char **fields) {
  KvLoggedStep step = {.first_chunk = log->chunks->len, .first_context = log->contexts->len};
  if (!read_chunks(log, fields[0]))
    return "chunks is no list of PAST+TOKENS";
  if (!read_contexts(log, &step, fields[1]))
    return "contexts is no list of TOKENS or TOKENSxN";
  step.n_chunks = log->chunks->len - step.first_chunk;
  step.n_decode = log->contexts->len - step.first_context;
  if (step.n_chunks + step.n_decode == 0)
    return "has neither chunks nor contexts";
  if (!read_seconds(fields[2], TRUE, &step.measured_seconds))
    return "measured_us is no time";
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (!read_seconds(fields[N_FIXED + c], FALSE, &step.measured_parts[c]))
      return "a part's time is none";
  g_array_append_val(log->steps, step);
  return NULL;
}

static gboolean is_header(const char *line) {
  g_autoptr(GString) expected = g_string_new("chunks,contexts,measured_us,predicted_us");
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    g_autofree char *name = part_column(c);
    g_string_append_printf(expected, ",%s", name);
  }
  return strcmp(line, expected->str) == 0;
}

KvStepLog *kv_step_log_read(const char *path, const char *platform, GError **error) {
  g_autofree char *text = read_whole(path, error);
  if (!text)
    return NULL;
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
  g_autoptr(KvStepLog) log = kv_step_log_new(NULL);
  if (!lines[0] || !g_str_has_prefix(lines[0], opening)) {
    kv_error_at(error, path, 1, "is no log of steps, expected '%s'", opening);
    return NULL;
  }
  if (!read_head(log, path, lines[0], platform, error))
    return NULL;
  if (!lines[1] || !is_header(lines[1])) {
    kv_error_at(error, path, 2,
                "is not the header of a log of steps, expected "
                "chunks,contexts,measured_us,predicted_us and a column a part");
    return NULL;
  }
  for (guint i = 2; lines[i]; i++) {
    if (!*lines[i])
      continue;
    g_auto(GStrv) fields = g_strsplit(lines[i], ",", -1);
    guint n = g_strv_length(fields);
    const char *wrong = n == N_FIXED + KV_N_COMPONENTS ? read_step(log, fields)
                                                       : "has not as many fields as the header";
    if (wrong) {
      kv_error_at(error, path, i + 1, "%s, expected a step", wrong);
      return NULL;
    }
  }
  if (log->steps->len == 0) {
    kv_error_at(error, path, 0, "holds no step, expected some");
    return NULL;
  }
  return g_steal_pointer(&log);
}
