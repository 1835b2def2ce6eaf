/* The table of `kvsim calibrate --measure`: a CSV file, a row an operation, known by its first
 * column's name. `kvsim_operation` is gemm (m, k, n), prefill attention and decode attention (batch
 * sequences of `chunk` new tokens after `past`; heads, kv_heads, head_dim; bytes of the cache read,
 * scales counted, if they are not dtype's; kernel is whose), or element-wise (bytes read and
 * written). What fits nothing is kept beside: copy inside, copy to the GPU, copy from the GPU
 * and drive read, drive write (bytes), launch, graph node. Times are microseconds, warm, of
 * operands that no cache holds. */
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
static const char *const beside[] = {
    "copy inside", "copy to the GPU", "copy from the GPU", "launch",
    "graph node",  "drive read",      "drive write",       NULL};

static gboolean is_fitted(KvObserved kind) {
  return kind == KV_OBSERVED_GEMM || kind == KV_OBSERVED_ELEMENTWISE ||
         kind == KV_OBSERVED_PREFILL_ATTENTION || kind == KV_OBSERVED_DECODE_ATTENTION;
}

/* Append the row that the table is at, unless its operation is one that fits nothing. */
static gboolean read_row(const char *path, const KvColumns *table, gpointer to, GError **error) {
  GArray *observations = to;
  const char *operation = kv_columns_text(table, "kvsim_operation");
  const char *dtype = kv_columns_text(table, "dtype");
  KvObservation row = {.kind = find(operation, kv_observed_names),
                       .dtype = find(dtype, kv_dtype_names)};
  if (g_strv_contains(beside, operation))
    return TRUE;
  if (!is_fitted(row.kind) || row.dtype >= KV_N_DTYPES) {
    kv_error_at(
        error, path, 0,
        "operation '%s' of type '%s' is none that is measured, expected gemm, prefill "
        "attention, decode attention, element-wise, a copy, a drive's, launch or graph node",
        operation, dtype);
    return FALSE;
  }
  if (!kv_columns_positive(table, "us", &row.seconds, error) || !read_operands(table, &row, error))
    return FALSE;
  row.seconds *= 1e-6;
  row.cold = TRUE;
  row.vector = row.kind == KV_OBSERVED_GEMM && row.m <= 2;
  g_array_append_val(observations, row);
  return TRUE;
}

typedef gboolean (*RowReader)(const char *path, const KvColumns *table, gpointer to,
                              GError **error);

/* Every row, until one is wrong. */
static gboolean read_rows(const char *path, RowReader read, gpointer to, GError **error) {
  g_autoptr(KvColumns) table = kv_columns_open(path, error);
  GError *problem = NULL;
  if (!table)
    return FALSE;
  while (kv_columns_next(table, &problem) && read(path, table, to, &problem))
    continue;
  if (problem)
    g_propagate_error(error, problem);
  return !problem;
}

static gboolean read_table(const char *path, GArray *observations, GError **error) {
  return read_rows(path, read_row, observations, error);
}

/* What is beside the kernels, in seconds. */
typedef struct {
  double *launch, *node;
} Launches;

static gboolean read_launch(const char *path, const KvColumns *table, gpointer to, GError **error) {
  const Launches *launches = to;
  const char *operation = kv_columns_text(table, "kvsim_operation");
  double *seconds = strcmp(operation, "launch") == 0       ? launches->launch
                    : strcmp(operation, "graph node") == 0 ? launches->node
                                                           : NULL;
  (void)path;
  if (!seconds)
    return TRUE;
  if (!kv_columns_positive(table, "us", seconds, error))
    return FALSE;
  *seconds *= 1e-6;
  return TRUE;
}

gboolean kv_observations_launches(const char *path, double *launch_seconds, double *node_seconds,
                                  GError **error) {
  *launch_seconds = *node_seconds = 0.0;
  if (!accepts(path))
    return TRUE;
  return read_rows(path, read_launch, &(Launches){launch_seconds, node_seconds}, error);
}

/* Transfers of one kind: the least and the largest. */
typedef struct {
  double bytes[2], seconds[2];
} Transfers;

static void note_transfer(Transfers *t, double bytes, double seconds) {
  for (guint end = 0; end < 2; end++)
    if (t->bytes[end] <= 0.0 || (end ? bytes > t->bytes[end] : bytes < t->bytes[end])) {
      t->bytes[end] = bytes;
      t->seconds[end] = seconds;
    }
}

static double transfer_rate(const Transfers *t) {
  double seconds = t->seconds[1] - t->seconds[0];
  return seconds > 0.0 ? (t->bytes[1] - t->bytes[0]) / seconds : 0.0;
}

typedef struct {
  Transfers reads, writes;
} DriveTransfers;

static gboolean read_drive(const char *path, const KvColumns *table, gpointer to, GError **error) {
  DriveTransfers *drive = to;
  const char *operation = kv_columns_text(table, "kvsim_operation");
  Transfers *of = strcmp(operation, "drive read") == 0    ? &drive->reads
                  : strcmp(operation, "drive write") == 0 ? &drive->writes
                                                          : NULL;
  double bytes, us;
  (void)path;
  if (!of)
    return TRUE;
  if (!kv_columns_positive(table, "bytes", &bytes, error) ||
      !kv_columns_positive(table, "us", &us, error))
    return FALSE;
  note_transfer(of, bytes, 1e-6 * us);
  return TRUE;
}

gboolean kv_observations_drive(const char *path, KvObservedDrive *drive, GError **error) {
  DriveTransfers t = {0};
  *drive = (KvObservedDrive){0};
  if (!accepts(path))
    return TRUE;
  if (!read_rows(path, read_drive, &t, error))
    return FALSE;
  drive->read_Bps = transfer_rate(&t.reads);
  drive->write_Bps = transfer_rate(&t.writes);
  if (drive->read_Bps > 0.0)
    drive->latency_seconds = MAX(0.0, t.reads.seconds[0] - t.reads.bytes[0] / drive->read_Bps);
  return TRUE;
}

const KvTableReader kv_table_kvsim = {
    "kvsim", "a CSV of `kvsim calibrate --measure`, with kvsim_operation first", accepts,
    read_table};
