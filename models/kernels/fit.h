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
  double low_log_error, high_log_error; /* percentiles 5 and 95 of log(measured/predicted) */
  double coverage;                      /* of that interval on rows that it was not taken from */
} KvResidual;

/* Fit the parameters of `dtype` that `observations` (of KvObservation) tell anything about; the
 * rest of `device` and `measuring` stays. At most `rows_per_kind` rows of a kind are used, evenly
 * over the table. */
void kv_fit(KvDevice *device, KvMeasuring *measuring, const GArray *observations, KvDtype dtype,
            guint rows_per_kind);

/* How far `predicted` (a value a row) is from the rows of `kind` and `dtype` that take at least
 * `shortest_seconds`. */
KvResidual kv_fit_residual(const GArray *observations, const double *predicted, KvObserved kind,
                           KvDtype dtype, double shortest_seconds);

/* Split the rows into halves by shape family (by place where there are too few families), fit to
 * one and score the other, then the reverse: residual[kind] of all rows of at least
 * `shortest_seconds`, none scored by a fit that saw it. If `predicted` is not NULL, predicted[i]
 * becomes that prediction of row i (0 for rows of another type). */
void kv_fit_cross_validate(const KvDevice *device, const GArray *observations, KvDtype dtype,
                           guint rows_per_kind, double shortest_seconds,
                           KvResidual residual[KV_N_OBSERVED], double *predicted);

/* Usual values for whatever `device` and `measuring` leave at 0; a fit starts from them too. What a
 * fit of steps put into a device, and kernels do not show, becomes 0. */
void kv_fit_start(KvDevice *device, KvMeasuring *measuring);

#endif
