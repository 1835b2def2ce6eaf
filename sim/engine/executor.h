/* Executors: who carries out the engine's operations, and says how long they took.
 *
 * The engine decides; an executor is handed a STEP (one engine iteration: prefill chunks plus the
 * decoding set, with a repeat count) or a COPY (blocks between two tiers), and answers with time.
 * `model` prices operations analytically in virtual time; `host` computes them for real with a
 * small transformer; `cuda` will do so on a GPU. Nothing that decides may live behind this
 * interface; nothing that measures may live before it.
 */
#ifndef KV_SIM_ENGINE_EXECUTOR_H
#define KV_SIM_ENGINE_EXECUTOR_H

#include <glib.h>

#include "models/techniques/plan.h"
#include "sim/engine/sequence.h"

/* Where the time of a step goes. */
typedef enum {
  KV_COMPONENT_QKV,
  KV_COMPONENT_PREFILL_ATTENTION,
  KV_COMPONENT_DECODE_ATTENTION,
  KV_COMPONENT_OUTPUT_PROJECTION,
  KV_COMPONENT_MLP,
  KV_COMPONENT_ELEMENTWISE,
  KV_COMPONENT_LM_HEAD,
  KV_COMPONENT_SAMPLING,
  KV_COMPONENT_COMMUNICATION,
  KV_COMPONENT_TECHNIQUE, /* the stack's own work: quantize, select, evict */
  KV_COMPONENT_TRANSFER,  /* weights or cache streamed from a lower tier, what is not hidden */
  KV_COMPONENT_LAUNCH,    /* launches and CPU time that the GPU waits for */
  KV_N_COMPONENTS,
} KvComponent;

extern const char *const kv_component_names[];

typedef struct {
  KvSequence *sequence;
  guint32 past, tokens; /* cached before it, and computed by it */
  gboolean last;        /* it completes the prompt: a token is sampled */
} KvChunk;

/* The decoding sequences of a step, as sums: all that a cost needs. Real executors walk `first`. */
typedef struct {
  guint64 n;             /* sequences */
  guint64 padding;       /* rows computed for sequences that have finished (static batching) */
  double context_tokens; /* sum of contexts at the first repeat, the new token counted */
  double longest_tokens; /* the longest context at the first repeat */
  const double *values;  /* per channel of the plan's curves: sum at the first repeat */
  const double *slopes;  /* growth of the sum per repeat */
  /* Of the contexts, what several of them share: its distinct tokens, and how many reads of them
   * repeat another's; 0 unless the plan reads shared prefixes once. */
  double shared_once_tokens, shared_repeated_tokens;
  KvSequence *const *members; /* NULL for executors that need only sums */
} KvDecodeBatch;

typedef struct {
  const KvChunk *chunks;
  guint n_chunks;
  KvDecodeBatch decode;
  /* Sequences whose cache is in host memory and whose attention runs on the CPU (NEO): the first
   * `host_first` of them are in a sub-batch with all others, the rest in one of their own, and each
   * sub-batch's CPU attention runs beside the other's linear layers. Prompts of so many tokens are
   * written to the host as they are computed. */
  KvDecodeBatch host;
  guint64 host_first;
  double host_prompt_tokens;
  guint64 repeat; /* the same decode batch, each repeat one token longer; 1 if there are chunks */
  gboolean
      sustained; /* steps like it follow one another, as when one is measured again and again */
} KvStep;

typedef struct {
  double seconds;                     /* all repeats */
  double first_seconds, last_seconds; /* the first and the last repeat */
  double component_seconds[KV_N_COMPONENTS];
  double component_flops[KV_N_COMPONENTS], component_bytes[KV_N_COMPONENTS]; /* per GPU */
  double flops, hbm_bytes;                                                   /* per GPU */
  double link_bytes;                                                         /* between GPUs */
  double fetched_bytes[KV_N_TIERS];                                          /* from each tier */
  double launches;
  double slack_seconds[2]; /* host sequences: by which the CPU is done before the GPU asks for the
                              attention of the first and of the second sub-batch; negative: after */
} KvStepCost;

typedef struct {
  KvTier from, to;
  double bytes;
  guint64 blocks;
  KvSequence *sequence; /* whose blocks move; NULL if nobody waits for it */
  gpointer tag;         /* the engine's own */
  gboolean pinned;
  gboolean
      pulled; /* from another instance: `from` HBM: in the same node; REMOTE: over the network */
} KvCopy;

typedef struct KvExecutor KvExecutor;
typedef struct KvPricing
    KvPricing; /* a closed-form executor's price of a step as a function of its repeats */

typedef struct {
  const char *name, *description;
  gboolean closed_form; /* prices `repeat` > 1, needs no members and no block ids */
  /* Carry out the step, whose repeat is 1 (closed form: price it). FALSE with *error set if it
   * cannot. */
  gboolean (*step)(KvExecutor *executor, const KvStep *step, KvStepCost *cost, GError **error);
  /* Closed form only. A pricing is made once and filled again and again: price() does the work for
   * up to step->repeat repeats and returns how many it covers (at least 1); seconds() and cost()
   * then answer for any number of them at next to no cost. */
  KvPricing *(*pricing_new)(KvExecutor *executor);
  void (*pricing_free)(KvPricing *pricing);
  guint64 (*price)(KvExecutor *executor, const KvStep *step, KvPricing *pricing);
  double (*seconds)(const KvPricing *pricing, guint64 repeats);
  void (*cost)(KvExecutor *executor, const KvPricing *pricing, guint64 repeats, KvStepCost *cost);
  /* Start a copy at time `now`; it shares its link with those under way. The struct is copied. */
  void (*copy)(KvExecutor *executor, const KvCopy *copy, double now);
  /* Give up the copies under way for the sequence. Executors that race only; may be NULL. */
  void (*cancel_copies)(KvExecutor *executor, const KvSequence *sequence, double now);
  /* How long the copy would take alone. May be NULL: not known before it is done. */
  double (*copy_seconds)(KvExecutor *executor, const KvCopy *copy);
  /* When the next copy completes, G_MAXDOUBLE if none is under way; and take it off. */
  double (*next_copy)(KvExecutor *executor);
  gboolean (*pop_copy)(KvExecutor *executor, double now, KvCopy *copy);
  /* The physical block `from` was copied to `to` (copy on write, swapping). Real executors only;
   * may be NULL. */
  void (*move_block)(KvExecutor *executor, KvTier from_tier, guint32 from, KvTier to_tier,
                     guint32 to);
  /* The sequence is finished: release executor_state. May be NULL. */
  void (*forget)(KvExecutor *executor, KvSequence *sequence);
  void (*destroy)(KvExecutor *executor);
} KvExecutorClass;

struct KvExecutor {
  const KvExecutorClass *class;
};

#endif
