#include "tests/models/applied.h"

/* 32 layers of 2 * 4,096 * 2 bytes: 524,288 bytes a token; each step reads and writes all of it
 * once more to make it one token longer. Of 44 kernels a layer nine are counted elsewhere. */
static void test_hf_eager(void) {
  Applied x = apply(llama2_7b(), "hf-eager");
  const KvWork *copy = work_of(&x, "concatenate the cache");
  g_assert_cmpfloat(copy->bytes_per_token, ==, 2 * 524288.0);
  g_assert_cmpfloat(x.curves.readers[0].reader.extra_launches, ==, 35);
  g_assert_cmpfloat(cost(&x, 1000, 900).read_bytes, ==, 1000 * 524288.0);
  g_assert_false(x.plan->shareable || x.plan->paged);
  g_assert_cmpstr(x.config.scheduler, ==, "static");
  g_assert_false(x.config.cuda_graphs);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "hf-eager:attention=eager");
  g_assert_cmpfloat(x.curves.readers[0].reader.extra_launches, ==, 41);
  /* Scores in fp32, written and read in six passes: 32 layers * 32 heads * 4 * 6 bytes a pair. */
  g_assert_cmpfloat(work_of(&x, "scores of the prompt")->bytes_per_token, ==, 32.0 * 32 * 4 * 6);
  kv_plan_free(x.plan);
}

/* Eight KV heads for 32 query heads: read once, written for each query head, and read so again. */
static void test_hf_eager_repeats_heads(void) {
  Applied x = apply(llama3_8b(), "hf-eager");
  double stored = 32.0 * 8 * 2 * 128 * 2, repeated = 32.0 * 32 * 2 * 128 * 2;
  g_assert_cmpfloat(cost(&x, 1000, 900).read_bytes, ==, 1000 * (stored + 2 * repeated));
  kv_plan_free(x.plan);
}

static void tuned(KvModel model, const char *text, double *on_gpu, double *on_host) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(text, &error);
  KvPlatform *platform = kv_platform_load("gcp-t4", &error);
  g_assert_no_error(error);
  g_assert_true(kv_stack_tune(stack, &model, platform, &error));
  const KvTechniqueUse *use = &g_array_index(stack->uses, KvTechniqueUse, 0);
  *on_gpu = kv_technique_value(use, "wg");
  *on_host = kv_technique_value(use, "wc");
  kv_platform_free(platform);
}

/* OPT-30B's 60 GB: 70 % of a T4's 15,360 MiB is 11.3 GB, so a fifth; the rest is in host memory. */
static void test_placement_follows_the_platform(void) {
  g_autoptr(KvModel) model = kv_model_load("opt-30b", NULL);
  double on_gpu, on_host;
  tuned(*model, "accelerate-offload", &on_gpu, &on_host);
  g_assert_cmpfloat(on_gpu, >, 17.0);
  g_assert_cmpfloat(on_gpu, <, 20.0);
  g_assert_cmpfloat(on_gpu + on_host, >, 99.8);
  g_assert_cmpfloat(on_gpu + on_host, <=, 100.0);
  tuned(*model, "deepspeed-offload", &on_gpu, &on_host);
  g_assert_cmpfloat(on_gpu, ==, 0.0);
  g_autoptr(KvModel) large = kv_model_load("opt-175b", NULL); /* 350 GB, 208 GB of host memory */
  tuned(*large, "accelerate-offload", &on_gpu, &on_host);
  g_assert_cmpfloat(on_host, <, 60.0);
}

static void test_offloading_plans(void) {
  Applied x = apply(llama2_7b(), "accelerate-offload:wg=40:wc=50");
  g_assert_true(x.plan->weights.pageable);
  g_assert_false(x.plan->weights.stream_overlaps);
  g_assert_cmpfloat(x.plan->weights.share[KV_TIER_HBM], ==, 0.4);
  g_assert_cmpfloat(x.plan->weights.share[KV_TIER_DRAM], ==, 0.5);
  g_assert_cmpfloat(x.plan->weights.share[KV_TIER_SSD], ==, 1.0 - 0.4 - 0.5);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "deepspeed-offload");
  g_assert_true(x.plan->weights.stream_overlaps);
  g_assert_cmpfloat(x.plan->weights.share[KV_TIER_DRAM], ==, 1.0);
  kv_plan_free(x.plan);
  refused(llama2_7b(), "deepspeed-offload:wg=60:wc=50",
          "deepspeed-offload: wg and wc add up to 110 %, expected at most 100 %");
}

/* OPT-30B on a T4: the authors' own choice is blocks of 144, a fifth of the weights on the GPU and
 * the cache in host memory. */
static void test_flexgen_searches_its_policy(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvModel) model = kv_model_load("opt-30b", NULL);
  g_autoptr(KvStack) stack = kv_stack_parse("flexgen:policy=search:impl=released", &error);
  KvPlatform *platform = kv_platform_load("gcp-t4", &error);
  g_assert_true(kv_stack_tune(stack, model, platform, &error));
  const KvTechniqueUse *use = &g_array_index(stack->uses, KvTechniqueUse, 0);
  double block = kv_technique_value(use, "gbs") * kv_technique_value(use, "num_gpu_batches");
  g_assert_cmpfloat(block, >=, 64);
  g_assert_cmpfloat(kv_technique_value(use, "wg"), <=, 20);
  g_assert_cmpfloat(kv_technique_value(use, "cg"), ==, 0);
  g_assert_cmpfloat(kv_technique_value(use, "cc"), ==, 100);
  kv_platform_free(platform);
}

static void test_one_serving_system(void) {
  refused(llama2_7b(), "hf-eager,vllm",
          "vllm: scheduling and memory are already those of hf-eager, expected one serving system");
  Applied x = apply(llama2_7b(), "fastertransformer:batch=12");
  g_assert_cmpuint(x.config.static_batch, ==, 12);
  g_assert_cmpint(x.config.reservation, ==, KV_RESERVE_MAX);
  kv_plan_free(x.plan);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/baselines/hf-eager", test_hf_eager);
  g_test_add_func("/baselines/hf-eager/grouped-heads", test_hf_eager_repeats_heads);
  g_test_add_func("/baselines/placement", test_placement_follows_the_platform);
  g_test_add_func("/baselines/offloading", test_offloading_plans);
  g_test_add_func("/baselines/flexgen-search", test_flexgen_searches_its_policy);
  g_test_add_func("/baselines/one-serving-system", test_one_serving_system);
  return g_test_run();
}
