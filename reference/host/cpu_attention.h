/* Decode attention on the CPU over a bf16 cache in host memory, as fast as plain C with a few
 * threads does it: where flexgen's cache is outside the GPU, only queries, outputs and new tokens
 * cross the bus. Sums are fp32. Twin: kv_host_attention().
 */
#ifndef KV_REFERENCE_HOST_CPU_ATTENTION_H
#define KV_REFERENCE_HOST_CPU_ATTENTION_H

#include <glib.h>

/* One layer's blocks: block b's keys [Hkv][block_tokens][d] stand at blocks + b * block_elements,
 * its values value_offset elements later. d is a multiple of 8. */
typedef struct {
  guint16 *blocks;
  gsize block_elements, value_offset;
  guint block_tokens, n_heads, n_kv_heads, head_dim;
} KvCpuPages;

/* A decoding sequence: tokens of its context, the new one counted. */
typedef struct {
  const guint32 *block_table;
  guint32 context;
} KvCpuRow;

typedef struct KvCpuAttention KvCpuAttention;

/* `threads` that compute, the caller among them; 0: one a processor. */
KvCpuAttention *kv_cpu_attention_new(guint threads);
void kv_cpu_attention_free(KvCpuAttention *attention);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCpuAttention, kv_cpu_attention_free)

/* Row r of qkv is [H + 2 Hkv][d], `stride` elements after the one before: store its key and value
 * as the context's last token, and attend with its queries. out[n][H][d]. Returns when all is done.
 */
void kv_cpu_attention_run(KvCpuAttention *attention, guint16 *out, const guint16 *qkv, gsize stride,
                          const KvCpuPages *pages, const KvCpuRow *rows, guint n);

#endif
