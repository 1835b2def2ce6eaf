/* Prompts under way, exact, in blocks beside the engine's, until a format packs or merges them. */
#ifndef KV_REFERENCE_CUDA_EXACT_H
#define KV_REFERENCE_CUDA_EXACT_H

#include "reference/cuda/format.h"

typedef struct {
  KvCudaWorkspace workspace; /* every layer its own pool */
  GArray *free;              /* of guint32: blocks */
} KvCudaExact;

void kv_cuda_exact_init(KvCudaExact *exact, const KvCudaCompressed *c);
void kv_cuda_exact_clear(KvCudaExact *exact, guint n_layers);

/* Room for the first `prompts` of c->spans, and their tables. A sequence's blocks are kept at
 * blocks(its owner): NULL at first. */
gboolean kv_cuda_exact_begin(KvCudaExact *exact, KvCudaCompressed *c, guint prompts,
                             GArray **(*blocks)(gpointer owner), GError **error);
/* Give the blocks of a sequence back. */
void kv_cuda_exact_release(KvCudaExact *exact, GArray **blocks);
/* The table of the pass's prompt `index`, device. */
const guint32 *kv_cuda_exact_table(const KvCudaExact *exact, guint index);

#endif
