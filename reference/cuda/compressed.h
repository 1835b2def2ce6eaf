/* What a pass does differently when the cache is compressed (reference/host/compression.h): where
 * keys and values go, what attention reads, and what follows when a prompt is done.
 *
 * How each format does it stands in a file of its own (format.h).
 *
 * Packing and cutting follow the pass and are timed apart, so that a pass may be run twice. What
 * belongs to a sequence hangs on its span's owner until it is forgotten.
 */
#ifndef KV_REFERENCE_CUDA_COMPRESSED_H
#define KV_REFERENCE_CUDA_COMPRESSED_H

#include "reference/cuda/cache.h"
#include "reference/cuda/device.h"
#include "reference/cuda/weights.h"
#include "reference/host/forward.h"

typedef struct KvCudaCompressed KvCudaCompressed;

/* For a cache that is compressed; borrows its arguments. */
KvCudaCompressed *kv_cuda_compressed_new(KvCudaDevice *device, const KvCudaWeights *weights,
                                         KvCudaCache *cache, GError **error);
void kv_cuda_compressed_free(KvCudaCompressed *compressed);

/* Before a pass: room for what it stores, and the tables of what it reads. *moved: launches that
 * were captured hold addresses that are no longer so. */
gboolean kv_cuda_compressed_begin(KvCudaCompressed *compressed, const KvHostSpan *spans, guint n,
                                  gboolean *moved, GError **error);

/* What a format puts in the place of a layer's projections: rows of `width` elements, queries first
 * and then what it stores, which it turns by their positions itself; and the output projection
 * [D][attended] of decoding rows, whose attention has as many elements. Prompts have the model's.
 */
typedef struct {
  const KvBf16 *qkv, *qkv_bias; /* [width][D], [width] */
  const KvBf16 *output, *output_bias;
  guint width, attended;
} KvCudaProjections;

/* NULL: the model's own. */
const KvCudaProjections *kv_cuda_compressed_projections(const KvCudaCompressed *compressed,
                                                        guint layer);
/* Blocks of threads that one piece of a context takes in decode attention: KV heads, or fewer. */
guint kv_cuda_compressed_parts(const KvCudaCompressed *compressed);

/* The rows of a pass at one layer, all in device memory: prompts first. */
typedef struct {
  KvBf16 *qkv, *attended;
  gsize stride; /* elements of a row of qkv */
  guint rows, prefill_rows, prefill, decode, n_tiles, n_heads, head_dim, window;
  KvCudaTables tables; /* the engine's, of all sequences */
  const guint32 *row_sequences, *slots, *positions, *contexts, *split_tokens;
  const float2 *angles; /* of the heads' size; NULL: positions are learned */
  const KvCudaTile *tiles;
  guint max_splits;
  guint32 *counters;
  void *scratch;
} KvCudaRows;

/* Whether something comes to the GPU a layer at a time: then each layer of a pass is entered and
 * left, and none is captured. */
gboolean kv_cuda_compressed_streams(const KvCudaCompressed *compressed);
gboolean kv_cuda_compressed_enter(KvCudaCompressed *compressed, guint layer, GError **error);
gboolean kv_cuda_compressed_leave(KvCudaCompressed *compressed, guint layer, GError **error);

/* A layer's normalized input, of the rows that decode, and the angles of the next layer's heads. */
typedef struct {
  const KvBf16 *normed; /* [decode][D] */
  const guint32 *row_sequences, *positions;
  const float2 *angles;
  guint decode;
} KvCudaInput;

/* Whether the format looks at layers' inputs for what comes later. Then, at each layer's beginning:
 * what the next one needs to know of it is found beside the layer, and before its rows are stored:
 * what was brought so must be there. */
gboolean kv_cuda_compressed_looks_ahead(const KvCudaCompressed *compressed);
gboolean kv_cuda_compressed_look_ahead(KvCudaCompressed *compressed, guint layer,
                                       const KvCudaInput *input, GError **error);
gboolean kv_cuda_compressed_await(KvCudaCompressed *compressed, guint layer, GError **error);

/* Add to tokens[layers] how many of their contexts the pass's decoding rows did not read. */
gboolean kv_cuda_compressed_unread(KvCudaCompressed *compressed, double *tokens, GError **error);

/* Store the rows' rotated keys and values; attend to the prompts' rows; to the decoding ones. */
cudaError_t kv_cuda_compressed_store(KvCudaCompressed *compressed, guint layer,
                                     const KvCudaRows *rows);
cudaError_t kv_cuda_compressed_prefill(KvCudaCompressed *compressed, guint layer,
                                       const KvCudaRows *rows);
cudaError_t kv_cuda_compressed_decode(KvCudaCompressed *compressed, guint layer,
                                      const KvCudaRows *rows);

/* After the pass: pack or cut the prompts that it completed; *seconds of the GPU's time. */
gboolean kv_cuda_compressed_finish(KvCudaCompressed *compressed, const KvHostSpan *spans, guint n,
                                   double *seconds, GError **error);
void kv_cuda_compressed_forget(KvCudaCompressed *compressed, guint64 owner);

#endif
