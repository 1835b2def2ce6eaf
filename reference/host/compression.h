/* Caches that hold less than every key and value as it was computed: what the real executors carry
 * out of a technique's plan, and its arithmetic in plain C and fp32, the twin of the CUDA kernels.
 *
 * fp8: what is stored is rounded to e4m3 (scale 1, saturating at 448), and everything reads that.
 * kivi: Liu et al., "KIVI" (2024). At a context of n tokens, keys are packed up to the last whole
 * block of R, in groups of G tokens of one channel; values up to n - R, in groups of G channels of
 * one token; the rest is exact. A prompt attends to itself exactly and is packed when it is done.
 * Here "packed" is what unpacking gives: the page's floats become code * scale + minimum.
 * snapkv: Li et al., "SnapKV" (2024). When a prompt of p tokens is done, each KV head keeps the
 * `window` last tokens and of the others those with most votes, `budget` together, in ascending
 * order in its first slots; later tokens follow. So position i stands in slot i - dropped, and a
 * slot of the prompt belongs to a token of its own in each head.
 *
 * pyramidkv: Cai et al., "PyramidKV" (2024). As snapkv, with a budget of its own for each layer,
 * from (2 - 1/beta) b to b / beta beside the window, b = budget - window. A sequence has the blocks
 * of the mean, so early layers take parts of blocks that late layers leave: pyramid.h.
 * h2o: Zhang et al., "H2O" (2023). A KV head has K slots. When the prompt is done it keeps the last
 * tokens, and of the others those that drew most attention from all queries; then each token takes
 * the slot of the least of those that are not among the last. Keys were rotated before, so slots
 * need no order.
 *
 * quest: Tang et al., "Quest" (2024). Nothing is dropped; a decoding token's KV head reads the last
 * page and those of the others (a page is a block) whose keys could score highest with one of the
 * head's queries, by the least and greatest value of each channel; the first layers read all.
 *
 * palu: low_rank.h. The ranks of a layer are the plan's; with a spread the first half of the layers
 * (the larger one) keeps more. A layer whose ranks are its width is left as it is.
 *
 * minicache: merging.h.
 *
 * flexgen: Sheng et al., "FlexGen" (2023). Shares of the cache and of the weights lie in host
 * memory and come to the GPU a layer at a time (staging.h); nothing is rounded.
 *
 * infinigen: speculation.h. The cache lies in host memory as flexgen's; a decoding token reads the
 * tokens of each KV head that the layer before expects it to attend to.
 *
 * One of them at a time; kv_host_compression_init() says what of them is not executed.
 */
#ifndef KV_REFERENCE_HOST_COMPRESSION_H
#define KV_REFERENCE_HOST_COMPRESSION_H

#include <glib.h>

#include "models/techniques/palu.h"
#include "models/techniques/technique.h"
#include "reference/host/kernels.h"

typedef enum {
  KV_HOST_EXACT,
  KV_HOST_FP8,
  KV_HOST_KIVI,
  KV_HOST_SNAPKV,
  KV_HOST_QUEST,
  KV_HOST_PYRAMIDKV,
  KV_HOST_H2O,
  KV_HOST_PALU,
  KV_HOST_MINICACHE,
  KV_HOST_FLEXGEN,
  KV_HOST_INFINIGEN,
  KV_HOST_N_FORMATS
} KvHostFormat;

typedef struct {
  KvHostFormat format;
  guint bits, group, residual;  /* kivi: 2 or 4, G, R */
  guint budget, window, kernel; /* snapkv, pyramidkv; window: infinigen */
  gboolean max_pooling;
  double cache_share, weights_share; /* flexgen: on the GPU, 0 to 1 */
  gboolean overlap;                  /* ... what comes to it beside the layers before;
                                        infinigen: the first layer's tokens too */
  gboolean cpu_attention;            /* ... decoding attends on the CPU; cache_share is 0 */
  double column_share;               /* infinigen: of a head's columns, that are looked at */
  double most_share;                 /* ... of the context, at most fetched */
  float alpha;                       /* ... below the highest score */
  double beta;                       /* pyramidkv */
  double slots, slot_share;          /* h2o: K = slots + slot_share * prompt */
  double recent_share;               /* h2o: of the slots */
  guint n_layers, block_tokens;      /* the model's, the engine's */
  gboolean equal_layers;             /* as many KV heads of one size in all */
  guint pages, dense_layers; /* quest: read by a KV head, the last one counted; that read all */
  guint shared_over; /* chunkattention: blocks that more decoding sequences share are read once; 0:
                        none. The cache is whole */
  KvPaluSettings palu;
  gint first_merged; /* minicache: S, -1 for half of the layers */
  float slerp, gamma;
} KvHostCompression;

/* What the stack and the cache's type ask for on an engine with that configuration. FALSE with
 * *error set if it is not executed: the technique, a setting of it, two at once, a type, the
 * model's layers. */
gboolean kv_host_compression_init(KvHostCompression *compression, const KvStack *stack,
                                  const KvModel *model, KvDtype cache_dtype,
                                  const KvEngineConfig *engine, GError **error);

/* Whether blocks lie in host memory and come to the GPU a layer at a time. */
gboolean kv_host_compression_streams(const KvHostCompression *compression);
/* Slots of a prompt's cache that, once it is done and tokens were dropped, hold a token of their
 * own in each head and layer; the prompt's tokens where none is ever dropped. */
guint32 kv_host_compression_kept(const KvHostCompression *compression, guint32 prompt_tokens);
/* Tokens that are dropped of a context of so many, once the prompt is done. */
guint32 kv_host_compression_dropped(const KvHostCompression *compression, guint32 prompt_tokens,
                                    guint32 context);

/* Keys, and values, of a context of n tokens that kivi has packed. */
guint32 kv_host_kivi_packed_keys(const KvHostCompression *compression, guint32 n);
guint32 kv_host_kivi_packed_values(const KvHostCompression *compression, guint32 n);

/* x as e4m3 holds it, and as fp16 does: to nearest, ties to even. */
float kv_host_round_e4m3(float x);
float kv_host_round_fp16(float x);

/* A group of `bits`-bit codes: fp16 scale and minimum of x[n], elements `stride` apart; x becomes
 * what unpacking gives. codes[n] may be NULL. */
void kv_host_kivi_group(float *x, gsize stride, guint n, guint bits, float *scale, float *minimum,
                        guint8 *codes);
/* Pack the keys, the values, of tokens from .. to - 1 (keys: whole groups). */
void kv_host_kivi_pack_keys(const KvHostCompression *compression, const KvHostPages *pages,
                            const guint32 *block_table, guint32 from, guint32 to);
void kv_host_kivi_pack_values(const KvHostCompression *compression, const KvHostPages *pages,
                              const guint32 *block_table, guint32 from, guint32 to);

/* votes[Hkv][prompt - W]: attention of the prompt's last W queries q[W][H][d] on each earlier
 * token, summed over the queries and the heads of the group. The softmax is over all that a query
 * sees. scores: scratch of prompt floats. */
void kv_host_snapkv_vote(float *votes, const float *q, const KvHostPages *pages,
                         const guint32 *block_table, guint32 prompt, guint n_heads, guint window,
                         float *scores);
/* kept[budget]: the `budget - window` best of votes[prompt - window], pooled (zeros or nothing
 * beyond the ends), of equals the lowest, then the window; ascending. */
void kv_host_snapkv_select(const KvHostCompression *compression, guint32 *kept, const float *votes,
                           guint32 prompt);
/* Bring the kept tokens of each head, kept[Hkv][budget], to the first slots, and tokens prompt ..
 * tokens - 1 after them. */
void kv_host_snapkv_compact(const KvHostCompression *compression, const KvHostPages *pages,
                            const guint32 *block_table, const guint32 *kept, guint32 prompt,
                            guint32 tokens);

/* Slots that a KV head has for a prompt of so many tokens, and of them those for the last tokens.
 */
guint32 kv_host_h2o_slots(const KvHostCompression *compression, guint32 prompt_tokens);
guint32 kv_host_h2o_recent(const KvHostCompression *compression, guint32 slots);
/* scores[visible] += attention of q[group][d] on the head's first `visible` slots. scratch: as many
 * floats. */
void kv_host_h2o_add(float *scores, const float *q, const KvHostPages *pages,
                     const guint32 *block_table, guint head, guint group, guint32 visible,
                     float *scratch);
/* The slot that the token at `position` takes: its own, as long as there are some; then that with
 * the least score of those whose tokens are not among the last `recent` positions, its own counted;
 * of equals the lowest. */
guint32 kv_host_h2o_slot(const float *scores, const guint32 *positions, guint32 slots,
                         guint32 recent, guint32 position);

/* chosen[pages], ascending: the pages of a context of n tokens, more than so many, that the head
 * reads for its queries q[group][d]; of equals the lowest. */
void kv_host_quest_choose(const KvHostCompression *compression, guint32 *chosen, const float *q,
                          const KvHostPages *pages, const guint32 *block_table, guint head,
                          guint group, guint32 n);
/* One query over a context of n tokens, q[H][d]: attention to the pages that each head chooses.
 * scores: scratch of n floats. */
void kv_host_quest_attention(const KvHostCompression *compression, float *out, const float *q,
                             const KvHostPages *pages, const guint32 *block_table, guint32 n,
                             guint n_heads, float *scores);

#endif
