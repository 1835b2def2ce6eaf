/* Guessing what a layer attends to (infinigen): the arithmetic, and what a model says that reads
 * nothing else. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/executor.h"
#include "reference/host/speculation.h"
#include "reference/host/staging.h"
#include "sim/base/random.h"
#include "tests/reference/host_agreement.h"
#include "tests/reference/tiny_models.h"

enum { PROMPT = 61, DECODED = 20, D = 16 };

static KvRandom random_numbers;

static float *random_floats(gsize n) {
  float *x = g_new(float, n);
  for (gsize i = 0; i < n; i++)
    x[i] = (float)kv_random_normal(&random_numbers);
  return x;
}

static double product(const float *x, const float *y, guint n) {
  double sum = 0.0;
  for (guint i = 0; i < n; i++)
    sum += (double)x[i] * y[i];
  return sum;
}

/* --- arithmetic ------------------------------------------------------------------------------ */

static void test_sizes(void) {
  static const struct {
    double share;
    guint head_dim, columns;
  } cases[] = {{0.2, 64, 16}, {0.2, 128, 24}, {0.2, 80, 16},  {0.1, 16, 8},
               {0.1, 15, 8},  {1.0, 15, 15},  {1.0, 128, 128}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    g_assert_cmpuint(kv_host_speculation_columns(cases[i].share, cases[i].head_dim), ==,
                     cases[i].columns);
  g_assert_cmpuint(kv_host_speculation_most(0.2, 100), ==, 20);
  g_assert_cmpuint(kv_host_speculation_most(0.29, 100), ==, 29);
  g_assert_cmpuint(kv_host_speculation_most(0.2, 3), ==, 1);
  g_assert_cmpuint(kv_host_speculation_most(1.0, 77), ==, 77);
  g_assert_cmpuint(kv_host_speculation_most(1.0, 0), ==, 0);
}

/* The mean is rounded; at least one token, at most the cap. */
static void test_how_many_tokens(void) {
  g_assert_cmpuint(kv_host_speculation_tokens(10, 4, 100), ==, 3);
  g_assert_cmpuint(kv_host_speculation_tokens(9, 4, 100), ==, 2);
  g_assert_cmpuint(kv_host_speculation_tokens(0, 4, 100), ==, 1);
  g_assert_cmpuint(kv_host_speculation_tokens(4000, 4, 100), ==, 100);
  g_assert_cmpuint(kv_host_speculation_tokens(4, 4, 0), ==, 0);
}

typedef struct {
  float *queries, *keys, *directions;
  KvHostSample sample;
} Skewed;

/* Queries and keys of two KV heads with two query heads each, that are long in a few channels. */
static void skew(Skewed *s, guint n_queries, guint n_keys) {
  enum { H = 4, KV = 2 };
  *s = (Skewed){.queries = random_floats((gsize)n_queries * H * D),
                .keys = random_floats((gsize)n_keys * KV * D),
                .directions = g_new(float, (gsize)KV *D *D)};
  for (gsize i = 0; i < (gsize)n_queries * H * D; i++)
    s->queries[i] *= i % D % 4 == 0 ? 8.0f : 0.3f;
  for (gsize i = 0; i < (gsize)n_keys * KV * D; i++)
    s->keys[i] *= (float)(1 + i % D % 3);
  s->sample = (KvHostSample){.queries = s->queries,
                             .keys = s->keys,
                             .n_queries = n_queries,
                             .n_keys = n_keys,
                             .n_heads = H,
                             .n_kv_heads = KV,
                             .head_dim = D};
  kv_host_speculation_calibrate(s->directions, &s->sample);
}

static void skewed_clear(Skewed *s) {
  g_free(s->queries);
  g_free(s->keys);
  g_free(s->directions);
}

/* Length of the head's queries times that of its keys along a direction. */
static double length_along(const Skewed *s, guint head, const float *v) {
  double queries = 0.0, keys = 0.0;
  for (guint i = 0; i < s->sample.n_queries * 4; i++)
    if (i % 4 / 2 == head)
      queries += pow(product(v, s->queries + (gsize)i * D, D), 2);
  for (guint i = 0; i < s->sample.n_keys; i++)
    keys += pow(product(v, s->keys + ((gsize)i * 2 + head) * D, D), 2);
  return sqrt(queries * keys);
}

/* Directions are orthonormal, also where there are fewer queries than those, and the longest come
 * first. */
static void test_directions(void) {
  static const guint n_queries[] = {1, 3, 128};
  for (guint i = 0; i < G_N_ELEMENTS(n_queries); i++) {
    Skewed s;
    skew(&s, n_queries[i], 50);
    for (guint h = 0; h < 2; h++) {
      const float *a = s.directions + (gsize)h * D * D;
      double before = INFINITY, first = length_along(&s, h, a);
      for (guint r = 0; r < D; r++) {
        for (guint o = 0; o <= r; o++)
          g_assert_cmpfloat_with_epsilon(product(a + (gsize)r * D, a + (gsize)o * D, D), r == o,
                                         1e-5);
        double length = length_along(&s, h, a + (gsize)r * D);
        g_assert_cmpfloat(length, <=, before + 1e-4 * first);
        before = length;
      }
    }
    skewed_clear(&s);
  }
}

static void test_columns_are_the_longest(void) {
  enum { COUNT = 5, N = 40 };
  Skewed s;
  skew(&s, N, 50);
  guint32 columns[COUNT];
  double sums[D] = {0}, least = INFINITY;
  const float *a = s.directions + (gsize)D * D;
  const float *q = s.queries + (gsize)2 * D;
  kv_host_speculation_choose_columns(columns, a, q, (gsize)4 * D, N, 2, D, COUNT);
  for (guint r = 0; r < D; r++)
    for (guint i = 0; i < N * 2; i++)
      sums[r] += fabs(product(a + (gsize)r * D, q + ((gsize)i / 2 * 4 + i % 2) * D, D));
  for (guint i = 0; i < COUNT; i++) {
    g_assert_true(i == 0 || columns[i] > columns[i - 1]);
    least = MIN(least, sums[columns[i]]);
    sums[columns[i]] = 0.0;
  }
  for (guint r = 0; r < D; r++)
    g_assert_cmpfloat(sums[r], <=, least);
  skewed_clear(&s);
}

/* With all columns approximate scores are the scores; with few, the best tokens are still found. */
static void test_partial_scores(void) {
  enum { TOKENS = 50, KV = 2, FEW = 8 };
  Skewed s;
  skew(&s, 128, TOKENS);
  for (guint count = FEW; count <= D; count += D - FEW) {
    float pool[8 * KV * 8 * D] = {0}, q[2 * D], relative[TOKENS], scratch[TOKENS];
    guint32 columns[D], chosen[5];
    const KvHostPages partial = {.pool = pool,
                                 .block_floats = (gsize)KV * 8 * count,
                                 .block_tokens = 8,
                                 .n_kv_heads = KV,
                                 .head_dim = count};
    static const guint32 table[] = {6, 0, 5, 1, 4, 2, 7};
    const float *a = s.directions + (gsize)D * D, *query = s.queries + ((gsize)9 * 4 + 2) * D;
    kv_host_speculation_choose_columns(columns, a, s.queries + (gsize)2 * D, (gsize)4 * D, 128, 2,
                                       D, count);
    for (guint32 t = 0; t < TOKENS; t++)
      kv_host_speculation_project(pool + table[t / 8] * partial.block_floats +
                                      ((gsize)8 + t % 8) * count,
                                  s.keys + ((gsize)t * KV + 1) * D, a, columns, count, D);
    double largest[2] = {-INFINITY, -INFINITY}, exact[2][TOKENS], best = -INFINITY;
    guint32 within = 0, counted, best_token = 0;
    for (guint g = 0; g < 2; g++) {
      kv_host_speculation_project(q + (gsize)g * count, query + (gsize)g * D, a, columns, count, D);
      for (guint32 t = 0; t < TOKENS; t++) {
        exact[g][t] = 0.25 * product(query + (gsize)g * D, s.keys + ((gsize)t * KV + 1) * D, D);
        largest[g] = MAX(largest[g], exact[g][t]);
      }
    }
    counted = kv_host_speculation_score(relative, q, &partial, table, 1, 2, TOKENS, 0.25f, 20.0f,
                                        scratch);
    for (guint32 t = 0; t < TOKENS; t++) {
      double nearest = MAX(exact[0][t] - largest[0], exact[1][t] - largest[1]);
      within += nearest > -20.0;
      if (count == D)
        g_assert_cmpfloat_with_epsilon(relative[t], nearest, 1e-3);
      best_token = nearest > best ? t : best_token;
      best = MAX(best, nearest);
    }
    kv_host_speculation_choose(chosen, relative, TOKENS, 5);
    if (count == D)
      g_assert_cmpuint(counted, ==, within);
    gboolean found = FALSE;
    for (guint i = 0; i < 5; i++)
      found |= chosen[i] == best_token;
    g_assert_true(found);
  }
  skewed_clear(&s);
}

static void test_of_equals_the_first(void) {
  static const float relative[] = {-2.0f, 0.0f, -1.0f, 0.0f, -1.0f, -1.0f};
  static const guint32 expected[] = {1, 2, 3};
  guint32 chosen[6];
  kv_host_speculation_choose(chosen, relative, 6, 3);
  g_assert_cmpmem(chosen, sizeof expected, expected, sizeof expected);
  kv_host_speculation_choose(chosen, relative, 6, 6);
  for (guint32 i = 0; i < 6; i++)
    g_assert_cmpuint(chosen[i], ==, i);
}

/* --- agreement with the whole cache ----------------------------------------------------------- */

static KvHostCompression settings(double columns, float alpha, double most) {
  return (KvHostCompression){.format = KV_HOST_INFINIGEN,
                             .column_share = columns,
                             .alpha = alpha,
                             .most_share = most,
                             .window = KV_HOST_SPECULATION_WINDOW};
}

/* The tiny model with four layers, which `group` describes. */
static KvModel with_four_layers(KvModel model, KvLayerGroup *group) {
  *group = model.groups[0];
  group->count = 4;
  model.groups = group;
  return model;
}

static KvHostAgreement agreement_of(KvModel model, KvHostCompression c, guint prompt, guint chunk) {
  KvLayerGroup group;
  model = with_four_layers(model, &group);
  return host_agreement(&model, &c, prompt, DECODED, chunk);
}

static void test_what_covers_everything_changes_nothing(void) {
  static const guint prompts[] = {1, 7, 8, PROMPT}, chunks[] = {1, 17, PROMPT};
  const KvModel *const all[] = {&llama, &opt, &mixtral};
  for (guint m = 0; m < G_N_ELEMENTS(all); m++)
    for (guint p = 0; p < G_N_ELEMENTS(prompts); p++) {
      KvHostAgreement a =
          agreement_of(*all[m], settings(0.2, 1e6f, 1.0), prompts[p], chunks[(m + p) % 3]);
      g_assert_cmpfloat(a.divergence_sum, ==, 0.0);
      g_assert_cmpuint(a.equal, ==, DECODED);
    }
}

/* Of one layer, which fetches everything, nothing can be lost. */
static void test_more_is_nearer(void) {
  double few = agreement_of(llama, settings(0.5, 1e6f, 0.05), PROMPT, PROMPT).divergence_sum;
  double half = agreement_of(llama, settings(0.5, 1e6f, 0.5), PROMPT, PROMPT).divergence_sum;
  double most = agreement_of(llama, settings(1.0, 1e6f, 0.9), PROMPT, PROMPT).divergence_sum;
  g_assert_cmpfloat(few, >, half);
  g_assert_cmpfloat(half, >, most);
  g_assert_cmpfloat(most, >, 0.0);
  double narrow = agreement_of(llama, settings(1.0, 1.0f, 1.0), PROMPT, PROMPT).divergence_sum;
  double wide = agreement_of(llama, settings(1.0, 9.0f, 1.0), PROMPT, PROMPT).divergence_sum;
  g_assert_cmpfloat(narrow, >, wide);
}

static void test_chunks_change_nothing(void) {
  double whole = agreement_of(llama, settings(0.5, 4.0f, 0.3), PROMPT, PROMPT).divergence_sum;
  g_assert_cmpfloat(whole, >, 0.0);
  g_assert_cmpfloat(agreement_of(llama, settings(0.5, 4.0f, 0.3), PROMPT, 7).divergence_sum, ==,
                    whole);
  g_assert_cmpfloat(agreement_of(llama, settings(0.5, 4.0f, 0.3), PROMPT, 1).divergence_sum, ==,
                    whole);
}

/* --- several sequences ------------------------------------------------------------------------ */

enum { SEQUENCES = 3, STEPS = 6 };

typedef struct {
  guint32 tokens[PROMPT + STEPS], table[BLOCKS / SEQUENCES];
  guint32 prompt, past;
} Sequence;

static KvHostSpan span_of(Sequence *q, guint s, guint n, float *logits) {
  KvHostSpan span = {.block_table = q->table,
                     .tokens = q->tokens + q->past,
                     .past = q->past,
                     .n_tokens = n,
                     .prompt_tokens = q->prompt,
                     .owner = s,
                     .last = q->past + n == q->prompt,
                     .decoding = q->past >= q->prompt,
                     .sample = TRUE,
                     .logits = logits};
  q->past += n;
  return span;
}

/* The logits of each step of each sequence: prompts one after another, each decoding beside those
 * that come; or alone. The first prompt, which is the sample, is first in both. */
static void serve(gboolean together, float *logits, guint vocab) {
  g_autoptr(GError) error = NULL;
  KvLayerGroup group;
  const KvModel model = with_four_layers(llama, &group);
  g_autoptr(KvHostWeights) weights = kv_host_weights_new(&model, 7, &error);
  g_autoptr(KvHostCache) cache = kv_host_cache_new(weights, BLOCK_TOKENS, BLOCKS, 0, &error);
  Sequence all[SEQUENCES];
  g_assert_no_error(error);
  cache->compression = settings(0.5, 3.0f, 0.3);
  for (guint s = 0; s < SEQUENCES; s++) {
    all[s] = (Sequence){.prompt = PROMPT - 20 * s};
    for (guint i = 0; i < G_N_ELEMENTS(all[s].table); i++)
      all[s].table[i] = i * SEQUENCES + s;
    for (guint i = 0; i < PROMPT + STEPS; i++)
      all[s].tokens[i] = (i * (31 + 6 * s) + s) % vocab;
  }
  for (guint pass = 0; pass < (together ? STEPS : SEQUENCES * (STEPS + 1)) + SEQUENCES; pass++) {
    KvHostSpan spans[SEQUENCES];
    KvHostWork work = {0};
    guint n = 0;
    for (guint s = 0; s < SEQUENCES; s++) {
      Sequence *q = &all[s];
      guint first = together ? s : s * (STEPS + 1), left = q->prompt + STEPS - q->past;
      if (pass < first || left == 0)
        continue;
      guint step = q->past < q->prompt ? 0 : q->past - q->prompt + 1;
      float *to = logits + ((gsize)s * (STEPS + 1) + step) * vocab;
      spans[n++] = span_of(q, s, q->past == 0 ? q->prompt : 1, to);
    }
    if (n)
      kv_host_forward(weights, cache, spans, n, &work);
    for (guint s = 0; s < n; s++) /* led back */
      g_assert_true(spans[s].block_table == all[spans[s].owner].table);
  }
}

static void test_sequences_do_not_see_each_other(void) {
  gsize n = (gsize)SEQUENCES * (STEPS + 1) * llama.vocab;
  g_autofree float *together = g_new0(float, n), *alone = g_new0(float, n);
  serve(TRUE, together, llama.vocab);
  serve(FALSE, alone, llama.vocab);
  g_assert_cmpmem(together, n * sizeof *together, alone, n * sizeof *alone);
  for (gsize i = 0; i < n; i++)
    g_assert_true(isfinite(alone[i]));
}

/* What decodes has a place for each of its blocks, and none is fetched or stored. */
static void test_places_for_what_is_gathered(void) {
  static const guint32 first[] = {4, 3}, second[] = {6, 7, 8};
  const KvHostSpan spans[] = {{.block_table = first, .past = 8, .n_tokens = 2},
                              {.block_table = second, .past = 17, .n_tokens = 1, .decoding = TRUE}};
  KvHostStaging s;
  kv_host_staging_init(&s, 0.0, 10);
  s.decoding = KV_HOST_DECODING_GATHERED;
  kv_host_staging_plan(&s, spans, 2, BLOCK_TOKENS);
  g_assert_cmpuint(s.table->len, ==, 5);
  for (guint32 i = 0; i < 5; i++)
    g_assert_cmpuint(g_array_index(s.table, guint32, i), ==, i);
  g_assert_cmpuint(s.fetched->len, ==, 1);
  g_assert_cmpuint(g_array_index(s.fetched, KvHostStaged, 0).home, ==, 4);
  g_assert_cmpuint(s.stored->len, ==, 1);
  g_assert_cmpuint(g_array_index(s.stored, KvHostStaged, 0).home, ==, 3);
  kv_host_staging_clear(&s);
}

/* --- the executor ---------------------------------------------------------------------------- */

typedef struct {
  KvExecutor *executor;
  KvSequence sequence;
  guint32 blocks[BLOCKS];
} Request;

static void step(Request *r, guint32 tokens, gboolean prompt) {
  g_autoptr(GError) error = NULL;
  KvSequence *member = &r->sequence;
  KvChunk chunk = {member, member->computed_tokens, tokens, TRUE};
  KvStep step = prompt ? (KvStep){.chunks = &chunk, .n_chunks = 1, .repeat = 1}
                       : (KvStep){.decode = {.n = 1, .members = &member}, .repeat = tokens};
  KvStepCost cost;
  gboolean done = r->executor->class->step(r->executor, &step, &cost, &error);
  g_assert_no_error(error);
  g_assert_true(done);
  member->computed_tokens += tokens;
}

/* A preemption computes everything again, in other blocks; moves are refused. */
static void test_preemption(void) {
  g_autoptr(GError) error = NULL;
  const KvHostCompression c = settings(0.5, 4.0f, 0.3);
  Request r = {.sequence = {.input_tokens = PROMPT}};
  guint n;
  r.executor = kv_host_executor_new(&llama, BLOCK_TOKENS, BLOCKS, 0, BLOCK_TOKENS, 7, &error);
  g_assert_no_error(error);
  kv_host_executor_set_compression(r.executor, &c);
  r.sequence.block_ids = r.blocks;
  r.sequence.n_block_ids = BLOCKS;
  for (guint i = 0; i < BLOCKS; i++)
    r.blocks[i] = (3 + 5 * i) % BLOCKS;
  step(&r, PROMPT, TRUE);
  step(&r, 5, FALSE);
  for (guint i = 0; i < BLOCKS; i++)
    r.blocks[i] = (1 + 3 * i) % BLOCKS;
  r.sequence.computed_tokens = 0;
  step(&r, PROMPT + 5, TRUE);
  step(&r, 3, FALSE);
  (void)kv_host_executor_output(r.executor, &r.sequence, &n);
  g_assert_cmpuint(n, ==, 9);
  r.executor->class->move_block(r.executor, KV_TIER_HBM, 1, KV_TIER_HBM, 2);
  KvSequence *member = &r.sequence;
  KvStepCost cost;
  g_assert_false(r.executor->class->step(
      r.executor, &(KvStep){.decode = {.n = 1, .members = &member}, .repeat = 1}, &cost, &error));
  g_assert_nonnull(strstr(error->message, "those of infinigen stay where they are"));
  r.executor->class->forget(r.executor, &r.sequence);
  r.executor->class->destroy(r.executor);
}

/* --- settings -------------------------------------------------------------------------------- */

static void check_refused(const char *use, const KvModel *model, KvPreemption preemption,
                          const char *expected) {
  const KvEngineConfig engine = {.block_tokens = 16, .preemption = preemption};
  check_stack(use, model, KV_DTYPE_BF16, &engine, expected);
}

static void test_what_is_refused(void) {
  check_refused("infinigen", &llama, KV_PREEMPT_RECOMPUTE, NULL);
  check_refused("infinigen:alpha=1e6:max_num_kv=1", &llama, KV_PREEMPT_RECOMPUTE, NULL);
  check_refused("infinigen", &llama, KV_PREEMPT_SWAP, "expected engine.preemption=recompute");
  check_refused("infinigen:capacity=0.9", &llama, KV_PREEMPT_RECOMPUTE, "expected capacity=1");
  check_refused("infinigen", &mixed, KV_PREEMPT_RECOMPUTE,
                "expected full attention in every layer");
  check_refused("infinigen", &deepseek, KV_PREEMPT_RECOMPUTE, "expected bf16 latents");
  check_refused("flexgen:hg=100:hc=0:cpu_cache_compute=off,infinigen", &llama, KV_PREEMPT_RECOMPUTE,
                "expected one of them alone");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  kv_random_seed(&random_numbers, 5, 1);
  g_test_add_func("/reference/speculation/sizes", test_sizes);
  g_test_add_func("/reference/speculation/mean", test_how_many_tokens);
  g_test_add_func("/reference/speculation/directions", test_directions);
  g_test_add_func("/reference/speculation/columns", test_columns_are_the_longest);
  g_test_add_func("/reference/speculation/scores", test_partial_scores);
  g_test_add_func("/reference/speculation/equals", test_of_equals_the_first);
  g_test_add_func("/reference/speculation/everything", test_what_covers_everything_changes_nothing);
  g_test_add_func("/reference/speculation/order", test_more_is_nearer);
  g_test_add_func("/reference/speculation/chunks", test_chunks_change_nothing);
  g_test_add_func("/reference/speculation/sequences", test_sequences_do_not_see_each_other);
  g_test_add_func("/reference/speculation/places", test_places_for_what_is_gathered);
  g_test_add_func("/reference/speculation/preemption", test_preemption);
  g_test_add_func("/reference/speculation/refused", test_what_is_refused);
  return g_test_run();
}
