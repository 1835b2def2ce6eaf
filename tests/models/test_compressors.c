/* Techniques that quantize, factorise or merge the cache: bytes stored and read, FLOPs and work by
 * hand. */
#include <math.h>

#include "tests/models/applied.h"

static const double L = 32;

static void near(double x, double y) {
  g_assert_cmpfloat_with_epsilon(x, y, 1e-9 * fabs(y));
}

/* --- KVQuant --- */

/* Per layer: 3 bits and 4 bytes for each hundredth element; two pointers and a scale with zero
 * point, 12 bytes; the first token exact. */
static void test_kvquant_bytes(void) {
  double mha = 8192 * (0.375 + 0.04) + 12, gqa = 2048 * (0.375 + 0.04) + 12;
  near(hbm_bytes(llama2_7b(), "kvquant", 1000, 500), L * (999 * mha + 8192 * 2));
  near(hbm_bytes(llama3_8b(), "kvquant", 3000, 500), L * (2999 * gqa + 2048 * 2));
  /* The paper's 3.33 bits. */
  g_assert_cmpfloat_with_epsilon(mha * 8 / 8192, 3.33, 0.005);
  near(hbm_bytes(llama2_7b(), "kvquant:bits=2:outlier_frac=0:first_few_fp16=5", 1000, 500),
       L * (995 * (8192 * 0.25 + 12) + 5 * 8192 * 2));
}

/* Released: 42 outliers of 8 bytes for keys and for values, a table of 8 fp32 values. */
static void test_kvquant_released(void) {
  Applied x = apply(llama2_7b(), "kvquant:impl=released"), y = apply(llama2_7b(), "kvquant");
  double token = 8192 * 0.375 + 2 * 42 * 8 + 8 * 4;
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 1000, 500);
  near(a.resident_bytes[KV_TIER_HBM], L * (999 * token + 8192 * 2));
  near(a.read_bytes, a.resident_bytes[KV_TIER_HBM] + L * 1000 * 32 * 8); /* fp32 scores */
  near(b.read_bytes, b.resident_bytes[KV_TIER_HBM]);
  /* Products, a look-up an element, 6 operations to rotate a key, outliers. */
  near(b.attention_flops, L * 1000 * (4 * 4096 * 1.01 + 8192 + 6 * 4096));
  g_assert_false(x.plan->paged);
  g_assert_true(y.plan->paged && y.plan->shareable);
  /* 290 of 610 GB/s. */
  g_assert_cmpfloat_with_epsilon(x.curves.readers[0].reader.efficiency, 0.475, 0.02);
  near(work_of(&x, "quantize the new token")->fixed_seconds, L * 20e-6);
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

static void test_kvquant_composes(void) {
  /* A cut prompt: 1024 + 100 tokens are left, one of them exact. */
  near(hbm_bytes(llama3_8b(), "snapkv:budget=1024,kvquant", 16484, 16384),
       L * (1123 * (2048 * 0.415 + 12) + 2048 * 2));
  refused(llama2_7b(), "kvquant,quarot",
          "quarot: segment 'tokens' of the cache is already quantized by kvquant, expected one "
          "quantizer");
}

/* --- QuaRot --- */

static void test_quarot_bytes(void) {
  /* 4 bits, and 4 bytes for each head of 128: 4.25 bits. */
  near(hbm_bytes(llama2_7b(), "quarot", 1000, 500), L * 1000 * 8192 * 4.25 / 8);
  near(hbm_bytes(llama3_8b(), "quarot", 3000, 500), L * 3000 * 2048 * 4.25 / 8);
  /* Keys at 4 and values at 2 bits; a group of 64. */
  near(hbm_bytes(llama2_7b(), "quarot:v_bits=2", 1000, 500), L * 1000 * 4096 * (4.25 + 2.25) / 8);
  near(hbm_bytes(llama2_7b(), "quarot:kv_group=64", 1000, 500), L * 1000 * 8192 * 4.5 / 8);
  near(hbm_bytes(llama2_7b(), "quarot:kv_bits=16", 1000, 500), L * 1000 * 8192 * 2);
}

static void test_quarot_switches(void) {
  Applied x = apply(llama2_7b(), "quarot");
  g_assert_cmpint(x.plan->weights.dtype, ==, KV_DTYPE_INT4);
  near(x.plan->weights.bytes_per_parameter, 0.5 + 2.0 / 4096);
  near(cost(&x, 1000, 500).attention_flops, L * 1000 * (4 * 4096 + 2 * 8192));
  near(work_of(&x, "rotate queries and keys")->flops, L * 64 * 128 * 7);
  /* Across 32 heads; the model here has no MLP. */
  near(work_of(&x, "transform inputs of output and down projection")->flops, L * 4096 * 5);
  kv_plan_free(x.plan);
  /* Released: int32 sums of queries, keys, values, output and down projection (no MLP here),
   * written and read; 0.14 ms an attention layer. */
  x = apply(llama2_7b(), "quarot:impl=released");
  near(work_of(&x, "scale the products' sums")->bytes, L * 8 * (3 * 4096 + 2 * 4096));
  near(x.curves.readers[0].reader.fixed_seconds, 0.14e-3);
  kv_plan_free(x.plan);
  /* 8-bit activations are multiplied as 8 bits, 6 as 8, 16 as the model's own. */
  static const struct {
    const char *text;
    KvDtype dtype;
    double bytes;
  } cases[] = {
      {"quarot:a_bits=8", KV_DTYPE_INT8, 0.5},
      {"quarot:w_bits=6:a_bits=6", KV_DTYPE_INT8, 0.75},
      {"quarot:a_bits=16", KV_DTYPE_FP16, 0.5},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    x = apply(llama2_7b(), cases[i].text);
    g_assert_cmpint(x.plan->weights.dtype, ==, cases[i].dtype);
    near(x.plan->weights.bytes_per_parameter, cases[i].bytes + 2.0 / 4096);
    kv_plan_free(x.plan);
  }
  /* The cache alone: weights stay, and nothing is transformed before a product. */
  x = apply(llama2_7b(), "quarot:w_bits=16:a_bits=16");
  g_assert_cmpint(x.plan->weights.dtype, ==, KV_DTYPE_FP16);
  g_assert_cmpuint(x.plan->work->len, ==, 4);
  kv_plan_free(x.plan);
}

static void test_quarot_refusals(void) {
  refused(llama2_7b(), "quarot:w_bits=16",
          "quarot: a_bits is 4 with w_bits 16, but no product takes narrow activations and wide "
          "weights, expected w_bits at most 8");
  refused(llama2_7b(), "kivi,quarot",
          "quarot: segment 'keys, packed' of the cache is already quantized by kivi, expected one "
          "quantizer");
  refused(llama2_7b(), "flexgen:compress_weight:cpu_cache_compute=off,quarot:kv_bits=16",
          "quarot: the weights are already quantized, expected w_bits=16:a_bits=16");
  refused(llama2_7b(), "mla,quarot",
          "quarot: the latent cache of llama-2-7b has no heads to rotate, expected full or sliding "
          "attention, or kv_bits=16");
}

/* --- Palu --- */

/* Half of 8192: keys 1024, values 3072; of 8 groups of 4 heads each 128 and 384. */
static void test_palu(void) {
  Applied x = apply(llama2_7b(), "palu"), y = apply(llama3_8b(), "palu");
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 3000, 500);
  near(a.resident_bytes[KV_TIER_HBM], L * 1000 * 4096 * 2);
  near(a.read_bytes, a.resident_bytes[KV_TIER_HBM]);
  /* Scores as before, probabilities times 384 instead of 128, rotation. */
  near(a.attention_flops, L * 1000 * (2 * 32 * (128 + 384) + 3 * 4096));
  const KvReader *reader = &x.curves.readers[0].reader;
  g_assert_cmpfloat(reader->rebuild_rank, ==, 128);
  g_assert_cmpfloat(reader->rebuild_width, ==, 4096);
  near(work_of(&x, "rebuild the prompt's keys")->flops, L * 2 * 128 * 4096);
  near(b.resident_bytes[KV_TIER_HBM], L * 3000 * 1024 * 2);
  /* D (RK + RV - 2 Hkv d) + RK * 4 * d + D H (rV - d). */
  KvModel model = llama2_7b();
  near((double)kv_model_parameters(&x.model) - (double)kv_model_parameters(&model),
       L * (4096.0 * (4096 - 8192) + 1024 * 512 + 4096.0 * 32 * (384 - 128)));
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

static void test_palu_quantized(void) {
  /* 3 bits, and for each of 8 groups a scale and a zero point of keys and of values. */
  near(hbm_bytes(llama2_7b(), "palu:bits=3", 1000, 500), L * 1000 * (4096 * 0.375 + 2 * 8 * 4));
  /* Two classes of 16 layers: 0.6 and 0.4 of 8192 in multiples of 32 a group:
   * 4915.2 = 3686.4 + 1228.8, so 448 and 160; 3276.8 = 2457.6 + 819.2, so 320 and 96. */
  near(hbm_bytes(llama2_7b(), "palu:rank_spread=0.2", 1000, 500),
       16.0 * 1000 * 8 * (448 + 160 + 320 + 96) * 2);
}

static void test_palu_composes(void) {
  /* kivi packs the latents, 1024 of keys and 3072 of values, at n = 512. */
  near(hbm_bytes(llama2_7b(), "palu,kivi", 512, 50),
       L * (1024 * 512 * 0.375 + 3072 * (384 * 0.375 + 256)));
  refused(llama2_7b(), "kivi,palu",
          "palu: segment 'keys, packed' of the cache is already quantized by kivi, expected palu "
          "before it");
  refused(llama2_7b(), "palu:group_size=5",
          "palu: group_size is 5, expected a divisor of the 32 KV heads of llama-2-7b");
  refused(llama2_7b(), "mla,palu",
          "palu: llama-2-7b has no keys and values, expected full or sliding attention");
  Applied x = apply(llama2_7b(), "palu:impl=released");
  g_assert_false(x.plan->fused_attention);
  near(cost(&x, 1000, 500).read_bytes, L * 1000 * (4096 * 2 + 2 * 32 * 2));
  kv_plan_free(x.plan);
}

/* --- MiniCache --- */

/* 16 layers as they were; 8 pairs, each entry with a twentieth of the tokens twice, norms, index.
 */
static void test_minicache(void) {
  Applied x = apply(llama2_7b(), "minicache"), y = apply(llama3_8b(), "minicache:S=0:gamma=0");
  double layer = 8192 * 2, beside = 8 + 4 * 0.05;
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 3000, 500);
  near(a.resident_bytes[KV_TIER_HBM], 1000 * (16 * layer + 8 * (1.1 * layer + beside)));
  near(1000 * (16 * layer + 8 * 1.1 * layer), 0.775 * 1000 * L * layer);
  /* Both layers of a pair read the direction and their own originals. */
  near(a.read_bytes, 1000 * (16 * layer + 16 * (1.1 * layer + beside) * 1.05 / 1.1));
  near(a.attention_flops, 1000 * (L * 4 * 4096 + 16 * 8192));
  g_assert_false(x.plan->shareable);
  g_assert_cmpfloat(x.plan->prefill_peak_layers, ==, 2);
  near(work_of(&x, "merge the new token's pairs")->flops, 8 * 10 * 8192);
  near(b.resident_bytes[KV_TIER_HBM], 3000 * 16 * (layer / 4 + 8));
  g_assert_true(y.plan->shareable);
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

static void test_minicache_variants(void) {
  /* 4 bits and 4 bytes for 32 elements: 5 bits. */
  near(hbm_bytes(llama2_7b(), "minicache:bits=4:gamma=0", 1000, 500),
       1000 * (16 * 16384 + 8 * (8192 * 5 / 8.0 + 8)));
  Applied x = apply(llama2_7b(), "minicache:gamma=0:restore=apart");
  near(cost(&x, 1000, 500).read_bytes, 1000 * (L * 16384 + 16 * (8 + 2 * 16384)));
  kv_plan_free(x.plan);
  refused(llama2_7b(), "kivi,minicache",
          "minicache: segment 'keys, packed' of the cache is already quantized by kivi, expected "
          "minicache before it");
  refused(llama2_7b(), "snapkv,minicache",
          "minicache: the tokens that are left differ between the layers of a pair, expected "
          "minicache before the technique that selects them");
  refused(llama2_7b(), "minicache:S=32",
          "minicache: S is 32, expected less than the 32 layers of llama-2-7b");
  refused(llama2_7b(), "minicache:S=31",
          "minicache: llama-2-7b has no two layers with a KV cache from layer 31 on, expected a "
          "smaller S");
  refused(llama2_7b(), "dmc,minicache",
          "minicache: the cache 'cache' has slots whose number differs by head, expected one entry "
          "per token");
}

/* --- DMC --- */

/* Beside the slots, per head: 13 rows of keys, values and a weight, a table of 4096/256 entries. */
static void test_dmc(void) {
  Applied x = apply(llama2_7b(), "dmc"), y = apply(llama3_8b(), "dmc:CR=2:page_size=16");
  double head = 13 * (256 + 1) * 2, kappa = L * 8192 * 2;
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 3000, 500);
  near(a.resident_bytes[KV_TIER_HBM], (250 + 127.5) * kappa + L * 32 * (head + 16 * 4 + 8));
  near(a.read_bytes, 250 * kappa);
  near(a.attention_flops, 250 * L * 4 * 4096);
  near(b.resident_bytes[KV_TIER_HBM], (1500 + 7.5) * kappa / 4 + L * 8 * (head + 256 * 4 + 8));
  near(work_of(&x, "merge or append")->bytes, L * 6 * 4096 * 2);
  near(work_of(&x, "merge or append")->flops, L * 10 * 4096);
  g_assert_false(x.plan->shareable);
  g_assert_cmpuint(g_array_index(x.plan->caches, KvCache, 0).segments[0].page_tokens, ==, 256);
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
  /* Uneven layers keep the mean. */
  x = apply(llama2_7b(), "dmc:spread=0.5");
  g_assert_cmpuint(x.plan->caches->len, ==, 2);
  near(cost(&x, 1000, 500).read_bytes, 250 * kappa);
  kv_plan_free(x.plan);
}

static void test_dmc_refusals(void) {
  refused(llama2_7b(), "dmc:CR=1.2:spread=0.5",
          "dmc: spread is 0.5, expected at most 0.2: no layer can have more slots than tokens");
  refused(llama2_7b(), "snapkv,dmc",
          "dmc: the cache 'cache' is already divided or selected from, expected dmc before that "
          "technique");
  refused(llama2_7b(), "quarot,dmc",
          "dmc: the last slot is merged into, but segment 'tokens' of the cache is quantized by "
          "quarot, expected an unquantized cache");
  refused(llama2_7b(), "mla,dmc",
          "dmc: llama-2-7b has layers with latent attention, expected full attention");
}

/* --- LESS --- */

/* 5 % of 4096 tokens are 205; a state of 8 times 129 fp32 numbers a head; a sum a head and token.
 */
static void test_less(void) {
  Applied x = apply(llama2_7b(), "less"), y = apply(llama3_8b(), "less:budget=0.1:policy=lambda");
  double state = L * 32 * 8 * 129 * 4, token = 8192 * 2 + 4 * 32;
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 3000, 500);
  near(a.resident_bytes[KV_TIER_HBM], L * 205 * token + state);
  near(cost(&x, 4000, 500).resident_bytes[KV_TIER_HBM], a.resident_bytes[KV_TIER_HBM]);
  near(cost(&x, 100, 50).resident_bytes[KV_TIER_HBM], L * 100 * token + state);
  /* The prompt is whole until it is done. */
  near(kv_plan_cost(x.plan, &x.curves, 1000, 1000, FALSE).resident_bytes[KV_TIER_HBM],
       L * 1000 * token + state);
  near(a.read_bytes, L * 205 * (token + 8 * 32) + state);
  near(a.attention_flops, L * 205 * 4 * 4096);
  g_assert_false(x.plan->fused_attention);
  g_assert_false(x.plan->shareable);
  near(work_of(&x, "fold the evicted token, read the state")->flops, L * 4 * 32 * 8 * 128);
  /* 4 first tokens and 406 latest, a state of each KV head, no scores. */
  near(b.resident_bytes[KV_TIER_HBM], L * 410 * 2048 * 2 + state / 4);
  g_assert_true(y.plan->fused_attention);
  /* Two maps of 128 to 512 to 8 a head, an 8 by 8 interaction and two scalings. */
  KvModel model = llama2_7b();
  near((double)kv_model_parameters(&x.model) - (double)kv_model_parameters(&model),
       L * 32 * (2 * (128 * 512 + 512 * 8) + 64 + 16));
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
  x = apply(llama2_7b(), "less:impl=released");
  near(work_of(&x, "map all keys again")->flops_per_token, L * 2 * 32 * (128 * 512 + 512 * 8));
  kv_plan_free(x.plan);
}

static void test_less_refusals(void) {
  refused(llama2_7b(), "less:budget=0.001",
          "less: budget is 0.001 of 4096 tokens of context, expected more than 4 tokens");
  refused(llama2_7b(), "kivi,less",
          "less: the cache 'cache' is already divided or selected from, expected less before that "
          "technique");
  refused(llama2_7b(), "mla,less",
          "less: llama-2-7b has no layer with full attention, expected one");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/kvquant/bytes", test_kvquant_bytes);
  g_test_add_func("/kvquant/released", test_kvquant_released);
  g_test_add_func("/kvquant/composes", test_kvquant_composes);
  g_test_add_func("/quarot/bytes", test_quarot_bytes);
  g_test_add_func("/quarot/switches", test_quarot_switches);
  g_test_add_func("/quarot/refusals", test_quarot_refusals);
  g_test_add_func("/palu/plan", test_palu);
  g_test_add_func("/palu/quantized", test_palu_quantized);
  g_test_add_func("/palu/composes", test_palu_composes);
  g_test_add_func("/minicache/plan", test_minicache);
  g_test_add_func("/minicache/variants", test_minicache_variants);
  g_test_add_func("/dmc/plan", test_dmc);
  g_test_add_func("/dmc/refusals", test_dmc_refusals);
  g_test_add_func("/less/plan", test_less);
  g_test_add_func("/less/refusals", test_less_refusals);
  return g_test_run();
}
