#include "sim/cli/cli.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "sim/base/error.h"
#include "sim/base/names.h"

const KvCommand kv_commands[] = {
    {"run", "TRACE", "replay a trace under a scenario: table, run directory, report",
     "kvsim run chat.jsonl --model llama-3.1-8b --platform h100-sxm --use kivi:bits=4 -o runs/kivi",
     kv_command_run, FALSE},
    {"compare", "TRACE", "the same trace under several stacks, side by side",
     "kvsim compare chat.jsonl --use '' --use kivi --use snapkv:budget=1024", kv_command_compare,
     FALSE},
    {"predict", "", "price one step, broken down by kernel",
     "kvsim predict --phase decode --batch 64 --context 8192", kv_command_predict, FALSE},
    {"explain", "step | RUN --request N", "where a predicted time comes from",
     "kvsim run chat.jsonl --operations -o runs/chat && kvsim explain runs/chat --request 3",
     kv_command_explain, FALSE},
    {"trace", "stat|convert|slice|scale|smear|repeat|generate",
     "look at traces, change them, make them", "kvsim trace stat chat.jsonl", kv_command_trace,
     FALSE},
    {"list", "KIND", "what there is: models, platforms, techniques, schedulers, formats, ...",
     "kvsim list techniques", kv_command_list, FALSE},
    {"show", "NAME", "what one thing is: a model, a device, a technique, ...", "kvsim show kivi",
     kv_command_show, FALSE},
    {"calibrate", "", "fit a device file to measured operations",
     "kvsim calibrate --device h200 --from ceilings.json --from steps.json -o h200.json",
     kv_command_calibrate, FALSE},
    {"validate", "[TRACE]", "predicted beside measured: of real engines' runs, or of one here",
     "kvsim validate --measured e2e/H100/Llama-3.1-8B/vllm/requests.jsonl\n"
     "  kvsim validate chat.jsonl --executor cuda --model qwen2.5-0.5b -o validation",
     kv_command_validate, FALSE},
    {"claims", "[TECHNIQUE|FILE]...", "replay what papers claim: claimed beside simulated",
     "kvsim claims kivi snapkv --details", kv_command_claims, FALSE},
    {"graph", "platform | plan | prefixes TRACE",
     "draw a platform, a technique's plan, or a trace's prefix tree",
     "kvsim graph plan --use snapkv,kivi -o plan.svg", kv_command_graph, FALSE},
    {"docs", "KIND", "print the reference pages that are made from the program's own tables",
     "kvsim docs scenario", kv_command_docs, TRUE},
    {.name = NULL},
};

const KvCommand *kv_command_find(const char *name) {
  for (const KvCommand *c = kv_commands; c->name; c++)
    if (strcmp(c->name, name) == 0)
      return c;
  return NULL;
}

gboolean kv_cli_parse(const KvCommand *command, const GOptionEntry *entries, int *argc,
                      char ***argv, GError **error) {
  g_autofree char *usage = g_strdup_printf("%s%s- %s", command->arguments,
                                           *command->arguments ? " " : "", command->summary);
  g_autofree char *program = g_strdup_printf("kvsim %s", command->name);
  g_autofree char *example = g_strdup_printf("Example:\n  %s", command->example);
  g_autoptr(GOptionContext) context = g_option_context_new(usage);
  g_option_context_add_main_entries(context, entries, NULL);
  g_option_context_set_description(context, example);
  g_set_prgname(program);
  g_autoptr(GError) problem = NULL;
  gboolean ok = g_option_context_parse(context, argc, argv, &problem);
  g_set_prgname("kvsim");
  if (ok)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: %s (see 'kvsim %s --help')", command->name,
              problem->message, command->name);
  return FALSE;
}

guint kv_cli_columns(void) {
  struct winsize size;
  if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40)
    return size.ws_col;
  return 100;
}

gboolean kv_cli_colour(void) {
  return isatty(STDOUT_FILENO) && !g_getenv("NO_COLOR") && g_strcmp0(g_getenv("TERM"), "dumb") != 0;
}

gboolean kv_cli_pace(const char *name, gboolean *wall, GError **error) {
  static const char *const paces[] = {"virtual", "wall", NULL};
  *wall = name && strcmp(name, "wall") == 0;
  if (!name || g_strv_contains(paces, name))
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "--pace '%s': expected virtual or wall", name);
  return FALSE;
}
