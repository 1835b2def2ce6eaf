/* sim/base/random.h: the moments of each distribution, and the same numbers for the same seed. */
#include "sim/base/random.h"

#include <math.h>

enum { DRAWS = 200000 };

typedef double (*Draw)(KvRandom *random, double a, double b);

static double unit(KvRandom *random, double a, double b) {
  return kv_random_unit(random);
}

static double unit_positive(KvRandom *random, double a, double b) {
  return kv_random_unit_positive(random);
}

static double integer(KvRandom *random, double a, double b) {
  return (double)kv_random_integer(random, (gint64)a, (gint64)b);
}

static double normal(KvRandom *random, double a, double b) {
  return kv_random_normal(random);
}

static double exponential(KvRandom *random, double a, double b) {
  return kv_random_exponential(random);
}

/* A distribution with its parameters, and its mean, variance and skewness in closed form. */
static const struct {
  const char *name;
  Draw draw;
  double a, b, mean, variance, skewness;
} distributions[] = {
    {"unit", unit, 0, 0, 0.5, 1.0 / 12, 0},
    {"unit_positive", unit_positive, 0, 0, 0.5, 1.0 / 12, 0},
    {"integer", integer, -3, 6, 1.5, 99.0 / 12, 0},
    {"normal", normal, 0, 0, 0, 1, 0},
    {"exponential", exponential, 0, 0, 1, 1, 2},
    /* mean kθ, variance kθ², skewness 2/√k */
    {"gamma(4, 0.5)", kv_random_gamma, 4, 0.5, 2, 1, 1},
    {"gamma(1, 3)", kv_random_gamma, 1, 3, 3, 9, 2},
    {"gamma(0.25, 2)", kv_random_gamma, 0.25, 2, 0.5, 1, 4},
    /* mean λΓ(1+1/k), variance λ²(Γ(1+2/k) − Γ(1+1/k)²) */
    {"weibull(1, 2)", kv_random_weibull, 1, 2, 2, 4, 2},
    {"weibull(2, 1)", kv_random_weibull, 2, 1, 0.886226925452758, 0.214601836602552,
     0.631110657818937},
    /* mean exp(μ+σ²/2), variance (exp(σ²)−1)exp(2μ+σ²), skewness (exp(σ²)+2)√(exp(σ²)−1) */
    {"lognormal(1, 0.25)", kv_random_lognormal, 1, 0.25, 2.804569356237227, 0.507288214182372,
     0.778251635797483},
};

static void moments_are_those_of_the_distribution(void) {
  for (guint d = 0; d < G_N_ELEMENTS(distributions); d++) {
    KvRandom random;
    kv_random_seed(&random, 2026, d);
    double sum = 0, squares = 0, cubes = 0, mean = distributions[d].mean;
    for (guint i = 0; i < DRAWS; i++) {
      double x = distributions[d].draw(&random, distributions[d].a, distributions[d].b) - mean;
      sum += x;
      squares += x * x;
      cubes += x * x * x;
    }
    double sd = sqrt(distributions[d].variance), skewness = distributions[d].skewness;
    g_test_message("%s", distributions[d].name);
    /* Five standard errors for the mean; the higher moments have heavier tails. */
    g_assert_cmpfloat(fabs(sum / DRAWS), <, 5 * sd / sqrt(DRAWS));
    g_assert_cmpfloat(fabs(squares / DRAWS / distributions[d].variance - 1), <, 0.04);
    g_assert_cmpfloat(fabs(cubes / DRAWS / pow(sd, 3) - skewness), <, 0.05 + 0.1 * skewness);
  }
}

static void ranges_are_kept(void) {
  KvRandom random;
  kv_random_seed(&random, 1, 0);
  gboolean seen[10] = {FALSE};
  for (guint i = 0; i < DRAWS; i++) {
    double u = kv_random_unit(&random), p = kv_random_unit_positive(&random);
    g_assert_true(u >= 0 && u < 1 && p > 0 && p <= 1);
    gint64 n = kv_random_integer(&random, -3, 6);
    g_assert_true(n >= -3 && n <= 6);
    seen[n + 3] = TRUE;
  }
  for (guint i = 0; i < G_N_ELEMENTS(seen); i++)
    g_assert_true(seen[i]);
}

static void widest_ranges_do_not_overflow(void) {
  KvRandom random;
  kv_random_seed(&random, 1, 0);
  gboolean negative = FALSE, positive = FALSE;
  for (guint i = 0; i < 100; i++) {
    gint64 any = kv_random_integer(&random, G_MININT64, G_MAXINT64);
    negative |= any < 0;
    positive |= any > 0;
    g_assert_cmpint(kv_random_integer(&random, G_MININT64, G_MAXINT64 - 1), <, G_MAXINT64);
    g_assert_cmpint(kv_random_integer(&random, G_MAXINT64, G_MAXINT64), ==, G_MAXINT64);
  }
  g_assert_true(negative && positive);
}

static void same_seed_gives_the_same(void) {
  KvRandom a, b;
  kv_random_seed(&a, 7, 3);
  kv_random_seed(&b, 7, 3);
  for (guint i = 0; i < 1000; i++) {
    g_assert_cmpuint(kv_random_u64(&a), ==, kv_random_u64(&b));
    g_assert_true(kv_random_gamma(&a, 0.5, 2) == kv_random_gamma(&b, 0.5, 2));
  }
}

static void streams_and_seeds_differ(void) {
  KvRandom one, other;
  for (guint64 k = 1; k <= 100; k++) {
    kv_random_seed(&one, 7, 0);
    kv_random_seed(&other, 7, k);
    g_assert_cmpuint(kv_random_u64(&one), !=, kv_random_u64(&other));
    kv_random_seed(&one, 7, 0);
    kv_random_seed(&other, 7 + k, 0);
    g_assert_cmpuint(kv_random_u64(&one), !=, kv_random_u64(&other));
  }
}

/* xoshiro256** from the state 1, 2, 3, 4, worked out by hand: 2*5 = 10, rotated left by 7 is 1280,
 * *9 = 11520; the update leaves s1 = 0, so 0; the next leaves s1 = 2^18 + 5: 1310745, 167775360,
 * 1509978240. splitmix64 of 0 is its published first output. */
static void words_are_those_of_the_generator(void) {
  KvRandom random = {{1, 2, 3, 4}};
  g_assert_cmpuint(kv_random_u64(&random), ==, 11520);
  g_assert_cmpuint(kv_random_u64(&random), ==, 0);
  g_assert_cmpuint(kv_random_u64(&random), ==, 1509978240);
  g_assert_cmphex(kv_random_mix(0), ==, 0xe220a8397b1dcdaf);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/random/moments-are-those-of-the-distribution",
                  moments_are_those_of_the_distribution);
  g_test_add_func("/random/ranges-are-kept", ranges_are_kept);
  g_test_add_func("/random/widest-ranges-do-not-overflow", widest_ranges_do_not_overflow);
  g_test_add_func("/random/same-seed-gives-the-same", same_seed_gives_the_same);
  g_test_add_func("/random/streams-and-seeds-differ", streams_and_seeds_differ);
  g_test_add_func("/random/words-are-those-of-the-generator", words_are_those_of_the_generator);
  return g_test_run();
}
