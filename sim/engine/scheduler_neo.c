/* NEO (sections 4 and 5): some sequences keep their cache in host memory and attend on the CPU.
 *
 * Each iteration, in order: the last of the GPU's sequences go to the host while its blocks are
 * short, or the first on the host come back while less than a share of the blocks is in use;
 * prompts are taken in order, to the GPU until one does not fit there, from then on to the host;
 * sequences on the host join one by one, each in the sub-batch with more slack, as long as the CPU
 * is done before the GPU asks in both; prompts that are not needed to hide the CPU are put off.
 * That pair of sub-batches runs if it serves more sequences a second than the step without the
 * host's. Sequences on the host stay in the queue `swapped`; those that find no slack sit the
 * iteration out.
 *
 * The released scheduler reads times from tables measured beforehand; here the executor says what
 * a step would take. */
#include <string.h>

#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

/* An iteration that might be run. */
typedef struct {
  GArray *chunks;        /* of KvChunk: prompts, in order */
  guint n_gpu, n_chunks; /* of them, those that fit on the GPU; those taken */
  guint64 decoding, host, first;
  double values[KV_MAX_CHANNELS]; /* of the sequences on the host */
  double context_tokens;
  KvStepCost cost;
} Plan;

static double rate_of(const Plan *plan) {
  double served = (double)(plan->decoding + plan->host) + plan->n_chunks;
  return plan->cost.seconds > 0.0 ? served / plan->cost.seconds : 0.0;
}

static void price(KvInstance *instance, Plan *plan) {
  KvStep step = {.chunks = (const KvChunk *)(const void *)plan->chunks->data,
                 .n_chunks = plan->n_chunks,
                 .repeat = 1,
                 .host_first = plan->first};
  kv_decode_set_batch(instance->decode, &step.decode);
  step.host = (KvDecodeBatch){
      .n = plan->host, .context_tokens = plan->context_tokens, .values = plan->values};
  for (guint i = plan->n_gpu; i < plan->n_chunks; i++)
    step.host_prompt_tokens += step.chunks[i].tokens;
  plan->cost = (KvStepCost){0};
  plan->decoding = step.decode.n;
  if (plan->decoding + plan->n_chunks + plan->host > 0)
    instance->executor->class->step(instance->executor, &step, &plan->cost, NULL);
}

static guint64 tokens_of(const Plan *plan) {
  guint64 tokens = plan->decoding + plan->host;
  for (guint i = 0; i < plan->n_chunks; i++)
    tokens += g_array_index(plan->chunks, KvChunk, i).tokens;
  return tokens;
}

/* Prompts, in order, to the GPU as long as they fit and then to the host. */
static void choose_prompts(KvInstance *instance, Plan *plan) {
  const KvEngineConfig *config = instance->config;
  guint64 gpu = kv_instance_available(instance, TRUE), host = instance->host_free_blocks;
  guint64 tokens = plan->decoding;
  for (KvSequence *s = instance->waiting.head; s; s = s->next) {
    guint64 blocks = kv_instance_needed(instance, s, s->target_tokens);
    gboolean to_gpu = plan->n_gpu == plan->n_chunks && blocks <= gpu;
    if (plan->decoding + plan->n_chunks >= config->max_seqs ||
        (tokens > 0 && tokens + s->target_tokens > config->max_batched_tokens))
      break;
    if (!to_gpu && blocks > host) {
      instance->blocked = TRUE;
      break;
    }
    KvChunk chunk = {.sequence = s, .tokens = s->target_tokens, .last = TRUE};
    g_array_append_val(plan->chunks, chunk);
    *(to_gpu ? &gpu : &host) -= blocks;
    tokens += s->target_tokens;
    plan->n_gpu += to_gpu;
    plan->n_chunks++;
  }
}

static void add_host(const KvInstance *instance, Plan *plan, const KvSequence *s, double sign) {
  plan->context_tokens += sign * (s->computed_tokens + 1.0);
  for (guint c = 0; c < instance->n_channels; c++)
    plan->values[c] += sign * kv_law_value(&instance->curves->laws[c], s->computed_tokens + 1.0,
                                           s->input_tokens, TRUE, NULL, NULL);
}

/* Sequences on the host, in order, each to the sub-batch with more slack: the second first. */
static void choose_host(KvInstance *instance, Plan *plan, KvBatch *batch) {
  const KvEngineConfig *config = instance->config;
  for (KvSequence *s = instance->swapped.head; s; s = s->next) {
    Plan before = *plan;
    if (plan->decoding + plan->host + plan->n_chunks >= config->max_seqs ||
        tokens_of(plan) >= config->max_batched_tokens)
      break;
    if (!kv_instance_host_has_room(instance, s))
      continue;
    gboolean to_first = plan->host > 0 && plan->cost.slack_seconds[0] > plan->cost.slack_seconds[1];
    plan->host++;
    plan->first += to_first;
    add_host(instance, plan, s, +1.0);
    price(instance, plan);
    if (plan->cost.slack_seconds[0] < 0.0 || plan->cost.slack_seconds[1] < 0.0) {
      *plan = before;
      break;
    }
    g_ptr_array_add(batch->host, s);
  }
}

/* Put off the last prompts, but not the first, that the CPU's attention does not need to hide
 * behind: the CPU would idle. */
static void drop_prompts(KvInstance *instance, Plan *plan) {
  while (plan->host > 0 && plan->n_chunks > 1) {
    Plan without = *plan;
    without.n_chunks--;
    without.n_gpu = MIN(without.n_gpu, without.n_chunks);
    if (tokens_of(&without) < instance->config->least_step_tokens)
      break;
    price(instance, &without);
    if (without.cost.slack_seconds[0] < 0.0 || without.cost.slack_seconds[1] < 0.0)
      break;
    *plan = without;
  }
}

/* Nobody is on the GPU and nothing hides the CPU: run what there is, and wait for it. */
static void run_host_alone(KvInstance *instance, Plan *plan, KvBatch *batch) {
  for (KvSequence *s = instance->swapped.head; s && plan->host < instance->config->max_seqs;
       s = s->next) {
    if (!kv_instance_host_has_room(instance, s))
      continue;
    plan->host++;
    g_ptr_array_add(batch->host, s);
  }
  if (plan->host == 0 && instance->swapped.n > 0) /* each waits for another's blocks */
    kv_instance_drop_last_swapped(instance, batch);
}

static void swap_in(KvInstance *instance, KvBatch *batch) {
  double total = (double)kv_pool_total(instance->pool);
  while (instance->swapped.n > 0 && instance->n_running < instance->config->max_seqs) {
    KvSequence *head = instance->swapped.head;
    guint64 blocks = head->swapped_blocks + 1;
    double used = total - (double)kv_pool_free_blocks(instance->pool) + (double)blocks;
    if (used > instance->config->swap_in_below * total ||
        blocks > kv_instance_available(instance, TRUE))
      break;
    kv_instance_swap_in(instance, batch, head);
    head->on_host = FALSE;
  }
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  Plan pair = {.chunks = g_array_new(FALSE, TRUE, sizeof(KvChunk))};
  if (!kv_instance_make_room(instance, batch))
    swap_in(instance, batch);
  pair.decoding = kv_decode_set_size(instance->decode);
  choose_prompts(instance, &pair);
  if (instance->swapped.n > 0) {
    price(instance, &pair);
    Plan alone = pair;
    choose_host(instance, &pair, batch);
    drop_prompts(instance, &pair);
    if (rate_of(&alone) >= rate_of(&pair)) {
      pair = alone;
      g_ptr_array_set_size(batch->host, 0);
    }
  }
  if (instance->swapped.n > 0 || batch->reordered)
    batch->most_repeats = 1;
  if (pair.decoding + pair.n_chunks + pair.host == 0)
    run_host_alone(instance, &pair, batch);
  batch->decodes = TRUE;
  batch->host_first = pair.first;
  for (guint i = 0; i < pair.n_chunks; i++) {
    KvSequence *s = g_array_index(pair.chunks, KvChunk, i).sequence;
    if (i < pair.n_gpu)
      kv_instance_admit(instance, s, NULL, now);
    else
      kv_instance_admit_to_host(instance, s, now);
    kv_instance_add_chunk(instance, batch, s, s->target_tokens);
  }
  g_array_unref(pair.chunks);
}

const KvSchedulerClass kv_scheduler_neo = {
    .name = "neo",
    .description =
        "NEO: sequences whose cache is on the host attend on the CPU, hidden at each step",
    .schedule = schedule,
    .offloads = TRUE,
};
