/* The `model` executor: prices steps analytically, any number of repeats at once.
 *
 * A step's time is the sum over its kernels (models/kernels/) of one GPU's part, times the layers.
 * Only the attention of decoding sequences depends on how long their contexts are, and it does so
 * through sums that grow linearly from repeat to repeat, so a step's time is a smooth function of
 * the repeat. It is sampled at five equidistant repeats; the sum over the first j repeats is that
 * of the interpolating quartic, in closed form. The range is halved until the quartic and the
 * quadratic through three of the samples agree to 1e-6: the quartic's own error is then far below
 * 1e-7.
 */
#ifndef KV_SIM_ENGINE_MODEL_EXECUTOR_H
#define KV_SIM_ENGINE_MODEL_EXECUTOR_H

#include "models/hardware/hardware.h"
#include "models/kernels/kernels.h"
#include "models/llm/llm.h"
#include "sim/engine/config.h"
#include "sim/engine/executor.h"

extern const KvExecutorClass kv_model_executor_class;

/* All arguments are borrowed and must outlive the executor. `tensor_parallel` GPUs of one node
 * share every layer. */
KvExecutor *kv_model_executor_new(const KvModel *model, const KvPlan *plan,
                                  const KvPlanCurves *curves, const KvPlatform *platform,
                                  const KvEngineConfig *config, guint tensor_parallel);

/* Another executor of the same kind, for a replica: copies of its own, and the prices that `like`
 * has worked out already shared with it. Not for use in another thread than `like`. */
KvExecutor *kv_model_executor_twin(KvExecutor *like);

/* The executor's instance pulls caches from others, over `ports` GPUs' links at once: within a node
 * over the links between GPUs, between nodes over the network. */
void kv_model_executor_set_ports(KvExecutor *executor, guint ports);

/* One line of a step's price, for `predict` and `explain`: what was computed, how often, and which
 * bound held. */
typedef struct {
  const char *name; /* "qkv projection" */
  KvComponent component;
  KvKernelFamily family; /* and type, whose fit its time rests on; KV_N_KERNELS: none */
  KvDtype dtype;
  double count;      /* kernels of this kind in the step */
  KvCost cost;       /* of all of them together */
  char operands[64]; /* "m=64 k=4096 n=6144 bf16" */
} KvPricedKernel;

/* The kernels of the first repeat of `step`; an array of KvPricedKernel, free with g_array_unref().
 */
GArray *kv_model_executor_kernels(KvExecutor *executor, const KvStep *step);

#endif
