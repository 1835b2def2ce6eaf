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
  gboolean reuses_prefixes; /* looks into the prefix cache; otherwise there is none */
  gboolean async;           /* may run one step ahead (vLLM v1's asynchronous scheduling) */
} KvSchedulerClass;

/* Every scheduler, NULL-terminated. */
extern const KvSchedulerClass *const kv_schedulers[];
const KvSchedulerClass *kv_scheduler_find(const char *name);

#endif
