/* The weights of a small transformer, drawn from a seed.
 *
 * The same model and seed give the same weights on every machine: each tensor is its own stream of
 * uniform numbers, no library function is involved. The scale of the matrices makes attention sharp
 * enough that the argmax depends on the whole context; a test holds tiny models to that.
 *
 * What KvModel does not say is chosen so: gated MLPs use SiLU, others ReLU; models with LayerNorm
 * have biases in their MLP, and `attention.bias` means all four projections; a router's choice is
 * the greatest shares, made to sum to one; layers stand in the order of their groups.
 */
#ifndef KV_REFERENCE_HOST_WEIGHTS_H
#define KV_REFERENCE_HOST_WEIGHTS_H

#include <glib.h>

#include "models/llm/llm.h"
#include "reference/host/kernels.h"

/* A recurrent layer's: I inner, N state_dim, W conv_width, R dt_rank of the layer. */
typedef struct {
  float *in, *in_bias;     /* [D][2I], [2I]: to the branch that is scanned, then to its gate */
  float *conv, *conv_bias; /* [I][W], oldest input first; [I] */
  float *x;                /* [I][R + 2N]: to the step size, the input's and the output's matrix */
  float *dt, *dt_bias;     /* [R][I], [I] */
  float *decay;            /* [I][N]: logarithms of rates */
  float *skip;             /* [I] */
  float *out, *out_bias;   /* [I][D], [D] */
} KvHostMixer;

/* NULL where the layer has no such tensor. D hidden, H, Hkv, d of the layer, E intermediate. */
typedef struct {
  KvAttention attention;
  guint intermediate;
  gboolean gated;
  float *attention_norm, *attention_norm_bias; /* [D] */
  float *query, *key, *value;                  /* [D][H d], [D][Hkv d], [D][Hkv d] */
  float *query_bias, *key_bias, *value_bias;   /* [H d], [Hkv d], [Hkv d] */
  float *query_norm, *key_norm;                /* [d] */
  float *output, *output_bias;                 /* [H d][D], [D] */
  float *mlp_norm, *mlp_norm_bias;             /* [D] */
  float *gate, *up, *down;                     /* [D][E], [D][E], [E][D] */
  float *up_bias, *down_bias;                  /* [E], [D] */
  KvHostMixer mixer;                           /* of a recurrent layer, whose norm is attention's */
  /* Latent attention: queries through their own latent [Rq], if it has a rank, by query_down
     [D][Rq] and query_up [Rq][H d]; latent and rotated key; all heads' keys and values of it. */
  float *query_down, *query_down_norm, *query_up;
  float *latent, *latent_norm, *latent_up; /* [D][rank + rope], [rank], [rank][H (nope + value)] */
  /* Experts instead of the dense MLP, X of them, and one of width S that every token goes through.
   */
  KvMlp mlp;
  float *router;                                /* [D][X] */
  float *expert_gate, *expert_up, *expert_down; /* [X][D][E], [X][D][E], [X][E][D] */
  float *shared_gate, *shared_up, *shared_down; /* [D][S], [D][S], [S][D] */
} KvHostLayer;

typedef struct {
  guint hidden, vocab, max_positions; /* max_positions: 0 if positions are rotary */
  KvNorm norm;
  float epsilon; /* of the norms */
  KvHostRotary rotary;
  KvHostRouting routing;
  guint n_layers;
  KvHostLayer *layers;
  float *embedding;                    /* [V][D] */
  float *positions;                    /* [max_positions][D] */
  float *final_norm, *final_norm_bias; /* [D] */
  float *head;                         /* [D][V]; of a tied model the transposed embedding */
  guint64 n_parameters;                /* a tied head counts once */
  GPtrArray *tensors;                  /* owns every array above */
} KvHostWeights;

/* Below the variance of any live activation; keeps a row of zeros finite. */
#define KV_HOST_EPSILON 1e-5f

/* Parameters above which a model is refused: 0.8 GB of fp32. */
#define KV_HOST_MAX_PARAMETERS 200000000

/* NULL with *error set if the model is too big or has layers that this executor does not compute.
 * Nothing of `model` is kept. */
KvHostWeights *kv_host_weights_new(const KvModel *model, guint64 seed, GError **error);
/* Why no reference executor computes this model; NULL if they do. */
const char *kv_host_weights_obstacle(const KvModel *model);
/* Whether its layers keep a state in the place of keys and values: all of them do, or none. */
gboolean kv_host_is_recurrent(const KvModel *model);
/* Layers and sizes without any tensor, for who fills them; the same errors. */
KvHostWeights *kv_host_weights_new_empty(const KvModel *model, GError **error);
/* The shape of a latent layer, and the scale of its scores. */
KvHostLatent kv_host_latent_of(const KvAttention *attention, const KvHostRotary *rotary);
/* A new head[D][V] that is the transposed embedding[V][D]; owned by the weights. */
float *kv_host_weights_tied_head(KvHostWeights *weights);
void kv_host_weights_free(KvHostWeights *weights);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvHostWeights, kv_host_weights_free)

/* x[D] = the embedding of `token` at `position`. */
void kv_host_weights_embed(const KvHostWeights *weights, float *x, guint32 token, guint32 position);

#endif
