/* How far a compressed cache changes what a model says: its next-token distributions beside those
 * of the whole cache on the same input.
 *
 * A prompt is computed by both, then the whole cache decodes greedily and the compressed one is fed
 * the same tokens. At each decoded token, the Kullback-Leibler divergence (nats) of the compressed
 * cache's distribution from the whole one's, and whether both would choose the same token. Where
 * nothing is compressed both passes are the same arithmetic, so the divergence is exactly 0.
 */
#ifndef KV_REFERENCE_HOST_AGREEMENT_H
#define KV_REFERENCE_HOST_AGREEMENT_H

#include <glib.h>

#include "reference/host/compression.h"
#include "reference/host/forward.h"

typedef struct {
  guint n, equal; /* tokens compared; of them, with the same largest logit */
  double divergence_sum, divergence_max;
} KvHostAgreement;

/* Compare logits[V] with those of the whole cache. */
void kv_host_agreement_add(KvHostAgreement *agreement, const float *whole, const float *logits,
                           guint vocab);

/* Run one span of a sequence and write the logits [V] of the token after it. */
typedef gboolean (*KvHostPass)(gpointer engine, KvHostSpan *span, float *logits, GError **error);

/* Prompt tokens[n], computed `chunk` at a time, then `decoded` tokens, through both engines (caches
 * of their own; block_table[] covers n + decoded tokens in each). The agreement is added to. */
gboolean kv_host_agreement_run(KvHostAgreement *agreement, KvHostPass pass, gpointer whole,
                               gpointer compressed, const KvHostCompression *compression,
                               const guint32 *block_table, const guint32 *tokens, guint n,
                               guint chunk, guint decoded, guint vocab, GError **error);

#endif
