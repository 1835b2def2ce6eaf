#include "models/kernels/gemm.h"
#include "models/kernels/roofline.h"

/* Output tiles that libraries choose from, as shares of the device's large tile (tile_m x tile_n).
 */
static const struct {
  double m, n;
} tile_shapes[] = {{1, 1},     {2, 0.5},    {1, 0.75}, {1, 0.5},  {0.5, 1},
                   {0.5, 0.5}, {0.5, 0.25}, {0.25, 1}, {0.125, 1}};

/* A tile of a x b loads k (a + b) operands for k a b products: the smaller it is, the more of the
 * time goes to loading from L2. Rows at which loading takes as long as multiplying. */
static const double load_rows = 12;

/* Stream-K and split-K spread the last, partly filled wave over every multiprocessor for one
 * exchange of partial sums (Osama et al., "Stream-K", PPoPP 2023), combine_seconds for a tile of
 * 128 x 128. For 16-bit operands only: scaled ones keep a tile's whole sum in one block (vLLM's fp8
 * products on an H100: median error 12.6 % without splits, 14.1 % with; B200: 12.9 and 15.5 %).
 */

/* Filling a tile's pipeline and writing its output take as long as a multiplication of this depth.
 */
static const double tile_overhead_depth = 96;

/* A column tile reads all activation rows again from L2, on the same load path as its weights: cost
 * of such a byte over one from memory. From cuBLAS on an H200: 4096 x 128256 takes 7 % longer at 32
 * rows than at 1, 11 % at 128. */
static const double reload_cost = 0.2;

gboolean kv_kernel_is_scaled(const KvDevice *device, KvDtype dtype) {
  return kv_dtype_bytes(dtype) < 2 && dtype != KV_DTYPE_INT4 && dtype != KV_DTYPE_MXFP4 &&
         device->peak_flops[dtype] > 0;
}

/* vLLM's scaled products on Hopper choose a tile by the number of rows alone, however few columns
 * there are to keep the multiprocessors busy: its fp8 table of an H100 is met with a median error
 * of 8.7 % so, 12.5 % with the best of all tiles. The same on a B200 gives 13.8 and 12.9 %, so
 * other devices keep the best tile. */
static const struct {
  double most_m, m, n;
} scaled_tiles[] = {{64, 64, 64}, {128, 64, 128}, {G_MAXDOUBLE, 128, 128}};

/* Seconds of the multiply-adds with tiles of tile_m x tile_n. */
static double tile_seconds(const KvDevice *device, const KvEfficiency *efficiency,
                           double flops_per_sm, gboolean split, double groups, double m, double k,
                           double n, double tile_m, double tile_n) {
  double large_m = device->tile_m > 0 ? device->tile_m : 128;
  double large_n = device->tile_n > 0 ? device->tile_n : 128;
  double large_load = 1 + load_rows * (1 / large_m + 1 / large_n);
  double load = (1 + load_rows * (1 / tile_m + 1 / tile_n)) / large_load;
  double waves = groups * ceil(m / tile_m) * ceil(n / tile_n) / device->n_sm;
  double size = tile_m * tile_n / (128 * 128);
  double multiply_seconds = (k + tile_overhead_depth) * 2 * tile_m * tile_n * load / flops_per_sm;
  double seconds = ceil(waves) * multiply_seconds;
  if (split)
    seconds = MIN(seconds, waves * multiply_seconds + efficiency->combine_seconds * size);
  /* Scaling and storing a tile of 128 x 128 keeps its block for block_seconds. */
  return seconds + MAX(waves, 1) * efficiency->block_seconds * size;
}

/* ... the library's best tile taken where it chooses by the whole shape. */
static double tiled_seconds(const KvDevice *device, const KvEfficiency *efficiency,
                            double flops_per_sm, gboolean scaled, double groups, double m, double k,
                            double n) {
  double large_m = device->tile_m > 0 ? device->tile_m : 128;
  double large_n = device->tile_n > 0 ? device->tile_n : 128;
  double best_seconds = G_MAXDOUBLE;
  if (scaled && device->scaled_tile_by_rows) {
    guint i = 0;
    while (m > scaled_tiles[i].most_m)
      i++;
    return tile_seconds(device, efficiency, flops_per_sm, FALSE, groups, m, k, n, scaled_tiles[i].m,
                        scaled_tiles[i].n);
  }
  for (guint i = 0; i < G_N_ELEMENTS(tile_shapes); i++)
    best_seconds =
        MIN(best_seconds, tile_seconds(device, efficiency, flops_per_sm, !scaled, groups, m, k, n,
                                       large_m * tile_shapes[i].m, large_n * tile_shapes[i].n));
  return best_seconds;
}

/* Activations arrive as bf16. For 8-bit and smaller operands a kernel before the product scales
 * them: reads them for the largest value, reads them again and writes them. */
static double quantize_seconds(const KvDevice *device, const KvEfficiency *efficiency,
                               KvDtype dtype, double elements) {
  double element_bytes = kv_dtype_bytes(dtype);
  if (!kv_kernel_is_scaled(device, dtype))
    return 0;
  double share =
      efficiency->quantize_share > 0 ? efficiency->quantize_share : efficiency->bandwidth_share;
  return elements * (2 + 2 + element_bytes) / (device->memory_Bps * share);
}

/* Long compute-bound work is slower than a kernel alone: Llama-3-8B prefills of 2048 tokens on an
 * H200 take a sixth longer than their GEMMs measured one by one, prefills of 512 do not. The power
 * limit is the likely cause, not an established one: neither clock nor power was recorded, and some
 * long products of the same GPU (8192 rows of 4096 x 28672) keep the full rate. The rows at which
 * it sets in were chosen by these steps. */
static double sustained_slowdown(const KvEfficiency *efficiency, double m) {
  const double limited_rows = 1024;
  if (efficiency->sustained_share <= 0 || efficiency->sustained_share == 1)
    return 1;
  double ratio = m / limited_rows, square = ratio * ratio;
  double limited = square * square / (1 + square * square);
  return 1 + (1 / efficiency->sustained_share - 1) * limited;
}

/* A stream comes up to its rate only while it lasts: the library's products of 3 rows on an H200
 * read the weights of a layer of 3072 x 5120 at 3.1 TB/s, of a head of 3072 x 100352 at 4.3 TB/s.
 */
static double ramped(double seconds, double ramp) {
  const double length = 3.5;
  return ramp > 0 ? seconds + ramp * seconds / (seconds + length * ramp) : seconds;
}

/* Few rows: weights stream past them, by a block for `narrow` columns. Where those are too few to
 * draw the whole bandwidth, the depth is split over more of them and a second kernel adds up. */
static double stream_seconds(const KvDevice *device, const KvEfficiency *efficiency, double groups,
                             double m, double n, double bytes) {
  const double narrow = 64;
  double seconds =
      ramped(bytes / (device->memory_Bps * efficiency->bandwidth_share), efficiency->ramp_seconds);
  if (efficiency->fill_share <= 0)
    return seconds;
  double large_m = device->tile_m > 0 ? device->tile_m : 128;
  double blocks = groups * ceil(n / narrow) * ceil(m / large_m);
  double lone = MAX(1, efficiency->fill_share * device->n_sm / blocks);
  return MIN(seconds * lone, seconds + efficiency->combine_seconds);
}

/* One and two rows may have a kernel of their own, which spreads the weights over the whole device
 * and begins while the kernel before it ends. How far a product of m rows is like that: with two
 * rows it loses a third of what it gains over three, in the median of twelve shapes on an H200
 * (reference/measured/h200/kernels.csv). */
static double vector_part(const KvEfficiency *efficiency, double m) {
  if (efficiency->vector_share <= 0 || m > 2)
    return 0;
  return m > 1 ? 2.0 / 3 : 1;
}

static double mixed(double part, double vector, double other) {
  return part * vector + (1 - part) * other;
}

KvCost kv_gemm_grouped(const KvDevice *device, KvDtype dtype, double weight_bytes, double groups,
                       double m, double k, double n) {
  const KvEfficiency *efficiency = kv_roofline_efficiency(device, KV_KERNEL_GEMM, dtype);
  double flops_per_sm = kv_roofline_peak(device, dtype) * efficiency->flops_share / device->n_sm;
  double flops = 2 * groups * m * k * n;
  double flops_seconds = tiled_seconds(device, efficiency, flops_per_sm,
                                       kv_kernel_is_scaled(device, dtype), groups, m, k, n) *
                         sustained_slowdown(efficiency, m);
  /* Activations come in as the operand type and leave as bf16. */
  double operand_bytes = kv_kernel_is_scaled(device, dtype) ? kv_dtype_bytes(dtype) : 2;
  double bytes = groups * (weight_bytes * k * n + m * (operand_bytes * k + 2 * n));
  double large_m = device->tile_m > 0 ? device->tile_m : 128;
  double large_n = device->tile_n > 0 ? device->tile_n : 128;
  double reloaded = groups * MIN(m, large_m) * k * operand_bytes * n / large_n;
  double bytes_seconds =
      stream_seconds(device, efficiency, groups, m, n, bytes + reload_cost * reloaded);
  double fixed_seconds = efficiency->fixed_seconds, vector = vector_part(efficiency, m);
  if (vector > 0) {
    double alone = ramped(bytes / (device->memory_Bps * efficiency->vector_share),
                          efficiency->vector_ramp_seconds);
    bytes_seconds = mixed(vector, alone, bytes_seconds);
    fixed_seconds = mixed(vector, efficiency->vector_seconds, fixed_seconds);
  }
  fixed_seconds += quantize_seconds(device, efficiency, dtype, groups * m * k);
  return kv_roofline_close(fixed_seconds, flops_seconds, bytes_seconds, efficiency->sharpness,
                           flops, bytes);
}

KvCost kv_kernel_gemm(const KvDevice *device, KvDtype dtype, double weight_bytes, double m,
                      double k, double n) {
  return kv_gemm_grouped(device, dtype, weight_bytes, 1, m, k, n);
}

KvCost kv_kernel_gemm_each(const KvDevice *device, KvDtype dtype, double weight_bytes,
                           double groups, double m, double k, double n) {
  return kv_gemm_grouped(device, dtype, weight_bytes, groups, m, k, n);
}
