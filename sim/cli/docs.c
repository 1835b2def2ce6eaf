/* kvsim docs: the reference pages that come from the program's own tables, so that they cannot
 * differ from it. docs/ of the tree holds them; a test compares. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/technique.h"
#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/base/output.h"
#include "sim/cli/cli.h"
#include "sim/engine/router.h"
#include "sim/engine/scheduler.h"
#include "sim/scenario.h"
#include "traces/trace.h"

#define MADE_BY "<!-- Made by `kvsim docs`; docs/regenerate.sh makes it anew. -->\n\n"

/* The scenario. */

static void append_range(GString *page, const KvScenarioField *field) {
  if (field->choices)
    for (guint i = 0; field->choices[i]; i++)
      g_string_append_printf(page, "%s`%s`", i ? ", " : "", field->choices[i]);
  else if (field->kind == KV_FIELD_FLAG)
    g_string_append(page, "`true`, `false`");
  else if (field->kind == KV_FIELD_TEXT)
    g_string_append(page, "text");
  else
    g_string_append_printf(page, "%s%g to %g", field->kind == KV_FIELD_REAL ? "" : "whole, ",
                           field->min, field->max);
}

static void append_field(GString *page, const KvScenarioField *field, json_t *defaults) {
  json_t *section = *field->section ? json_object_get(defaults, field->section) : defaults;
  char *value =
      json_dumps(json_object_get(section, field->key), JSON_ENCODE_ANY | JSON_REAL_PRECISION(10));
  g_string_append_printf(page, "| `%s` | `%s` | ", field->key, value);
  free(value);
  append_range(page, field);
  g_string_append_printf(page, " | %s |\n", field->help);
}

static void append_scenario(GString *page) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  json_t *defaults = kv_scenario_to_json(scenario);
  g_string_append(
      page,
      "# The scenario\n\n" MADE_BY
      "A scenario is one JSON file that says everything a run depends on beside the trace. Every field may be left\n"
      "out. `kvsim run TRACE -s FILE.json` takes one, options such as `--model` and `--tp` are shortcuts to\n"
      "its fields, and `--set SECTION.KEY=VALUE` reaches each of them. The order is: defaults, file, shortcuts, `--set`,\n"
      "then what the techniques of `use` choose.\n\n"
      "    {\n      \"model\": \"llama-3.1-8b\",\n      \"platform\": \"2xh100-sxm\",\n      \"use\": \"kivi:bits=4\",\n"
      "      \"deployment\": {\"replicas\": 2, \"router\": \"prefix\"}\n    }\n\n"
      "`kvsim run --print-scenario` prints the complete one, and a run stores it as `scenario.json`: a run can be\n"
      "repeated from its own output.\n");
  const char *section = NULL;
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    if (!section || strcmp(section, f->section) != 0) {
      section = f->section;
      g_string_append_printf(
          page, "\n## %s\n\n| field | default | values | meaning |\n|---|---|---|---|\n",
          *section ? section : "Top");
    }
    append_field(page, f, defaults);
  }
  json_decref(defaults);
  g_string_append(page, "\n## Schedulers\n\n");
  for (guint i = 0; kv_schedulers[i]; i++)
    g_string_append_printf(page, "- `%s`: %s\n", kv_schedulers[i]->name,
                           kv_schedulers[i]->description);
  g_string_append(page, "\n## Routers\n\n");
  for (const KvRouterClass *r = kv_routers; r->name; r++)
    g_string_append_printf(page, "- `%s`: %s\n", r->name, r->description);
}

/* Trace formats. */

static void append_formats(GString *page) {
  g_string_append(
      page,
      "# Trace formats\n\n" MADE_BY
      "A trace is a file, plain or gzip, or `-` for standard input. Its format is recognised by its content; `-f NAME`\n"
      "says it instead. `kvsim trace convert` rewrites any of them in the first.\n");
  for (guint i = 0; kv_trace_formats[i]; i++) {
    const KvTraceFormat *format = kv_trace_formats[i];
    g_auto(GStrv) lines = g_strsplit(format->example ? format->example : "", "\n", -1);
    g_string_append_printf(page, "\n## %s\n\n%s.\n\n", format->id, format->description);
    for (guint k = 0; lines[k]; k++)
      if (*lines[k])
        g_string_append_printf(page, "    %s\n", lines[k]);
  }
}

/* The catalogues. */

static void append_models(GString *page) {
  g_string_append(
      page,
      "\n## Models\n\nThe cache is of 16-bit elements, all layers together; [models.md](models.md) says where "
      "the values come from\nand how to add one.\n\n| id | parameters | layers | cache a token | context |\n"
      "|---|--:|--:|--:|--:|\n");
  for (const char *const *id = kv_model_ids(); *id; id++) {
    g_autoptr(KvModel) model = kv_model_load(*id, NULL);
    if (model)
      g_string_append_printf(page, "| `%s` | %.1f B | %u | %.1f kB | %u |\n", *id,
                             (double)kv_model_parameters(model) * 1e-9, kv_model_layers(model),
                             kv_model_cache_bytes_per_token(model, 2.0) * 1e-3,
                             model->max_context_tokens);
  }
}

static void append_devices(GString *page) {
  g_string_append(
      page,
      "\n## Devices\n\nEach is also the platform of one of it. *Calibrated*: its efficiencies were fitted to "
      "measured times; those of\nthe others are estimates, and a run says so. [hardware.md](hardware.md) says "
      "how to add one.\n\n| id | memory | bandwidth | fp16 dense | calibrated |\n|---|--:|--:|--:|---|\n");
  for (const char *const *id = kv_device_ids(); *id; id++) {
    KvDevice *d = kv_device_load(*id, NULL);
    if (!d)
      continue;
    g_string_append_printf(page, "| `%s` | %.0f GB | %.0f GB/s | %.0f TFLOP/s | %s |\n", *id,
                           d->memory_bytes * 1e-9, d->memory_Bps * 1e-9,
                           d->peak_flops[KV_DTYPE_FP16] * 1e-12, d->calibrated ? "yes" : "");
    kv_device_free(d);
  }
}

static void append_documents(GString *page, const char *title, const char *const *ids) {
  g_string_append_printf(page, "\n## %s\n\n", title);
  for (; *ids; ids++) {
    json_t *document = kv_hardware_document(*ids);
    const char *name = json_string_value(json_object_get(document, "name"));
    if (!g_strv_contains(kv_device_ids(), *ids))
      g_string_append_printf(page, "- `%s`: %s\n", *ids, name ? name : *ids);
    json_decref(document);
  }
}

static void append_catalogue(GString *page) {
  g_string_append(
      page,
      "# The catalogue\n\n" MADE_BY
      "What `--model` and `--platform` know by name. `kvsim show NAME` prints an entry with its sources.\n");
  append_models(page);
  append_devices(page);
  append_documents(page, "Platforms", kv_platform_ids());
  append_documents(page, "Links", kv_link_ids());
  append_documents(page, "Storage", kv_storage_ids());
}

/* Techniques. */

static void append_techniques(GString *page) {
  g_string_append(page,
                  "# Techniques\n\n" MADE_BY
                  "What `--use` takes, applied left to right: `--use gqa,snapkv:budget=1024`.\n\n"
                  "| id | year | what | changes |\n|---|---|---|---|\n");
  for (guint i = 0; kv_techniques[i]; i++) {
    const KvTechnique *t = kv_techniques[i];
    g_string_append_printf(page, "| [`%s`](%s.md) | %u | %s |%s%s%s |\n", t->id, t->id, t->year,
                           t->title, t->arch ? " architecture" : "", t->plan ? " cache" : "",
                           t->engine ? " engine" : "");
  }
}

static const struct {
  const char *name, *file;
  void (*append)(GString *page);
} pages[] = {
    {"scenario", "scenario.md", append_scenario},
    {"formats", "formats.md", append_formats},
    {"catalogue", "catalogue.md", append_catalogue},
    {"techniques", "techniques/README.md", append_techniques},
};

static gboolean write_page(const char *folder, const char *file, const char *text, GError **error) {
  g_autofree char *path = g_build_filename(folder, file, NULL);
  g_autofree char *parent = g_path_get_dirname(path);
  g_mkdir_with_parents(parent, 0777); /* if it fails, the file says so */
  return kv_output_write_file(path, text, -1, error);
}

static gboolean write_all(const char *folder, GError **error) {
  for (guint i = 0; i < G_N_ELEMENTS(pages); i++) {
    g_autoptr(GString) page = g_string_new(NULL);
    pages[i].append(page);
    if (!write_page(folder, pages[i].file, page->str, error))
      return FALSE;
  }
  for (guint i = 0; kv_techniques[i]; i++) {
    g_autofree char *file = g_strdup_printf("techniques/%s.md", kv_techniques[i]->id);
    g_autofree char *page = kv_technique_page(kv_techniques[i]);
    if (!write_page(folder, file, page, error))
      return FALSE;
  }
  return TRUE;
}

gboolean kv_command_docs(int argc, char **argv, GError **error) {
  g_autofree char *folder = NULL;
  const GOptionEntry entries[] = {
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &folder, "write every page into this folder",
       "DIR"},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  if (!kv_cli_parse(kv_command_find("docs"), entries, &argc, &argv, error))
    return FALSE;
  if (folder && argc == 1)
    return write_all(folder, error);
  const char *names[G_N_ELEMENTS(pages) + 1] = {NULL};
  for (guint i = 0; i < G_N_ELEMENTS(pages); i++) {
    names[i] = pages[i].name;
    if (argc == 2 && !folder && strcmp(argv[1], names[i]) == 0) {
      g_autoptr(GString) page = g_string_new(NULL);
      pages[i].append(page);
      fputs(page->str, stdout);
      return TRUE;
    }
  }
  g_autofree char *all = g_strjoinv("|", (char **)names);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "docs: expected -o DIR alone, or one of %s", all);
  return FALSE;
}
