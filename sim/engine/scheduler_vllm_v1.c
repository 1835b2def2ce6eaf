/* vLLM v1 (0.19): one token budget for everything, running sequences first, in admission order.
 *
 * Running pass: every decoding sequence takes one token; unfinished prompts take chunks of what the
 * budget leaves; while blocks are short, the sequence admitted last is preempted and will be
 * recomputed. Waiting pass, only if nobody was preempted: the head is admitted while the budget,
 * the slots and the blocks of its whole prompt allow; the first that cannot be admitted blocks all
 * behind it. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static guint32 chunk_want(const KvEngineConfig *config, guint32 want, guint64 budget) {
  if (config->long_prefill_threshold > 0)
    want = MIN(want, config->long_prefill_threshold);
  if (config->data_parallel > 1) /* one rank's budget is as much as a prompt can get */
    budget = MIN(budget, config->max_batched_tokens);
  return (guint32)MIN(want, budget);
}

/* Unfinished prompts, oldest first. TRUE if anybody was preempted. */
static gboolean continue_prompts(KvInstance *instance, KvBatch *batch, guint64 *budget) {
  gboolean preempted = FALSE;
  for (guint i = 0; i<instance->prefilling->len && * budget> 0; i++) {
    KvSequence *sequence = g_ptr_array_index(instance->prefilling, i);
    guint32 want =
        chunk_want(instance->config, kv_instance_prompt_left(instance, sequence), *budget);
    while (kv_instance_needed(instance, sequence, sequence->computed_tokens + want) >
           kv_instance_available(instance, batch->decodes)) {
      gboolean itself = instance->running.tail == sequence;
      kv_instance_preempt_last(instance, batch);
      preempted = TRUE;
      if (itself)
        return TRUE;
    }
    kv_instance_add_chunk(instance, batch, sequence, want);
    *budget -= want;
  }
  return preempted;
}

/* Try the head of the queue. FALSE: it must wait, and everybody behind it. */
static gboolean admit_head(KvInstance *instance, KvBatch *batch, guint64 *budget, double now) {
  const KvEngineConfig *config = instance->config;
  KvSequence *head = instance->waiting.head;
  guint64 available = kv_instance_available(instance, batch->decodes);
  gboolean loaded = head->computed_tokens > 0; /* its prefix has come up from the lower tier */
  KvPrefixHit hit = {0};
  if (!loaded)
    hit = kv_instance_lookup(instance, head, head->target_tokens - 1);
  guint32 cached = loaded ? head->computed_tokens : (guint32)(hit.tokens + hit.tier_tokens);
  guint32 want = head->target_tokens - cached;
  if (!config->chunked_prefill && want > *budget)
    return FALSE;
  want = chunk_want(config, want, *budget);
  guint64 hit_blocks = hit.tokens / config->block_tokens;
  guint32 whole = config->reserve_full_prompt ? head->target_tokens : cached + want;
  guint64 needed = kv_instance_needed(instance, head, whole) - (loaded ? 0 : hit_blocks);
  if (needed + hit.free_blocks > available) {
    if (kv_instance_unload_last(instance))
      return TRUE; /* prefixes loaded for several keep each other from running: try again */
    instance->blocked = TRUE;
    return FALSE;
  }
  kv_instance_admit(instance, head, loaded ? NULL : &hit, now);
  if (head->state == KV_SEQUENCE_LOADING)
    return TRUE; /* uses neither budget nor a slot */
  if (head->race_end > 0)
    want = chunk_want(config, kv_instance_prompt_left(instance, head), *budget);
  kv_instance_add_chunk(instance, batch, head, want);
  *budget -= want;
  return TRUE;
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  gboolean preempted = kv_instance_make_room(instance, batch);
  batch->decodes = kv_decode_set_size(instance->decode) > 0;
  guint64 decoding = kv_decode_set_size(instance->decode);
  guint64 ranks = instance->config->data_parallel;
  guint64 budget = ranks * instance->config->max_batched_tokens;
  budget -= MIN(budget, decoding);
  preempted |= continue_prompts(instance, batch, &budget);
  while (!preempted && budget > 0 && instance->waiting.n > 0) {
    if (instance->n_running >= ranks * instance->config->max_seqs) {
      instance->blocked = TRUE;
      break;
    }
    if (!admit_head(instance, batch, &budget, now))
      break;
  }
}

const KvSchedulerClass kv_scheduler_vllm_v1 = {
    .name = "vllm-v1",
    .description = "vLLM 0.19: token budget, running first, chunked prefill, recomputation",
    .schedule = schedule,
    .shares_prefixes = TRUE,
    .between_steps_seconds = KV_VLLM_BETWEEN_STEPS_SECONDS,
    .async = TRUE,
};
