#include <math.h>

#include "models/kernels/kernels.h"

/* Energy of switching goes with the square of the voltage, which over the range that power limits
 * use goes with the clock: readings of an H200 under prompts, at 1485 to 1815 of 1980 MHz, come to
 * the same energy of a FLOP within 6 % (median absolute deviation) so. Reads from memory do not
 * depend on the clock of the multiprocessors. The clock is then the one at which
 *
 *     idle + (flop_joules clock^2 + byte_joules) / seconds(clock) = TDP
 *
 * where what the multiprocessors bound takes 1 / clock as long. */
double kv_kernel_power_clock(const KvDevice *device, const KvPowerLoad *load) {
  const double lowest = 0.3;
  double budget = device->tdp_watts * (1 - device->idle_watts_share);
  if (device->flop_joules <= 0 || budget <= 0 || load->seconds <= 0)
    return 1;
  double low = lowest, high = 1;
  for (guint i = 0; i < 40; i++) {
    double clock = i ? (low + high) / 2 : 1;
    double seconds = load->seconds + load->clocked_seconds * (1 / clock - 1);
    gboolean fits = load->flop_joules * clock * clock + load->byte_joules <= budget * seconds;
    if (fits && clock == 1)
      return 1;
    *(fits ? &low : &high) = clock;
  }
  return low;
}
