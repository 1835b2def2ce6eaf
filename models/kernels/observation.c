#include "models/kernels/attention.h"
#include "models/kernels/gemm.h"
#include "models/kernels/observation.h"

#include <math.h>

#include "sim/base/error.h"

const char *const kv_observed_names[] = {"gemm",
                                         "prefill attention",
                                         "decode attention",
                                         "mixed attention",
                                         "moe",
                                         "element-wise",
                                         "all-reduce",
                                         "nccl",
                                         "latent prefill",
                                         "latent decode",
                                         "latent projection",
                                         "uneven attention",
                                         "send",
                                         "decode step",
                                         "prefill step",
                                         NULL};
G_STATIC_ASSERT(G_N_ELEMENTS(kv_observed_names) == KV_N_OBSERVED + 1);

static const KvTableReader *const readers[] = {&kv_table_kvsim,         &kv_table_pytorch_grid,
                                               &kv_table_pytorch_steps, &kv_table_vllm_profile,
                                               &kv_table_vidur,         &kv_table_aiconfigurator};

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

/* What of `bytes` of operands the second-level cache still holds from the run before: all of it
 * while it fits, and next to nothing beyond, because the oldest lines go first. */
static KvResidency residency_of(const KvDevice *device, const KvMeasuring *measuring,
                                const KvObservation *observation, double bytes) {
  KvResidency residency = {0, MAX(measuring->l2_speedup, 1)};
  if (!observation->repeated || device->l2_bytes <= 0 || measuring->l2_share <= 0)
    return residency;
  double fill = bytes / (measuring->l2_share * device->l2_bytes), square = fill * fill;
  double fourth = square * square;
  residency.resident = 1 / (1 + fourth * fourth);
  return residency;
}

/* The device without the limit that long work runs into, as far as `seconds` of it do not. */
static void unlimit(KvEfficiency *efficiency, double seconds) {
  if (efficiency->sustained_share > 0)
    efficiency->sustained_share += (1 - efficiency->sustained_share) * burst_remaining(seconds);
}

static double predict_gemm(const KvDevice *device, const KvMeasuring *measuring,
                           const KvObservation *observation) {
  double element_bytes = kv_dtype_weight_bytes(observation->dtype);
  double m = observation->m, k = observation->k, n = observation->n;
  KvDevice used = *device;
  double seconds = kv_kernel_gemm(&used, observation->dtype, element_bytes, m, k, n).seconds;
  if (!observation->eager)
    return seconds;
  unlimit(&used.efficiency[KV_KERNEL_GEMM][observation->dtype], seconds);
  seconds = kv_kernel_gemm(&used, observation->dtype, element_bytes, m, k, n).seconds;
  return kv_smooth_max(seconds, measuring->floor_seconds, 4);
}

/* DeepSeek-V2's (arXiv:2405.04434), whose kernels the tables are of: sizes of a head's part without
 * and with position, of its value, and of the latent. */
static const double nope_dim = 128, rope_dim = 64, value_dim = 128, latent_dim = 512;

/* Keys and values of a prompt are widened to every head before: bf16, whatever the cache. */
static double predict_latent_prefill(const KvDevice *device, const KvObservation *row) {
  double heads = row->n_heads * row->batch, element_bytes = 2;
  KvAttentionWork work = {.latent = TRUE};
  kv_kernel_add_prefill_attention(device, row->dtype, row->chunk, row->past, heads, heads,
                                  nope_dim + rope_dim, value_dim, 0, element_bytes, &work);
  return kv_kernel_attention_call(device, row->dtype, &work).seconds;
}

static double predict_latent_decode(const KvDevice *device, const KvMeasuring *measuring,
                                    const KvObservation *row) {
  double tokens = row->past + row->chunk, read_dim = latent_dim + rope_dim;
  KvDecodeAttention operands = {
      .batch = row->batch,
      .read_bytes = row->batch * tokens * read_dim * row->cache_bytes,
      .flops = row->batch * tokens * 2 * row->n_heads * (read_dim + latent_dim),
      .n_kv_heads = 1,
      .group = row->n_heads,
      .mean_tokens = tokens,
      .latent = TRUE,
  };
  KvResidency residency = residency_of(device, measuring, row, operands.read_bytes);
  return kv_attention_decode(device, row->dtype, &operands, residency).seconds;
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

static KvDecodeAttention decode_operands(const KvObservation *observation, double batch,
                                         double context, double n_heads, double n_kv_heads,
                                         double head_dim) {
  double tokens = observation->window > 0 ? MIN(context, observation->window) : context;
  return (KvDecodeAttention){
      .batch = batch,
      .read_bytes = batch * tokens * 2 * n_kv_heads * head_dim * observation->cache_bytes,
      .flops = batch * tokens * 4 * n_heads * head_dim,
      .n_kv_heads = n_kv_heads,
      .group = n_heads / n_kv_heads,
      .mean_tokens = tokens,
      .window = observation->window,
  };
}

static double predict_decode_attention(const KvDevice *device, const KvMeasuring *measuring,
                                       const KvObservation *observation) {
  KvDecodeAttention operands =
      decode_operands(observation, observation->batch, observation->past + observation->chunk,
                      observation->n_heads, observation->n_kv_heads, observation->head_dim);
  KvResidency residency = residency_of(device, measuring, observation, operands.read_bytes);
  return kv_attention_decode(device, observation->dtype, &operands, residency).seconds;
}

/* Engines run chunks of one token as decoding. */
static double predict_prefill_attention(const KvDevice *device, const KvMeasuring *measuring,
                                        const KvObservation *row) {
  if (row->chunk <= 1)
    return predict_decode_attention(device, measuring, row);
  KvDevice used = *device;
  double seconds =
      prefill_attention_seconds(&used, row, row->n_heads, row->n_kv_heads, row->head_dim);
  unlimit(&used.efficiency[KV_KERNEL_PREFILL_ATTENTION][row->dtype], seconds);
  seconds = prefill_attention_seconds(&used, row, row->n_heads, row->n_kv_heads, row->head_dim);
  double written_bytes =
      row->batch * row->chunk * row->n_kv_heads * 2 * row->head_dim * (2 + row->cache_bytes);
  return seconds +
         (row->repeated ? measuring->write_passes * written_bytes / device->memory_Bps : 0);
}

/* A chunk of one sequence beside decoding sequences. */
static double beside_chunk_seconds(const KvDevice *device, const KvObservation *row,
                                   const KvDecodeAttention *operands) {
  KvAttentionWork work = {0};
  kv_kernel_add_prefill_attention(device, row->dtype, row->chunk, row->past, row->n_heads,
                                  row->n_kv_heads, row->head_dim, row->head_dim, row->window,
                                  row->cache_bytes, &work);
  if (!kv_kernel_attention_shares_call(device, row->dtype))
    return kv_kernel_attention_call(device, row->dtype, &work).seconds +
           kv_kernel_decode_attention(device, row->dtype, operands).seconds;
  kv_kernel_add_decode_attention(device, row->dtype, operands, &work);
  return kv_kernel_attention_call(device, row->dtype, &work).seconds;
}

static double predict_mixed_attention(const KvDevice *device, const KvObservation *row) {
  KvDecodeAttention operands = decode_operands(row, row->decode_batch, row->decode_context,
                                               row->n_heads, row->n_kv_heads, row->head_dim);
  return beside_chunk_seconds(device, row, &operands);
}

/* Decoding sequences of two lengths, beside a chunk or alone. */
static double predict_uneven_attention(const KvDevice *device, const KvObservation *row) {
  KvDecodeAttention operands = decode_operands(row, row->decode_batch, row->decode_context,
                                               row->n_heads, row->n_kv_heads, row->head_dim);
  operands.longest_tokens = row->longest_context;
  if (row->chunk <= 0)
    return kv_kernel_decode_attention(device, row->dtype, &operands).seconds;
  return beside_chunk_seconds(device, row, &operands);
}

/* A benchmark that runs through a few routings reads the experts of all of them in a round. */
static double predict_moe(const KvDevice *device, const KvMeasuring *measuring,
                          const KvObservation *row) {
  double weight_bytes = kv_dtype_weight_bytes(row->dtype);
  double experts = MIN(row->experts.n_experts, row->routings * row->expert_load.touched);
  double bytes = experts * 3 * row->experts.hidden * row->experts.intermediate * weight_bytes;
  KvResidency residency = residency_of(device, measuring, row, bytes);
  double read_share = 1 - residency.resident * (1 - 1 / residency.l2_speedup);
  return kv_moe_cost(device, row->dtype, weight_bytes, &row->experts, row->batch, &row->expert_load,
                     read_share)
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
  KvDecodeAttention operands =
      decode_operands(observation, observation->batch, observation->past + observation->chunk,
                      shape->n_heads, shape->n_kv_heads, shape->head_dim);
  layer_seconds += observation->kind == KV_OBSERVED_DECODE_STEP
                       ? kv_kernel_decode_attention(device, observation->dtype, &operands).seconds
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

double kv_observation_predict(const KvDevice *device, const KvMeasuring *measuring,
                              const KvObservation *observation) {
  double seconds, kernels;
  switch (observation->kind) {
  case KV_OBSERVED_GEMM:
    return predict_gemm(device, measuring, observation);
  case KV_OBSERVED_PREFILL_ATTENTION:
    return predict_prefill_attention(device, measuring, observation);
  case KV_OBSERVED_DECODE_ATTENTION:
    return predict_decode_attention(device, measuring, observation);
  case KV_OBSERVED_MIXED_ATTENTION:
    return predict_mixed_attention(device, observation);
  case KV_OBSERVED_UNEVEN_ATTENTION:
    return predict_uneven_attention(device, observation);
  case KV_OBSERVED_LATENT_PREFILL:
    return predict_latent_prefill(device, observation);
  case KV_OBSERVED_LATENT_DECODE:
    return predict_latent_decode(device, measuring, observation);
  case KV_OBSERVED_LATENT_PROJECTION:
    return kv_gemm_grouped(device, observation->dtype, kv_dtype_bytes(observation->dtype),
                           observation->n_heads, observation->m, observation->k, observation->n)
        .seconds;
  case KV_OBSERVED_NCCL:
    return kv_kernel_collective(device, peer_link(device), observation->collective,
                                observation->bytes, (guint)observation->ranks)
        .seconds;
  case KV_OBSERVED_MOE:
    return predict_moe(device, measuring, observation);
  case KV_OBSERVED_ELEMENTWISE:
    return (observation->cold ? kv_kernel_elementwise_cold(device, observation->bytes)
                              : kv_kernel_elementwise(device, observation->bytes))
        .seconds;
  case KV_OBSERVED_SEND:
    return kv_kernel_send(peer_link(device), observation->bytes).seconds;
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
