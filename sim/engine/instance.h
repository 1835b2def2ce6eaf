/* One serving instance: its queues, its blocks, its pipeline of batches.
 *
 * An instance is driven by its wake-up times. At a wake-up it takes in the results of batches that
 * have ended and lets its scheduler decide the next one. Synchronous scheduling keeps one batch in
 * flight. Asynchronous scheduling keeps two: the batch after next is decided when a batch ends, so
 * an arrival waits out one more step, and the blocks and the slot of a finished sequence are seen
 * free one step later.
 *
 * A batch of decoding sequences only is decided as a jump of many steps: as many as nothing can
 * change. The jump is open until its last step but one (asynchronous) or its last (synchronous) has
 * ended, and an arrival shortens it. State advances when a jump is closed.
 *
 * Running sequences stand in admission order; the last is the first to be preempted.
 */
#ifndef KV_SIM_ENGINE_INSTANCE_H
#define KV_SIM_ENGINE_INSTANCE_H

#include <glib.h>

#include "sim/engine/buddy.h"
#include "sim/engine/config.h"
#include "sim/engine/decode_set.h"
#include "sim/engine/demand.h"
#include "sim/engine/executor.h"
#include "sim/engine/observer.h"
#include "sim/engine/pool.h"
#include "sim/engine/scheduler.h"

typedef struct {
  KvSequence *head, *tail;
  guint n;
} KvQueue;

/* What an instance does for a request. */
typedef enum {
  KV_INSTANCE_WHOLE,   /* everything */
  KV_INSTANCE_PREFILL, /* its prompt and first token */
  KV_INSTANCE_DECODE,  /* the rest, from a cache that it pulls from a prefill instance */
} KvInstanceRole;

extern const char *const kv_instance_role_names[];

struct KvBatch {
  GArray *chunks;     /* of KvChunk */
  GPtrArray *ending;  /* sequences whose last token it emits */
  GPtrArray *host;    /* swapped sequences that decode in it, on the CPU */
  guint64 n_host;     /* how many */
  guint64 host_first; /* of them, in the sub-batch of everybody else */
  gboolean decodes;   /* the decoding sequences take part */
  guint64 decode_n, padding, repeat;
  guint64 most_repeats; /* the scheduler wants to decide again after so many steps; 0: no limit */
  double *values, *slopes; /* copies: the set moves on while the batch executes */
  double context_tokens, longest_tokens;
  KvSharedReads shared; /* where the plan asks for it */
  GArray *stalled;      /* of double: when members that were paused had their last token */
  double until_seconds; /* the scheduler wants to decide again once a step ends at or after this */
  gboolean open, shortened;
  gboolean reordered;   /* somebody was preempted or swapped in when it was decided */
  double start, end;    /* end: known once closed */
  double due;           /* open: when it is closed and the next batch decided */
  double wait_seconds;  /* extra time before it may start: copies that it waits for */
  double map_seconds;   /* the same: memory that its prompts need is mapped */
  guint64 taken_blocks; /* open: blocks that its steps so far have taken from the pool
                           (kv_instance_settle) */
  double gap_seconds;   /* CPU time before each further step of a jump; 0 where the GPU hides it */
  KvPricing *pricing;   /* of a jump; made when first needed */
  KvStepCost cost;
};

struct KvInstance {
  guint index;
  KvInstanceRole role;
  guint node; /* of the platform, on which its GPUs are */
  const KvEngineConfig *config;
  const KvSchedulerClass *scheduler;
  KvExecutor *executor;
  KvObserver *observer;
  KvDemand demand;
  KvPool *pool;   /* paged */
  KvBuddy *buddy; /* reserved: then the pool has no blocks */
  guint64 buddy_blocks;
  guint64 host_blocks; /* of the swap space, free or not */
  KvDecodeSet *decode;
  guint n_channels; /* of the plan's curves */
  const KvPlanCurves *curves;
  gboolean reads_shared_once; /* of the plan */
  double block_map_seconds;   /* CPU time until a block can be used: chunks are mapped */
  guint share_multiple;       /* tokens at whose multiples a prefix may end */
  KvQueue waiting, running, swapped, paused;
  KvQueue loading;              /* caches of returned calls that come back from the host */
  GSequence *calling;           /* of KvSequence, by return; NULL before the first call */
  guint n_caches_on_host;       /* of those in the queue or loading, with their cache on the host */
  guint64 n_copies;             /* under way that a step need not wait for */
  double leaving_until;         /* swapped out beside the steps: when the last copy is over */
  guint64 leaving_blocks;       /* ... and blocks that are in such copies */
  gpointer policy;              /* the scheduler's own */
  struct KvSessionStore *store; /* or NULL */
  KvQueue left_behind;          /* prefill: holders of blocks that have not been pulled yet */
  KvQueue bridge, pulling;      /* decode: announced to it; on the way to it */
  guint64 pulled_blocks; /* of pulled sequences that do not run yet, those on the way counted */
  guint64 prompt_tokens; /* of requests whose first token has not been decided yet */
  GArray *early;         /* of Early: copies found complete while a swap was timed */
  GPtrArray *prefilling; /* running sequences with prompt left, in admission order */
  guint n_running;       /* running, those whose last token is in flight counted */
  guint n_loading;
  guint depth;         /* batches in flight at most */
  KvBatch *batches[2]; /* the first is the older */
  guint n_batches;
  KvBatch *spare[3];
  guint n_spare;
  gboolean
      blocked; /* the head of the queue waits for blocks or a slot: an arrival changes nothing */
  gboolean nothing_to_decide; /* until a batch ends, something arrives or a copy completes */
  GPtrArray *held_rows;       /* finished sequences whose rows are computed on (static batching) */
  KvTier tier;                /* the prefix cache's lower tier; KV_TIER_HBM: none */
  guint64 host_free_blocks;   /* of the swap space */
  guint n_on_host;            /* sequences that decode from there in the batch under way */
  guint32 *host_free_ids;     /* a stack of them, where the executor needs ids */
  guint64 taken_private;      /* blocks taken for decoding sequences as a whole */
  double now;
  double last_decode_end, last_prefill_end;
  guint64 joined_since_decode; /* sequences that joined since decoding sequences last took part */
  double joined_token_seconds; /* decode: sum of their previous tokens' times */
  guint withheld_steps;    /* that prompts have been withheld for (TensorRT-LLM's batch waiting) */
  guint64 busy_since_step; /* decode steps taken when the instance was last idle; SGLang's */
  guint64 n_iterations;    /* steps taken */
  guint64 n_left;          /* sequences that have finished or were preempted */
  guint64 closed_at;       /* SGLang's: n_left + 1 when an admission failed */
  double tokens_held;      /* in caches of running sequences that do not decode */
  void (*finished)(KvInstance *instance, KvSequence *sequence,
                   gpointer user); /* the sequence is freed after it */
  /* Prefill: the sequence's first token is out, and its cache can be pulled. Decode: it has been;
   * what the prefill instance holds of it can go. */
  void (*computed)(KvInstance *instance, KvSequence *sequence, gpointer user);
  void (*pulled)(KvInstance *instance, KvSequence *left_behind, gpointer user);
  gpointer user;
};

/* Everything is borrowed. `blocks` the pool's size, `hash_block_tokens` the trace's. */
KvInstance *kv_instance_new(guint index, const KvEngineConfig *config, const KvPlanCurves *curves,
                            KvExecutor *executor, KvObserver *observer, guint64 blocks,
                            guint hash_block_tokens, const KvPlan *plan);
void kv_instance_free(KvInstance *instance);

/* A request arrives at `now`; the instance owns it until it calls finished(). */
void kv_instance_arrive(KvInstance *instance, KvSequence *sequence, double now);

/* Whether the request could ever be served. */
gboolean kv_instance_can_ever_serve(const KvInstance *instance, const KvSequence *sequence);

/* Disaggregation. The prompt of `sequence` has been computed by another instance, in its node or
 * not: pull its cache when the rule allows. */
void kv_instance_announce(KvInstance *instance, KvSequence *sequence, gboolean in_node, double now);
/* Its cache has been pulled: let go of the blocks held for it. */
void kv_instance_release(KvInstance *instance, KvSequence *left_behind, double now);

/* When it must be woken next (G_MAXDOUBLE: never), and the waking. FALSE with *error set if the
 * executor failed. */
double kv_instance_next(KvInstance *instance);
gboolean kv_instance_wake(KvInstance *instance, double now, GError **error);

/* Routers that look into the pool: let what the steps begun by `now` of an open jump have taken be
 * gone from it. TRUE if that was anything. */
gboolean kv_instance_settle(KvInstance *instance, double now);

/* For routers: sequences waiting and running. */
guint kv_instance_waiting(const KvInstance *instance);
guint kv_instance_running(const KvInstance *instance);

/* For schedulers. */

/* Whether admitting with this hit first copies blocks up from the lower tier. */
gboolean kv_instance_must_load(const KvInstance *instance, const KvPrefixHit *hit);

/* Blocks that may be given out, after the decoding sequences' own needs of this step if they take
 * part. */
guint64 kv_instance_available(const KvInstance *instance, gboolean decodes);
/* What the prefix cache holds of the sequence's first `limit_tokens` tokens, at a multiple at which
 * the plan allows sharing. */
KvPrefixHit kv_instance_lookup(KvInstance *instance, const KvSequence *sequence,
                               guint32 limit_tokens);
/* Put the waiting queue into this order of all its members. */
void kv_instance_order_waiting(KvInstance *instance, KvSequence *const *ordered);
/* Blocks that the sequence needs for `tokens` tokens beyond those it holds. */
guint64 kv_instance_needed(const KvInstance *instance, const KvSequence *sequence, guint32 tokens);
/* Reserve contiguous room for the sequence's whole life; FALSE if there is no hole for it now. */
gboolean kv_instance_reserve(KvInstance *instance, KvSequence *sequence);
/* Take a waiting sequence into the running list with the blocks found by `hit` (NULL: it holds what
 * it needs). What the lower tier has begins to load, and the sequence comes back to the head of the
 * queue when it is there. */
void kv_instance_admit(KvInstance *instance, KvSequence *sequence, const KvPrefixHit *hit,
                       double now);
/* Tokens that the sequence may compute next, at most: the rest of its prompt, or while it races the
 * next chunk that has not been loaded. */
guint32 kv_instance_prompt_left(const KvInstance *instance, const KvSequence *sequence);
/* Give the running sequence a chunk of `tokens` in this batch, with blocks. */
void kv_instance_add_chunk(KvInstance *instance, KvBatch *batch, KvSequence *sequence,
                           guint32 tokens);
/* Preempt this running sequence: it is recomputed later, or its blocks are swapped out. It comes to
 * the head of the queue, or to its end. */
void kv_instance_preempt(KvInstance *instance, KvBatch *batch, KvSequence *victim,
                         gboolean to_tail);
/* Preempt the last running sequence: recompute it later, or swap its blocks out. FALSE if there is
 * none. */
gboolean kv_instance_preempt_last(KvInstance *instance, KvBatch *batch);
/* Bring a swapped sequence back: it decodes in this batch, which waits for the copy. */
void kv_instance_swap_in(KvInstance *instance, KvBatch *batch, KvSequence *sequence);
/* Let a pulled sequence decode, from this batch on. */
void kv_instance_join(KvInstance *instance, KvSequence *sequence);
/* Offloading. Take a waiting sequence into the running list with room for its prompt in host
 * memory. */
void kv_instance_admit_to_host(KvInstance *instance, KvSequence *sequence, double now);
/* Whether one more token of the swapped sequence has room where it is. */
gboolean kv_instance_host_has_room(const KvInstance *instance, const KvSequence *sequence);
/* Drop the last swapped sequence: it is computed again. */
void kv_instance_drop_last_swapped(KvInstance *instance, KvBatch *batch);
/* Nothing runs and the head of the queue finds no room: take back what the last waiting sequence
 * behind it holds since its prefix was loaded. FALSE if none does. */
gboolean kv_instance_unload_last(KvInstance *instance);
/* Preempt until the decoding sequences can take one more step. TRUE if anybody was preempted. */
gboolean kv_instance_make_room(KvInstance *instance, KvBatch *batch);

/* Give the prefix cache a lower tier of `blocks` blocks. */
void kv_instance_set_tier(KvInstance *instance, KvTier tier, guint64 blocks);
/* Blocks of the swap space that the settings allow. */
guint64 kv_instance_swap_blocks(const KvEngineConfig *config, const KvDemand *demand);

/* For tests: NULL, or which invariant does not hold. */
const char *kv_instance_check(const KvInstance *instance);

#endif
