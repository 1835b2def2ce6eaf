/* Tokens that leave the cache: how pyramidkv divides blocks among layers, and which tokens h2o lets
 * go, beside the techniques' plans. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/compression.h"
#include "reference/host/pyramid.h"
#include "sim/base/random.h"
#include "tests/reference/tiny_models.h"

/* --- pyramidkv ------------------------------------------------------------------------------- */

/* Every part of the first M blocks belongs to one layer, which is after none that borrows from it;
 * at any length all layers fit into the blocks of the mean; and budgets are within a block of the
 * plan's where the window leaves them that. */
static void check_pyramid(const KvHostCompression *c) {
  g_autofree KvHostPyramid *p = kv_host_pyramid_new(c);
  g_autofree guint8 *taken = g_new0(guint8, (gsize)c->n_layers * p->whole_mean + 1);
  double b = (double)c->budget - c->window, sum = 0.0;
  for (guint l = 0; l < c->n_layers; l++) {
    guint32 budget = kv_host_pyramid_budget(p, l);
    double share = c->n_layers > 1 ? (double)l / (c->n_layers - 1.0) : 0.5;
    double planned = c->window + b * (2.0 - 1.0 / c->beta - share * 2.0 * (1.0 - 1.0 / c->beta));
    sum += budget;
    g_assert_cmpuint(budget, >, c->window);
    g_assert_true(l == 0 || p->whole[l] <= p->whole[l - 1]);
    g_assert_cmpfloat(planned, <, budget + 2.0 * c->block_tokens);
    for (guint32 i = 0; i < p->whole[l]; i++) {
      KvHostPart part = kv_host_pyramid_part(p, l, i);
      g_assert_cmpuint(part.block, <, p->whole_mean);
      g_assert_cmpuint(part.layer, >=, l);
      g_assert_true(part.layer == l || p->whole[part.layer] <= part.block);
      g_assert_cmpuint(taken[part.layer * p->whole_mean + part.block]++, ==, 0);
    }
    KvHostPart next = kv_host_pyramid_part(p, l, p->whole[l] + 3);
    g_assert_cmpuint(next.block, ==, p->whole_mean + 3);
    g_assert_cmpuint(next.layer, ==, l);
  }
  g_assert_cmpfloat(sum, ==, (double)c->budget * c->n_layers);
}

static void test_a_pyramid_fills_the_blocks_of_its_mean(void) {
  static const guint layers[] = {1, 2, 3, 24, 32, 80}, blocks[] = {1, 8, 16, 64, 256};
  static const guint budgets[] = {64, 65, 100, 128, 512, 2047, 2048}, windows[] = {8, 33, 63};
  static const double betas[] = {1.0, 1.7, 5.0, 20.0, 100.0};
  for (guint i = 0; i < G_N_ELEMENTS(layers); i++)
    for (guint k = 0; k < G_N_ELEMENTS(blocks); k++)
      for (guint n = 0; n < G_N_ELEMENTS(budgets); n++)
        for (guint w = 0; w < G_N_ELEMENTS(windows); w++)
          for (guint e = 0; e < G_N_ELEMENTS(betas); e++)
            check_pyramid(&(KvHostCompression){.format = KV_HOST_PYRAMIDKV,
                                               .budget = budgets[n],
                                               .window = windows[w],
                                               .beta = betas[e],
                                               .n_layers = layers[i],
                                               .block_tokens = blocks[k]});
}

/* --- the plans ------------------------------------------------------------------------------- */

typedef struct {
  KvHostCompression compression;
  KvPlan *plan;
} Use;

static Use use_of(const char *text) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(text, &error);
  KvEngineConfig engine = {.block_tokens = 16};
  KvModel model = llama;
  Use use = {0};
  g_assert_no_error(error);
  use.plan = kv_stack_apply(stack, &model, KV_DTYPE_BF16, &engine, &error);
  g_assert_no_error(error);
  g_assert_true(
      kv_host_compression_init(&use.compression, stack, &llama, KV_DTYPE_BF16, &engine, &error));
  return use;
}

/* Tokens that a layer stores on average, as the plan's laws say. */
static double planned_tokens(const KvPlan *plan, double context, double prompt) {
  double tokens = 0.0, layers = 0.0;
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    tokens +=
        cache->layers * kv_law_value(&cache->segments[0].tokens, context, prompt, TRUE, NULL, NULL);
    layers += cache->layers;
  }
  return tokens / layers;
}

/* What is held is what the plan says, in whole tokens: pyramidkv's mean rounded up, h2o's slots
 * down, of which there are never fewer than two. */
static void test_as_many_tokens_as_planned(void) {
  static const char *const uses[] = {"pyramidkv:budget=128",
                                     "pyramidkv:budget=64:window_size=33",
                                     "pyramidkv:budget=100:window_size=50:beta=2",
                                     "h2o",
                                     "h2o:hh_ratio=0.3:recent_ratio=0.05",
                                     "h2o:budget_total=0.5:output_tokens=100",
                                     "h2o:budget_total=1:output_tokens=50"};
  for (guint u = 0; u < G_N_ELEMENTS(uses); u++) {
    Use use = use_of(uses[u]);
    gboolean evicts = use.compression.format == KV_HOST_H2O;
    for (guint32 prompt = 1; prompt < 300; prompt++)
      for (guint32 context = prompt; context < prompt + 120; context += 17) {
        double planned = planned_tokens(use.plan, context, prompt);
        guint32 held = context - kv_host_compression_dropped(&use.compression, prompt, context);
        guint32 expected = evicts ? MAX(MIN(2, context), (guint32)floor(planned + 1e-6))
                                  : (guint32)ceil(planned - 1e-6);
        g_assert_cmpuint(held, ==, expected);
      }
    kv_plan_free(use.plan);
  }
}

/* --- h2o ------------------------------------------------------------------------------------- */

static void test_the_least_of_the_old_ones_goes(void) {
  const float scores[] = {3.0f, 0.5f, 2.0f, 0.5f, 0.1f, 0.0f};
  const guint32 positions[] = {0, 9, 4, 7, 10, 11};
  /* With the token at 12 the last three are 10, 11 and 12: of the equals 9 and 7 the lower slot. */
  g_assert_cmpuint(kv_host_h2o_slot(scores, positions, 6, 3, 12), ==, 1);
  g_assert_cmpuint(kv_host_h2o_slot(scores, positions, 6, 2, 12), ==, 4);
  g_assert_cmpuint(kv_host_h2o_slot(scores, positions, 6, 1, 12), ==, 5);
  g_assert_cmpuint(kv_host_h2o_slot(scores, positions, 6, 5, 12), ==, 3);
  g_assert_cmpuint(kv_host_h2o_slot(scores, positions, 20, 5, 12), ==,
                   12); /* there are some left */
}

/* A query's attention sums to one for each head; what it does not see gets nothing. */
static void test_scores_are_attention(void) {
  enum { TOKENS = 11, GROUP = 3, D = 4 };
  float pool[2 * 8 * D * 2], q[GROUP * D], scores[TOKENS + 1] = {0}, scratch[TOKENS], sum = 0.0f;
  const KvHostPages pages = {.pool = pool,
                             .block_floats = (gsize)16 * D,
                             .value_offset = 8 * (gsize)D,
                             .block_tokens = 8,
                             .n_kv_heads = 1,
                             .head_dim = D};
  static const guint32 table[] = {1, 0};
  KvRandom random;
  kv_random_seed(&random, 3, 1);
  for (guint i = 0; i < G_N_ELEMENTS(pool); i++)
    pool[i] = (float)kv_random_normal(&random);
  for (guint i = 0; i < G_N_ELEMENTS(q); i++)
    q[i] = (float)kv_random_normal(&random);
  for (guint again = 1; again <= 2; again++) {
    kv_host_h2o_add(scores, q, &pages, table, 0, GROUP, TOKENS, scratch);
    sum = 0.0f;
    for (guint i = 0; i < TOKENS; i++)
      sum += scores[i];
    g_assert_cmpfloat_with_epsilon(sum, (float)(again * GROUP), 1e-5f);
  }
  g_assert_cmpfloat(scores[TOKENS], ==, 0.0f);
}

static void test_shares_of_the_slots(void) {
  const KvHostCompression c = {.format = KV_HOST_H2O, .slot_share = 0.2, .recent_share = 0.25};
  static const guint32 prompts[] = {1, 10, 40, 1000}, slots[] = {2, 2, 8, 200},
                       recent[] = {1, 1, 2, 50};
  for (guint i = 0; i < G_N_ELEMENTS(prompts); i++) {
    g_assert_cmpuint(kv_host_h2o_slots(&c, prompts[i]), ==, slots[i]);
    g_assert_cmpuint(kv_host_h2o_recent(&c, slots[i]), ==, recent[i]);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/eviction/pyramid", test_a_pyramid_fills_the_blocks_of_its_mean);
  g_test_add_func("/reference/eviction/plans", test_as_many_tokens_as_planned);
  g_test_add_func("/reference/eviction/least", test_the_least_of_the_old_ones_goes);
  g_test_add_func("/reference/eviction/scores", test_scores_are_attention);
  g_test_add_func("/reference/eviction/shares", test_shares_of_the_slots);
  return g_test_run();
}
