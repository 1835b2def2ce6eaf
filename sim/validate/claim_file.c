/* Reading claim files. */
#include <gio/gio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/names.h"
#include "sim/validate/claims.h"

static const char RESOURCES[] = "/kvsim/claims/";

static const char *const workload_kinds[] = {"plan", "step", "batch", "load", NULL};
static const char *const phases[] = {"decode", "prefill", NULL};

static const char *const file_fields[] = {"technique", "paper", "note", "claims", NULL};
static const char *const claim_fields[] = {"id",       "metric",  "claimed", "unit",     "versus",
                                           "scenario", "with",    "without", "workload", "source",
                                           "unsaid",   "assumed", "found",   "cannot",   NULL};
static const char *const workload_fields[] = {"kind",
                                              "context_tokens",
                                              "prompt_tokens",
                                              "output_tokens",
                                              "batch",
                                              "batch_without",
                                              "phase",
                                              "trace",
                                              "shared_tokens",
                                              "requests",
                                              "rate",
                                              "slo_ttft_seconds",
                                              "slo_tpot_seconds",
                                              "attainment",
                                              "latency_per_token_seconds",
                                              NULL};

void kv_claim_free(KvClaim *claim) {
  if (!claim)
    return;
  g_free(claim->place);
  g_free(claim->technique);
  g_free(claim->paper);
  g_free(claim->id);
  g_free(claim->metric_name);
  g_free(claim->unit);
  g_free(claim->source);
  g_free(claim->unsaid);
  g_free(claim->assumed);
  g_free(claim->found);
  g_free(claim->cannot);
  g_free(claim->workload.trace);
  g_free(claim->workload.prompt_lengths);
  g_free(claim->workload.output_lengths);
  kv_scenario_free(claim->with);
  kv_scenario_free(claim->without);
  g_free(claim);
}

static char *text_of(KvJson *json, json_t *object, const char *key) {
  return g_strdup(kv_json_string(json, object, key, NULL, FALSE));
}

/* A whole number, or a distribution as `kvsim trace generate` takes it. */
static guint read_lengths(KvJson *json, json_t *object, const char *key, char **lengths) {
  json_t *value = json_object_get(object, key);
  if (json_is_string(value)) {
    *lengths = g_strdup(json_string_value(value));
    return 0;
  }
  return (guint)kv_json_integer(json, object, key, 0, 0, 100000000);
}

/* The number at `key`; the word "max" is 0, what memory holds. */
static guint read_batch(KvJson *json, json_t *object, const char *key, guint fallback) {
  json_t *value = json_object_get(object, key);
  if (json_is_string(value) && strcmp(json_string_value(value), "max") == 0)
    return 0;
  return (guint)kv_json_integer(json, object, key, fallback, 1, 10000000);
}

static void read_workload(KvJson *json, json_t *object, KvClaimWorkload *w) {
  kv_json_only(json, object, workload_fields);
  w->kind = kv_json_choice(json, object, "kind", workload_kinds, KV_CLAIM_BATCH);
  w->context_tokens = (guint)kv_json_integer(json, object, "context_tokens", 0, 1, 100000000);
  w->prompt_tokens = read_lengths(json, object, "prompt_tokens", &w->prompt_lengths);
  w->output_tokens = read_lengths(json, object, "output_tokens", &w->output_lengths);
  w->batch = read_batch(json, object, "batch", 1);
  w->batch_without = read_batch(json, object, "batch_without", w->batch);
  if (!kv_json_has(object, "batch_without"))
    w->batch_without = w->batch;
  w->prefill = kv_json_choice(json, object, "phase", phases, 0) == 1;
  w->trace = text_of(json, object, "trace");
  w->shared_tokens = (guint)kv_json_integer(json, object, "shared_tokens", 0, 0, 100000000);
  w->requests = (guint64)kv_json_integer(json, object, "requests", 500, 1, 100000000);
  w->rate = kv_json_number(json, object, "rate", 0, 1e-6, 1e6);
  w->slo_ttft_seconds = kv_json_number(json, object, "slo_ttft_seconds", 0, 0, 1e6);
  w->slo_tpot_seconds = kv_json_number(json, object, "slo_tpot_seconds", 0, 0, 1e6);
  w->latency_per_token_seconds =
      kv_json_number(json, object, "latency_per_token_seconds", 0, 0, 1e3);
  w->attainment = kv_json_number(json, object, "attainment", 0.9, 0.01, 1);
  gboolean needs_context = w->kind == KV_CLAIM_PLAN || w->kind == KV_CLAIM_STEP;
  if (needs_context && w->context_tokens == 0)
    kv_json_fail(json, object, "context_tokens", "'context_tokens' is missing, expected a length");
  gboolean has_prompt = w->prompt_tokens > 0 || w->prompt_lengths;
  gboolean has_output = w->output_tokens > 0 || w->output_lengths;
  if (!needs_context && !w->trace && !(has_prompt && has_output))
    kv_json_fail(json, object, NULL,
                 "the workload has no lengths, expected 'prompt_tokens' and 'output_tokens'");
  if (w->kind == KV_CLAIM_BATCH && (w->prompt_lengths || w->output_lengths))
    kv_json_fail(json, object, NULL, "a batch is of one shape, expected whole numbers of tokens");
}

static const KvClaimMetric *read_metric(KvJson *json, json_t *object, const char *name,
                                        KvClaimWorkloadKind kind) {
  g_autoptr(GPtrArray) known = g_ptr_array_new();
  for (const KvClaimMetric *m = kv_claim_metrics; m->name; m++) {
    if (m->kind == kind && strcmp(m->name, name) == 0)
      return m;
    if (m->kind == kind)
      g_ptr_array_add(known, (gpointer)m->name);
  }
  g_ptr_array_add(known, NULL);
  g_autofree char *unknown = kv_names_unknown("metric", name, (const char *const *)known->pdata);
  kv_json_fail(json, object, "metric", "%s, for a workload of kind '%s'", unknown,
               workload_kinds[kind]);
  return NULL;
}

/* Overlay the scenario object at `key`. */
static void overlay(KvJson *json, json_t *object, const char *key, KvScenario *scenario) {
  json_t *settings = kv_json_object(json, object, key, FALSE);
  if (!settings)
    return;
  char *text = json_dumps(settings, 0);
  g_autoptr(GError) problem = NULL;
  if (!kv_scenario_parse(scenario, key, text, strlen(text), &problem))
    kv_json_fail(json, object, key, "%s", problem->message);
  free(text);
}

static KvClaim *read_claim(KvJson *json, json_t *object, const char *technique, const char *paper) {
  KvClaim *claim = g_new0(KvClaim, 1);
  kv_json_only(json, object, claim_fields);
  claim->technique = g_strdup(technique);
  claim->paper = g_strdup(paper);
  claim->id = g_strdup(kv_json_string(json, object, "id", "", TRUE));
  claim->place = g_strdup_printf("%s: %s", kv_json_name(json), claim->id);
  claim->metric_name = g_strdup(kv_json_string(json, object, "metric", "", TRUE));
  claim->unit = g_strdup(kv_json_string(json, object, "unit", "x", FALSE));
  claim->source = g_strdup(kv_json_string(json, object, "source", "", TRUE));
  claim->unsaid = text_of(json, object, "unsaid");
  claim->assumed = text_of(json, object, "assumed");
  claim->found = text_of(json, object, "found");
  claim->cannot = text_of(json, object, "cannot");
  claim->claimed = kv_json_number(json, object, "claimed", KV_JSON_REQUIRED, 1e-12, 1e18);
  claim->is_ratio = strcmp(claim->unit, "x") == 0;
  if (claim->cannot)
    return claim;
  json_t *workload = kv_json_object(json, object, "workload", TRUE);
  if (!workload)
    return claim;
  read_workload(json, workload, &claim->workload);
  claim->metric = read_metric(json, object, claim->metric_name, claim->workload.kind);
  claim->with = kv_scenario_new();
  overlay(json, object, "scenario", claim->with);
  if (claim->is_ratio) {
    claim->without = kv_scenario_copy(claim->with);
    overlay(json, object, "without", claim->without);
  }
  overlay(json, object, "with", claim->with);
  return claim;
}

static gboolean read_file(KvJson *json, GPtrArray *claims, GError **error) {
  json_t *root = kv_json_root(json);
  kv_json_only(json, root, file_fields);
  const char *technique = kv_json_string(json, root, "technique", "", TRUE);
  const char *paper = kv_json_string(json, root, "paper", "", FALSE);
  json_t *all = kv_json_array(json, root, "claims", TRUE);
  g_autoptr(GHashTable) ids = g_hash_table_new(g_str_hash, g_str_equal);
  guint before = claims->len;
  gsize i;
  json_t *object;
  json_array_foreach(all, i, object) {
    KvClaim *claim = read_claim(json, object, technique, paper);
    g_ptr_array_add(claims, claim);
    if (!g_hash_table_add(ids, claim->id))
      kv_json_fail(json, object, "id", "two claims are called '%s', expected different ids",
                   claim->id);
  }
  if (kv_json_finish(json, error))
    return TRUE;
  g_ptr_array_set_size(claims, (gint)before);
  return FALSE;
}

gboolean kv_claims_load(const char *path, GPtrArray *claims, GError **error) {
  g_autoptr(KvJson) json = kv_json_load(path, error);
  return json && read_file(json, claims, error);
}

gboolean kv_claims_builtin(const char *technique, GPtrArray *claims, GError **error) {
  g_autofree char *path = g_strconcat(RESOURCES, technique, ".json", NULL);
  g_autoptr(GBytes) bytes = g_resources_lookup_data(path, G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);
  if (!bytes) {
    g_auto(GStrv) known = kv_claims_techniques();
    g_autofree char *unknown =
        kv_names_unknown("set of claims", technique, (const char *const *)known);
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "claims: %s (or a claim file's path)", unknown);
    return FALSE;
  }
  gsize length;
  const char *text = g_bytes_get_data(bytes, &length);
  g_autofree char *name = g_strconcat("models/claims/", technique, ".json", NULL);
  g_autoptr(KvJson) json = kv_json_parse(name, text, length, error);
  return json && read_file(json, claims, error);
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

char **kv_claims_techniques(void) {
  char **names = g_resources_enumerate_children(RESOURCES, G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);
  if (!names)
    return g_new0(char *, 1);
  for (char **name = names; *name; name++)
    (*name)[strlen(*name) - strlen(".json")] = '\0';
  qsort(names, g_strv_length(names), sizeof *names, by_name);
  return names;
}
