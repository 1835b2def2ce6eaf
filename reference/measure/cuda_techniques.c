/* Decode attention of each compressed cache beside the bf16 kernel on the same contexts.
 *
 *     cuda_techniques FILE.json [SHAPE ...]
 *
 * Each row: the bytes that the technique stores of the contexts (codes, scales, the exact rest),
 * the GPU's time (median of REPEATS rounds after a warm one, in microseconds, over buffers larger
 * together than the second-level cache), bytes/s, that over the bf16 kernel's bytes/s, and how many
 * times faster than bf16 it is. Codes and scales are random bits: scales of every size, and NaN.
 * palu keeps half of the width in groups of four KV heads; minicache is one layer of a pair without
 * tokens that stay apart.
 *
 * Then decode attention of sequences that share leading blocks (chunkattention), beside the bf16
 * kernel on the same block tables, where the second-level cache may help it.
 */
#include <stdio.h>
#include <string.h>

#include "reference/cuda/device.h"
#include "reference/cuda/kernels.h"
#include "reference/cuda/low_rank.h"
#include "reference/cuda/merging.h"
#include "reference/cuda/sharing.h"
#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/base/random.h"

enum { REPEATS = 11, BLOCK_TOKENS = 32, SHIFT = 5 };
enum { GROUP_HEADS = 4, RANK_UNIT = 32 }; /* palu's defaults */

/* What the kernel reads in the place of keys and values. */
typedef enum { WHOLE, LOW_RANK, MERGED } Form;

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
  Form form;
  KvCudaLowRank low_rank; /* palu */
  KvCudaMerged merged;    /* minicache: a pair without tokens that stay apart */
  void *factors, *angles, *staged, *kept;
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
  void *memory[] = {c->pool,   c->ring,     c->q,      c->out,    c->scratch,
                    c->words,  c->counters, c->chosen, c->held,   c->starts,
                    c->bounds, c->factors,  c->angles, c->staged, c->kept};
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
  guint parts =
      c->form == LOW_RANK ? kv_cuda_low_rank_parts(&c->low_rank, c->n_heads) : c->n_kv_heads;
  c->max_splits = kv_cuda_decode_max_splits(S, parts, c->bench->device->multiprocessors);
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

/* Half of the width: a quarter of that the keys', the rest the values'. */
static void lay_out_low_rank(Case *c) {
  guint heads = MIN(GROUP_HEADS, c->n_kv_heads), width = heads * c->head_dim;
  c->low_rank = (KvCudaLowRank){.block_shift = SHIFT,
                                .groups = c->n_kv_heads / heads,
                                .heads = heads,
                                .head_dim = c->head_dim,
                                .key_rank = width / 4 / RANK_UNIT * RANK_UNIT,
                                .value_rank = 3 * width / 4 / RANK_UNIT * RANK_UNIT};
  c->low_rank.value_offset = (gsize)BLOCK_TOKENS * c->low_rank.groups * c->low_rank.key_rank;
  c->low_rank.block_elements =
      c->low_rank.value_offset + (gsize)BLOCK_TOKENS * c->low_rank.groups * c->low_rank.value_rank;
  c->block_bytes = c->low_rank.block_elements * sizeof(KvBf16);
}

static void lay_out_merged(Case *c) {
  c->merged =
      (KvCudaMerged){.block_shift = SHIFT, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
  kv_cuda_merged_lay_out(&c->merged);
  c->block_bytes = c->merged.block_elements * sizeof(KvBf16);
}

/* What the kernel of the form reads beside the blocks. */
static gboolean form_init(Case *c, GError **error) {
  Bench *b = c->bench;
  gsize width = (gsize)c->n_kv_heads * c->head_dim, kept = c->sequences * sizeof(KvCudaKept);
  if (c->form == LOW_RANK) {
    c->factors = random_memory(b, width * c->low_rank.key_rank * sizeof(KvBf16), error);
    c->angles = random_memory(b, (gsize)c->context * c->head_dim / 2 * sizeof(float2), error);
    c->low_rank.key_basis = c->factors;
    return c->factors && c->angles;
  }
  return c->form == WHOLE ||
         ((c->staged = random_memory(b, 4 * width * c->sequences * sizeof(KvBf16), error)) &&
          (c->kept = kv_cuda_alloc(kept, "kept tokens", error)) &&
          kv_cuda_fill(b->device, c->kept, 0, kept, error) &&
          KV_CUDA_OK(cudaMemset2DAsync((KvBf16 *)c->pool + c->merged.index, c->block_bytes, 0,
                                       (gsize)2 * BLOCK_TOKENS * sizeof(guint32),
                                       (gsize)c->copies * c->blocks, b->device->stream),
                     error));
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
  guint width = c->head_dim; /* of a head's output */
  if (c->form == LOW_RANK) {
    lay_out_low_rank(c);
    width = c->low_rank.value_rank;
  } else if (c->form == MERGED) {
    lay_out_merged(c);
  }
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
      !(c->out =
            random_memory(b, (gsize)c->sequences * c->n_heads * width * sizeof(KvBf16), error)) ||
      !(c->scratch = kv_cuda_alloc(
            kv_cuda_decode_scratch_bytes(c->sequences, c->n_heads, width, c->max_splits), "scratch",
            error)) ||
      !form_init(c, error) || !(c->counters = kv_cuda_alloc(counters, "counters", error)))
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

static cudaError_t decode_once(gconstpointer case_, guint i) {
  const Case *c = case_;
  KvCudaTables tables = {c->words, c->words + c->blocks};
  const guint32 *contexts = tables.table_starts + c->sequences, *slots = contexts + c->sequences;
  const guint32 *split = slots + c->sequences;
  char *pool = (char *)c->pool + (gsize)(i % c->copies) * c->blocks * c->block_bytes;
  gsize width = (gsize)c->n_heads * c->head_dim;
  if (c->form == LOW_RANK) {
    KvCudaLowRank cache = c->low_rank;
    cache.pool = (KvBf16 *)(void *)pool;
    return kv_cuda_decode_attention_low_rank(
        c->out, c->q, width, &cache, &tables, contexts, c->angles, c->sequences, c->n_heads, split,
        c->max_splits, c->counters, c->scratch, c->bench->device->stream);
  }
  if (c->form == MERGED) {
    KvCudaMerged cache = c->merged;
    cache.pool = (KvBf16 *)(void *)pool;
    return kv_cuda_decode_attention_merged(
        c->out, c->q, width, &cache, 1, &tables, c->kept, c->staged, contexts, c->sequences,
        c->n_heads, split, c->max_splits, c->counters, c->scratch, c->bench->device->stream);
  }
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

/* Time of one launch, `inner` of them in a round. */
static gboolean time_launches(Bench *b, guint inner,
                              cudaError_t (*launch_once)(gconstpointer c, guint i), gconstpointer c,
                              double *seconds, GError **error) {
  guint launch = 0;
  double rounds[REPEATS + 1];
  for (guint r = 0; r <= REPEATS; r++) { /* the first is warming up */
    if (!kv_cuda_clock_start(b->device, error))
      return FALSE;
    for (guint i = 0; i < inner; i++)
      if (!KV_CUDA_OK(launch_once(c, launch++), error))
        return FALSE;
    if (!kv_cuda_clock_stop(b->device, &rounds[r], error))
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
  if (c->form != WHOLE)
    return (double)c->sequences * c->context * (double)c->block_bytes / BLOCK_TOKENS;
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
  Form form;
} techniques[] = {{"bf16", 16, 1, 0, 0, FALSE, WHOLE},
                  {"fp8", 8, 1, 0, 0, FALSE, WHOLE},
                  {"kivi:bits=4", 4, 32, 128, 0, FALSE, WHOLE},
                  {"kivi:bits=2", 2, 32, 128, 0, FALSE, WHOLE},
                  {"kivi:bits=2:G=64", 2, 64, 128, 0, FALSE, WHOLE},
                  {"snapkv:budget=1024", 16, 1, 0, 1024, FALSE, WHOLE},
                  {"quest:token_budget=1024:page_size=32", 16, 1, 0, 1024, TRUE, WHOLE},
                  {"palu", 16, 1, 0, 0, FALSE, LOW_RANK},
                  {"minicache", 16, 1, 0, 0, FALSE, MERGED}};

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
                      .chooses = techniques[t].chooses,
                      .form = techniques[t].form};
    if (!case_init(&c, error) ||
        !time_launches(b, MAX(c.copies, 8), decode_once, &c, &seconds, error))
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

/* --- what sequences share --------------------------------------------------------------------- */

/* One layer of `sequences` whose contexts begin with the same `shared` tokens. */
typedef struct {
  Bench *bench;
  guint n_heads, n_kv_heads, head_dim, sequences, shared, own;
  guint copies, blocks, max_splits, own_splits;
  gsize block_bytes;
  GPtrArray *memory;
  KvBf16 *pool, *q, *out;
  KvCudaPages pages;
  KvCudaTables tables;
  guint32 *contexts, *split, *own_split, *counters;
  void *scratch;
  KvCudaShared work;
} SharedCase;

static void shared_case_clear(SharedCase *c) {
  g_ptr_array_unref(c->memory);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(SharedCase, shared_case_clear)

static void *keep(SharedCase *c, void *memory) {
  if (memory)
    g_ptr_array_add(c->memory, memory);
  return memory;
}

static gboolean put(SharedCase *c, guint32 **to, gconstpointer from, gsize words, GError **error) {
  *to = keep(c, kv_cuda_alloc(words * sizeof(guint32), "tables", error));
  return *to && kv_cuda_upload(c->bench->device, *to, from, words * sizeof(guint32), error);
}

/* The engine's plan of what the sequences share; table s begins at word s * each. */
static gboolean put_plan(SharedCase *c, const KvHostSpan *spans, guint each, GError **error) {
  guint S = c->sequences;
  KvCudaLayer layer = {.attention = {.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads}};
  const KvCudaWeights weights = {.n_layers = 1, .layers = &layer};
  KvCudaSharing *sharing = kv_cuda_sharing_new(c->bench->device, &weights, BLOCK_TOKENS, 1);
  kv_cuda_sharing_plan(sharing, spans, S);
  guint32 tiles = sharing->tiles->len, *at[5] = {0};
  for (guint i = 0; i < tiles; i++)
    g_array_index(sharing->tiles, KvCudaSharedTile, i).table *= each;
  gboolean placed = put(c, &at[0], sharing->found.shared->data, S, error) &&
                    put(c, &at[1], sharing->part_starts->data, S + 1, error) &&
                    put(c, &at[2], sharing->found.members->data, S, error) &&
                    put(c, &at[3], &tiles, 1, error) &&
                    put(c, &at[4], sharing->tiles->data,
                        tiles * sizeof(KvCudaSharedTile) / sizeof(guint32), error);
  c->work = (KvCudaShared){.tiles = (KvCudaSharedTile *)at[4],
                           .n_tiles = at[3],
                           .members = at[2],
                           .first_tokens = at[0],
                           .part_starts = at[1],
                           .most_tiles = tiles,
                           .most_parts = kv_cuda_sharing_parts(sharing)};
  kv_cuda_sharing_free(sharing);
  return placed;
}

/* Block tables: shared blocks first, then each sequence's own. */
static gboolean put_tables(SharedCase *c, GError **error) {
  guint S = c->sequences, common = c->shared / BLOCK_TOKENS, own = c->own / BLOCK_TOKENS;
  guint each = common + own;
  g_autofree guint32 *table = g_new(guint32, (gsize)S * each), *starts = g_new(guint32, S);
  g_autofree guint32 *contexts = g_new(guint32, S);
  g_autofree KvHostSpan *spans = g_new0(KvHostSpan, S);
  guint32 *at[2] = {0};
  for (guint s = 0; s < S; s++) {
    for (guint i = 0; i < each; i++)
      table[s * each + i] = i < common ? i : common + s * own + i - common;
    starts[s] = s * each;
    contexts[s] = c->shared + c->own;
    spans[s] = (KvHostSpan){
        .block_table = table + starts[s], .past = contexts[s] - 1, .n_tokens = 1, .decoding = TRUE};
  }
  if (!put(c, &at[0], table, (gsize)S * each, error) || !put(c, &at[1], starts, S, error) ||
      !put(c, &c->contexts, contexts, S, error))
    return FALSE;
  c->tables = (KvCudaTables){at[0], at[1]};
  return put_plan(c, spans, each, error);
}

/* Pieces of `tokens` for each of the sequences. */
static gboolean put_split(SharedCase *c, guint tokens, guint *max_splits, guint32 **to,
                          GError **error) {
  *max_splits =
      kv_cuda_decode_max_splits(c->sequences, c->n_kv_heads, c->bench->device->multiprocessors);
  guint32 piece = (tokens + *max_splits - 1) / *max_splits;
  piece = (piece + KV_CUDA_SPLIT_UNIT - 1) / KV_CUDA_SPLIT_UNIT * KV_CUDA_SPLIT_UNIT;
  return put(c, to, &piece, 1, error);
}

static gboolean shared_case_init(SharedCase *c, GError **error) {
  Bench *b = c->bench;
  gsize half = (gsize)c->n_kv_heads * BLOCK_TOKENS * c->head_dim;
  gsize row = (gsize)c->n_heads * c->head_dim * sizeof(KvBf16);
  gsize counters = (gsize)c->sequences * c->n_heads * sizeof(guint32);
  c->memory = g_ptr_array_new_with_free_func(kv_cuda_free);
  c->block_bytes = 2 * half * sizeof(KvBf16);
  c->blocks = (c->shared + c->sequences * c->own) / BLOCK_TOKENS;
  c->copies = 2 + (guint)(3 * b->device->l2_bytes / (c->blocks * c->block_bytes));
  c->pages = (KvCudaPages){.block_elements = 2 * half,
                           .value_offset = half,
                           .block_shift = SHIFT,
                           .n_kv_heads = c->n_kv_heads,
                           .head_dim = c->head_dim};
  if (!put_tables(c, error) ||
      !put_split(c, c->shared + c->own, &c->max_splits, &c->split, error) ||
      !put_split(c, c->own, &c->own_splits, &c->own_split, error))
    return FALSE;
  gsize parts = kv_cuda_shared_scratch_bytes(c->work.most_parts, c->n_heads, c->head_dim);
  gsize scratch = kv_cuda_decode_scratch_bytes(c->sequences, c->n_heads, c->head_dim,
                                               MAX(c->max_splits, c->own_splits));
  return (c->work.scratch = keep(c, kv_cuda_alloc(parts, "scratch", error))) &&
         (c->scratch = keep(c, kv_cuda_alloc(scratch, "scratch", error))) &&
         (c->counters = keep(c, kv_cuda_alloc(counters, "counters", error))) &&
         (c->pool =
              keep(c, random_memory(b, (gsize)c->copies * c->blocks * c->block_bytes, error))) &&
         (c->q = keep(c, random_memory(b, c->sequences * row, error))) &&
         (c->out = keep(c, random_memory(b, c->sequences * row, error))) &&
         kv_cuda_fill(b->device, c->counters, 0, counters, error);
}

static KvCudaPages shared_pages(const SharedCase *c, guint i) {
  KvCudaPages pages = c->pages;
  pages.pool = c->pool + (gsize)(i % c->copies) * c->blocks * c->pages.block_elements;
  return pages;
}

static cudaError_t apart_once(gconstpointer case_, guint i) {
  const SharedCase *c = case_;
  KvCudaPages pages = shared_pages(c, i);
  return kv_cuda_decode_attention(c->out, c->q, (gsize)c->n_heads * c->head_dim, &pages, &c->tables,
                                  c->contexts, c->sequences, c->n_heads, 0, c->split, c->max_splits,
                                  c->counters, c->scratch, c->bench->device->stream);
}

/* The first of the two phases. */
static cudaError_t tiles_once(gconstpointer case_, guint i) {
  const SharedCase *c = case_;
  KvCudaPages pages = shared_pages(c, i);
  return kv_cuda_shared_attention(&c->work, c->q, (gsize)c->n_heads * c->head_dim, &pages,
                                  c->tables.table, c->n_heads, c->bench->device->stream);
}

static cudaError_t together_once(gconstpointer case_, guint i) {
  const SharedCase *c = case_;
  KvCudaPages pages = shared_pages(c, i);
  cudaError_t status = tiles_once(c, i);
  return status != cudaSuccess
             ? status
             : kv_cuda_decode_attention_shared(c->out, c->q, (gsize)c->n_heads * c->head_dim,
                                               &pages, &c->tables, c->contexts, c->sequences,
                                               c->n_heads, &c->work, c->own_split, c->own_splits,
                                               c->counters, c->scratch, c->bench->device->stream);
}

static const struct {
  guint n_heads, n_kv_heads, head_dim, sequences, shared, own;
} sharers[] = {{32, 8, 128, 64, 8192, 512},  {32, 8, 128, 2, 8192, 512},
               {32, 8, 128, 16, 2048, 512},  {32, 32, 128, 32, 2048, 512},
               {32, 8, 128, 256, 1024, 256}, {32, 8, 64, 64, 8192, 512}};

static gboolean bench_shared(Bench *b, guint i, GError **error) {
  double apart = 0.0, tiles = 0.0, together = 0.0;
  g_auto(SharedCase) c = {.bench = b,
                          .n_heads = sharers[i].n_heads,
                          .n_kv_heads = sharers[i].n_kv_heads,
                          .head_dim = sharers[i].head_dim,
                          .sequences = sharers[i].sequences,
                          .shared = sharers[i].shared,
                          .own = sharers[i].own};
  guint inner = 8;
  if (!shared_case_init(&c, error) || !time_launches(b, inner, apart_once, &c, &apart, error) ||
      !time_launches(b, inner, tiles_once, &c, &tiles, error) ||
      !time_launches(b, inner, together_once, &c, &together, error))
    return FALSE;
  kv_output_print(b->file,
                  "%s  {\"heads\": %u, \"kv_heads\": %u, \"head_dim\": %u, \"batch\": %u, "
                  "\"shared\": %u, \"own\": %u, \"us\": %.6g, \"us_of_shared\": %.6g, "
                  "\"ordinary_us\": %.6g, \"times_faster\": %.4f}",
                  i ? ",\n" : "\n", c.n_heads, c.n_kv_heads, c.head_dim, c.sequences, c.shared,
                  c.own, 1e6 * together, 1e6 * tiles, 1e6 * apart, apart / together);
  printf("%2u/%-2u d %3u batch %3u shared %5u own %4u chunkattention %9.1f us (%.1f of the shared "
         "tokens) beside %9.1f us, %.2f times its speed\n",
         c.n_heads, c.n_kv_heads, c.head_dim, c.sequences, c.shared, c.own, 1e6 * together,
         1e6 * tiles, 1e6 * apart, apart / together);
  (void)fflush(stdout);
  return TRUE;
}

/* All shapes, or those whose numbers the arguments are. */
static gboolean is_wanted(guint shape, char **wanted) {
  for (guint i = 0; wanted[i]; i++)
    if ((guint)g_ascii_strtoull(wanted[i], NULL, 10) == shape)
      return TRUE;
  return wanted[0] == NULL;
}

static gboolean run(Bench *b, const char *path, char **wanted, GError **error) {
  if (!(b->device = kv_cuda_device_open(error)) || !(b->file = kv_output_open(path, error)))
    return FALSE;
  kv_output_print(b->file, "{\n \"device\": \"%s\",\n \"decode_attention\": [", b->device->name);
  b->separator = "\n";
  for (guint i = 0; i < G_N_ELEMENTS(shapes); i++)
    if (is_wanted(i, wanted) && !bench_shape(b, i, error))
      return FALSE;
  kv_output_print(b->file, "\n ],\n \"shared_attention\": [");
  for (guint i = 0; i < G_N_ELEMENTS(sharers); i++)
    if (!bench_shared(b, i, error))
      return FALSE;
  kv_output_print(b->file, "\n ]\n}\n");
  return kv_output_commit(g_steal_pointer(&b->file), error);
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  Bench bench = {0};
  if (argc < 2) {
    (void)fprintf(stderr, "cuda_techniques: expected FILE.json and numbers of shapes\n");
    return 2;
  }
  gboolean done = run(&bench, argv[1], argv + 2, &error);
  if (bench.file)
    kv_output_discard(bench.file);
  kv_cuda_device_close(bench.device);
  if (!done)
    (void)fprintf(stderr, "cuda_techniques: %s\n", error->message);
  return done ? 0 : 1;
}
