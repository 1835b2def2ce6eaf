/* outputs.jsonl: the tokens that each request was answered with, where an executor computes them.
 *
 * One line a finished request, in the order in which they finish: {"index": its place in the trace,
 * "id": its id, "tokens": [ids]}.
 */
#ifndef KV_SIM_ENGINE_OUTPUTS_H
#define KV_SIM_ENGINE_OUTPUTS_H

#include <glib.h>

#include "sim/base/output.h"
#include "sim/engine/sequence.h"

typedef struct KvOutputs KvOutputs;

/* Writes to `file`, which is borrowed. */
KvOutputs *kv_outputs_new(KvOutput *file);
void kv_outputs_free(KvOutputs *outputs);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvOutputs, kv_outputs_free)

/* A request's tokens, then the request itself as it leaves: what KvSimulateOptions calls
 * `generated` and `left`. */
void kv_outputs_generated(KvOutputs *outputs, guint64 index, const guint32 *tokens, guint n);
void kv_outputs_left(KvOutputs *outputs, const KvSequence *sequence);

#endif
