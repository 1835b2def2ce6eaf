/* How an engine divides a GPU's memory: weights, activations of the largest step, the framework,
 * and the rest for blocks.
 *
 * After vLLM v1 (section 4e of its notes): requested = total * utilization; what the weights, the
 * peak of a profiling pass over max_batched_tokens tokens with max_seqs sampled rows, and the
 * context leave is divided into blocks.
 */
#ifndef KV_SIM_ENGINE_MEMORY_H
#define KV_SIM_ENGINE_MEMORY_H

#include <glib.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "sim/engine/config.h"
#include "sim/engine/demand.h"

/* Bytes of all weights under the plan. A quantized checkpoint leaves the token tables in 16 bits; a
 * published one may store its experts smaller than the rest. */
double kv_memory_weight_bytes(const KvModel *model, const KvPlan *plan);
/* Of them, the token tables. */
double kv_memory_table_bytes(const KvModel *model, const KvPlan *plan);
/* Bytes of one weight of a routed expert, scales counted. */
KvDtype kv_memory_expert_dtype(const KvModel *model, const KvPlan *plan);
double kv_memory_expert_bytes(const KvModel *model, const KvPlan *plan);

typedef struct {
  double weight_bytes, activation_bytes, framework_bytes, cache_bytes; /* per GPU */
  guint64 blocks;                                                      /* of one instance */
} KvMemory;

/* Also sets the tiers' shares of an uneven demand's blocks. FALSE, with a line that names the
 * numbers, if the weights and one block do not fit. That a request fits is checked when it arrives:
 * vLLM would not start if one of max_model_len tokens did not. */
gboolean kv_memory_divide(const KvModel *model, const KvPlan *plan, KvDemand *demand,
                          const KvPlatform *platform, const KvEngineConfig *config,
                          guint tensor_parallel, KvMemory *memory, GError **error);

#endif
