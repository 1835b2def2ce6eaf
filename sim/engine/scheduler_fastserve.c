/* FastServe (arXiv:2305.05920): preemption at every iteration by a skip-join multi-level feedback
 * queue, with caches swapped ahead of need.
 *
 * Level i has a quantum of q * r^i seconds. A request joins, at the back, the first level whose
 * quantum covers its prefill. Every iteration takes requests from the highest level down, the front
 * first, until the batch or its prompt tokens are full; the first that does not fit ends the scan.
 * Afterwards each is charged the iteration's wall time; one that has used up its quantum falls a
 * level and starts anew; all are pushed to the front of their levels, in batch order, so the last
 * of the batch comes first. Every so many iterations requests that have not run for
 * `starving_seconds` go to the front of the highest level.
 *
 * Preempted requests keep their caches. If blocks are short of what the batch needs and a reserve,
 * residents that are not in it are swapped out, the lowest level first, its back first; if that is
 * not enough, the batch loses its end. When the batch is formed the reserve is restored in the same
 * way, and if it is intact, the first requests of the queue that are on the host come back as far
 * as there is room beyond it. If the host is full, too, and not even one request fits, residents
 * are recomputed. */
#include <math.h>

#include "sim/engine/park.h"
#include "sim/engine/schedulers.h"

enum { LEVELS = 32 };

typedef struct {
  GQueue levels[LEVELS]; /* of KvSequence, by their link; the members of the batch stand in none */
  GPtrArray *batch;      /* of KvSequence, NULL where one has finished */
  double decided_seconds;
  guint64 decided_iterations, checked_iterations;
} Queues;

static gpointer begin(const KvInstance *instance) {
  (void)instance;
  Queues *queues = g_new0(Queues, 1);
  queues->batch = g_ptr_array_new();
  return queues;
}

static void end(gpointer policy) {
  Queues *queues = policy;
  g_ptr_array_unref(queues->batch);
  g_free(queues);
}

static double quantum(const KvInstance *instance, guint level) {
  return instance->config->fastserve.quantum_seconds *
         pow(instance->config->fastserve.quantum_ratio, level);
}

static void push_front(Queues *queues, KvSequence *sequence) {
  g_queue_push_head_link(&queues->levels[sequence->level], &sequence->link);
}

/* Skip-join: the first iteration's time is known from a profile. */
static void arrived(KvInstance *instance, KvSequence *sequence, double now) {
  Queues *queues = instance->policy;
  double first =
      kv_instance_prefill_seconds(instance, 0, sequence->target_tokens - sequence->computed_tokens);
  sequence->level = 0;
  while (sequence->level + 1 < LEVELS && quantum(instance, sequence->level) < first)
    sequence->level++;
  sequence->process_seconds = 0.0;
  sequence->last_run_seconds = now;
  g_queue_push_tail_link(&queues->levels[sequence->level], &sequence->link);
}

static void finished(KvInstance *instance, KvSequence *sequence) {
  Queues *queues = instance->policy;
  guint at;
  if (g_ptr_array_find(queues->batch, sequence, &at))
    queues->batch->pdata[at] = NULL;
  else
    g_queue_unlink(&queues->levels[sequence->level], &sequence->link);
}

static void charge_one(KvInstance *instance, Queues *queues, KvSequence *s, double now) {
  s->process_seconds += now - queues->decided_seconds;
  s->last_run_seconds = now;
  if (s->process_seconds > quantum(instance, s->level)) {
    s->level = MIN(s->level + instance->config->fastserve.demotion_levels, LEVELS - 1);
    s->process_seconds = 0.0;
  }
  push_front(queues, s);
}

/* The iterations since the last decision are over: charge them. Each of them put the batch back in
 * front of its levels in the order in which it was taken, and so turned each level's part around.
 */
static void charge(KvInstance *instance, Queues *queues, double now) {
  gboolean turned = (instance->n_iterations - queues->decided_iterations) % 2 == 0;
  g_autofree KvSequence **members = g_new(KvSequence *, queues->batch->len + 1);
  guint n = 0;
  for (guint i = 0; i < queues->batch->len; i++)
    if (queues->batch->pdata[i])
      members[n++] = queues->batch->pdata[i];
  g_autofree guint *levels = g_new(guint, n + 1);
  for (guint i = 0; i < n; i++)
    levels[i] = members[i]->level;
  g_ptr_array_set_size(queues->batch, 0);
  for (guint from = 0, to; from < n; from = to) {
    for (to = from + 1; to < n && levels[to] == levels[from];)
      to++;
    for (guint i = from; i < to; i++)
      charge_one(instance, queues, members[turned ? to - 1 - (i - from) : i], now);
  }
}

static void promote_starving(KvInstance *instance, Queues *queues, double now) {
  if (instance->n_iterations - queues->checked_iterations <
      instance->config->fastserve.check_iterations)
    return;
  queues->checked_iterations = instance->n_iterations;
  for (guint l = 1; l < LEVELS; l++)
    for (GList *at = queues->levels[l].head, *next; at; at = next) {
      KvSequence *s = at->data;
      next = at->next;
      if (now - s->last_run_seconds < instance->config->fastserve.starving_seconds)
        continue;
      g_queue_unlink(&queues->levels[l], at);
      s->level = 0;
      s->process_seconds = 0.0;
      push_front(queues, s);
    }
}

static gboolean is_resident(const KvSequence *s) {
  return s->state == KV_SEQUENCE_DECODE || s->state == KV_SEQUENCE_PAUSED;
}

/* Blocks that a batch with the sequence in it takes for it. */
static guint64 blocks_of(const KvInstance *instance, const KvSequence *s) {
  if (s->state == KV_SEQUENCE_WAITING)
    return kv_instance_needed(instance, s, s->target_tokens);
  double context = kv_sequence_context(s, instance->decode);
  guint64 now = kv_demand_blocks(&instance->demand, context, s->input_tokens, TRUE);
  guint64 then = kv_demand_blocks(&instance->demand, context + 1.0, s->input_tokens, TRUE);
  return s->swapped_blocks + (then > now ? then - now : 0);
}

static void choose(KvInstance *instance, Queues *queues) {
  const KvEngineConfig *config = instance->config;
  gboolean guarded = (double)instance->host_free_blocks <
                     config->fastserve.host_guard * (double)instance->host_blocks;
  guint64 prompts = 0;
  for (guint l = 0; l < LEVELS; l++)
    for (GList *at = queues->levels[l].head, *next; at; at = next) {
      KvSequence *s = at->data;
      gboolean is_prompt = s->state == KV_SEQUENCE_WAITING;
      next = at->next;
      if (is_prompt && guarded && s->emitted_tokens == 0)
        continue;
      if (queues->batch->len >= config->max_seqs ||
          (is_prompt && prompts > 0 &&
           prompts + s->target_tokens > config->fastserve.prompt_tokens))
        return;
      prompts += is_prompt ? s->target_tokens : 0;
      g_queue_unlink(&queues->levels[l], at);
      g_ptr_array_add(queues->batch, s);
    }
}

/* The resident outside of the batch that goes first; NULL if there is none. */
static KvSequence *victim_of(const Queues *queues) {
  for (guint l = LEVELS; l-- > 0;)
    for (GList *at = queues->levels[l].tail; at; at = at->prev)
      if (is_resident(at->data))
        return at->data;
  return NULL;
}

/* Swap residents out until `blocks` are free. FALSE if they are not. */
static gboolean make_room(KvInstance *instance, const Queues *queues, guint64 blocks) {
  while (kv_pool_free_blocks(instance->pool) < blocks) {
    KvSequence *victim = victim_of(queues);
    if (!victim)
      return FALSE;
    if (victim->state == KV_SEQUENCE_DECODE)
      kv_instance_pause(instance, victim);
    if (!kv_instance_swap_out(instance, victim))
      return FALSE;
  }
  return TRUE;
}

static guint64 blocks_of_batch(const KvInstance *instance, const Queues *queues) {
  guint64 blocks = 0;
  for (guint i = 0; i < queues->batch->len; i++)
    blocks += blocks_of(instance, g_ptr_array_index(queues->batch, i));
  return blocks;
}

/* Cut the batch to what fits. */
static void fit(KvInstance *instance, Queues *queues, guint64 reserve, KvBatch *batch) {
  while (queues->batch->len > 1 &&
         !make_room(instance, queues, reserve + blocks_of_batch(instance, queues)))
    push_front(queues, g_ptr_array_steal_index(queues->batch, queues->batch->len - 1));
  if (queues->batch->len == 0)
    return;
  guint64 blocks = blocks_of_batch(instance, queues);
  for (KvSequence *victim; !make_room(instance, queues, blocks) && (victim = victim_of(queues));) {
    if (victim->state == KV_SEQUENCE_DECODE)
      kv_instance_pause(instance, victim);
    kv_instance_drop_paused(instance, batch, victim);
  }
}

static void form(KvInstance *instance, Queues *queues, KvBatch *batch, double now) {
  kv_instance_await_room(instance, batch, blocks_of_batch(instance, queues));
  for (guint l = 0; l < LEVELS; l++)
    for (GList *at = queues->levels[l].head; at; at = at->next)
      if (((KvSequence *)at->data)->state == KV_SEQUENCE_DECODE)
        kv_instance_pause(instance, at->data);
  for (guint i = 0; i < queues->batch->len; i++) {
    KvSequence *s = g_ptr_array_index(queues->batch, i);
    if (s->state == KV_SEQUENCE_SWAPPED)
      kv_instance_swap_in_ahead(instance, s);
    if (s->state == KV_SEQUENCE_PAUSED)
      kv_instance_resume(instance, batch, s);
    if (s->state != KV_SEQUENCE_WAITING)
      continue;
    kv_instance_admit(instance, s, NULL, now);
    kv_instance_add_chunk(instance, batch, s, s->target_tokens);
  }
  batch->decodes = kv_decode_set_size(instance->decode) > 0;
}

/* After the batch has what it needs: blocks for those to come, and the first of the queue back from
 * the host. */
/* TRUE if anybody moved, so that the next decision may be another. */
static gboolean swap_ahead(KvInstance *instance, Queues *queues, guint64 reserve) {
  guint64 growth = kv_decode_set_growth(instance->decode, 1);
  guint looked = 0, swapped = instance->swapped.n;
  if (kv_pool_free_blocks(instance->pool) < reserve + growth) {
    make_room(instance, queues, reserve + growth);
    return instance->swapped.n != swapped;
  }
  for (guint l = 0; l < LEVELS; l++)
    for (GList *at = queues->levels[l].head; at && looked < instance->config->max_seqs;
         at = at->next, looked++) {
      KvSequence *s = at->data;
      if (s->state == KV_SEQUENCE_SWAPPED &&
          kv_pool_free_blocks(instance->pool) >= reserve + growth + s->swapped_blocks)
        kv_instance_swap_in_ahead(instance, s);
    }
  return instance->swapped.n != swapped;
}

/* Checked at every iteration: when the next request has not run for too long. */
static double first_to_starve(const KvInstance *instance, const Queues *queues) {
  double first = G_MAXDOUBLE;
  for (guint l = 1; l < LEVELS; l++)
    for (const GList *at = queues->levels[l].head; at; at = at->next)
      first = MIN(first, ((const KvSequence *)at->data)->last_run_seconds);
  return first < G_MAXDOUBLE ? first + instance->config->fastserve.starving_seconds : first;
}

/* Nothing changes before a quantum is used up, starvation is looked for, or the reserve is touched.
 */
static void limit_jump(const KvInstance *instance, const Queues *queues, guint64 reserve,
                       double now, KvBatch *batch) {
  for (guint i = 0; i < queues->batch->len; i++) {
    const KvSequence *s = g_ptr_array_index(queues->batch, i);
    double left = quantum(instance, s->level) - s->process_seconds;
    batch->until_seconds = MIN(batch->until_seconds, now + MAX(left, 0.0));
  }
  const KvEngineConfig *config = instance->config;
  if (config->fastserve.check_iterations > 1)
    batch->most_repeats =
        config->fastserve.check_iterations - (instance->n_iterations - queues->checked_iterations);
  else
    batch->until_seconds = MIN(batch->until_seconds, first_to_starve(instance, queues));
  /* With the reserve touched somebody is swapped out, or the batch loses its end. */
  guint64 free_blocks = kv_pool_free_blocks(instance->pool);
  guint64 most = batch->most_repeats ? batch->most_repeats : G_MAXUINT32;
  if (queues->batch->len > 1 || victim_of(queues))
    most = kv_decode_set_affordable(instance->decode,
                                    free_blocks > reserve ? free_blocks - reserve : 0, most);
  /* A step that takes blocks which are still being copied out waits. */
  if (instance->leaving_until > now)
    most = kv_decode_set_affordable(
        instance->decode,
        free_blocks > instance->leaving_blocks ? free_blocks - instance->leaving_blocks : 0, most);
  batch->most_repeats = MAX(1, most);
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  Queues *queues = instance->policy;
  guint64 reserve = MAX(instance->config->max_seqs, instance->config->fastserve.reserve_blocks);
  gboolean proactive = instance->config->fastserve.proactive;
  charge(instance, queues, now);
  promote_starving(instance, queues, now);
  choose(instance, queues);
  fit(instance, queues, proactive ? reserve : 0, batch);
  form(instance, queues, batch, now);
  gboolean moved = proactive && swap_ahead(instance, queues, reserve);
  limit_jump(instance, queues, proactive ? reserve : 0, now, batch);
  if (moved)
    batch->most_repeats = 1;
  queues->decided_seconds = now;
  queues->decided_iterations = instance->n_iterations;
}

const KvSchedulerClass kv_scheduler_fastserve = {
    .name = "fastserve",
    .description = "FastServe: skip-join feedback queue, preemption at every iteration, swapping",
    .schedule = schedule,
    .begin = begin,
    .end = end,
    .arrived = arrived,
    .finished = finished,
};
