/* kvsim show NAME: one thing in full; each of them where several kinds have the name. */
#include <stdio.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/technique.h"
#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/cli/cli.h"
#include "sim/cli/kinds.h"

static void add_all(GPtrArray *names, const char *const *ids) {
  for (; *ids; ids++)
    g_ptr_array_add(names, (gpointer)*ids);
}

/* Suggests the nearest of the names that a user is likely to mistype. */
static gboolean unknown_name(const char *name, GError **error) {
  g_autoptr(GPtrArray) names = g_ptr_array_new();
  for (guint i = 0; kv_techniques[i]; i++)
    g_ptr_array_add(names, (gpointer)kv_techniques[i]->id);
  add_all(names, kv_model_ids());
  add_all(names, kv_platform_ids());
  add_all(names, kv_link_ids());
  add_all(names, kv_storage_ids());
  g_ptr_array_add(names, NULL);
  g_autofree char *unknown = kv_names_unknown("name", name, (const char *const *)names->pdata);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "show: %s (see 'kvsim list')", unknown);
  return FALSE;
}

gboolean kv_command_show(int argc, char **argv, GError **error) {
  const GOptionEntry entries[] = {{NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
  if (!kv_cli_parse(kv_command_find("show"), entries, &argc, &argv, error))
    return FALSE;
  if (argc != 2) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "show: %s, expected one name or a model's file ('kvsim list' says what there is)",
                argc < 2 ? "no name given" : "more than one name given");
    return FALSE;
  }
  guint shown = 0;
  for (const KvKind *kind = kv_kinds; kind->name; kind++) {
    g_autoptr(GError) problem = NULL;
    if (kind->show && kind->show(argv[1], &problem)) {
      shown++;
    } else if (problem) {
      g_propagate_error(error, g_steal_pointer(&problem));
      return FALSE;
    }
  }
  return shown > 0 || unknown_name(argv[1], error);
}
