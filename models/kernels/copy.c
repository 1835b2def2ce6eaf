#include "models/kernels/roofline.h"

/* The part of the cost of issuing a copy that the copy engine spends between two copies; the rest
 * is the host's and overlaps with the transfer before. H200, 55.5 GB/s: 256 copies of 4 KiB
 * take 7.6 us each, 128 of 1 MiB 2.3 us each beyond their bytes. */
static const double engine_gap_share = 0.3;

KvCost kv_kernel_copy(const KvLink *link, double bytes, double count, gboolean pinned) {
  if (bytes <= 0 || count <= 0)
    return (KvCost){0};
  double share = pinned ? link->achievable_share : link->pageable_share;
  double transfer_seconds = bytes / (link->peak_Bps * share);
  double issue_seconds = (count - 1) * link->per_copy_seconds;
  double busy_seconds =
      kv_smooth_max(issue_seconds, transfer_seconds + engine_gap_share * issue_seconds, 8);
  return (KvCost){.seconds = link->latency_seconds + busy_seconds,
                  .bytes = bytes,
                  .bound = transfer_seconds >= MAX(issue_seconds, link->latency_seconds)
                               ? KV_BOUND_LINK
                               : KV_BOUND_FIXED};
}
