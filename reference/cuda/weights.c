#include "reference/cuda/weights.h"

#include <math.h>

#include "reference/host/tensors.h"
#include "sim/base/error.h"
#include "sim/base/random.h"

/* Elements that go through the host at a time. */
enum { STAGE_ELEMENTS = 8 << 20 };

/* Where the numbers come from: the first that is there. */
typedef struct {
  KvCudaDevice *device;
  const KvModel *model;
  KvCudaWeights *weights;
  KvCheckpoint *checkpoint;
  KvHostWeights *host;
  guint64 seed, stream;
  KvBf16 *stage; /* [STAGE_ELEMENTS] */
} Source;

static gboolean from_checkpoint(Source *source, KvBf16 *to, KvTensorId id, guint layer, guint copy,
                                const KvTensorShape *shape, GError **error) {
  g_autofree char *name = kv_tensor_copy_name(source->model, source->checkpoint, id, layer, copy);
  guint skipped = kv_tensor_skipped_rows(source->model, id);
  KvTensor tensor;
  if (!kv_checkpoint_tensor(source->checkpoint, name ? name : "(no name)", shape->rows + skipped,
                            shape->columns, &tensor, error))
    return FALSE;
  guint64 n = shape->rows * shape->columns, skip = skipped * shape->columns;
  for (guint64 first = 0; first < n; first += STAGE_ELEMENTS) {
    guint64 part = MIN(STAGE_ELEMENTS, n - first);
    kv_tensor_to_bf16(&tensor, skip + first, part, source->stage);
    if (!kv_cuda_upload(source->device, to + first, source->stage, part * sizeof(KvBf16), error))
      return FALSE;
  }
  return TRUE;
}

/* The host's matrices are [in][out]. */
static gboolean from_host(Source *source, KvBf16 *to, KvTensorId id, guint layer, guint copy,
                          const KvTensorShape *shape, GError **error) {
  gsize R = shape->rows, C = shape->columns;
  const float *tensor = *kv_tensor_slot(source->host, id, layer) + copy * R * C;
  g_autofree KvBf16 *halves = g_new(KvBf16, R * C);
  for (gsize r = 0; r < R; r++)
    for (gsize c = 0; c < C; c++)
      halves[r * C + c] = kv_bf16_from_float(shape->kind == KV_TENSOR_MATRIX ? tensor[c * R + r]
                                                                             : tensor[r * C + c]);
  return kv_cuda_upload(source->device, to, halves, R * C * sizeof(KvBf16), error);
}

/* The spread of reference/host/weights.c. */
static gboolean from_seed(Source *source, KvBf16 *to, const KvTensorShape *shape, GError **error) {
  static const struct {
    double mean, deviation;
    gboolean by_width;
  } spreads[] = {[KV_TENSOR_MATRIX] = {0.0, 2.0, TRUE}, [KV_TENSOR_TABLE] = {0.0, 1.0, TRUE},
                 [KV_TENSOR_GAIN] = {1.0, 0.1, FALSE},  [KV_TENSOR_BIAS] = {0.0, 0.1, FALSE},
                 [KV_TENSOR_STEP] = {-3.0, 1.0, FALSE}, [KV_TENSOR_RATE] = {1.0, 0.7, FALSE}};
  double deviation = spreads[shape->kind].deviation;
  if (spreads[shape->kind].by_width)
    deviation /= sqrt((double)shape->columns);
  guint64 stream = kv_random_mix(source->seed ^ kv_random_mix(++source->stream));
  return KV_CUDA_OK(
      kv_cuda_fill_random(to, shape->rows * shape->columns, (float)spreads[shape->kind].mean,
                          (float)(sqrt(3.0) * deviation), stream, source->device->stream),
      error);
}

static gboolean fill(Source *source, KvBf16 *to, KvTensorId id, guint layer, guint copy,
                     const KvTensorShape *shape, GError **error) {
  return source->checkpoint ? from_checkpoint(source, to, id, layer, copy, shape, error)
         : source->host     ? from_host(source, to, id, layer, copy, shape, error)
                            : from_seed(source, to, shape, error);
}

static gboolean is_there(const Source *source, KvTensorId id, guint layer,
                         const KvTensorShape *shape) {
  if (!source->checkpoint || !shape->open)
    return shape->present;
  g_autofree char *name = kv_tensor_name(source->model, id, layer);
  return name && kv_checkpoint_has(source->checkpoint, name);
}

/* One array of the tensors ids[n], one after another, so for each expert; those that are not there
 * are zero, and if none is, *array stays NULL. */
static gboolean join(Source *source, KvBf16 **array, const KvLayerGroup *group, guint layer,
                     const KvTensorId *ids, guint n, GError **error) {
  KvTensorShape shapes[3];
  guint64 elements = 0;
  gboolean any = FALSE, matrix = FALSE;
  for (guint i = 0; i < n; i++) {
    shapes[i] = kv_tensor_shape(source->model, &group->attention, &group->mlp, ids[i]);
    elements += shapes[i].rows * shapes[i].columns * shapes[i].copies;
    any |= is_there(source, ids[i], layer, &shapes[i]);
    matrix |= shapes[i].kind == KV_TENSOR_MATRIX;
  }
  if (!any)
    return TRUE;
  KvBf16 *to = kv_cuda_alloc(elements * sizeof(KvBf16), "weights", error);
  if (!to)
    return FALSE;
  g_ptr_array_add(source->weights->memory, to);
  *array = to;
  if (shapes[0].copies == 1)
    source->weights->bytes += (double)elements * sizeof(KvBf16);
  if (matrix && shapes[0].copies == 1 && ids[0] >= KV_TENSOR_ATTENTION_NORM)
    source->weights->layer_parameters += (double)elements;
  for (guint copy = 0; copy < shapes[0].copies; copy++)
    for (guint i = 0; i < n; to += shapes[i].rows * shapes[i].columns, i++) {
      gsize bytes = shapes[i].rows * shapes[i].columns * sizeof(KvBf16);
      gboolean there = is_there(source, ids[i], layer, &shapes[i]);
      if (there ? !fill(source, to, ids[i], layer, copy, &shapes[i], error)
                : !kv_cuda_fill(source->device, to, 0, bytes, error))
        return FALSE;
    }
  KvCudaWeights *w = source->weights;
  return !w->streamed || !matrix || ids[0] < KV_TENSOR_ATTENTION_NORM ||
         kv_cuda_streamed_weights_take(w->streamed, source->device, w->memory, layer, array,
                                       elements * sizeof(KvBf16), error);
}

#define JOIN(array, ...)                                                                           \
  join(source, &(array), group, l, (const KvTensorId[]){__VA_ARGS__},                              \
       sizeof((const KvTensorId[]){__VA_ARGS__}) / sizeof(KvTensorId), error)

static gboolean make_mixer(Source *source, guint l, const KvLayerGroup *group, GError **error) {
  KvCudaLayer *layer = &source->weights->layers[l];
  KvCudaMixer *mixer = &layer->mixer;
  return JOIN(layer->attention_norm, KV_TENSOR_ATTENTION_NORM) &&
         JOIN(layer->attention_norm_bias, KV_TENSOR_ATTENTION_NORM_BIAS) &&
         JOIN(mixer->in, KV_TENSOR_MIXER_IN) && JOIN(mixer->in_bias, KV_TENSOR_MIXER_IN_BIAS) &&
         JOIN(mixer->conv, KV_TENSOR_CONV) && JOIN(mixer->conv_bias, KV_TENSOR_CONV_BIAS) &&
         JOIN(mixer->x, KV_TENSOR_MIXER_X) && JOIN(mixer->dt, KV_TENSOR_MIXER_DT) &&
         JOIN(mixer->dt_bias, KV_TENSOR_MIXER_DT_BIAS) && JOIN(mixer->decay, KV_TENSOR_DECAY) &&
         JOIN(mixer->skip, KV_TENSOR_SKIP) && JOIN(mixer->out, KV_TENSOR_MIXER_OUT) &&
         JOIN(mixer->out_bias, KV_TENSOR_MIXER_OUT_BIAS);
}

/* The up-projection of latents, in its two parts. */
static gboolean make_latent_up(Source *source, KvCudaLayer *layer, const KvLayerGroup *group,
                               guint l, GError **error) {
  const KvAttention *a = &group->attention;
  guint nope = a->head_dim - a->rope_head_dim, value = a->value_head_dim;
  KvTensorShape shape = kv_tensor_shape(source->model, a, &group->mlp, KV_TENSOR_LATENT_UP);
  gsize keys = (gsize)a->n_heads * nope * shape.columns, all = shape.rows * shape.columns;
  KvBf16 *up = kv_cuda_alloc(all * sizeof(KvBf16), "weights", error);
  KvBf16 *parts = up ? kv_cuda_alloc(all * sizeof(KvBf16), "weights", error) : NULL;
  if (parts)
    g_ptr_array_add(source->weights->memory, parts);
  layer->key_up = parts;
  layer->value_up = parts ? parts + keys : NULL;
  source->weights->bytes += (double)all * sizeof(KvBf16);
  source->weights->layer_parameters += (double)all;
  gboolean made = parts && fill(source, up, KV_TENSOR_LATENT_UP, l, 0, &shape, error) &&
                  KV_CUDA_OK(kv_cuda_split_latent_up(layer->key_up, layer->value_up, up, a->n_heads,
                                                     nope, value, source->device->stream),
                             error) &&
                  kv_cuda_wait(source->device, error);
  kv_cuda_free(up);
  return made;
}

static gboolean make_latent_layer(Source *source, guint l, const KvLayerGroup *group,
                                  GError **error) {
  KvCudaLayer *layer = &source->weights->layers[l];
  gboolean down = group->attention.q_lora_rank > 0;
  return (down ? JOIN(layer->qkv, KV_TENSOR_QUERY_DOWN, KV_TENSOR_LATENT) &&
                     JOIN(layer->query_down_norm, KV_TENSOR_QUERY_DOWN_NORM) &&
                     JOIN(layer->query_up, KV_TENSOR_QUERY_UP)
               : JOIN(layer->qkv, KV_TENSOR_QUERY, KV_TENSOR_LATENT)) &&
         JOIN(layer->latent_norm, KV_TENSOR_LATENT_NORM) &&
         make_latent_up(source, layer, group, l, error);
}

/* Experts, and the shared one in the dense MLP's place. */
static gboolean make_experts(Source *source, guint l, const KvLayerGroup *group, GError **error) {
  KvCudaLayer *layer = &source->weights->layers[l];
  return JOIN(layer->router, KV_TENSOR_ROUTER) &&
         JOIN(layer->expert_up, KV_TENSOR_EXPERT_GATE, KV_TENSOR_EXPERT_UP) &&
         JOIN(layer->expert_down, KV_TENSOR_EXPERT_DOWN) &&
         JOIN(layer->up, KV_TENSOR_SHARED_GATE, KV_TENSOR_SHARED_UP) &&
         JOIN(layer->down, KV_TENSOR_SHARED_DOWN);
}

static gboolean make_layer(Source *source, guint l, const KvLayerGroup *group, GError **error) {
  KvCudaLayer *layer = &source->weights->layers[l];
  layer->attention = group->attention;
  if (group->attention.kind == KV_ATTENTION_NONE)
    return make_mixer(source, l, group, error);
  layer->mlp = group->mlp;
  layer->intermediate =
      (guint)(group->mlp.n_experts ? group->mlp.shared_intermediate : group->mlp.intermediate);
  layer->gated = group->mlp.gated;
  if (group->attention.kind == KV_ATTENTION_LATENT && !make_latent_layer(source, l, group, error))
    return FALSE;
  if (group->attention.kind != KV_ATTENTION_LATENT &&
      !JOIN(layer->qkv, KV_TENSOR_QUERY, KV_TENSOR_KEY, KV_TENSOR_VALUE))
    return FALSE;
  if (!JOIN(layer->attention_norm, KV_TENSOR_ATTENTION_NORM) ||
      !JOIN(layer->attention_norm_bias, KV_TENSOR_ATTENTION_NORM_BIAS) ||
      !JOIN(layer->qkv_bias, KV_TENSOR_QUERY_BIAS, KV_TENSOR_KEY_BIAS, KV_TENSOR_VALUE_BIAS) ||
      !JOIN(layer->query_norm, KV_TENSOR_QUERY_NORM) ||
      !JOIN(layer->key_norm, KV_TENSOR_KEY_NORM) || !JOIN(layer->output, KV_TENSOR_OUTPUT) ||
      !JOIN(layer->output_bias, KV_TENSOR_OUTPUT_BIAS) ||
      !JOIN(layer->mlp_norm, KV_TENSOR_MLP_NORM) ||
      !JOIN(layer->mlp_norm_bias, KV_TENSOR_MLP_NORM_BIAS) ||
      !JOIN(layer->up_bias, KV_TENSOR_UP_BIAS) || !JOIN(layer->down, KV_TENSOR_DOWN) ||
      !JOIN(layer->down_bias, KV_TENSOR_DOWN_BIAS))
    return FALSE;
  if (group->mlp.n_experts)
    return make_experts(source, l, group, error);
  return layer->gated ? JOIN(layer->up, KV_TENSOR_GATE, KV_TENSOR_UP)
                      : JOIN(layer->up, KV_TENSOR_UP);
}

static gboolean make_model(Source *source, GError **error) {
  KvCudaWeights *w = source->weights;
  const KvLayerGroup *group = &source->model->groups[0];
  guint l = 0;
  if (!JOIN(w->embedding, KV_TENSOR_EMBEDDING))
    return FALSE;
  w->bytes = 0.0; /* a few rows of it are read, unless it is the head */
  if (!JOIN(w->positions, KV_TENSOR_POSITIONS))
    return FALSE;
  w->bytes = 0.0;
  if (!JOIN(w->final_norm, KV_TENSOR_FINAL_NORM) ||
      !JOIN(w->final_norm_bias, KV_TENSOR_FINAL_NORM_BIAS) || !JOIN(w->head, KV_TENSOR_HEAD))
    return FALSE;
  if (!w->head) {
    w->head = w->embedding;
    w->bytes += (double)w->vocab * w->hidden * sizeof(KvBf16);
  }
  for (guint g = 0; g < source->model->n_groups; g++)
    for (guint i = 0; i < source->model->groups[g].count; i++, l++)
      if (!make_layer(source, l, &source->model->groups[g], error))
        return FALSE;
  return kv_cuda_wait(source->device, error);
}

static const char *recurrence_obstacle(const KvModel *model, const KvAttention *a) {
  guint N = a->state_dim;
  if (model->hidden % 8 || a->inner % 8 || a->dt_rank % 8)
    return "recurrent layers whose widths are not multiples of 8";
  if (N < 4 || N > 128 || (N & (N - 1)))
    return "recurrent layers whose state_dim is not 4, 8, 16, 32, 64 or 128";
  return a->conv_width > 4 ? "recurrent layers with convolutions wider than 4" : NULL;
}

static const char *attention_obstacle(const KvAttention *a) {
  guint d = a->head_dim;
  if (a->kind == KV_ATTENTION_LATENT) {
    if (a->kv_lora_rank != KV_CUDA_LATENT_RANK || a->rope_head_dim != KV_CUDA_LATENT_ROPE)
      return "latents that are not 512 numbers with rotated keys of 64";
    if ((d - a->rope_head_dim) % 8 || a->value_head_dim % 8 || a->q_lora_rank % 8)
      return "latent attention with sizes that are no multiples of 8";
    return NULL;
  }
  if (d != 64 && d != 80 && d != 96 && d != 128)
    return "heads whose size is not 64, 80, 96 or 128";
  if (kv_cuda_prefill_tile_tokens(a->n_heads, a->n_kv_heads) == 0)
    return "more than 128 query heads to a KV head";
  return NULL;
}

/* What the kernels do not compute, beyond what the host does not. */
static const char *obstacle(const KvModel *model) {
  const char *problem = kv_host_weights_obstacle(model);
  for (guint g = 0; g < model->n_groups && !problem; g++) {
    const KvAttention *a = &model->groups[g].attention;
    const KvMlp *m = &model->groups[g].mlp;
    problem = a->kind == KV_ATTENTION_NONE ? recurrence_obstacle(model, a) : attention_obstacle(a);
    if (!problem && m->n_experts > KV_CUDA_MOST_EXPERTS)
      problem = "more than 1024 experts";
    if (!problem && m->n_experts && (model->hidden % 8 || m->expert_intermediate % 8))
      problem = "experts whose sizes are no multiples of 8";
  }
  if (!problem && model->embedding_dim && model->embedding_dim != model->hidden)
    problem = "token tables narrower than its layers";
  return problem;
}

static gboolean open_source(Source *source, const char *folder, GError **error) {
  KvCudaWeights *w = source->weights;
  if (folder) {
    source->checkpoint = kv_checkpoint_open(folder, error);
    if (!source->checkpoint)
      return FALSE;
    w->epsilon = kv_checkpoint_epsilon(source->checkpoint);
    w->rotary = *kv_checkpoint_rotary(source->checkpoint);
    w->routing = *kv_checkpoint_routing(source->checkpoint);
    if (!kv_tensor_check_routing(source->model, &w->routing, error))
      return FALSE;
    source->stage = g_new(KvBf16, STAGE_ELEMENTS);
    return TRUE;
  }
  if (kv_model_parameters(source->model) > KV_HOST_MAX_PARAMETERS)
    return TRUE;
  source->host = kv_host_weights_new(source->model, source->seed, error);
  return source->host != NULL;
}

KvCudaWeights *kv_cuda_weights_new(KvCudaDevice *device, const KvModel *model, const char *folder,
                                   guint64 seed, GError **error) {
  return kv_cuda_weights_new_streamed(device, model, folder, seed, 1.0, error);
}

KvCudaWeights *kv_cuda_weights_new_streamed(KvCudaDevice *device, const KvModel *model,
                                            const char *folder, guint64 seed, double share,
                                            GError **error) {
  const char *problem = obstacle(model);
  if (problem) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "model %s has %s, the cuda executor computes full, sliding and latent attention "
                "with dense or gated expert MLPs, and stacks of Mamba blocks",
                model->id, problem);
    return NULL;
  }
  g_autoptr(KvCudaWeights) weights = g_new0(KvCudaWeights, 1);
  weights->hidden = model->hidden;
  weights->vocab = model->vocab;
  weights->max_positions = model->learned_positions ? model->max_context_tokens : 0;
  weights->norm = model->norm;
  weights->epsilon = KV_HOST_EPSILON;
  weights->rotary = KV_HOST_ROTARY_DEFAULT;
  weights->routing = (KvHostRouting){.normalized = TRUE, .scale = 1.0f};
  weights->n_layers = kv_model_layers(model);
  weights->layers = g_new0(KvCudaLayer, weights->n_layers);
  weights->memory = g_ptr_array_new_with_free_func(kv_cuda_free);
  weights->streamed = share < 1.0 ? kv_cuda_streamed_weights_new(share) : NULL;
  Source source = {.device = device, .model = model, .weights = weights, .seed = seed};
  gboolean made = open_source(&source, folder, error) && make_model(&source, error) &&
                  (!weights->streamed || kv_cuda_streamed_weights_place(weights->streamed, error));
  kv_checkpoint_free(source.checkpoint);
  kv_host_weights_free(source.host);
  g_free(source.stage);
  return made ? g_steal_pointer(&weights) : NULL;
}

void kv_cuda_weights_free(KvCudaWeights *weights) {
  if (!weights)
    return;
  g_ptr_array_unref(weights->memory);
  kv_cuda_streamed_weights_free(weights->streamed);
  g_free(weights->layers);
  g_free(weights);
}
