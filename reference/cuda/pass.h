/* The kernels of a pass, one after another: layers, and the tokens that follow. */
#ifndef KV_REFERENCE_CUDA_PASS_H
#define KV_REFERENCE_CUDA_PASS_H

#include "reference/cuda/inputs.h"

/* Memory of a row that a recurrent layer works in. */
gsize kv_cuda_pass_mixer_bytes(const KvAttention *attention);

/* Launch them on the inputs in the engine's buffers; a lap after each where the engine takes time.
 */
gboolean kv_cuda_pass_launch(KvCudaEngine *engine, const KvCudaShape *shape, GError **error);

#endif
