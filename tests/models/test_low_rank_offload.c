#include "tests/models/applied.h"

/* The card's formula per layer, with r = 160, chunks of 8, 48 outliers, 4 local chunks and a budget
 * of 2048: attended 2048 + 8 * 52 = 2464 tokens, and 128 spare ones in the buffer. */
static double gpu_layer_bytes(double kv_heads, double prompt, double generated) {
  double width = kv_heads * 128;
  return prompt * 160 * 2 + 160 * width * 2 + (prompt / 8 - 48) * kv_heads * (128 * 2 + 8) +
         2 * width * 2 * (2464 + 128 + generated);
}

static void test_shadowkv_bytes(void) {
  static const double prompts[] = {16000, 122880};
  for (guint i = 0; i < G_N_ELEMENTS(prompts); i++) {
    double p = prompts[i];
    g_assert_cmpfloat_with_epsilon(hbm_bytes(llama3_8b(), "shadowkv", p + 100, p),
                                   32 * gpu_layer_bytes(8, p, 100), 1e-2);
    g_assert_cmpfloat_with_epsilon(hbm_bytes(llama2_7b(), "shadowkv", p + 100, p),
                                   32 * gpu_layer_bytes(32, p, 100), 1e-2);
    Applied x = apply(llama3_8b(), "shadowkv");
    KvPlanCost c = cost(&x, p + 100, p);
    g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, p * 32 * 8 * 128 * 2);
    /* Until then the prompt is there in full; the buffer is there already. */
    double whole = kv_plan_cost(x.plan, &x.curves, p, p, FALSE).resident_bytes[KV_TIER_HBM];
    g_assert_cmpfloat_with_epsilon(
        whole,
        p * 32 * 2.0 * 8 * 128 * 2 +
            32 * (gpu_layer_bytes(8, p, 0) - p * (160 * 2 + 8 * (128 * 2 + 8) / 8.0)),
        1e-2);
    kv_plan_free(x.plan);
  }
}

/* Of 2048 chosen tokens 60 % are there already: 819.2 are fetched and rebuilt. */
static void test_shadowkv_reads(void) {
  for (guint m = 0; m < 2; m++) {
    double kv_heads = m ? 8 : 32, width = kv_heads * 128, n = 60100;
    Applied x = apply(m ? llama3_8b() : llama2_7b(), "shadowkv");
    KvPlanCost c = cost(&x, n, 60000);
    g_assert_cmpfloat_with_epsilon(c.fetched_bytes, 32 * 819.2 * width * 2, 1e-3);
    /* The basis, less the outliers' landmarks, lies in the buffer and is read with it. */
    double basis = (160 * width * 2 - 48 * kv_heads * 264) * 2464 / (2464 + 128);
    double landmarks = n / 8 * (width * 2 + 4 * 32 * 2), attended = 2464 + 100;
    g_assert_cmpfloat_with_epsilon(c.read_bytes,
                                   32 * (landmarks + basis + 2 * width * 2 * attended +
                                         819.2 * (kv_heads * 160 * 2 + width * 2)),
                                   1e-2);
    g_assert_cmpfloat_with_epsilon(c.attention_flops,
                                   32 * (2.0 * 32 * 128 * n / 8 + 4.0 * 32 * 128 * attended), 1e-2);
    g_assert_cmpfloat(c.written_bytes, ==, 32 * 2 * width * 2);
    const KvReader *fetch = &x.curves.readers[1].reader;
    g_assert_cmpint(fetch->overlap, ==, KV_OVERLAP_REBUILD);
    g_assert_cmpfloat(fetch->rebuild_rank, ==, 160);
    g_assert_cmpfloat(fetch->rebuild_width, ==, width);
    /* Rows that are rebuilt: what the reader counts as tokens, times the share. */
    double tokens = 0.0;
    for (guint i = 0; i < x.curves.readers[1].n_terms; i++) {
      const KvReadTerm *term = &x.curves.readers[1].terms[i];
      tokens +=
          term->tokens * kv_law_value(&x.curves.laws[term->channel], n, 60000, TRUE, NULL, NULL);
    }
    g_assert_cmpfloat_with_epsilon(tokens * fetch->rebuild_share, 819.2, 1e-6);
    g_assert_cmpfloat(
        work_of(&x, "decompose the keys, choose landmarks and outliers")->flops_per_token, ==,
        32 * (4 * width * width + 4 * width));
    g_assert_false(x.plan->shareable);
    kv_plan_free(x.plan);
  }
}

static void test_shadowkv_refusals(void) {
  refused(model_of("narrow", 32, 16, 1), "shadowkv",
          "shadowkv: rank is 160, but a token's keys in narrow have 128 elements, expected a lower "
          "rank");
  refused(llama2_7b(), "shadowkv:sparse_budget=8:chunk=16",
          "shadowkv: sparse_budget is 8, expected at least one chunk of 16 tokens");
  refused(
      llama2_7b(), "h2o,shadowkv",
      "shadowkv: the cache 'cache' is already divided or filled by a law of its own, expected one "
      "with whole tokens, keys and values together");
  refused(
      llama2_7b(), "snapkv,shadowkv",
      "shadowkv: snapkv chooses which tokens of the cache stay, expected a cache of all tokens");
  KvModel latent = model_of("deepseek-v2", 60, 128, 128);
  group.attention.kind = KV_ATTENTION_LATENT;
  refused(
      latent, "shadowkv",
      "shadowkv: tokens are treated head by head, but the latent cache of deepseek-v2 is one for "
      "all heads, expected full attention");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/shadowkv/bytes", test_shadowkv_bytes);
  g_test_add_func("/techniques/shadowkv/reads", test_shadowkv_reads);
  g_test_add_func("/techniques/shadowkv/refusals", test_shadowkv_refusals);
  return g_test_run();
}
