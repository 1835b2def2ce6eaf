/* The arithmetic of a transformer, one pure function each, in plain C and fp32.
 *
 * Every function computes a row (a token) without looking at the other rows, and sums in one fixed
 * order: over the inner dimension of a product, over the head size of a score, over the positions
 * of a context from the oldest. So a token's result has the same bits whatever batch, chunk or
 * block table it is computed in. That holds for one build of the library: it needs
 * -ffp-contract=off and no -ffast-math.
 *
 * Axes: R rows (tokens), D hidden size, K inputs and N outputs of a matrix, H query heads, Hkv KV
 * heads, d head size, E intermediate size, V vocabulary. Arrays are dense, the last axis
 * contiguous. Nothing is allocated or kept.
 */
#ifndef KV_REFERENCE_HOST_KERNELS_H
#define KV_REFERENCE_HOST_KERNELS_H

#include <glib.h>

/* out[R][D] = x / rms(x) * weight[D]; `out` may be `x`. */
void kv_host_rms_norm(float *out, const float *x, const float *weight, float epsilon, guint rows,
                      guint width);
/* out[R][D] = (x - mean(x)) / deviation(x) * weight[D] + bias[D]; `out` may be `x`. */
void kv_host_layer_norm(float *out, const float *x, const float *weight, const float *bias,
                        float epsilon, guint rows, guint width);

/* How positions become angles. `factor` > 1 stretches the slow frequencies, as Llama 3.1 does for
 * contexts past the `original` one: those with fewer than `low` turns in it are divided by the
 * factor, those with more than `high` are kept, the others are between. Linear scaling, which
 * divides all of them, is low = high = infinity. With `yarn` (Peng et al., 2023) the others are
 * between by their index instead, cosines and sines are multiplied by `magnitude`, and scores of
 * latent attention by `score_scale`, as DeepSeek-V2 has it. */
typedef struct {
  double theta, factor, low, high, original, magnitude, score_scale;
  gboolean yarn;
} KvHostRotary;

/* Llama 2's. */
#define KV_HOST_ROTARY_DEFAULT                                                                     \
  (KvHostRotary) {                                                                                 \
    .theta = 10000.0, .factor = 1.0, .magnitude = 1.0, .score_scale = 1.0                          \
  }

/* cosine[d/2], sine[d/2] of the angles that rotary embedding turns the pairs of a head by at
 * `position`. */
void kv_host_rotary_angles(float *cosine, float *sine, guint32 position, guint head_dim,
                           const KvHostRotary *rotary);
/* Turn x[H][d] of one token in place: element i with element i + d/2. */
void kv_host_rotary(float *x, const float *cosine, const float *sine, guint n_heads,
                    guint head_dim);

/* out[R][N] = x[R][K] weight[K][N] + bias[N] (NULL for none). `out` must not overlap `x`. */
void kv_host_linear(float *restrict out, const float *restrict x, const float *restrict weight,
                    const float *bias, guint rows, guint inputs, guint outputs);
/* x[n] += y[n]: the residual stream. */
void kv_host_add(float *restrict x, const float *restrict y, gsize n);

/* gate[n] = silu(gate[n]) * up[n]. */
void kv_host_swiglu(float *restrict gate, const float *restrict up, gsize n);
/* x[n] = x[n] * Phi(x[n]), Phi the normal distribution: the GELU with erf. */
void kv_host_gelu(float *x, gsize n);
/* x[n] = max(x[n], 0). */
void kv_host_relu(float *x, gsize n);

/* One layer's keys and values inside a pool of blocks: block b's keys [Hkv][block_tokens][d] stand
 * at pool + b * block_floats + key_offset, its values likewise. */
typedef struct {
  float *pool;
  gsize block_floats, key_offset, value_offset;
  guint block_tokens, n_kv_heads, head_dim;
} KvHostPages;

/* Store the keys and values [Hkv][d] of the token at `position` of a sequence with that block
 * table; values: NULL where the pages hold none. */
void kv_host_pages_write(const KvHostPages *pages, const guint32 *block_table, guint32 position,
                         const float *keys, const float *values);

/* Causal attention of T queries q[T][H][d] at positions past .. past + T - 1 over the keys and
 * values that the block table leads to, theirs included; each sees the last `window` positions (0:
 * all). out[T][H][d]. scores: scratch of past + T floats. */
void kv_host_attention(float *restrict out, const float *restrict q, const KvHostPages *pages,
                       const guint32 *block_table, guint32 past, guint32 tokens, guint n_heads,
                       guint window, float *restrict scores);

/* --- latent.c: attention over one latent of `rank` numbers and one rotated key of `rope` a token,
 * which all heads share; a page's only head holds them side by side, and no values. Queries' and
 * keys' heads are nope + rope long, those of the values `value`. up[rank][H (nope + value)] makes
 * every head's keys and values of a latent. */
typedef struct {
  guint n_heads, nope, rope, value, rank;
  float scale; /* of a score */
} KvHostLatent;

/* Turn x[d] of one head in place: element 2i with element 2i + 1. */
void kv_host_rotary_pairs(float *x, const float *cosine, const float *sine, guint head_dim);
/* A query q[H][nope + rope] as it stands before latents, out[H][rank + rope]: the keys' part of
 * `up` is multiplied into it. */
void kv_host_absorb_query(float *restrict out, const float *restrict q, const float *restrict up,
                          const KvHostLatent *latent);
/* Causal attention of T such queries at positions past .. over the latents, theirs included.
 * out[T][H][rank]. scores: scratch of past + T floats. */
void kv_host_latent_attention(float *restrict out, const float *restrict q,
                              const KvHostPages *pages, const guint32 *block_table, guint32 past,
                              guint32 tokens, const KvHostLatent *latent, float *restrict scores);
/* out[H][value] of mixed latents[H][rank]: the values' part of `up`. */
void kv_host_expand_latents(float *restrict out, const float *restrict mixed,
                            const float *restrict up, const KvHostLatent *latent);

/* --- experts.c: an MLP chosen from many for each token --------------------------------------- */

/* How the softmax of a router's logits becomes a choice. */
typedef struct {
  gboolean normalized;       /* the chosen ones' shares are made to sum to one */
  float scale;               /* of the shares */
  guint groups, groups_kept; /* only the experts of those groups that hold the greatest shares are
                                chosen from; 0: of all */
} KvHostRouting;

/* Only with these groups may be routed: they divide the experts, and hold enough. */
gboolean kv_host_routing_fits(const KvHostRouting *routing, guint n_experts, guint chosen);
/* experts[chosen] of logits[n_experts], greatest share first, of equals the lowest; and their
 * shares. scores: scratch of n_experts floats. */
void kv_host_route(guint32 *experts, float *shares, const float *logits, guint n_experts,
                   guint chosen, const KvHostRouting *routing, float *scores);

/* gate, up [n][D][E], down [n][E][D] */
typedef struct {
  const float *gate, *up, *down;
  guint hidden, intermediate;
} KvHostExperts;

/* out[D] = the sum of share * expert(x[D]) over the chosen ones. scratch: 2 E + D floats. */
void kv_host_mix_experts(float *restrict out, const float *restrict x, const KvHostExperts *all,
                         const guint32 *experts, const float *shares, guint chosen,
                         float *restrict scratch);

/* The index of the largest of logits[V]; the lowest such index. */
guint32 kv_host_argmax(const float *logits, guint vocab);

#endif
