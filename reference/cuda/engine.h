/* What an engine holds: for forward.c and the parts of it that stand in files of their own. */
#ifndef KV_REFERENCE_CUDA_ENGINE_H
#define KV_REFERENCE_CUDA_ENGINE_H

#include "reference/cuda/forward.h"
#include "reference/cuda/sharing.h"

/* Cosines and sines for heads of one size. */
typedef struct {
  guint head_dim;
  float2 *angles; /* [max_positions][d/2], device */
} KvCudaAngles;

/* Device memory that a pass works in. */
typedef struct {
  guint rows, samples; /* what there is room for */
  guint shared_parts;
  gsize words, scratch_bytes;
  float *x, *picked;                          /* [R][D], [samples][D] */
  KvBf16 *normed, *qkv, *attended, *up, *act; /* [R][...] */
  float *logits;                              /* [samples][V] */
  guint32 *sampled, *inputs, *counters;
  void *scratch; /* of decode attention */
  void *shared;  /* of what sequences share */
  char *mixer;   /* of recurrent layers, kv_cuda_pass_mixer_bytes() a row */
  void *work;    /* of latent attention, and of experts */
} KvCudaBuffers;

struct KvCudaEngine {
  KvCudaDevice *device;
  const KvCudaWeights *weights;
  KvCudaCache *cache;
  KvCudaCompressed *compressed; /* NULL: the cache is bf16 and whole */
  KvCudaSharing *sharing;       /* NULL: every sequence reads for itself */
  KvCudaGemm *gemm;
  GArray *angles; /* of KvCudaAngles */
  guint max_positions, graph_rows;
  gboolean all_logits, recurrent;
  gboolean apart;     /* some product is of decoding rows alone */
  gsize widest_mixer; /* bytes of a row */
  gsize widest_qkv, widest_heads, widest_up, widest_act, most_heads, widest_head;
  KvCudaBuffers buffers;
  guint32 *staged;                    /* pinned, as long as buffers.inputs */
  guint32 *tokens;                    /* pinned, [buffers.samples] */
  GHashTable *graphs;                 /* of cudaGraphExec_t, by graph_key() */
  GHashTable *warm;                   /* warm_key() of what was launched before */
  GArray *events;                     /* of cudaEvent_t: the laps of one pass */
  GArray *laps;                       /* of KvComponent: what lay before event i + 1 */
  gboolean timing;                    /* laps are taken */
  guint divided_every, until_divided; /* of steps that are launched kernel by kernel */
};

#endif
