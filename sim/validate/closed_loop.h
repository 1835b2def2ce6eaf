/* A closed loop as InferenceMAX runs it: what a row says of it, made into a scenario and a
 * workload.
 */
#ifndef KV_SIM_VALIDATE_CLOSED_LOOP_H
#define KV_SIM_VALIDATE_CLOSED_LOOP_H

#include "sim/validate/measured.h"

typedef struct {
  const char *place; /* FILE:LINE, for errors */
  const char *model, *device, *engine, *precision;
  guint input_tokens, output_tokens; /* nominal */
  guint concurrency, tensor_parallel, expert_parallel;
  gboolean attention_parallel; /* attention data-parallel over the GPUs */
} KvClosedLoop;

/* Fill the run's scenario, workload and name. */
gboolean kv_closed_loop_fill(const KvClosedLoop *loop, KvMeasuredRun *run,
                             const KvMeasuredOptions *options, GError **error);

#endif
