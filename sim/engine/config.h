/* The settings of the serving engine: what a scenario's "engine" object holds, and what a
 * technique's `engine` function may change before a run.
 *
 * Names of schedulers, allocators and routers are those of their tables (kv_schedulers, ...).
 * Defaults are those of vLLM 0.19's API server on a GPU with at least 70 GiB;
 * kv_engine_config_resolve() fills in what depends on the platform (0 or a negative value means
 * "not set").
 */
#ifndef KV_SIM_ENGINE_CONFIG_H
#define KV_SIM_ENGINE_CONFIG_H

#include <glib.h>

typedef enum { KV_PREEMPT_RECOMPUTE, KV_PREEMPT_SWAP } KvPreemption;
typedef enum { KV_RESERVE_MAX, KV_RESERVE_POW2, KV_RESERVE_ORACLE } KvReservation;

extern const char *const kv_preemption_names[];
extern const char *const kv_reservation_names[];

typedef struct {
  const char *scheduler; /* interned; "vllm-v1" */
  const char *allocator; /* interned; "paged", "reserved", "chunked" */
  const char *router;    /* interned; "round-robin", "least-loaded", "prefix" */
  guint expert_parallel; /* GPUs, of all instances, over which routed experts are spread whole; 0:
                            split like other weights */
  guint data_parallel;   /* ranks of one instance that attend to sequences of their own and step
                            together (vLLM's and SGLang's data-parallel attention); 1: none */
  gboolean pad_ranks;    /* every one of them computes as many tokens as the fullest */
  guint block_tokens;
  guint max_batched_tokens;     /* token budget of a step; 0: by platform */
  guint max_seqs;               /* running sequences; 0: by platform */
  guint max_model_len;          /* prompt + output; 0: the model's own */
  guint long_prefill_threshold; /* 0: off */
  gboolean chunked_prefill, prefix_caching, async_scheduling, cuda_graphs;
  gboolean reserve_full_prompt; /* admit only if the whole prompt's blocks are free now */
  guint cuda_graph_max_tokens;  /* 0: min(2 max_seqs, 512) */
  gboolean cuda_graph_prompts;  /* steps with a prompt in them are replayed as graphs too */
  double memory_utilization;    /* of the GPU's memory */
  guint batch_wait_steps;  /* TensorRT-LLM: steps that prompts wait for more to come; 0: none */
  double batch_wait_share; /* ... unless the step would hold this share of its budget */
  double watermark;        /* share of blocks kept free at admission */
  KvPreemption preemption;
  KvReservation reservation;      /* of the reserved allocator */
  double swap_bytes;              /* host memory for swapped blocks, per GPU */
  guint64 num_blocks;             /* override; 0: from memory */
  double step_gap_seconds;        /* from a step's end to the next schedule's end, on the CPU */
  double eager_kernel_seconds;    /* CPU time to launch one kernel of a step that no graph holds */
  double per_sequence_seconds;    /* CPU time of a step that grows with the sequences in it */
  gboolean step_by_step;          /* debugging: never decide more than one step at a time */
  guint static_batch;             /* sequences a static batch takes; 0: as memory allows */
  guint gpu_batch, n_gpu_batches; /* FlexGen: a block is gpu_batch * n_gpu_batches sequences */
  const char
      *scheduled_by; /* interned id of the technique that chose scheduler and allocator, or NULL */
} KvEngineConfig;

void kv_engine_config_init(KvEngineConfig *config);

/* Record that the technique `id` chooses scheduler and allocator; an error if another one already
 * does. */
gboolean kv_engine_config_claim(KvEngineConfig *config, const char *id, GError **error);

#endif
