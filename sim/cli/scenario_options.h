/* The options by which every command that needs a scenario takes one, in the order in which they
 * apply: the file, the named shortcuts, then each --set.
 *
 * A shortcut is a field of the scenario under a shorter name; the field's own checks read its
 * value.
 */
#ifndef KV_SIM_CLI_SCENARIO_OPTIONS_H
#define KV_SIM_CLI_SCENARIO_OPTIONS_H

#include <glib.h>

#include "sim/scenario.h"

enum { KV_MAX_SHORTCUTS = 16 };

typedef struct {
  char *file;
  char *shortcuts[KV_MAX_SHORTCUTS]; /* by the order of the table */
  char **use, **set;
  gboolean step_by_step;
} KvScenarioOptions;

/* The option entries that fill `options`, ended by NULL; free with g_free(). `extra` (ended by
 * NULL) come before them. */
GOptionEntry *kv_scenario_option_entries(KvScenarioOptions *options, const GOptionEntry *extra);

/* The scenario with everything applied but `use`, of which a command takes one or more. */
KvScenario *kv_scenario_options_apply(const KvScenarioOptions *options, GError **error);
/* The same, with every `use` joined into the one stack of a command that takes one. */
KvScenario *kv_scenario_options_apply_all(const KvScenarioOptions *options, GError **error);
/* What a shortcut was given, borrowed; NULL if it was not. */
const char *kv_scenario_options_value(const KvScenarioOptions *options, const char *shortcut);
/* The first option that `names` (NULL-terminated) does not list, of those that were given; NULL if
 * there is none. */
const char *kv_scenario_options_beside(const KvScenarioOptions *options, const char *const *names);
void kv_scenario_options_clear(KvScenarioOptions *options);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(KvScenarioOptions, kv_scenario_options_clear)

#endif
