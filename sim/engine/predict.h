/* The price of one step by itself: what `kvsim predict` shows, and what measured steps are held
 * against. */
#ifndef KV_SIM_ENGINE_PREDICT_H
#define KV_SIM_ENGINE_PREDICT_H

#include "models/kernels/kernels.h"
#include "sim/engine/simulation.h"

typedef struct {
  gboolean decode;
  guint batch;
  guint context_tokens; /* of each sequence; decode: the new token counted */
  guint chunk_tokens;   /* prefill: only the last so many tokens are new; 0: all */
} KvStepQuestion;

typedef struct {
  KvStepCost cost;
  GArray *kernels;                               /* of KvPricedKernel */
  double resident_bytes[KV_N_TIERS], read_bytes; /* of all sequences, whole model */
} KvPrediction;

/* FALSE with *error set if the executor cannot. Clear the prediction with kv_prediction_clear(). */
gboolean kv_predict(const KvSetup *setup, const KvStepQuestion *question, KvPrediction *prediction,
                    GError **error);
/* The 90 % interval of the step's time: each kernel's by the errors of its own family and type. */
KvTimeInterval kv_prediction_interval(const KvSetup *setup, const KvPrediction *prediction);
void kv_prediction_clear(KvPrediction *prediction);

#endif
