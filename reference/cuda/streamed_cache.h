/* Blocks in pinned host memory that come to the GPU a layer at a time (flexgen, infinigen): a
 * stream of its own loads layer l + 2 into what layer l has left, and another one takes layer l's
 * new keys and values back; or, where nothing is to be hidden, one after the other.
 *
 * The pools of all layers and two staging areas are one allocation (cache.c), so that a block table
 * can lead from a layer's pool to both. A pass's table is planned once (reference/host/staging.h)
 * and shifted for each layer. No pass is captured; each begins with its first layer's load, which
 * nothing hides, and ends when everything is back in host memory.
 *
 * What a format keeps (c->state) begins with it.
 */
#ifndef KV_REFERENCE_CUDA_STREAMED_CACHE_H
#define KV_REFERENCE_CUDA_STREAMED_CACHE_H

#include "reference/cuda/format.h"
#include "reference/host/staging.h"

/* Thread blocks of a copy over the bus: 32 KiB under way in each, which is several times the bus's
 * bandwidth times its latency, on a sixth of the multiprocessors. */
enum { KV_CUDA_COPY_GROUPS = 22 };

typedef struct {
  KvHostStaging staging;
  char **homes; /* [layers], pinned: [away] blocks of the layer */
  cudaStream_t loads, stores;
  cudaEvent_t begun, ready[2], left[2], stored[2]; /* the latter of even and odd layers */
  gboolean ahead;                                  /* loads and stores are beside the kernels */
  /* Of the pass: blocks to fetch, blocks to store, the table; behind them the layer's table. */
  guint32 *words;
  gsize room;
} KvCudaStreamedCache;

/* With the settings' share of the blocks on the GPU. Release it also if this failed. */
gboolean kv_cuda_streamed_cache_make(KvCudaCompressed *c, gboolean ahead, KvHostDecoding decoding,
                                     GError **error);
void kv_cuda_streamed_cache_release(KvCudaCompressed *c);

/* A stream that goes before the kernels': few thread blocks must not wait behind many. */
gboolean kv_cuda_streamed_cache_stream(cudaStream_t *stream, GError **error);
gboolean kv_cuda_streamed_cache_event(cudaEvent_t *event, GError **error);
/* The stream goes on when the event has come; the event comes when the stream has got there. */
gboolean kv_cuda_streamed_cache_await(cudaStream_t stream, cudaEvent_t event, GError **error);
gboolean kv_cuda_streamed_cache_record(cudaStream_t stream, cudaEvent_t event, GError **error);

/* Plan a pass and upload its lists; before and after each of its layers. */
gboolean kv_cuda_streamed_cache_begin(KvCudaCompressed *c, GError **error);
gboolean kv_cuda_streamed_cache_enter(KvCudaCompressed *c, guint layer, GError **error);
gboolean kv_cuda_streamed_cache_leave(KvCudaCompressed *c, guint layer, GError **error);

/* The rows with the layer's own block table. */
KvCudaRows kv_cuda_streamed_cache_led(const KvCudaCompressed *c, const KvCudaRows *rows);
/* A layer's blocks in host memory; and its staging area, of which places are the blocks, with the
 * pass's table of those where no block is resident. */
KvCudaPages kv_cuda_streamed_cache_home(const KvCudaCompressed *c, guint layer);
KvCudaPages kv_cuda_streamed_cache_area(const KvCudaCompressed *c, guint layer);
const guint32 *kv_cuda_streamed_cache_places(const KvCudaCompressed *c);

#endif
