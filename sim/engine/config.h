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
typedef enum { KV_COMBINE_TREE, KV_COMBINE_RING } KvCombine;
typedef enum { KV_RESERVE_MAX, KV_RESERVE_POW2, KV_RESERVE_ORACLE } KvReservation;
/* In which order SGLang takes prompts from its queue: as they came, longest cached prefix first,
 * depth first through the tree, longest answer first, or at random. */
typedef enum {
  KV_ORDER_FCFS,
  KV_ORDER_LPM,
  KV_ORDER_DFS_WEIGHT,
  KV_ORDER_LOF,
  KV_ORDER_RANDOM,
} KvQueueOrder;

/* What becomes of a cache while its request waits for an API call to return. */
typedef enum { KV_CALL_PRESERVE, KV_CALL_DISCARD, KV_CALL_SWAP } KvCallHandling;
/* The same with the choice of the least waste, where a scheduler makes it. */
enum { KV_CALL_LEAST_WASTE = KV_CALL_SWAP + 1 };

extern const char *const kv_preemption_names[];
extern const char *const kv_reservation_names[];
extern const char *const kv_combine_names[];
extern const char *const kv_queue_order_names[];

typedef struct {
  const char *scheduler; /* interned; "vllm-v1" */
  const char *allocator; /* interned; "paged", "reserved", "chunked" */
  const char *router;    /* interned; "round-robin", "least-loaded", "prefix", "session" */
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
  gboolean tier_only; /* prefixes are taken from the lower tier even where HBM still has them */
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
  double between_steps_seconds;   /* GPU time between two steps' kernels, asynchronous or not:
                                     inputs' copies, samples; negative: the scheduler's */
  double eager_kernel_seconds;    /* CPU time to launch one kernel of a step that no graph holds */
  double per_sequence_seconds;    /* CPU time of a step that grows with the sequences in it */
  gboolean as_executed;           /* where the reference engine does otherwise than the systems it
                                     follows (docs/reference-engine.md), price what it does */
  gboolean step_by_step;          /* debugging: never decide more than one step at a time */
  guint static_batch;             /* sequences a static batch takes; 0: as memory allows */
  guint gpu_batch, n_gpu_batches; /* FlexGen: a block is gpu_batch * n_gpu_batches sequences */
  /* Disaggregation: 0 prefill instances: every instance does both. Tensor parallelism 0: the
   * scenario's. */
  guint prefill_instances, decode_instances, prefill_tensor_parallel, decode_tensor_parallel;
  guint decode_max_seqs; /* running sequences of a decode instance; 0: max_seqs */
  double pull_share;     /* a decode instance pulls while what it has pulled and does not run yet
                            takes less than this share of its blocks */
  gboolean pull_in_node; /* prompts go to a decode instance of their own node, where it has one */
  /* NEO: CPU-cache sequences come back to the GPU while less than this share of its blocks is in
   * use; prompts are not dropped from a step below so many tokens; what a layer's attention of a
   * sub-batch on the CPU takes beside reading the cache. */
  double swap_in_below;
  guint least_step_tokens;
  double host_launch_seconds;
  /* The cache of each sequence is split along its tokens over so many groups of tensor_parallel
   * GPUs, each with all weights; 1: it is not; 0: all the platform's. Partial results are combined
   * by trees of reductions, three a layer (fused: two), or caches go round in a ring. */
  guint context_parallel;
  KvCombine combine;
  gboolean combine_fused;
  /* Cake: a prefix on the lower tier is loaded from its end, in chunks, while it is computed from
   * its start. */
  gboolean load_race;
  guint load_chunk_tokens;
  double load_Bps;   /* at which the lower tier is read, if it is behind a network; 0: its own */
  double load_share; /* of the cache's bytes that its stored form has */
  /* Computational SSDs: how many, and what each is like; 0: as the platform's. */
  guint csd_drives, csd_channels;
  double csd_channel_Bps, csd_link_Bps, csd_flops;
  gboolean cache_answers;    /* prefix cache: answers too, where a trace's next turn names them */
  gboolean merge_duplicates; /* ... and what two computed at the same time is held once */
  guint64 retained_blocks;   /* ... and so many blocks at most stay findable that nobody holds */
  struct {                   /* allocator "chunked" */
    double chunk_bytes;      /* of one layer's keys or values */
    double map_seconds;      /* CPU time to map one */
    guint slack_tokens;      /* mapped ahead of what is used */
    gboolean shares;         /* prefixes, in whole chunks */
  } chunks;
  struct {                   /* scheduler "fastserve" */
    double quantum_seconds;  /* of the highest level */
    double quantum_ratio;    /* of a level's to the one's above */
    guint demotion_levels;   /* that a request falls when its quantum is used up */
    double starving_seconds; /* not run for so long: to the highest level */
    guint check_iterations;  /* how often that is looked for */
    double host_guard;       /* with less of the swap space free, no new prompt is begun */
    guint prompt_tokens;     /* of a batch at most, unless one alone has more */
    guint reserve_blocks;    /* kept free; at least one for each member of a batch */
    gboolean proactive;      /* swaps before it must */
  } fastserve;
  struct {                     /* API calls in mid-request, and scheduler "lamps" */
    KvCallHandling handling;   /* unless the scheduler chooses */
    guint strategy;            /* lamps: KvCallHandling, or KV_CALL_LEAST_WASTE */
    gboolean ranks;            /* lamps: the waiting by memory over time; otherwise as they came */
    gboolean released;         /* lamps: with the formula of the authors' code */
    guint headroom_tokens;     /* ... and its tokens of an iteration */
    guint starving_iterations; /* lamps: waited for more, a request goes to the front */
    guint bin_tokens, bins;    /* lamps: classes of predicted lengths; 0: exact */
  } calls;
  struct {                        /* the session store */
    const char *policy;           /* interned, of kv_tier_policies; NULL: no store */
    double dram_bytes, ssd_bytes; /* per GPU's share of the platform: an instance's */
    double truncation;            /* share of a history that overflows which is dropped */
    gboolean decoupled;           /* positions are applied after loading, so the rest stays good */
    gboolean preload;             /* the first layers are read while a request waits */
    double ttl_seconds;           /* 0: none */
  } store;
  struct { /* scheduler "sglang" */
    KvQueueOrder order;
    guint order_limit;                /* above so many waiting, first come first served */
    guint check_tokens, defer_tokens; /* a prompt of which at most the first are cached, and which
                                         has more than the second in common with one before it,
                                         waits for that one */
    guint most_new_tokens;            /* of an answer, as far as admission looks */
    double first_new_ratio;           /* share of running answers set aside, at first */
  } sglang;
  const char
      *scheduled_by; /* interned id of the technique that chose scheduler and allocator, or NULL */
} KvEngineConfig;

void kv_engine_config_init(KvEngineConfig *config);

/* Record that the technique `id` chooses scheduler and allocator; an error if another one already
 * does. */
gboolean kv_engine_config_claim(KvEngineConfig *config, const char *id, GError **error);

#endif
