/* Reading a Hugging Face config.json: the fields that size a decoder, under the names that the
 * families use. */
#include <math.h>
#include <string.h>

#include "models/llm/document.h"

typedef enum {
  WINDOW_NEVER,
  WINDOW_ALWAYS,
  WINDOW_ALTERNATE,
  WINDOW_PATTERN,
  WINDOW_IF_USED
} Window;

/* What a model_type implies and its config.json does not say. */
typedef struct {
  const char *model_type;
  gboolean gated, layer_norm, bias, tied, learned_positions, qk_norm;
  Window window;
  /* Values that the class supplies where a checkpoint leaves them out; 0 if it never does. */
  guint vocab, max_context_tokens, n_heads, n_kv_heads, head_dim;
} Family;

static const Family families[] = {
    {.model_type = "llama", .gated = TRUE},
    {.model_type = "mistral", .gated = TRUE, .window = WINDOW_ALWAYS},
    {.model_type = "ministral", .gated = TRUE, .window = WINDOW_ALWAYS},
    {.model_type = "mixtral", .gated = TRUE, .window = WINDOW_ALWAYS},
    {.model_type = "qwen2", .gated = TRUE, .bias = TRUE, .window = WINDOW_IF_USED},
    {.model_type = "qwen2_moe", .gated = TRUE, .bias = TRUE, .window = WINDOW_IF_USED},
    {.model_type = "qwen3", .gated = TRUE, .qk_norm = TRUE, .window = WINDOW_IF_USED},
    {.model_type = "qwen3_moe", .gated = TRUE, .qk_norm = TRUE, .window = WINDOW_IF_USED},
    {.model_type = "gemma", .gated = TRUE, .tied = TRUE},
    {.model_type = "gemma2", .gated = TRUE, .tied = TRUE, .window = WINDOW_ALTERNATE},
    {.model_type = "gemma3",
     .gated = TRUE,
     .tied = TRUE,
     .qk_norm = TRUE,
     .window = WINDOW_PATTERN,
     .vocab = 262208,
     .max_context_tokens = 131072,
     .n_heads = 8,
     .n_kv_heads = 4,
     .head_dim = 256},
    {.model_type = "gemma3_text",
     .gated = TRUE,
     .tied = TRUE,
     .qk_norm = TRUE,
     .window = WINDOW_PATTERN,
     .vocab = 262208,
     .max_context_tokens = 131072,
     .n_heads = 8,
     .n_kv_heads = 4,
     .head_dim = 256},
    {.model_type = "phi3", .gated = TRUE, .window = WINDOW_ALWAYS},
    {.model_type = "phi", .layer_norm = TRUE, .bias = TRUE},
    {.model_type = "opt",
     .layer_norm = TRUE,
     .bias = TRUE,
     .tied = TRUE,
     .learned_positions = TRUE},
    {.model_type = "gpt2",
     .layer_norm = TRUE,
     .bias = TRUE,
     .tied = TRUE,
     .learned_positions = TRUE},
    {.model_type = "gpt_neox", .layer_norm = TRUE, .bias = TRUE},
    {.model_type = "gptj", .layer_norm = TRUE},
    {.model_type = "bloom", .layer_norm = TRUE, .bias = TRUE, .tied = TRUE},
    {.model_type = "mpt", .layer_norm = TRUE, .tied = TRUE},
    {.model_type = "falcon", .layer_norm = TRUE, .tied = TRUE},
    {.model_type = "deepseek_v2", .gated = TRUE},
    {.model_type = "deepseek_v3", .gated = TRUE},
    {.model_type = "gpt_oss", .gated = TRUE, .bias = TRUE, .window = WINDOW_ALTERNATE},
};

/* A model_type that is not in the table is read as a Llama, if it has a Llama's fields. */
static const Family llama_like = {.model_type = NULL, .gated = TRUE};

static const Family *family_of(KvJson *json, json_t *config) {
  const char *type = kv_json_string(json, config, "model_type", "", FALSE);
  for (guint i = 0; i < G_N_ELEMENTS(families); i++)
    if (strcmp(families[i].model_type, type) == 0)
      return &families[i];
  /* Layers that keep a state, or that the fields below do not describe, would be priced as
   * something else. */
  static const char *const other[] = {"mamba2", "rwkv", "jamba", "falcon_mamba",
                                      "t5",     "bert", NULL};
  if (g_strv_contains(other, type))
    kv_json_fail(json, config, "model_type",
                 "'model_type' is '%s', expected a decoder with attention in every layer", type);
  static const char *const unlike[] = {
      "ssm_state_size",     "state_size",        "mamba_d_state", "linear_num_key_heads",
      "linear_attn_config", "layers_block_type", "index_topk",    NULL};
  for (guint i = 0; unlike[i]; i++)
    if (kv_json_has(config, unlike[i]))
      kv_json_fail(
          json, config, unlike[i],
          "'%s' belongs to recurrent or sparse layers, expected a decoder with plain attention "
          "in every layer",
          unlike[i]);
  return &llama_like;
}

/* The first of the `keys` (NULL-terminated) that is there and not null; else NULL. */
static const char *present(json_t *config, const char *const *keys) {
  for (; *keys; keys++) {
    json_t *value = json_object_get(config, *keys);
    if (value && !json_is_null(value))
      return *keys;
  }
  return NULL;
}

static guint64 count(KvJson *json, json_t *config, const char *const *keys, double fallback,
                     gint64 min, gint64 max) {
  const char *key = present(config, keys);
  if (!key && fallback != KV_JSON_REQUIRED)
    return (guint64)fallback;
  if (!key && kv_json_has(config, keys[0])) {
    kv_json_fail(json, config, keys[0], "'%s' is null, expected a whole number", keys[0]);
    return (guint64)min;
  }
  return (guint64)kv_json_integer(json, config, key ? key : keys[0], fallback, min, max);
}

#define COUNT(fallback, min, max, ...)                                                             \
  count(json, config, (const char *const[]){__VA_ARGS__, NULL}, fallback, min, max)

static gboolean flag(KvJson *json, json_t *config, const char *key, gboolean fallback) {
  return present(config, (const char *const[]){key, NULL})
             ? kv_json_boolean(json, config, key, fallback)
             : fallback;
}

/* The class's value, or none. */
static double supplied(guint value) {
  return value ? value : KV_JSON_REQUIRED;
}

static void read_heads(KvJson *json, json_t *config, const Family *family, guint hidden,
                       KvAttention *a) {
  a->n_heads = (guint)COUNT(supplied(family->n_heads), 1, KV_MODEL_MOST_HEADS,
                            "num_attention_heads", "n_head", "n_heads", "num_heads");
  double kv_heads = family->n_kv_heads ? family->n_kv_heads : a->n_heads;
  /* Falcon: one KV head unless the new decoder architecture says how many. */
  gboolean many = flag(json, config, "new_decoder_architecture", FALSE);
  if (!many && flag(json, config, "multi_query", FALSE))
    a->n_kv_heads = 1;
  else
    a->n_kv_heads = (guint)COUNT(kv_heads, 1, KV_MODEL_MOST_HEADS, "num_key_value_heads",
                                 "num_kv_heads", "n_head_kv");
  if (a->n_heads % a->n_kv_heads != 0) {
    const char *const keys[] = {"num_key_value_heads", "num_kv_heads", "n_head_kv", NULL};
    const char *key = present(config, keys);
    kv_json_fail(json, config, key ? key : keys[0],
                 "'%s' is %u, expected a divisor of the %u attention heads", key ? key : keys[0],
                 a->n_kv_heads, a->n_heads);
  }
  a->head_dim = (guint)COUNT(family->head_dim, 1, KV_MODEL_MOST_HIDDEN, "head_dim");
  if (!a->head_dim) {
    a->head_dim = MAX(1, hidden / a->n_heads);
    if (hidden % a->n_heads != 0)
      kv_json_fail(
          json, config, NULL,
          "the hidden size %u is no multiple of the %u attention heads, expected 'head_dim'",
          hidden, a->n_heads);
  }
  a->value_head_dim = a->head_dim;
}

static void read_latent(KvJson *json, json_t *config, KvAttention *a) {
  a->kind = KV_ATTENTION_LATENT;
  a->n_heads = a->n_kv_heads =
      (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_HEADS, "num_attention_heads");
  a->kv_lora_rank = (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_HIDDEN, "kv_lora_rank");
  a->q_lora_rank = (guint)COUNT(0, 0, KV_MODEL_MOST_HIDDEN, "q_lora_rank");
  a->rope_head_dim = (guint)COUNT(KV_JSON_REQUIRED, 0, KV_MODEL_MOST_HIDDEN, "qk_rope_head_dim");
  a->head_dim = a->rope_head_dim +
                (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_HIDDEN, "qk_nope_head_dim");
  a->value_head_dim = (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_HIDDEN, "v_head_dim");
}

typedef struct {
  guint n_layers, window_tokens, pattern, first_sliding;
  Window rule;
  json_t *types; /* layer_types, or NULL */
} Windows;

static Windows read_windows(KvJson *json, json_t *config, const Family *family, guint n_layers) {
  Windows w = {.n_layers = n_layers, .rule = family->window};
  w.types =
      kv_json_has(config, "layer_types") && !json_is_null(json_object_get(config, "layer_types"))
          ? kv_json_array(json, config, "layer_types", FALSE)
          : NULL;
  w.window_tokens = (guint)COUNT(0, 0, KV_MODEL_MOST_TOKENS, "sliding_window");
  w.pattern = (guint)COUNT(6, 1, KV_MODEL_MOST_LAYERS, "sliding_window_pattern");
  if (w.types && json_array_size(w.types) != n_layers)
    kv_json_fail(json, config, "layer_types", "'layer_types' lists %zu layers, expected %u",
                 json_array_size(w.types), n_layers);
  if (w.rule == WINDOW_IF_USED) {
    w.first_sliding = (guint)COUNT(0, 0, KV_MODEL_MOST_LAYERS, "max_window_layers");
    if (!flag(json, config, "use_sliding_window", FALSE))
      w.window_tokens = 0;
  }
  if (!w.window_tokens && (w.rule == WINDOW_ALTERNATE || w.rule == WINDOW_PATTERN))
    kv_json_fail(json, config, "sliding_window",
                 "'sliding_window' is missing, expected the window of the sliding layers");
  return w;
}

static gboolean slides(KvJson *json, json_t *config, const Windows *w, guint layer) {
  if (w->types) {
    const char *type = json_string_value(json_array_get(w->types, layer));
    if (g_strcmp0(type, "sliding_attention") == 0) {
      if (!w->window_tokens)
        kv_json_fail(json, config, "sliding_window",
                     "'sliding_window' is missing, expected the window of layer %u", layer);
      return w->window_tokens > 0;
    }
    if (g_strcmp0(type, "full_attention") != 0)
      kv_json_fail(json, config, "layer_types",
                   "layer %u is '%.40s', expected full_attention or sliding_attention", layer,
                   type ? type : "not a string");
    return FALSE;
  }
  if (!w->window_tokens)
    return FALSE;
  switch (w->rule) {
  case WINDOW_NEVER:
    return FALSE;
  case WINDOW_ALWAYS:
    return TRUE;
  case WINDOW_ALTERNATE: /* the first, third, ... */
    return layer % 2 == 0;
  case WINDOW_PATTERN: /* all but every pattern-th */
    return (layer + 1) % w->pattern != 0;
  case WINDOW_IF_USED:
    return layer >= w->first_sliding;
  }
  return FALSE;
}

typedef struct {
  KvMlp dense, sparse;
  guint first_dense, step;
  json_t *dense_only; /* indices of dense layers, or NULL */
} Mlps;

static Mlps read_mlps(KvJson *json, json_t *config, const Family *family, guint hidden) {
  Mlps m = {.step = 1};
  m.dense.gated = m.sparse.gated = family->gated;
  m.sparse.n_experts = (guint)COUNT(0, 0, KV_MODEL_MOST_EXPERTS, "n_routed_experts",
                                    "num_local_experts", "num_experts");
  /* GPT-2, GPT-J, Falcon and BLOOM: four times the hidden size unless said otherwise. */
  static const char *const four_times[] = {"gpt2", "gptj", "falcon", "bloom", "mpt", NULL};
  gboolean may_default = family->model_type && g_strv_contains(four_times, family->model_type);
  double fallback = may_default ? 4.0 * hidden : KV_JSON_REQUIRED;
  const char *ratio = present(config, (const char *const[]){"expansion_ratio", NULL});
  if (ratio && may_default)
    fallback = floor(hidden * kv_json_number(json, config, ratio, 4, 0.01, 64));
  if (m.sparse.n_experts && present(config, (const char *const[]){"moe_intermediate_size", NULL}))
    fallback = 0; /* no layer need be dense */
  m.dense.intermediate = COUNT(fallback, 1, KV_MODEL_MOST_WIDTH, "intermediate_size", "ffn_dim",
                               "ffn_hidden_size", "n_inner");
  if (!m.sparse.n_experts)
    return m;
  m.sparse.n_experts_per_token = (guint)COUNT(KV_JSON_REQUIRED, 1, m.sparse.n_experts,
                                              "num_experts_per_tok", "num_experts_per_token");
  m.sparse.expert_intermediate =
      COUNT((double)m.dense.intermediate, 1, KV_MODEL_MOST_WIDTH, "moe_intermediate_size");
  m.sparse.shared_intermediate =
      COUNT(0, 0, KV_MODEL_MOST_WIDTH, "shared_expert_intermediate_size");
  guint64 n_shared = COUNT(0, 0, 1024, "n_shared_experts");
  if (n_shared)
    m.sparse.shared_intermediate = n_shared * m.sparse.expert_intermediate;
  if (m.sparse.shared_intermediate > KV_MODEL_MOST_WIDTH)
    kv_json_fail(json, config, "n_shared_experts",
                 "the shared experts are %" G_GUINT64_FORMAT " wide, expected at most %d",
                 m.sparse.shared_intermediate, KV_MODEL_MOST_WIDTH);
  m.first_dense = (guint)COUNT(0, 0, KV_MODEL_MOST_LAYERS, "first_k_dense_replace");
  m.step = (guint)COUNT(1, 1, KV_MODEL_MOST_LAYERS, "decoder_sparse_step", "moe_layer_freq");
  if (present(config, (const char *const[]){"mlp_only_layers", NULL}))
    m.dense_only = kv_json_array(json, config, "mlp_only_layers", FALSE);
  return m;
}

static gboolean is_sparse(const Mlps *m, const Family *family, guint layer) {
  if (!m->sparse.n_experts || layer < m->first_dense)
    return FALSE;
  gsize i;
  json_t *index;
  json_array_foreach(m->dense_only, i, index) {
    if (json_is_integer(index) && json_integer_value(index) == layer)
      return FALSE;
  }
  /* Qwen counts the layers of a step from one, DeepSeek from zero. */
  gboolean from_one = family->model_type && g_str_has_prefix(family->model_type, "qwen");
  return (layer + (from_one ? 1 : 0)) % m->step == 0;
}

static KvDtype read_dtype(KvJson *json, json_t *config) {
  static const struct {
    const char *name;
    KvDtype dtype;
  } dtypes[] = {
      {"bfloat16", KV_DTYPE_BF16},     {"float16", KV_DTYPE_FP16},    {"float32", KV_DTYPE_FP32},
      {"float8_e4m3fn", KV_DTYPE_FP8}, {"float8_e5m2", KV_DTYPE_FP8}, {"auto", KV_DTYPE_BF16},
  };
  const char *key = present(config, (const char *const[]){"torch_dtype", "dtype", NULL});
  if (!key)
    return KV_DTYPE_BF16;
  const char *name = kv_json_string(json, config, key, "", TRUE);
  for (guint i = 0; i < G_N_ELEMENTS(dtypes); i++)
    if (strcmp(dtypes[i].name, name) == 0)
      return dtypes[i].dtype;
  kv_json_fail(json, config, key,
               "'%s' is '%.40s', expected bfloat16, float16, float32 or float8_e4m3fn", key, name);
  return KV_DTYPE_BF16;
}

/* A checkpoint that is published quantized: all weights, or (mxfp4) those of the experts. */
static void read_quantization(KvJson *json, json_t *config, KvModel *m) {
  if (!present(config, (const char *const[]){"quantization_config", NULL}))
    return;
  json_t *quantization = kv_json_object(json, config, "quantization_config", FALSE);
  if (!quantization)
    return;
  const char *method = kv_json_string(json, quantization, "quant_method", "", FALSE);
  if (strcmp(method, "fp8") == 0) {
    gboolean in_blocks = json_is_array(json_object_get(quantization, "weight_block_size"));
    m->weight_dtype = m->expert_dtype = in_blocks ? KV_DTYPE_FP8_BLOCK : KV_DTYPE_FP8;
  } else if (strcmp(method, "mxfp4") == 0) {
    m->expert_dtype = KV_DTYPE_MXFP4;
  } else if (strcmp(method, "awq") == 0 || strcmp(method, "gptq") == 0) {
    gint64 bits = kv_json_integer(json, quantization, "bits", 4, 2, 8);
    m->weight_dtype = m->expert_dtype = bits > 4 ? KV_DTYPE_INT8 : KV_DTYPE_INT4;
  } else {
    kv_json_fail(json, quantization, "quant_method",
                 "'quant_method' is '%.40s', expected fp8, mxfp4, awq or gptq", method);
  }
}

/* MambaForCausalLM: every layer one block, and nothing bounds its context but what it was trained
 * on. */
static void read_mamba(KvJson *json, json_t *config, KvModel *m) {
  enum { TRAINED_TOKENS = 2048 }; /* Gu and Dao (2023), appendix E.2; vLLM takes as many */
  static const char *const widths[] = {"intermediate_size", "d_inner"};
  m->hidden = (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_HIDDEN, "hidden_size", "d_model");
  m->vocab = (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_WIDTH, "vocab_size");
  m->embedding_dim = m->hidden;
  m->max_context_tokens = (guint)COUNT(TRAINED_TOKENS, 1, KV_MODEL_MOST_TOKENS,
                                       "max_position_embeddings", "max_seq_len");
  m->tied_embeddings = flag(json, config, "tie_word_embeddings", TRUE);
  m->norm = KV_NORM_RMS;
  m->weight_dtype = m->expert_dtype = read_dtype(json, config);
  double expand = kv_json_number(json, config, "expand", 2, 0.5, 16);
  guint inner = (guint)(expand * m->hidden);
  for (guint i = 0; i < G_N_ELEMENTS(widths); i++)
    if (kv_json_has(config, widths[i]) &&
        kv_json_integer(json, config, widths[i], inner, 1, KV_MODEL_MOST_WIDTH) != inner)
      kv_json_fail(json, config, widths[i],
                   "'%s' is not the %u that 'expand' makes of the hidden size", widths[i], inner);
  const char *act = kv_json_string(json, config, "hidden_act", "silu", FALSE);
  if (strcmp(act, "silu") != 0)
    kv_json_fail(json, config, "hidden_act", "'hidden_act' is '%.40s', expected silu", act);
  guint rank = (m->hidden + 15) / 16; /* "auto" */
  if (!json_is_string(json_object_get(config, "time_step_rank")))
    rank = (guint)COUNT(rank, 1, KV_MODEL_MOST_HIDDEN, "time_step_rank");
  KvLayerGroup layer = {.attention.bias = flag(json, config, "use_bias", FALSE)};
  kv_attention_set_mamba(&layer.attention, m->hidden, inner,
                         (guint)COUNT(16, 1, KV_MODEL_MOST_STATE, "state_size"),
                         (guint)COUNT(4, 1, KV_MODEL_MOST_CONVOLUTION, "conv_kernel"), rank);
  kv_model_add_layers(
      m, &layer,
      (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_LAYERS, "num_hidden_layers", "n_layer"));
  kv_model_check_size(json, config, m);
}

KvModel *kv_model_read_huggingface(KvJson *json, const char *id) {
  json_t *config = kv_json_root(json);
  KvModel *m = g_new0(KvModel, 1);
  /* A multi-modal model keeps its decoder's fields one level down. */
  json_t *inner = json_object_get(config, "text_config");
  if (json_is_object(inner))
    config = inner;
  m->id = g_strdup(id);
  m->name = g_strdup(id);
  m->source = g_strdup(kv_json_name(json));
  if (strcmp(kv_json_string(json, config, "model_type", "", FALSE), "mamba") == 0) {
    read_mamba(json, config, m);
    return m;
  }
  const Family *family = family_of(json, config);
  m->hidden = (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_HIDDEN, "hidden_size", "n_embd",
                           "n_embed", "d_model");
  m->vocab = (guint)COUNT(supplied(family->vocab), 1, KV_MODEL_MOST_WIDTH, "vocab_size");
  m->max_context_tokens =
      (guint)COUNT(supplied(family->max_context_tokens), 1, KV_MODEL_MOST_TOKENS,
                   "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "n_ctx");
  m->embedding_dim = (guint)COUNT(m->hidden, 1, KV_MODEL_MOST_HIDDEN, "word_embed_proj_dim");
  m->tied_embeddings = flag(json, config, "tie_word_embeddings", family->tied);
  m->learned_positions = family->learned_positions;
  m->norm = family->layer_norm ? KV_NORM_LAYER : KV_NORM_RMS;
  m->weight_dtype = m->expert_dtype = read_dtype(json, config);
  read_quantization(json, config, m);
  if (config != kv_json_root(json)) /* the outer level says how the whole checkpoint is stored */
    read_quantization(json, kv_json_root(json), m);

  KvLayerGroup layer = {0};
  guint n_layers = (guint)COUNT(KV_JSON_REQUIRED, 1, KV_MODEL_MOST_LAYERS, "num_hidden_layers",
                                "n_layer", "n_layers", "num_layers");
  layer.attention.bias = flag(json, config, "attention_bias", family->bias);
  layer.attention.qk_norm = family->qk_norm;
  if (present(config, (const char *const[]){"kv_lora_rank", NULL}))
    read_latent(json, config, &layer.attention);
  else
    read_heads(json, config, family, m->hidden, &layer.attention);
  Windows windows = read_windows(json, config, family, n_layers);
  Mlps mlps = read_mlps(json, config, family, m->hidden);
  for (guint i = 0; i < n_layers; i++) {
    KvLayerGroup this_layer = layer;
    /* A window as long as the context never slides. */
    if (slides(json, config, &windows, i) && windows.window_tokens < m->max_context_tokens &&
        layer.attention.kind == KV_ATTENTION_FULL) {
      this_layer.attention.kind = KV_ATTENTION_SLIDING;
      this_layer.attention.window_tokens = windows.window_tokens;
    }
    this_layer.mlp = is_sparse(&mlps, family, i) ? mlps.sparse : mlps.dense;
    if (!this_layer.mlp.n_experts && !this_layer.mlp.intermediate)
      kv_json_fail(json, config, "intermediate_size",
                   "'intermediate_size' is missing, expected the MLP width of layer %u", i);
    kv_model_add_layers(m, &this_layer, 1);
  }
  kv_model_check_size(json, config, m);
  return m;
}
