#include "reference/host/pyramid.h"

#include <math.h>

/* Tokens that the plan lets the layer keep of a long prompt, window included. */
static double planned(const KvHostCompression *c, guint layer) {
  double b = (double)c->budget - c->window, least = b / c->beta, most = 2.0 * b - least;
  if (c->n_layers < 2)
    return c->budget;
  return c->window + most - layer * (most - least) / (c->n_layers - 1.0);
}

/* Prompts shorter than that have no pyramid. */
static guint32 shortest(const KvHostCompression *c) {
  return 2 * (c->budget - c->window);
}

guint32 kv_host_pyramid_kept(const KvHostCompression *c, guint32 prompt_tokens) {
  double sum = 0.0;
  if (prompt_tokens < shortest(c))
    return MIN(prompt_tokens, c->budget);
  for (guint l = 0; l < c->n_layers; l++)
    sum += fmin(prompt_tokens, planned(c, l));
  return (guint32)ceil(sum / c->n_layers - 1e-6);
}

/* The layer whose whole blocks are furthest below (sign 1) or above (-1) its plan, of equals the
 * first, or the last; above: of those that can give one. */
static guint furthest(const KvHostPyramid *p, const KvHostCompression *c, int sign, guint least) {
  guint best = 0;
  double most = -INFINITY;
  for (guint i = 0; i < p->n_layers; i++) {
    guint l = sign > 0 ? i : p->n_layers - 1 - i;
    double off = sign * ((planned(c, l) - p->rest) / p->block_tokens - p->whole[l]);
    if (off > most && (sign > 0 || p->whole[l] > least)) {
      most = off;
      best = l;
    }
  }
  return best;
}

/* Every layer keeps more than the window. */
static void divide(KvHostPyramid *p, const KvHostCompression *c) {
  guint least = c->window < p->rest ? 0 : (c->window - p->rest) / p->block_tokens + 1;
  gint64 left = (gint64)p->n_layers * p->whole_mean;
  for (guint l = 0; l < p->n_layers; l++) {
    double blocks = floor((planned(c, l) - p->rest) / p->block_tokens + 1e-9);
    p->whole[l] = blocks > least ? (guint)blocks : least;
    left -= p->whole[l];
  }
  for (; left > 0; left--)
    p->whole[furthest(p, c, 1, least)]++;
  for (; left < 0; left++)
    p->whole[furthest(p, c, -1, least)]--;
}

/* A layer's own parts of the first M blocks, then those that the last layers leave. */
static void find_parts(KvHostPyramid *p) {
  guint lender = p->n_layers - 1, lent = p->whole[lender], next = 0;
  for (guint l = 0; l < p->n_layers; l++) {
    p->starts[l] = next;
    for (guint32 i = 0; i < p->whole[l]; i++) {
      if (i < p->whole_mean) {
        p->parts[next++] = (KvHostPart){i, l};
        continue;
      }
      while (lent >= p->whole_mean)
        lent = p->whole[--lender];
      p->parts[next++] = (KvHostPart){lent++, lender};
    }
  }
}

KvHostPyramid *kv_host_pyramid_new(const KvHostCompression *c) {
  guint L = c->n_layers, mean = c->budget / c->block_tokens;
  gsize parts = (gsize)L * mean * sizeof(KvHostPart), numbers = 2 * (gsize)L * sizeof(guint);
  KvHostPyramid *p = g_malloc0(sizeof *p + parts + numbers);
  *p = (KvHostPyramid){.n_layers = L,
                       .block_tokens = c->block_tokens,
                       .whole_mean = mean,
                       .rest = c->budget % c->block_tokens};
  p->whole = (guint *)(void *)(p->parts + (gsize)L * mean);
  p->starts = p->whole + L;
  divide(p, c);
  find_parts(p);
  return p;
}

guint32 kv_host_pyramid_budget(const KvHostPyramid *p, guint layer) {
  return p->whole[layer] * p->block_tokens + p->rest;
}

gboolean kv_host_pyramid_applies(const KvHostPyramid *p, const KvHostCompression *c,
                                 guint32 prompt_tokens) {
  return prompt_tokens >= shortest(c) && prompt_tokens >= kv_host_pyramid_budget(p, 0) &&
         kv_host_pyramid_kept(c, prompt_tokens) == c->budget;
}

KvHostPart kv_host_pyramid_part(const KvHostPyramid *p, guint layer, guint32 i) {
  return i < p->whole[layer] ? p->parts[p->starts[layer] + i]
                             : (KvHostPart){p->whole_mean + i - p->whole[layer], layer};
}
