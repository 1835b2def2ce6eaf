#include "reference/cuda/streamed_cache.h"

#include <unistd.h>

#include "reference/cuda/streamed_weights.h"
#include "sim/base/error.h"

G_STATIC_ASSERT(sizeof(KvHostStaged) == sizeof(KvCudaStaged));

static guint32 *table_of(const KvCudaStreamedCache *s) {
  return s->words + 2 * (gsize)s->staging.fetched->len + 2 * (gsize)s->staging.stored->len;
}

static guint32 *layer_table(const KvCudaStreamedCache *s) {
  return table_of(s) + s->staging.table->len;
}

static gsize part_bytes(const KvCudaCompressed *c, guint layer) {
  return c->cache->layers[layer].block_elements * sizeof(KvBf16);
}

/* The staging area that a layer uses. */
static char *staging_area(const KvCudaCompressed *c, guint layer) {
  const KvCudaStreamedCache *s = c->state;
  gsize blocks =
      (gsize)c->cache->n_layers * s->staging.resident + (layer % 2 ? (gsize)s->staging.away : 0);
  return (char *)c->cache->layers[0].pool + blocks * part_bytes(c, 0);
}

/* From a place's number behind the layer's resident blocks to its block in the layer's pool. */
static guint32 shift_of(const KvCudaCompressed *c, guint layer) {
  const KvCudaStreamedCache *s = c->state;
  return (c->cache->n_layers - layer - 1) * s->staging.resident + (layer % 2 ? s->staging.away : 0);
}

KvCudaPages kv_cuda_streamed_cache_home(const KvCudaCompressed *c, guint layer) {
  KvCudaPages pages = c->cache->layers[layer];
  pages.pool = (KvBf16 *)(void *)((const KvCudaStreamedCache *)c->state)->homes[layer];
  return pages;
}

KvCudaPages kv_cuda_streamed_cache_area(const KvCudaCompressed *c, guint layer) {
  KvCudaPages pages = c->cache->layers[layer];
  pages.pool = (KvBf16 *)(void *)staging_area(c, layer);
  return pages;
}

const guint32 *kv_cuda_streamed_cache_places(const KvCudaCompressed *c) {
  return table_of(c->state);
}

KvCudaRows kv_cuda_streamed_cache_led(const KvCudaCompressed *c, const KvCudaRows *r) {
  KvCudaRows rows = *r;
  rows.tables.table = layer_table(c->state);
  return rows;
}

/* --- beginning and end ----------------------------------------------------------------------- */

gboolean kv_cuda_streamed_cache_event(cudaEvent_t *event, GError **error) {
  return KV_CUDA_OK(cudaEventCreateWithFlags(event, cudaEventDisableTiming), error);
}

gboolean kv_cuda_streamed_cache_stream(cudaStream_t *stream, GError **error) {
  int least, greatest;
  return KV_CUDA_OK(cudaDeviceGetStreamPriorityRange(&least, &greatest), error) &&
         KV_CUDA_OK(cudaStreamCreateWithPriority(stream, cudaStreamNonBlocking, greatest), error);
}

/* Pinning fails only once the machine is full, a minute later: more than it has is refused before.
 */
static gboolean check_room(const KvCudaCompressed *c, GError **error) {
  const KvCudaStreamedCache *s = c->state;
  double bytes = 0.0, memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  for (guint l = 0; l < c->cache->n_layers; l++)
    bytes += (double)s->staging.away * (double)part_bytes(c, l);
  if (bytes <= memory)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
              "cuda executor: the KV blocks need %.1f GB of pinned host memory, the machine has "
              "%.1f GB; expected fewer (engine.num_blocks) or a larger share on the GPU",
              bytes / 1e9, memory / 1e9);
  return FALSE;
}

gboolean kv_cuda_streamed_cache_make(KvCudaCompressed *c, gboolean ahead, KvHostDecoding decoding,
                                     GError **error) {
  KvCudaStreamedCache *s = c->state;
  kv_host_staging_init(&s->staging, c->settings->cache_share, (guint32)c->cache->hbm_blocks);
  s->staging.decoding = decoding;
  s->ahead = ahead;
  s->homes = g_new0(char *, c->cache->n_layers);
  if (!check_room(c, error))
    return FALSE;
  for (guint l = 0; s->staging.away > 0 && l < c->cache->n_layers; l++)
    if (!(s->homes[l] =
              kv_cuda_pin(s->staging.away * part_bytes(c, l), "the KV blocks of a layer", error)))
      return FALSE;
  cudaEvent_t *events[] = {&s->begun,   &s->ready[0],  &s->ready[1], &s->left[0],
                           &s->left[1], &s->stored[0], &s->stored[1]};
  for (guint i = 0; i < G_N_ELEMENTS(events); i++)
    if (!kv_cuda_streamed_cache_event(events[i], error))
      return FALSE;
  return !ahead || (kv_cuda_streamed_cache_stream(&s->loads, error) &&
                    kv_cuda_streamed_cache_stream(&s->stores, error));
}

void kv_cuda_streamed_cache_release(KvCudaCompressed *c) {
  KvCudaStreamedCache *s = c->state;
  cudaEvent_t events[] = {s->begun,   s->ready[0],  s->ready[1], s->left[0],
                          s->left[1], s->stored[0], s->stored[1]};
  for (guint i = 0; i < G_N_ELEMENTS(events); i++)
    if (events[i])
      (void)cudaEventDestroy(events[i]);
  if (s->loads)
    (void)cudaStreamDestroy(s->loads);
  if (s->stores)
    (void)cudaStreamDestroy(s->stores);
  for (guint l = 0; l < c->cache->n_layers; l++)
    if (s->homes[l])
      (void)cudaFreeHost(s->homes[l]);
  kv_cuda_free(s->words);
  kv_host_staging_clear(&s->staging);
  g_free(s->homes);
}

/* --- a pass ---------------------------------------------------------------------------------- */

gboolean kv_cuda_streamed_cache_begin(KvCudaCompressed *c, GError **error) {
  KvCudaStreamedCache *s = c->state;
  KvHostStaging *plan = &s->staging;
  kv_host_staging_plan(plan, c->spans, c->n_spans, c->cache->block_tokens);
  const GArray *parts[] = {plan->fetched, plan->stored, plan->table};
  const gsize words[] = {2 * (gsize)plan->fetched->len, 2 * (gsize)plan->stored->len,
                         plan->table->len};
  gsize need = words[0] + words[1] + 2 * words[2], at = 0;
  if (need > s->room) {
    if (!kv_cuda_format_grow(c, &s->words, 0, 2 * need * sizeof(guint32),
                             "the tables of what is streamed", error))
      return FALSE;
    s->room = 2 * need;
  }
  for (guint i = 0; i < G_N_ELEMENTS(parts); at += words[i++])
    if (words[i] > 0 && !kv_cuda_upload(c->device, s->words + at, parts[i]->data,
                                        words[i] * sizeof(guint32), error))
      return FALSE;
  return TRUE;
}

gboolean kv_cuda_streamed_cache_await(cudaStream_t stream, cudaEvent_t event, GError **error) {
  return KV_CUDA_OK(cudaStreamWaitEvent(stream, event, 0), error);
}

gboolean kv_cuda_streamed_cache_record(cudaStream_t stream, cudaEvent_t event, GError **error) {
  return KV_CUDA_OK(cudaEventRecord(event, stream), error);
}

/* Everything of the layer that lies in host memory, once the layer two before has left the buffers
 * and what that one stored has left its staging area. */
static gboolean load(KvCudaCompressed *c, guint l, GError **error) {
  KvCudaStreamedCache *s = c->state;
  const GArray *fetched = s->staging.fetched;
  cudaStream_t stream = s->ahead ? s->loads : c->device->stream;
  if (s->ahead && !kv_cuda_streamed_cache_await(stream, l < 2 ? s->begun : s->left[l % 2], error))
    return FALSE;
  if (c->weights->streamed &&
      !kv_cuda_streamed_weights_load(c->weights->streamed, l, stream, error))
    return FALSE;
  if (s->ahead && l >= 2 && !kv_cuda_streamed_cache_await(stream, s->stored[l % 2], error))
    return FALSE;
  return KV_CUDA_OK(kv_cuda_copy_staged(staging_area(c, l), s->homes[l],
                                        (const KvCudaStaged *)(void *)s->words, fetched->len,
                                        part_bytes(c, l), FALSE, KV_CUDA_COPY_GROUPS, stream),
                    error) &&
         kv_cuda_streamed_cache_record(stream, s->ready[l % 2], error);
}

/* The layer's new keys and values, back to host memory. */
static gboolean save(KvCudaCompressed *c, guint l, GError **error) {
  KvCudaStreamedCache *s = c->state;
  const KvCudaStaged *stored =
      (const KvCudaStaged *)(void *)(s->words + 2 * (gsize)s->staging.fetched->len);
  cudaStream_t stream = s->ahead ? s->stores : c->device->stream;
  return (!s->ahead || kv_cuda_streamed_cache_await(stream, s->left[l % 2], error)) &&
         KV_CUDA_OK(kv_cuda_copy_staged(s->homes[l], staging_area(c, l), stored,
                                        s->staging.stored->len, part_bytes(c, l), TRUE,
                                        KV_CUDA_COPY_GROUPS, stream),
                    error) &&
         kv_cuda_streamed_cache_record(stream, s->stored[l % 2], error);
}

gboolean kv_cuda_streamed_cache_enter(KvCudaCompressed *c, guint l, GError **error) {
  KvCudaStreamedCache *s = c->state;
  cudaStream_t stream = c->device->stream;
  if (l == 0 && s->ahead &&
      (!kv_cuda_streamed_cache_record(stream, s->begun, error) || !load(c, 0, error) ||
       (c->cache->n_layers > 1 && !load(c, 1, error))))
    return FALSE;
  if (!s->ahead && !load(c, l, error))
    return FALSE;
  return kv_cuda_streamed_cache_await(stream, s->ready[l % 2], error) &&
         KV_CUDA_OK(kv_cuda_shift_table(layer_table(s), table_of(s), s->staging.table->len,
                                        s->staging.resident, shift_of(c, l), stream),
                    error);
}

gboolean kv_cuda_streamed_cache_leave(KvCudaCompressed *c, guint l, GError **error) {
  KvCudaStreamedCache *s = c->state;
  cudaStream_t stream = c->device->stream;
  guint n = c->cache->n_layers;
  if (!kv_cuda_streamed_cache_record(stream, s->left[l % 2], error) || !save(c, l, error))
    return FALSE;
  if (l + 1 == n) /* the pass is over when all is stored */
    return kv_cuda_streamed_cache_await(stream, s->stored[l % 2], error) &&
           (n == 1 || kv_cuda_streamed_cache_await(stream, s->stored[(l + 1) % 2], error));
  return !s->ahead || l + 2 >= n || load(c, l + 2, error);
}
