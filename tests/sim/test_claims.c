#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/validate/claims.h"

/* A claim file made of one claim, loaded; the file is in a folder of its own. */
static GPtrArray *load(const char *claims, GError **error) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-claims-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "claims.json", NULL);
  g_autofree char *text =
      g_strdup_printf("{\"technique\": \"kivi\",\n\"claims\": [\n%s\n]}\n", claims);
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
  g_autoptr(GPtrArray) loaded = g_ptr_array_new_with_free_func((GDestroyNotify)kv_claim_free);
  gboolean ok = kv_claims_load(path, loaded, error);
  g_unlink(path);
  g_rmdir(folder);
  return ok ? g_steal_pointer(&loaded) : NULL;
}

static KvClaimResult replay(const KvClaim *claim) {
  g_autoptr(GError) error = NULL;
  KvClaimResult result;
  g_assert_true(kv_claim_replay(claim, NULL, &result, &error));
  g_assert_no_error(error);
  return result;
}

static double simulated(const char *text) {
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) claims = load(text, &error);
  g_assert_no_error(error);
  KvClaimResult result = replay(g_ptr_array_index(claims, 0));
  g_assert_cmpstr(result.problem, ==, NULL);
  return result.simulated;
}

#define PLAN(metric, rest)                                                                         \
  "{\"id\": \"a\", \"metric\": \"" metric "\", \"claimed\": 1, \"unit\": \"bytes\", \"source\": "  \
  "\"s\", \"scenario\": {\"model\": \"llama-2-7b\"}, \"workload\": {\"kind\": \"plan\", " rest     \
  "}}"

/* Llama-2-7B: 2 * 32 layers * 4,096 * 2 bytes = 524,288 bytes a token. */
static void test_plan(void) {
  g_assert_cmpfloat(simulated(PLAN("cache_bytes", "\"context_tokens\": 1000")), ==, 524288000.0);
  g_assert_cmpfloat(simulated(PLAN("read_bytes", "\"context_tokens\": 1000, \"batch\": 3")), ==,
                    3 * 524288000.0);
}

static void test_ratio_and_batch(void) {
  const char *shape = "\"scenario\": {\"model\": \"llama-3.1-8b\", \"platform\": \"h100-sxm\"}, "
                      "\"with\": {\"use\": \"kivi\"}, \"without\": {\"use\": \"\"}";
  g_autofree char *most = g_strdup_printf(
      "{\"id\": \"a\", \"metric\": \"max_batch\", \"claimed\": 1, \"source\": \"s\", %s, "
      "\"workload\": {\"prompt_tokens\": 8000, \"output_tokens\": 192, \"batch\": \"max\"}}",
      shape);
  double ratio = simulated(most);
  /* 8,192 tokens: keys all packed (64 blocks of 128), 128 values not: 16 / (3 + 13 / 128) of the
   * bytes, less what whole blocks take. */
  g_assert_cmpfloat(ratio, >, 0.95 * 16.0 / (3.0 + 13.0 / 128.0));
  g_assert_cmpfloat(ratio, <, 1.05 * 16.0 / (3.0 + 13.0 / 128.0));
  g_autofree char *rate = g_strdup_printf(
      "{\"id\": \"a\", \"metric\": \"output_tokens_per_second\", \"claimed\": 1, \"source\": "
      "\"s\", %s, \"workload\": {\"prompt_tokens\": 1000, \"output_tokens\": 50, \"batch\": 8, "
      "\"batch_without\": 8}}",
      shape);
  g_assert_cmpfloat(simulated(rate), >, 0.5);
}

static void test_load_finds_the_rate(void) {
  const char *text =
      "{\"id\": \"a\", \"metric\": \"%s\", \"claimed\": 1, \"unit\": \"requests/s\", "
      "\"source\": \"s\", \"workload\": {\"kind\": \"load\", \"prompt_tokens\": 500, "
      "\"output_tokens\": 50, \"requests\": 600, %s}}";
  g_autofree char *goodput =
      g_strdup_printf(text, "goodput", "\"slo_ttft_seconds\": 0.5, \"slo_tpot_seconds\": 0.02");
  g_autofree char *stricter =
      g_strdup_printf(text, "goodput", "\"slo_ttft_seconds\": 0.05, \"slo_tpot_seconds\": 0.02");
  double loose = simulated(goodput), strict = simulated(stricter);
  g_assert_cmpfloat(strict, >, 0.0);
  g_assert_cmpfloat(loose, >, strict);
  g_autofree char *sustained =
      g_strdup_printf(text, "sustained_rate", "\"latency_per_token_seconds\": 0.02");
  g_assert_cmpfloat(simulated(sustained), >, 1.0);
}

static void test_what_cannot_be_had_is_said(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) claims =
      load("{\"id\": \"a\", \"metric\": \"anything\", \"claimed\": 2, \"source\": \"s\", "
           "\"cannot\": \"no shape is given\"},\n"
           "{\"id\": \"b\", \"metric\": \"step_seconds\", \"claimed\": 2, \"source\": \"s\", "
           "\"with\": {\"use\": \"no-such\"}, \"without\": {}, \"workload\": {\"kind\": "
           "\"step\", \"context_tokens\": 100}}",
           &error);
  g_assert_no_error(error);
  KvClaimResult first = replay(g_ptr_array_index(claims, 0));
  KvClaimResult second = replay(g_ptr_array_index(claims, 1));
  g_assert_cmpint(kv_claim_verdict(&first), ==, KV_VERDICT_NOT_REPLAYED);
  g_assert_cmpint(kv_claim_verdict(&second), ==, KV_VERDICT_FAILED);
  g_assert_nonnull(strstr(second.problem, "unknown technique 'no-such'"));
  kv_claim_result_clear(&second);
}

static void test_errors(void) {
  static const struct {
    const char *claims, *message;
  } cases[] = {
      {"{\"id\": \"a\", \"metric\": \"cache_bites\", \"claimed\": 1, \"source\": \"s\", "
       "\"workload\": {\"kind\": \"plan\", \"context_tokens\": 1}}",
       "unknown metric 'cache_bites', did you mean 'cache_bytes'?, for a workload of kind 'plan'"},
      {"{\"id\": \"a\", \"metric\": \"e2e_seconds\", \"claimed\": 1, \"source\": \"s\", "
       "\"workload\": {}}",
       "the workload has no lengths, expected 'prompt_tokens' and 'output_tokens'"},
      {"{\"id\": \"a\", \"metric\": \"e2e_seconds\", \"claimed\": 0, \"source\": \"s\", "
       "\"cannot\": \"x\"}",
       "'claimed' is 0"},
      {"{\"id\": \"a\", \"metric\": \"m\", \"claimed\": 1, \"source\": \"s\", \"cannot\": \"x\"}, "
       "{\"id\": \"a\", \"metric\": \"m\", \"claimed\": 1, \"source\": \"s\", \"cannot\": \"x\"}",
       "two claims are called 'a', expected different ids"},
      {"{\"id\": \"a\", \"metric\": \"e2e_seconds\", \"claimed\": 1, \"source\": \"s\", "
       "\"with\": {\"modell\": \"x\"}, \"workload\": {\"prompt_tokens\": 1, \"output_tokens\": 1}}",
       "modell"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(load(cases[i].claims, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_assert_nonnull(strstr(error->message, "claims.json:"));
    if (!strstr(error->message, cases[i].message))
      g_error("%s: %s", cases[i].message, error->message);
  }
}

static void test_summary(void) {
  KvClaim claim = {.claimed = 2.0};
  static const double values[] = {2.0, 2.2, 2.5, 4.0};
  static const KvVerdict verdicts[] = {KV_VERDICT_CLOSE, KV_VERDICT_CLOSE, KV_VERDICT_NEAR,
                                       KV_VERDICT_OFF};
  g_autoptr(GArray) results = g_array_new(FALSE, FALSE, sizeof(KvClaimResult));
  for (guint i = 0; i < G_N_ELEMENTS(values); i++) {
    KvClaimResult result = {.claim = &claim, .simulated = values[i]};
    g_assert_cmpint(kv_claim_verdict(&result), ==, verdicts[i]);
    g_array_append_val(results, result);
  }
  KvClaimSummary x = kv_claims_summarize(results);
  g_assert_cmpuint(x.replayed, ==, 4);
  g_assert_cmpuint(x.within_15, ==, 2);
  g_assert_cmpuint(x.within_30, ==, 3);
  g_assert_cmpfloat(fabs(x.median_error - (log(1.1) + log(1.25)) / 2.0), <, 1e-12);
}

/* Every built-in file reads, is of a technique that exists, and says where each figure is from. */
static void test_builtin(void) {
  g_auto(GStrv) names = kv_claims_techniques();
  g_assert_cmpuint(g_strv_length(names), >, 0);
  for (char **name = names; *name; name++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) claims = g_ptr_array_new_with_free_func((GDestroyNotify)kv_claim_free);
    g_assert_true(kv_claims_builtin(*name, claims, &error));
    g_assert_no_error(error);
    g_assert_nonnull(kv_technique_find(*name, NULL));
    for (guint i = 0; i < claims->len; i++) {
      const KvClaim *claim = g_ptr_array_index(claims, i);
      g_assert_cmpstr(claim->technique, ==, *name);
      g_assert_cmpuint(strlen(claim->source), >, 0);
    }
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/claims/plan", test_plan);
  g_test_add_func("/claims/batch", test_ratio_and_batch);
  g_test_add_func("/claims/load", test_load_finds_the_rate);
  g_test_add_func("/claims/cannot", test_what_cannot_be_had_is_said);
  g_test_add_func("/claims/errors", test_errors);
  g_test_add_func("/claims/summary", test_summary);
  g_test_add_func("/claims/built-in", test_builtin);
  return g_test_run();
}
