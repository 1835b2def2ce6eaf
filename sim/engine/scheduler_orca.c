/* Orca (OSDI 2022, algorithm 1): iteration-level scheduling, first come first served.
 *
 * Every running request takes part in every iteration. A request enters with its whole prompt when
 * there is a row for it (max_seqs) and its worst case can be reserved; the scan stops at the first
 * that cannot. A reservation is held to the end, so nobody is ever preempted. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  batch->decodes = TRUE;
  while (instance->waiting.n > 0) {
    KvSequence *head = instance->waiting.head;
    if (instance->n_running >= instance->config->max_seqs || !kv_instance_reserve(instance, head)) {
      instance->blocked = TRUE;
      break;
    }
    kv_instance_admit(instance, head, NULL, now);
    kv_instance_add_chunk(instance, batch, head, head->target_tokens);
  }
}

const KvSchedulerClass kv_scheduler_orca = {
    .name = "orca",
    .description = "Orca: iteration-level, first come first served, worst case reserved",
    .schedule = schedule,
};
