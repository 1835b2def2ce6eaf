/* The two written forms of a model: our own JSON and Hugging Face's config.json. Internal to
 * models/llm/.
 *
 * Both readers take a parsed document, complain through it, and return a model that the caller
 * checks with kv_json_finish() and frees; the model is complete enough to be freed whatever was
 * wrong. */
#ifndef KV_MODELS_LLM_DOCUMENT_H
#define KV_MODELS_LLM_DOCUMENT_H

#include "models/llm/llm.h"
#include "sim/base/json.h"

/* Limits that keep every product of a model's numbers finite and its parameter count below 2^53. */
enum {
  KV_MODEL_MOST_LAYERS = 10000,
  KV_MODEL_MOST_HEADS = 65536,
  KV_MODEL_MOST_HIDDEN = 1 << 20,
  KV_MODEL_MOST_EXPERTS = 65536,
  KV_MODEL_MOST_WIDTH = 1 << 24, /* intermediate sizes and the vocabulary */
  KV_MODEL_MOST_TOKENS = 1 << 30,
  KV_MODEL_MOST_STATE = 1024, /* of a channel of a recurrent layer */
  KV_MODEL_MOST_CONVOLUTION = 64,
};

KvModel *kv_model_read(KvJson *json, json_t *object);
KvModel *kv_model_read_huggingface(KvJson *json, const char *id);

/* Append `count` layers like `layer`: to the group of equal layers if there is one. */
void kv_model_add_layers(KvModel *model, const KvLayerGroup *layer, guint count);

/* Complain, at `object`, about a model that no computer holds. */
void kv_model_check_size(KvJson *json, json_t *object, const KvModel *model);

#endif
