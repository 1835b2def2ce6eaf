/* Measured times of kernels and of whole model steps, as read from tables of any format.
 *
 * A reader turns one file into observations: the operands as kernels.h takes them, and seconds.
 * kv_observation_predict() is the model's answer to the same question. Tables measure more than the
 * kernel: launches from Python put a floor under short rows and under small eager steps. Such
 * effects belong to the table, are fitted with it and are never written into a device file
 * (KvMeasuring).
 */
#ifndef KV_MODELS_KERNELS_OBSERVATION_H
#define KV_MODELS_KERNELS_OBSERVATION_H

#include <glib.h>

#include "models/kernels/moe.h"

typedef enum {
  KV_OBSERVED_GEMM,
  KV_OBSERVED_PREFILL_ATTENTION,
  KV_OBSERVED_DECODE_ATTENTION,
  KV_OBSERVED_MIXED_ATTENTION,
  KV_OBSERVED_MOE,
  KV_OBSERVED_ELEMENTWISE,
  KV_OBSERVED_ALL_REDUCE,
  KV_OBSERVED_NCCL,
  KV_OBSERVED_LATENT_PREFILL,
  KV_OBSERVED_LATENT_DECODE,
  KV_OBSERVED_LATENT_PROJECTION, /* of absorbed queries or outputs: a product for each head */
  KV_OBSERVED_UNEVEN_ATTENTION,  /* as mixed; decoding sequences of two lengths */
  KV_OBSERVED_SEND,
  KV_OBSERVED_DECODE_STEP,
  KV_OBSERVED_PREFILL_STEP,
  KV_N_OBSERVED,
} KvObserved;

extern const char *const kv_observed_names[];

/* A dense decoder, as far as a step's kernels depend on it. */
typedef struct {
  double n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab;
} KvStepShape;

typedef struct {
  KvObserved kind;
  KvDtype dtype;
  double cache_bytes; /* attention: bytes of a cached element */
  double m, k, n;     /* GEMM */
  double batch, chunk, past,
      window; /* attention, steps: `chunk` new tokens a sequence after `past` */
  double n_heads, n_kv_heads, head_dim;
  double decode_batch, decode_context; /* mixed attention: beside one chunk; uneven: the mean */
  double longest_context;              /* uneven: of a decoding sequence */
  KvCollective collective;             /* NCCL */
  KvMoeShape experts;                  /* MoE: one GPU's, ... */
  KvExpertLoad expert_load;            /* ... and what `batch` tokens leave to them */
  double routings;                     /* repeated MoE: different routings of a round */
  const char *source; /* MoE: the kernel that the table names, interned; NULL: it names none */
  KvAttentionKernel kernel; /* attention: that the table names, KV_N_ATTENTION_KERNELS for others
                             */
  double bytes, ranks;      /* all-reduce over the device's own link; bytes: element-wise too */
  const KvStepShape *shape; /* steps */
  gboolean eager;           /* launched one kernel at a time by a host program */
  gboolean vector;          /* GEMM of one or two rows: by the kernel that is only for those */
  gboolean cold;            /* element-wise: on operands that no cache holds, one after the other */
  gboolean repeated;        /* run again and again on the same operands, which caches then hold */
  double seconds;           /* measured */
} KvObservation;

/* What a table adds to the kernels' own time. */
typedef struct {
  double floor_seconds;       /* no eager row of one kernel is shorter */
  double host_kernel_seconds; /* eager steps: host time to launch one kernel */
  double l2_speedup;          /* repeated rows: rate of the second-level cache over memory's ... */
  double l2_share; /* ... and the share of its size that operands may take to stay in it */
  double
      write_passes; /* prefill attention rows: times that writing the new tokens' cache is in it */
} KvMeasuring;

double kv_observation_predict(const KvDevice *device, const KvMeasuring *measuring,
                              const KvObservation *observation);

/* The device's own time of a step, and how many kernels it launches. */
double kv_observation_step_seconds(const KvDevice *device, const KvObservation *observation,
                                   double *kernels);

/* Append the observations of the file at `path` to `observations` (of KvObservation). */
gboolean kv_observations_read(const char *path, GArray *observations, GError **error);

/* What the table at `path` says of one launch from a stream and of one node of a graph, in seconds;
 * 0 for what it does not say. Only tables of `kvsim calibrate --measure` do. */
gboolean kv_observations_launches(const char *path, double *launch_seconds, double *node_seconds,
                                  GError **error);

/* What such a table says of the machine's drive, from its least and its largest transfers; 0s if it
 * says nothing. */
typedef struct {
  double read_Bps, write_Bps, latency_seconds; /* of a read */
} KvObservedDrive;

gboolean kv_observations_drive(const char *path, KvObservedDrive *drive, GError **error);

/* One format of table. */
typedef struct {
  const char *name, *description;
  gboolean (*accepts)(const char *path);
  gboolean (*read)(const char *path, GArray *observations, GError **error);
} KvTableReader;

extern const KvTableReader kv_table_kvsim, kv_table_pytorch_grid, kv_table_pytorch_steps;
extern const KvTableReader kv_table_aiconfigurator, kv_table_vllm_profile, kv_table_vidur;

#endif
