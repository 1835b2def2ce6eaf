#include "sim/engine/model_executor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sim/engine/memory.h"
#include "sim/engine/transfer.h"

enum { MEMO_TOKENS = 16384, MAX_KERNELS = 32 };

/* One kind of kernel of a step, over all its layers. */
typedef struct {
  KvComponent component;
  double count;
  KvCost cost;
} Line;

/* The part of a step's price that depends only on how many tokens it has. */
typedef struct {
  gboolean known;
  double seconds[KV_N_COMPONENTS], flops[KV_N_COMPONENTS], bytes[KV_N_COMPONENTS];
  double total_seconds, link_bytes, kernels;
} Dense;

/* Prices by size, worked out when first asked for; twins share them. */
typedef struct {
  guint references;
  Dense layers[MEMO_TOKENS]; /* by tokens */
  Dense heads[MEMO_TOKENS];  /* lm head and sampling, by rows */
} Memo;

typedef struct {
  KvExecutor base;
  const KvModel *model;
  const KvPlan *plan;
  const KvPlanCurves *curves;
  const KvPlatform *platform;
  const KvDevice *device;
  const KvEngineConfig *config;
  guint tp, ep; /* ep: GPUs over which whole experts are spread; 1: split like other weights */
  double routed_tokens; /* of all ranks, in the step being priced; 0: the fullest's times peers */
  double ranks;         /* that attend apart and step together */
  double peers;         /* ranks and instances that share the experts, this one counted */
  double activation_bytes;          /* of one element */
  KvDtype expert_dtype, head_dtype; /* operands of the routed experts, and of the lm head */
  double expert_bytes, head_bytes;  /* of one of their weights */
  guint graph_max_tokens;
  double written_bytes[KV_N_TIERS];  /* of cache per new token, whole model */
  double streamed_bytes[KV_N_TIERS]; /* of weights per step, per GPU */
  Memo *memo;
  gboolean
      streams; /* anything comes from, or goes to, a lower tier or another processor in a step */
  gboolean uneven; /* some layers take other passes over a prompt, or run once in several tokens */
  double prompt_share, last_share; /* of the tokens being priced: of prompts, and their last ones */
  KvAttentionWork *chunk_work; /* by group of layers: the prompt chunks of the step priced last */
  KvTransfers *transfers;
  GArray *trace; /* of KvPricedKernel while kernels are listed, else NULL */
} Model;

static void add_line(Model *m, Dense *dense, KvComponent component, const char *name, double count,
                     KvCost one, const char *operands) {
  dense->seconds[component] += count * one.seconds;
  dense->total_seconds += count * one.seconds;
  dense->flops[component] += count * one.flops;
  dense->bytes[component] += count * one.bytes;
  dense->kernels += count;
  if (m->trace) {
    KvPricedKernel kernel = {.name = name, .component = component, .count = count, .cost = one};
    kernel.cost.seconds *= count;
    kernel.cost.flops *= count;
    kernel.cost.bytes *= count;
    g_strlcpy(kernel.operands, operands ? operands : "", sizeof kernel.operands);
    g_array_append_val(m->trace, kernel);
  }
}

static void add_gemm(Model *m, Dense *dense, KvComponent component, const char *name, double count,
                     double tokens, double k, double n) {
  char operands[64] = "";
  if (m->trace)
    snprintf(operands, sizeof operands, "m=%.0f k=%.0f n=%.0f %s", tokens, k, n,
             kv_dtype_names[m->plan->weights.dtype]);
  add_line(m, dense, component, name, count,
           kv_kernel_gemm(m->device, m->plan->weights.dtype, m->plan->weights.bytes_per_parameter,
                          tokens, k, n),
           operands);
}

static void add_elementwise(Model *m, Dense *dense, const char *name, double count, double bytes) {
  add_line(m, dense, KV_COMPONENT_ELEMENTWISE, name, count, kv_kernel_elementwise(m->device, bytes),
           NULL);
}

/* Layers of the group that the step runs: where they run once in several tokens, a step without
 * prompts runs them once in several steps, for all its sequences together. */
static double layers_run(const Model *m, const KvLayerGroup *group) {
  gboolean skips = group->stride_tokens > 1 && m->prompt_share == 0.0;
  return skips ? (double)group->count / group->stride_tokens : group->count;
}

/* Of a step's tokens, those that go through each of the group's layers. */
static double tokens_through(const Model *m, const KvLayerGroup *group, double tokens) {
  if (!m->uneven || m->prompt_share == 0.0)
    return tokens;
  double passes = 1.0 + group->extra_prefill_passes;
  double prompts = passes > 0.0 ? m->prompt_share * passes : m->last_share;
  return tokens * (1.0 - m->prompt_share + prompts) / MAX(1, group->stride_tokens);
}

/* Projections of attention: the formulas of each kind stand beside its GEMMs. */
static void price_projections(Model *m, Dense *dense, const KvLayerGroup *group, double tokens) {
  const KvAttention *a = &group->attention;
  double layers = layers_run(m, group), hidden = m->model->hidden, tp = m->tp;
  double kv_heads = a->borrows_cache ? 0.0 : MAX(1.0, a->n_kv_heads / tp);
  double heads = a->n_heads / tp;
  if (a->kind == KV_ATTENTION_LATENT) {
    /* DeepSeek-V2, section 2.1: queries through a latent of q_lora_rank, keys and values through
     * one of kv_lora_rank; the down-projections are replicated on every GPU. */
    double query = heads * a->head_dim;
    if (a->q_lora_rank) {
      add_gemm(m, dense, KV_COMPONENT_QKV, "q and kv down-projection", layers, tokens, hidden,
               a->q_lora_rank + a->kv_lora_rank + a->rope_head_dim);
      add_gemm(m, dense, KV_COMPONENT_QKV, "q up-projection", layers, tokens, a->q_lora_rank,
               query);
    } else {
      add_gemm(m, dense, KV_COMPONENT_QKV, "q and kv down-projection", layers, tokens, hidden,
               query + a->kv_lora_rank + a->rope_head_dim);
    }
    add_gemm(m, dense, KV_COMPONENT_QKV, "kv up-projection", layers, tokens, a->kv_lora_rank,
             heads * (a->head_dim - a->rope_head_dim + a->value_head_dim));
  } else if (a->kind != KV_ATTENTION_NONE) {
    add_gemm(m, dense, KV_COMPONENT_QKV, "qkv projection", layers, tokens, hidden,
             (heads + kv_heads) * a->head_dim + kv_heads * a->value_head_dim);
  }
  if (a->kind != KV_ATTENTION_NONE)
    add_gemm(m, dense, KV_COMPONENT_OUTPUT_PROJECTION, "output projection", layers, tokens,
             heads * a->value_head_dim, hidden);
  double e = m->activation_bytes;
  add_elementwise(m, dense, "norm and residual", 2 * layers, 4.0 * tokens * hidden * e);
  add_elementwise(m, dense, "rotary and cache write", layers,
                  tokens * e * (2.0 * heads * a->head_dim + 4.0 * kv_heads * a->head_dim));
}

/* The exchange goes through NCCL and not through the engines' own all-reduce kernels, which the
 * device's fit is of: what one collective costs more, whatever its size. From the last sequence of
 * vLLM 0.19's Qwen3-30B run on two RTX PRO 6000 (8.85 ms a step, 96 collectives, 6.8 ms without
 * this); it agrees with NCCL's usual 20 to 30 us (recalled). */
static const double COLLECTIVE_SECONDS = 20e-6;

/* Routed experts. Split like other weights, every GPU holds a slice of each; spread whole over `ep`
 * GPUs, each holds its share of them and computes the tokens of every instance that are routed
 * there. Ranks gather each other's tokens before and scatter the sums after: an all-gather and a
 * reduce-scatter (vLLM's data parallelism with experts spread, its default exchange), each priced
 * as an all-reduce of half the bytes. Where ranks run padded to the fullest, the others' batches
 * are like this one's. */
static void price_experts(Model *m, Dense *dense, const KvMlp *mlp, double layers, double tokens) {
  double hidden = m->model->hidden,
         all_tokens = m->routed_tokens > 0.0 ? m->routed_tokens : tokens * m->peers;
  double slices = (double)m->tp * m->peers / m->ep; /* of one expert */
  add_line(m, dense, KV_COMPONENT_MLP, "experts", layers,
           kv_kernel_moe(m->device, m->expert_dtype, m->expert_bytes, all_tokens, hidden,
                         (double)mlp->expert_intermediate / slices, mlp->gated,
                         (double)mlp->n_experts / m->ep, (double)mlp->n_experts_per_token / m->ep),
           NULL);
  if (m->peers > 1.0) {
    double bytes = all_tokens * hidden * m->activation_bytes;
    KvCost one =
        kv_kernel_all_reduce(m->device, m->platform->gpu_link, 0.5 * bytes, (guint)m->peers);
    one.seconds += COLLECTIVE_SECONDS;
    add_line(m, dense, KV_COMPONENT_COMMUNICATION, "expert exchange", 2.0 * layers, one, NULL);
    dense->link_bytes += layers * bytes;
  }
}

static void price_mlp(Model *m, Dense *dense, const KvLayerGroup *group, double tokens) {
  const KvMlp *mlp = &group->mlp;
  double layers = layers_run(m, group), hidden = m->model->hidden, e = m->activation_bytes;
  double tp = m->tp;
  double wide = mlp->gated ? 2.0 : 1.0;
  double intermediate = (double)(mlp->intermediate + mlp->shared_intermediate) / tp;
  if (intermediate > 0.0) {
    add_gemm(m, dense, KV_COMPONENT_MLP, mlp->gated ? "gate and up projection" : "up projection",
             layers, tokens, hidden, wide * intermediate);
    add_elementwise(m, dense, "activation", layers, (wide + 1.0) * tokens * intermediate * e);
    add_gemm(m, dense, KV_COMPONENT_MLP, "down projection", layers, tokens, intermediate, hidden);
  }
  if (mlp->n_experts > 0) {
    price_experts(m, dense, mlp, layers, tokens);
  }
}

static void price_layers(Model *m, Dense *dense, double tokens) {
  *dense = (Dense){.known = TRUE};
  for (guint g = 0; g < m->model->n_groups; g++) {
    const KvLayerGroup *group = &m->model->groups[g];
    double through = tokens_through(m, group, tokens), layers = layers_run(m, group);
    if (through <= 0.0)
      continue; /* layers that prompts skip, in a step that ends none */
    price_projections(m, dense, group, through);
    price_mlp(m, dense, group, through);
    if (m->tp > 1) {
      double bytes = through * m->model->hidden * m->activation_bytes;
      add_line(m, dense, KV_COMPONENT_COMMUNICATION, "all-reduce", 2.0 * layers,
               kv_kernel_all_reduce(m->device, m->platform->gpu_link, bytes, m->tp), NULL);
      dense->link_bytes += 2.0 * layers * bytes;
    }
  }
  add_elementwise(m, dense, "embedding", 1.0,
                  2.0 * tokens * m->model->hidden * m->activation_bytes);
}

static void price_head(Model *m, Dense *dense, double rows) {
  *dense = (Dense){.known = TRUE};
  if (rows <= 0.0)
    return;
  char operands[64] = "";
  double columns = (double)m->model->vocab / m->tp;
  if (m->trace)
    snprintf(operands, sizeof operands, "m=%.0f k=%u n=%.0f %s", rows, m->model->hidden, columns,
             kv_dtype_names[m->head_dtype]);
  add_line(m, dense, KV_COMPONENT_LM_HEAD, "lm head", 1.0,
           kv_kernel_gemm(m->device, m->head_dtype, m->head_bytes, rows, m->model->hidden, columns),
           operands);
  add_line(m, dense, KV_COMPONENT_SAMPLING, "sampling", 1.0,
           kv_kernel_sampling(m->device, rows, m->model->vocab), NULL);
}

typedef void (*PriceDense)(Model *m, Dense *dense, double size);

static const Dense *dense_of(Model *m, Dense *memo, PriceDense price, guint64 size,
                             Dense *scratch) {
  if (size < MEMO_TOKENS && !m->trace) {
    if (!memo[size].known)
      price(m, &memo[size], (double)size);
    return &memo[size];
  }
  price(m, scratch, (double)size);
  return scratch;
}

/* Of all chunks' work, what falls on one rank: a single chunk wholly, many evenly. */
static void keep_one_rank(const Model *m, const KvStep *step, KvAttentionWork *work) {
  double share = 1.0 / fmin(m->ranks, step->n_chunks);
  work->blocks *= share;
  work->busy_seconds *= share;
  work->bytes_seconds *= share;
  work->flops *= share;
  work->bytes *= share;
}

/* Attention of prompt chunks: one call over all of them. Leaves the call's work in
 * m->chunk_work, for the decoding sequences that may share it. */
static void price_prefill(Model *m, Dense *dense, const KvStep *step) {
  for (guint g = 0; g < m->model->n_groups; g++) {
    const KvLayerGroup *group = &m->model->groups[g];
    const KvAttention *a = &group->attention;
    KvAttentionWork *work = &m->chunk_work[g];
    *work = (KvAttentionWork){0};
    if (a->kind == KV_ATTENTION_NONE)
      continue;
    gboolean latent = a->kind == KV_ATTENTION_LATENT; /* un-absorbed in prefill: full heads */
    double heads = MAX(1.0, (double)a->n_heads / m->tp);
    double kv_heads = latent ? heads : MAX(1.0, (double)a->n_kv_heads / m->tp);
    double passes = 1.0 + group->extra_prefill_passes, stride = MAX(1, group->stride_tokens);
    gboolean any = FALSE;
    for (guint i = 0; i < step->n_chunks; i++) {
      const KvChunk *chunk = &step->chunks[i];
      double tokens = ceil(chunk->tokens / stride), past = floor(chunk->past / stride);
      if (passes <= 0.0 && !chunk->last)
        continue;
      if (passes <= 0.0) { /* the prompt's last token alone */
        past += tokens - 1.0;
        tokens = 1.0;
      }
      any = TRUE;
      kv_kernel_add_prefill_attention(
          m->device, KV_DTYPE_BF16, tokens, past, heads, kv_heads, a->head_dim, a->value_head_dim,
          a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0.0, m->plan->element_bytes, work);
    }
    if (!any)
      continue;
    keep_one_rank(m, step, work);
    KvCost cost = kv_kernel_attention_call(m->device, KV_DTYPE_BF16, work);
    cost.seconds *= m->plan->prefill_flops_scale;
    cost.flops *= m->plan->prefill_flops_scale;
    add_line(m, dense, KV_COMPONENT_PREFILL_ATTENTION, "prefill attention",
             group->count * fmax(1.0, passes), cost, NULL);
  }
}

/* What decoding sequences add to the call that the chunks of their step are in. */
static KvCost decode_beside_chunks(const Model *m, const KvAttentionWork *chunks,
                                   const KvDecodeAttention *operands) {
  KvAttentionWork both = *chunks;
  kv_kernel_add_decode_attention(m->device, KV_DTYPE_BF16, operands, &both);
  KvCost alone = kv_kernel_attention_call(m->device, KV_DTYPE_BF16, chunks);
  KvCost cost = kv_kernel_attention_call(m->device, KV_DTYPE_BF16, &both);
  cost.seconds -= alone.seconds;
  cost.flops -= alone.flops;
  cost.bytes -= alone.bytes;
  return cost;
}

/* Decode attention at repeat `at` (any real number): seconds on the GPU, and what it moved and
 * computed. */
typedef struct {
  double seconds, flops, bytes;
  double host_bytes;                 /* read by a CPU or a storage device */
  double serial_seconds;             /* on such a processor or a link, hidden behind nothing */
  double side_seconds;               /* on such a processor, beside the whole step */
  double fetched_bytes[KV_N_TIERS];  /* from each tier */
  double streamed_bytes[KV_N_TIERS]; /* of them, beside the whole step */
  double launches;
} Attention;

/* What a reader asks of the step: its terms at this repeat. */
typedef struct {
  double bytes, flops, tokens, host_bytes, fetched[KV_N_TIERS], all_fetched;
} Read;

static Read sum_read(const Model *m, guint r, const KvDecodeBatch *decode, double at, double pad) {
  Read x = {0};
  for (guint i = 0; i < m->curves->readers[r].n_terms; i++) {
    const KvReadTerm *term = &m->curves->readers[r].terms[i];
    double value = (decode->values[term->channel] + at * decode->slopes[term->channel]) * pad;
    x.bytes += term->hbm_bytes * value;
    x.flops += term->flops * value;
    x.tokens += term->tokens * value;
    x.host_bytes += term->host_bytes * value;
    for (guint t = KV_TIER_DRAM; t < KV_N_TIERS && m->curves->readers[r].fetches; t++) {
      x.fetched[t] += term->fetched_bytes[t] * value / m->tp;
      x.all_fetched += term->fetched_bytes[t] * value;
    }
  }
  return x;
}

/* Seconds of the part of a read that is not the GPU's own: attention on another processor, or what
 * comes up from lower tiers. */
static double side_seconds(const Model *m, const KvReader *reader, const Read *x) {
  const KvPlatform *p = m->platform;
  double fixed = reader->fixed_seconds * reader->layers;
  if (reader->processor != KV_PROCESSOR_GPU) {
    gboolean cpu = reader->processor == KV_PROCESSOR_CPU;
    double rate = cpu ? p->host_memory->read_Bps : p->ssd ? p->ssd->read_Bps : G_MAXDOUBLE;
    double arithmetic = cpu ? x->flops / p->cpu_flops : 0.0;
    return fixed + fmax(x->host_bytes / rate / reader->efficiency, arithmetic);
  }
  double share = reader->fetch_efficiency > 0.0 ? reader->fetch_efficiency : 1.0;
  double up = p->host_link->peak_Bps * p->host_link->achievable_share * share;
  double disk = x->fetched[KV_TIER_SSD] + x->fetched[KV_TIER_CSD];
  double moved = 0.0;
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
    moved += x->fetched[t];
  return fmax(moved / up, p->ssd && disk > 0.0 ? disk / p->ssd->read_Bps : 0.0);
}

/* The product that rebuilds keys or values before a reader's attention, over its layers. */
static double rebuild_seconds(const Model *m, const KvReader *reader, const Read *x) {
  if (reader->rebuild_rank <= 0.0)
    return 0.0;
  double rows = fmax(1.0, x->tokens * reader->rebuild_share), width = reader->rebuild_width / m->tp;
  KvCost one =
      kv_kernel_gemm(m->device, KV_DTYPE_BF16, 2.0, rows, reader->rebuild_rank, fmax(1.0, width));
  return reader->layers * one.seconds;
}

static KvCost kernel_of(const Model *m, const KvReader *reader, const Read *x, double n,
                        gboolean shares_call) {
  double layers = reader->layers, tp = m->tp, kv_heads = fmax(1.0, reader->n_kv_heads / tp);
  guint group = g_array_index(m->plan->caches, KvCache, reader->cache).group;
  const KvAttention *a = &m->model->groups[group].attention;
  KvDecodeAttention operands = {
      .batch = n,
      .read_bytes = (x->bytes + x->all_fetched) / layers / tp,
      .flops = x->flops / layers / tp,
      .n_kv_heads = kv_heads,
      .group = fmax(1.0, a->n_heads / tp / kv_heads),
      .mean_tokens = x->tokens / n,
      .window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0.0,
  };
  gboolean beside = shares_call && x->tokens > 0.0 && kv_dtype_bytes(reader->format) >= 1.0;
  return beside ? decode_beside_chunks(m, &m->chunk_work[group], &operands)
                : kv_kernel_decode_attention(m->device, reader->format, &operands);
}

/* Add the GPU's kernel for a read, and what is rebuilt before it. */
static void add_gpu_read(const Model *m, Attention *sum, const KvReader *reader, const Read *x,
                         double n, double run, gboolean shares_call) {
  double layers = reader->layers;
  double seconds = layers * (kernel_of(m, reader, x, n, shares_call).seconds / reader->efficiency +
                             reader->fixed_seconds);
  double rebuild = rebuild_seconds(m, reader, x), written = 0.0;
  if (rebuild > 0.0 && reader->rebuild_fused) {
    seconds = fmax(seconds, rebuild);
  } else if (rebuild > 0.0) {
    written = layers * x->tokens * reader->rebuild_share * reader->rebuild_width *
              m->activation_bytes / m->tp;
    seconds += rebuild + written / m->device->memory_Bps;
  }
  sum->seconds += run * seconds;
  sum->flops += run * (x->flops / m->tp + 2.0 * layers * x->tokens * reader->rebuild_share *
                                              reader->rebuild_rank * reader->rebuild_width / m->tp);
  sum->bytes += run * ((x->bytes + x->all_fetched) / m->tp + 2.0 * written);
  sum->launches += run * layers * (1.0 + reader->extra_launches);
}

static Attention price_attention(const Model *m, const KvStep *step, double at) {
  const KvDecodeBatch *decode = &step->decode;
  Attention sum = {0};
  gboolean shares_call =
      step->n_chunks > 0 && kv_kernel_attention_shares_call(m->device, KV_DTYPE_BF16);
  double n = (double)(decode->n + decode->padding) / m->ranks, tp = m->tp;
  double pad = decode->n ? n / (double)decode->n : 1.0; /* what of the sums is one rank's */
  double beside_attention = 0.0;
  for (guint r = 0; r < m->curves->n_readers; r++) {
    const KvReader *reader = &m->curves->readers[r].reader;
    Read x = sum_read(m, r, decode, at, pad);
    guint group = g_array_index(m->plan->caches, KvCache, reader->cache).group;
    double run = 1.0 / MAX(1, m->model->groups[group].stride_tokens);
    if (reader->processor == KV_PROCESSOR_GPU)
      add_gpu_read(m, &sum, reader, &x, n, run, shares_call);
    sum.host_bytes += x.host_bytes;
    for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
      sum.fetched_bytes[t] += x.fetched[t];
    if (reader->processor == KV_PROCESSOR_GPU && x.all_fetched == 0.0)
      continue;
    double side = run * side_seconds(m, reader, &x);
    switch (reader->overlap) {
    case KV_OVERLAP_NONE:
      sum.serial_seconds += side;
      break;
    case KV_OVERLAP_REBUILD:
      sum.serial_seconds += fmax(0.0, side - rebuild_seconds(m, reader, &x));
      break;
    case KV_OVERLAP_ATTENTION:
      beside_attention += side;
      break;
    case KV_OVERLAP_STEP:
      if (reader->processor != KV_PROCESSOR_GPU)
        sum.side_seconds += side;
      for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
        sum.streamed_bytes[t] += x.fetched[t];
      break;
    }
  }
  sum.serial_seconds += fmax(0.0, beside_attention - sum.seconds);
  if (m->curves->state_bytes > 0.0) { /* recurrent layers read and write all of their state */
    double bytes = 2.0 * n * m->curves->state_bytes / tp;
    sum.seconds += kv_kernel_elementwise(m->device, bytes).seconds;
    sum.bytes += bytes;
    sum.launches += 1.0;
  }
  return sum;
}

/* Of the work that a processor does, on its own memory and at its own rate. */
static KvCost work_cost(const Model *m, const KvWork *work, double bytes, double flops) {
  double share = work->efficiency > 0.0 ? work->efficiency : 1.0;
  KvCost cost;
  if (work->processor == KV_PROCESSOR_GPU) {
    cost = kv_kernel_elementwise(m->device, bytes / share);
    double rate =
        work->matrix ? kv_kernel_attention_flops(m->device, KV_DTYPE_BF16) : m->device->fp32_flops;
    cost.seconds = fmax(cost.seconds, flops / (rate * share)) +
                   fmax(0.0, work->launches - 1.0) * m->device->graph_node_seconds;
  } else {
    const KvPlatform *p = m->platform;
    gboolean cpu = work->processor == KV_PROCESSOR_CPU;
    double rate = cpu ? p->host_memory->read_Bps : p->ssd ? p->ssd->read_Bps : G_MAXDOUBLE;
    double arithmetic = cpu && p->cpu_flops > 0.0 ? flops / (p->cpu_flops * share) : 0.0;
    cost = (KvCost){.seconds = fmax(bytes / (rate * share), arithmetic)};
  }
  cost.seconds += work->fixed_seconds;
  cost.flops = flops;
  cost.bytes = work->processor == KV_PROCESSOR_GPU ? bytes : 0.0;
  return cost;
}

/* The stack's own work in this step. `at` is the repeat. Returns the seconds of work beside the
 * step, the longest of the processors'. */
static double price_work(Model *m, Dense *dense, const KvStep *step, double at) {
  double beside[KV_PROCESSOR_STORAGE + 1] = {0};
  for (guint i = 0; i < m->plan->work->len; i++) {
    const KvWork *work = &g_array_index(m->plan->work, KvWork, i);
    double times = 0.0, context = 0.0;
    for (guint c = 0; c < step->n_chunks && work->moment != KV_MOMENT_DECODE_STEP; c++) {
      const KvChunk *chunk = &step->chunks[c];
      if (work->moment == KV_MOMENT_PREFILL_END && !chunk->last)
        continue;
      if (chunk->past + (double)chunk->tokens <= work->over_tokens)
        continue;
      times += work->moment == KV_MOMENT_PREFILL_TOKEN ? chunk->tokens : 1.0;
      context += work->moment == KV_MOMENT_PREFILL_TOKEN
                     ? chunk->tokens * (chunk->past + 0.5 * chunk->tokens)
                     : chunk->past + (double)chunk->tokens;
    }
    /* Decoding sequences are known by their sums only: their mean context decides for all of them.
     */
    double n = (double)step->decode.n, contexts = step->decode.context_tokens + at * n;
    if (work->moment == KV_MOMENT_DECODE_STEP && n > 0.0 && contexts > work->over_tokens * n) {
      double share = 1.0 / MAX(1, work->every_steps);
      times = share * n;
      context = share * contexts;
    }
    if (times == 0.0)
      continue;
    double bytes = (work->bytes * times + work->bytes_per_token * context) / m->tp;
    double flops = (work->flops * times + work->flops_per_token * context) / m->tp;
    KvCost cost = work_cost(m, work, bytes, flops);
    if (!work->critical) {
      beside[work->processor] += cost.seconds;
      continue;
    }
    add_line(m, dense, KV_COMPONENT_TECHNIQUE, work->name, 1.0, cost, NULL);
    dense->kernels += work->processor == KV_PROCESSOR_GPU ? fmax(0.0, work->launches - 1.0) : -1.0;
  }
  return fmax(beside[KV_PROCESSOR_GPU],
              fmax(beside[KV_PROCESSOR_CPU], beside[KV_PROCESSOR_STORAGE]));
}

/* Repeats of the step, of `repeats`, before some work begins because contexts have grown over its
 * limit.
 */
static guint64 repeats_before_work(const Model *m, const KvStep *step, guint64 repeats) {
  double mean = step->decode.n ? step->decode.context_tokens / (double)step->decode.n : 0.0;
  for (guint i = 0; i < m->plan->work->len; i++) {
    const KvWork *work = &g_array_index(m->plan->work, KvWork, i);
    if (work->moment == KV_MOMENT_DECODE_STEP && mean > 0.0 && mean <= work->over_tokens)
      repeats = (guint64)MIN((double)repeats, floor(work->over_tokens - mean) + 1.0);
  }
  return repeats;
}

/* What streaming from lower tiers adds to a step whose GPU part takes `compute` seconds.
 * FlexGen, section 4.3: the five streams of a step overlap, so the longest decides; the first
 * layer's weights come before anything can be computed. Without overlap they add up. */
static double price_streams(const Model *m, const KvStep *step, const Attention *attention,
                            double tokens, double compute) {
  const KvPlatform *p = m->platform;
  double share =
      m->plan->weights.pageable ? p->host_link->pageable_share : p->host_link->achievable_share;
  double up = p->host_link->peak_Bps * share, layers = kv_model_layers(m->model);
  double written = 0.0, fetched = 0.0, disk_read = m->streamed_bytes[KV_TIER_SSD],
         disk_written = 0.0;
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++) {
    written += m->written_bytes[t] * tokens / m->tp;
    fetched += attention->streamed_bytes[t];
  }
  disk_read += attention->streamed_bytes[KV_TIER_SSD];
  disk_written += m->written_bytes[KV_TIER_SSD] * tokens / m->tp;
  double weights = m->streamed_bytes[KV_TIER_DRAM] + m->streamed_bytes[KV_TIER_SSD];
  double activations = m->plan->weights.activation_share_host * 2.0 * tokens * m->model->hidden *
                       m->activation_bytes * layers / m->tp;
  double ctog = (weights + fetched + activations) / up, gtoc = (written + activations) / up;
  double dtoc = p->ssd && disk_read > 0.0 ? disk_read / p->ssd->read_Bps : 0.0;
  double ctod = p->ssd && disk_written > 0.0 ? disk_written / p->ssd->write_Bps : 0.0;
  double busy = compute + attention->serial_seconds;
  if (!m->plan->weights.stream_overlaps)
    return attention->serial_seconds + attention->side_seconds + ctog + gtoc + dtoc + ctod;
  double longest = fmax(fmax(m->plan->weights.loads_apart ? 0.0 : ctog, gtoc),
                        fmax(fmax(dtoc, ctod), fmax(busy, attention->side_seconds)));
  if (m->plan->weights.loads_apart)
    longest += ctog;
  return longest - compute + weights / up / layers;
}

static void find_streams(Model *m) {
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
    m->streams |= m->streamed_bytes[t] > 0.0 || m->written_bytes[t] > 0.0;
  for (guint r = 0; r < m->curves->n_readers; r++)
    m->streams |=
        m->curves->readers[r].reader.processor != KV_PROCESSOR_GPU || m->curves->readers[r].fetches;
  for (guint g = 0; g < m->model->n_groups; g++)
    m->uneven |=
        m->model->groups[g].extra_prefill_passes != 0.0 || m->model->groups[g].stride_tokens > 1;
}

/* Note of what the step's tokens are made, where layers treat them differently. */
static void set_shares(Model *m, const KvStep *step, guint64 tokens) {
  double prompts = 0.0, lasts = 0.0;
  for (guint i = 0; i < step->n_chunks; i++) {
    prompts += step->chunks[i].tokens;
    lasts += step->chunks[i].last;
  }
  m->prompt_share = tokens ? fmin(1.0, prompts / (double)tokens) : 0.0;
  m->last_share = tokens ? lasts / (double)tokens : 0.0;
}

/* vLLM 0.19's capture sizes: 1, 2, 4, multiples of 8 below 256, multiples of 16 from there on. */
static guint64 captured_size(guint64 tokens) {
  if (tokens <= 2)
    return tokens;
  if (tokens <= 4)
    return 4;
  return tokens < 256 ? (tokens + 7) / 8 * 8 : (tokens + 15) / 16 * 16;
}

typedef struct {
  const Dense *layers, *head;
  Dense layers_scratch, head_scratch, rest; /* rest: prefill attention */
  double rows, tokens;                      /* of the fullest rank */
  gboolean graph;
} Priced;

/* Tokens of the rank that has most, and rows it samples: decoding sequences are spread evenly, each
 * chunk goes whole to the rank that has least. Every rank runs padded to the fullest. */
static guint64 fullest_rank(const Model *m, const KvStep *step, guint64 *rows) {
  enum { MOST_RANKS = 1024 };
  guint ranks = MIN((guint)m->ranks, MOST_RANKS);
  guint64 decoding = (step->decode.n + step->decode.padding + ranks - 1) / ranks, most = 0;
  guint64 tokens[MOST_RANKS], lasts[MOST_RANKS];
  memset(tokens, 0, ranks * sizeof *tokens);
  memset(lasts, 0, ranks * sizeof *lasts);
  for (guint i = 0; i < step->n_chunks; i++) {
    guint least = 0;
    for (guint r = 1; r < ranks; r++)
      least = tokens[r] < tokens[least] ? r : least;
    tokens[least] += step->chunks[i].tokens;
    lasts[least] += step->chunks[i].last;
  }
  *rows = decoding;
  for (guint r = 0; r < ranks; r++) {
    most = MAX(most, tokens[r]);
    *rows = MAX(*rows, decoding + lasts[r]);
  }
  return decoding + most;
}

/* FlexGen computes a block of sequences in n_gpu_batches parts, one after the other, layer by
 * layer. */
static const Dense *layers_in_parts(Model *m, guint64 tokens, guint parts, Dense *scratch) {
  guint first = m->trace ? m->trace->len : 0;
  price_layers(m, scratch, ceil((double)tokens / parts));
  for (guint i = first; m->trace && i < m->trace->len; i++) {
    KvPricedKernel *kernel = &g_array_index(m->trace, KvPricedKernel, i);
    kernel->count *= parts;
    kernel->cost.seconds *= parts;
    kernel->cost.flops *= parts;
    kernel->cost.bytes *= parts;
  }
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    scratch->seconds[c] *= parts;
    scratch->flops[c] *= parts;
    scratch->bytes[c] *= parts;
  }
  scratch->total_seconds *= parts;
  scratch->link_bytes *= parts;
  scratch->kernels *= parts;
  return scratch;
}

/* Ranks that are not padded wait for the fullest, but experts see only the tokens there are. */
static const Dense *layers_unpadded(Model *m, const KvStep *step, guint64 size, Dense *scratch) {
  m->routed_tokens = (double)(step->decode.n + step->decode.padding);
  for (guint i = 0; i < step->n_chunks; i++)
    m->routed_tokens += step->chunks[i].tokens;
  price_layers(m, scratch, (double)size);
  m->routed_tokens = 0.0;
  return scratch;
}

/* Everything of a step but decode attention and what hangs on it. */
static void price_fixed_part(Model *m, const KvStep *step, Priced *priced) {
  guint64 rows = 0, tokens = fullest_rank(m, step, &rows);
  priced->graph = m->config->cuda_graphs && tokens <= m->graph_max_tokens &&
                  (m->config->cuda_graph_prompts || step->n_chunks == 0);
  priced->tokens = (double)tokens;
  priced->rows = (double)rows;
  guint64 size = priced->graph ? captured_size(tokens) : tokens;
  if (m->uneven)
    set_shares(m, step, tokens);
  if (strcmp(m->config->scheduler, "flexgen") == 0)
    priced->layers = layers_in_parts(m, tokens, m->config->n_gpu_batches, &priced->layers_scratch);
  else if (m->ranks > 1.0 && !m->config->pad_ranks)
    priced->layers = layers_unpadded(m, step, size, &priced->layers_scratch);
  else if (m->prompt_share > 0.0) {
    price_layers(m, &priced->layers_scratch, (double)size);
    priced->layers = &priced->layers_scratch;
  } else
    priced->layers = dense_of(m, m->memo->layers, price_layers, size, &priced->layers_scratch);
  priced->head = dense_of(m, m->memo->heads, price_head, rows, &priced->head_scratch);
  priced->rest = (Dense){.known = TRUE};
  if (step->n_chunks)
    price_prefill(m, &priced->rest, step);
}

/* The step's time at repeat `at`, and what of it is not kernels. */
static double repeat_seconds(Model *m, const KvStep *step, const Priced *priced, double at,
                             Attention *attention, Dense *work, double *transfer, double *launch) {
  *attention = step->decode.n ? price_attention(m, step, at) : (Attention){0};
  *work = (Dense){.known = TRUE};
  double beside = m->plan->work->len ? price_work(m, work, step, at) : 0.0;
  double kernels = priced->layers->kernels + priced->head->kernels + priced->rest.kernels +
                   work->kernels + attention->launches;
  double gpu = priced->layers->total_seconds + priced->head->total_seconds +
               priced->rest.total_seconds + work->total_seconds + attention->seconds;
  double launched = kv_kernel_launched(m->device, kernels, priced->graph, gpu);
  if (!priced->graph) /* the framework's own work to launch a kernel may keep the GPU waiting */
    launched = fmax(launched, kernels * m->config->eager_kernel_seconds);
  *launch = launched - gpu;
  if (beside > launched) {
    work->seconds[KV_COMPONENT_TECHNIQUE] += beside - launched;
    launched = beside;
  }
  *transfer = m->streams ? price_streams(m, step, attention, priced->tokens, launched) : 0.0;
  return launched + *transfer;
}

/* Every quantity of a step that varies from repeat to repeat. */
typedef struct {
  double seconds, attention, work, transfer, launch, launches;
  double flops, bytes, work_flops, work_bytes; /* the first two of attention */
  double fetched[KV_N_TIERS];
} Varying;

enum { N_VARYING = sizeof(Varying) / sizeof(double), SAMPLES = 5 };

static Varying sample(Model *m, const KvStep *step, const Priced *priced, double at) {
  Attention a;
  Dense work;
  Varying v = {0};
  v.seconds = repeat_seconds(m, step, priced, at, &a, &work, &v.transfer, &v.launch);
  v.attention = a.seconds;
  v.work = work.seconds[KV_COMPONENT_TECHNIQUE];
  v.work_flops = work.flops[KV_COMPONENT_TECHNIQUE];
  v.work_bytes = work.bytes[KV_COMPONENT_TECHNIQUE];
  v.flops = a.flops;
  v.bytes = a.bytes;
  v.launches = a.launches + work.kernels;
  for (guint t = 0; t < KV_N_TIERS; t++)
    v.fetched[t] = a.fetched_bytes[t];
  return v;
}

struct KvPricing {
  Priced priced;
  guint64 repeats; /* covered */
  Varying at[SAMPLES];
};

static KvPricing *model_pricing_new(KvExecutor *executor) {
  return g_new0(KvPricing, 1);
}

static void model_pricing_free(KvPricing *pricing) {
  g_free(pricing);
}

/* Weights of the five samples in the sum over the first `j` of `k` repeats, k > SAMPLES.
 * With u_i = -1 + h i, h = 2 / (k - 1), the samples stand at u = -1, -1/2, 0, 1/2, 1 and the
 * interpolating quartic is their Lagrange form. The sums of u_i^p over i < j follow from
 * Faulhaber's sums of i^p. */
static void weights_of(guint64 j, guint64 k, double weight[SAMPLES]) {
  double n = (double)j - 1.0, h = 2.0 / ((double)k - 1.0); /* the last index summed */
  double s0 = n + 1.0, s1 = n * s0 / 2.0, s2 = n * s0 * (2.0 * n + 1.0) / 6.0, s3 = s1 * s1;
  double s4 = s2 * (3.0 * n * n + 3.0 * n - 1.0) / 5.0;
  double h2 = h * h, h3 = h2 * h, h4 = h2 * h2;
  double u1 = h * s1 - s0, u2 = h2 * s2 - 2.0 * h * s1 + s0;
  double u3 = h3 * s3 - 3.0 * h2 * s2 + 3.0 * h * s1 - s0;
  double u4 = h4 * s4 - 4.0 * h3 * s3 + 6.0 * h2 * s2 - 4.0 * h * s1 + s0;
  weight[0] = 2.0 / 3.0 * (u4 - u3 - 0.25 * u2 + 0.25 * u1);
  weight[1] = -8.0 / 3.0 * (u4 - 0.5 * u3 - u2 + 0.5 * u1);
  weight[2] = 4.0 * u4 - 5.0 * u2 + s0;
  weight[3] = -8.0 / 3.0 * (u4 + 0.5 * u3 - u2 - 0.5 * u1);
  weight[4] = 2.0 / 3.0 * (u4 + u3 - 0.25 * u2 - 0.25 * u1);
}

/* How far the quadratic through the outer and the middle one of five samples is off at the others.
 */
static double bend(double f0, double f1, double f2, double f3, double f4) {
  double left = 0.375 * f0 + 0.75 * f2 - 0.125 * f4, right = -0.125 * f0 + 0.75 * f2 + 0.375 * f4;
  return fabs(left - f1) + fabs(right - f3);
}

static guint64 model_price(KvExecutor *executor, const KvStep *step, KvPricing *pricing) {
  Model *m = (Model *)executor;
  price_fixed_part(m, step, &pricing->priced);
  guint64 k = repeats_before_work(m, step, step->repeat);
  pricing->at[0] = sample(m, step, &pricing->priced, 0.0);
  /* A span that can be halved a few times keeps every other sample where the half one needs it. */
  guint64 span = k - 1, fresh = ~(guint64)0;
  if (span >= 64)
    span &= ~(guint64)15;
  for (; span >= SAMPLES; span /= 2) {
    double quarter = (double)span / 4.0;
    Varying *f = pricing->at;
    for (guint i = 1; i < SAMPLES; i++)
      if (fresh & ((guint64)1 << i))
        f[i] = sample(m, step, &pricing->priced, i * quarter);
    /* At the inner samples the quadratic through the outer three differs from the quartic the most.
     */
    double off = bend(f[0].seconds, f[1].seconds, f[2].seconds, f[3].seconds, f[4].seconds);
    double of_attention =
        bend(f[0].attention, f[1].attention, f[2].attention, f[3].attention, f[4].attention);
    if (off <= 1e-6 * f[2].seconds && of_attention <= 1e-5 * f[2].attention)
      return pricing->repeats = span + 1;
    fresh = ~(guint64)0;
    if (span % 2 == 0) {
      f[4] = f[2];
      f[2] = f[1];
      fresh = 1 << 1 | 1 << 3;
    }
  }
  k = MIN(k, span + 1);
  for (guint i = 1; i < k; i++)
    pricing->at[i] = sample(m, step, &pricing->priced, i);
  return pricing->repeats = k;
}

static void pricing_weights(const KvPricing *pricing, guint64 repeats, double weight[SAMPLES]) {
  g_assert(repeats <= pricing->repeats);
  if (pricing->repeats > SAMPLES)
    weights_of(repeats, pricing->repeats, weight);
  else
    for (guint i = 0; i < SAMPLES; i++)
      weight[i] = i < repeats ? 1.0 : 0.0;
}

static double model_seconds(const KvPricing *pricing, guint64 repeats) {
  double weight[SAMPLES], seconds = 0.0;
  pricing_weights(pricing, repeats, weight);
  for (guint i = 0; i < SAMPLES; i++)
    seconds += weight[i] * pricing->at[i].seconds;
  return seconds;
}

static void model_cost(KvExecutor *executor, const KvPricing *pricing, guint64 repeats,
                       KvStepCost *cost) {
  const Model *m = (const Model *)executor;
  const Priced *priced = &pricing->priced;
  double weight[SAMPLES], repeat = (double)repeats;
  Varying sum = {0};
  pricing_weights(pricing, repeats, weight);
  for (guint i = 0; i < SAMPLES; i++)
    for (guint v = 0; v < N_VARYING && weight[i] != 0.0; v++)
      ((double *)&sum)[v] += weight[i] * ((const double *)&pricing->at[i])[v];
  *cost = (KvStepCost){.seconds = sum.seconds, .first_seconds = pricing->at[0].seconds};
  cost->last_seconds =
      repeats == 1 ? cost->first_seconds : sum.seconds - model_seconds(pricing, repeats - 1);
  const Dense *parts[] = {priced->layers, priced->head, &priced->rest};
  for (guint p = 0; p < G_N_ELEMENTS(parts); p++) {
    for (guint c = 0; c < KV_N_COMPONENTS; c++) {
      cost->component_seconds[c] += repeat * parts[p]->seconds[c];
      cost->component_flops[c] += repeat * parts[p]->flops[c];
      cost->component_bytes[c] += repeat * parts[p]->bytes[c];
    }
    cost->link_bytes += repeat * parts[p]->link_bytes;
    cost->launches += repeat * parts[p]->kernels;
  }
  cost->component_seconds[KV_COMPONENT_DECODE_ATTENTION] += sum.attention;
  cost->component_seconds[KV_COMPONENT_TECHNIQUE] += sum.work;
  cost->component_flops[KV_COMPONENT_TECHNIQUE] += sum.work_flops;
  cost->component_bytes[KV_COMPONENT_TECHNIQUE] += sum.work_bytes;
  cost->component_seconds[KV_COMPONENT_TRANSFER] += sum.transfer;
  cost->component_seconds[KV_COMPONENT_LAUNCH] += sum.launch;
  cost->component_flops[KV_COMPONENT_DECODE_ATTENTION] += sum.flops;
  cost->component_bytes[KV_COMPONENT_DECODE_ATTENTION] += sum.bytes;
  cost->launches += sum.launches;
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    cost->flops += cost->component_flops[c];
    cost->hbm_bytes += cost->component_bytes[c];
  }
  for (guint t = 0; t < KV_N_TIERS; t++)
    cost->fetched_bytes[t] = sum.fetched[t] + repeat * m->streamed_bytes[t];
}

static gboolean model_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                           GError **error) {
  KvPricing pricing;
  model_price(executor, step, &pricing);
  model_cost(executor, &pricing, 1, cost);
  return TRUE;
}

GArray *kv_model_executor_kernels(KvExecutor *executor, const KvStep *step) {
  g_return_val_if_fail(executor->class == &kv_model_executor_class, NULL);
  Model *m = (Model *)executor;
  Priced priced;
  m->trace = g_array_new(FALSE, TRUE, sizeof(KvPricedKernel));
  price_fixed_part(m, step, &priced);
  Attention a;
  Dense work;
  double transfer, launch;
  repeat_seconds(m, step, &priced, 0.0, &a, &work, &transfer, &launch);
  GArray *kernels = g_steal_pointer(&m->trace);
  KvPricedKernel rest[] = {
      {.name = "decode attention",
       .component = KV_COMPONENT_DECODE_ATTENTION,
       .count = a.launches,
       .cost = {a.seconds, a.flops, a.bytes, KV_BOUND_MEMORY}},
      {.name = "transfers not hidden",
       .component = KV_COMPONENT_TRANSFER,
       .count = 1.0,
       .cost = {transfer, 0.0, 0.0, KV_BOUND_LINK}},
      {.name = "launches",
       .component = KV_COMPONENT_LAUNCH,
       .count = 1.0,
       .cost = {launch, 0.0, 0.0, KV_BOUND_FIXED}},
  };
  for (guint i = 0; i < G_N_ELEMENTS(rest); i++)
    if (rest[i].cost.seconds > 0.0)
      g_array_append_val(kernels, rest[i]);
  return kernels;
}

/* Copies. */

static void model_copy(KvExecutor *executor, const KvCopy *copy, double now) {
  Model *m = (Model *)executor;
  /* vLLM 2023, section 5 of its notes: one copy per layer, K/V and block. */
  double pieces = (double)copy->blocks * (copy->pinned ? 1.0 : 2.0 * kv_model_layers(m->model));
  kv_transfers_begin(m->transfers, copy, pieces, now);
}

static double model_next_copy(KvExecutor *executor) {
  return kv_transfers_next(((Model *)executor)->transfers);
}

static gboolean model_pop_copy(KvExecutor *executor, double now, KvCopy *copy) {
  return kv_transfers_pop(((Model *)executor)->transfers, now, copy);
}

static void model_destroy(KvExecutor *executor) {
  Model *m = (Model *)executor;
  kv_transfers_free(m->transfers);
  if (--m->memo->references == 0)
    g_free(m->memo);
  g_free(m->chunk_work);
  g_free(m);
}

const KvExecutorClass kv_model_executor_class = {
    .name = "model",
    .description = "analytic cost models, virtual time",
    .closed_form = TRUE,
    .step = model_step,
    .pricing_new = model_pricing_new,
    .pricing_free = model_pricing_free,
    .price = model_price,
    .seconds = model_seconds,
    .cost = model_cost,
    .copy = model_copy,
    .next_copy = model_next_copy,
    .pop_copy = model_pop_copy,
    .destroy = model_destroy,
};

static void set_paths(Model *m) {
  const KvPlatform *p = m->platform;
  const KvLink *link = p->host_link;
  KvPath host = {link->peak_Bps * link->achievable_share * m->tp,
                 link->peak_Bps * link->achievable_share * m->tp, link->duplex_share,
                 link->latency_seconds, link->per_copy_seconds};
  kv_transfers_set_path(m->transfers, KV_TIER_HBM, KV_TIER_DRAM, &host);
  if (p->ssd) {
    KvPath disk = {MIN(host.down_Bps, p->ssd->write_Bps), MIN(host.up_Bps, p->ssd->read_Bps), 1.0,
                   p->ssd->latency_seconds, 0.0};
    kv_transfers_set_path(m->transfers, KV_TIER_HBM, KV_TIER_SSD, &disk);
    kv_transfers_set_path(m->transfers, KV_TIER_DRAM, KV_TIER_SSD, &disk);
  }
}

/* Quantized checkpoints leave the lm head in 16 bits; published ones may store experts smaller than
 * the rest. */
static void set_dtypes(Model *m) {
  const KvWeights *w = &m->plan->weights;
  gboolean as_published = w->dtype == m->model->weight_dtype;
  gboolean quantized = w->bytes_per_parameter < 2.0;
  m->expert_dtype = as_published ? m->model->expert_dtype : w->dtype;
  m->expert_bytes =
      as_published ? kv_memory_expert_bytes(m->model, m->plan) : w->bytes_per_parameter;
  m->head_dtype = quantized ? KV_DTYPE_BF16 : w->dtype;
  m->head_bytes = quantized ? 2.0 : w->bytes_per_parameter;
}

KvExecutor *kv_model_executor_new(const KvModel *model, const KvPlan *plan,
                                  const KvPlanCurves *curves, const KvPlatform *platform,
                                  const KvEngineConfig *config, guint tensor_parallel) {
  Model *m = g_new0(Model, 1);
  m->base.class = &kv_model_executor_class;
  m->model = model;
  m->plan = plan;
  m->curves = curves;
  m->platform = platform;
  m->device = platform->device;
  m->config = config;
  m->tp = tensor_parallel;
  m->ranks = config->data_parallel;
  m->ep = config->expert_parallel ? config->expert_parallel : 1;
  m->peers = fmax(m->ranks, (double)m->ep / m->tp);
  set_dtypes(m);
  m->activation_bytes = 2.0;
  m->graph_max_tokens = config->cuda_graph_max_tokens;
  m->memo = g_new0(Memo, 1);
  m->memo->references = 1;
  m->chunk_work = g_new0(KvAttentionWork, m->model->n_groups);
  m->transfers = kv_transfers_new();
  for (guint c = 0; c < curves->n_channels; c++) {
    double slope;
    kv_law_value(&curves->laws[c], 1e9, 0.0, TRUE, &slope, NULL);
    for (guint t = 0; t < KV_N_TIERS; t++)
      m->written_bytes[t] += curves->stored_bytes[t][c] * slope;
  }
  double weights = kv_memory_weight_bytes(model, plan);
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
    m->streamed_bytes[t] = plan->weights.share[t] * weights / m->tp;
  find_streams(m);
  set_paths(m);
  return &m->base;
}

KvExecutor *kv_model_executor_twin(KvExecutor *like) {
  g_return_val_if_fail(like->class == &kv_model_executor_class, NULL);
  Model *m = g_memdup2(like, sizeof *m);
  m->memo->references++;
  m->chunk_work = g_new0(KvAttentionWork, m->model->n_groups);
  m->transfers = kv_transfers_new();
  set_paths(m);
  return &m->base;
}
