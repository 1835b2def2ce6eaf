/* Latent attention and experts in DeepSeek-V2-Lite's sizes (and V2's 128 heads), on this GPU.
 *
 *     cuda_latent FILE.json
 *
 * Each row: the GPU's time (median of REPEATS rounds after a warm one, in microseconds, over more
 * memory than the second-level cache holds), bytes/s and FLOP/s. Bytes of decode attention are the
 * latents, each once; of experts, the weights of those that the rows are expected to choose.
 */
#include <math.h>
#include <stdio.h>

#include "reference/cuda/device.h"
#include "reference/cuda/mixture.h"
#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/base/random.h"

enum {
  REPEATS = 11,
  BLOCK_TOKENS = 64,
  SHIFT = 6,
  HIDDEN = 2048,
  EXPERTS = 64,
  CHOSEN = 6,
  INTERMEDIATE = 1408,
  MOST_ROWS = 2048,
  INPUTS = 16 /* different rows, so that different experts are read */
};

typedef struct {
  KvCudaDevice *device;
  KvCudaGemm *gemm;
  KvOutput *file;
  const char *separator;
  GPtrArray *memory; /* of the case under way */
} Bench;

static void *take(Bench *b, gsize bytes, GError **error) {
  void *memory = kv_cuda_alloc(bytes, "the benchmark's arrays", error);
  if (memory)
    g_ptr_array_add(b->memory, memory);
  return memory;
}

static void *take_random(Bench *b, gsize bytes, float reach, GError **error) {
  void *memory = take(b, bytes, error);
  return memory && KV_CUDA_OK(kv_cuda_fill_random(memory, bytes / sizeof(KvBf16), 0.0f, reach,
                                                  bytes, b->device->stream),
                              error)
             ? memory
             : NULL;
}

static void *take_words(Bench *b, const void *words, gsize bytes, GError **error) {
  void *memory = take(b, bytes, error);
  return memory && kv_cuda_upload(b->device, memory, words, bytes, error) ? memory : NULL;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

typedef gboolean (*Work)(gconstpointer what, guint i, GError **error);

static gboolean time_work(Bench *b, Work work, gconstpointer what, guint inner, double *seconds,
                          GError **error) {
  double rounds[REPEATS + 1];
  guint launch = 0;
  for (guint r = 0; r <= REPEATS; r++) { /* the first is warming up */
    if (!kv_cuda_clock_start(b->device, error))
      return FALSE;
    for (guint i = 0; i < inner; i++)
      if (!work(what, launch++, error))
        return FALSE;
    if (!kv_cuda_clock_stop(b->device, &rounds[r], error))
      return FALSE;
  }
  qsort(rounds + 1, REPEATS, sizeof *rounds, by_value);
  *seconds = rounds[1 + REPEATS / 2] / inner;
  return TRUE;
}

static void report(Bench *b, const char *what, guint heads, guint rows, guint context,
                   double seconds, double bytes, double flops) {
  kv_output_print(b->file,
                  "%s  {\"what\": \"%s\", \"heads\": %u, \"rows\": %u, \"context\": %u, \"us\": "
                  "%.6g, \"GBps\": %.6g, \"TFLOPS\": %.6g}",
                  b->separator, what, heads, rows, context, 1e6 * seconds, 1e-9 * bytes / seconds,
                  1e-12 * flops / seconds);
  b->separator = ",\n";
  printf("%-16s heads %3u rows %4u context %6u %9.1f us %7.0f GB/s %7.1f TFLOP/s\n", what, heads,
         rows, context, 1e6 * seconds, 1e-9 * bytes / seconds, 1e-12 * flops / seconds);
  (void)fflush(stdout);
}

/* --- attention ------------------------------------------------------------------------------- */

typedef struct {
  const Bench *bench;
  guint n_heads, sequences, context, copies, max_splits, n_tiles;
  gsize pool_elements; /* of one copy */
  KvBf16 *pool, *q, *out;
  KvCudaTables tables;
  guint32 *contexts, *split;
  KvCudaTile *tiles;
  void *scratch;
} Attention;

static KvCudaPages pages_of(const Attention *a, guint i) {
  return (KvCudaPages){.pool = a->pool + (i % a->copies) * a->pool_elements,
                       .block_elements = (gsize)BLOCK_TOKENS * KV_CUDA_LATENT_WIDTH,
                       .block_shift = SHIFT,
                       .n_kv_heads = 1,
                       .head_dim = KV_CUDA_LATENT_WIDTH};
}

static gboolean decode_once(gconstpointer what, guint i, GError **error) {
  const Attention *a = what;
  const KvCudaPages pages = pages_of(a, i);
  return KV_CUDA_OK(kv_cuda_latent_decode(a->out, a->q, &pages, &a->tables, a->contexts,
                                          a->sequences, a->n_heads, 0.07f, a->split, a->max_splits,
                                          a->scratch, a->bench->device->stream),
                    error);
}

static gboolean prefill_once(gconstpointer what, guint i, GError **error) {
  const Attention *a = what;
  const KvCudaPages pages = pages_of(a, i);
  return KV_CUDA_OK(kv_cuda_latent_prefill(a->out, a->q, &pages, &a->tables, a->tiles, a->n_tiles,
                                           a->n_heads, 0.07f, a->bench->device->stream),
                    error);
}

/* Tables of scattered blocks, and the tiles of one chunk that is the whole context. */
static gboolean attention_init(Attention *a, Bench *b, guint queries, GError **error) {
  guint S = a->sequences, each = (a->context + BLOCK_TOKENS - 1) / BLOCK_TOKENS, n = each * S;
  guint most = kv_cuda_latent_tile_tokens(a->n_heads);
  g_autofree guint32 *table = g_new(guint32, n), *starts = g_new(guint32, S);
  g_autofree guint32 *contexts = g_new(guint32, S);
  a->n_tiles = (a->context + most - 1) / most;
  g_autofree KvCudaTile *tiles = g_new(KvCudaTile, a->n_tiles);
  for (guint i = 0; i < n; i++)
    table[i] = (guint32)((guint64)i * 7919 % n); /* a prime: every block once if n is no multiple */
  for (guint s = 0; s < S; s++) {
    starts[s] = s * each;
    contexts[s] = a->context;
  }
  for (guint t = 0; t < a->n_tiles; t++) { /* heaviest first */
    guint first = (a->n_tiles - 1 - t) * most;
    tiles[t] = (KvCudaTile){0, first, first, MIN(most, a->context - first)};
  }
  a->max_splits = kv_cuda_latent_max_splits(S, a->n_heads, b->device->multiprocessors);
  guint32 piece = (a->context + a->max_splits - 1) / a->max_splits;
  piece = (piece + KV_CUDA_SPLIT_UNIT - 1) / KV_CUDA_SPLIT_UNIT * KV_CUDA_SPLIT_UNIT;
  gsize rows = (gsize)queries * a->n_heads * sizeof(KvBf16);
  a->pool_elements = (gsize)n * BLOCK_TOKENS * KV_CUDA_LATENT_WIDTH;
  a->copies = 1 + (guint)MIN(400, 3 * b->device->l2_bytes / (a->pool_elements * sizeof(KvBf16)));
  return (a->pool = take_random(b, a->copies * a->pool_elements * sizeof(KvBf16), 1.7f, error)) &&
         (a->q = take_random(b, rows * KV_CUDA_LATENT_WIDTH, 1.7f, error)) &&
         (a->out = take(b, rows * KV_CUDA_LATENT_RANK, error)) &&
         (a->tables.table = take_words(b, table, n * sizeof *table, error)) &&
         (a->tables.table_starts = take_words(b, starts, S * sizeof *starts, error)) &&
         (a->contexts = take_words(b, contexts, S * sizeof *contexts, error)) &&
         (a->split = take_words(b, &piece, sizeof piece, error)) &&
         (a->tiles = take_words(b, tiles, a->n_tiles * sizeof *tiles, error)) &&
         (a->scratch = take(
              b, kv_cuda_decode_scratch_bytes(S, a->n_heads, KV_CUDA_LATENT_RANK, a->max_splits),
              error));
}

static gboolean bench_attention(Bench *b, guint n_heads, guint sequences, guint context,
                                gboolean prompt, GError **error) {
  Attention a = {.bench = b, .n_heads = n_heads, .sequences = sequences, .context = context};
  double seconds, n = context, tokens = prompt ? 0.5 * n * (n + 1.0) : n * sequences;
  if (!attention_init(&a, b, prompt ? context : sequences, error) ||
      !time_work(b, prompt ? prefill_once : decode_once, &a, prompt ? 4 : MAX(a.copies, 8),
                 &seconds, error))
    return FALSE;
  report(b, prompt ? "latent_prefill" : "latent_decode", n_heads, prompt ? context : sequences,
         context, seconds, sizeof(KvBf16) * KV_CUDA_LATENT_WIDTH * n * sequences,
         2.0 * n_heads * (KV_CUDA_LATENT_WIDTH + KV_CUDA_LATENT_RANK) * tokens);
  g_ptr_array_set_size(b->memory, 0);
  return TRUE;
}

/* --- experts --------------------------------------------------------------------------------- */

static gboolean mix_once(gconstpointer what, guint i, GError **error) {
  KvCudaMixture m = *(const KvCudaMixture *)what;
  m.normed += (gsize)(i % INPUTS) * m.rows * HIDDEN;
  return kv_cuda_mixture_run(&m, error);
}

static gboolean bench_experts(Bench *b, KvCudaLayer *layer, guint rows, GError **error) {
  const gsize row = HIDDEN * sizeof(float), n = (gsize)rows * INPUTS * HIDDEN;
  double seconds, each = 3.0 * HIDDEN * INTERMEDIATE;
  double used = EXPERTS * (1.0 - pow(1.0 - (double)CHOSEN / EXPERTS, rows));
  g_autofree guint32 *sequences = g_new0(guint32, rows);
  KvCudaMixture m = {.layer = layer,
                     .routing = {.normalized = TRUE, .scale = 1.0f},
                     .rows = rows,
                     .hidden = HIDDEN,
                     .gemm = b->gemm,
                     .stream = b->device->stream};
  gsize kept = b->memory->len; /* the weights */
  if (!(m.row_sequences = take_words(b, sequences, rows * sizeof *sequences, error)) ||
      !(m.normed = take_random(b, n * sizeof(KvBf16), 1.7f, error)) ||
      !(m.x = take(b, rows * row, error)) || !kv_cuda_fill(b->device, m.x, 0, rows * row, error) ||
      !(m.work = take(b, kv_cuda_mixture_work_bytes(&layer->mlp, HIDDEN, rows), error)) ||
      !time_work(b, mix_once, &m, INPUTS, &seconds, error))
    return FALSE;
  report(b, "experts", 0, rows, 0, seconds, used * each * sizeof(KvBf16),
         2.0 * rows * CHOSEN * each);
  g_ptr_array_set_size(b->memory, (gint)kept);
  return TRUE;
}

static gboolean bench_all_experts(Bench *b, GError **error) {
  static const guint rows[] = {1, 2, 4, 8, 16, 64, 256, MOST_ROWS};
  const gsize matrix = (gsize)EXPERTS * HIDDEN * INTERMEDIATE * sizeof(KvBf16);
  KvCudaLayer layer = {.mlp = {.gated = TRUE,
                               .n_experts = EXPERTS,
                               .n_experts_per_token = CHOSEN,
                               .expert_intermediate = INTERMEDIATE}};
  if (!(layer.router = take_random(b, (gsize)EXPERTS * HIDDEN * sizeof(KvBf16), 0.04f, error)) ||
      !(layer.expert_up = take_random(b, 2 * matrix, 0.04f, error)) ||
      !(layer.expert_down = take_random(b, matrix, 0.04f, error)))
    return FALSE;
  for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
    if (!bench_experts(b, &layer, rows[i], error))
      return FALSE;
  g_ptr_array_set_size(b->memory, 0);
  return TRUE;
}

/* --- */

static const struct {
  guint n_heads, sequences, context;
  gboolean prompt;
} shapes[] = {{16, 1, 8192, FALSE},   {16, 1, 131072, FALSE}, {16, 16, 2048, FALSE},
              {16, 64, 2048, FALSE},  {16, 64, 8192, FALSE},  {16, 256, 1000, FALSE},
              {128, 16, 4096, FALSE}, {16, 1, 512, TRUE},     {16, 1, 2048, TRUE},
              {16, 1, 8192, TRUE},    {128, 1, 2048, TRUE}};

static gboolean run(Bench *b, const char *path, GError **error) {
  if (!(b->device = kv_cuda_device_open(error)) || !(b->gemm = kv_cuda_gemm_new(error)) ||
      !(b->file = kv_output_open(path, error)))
    return FALSE;
  kv_output_print(b->file, "{\n \"device\": \"%s\",\n \"rows\": [", b->device->name);
  b->separator = "\n";
  for (guint i = 0; i < G_N_ELEMENTS(shapes); i++)
    if (!bench_attention(b, shapes[i].n_heads, shapes[i].sequences, shapes[i].context,
                         shapes[i].prompt, error))
      return FALSE;
  if (!bench_all_experts(b, error))
    return FALSE;
  kv_output_print(b->file, "\n ]\n}\n");
  return kv_output_commit(g_steal_pointer(&b->file), error);
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  Bench bench = {.memory = g_ptr_array_new_with_free_func(kv_cuda_free)};
  if (argc != 2) {
    (void)fprintf(stderr, "cuda_latent: expected FILE.json\n");
    return 2;
  }
  gboolean done = run(&bench, argv[1], &error);
  if (bench.file)
    kv_output_discard(bench.file);
  g_ptr_array_unref(bench.memory);
  kv_cuda_gemm_free(bench.gemm);
  kv_cuda_device_close(bench.device);
  if (!done)
    (void)fprintf(stderr, "cuda_latent: %s\n", error->message);
  return done ? 0 : 1;
}
