#include "sim/engine/predict.h"

#include "sim/engine/model_executor.h"

gboolean kv_predict(const KvSetup *setup, const KvStepQuestion *q, KvPrediction *prediction,
                    GError **error) {
  KvExecutor *executor =
      kv_model_executor_new(setup->model, setup->plan, &setup->curves, setup->platform,
                            &setup->scenario->engine, setup->scenario->tensor_parallel);
  double values[KV_MAX_CHANNELS] = {0}, slopes[KV_MAX_CHANNELS] = {0};
  g_autofree KvChunk *chunks = g_new0(KvChunk, q->batch);
  KvStep step = {.chunks = chunks, .repeat = 1, .sustained = TRUE};
  if (q->decode) {
    for (guint c = 0; c < setup->curves.n_channels; c++)
      values[c] = q->batch * kv_law_value(&setup->curves.laws[c], q->context_tokens,
                                          q->context_tokens, TRUE, NULL, NULL);
    step.decode = (KvDecodeBatch){.n = q->batch,
                                  .context_tokens = (double)q->batch * q->context_tokens,
                                  .longest_tokens = q->context_tokens,
                                  .values = values,
                                  .slopes = slopes};
  } else {
    guint tokens = q->chunk_tokens ? MIN(q->chunk_tokens, q->context_tokens) : q->context_tokens;
    step.n_chunks = q->batch;
    for (guint i = 0; i < q->batch; i++)
      chunks[i] = (KvChunk){.past = q->context_tokens - tokens, .tokens = tokens, .last = TRUE};
  }
  *prediction = (KvPrediction){0};
  gboolean ok = executor->class->step(executor, &step, &prediction->cost, error);
  prediction->kernels = kv_model_executor_kernels(executor, &step);
  executor->class->destroy(executor);
  KvPlanCost one =
      kv_plan_cost(setup->plan, &setup->curves, q->context_tokens, q->context_tokens, q->decode);
  for (guint t = 0; t < KV_N_TIERS; t++)
    prediction->resident_bytes[t] = q->batch * one.resident_bytes[t];
  prediction->read_bytes = q->decode ? q->batch * one.read_bytes : 0.0;
  return ok;
}

KvTimeInterval kv_prediction_interval(const KvSetup *setup, const KvPrediction *prediction) {
  KvTimeInterval interval = {0};
  for (guint i = 0; i < prediction->kernels->len; i++) {
    const KvPricedKernel *k = &g_array_index(prediction->kernels, KvPricedKernel, i);
    if (k->family == KV_N_KERNELS)
      interval.seconds += k->cost.seconds;
    else
      kv_time_interval_add(&interval, setup->platform->device, k->family, k->dtype,
                           k->cost.seconds);
  }
  return interval;
}

void kv_prediction_clear(KvPrediction *prediction) {
  g_clear_pointer(&prediction->kernels, g_array_unref);
}
