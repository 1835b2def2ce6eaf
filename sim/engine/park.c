#include "sim/engine/park.h"

#include <string.h>

void kv_queue_push_tail(KvQueue *queue, KvSequence *sequence) {
  sequence->next = NULL;
  sequence->previous = queue->tail;
  *(queue->tail ? &queue->tail->next : &queue->head) = sequence;
  queue->tail = sequence;
  queue->n++;
}

void kv_queue_push_head(KvQueue *queue, KvSequence *sequence) {
  sequence->previous = NULL;
  sequence->next = queue->head;
  *(queue->head ? &queue->head->previous : &queue->tail) = sequence;
  queue->head = sequence;
  queue->n++;
}

void kv_queue_remove(KvQueue *queue, KvSequence *sequence) {
  *(sequence->previous ? &sequence->previous->next : &queue->head) = sequence->next;
  *(sequence->next ? &sequence->next->previous : &queue->tail) = sequence->previous;
  sequence->previous = sequence->next = NULL;
  queue->n--;
}

/* Pausing and swapping. */

void kv_instance_pause(KvInstance *instance, KvSequence *sequence) {
  g_assert(sequence->state == KV_SEQUENCE_DECODE);
  kv_queue_remove(&instance->running, sequence);
  instance->n_running--;
  kv_instance_leave_decode(instance, sequence);
  sequence->state = KV_SEQUENCE_PAUSED;
  sequence->last_token_seconds = instance->now;
  sequence->ready_seconds = instance->now;
  kv_queue_push_tail(&instance->paused, sequence);
}

void kv_instance_resume(KvInstance *instance, KvBatch *batch, KvSequence *sequence) {
  kv_queue_remove(&instance->paused, sequence);
  batch->wait_seconds = MAX(batch->wait_seconds, sequence->ready_seconds - instance->now);
  g_array_append_val(batch->stalled, sequence->last_token_seconds);
  kv_queue_push_tail(&instance->running, sequence);
  instance->n_running++;
  kv_instance_join_decode(instance, sequence);
}

gboolean kv_instance_swap_out(KvInstance *instance, KvSequence *sequence) {
  guint64 blocks = kv_pool_held(instance->pool, sequence);
  if (instance->host_free_blocks < blocks)
    return FALSE;
  double end = instance->now + kv_instance_swap(instance, sequence, blocks, TRUE);
  if (instance->leaving_until <= instance->now)
    instance->leaving_blocks = 0;
  instance->leaving_until = MAX(instance->leaving_until, end);
  instance->leaving_blocks += blocks;
  kv_queue_remove(&instance->paused, sequence);
  kv_instance_give_back(instance, sequence, FALSE);
  sequence->swapped_blocks = blocks;
  sequence->state = KV_SEQUENCE_SWAPPED;
  sequence->preemptions++;
  instance->observer->class->preempted(instance->observer, 0, instance->now);
  kv_queue_push_tail(&instance->swapped, sequence);
  return TRUE;
}

void kv_instance_swap_in_ahead(KvInstance *instance, KvSequence *sequence) {
  kv_queue_remove(&instance->swapped, sequence);
  kv_pool_grow(instance->pool, sequence, sequence->swapped_blocks, 0);
  sequence->ready_seconds =
      instance->now + kv_instance_swap(instance, sequence, sequence->swapped_blocks, FALSE);
  sequence->swapped_blocks = 0;
  sequence->state = KV_SEQUENCE_PAUSED;
  kv_queue_push_tail(&instance->paused, sequence);
}

void kv_instance_await_room(KvInstance *instance, KvBatch *batch, guint64 blocks) {
  guint64 free_blocks = kv_pool_free_blocks(instance->pool);
  if (instance->leaving_until > instance->now && blocks + instance->leaving_blocks > free_blocks)
    batch->wait_seconds = MAX(batch->wait_seconds, instance->leaving_until - instance->now);
}

void kv_instance_drop_paused(KvInstance *instance, KvBatch *batch, KvSequence *sequence) {
  kv_queue_remove(&instance->paused, sequence);
  sequence->preemptions++;
  sequence->recomputed_tokens += sequence->computed_tokens;
  batch->reordered = TRUE;
  instance->n_left++;
  instance->observer->class->preempted(instance->observer, sequence->computed_tokens,
                                       instance->now);
  kv_instance_give_back(instance, sequence, TRUE);
  sequence->target_tokens =
      sequence->input_tokens + sequence->emitted_tokens + sequence->returned_tokens;
  sequence->computed_tokens = 0;
  sequence->state = KV_SEQUENCE_WAITING;
  sequence->waiting_since = instance->n_iterations;
  kv_queue_push_head(&instance->waiting, sequence);
}

double kv_instance_prefill_seconds(const KvInstance *instance, guint32 past, guint32 tokens) {
  KvExecutor *executor = instance->executor;
  KvChunk chunk = {.past = past, .tokens = tokens, .last = TRUE};
  KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
  KvStepCost cost;
  if (!executor->class->closed_form || tokens == 0)
    return 0.0;
  return executor->class->step(executor, &step, &cost, NULL) ? cost.seconds : 0.0;
}

double kv_instance_copy_seconds(const KvInstance *instance, KvTier from, KvTier to,
                                guint64 blocks) {
  KvCopy copy = {.from = from,
                 .to = to,
                 .bytes = (double)blocks * instance->demand.block_bytes,
                 .blocks = blocks,
                 .pinned = TRUE};
  KvExecutor *executor = instance->executor;
  return executor->class->copy_seconds ? executor->class->copy_seconds(executor, &copy) : 0.0;
}

void kv_instance_begin_copy(KvInstance *instance, const KvCopy *copy) {
  instance->observer->class->moved(instance->observer, copy, instance->now);
  instance->executor->class->copy(instance->executor, copy, instance->now);
  instance->n_copies++;
}

/* API calls. */

static gint by_return(gconstpointer a, gconstpointer b, gpointer user) {
  const KvSequence *x = a, *y = b;
  if (x->return_seconds != y->return_seconds)
    return x->return_seconds < y->return_seconds ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

void kv_instance_discard(KvInstance *instance, KvSequence *sequence) {
  sequence->recomputed_tokens += sequence->computed_tokens;
  kv_instance_give_back(instance, sequence, TRUE);
  sequence->computed_tokens = 0;
}

static gboolean copy_out(KvInstance *instance, KvSequence *sequence) {
  guint64 blocks = kv_pool_held(instance->pool, sequence);
  if (instance->host_free_blocks < blocks || blocks == 0)
    return FALSE;
  KvCopy copy = {.from = KV_TIER_HBM,
                 .to = KV_TIER_DRAM,
                 .bytes = (double)blocks * instance->demand.block_bytes,
                 .blocks = blocks};
  kv_instance_begin_copy(instance, &copy);
  instance->host_free_blocks -= blocks;
  sequence->swapped_blocks = blocks;
  kv_instance_give_back(instance, sequence, FALSE);
  return TRUE;
}

void kv_instance_begin_call(KvInstance *instance, KvSequence *sequence, double now) {
  const KvTraceCall *call = &sequence->calls[sequence->next_call++];
  sequence->state = KV_SEQUENCE_CALLING;
  sequence->return_seconds = now + call->duration_seconds;
  sequence->last_token_seconds = now;
  sequence->returned_tokens += call->returned_tokens;
  sequence->target_tokens =
      sequence->input_tokens + sequence->emitted_tokens + sequence->returned_tokens;
  gboolean kept = sequence->handling == KV_CALL_PRESERVE ||
                  (sequence->handling == KV_CALL_SWAP && copy_out(instance, sequence));
  if (!kept || instance->buddy)
    kv_instance_discard(instance, sequence);
  if (instance->scheduler->finished)
    instance->scheduler->finished(instance, sequence);
  if (!instance->calling)
    instance->calling = g_sequence_new(NULL);
  sequence->call_place = g_sequence_insert_sorted(instance->calling, sequence, by_return, NULL);
}

static KvSequence *first_to_return(const KvInstance *instance) {
  GSequenceIter *first = instance->calling ? g_sequence_get_begin_iter(instance->calling) : NULL;
  return first && !g_sequence_iter_is_end(first) ? g_sequence_get(first) : NULL;
}

double kv_instance_next_return(const KvInstance *instance) {
  const KvSequence *first = first_to_return(instance);
  return first ? first->return_seconds : G_MAXDOUBLE;
}

KvSequence *kv_instance_next_preserved(const KvInstance *instance, const KvSequence *after) {
  GSequenceIter *at = after               ? g_sequence_iter_next(after->call_place)
                      : instance->calling ? g_sequence_get_begin_iter(instance->calling)
                                          : NULL;
  for (; at && !g_sequence_iter_is_end(at); at = g_sequence_iter_next(at)) {
    KvSequence *sequence = g_sequence_get(at);
    if (sequence->computed_tokens > 0 && sequence->swapped_blocks == 0)
      return sequence;
  }
  return NULL;
}

void kv_instance_take_returns(KvInstance *instance) {
  for (KvSequence *s; (s = first_to_return(instance)) && s->return_seconds <= instance->now;) {
    g_sequence_remove(s->call_place);
    s->call_place = NULL;
    s->state = KV_SEQUENCE_WAITING;
    s->scored = FALSE;
    if (s->swapped_blocks > 0)
      s->computed_tokens = 0, instance->n_caches_on_host++;
    kv_queue_push_tail(&instance->waiting, s);
    if (instance->scheduler->arrived)
      instance->scheduler->arrived(instance, s, instance->now);
    KvBatch *newest = instance->n_batches ? instance->batches[instance->n_batches - 1] : NULL;
    if (!newest)
      instance->nothing_to_decide = FALSE;
    else if (newest->open && !newest->shortened && !instance->blocked)
      kv_instance_shorten_jump(instance, newest, instance->now, FALSE);
  }
}

/* What waits with its cache on the host, in the queue's order, while there is room. */
void kv_instance_load_back(KvInstance *instance) {
  for (KvSequence *s = instance->waiting.head, *next; s; s = next) {
    next = s->next;
    if (s->swapped_blocks == 0)
      continue;
    if (s->swapped_blocks + 1 > kv_instance_available(instance, TRUE))
      return;
    KvCopy copy = {.from = KV_TIER_DRAM,
                   .to = KV_TIER_HBM,
                   .bytes = (double)s->swapped_blocks * instance->demand.block_bytes,
                   .blocks = s->swapped_blocks,
                   .sequence = s};
    kv_queue_remove(&instance->waiting, s);
    kv_pool_grow(instance->pool, s, s->swapped_blocks, 0);
    s->state = KV_SEQUENCE_LOADING;
    kv_queue_push_tail(&instance->loading, s);
    kv_instance_begin_copy(instance, &copy);
  }
}

void kv_instance_loaded_back(KvInstance *instance, KvSequence *sequence) {
  kv_queue_remove(&instance->loading, sequence);
  instance->host_free_blocks += sequence->swapped_blocks;
  instance->n_caches_on_host--;
  sequence->swapped_blocks = 0;
  sequence->computed_tokens =
      sequence->target_tokens - sequence->calls[sequence->next_call - 1].returned_tokens - 1;
}
