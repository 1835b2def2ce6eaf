/* What a pass on the host does differently where the cache is held in one of the formats of
 * compression.h. Each format is a table of functions in a file of its own; what a table leaves NULL
 * is as for the exact cache. The settings are cache->compression.
 */
#ifndef KV_REFERENCE_HOST_FORMAT_H
#define KV_REFERENCE_HOST_FORMAT_H

#include "reference/host/cache.h"
#include "reference/host/compression.h"
#include "reference/host/forward.h"

/* One layer of a pass. R rows: the spans' tokens one after another. */
typedef struct {
  const KvHostWeights *weights;
  KvHostCache *cache;
  const KvHostPages *pages; /* of the layer */
  guint layer, n_heads, rows;
  float *q, *k, *v;         /* [R][H][d], [R][Hkv][d]: normalized and rotated */
  float *out;               /* [R][H][d]: attention */
  float *scores;            /* scratch: as many floats as the pass's longest context has tokens */
  const float *in;          /* [R][D]: the layer's input, normalized */
  float *added;             /* [R][D]: what the layer adds to it */
  const guint32 *positions; /* [R] */
} KvHostFormatLayer;

typedef struct {
  const char *technique; /* the id that asks for it; NULL: a type of the cache does */
  /* Settings from the use, on an engine with that configuration; c->format is set. */
  gboolean (*init)(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                   GError **error);
  /* FALSE with *error set if a layer with that attention cannot be held so. */
  gboolean (*check)(const KvHostCompression *c, const KvAttention *attention, GError **error);
  /* Slots that hold a token of their own in each head once tokens were dropped: of the prompt,
   * which is cut to them when it is done; or, where a token goes for each one that comes, all. */
  guint32 (*kept)(const KvHostCompression *c, guint32 prompt_tokens);
  gboolean evicts;
  /* From a layer's normalized input: what the next layer needs to know of it; adds to *flops. */
  void (*look_ahead)(const KvHostFormatLayer *at, double *flops);
  /* Project the rows to what is stored in the place of keys and values, and write it; *flops of
   * products. FALSE: they are the ordinary ones. */
  gboolean (*project)(const KvHostFormatLayer *at, double *flops);
  gboolean (*write_all)(const KvHostFormatLayer *at, const KvHostSpan *spans, guint n_spans);
  /* Keys and values of all rows, before they are stored: what is written instead. */
  void (*store)(const KvHostFormatLayer *at);
  /* Keys and values of the span, whose first row is `row`; FALSE: they go to their slots. */
  gboolean (*write)(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row);
  /* After all rows are stored. */
  void (*stored)(const KvHostFormatLayer *at, const KvHostSpan *span);
  /* Attention of the span, whose first row is `row`; FALSE: it is the ordinary one. */
  gboolean (*attend)(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row);
  /* Of a decoding span: tokens that its attention reads; NULL: its whole context. */
  guint32 (*tokens_read)(const KvHostFormatLayer *at, const KvHostSpan *span);
  /* Project all rows' attention to at->added; FALSE: at->out is, by the ordinary matrix. */
  gboolean (*output)(const KvHostFormatLayer *at, double *flops);
  /* After the layer's attention: a prompt is packed or cut when it is done. */
  void (*attended)(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row);
  /* Before a pass, where spans may be led to other blocks, and after it, where they are led back;
   * before and after each layer of it. */
  void (*begin)(KvHostCache *cache, KvHostSpan *spans, guint n);
  void (*end)(KvHostCache *cache, KvHostSpan *spans, guint n);
  void (*enter)(KvHostCache *cache, guint layer);
  void (*leave)(KvHostCache *cache, guint layer);
  /* Release what is kept of a sequence elsewhere than in cache->owners. */
  void (*forget)(KvHostCache *cache, guint64 owner);
  gboolean exact; /* a token that is computed again comes out the same */
} KvHostFormatClass;

extern const KvHostFormatClass kv_host_format_fp8, kv_host_format_kivi, kv_host_format_snapkv,
    kv_host_format_quest, kv_host_format_pyramidkv, kv_host_format_h2o, kv_host_format_palu,
    kv_host_format_minicache, kv_host_format_flexgen, kv_host_format_infinigen;

/* Of any format; that of the exact cache is all NULL. */
const KvHostFormatClass *kv_host_format(KvHostFormat format);

/* "ID: WHAT, which the real executors do not carry out, expected EXPECTED"; FALSE. */
gboolean kv_host_format_refuse(GError **error, const char *id, const char *what,
                               const char *expected);
/* Whether the layer has full attention, which most formats need. */
gboolean kv_host_format_check_full(const KvHostCompression *c, const KvAttention *attention,
                                   GError **error);

/* The head's key of the token in that slot, key_offset floats later, and its value likewise. */
static inline float *kv_host_slot(const KvHostPages *pages, const guint32 *block_table, guint head,
                                  guint32 slot) {
  return pages->pool + block_table[slot / pages->block_tokens] * pages->block_floats +
         ((gsize)head * pages->block_tokens + slot % pages->block_tokens) * pages->head_dim;
}

/* snapkv, pyramidkv, infinigen: the sequence's queries of its prompt's last tokens (of all, if they
 * are fewer than the window), of layer l q[window][H][d] at [l], with those of the span, whose
 * first row is `row`, at this layer. */
float **kv_host_window_keep(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row);

/* Candidates for a choice: those with most votes first, of equals the lowest. */
typedef struct {
  float votes;
  guint32 position;
} KvHostCandidate;

int kv_host_by_votes(const void *a, const void *b);
int kv_host_by_position(const void *a, const void *b); /* of guint32 */

#endif
