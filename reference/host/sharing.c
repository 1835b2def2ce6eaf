#include "reference/host/sharing.h"

/* A sequence's blocks that others may have too. */
typedef struct {
  const guint32 *table;
  guint32 blocks;
  guint sequence;
} Prefix;

void kv_host_sharing_init(KvHostSharing *sharing) {
  sharing->runs = g_array_new(FALSE, FALSE, sizeof(KvHostSharedRun));
  sharing->members = g_array_new(FALSE, FALSE, sizeof(guint));
  sharing->shared = g_array_new(FALSE, TRUE, sizeof(guint32));
  sharing->prefixes = g_array_new(FALSE, FALSE, sizeof(Prefix));
  sharing->repeated_tokens = 0;
}

void kv_host_sharing_clear(KvHostSharing *sharing) {
  g_clear_pointer(&sharing->runs, g_array_unref);
  g_clear_pointer(&sharing->members, g_array_unref);
  g_clear_pointer(&sharing->shared, g_array_unref);
  g_clear_pointer(&sharing->prefixes, g_array_unref);
}

/* Blocks from `from` on that both have. */
static guint32 common(const Prefix *a, const Prefix *b, guint32 from) {
  guint32 least = MIN(a->blocks, b->blocks), i = from;
  while (i < least && a->table[i] == b->table[i])
    i++;
  return i;
}

/* By block ids, a prefix before what continues it, equals in the spans' order. */
static gint by_blocks(gconstpointer x, gconstpointer y) {
  const Prefix *a = x, *b = y;
  guint32 i = common(a, b, 0);
  if (i < a->blocks && i < b->blocks)
    return a->table[i] < b->table[i] ? -1 : 1;
  if (a->blocks != b->blocks)
    return a->blocks < b->blocks ? -1 : 1;
  return a->sequence < b->sequence ? -1 : a->sequence > b->sequence;
}

/* The sorted prefixes low .. high - 1, which have `begin` blocks in common: what more they have,
 * then those that go on together. */
static void visit(KvHostSharing *sharing, guint low, guint high, guint32 begin, guint block_tokens,
                  guint over) {
  const Prefix *p = (const Prefix *)(void *)sharing->prefixes->data;
  if (high - low <= over)
    return;
  guint32 end = common(&p[low], &p[high - 1], begin);
  if (end > begin) {
    KvHostSharedRun run = {begin * block_tokens, end * block_tokens, low, high - low};
    g_array_append_val(sharing->runs, run);
    sharing->repeated_tokens += (guint64)(run.members - 1) * (run.end - run.begin);
    for (guint i = low; i < high; i++)
      g_array_index(sharing->shared, guint32, p[i].sequence) = run.end;
  }
  while (low < high && p[low].blocks == end)
    low++;
  while (low < high) {
    guint next = low + 1;
    while (next < high && p[next].table[end] == p[low].table[end])
      next++;
    visit(sharing, low, next, end, block_tokens, over);
    low = next;
  }
}

void kv_host_sharing_find(KvHostSharing *sharing, const KvHostSpan *spans, guint n_spans,
                          guint block_tokens, guint over) {
  g_return_if_fail(over > 0);
  GArray *prefixes = sharing->prefixes;
  g_array_set_size(prefixes, 0);
  g_array_set_size(sharing->runs, 0);
  g_array_set_size(sharing->members, 0);
  g_array_set_size(sharing->shared, 0);
  sharing->repeated_tokens = 0;
  for (guint s = 0; s < n_spans; s++)
    if (spans[s].decoding) {
      Prefix prefix = {spans[s].block_table, spans[s].past / block_tokens, prefixes->len};
      g_array_append_val(prefixes, prefix);
    }
  g_array_set_size(sharing->shared, prefixes->len);
  g_array_sort(prefixes, by_blocks);
  for (guint i = 0; i < prefixes->len; i++)
    g_array_append_val(sharing->members, g_array_index(prefixes, Prefix, i).sequence);
  if (prefixes->len)
    visit(sharing, 0, prefixes->len, 0, block_tokens, over);
}
