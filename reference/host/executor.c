#include "reference/host/executor.h"

#include "reference/host/format.h"
#include "sim/base/error.h"

typedef struct {
  KvExecutor base;
  KvHostWeights *weights;
  KvHostCache *cache;
  KvHostLedger ledger;
  gboolean measured;
  GQueue copies; /* of HostCopy, in order of completion */
  double link_free_seconds;
} HostExecutor;

typedef struct {
  KvCopy copy;
  double done_seconds;
} HostCopy;

static gboolean batch_run(HostExecutor *host, KvHostBatch *batch, KvHostWork *work,
                          GError **error) {
  if (!kv_host_batch_check(&host->ledger, batch, error))
    return FALSE;
  if (batch->n)
    kv_host_forward(host->weights, host->cache, batch->spans, batch->n, work);
  return kv_host_batch_keep(&host->ledger, batch, error);
}

/* Add one repeat's work to the cost. */
static double charge(const HostExecutor *host, const KvHostWork *work, KvStepCost *cost) {
  double seconds = 0.0;
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    double part =
        host->measured ? work->wall_seconds[c] : work->flops[c] / KV_HOST_FLOPS_PER_SECOND;
    cost->component_seconds[c] += part;
    cost->flops += work->flops[c];
    seconds += part;
  }
  cost->hbm_bytes += work->bytes;
  cost->seconds += seconds;
  return seconds;
}

static gboolean host_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                          GError **error) {
  HostExecutor *host = (HostExecutor *)executor;
  *cost = (KvStepCost){0};
  g_return_val_if_fail(!step->decode.n || step->decode.members, FALSE);
  g_return_val_if_fail(!step->n_chunks || step->repeat == 1, FALSE);
  for (guint64 repeat = 0; repeat < step->repeat; repeat++) {
    KvHostBatch batch = {0};
    KvHostWork work = {0};
    gboolean done = kv_host_batch_fill(&host->ledger, &batch, step, repeat, error) &&
                    batch_run(host, &batch, &work, error);
    kv_host_batch_clear(&batch);
    if (!done)
      return FALSE;
    cost->last_seconds = charge(host, &work, cost);
    if (!repeat)
      cost->first_seconds = cost->last_seconds;
  }
  return TRUE;
}

static void host_copy(KvExecutor *executor, const KvCopy *copy, double now) {
  HostExecutor *host = (HostExecutor *)executor;
  HostCopy *under_way = g_new(HostCopy, 1);
  host->link_free_seconds = MAX(host->link_free_seconds, now) + copy->bytes / KV_HOST_COPY_BPS;
  *under_way = (HostCopy){.copy = *copy, .done_seconds = host->link_free_seconds};
  g_queue_push_tail(&host->copies, under_way);
}

static double host_next_copy(KvExecutor *executor) {
  const HostCopy *first = g_queue_peek_head(&((HostExecutor *)executor)->copies);
  return first ? first->done_seconds : G_MAXDOUBLE;
}

static gboolean host_pop_copy(KvExecutor *executor, double now, KvCopy *copy) {
  if (host_next_copy(executor) > now)
    return FALSE;
  g_autofree HostCopy *first = g_queue_pop_head(&((HostExecutor *)executor)->copies);
  *copy = first->copy;
  return TRUE;
}

static void host_move_block(KvExecutor *executor, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to) {
  kv_host_cache_move(((HostExecutor *)executor)->cache, from_tier, from, to_tier, to);
}

static void host_forget(KvExecutor *executor, KvSequence *sequence) {
  kv_host_cache_forget(((HostExecutor *)executor)->cache, sequence->index);
  kv_host_ledger_forget(&((HostExecutor *)executor)->ledger, sequence);
}

static void host_destroy(KvExecutor *executor) {
  HostExecutor *host = (HostExecutor *)executor;
  kv_host_weights_free(host->weights);
  kv_host_cache_free(host->cache);
  g_queue_clear_full(&host->copies, g_free);
  g_free(host);
}

const KvExecutorClass kv_host_executor_class = {
    .name = "host",
    .description = "computes every step with a small transformer in plain C (virtual time)",
    .step = host_step,
    .copy = host_copy,
    .next_copy = host_next_copy,
    .pop_copy = host_pop_copy,
    .move_block = host_move_block,
    .forget = host_forget,
    .destroy = host_destroy,
};

KvExecutor *kv_host_executor_new_with(KvHostWeights *given, const KvModel *model,
                                      guint block_tokens, guint64 hbm_blocks, guint64 dram_blocks,
                                      guint32 hash_block_tokens, GError **error) {
  g_return_val_if_fail(given && model && block_tokens, NULL);
  g_autoptr(KvHostWeights) weights = given;
  KvHostCache *cache = kv_host_cache_new(weights, block_tokens, hbm_blocks, dram_blocks, error);
  if (!cache)
    return NULL;
  HostExecutor *host = g_new0(HostExecutor, 1);
  host->base.class = &kv_host_executor_class;
  host->ledger = (KvHostLedger){.executor = "host",
                                .vocab = weights->vocab,
                                .block_tokens = block_tokens,
                                .max_positions = weights->max_positions,
                                .oldest_window = kv_host_oldest_window(model),
                                .hash_block_tokens = hash_block_tokens,
                                .n_blocks = hbm_blocks,
                                .names = cache->hbm.names,
                                .exact = TRUE};
  host->weights = g_steal_pointer(&weights);
  host->cache = cache;
  g_queue_init(&host->copies);
  return &host->base;
}

KvExecutor *kv_host_executor_new(const KvModel *model, guint block_tokens, guint64 hbm_blocks,
                                 guint64 dram_blocks, guint32 hash_block_tokens, guint64 seed,
                                 GError **error) {
  g_return_val_if_fail(model && block_tokens, NULL);
  KvHostWeights *weights = kv_host_weights_new(model, seed, error);
  return weights ? kv_host_executor_new_with(weights, model, block_tokens, hbm_blocks, dram_blocks,
                                             hash_block_tokens, error)
                 : NULL;
}

const guint32 *kv_host_executor_output(KvExecutor *executor, const KvSequence *sequence, guint *n) {
  g_return_val_if_fail(executor && executor->class == &kv_host_executor_class && n, NULL);
  return kv_host_ledger_output(sequence, n);
}

void kv_host_executor_set_sink(KvExecutor *executor, KvHostSink sink, gpointer user) {
  g_return_if_fail(executor && executor->class == &kv_host_executor_class);
  KvHostLedger *ledger = &((HostExecutor *)executor)->ledger;
  ledger->sink = sink;
  ledger->sink_user = user;
}

void kv_host_executor_set_compression(KvExecutor *executor, const KvHostCompression *compression) {
  g_return_if_fail(executor && executor->class == &kv_host_executor_class && compression);
  HostExecutor *host = (HostExecutor *)executor;
  host->cache->compression = *compression;
  host->ledger.compression = &host->cache->compression;
  host->ledger.exact = kv_host_format(compression->format)->exact;
}

void kv_host_executor_set_measured(KvExecutor *executor, gboolean measured) {
  g_return_if_fail(executor && executor->class == &kv_host_executor_class);
  ((HostExecutor *)executor)->measured = measured;
}
