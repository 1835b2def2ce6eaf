/* kvsim compare TRACE --use A --use B: the same trace under several stacks. */
#include <stdio.h>

#include "sim/base/error.h"
#include "sim/cli/cli.h"
#include "sim/cli/replay.h"
#include "sim/cli/scenario_options.h"
#include "viz/viz.h"

typedef struct {
  GPtrArray *setups, *summaries;
} Runs;

static gboolean replay_all(Runs *runs, const KvScenario *scenario, char **stacks, const char *trace,
                           const char *format, const KvRunDirectory *directory, GError **error) {
  for (guint i = 0; stacks[i]; i++) {
    g_autoptr(KvScenario) variant = kv_scenario_copy(scenario);
    g_free(variant->use);
    variant->use = g_strdup(stacks[i]);
    g_free(variant->label); /* one for all would tell nothing apart */
    variant->label = g_strdup("");
    KvSetup *setup = kv_setup_new(variant, TRUE, error);
    if (!setup)
      return FALSE;
    g_ptr_array_add(runs->setups, setup);
    g_autofree char *prefix = g_strdup_printf("%u-", i + 1);
    KvSummary *summary = kv_replay(setup, trace, format, directory, prefix, FALSE, FALSE, error);
    if (!summary)
      return FALSE;
    g_ptr_array_add(runs->summaries, summary);
  }
  return TRUE;
}

static void print_json(const Runs *runs) {
  json_t *all = json_array();
  for (guint i = 0; i < runs->summaries->len; i++)
    json_array_append_new(all, kv_summary_to_json(g_ptr_array_index(runs->summaries, i)));
  char *text = json_dumps(all, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  puts(text);
  free(text);
  json_decref(all);
}

static gboolean compare(const KvScenario *scenario, char **stacks, const char *trace,
                        const char *format, const char *directory_name, gboolean as_json,
                        GError **error) {
  g_autofree char *chosen =
      directory_name ? g_strdup(directory_name) : kv_replay_directory_name(trace, "-compare");
  g_autoptr(KvRunDirectory) directory = kv_run_directory_begin(chosen, error);
  if (!directory)
    return FALSE;
  g_autoptr(GPtrArray) setups = g_ptr_array_new_with_free_func((GDestroyNotify)kv_setup_free);
  g_autoptr(GPtrArray) summaries = g_ptr_array_new_with_free_func((GDestroyNotify)kv_summary_free);
  Runs runs = {setups, summaries};
  if (!replay_all(&runs, scenario, stacks, trace, format, directory, error) ||
      !kv_replay_write(g_steal_pointer(&directory), (const KvSetup *const *)setups->pdata,
                       (KvSummary *const *)summaries->pdata, summaries->len, TRUE, error))
    return FALSE;
  if (as_json) {
    print_json(&runs);
    return TRUE;
  }
  g_autofree char *table = kv_table_compare((const KvSummary *const *)summaries->pdata,
                                            summaries->len, kv_cli_columns(), kv_cli_colour());
  fputs(table, stdout);
  printf("\nreport: %s/report.html\n", chosen);
  return TRUE;
}

gboolean kv_command_compare(int argc, char **argv, GError **error) {
  g_auto(KvScenarioOptions) options = {0};
  g_autofree char *directory = NULL;
  g_autofree char *format = NULL;
  gboolean as_json = FALSE;
  const GOptionEntry extra[] = {
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &directory,
       "run directory (default: runs/TRACE-compare)", "DIR"},
      {"format", 'f', 0, G_OPTION_ARG_STRING, &format, "the trace's format (default: by content)",
       "NAME"},
      {"json", 0, 0, G_OPTION_ARG_NONE, &as_json, "print the summaries instead of the table", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autofree GOptionEntry *entries = kv_scenario_option_entries(&options, extra);
  g_autoptr(KvScenario) scenario = NULL;
  gboolean ok = kv_cli_parse(kv_command_find("compare"), entries, &argc, &argv, error) &&
                (scenario = kv_scenario_options_apply(&options, error));
  if (!ok)
    return FALSE;
  const char *problem = argc < 2                       ? "no trace given"
                        : argc > 2                     ? "more than one trace given"
                        : !options.use                 ? "no stack given"
                        : g_strcmp0(argv[1], "-") == 0 ? "standard input can be read only once"
                                                       : NULL;
  if (problem) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "compare: %s, expected one trace file and --use for each stack "
                "(see 'kvsim compare --help')",
                problem);
    return FALSE;
  }
  char *with_baseline[] = {(char *)"", options.use[0], NULL};
  return compare(scenario, options.use[1] ? options.use : with_baseline, argv[1], format, directory,
                 as_json, error);
}
