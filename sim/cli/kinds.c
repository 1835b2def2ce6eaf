#include "sim/cli/kinds.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/survey.h"
#include "models/techniques/technique.h"
#include "sim/cli/cli.h"
#include "sim/engine/router.h"
#include "sim/engine/scheduler.h"
#include "sim/engine/tier_policy.h"
#include "sim/scenario.h"
#include "traces/trace.h"
#include "viz/viz.h"

static void line(gboolean names, const char *id, const char *text) {
  if (names)
    puts(id);
  else
    printf("  %-24s %s\n", id, text ? text : "");
}

static void print_document(json_t *document) {
  char *text = json_dumps(document, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  puts(text);
  free(text);
  json_decref(document);
}

/* Things that are a name, a sentence and the place where they are chosen. */
static gboolean show_sentence(const char *name, const char *kind, const char *text,
                              const char *where) {
  printf("%s: %s\n  %s\n  %s\n", name, kind, text, where);
  return TRUE;
}

/* Models. */

static void list_models(gboolean names) {
  for (const char *const *id = kv_model_ids(); *id; id++) {
    g_autoptr(KvModel) model = names ? NULL : kv_model_load(*id, NULL);
    g_autofree char *text =
        model ? g_strdup_printf(
                    "%6.1f B parameters, %3u layers, %5.0f kB of cache a token, context %u",
                    (double)kv_model_parameters(model) * 1e-9, kv_model_layers(model),
                    kv_model_cache_bytes_per_token(model, 2.0) * 1e-3, model->max_context_tokens)
              : NULL;
    line(names, *id, text);
  }
}

/* An id of the catalogue, or a file. */
static gboolean show_model(const char *name, GError **error) {
  if (!g_strv_contains(kv_model_ids(), name) && !g_file_test(name, G_FILE_TEST_EXISTS))
    return FALSE;
  g_autoptr(KvModel) model = kv_model_load(name, error);
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

/* Hardware. */

static void list_devices(gboolean names) {
  for (const char *const *id = kv_device_ids(); *id; id++) {
    KvDevice *d = names ? NULL : kv_device_load(*id, NULL);
    g_autofree char *text =
        d ? g_strdup_printf("%4.0f GB at %5.0f GB/s, %5.0f TFLOP/s fp16%s", d->memory_bytes * 1e-9,
                            d->memory_Bps * 1e-9, d->peak_flops[KV_DTYPE_FP16] * 1e-12,
                            d->calibrated ? ", calibrated" : "")
          : NULL;
    line(names, *id, text);
    if (d)
      kv_device_free(d);
  }
}

/* Their names in full, of a device also where it stands for the platform of one such device. */
static void list_documents(gboolean names, const char *const *ids, const char *of_device) {
  for (; *ids; ids++) {
    json_t *document = names ? NULL : kv_hardware_document(*ids);
    const char *name = json_string_value(json_object_get(document, "name"));
    gboolean device = of_device && g_strv_contains(kv_device_ids(), *ids);
    g_autofree char *text = g_strdup_printf("%s%s", device ? of_device : "", name ? name : "");
    line(names, *ids, text);
    json_decref(document);
  }
}

static void list_platforms(gboolean names) {
  list_documents(names, kv_platform_ids(), "one ");
  if (!names)
    puts("\n  4xID is a node of four, 2x8xID two nodes of eight; a JSON file is a platform too.");
}

static void list_links(gboolean names) {
  list_documents(names, kv_link_ids(), NULL);
}

static void list_storage(gboolean names) {
  list_documents(names, kv_storage_ids(), NULL);
}

static gboolean show_hardware(const char *name, GError **error) {
  (void)error;
  json_t *document = kv_hardware_document(name);
  if (document)
    print_document(document);
  return document != NULL;
}

/* Techniques. */

/* The entries whose first section this is: what is in, and what is not yet. Returns how many are
 * in. */
static guint list_section(const KvSurveyEntry *entries, guint n, const char *section) {
  guint in = 0;
  printf("\n%s\n", section);
  for (guint i = 0; i < n; i++) {
    if (strcmp(entries[i].sections[0], section) != 0)
      continue;
    const KvTechnique *technique = kv_technique_find(entries[i].id, NULL);
    g_autofree char *absent =
        g_strdup_printf("(not yet) %s, %s", entries[i].name, entries[i].paper);
    line(FALSE, entries[i].id, technique ? technique->title : absent);
    in += technique != NULL;
  }
  return in;
}

static int by_text(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The whole survey by section, then what is in no survey. */
static void list_survey(void) {
  guint n, in = 0, more = 0;
  const KvSurveyEntry *entries = kv_survey(&n);
  g_autofree const char **sections = g_new(const char *, n);
  for (guint i = 0; i < n; i++)
    sections[i] = entries[i].sections[0];
  qsort(sections, n, sizeof *sections, by_text);
  for (guint i = 0; i < n; i++)
    if (i == 0 || strcmp(sections[i], sections[i - 1]) != 0)
      in += list_section(entries, n, sections[i]);
  puts("\nBaselines");
  for (guint i = 0; kv_techniques[i]; i++)
    if (strcmp(kv_techniques[i]->sections[0], "Baselines") == 0) {
      line(FALSE, kv_techniques[i]->id, kv_techniques[i]->title);
      more++;
    }
  printf("\n%u of the survey's %u systems are in, and %u baselines.\n", in, n, more);
}

static void list_techniques(gboolean names) {
  if (!names)
    list_survey();
  for (guint i = 0; names && kv_techniques[i]; i++)
    line(names, kv_techniques[i]->id, NULL);
}

static gboolean show_technique(const char *name, GError **error) {
  (void)error;
  const KvTechnique *technique = kv_technique_find(name, NULL);
  if (!technique)
    return FALSE;
  g_autofree char *page = kv_technique_page(technique);
  fputs(page, stdout);
  return TRUE;
}

/* The engine's parts. */

static void list_schedulers(gboolean names) {
  for (guint i = 0; kv_schedulers[i]; i++)
    line(names, kv_schedulers[i]->name, kv_schedulers[i]->description);
}

static gboolean show_scheduler(const char *name, GError **error) {
  (void)error;
  const KvSchedulerClass *s = kv_scheduler_find(name);
  return s && show_sentence(s->name, "scheduler", s->description,
                            "chosen by --scheduler, engine.scheduler of a scenario");
}

static void list_routers(gboolean names) {
  for (const KvRouterClass *r = kv_routers; r->name; r++)
    line(names, r->name, r->description);
}

static gboolean show_router(const char *name, GError **error) {
  (void)error;
  const KvRouterClass *r = kv_router_find(name);
  return r && show_sentence(r->name, "router", r->description,
                            "chosen by --router, deployment.router of a scenario");
}

typedef struct {
  const char *name, *description;
} Named;

static const Named allocators[] = {
    {"paged", "blocks from one pool, on demand; prefixes shared"},
    {"chunked", "2 MiB chunks of each layer's keys and values, on demand; mapping costs CPU time"},
    {"reserved", "contiguous, for the whole life of a request (buddy; static batches: exact)"},
    {NULL, NULL},
};

static const Named executors[] = {
    {"model", "analytic cost models, virtual time"},
    {"host", "a plain C transformer that computes every step for real (small models)"},
    {"cuda", "an NVIDIA GPU computes every step, its measured time is the engine's"},
    {NULL, NULL},
};

static void list_named(gboolean names, const Named *all) {
  for (; all->name; all++)
    line(names, all->name, all->description);
}

static gboolean show_named(const Named *all, const char *name, const char *kind,
                           const char *where) {
  while (all->name && strcmp(all->name, name) != 0)
    all++;
  return all->name && show_sentence(name, kind, all->description, where);
}

static void list_allocators(gboolean names) {
  list_named(names, allocators);
}

static gboolean show_allocator(const char *name, GError **error) {
  (void)error;
  return show_named(allocators, name, "allocator", "chosen by engine.allocator of a scenario");
}

static void list_tier_policies(gboolean names) {
  for (guint i = 0; kv_tier_policies[i]; i++)
    line(names, kv_tier_policies[i]->name, kv_tier_policies[i]->description);
}

static gboolean show_tier_policy(const char *name, GError **error) {
  (void)error;
  const KvTierPolicyClass *p = kv_tier_policy_find(name);
  return p && show_sentence(p->name, "tier policy", p->description,
                            "chosen by --use cachedattention:policy=...");
}

static void list_executors(gboolean names) {
  list_named(names, executors);
}

static gboolean show_executor(const char *name, GError **error) {
  (void)error;
  return show_named(executors, name, "executor", "chosen by --executor, executor of a scenario");
}

/* Traces, pictures, fields, commands. */

static void list_formats(gboolean names) {
  for (guint i = 0; kv_trace_formats[i]; i++)
    line(names, kv_trace_formats[i]->id, kv_trace_formats[i]->description);
}

static gboolean show_format(const char *name, GError **error) {
  (void)error;
  for (guint i = 0; kv_trace_formats[i]; i++)
    if (strcmp(kv_trace_formats[i]->id, name) == 0)
      return show_sentence(name, "trace format", kv_trace_formats[i]->description,
                           kv_trace_formats[i]->example);
  return FALSE;
}

static void list_plots(gboolean names) {
  for (guint i = 0; kv_plots[i]; i++)
    line(names, kv_plots[i]->id, kv_plots[i]->title);
}

static gboolean show_plot(const char *name, GError **error) {
  (void)error;
  for (guint i = 0; kv_plots[i]; i++)
    if (strcmp(kv_plots[i]->id, name) == 0)
      return show_sentence(name, "picture of a run", kv_plots[i]->title, kv_plots[i]->caption);
  return FALSE;
}

static char *field_name(const KvScenarioField *field) {
  return *field->section ? g_strconcat(field->section, ".", field->key, NULL)
                         : g_strdup(field->key);
}

static void list_fields(gboolean names) {
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_autofree char *name = field_name(f);
    line(names, name, f->help);
  }
}

static gboolean show_field(const char *name, GError **error) {
  (void)error;
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_autofree char *full = field_name(f);
    if (strcmp(full, name) != 0)
      continue;
    g_autofree char *choices = f->choices ? g_strjoinv("|", (char **)f->choices) : NULL;
    g_autofree char *range = choices      ? g_strdup_printf("one of %s", choices)
                             : f->max > 0 ? g_strdup_printf("from %g to %g", f->min, f->max)
                             : f->kind == KV_FIELD_FLAG ? g_strdup("true or false")
                                                        : g_strdup("text");
    return show_sentence(name, "field of a scenario", f->help, range);
  }
  return FALSE;
}

static void list_commands(gboolean names) {
  for (const KvCommand *c = kv_commands; c->name; c++)
    if (!c->hidden)
      line(names, c->name, c->summary);
}

static gboolean show_command(const char *name, GError **error) {
  (void)error;
  const KvCommand *c = kv_command_find(name);
  g_autofree char *example = c ? g_strdup_printf("for example: %s", c->example) : NULL;
  return c && show_sentence(c->name, "command", c->summary, example);
}

const KvKind kv_kinds[] = {
    {"techniques", "what --use takes", list_techniques, show_technique},
    {"models", "what --model takes, beside files", list_models, show_model},
    {"platforms", "what --platform takes, beside files", list_platforms, show_hardware},
    {"devices", "GPUs and other processors", list_devices, NULL},
    {"links", "of GPUs, hosts and networks", list_links, NULL},
    {"storage", "SSDs and other tiers", list_storage, NULL},
    {"schedulers", "who runs when", list_schedulers, show_scheduler},
    {"allocators", "how cache memory is handed out", list_allocators, show_allocator},
    {"tier-policies", "which session leaves a tier of the session store", list_tier_policies,
     show_tier_policy},
    {"routers", "which replica takes a request", list_routers, show_router},
    {"executors", "who carries the work out", list_executors, show_executor},
    {"formats", "of traces", list_formats, show_format},
    {"fields", "of a scenario", list_fields, show_field},
    {"plots", "pictures of a run", list_plots, show_plot},
    {"commands", "of kvsim", list_commands, show_command},
    {NULL, NULL, NULL, NULL},
};
