/* kvsim graph: structure as a picture. */
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/cli/cli.h"
#include "sim/cli/scenario_options.h"
#include "sim/engine/simulation.h"
#include "viz/graph.h"

typedef struct {
  char *output, *run, *format;
  int context, prompt, most;
} Options;

static void options_clear(Options *o) {
  g_free(o->output);
  g_free(o->run);
  g_free(o->format);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* The summary.json of the run directory, of its first run if it compares several. */
static json_t *load_summary(const char *run, GError **error) {
  g_autofree char *path = g_build_filename(run, "summary.json", NULL);
  json_error_t problem;
  json_t *document = json_load_file(path, 0, &problem);
  if (!document) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s:%d: %s, expected the summary of a run", path,
                MAX(problem.line, 1), problem.text);
    return NULL;
  }
  if (!json_is_array(document))
    return document;
  json_t *first = json_incref(json_array_get(document, 0));
  json_decref(document);
  return first;
}

static char *draw_platform(const Options *o, KvScenario *scenario, GError **error) {
  json_t *summary = NULL;
  if (o->run && !(summary = load_summary(o->run, error)))
    return NULL;
  const char *of_run = json_string_value(json_object_get(summary, "platform"));
  KvPlatform *platform = kv_platform_load(of_run ? of_run : scenario->platform, error);
  char *text = platform ? kv_graph_platform(platform, summary) : NULL;
  kv_platform_free(platform);
  json_decref(summary);
  return text;
}

static char *draw_plan(const Options *o, const KvScenario *scenario, GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  guint context = (guint)o->context, prompt = o->prompt ? (guint)o->prompt : context;
  return setup ? kv_graph_plan(setup->model, setup->plan, setup->scenario->use, context,
                               MIN(prompt, context), error)
               : NULL;
}

static char *draw_prefixes(const Options *o, const char *trace, GError **error) {
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(trace, o->format, error);
  return reader ? kv_graph_prefixes(reader, (guint)o->most, error) : NULL;
}

/* To the terminal as DOT, to a file by the end of its name. */
static gboolean write_graph(const char *dot, const char *path, GError **error) {
  if (!path) {
    fputs(dot, stdout);
    return TRUE;
  }
  const char *end = strrchr(path, '.');
  if (!end || strcmp(end, ".dot") == 0 || strcmp(end, ".gv") == 0)
    return kv_output_write_file(path, dot, -1, error);
  g_autoptr(GBytes) picture = kv_graph_render(dot, end + 1, error);
  gsize length;
  const char *bytes = picture ? g_bytes_get_data(picture, &length) : NULL;
  return picture && kv_output_write_file(path, bytes, (gssize)length, error);
}

gboolean kv_command_graph(int argc, char **argv, GError **error) {
  g_auto(KvScenarioOptions) options = {0};
  g_auto(Options) o = {.context = 4096, .most = 60};
  const GOptionEntry extra[] = {
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o.output,
       "file: .dot, .svg, .png, .pdf (default: DOT on the terminal)", "FILE"},
      {"run", 0, 0, G_OPTION_ARG_FILENAME, &o.run, "platform: what this run moved over its links",
       "DIR"},
      {"context", 'c', 0, G_OPTION_ARG_INT, &o.context,
       "plan: tokens of the sequence (default 4096)", "N"},
      {"prompt", 0, 0, G_OPTION_ARG_INT, &o.prompt,
       "plan: of them, the prompt's (default: all of them)", "N"},
      {"most", 0, 0, G_OPTION_ARG_INT, &o.most, "prefixes: boxes to draw at most (default 60)",
       "N"},
      {"format", 'f', 0, G_OPTION_ARG_STRING, &o.format,
       "prefixes: the trace's format (default: by content)", "NAME"},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autofree GOptionEntry *entries = kv_scenario_option_entries(&options, extra);
  g_autoptr(KvScenario) scenario = NULL;
  gboolean ok = kv_cli_parse(kv_command_find("graph"), entries, &argc, &argv, error) &&
                (scenario = kv_scenario_options_apply_all(&options, error));
  if (!ok)
    return FALSE;
  const char *what = argc > 1 ? argv[1] : "";
  gboolean prefixes = strcmp(what, "prefixes") == 0;
  gboolean known = prefixes || strcmp(what, "platform") == 0 || strcmp(what, "plan") == 0;
  if (!known || argc != (prefixes ? 3 : 2) || o.context < 1 || o.prompt < 0 || o.most < 1) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "graph: expected one of platform, plan, prefixes TRACE, and counts above 0 (see "
                "'kvsim graph --help')");
    return FALSE;
  }
  g_autofree char *dot = prefixes                        ? draw_prefixes(&o, argv[2], error)
                         : strcmp(what, "platform") == 0 ? draw_platform(&o, scenario, error)
                                                         : draw_plan(&o, scenario, error);
  return dot && write_graph(dot, o.output, error);
}
