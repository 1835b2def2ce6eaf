#include "models/kernels/roofline.h"

/* A kernel's fixed cost already holds the gap between two kernels of a graph, so a graph adds only
 * a floor: an empty node takes graph_node_seconds. Eager launches run ahead of the GPU, so they
 * cost nothing until the host is the slower of the two; the first launch is always exposed.
 * Kernels of different kinds leave gaps that the repeats of one, which efficiencies come from, do
 * not: gap_seconds more each, on a stream stream_gap_seconds. */
double kv_kernel_launched(const KvDevice *device, double kernels, gboolean graph,
                          double gpu_seconds) {
  gpu_seconds += kernels * (graph ? device->gap_seconds : device->stream_gap_seconds);
  if (graph)
    return device->launch_seconds + MAX(gpu_seconds, kernels * device->graph_node_seconds);
  return device->launch_seconds + MAX(gpu_seconds, kernels * device->launch_seconds);
}
