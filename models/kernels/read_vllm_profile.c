/* Tables of a vLLM profiler, one folder MODEL/VARIANT/tpN/ for a model and its tensor parallelism,
 * CSV (or .csv.gz), microseconds:
 *
 *   attention.csv     prefill_chunk kv_prefill n_decode kv_decode time_us   one chunk beside
 *                   n_decode sequences of kv_decode tokens; either may be absent (0)
 *   dense.csv         layer tokens time_us       one GPU's share of a layer's products
 *   per_sequence.csv  layer sequences time_us    the logits
 *   moe.csv           tokens activated_experts time_us
 *   skew.csv          pc kp n kv_big kv_mean t_skew_us   a chunk of pc tokens after kp beside n
 *                   sequences of kv_mean tokens in the mean, the longest kv_big
 *
 * Times of skew.csv are of the profiler's three iterations together: its equal batches take 3.00
 * times as long as the same calls in attention.csv of the same run.
 *
 * The shapes follow from the model, which the path names. Layers that move bytes only are read as
 * such; the embedding and the sampler are left out.
 */
#include "models/kernels/columns.h"
#include "models/kernels/observation.h"

#include <stdlib.h>
#include <string.h>

#include "models/llm/llm.h"
#include "sim/base/error.h"

typedef struct {
  double hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab; /* of one GPU, but hidden */
  double expert_intermediate, n_experts_per_token;
} Shape;

/* The model's id in the catalogue: the folder's name in lower case, without what names a tuning of
 * the same architecture. */
static char *model_id(const char *folder) {
  char *id = g_ascii_strdown(folder, -1);
  char *tuning = strstr(id, "-instruct");
  if (tuning)
    *tuning = '\0';
  return id;
}

static gboolean find_shape(const char *path, Shape *shape, GError **error) {
  g_auto(GStrv) parts = g_strsplit(path, G_DIR_SEPARATOR_S, -1);
  guint n = g_strv_length(parts);
  double tp = n >= 4 && g_str_has_prefix(parts[n - 2], "tp") ? atoi(parts[n - 2] + 2) : 0;
  if (tp < 1) {
    kv_error_at(error, path, 0,
                "lies in no folder MODEL/VARIANT/tpN, expected one that names them");
    return FALSE;
  }
  g_autofree char *id = model_id(parts[n - 4]);
  g_autoptr(KvModel) model = kv_model_load(id, error);
  if (!model)
    return FALSE;
  const KvAttention *attention = &model->groups[0].attention;
  const KvMlp *mlp = &model->groups[0].mlp;
  *shape = (Shape){.hidden = model->hidden,
                   .n_heads = attention->n_heads / tp,
                   .n_kv_heads = MAX(attention->n_kv_heads / tp, 1),
                   .head_dim = attention->head_dim,
                   .intermediate = mlp->intermediate / tp,
                   .vocab = model->vocab / tp,
                   .expert_intermediate = mlp->expert_intermediate / tp,
                   .n_experts_per_token = mlp->n_experts_per_token};
  return TRUE;
}

typedef gboolean (*Observe)(const KvColumns *table, const Shape *shape, KvObservation *row,
                            gboolean *known, GError **error);

static gboolean read_rows(const char *path, GArray *observations, Observe observe, GError **error) {
  Shape shape;
  g_autoptr(KvColumns) table = kv_columns_open(path, error);
  if (!table || !find_shape(path, &shape, error))
    return FALSE;
  gboolean uneven = kv_columns_has(table, "t_skew_us");
  const char *time = uneven ? "t_skew_us" : "time_us";
  GError *problem = NULL;
  while (kv_columns_next(table, &problem)) {
    KvObservation row = {.dtype = KV_DTYPE_BF16, .cache_bytes = 2};
    gboolean known = TRUE;
    if (!observe(table, &shape, &row, &known, &problem) ||
        !kv_columns_number(table, time, &row.seconds, &problem))
      break;
    row.seconds *= uneven ? 1e-6 / 3 : 1e-6;
    if (known && row.seconds > 0)
      g_array_append_val(observations, row);
  }
  if (problem)
    g_propagate_error(error, problem);
  return !problem;
}

static gboolean observe_attention(const KvColumns *table, const Shape *shape, KvObservation *row,
                                  gboolean *known, GError **error) {
  if (!kv_columns_number(table, "prefill_chunk", &row->chunk, error) ||
      !kv_columns_number(table, "kv_prefill", &row->past, error) ||
      !kv_columns_number(table, "n_decode", &row->decode_batch, error) ||
      !kv_columns_number(table, "kv_decode", &row->decode_context, error))
    return FALSE;
  row->n_heads = shape->n_heads;
  row->n_kv_heads = shape->n_kv_heads;
  row->head_dim = shape->head_dim;
  row->kernel = KV_ATTENTION_KERNEL_FA2;
  row->batch = 1;
  row->kind = KV_OBSERVED_MIXED_ATTENTION;
  if (row->decode_batch == 0) {
    row->kind = KV_OBSERVED_PREFILL_ATTENTION;
  } else if (row->chunk == 0) {
    row->kind = KV_OBSERVED_DECODE_ATTENTION;
    row->batch = row->decode_batch;
    row->chunk = 1;
    row->past = MAX(row->decode_context - 1, 0);
    row->decode_batch = row->decode_context = 0;
  }
  *known = row->n_kv_heads > 0;
  return TRUE;
}

static gboolean observe_uneven(const KvColumns *table, const Shape *shape, KvObservation *row,
                               gboolean *known, GError **error) {
  row->kind = KV_OBSERVED_UNEVEN_ATTENTION;
  row->n_heads = shape->n_heads;
  row->n_kv_heads = shape->n_kv_heads;
  row->head_dim = shape->head_dim;
  row->kernel = KV_ATTENTION_KERNEL_FA2;
  return kv_columns_number(table, "pc", &row->chunk, error) &&
         kv_columns_number(table, "kp", &row->past, error) &&
         kv_columns_positive(table, "n", &row->decode_batch, error) &&
         kv_columns_positive(table, "kv_mean", &row->decode_context, error) &&
         kv_columns_positive(table, "kv_big", &row->longest_context, error);
}

/* The product of `layer`, or the bytes it moves a token; FALSE if it is neither. */
static gboolean find_layer(const Shape *shape, const char *layer, KvObservation *row) {
  double q = shape->n_heads * shape->head_dim, kv = shape->n_kv_heads * shape->head_dim;
  const struct {
    const char *layer;
    double k, n, moved;
  } layers[] = {
      {"qkv_proj", shape->hidden, q + 2 * kv, 0},
      {"o_proj", q, shape->hidden, 0},
      {"gate_up_proj", shape->hidden, 2 * shape->intermediate, 0},
      {"down_proj", shape->intermediate, shape->hidden, 0},
      {"lm_head", shape->hidden, shape->vocab, 0},
      {"layernorm", 0, 0, 4 * shape->hidden},
      {"final_layernorm", 0, 0, 4 * shape->hidden},
      {"act_fn", 0, 0, 3 * shape->intermediate},
      {"rotary_emb", 0, 0, 2 * (q + kv)},
  };
  for (guint i = 0; i < G_N_ELEMENTS(layers); i++) {
    if (!g_str_equal(layer, layers[i].layer))
      continue;
    row->kind = layers[i].moved > 0 ? KV_OBSERVED_ELEMENTWISE : KV_OBSERVED_GEMM;
    row->k = layers[i].k;
    row->n = layers[i].n;
    row->bytes = 2 * row->m * layers[i].moved;
    return row->n > 0 || row->bytes > 0;
  }
  return FALSE;
}

static gboolean observe_dense(const KvColumns *table, const Shape *shape, KvObservation *row,
                              gboolean *known, GError **error) {
  const char *rows = kv_columns_has(table, "tokens") ? "tokens" : "sequences";
  if (!kv_columns_number(table, rows, &row->m, error))
    return FALSE;
  *known = find_layer(shape, kv_columns_text(table, "layer"), row);
  return TRUE;
}

static gboolean observe_moe(const KvColumns *table, const Shape *shape, KvObservation *row,
                            gboolean *known, GError **error) {
  double touched = 0;
  if (!kv_columns_number(table, "tokens", &row->batch, error) ||
      !kv_columns_positive(table, "activated_experts", &touched, error))
    return FALSE;
  row->kind = KV_OBSERVED_MOE;
  row->experts = (KvMoeShape){shape->hidden, shape->expert_intermediate, touched, TRUE};
  kv_moe_add_experts(&row->expert_load, touched, row->batch * shape->n_experts_per_token / touched);
  *known = shape->n_experts_per_token > 0;
  return TRUE;
}

static gboolean read_table(const char *path, GArray *observations, GError **error) {
  Observe observe = kv_columns_named(path, "attention") ? observe_attention
                    : kv_columns_named(path, "moe")     ? observe_moe
                    : kv_columns_named(path, "skew")    ? observe_uneven
                                                        : observe_dense;
  return read_rows(path, observations, observe, error);
}

static gboolean accepts(const char *path) {
  return kv_columns_named(path, "attention") || kv_columns_named(path, "dense") ||
         kv_columns_named(path, "per_sequence") || kv_columns_named(path, "moe") ||
         kv_columns_named(path, "skew");
}

const KvTableReader kv_table_vllm_profile = {
    "vllm-profile",
    "attention.csv, dense.csv, per_sequence.csv, moe.csv or skew.csv of a MODEL/VARIANT/tpN",
    accepts, read_table};
