/* What an instance tells about itself while it runs.
 *
 * The engine knows no metrics: it reports batches, tokens and moves to an observer, in the order in
 * which they happen. sim/engine/metrics.c is one.
 */
#ifndef KV_SIM_ENGINE_OBSERVER_H
#define KV_SIM_ENGINE_OBSERVER_H

#include <glib.h>

#include "sim/engine/executor.h"
#include "sim/engine/scheduler.h"
#include "sim/engine/sequence.h"

typedef struct KvObserver KvObserver;

typedef struct {
  /* The batch is closed: its cost, start and end are known; its sequences have not moved on yet. */
  void (*batch)(KvObserver *observer, const KvInstance *instance, const KvBatch *batch);
  /* The sequence has its first token, at first_token_seconds. */
  void (*first_token)(KvObserver *observer, const KvSequence *sequence);
  /* A preempted sequence's next token has come at last: one inter-token latency of so many seconds.
   */
  void (*stalled_token)(KvObserver *observer, double seconds);
  /* The sequence has its last token, at last_token_seconds. */
  void (*finished)(KvObserver *observer, const KvSequence *sequence);
  void (*preempted)(KvObserver *observer, guint64 recomputed_tokens, double now);
  /* A copy between tiers has begun. */
  void (*moved)(KvObserver *observer, const KvCopy *copy, double now);
  /* A prompt's cache has come from the instance that computed it: pulled_seconds and now tell how
   * long it took, first_token_seconds since when it waited. */
  void (*pulled)(KvObserver *observer, const KvSequence *sequence, double bytes, double now);
} KvObserverClass;

struct KvObserver {
  const KvObserverClass *class;
};

#endif
