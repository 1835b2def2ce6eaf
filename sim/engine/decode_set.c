#include "sim/engine/decode_set.h"

#include <math.h>
#include <string.h>

typedef struct {
  guint64 step;         /* at which the law of a channel bends */
  KvSequence *sequence; /* NULL once the member has left */
} Bend;

struct KvDecodeSet {
  const KvPlanCurves *curves;
  const KvDemand *demand;
  gboolean only_all; /* the one channel is the context itself */
  guint64 step;
  KvSequence **heap; /* by finish_step, then index */
  guint64 n, size;
  double context;                                          /* sum over members, now */
  double longest_base;                                     /* most of context - step, of members */
  double values[KV_MAX_CHANNELS], slopes[KV_MAX_CHANNELS]; /* at the next step */
  GArray *bends;                                           /* binary heap of Bend */
  guint64 *phases; /* simple demand: members by (m - step) mod block_tokens */
};

KvDecodeSet *kv_decode_set_new(const KvPlanCurves *curves, const KvDemand *demand) {
  KvDecodeSet *set = g_new0(KvDecodeSet, 1);
  set->curves = curves;
  set->demand = demand;
  set->only_all = curves->n_channels == 1 && curves->laws[0].kind == KV_LAW_ALL &&
                  curves->laws[0].kept_prompt <= 0.0 && curves->laws[0].scale == 1.0 &&
                  curves->laws[0].cap >= G_MAXDOUBLE;
  set->bends = g_array_new(FALSE, FALSE, sizeof(Bend));
  set->phases = g_new0(guint64, demand->block_tokens);
  return set;
}

void kv_decode_set_free(KvDecodeSet *set) {
  if (!set)
    return;
  g_free(set->heap);
  g_array_free(set->bends, TRUE);
  g_free(set->phases);
  g_free(set);
}

guint64 kv_decode_set_size(const KvDecodeSet *set) {
  return set->n;
}

guint64 kv_decode_set_step(const KvDecodeSet *set) {
  return set->step;
}

KvSequence *const *kv_decode_set_members(const KvDecodeSet *set) {
  return set->heap;
}

double kv_decode_set_context_tokens(const KvDecodeSet *set) {
  return set->context;
}

guint32 kv_sequence_context(const KvSequence *sequence, const KvDecodeSet *set) {
  return sequence->state == KV_SEQUENCE_DECODE
             ? sequence->computed_tokens + (guint32)(set->step - sequence->join_step)
             : sequence->computed_tokens;
}

guint32 kv_sequence_emitted(const KvSequence *sequence, const KvDecodeSet *set) {
  return sequence->state == KV_SEQUENCE_DECODE
             ? sequence->emitted_tokens + (guint32)(set->step - sequence->join_step)
             : sequence->emitted_tokens;
}

/* The heap of finish steps. */

static gboolean finishes_before(const KvSequence *a, const KvSequence *b) {
  return a->finish_step != b->finish_step ? a->finish_step < b->finish_step : a->index < b->index;
}

static void heap_place(KvDecodeSet *set, guint64 at, KvSequence *sequence) {
  set->heap[at] = sequence;
  sequence->heap_index = (guint)at;
}

static void heap_up(KvDecodeSet *set, guint64 at, KvSequence *sequence) {
  for (; at > 0 && finishes_before(sequence, set->heap[(at - 1) / 2]); at = (at - 1) / 2)
    heap_place(set, at, set->heap[(at - 1) / 2]);
  heap_place(set, at, sequence);
}

static void heap_down(KvDecodeSet *set, guint64 at, KvSequence *sequence) {
  for (guint64 child; (child = 2 * at + 1) < set->n; at = child) {
    if (child + 1 < set->n && finishes_before(set->heap[child + 1], set->heap[child]))
      child++;
    if (!finishes_before(set->heap[child], sequence))
      break;
    heap_place(set, at, set->heap[child]);
  }
  heap_place(set, at, sequence);
}

/* The heap of bends: entries of members that have left are dropped when they come up. */

static gboolean bends_before(const Bend *a, const Bend *b) {
  return a->step < b->step;
}

static void bend_push(KvDecodeSet *set, Bend bend) {
  g_array_append_val(set->bends, bend);
  Bend *heap = (Bend *)(void *)set->bends->data;
  guint at = set->bends->len - 1;
  for (; at > 0 && bends_before(&bend, &heap[(at - 1) / 2]); at = (at - 1) / 2)
    heap[at] = heap[(at - 1) / 2];
  heap[at] = bend;
}

static void bend_pop(KvDecodeSet *set) {
  Bend *heap = (Bend *)(void *)set->bends->data;
  guint n = set->bends->len - 1;
  Bend last = heap[n];
  g_array_set_size(set->bends, n);
  guint at = 0;
  for (guint child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && bends_before(&heap[child + 1], &heap[child]))
      child++;
    if (!bends_before(&heap[child], &last))
      break;
    heap[at] = heap[child];
  }
  if (n > 0)
    heap[at] = last;
}

static gboolean bend_is_stale(const Bend *bend) {
  return bend->sequence == NULL;
}

/* Add (sign +1) or remove (-1) what the sequence contributes at context `n` of the next step,
 * extrapolated from `anchor` (the context at which its law was last evaluated). Returns the tokens
 * for which the piece stays valid. */
static double contribute(KvDecodeSet *set, const KvSequence *sequence, double n, double anchor,
                         double sign) {
  double valid = G_MAXDOUBLE;
  for (guint c = 0; c < set->curves->n_channels; c++) {
    double slope, piece;
    double value =
        kv_law_value(&set->curves->laws[c], anchor, sequence->input_tokens, TRUE, &slope, &piece);
    set->values[c] += sign * (value + slope * (n - anchor));
    set->slopes[c] += sign * slope;
    valid = MIN(valid, piece);
  }
  return valid;
}

/* Begin a piece of the member's laws at the next step, and note when it ends. */
static void add_piece(KvDecodeSet *set, KvSequence *sequence) {
  double n = kv_sequence_context(sequence, set) + 1.0;
  double valid = contribute(set, sequence, n, n, +1.0);
  sequence->piece_context = (guint32)n;
  sequence->bend_step = G_MAXUINT64;
  if (valid < 1e15) {
    sequence->bend_step = set->step + (guint64)floor(valid) + 1;
    bend_push(set, (Bend){sequence->bend_step, sequence});
  }
}

static void remove_piece(KvDecodeSet *set, KvSequence *sequence) {
  double n = kv_sequence_context(sequence, set) + 1.0;
  contribute(set, sequence, n, sequence->piece_context, -1.0);
  if (sequence->bend_step != G_MAXUINT64) {
    Bend *heap = (Bend *)(void *)set->bends->data;
    for (guint i = 0; i < set->bends->len; i++)
      if (heap[i].sequence == sequence)
        heap[i].sequence = NULL;
  }
}

void kv_decode_set_join(KvDecodeSet *set, KvSequence *sequence) {
  g_assert(sequence->emitted_tokens < kv_sequence_stop(sequence));
  if (set->n == set->size) {
    set->size = MAX(64, 2 * set->size);
    set->heap = g_renew(KvSequence *, set->heap, set->size);
  }
  sequence->state = KV_SEQUENCE_DECODE;
  sequence->join_step = set->step;
  sequence->finish_step = set->step + (kv_sequence_stop(sequence) - sequence->emitted_tokens);
  heap_up(set, set->n++, sequence);
  double n = sequence->computed_tokens;
  set->context += n;
  set->longest_base = MAX(set->longest_base, n - (double)set->step);
  if (set->only_all) {
    set->values[0] += n + 1.0;
    set->slopes[0] += 1.0;
  } else {
    add_piece(set, sequence);
  }
  if (set->demand->simple) {
    gint64 m = kv_demand_tokens(set->demand, n, sequence->input_tokens, TRUE);
    guint64 block = set->demand->block_tokens;
    set->phases[((guint64)m + block - set->step % block) % block]++;
  }
}

static guint64 member_blocks(const KvDecodeSet *set, const KvSequence *sequence, guint64 ahead) {
  return kv_demand_blocks(set->demand, kv_sequence_context(sequence, set) + (double)ahead,
                          sequence->input_tokens, TRUE);
}

/* The longest member left: who is longest now. */
static void find_longest(KvDecodeSet *set) {
  set->longest_base = -G_MAXDOUBLE;
  for (guint64 i = 0; i < set->n; i++)
    set->longest_base =
        MAX(set->longest_base, (double)kv_sequence_context(set->heap[i], set) - (double)set->step);
}

void kv_decode_set_leave(KvDecodeSet *set, KvSequence *sequence, guint64 node_blocks) {
  guint32 context = kv_sequence_context(sequence, set);
  guint32 emitted = kv_sequence_emitted(sequence, set);
  guint64 blocks = member_blocks(set, sequence, 0);
  set->context -= context;
  if (set->only_all) {
    set->values[0] -= context + 1.0;
    set->slopes[0] -= 1.0;
  } else {
    remove_piece(set, sequence);
  }
  if (set->demand->simple) {
    gint64 m = kv_demand_tokens(set->demand, context, sequence->input_tokens, TRUE);
    guint64 block = set->demand->block_tokens;
    set->phases[((guint64)m + block - set->step % block) % block]--;
  }
  guint64 at = sequence->heap_index;
  KvSequence *moved = set->heap[--set->n];
  if (moved != sequence) {
    if (at > 0 && finishes_before(moved, set->heap[(at - 1) / 2]))
      heap_up(set, at, moved);
    else
      heap_down(set, at, moved);
  }
  if (context - (double)set->step >= set->longest_base)
    find_longest(set);
  sequence->computed_tokens = context;
  sequence->emitted_tokens = emitted;
  sequence->state = KV_SEQUENCE_ENDING;
  sequence->private_blocks = blocks > node_blocks ? blocks - node_blocks : 0;
  if (set->n == 0) { /* no rounding error outlives the members that made it */
    memset(set->values, 0, sizeof set->values);
    memset(set->slopes, 0, sizeof set->slopes);
    set->context = 0.0;
    g_array_set_size(set->bends, 0);
  }
}

guint64 kv_decode_set_until_finish(const KvDecodeSet *set) {
  return set->n ? set->heap[0]->finish_step - set->step : G_MAXUINT64;
}

KvSequence *kv_decode_set_finished(const KvDecodeSet *set) {
  return set->n && set->heap[0]->finish_step == set->step ? set->heap[0] : NULL;
}

guint64 kv_decode_set_until_bend(const KvDecodeSet *set) {
  const Bend *heap = (const Bend *)(const void *)set->bends->data;
  return set->bends->len ? heap[0].step - set->step : G_MAXUINT64;
}

guint64 kv_decode_set_growth(const KvDecodeSet *set, guint64 steps) {
  guint64 blocks = 0;
  if (set->demand->simple) {
    /* A member with m tokens fills its block after (-m mod B) steps; the step after takes a new
     * one. */
    guint64 block = set->demand->block_tokens;
    blocks = steps / block * set->n;
    guint64 rest = steps % block, phase = set->step % block;
    for (guint64 i = 0; i < rest; i++)
      blocks += set->phases[(2 * block - phase - i) % block];
    return blocks;
  }
  for (guint64 i = 0; i < set->n; i++)
    blocks += member_blocks(set, set->heap[i], steps) - member_blocks(set, set->heap[i], 0);
  return blocks;
}

guint64 kv_decode_set_affordable(const KvDecodeSet *set, guint64 free_blocks, guint64 limit) {
  if (set->n == 0)
    return limit;
  if (set->demand->simple) {
    guint64 certain = free_blocks / set->n * set->demand->block_tokens;
    if (certain >= limit + set->demand->block_tokens)
      return limit;
  }
  if (kv_decode_set_growth(set, limit) <= free_blocks)
    return limit;
  guint64 low = 0, high = limit; /* growth(low) fits, growth(high) does not */
  while (high - low > 1) {
    guint64 middle = low + (high - low) / 2;
    if (kv_decode_set_growth(set, middle) <= free_blocks)
      low = middle;
    else
      high = middle;
  }
  return low;
}

void kv_decode_set_advance(KvDecodeSet *set, guint64 steps) {
  set->step += steps;
  set->context += (double)steps * (double)set->n;
  for (guint c = 0; c < set->curves->n_channels; c++)
    set->values[c] += (double)steps * set->slopes[c];
  while (set->bends->len) {
    Bend bend = g_array_index(set->bends, Bend, 0);
    if (!bend_is_stale(&bend) && bend.step > set->step)
      break;
    bend_pop(set);
    if (!bend_is_stale(&bend)) {
      double n = kv_sequence_context(bend.sequence, set) + 1.0;
      contribute(set, bend.sequence, n, bend.sequence->piece_context, -1.0);
      add_piece(set, bend.sequence);
    }
  }
}

void kv_decode_set_batch(const KvDecodeSet *set, KvDecodeBatch *batch) {
  *batch = (KvDecodeBatch){
      .n = set->n,
      .context_tokens = set->context + (double)set->n,
      .longest_tokens = set->n ? set->longest_base + (double)set->step + 1.0 : 0.0,
      .values = set->values,
      .slopes = set->slopes,
      .members = set->heap,
  };
}
