#include "models/kernels/observation.h"

#include <math.h>

#include "sim/base/error.h"

const char *const kv_observed_names[] = {"gemm",       "prefill attention", "decode attention",
                                         "all-reduce", "decode step",       "prefill step",
                                         NULL};
G_STATIC_ASSERT(G_N_ELEMENTS(kv_observed_names) == KV_N_OBSERVED + 1);

static const KvTableReader *const readers[] = {&kv_table_pytorch_grid, &kv_table_pytorch_steps,
                                               &kv_table_aiconfigurator};

gboolean kv_observations_read(const char *path, GArray *observations, GError **error) {
  if (!g_file_test(path, G_FILE_TEST_IS_REGULAR)) {
    kv_error_at(error, path, 0, "is no file that can be read, expected a table of measured times");
    return FALSE;
  }
  GString *names = g_string_new(NULL);
  for (guint i = 0; i < G_N_ELEMENTS(readers); i++) {
    if (readers[i]->accepts(path)) {
      g_string_free(names, TRUE);
      return readers[i]->read(path, observations, error);
    }
    g_string_append_printf(names, "%s%s", i ? ", " : "", readers[i]->description);
  }
  kv_error_at(error, path, 0, "unknown table format, expected one of: %s", names->str);
  g_string_free(names, TRUE);
  return FALSE;
}

/* How much of the full rate a short benchmark still has: kernels alone under about a millisecond
 * are not slowed, most longer ones are. Chosen by the H200's GEMM grid. */
static double burst_remaining(double seconds) {
  const double reaction_seconds = 0.8e-3;
  double ratio = seconds / reaction_seconds;
  return 1 / (1 + ratio * ratio * ratio * ratio);
}

static double predict_gemm(const KvDevice *device, const KvMeasuring *measuring,
                           const KvObservation *observation) {
  double seconds = kv_kernel_gemm(device, observation->dtype, kv_dtype_bytes(observation->dtype),
                                  observation->m, observation->k, observation->n)
                       .seconds;
  if (!observation->eager)
    return seconds;
  KvDevice unlimited = *device;
  KvEfficiency *efficiency = &unlimited.efficiency[KV_KERNEL_GEMM][observation->dtype];
  efficiency->sustained_share += (1 - efficiency->sustained_share) * burst_remaining(seconds);
  seconds = kv_kernel_gemm(&unlimited, observation->dtype, kv_dtype_bytes(observation->dtype),
                           observation->m, observation->k, observation->n)
                .seconds;
  return kv_smooth_max(seconds, measuring->floor_seconds, 4);
}

static double prefill_attention_seconds(const KvDevice *device, const KvObservation *observation,
                                        double n_heads, double n_kv_heads, double head_dim) {
  /* Sequences of equal length in one launch are so many more heads. */
  return kv_kernel_prefill_attention(device, observation->dtype, observation->chunk,
                                     observation->past, n_heads * observation->batch,
                                     n_kv_heads * observation->batch, head_dim, head_dim,
                                     observation->window, observation->cache_bytes)
      .seconds;
}

static double decode_attention_seconds(const KvDevice *device, const KvObservation *observation,
                                       double n_heads, double n_kv_heads, double head_dim) {
  double context = observation->past + observation->chunk;
  double tokens = observation->window > 0 ? MIN(context, observation->window) : context;
  double read_bytes =
      observation->batch * tokens * 2 * n_kv_heads * head_dim * observation->cache_bytes;
  double flops = observation->batch * tokens * 4 * n_heads * head_dim;
  return kv_kernel_decode_attention(device, observation->dtype, observation->batch, read_bytes,
                                    flops, n_kv_heads, tokens)
      .seconds;
}

double kv_observation_step_seconds(const KvDevice *device, const KvObservation *observation,
                                   double *kernels) {
  const KvStepShape *shape = observation->shape;
  double rows = observation->batch * observation->chunk, element_bytes = 2;
  double q_width = shape->n_heads * shape->head_dim, kv_width = shape->n_kv_heads * shape->head_dim;
  const struct {
    double k, n;
  } products[] = {{shape->hidden, q_width + 2 * kv_width},
                  {q_width, shape->hidden},
                  {shape->hidden, 2 * shape->intermediate},
                  {shape->intermediate, shape->hidden}};
  /* Elements moved a row: norm; rotary; cache write; residual with norm; activation; residual. */
  const double moved[] = {2 * shape->hidden, 2 * (q_width + kv_width), 4 * kv_width,
                          4 * shape->hidden, 3 * shape->intermediate,  3 * shape->hidden};
  double layer_seconds = 0;
  for (guint i = 0; i < G_N_ELEMENTS(products); i++)
    layer_seconds += kv_kernel_gemm(device, observation->dtype, element_bytes, rows, products[i].k,
                                    products[i].n)
                         .seconds;
  for (guint i = 0; i < G_N_ELEMENTS(moved); i++)
    layer_seconds += kv_kernel_elementwise(device, rows * moved[i] * element_bytes).seconds;
  layer_seconds += observation->kind == KV_OBSERVED_DECODE_STEP
                       ? decode_attention_seconds(device, observation, shape->n_heads,
                                                  shape->n_kv_heads, shape->head_dim)
                       : prefill_attention_seconds(device, observation, shape->n_heads,
                                                   shape->n_kv_heads, shape->head_dim);
  *kernels = shape->n_layers * (G_N_ELEMENTS(products) + G_N_ELEMENTS(moved) + 1) + 3;
  /* Embedding, last norm, logits of one position a sequence. */
  return shape->n_layers * layer_seconds +
         kv_kernel_elementwise(device, 2 * rows * shape->hidden * element_bytes).seconds +
         kv_kernel_elementwise(device, 2 * rows * shape->hidden * element_bytes).seconds +
         kv_kernel_gemm(device, observation->dtype, element_bytes, observation->batch,
                        shape->hidden, shape->vocab)
             .seconds;
}

/* What joins the GPUs of a server of such devices: their own link, or the host's. Kept for the life
 * of the program; NULL if neither is known. */
static const KvLink *peer_link(const KvDevice *device) {
  static GHashTable *links;
  const char *id = device->link ? device->link : device->host_link;
  if (!id)
    return NULL;
  if (!links)
    links = g_hash_table_new(g_str_hash, g_str_equal);
  KvLink *link = g_hash_table_lookup(links, id);
  if (!link && (link = kv_link_load(id, NULL)))
    g_hash_table_insert(links, g_strdup(id), link);
  return link;
}

double kv_observation_predict(const KvDevice *device, const KvMeasuring *measuring,
                              const KvObservation *observation) {
  double seconds, kernels;
  switch (observation->kind) {
  case KV_OBSERVED_GEMM:
    return predict_gemm(device, measuring, observation);
  case KV_OBSERVED_PREFILL_ATTENTION:
    return prefill_attention_seconds(device, observation, observation->n_heads,
                                     observation->n_kv_heads, observation->head_dim);
  case KV_OBSERVED_DECODE_ATTENTION:
    return decode_attention_seconds(device, observation, observation->n_heads,
                                    observation->n_kv_heads, observation->head_dim);
  case KV_OBSERVED_ALL_REDUCE:
    return kv_kernel_all_reduce(device, peer_link(device), observation->bytes,
                                (guint)observation->ranks)
        .seconds;
  default:
    seconds = kv_observation_step_seconds(device, observation, &kernels);
    return observation->eager ? kv_smooth_max(seconds, kernels * measuring->host_kernel_seconds, 64)
                              : seconds;
  }
}
