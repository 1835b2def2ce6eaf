/* kvsim show NAME: one thing in full. */
#include <stdio.h>
#include <string.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/technique.h"
#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/cli/cli.h"
#include "sim/engine/router.h"
#include "sim/engine/scheduler.h"
#include "sim/scenario.h"
#include "traces/trace.h"

static void print_document(json_t *document) {
  char *text = json_dumps(document, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  puts(text);
  free(text);
  json_decref(document);
}

/* Each returns whether it knew the name. */

static gboolean show_technique(const char *name) {
  const KvTechnique *technique = kv_technique_find(name, NULL);
  if (!technique)
    return FALSE;
  g_autofree char *page = kv_technique_page(technique);
  fputs(page, stdout);
  return TRUE;
}

static gboolean show_model(const char *name) {
  if (!g_strv_contains(kv_model_ids(), name) && !g_file_test(name, G_FILE_TEST_EXISTS))
    return FALSE;
  g_autoptr(KvModel) model = kv_model_load(name, NULL);
  if (!model)
    return FALSE;
  json_t *document = kv_model_to_json(model);
  json_object_set_new(document, "parameters", json_integer((json_int_t)kv_model_parameters(model)));
  json_object_set_new(document, "active_parameters",
                      json_integer((json_int_t)kv_model_active_parameters(model)));
  json_object_set_new(document, "cache_bytes_per_token_bf16",
                      json_real(kv_model_cache_bytes_per_token(model, 2.0)));
  print_document(document);
  return TRUE;
}

static gboolean show_hardware(const char *name) {
  json_t *document = kv_hardware_document(name);
  if (document)
    print_document(document);
  return document != NULL;
}

static gboolean show_scheduler(const char *name) {
  const KvSchedulerClass *scheduler = kv_scheduler_find(name);
  if (scheduler)
    printf("%s: scheduler\n  %s\n  set by engine.scheduler\n", scheduler->name,
           scheduler->description);
  return scheduler != NULL;
}

static gboolean show_router(const char *name) {
  const KvRouterClass *router = kv_router_find(name);
  if (router)
    printf("%s: router\n  %s\n  set by deployment.router\n", router->name, router->description);
  return router != NULL;
}

static gboolean show_format(const char *name) {
  for (guint i = 0; kv_trace_formats[i]; i++) {
    if (strcmp(kv_trace_formats[i]->id, name) == 0) {
      printf("%s: trace format\n  %s\n  %s\n", name, kv_trace_formats[i]->description,
             kv_trace_formats[i]->example);
      return TRUE;
    }
  }
  return FALSE;
}

static gboolean show_field(const char *name) {
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_autofree char *full =
        *f->section ? g_strconcat(f->section, ".", f->key, NULL) : g_strdup(f->key);
    if (strcmp(full, name) == 0) {
      g_autofree char *choices = f->choices ? g_strjoinv("|", (char **)f->choices) : NULL;
      printf("%s: scenario field\n  %s\n", name, f->help);
      if (choices)
        printf("  one of %s\n", choices);
      else if (f->max > 0)
        printf("  from %g to %g\n", f->min, f->max);
      return TRUE;
    }
  }
  return FALSE;
}

static void add_all(GPtrArray *names, const char *const *ids) {
  for (; *ids; ids++)
    g_ptr_array_add(names, (gpointer)*ids);
}

gboolean kv_command_show(int argc, char **argv, GError **error) {
  static gboolean (*const shows[])(const char *) = {show_technique, show_model,  show_hardware,
                                                    show_scheduler, show_router, show_format,
                                                    show_field};
  const GOptionEntry entries[] = {{NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
  if (!kv_cli_parse(kv_command_find("show"), entries, &argc, &argv, error))
    return FALSE;
  if (argc != 2) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "show: expected one name (see 'kvsim list kinds')");
    return FALSE;
  }
  for (guint i = 0; i < G_N_ELEMENTS(shows); i++)
    if (shows[i](argv[1]))
      return TRUE;
  g_autoptr(GPtrArray) names = g_ptr_array_new();
  for (guint i = 0; kv_techniques[i]; i++)
    g_ptr_array_add(names, (gpointer)kv_techniques[i]->id);
  add_all(names, kv_model_ids());
  add_all(names, kv_platform_ids());
  add_all(names, kv_link_ids());
  add_all(names, kv_storage_ids());
  g_ptr_array_add(names, NULL);
  g_autofree char *unknown = kv_names_unknown("name", argv[1], (const char *const *)names->pdata);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "show: %s (see 'kvsim list kinds')", unknown);
  return FALSE;
}
