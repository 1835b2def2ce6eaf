/* Two JSON forms that a short PyTorch program writes: a grid of GEMMs ("gemm_us": {"M,K,N":
 * microseconds}) launched from Python, and an array of whole-model steps ({model, phase, batch,
 * context, backend, us}), of which the fastest backend of each point counts. Decode steps are
 * replayed as one CUDA graph, prefill steps launched eagerly. */
#include "models/kernels/observation.h"

#include <stdio.h>
#include <string.h>

#include "models/llm/llm.h"
#include "sim/base/error.h"
#include "sim/base/json.h"

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

/* The shape of the catalogue's model `id`, kept for the life of the program; NULL if it is no plain
 * decoder. */
static const KvStepShape *find_shape(const char *id, GError **error) {
  static GHashTable *shapes;
  if (!shapes)
    shapes = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  KvStepShape *shape = g_hash_table_lookup(shapes, id);
  if (shape)
    return shape;
  g_autoptr(KvModel) model = kv_model_load(id, error);
  if (!model)
    return NULL;
  const KvLayerGroup *group = model->groups;
  if (model->n_groups != 1 || group->attention.kind != KV_ATTENTION_FULL ||
      group->mlp.n_experts > 0 || !group->mlp.gated) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "model '%s' has several kinds of layers or experts, expected a plain gated decoder",
                id);
    return NULL;
  }
  shape = g_new(KvStepShape, 1);
  *shape = (KvStepShape){.n_layers = group->count,
                         .hidden = model->hidden,
                         .n_heads = group->attention.n_heads,
                         .n_kv_heads = group->attention.n_kv_heads,
                         .head_dim = group->attention.head_dim,
                         .intermediate = group->mlp.intermediate,
                         .vocab = model->vocab};
  g_hash_table_insert(shapes, g_strdup(id), shape);
  return shape;
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
                                 .eager = prefill};
    g_autoptr(GError) problem = NULL;
    if (!(observation.shape = find_shape(model, &problem)))
      kv_json_fail(json, row, "model", "%s", problem->message);
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
