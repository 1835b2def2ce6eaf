/* What the kernels reach, beside what the GPU can do.
 *
 *     cuda_bench FILE.json [MODEL [PART ...]]
 *
 * First the ceilings: a copy inside the GPU's memory (bytes read plus bytes written) and a large
 * bf16 product. Then decode and prefill attention, products, swaps and whole steps of MODEL
 * (default llama-3-8b) with random weights and caches; of these only the PARTs, if there are any:
 * decode, prefill, products, steps, targets (steps that have one) and swaps. Times are the GPU's,
 * medians of REPEATS after a warm run, in microseconds; what is timed alternates among buffers
 * larger together than the second-level cache. A row that needs more memory than is free is left
 * out, and says so.
 */
#include <stdio.h>
#include <string.h>

#include "models/llm/llm.h"
#include "reference/cuda/forward.h"
#include "reference/cuda/timing.h"
#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/base/random.h"

enum { REPEATS = KV_CUDA_REPEATS, BLOCK_TOKENS = KV_CUDA_BENCH_BLOCK_TOKENS };

typedef struct {
  KvCudaTimer timer;
  KvOutput *file;
  const char *separator; /* before the next row */
  double copy_Bps, gemm_flops;
  gboolean only_targets; /* of the steps */
} Bench;

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double median(double *values, guint n) {
  qsort(values, n, sizeof *values, by_value);
  return values[n / 2];
}

static void begin_list(Bench *b, const char *name) {
  kv_output_print(b->file, ",\n \"%s\": [", name);
  b->separator = "\n";
}

static void end_list(Bench *b) {
  kv_output_print(b->file, "\n ]");
}

/* A row of a list, and of the table on the terminal. */
static void row(Bench *b, const char *label, const char *fields, double seconds, double bytes,
                double flops) {
  kv_output_print(b->file, "%s  {%s, \"us\": %.6g", b->separator, fields, 1e6 * seconds);
  printf("%-58s %10.1f us", label, 1e6 * seconds);
  if (bytes > 0.0) {
    kv_output_print(b->file, ", \"bytes\": %.0f, \"GBps\": %.6g, \"share_of_copy\": %.4f", bytes,
                    1e-9 * bytes / seconds, bytes / seconds / b->copy_Bps);
    printf("  %7.0f GB/s (%3.0f %% of copy)", 1e-9 * bytes / seconds,
           100.0 * bytes / seconds / b->copy_Bps);
  }
  if (flops > 0.0) {
    kv_output_print(b->file, ", \"flops\": %.6g, \"TFLOPs\": %.6g, \"share_of_gemm\": %.4f", flops,
                    1e-12 * flops / seconds, flops / seconds / b->gemm_flops);
    printf("  %6.1f TFLOP/s (%3.0f %% of GEMM)", 1e-12 * flops / seconds,
           100.0 * flops / seconds / b->gemm_flops);
  }
  kv_output_print(b->file, "}");
  puts("");
  (void)fflush(stdout);
  b->separator = ",\n";
}

/* Report a failure that only means that this GPU is too small. */
static void skip(const char *label, GError **error) {
  printf("%-58s left out: %s\n", label, (*error)->message);
  g_clear_error(error);
}

/* --- single operations ----------------------------------------------------------------------- */

static gboolean bench_ceilings(Bench *b, GError **error) {
  const gsize bytes = (gsize)1 << 30;
  double seconds = 0.0;
  if (!kv_cuda_time_copy(&b->timer, cudaMemcpyDeviceToDevice, bytes, &seconds, error))
    return FALSE;
  b->copy_Bps = 2.0 * (double)bytes / seconds;
  if (!kv_cuda_time_product(&b->timer, 8192, 8192, 8192, &seconds, error))
    return FALSE;
  b->gemm_flops = 2.0 * 8192.0 * 8192.0 * 8192.0 / seconds;
  kv_output_print(b->file, ",\n \"copy_GBps_rw\": %.6g,\n \"gemm_TFLOPs\": %.6g",
                  1e-9 * b->copy_Bps, 1e-12 * b->gemm_flops);
  printf("%s: copy %.0f GB/s (read and written), bf16 product %.0f TFLOP/s\n",
         b->timer.device->name, 1e-9 * b->copy_Bps, 1e-12 * b->gemm_flops);
  return TRUE;
}

static gboolean bench_products(Bench *b, const KvModel *model, GError **error) {
  static const guint rows[] = {1, 4, 16, 64, 256, 2048, 8192};
  static const guint shapes[][2] = {{4096, 6144}, {4096, 4096}, {4096, 28672}, {14336, 4096}};
  begin_list(b, "products");
  for (guint s = 0; s < G_N_ELEMENTS(shapes); s++)
    for (guint r = 0; r < G_N_ELEMENTS(rows); r++) {
      guint M = rows[r], K = shapes[s][0], N = shapes[s][1];
      double seconds;
      if (!kv_cuda_time_product(&b->timer, M, K, N, &seconds, error))
        return FALSE;
      g_autofree char *label = g_strdup_printf("product %u x %u x %u", M, K, N);
      g_autofree char *fields =
          g_strdup_printf("\"rows\": %u, \"inputs\": %u, \"outputs\": %u", M, K, N);
      row(b, label, fields, seconds, M <= 64 ? 2.0 * ((double)K * N + (double)M * (K + N)) : 0.0,
          M > 64 ? 2.0 * M * K * N : 0.0);
    }
  end_list(b);
  return TRUE;
}

static const struct {
  guint n_heads, n_kv_heads, head_dim, sequences, context;
} decodes[] = {{32, 8, 128, 1, 512},   {32, 8, 128, 1, 8192},  {32, 8, 128, 1, 131072},
               {32, 8, 128, 8, 2048},  {32, 8, 128, 16, 2048}, {32, 8, 128, 64, 512},
               {32, 8, 128, 64, 2048}, {32, 8, 128, 64, 8192}, {32, 8, 128, 128, 1024},
               {40, 8, 128, 64, 2048}, {28, 4, 128, 64, 2048}, {32, 32, 128, 16, 2048},
               {64, 8, 128, 64, 4096}, {32, 8, 64, 64, 4096},  {12, 12, 64, 64, 1024}};

static gboolean bench_decode(Bench *b, const KvModel *model, GError **error) {
  begin_list(b, "decode_attention");
  for (guint i = 0; i < G_N_ELEMENTS(decodes); i++) {
    KvCudaAttentionCase a = {.n_heads = decodes[i].n_heads,
                             .n_kv_heads = decodes[i].n_kv_heads,
                             .head_dim = decodes[i].head_dim,
                             .sequences = decodes[i].sequences,
                             .past = decodes[i].context};
    double seconds = 0.0;
    if (!kv_cuda_time_decode(&b->timer, &a, &seconds, error))
      return FALSE;
    double bytes = 4.0 * a.sequences * a.past * a.n_kv_heads * a.head_dim;
    g_autofree char *label =
        g_strdup_printf("decode attention %u/%u d %u batch %u context %u (%.0f MB)", a.n_heads,
                        a.n_kv_heads, a.head_dim, a.sequences, a.past, bytes / 1e6);
    g_autofree char *fields = g_strdup_printf(
        "\"heads\": %u, \"kv_heads\": %u, \"head_dim\": %u, \"batch\": %u, \"context\": %u",
        a.n_heads, a.n_kv_heads, a.head_dim, a.sequences, a.past);
    row(b, label, fields, seconds, bytes, 0.0);
  }
  end_list(b);
  return TRUE;
}

static const struct {
  guint n_heads, n_kv_heads, head_dim, context;
} prefills[] = {{32, 8, 128, 512},   {32, 8, 128, 2048}, {32, 8, 128, 8192}, {32, 8, 128, 16384},
                {32, 32, 128, 8192}, {40, 8, 128, 8192}, {12, 12, 64, 2048}, {32, 8, 64, 8192}};

static gboolean bench_prefill(Bench *b, const KvModel *model, GError **error) {
  begin_list(b, "prefill_attention");
  for (guint i = 0; i < G_N_ELEMENTS(prefills); i++) {
    KvCudaAttentionCase a = {.n_heads = prefills[i].n_heads,
                             .n_kv_heads = prefills[i].n_kv_heads,
                             .head_dim = prefills[i].head_dim,
                             .sequences = 1,
                             .chunk = prefills[i].context};
    double seconds = 0.0;
    if (!kv_cuda_time_prefill(&b->timer, &a, &seconds, error))
      return FALSE;
    double n = a.chunk, flops = 2.0 * a.n_heads * a.head_dim * n * (n + 1.0);
    g_autofree char *label = g_strdup_printf("prefill attention %u/%u d %u tokens %u", a.n_heads,
                                             a.n_kv_heads, a.head_dim, a.chunk);
    g_autofree char *fields =
        g_strdup_printf("\"heads\": %u, \"kv_heads\": %u, \"head_dim\": %u, \"tokens\": %u",
                        a.n_heads, a.n_kv_heads, a.head_dim, a.chunk);
    row(b, label, fields, seconds, 0.0, flops);
  }
  end_list(b);
  return TRUE;
}

/* --- whole steps and swaps ------------------------------------------------------------------- */

typedef struct {
  Bench *bench;
  const KvModel *model;
  KvCudaWeights *weights;
  KvCudaCache *cache;
  KvCudaEngine *engine;
} Whole;

/* A cache of `blocks` random blocks and the engine over it. */
static gboolean whole_init(Whole *w, guint64 blocks, guint positions, GError **error) {
  KvCudaDevice *device = w->bench->timer.device;
  w->cache = kv_cuda_cache_new(device, w->weights, BLOCK_TOKENS, blocks, 1024, error);
  for (guint l = 0; w->cache && l < w->cache->n_layers; l++)
    if (!KV_CUDA_OK(kv_cuda_fill_random(w->cache->layers[l].pool,
                                        blocks * w->cache->layers[l].block_elements, 0.0f, 1.7f, l,
                                        device->stream),
                    error))
      return FALSE;
  if (w->cache)
    w->engine = kv_cuda_engine_new(device, w->weights, w->cache, positions, error);
  if (w->engine)
    kv_cuda_engine_set_divided_every(w->engine, 1);
  return w->engine != NULL;
}

static void whole_clear(Whole *w) {
  g_clear_pointer(&w->engine, kv_cuda_engine_free);
  g_clear_pointer(&w->cache, kv_cuda_cache_free);
}

/* The median step over the spans; component shares of the median go unrecorded. */
static gboolean time_steps(Whole *w, KvHostSpan *spans, guint n, KvCudaWork *middle,
                           GError **error) {
  double seconds[REPEATS];
  for (guint r = 0; r < REPEATS; r++) {
    *middle = (KvCudaWork){0};
    if (!kv_cuda_engine_run(w->engine, spans, n, middle, error))
      return FALSE;
    seconds[r] = middle->seconds;
  }
  middle->seconds = median(seconds, REPEATS);
  return TRUE;
}

/* A decode step of `batch` sequences of `context` tokens (the new one counted), or the prefill of
 * one sequence of that length if `batch` is 0. */
static gboolean step(Whole *w, guint batch, guint context, KvCudaWork *work, GError **error) {
  guint sequences = MAX(batch, 1), blocks = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  guint n = sequences * blocks;
  g_autofree guint32 *table = g_new(guint32, n), *tokens = g_new(guint32, MAX(context, batch));
  g_autofree KvHostSpan *spans = g_new0(KvHostSpan, sequences);
  for (guint i = 0; i < n; i++)
    table[i] = i;
  kv_cuda_shuffle(table, n);
  for (guint i = 0; i < MAX(context, batch); i++)
    tokens[i] = (guint32)(kv_random_mix(i) % w->weights->vocab);
  for (guint s = 0; s < sequences; s++)
    spans[s] = (KvHostSpan){.block_table = table + (gsize)s * blocks,
                            .tokens = batch ? tokens + s : tokens,
                            .past = batch ? context - 1 : 0,
                            .n_tokens = batch ? 1 : context,
                            .decoding = batch > 0,
                            .sample = TRUE};
  gboolean done = whole_init(w, n, context, error) && time_steps(w, spans, sequences, work, error);
  whole_clear(w);
  return done;
}

static const struct {
  guint batch, context;
  double target_seconds; /* of Llama-3-8B on an H200; 0: none */
} steps[] = {{1, 512, 4.4e-3}, {1, 8192, 0},      {4, 2048, 0},        {16, 2048, 0}, {64, 512, 0},
             {64, 2048, 0},    {128, 1024, 0},    {64, 8192, 20.0e-3}, {0, 128, 0},   {0, 512, 0},
             {0, 2048, 0},     {0, 8192, 230e-3}, {0, 16384, 0}};

static void print_components(Bench *b, const KvCudaWork *work) {
  kv_output_print(b->file, ", \"components_us\": {");
  const char *separator = "";
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (work->component_seconds[c] > 0.0) {
      kv_output_print(b->file, "%s\"%s\": %.6g", separator, kv_component_names[c],
                      1e6 * work->component_seconds[c]);
      printf("%s%s %.0f us", *separator ? ", " : "    ", kv_component_names[c],
             1e6 * work->component_seconds[c]);
      separator = ", ";
    }
  kv_output_print(b->file, "}");
  if (*separator)
    puts("");
}

static gboolean bench_steps(Bench *b, const KvModel *model, GError **error) {
  g_autoptr(KvCudaWeights) weights = kv_cuda_weights_new(b->timer.device, model, NULL, 1, error);
  if (!weights)
    return FALSE;
  Whole w = {.bench = b, .model = model, .weights = weights};
  begin_list(b, "steps");
  for (guint i = 0; i < G_N_ELEMENTS(steps); i++) {
    guint batch = steps[i].batch, context = steps[i].context;
    if (b->only_targets && steps[i].target_seconds <= 0.0)
      continue;
    KvCudaWork work = {0};
    g_autofree char *label =
        batch ? g_strdup_printf("%s decode step, batch %u, context %u", model->id, batch, context)
              : g_strdup_printf("%s prefill of %u tokens", model->id, context);
    if (!step(&w, batch, context, &work, error)) {
      skip(label, error);
      continue;
    }
    GString *fields = g_string_new(NULL);
    g_string_printf(fields, "\"model\": \"%s\", \"batch\": %u, \"context\": %u, \"replayed\": %s",
                    model->id, batch, context, work.replayed ? "true" : "false");
    if (steps[i].target_seconds > 0.0)
      g_string_append_printf(fields, ", \"target_us\": %.0f", 1e6 * steps[i].target_seconds);
    row(b, label, fields->str, work.seconds, batch ? work.bytes : 0.0, batch ? 0.0 : work.flops);
    g_string_free(fields, TRUE);
    kv_output_print(b->file, ",\n  {\"of_the_row_above\": true");
    print_components(b, &work);
    kv_output_print(b->file, "}");
  }
  end_list(b);
  return TRUE;
}

/* Blocks of the model out to the host and back in, in batches. */
static gboolean bench_swaps(Bench *b, const KvModel *model, GError **error) {
  static const guint counts[] = {1, 8, 64, 512};
  g_autoptr(KvCudaWeights) weights = kv_cuda_weights_new(b->timer.device, model, NULL, 1, error);
  Whole w = {.bench = b, .model = model, .weights = weights};
  gboolean done = weights && whole_init(&w, 1024, 16, error);
  begin_list(b, "swaps");
  for (guint i = 0; done && i < G_N_ELEMENTS(counts); i++)
    for (guint back = 0; done && back < 2; back++) {
      double seconds[REPEATS];
      for (guint r = 0; done && r < REPEATS; r++) {
        for (guint32 k = 0; done && k < counts[i]; k++)
          done = back ? kv_cuda_cache_move(w.cache, KV_TIER_DRAM, k, KV_TIER_HBM, 1023 - k, error)
                      : kv_cuda_cache_move(w.cache, KV_TIER_HBM, 1023 - k, KV_TIER_DRAM, k, error);
        done = done && kv_cuda_cache_flush(w.cache, &seconds[r], NULL, error);
      }
      if (!done)
        break;
      g_autofree char *label =
          g_strdup_printf("swap %s of %u blocks", back ? "in" : "out", counts[i]);
      g_autofree char *fields =
          g_strdup_printf("\"direction\": \"%s\", \"blocks\": %u", back ? "in" : "out", counts[i]);
      row(b, label, fields, median(seconds, REPEATS),
          (double)kv_cuda_cache_block_bytes(w.cache) * counts[i], 0.0);
    }
  end_list(b);
  whole_clear(&w);
  return done;
}

static gboolean bench_targets(Bench *b, const KvModel *model, GError **error) {
  b->only_targets = TRUE;
  return bench_steps(b, model, error);
}

static const struct {
  const char *name;
  gboolean (*run)(Bench *b, const KvModel *model, GError **error);
  gboolean by_default;
} parts[] = {{"decode", bench_decode, TRUE},     {"prefill", bench_prefill, TRUE},
             {"products", bench_products, TRUE}, {"steps", bench_steps, TRUE},
             {"targets", bench_targets, FALSE},  {"swaps", bench_swaps, TRUE}};

static gboolean wanted(guint part, char **names) {
  return *names ? g_strv_contains((const char *const *)names, parts[part].name)
                : parts[part].by_default;
}

static gboolean run(Bench *b, const char *path, const char *name, char **names, GError **error) {
  g_autoptr(KvModel) model = kv_model_load(name, error);
  if (!model || !(b->timer.device = kv_cuda_device_open(error)) ||
      !(b->timer.gemm = kv_cuda_gemm_new(error)) || !(b->file = kv_output_open(path, error)))
    return FALSE;
  kv_output_print(b->file, "{\n \"device\": \"%s\",\n \"driver_cuda\": %u", b->timer.device->name,
                  b->timer.device->driver_version);
  if (!bench_ceilings(b, error))
    return FALSE;
  for (guint i = 0; i < G_N_ELEMENTS(parts); i++)
    if (wanted(i, names) && !parts[i].run(b, model, error))
      return FALSE;
  kv_output_print(b->file, "\n}\n");
  return kv_output_commit(g_steal_pointer(&b->file), error);
}

/* The first of names that is no part, or NULL. */
static const char *unknown_part(char **names) {
  for (; *names; names++) {
    guint i = 0;
    while (i < G_N_ELEMENTS(parts) && strcmp(*names, parts[i].name) != 0)
      i++;
    if (i == G_N_ELEMENTS(parts))
      return *names;
  }
  return NULL;
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  Bench bench = {0};
  char **names = argv + MIN(argc, 3);
  if (argc < 2) {
    (void)fprintf(stderr, "cuda_bench: expected FILE.json [MODEL [PART ...]]\n");
    return 2;
  }
  if (unknown_part(names)) {
    (void)fprintf(stderr,
                  "cuda_bench: no part '%s', expected decode, prefill, products, steps, "
                  "targets or swaps\n",
                  unknown_part(names));
    return 2;
  }
  gboolean done = run(&bench, argv[1], argc >= 3 ? argv[2] : "llama-3-8b", names, &error);
  if (bench.file)
    kv_output_discard(bench.file);
  kv_cuda_gemm_free(bench.timer.gemm);
  kv_cuda_device_close(bench.timer.device);
  if (!done)
    (void)fprintf(stderr, "cuda_bench: %s\n", error->message);
  return done ? 0 : 1;
}
