/* A step's price, kernel by kernel: latent attention worked by hand, and the interval of the sum.
 */
#include <math.h>
#include <string.h>

#include "sim/engine/model_executor.h"
#include "sim/engine/predict.h"

static void assert_near(double got, double wanted, double relative) {
  if (!(fabs(got - wanted) <= relative * fabs(wanted)))
    g_error("%.12g is not within %g of %.12g", got, relative, wanted);
}

static KvSetup *setup_of(const char *settings) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_auto(GStrv) words = g_strsplit(settings, " ", -1);
  g_autoptr(GError) error = NULL;
  for (guint i = 0; words[i]; i++)
    g_assert_true(kv_scenario_set(scenario, words[i], &error));
  KvSetup *setup = kv_setup_new(scenario, FALSE, &error);
  g_assert_no_error(error);
  return setup;
}

static KvPrediction predict(const KvSetup *setup, const KvStepQuestion *question) {
  KvPrediction prediction;
  g_autoptr(GError) error = NULL;
  g_assert_true(kv_predict(setup, question, &prediction, &error));
  g_assert_no_error(error);
  return prediction;
}

/* Of all kernels of a family. */
static KvCost sum_of(const KvPrediction *prediction, KvKernelFamily family) {
  KvCost sum = {0};
  for (guint i = 0; i < prediction->kernels->len; i++) {
    const KvPricedKernel *k = &g_array_index(prediction->kernels, KvPricedKernel, i);
    if (k->family != family)
      continue;
    sum.seconds += k->cost.seconds;
    sum.flops += k->cost.flops;
    sum.bytes += k->cost.bytes;
  }
  return sum;
}

/* DeepSeek-V3: 61 layers, 128 heads of 128 + 64 and values of 128, a latent of 512 + 64. */
static void test_latent_attention_by_hand(void) {
  g_autoptr(KvSetup) setup =
      setup_of("model=deepseek-v3 platform=8xh200 deployment.tensor_parallel=8");
  KvPrediction decode = predict(setup, &(KvStepQuestion){TRUE, 64, 4096, 0});
  KvCost absorbed = sum_of(&decode, KV_KERNEL_LATENT_DECODE);
  /* Every GPU reads the whole latent, of 16 bits, and multiplies it with its 16 heads: scores over
   * 576, values over 512. */
  assert_near(absorbed.bytes, 61.0 * 64 * 4096 * 576 * 2, 1e-9);
  assert_near(absorbed.flops, 61.0 * 64 * 4096 * 16 * 2 * (576 + 512), 1e-9);
  g_assert_cmpfloat(sum_of(&decode, KV_KERNEL_DECODE_ATTENTION).seconds, ==, 0);
  kv_prediction_clear(&decode);

  KvPrediction prefill = predict(setup, &(KvStepQuestion){FALSE, 1, 4096, 0});
  KvCost widened = sum_of(&prefill, KV_KERNEL_LATENT_PREFILL);
  assert_near(widened.flops, 61.0 * 16 * 2 * (192 + 128) * 4096 * 4097 / 2, 1e-9);
  kv_prediction_clear(&prefill);

  /* A later chunk widens the latents of those before again: 512 to 16 heads of 128 + 128. */
  KvPrediction chunk = predict(setup, &(KvStepQuestion){FALSE, 1, 4096, 1024});
  gboolean widens = FALSE;
  for (guint i = 0; i < chunk.kernels->len; i++) {
    const KvPricedKernel *k = &g_array_index(chunk.kernels, KvPricedKernel, i);
    if (strcmp(k->name, "kv up-projection of past") != 0 || k->count != 58)
      continue;
    widens = TRUE;
    assert_near(k->cost.flops, 58.0 * 2 * 3072 * 512 * 16 * 256, 1e-9);
  }
  g_assert_true(widens);
  kv_prediction_clear(&chunk);
}

/* Heads that tensor parallelism cannot split are read on every GPU that holds them: of Qwen3-30B's
 * 4 KV heads each of 8 GPUs has one. */
static void test_shared_heads_are_read_by_each(void) {
  g_autoptr(KvSetup) setup =
      setup_of("model=qwen3-30b-a3b platform=8xh200 deployment.tensor_parallel=8");
  KvPrediction decode = predict(setup, &(KvStepQuestion){TRUE, 8, 2048, 0});
  assert_near(sum_of(&decode, KV_KERNEL_DECODE_ATTENTION).bytes, 48.0 * 8 * 2048 * 128 * 2 * 2,
              1e-9);
  kv_prediction_clear(&decode);
}

/* The interval is the root of squares over families of each one's own errors. */
static void test_interval_is_of_each_family_and_type(void) {
  g_autoptr(KvSetup) setup =
      setup_of("model=deepseek-v3 platform=8xh200 deployment.tensor_parallel=8");
  const KvDevice *device = setup->platform->device;
  KvPrediction decode = predict(setup, &(KvStepQuestion){TRUE, 64, 4096, 0});
  double above[KV_N_KERNELS] = {0}, squares = 0;
  gboolean fp8_block = FALSE;
  for (guint i = 0; i < decode.kernels->len; i++) {
    const KvPricedKernel *k = &g_array_index(decode.kernels, KvPricedKernel, i);
    if (k->family == KV_N_KERNELS)
      continue;
    fp8_block |= k->family == KV_KERNEL_GEMM && k->dtype == KV_DTYPE_FP8_BLOCK;
    above[k->family] +=
        k->cost.seconds * expm1(device->efficiency[k->family][k->dtype].high_log_error);
  }
  for (guint f = 0; f < KV_N_KERNELS; f++)
    squares += above[f] * above[f];
  KvTimeInterval interval = kv_prediction_interval(setup, &decode);
  assert_near(interval.seconds, decode.cost.seconds, 1e-9);
  assert_near(kv_time_interval_high(&interval), decode.cost.seconds + sqrt(squares), 1e-9);
  g_assert_true(fp8_block);
  g_assert_cmpfloat(above[KV_KERNEL_MOE], >, 0);
  g_assert_cmpfloat(above[KV_KERNEL_LATENT_DECODE], >, 0);
  g_assert_cmpfloat(above[KV_KERNEL_ALL_REDUCE], >, 0);
  /* fp8 products are less certain than bf16 ones. */
  g_assert_cmpfloat(device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_FP8].high_log_error, >,
                    device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].high_log_error);
  kv_prediction_clear(&decode);
}

/* A device that nothing was fitted to has the errors of leaving a device out. */
static void test_uncalibrated_devices_are_less_certain(void) {
  const KvStepQuestion question = {TRUE, 64, 4096, 0};
  double width[2];
  const char *const settings[] = {"model=llama-3.1-8b platform=h100-sxm",
                                  "model=llama-3.1-8b platform=h800"};
  for (guint i = 0; i < G_N_ELEMENTS(settings); i++) {
    g_autoptr(KvSetup) setup = setup_of(settings[i]);
    g_assert_cmpint(setup->platform->device->calibrated, ==, i == 0);
    KvPrediction prediction = predict(setup, &question);
    KvTimeInterval interval = kv_prediction_interval(setup, &prediction);
    width[i] = (kv_time_interval_high(&interval) - kv_time_interval_low(&interval)) /
               prediction.cost.seconds;
    kv_prediction_clear(&prediction);
  }
  g_assert_cmpfloat(width[1], >, 1.5 * width[0]);
}

/* An H100's long prompt runs below the full clock; its decode steps, and an H200's prompts, whose
 * efficiencies hold the limit, have no such line. */
static void test_power_limit_slows_prompts(void) {
  const struct {
    const char *platform;
    gboolean decode, slowed;
  } cases[] = {{"h100-sxm", FALSE, TRUE}, {"h100-sxm", TRUE, FALSE}, {"h200", FALSE, FALSE}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *settings =
        g_strdup_printf("model=llama-3.1-8b platform=%s", cases[i].platform);
    g_autoptr(KvSetup) setup = setup_of(settings);
    KvPrediction prediction = predict(setup, &(KvStepQuestion){cases[i].decode, 1, 8192, 0});
    double slowed = 0;
    for (guint k = 0; k < prediction.kernels->len; k++)
      if (!strcmp(g_array_index(prediction.kernels, KvPricedKernel, k).name,
                  "clock at the power limit"))
        slowed += g_array_index(prediction.kernels, KvPricedKernel, k).cost.seconds;
    g_assert_cmpint(slowed > 0, ==, cases[i].slowed);
    if (slowed > 0) /* readings of such a prompt: 1425 of 1980 MHz */
      assert_near(slowed / (prediction.cost.seconds - slowed), 1980.0 / 1425 - 1, 0.35);
    kv_prediction_clear(&prediction);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/prediction/latent", test_latent_attention_by_hand);
  g_test_add_func("/prediction/shared-heads", test_shared_heads_are_read_by_each);
  g_test_add_func("/prediction/interval", test_interval_is_of_each_family_and_type);
  g_test_add_func("/prediction/uncalibrated", test_uncalibrated_devices_are_less_certain);
  g_test_add_func("/prediction/power-limit", test_power_limit_slows_prompts);
  return g_test_run();
}
