/* Guessing which tokens a layer will attend to: Lee et al., "InfiniGen" (2024), in plain C and
 * fp32, the twin of the CUDA kernels.
 *
 * Of each layer and KV head, queries and keys are turned by an orthogonal A, which changes none of
 * their products but gathers them in few columns. A's columns are the right singular vectors of a
 * sample's queries, first those along which queries and keys together are longest. Of each sequence
 * the columns along which its prompt's last queries are longest are chosen, and of its keys only
 * those are looked at. A is applied to what has been turned by its position, and to nothing that
 * attention itself reads.
 *
 * A token's relative score in a KV head is how far its approximate score is below the highest, with
 * that query head of the group for which it is nearest to it.
 */
#ifndef KV_REFERENCE_HOST_SPECULATION_H
#define KV_REFERENCE_HOST_SPECULATION_H

#include <glib.h>

#include "reference/host/kernels.h"

/* Last queries of a prompt that choose, and that the sample consists of. */
enum { KV_HOST_SPECULATION_WINDOW = 128 };

/* Columns that are kept of heads of that size: a multiple of 8, unless all are. */
guint kv_host_speculation_columns(double share, guint head_dim);
/* Most tokens that are fetched of n. */
guint32 kv_host_speculation_most(double share, guint32 n);

/* A sample of one layer: q[n_queries][H][d] and k[n_keys][Hkv][d]. */
typedef struct {
  const float *queries, *keys;
  guint n_queries, n_keys, n_heads, n_kv_heads, head_dim;
} KvHostSample;

/* directions[Hkv][d][d]: row r of a head is the r-th column of its A. Heads side by side on all
 * processors. */
void kv_host_speculation_calibrate(float *directions, const KvHostSample *sample);

/* columns[count], ascending: of a KV head's directions those along which the n queries of the
 * group's heads, at q + i * stride, [group][d], are longest in sum; of equals the first. */
void kv_host_speculation_choose_columns(guint32 *columns, const float *directions, const float *q,
                                        gsize stride, guint n, guint group, guint head_dim,
                                        guint count);
/* out[count] = x[d] along the directions `columns`. */
void kv_host_speculation_project(float *out, const float *x, const float *directions,
                                 const guint32 *columns, guint count, guint head_dim);

/* relative[n] of the head's n first tokens with partial queries q[group][count] over partial keys,
 * pages of heads as long as `count`; scores are multiplied by `scale`. Returns how many of them are
 * less than alpha below the highest. scores: scratch of n floats. */
guint32 kv_host_speculation_score(float *relative, const float *q, const KvHostPages *partial,
                                  const guint32 *block_table, guint head, guint group, guint32 n,
                                  float scale, float alpha, float *scores);
/* What each head fetches where all of them together count so many: the rounded mean, from 1 to
 * `most`. */
guint32 kv_host_speculation_tokens(guint64 counted, guint n_kv_heads, guint32 most);
/* chosen[wanted], ascending: the best of relative[n], of equals the first. */
void kv_host_speculation_choose(guint32 *chosen, const float *relative, guint32 n, guint32 wanted);

#endif
