/* TensorRT-LLM (1.x): guaranteed no eviction.
 *
 * Two stages an iteration. Capacity: running sequences keep room for their whole answers, and the
 * head of the queue is admitted if its prompt and its whole answer fit beside them; the first that
 * does not fit blocks all behind it. Micro-batch: every decoding sequence counts one token of the
 * budget; prompts take what is left, whole unless chunked prefill is on, and one that does not fit
 * waits. Nobody is ever preempted.
 *
 * Not modelled: hits that end inside a block and deferral of equal prefixes. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static guint64 whole_blocks(const KvInstance *instance, const KvSequence *sequence) {
  double tokens = (double)kv_sequence_end_tokens(sequence);
  return MAX(
      kv_demand_blocks(&instance->demand, tokens, sequence->input_tokens, TRUE),
      kv_demand_blocks(&instance->demand, sequence->input_tokens, sequence->input_tokens, FALSE));
}

/* Blocks that no running sequence may come to need. A shared prefix is counted for each that uses
 * it. */
static guint64 unreserved(const KvInstance *instance) {
  guint64 total = kv_pool_total(instance->pool), reserved = 0;
  for (const KvSequence *s = instance->running.head; s; s = s->next)
    reserved += whole_blocks(instance, s);
  /* What those still hold whose last token is on its way. */
  for (guint b = 0; b < instance->n_batches; b++)
    for (guint i = 0; i < instance->batches[b]->ending->len; i++)
      reserved += whole_blocks(instance, g_ptr_array_index(instance->batches[b]->ending, i));
  return total > reserved ? total - reserved : 0;
}

/* A prompt's share of the budget now; 0: it waits. */
static guint32 share_of(const KvEngineConfig *config, guint32 want, guint64 budget) {
  if (want <= budget)
    return want;
  if (!config->chunked_prefill)
    return 0;
  return (guint32)(budget / config->block_tokens * config->block_tokens);
}

static gboolean continue_prompts(KvInstance *instance, KvBatch *batch, guint64 *budget) {
  for (guint i = 0; i < instance->prefilling->len; i++) {
    KvSequence *sequence = g_ptr_array_index(instance->prefilling, i);
    guint32 want =
        share_of(instance->config, sequence->target_tokens - sequence->computed_tokens, *budget);
    if (want == 0)
      return FALSE;
    kv_instance_add_chunk(instance, batch, sequence, want);
    *budget -= want;
  }
  return TRUE;
}

static gboolean admit_head(KvInstance *instance, KvBatch *batch, guint64 *budget, double now) {
  KvSequence *head = instance->waiting.head;
  KvPrefixHit hit = kv_instance_lookup(instance, head, head->target_tokens - 1);
  if (whole_blocks(instance, head) > unreserved(instance)) {
    instance->blocked = TRUE;
    return FALSE;
  }
  guint32 want = share_of(instance->config, head->target_tokens - (guint32)hit.tokens, *budget);
  if (want == 0)
    return FALSE;
  kv_instance_admit(instance, head, &hit, now);
  kv_instance_add_chunk(instance, batch, head, want);
  *budget -= want;
  return TRUE;
}

/* Batch waiting: beside decodes, prompts wait up to batch_wait_steps steps for a fuller step. */
static gboolean withheld(KvInstance *instance, KvBatch *batch, guint64 decoding, guint64 budget) {
  const KvEngineConfig *config = instance->config;
  if (config->batch_wait_steps == 0 || decoding == 0 ||
      instance->prefilling->len + instance->waiting.n == 0)
    return FALSE;
  guint64 prompts = 0, slots = (guint64)config->data_parallel * config->max_seqs;
  guint64 free_slots = slots > instance->n_running ? slots - instance->n_running : 0;
  for (guint i = 0; i < instance->prefilling->len; i++) {
    const KvSequence *s = g_ptr_array_index(instance->prefilling, i);
    prompts += s->target_tokens - s->computed_tokens;
  }
  for (const KvSequence *s = instance->waiting.head; s && free_slots > 0; s = s->next, free_slots--)
    prompts += s->target_tokens;
  gboolean full = (double)(prompts + decoding) >= config->batch_wait_share * (double)budget;
  if (prompts == 0 || full || instance->withheld_steps >= config->batch_wait_steps) {
    instance->withheld_steps = 0;
    return FALSE;
  }
  instance->withheld_steps++;
  batch->most_repeats = 1;
  return TRUE;
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  const KvEngineConfig *config = instance->config;
  guint64 decoding = kv_decode_set_size(instance->decode);
  guint64 budget = (guint64)config->data_parallel * config->max_batched_tokens;
  batch->decodes = decoding > 0;
  if (withheld(instance, batch, decoding, budget))
    return;
  budget -= MIN(budget, decoding);
  if (!continue_prompts(instance, batch, &budget))
    return;
  while (budget > 0 && instance->waiting.n > 0) {
    if (instance->n_running >= config->data_parallel * config->max_seqs) {
      instance->blocked = TRUE;
      break;
    }
    if (!admit_head(instance, batch, &budget, now))
      break;
  }
}

const KvSchedulerClass kv_scheduler_trtllm = {
    .name = "trtllm",
    .description = "TensorRT-LLM 1.x: room for whole answers, no eviction, prompts beside decodes",
    .schedule = schedule,
    .shares_prefixes = TRUE,
    .async = TRUE,
};
