/* Techniques that change the model: what is stored, read and computed, and how many parameters
 * there are, by hand. */
#include "tests/models/applied.h"

static const double D = 4096, L = 32;

/* --- MLA --- */

static void test_mla(void) {
  /* 512 + 64 elements a token and layer, whatever the heads. */
  Applied x = apply(llama2_7b(), "mla"), y = apply(llama3_8b(), "mla");
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 4000, 500);
  g_assert_cmpfloat(a.resident_bytes[KV_TIER_HBM], ==, 1000 * L * 576 * 2);
  g_assert_cmpfloat(a.read_bytes, ==, a.resident_bytes[KV_TIER_HBM]); /* once, for both */
  g_assert_cmpfloat(b.resident_bytes[KV_TIER_HBM], ==, 4 * a.resident_bytes[KV_TIER_HBM]);
  g_assert_cmpfloat(a.attention_flops, ==, 1000 * L * 2 * 32 * (2 * 512 + 64));
  g_assert_cmpuint(x.model.groups[0].attention.head_dim, ==, 128 + 64);
  g_assert_cmpuint(x.curves.readers[0].reader.n_kv_heads, ==, 1);
  g_assert_true(x.plan->shareable);
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

/* The published shape: D*dcq + dcq*H*(d+dR) + D*(dc+dR) + 2*dc*H*d + H*d*D, and two norms. */
static void test_mla_parameters(void) {
  KvModel model = llama2_7b();
  guint64 before = kv_model_parameters(&model);
  Applied x = apply(model, "mla:H=128");
  double mha = 4 * D * D, latent = D * 1536 + 1536 * 128.0 * 192 + D * 576 + 2 * 512 * 128.0 * 128 +
                                   128.0 * 128 * D + 1536 + 512;
  g_assert_cmpuint(kv_model_parameters(&x.model), ==, before + (guint64)(L * (latent - mha)));
  kv_plan_free(x.plan);
}

static void test_mla_bits(void) {
  Applied x = apply(llama2_7b(), "mla:kv_bits=6");
  g_assert_cmpfloat(cost(&x, 1000, 500).resident_bytes[KV_TIER_HBM], ==, 1000 * L * 576 * 0.75);
  kv_plan_free(x.plan);
}

static void test_mla_refusals(void) {
  KvModel sliding = model_of("mistral", 32, 32, 8);
  group.attention.kind = KV_ATTENTION_SLIDING;
  refused(sliding, "mla",
          "mla: mistral has layers with sliding windows, expected full attention in every layer");
  KvModel latent = model_of("deepseek-v2", 60, 128, 128);
  group.attention.kind = KV_ATTENTION_LATENT;
  refused(latent, "mla",
          "mla: deepseek-v2 has latent attention already, expected another model or kv_bits below "
          "16");
  refused(llama2_7b(), "mla,gqa",
          "gqa: llama-2-7b has no layer with KV heads, expected full or sliding attention");
  refused(llama2_7b(), "lckv,mla",
          "mla: llama-2-7b has layers that borrow a cache, expected full attention in every layer");
}

/* --- QCQA --- */

/* Half the cache with 8 of 32 heads: k = 32 * 0.5 / 0.75 = 21.3, so 22 layers. */
static void test_qcqa(void) {
  Applied x = apply(llama2_7b(), "qcqa");
  double heads = 22 * 8 + 10 * 32;
  KvPlanCost c = cost(&x, 1000, 500);
  g_assert_cmpuint(x.model.n_groups, ==, 2);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_HBM], ==, 1000.0 * 2 * heads * 128 * 2);
  g_assert_cmpfloat(c.read_bytes, ==, c.resident_bytes[KV_TIER_HBM]);
  g_assert_cmpfloat(c.attention_flops, ==, 1000 * L * 4 * 32 * 128);
  /* 2 D d for each head that is gone. */
  KvModel model = llama2_7b();
  g_assert_cmpuint(kv_model_parameters(&model) - kv_model_parameters(&x.model), ==,
                   (guint64)(2 * D * 128 * (32 * L - heads)));
  kv_plan_free(x.plan);
  /* 6 groups of 8 heads, 90 %: k = ceil(32 * 0.1 / 0.25) = 13. */
  x = apply(llama3_8b(), "qcqa:num_groups=6:cache_budget=0.9");
  g_assert_cmpfloat(cost(&x, 3000, 500).resident_bytes[KV_TIER_HBM], ==,
                    3000.0 * 2 * (13 * 6 + 19 * 8) * 128 * 2);
  kv_plan_free(x.plan);
  /* At the least budget every layer is grouped: one group of layers again. */
  x = apply(llama2_7b(), "qcqa:cache_budget=0.25,kivi");
  g_assert_cmpuint(x.model.n_groups, ==, 1);
  g_assert_cmpuint(x.model.groups[0].attention.n_kv_heads, ==, 8);
  kv_plan_free(x.plan);
}

static void test_qcqa_refusals(void) {
  refused(llama3_8b(), "qcqa:num_groups=8",
          "qcqa: num_groups is 8, but llama-3-8b has 8 KV heads, expected fewer groups");
  refused(
      llama3_8b(), "qcqa:num_groups=6:mode=EC",
      "qcqa: num_groups is 6 with groups of equal size, expected a divisor of the 8 KV heads of "
      "llama-3-8b");
  refused(llama3_8b(), "qcqa:num_groups=6",
          "qcqa: cache_budget is 0.5, expected at least 0.75, which is all layers with 6 of 8 KV "
          "heads");
  refused(
      llama2_7b(), "lckv,qcqa",
      "qcqa: layers of llama-2-7b share a cache, expected qcqa before the technique that shares "
      "it");
}

/* --- LCKV --- */

static void test_lckv(void) {
  double layer = 2 * 32 * 128 * 2.0; /* bytes of a token */
  Applied x = apply(llama2_7b(), "lckv:w=2"), y = apply(llama3_8b(), "lckv");
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 2000, 500);
  g_assert_cmpfloat(a.resident_bytes[KV_TIER_HBM], ==, 1000 * 3 * layer);
  g_assert_cmpfloat(a.read_bytes, ==, 1000 * L * layer); /* every layer still reads */
  g_assert_cmpfloat(a.attention_flops, ==, 1000 * L * 4 * 32 * 128);
  g_assert_cmpfloat(a.written_bytes, ==, 3 * layer);
  g_assert_cmpfloat(b.resident_bytes[KV_TIER_HBM], ==, 2000 * 11 * layer / 4);
  g_assert_cmpfloat(b.read_bytes, ==, 2000 * L * layer / 4);
  /* Two warm-up layers, one that lends, 29 that borrow: 9 passes over these 30. */
  g_assert_cmpuint(x.model.n_groups, ==, 3);
  g_assert_cmpfloat(x.model.groups[0].extra_prefill_passes, ==, 0);
  g_assert_cmpfloat(x.model.groups[1].extra_prefill_passes, ==, 8);
  g_assert_cmpfloat(x.model.groups[2].extra_prefill_passes, ==, 8);
  g_assert_cmpuint(x.model.groups[2].count, ==, 29);
  KvModel model = llama2_7b();
  g_assert_cmpuint(kv_model_parameters(&model) - kv_model_parameters(&x.model), ==,
                   (guint64)(29 * 2 * D * D));
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

static void test_lckv_composes(void) {
  /* Without warm-up one layer serves all. With kivi the one stored cache is packed: n = 512 keys,
   * 384 values at 3 bits. */
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "lckv:w=0", 1000, 500), ==, 1000 * 2 * 32 * 128 * 2);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "lckv:w=0,kivi", 512, 50), ==,
                    32.0 * 128 * (512 * 0.375 + 384 * 0.375 + 256));
  refused(llama2_7b(), "lckv:w=31",
          "lckv: w is 31, but llama-2-7b has 32 layers, expected at least 2 layers beside the "
          "warm-up layers");
  refused(
      llama2_7b(), "qcqa,lckv",
      "lckv: one layer's keys and values serve all others, but the layers of llama-2-7b are not "
      "all alike with full attention, expected such a model");
}

/* --- Mamba --- */

static void test_mamba(void) {
  /* 64 blocks of 2*4096 channels with 4 + 16 numbers each, in fp16. */
  Applied x = apply(llama2_7b(), "mamba"), y = apply(llama3_8b(), "mamba:state_dtype=fp32");
  double channels = 64 * 2 * D;
  g_assert_cmpfloat(cost(&x, 1000, 500).resident_bytes[KV_TIER_HBM], ==, channels * 20 * 2);
  g_assert_cmpfloat(cost(&x, 9000, 500).resident_bytes[KV_TIER_HBM], ==, channels * 20 * 2);
  g_assert_cmpfloat(cost(&x, 1000, 500).written_bytes, ==, channels * 20 * 2);
  g_assert_cmpfloat(cost(&x, 1000, 500).attention_flops, ==, 0);
  g_assert_cmpfloat(cost(&y, 1000, 500).resident_bytes[KV_TIER_HBM], ==,
                    channels * (4 * 2 + 16 * 4));
  g_assert_false(x.plan->shareable);
  g_assert_cmpfloat(work_of(&x, "selective scan of the prompt")->flops, ==,
                    channels * (9 * 16 + 2 * 4));
  g_assert_cmpfloat(work_of(&x, "update the state")->flops, ==, channels * (6 * 16 + 2 * 4));
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

/* Mamba-2.8B as published: 2,768,345,600 parameters. */
static void test_mamba_parameters(void) {
  KvModel model = model_of("mamba-2.8b", 32, 32, 32);
  model.hidden = model.embedding_dim = 2560;
  model.vocab = 50280;
  model.tied_embeddings = TRUE;
  Applied x = apply(model, "mamba");
  g_assert_cmpuint(kv_model_parameters(&x.model), ==, 2768345600);
  kv_plan_free(x.plan);
}

/* The catalogue's is what the technique makes: the same parameters, state and work. */
static void test_mamba_of_the_catalogue(void) {
  KvModel base = model_of("base", 32, 32, 32);
  base.hidden = base.embedding_dim = 2560;
  base.vocab = 50280;
  base.tied_embeddings = TRUE;
  Applied x = apply(base, "mamba");
  g_autoptr(KvModel) model = kv_model_load("mamba-2.8b", NULL);
  g_autoptr(KvPlan) plan = kv_plan_new(model, KV_DTYPE_FP16);
  g_assert_cmpuint(kv_model_parameters(model), ==, kv_model_parameters(&x.model));
  g_assert_cmpfloat(g_array_index(plan->caches, KvCache, 0).state_bytes, ==,
                    g_array_index(x.plan->caches, KvCache, 0).state_bytes);
  g_assert_cmpuint(plan->work->len, ==, 2);
  for (guint i = 0; i < plan->work->len; i++) {
    const KvWork *work = &g_array_index(plan->work, KvWork, i);
    g_assert_cmpfloat(work->flops, ==, work_of(&x, work->name)->flops);
  }
  kv_plan_free(x.plan);
}

static void test_mamba_refusals(void) {
  refused(llama2_7b(), "mamba,kivi",
          "kivi: llama-2-7b has no KV cache, expected full or sliding attention");
  refused(llama2_7b(), "mamba,goldfinch",
          "goldfinch: llama-2-7b is recurrent already, expected a transformer");
  KvModel experts = model_of("mixtral", 32, 32, 8);
  group.mlp.n_experts = 8;
  refused(experts, "mamba",
          "mamba: mixtral has experts, which a block has no place for, expected a dense model");
}

/* --- GoldFinch --- */

/* 21 recurrent layers and 11 that attend to one entry of 256 elements and an id. */
static void test_goldfinch(void) {
  Applied x = apply(llama2_7b(), "goldfinch");
  double states = 21 * (64 * D * 4 + 2 * D * 2) + 11 * 2 * D * 2;
  g_assert_cmpfloat(cost(&x, 1000, 500).resident_bytes[KV_TIER_HBM], ==,
                    1000 * (256 * 2 + 4) + states);
  g_assert_cmpfloat(cost(&x, 4000, 500).resident_bytes[KV_TIER_HBM], ==,
                    4000 * (256 * 2 + 4) + states);
  g_assert_cmpfloat(cost(&x, 1000, 500).read_bytes, ==, 1000 * 11 * (256 * 2 + 4 + D * 2) + states);
  g_assert_cmpfloat(cost(&x, 1000, 500).attention_flops, ==, 1000 * 11 * 4 * D);
  /* Corrections in each layer: 4*256 + 4*32 columns; the expansion once: (D + 256) columns. */
  const KvReader *reader = &x.curves.readers[0].reader;
  g_assert_cmpfloat(reader->rebuild_rank, ==, D);
  g_assert_cmpfloat(reader->rebuild_width * 11, ==, 11 * (4 * 256 + 4 * 32) + D + 256);
  g_assert_cmpfloat(x.model.groups[1].extra_prefill_passes, ==, -1);
  g_assert_false(x.plan->shareable);
  kv_plan_free(x.plan);
  x = apply(llama3_8b(), "goldfinch:impl=released");
  g_assert_cmpfloat(cost(&x, 1000, 500).resident_bytes[KV_TIER_HBM], ==,
                    1000 * (D * 2 + 8) + states);
  g_assert_cmpfloat(cost(&x, 1000, 500).read_bytes, ==,
                    1000 * 11 * (D * 2 + 8 + 5 * D * 2) + states);
  kv_plan_free(x.plan);
}

/* The published 1.45 B: 24 layers of 2048, a vocabulary of 65536. */
static void test_goldfinch_parameters(void) {
  KvModel model = model_of("goldfinch", 24, 32, 32);
  model.hidden = model.embedding_dim = 2048;
  model.vocab = 65536;
  Applied x = apply(model, "goldfinch");
  g_assert_cmpfloat_with_epsilon((double)kv_model_parameters(&x.model), 1.45e9, 0.03 * 1.45e9);
  kv_plan_free(x.plan);
}

static void test_goldfinch_refusals(void) {
  KvModel odd = model_of("odd", 32, 32, 8);
  odd.hidden = 1000;
  refused(odd, "goldfinch",
          "goldfinch: the hidden size of odd is 1000, expected a multiple of the 64 channels of a "
          "head");
  KvModel flat = model_of("flat", 1, 32, 8);
  refused(flat, "goldfinch", "goldfinch: flat has 1 layers, expected at least 2");
  refused(
      llama2_7b(), "goldfinch,lckv",
      "lckv: one layer's keys and values serve all others, but the layers of llama-2-7b are not "
      "all alike with full attention, expected such a model");
}

/* --- Block Transformer --- */

/* 16 layers over n / 4 blocks, 16 over at most 2 + 4 positions, 4 of them on average. */
static void test_block_transformer(void) {
  Applied x = apply(llama2_7b(), "block-transformer"),
          y = apply(llama3_8b(), "block-transformer:L_B=8");
  double layer = 2 * 32 * 128 * 2.0;
  KvPlanCost a = cost(&x, 1000, 500), b = cost(&y, 4000, 500);
  g_assert_cmpfloat(a.resident_bytes[KV_TIER_HBM], ==, (1000 / 4 + 6) * 16 * layer);
  /* Of a step in which the lower layers run. */
  g_assert_cmpfloat(a.read_bytes, ==, (1000 / 4 + 4) * 16 * layer);
  g_assert_cmpfloat(a.attention_flops, ==, (1000 / 4 + 4) * 16 * 4.0 * 32 * 128);
  g_assert_cmpfloat(b.resident_bytes[KV_TIER_HBM], ==, (4000 / 8 + 10) * 16 * layer / 4);
  g_assert_cmpuint(x.model.groups[0].stride_tokens, ==, 4);
  g_assert_cmpfloat(x.model.groups[1].extra_prefill_passes, ==, -1);
  g_assert_cmpuint(x.plan->share_multiple, ==, 4);
  /* Prefix: 2 P / L_B times the weights of 16 layers, 4 D^2 each (the model here has no MLP). */
  g_assert_cmpfloat(work_of(&x, "prefix of the next block")->flops, ==,
                    2 * 2 / 4.0 * 16 * 4 * D * D);
  KvModel model = llama2_7b();
  g_assert_cmpuint(kv_model_parameters(&x.model) - kv_model_parameters(&model), ==,
                   2 * (guint64)(D * D)); /* a block's embedding becomes P vectors */
  kv_plan_free(x.plan);
  kv_plan_free(y.plan);
}

static void test_block_transformer_refusals(void) {
  refused(llama2_7b(), "block-transformer:split=0.01",
          "block-transformer: split is 0.01 of 32 layers, expected a block decoder and a token "
          "decoder of at least one layer");
  refused(llama2_7b(), "lckv,block-transformer",
          "block-transformer: the layers of llama-2-7b are not all alike with full attention, "
          "expected such a model");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/mla/plan", test_mla);
  g_test_add_func("/mla/parameters", test_mla_parameters);
  g_test_add_func("/mla/bits", test_mla_bits);
  g_test_add_func("/mla/refusals", test_mla_refusals);
  g_test_add_func("/qcqa/plan", test_qcqa);
  g_test_add_func("/qcqa/refusals", test_qcqa_refusals);
  g_test_add_func("/lckv/plan", test_lckv);
  g_test_add_func("/lckv/composes", test_lckv_composes);
  g_test_add_func("/mamba/plan", test_mamba);
  g_test_add_func("/mamba/parameters", test_mamba_parameters);
  g_test_add_func("/mamba/catalogue", test_mamba_of_the_catalogue);
  g_test_add_func("/mamba/refusals", test_mamba_refusals);
  g_test_add_func("/goldfinch/plan", test_goldfinch);
  g_test_add_func("/goldfinch/parameters", test_goldfinch_parameters);
  g_test_add_func("/goldfinch/refusals", test_goldfinch_refusals);
  g_test_add_func("/block-transformer/plan", test_block_transformer);
  g_test_add_func("/block-transformer/refusals", test_block_transformer_refusals);
  return g_test_run();
}
