/* The options by which every command that needs a scenario takes one, in the order in which they
 * apply: the file, the named shortcuts, then each --set. */
#ifndef KV_SIM_CLI_SCENARIO_OPTIONS_H
#define KV_SIM_CLI_SCENARIO_OPTIONS_H

#include <glib.h>

#include "sim/scenario.h"

typedef struct {
  char *file, *model, *platform, *executor, *arrivals;
  char **use, **set;
  int replicas, tensor_parallel, concurrency, max_model_len;
  double rate_scale;
  gint64 requests;
  gint64 seed;
  gboolean step_by_step;
} KvScenarioOptions;

/* The option entries that fill `options`, ended by NULL; free with g_free(). `extra` (ended by
 * NULL) come after them. */
GOptionEntry *kv_scenario_option_entries(KvScenarioOptions *options, const GOptionEntry *extra);

/* The scenario with everything applied but `use`, of which a command takes one or more. */
KvScenario *kv_scenario_options_apply(const KvScenarioOptions *options, GError **error);
void kv_scenario_options_clear(KvScenarioOptions *options);

#endif
