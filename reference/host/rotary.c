/* Rotary position embedding: Su et al., "RoFormer" (2021), equation 34, in the half-split layout of
 * Llama. */
#include "reference/host/kernels.h"

#include <math.h>

/* The pair that makes so many turns in the original context: Peng et al., "YaRN" (2023), section
 * 3.2, solved for the dimension. */
static double pair_of_turns(double turns, guint head_dim, const KvHostRotary *rotary) {
  return head_dim * log(rotary->original / (turns * 2.0 * G_PI)) / (2.0 * log(rotary->theta));
}

/* Between the pairs of `high` and of `low` turns, rounded outwards, a ramp by index. */
static double yarn_frequency(double plain, guint pair, guint head_dim, const KvHostRotary *rotary) {
  double first = MAX(floor(pair_of_turns(rotary->high, head_dim, rotary)), 0.0);
  double last = MIN(ceil(pair_of_turns(rotary->low, head_dim, rotary)), head_dim - 1.0);
  double ramp = (pair - first) / (last > first ? last - first : 0.001);
  ramp = CLAMP(ramp, 0.0, 1.0);
  return ramp * plain / rotary->factor + (1.0 - ramp) * plain;
}

/* Of one pair of a head, radians a position. Scaling as in the `llama3` and `yarn` rope types of
 * Hugging Face's modeling_rope_utils.py. */
static double frequency(guint pair, guint head_dim, const KvHostRotary *rotary) {
  double plain = pow(rotary->theta, -2.0 * pair / head_dim);
  if (rotary->factor <= 1.0)
    return plain;
  if (rotary->yarn)
    return yarn_frequency(plain, pair, head_dim, rotary);
  double turns = rotary->original * plain / (2.0 * G_PI);
  if (turns < rotary->low)
    return plain / rotary->factor;
  if (turns > rotary->high)
    return plain;
  double kept = (turns - rotary->low) / (rotary->high - rotary->low);
  return (1.0 - kept) * plain / rotary->factor + kept * plain;
}

void kv_host_rotary_angles(float *cosine, float *sine, guint32 position, guint head_dim,
                           const KvHostRotary *rotary) {
  for (guint i = 0; i < head_dim / 2; i++) {
    double angle = position * frequency(i, head_dim, rotary);
    cosine[i] = (float)(cos(angle) * rotary->magnitude);
    sine[i] = (float)(sin(angle) * rotary->magnitude);
  }
}

void kv_host_rotary(float *x, const float *cosine, const float *sine, guint n_heads,
                    guint head_dim) {
  guint half = head_dim / 2;
  for (guint h = 0; h < n_heads; h++, x += head_dim)
    for (guint i = 0; i < half; i++) {
      float a = x[i], b = x[i + half];
      x[i] = a * cosine[i] - b * sine[i];
      x[i + half] = b * cosine[i] + a * sine[i];
    }
}
