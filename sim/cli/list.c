/* kvsim list KIND: what there is, from the tables that everything else reads. */
#include <stdio.h>
#include <string.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/technique.h"
#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/cli/cli.h"
#include "sim/engine/executor.h"
#include "sim/engine/router.h"
#include "sim/engine/scheduler.h"
#include "sim/scenario.h"
#include "traces/trace.h"
#include "viz/viz.h"

static void line(gboolean names, const char *id, const char *text) {
  if (names)
    puts(id);
  else
    printf("  %-24s %s\n", id, text ? text : "");
}

static void list_commands(gboolean names) {
  for (const KvCommand *c = kv_commands; c->name; c++)
    line(names, c->name, c->summary);
}

static void list_models(gboolean names) {
  for (const char *const *id = kv_model_ids(); *id; id++) {
    g_autoptr(KvModel) model = names ? NULL : kv_model_load(*id, NULL);
    g_autofree char *text =
        model
            ? g_strdup_printf("%6.1f B parameters, %u layers, %.0f kB of cache a token, context %u",
                              (double)kv_model_parameters(model) * 1e-9, kv_model_layers(model),
                              kv_model_cache_bytes_per_token(model, 2.0) * 1e-3,
                              model->max_context_tokens)
            : NULL;
    line(names, *id, text);
  }
}

static void list_devices(gboolean names) {
  for (const char *const *id = kv_device_ids(); *id; id++) {
    KvDevice *d = names ? NULL : kv_device_load(*id, NULL);
    g_autofree char *text =
        d ? g_strdup_printf("%4.0f GB at %5.0f GB/s, %5.0f TFLOP/s fp16%s", d->memory_bytes * 1e-9,
                            d->memory_Bps * 1e-9, d->peak_flops[KV_DTYPE_FP16] * 1e-12,
                            d->calibrated ? "" : ", uncalibrated")
          : NULL;
    line(names, *id, text);
    if (d)
      kv_device_free(d);
  }
}

static void list_ids(gboolean names, const char *const *ids) {
  for (; *ids; ids++)
    line(names, *ids, NULL);
}

static void list_platforms(gboolean names) {
  list_ids(names, kv_platform_ids());
}

static void list_links(gboolean names) {
  list_ids(names, kv_link_ids());
}

static void list_storage(gboolean names) {
  list_ids(names, kv_storage_ids());
}

static void list_techniques(gboolean names) {
  for (guint i = 0; kv_techniques[i]; i++)
    line(names, kv_techniques[i]->id, kv_techniques[i]->title);
}

static void list_formats(gboolean names) {
  for (guint i = 0; kv_trace_formats[i]; i++)
    line(names, kv_trace_formats[i]->id, kv_trace_formats[i]->description);
}

static void list_schedulers(gboolean names) {
  for (guint i = 0; kv_schedulers[i]; i++)
    line(names, kv_schedulers[i]->name, kv_schedulers[i]->description);
}

static void list_allocators(gboolean names) {
  line(names, "paged", "blocks from one pool, on demand; prefixes shared");
  line(names, "chunked", "2 MiB chunks of each layer's keys and values, on demand; nothing shared");
  line(names, "reserved",
       "contiguous, for the whole life of a request (buddy; static batches: exact)");
}

static void list_routers(gboolean names) {
  for (const KvRouterClass *r = kv_routers; r->name; r++)
    line(names, r->name, r->description);
}

static void list_executors(gboolean names) {
  line(names, "model", "analytic cost models, virtual time");
  line(names, "host", "a plain C transformer that computes every step for real");
}

static void list_plots(gboolean names) {
  for (guint i = 0; kv_plots[i]; i++)
    line(names, kv_plots[i]->id, kv_plots[i]->title);
}

static void list_fields(gboolean names) {
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_autofree char *name =
        *f->section ? g_strconcat(f->section, ".", f->key, NULL) : g_strdup(f->key);
    line(names, name, f->help);
  }
}

static const struct {
  const char *kind;
  void (*list)(gboolean names);
} lists[] = {
    {"allocators", list_allocators}, {"commands", list_commands},
    {"devices", list_devices},       {"executors", list_executors},
    {"fields", list_fields},         {"formats", list_formats},
    {"links", list_links},           {"models", list_models},
    {"platforms", list_platforms},   {"plots", list_plots},
    {"routers", list_routers},       {"schedulers", list_schedulers},
    {"storage", list_storage},       {"techniques", list_techniques},
};

gboolean kv_command_list(int argc, char **argv, GError **error) {
  gboolean names = FALSE;
  const GOptionEntry entries[] = {
      {"names", 0, 0, G_OPTION_ARG_NONE, &names, "only the names, one a line", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  if (!kv_cli_parse(kv_command_find("list"), entries, &argc, &argv, error))
    return FALSE;
  const char *kinds[G_N_ELEMENTS(lists) + 1] = {NULL};
  for (guint i = 0; i < G_N_ELEMENTS(lists); i++) {
    kinds[i] = lists[i].kind;
    if (argc == 2 && strcmp(argv[1], lists[i].kind) == 0) {
      lists[i].list(names);
      return TRUE;
    }
  }
  if (argc == 2 && strcmp(argv[1], "kinds") == 0) {
    for (guint i = 0; kinds[i]; i++)
      puts(kinds[i]);
    return TRUE;
  }
  g_autofree char *all = g_strjoinv("|", (char **)kinds);
  g_autofree char *problem =
      argc == 2 ? kv_names_unknown("kind", argv[1], kinds) : g_strdup("no kind given");
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "list: %s, expected one of %s", problem, all);
  return FALSE;
}
