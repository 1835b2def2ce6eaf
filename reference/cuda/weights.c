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

static gboolean from_checkpoint(Source *source, KvBf16 *to, KvTensorId id, guint layer,
                                const KvTensorShape *shape, GError **error) {
  g_autofree char *name = kv_tensor_name(source->model, id, layer);
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
static gboolean from_host(Source *source, KvBf16 *to, KvTensorId id, guint layer,
                          const KvTensorShape *shape, GError **error) {
  const float *tensor = *kv_tensor_slot(source->host, id, layer);
  gsize R = shape->rows, C = shape->columns;
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
  } spreads[] = {[KV_TENSOR_MATRIX] = {0.0, 2.0, TRUE},
                 [KV_TENSOR_TABLE] = {0.0, 1.0, TRUE},
                 [KV_TENSOR_GAIN] = {1.0, 0.1, FALSE},
                 [KV_TENSOR_BIAS] = {0.0, 0.1, FALSE}};
  double deviation = spreads[shape->kind].deviation;
  if (spreads[shape->kind].by_width)
    deviation /= sqrt((double)shape->columns);
  guint64 stream = kv_random_mix(source->seed ^ kv_random_mix(++source->stream));
  return KV_CUDA_OK(
      kv_cuda_fill_random(to, shape->rows * shape->columns, (float)spreads[shape->kind].mean,
                          (float)(sqrt(3.0) * deviation), stream, source->device->stream),
      error);
}

static gboolean fill(Source *source, KvBf16 *to, KvTensorId id, guint layer,
                     const KvTensorShape *shape, GError **error) {
  return source->checkpoint ? from_checkpoint(source, to, id, layer, shape, error)
         : source->host     ? from_host(source, to, id, layer, shape, error)
                            : from_seed(source, to, shape, error);
}

static gboolean is_there(const Source *source, KvTensorId id, guint layer,
                         const KvTensorShape *shape) {
  if (!source->checkpoint || !shape->open)
    return shape->present;
  g_autofree char *name = kv_tensor_name(source->model, id, layer);
  return name && kv_checkpoint_has(source->checkpoint, name);
}

/* One array of the tensors ids[n], one after another; those that are not there are zero, and if
 * none is, *array stays NULL. */
static gboolean join(Source *source, KvBf16 **array, const KvLayerGroup *group, guint layer,
                     const KvTensorId *ids, guint n, GError **error) {
  KvTensorShape shapes[3];
  guint64 elements = 0;
  gboolean any = FALSE, matrix = FALSE;
  for (guint i = 0; i < n; i++) {
    shapes[i] = kv_tensor_shape(source->model, &group->attention, &group->mlp, ids[i]);
    elements += shapes[i].rows * shapes[i].columns;
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
  source->weights->bytes += (double)elements * sizeof(KvBf16);
  if (matrix && ids[0] >= KV_TENSOR_ATTENTION_NORM)
    source->weights->layer_parameters += (double)elements;
  for (guint i = 0; i < n; to += shapes[i].rows * shapes[i].columns, i++) {
    gsize bytes = shapes[i].rows * shapes[i].columns * sizeof(KvBf16);
    gboolean there = is_there(source, ids[i], layer, &shapes[i]);
    if (there ? !fill(source, to, ids[i], layer, &shapes[i], error)
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

static gboolean make_layer(Source *source, guint l, const KvLayerGroup *group, GError **error) {
  KvCudaLayer *layer = &source->weights->layers[l];
  layer->attention = group->attention;
  layer->intermediate = (guint)group->mlp.intermediate;
  layer->gated = group->mlp.gated;
  if (!JOIN(layer->attention_norm, KV_TENSOR_ATTENTION_NORM) ||
      !JOIN(layer->attention_norm_bias, KV_TENSOR_ATTENTION_NORM_BIAS) ||
      !JOIN(layer->qkv, KV_TENSOR_QUERY, KV_TENSOR_KEY, KV_TENSOR_VALUE) ||
      !JOIN(layer->qkv_bias, KV_TENSOR_QUERY_BIAS, KV_TENSOR_KEY_BIAS, KV_TENSOR_VALUE_BIAS) ||
      !JOIN(layer->query_norm, KV_TENSOR_QUERY_NORM) ||
      !JOIN(layer->key_norm, KV_TENSOR_KEY_NORM) || !JOIN(layer->output, KV_TENSOR_OUTPUT) ||
      !JOIN(layer->output_bias, KV_TENSOR_OUTPUT_BIAS) ||
      !JOIN(layer->mlp_norm, KV_TENSOR_MLP_NORM) ||
      !JOIN(layer->mlp_norm_bias, KV_TENSOR_MLP_NORM_BIAS) ||
      !JOIN(layer->up_bias, KV_TENSOR_UP_BIAS) || !JOIN(layer->down, KV_TENSOR_DOWN) ||
      !JOIN(layer->down_bias, KV_TENSOR_DOWN_BIAS))
    return FALSE;
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

/* What the kernels do not compute, beyond what the host does not. */
static const char *obstacle(const KvModel *model) {
  const char *problem = kv_host_weights_obstacle(model);
  for (guint g = 0; g < model->n_groups && !problem; g++) {
    guint d = model->groups[g].attention.head_dim;
    if (d != 64 && d != 80 && d != 96 && d != 128)
      problem = "heads whose size is not 64, 80, 96 or 128";
    else if (kv_cuda_prefill_tile_tokens(model->groups[g].attention.n_heads,
                                         model->groups[g].attention.n_kv_heads) == 0)
      problem = "more than 128 query heads to a KV head";
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
                "model %s has %s, the cuda executor computes dense models with full or sliding "
                "multi-head attention",
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
