#include "reference/host/tensors.h"

#include <stddef.h>

#include "sim/base/error.h"

#define LLAMA_LAYER "model.layers.%u."
#define OPT_LAYER "model.decoder.layers.%u."
#define MAMBA_LAYER "backbone.layers.%u."
#define EXPERT LLAMA_LAYER "mlp.experts.%u."
#define MIXTRAL LLAMA_LAYER "block_sparse_moe."
#define OF_MODEL(field) offsetof(KvHostWeights, field)
#define OF_LAYER(field) offsetof(KvHostLayer, field)

static const struct {
  KvTensorKind kind;
  const char *llama, *opt;
  gsize offset;
  const char *mixtral;
} tensors[] = {
    [KV_TENSOR_EMBEDDING] = {KV_TENSOR_TABLE, "model.embed_tokens.weight",
                             "model.decoder.embed_tokens.weight", OF_MODEL(embedding)},
    [KV_TENSOR_POSITIONS] = {KV_TENSOR_TABLE, NULL, "model.decoder.embed_positions.weight",
                             OF_MODEL(positions)},
    [KV_TENSOR_FINAL_NORM] = {KV_TENSOR_GAIN, "model.norm.weight",
                              "model.decoder.final_layer_norm.weight", OF_MODEL(final_norm)},
    [KV_TENSOR_FINAL_NORM_BIAS] = {KV_TENSOR_BIAS, NULL, "model.decoder.final_layer_norm.bias",
                                   OF_MODEL(final_norm_bias)},
    [KV_TENSOR_HEAD] = {KV_TENSOR_MATRIX, "lm_head.weight", "lm_head.weight", OF_MODEL(head)},
    [KV_TENSOR_ATTENTION_NORM] = {KV_TENSOR_GAIN, LLAMA_LAYER "input_layernorm.weight",
                                  OPT_LAYER "self_attn_layer_norm.weight",
                                  OF_LAYER(attention_norm)},
    [KV_TENSOR_ATTENTION_NORM_BIAS] = {KV_TENSOR_BIAS, NULL, OPT_LAYER "self_attn_layer_norm.bias",
                                       OF_LAYER(attention_norm_bias)},
    [KV_TENSOR_QUERY] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.q_proj.weight",
                         OPT_LAYER "self_attn.q_proj.weight", OF_LAYER(query)},
    [KV_TENSOR_KEY] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.k_proj.weight",
                       OPT_LAYER "self_attn.k_proj.weight", OF_LAYER(key)},
    [KV_TENSOR_VALUE] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.v_proj.weight",
                         OPT_LAYER "self_attn.v_proj.weight", OF_LAYER(value)},
    [KV_TENSOR_QUERY_BIAS] = {KV_TENSOR_BIAS, LLAMA_LAYER "self_attn.q_proj.bias",
                              OPT_LAYER "self_attn.q_proj.bias", OF_LAYER(query_bias)},
    [KV_TENSOR_KEY_BIAS] = {KV_TENSOR_BIAS, LLAMA_LAYER "self_attn.k_proj.bias",
                            OPT_LAYER "self_attn.k_proj.bias", OF_LAYER(key_bias)},
    [KV_TENSOR_VALUE_BIAS] = {KV_TENSOR_BIAS, LLAMA_LAYER "self_attn.v_proj.bias",
                              OPT_LAYER "self_attn.v_proj.bias", OF_LAYER(value_bias)},
    [KV_TENSOR_QUERY_NORM] = {KV_TENSOR_GAIN, LLAMA_LAYER "self_attn.q_norm.weight", NULL,
                              OF_LAYER(query_norm)},
    [KV_TENSOR_KEY_NORM] = {KV_TENSOR_GAIN, LLAMA_LAYER "self_attn.k_norm.weight", NULL,
                            OF_LAYER(key_norm)},
    [KV_TENSOR_OUTPUT] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.o_proj.weight",
                          OPT_LAYER "self_attn.out_proj.weight", OF_LAYER(output)},
    [KV_TENSOR_OUTPUT_BIAS] = {KV_TENSOR_BIAS, LLAMA_LAYER "self_attn.o_proj.bias",
                               OPT_LAYER "self_attn.out_proj.bias", OF_LAYER(output_bias)},
    [KV_TENSOR_MLP_NORM] = {KV_TENSOR_GAIN, LLAMA_LAYER "post_attention_layernorm.weight",
                            OPT_LAYER "final_layer_norm.weight", OF_LAYER(mlp_norm)},
    [KV_TENSOR_MLP_NORM_BIAS] = {KV_TENSOR_BIAS, NULL, OPT_LAYER "final_layer_norm.bias",
                                 OF_LAYER(mlp_norm_bias)},
    [KV_TENSOR_GATE] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.gate_proj.weight", NULL, OF_LAYER(gate)},
    [KV_TENSOR_UP] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.up_proj.weight", OPT_LAYER "fc1.weight",
                      OF_LAYER(up)},
    [KV_TENSOR_UP_BIAS] = {KV_TENSOR_BIAS, NULL, OPT_LAYER "fc1.bias", OF_LAYER(up_bias)},
    [KV_TENSOR_DOWN] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.down_proj.weight",
                        OPT_LAYER "fc2.weight", OF_LAYER(down)},
    [KV_TENSOR_DOWN_BIAS] = {KV_TENSOR_BIAS, NULL, OPT_LAYER "fc2.bias", OF_LAYER(down_bias)},
    [KV_TENSOR_MIXER_IN] = {KV_TENSOR_MATRIX, NULL, NULL, OF_LAYER(mixer.in)},
    [KV_TENSOR_MIXER_IN_BIAS] = {KV_TENSOR_BIAS, NULL, NULL, OF_LAYER(mixer.in_bias)},
    [KV_TENSOR_CONV] = {KV_TENSOR_TABLE, NULL, NULL, OF_LAYER(mixer.conv)},
    [KV_TENSOR_CONV_BIAS] = {KV_TENSOR_BIAS, NULL, NULL, OF_LAYER(mixer.conv_bias)},
    [KV_TENSOR_MIXER_X] = {KV_TENSOR_MATRIX, NULL, NULL, OF_LAYER(mixer.x)},
    [KV_TENSOR_MIXER_DT] = {KV_TENSOR_MATRIX, NULL, NULL, OF_LAYER(mixer.dt)},
    [KV_TENSOR_MIXER_DT_BIAS] = {KV_TENSOR_STEP, NULL, NULL, OF_LAYER(mixer.dt_bias)},
    [KV_TENSOR_DECAY] = {KV_TENSOR_RATE, NULL, NULL, OF_LAYER(mixer.decay)},
    [KV_TENSOR_SKIP] = {KV_TENSOR_GAIN, NULL, NULL, OF_LAYER(mixer.skip)},
    [KV_TENSOR_MIXER_OUT] = {KV_TENSOR_MATRIX, NULL, NULL, OF_LAYER(mixer.out)},
    [KV_TENSOR_MIXER_OUT_BIAS] = {KV_TENSOR_BIAS, NULL, NULL, OF_LAYER(mixer.out_bias)},
    [KV_TENSOR_QUERY_DOWN] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.q_a_proj.weight", NULL,
                              OF_LAYER(query_down)},
    [KV_TENSOR_QUERY_DOWN_NORM] = {KV_TENSOR_GAIN, LLAMA_LAYER "self_attn.q_a_layernorm.weight",
                                   NULL, OF_LAYER(query_down_norm)},
    [KV_TENSOR_QUERY_UP] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.q_b_proj.weight", NULL,
                            OF_LAYER(query_up)},
    [KV_TENSOR_LATENT] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.kv_a_proj_with_mqa.weight", NULL,
                          OF_LAYER(latent)},
    [KV_TENSOR_LATENT_NORM] = {KV_TENSOR_GAIN, LLAMA_LAYER "self_attn.kv_a_layernorm.weight", NULL,
                               OF_LAYER(latent_norm)},
    [KV_TENSOR_LATENT_UP] = {KV_TENSOR_MATRIX, LLAMA_LAYER "self_attn.kv_b_proj.weight", NULL,
                             OF_LAYER(latent_up)},
    [KV_TENSOR_ROUTER] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.gate.weight", NULL, OF_LAYER(router),
                          MIXTRAL "gate.weight"},
    [KV_TENSOR_EXPERT_GATE] = {KV_TENSOR_MATRIX, EXPERT "gate_proj.weight", NULL,
                               OF_LAYER(expert_gate), MIXTRAL "experts.%u.w1.weight"},
    [KV_TENSOR_EXPERT_UP] = {KV_TENSOR_MATRIX, EXPERT "up_proj.weight", NULL, OF_LAYER(expert_up),
                             MIXTRAL "experts.%u.w3.weight"},
    [KV_TENSOR_EXPERT_DOWN] = {KV_TENSOR_MATRIX, EXPERT "down_proj.weight", NULL,
                               OF_LAYER(expert_down), MIXTRAL "experts.%u.w2.weight"},
    [KV_TENSOR_SHARED_GATE] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.shared_experts.gate_proj.weight",
                               NULL, OF_LAYER(shared_gate)},
    [KV_TENSOR_SHARED_UP] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.shared_experts.up_proj.weight",
                             NULL, OF_LAYER(shared_up)},
    [KV_TENSOR_SHARED_DOWN] = {KV_TENSOR_MATRIX, LLAMA_LAYER "mlp.shared_experts.down_proj.weight",
                               NULL, OF_LAYER(shared_down)},
};
G_STATIC_ASSERT(G_N_ELEMENTS(tensors) == KV_N_TENSORS);

/* What transformers' MambaForCausalLM calls them. */
static const char *const mamba_names[KV_N_TENSORS] = {
    [KV_TENSOR_EMBEDDING] = "backbone.embeddings.weight",
    [KV_TENSOR_FINAL_NORM] = "backbone.norm_f.weight",
    [KV_TENSOR_HEAD] = "lm_head.weight",
    [KV_TENSOR_ATTENTION_NORM] = MAMBA_LAYER "norm.weight",
    [KV_TENSOR_MIXER_IN] = MAMBA_LAYER "mixer.in_proj.weight",
    [KV_TENSOR_MIXER_IN_BIAS] = MAMBA_LAYER "mixer.in_proj.bias",
    [KV_TENSOR_CONV] = MAMBA_LAYER "mixer.conv1d.weight",
    [KV_TENSOR_CONV_BIAS] = MAMBA_LAYER "mixer.conv1d.bias",
    [KV_TENSOR_MIXER_X] = MAMBA_LAYER "mixer.x_proj.weight",
    [KV_TENSOR_MIXER_DT] = MAMBA_LAYER "mixer.dt_proj.weight",
    [KV_TENSOR_MIXER_DT_BIAS] = MAMBA_LAYER "mixer.dt_proj.bias",
    [KV_TENSOR_DECAY] = MAMBA_LAYER "mixer.A_log",
    [KV_TENSOR_SKIP] = MAMBA_LAYER "mixer.D",
    [KV_TENSOR_MIXER_OUT] = MAMBA_LAYER "mixer.out_proj.weight",
    [KV_TENSOR_MIXER_OUT_BIAS] = MAMBA_LAYER "mixer.out_proj.bias",
};

/* Of a recurrent layer: no attention, no MLP. */
static KvTensorShape mixer_shape(guint64 D, const KvAttention *a, KvTensorId id) {
  guint64 I = a->inner, N = a->state_dim;
  switch (id) {
  case KV_TENSOR_MIXER_IN:
    return (KvTensorShape){.rows = 2 * I, .columns = D, .present = TRUE};
  case KV_TENSOR_MIXER_IN_BIAS:
    return (KvTensorShape){.rows = 1, .columns = 2 * I, .present = a->bias};
  case KV_TENSOR_CONV:
    return (KvTensorShape){.rows = I, .columns = a->conv_width, .present = TRUE};
  case KV_TENSOR_CONV_BIAS:
    return (KvTensorShape){.rows = 1, .columns = I, .present = TRUE, .open = TRUE};
  case KV_TENSOR_MIXER_X:
    return (KvTensorShape){.rows = a->dt_rank + 2 * N, .columns = I, .present = TRUE};
  case KV_TENSOR_MIXER_DT:
    return (KvTensorShape){.rows = I, .columns = a->dt_rank, .present = TRUE};
  case KV_TENSOR_MIXER_DT_BIAS:
  case KV_TENSOR_SKIP:
    return (KvTensorShape){.rows = 1, .columns = I, .present = TRUE};
  case KV_TENSOR_DECAY:
    return (KvTensorShape){.rows = I, .columns = N, .present = TRUE};
  case KV_TENSOR_MIXER_OUT:
    return (KvTensorShape){.rows = D, .columns = I, .present = TRUE};
  case KV_TENSOR_MIXER_OUT_BIAS:
    return (KvTensorShape){.rows = 1, .columns = D, .present = a->bias};
  default:
    return (KvTensorShape){0};
  }
}

KvTensorShape kv_tensor_shape(const KvModel *model, const KvAttention *a, const KvMlp *mlp,
                              KvTensorId id) {
  guint64 D = model->hidden, V = model->vocab, E = mlp->intermediate, d = a->head_dim;
  guint64 q = a->n_heads * d, kv = a->n_kv_heads * d;
  guint64 X = mlp->n_experts, Ex = mlp->expert_intermediate, S = mlp->shared_intermediate;
  guint64 rank = a->kv_lora_rank, down = a->q_lora_rank,
          values = (guint64)a->n_heads * a->value_head_dim;
  gboolean centred = model->norm == KV_NORM_LAYER, positions = model->learned_positions;
  gboolean latent = a->kind == KV_ATTENTION_LATENT, plain = !latent, dense = E > 0;
  const KvTensorShape shapes[] = {
      [KV_TENSOR_EMBEDDING] = {.rows = V, .columns = D, .present = TRUE},
      [KV_TENSOR_POSITIONS] = {.rows = model->max_context_tokens,
                               .columns = D,
                               .present = positions},
      [KV_TENSOR_FINAL_NORM] = {.rows = 1, .columns = D, .present = TRUE},
      [KV_TENSOR_FINAL_NORM_BIAS] = {.rows = 1, .columns = D, .present = centred},
      [KV_TENSOR_HEAD] = {.rows = V, .columns = D, .present = !model->tied_embeddings},
      [KV_TENSOR_ATTENTION_NORM] = {.rows = 1, .columns = D, .present = TRUE},
      [KV_TENSOR_ATTENTION_NORM_BIAS] = {.rows = 1, .columns = D, .present = centred},
      [KV_TENSOR_QUERY] = {.rows = q, .columns = D, .present = plain || !down},
      [KV_TENSOR_KEY] = {.rows = kv, .columns = D, .present = plain},
      [KV_TENSOR_VALUE] = {.rows = kv, .columns = D, .present = plain},
      [KV_TENSOR_QUERY_BIAS] = {.rows = 1, .columns = q, .present = a->bias, .open = plain},
      [KV_TENSOR_KEY_BIAS] = {.rows = 1, .columns = kv, .present = a->bias, .open = plain},
      [KV_TENSOR_VALUE_BIAS] = {.rows = 1, .columns = kv, .present = a->bias, .open = plain},
      [KV_TENSOR_QUERY_NORM] = {.rows = 1, .columns = d, .present = a->qk_norm, .open = plain},
      [KV_TENSOR_KEY_NORM] = {.rows = 1, .columns = d, .present = a->qk_norm, .open = plain},
      [KV_TENSOR_OUTPUT] = {.rows = D, .columns = plain ? q : values, .present = TRUE},
      [KV_TENSOR_OUTPUT_BIAS] = {.rows = 1, .columns = D, .present = a->bias, .open = TRUE},
      [KV_TENSOR_MLP_NORM] = {.rows = 1, .columns = D, .present = TRUE},
      [KV_TENSOR_MLP_NORM_BIAS] = {.rows = 1, .columns = D, .present = centred},
      [KV_TENSOR_GATE] = {.rows = E, .columns = D, .present = dense && mlp->gated},
      [KV_TENSOR_UP] = {.rows = E, .columns = D, .present = dense},
      [KV_TENSOR_UP_BIAS] = {.rows = 1, .columns = E, .present = dense && centred},
      [KV_TENSOR_DOWN] = {.rows = D, .columns = E, .present = dense},
      [KV_TENSOR_DOWN_BIAS] = {.rows = 1, .columns = D, .present = dense && centred},
      [KV_TENSOR_QUERY_DOWN] = {.rows = down, .columns = D, .present = latent && down},
      [KV_TENSOR_QUERY_DOWN_NORM] = {.rows = 1, .columns = down, .present = latent && down},
      [KV_TENSOR_QUERY_UP] = {.rows = q, .columns = down, .present = latent && down},
      [KV_TENSOR_LATENT] = {.rows = rank + a->rope_head_dim, .columns = D, .present = latent},
      [KV_TENSOR_LATENT_NORM] = {.rows = 1, .columns = rank, .present = latent},
      [KV_TENSOR_LATENT_UP] = {.rows = q - (guint64)a->n_heads * a->rope_head_dim + values,
                               .columns = rank,
                               .present = latent},
      [KV_TENSOR_ROUTER] = {.rows = X, .columns = D, .present = X > 0},
      [KV_TENSOR_EXPERT_GATE] = {.rows = Ex, .columns = D, .copies = X, .present = X > 0},
      [KV_TENSOR_EXPERT_UP] = {.rows = Ex, .columns = D, .copies = X, .present = X > 0},
      [KV_TENSOR_EXPERT_DOWN] = {.rows = D, .columns = Ex, .copies = X, .present = X > 0},
      [KV_TENSOR_SHARED_GATE] = {.rows = S, .columns = D, .present = X && S},
      [KV_TENSOR_SHARED_UP] = {.rows = S, .columns = D, .present = X && S},
      [KV_TENSOR_SHARED_DOWN] = {.rows = D, .columns = S, .present = X && S},
  };
  gboolean recurrent = a->kind == KV_ATTENTION_NONE && id > KV_TENSOR_ATTENTION_NORM_BIAS;
  KvTensorShape shape = recurrent                   ? mixer_shape(D, a, id)
                        : id < G_N_ELEMENTS(shapes) ? shapes[id]
                                                    : (KvTensorShape){0};
  shape.kind = tensors[id].kind;
  shape.copies = MAX(shape.copies, 1);
  return shape;
}

/* `format` with the numbers of the layer and the expert in it, as far as it asks for them. */
static char *numbered(const char *format, guint layer, guint copy) {
  if (!format)
    return NULL;
  g_auto(GStrv) parts = g_strsplit(format, "%u", 3);
  if (!parts[1])
    return g_strdup(format);
  return parts[2] ? g_strdup_printf("%s%u%s%u%s", parts[0], layer, parts[1], copy, parts[2])
                  : g_strdup_printf("%s%u%s", parts[0], layer, parts[1]);
}

/* What a checkpoint of the model's family calls it. */
static const char *format_of(const KvModel *model, KvTensorId id) {
  return kv_host_is_recurrent(model) ? mamba_names[id]
         : model->learned_positions  ? tensors[id].opt
                                     : tensors[id].llama;
}

char *kv_tensor_name(const KvModel *model, KvTensorId id, guint layer) {
  return numbered(format_of(model, id), layer, 0);
}

char *kv_tensor_copy_name(const KvModel *model, const KvCheckpoint *checkpoint, KvTensorId id,
                          guint layer, guint copy) {
  g_autofree char *mixtral = numbered(tensors[id].mixtral, layer, copy);
  if (mixtral && kv_checkpoint_has(checkpoint, mixtral))
    return g_steal_pointer(&mixtral);
  return numbered(format_of(model, id), layer, copy);
}

float **kv_tensor_slot(KvHostWeights *weights, KvTensorId id, guint layer) {
  char *base = id < KV_TENSOR_ATTENTION_NORM ? (char *)weights : (char *)&weights->layers[layer];
  return (float **)(void *)(base + tensors[id].offset);
}

guint kv_tensor_skipped_rows(const KvModel *model, KvTensorId id) {
  return id == KV_TENSOR_POSITIONS && model->learned_positions ? 2 : 0;
}

gboolean kv_tensor_check_routing(const KvModel *model, const KvHostRouting *routing,
                                 GError **error) {
  for (guint g = 0; g < model->n_groups; g++) {
    const KvMlp *m = &model->groups[g].mlp;
    if (m->n_experts && !kv_host_routing_fits(routing, m->n_experts, m->n_experts_per_token)) {
      g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                  "model %s chooses %u of %u experts from %u of %u groups, expected groups that "
                  "divide the experts and hold enough of them",
                  model->id, m->n_experts_per_token, m->n_experts, routing->groups_kept,
                  routing->groups);
      return FALSE;
    }
  }
  return TRUE;
}

/* --- the host's weights from a checkpoint ---------------------------------------------------- */

static gboolean load_copy(float *out, const KvCheckpoint *checkpoint, const char *name,
                          const KvTensorShape *shape, guint skipped, GError **error) {
  KvTensor tensor;
  if (!kv_checkpoint_tensor(checkpoint, name, shape->rows + skipped, shape->columns, &tensor,
                            error))
    return FALSE;
  gsize R = shape->rows, C = shape->columns;
  if (shape->kind != KV_TENSOR_MATRIX) {
    kv_tensor_to_f32(&tensor, skipped * C, R * C, out);
    return TRUE;
  }
  g_autofree float *row = g_new(float, C);
  for (gsize r = 0; r < R; r++) {
    kv_tensor_to_f32(&tensor, r * C, C, row);
    for (gsize c = 0; c < C; c++)
      out[c * R + r] = row[c];
  }
  return TRUE;
}

/* All copies, one after another. */
static gboolean load_tensor(KvHostWeights *weights, const KvModel *model,
                            const KvCheckpoint *checkpoint, KvTensorId id, guint layer,
                            const KvTensorShape *shape, GError **error) {
  gsize n = shape->rows * shape->columns;
  float *out = g_new(float, n * shape->copies);
  g_ptr_array_add(weights->tensors, out);
  weights->n_parameters += n * shape->copies;
  *kv_tensor_slot(weights, id, layer) = out;
  for (guint copy = 0; copy < shape->copies; copy++) {
    g_autofree char *name = kv_tensor_copy_name(model, checkpoint, id, layer, copy);
    if (!load_copy(out + copy * n, checkpoint, name ? name : "(no name)", shape,
                   kv_tensor_skipped_rows(model, id), error))
      return FALSE;
  }
  return TRUE;
}

/* The tensors first .. end - 1, of `layer` or of the model. */
static gboolean load_range(KvHostWeights *weights, const KvModel *model, const KvLayerGroup *group,
                           const KvCheckpoint *checkpoint, KvTensorId first, KvTensorId end,
                           guint layer, GError **error) {
  for (KvTensorId id = first; id < end; id++) {
    KvTensorShape shape = kv_tensor_shape(model, &group->attention, &group->mlp, id);
    g_autofree char *name = kv_tensor_name(model, id, layer);
    gboolean there = name && kv_checkpoint_has(checkpoint, name);
    if (shape.open ? !there : !shape.present)
      continue;
    if (!load_tensor(weights, model, checkpoint, id, layer, &shape, error))
      return FALSE;
  }
  return TRUE;
}

static gboolean load_all(KvHostWeights *weights, const KvModel *model,
                         const KvCheckpoint *checkpoint, GError **error) {
  if (!load_range(weights, model, &model->groups[0], checkpoint, KV_TENSOR_EMBEDDING,
                  KV_TENSOR_ATTENTION_NORM, 0, error))
    return FALSE;
  for (guint g = 0, l = 0; g < model->n_groups; g++)
    for (guint i = 0; i < model->groups[g].count; i++, l++)
      if (!load_range(weights, model, &model->groups[g], checkpoint, KV_TENSOR_ATTENTION_NORM,
                      KV_N_TENSORS, l, error))
        return FALSE;
  if (!weights->head)
    weights->head = kv_host_weights_tied_head(weights);
  return TRUE;
}

KvHostWeights *kv_host_weights_load(const KvModel *model, const char *folder, GError **error) {
  g_return_val_if_fail(model && folder, NULL);
  g_autoptr(KvHostWeights) weights = kv_host_weights_new_empty(model, error);
  g_autoptr(KvCheckpoint) checkpoint = weights ? kv_checkpoint_open(folder, error) : NULL;
  if (!checkpoint)
    return NULL;
  weights->epsilon = kv_checkpoint_epsilon(checkpoint);
  weights->rotary = *kv_checkpoint_rotary(checkpoint);
  weights->routing = *kv_checkpoint_routing(checkpoint);
  return kv_tensor_check_routing(model, &weights->routing, error) &&
                 load_all(weights, model, checkpoint, error)
             ? g_steal_pointer(&weights)
             : NULL;
}
