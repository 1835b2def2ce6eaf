/* Architectures of large language models, as far as their cost depends on them.
 *
 * A model is a stack of layer groups; the layers of a group are identical. Most models have one
 * group; Gemma 3 has two (sliding and full attention), DeepSeek-V3 two (dense and
 * mixture-of-experts MLPs). The order of layers inside the stack does not change any cost and is
 * not kept.
 *
 * Symbols of the formulas everywhere: L layers, D hidden size, H query heads, Hkv KV heads, d head
 * size, E intermediate size, V vocabulary, e bytes per element, n context length.
 *
 * Sources: a catalogue entry names where its numbers were read; a Hugging Face config.json is its
 * own.
 */
#ifndef KV_MODELS_LLM_LLM_H
#define KV_MODELS_LLM_LLM_H

#include <glib.h>
#include <jansson.h>

#include "sim/base/dtype.h"

typedef enum {
  KV_ATTENTION_FULL,    /* every earlier token */
  KV_ATTENTION_SLIDING, /* the last window_tokens */
  KV_ATTENTION_LATENT,  /* multi-head latent attention: one vector of kv_lora_rank + rope_head_dim a
                           token */
  KV_ATTENTION_NONE,    /* no attention: a recurrent layer of state_elements */
} KvAttentionKind;

extern const char *const kv_attention_kind_names[]; /* "full", "sliding", "latent", "none" */

typedef struct {
  KvAttentionKind kind;
  guint n_heads, n_kv_heads;      /* H, Hkv; Hkv divides H */
  guint head_dim, value_head_dim; /* d of queries and keys; d of values (equal but for latent) */
  guint window_tokens;            /* sliding only */
  guint q_lora_rank;              /* latent: 0 if queries are projected directly */
  guint kv_lora_rank, rope_head_dim;
  guint64 state_elements; /* recurrent: elements of state a sequence and layer */
  guint64
      mixer_parameters; /* recurrent: weights of the layer beside its MLP; attention: those
                           beside its usual projections, which every token is multiplied by too */
  guint inner, state_dim, conv_width, dt_rank; /* recurrent, Mamba: expand D channels; N of each; of
                                                  the convolution; of the step size's projection.
                                                  0: the recurrence is another */
  gboolean qk_norm, bias;
  gboolean borrows_cache; /* no K and V of its own: it reads those of a lending layer */
} KvAttention;

typedef struct {
  guint64 intermediate; /* E of the dense MLP, or 0 if the layer has only experts */
  gboolean gated;       /* three matrices (gate, up, down) instead of two */
  guint n_experts, n_experts_per_token;
  guint64 expert_intermediate,
      shared_intermediate; /* of one routed expert; of all shared ones together */
} KvMlp;

typedef struct {
  guint count; /* layers in the group */
  KvAttention attention;
  KvMlp mlp;
  double extra_prefill_passes; /* over each prompt token, beyond the one; -1: none at all, only the
                                  prompt's last token goes through these layers */
  guint stride_tokens; /* the layers run once in so many tokens, which they see as one; 0 and 1: for
                          each */
} KvLayerGroup;

typedef enum { KV_NORM_RMS, KV_NORM_LAYER } KvNorm;

typedef struct {
  char *id, *name, *source;
  guint hidden, vocab, max_context_tokens;
  gboolean tied_embeddings, learned_positions;
  KvNorm norm;
  guint
      embedding_dim; /* of the token tables, if narrower than hidden (OPT-350M); else equal to it */
  KvDtype weight_dtype; /* as published */
  KvDtype
      expert_dtype; /* of the routed experts, where the checkpoint stores them smaller (gpt-oss) */
  guint64 published_parameters; /* the count its authors give; 0 if unknown */
  guint n_groups;
  KvLayerGroup *groups;
} KvModel;

/* The catalogue's model `name`, or the one in the JSON file `name` (our own form or a Hugging Face
 * config.json) if it names a file that exists or ends in .json; a folder stands for the config.json
 * in it. Free with kv_model_free(). */
KvModel *kv_model_load(const char *name, GError **error);

/* The model in `length` bytes of JSON text, either form; errors call the text `name`. */
KvModel *kv_model_parse(const char *name, const char *text, gsize length, GError **error);

KvModel *kv_model_copy(const KvModel *model);
void kv_model_free(KvModel *model);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvModel, kv_model_free)

/* Ids of every catalogue model, sorted, NULL-terminated; borrowed. */
const char *const *kv_model_ids(void);

/* The model in our own JSON form; a new reference. kv_model_load() reads it back. */
json_t *kv_model_to_json(const KvModel *model);

guint kv_model_layers(const KvModel *model);

/* Make the layer's recurrence that of a Mamba block (Gu and Dao, 2023, section 3.4) of these sizes,
 * with biases of its outer projections if a->bias; its other fields follow from the sizes. */
void kv_attention_set_mamba(KvAttention *attention, guint hidden, guint inner, guint state_dim,
                            guint conv_width, guint dt_rank);

/* Make the last `layers` layers of group `group` a group of their own, right after it and alike in
 * all, and return it (borrowed); 0 < layers < the group's count. Moves the model's groups, which it
 * must own. */
KvLayerGroup *kv_model_split_group(KvModel *model, guint group, guint layers);

/* Parameters: all of them, and those that one token's forward pass uses (experts: the routed ones).
 */
guint64 kv_model_parameters(const KvModel *model);
guint64 kv_model_active_parameters(const KvModel *model);

/* Bytes of all weights as published: experts at expert_dtype, the rest at weight_dtype, without
 * scales. */
double kv_model_weight_bytes(const KvModel *model);

/* kappa: bytes that the unchanged cache of one token takes over all layers, at `element_bytes` an
 * element (sliding windows counted as if unlimited; recurrent layers not at all). */
double kv_model_cache_bytes_per_token(const KvModel *model, double element_bytes);

#endif
