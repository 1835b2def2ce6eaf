/* The table of `kvsim calibrate --measure`: a CSV file, a row an operation, known by its first
 * column's name. `kvsim_operation` is gemm (m, k, n), prefill attention and decode attention (batch
 * sequences of `chunk` new tokens after `past`; heads, kv_heads, head_dim; bytes of the cache read,
 * scales counted, if they are not dtype's; kernel is whose), or element-wise (bytes read and
 * written). What fits nothing is kept beside: copy inside, copy to the GPU, copy from the GPU
 * (bytes), launch, graph node. Times are microseconds, warm, of operands that no cache holds. */
#include "models/kernels/observation.h"

#include <string.h>
#include <zlib.h>

#include "models/kernels/columns.h"
#include "sim/base/error.h"

static const char first_column[] = "kvsim_operation,";

static gboolean accepts(const char *path) {
  char head[sizeof first_column] = "";
  gzFile file = gzopen(path, "rb");
  if (!file)
    return FALSE;
  gboolean ours = gzread(file, head, sizeof head - 1) == (int)sizeof head - 1 &&
                  strcmp(head, first_column) == 0;
  gzclose(file);
  return ours;
}

static guint find(const char *name, const char *const *names) {
  guint i = 0;
  while (names[i] && strcmp(names[i], name) != 0)
    i++;
  return i;
}

/* Of the cache that is read, scales counted, where the row says so; else those of the type. */
static gboolean read_cache_bytes(const KvColumns *table, KvObservation *row, GError **error) {
  double bytes;
  row->cache_bytes = kv_dtype_bytes(row->dtype);
  if (*kv_columns_text(table, "bytes") == '\0')
    return TRUE;
  if (!kv_columns_positive(table, "bytes", &bytes, error))
    return FALSE;
  row->cache_bytes =
      bytes / (row->batch * (row->past + row->chunk) * 2 * row->n_kv_heads * row->head_dim);
  return TRUE;
}

static gboolean read_attention(const KvColumns *table, KvObservation *row, GError **error) {
  row->kernel = find(kv_columns_text(table, "kernel"), kv_attention_kernel_names);
  return kv_columns_positive(table, "batch", &row->batch, error) &&
         kv_columns_positive(table, "chunk", &row->chunk, error) &&
         kv_columns_number(table, "past", &row->past, error) &&
         kv_columns_positive(table, "heads", &row->n_heads, error) &&
         kv_columns_positive(table, "kv_heads", &row->n_kv_heads, error) &&
         kv_columns_positive(table, "head_dim", &row->head_dim, error) &&
         read_cache_bytes(table, row, error);
}

static gboolean read_operands(const KvColumns *table, KvObservation *row, GError **error) {
  switch (row->kind) {
  case KV_OBSERVED_GEMM:
    return kv_columns_positive(table, "m", &row->m, error) &&
           kv_columns_positive(table, "k", &row->k, error) &&
           kv_columns_positive(table, "n", &row->n, error);
  case KV_OBSERVED_ELEMENTWISE:
    return kv_columns_positive(table, "bytes", &row->bytes, error);
  default:
    return read_attention(table, row, error);
  }
}

/* Measured too, and fitting nothing. */
static const char *const beside[] = {"copy inside", "copy to the GPU", "copy from the GPU",
                                     "launch",      "graph node",      NULL};

static gboolean is_fitted(KvObserved kind) {
  return kind == KV_OBSERVED_GEMM || kind == KV_OBSERVED_ELEMENTWISE ||
         kind == KV_OBSERVED_PREFILL_ATTENTION || kind == KV_OBSERVED_DECODE_ATTENTION;
}

/* Append the row that the table is at, unless its operation is one that fits nothing. */
static gboolean read_row(const char *path, const KvColumns *table, GArray *observations,
                         GError **error) {
  const char *operation = kv_columns_text(table, "kvsim_operation");
  const char *dtype = kv_columns_text(table, "dtype");
  KvObservation row = {.kind = find(operation, kv_observed_names),
                       .dtype = find(dtype, kv_dtype_names)};
  if (g_strv_contains(beside, operation))
    return TRUE;
  if (!is_fitted(row.kind) || row.dtype >= KV_N_DTYPES) {
    kv_error_at(error, path, 0,
                "operation '%s' of type '%s' is none that is measured, expected gemm, prefill "
                "attention, decode attention, element-wise, a copy, launch or graph node",
                operation, dtype);
    return FALSE;
  }
  if (!kv_columns_positive(table, "us", &row.seconds, error) || !read_operands(table, &row, error))
    return FALSE;
  row.seconds *= 1e-6;
  /* One or two rows: their kernel brings its weights while the one before it runs, which repeats of
   * it hide and only whole steps show. */
  if (row.kind == KV_OBSERVED_GEMM && row.m <= 2)
    return TRUE;
  g_array_append_val(observations, row);
  return TRUE;
}

static gboolean read_table(const char *path, GArray *observations, GError **error) {
  g_autoptr(KvColumns) table = kv_columns_open(path, error);
  GError *problem = NULL;
  if (!table)
    return FALSE;
  while (kv_columns_next(table, &problem) && read_row(path, table, observations, &problem))
    continue;
  if (problem)
    g_propagate_error(error, problem);
  return !problem;
}

gboolean kv_observations_launches(const char *path, double *launch_seconds, double *node_seconds,
                                  GError **error) {
  *launch_seconds = *node_seconds = 0.0;
  if (!accepts(path))
    return TRUE;
  g_autoptr(KvColumns) table = kv_columns_open(path, error);
  GError *problem = NULL;
  if (!table)
    return FALSE;
  while (!problem && kv_columns_next(table, &problem)) {
    const char *operation = kv_columns_text(table, "kvsim_operation");
    double *seconds = strcmp(operation, "launch") == 0       ? launch_seconds
                      : strcmp(operation, "graph node") == 0 ? node_seconds
                                                             : NULL;
    if (seconds && kv_columns_positive(table, "us", seconds, &problem))
      *seconds *= 1e-6;
  }
  if (problem)
    g_propagate_error(error, problem);
  return !problem;
}

const KvTableReader kv_table_kvsim = {
    "kvsim", "a CSV of `kvsim calibrate --measure`, with kvsim_operation first", accepts,
    read_table};
