#include "sim/engine/instance.h"

#include <math.h>
#include <string.h>

#include "sim/engine/park.h"
#include "sim/engine/session_store.h"

const char *const kv_instance_role_names[] = {"whole", "prefill", "decode", NULL};

/* A copy whose completion was found while something else was timed. */
typedef struct {
  KvCopy copy;
  double end;
} Early;

/* Batches are few and reused. */

static KvBatch *batch_take(KvInstance *instance) {
  KvBatch *batch;
  if (instance->n_spare > 0) {
    batch = instance->spare[--instance->n_spare];
  } else {
    batch = g_new0(KvBatch, 1);
    batch->chunks = g_array_new(FALSE, FALSE, sizeof(KvChunk));
    batch->ending = g_ptr_array_new();
    batch->host = g_ptr_array_new();
    batch->stalled = g_array_new(FALSE, FALSE, sizeof(double));
    batch->values = g_new0(double, instance->n_channels + 1);
    batch->slopes = g_new0(double, instance->n_channels + 1);
  }
  g_array_set_size(batch->chunks, 0);
  g_ptr_array_set_size(batch->ending, 0);
  g_ptr_array_set_size(batch->host, 0);
  batch->host_first = 0;
  g_array_set_size(batch->stalled, 0);
  batch->until_seconds = G_MAXDOUBLE;
  batch->decodes = batch->open = batch->shortened = batch->reordered = FALSE;
  batch->decode_n = batch->padding = batch->repeat = batch->most_repeats = 0;
  batch->wait_seconds = batch->map_seconds = batch->gap_seconds = 0.0;
  batch->taken_blocks = 0;
  batch->shared = (KvSharedReads){0};
  return batch;
}

static void batch_free(KvInstance *instance, KvBatch *batch) {
  if (batch->pricing)
    instance->executor->class->pricing_free(batch->pricing);
  g_array_unref(batch->chunks);
  g_ptr_array_unref(batch->ending);
  g_ptr_array_unref(batch->host);
  g_array_unref(batch->stalled);
  g_free(batch->values);
  g_free(batch->slopes);
  g_free(batch);
}

static void batch_give(KvInstance *instance, KvBatch *batch) {
  g_assert(instance->n_spare < G_N_ELEMENTS(instance->spare));
  instance->spare[instance->n_spare++] = batch;
}

KvInstance *kv_instance_new(guint index, const KvEngineConfig *config, const KvPlanCurves *curves,
                            KvExecutor *executor, KvObserver *observer, guint64 blocks,
                            guint hash_block_tokens, const KvPlan *plan) {
  KvInstance *instance = g_new0(KvInstance, 1);
  gboolean reserved = strcmp(config->allocator, "reserved") == 0;
  instance->index = index;
  instance->config = config;
  instance->scheduler = kv_scheduler_find(config->scheduler);
  instance->executor = executor;
  instance->observer = observer;
  instance->n_channels = curves->n_channels;
  instance->curves = curves;
  kv_demand_init(&instance->demand, curves, config->block_tokens);
  instance->demand.slack_tokens = config->chunks.slack_tokens;
  instance->buddy_blocks = reserved ? blocks : 0;
  if (reserved)
    instance->buddy = kv_buddy_new(blocks, instance->scheduler->holds_rows);
  instance->pool = kv_pool_new(reserved ? 0 : blocks, config->block_tokens, hash_block_tokens,
                               config->prefix_caching && plan->shareable && !reserved,
                               !executor->class->closed_form);
  kv_pool_set_merging(instance->pool, config->merge_duplicates);
  kv_pool_set_retained(instance->pool, config->retained_blocks);
  if (plan->reads_shared_once)
    kv_pool_count_shared(instance->pool, MAX(1, plan->shared_readers_over));
  instance->reads_shared_once = plan->reads_shared_once;
  if (strcmp(config->allocator, "chunked") == 0) /* a block is a chunk of each layer's K and V */
    for (guint c = 0; c < plan->caches->len; c++)
      instance->block_map_seconds +=
          2.0 * g_array_index(plan->caches, KvCache, c).layers * config->chunks.map_seconds;
  instance->share_multiple = MAX(1, plan->share_multiple);
  instance->decode = kv_decode_set_new(curves, &instance->demand);
  instance->prefilling = g_ptr_array_new();
  instance->held_rows = g_ptr_array_new();
  instance->early = g_array_new(FALSE, FALSE, sizeof(Early));
  instance->depth = instance->scheduler->async && config->async_scheduling ? 2 : 1;
  instance->host_free_blocks = kv_instance_swap_blocks(config, &instance->demand);
  instance->host_blocks = instance->host_free_blocks;
  if (config->store.policy)
    instance->store = kv_session_store_new(instance);
  if (instance->scheduler->begin)
    instance->policy = instance->scheduler->begin(instance);
  if (!executor->class->closed_form) {
    instance->host_free_ids = g_new(guint32, instance->host_free_blocks + 1);
    for (guint64 i = 0; i < instance->host_free_blocks; i++)
      instance->host_free_ids[i] = (guint32)i;
  }
  return instance;
}

guint64 kv_instance_swap_blocks(const KvEngineConfig *config, const KvDemand *demand) {
  return (guint64)(config->swap_bytes / demand->block_bytes);
}

static void move_tier_block(gboolean down, guint32 pool_id, guint32 tier_id, gpointer user) {
  const KvInstance *instance = user;
  KvExecutor *executor = instance->executor;
  if (down)
    executor->class->move_block(executor, KV_TIER_HBM, pool_id, instance->tier, tier_id);
  else
    executor->class->move_block(executor, instance->tier, tier_id, KV_TIER_HBM, pool_id);
}

void kv_instance_set_tier(KvInstance *instance, KvTier tier, guint64 blocks) {
  gboolean real = !instance->executor->class->closed_form;
  /* Real executors keep swapped blocks and a tier in DRAM in one store: the swap space first. */
  guint64 first =
      tier == KV_TIER_DRAM ? kv_instance_swap_blocks(instance->config, &instance->demand) : 0;
  instance->tier = tier;
  kv_pool_set_tier(instance->pool, blocks, (guint32)first, real ? move_tier_block : NULL, instance);
}

void kv_instance_free(KvInstance *instance) {
  if (!instance)
    return;
  for (guint i = 0; i < instance->n_batches; i++)
    batch_free(instance, instance->batches[i]);
  for (guint i = 0; i < instance->n_spare; i++)
    batch_free(instance, instance->spare[i]);
  if (instance->scheduler->end)
    instance->scheduler->end(instance->policy);
  g_clear_pointer(&instance->calling, g_sequence_free);
  kv_session_store_free(instance->store);
  kv_decode_set_free(instance->decode);
  kv_pool_free(instance->pool);
  kv_buddy_free(instance->buddy);
  g_ptr_array_unref(instance->prefilling);
  g_ptr_array_unref(instance->held_rows);
  g_array_unref(instance->early);
  for (KvSequence *s = instance->left_behind.head, *next; s; s = next) {
    next = s->next;
    g_free(s->nodes);
    g_free(s);
  }
  g_free(instance->host_free_ids);
  g_free(instance);
}

guint kv_instance_waiting(const KvInstance *instance) {
  return instance->waiting.n + instance->swapped.n + instance->paused.n + instance->loading.n +
         instance->n_loading + instance->bridge.n + instance->pulling.n - instance->n_on_host;
}

guint kv_instance_running(const KvInstance *instance) {
  return instance->n_running + instance->n_on_host;
}

/* Blocks. */

guint64 kv_instance_available(const KvInstance *instance, gboolean decodes) {
  guint64 free_blocks = kv_pool_free_blocks(instance->pool);
  guint64 growth = decodes && !instance->buddy ? kv_decode_set_growth(instance->decode, 1) : 0;
  return free_blocks > growth ? free_blocks - growth : 0;
}

KvPrefixHit kv_instance_lookup(KvInstance *instance, const KvSequence *sequence,
                               guint32 limit_tokens) {
  if (instance->store)
    return (KvPrefixHit){.tier_tokens =
                             MIN(limit_tokens, kv_session_store_tokens(instance->store, sequence))};
  KvPrefixHit hit = kv_pool_lookup(instance->pool, sequence, limit_tokens);
  guint64 found = hit.tokens + hit.tier_tokens, surplus = found % instance->share_multiple;
  if (surplus > 0 && hit.own_blocks == 0) /* its own kept blocks may end anywhere */
    hit = kv_pool_lookup(instance->pool, sequence, (guint32)(found - surplus));
  return hit;
}

void kv_instance_order_waiting(KvInstance *instance, KvSequence *const *ordered) {
  guint n = instance->waiting.n;
  instance->waiting = (KvQueue){0};
  for (guint i = 0; i < n; i++)
    kv_queue_push_tail(&instance->waiting, ordered[i]);
}

guint64 kv_instance_needed(const KvInstance *instance, const KvSequence *sequence, guint32 tokens) {
  guint64 blocks = kv_demand_blocks(&instance->demand, tokens, sequence->input_tokens, FALSE);
  guint64 held = kv_pool_held(instance->pool, sequence);
  return blocks > held ? blocks - held : 0;
}

/* Blocks to reserve for the whole life of a request (the Orca variants of vLLM's evaluation,
 * section 6.1). */
static guint64 reserved_blocks(const KvInstance *instance, const KvSequence *sequence) {
  const KvEngineConfig *config = instance->config;
  guint64 tokens = kv_sequence_end_tokens(sequence);
  if (config->reservation == KV_RESERVE_MAX)
    tokens = config->max_model_len;
  if (config->reservation == KV_RESERVE_POW2)
    tokens =
        sequence->input_tokens + kv_buddy_rounded(sequence->output_tokens + sequence->call_tokens);
  return MAX(1, kv_demand_blocks(&instance->demand, (double)MIN(tokens, config->max_model_len),
                                 sequence->input_tokens, FALSE));
}

gboolean kv_instance_can_ever_serve(const KvInstance *instance, const KvSequence *sequence) {
  guint64 tokens = kv_sequence_end_tokens(sequence);
  if (tokens > instance->config->max_model_len)
    return FALSE;
  if (instance->buddy)
    return kv_buddy_can_ever_fit(instance->buddy, reserved_blocks(instance, sequence));
  if (instance->role == KV_INSTANCE_WHOLE && !instance->config->chunked_prefill &&
      tokens > instance->config->max_batched_tokens)
    return FALSE;
  /* The longest prompt: what a preemption just before its last token leaves to be computed again.
   */
  guint64 prompt =
      kv_demand_blocks(&instance->demand, (double)tokens - 1.0, sequence->input_tokens, FALSE);
  guint64 whole = kv_demand_blocks(&instance->demand, (double)tokens, sequence->input_tokens, TRUE);
  guint64 kept_free =
      (guint64)(instance->config->watermark * (double)kv_pool_total(instance->pool));
  if (instance->role == KV_INSTANCE_PREFILL)
    whole = prompt =
        kv_demand_blocks(&instance->demand, sequence->input_tokens, sequence->input_tokens, FALSE);
  if (instance->scheduler->offloads &&
      MAX(prompt, whole) <= kv_instance_swap_blocks(instance->config, &instance->demand))
    return TRUE;
  return MAX(prompt, whole) + kept_free <= kv_pool_total(instance->pool);
}

gboolean kv_instance_reserve(KvInstance *instance, KvSequence *sequence) {
  guint64 blocks = reserved_blocks(instance, sequence);
  if (!kv_buddy_reserve(instance->buddy, blocks, &sequence->reserved_start))
    return FALSE;
  sequence->reserved_blocks = blocks;
  if (!instance->executor->class->closed_form) { /* real memory: the table is the range itself */
    sequence->block_ids = g_renew(guint32, sequence->block_ids, blocks);
    sequence->n_block_ids = sequence->block_ids_size = (guint32)blocks;
    for (guint32 i = 0; i < blocks; i++)
      sequence->block_ids[i] = (guint32)sequence->reserved_start + i;
  }
  return TRUE;
}

void kv_instance_give_back(KvInstance *instance, KvSequence *sequence, gboolean keep) {
  if (sequence->reserved_blocks)
    kv_buddy_release(instance->buddy, sequence->reserved_start, sequence->reserved_blocks);
  sequence->reserved_blocks = 0;
  kv_pool_release(instance->pool, sequence, keep);
}

void kv_instance_join_decode(KvInstance *instance, KvSequence *sequence) {
  kv_decode_set_join(instance->decode, sequence);
  if (instance->reads_shared_once)
    kv_pool_read(instance->pool, sequence, TRUE);
}

/* Take a sequence out of the decoding set; its private blocks become its own count again. */
void kv_instance_leave_decode(KvInstance *instance, KvSequence *sequence) {
  if (instance->reads_shared_once)
    kv_pool_read(instance->pool, sequence, FALSE);
  guint64 held_private = sequence->private_blocks;
  guint64 shared = kv_pool_held(instance->pool, sequence) - held_private;
  kv_decode_set_leave(instance->decode, sequence, shared);
  if (instance->buddy)
    sequence->private_blocks = 0;
  else
    instance->taken_private -= sequence->private_blocks - held_private;
}

/* Cake, section 3: a prefix that the lower tier has is computed from its start, and loaded from its
 * end, a chunk at a time, until the two meet. */

/* Load the chunk before those that are there. */
static void load_next(KvInstance *instance, KvSequence *sequence, double now) {
  guint block = instance->config->block_tokens;
  guint64 most = MAX(1, instance->config->load_chunk_tokens / block);
  guint64 left = (sequence->loaded_from - sequence->computed_tokens + block - 1) / block;
  guint64 blocks = MIN(most, left);
  KvCopy copy = {.from = instance->tier,
                 .to = KV_TIER_HBM,
                 .bytes =
                     (double)blocks * instance->demand.block_bytes * instance->config->load_share,
                 .blocks = blocks,
                 .sequence = sequence,
                 .pinned = TRUE};
  instance->observer->class->moved(instance->observer, &copy, now);
  instance->executor->class->copy(instance->executor, &copy, now);
}

static void end_race(KvInstance *instance, KvSequence *sequence, double now) {
  instance->executor->class->cancel_copies(instance->executor, sequence, now);
  sequence->race_end = 0;
}

/* The two ends may have met: then the whole prefix is there. */
static gboolean meet(KvInstance *instance, KvSequence *sequence, double now) {
  if (sequence->computed_tokens < sequence->loaded_from)
    return FALSE;
  guint32 loaded = sequence->race_end - MIN(sequence->race_end, sequence->computed_tokens);
  guint32 computed = sequence->lower_tier_tokens - MIN(sequence->lower_tier_tokens, loaded);
  sequence->lower_tier_tokens -= computed;
  sequence->prompt_hit_tokens -= computed;
  sequence->computed_tokens = MAX(sequence->computed_tokens, sequence->race_end);
  end_race(instance, sequence, now);
  return TRUE;
}

guint32 kv_instance_prompt_left(const KvInstance *instance, const KvSequence *sequence) {
  if (sequence->race_end == 0)
    return sequence->target_tokens - sequence->computed_tokens;
  return MIN(instance->config->load_chunk_tokens,
             sequence->loaded_from - sequence->computed_tokens);
}

/* For schedulers. */

/* Tokens of the hit that are copied up from the lower tier. */
static guint64 loaded_tokens(const KvInstance *instance, const KvPrefixHit *hit) {
  gboolean all = instance->tier != KV_TIER_HBM && instance->config->tier_only;
  return hit->tier_tokens + (all ? hit->tokens : 0);
}

gboolean kv_instance_must_load(const KvInstance *instance, const KvPrefixHit *hit) {
  return hit && loaded_tokens(instance, hit) > 0;
}

void kv_instance_admit(KvInstance *instance, KvSequence *sequence, const KvPrefixHit *hit,
                       double now) {
  kv_queue_remove(&instance->waiting, sequence);
  if (sequence->swapped_blocks > 0) { /* there was no room to bring it back: it is recomputed */
    instance->host_free_blocks += sequence->swapped_blocks;
    instance->n_caches_on_host--;
    sequence->swapped_blocks = 0;
  }
  if (hit)
    kv_pool_take_hit(instance->pool, sequence, hit);
  if (sequence->scheduled_seconds < 0.0) {
    sequence->scheduled_seconds = now;
    sequence->prompt_hit_tokens =
        hit ? (guint32)MIN(hit->tokens + hit->tier_tokens, sequence->input_tokens) : 0;
    sequence->lower_tier_tokens = hit ? (guint32)loaded_tokens(instance, hit) : 0;
  }
  gboolean stored = hit && hit->tier_tokens > 0 && instance->store;
  gboolean loads = !stored && kv_instance_must_load(instance, hit);
  gboolean races = loads && hit->tier_tokens > 0 && instance->config->load_race;
  if (stored) {
    kv_session_store_load(instance->store, sequence, (guint32)hit->tier_tokens);
    sequence->computed_tokens = (guint32)hit->tier_tokens;
  }
  if (loads)
    kv_pool_take_tier(instance->pool, sequence, hit);
  if (loads && !races) {
    sequence->computed_tokens = (guint32)(hit->tokens + hit->tier_tokens);
    sequence->state = KV_SEQUENCE_LOADING;
    instance->n_loading++;
    guint64 blocks = loaded_tokens(instance, hit) / instance->config->block_tokens;
    KvCopy copy = {.from = instance->tier,
                   .to = KV_TIER_HBM,
                   .bytes =
                       (double)blocks * instance->demand.block_bytes * instance->config->load_share,
                   .blocks = blocks,
                   .sequence = sequence,
                   .pinned = TRUE};
    instance->observer->class->moved(instance->observer, &copy, now);
    instance->executor->class->copy(instance->executor, &copy, now);
    return;
  } else if (hit && !stored)
    sequence->computed_tokens = (guint32)hit->tokens;
  sequence->state = KV_SEQUENCE_PREFILL;
  kv_queue_push_tail(&instance->running, sequence);
  g_ptr_array_add(instance->prefilling, sequence);
  instance->n_running++;
  if (races) {
    sequence->race_end = sequence->loaded_from = (guint32)(hit->tokens + hit->tier_tokens);
    load_next(instance, sequence, now);
  }
}

void kv_instance_add_chunk(KvInstance *instance, KvBatch *batch, KvSequence *sequence,
                           guint32 tokens) {
  g_assert(tokens > 0 && sequence->computed_tokens + tokens <= sequence->target_tokens);
  KvChunk chunk = {.sequence = sequence,
                   .past = sequence->computed_tokens,
                   .tokens = tokens,
                   .last = sequence->computed_tokens + tokens == sequence->target_tokens};
  if (sequence->load_seconds > 0.0) { /* the history's layers load beside the chunk's */
    double beside = kv_instance_prefill_seconds(instance, chunk.past, tokens);
    batch->wait_seconds = MAX(batch->wait_seconds, sequence->load_seconds - beside);
    sequence->load_seconds = 0.0;
  }
  sequence->computed_tokens += tokens;
  if (!instance->buddy && !sequence->on_host) {
    guint64 blocks = kv_demand_blocks(&instance->demand, sequence->computed_tokens,
                                      sequence->input_tokens, FALSE);
    guint64 held = kv_pool_held(instance->pool, sequence);
    kv_pool_grow(instance->pool, sequence, blocks, sequence->computed_tokens);
    if (blocks > held) /* a prompt waits for its memory to be mapped, a decode step does not */
      batch->map_seconds += (double)(blocks - held) * instance->block_map_seconds;
  }
  if (sequence->race_end > 0)
    meet(instance, sequence, instance->now);
  g_array_append_val(batch->chunks, chunk);
}

static void remove_chunk(KvBatch *batch, KvSequence *sequence) {
  for (guint i = batch->chunks->len; i-- > 0;)
    if (g_array_index(batch->chunks, KvChunk, i).sequence == sequence)
      g_array_remove_index(batch->chunks, i);
}

/* Real executors: move the contents. Ids on the host are taken from and given back to a stack, last
 * out first in, and kept in the sequence meanwhile. */
static void swap_contents(KvInstance *instance, KvSequence *sequence, guint64 blocks,
                          gboolean out) {
  KvExecutor *executor = instance->executor;
  if (!instance->host_free_ids)
    return;
  if (out)
    sequence->swapped_ids = g_renew(guint32, sequence->swapped_ids, blocks);
  for (guint64 i = 0; i < blocks; i++) {
    guint32 *host = &sequence->swapped_ids[i];
    if (out) {
      *host = instance->host_free_ids[instance->host_free_blocks - 1 - i];
      executor->class->move_block(executor, KV_TIER_HBM, sequence->block_ids[i], KV_TIER_DRAM,
                                  *host);
    } else {
      instance->host_free_ids[instance->host_free_blocks + i] = *host;
      executor->class->move_block(executor, KV_TIER_DRAM, *host, KV_TIER_HBM,
                                  sequence->block_ids[i]);
    }
  }
}

/* Copy a sequence's blocks to or from the host and return when that is done, if nothing else is
 * copied. */
double kv_instance_swap(KvInstance *instance, KvSequence *sequence, guint64 blocks, gboolean out) {
  KvCopy copy = {.from = out ? KV_TIER_HBM : KV_TIER_DRAM,
                 .to = out ? KV_TIER_DRAM : KV_TIER_HBM,
                 .bytes = (double)blocks * instance->demand.block_bytes,
                 .blocks = blocks};
  instance->executor->class->copy(instance->executor, &copy, instance->now);
  instance->observer->class->moved(instance->observer, &copy, instance->now);
  swap_contents(instance, sequence, blocks, out);
  if (out)
    instance->host_free_blocks -= blocks;
  else
    instance->host_free_blocks += blocks;
  double end = instance->now;
  KvCopy done;
  for (double next;
       (next = instance->executor->class->next_copy(instance->executor)) < G_MAXDOUBLE;)
    if (instance->executor->class->pop_copy(instance->executor, next, &done)) {
      if (done.pulled) {
        Early early = {done, next};
        g_array_append_val(instance->early, early);
        continue;
      }
      end = next;
    }
  return end - instance->now;
}

void kv_instance_preempt(KvInstance *instance, KvBatch *batch, KvSequence *victim,
                         gboolean to_tail) {
  kv_queue_remove(&instance->running, victim);
  instance->n_running--;
  remove_chunk(batch, victim);
  gboolean decoding = victim->state == KV_SEQUENCE_DECODE;
  if (decoding)
    kv_instance_leave_decode(instance, victim);
  else
    g_ptr_array_remove(instance->prefilling, victim);
  victim->preemptions++;
  if (victim->race_end > 0)
    end_race(instance, victim, instance->now);
  instance->n_left++;
  batch->reordered = TRUE;
  guint64 blocks = kv_pool_held(instance->pool, victim);
  if (decoding && instance->config->preemption == KV_PREEMPT_SWAP &&
      instance->host_free_blocks >= blocks) {
    double seconds = kv_instance_swap(instance, victim, blocks, TRUE);
    batch->wait_seconds = MAX(batch->wait_seconds, seconds);
    victim->swapped_blocks = blocks;
    kv_instance_give_back(instance, victim, FALSE);
    victim->state = KV_SEQUENCE_SWAPPED;
    victim->last_token_seconds = instance->last_decode_end;
    kv_queue_push_tail(&instance->swapped, victim);
    instance->observer->class->preempted(instance->observer, 0, instance->now);
    return;
  }
  instance->observer->class->preempted(instance->observer, victim->computed_tokens, instance->now);
  victim->recomputed_tokens += victim->computed_tokens;
  kv_instance_give_back(instance, victim, TRUE);
  victim->target_tokens = victim->input_tokens + victim->emitted_tokens + victim->returned_tokens;
  victim->computed_tokens = 0;
  victim->state = KV_SEQUENCE_WAITING;
  victim->last_token_seconds = instance->now;
  victim->waiting_since = instance->n_iterations;
  if (to_tail)
    kv_queue_push_tail(&instance->waiting, victim);
  else
    kv_queue_push_head(&instance->waiting, victim);
}

gboolean kv_instance_preempt_last(KvInstance *instance, KvBatch *batch) {
  if (!instance->running.tail)
    return FALSE;
  kv_instance_preempt(instance, batch, instance->running.tail, FALSE);
  return TRUE;
}

void kv_instance_swap_in(KvInstance *instance, KvBatch *batch, KvSequence *sequence) {
  kv_queue_remove(&instance->swapped, sequence);
  batch->reordered = TRUE;
  kv_pool_grow(instance->pool, sequence, sequence->swapped_blocks, 0);
  double seconds = kv_instance_swap(instance, sequence, sequence->swapped_blocks, FALSE);
  batch->wait_seconds = MAX(batch->wait_seconds, seconds);
  sequence->swapped_blocks = 0;
  kv_queue_push_tail(&instance->running, sequence);
  instance->n_running++;
  kv_instance_join_decode(instance, sequence);
}

void kv_instance_admit_to_host(KvInstance *instance, KvSequence *sequence, double now) {
  kv_instance_admit(instance, sequence, NULL, now);
  sequence->on_host = TRUE;
  sequence->swapped_blocks =
      kv_demand_blocks(&instance->demand, sequence->target_tokens, sequence->input_tokens, FALSE);
  instance->host_free_blocks -= sequence->swapped_blocks;
}

/* Blocks on the host that the swapped sequence takes at its next token. */
static guint64 next_host_blocks(const KvInstance *instance, const KvSequence *sequence) {
  guint64 blocks = kv_demand_blocks(&instance->demand, sequence->computed_tokens + 1.0,
                                    sequence->input_tokens, TRUE);
  return MAX(blocks, sequence->swapped_blocks);
}

gboolean kv_instance_host_has_room(const KvInstance *instance, const KvSequence *sequence) {
  return next_host_blocks(instance, sequence) - sequence->swapped_blocks <=
         instance->host_free_blocks;
}

static void leave_host(KvInstance *instance, KvSequence *sequence) {
  instance->host_free_blocks += sequence->swapped_blocks;
  sequence->swapped_blocks = 0;
  sequence->on_host = FALSE;
}

void kv_instance_drop_last_swapped(KvInstance *instance, KvBatch *batch) {
  KvSequence *victim = instance->swapped.tail;
  kv_queue_remove(&instance->swapped, victim);
  leave_host(instance, victim);
  victim->preemptions++;
  victim->recomputed_tokens += victim->computed_tokens;
  instance->observer->class->preempted(instance->observer, victim->computed_tokens, instance->now);
  victim->target_tokens = victim->input_tokens + victim->emitted_tokens;
  victim->computed_tokens = 0;
  victim->state = KV_SEQUENCE_WAITING;
  kv_queue_push_head(&instance->waiting, victim);
  batch->reordered = TRUE;
}

void kv_instance_join(KvInstance *instance, KvSequence *sequence) {
  kv_queue_remove(&instance->waiting, sequence);
  instance->pulled_blocks -= kv_pool_held(instance->pool, sequence);
  kv_queue_push_tail(&instance->running, sequence);
  instance->n_running++;
  instance->joined_token_seconds += sequence->first_token_seconds;
  instance->joined_since_decode++;
  kv_decode_set_join(instance->decode, sequence);
}

gboolean kv_instance_unload_last(KvInstance *instance) {
  if (instance->running.n > 0 || instance->n_batches > 0 || instance->n_loading > 0 ||
      instance->pulling.n > 0)
    return FALSE;
  for (KvSequence *s = instance->waiting.tail; s && s != instance->waiting.head; s = s->previous)
    if (s->computed_tokens > 0) {
      if (instance->role == KV_INSTANCE_DECODE) { /* pulled: computed again, by this instance */
        instance->pulled_blocks -= kv_pool_held(instance->pool, s);
        s->target_tokens = s->input_tokens + s->emitted_tokens;
        s->recomputed_tokens += s->computed_tokens;
      }
      kv_instance_give_back(instance, s, FALSE);
      s->computed_tokens = 0;
      return TRUE;
    }
  return FALSE;
}

gboolean kv_instance_make_room(KvInstance *instance, KvBatch *batch) {
  gboolean preempted = FALSE;
  while (!instance->buddy &&
         kv_decode_set_growth(instance->decode, 1) > kv_pool_free_blocks(instance->pool))
    preempted |= kv_instance_preempt_last(instance, batch);
  return preempted;
}

/* Deciding and closing batches. */

/* What the swapped sequences of a step read on the host: sums over the plan's channels. */
static void sum_host(const KvInstance *instance, const KvBatch *batch, double *values,
                     KvStep *step) {
  for (guint i = 0; i < batch->host->len; i++) {
    const KvSequence *s = g_ptr_array_index(batch->host, i);
    step->host.context_tokens += s->computed_tokens + 1.0;
    for (guint c = 0; c < instance->n_channels; c++)
      values[c] += kv_law_value(&instance->curves->laws[c], s->computed_tokens + 1.0,
                                s->input_tokens, TRUE, NULL, NULL);
  }
  step->host.n = batch->host->len;
  step->host.values = values;
  step->host_first = batch->host_first;
  for (guint i = 0; i < batch->chunks->len; i++) {
    const KvChunk *chunk = &g_array_index(batch->chunks, KvChunk, i);
    step->host_prompt_tokens += chunk->sequence->on_host ? chunk->tokens : 0.0;
  }
}

static void step_of(const KvInstance *instance, const KvBatch *batch, KvStep *step) {
  *step = (KvStep){
      .chunks = (const KvChunk *)(const void *)batch->chunks->data,
      .n_chunks = batch->chunks->len,
      .repeat = batch->repeat,
      .decode = {.n = batch->decode_n,
                 .padding = batch->padding,
                 .context_tokens = batch->context_tokens,
                 .longest_tokens = batch->longest_tokens,
                 .values = batch->values,
                 .slopes = batch->slopes,
                 .shared_once_tokens = (double)batch->shared.once_tokens,
                 .shared_repeated_tokens = (double)batch->shared.repeated_tokens,
                 .members = kv_decode_set_members(instance->decode)},
  };
}

/* Real executors work on members one by one: give each its block and its exact position. */
static void prepare_members(KvInstance *instance) {
  guint64 step = kv_decode_set_step(instance->decode);
  KvSequence *const *members = kv_decode_set_members(instance->decode);
  for (guint64 i = 0; i < kv_decode_set_size(instance->decode); i++) {
    KvSequence *member = members[i];
    guint32 context = kv_sequence_context(member, instance->decode);
    member->emitted_tokens = kv_sequence_emitted(member, instance->decode);
    member->computed_tokens = context;
    member->join_step = step;
    if (!instance->buddy)
      kv_pool_grow(instance->pool, member,
                   kv_demand_blocks(&instance->demand, context + 1.0, member->input_tokens, TRUE),
                   context);
  }
}

/* The swapped sequences that took part have one token more. */
static void end_host_decodes(KvInstance *instance, KvBatch *batch) {
  for (guint i = 0; i < batch->host->len; i++) {
    KvSequence *s = g_ptr_array_index(batch->host, i);
    guint64 blocks = next_host_blocks(instance, s);
    instance->host_free_blocks -= blocks - s->swapped_blocks;
    s->swapped_blocks = blocks;
    s->computed_tokens++;
    s->emitted_tokens++;
    instance->observer->class->stalled_token(instance->observer,
                                             batch->end - s->last_token_seconds);
    s->last_token_seconds = batch->end;
    if (s->emitted_tokens < s->output_tokens)
      continue;
    kv_queue_remove(&instance->swapped, s);
    s->state = KV_SEQUENCE_ENDING;
    instance->n_running++; /* until its token is out */
    instance->n_on_host--;
    g_ptr_array_add(batch->ending, s);
  }
}

/* The prompt is done: the first token (or the next, after a preemption) comes out of this batch. */
static void end_prefill(KvInstance *instance, KvBatch *batch, KvSequence *sequence) {
  g_ptr_array_remove(instance->prefilling, sequence);
  if (sequence->emitted_tokens++ == 0)
    instance->prompt_tokens -= sequence->input_tokens;
  if (instance->tier != KV_TIER_HBM) {
    guint64 blocks = kv_pool_store(instance->pool, sequence);
    if (blocks > 0) {
      KvCopy copy = {.from = KV_TIER_HBM,
                     .to = instance->tier,
                     .bytes = (double)blocks * instance->demand.block_bytes *
                              instance->config->load_share,
                     .blocks = blocks,
                     .pinned = TRUE};
      instance->observer->class->moved(instance->observer, &copy, batch->end);
      instance->executor->class->copy(instance->executor, &copy, batch->end);
    }
  }
  if (sequence->emitted_tokens >= kv_sequence_stop(sequence)) {
    kv_queue_remove(&instance->running, sequence);
    sequence->state = KV_SEQUENCE_ENDING;
    if (instance->scheduler->holds_rows)
      g_ptr_array_add(instance->held_rows, sequence);
    else
      g_ptr_array_add(batch->ending, sequence);
    return;
  }
  if (sequence->on_host) {
    kv_queue_remove(&instance->running, sequence);
    instance->n_running--;
    sequence->state = KV_SEQUENCE_SWAPPED;
    sequence->last_token_seconds = batch->end;
    kv_queue_push_tail(&instance->swapped, sequence);
    return;
  }
  if (instance->role == KV_INSTANCE_PREFILL) { /* take_results() passes it on */
    sequence->state = KV_SEQUENCE_BRIDGED;
    return;
  }
  if (!instance->buddy && instance->demand.drops_prompt)
    kv_pool_shrink(instance->pool, sequence,
                   kv_demand_blocks(&instance->demand, sequence->computed_tokens,
                                    sequence->input_tokens, TRUE));
  kv_instance_join_decode(instance, sequence);
  instance->joined_since_decode++;
  instance->joined_token_seconds += batch->end;
}

/* Sequences that emitted their last token in this batch. */
static void end_decodes(KvInstance *instance, KvBatch *batch) {
  for (KvSequence *done; (done = kv_decode_set_finished(instance->decode));) {
    kv_instance_leave_decode(instance, done);
    kv_queue_remove(&instance->running, done);
    if (instance->scheduler->holds_rows)
      g_ptr_array_add(instance->held_rows, done);
    else
      g_ptr_array_add(batch->ending, done);
  }
}

/* Static batching: everybody leaves when the last one is done. */
static void end_held_rows(KvInstance *instance, KvBatch *batch) {
  if (kv_decode_set_size(instance->decode) > 0 || instance->prefilling->len > 0)
    return;
  for (guint i = 0; i < instance->held_rows->len; i++)
    g_ptr_array_add(batch->ending, g_ptr_array_index(instance->held_rows, i));
  g_ptr_array_set_size(instance->held_rows, 0);
}

/* What the GPU needs before each step of any engine, and no scheduling hides. */
static double between_seconds(const KvInstance *instance) {
  return instance->executor->class->closed_form ? instance->config->between_steps_seconds : 0.0;
}

static void add_between(KvStepCost *cost, double seconds, double repeats) {
  cost->component_seconds[KV_COMPONENT_LAUNCH] += seconds * repeats;
  cost->seconds += seconds * repeats;
  cost->first_seconds += seconds;
  cost->last_seconds += seconds;
}

/* Take what the decoding sequences need for the first `steps` steps of the batch from the pool. */
static gboolean take_growth(KvInstance *instance, KvBatch *batch, guint64 steps) {
  guint64 growth = kv_decode_set_growth(instance->decode, steps);
  if (growth <= batch->taken_blocks)
    return FALSE;
  kv_pool_take_private(instance->pool, growth - batch->taken_blocks);
  instance->taken_private += growth - batch->taken_blocks;
  batch->taken_blocks = growth;
  return TRUE;
}

static gboolean close_batch(KvInstance *instance, KvBatch *batch, GError **error) {
  if (!instance->executor->class->closed_form && batch->decodes)
    prepare_members(instance);
  if (batch->open) {
    instance->executor->class->cost(instance->executor, batch->pricing, batch->repeat,
                                    &batch->cost);
  } else {
    KvStep step;
    step_of(instance, batch, &step);
    double host_values[KV_MAX_CHANNELS] = {0};
    if (instance->scheduler->offloads)
      sum_host(instance, batch, host_values, &step);
    if (!instance->executor->class->step(instance->executor, &step, &batch->cost, error))
      return FALSE;
  }
  batch->open = FALSE;
  if (instance->scheduler->offloads)
    batch->wait_seconds = MAX(0.0, batch->wait_seconds - batch->cost.seconds);
  batch->cost.component_seconds[KV_COMPONENT_TRANSFER] += batch->wait_seconds;
  batch->cost.component_seconds[KV_COMPONENT_LAUNCH] += batch->map_seconds;
  batch->cost.seconds += batch->wait_seconds + batch->map_seconds;
  batch->cost.first_seconds += batch->wait_seconds + batch->map_seconds;
  add_between(&batch->cost, between_seconds(instance), (double)batch->repeat);
  batch->end =
      batch->start + batch->cost.seconds + batch->gap_seconds * ((double)batch->repeat - 1.0);
  if (batch->decodes && batch->decode_n > 0) {
    if (!instance->buddy && instance->executor->class->closed_form)
      take_growth(instance, batch, batch->repeat);
    kv_decode_set_advance(instance->decode, batch->repeat);
  }
  instance->n_iterations += batch->repeat;
  instance->observer->class->batch(instance->observer, instance, batch);
  if (batch->host->len > 0)
    end_host_decodes(instance, batch);
  if (batch->decodes && batch->decode_n > 0) {
    instance->last_decode_end = batch->end;
    instance->joined_since_decode = 0;
    instance->joined_token_seconds = 0.0;
    end_decodes(instance, batch);
  }
  for (guint i = 0; i < batch->chunks->len; i++) {
    const KvChunk *chunk = &g_array_index(batch->chunks, KvChunk, i);
    if (chunk->last)
      end_prefill(instance, batch, chunk->sequence);
  }
  if (batch->chunks->len > 0)
    instance->last_prefill_end = batch->end;
  if (instance->scheduler->holds_rows)
    end_held_rows(instance, batch);
  return TRUE;
}

/* Whether a sequence that waits may be let in by the very next decision: this one preempted or
 * swapped in and so admitted nobody, or the batch that is still executing will give back blocks and
 * slots before it. */
static gboolean room_comes(const KvInstance *instance, const KvBatch *batch) {
  if (instance->waiting.n == 0 && instance->swapped.n == 0 && instance->bridge.n == 0)
    return FALSE;
  return batch->reordered || (instance->n_batches > 0 && instance->batches[0]->ending->len > 0);
}

/* DistServe's rule (the artifact's context-to-decoding bridge): the head of the bridge queue is
 * pulled if what was pulled before and does not run yet takes less than a share of the blocks, and
 * its own blocks are free. */
static gboolean may_pull(const KvInstance *instance) {
  const KvSequence *head = instance->bridge.head;
  if (!head)
    return FALSE;
  double most = instance->config->pull_share * (double)kv_pool_total(instance->pool);
  return (double)instance->pulled_blocks < most &&
         kv_demand_blocks(&instance->demand, head->computed_tokens, head->input_tokens, TRUE) <=
             kv_pool_free_blocks(instance->pool);
}

static void pull(KvInstance *instance) {
  while (may_pull(instance)) {
    KvSequence *head = instance->bridge.head;
    guint64 blocks =
        kv_demand_blocks(&instance->demand, head->computed_tokens, head->input_tokens, TRUE);
    kv_queue_remove(&instance->bridge, head);
    kv_queue_push_tail(&instance->pulling, head);
    kv_pool_grow(instance->pool, head, blocks, 0);
    instance->pulled_blocks += blocks;
    gboolean in_node = head->state == KV_SEQUENCE_BRIDGED;
    head->state = KV_SEQUENCE_PULLED;
    head->pulled_seconds = instance->now;
    KvCopy copy = {.from = in_node ? KV_TIER_HBM : KV_TIER_REMOTE,
                   .to = KV_TIER_HBM,
                   .bytes = (double)blocks * instance->demand.block_bytes,
                   .blocks = blocks,
                   .sequence = head,
                   .pinned = TRUE,
                   .pulled = TRUE};
    instance->executor->class->copy(instance->executor, &copy, instance->now);
  }
}

/* How many steps may be decided at once: none of them changes what the next decision would see. */
static guint64 jump_length(const KvInstance *instance, const KvBatch *batch) {
  if (batch->chunks->len > 0 || batch->host->len > 0 || !instance->executor->class->closed_form ||
      instance->config->step_by_step || room_comes(instance, batch) || may_pull(instance))
    return 1;
  guint64 steps =
      MIN(kv_decode_set_until_finish(instance->decode), kv_decode_set_until_bend(instance->decode));
  if (!instance->buddy)
    steps = kv_decode_set_affordable(instance->decode, kv_pool_free_blocks(instance->pool), steps);
  /* A head that asks only for its next chunk asks for less once what it would have found in the
   * cache is reused. */
  if (instance->blocked && instance->config->prefix_caching &&
      !instance->config->reserve_full_prompt)
    steps = kv_decode_set_affordable(instance->decode, 0, steps);
  if (batch->most_repeats > 0)
    steps = MIN(steps, batch->most_repeats);
  return MAX(steps, 1);
}

static double gap_seconds(const KvInstance *instance, const KvBatch *batch) {
  if (!instance->executor->class->closed_form)
    return 0.0;
  return instance->config->step_gap_seconds +
         instance->config->per_sequence_seconds *
             (double)(batch->decode_n + batch->chunks->len + batch->host->len);
}

static double jump_seconds(KvInstance *instance, const KvBatch *batch, guint64 repeats) {
  if (repeats == 0)
    return 0.0;
  return batch->wait_seconds + batch->gap_seconds * ((double)repeats - 1.0) +
         between_seconds(instance) * (double)repeats +
         instance->executor->class->seconds(batch->pricing, repeats);
}

/* Price the jump; it becomes as long as one price covers. */
static void price_jump(KvInstance *instance, KvBatch *batch) {
  KvStep step;
  step_of(instance, batch, &step);
  if (!batch->pricing)
    batch->pricing = instance->executor->class->pricing_new(instance->executor);
  batch->repeat = instance->executor->class->price(instance->executor, &step, batch->pricing);
}

static void set_due(KvInstance *instance, KvBatch *batch) {
  batch->due = batch->start + jump_seconds(instance, batch, batch->repeat - (instance->depth - 1));
}

/* The first step of the open jump that ends at `when` or later. */
static guint64 step_at(KvInstance *instance, const KvBatch *batch, double when) {
  double elapsed = when - batch->start;
  guint64 low = 0,
          high = batch->repeat; /* steps low end before `when`; steps high do not (or are all) */
  double low_seconds = 0.0, guess = elapsed / jump_seconds(instance, batch, 1);
  for (guint round = 0; high - low > 1; round++) {
    guint64 middle = low + (high - low) / 2;
    if (round < 6 && guess > (double)low && guess < (double)high)
      middle = CLAMP((guint64)ceil(guess), low + 1, high - 1);
    double seconds = jump_seconds(instance, batch, middle);
    double mean = seconds / (double)middle;
    if (seconds < elapsed) {
      low = middle;
      low_seconds = seconds;
    } else {
      high = middle;
    }
    guess = high - low > 1 ? (double)low + (elapsed - low_seconds) / mean : 0.0;
    if (seconds >= elapsed && guess > (double)high - 1.0) /* test the neighbour below */
      guess = (double)high - 1.0;
  }
  return high;
}

static gboolean decide(KvInstance *instance, gboolean *decided, GError **error) {
  KvBatch *batch = batch_take(instance);
  instance->blocked = FALSE;
  if (instance->n_caches_on_host > 0)
    kv_instance_load_back(instance);
  instance->scheduler->schedule(instance, instance->now, batch);
  gboolean decodes = batch->decodes && kv_decode_set_size(instance->decode) > 0;
  instance->n_on_host = batch->host->len;
  batch->n_host = batch->host->len;
  *decided = decodes || batch->chunks->len > 0 || batch->host->len > 0;
  if (!*decided) {
    /* If somebody was preempted, the very next decision may admit. */
    instance->nothing_to_decide = instance->n_batches > 0 || !batch->reordered;
    batch_give(instance, batch);
    return TRUE;
  }
  batch->decodes = decodes;
  batch->repeat = 1;
  if (decodes) {
    KvDecodeBatch set;
    kv_decode_set_batch(instance->decode, &set);
    batch->decode_n = set.n;
    batch->padding = instance->config->as_executed ? 0 : instance->held_rows->len;
    batch->context_tokens = set.context_tokens;
    batch->longest_tokens = set.longest_tokens;
    if (instance->reads_shared_once)
      batch->shared = *kv_pool_shared_reads(instance->pool);
    memcpy(batch->values, set.values, instance->n_channels * sizeof(double));
    memcpy(batch->slopes, set.slopes, instance->n_channels * sizeof(double));
    batch->repeat = jump_length(instance, batch);
  }
  /* What the CPU needs between steps delays every step of a synchronous engine. An asynchronous one
   * hides it behind the step that runs meanwhile; if that is too short, each step is decided by
   * itself. */
  double gap = gap_seconds(instance, batch);
  if (instance->depth == 1)
    batch->gap_seconds = gap;
  if (batch->repeat > 1)
    price_jump(instance, batch);
  if (instance->depth > 1 && batch->repeat > 1 && gap > jump_seconds(instance, batch, 1))
    batch->repeat = 1;
  batch->start = instance->now + gap;
  if (instance->n_batches > 0)
    batch->start = MAX(batch->start, instance->batches[instance->n_batches - 1]->end);
  if (batch->repeat > 1 && batch->until_seconds < G_MAXDOUBLE)
    batch->repeat = step_at(instance, batch, batch->until_seconds);
  if (instance->store)
    kv_session_store_look_ahead(instance->store);
  instance->batches[instance->n_batches++] = batch;
  batch->open = batch->repeat > 1;
  if (!batch->open)
    return close_batch(instance, batch, error);
  set_due(instance, batch);
  return TRUE;
}

/* Steps of the open jump that have been decided, were each decided by itself, when something comes
 * at `now`; the next decision is the first to see it. `decided`: what would be decided at this very
 * moment has been decided before it came (an answer's end lets the next request come). */
static guint64 steps_by(KvInstance *instance, const KvBatch *batch, double now, gboolean decided) {
  guint64 steps =
      now > batch->start ? step_at(instance, batch, now) : decided && now == batch->start;
  return MIN(MAX(1, steps + (instance->depth - 1)), batch->repeat);
}

/* Something comes at `now`: let the jump end so that the next decision sees it. */
void kv_instance_shorten_jump(KvInstance *instance, KvBatch *batch, double now, gboolean decided) {
  guint64 repeat = steps_by(instance, batch, now, decided);
  batch->shortened = TRUE;
  if (repeat < batch->repeat) {
    batch->repeat = repeat;
    set_due(instance, batch);
  }
}

/* When the engine takes in what arrives now: its loop looks at its input when a step has ended. */
static double drained_at(KvInstance *instance, double now) {
  for (guint b = 0; b < instance->n_batches; b++) {
    const KvBatch *batch = instance->batches[b];
    if (!batch->open && batch->end >= now)
      return batch->end;
    if (batch->open)
      return now <= batch->start
                 ? batch->start
                 : batch->start + jump_seconds(instance, batch, step_at(instance, batch, now));
  }
  return now;
}

gboolean kv_instance_settle(KvInstance *instance, double now) {
  KvBatch *newest = instance->n_batches ? instance->batches[instance->n_batches - 1] : NULL;
  if (!newest || !newest->open || instance->buddy)
    return FALSE;
  return take_growth(instance, newest, steps_by(instance, newest, now, instance->now >= now));
}

void kv_instance_arrive(KvInstance *instance, KvSequence *sequence, double now) {
  sequence->state = KV_SEQUENCE_WAITING;
  sequence->drained_seconds = drained_at(instance, now);
  sequence->instance = instance->index;
  instance->prompt_tokens += sequence->input_tokens;
  sequence->handling = instance->config->calls.handling;
  kv_queue_push_tail(&instance->waiting, sequence);
  if (instance->scheduler->arrived)
    instance->scheduler->arrived(instance, sequence, now);
  if (instance->n_batches == 0) {
    instance->now = MAX(instance->now, now);
    instance->nothing_to_decide = FALSE;
    return;
  }
  KvBatch *newest = instance->batches[instance->n_batches - 1];
  if (newest->open && !newest->shortened && !instance->blocked)
    kv_instance_shorten_jump(instance, newest, now, instance->now >= now);
}

void kv_instance_announce(KvInstance *instance, KvSequence *sequence, gboolean in_node,
                          double now) {
  sequence->instance = instance->index;
  sequence->state = in_node ? KV_SEQUENCE_BRIDGED : KV_SEQUENCE_REMOTE;
  kv_queue_push_tail(&instance->bridge, sequence);
  if (instance->n_batches == 0) {
    instance->now = MAX(instance->now, now);
    pull(instance);
    return;
  }
  KvBatch *newest = instance->batches[instance->n_batches - 1];
  if (newest->open && !newest->shortened && may_pull(instance))
    kv_instance_shorten_jump(instance, newest, now, instance->now >= now);
}

void kv_instance_release(KvInstance *instance, KvSequence *left_behind, double now) {
  kv_queue_remove(&instance->left_behind, left_behind);
  kv_instance_give_back(instance, left_behind, FALSE);
  g_free(left_behind->nodes);
  g_free(left_behind);
  instance->nothing_to_decide = FALSE;
  if (instance->n_batches == 0)
    instance->now = MAX(instance->now, now);
}

/* The prompt is computed and its first token out: what the sequence holds here goes to a stand-in,
 * and the sequence to whoever will decode it. */
static void hand_over(KvInstance *instance, KvSequence *sequence) {
  KvSequence *held = g_memdup2(sequence, sizeof *held);
  kv_queue_remove(&instance->running, sequence);
  instance->n_running--;
  held->hashes = NULL;
  held->tokens = NULL;
  kv_queue_push_tail(&instance->left_behind, held);
  sequence->nodes = NULL;
  sequence->kept = NULL;
  sequence->n_nodes = sequence->nodes_size = sequence->n_duplicates = 0;
  sequence->private_blocks = sequence->node_end_blocks = 0;
  sequence->left_behind = held;
  held->instance = instance->index;
  instance->computed(instance, sequence, instance->user);
}

static void finish(KvInstance *instance, KvSequence *sequence, double now) {
  sequence->last_token_seconds = now;
  sequence->state = KV_SEQUENCE_FINISHED;
  if (sequence->swapped_blocks > 0)
    leave_host(instance, sequence);
  if (sequence->answer_tokens > 0 && !instance->buddy) /* let the next turn find it */
    kv_pool_grow(instance->pool, sequence, 0, sequence->computed_tokens);
  if (instance->store)
    kv_session_store_save(instance->store, sequence);
  kv_instance_give_back(instance, sequence, FALSE);
  instance->n_running--;
  instance->n_left++;
  if (instance->scheduler->finished)
    instance->scheduler->finished(instance, sequence);
  instance->observer->class->finished(instance->observer, sequence);
  if (instance->executor->class->forget)
    instance->executor->class->forget(instance->executor, sequence);
  instance->finished(instance, sequence, instance->user);
}

/* The oldest batch has ended: its tokens come out. */
static void take_results(KvInstance *instance) {
  KvBatch *batch = instance->batches[0];
  instance->batches[0] = instance->batches[1];
  instance->n_batches--;
  for (guint i = 0; i < batch->chunks->len; i++) {
    const KvChunk *chunk = &g_array_index(batch->chunks, KvChunk, i);
    KvSequence *sequence = chunk->sequence;
    if (!chunk->last)
      continue;
    if (sequence->first_token_seconds < 0.0) {
      sequence->first_token_seconds = batch->end;
      instance->observer->class->first_token(instance->observer, sequence);
    } else {
      instance->observer->class->stalled_token(instance->observer,
                                               batch->end - sequence->last_token_seconds);
    }
    if (sequence->state == KV_SEQUENCE_BRIDGED)
      hand_over(instance, sequence);
  }
  for (guint i = 0; i < batch->ending->len; i++) {
    KvSequence *sequence = g_ptr_array_index(batch->ending, i);
    if (sequence->emitted_tokens >= sequence->output_tokens) {
      finish(instance, sequence, batch->end);
      continue;
    }
    instance->n_running--;
    instance->n_left++;
    kv_instance_begin_call(instance, sequence, batch->end);
  }
  if (instance->bridge.n > 0)
    pull(instance);
  instance->nothing_to_decide = FALSE;
  batch_give(instance, batch);
}

static gboolean can_decide(const KvInstance *instance) {
  if (instance->nothing_to_decide || instance->n_batches >= instance->depth)
    return FALSE;
  if (instance->n_batches > 0 && instance->batches[instance->n_batches - 1]->open)
    return FALSE;
  return instance->waiting.n > 0 || instance->running.n > 0 || instance->swapped.n > 0 ||
         instance->paused.n > 0;
}

double kv_instance_next(KvInstance *instance) {
  if (can_decide(instance))
    return instance->now;
  double next = G_MAXDOUBLE;
  if (instance->n_batches > 0) {
    const KvBatch *oldest = instance->batches[0],
                  *newest = instance->batches[instance->n_batches - 1];
    if (!oldest->open)
      next = oldest->end;
    if (newest->open)
      next = MIN(next, newest->due);
  }
  if (instance->tier != KV_TIER_HBM || instance->pulling.n > 0 || instance->n_copies > 0) {
    next = MIN(next, instance->executor->class->next_copy(instance->executor));
    if (instance->early->len > 0)
      next = MIN(next, g_array_index(instance->early, Early, 0).end);
  }
  return MIN(next, kv_instance_next_return(instance));
}

/* A copy that has completed by now: from those found early, or the executor's next. */
static gboolean pop_copy(KvInstance *instance, KvCopy *copy) {
  if (instance->early->len > 0 && g_array_index(instance->early, Early, 0).end <= instance->now) {
    *copy = g_array_index(instance->early, Early, 0).copy;
    g_array_remove_index(instance->early, 0);
    return TRUE;
  }
  return instance->executor->class->pop_copy(instance->executor, instance->now, copy);
}

/* A pulled cache is there: its sequence waits to run, and the other instance forgets it. */
static void take_pulled(KvInstance *instance, const KvCopy *copy) {
  KvSequence *sequence = copy->sequence;
  kv_queue_remove(&instance->pulling, sequence);
  sequence->state = KV_SEQUENCE_WAITING;
  kv_queue_push_tail(&instance->waiting, sequence);
  instance->observer->class->pulled(instance->observer, sequence, copy->bytes, instance->now);
  instance->pulled(instance, g_steal_pointer(&sequence->left_behind), instance->user);
}

static void take_copies(KvInstance *instance) {
  KvCopy copy;
  while ((instance->tier != KV_TIER_HBM || instance->pulling.n > 0 || instance->n_copies > 0) &&
         pop_copy(instance, &copy)) {
    if (instance->n_copies > 0 && !copy.pulled)
      instance->n_copies--;
    if (copy.tag)
      kv_session_store_fetched(instance->store, copy.tag);
    if (!copy.sequence)
      continue;
    if (copy.pulled) {
      take_pulled(instance, &copy);
    } else if (copy.sequence->race_end > 0) {
      KvSequence *sequence = copy.sequence;
      guint32 tokens = (guint32)copy.blocks * instance->config->block_tokens;
      sequence->loaded_from -= MIN(tokens, sequence->loaded_from);
      if (!meet(instance, sequence, instance->now))
        load_next(instance, sequence, instance->now);
    } else {
      if (copy.sequence->swapped_blocks > 0)
        kv_instance_loaded_back(instance, copy.sequence);
      else
        instance->n_loading--;
      copy.sequence->state = KV_SEQUENCE_WAITING;
      kv_queue_push_head(&instance->waiting, copy.sequence);
    }
    /* vLLM v1, section 9 of its notes: a completed load is noticed when a step ends, or by the idle
     * poll. */
    if (instance->n_batches == 0)
      instance->nothing_to_decide = FALSE;
    else if (instance->batches[instance->n_batches - 1]->open)
      kv_instance_shorten_jump(instance, instance->batches[instance->n_batches - 1], instance->now,
                               FALSE);
  }
}

gboolean kv_instance_wake(KvInstance *instance, double now, GError **error) {
  instance->now = MAX(instance->now, now);
  take_copies(instance);
  kv_instance_take_returns(instance);
  for (;;) {
    KvBatch *oldest = instance->n_batches ? instance->batches[0] : NULL;
    KvBatch *newest = instance->n_batches ? instance->batches[instance->n_batches - 1] : NULL;
    if (oldest && !oldest->open && oldest->end <= instance->now) {
      take_results(instance);
    } else if (newest && newest->open && newest->due <= instance->now) {
      if (!close_batch(instance, newest, error))
        return FALSE;
      instance->nothing_to_decide = FALSE;
    } else if (can_decide(instance)) {
      gboolean decided;
      if (!decide(instance, &decided, error))
        return FALSE;
      if (!decided)
        return TRUE;
    } else {
      /* Only last tokens are in flight: the engine waits for them before it looks again. */
      if (instance->n_batches > 0 &&
          instance->waiting.n + instance->running.n + instance->paused.n == 0)
        instance->nothing_to_decide = TRUE;
      return TRUE;
    }
  }
}

const char *kv_instance_check(const KvInstance *instance) {
  g_autoptr(GPtrArray) holders = g_ptr_array_new();
  for (KvSequence *s = instance->running.head; s; s = s->next)
    g_ptr_array_add(holders, s);
  for (guint b = 0; b < instance->n_batches; b++)
    for (guint i = 0; i < instance->batches[b]->ending->len; i++)
      g_ptr_array_add(holders, g_ptr_array_index(instance->batches[b]->ending, i));
  for (guint i = 0; i < instance->held_rows->len; i++)
    g_ptr_array_add(holders, g_ptr_array_index(instance->held_rows, i));
  if (holders->len != instance->n_running)
    return "the count of running sequences is wrong";
  guint64 pulled = 0;
  const KvQueue *holding[] = {&instance->left_behind, &instance->pulling, &instance->waiting};
  for (guint q = 0; q < G_N_ELEMENTS(holding); q++) {
    if (holding[q] == &instance->waiting && instance->role != KV_INSTANCE_DECODE)
      continue; /* they hold nodes at most, and are looked at below */
    for (KvSequence *s = holding[q]->head; s; s = s->next) {
      g_ptr_array_add(holders, s);
      pulled += q > 0 ? kv_pool_held(instance->pool, s) : 0;
    }
  }
  if (pulled != instance->pulled_blocks)
    return "the count of pulled blocks is wrong";
  const KvSequence *const parked[] = {
      instance->paused.head, instance->loading.head,
      instance->role == KV_INSTANCE_DECODE ? NULL : instance->waiting.head};
  for (guint p = 0; p < G_N_ELEMENTS(parked); p++)
    for (const KvSequence *s = parked[p]; s; s = s->next)
      g_ptr_array_add(holders, (gpointer)s);
  for (KvSequence *s = kv_instance_next_preserved(instance, NULL); s;
       s = kv_instance_next_preserved(instance, s))
    g_ptr_array_add(holders, s);
  return kv_pool_check(instance->pool, (KvSequence *const *)holders->pdata, holders->len,
                       instance->taken_private);
}
