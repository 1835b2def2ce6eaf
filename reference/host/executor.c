#include "reference/host/executor.h"

#include "reference/host/forward.h"
#include "sim/base/error.h"
#include "sim/base/random.h"

typedef struct {
  KvExecutor base;
  KvHostWeights *weights;
  KvHostCache *cache;
  guint32 hash_block_tokens;
  guint oldest_window; /* positions that some layer sees; 0: all */
  gboolean measured;
  KvHostSink sink;
  gpointer sink_user;
  GQueue copies; /* of HostCopy, in order of completion */
  double link_free_seconds;
} HostExecutor;

typedef struct {
  KvCopy copy;
  double done_seconds;
} HostCopy;

/* A sequence's executor_state. */
typedef struct {
  GArray *generated; /* of guint32 */
  GArray *names;     /* of guint64: [i] names the tokens up to position i */
} HostSequence;

static HostSequence *state_of(KvSequence *sequence) {
  if (!sequence->executor_state) {
    HostSequence *state = g_new(HostSequence, 1);
    state->generated = g_array_new(FALSE, FALSE, sizeof(guint32));
    state->names = g_array_new(FALSE, FALSE, sizeof(guint64));
    sequence->executor_state = state;
  }
  return sequence->executor_state;
}

/* Positions whose tokens are known. */
static guint64 known_tokens(KvSequence *sequence) {
  return (guint64)sequence->input_tokens + state_of(sequence)->generated->len;
}

static guint32 token_at(const HostExecutor *host, KvSequence *sequence, guint32 position) {
  return position < sequence->input_tokens
             ? kv_sequence_prompt_token(sequence, position, host->hash_block_tokens,
                                        host->weights->vocab)
             : g_array_index(state_of(sequence)->generated, guint32,
                             position - sequence->input_tokens);
}

/* The name of the tokens 0 .. position: never 0, which is that of an unwritten slot. */
static guint64 name_at(const HostExecutor *host, KvSequence *sequence, guint32 position) {
  GArray *names = state_of(sequence)->names;
  while (names->len <= position) {
    guint64 before = names->len ? g_array_index(names, guint64, names->len - 1) : 0;
    guint64 name = kv_random_mix(before ^ kv_random_mix(token_at(host, sequence, names->len))) | 1;
    g_array_append_val(names, name);
  }
  return g_array_index(names, guint64, position);
}

#define PROBLEM(error, sequence, ...) problem(error, sequence, g_strdup_printf(__VA_ARGS__))

static gboolean problem(GError **error, const KvSequence *sequence, char *message) {
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "host executor: request %" G_GUINT64_FORMAT ": %s",
              sequence->index, message);
  g_free(message);
  return FALSE;
}

/* Whether the span can be computed at all: its tokens are known, its positions and blocks exist. */
static gboolean check_span(const HostExecutor *host, KvSequence *sequence, const KvHostSpan *span,
                           GError **error) {
  guint64 end = (guint64)span->past + span->n_tokens;
  guint64 blocks = (end + host->cache->block_tokens - 1) / host->cache->block_tokens;
  if (!span->n_tokens)
    return PROBLEM(error, sequence, "nothing to compute at position %u, expected a token",
                   span->past);
  if (end > known_tokens(sequence))
    return PROBLEM(error, sequence,
                   "position %" G_GUINT64_FORMAT " to compute, but only %" G_GUINT64_FORMAT
                   " tokens are known",
                   end - 1, known_tokens(sequence));
  if (host->weights->max_positions && end > host->weights->max_positions)
    return PROBLEM(error, sequence, "position %" G_GUINT64_FORMAT " is past the model's %u",
                   end - 1, host->weights->max_positions);
  if (blocks > sequence->n_block_ids)
    return PROBLEM(error, sequence,
                   "position %" G_GUINT64_FORMAT " needs block %" G_GUINT64_FORMAT
                   " of its table, which has %u",
                   end - 1, blocks - 1, sequence->n_block_ids);
  for (guint64 i = span->past / host->cache->block_tokens; i < blocks; i++)
    if (sequence->block_ids[i] >= host->cache->hbm.n_blocks)
      return PROBLEM(error, sequence, "block id %u, of only %" G_GUINT64_FORMAT " in HBM",
                     sequence->block_ids[i], host->cache->hbm.n_blocks);
  return TRUE;
}

/* Whether every slot that the span reads holds this sequence's own tokens. */
static gboolean check_context(const HostExecutor *host, KvSequence *sequence,
                              const KvHostSpan *span, GError **error) {
  guint32 first = 0;
  if (host->oldest_window && span->past + 1 > host->oldest_window)
    first = span->past + 1 - host->oldest_window;
  for (guint32 i = first; i < span->past + span->n_tokens; i++) {
    guint32 block = span->block_table[i / host->cache->block_tokens];
    if (block >= host->cache->hbm.n_blocks)
      return PROBLEM(error, sequence, "block id %u, of only %" G_GUINT64_FORMAT " in HBM", block,
                     host->cache->hbm.n_blocks);
    guint64 name = *kv_host_cache_name(host->cache, span->block_table, i);
    if (name != name_at(host, sequence, i))
      return PROBLEM(error, sequence,
                     "position %u (block %u) holds %s, expected its own keys and values", i, block,
                     name ? "those of another prefix" : "nothing yet");
  }
  return TRUE;
}

/* Keep the token sampled after the span. One that was generated before must come out the same. */
static gboolean keep_sample(KvSequence *sequence, const KvHostSpan *span, GError **error) {
  GArray *generated = state_of(sequence)->generated;
  guint32 position = span->past + span->n_tokens;
  if (position < sequence->input_tokens)
    return PROBLEM(error, sequence, "a token is sampled at position %u inside the prompt of %u",
                   position, sequence->input_tokens);
  guint32 index = position - sequence->input_tokens;
  if (index == generated->len)
    g_array_append_val(generated, span->sampled);
  else if (g_array_index(generated, guint32, index) != span->sampled)
    return PROBLEM(error, sequence, "token %u came out as %u, and as %u before", index,
                   span->sampled, g_array_index(generated, guint32, index));
  return TRUE;
}

/* The members of one repeat of a step as spans, and whose they are. */
typedef struct {
  KvHostSpan *spans;
  KvSequence **owners;
  guint n;
  GArray *tokens; /* of guint32, every span's */
} Batch;

static void batch_clear(Batch *batch) {
  g_free(batch->spans);
  g_free(batch->owners);
  g_array_unref(batch->tokens);
}

static gboolean batch_add(const HostExecutor *host, Batch *batch, KvSequence *sequence,
                          KvHostSpan span, GError **error) {
  if (!check_span(host, sequence, &span, error))
    return FALSE;
  span.block_table = sequence->block_ids;
  for (guint32 t = 0; t < span.n_tokens; t++) {
    guint32 token = token_at(host, sequence, span.past + t);
    g_array_append_val(batch->tokens, token);
    *kv_host_cache_name(host->cache, span.block_table, span.past + t) =
        name_at(host, sequence, span.past + t);
  }
  batch->owners[batch->n] = sequence;
  batch->spans[batch->n++] = span;
  return TRUE;
}

static gboolean batch_fill(const HostExecutor *host, Batch *batch, const KvStep *step,
                           guint64 repeat, GError **error) {
  guint64 n = step->n_chunks + step->decode.n;
  batch->spans = g_new(KvHostSpan, n);
  batch->owners = g_new(KvSequence *, n);
  batch->tokens = g_array_new(FALSE, FALSE, sizeof(guint32));
  for (guint c = 0; c < step->n_chunks; c++) {
    const KvChunk *chunk = &step->chunks[c];
    KvHostSpan span = {.past = chunk->past, .n_tokens = chunk->tokens, .sample = chunk->last};
    if (!batch_add(host, batch, chunk->sequence, span, error))
      return FALSE;
  }
  for (guint64 m = 0; m < step->decode.n; m++) {
    KvSequence *sequence = step->decode.members[m];
    KvHostSpan span = {.past = sequence->computed_tokens + (guint32)repeat,
                       .n_tokens = 1,
                       .sample = TRUE,
                       .decoding = TRUE};
    if (!batch_add(host, batch, sequence, span, error))
      return FALSE;
  }
  guint32 *tokens = (guint32 *)batch->tokens->data;
  for (guint s = 0; s < batch->n; tokens += batch->spans[s++].n_tokens)
    batch->spans[s].tokens = tokens;
  return TRUE;
}

static gboolean batch_run(HostExecutor *host, Batch *batch, KvHostWork *work, GError **error) {
  for (guint s = 0; s < batch->n; s++)
    if (!check_context(host, batch->owners[s], &batch->spans[s], error))
      return FALSE;
  if (batch->n)
    kv_host_forward(host->weights, host->cache, batch->spans, batch->n, work);
  for (guint s = 0; s < batch->n; s++)
    if (batch->spans[s].sample && !keep_sample(batch->owners[s], &batch->spans[s], error))
      return FALSE;
  return TRUE;
}

/* Add one repeat's work to the cost. */
static double charge(const HostExecutor *host, const KvHostWork *work, KvStepCost *cost) {
  double seconds = 0.0;
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    double part =
        host->measured ? work->wall_seconds[c] : work->flops[c] / KV_HOST_FLOPS_PER_SECOND;
    cost->component_seconds[c] += part;
    cost->flops += work->flops[c];
    seconds += part;
  }
  cost->hbm_bytes += work->bytes;
  cost->seconds += seconds;
  return seconds;
}

static gboolean host_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                          GError **error) {
  HostExecutor *host = (HostExecutor *)executor;
  *cost = (KvStepCost){0};
  g_return_val_if_fail(!step->decode.n || step->decode.members, FALSE);
  g_return_val_if_fail(!step->n_chunks || step->repeat == 1, FALSE);
  for (guint64 repeat = 0; repeat < step->repeat; repeat++) {
    Batch batch = {0};
    KvHostWork work = {0};
    gboolean done =
        batch_fill(host, &batch, step, repeat, error) && batch_run(host, &batch, &work, error);
    batch_clear(&batch);
    if (!done)
      return FALSE;
    cost->last_seconds = charge(host, &work, cost);
    if (!repeat)
      cost->first_seconds = cost->last_seconds;
  }
  return TRUE;
}

static void host_copy(KvExecutor *executor, const KvCopy *copy, double now) {
  HostExecutor *host = (HostExecutor *)executor;
  HostCopy *under_way = g_new(HostCopy, 1);
  host->link_free_seconds = MAX(host->link_free_seconds, now) + copy->bytes / KV_HOST_COPY_BPS;
  *under_way = (HostCopy){.copy = *copy, .done_seconds = host->link_free_seconds};
  g_queue_push_tail(&host->copies, under_way);
}

static double host_next_copy(KvExecutor *executor) {
  const HostCopy *first = g_queue_peek_head(&((HostExecutor *)executor)->copies);
  return first ? first->done_seconds : G_MAXDOUBLE;
}

static gboolean host_pop_copy(KvExecutor *executor, double now, KvCopy *copy) {
  if (host_next_copy(executor) > now)
    return FALSE;
  g_autofree HostCopy *first = g_queue_pop_head(&((HostExecutor *)executor)->copies);
  *copy = first->copy;
  return TRUE;
}

static void host_move_block(KvExecutor *executor, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to) {
  kv_host_cache_move(((HostExecutor *)executor)->cache, from_tier, from, to_tier, to);
}

static void host_forget(KvExecutor *executor, KvSequence *sequence) {
  HostExecutor *host = (HostExecutor *)executor;
  HostSequence *state = sequence->executor_state;
  if (!state)
    return;
  if (host->sink)
    host->sink(sequence->index, (const guint32 *)state->generated->data, state->generated->len,
               host->sink_user);
  g_array_unref(state->generated);
  g_array_unref(state->names);
  g_free(state);
  sequence->executor_state = NULL;
}

static void host_destroy(KvExecutor *executor) {
  HostExecutor *host = (HostExecutor *)executor;
  kv_host_weights_free(host->weights);
  kv_host_cache_free(host->cache);
  g_queue_clear_full(&host->copies, g_free);
  g_free(host);
}

const KvExecutorClass kv_host_executor_class = {
    .name = "host",
    .description = "computes every step with a small transformer in plain C (virtual time)",
    .step = host_step,
    .copy = host_copy,
    .next_copy = host_next_copy,
    .pop_copy = host_pop_copy,
    .move_block = host_move_block,
    .forget = host_forget,
    .destroy = host_destroy,
};

/* The longest window, or 0 if some layer sees everything. */
static guint oldest_window(const KvHostWeights *weights) {
  guint longest = 0;
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvAttention *a = &weights->layers[l].attention;
    if (a->kind == KV_ATTENTION_FULL)
      return 0;
    longest = MAX(longest, a->window_tokens);
  }
  return longest;
}

KvExecutor *kv_host_executor_new(const KvModel *model, guint block_tokens, guint64 hbm_blocks,
                                 guint64 dram_blocks, guint32 hash_block_tokens, guint64 seed,
                                 GError **error) {
  g_return_val_if_fail(model && block_tokens, NULL);
  g_autoptr(KvHostWeights) weights = kv_host_weights_new(model, seed, error);
  if (!weights)
    return NULL;
  KvHostCache *cache = kv_host_cache_new(weights, block_tokens, hbm_blocks, dram_blocks, error);
  if (!cache)
    return NULL;
  HostExecutor *host = g_new0(HostExecutor, 1);
  host->base.class = &kv_host_executor_class;
  host->oldest_window = oldest_window(weights);
  host->weights = g_steal_pointer(&weights);
  host->cache = cache;
  host->hash_block_tokens = hash_block_tokens;
  g_queue_init(&host->copies);
  return &host->base;
}

const guint32 *kv_host_executor_output(KvExecutor *executor, const KvSequence *sequence, guint *n) {
  g_return_val_if_fail(executor && executor->class == &kv_host_executor_class && n, NULL);
  const HostSequence *state = sequence->executor_state;
  *n = state ? state->generated->len : 0;
  return state ? (const guint32 *)state->generated->data : NULL;
}

void kv_host_executor_set_sink(KvExecutor *executor, KvHostSink sink, gpointer user) {
  g_return_if_fail(executor && executor->class == &kv_host_executor_class);
  HostExecutor *host = (HostExecutor *)executor;
  host->sink = sink;
  host->sink_user = user;
}

void kv_host_executor_set_measured(KvExecutor *executor, gboolean measured) {
  g_return_if_fail(executor && executor->class == &kv_host_executor_class);
  ((HostExecutor *)executor)->measured = measured;
}
