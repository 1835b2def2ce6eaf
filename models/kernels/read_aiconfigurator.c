/* Operator tables of NVIDIA's aiconfigurator: CSV (or .csv.gz) with a header; the columns op_name
 * and latency (milliseconds) and, by operation, gemm                  gemm_dtype m n k
 *   context_attention     batch_size isl num_heads num_key_value_heads head_dim attn_dtype
 * kv_cache_dtype window_size generation_attention  the same, with `step` cached tokens Operations
 * and data types outside these are left out. */
#include "models/kernels/observation.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "sim/base/error.h"

enum {
  COLUMN_OP,
  COLUMN_KERNEL,
  COLUMN_DTYPE,
  COLUMN_ATTN_DTYPE,
  COLUMN_CACHE_DTYPE,
  COLUMN_M,
  COLUMN_N,
  COLUMN_K,
  COLUMN_BATCH,
  COLUMN_ISL,
  COLUMN_HEADS,
  COLUMN_KV_HEADS,
  COLUMN_HEAD_DIM,
  COLUMN_STEP,
  COLUMN_WINDOW,
  COLUMN_RANKS,
  COLUMN_ELEMENTS,
  COLUMN_BACKEND,
  COLUMN_LATENCY,
  N_COLUMNS,
};

static const char *const column_names[N_COLUMNS] = {"op_name",
                                                    "kernel_source",
                                                    "gemm_dtype",
                                                    "attn_dtype",
                                                    "kv_cache_dtype",
                                                    "m",
                                                    "n",
                                                    "k",
                                                    "batch_size",
                                                    "isl",
                                                    "num_heads",
                                                    "num_key_value_heads",
                                                    "head_dim",
                                                    "step",
                                                    "window_size",
                                                    "num_gpus",
                                                    "message_size",
                                                    "backend",
                                                    "latency"};

static const struct {
  const char *name;
  KvDtype dtype;
} dtypes[] = {{"bfloat16", KV_DTYPE_BF16}, {"float16", KV_DTYPE_FP16}, {"fp8", KV_DTYPE_FP8}};

/* Attention kernels by what their names contain; the first that fits. */
static const struct {
  const char *part;
  KvAttentionKernel kernel;
} attention_kernels[] = {
    {"attn_fa3", KV_ATTENTION_KERNEL_FA3},   {"attn_fa4", KV_N_ATTENTION_KERNELS},
    {"trtllm", KV_ATTENTION_KERNEL_TRTLLM},  {"flashinfer", KV_ATTENTION_KERNEL_FLASHINFER},
    {"flash_attn", KV_ATTENTION_KERNEL_FA2}, {"", KV_N_ATTENTION_KERNELS}};

static KvAttentionKernel kernel_of(const char *name) {
  guint i = 0;
  while (!strstr(name, attention_kernels[i].part))
    i++;
  return attention_kernels[i].kernel;
}

typedef struct {
  int at[N_COLUMNS]; /* position in a line, or -1 */
  char **fields;
  guint n_fields;
} Line;

static gboolean accepts(const char *path) {
  return g_str_has_suffix(path, ".csv") || g_str_has_suffix(path, ".csv.gz");
}

static const char *text_at(const Line *line, guint column) {
  int at = line->at[column];
  return at >= 0 && (guint)at < line->n_fields ? line->fields[at] : "";
}

static gboolean number_at(const Line *line, guint column, double *value) {
  const char *text = text_at(line, column);
  char *end;
  *value = g_ascii_strtod(text, &end);
  return *text && !*end && *value >= 0 && *value < 1e15;
}

static gboolean dtype_at(const Line *line, guint column, KvDtype *dtype) {
  for (guint i = 0; i < G_N_ELEMENTS(dtypes); i++) {
    if (g_str_equal(text_at(line, column), dtypes[i].name)) {
      *dtype = dtypes[i].dtype;
      return TRUE;
    }
  }
  return FALSE;
}

/* FALSE if a number is missing. `known` tells whether the row is of a kind and type that we price.
 */
static gboolean observe(const Line *line, KvObservation *observation, gboolean *known) {
  const char *op = text_at(line, COLUMN_OP);
  KvDtype cache;
  double isl, milliseconds;
  *known = FALSE;
  if (!number_at(line, COLUMN_LATENCY, &milliseconds))
    return FALSE;
  observation->seconds = milliseconds * 1e-3;
  observation->repeated = TRUE;
  if (milliseconds <= 0)
    return TRUE;
  if (g_str_equal(op, "gemm")) {
    observation->kind = KV_OBSERVED_GEMM;
    *known = dtype_at(line, COLUMN_DTYPE, &observation->dtype);
    return number_at(line, COLUMN_M, &observation->m) &&
           number_at(line, COLUMN_N, &observation->n) && number_at(line, COLUMN_K, &observation->k);
  }
  if (g_str_equal(op, "all_reduce")) {
    double elements;
    if (!number_at(line, COLUMN_RANKS, &observation->ranks) ||
        !number_at(line, COLUMN_ELEMENTS, &elements))
      return FALSE;
    observation->kind = KV_OBSERVED_ALL_REDUCE;
    observation->dtype = KV_DTYPE_BF16;
    observation->bytes = 2 * elements;
    *known = g_str_has_suffix(text_at(line, COLUMN_BACKEND), "_graph");
    return TRUE;
  }
  gboolean decode = g_str_equal(op, "generation_attention");
  if (!decode && !g_str_equal(op, "context_attention"))
    return TRUE;
  *known = dtype_at(line, COLUMN_ATTN_DTYPE, &observation->dtype) &&
           dtype_at(line, COLUMN_CACHE_DTYPE, &cache);
  if (!*known)
    return TRUE;
  observation->kernel = kernel_of(text_at(line, COLUMN_KERNEL));
  observation->kind = decode ? KV_OBSERVED_DECODE_ATTENTION : KV_OBSERVED_PREFILL_ATTENTION;
  observation->cache_bytes = kv_dtype_bytes(cache);
  observation->dtype = cache; /* queries are cast to the cache's type, which picks the kernel */
  number_at(line, COLUMN_WINDOW, &observation->window);
  if (!number_at(line, COLUMN_BATCH, &observation->batch) || !number_at(line, COLUMN_ISL, &isl) ||
      !number_at(line, COLUMN_STEP, &observation->past) ||
      !number_at(line, COLUMN_HEADS, &observation->n_heads) ||
      !number_at(line, COLUMN_KV_HEADS, &observation->n_kv_heads) ||
      !number_at(line, COLUMN_HEAD_DIM, &observation->head_dim))
    return FALSE;
  if (observation->n_kv_heads == 0) /* 0 stands for as many as query heads */
    observation->n_kv_heads = observation->n_heads;
  observation->chunk = isl;
  return TRUE;
}

static void read_header(Line *line, char **names) {
  for (guint column = 0; column < N_COLUMNS; column++) {
    line->at[column] = -1;
    for (int i = 0; names[i]; i++)
      if (g_str_equal(names[i], column_names[column]))
        line->at[column] = i;
  }
}

static gboolean read_table(const char *path, GArray *observations, GError **error) {
  gzFile file = gzopen(path, "rb");
  if (!file) {
    kv_error_at(error, path, 0, "cannot be opened: %s", g_strerror(errno));
    return FALSE;
  }
  char text[4096];
  Line line = {0};
  gboolean fine = TRUE;
  for (guint64 number = 1; fine && gzgets(file, text, sizeof text); number++) {
    g_auto(GStrv) fields = g_strsplit(g_strchomp(text), ",", -1);
    if (number == 1) {
      read_header(&line, fields);
      if (line.at[COLUMN_OP] < 0 || line.at[COLUMN_LATENCY] < 0) {
        kv_error_at(error, path, 1, "no columns op_name and latency, expected an operator table");
        fine = FALSE;
      }
      continue;
    }
    KvObservation observation = {0};
    gboolean known;
    line.fields = fields;
    line.n_fields = g_strv_length(fields);
    if (!observe(&line, &observation, &known)) {
      kv_error_at(error, path, number, "a number is missing, expected the columns of its header");
      fine = FALSE;
    } else if (known) {
      g_array_append_val(observations, observation);
    }
  }
  int code = Z_OK;
  const char *reason = gzerror(file, &code);
  if (fine && (code < 0 || line.at[COLUMN_OP] == line.at[COLUMN_LATENCY])) {
    kv_error_at(error, path, 0, "%s", code < 0 ? reason : "is empty, expected an operator table");
    fine = FALSE;
  }
  gzclose(file);
  return fine;
}

const KvTableReader kv_table_aiconfigurator = {
    "aiconfigurator", "a CSV of operator times with op_name and latency", accepts, read_table};
