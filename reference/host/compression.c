#include "reference/host/compression.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"

/* --- what is executed ------------------------------------------------------------------------ */

static gboolean refuse(GError **error, const char *id, const char *what, const char *expected) {
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%s: %s, which the real executors do not carry out, expected %s", id, what, expected);
  return FALSE;
}

static gboolean init_kivi(KvHostCompression *c, const KvTechniqueUse *use,
                          const KvEngineConfig *engine, GError **error) {
  c->format = KV_HOST_KIVI;
  c->bits = kv_technique_value(use, "bits") == 0.0 ? 2 : 4;
  c->group = (guint)kv_technique_value(use, "G");
  c->residual = (guint)kv_technique_value(use, "R");
  if (kv_technique_value(use, "impl") == 1.0)
    return refuse(error, "kivi", "impl=released", "impl=ideal");
  if (engine->block_tokens % c->group)
    return refuse(error, "kivi", "engine.block_tokens is not a multiple of G",
                  "engine.block_tokens=32 (or as large as G)");
  if (engine->prefix_caching)
    return refuse(error, "kivi", "engine.prefix_caching=true", "engine.prefix_caching=false");
  return TRUE;
}

static gboolean init_snapkv(KvHostCompression *c, const KvTechniqueUse *use, GError **error) {
  c->format = KV_HOST_SNAPKV;
  c->budget = (guint)kv_technique_value(use, "budget");
  c->window = (guint)kv_technique_value(use, "window_size");
  c->kernel = (guint)kv_technique_value(use, "kernel_size");
  c->max_pooling = kv_technique_value(use, "pooling") == 1.0;
  if (kv_technique_value(use, "impl") == 1.0)
    return refuse(error, "snapkv", "impl=released", "impl=ideal");
  return TRUE;
}

static gboolean init_quest(KvHostCompression *c, const KvTechniqueUse *use,
                           const KvEngineConfig *engine, GError **error) {
  guint page = (guint)kv_technique_value(use, "page_size");
  c->format = KV_HOST_QUEST;
  c->pages = (guint)kv_technique_value(use, "token_budget") / page;
  c->dense_layers = (guint)kv_technique_value(use, "skip_layers");
  if (kv_technique_value(use, "impl") == 1.0)
    return refuse(error, "quest", "impl=released", "impl=ideal");
  if (engine->block_tokens != page)
    return refuse(error, "quest", "a page_size that is not engine.block_tokens", "both equal");
  return TRUE;
}

static gboolean check_layers(const KvHostCompression *c, const char *id, const KvModel *model,
                             GError **error) {
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *a = &model->groups[g].attention;
    if (model->groups[g].count == 0)
      continue;
    if (a->kind == KV_ATTENTION_LATENT)
      return refuse(error, id, "a cache of latents in another form", "bf16 latents");
    if (a->kind != KV_ATTENTION_FULL && c->format != KV_HOST_FP8)
      return refuse(error, id, "a layer without full attention", "full attention in every layer");
    if (c->format == KV_HOST_KIVI && a->head_dim % c->group)
      return refuse(error, id, "heads that are not a multiple of G", "a smaller G");
  }
  return TRUE;
}

gboolean kv_host_compression_init(KvHostCompression *c, const KvStack *stack, const KvModel *model,
                                  KvDtype cache_dtype, const KvEngineConfig *engine,
                                  GError **error) {
  const char *id = NULL;
  *c = (KvHostCompression){0};
  if (cache_dtype == KV_DTYPE_FP8) {
    c->format = KV_HOST_FP8;
    id = "precision.cache=fp8";
  } else if (cache_dtype != KV_DTYPE_BF16 && cache_dtype != KV_DTYPE_FP16 &&
             cache_dtype != KV_DTYPE_FP32) {
    return refuse(error, "precision.cache", kv_dtype_names[cache_dtype], "bf16 or fp8");
  }
  for (guint i = 0; i < stack->uses->len; i++) {
    const KvTechniqueUse *use = &g_array_index(stack->uses, KvTechniqueUse, i);
    if (strcmp(use->technique->id, "mla") == 0 && kv_technique_value(use, "kv_bits") < 16.0)
      return refuse(error, "mla", "kv_bits below 16", "kv_bits=16");
    gboolean kivi = strcmp(use->technique->id, "kivi") == 0;
    gboolean quest = strcmp(use->technique->id, "quest") == 0;
    if (!kivi && !quest && strcmp(use->technique->id, "snapkv") != 0)
      continue;
    if (c->format != KV_HOST_EXACT)
      return refuse(error, use->technique->id, "a second change of the cache", "one of them alone");
    id = use->technique->id;
    if (!(kivi    ? init_kivi(c, use, engine, error)
          : quest ? init_quest(c, use, engine, error)
                  : init_snapkv(c, use, error)))
      return FALSE;
  }
  return c->format == KV_HOST_EXACT || check_layers(c, id, model, error);
}

guint32 kv_host_compression_dropped(const KvHostCompression *c, guint32 prompt_tokens) {
  return c->format == KV_HOST_SNAPKV && prompt_tokens > c->budget ? prompt_tokens - c->budget : 0;
}

guint32 kv_host_kivi_packed_keys(const KvHostCompression *c, guint32 n) {
  return n / c->residual * c->residual;
}

guint32 kv_host_kivi_packed_values(const KvHostCompression *c, guint32 n) {
  return n > c->residual ? n - c->residual : 0;
}

/* --- small floats ---------------------------------------------------------------------------- */

/* x in a format with that many bits after the point and that smallest exponent. */
static float round_to(float x, int mantissa_bits, int lowest_exponent, float largest) {
  int exponent;
  if (!isfinite(x) || x == 0.0f)
    return isinf(x) ? copysignf(largest, x) : x;
  (void)frexpf(x, &exponent); /* |x| in [2^(exponent - 1), 2^exponent) */
  int unit = MAX(exponent - 1, lowest_exponent) - mantissa_bits;
  float rounded = ldexpf(rintf(ldexpf(x, -unit)), unit);
  return fabsf(rounded) > largest ? copysignf(largest, x) : rounded;
}

float kv_host_round_e4m3(float x) {
  return round_to(x, 3, -6, 448.0f);
}

float kv_host_round_fp16(float x) {
  return round_to(x, 10, -14, 65504.0f);
}

/* --- kivi ------------------------------------------------------------------------------------ */

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

/* The head's key (its value `value` floats later) of the token in that slot. */
static float *slot_of(const KvHostPages *pages, const guint32 *block_table, guint head,
                      guint32 slot) {
  return pages->pool + block_table[slot / pages->block_tokens] * pages->block_floats +
         ((gsize)head * pages->block_tokens + slot % pages->block_tokens) * pages->head_dim;
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
          column[j] = slot_of(pages, block_table, h, t + j)[pages->key_offset + i];
        kv_host_kivi_group(column, 1, c->group, c->bits, &scale, &minimum, NULL);
        for (guint j = 0; j < c->group; j++)
          slot_of(pages, block_table, h, t + j)[pages->key_offset + i] = column[j];
      }
}

void kv_host_kivi_pack_values(const KvHostCompression *c, const KvHostPages *pages,
                              const guint32 *block_table, guint32 from, guint32 to) {
  float scale, minimum;
  for (guint h = 0; h < pages->n_kv_heads; h++)
    for (guint32 t = from; t < to; t++)
      for (guint i = 0; i < pages->head_dim; i += c->group)
        kv_host_kivi_group(slot_of(pages, block_table, h, t) + pages->value_offset + i, 1, c->group,
                           c->bits, &scale, &minimum, NULL);
}

/* --- snapkv ---------------------------------------------------------------------------------- */

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
    scores[j] =
        scale * dot(q, slot_of(pages, block_table, head, j) + pages->key_offset, pages->head_dim);
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

typedef struct {
  float votes;
  guint32 position;
} Candidate;

static int by_votes(const void *a, const void *b) {
  const Candidate *x = a, *y = b;
  return x->votes != y->votes ? (x->votes < y->votes ? 1 : -1)
                              : (x->position > y->position) - (x->position < y->position);
}

static int by_position(const void *a, const void *b) {
  guint32 x = *(const guint32 *)a, y = *(const guint32 *)b;
  return (x > y) - (x < y);
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
  g_autofree Candidate *candidates = g_new(Candidate, n);
  for (guint32 i = 0; i < n; i++)
    candidates[i] = (Candidate){pooled(c, votes, n, i), i};
  qsort(candidates, n, sizeof *candidates, by_votes);
  for (guint32 i = 0; i < best; i++)
    kept[i] = candidates[i].position;
  qsort(kept, best, sizeof *kept, by_position);
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
      float *to = slot_of(pages, block_table, h, slot);
      const float *source = slot_of(pages, block_table, h, from);
      memmove(to + pages->key_offset, source + pages->key_offset, bytes);
      memmove(to + pages->value_offset, source + pages->value_offset, bytes);
    }
}

/* --- quest ----------------------------------------------------------------------------------- */

/* The most that a key of the page could score with one of the queries. */
static float page_bound(const float *q, const KvHostPages *pages, const guint32 *block_table,
                        guint head, guint group, guint32 page) {
  guint d = pages->head_dim;
  const float *keys =
      slot_of(pages, block_table, head, page * pages->block_tokens) + pages->key_offset;
  float most = -INFINITY;
  for (guint h = 0; h < group; h++, q += d) {
    float bound = 0.0f;
    for (guint i = 0; i < d; i++) {
      float low = keys[i], high = keys[i];
      for (guint t = 1; t < pages->block_tokens; t++) {
        low = MIN(low, keys[t * d + i]);
        high = MAX(high, keys[t * d + i]);
      }
      bound += MAX(q[i] * low, q[i] * high);
    }
    most = MAX(most, bound);
  }
  return most;
}

void kv_host_quest_choose(const KvHostCompression *c, guint32 *chosen, const float *q,
                          const KvHostPages *pages, const guint32 *block_table, guint head,
                          guint group, guint32 n) {
  guint32 last = (n - 1) / pages->block_tokens;
  g_autofree Candidate *candidates = g_new(Candidate, last);
  for (guint32 p = 0; p < last; p++)
    candidates[p] = (Candidate){page_bound(q, pages, block_table, head, group, p), p};
  qsort(candidates, last, sizeof *candidates, by_votes);
  for (guint32 i = 0; i + 1 < c->pages; i++)
    chosen[i] = candidates[i].position;
  qsort(chosen, c->pages - 1, sizeof *chosen, by_position);
  chosen[c->pages - 1] = last;
}

void kv_host_quest_attention(const KvHostCompression *c, float *out, const float *q,
                             const KvHostPages *pages, const guint32 *block_table, guint32 n,
                             guint n_heads, float *scores) {
  guint32 last = (n - 1) / pages->block_tokens;
  guint group = n_heads / pages->n_kv_heads;
  gsize width = (gsize)group * pages->head_dim;
  if (last < c->pages) {
    kv_host_attention(out, q, pages, block_table, n - 1, 1, n_heads, 0, scores);
    return;
  }
  g_autofree guint32 *chosen = g_new(guint32, c->pages), *table = g_new(guint32, c->pages);
  for (guint h = 0; h < pages->n_kv_heads; h++, q += width, out += width) {
    KvHostPages one = *pages; /* this head's part of every block */
    one.n_kv_heads = 1;
    one.key_offset += (gsize)h * pages->block_tokens * pages->head_dim;
    one.value_offset += (gsize)h * pages->block_tokens * pages->head_dim;
    kv_host_quest_choose(c, chosen, q, pages, block_table, h, group, n);
    for (guint i = 0; i < c->pages; i++)
      table[i] = block_table[chosen[i]];
    guint32 held = (c->pages - 1) * pages->block_tokens + (n - 1) % pages->block_tokens;
    kv_host_attention(out, q, &one, table, held, 1, group, 0, scores);
  }
}
