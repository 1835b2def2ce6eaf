#include "sim/engine/buddy.h"

enum { MAX_ORDER = 48 };

struct KvBuddy {
  guint64 units, free_units;
  gboolean exact;
  guint largest_order;
  GTree *holes[MAX_ORDER]; /* by order: starts of free holes, lowest address first */
};

static gint compare_starts(gconstpointer a, gconstpointer b) {
  return (a > b) - (a < b);
}

static guint order_of(guint64 units) {
  return units <= 1 ? 0 : 64 - (guint)__builtin_clzll(units - 1);
}

guint64 kv_buddy_rounded(guint64 units) {
  return (guint64)1 << order_of(units);
}

KvBuddy *kv_buddy_new(guint64 units, gboolean exact) {
  KvBuddy *buddy = g_new0(KvBuddy, 1);
  buddy->units = buddy->free_units = units;
  buddy->exact = exact;
  for (guint o = 0; o < MAX_ORDER; o++)
    buddy->holes[o] = g_tree_new(compare_starts);
  guint64 start = 0;
  for (guint o = MAX_ORDER; o-- > 0;) {
    if (units & ((guint64)1 << o)) {
      g_tree_insert(buddy->holes[o], GSIZE_TO_POINTER(start), NULL);
      start += (guint64)1 << o;
      buddy->largest_order = MAX(buddy->largest_order, o);
    }
  }
  return buddy;
}

void kv_buddy_free(KvBuddy *buddy) {
  if (!buddy)
    return;
  for (guint o = 0; o < MAX_ORDER; o++)
    g_tree_unref(buddy->holes[o]);
  g_free(buddy);
}

static guint order_with_hole(const KvBuddy *buddy, guint64 units) {
  guint o = order_of(units);
  while (o < MAX_ORDER && g_tree_nnodes(buddy->holes[o]) == 0)
    o++;
  return o;
}

gboolean kv_buddy_fits(const KvBuddy *buddy, guint64 units) {
  return buddy->exact ? units <= buddy->free_units : order_with_hole(buddy, units) < MAX_ORDER;
}

gboolean kv_buddy_can_ever_fit(const KvBuddy *buddy, guint64 units) {
  return buddy->exact ? units <= buddy->units
                      : buddy->units > 0 && order_of(units) <= buddy->largest_order;
}

gboolean kv_buddy_reserve(KvBuddy *buddy, guint64 units, guint64 *start) {
  guint wanted = order_of(units), o = order_with_hole(buddy, units);
  if (!kv_buddy_fits(buddy, units))
    return FALSE;
  if (buddy->exact) {
    *start = buddy->units - buddy->free_units;
    buddy->free_units -= units;
    return TRUE;
  }
  gpointer hole = g_tree_node_key(g_tree_node_first(buddy->holes[o]));
  g_tree_remove(buddy->holes[o], hole);
  *start = GPOINTER_TO_SIZE(hole);
  while (o-- > wanted) /* the upper half of each split stays free */
    g_tree_insert(buddy->holes[o], GSIZE_TO_POINTER(*start + ((guint64)1 << o)), NULL);
  buddy->free_units -= (guint64)1 << wanted;
  return TRUE;
}

void kv_buddy_release(KvBuddy *buddy, guint64 start, guint64 units) {
  guint o = order_of(units);
  if (buddy->exact) {
    buddy->free_units += units;
    return;
  }
  buddy->free_units += (guint64)1 << o;
  for (; o + 1 < MAX_ORDER; o++) {
    gpointer partner = GSIZE_TO_POINTER(start ^ ((guint64)1 << o));
    if (!g_tree_lookup_extended(buddy->holes[o], partner, NULL, NULL))
      break;
    g_tree_remove(buddy->holes[o], partner);
    start &= ~((guint64)1 << o);
  }
  g_tree_insert(buddy->holes[o], GSIZE_TO_POINTER(start), NULL);
}

guint64 kv_buddy_free_units(const KvBuddy *buddy) {
  return buddy->free_units;
}
