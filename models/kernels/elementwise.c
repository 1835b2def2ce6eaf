#include "models/kernels/roofline.h"

/* `bytes`, of which as many come at the rate of memory as take `share` of the time of all. */
static KvCost moved(const KvDevice *device, double bytes, double share) {
  const KvEfficiency *efficiency = &device->efficiency[KV_KERNEL_ELEMENTWISE][KV_DTYPE_BF16];
  double seconds = bytes * share / (device->memory_Bps * efficiency->bandwidth_share);
  return kv_roofline_close(efficiency->fixed_seconds, 0, seconds, 1, bytes / 2, bytes);
}

/* Norms, rotary, activations and residual sums do a few operations a byte: bandwidth bounds them on
 * every device. What they read was written by the kernel before: while it fits, the second-level
 * cache still holds it, which is a few times as fast as memory (the RTX PRO 6000 and RTX 4090 move
 * up to a few MB at two to three times their memory's rate). */
KvCost kv_kernel_elementwise(const KvDevice *device, double bytes) {
  const double cache_speedup = 2.5, cache_share = 0.7;
  double fill = device->l2_bytes > 0 ? bytes / (cache_share * device->l2_bytes) : G_MAXDOUBLE;
  double held = 1 / (1 + fill * fill * fill * fill);
  return moved(device, bytes, 1 - held + held / cache_speedup);
}

KvCost kv_kernel_elementwise_cold(const KvDevice *device, double bytes) {
  return moved(device, bytes, 1);
}

/* Logits are read as bf16 and written as fp32 probabilities, which are read once more to be drawn
 * from; the passes are three kernels. */
KvCost kv_kernel_sampling(const KvDevice *device, double rows, double vocab) {
  const double n_kernels = 3, bytes_per_logit = 2 + 4 + 4;
  KvCost cost = kv_kernel_elementwise(device, rows * vocab * bytes_per_logit);
  const KvEfficiency *efficiency = &device->efficiency[KV_KERNEL_ELEMENTWISE][KV_DTYPE_BF16];
  cost.seconds += (n_kernels - 1) * efficiency->fixed_seconds;
  return cost;
}
