/* Decode attention of each compressed cache beside the bf16 kernel on the same contexts.
 *
 *     cuda_techniques FILE.json
 *
 * Each row: the bytes that the technique stores of the contexts (codes, scales, the exact rest),
 * the GPU's time (median of REPEATS rounds after a warm one, in microseconds, over buffers larger
 * together than the second-level cache), bytes/s, that over the bf16 kernel's bytes/s, and how many
 * times faster than bf16 it is. Codes and scales are random bits: scales of every size, and NaN.
 */
#include <stdio.h>
#include <string.h>

#include "reference/cuda/device.h"
#include "reference/cuda/kernels.h"
#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/base/random.h"

enum { REPEATS = 11, BLOCK_TOKENS = 32, SHIFT = 5 };

typedef struct {
  KvCudaDevice *device;
  KvOutput *file;
  const char *separator;
} Bench;

/* One layer's contexts, `copies` of them. bits 16: bf16. */
typedef struct {
  Bench *bench;
  guint n_heads, n_kv_heads, head_dim, sequences, context;
  guint bits, group, residual, budget; /* budget: the context that is left, or that is read */
  gboolean chooses;                    /* quest: pages of BLOCK_TOKENS */
  guint copies, blocks, max_splits;
  gsize block_bytes;
  void *pool, *ring, *q, *out, *scratch;
  guint32 *words, *counters; /* table, starts, contexts, slots, split */
  KvCudaPacked packed;
  KvCudaPages pages;
  guint32 *chosen, *held, *starts; /* quest */
  float *bounds;
} Case;

static void *random_memory(Bench *b, gsize bytes, GError **error) {
  void *memory = kv_cuda_alloc(bytes, "the benchmark's arrays", error);
  if (memory && !KV_CUDA_OK(kv_cuda_fill_random(memory, bytes / sizeof(KvBf16), 0.0f, 1.7f, bytes,
                                                b->device->stream),
                            error))
    g_clear_pointer(&memory, kv_cuda_free);
  return memory;
}

static void case_clear(Case *c) {
  void *memory[] = {c->pool,     c->ring,   c->q,    c->out,    c->scratch, c->words,
                    c->counters, c->chosen, c->held, c->starts, c->bounds};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Case, case_clear)

static gboolean upload_words(Case *c, GError **error) {
  guint n = c->blocks, S = c->sequences;
  gsize count = n + 3 * (gsize)S + 1;
  g_autofree guint32 *words = g_new(guint32, count);
  KvRandom random;
  kv_random_seed(&random, 7, n);
  for (guint i = 0; i < n; i++)
    words[i] = i;
  for (guint i = n; i > 1; i--) {
    guint j = (guint)kv_random_integer(&random, 0, i - 1);
    guint32 swapped = words[i - 1];
    words[i - 1] = words[j];
    words[j] = swapped;
  }
  guint held = c->budget ? MIN(c->budget, c->context) : c->context;
  guint context = c->chooses ? c->context : held;
  for (guint s = 0; s < S; s++) {
    words[n + s] = s * (n / S);
    words[n + S + s] = context;
    words[n + 2 * S + s] = s;
  }
  c->max_splits = kv_cuda_decode_max_splits(S, c->n_kv_heads, c->bench->device->multiprocessors);
  guint piece = (held + c->max_splits - 1) / c->max_splits;
  words[n + 3 * S] = (piece + KV_CUDA_SPLIT_UNIT - 1) / KV_CUDA_SPLIT_UNIT * KV_CUDA_SPLIT_UNIT;
  c->words = kv_cuda_alloc(count * sizeof *words, "tables", error);
  return c->words &&
         kv_cuda_upload(c->bench->device, c->words, words, count * sizeof *words, error);
}

static gboolean choice_init(Case *c, GError **error) {
  gsize ones = (gsize)c->sequences * c->n_kv_heads, pages = c->budget / BLOCK_TOKENS;
  g_autofree guint32 *starts = g_new(guint32, ones);
  for (gsize i = 0; i < ones; i++)
    starts[i] = (guint32)(i * pages);
  return (c->chosen = kv_cuda_alloc(ones * pages * sizeof(guint32), "pages", error)) &&
         (c->held = kv_cuda_alloc(ones * sizeof(guint32), "pages", error)) &&
         (c->starts = kv_cuda_alloc(ones * sizeof(guint32), "pages", error)) &&
         (c->bounds =
              kv_cuda_alloc(ones * (c->blocks / c->sequences) * sizeof(float), "pages", error)) &&
         kv_cuda_upload(c->bench->device, c->starts, starts, ones * sizeof *starts, error);
}

static gboolean case_init(Case *c, GError **error) {
  Bench *b = c->bench;
  gsize half = (gsize)c->n_kv_heads * BLOCK_TOKENS * c->head_dim;
  gsize row = (gsize)c->n_heads * c->head_dim * sizeof(KvBf16);
  gsize counters = (gsize)c->sequences * c->n_heads * sizeof(guint32);
  c->packed = (KvCudaPacked){.bits = c->bits,
                             .group = c->group,
                             .residual = c->residual,
                             .block_shift = SHIFT,
                             .n_kv_heads = c->n_kv_heads,
                             .head_dim = c->head_dim};
  if (c->bits < 16)
    kv_cuda_packed_lay_out(&c->packed);
  gsize summary = c->chooses ? 2 * (gsize)c->n_kv_heads * c->head_dim : 0;
  c->block_bytes = c->bits < 16 ? c->packed.block_bytes : (2 * half + summary) * sizeof(KvBf16);
  c->blocks = (c->context + BLOCK_TOKENS - 1) / BLOCK_TOKENS * c->sequences;
  c->copies = 1 + (guint)MIN(400, 3 * b->device->l2_bytes / (c->blocks * c->block_bytes));
  c->pages = (KvCudaPages){.block_elements = 2 * half + summary,
                           .value_offset = half,
                           .block_shift = SHIFT,
                           .n_kv_heads = c->n_kv_heads,
                           .head_dim = c->head_dim};
  if (!upload_words(c, error) ||
      !(c->pool = random_memory(b, (gsize)c->copies * c->blocks * c->block_bytes, error)) ||
      !(c->ring = random_memory(b, 2 * c->packed.ring_elements * c->sequences + 256, error)) ||
      !(c->q = random_memory(b, c->sequences * row, error)) ||
      !(c->out = random_memory(b, c->sequences * row, error)) ||
      !(c->scratch = kv_cuda_alloc(
            kv_cuda_decode_scratch_bytes(c->sequences, c->n_heads, c->head_dim, c->max_splits),
            "scratch", error)) ||
      !(c->counters = kv_cuda_alloc(counters, "counters", error)))
    return FALSE;
  c->packed.ring = c->ring;
  if (c->chooses && !choice_init(c, error))
    return FALSE;
  return kv_cuda_fill(b->device, c->counters, 0, counters, error);
}

/* Choice, and attention to what was chosen. */
static cudaError_t choose_and_decode(const Case *c, const KvCudaPages *pages,
                                     const KvCudaTables *tables, const guint32 *contexts,
                                     const guint32 *split) {
  cudaStream_t stream = c->bench->device->stream;
  guint group = c->n_heads / c->n_kv_heads;
  KvCudaPages parts = *pages;
  const KvCudaTables chosen = {c->chosen, c->starts};
  parts.block_elements = c->head_dim;
  parts.n_kv_heads = 1;
  cudaError_t status = kv_cuda_choose_pages(
      c->chosen, c->held, c->bounds, c->q, (gsize)c->n_heads * c->head_dim, pages, tables, contexts,
      c->sequences, c->n_heads, c->budget / BLOCK_TOKENS, c->blocks / c->sequences, stream);
  if (status == cudaSuccess) /* a copy between them, as the engine's of its queries: decode
                                attention reads its tables before the kernel ahead of it is done */
    status = cudaMemcpyAsync(c->bounds, c->q, sizeof(float), cudaMemcpyDeviceToDevice, stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_decode_attention(c->out, c->q, (gsize)group * c->head_dim, &parts, &chosen,
                                        c->held, c->sequences * c->n_kv_heads, group, 0, split,
                                        c->max_splits, c->counters, c->scratch, stream);
}

static cudaError_t decode_once(const Case *c, guint i) {
  KvCudaTables tables = {c->words, c->words + c->blocks};
  const guint32 *contexts = tables.table_starts + c->sequences, *slots = contexts + c->sequences;
  const guint32 *split = slots + c->sequences;
  char *pool = (char *)c->pool + (gsize)(i % c->copies) * c->blocks * c->block_bytes;
  gsize width = (gsize)c->n_heads * c->head_dim;
  if (c->bits == 16) {
    KvCudaPages pages = c->pages;
    pages.pool = (KvBf16 *)(void *)pool;
    if (c->chooses)
      return choose_and_decode(c, &pages, &tables, contexts, split);
    return kv_cuda_decode_attention(c->out, c->q, width, &pages, &tables, contexts, c->sequences,
                                    c->n_heads, 0, split, c->max_splits, c->counters, c->scratch,
                                    c->bench->device->stream);
  }
  KvCudaPacked packed = c->packed;
  packed.pool = (guint8 *)pool;
  return kv_cuda_decode_attention_packed(c->out, c->q, width, &packed, &tables, slots, contexts,
                                         c->sequences, c->n_heads, 0, split, c->max_splits,
                                         c->counters, c->scratch, c->bench->device->stream);
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static gboolean time_case(const Case *c, double *seconds, GError **error) {
  guint inner = MAX(c->copies, 8), launch = 0;
  double rounds[REPEATS + 1];
  for (guint r = 0; r <= REPEATS; r++) { /* the first is warming up */
    if (!kv_cuda_clock_start(c->bench->device, error))
      return FALSE;
    for (guint i = 0; i < inner; i++)
      if (!KV_CUDA_OK(decode_once(c, launch++), error))
        return FALSE;
    if (!kv_cuda_clock_stop(c->bench->device, &rounds[r], error))
      return FALSE;
  }
  qsort(rounds + 1, REPEATS, sizeof *rounds, by_value);
  *seconds = rounds[1 + REPEATS / 2] / inner;
  return TRUE;
}

/* Bytes that one step's attention reads. */
static double bytes_read(const Case *c) {
  double held = c->budget ? MIN(c->budget, c->context) : c->context;
  double elements = (double)c->n_kv_heads * c->head_dim, per = c->bits / 8.0;
  if (c->chooses) /* summaries of all pages, and the chosen ones */
    return 4.0 * c->sequences * elements * (held + (double)c->context / BLOCK_TOKENS);
  if (c->residual == 0)
    return 2.0 * c->sequences * held * elements * per;
  double keys = c->context / c->residual * c->residual;
  double values = c->context > c->residual ? c->context - c->residual : 0;
  double packed = per + 4.0 / c->group;
  return c->sequences * elements *
         ((keys + values) * packed + (2.0 * c->context - keys - values) * 2.0);
}

static const struct {
  const char *name;
  guint bits, group, residual, budget;
  gboolean chooses;
} techniques[] = {{"bf16", 16, 1, 0, 0, FALSE},
                  {"fp8", 8, 1, 0, 0, FALSE},
                  {"kivi:bits=4", 4, 32, 128, 0, FALSE},
                  {"kivi:bits=2", 2, 32, 128, 0, FALSE},
                  {"kivi:bits=2:G=64", 2, 64, 128, 0, FALSE},
                  {"snapkv:budget=1024", 16, 1, 0, 1024, FALSE},
                  {"quest:token_budget=1024:page_size=32", 16, 1, 0, 1024, TRUE}};

static const struct {
  guint n_heads, n_kv_heads, head_dim, sequences, context;
} shapes[] = {{32, 8, 128, 1, 8192},  {32, 8, 128, 1, 131072}, {32, 8, 128, 16, 2048},
              {32, 8, 128, 64, 2048}, {32, 8, 128, 64, 8192},  {32, 32, 128, 16, 2048},
              {28, 4, 128, 64, 2048}, {32, 8, 64, 64, 8192}};

static gboolean bench_shape(Bench *b, guint i, GError **error) {
  double base_Bps = 0.0, base_seconds = 0.0;
  for (guint t = 0; t < G_N_ELEMENTS(techniques); t++) {
    double seconds = 0.0;
    g_auto(Case) c = {.bench = b,
                      .n_heads = shapes[i].n_heads,
                      .n_kv_heads = shapes[i].n_kv_heads,
                      .head_dim = shapes[i].head_dim,
                      .sequences = shapes[i].sequences,
                      .context = shapes[i].context,
                      .bits = techniques[t].bits,
                      .group = techniques[t].group,
                      .residual = techniques[t].residual,
                      .budget = techniques[t].budget,
                      .chooses = techniques[t].chooses};
    if (!case_init(&c, error) || !time_case(&c, &seconds, error))
      return FALSE;
    double bytes = bytes_read(&c), rate = bytes / seconds;
    if (t == 0) {
      base_Bps = rate;
      base_seconds = seconds;
    }
    kv_output_print(b->file,
                    "%s  {\"technique\": \"%s\", \"heads\": %u, \"kv_heads\": %u, \"head_dim\": "
                    "%u, \"batch\": %u, \"context\": %u, \"us\": %.6g, \"bytes\": %.0f, \"GBps\": "
                    "%.6g, \"share_of_bf16_rate\": %.4f, \"times_faster\": %.4f}",
                    b->separator, techniques[t].name, c.n_heads, c.n_kv_heads, c.head_dim,
                    c.sequences, c.context, 1e6 * seconds, bytes, 1e-9 * rate, rate / base_Bps,
                    base_seconds / seconds);
    b->separator = ",\n";
    printf("%2u/%-2u d %3u batch %3u context %6u %-36s %9.1f us %7.0f GB/s  %3.0f %% of bf16's "
           "rate, %.2f times its speed\n",
           c.n_heads, c.n_kv_heads, c.head_dim, c.sequences, c.context, techniques[t].name,
           1e6 * seconds, 1e-9 * rate, 100.0 * rate / base_Bps, base_seconds / seconds);
    (void)fflush(stdout);
  }
  return TRUE;
}

static gboolean run(Bench *b, const char *path, GError **error) {
  if (!(b->device = kv_cuda_device_open(error)) || !(b->file = kv_output_open(path, error)))
    return FALSE;
  kv_output_print(b->file, "{\n \"device\": \"%s\",\n \"decode_attention\": [", b->device->name);
  b->separator = "\n";
  for (guint i = 0; i < G_N_ELEMENTS(shapes); i++)
    if (!bench_shape(b, i, error))
      return FALSE;
  kv_output_print(b->file, "\n ]\n}\n");
  return kv_output_commit(g_steal_pointer(&b->file), error);
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  Bench bench = {0};
  if (argc != 2) {
    (void)fprintf(stderr, "cuda_techniques: expected FILE.json\n");
    return 2;
  }
  gboolean done = run(&bench, argv[1], &error);
  if (bench.file)
    kv_output_discard(bench.file);
  kv_cuda_device_close(bench.device);
  if (!done)
    (void)fprintf(stderr, "cuda_techniques: %s\n", error->message);
  return done ? 0 : 1;
}
