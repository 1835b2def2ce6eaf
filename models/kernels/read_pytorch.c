/* Two JSON forms that a short PyTorch program writes: a grid of GEMMs ("gemm_us": {"M,K,N":
 * microseconds}) launched from Python, and an array of whole-model steps ({model, phase, batch,
 * context, backend, us}), of which the fastest backend of each point counts. Decode steps are
 * replayed as one CUDA graph, prefill steps launched eagerly. */
#include "models/kernels/observation.h"

#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"

/* Published shapes of the models that such files name. */
static const KvStepShape step_shapes[] = {
    {"llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256},
    {"llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256},
    {"llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000},
    {"mistral-7b", 32, 4096, 32, 8, 128, 14336, 32000},
    {"qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064},
    {"qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152064},
};

static gboolean begins_with(const char *path, const char *opening) {
  g_autoptr(GString) head = g_string_new(NULL);
  FILE *file = fopen(path, "r");
  if (!file)
    return FALSE;
  for (int c; head->len < 1 && (c = getc(file)) != EOF;)
    if (!g_ascii_isspace(c))
      g_string_append_c(head, c);
  fclose(file);
  return g_str_equal(head->str, opening);
}

static gboolean accepts_grid(const char *path) {
  return g_str_has_suffix(path, ".json") && begins_with(path, "{");
}

static gboolean accepts_steps(const char *path) {
  return g_str_has_suffix(path, ".json") && begins_with(path, "[");
}

static gboolean read_grid(const char *path, GArray *observations, GError **error) {
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  json_t *grid = kv_json_object(json, kv_json_root(json), "gemm_us", TRUE);
  const char *key;
  json_t *value;
  json_object_foreach(grid, key, value) {
    KvObservation observation = {.kind = KV_OBSERVED_GEMM, .dtype = KV_DTYPE_BF16, .eager = TRUE};
    int length = 0;
    if (sscanf(key, "%lf,%lf,%lf%n", &observation.m, &observation.k, &observation.n, &length) !=
            3 ||
        key[length] || observation.m < 1 || observation.k < 1 || observation.n < 1) {
      kv_json_fail(json, grid, key, "GEMM '%s' is no shape, expected \"M,K,N\"", key);
      break;
    }
    observation.seconds = kv_json_number(json, grid, key, KV_JSON_REQUIRED, 1e-3, 1e9) * 1e-6;
    g_array_append_val(observations, observation);
  }
  return kv_json_finish(json, error);
}

static const KvStepShape *find_shape(const char *id) {
  for (guint i = 0; i < G_N_ELEMENTS(step_shapes); i++)
    if (g_str_equal(step_shapes[i].id, id))
      return &step_shapes[i];
  return NULL;
}

/* Keep the faster of two measurements of one point. */
static void append_fastest(GArray *observations, guint first, const KvObservation *observation) {
  for (guint i = first; i < observations->len; i++) {
    KvObservation *earlier = &g_array_index(observations, KvObservation, i);
    if (earlier->kind == observation->kind && earlier->shape == observation->shape &&
        earlier->batch == observation->batch && earlier->past == observation->past &&
        earlier->chunk == observation->chunk) {
      earlier->seconds = MIN(earlier->seconds, observation->seconds);
      return;
    }
  }
  g_array_append_val(observations, *observation);
}

static gboolean read_steps(const char *path, GArray *observations, GError **error) {
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return FALSE;
  static const char *const phases[] = {"decode", "prefill", NULL};
  guint first = observations->len;
  gsize i;
  json_t *row;
  json_array_foreach(kv_json_root(json), i, row) {
    gboolean prefill = kv_json_choice(json, row, "phase", phases, 0) == 1;
    const char *model = kv_json_string(json, row, "model", NULL, TRUE);
    KvObservation observation = {.kind =
                                     prefill ? KV_OBSERVED_PREFILL_STEP : KV_OBSERVED_DECODE_STEP,
                                 .dtype = KV_DTYPE_BF16,
                                 .cache_bytes = 2,
                                 .eager = prefill,
                                 .shape = find_shape(model)};
    if (!observation.shape)
      kv_json_fail(json, row, "model", "the shape of model '%s' is not known here", model);
    double context = kv_json_number(json, row, "context", KV_JSON_REQUIRED, 1, 1e9);
    observation.batch = kv_json_number(json, row, "batch", KV_JSON_REQUIRED, 1, 1e6);
    observation.chunk = prefill ? context : 1;
    observation.past = prefill ? 0 : context - 1;
    observation.seconds = kv_json_number(json, row, "us", KV_JSON_REQUIRED, 1e-3, 1e12) * 1e-6;
    append_fastest(observations, first, &observation);
  }
  return kv_json_finish(json, error);
}

const KvTableReader kv_table_pytorch_grid = {"pytorch-grid",
                                             "a JSON object with gemm_us {\"M,K,N\": microseconds}",
                                             accepts_grid, read_grid};
const KvTableReader kv_table_pytorch_steps = {
    "pytorch-steps", "a JSON array of steps {model, phase, batch, context, us}", accepts_steps,
    read_steps};
