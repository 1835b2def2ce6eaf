/* Static batching: a batch is taken whole, runs until its last member is done, and only then the
 * next one is taken.
 *
 * "static" is FasterTransformer behind a simple batcher: the earliest arrivals, as many as fit.
 * "flexgen" takes blocks of gpu_batch * n_gpu_batches sequences; that a block is computed in gpu
 * batches with weights streamed once is priced by the executor. Rows of finished members are
 * computed on; answers come back when the batch ends. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static void take_batch(KvInstance *instance, KvBatch *batch, guint rows, double now) {
  while (instance->waiting.n > 0 && instance->n_running < rows) {
    KvSequence *head = instance->waiting.head;
    if (instance->buddy
            ? !kv_instance_reserve(instance, head)
            : kv_instance_needed(instance, head, (guint32)kv_sequence_end_tokens(head)) >
                  kv_instance_available(instance, FALSE))
      break;
    kv_instance_admit(instance, head, NULL, now);
    kv_instance_add_chunk(instance, batch, head, head->target_tokens);
  }
}

static void schedule_rows(KvInstance *instance, double now, KvBatch *batch, guint rows) {
  if (instance->n_running == 0) {
    take_batch(instance, batch, rows, now);
    return;
  }
  instance->blocked = TRUE; /* arrivals wait for the whole batch */
  batch->decodes = TRUE;
}

static void schedule_static(KvInstance *instance, double now, KvBatch *batch) {
  guint rows = instance->config->static_batch;
  schedule_rows(instance, now, batch, rows ? rows : instance->config->max_seqs);
}

static void schedule_flexgen(KvInstance *instance, double now, KvBatch *batch) {
  schedule_rows(instance, now, batch,
                instance->config->gpu_batch * instance->config->n_gpu_batches);
}

const KvSchedulerClass kv_scheduler_static = {
    .name = "static",
    .description = "request-level batches that run to the end of their longest member",
    .schedule = schedule_static,
    .holds_rows = TRUE,
};

const KvSchedulerClass kv_scheduler_flexgen = {
    .name = "flexgen",
    .description = "FlexGen: blocks of GPU batches, weights streamed once a block",
    .schedule = schedule_flexgen,
    .holds_rows = TRUE,
};
