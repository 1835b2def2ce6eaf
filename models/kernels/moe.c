#include "models/kernels/gemm.h"
#include "models/kernels/roofline.h"

/* Each of `tokens` tokens picks k of E experts: an expert stays untouched with probability (1 -
 * k/E)^tokens. */
double kv_kernel_experts_touched(double tokens, double n_experts, double n_experts_per_token) {
  if (n_experts_per_token >= n_experts)
    return tokens > 0 ? n_experts : 0;
  return n_experts * -expm1(tokens * log1p(-n_experts_per_token / n_experts));
}

/* Router, permutation, grouped GEMM up (gate and up in one where gated), activation, grouped GEMM
 * down, weighted sum: the order of fused mixture-of-experts kernels. */
KvCost kv_moe_touching(const KvDevice *device, KvDtype dtype, double weight_bytes, double tokens,
                       double hidden, double expert_intermediate, gboolean gated, double n_experts,
                       double n_experts_per_token, double touched) {
  if (touched <= 0)
    return (KvCost){0};
  double rows = tokens * n_experts_per_token;
  double rows_per_expert = rows / touched;
  double up_columns = (gated ? 2 : 1) * expert_intermediate;
  KvCost parts[] = {
      kv_kernel_gemm(device, KV_DTYPE_BF16, 2, tokens, hidden, n_experts),
      kv_kernel_elementwise(device, 2 * (tokens + rows) * hidden),
      kv_gemm_grouped(device, dtype, weight_bytes, touched, rows_per_expert, hidden, up_columns),
      kv_kernel_elementwise(device, 2 * rows * (up_columns + expert_intermediate)),
      kv_gemm_grouped(device, dtype, weight_bytes, touched, rows_per_expert, expert_intermediate,
                      hidden),
      kv_kernel_elementwise(device, 2 * (rows + tokens) * hidden),
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

KvCost kv_kernel_moe(const KvDevice *device, KvDtype dtype, double weight_bytes, double tokens,
                     double hidden, double expert_intermediate, gboolean gated, double n_experts,
                     double n_experts_per_token) {
  return kv_moe_touching(device, dtype, weight_bytes, tokens, hidden, expert_intermediate, gated,
                         n_experts, n_experts_per_token,
                         kv_kernel_experts_touched(tokens, n_experts, n_experts_per_token));
}
