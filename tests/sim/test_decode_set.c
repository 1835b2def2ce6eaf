/* sim/engine/decode_set.h: against a walk over the members. */
#include "sim/engine/decode_set.h"

#include <math.h>

#include "sim/base/random.h"

enum { N_SEQUENCES = 40, OPERATIONS = 1500, BLOCK_TOKENS = 16 };

/* A sequence as the test knows it: moved on one by one. */
typedef struct {
  KvSequence sequence;
  gboolean member;
  guint32 context, emitted;
} Member;

typedef struct {
  KvPlanCurves *curves;
  KvDemand demand;
  KvDecodeSet *set;
  Member members[N_SEQUENCES];
  guint n;
  KvRandom random;
} World;

static double law_at(const World *w, guint channel, double n, const Member *m) {
  return kv_law_value(&w->curves->laws[channel], n, m->sequence.input_tokens, TRUE, NULL, NULL);
}

static guint64 blocks_at(const World *w, const Member *m, guint64 ahead) {
  return kv_demand_blocks(&w->demand, (double)m->context + (double)ahead, m->sequence.input_tokens,
                          TRUE);
}

static guint64 naive_growth(const World *w, guint64 steps) {
  guint64 blocks = 0;
  for (guint i = 0; i < N_SEQUENCES; i++)
    if (w->members[i].member)
      blocks += blocks_at(w, &w->members[i], steps) - blocks_at(w, &w->members[i], 0);
  return blocks;
}

static guint64 naive_finish(const World *w) {
  guint64 first = G_MAXUINT64;
  for (guint i = 0; i < N_SEQUENCES; i++)
    if (w->members[i].member)
      first = MIN(first, w->members[i].sequence.output_tokens - w->members[i].emitted);
  return first;
}

static void assert_near(double found, double expected) {
  g_assert_cmpfloat(fabs(found - expected), <=, 1e-9 * (1.0 + fabs(expected)));
}

/* The sums of the next step, and of every further one up to the next bend. */
static void check_batch(const World *w) {
  KvDecodeBatch batch;
  kv_decode_set_batch(w->set, &batch);
  double context = 0.0, longest = 0.0;
  for (guint i = 0; i < N_SEQUENCES; i++) {
    if (w->members[i].member) {
      context += w->members[i].context + 1.0;
      longest = MAX(longest, w->members[i].context + 1.0);
    }
  }
  g_assert_cmpuint(batch.n, ==, w->n);
  assert_near(batch.context_tokens, context);
  assert_near(kv_decode_set_context_tokens(w->set), context - w->n);
  g_assert_cmpfloat(batch.longest_tokens, >=, longest);
  guint64 bend = kv_decode_set_until_bend(w->set);
  g_assert_cmpuint(bend, >=, 1);
  for (guint64 ahead = 0; ahead < MIN(bend, 70); ahead++) {
    for (guint c = 0; c < w->curves->n_channels; c++) {
      double sum = 0.0;
      for (guint i = 0; i < N_SEQUENCES; i++)
        if (w->members[i].member)
          sum += law_at(w, c, w->members[i].context + 1.0 + (double)ahead, &w->members[i]);
      assert_near(batch.values[c] + (double)ahead * batch.slopes[c], sum);
    }
  }
}

static void check_blocks(World *w) {
  guint64 finish = naive_finish(w);
  g_assert_cmpuint(kv_decode_set_until_finish(w->set), ==, finish);
  for (guint64 steps = 0; steps < 40; steps++)
    g_assert_cmpuint(kv_decode_set_growth(w->set, steps), ==, naive_growth(w, steps));
  guint64 limit = w->n ? MIN(finish, 60) : 60, steps = limit;
  guint64 free_blocks = (guint64)kv_random_integer(&w->random, 0, 2 + 3 * w->n);
  while (naive_growth(w, steps) > free_blocks)
    steps--;
  g_assert_cmpuint(kv_decode_set_affordable(w->set, free_blocks, limit), ==, steps);
}

static void join(World *w) {
  Member *m = &w->members[kv_random_integer(&w->random, 0, N_SEQUENCES - 1)];
  if (m->member)
    return;
  guint32 output = (guint32)kv_random_integer(&w->random, 1, 150);
  m->emitted = (guint32)kv_random_integer(&w->random, 0, output - 1);
  m->sequence.input_tokens = (guint32)kv_random_integer(&w->random, 1, 300);
  m->sequence.output_tokens = output;
  m->sequence.emitted_tokens = m->emitted;
  m->context = m->sequence.input_tokens + m->emitted;
  m->sequence.computed_tokens = m->context;
  m->member = TRUE;
  w->n++;
  kv_decode_set_join(w->set, &m->sequence);
}

static void leave(World *w, Member *m) {
  guint64 blocks = blocks_at(w, m, 0);
  guint64 node_blocks = (guint64)kv_random_integer(&w->random, 0, (gint64)blocks + 1);
  g_assert_cmpuint(kv_sequence_context(&m->sequence, w->set), ==, m->context);
  g_assert_cmpuint(kv_sequence_emitted(&m->sequence, w->set), ==, m->emitted);
  kv_decode_set_leave(w->set, &m->sequence, node_blocks);
  m->member = FALSE;
  w->n--;
  g_assert_cmpuint(m->sequence.computed_tokens, ==, m->context);
  g_assert_cmpuint(m->sequence.emitted_tokens, ==, m->emitted);
  g_assert_cmpint(m->sequence.state, ==, KV_SEQUENCE_ENDING);
  g_assert_cmpuint(m->sequence.private_blocks, ==, blocks > node_blocks ? blocks - node_blocks : 0);
}

static void advance(World *w) {
  guint64 limit = MIN(kv_decode_set_until_finish(w->set), 50);
  if (kv_random_integer(&w->random, 0,
                        1)) /* the engine stops at a bend; the sums must survive more */
    limit = MIN(limit, kv_decode_set_until_bend(w->set));
  guint64 steps = (guint64)kv_random_integer(&w->random, 1, (gint64)limit);
  guint64 before = kv_decode_set_step(w->set);
  kv_decode_set_advance(w->set, steps);
  g_assert_cmpuint(kv_decode_set_step(w->set), ==, before + steps);
  for (guint i = 0; i < N_SEQUENCES; i++) {
    if (w->members[i].member) {
      w->members[i].context += (guint32)steps;
      w->members[i].emitted += (guint32)steps;
    }
  }
  for (KvSequence *done; (done = kv_decode_set_finished(w->set));) {
    guint expected = 0; /* among those that finish together, the first to have arrived */
    while (!w->members[expected].member ||
           w->members[expected].emitted < w->members[expected].sequence.output_tokens)
      expected++;
    g_assert_true(done == &w->members[expected].sequence);
    leave(w, &w->members[expected]);
  }
  g_assert_cmpuint(naive_finish(w), >=, 1);
}

static void play(KvPlanCurves *curves, guint64 seed) {
  World *w = g_new0(World, 1);
  w->curves = curves;
  kv_demand_init(&w->demand, curves, BLOCK_TOKENS);
  w->set = kv_decode_set_new(curves, &w->demand);
  kv_random_seed(&w->random, seed, 0);
  for (guint i = 0; i < N_SEQUENCES; i++)
    w->members[i].sequence.index = i;
  for (guint step = 0; step < OPERATIONS; step++) {
    gint64 what = kv_random_integer(&w->random, 0, 9);
    if (what < 4)
      join(w);
    else if (what < 9)
      advance(w);
    else
      for (guint i = 0, at = (guint)kv_random_integer(&w->random, 0, N_SEQUENCES - 1);
           i < N_SEQUENCES; i++)
        if (w->members[(at + i) % N_SEQUENCES].member) {
          leave(w, &w->members[(at + i) % N_SEQUENCES]);
          break;
        }
    check_batch(w);
    check_blocks(w);
  }
  kv_decode_set_free(w->set);
  g_free(w);
}

static KvPlanCurves *curves_of(const KvLaw *laws, guint n) {
  KvPlanCurves *curves = g_new0(KvPlanCurves, 1);
  curves->n_channels = n;
  for (guint c = 0; c < n; c++) {
    curves->laws[c] = laws[c];
    curves->stored_bytes[c % 2 ? KV_TIER_DRAM : KV_TIER_HBM][c] = 100.0 + c;
  }
  return curves;
}

static void whole_context(void) {
  KvLaw law = kv_law(KV_LAW_ALL, 0);
  g_autofree KvPlanCurves *curves = curves_of(&law, 1);
  play(curves, 10);
}

static void prompt_capped(void) {
  const double caps[] = {0.0, 64.0, 100.5, 1e6};
  for (guint i = 0; i < G_N_ELEMENTS(caps); i++) {
    KvLaw law = kv_law(KV_LAW_PROMPT_CAPPED, caps[i]);
    g_autofree KvPlanCurves *curves = curves_of(&law, 1);
    play(curves, 20 + i);
  }
}

static void kept_prompt(void) {
  KvLaw law = kv_law(KV_LAW_ALL, 0);
  law.kept_prompt = 77.0;
  g_autofree KvPlanCurves *curves = curves_of(&law, 1);
  play(curves, 30);
}

/* KIVI: whole groups of 32 quantized, up to 32 beside them in full precision, and a window. */
static void sawtooth(void) {
  const KvLaw laws[] = {kv_law(KV_LAW_FLUSHED, 32), kv_law(KV_LAW_PENDING, 32),
                        kv_law(KV_LAW_BEYOND, 100), kv_law(KV_LAW_LAST, 100)};
  g_autofree KvPlanCurves *curves = curves_of(laws, G_N_ELEMENTS(laws));
  play(curves, 40);
}

static void any_laws(void) {
  KvRandom random;
  kv_random_seed(&random, 50, 0);
  for (guint run = 0; run < 30; run++) {
    KvLaw laws[8];
    guint n = (guint)kv_random_integer(&random, 1, G_N_ELEMENTS(laws));
    for (guint c = 0; c < n; c++) {
      laws[c] = kv_law((KvLawKind)kv_random_integer(&random, 0, KV_LAW_PROMPT_CAPPED),
                       (double)kv_random_integer(&random, 1, 200));
      if (kv_random_integer(&random, 0, 3) == 0)
        laws[c].scale = kv_random_unit(&random);
      if (kv_random_integer(&random, 0, 3) == 0)
        laws[c].cap = (double)kv_random_integer(&random, 1, 300);
      if (kv_random_integer(&random, 0, 3) == 0)
        laws[c].kept_prompt = (double)kv_random_integer(&random, 1, 200);
    }
    g_autofree KvPlanCurves *curves = curves_of(laws, n);
    play(curves, 100 + run);
  }
}

static void empty_set_has_no_events(void) {
  KvLaw law = kv_law(KV_LAW_PENDING, 32);
  g_autofree KvPlanCurves *curves = curves_of(&law, 1);
  KvDemand demand;
  kv_demand_init(&demand, curves, BLOCK_TOKENS);
  KvDecodeSet *set = kv_decode_set_new(curves, &demand);
  g_assert_cmpuint(kv_decode_set_until_finish(set), ==, G_MAXUINT64);
  g_assert_cmpuint(kv_decode_set_until_bend(set), ==, G_MAXUINT64);
  g_assert_null(kv_decode_set_finished(set));
  g_assert_cmpuint(kv_decode_set_growth(set, 1000), ==, 0);
  g_assert_cmpuint(kv_decode_set_affordable(set, 0, 1000), ==, 1000);
  kv_decode_set_free(set);
  kv_decode_set_free(NULL);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/decode-set/empty-set-has-no-events", empty_set_has_no_events);
  g_test_add_func("/decode-set/whole-context", whole_context);
  g_test_add_func("/decode-set/prompt-capped", prompt_capped);
  g_test_add_func("/decode-set/kept-prompt", kept_prompt);
  g_test_add_func("/decode-set/sawtooth", sawtooth);
  g_test_add_func("/decode-set/any-laws", any_laws);
  return g_test_run();
}
