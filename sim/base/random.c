#include "sim/base/random.h"

#include <math.h>

guint64 kv_random_mix(guint64 x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void kv_random_seed(KvRandom *random, guint64 seed, guint64 stream) {
  guint64 x = seed ^ kv_random_mix(stream);
  for (guint i = 0; i < 4; i++)
    random->state[i] = x = kv_random_mix(x + i);
}

static guint64 rotate_left(guint64 x, int k) {
  return (x << k) | (x >> (64 - k));
}

guint64 kv_random_u64(KvRandom *random) {
  guint64 *s = random->state;
  guint64 result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate_left(s[3], 45);
  return result;
}

double kv_random_unit(KvRandom *random) {
  return (double)(kv_random_u64(random) >> 11) * 0x1p-53;
}

double kv_random_unit_positive(KvRandom *random) {
  return (double)((kv_random_u64(random) >> 11) + 1) * 0x1p-53;
}

gint64 kv_random_integer(KvRandom *random, gint64 low, gint64 high) {
  g_return_val_if_fail(low <= high, low);
  /* Unsigned throughout: the distance from low to high can be as large as 2^64 - 1. */
  guint64 span = (guint64)high - (guint64)low + 1, word = kv_random_u64(random);
  guint64 offset = span ? (guint64)(((__uint128_t)word * span) >> 64) : word;
  return (gint64)((guint64)low + offset);
}

double kv_random_normal(KvRandom *random) {
  /* Box-Muller, one of the pair: no state beside the generator's. */
  double r = sqrt(-2.0 * log(kv_random_unit_positive(random)));
  return r * cos(2.0 * G_PI * kv_random_unit(random));
}

double kv_random_exponential(KvRandom *random) {
  return -log(kv_random_unit_positive(random));
}

double kv_random_gamma(KvRandom *random, double shape, double scale) {
  g_return_val_if_fail(shape > 0.0 && isfinite(shape), 0.0);
  if (shape < 1.0) { /* Marsaglia & Tsang, section 6 */
    double larger = kv_random_gamma(random, shape + 1.0, scale);
    return larger * pow(kv_random_unit_positive(random), 1.0 / shape);
  }
  double d = shape - 1.0 / 3.0, c = 1.0 / sqrt(9.0 * d);
  for (;;) {
    double x = kv_random_normal(random), v = 1.0 + c * x;
    if (v <= 0.0)
      continue;
    v = v * v * v;
    if (log(kv_random_unit_positive(random)) < 0.5 * x * x + d - d * v + d * log(v))
      return d * v * scale;
  }
}

double kv_random_weibull(KvRandom *random, double shape, double scale) {
  g_return_val_if_fail(shape > 0.0, 0.0);
  return scale * pow(kv_random_exponential(random), 1.0 / shape);
}

double kv_random_lognormal(KvRandom *random, double mu, double sigma) {
  return exp(mu + sigma * kv_random_normal(random));
}
