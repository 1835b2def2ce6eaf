#include <math.h>

#include "models/kernels/roofline.h"

/* The better of two algorithms on links that join every pair of GPUs, with alpha the latency of a
 * hop, f the cost of entering a phase (launch, flags of all ranks) and B the achieved bandwidth
 * (Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
 * 2005; the kernels of vLLM and TensorRT-LLM): one shot  f + alpha + (r-1) bytes / B every GPU
 * reads all others' operands two shot  2 (f + alpha) + 2 (r-1)/r bytes / B    reduce-scatter, then
 * all-gather
 */
KvCost kv_kernel_all_reduce(const KvDevice *device, const KvLink *link, double bytes, guint ranks) {
  if (ranks < 2 || bytes <= 0 || !link)
    return (KvCost){0};
  const KvEfficiency *efficiency = &device->efficiency[KV_KERNEL_ALL_REDUCE][KV_DTYPE_BF16];
  double share =
      efficiency->bandwidth_share > 0 ? efficiency->bandwidth_share : link->achievable_share;
  double achieved_Bps = link->peak_Bps * share;
  double peers = ranks - 1.0;
  double phase_seconds = efficiency->fixed_seconds + link->latency_seconds;
  double one_shot = phase_seconds + peers * bytes / achieved_Bps;
  double two_shot = 2 * phase_seconds + 2 * peers / ranks * bytes / achieved_Bps;
  return (KvCost){.seconds = MIN(one_shot, two_shot),
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

/* Latency grows with the depth of the trees; every byte crosses each level twice, less a rank's own
 * share (Tree Attention, section 5: NCCL's choice of topology). */
static double tree_level(const KvLink *link, double bytes, guint ranks) {
  if (ranks < 2 || !link)
    return 0.0;
  double achieved_Bps = link->peak_Bps * link->achievable_share;
  return link->latency_seconds * ceil(log2(ranks)) +
         2.0 * (ranks - 1.0) / ranks * bytes / achieved_Bps;
}

KvCost kv_kernel_tree_reduce(const KvLink *link, const KvLink *network, double bytes,
                             guint per_node, guint nodes) {
  double ranks = (double)per_node * nodes;
  if (ranks < 2.0 || bytes <= 0.0)
    return (KvCost){0};
  return (KvCost){.seconds = tree_level(link, bytes, per_node) + tree_level(network, bytes, nodes),
                  .flops = (ranks - 1.0) * bytes / 2.0,
                  .bytes = 2.0 * (ranks - 1.0) / ranks * bytes,
                  .bound = KV_BOUND_LINK};
}
