/* kvsim validate: measured runs of real engines, or a trace served by a real executor here, and how
 * far the prediction is off. */
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/cli/cli.h"
#include "sim/cli/scenario_options.h"
#include "sim/cli/validate_trace.h"
#include "sim/validate/comparison.h"
#include "sim/validate/step_log.h"
#include "sim/validate/steps.h"
#include "viz/plots_validate.h"

typedef struct {
  KvScenarioOptions scenario;
  char **measured, **steps, **traces, *match, *kind, *directory, *format, *pace;
  gboolean as_json, each, markdown, quality;
} Options;

static void options_clear(Options *o) {
  kv_scenario_options_clear(&o->scenario);
  g_strfreev(o->measured);
  g_strfreev(o->steps);
  g_strfreev(o->traces);
  g_free(o->match);
  g_free(o->kind);
  g_free(o->directory);
  g_free(o->format);
  g_free(o->pace);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* Either a trace is served, or files are compared; what belongs to the other is refused. */
static gboolean check(const Options *o, int n_arguments, GError **error) {
  static const char *const of_files[] = {"platform", "set", NULL};
  gboolean files = o->measured || o->steps;
  const char *beside = files ? kv_scenario_options_beside(&o->scenario, of_files) : NULL;
  const char *other = beside                             ? beside
                      : files && o->format               ? "format"
                      : files && o->pace                 ? "pace"
                      : files && o->quality              ? "quality"
                      : !files && (o->traces || o->kind) ? o->kind ? "kind" : "traces"
                      : !files && o->match               ? "match"
                      : !files && o->markdown            ? "markdown"
                                                         : NULL;
  if (n_arguments == (files ? 0 : 1) && !other)
    return TRUE;
  if (other && n_arguments == (files ? 0 : 1))
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "validate: --%s goes with %s", other,
                files ? "a trace, expected one instead of --measured and --steps"
                      : "--measured or --steps, expected one instead of a trace");
  else
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "validate: %s, expected --measured PATH, --steps FILE, or one TRACE and --executor "
                "(see 'kvsim validate --help')",
                files         ? "takes no arguments beside --measured and --steps"
                : n_arguments ? "more than one trace"
                              : "nothing to compare with");
  return FALSE;
}

static gboolean parse(Options *o, int *argc, char ***argv, GError **error) {
  const GOptionEntry extra[] = {
      {"measured", 'M', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->measured,
       "a measured run, a table of them, or a folder; may be given again", "PATH"},
      {"steps", 'S', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->steps,
       "measured steps: of whole models, or a run's steps.csv; may be given again", "FILE"},
      {"pace", 0, 0, G_OPTION_ARG_STRING, &o->pace,
       "a trace's: virtual (measured times advance the clock; default) or wall (real time)",
       "NAME"},
      {"format", 'f', 0, G_OPTION_ARG_STRING, &o->format,
       "the trace's format (default: by content)", "NAME"},
      {"traces", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &o->traces,
       "folder of the traces that measured runs name (else looked for above them)", "DIR"},
      {"kind", 0, 0, G_OPTION_ARG_STRING, &o->kind, "only runs of this kind of file", "ID"},
      {"match", 0, 0, G_OPTION_ARG_STRING, &o->match,
       "only runs whose name holds all of these words", "TEXT"},
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o->directory,
       "folder for report.html, with pictures, and the figures; a trace's: steps.csv, measured.json, "
       "requests.csv and outputs.jsonl too",
       "DIR"},
      {"quality", 0, 0, G_OPTION_ARG_NONE, &o->quality,
       "a trace's: also how far the technique's answers are from the whole cache's (quality.json)",
       NULL},
      {"each", 0, 0, G_OPTION_ARG_NONE, &o->each, "a table of every run, or step, however many",
       NULL},
      {"markdown", 0, 0, G_OPTION_ARG_NONE, &o->markdown,
       "print the section of docs/accuracy-runs.md", NULL},
      {"json", 0, 0, G_OPTION_ARG_NONE, &o->as_json, "print JSON", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autofree GOptionEntry *entries = kv_scenario_option_entries(&o->scenario, extra);
  return kv_cli_parse(kv_command_find("validate"), entries, argc, argv, error) &&
         check(o, *argc - 1, error);
}

static gboolean wanted(const Options *o, const KvMeasuredRun *run) {
  if (o->kind && strcmp(o->kind, run->kind) != 0)
    return FALSE;
  g_auto(GStrv) words = g_strsplit(o->match ? o->match : "", " ", -1);
  for (guint i = 0; words[i]; i++)
    if (!strstr(run->name, words[i]))
      return FALSE;
  return TRUE;
}

static gboolean apply(const Options *o, KvMeasuredRun *run, GError **error) {
  char **set = o->scenario.set;
  for (guint i = 0; set && set[i]; i++)
    if (!kv_scenario_set(run->scenario, set[i], error))
      return FALSE;
  return TRUE;
}

static void print_json(const GPtrArray *comparisons, const GPtrArray *skipped) {
  json_t *runs = json_array(), *reasons = json_array();
  for (guint i = 0; i < comparisons->len; i++)
    json_array_append_new(runs, kv_comparison_to_json(g_ptr_array_index(comparisons, i)));
  for (guint i = 0; i < skipped->len; i++)
    json_array_append_new(reasons, json_string(g_ptr_array_index(skipped, i)));
  json_t *root = json_pack("{s:o, s:o}", "runs", runs, "not_simulated", reasons);
  char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
  puts(text);
  free(text);
  json_decref(root);
}

static void print_tables(const Options *o, const GPtrArray *comparisons) {
  if (o->markdown) {
    g_autofree char *page = kv_accuracy_page(comparisons);
    fputs(page, stdout);
    return;
  }
  gboolean few = comparisons->len <= 6;
  for (guint i = 0; i < comparisons->len && (few || o->each); i++) {
    g_autofree char *table = kv_comparison_table(g_ptr_array_index(comparisons, i));
    printf("%s\n", table);
  }
  if (comparisons->len < 2)
    return;
  g_autoptr(GArray) accuracy = kv_accuracy_collect(comparisons, FALSE);
  g_autofree char *table = kv_accuracy_table(accuracy, FALSE);
  printf("%u runs, error of the prediction:\n%s", comparisons->len, table);
}

static gboolean write_report(const Options *o, const GPtrArray *comparisons, const GPtrArray *logs,
                             GError **error) {
  g_autoptr(KvRunDirectory) directory = kv_run_directory_begin(o->directory, error);
  if (!directory)
    return FALSE;
  /* An earlier report in its place is known by the two files together. */
  g_autofree char *scenario = kv_run_directory_file(directory, "scenario.json");
  return kv_output_write_file(scenario, "{}\n", -1, error) &&
         kv_validate_report_write(directory, comparisons, logs, error) &&
         kv_run_directory_commit(g_steal_pointer(&directory), error);
}

/* A log of a real executor's steps, which `logs` takes over. */
static char *log_table(const Options *o, const char *path, GPtrArray *logs, GError **error) {
  const char *platform = kv_scenario_options_value(&o->scenario, "platform");
  KvStepLog *log = kv_step_log_read(path, platform, error);
  if (!log)
    return NULL;
  g_ptr_array_add(logs, log);
  char **set = o->scenario.set;
  for (guint i = 0; set && set[i]; i++)
    if (!kv_scenario_set(log->scenario, set[i], error))
      return NULL;
  return kv_step_log_price(log, error) ? kv_step_log_table(log, o->each) : NULL;
}

static char *steps_table(const Options *o, const char *path, GPtrArray *logs, GError **error) {
  if (kv_step_log_recognise(path))
    return log_table(o, path, logs, error);
  const char *platform = kv_scenario_options_value(&o->scenario, "platform");
  g_autoptr(GArray) steps = kv_measured_steps(path, platform, error);
  return steps ? kv_measured_steps_table(steps, o->each) : NULL;
}

static gboolean compare_steps(const Options *o, GPtrArray *logs, GError **error) {
  for (guint i = 0; o->steps && o->steps[i]; i++) {
    g_autofree char *table = steps_table(o, o->steps[i], logs, error);
    if (!table)
      return FALSE;
    puts(table);
  }
  if (!o->directory || o->measured || !o->steps || logs->len > 0)
    return TRUE;
  g_set_error(
      error, KV_ERROR, KV_ERROR_USAGE,
      "validate: --output: whole-model steps have no report, expected --measured or a run's "
      "steps.csv");
  return FALSE;
}

static gboolean compare_trace(const Options *o, const char *trace, GError **error) {
  gboolean wall;
  if (!kv_cli_pace(o->pace, &wall, error))
    return FALSE;
  g_autoptr(KvScenario) scenario = kv_scenario_options_apply_all(&o->scenario, error);
  if (!scenario)
    return FALSE;
  KvValidateTrace asked = {.scenario = scenario,
                           .trace = trace,
                           .format = o->format,
                           .directory = o->directory,
                           .pace_wall = wall,
                           .each = o->each,
                           .as_json = o->as_json,
                           .quality = o->quality};
  return kv_validate_trace(&asked, error);
}

/* Simulate the runs that are wanted; what cannot be simulated is said. */
static gboolean compare_runs(const Options *o, GPtrArray *runs, GPtrArray *comparisons,
                             GPtrArray *skipped, GError **error) {
  for (guint i = 0; i < runs->len; i++) {
    KvMeasuredRun *run = g_ptr_array_index(runs, i);
    if (!wanted(o, run))
      continue;
    if (!apply(o, run, error))
      return FALSE;
    g_autoptr(GError) problem = NULL;
    KvComparison *comparison = kv_comparison_new(run, &kv_interrupted, &problem);
    if (comparison) {
      g_ptr_array_add(comparisons, comparison);
    } else if (g_error_matches(problem, KV_ERROR, KV_ERROR_USAGE) && runs->len > 1) {
      /* One row of a table that cannot be simulated is said, and does not hide the others. */
      g_ptr_array_add(skipped, g_strdup(problem->message));
      fprintf(stderr, "kvsim: not simulated: %s\n", problem->message);
    } else {
      g_propagate_error(error, g_steal_pointer(&problem));
      return FALSE;
    }
  }
  return TRUE;
}

gboolean kv_command_validate(int argc, char **argv, GError **error) {
  g_auto(Options) o = {0};
  g_autoptr(GPtrArray) logs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_step_log_free);
  if (!parse(&o, &argc, &argv, error))
    return FALSE;
  if (argc == 2)
    return compare_trace(&o, argv[1], error);
  if (!compare_steps(&o, logs, error))
    return FALSE;
  KvMeasuredOptions options = {(const char *const *)o.traces,
                               kv_scenario_options_value(&o.scenario, "platform")};
  g_autoptr(GPtrArray) runs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_measured_run_free);
  for (guint i = 0; o.measured && o.measured[i]; i++)
    if (!kv_measured_read(o.measured[i], &options, runs, error))
      return FALSE;
  g_autoptr(GPtrArray) comparisons =
      g_ptr_array_new_with_free_func((GDestroyNotify)kv_comparison_free);
  g_autoptr(GPtrArray) skipped = g_ptr_array_new_with_free_func(g_free);
  if (!compare_runs(&o, runs, comparisons, skipped, error) ||
      (o.directory && !write_report(&o, comparisons, logs, error)))
    return FALSE;
  if (!o.measured)
    return TRUE;
  if (o.as_json)
    print_json(comparisons, skipped);
  else
    print_tables(&o, comparisons);
  return TRUE;
}
