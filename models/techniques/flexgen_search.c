#include "models/techniques/flexgen_search.h"

#include <math.h>

#include "models/kernels/kernels.h"

enum { TENTHS = 10, MOST_GPU_BATCH = 64, MOST_GPU_BATCHES = 20 };

/* The model and the machine, in the paper's letters: l layers, h1 hidden, h2 of the MLP, s prompt,
 * n output, w bytes of a layer. */
typedef struct {
  double l, h1, h2, s, n, w, kv;                   /* kv: bytes of a token's cache in one layer */
  double load_Bps, store_Bps, read_Bps, write_Bps; /* over the link, and of the disk */
  double flops, gpu_Bps, cpu_flops;
  double gpu_bytes, host_bytes, disk_bytes;
  gboolean loads_apart;
} Machine;

static void set_up(const KvFlexgenQuestion *question, const KvModel *model,
                   const KvPlatform *platform, Machine *m) {
  const KvDevice *d = platform->device;
  double layers = kv_model_layers(model), share = platform->host_link->achievable_share;
  *m = (Machine){
      .l = layers,
      .h1 = model->hidden,
      .h2 = (double)model->groups[0].mlp.intermediate,
      .s = question->prompt_tokens,
      .n = question->output_tokens,
      .w = kv_model_weight_bytes(model) / layers,
      .kv = kv_model_cache_bytes_per_token(model, 2.0) / layers,
      .load_Bps = platform->host_link->peak_Bps * share,
      .store_Bps = platform->host_link->peak_Bps * share,
      .read_Bps = platform->ssd ? platform->ssd->read_Bps : 0.0,
      .write_Bps = platform->ssd ? platform->ssd->write_Bps : 0.0,
      .flops =
          d->peak_flops[KV_DTYPE_FP16] * d->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].flops_share,
      .gpu_Bps = d->memory_Bps,
      .cpu_flops = platform->cpu_flops,
      .gpu_bytes = d->memory_bytes,
      .host_bytes = platform->host_memory ? platform->host_memory->capacity_bytes * 0.95 : 0.0,
      .disk_bytes = platform->ssd ? platform->ssd->capacity_bytes : 0.0,
      .loads_apart = question->loads_apart,
  };
}

/* Seconds of streams that all run at once, or after what is loaded. */
static double layer_seconds(const Machine *m, double load, double a, double b, double c,
                            double compute) {
  double rest = fmax(fmax(a, b), fmax(c, compute));
  return m->loads_apart ? load + rest : fmax(load, rest);
}

static double over(double bytes, double Bps) {
  return bytes <= 0.0 ? 0.0 : Bps > 0.0 ? bytes / Bps : INFINITY;
}

/* Seconds of one layer in the prefill, and in the middle of the decoding, of a block. */
static double block_seconds(const Machine *m, const KvFlexgenPolicy *p) {
  double block = (double)p->gpu_batch * p->n_gpu_batches, hidden = 2.0 * m->h1 * block;
  double weights_disk = 1.0 - p->weights_gpu - p->weights_host;
  double cache_disk = 1.0 - p->cache_gpu - p->cache_host, outside = 1.0 - p->cache_gpu;
  double hidden_host = 1.0 - p->hidden_gpu, context = m->s + m->n / 2.0;
  double streamed = m->w * (1.0 - p->weights_gpu);
  double product = block * (8.0 * m->h1 * m->h1 + 4.0 * m->h1 * m->h2);
  double prefill = layer_seconds(
      m, over(streamed + hidden * m->s * hidden_host, m->load_Bps),
      over(m->kv * (m->s + 1.0) * block * outside + hidden * m->s * hidden_host, m->store_Bps),
      over(m->w * weights_disk, m->read_Bps),
      over(m->kv * (m->s + 1.0) * block * cache_disk, m->write_Bps),
      (product * m->s + 4.0 * block * m->s * m->s * m->h1) / m->flops);
  double decode =
      layer_seconds(m, over(streamed + hidden * hidden_host, m->load_Bps),
                    over(m->kv * block * outside + hidden * hidden_host, m->store_Bps),
                    over(m->w * weights_disk + m->kv * context * block * cache_disk, m->read_Bps),
                    over(m->kv * block * cache_disk, m->write_Bps),
                    product / m->flops + m->w / m->gpu_Bps +
                        over(m->kv * context * block * p->cache_gpu, m->gpu_Bps) +
                        over(4.0 * block * context * m->h1 * outside, m->cpu_flops));
  return m->l * (prefill + decode * (m->n - 1.0));
}

static gboolean fits(const Machine *m, const KvFlexgenPolicy *p) {
  double block = (double)p->gpu_batch * p->n_gpu_batches;
  double weights = m->w * m->l, cache = m->kv * m->l * (m->s + m->n) * block;
  double hidden = 2.0 * m->h1 * m->s * block;
  /* Two layers of what is streamed, and one GPU batch's tensors between: q, k, v and the MLP's. */
  double working =
      2.0 * m->w * (1.0 - p->weights_gpu) + 2.0 * p->gpu_batch * m->s * (4.0 * m->h1 + m->h2);
  double gpu = weights * p->weights_gpu + cache * p->cache_gpu + hidden * p->hidden_gpu + working;
  double host = weights * p->weights_host + cache * p->cache_host + hidden * (1.0 - p->hidden_gpu);
  double disk = weights * (1.0 - p->weights_gpu - p->weights_host) +
                cache * (1.0 - p->cache_gpu - p->cache_host);
  return gpu <= m->gpu_bytes && host <= m->host_bytes && disk <= m->disk_bytes + 1e-3;
}

static void consider(const Machine *m, KvFlexgenPolicy p, KvFlexgenPolicy *best) {
  if (!fits(m, &p))
    return;
  p.seconds_per_token = block_seconds(m, &p) / (m->n * p.gpu_batch * p.n_gpu_batches);
  if (p.seconds_per_token < best->seconds_per_token)
    *best = p;
}

/* Every placement of weights and cache in tenths, activations on one side, for one block shape. */
static void search_placements(const Machine *m, KvFlexgenPolicy p, KvFlexgenPolicy *best) {
  for (guint wg = 0; wg <= TENTHS; wg++)
    for (guint wc = 0; wg + wc <= TENTHS; wc++)
      for (guint cg = 0; cg <= TENTHS; cg++)
        for (guint cc = 0; cg + cc <= TENTHS; cc++)
          for (guint hg = 0; hg <= 1; hg++) {
            p.weights_gpu = wg / (double)TENTHS;
            p.weights_host = wc / (double)TENTHS;
            p.cache_gpu = cg / (double)TENTHS;
            p.cache_host = cc / (double)TENTHS;
            p.hidden_gpu = hg;
            consider(m, p, best);
          }
}

gboolean kv_flexgen_search(const KvFlexgenQuestion *question, const KvModel *model,
                           const KvPlatform *platform, KvFlexgenPolicy *policy) {
  Machine m;
  set_up(question, model, platform, &m);
  *policy = (KvFlexgenPolicy){.seconds_per_token = INFINITY};
  for (guint batch = 1; batch <= MOST_GPU_BATCH; batch = batch < 4 ? batch * 2 : batch + 4)
    for (guint batches = 1; batches <= MOST_GPU_BATCHES; batches++)
      search_placements(&m, (KvFlexgenPolicy){.gpu_batch = batch, .n_gpu_batches = batches},
                        policy);
  return isfinite(policy->seconds_per_token);
}
