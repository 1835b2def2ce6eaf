/* DistServe (section 4.3 and the artifact's two stage schedulers): instances that compute prompts
 * only, and instances that decode only.
 *
 * A prefill instance takes whole prompts in order while the batch, the token budget and the blocks
 * allow; blocks of prompts that nobody has pulled yet are not free, so bursts back up here. A
 * prompt longer than the budget runs alone. A decode instance swaps out the last of its batch while
 * blocks are short, then lets in who was swapped out, then what it has pulled, in order. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static void schedule_prompts(KvInstance *instance, double now, KvBatch *batch) {
  const KvEngineConfig *config = instance->config;
  guint64 used = 0;
  while (instance->waiting.n > 0 && batch->chunks->len < config->max_seqs) {
    KvSequence *head = instance->waiting.head;
    if (batch->chunks->len > 0 && used + head->target_tokens > config->max_batched_tokens)
      break;
    if (kv_instance_needed(instance, head, head->target_tokens) >
        kv_instance_available(instance, FALSE)) {
      instance->blocked = TRUE;
      break;
    }
    used += head->target_tokens;
    kv_instance_admit(instance, head, NULL, now);
    kv_instance_add_chunk(instance, batch, head, head->target_tokens);
  }
}

static void swap_in(KvInstance *instance, KvBatch *batch) {
  while (instance->swapped.n > 0 && instance->n_running < instance->config->max_seqs) {
    KvSequence *head = instance->swapped.head;
    gboolean alone = instance->n_running == 0 && instance->pulled_blocks == 0;
    if (head->swapped_blocks + 1 > kv_instance_available(instance, TRUE) && !alone)
      break; /* alone it fits, to its end */
    kv_instance_swap_in(instance, batch, head);
  }
}

/* The head of what was pulled joins; one that has lost its cache here is computed again here.
 * FALSE: it must wait. */
static gboolean admit_head(KvInstance *instance, KvBatch *batch, double now) {
  KvSequence *head = instance->waiting.head;
  gboolean held = kv_pool_held(instance->pool, head) > 0;
  guint32 tokens = held ? head->computed_tokens + 1 : head->target_tokens;
  if (kv_instance_needed(instance, head, tokens) > kv_instance_available(instance, TRUE)) {
    if (kv_instance_unload_last(instance))
      return TRUE;
    instance->blocked = TRUE;
    return FALSE;
  }
  if (held) {
    kv_instance_join(instance, head);
  } else {
    kv_instance_admit(instance, head, NULL, now);
    kv_instance_add_chunk(instance, batch, head, tokens);
  }
  return TRUE;
}

static void schedule_answers(KvInstance *instance, double now, KvBatch *batch) {
  if (!kv_instance_make_room(instance, batch)) {
    swap_in(instance, batch);
    while (instance->waiting.n > 0 && (instance->swapped.n == 0 || instance->n_running == 0)) {
      if (instance->n_running >= instance->config->max_seqs) {
        instance->blocked = TRUE;
        break;
      }
      if (!admit_head(instance, batch, now))
        break;
    }
  }
  batch->decodes = TRUE;
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  if (instance->role == KV_INSTANCE_PREFILL)
    schedule_prompts(instance, now, batch);
  else
    schedule_answers(instance, now, batch);
}

const KvSchedulerClass kv_scheduler_distserve = {
    .name = "distserve",
    .description =
        "DistServe: prompts and answers on instances of their own, caches pulled between",
    .schedule = schedule,
};
