/* infinigen: Lee et al., "InfiniGen" (2024). All blocks lie in host memory, and come to the GPU a
 * layer at a time for prompts alone. To a decoding token's KV heads are brought the tokens that
 * they are likely to attend to, which the layer before guesses from its own input (speculation.h);
 * they stand side by side in the staging area, each head's own, in the order of their positions,
 * and the token itself behind them. The first layer has none before it, and fetches everything. */
#include <math.h>
#include <string.h>

#include "reference/host/format.h"
#include "reference/host/speculation.h"
#include "reference/host/streamed.h"

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  if (kv_technique_value(use, "capacity") < 1.0)
    return kv_host_format_refuse(error, "infinigen", "a pool that does not hold all tokens",
                                 "capacity=1");
  if (engine->preemption == KV_PREEMPT_SWAP)
    return kv_host_format_refuse(error, "infinigen", "swapping of blocks that lie in host memory",
                                 "engine.preemption=recompute");
  c->column_share = kv_technique_value(use, "partial_weight_ratio");
  c->most_share = kv_technique_value(use, "max_num_kv");
  c->alpha = (float)kv_technique_value(use, "alpha");
  c->overlap = kv_technique_value(use, "overlap") != 0.0;
  c->window = KV_HOST_SPECULATION_WINDOW;
  return TRUE;
}

/* --- what is kept ---------------------------------------------------------------------------- */

/* What a layer brings to a decoding sequence: of each KV head the n tokens chosen[Hkv][n]; NULL:
 * all that there are. */
typedef struct {
  guint32 n, *chosen;
} Fetch;

typedef struct {
  KvHostStreamed streamed; /* first: streamed.h */
  float *floats;           /* partial keys, in blocks by the engine's ids */
  KvHostPages *partial;    /* [layers], of them; heads are as long as their columns */
  float **directions;      /* [layers]; NULL until the sample was seen */
  GHashTable *columns;     /* of each sequence, [layers][widest] */
  gsize widest;            /* columns of all heads of a layer */
  guint n_layers, n_spans;
  Fetch *fetches[2]; /* of even and odd layers, by span of the pass */
} Infinigen;

static void clear_fetches(Infinigen *x) {
  for (guint side = 0; side < 2; side++) {
    for (guint s = 0; s < x->n_spans; s++)
      g_free(x->fetches[side][s].chosen);
    g_clear_pointer(&x->fetches[side], g_free);
  }
  x->n_spans = 0;
}

static void infinigen_free(gpointer state) {
  Infinigen *x = state;
  clear_fetches(x);
  kv_host_streamed_clear(&x->streamed);
  for (guint l = 0; l < x->n_layers; l++)
    g_free(x->directions[l]);
  g_free(x->directions);
  g_free(x->partial);
  g_free(x->floats);
  g_hash_table_unref(x->columns);
  g_free(x);
}

/* The first layer has no partial keys. */
static Infinigen *infinigen_new(const KvHostCache *cache) {
  Infinigen *x = g_new0(Infinigen, 1);
  gsize block_floats = 0;
  kv_host_streamed_init(&x->streamed, cache, 0.0, KV_HOST_DECODING_GATHERED);
  x->n_layers = cache->n_layers;
  x->directions = g_new0(float *, x->n_layers);
  x->partial = g_new0(KvHostPages, x->n_layers);
  for (guint l = 1; l < x->n_layers; l++) {
    KvHostPages *pages = &x->partial[l];
    *pages = cache->layers[l];
    pages->head_dim =
        kv_host_speculation_columns(cache->compression.column_share, cache->layers[l].head_dim);
    pages->key_offset = block_floats;
    block_floats += (gsize)pages->n_kv_heads * pages->block_tokens * pages->head_dim;
    x->widest = MAX(x->widest, (gsize)pages->n_kv_heads * pages->head_dim);
  }
  x->floats = g_new0(float, cache->hbm.n_blocks *block_floats);
  for (guint l = 1; l < x->n_layers; l++) {
    x->partial[l].pool = x->floats + x->partial[l].key_offset;
    x->partial[l].key_offset = 0;
    x->partial[l].block_floats = block_floats;
  }
  x->columns = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
  return x;
}

static void forget(KvHostCache *cache, guint64 owner) {
  const Infinigen *x = cache->state;
  if (x)
    g_hash_table_remove(x->columns, &owner);
}

/* The sequence's columns of a layer, [Hkv][columns]; NULL if its prompt was not finished. */
static guint32 *columns_of(const Infinigen *x, guint64 owner, guint layer) {
  guint32 *columns = g_hash_table_lookup(x->columns, &owner);
  return columns ? columns + layer * x->widest : NULL;
}

/* --- before and after a pass ----------------------------------------------------------------- */

static void begin(KvHostCache *cache, KvHostSpan *spans, guint n) {
  if (!cache->state) {
    cache->state = infinigen_new(cache);
    cache->free_state = infinigen_free;
  }
  Infinigen *x = cache->state;
  kv_host_streamed_begin(cache, spans, n);
  x->n_spans = n;
  for (guint side = 0; side < 2; side++)
    x->fetches[side] = g_new0(Fetch, n);
  for (guint s = 0; s < n; s++)
    x->fetches[0][s].n = spans[s].past;
}

static void end(KvHostCache *cache, KvHostSpan *spans, guint n) {
  clear_fetches(cache->state);
  kv_host_streamed_end(cache, spans, n);
}

/* --- speculation ----------------------------------------------------------------------------- */

/* The next layer's queries of a row, from this layer's input. */
static float *next_queries(const KvHostFormatLayer *at, gsize row) {
  const KvHostWeights *w = at->weights;
  const KvHostLayer *next = &w->layers[at->layer + 1];
  guint H = next->attention.n_heads, d = next->attention.head_dim;
  float *q = g_new(float, (gsize)H *d);
  kv_host_linear(q, at->in + row * w->hidden, next->query, next->query_bias, 1, w->hidden, H * d);
  if (next->query_norm)
    kv_host_rms_norm(q, q, next->query_norm, w->epsilon, H, d);
  if (!w->positions) {
    g_autofree float *cosine = g_new(float, d / 2), *sine = g_new(float, d / 2);
    kv_host_rotary_angles(cosine, sine, at->positions[row], d, &w->rotary);
    kv_host_rotary(q, cosine, sine, H, d);
  }
  return q;
}

/* What the next layer brings to the span, whose only row is `row`; FLOPs of finding it. */
static double speculate(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row,
                        Fetch *fetch) {
  const KvHostCompression *c = &at->cache->compression;
  const Infinigen *x = at->cache->state;
  guint layer = at->layer + 1, H = at->weights->layers[layer].attention.n_heads;
  guint d = at->cache->layers[layer].head_dim;
  const KvHostPages *partial = &x->partial[layer];
  const guint32 *table = kv_host_streamed_table(at->cache, span);
  const guint32 *columns = columns_of(x, span->owner, layer);
  guint32 n = span->past, kv = partial->n_kv_heads, group = H / kv, count = partial->head_dim;
  g_autofree float *q = next_queries(at, row), *turned = g_new(float, (gsize)group *count);
  g_autofree float *relative = g_new(float, (gsize)kv *n);
  guint64 counted = 0;
  fetch->n = n;
  g_return_val_if_fail(columns, 0.0); /* then everything */
  for (guint h = 0; h < kv; h++) {
    for (guint g = 0; g < group; g++)
      kv_host_speculation_project(turned + (gsize)g * count, q + ((gsize)h * group + g) * d,
                                  x->directions[layer] + (gsize)h * d * d,
                                  columns + (gsize)h * count, count, d);
    counted += kv_host_speculation_score(relative + (gsize)h * n, turned, partial, table, h, group,
                                         n, 1.0f / sqrtf((float)d), c->alpha, at->scores);
  }
  fetch->n = kv_host_speculation_tokens(counted, kv, kv_host_speculation_most(c->most_share, n));
  if (fetch->n < n)
    fetch->chosen = g_new(guint32, (gsize)kv * fetch->n);
  for (guint h = 0; h < kv && fetch->chosen; h++)
    kv_host_speculation_choose(fetch->chosen + (gsize)h * fetch->n, relative + (gsize)h * n, n,
                               fetch->n);
  return 2.0 * H * ((double)at->weights->hidden * d + (double)count * (d + (double)n));
}

static void look_ahead(const KvHostFormatLayer *at, double *flops) {
  Infinigen *x = at->cache->state;
  Fetch *fetches = x->fetches[(at->layer + 1) % 2];
  gsize row = 0;
  if (at->layer + 1 == x->n_layers)
    return;
  for (guint s = 0; s < x->n_spans; row += x->streamed.spans[s++].n_tokens) {
    g_free(fetches[s].chosen);
    fetches[s] = (Fetch){0};
    if (x->streamed.spans[s].decoding)
      *flops += speculate(at, &x->streamed.spans[s], row, &fetches[s]);
  }
}

/* --- attention ------------------------------------------------------------------------------- */

static const Fetch *fetch_of(const KvHostFormatLayer *at, const KvHostSpan *span) {
  const Infinigen *x = at->cache->state;
  return &x->fetches[at->layer % 2][span - x->streamed.spans];
}

/* Partial keys of the tokens from .. to - 1, that stand in `pages` under `table`. */
static void store_partial(const KvHostFormatLayer *at, const KvHostSpan *span,
                          const KvHostPages *pages, const guint32 *table, guint32 from,
                          guint32 to) {
  const Infinigen *x = at->cache->state;
  const KvHostPages *partial = &x->partial[at->layer];
  const guint32 *columns = columns_of(x, span->owner, at->layer);
  gsize d = pages->head_dim;
  g_return_if_fail(columns);
  for (guint h = 0; h < pages->n_kv_heads; h++)
    for (guint32 t = from; t < to; t++)
      kv_host_speculation_project(
          kv_host_slot(partial, kv_host_streamed_table(at->cache, span), h, t),
          kv_host_slot(pages, table, h, t) + pages->key_offset,
          x->directions[at->layer] + h * d * d, columns + (gsize)h * partial->head_dim,
          partial->head_dim, pages->head_dim);
}

/* Of a decoding token: what it attends to comes from host memory, its own keys and values stand
 * behind that, and go there. */
static gboolean write_token(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostPages *pages = at->pages, away = kv_host_streamed_away(at->cache, at->layer);
  gsize d = pages->head_dim, own = row * pages->n_kv_heads * d, bytes = d * sizeof(float);
  if (!span->decoding)
    return FALSE;
  const Fetch *fetch = fetch_of(at, span);
  const guint32 *table = kv_host_streamed_table(at->cache, span);
  for (guint h = 0; h < pages->n_kv_heads; h++)
    for (guint32 i = 0; i < fetch->n; i++) {
      guint32 from = fetch->chosen ? fetch->chosen[(gsize)h * fetch->n + i] : i;
      float *to = kv_host_slot(pages, span->block_table, h, i);
      const float *source = kv_host_slot(&away, table, h, from);
      memcpy(to + pages->key_offset, source + pages->key_offset, bytes);
      memcpy(to + pages->value_offset, source + pages->value_offset, bytes);
    }
  kv_host_pages_write(pages, span->block_table, fetch->n, at->k + own, at->v + own);
  kv_host_pages_write(&away, table, span->past, at->k + own, at->v + own);
  if (at->layer > 0)
    store_partial(at, span, &away, table, span->past, span->past + 1);
  return TRUE;
}

static gboolean attend(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  gsize queries = row * at->n_heads * at->pages->head_dim;
  if (!span->decoding)
    return FALSE;
  kv_host_attention(at->out + queries, at->q + queries, at->pages, span->block_table,
                    fetch_of(at, span)->n, 1, at->n_heads, 0, at->scores);
  return TRUE;
}

static guint32 tokens_read(const KvHostFormatLayer *at, const KvHostSpan *span) {
  return fetch_of(at, span)->n + 1;
}

/* --- a prompt -------------------------------------------------------------------------------- */

/* The first prompt that is finished is the sample. */
static void calibrate(const KvHostFormatLayer *at, const KvHostSpan *span, const float *queries,
                      guint n_queries) {
  Infinigen *x = at->cache->state;
  const KvHostPages *pages = at->pages;
  gsize d = pages->head_dim, kv = pages->n_kv_heads, n = span->past + span->n_tokens;
  g_autofree float *keys = g_new(float, n *kv *d);
  for (gsize t = 0; t < n; t++)
    for (guint h = 0; h < kv; h++)
      memcpy(keys + (t * kv + h) * d,
             kv_host_slot(pages, span->block_table, h, (guint32)t) + pages->key_offset,
             d * sizeof *keys);
  const KvHostSample sample = {.queries = queries,
                               .keys = keys,
                               .n_queries = n_queries,
                               .n_keys = (guint)n,
                               .n_heads = at->n_heads,
                               .n_kv_heads = pages->n_kv_heads,
                               .head_dim = pages->head_dim};
  x->directions[at->layer] = g_new(float, kv *d *d);
  kv_host_speculation_calibrate(x->directions[at->layer], &sample);
}

static void choose_columns(const KvHostFormatLayer *at, guint64 owner, const float *queries,
                           guint n_queries) {
  const Infinigen *x = at->cache->state;
  const KvHostPages *pages = at->pages;
  gsize d = pages->head_dim, group = at->n_heads / pages->n_kv_heads;
  guint count = x->partial[at->layer].head_dim;
  guint32 *columns = columns_of(x, owner, at->layer);
  if (!columns) {
    g_hash_table_insert(x->columns, g_memdup2(&owner, sizeof owner),
                        g_new0(guint32, x->n_layers * x->widest));
    columns = columns_of(x, owner, at->layer);
  }
  for (guint h = 0; h < pages->n_kv_heads; h++)
    kv_host_speculation_choose_columns(
        columns + (gsize)h * count, x->directions[at->layer] + h * d * d, queries + h * group * d,
        at->n_heads * d, n_queries, (guint)group, pages->head_dim, count);
}

static void attended(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const Infinigen *x = at->cache->state;
  guint n_queries = MIN(at->cache->compression.window, span->prompt_tokens);
  if (span->decoding || at->layer == 0)
    return;
  const float *queries = kv_host_window_keep(at, span, row)[at->layer];
  if (!span->last)
    return;
  if (!x->directions[at->layer])
    calibrate(at, span, queries, n_queries);
  choose_columns(at, span->owner, queries, n_queries);
  store_partial(at, span, at->pages, span->block_table, 0, span->past + span->n_tokens);
  if (at->layer + 1 == x->n_layers) /* the window is of no more use */
    g_hash_table_remove(at->cache->owners, &span->owner);
}

const KvHostFormatClass kv_host_format_infinigen = {.technique = "infinigen",
                                                    .init = init,
                                                    .check = kv_host_format_check_full,
                                                    .look_ahead = look_ahead,
                                                    .write = write_token,
                                                    .attend = attend,
                                                    .tokens_read = tokens_read,
                                                    .attended = attended,
                                                    .begin = begin,
                                                    .end = end,
                                                    .enter = kv_host_streamed_enter,
                                                    .leave = kv_host_streamed_leave,
                                                    .forget = forget};
