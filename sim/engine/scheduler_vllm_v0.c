/* vLLM 0.6 to 0.8 with its first engine ("V0"), without chunked prefill: the default for models of
 * up to 32k tokens until V1 replaced it.
 *
 * An iteration runs either newly admitted whole prompts or the decoding sequences, prompts first,
 * as in 2023; but prompts find their prefixes in the cache, and the token budget counts only what
 * is to be computed. A prefix that a connector of that time (LMCache) brings up from a lower tier
 * is loaded by the step that needs it: the engine waits for the copy, decoding sequences too. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static guint64 watermark_blocks(const KvInstance *instance) {
  return (guint64)(instance->config->watermark * (double)kv_pool_total(instance->pool));
}

/* Try the head of the queue. FALSE: it must wait, and everybody behind it. */
static gboolean admit_head(KvInstance *instance, KvBatch *batch, guint64 *used, double now) {
  const KvEngineConfig *config = instance->config;
  KvSequence *head = instance->waiting.head;
  gboolean loaded = head->computed_tokens > 0; /* its prefix has come up from the lower tier */
  KvPrefixHit hit = {0};
  if (!loaded)
    hit = kv_instance_lookup(instance, head, head->target_tokens - 1);
  guint64 found = loaded ? head->computed_tokens : hit.tokens + hit.tier_tokens;
  guint64 want = head->target_tokens - found;
  guint64 held = loaded ? 0 : hit.tokens / config->block_tokens;
  guint64 needed = kv_instance_needed(instance, head, head->target_tokens) - held;
  if (instance->n_running >= config->max_seqs ||
      needed + hit.free_blocks + watermark_blocks(instance) >
          kv_instance_available(instance, FALSE)) {
    if (kv_instance_unload_last(instance))
      return TRUE;
    instance->blocked = TRUE;
    return FALSE;
  }
  gboolean first = batch->chunks->len == 0;
  if (*used + want > config->max_batched_tokens && (!first || want <= config->max_batched_tokens))
    return FALSE; /* a resumed prompt beyond the whole budget runs alone */
  if (kv_instance_must_load(instance, &hit) && !first)
    return FALSE; /* the step that loads it comes next */
  kv_instance_admit(instance, head, loaded ? NULL : &hit, now);
  if (head->state == KV_SEQUENCE_LOADING)
    return FALSE;
  *used += want;
  kv_instance_add_chunk(instance, batch, head, (guint32)want);
  return TRUE;
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  guint64 used = 0;
  while (instance->waiting.n > 0 && instance->swapped.n == 0 && instance->n_loading == 0 &&
         admit_head(instance, batch, &used, now))
    ;
  if (batch->chunks->len > 0 || instance->n_loading > 0)
    return;
  kv_instance_make_room(instance, batch);
  batch->decodes = TRUE;
}

const KvSchedulerClass kv_scheduler_vllm_v0 = {
    .name = "vllm-v0",
    .description = "vLLM 0.6 to 0.8, first engine: whole prompts first, alone; prefix caching",
    .schedule = schedule,
    .shares_prefixes = TRUE,
    .between_steps_seconds = KV_VLLM_BETWEEN_STEPS_SECONDS,
};
