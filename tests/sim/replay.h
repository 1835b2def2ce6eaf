/* Runs of the whole engine, for tests: a workload made in memory, a scenario of assignments, and
 * everything that came of it.
 *
 * A workload is a list of requests that can be replayed any number of times. replay() takes the
 * scenario as text, "engine.max_seqs=4 engine.num_blocks=100 ...", checks the engine's invariants
 * at every decision, and fails the test if the run does. Free with replay_free().
 */
#ifndef KV_TESTS_SIM_REPLAY_H
#define KV_TESTS_SIM_REPLAY_H

#include <glib.h>

#include "sim/base/random.h"
#include "sim/engine/simulation.h"

typedef struct {
  double arrival_seconds;
  guint32 input_tokens, output_tokens;
  GArray *hashes; /* of guint64, or NULL */
  gint64 session; /* negative: none */
  guint32 turn;
  double think_seconds;
  GArray *calls; /* of KvTraceCall, or NULL */
} Request;

typedef struct {
  GArray *requests;     /* of Request, by arrival */
  guint32 block_tokens; /* 0: nothing is known of prefixes */
  KvTraceTiming timing;
} Workload;

Workload *workload_new(guint32 block_tokens);
void workload_free(Workload *workload);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Workload, workload_free)
/* Add a request whose prompt begins with the first `shared_tokens` (whole blocks of them) of the
 * prompt of request `parent` (negative: none). */
void workload_add(Workload *workload, double arrival_seconds, guint32 input_tokens,
                  guint32 output_tokens, gint parent, guint32 shared_tokens);
/* Let the request added last call an API after `position` tokens of its answer. */
void workload_call(Workload *workload, guint32 position, double seconds, guint32 returned_tokens);
/* `n` requests of lengths up to the given, at a mean rate; `sharing` is the share of requests that
 * continue an earlier one's prompt. */
Workload *workload_random(KvRandom *random, guint n, guint32 most_input, guint32 most_output,
                          double rate_rps, guint32 block_tokens, double sharing);
/* Everything that `reader` (closed) yields. */
Workload *workload_read(KvTraceReader *reader);
KvTraceReader *workload_reader(const Workload *workload);

typedef struct {
  gboolean rejected;
  guint instance;
  guint32 input_tokens, output_tokens, hit_tokens, tier_tokens, preemptions;
  guint64 recomputed_tokens;
  double arrival, scheduled, first, last; /* seconds; negative: never */
  GArray *tokens;                         /* of guint32: generated, host executor only */
} Outcome;

typedef struct {
  guint instance;
  double start, seconds;
  guint64 repeat, chunks, chunk_tokens, decodes, context;
} Operation;

typedef struct {
  KvSetup *setup;
  KvSummary *summary;
  guint n;           /* requests of the workload */
  Outcome *outcomes; /* by index */
  guint n_left;      /* how many of them left */
  guint n_operations;
  Operation *operations; /* in order of decision */
  char *requests_csv, *operations_csv, *summary_json;
} Replay;

Replay *replay(const Workload *workload, const char *settings_format, ...) G_GNUC_PRINTF(2, 3);
/* NULL with *error set if the run failed. */
Replay *replay_try(const Workload *workload, const char *settings, GError **error);
void replay_free(Replay *replay);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Replay, replay_free)

/* The operations as "chunks:chunk tokens:decoding sequences", with "xN" behind a jump of N steps.
 */
char *replay_shape(const Replay *replay);

#endif
