#include "reference/host/format.h"

#include <math.h>
#include <string.h>

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  c->budget = (guint)kv_technique_value(use, "budget");
  c->window = (guint)kv_technique_value(use, "window_size");
  c->kernel = (guint)kv_technique_value(use, "kernel_size");
  c->max_pooling = kv_technique_value(use, "pooling") == 1.0;
  if (kv_technique_value(use, "impl") == 1.0)
    return kv_host_format_refuse(error, use->technique->id, "impl=released", "impl=ideal");
  return TRUE;
}

static guint32 kept_of(const KvHostCompression *c, guint32 prompt_tokens) {
  return MIN(prompt_tokens, c->budget);
}

/* --- arithmetic ------------------------------------------------------------------------------ */

static float dot(const float *x, const float *y, guint d) {
  float sum = 0.0f;
  for (guint i = 0; i < d; i++)
    sum += x[i] * y[i];
  return sum;
}

/* Add one query's attention on the tokens before the window. It sees `visible` tokens. */
static void add_votes(float *votes, const float *q, const KvHostPages *pages,
                      const guint32 *block_table, guint head, guint32 visible, guint32 voted,
                      float *scores) {
  float largest = -INFINITY, total = 0.0f, scale = 1.0f / sqrtf((float)pages->head_dim);
  for (guint32 j = 0; j < visible; j++) {
    scores[j] = scale * dot(q, kv_host_slot(pages, block_table, head, j) + pages->key_offset,
                            pages->head_dim);
    largest = MAX(largest, scores[j]);
  }
  for (guint32 j = 0; j < visible; j++)
    total += scores[j] = expf(scores[j] - largest);
  for (guint32 j = 0; j < voted; j++)
    votes[j] += scores[j] / total;
}

void kv_host_snapkv_vote(float *votes, const float *q, const KvHostPages *pages,
                         const guint32 *block_table, guint32 prompt, guint n_heads, guint window,
                         float *scores) {
  guint group = n_heads / pages->n_kv_heads;
  gsize voted = prompt - window;
  memset(votes, 0, pages->n_kv_heads * voted * sizeof *votes);
  for (guint w = 0; w < window; w++)
    for (guint h = 0; h < n_heads; h++, q += pages->head_dim)
      add_votes(votes + h / group * voted, q, pages, block_table, h / group,
                prompt - window + w + 1, (guint32)voted, scores);
}

static float pooled(const KvHostCompression *c, const float *votes, guint32 n, guint32 i) {
  guint reach = c->kernel / 2;
  guint32 first = i > reach ? i - reach : 0, last = MIN(n - 1, i + reach);
  float sum = 0.0f, largest = 0.0f;
  for (guint32 j = first; j <= last; j++) {
    sum += votes[j];
    largest = MAX(largest, votes[j]);
  }
  return c->max_pooling ? largest : sum / (float)c->kernel;
}

void kv_host_snapkv_select(const KvHostCompression *c, guint32 *kept, const float *votes,
                           guint32 prompt) {
  guint32 n = prompt - c->window, best = c->budget - c->window;
  g_autofree KvHostCandidate *candidates = g_new(KvHostCandidate, n);
  for (guint32 i = 0; i < n; i++)
    candidates[i] = (KvHostCandidate){pooled(c, votes, n, i), i};
  qsort(candidates, n, sizeof *candidates, kv_host_by_votes);
  for (guint32 i = 0; i < best; i++)
    kept[i] = candidates[i].position;
  qsort(kept, best, sizeof *kept, kv_host_by_position);
  for (guint32 i = 0; i < c->window; i++)
    kept[best + i] = n + i;
}

void kv_host_snapkv_compact(const KvHostCompression *c, const KvHostPages *pages,
                            const guint32 *block_table, const guint32 *kept, guint32 prompt,
                            guint32 tokens) {
  gsize bytes = pages->head_dim * sizeof(float);
  for (guint h = 0; h < pages->n_kv_heads; h++, kept += c->budget)
    for (guint32 slot = 0; slot < c->budget + tokens - prompt; slot++) {
      /* Ascending, and never from a lower slot: what is overwritten was moved before. */
      guint32 from = slot < c->budget ? kept[slot] : prompt + slot - c->budget;
      float *to = kv_host_slot(pages, block_table, h, slot);
      const float *source = kv_host_slot(pages, block_table, h, from);
      memmove(to + pages->key_offset, source + pages->key_offset, bytes);
      memmove(to + pages->value_offset, source + pages->value_offset, bytes);
    }
}

/* --- in a pass ------------------------------------------------------------------------------- */

/* The sequence's queries of its prompt's last tokens: of layer l, q[window][H][d] at windows[l].
 * Made zeroed where it is new. */
static float **window_of(const KvHostFormatLayer *at, guint64 owner) {
  const KvHostWeights *weights = at->weights;
  float **window = g_hash_table_lookup(at->cache->owners, &owner);
  if (window)
    return window;
  gsize floats = 0, pointers = weights->n_layers * sizeof(float *);
  for (guint l = 0; l < weights->n_layers; l++)
    floats += (gsize)at->cache->compression.window * weights->layers[l].attention.n_heads *
              weights->layers[l].attention.head_dim;
  window = g_malloc0(pointers + floats * sizeof(float));
  float *next = (float *)(void *)((char *)window + pointers);
  for (guint l = 0; l < weights->n_layers; l++) {
    window[l] = next;
    next += (gsize)at->cache->compression.window * weights->layers[l].attention.n_heads *
            weights->layers[l].attention.head_dim;
  }
  g_hash_table_insert(at->cache->owners, g_memdup2(&owner, sizeof owner), window);
  return window;
}

float **kv_host_window_keep(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  float **window = window_of(at, span->owner);
  gsize width = (gsize)at->n_heads * at->pages->head_dim;
  const float *q = at->q + row * width;
  guint32 first = span->prompt_tokens - MIN(at->cache->compression.window, span->prompt_tokens);
  for (guint32 t = 0; t < span->n_tokens; t++)
    if (span->past + t >= first && span->past + t < span->prompt_tokens)
      memcpy(window[at->layer] + (span->past + t - first) * width, q + t * width,
             width * sizeof *q);
  return window;
}

/* Cut the prompt's tokens of this layer to the budget. */
static void cut_prompt(const KvHostFormatLayer *at, const KvHostSpan *span, const float *window) {
  const KvHostCompression *c = &at->cache->compression;
  const KvHostPages *pages = at->pages;
  gsize voted = span->prompt_tokens - c->window;
  g_autofree float *votes = g_new(float, pages->n_kv_heads *voted);
  g_autofree guint32 *kept = g_new(guint32, (gsize)pages->n_kv_heads * c->budget);
  kv_host_snapkv_vote(votes, window, pages, span->block_table, span->prompt_tokens, at->n_heads,
                      c->window, at->scores);
  for (guint h = 0; h < pages->n_kv_heads; h++)
    kv_host_snapkv_select(c, kept + (gsize)h * c->budget, votes + h * voted, span->prompt_tokens);
  kv_host_snapkv_compact(c, pages, span->block_table, kept, span->prompt_tokens,
                         span->past + span->n_tokens);
}

static void attended(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  if (span->decoding || span->prompt_tokens <= at->cache->compression.budget)
    return;
  float **window = kv_host_window_keep(at, span, row);
  if (!span->last)
    return;
  cut_prompt(at, span, window[at->layer]);
  if (at->layer + 1 == at->weights->n_layers)
    kv_host_cache_forget(at->cache, span->owner);
}

const KvHostFormatClass kv_host_format_snapkv = {.technique = "snapkv",
                                                 .init = init,
                                                 .check = kv_host_format_check_full,
                                                 .kept = kept_of,
                                                 .attended = attended};
