/* kvsim run TRACE: one replay. */
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/cli/cli.h"
#include "sim/cli/replay.h"
#include "sim/cli/scenario_options.h"
#include "viz/viz.h"

static gboolean print_scenario(const KvScenario *scenario) {
  json_t *json = kv_scenario_to_json(scenario);
  char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  puts(text);
  free(text);
  json_decref(json);
  return TRUE;
}

static gboolean print_summary(const KvSummary *summary) {
  json_t *json = kv_summary_to_json(summary);
  char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  puts(text);
  free(text);
  json_decref(json);
  return TRUE;
}

/* What to write of a run, and where. */
typedef struct {
  char *directory, *format, *pace;
  gboolean nothing, operations, no_plots, as_json;
} Wanted;

static void wanted_clear(Wanted *wanted) {
  g_free(wanted->directory);
  g_free(wanted->format);
  g_free(wanted->pace);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Wanted, wanted_clear)

static gboolean replay_one(const KvScenario *scenario, const char *trace, const Wanted *wanted,
                           GError **error) {
  gboolean pace_wall;
  g_autoptr(KvSetup) setup =
      kv_cli_pace(wanted->pace, &pace_wall, error) ? kv_setup_new(scenario, TRUE, error) : NULL;
  if (!setup)
    return FALSE;
  g_autofree char *chosen =
      wanted->directory ? g_strdup(wanted->directory) : kv_replay_directory_name(trace, "");
  g_autoptr(KvRunDirectory) directory =
      wanted->nothing ? NULL : kv_run_directory_begin(chosen, error);
  if (!directory && !wanted->nothing)
    return FALSE;
  g_autoptr(KvSummary) summary =
      kv_replay(setup, trace, wanted->format, directory, "", wanted->operations, pace_wall, error);
  if (!summary)
    return FALSE;
  const KvSetup *setups[] = {setup};
  KvSummary *summaries[] = {summary};
  if (directory &&
      !kv_replay_write(g_steal_pointer(&directory), setups, summaries, 1, !wanted->no_plots, error))
    return FALSE;
  if (wanted->as_json)
    return print_summary(summary);
  g_autofree char *table = kv_table_run(summary, kv_cli_columns(), kv_cli_colour());
  fputs(table, stdout);
  if (!wanted->nothing)
    printf("\nreport: %s/report.html\n", chosen);
  return TRUE;
}

gboolean kv_command_run(int argc, char **argv, GError **error) {
  g_auto(KvScenarioOptions) options = {0};
  g_auto(Wanted) wanted = {0};
  gboolean only_scenario = FALSE;
  const GOptionEntry extra[] = {
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &wanted.directory,
       "run directory (default: runs/TRACE)", "DIR"},
      {"no-output", 'n', 0, G_OPTION_ARG_NONE, &wanted.nothing, "write no run directory", NULL},
      {"no-plots", 0, 0, G_OPTION_ARG_NONE, &wanted.no_plots, "draw no pictures", NULL},
      {"operations", 0, 0, G_OPTION_ARG_NONE, &wanted.operations,
       "also write operations.csv, a row per batch", NULL},
      {"format", 'f', 0, G_OPTION_ARG_STRING, &wanted.format,
       "the trace's format (default: by content)", "NAME"},
      {"pace", 0, 0, G_OPTION_ARG_STRING, &wanted.pace,
       "executors cuda and host: virtual (their times advance the clock; default) or wall (real "
       "time)",
       "NAME"},
      {"json", 0, 0, G_OPTION_ARG_NONE, &wanted.as_json, "print summary.json instead of the table",
       NULL},
      {"print-scenario", 0, 0, G_OPTION_ARG_NONE, &only_scenario,
       "print the complete scenario and stop", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autofree GOptionEntry *entries = kv_scenario_option_entries(&options, extra);
  g_autoptr(KvScenario) scenario = NULL;
  if (!kv_cli_parse(kv_command_find("run"), entries, &argc, &argv, error) ||
      !(scenario = kv_scenario_options_apply_all(&options, error)))
    return FALSE;
  if (only_scenario) {
    g_autoptr(KvSetup) setup = kv_setup_new(scenario, TRUE, error);
    return setup && print_scenario(setup->scenario);
  }
  if (argc != 2) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "run: %s, expected one trace (see 'kvsim run --help')",
                argc < 2 ? "no trace given" : "more than one trace given");
    return FALSE;
  }
  return replay_one(scenario, argv[1], &wanted, error);
}
