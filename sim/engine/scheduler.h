/* Schedulers: which sequences take part in the next batch of an instance.
 *
 * One file and one entry of kv_schedulers each. A scheduler decides only: it fills the batch
 * through the helpers of sim/engine/instance.h, which keep blocks, queues and counts right.
 * schedule() is called at the moments at which the real engine would decide, with the state that it
 * would see then.
 */
#ifndef KV_SIM_ENGINE_SCHEDULER_H
#define KV_SIM_ENGINE_SCHEDULER_H

#include <glib.h>

typedef struct KvInstance KvInstance;
typedef struct KvBatch KvBatch;

typedef struct KvSequence KvSequence;

typedef struct {
  const char *name, *description;
  /* Decide the next batch: chunks, and whether the decoding sequences take part. An empty batch:
   * nothing to do now. */
  void (*schedule)(KvInstance *instance, double now, KvBatch *batch);
  /* May be NULL. State of its own (instance->policy), and word of who comes and goes: a request
   * whose call begins goes, and comes when it returns. */
  gpointer (*begin)(const KvInstance *instance);
  void (*end)(gpointer policy);
  void (*arrived)(KvInstance *instance, KvSequence *sequence, double now);
  void (*finished)(KvInstance *instance, KvSequence *sequence);
  gboolean holds_rows; /* a finished sequence's row is computed until its whole batch ends (static
                          batching) */
  gboolean offloads; /* sequences in `swapped` may decode from there, on the CPU; copies of swapped
                        blocks run beside the step */
  gboolean shares_prefixes;     /* can look prompts up in the prefix cache */
  gboolean async;               /* may run one step ahead (vLLM v1's asynchronous scheduling) */
  double between_steps_seconds; /* the engine's own: see KvEngineConfig */
} KvSchedulerClass;

/* vLLM 0.19 on an RTX PRO 6000 (LLMServingSim's log): the last 767 steps, none with a prompt, take
 * 0.79 ms each beyond the profiled kernels of the same vLLM, though the next step is decided long
 * before. vLLMs of 2025 on other GPUs agree: an H100's 8B is short by 0.8 ms a step, an A100's by
 * 1.0, gpt-oss-120b on B200 by 1 ms on any number of GPUs. */
#define KV_VLLM_BETWEEN_STEPS_SECONDS 0.8e-3

/* Every scheduler, NULL-terminated. */
extern const KvSchedulerClass *const kv_schedulers[];
const KvSchedulerClass *kv_scheduler_find(const char *name);

#endif
