/* The `cuda` executor: every STEP and COPY of the engine carried out by an NVIDIA GPU, with real
 * weights, real paged blocks and measured time.
 *
 * It is the host executor's twin (reference/host/executor.h): the same spans, the same checks of
 * every block table, the same greedy tokens up to bf16's rounding. A step takes the GPU's time from
 * the upload of its inputs to the download of its tokens; a copy takes the GPU's time of its
 * blocks' copies. Those durations advance the engine's clock, so arrivals keep their meaning
 * whatever the host does in between.
 *
 * Where the program was built without CUDA, kv_cuda_executor_new() says so. One thread at a time.
 */
#ifndef KV_REFERENCE_CUDA_EXECUTOR_H
#define KV_REFERENCE_CUDA_EXECUTOR_H

#include <glib.h>

#include "models/llm/llm.h"
#include "reference/host/ledger.h"
#include "sim/engine/executor.h"

/* Whether this program was built with CUDA. */
gboolean kv_cuda_executor_is_built(void);

typedef struct {
  const KvModel *model;
  const char *checkpoint; /* a Hugging Face folder, or NULL: weights from the seed */
  guint block_tokens;     /* a power of two */
  guint64 hbm_blocks, dram_blocks;
  guint64 ssd_blocks;        /* of a file (file_store.h); 0: none */
  const char *ssd_folder;    /* where it is made */
  guint32 hash_block_tokens; /* the trace's, 0 if it has none */
  guint max_positions;       /* longest sequence */
  guint graph_rows;          /* largest batch that is replayed as a graph, 0: none */
  guint64 seed;
  const KvHostCompression *compression; /* of the cache; NULL: none */
  KvHostSink sink;                      /* gets a sequence's tokens when it is forgotten; or NULL */
  gpointer sink_user;
} KvCudaSettings;

/* Nothing of `settings` is kept but the sink. NULL with *error set: no GPU, an old driver, out of
 * memory, a model that is not computed, a broken checkpoint. Release with its class's destroy(). */
KvExecutor *kv_cuda_executor_new(const KvCudaSettings *settings, GError **error);

#endif
