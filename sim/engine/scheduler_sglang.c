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
 * An admission that failed for lack of room is not tried again before a running sequence has left.
 *
 * The queue's order may follow the cache (RadixAttention, section 3 of arXiv:2312.07104): before
 * prompts are taken everybody in it is matched, which refreshes what it will need, and sorted, the
 * longest match first. Of prompts that match little and have much in common with one before them,
 * all but that one go last: it computes, they find. Above a limit of waiting requests the order is
 * that of arrival. Sorting is stable and in place, so equals keep their order. */
#include "sim/base/random.h"
#include "sim/engine/instance.h"
#include "sim/engine/schedulers.h"

/* The share of answers set aside falls to this part of the first within so many steps. */
static const double LAST_RATIO = 0.14, RATIO_STEPS = 600.0;

static double new_token_ratio(KvInstance *instance) {
  guint64 step = kv_decode_set_step(instance->decode);
  if (instance->running.n == 0)
    instance->busy_since_step = step;
  double taken = (double)(step - instance->busy_since_step);
  double first = instance->config->sglang.first_new_ratio, last = LAST_RATIO * first;
  return MAX(last, first - taken * (first - last) / RATIO_STEPS);
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
  life.held = kv_sequence_end_tokens(sequence) - life.left;
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
  guint32 most = config->sglang.most_new_tokens;
  double reserved = MIN(tokens_left(instance, candidate), most);
  double ratio = new_token_ratio(instance);
  for (const KvSequence *s = instance->running.head; s; s = s->next)
    reserved += ratio * MIN(tokens_left(instance, s), most);
  return instance->running.n == 0 || reserved < free_tokens;
}

/* "batch_is_full": nobody is let in before somebody has left. */
static void close_admission(KvInstance *instance) {
  instance->closed_at = instance->n_left + 1;
  instance->blocked = TRUE;
}

/* The order of the queue. */

typedef struct {
  KvSequence *sequence;
  guint64 match_tokens;
  guint n_nodes;
  gboolean deferred;
  const KvInstance *instance;
  GHashTable *weights; /* by node: waiting requests that it is a prefix of, and who is first */
} Place;

static gint compare_u64(guint64 a, guint64 b) {
  return a < b ? -1 : a > b;
}

static gint by_match(gconstpointer a, gconstpointer b, gpointer user) {
  const Place *x = a, *y = b;
  if (x->deferred != y->deferred)
    return x->deferred ? 1 : -1;
  return compare_u64(y->match_tokens, x->match_tokens);
}

static gint by_answer(gconstpointer a, gconstpointer b, gpointer user) {
  return compare_u64(((const Place *)b)->sequence->output_tokens,
                     ((const Place *)a)->sequence->output_tokens);
}

/* Everybody's number in one random order. */
static gint by_lot(gconstpointer a, gconstpointer b, gpointer user) {
  return compare_u64(kv_random_mix(((const Place *)a)->sequence->index),
                     kv_random_mix(((const Place *)b)->sequence->index));
}

/* The number of requests in the upper half; below it more for who comes earlier. */
static guint64 weight_of(const Place *place, guint i) {
  guint64 name = kv_pool_node_name(place->instance->pool, place->sequence, i);
  return GPOINTER_TO_SIZE(g_hash_table_lookup(place->weights, &name));
}

/* Depth first, the child with most requests beneath it first; who ends at a node comes after all
 * beneath it. */
static gint by_depth(gconstpointer a, gconstpointer b, gpointer user) {
  const Place *x = a, *y = b;
  KvPool *pool = x->instance->pool;
  guint i = 0;
  while (i < MIN(x->n_nodes, y->n_nodes) &&
         kv_pool_node_name(pool, x->sequence, i) == kv_pool_node_name(pool, y->sequence, i))
    i++;
  if (i == x->n_nodes || i == y->n_nodes)
    return (i == x->n_nodes) - (i == y->n_nodes);
  return compare_u64(weight_of(y, i), weight_of(x, i));
}

static void count_weights(Place *places, guint n, GHashTable *weights) {
  for (guint p = 0; p < n; p++)
    for (guint i = 0; i < places[p].n_nodes; i++) {
      guint64 name = kv_pool_node_name(places[p].instance->pool, places[p].sequence, i);
      guint64 weight = weight_of(&places[p], i);
      if (weight == 0)
        weight = G_MAXUINT32 - p;
      g_hash_table_insert(weights, g_memdup2(&name, sizeof name),
                          GSIZE_TO_POINTER(weight + ((guint64)1 << 32)));
    }
}

/* Whether what the request has in common with one before it in the queue makes it wait; if not, the
 * others are held against it, too. `seen`: the prefix blocks of those before it. */
static gboolean repeats_another(const KvInstance *instance, const KvSequence *sequence,
                                GHashTable *seen) {
  guint block = kv_pool_hash_block_tokens(instance->pool), n = 0, whole = 0;
  if (block == 0)
    return FALSE;
  whole = MIN(sequence->n_hashes, sequence->input_tokens / block);
  while (n < whole && g_hash_table_contains(seen, &sequence->hashes[n]))
    n++;
  if ((guint64)n * block > instance->config->sglang.defer_tokens)
    return TRUE;
  for (; n < whole; n++)
    g_hash_table_add(seen, &sequence->hashes[n]);
  return FALSE;
}

static void match_all(KvInstance *instance, Place *places) {
  g_autoptr(GHashTable) seen = g_hash_table_new(g_int64_hash, g_int64_equal);
  guint n = 0;
  for (KvSequence *s = instance->waiting.head; s; s = s->next, n++) {
    KvPrefixHit hit = kv_instance_lookup(instance, s, s->target_tokens - 1);
    kv_pool_touch(instance->pool, s, &hit);
    places[n].match_tokens = hit.tokens;
    places[n].n_nodes = hit.n_nodes;
    places[n].deferred =
        hit.tokens <= instance->config->sglang.check_tokens && repeats_another(instance, s, seen);
  }
}

static void order_queue(KvInstance *instance) {
  static const GCompareDataFunc orders[] = {[KV_ORDER_LPM] = by_match,
                                            [KV_ORDER_DFS_WEIGHT] = by_depth,
                                            [KV_ORDER_LOF] = by_answer,
                                            [KV_ORDER_RANDOM] = by_lot};
  KvQueueOrder order = instance->config->sglang.order;
  gboolean by_cache = order == KV_ORDER_LPM || order == KV_ORDER_DFS_WEIGHT;
  guint n = instance->waiting.n, i = 0;
  if (order == KV_ORDER_FCFS || n == 0 ||
      (by_cache && (!instance->config->prefix_caching || n > instance->config->sglang.order_limit)))
    return;
  g_autofree Place *places = g_new0(Place, n);
  g_autoptr(GHashTable) weights = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  for (KvSequence *s = instance->waiting.head; s; s = s->next)
    places[i++] = (Place){.sequence = s, .instance = instance, .weights = weights};
  if (by_cache)
    match_all(instance, places);
  if (order == KV_ORDER_DFS_WEIGHT)
    count_weights(places, n, weights);
  g_qsort_with_data(places, (gint)n, sizeof *places, orders[order], NULL);
  g_autofree KvSequence **ordered = g_new(KvSequence *, n);
  for (i = 0; i < n; i++)
    ordered[i] = places[i].sequence;
  kv_instance_order_waiting(instance, ordered);
}

/* What a batch computes enters the tree with its results: tokens of the sequence's prompt before
 * the first that a chunk of `batch` computes, too. Equal names mean equal all before them. */
static guint32 before_chunks(const KvInstance *instance, const KvBatch *batch,
                             const KvSequence *sequence, guint32 limit) {
  guint block = kv_pool_hash_block_tokens(instance->pool);
  for (guint i = 0; block > 0 && i < batch->chunks->len; i++) {
    const KvChunk *chunk = &g_array_index(batch->chunks, KvChunk, i);
    guint32 at = chunk->past / block;
    if (chunk->past < limit && at < MIN(sequence->n_hashes, chunk->sequence->n_hashes) &&
        sequence->hashes[at] == chunk->sequence->hashes[at])
      limit = chunk->past;
  }
  return limit;
}

/* Try the head of the queue. FALSE: no more prompts in this batch. */
static gboolean admit_head(KvInstance *instance, KvBatch *batch, guint64 *budget, double now) {
  KvSequence *head = instance->waiting.head;
  guint32 limit = before_chunks(instance, batch, head, head->target_tokens - 1);
  for (guint b = 0; b < instance->n_batches; b++)
    limit = before_chunks(instance, instance->batches[b], head, limit);
  KvPrefixHit hit = kv_instance_lookup(instance, head, limit);
  guint32 want = head->target_tokens - (guint32)hit.tokens;
  guint64 hit_blocks = hit.tokens / instance->config->block_tokens;
  guint64 needed = kv_instance_needed(instance, head, head->target_tokens) - hit_blocks;
  if (!fits(instance, head, needed + hit.free_blocks)) {
    close_admission(instance);
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
  if (instance->waiting.n == 0)
    return;
  if (instance->closed_at == instance->n_left + 1) {
    instance->blocked = TRUE;
    return;
  }
  order_queue(instance);
  while (budget > 0 && instance->waiting.n > 0) {
    if (instance->n_running >= config->data_parallel * config->max_seqs) {
      close_admission(instance);
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
