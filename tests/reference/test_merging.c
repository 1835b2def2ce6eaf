/* Adjacent layers merged on the host: the arithmetic, and what a model says with it. */
#include <glib.h>
#include <math.h>

#include "reference/host/merging.h"
#include "tests/reference/host_agreement.h"
#include "tests/reference/tiny_models.h"

enum { PROMPT = 45, DECODED = 12, LAYERS = 5 };

/* --- arithmetic ------------------------------------------------------------------------------ */

static void test_distances(void) {
  static const float x[3] = {2.0f, 0.0f, 0.0f}, right[3] = {0.0f, 3.0f, 0.0f},
                     back[3] = {-0.5f, 0.0f, 0.0f}, zero[3] = {0};
  g_assert_cmpfloat(kv_host_merge_distance(x, x, 3), ==, 0.0f);
  g_assert_cmpfloat(fabsf(kv_host_merge_distance(x, right, 3) - 0.5f), <, 1e-6f);
  g_assert_cmpfloat(fabsf(kv_host_merge_distance(x, back, 3) - 1.0f), <, 1e-6f);
  g_assert_cmpfloat(kv_host_merge_distance(x, zero, 3), ==, 0.0f);
}

/* Between two right angles the direction lies at t of the way, of length 1; each layer reads its
 * own norm. */
static void test_a_direction_lies_between(void) {
  const KvHostCompression c = {.format = KV_HOST_MINICACHE, .slerp = 1.0f / 3.0f};
  float x[2] = {4.0f, 0.0f}, y[2] = {0.0f, 0.5f}, e[2];
  kv_host_merge(&c, x, y, 2, e);
  g_assert_cmpfloat(fabs(e[0] - cos(G_PI / 6.0)), <, 1e-6);
  g_assert_cmpfloat(fabs(e[1] - sin(G_PI / 6.0)), <, 1e-6);
  g_assert_cmpfloat(x[0], ==, 4.0f * e[0]);
  g_assert_cmpfloat(y[1], ==, 0.5f * e[1]);
}

static void test_extremes_stay_finite(void) {
  const KvHostCompression c = {.format = KV_HOST_MINICACHE, .slerp = 0.6f};
  float same[2][2] = {{3.0f, 4.0f}, {3.0f, 4.0f}}, back[2][2] = {{1.0f, 0.0f}, {-1.0f, 0.0f}};
  float zero[2][2] = {{0.0f, 0.0f}, {1.0f, 2.0f}};
  kv_host_merge(&c, same[0], same[1], 2, NULL);
  g_assert_cmpfloat(fabsf(same[0][0] - 3.0f), <, 1e-5f);
  g_assert_cmpfloat(fabsf(same[1][1] - 4.0f), <, 1e-5f);
  kv_host_merge(&c, back[0], back[1], 2, NULL);
  g_assert_true(isfinite(back[0][0]));
  kv_host_merge(&c, zero[0], zero[1], 2, NULL);
  g_assert_cmpfloat(zero[0][0], ==, 0.0f);
  g_assert_true(isfinite(zero[1][0]));
}

static void test_thresholds(void) {
  KvHostCompression c = {.format = KV_HOST_MINICACHE, .gamma = 0.25f};
  g_assert_cmpfloat(kv_host_merge_threshold(&c, 0.25f, 0.75f), ==, 0.625f);
  c.gamma = 0.0f;
  g_assert_true(isinf(kv_host_merge_threshold(&c, 0.25f, 0.75f)));
  c.gamma = 1.0f;
  g_assert_cmpfloat(kv_host_merge_threshold(&c, 0.25f, 0.75f), ==, 0.0f);
}

static const KvAttention *same_heads(gconstpointer attention, guint layer) {
  return attention;
}

static void test_pairs(void) {
  const KvAttention a = {.n_kv_heads = 2, .head_dim = 8};
  KvHostCompression c = {.format = KV_HOST_MINICACHE, .first_merged = -1};
  static const KvHostRole expected[] = {KV_HOST_ALONE, KV_HOST_ALONE, KV_HOST_FIRST_OF_PAIR,
                                        KV_HOST_SECOND_OF_PAIR, KV_HOST_ALONE};
  guint pair = 9;
  for (guint l = 0; l < LAYERS; l++)
    g_assert_cmpint(kv_host_merge_role(&c, l, LAYERS, same_heads, &a, &pair), ==, expected[l]);
  c.first_merged = 1;
  g_assert_cmpint(kv_host_merge_role(&c, 4, LAYERS, same_heads, &a, &pair), ==,
                  KV_HOST_SECOND_OF_PAIR);
  g_assert_cmpuint(pair, ==, 1);
}

/* --- agreement with the whole cache ----------------------------------------------------------- */

/* A model of LAYERS layers, merged from the first or from layer 3. */
static KvHostAgreement agreement_of(gint first, float gamma, guint chunk) {
  KvLayerGroup group = llama_groups[0];
  group.count = LAYERS;
  KvModel model = llama;
  model.groups = &group;
  const KvHostCompression c = {
      .format = KV_HOST_MINICACHE, .first_merged = first, .slerp = 0.6f, .gamma = gamma};
  return host_agreement(&model, &c, PROMPT, DECODED, chunk);
}

static void test_what_merges_nothing_changes_nothing(void) {
  KvHostAgreement all_apart = agreement_of(0, 1.0f, 17), no_pair = agreement_of(4, 0.0f, 17);
  g_assert_cmpfloat(all_apart.divergence_sum, ==, 0.0);
  g_assert_cmpuint(all_apart.equal, ==, DECODED);
  g_assert_cmpfloat(no_pair.divergence_sum, ==, 0.0);
}

static void test_more_merged_agrees_less(void) {
  double few = agreement_of(3, 0.9f, PROMPT).divergence_sum;
  double pair = agreement_of(3, 0.0f, PROMPT).divergence_sum;
  g_assert_cmpfloat(few, >, 0.0);
  g_assert_cmpfloat(pair, >, few);
  g_assert_cmpfloat(agreement_of(0, 0.0f, PROMPT).divergence_sum, >, pair);
}

static void test_chunks_change_nothing(void) {
  double whole = agreement_of(1, 0.3f, PROMPT).divergence_sum;
  g_assert_cmpfloat(whole, >, 0.0);
  g_assert_cmpfloat(agreement_of(1, 0.3f, 7).divergence_sum, ==, whole);
  g_assert_cmpfloat(agreement_of(1, 0.3f, 1).divergence_sum, ==, whole);
}

/* --- settings -------------------------------------------------------------------------------- */

static void check_refused(const char *use, const KvModel *model, gboolean prefix_caching,
                          const char *expected) {
  const KvEngineConfig engine = {.block_tokens = 16, .prefix_caching = prefix_caching};
  check_stack(use, model, KV_DTYPE_BF16, &engine, expected);
}

static void test_what_is_refused(void) {
  check_refused("minicache", &llama, FALSE, NULL);
  check_refused("minicache", &llama, TRUE, "expected engine.prefix_caching=false");
  check_refused("minicache", &mixed, FALSE, "expected full attention in every layer");
  check_refused("minicache:bits=4", &llama, FALSE, "expected bits=16");
  check_refused("minicache:restore=apart", &llama, FALSE, "expected restore=fused");
  check_refused("minicache,palu", &llama, FALSE, "expected one of them alone");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/merging/distances", test_distances);
  g_test_add_func("/reference/merging/direction", test_a_direction_lies_between);
  g_test_add_func("/reference/merging/extremes", test_extremes_stay_finite);
  g_test_add_func("/reference/merging/thresholds", test_thresholds);
  g_test_add_func("/reference/merging/pairs", test_pairs);
  g_test_add_func("/reference/merging/nothing", test_what_merges_nothing_changes_nothing);
  g_test_add_func("/reference/merging/order", test_more_merged_agrees_less);
  g_test_add_func("/reference/merging/chunks", test_chunks_change_nothing);
  g_test_add_func("/reference/merging/refused", test_what_is_refused);
  return g_test_run();
}
