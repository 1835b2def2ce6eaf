/* Random numbers that are the same for the same seed: xoshiro256** seeded by splitmix64, and the
 * distributions that load generation needs. Words, units and whole numbers are the same on every
 * machine; the others go through the C library's log, cos, exp and pow, whose last bit may differ
 * between libraries and processors. Sources: Blackman & Vigna, "Scrambled linear pseudorandom
 * number generators" (2021); Marsaglia & Tsang, "A simple method for generating gamma variables"
 * (2000). */
#ifndef KV_SIM_BASE_RANDOM_H
#define KV_SIM_BASE_RANDOM_H

#include <glib.h>

typedef struct {
  guint64 state[4];
} KvRandom;

/* Start the stream `stream` of `seed`; streams of one seed are independent. */
void kv_random_seed(KvRandom *random, guint64 seed, guint64 stream);
guint64 kv_random_u64(KvRandom *random);
/* Uniform in [0, 1), and in (0, 1]. */
double kv_random_unit(KvRandom *random);
double kv_random_unit_positive(KvRandom *random);
/* Uniform whole number in [low, high]. */
gint64 kv_random_integer(KvRandom *random, gint64 low, gint64 high);
double kv_random_normal(KvRandom *random);
/* Mean 1. */
double kv_random_exponential(KvRandom *random);
/* Mean shape * scale; shape > 0. */
double kv_random_gamma(KvRandom *random, double shape, double scale);
double kv_random_weibull(KvRandom *random, double shape, double scale);
/* exp(N(mu, sigma)). */
double kv_random_lognormal(KvRandom *random, double mu, double sigma);

/* One well-mixed word from one word (splitmix64's finalizer); chain it to hash sequences. */
guint64 kv_random_mix(guint64 x);

#endif
