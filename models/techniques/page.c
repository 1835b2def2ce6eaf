#include <math.h>
#include <string.h>

#include "models/techniques/technique.h"

static void append_range(GString *page, const KvParam *param) {
  switch (param->kind) {
  case KV_PARAM_CHOICE: {
    g_autofree char *choices = g_strjoinv(", ", (char **)param->choices);
    g_string_append_printf(page, "%s | %s", param->choices[(guint)param->fallback], choices);
    return;
  }
  case KV_PARAM_FLAG:
    g_string_append_printf(page, "%s | on, off", param->fallback != 0.0 ? "on" : "off");
    return;
  case KV_PARAM_INTEGER:
  case KV_PARAM_REAL:
    break;
  }
  g_string_append_printf(page, "%.10g | %.10g to %.10g", param->fallback, param->min, param->max);
}

static void append_params(GString *page, const KvTechnique *x) {
  if (!x->params || !x->params[0].name)
    return;
  g_string_append(page, "## Parameters\n\n| name | default | range | unit | meaning |\n"
                        "|---|---|---|---|---|\n");
  for (const KvParam *param = x->params; param->name; param++) {
    g_string_append_printf(page, "| `%s` | ", param->name);
    append_range(page, param);
    g_string_append_printf(page, " | %s | %s |\n", param->unit ? param->unit : "", param->help);
  }
  g_string_append_printf(page, "\nUse: `--use %s:%s=...`\n\n", x->id, x->params[0].name);
}

static void append_formulas(GString *page, const KvTechnique *x) {
  if (!x->formulas || !x->formulas[0].symbolic)
    return;
  g_string_append(
      page, "## Formulas\n\nL layers, D hidden size, H query heads, Hkv KV heads, d head size, E "
            "intermediate size, e bytes per element, n context length, p prompt length (for "
            "paged memory: tokens per block), g generated tokens, s prompt tokens of a batch.\n\n");
  for (const KvFormula *formula = x->formulas; formula->symbolic; formula++)
    g_string_append_printf(page, "- `%s`: %s\n", formula->symbolic, formula->what);
  g_string_append_c(page, '\n');
}

static void append_quality(GString *page, const KvTechnique *x) {
  g_string_append(page, "## Quality\n\n");
  if (!x->quality || !x->quality[0].model) {
    g_string_append(page, "Exact: outputs equal those of dense attention, up to the order of "
                          "floating-point sums.\n\n");
    return;
  }
  g_string_append(page, "| model | task | setting | unchanged | with it | source |\n"
                        "|---|---|---|---|---|---|\n");
  for (const KvQualityPoint *point = x->quality; point->model; point++)
    g_string_append_printf(page, "| %s | %s | %s | %.10g | %.10g | %s |\n", point->model,
                           point->task, point->setting, point->baseline, point->value,
                           point->source);
  g_string_append_c(page, '\n');
}

static void append_section(GString *page, const char *title, const char *text) {
  if (text)
    g_string_append_printf(page, "## %s\n\n%s\n\n", title, text);
}

char *kv_technique_page(const KvTechnique *x) {
  static const struct {
    const char *what;
    gsize offset;
  } changes[] = {
      {"the architecture", G_STRUCT_OFFSET(KvTechnique, arch)},
      {"the KV plan", G_STRUCT_OFFSET(KvTechnique, plan)},
      {"the engine", G_STRUCT_OFFSET(KvTechnique, engine)},
  };
  GString *page = g_string_new(NULL);
  g_string_append_printf(page, "# %s\n\n*%s* (%u)\n\n", x->name, x->title, x->year);
  for (guint i = 0; x->sections && x->sections[i]; i++)
    g_string_append_printf(page, "- Survey: %s\n", x->sections[i]);
  g_string_append(page, "- Changes:");
  const char *comma = " ";
  for (guint i = 0; i < G_N_ELEMENTS(changes); i++) {
    if (G_STRUCT_MEMBER(gpointer, x, changes[i].offset)) {
      g_string_append_printf(page, "%s%s", comma, changes[i].what);
      comma = ", ";
    }
  }
  g_string_append_printf(page, "\n- Paper: %s\n", x->paper);
  g_string_append_printf(page, "- Code: %s\n\n", x->code ? x->code : "none released");
  append_section(page, "How it works", x->mechanism);
  append_params(page, x);
  append_formulas(page, x);
  append_quality(page, x);
  append_section(page, "Composes with", x->composes);
  append_section(page, "Pitfalls", x->pitfalls);
  append_section(page, "Confidence", x->confidence);
  g_string_truncate(page, page->len - 1);
  return g_string_free(page, FALSE);
}
