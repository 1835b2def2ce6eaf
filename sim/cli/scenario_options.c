#include "sim/cli/scenario_options.h"

#include <string.h>

#include "sim/base/error.h"

static const struct {
  const char *option;
  char letter;
  const char *field, *help, *value;
} shortcuts[] = {
    {"model", 'm', "model", "model: an id, or a JSON file (kvsim list models)", "MODEL"},
    {"platform", 'p', "platform", "hardware: h200, 4xh100-sxm, 2x8xh200, or a JSON file",
     "PLATFORM"},
    {"executor", 0, "executor", "who carries the work out: model, host or cuda", "NAME"},
    {"label", 0, "label", "name of the run in tables and plots", "TEXT"},
    {"replicas", 0, "deployment.replicas", "instances behind the router", "N"},
    {"router", 0, "deployment.router", "round-robin, least-loaded or prefix", "NAME"},
    {"tp", 0, "deployment.tensor_parallel", "GPUs of one instance", "N"},
    {"scheduler", 0, "engine.scheduler", "who runs when (kvsim list schedulers)", "NAME"},
    {"max-model-len", 0, "engine.max_model_len", "longest request: prompt plus output tokens", "N"},
    {"arrivals", 0, "arrivals.mode", "auto, trace, closed or sessions", "MODE"},
    {"concurrency", 0, "arrivals.concurrency", "requests or sessions in flight, if closed", "N"},
    {"requests", 0, "arrivals.requests", "stop after N requests", "N"},
    {"rate-scale", 0, "arrivals.rate_scale", "arrivals X times as fast", "X"},
    {"seed", 0, "seed", "seed of everything random", "N"},
};
G_STATIC_ASSERT(G_N_ELEMENTS(shortcuts) <= KV_MAX_SHORTCUTS);

GOptionEntry *kv_scenario_option_entries(KvScenarioOptions *o, const GOptionEntry *extra) {
  const GOptionEntry first[] = {
      {"scenario", 's', 0, G_OPTION_ARG_FILENAME, &o->file, "scenario file (docs/scenario.md)",
       "FILE.json"},
      {"use", 'u', 0, G_OPTION_ARG_STRING_ARRAY, &o->use,
       "techniques, left to right (kvsim list techniques)", "ID:PARAM=VALUE,..."},
  };
  const GOptionEntry last[] = {
      {"set", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->set,
       "set any field of the scenario (kvsim list fields)", "SECTION.KEY=VALUE"},
      {"step-by-step", 0, 0, G_OPTION_ARG_NONE, &o->step_by_step,
       "debugging: price every step by itself", NULL},
  };
  GArray *entries = g_array_new(TRUE, TRUE, sizeof(GOptionEntry));
  for (; extra && extra->long_name; extra++)
    g_array_append_val(entries, *extra);
  g_array_append_vals(entries, first, G_N_ELEMENTS(first));
  for (guint i = 0; i < G_N_ELEMENTS(shortcuts); i++) {
    GOptionEntry entry = {shortcuts[i].option, shortcuts[i].letter, 0,
                          G_OPTION_ARG_STRING, &o->shortcuts[i],    shortcuts[i].help,
                          shortcuts[i].value};
    g_array_append_val(entries, entry);
  }
  g_array_append_vals(entries, last, G_N_ELEMENTS(last));
  return (GOptionEntry *)g_array_free(entries, FALSE);
}

/* Errors name what the user typed: --tp, not the field behind it. */
static gboolean set_shortcut(KvScenario *scenario, guint i, const char *value, GError **error) {
  g_autofree char *assignment = g_strdup_printf("%s=%s", shortcuts[i].field, value);
  g_autofree char *prefix = g_strdup_printf("--set %s", shortcuts[i].field);
  g_autoptr(GError) problem = NULL;
  if (kv_scenario_set(scenario, assignment, &problem))
    return TRUE;
  const char *message = problem->message;
  if (g_str_has_prefix(message, prefix))
    g_set_error(error, problem->domain, problem->code, "--%s%s", shortcuts[i].option,
                message + strlen(prefix));
  else
    g_propagate_error(error, g_steal_pointer(&problem));
  return FALSE;
}

KvScenario *kv_scenario_options_apply(const KvScenarioOptions *o, GError **error) {
  g_autoptr(KvScenario) s = kv_scenario_new();
  if (o->file && !kv_scenario_load(s, o->file, error))
    return NULL;
  for (guint i = 0; i < G_N_ELEMENTS(shortcuts); i++)
    if (o->shortcuts[i] && !set_shortcut(s, i, o->shortcuts[i], error))
      return NULL;
  if (o->step_by_step && !kv_scenario_set(s, "engine.step_by_step=true", error))
    return NULL;
  for (guint i = 0; o->set && o->set[i]; i++)
    if (!kv_scenario_set(s, o->set[i], error))
      return NULL;
  return g_steal_pointer(&s);
}

KvScenario *kv_scenario_options_apply_all(const KvScenarioOptions *o, GError **error) {
  KvScenario *s = kv_scenario_options_apply(o, error);
  if (!s || !o->use)
    return s;
  GString *stack = g_string_new(NULL);
  for (guint i = 0; o->use[i]; i++)
    if (*o->use[i])
      g_string_append_printf(stack, "%s%s", stack->len ? "," : "", o->use[i]);
  g_free(s->use);
  s->use = g_string_free(stack, FALSE);
  return s;
}

const char *kv_scenario_options_value(const KvScenarioOptions *o, const char *shortcut) {
  for (guint i = 0; i < G_N_ELEMENTS(shortcuts); i++)
    if (strcmp(shortcuts[i].option, shortcut) == 0)
      return o->shortcuts[i];
  return NULL;
}

const char *kv_scenario_options_beside(const KvScenarioOptions *o, const char *const *names) {
  for (guint i = 0; i < G_N_ELEMENTS(shortcuts); i++)
    if (o->shortcuts[i] && !g_strv_contains(names, shortcuts[i].option))
      return shortcuts[i].option;
  const struct {
    const char *name;
    gboolean given;
  } others[] = {{"scenario", o->file != NULL},
                {"use", o->use != NULL},
                {"set", o->set != NULL},
                {"step-by-step", o->step_by_step}};
  for (guint i = 0; i < G_N_ELEMENTS(others); i++)
    if (others[i].given && !g_strv_contains(names, others[i].name))
      return others[i].name;
  return NULL;
}

void kv_scenario_options_clear(KvScenarioOptions *o) {
  g_free(o->file);
  for (guint i = 0; i < KV_MAX_SHORTCUTS; i++)
    g_free(o->shortcuts[i]);
  g_strfreev(o->use);
  g_strfreev(o->set);
}
