#include "reference/cuda/timing.h"

#include <math.h>
#include <string.h>

#include "sim/base/random.h"

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* A round lasts so long at least, if not more launches than MOST_LAUNCHES would be needed: what
 * begins and ends it takes some microseconds, which are not the work's. */
#define LEAST_SECONDS 1e-3
enum { MOST_LAUNCHES = 256 };

/* A round of launches. */
typedef struct {
  KvCudaTimer *timer;
  KvCudaTimed work;
  gpointer what;
  guint inner, launched;
  cudaGraphExec_t graph; /* NULL: launched one by one */
} Round;

static gboolean launch_all(Round *r, GError **error) {
  for (guint i = 0; i < r->inner; i++)
    if (!r->work(r->what, r->launched++, error))
      return FALSE;
  return TRUE;
}

static gboolean capture(Round *r, GError **error) {
  cudaStream_t stream = r->timer->device->stream;
  cudaGraph_t graph = NULL;
  if (!kv_cuda_wait(r->timer->device, error) ||
      !KV_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), error))
    return FALSE;
  gboolean launched = launch_all(r, error);
  /* A capture is ended whatever went wrong in it, and what went wrong first is what is said. */
  gboolean ended = KV_CUDA_OK(cudaStreamEndCapture(stream, &graph), launched ? error : NULL);
  gboolean made = launched && ended && KV_CUDA_OK(cudaGraphInstantiate(&r->graph, graph, 0), error);
  if (graph)
    (void)cudaGraphDestroy(graph);
  return made;
}

static gboolean run_round(Round *r, GError **error) {
  return r->graph ? KV_CUDA_OK(cudaGraphLaunch(r->graph, r->timer->device->stream), error)
                  : launch_all(r, error);
}

static gboolean time_round(Round *r, double *seconds, GError **error) {
  KvCudaDevice *device = r->timer->device;
  gint64 begin = g_get_monotonic_time();
  gboolean timed = (!r->graph || run_round(r, error)) && kv_cuda_clock_start(device, error) &&
                   run_round(r, error) && kv_cuda_clock_stop(device, seconds, error);
  if (timed && r->timer->rested)
    g_usleep((gulong)(g_get_monotonic_time() - begin));
  return timed;
}

/* More launches a round, if it is short. */
static gboolean lengthen(Round *r, GError **error) {
  double seconds;
  if (!time_round(r, &seconds, error))
    return FALSE;
  double inner = ceil(r->inner * LEAST_SECONDS / MAX(seconds, 1e-6));
  if (inner <= r->inner || r->inner >= MOST_LAUNCHES)
    return TRUE;
  r->inner = (guint)MIN(inner, MOST_LAUNCHES);
  if (!r->graph)
    return TRUE;
  (void)cudaGraphExecDestroy(g_steal_pointer(&r->graph));
  return capture(r, error);
}

static gboolean time_rounds(Round *r, double *seconds, GError **error) {
  double rounds[KV_CUDA_REPEATS], warm = 0.0, once;
  if (!launch_all(r, error) || (r->timer->replayed && !capture(r, error)) || !lengthen(r, error))
    return FALSE;
  while (warm < r->timer->warm_seconds) {
    if (!time_round(r, &once, error))
      return FALSE;
    warm += once;
  }
  for (guint i = 0; i < KV_CUDA_REPEATS; i++)
    if (!time_round(r, &rounds[i], error))
      return FALSE;
  qsort(rounds, KV_CUDA_REPEATS, sizeof *rounds, by_value);
  *seconds = rounds[KV_CUDA_REPEATS / 2] / r->inner;
  return TRUE;
}

gboolean kv_cuda_time(KvCudaTimer *timer, KvCudaTimed work, gpointer what, guint inner,
                      double *seconds, GError **error) {
  Round round = {.timer = timer, .work = work, .what = what, .inner = inner};
  gboolean done = time_rounds(&round, seconds, error);
  if (round.graph)
    (void)cudaGraphExecDestroy(round.graph);
  return done;
}

KvBf16 *kv_cuda_random(KvCudaTimer *timer, guint64 n, float reach, GError **error) {
  KvBf16 *memory = kv_cuda_alloc(n * sizeof(KvBf16), "what is timed", error);
  if (memory &&
      !KV_CUDA_OK(kv_cuda_fill_random(memory, n, 0.0f, reach, n, timer->device->stream), error))
    g_clear_pointer(&memory, kv_cuda_free);
  return memory;
}

void kv_cuda_shuffle(guint32 *ids, guint n) {
  KvRandom random;
  kv_random_seed(&random, 7, n);
  for (guint i = n; i > 1; i--) {
    guint j = (guint)kv_random_integer(&random, 0, i - 1);
    guint32 swapped = ids[i - 1];
    ids[i - 1] = ids[j];
    ids[j] = swapped;
  }
}

/* Buffers of `bytes` that together are a few times the second-level cache. */
static guint copies_of(const KvCudaTimer *timer, gsize bytes, guint most) {
  return 1 + (guint)MIN(most, 3 * timer->device->l2_bytes / MAX(bytes, 1));
}

/* --- products -------------------------------------------------------------------------------- */

typedef struct {
  KvCudaTimer *timer;
  KvCudaProduct product;
  guint copies; /* of the weights, one after another */
} Product;

static gboolean multiply_once(gpointer what, guint i, GError **error) {
  const Product *p = what;
  KvCudaProduct product = p->product;
  product.weight += (gsize)(i % p->copies) * product.inputs * product.outputs;
  return kv_cuda_gemm_run(p->timer->gemm, &product, p->timer->device->stream, error);
}

gboolean kv_cuda_time_product(KvCudaTimer *timer, guint M, guint K, guint N, double *seconds,
                              GError **error) {
  gsize weight = (gsize)K * N;
  guint copies = (guint)MIN(64, 1 + 4 * timer->device->l2_bytes / (weight * sizeof(KvBf16)));
  KvBf16 *x = kv_cuda_random(timer, (guint64)M * K, 1.0f, error);
  KvBf16 *w = x ? kv_cuda_random(timer, weight * copies, 0.03f, error) : NULL;
  KvBf16 *out = w ? kv_cuda_random(timer, (guint64)M * N, 1.0f, error) : NULL;
  Product p = {
      timer, {.out = out, .x = x, .weight = w, .rows = M, .inputs = K, .outputs = N}, copies};
  gboolean done = out && kv_cuda_time(timer, multiply_once, &p, MAX(copies, 4), seconds, error);
  kv_cuda_free(x);
  kv_cuda_free(w);
  kv_cuda_free(out);
  return done;
}

/* --- copies, element-wise kernels, launches -------------------------------------------------- */

typedef struct {
  KvCudaTimer *timer;
  enum cudaMemcpyKind kind;
  char *to, *from;
  gsize bytes;
} Copy;

static gboolean copy_once(gpointer what, guint i, GError **error) {
  const Copy *c = what;
  return KV_CUDA_OK(cudaMemcpyAsync(c->to, c->from, c->bytes, c->kind, c->timer->device->stream),
                    error);
}

static void *pinned_memory(gsize bytes, GError **error) {
  void *memory = NULL;
  if (!KV_CUDA_OK(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), error))
    return NULL;
  memset(memory, 1, bytes);
  return memory;
}

gboolean kv_cuda_time_copy(KvCudaTimer *timer, enum cudaMemcpyKind kind, gsize bytes,
                           double *seconds, GError **error) {
  gboolean inside = kind == cudaMemcpyDeviceToDevice;
  char *gpu = (char *)kv_cuda_random(timer, (bytes + 1) / 2, 1.0f, error);
  char *other = !gpu     ? NULL
                : inside ? (char *)kv_cuda_random(timer, (bytes + 1) / 2, 1.0f, error)
                         : (char *)pinned_memory(bytes, error);
  gboolean in = kind == cudaMemcpyHostToDevice;
  Copy copy = {timer, kind, in ? gpu : other, in ? other : gpu, bytes};
  gboolean done = other && kv_cuda_time(timer, copy_once, &copy, 4, seconds, error);
  kv_cuda_free(gpu);
  if (inside)
    kv_cuda_free(other);
  else if (other)
    (void)cudaFreeHost(other);
  return done;
}

typedef struct {
  KvCudaTimer *timer;
  KvBf16 *in, *out, *gain; /* in: `copies` of them one after another */
  gsize stride;            /* elements from one to the next */
  guint rows, width, copies;
} Elementwise;

static gboolean norm_once(gpointer what, guint i, GError **error) {
  const Elementwise *e = what;
  const float *x = (const float *)(const void *)(e->in + i % e->copies * e->stride);
  return KV_CUDA_OK(
      kv_cuda_rms_norm(e->out, x, e->gain, 1e-5f, e->rows, e->width, e->timer->device->stream),
      error);
}

static gboolean activate_once(gpointer what, guint i, GError **error) {
  const Elementwise *e = what;
  return KV_CUDA_OK(kv_cuda_swiglu(e->out, e->in + i % e->copies * e->stride, e->rows, e->width,
                                   e->timer->device->stream),
                    error);
}

/* Both kernels read four bytes an element of `width`. */
static gboolean time_elementwise(KvCudaTimer *timer, KvCudaTimed once, guint rows, guint width,
                                 double *seconds, GError **error) {
  gsize n = (gsize)rows * width;
  Elementwise e = {.timer = timer, .stride = 2 * n, .rows = rows, .width = width};
  e.copies = copies_of(timer, 4 * n, 200);
  gboolean done = (e.in = kv_cuda_random(timer, e.copies * e.stride, 1.0f, error)) &&
                  (e.out = kv_cuda_random(timer, n, 1.0f, error)) &&
                  (e.gain = kv_cuda_random(timer, width, 1.0f, error)) &&
                  kv_cuda_time(timer, once, &e, MAX(e.copies, 8), seconds, error);
  kv_cuda_free(e.in);
  kv_cuda_free(e.out);
  kv_cuda_free(e.gain);
  return done;
}

gboolean kv_cuda_time_norm(KvCudaTimer *timer, guint rows, guint width, double *seconds,
                           GError **error) {
  return time_elementwise(timer, norm_once, rows, width, seconds, error);
}

gboolean kv_cuda_time_activation(KvCudaTimer *timer, guint rows, guint width, double *seconds,
                                 GError **error) {
  return time_elementwise(timer, activate_once, rows, width, seconds, error);
}

gboolean kv_cuda_time_launch(KvCudaTimer *timer, gboolean graph, double *seconds, GError **error) {
  enum { WIDTH = 64, LAUNCHES = 500 };
  KvCudaTimer used = {.device = timer->device, .gemm = timer->gemm, .replayed = graph};
  Elementwise tiny = {.timer = &used, .rows = 1, .width = WIDTH, .copies = 1};
  gboolean done = (tiny.in = kv_cuda_random(timer, 2 * (guint64)WIDTH, 1.0f, error)) &&
                  (tiny.out = kv_cuda_random(timer, WIDTH, 1.0f, error)) &&
                  (tiny.gain = kv_cuda_random(timer, WIDTH, 1.0f, error)) &&
                  kv_cuda_time(&used, norm_once, &tiny, LAUNCHES, seconds, error);
  kv_cuda_free(tiny.in);
  kv_cuda_free(tiny.out);
  kv_cuda_free(tiny.gain);
  return done;
}

/* --- attention ------------------------------------------------------------------------------- */

enum { PACKED_GROUP = 32 }; /* of kivi, and the tokens of its blocks */

/* One layer's cache, several times over, in shuffled blocks. */
typedef struct {
  KvCudaTimer *timer;
  KvCudaAttentionCase of;
  guint copies, block_tokens;
  KvCudaPages pages;
  KvCudaPacked packed; /* its pool is that of the pages */
  KvCudaTables tables;
  guint64 pool_elements; /* of one copy */
  guint32 *words;        /* device: table, starts, contexts, split; tiles after them */
  const guint32 *contexts, *split;
  guint max_splits, n_tiles;
  const KvCudaTile *tiles;
  KvBf16 *q, *out;
  guint32 *counters;
  void *scratch;
} Attention;

double kv_cuda_case_element_bytes(const KvCudaAttentionCase *of) {
  return of->bits == 0 ? 2.0 : of->bits == 8 ? 1.0 : of->bits / 8.0 + 4.0 / PACKED_GROUP;
}

static gboolean decode_once(gpointer what, guint i, GError **error) {
  const Attention *a = what;
  KvCudaPages pages = a->pages;
  KvCudaPacked packed = a->packed;
  cudaStream_t stream = a->timer->device->stream;
  pages.pool += i % a->copies * a->pool_elements;
  packed.pool = (guint8 *)pages.pool;
  gsize width = (gsize)a->of.n_heads * a->of.head_dim;
  return KV_CUDA_OK(
      a->of.bits ? kv_cuda_decode_attention_packed(
                       a->out, a->q, width, &packed, &a->tables, NULL, a->contexts, a->of.sequences,
                       a->of.n_heads, 0, a->split, a->max_splits, a->counters, a->scratch, stream)
                 : kv_cuda_decode_attention(a->out, a->q, width, &pages, &a->tables, a->contexts,
                                            a->of.sequences, a->of.n_heads, 0, a->split,
                                            a->max_splits, a->counters, a->scratch, stream),
      error);
}

static gboolean prefill_once(gpointer what, guint i, GError **error) {
  const Attention *a = what;
  KvCudaPages pages = a->pages;
  pages.pool += i % a->copies * a->pool_elements;
  gsize width = (gsize)a->of.n_heads * a->of.head_dim;
  return KV_CUDA_OK(kv_cuda_prefill_attention(a->out, a->q, width, &pages, &a->tables, a->tiles,
                                              a->n_tiles, a->of.n_heads, 0,
                                              a->timer->device->stream),
                    error);
}

static guint blocks_of(const Attention *a) {
  return (a->of.past + a->of.chunk + a->block_tokens - 1) / a->block_tokens;
}

/* The tiles of every sequence's chunk, heaviest first. */
static void fill_tiles(const Attention *a, KvCudaTile *tiles, guint most) {
  const KvCudaAttentionCase *of = &a->of;
  guint per_sequence = a->n_tiles / of->sequences;
  for (guint t = 0; t < a->n_tiles; t++) {
    guint sequence = t % of->sequences;
    guint first = (per_sequence - 1 - t / of->sequences) * most;
    tiles[t] = (KvCudaTile){sequence, sequence * of->chunk + first, of->past + first,
                            MIN(most, of->chunk - first)};
  }
}

static gboolean attention_tables(Attention *a, GError **error) {
  const KvCudaAttentionCase *of = &a->of;
  guint blocks = blocks_of(a), n = blocks * of->sequences;
  guint most = kv_cuda_prefill_tile_tokens(of->n_heads, of->n_kv_heads);
  a->n_tiles = of->sequences * ((of->chunk + most - 1) / most);
  gsize count = (gsize)n + 2 * (gsize)of->sequences + 4 + 4 * (gsize)a->n_tiles;
  g_autofree guint32 *words = g_new(guint32, count);
  guint32 *starts = words + n, *contexts = starts + of->sequences;
  for (guint i = 0; i < n; i++)
    words[i] = i;
  kv_cuda_shuffle(words, n);
  for (guint s = 0; s < of->sequences; s++) {
    starts[s] = s * blocks;
    contexts[s] = of->past;
  }
  guint32 *split = contexts + of->sequences;
  a->max_splits =
      kv_cuda_decode_max_splits(of->sequences, of->n_kv_heads, a->timer->device->multiprocessors);
  guint piece = (MAX(of->past, 1) + a->max_splits - 1) / a->max_splits;
  *split = (piece + KV_CUDA_SPLIT_UNIT - 1) / KV_CUDA_SPLIT_UNIT * KV_CUDA_SPLIT_UNIT;
  fill_tiles(a, (KvCudaTile *)(split + 4), most);
  a->words = kv_cuda_alloc(count * sizeof *words, "tables", error);
  if (!a->words || !kv_cuda_upload(a->timer->device, a->words, words, count * sizeof *words, error))
    return FALSE;
  a->tables = (KvCudaTables){a->words, a->words + n};
  a->contexts = a->words + n + of->sequences;
  a->split = a->contexts + of->sequences;
  a->tiles = (const KvCudaTile *)(a->split + 4);
  return TRUE;
}

static void attention_clear(Attention *a) {
  kv_cuda_free(a->pages.pool);
  kv_cuda_free(a->words);
  kv_cuda_free(a->q);
  kv_cuda_free(a->out);
  kv_cuda_free(a->counters);
  kv_cuda_free(a->scratch);
}

static gboolean attention_init(Attention *a, GError **error) {
  const KvCudaAttentionCase *of = &a->of;
  a->block_tokens = of->bits && of->bits < 8 ? PACKED_GROUP : KV_CUDA_BENCH_BLOCK_TOKENS;
  gsize half = (gsize)of->n_kv_heads * a->block_tokens * of->head_dim;
  gsize width = (gsize)of->n_heads * of->head_dim;
  gsize queries = (gsize)of->sequences * MAX(of->chunk, 1);
  guint shift = a->block_tokens == PACKED_GROUP ? 5 : 4;
  a->packed = (KvCudaPacked){.bits = of->bits,
                             .group = of->bits < 8 ? PACKED_GROUP : 1,
                             .block_shift = shift,
                             .n_kv_heads = of->n_kv_heads,
                             .head_dim = of->head_dim};
  if (of->bits)
    kv_cuda_packed_lay_out(&a->packed);
  a->pool_elements =
      (of->bits ? a->packed.block_bytes / sizeof(KvBf16) : 2 * half) * blocks_of(a) * of->sequences;
  a->copies = copies_of(a->timer, a->pool_elements * sizeof(KvBf16), 1500);
  a->pages =
      (KvCudaPages){.pool = kv_cuda_random(a->timer, a->pool_elements * a->copies, 1.7f, error),
                    .block_elements = 2 * half,
                    .value_offset = half,
                    .block_shift = shift,
                    .n_kv_heads = of->n_kv_heads,
                    .head_dim = of->head_dim};
  if (!a->pages.pool || !attention_tables(a, error))
    return FALSE;
  gsize scratch =
      kv_cuda_decode_scratch_bytes(of->sequences, of->n_heads, of->head_dim, a->max_splits);
  gsize counters = (gsize)of->sequences * of->n_heads * sizeof(guint32);
  return (a->q = kv_cuda_random(a->timer, queries * width, 1.7f, error)) &&
         (a->out = kv_cuda_random(a->timer, queries * width, 1.0f, error)) &&
         (a->scratch = kv_cuda_alloc(scratch, "scratch", error)) &&
         (a->counters = kv_cuda_alloc(counters, "counters", error)) &&
         kv_cuda_fill(a->timer->device, a->counters, 0, counters, error);
}

static gboolean time_attention(KvCudaTimer *timer, const KvCudaAttentionCase *of, KvCudaTimed once,
                               guint least, double *seconds, GError **error) {
  Attention a = {.timer = timer, .of = *of};
  gboolean done = attention_init(&a, error) &&
                  kv_cuda_time(timer, once, &a, MAX(a.copies, least), seconds, error);
  attention_clear(&a);
  return done;
}

gboolean kv_cuda_time_decode(KvCudaTimer *timer, const KvCudaAttentionCase *of, double *seconds,
                             GError **error) {
  g_return_val_if_fail(of->chunk == 0 && of->past > 0, FALSE);
  return time_attention(timer, of, decode_once, 8, seconds, error);
}

gboolean kv_cuda_time_prefill(KvCudaTimer *timer, const KvCudaAttentionCase *of, double *seconds,
                              GError **error) {
  g_return_val_if_fail(of->chunk > 0, FALSE);
  return time_attention(timer, of, prefill_once, 4, seconds, error);
}
