/* Routed experts. A layer is a few launches (top-k, sorting, permuting, two grouped products with
 * the activation between them, the weighted sum), which cost fixed_seconds together whatever the
 * size. The grouped products read the weights of every expert touched once and multiply whole tiles
 * of rows for each: t tokens of one expert take ceil(t / tile) of them. The order is that of
 * vLLM's, TensorRT-LLM's and SGLang's fused kernels.
 */
#include "models/kernels/moe.h"

#include "models/kernels/gemm.h"
#include "models/kernels/roofline.h"

/* Columns of an output tile. */
static const double tile_columns = 128;

/* One grouped product: the longer of reading the weights and multiplying row tiles of
 * kv_moe_tile_rows[tile]. Thread blocks share the memory evenly, so fewer than fill_share of the
 * multiprocessors draw less than all of its bandwidth. */
static double product_seconds(const KvDevice *device, const KvEfficiency *efficiency, KvDtype dtype,
                              double weight_bytes, const KvExpertLoad *load, guint tile, double k,
                              double n, double read_share) {
  /* A tile loads its operands as long as it multiplies so many rows more, and fills its pipeline as
   * long as it multiplies so much more depth. */
  const double load_rows = 12, fill_depth = 96;
  double rows = kv_moe_tile_rows[tile], columns = ceil(n / tile_columns);
  double flops_per_sm = kv_roofline_peak(device, dtype) * efficiency->flops_share / device->n_sm;
  double blocks = load->tiles[tile] * columns;
  double block_seconds = 2 * (rows + load_rows) * tile_columns * (k + fill_depth) / flops_per_sm +
                         efficiency->block_seconds;
  double flops_seconds = MAX(blocks / device->n_sm, 1) * block_seconds;
  double filled = efficiency->fill_share * device->n_sm / (load->touched * columns);
  double bytes_seconds = read_share * load->touched * k * n * weight_bytes /
                         (device->memory_Bps * efficiency->bandwidth_share) *
                         kv_roofline_at_least_one(filled);
  return kv_smooth_max(flops_seconds, bytes_seconds, efficiency->sharpness);
}

static KvCost fitted_cost(const KvDevice *device, const KvEfficiency *efficiency, KvDtype dtype,
                          double weight_bytes, const KvMoeShape *shape, double tokens,
                          const KvExpertLoad *load, double read_share) {
  double up_columns = (shape->gated ? 2 : 1) * shape->intermediate, hidden = shape->hidden;
  double operand_bytes = kv_kernel_is_scaled(device, dtype) ? kv_dtype_bytes(dtype) : 2;
  double best_seconds = G_MAXDOUBLE;
  for (guint i = 0; i < KV_MOE_TILES; i++)
    best_seconds =
        MIN(best_seconds, product_seconds(device, efficiency, dtype, weight_bytes, load, i, hidden,
                                          up_columns, read_share) +
                              product_seconds(device, efficiency, dtype, weight_bytes, load, i,
                                              shape->intermediate, hidden, read_share));
  /* Tokens come in as bf16, leave the scaling as operands and end as a sum in bf16; rows go through
   * the products as operands with bf16 between. */
  double token_bytes = tokens * (2 + operand_bytes + 2) * hidden;
  double row_bytes = load->rows * ((operand_bytes + 2 + 2) * hidden + (2 + 2) * up_columns +
                                   2 * operand_bytes * shape->intermediate);
  double share =
      efficiency->quantize_share > 0 ? efficiency->quantize_share : efficiency->bandwidth_share;
  double moved_seconds =
      (token_bytes / share + row_bytes / efficiency->bandwidth_share) / device->memory_Bps;
  double sort_seconds = efficiency->combine_seconds * log2(1 + tokens);
  double weights = (up_columns + shape->intermediate) * hidden;
  double bytes = load->touched * weights * weight_bytes + token_bytes + row_bytes;
  double flops = 2 * load->rows * weights;
  KvCost cost =
      kv_roofline_close(efficiency->fixed_seconds, flops / kv_roofline_peak(device, dtype),
                        bytes / device->memory_Bps, efficiency->sharpness, flops, bytes);
  cost.seconds = efficiency->fixed_seconds + best_seconds + moved_seconds + sort_seconds;
  return cost;
}

/* A device whose expert kernels nobody measured: each launch by the parameters of its kind, the
 * grouped products by those of GEMM. */
static KvCost composed_cost(const KvDevice *device, KvDtype dtype, double weight_bytes,
                            const KvMoeShape *shape, double tokens, const KvExpertLoad *load) {
  double rows = load->rows, rows_per_expert = rows / load->touched;
  double up_columns = (shape->gated ? 2 : 1) * shape->intermediate;
  KvCost parts[] = {
      kv_kernel_elementwise(device, 2 * (tokens + rows) * shape->hidden),
      kv_gemm_grouped(device, dtype, weight_bytes, load->touched, rows_per_expert, shape->hidden,
                      up_columns),
      kv_kernel_elementwise(device, 2 * rows * (up_columns + shape->intermediate)),
      kv_gemm_grouped(device, dtype, weight_bytes, load->touched, rows_per_expert,
                      shape->intermediate, shape->hidden),
      kv_kernel_elementwise(device, 2 * (rows + tokens) * shape->hidden),
  };
  KvCost total = {0};
  double longest_seconds = 0;
  for (guint i = 0; i < G_N_ELEMENTS(parts); i++) {
    total.seconds += parts[i].seconds;
    total.flops += parts[i].flops;
    total.bytes += parts[i].bytes;
    if (parts[i].seconds > longest_seconds) {
      longest_seconds = parts[i].seconds;
      total.bound = parts[i].bound;
    }
  }
  return total;
}

KvCost kv_moe_cost(const KvDevice *device, KvDtype dtype, double weight_bytes,
                   const KvMoeShape *shape, double tokens, const KvExpertLoad *load,
                   double read_share) {
  if (load->touched <= 0)
    return (KvCost){0};
  const KvEfficiency *efficiency = kv_roofline_efficiency(device, KV_KERNEL_MOE, dtype);
  return efficiency->bandwidth_share > 0
             ? fitted_cost(device, efficiency, dtype, weight_bytes, shape, tokens, load, read_share)
             : composed_cost(device, dtype, weight_bytes, shape, tokens, load);
}

KvCost kv_kernel_moe(const KvDevice *device, KvDtype dtype, double weight_bytes, double tokens,
                     double hidden, double expert_intermediate, gboolean gated, double n_experts,
                     double n_experts_per_token) {
  KvMoeShape shape = {hidden, expert_intermediate, n_experts, gated};
  KvExpertLoad load = kv_moe_uniform_load(tokens, n_experts, n_experts_per_token);
  KvCost experts = kv_moe_cost(device, dtype, weight_bytes, &shape, tokens, &load, 1);
  KvCost router = kv_kernel_gemm(device, KV_DTYPE_BF16, 2, tokens, hidden, n_experts);
  experts.seconds += router.seconds;
  experts.flops += router.flops;
  experts.bytes += router.bytes;
  return experts;
}
