#include "sim/cli/replay.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "reference/cuda/monitor.h"
#include "sim/base/error.h"
#include "sim/cli/cli.h"
#include "sim/engine/outputs.h"
#include "traces/transform.h"
#include "viz/format.h"
#include "viz/viz.h"

/* Progress: nothing for the first second, then a line that is rewritten. And where tokens go. */
typedef struct {
  gint64 began, shown;
  KvOutputs *outputs;
} Progress;

static void note_generated(guint64 index, const guint32 *tokens, guint n, gpointer user) {
  kv_outputs_generated(((Progress *)user)->outputs, index, tokens, n);
}

static void note_left(const KvSequence *sequence, gpointer user) {
  kv_outputs_left(((Progress *)user)->outputs, sequence);
}

static void show_progress(double share, guint64 done, double now_seconds, gpointer user) {
  Progress *progress = user;
  gint64 time = g_get_monotonic_time();
  if (time - progress->began < G_USEC_PER_SEC || time - progress->shown < G_USEC_PER_SEC / 5)
    return;
  progress->shown = time;
  double rate = (double)done / ((double)(time - progress->began) * 1e-6);
  g_autofree char *simulated = kv_format(KV_UNIT_SECONDS, now_seconds);
  g_autofree char *speed = kv_format_whole((guint64)rate);
  if (share >= 0.0)
    fprintf(stderr, "\r\033[K%3.0f %%  %" G_GUINT64_FORMAT " requests  %s simulated  %s requests/s",
            100.0 * MIN(share, 1.0), done, simulated, speed);
  else
    fprintf(stderr, "\r\033[K%" G_GUINT64_FORMAT " requests  %s simulated  %s requests/s", done,
            simulated, speed);
}

static KvOutput *open_in(const KvRunDirectory *directory, const char *prefix, const char *name,
                         GError **error) {
  g_autofree char *file = g_strconcat(prefix, name, NULL);
  g_autofree char *path = kv_run_directory_file(directory, file);
  return kv_output_open(path, error);
}

static gboolean write_json(const KvRunDirectory *directory, const char *name, json_t *json,
                           GError **error) {
  g_autofree char *path = kv_run_directory_file(directory, name);
  char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  g_autofree char *line = g_strconcat(text, "\n", NULL);
  free(text);
  return kv_output_write_file(path, line, -1, error);
}

/* What the GPU was like meanwhile. */
static gboolean write_gpu(const KvRunDirectory *directory, const char *prefix, json_t *gpu,
                          GError **error) {
  g_autofree char *name = g_strconcat(prefix, "gpu.json", NULL);
  return write_json(directory, name, gpu, error);
}

KvSummary *kv_replay(const KvSetup *setup, const char *trace, const char *format,
                     const KvRunDirectory *directory, const char *prefix, gboolean operations,
                     gboolean pace_wall, GError **error) {
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(trace, format, error);
  if (reader && setup->scenario->smear_seconds > 0.0)
    reader = kv_trace_smear(g_steal_pointer(&reader), setup->scenario->smear_seconds,
                            setup->scenario->seed, error);
  if (!reader)
    return NULL;
  g_autoptr(KvOutput) requests = NULL;
  g_autoptr(KvOutput) rows = NULL;
  if (directory && !(requests = open_in(directory, prefix, "requests.csv", error)))
    return NULL;
  if (directory && operations && !(rows = open_in(directory, prefix, "operations.csv", error)))
    return NULL;
  gboolean real = strcmp(setup->scenario->executor, "model") != 0;
  g_autoptr(KvOutput) tokens = NULL;
  if (directory && real && !(tokens = open_in(directory, prefix, "outputs.jsonl", error)))
    return NULL;
  g_autoptr(KvOutputs) outputs = tokens ? kv_outputs_new(tokens) : NULL;
  Progress progress = {.began = g_get_monotonic_time(), .outputs = outputs};
  gboolean terminal = isatty(STDERR_FILENO);
  KvSimulateOptions options = {.requests = requests,
                               .operations = rows,
                               .progress = terminal ? show_progress : NULL,
                               .left = outputs ? note_left : NULL,
                               .generated = outputs ? note_generated : NULL,
                               .pace_wall = pace_wall,
                               .user = &progress,
                               .interrupted = &kv_interrupted};
  gboolean on_gpu = directory && strcmp(setup->scenario->executor, "cuda") == 0;
  KvGpuMonitor *monitor = on_gpu ? kv_gpu_monitor_start() : NULL;
  g_autoptr(KvSummary) summary = kv_simulate(setup, reader, &options, error);
  json_t *gpu = kv_gpu_monitor_stop(monitor);
  if (progress.shown)
    fprintf(stderr, "\r\033[K");
  gboolean noted = !gpu || !summary || write_gpu(directory, prefix, gpu, error);
  json_decref(gpu);
  if (!summary || !noted)
    return NULL;
  if ((requests && !kv_output_commit(g_steal_pointer(&requests), error)) ||
      (tokens && !kv_output_commit(g_steal_pointer(&tokens), error)) ||
      (rows && !kv_output_commit(g_steal_pointer(&rows), error)))
    return NULL;
  return g_steal_pointer(&summary);
}

static gboolean write_timeline(const KvRunDirectory *directory, const char *prefix,
                               const KvSummary *summary, GError **error) {
  g_autoptr(KvOutput) output = open_in(directory, prefix, "timeline.csv", error);
  if (!output)
    return FALSE;
  kv_output_print(output,
                  "start_seconds,seconds,running,waiting,blocks_held,blocks_cached,blocks_free,"
                  "dram_bytes,ssd_bytes,link_bytes,host_bytes,prompt_tokens,output_tokens,"
                  "busy_seconds,ttft_mean_seconds,tpot_mean_seconds,finished,preemptions\n");
  for (guint i = 0; i < summary->timeline->len; i++) {
    const KvInterval *t = &g_array_index(summary->timeline, KvInterval, i);
    kv_output_print(
        output,
        "%.6f,%.6f,%.4f,%.4f,%.2f,%.2f,%.2f,%.0f,%.0f,%.0f,%.0f,%.1f,%.1f,%.6f,%.6f,%.6f,%" G_GUINT64_FORMAT
        ",%" G_GUINT64_FORMAT "\n",
        t->start_seconds, t->seconds, t->running, t->waiting, t->blocks_held, t->blocks_cached,
        t->blocks_free, t->tier_bytes[KV_TIER_DRAM], t->tier_bytes[KV_TIER_SSD], t->link_bytes,
        t->host_bytes, t->prompt_tokens, t->output_tokens, t->busy_seconds,
        t->ttft_count ? t->ttft_sum / (double)t->ttft_count : 0.0,
        t->tpot_count ? t->tpot_sum / (double)t->tpot_count : 0.0, t->finished, t->preemptions);
  }
  return kv_output_commit(g_steal_pointer(&output), error);
}

/* What a reader of the report must know beside the figures. */
static GPtrArray *notes_on(const KvSetup *const *setups, KvSummary *const *summaries, guint n) {
  GPtrArray *notes = g_ptr_array_new_with_free_func(g_free);
  for (guint i = 0; i < n; i++) {
    const KvSummary *s = summaries[i];
    const char *device = setups[i]->platform->device->name;
    g_autofree char *unmeasured = kv_setup_unmeasured(setups[i]);
    if (unmeasured)
      g_ptr_array_add(notes, g_strdup_printf("%s: %s were not measured on a %s: the "
                                             "efficiencies of other kernels stand in.",
                                             s->label, unmeasured, device));
    else if (!s->calibrated && (i == 0 || strcmp(s->platform, summaries[i - 1]->platform) != 0))
      g_ptr_array_add(
          notes,
          g_strdup_printf("%s is uncalibrated: its times follow from its data sheet.", device));
    if (s->requests_rejected)
      g_ptr_array_add(notes,
                      g_strdup_printf("%s: %" G_GUINT64_FORMAT
                                      " requests were rejected, being longer than the model's "
                                      "context (%u tokens) or than all blocks.",
                                      s->label, s->requests_rejected,
                                      setups[i]->scenario->engine.max_model_len));
  }
  return notes;
}

gboolean kv_replay_write(KvRunDirectory *directory, const KvSetup *const *setups,
                         KvSummary *const *summaries, guint n, gboolean plots, GError **error) {
  g_autoptr(KvRunDirectory) uncommitted = directory;
  g_autofree char *scenarios = NULL;
  json_t *all = n > 1 ? json_array() : NULL, *figures = n > 1 ? json_array() : NULL;
  for (guint i = 0; i < n; i++) {
    json_t *scenario = kv_scenario_to_json(setups[i]->scenario);
    json_t *summary = kv_summary_to_json(summaries[i]);
    if (n > 1) {
      json_array_append_new(all, scenario);
      json_array_append_new(figures, summary);
    } else {
      all = scenario;
      figures = summary;
    }
    g_autofree char *prefix = n > 1 ? g_strdup_printf("%u-", i + 1) : g_strdup("");
    if (!write_timeline(directory, prefix, summaries[i], error)) {
      json_decref(all);
      json_decref(figures);
      return FALSE;
    }
  }
  gboolean ok = write_json(directory, "scenario.json", all, error) &&
                write_json(directory, "summary.json", figures, error);
  char *text = json_dumps(all, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  scenarios = g_strdup(text);
  free(text);
  json_decref(all);
  json_decref(figures);
  if (!ok)
    return FALSE;
  g_autoptr(GPtrArray) notes = notes_on(setups, summaries, n);
  g_autofree char *reason = NULL;
  g_auto(GStrv) missing =
      plots ? kv_plots_draw(directory, (const KvSummary *const *)summaries, n, &reason) : NULL;
  if (missing && missing[0]) {
    g_autofree char *list = g_strjoinv(", ", missing);
    g_autofree char *note = g_strdup_printf("pictures are missing: %s (%s)", list, reason);
    fprintf(stderr, "kvsim: %s\n", note);
    g_ptr_array_add(notes, g_steal_pointer(&note));
  }
  g_ptr_array_add(notes, NULL);
  if (!kv_report_write(directory, (const KvSummary *const *)summaries, n, scenarios,
                       (const char *const *)notes->pdata, error))
    return FALSE;
  if (kv_error_if_interrupted(error))
    return FALSE;
  return kv_run_directory_commit(g_steal_pointer(&uncommitted), error);
}

char *kv_replay_directory_name(const char *trace, const char *kind) {
  g_autofree char *base = strcmp(trace, "-") == 0 ? g_strdup("stdin") : g_path_get_basename(trace);
  if (g_str_has_suffix(base, ".gz"))
    base[strlen(base) - 3] = '\0';
  char *dot = strrchr(base, '.');
  if (dot && dot != base)
    *dot = '\0';
  for (guint i = 1;; i++) {
    g_autofree char *name =
        i == 1 ? g_strdup_printf("%s%s", base, kind) : g_strdup_printf("%s%s-%u", base, kind, i);
    char *path = g_build_filename("runs", name, NULL);
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
      return path;
    g_free(path);
  }
}
