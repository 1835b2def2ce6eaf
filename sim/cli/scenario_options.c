#include "sim/cli/scenario_options.h"

#include <string.h>

#include "sim/base/error.h"

GOptionEntry *kv_scenario_option_entries(KvScenarioOptions *o, const GOptionEntry *extra) {
  const GOptionEntry own[] = {
      {"scenario", 's', 0, G_OPTION_ARG_FILENAME, &o->file, "scenario file", "FILE.json"},
      {"model", 'm', 0, G_OPTION_ARG_STRING, &o->model, "model id or JSON file", "MODEL"},
      {"platform", 'p', 0, G_OPTION_ARG_STRING, &o->platform, "h200, 4xh100-sxm, or a JSON file",
       "PLATFORM"},
      {"use", 'u', 0, G_OPTION_ARG_STRING_ARRAY, &o->use, "technique stack, left to right",
       "ID:PARAM=VALUE,..."},
      {"executor", 0, 0, G_OPTION_ARG_STRING, &o->executor, "model or host", "NAME"},
      {"replicas", 0, 0, G_OPTION_ARG_INT, &o->replicas, "instances behind the router", "N"},
      {"tp", 0, 0, G_OPTION_ARG_INT, &o->tensor_parallel, "GPUs of one instance", "N"},
      {"arrivals", 0, 0, G_OPTION_ARG_STRING, &o->arrivals, "auto, trace, closed or sessions",
       "MODE"},
      {"concurrency", 0, 0, G_OPTION_ARG_INT, &o->concurrency, "requests or sessions in flight",
       "N"},
      {"requests", 0, 0, G_OPTION_ARG_INT64, &o->requests, "stop after N requests", "N"},
      {"rate-scale", 0, 0, G_OPTION_ARG_DOUBLE, &o->rate_scale, "arrivals X times as fast", "X"},
      {"max-model-len", 0, 0, G_OPTION_ARG_INT, &o->max_model_len, "prompt plus output tokens",
       "N"},
      {"seed", 0, 0, G_OPTION_ARG_INT64, &o->seed, "of everything random", "N"},
      {"step-by-step", 0, 0, G_OPTION_ARG_NONE, &o->step_by_step, "price every step by itself",
       NULL},
      {"set", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->set, "set any field of the scenario",
       "SECTION.KEY=VALUE"},
  };
  guint n_extra = 0;
  while (extra && extra[n_extra].long_name)
    n_extra++;
  o->replicas = o->tensor_parallel = o->concurrency = o->max_model_len = -1;
  o->rate_scale = -1.0;
  o->requests = o->seed = -1;
  GOptionEntry *entries = g_new0(GOptionEntry, G_N_ELEMENTS(own) + n_extra + 1);
  memcpy(entries, own, sizeof own);
  if (n_extra)
    memcpy(entries + G_N_ELEMENTS(own), extra, n_extra * sizeof *extra);
  return entries;
}

static gboolean set_text(KvScenario *s, const char *key, const char *value, GError **error) {
  g_autofree char *assignment = value ? g_strdup_printf("%s=%s", key, value) : NULL;
  return !assignment || kv_scenario_set(s, assignment, error);
}

static gboolean set_number(KvScenario *s, const char *key, double value, gboolean given,
                           GError **error) {
  char text[G_ASCII_DTOSTR_BUF_SIZE];
  return !given || set_text(s, key, g_ascii_dtostr(text, sizeof text, value), error);
}

KvScenario *kv_scenario_options_apply(const KvScenarioOptions *o, GError **error) {
  g_autoptr(KvScenario) s = kv_scenario_new();
  if (o->file && !kv_scenario_load(s, o->file, error))
    return NULL;
  if (!set_text(s, "model", o->model, error) || !set_text(s, "platform", o->platform, error) ||
      !set_text(s, "executor", o->executor, error) ||
      !set_text(s, "arrivals.mode", o->arrivals, error) ||
      !set_number(s, "deployment.replicas", o->replicas, o->replicas != -1, error) ||
      !set_number(s, "deployment.tensor_parallel", o->tensor_parallel, o->tensor_parallel != -1,
                  error) ||
      !set_number(s, "arrivals.concurrency", o->concurrency, o->concurrency != -1, error) ||
      !set_number(s, "arrivals.requests", (double)o->requests, o->requests != -1, error) ||
      !set_number(s, "arrivals.rate_scale", o->rate_scale, o->rate_scale != -1.0, error) ||
      !set_number(s, "engine.max_model_len", o->max_model_len, o->max_model_len != -1, error) ||
      !set_number(s, "seed", (double)o->seed, o->seed != -1, error) ||
      !set_text(s, "engine.step_by_step", o->step_by_step ? "true" : NULL, error))
    return NULL;
  for (guint i = 0; o->set && o->set[i]; i++)
    if (!kv_scenario_set(s, o->set[i], error))
      return NULL;
  return g_steal_pointer(&s);
}

void kv_scenario_options_clear(KvScenarioOptions *o) {
  g_free(o->file);
  g_free(o->model);
  g_free(o->platform);
  g_free(o->executor);
  g_free(o->arrivals);
  g_strfreev(o->use);
  g_strfreev(o->set);
}
