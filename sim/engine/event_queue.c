#include "sim/engine/event_queue.h"

struct KvEventQueue {
  guint n;
  double *seconds; /* by source */
  guint *heap;     /* of sources */
  guint *place;    /* of a source in the heap */
};

KvEventQueue *kv_event_queue_new(guint sources) {
  KvEventQueue *queue = g_new0(KvEventQueue, 1);
  queue->n = sources;
  queue->seconds = g_new(double, sources);
  queue->heap = g_new(guint, sources);
  queue->place = g_new(guint, sources);
  for (guint i = 0; i < sources; i++) {
    queue->seconds[i] = G_MAXDOUBLE;
    queue->heap[i] = queue->place[i] = i;
  }
  return queue;
}

void kv_event_queue_free(KvEventQueue *queue) {
  if (!queue)
    return;
  g_free(queue->seconds);
  g_free(queue->heap);
  g_free(queue->place);
  g_free(queue);
}

static gboolean before(const KvEventQueue *queue, guint a, guint b) {
  return queue->seconds[a] != queue->seconds[b] ? queue->seconds[a] < queue->seconds[b] : a < b;
}

static void put(KvEventQueue *queue, guint at, guint source) {
  queue->heap[at] = source;
  queue->place[source] = at;
}

void kv_event_queue_set(KvEventQueue *queue, guint source, double seconds) {
  guint at = queue->place[source];
  queue->seconds[source] = seconds;
  for (; at > 0 && before(queue, source, queue->heap[(at - 1) / 2]); at = (at - 1) / 2)
    put(queue, at, queue->heap[(at - 1) / 2]);
  for (guint child; (child = 2 * at + 1) < queue->n; at = child) {
    if (child + 1 < queue->n && before(queue, queue->heap[child + 1], queue->heap[child]))
      child++;
    if (!before(queue, queue->heap[child], source))
      break;
    put(queue, at, queue->heap[child]);
  }
  put(queue, at, source);
}

double kv_event_queue_next(const KvEventQueue *queue, guint *source) {
  if (queue->n == 0)
    return G_MAXDOUBLE;
  *source = queue->heap[0];
  return queue->seconds[queue->heap[0]];
}
