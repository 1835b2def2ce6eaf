/* The arithmetic of GEMM that mixtures of experts share. Internal to models/kernels/. */
#ifndef KV_MODELS_KERNELS_GEMM_H
#define KV_MODELS_KERNELS_GEMM_H

#include "models/kernels/kernels.h"

/* `groups` independent products [m,k] x [k,n] in one launch. */
KvCost kv_gemm_grouped(const KvDevice *device, KvDtype dtype, double weight_bytes, double groups,
                       double m, double k, double n);

/* The routed experts of a layer as kv_kernel_moe() prices them, the number of experts that the
 * tokens touch given. */
KvCost kv_moe_touching(const KvDevice *device, KvDtype dtype, double weight_bytes, double tokens,
                       double hidden, double expert_intermediate, gboolean gated, double n_experts,
                       double n_experts_per_token, double touched);

#endif
