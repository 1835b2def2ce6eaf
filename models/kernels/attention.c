#include "models/kernels/roofline.h"

/* Rows of the query tile of one thread block, and cached tokens below which splitting a context
 * over more blocks stops paying (FlashAttention and FlashInfer use 64 to 128 and 128 to 256). */
static const double query_tile = 128, split_tokens = 128;

/* Half of the multiprocessors draw the whole memory bandwidth. */
static const double memory_sm_share = 0.5;

/* The exponential of a score takes as long as multiplying this much of a head (16 a clock and
 * multiprocessor against some thousand multiply-adds, half of it hidden). */
static const double softmax_dims = 16;

/* Query-key pairs of a causal chunk: token i of the chunk sees past + i tokens, the last `window`
 * of them at most. */
static double causal_pairs(double chunk, double past, double window) {
  double full = chunk * past + chunk * (chunk + 1) / 2;
  if (window <= 0 || past + chunk <= window)
    return full;
  /* The first `rising` tokens see fewer than the window. */
  double rising = MAX(window - past, 0);
  return rising * past + rising * (rising + 1) / 2 + (chunk - rising) * window;
}

/* FlashAttention-2 (Dao, 2023): a thread block a query tile and head, the context streamed past it.
 * Where tiles are fewer than multiprocessors the context is split as in decoding. */
KvCost kv_kernel_prefill_attention(const KvDevice *device, KvDtype dtype, double chunk, double past,
                                   double n_heads, double n_kv_heads, double d_k, double d_v,
                                   double window, double cache_bytes) {
  if (chunk <= 0)
    return (KvCost){0};
  const KvEfficiency *efficiency =
      kv_roofline_efficiency(device, KV_KERNEL_PREFILL_ATTENTION, dtype);
  double context = past + chunk;
  double seen = window > 0 ? MIN(context, window + chunk - 1) : context;
  double flops = 2 * n_heads * (d_k + d_v) * causal_pairs(chunk, past, window);

  /* Tiles that the diagonal or a window's edge cuts are multiplied whole. */
  double edges = window > 0 && context > window ? 2 : 1;
  double pairs = causal_pairs(chunk, past, window) + edges * chunk * query_tile / 2;
  double computed_flops = 2 * n_heads * (d_k + d_v + 2 * softmax_dims) * pairs;
  /* Small chunks pack the query heads of a KV head into one tile. */
  double tiles = n_kv_heads * ceil(chunk * (n_heads / n_kv_heads) / query_tile);
  double splits = CLAMP(device->n_sm / tiles, 1, MAX(seen / (8 * split_tokens), 1));
  double waves = tiles * splits / device->n_sm;
  /* Causal tiles differ in length, so the last wave drains while the one before still runs: half a
   * wave is lost. */
  double idle = kv_smooth_max(1 / waves, 1 + 0.5 / (1 + waves), 4);
  double flops_seconds =
      computed_flops * idle / (kv_roofline_peak(device, dtype) * efficiency->flops_share);

  double bytes = seen * n_kv_heads * (d_k + d_v) * cache_bytes + 2 * chunk * n_heads * (d_k + d_v);
  double bytes_seconds = bytes / (device->memory_Bps * efficiency->bandwidth_share);
  return kv_roofline_close(efficiency->fixed_seconds, flops_seconds, bytes_seconds,
                           efficiency->sharpness, flops, bytes);
}

/* Split-context decoding (FlashDecoding, Dao et al., 2023): a thread block a sequence, KV head and
 * split. While the splits do not fill the device the time is that of one split; both regimes are
 * joined smoothly. Each sequence and head costs its block a start and an end that many short
 * sequences feel. Queries and outputs pass once: FLOPs over tokens are their bytes, 4 H d of one
 * and 2 H d of each at two bytes. */
KvCost kv_kernel_decode_attention(const KvDevice *device, KvDtype dtype, double batch,
                                  double read_bytes, double flops, double n_kv_heads,
                                  double mean_tokens) {
  if (batch <= 0 || mean_tokens <= 0)
    return (KvCost){0};
  const KvEfficiency *efficiency =
      kv_roofline_efficiency(device, KV_KERNEL_DECODE_ATTENTION, dtype);
  double query_bytes = flops / mean_tokens, bytes = read_bytes + query_bytes;
  double heads = batch * n_kv_heads;
  double filled_blocks = memory_sm_share * device->n_sm;
  double idle = kv_roofline_at_least_one(filled_blocks * split_tokens / (heads * mean_tokens));
  double bytes_seconds =
      (read_bytes * idle + query_bytes) / (device->memory_Bps * efficiency->bandwidth_share);
  double blocks_seconds = heads * efficiency->block_seconds / device->n_sm;
  double flops_seconds = flops * idle / (kv_roofline_peak(device, dtype) * efficiency->flops_share);
  return kv_roofline_close(efficiency->fixed_seconds, flops_seconds,
                           sqrt(bytes_seconds * bytes_seconds + blocks_seconds * blocks_seconds),
                           efficiency->sharpness, flops, bytes);
}
