/* Tables of Vidur's profiler, CSV (or .csv.gz), one row a measured point, medians in milliseconds:
 *
 *   mlp                     n_head n_kv_head n_embd n_expanded_embd use_gated_mlp num_tokens
 *                           num_tensor_parallel_workers, and time_stats.LAYER.median of each layer
 *   all_reduce, send_recv   rank num_workers size devices_per_node, and time_stats.NAME.median;
 *                           `size` in bytes (as elements, sends would outrun the link)
 *
 * Read are the four products of a layer and what rank 0 saw within one server, through NCCL. Left
 * out are the element-wise layers, which are kernels of 2023 (SiLU at half of the memory's rate),
 * and exchanges of more than two GPUs of a server that joins pairs only, which its folder's name
 * says.
 */
#include "models/kernels/columns.h"
#include "models/kernels/observation.h"

#include <string.h>

#include "sim/base/error.h"

static gboolean milliseconds(const KvColumns *table, const char *name, double *seconds,
                             GError **error) {
  g_autofree char *column = g_strdup_printf("time_stats.%s.median", name);
  if (!kv_columns_number(table, column, seconds, error))
    return FALSE;
  *seconds *= 1e-3;
  return TRUE;
}

/* One line of `mlp`: the products of one layer on one of its GPUs. */
static gboolean observe_products(const KvColumns *table, GArray *observations, GError **error) {
  double heads, kv_heads, hidden, intermediate, tokens, tp;
  if (!kv_columns_positive(table, "n_head", &heads, error) ||
      !kv_columns_positive(table, "n_kv_head", &kv_heads, error) ||
      !kv_columns_positive(table, "n_embd", &hidden, error) ||
      !kv_columns_positive(table, "n_expanded_embd", &intermediate, error) ||
      !kv_columns_positive(table, "num_tokens", &tokens, error) ||
      !kv_columns_positive(table, "num_tensor_parallel_workers", &tp, error))
    return FALSE;
  gboolean gated = g_str_equal(kv_columns_text(table, "use_gated_mlp"), "True");
  double head_dim = hidden / heads;
  const struct {
    const char *name;
    double k, n;
  } products[] = {
      {"attn_pre_proj", hidden, (heads / tp + 2 * MAX(kv_heads / tp, 1)) * head_dim},
      {"attn_post_proj", hidden / tp, hidden},
      {"mlp_up_proj", hidden, (gated ? 2 : 1) * intermediate / tp},
      {"mlp_down_proj", intermediate / tp, hidden},
  };
  for (guint i = 0; i < G_N_ELEMENTS(products); i++) {
    KvObservation row = {.kind = KV_OBSERVED_GEMM,
                         .dtype = KV_DTYPE_BF16,
                         .m = tokens,
                         .k = products[i].k,
                         .n = products[i].n};
    if (!milliseconds(table, products[i].name, &row.seconds, error))
      return FALSE;
    if (row.seconds > 0)
      g_array_append_val(observations, row);
  }
  return TRUE;
}

static gboolean observe_exchange(const KvColumns *table, const char *name, gboolean pairs,
                                 GArray *observations, GError **error) {
  double rank, in_server;
  KvObservation row = {.kind = g_str_equal(name, "send_recv") ? KV_OBSERVED_SEND : KV_OBSERVED_NCCL,
                       .dtype = KV_DTYPE_BF16,
                       .collective = KV_COLLECTIVE_ALL_REDUCE};
  if (!kv_columns_number(table, "rank", &rank, error) ||
      !kv_columns_positive(table, "num_workers", &row.ranks, error) ||
      !kv_columns_positive(table, "size", &row.bytes, error) ||
      !kv_columns_number(table, "devices_per_node", &in_server, error) ||
      !milliseconds(table, name, &row.seconds, error))
    return FALSE;
  if (rank == 0 && row.ranks > 1 && row.ranks <= (pairs ? 2 : in_server) &&
      row.ranks <= in_server && row.seconds > 0)
    g_array_append_val(observations, row);
  return TRUE;
}

static gboolean read_table(const char *path, GArray *observations, GError **error) {
  g_autoptr(KvColumns) table = kv_columns_open(path, error);
  if (!table)
    return FALSE;
  g_autofree char *folder = g_path_get_dirname(path);
  gboolean pairs = strstr(folder, "pairwise") != NULL;
  const char *exchange = kv_columns_named(path, "send_recv")    ? "send_recv"
                         : kv_columns_named(path, "all_reduce") ? "all_reduce"
                                                                : NULL;
  GError *problem = NULL;
  while (kv_columns_next(table, &problem))
    if (exchange ? !observe_exchange(table, exchange, pairs, observations, &problem)
                 : !observe_products(table, observations, &problem))
      break;
  if (problem)
    g_propagate_error(error, problem);
  return !problem;
}

static gboolean accepts(const char *path) {
  return kv_columns_named(path, "mlp") || kv_columns_named(path, "all_reduce") ||
         kv_columns_named(path, "send_recv");
}

const KvTableReader kv_table_vidur = {
    "vidur", "mlp.csv, all_reduce.csv or send_recv.csv of Vidur's profiler", accepts, read_table};
