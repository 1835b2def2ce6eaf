/* Passes of the GPU's engine beside the host's, on the same spans: decoding sequences that share
 * leading blocks, replayed as graphs and beside a prompt, read once for all and each for itself. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/cuda/forward.h"
#include "sim/base/random.h"

enum { BLOCK = 16, BLOCKS = 128, SEQUENCES = 7, TABLE = 24, SEED = 5, VOCAB = 300 };

static KvLayerGroup groups[] = {{.count = 2,
                                 .attention = {.kind = KV_ATTENTION_FULL,
                                               .n_heads = 4,
                                               .n_kv_heads = 2,
                                               .head_dim = 64,
                                               .value_head_dim = 64},
                                 .mlp = {.intermediate = 256, .gated = TRUE}}};
static const KvModel model = {.id = (char *)"small",
                              .hidden = 128,
                              .vocab = VOCAB,
                              .max_context_tokens = 4096,
                              .norm = KV_NORM_RMS,
                              .n_groups = 1,
                              .groups = groups};

static KvCudaDevice *device;

/* One sequence's tokens, and the blocks that hold them. */
typedef struct {
  guint32 tokens[TABLE * BLOCK], table[TABLE];
  guint32 shared, length; /* leading tokens that others have; what is computed */
} Sequence;

/* The same passes by the host and by two engines on the GPU. */
typedef struct {
  KvHostWeights *host_weights;
  KvHostCache *host_cache;
  KvCudaWeights *weights;
  KvCudaCache *caches[2];
  KvCudaEngine *engines[2]; /* each for itself; once for all */
  Sequence sequences[SEQUENCES];
} Bench;

/* Sequences 0 to 5 have 4 blocks in common, 0 to 2 of them 7 (which is longer than what 1 goes on
 * with), 6 none. */
static void sequences_init(Sequence *sequences) {
  static const guint32 common[SEQUENCES] = {0, 7, 7, 4, 4, 4, 0},
                       lengths[SEQUENCES] = {150, 113, 140, 70, 65, 200, 90};
  KvRandom random;
  guint32 next = 0;
  kv_random_seed(&random, SEED, 2);
  for (guint s = 0; s < SEQUENCES; s++) {
    Sequence *q = &sequences[s];
    q->shared = common[s] * BLOCK;
    q->length = lengths[s];
    for (guint i = 0; i < TABLE; i++)
      q->table[i] = i < common[s]                ? sequences[0].table[i]
                    : i * BLOCK < q->length + 20 ? BLOCKS - 1 - next++
                                                 : 0;
    for (guint i = 0; i < TABLE * BLOCK; i++)
      q->tokens[i] = i < q->shared ? sequences[0].tokens[i]
                                   : (guint32)kv_random_integer(&random, 0, VOCAB - 1);
  }
  g_assert_cmpuint(next, <, BLOCKS);
}

#define OK(call)                                                                                   \
  G_STMT_START {                                                                                   \
    g_autoptr(GError) error = NULL;                                                                \
    gboolean done = (call) ? TRUE : FALSE;                                                         \
    g_assert_no_error(error);                                                                      \
    g_assert_true(done);                                                                           \
  }                                                                                                \
  G_STMT_END

static void bench_init(Bench *b) {
  const KvHostCompression compressions[2] = {{0}, {.shared_over = 1}};
  memset(b, 0, sizeof *b);
  OK(b->host_weights = kv_host_weights_new(&model, SEED, &error));
  OK(b->host_cache = kv_host_cache_new(b->host_weights, BLOCK, BLOCKS, 0, &error));
  OK(b->weights = kv_cuda_weights_new(device, &model, NULL, SEED, &error));
  for (guint i = 0; i < 2; i++) {
    OK(b->caches[i] = kv_cuda_cache_new_compressed(device, b->weights, BLOCK, BLOCKS, 0,
                                                   &compressions[i], &error));
    OK(b->engines[i] = kv_cuda_engine_new(device, b->weights, b->caches[i], TABLE * BLOCK, &error));
  }
  sequences_init(b->sequences);
}

static void bench_clear(Bench *b) {
  for (guint i = 0; i < 2; i++) {
    kv_cuda_engine_free(b->engines[i]);
    kv_cuda_cache_free(b->caches[i]);
  }
  kv_cuda_weights_free(b->weights);
  kv_host_cache_free(b->host_cache);
  kv_host_weights_free(b->host_weights);
}

static double distance(const float *a, const float *b, gsize n) {
  double difference = 0.0, size = 0.0;
  for (gsize i = 0; i < n; i++) {
    difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    size += (double)b[i] * b[i];
  }
  return sqrt(difference / size);
}

static void assert_close(const char *what, const float *got, const float *expected,
                         const KvHostSpan *spans, guint n, double tolerance) {
  for (guint i = 0; i < n; i++) {
    double d = distance(got + (gsize)i * VOCAB, expected + (gsize)i * VOCAB, VOCAB);
    if (!(d < tolerance)) {
      g_test_message("%s: span %u of %u, at %u: relative error %g", what, i, n, spans[i].past, d);
      g_test_fail();
    }
  }
}

/* The pass by all three; every logit is compared. Rounding the weights to bf16 alone moves them by
 * 0.012, and other blocks in the place of the shared ones by 0.6 and more. Bytes that sharing
 * saves.
 */
static double run(Bench *b, const KvHostSpan *spans, guint n, gboolean replayed) {
  g_autofree float *expected = g_new(float, n *VOCAB);
  g_autofree float *apart = g_new(float, n *VOCAB), *together = g_new(float, n *VOCAB);
  float *logits[2] = {apart, together};
  KvHostSpan copy[SEQUENCES];
  KvHostWork host = {0};
  KvCudaWork work[2] = {0};
  memcpy(copy, spans, n * sizeof *copy);
  for (guint i = 0; i < n; i++)
    copy[i].logits = expected + (gsize)i * VOCAB;
  kv_host_forward(b->host_weights, b->host_cache, copy, n, &host);
  for (guint e = 0; e < 2; e++) {
    memcpy(copy, spans, n * sizeof *copy);
    OK(kv_cuda_engine_run(b->engines[e], copy, n, &work[e], &error));
    OK(kv_cuda_download(device, logits[e], kv_cuda_engine_logits(b->engines[e]),
                        (gsize)n * VOCAB * sizeof *apart, &error));
    g_assert_cmpint(work[e].replayed, ==, replayed);
  }
  assert_close("each for itself, beside the host's fp32", apart, expected, spans, n, 8e-2);
  assert_close("once for all, beside each for itself", together, apart, spans, n, 3e-2);
  return work[0].bytes - work[1].bytes;
}

static KvHostSpan chunk(const Sequence *q, guint32 past, guint32 end) {
  return (KvHostSpan){.block_table = q->table,
                      .tokens = q->tokens + past,
                      .past = past,
                      .n_tokens = end - past,
                      .prompt_tokens = end,
                      .last = TRUE,
                      .sample = TRUE};
}

static KvHostSpan decoding(const Sequence *q) {
  KvHostSpan span = chunk(q, q->length, q->length + 1);
  span.decoding = TRUE;
  return span;
}

/* Decode `n` sequences from `first` on, beside a prompt or alone. */
static double step(Bench *b, const KvHostSpan *prompt, guint first, guint n) {
  KvHostSpan spans[SEQUENCES];
  guint count = 0;
  if (prompt)
    spans[count++] = *prompt;
  for (guint s = first; s < first + n; s++)
    spans[count++] = decoding(&b->sequences[s]);
  double saved = run(b, spans, count, prompt == NULL);
  for (guint s = first; s < first + n; s++)
    b->sequences[s].length++;
  return saved;
}

static void test_shared_blocks(void) {
  /* Two layers of two KV heads of 64, keys and values in bf16. */
  const double token_bytes = 2.0 * 2.0 * 2.0 * 64.0 * sizeof(KvBf16);
  Bench b;
  bench_init(&b);
  for (guint s = 0; s < 6; s++) {
    KvHostSpan prompt = chunk(&b.sequences[s], b.sequences[s].shared, b.sequences[s].length);
    g_assert_cmpfloat(run(&b, &prompt, 1, FALSE), ==, 0.0);
  }
  for (guint i = 0; i < 3; i++) /* 5 of 64 tokens, and 2 of the next 48 */
    g_assert_cmpfloat(step(&b, NULL, 0, 6), ==, (5.0 * 64.0 + 2.0 * 48.0) * token_bytes);
  KvHostSpan prompt = chunk(&b.sequences[6], 0, b.sequences[6].length);
  g_assert_cmpfloat(step(&b, &prompt, 1, 4), ==, (3.0 * 64.0 + 48.0) * token_bytes);
  for (guint i = 0; i < 2; i++)
    g_assert_cmpfloat(step(&b, NULL, 2, 5), ==, 3.0 * 64.0 * token_bytes);
  g_assert_cmpfloat(step(&b, NULL, 5, 2), ==, 0.0); /* nothing in common */
  g_assert_cmpfloat(step(&b, NULL, 0, 6), >, 0.0);  /* the first graph again */
  bench_clear(&b);
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  g_test_init(&argc, &argv, NULL);
  if (!(device = kv_cuda_device_open(&error))) {
    g_print("1..0 # SKIP %s\n", error->message);
    return 0;
  }
  g_test_add_func("/reference/cuda-engine/shared-blocks", test_shared_blocks);
  int status = g_test_run();
  kv_cuda_device_close(device);
  return status;
}
