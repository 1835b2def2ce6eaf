/* vLLM of 2023, in its two forms.
 *
 * "vllm-2023" (v0.1.3 to v0.2): an iteration runs either newly admitted whole prompts or the
 * decoding sequences, prompts first. "vllm-2023-mixed" (v0.1.0 to v0.1.2, the system of the paper):
 * decoding sequences and newly admitted prompts together. A watermark of blocks is kept free at
 * admission and swap-in only. The youngest is preempted, by recomputation (single sequences) or by
 * swapping; while anybody is swapped out nobody new is admitted. "vtensor" is the first of them
 * with prompts that begin with what the cache has: what it found is not computed. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static guint64 watermark_blocks(const KvInstance *instance) {
  return (guint64)(instance->config->watermark * (double)kv_pool_total(instance->pool));
}

/* Admit whole prompts from the head of the queue while `used` tokens of the budget and the blocks
 * allow. */
static void admit_prompts(KvInstance *instance, KvBatch *batch, guint64 used, double now) {
  const KvEngineConfig *config = instance->config;
  while (instance->waiting.n > 0 && instance->swapped.n == 0) {
    KvSequence *head = instance->waiting.head;
    guint64 available = kv_instance_available(instance, batch->decodes);
    KvPrefixHit hit = kv_instance_lookup(instance, head, head->target_tokens - 1);
    guint64 needed = kv_instance_needed(instance, head, head->target_tokens) -
                     hit.tokens / config->block_tokens + hit.free_blocks;
    if (needed + watermark_blocks(instance) > available ||
        instance->n_running >= config->max_seqs) {
      instance->blocked = TRUE;
      break;
    }
    guint32 want = head->target_tokens - (guint32)hit.tokens;
    if (used + want > config->max_batched_tokens &&
        (batch->chunks->len > 0 || want <= config->max_batched_tokens))
      break; /* a resumed prompt beyond the whole budget runs alone */
    used += want;
    kv_instance_admit(instance, head, &hit, now);
    kv_instance_add_chunk(instance, batch, head, want);
  }
}

static void swap_in(KvInstance *instance, KvBatch *batch) {
  while (instance->swapped.n > 0 && instance->n_running < instance->config->max_seqs) {
    KvSequence *head = instance->swapped.head;
    guint64 needed = head->swapped_blocks + 1 + watermark_blocks(instance);
    if (needed > kv_instance_available(instance, TRUE) && instance->running.n > 0)
      break; /* alone it fits, whatever else should stay free */
    kv_instance_swap_in(instance, batch, head);
  }
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  admit_prompts(instance, batch, 0, now);
  if (batch->chunks->len > 0)
    return;
  gboolean preempted = kv_instance_make_room(instance, batch);
  if (!preempted)
    swap_in(instance, batch);
  batch->decodes = TRUE;
}

static void schedule_mixed(KvInstance *instance, double now, KvBatch *batch) {
  gboolean preempted = kv_instance_make_room(instance, batch);
  batch->decodes = TRUE;
  if (!preempted) {
    swap_in(instance, batch);
    admit_prompts(instance, batch, kv_decode_set_size(instance->decode), now);
  }
}

const KvSchedulerClass kv_scheduler_vllm_2023 = {
    .name = "vllm-2023",
    .description = "vLLM 0.1.3 to 0.2: whole prompts first, alone; watermark; recompute or swap",
    .schedule = schedule,
};

const KvSchedulerClass kv_scheduler_vllm_2023_mixed = {
    .name = "vllm-2023-mixed",
    .description = "vLLM 0.1.0 to 0.1.2, the paper's: prompts and decodes in one iteration",
    .schedule = schedule_mixed,
};

const KvSchedulerClass kv_scheduler_vtensor = {
    .name = "vtensor",
    .description = "vTensor: as vllm-2023, with prefixes that live sequences have in common",
    .schedule = schedule,
    .shares_prefixes = TRUE,
};
