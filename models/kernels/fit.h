/* Fitting a device's efficiencies to measured times.
 *
 * Robust least squares on log(predicted / measured): a pseudo-Huber loss, so that a kernel badly
 * chosen by a library counts once and not squared. Minimized by Levenberg and Marquardt's method
 * (Marquardt, 1963) over the logarithms of all parameters together, because whole steps tell only
 * sums of them. Deterministic.
 */
#ifndef KV_MODELS_KERNELS_FIT_H
#define KV_MODELS_KERNELS_FIT_H

#include "models/kernels/observation.h"

typedef struct {
  guint n;
  double median, p95,
      bias; /* of |predicted/measured - 1|; bias: median of predicted/measured - 1 */
} KvResidual;

/* Fit the parameters of `dtype` that `observations` (of KvObservation) tell anything about; the
 * rest of `device` and `measuring` stays. At most `rows_per_kind` rows of a kind are used, evenly
 * over the table. */
void kv_fit(KvDevice *device, KvMeasuring *measuring, const GArray *observations, KvDtype dtype,
            guint rows_per_kind);

/* Residuals of the rows of `kind` and `dtype` that take at least `shortest_seconds`. */
KvResidual kv_fit_residual(const KvDevice *device, const KvMeasuring *measuring,
                           const GArray *observations, KvObserved kind, KvDtype dtype,
                           double shortest_seconds);

/* Rows of even (`odd` FALSE) or odd place among those of their kind, newly allocated: the two
 * halves of a cross-validation. */
GArray *kv_fit_half(const GArray *observations, gboolean odd);

/* Where a fit starts when a device says nothing. */
void kv_fit_start(KvDevice *device, KvMeasuring *measuring);

#endif
