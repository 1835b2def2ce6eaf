/* Compressed caches on the host: their arithmetic, and what an executor that holds one computes
 * when it is driven as by the engine. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/executor.h"
#include "sim/base/error.h"
#include "sim/base/random.h"
#include "tests/reference/host_agreement.h"
#include "tests/reference/tiny_models.h"

enum { PROMPT = 61, DECODED = 20 };

/* Two layers, as the tests' models have. */
#define PYRAMID .n_layers = 2, .block_tokens = BLOCK_TOKENS, .window = 8, .beta = 5.0

/* --- arithmetic ------------------------------------------------------------------------------ */

static void test_small_floats(void) {
  static const float e4m3[][2] = {{0.0f, 0.0f},          {1.0f, 1.0f},       {-1.0625f, -1.0f},
                                  {1.1875f, 1.25f},      {448.0f, 448.0f},   {460.0f, 448.0f},
                                  {-1e9f, -448.0f},      {0x1p-6f, 0x1p-6f}, {0x1p-9f, 0x1p-9f},
                                  {0x1.8p-10f, 0x1p-9f}, {0x1p-10f, 0.0f},   {17.0f, 16.0f},
                                  {19.0f, 20.0f}};
  for (guint i = 0; i < G_N_ELEMENTS(e4m3); i++)
    g_assert_cmpfloat(kv_host_round_e4m3(e4m3[i][0]), ==, e4m3[i][1]);
  static const float fp16[][2] = {
      {1.0f, 1.0f},     {0x1.002p0f, 0x1p0f}, {0x1.006p0f, 0x1.008p0f}, {65504.0f, 65504.0f},
      {1e9f, 65504.0f}, {0x1p-24f, 0x1p-24f}, {0x1p-26f, 0.0f}};
  for (guint i = 0; i < G_N_ELEMENTS(fp16); i++)
    g_assert_cmpfloat(kv_host_round_fp16(fp16[i][0]), ==, fp16[i][1]);
  g_assert_true(isnan(kv_host_round_e4m3(NAN)));
}

static void test_a_group_keeps_its_ends(void) {
  for (guint bits = 2; bits <= 4; bits += 2) {
    float x[8] = {-1.0f, 0.5f, 2.0f, 0.25f, -0.75f, 1.0f, 1.5f, 0.0f}, before[8], scale, minimum;
    guint8 codes[8];
    memcpy(before, x, sizeof x);
    kv_host_kivi_group(x, 1, 8, bits, &scale, &minimum, codes);
    g_assert_cmpfloat(minimum, ==, -1.0f);
    g_assert_cmpuint(codes[0], ==, 0);
    g_assert_cmpuint(codes[2], ==, (1u << bits) - 1);
    for (guint i = 0; i < 8; i++) {
      g_assert_cmpfloat(fabsf(x[i] - before[i]), <=, 0.5f * scale + 1e-3f);
      g_assert_cmpfloat(x[i], ==, (float)codes[i] * scale + minimum);
    }
  }
  float same[4] = {3.0f, 3.0f, 3.0f, 3.0f}, scale, minimum;
  kv_host_kivi_group(same, 1, 4, 2, &scale, &minimum, NULL);
  g_assert_cmpfloat(same[3], ==, 3.0f);
}

static void test_select(void) {
  /* Peaks at 3 and at 9; the window is 12 .. 13. */
  static const float votes[12] = {0, 0, 0, 5, 0, 0, 0, 0, 0, 4, 0, 0};
  KvHostCompression c = {.format = KV_HOST_SNAPKV, .budget = 6, .window = 2, .kernel = 3};
  guint32 kept[6];
  kv_host_snapkv_select(&c, kept, votes, 14); /* pooled: 2 .. 4 share a vote, then 8 of 8 .. 10 */
  static const guint32 expected[] = {2, 3, 4, 8, 12, 13};
  g_assert_cmpmem(kept, sizeof kept, expected, sizeof expected);
  c.max_pooling = TRUE;
  kv_host_snapkv_select(&c, kept, votes, 14);
  g_assert_cmpmem(kept, sizeof kept, expected, sizeof expected);
  c.kernel = 1;
  kv_host_snapkv_select(&c, kept, votes, 14); /* of equals the first */
  static const guint32 alone[] = {0, 1, 3, 9, 12, 13};
  g_assert_cmpmem(kept, sizeof kept, alone, sizeof alone);
}

/* Two pages of the three before the last: the one with the key that scores most, whatever its sign,
 * and of two that are equal the first. */
static void test_quest_chooses_pages(void) {
  enum { TOKENS = 13 };
  const KvHostCompression c = {.format = KV_HOST_QUEST, .pages = 3};
  float pool[4 * 2 * 4] = {0};
  const KvHostPages pages = {.pool = pool,
                             .block_floats = 8,
                             .value_offset = 4,
                             .block_tokens = 4,
                             .n_kv_heads = 1,
                             .head_dim = 1};
  static const guint32 table[] = {3, 1, 0, 2};
  const float q[2] = {1.0f, -0.5f};
  guint32 chosen[3];
  for (guint32 t = 0; t < TOKENS; t++) {
    const float key = t == 6 ? -9.0f : t == 2 || t == 9 ? 2.0f : 0.0f, value = 1.0f;
    kv_host_pages_write(&pages, table, t, &key, &value);
  }
  kv_host_quest_choose(&c, chosen, q, &pages, table, 0, 2, TOKENS);
  static const guint32 expected[] = {0, 1, 3};
  g_assert_cmpmem(chosen, sizeof chosen, expected, sizeof expected);
}

/* --- agreement with the whole cache ----------------------------------------------------------- */

static KvHostAgreement agreement_of(const KvModel *model, const KvHostCompression *c, guint chunk) {
  return host_agreement(model, c, PROMPT, DECODED, chunk);
}

static void test_a_budget_that_covers_everything_changes_nothing(void) {
  const KvHostCompression all[] = {
      {.format = KV_HOST_EXACT},
      {.format = KV_HOST_SNAPKV, .budget = PROMPT, .window = 8, .kernel = 5},
      {.format = KV_HOST_KIVI, .bits = 2, .group = 8, .residual = 128},
      {.format = KV_HOST_QUEST, .pages = (PROMPT + DECODED) / BLOCK_TOKENS + 1},
      {.format = KV_HOST_QUEST, .pages = 3, .dense_layers = 2},
      {.format = KV_HOST_PYRAMIDKV, PYRAMID, .budget = PROMPT, .kernel = 5},
      {.format = KV_HOST_H2O, .slots = DECODED, .slot_share = 1.0, .recent_share = 0.5},
      {.format = KV_HOST_FLEXGEN, .cache_share = 0.0},
      {.format = KV_HOST_FLEXGEN, .cache_share = 0.0, .cpu_attention = TRUE},
      {.format = KV_HOST_FLEXGEN, .cache_share = 0.4},
      {.format = KV_HOST_FLEXGEN, .cache_share = 1.0}};
  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    KvHostAgreement a = agreement_of(&llama, &all[i], 17);
    g_assert_cmpfloat(a.divergence_sum, ==, 0.0);
    g_assert_cmpuint(a.equal, ==, a.n);
  }
}

/* Settings from the least to the most that they lose. */
static void test_less_memory_agrees_less(void) {
  const KvHostCompression kivi[] = {
      {.format = KV_HOST_KIVI, .bits = 4, .group = 8, .residual = 32},
      {.format = KV_HOST_KIVI, .bits = 2, .group = 8, .residual = 32}};
  const KvHostCompression snapkv[] = {
      {.format = KV_HOST_SNAPKV, .budget = 56, .window = 8, .kernel = 5},
      {.format = KV_HOST_SNAPKV, .budget = 12, .window = 8, .kernel = 5}};
  const KvHostCompression quest[] = {{.format = KV_HOST_QUEST, .pages = 8},
                                     {.format = KV_HOST_QUEST, .pages = 3}};
  const KvHostCompression pyramidkv[] = {
      {.format = KV_HOST_PYRAMIDKV, PYRAMID, .budget = 36, .kernel = 5},
      {.format = KV_HOST_PYRAMIDKV, PYRAMID, .budget = 12, .kernel = 5}};
  const KvHostCompression h2o[] = {{.format = KV_HOST_H2O, .slot_share = 0.9, .recent_share = 0.5},
                                   {.format = KV_HOST_H2O, .slot_share = 0.2, .recent_share = 0.5}};
  const KvHostCompression fp8 = {.format = KV_HOST_FP8};
  const KvHostCompression *const pairs[][2] = {{&kivi[0], &kivi[1]},
                                               {&snapkv[0], &snapkv[1]},
                                               {&quest[0], &quest[1]},
                                               {&pyramidkv[0], &pyramidkv[1]},
                                               {&h2o[0], &h2o[1]}};
  for (guint i = 0; i < G_N_ELEMENTS(pairs); i++) {
    double less = agreement_of(&llama, pairs[i][0], PROMPT).divergence_sum;
    double more = agreement_of(&llama, pairs[i][1], PROMPT).divergence_sum;
    g_assert_cmpfloat(less, >, 0.0);
    g_assert_cmpfloat(more, >, less);
  }
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    if (models[m] == &deepseek) /* latents are not held so */
      continue;
    KvHostAgreement a = agreement_of(models[m], &fp8, PROMPT);
    g_assert_cmpfloat(a.divergence_sum, >, 0.0);
    g_assert_cmpfloat(a.divergence_sum / a.n, <, 0.05);
  }
}

/* What a prompt leaves behind does not depend on how it was cut into chunks. */
static void test_chunks_change_nothing(void) {
  const KvHostCompression all[] = {
      {.format = KV_HOST_FP8},
      {.format = KV_HOST_SNAPKV, .budget = 20, .window = 8, .kernel = 5},
      {.format = KV_HOST_KIVI, .bits = 4, .group = 8, .residual = 16},
      {.format = KV_HOST_PYRAMIDKV, PYRAMID, .budget = 20, .kernel = 5},
      {.format = KV_HOST_H2O, .slot_share = 0.3, .recent_share = 0.5}};
  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    double whole = agreement_of(&llama, &all[i], PROMPT).divergence_sum;
    g_assert_cmpfloat(agreement_of(&llama, &all[i], 7).divergence_sum, ==, whole);
    g_assert_cmpfloat(agreement_of(&llama, &all[i], 1).divergence_sum, ==, whole);
  }
}

/* The packed part follows its laws: what is exact and what is packed at a context of n. */
static void test_kivi_packs_as_its_laws_say(void) {
  const KvHostCompression c = {.format = KV_HOST_KIVI, .bits = 2, .group = 8, .residual = 16};
  static const guint32 n[] = {0, 15, 16, 17, 31, 32, 100}, keys[] = {0, 0, 16, 16, 16, 32, 96},
                       values[] = {0, 0, 0, 1, 15, 16, 84};
  for (guint i = 0; i < G_N_ELEMENTS(n); i++) {
    KvLaw flushed = kv_law(KV_LAW_FLUSHED, 16.0), beyond = kv_law(KV_LAW_BEYOND, 16.0);
    g_assert_cmpuint(kv_host_kivi_packed_keys(&c, n[i]), ==, keys[i]);
    g_assert_cmpuint(kv_host_kivi_packed_values(&c, n[i]), ==, values[i]);
    g_assert_cmpfloat(kv_law_value(&flushed, n[i], 0.0, TRUE, NULL, NULL), ==, keys[i]);
    g_assert_cmpfloat(kv_law_value(&beyond, n[i], 0.0, TRUE, NULL, NULL), ==, values[i]);
  }
}

/* --- the executor ---------------------------------------------------------------------------- */

typedef struct {
  KvSequence sequence;
  guint32 blocks[BLOCKS];
} Request;

static void run_step(KvExecutor *executor, const KvStep *step, const char *problem) {
  g_autoptr(GError) error = NULL;
  KvStepCost cost;
  gboolean done = executor->class->step(executor, step, &cost, &error);
  if (!problem) {
    g_assert_no_error(error);
    g_assert_true(done);
    return;
  }
  g_assert_false(done);
  g_assert_nonnull(strstr(error->message, problem));
}

static void prefill(KvExecutor *executor, Request *r, guint32 end) {
  KvChunk chunk = {&r->sequence, 0, end, TRUE};
  run_step(executor, &(KvStep){.chunks = &chunk, .n_chunks = 1, .repeat = 1}, NULL);
  r->sequence.computed_tokens = end;
}

static void decode(KvExecutor *executor, Request *r, guint steps, const char *problem) {
  KvSequence *member = &r->sequence;
  for (guint i = 0; i < steps; i++) {
    run_step(executor, &(KvStep){.decode = {.n = 1, .members = &member}, .repeat = 1}, problem);
    r->sequence.computed_tokens++;
  }
}

static KvExecutor *executor_with(const KvHostCompression *c) {
  g_autoptr(GError) error = NULL;
  KvExecutor *executor =
      kv_host_executor_new(&llama, BLOCK_TOKENS, BLOCKS, 0, BLOCK_TOKENS, 7, &error);
  g_assert_no_error(error);
  kv_host_executor_set_compression(executor, c);
  return executor;
}

static void request_init(Request *r) {
  *r = (Request){.sequence = {.input_tokens = PROMPT}};
  r->sequence.block_ids = r->blocks;
  r->sequence.n_block_ids = (PROMPT + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  for (guint i = 0; i < BLOCKS; i++)
    r->blocks[i] = (3 + 5 * i) % BLOCKS;
}

/* Formats that leave 20 tokens of the prompt; the last one no more than that at any time. */
static const KvHostCompression cutting[] = {
    {.format = KV_HOST_SNAPKV, .budget = 20, .window = 8, .kernel = 5},
    {.format = KV_HOST_PYRAMIDKV, PYRAMID, .budget = 20, .kernel = 5},
    {.format = KV_HOST_H2O, .slot_share = 20.0 / PROMPT, .recent_share = 0.5}};

static void exchange_blocks(Request *r) {
  guint32 first = r->blocks[0];
  r->blocks[0] = r->blocks[1];
  r->blocks[1] = first;
}

/* After the cut the sequence lives in the blocks that the plan leaves it, and its slots are checked
 * as ever. */
static void check_fewer_blocks(const KvHostCompression *c) {
  KvExecutor *executor = executor_with(c);
  Request r;
  guint n;
  request_init(&r);
  prefill(executor, &r, PROMPT);
  r.sequence.n_block_ids = 3; /* 24 slots: 20 and 4 more */
  decode(executor, &r, 4, NULL);
  decode(executor, &r, 1, "needs block 3 of its table, which has 3");
  r.sequence.computed_tokens--;
  r.sequence.n_block_ids = 4;
  decode(executor, &r, 2, NULL);
  (void)kv_host_executor_output(executor, &r.sequence, &n);
  g_assert_cmpuint(n, ==, 7);
  exchange_blocks(&r);
  decode(executor, &r, 1, "expected its own keys and values");
  executor->class->forget(executor, &r.sequence);
  executor->class->destroy(executor);
}

static void test_a_cut_prompt_needs_fewer_blocks(void) {
  check_fewer_blocks(&cutting[0]);
  check_fewer_blocks(&cutting[1]);
}

/* The number of slots is fixed: that of the prompt's end, or the one that the sequence grows to. */
static void test_evicting_needs_no_more_blocks(void) {
  const KvHostCompression later = {
      .format = KV_HOST_H2O, .slots = 6, .slot_share = 1.0, .recent_share = 0.5};
  const KvHostCompression *const all[] = {&cutting[2], &later};
  for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
    KvExecutor *executor = executor_with(all[i]);
    Request r;
    guint n;
    request_init(&r);
    prefill(executor, &r, PROMPT);
    r.sequence.n_block_ids = i == 0 ? 3 : 9; /* 20, and 67 slots */
    decode(executor, &r, 30, NULL);
    (void)kv_host_executor_output(executor, &r.sequence, &n);
    g_assert_cmpuint(n, ==, 31);
    exchange_blocks(&r);
    decode(executor, &r, 1, "expected its own keys and values");
    executor->class->forget(executor, &r.sequence);
    executor->class->destroy(executor);
  }
}

/* A preemption computes everything again, whole, and cuts it again. */
static void check_preemption(const KvHostCompression *c) {
  KvExecutor *executor = executor_with(c);
  Request r;
  request_init(&r);
  prefill(executor, &r, PROMPT);
  decode(executor, &r, 3, NULL);
  r.sequence.n_block_ids = 9;
  for (guint i = 0; i < BLOCKS; i++)
    r.blocks[i] = (1 + 3 * i) % BLOCKS;
  prefill(executor, &r, PROMPT + 3);
  r.sequence.n_block_ids = 3; /* 20 and 3 are left, and one more */
  decode(executor, &r, 1, NULL);
  executor->class->forget(executor, &r.sequence);
  executor->class->destroy(executor);
}

static void test_a_cut_prompt_can_be_preempted(void) {
  for (guint i = 0; i < G_N_ELEMENTS(cutting); i++)
    check_preemption(&cutting[i]);
}

/* --- what is executed ------------------------------------------------------------------------- */

static void check_refused(const char *use, KvDtype dtype, guint block_tokens,
                          gboolean prefix_caching, const char *expected) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(use, &error);
  const KvEngineConfig engine = {.block_tokens = block_tokens, .prefix_caching = prefix_caching};
  KvHostCompression c;
  check_stack(use, &llama, dtype, &engine, expected);
  g_assert_no_error(error);
  if (dtype == KV_DTYPE_FP8) { /* never of latents */
    g_assert_false(kv_host_compression_init(&c, stack, &deepseek, dtype, &engine, &error));
    g_assert_nonnull(error);
  }
}

static void test_what_is_refused(void) {
  check_refused("", KV_DTYPE_BF16, 16, TRUE, NULL);
  check_refused("", KV_DTYPE_FP8, 16, TRUE, NULL);
  check_refused("", KV_DTYPE_INT8, 16, TRUE, "expected bf16 or fp8");
  check_refused("snapkv", KV_DTYPE_BF16, 16, TRUE, NULL);
  check_refused("snapkv:impl=released", KV_DTYPE_BF16, 16, TRUE, "expected impl=ideal");
  check_refused("snapkv", KV_DTYPE_FP8, 16, TRUE, "expected one of them alone");
  check_refused("snapkv,kivi", KV_DTYPE_BF16, 32, FALSE, "expected one of them alone");
  check_refused("kivi", KV_DTYPE_BF16, 16, FALSE, "expected engine.block_tokens=32");
  check_refused("kivi", KV_DTYPE_BF16, 32, TRUE, "expected engine.prefix_caching=false");
  check_refused("quest", KV_DTYPE_BF16, 16, TRUE, NULL);
  check_refused("quest:impl=released", KV_DTYPE_BF16, 16, TRUE, "expected impl=ideal");
  check_refused("quest", KV_DTYPE_BF16, 32, TRUE, "expected both equal");
  check_refused("mla:kv_bits=6", KV_DTYPE_BF16, 16, TRUE, "expected kv_bits=16");
  check_refused("mla", KV_DTYPE_BF16, 16, TRUE, NULL);
  check_refused("kivi:impl=released", KV_DTYPE_BF16, 32, FALSE, "expected impl=ideal");
  check_refused("kivi", KV_DTYPE_BF16, 32, FALSE, "heads that are not a multiple of G");
  check_refused("pyramidkv", KV_DTYPE_BF16, 16, TRUE, NULL);
  check_refused("pyramidkv:impl=released", KV_DTYPE_BF16, 16, TRUE, "pyramidkv: impl=released");
  check_refused("h2o", KV_DTYPE_BF16, 16, TRUE, NULL);
  check_refused("h2o:impl=released", KV_DTYPE_BF16, 16, TRUE, "expected impl=ideal");
  check_refused("h2o", KV_DTYPE_BF16, 1, TRUE, "engine.block_tokens=1");
  check_refused("h2o,snapkv", KV_DTYPE_BF16, 16, TRUE, "expected one of them alone");
  check_refused("chunkattention", KV_DTYPE_BF16, 64, TRUE, NULL);
  check_refused("chunkattention", KV_DTYPE_FP8, 64, TRUE, "expected a cache of bf16");
  check_refused("snapkv,chunkattention", KV_DTYPE_BF16, 64, TRUE, "expected a cache of bf16");
#define FLEXGEN "flexgen:hg=100:hc=0:cpu_cache_compute=off"
  check_refused(FLEXGEN, KV_DTYPE_BF16, 16, FALSE, NULL);
  check_refused("flexgen:hg=100:hc=0:cg=100:cc=0", KV_DTYPE_BF16, 16, FALSE, NULL);
  check_refused(FLEXGEN, KV_DTYPE_FP8, 16, FALSE, "expected one of them alone");
  check_refused("flexgen:cpu_cache_compute=off", KV_DTYPE_BF16, 16, FALSE, "expected hg=100:hc=0");
  check_refused("flexgen:hg=100:hc=0", KV_DTYPE_BF16, 16, FALSE, NULL);
  check_refused("flexgen:hg=100:hc=0:cg=30:cc=70", KV_DTYPE_BF16, 16, FALSE,
                "expected cg=0:cc=100 or cpu_cache_compute=off");
  check_refused(FLEXGEN ":wc=70", KV_DTYPE_BF16, 16, FALSE, "expected wg and wc");
  check_refused(FLEXGEN ":cc=70", KV_DTYPE_BF16, 16, FALSE, "expected wg and wc");
  check_refused(FLEXGEN ":compress_cache=on", KV_DTYPE_BF16, 16, FALSE, "compress_cache=off");
  check_refused(FLEXGEN ":attn_sparsity=0.5", KV_DTYPE_BF16, 16, FALSE, "expected attn_sparsity=1");
  check_refused(FLEXGEN ":impl=released", KV_DTYPE_BF16, 16, FALSE, "expected impl=ideal");
#undef FLEXGEN
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/compression/small-floats", test_small_floats);
  g_test_add_func("/reference/compression/group", test_a_group_keeps_its_ends);
  g_test_add_func("/reference/compression/select", test_select);
  g_test_add_func("/reference/compression/quest-pages", test_quest_chooses_pages);
  g_test_add_func("/reference/compression/full-budget",
                  test_a_budget_that_covers_everything_changes_nothing);
  g_test_add_func("/reference/compression/order", test_less_memory_agrees_less);
  g_test_add_func("/reference/compression/chunks", test_chunks_change_nothing);
  g_test_add_func("/reference/compression/kivi-laws", test_kivi_packs_as_its_laws_say);
  g_test_add_func("/reference/compression/fewer-blocks", test_a_cut_prompt_needs_fewer_blocks);
  g_test_add_func("/reference/compression/no-more-blocks", test_evicting_needs_no_more_blocks);
  g_test_add_func("/reference/compression/preemption", test_a_cut_prompt_can_be_preempted);
  g_test_add_func("/reference/compression/refused", test_what_is_refused);
  return g_test_run();
}
