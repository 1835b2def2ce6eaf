#include "tests/models/applied.h"

/* Two summaries of 128 fp16 elements a page of 16: a sixteenth of the cache. */
static void test_quest_bytes(void) {
  double mha = 32.0 * 2 * 32 * 128 * 2, gqa = mha / 4;
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "quest", 1600, 1000), ==, 1600 * mha * 17 / 16);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "quest", 32000, 1000), ==, 32000 * mha * 17 / 16);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "quest:page_size=32", 3200, 1000), ==,
                    3200 * gqa * 33 / 32);
}

/* Two dense layers; in 30, summaries of n/16 pages, 6 bytes a page and query head for bounds and
 * indices, and 2048 tokens. */
static void test_quest_reads(void) {
  for (guint m = 0; m < 2; m++) {
    double kv_heads = m ? 8 : 32, token = 2 * kv_heads * 128 * 2;
    Applied ideal = apply(m ? llama3_8b() : llama2_7b(), "quest");
    Applied released = apply(m ? llama3_8b() : llama2_7b(), "quest:impl=released");
    static const double at[] = {4096, 65536};
    for (guint i = 0; i < G_N_ELEMENTS(at); i++) {
      double n = at[i];
      double index = n / 16 * (token + 6 * 32), dense = 2 * n * token;
      g_assert_cmpfloat(cost(&ideal, n, n - 1).read_bytes, ==, dense + 30 * (index + 2048 * token));
      g_assert_cmpfloat(cost(&released, n, n - 1).read_bytes, ==,
                        dense + 30 * (index + 2048 * token * 32 / kv_heads));
      g_assert_cmpfloat(cost(&ideal, n, n - 1).attention_flops, ==,
                        4.0 * 32 * 128 * (2 * n + 30 * (n / 16 + 2048)));
      g_assert_cmpfloat(cost(&ideal, n, n - 1).fetched_bytes, ==, 0);
    }
    /* Within the budget nothing is estimated. */
    g_assert_cmpfloat(cost(&ideal, 2048, 2000).read_bytes, ==, 32 * 2048 * token);
    kv_plan_free(ideal.plan);
    kv_plan_free(released.plan);
  }
}

static void test_quest_plan(void) {
  Applied x = apply(llama2_7b(), "kivi:R=96:G=32");
  guint kivi = x.plan->share_multiple;
  kv_plan_free(x.plan);
  g_assert_cmpuint(kivi, ==, 96);
  x = apply(llama2_7b(), "quest");
  g_assert_true(x.plan->shareable);
  g_assert_cmpuint(x.plan->share_multiple, ==, 16);
  g_assert_cmpuint(x.config.max_seqs, ==, 0);
  g_assert_cmpfloat(cost(&x, 8000, 100).written_bytes, ==, 32.0 * 2 * 32 * 128 * 2);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "quest:impl=released");
  g_assert_cmpuint(x.config.max_seqs, ==, 1);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "quest:skip_layers=0");
  g_assert_cmpuint(x.plan->caches->len, ==, 1);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "quest:skip_layers=40"); /* all of them */
  g_assert_cmpfloat(cost(&x, 8000, 100).read_bytes, ==, 8000 * 32.0 * 2 * 32 * 128 * 2);
  kv_plan_free(x.plan);
}

static void test_quest_refusals(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"quest:token_budget=32",
       "quest: token_budget is 32, expected at least three pages of 16 tokens"},
      {"flexgen,quest",
       "quest: pages are chosen, but the cache lies in contiguous memory, expected a paged plan"},
      {"quest,flexgen",
       "flexgen: quest chooses what is read of the cache, expected a technique that reads all of it"},
      {"snapkv,quest",
       "quest: snapkv chooses which tokens of the cache stay, expected a cache of all tokens"},
      {"quest,kivi",
       "kivi: quest chooses what is read of the cache, expected a technique that reads all of it"},
      {"retrieval-attention,quest",
       "quest: the cache 'cache' is already divided or filled by a law of its own, expected one with "
       "whole tokens, keys and values together"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
}

/* On the GPU 128 + 512 of the prompt and what is generated; on the host the prompt, and 32 edges of
 * 4 bytes a token in a graph per query head. */
static void test_retrieval_bytes(void) {
  static const double prompts[] = {4000, 128000};
  for (guint m = 0; m < 2; m++) {
    double token = 32.0 * 2 * (m ? 8 : 32) * 128 * 2, edges = 32.0 * 32 * 32 * 4;
    for (guint i = 0; i < G_N_ELEMENTS(prompts); i++) {
      Applied x = apply(m ? llama3_8b() : llama2_7b(), "retrieval-attention");
      KvPlanCost c = cost(&x, prompts[i] + 100, prompts[i]);
      g_assert_cmpfloat(c.resident_bytes[KV_TIER_HBM], ==, 740 * token);
      g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, prompts[i] * (token + edges));
      g_assert_cmpfloat(c.read_bytes, ==, 740 * token);
      g_assert_cmpfloat(c.fetched_bytes, ==, 0);
      g_assert_cmpfloat(c.written_bytes, ==, token);
      /* 740 tokens on the GPU, 100 on the CPU, and 2 % of all keys. */
      g_assert_cmpfloat_with_epsilon(
          c.attention_flops, 32.0 * 32 * 128 * (4 * 840 + 2 * 0.02 * (prompts[i] + 100)), 1e-3);
      kv_plan_free(x.plan);
    }
  }
}

static void test_retrieval_readers(void) {
  Applied x = apply(llama3_8b(), "retrieval-attention");
  g_assert_cmpuint(x.curves.n_readers, ==, 2);
  const KvReader *cpu = &x.curves.readers[1].reader;
  g_assert_cmpint(cpu->processor, ==, KV_PROCESSOR_CPU);
  g_assert_cmpint(cpu->overlap, ==, KV_OVERLAP_ATTENTION);
  g_assert_cmpfloat(cpu->efficiency, ==, 0.3);
  g_assert_cmpfloat(cpu->fixed_seconds, ==, 50e-6);
  double host = 0.0; /* per token of each term, 32 layers */
  for (guint i = 0; i < x.curves.readers[1].n_terms; i++) {
    const KvReadTerm *term = &x.curves.readers[1].terms[i];
    host += term->host_bytes *
            kv_law_value(&x.curves.laws[term->channel], 10000, 9000, TRUE, NULL, NULL);
  }
  /* Each query head reads its own rows: 2 % of the keys and 100 keys and values. */
  g_assert_cmpfloat_with_epsilon(host, 32.0 * 32 * 128 * 2 * (0.02 * 10000 + 2 * 100), 1e-3);
  g_assert_cmpfloat(work_of(&x, "nearest keys of the prompt's queries")->flops_per_token, ==,
                    32.0 * 4 * 32 * 128);
  g_assert_cmpint(work_of(&x, "build the graphs")->processor, ==, KV_PROCESSOR_CPU);
  g_assert_false(x.plan->shareable);
  kv_plan_free(x.plan);
  x = apply(llama3_8b(), "retrieval-attention:index=flat:impl=released");
  g_assert_cmpfloat(x.curves.readers[1].reader.efficiency, ==, 1);
  g_assert_cmpfloat(x.curves.readers[1].reader.index_bytes_per_token, ==, 32.0 * 128 * 4);
  g_assert_cmpfloat_with_epsilon(x.curves.readers[1].reader.fixed_seconds, 3.40625e-3, 1e-9);
  g_assert_cmpfloat(cost(&x, 4100, 4000).resident_bytes[KV_TIER_DRAM], ==,
                    4000 * 32.0 * 2 * 8 * 128 * 4); /* fp32, and no graph */
  kv_plan_free(x.plan);
  x = apply(llama3_8b(), "retrieval-attention:index=ivf:layer_floor=2");
  g_assert_cmpfloat(x.curves.readers[1].reader.index_bytes_per_token, ==, 0.3 * 32.0 * 128 * 2);
  g_assert_cmpfloat(x.curves.readers[1].reader.fixed_seconds, ==, 2e-3);
  kv_plan_free(x.plan);
}

static void test_retrieval_refusals(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"flexgen,retrieval-attention",
       "retrieval-attention: segment 'tokens' of the cache already lies in dram, expected one "
       "technique that says where it lies"},
      {"retrieval-attention,flexgen",
       "flexgen: retrieval-attention chooses what is read of the cache, expected a technique that reads "
       "all of it"},
      {"flexgen:compress_cache:cg=100:cc=0,retrieval-attention",
       "retrieval-attention: segment 'tokens' of the cache is already quantized by flexgen, expected "
       "16-bit keys and values"},
      {"retrieval-attention,snapkv",
       "snapkv: retrieval-attention chooses what is read of the cache, expected a technique that reads "
       "all of it"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/quest/bytes", test_quest_bytes);
  g_test_add_func("/techniques/quest/reads", test_quest_reads);
  g_test_add_func("/techniques/quest/plan", test_quest_plan);
  g_test_add_func("/techniques/quest/refusals", test_quest_refusals);
  g_test_add_func("/techniques/retrieval-attention/bytes", test_retrieval_bytes);
  g_test_add_func("/techniques/retrieval-attention/readers", test_retrieval_readers);
  g_test_add_func("/techniques/retrieval-attention/refusals", test_retrieval_refusals);
  return g_test_run();
}
