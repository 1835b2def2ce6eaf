/* LAMPS (arXiv:2410.18248): requests that call APIs in mid-answer, ranked by the memory that they
 * will hold over time.
 *
 * When a request comes, and again when a call of its returns, the next part of it is predicted:
 * tokens until the next call, how long that takes, tokens after it. Its cache is then kept, dropped
 * or swapped during the call, whichever wastes least memory over time: kept, C tokens for the
 * call's time; dropped, its own and all others' for the time of computing C again; swapped, the
 * batch's for both copies. With that choice the area under its memory curve is its score. The queue
 * is sorted by it, the smaller first, and whoever waited for more than `starving_iterations` goes
 * to the front. Below that it is vLLM: running sequences first, in order of admission, and never
 * reordered.
 *
 * If blocks are short, kept caches that would by now waste less if dropped are dropped first. */
#include <math.h>

#include "sim/engine/park.h"
#include "sim/engine/schedulers.h"

/* The next part of a request, as predicted. */
typedef struct {
  double start;    /* tokens in the cache when it begins to decode */
  double before;   /* tokens until the call */
  double calling;  /* seconds of the call; 0: none */
  double returned; /* tokens that the call gives back */
  double after;    /* tokens of the answer after it */
} Part;

/* A length as the predictor's classes give it: the middle of its bin, the last bin for all beyond.
 */
static double predicted(const KvEngineConfig *config, double tokens) {
  double width = config->calls.bin_tokens;
  if (width == 0.0)
    return tokens;
  return (fmin(floor(tokens / width), config->calls.bins - 1.0) + 0.5) * width;
}

static Part part_of(const KvInstance *instance, const KvSequence *s) {
  gboolean calls = s->next_call < s->n_calls;
  Part part = {.start = s->target_tokens,
               .before =
                   predicted(instance->config, (double)kv_sequence_stop(s) - s->emitted_tokens)};
  if (calls) {
    const KvTraceCall *call = &s->calls[s->next_call];
    part.calling = call->duration_seconds;
    part.returned = call->returned_tokens;
    part.after = predicted(instance->config, (double)s->output_tokens - call->position);
  }
  return part;
}

/* Tokens in caches of running sequences. */
static double running_tokens(const KvInstance *instance) {
  double tokens = kv_decode_set_context_tokens(instance->decode);
  for (guint i = 0; i < instance->prefilling->len; i++)
    tokens += ((const KvSequence *)g_ptr_array_index(instance->prefilling, i))->computed_tokens;
  return tokens;
}

/* Token-seconds wasted by each way to handle a call at `context` tokens. */
static void wastes(const KvInstance *instance, double context, double calling, double waste[3]) {
  double others = running_tokens(instance);
  double forward = kv_instance_prefill_seconds(instance, 0, (guint32)context);
  guint64 blocks = kv_demand_blocks(&instance->demand, context, context, TRUE);
  double swap = kv_instance_copy_seconds(instance, KV_TIER_HBM, KV_TIER_DRAM, blocks);
  waste[KV_CALL_PRESERVE] = calling * context;
  waste[KV_CALL_DISCARD] = forward * context + forward * others;
  waste[KV_CALL_SWAP] = instance->host_free_blocks >= blocks ? 2.0 * swap * others : G_MAXDOUBLE;
}

static KvCallHandling choose(const KvInstance *instance, const Part *part) {
  double waste[3];
  guint strategy = instance->config->calls.strategy, best = KV_CALL_PRESERVE;
  if (strategy != KV_CALL_LEAST_WASTE)
    return (KvCallHandling)strategy;
  wastes(instance, part->start + part->before, part->calling, waste);
  for (guint h = KV_CALL_DISCARD; h <= KV_CALL_SWAP; h++)
    best = waste[h] < waste[best] ? h : best;
  return (KvCallHandling)best;
}

/* The area while `tokens` are computed in one go: they fill up evenly. */
static double fill_area(const KvInstance *instance, double tokens) {
  return 0.5 * tokens * kv_instance_prefill_seconds(instance, 0, (guint32)tokens);
}

/* The area while `tokens` are decoded from `context` on, an iteration each. */
static double decode_area(double context, double tokens, double iteration) {
  return iteration * (context * tokens + 0.5 * tokens * (tokens + 1.0));
}

/* Memory over time, token-seconds, as the paper draws it. */
static double area_of(const KvInstance *instance, const Part *part, KvCallHandling handling) {
  double iteration = kv_instance_prefill_seconds(instance, 0, 1);
  double at_call = part->start + part->before;
  double area =
      fill_area(instance, part->start) + decode_area(part->start, part->before, iteration);
  if (part->calling == 0.0 && part->after == 0.0)
    return area;
  guint64 blocks = kv_demand_blocks(&instance->demand, at_call, at_call, TRUE);
  if (handling == KV_CALL_PRESERVE)
    area += at_call * part->calling;
  else if (handling == KV_CALL_DISCARD)
    area += fill_area(instance, at_call + part->returned);
  else
    area += 2.0 * at_call * kv_instance_copy_seconds(instance, KV_TIER_HBM, KV_TIER_DRAM, blocks);
  return area + decode_area(at_call + part->returned, part->after, iteration);
}

/* The authors' code: m tokens take n = ceil(m / c) full iterations of what the headroom leaves, c,
 * and their area is f n (n + 1) / 2 c. */
static double released_area(const KvInstance *instance, const Part *part, KvCallHandling handling) {
  double headroom = instance->config->calls.headroom_tokens;
  double chunk = fmax(headroom - (double)kv_decode_set_size(instance->decode), 1.0);
  double full = kv_instance_prefill_seconds(instance, 0, (guint32)headroom);
  double before = part->start + part->before, after = part->returned + part->after;
  double n = ceil(before / chunk), m = ceil((before + after) / chunk), k = ceil(after / chunk);
  double area = full * n * (n + 1.0) / 2.0 * chunk;
  if (part->calling == 0.0 && after == 0.0)
    return area;
  if (handling == KV_CALL_PRESERVE)
    return area + before * part->calling + full * k * (k + 1.0) / 2.0 * chunk;
  if (handling == KV_CALL_DISCARD)
    return area + full * m * (m + 1.0) / 2.0 * chunk;
  guint64 blocks = kv_demand_blocks(&instance->demand, before, before, TRUE);
  return area + full * k * (k + 1.0) / 2.0 * chunk +
         2.0 * before * kv_instance_copy_seconds(instance, KV_TIER_HBM, KV_TIER_DRAM, blocks);
}

static void score(KvInstance *instance, KvSequence *sequence) {
  Part part = part_of(instance, sequence);
  KvCallHandling handling = choose(instance, &part);
  sequence->handling = handling;
  sequence->score = instance->config->calls.released ? released_area(instance, &part, handling)
                                                     : area_of(instance, &part, handling);
  sequence->scored = TRUE;
  sequence->waiting_since = instance->n_iterations;
}

static gboolean starves(const KvInstance *instance, const KvSequence *s) {
  return instance->n_iterations - s->waiting_since > instance->config->calls.starving_iterations;
}

/* Who starves, in order of arrival; then the smallest area first. */
static gint by_score(gconstpointer a, gconstpointer b, gpointer user) {
  const KvInstance *instance = user;
  const KvSequence *x = *(KvSequence *const *)a, *y = *(KvSequence *const *)b;
  gboolean first = starves(instance, x), second = starves(instance, y);
  if (first != second)
    return second - first;
  if (!first && x->score != y->score)
    return x->score < y->score ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

static void order_queue(KvInstance *instance) {
  g_autofree KvSequence **ordered = g_new(KvSequence *, instance->waiting.n + 1);
  guint n = 0;
  for (KvSequence *s = instance->waiting.head; s; s = s->next) {
    if (!s->scored)
      score(instance, s);
    ordered[n++] = s;
  }
  if (!instance->config->calls.ranks)
    return;
  g_qsort_with_data(ordered, (gint)n, sizeof *ordered, by_score, instance);
  kv_instance_order_waiting(instance, ordered);
}

/* Drop kept caches of which the rest of the call wastes more than to compute them again. TRUE if
 * there were any. */
static gboolean drop_kept(KvInstance *instance) {
  gboolean dropped = FALSE;
  for (KvSequence *s = kv_instance_next_preserved(instance, NULL), *next; s; s = next) {
    double waste[3];
    next = kv_instance_next_preserved(instance, s);
    wastes(instance, s->computed_tokens, s->return_seconds - instance->now, waste);
    if (waste[KV_CALL_DISCARD] >= waste[KV_CALL_PRESERVE])
      continue;
    kv_instance_discard(instance, s);
    dropped = TRUE;
  }
  return dropped;
}

/* Steps until somebody who waits begins to starve. */
static guint64 steps_to_starving(const KvInstance *instance) {
  guint64 steps = G_MAXUINT64, limit = instance->config->calls.starving_iterations;
  for (const KvSequence *s = instance->waiting.head; s; s = s->next)
    if (!starves(instance, s))
      steps = MIN(steps, s->waiting_since + limit + 1 - instance->n_iterations);
  return steps;
}

static void schedule(KvInstance *instance, double now, KvBatch *batch) {
  order_queue(instance);
  if (kv_decode_set_growth(instance->decode, 1) > kv_pool_free_blocks(instance->pool))
    drop_kept(instance);
  kv_scheduler_vllm_v1.schedule(instance, now, batch);
  if (instance->blocked && drop_kept(instance))
    batch->reordered = TRUE; /* the next decision may admit */
  instance->blocked = FALSE; /* who comes is scored at once, and may be smaller than the head */
  if (instance->config->calls.ranks) {
    guint64 steps = steps_to_starving(instance);
    batch->most_repeats = steps < G_MAXUINT64 ? steps : 0;
  }
}

const KvSchedulerClass kv_scheduler_lamps = {
    .name = "lamps",
    .description = "LAMPS: the queue by memory over time, API calls by the least waste",
    .schedule = schedule,
};
