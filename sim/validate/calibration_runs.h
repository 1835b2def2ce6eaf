/* Short runs of the reference engine that a device is calibrated with: a model that is none of the
 * published ones, as it is and under each technique, and a recurrent one, each on made traces of
 * few sequences at a time, of many and of long ones. */
#ifndef KV_SIM_VALIDATE_CALIBRATION_RUNS_H
#define KV_SIM_VALIDATE_CALIBRATION_RUNS_H

#include "sim/validate/step_log.h"

enum { KV_CALIBRATION_LOADS = 3 }; /* few sequences, many, long ones */

/* Write the trace of a load, which is the same every time. */
gboolean kv_calibration_runs_write_trace(const char *path, guint load, GError **error);

/* Serve them by `executor` ("cuda") on this machine, which `platform` describes, and write each
 * run's steps into `folder`, which must exist, as NAME.csv. */
gboolean kv_calibration_runs_measure(const char *executor, const char *platform, const char *folder,
                                     GError **error);

/* Append every step log of the folder to `logs`, in the order of their names; at least one. */
gboolean kv_calibration_runs_read(const char *folder, const char *platform, GPtrArray *logs,
                                  GError **error);

#endif
