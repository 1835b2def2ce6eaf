/* A run: a scenario, a trace, and what comes of them.
 *
 * kv_setup_new() resolves a scenario into the things it names (model, plan, platform, memory),
 * without a trace: `predict`, `show` and `fit` use it too. kv_simulate() replays a trace through
 * it.
 */
#ifndef KV_SIM_ENGINE_SIMULATION_H
#define KV_SIM_ENGINE_SIMULATION_H

#include <glib.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/technique.h"
#include "reference/host/compression.h"
#include "sim/base/output.h"
#include "sim/engine/demand.h"
#include "sim/engine/executor.h"
#include "sim/engine/instance.h"
#include "sim/engine/memory.h"
#include "sim/engine/summary.h"
#include "sim/scenario.h"
#include "traces/trace.h"

/* Instances of one role. */
typedef struct {
  KvInstanceRole role;
  guint instances, tensor_parallel;
  KvEngineConfig engine;
  KvMemory memory;
} KvFleet;

typedef struct {
  KvScenario *scenario; /* complete: the engine's settings resolved */
  KvModel *model;
  KvPlatform *platform;
  KvStack *stack;
  KvPlan *plan;
  KvPlanCurves curves;
  KvDemand demand;
  KvMemory memory; /* of the first fleet */
  guint n_fleets;  /* 1: replicas; 2: those that compute prompts, and those that decode */
  KvFleet fleets[KV_MAX_ROLES];
} KvSetup;

/* Everything that a scenario names, checked. `with_memory` FALSE leaves memory undivided (a price
 * needs no room). */
KvSetup *kv_setup_new(const KvScenario *scenario, gboolean with_memory, GError **error);
void kv_setup_free(KvSetup *setup);
/* What of the weights' kernels was not fitted on the device, so that another type's efficiencies
 * stand in: "int4 products", "fp4 experts". NULL if the device is uncalibrated as a whole, or
 * nothing is missing. */
char *kv_setup_unmeasured(const KvSetup *setup);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvSetup, kv_setup_free)
/* How a real executor holds the cache of this stack. FALSE with *error set if none does. */
gboolean kv_setup_compression(const KvSetup *setup, KvHostCompression *compression, GError **error);

typedef struct {
  KvOutput *requests, *operations; /* CSV outputs, or NULL; borrowed */
  void (*progress)(double share, guint64 done, double now_seconds, gpointer user); /* or NULL */
  /* Called with every request as it leaves, finished or rejected (then scheduled_seconds is
   * negative); or NULL. */
  void (*left)(const KvSequence *sequence, gpointer user);
  /* Real executors only: called with the tokens that a finished request has generated; or NULL. */
  void (*generated)(guint64 request_index, const guint32 *tokens, guint n, gpointer user);
  /* Real executors only: given the executor that was made (taken over), gives the one to use. */
  KvExecutor *(*wrap)(KvExecutor *executor, gpointer user);
  gpointer user;      /* of all four */
  gboolean pace_wall; /* real executors only: arrivals and the engine's clock wait for the wall's */
  const volatile gint *interrupted; /* stop when it becomes non-zero; may be NULL */
  gboolean check;                   /* verify the engine's invariants at every decision (tests) */
} KvSimulateOptions;

/* Replay `reader` (borrowed). NULL with *error set if the trace is bad, the run was interrupted, or
 * an executor failed. */
KvSummary *kv_simulate(const KvSetup *setup, KvTraceReader *reader,
                       const KvSimulateOptions *options, GError **error);

#endif
