#include "reference/host/staging.h"

#include <math.h>

enum { FETCHED = 1, STORED = 2 };

guint32 kv_host_staging_resident(double share, guint32 n_blocks) {
  return (guint32)floor((double)n_blocks * share);
}

void kv_host_staging_init(KvHostStaging *s, double share, guint32 n_blocks) {
  guint32 resident = kv_host_staging_resident(share, n_blocks);
  *s = (KvHostStaging){.share = share,
                       .resident = resident,
                       .away = n_blocks - resident,
                       .table = g_array_new(FALSE, FALSE, sizeof(guint32)),
                       .fetched = g_array_new(FALSE, FALSE, sizeof(KvHostStaged)),
                       .stored = g_array_new(FALSE, FALSE, sizeof(KvHostStaged)),
                       .homes = g_array_new(FALSE, FALSE, sizeof(guint32)),
                       .uses = g_array_new(FALSE, FALSE, sizeof(guint8)),
                       .places = g_new0(guint32, n_blocks - resident)};
}

void kv_host_staging_clear(KvHostStaging *s) {
  GArray *arrays[] = {s->table, s->fetched, s->stored, s->homes, s->uses};
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    if (arrays[i])
      g_array_unref(arrays[i]);
  g_free(s->places);
  *s = (KvHostStaging){0};
}

gboolean kv_host_staging_home(const KvHostStaging *s, guint32 block, guint32 *index) {
  guint32 before = kv_host_staging_resident(s->share, block);
  gboolean resident = kv_host_staging_resident(s->share, block + 1) > before;
  *index = resident ? before : block - before;
  return resident;
}

/* The place of a block, a new one if the pass has not touched it yet. */
static guint32 place_of(KvHostStaging *s, guint32 home) {
  static const guint8 unused = 0;
  if (s->places[home] == 0) {
    g_array_append_val(s->homes, home);
    g_array_append_val(s->uses, unused);
    s->places[home] = s->homes->len;
  }
  return s->places[home] - 1;
}

static void plan_span(KvHostStaging *s, const KvHostSpan *span, guint block_tokens) {
  guint32 past = span->past - span->dropped, end = past + span->n_tokens;
  gboolean moves = !span->decoding || s->decoding == KV_HOST_DECODING_STAGED;
  for (guint32 first = 0, i = 0; first < end; first += block_tokens, i++) {
    guint32 at;
    if (!kv_host_staging_home(s, span->block_table[i], &at)) {
      guint32 place = place_of(s, at);
      guint8 *use = &g_array_index(s->uses, guint8, place);
      if (moves)
        *use |= (first < past ? FETCHED : 0) | (first + block_tokens > past ? STORED : 0);
      at = s->resident + place;
    }
    g_array_append_val(s->table, at);
  }
}

/* The whole table leads to the place of the last block, which is written to. */
static void plan_elsewhere(KvHostStaging *s, const KvHostSpan *span, guint block_tokens) {
  guint32 last = (span->past - span->dropped) / block_tokens, at;
  at = kv_host_staging_home(s, span->block_table[last], &at) ? at : s->resident + place_of(s, at);
  for (guint32 i = 0; i <= last; i++)
    g_array_append_val(s->table, at);
}

void kv_host_staging_plan(KvHostStaging *s, const KvHostSpan *spans, guint n, guint block_tokens) {
  GArray *arrays[] = {s->table, s->fetched, s->stored, s->uses, s->homes};
  for (guint32 place = 0; place < s->homes->len; place++)
    s->places[g_array_index(s->homes, guint32, place)] = 0;
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_array_set_size(arrays[i], 0);
  for (guint i = 0; i < n; i++)
    if (s->decoding == KV_HOST_DECODING_ELSEWHERE && spans[i].decoding)
      plan_elsewhere(s, &spans[i], block_tokens);
    else
      plan_span(s, &spans[i], block_tokens);
  for (guint32 place = 0; place < s->homes->len; place++) {
    KvHostStaged staged = {g_array_index(s->homes, guint32, place), place};
    guint8 use = g_array_index(s->uses, guint8, place);
    if (use & FETCHED)
      g_array_append_val(s->fetched, staged);
    if (use & STORED)
      g_array_append_val(s->stored, staged);
  }
}
