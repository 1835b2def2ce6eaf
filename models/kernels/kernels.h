/* The time of one operation on one GPU, link or processor.
 *
 * Every function here is pure: operands and a device in, seconds out, plus (where `cost` is given)
 * the FLOPs, the bytes and which bound held. The form is a roofline with a fixed cost and a smooth
 * maximum,
 *
 *     t = fixed + (t_flops^p + t_bytes^p)^(1/p),    t_flops = FLOPs / (peak * share * fill),
 *                                                   t_bytes = bytes / (bandwidth * share)
 *
 * where `fill` is the part of the multiprocessors that tiles and waves keep busy. Parameters come
 * from the device file (KvEfficiency); nothing here is a look-up table. Sources stand above each
 * formula in the .c files.
 */
#ifndef KV_MODELS_KERNELS_KERNELS_H
#define KV_MODELS_KERNELS_KERNELS_H

#include <glib.h>

#include "models/hardware/hardware.h"

typedef enum {
  KV_BOUND_FIXED,
  KV_BOUND_COMPUTE,
  KV_BOUND_MEMORY,
  KV_BOUND_LINK,
  KV_N_BOUNDS,
} KvBound;

extern const char *const kv_bound_names[];

typedef struct {
  double seconds, flops, bytes;
  KvBound bound;
} KvCost;

/* (a^p + b^p)^(1/p) without overflow; the plain maximum for p >= 64. */
double kv_smooth_max(double a, double b, double p);

/* C[m,n] = A[m,k] B[k,n]; weights of `weight_bytes` bytes an element, operands multiplied as
 * `dtype`. Activations are bf16: where the device multiplies 8-bit or smaller operands, the time
 * includes scaling the activations to them. Products of many rows run at the
 * rate that long compute-bound work sustains. */
KvCost kv_kernel_gemm(const KvDevice *device, KvDtype dtype, double weight_bytes, double m,
                      double k, double n);

/* `groups` such products in one launch, each with a matrix of its own. */
KvCost kv_kernel_gemm_each(const KvDevice *device, KvDtype dtype, double weight_bytes,
                           double groups, double m, double k, double n);

/* FLOP/s that the attention kernel's products reach in long work. */
double kv_kernel_attention_flops(const KvDevice *device, KvDtype dtype);

/* The blocks of one attention call, which add over what the call holds. */
typedef struct {
  gboolean latent;             /* latent attention's kernel; set before anything is added */
  double blocks, busy_seconds; /* of all blocks' time, one multiprocessor's share */
  double longest_seconds;      /* of one block */
  double uneven_seconds;       /* by which a decoding sequence's block exceeds their mean */
  double bytes_seconds, flops, bytes;
} KvAttentionWork;

/* Causal attention of a chunk of `chunk` new tokens after `past` cached ones, H query heads, Hkv KV
 * heads, head sizes d_k and d_v, a window of `window` tokens (0 = all), cache elements of
 * `cache_bytes` bytes. Equal sequences of a batch go in together as so many more heads. `dtype` is
 * the type that scores are multiplied in: the cache's for an fp8 cache with queries cast to it,
 * bf16 otherwise. Adds to *work. */
void kv_kernel_add_prefill_attention(const KvDevice *device, KvDtype dtype, double chunk,
                                     double past, double n_heads, double n_kv_heads, double d_k,
                                     double d_v, double window, double cache_bytes,
                                     KvAttentionWork *work);

/* The call that does `work`, with its one fixed cost. */
KvCost kv_kernel_attention_call(const KvDevice *device, KvDtype dtype, const KvAttentionWork *work);

/* A call of one chunk. */
KvCost kv_kernel_prefill_attention(const KvDevice *device, KvDtype dtype, double chunk, double past,
                                   double n_heads, double n_kv_heads, double d_k, double d_v,
                                   double window, double cache_bytes);

/* One decode step of attention of one layer over a batch. */
typedef struct {
  double batch; /* sequences */
  double read_bytes,
      flops; /* of the cache by all of them, each token once; flops = 4 H d a token */
  double n_kv_heads, group; /* of a sequence; query heads that share a KV head */
  double mean_tokens;       /* mean context read */
  double window;            /* tokens of the window that the kernel is told of; 0: none */
  double longest_tokens;    /* context of the longest sequence; 0: all are alike */
  gboolean latent;          /* absorbed latent attention: one latent of a token for all heads */
} KvDecodeAttention;

/* Smooth in read_bytes, flops and mean_tokens: the executor integrates it over many steps. `dtype`
 * picks the efficiency: the cache's type. flops / mean_tokens is taken as the bytes of queries and
 * outputs. */
KvCost kv_kernel_decode_attention(const KvDevice *device, KvDtype dtype,
                                  const KvDecodeAttention *operands);

/* The same where `sharers` sequences each have a prefix of `shared_tokens` tokens in common, of
 * which the whole batch reads `shared_read_bytes` once: `own` is what each attends to beside it. */
KvCost kv_kernel_shared_prefix_attention(const KvDevice *device, KvDtype dtype,
                                         const KvDecodeAttention *own, double sharers,
                                         double shared_tokens, double shared_read_bytes);

/* Whether prompt chunks and decoding sequences of a step share one call; if so, the decoding
 * sequences' part of it, added to *work. Otherwise they are two calls, one after the other. */
gboolean kv_kernel_attention_shares_call(const KvDevice *device, KvDtype dtype);
void kv_kernel_add_decode_attention(const KvDevice *device, KvDtype dtype,
                                    const KvDecodeAttention *operands, KvAttentionWork *work);

/* An element-wise kernel (norm, activation, rotary, residual) that moves `bytes`, which the kernel
 * before it wrote; and one on operands that no cache holds. */
KvCost kv_kernel_elementwise(const KvDevice *device, double bytes);
KvCost kv_kernel_elementwise_cold(const KvDevice *device, double bytes);

/* Greedy or top-p sampling of `rows` rows of a vocabulary. */
KvCost kv_kernel_sampling(const KvDevice *device, double rows, double vocab);

/* Experts that a batch of `tokens` touches in expectation: E (1 - (1 - k/E)^tokens), routing taken
 * as uniform. */
double kv_kernel_experts_touched(double tokens, double n_experts, double n_experts_per_token);

/* The routed experts of one layer for `tokens` tokens, the router's product included: by the fit of
 * the device's own expert kernels, or composed of products and element-wise kernels. */
KvCost kv_kernel_moe(const KvDevice *device, KvDtype dtype, double weight_bytes, double tokens,
                     double hidden, double expert_intermediate, gboolean gated, double n_experts,
                     double n_experts_per_token);

/* All-reduce of `bytes` over `ranks` GPUs of one node by the kernels that a serving engine chooses,
 * and whose errors it then has; point to point. */
KvCost kv_kernel_all_reduce(const KvDevice *device, const KvLink *link, double bytes, guint ranks);
KvKernelFamily kv_kernel_all_reduce_family(const KvDevice *device, double bytes, guint ranks);
KvCost kv_kernel_send(const KvLink *link, double bytes);
/* The same as an all-reduce along trees: within each of `nodes` nodes of `per_node` ranks over
 * `link`, between them over `network`. */
KvCost kv_kernel_tree_reduce(const KvLink *link, const KvLink *network, double bytes,
                             guint per_node, guint nodes);

/* NCCL's collectives. `bytes`: of the whole message that every GPU has before or after; all-to-all:
 * of what one GPU sends to all, itself included. */
typedef enum {
  KV_COLLECTIVE_ALL_REDUCE,
  KV_COLLECTIVE_ALL_GATHER,
  KV_COLLECTIVE_REDUCE_SCATTER,
  KV_COLLECTIVE_ALL_TO_ALL,
  KV_N_COLLECTIVES,
} KvCollective;

extern const char *const kv_collective_names[];

KvCost kv_kernel_collective(const KvDevice *device, const KvLink *link, KvCollective collective,
                            double bytes, guint ranks);

/* `count` copies that move `bytes` in all over a link; `pinned` host memory or not. */
KvCost kv_kernel_copy(const KvLink *link, double bytes, double count, gboolean pinned);

/* What a step does at the full clock: its seconds, those of them that multiprocessors bound, and
 * the energies of its FLOPs and of its memory traffic. */
typedef struct {
  double seconds, clocked_seconds, flop_joules, byte_joules;
} KvPowerLoad;

/* The share of the full clock at which such steps, one after the other, draw no more than the card
 * may; 1 where the device's energies are not known. */
double kv_kernel_power_clock(const KvDevice *device, const KvPowerLoad *load);

/* The time of a step of `kernels` kernels that keep the GPU for `gpu_seconds`, their gaps included:
 * one launch is exposed; the host's launch rate (eager) or the cost of empty nodes (one CUDA graph)
 * is a floor. */
double kv_kernel_launched(const KvDevice *device, double kernels, gboolean graph,
                          double gpu_seconds);

/* The 90 % interval of a sum of kernels, from the errors that the fits left on rows that they did
 * not see. Errors of one family are taken to go together, those of different families to be
 * independent. Start from {0}; seconds that no fit covers add with kv_time_interval_add()'s
 * `seconds` member alone. */
typedef struct {
  double seconds;
  double below[KV_N_KERNELS], above[KV_N_KERNELS];
} KvTimeInterval;

void kv_time_interval_add(KvTimeInterval *interval, const KvDevice *device, KvKernelFamily family,
                          KvDtype dtype, double seconds);
double kv_time_interval_low(const KvTimeInterval *interval);
double kv_time_interval_high(const KvTimeInterval *interval);

#endif
