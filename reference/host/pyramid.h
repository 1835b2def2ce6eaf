/* How pyramidkv divides the blocks of a sequence among its layers.
 *
 * The engine gives a sequence the blocks of its mean: budget B = M blocks and c tokens, and what
 * follows the prompt. A block has a part for each layer. Layer l keeps m_l blocks and c tokens of
 * the prompt, m_l the technique's budget in whole blocks by largest remainders, so that m_l falls
 * with l and all layers together have L M: the first layers, with more than M, take the parts that
 * the last ones leave of the first M blocks. Since c is the same in every layer, what follows the
 * prompt stands in each layer where it would stand in the mean's blocks.
 */
#ifndef KV_REFERENCE_HOST_PYRAMID_H
#define KV_REFERENCE_HOST_PYRAMID_H

#include "reference/host/compression.h"

/* A layer's part of a block, the block by its place in the sequence's table. */
typedef struct {
  guint32 block, layer;
} KvHostPart;

typedef struct {
  guint n_layers, block_tokens;
  guint whole_mean, rest; /* M, c */
  guint *whole;           /* [L]: m_l */
  guint *starts;          /* [L]: of the layer's parts */
  KvHostPart parts[];     /* [L M]: of the layer's whole blocks */
} KvHostPyramid;

/* Free with g_free(). */
KvHostPyramid *kv_host_pyramid_new(const KvHostCompression *compression);
/* Tokens of a prompt that the layer keeps. */
guint32 kv_host_pyramid_budget(const KvHostPyramid *pyramid, guint layer);
/* Tokens of a prompt that a layer keeps on average, as the plan has it. */
guint32 kv_host_pyramid_kept(const KvHostCompression *compression, guint32 prompt_tokens);
/* Whether a prompt of so many tokens gets budgets of its own for each layer; shorter ones are cut
 * to the mean in all of them. */
gboolean kv_host_pyramid_applies(const KvHostPyramid *pyramid, const KvHostCompression *compression,
                                 guint32 prompt_tokens);
/* Where block i of the layer stands. */
KvHostPart kv_host_pyramid_part(const KvHostPyramid *pyramid, guint layer, guint32 i);

#endif
