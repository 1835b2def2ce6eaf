/* How long one operation takes on the GPU, alone and warm: what the benchmark and `kvsim calibrate
 * --measure` are made of.
 *
 * Times are the GPU's, medians of KV_CUDA_REPEATS rounds after warm ones, in seconds. What is timed
 * alternates among buffers larger together than the second-level cache, and holds random
 * numbers. Every call allocates what it times and frees it again; memory that does not suffice is
 * an error.
 */
#ifndef KV_REFERENCE_CUDA_TIMING_H
#define KV_REFERENCE_CUDA_TIMING_H

#include "reference/cuda/device.h"
#include "reference/cuda/gemm.h"

enum { KV_CUDA_REPEATS = 11, KV_CUDA_BENCH_BLOCK_TOKENS = 16 };

typedef struct {
  KvCudaDevice *device;
  KvCudaGemm *gemm;
  double warm_seconds; /* of work before rounds are timed: under load clocks fall; 0: one round */
  gboolean rested; /* the GPU pauses for as long as it worked, so that its power limit, which lowers
                      the clocks of long work, stays out of short work's times */
  gboolean replayed; /* a round is one graph, queued behind another of the same: no launch from the
                        host is in it */
} KvCudaTimer;

/* One launch of what is measured, the i-th. */
typedef gboolean (*KvCudaTimed)(gpointer what, guint i, GError **error);

/* Seconds of one launch: the median of rounds of `inner` launches, or of more where those would
 * take less than a millisecond. `work` allocates nothing. */
gboolean kv_cuda_time(KvCudaTimer *timer, KvCudaTimed work, gpointer what, guint inner,
                      double *seconds, GError **error);

/* out[M][N] = x[M][K] w[N][K]^T with weights that are not in the cache. */
gboolean kv_cuda_time_product(KvCudaTimer *timer, guint rows, guint inputs, guint outputs,
                              double *seconds, GError **error);

/* A copy of `bytes`: inside the GPU's memory, to it from pinned memory, or back. */
gboolean kv_cuda_time_copy(KvCudaTimer *timer, enum cudaMemcpyKind kind, gsize bytes,
                           double *seconds, GError **error);

/* The RMS norm of rows of `width` fp32 values to bf16; and the gated activation of rows of two
 * times `width` bf16 values. */
gboolean kv_cuda_time_norm(KvCudaTimer *timer, guint rows, guint width, double *seconds,
                           GError **error);
gboolean kv_cuda_time_activation(KvCudaTimer *timer, guint rows, guint width, double *seconds,
                                 GError **error);

/* A kernel that does next to nothing: one of many on a stream (the rate of launching), and one of
 * many in a graph. */
gboolean kv_cuda_time_launch(KvCudaTimer *timer, gboolean graph, double *seconds, GError **error);

/* Attention of one layer over `sequences` caches of `past` tokens in shuffled blocks: one new token
 * of each that decodes (and is counted in past), or a chunk of `chunk` tokens of each. */
typedef struct {
  guint n_heads, n_kv_heads, head_dim, sequences, past, chunk;
  guint bits; /* decoding: of a packed cache: 8 (e4m3), 4 or 2 (kivi's, groups of 32, all packed);
                 0: bf16 */
} KvCudaAttentionCase;

/* Bytes of a cached element, scales counted. */
double kv_cuda_case_element_bytes(const KvCudaAttentionCase *of);

gboolean kv_cuda_time_decode(KvCudaTimer *timer, const KvCudaAttentionCase *of, double *seconds,
                             GError **error);
gboolean kv_cuda_time_prefill(KvCudaTimer *timer, const KvCudaAttentionCase *of, double *seconds,
                              GError **error);

/* `n` random numbers within +- reach in new device memory; NULL with *error set. */
KvBf16 *kv_cuda_random(KvCudaTimer *timer, guint64 n, float reach, GError **error);

/* Put the ids in an order that is random and always the same. */
void kv_cuda_shuffle(guint32 *ids, guint n);

#endif
