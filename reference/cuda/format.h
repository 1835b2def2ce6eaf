/* What a pass on the GPU does differently where the cache is held in one of the formats of
 * reference/host/compression.h: the CUDA twin of reference/host/format.h. Each format is a table of
 * functions in a file of its own; what a table leaves NULL is as for the exact cache.
 *
 * What is launched between begin and finish may be captured in a graph and may be run twice with
 * the same inputs (a new shape is run once untimed), so it changes nothing that it reads again.
 * What follows a prompt belongs into finish, which is timed by itself.
 */
#ifndef KV_REFERENCE_CUDA_FORMAT_H
#define KV_REFERENCE_CUDA_FORMAT_H

#include "reference/cuda/compressed.h"

/* KV_CUDA_FORMAT_ROWS: most sequences that decode together. */
enum { KV_CUDA_FORMAT_ROWS = 8192 };

typedef struct {
  gsize owner_bytes; /* of what is kept of a sequence, zeroed at first */
  /* The format's own state c->state; release() frees it, also if make() failed. */
  gboolean (*make)(KvCudaCompressed *c, GError **error);
  void (*release)(KvCudaCompressed *c);
  /* As in compressed.h; NULL: the model's own projections, and a block for each KV head. */
  const KvCudaProjections *(*projections)(const KvCudaCompressed *c, guint layer);
  guint (*parts)(const KvCudaCompressed *c);
  /* Before a pass over c->spans, of which the first `prompts` do not decode. */
  gboolean (*begin)(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error);
  /* Before and after a layer of the pass, on the host; who has them is not captured in a graph. */
  gboolean (*enter)(KvCudaCompressed *c, guint layer, GError **error);
  gboolean (*leave)(KvCudaCompressed *c, guint layer, GError **error);
  /* As in compressed.h. */
  gboolean (*look_ahead)(KvCudaCompressed *c, guint layer, const KvCudaInput *input,
                         GError **error);
  gboolean (*await)(KvCudaCompressed *c, guint layer, GError **error);
  gboolean (*unread)(KvCudaCompressed *c, double *tokens, GError **error);
  /* As in compressed.h; NULL: the engine's own blocks in bf16, and their kernels. */
  cudaError_t (*store)(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
  cudaError_t (*prefill)(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
  cudaError_t (*decode)(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
  /* The prompt of span `index`, not a decoding one, is done. */
  gboolean (*finish)(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                     GError **error);
  /* Release what `owner` holds; its own memory follows. */
  void (*forget)(KvCudaCompressed *c, gpointer owner);
} KvCudaFormat;

extern const KvCudaFormat kv_cuda_format_fp8, kv_cuda_format_kivi, kv_cuda_format_snapkv,
    kv_cuda_format_quest, kv_cuda_format_pyramidkv, kv_cuda_format_h2o, kv_cuda_format_palu,
    kv_cuda_format_minicache, kv_cuda_format_flexgen, kv_cuda_format_infinigen;

/* Blocks of bf16 keys and values beside the engine's: of prompts under way, or one layer's context
 * widened. Every layer has a pool of its own, or all of them the same one. */
typedef struct {
  KvCudaPages *layers;
  guint blocks; /* of a pool */
  gboolean one_pool;
  /* Of the pass's prompts: the starts of their tables, then these, then what a format adds. */
  GArray *words;   /* of guint32 */
  guint32 *device; /* the same */
  gsize room;      /* words of `device` */
  guint n_starts;
} KvCudaWorkspace;

struct KvCudaCompressed {
  KvCudaDevice *device;
  const KvCudaWeights *weights;
  KvCudaCache *cache;
  const KvHostCompression *settings;
  const KvCudaFormat *format;
  gpointer state;          /* the format's */
  GHashTable *owners;      /* of owner_bytes each, by guint64 */
  const KvHostSpan *spans; /* of the pass under way */
  guint n_spans;
  void *scratch; /* of finish(), grown by kv_cuda_format_scratch() */
  gsize scratch_bytes;
  gboolean warm; /* some prompt was finished: its kernels are loaded */
};

/* What is kept of a sequence, made if it is new; and without making it, NULL if there is none. */
gpointer kv_cuda_format_owner(KvCudaCompressed *c, guint64 owner);
gpointer kv_cuda_format_find(const KvCudaCompressed *c, guint64 owner);

/* `*memory` (a pointer to device memory) of `old` bytes becomes one of `bytes`, with what was in
 * it. */
gboolean kv_cuda_format_grow(KvCudaCompressed *c, void *memory, gsize old, gsize bytes,
                             const char *what, GError **error);
gboolean kv_cuda_format_scratch(KvCudaCompressed *c, gsize bytes, const char *what, GError **error);

/* What follows a prompt takes several layers in a launch. So many at most, if each needs `bytes` of
 * the scratch; and of the layers before `end`, up to `most` that are of the same shape as the
 * last of them. */
guint kv_cuda_format_together(const KvCudaCompressed *c, gsize bytes);
guint kv_cuda_format_alike(const KvCudaCompressed *c, guint end, guint most);
/* Gather the kept tokens and scatter them; if `dry`, so that nothing changes. */
cudaError_t kv_cuda_format_bring(KvCudaCompressed *c, const KvCudaCut *cut, const guint32 *kept,
                                 KvBf16 *rows, gboolean dry);

/* Blocks that a span's table covers. */
guint kv_cuda_format_blocks(const KvCudaCompressed *c, const KvHostSpan *span);
/* The tables of a pass's decoding rows. */
KvCudaTables kv_cuda_format_decode_tables(const KvCudaRows *rows);
/* Where the decoding rows' attention goes, and their queries. */
KvBf16 *kv_cuda_format_decode_out(const KvCudaRows *rows);
const KvBf16 *kv_cuda_format_decode_queries(const KvCudaRows *rows);
/* The exact cache's kernels over the engine's blocks. */
cudaError_t kv_cuda_format_store_exact(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
cudaError_t kv_cuda_format_prefill_exact(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);
cudaError_t kv_cuda_format_decode_exact(KvCudaCompressed *c, guint layer, const KvCudaRows *rows);

void kv_cuda_workspace_init(KvCudaWorkspace *w, const KvCudaCompressed *c, gboolean one_pool);
void kv_cuda_workspace_clear(KvCudaWorkspace *w, guint n_layers);
/* At least so many blocks; what is in a pool stays, unless it is the one of all layers. */
gboolean kv_cuda_workspace_grow(KvCudaWorkspace *w, KvCudaCompressed *c, guint blocks,
                                GError **error);
/* Upload the words. */
gboolean kv_cuda_workspace_upload(KvCudaWorkspace *w, KvCudaCompressed *c, GError **error);
KvCudaTables kv_cuda_workspace_tables(const KvCudaWorkspace *w);
/* One layer's context of all prompts side by side in one pool: fill the tables, append the engine's
 * blocks that block i of the pool is made from, and upload; *n blocks. They stand at
 * kv_cuda_workspace_sources(). */
gboolean kv_cuda_workspace_widen(KvCudaWorkspace *w, KvCudaCompressed *c, guint prompts, guint *n,
                                 GError **error);
const guint32 *kv_cuda_workspace_sources(const KvCudaWorkspace *w, guint n);
/* Prefill attention over the workspace's blocks of the layer. */
cudaError_t kv_cuda_workspace_prefill(const KvCudaWorkspace *w, KvCudaCompressed *c, guint layer,
                                      const KvCudaRows *rows);

#endif
