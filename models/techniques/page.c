#include <math.h>

#include "models/techniques/technique.h"

/* The sample of every page: the shape of Llama-2-7B, fp16, a prompt of 3500 tokens and 500
 * generated ones. */
enum { SAMPLE_PROMPT_TOKENS = 3500, SAMPLE_TOKENS = 4000 };

static KvPlan *sample_plan(const char *stack_text) {
  KvLayerGroup group = {.count = 32,
                        .attention = {.kind = KV_ATTENTION_FULL,
                                      .n_heads = 32,
                                      .n_kv_heads = 32,
                                      .head_dim = 128,
                                      .value_head_dim = 128},
                        .mlp = {.intermediate = 11008, .gated = TRUE}};
  KvModel model = {.id = "llama-2-7b",
                   .hidden = 4096,
                   .vocab = 32000,
                   .embedding_dim = 4096,
                   .max_context_tokens = 4096,
                   .weight_dtype = KV_DTYPE_FP16,
                   .n_groups = 1,
                   .groups = &group};
  KvEngineConfig config;
  kv_engine_config_init(&config);
  g_autoptr(KvStack) stack = kv_stack_parse(stack_text, NULL);
  g_autoptr(KvModel) copy = kv_model_copy(&model); /* architecture techniques move its groups */
  return stack ? kv_stack_apply(stack, copy, KV_DTYPE_FP16, &config, NULL) : NULL;
}

static void append_segment(GString *page, const KvSegment *segment, double total_bytes,
                           double layers) {
  double tokens =
      kv_law_value(&segment->tokens, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS, TRUE, NULL, NULL);
  double bytes = segment->key_bytes + segment->value_bytes + segment->metadata_bytes;
  double share = tokens * bytes * layers / total_bytes;
  g_autofree char *law = kv_law_describe(&segment->tokens);
  g_autofree char *bar = g_strnfill((gsize)ceil(40.0 * share), '#');
  g_string_append_printf(page, "| %s | %s | %.0f | %.10g | %s | `%s` |\n", segment->name, law,
                         tokens, bytes, kv_tier_names[segment->tier], bar);
}

/* What is stored, as a table with a bar per segment as long as its share of the unchanged cache. */
static void append_plan(GString *page, const KvTechnique *x) {
  g_autoptr(KvPlan) unchanged = sample_plan("");
  g_autoptr(KvPlan) plan = sample_plan(x->id);
  if (!plan || (!x->plan && !x->arch))
    return;
  KvPlanCurves before, after;
  if (!kv_plan_compile(unchanged, &before, NULL) || !kv_plan_compile(plan, &after, NULL))
    return;
  double total = kv_plan_cost(unchanged, &before, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS, TRUE)
                     .resident_bytes[KV_TIER_HBM];
  KvPlanCost cost = kv_plan_cost(plan, &after, SAMPLE_TOKENS, SAMPLE_PROMPT_TOKENS, TRUE);
  g_string_append_printf(
      page,
      "## Its plan\n\nThe cache of one sequence with a prompt of %d tokens and %d "
      "generated ones, of a model shaped like Llama-2-7B (fp16). A bar of 40 "
      "is the unchanged cache, %.1f MB.\n\n| segment | tokens | now | bytes per "
      "token and layer | tier | share |\n|---|---|---|---|---|---|\n",
      SAMPLE_PROMPT_TOKENS, SAMPLE_TOKENS - SAMPLE_PROMPT_TOKENS, total / 1e6);
  double stored = 0.0;
  for (guint t = 0; t < KV_N_TIERS; t++)
    stored += cost.resident_bytes[t];
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    for (guint s = 0; s < cache->n_segments; s++)
      append_segment(page, &cache->segments[s], total, cache->layers);
  }
  g_string_append_printf(page,
                         "\nStored: %.1f MB, %.1f %% of it. A decode step reads %.1f MB from "
                         "HBM and fetches %.1f MB from lower tiers.\n\n",
                         stored / 1e6, 100.0 * stored / total, cost.read_bytes / 1e6,
                         cost.fetched_bytes / 1e6);
}

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
  if (x->quality_note)
    g_string_append_printf(page, "%s\n\n", x->quality_note);
  if (x->quality_note && !x->quality[0].model)
    return;
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
  append_plan(page, x);
  append_params(page, x);
  append_formulas(page, x);
  append_quality(page, x);
  append_section(page, "Composes with", x->composes);
  append_section(page, "Pitfalls", x->pitfalls);
  append_section(page, "Confidence", x->confidence);
  g_string_truncate(page, page->len - 1);
  return g_string_free(page, FALSE);
}
