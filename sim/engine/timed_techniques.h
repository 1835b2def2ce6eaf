/* Techniques whose own work was timed on the device (KvTechniqueTimes, from whole steps of the
 * reference engine): what they add to a step, in the place of the work that their plan gives. */
#ifndef KV_SIM_ENGINE_TIMED_TECHNIQUES_H
#define KV_SIM_ENGINE_TIMED_TECHNIQUES_H

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "sim/engine/executor.h"

enum { KV_MAX_TIMED = 8 };

typedef struct {
  const KvTechniqueTimes *times[KV_MAX_TIMED]; /* the device's */
  guint n;
  double layers;
  double token_bytes; /* of a token in a whole bf16 cache, all layers */
} KvTimedTechniques;

/* Those of the plan that the device has times of. */
void kv_timed_techniques_init(KvTimedTechniques *timed, const KvDevice *device,
                              const KvModel *model, const KvPlan *plan);

/* Whether the work's time is in what kv_timed_techniques_seconds() says. */
gboolean kv_timed_techniques_cover(const KvTimedTechniques *timed, const KvWork *work);

/* Seconds that all of them add to the step at repeat `at`, whose prompts take so long to attend. */
double kv_timed_techniques_seconds(const KvTimedTechniques *timed, const KvStep *step, double at,
                                   double prefill_attention_seconds);

#endif
