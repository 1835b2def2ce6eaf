/* Devices, links and platforms.
 *
 * Everything here is data: JSON files built into the library, or a user's own. A device file gives
 * what a data sheet says (peaks) and what was measured (achievable shares and fixed costs, with the
 * file they came from). A device without measurements gets the shares of its generation and
 * `calibrated` is FALSE: every prediction on it says so.
 *
 * Units: bytes, bytes/s, FLOP/s (dense), seconds, watts. GB in files is 1e9 bytes, GiB 2^30.
 */
#ifndef KV_MODELS_HARDWARE_HARDWARE_H
#define KV_MODELS_HARDWARE_HARDWARE_H

#include <glib.h>
#include <jansson.h>

#include "sim/base/dtype.h"

/* How an attention kernel divides its work: models/kernels/attention.c says what each does. */
typedef enum {
  KV_ATTENTION_KERNEL_FA2,        /* FlashAttention-2, tiles of 128 rows */
  KV_ATTENTION_KERNEL_FA2_SMALL,  /* the same on GPUs with little shared memory, 64 rows */
  KV_ATTENTION_KERNEL_FA3,        /* FlashAttention-3 */
  KV_ATTENTION_KERNEL_TRTLLM,     /* TensorRT-LLM's, as FlashInfer calls them on B200 */
  KV_ATTENTION_KERNEL_FLASHINFER, /* FlashInfer's own */
  KV_ATTENTION_KERNEL_KVSIM,      /* the reference engine's (reference/cuda/attention_*.cu) */
  KV_N_ATTENTION_KERNELS,
} KvAttentionKernel;

extern const char *const kv_attention_kernel_names[];

/* How the kernels of one family and data type achieve the peaks: models/kernels/ says how each is
 * used. */
typedef struct {
  double
      fixed_seconds;  /* cost of one kernel whatever its size, launch gap inside a graph included */
  double flops_share; /* of the peak FLOP/s */
  double bandwidth_share; /* of the peak memory bandwidth */
  double sharpness;       /* p of the smooth maximum (a^p + b^p)^(1/p) between the bounds */
  double sustained_share; /* of flops_share, what is left of it in long compute-bound
                             work; 0 or 1: all */
  double quantize_share;  /* GEMM of 8-bit operands: of the peak memory bandwidth, while activations
                             are  scaled; 0: as bandwidth_share */
  double ramp_seconds;    /* GEMM: what a stream of weights loses until it runs at its full rate */
  double vector_share;    /* GEMM of one or two rows by a kernel of its own: of the peak memory
                             bandwidth; 0: there is none */
  double vector_seconds, vector_ramp_seconds; /* fixed_seconds and ramp_seconds of that kernel */
  /* Attention. */
  KvAttentionKernel kernel;
  double block_seconds;   /* start and end of a thread block: a tile and head, or a sequence and KV
                             head */
  double block_exposed;   /* decode: how far a block's start adds to traffic; 0 root of squares, 1
                             sum */
  double combine_seconds; /* decode: joining the splits of a context */
  double pack_seconds;    /* decode: bringing the query heads of a KV head together */
  double fill_share;      /* decode, GEMM: of the multiprocessors, how many draw the whole
                             bandwidth; GEMM, 0: however few there are */
  double softmax_dims;    /* prefill: a score's exponential, as that much of a head multiplied */
  double tail_waves;      /* prefill: of a wave, what its drain costs */
  double lone_factor;     /* prefill: time of a column in a block that has its multiprocessor
                             alone, over its share when blocks are many */
  /* NCCL: models/kernels/collective.c. */
  double step_seconds; /* from one GPU of a ring to the next */
  double bulk_seconds; /* what the protocol of long messages takes longer to start */
  double quick_share;  /* of the long messages' rate, that of the short ones' protocol */
  double crowding;     /* how each GPU's rate falls with their number where the host joins them */
  gboolean fitted;     /* to this device and type (or one that is the same processor's); else the
                          efficiency of another one stands in */
  /* How well the fit does, out of sample. */
  double residual;                      /* median |relative error|; 0 if there was none */
  double low_log_error, high_log_error; /* 5th and 95th percentile of log(measured / predicted) */
} KvEfficiency;

typedef enum {
  KV_KERNEL_GEMM,
  KV_KERNEL_PREFILL_ATTENTION,
  KV_KERNEL_DECODE_ATTENTION,
  KV_KERNEL_ELEMENTWISE,
  KV_KERNEL_ALL_REDUCE,     /* the serving engines' own kernels */
  KV_KERNEL_NCCL,           /* collectives of NCCL */
  KV_KERNEL_LATENT_PREFILL, /* latent attention (MLA) of prompts, every head in full */
  KV_KERNEL_LATENT_DECODE,  /* and of decoding, absorbed: all heads share one latent */
  KV_KERNEL_MOE, /* all launches of a layer's routed experts; not fitted: bandwidth_share 0 */
  KV_N_KERNELS,
} KvKernelFamily;

extern const char *const kv_kernel_family_names[];

/* What a technique's own kernels take on a device, as far as steps tell: seconds for each ... */
typedef enum {
  KV_TECHNIQUE_CHUNK,     /* layer of a prompt's chunk */
  KV_TECHNIQUE_TOKEN,     /* layer of a token of such a chunk */
  KV_TECHNIQUE_PROMPT,    /* layer of a prompt that a chunk completes */
  KV_TECHNIQUE_CONTEXT,   /* byte of the whole cache of a chunk's context, its own tokens counted */
  KV_TECHNIQUE_ATTENTION, /* second of prefill attention */
  KV_TECHNIQUE_STEP,      /* layer of a step with decoding sequences */
  KV_TECHNIQUE_SEQUENCE,  /* layer of a decoding sequence */
  KV_TECHNIQUE_CACHE,     /* byte of the whole cache of a decoding sequence */
  KV_N_TECHNIQUE_PARTS,
} KvTechniquePart;

/* Bytes are those that the cache would have in bf16, of all layers. These stand in the place of the
 * work that the technique's plan gives for the step's critical path on the GPU; what attention
 * reads stays priced by the plan. */
typedef struct {
  char id[32]; /* of the technique; "fp8": of a cache of that type without one; of layers that keep
                  a state: "recurrent", or latents: "latent" */
  double seconds[KV_N_TECHNIQUE_PARTS];
} KvTechniqueTimes;

enum { KV_MAX_TECHNIQUE_TIMES = 24 };

/* As files name the parts, and the unit there. */
extern const struct KvTechniquePartName {
  const char *key;
  double unit;
} kv_technique_parts[KV_N_TECHNIQUE_PARTS];

typedef struct {
  char *id, *name, *vendor, *architecture, *source;
  double memory_bytes; /* as the driver shows it, which is GiB where the name says GB */
  double memory_Bps, l2_bytes;
  guint n_sm;
  double tdp_watts;
  double peak_flops[KV_N_DTYPES]; /* dense matrix rate by operand type; 0 if unsupported */
  double fp32_flops;              /* plain vector units */
  double link_Bps;                /* to the peer GPUs, one direction; 0 if there is no such link */
  char *link, *host_link;         /* ids of links; link is NULL if there is none */
  double host_link_Bps; /* one GPU's share of its host link; 0 if that is the link's own rate */
  double drive_read_Bps, drive_write_Bps, drive_latency_seconds; /* of the drive of the machine that
                                  it was measured in; 0: that of the usual server */
  char *host_memory;         /* id of the host memory it is sold with (Grace), or NULL */
  double host_memory_share;  /* of that memory which belongs to one GPU */
  double launch_seconds;     /* one kernel launch from a stream, eager */
  double graph_node_seconds; /* one kernel inside a CUDA graph */
  double gap_seconds, stream_gap_seconds; /* between kernels of different kinds, in a graph and on a
                                             stream, beyond what the efficiencies hold: those of
                                             repeats of one kernel have less */
  double idle_watts_share, decode_watts_share,
      prefill_watts_share;         /* of TDP, at full load of that kind */
  double flop_joules, byte_joules; /* of a bf16 FLOP at the full clock, of a byte from memory; 0:
                                      not known, or limits are in the efficiencies already */
  double price_per_hour; /* USD for one GPU, on demand, median of the price table; 0 if unknown */
  char *price_source, *power_source;
  gboolean calibrated;
  KvEfficiency efficiency[KV_N_KERNELS][KV_N_DTYPES];
  KvTechniqueTimes techniques[KV_MAX_TECHNIQUE_TIMES];
  guint n_techniques;
  guint tile_m, tile_n;         /* output tile of the large GEMM kernel, for wave quantization */
  gboolean scaled_tile_by_rows; /* GEMMs of scaled 8-bit operands: tile chosen by the rows alone */
  double own_all_reduce_bytes[3]; /* engines reduce smaller messages of 2, up to 4, more GPUs by
                                     their own kernels, larger ones through NCCL */
} KvDevice;

typedef struct {
  char *id, *name, *source;
  double peak_Bps;         /* one direction */
  double achievable_share; /* of a large pinned copy */
  double duplex_share;    /* of the sum of both directions' achievable rates when both are busy; 1 =
                             full duplex */
  double latency_seconds; /* of one copy */
  double per_copy_seconds; /* host time to issue one more copy in a batch of many */
  double pageable_share;   /* of a copy from memory that is not pinned */
} KvLink;

typedef struct {
  char *id, *name, *source;
  double capacity_bytes, read_Bps, write_Bps; /* achievable */
  double latency_seconds, read_iops;          /* per operation; 0 iops = not limited */
  double price_per_GB;
  /* Storage that computes: what its processor reads inside (achieved, in whole pages) and computes;
   * 0: it cannot. */
  double internal_Bps, internal_flops;
} KvStorage; /* host memory and SSDs alike */

typedef struct {
  char *id, *name;
  KvDevice *device; /* every GPU is of this kind */
  guint n_gpus_per_node, n_nodes;
  KvLink *gpu_link;       /* between GPUs of a node; NULL if n_gpus_per_node == 1 */
  KvLink *host_link;      /* GPU to host, one per GPU */
  KvLink *network;        /* between nodes, one port per GPU; NULL for one node */
  KvStorage *host_memory; /* per node */
  KvStorage *ssd;         /* per node; NULL if there is none */
  KvStorage *csd;         /* per node: computational SSDs, for stacks that attend in them */
  double cpu_flops;       /* one node's processors, sgemm */
  double host_watts;      /* per node beside its GPUs */
  double pue;             /* facility power over IT power */
  double electricity_usd_per_kWh, carbon_g_per_kWh;
} KvPlatform;

/* "h100-sxm", "4xh100-sxm", "2x8xh200", a catalogue platform, or a JSON file (a platform, or a
 * device, which then stands in a usual server). */
KvPlatform *kv_platform_load(const char *name, GError **error);
/* The platform or device in `length` bytes of JSON text, which errors call `name`. */
KvPlatform *kv_platform_parse(const char *name, const char *text, gsize length, GError **error);
void kv_platform_free(KvPlatform *platform);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvPlatform, kv_platform_free)

/* The device's times of that technique, or NULL. */
const KvTechniqueTimes *kv_device_technique(const KvDevice *device, const char *id);

/* Give `device` what `from` has of measured times: efficiencies, launches, gaps, techniques, and
 * whether power limits are priced apart. */
void kv_device_take_times(KvDevice *device, const KvDevice *from);

KvDevice *kv_device_load(const char *name, GError **error);
void kv_device_free(KvDevice *device);
KvLink *kv_link_load(const char *name, GError **error);
void kv_link_free(KvLink *link);
KvStorage *kv_storage_load(const char *name, GError **error);
void kv_storage_free(KvStorage *storage);

/* Ids in the catalogue, sorted, NULL-terminated; borrowed. */
const char *const *kv_platform_ids(void);
const char *const *kv_device_ids(void);
const char *const *kv_link_ids(void);
const char *const *kv_storage_ids(void);

/* Every other entry that is kept as data (memory stacks, processing in memory, calibration tables).
 */
const char *const *kv_other_hardware_ids(void);

/* The catalogue's JSON document of a device, link, storage, platform or other entry, or
 * "economics", "defaults", as a person would write it, for `kvsim show`. A new reference; NULL if
 * `id` is none. */
json_t *kv_hardware_document(const char *id);

#endif
