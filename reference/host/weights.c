#include "reference/host/weights.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/random.h"

/* Of a matrix: 1 would keep a unit variance, and attention so flat that the output settles on one
 * token. */
#define GAIN 2.0

/* A walk over the tensors of a model, in one order: first it only counts, then it draws. */
typedef struct {
  KvHostWeights *weights;
  guint64 seed, stream;
  double n_parameters;
  gboolean counting;
} Walk;

/* Uniform in mean +- sqrt(3) deviation. */
static float *draw(Walk *walk, guint64 rows, guint64 columns, double mean, double deviation) {
  walk->n_parameters += (double)rows * (double)columns;
  if (walk->counting)
    return NULL;
  gsize n = rows * columns;
  float *tensor = g_new(float, n);
  g_ptr_array_add(walk->weights->tensors, tensor);
  KvRandom random;
  kv_random_seed(&random, walk->seed, walk->stream++);
  double reach = sqrt(3.0) * deviation;
  for (gsize i = 0; i < n; i++)
    tensor[i] = (float)(mean + reach * (2.0 * kv_random_unit(&random) - 1.0));
  return tensor;
}

static float *draw_matrix(Walk *walk, guint64 inputs, guint64 outputs) {
  return draw(walk, inputs, outputs, 0.0, GAIN / sqrt((double)inputs));
}

static float *draw_gain(Walk *walk, guint64 width) {
  return draw(walk, 1, width, 1.0, 0.1);
}

static float *draw_bias(Walk *walk, gboolean present, guint64 width) {
  return present ? draw(walk, 1, width, 0.0, 0.1) : NULL;
}

/* Steps of about a twentieth, so that a state remembers tens of tokens; rates of one to a dozen. */
static void draw_mixer(Walk *walk, KvHostMixer *mixer, const KvAttention *a, guint64 D) {
  guint64 I = a->inner, N = a->state_dim, W = a->conv_width, R = a->dt_rank;
  mixer->in = draw_matrix(walk, D, 2 * I);
  mixer->in_bias = draw_bias(walk, a->bias, 2 * I);
  mixer->conv = draw(walk, I, W, 0.0, 1.0 / sqrt((double)W));
  mixer->conv_bias = draw_bias(walk, TRUE, I);
  mixer->x = draw_matrix(walk, I, R + 2 * N);
  mixer->dt = draw_matrix(walk, R, I);
  mixer->dt_bias = draw(walk, 1, I, -3.0, 1.0);
  mixer->decay = draw(walk, I, N, 1.0, 0.7);
  mixer->skip = draw_gain(walk, I);
  mixer->out = draw_matrix(walk, I, D);
  mixer->out_bias = draw_bias(walk, a->bias, D);
}

static void draw_latent_attention(Walk *walk, KvHostLayer *layer, guint64 D) {
  const KvAttention *a = &layer->attention;
  guint64 heads = (guint64)a->n_heads * a->head_dim, down = a->q_lora_rank;
  guint64 values = (guint64)a->n_heads * a->value_head_dim;
  layer->query = down ? NULL : draw_matrix(walk, D, heads);
  layer->query_down = down ? draw_matrix(walk, D, down) : NULL;
  layer->query_down_norm = down ? draw_gain(walk, down) : NULL;
  layer->query_up = down ? draw_matrix(walk, down, heads) : NULL;
  layer->latent = draw_matrix(walk, D, (guint64)a->kv_lora_rank + a->rope_head_dim);
  layer->latent_norm = draw_gain(walk, a->kv_lora_rank);
  layer->latent_up =
      draw_matrix(walk, a->kv_lora_rank, heads - (guint64)a->n_heads * a->rope_head_dim + values);
  layer->output = draw_matrix(walk, values, D);
}

/* Of every expert, one after another. */
static float *draw_experts(Walk *walk, guint64 n, guint64 inputs, guint64 outputs) {
  return draw(walk, n * inputs, outputs, 0.0, GAIN / sqrt((double)inputs));
}

static void draw_mixture(Walk *walk, KvHostLayer *layer, guint64 D) {
  const KvMlp *m = &layer->mlp;
  guint64 E = m->expert_intermediate, S = m->shared_intermediate;
  layer->router = draw_matrix(walk, D, m->n_experts);
  layer->expert_gate = draw_experts(walk, m->n_experts, D, E);
  layer->expert_up = draw_experts(walk, m->n_experts, D, E);
  layer->expert_down = draw_experts(walk, m->n_experts, E, D);
  layer->shared_gate = S ? draw_matrix(walk, D, S) : NULL;
  layer->shared_up = S ? draw_matrix(walk, D, S) : NULL;
  layer->shared_down = S ? draw_matrix(walk, S, D) : NULL;
}

static void draw_layer(Walk *walk, KvHostLayer *layer, const KvModel *model,
                       const KvLayerGroup *group) {
  const KvAttention *a = &group->attention;
  guint64 D = model->hidden, E = group->mlp.intermediate;
  guint64 q = (guint64)a->n_heads * a->head_dim, kv = (guint64)a->n_kv_heads * a->head_dim;
  gboolean centred = model->norm == KV_NORM_LAYER;
  *layer = (KvHostLayer){
      .attention = *a, .intermediate = (guint)E, .gated = group->mlp.gated, .mlp = group->mlp};
  layer->attention_norm = draw_gain(walk, D);
  layer->attention_norm_bias = draw_bias(walk, centred, D);
  if (a->kind == KV_ATTENTION_NONE) {
    draw_mixer(walk, &layer->mixer, a, D);
    return;
  }
  if (a->kind == KV_ATTENTION_LATENT) {
    draw_latent_attention(walk, layer, D);
  } else {
    layer->query = draw_matrix(walk, D, q);
    layer->key = draw_matrix(walk, D, kv);
    layer->value = draw_matrix(walk, D, kv);
    layer->query_bias = draw_bias(walk, a->bias, q);
    layer->key_bias = draw_bias(walk, a->bias, kv);
    layer->value_bias = draw_bias(walk, a->bias, kv);
    layer->query_norm = a->qk_norm ? draw_gain(walk, a->head_dim) : NULL;
    layer->key_norm = a->qk_norm ? draw_gain(walk, a->head_dim) : NULL;
    layer->output = draw_matrix(walk, q, D);
    layer->output_bias = draw_bias(walk, a->bias, D);
  }
  layer->mlp_norm = draw_gain(walk, D);
  layer->mlp_norm_bias = draw_bias(walk, centred, D);
  if (group->mlp.n_experts) {
    draw_mixture(walk, layer, D);
    return;
  }
  layer->gate = layer->gated ? draw_matrix(walk, D, E) : NULL;
  layer->up = draw_matrix(walk, D, E);
  layer->up_bias = draw_bias(walk, centred, E);
  layer->down = draw_matrix(walk, E, D);
  layer->down_bias = draw_bias(walk, centred, D);
}

KvHostLatent kv_host_latent_of(const KvAttention *a, const KvHostRotary *rotary) {
  return (KvHostLatent){.n_heads = a->n_heads,
                        .nope = a->head_dim - a->rope_head_dim,
                        .rope = a->rope_head_dim,
                        .value = a->value_head_dim,
                        .rank = a->kv_lora_rank,
                        .scale = (float)(rotary->score_scale / sqrt((double)a->head_dim))};
}

float *kv_host_weights_tied_head(KvHostWeights *weights) {
  gsize D = weights->hidden, V = weights->vocab;
  float *head = g_new(float, D *V);
  g_ptr_array_add(weights->tensors, head);
  for (gsize v = 0; v < V; v++)
    for (gsize i = 0; i < D; i++)
      head[i * V + v] = weights->embedding[v * D + i];
  return head;
}

static void draw_model(Walk *walk, const KvModel *model) {
  KvHostWeights *w = walk->weights;
  guint64 D = model->hidden;
  /* Small beside what the layers add, or a tied model would repeat its last token for ever. */
  double small = 1.0 / sqrt((double)D);
  w->embedding = draw(walk, model->vocab, D, 0.0, small);
  if (model->learned_positions)
    w->positions = draw(walk, model->max_context_tokens, D, 0.0, small);
  w->final_norm = draw_gain(walk, D);
  w->final_norm_bias = draw_bias(walk, model->norm == KV_NORM_LAYER, D);
  w->head = model->tied_embeddings ? NULL : draw_matrix(walk, D, model->vocab);
  for (guint g = 0, l = 0; g < model->n_groups; g++)
    for (guint i = 0; i < model->groups[g].count; i++, l++) {
      /* Counting stops where the answer is known: a file may claim billions of layers. */
      if (walk->counting && walk->n_parameters > KV_HOST_MAX_PARAMETERS)
        return;
      KvHostLayer counted;
      draw_layer(walk, walk->counting ? &counted : &w->layers[l], model, &model->groups[g]);
    }
}

gboolean kv_host_is_recurrent(const KvModel *model) {
  return model->n_groups > 0 && model->groups[0].attention.kind == KV_ATTENTION_NONE;
}

/* The same of a layer without attention. */
static const char *recurrence_obstacle(const KvModel *model, const KvLayerGroup *group) {
  const KvAttention *a = &group->attention;
  if (!a->inner || !a->state_dim || !a->dt_rank || a->conv_width < 2)
    return "recurrent layers other than Mamba blocks";
  if (group->mlp.intermediate || group->mlp.n_experts)
    return "recurrent layers with an MLP";
  if (model->learned_positions)
    return "recurrent layers under learned positions";
  return NULL;
}

static const char *latent_obstacle(const KvModel *model, const KvAttention *a) {
  if (!a->n_heads || !a->kv_lora_rank || !a->value_head_dim || a->head_dim <= a->rope_head_dim)
    return "latent attention without heads, a rank or a part of the head without position";
  if (a->rope_head_dim % 2)
    return "latent attention with an odd size of rotated keys";
  if (a->bias || a->qk_norm || model->learned_positions || model->norm != KV_NORM_RMS)
    return "latent attention with biases, normalized heads, learned positions or LayerNorm";
  return NULL;
}

static const char *expert_obstacle(const KvModel *model, const KvMlp *mlp) {
  if (mlp->intermediate)
    return "layers with a dense MLP beside their experts";
  if (!mlp->gated || model->norm != KV_NORM_RMS)
    return "experts that are not gated, or under LayerNorm";
  if (!mlp->n_experts_per_token || mlp->n_experts_per_token > mlp->n_experts ||
      !mlp->expert_intermediate)
    return "experts without a width, or none or too many of them to a token";
  return NULL;
}

/* Why the executor cannot compute a layer of this group; NULL if it can. */
static const char *obstacle(const KvModel *model, const KvLayerGroup *group) {
  const KvAttention *a = &group->attention;
  const char *problem = group->mlp.n_experts ? expert_obstacle(model, &group->mlp) : NULL;
  if (problem)
    return problem;
  if (a->kind == KV_ATTENTION_NONE)
    return recurrence_obstacle(model, group);
  if (a->state_elements)
    return "recurrent layers beside attention";
  if (a->borrows_cache)
    return "layers that borrow a cache";
  if (group->stride_tokens > 1 || group->extra_prefill_passes != 0.0)
    return "layers that do not run once for each token";
  if (!group->mlp.n_experts && !group->mlp.intermediate)
    return "layers without an MLP";
  if (a->kind == KV_ATTENTION_LATENT)
    return latent_obstacle(model, a);
  if (!a->n_heads || !a->n_kv_heads || a->n_heads % a->n_kv_heads)
    return "query heads that its KV heads do not divide";
  if (!a->head_dim || a->value_head_dim != a->head_dim)
    return "values of another head size than its keys";
  if (!model->learned_positions && a->head_dim % 2)
    return "an odd head size under rotary positions";
  if (a->kind == KV_ATTENTION_SLIDING && !a->window_tokens)
    return "sliding attention without a window";
  return NULL;
}

const char *kv_host_weights_obstacle(const KvModel *model) {
  const char *problem = model->hidden && model->vocab ? NULL : "no hidden size or no vocabulary";
  guint64 layers = 0;
  for (guint g = 0; g < model->n_groups && !problem; g++) {
    problem = obstacle(model, &model->groups[g]);
    if (!problem && model->groups[g].attention.kind != model->groups[0].attention.kind &&
        (model->groups[g].attention.kind == KV_ATTENTION_NONE || kv_host_is_recurrent(model)))
      problem = "recurrent layers beside attention";
    layers += model->groups[g].count;
  }
  if (!problem && !layers)
    problem = "no layers";
  if (!problem && model->learned_positions && !model->max_context_tokens)
    problem = "learned positions but no longest context";
  return problem;
}

static gboolean check_model(const KvModel *model, GError **error) {
  const char *problem = kv_host_weights_obstacle(model);
  if (problem)
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "model %s has %s, the host executor computes full, sliding and latent attention "
                "with dense or gated expert MLPs, and stacks of Mamba blocks",
                model->id, problem);
  return !problem;
}

/* Every layer's shape, without numbers. */
static void lay_out(KvHostWeights *weights, const KvModel *model) {
  weights->hidden = model->hidden;
  weights->vocab = model->vocab;
  weights->max_positions = model->learned_positions ? model->max_context_tokens : 0;
  weights->norm = model->norm;
  weights->epsilon = KV_HOST_EPSILON;
  weights->rotary = KV_HOST_ROTARY_DEFAULT;
  weights->routing = (KvHostRouting){.normalized = TRUE, .scale = 1.0f};
  weights->tensors = g_ptr_array_new_with_free_func(g_free);
}

KvHostWeights *kv_host_weights_new_empty(const KvModel *model, GError **error) {
  g_return_val_if_fail(model, NULL);
  if (!check_model(model, error))
    return NULL;
  g_autoptr(KvHostWeights) weights = g_new0(KvHostWeights, 1);
  lay_out(weights, model);
  Walk walk = {.weights = weights, .counting = TRUE};
  draw_model(&walk, model);
  if (walk.n_parameters > KV_HOST_MAX_PARAMETERS) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "model %s has more than the %d million parameters that the host executor computes, "
                "expected a smaller model",
                model->id, KV_HOST_MAX_PARAMETERS / 1000000);
    return NULL;
  }
  for (guint g = 0; g < model->n_groups; g++)
    weights->n_layers += model->groups[g].count;
  weights->layers = g_new0(KvHostLayer, weights->n_layers);
  for (guint g = 0, l = 0; g < model->n_groups; g++)
    for (guint i = 0; i < model->groups[g].count; i++, l++)
      weights->layers[l] = (KvHostLayer){.attention = model->groups[g].attention,
                                         .intermediate = (guint)model->groups[g].mlp.intermediate,
                                         .gated = model->groups[g].mlp.gated,
                                         .mlp = model->groups[g].mlp};
  return g_steal_pointer(&weights);
}

KvHostWeights *kv_host_weights_new(const KvModel *model, guint64 seed, GError **error) {
  KvHostWeights *weights = kv_host_weights_new_empty(model, error);
  if (!weights)
    return NULL;
  Walk walk = {.weights = weights, .seed = seed};
  draw_model(&walk, model);
  weights->n_parameters = (guint64)walk.n_parameters;
  if (!weights->head)
    weights->head = kv_host_weights_tied_head(weights);
  return weights;
}

void kv_host_weights_free(KvHostWeights *weights) {
  if (!weights)
    return;
  g_ptr_array_unref(weights->tensors);
  g_free(weights->layers);
  g_free(weights);
}

void kv_host_weights_embed(const KvHostWeights *weights, float *x, guint32 token,
                           guint32 position) {
  gsize D = weights->hidden;
  memcpy(x, weights->embedding + token * D, D * sizeof *x);
  if (weights->positions)
    for (gsize i = 0; i < D; i++)
      x[i] += weights->positions[position * D + i];
}
