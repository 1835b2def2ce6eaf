/* The weights of a transformer on the GPU, in bf16: from a checkpoint, or from a seed.
 *
 * Matrices stand as in checkpoints, [out][in]. What is read together stands together: queries, keys
 * and values are one matrix, gate and up another. A model that the host executor can hold
 * (KV_HOST_MAX_PARAMETERS) gets from a seed the very numbers that the host draws, rounded to bf16;
 * a larger one is drawn on the GPU, with the same spread.
 */
#ifndef KV_REFERENCE_CUDA_WEIGHTS_H
#define KV_REFERENCE_CUDA_WEIGHTS_H

#include "models/llm/llm.h"
#include "reference/cuda/device.h"
#include "reference/cuda/kernels.h"
#include "reference/cuda/streamed_weights.h"
#include "reference/host/kernels.h"

/* A recurrent layer's: I inner, N state_dim, W conv_width, R dt_rank of the layer. */
typedef struct {
  KvBf16 *in, *in_bias;     /* [2I][D], [2I]: the branch that is scanned, then its gate */
  KvBf16 *conv, *conv_bias; /* [I][W], [I] */
  KvBf16 *x;                /* [R + 2N][I] */
  KvBf16 *dt, *dt_bias;     /* [I][R], [I] */
  KvBf16 *decay, *skip;     /* [I][N], [I] */
  KvBf16 *out, *out_bias;   /* [D][I], [D] */
} KvCudaMixer;

/* NULL where the layer has no such tensor. D hidden, H, Hkv, d of the layer, E intermediate. */
typedef struct {
  KvAttention attention;
  guint intermediate;
  gboolean gated;
  KvBf16 *attention_norm, *attention_norm_bias; /* [D] */
  KvBf16 *qkv, *qkv_bias;                       /* [(H + 2 Hkv) d][D], [(H + 2 Hkv) d] */
  KvBf16 *query_norm, *key_norm;                /* [d] */
  KvBf16 *output, *output_bias;                 /* [D][H d], [D] */
  KvBf16 *mlp_norm, *mlp_norm_bias;             /* [D] */
  KvBf16 *up, *up_bias;     /* [2E][D] of a gated MLP, gate first; else [E][D] */
  KvBf16 *down, *down_bias; /* [D][E], [D] */
  KvCudaMixer mixer;        /* of a recurrent layer, whose norm is attention's */
  /* Latent attention: `qkv` is the queries [H d][D], or their way down [Rq][D], and then the latent
     [576][D]; `output` is [D][H value]. Of the up-projection, each head's part of the keys turned.
   */
  KvBf16 *query_down_norm, *query_up; /* [Rq], [H d][Rq] */
  KvBf16 *latent_norm;                /* [512] */
  KvBf16 *key_up, *value_up;          /* [H][512][nope], [H][value][512] */
  /* X experts of width E instead of the dense MLP; the shared one's are `up` and `down`. */
  KvMlp mlp;
  KvBf16 *router;                  /* [X][D] */
  KvBf16 *expert_up, *expert_down; /* [X][2E][D], gate first; [X][D][E] */
} KvCudaLayer;

typedef struct {
  guint hidden, vocab, max_positions; /* max_positions: 0 if positions are rotary */
  KvNorm norm;
  float epsilon;
  KvHostRotary rotary;
  KvHostRouting routing;
  guint n_layers;
  KvCudaLayer *layers;
  KvBf16 *embedding, *positions;        /* [V][D], [max_positions][D] */
  KvBf16 *final_norm, *final_norm_bias; /* [D] */
  KvBf16 *head;                         /* [V][D]; a tied model's embedding */
  double bytes;            /* read by a pass: all but an untied embedding table, and experts */
  double layer_parameters; /* of the matrices of all layers, but experts */
  GPtrArray *memory;       /* owns every array above */
  KvCudaStreamedWeights *streamed; /* owns matrices that come a layer at a time; NULL: none do */
} KvCudaWeights;

/* From `folder`, or from `seed` if it is NULL. NULL with *error set if the model is not one that
 * the kernels compute, the GPU's memory is short, or the checkpoint is not of that model. */
KvCudaWeights *kv_cuda_weights_new(KvCudaDevice *device, const KvModel *model, const char *folder,
                                   guint64 seed, GError **error);
/* The same with only that share of the layers' matrices on the GPU, 0 to 1 (streamed_weights.h). */
KvCudaWeights *kv_cuda_weights_new_streamed(KvCudaDevice *device, const KvModel *model,
                                            const char *folder, guint64 seed, double share,
                                            GError **error);
void kv_cuda_weights_free(KvCudaWeights *weights);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCudaWeights, kv_cuda_weights_free)

#endif
