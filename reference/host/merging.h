/* Caches of two adjacent layers as one: Liu et al., "MiniCache" (2024), in plain C and fp32, the
 * twin of the CUDA kernels.
 *
 * From layer S on, layers l - 1 and l are a pair (a last one without a partner, and a pair whose
 * layers differ in their heads, are left). Keys, and values, of a token are vectors over all KV
 * heads, x of layer l - 1 and y of layer l. Their distance is the angle W between them over pi.
 * What is merged keeps one direction, the spherical interpolation
 *     e = (sin((1 - t) W) x / |x| + sin(t W) y / |y|) / sin W,
 * and both norms in fp16; layer l - 1 reads e |x|, layer l reads e |y|. Apart stay both originals
 * of a token whose distance is at least `greatest - gamma * (greatest - least)` of the distances of
 * the prompt: none where gamma is 0, all where it is 1. A prompt attends to itself exactly and is
 * merged when it is done; a new token is merged after layer l, by its prompt's threshold.
 */
#ifndef KV_REFERENCE_HOST_MERGING_H
#define KV_REFERENCE_HOST_MERGING_H

#include "reference/host/compression.h"

typedef enum { KV_HOST_ALONE, KV_HOST_FIRST_OF_PAIR, KV_HOST_SECOND_OF_PAIR } KvHostRole;

/* What the layer is, of so many whose attention is attention(user, layer); *pair: which pair. */
KvHostRole kv_host_merge_role(const KvHostCompression *compression, guint layer, guint n_layers,
                              const KvAttention *(*attention)(gconstpointer user, guint layer),
                              gconstpointer user, guint *pair);

/* Angle between x[n] and y[n] over pi, 0 to 1; 0 where one of them is zero. */
float kv_host_merge_distance(const float *x, const float *y, guint n);
/* Tokens of at least that distance stay apart, where those of the prompt reach from least to
 * greatest. */
float kv_host_merge_threshold(const KvHostCompression *compression, float least, float greatest);
/* Both vectors become what layer l - 1 and layer l read of the merged one. direction[n] (or NULL)
 * is e. */
void kv_host_merge(const KvHostCompression *compression, float *x, float *y, guint n,
                   float *direction);

#endif
