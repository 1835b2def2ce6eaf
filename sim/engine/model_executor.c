#include "sim/engine/model_executor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sim/engine/memory.h"
#include "sim/engine/timed_techniques.h"
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
  double clocked_seconds[KV_N_COMPONENTS]; /* that the multiprocessors bound, and */
  double flop_joules, byte_joules;         /* energies, where the power limit is priced */
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
  /* The platform's device at the full clock, to which `device` points. It owns none of its texts.
   */
  KvDevice unlimited;
  const KvEngineConfig *config;
  guint tp, ep; /* ep: GPUs over which whole experts are spread; 1: split like other weights */
  double routed_tokens; /* of all ranks, in the step being priced; 0: the fullest's times peers */
  double ranks;         /* that attend apart and step together */
  double groups;        /* over which each sequence's cache is split along its tokens */
  guint groups_per_node, group_nodes;
  double peers;            /* ranks and instances that share the experts, this one counted */
  double activation_bytes; /* of one element */
  KvDtype expert_dtype, head_dtype; /* operands of the routed experts, and of the lm head */
  double expert_bytes, head_bytes;  /* of one of their weights */
  guint graph_max_tokens;
  double written_bytes[KV_N_TIERS];  /* of cache per new token, whole model */
  double streamed_bytes[KV_N_TIERS]; /* of weights per step, per GPU */
  Memo *memo;
  gboolean
      streams; /* anything comes from, or goes to, a lower tier or another processor in a step */
  gboolean stores_below; /* anything is stored on a lower tier */
  gboolean uneven; /* some layers take other passes over a prompt, or run once in several tokens */
  double prompt_share, last_share; /* of the tokens being priced: of prompts, and their last ones */
  KvAttentionWork *chunk_work; /* by group of layers: the prompt chunks of the step priced last */
  double slack[2];             /* of the step priced last, if it had sequences on the host */
  KvTimedTechniques timed;
  KvTransfers *transfers;
  GArray *trace; /* of KvPricedKernel while kernels are listed, else NULL */
} Model;

/* The fit that a kernel's time rests on. */
typedef struct {
  KvKernelFamily family;
  KvDtype dtype;
} Fit;

static void add_line(Model *m, Dense *dense, KvComponent component, Fit fit, const char *name,
                     double count, KvCost one, const char *operands) {
  dense->seconds[component] += count * one.seconds;
  dense->total_seconds += count * one.seconds;
  dense->flops[component] += count * one.flops;
  dense->bytes[component] += count * one.bytes;
  dense->kernels += count;
  if (one.bound == KV_BOUND_COMPUTE)
    dense->clocked_seconds[component] += count * one.seconds;
  if (m->device->flop_joules > 0.0 && fit.family < KV_N_KERNELS &&
      fit.family != KV_KERNEL_ELEMENTWISE) {
    /* Operands of half the bits take half the energy: an estimate. */
    double width = fmin(1.0, kv_dtype_bytes(fit.dtype) / 2.0);
    dense->flop_joules += count * one.flops * width * m->device->flop_joules;
  }
  if (one.bound != KV_BOUND_LINK)
    dense->byte_joules += count * one.bytes * m->device->byte_joules;
  if (m->trace) {
    KvPricedKernel kernel = {.name = name,
                             .component = component,
                             .family = fit.family,
                             .dtype = fit.dtype,
                             .count = count,
                             .cost = one};
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
  add_line(m, dense, component, (Fit){KV_KERNEL_GEMM, m->plan->weights.dtype}, name, count,
           kv_kernel_gemm(m->device, m->plan->weights.dtype, m->plan->weights.bytes_per_parameter,
                          tokens, k, n),
           operands);
}

static const Fit elementwise_fit = {KV_KERNEL_ELEMENTWISE, KV_DTYPE_BF16};
static const Fit no_fit = {KV_N_KERNELS, KV_DTYPE_BF16};

static void add_elementwise(Model *m, Dense *dense, const char *name, double count, double bytes) {
  add_line(m, dense, KV_COMPONENT_ELEMENTWISE, elementwise_fit, name, count,
           kv_kernel_elementwise(m->device, bytes), NULL);
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

/* Queries are multiplied into the latents' space, and what comes out of it, head by head: no keys
 * or values are made of latents, neither for prompts. */
static void price_absorption(Model *m, Dense *dense, const KvAttention *a, double layers,
                             double heads, double tokens) {
  const struct {
    KvComponent component;
    const char *name;
    double k, n;
  } products[] = {
      {KV_COMPONENT_QKV, "queries into latents", a->head_dim - a->rope_head_dim, a->kv_lora_rank},
      {KV_COMPONENT_OUTPUT_PROJECTION, "outputs from latents", a->kv_lora_rank, a->value_head_dim}};
  for (guint i = 0; i < G_N_ELEMENTS(products); i++)
    add_line(m, dense, products[i].component, (Fit){KV_KERNEL_GEMM, m->plan->weights.dtype},
             products[i].name, layers,
             kv_kernel_gemm_each(m->device, m->plan->weights.dtype,
                                 m->plan->weights.bytes_per_parameter, heads, tokens, products[i].k,
                                 products[i].n),
             NULL);
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
    if (m->config->as_executed)
      price_absorption(m, dense, a, layers, heads, tokens);
    else
      add_gemm(m, dense, KV_COMPONENT_QKV, "kv up-projection", layers, tokens, a->kv_lora_rank,
               heads * (a->head_dim - a->rope_head_dim + a->value_head_dim));
  } else if (a->kind != KV_ATTENTION_NONE) {
    add_gemm(m, dense, KV_COMPONENT_QKV, "qkv projection", layers, tokens, hidden,
             (heads + kv_heads) * a->head_dim + kv_heads * a->value_head_dim);
  }
  if (a->mixer_parameters > 0) /* every one of these weights is multiplied by each token */
    add_gemm(m, dense, KV_COMPONENT_QKV, "mixer", layers, tokens, hidden,
             (double)a->mixer_parameters / hidden / tp);
  if (a->kind != KV_ATTENTION_NONE)
    add_gemm(m, dense, KV_COMPONENT_OUTPUT_PROJECTION, "output projection", layers, tokens,
             heads * a->value_head_dim, hidden);
  double e = m->activation_bytes;
  add_elementwise(m, dense, "norm and residual", 2 * layers, 4.0 * tokens * hidden * e);
  add_elementwise(m, dense, "rotary and cache write", layers,
                  tokens * e * (2.0 * heads * a->head_dim + 4.0 * kv_heads * a->head_dim));
}

/* What an exchange of experts costs beside NCCL's own kernel, whatever its size. From the last
 * sequence of vLLM 0.19's Qwen3-30B run on two RTX PRO 6000 (8.85 ms a step, 96 collectives, 6.8 ms
 * without this). What it consists of is not known: NCCL's tables show 5 to 16 us of a small message
 * on servers of 2 to 8 GPUs, which are priced apart. */
static const double COLLECTIVE_SECONDS = 20e-6;

/* Routed experts. Split like other weights, every GPU holds a slice of each; spread whole over `ep`
 * GPUs, each holds its share of them and computes the tokens of every instance that are routed
 * there. Ranks gather each other's tokens before and scatter the sums after: an all-gather and a
 * reduce-scatter (vLLM's data parallelism with experts spread, its default exchange). Where ranks
 * run padded to the fullest, the others' batches are like this one's. */
static void price_experts(Model *m, Dense *dense, const KvMlp *mlp, double layers, double tokens) {
  double hidden = m->model->hidden,
         all_tokens = m->routed_tokens > 0.0 ? m->routed_tokens : tokens * m->peers;
  double slices = (double)m->tp * m->peers / m->ep; /* of one expert */
  gboolean fitted = m->device->efficiency[KV_KERNEL_MOE][m->expert_dtype].bandwidth_share > 0.0;
  Fit fit = {fitted ? KV_KERNEL_MOE : KV_KERNEL_GEMM, m->expert_dtype};
  add_line(m, dense, KV_COMPONENT_MLP, fit, "experts", layers,
           kv_kernel_moe(m->device, m->expert_dtype, m->expert_bytes, all_tokens, hidden,
                         (double)mlp->expert_intermediate / slices, mlp->gated,
                         (double)mlp->n_experts / m->ep, (double)mlp->n_experts_per_token / m->ep),
           NULL);
  if (m->peers > 1.0) {
    double bytes = all_tokens * hidden * m->activation_bytes;
    static const struct {
      KvCollective collective;
      const char *name;
    } exchanges[] = {{KV_COLLECTIVE_ALL_GATHER, "gather for experts"},
                     {KV_COLLECTIVE_REDUCE_SCATTER, "scatter of experts"}};
    for (guint i = 0; i < G_N_ELEMENTS(exchanges); i++) {
      KvCost one = kv_kernel_collective(m->device, m->platform->gpu_link, exchanges[i].collective,
                                        bytes, (guint)m->peers);
      one.seconds += COLLECTIVE_SECONDS;
      add_line(m, dense, KV_COMPONENT_COMMUNICATION, (Fit){KV_KERNEL_NCCL, KV_DTYPE_BF16},
               exchanges[i].name, layers, one, NULL);
    }
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
      Fit fit = {kv_kernel_all_reduce_family(m->device, bytes, m->tp), KV_DTYPE_BF16};
      add_line(m, dense, KV_COMPONENT_COMMUNICATION, fit, "all-reduce", 2.0 * layers,
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
  add_line(m, dense, KV_COMPONENT_LM_HEAD, (Fit){KV_KERNEL_GEMM, m->head_dtype}, "lm head", 1.0,
           kv_kernel_gemm(m->device, m->head_dtype, m->head_bytes, rows, m->model->hidden, columns),
           operands);
  add_line(m, dense, KV_COMPONENT_SAMPLING, elementwise_fit, "sampling", 1.0,
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

/* Latents of earlier chunks are widened to keys and values again for every chunk after. */
static void price_widening(Model *m, Dense *dense, const KvLayerGroup *group, const KvStep *step) {
  const KvAttention *a = &group->attention;
  double past = 0.0;
  for (guint i = 0; i < step->n_chunks; i++)
    past += step->chunks[i].past;
  if (past > 0.0)
    add_gemm(m, dense, KV_COMPONENT_QKV, "kv up-projection of past", group->count,
             past / fmin(m->ranks, step->n_chunks), a->kv_lora_rank,
             (double)a->n_heads / m->tp * (a->head_dim - a->rope_head_dim + a->value_head_dim));
}

/* Attention of prompt chunks: one call over all of them. Leaves the call's work in
 * m->chunk_work, for the decoding sequences that may share it. */
static void price_prefill(Model *m, Dense *dense, const KvStep *step) {
  for (guint g = 0; g < m->model->n_groups; g++) {
    const KvLayerGroup *group = &m->model->groups[g];
    const KvAttention *a = &group->attention;
    KvAttentionWork *work = &m->chunk_work[g];
    gboolean latent = a->kind == KV_ATTENTION_LATENT; /* un-absorbed in prefill: full heads */
    gboolean absorbed = latent && m->config->as_executed;
    *work = (KvAttentionWork){.latent = latent};
    if (a->kind == KV_ATTENTION_NONE)
      continue;
    double heads = MAX(1.0, (double)a->n_heads / m->tp);
    double kv_heads = absorbed ? 1.0 : latent ? heads : MAX(1.0, (double)a->n_kv_heads / m->tp);
    double key_dim = absorbed ? a->kv_lora_rank + a->rope_head_dim : a->head_dim;
    double value_dim = absorbed ? a->kv_lora_rank : a->value_head_dim;
    double element_bytes = latent ? m->activation_bytes : m->plan->element_bytes;
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
          m->device, KV_DTYPE_BF16, tokens, past, heads, kv_heads, key_dim, value_dim,
          a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0.0, element_bytes, work);
    }
    if (!any)
      continue;
    if (latent && !absorbed)
      price_widening(m, dense, group, step);
    keep_one_rank(m, step, work);
    KvCost cost = kv_kernel_attention_call(m->device, KV_DTYPE_BF16, work);
    cost.seconds *= m->plan->prefill_flops_scale;
    cost.flops *= m->plan->prefill_flops_scale;
    Fit fit = {latent ? KV_KERNEL_LATENT_PREFILL : KV_KERNEL_PREFILL_ATTENTION, KV_DTYPE_BF16};
    add_line(m, dense, KV_COMPONENT_PREFILL_ATTENTION, fit, "prefill attention",
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
  double streamed_bytes[KV_N_TIERS]; /* of them, beside the whole step, as one large copy's */
  double launches;
} Attention;

/* What a reader asks of the step: its terms at this repeat. */
typedef struct {
  double bytes, flops, tokens, host_bytes, fetched[KV_N_TIERS], all_fetched;
  double longest_tokens; /* where whole contexts are read: of the longest; else 0 */
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

/* Of a large copy's rate, what a reader's fetches get. */
static double fetch_share(const KvReader *reader) {
  return reader->fetch_efficiency > 0.0 ? reader->fetch_efficiency : 1.0;
}

/* What a processor other than the GPU reads in its own memory, and computes, a second. */
static double side_Bps(const KvPlatform *p, KvProcessor processor) {
  return processor == KV_PROCESSOR_CPU ? p->host_memory->read_Bps : p->csd->internal_Bps;
}

static double side_flops(const KvPlatform *p, KvProcessor processor) {
  return processor == KV_PROCESSOR_CPU ? p->cpu_flops : p->csd->internal_flops;
}

/* Queries, keys and values of `n` sequences go down to storage that attends, outputs come up, a
 * command for each layer. */
static double storage_exchange(const Model *m, const KvReader *reader, double n) {
  const KvStorage *csd = m->platform->csd;
  const KvCache *cache = &g_array_index(m->plan->caches, KvCache, reader->cache);
  const KvAttention *a = &m->model->groups[cache->group].attention;
  double heads = 2.0 * a->n_heads + 2.0 * a->n_kv_heads;
  double bytes = n * reader->layers * heads * a->head_dim * m->activation_bytes;
  return bytes / csd->read_Bps + csd->latency_seconds * reader->layers;
}

/* Seconds of the part of a read of `n` sequences that is not the GPU's own: attention on another
 * processor, or what comes up from lower tiers. */
static double side_seconds(const Model *m, const KvReader *reader, const Read *x, double n) {
  const KvPlatform *p = m->platform;
  double fixed = reader->fixed_seconds * reader->layers;
  double disk = x->fetched[KV_TIER_SSD], csd = x->fetched[KV_TIER_CSD];
  double drives = fmax(p->ssd && disk > 0.0 ? disk / p->ssd->read_Bps : 0.0,
                       csd > 0.0 ? csd / p->csd->read_Bps : 0.0);
  if (reader->processor != KV_PROCESSOR_GPU) {
    double read = x->host_bytes / side_Bps(p, reader->processor) / reader->efficiency;
    if (reader->processor == KV_PROCESSOR_STORAGE)
      fixed += storage_exchange(m, reader, n);
    /* What is on a drive comes to the processor's memory first, while it attends to what has come.
     */
    return fixed + fmax(fmax(read, drives), x->flops / side_flops(p, reader->processor));
  }
  double up = p->host_link->peak_Bps * p->host_link->achievable_share * fetch_share(reader);
  double moved = 0.0;
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
    moved += x->fetched[t];
  return fmax(moved / up, drives);
}

/* The product that rebuilds keys or values for a reader's attention, over its layers: inside its
 * kernel at that kernel's rate, before it as a product of its own. Contexts are thousands of rows,
 * so that is a long one, whose time grows evenly with them where tiles would make it jump. */
static double rebuild_seconds(const Model *m, const KvReader *reader, const Read *x) {
  enum { LONG_ROWS = 65536 };
  if (reader->rebuild_rank <= 0.0)
    return 0.0;
  double width = fmax(1.0, reader->rebuild_width / m->tp);
  double rows = reader->layers * x->tokens * reader->rebuild_share;
  if (reader->rebuild_fused)
    return 2.0 * rows * reader->rebuild_rank * width /
           kv_kernel_attention_flops(m->device, KV_DTYPE_BF16);
  KvCost one =
      kv_kernel_gemm(m->device, KV_DTYPE_BF16, 2.0, LONG_ROWS, reader->rebuild_rank, width);
  return one.seconds * rows / LONG_ROWS;
}

/* Heads that tensor parallelism cannot split are read on every GPU that holds them. */
static double gpus_of(const Model *m, const KvReader *reader) {
  return fmin(m->tp, fmax(1.0, reader->n_kv_heads));
}

/* Whether the reader's sequences share what it reads: all of their contexts, some of it in common.
 */
static gboolean reads_shared(const KvReader *reader, const KvDecodeBatch *decode) {
  return decode->shared_repeated_tokens > 0.0 && reader->read[0].kind == KV_LAW_ALL;
}

/* Attention where prefixes are shared: each is read once, by a call with all its readers' queries;
 * `own`, the call for the whole contexts, is cut to what nobody shares. What is no longer read
 * leaves `x`, what the partial results move comes in. */
static double shared_seconds(const Model *m, const KvReader *reader, const KvDecodeBatch *decode,
                             double pad, KvDecodeAttention own, Read *x) {
  double once = decode->shared_once_tokens * pad, repeated = decode->shared_repeated_tokens * pad;
  double all = once + repeated, n = own.batch, layers_tp = reader->layers * gpus_of(m, reader);
  double per_token = x->bytes / x->tokens / layers_tp;
  own.mean_tokens = fmax(1.0, (x->tokens - all) / n);
  own.read_bytes = own.mean_tokens * n * per_token;
  own.longest_tokens = 0.0;
  own.flops *= own.mean_tokens * n / x->tokens;
  KvCost both = kv_kernel_shared_prefix_attention(m->device, reader->format, &own, all / once,
                                                  all / n, once * per_token);
  double partials = all * m->plan->shared_partial_bytes / m->tp;
  x->bytes += layers_tp * (partials - repeated * per_token);
  return both.seconds + (partials > 0.0 ? kv_kernel_elementwise(m->device, partials).seconds : 0.0);
}

/* The kernel's seconds, and the fit that they rest on. */
static double kernel_seconds(const Model *m, const KvReader *reader, const KvDecodeBatch *decode,
                             Read *x, double n, gboolean shares_call, Fit *fit) {
  double layers = reader->layers, tp = m->tp, kv_heads = fmax(1.0, reader->n_kv_heads / tp);
  guint group = g_array_index(m->plan->caches, KvCache, reader->cache).group;
  const KvAttention *a = &m->model->groups[group].attention;
  KvDecodeAttention operands = {
      .batch = n,
      .read_bytes = (x->bytes + x->all_fetched) / layers / gpus_of(m, reader),
      .flops = x->flops / layers / tp,
      .n_kv_heads = kv_heads,
      .group = fmax(1.0, a->n_heads / tp / kv_heads),
      .mean_tokens = x->tokens / n,
      .window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0.0,
      .longest_tokens = x->longest_tokens,
      .latent = a->kind == KV_ATTENTION_LATENT,
  };
  *fit =
      (Fit){operands.latent ? KV_KERNEL_LATENT_DECODE : KV_KERNEL_DECODE_ATTENTION, reader->format};
  if (reads_shared(reader, decode))
    return shared_seconds(m, reader, decode, n / (double)decode->n, operands, x);
  gboolean beside =
      shares_call && !operands.latent && x->tokens > 0.0 && kv_dtype_bytes(reader->format) >= 1.0;
  if (!beside)
    return kv_kernel_decode_attention(m->device, reader->format, &operands).seconds;
  *fit = (Fit){KV_KERNEL_PREFILL_ATTENTION, KV_DTYPE_BF16};
  return decode_beside_chunks(m, &m->chunk_work[group], &operands).seconds;
}

/* A line of decode attention, for the list of kernels. */
static void trace_line(const Model *m, const char *name, Fit fit, double count, KvCost cost) {
  KvPricedKernel kernel = {.name = name,
                           .component = KV_COMPONENT_DECODE_ATTENTION,
                           .family = fit.family,
                           .dtype = fit.dtype,
                           .count = count,
                           .cost = cost};
  g_array_append_val(m->trace, kernel);
}

/* Add the GPU's kernel for a read, and what is rebuilt before it. */
static void add_gpu_read(const Model *m, Attention *sum, const KvReader *reader,
                         const KvDecodeBatch *decode, Read *x, double n, double run,
                         gboolean shares_call) {
  Fit fit;
  double layers = reader->layers;
  double seconds =
      layers * (kernel_seconds(m, reader, decode, x, n, shares_call, &fit) / reader->efficiency +
                reader->fixed_seconds);
  double rebuild = rebuild_seconds(m, reader, x), written = 0.0;
  if (rebuild > 0.0 && reader->rebuild_fused) {
    seconds = fmax(seconds, rebuild);
  } else if (rebuild > 0.0) {
    written = layers * x->tokens * reader->rebuild_share * reader->rebuild_width *
              m->activation_bytes / m->tp;
    seconds += rebuild + written / m->device->memory_Bps;
  }
  KvCost cost = {
      .seconds = run * seconds,
      .flops = run * (x->flops / m->tp + 2.0 * layers * x->tokens * reader->rebuild_share *
                                             reader->rebuild_rank * reader->rebuild_width / m->tp),
      .bytes = run * ((x->bytes + x->all_fetched) / gpus_of(m, reader) + 2.0 * written),
      .bound = KV_BOUND_MEMORY,
  };
  double launches = run * layers * (1.0 + reader->extra_launches);
  if (m->trace)
    trace_line(m, "decode attention", fit, launches, cost);
  sum->seconds += cost.seconds;
  sum->flops += cost.flops;
  sum->bytes += cost.bytes;
  sum->launches += launches;
}

/* Launching one collective, or one hop of a ring, from a framework: 10 to 30 us (estimate). */
static const double SMALL_COLLECTIVE_SECONDS = 20e-6;

/* Tree Attention, section 4: each group attends to its part, and per layer the largest score, the
 * weighted outputs and the weights' sum are reduced over all groups. Payloads do not depend on the
 * context. */
static void price_combine(Model *m, Dense *dense, double n) {
  for (guint g = 0; g < m->model->n_groups; g++) {
    const KvAttention *a = &m->model->groups[g].attention;
    gboolean latent = a->kind == KV_ATTENTION_LATENT;
    double heads = fmax(1.0, (double)a->n_heads / m->tp), layers = m->model->groups[g].count;
    double width = latent ? a->kv_lora_rank : a->value_head_dim;
    double outputs = n * heads * width * m->activation_bytes, scores = n * heads * 4.0;
    if (a->kind == KV_ATTENTION_NONE)
      continue;
    /* Fused to two, the sums go with the outputs. */
    gboolean fused = m->config->combine_fused;
    const double payload[] = {scores, outputs + (fused ? scores : 0.0), scores};
    KvCost sum = {0};
    for (guint i = 0; i < (fused ? 2 : 3); i++) {
      KvCost one = kv_kernel_tree_reduce(m->platform->gpu_link, m->platform->network, payload[i],
                                         m->groups_per_node, m->group_nodes);
      sum.seconds += one.seconds + SMALL_COLLECTIVE_SECONDS;
      sum.bytes += one.bytes;
    }
    dense->link_bytes += layers * sum.bytes;
    sum.bytes = 0.0; /* of HBM */
    add_line(m, dense, KV_COMPONENT_COMMUNICATION, no_fit, "tree reduction", layers, sum, NULL);
  }
}

/* Ring Attention for one query: caches of all groups pass by, each attended to while the next comes
 * from the neighbour. The slowest link of the ring sets its pace. */
static double ring_seconds(const Model *m, double shard_seconds, double shard_bytes) {
  const KvLink *link = m->group_nodes > 1 ? m->platform->network : m->platform->gpu_link;
  double hop = kv_kernel_send(link, shard_bytes).seconds + SMALL_COLLECTIVE_SECONDS;
  return shard_seconds + (m->groups - 1.0) * fmax(shard_seconds, hop);
}

/* What one group reads; around a ring it attends to all of it. */
static void split_read(const Model *m, Read *x) {
  x->bytes /= m->groups;
  x->flops /= m->groups;
  x->tokens /= m->groups;
  x->longest_tokens /= m->groups;
}

static void add_ring(const Model *m, Attention *sum, const KvReader *reader, const Read *x,
                     double before) {
  double layers = reader->layers, one = (sum->seconds - before) / layers;
  double bytes = x->bytes / layers / m->tp;
  sum->seconds = before + layers * ring_seconds(m, one, bytes);
  sum->flops += (m->groups - 1.0) * x->flops / m->tp;
  sum->bytes += (m->groups - 1.0) * x->bytes / m->tp;
  sum->fetched_bytes[KV_TIER_REMOTE] += (m->groups - 1.0) * x->bytes / m->tp;
}

static Attention price_attention(const Model *m, const KvStep *step, double at) {
  const KvDecodeBatch *decode = &step->decode;
  Attention sum = {0};
  gboolean shares_call =
      step->n_chunks > 0 && kv_kernel_attention_shares_call(m->device, KV_DTYPE_BF16);
  double n = (double)(decode->n + decode->padding) / m->ranks, tp = m->tp;
  double pad = decode->n ? n / (double)decode->n : 1.0; /* what of the sums is one rank's */
  double beside_attention = 0.0;
  double contexts = (decode->context_tokens + at * (double)decode->n) * pad;
  for (guint r = 0; r < m->curves->n_readers; r++) {
    const KvReader *reader = &m->curves->readers[r].reader;
    Read x = sum_read(m, r, decode, at, pad);
    if (x.tokens >= 0.99 * contexts)
      x.longest_tokens = decode->longest_tokens + at;
    guint group = g_array_index(m->plan->caches, KvCache, reader->cache).group;
    double run = 1.0 / MAX(1, m->model->groups[group].stride_tokens), before = sum.seconds;
    if (m->groups > 1.0)
      split_read(m, &x);
    if (reader->processor == KV_PROCESSOR_GPU)
      add_gpu_read(m, &sum, reader, decode, &x, n, run, shares_call);
    if (m->groups > 1.0 && m->config->combine == KV_COMBINE_RING)
      add_ring(m, &sum, reader, &x, before);
    sum.host_bytes += x.host_bytes;
    for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
      sum.fetched_bytes[t] += x.fetched[t];
    if (reader->processor == KV_PROCESSOR_GPU && x.all_fetched == 0.0)
      continue;
    double side = run * side_seconds(m, reader, &x, n);
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
        sum.streamed_bytes[t] += x.fetched[t] / fetch_share(reader);
      break;
    }
  }
  sum.serial_seconds += fmax(0.0, beside_attention - sum.seconds);
  if (m->curves->state_bytes > 0.0) { /* recurrent layers read and write all of their state */
    double bytes = 2.0 * n * m->curves->state_bytes / tp;
    KvCost one = kv_kernel_elementwise(m->device, bytes);
    if (m->trace)
      trace_line(m, "recurrent state", elementwise_fit, 1.0, one);
    sum.seconds += one.seconds;
    sum.flops += one.flops;
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
    double rate = side_Bps(m->platform, work->processor) * share;
    double arithmetic = side_flops(m->platform, work->processor) * share;
    cost = (KvCost){.seconds = fmax(bytes / rate, arithmetic > 0.0 ? flops / arithmetic : 0.0)};
  }
  cost.seconds += work->fixed_seconds;
  cost.flops = flops;
  cost.bytes = work->processor == KV_PROCESSOR_GPU ? bytes : 0.0;
  return cost;
}

/* The stack's own work in this step. `at` is the repeat. Returns the seconds of work beside the
 * step, the longest of the processors'. */
static double price_work(Model *m, Dense *dense, const KvStep *step, double at,
                         double prefill_attention_seconds) {
  double beside[KV_PROCESSOR_STORAGE + 1] = {0};
  if (m->timed.n > 0)
    add_line(m, dense, KV_COMPONENT_TECHNIQUE, no_fit, "techniques, as timed", 1.0,
             (KvCost){.seconds = kv_timed_techniques_seconds(&m->timed, step, at,
                                                             prefill_attention_seconds),
                      .bound = KV_BOUND_MEMORY},
             NULL);
  for (guint i = 0; i < m->plan->work->len; i++) {
    const KvWork *work = &g_array_index(m->plan->work, KvWork, i);
    double times = 0.0, context = 0.0;
    if (kv_timed_techniques_cover(&m->timed, work))
      continue;
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
    Fit fit = work->processor == KV_PROCESSOR_GPU ? elementwise_fit : no_fit;
    add_line(m, dense, KV_COMPONENT_TECHNIQUE, fit, work->name, 1.0, cost, NULL);
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

/* What the step's tokens leave on a lower tier. Of a prompt that is what of it is still there when
 * it has been decoded from: a chunk adds what a prompt that ended with it would leave more. */
static double bytes_left_on(const Model *m, const KvStep *step, KvTier tier) {
  double bytes =
      m->written_bytes[tier] * (double)(step->decode.n + step->decode.padding) / m->ranks;
  for (guint c = 0; c < m->curves->n_channels; c++) {
    double each = m->curves->stored_bytes[tier][c];
    for (guint i = 0; i < step->n_chunks && each > 0.0; i++) {
      double past = step->chunks[i].past, end = past + step->chunks[i].tokens;
      bytes +=
          each / m->ranks *
          (kv_law_value(&m->curves->laws[c], end, end, TRUE, NULL, NULL) -
           (past > 0.0 ? kv_law_value(&m->curves->laws[c], past, past, TRUE, NULL, NULL) : 0.0));
    }
  }
  return fmax(0.0, bytes);
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
  double left[KV_N_TIERS] = {0}, written = 0.0, fetched = 0.0,
         disk_read = m->streamed_bytes[KV_TIER_SSD], disk_written = 0.0;
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++) {
    left[t] = bytes_left_on(m, step, t) / m->tp;
    written += left[t];
    fetched += attention->streamed_bytes[t];
  }
  disk_read += attention->streamed_bytes[KV_TIER_SSD];
  disk_written += left[KV_TIER_SSD];
  double weights = m->streamed_bytes[KV_TIER_DRAM] + m->streamed_bytes[KV_TIER_SSD];
  double activations = m->plan->weights.activation_share_host * 2.0 * tokens * m->model->hidden *
                       m->activation_bytes * layers / m->tp;
  double ctog = (weights + fetched + activations) / up, gtoc = (written + activations) / up;
  double dtoc = p->ssd && disk_read > 0.0 ? disk_read / p->ssd->read_Bps : 0.0;
  double ctod = p->ssd && disk_written > 0.0 ? disk_written / p->ssd->write_Bps : 0.0;
  /* Drives that compute take their cache straight from the GPU. */
  ctod = fmax(ctod, m->written_bytes[KV_TIER_CSD] * tokens / m->tp / p->csd->write_Bps);
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
    m->streams |= m->streamed_bytes[t] > 0.0 || m->stores_below;
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
  const Dense *layers, *head, *second; /* second: layers of the host's own sub-batch, or NULL */
  Dense layers_scratch, head_scratch, second_scratch, rest; /* rest: prefill attention */
  double rows, tokens;                                      /* of the fullest rank */
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
    scratch->clocked_seconds[c] *= parts;
  }
  scratch->flop_joules *= parts;
  scratch->byte_joules *= parts;
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

/* The card averages its power over about so long before it lowers the clock; what a step leaves of
 * that was decoding, as a serving engine does between prompts. Chosen: an H100 that serves prompts
 * of a few hundred tokens shows nothing of the limit at any rate, and prompts of 50 ms and more,
 * one after the other, show all of it. */
static const double POWER_WINDOW_SECONDS = 0.1;

/* Prompts keep the multiprocessors so busy that the card lowers their clock to stay at its power
 * limit. What that adds goes to the components that the clock slows, as lines of their own. Decode
 * steps stay below the limit but for the largest batches. */
static void price_power_limit(Model *m, Priced *priced, gboolean sustained) {
  const Dense *parts[] = {priced->layers, priced->head, &priced->rest};
  double clocked[KV_N_COMPONENTS] = {0};
  KvPowerLoad load = {0};
  for (guint p = 0; p < G_N_ELEMENTS(parts); p++) {
    load.seconds += parts[p]->total_seconds;
    load.flop_joules += parts[p]->flop_joules;
    load.byte_joules += parts[p]->byte_joules;
    for (guint c = 0; c < KV_N_COMPONENTS; c++) {
      clocked[c] += parts[p]->clocked_seconds[c];
      load.clocked_seconds += parts[p]->clocked_seconds[c];
    }
  }
  if (!sustained && load.seconds < POWER_WINDOW_SECONDS) {
    double before = POWER_WINDOW_SECONDS - load.seconds, idle = m->device->idle_watts_share;
    load.byte_joules +=
        before * m->device->tdp_watts * fmax(0.0, m->device->decode_watts_share - idle);
    load.seconds += before;
  }
  double longer = 1.0 / kv_kernel_power_clock(m->device, &load) - 1.0;
  double kernels = priced->rest.kernels;
  for (guint c = 0; c < KV_N_COMPONENTS && longer > 0.0; c++)
    if (clocked[c] > 0.0)
      add_line(m, &priced->rest, c, no_fit, "clock at the power limit", 1.0,
               (KvCost){.seconds = longer * clocked[c], .bound = KV_BOUND_COMPUTE}, NULL);
  priced->rest.kernels = kernels;
}

/* Everything of a step but decode attention and what hangs on it. */
static void price_fixed_part(Model *m, const KvStep *step, Priced *priced) {
  guint64 rows = 0, tokens = fullest_rank(m, step, &rows);
  priced->second = NULL;
  if (step->host.n > 0) {
    guint64 apart = step->host.n - step->host_first;
    tokens += step->host_first;
    rows += step->host.n;
    if (apart > 0)
      priced->second = dense_of(m, m->memo->layers, price_layers, apart, &priced->second_scratch);
  }
  priced->graph = m->config->cuda_graphs && tokens <= m->graph_max_tokens &&
                  (m->config->cuda_graph_prompts || step->n_chunks == 0);
  priced->tokens = (double)tokens;
  priced->rows = (double)rows;
  guint64 size = priced->graph ? captured_size(tokens) : tokens;
  if (m->uneven)
    set_shares(m, step, tokens);
  if (strcmp(m->config->scheduler, "flexgen") == 0 && !m->config->as_executed)
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
  if (m->groups > 1.0 && m->config->combine == KV_COMBINE_TREE && step->decode.n > 0)
    price_combine(m, &priced->rest, (double)step->decode.n);
  if (step->n_chunks && m->device->flop_joules > 0.0)
    price_power_limit(m, priced, step->sustained);
}

/* NEO, section 4: the CPU attends for one sub-batch while the GPU runs the linear layers of the
 * other, and for the first also beside its own attention on the GPU. What the CPU takes for `n`
 * sequences: their caches are read where they are; queries, keys and values go down, outputs come
 * up in fp32. */
static double host_attention(const Model *m, const KvStep *step, double n) {
  double bytes = 0.0, flops = 0.0, down = 0.0, up = 0.0, share = n / (double)step->host.n;
  if (n <= 0.0)
    return 0.0;
  for (guint r = 0; r < m->curves->n_readers; r++)
    for (guint i = 0; i < m->curves->readers[r].n_terms; i++) {
      const KvReadTerm *term = &m->curves->readers[r].terms[i];
      bytes += share * term->hbm_bytes * step->host.values[term->channel];
      flops += share * term->flops * step->host.values[term->channel];
    }
  for (guint g = 0; g < m->model->n_groups; g++) {
    const KvAttention *a = &m->model->groups[g].attention;
    double layers = m->model->groups[g].count, kv = 2.0 * a->n_kv_heads;
    down += n * layers * (a->n_heads + kv) * a->head_dim * m->activation_bytes;
    up += n * layers * a->n_heads * (double)a->value_head_dim * 4.0;
  }
  const KvPlatform *p = m->platform;
  double link = p->host_link->peak_Bps * p->host_link->achievable_share * m->tp;
  double read = fmax(bytes / p->host_memory->read_Bps, flops / p->cpu_flops);
  return read + (down + up) / link + m->config->host_launch_seconds * kv_model_layers(m->model);
}

/* What the GPU waits for the CPU, and how much sooner than it is asked each part is done. */
static double price_host(const Model *m, const KvStep *step, const Priced *priced,
                         const Attention *attention, double slack[2]) {
  double first = host_attention(m, step, (double)step->host_first);
  double second = host_attention(m, step, (double)(step->host.n - step->host_first));
  slack[0] = (priced->second ? priced->second->total_seconds : 0.0) + priced->rest.total_seconds +
             attention->seconds - first;
  slack[1] = priced->layers->total_seconds - second;
  double written = 0.0,
         link = m->platform->host_link->peak_Bps * m->platform->host_link->achievable_share * m->tp;
  for (guint t = 0; t < KV_N_TIERS; t++)
    written += m->written_bytes[t] * step->host_prompt_tokens;
  double gpu = priced->layers->total_seconds + priced->rest.total_seconds;
  return fmax(0.0, -slack[0]) + fmax(0.0, -slack[1]) + fmax(0.0, written / link - gpu);
}

/* The step's time at repeat `at`, and what of it is not kernels. */
static double repeat_seconds(Model *m, const KvStep *step, const Priced *priced, double at,
                             Attention *attention, Dense *work, double *transfer, double *launch) {
  *attention = step->decode.n ? price_attention(m, step, at) : (Attention){0};
  *work = (Dense){.known = TRUE};
  double beside =
      m->plan->work->len || m->timed.n
          ? price_work(m, work, step, at, priced->rest.seconds[KV_COMPONENT_PREFILL_ATTENTION])
          : 0.0;
  double kernels = priced->layers->kernels + priced->head->kernels + priced->rest.kernels +
                   work->kernels + attention->launches;
  double gpu = priced->layers->total_seconds + priced->head->total_seconds +
               priced->rest.total_seconds + work->total_seconds + attention->seconds;
  if (priced->second) {
    kernels += priced->second->kernels;
    gpu += priced->second->total_seconds;
  }
  double launched = kv_kernel_launched(m->device, kernels, priced->graph, gpu);
  if (!priced->graph) /* the framework's own work to launch a kernel may keep the GPU waiting */
    launched = fmax(launched, kernels * m->config->eager_kernel_seconds);
  *launch = launched - gpu;
  if (beside > launched) {
    work->seconds[KV_COMPONENT_TECHNIQUE] += beside - launched;
    launched = beside;
  }
  *transfer = m->streams ? price_streams(m, step, attention, priced->tokens, launched) : 0.0;
  if (step->host.n > 0 || step->host_prompt_tokens > 0.0)
    *transfer += price_host(m, step, priced, attention, m->slack);
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
  const Dense *parts[] = {priced->layers, priced->head, &priced->rest, priced->second};
  for (guint p = 0; p < G_N_ELEMENTS(parts) && parts[p]; p++) {
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
  if (step->host.n > 0)
    memcpy(cost->slack_seconds, ((const Model *)executor)->slack, sizeof cost->slack_seconds);
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
      {.name = "transfers not hidden",
       .component = KV_COMPONENT_TRANSFER,
       .family = KV_N_KERNELS,
       .count = 1.0,
       .cost = {transfer, 0.0, 0.0, KV_BOUND_LINK}},
      {.name = "launches",
       .component = KV_COMPONENT_LAUNCH,
       .family = KV_N_KERNELS,
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

static void model_cancel_copies(KvExecutor *executor, const KvSequence *sequence, double now) {
  kv_transfers_cancel(((Model *)executor)->transfers, sequence, now);
}

static double model_copy_seconds(KvExecutor *executor, const KvCopy *copy) {
  Model *m = (Model *)executor;
  double pieces = (double)copy->blocks * (copy->pinned ? 1.0 : 2.0 * kv_model_layers(m->model));
  return kv_transfers_alone(m->transfers, copy, pieces);
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
    .cancel_copies = model_cancel_copies,
    .copy_seconds = model_copy_seconds,
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
  double load_Bps = m->config->load_Bps;
  if (load_Bps > 0.0)
    host.up_Bps = load_Bps;
  kv_transfers_set_path(m->transfers, KV_TIER_HBM, KV_TIER_DRAM, &host);
  if (p->ssd) {
    KvPath disk = {MIN(host.down_Bps, p->ssd->write_Bps), MIN(host.up_Bps, p->ssd->read_Bps), 1.0,
                   p->ssd->latency_seconds, 0.0};
    if (load_Bps > 0.0)
      disk.up_Bps = load_Bps;
    kv_transfers_set_path(m->transfers, KV_TIER_HBM, KV_TIER_SSD, &disk);
    kv_transfers_set_path(m->transfers, KV_TIER_DRAM, KV_TIER_SSD, &disk);
  }
}

static KvPath path_over(const KvLink *link, double ports) {
  double rate = link->peak_Bps * link->achievable_share * ports;
  return (KvPath){rate, rate, link->duplex_share, link->latency_seconds, link->per_copy_seconds};
}

void kv_model_executor_set_ports(KvExecutor *executor, guint ports) {
  g_return_if_fail(executor->class == &kv_model_executor_class);
  Model *m = (Model *)executor;
  const KvPlatform *p = m->platform;
  if (p->gpu_link) {
    KvPath peers = path_over(p->gpu_link, ports);
    kv_transfers_set_path(m->transfers, KV_TIER_HBM, KV_TIER_HBM, &peers);
  }
  if (p->network) {
    KvPath nodes = path_over(p->network, ports);
    kv_transfers_set_path(m->transfers, KV_TIER_HBM, KV_TIER_REMOTE, &nodes);
  }
}

/* Quantized checkpoints leave the lm head in 16 bits; published ones may store experts smaller than
 * the rest. */
static void set_dtypes(Model *m) {
  const KvWeights *w = &m->plan->weights;
  gboolean quantized = w->bytes_per_parameter < 2.0;
  m->expert_dtype = kv_memory_expert_dtype(m->model, m->plan);
  m->expert_bytes = kv_memory_expert_bytes(m->model, m->plan);
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
  m->device = &m->unlimited;
  m->unlimited = *platform->device;
  /* Where the power limit is priced by step, kernels are priced at the full clock. */
  for (guint f = 0; f < KV_N_KERNELS && m->unlimited.flop_joules > 0.0; f++)
    for (guint d = 0; d < KV_N_DTYPES; d++)
      m->unlimited.efficiency[f][d].sustained_share = 1.0;
  m->config = config;
  m->tp = tensor_parallel;
  m->ranks = config->data_parallel;
  m->groups = MAX(1, config->context_parallel);
  m->groups_per_node =
      MIN(MAX(1, config->context_parallel), MAX(1, platform->n_gpus_per_node / m->tp));
  m->group_nodes = (MAX(1, config->context_parallel) + m->groups_per_node - 1) / m->groups_per_node;
  m->ep = config->expert_parallel ? config->expert_parallel : 1;
  m->peers = fmax(m->ranks, (double)m->ep / m->tp);
  set_dtypes(m);
  m->activation_bytes = 2.0;
  m->graph_max_tokens = config->cuda_graph_max_tokens;
  m->memo = g_new0(Memo, 1);
  m->memo->references = 1;
  m->chunk_work = g_new0(KvAttentionWork, m->model->n_groups);
  kv_timed_techniques_init(&m->timed, &m->unlimited, model, plan);
  m->transfers = kv_transfers_new();
  for (guint c = 0; c < curves->n_channels; c++) {
    double slope;
    kv_law_value(&curves->laws[c], 1e9, 0.0, TRUE, &slope, NULL);
    if (curves->laws[c].kind == KV_LAW_EVICTED && curves->laws[c].prompt_share > 0.0)
      slope = curves->laws[c].scale; /* in the place of the token that goes */
    for (guint t = 0; t < KV_N_TIERS; t++) {
      m->written_bytes[t] += curves->stored_bytes[t][c] * slope;
      m->stores_below |= t > KV_TIER_HBM && curves->stored_bytes[t][c] > 0.0;
    }
  }
  double weights = kv_memory_weight_bytes(model, plan);
  if (config->as_executed)
    weights -= kv_memory_table_bytes(model, plan);
  for (guint t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
    m->streamed_bytes[t] = plan->weights.share[t] * weights / m->tp;
  find_streams(m);
  set_paths(m);
  return &m->base;
}

KvExecutor *kv_model_executor_twin(KvExecutor *like) {
  g_return_val_if_fail(like->class == &kv_model_executor_class, NULL);
  Model *m = g_memdup2(like, sizeof *m);
  m->device = &m->unlimited;
  kv_timed_techniques_init(&m->timed, m->device, m->model, m->plan);
  m->memo->references++;
  m->chunk_work = g_new0(KvAttentionWork, m->model->n_groups);
  m->transfers = kv_transfers_new();
  set_paths(m);
  return &m->base;
}
