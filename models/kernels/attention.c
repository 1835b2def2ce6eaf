#include "models/kernels/attention.h"
#include "models/kernels/roofline.h"

/* How a kernel divides its work. Established from measured tables of vLLM: which contexts are
 * split shows where few long sequences take no longer than one; which heads are packed, where the
 * time follows query heads and not KV heads. */
typedef struct {
  double tile_rows;        /* of queries in one block */
  double most_splits;      /* of one context, decoding */
  gboolean packs_prefill;  /* query heads of a KV head share tiles of prompt chunks too */
  gboolean splits_prefill; /* contexts of prompt chunks are split where tiles are few */
  gboolean shared_only;    /* decoding packs heads and splits contexts only where query heads share
                              a KV head and no window is set */
  gboolean shares_call;    /* prompt chunks and decoding sequences go into one call ... */
  double window_edge_tokens; /* tokens multiplied beyond a window, decoding */
  gboolean overlaps_softmax; /* exponentials run beside the products of another tile */
} Scheme;

static const Scheme schemes[KV_N_ATTENTION_KERNELS] = {
    [KV_ATTENTION_KERNEL_FA2] = {128, 128, FALSE, FALSE, TRUE, TRUE, 0, FALSE},
    [KV_ATTENTION_KERNEL_FA2_SMALL] = {64, 128, FALSE, FALSE, TRUE, TRUE, 0, FALSE},
    [KV_ATTENTION_KERNEL_FA3] = {128, 32, TRUE, TRUE, FALSE, TRUE, 128, TRUE},
    [KV_ATTENTION_KERNEL_TRTLLM] = {128, 32, FALSE, FALSE, FALSE, FALSE, 0, TRUE},
    [KV_ATTENTION_KERNEL_FLASHINFER] = {128, 128, FALSE, FALSE, FALSE, FALSE, 0, FALSE},
    [KV_ATTENTION_KERNEL_KVSIM] = {128, 128, TRUE, FALSE, FALSE, FALSE, 0, FALSE},
};

/* Cached tokens below which splitting a context over more blocks stops paying: decoding, and
 * prefill with its longer start. */
static const double split_tokens = 128, prefill_split_tokens = 512;

static const Scheme *scheme_of(const KvEfficiency *efficiency) {
  return &schemes[efficiency->kernel];
}

static const KvEfficiency *prefill_efficiency(const KvDevice *device, KvDtype dtype,
                                              gboolean latent) {
  return kv_roofline_efficiency(
      device, latent ? KV_KERNEL_LATENT_PREFILL : KV_KERNEL_PREFILL_ATTENTION, dtype);
}

static double fourth_root(double x) {
  return sqrt(sqrt(x));
}

static double fourth_power(double x) {
  return x * x * (x * x);
}

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

/* Seconds a block takes for one cached token: a column of a tile of scores and its product with
 * the value. The exponentials take as long as `softmax_dims` more of a head at the bf16 rate. */
static double column_seconds(const KvDevice *device, const KvEfficiency *efficiency, KvDtype dtype,
                             double head_dims) {
  double peak = kv_roofline_peak(device, dtype);
  double softmax_dims = efficiency->softmax_dims * peak / kv_roofline_peak(device, KV_DTYPE_BF16);
  const Scheme *scheme = scheme_of(efficiency);
  double dims =
      scheme->overlaps_softmax ? hypot(head_dims, 2 * softmax_dims) : head_dims + 2 * softmax_dims;
  return 2 * scheme->tile_rows * dims * device->n_sm / (peak * efficiency->flops_share);
}

/* A block's start and end: half of it grows with the head, on kernels that hold a tile of 128
 * rows. */
static double block_seconds(const KvEfficiency *efficiency, double head_dims) {
  return efficiency->block_seconds * (0.5 + 0.5 * head_dims / 256);
}

/* FlashAttention-2 (Dao, 2023): a thread block a query tile and head, the context streamed past it.
 */
void kv_kernel_add_prefill_attention(const KvDevice *device, KvDtype dtype, double chunk,
                                     double past, double n_heads, double n_kv_heads, double d_k,
                                     double d_v, double window, double cache_bytes,
                                     KvAttentionWork *work) {
  if (chunk <= 0)
    return;
  const KvEfficiency *efficiency = prefill_efficiency(device, dtype, work->latent);
  const Scheme *scheme = scheme_of(efficiency);
  double rows = scheme->tile_rows, context = past + chunk;
  gboolean windowed = window > 0 && context > window;
  double seen = windowed ? MIN(context, window + chunk - 1) : context;
  double pairs = causal_pairs(chunk, past, window);

  /* Tiles that the diagonal or a window's edge cuts are multiplied whole. */
  double edge = (windowed ? 2 : 1) * rows / 2;
  double mean_depth = pairs / chunk + edge;
  double deepest = windowed ? window + edge : context;
  double tiles = scheme->packs_prefill ? n_kv_heads * ceil(chunk * (n_heads / n_kv_heads) / rows)
                                       : n_heads * ceil(chunk / rows);
  double splits = 1;
  if (scheme->splits_prefill)
    splits = CLAMP(0.8 * device->n_sm / tiles, 1, MAX(deepest / prefill_split_tokens, 1));
  double column = column_seconds(device, efficiency, dtype, d_k + d_v);
  double block = block_seconds(efficiency, d_k + d_v);
  double bytes = seen * n_kv_heads * (d_k + d_v) * cache_bytes + 2 * chunk * n_heads * (d_k + d_v);
  work->blocks += tiles;
  work->busy_seconds += tiles * (mean_depth * column + block) / device->n_sm;
  work->longest_seconds =
      MAX(work->longest_seconds, deepest * column * efficiency->lone_factor / splits + block);
  work->bytes_seconds += bytes / (device->memory_Bps * efficiency->bandwidth_share);
  work->flops += 2 * n_heads * (d_k + d_v) * pairs;
  work->bytes += bytes;
}

/* Blocks differ in length, so the last wave drains while some multiprocessors idle: a part of a
 * wave is lost, or less where there is less than one. Where decoding sequences are uneven, the
 * longest blocks are what is waited for. */
KvCost kv_kernel_attention_call(const KvDevice *device, KvDtype dtype,
                                const KvAttentionWork *work) {
  const KvEfficiency *efficiency = prefill_efficiency(device, dtype, work->latent);
  if (work->blocks <= 0)
    return (KvCost){0};
  double waves = work->blocks / device->n_sm;
  double sustained = efficiency->sustained_share > 0 ? efficiency->sustained_share : 1;
  double drain = efficiency->tail_waves / (1 + waves);
  double drained =
      (work->busy_seconds * (1 + drain) + work->uneven_seconds * waves * drain) / sustained;
  double blocks_seconds = fourth_root(fourth_power(drained) + fourth_power(work->longest_seconds));
  return kv_roofline_close(efficiency->fixed_seconds, blocks_seconds, work->bytes_seconds,
                           efficiency->sharpness, work->flops, work->bytes);
}

KvCost kv_kernel_prefill_attention(const KvDevice *device, KvDtype dtype, double chunk, double past,
                                   double n_heads, double n_kv_heads, double d_k, double d_v,
                                   double window, double cache_bytes) {
  KvAttentionWork work = {0};
  kv_kernel_add_prefill_attention(device, dtype, chunk, past, n_heads, n_kv_heads, d_k, d_v, window,
                                  cache_bytes, &work);
  return kv_kernel_attention_call(device, dtype, &work);
}

/* Split-context decoding (FlashDecoding, Dao et al., 2023): a thread block a sequence, KV head and
 * split. One block draws 1 / (fill_share * SMs) of the memory bandwidth, from wherever the bytes
 * come. A block's start and end overlap with other blocks' traffic in part. Joining the splits is
 * a second kernel; so is bringing the queries of a KV head together. Queries and outputs pass once:
 * FLOPs over tokens are their bytes, 4 H d of one and 2 H d of each at two bytes. */
KvCost kv_attention_decode(const KvDevice *device, KvDtype dtype, const KvDecodeAttention *o,
                           KvResidency residency) {
  const double packed_tokens = 200;
  if (o->batch <= 0 || o->mean_tokens <= 0)
    return (KvCost){0};
  const KvEfficiency *efficiency = kv_roofline_efficiency(
      device, o->latent ? KV_KERNEL_LATENT_DECODE : KV_KERNEL_DECODE_ATTENTION, dtype);
  const Scheme *scheme = scheme_of(efficiency);
  gboolean unpacked = scheme->shared_only && (o->window > 0 || o->group <= 1);
  double edge = 1;
  if (o->window > 0 && scheme->window_edge_tokens > 0) {
    double filled = fourth_power(o->mean_tokens / o->window);
    edge += filled * filled * scheme->window_edge_tokens / o->mean_tokens;
  }
  double tokens = o->mean_tokens * edge, heads = o->batch * o->n_kv_heads;
  double rate = device->memory_Bps * efficiency->bandwidth_share;
  double query_bytes = o->flops / o->mean_tokens, bytes = o->read_bytes * edge + query_bytes;
  double stream_seconds = o->read_bytes * edge / rate;

  double splits = 1, extra_seconds = 0, reread = 1;
  if (unpacked) {
    reread = o->group / CLAMP(device->n_sm / o->batch, 1, o->group);
    heads *= MAX(o->group, 1);
    stream_seconds *= MAX(o->group, 1);
    reread /= MAX(o->group, 1);
  } else {
    double wanted = 1 + tokens / split_tokens;
    splits = wanted / kv_roofline_at_least_one(wanted / scheme->most_splits);
    double few = heads / device->n_sm, ratio = fourth_power(tokens / packed_tokens);
    extra_seconds = efficiency->combine_seconds * (1 - 1 / (1 + ratio)) / (1 + fourth_power(few));
    if (scheme->shared_only && o->n_kv_heads > 1 && o->batch > 1)
      extra_seconds += efficiency->pack_seconds;
  }
  double lone = efficiency->fill_share * device->n_sm / (heads * splits);
  double traffic = 1;
  if (residency.resident > 0 || unpacked)
    traffic = MAX(reread * (1 - residency.resident), 1 / residency.l2_speedup);
  double bytes_seconds =
      stream_seconds * fourth_root(fourth_power(traffic) + fourth_power(lone)) + query_bytes / rate;
  double blocks_seconds =
      heads *
      (scheme->shared_only ? efficiency->block_seconds
                           : block_seconds(efficiency, query_bytes / (2 * heads * o->group))) /
      device->n_sm;
  double flops_seconds = o->flops * kv_roofline_at_least_one(lone) /
                         (kv_roofline_peak(device, dtype) * efficiency->flops_share);
  double busy = sqrt(bytes_seconds * bytes_seconds + blocks_seconds * blocks_seconds +
                     2 * efficiency->block_exposed * bytes_seconds * blocks_seconds);
  return kv_roofline_close(efficiency->fixed_seconds + extra_seconds, flops_seconds, busy, 4,
                           o->flops, bytes);
}

KvCost kv_kernel_decode_attention(const KvDevice *device, KvDtype dtype,
                                  const KvDecodeAttention *operands) {
  const KvResidency cold = {0, 3};
  return kv_attention_decode(device, dtype, operands, cold);
}

gboolean kv_kernel_attention_shares_call(const KvDevice *device, KvDtype dtype) {
  return scheme_of(kv_roofline_efficiency(device, KV_KERNEL_PREFILL_ATTENTION, dtype))->shares_call;
}

/* In a call with prompt chunks a decoding sequence is a chunk of one row: its tile is multiplied
 * whole, its context is not split, and where heads are not packed each query head reads the cache
 * again. Blocks run batch by batch and head after head: the heads of a group find the cache of all
 * sequences in the second-level cache if it has room for it, and otherwise as long as fewer
 * sequences than multiprocessors are in the call. (vLLM's profile of an RTX PRO 6000, 128 MiB, 64
 * and 128 sequences: the time per cached token is least at 67 MB a head, and 1.3 and 1.6 times as
 * much at 268 MB.) */
void kv_kernel_add_decode_attention(const KvDevice *device, KvDtype dtype,
                                    const KvDecodeAttention *o, KvAttentionWork *work) {
  if (o->batch <= 0 || o->mean_tokens <= 0)
    return;
  const KvEfficiency *efficiency = prefill_efficiency(device, dtype, work->latent);
  const Scheme *scheme = scheme_of(efficiency);
  double group = MAX(o->group, 1);
  double heads = o->batch * o->n_kv_heads, blocks = scheme->packs_prefill ? heads : heads * group;
  double room = o->n_kv_heads * device->l2_bytes; /* 0: not known */
  double lost = room > 0 ? CLAMP(o->read_bytes / room - 1, 0, 1) : 1;
  double beyond = group / CLAMP(device->n_sm / o->batch, 1, group);
  double reread = scheme->packs_prefill ? 1 : 1 + lost * (beyond - 1);
  double head_dims = o->flops / (2 * o->mean_tokens * heads * group);
  double column = column_seconds(device, efficiency, dtype, head_dims);
  double block = block_seconds(efficiency, head_dims);
  double depth = o->mean_tokens + scheme->tile_rows / 2;
  /* FlashAttention-3 splits what is longer than a multiprocessor's share of a call. */
  double longest = scheme->splits_prefill ? 0 : o->longest_tokens;
  double deepest = MAX(longest, o->mean_tokens) + scheme->tile_rows / 2;
  work->blocks += blocks;
  work->busy_seconds += blocks * (depth * column + block) / device->n_sm;
  work->longest_seconds =
      MAX(work->longest_seconds, deepest * column * efficiency->lone_factor + block);
  work->uneven_seconds = MAX(work->uneven_seconds, (deepest - depth) * column);
  work->bytes_seconds +=
      o->read_bytes * reread / (device->memory_Bps * efficiency->bandwidth_share);
  work->flops += o->flops;
  work->bytes += o->read_bytes;
}

double kv_kernel_attention_flops(const KvDevice *device, KvDtype dtype) {
  const KvEfficiency *efficiency =
      kv_roofline_efficiency(device, KV_KERNEL_PREFILL_ATTENTION, dtype);
  return kv_roofline_peak(device, dtype) * efficiency->flops_share;
}
