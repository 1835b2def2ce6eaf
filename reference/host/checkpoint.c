#include "reference/host/checkpoint.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"

/* No header of a real checkpoint comes near. */
enum { MAX_HEADER_BYTES = 64 << 20 };

/* A file of tensors. */
typedef struct {
  char *path;
  GMappedFile *map;
  KvJson *header;
  gsize begin; /* of the tensors' bytes */
} Shard;

struct KvCheckpoint {
  char *folder;
  GPtrArray *shards;
  GHashTable *where; /* of Shard (borrowed), by tensor name */
  float epsilon;
  KvHostRotary rotary;
  KvHostRouting routing;
};

static void shard_free(gpointer data) {
  Shard *shard = data;
  kv_json_free(shard->header);
  if (shard->map)
    g_mapped_file_unref(shard->map);
  g_free(shard->path);
  g_free(shard);
}

void kv_checkpoint_free(KvCheckpoint *checkpoint) {
  if (!checkpoint)
    return;
  g_hash_table_unref(checkpoint->where);
  g_ptr_array_unref(checkpoint->shards);
  g_free(checkpoint->folder);
  g_free(checkpoint);
}

static gboolean in_folder(const char *folder, const char *name) {
  g_autofree char *path = g_build_filename(folder, name, NULL);
  return g_file_test(path, G_FILE_TEST_IS_REGULAR);
}

gboolean kv_checkpoint_exists(const char *path) {
  return in_folder(path, "model.safetensors") || in_folder(path, "model.safetensors.index.json");
}

/* --- config.json ---------------------------------------------------------------------------- */

static gboolean is_given(json_t *config, const char *key) {
  json_t *value = json_object_get(config, key);
  return value && !json_is_null(value);
}

/* Of scores and angles under yarn: Peng et al. (2023), equation 22, times `strength`. */
static double yarn_magnitude(double factor, double strength) {
  return factor <= 1.0 ? 1.0 : 0.1 * strength * log(factor) + 1.0;
}

/* As in DeepSeek-V2's modeling_deepseek.py. */
static void read_yarn(KvJson *json, json_t *scaling, KvHostRotary *rotary) {
  double strength = kv_json_number(json, scaling, "mscale", 1.0, 0.0, 1e3);
  double of_scores = kv_json_number(json, scaling, "mscale_all_dim", 0.0, 0.0, 1e3);
  rotary->yarn = TRUE;
  rotary->low = kv_json_number(json, scaling, "beta_slow", 1.0, 1e-6, 1e6);
  rotary->high = kv_json_number(json, scaling, "beta_fast", 32.0, 1e-6, 1e6);
  rotary->original =
      kv_json_number(json, scaling, "original_max_position_embeddings", KV_JSON_REQUIRED, 1.0, 1e9);
  if (rotary->high <= rotary->low)
    kv_json_fail(json, scaling, "beta_fast", "%g is not above beta_slow %g", rotary->high,
                 rotary->low);
  if (is_given(scaling, "attention_factor"))
    kv_json_fail(json, scaling, "attention_factor",
                 "'attention_factor' is not computed, expected mscale and mscale_all_dim");
  double all = yarn_magnitude(rotary->factor, of_scores);
  rotary->magnitude = yarn_magnitude(rotary->factor, strength) / all;
  rotary->score_scale = of_scores > 0.0 ? all * all : 1.0;
}

static void read_scaling(KvJson *json, json_t *scaling, gboolean latent, KvHostRotary *rotary) {
  const char *kind = kv_json_string(json, scaling, "rope_type", "", FALSE);
  if (!*kind)
    kind = kv_json_string(json, scaling, "type", "default", FALSE);
  rotary->theta = kv_json_number(json, scaling, "rope_theta", rotary->theta, 1.0, 1e12);
  if (strcmp(kind, "default") == 0)
    return;
  rotary->factor = kv_json_number(json, scaling, "factor", KV_JSON_REQUIRED, 1.0, 1e6);
  if (strcmp(kind, "linear") == 0) {
    rotary->low = rotary->high = INFINITY;
  } else if (strcmp(kind, "llama3") == 0) {
    rotary->low = kv_json_number(json, scaling, "low_freq_factor", KV_JSON_REQUIRED, 0.0, 1e6);
    rotary->high = kv_json_number(json, scaling, "high_freq_factor", KV_JSON_REQUIRED, 0.0, 1e6);
    rotary->original = kv_json_number(json, scaling, "original_max_position_embeddings",
                                      KV_JSON_REQUIRED, 1.0, 1e9);
    if (rotary->high <= rotary->low)
      kv_json_fail(json, scaling, "high_freq_factor", "%g is not above low_freq_factor %g",
                   rotary->high, rotary->low);
  } else if (strcmp(kind, "yarn") == 0 && latent) {
    read_yarn(json, scaling, rotary);
  } else {
    kv_json_fail(json, scaling, json_object_get(scaling, "rope_type") ? "rope_type" : "type",
                 "rotary scaling \"%s\" is not computed, expected default, linear or llama3 (or "
                 "yarn with latent attention)",
                 kind);
  }
}

/* How experts are chosen. */
static void read_routing(KvJson *json, json_t *config, KvHostRouting *routing) {
  const char *type = kv_json_string(json, config, "model_type", "", FALSE);
  const char *scoring = kv_json_string(json, config, "scoring_func", "softmax", FALSE);
  const char *method = kv_json_string(json, config, "topk_method", "greedy", FALSE);
  gboolean limited = strcmp(method, "group_limited_greedy") == 0;
  if (strcmp(type, "qwen2_moe") == 0)
    kv_json_fail(json, config, "model_type",
                 "shared experts behind a gate, as in 'qwen2_moe', are not computed, expected "
                 "deepseek_v2, qwen3_moe or mixtral");
  if (strcmp(scoring, "softmax") != 0)
    kv_json_fail(json, config, "scoring_func",
                 "a router's '%.40s' is not computed, expected softmax", scoring);
  if (strcmp(method, "greedy") != 0 && !limited)
    kv_json_fail(json, config, "topk_method",
                 "'%.40s' is not computed, expected greedy or group_limited_greedy", method);
  routing->normalized = is_given(config, "norm_topk_prob")
                            ? kv_json_boolean(json, config, "norm_topk_prob", FALSE)
                            : strcmp(type, "mixtral") == 0;
  if (is_given(config, "routed_scaling_factor"))
    routing->scale = (float)kv_json_number(json, config, "routed_scaling_factor", 1.0, 0.0, 1e6);
  if (routing->normalized) /* DeepSeek-V2's code does the one or the other */
    routing->scale = 1.0f;
  if (limited) {
    routing->groups = (guint)kv_json_integer(json, config, "n_group", KV_JSON_REQUIRED, 1, 65536);
    routing->groups_kept =
        (guint)kv_json_integer(json, config, "topk_group", KV_JSON_REQUIRED, 1, 65536);
  }
}

static gboolean read_config(KvCheckpoint *checkpoint, GError **error) {
  g_autofree char *path = g_build_filename(checkpoint->folder, "config.json", NULL);
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  json_t *root = kv_json_root(json);
  checkpoint->rotary = KV_HOST_ROTARY_DEFAULT;
  checkpoint->rotary.theta = kv_json_number(json, root, "rope_theta", 10000.0, 1.0, 1e12);
  const char *epsilon = kv_json_has(root, "layer_norm_epsilon") ? "layer_norm_epsilon" /* Mamba */
                                                                : "rms_norm_eps";
  checkpoint->epsilon = (float)kv_json_number(json, root, epsilon, 1e-5, 0.0, 1.0);
  static const char *const scalings[] = {"rope_parameters", "rope_scaling"}; /* new and old name */
  for (guint i = 0; i < G_N_ELEMENTS(scalings); i++)
    if (json_is_object(json_object_get(root, scalings[i]))) {
      read_scaling(json, json_object_get(root, scalings[i]), is_given(root, "kv_lora_rank"),
                   &checkpoint->rotary);
      break;
    }
  checkpoint->routing.scale = 1.0f;
  static const char *const experts[] = {"n_routed_experts", "num_local_experts", "num_experts"};
  for (guint i = 0; i < G_N_ELEMENTS(experts); i++)
    if (is_given(root, experts[i])) {
      read_routing(json, root, &checkpoint->routing);
      break;
    }
  return kv_json_finish(json, error);
}

/* --- the files ------------------------------------------------------------------------------ */

/* Map the file and read its header. */
static gboolean shard_open(Shard *shard, GError **error) {
  g_autoptr(GError) problem = NULL;
  shard->map = g_mapped_file_new(shard->path, FALSE, &problem);
  if (!shard->map) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: %s", shard->path, problem->message);
    return FALSE;
  }
  gsize size = g_mapped_file_get_length(shard->map);
  const char *bytes = g_mapped_file_get_contents(shard->map);
  guint64 length = 0;
  if (size >= 8) {
    memcpy(&length, bytes, 8);
    length = GUINT64_FROM_LE(length);
  }
  if (size < 8 || length > MAX_HEADER_BYTES || length > size - 8) {
    kv_error_at(error, shard->path, 0,
                "a header of %" G_GUINT64_FORMAT " bytes in a file of %" G_GSIZE_FORMAT
                ", expected a whole safetensors file",
                length, size);
    return FALSE;
  }
  shard->begin = 8 + (gsize)length;
  shard->header = kv_json_parse(shard->path, bytes + 8, (gsize)length, error);
  if (shard->header && !json_is_object(kv_json_root(shard->header))) {
    kv_error_at(error, shard->path, 0, "its header is not an object, expected safetensors");
    return FALSE;
  }
  return shard->header != NULL;
}

static Shard *add_shard(KvCheckpoint *checkpoint, const char *name, GError **error) {
  Shard *shard = g_new0(Shard, 1);
  shard->path = g_build_filename(checkpoint->folder, name, NULL);
  g_ptr_array_add(checkpoint->shards, shard);
  if (!shard_open(shard, error))
    return NULL;
  const char *tensor;
  json_t *value;
  json_object_foreach(kv_json_root(shard->header), tensor,
                      value) if (strcmp(tensor, "__metadata__") != 0)
      g_hash_table_insert(checkpoint->where, g_strdup(tensor), shard);
  return shard;
}

/* The files that the index names, each once. */
static gboolean add_indexed(KvCheckpoint *checkpoint, GError **error) {
  g_autofree char *path =
      g_build_filename(checkpoint->folder, "model.safetensors.index.json", NULL);
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  json_t *map = kv_json_object(json, kv_json_root(json), "weight_map", TRUE);
  g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);
  const char *tensor;
  json_t *value;
  json_object_foreach(map, tensor, value) {
    const char *file = json_string_value(value);
    if (!file || strchr(file, '/'))
      kv_json_fail(json, map, tensor, "expected the name of a file in this folder");
    else if (g_hash_table_add(seen, (gpointer)file) && !add_shard(checkpoint, file, error))
      return FALSE;
  }
  return kv_json_finish(json, error);
}

KvCheckpoint *kv_checkpoint_open(const char *folder, GError **error) {
  g_autoptr(KvCheckpoint) checkpoint = g_new0(KvCheckpoint, 1);
  checkpoint->folder = g_strdup(folder);
  checkpoint->shards = g_ptr_array_new_with_free_func(shard_free);
  checkpoint->where = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  if (!read_config(checkpoint, error))
    return NULL;
  gboolean whole = in_folder(folder, "model.safetensors");
  if (whole ? !add_shard(checkpoint, "model.safetensors", error) : !add_indexed(checkpoint, error))
    return NULL;
  return g_steal_pointer(&checkpoint);
}

float kv_checkpoint_epsilon(const KvCheckpoint *checkpoint) {
  return checkpoint->epsilon;
}

const KvHostRotary *kv_checkpoint_rotary(const KvCheckpoint *checkpoint) {
  return &checkpoint->rotary;
}

const KvHostRouting *kv_checkpoint_routing(const KvCheckpoint *checkpoint) {
  return &checkpoint->routing;
}

/* --- tensors -------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  gsize bytes;
} types[] = {
    [KV_TENSOR_BF16] = {"BF16", 2}, [KV_TENSOR_F16] = {"F16", 2}, [KV_TENSOR_F32] = {"F32", 4}};

gboolean kv_checkpoint_has(const KvCheckpoint *checkpoint, const char *name) {
  return g_hash_table_contains(checkpoint->where, name);
}

static gboolean find_type(const char *name, KvTensorType *type) {
  for (guint i = 0; i < G_N_ELEMENTS(types); i++)
    if (g_strcmp0(name, types[i].name) == 0) {
      *type = (KvTensorType)i;
      return TRUE;
    }
  return FALSE;
}

/* One or two whole numbers: a vector is one row. A convolution of channels by themselves has a one
 * between them. */
static gboolean read_shape(const json_t *shape, KvTensor *tensor) {
  gsize n = json_array_size(shape);
  for (gsize i = 0; i < n; i++)
    if (!json_is_integer(json_array_get(shape, i)) ||
        json_integer_value(json_array_get(shape, i)) < 0)
      return FALSE;
  gboolean depthwise = n == 3 && json_integer_value(json_array_get(shape, 1)) == 1;
  if (n != 1 && n != 2 && !depthwise)
    return FALSE;
  tensor->rows = n > 1 ? (guint64)json_integer_value(json_array_get(shape, 0)) : 1;
  tensor->columns = (guint64)json_integer_value(json_array_get(shape, n - 1));
  return TRUE;
}

gboolean kv_checkpoint_tensor(const KvCheckpoint *checkpoint, const char *name, guint64 rows,
                              guint64 columns, KvTensor *tensor, GError **error) {
  const Shard *shard = g_hash_table_lookup(checkpoint->where, name);
  if (!shard) {
    kv_error_at(error, checkpoint->folder, 0, "no tensor %s, which its config.json makes us expect",
                name);
    return FALSE;
  }
  const json_t *entry = json_object_get(kv_json_root(shard->header), name);
  const json_t *offsets = json_object_get(entry, "data_offsets");
  const char *type = json_string_value(json_object_get(entry, "dtype"));
  if (!find_type(type, &tensor->type)) {
    kv_error_at(error, shard->path, 0, "tensor %s of type %s, expected BF16, F16 or F32", name,
                type ? type : "(none)");
    return FALSE;
  }
  if (!read_shape(json_object_get(entry, "shape"), tensor) || tensor->rows != rows ||
      tensor->columns != columns) {
    kv_error_at(error, shard->path, 0,
                "tensor %s is not the [%" G_GUINT64_FORMAT "][%" G_GUINT64_FORMAT
                "] that its config.json makes us expect",
                name, rows, columns);
    return FALSE;
  }
  json_int_t first = json_integer_value(json_array_get(offsets, 0));
  json_int_t end = json_integer_value(json_array_get(offsets, 1));
  gsize held = g_mapped_file_get_length(shard->map) - shard->begin;
  if (first < 0 || end < first || (guint64)end > held ||
      (guint64)(end - first) != rows * columns * types[tensor->type].bytes) {
    kv_error_at(error, shard->path, 0,
                "tensor %s does not lie in the file, expected a whole safetensors file", name);
    return FALSE;
  }
  tensor->bytes = g_mapped_file_get_contents(shard->map) + shard->begin + first;
  return TRUE;
}

static float float_from_bits(guint32 bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* IEEE 754 binary16. */
static float float_from_f16(guint16 half) {
  guint32 sign = (guint32)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31)
    return float_from_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    float tiny = (float)fraction * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static float element(const KvTensor *tensor, guint64 i) {
  guint32 word = 0;
  guint16 half = 0;
  if (tensor->type == KV_TENSOR_F32) {
    memcpy(&word, (const char *)tensor->bytes + 4 * i, sizeof word);
    return float_from_bits(GUINT32_FROM_LE(word));
  }
  memcpy(&half, (const char *)tensor->bytes + 2 * i, sizeof half);
  half = GUINT16_FROM_LE(half);
  return tensor->type == KV_TENSOR_F16 ? float_from_f16(half)
                                       : float_from_bits((guint32)half << 16);
}

void kv_tensor_to_f32(const KvTensor *tensor, guint64 first, guint64 n, float *out) {
  for (guint64 i = 0; i < n; i++)
    out[i] = element(tensor, first + i);
}

static inline guint16 narrow(float x) {
  guint32 bits;
  memcpy(&bits, &x, sizeof bits);
  if (isnan(x))
    return 0x7fff;
  return (guint16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

guint16 kv_bf16_from_float(float x) {
  return narrow(x);
}

void kv_bf16_from_floats(guint16 *out, const float *x, gsize n) {
  for (gsize i = 0; i < n; i++)
    out[i] = narrow(x[i]);
}

void kv_tensor_to_bf16(const KvTensor *tensor, guint64 first, guint64 n, guint16 *out) {
  if (tensor->type == KV_TENSOR_BF16 && G_BYTE_ORDER == G_LITTLE_ENDIAN)
    memcpy(out, (const char *)tensor->bytes + 2 * first, n * sizeof *out);
  else
    for (guint64 i = 0; i < n; i++)
      out[i] = kv_bf16_from_float(element(tensor, first + i));
}
