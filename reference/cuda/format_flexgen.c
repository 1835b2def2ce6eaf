/* flexgen: what lies in pinned host memory, of the weights and of the cache, comes to the GPU a
 * layer at a time (streamed_cache.h), by default beside the two layers before.
 *
 * Where the CPU attends, decoding rows' queries and new tokens go to pinned memory, a host function
 * of the stream stores and attends (reference/host/cpu_attention.h), and outputs come back.
 */
#include "reference/cuda/streamed_cache.h"
#include "reference/host/cpu_attention.h"

/* What a host function is told: a layer. */
typedef struct {
  struct Flexgen *flexgen;
  KvCpuPages pages;
} CpuLayer;

typedef struct Flexgen {
  KvCudaStreamedCache streamed; /* first */
  /* On the CPU: layers, the decoding rows of the pass, and pinned memory for as many. */
  KvCpuAttention *cpu;
  CpuLayer *cpu_layers;
  GArray *rows; /* of KvCpuRow */
  KvBf16 *queries, *outputs;
  gsize widest_row, widest_output; /* elements */
  guint room_rows;
} Flexgen;

/* --- beginning and end ----------------------------------------------------------------------- */

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
                                  {.blocks = (guint16 *)(void *)f->streamed.homes[l],
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
  gboolean on_cpu = c->settings->cpu_attention;
  c->state = g_new0(Flexgen, 1);
  if (!kv_cuda_streamed_cache_make(c, c->settings->overlap,
                                   on_cpu ? KV_HOST_DECODING_ELSEWHERE : KV_HOST_DECODING_STAGED,
                                   error))
    return FALSE;
  if (on_cpu)
    make_cpu(c);
  return TRUE;
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
  (void)cudaStreamSynchronize(c->device->stream); /* no host function is left */
  release_cpu(c->state);
  kv_cuda_streamed_cache_release(c);
  g_free(c->state);
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
  const Flexgen *f = c->state;
  return (!f->cpu || begin_cpu(c, prompts, error)) && kv_cuda_streamed_cache_begin(c, error);
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const KvCudaRows rows = kv_cuda_streamed_cache_led(c, r);
  return kv_cuda_format_store_exact(c, layer, &rows);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const KvCudaRows rows = kv_cuda_streamed_cache_led(c, r);
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
  const KvCudaRows rows = kv_cuda_streamed_cache_led(c, r);
  return c->settings->cpu_attention ? decode_on_cpu(c, layer, r)
                                    : kv_cuda_format_decode_exact(c, layer, &rows);
}

const KvCudaFormat kv_cuda_format_flexgen = {.make = make,
                                             .release = release,
                                             .begin = begin,
                                             .enter = kv_cuda_streamed_cache_enter,
                                             .leave = kv_cuda_streamed_cache_leave,
                                             .store = store,
                                             .prefill = prefill,
                                             .decode = decode};
