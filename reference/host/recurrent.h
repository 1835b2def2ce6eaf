/* The arithmetic of a Mamba block (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective
 * State Spaces", 2023, algorithm 2 and section 3.4) beside its products, in plain C and fp32: the
 * twin of reference/cuda/recurrent.cu.
 *
 * What a sequence keeps of a layer is its state, W - 1 inputs of the convolution, oldest first, and
 * N numbers a channel: [W - 1][I], then [I][N]. It is read from one place and left in another, so
 * that a span of tokens may be computed twice. Tokens are computed one after another in one order,
 * so the same tokens have the same bits in whatever spans they come.
 *
 * Axes: T tokens, I inner width, N state of a channel, W width of the convolution.
 */
#ifndef KV_REFERENCE_HOST_RECURRENT_H
#define KV_REFERENCE_HOST_RECURRENT_H

#include <glib.h>

#include "models/llm/llm.h"

/* Floats of a state. */
gsize kv_host_state_floats(const KvAttention *attention);

/* out[T][I] = silu(bias + the sum over the last W inputs, weight[I][W]). Input t stands at
 * x + t * stride, [I]; before the first are those of `from`, [W - 1][I], or zeros if it is NULL.
 * The last W - 1 go to `to`, which is not `from`. bias: NULL for none. */
void kv_host_causal_convolution(float *out, const float *x, gsize stride, const float *weight,
                                const float *bias, const float *from, float *to, guint tokens,
                                guint inner, guint width);

/* Token by token, of each channel i: step = softplus(delta + bias), its N numbers become
 * h = exp(-step exp(decay)) h + step B x, and out = (sum of C h + skip x) silu(gate).
 * x[T][I], delta[T][I]; B[N] and C[N] of token t stand at bc + t * bc_stride, its gate [I] at
 * gate + t * gate_stride; decay[I][N]; bias, skip [I]. The first h are those of `from`, [I][N], or
 * zeros if it is NULL; the last go to `to`, which is not `from`. out[T][I] may be x. */
void kv_host_selective_scan(float *out, const float *x, const float *gate, gsize gate_stride,
                            const float *delta, const float *bias, const float *bc, gsize bc_stride,
                            const float *decay, const float *skip, const float *from, float *to,
                            guint tokens, guint inner, guint state);

#endif
