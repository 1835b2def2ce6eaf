/* What an executor that computes tokens knows of each sequence: the tokens themselves, and the name
 * of every prefix of them.
 *
 * A step of the engine becomes a batch of spans, each checked: its tokens are known, its positions
 * and blocks exist, and every slot that it reads holds this sequence's own prefix. For that, a name
 * (a hash of the token and of all before it) stands beside each token slot of the cache in `names`,
 * [n_blocks][block_tokens], 0 where nothing was written; whoever moves a block moves its names.
 *
 * A sequence's tokens hang on its executor_state until it is forgotten; they survive preemption.
 */
#ifndef KV_REFERENCE_HOST_LEDGER_H
#define KV_REFERENCE_HOST_LEDGER_H

#include <glib.h>

#include "reference/host/forward.h"
#include "sim/engine/executor.h"

/* Called with a sequence's tokens when it is forgotten. */
typedef void (*KvHostSink)(guint64 request_index, const guint32 *tokens, guint n, gpointer user);

typedef struct {
  const char *executor; /* its name, for errors */
  guint vocab, block_tokens;
  guint max_positions; /* of learned positions, 0: no limit */
  guint oldest_window; /* positions that some layer sees; 0: all */
  guint32 hash_block_tokens;
  guint64 n_blocks; /* of HBM */
  guint64 *names;   /* borrowed */
  const KvHostCompression *compression; /* borrowed: says which tokens are dropped; NULL: none */
  gboolean exact; /* a token that is computed again must come out the same: in fp32 on the host it
                     does, and in bf16 another batch may tip a tie */
  KvHostSink sink;
  gpointer sink_user;
} KvHostLedger;

/* The members of one repeat of a step as spans, and whose they are: chunks first. */
typedef struct {
  KvHostSpan *spans;
  KvSequence **owners;
  guint n;
  GArray *tokens; /* of guint32, every span's */
} KvHostBatch;

/* Fill the zeroed batch and write the names of what it will store. Clear it either way. */
gboolean kv_host_batch_fill(const KvHostLedger *ledger, KvHostBatch *batch, const KvStep *step,
                            guint64 repeat, GError **error);
/* Every span reads its own sequence's prefix; call when the batch is full. */
gboolean kv_host_batch_check(const KvHostLedger *ledger, const KvHostBatch *batch, GError **error);
/* Keep what the pass sampled. */
gboolean kv_host_batch_keep(const KvHostLedger *ledger, const KvHostBatch *batch, GError **error);
void kv_host_batch_clear(KvHostBatch *batch);

/* The *n tokens generated for the sequence so far; borrowed, until its next step. */
const guint32 *kv_host_ledger_output(const KvSequence *sequence, guint *n);
void kv_host_ledger_forget(const KvHostLedger *ledger, KvSequence *sequence);
/* The longest window of the layers, 0 if one of them sees everything. */
guint kv_host_oldest_window(const KvModel *model);

#endif
