#include <math.h>

#include "models/kernels/roofline.h"

const char *const kv_collective_names[] = {"all-reduce", "all-gather", "reduce-scatter",
                                           "all-to-all", NULL};
G_STATIC_ASSERT(G_N_ELEMENTS(kv_collective_names) == KV_N_COLLECTIVES + 1);

/* A ring passes each GPU's part on r - 1 times, and twice that to sum the parts first (Thakur,
 * Rabenseifner and Gropp, 2005, "Optimization of collective communication operations in MPICH");
 * all-to-all sends each pair's part once, directly. */
static const struct {
  double passes; /* of (r-1)/r of the message through each GPU's link */
  gboolean ring;
} collectives[KV_N_COLLECTIVES] = {
    [KV_COLLECTIVE_ALL_REDUCE] = {2, TRUE},
    [KV_COLLECTIVE_ALL_GATHER] = {1, TRUE},
    [KV_COLLECTIVE_REDUCE_SCATTER] = {1, TRUE},
    [KV_COLLECTIVE_ALL_TO_ALL] = {1, FALSE},
};

/* NCCL chooses between protocols that mark every few bytes as valid (no wait at a step's start,
 * part of the link's rate) and one that hands over long pieces. Where GPUs have no link of their
 * own, what they send goes through the host and all share its paths: on a server of L40S, 2, 4 and
 * 8 GPUs get 20, 5 and 1.5 GB/s each. */
KvCost kv_kernel_collective(const KvDevice *device, const KvLink *link, KvCollective collective,
                            double bytes, guint ranks) {
  if (ranks < 2 || bytes <= 0 || !link)
    return (KvCost){0};
  const KvEfficiency *e = &device->efficiency[KV_KERNEL_NCCL][KV_DTYPE_BF16];
  double passes = collectives[collective].passes, peers = ranks - 1.0;
  double moved = passes * peers / ranks * bytes;
  double steps = collectives[collective].ring ? passes * peers : 1;
  double rate = link->peak_Bps * e->bandwidth_share;
  if (device->link_Bps <= 0 && e->crowding > 0)
    rate *= pow(2.0 / ranks, e->crowding);
  double quick_share = e->quick_share > 0 ? e->quick_share : 1;
  double quick = moved / (rate * quick_share), bulk = e->bulk_seconds + moved / rate;
  return (KvCost){.seconds = e->fixed_seconds + steps * e->step_seconds + MIN(quick, bulk),
                  .flops = collective == KV_COLLECTIVE_ALL_REDUCE ? peers * bytes / 2 : 0,
                  .bytes = moved,
                  .bound = KV_BOUND_LINK};
}

/* Where engines leave an all-reduce to NCCL. vLLM (all_reduce_utils.py and custom_all_reduce.py of
 * 2025 and 2026, seen): from a size on, which a device's generation has by the number of GPUs, and
 * for more than two GPUs without links of their own. SGLang's kernels come from the same source.
 * The upper part of vLLM's range on Hopper and later goes through symmetric memory, priced alike.
 */
static gboolean is_left_to_nccl(const KvDevice *device, double bytes, guint ranks) {
  double limit = device->own_all_reduce_bytes[ranks <= 2 ? 0 : ranks <= 4 ? 1 : 2];
  return (ranks > 2 && device->link_Bps <= 0) || ranks > 8 || (limit > 0 && bytes >= limit);
}

/* The better of two algorithms on links that join every pair of GPUs, with alpha the latency of a
 * hop, f the cost of entering a phase (launch, flags of all ranks) and B the achieved bandwidth
 * (the kernels of vLLM and TensorRT-LLM): one shot  f + alpha + (r-1) bytes / B every GPU reads all
 * others' operands two shot  2 (f + alpha) + 2 (r-1)/r bytes / B    reduce-scatter, then all-gather
 */
KvCost kv_kernel_all_reduce(const KvDevice *device, const KvLink *link, double bytes, guint ranks) {
  if (ranks < 2 || bytes <= 0 || !link)
    return (KvCost){0};
  if (is_left_to_nccl(device, bytes, ranks))
    return kv_kernel_collective(device, link, KV_COLLECTIVE_ALL_REDUCE, bytes, ranks);
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

KvKernelFamily kv_kernel_all_reduce_family(const KvDevice *device, double bytes, guint ranks) {
  return is_left_to_nccl(device, bytes, ranks) ? KV_KERNEL_NCCL : KV_KERNEL_ALL_REDUCE;
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
