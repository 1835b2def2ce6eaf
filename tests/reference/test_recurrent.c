/* Mamba on the host: the recurrence against twins in double precision that know no state, the same
 * tokens whatever the chunks, batches, blocks and preemptions, a state that is not one's own as an
 * error, and the checkpoint. */
#include <glib.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "reference/host/compression.h"
#include "reference/host/executor.h"
#include "reference/host/recurrent.h"
#include "reference/host/tensors.h"
#include "sim/base/error.h"
#include "sim/base/random.h"
#include "tests/reference/tiny_models.h"

enum { BLOCKS = 8, SEED = 7, PROMPT = 21, OUTPUT = 20, LONGEST = PROMPT + OUTPUT, WIDEST = 256 };

static KvRandom numbers;

static float *random_floats(gsize n, double deviation) {
  float *x = g_new(float, n);
  for (gsize i = 0; i < n; i++)
    x[i] = (float)(deviation * kv_random_normal(&numbers));
  return x;
}

static double silu(double x) {
  return x / (1.0 + exp(-x));
}

/* --- the recurrence ----------------------------------------------------------------------------
 */

/* The twin sums over everything that came before, weighted by the product of the decays between. */
static double twin_scan(const float *x, const float *gate, const float *delta, const float *bias,
                        const float *bc, const float *decay, const float *skip, guint t, guint i,
                        guint I, guint N) {
  double sum = (double)skip[i] * x[t * I + i];
  for (guint n = 0; n < N; n++) {
    double weight = 1.0;
    for (guint j = t + 1; j-- > 0;) {
      double step = log1p(exp((double)delta[j * I + i] + bias[i]));
      sum += bc[t * 2 * N + N + n] * weight * step * bc[j * 2 * N + n] * x[j * I + i];
      weight *= exp(-step * exp((double)decay[i * N + n]));
    }
  }
  return sum * silu(gate[t * I + i]);
}

/* Cut anywhere, the scan gives the same bits; whole, the twin's numbers. */
static void test_scan(void) {
  enum { T = 19, I = 7, N = 5 };
  g_autofree float *x = random_floats((gsize)T * I, 1.0), *gate = random_floats((gsize)T * I, 1.0);
  g_autofree float *delta = random_floats((gsize)T * I, 1.0),
                   *bc = random_floats((gsize)T * 2 * N, 1.0);
  g_autofree float *bias = random_floats(I, 1.0), *skip = random_floats(I, 1.0);
  g_autofree float *decay = random_floats((gsize)I * N, 0.5);
  float whole[T * I], end[I * N];
  kv_host_selective_scan(whole, x, gate, I, delta, bias, bc, (gsize)2 * N, decay, skip, NULL, end,
                         T, I, N);
  for (guint t = 0; t < T; t++)
    for (guint i = 0; i < I; i++)
      g_assert_cmpfloat_with_epsilon(
          whole[t * I + i], twin_scan(x, gate, delta, bias, bc, decay, skip, t, i, I, N), 1e-4);
  for (guint cut = 1; cut < T; cut++) {
    float parts[T * I], middle[I * N], last[I * N];
    kv_host_selective_scan(parts, x, gate, I, delta, bias, bc, (gsize)2 * N, decay, skip, NULL,
                           middle, cut, I, N);
    kv_host_selective_scan(parts + (gsize)cut * I, x + (gsize)cut * I, gate + (gsize)cut * I, I,
                           delta + (gsize)cut * I, bias, bc + (gsize)cut * 2 * N, (gsize)2 * N,
                           decay, skip, middle, last, T - cut, I, N);
    g_assert_cmpmem(parts, sizeof parts, whole, sizeof whole);
    g_assert_cmpmem(last, sizeof last, end, sizeof end);
  }
}

/* A step far up the softplus is itself, and a step far down lets nothing in. */
static void test_scan_of_extreme_steps(void) {
  const float x = 2.0f, gate = 1.0f, bias = 0.0f, decay = 0.0f, skip = 0.0f, from = 3.0f;
  const float bc[] = {0.5f, 1.0f}, up = 200.0f, down = -200.0f;
  float out, to;
  kv_host_selective_scan(&out, &x, &gate, 1, &up, &bias, bc, 2, &decay, &skip, &from, &to, 1, 1, 1);
  g_assert_cmpfloat(to, ==, 200.0f); /* 200 . 0.5 . 2, nothing of what was */
  kv_host_selective_scan(&out, &x, &gate, 1, &down, &bias, bc, 2, &decay, &skip, &from, &to, 1, 1,
                         1);
  g_assert_cmpfloat(to, ==, 3.0f);
}

static void test_convolution(void) {
  enum { T = 9, I = 5, STRIDE = 2 * I };
  g_autofree float *x = random_floats((gsize)T * STRIDE, 1.0), *bias = random_floats(I, 1.0);
  for (guint width = 2; width <= 5; width++) {
    g_autofree float *weight = random_floats((gsize)I * width, 1.0);
    gsize kept = (gsize)(width - 1) * I;
    g_autofree float *middle = g_new(float, kept), *end = g_new(float, kept);
    g_autofree float *whole_end = g_new(float, kept);
    float whole[T * I], parts[T * I];
    kv_host_causal_convolution(whole, x, STRIDE, weight, bias, NULL, whole_end, T, I, width);
    for (gint t = 0; t < T; t++)
      for (gint i = 0; i < I; i++) {
        double sum = bias[i];
        for (gint k = 0; k < (gint)width; k++)
          if (t + k + 1 >= (gint)width)
            sum += (double)weight[i * (gint)width + k] * x[(t + k + 1 - (gint)width) * STRIDE + i];
        g_assert_cmpfloat_with_epsilon(whole[t * I + i], silu(sum), 1e-5);
      }
    for (guint cut = 1; cut < T; cut++) {
      kv_host_causal_convolution(parts, x, STRIDE, weight, bias, NULL, middle, cut, I, width);
      kv_host_causal_convolution(parts + (gsize)cut * I, x + (gsize)cut * STRIDE, STRIDE, weight,
                                 bias, middle, end, T - cut, I, width);
      g_assert_cmpmem(parts, sizeof parts, whole, sizeof whole);
      g_assert_cmpmem(end, kept * sizeof *end, whole_end, kept * sizeof *end);
    }
  }
}

/* --- whole models --------------------------------------------------------------------------------
 */

static void twin_linear(double *y, const double *x, const float *w, guint K, guint N) {
  for (guint n = 0; n < N; n++) {
    y[n] = 0.0;
    for (guint k = 0; k < K; k++)
      y[n] += x[k] * w[k * N + n];
  }
}

static void twin_norm(double *y, const double *x, const float *gain, guint D) {
  double squares = 0.0;
  for (guint i = 0; i < D; i++)
    squares += x[i] * x[i] / D;
  for (guint i = 0; i < D; i++)
    y[i] = x[i] / sqrt(squares + 1e-5) * gain[i];
}

/* One block over the whole sequence x[n][D]. */
static void twin_block(double (*x)[WIDEST], const KvHostLayer *layer, guint D, guint n) {
  static double both[LONGEST][WIDEST];
  const KvAttention *a = &layer->attention;
  const KvHostMixer *m = &layer->mixer;
  guint I = a->inner, N = a->state_dim, W = a->conv_width, R = a->dt_rank;
  g_autofree double *h = g_new0(double, (gsize)I *N);
  for (guint t = 0; t < n; t++) {
    double normed[WIDEST], u[WIDEST], selected[WIDEST], delta[WIDEST], y[WIDEST], added[WIDEST];
    twin_norm(normed, x[t], layer->attention_norm, D);
    twin_linear(both[t], normed, m->in, D, 2 * I);
    for (guint i = 0; i < I; i++) {
      double sum = m->conv_bias[i];
      for (guint k = 0; k < W; k++)
        sum += t + k + 1 >= W ? m->conv[i * W + k] * both[t + k + 1 - W][i] : 0.0;
      u[i] = silu(sum);
    }
    twin_linear(selected, u, m->x, I, R + 2 * N);
    twin_linear(delta, selected, m->dt, R, I);
    for (guint i = 0; i < I; i++) {
      double step = log1p(exp(delta[i] + m->dt_bias[i]));
      y[i] = m->skip[i] * u[i];
      for (guint j = 0; j < N; j++) {
        double *s = &h[i * N + j];
        *s = exp(-step * exp((double)m->decay[i * N + j])) * *s + step * u[i] * selected[R + j];
        y[i] += *s * selected[R + N + j];
      }
      y[i] *= silu(both[t][I + i]);
    }
    twin_linear(added, y, m->out, I, D);
    for (guint i = 0; i < D; i++)
      x[t][i] += added[i];
  }
}

static guint32 twin_next(const KvHostWeights *w, const guint32 *tokens, guint n) {
  static double x[LONGEST][WIDEST];
  double normed[WIDEST], logits[WIDEST];
  guint32 best = 0;
  for (guint t = 0; t < n; t++)
    for (guint i = 0; i < w->hidden; i++)
      x[t][i] = w->embedding[tokens[t] * w->hidden + i];
  for (guint l = 0; l < w->n_layers; l++)
    twin_block(x, &w->layers[l], w->hidden, n);
  twin_norm(normed, x[n - 1], w->final_norm, w->hidden);
  twin_linear(logits, normed, w->head, w->hidden, w->vocab);
  for (guint v = 1; v < w->vocab; v++)
    best = logits[v] > logits[best] ? v : best;
  return best;
}

static KvExecutor *new_executor(void) {
  g_autoptr(GError) error = NULL;
  KvExecutor *executor = kv_host_executor_new(&mamba, 1, BLOCKS, BLOCKS, 0, SEED, &error);
  g_assert_no_error(error);
  return executor;
}

/* A request and its one block. */
typedef struct {
  KvSequence sequence;
  guint32 block;
} Request;

static void request_init(Request *request, guint64 index, guint32 input_tokens, guint32 block) {
  *request = (Request){.block = block, .sequence = {.index = index, .input_tokens = input_tokens}};
  request->sequence.block_ids = &request->block;
  request->sequence.n_block_ids = 1;
}

static gboolean step(KvExecutor *executor, const KvStep *what, GError **error) {
  KvStepCost cost;
  return executor->class->step(executor, what, &cost, error);
}

static void run(KvExecutor *executor, const KvStep *what) {
  g_autoptr(GError) error = NULL;
  step(executor, what, &error);
  g_assert_no_error(error);
}

static void prefill(KvExecutor *executor, Request *request, guint32 end, guint32 chunk) {
  for (guint32 past = 0; past < end; past += chunk) {
    guint32 tokens = MIN(chunk, end - past);
    KvChunk part = {&request->sequence, past, tokens, past + tokens == end};
    run(executor, &(KvStep){.chunks = &part, .n_chunks = 1, .repeat = 1});
  }
  request->sequence.computed_tokens = end;
}

static void decode(KvExecutor *executor, KvSequence **members, guint n, guint steps) {
  for (guint s = 0; s < steps; s++) {
    run(executor, &(KvStep){.decode = {.n = n, .members = members}, .repeat = 1});
    for (guint i = 0; i < n; i++)
      members[i]->computed_tokens++;
  }
}

static void assert_output(KvExecutor *executor, Request *request, const guint32 *tokens, guint n) {
  guint n_output;
  const guint32 *output = kv_host_executor_output(executor, &request->sequence, &n_output);
  g_assert_cmpmem(output, n_output * sizeof *output, tokens, n * sizeof *tokens);
  executor->class->forget(executor, &request->sequence);
}

/* What the request generates when it is alone and in one chunk. */
static void plain_output(guint64 index, guint32 input_tokens, guint32 *tokens) {
  KvExecutor *executor = new_executor();
  Request request;
  request_init(&request, index, input_tokens, 0);
  KvSequence *member = &request.sequence;
  guint n;
  prefill(executor, &request, input_tokens, input_tokens);
  decode(executor, &member, 1, OUTPUT - 1);
  const guint32 *output = kv_host_executor_output(executor, member, &n);
  g_assert_cmpuint(n, ==, OUTPUT);
  memcpy(tokens, output, OUTPUT * sizeof *tokens);
  executor->class->forget(executor, member);
  executor->class->destroy(executor);
}

static void test_whole_model(void) {
  g_autoptr(KvHostWeights) weights = kv_host_weights_new(&mamba, SEED, NULL);
  guint32 tokens[LONGEST], output[OUTPUT];
  gboolean seen[199] = {0};
  guint distinct = 0;
  KvSequence sequence = {.index = 3, .input_tokens = PROMPT};
  plain_output(3, PROMPT, output);
  for (guint i = 0; i < PROMPT; i++)
    tokens[i] = kv_sequence_prompt_token(&sequence, i, 0, mamba.vocab);
  for (guint i = 0; i < OUTPUT; i++) {
    g_assert_cmpuint(output[i], ==, twin_next(weights, tokens, PROMPT + i));
    tokens[PROMPT + i] = output[i];
    distinct += !seen[output[i]];
    seen[output[i]] = TRUE;
  }
  g_assert_cmpuint(distinct, >=, 5);
  g_assert_cmpuint(
      weights->n_parameters, ==,
      199 * 47 + 47 + 3 * (47 + 47 * 188 + 94 * 5 + 94 * 15 + 3 * 94 + 94 + 94 * 6 + 94 + 94 * 47));
}

/* The first prompt token has a say in the answer: a state that forgets at once would pass all else.
 */
static void test_the_state_remembers(void) {
  g_autoptr(KvHostWeights) weights = kv_host_weights_new(&mamba, SEED, NULL);
  g_autoptr(KvHostCache) cache = kv_host_cache_new(weights, 2, 1, 0, NULL);
  float logits[2][199];
  for (guint run = 0; run < 2; run++) {
    const guint32 tokens[] = {run ? 5 : 6, 9, 8, 7, 6, 5, 4, 3, 2, 1, 11, 12}, block = 0;
    KvHostSpan span = {.block_table = &block,
                       .tokens = tokens,
                       .n_tokens = 12,
                       .sample = TRUE,
                       .logits = logits[run]};
    KvHostWork work = {0};
    kv_host_forward(weights, cache, &span, 1, &work);
  }
  g_assert_cmpfloat(logits[0][0], !=, logits[1][0]);
}

/* A span may be computed twice: it changes nothing. */
static void test_a_pass_twice(void) {
  g_autoptr(KvHostWeights) weights = kv_host_weights_new(&mamba, SEED, NULL);
  g_autoptr(KvHostCache) cache = kv_host_cache_new(weights, 2, 1, 0, NULL);
  const guint32 tokens[] = {5, 9, 8, 7, 6, 5}, block = 0;
  float logits[2][199];
  KvHostSpan first = {.block_table = &block, .tokens = tokens, .n_tokens = 4, .state = 1};
  KvHostWork work = {0};
  kv_host_forward(weights, cache, &first, 1, &work);
  for (guint i = 0; i < 2; i++) {
    KvHostSpan next = {.block_table = &block,
                       .tokens = tokens + 4,
                       .past = 4,
                       .n_tokens = 2,
                       .state = 0,
                       .sample = TRUE,
                       .logits = logits[i]};
    kv_host_forward(weights, cache, &next, 1, &work);
  }
  g_assert_cmpmem(logits[0], sizeof logits[0], logits[1], sizeof logits[1]);
}

static void test_chunks(void) {
  guint32 expected[OUTPUT];
  plain_output(3, PROMPT, expected);
  for (guint32 chunk = 1; chunk < PROMPT; chunk++) {
    KvExecutor *executor = new_executor();
    Request request;
    request_init(&request, 3, PROMPT, 5);
    KvSequence *member = &request.sequence;
    prefill(executor, &request, PROMPT, chunk);
    decode(executor, &member, 1, OUTPUT - 1);
    assert_output(executor, &request, expected, OUTPUT);
    executor->class->destroy(executor);
  }
}

/* Chunks of one request beside the decoding of another, then both decode. */
static void test_batch(void) {
  guint32 first[OUTPUT], second[OUTPUT];
  plain_output(0, PROMPT, first);
  plain_output(1, 30, second);
  KvExecutor *executor = new_executor();
  Request a, b;
  request_init(&a, 0, PROMPT, 4);
  request_init(&b, 1, 30, 2);
  KvSequence *members[] = {&a.sequence, &b.sequence};
  prefill(executor, &a, PROMPT, 8);
  for (guint32 past = 0; past < 30; past += 3) {
    KvChunk chunk = {&b.sequence, past, 3, past == 27};
    run(executor,
        &(KvStep){
            .chunks = &chunk, .n_chunks = 1, .decode = {.n = 1, .members = members}, .repeat = 1});
    a.sequence.computed_tokens++;
  }
  b.sequence.computed_tokens = 30;
  decode(executor, members, 2, 9);
  assert_output(executor, &a, first, OUTPUT);
  decode(executor, members + 1, 1, 10);
  assert_output(executor, &b, second, OUTPUT);
  executor->class->destroy(executor);
}

/* Its block is lost to another request; prompt and tokens are computed again, in another block or
 * in the same. */
static void test_preemption(void) {
  guint32 expected[OUTPUT];
  plain_output(3, PROMPT, expected);
  for (guint32 chunk = 1; chunk <= 29; chunk += 4)
    for (guint32 block = 0; block < 2; block++) {
      KvExecutor *executor = new_executor();
      Request request, other;
      request_init(&request, 3, PROMPT, 0);
      request_init(&other, 4, 40, 0);
      KvSequence *member = &request.sequence;
      prefill(executor, &request, PROMPT, PROMPT);
      decode(executor, &member, 1, 7);
      prefill(executor, &other, 40, 40);
      request.block = block;
      prefill(executor, &request, 28, chunk);
      decode(executor, &member, 1, OUTPUT - 8);
      assert_output(executor, &request, expected, OUTPUT);
      executor->class->forget(executor, &other.sequence);
      executor->class->destroy(executor);
    }
}

/* Out to DRAM, its block overwritten, and back into another. */
static void test_swapping(void) {
  guint32 expected[OUTPUT];
  plain_output(3, PROMPT, expected);
  KvExecutor *executor = new_executor();
  Request request, other;
  request_init(&request, 3, PROMPT, 0);
  request_init(&other, 4, 40, 0);
  KvSequence *member = &request.sequence;
  prefill(executor, &request, PROMPT, PROMPT);
  decode(executor, &member, 1, 6);
  executor->class->move_block(executor, KV_TIER_HBM, 0, KV_TIER_DRAM, 3);
  prefill(executor, &other, 40, 40);
  request.block = 6;
  executor->class->move_block(executor, KV_TIER_DRAM, 3, KV_TIER_HBM, 6);
  decode(executor, &member, 1, OUTPUT - 7);
  assert_output(executor, &request, expected, OUTPUT);
  executor->class->forget(executor, &other.sequence);
  executor->class->destroy(executor);
}

/* --- states that are not one's own ---------------------------------------------------------------
 */

static void assert_wrong(KvExecutor *executor, const KvStep *what, const char *part) {
  g_autoptr(GError) error = NULL;
  g_assert_false(step(executor, what, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  if (!strstr(error->message, part))
    g_test_fail_printf("'%s' does not say '%s'", error->message, part);
}

static void test_wrong_states(void) {
  KvExecutor *executor = new_executor();
  Request a, b;
  request_init(&a, 0, PROMPT, 0);
  request_init(&b, 1, 30, 1);
  KvSequence *members[] = {&a.sequence, &b.sequence};
  prefill(executor, &a, PROMPT, 9);
  prefill(executor, &b, 30, 30);
  KvChunk skipped = {&b.sequence, 25, 3, FALSE}; /* no state is that of 25 tokens any more */
  assert_wrong(
      executor, &(KvStep){.chunks = &skipped, .n_chunks = 1, .repeat = 1},
      "position 25 (block 1) finds another state or none, expected its own of position 24");
  a.block = 7;
  KvStep both = {.decode = {.n = 2, .members = members}, .repeat = 1};
  assert_wrong(executor, &both, "request 0: position 21 (block 7) finds another state");
  a.block = 8;
  assert_wrong(executor, &both, "block id 8, of only 8 in HBM");
  a.sequence.n_block_ids = 0;
  assert_wrong(executor, &both, "needs block 0 of its table, which has 0");
  executor->class->forget(executor, &a.sequence);
  executor->class->forget(executor, &b.sequence);
  executor->class->destroy(executor);
}

/* Two sequences in one block: whoever comes second in the batch, one of them is told. */
static void test_a_block_of_two(void) {
  for (guint order = 0; order < 2; order++) {
    KvExecutor *executor = new_executor();
    Request a, b;
    request_init(&a, 0, PROMPT, 0);
    request_init(&b, 1, PROMPT, 0);
    KvChunk chunks[] = {{order ? &a.sequence : &b.sequence, 0, 4, FALSE},
                        {order ? &b.sequence : &a.sequence, 0, 4, FALSE}};
    assert_wrong(executor, &(KvStep){.chunks = chunks, .n_chunks = 2, .repeat = 1},
                 "(block 0) is another's too");
    executor->class->forget(executor, &a.sequence);
    executor->class->forget(executor, &b.sequence);
    executor->class->destroy(executor);
  }
}

static void test_compressions_are_refused(void) {
  const KvEngineConfig engine = {.block_tokens = 16};
  KvHostCompression compression;
  g_autoptr(KvStack) stack = kv_stack_parse("", NULL);
  g_autoptr(GError) error = NULL;
  g_assert_true(
      kv_host_compression_init(&compression, stack, &mamba, KV_DTYPE_BF16, &engine, &error));
  g_assert_false(
      kv_host_compression_init(&compression, stack, &mamba, KV_DTYPE_FP8, &engine, &error));
  g_assert_nonnull(strstr(error->message, "a layer that keeps a state"));
}

/* --- a checkpoint --------------------------------------------------------------------------------
 */

static const char config[] =
    "{\"model_type\": \"mamba\", \"hidden_size\": 47, \"intermediate_size\": 94, \"expand\": 2,"
    " \"state_size\": 6, \"conv_kernel\": 4, \"time_step_rank\": 3, \"num_hidden_layers\": 3,"
    " \"vocab_size\": 199, \"layer_norm_epsilon\": 1e-5, \"hidden_act\": \"silu\","
    " \"use_conv_bias\": true, \"use_bias\": false, \"tie_word_embeddings\": true,"
    " \"torch_dtype\": \"float32\"}";

/* Append a tensor of the weights to the file in the form of transformers. */
static void add_tensor(GString *header, GByteArray *bytes, const KvModel *model,
                       KvHostWeights *weights, KvTensorId id, guint layer) {
  const KvLayerGroup *group = &model->groups[0];
  KvTensorShape shape = kv_tensor_shape(model, &group->attention, &group->mlp, id);
  g_autofree char *name = kv_tensor_name(model, id, layer);
  const float *tensor = *kv_tensor_slot(weights, id, layer);
  if (!shape.present)
    return;
  g_assert_nonnull(name);
  guint begin = bytes->len;
  for (guint64 r = 0; r < shape.rows; r++)
    for (guint64 c = 0; c < shape.columns; c++)
      g_byte_array_append(
          bytes,
          (const guint8 *)&tensor[shape.kind == KV_TENSOR_MATRIX ? c * shape.rows + r
                                                                 : r * shape.columns + c],
          sizeof(float));
  g_autofree char *axes =
      id == KV_TENSOR_CONV ? g_strdup("94, 1, 4")
      : shape.rows == 1
          ? g_strdup_printf("%" G_GUINT64_FORMAT, shape.columns)
          : g_strdup_printf("%" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT, shape.rows, shape.columns);
  g_string_append_printf(header,
                         "%s\"%s\": {\"dtype\": \"F32\", \"shape\": [%s], \"data_offsets\": "
                         "[%u, %u]}",
                         header->len > 1 ? ", " : "", name, axes, begin, bytes->len);
}

static void write_checkpoint(const char *folder, const KvModel *model, KvHostWeights *weights) {
  g_autoptr(GString) header = g_string_new("{");
  g_autoptr(GByteArray) bytes = g_byte_array_new(), file = g_byte_array_new();
  for (KvTensorId id = 0; id < KV_TENSOR_ATTENTION_NORM; id++)
    add_tensor(header, bytes, model, weights, id, 0);
  for (guint l = 0; l < weights->n_layers; l++)
    for (KvTensorId id = KV_TENSOR_ATTENTION_NORM; id < KV_N_TENSORS; id++)
      add_tensor(header, bytes, model, weights, id, l);
  g_string_append_c(header, '}');
  guint64 size = GUINT64_TO_LE(header->len);
  g_byte_array_append(file, (const guint8 *)&size, 8);
  g_byte_array_append(file, (const guint8 *)header->str, (guint)header->len);
  g_byte_array_append(file, bytes->data, bytes->len);
  g_autofree char *path = g_build_filename(folder, "model.safetensors", NULL);
  g_autofree char *config_path = g_build_filename(folder, "config.json", NULL);
  g_assert_true(g_file_set_contents(path, (const char *)file->data, file->len, NULL));
  g_assert_true(g_file_set_contents(config_path, config, -1, NULL));
}

static void remove_folder(const char *folder) {
  static const char *const names[] = {"model.safetensors", "config.json"};
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autofree char *path = g_build_filename(folder, names[i], NULL);
    g_assert_cmpint(g_unlink(path), ==, 0);
  }
  g_assert_cmpint(g_rmdir(folder), ==, 0);
}

static void test_checkpoint(void) {
  g_autoptr(GError) error = NULL;
  g_autofree char *folder = g_dir_make_tmp("kvsim-mamba-XXXXXX", &error);
  g_assert_no_error(error);
  g_autoptr(KvHostWeights) drawn = kv_host_weights_new(&mamba, SEED, &error);
  write_checkpoint(folder, &mamba, drawn);
  g_autoptr(KvModel) model = kv_model_load(folder, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(model->groups[0].attention.inner, ==, 94);
  g_assert_cmpuint(kv_model_parameters(model), ==, drawn->n_parameters);
  g_autoptr(KvHostWeights) loaded = kv_host_weights_load(model, folder, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(loaded->n_parameters, ==, drawn->n_parameters);
  for (KvTensorId id = 0; id < KV_N_TENSORS; id++) {
    const KvLayerGroup *group = &mamba.groups[0];
    KvTensorShape shape = kv_tensor_shape(&mamba, &group->attention, &group->mlp, id);
    gsize bytes = shape.rows * shape.columns * sizeof(float);
    guint layer = id < KV_TENSOR_ATTENTION_NORM ? 0 : 2;
    if (shape.present)
      g_assert_cmpmem(*kv_tensor_slot(loaded, id, layer), bytes, *kv_tensor_slot(drawn, id, layer),
                      bytes);
    else if (id != KV_TENSOR_HEAD)
      g_assert_null(*kv_tensor_slot(loaded, id, layer));
  }
  remove_folder(folder);
}

static void assert_config_refused(const char *text, const char *part) {
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_model_parse("config.json", text, strlen(text), &error));
  g_assert_nonnull(strstr(error->message, part));
}

static void test_configs(void) {
  static const char little[] = "{\"model_type\": \"mamba\", \"hidden_size\": 50, \"vocab_size\": 9,"
                               " \"num_hidden_layers\": 2, \"time_step_rank\": \"auto\","
                               " \"use_bias\": true}";
  g_autoptr(GError) error = NULL;
  g_autoptr(KvModel) model = kv_model_parse("config.json", little, strlen(little), &error);
  g_assert_no_error(error);
  const KvAttention *a = &model->groups[0].attention;
  g_assert_cmpuint(a->inner, ==, 100);
  g_assert_cmpuint(a->dt_rank, ==, 4);
  g_assert_cmpuint(a->state_dim, ==, 16);
  g_assert_cmpuint(a->conv_width, ==, 4);
  g_assert_cmpuint(a->state_elements, ==, 2000);
  g_assert_true(a->bias && model->tied_embeddings);
  g_assert_null(kv_host_weights_obstacle(model));
  assert_config_refused("{\"model_type\": \"mamba\", \"hidden_size\": 50, \"vocab_size\": 9,"
                        " \"num_hidden_layers\": 2, \"intermediate_size\": 90}",
                        "'intermediate_size' is not the 100");
  assert_config_refused("{\"model_type\": \"mamba\", \"hidden_size\": 50, \"vocab_size\": 9,"
                        " \"num_hidden_layers\": 2, \"hidden_act\": \"gelu\"}",
                        "expected silu");
}

static const struct {
  const char *path;
  void (*function)(void);
} tests[] = {
    {"scan", test_scan},
    {"extreme-steps", test_scan_of_extreme_steps},
    {"convolution", test_convolution},
    {"whole-model", test_whole_model},
    {"remembers", test_the_state_remembers},
    {"a-pass-twice", test_a_pass_twice},
    {"chunks", test_chunks},
    {"batch", test_batch},
    {"preemption", test_preemption},
    {"swapping", test_swapping},
    {"wrong-states", test_wrong_states},
    {"a-block-of-two", test_a_block_of_two},
    {"compressions", test_compressions_are_refused},
    {"checkpoint", test_checkpoint},
    {"configs", test_configs},
};

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  kv_random_seed(&numbers, 20, 2);
  for (guint i = 0; i < G_N_ELEMENTS(tests); i++) {
    g_autofree char *path = g_strconcat("/reference/recurrent/", tests[i].path, NULL);
    g_test_add_func(path, tests[i].function);
  }
  return g_test_run();
}
