#include "reference/host/format.h"

#include <math.h>

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  c->bits = kv_technique_value(use, "bits") == 0.0 ? 2 : 4;
  c->group = (guint)kv_technique_value(use, "G");
  c->residual = (guint)kv_technique_value(use, "R");
  if (kv_technique_value(use, "impl") == 1.0)
    return kv_host_format_refuse(error, "kivi", "impl=released", "impl=ideal");
  if (engine->block_tokens % c->group)
    return kv_host_format_refuse(error, "kivi", "engine.block_tokens is not a multiple of G",
                                 "engine.block_tokens=32 (or as large as G)");
  if (engine->prefix_caching)
    return kv_host_format_refuse(error, "kivi", "engine.prefix_caching=true",
                                 "engine.prefix_caching=false");
  return TRUE;
}

static gboolean check(const KvHostCompression *c, const KvAttention *attention, GError **error) {
  if (!kv_host_format_check_full(c, attention, error))
    return FALSE;
  return attention->head_dim % c->group == 0 ||
         kv_host_format_refuse(error, "kivi", "heads that are not a multiple of G", "a smaller G");
}

/* --- arithmetic ------------------------------------------------------------------------------ */

guint32 kv_host_kivi_packed_keys(const KvHostCompression *c, guint32 n) {
  return n / c->residual * c->residual;
}

guint32 kv_host_kivi_packed_values(const KvHostCompression *c, guint32 n) {
  return n > c->residual ? n - c->residual : 0;
}

void kv_host_kivi_group(float *x, gsize stride, guint n, guint bits, float *scale, float *minimum,
                        guint8 *codes) {
  float low = x[0], high = x[0], most = (float)((1u << bits) - 1);
  for (guint i = 1; i < n; i++) {
    low = MIN(low, x[i * stride]);
    high = MAX(high, x[i * stride]);
  }
  *minimum = kv_host_round_fp16(low);
  *scale = kv_host_round_fp16((high - low) / most);
  for (guint i = 0; i < n; i++) {
    float code = *scale > 0.0f ? rintf((x[i * stride] - *minimum) / *scale) : 0.0f;
    code = MIN(MAX(code, 0.0f), most);
    if (codes)
      codes[i] = (guint8)code;
    x[i * stride] = code * *scale + *minimum;
  }
}

/* A group of tokens need not lie in one block here: it goes through `column`. */
void kv_host_kivi_pack_keys(const KvHostCompression *c, const KvHostPages *pages,
                            const guint32 *block_table, guint32 from, guint32 to) {
  g_autofree float *column = g_new(float, c->group);
  float scale, minimum;
  for (guint h = 0; h < pages->n_kv_heads; h++)
    for (guint32 t = from; t + c->group <= to; t += c->group)
      for (guint i = 0; i < pages->head_dim; i++) {
        for (guint j = 0; j < c->group; j++)
          column[j] = kv_host_slot(pages, block_table, h, t + j)[pages->key_offset + i];
        kv_host_kivi_group(column, 1, c->group, c->bits, &scale, &minimum, NULL);
        for (guint j = 0; j < c->group; j++)
          kv_host_slot(pages, block_table, h, t + j)[pages->key_offset + i] = column[j];
      }
}

void kv_host_kivi_pack_values(const KvHostCompression *c, const KvHostPages *pages,
                              const guint32 *block_table, guint32 from, guint32 to) {
  float scale, minimum;
  for (guint h = 0; h < pages->n_kv_heads; h++)
    for (guint32 t = from; t < to; t++)
      for (guint i = 0; i < pages->head_dim; i += c->group)
        kv_host_kivi_group(kv_host_slot(pages, block_table, h, t) + pages->value_offset + i, 1,
                           c->group, c->bits, &scale, &minimum, NULL);
}

/* --- in a pass ------------------------------------------------------------------------------- */

/* One more token: what leaves the exact rest is packed. */
static void stored(const KvHostFormatLayer *at, const KvHostSpan *span) {
  const KvHostCompression *c = &at->cache->compression;
  guint32 n = span->past + 1;
  if (!span->decoding)
    return;
  kv_host_kivi_pack_keys(c, at->pages, span->block_table, kv_host_kivi_packed_keys(c, n - 1),
                         kv_host_kivi_packed_keys(c, n));
  kv_host_kivi_pack_values(c, at->pages, span->block_table, kv_host_kivi_packed_values(c, n - 1),
                           kv_host_kivi_packed_values(c, n));
}

static void attended(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostCompression *c = &at->cache->compression;
  guint32 n = span->past + span->n_tokens;
  if (!span->last)
    return;
  kv_host_kivi_pack_keys(c, at->pages, span->block_table, 0, kv_host_kivi_packed_keys(c, n));
  kv_host_kivi_pack_values(c, at->pages, span->block_table, 0, kv_host_kivi_packed_values(c, n));
}

const KvHostFormatClass kv_host_format_kivi = {
    .technique = "kivi", .init = init, .check = check, .stored = stored, .attended = attended};
