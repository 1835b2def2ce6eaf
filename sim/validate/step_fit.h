/* What only whole steps tell of a device: the gaps between kernels of different kinds, what a
 * stream of weights loses at its start (which repeats of a product hide behind each other's ends),
 * and what techniques' own kernels take. Fitted to step logs of the reference engine, after the
 * kernels themselves were fitted to times of theirs. */
#ifndef KV_SIM_VALIDATE_STEP_FIT_H
#define KV_SIM_VALIDATE_STEP_FIT_H

#include "models/hardware/hardware.h"
#include "sim/validate/step_log.h"

/* Fit `logs` (of KvStepLog), and append a row for each fit to `report`. Logs without a technique
 * fit the device's gaps and the ramps of its bf16 products; those with one
 * (or an fp8 cache, layers that keep a state or latents) the device's times of it, beside what the
 * others gave; those of mixtures of experts their fixed_seconds and bandwidth_share. */
gboolean kv_step_fit(KvDevice *device, GPtrArray *logs, GString *report, GError **error);

#endif
