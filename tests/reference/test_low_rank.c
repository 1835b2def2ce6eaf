/* Low-rank keys and values on the host: the decomposition, and what a model says with it. */
#include <glib.h>
#include <math.h>

#include "reference/host/low_rank.h"
#include "sim/base/random.h"
#include "tests/reference/host_agreement.h"
#include "tests/reference/tiny_models.h"

enum { PROMPT = 45, DECODED = 12 };

static float *random_floats(KvRandom *random, gsize n) {
  float *x = g_new(float, n);
  for (gsize i = 0; i < n; i++)
    x[i] = (float)kv_random_normal(random);
  return x;
}

static double product(const float *x, gsize stride_x, const float *y, gsize stride_y, guint n) {
  double sum = 0.0;
  for (guint i = 0; i < n; i++)
    sum += (double)x[i * stride_x] * y[i * stride_y];
  return sum;
}

/* Part of the energy of rows[width][inputs] that the basis keeps. */
static double kept_energy(const float *basis, const float *rows, guint width, guint inputs,
                          guint rank) {
  double kept = 0.0, all = 0.0;
  for (guint r = 0; r < rank; r++)
    for (guint i = 0; i < inputs; i++) {
      double x = product(basis + (gsize)r * width, 1, rows + i, inputs, width);
      kept += x * x;
    }
  for (gsize i = 0; i < (gsize)width * inputs; i++)
    all += (double)rows[i] * rows[i];
  return kept / all;
}

/* --- the decomposition ----------------------------------------------------------------------- */

static void test_a_basis_is_orthonormal(void) {
  static const guint shapes[][3] = {{1, 1, 1},     {1, 7, 1},       {2, 3, 2},
                                    {3, 9, 2},     {16, 4, 16},     {33, 50, 9},
                                    {64, 200, 64}, {150, 300, 150}, {150, 40, 70}};
  KvRandom random;
  kv_random_seed(&random, 3, 0);
  for (guint s = 0; s < G_N_ELEMENTS(shapes); s++) {
    guint width = shapes[s][0], inputs = shapes[s][1], rank = shapes[s][2];
    g_autofree float *rows = random_floats(&random, (gsize)width * inputs);
    g_autofree float *basis = g_new(float, (gsize)rank *width);
    kv_host_low_rank_basis(basis, rows, width, inputs, rank);
    for (guint i = 0; i < rank; i++)
      for (guint j = 0; j <= i; j++) {
        double x = product(basis + (gsize)i * width, 1, basis + (gsize)j * width, 1, width);
        g_assert_cmpfloat(fabs(x - (i == j)), <, 1e-5);
      }
    if (rank == width)
      g_assert_cmpfloat(fabs(kept_energy(basis, rows, width, inputs, rank) - 1.0), <, 1e-5);
  }
}

/* Rows that are sums of three others lie in their span; and the first direction is the longest. */
static void test_a_basis_finds_the_span(void) {
  enum { WIDTH = 20, INPUTS = 30, RANK = 3 };
  KvRandom random;
  kv_random_seed(&random, 4, 0);
  g_autofree float *left = random_floats(&random, (gsize)WIDTH * RANK);
  g_autofree float *right = random_floats(&random, (gsize)RANK * INPUTS);
  g_autofree float *rows = g_new0(float, WIDTH *INPUTS), *basis = g_new(float, RANK *WIDTH);
  for (guint o = 0; o < WIDTH; o++)
    for (guint i = 0; i < INPUTS; i++)
      for (guint r = 0; r < RANK; r++)
        rows[o * INPUTS + i] += left[o * RANK + r] * right[r * INPUTS + i];
  kv_host_low_rank_basis(basis, rows, WIDTH, INPUTS, RANK);
  g_assert_cmpfloat(fabs(kept_energy(basis, rows, WIDTH, INPUTS, RANK) - 1.0), <, 1e-5);
  double before = 2.0;
  for (guint r = 0; r < RANK; r++) {
    double one = kept_energy(basis + (gsize)r * WIDTH, rows, WIDTH, INPUTS, 1);
    g_assert_cmpfloat(one, <, before);
    before = one;
  }
  float zeros[6] = {0}, of_zeros[4];
  kv_host_low_rank_basis(of_zeros, zeros, 2, 3, 2);
  g_assert_cmpfloat(fabs(product(of_zeros, 1, of_zeros, 1, 2) - 1.0), <, 1e-6);
}

/* --- agreement with the whole cache ----------------------------------------------------------- */

static KvHostAgreement agreement_of(const KvModel *model, const KvPaluSettings *settings,
                                    guint chunk) {
  const KvHostCompression c = {.format = KV_HOST_PALU, .palu = *settings};
  return host_agreement(model, &c, PROMPT, DECODED, chunk);
}

static const KvPaluSettings defaults = {
    .rank_ratio = 0.5, .group_size = 4, .value_share = 0.75, .rank_rounding = 1};

static KvPaluSettings with_ranks(guint group, guint key_rank, guint value_rank) {
  KvPaluSettings s = defaults;
  s.group_size = group;
  s.rank_k = key_rank;
  s.rank_v = value_rank;
  return s;
}

/* Whole ranks leave a layer as it is. Keys alone at full rank (or values alone) take the factors'
 * way, which rounds otherwise; keys of a model with 31 of 32 directions are close. */
static void test_full_ranks_change_nothing(void) {
  const KvModel *const both[] = {&llama, &opt};
  for (guint m = 0; m < G_N_ELEMENTS(both); m++) {
    KvPaluSettings s = with_ranks(2, 4096, 4096);
    KvHostAgreement a = agreement_of(both[m], &s, 17);
    g_assert_cmpfloat(a.divergence_sum, ==, 0.0);
    g_assert_cmpuint(a.equal, ==, a.n);
  }
}

/* The factors' way at full rank: the same model up to rounding, with grouped heads and with biases.
 */
static void test_the_factors_compute_the_same_model(void) {
  const KvModel *const both[] = {&llama, &opt};
  KvRandom random;
  kv_random_seed(&random, 5, 0);
  for (guint m = 0; m < G_N_ELEMENTS(both); m++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(KvHostWeights) weights = kv_host_weights_new(both[m], 7, &error);
    const KvAttention *a = &weights->layers[0].attention;
    guint width = a->n_kv_heads / 2 * a->head_dim;
    KvPaluSettings keys = with_ranks(a->n_kv_heads / 2, 4096, 2 * width - 2);
    KvPaluSettings values = with_ranks(a->n_kv_heads / 2, 2 * width - 2, 4096);
    KvPaluSettings thin = with_ranks(a->n_kv_heads / 2, width, width);
    double of_keys = agreement_of(both[m], &keys, 17).divergence_sum;
    double of_values = agreement_of(both[m], &values, 17).divergence_sum;
    double of_both = agreement_of(both[m], &thin, 17).divergence_sum;
    g_assert_cmpfloat(of_keys, >, 0.0);
    g_assert_cmpfloat(of_keys, <, 0.2 * of_both);
    g_assert_cmpfloat(of_values, >, 0.0);
    g_assert_cmpfloat(of_values, <, 0.2 * of_both);
  }
}

static void test_a_lower_rank_agrees_less(void) {
  KvPaluSettings more = with_ranks(2, 28, 30), less = with_ranks(2, 8, 8);
  double of_more = agreement_of(&llama, &more, PROMPT).divergence_sum;
  g_assert_cmpfloat(of_more, >, 0.0);
  g_assert_cmpfloat(agreement_of(&llama, &less, PROMPT).divergence_sum, >, of_more);
}

static void test_chunks_change_nothing(void) {
  double whole = agreement_of(&llama, &defaults, PROMPT).divergence_sum;
  g_assert_cmpfloat(whole, >, 0.0);
  g_assert_cmpfloat(agreement_of(&llama, &defaults, 7).divergence_sum, ==, whole);
  g_assert_cmpfloat(agreement_of(&llama, &defaults, 1).divergence_sum, ==, whole);
}

/* --- settings -------------------------------------------------------------------------------- */

static void test_ranks_follow_the_plan(void) {
  const KvAttention a = {.kind = KV_ATTENTION_FULL,
                         .n_heads = 32,
                         .n_kv_heads = 8,
                         .head_dim = 128,
                         .value_head_dim = 128};
  KvPaluSettings s = defaults;
  KvHostRanks r;
  s.rank_rounding = 32;
  g_assert_true(kv_host_low_rank_ranks(&r, &s, &a, 0, 32));
  g_assert_cmpuint(r.groups, ==, 2);
  g_assert_cmpuint(r.heads, ==, 4);
  g_assert_cmpuint(r.key_rank, ==, 128);
  g_assert_cmpuint(r.value_rank, ==, 384);
  s.rank_spread = 0.5;
  g_assert_true(kv_host_low_rank_ranks(&r, &s, &a, 16, 33)); /* the first 17 keep more */
  g_assert_cmpuint(r.value_rank, ==, 512);
  g_assert_true(kv_host_low_rank_ranks(&r, &s, &a, 17, 33));
  g_assert_cmpuint(r.value_rank, ==, 192);
  s.rank_k = s.rank_v = 65536;
  g_assert_false(kv_host_low_rank_ranks(&r, &s, &a, 0, 32));
}

static void check_refused(const char *use, const KvModel *model, const char *expected) {
  const KvEngineConfig engine = {.block_tokens = 16, .prefix_caching = TRUE};
  check_stack(use, model, KV_DTYPE_BF16, &engine, expected);
}

static void test_what_is_refused(void) {
  check_refused("palu", &llama, NULL);
  check_refused("palu", &mixed, "expected full attention in every layer");
  check_refused("palu:bits=4", &llama, "expected bits=16");
  check_refused("palu:impl=released", &llama, "expected impl=ideal");
  check_refused("palu,snapkv", &llama, "expected one of them alone");
  check_refused("palu:group_size=3", &opt, "expected a divisor");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/low-rank/orthonormal", test_a_basis_is_orthonormal);
  g_test_add_func("/reference/low-rank/span", test_a_basis_finds_the_span);
  g_test_add_func("/reference/low-rank/full", test_full_ranks_change_nothing);
  g_test_add_func("/reference/low-rank/same-model", test_the_factors_compute_the_same_model);
  g_test_add_func("/reference/low-rank/order", test_a_lower_rank_agrees_less);
  g_test_add_func("/reference/low-rank/chunks", test_chunks_change_nothing);
  g_test_add_func("/reference/low-rank/ranks", test_ranks_follow_the_plan);
  g_test_add_func("/reference/low-rank/refused", test_what_is_refused);
  return g_test_run();
}
