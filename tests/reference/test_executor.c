/* The oracle driven by hand: whatever the block table, the chunks, the batch, preemption or
 * swapping, the tokens are the same; and what is wrong in a block table is an error. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/executor.h"
#include "sim/base/error.h"
#include "tests/reference/tiny_models.h"

enum { BLOCK_TOKENS = 4, HBM_BLOCKS = 64, DRAM_BLOCKS = 16, HASH_TOKENS = 8 };

static KvExecutor *new_executor(const KvModel *model) {
  g_autoptr(GError) error = NULL;
  KvExecutor *executor =
      kv_host_executor_new(model, BLOCK_TOKENS, HBM_BLOCKS, DRAM_BLOCKS, HASH_TOKENS, 7, &error);
  g_assert_no_error(error);
  return executor;
}

/* A request with its block table; `first` and `stride` say which blocks of HBM it takes. */
typedef struct {
  KvSequence sequence;
  guint64 hashes[8];
  guint32 blocks[HBM_BLOCKS];
} Request;

static void request_init(Request *request, guint64 index, guint32 input_tokens, guint first,
                         guint stride) {
  memset(request, 0, sizeof *request);
  request->sequence.index = index;
  request->sequence.input_tokens = input_tokens;
  request->sequence.block_ids = request->blocks;
  request->sequence.n_block_ids = 16;
  for (guint i = 0; i < 16; i++)
    request->blocks[i] = (first + i * stride) % HBM_BLOCKS;
}

/* Name the prompt's blocks: the first `shared` of them alike for all requests. */
static void request_name_blocks(Request *request, guint shared) {
  request->sequence.hashes = request->hashes;
  request->sequence.n_hashes = (request->sequence.input_tokens + HASH_TOKENS - 1) / HASH_TOKENS;
  for (guint i = 0; i < request->sequence.n_hashes; i++)
    request->hashes[i] = i < shared ? 1000 + i : 5000 + 100 * request->sequence.index + i;
}

static gboolean run_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                         GError **error) {
  KvStepCost unused;
  return executor->class->step(executor, step, cost ? cost : &unused, error);
}

/* Compute the tokens up to `end` in chunks of `chunk`, sampling after the last. */
static void prefill(KvExecutor *executor, Request *request, guint32 past, guint32 end,
                    guint32 chunk) {
  for (; past < end; past += chunk) {
    guint32 tokens = MIN(chunk, end - past);
    KvChunk part = {&request->sequence, past, tokens, past + tokens == end};
    KvStep step = {.chunks = &part, .n_chunks = 1, .repeat = 1};
    g_autoptr(GError) error = NULL;
    run_step(executor, &step, NULL, &error);
    g_assert_no_error(error);
  }
  request->sequence.computed_tokens = end;
}

static void decode(KvExecutor *executor, Request *const *requests, guint n, guint steps) {
  KvSequence *members[4];
  for (guint i = 0; i < n; i++)
    members[i] = &requests[i]->sequence;
  for (guint s = 0; s < steps; s++) {
    KvStep step = {.decode = {.n = n, .members = members}, .repeat = 1};
    g_autoptr(GError) error = NULL;
    run_step(executor, &step, NULL, &error);
    g_assert_no_error(error);
    for (guint i = 0; i < n; i++)
      members[i]->computed_tokens++;
  }
}

static void assert_output(KvExecutor *executor, const Request *request, const guint32 *tokens,
                          guint n) {
  guint n_output;
  const guint32 *output = kv_host_executor_output(executor, &request->sequence, &n_output);
  g_assert_cmpmem(output, n_output * sizeof *output, tokens, n * sizeof *tokens);
}

static void finish(KvExecutor *executor, Request *request) {
  executor->class->forget(executor, &request->sequence);
  g_assert_null(request->sequence.executor_state);
}

/* What request `index` generates when it is alone, contiguous, in one chunk. */
static void plain_output(const KvModel *model, guint64 index, guint32 input_tokens, guint shared,
                         guint n, guint32 *tokens) {
  KvExecutor *executor = new_executor(model);
  Request request, *member = &request;
  request_init(&request, index, input_tokens, 0, 1);
  request_name_blocks(&request, shared);
  prefill(executor, &request, 0, input_tokens, input_tokens);
  decode(executor, &member, 1, n - 1);
  guint n_output;
  const guint32 *output = kv_host_executor_output(executor, &request.sequence, &n_output);
  g_assert_cmpuint(n_output, ==, n);
  memcpy(tokens, output, n * sizeof *tokens);
  finish(executor, &request);
  executor->class->destroy(executor);
}

/* If tokens did not vary, and with them the context, every other test here would be empty. */
static void test_output_depends_on_the_prompt(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    guint32 outputs[3][20];
    guint distinct = 0;
    gboolean seen[199] = {0};
    for (guint i = 0; i < 3; i++)
      plain_output(models[m], i, 21, 2, 20, outputs[i]);
    for (guint i = 0; i < 20; i++) {
      g_assert_cmpuint(outputs[0][i], <, 199);
      distinct += !seen[outputs[0][i]];
      seen[outputs[0][i]] = TRUE;
    }
    g_test_message("%s: %u distinct tokens of 20", models[m]->id, distinct);
    g_assert_cmpuint(distinct, >=, 5);
    g_assert_cmpint(memcmp(outputs[0], outputs[1], sizeof outputs[0]), !=, 0);
    g_assert_cmpint(memcmp(outputs[1], outputs[2], sizeof outputs[0]), !=, 0);
  }
}

static void test_scattered_blocks(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    guint32 expected[20];
    plain_output(models[m], 3, 21, 0, 20, expected);
    KvExecutor *executor = new_executor(models[m]);
    Request request, *member = &request;
    request_init(&request, 3, 21, 50, 23);
    request_name_blocks(&request, 0);
    prefill(executor, &request, 0, 21, 21);
    decode(executor, &member, 1, 19);
    assert_output(executor, &request, expected, 20);
    finish(executor, &request);
    executor->class->destroy(executor);
  }
}

static void test_chunked_prefill(void) {
  static const guint32 chunks[] = {1, 3, 4, 7, 20};
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    guint32 expected[20];
    plain_output(models[m], 3, 21, 0, 20, expected);
    for (guint c = 0; c < G_N_ELEMENTS(chunks); c++) {
      KvExecutor *executor = new_executor(models[m]);
      Request request, *member = &request;
      request_init(&request, 3, 21, 9, 5);
      request_name_blocks(&request, 0);
      prefill(executor, &request, 0, 21, chunks[c]);
      decode(executor, &member, 1, 19);
      assert_output(executor, &request, expected, 20);
      finish(executor, &request);
      executor->class->destroy(executor);
    }
  }
}

/* Two requests with 16 equal tokens; the second computes none of the four blocks it shares. Then
 * both decode. */
static void test_shared_prefix(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    guint32 first[20], second[20];
    plain_output(models[m], 0, 21, 2, 20, first);
    plain_output(models[m], 1, 30, 2, 20, second);
    KvExecutor *executor = new_executor(models[m]);
    Request a, b, *members[] = {&b, &a};
    request_init(&a, 0, 21, 0, 1);
    request_init(&b, 1, 30, 20, 1);
    request_name_blocks(&a, 2);
    request_name_blocks(&b, 2);
    memcpy(b.blocks, a.blocks, 4 * sizeof b.blocks[0]);
    prefill(executor, &a, 0, 21, 21);
    prefill(executor, &b, 16, 30, 5);
    decode(executor, members, 2, 19);
    assert_output(executor, &a, first, 20);
    assert_output(executor, &b, second, 20);
    finish(executor, &a);
    finish(executor, &b);
    executor->class->destroy(executor);
  }
}

/* The second request takes its prefix from blocks that the first one writes in the same step. */
static void test_prefix_shared_within_a_step(void) {
  guint32 second[2];
  plain_output(&llama, 1, 30, 2, 2, second);
  KvExecutor *executor = new_executor(&llama);
  Request a, b, *member = &b;
  request_init(&a, 0, 21, 0, 1);
  request_init(&b, 1, 30, 20, 1);
  request_name_blocks(&a, 2);
  request_name_blocks(&b, 2);
  memcpy(b.blocks, a.blocks, 4 * sizeof b.blocks[0]);
  KvChunk chunks[] = {{&b.sequence, 16, 14, TRUE}, {&a.sequence, 0, 21, TRUE}};
  KvStep step = {.chunks = chunks, .n_chunks = 2, .repeat = 1};
  g_autoptr(GError) error = NULL;
  run_step(executor, &step, NULL, &error);
  g_assert_no_error(error);
  b.sequence.computed_tokens = 30;
  decode(executor, &member, 1, 1);
  assert_output(executor, &b, second, 2);
  finish(executor, &a);
  finish(executor, &b);
  executor->class->destroy(executor);
}

/* Prefill chunks of one request beside the decoding of another. */
static void check_mixed_batch(const KvModel *model) {
  guint32 first[20], second[20];
  plain_output(model, 0, 21, 0, 20, first);
  plain_output(model, 1, 30, 0, 20, second);
  KvExecutor *executor = new_executor(model);
  Request a, b, *members[] = {&a, &b};
  request_init(&a, 0, 21, 0, 1);
  request_init(&b, 1, 30, 20, 1);
  request_name_blocks(&a, 0);
  request_name_blocks(&b, 0);
  prefill(executor, &a, 0, 21, 8);
  for (guint32 past = 0; past < 30; past += 3) {
    KvSequence *decoding = &a.sequence;
    KvChunk chunk = {&b.sequence, past, 3, past == 27};
    KvStep step = {
        .chunks = &chunk, .n_chunks = 1, .decode = {.n = 1, .members = &decoding}, .repeat = 1};
    g_autoptr(GError) error = NULL;
    run_step(executor, &step, NULL, &error);
    g_assert_no_error(error);
    a.sequence.computed_tokens++;
  }
  b.sequence.computed_tokens = 30;
  decode(executor, members, 2, 9);
  assert_output(executor, &a, first, 20);
  decode(executor, &members[1], 1, 10);
  assert_output(executor, &b, second, 20);
  finish(executor, &a);
  finish(executor, &b);
  executor->class->destroy(executor);
}

static void test_mixed_batch(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++)
    check_mixed_batch(models[m]);
}

/* After eight tokens its blocks are lost, given to another request; prompt and tokens are computed
 * again. */
static void test_recomputed_after_preemption(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++)
    for (guint32 chunk = 1; chunk <= 29; chunk += 7) {
      guint32 expected[20];
      plain_output(models[m], 3, 21, 0, 20, expected);
      KvExecutor *executor = new_executor(models[m]);
      Request request, other, *member = &request;
      request_init(&request, 3, 21, 0, 1);
      request_name_blocks(&request, 0);
      prefill(executor, &request, 0, 21, 21);
      decode(executor, &member, 1, 7);
      request_init(&other, 4, 40, 0, 1);
      prefill(executor, &other, 0, 40, 40);
      for (guint i = 0; i < 16; i++)
        request.blocks[i] = 63 - 2 * i;
      prefill(executor, &request, 0, 29, chunk);
      decode(executor, &member, 1, 11);
      assert_output(executor, &request, expected, 20);
      finish(executor, &request);
      finish(executor, &other);
      executor->class->destroy(executor);
    }
}

/* Out to DRAM, its HBM blocks overwritten, and back into others. */
static void test_swapped(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    guint32 expected[20];
    plain_output(models[m], 3, 21, 0, 20, expected);
    KvExecutor *executor = new_executor(models[m]);
    Request request, other, *member = &request;
    request_init(&request, 3, 21, 0, 1);
    request_name_blocks(&request, 0);
    prefill(executor, &request, 0, 21, 21);
    decode(executor, &member, 1, 7); /* 28 tokens: 7 blocks */
    for (guint32 i = 0; i < 7; i++)
      executor->class->move_block(executor, KV_TIER_HBM, request.blocks[i], KV_TIER_DRAM, 15 - i);
    request_init(&other, 4, 40, 0, 1);
    prefill(executor, &other, 0, 40, 40);
    for (guint32 i = 0; i < 16; i++)
      request.blocks[i] = 20 + (i * 5) % 16;
    for (guint32 i = 0; i < 7; i++)
      executor->class->move_block(executor, KV_TIER_DRAM, 15 - i, KV_TIER_HBM, request.blocks[i]);
    decode(executor, &member, 1, 12);
    assert_output(executor, &request, expected, 20);
    finish(executor, &request);
    finish(executor, &other);
    executor->class->destroy(executor);
  }
}

static void test_repeat_is_as_many_steps(void) {
  guint32 expected[20];
  plain_output(&llama, 3, 21, 0, 20, expected);
  KvExecutor *executor = new_executor(&llama);
  Request request;
  request_init(&request, 3, 21, 0, 1);
  request_name_blocks(&request, 0);
  prefill(executor, &request, 0, 21, 21);
  KvSequence *member = &request.sequence;
  KvStep step = {.decode = {.n = 1, .members = &member}, .repeat = 19};
  KvStepCost cost;
  g_autoptr(GError) error = NULL;
  run_step(executor, &step, &cost, &error);
  g_assert_no_error(error);
  assert_output(executor, &request, expected, 20);
  g_assert_cmpfloat(cost.first_seconds, <, cost.last_seconds);
  finish(executor, &request);
  executor->class->destroy(executor);
}

/* A table that leads to what is not the sequence's own is an error with the position, whatever the
 * tokens. */
static void expect_problem(KvExecutor *executor, Request *request, guint32 past, guint32 tokens,
                           const char *expected) {
  KvChunk chunk = {&request->sequence, past, tokens, FALSE};
  KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
  g_autoptr(GError) error = NULL;
  g_assert_false(run_step(executor, &step, NULL, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  if (!strstr(error->message, expected))
    g_test_message("\"%s\" does not say \"%s\"", error->message, expected);
  g_assert_nonnull(strstr(error->message, expected));
}

static void test_wrong_tables_are_errors(void) {
  KvExecutor *executor = new_executor(&llama);
  Request a, b;
  request_init(&a, 0, 20, 0, 1);
  request_init(&b, 1, 40, 20, 1);
  request_name_blocks(&a, 2);
  request_name_blocks(&b, 2);
  prefill(executor, &a, 0, 20, 20);
  memcpy(b.blocks, a.blocks, 5 * sizeof b.blocks[0]); /* one block more than they share */
  expect_problem(executor, &b, 20, 1, "position 16 (block 4) holds those of another prefix");
  b.blocks[0] = 50;
  expect_problem(executor, &b, 16, 1, "position 0 (block 50) holds nothing yet");
  b.blocks[0] = HBM_BLOCKS;
  expect_problem(executor, &b, 0, 1, "block id 64, of only 64");
  expect_problem(executor, &b, 16, 1, "block id 64, of only 64");
  b.blocks[0] = 0;
  b.sequence.n_block_ids = 4;
  expect_problem(executor, &b, 16, 1, "needs block 4 of its table, which has 4");
  expect_problem(executor, &b, 38, 3, "only 40 tokens are known");
  expect_problem(executor, &b, 16, 0, "nothing to compute");
  finish(executor, &a);
  finish(executor, &b);
  executor->class->destroy(executor);
}

static void test_positions_past_the_table_of_a_model_are_errors(void) {
  KvExecutor *executor = new_executor(&opt);
  Request request;
  request_init(&request, 0, 200, 0, 1);
  request.sequence.n_block_ids = 50;
  expect_problem(executor, &request, 0, 129, "position 128 is past the model's 128");
  finish(executor, &request);
  executor->class->destroy(executor);
}

/* A token that was emitted must be the one that a recomputation samples. */
static void test_another_token_at_recomputation_is_an_error(void) {
  KvExecutor *executor = new_executor(&llama);
  Request request, *member = &request;
  request_init(&request, 3, 21, 0, 1);
  prefill(executor, &request, 0, 21, 21);
  decode(executor, &member, 1, 4);
  guint n;
  guint32 *output = (guint32 *)kv_host_executor_output(executor, &request.sequence, &n);
  output[4] = (output[4] + 1) % 199;
  KvChunk chunk = {&request.sequence, 0, 25, TRUE};
  KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
  g_autoptr(GError) error = NULL;
  g_assert_false(run_step(executor, &step, NULL, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_assert_nonnull(strstr(error->message, "request 3: token 4 came out as"));
  finish(executor, &request);
  executor->class->destroy(executor);
}

/* Where every layer slides, blocks behind the window may be gone. */
static void test_blocks_behind_every_window_are_not_read(void) {
  KvModel sliding = mixed;
  sliding.n_groups = 1;
  guint32 expected[20];
  plain_output(&sliding, 3, 21, 0, 20, expected);
  KvExecutor *executor = new_executor(&sliding);
  Request request, *member = &request;
  request_init(&request, 3, 21, 0, 1);
  request_name_blocks(&request, 0);
  prefill(executor, &request, 0, 21, 21);
  request.blocks[0] = request.blocks[1] = request.blocks[2] = 60; /* the window begins at 16 */
  decode(executor, &member, 1, 19);
  assert_output(executor, &request, expected, 20);
  finish(executor, &request);
  executor->class->destroy(executor);
}

static void test_models_refused(void) {
  static const struct {
    KvAttention attention;
    KvMlp mlp;
    const char *expected;
  } cases[] = {
      {{.kind = KV_ATTENTION_LATENT, .n_heads = 4, .n_kv_heads = 4},
       {.intermediate = 64},
       "without heads, a rank"},
      {{TINY_LATENT, .bias = TRUE}, {.intermediate = 64}, "with biases"},
      {{.kind = KV_ATTENTION_LATENT,
        .n_heads = 4,
        .n_kv_heads = 4,
        .head_dim = 23,
        .value_head_dim = 12,
        .kv_lora_rank = 32,
        .rope_head_dim = 7},
       {.intermediate = 64},
       "odd size of rotated keys"},
      {{.kind = KV_ATTENTION_NONE, .state_elements = 10}, {.intermediate = 64}, "recurrent"},
      {{.kind = KV_ATTENTION_NONE, .inner = 8, .state_dim = 4, .conv_width = 4, .dt_rank = 2},
       {.intermediate = 64},
       "with an MLP"},
      {{.state_elements = 10, .n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 8},
       {.intermediate = 64},
       "beside attention"},
      {{.n_heads = 4, .n_kv_heads = 3, .head_dim = 8, .value_head_dim = 8},
       {.intermediate = 64},
       "do not divide"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 4},
       {.intermediate = 64},
       "head size"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 7, .value_head_dim = 7},
       {.intermediate = 64},
       "odd head size"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 8},
       {.n_experts = 8, .n_experts_per_token = 2, .expert_intermediate = 64},
       "not gated"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 8},
       {TINY_EXPERTS, .intermediate = 64},
       "beside their experts"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 8},
       {.n_experts = 8, .n_experts_per_token = 9, .expert_intermediate = 64, .gated = TRUE},
       "too many of them"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 8},
       {.gated = TRUE},
       "without an MLP"},
      {{.n_heads = 4, .n_kv_heads = 4, .head_dim = 8, .value_head_dim = 8},
       {.intermediate = 10000000},
       "200 million"},
      {{.kind = KV_ATTENTION_SLIDING,
        .n_heads = 4,
        .n_kv_heads = 4,
        .head_dim = 8,
        .value_head_dim = 8},
       {.intermediate = 64},
       "window"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    KvLayerGroup group = {.count = 1, .attention = cases[i].attention, .mlp = cases[i].mlp};
    KvModel model = llama;
    model.groups = &group;
    g_autoptr(GError) error = NULL;
    g_assert_null(kv_host_executor_new(&model, 16, 4, 0, 0, 1, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    if (!strstr(error->message, cases[i].expected))
      g_test_message("\"%s\" does not say \"%s\"", error->message, cases[i].expected);
    g_assert_nonnull(strstr(error->message, cases[i].expected));
    g_assert_nonnull(strstr(error->message, "tiny-llama"));
  }
}

static void test_models_refused_at_once(void) {
  KvLayerGroup group = llama_groups[0];
  KvModel model = llama;
  group.count = G_MAXUINT;
  model.groups = &group;
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_host_executor_new(&model, 16, 4, 0, 0, 1, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_clear_error(&error);
  g_assert_null(kv_host_executor_new(&llama, 16, G_MAXUINT64 / 8, 0, 0, 1, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
}

/* FLOPs of one decode step of the llama, counted by hand, and the same time on every run. */
static void test_virtual_time(void) {
  double seconds[2];
  for (guint run = 0; run < 2; run++) {
    KvExecutor *executor = new_executor(&llama);
    Request request;
    request_init(&request, 3, 21, 0, 1);
    prefill(executor, &request, 0, 21, 21);
    KvSequence *member = &request.sequence;
    KvStep step = {.decode = {.n = 1, .members = &member}, .repeat = 1};
    KvStepCost cost;
    g_assert_true(run_step(executor, &step, &cost, NULL));
    double layer = 2.0 * 64 * (64 + 32 + 32) + 4.0 * 22 * 64 + 2.0 * 64 * 64 + 6.0 * 64 * 96;
    g_assert_cmpfloat(cost.flops, ==, 2 * layer + 2.0 * 64 * 199);
    g_assert_cmpfloat_with_epsilon(cost.seconds, cost.flops / KV_HOST_FLOPS_PER_SECOND, 1e-15);
    double weights = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 96 + 2 * 64) + 2 * 199 * 64 + 64;
    double cache = 2 * (2 * 32 + 2 * 22 * 32);
    g_assert_cmpfloat(cost.hbm_bytes, ==, 4 * (weights + cache));
    double parts = 0.0;
    for (guint c = 0; c < KV_N_COMPONENTS; c++)
      parts += cost.component_seconds[c];
    g_assert_cmpfloat_with_epsilon(parts, cost.seconds, 1e-15);
    g_assert_cmpfloat(cost.component_seconds[KV_COMPONENT_PREFILL_ATTENTION], ==, 0.0);
    seconds[run] = cost.seconds;
    finish(executor, &request);
    executor->class->destroy(executor);
  }
  g_assert_cmpfloat(seconds[0], ==, seconds[1]);
}

static void test_measured_time(void) {
  KvExecutor *executor = new_executor(&llama);
  kv_host_executor_set_measured(executor, TRUE);
  Request request;
  request_init(&request, 3, 60, 0, 1);
  KvChunk chunk = {&request.sequence, 0, 60, TRUE};
  KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
  KvStepCost cost;
  gint64 begin_us = g_get_monotonic_time();
  g_assert_true(run_step(executor, &step, &cost, NULL));
  double wall_seconds = (double)(g_get_monotonic_time() - begin_us) * 1e-6;
  g_assert_cmpfloat(cost.seconds, >, 0.0);
  g_assert_cmpfloat(cost.seconds, <=, wall_seconds + 1e-9);
  double virtual_seconds = cost.flops / KV_HOST_FLOPS_PER_SECOND;
  g_assert_cmpfloat(fabs(cost.seconds / virtual_seconds - 1.0), >, 1e-6);
  finish(executor, &request);
  executor->class->destroy(executor);
}

static void test_copies_complete_in_order(void) {
  KvExecutor *executor = new_executor(&llama);
  const KvExecutorClass *class = executor->class;
  KvCopy copy = {.from = KV_TIER_HBM, .to = KV_TIER_DRAM, .bytes = 10e9, .blocks = 1}, popped;
  g_assert_cmpfloat(class->next_copy(executor), ==, G_MAXDOUBLE);
  class->copy(executor, &copy, 5.0);
  copy.blocks = 2;
  copy.bytes = 20e9;
  class->copy(executor, &copy, 5.5);
  g_assert_cmpfloat(class->next_copy(executor), ==, 6.0);
  g_assert_false(class->pop_copy(executor, 5.9, &popped));
  g_assert_true(class->pop_copy(executor, 6.0, &popped));
  g_assert_cmpuint(popped.blocks, ==, 1);
  g_assert_cmpfloat(class->next_copy(executor), ==, 8.0);
  copy.blocks = 3;
  copy.bytes = 0;
  class->copy(executor, &copy, 20.0);
  g_assert_true(class->pop_copy(executor, 30.0, &popped));
  g_assert_cmpuint(popped.blocks, ==, 2);
  g_assert_cmpfloat(class->next_copy(executor), ==, 20.0);
  class->destroy(executor); /* with one still under way */
}

static void collect(guint64 request_index, const guint32 *tokens, guint n, gpointer user) {
  g_string_append_printf(user, "%" G_GUINT64_FORMAT ":%u:%u ", request_index, n, tokens[n - 1]);
}

static void test_sink_gets_the_tokens(void) {
  guint32 tokens[3];
  plain_output(&llama, 9, 11, 0, 3, tokens);
  KvExecutor *executor = new_executor(&llama);
  g_autoptr(GString) collected = g_string_new(NULL);
  kv_host_executor_set_sink(executor, collect, collected);
  Request request, *member = &request;
  request_init(&request, 9, 11, 0, 1);
  request_name_blocks(&request, 0);
  prefill(executor, &request, 0, 11, 11);
  decode(executor, &member, 1, 2);
  finish(executor, &request);
  finish(executor, &request); /* nothing left to forget */
  g_autofree char *expected = g_strdup_printf("9:3:%u ", tokens[2]);
  g_assert_cmpstr(collected->str, ==, expected);
  executor->class->destroy(executor);
}

static void test_prompt_tokens(void) {
  guint32 known[] = {5, 300};
  guint64 hashes_a[] = {1, 2}, hashes_b[] = {1, 3};
  KvSequence a = {.index = 0, .input_tokens = 20, .hashes = hashes_a, .n_hashes = 2};
  KvSequence b = {.index = 1, .input_tokens = 20, .hashes = hashes_b, .n_hashes = 2};
  guint same[3] = {0}, same_unnamed = 0;
  for (guint32 i = 0; i < 20; i++) {
    guint32 x = kv_sequence_prompt_token(&a, i, 8, 50000);
    g_assert_cmpuint(x, <, 50000);
    same[i / 8] += x == kv_sequence_prompt_token(&b, i, 8, 50000);
    same_unnamed +=
        kv_sequence_prompt_token(&a, i, 0, 50000) == kv_sequence_prompt_token(&b, i, 0, 50000);
  }
  g_assert_cmpuint(same[0], ==, 8); /* the named prefix */
  g_assert_cmpuint(same[1], <, 3);  /* another name */
  g_assert_cmpuint(same[2], <, 3);  /* no name: the request's own */
  g_assert_cmpuint(same_unnamed, <, 3);
  g_assert_cmpuint(kv_sequence_prompt_token(&a, 1, 8, 50000), !=,
                   kv_sequence_prompt_token(&a, 2, 8, 50000));
  a.tokens = known;
  a.n_tokens = 2;
  g_assert_cmpuint(kv_sequence_prompt_token(&a, 0, 8, 199), ==, 5);
  g_assert_cmpuint(kv_sequence_prompt_token(&a, 1, 8, 199), ==, 101);
}

static const struct {
  const char *path;
  void (*function)(void);
} tests[] = {
    {"output-depends-on-the-prompt", test_output_depends_on_the_prompt},
    {"scattered-blocks", test_scattered_blocks},
    {"chunked-prefill", test_chunked_prefill},
    {"shared-prefix", test_shared_prefix},
    {"prefix-shared-within-a-step", test_prefix_shared_within_a_step},
    {"mixed-batch", test_mixed_batch},
    {"recomputed-after-preemption", test_recomputed_after_preemption},
    {"swapped", test_swapped},
    {"repeat", test_repeat_is_as_many_steps},
    {"wrong-tables", test_wrong_tables_are_errors},
    {"learned-positions-end", test_positions_past_the_table_of_a_model_are_errors},
    {"another-token", test_another_token_at_recomputation_is_an_error},
    {"sliding-blocks-gone", test_blocks_behind_every_window_are_not_read},
    {"models-refused", test_models_refused},
    {"models-refused-at-once", test_models_refused_at_once},
    {"virtual-time", test_virtual_time},
    {"measured-time", test_measured_time},
    {"copies", test_copies_complete_in_order},
    {"sink", test_sink_gets_the_tokens},
    {"prompt-tokens", test_prompt_tokens},
};

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(tests); i++) {
    g_autofree char *path = g_strconcat("/reference/executor/", tests[i].path, NULL);
    g_test_add_func(path, tests[i].function);
  }
  return g_test_run();
}
