#include "models/techniques/survey.h"
#include "tests/models/applied.h"

static void test_parse(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(
      "gqa:num_kv_heads=4, kivi:4:64:R=64,flexgen:compress_cache:overlap=off", &error);
  g_assert_no_error(error);
  g_assert_cmpuint(stack->uses->len, ==, 3);
  const KvTechniqueUse *uses = (const KvTechniqueUse *)stack->uses->data;
  g_assert_cmpfloat(kv_technique_value(&uses[0], "num_kv_heads"), ==, 4);
  g_assert_cmpfloat(kv_technique_value(&uses[0], "alpha"), ==, 0.05);
  g_assert_cmpfloat(kv_technique_value(&uses[1], "bits"), ==, 1);
  g_assert_cmpfloat(kv_technique_value(&uses[1], "G"), ==, 64);
  g_assert_cmpfloat(kv_technique_value(&uses[1], "R"), ==, 64);
  g_assert_cmpfloat(kv_technique_value(&uses[2], "compress_cache"), ==, 1);
  g_assert_cmpfloat(kv_technique_value(&uses[2], "overlap"), ==, 0);
  g_autoptr(KvStack) none = kv_stack_parse(NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(none->uses->len, ==, 0);
}

static void test_parse_errors(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"kiwi", "unknown technique 'kiwi', did you mean 'kivi'?"},
      {"kivi:bit=2", "kivi: unknown parameter 'bit', did you mean 'bits'?"},
      {"kivi:bits=3", "kivi: bits is '3', expected 2|4"},
      {"kivi:R=1000", "kivi: R is '1000', expected a whole number from 32 to 128 (tokens)"},
      {"kivi:R=64.5", "kivi: R is '64.5', expected a whole number from 32 to 128 (tokens)"},
      {"kivi:R=", "kivi: R is '', expected a whole number from 32 to 128 (tokens)"},
      {"kivi:R=nan", "kivi: R is 'nan', expected a whole number from 32 to 128 (tokens)"},
      {"kivi:R=64:R=64", "kivi: R is given twice, expected once"},
      {"kivi:2:32:128:ideal:5", "kivi: '5' is one value too many, expected at most 4"},
      {"flexgen:overlap=maybe", "flexgen: overlap is 'maybe', expected on|off"},
      {"vllm:watermark=2",
       "vllm: watermark is '2', expected a number from -1 to 1 (fraction of blocks)"},
      {"kivi,kivi", "kivi: is in the stack twice, expected once"},
      {"kivi,,gqa",
       "the stack 'kivi,,gqa' has an empty entry, expected technique[:param=value...],..."},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
}

static void test_gqa(void) {
  double mha = hbm_bytes(llama2_7b(), "", 1000, 500);
  g_assert_cmpfloat(mha, ==, 1000.0 * 2 * 32 * 32 * 128 * 2);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "gqa:num_kv_heads=8", 1000, 500), ==, mha / 4);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "gqa:num_kv_heads=1", 3000, 500), ==, 3 * mha / 32);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "gqa:num_kv_heads=2", 1000, 500), ==, mha / 16);
  Applied x = apply(llama2_7b(), "gqa");
  g_assert_cmpfloat(cost(&x, 1000, 500).attention_flops, ==, 4.0 * 32 * 32 * 128 * 1000);
  kv_plan_free(x.plan);
}

static void test_gqa_refusals(void) {
  refused(
      llama2_7b(), "gqa:num_kv_heads=5",
      "gqa: num_kv_heads is 5, expected a divisor of the 32 query and 32 KV heads of llama-2-7b");
  refused(llama3_8b(), "gqa:num_kv_heads=16",
          "gqa: num_kv_heads is 16, but llama-3-8b has 8 KV heads, expected at most 8");
  /* 4 divides the query heads, but 6 KV heads cannot be averaged into 4. */
  refused(model_of("made-up", 32, 24, 6), "gqa:num_kv_heads=4",
          "gqa: num_kv_heads is 4, expected a divisor of the 24 query and 6 KV heads of made-up");
  KvModel latent = model_of("deepseek-v2", 60, 128, 128);
  group.attention.kind = KV_ATTENTION_LATENT;
  refused(latent, "gqa",
          "gqa: deepseek-v2 has no layer with KV heads, expected full or sliding attention");
}

/* The card's formula, n = 500: nK = 384, nV = 372, 3 bits packed, 16 bits the rest. */
static void test_kivi_bytes(void) {
  double keys = 384 * 0.375 + 116 * 2, values = 372 * 0.375 + 128 * 2;
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "kivi", 500, 161), ==,
                    32.0 * 32 * 128 * (keys + values));
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "kivi", 500, 161), ==, 32.0 * 8 * 128 * (keys + values));
  /* Shorter than the residual: nothing is packed. At a multiple of R every key is. */
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "kivi", 100, 50), ==, 32.0 * 32 * 128 * 400);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "kivi", 512, 50), ==,
                    32.0 * 32 * 128 * (512 * 0.375 + 384 * 0.375 + 256));
  /* 4 bits, G = 64, R = 64, n = 500: nK = 448, nV = 436, 4.5 bits. */
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "kivi:bits=4:G=64:R=64", 500, 161), ==,
                    32.0 * 32 * 128 * (448 * 0.5625 + 52 * 2 + 436 * 0.5625 + 64 * 2));
}

static void test_kivi_plan(void) {
  Applied ideal = apply(llama3_8b(), "kivi"), released = apply(llama3_8b(), "kivi:impl=released");
  KvPlanCost a = cost(&ideal, 500, 161), b = cost(&released, 500, 161);
  g_assert_cmpfloat(a.read_bytes, ==, a.resident_bytes[KV_TIER_HBM]);
  /* Each KV head is read by 4 query heads, and the scores are 6*H*n*2 bytes a layer. */
  g_assert_cmpfloat(b.read_bytes, ==, 4 * a.read_bytes + 32.0 * 6 * 32 * 500 * 2);
  g_assert_cmpfloat(b.resident_bytes[KV_TIER_HBM], ==, a.resident_bytes[KV_TIER_HBM]);
  g_assert_cmpfloat(a.written_bytes, ==, 32.0 * 2 * 8 * 128 * 2); /* the new token stays fp16 */
  g_assert_cmpfloat(a.attention_flops, ==, 32.0 * 500 * (4 * 32 * 128 + 4 * 8 * 128));
  g_assert_cmpuint(ideal.plan->share_multiple, ==, 128);
  g_assert_true(ideal.plan->shareable);
  g_assert_cmpfloat(work_of(&ideal, "quantize the prompt")->flops_per_token, ==,
                    8.0 * 2 * 32 * 8 * 128);
  g_assert_cmpuint(work_of(&ideal, "quantize a block of keys")->every_steps, ==, 128);
  /* Copies of the packed values: 2*L*Hkv*d*nV*(q/8+4/G) = 2*32*8*128*372*0.375, and of the
   * residuals: 128 values and on average 63.5 keys. */
  g_assert_cmpfloat(ideal.curves.readers[0].reader.extra_launches, ==, 0);
  g_assert_cmpfloat(released.curves.readers[0].reader.extra_launches, ==, 6);
  g_assert_cmpfloat(work_of(&ideal, "quantize a block of keys")->launches, ==, 32);
  g_assert_cmpfloat(work_of(&released, "quantize a block of keys")->launches, ==, 8 * 32);
  const KvWork *copies = work_of(&released, "concatenate values and residuals");
  g_assert_cmpfloat(copies->bytes + 500 * copies->bytes_per_token, ==,
                    2.0 * 32 * 8 * 128 * (372 * 0.375 + 128 * 2 + 63.5 * 2));
  kv_plan_free(ideal.plan);
  kv_plan_free(released.plan);
}

static void test_kivi_refusals(void) {
  refused(llama2_7b(), "kivi:G=64:R=96", "kivi: R is 96, expected a multiple of G (64)");
  refused(
      llama2_7b(), "flexgen:compress_cache=on,kivi",
      "kivi: segment 'tokens' of the cache is already quantized by flexgen, expected one quantizer");
  refused(llama2_7b(), "kivi,flexgen:compress_cache=on",
          "flexgen: segment 'keys, packed' of the cache is already quantized by kivi, expected one "
          "quantizer");
  refused(llama2_7b(), "flexgen:cg=50:cc=50,kivi",
          "kivi: the cache 'cache' is already divided into segments, expected kivi before the "
          "technique that divides it");
  KvModel latent = model_of("deepseek-v2", 60, 128, 128);
  group.attention.kind = KV_ATTENTION_LATENT;
  refused(latent, "kivi",
          "kivi: the latent cache of deepseek-v2 has no separate keys and values, expected full or "
          "sliding attention");
  KvModel recurrent = model_of("mamba", 60, 128, 128);
  group.attention = (KvAttention){.kind = KV_ATTENTION_NONE, .state_elements = 10};
  refused(recurrent, "kivi", "kivi: mamba has no KV cache, expected full or sliding attention");
}

/* A window of 4096: keys are packed in whole blocks, values of the window but the last 128. */
static void test_kivi_sliding(void) {
  KvModel model = model_of("mistral", 32, 32, 8);
  group.attention.kind = KV_ATTENTION_SLIDING;
  group.attention.window_tokens = 4096;
  g_assert_cmpfloat(hbm_bytes(model, "kivi", 10000, 100), ==,
                    32.0 * 8 * 128 * (4096 * 0.375 + 16 * 2 + 3968 * 0.375 + 128 * 2));
}

static void test_snapkv_bytes(void) {
  /* A prompt of 16384 and 100 generated tokens keep 2048 + 100. */
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "snapkv", 16484, 16384), ==,
                    2148.0 * 2 * 32 * 32 * 128 * 2);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "snapkv:budget=1024", 16484, 16384), ==,
                    1124.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "snapkv", 1100, 1000), ==,
                    1100.0 * 2 * 32 * 8 * 128 * 2);
  /* The released code stores every query head's. */
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "snapkv:impl=released", 16484, 16384), ==,
                    2148.0 * 2 * 32 * 32 * 128 * 2);
}

static void test_snapkv_plan(void) {
  Applied x = apply(llama3_8b(), "snapkv");
  g_assert_cmpfloat(kv_plan_cost(x.plan, &x.curves, 8000, 16384, FALSE).resident_bytes[KV_TIER_HBM],
                    ==, 8000.0 * 2 * 32 * 8 * 128 * 2);
  g_assert_cmpfloat(cost(&x, 16484, 16384).attention_flops, ==, 2148.0 * 4 * 32 * 32 * 128);
  g_assert_false(x.plan->shareable);
  g_assert_cmpstr(x.plan->unshareable_by, ==, "snapkv");
  g_assert_false(x.config.prefix_caching);
  g_assert_cmpfloat(x.plan->prefill_peak_layers, ==, 1);
  const KvWork *vote = work_of(&x, "vote on the prompt");
  /* Per prompt token: 2*L*H*w*d, and a softmax, pooling and comparison. */
  g_assert_cmpfloat(vote->flops_per_token, ==, 32.0 * 32 * (2 * 32 * 128 + 32 + 5 + 1));
  g_assert_cmpfloat(vote->over_tokens, ==, 2048);
  g_assert_cmpfloat(work_of(&x, "gather the kept tokens")->bytes, ==,
                    2.0 * 2048 * 2 * 32 * 8 * 128 * 2);
  kv_plan_free(x.plan);
}

/* Once every query head has its own keys, the released kernels re-read nothing. */
static void test_snapkv_released_after_kivi_released(void) {
  Applied x = apply(llama3_8b(), "kivi:impl=released,snapkv:impl=released");
  KvPlanCost c = cost(&x, 1000, 500);
  g_assert_cmpfloat(c.read_bytes, ==, c.resident_bytes[KV_TIER_HBM] + 32.0 * 6 * 32 * 1000 * 2);
  g_assert_cmpuint(x.curves.readers[0].reader.n_kv_heads, ==, 32);
  kv_plan_free(x.plan);
}

static void test_snapkv_refusals(void) {
  refused(llama2_7b(), "snapkv:kernel_size=4", "snapkv: kernel_size is 4, expected an odd number");
  refused(llama2_7b(), "snapkv:budget=64:window_size=64",
          "snapkv: window_size is 64, expected less than the budget of 64 tokens");
  KvModel latent = model_of("deepseek-v2", 60, 128, 128);
  group.attention.kind = KV_ATTENTION_LATENT;
  refused(
      latent, "snapkv",
      "snapkv: tokens are kept head by head, but the latent cache of deepseek-v2 is one for all "
      "heads, expected full attention");
  KvModel sliding = model_of("mistral", 32, 32, 8);
  group.attention.kind = KV_ATTENTION_SLIDING;
  group.attention.window_tokens = 4096;
  refused(sliding, "snapkv",
          "snapkv: mistral has no layer with full attention to select from, expected one");
}

/* Two orders, one cache: 1124 tokens are left, 1024 of them packed keys (8 blocks) and 996 packed
 * values. */
static void test_snapkv_with_kivi(void) {
  double expected = 32.0 * 8 * 128 * (1024 * 0.375 + 100 * 2 + 996 * 0.375 + 128 * 2);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "snapkv:budget=1024,kivi", 16484, 16384), ==, expected);
  g_assert_cmpfloat(hbm_bytes(llama3_8b(), "kivi,snapkv:budget=1024", 16484, 16384), ==, expected);
  g_assert_cmpfloat(hbm_bytes(llama2_7b(), "gqa:num_kv_heads=8,snapkv:budget=1024,kivi:bits=2,vllm",
                              16484, 16384),
                    ==, expected);
}

static void test_flexgen_tiers(void) {
  /* All of the cache in host memory, attention on the CPU: nothing crosses the link but q and the
   * output. */
  Applied x = apply(llama2_7b(), "flexgen");
  double kappa = 2.0 * 32 * 32 * 128 * 2;
  KvPlanCost c = cost(&x, 512, 500);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, 512 * kappa);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_HBM], ==, 0);
  g_assert_cmpfloat(c.fetched_bytes, ==, 0);
  g_assert_cmpfloat(c.read_bytes, ==, 0);
  g_assert_cmpuint(x.curves.n_readers, ==, 1);
  g_assert_cmpint(x.curves.readers[0].reader.processor, ==, KV_PROCESSOR_CPU);
  g_assert_cmpfloat(x.plan->weights.share[KV_TIER_HBM], ==, 0.2);
  g_assert_cmpfloat(x.plan->weights.share[KV_TIER_DRAM], ==, 0.8);
  g_assert_cmpfloat(x.plan->weights.activation_share_host, ==, 1);
  kv_plan_free(x.plan);

  /* Split over three tiers, attention on the GPU: everything below HBM is fetched. */
  x = apply(llama3_8b(), "flexgen:cg=25:cc=50:cpu_cache_compute=off:overlap=off");
  kappa /= 4;
  c = cost(&x, 1024, 500);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_HBM], ==, 256 * kappa);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, 512 * kappa);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_SSD], ==, 256 * kappa);
  g_assert_cmpfloat(c.fetched_bytes, ==, 768 * kappa);
  g_assert_cmpfloat(c.read_bytes, ==, 1024 * kappa);
  g_assert_cmpfloat(c.written_bytes, ==, kappa);
  g_assert_cmpfloat(c.attention_flops, ==, 1024.0 * 4 * 32 * 32 * 128);
  g_assert_false(x.plan->weights.stream_overlaps);
  g_assert_cmpint(x.curves.readers[0].reader.overlap, ==, KV_OVERLAP_NONE);
  kv_plan_free(x.plan);

  /* A quarter on the GPU, read there; the disk's quarter has to come to the CPU. */
  x = apply(llama3_8b(), "flexgen:cg=25:cc=50");
  c = cost(&x, 1024, 500);
  g_assert_cmpuint(x.curves.n_readers, ==, 2);
  g_assert_cmpfloat(c.read_bytes, ==, 256 * kappa);
  g_assert_cmpfloat(c.fetched_bytes, ==, 256 * kappa);
  g_assert_cmpfloat(c.attention_flops, ==, 1024.0 * 4 * 32 * 32 * 128);
  kv_plan_free(x.plan);
}

static void test_flexgen_compression(void) {
  /* 4.5 bits an element. Unpacking writes fp16 and reads it again: 4 bytes an element. */
  Applied x = apply(llama2_7b(), "flexgen:compress_cache:compress_weight");
  double elements = 2.0 * 32 * 32 * 128;
  KvPlanCost c = cost(&x, 512, 500);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, 512 * elements * 4.5 / 8);
  g_assert_cmpfloat(c.fetched_bytes, ==, 512 * elements * 4.5 / 8);
  g_assert_cmpfloat(c.read_bytes, ==, 512 * elements * (4.5 / 8 + 4));
  g_assert_cmpfloat(x.plan->weights.bytes_per_parameter, ==, 4.5 / 8);
  g_assert_cmpint(x.curves.readers[0].reader.processor, ==, KV_PROCESSOR_GPU);
  g_assert_cmpfloat(x.curves.readers[0].reader.extra_launches, ==, 2);
  g_assert_cmpfloat(work_of(&x, "compress the new token")->bytes, ==, elements * (2 + 4.5 / 8));
  kv_plan_free(x.plan);
}

static void test_flexgen_sparse_values(void) {
  Applied x = apply(llama3_8b(), "flexgen:attn_sparsity=0.25:cpu_cache_compute=off");
  double half = 32.0 * 8 * 128 * 2;
  KvPlanCost c = cost(&x, 1000, 500);
  g_assert_cmpfloat(c.resident_bytes[KV_TIER_DRAM], ==, 2000 * half);
  g_assert_cmpfloat(c.fetched_bytes, ==, 1250 * half);
  g_assert_cmpfloat(c.attention_flops, ==, 32.0 * 2 * 32 * 128 * 1250);
  kv_plan_free(x.plan);
}

static void test_flexgen_engine(void) {
  Applied x = apply(llama2_7b(), "flexgen:gbs=32:num_gpu_batches=8");
  g_assert_cmpstr(x.config.scheduler, ==, "flexgen");
  g_assert_cmpstr(x.config.allocator, ==, "reserved");
  g_assert_cmpuint(x.config.gpu_batch, ==, 32);
  g_assert_cmpuint(x.config.n_gpu_batches, ==, 8);
  g_assert_cmpuint(x.config.max_seqs, ==, 256);
  g_assert_false(x.config.prefix_caching);
  g_assert_false(x.config.chunked_prefill);
  g_assert_false(x.plan->paged);
  kv_plan_free(x.plan);
}

static void test_flexgen_refusals(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"flexgen:compress_cache:attn_sparsity=0.1",
       "flexgen: compress_cache excludes attn_sparsity below 1: single rows of packed values cannot be "
       "fetched, expected one of the two"},
      {"flexgen:compress_cache:cpu_cache_compute=on",
       "flexgen: compress_cache excludes attention on the CPU, which has no kernel for packed keys, "
       "expected cpu_cache_compute=off or auto"},
      {"kivi,flexgen",
       "flexgen: attention on the CPU needs an uncompressed cache, but 'keys, packed' is quantized by "
       "kivi, expected cpu_cache_compute=off"},
      {"kivi,flexgen:cg=50:cc=50:cpu_cache_compute=off",
       "flexgen: the cache has 4 segments, too many to spread over these tiers, expected all of it on "
       "one tier"},
      {"flexgen:wg=60:wc=60", "flexgen: wg and wc add up to 120 %, expected at most 100 %"},
      {"flexgen:cg=60:cc=60", "flexgen: cg and cc add up to 120 %, expected at most 100 %"},
      {"flexgen:hc=50",
       "flexgen: hg and hc add up to 50 %, expected 100 %: activations on disk are "
       "not modelled"},
      {"flexgen,vllm",
       "vllm: scheduling and memory are already those of flexgen, expected one serving system"},
      {"orca,flexgen",
       "flexgen: scheduling and memory are already those of orca, expected one serving system"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    refused(llama2_7b(), cases[i].text, cases[i].message);
  KvModel sliding = model_of("mistral", 32, 32, 8);
  group.attention.kind = KV_ATTENTION_SLIDING;
  refused(sliding, "flexgen",
          "flexgen: layers of mistral have sliding attention, expected full attention");
}

static void test_orca(void) {
  Applied x = apply(llama2_7b(), "orca:max_bs=32:reservation=pow2");
  g_assert_cmpstr(x.config.scheduler, ==, "orca");
  g_assert_cmpstr(x.config.allocator, ==, "reserved");
  g_assert_cmpint(x.config.reservation, ==, KV_RESERVE_POW2);
  g_assert_cmpuint(x.config.max_seqs, ==, 32);
  g_assert_false(x.config.chunked_prefill);
  g_assert_false(x.config.prefix_caching);
  kv_plan_free(x.plan);
  x = apply(llama3_8b(), "orca");
  g_assert_cmpint(x.config.reservation, ==, KV_RESERVE_MAX);
  g_assert_cmpuint(x.config.max_seqs, ==, 8);
  kv_plan_free(x.plan);
  refused(llama2_7b(), "orca,vllm",
          "vllm: scheduling and memory are already those of orca, expected one serving system");
}

static void test_vllm(void) {
  Applied x = apply(llama2_7b(), "vllm");
  g_assert_cmpstr(x.config.scheduler, ==, "vllm-2023");
  g_assert_cmpstr(x.config.allocator, ==, "paged");
  g_assert_cmpuint(x.config.block_tokens, ==, 16);
  g_assert_cmpfloat(x.config.watermark, ==, 0.01);
  g_assert_cmpfloat(x.config.swap_bytes, ==, 4294967296.0);
  g_assert_cmpint(x.config.preemption, ==, KV_PREEMPT_RECOMPUTE);
  g_assert_cmpuint(x.config.max_seqs, ==, 256);
  g_assert_cmpuint(x.config.max_batched_tokens, ==, 4096);
  g_assert_false(x.config.chunked_prefill);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "vllm:version=2023-mixed:preemption_mode=swap:block_size=32");
  g_assert_cmpstr(x.config.scheduler, ==, "vllm-2023-mixed");
  g_assert_cmpint(x.config.preemption, ==, KV_PREEMPT_SWAP);
  g_assert_cmpuint(x.config.block_tokens, ==, 32);
  g_assert_cmpuint(x.config.max_batched_tokens, ==, 2560);
  kv_plan_free(x.plan);
  x = apply(llama2_7b(), "vllm:v1:max_num_seqs=64");
  g_assert_cmpstr(x.config.scheduler, ==, "vllm-v1");
  g_assert_cmpfloat(x.config.watermark, ==, 0);
  g_assert_cmpuint(x.config.max_seqs, ==, 64);
  g_assert_cmpuint(x.config.max_batched_tokens, ==, 0);
  g_assert_true(x.config.prefix_caching);
  g_assert_true(x.config.chunked_prefill);
  kv_plan_free(x.plan);
  refused(
      llama2_7b(), "vllm:v1:preemption_mode=swap",
      "vllm: version v1 preempts by recomputation only, expected preemption_mode=recompute or auto");
}

/* What a table's reader relies on: order, defaults inside their ranges, words for everything. */
static void test_every_technique_is_complete(void) {
  for (guint i = 0; kv_techniques[i]; i++) {
    const KvTechnique *x = kv_techniques[i];
    if (i > 0)
      g_assert_cmpstr(kv_techniques[i - 1]->id, <, x->id);
    g_assert_true(x->arch || x->plan || x->engine);
    g_assert_nonnull(x->sections[0]);
    for (const KvParam *param = x->params; param->name; param++) {
      g_assert_cmpfloat(param->fallback, >=, param->min);
      g_assert_cmpfloat(param->fallback, <=, param->max);
      g_assert_cmpuint(strlen(param->help), >, 0);
    }
    for (const KvQualityPoint *point = x->quality; point->model; point++)
      g_assert_true(strstr(point->source, "seen") || strstr(point->source, "recalled"));
    g_autofree char *page = kv_technique_page(x);
    for (const KvParam *param = x->params; param->name; param++)
      g_assert_nonnull(strstr(page, param->help));
    g_assert_nonnull(strstr(page, x->mechanism));
    g_assert_nonnull(strstr(page, x->pitfalls));
    g_autoptr(GError) error = NULL;
    Applied applied = apply(llama2_7b(), x->id);
    kv_plan_free(applied.plan);
  }
}

static gboolean is_baseline(const KvTechnique *technique) {
  return strcmp(technique->sections[0], "Baselines") == 0;
}

/* What is not a baseline is an entry of the survey, under the same sections. */
static void test_every_technique_is_of_the_survey(void) {
  guint n, rows = 0;
  const KvSurveyEntry *entries = kv_survey(&n);
  g_assert_cmpuint(n, ==, 130);
  for (guint i = 0; i < n; i++) {
    rows += g_strv_length(entries[i].sections);
    const KvTechnique *technique = kv_technique_find(entries[i].id, NULL);
    if (technique)
      g_assert_true(g_strv_equal((const char *const *)entries[i].sections, technique->sections));
  }
  g_assert_cmpuint(rows, ==, 138);
  for (guint t = 0; kv_techniques[t]; t++) {
    gboolean listed = is_baseline(kv_techniques[t]);
    for (guint i = 0; i < n && !listed; i++)
      listed = strcmp(entries[i].id, kv_techniques[t]->id) == 0;
    if (!listed)
      g_error("%s is not in the survey", kv_techniques[t]->id);
  }
}

static void test_page(void) {
  g_autofree char *page = kv_technique_page(kv_technique_find("kivi", NULL));
  g_assert_true(g_str_has_prefix(page, "# KIVI\n"));
  g_assert_nonnull(strstr(page, "| `bits` | 2 | 2, 4 | bit | width of the codes"));
  g_assert_nonnull(strstr(page, "| `R` | 128 | 32 to 128 | tokens |"));
  g_assert_nonnull(strstr(page, "| LLaMA-2-7B-32K | RULER avg | 2 bit G=32 R=128 | 56.4 | 39.78 | "
                                "KVQuant Table 4, seen in text copy |"));
  /* n = 4000: 3968 packed keys and 3872 packed values of 1536 bytes a layer, 32 and 128 of 8192.
   * Total 2097.2 MB before. */
  g_assert_nonnull(
      strstr(page, "| keys, packed | whole blocks of 128 | 3968 | 1536 | hbm | `####` |"));
  g_assert_nonnull(strstr(page, "Stored: 427.3 MB, 20.4 % of it. A decode step reads 427.3 MB"));
  g_autofree char *exact = kv_technique_page(kv_technique_find("orca", NULL));
  g_assert_nonnull(strstr(exact, "Exact: outputs equal those of dense attention"));
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/techniques/parse", test_parse);
  g_test_add_func("/techniques/parse-errors", test_parse_errors);
  g_test_add_func("/techniques/survey", test_every_technique_is_of_the_survey);
  g_test_add_func("/techniques/gqa", test_gqa);
  g_test_add_func("/techniques/gqa/refusals", test_gqa_refusals);
  g_test_add_func("/techniques/kivi/bytes", test_kivi_bytes);
  g_test_add_func("/techniques/kivi/plan", test_kivi_plan);
  g_test_add_func("/techniques/kivi/sliding", test_kivi_sliding);
  g_test_add_func("/techniques/kivi/refusals", test_kivi_refusals);
  g_test_add_func("/techniques/snapkv/bytes", test_snapkv_bytes);
  g_test_add_func("/techniques/snapkv/plan", test_snapkv_plan);
  g_test_add_func("/techniques/snapkv/released-after-kivi-released",
                  test_snapkv_released_after_kivi_released);
  g_test_add_func("/techniques/snapkv/refusals", test_snapkv_refusals);
  g_test_add_func("/techniques/snapkv/with-kivi", test_snapkv_with_kivi);
  g_test_add_func("/techniques/flexgen/tiers", test_flexgen_tiers);
  g_test_add_func("/techniques/flexgen/compression", test_flexgen_compression);
  g_test_add_func("/techniques/flexgen/sparse-values", test_flexgen_sparse_values);
  g_test_add_func("/techniques/flexgen/engine", test_flexgen_engine);
  g_test_add_func("/techniques/flexgen/refusals", test_flexgen_refusals);
  g_test_add_func("/techniques/orca", test_orca);
  g_test_add_func("/techniques/vllm", test_vllm);
  g_test_add_func("/techniques/every-one-is-complete", test_every_technique_is_complete);
  g_test_add_func("/techniques/page", test_page);
  return g_test_run();
}
