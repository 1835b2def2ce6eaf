/* A trace served by a real executor, as a measured run like any other: its requests for a
 * comparison, its steps as a log, and what is known of the GPU meanwhile.
 *
 * The simulator repeats it with the same engine, blocks and decisions. What differs from its
 * default settings is what the reference engine does not have: no host time between steps in
 * virtual time, graphs for steps of decoding sequences alone, and launches from C.
 *
 * As a file (measured.json): an object with "kvsim_measured": 1, the executor, the pace, the date,
 * the trace, the GPU, the scenario to simulate, and a row a request: prompt tokens, output tokens,
 * arrival, then queue, TTFT, TPOT (null: one token) and E2E, all in seconds.
 */
#ifndef KV_SIM_VALIDATE_REFERENCE_RUN_H
#define KV_SIM_VALIDATE_REFERENCE_RUN_H

#include "sim/engine/outputs.h"
#include "sim/validate/comparison.h"
#include "sim/validate/step_log.h"

typedef struct {
  KvMeasuredRun *run;
  KvStepLog *log; /* not priced */
  char *pace;     /* "virtual" or "wall" */
} KvReferenceRun;

typedef struct {
  const char *trace, *format; /* format NULL: by content */
  gboolean pace_wall;
  KvOutputs *outputs; /* or NULL; borrowed */
  const volatile gint *interrupted;
} KvReferenceOptions;

/* Serve the trace by the scenario's executor, `host` or `cuda`. */
KvReferenceRun *kv_reference_run_new(const KvScenario *scenario, const KvReferenceOptions *options,
                                     GError **error);
void kv_reference_run_free(KvReferenceRun *reference);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvReferenceRun, kv_reference_run_free)

gboolean kv_reference_run_write(const KvReferenceRun *reference, const char *path, GError **error);

#endif
