#include <math.h>

#include "models/kernels/kernels.h"

void kv_time_interval_add(KvTimeInterval *interval, const KvDevice *device, KvKernelFamily family,
                          KvDtype dtype, double seconds) {
  const KvEfficiency *efficiency = &device->efficiency[family][dtype];
  interval->seconds += seconds;
  interval->below[family] += seconds * -expm1(efficiency->low_log_error);
  interval->above[family] += seconds * expm1(efficiency->high_log_error);
}

static double root_of_squares(const double *values) {
  double sum = 0;
  for (guint k = 0; k < KV_N_KERNELS; k++)
    sum += values[k] * values[k];
  return sqrt(sum);
}

double kv_time_interval_low(const KvTimeInterval *interval) {
  return interval->seconds - root_of_squares(interval->below);
}

double kv_time_interval_high(const KvTimeInterval *interval) {
  return interval->seconds + root_of_squares(interval->above);
}
