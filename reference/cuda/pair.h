/* A pair of engines (reference/host/pair.h) on the GPU. */
#ifndef KV_REFERENCE_CUDA_PAIR_H
#define KV_REFERENCE_CUDA_PAIR_H

#include "reference/host/pair.h"

/* NULL with *error set: as of the executor, and where the program was built without CUDA. */
KvEnginePair *kv_cuda_pair_new(const KvPairSettings *settings, GError **error);

#endif
