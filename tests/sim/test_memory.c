/* sim/engine/memory.h: blocks worked out by hand, and what a real engine found. */
#include "sim/engine/memory.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/engine/simulation.h"

#define GiB (1024.0 * 1024 * 1024)

static KvSetup *setup_of(const char *const *settings, GError **error) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  for (guint i = 0; settings[i]; i++)
    g_assert_true(kv_scenario_set(scenario, settings[i], NULL));
  return kv_setup_new(scenario, TRUE, error);
}

#define SETUP(error, ...) setup_of((const char *const[]){__VA_ARGS__, NULL}, error)

/* By hand for llama-3.1-8b: 8,030,261,248 parameters of 2 bytes; a step of T tokens holds the
 * residual stream twice and the MLP's gate, up and product (2 * 4,096 + 3 * 14,336 elements of 2
 * bytes a token); S sampled rows of 128,256 logits in fp32, twice; 0.71 GiB of framework; blocks of
 * 2 MiB, the first of which is the null block. */
static guint64 by_hand(double memory_bytes, double utilization, double tokens, double seqs) {
  double weights = 8030261248.0 * 2.0;
  double activations = tokens * (2.0 * 4096.0 + 3.0 * 14336.0) * 2.0 + seqs * 128256.0 * 4.0 * 2.0;
  double left = memory_bytes * utilization - weights - activations - 0.71 * GiB;
  return (guint64)floor(left / (2.0 * 1024 * 1024)) - 1;
}

static void llama_by_hand(void) {
  const struct {
    const char *platform;
    double utilization;
    guint tokens, seqs;
  } cases[] = {
      {"h200", 0.9, 8192, 1024},     {"h200", 0.9, 2048, 256},     {"h200", 0.5, 512, 16},
      {"h100-sxm", 0.9, 8192, 1024}, {"rtx-4090", 0.9, 2048, 256}, {"rtx-4090", 0.95, 2048, 256},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    char platform[64], utilization[64], tokens[64], seqs[64];
    g_snprintf(platform, sizeof platform, "platform=%s", cases[i].platform);
    g_snprintf(utilization, sizeof utilization, "engine.memory_utilization=%g",
               cases[i].utilization);
    g_snprintf(tokens, sizeof tokens, "engine.max_batched_tokens=%u", cases[i].tokens);
    g_snprintf(seqs, sizeof seqs, "engine.max_seqs=%u", cases[i].seqs);
    g_autoptr(GError) error = NULL;
    g_autoptr(KvSetup) setup =
        SETUP(&error, "model=llama-3.1-8b", platform, utilization, tokens, seqs);
    g_assert_no_error(error);
    g_assert_cmpfloat(setup->memory.weight_bytes, ==, 8030261248.0 * 2.0);
    g_assert_cmpuint(setup->memory.blocks, ==,
                     by_hand(setup->platform->device->memory_bytes, cases[i].utilization,
                             cases[i].tokens, cases[i].seqs));
  }
}

/* vLLM 0.19 found 2,588 blocks of 16 tokens for this model with 2,048 batched tokens and 256
 * sequences, on an RTX 4090 of which CUDA showed 25,250,627,584 bytes. */
static void blocks_of_a_real_engine(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvSetup) setup = SETUP(&error, "model=llama-3.1-8b", "platform=rtx-4090",
                                   "engine.max_batched_tokens=2048", "engine.max_seqs=256");
  g_assert_no_error(error);
  guint64 catalogue = setup->memory.blocks;
  setup->platform->device->memory_bytes = 25250627584.0;
  g_assert_true(kv_memory_divide(setup->model, setup->plan, &setup->demand, setup->platform,
                                 &setup->scenario->engine, 1, &setup->memory, &error));
  g_test_message("%" G_GUINT64_FORMAT " blocks, 2,588 measured; %" G_GUINT64_FORMAT
                 " of the memory that the catalogue gives",
                 setup->memory.blocks, catalogue);
  g_assert_cmpfloat(fabs((double)setup->memory.blocks / 2588.0 - 1.0), <=, 0.03);
}

static void parts_add_up(void) {
  const char *const platforms[] = {"platform=h200", "platform=2xh200", "platform=8xh200"};
  const guint widths[] = {1, 2, 8};
  for (guint i = 0; i < G_N_ELEMENTS(platforms); i++) {
    char tp[64];
    g_autoptr(GError) error = NULL;
    g_snprintf(tp, sizeof tp, "deployment.tensor_parallel=%u", widths[i]);
    g_autoptr(KvSetup) setup = SETUP(&error, "model=llama-3.1-8b", platforms[i], tp);
    g_assert_no_error(error);
    const KvMemory *m = &setup->memory;
    g_assert_cmpfloat(m->weight_bytes, ==, 8030261248.0 * 2.0 / widths[i]);
    g_assert_cmpfloat_with_epsilon(m->weight_bytes + m->activation_bytes + m->framework_bytes +
                                       m->cache_bytes,
                                   0.9 * setup->platform->device->memory_bytes, 1.0);
    /* The blocks and the null block fill the cache but for less than one. */
    double room = m->cache_bytes * widths[i] / setup->demand.block_bytes;
    g_assert_cmpfloat((double)m->blocks + 1.0, <=, room);
    g_assert_cmpfloat((double)m->blocks + 2.0, >, room);
  }
}

/* Four KV heads on eight GPUs: every head is stored twice. */
static void heads_are_replicated(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvSetup) setup =
      SETUP(&error, "model=qwen3-30b-a3b", "platform=8xh200", "deployment.tensor_parallel=8");
  g_assert_no_error(error);
  g_assert_cmpuint(setup->model->groups[0].attention.n_kv_heads, ==, 4);
  double room = setup->memory.cache_bytes * 8.0 / setup->demand.block_bytes / 2.0;
  g_assert_cmpfloat((double)setup->memory.blocks + 1.0, <=, room);
  g_assert_cmpfloat((double)setup->memory.blocks + 2.0, >, room);
}

static void given_number_of_blocks_is_taken(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvSetup) setup =
      SETUP(&error, "model=llama-3.1-8b", "platform=h200", "engine.num_blocks=1234");
  g_assert_no_error(error);
  g_assert_cmpuint(setup->memory.blocks, ==, 1234);
}

static void too_small_is_said(void) {
  const char *const cases[][4] = {
      {"model=llama-3.1-8b", "platform=rtx-4090", "engine.memory_utilization=0.5", NULL},
      {"model=llama-3.1-8b", "platform=rtx-4090", "precision.weights=fp32", NULL},
      /* Room for the weights, but not for a block of 65,536 tokens. */
      {"model=llama-3.1-8b", "platform=rtx-4090", "engine.block_tokens=65536", NULL},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(setup_of(cases[i], &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    g_assert_nonnull(strstr(error->message, "llama-3.1-8b on rtx-4090: "));
    g_assert_null(strchr(error->message, '\n'));
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/memory/llama-by-hand", llama_by_hand);
  g_test_add_func("/memory/blocks-of-a-real-engine", blocks_of_a_real_engine);
  g_test_add_func("/memory/parts-add-up", parts_add_up);
  g_test_add_func("/memory/heads-are-replicated", heads_are_replicated);
  g_test_add_func("/memory/given-number-of-blocks-is-taken", given_number_of_blocks_is_taken);
  g_test_add_func("/memory/too-small-is-said", too_small_is_said);
  return g_test_run();
}
