/* sim/engine/demand.h: blocks worked out by hand. */
#include "sim/engine/demand.h"

#include <math.h>

#include "models/techniques/technique.h"

/* Curves with the laws given, each storing `bytes` per token in HBM. */
static KvPlanCurves *curves_of(const KvLaw *laws, const double *bytes, guint n) {
  KvPlanCurves *curves = g_new0(KvPlanCurves, 1);
  curves->n_channels = n;
  for (guint c = 0; c < n; c++) {
    curves->laws[c] = laws[c];
    curves->stored_bytes[KV_TIER_HBM][c] = bytes[c];
  }
  return curves;
}

static void unchanged_cache_has_vllms_block(void) {
  g_autoptr(KvModel) model = kv_model_load("llama-3.1-8b", NULL);
  g_autoptr(KvPlan) plan = kv_plan_new(model, KV_DTYPE_BF16);
  g_autofree KvPlanCurves *curves = g_new0(KvPlanCurves, 1);
  KvDemand demand;
  g_assert_true(kv_plan_compile(plan, curves, NULL));
  kv_demand_init(&demand, curves, 16);
  /* 2 (keys, values) * 32 layers * 8 heads * 128 elements * 2 bytes * 16 tokens = 2 MiB. */
  g_assert_cmpfloat(demand.block_bytes, ==, 2.0 * 1024 * 1024);
  g_assert_true(demand.simple);
  g_assert_false(demand.drops_prompt);
  g_assert_cmpfloat(demand.tier_share[KV_TIER_HBM], ==, 1.0);
  const guint64 cases[][2] = {{0, 0}, {1, 1}, {15, 1}, {16, 1}, {17, 2}, {32, 2}, {131072, 8192}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_assert_cmpuint(kv_demand_blocks(&demand, cases[i][0], 7, FALSE), ==, cases[i][1]);
    g_assert_cmpuint(kv_demand_blocks(&demand, cases[i][0], 7, TRUE), ==, cases[i][1]);
    g_assert_cmpint(kv_demand_tokens(&demand, cases[i][0], 7, TRUE), ==, (gint64)cases[i][0]);
  }
}

/* Groups of 32 at 25 bytes once quantized, and up to 32 tokens at 100: the buffer is kept, so it
 * counts whole. */
static void sawtooth_counts_its_envelope(void) {
  const KvLaw laws[] = {kv_law(KV_LAW_FLUSHED, 32), kv_law(KV_LAW_PENDING, 32)};
  g_autofree KvPlanCurves *curves = curves_of(laws, (double[]){25, 100}, 2);
  KvDemand demand;
  kv_demand_init(&demand, curves, 16);
  g_assert_false(demand.simple);
  g_assert_cmpfloat(demand.block_bytes, ==, 16.0 * 25.0);
  /* n = 10: 10 * 25 + 10 * 100 = 1,250 bytes of 400. n = 100: 2,500 + 3,200. */
  g_assert_cmpuint(kv_demand_blocks(&demand, 10, 10, FALSE), ==, 4);
  g_assert_cmpuint(kv_demand_blocks(&demand, 100, 10, TRUE), ==, 15);
  guint64 last = 0;
  for (guint n = 0; n < 500; n++) {
    guint64 blocks = kv_demand_blocks(&demand, n, 10, TRUE);
    double bytes = 25.0 * kv_law_value(&laws[0], n, 10, TRUE, NULL, NULL) +
                   100.0 * kv_law_value(&laws[1], n, 10, TRUE, NULL, NULL);
    g_assert_cmpuint(blocks, >=, last);
    g_assert_cmpfloat((double)blocks * demand.block_bytes, >=, bytes);
    last = blocks;
  }
}

/* A window beside everything: the block is what a far token costs, and the window adds to it. */
static void window_adds_its_bytes(void) {
  const KvLaw laws[] = {kv_law(KV_LAW_ALL, 0), kv_law(KV_LAW_LAST, 64)};
  g_autofree KvPlanCurves *curves = curves_of(laws, (double[]){10, 30}, 2);
  KvDemand demand;
  kv_demand_init(&demand, curves, 16);
  g_assert_cmpfloat(demand.block_bytes, ==, 160.0);
  g_assert_cmpuint(kv_demand_blocks(&demand, 16, 16, FALSE), ==, 4);  /* 16 * 40 / 160 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 64, 64, FALSE), ==, 16); /* 64 * 40 / 160 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 160, 64, TRUE), ==, 22); /* (1,600 + 1,920) / 160 */
}

static void windows_only(void) {
  const KvLaw laws[] = {kv_law(KV_LAW_FIRST, 4), kv_law(KV_LAW_LAST, 60)};
  g_autofree KvPlanCurves *curves = curves_of(laws, (double[]){10, 10}, 2);
  KvDemand demand;
  kv_demand_init(&demand, curves, 16);
  g_assert_cmpfloat(demand.block_bytes, ==, 320.0);
  guint64 full = kv_demand_blocks(&demand, 64, 64, TRUE);
  g_assert_cmpuint(full, ==, 2); /* 640 bytes */
  g_assert_cmpuint(kv_demand_blocks(&demand, 1e6, 64, TRUE), ==, full);
}

/* A recurrent state alone: one block each, whatever the length. */
static void states_only(void) {
  KvPlanCurves *curves = curves_of(NULL, NULL, 0);
  KvDemand demand;
  curves->state_bytes = 1e6;
  kv_demand_init(&demand, curves, 16);
  g_assert_cmpfloat(demand.block_bytes, ==, 1e6);
  g_assert_cmpfloat(demand.tier_share[KV_TIER_HBM], ==, 1.0);
  g_assert_cmpuint(kv_demand_blocks(&demand, 1, 1, FALSE), ==, 1);
  g_assert_cmpuint(kv_demand_blocks(&demand, 1e6, 1, TRUE), ==, 1);
  g_free(curves);
}

/* SnapKV: the whole prompt is held until it is done, then what was chosen of it. */
static void chosen_prompt_frees_the_rest(void) {
  KvLaw law = kv_law(KV_LAW_PROMPT_CAPPED, 100);
  g_autofree KvPlanCurves *curves = curves_of(&law, (double[]){10}, 1);
  KvDemand demand;
  kv_demand_init(&demand, curves, 16);
  g_assert_true(demand.simple);
  g_assert_true(demand.drops_prompt);
  g_assert_cmpuint(kv_demand_blocks(&demand, 1000, 1000, FALSE), ==, 63);
  g_assert_cmpuint(kv_demand_blocks(&demand, 1000, 1000, TRUE), ==, 7); /* 100 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 1012, 1000, TRUE), ==, 7); /* 112 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 1013, 1000, TRUE), ==, 8); /* 113 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 53, 50, TRUE), ==, 4);     /* shorter than the cap */
  KvLaw kept = kv_law(KV_LAW_ALL, 0);
  kept.kept_prompt = 100;
  g_autofree KvPlanCurves *kept_curves = curves_of(&kept, (double[]){10}, 1);
  kv_demand_init(&demand, kept_curves, 16);
  g_assert_true(demand.drops_prompt);
  g_assert_cmpuint(kv_demand_blocks(&demand, 1000, 1000, FALSE), ==, 63);
  g_assert_cmpuint(kv_demand_blocks(&demand, 1013, 1000, TRUE), ==, 8);
}

static void tiers_share_a_block(void) {
  const KvLaw laws[] = {kv_law(KV_LAW_ALL, 0), kv_law(KV_LAW_BEYOND, 128)};
  g_autofree KvPlanCurves *curves = curves_of(laws, (double[]){10, 0}, 2);
  KvDemand demand;
  curves->stored_bytes[KV_TIER_DRAM][1] = 30.0;
  kv_demand_init(&demand, curves, 16);
  g_assert_cmpfloat(demand.block_bytes, ==, 640.0);
  g_assert_cmpfloat(demand.tier_share[KV_TIER_HBM], ==, 0.25);
  g_assert_cmpfloat(demand.tier_share[KV_TIER_DRAM], ==, 0.75);
}

/* The prompt's 30 bytes a token lie in host memory, the generated 10 in HBM: a block is the same
 * share of both, here 100 and 1,200 bytes, and the fuller tier counts. */
static void the_fullest_tier_counts(void) {
  KvLaw laws[] = {kv_law(KV_LAW_BEYOND, 0), kv_law(KV_LAW_FIRST, 0)};
  laws[0].prompt_share = laws[1].prompt_share = 1.0;
  g_autofree KvPlanCurves *curves = curves_of(laws, (double[]){10, 0}, 2);
  KvDemand demand;
  curves->stored_bytes[KV_TIER_DRAM][1] = 30.0;
  kv_demand_init(&demand, curves, 16);
  g_assert_true(demand.uneven);
  g_assert_false(demand.simple);
  g_assert_cmpfloat(demand.block_bytes, ==, 160.0);
  const double capacity[KV_N_TIERS] = {[KV_TIER_HBM] = 1e5, [KV_TIER_DRAM] = 1.2e6};
  kv_demand_set_tiers(&demand, capacity, 1000);
  g_assert_cmpuint(kv_demand_blocks(&demand, 400, 400, FALSE), ==, 10); /* 12,000 / 1,200 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 500, 400, TRUE), ==, 10);  /* 1,000 / 100 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 501, 400, TRUE), ==, 11);
}

/* Of 32 layers one at a time holds the whole prompt: 100 tokens and a 32nd of the other 900. */
static void layers_drop_their_own(void) {
  KvLaw law = kv_law(KV_LAW_PROMPT_CAPPED, 100);
  g_autofree KvPlanCurves *curves = curves_of(&law, (double[]){10}, 1);
  KvDemand demand;
  kv_demand_init(&demand, curves, 16);
  demand.peak_share = 1.0 / 32;
  g_assert_cmpuint(kv_demand_blocks(&demand, 1000, 1000, FALSE), ==, 9); /* 128.125 / 16 */
  g_assert_cmpuint(kv_demand_blocks(&demand, 1000, 1000, TRUE), ==, 7);
  demand.simple = FALSE;
  g_assert_cmpuint(kv_demand_blocks(&demand, 1000, 1000, FALSE), ==, 9);
}

/* A tenth is not a binary fraction: ten tenths must not take an eleventh block. */
static void rounding_takes_no_extra_block(void) {
  const KvLaw laws[] = {kv_law(KV_LAW_ALL, 0), kv_law(KV_LAW_ALL, 0), kv_law(KV_LAW_ALL, 0)};
  g_autofree KvPlanCurves *curves = curves_of(laws, (double[]){0.1, 0.7, 0.3}, 3);
  KvDemand demand;
  kv_demand_init(&demand, curves, 16);
  for (guint blocks = 1; blocks < 5000; blocks++)
    g_assert_cmpuint(kv_demand_blocks(&demand, 16.0 * blocks, 1, TRUE), ==, blocks);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/demand/layers-drop-their-own", layers_drop_their_own);
  g_test_add_func("/demand/the-fullest-tier-counts", the_fullest_tier_counts);
  g_test_add_func("/demand/unchanged-cache-has-vllms-block", unchanged_cache_has_vllms_block);
  g_test_add_func("/demand/sawtooth-counts-its-envelope", sawtooth_counts_its_envelope);
  g_test_add_func("/demand/window-adds-its-bytes", window_adds_its_bytes);
  g_test_add_func("/demand/windows-only", windows_only);
  g_test_add_func("/demand/states-only", states_only);
  g_test_add_func("/demand/chosen-prompt-frees-the-rest", chosen_prompt_frees_the_rest);
  g_test_add_func("/demand/tiers-share-a-block", tiers_share_a_block);
  g_test_add_func("/demand/rounding-takes-no-extra-block", rounding_takes_no_extra_block);
  return g_test_run();
}
