/* Every tensor of a transformer, in one table: what checkpoints call it, where the host's weights
 * keep it, and its shape. Both executors and every source of weights walk this table. */
#ifndef KV_REFERENCE_HOST_TENSORS_H
#define KV_REFERENCE_HOST_TENSORS_H

#include <glib.h>

#include "reference/host/checkpoint.h"
#include "reference/host/weights.h"

typedef enum {
  KV_TENSOR_EMBEDDING,
  KV_TENSOR_POSITIONS,
  KV_TENSOR_FINAL_NORM,
  KV_TENSOR_FINAL_NORM_BIAS,
  KV_TENSOR_HEAD,
  KV_TENSOR_ATTENTION_NORM, /* from here on of a layer */
  KV_TENSOR_ATTENTION_NORM_BIAS,
  KV_TENSOR_QUERY,
  KV_TENSOR_KEY,
  KV_TENSOR_VALUE,
  KV_TENSOR_QUERY_BIAS,
  KV_TENSOR_KEY_BIAS,
  KV_TENSOR_VALUE_BIAS,
  KV_TENSOR_QUERY_NORM,
  KV_TENSOR_KEY_NORM,
  KV_TENSOR_OUTPUT,
  KV_TENSOR_OUTPUT_BIAS,
  KV_TENSOR_MLP_NORM,
  KV_TENSOR_MLP_NORM_BIAS,
  KV_TENSOR_GATE,
  KV_TENSOR_UP,
  KV_TENSOR_UP_BIAS,
  KV_TENSOR_DOWN,
  KV_TENSOR_DOWN_BIAS,
  KV_TENSOR_MIXER_IN, /* from here on of a recurrent layer, which has its norm beside them alone */
  KV_TENSOR_MIXER_IN_BIAS,
  KV_TENSOR_CONV,
  KV_TENSOR_CONV_BIAS,
  KV_TENSOR_MIXER_X,
  KV_TENSOR_MIXER_DT,
  KV_TENSOR_MIXER_DT_BIAS,
  KV_TENSOR_DECAY,
  KV_TENSOR_SKIP,
  KV_TENSOR_MIXER_OUT,
  KV_TENSOR_MIXER_OUT_BIAS,
  KV_TENSOR_QUERY_DOWN, /* of latent attention */
  KV_TENSOR_QUERY_DOWN_NORM,
  KV_TENSOR_QUERY_UP,
  KV_TENSOR_LATENT,
  KV_TENSOR_LATENT_NORM,
  KV_TENSOR_LATENT_UP,
  KV_TENSOR_ROUTER, /* of a mixture of experts */
  KV_TENSOR_EXPERT_GATE,
  KV_TENSOR_EXPERT_UP,
  KV_TENSOR_EXPERT_DOWN,
  KV_TENSOR_SHARED_GATE,
  KV_TENSOR_SHARED_UP,
  KV_TENSOR_SHARED_DOWN,
  KV_N_TENSORS,
} KvTensorId;

typedef enum {
  KV_TENSOR_MATRIX, /* [out][in] in a checkpoint, [in][out] on the host */
  KV_TENSOR_TABLE,  /* a row a token or position, the same in both */
  KV_TENSOR_GAIN,
  KV_TENSOR_BIAS,
  KV_TENSOR_STEP, /* a bias of step sizes before their softplus: small steps */
  KV_TENSOR_RATE, /* a table of logarithms of rates of decay */
} KvTensorKind;

/* rows and columns as in a checkpoint. */
typedef struct {
  KvTensorKind kind;
  guint64 rows, columns;
  guint64 copies;   /* experts, each with such a tensor of its own; else 1 */
  gboolean present; /* the model has it; a bias that the catalogue leaves open may still be there */
  gboolean open;    /* a checkpoint decides: attention biases and norms */
} KvTensorShape;

/* Of layer `layer` of the model (of all, for what is not a layer's). */
KvTensorShape kv_tensor_shape(const KvModel *model, const KvAttention *attention, const KvMlp *mlp,
                              KvTensorId id);

/* Its name in a checkpoint of the Llama, the OPT or the Mamba family; NULL if it has none. Free it.
 */
char *kv_tensor_name(const KvModel *model, KvTensorId id, guint layer);
/* The same of an expert's copy, under the name that the checkpoint has: Mixtral calls its own
 * otherwise. */
char *kv_tensor_copy_name(const KvModel *model, const KvCheckpoint *checkpoint, KvTensorId id,
                          guint layer, guint copy);

/* Whether the checkpoint's routing can be that of the model's experts. */
gboolean kv_tensor_check_routing(const KvModel *model, const KvHostRouting *routing,
                                 GError **error);

/* Where the host's weights keep it. */
float **kv_tensor_slot(KvHostWeights *weights, KvTensorId id, guint layer);

/* Rows of OPT's position table before that of position 0. */
guint kv_tensor_skipped_rows(const KvModel *model, KvTensorId id);

/* fp32 weights of `model` from its checkpoint. NULL with *error set if the model is too big, has
 * layers that are not computed, or the checkpoint is not of that model. */
KvHostWeights *kv_host_weights_load(const KvModel *model, const char *folder, GError **error);

#endif
