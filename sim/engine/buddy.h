/* Contiguous reservations: a buddy allocator, as in the Orca variants of the vLLM paper
 * (section 6.1 there).
 *
 * Space is counted in units; a reservation is rounded up to a power of two and lies at a multiple
 * of its size. What cannot be placed for lack of a large enough hole is external fragmentation. The
 * space need not be a power of two: it is the union of the largest buddies that fit.
 */
#ifndef KV_SIM_ENGINE_BUDDY_H
#define KV_SIM_ENGINE_BUDDY_H

#include <glib.h>

typedef struct KvBuddy KvBuddy;

/* With `exact`, units are not rounded and stand one behind another: a static batch is one tensor,
 * all of which is released before the next one is reserved. */
KvBuddy *kv_buddy_new(guint64 units, gboolean exact);
void kv_buddy_free(KvBuddy *buddy);

/* Reserve at least `units` (>= 1); FALSE if no hole is large enough. *start is where it begins. */
gboolean kv_buddy_reserve(KvBuddy *buddy, guint64 units, guint64 *start);
/* Whether a reservation of `units` would succeed now. */
gboolean kv_buddy_fits(const KvBuddy *buddy, guint64 units);
/* Whether it could ever succeed. */
gboolean kv_buddy_can_ever_fit(const KvBuddy *buddy, guint64 units);
void kv_buddy_release(KvBuddy *buddy, guint64 start, guint64 units);

guint64 kv_buddy_free_units(const KvBuddy *buddy);
/* The units that a reservation of `units` really takes. */
guint64 kv_buddy_rounded(guint64 units);

#endif
