/* kvsim list KIND: what there is. */
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/cli/cli.h"
#include "sim/cli/kinds.h"

static void list_kinds(gboolean names) {
  if (!names)
    puts("What can be listed, each by 'kvsim list KIND':\n");
  for (const KvKind *kind = kv_kinds; kind->name; kind++)
    if (names)
      puts(kind->name);
    else
      printf("  %-12s %s\n", kind->name, kind->summary);
}

static gboolean unknown_kind(const char *name, GError **error) {
  g_autoptr(GPtrArray) known = g_ptr_array_new();
  for (const KvKind *kind = kv_kinds; kind->name; kind++)
    g_ptr_array_add(known, (gpointer)kind->name);
  g_ptr_array_add(known, NULL);
  g_autofree char *problem = kv_names_unknown("kind", name, (const char *const *)known->pdata);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "list: %s (see 'kvsim list')", problem);
  return FALSE;
}

gboolean kv_command_list(int argc, char **argv, GError **error) {
  gboolean names = FALSE;
  const GOptionEntry entries[] = {
      {"names", 0, 0, G_OPTION_ARG_NONE, &names, "only the names, one a line", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  if (!kv_cli_parse(kv_command_find("list"), entries, &argc, &argv, error))
    return FALSE;
  if (argc > 2) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "list: %d arguments found, expected one kind",
                argc - 1);
    return FALSE;
  }
  if (argc < 2 || strcmp(argv[1], "kinds") == 0) {
    list_kinds(names);
    return TRUE;
  }
  for (const KvKind *kind = kv_kinds; kind->name; kind++) {
    if (strcmp(argv[1], kind->name) == 0) {
      kind->list(names);
      return TRUE;
    }
  }
  return unknown_kind(argv[1], error);
}
