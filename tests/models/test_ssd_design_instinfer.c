/* InstInfer: bytes in flash, bytes that channels carry, FLOPs in the drives, and seconds. */
#include "applied.h"
#include "sim/engine/model_executor.h"
#include "sim/engine/predict.h"

/* Elements of a token's keys (or values), whole model. */
static double side(const Applied *x) {
  return 32.0 * x->model.groups[0].attention.n_kv_heads * 128.0;
}

static double host_bytes(const Applied *x, double n) {
  double bytes = 0.0;
  for (guint r = 0; r < x->curves.n_readers; r++)
    for (guint i = 0; i < x->curves.readers[r].n_terms; i++)
      bytes += n * x->curves.readers[r].terms[i].host_bytes;
  return bytes;
}

static void test_dense(void) {
  for (guint m = 0; m < 2; m++) {
    for (guint n = 1000; n <= 4000; n += 3000) {
      Applied x = apply(m ? llama3_8b() : llama2_7b(), "instinfer:compression=1");
      KvPlanCost c = cost(&x, n, n);
      double once = 2.0 * side(&x) * 2.0 * n; /* fp16 keys and values */
      g_assert_cmpfloat_with_epsilon(c.resident_bytes[KV_TIER_CSD], once * (1.0 + 8.0 / 4096), 1.0);
      g_assert_cmpfloat(c.resident_bytes[KV_TIER_HBM], ==, 0.0);
      g_assert_cmpfloat(c.read_bytes, ==, 0.0); /* nothing of it from HBM */
      g_assert_cmpfloat(c.fetched_bytes, ==, 0.0);
      g_assert_cmpfloat_with_epsilon(host_bytes(&x, n), once, 1.0);
      g_assert_cmpfloat_with_epsilon(c.attention_flops, 4.0 * 32 * 32 * 128 * n, 1.0);
      kv_plan_free(x.plan);
    }
  }
}

/* Keys twice; half of the dense cache's pages; an eighth of channels and of tokens. */
static void test_sparse(void) {
  for (guint m = 0; m < 2; m++) {
    for (guint n = 1000; n <= 4000; n += 3000) {
      Applied x = apply(m ? llama3_8b() : llama2_7b(), "instinfer");
      KvPlanCost c = cost(&x, n, n);
      double keys = side(&x) * 2.0 * n;
      g_assert_cmpfloat_with_epsilon(c.resident_bytes[KV_TIER_CSD], 3.0 * keys * (1.0 + 8.0 / 4096),
                                     1.0);
      g_assert_cmpfloat_with_epsilon(host_bytes(&x, n), 0.5 * 2.0 * keys, 1.0);
      /* L H (2 r n + 4 d k) with r = d/8 and k = n/8 */
      g_assert_cmpfloat_with_epsilon(c.attention_flops,
                                     32.0 * 32 * (2.0 * 16 * n + 4.0 * 128 * n / 8), 1.0);
      kv_plan_free(x.plan);
    }
  }
}

static double step_seconds(const char *use, const char *model, guint batch, guint context) {
  g_autoptr(KvScenario) s = kv_scenario_new();
  g_autoptr(GError) error = NULL;
  g_free(s->model);
  g_free(s->platform);
  g_free(s->use);
  s->model = g_strdup(model);
  s->platform = g_strdup("a6000");
  s->use = g_strdup(use);
  g_autoptr(KvSetup) setup = kv_setup_new(s, TRUE, &error);
  g_assert_no_error(error);
  KvStepQuestion q = {.decode = TRUE, .batch = batch, .context_tokens = context};
  KvPrediction p;
  g_assert_true(kv_predict(setup, &q, &p, &error));
  double seconds = p.cost.seconds;
  kv_prediction_clear(&p);
  return seconds;
}

/* OPT-13B, 64 sequences of 1,536: 64 * 1536 * 819,200 B = 80.5 GB at 0.684 * 11.2 GB/s. */
static void test_seconds(void) {
  double read = 64.0 * 1536 * 819200 / (0.684 * 11.2e9);
  double dense = step_seconds("instinfer:compression=1", "opt-13b", 64, 1536);
  g_assert_cmpfloat_with_epsilon(dense, read, 0.02 * read);
  /* What does not run beside the GPU comes on top of it. */
  double serial = step_seconds("instinfer:compression=1:half_batches=1", "opt-13b", 64, 1536);
  g_assert_cmpfloat(serial, >, dense + 0.02);
  g_assert_cmpfloat(serial, <, dense + 0.2);
  /* Half of the pages, twice the drives. */
  double sparse = step_seconds("instinfer", "opt-13b", 64, 1536);
  g_assert_cmpfloat_with_epsilon(sparse, 0.5 * read, 0.02 * read);
  double two = step_seconds("instinfer:compression=1:drives=2", "opt-13b", 64, 1536);
  g_assert_cmpfloat_with_epsilon(two, 0.5 * read, 0.02 * read);
  /* Twice the channels with the same engine: 64 * 1536 * 4 * 40 * 40 * 128 FLOPs at 12.7 GFLOP/s
   * are the limit. */
  double wide = step_seconds("instinfer:compression=1:flash_channels=16", "opt-13b", 64, 1536);
  double flops = 64.0 * 1536 * 4 * 40 * 40 * 128 / 12.7e9;
  g_assert_cmpfloat_with_epsilon(wide, flops, 0.02 * flops);
  g_assert_cmpfloat(flops, >, 0.5 * read);
}

static void test_refusals(void) {
  refused(
      llama2_7b(), "kivi,instinfer",
      "instinfer: the drives multiply 16-bit elements, but 'keys, packed' is quantized by kivi, "
      "expected one of the two");
  refused(
      llama2_7b(), "instinfer,vllm",
      "vllm: scheduling and memory are already those of instinfer, expected one serving system");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/instinfer/dense", test_dense);
  g_test_add_func("/instinfer/sparse", test_sparse);
  g_test_add_func("/instinfer/seconds", test_seconds);
  g_test_add_func("/instinfer/refusals", test_refusals);
  return g_test_run();
}
