/* A technique's plan: caches by layers and segments on their tiers, and their readers. */
#include <string.h>

#include "viz/format.h"
#include "viz/graph.h"
#include "viz/graph_common.h"

static const char *const tier_colours[KV_N_TIERS] = {
    [KV_TIER_HBM] = "#dbeaf7", [KV_TIER_DRAM] = "#e8f3e6", [KV_TIER_CXL] = "#e8f3e6",
    [KV_TIER_SSD] = "#f7efe0", [KV_TIER_CSD] = "#f7e6e0",  [KV_TIER_REMOTE] = "#efe6f5"};
static const char *const processors[] = {"GPU", "CPU", "storage device"};

typedef struct {
  Agraph_t *graph, *tiers[KV_N_TIERS];
  double n, prompt;
} Drawing;

/* Caches that differ in their laws alone are drawn as one: layers with a budget each would fill the
 * page. The first of them stands for all. */
static gboolean alike(const KvCache *x, const KvCache *y) {
  if (x->n_segments != y->n_segments || strcmp(x->name, y->name) != 0 ||
      x->state_bytes != y->state_bytes)
    return FALSE;
  for (guint s = 0; s < x->n_segments; s++) {
    const KvSegment *a = &x->segments[s], *b = &y->segments[s];
    if (strcmp(a->name, b->name) != 0 || a->tokens.kind != b->tokens.kind || a->tier != b->tier ||
        a->key_bytes != b->key_bytes || a->value_bytes != b->value_bytes)
      return FALSE;
  }
  return TRUE;
}

/* The first cache that cache `i` is drawn with. */
static guint drawn_as(const KvPlan *plan, guint i) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
  for (guint k = 0; k < i; k++)
    if (alike(&g_array_index(plan->caches, KvCache, k), cache))
      return k;
  return i;
}

static Agraph_t *tier_frame(Drawing *d, KvTier tier) {
  if (!d->tiers[tier])
    d->tiers[tier] = kv_graph_frame(d->graph, kv_tier_names[tier], kv_tier_names[tier]);
  return d->tiers[tier];
}

static char *segment_name(guint cache, guint segment) {
  return g_strdup_printf("cache%u segment%u", cache, segment);
}

static void draw_segment(Drawing *d, const KvPlan *plan, guint i, guint s) {
  const KvCache *first = &g_array_index(plan->caches, KvCache, i);
  const KvSegment *segment = &first->segments[s];
  double bytes = 0.0, layers = 0.0, tokens = 0.0;
  for (guint k = i; k < plan->caches->len; k++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, k);
    if (drawn_as(plan, k) != i)
      continue;
    const KvSegment *x = &cache->segments[s];
    double held = kv_law_value(&x->tokens, d->n, d->prompt, TRUE, NULL, NULL);
    bytes += cache->layers * held * (x->key_bytes + x->value_bytes + x->metadata_bytes);
    layers += cache->layers;
    tokens += cache->layers * held;
  }
  g_autofree char *law = kv_law_describe(&segment->tokens);
  g_autofree char *size = kv_format(KV_UNIT_BYTES, bytes);
  g_autofree char *by = segment->quantizer ? g_strdup_printf(", by %s", segment->quantizer) : NULL;
  g_autofree char *label = g_strdup_printf(
      "%s\\n%.0f layers, %s\\n%.0f tokens a layer, %s%s\\n%s", segment->name, layers, law,
      layers > 0.0 ? tokens / layers : 0.0, kv_dtype_names[segment->format], by ? by : "", size);
  g_autofree char *name = segment_name(i, s);
  kv_graph_box(tier_frame(d, segment->tier), name, label, tier_colours[segment->tier]);
}

static void draw_caches(Drawing *d, const KvPlan *plan) {
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    if (drawn_as(plan, i) != i)
      continue;
    for (guint s = 0; s < cache->n_segments; s++)
      draw_segment(d, plan, i, s);
    if (cache->state_bytes > 0.0) {
      g_autofree char *size = kv_format(KV_UNIT_BYTES, cache->layers * cache->state_bytes);
      g_autofree char *label = g_strdup_printf("%s\\n%u layers, read and written each step\\n%s",
                                               cache->name, cache->layers, size);
      g_autofree char *name = segment_name(i, KV_MAX_SEGMENTS);
      kv_graph_box(tier_frame(d, KV_TIER_HBM), name, label, tier_colours[KV_TIER_HBM]);
    }
  }
}

/* Readers of caches that are drawn as one, on one processor, are one box. */
static void draw_readers(Drawing *d, const KvPlan *plan) {
  for (guint r = 0; r < plan->readers->len; r++) {
    const KvReader *reader = &g_array_index(plan->readers, KvReader, r);
    guint cache = drawn_as(plan, reader->cache);
    const KvCache *of = &g_array_index(plan->caches, KvCache, reader->cache);
    g_autofree char *name =
        g_strdup_printf("reader of %u on %s", cache, processors[reader->processor]);
    gboolean again = agnode(d->graph, name, FALSE) != NULL;
    g_autofree char *label =
        g_strdup_printf("attention on the %s\\n%u KV heads%s%s", processors[reader->processor],
                        reader->n_kv_heads, reader->rebuild_rank > 0.0 ? ", rebuilt from rank" : "",
                        reader->index_bytes_per_token > 0.0 ? ", chosen by an index" : "");
    Agnode_t *node = kv_graph_box(d->graph, name, label, "#fdf6d8");
    for (guint s = 0; s < of->n_segments && !again; s++) {
      g_autofree char *segment = segment_name(cache, s);
      Agnode_t *from = agnode(d->graph, segment, FALSE);
      double tokens = kv_law_value(&reader->read[s], d->n, d->prompt, TRUE, NULL, NULL);
      if (!from || tokens <= 0.0)
        continue;
      g_autofree char *read = g_strdup_printf("%.0f tokens a layer", tokens);
      kv_graph_edge(d->graph, from, node, read, FALSE);
    }
  }
}

static void draw_work(Drawing *d, const KvPlan *plan) {
  for (guint i = 0; i < plan->work->len; i++) {
    const KvWork *work = &g_array_index(plan->work, KvWork, i);
    g_autofree char *name = g_strdup_printf("work%u", i);
    g_autofree char *often =
        work->every_steps > 1 ? g_strdup_printf(", one in %u", work->every_steps) : g_strdup("");
    g_autofree char *label =
        g_strdup_printf("%s\\n%s%s, %s%s", work->name, kv_moment_names[work->moment], often,
                        processors[work->processor], work->critical ? "" : ", beside the step");
    kv_graph_box(kv_graph_frame(d->graph, "work", "work of the technique"), name, label, "#f2f5f8");
  }
}

char *kv_graph_plan(const KvModel *model, const KvPlan *plan, const char *stack, guint context,
                    guint prompt, GError **error) {
  KvPlanCurves *curves = g_new(KvPlanCurves, 1);
  gboolean compiled = kv_plan_compile(plan, curves, error);
  if (!compiled) {
    g_free(curves);
    return NULL;
  }
  KvPlanCost cost = kv_plan_cost(plan, curves, context, prompt, TRUE);
  g_free(curves);
  g_autofree char *read = kv_format(KV_UNIT_BYTES, cost.read_bytes);
  g_autofree char *fetched = kv_format(KV_UNIT_BYTES, cost.fetched_bytes);
  g_autofree char *title = g_strdup_printf(
      "%s, %s: one sequence of %u tokens\\na decode step reads %s from HBM and fetches %s",
      model->id, *stack ? stack : "unchanged", context, read, fetched);
  Drawing d = {.graph = kv_graph_new(title, "LR"), .n = context, .prompt = prompt};
  draw_caches(&d, plan);
  draw_readers(&d, plan);
  draw_work(&d, plan);
  return kv_graph_text(d.graph);
}
