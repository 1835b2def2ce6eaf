#include <string.h>

#include "fixtures.h"
#include "viz/words.h"

static void expect_limit(const KvSummary *run, const char *part) {
  g_autofree char *limit = kv_words_limit(run);
  if (!strstr(limit, part))
    g_error("'%s' does not say '%s'", limit, part);
}

static void says_what_limits(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autoptr(KvSummary) slower = fixture_slower();
  g_autoptr(KvSummary) empty = fixture_empty();
  expect_limit(empty, "No request finished");
  expect_limit(run, "kept up with the load; its pace is set by memory bandwidth");
  expect_limit(slower, "memory for the KV cache");
  run->peak_blocks_held_share = 0.8;
  run->latency[KV_LATENCY_QUEUE].mean = 2;
  expect_limit(run, "Limited by memory bandwidth");
  run->mfu = 0.7;
  expect_limit(run, "arithmetic");
  run->component_seconds[KV_COMPONENT_TRANSFER] = 5000;
  expect_limit(run, "lower tiers");
  run->component_seconds[KV_COMPONENT_COMMUNICATION] = 50000;
  run->component_seconds[KV_COMPONENT_TRANSFER] = 0;
  expect_limit(run, "communication");
  run->component_seconds[KV_COMPONENT_COMMUNICATION] = 0;
  run->component_seconds[KV_COMPONENT_LAUNCH] = 50000;
  expect_limit(run, "launches");
}

static void the_headline_has_the_numbers(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  g_autofree char *text = kv_words_headline(run);
  g_assert_cmpstr(
      text, ==,
      "llama-3.1-8b on h200 served 19,366 requests in 60.0 min: a first token after 45.0 ms "
      "(median), then one every 13.2 ms; 1,136 output tokens per second. The GPU was busy for "
      "61.0 % of the time, and spent 38.0 % of that on: MLP.");
}

static void one_request_has_no_gaps(void) {
  g_autoptr(KvSummary) run = fixture_single();
  g_autofree char *text = kv_words_headline(run);
  g_assert_nonnull(strstr(text, "served 1 request in 18.3 ms"));
  g_assert_null(strstr(text, "then one every"));
}

static gboolean any_says(char **sentences, const char *part) {
  for (guint i = 0; sentences[i]; i++)
    if (strstr(sentences[i], part))
      return TRUE;
  return FALSE;
}

static void the_explanation_follows_the_numbers(void) {
  g_autoptr(KvSummary) slower = fixture_slower();
  g_autoptr(KvSummary) empty = fixture_empty();
  g_auto(GStrv) said = kv_words_explain(slower);
  g_assert_true(any_says(said, "Memory ran out 412 times"));
  g_assert_true(any_says(said, "new requests had to wait for blocks"));
  g_assert_true(any_says(said, "reading memory costs more time"));
  slower->peak_blocks_held_share = 0.5;
  g_auto(GStrv) roomy = kv_words_explain(slower);
  g_assert_true(any_says(roomy, "never more than 50.0 % in use"));
  g_auto(GStrv) nothing = kv_words_explain(empty);
  g_assert_true(any_says(nothing, "2 requests were rejected"));
  g_assert_cmpuint(g_strv_length(nothing), ==, 1);
}

static void replicas_are_named(void) {
  g_autoptr(KvSummary) run = fixture_normal();
  run->n_instances = 4, run->tensor_parallel = 2;
  g_autofree char *text = kv_words_platform(run);
  g_assert_cmpstr(text, ==, "h200, 4 replicas of TP 2");
  run->n_instances = 1;
  g_autofree char *alone = kv_words_platform(run);
  g_assert_cmpstr(alone, ==, "h200, TP 2");
  run->n_roles = 2;
  run->roles[0] = (KvRoleSummary){.instances = 1, .tensor_parallel = 2};
  run->roles[1] = (KvRoleSummary){.instances = 3, .tensor_parallel = 1};
  g_autofree char *apart = kv_words_platform(run);
  g_assert_cmpstr(apart, ==, "h200, 1 for prompts of TP 2 and 3 for answers of TP 1");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/viz/words/limit", says_what_limits);
  g_test_add_func("/viz/words/headline", the_headline_has_the_numbers);
  g_test_add_func("/viz/words/one-request", one_request_has_no_gaps);
  g_test_add_func("/viz/words/explain", the_explanation_follows_the_numbers);
  g_test_add_func("/viz/words/platform", replicas_are_named);
  return g_test_run();
}
