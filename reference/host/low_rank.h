/* Low-rank keys and values: Chang et al., "Palu" (2024), in plain C and fp32, the twin of the CUDA
 * kernels.
 *
 * The projections of a group of KV heads to its keys, a matrix of width w = heads * d, are replaced
 * by two thin factors: W ~ (W V) V^T with the columns of V[w][rank] the eigenvectors of W^T W with
 * the largest eigenvalues, so that W V is the singular value decomposition cut to `rank`. A token's
 * latent x (W V) is cached. Keys are rebuilt as latent V^T plus their bias and then turned by their
 * position; values never: attention sums their latents, and V^T is multiplied into the output
 * projection, their bias into its bias. The ranks are those of the technique's plan; the weights
 * alone decide on the directions, without data that calibrates them.
 */
#ifndef KV_REFERENCE_HOST_LOW_RANK_H
#define KV_REFERENCE_HOST_LOW_RANK_H

#include <glib.h>

#include "models/techniques/palu.h"
#include "reference/host/kernels.h"

/* One layer's shape. Groups are of `heads` KV heads, ranks of a group. */
typedef struct {
  guint groups, heads, head_dim, key_rank, value_rank;
} KvHostRanks;

/* Of layer `layer` of so many, by the settings; FALSE if its ranks are its whole width. */
gboolean kv_host_low_rank_ranks(KvHostRanks *ranks, const KvPaluSettings *settings,
                                const KvAttention *attention, guint layer, guint n_layers);

/* basis[rank][width], orthonormal rows: the directions in which rows[width][inputs], a projection
 * with its outputs as rows, is largest. */
void kv_host_low_rank_basis(float *basis, const float *rows, guint width, guint inputs, guint rank);

/* One layer's projections, their outputs as rows. */
typedef struct {
  guint inputs, n_heads;
  const float *key, *value; /* [Hkv d][D] */
  const float *output;      /* [D][H d] */
  const float *value_bias;  /* [Hkv d], or NULL */
  const float *output_bias; /* [D], or NULL */
} KvHostProjections;

/* What takes their place. */
typedef struct {
  KvHostRanks ranks;
  float *key_basis, *value_basis; /* [groups][rank][heads d] */
  float *key_down, *value_down;   /* [groups rank][D] */
  float *output;                  /* [D][H value_rank] */
  float *output_bias;             /* [D], or NULL where neither values nor the output have a bias */
} KvHostFactors;

/* Of n layers, their groups side by side on all processors: a Gram matrix and its eigenvectors for
 * each, which the number of threads does not change. Every array of `factors` is made anew. */
void kv_host_factors_init(KvHostFactors *factors, const KvHostRanks *ranks,
                          const KvHostProjections *projections, guint n);
void kv_host_factors_clear(KvHostFactors *factors);

/* Store the latents keys[groups][key_rank], values[groups][value_rank] of the token at `position`:
 * in a block, key latents [groups][block_tokens][key_rank] stand at key_offset, values' likewise.
 */
void kv_host_low_rank_write(const KvHostRanks *ranks, const KvHostPages *pages,
                            const guint32 *block_table, guint32 position, const float *keys,
                            const float *values);

/* The keys[n][Hkv d] of the first n tokens, turned by `rotary` (NULL: not). bias[Hkv d] may be
 * NULL. */
void kv_host_low_rank_keys(float *keys, const KvHostRanks *ranks, const KvHostPages *pages,
                           const guint32 *block_table, guint32 n, const float *basis,
                           const float *bias, const KvHostRotary *rotary);

/* Causal attention of q[T][H][d] at positions past ... over keys[past + T][Hkv d] and the latents
 * of the values: out[T][H][value_rank]. scores: scratch of past + T floats. */
void kv_host_low_rank_attention(float *out, const float *q, const float *keys,
                                const KvHostRanks *ranks, const KvHostPages *pages,
                                const guint32 *block_table, guint32 past, guint32 tokens,
                                guint n_heads, float *scores);

#endif
