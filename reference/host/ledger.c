#include "reference/host/ledger.h"

#include "sim/base/error.h"
#include "sim/base/random.h"

/* A sequence's executor_state. */
typedef struct {
  GArray *generated; /* of guint32 */
  GArray *names;     /* of guint64: [i] names the tokens up to position i */
  guint32 dropped;   /* position i stands in slot i - dropped */
} TokenHistory;

static TokenHistory *state_of(KvSequence *sequence) {
  if (!sequence->executor_state) {
    TokenHistory *state = g_new0(TokenHistory, 1);
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

static guint32 token_at(const KvHostLedger *ledger, KvSequence *sequence, guint32 position) {
  return position < sequence->input_tokens
             ? kv_sequence_prompt_token(sequence, position, ledger->hash_block_tokens,
                                        ledger->vocab)
             : g_array_index(state_of(sequence)->generated, guint32,
                             position - sequence->input_tokens);
}

/* The name of the tokens 0 .. position: never 0, which is that of an unwritten slot. */
static guint64 name_at(const KvHostLedger *ledger, KvSequence *sequence, guint32 position) {
  GArray *names = state_of(sequence)->names;
  while (names->len <= position) {
    guint64 before = names->len ? g_array_index(names, guint64, names->len - 1) : 0;
    guint64 name =
        kv_random_mix(before ^ kv_random_mix(token_at(ledger, sequence, names->len))) | 1;
    g_array_append_val(names, name);
  }
  return g_array_index(names, guint64, position);
}

/* Slots that hold another token in each head and layer: 0 until tokens were dropped. */
static guint32 mixed_slots(const KvHostLedger *ledger, KvSequence *sequence) {
  return state_of(sequence)->dropped
             ? kv_host_compression_kept(ledger->compression, sequence->input_tokens)
             : 0;
}

static guint64 mixed_name(const KvHostLedger *ledger, KvSequence *sequence, guint32 slot) {
  return kv_random_mix(name_at(ledger, sequence, sequence->input_tokens - 1) ^ ~(guint64)slot) | 1;
}

/* The name of what a slot of the sequence must hold: of a mixed one it is of the whole prompt and
 * of the slot. */
static guint64 slot_name(const KvHostLedger *ledger, KvSequence *sequence, guint32 slot) {
  guint32 dropped = state_of(sequence)->dropped;
  if (slot >= mixed_slots(ledger, sequence))
    return name_at(ledger, sequence, slot + dropped);
  return mixed_name(ledger, sequence, slot);
}

/* Where the name of a slot stands. */
static guint64 *name_slot(const KvHostLedger *ledger, const guint32 *block_table, guint32 slot) {
  return ledger->names + (gsize)block_table[slot / ledger->block_tokens] * ledger->block_tokens +
         slot % ledger->block_tokens;
}

#define PROBLEM(error, sequence, ...) problem(error, ledger, sequence, g_strdup_printf(__VA_ARGS__))

static gboolean problem(GError **error, const KvHostLedger *ledger, const KvSequence *sequence,
                        char *message) {
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "%s executor: request %" G_GUINT64_FORMAT ": %s",
              ledger->executor, sequence->index, message);
  g_free(message);
  return FALSE;
}

/* Whether the span can be computed at all: its tokens are known, its positions and blocks exist. */
static gboolean check_span(const KvHostLedger *ledger, KvSequence *sequence, const KvHostSpan *span,
                           GError **error) {
  guint64 end = (guint64)span->past + span->n_tokens;
  guint64 blocks = (end - span->dropped + ledger->block_tokens - 1) / ledger->block_tokens;
  if (!span->n_tokens)
    return PROBLEM(error, sequence, "nothing to compute at position %u, expected a token",
                   span->past);
  if (end > known_tokens(sequence))
    return PROBLEM(error, sequence,
                   "position %" G_GUINT64_FORMAT " to compute, but only %" G_GUINT64_FORMAT
                   " tokens are known",
                   end - 1, known_tokens(sequence));
  if (ledger->max_positions && end > ledger->max_positions)
    return PROBLEM(error, sequence, "position %" G_GUINT64_FORMAT " is past the model's %u",
                   end - 1, ledger->max_positions);
  if (blocks > sequence->n_block_ids)
    return PROBLEM(error, sequence,
                   "position %" G_GUINT64_FORMAT " needs block %" G_GUINT64_FORMAT
                   " of its table, which has %u",
                   end - 1, blocks - 1, sequence->n_block_ids);
  for (guint64 i = (span->past - span->dropped) / ledger->block_tokens; i < blocks; i++)
    if (sequence->block_ids[i] >= ledger->n_blocks)
      return PROBLEM(error, sequence, "block id %u, of only %" G_GUINT64_FORMAT " in HBM",
                     sequence->block_ids[i], ledger->n_blocks);
  return TRUE;
}

/* Whether every slot that the span reads holds this sequence's own tokens. */
static gboolean check_context(const KvHostLedger *ledger, KvSequence *sequence,
                              const KvHostSpan *span, GError **error) {
  guint32 first = 0, past = span->past - span->dropped;
  if (ledger->oldest_window && past + 1 > ledger->oldest_window)
    first = past + 1 - ledger->oldest_window;
  for (guint32 i = first; i < past + span->n_tokens; i++) {
    guint32 block = span->block_table[i / ledger->block_tokens];
    if (block >= ledger->n_blocks)
      return PROBLEM(error, sequence, "block id %u, of only %" G_GUINT64_FORMAT " in HBM", block,
                     ledger->n_blocks);
    guint64 name = *name_slot(ledger, span->block_table, i);
    if (name != slot_name(ledger, sequence, i))
      return PROBLEM(error, sequence,
                     "position %u (block %u) holds %s, expected its own keys and values",
                     i + span->dropped, block, name ? "those of another prefix" : "nothing yet");
  }
  return TRUE;
}

/* Keep the token sampled after the span. One that was generated before must come out the same. */
static gboolean keep_sample(const KvHostLedger *ledger, KvSequence *sequence,
                            const KvHostSpan *span, GError **error) {
  GArray *generated = state_of(sequence)->generated;
  guint32 position = span->past + span->n_tokens;
  if (position < sequence->input_tokens)
    return PROBLEM(error, sequence, "a token is sampled at position %u inside the prompt of %u",
                   position, sequence->input_tokens);
  guint32 index = position - sequence->input_tokens;
  if (index == generated->len)
    g_array_append_val(generated, span->sampled);
  else if (ledger->exact && g_array_index(generated, guint32, index) != span->sampled)
    return PROBLEM(error, sequence, "token %u came out as %u, and as %u before", index,
                   span->sampled, g_array_index(generated, guint32, index));
  return TRUE;
}

/* Tokens that are dropped at the span's end, if it decodes or is the last of a prompt. */
static guint32 dropped_after(const KvHostLedger *ledger, const KvSequence *sequence,
                             const KvHostSpan *span) {
  return ledger->compression
             ? kv_host_compression_dropped(ledger->compression, sequence->input_tokens,
                                           span->past + span->n_tokens)
             : 0;
}

/* The prompt was cut: the names of the slots that are left. */
static void cut_names(const KvHostLedger *ledger, KvSequence *sequence, const KvHostSpan *span) {
  guint32 dropped = dropped_after(ledger, sequence, span);
  state_of(sequence)->dropped = dropped;
  for (guint32 slot = 0; dropped && slot < span->past + span->n_tokens - dropped; slot++)
    *name_slot(ledger, span->block_table, slot) = slot_name(ledger, sequence, slot);
}

/* From now on a token goes for each one that comes: slots that hold their positions' tokens get the
 * names of mixed ones; the others fail the check. */
static void begin_evicting(const KvHostLedger *ledger, KvSequence *sequence,
                           const KvHostSpan *span) {
  for (guint32 slot = 0; slot < span->past + span->n_tokens - span->dropped; slot++) {
    if (sequence->block_ids[slot / ledger->block_tokens] >= ledger->n_blocks)
      continue;
    guint64 *name = name_slot(ledger, sequence->block_ids, slot);
    gboolean own = *name == name_at(ledger, sequence, slot);
    *name = own ? mixed_name(ledger, sequence, slot) : *name;
  }
}

static gboolean batch_add(const KvHostLedger *ledger, KvHostBatch *batch, KvSequence *sequence,
                          KvHostSpan span, GError **error) {
  if (span.past == 0) /* from the beginning, for the first time or again */
    state_of(sequence)->dropped = 0;
  span.dropped =
      span.decoding ? dropped_after(ledger, sequence, &span) : state_of(sequence)->dropped;
  span.prompt_tokens = sequence->input_tokens;
  span.owner = sequence->index;
  if (!check_span(ledger, sequence, &span, error))
    return FALSE;
  if (state_of(sequence)->dropped == 0 && span.dropped)
    begin_evicting(ledger, sequence, &span);
  state_of(sequence)->dropped = span.dropped;
  span.block_table = sequence->block_ids;
  for (guint32 t = 0; t < span.n_tokens; t++) {
    guint32 token = token_at(ledger, sequence, span.past + t);
    guint32 slot = span.past + t - span.dropped;
    g_array_append_val(batch->tokens, token);
    if (slot >= mixed_slots(ledger, sequence)) /* else the token takes that of another */
      *name_slot(ledger, span.block_table, slot) = name_at(ledger, sequence, span.past + t);
  }
  batch->owners[batch->n] = sequence;
  batch->spans[batch->n++] = span;
  return TRUE;
}

gboolean kv_host_batch_fill(const KvHostLedger *ledger, KvHostBatch *batch, const KvStep *step,
                            guint64 repeat, GError **error) {
  guint64 n = step->n_chunks + step->decode.n;
  batch->spans = g_new(KvHostSpan, n);
  batch->owners = g_new(KvSequence *, n);
  batch->tokens = g_array_new(FALSE, FALSE, sizeof(guint32));
  for (guint c = 0; c < step->n_chunks; c++) {
    const KvChunk *chunk = &step->chunks[c];
    KvHostSpan span = {
        .past = chunk->past, .n_tokens = chunk->tokens, .sample = chunk->last, .last = chunk->last};
    if (!batch_add(ledger, batch, chunk->sequence, span, error))
      return FALSE;
  }
  for (guint64 m = 0; m < step->decode.n; m++) {
    KvSequence *sequence = step->decode.members[m];
    KvHostSpan span = {.past = sequence->computed_tokens + (guint32)repeat,
                       .n_tokens = 1,
                       .sample = TRUE,
                       .decoding = TRUE};
    if (!batch_add(ledger, batch, sequence, span, error))
      return FALSE;
  }
  guint32 *tokens = (guint32 *)batch->tokens->data;
  for (guint s = 0; s < batch->n; tokens += batch->spans[s++].n_tokens)
    batch->spans[s].tokens = tokens;
  return TRUE;
}

gboolean kv_host_batch_check(const KvHostLedger *ledger, const KvHostBatch *batch, GError **error) {
  for (guint s = 0; s < batch->n; s++)
    if (!check_context(ledger, batch->owners[s], &batch->spans[s], error))
      return FALSE;
  return TRUE;
}

gboolean kv_host_batch_keep(const KvHostLedger *ledger, const KvHostBatch *batch, GError **error) {
  for (guint s = 0; s < batch->n; s++) {
    if (batch->spans[s].sample && !keep_sample(ledger, batch->owners[s], &batch->spans[s], error))
      return FALSE;
    if (batch->spans[s].last)
      cut_names(ledger, batch->owners[s], &batch->spans[s]);
  }
  return TRUE;
}

void kv_host_batch_clear(KvHostBatch *batch) {
  g_free(batch->spans);
  g_free(batch->owners);
  if (batch->tokens)
    g_array_unref(batch->tokens);
}

const guint32 *kv_host_ledger_output(const KvSequence *sequence, guint *n) {
  const TokenHistory *state = sequence->executor_state;
  *n = state ? state->generated->len : 0;
  return state ? (const guint32 *)state->generated->data : NULL;
}

void kv_host_ledger_forget(const KvHostLedger *ledger, KvSequence *sequence) {
  TokenHistory *state = sequence->executor_state;
  if (!state)
    return;
  if (ledger->sink)
    ledger->sink(sequence->index, (const guint32 *)state->generated->data, state->generated->len,
                 ledger->sink_user);
  g_array_unref(state->generated);
  g_array_unref(state->names);
  g_free(state);
  sequence->executor_state = NULL;
}

guint kv_host_oldest_window(const KvModel *model) {
  guint longest = 0;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *a = &model->groups[g].attention;
    if (a->kind == KV_ATTENTION_FULL && model->groups[g].count)
      return 0;
    longest = MAX(longest, a->window_tokens);
  }
  return longest;
}
