/* flexgen: what lies in pinned host memory, of the weights and of the cache, comes to the GPU a
 * layer at a time, by default beside the two layers before: a stream of its own loads layer l + 2
 * into what layer l has left, and another one takes layer l's new keys and values back.
 *
 * The pools of all layers and two staging areas are one allocation (cache.c), so that a block table
 * can lead from a layer's pool to both. A pass's table is planned once (reference/host/staging.h)
 * and shifted for each layer. No pass is captured; each begins with its first layer's load, which
 * nothing hides, and ends when everything is back in host memory.
 *
 * Where the CPU attends, decoding rows' queries and new tokens go to pinned memory, a host function
 * of the stream stores and attends (reference/host/cpu_attention.h), and outputs come back.
 */
#include "reference/cuda/format.h"
#include "reference/cuda/streamed_weights.h"
#include "reference/host/cpu_attention.h"
#include "reference/host/staging.h"

/* Thread blocks of a copy over the bus: 32 KiB under way in each, which is several times the bus's
 * bandwidth times its latency, on a sixth of the multiprocessors. */
enum { COPY_GROUPS = 22 };

G_STATIC_ASSERT(sizeof(KvHostStaged) == sizeof(KvCudaStaged));

/* What a host function is told: a layer. */
typedef struct {
  struct Flexgen *flexgen;
  KvCpuPages pages;
} CpuLayer;

typedef struct Flexgen {
  KvHostStaging staging;
  char **homes; /* [layers], pinned: [away] blocks of the layer */
  cudaStream_t loads, stores;
  cudaEvent_t begun, ready[2], left[2], stored[2]; /* the latter of even and odd layers */
  /* Of the pass: blocks to fetch, blocks to store, the table; behind them the layer's table. */
  guint32 *words;
  gsize room;
  /* On the CPU: layers, the decoding rows of the pass, and pinned memory for as many. */
  KvCpuAttention *cpu;
  CpuLayer *cpu_layers;
  GArray *rows; /* of KvCpuRow */
  KvBf16 *queries, *outputs;
  gsize widest_row, widest_output; /* elements */
  guint room_rows;
} Flexgen;

static guint32 *table_of(const Flexgen *f) {
  return f->words + 2 * (gsize)f->staging.fetched->len + 2 * (gsize)f->staging.stored->len;
}

static guint32 *layer_table(const Flexgen *f) {
  return table_of(f) + f->staging.table->len;
}

static gsize part_bytes(const KvCudaCompressed *c, guint layer) {
  return c->cache->layers[layer].block_elements * sizeof(KvBf16);
}

/* The staging area that a layer uses. */
static char *staging_area(const KvCudaCompressed *c, guint layer) {
  const Flexgen *f = c->state;
  gsize blocks =
      (gsize)c->cache->n_layers * f->staging.resident + (layer % 2 ? (gsize)f->staging.away : 0);
  return (char *)c->cache->layers[0].pool + blocks * part_bytes(c, 0);
}

/* From a place's number behind the layer's resident blocks to its block in the layer's pool. */
static guint32 shift_of(const KvCudaCompressed *c, guint layer) {
  const Flexgen *f = c->state;
  return (c->cache->n_layers - layer - 1) * f->staging.resident + (layer % 2 ? f->staging.away : 0);
}

/* --- beginning and end ----------------------------------------------------------------------- */

/* Copies go first: their few thread blocks must not wait behind a kernel's many. */
static gboolean make_streams(KvCudaCompressed *c, GError **error) {
  Flexgen *f = c->state;
  cudaEvent_t *events[] = {&f->begun,   &f->ready[0],  &f->ready[1], &f->left[0],
                           &f->left[1], &f->stored[0], &f->stored[1]};
  int least, greatest;
  for (guint i = 0; i < G_N_ELEMENTS(events); i++)
    if (!KV_CUDA_OK(cudaEventCreateWithFlags(events[i], cudaEventDisableTiming), error))
      return FALSE;
  return !c->settings->overlap ||
         (KV_CUDA_OK(cudaDeviceGetStreamPriorityRange(&least, &greatest), error) &&
          KV_CUDA_OK(cudaStreamCreateWithPriority(&f->loads, cudaStreamNonBlocking, greatest),
                     error) &&
          KV_CUDA_OK(cudaStreamCreateWithPriority(&f->stores, cudaStreamNonBlocking, greatest),
                     error));
}

/* The layers as the CPU sees them. */
static void make_cpu(KvCudaCompressed *c) {
  Flexgen *f = c->state;
  f->cpu = kv_cpu_attention_new(0);
  f->rows = g_array_new(FALSE, FALSE, sizeof(KvCpuRow));
  f->cpu_layers = g_new0(CpuLayer, c->cache->n_layers);
  for (guint l = 0; l < c->cache->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    gsize width = (gsize)a->n_heads * a->head_dim;
    f->cpu_layers[l] = (CpuLayer){f,
                                  {.blocks = (guint16 *)(void *)f->homes[l],
                                   .block_elements = c->cache->layers[l].block_elements,
                                   .value_offset = c->cache->layers[l].value_offset,
                                   .block_tokens = c->cache->block_tokens,
                                   .n_heads = a->n_heads,
                                   .n_kv_heads = a->n_kv_heads,
                                   .head_dim = a->head_dim}};
    f->widest_output = MAX(f->widest_output, width);
    f->widest_row = MAX(f->widest_row, width + 2 * (gsize)a->n_kv_heads * a->head_dim);
  }
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  Flexgen *f = c->state = g_new0(Flexgen, 1);
  kv_host_staging_init(&f->staging, c->settings->cache_share, (guint32)c->cache->hbm_blocks);
  f->homes = g_new0(char *, c->cache->n_layers);
  for (guint l = 0; f->staging.away > 0 && l < c->cache->n_layers; l++)
    if (!(f->homes[l] =
              kv_cuda_pin(f->staging.away * part_bytes(c, l), "the KV blocks of a layer", error)))
      return FALSE;
  if (c->settings->cpu_attention)
    f->staging.decoding = KV_HOST_DECODING_ELSEWHERE;
  if (c->settings->cpu_attention)
    make_cpu(c);
  return make_streams(c, error);
}

static void release_cpu(Flexgen *f) {
  kv_cpu_attention_free(f->cpu);
  if (f->queries)
    (void)cudaFreeHost(f->queries);
  if (f->outputs)
    (void)cudaFreeHost(f->outputs);
  if (f->rows)
    g_array_unref(f->rows);
  g_free(f->cpu_layers);
}

static void release(KvCudaCompressed *c) {
  Flexgen *f = c->state;
  (void)cudaStreamSynchronize(c->device->stream); /* no host function is left */
  release_cpu(f);
  cudaEvent_t events[] = {f->begun,   f->ready[0],  f->ready[1], f->left[0],
                          f->left[1], f->stored[0], f->stored[1]};
  for (guint i = 0; i < G_N_ELEMENTS(events); i++)
    if (events[i])
      (void)cudaEventDestroy(events[i]);
  if (f->loads)
    (void)cudaStreamDestroy(f->loads);
  if (f->stores)
    (void)cudaStreamDestroy(f->stores);
  for (guint l = 0; l < c->cache->n_layers; l++)
    if (f->homes[l])
      (void)cudaFreeHost(f->homes[l]);
  kv_cuda_free(f->words);
  kv_host_staging_clear(&f->staging);
  g_free(f->homes);
  g_free(f);
}

/* --- a pass ---------------------------------------------------------------------------------- */

/* The rows that decode on the CPU, and pinned memory for them. */
static gboolean begin_cpu(KvCudaCompressed *c, guint prompts, GError **error) {
  Flexgen *f = c->state;
  guint n = c->n_spans - prompts;
  g_array_set_size(f->rows, 0);
  for (guint s = prompts; s < c->n_spans; s++) {
    KvCpuRow row = {c->spans[s].block_table, c->spans[s].past + 1 - c->spans[s].dropped};
    g_array_append_val(f->rows, row);
  }
  if (n <= f->room_rows)
    return TRUE;
  if (f->queries)
    (void)cudaFreeHost(f->queries);
  if (f->outputs)
    (void)cudaFreeHost(f->outputs);
  f->queries = f->outputs = NULL;
  f->room_rows = 0;
  if (!(f->queries =
            kv_cuda_pin(2 * (gsize)n * f->widest_row * sizeof(KvBf16), "queries", error)) ||
      !(f->outputs =
            kv_cuda_pin(2 * (gsize)n * f->widest_output * sizeof(KvBf16), "outputs", error)))
    return FALSE;
  f->room_rows = 2 * n;
  return TRUE;
}

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  Flexgen *f = c->state;
  if (f->cpu && !begin_cpu(c, prompts, error))
    return FALSE;
  const KvHostStaging *s = &f->staging;
  kv_host_staging_plan(&f->staging, c->spans, c->n_spans, c->cache->block_tokens);
  const GArray *parts[] = {s->fetched, s->stored, s->table};
  const gsize words[] = {2 * (gsize)s->fetched->len, 2 * (gsize)s->stored->len, s->table->len};
  gsize need = words[0] + words[1] + 2 * words[2], at = 0;
  if (need > f->room) {
    if (!kv_cuda_format_grow(c, &f->words, 0, 2 * need * sizeof(guint32),
                             "the tables of what is streamed", error))
      return FALSE;
    f->room = 2 * need;
  }
  for (guint i = 0; i < G_N_ELEMENTS(parts); at += words[i++])
    if (words[i] > 0 && !kv_cuda_upload(c->device, f->words + at, parts[i]->data,
                                        words[i] * sizeof(guint32), error))
      return FALSE;
  return TRUE;
}

static gboolean await(cudaStream_t stream, cudaEvent_t event, GError **error) {
  return KV_CUDA_OK(cudaStreamWaitEvent(stream, event, 0), error);
}

static gboolean record(cudaStream_t stream, cudaEvent_t event, GError **error) {
  return KV_CUDA_OK(cudaEventRecord(event, stream), error);
}

/* Everything of the layer that lies in host memory, once the layer two before has left the buffers
 * and what that one stored has left its staging area. */
static gboolean load(KvCudaCompressed *c, guint l, GError **error) {
  Flexgen *f = c->state;
  const GArray *fetched = f->staging.fetched;
  gboolean ahead = c->settings->overlap;
  cudaStream_t stream = ahead ? f->loads : c->device->stream;
  if (ahead && !await(stream, l < 2 ? f->begun : f->left[l % 2], error))
    return FALSE;
  if (c->weights->streamed &&
      !kv_cuda_streamed_weights_load(c->weights->streamed, l, stream, error))
    return FALSE;
  if (ahead && l >= 2 && !await(stream, f->stored[l % 2], error))
    return FALSE;
  return KV_CUDA_OK(kv_cuda_copy_staged(staging_area(c, l), f->homes[l],
                                        (const KvCudaStaged *)(void *)f->words, fetched->len,
                                        part_bytes(c, l), FALSE, COPY_GROUPS, stream),
                    error) &&
         record(stream, f->ready[l % 2], error);
}

/* The layer's new keys and values, back to host memory. */
static gboolean save(KvCudaCompressed *c, guint l, GError **error) {
  Flexgen *f = c->state;
  const KvCudaStaged *stored =
      (const KvCudaStaged *)(void *)(f->words + 2 * (gsize)f->staging.fetched->len);
  gboolean beside = c->settings->overlap;
  cudaStream_t stream = beside ? f->stores : c->device->stream;
  return (!beside || await(stream, f->left[l % 2], error)) &&
         KV_CUDA_OK(kv_cuda_copy_staged(f->homes[l], staging_area(c, l), stored,
                                        f->staging.stored->len, part_bytes(c, l), TRUE, COPY_GROUPS,
                                        stream),
                    error) &&
         record(stream, f->stored[l % 2], error);
}

static gboolean enter(KvCudaCompressed *c, guint l, GError **error) {
  Flexgen *f = c->state;
  cudaStream_t stream = c->device->stream;
  gboolean ahead = c->settings->overlap;
  if (l == 0 && ahead &&
      (!record(stream, f->begun, error) || !load(c, 0, error) ||
       (c->cache->n_layers > 1 && !load(c, 1, error))))
    return FALSE;
  if (!ahead && !load(c, l, error))
    return FALSE;
  return await(stream, f->ready[l % 2], error) &&
         KV_CUDA_OK(kv_cuda_shift_table(layer_table(f), table_of(f), f->staging.table->len,
                                        f->staging.resident, shift_of(c, l), stream),
                    error);
}

static gboolean leave(KvCudaCompressed *c, guint l, GError **error) {
  Flexgen *f = c->state;
  cudaStream_t stream = c->device->stream;
  guint n = c->cache->n_layers;
  if (!record(stream, f->left[l % 2], error) || !save(c, l, error))
    return FALSE;
  if (l + 1 == n) /* the pass is over when all is stored */
    return await(stream, f->stored[l % 2], error) &&
           (n == 1 || await(stream, f->stored[(l + 1) % 2], error));
  return !c->settings->overlap || l + 2 >= n || load(c, l + 2, error);
}

/* The rows with the layer's own block table. */
static KvCudaRows led(const KvCudaCompressed *c, const KvCudaRows *r) {
  KvCudaRows rows = *r;
  rows.tables.table = layer_table(c->state);
  return rows;
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const KvCudaRows rows = led(c, r);
  return kv_cuda_format_store_exact(c, layer, &rows);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const KvCudaRows rows = led(c, r);
  return kv_cuda_format_prefill_exact(c, layer, &rows);
}

static void CUDART_CB attend_on_cpu(void *data) {
  const CpuLayer *l = data;
  const Flexgen *f = l->flexgen;
  gsize stride = ((gsize)l->pages.n_heads + 2 * (gsize)l->pages.n_kv_heads) * l->pages.head_dim;
  kv_cpu_attention_run(f->cpu, f->outputs, f->queries, stride, &l->pages,
                       (const KvCpuRow *)(void *)f->rows->data, f->rows->len);
}

static cudaError_t decode_on_cpu(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  Flexgen *f = c->state;
  cudaStream_t stream = c->device->stream;
  gsize in = r->decode * r->stride, out = (gsize)r->decode * r->n_heads * r->head_dim;
  cudaError_t status = cudaMemcpyAsync(f->queries, kv_cuda_format_decode_queries(r),
                                       in * sizeof(KvBf16), cudaMemcpyDeviceToHost, stream);
  if (status == cudaSuccess)
    status = cudaLaunchHostFunc(stream, attend_on_cpu, &f->cpu_layers[layer]);
  if (status == cudaSuccess)
    status = cudaMemcpyAsync(kv_cuda_format_decode_out(r), f->outputs, out * sizeof(KvBf16),
                             cudaMemcpyHostToDevice, stream);
  return status;
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const KvCudaRows rows = led(c, r);
  return c->settings->cpu_attention ? decode_on_cpu(c, layer, r)
                                    : kv_cuda_format_decode_exact(c, layer, &rows);
}

const KvCudaFormat kv_cuda_format_flexgen = {.make = make,
                                             .release = release,
                                             .begin = begin,
                                             .enter = enter,
                                             .leave = leave,
                                             .store = store,
                                             .prefill = prefill,
                                             .decode = decode};
