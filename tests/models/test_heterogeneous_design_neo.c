/* NEO's entry, and the price of a step whose second sub-batch attends on the CPU. The scheduler is
 * followed in tests/sim/test_scheduler_neo.c. */
#include "applied.h"
#include "sim/engine/model_executor.h"
#include "sim/engine/simulation.h"

static void test_entry(void) {
  Applied x = apply(llama2_7b(), "neo:max_tokens_in_batch=832:swap_space=50");
  g_assert_cmpstr(x.config.scheduler, ==, "neo");
  g_assert_cmpuint(x.config.max_batched_tokens, ==, 832);
  g_assert_cmpfloat(x.config.swap_bytes, ==, 50e9);
  g_assert_cmpfloat_with_epsilon(x.config.host_launch_seconds, 0.8e-3, 1e-15);
  g_assert_false(x.plan->shareable);
  /* The same bytes on the GPU as ever: 2 * 32 * 32 * 128 * 2 a token; the same FLOPs, 4 L H d. */
  g_assert_cmpfloat(cost(&x, 1000, 1000).read_bytes, ==, 1000.0 * 524288);
  g_assert_cmpfloat(cost(&x, 4000, 1000).attention_flops, ==, 4.0 * 32 * 32 * 128 * 4000);
  kv_plan_free(x.plan);
}

typedef struct {
  KvSetup *setup;
  KvExecutor *executor;
} Bench;

static Bench bench_new(const char *model) {
  g_autoptr(KvScenario) s = kv_scenario_new();
  g_autoptr(GError) error = NULL;
  g_free(s->model);
  g_free(s->platform);
  g_free(s->use);
  s->model = g_strdup(model);
  s->platform = g_strdup("h100-sxm");
  s->use = g_strdup("neo:launch_ms=0.01");
  Bench b = {kv_setup_new(s, TRUE, &error), NULL};
  g_assert_no_error(error);
  b.executor = kv_model_executor_new(b.setup->model, b.setup->plan, &b.setup->curves,
                                     b.setup->platform, &b.setup->scenario->engine, 1);
  return b;
}

static void bench_free(Bench *b) {
  b->executor->class->destroy(b->executor);
  kv_setup_free(b->setup);
}

/* `gpu` sequences on the GPU and `host` on the CPU, `first` of them in the first sub-batch, all of
 * `n` tokens. */
static KvStepCost priced(const Bench *b, guint gpu, guint host, guint first, double n) {
  double on_gpu[] = {gpu * n}, on_host[] = {host * n}, slopes[] = {0.0};
  KvStep step = {.repeat = 1, .host_first = first};
  step.decode = (KvDecodeBatch){
      .n = gpu, .context_tokens = gpu * n, .longest_tokens = n, .values = on_gpu, .slopes = slopes};
  step.host = (KvDecodeBatch){.n = host, .context_tokens = host * n, .values = on_host};
  KvStepCost cost;
  g_assert_true(b->executor->class->step(b->executor, &step, &cost, NULL));
  return cost;
}

/* What the CPU takes: cache over the host's bandwidth, or FLOPs over its rate; L (H + 2 Hkv) d
 * elements of 2 bytes down and L H d of 4 up; 10 us a layer. */
static double cpu_seconds(const Bench *b, double kv_heads, double host, double n) {
  const KvPlatform *p = b->setup->platform;
  double bytes = 2.0 * 32 * kv_heads * 128 * 2 * n * host, flops = 4.0 * 32 * 32 * 128 * n * host;
  double link = p->host_link->peak_Bps * p->host_link->achievable_share;
  double moved = host * 32 * 128 * ((32 + 2 * kv_heads) * 2.0 + 32 * 4.0);
  return MAX(bytes / p->host_memory->read_Bps, flops / p->cpu_flops) + moved / link + 32 * 1e-5;
}

static void test_price(void) {
  static const struct {
    const char *model;
    double kv_heads;
  } cases[] = {{"llama-2-7b", 32}, {"llama-3-8b", 8}};
  for (guint c = 0; c < 2; c++) {
    Bench b = bench_new(cases[c].model);
    for (guint n = 500; n <= 2000; n += 1500) {
      KvStepCost gpu = priced(&b, 20, 0, 0, n), both = priced(&b, 20, 6, 2, n);
      double cpu[] = {cpu_seconds(&b, cases[c].kv_heads, 2, n),
                      cpu_seconds(&b, cases[c].kv_heads, 4, n)};
      /* Slack of the second: the first one's linear layers, which carry two more rows. */
      KvStepCost linear = priced(&b, 22, 0, 0, 0);
      double layers = 0.0;
      const KvComponent of_layers[] = {KV_COMPONENT_QKV, KV_COMPONENT_OUTPUT_PROJECTION,
                                       KV_COMPONENT_MLP, KV_COMPONENT_ELEMENTWISE};
      for (guint i = 0; i < G_N_ELEMENTS(of_layers); i++)
        layers += linear.component_seconds[of_layers[i]];
      g_assert_cmpfloat_with_epsilon(both.slack_seconds[1], layers - cpu[1], 1e-9);
      double exposed = MAX(0.0, -both.slack_seconds[0]) + MAX(0.0, -both.slack_seconds[1]);
      g_assert_cmpfloat_with_epsilon(both.component_seconds[KV_COMPONENT_TRANSFER], exposed, 1e-12);
      /* The weights are read once more for the second sub-batch; the host's cache is not read from
       * HBM. */
      g_assert_cmpfloat(both.component_bytes[KV_COMPONENT_MLP], >,
                        1.9 * gpu.component_bytes[KV_COMPONENT_MLP]);
      g_assert_cmpfloat(both.component_bytes[KV_COMPONENT_DECODE_ATTENTION], ==,
                        gpu.component_bytes[KV_COMPONENT_DECODE_ATTENTION]);
    }
    /* More and longer sequences use the slack up. */
    g_assert_cmpfloat(priced(&b, 20, 60, 0, 2000).slack_seconds[1], <,
                      priced(&b, 20, 6, 0, 2000).slack_seconds[1]);
    bench_free(&b);
  }
}

static void test_refusals(void) {
  refused(
      llama2_7b(), "kivi,neo",
      "neo: attention on the CPU needs an uncompressed cache, but 'keys, packed' is quantized by "
      "kivi, expected one of the two");
  refused(llama2_7b(), "instinfer,neo",
          "neo: 'tokens' of the cache is in csd already, expected a cache in HBM, of which whole "
          "sequences move");
  refused(llama2_7b(), "neo,vllm",
          "vllm: scheduling and memory are already those of neo, expected one serving system");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/neo/entry", test_entry);
  g_test_add_func("/neo/price", test_price);
  g_test_add_func("/neo/refusals", test_refusals);
  return g_test_run();
}
