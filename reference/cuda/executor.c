#include "reference/cuda/executor.h"

#include "reference/cuda/forward.h"
#include "sim/base/error.h"

typedef struct {
  KvExecutor base;
  KvCudaDevice *device;
  KvCudaWeights *weights;
  KvCudaCache *cache;
  KvCudaEngine *engine;
  KvHostLedger ledger;
  GQueue copies; /* of CudaCopy, in order of completion */
  double link_free_seconds;
  GError *problem; /* of a call that cannot report: the next step does */
} CudaExecutor;

typedef struct {
  KvCopy copy;
  double asked_seconds, done_seconds;
  gboolean made;
} CudaCopy;

gboolean kv_cuda_executor_is_built(void) {
  return TRUE;
}

/* Make the blocks' copies that wait, and share their time among the copies that the engine asked
 * for, by bytes. */
static void make_copies(CudaExecutor *cuda) {
  double seconds = 0.0, bytes = 0.0;
  if (cuda->problem || !kv_cuda_cache_flush(cuda->cache, &seconds, &cuda->problem))
    seconds = 0.0;
  for (GList *l = cuda->copies.head; l; l = l->next) {
    const CudaCopy *c = l->data;
    bytes += c->made ? 0.0 : c->copy.bytes;
  }
  for (GList *l = cuda->copies.head; l; l = l->next) {
    CudaCopy *c = l->data;
    if (c->made)
      continue;
    c->made = TRUE;
    c->done_seconds = MAX(cuda->link_free_seconds, c->asked_seconds) +
                      (bytes > 0.0 ? seconds * c->copy.bytes / bytes : 0.0);
    cuda->link_free_seconds = c->done_seconds;
  }
}

static gboolean batch_run(CudaExecutor *cuda, KvHostBatch *batch, KvCudaWork *work,
                          GError **error) {
  if (!kv_host_batch_check(&cuda->ledger, batch, error))
    return FALSE;
  if (batch->n && !kv_cuda_engine_run(cuda->engine, batch->spans, batch->n, work, error))
    return FALSE;
  return kv_host_batch_keep(&cuda->ledger, batch, error);
}

/* Add one repeat's work to the cost. */
static void charge(const KvCudaWork *work, KvStepCost *cost) {
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    cost->component_seconds[c] += work->component_seconds[c];
  cost->flops += work->flops;
  cost->hbm_bytes += work->bytes;
  cost->seconds += work->seconds;
  cost->last_seconds = work->seconds;
}

static gboolean cuda_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                          GError **error) {
  CudaExecutor *cuda = (CudaExecutor *)executor;
  *cost = (KvStepCost){0};
  g_return_val_if_fail(!step->decode.n || step->decode.members, FALSE);
  g_return_val_if_fail(!step->n_chunks || step->repeat == 1, FALSE);
  make_copies(cuda);
  if (cuda->problem) {
    g_propagate_error(error, g_steal_pointer(&cuda->problem));
    return FALSE;
  }
  for (guint64 repeat = 0; repeat < step->repeat; repeat++) {
    KvHostBatch batch = {0};
    KvCudaWork work = {0};
    gboolean done = kv_host_batch_fill(&cuda->ledger, &batch, step, repeat, error) &&
                    batch_run(cuda, &batch, &work, error);
    kv_host_batch_clear(&batch);
    if (!done)
      return FALSE;
    charge(&work, cost);
    if (!repeat)
      cost->first_seconds = cost->last_seconds;
  }
  return TRUE;
}

/* When it is done is known once its blocks were moved, which may come after. */
static void cuda_copy(KvExecutor *executor, const KvCopy *copy, double now) {
  CudaCopy *asked = g_new(CudaCopy, 1);
  *asked = (CudaCopy){.copy = *copy, .asked_seconds = now};
  g_queue_push_tail(&((CudaExecutor *)executor)->copies, asked);
}

static double cuda_next_copy(KvExecutor *executor) {
  CudaExecutor *cuda = (CudaExecutor *)executor;
  if (g_queue_is_empty(&cuda->copies))
    return G_MAXDOUBLE;
  make_copies(cuda);
  return ((const CudaCopy *)g_queue_peek_head(&cuda->copies))->done_seconds;
}

static gboolean cuda_pop_copy(KvExecutor *executor, double now, KvCopy *copy) {
  if (cuda_next_copy(executor) > now)
    return FALSE;
  g_autofree CudaCopy *first = g_queue_pop_head(&((CudaExecutor *)executor)->copies);
  *copy = first->copy;
  return TRUE;
}

static void cuda_move_block(KvExecutor *executor, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to) {
  CudaExecutor *cuda = (CudaExecutor *)executor;
  if (!cuda->problem)
    kv_cuda_cache_move(cuda->cache, from_tier, from, to_tier, to, &cuda->problem);
}

static void cuda_forget(KvExecutor *executor, KvSequence *sequence) {
  kv_cuda_engine_forget(((CudaExecutor *)executor)->engine, sequence->index);
  kv_host_ledger_forget(&((CudaExecutor *)executor)->ledger, sequence);
}

static void cuda_destroy(KvExecutor *executor) {
  CudaExecutor *cuda = (CudaExecutor *)executor;
  g_queue_clear_full(&cuda->copies, g_free);
  g_clear_error(&cuda->problem);
  kv_cuda_engine_free(cuda->engine);
  kv_cuda_cache_free(cuda->cache);
  kv_cuda_weights_free(cuda->weights);
  kv_cuda_device_close(cuda->device);
  g_free(cuda);
}

static const KvExecutorClass cuda_executor_class = {
    .name = "cuda",
    .description = "computes every step on an NVIDIA GPU (measured time)",
    .step = cuda_step,
    .copy = cuda_copy,
    .next_copy = cuda_next_copy,
    .pop_copy = cuda_pop_copy,
    .move_block = cuda_move_block,
    .forget = cuda_forget,
    .destroy = cuda_destroy,
};

static gboolean executor_init(CudaExecutor *cuda, const KvCudaSettings *s, GError **error) {
  if (!(cuda->device = kv_cuda_device_open(error)) ||
      !(cuda->weights =
            kv_cuda_weights_new(cuda->device, s->model, s->checkpoint, s->seed, error)) ||
      !(cuda->cache =
            kv_cuda_cache_new_compressed(cuda->device, cuda->weights, s->block_tokens,
                                         s->hbm_blocks, s->dram_blocks, s->compression, error)) ||
      !(cuda->engine =
            kv_cuda_engine_new(cuda->device, cuda->weights, cuda->cache, s->max_positions, error)))
    return FALSE;
  kv_cuda_engine_set_graph_rows(cuda->engine, s->graph_rows);
  cuda->ledger = (KvHostLedger){.executor = "cuda",
                                .vocab = cuda->weights->vocab,
                                .block_tokens = s->block_tokens,
                                .max_positions = s->max_positions,
                                .oldest_window = kv_host_oldest_window(s->model),
                                .hash_block_tokens = s->hash_block_tokens,
                                .n_blocks = s->hbm_blocks,
                                .names = cuda->cache->hbm_names,
                                .compression = &cuda->cache->compression,
                                .sink = s->sink,
                                .sink_user = s->sink_user};
  return TRUE;
}

KvExecutor *kv_cuda_executor_new(const KvCudaSettings *settings, GError **error) {
  g_return_val_if_fail(settings && settings->model && settings->block_tokens, NULL);
  CudaExecutor *cuda = g_new0(CudaExecutor, 1);
  cuda->base.class = &cuda_executor_class;
  g_queue_init(&cuda->copies);
  if (executor_init(cuda, settings, error))
    return &cuda->base;
  cuda_destroy(&cuda->base);
  return NULL;
}
