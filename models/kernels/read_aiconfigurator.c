/* Operator tables of NVIDIA's aiconfigurator: CSV (or .csv.gz) with a header; the columns op_name
 * and latency (milliseconds) and, by operation,
 *
 *   gemm                  gemm_dtype m n k
 *   context_attention     batch_size isl step num_heads num_key_value_heads head_dim attn_dtype
 *                         kv_cache_dtype, and window_size of kernels that have one
 *   generation_attention  the same, with `step` cached tokens
 *   moe                   moe_dtype num_tokens hidden_size inter_size topk num_experts moe_tp_size
 *                         moe_ep_size distribution (balanced, power_law_ALPHA) kernel_source
 *   all_reduce            num_gpus message_size (elements) backend: the engines' own kernels
 *   all_reduce, all_gather, reduce_scatter, alltoall   of NCCL: num_gpus message_size nccl_dtype
 *   mla_context, mla_generation   batch_size isl step num_heads (of one GPU) kv_cache_dtype; tables
 *                                 with a gemm_type are of whole modules and left out
 *   mla_gen_pre, mla_gen_post     num_tokens num_heads bmm_dtype: absorbed queries and outputs
 *
 * Operations and data types outside these are left out.
 */
#include "models/kernels/columns.h"
#include "models/kernels/observation.h"

#include <string.h>

#include "sim/base/error.h"

static const struct {
  const char *name;
  KvDtype dtype;
} dtypes[] = {
    {"bfloat16", KV_DTYPE_BF16},
    {"float16", KV_DTYPE_FP16},
    {"fp8", KV_DTYPE_FP8},
    {"fp8_block", KV_DTYPE_FP8_BLOCK},
    {"nvfp4", KV_DTYPE_FP4},
    {"w4a16_mxfp4", KV_DTYPE_MXFP4},
    {"w4a8_mxfp4_mxfp8", KV_DTYPE_MXFP4_FP8},
    {"int4_wo", KV_DTYPE_INT4},
    {"sq", KV_DTYPE_INT8}, /* SmoothQuant: 8-bit operands */
};

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

static gboolean accepts(const char *path) {
  return g_str_has_suffix(path, ".csv") || g_str_has_suffix(path, ".csv.gz");
}

static gboolean find_dtype(const KvColumns *table, const char *column, KvDtype *dtype) {
  const char *text = kv_columns_text(table, column);
  for (guint i = 0; i < G_N_ELEMENTS(dtypes); i++) {
    if (g_str_equal(text, dtypes[i].name)) {
      *dtype = dtypes[i].dtype;
      return TRUE;
    }
  }
  return FALSE;
}

static gboolean observe_all_reduce(const KvColumns *table, KvObservation *row, gboolean *known,
                                   GError **error) {
  double elements;
  if (!kv_columns_number(table, "num_gpus", &row->ranks, error) ||
      !kv_columns_number(table, "message_size", &elements, error))
    return FALSE;
  row->kind = KV_OBSERVED_ALL_REDUCE;
  row->dtype = KV_DTYPE_BF16;
  row->bytes = 2 * elements;
  *known = g_str_has_suffix(kv_columns_text(table, "backend"), "_graph");
  return TRUE;
}

static const struct {
  const char *op;
  KvCollective collective;
} collectives[] = {{"all_reduce", KV_COLLECTIVE_ALL_REDUCE},
                   {"all_gather", KV_COLLECTIVE_ALL_GATHER},
                   {"reduce_scatter", KV_COLLECTIVE_REDUCE_SCATTER},
                   {"alltoall", KV_COLLECTIVE_ALL_TO_ALL}};

static gboolean observe_nccl(const KvColumns *table, const char *op, KvObservation *row,
                             gboolean *known, GError **error) {
  double elements;
  for (guint i = 0; i < G_N_ELEMENTS(collectives); i++) {
    if (!g_str_equal(op, collectives[i].op))
      continue;
    row->collective = collectives[i].collective;
    *known = g_str_equal(kv_columns_text(table, "nccl_dtype"), "half");
  }
  row->kind = KV_OBSERVED_NCCL;
  row->dtype = KV_DTYPE_BF16;
  if (!kv_columns_number(table, "num_gpus", &row->ranks, error) ||
      !kv_columns_number(table, "message_size", &elements, error))
    return FALSE;
  row->bytes = 2 * elements;
  return TRUE;
}

static gboolean observe_latent(const KvColumns *table, KvObserved kind, KvObservation *row,
                               gboolean *known, GError **error) {
  row->kind = kind;
  *known = find_dtype(table, "kv_cache_dtype", &row->dtype) && !kv_columns_has(table, "gemm_type");
  row->cache_bytes = kv_dtype_bytes(row->dtype);
  return kv_columns_number(table, "batch_size", &row->batch, error) &&
         kv_columns_number(table, "isl", &row->chunk, error) &&
         kv_columns_number(table, "step", &row->past, error) &&
         kv_columns_number(table, "num_heads", &row->n_heads, error);
}

static gboolean observe_latent_projection(const KvColumns *table, gboolean of_outputs,
                                          KvObservation *row, gboolean *known, GError **error) {
  row->kind = KV_OBSERVED_LATENT_PROJECTION;
  *known = find_dtype(table, "bmm_dtype", &row->dtype);
  row->k = of_outputs ? 512 : 128;
  row->n = of_outputs ? 128 : 512;
  return kv_columns_number(table, "num_tokens", &row->m, error) &&
         kv_columns_number(table, "num_heads", &row->n_heads, error);
}

static gboolean observe_attention(const KvColumns *table, KvObserved kind, KvObservation *row,
                                  gboolean *known, GError **error) {
  KvDtype cache;
  *known =
      find_dtype(table, "attn_dtype", &row->dtype) && find_dtype(table, "kv_cache_dtype", &cache);
  if (!*known)
    return TRUE;
  row->kernel = kernel_of(kv_columns_text(table, "kernel_source"));
  row->kind = kind;
  row->cache_bytes = kv_dtype_bytes(cache);
  row->dtype = cache; /* queries are cast to the cache's type, which picks the kernel */
  if (!kv_columns_number(table, "batch_size", &row->batch, error) ||
      !kv_columns_number(table, "isl", &row->chunk, error) ||
      !kv_columns_number(table, "step", &row->past, error) ||
      !kv_columns_number(table, "num_heads", &row->n_heads, error) ||
      !kv_columns_number(table, "num_key_value_heads", &row->n_kv_heads, error) ||
      !kv_columns_number(table, "head_dim", &row->head_dim, error) ||
      (*kv_columns_text(table, "window_size") &&
       !kv_columns_number(table, "window_size", &row->window, error)))
    return FALSE;
  if (row->n_kv_heads == 0) /* 0 stands for as many as query heads */
    row->n_kv_heads = row->n_heads;
  return TRUE;
}

/* Two kinds of rows are left out. Nemotron-3's experts have no gate, which the table does not say.
 * DeepSeek-V3's router keeps half of the groups of experts, and of equal scores the first: a
 * "balanced" row of it goes to half of the experts, and one rank of many gets more than its share.
 */
static gboolean is_as_it_says(double hidden, double intermediate, double n_experts,
                              double per_token, gboolean even) {
  gboolean nemotron = per_token == 22 || (hidden == 2688 && intermediate == 1856);
  gboolean deepseek_v3 =
      hidden == 7168 && intermediate == 2048 && n_experts == 256 && per_token == 8;
  return !nemotron && !(deepseek_v3 && !even);
}

/* Whether a row of several ranks holds what a server's rank would compute: rows of vLLM's whole
 * layer do. Older and other benchmarks hand the measured rank a load of its own, which their tables
 * do not tell. */
static gboolean shards_like_a_server(const char *source) {
  return g_str_has_prefix(source, "vllm_") && !g_str_equal(source, "vllm_fused_moe");
}

/* The benchmark draws a skewed routing so many times and runs through them. */
enum { POWER_LAW_ROUTINGS = 5, MOST_EXPERTS = 65536 };

static gboolean observe_moe(const KvColumns *table, KvObservation *row, gboolean *known,
                            GError **error) {
  static const char power_law[] = "power_law_";
  const char *distribution = kv_columns_text(table, "distribution");
  gboolean balanced = g_str_equal(distribution, "balanced");
  char *end = NULL;
  double exponent = g_str_has_prefix(distribution, power_law)
                        ? g_ascii_strtod(distribution + strlen(power_law), &end)
                        : 0;
  double hidden, intermediate, n_experts, per_token, tp, ep;
  if (!kv_columns_positive(table, "num_tokens", &row->batch, error) ||
      !kv_columns_positive(table, "hidden_size", &hidden, error) ||
      !kv_columns_positive(table, "inter_size", &intermediate, error) ||
      !kv_columns_positive(table, "num_experts", &n_experts, error) ||
      !kv_columns_positive(table, "topk", &per_token, error) ||
      !kv_columns_positive(table, "moe_tp_size", &tp, error) ||
      !kv_columns_positive(table, "moe_ep_size", &ep, error))
    return FALSE;
  *known = find_dtype(table, "moe_dtype", &row->dtype) &&
           (balanced || (end && !*end && exponent > 1)) && ep <= n_experts &&
           n_experts <= MOST_EXPERTS &&
           is_as_it_says(hidden, intermediate, n_experts, per_token, !balanced && ep == 1);
  if (!*known)
    return TRUE;
  row->kind = KV_OBSERVED_MOE;
  *known = ep == 1 || shards_like_a_server(kv_columns_text(table, "kernel_source"));
  row->source = g_intern_string(kv_columns_text(table, "kernel_source"));
  row->routings = balanced ? 1 : POWER_LAW_ROUTINGS;
  row->experts = (KvMoeShape){hidden, intermediate / tp, n_experts / ep, TRUE};
  row->expert_load = balanced
                         ? kv_moe_balanced_load(row->batch, n_experts / ep, per_token / ep)
                         : kv_moe_power_law_load(row->batch, n_experts, per_token, exponent, ep);
  return TRUE;
}

/* `known` tells whether the row is of a kind and type that we price. */
static gboolean observe(const KvColumns *table, KvObservation *row, gboolean *known,
                        GError **error) {
  const char *op = kv_columns_text(table, "op_name");
  *known = FALSE;
  if (!kv_columns_number(table, "latency", &row->seconds, error))
    return FALSE;
  row->seconds *= 1e-3;
  row->repeated = TRUE;
  if (row->seconds <= 0)
    return TRUE;
  if (g_str_equal(op, "gemm")) {
    row->kind = KV_OBSERVED_GEMM;
    /* vLLM's block-scaled products were launched from the host: 60 us on an H100 and 170 us on a
     * B200 at any size up to a GFLOP. */
    *known = find_dtype(table, "gemm_dtype", &row->dtype) &&
             !strstr(kv_columns_text(table, "kernel_source"), "BlockScaledMMKernel");
    return kv_columns_number(table, "m", &row->m, error) &&
           kv_columns_number(table, "n", &row->n, error) &&
           kv_columns_number(table, "k", &row->k, error);
  }
  if (kv_columns_has(table, "nccl_dtype"))
    return observe_nccl(table, op, row, known, error);
  if (g_str_equal(op, "mla_context") || g_str_equal(op, "context_mla"))
    return observe_latent(table, KV_OBSERVED_LATENT_PREFILL, row, known, error);
  if (g_str_equal(op, "mla_generation") || g_str_equal(op, "generation_mla"))
    return observe_latent(table, KV_OBSERVED_LATENT_DECODE, row, known, error);
  if (g_str_equal(op, "mla_gen_pre") || g_str_equal(op, "mla_gen_post"))
    return observe_latent_projection(table, g_str_equal(op, "mla_gen_post"), row, known, error);
  if (g_str_equal(op, "moe"))
    return observe_moe(table, row, known, error);
  if (g_str_equal(op, "all_reduce"))
    return observe_all_reduce(table, row, known, error);
  if (g_str_equal(op, "context_attention"))
    return observe_attention(table, KV_OBSERVED_PREFILL_ATTENTION, row, known, error);
  if (g_str_equal(op, "generation_attention"))
    return observe_attention(table, KV_OBSERVED_DECODE_ATTENTION, row, known, error);
  return TRUE;
}

static gboolean read_table(const char *path, GArray *observations, GError **error) {
  g_autoptr(KvColumns) table = kv_columns_open(path, error);
  if (!table)
    return FALSE;
  if (!kv_columns_has(table, "op_name") || !kv_columns_has(table, "latency")) {
    kv_error_at(error, path, 1, "no columns op_name and latency, expected an operator table");
    return FALSE;
  }
  GError *problem = NULL;
  while (kv_columns_next(table, &problem)) {
    KvObservation row = {0};
    gboolean known;
    if (!observe(table, &row, &known, &problem))
      break;
    if (known)
      g_array_append_val(observations, row);
  }
  if (problem)
    g_propagate_error(error, problem);
  return !problem;
}

const KvTableReader kv_table_aiconfigurator = {
    "aiconfigurator", "a CSV of operator times with op_name and latency", accepts, read_table};
