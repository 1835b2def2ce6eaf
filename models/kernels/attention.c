#include "models/kernels/roofline.h"

/* Rows of the query tile of one thread block, and cached tokens below which splitting a context
 * over more blocks stops paying (FlashAttention and FlashInfer use 64 to 128 and 128 to 256). */
static const double query_tile = 128, split_tokens = 128;

/* Half of the multiprocessors draw the whole memory bandwidth. */
static const double memory_sm_share = 0.5;

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

  /* Small chunks pack the query heads of a KV head into one tile. */
  double tiles = n_kv_heads * ceil(chunk * (n_heads / n_kv_heads) / query_tile);
  double splits = CLAMP(device->n_sm / tiles, 1, MAX(seen / (8 * split_tokens), 1));
  double waves = tiles * splits / device->n_sm;
  /* Causal tiles differ in length, so the last wave drains while the one before still runs: half a
   * wave is lost. */
  double idle = kv_smooth_max(1 / waves, 1 + 0.5 / (1 + waves), 4);
  double flops_seconds = flops * idle / (kv_roofline_peak(device, dtype) * efficiency->flops_share);

  double bytes = seen * n_kv_heads * (d_k + d_v) * cache_bytes + 2 * chunk * n_heads * (d_k + d_v);
  double bytes_seconds = bytes / (device->memory_Bps * efficiency->bandwidth_share);
  return kv_roofline_close(efficiency->fixed_seconds, flops_seconds, bytes_seconds,
                           efficiency->sharpness, flops, bytes);
}

/* Split-context decoding (FlashDecoding, Dao et al., 2023): a thread block a sequence, KV head and
 * split. While the splits do not fill the device the time is that of one split; both regimes are
 * joined smoothly. */
KvCost kv_kernel_decode_attention(const KvDevice *device, KvDtype dtype, double batch,
                                  double read_bytes, double flops, double n_kv_heads,
                                  double mean_tokens) {
  if (batch <= 0)
    return (KvCost){0};
  const KvEfficiency *efficiency =
      kv_roofline_efficiency(device, KV_KERNEL_DECODE_ATTENTION, dtype);
  double blocks = batch * n_kv_heads * (mean_tokens / split_tokens);
  double filled_blocks = memory_sm_share * device->n_sm;
  double idle = blocks > 0 ? kv_roofline_at_least_one(filled_blocks / blocks) : 1;
  double bytes_seconds = read_bytes * idle / (device->memory_Bps * efficiency->bandwidth_share);
  double flops_seconds = flops * idle / (kv_roofline_peak(device, dtype) * efficiency->flops_share);
  return kv_roofline_close(efficiency->fixed_seconds, flops_seconds, bytes_seconds,
                           efficiency->sharpness, flops, read_bytes);
}
