/* A hash table from 64-bit names to 64-bit numbers, for counting and renumbering blocks and
 * sessions by the million: open addressing in one array of 16 bytes a slot, at most 3/4 full. */
#ifndef KV_TRACES_TABLE_H
#define KV_TRACES_TABLE_H

#include <glib.h>

typedef struct {
  guint64 key, value;
} KvTableSlot;

typedef struct {
  KvTableSlot *slots; /* a slot with value 0 is free */
  gsize n_slots, n_used;
} KvTable;

void kv_table_begin(KvTable *table);
void kv_table_clear(KvTable *table);

/* The number of `key`, or 0 if it has none. */
guint64 kv_table_get(const KvTable *table, guint64 key);

/* Where the number of `key` is: the caller must make it other than 0, which means that there is
 * none. Valid until the next call. */
guint64 *kv_table_at(KvTable *table, guint64 key);

#endif
