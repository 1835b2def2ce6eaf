#include "models/llm/document.h"

static const char *const norm_names[] = {"rms", "layer", NULL};

static const char *const model_fields[] = {
    "id",
    "name",
    "source",
    "published_parameters",
    "hidden",
    "embedding_dim",
    "vocab",
    "max_context_tokens",
    "tied_embeddings",
    "learned_positions",
    "norm",
    "weight_dtype",
    "expert_dtype",
    "groups",
    NULL,
};
static const char *const group_fields[] = {"layers", "attention", "mlp", NULL};
static const char *const mlp_fields[] = {
    "intermediate",        "gated", "experts", "experts_per_token", "expert_intermediate",
    "shared_intermediate", NULL,
};

/* What an attention object of each kind may hold: a window of a full layer is a slip, not a wish.
 */
static const char *const attention_fields[][12] = {
    [KV_ATTENTION_FULL] = {"kind", "heads", "kv_heads", "head_dim", "value_head_dim", "qk_norm",
                           "bias", NULL},
    [KV_ATTENTION_SLIDING] = {"kind", "heads", "kv_heads", "head_dim", "value_head_dim",
                              "window_tokens", "qk_norm", "bias", NULL},
    [KV_ATTENTION_LATENT] = {"kind", "heads", "head_dim", "value_head_dim", "q_lora_rank",
                             "kv_lora_rank", "rope_head_dim", "qk_norm", "bias", NULL},
    [KV_ATTENTION_NONE] = {"kind", "state_elements", "mixer_parameters", "inner", "state_dim",
                           "conv_width", "dt_rank", "bias", NULL},
};

static guint positive(KvJson *json, json_t *object, const char *key, double fallback, gint64 most) {
  return (guint)kv_json_integer(json, object, key, fallback, 1, most);
}

/* Mamba blocks are given by their sizes, which say the rest. */
static void read_mamba(KvJson *json, json_t *object, guint hidden, KvAttention *a) {
  static const char *const derived[] = {"state_elements", "mixer_parameters"};
  for (guint i = 0; i < G_N_ELEMENTS(derived); i++)
    if (kv_json_has(object, derived[i]))
      kv_json_fail(json, object, derived[i], "'%s' follows from 'inner', expected one of them",
                   derived[i]);
  guint inner = positive(json, object, "inner", KV_JSON_REQUIRED, KV_MODEL_MOST_HIDDEN);
  guint state = positive(json, object, "state_dim", KV_JSON_REQUIRED, KV_MODEL_MOST_STATE);
  guint conv = positive(json, object, "conv_width", KV_JSON_REQUIRED, KV_MODEL_MOST_CONVOLUTION);
  guint rank = positive(json, object, "dt_rank", KV_JSON_REQUIRED, KV_MODEL_MOST_HIDDEN);
  a->bias = kv_json_boolean(json, object, "bias", FALSE);
  kv_attention_set_mamba(a, hidden, inner, state, conv, rank);
}

static void read_attention(KvJson *json, json_t *object, guint hidden, KvAttention *a) {
  a->kind = kv_json_choice(json, object, "kind", kv_attention_kind_names, KV_ATTENTION_FULL);
  kv_json_only(json, object, attention_fields[a->kind]);
  if (a->kind == KV_ATTENTION_NONE && kv_json_has(object, "inner")) {
    read_mamba(json, object, hidden, a);
    return;
  }
  if (a->kind == KV_ATTENTION_NONE) {
    a->state_elements = (guint64)kv_json_integer(json, object, "state_elements", KV_JSON_REQUIRED,
                                                 1, G_GINT64_CONSTANT(1) << 40);
    a->mixer_parameters = (guint64)kv_json_integer(json, object, "mixer_parameters", 0, 0,
                                                   G_GINT64_CONSTANT(1) << 40);
    return;
  }
  a->n_heads = positive(json, object, "heads", KV_JSON_REQUIRED, KV_MODEL_MOST_HEADS);
  a->n_kv_heads = positive(json, object, "kv_heads", a->n_heads, KV_MODEL_MOST_HEADS);
  a->head_dim = positive(json, object, "head_dim", KV_JSON_REQUIRED, KV_MODEL_MOST_HIDDEN);
  a->value_head_dim = positive(json, object, "value_head_dim", a->head_dim, KV_MODEL_MOST_HIDDEN);
  a->qk_norm = kv_json_boolean(json, object, "qk_norm", FALSE);
  a->bias = kv_json_boolean(json, object, "bias", FALSE);
  if (a->n_heads % a->n_kv_heads != 0)
    kv_json_fail(json, object, "kv_heads", "'kv_heads' is %u, expected a divisor of 'heads' (%u)",
                 a->n_kv_heads, a->n_heads);
  if (a->kind == KV_ATTENTION_SLIDING)
    a->window_tokens =
        positive(json, object, "window_tokens", KV_JSON_REQUIRED, KV_MODEL_MOST_TOKENS);
  if (a->kind == KV_ATTENTION_LATENT) {
    a->q_lora_rank =
        (guint)kv_json_integer(json, object, "q_lora_rank", 0, 0, KV_MODEL_MOST_HIDDEN);
    a->kv_lora_rank =
        positive(json, object, "kv_lora_rank", KV_JSON_REQUIRED, KV_MODEL_MOST_HIDDEN);
    a->rope_head_dim =
        (guint)kv_json_integer(json, object, "rope_head_dim", KV_JSON_REQUIRED, 0, a->head_dim);
  }
}

static void read_mlp(KvJson *json, json_t *object, KvMlp *m) {
  kv_json_only(json, object, mlp_fields);
  m->gated = kv_json_boolean(json, object, "gated", TRUE);
  m->n_experts = (guint)kv_json_integer(json, object, "experts", 0, 0, KV_MODEL_MOST_EXPERTS);
  /* A layer without experts needs a dense MLP; one with experts may have both. */
  m->intermediate = (guint64)kv_json_integer(
      json, object, "intermediate", m->n_experts ? 0 : KV_JSON_REQUIRED, 0, KV_MODEL_MOST_WIDTH);
  if (!m->n_experts) {
    static const char *const of_experts[] = {"experts_per_token", "expert_intermediate",
                                             "shared_intermediate"};
    for (guint i = 0; i < G_N_ELEMENTS(of_experts); i++)
      if (kv_json_has(object, of_experts[i]))
        kv_json_fail(json, object, of_experts[i], "'%s' is given without 'experts'", of_experts[i]);
    return;
  }
  m->n_experts_per_token =
      positive(json, object, "experts_per_token", KV_JSON_REQUIRED, m->n_experts);
  m->expert_intermediate =
      positive(json, object, "expert_intermediate", KV_JSON_REQUIRED, KV_MODEL_MOST_WIDTH);
  m->shared_intermediate =
      (guint64)kv_json_integer(json, object, "shared_intermediate", 0, 0, KV_MODEL_MOST_WIDTH);
}

static gboolean same_layer(const KvLayerGroup *x, const KvLayerGroup *y) {
  const KvAttention *a = &x->attention, *b = &y->attention;
  const KvMlp *m = &x->mlp, *n = &y->mlp;
  return a->kind == b->kind && a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads &&
         a->head_dim == b->head_dim && a->value_head_dim == b->value_head_dim &&
         a->window_tokens == b->window_tokens && a->q_lora_rank == b->q_lora_rank &&
         a->kv_lora_rank == b->kv_lora_rank && a->rope_head_dim == b->rope_head_dim &&
         a->state_elements == b->state_elements && a->mixer_parameters == b->mixer_parameters &&
         a->inner == b->inner && a->state_dim == b->state_dim && a->conv_width == b->conv_width &&
         a->dt_rank == b->dt_rank && a->qk_norm == b->qk_norm && a->bias == b->bias &&
         m->intermediate == n->intermediate && m->gated == n->gated &&
         m->n_experts == n->n_experts && m->n_experts_per_token == n->n_experts_per_token &&
         m->expert_intermediate == n->expert_intermediate &&
         m->shared_intermediate == n->shared_intermediate && a->borrows_cache == b->borrows_cache &&
         x->extra_prefill_passes == y->extra_prefill_passes && x->stride_tokens == y->stride_tokens;
}

void kv_model_add_layers(KvModel *model, const KvLayerGroup *layer, guint count) {
  for (guint i = 0; i < model->n_groups; i++)
    if (same_layer(&model->groups[i], layer)) {
      model->groups[i].count += count;
      return;
    }
  model->groups = g_renew(KvLayerGroup, model->groups, model->n_groups + 1);
  model->groups[model->n_groups] = *layer;
  model->groups[model->n_groups++].count = count;
}

void kv_model_check_size(KvJson *json, json_t *object, const KvModel *model) {
  const double most = 1e15;
  double parameters = (double)kv_model_parameters(model);
  if (kv_model_layers(model) > KV_MODEL_MOST_LAYERS)
    kv_json_fail(json, object, NULL, "the model has %u layers, expected at most %d",
                 kv_model_layers(model), KV_MODEL_MOST_LAYERS);
  else if (parameters > most)
    kv_json_fail(json, object, NULL, "the model has %.3g parameters, expected at most %.0g",
                 parameters, most);
}

KvModel *kv_model_read(KvJson *json, json_t *object) {
  KvModel *m = g_new0(KvModel, 1);
  kv_json_only(json, object, model_fields);
  m->id = g_strdup(kv_json_string(json, object, "id", "", TRUE));
  m->name = g_strdup(kv_json_string(json, object, "name", m->id, FALSE));
  m->source = g_strdup(kv_json_string(json, object, "source", kv_json_name(json), FALSE));
  if (!*m->id)
    kv_json_fail(json, object, "id", "'id' is empty, expected a short name");
  m->published_parameters = (guint64)kv_json_integer(json, object, "published_parameters", 0, 0,
                                                     G_GINT64_CONSTANT(1000000000000000));
  m->hidden = positive(json, object, "hidden", KV_JSON_REQUIRED, KV_MODEL_MOST_HIDDEN);
  m->embedding_dim = positive(json, object, "embedding_dim", m->hidden, KV_MODEL_MOST_HIDDEN);
  m->vocab = positive(json, object, "vocab", KV_JSON_REQUIRED, KV_MODEL_MOST_WIDTH);
  m->max_context_tokens =
      positive(json, object, "max_context_tokens", KV_JSON_REQUIRED, KV_MODEL_MOST_TOKENS);
  m->tied_embeddings = kv_json_boolean(json, object, "tied_embeddings", FALSE);
  m->learned_positions = kv_json_boolean(json, object, "learned_positions", FALSE);
  m->norm = kv_json_choice(json, object, "norm", norm_names, KV_NORM_RMS);
  m->weight_dtype = kv_json_choice(json, object, "weight_dtype", kv_dtype_names, KV_DTYPE_BF16);
  m->expert_dtype = kv_json_choice(json, object, "expert_dtype", kv_dtype_names, m->weight_dtype);

  json_t *groups = kv_json_array(json, object, "groups", TRUE);
  if (groups && json_array_size(groups) == 0)
    kv_json_fail(json, object, "groups",
                 "'groups' is empty, expected at least one group of layers");
  gsize i;
  json_t *group;
  json_array_foreach(groups, i, group) {
    KvLayerGroup g = {0};
    kv_json_only(json, group, group_fields);
    guint count = positive(json, group, "layers", KV_JSON_REQUIRED, KV_MODEL_MOST_LAYERS);
    json_t *attention = kv_json_object(json, group, "attention", TRUE);
    json_t *mlp = kv_json_object(json, group, "mlp", TRUE);
    if (attention)
      read_attention(json, attention, m->hidden, &g.attention);
    if (mlp)
      read_mlp(json, mlp, &g.mlp);
    if (i >= KV_MODEL_MOST_LAYERS)
      break;
    kv_model_add_layers(m, &g, count);
  }
  kv_model_check_size(json, object, m);
  return m;
}

static void set_count(json_t *object, const char *key, guint64 value, guint64 absent) {
  if (value != absent)
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void set_flag(json_t *object, const char *key, gboolean value) {
  if (value)
    json_object_set_new(object, key, json_true());
}

static json_t *attention_to_json(const KvAttention *a) {
  json_t *object = json_pack("{ss}", "kind", kv_attention_kind_names[a->kind]);
  gboolean latent = a->kind == KV_ATTENTION_LATENT;
  set_count(object, "heads", a->n_heads, 0);
  set_count(object, "kv_heads", latent ? 0 : a->n_kv_heads, 0);
  set_count(object, "head_dim", a->head_dim, 0);
  set_count(object, "value_head_dim", a->value_head_dim, a->head_dim);
  set_count(object, "window_tokens", a->window_tokens, 0);
  set_count(object, "q_lora_rank", a->q_lora_rank, 0);
  set_count(object, "kv_lora_rank", a->kv_lora_rank, 0);
  if (latent)
    json_object_set_new(object, "rope_head_dim", json_integer(a->rope_head_dim));
  set_count(object, "inner", a->inner, 0);
  set_count(object, "state_dim", a->state_dim, 0);
  set_count(object, "conv_width", a->conv_width, 0);
  set_count(object, "dt_rank", a->dt_rank, 0);
  set_count(object, "state_elements", a->inner ? 0 : a->state_elements, 0);
  set_count(object, "mixer_parameters", a->inner ? 0 : a->mixer_parameters, 0);
  set_flag(object, "qk_norm", a->qk_norm);
  set_flag(object, "bias", a->bias);
  return object;
}

static json_t *mlp_to_json(const KvMlp *m) {
  json_t *object = json_object();
  if (m->intermediate || !m->n_experts)
    json_object_set_new(object, "intermediate", json_integer((json_int_t)m->intermediate));
  json_object_set_new(object, "gated", json_boolean(m->gated));
  set_count(object, "experts", m->n_experts, 0);
  set_count(object, "experts_per_token", m->n_experts_per_token, 0);
  set_count(object, "expert_intermediate", m->expert_intermediate, 0);
  set_count(object, "shared_intermediate", m->shared_intermediate, 0);
  return object;
}

json_t *kv_model_to_json(const KvModel *m) {
  json_t *object = json_object();
  json_object_set_new(object, "id", json_string(m->id));
  json_object_set_new(object, "name", json_string(m->name));
  json_object_set_new(object, "source", json_string(m->source));
  set_count(object, "published_parameters", m->published_parameters, 0);
  json_object_set_new(object, "hidden", json_integer(m->hidden));
  set_count(object, "embedding_dim", m->embedding_dim, m->hidden);
  json_object_set_new(object, "vocab", json_integer(m->vocab));
  json_object_set_new(object, "max_context_tokens", json_integer(m->max_context_tokens));
  set_flag(object, "tied_embeddings", m->tied_embeddings);
  set_flag(object, "learned_positions", m->learned_positions);
  json_object_set_new(object, "norm", json_string(norm_names[m->norm]));
  json_object_set_new(object, "weight_dtype", json_string(kv_dtype_names[m->weight_dtype]));
  if (m->expert_dtype != m->weight_dtype)
    json_object_set_new(object, "expert_dtype", json_string(kv_dtype_names[m->expert_dtype]));
  json_t *groups = json_array();
  for (guint i = 0; i < m->n_groups; i++) {
    const KvLayerGroup *g = &m->groups[i];
    json_t *group = json_object();
    json_object_set_new(group, "layers", json_integer(g->count));
    json_object_set_new(group, "attention", attention_to_json(&g->attention));
    json_object_set_new(group, "mlp", mlp_to_json(&g->mlp));
    json_array_append_new(groups, group);
  }
  json_object_set_new(object, "groups", groups);
  return object;
}
