/* The arithmetic of GEMM that mixtures of experts share. Internal to models/kernels/. */
#ifndef KV_MODELS_KERNELS_GEMM_H
#define KV_MODELS_KERNELS_GEMM_H

#include "models/kernels/kernels.h"

/* `groups` independent products [m,k] x [k,n] in one launch. */
KvCost kv_gemm_grouped(const KvDevice *device, KvDtype dtype, double weight_bytes, double groups,
                       double m, double k, double n);

/* The device multiplies operands of this type, narrower than 16 bits, as they are; others are
 * widened in registers. int4 is a type of weights alone. */
gboolean kv_kernel_is_scaled(const KvDevice *device, KvDtype dtype);

#endif
