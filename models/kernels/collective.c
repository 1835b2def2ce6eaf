#include "models/kernels/roofline.h"

/* The better of two algorithms, with alpha the latency of a hop and B the achieved bandwidth
 * (Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
 * 2005): ring      2 (r-1) alpha + 2 (r-1)/r bytes / B one shot  alpha + (r-1) bytes / B every GPU
 * reads every other's part; libraries use it for small messages
 */
KvCost kv_kernel_all_reduce(const KvDevice *device, const KvLink *link, double bytes, guint ranks) {
  if (ranks < 2 || bytes <= 0 || !link)
    return (KvCost){0};
  const KvEfficiency *efficiency = &device->efficiency[KV_KERNEL_ALL_REDUCE][KV_DTYPE_BF16];
  double share =
      efficiency->bandwidth_share > 0 ? efficiency->bandwidth_share : link->achievable_share;
  double achieved_Bps = link->peak_Bps * share, alpha = link->latency_seconds;
  double peers = ranks - 1.0;
  double ring = 2 * peers * alpha + 2 * peers / ranks * bytes / achieved_Bps;
  double one_shot = alpha + peers * bytes / achieved_Bps;
  return (KvCost){.seconds = efficiency->fixed_seconds + MIN(ring, one_shot),
                  .flops = peers * bytes / 2,
                  .bytes = 2 * peers / ranks * bytes,
                  .bound = KV_BOUND_LINK};
}

KvCost kv_kernel_send(const KvLink *link, double bytes) {
  if (bytes <= 0 || !link)
    return (KvCost){0};
  return (KvCost){.seconds =
                      link->latency_seconds + bytes / (link->peak_Bps * link->achievable_share),
                  .bytes = bytes,
                  .bound = KV_BOUND_LINK};
}
