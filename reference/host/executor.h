/* The `host` executor: every STEP and COPY of the engine carried out for real by a small
 * transformer in plain C.
 *
 * It is the oracle of the engine's correctness. A generated token depends on the request's prompt
 * and on the seed, and on nothing that the engine decides: paging, prefix sharing, chunking,
 * batching, preemption and the scheduler change where keys and values stand and when they are
 * computed, never a bit of them (kernels.h). Two runs that differ in such a decision must generate
 * the same tokens, and a step whose block table leads to keys that are not this sequence's own
 * prefix fails with the position.
 *
 * Time is virtual and reproducible: a step takes its FLOPs at KV_HOST_FLOPS_PER_SECOND (norms,
 * activations and sampling count nothing), a copy its bytes at KV_HOST_COPY_BPS, one after another.
 * Neither is the speed of any machine; kv_host_executor_set_measured() reports the wall time of
 * steps instead, and then runs are not reproducible.
 *
 * A sequence's generated tokens hang on its executor_state until forget(); they survive preemption.
 * Position i of a sequence is prompt token i, or generated token i - input_tokens. One thread at a
 * time.
 */
#ifndef KV_REFERENCE_HOST_EXECUTOR_H
#define KV_REFERENCE_HOST_EXECUTOR_H

#include <glib.h>

#include "models/llm/llm.h"
#include "reference/host/ledger.h"
#include "sim/engine/executor.h"

#define KV_HOST_FLOPS_PER_SECOND 10e9
#define KV_HOST_COPY_BPS 10e9

extern const KvExecutorClass kv_host_executor_class;

/* An executor for `model` with weights from `seed` and pools of that many blocks; hash_block_tokens
 * is the trace's (0 if it has none). NULL with *error set if the model is not one that it computes,
 * or memory is short. Release with its class's destroy(). */
KvExecutor *kv_host_executor_new(const KvModel *model, guint block_tokens, guint64 hbm_blocks,
                                 guint64 dram_blocks, guint32 hash_block_tokens, guint64 seed,
                                 GError **error);

/* The same with weights that are there already, those of a checkpoint for `model` say; takes them
 * over, also if it fails. */
KvExecutor *kv_host_executor_new_with(KvHostWeights *weights, const KvModel *model,
                                      guint block_tokens, guint64 hbm_blocks, guint64 dram_blocks,
                                      guint32 hash_block_tokens, GError **error);

/* The *n tokens generated for the sequence so far; borrowed, until its next step. */
const guint32 *kv_host_executor_output(KvExecutor *executor, const KvSequence *sequence, guint *n);

/* Hold the cache so from now on; call before the first step. Other than with fp8, what is computed
 * again after a preemption may then come out differently. */
void kv_host_executor_set_compression(KvExecutor *executor, const KvHostCompression *compression);

/* Give the cache a tier SSD of that many blocks, a file in `folder` (file_store.h); call before the
 * first step. */
gboolean kv_host_executor_open_file(KvExecutor *executor, const char *folder, guint64 blocks,
                                    GError **error);

void kv_host_executor_set_sink(KvExecutor *executor, KvHostSink sink, gpointer user);

void kv_host_executor_set_measured(KvExecutor *executor, gboolean measured);

#endif
