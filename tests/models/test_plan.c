#include <math.h>

#include "models/techniques/build.h"
#include "sim/base/random.h"

/* Models by hand, so that no figure here depends on the catalogue. */
static KvLayerGroup groups[2];

static KvModel model_of(guint n_groups) {
  return (KvModel){.id = "by hand",
                   .max_context_tokens = 4096,
                   .weight_dtype = KV_DTYPE_BF16,
                   .n_groups = n_groups,
                   .groups = groups};
}

static KvModel full_model(guint layers, guint heads, guint kv_heads) {
  groups[0] = (KvLayerGroup){.count = layers,
                             .attention = {.kind = KV_ATTENTION_FULL,
                                           .n_heads = heads,
                                           .n_kv_heads = kv_heads,
                                           .head_dim = 128,
                                           .value_head_dim = 128}};
  return model_of(1);
}

static double value(KvLaw law, double n, double prompt, gboolean decoding) {
  return kv_law_value(&law, n, prompt, decoding, NULL, NULL);
}

static void test_law_values(void) {
  g_assert_cmpfloat(value(kv_law(KV_LAW_ALL, 0), 500, 0, TRUE), ==, 500);
  g_assert_cmpfloat(value(kv_law(KV_LAW_FIXED, 7), 500, 0, TRUE), ==, 7);
  g_assert_cmpfloat(value(kv_law(KV_LAW_FIRST, 4), 3, 0, TRUE), ==, 3);
  g_assert_cmpfloat(value(kv_law(KV_LAW_FIRST, 4), 500, 0, TRUE), ==, 4);
  g_assert_cmpfloat(value(kv_law(KV_LAW_LAST, 128), 500, 0, TRUE), ==, 128);
  g_assert_cmpfloat(value(kv_law(KV_LAW_BEYOND, 128), 500, 0, TRUE), ==, 372);
  g_assert_cmpfloat(value(kv_law(KV_LAW_BEYOND, 128), 100, 0, TRUE), ==, 0);
  g_assert_cmpfloat(value(kv_law(KV_LAW_FLUSHED, 128), 500, 0, TRUE), ==, 384);
  g_assert_cmpfloat(value(kv_law(KV_LAW_FLUSHED, 128), 512, 0, TRUE), ==, 512);
  g_assert_cmpfloat(value(kv_law(KV_LAW_PENDING, 128), 500, 0, TRUE), ==, 116);
  g_assert_cmpfloat(value(kv_law(KV_LAW_PENDING, 128), 512, 0, TRUE), ==, 0);
  g_assert_cmpfloat(value(kv_law(KV_LAW_PROMPT_CAPPED, 2048), 3000, 5000, FALSE), ==, 3000);
  g_assert_cmpfloat(value(kv_law(KV_LAW_PROMPT_CAPPED, 2048), 5100, 5000, TRUE), ==, 2148);
  g_assert_cmpfloat(value(kv_law(KV_LAW_PROMPT_CAPPED, 2048), 1100, 1000, TRUE), ==, 1100);
}

static void test_scale_cap_and_kept_prompt(void) {
  KvLaw law = kv_law(KV_LAW_ALL, 0);
  law.scale = 0.25;
  law.cap = 100;
  g_assert_cmpfloat(value(law, 200, 0, TRUE), ==, 50);
  g_assert_cmpfloat(value(law, 500, 0, TRUE), ==, 100);
  law = kv_law(KV_LAW_FLUSHED, 128);
  law.kept_prompt = 1024;
  g_assert_cmpfloat(value(law, 5000, 5000, FALSE), ==, 39 * 128);
  g_assert_cmpfloat(value(law, 5300, 5000, TRUE), ==, 1280); /* 1324 tokens left */
}

static void test_valid_tokens_end_where_the_slope_changes(void) {
  static const struct {
    KvLawKind kind;
    double a, n, slope, valid;
  } cases[] = {
      {KV_LAW_ALL, 0, 9, 1, G_MAXDOUBLE},
      {KV_LAW_FIXED, 3, 9, 0, G_MAXDOUBLE},
      {KV_LAW_LAST, 128, 100, 1, 28},
      {KV_LAW_LAST, 128, 128, 0, G_MAXDOUBLE},
      {KV_LAW_BEYOND, 128, 100, 0, 28},
      {KV_LAW_BEYOND, 128, 128, 1, G_MAXDOUBLE},
      {KV_LAW_FLUSHED, 128, 256, 0, 127},
      {KV_LAW_FLUSHED, 128, 383, 0, 0},
      {KV_LAW_PENDING, 128, 300, 1, 83},
      {KV_LAW_PENDING, 1, 300, 0, G_MAXDOUBLE},
      {KV_LAW_PROMPT_CAPPED, 64, 300, 1, G_MAXDOUBLE},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    KvLaw law = kv_law(cases[i].kind, cases[i].a);
    double slope, valid;
    kv_law_value(&law, cases[i].n, 50, TRUE, &slope, &valid);
    g_assert_cmpfloat(slope, ==, cases[i].slope);
    g_assert_cmpfloat(valid, ==, cases[i].valid);
  }
}

/* What lets the engine advance many tokens at once: within the valid range the line is the law. */
static void test_lines_are_exact_where_valid(void) {
  KvRandom random;
  kv_random_seed(&random, 1, 0);
  for (guint trial = 0; trial < 20000; trial++) {
    KvLaw law = kv_law((KvLawKind)kv_random_integer(&random, 0, KV_LAW_PROMPT_CAPPED),
                       (double)kv_random_integer(&random, 1, 300));
    static const double scales[] = {1, 0.5, 0.25, 0};
    law.scale = scales[kv_random_integer(&random, 0, 3)];
    if (kv_random_integer(&random, 0, 1))
      law.cap = (double)kv_random_integer(&random, 0, 200);
    if (kv_random_integer(&random, 0, 2) == 0)
      law.kept_prompt = (double)kv_random_integer(&random, 1, 200);
    double prompt = (double)kv_random_integer(&random, 1, 400);
    gboolean decoding = kv_random_integer(&random, 0, 1) != 0;
    double n = decoding ? prompt + (double)kv_random_integer(&random, 0, 400) : prompt;
    double slope, valid, here = kv_law_value(&law, n, prompt, decoding, &slope, &valid);
    g_assert_cmpfloat(valid, >=, 0);
    for (guint i = 0; i <= MIN(valid, 500); i++)
      g_assert_cmpfloat_with_epsilon(value(law, n + i, prompt, decoding), here + i * slope, 1e-9);
  }
}

/* Nothing of a window has no end, so it must not stop the engine where the window fills. */
static void test_nothing_is_valid_for_ever(void) {
  KvLaw law = kv_law(KV_LAW_LAST, 128);
  law.scale = 0;
  double slope, valid;
  g_assert_cmpfloat(kv_law_value(&law, 100, 0, TRUE, &slope, &valid), ==, 0);
  g_assert_cmpfloat(slope, ==, 0);
  g_assert_cmpfloat(valid, ==, G_MAXDOUBLE);
}

static void test_describe(void) {
  KvLaw law = kv_law(KV_LAW_LAST, 128);
  g_autofree char *last = kv_law_describe(&law);
  g_assert_cmpstr(last, ==, "last 128");
  law = kv_law(KV_LAW_ALL, 0);
  law.scale = 0.2;
  g_autofree char *share = kv_law_describe(&law);
  g_assert_cmpstr(share, ==, "20 % of all");
}

static void test_full_attention(void) {
  KvModel model = full_model(32, 32, 8);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  g_autoptr(GError) error = NULL;
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, &error));
  g_assert_no_error(error);
  g_assert_cmpuint(curves.n_channels, ==, 1);
  g_assert_true(curves.is_affine_forever);
  g_assert_cmpfloat(curves.readers[0].terms[0].tokens, ==, 1);
  KvPlanCost cost = kv_plan_cost(plan, &curves, 1000, 800, TRUE);
  double kappa = 2.0 * 32 * 8 * 128 * 2;
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_HBM], ==, 1000 * kappa);
  g_assert_cmpfloat(cost.read_bytes, ==, 1000 * kappa);
  g_assert_cmpfloat(cost.written_bytes, ==, kappa);
  g_assert_cmpfloat(cost.attention_flops, ==, 4.0 * 32 * 32 * 128 * 1000);
  g_assert_cmpfloat(cost.fetched_bytes, ==, 0);
}

static void test_sliding_and_recurrent_groups(void) {
  KvModel model = full_model(6, 8, 4);
  groups[0].attention.kind = KV_ATTENTION_SLIDING;
  groups[0].attention.window_tokens = 1024;
  groups[1] =
      (KvLayerGroup){.count = 10, .attention = {.kind = KV_ATTENTION_NONE, .state_elements = 5000}};
  model.n_groups = 2;
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  g_assert_cmpuint(plan->caches->len, ==, 2);
  g_assert_cmpuint(curves.n_readers, ==, 1);
  g_assert_false(curves.is_affine_forever);
  g_assert_false(plan->shareable);
  double window = 6.0 * 2 * 4 * 128 * 2, state = 10.0 * 5000 * 2;
  KvPlanCost cost = kv_plan_cost(plan, &curves, 9000, 100, TRUE);
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_HBM], ==, 1024 * window + state);
  g_assert_cmpfloat(cost.read_bytes, ==, 1024 * window + state);
  g_assert_cmpfloat(cost.written_bytes, ==, window + state);
}

/* DeepSeek-V3's attention: 576 elements a token and layer, and FLOPs of the absorbed form. */
static void test_latent_attention(void) {
  KvModel model = full_model(61, 128, 128);
  groups[0].attention.kind = KV_ATTENTION_LATENT;
  groups[0].attention.kv_lora_rank = 512;
  groups[0].attention.rope_head_dim = 64;
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  KvPlanCost cost = kv_plan_cost(plan, &curves, 2000, 1000, TRUE);
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_HBM], ==, 61.0 * 576 * 2 * 2000);
  g_assert_cmpfloat(cost.attention_flops, ==, 61.0 * 2 * 128 * (2 * 512 + 64) * 2000);
  g_assert_cmpuint(g_array_index(plan->readers, KvReader, 0).n_kv_heads, ==, 1);
}

static void test_lower_tiers(void) {
  KvModel model = full_model(10, 8, 8);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvPlanCurves curves;
  double kappa = 10.0 * 2 * 8 * 128 * 2;
  g_array_index(plan->caches, KvCache, 0).segments[0].tier = KV_TIER_DRAM;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  KvPlanCost cost = kv_plan_cost(plan, &curves, 100, 50, TRUE);
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_DRAM], ==, 100 * kappa);
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_HBM], ==, 0);
  g_assert_cmpfloat(cost.fetched_bytes, ==, 100 * kappa);
  g_assert_cmpfloat(cost.read_bytes, ==, 100 * kappa);
  g_array_index(plan->readers, KvReader, 0).processor = KV_PROCESSOR_CPU;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  cost = kv_plan_cost(plan, &curves, 100, 50, TRUE);
  g_assert_cmpfloat(cost.fetched_bytes, ==, 0);
  g_assert_cmpfloat(cost.read_bytes, ==, 0);
  g_assert_cmpfloat(curves.readers[0].terms[0].host_bytes, ==, kappa);
}

static void test_index_and_scaled_reads(void) {
  KvModel model = full_model(10, 8, 2);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvReader *reader = &g_array_index(plan->readers, KvReader, 0);
  reader->read[0].cap = 256; /* the best 256 tokens */
  reader->read_bytes_scale = 4;
  reader->extra_bytes_per_token = 12;
  reader->index_bytes_per_token = 16;
  reader->index_flops_per_token = 32;
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  g_assert_cmpuint(curves.n_channels, ==, 2);
  KvPlanCost cost = kv_plan_cost(plan, &curves, 1000, 50, TRUE);
  g_assert_cmpfloat(cost.read_bytes, ==, 10.0 * (256 * (2 * 2 * 128 * 2 * 4 + 12) + 1000 * 16));
  g_assert_cmpfloat(cost.attention_flops, ==, 10.0 * (256 * 4 * 8 * 128 + 1000 * 32));
}

/* A new token goes to the most recent role whatever the order of segments, and shares of tiers are
 * a mean. */
static void test_written_bytes(void) {
  KvModel model = full_model(10, 8, 2);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvCache *cache = &g_array_index(plan->caches, KvCache, 0);
  cache->n_segments = 3;
  cache->segments[0].role = KV_ROLE_RECENT;
  cache->segments[0].tokens.scale = 0.25;
  cache->segments[1] = cache->segments[0];
  cache->segments[1].tier = KV_TIER_DRAM;
  cache->segments[2] = cache->segments[0];
  cache->segments[2].role = KV_ROLE_MIDDLE;
  cache->segments[2].key_bytes = cache->segments[2].value_bytes = 1;
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  g_assert_cmpfloat(kv_plan_cost(plan, &curves, 100, 50, TRUE).written_bytes, ==,
                    10.0 * 2 * 2 * 128 * 2);
}

static void test_too_many_laws(void) {
  KvModel model = full_model(1, 8, 8);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  g_autoptr(GError) error = NULL;
  for (guint i = 0; i <= KV_MAX_CHANNELS; i++) {
    KvCache cache = g_array_index(plan->caches, KvCache, 0);
    cache.segments[0].tokens = kv_law(KV_LAW_LAST, i + 1);
    g_array_append_val(plan->caches, cache);
  }
  KvPlanCurves curves;
  g_assert_false(kv_plan_compile(plan, &curves, &error));
  g_assert_cmpstr(error->message, ==,
                  "the plan has more than 160 different token laws, expected a simpler stack");
}

static void test_evicted_by_a_share_of_the_prompt(void) {
  KvLaw law = kv_law(KV_LAW_EVICTED, 4);
  law.prompt_share = 0.2;
  g_assert_cmpfloat(value(law, 900, 1000, FALSE), ==, 900);
  g_assert_cmpfloat(value(law, 1000, 1000, TRUE), ==, 204);
  g_assert_cmpfloat(value(law, 5000, 1000, TRUE), ==, 204);
  g_autofree char *text = kv_law_describe(&law);
  g_assert_cmpstr(text, ==, "at most (4 and 20 % of the prompt) once the prompt is done");
}

static void test_nothing_up_to_a_length_and_all_beyond_it(void) {
  KvLaw law = kv_law(KV_LAW_OVER, 100);
  double slope, valid;
  g_assert_cmpfloat(kv_law_value(&law, 60, 0, TRUE, &slope, &valid), ==, 0);
  g_assert_cmpfloat(slope, ==, 0);
  g_assert_cmpfloat(valid, ==, 40);
  g_assert_cmpfloat(kv_law_value(&law, 101, 0, TRUE, &slope, &valid), ==, 101);
  g_assert_cmpfloat(slope, ==, 1);
  g_assert_cmpfloat(valid, ==, G_MAXDOUBLE);
}

static void test_short_prompts_are_cut_by_a_rule_of_their_own(void) {
  KvLaw law = kv_law(KV_LAW_PROMPT_CAPPED, 30);
  law.short_prompt = 200;
  law.short_kept = 80;
  g_assert_cmpfloat(value(law, 210, 200, TRUE), ==, 40); /* 30 and 10 generated */
  g_assert_cmpfloat(value(law, 209, 199, TRUE), ==, 90); /* 80 and 10 */
  g_assert_cmpfloat(value(law, 60, 50, TRUE), ==, 60);
  law = kv_law(KV_LAW_LAST, 70);
  law.kept_prompt = 30;
  law.short_prompt = 200;
  law.short_kept = 80;
  g_assert_cmpfloat(value(law, 210, 200, TRUE), ==, 40);
  g_assert_cmpfloat(value(law, 209, 199, TRUE), ==, 70);
}

static void test_an_index_is_read_beyond_a_length_only(void) {
  KvModel model = full_model(4, 8, 2);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvReader *reader = &g_array_index(plan->readers, KvReader, 0);
  reader->index_bytes_per_token = 10;
  reader->index_flops_per_token = 3;
  reader->index_over_tokens = 100;
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  double token = 2.0 * 2 * 128 * 2, flops = 4.0 * 8 * 128;
  g_assert_cmpfloat(kv_plan_cost(plan, &curves, 100, 50, TRUE).read_bytes, ==, 100 * 4 * token);
  KvPlanCost cost = kv_plan_cost(plan, &curves, 101, 50, TRUE);
  g_assert_cmpfloat(cost.read_bytes, ==, 101 * 4 * (token + 10));
  g_assert_cmpfloat(cost.attention_flops, ==, 101 * 4 * (flops + 3));
}

/* Eight layers read what sixteen store: after all are split none is left with a reader of no layer.
 */
static void test_split_layers_keep_their_readers_share(void) {
  KvModel model = full_model(16, 8, 2);
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  g_array_index(plan->readers, KvReader, 0).layers = 8;
  guint layers = 0;
  for (guint i = 0; i < 15; i++)
    kv_plan_split_layers(plan, 0, 1);
  for (guint r = 0; r < plan->readers->len; r++) {
    g_assert_cmpuint(g_array_index(plan->readers, KvReader, r).layers, >, 0);
    layers += g_array_index(plan->readers, KvReader, r).layers;
  }
  g_assert_cmpuint(layers, ==, 8);
  g_assert_cmpuint(plan->caches->len, ==, 16);
}

static void test_borrowed_cache_is_stored_once_and_read_by_all(void) {
  KvModel model = full_model(4, 8, 2);
  groups[1] = groups[0];
  groups[1].count = 12;
  groups[1].attention.borrows_cache = TRUE;
  model.n_groups = 2;
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  KvPlanCost cost = kv_plan_cost(plan, &curves, 100, 50, TRUE);
  double token = 2.0 * 2 * 128 * 2; /* a layer's keys and values */
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_HBM], ==, 100 * 4 * token);
  g_assert_cmpfloat(cost.read_bytes, ==, 100 * 16 * token);
}

static void test_layers_that_run_once_in_four_tokens(void) {
  KvModel model = full_model(4, 8, 2);
  groups[0].stride_tokens = 4;
  g_autoptr(KvPlan) plan = kv_plan_new(&model, KV_DTYPE_BF16);
  groups[0].stride_tokens = 0;
  KvPlanCurves curves;
  g_assert_true(kv_plan_compile(plan, &curves, NULL));
  KvPlanCost cost = kv_plan_cost(plan, &curves, 100, 50, TRUE);
  g_assert_cmpfloat(cost.resident_bytes[KV_TIER_HBM], ==, 25 * 4 * 2.0 * 2 * 128 * 2);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/plan/law/values", test_law_values);
  g_test_add_func("/plan/law/scale-cap-and-kept-prompt", test_scale_cap_and_kept_prompt);
  g_test_add_func("/plan/law/valid-tokens", test_valid_tokens_end_where_the_slope_changes);
  g_test_add_func("/plan/law/lines-are-exact-where-valid", test_lines_are_exact_where_valid);
  g_test_add_func("/plan/law/nothing-is-valid-for-ever", test_nothing_is_valid_for_ever);
  g_test_add_func("/plan/law/describe", test_describe);
  g_test_add_func("/plan/law/over", test_nothing_up_to_a_length_and_all_beyond_it);
  g_test_add_func("/plan/law/short-prompts", test_short_prompts_are_cut_by_a_rule_of_their_own);
  g_test_add_func("/plan/index-over-a-length", test_an_index_is_read_beyond_a_length_only);
  g_test_add_func("/plan/split-layers", test_split_layers_keep_their_readers_share);
  g_test_add_func("/plan/full-attention", test_full_attention);
  g_test_add_func("/plan/sliding-and-recurrent-groups", test_sliding_and_recurrent_groups);
  g_test_add_func("/plan/latent-attention", test_latent_attention);
  g_test_add_func("/plan/lower-tiers", test_lower_tiers);
  g_test_add_func("/plan/index-and-scaled-reads", test_index_and_scaled_reads);
  g_test_add_func("/plan/written-bytes", test_written_bytes);
  g_test_add_func("/plan/too-many-laws", test_too_many_laws);
  g_test_add_func("/plan/evicted-by-a-share-of-the-prompt", test_evicted_by_a_share_of_the_prompt);
  g_test_add_func("/plan/borrowed-cache", test_borrowed_cache_is_stored_once_and_read_by_all);
  g_test_add_func("/plan/stride", test_layers_that_run_once_in_four_tokens);
  return g_test_run();
}
