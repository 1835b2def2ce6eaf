/* A request inside the engine, from its arrival to its last token.
 *
 * Positions: a sequence's tokens are its prompt followed by what it has generated. `computed`
 * tokens have their keys and values in the cache. A decoding sequence is not touched at every step:
 * its context is derived from the instance's count of decode steps (kv_sequence_context).
 *
 * Times are seconds of the simulation's clock. The struct is owned by the simulation; hashes and
 * tokens belong to it.
 */
#ifndef KV_SIM_ENGINE_SEQUENCE_H
#define KV_SIM_ENGINE_SEQUENCE_H

#include <glib.h>

#include "traces/trace.h"

typedef struct KvPrefixNode KvPrefixNode; /* sim/engine/pool.h */

typedef enum {
  KV_SEQUENCE_WAITING, /* in the queue */
  KV_SEQUENCE_LOADING, /* its blocks are held, its prefix is on the way from a lower tier */
  KV_SEQUENCE_PREFILL, /* running, with prompt tokens still to compute */
  KV_SEQUENCE_DECODE,  /* running, one token a step */
  KV_SEQUENCE_ENDING,  /* its last token is in a batch that is still executing */
  KV_SEQUENCE_PAUSED,  /* its blocks are held, but it takes part in nothing */
  KV_SEQUENCE_CALLING, /* it waits for an API call to return */
  KV_SEQUENCE_SWAPPED, /* its blocks are on the host */
  KV_SEQUENCE_BRIDGED, /* its prompt is computed, on another instance than it will decode on */
  KV_SEQUENCE_REMOTE,  /* the same, in another node */
  KV_SEQUENCE_PULLED,  /* its blocks are on the way from there */
  KV_SEQUENCE_FINISHED,
} KvSequenceState;

typedef struct KvSequence KvSequence;
struct KvSequence {
  guint64 index; /* order of arrival in the trace, from 0 */
  gint64 id, session;
  guint32 turn;
  gint32 priority;
  guint32 input_tokens, output_tokens;
  guint32 n_hashes, n_tokens; /* see KvTraceRequest */
  guint32 answer_tokens; /* behind the prompt, that the hashes name too (kv_sequence_name_answer) */
  guint64 *hashes;
  guint32 *tokens;

  KvSequenceState state;
  guint32 target_tokens;   /* tokens to compute before decoding (again): prompt, plus what a
                              preemption lost */
  guint32 computed_tokens; /* not decoding: tokens in the cache */
  guint32 emitted_tokens;  /* not decoding: tokens generated so far */
  guint64
      join_step; /* decoding: the instance's decode step at which it joined with computed_tokens */
  guint64 finish_step;   /* decoding: the step count at which its last token is scheduled */
  guint heap_index;      /* place in the instance's finish heap */
  guint32 piece_context; /* context at which its laws were last evaluated */
  guint64 bend_step;     /* step at which one of them bends next; G_MAXUINT64: never */

  KvTraceCall *calls; /* API calls in its answer; next_call is not made yet */
  guint32 n_calls, next_call;
  guint32 call_tokens, returned_tokens; /* that calls give back: in all, and so far */
  double return_seconds;                /* calling: when it returns */
  GSequenceIter *call_place;            /* calling: in the instance's order of returns */
  guint handling;                       /* KvCallHandling of its next call */

  /* Schedulers' own. */
  GList link;             /* in a queue of the scheduler's */
  guint level;            /* fastserve: of that queue */
  gboolean chosen;        /* fastserve: for the batch being formed */
  double process_seconds; /* fastserve: of its level's quantum that is used up */
  double last_run_seconds;
  gboolean scored;       /* lamps: what follows is known */
  double score;          /* lamps: tokens times seconds that it will hold memory for */
  guint64 waiting_since; /* the instance's count of iterations when it joined the queue */

  double ready_seconds; /* its cache is copied up from the host until then */
  double load_seconds;  /* of the copy of its history that its first chunk must wait for */

  KvSequence *previous, *next; /* running list (admission order) or waiting queue */
  KvPrefixNode **nodes;        /* prefix blocks held, in order */
  guint n_nodes, nodes_size;
  guint n_duplicates; /* of them, NULL: blocks that another sequence computed at the same time */
  guint64 private_blocks;  /* blocks held that no other sequence can see */
  guint64 node_end_blocks; /* blocks, from the prompt's first, that its last node covered when it
                              was looked at */
  struct KvExtent *kept;   /* private blocks that a preemption left in the free queue */
  guint64 reserved_start, reserved_blocks; /* of the reserved allocator */
  guint64 swapped_blocks;                  /* on the host */
  guint32 *swapped_ids;                    /* and which, when the executor needs ids */
  guint32 *block_ids; /* physical ids in token order; only when the executor needs them */
  guint32 n_block_ids, block_ids_size;

  gboolean on_host;        /* its prompt's cache goes to host memory as it is computed */
  KvSequence *left_behind; /* holds its blocks on the instance that computed its prompt, until
                              they have been pulled; owned by that instance */
  double pulled_seconds;   /* when the pulling began */

  /* Racing: tokens from race_end down to loaded_from are loaded, those up to computed_tokens
   * computed; race_end 0: it does not. */
  guint32 race_end, loaded_from;

  guint32 prompt_hit_tokens; /* prompt tokens found in the cache at the first admission */
  guint32 lower_tier_tokens; /* of them, those loaded from a lower tier */
  guint32 preemptions;
  guint64 recomputed_tokens;
  double arrival_seconds, seen_seconds, drained_seconds, scheduled_seconds, first_token_seconds,
      last_token_seconds;
  double deadline_seconds, think_seconds, session_start_seconds;
  guint32 instance;        /* which one serves it */
  gpointer executor_state; /* the executor's own, released through its forget() */
};

/* Tokens that it will have in the end: prompt, answer and what calls return. */
static inline guint64 kv_sequence_end_tokens(const KvSequence *sequence) {
  return (guint64)sequence->input_tokens + sequence->output_tokens + sequence->call_tokens;
}

/* Tokens of the answer after which it stops decoding for now: a call's place, or the end. */
static inline guint32 kv_sequence_stop(const KvSequence *sequence) {
  return sequence->next_call < sequence->n_calls ? sequence->calls[sequence->next_call].position
                                                 : sequence->output_tokens;
}

/* `next` is the next turn of its session: if that continues the prompt and its answer, name the
 * blocks of the answer, too, as `next` names them. */
void kv_sequence_name_answer(KvSequence *sequence, const KvSequence *next,
                             guint32 hash_block_tokens);

/* Token id at position `i` of the prompt in a vocabulary of `vocab`: the trace's own where known;
 * otherwise a function of the prefix block that covers it, so that equal prefixes have equal
 * tokens. */
guint32 kv_sequence_prompt_token(const KvSequence *sequence, guint32 i, guint32 hash_block_tokens,
                                 guint32 vocab);

#endif
