/* The event queue: a fixed set of sources, each with the time of its next event.
 *
 * A binary heap indexed by source, so a source's time can be moved in either direction in O(log n).
 * Events at equal times come in the order of the sources' numbers, which makes a run reproducible.
 */
#ifndef KV_SIM_ENGINE_EVENT_QUEUE_H
#define KV_SIM_ENGINE_EVENT_QUEUE_H

#include <glib.h>

typedef struct KvEventQueue KvEventQueue;

/* `sources` sources, none of which has an event. */
KvEventQueue *kv_event_queue_new(guint sources);
void kv_event_queue_free(KvEventQueue *queue);

/* The next event of `source` is at `seconds`; G_MAXDOUBLE: it has none. */
void kv_event_queue_set(KvEventQueue *queue, guint source, double seconds);

/* The earliest event: its source in *source. G_MAXDOUBLE if there is none. */
double kv_event_queue_next(const KvEventQueue *queue, guint *source);

#endif
