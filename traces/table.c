#include "traces/table.h"

#include "sim/base/random.h"

enum { SMALLEST = 1024 };

void kv_table_begin(KvTable *table) {
  *table = (KvTable){.slots = g_new0(KvTableSlot, SMALLEST), .n_slots = SMALLEST};
}

void kv_table_clear(KvTable *table) {
  g_clear_pointer(&table->slots, g_free);
  table->n_slots = table->n_used = 0;
}

static KvTableSlot *find(const KvTable *table, guint64 key) {
  gsize mask = table->n_slots - 1, i = kv_random_mix(key) & mask;
  while (table->slots[i].value != 0 && table->slots[i].key != key)
    i = (i + 1) & mask;
  return &table->slots[i];
}

guint64 kv_table_get(const KvTable *table, guint64 key) {
  return find(table, key)->value;
}

static void grow(KvTable *table) {
  KvTable larger = {.slots = g_new0(KvTableSlot, 2 * table->n_slots),
                    .n_slots = 2 * table->n_slots,
                    .n_used = table->n_used};
  for (gsize i = 0; i < table->n_slots; i++)
    if (table->slots[i].value != 0)
      *find(&larger, table->slots[i].key) = table->slots[i];
  g_free(table->slots);
  *table = larger;
}

guint64 *kv_table_at(KvTable *table, guint64 key) {
  KvTableSlot *slot = find(table, key);
  if (slot->value != 0)
    return &slot->value;
  if (4 * (table->n_used + 1) > 3 * table->n_slots) {
    grow(table);
    slot = find(table, key);
  }
  table->n_used++;
  slot->key = key;
  return &slot->value;
}
