#include <math.h>

#include "models/kernels/kernels.h"

const char *const kv_bound_names[] = {"fixed", "compute", "memory", "link", NULL};
G_STATIC_ASSERT(G_N_ELEMENTS(kv_bound_names) == KV_N_BOUNDS + 1);

double kv_smooth_max(double a, double b, double p) {
  double high = MAX(a, b), low = MIN(a, b);
  if (low <= 0 || p >= 64)
    return high;
  double ratio = low / high;
  if (p == 1)
    return a + b;
  if (p == 2)
    return high * sqrt(1 + ratio * ratio);
  if (p == 4)
    return high * sqrt(sqrt(1 + ratio * ratio * ratio * ratio));
  double power = pow(ratio, p);
  /* Below half an ulp of 1 the sum rounds to 1. */
  return power < 1e-16 ? high : high * pow(1 + power, 1 / p);
}
