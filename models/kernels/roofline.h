/* What the kernel families share: which efficiency and which peak hold for a data type, and how a
 * roofline is closed.
 *
 * Internal to models/kernels/. Inline because decode attention is priced millions of times in a
 * simulation.
 */
#ifndef KV_MODELS_KERNELS_ROOFLINE_H
#define KV_MODELS_KERNELS_ROOFLINE_H

#include <math.h>

#include "models/kernels/kernels.h"

/* The fitted efficiency of `dtype`, or bf16's where the device has none for it. */
static inline const KvEfficiency *kv_roofline_efficiency(const KvDevice *device,
                                                         KvKernelFamily family, KvDtype dtype) {
  const KvEfficiency *efficiency = &device->efficiency[family][dtype];
  return efficiency->bandwidth_share > 0 ? efficiency : &device->efficiency[family][KV_DTYPE_BF16];
}

/* The matrix rate of `dtype`; operands that the device cannot multiply are widened to bf16 (fp16 on
 * devices before bf16) in registers, so they compute at that rate. */
static inline double kv_roofline_peak(const KvDevice *device, KvDtype dtype) {
  double peak = dtype == KV_DTYPE_INT4 ? 0 : device->peak_flops[dtype];
  if (peak <= 0)
    peak = device->peak_flops[KV_DTYPE_BF16];
  if (peak <= 0)
    peak = device->peak_flops[KV_DTYPE_FP16];
  return peak > 0 ? peak : device->fp32_flops;
}

/* sqrt(sqrt(1 + x^4)): the smooth maximum of 1 and x with p = 4, without pow(). */
static inline double kv_roofline_at_least_one(double x) {
  double square = x * x;
  return sqrt(sqrt(1 + square * square));
}

static inline KvCost kv_roofline_close(double fixed_seconds, double flops_seconds,
                                       double bytes_seconds, double p, double flops, double bytes) {
  KvCost cost = {.flops = flops, .bytes = bytes};
  double busy_seconds = kv_smooth_max(flops_seconds, bytes_seconds, p);
  cost.seconds = fixed_seconds + busy_seconds;
  if (fixed_seconds >= busy_seconds)
    cost.bound = KV_BOUND_FIXED;
  else
    cost.bound = flops_seconds >= bytes_seconds ? KV_BOUND_COMPUTE : KV_BOUND_MEMORY;
  return cost;
}

#endif
