/* SGLang (v0.5): prompts before decodes, apart from each other.
 *
 * While a prompt can be admitted, a batch of prompts runs alone and decoding waits; one prompt at a
 * time is cut at the chunk size (max_batched_tokens), and its rest goes first. Admission asks
 * whether everybody could run to the end: with the prefix cache, running sequences are taken to
 * need a share of what is left of their answers, 0.7 at first and less with every decode step down
 * to 0.098 (new_token_ratio); without it, and with known lengths, the order of completions is
 * followed. When a decode step finds no room, the sequence with the fewest generated tokens is
 * retracted and goes to the end of the queue.
 *
 * Not modelled: pages of one token (blocks are the engine's), and caching of answers only when they
 * are complete. */
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

static const double FIRST_RATIO = 0.7, LAST_RATIO = 0.098, RATIO_STEPS = 600.0;
enum { MOST_NEW_TOKENS = 4096 }; /* of an answer, as far as admission looks */

static double new_token_ratio(KvInstance *instance) {
  guint64 step = kv_decode_set_step(instance->decode);
  if (instance->running.n == 0)
    instance->busy_since_step = step;
  double taken = (double)(step - instance->busy_since_step);
  return MAX(LAST_RATIO, FIRST_RATIO - taken * (FIRST_RATIO - LAST_RATIO) / RATIO_STEPS);
}

static guint32 tokens_left(const KvInstance *instance, const KvSequence *sequence) {
  guint32 emitted = sequence->state == KV_SEQUENCE_DECODE
                        ? kv_sequence_emitted(sequence, instance->decode)
                        : sequence->emitted_tokens;
  return sequence->output_tokens > emitted ? sequence->output_tokens - emitted : 0;
}

typedef struct {
  guint64 left, held; /* tokens still to come, and in the cache until then */
} Life;

static gint by_left(gconstpointer a, gconstpointer b) {
  guint64 x = ((const Life *)a)->left, y = ((const Life *)b)->left;
  return x < y ? -1 : x > y;
}

static void add_life(const KvInstance *instance, GArray *lives, const KvSequence *sequence) {
  Life life = {tokens_left(instance, sequence), 0};
  life.held = (guint64)sequence->input_tokens + (sequence->output_tokens - life.left);
  if (life.left > 0)
    g_array_append_val(lives, life);
}

/* Everybody generates a token a step and gives its tokens back when done: is there always room? */
static gboolean all_can_finish(const KvInstance *instance, const KvSequence *candidate,
                               double free_tokens) {
  g_autoptr(GArray) lives = g_array_new(FALSE, FALSE, sizeof(Life));
  for (const KvSequence *s = instance->running.head; s; s = s->next)
    add_life(instance, lives, s);
  add_life(instance, lives, candidate);
  g_array_sort(lives, by_left);
  for (guint i = 0; i < lives->len; i++) {
    const Life *life = &g_array_index(lives, Life, i);
    double active = lives->len - i;
    if (free_tokens - (double)life->left * active <= active)
      return FALSE;
    free_tokens += (double)life->held;
  }
  return TRUE;
}

static gboolean fits(KvInstance *instance, const KvSequence *candidate, guint64 new_blocks) {
  const KvEngineConfig *config = instance->config;
  guint64 available = kv_instance_available(instance, FALSE);
  if (new_blocks > available)
    return FALSE;
  double free_tokens = (double)(available - new_blocks) * config->block_tokens;
  if (!config->prefix_caching)
    return instance->running.n == 0 || all_can_finish(instance, candidate, free_tokens);
  double reserved = MIN(tokens_left(instance, candidate), MOST_NEW_TOKENS);
  double ratio = new_token_ratio(instance);
  for (const KvSequence *s = instance->running.head; s; s = s->next)
    reserved += ratio * MIN(tokens_left(instance, s), MOST_NEW_TOKENS);
  return instance->running.n == 0 || reserved < free_tokens;
}

/* Try the head of the queue. FALSE: no more prompts in this batch. */
static gboolean admit_head(KvInstance *instance, KvBatch *batch, guint64 *budget, double now) {
  KvSequence *head = instance->waiting.head;
  KvPrefixHit hit = kv_instance_lookup(instance, head, head->target_tokens - 1);
  guint32 want = head->target_tokens - (guint32)hit.tokens;
  guint64 hit_blocks = hit.tokens / instance->config->block_tokens;
  guint64 needed = kv_instance_needed(instance, head, head->target_tokens) - hit_blocks;
  if (!fits(instance, head, needed + hit.free_blocks)) {
    instance->blocked = TRUE;
    return FALSE;
  }
  kv_instance_admit(instance, head, &hit, now);
  want = (guint32)MIN(want, *budget);
  kv_instance_add_chunk(instance, batch, head, want);
  *budget -= want;
  return TRUE;
}

static void add_prompts(KvInstance *instance, KvBatch *batch, double now) {
  const KvEngineConfig *config = instance->config;
  guint64 budget = (guint64)config->data_parallel * config->max_batched_tokens;
  for (guint i = 0; i < instance->prefilling->len && budget > 0; i++) {
    KvSequence *sequence = g_ptr_array_index(instance->prefilling, i);
    guint32 want = (guint32)MIN(sequence->target_tokens - sequence->computed_tokens, budget);
    if (kv_instance_needed(instance, sequence, sequence->computed_tokens + want) >
        kv_instance_available(instance, FALSE))
      return;
    kv_instance_add_chunk(instance, batch, sequence, want);
    budget -= want;
  }
  while (budget > 0 && instance->waiting.n > 0) {
    if (instance->n_running >= config->data_parallel * config->max_seqs) {
      instance->blocked = TRUE;
      break;
    }
    if (!admit_head(instance, batch, &budget, now))
      break;
  }
}

/* Fewest generated tokens, the longest prompt among equals. */
static KvSequence *victim_of(const KvInstance *instance) {
  KvSequence *victim = NULL;
  guint32 fewest = G_MAXUINT32;
  for (KvSequence *s = instance->running.head; s; s = s->next) {
    guint32 emitted = s->output_tokens - tokens_left(instance, s);
    if (!victim || emitted < fewest ||
        (emitted == fewest && s->input_tokens > victim->input_tokens)) {
      victim = s;
      fewest = emitted;
    }
  }
  return victim;
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  new_token_ratio(instance);
  add_prompts(instance, batch, now);
  if (batch->chunks->len > 0)
    return;
  while (kv_decode_set_growth(instance->decode, 1) > kv_instance_available(instance, FALSE))
    kv_instance_preempt(instance, batch, victim_of(instance), TRUE);
  batch->decodes = kv_decode_set_size(instance->decode) > 0;
}

const KvSchedulerClass kv_scheduler_sglang = {
    .name = "sglang",
    .description = "SGLang 0.5: prompts first and alone, admission by what answers may need",
    .schedule = schedule,
    .shares_prefixes = TRUE,
    .async = TRUE,
};
