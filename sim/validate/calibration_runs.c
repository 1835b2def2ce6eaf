#include "sim/validate/calibration_runs.h"

#include <string.h>

#include <glib/gstdio.h>

#include "sim/base/error.h"
#include "sim/validate/reference_run.h"
#include "traces/generate.h"
#include "traces/writer.h"

static const char model[] = "kvsim-calibration-2b", small[] = "kvsim-calibration-300m",
                  experts[] = "kvsim-calibration-moe", recurrent[] = "mamba-790m";

/* What is asked of the engine beside the model: assignments as of --set, with spaces between. */
static const struct {
  const char *name, *model, *use, *settings;
} runs[] = {
    {"exact", model, "", ""},
    {"exact-small", small, "", ""},
    {"fp8", model, "", "precision.cache=fp8"},
    {"kivi-2bit", model, "kivi:bits=2", "engine.block_tokens=32 engine.prefix_caching=false"},
    {"kivi-4bit", model, "kivi:bits=4", "engine.block_tokens=32 engine.prefix_caching=false"},
    {"snapkv", model, "snapkv:budget=384", ""},
    {"pyramidkv", model, "pyramidkv:budget=384", ""},
    {"h2o", model, "h2o", ""},
    {"quest", model, "quest:token_budget=384", ""},
    {"minicache", model, "minicache", "engine.prefix_caching=false"},
    {"palu", model, "palu", ""},
    {"latent", small, "mla:dcq=0", ""},
    {"experts", experts, "", ""},
    {"recurrent", recurrent, "", ""},
};

/* Few sequences at a time, many, and long ones. Prompts come seldom enough that the card's power
 * limit, which they reach, hardly shows in the steps between them. */
static const struct {
  const char *name;
  guint requests;
  double rate_rps, mean_prompt, median_prompt; /* tokens */
  guint answer_tokens;
} loads[KV_CALIBRATION_LOADS] = {{"few", 12, 4.0, 1400.0, 900.0, 48},
                                 {"many", 44, 24.0, 700.0, 500.0, 120},
                                 {"long", 8, 5.0, 8000.0, 7000.0, 60}};

enum { MOST_PROMPT_TOKENS = 14000, SEED = 29 };

gboolean kv_calibration_runs_write_trace(const char *path, guint load, GError **error) {
  g_return_val_if_fail(load < KV_CALIBRATION_LOADS, FALSE);
  KvTraceGenerator generator;
  kv_trace_generator_default(&generator);
  generator.n_requests = loads[load].requests;
  generator.seed = SEED;
  generator.arrivals.rate_rps = loads[load].rate_rps;
  generator.input_tokens = (KvLengths){.kind = KV_LENGTHS_LOGNORMAL,
                                       .a = loads[load].mean_prompt,
                                       .b = loads[load].median_prompt,
                                       .largest_tokens = MOST_PROMPT_TOKENS};
  generator.output_tokens = (KvLengths){.kind = KV_LENGTHS_FIXED, .a = loads[load].answer_tokens};
  g_autoptr(KvTraceReader) reader = kv_trace_generate(&generator, error);
  KvTraceWriter *writer = reader ? kv_trace_writer_open(path, kv_trace_reader_timing(reader),
                                                        kv_trace_reader_block_tokens(reader), error)
                                 : NULL;
  KvTraceRequest request;
  GError *problem = NULL;
  if (!writer)
    return FALSE;
  while (kv_trace_reader_next(reader, &request, &problem))
    kv_trace_writer_write(writer, &request);
  if (problem) {
    kv_trace_writer_discard(writer);
    g_propagate_error(error, problem);
    return FALSE;
  }
  return kv_trace_writer_commit(writer, error);
}

static void replace(char **text, const char *by) {
  g_free(*text);
  *text = g_strdup(by);
}

static KvScenario *scenario_of(guint run, const char *executor, const char *platform,
                               GError **error) {
  g_autoptr(KvScenario) s = kv_scenario_new();
  g_auto(GStrv) settings = g_strsplit(runs[run].settings, " ", -1);
  replace(&s->model, runs[run].model);
  replace(&s->platform, platform);
  replace(&s->use, runs[run].use);
  replace(&s->executor, executor);
  s->engine.max_model_len = 2 * MOST_PROMPT_TOKENS;
  for (guint i = 0; settings[i]; i++)
    if (*settings[i] && !kv_scenario_set(s, settings[i], error))
      return NULL;
  return g_steal_pointer(&s);
}

static gboolean serve(guint run, guint load, const char *executor, const char *platform,
                      const char *folder, GError **error) {
  g_autofree char *trace = g_build_filename(folder, "trace.jsonl", NULL);
  g_autofree char *name = g_strdup_printf("%s-%s.csv", runs[run].name, loads[load].name);
  g_autofree char *path = g_build_filename(folder, name, NULL);
  g_autoptr(KvScenario) scenario = scenario_of(run, executor, platform, error);
  const KvReferenceOptions options = {.trace = trace, .interrupted = &kv_interrupted};
  if (!scenario || !kv_calibration_runs_write_trace(trace, load, error))
    return FALSE;
  g_autoptr(KvReferenceRun) reference = kv_reference_run_new(scenario, &options, error);
  (void)g_unlink(trace);
  return reference && !kv_error_if_interrupted(error) &&
         kv_step_log_write(reference->log, path, error);
}

gboolean kv_calibration_runs_measure(const char *executor, const char *platform, const char *folder,
                                     GError **error) {
  for (guint run = 0; run < G_N_ELEMENTS(runs); run++)
    for (guint load = 0; load < G_N_ELEMENTS(loads); load++)
      if (!serve(run, load, executor, platform, folder, error))
        return FALSE;
  return TRUE;
}

static gint by_name(gconstpointer a, gconstpointer b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

gboolean kv_calibration_runs_read(const char *folder, const char *platform, GPtrArray *logs,
                                  GError **error) {
  g_autoptr(GDir) directory = g_dir_open(folder, 0, NULL);
  g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
  const char *name;
  if (!directory) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "%s: no folder that can be read, expected the step logs of kvsim calibrate "
                "--measure --runs",
                folder);
    return FALSE;
  }
  while ((name = g_dir_read_name(directory)))
    g_ptr_array_add(names, g_build_filename(folder, name, NULL));
  g_ptr_array_sort(names, by_name);
  guint before = logs->len;
  for (guint i = 0; i < names->len; i++) {
    const char *path = g_ptr_array_index(names, i);
    if (!kv_step_log_recognise(path))
      continue;
    KvStepLog *log = kv_step_log_read(path, platform, error);
    if (!log)
      return FALSE;
    g_ptr_array_add(logs, log);
  }
  if (logs->len == before)
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "%s: no step log in it, expected those of kvsim calibrate --measure --runs",
                folder);
  return logs->len > before;
}
