/* The GPU's clocks, power and temperature while something runs on it, by NVML.
 *
 * NVML (libnvidia-ml.so.1) comes with the driver and is opened when it is needed; where it is
 * absent, or does not tell something, that is left out. A thread reads it four times a second. The
 * GPU is NVML's first, or the one that CUDA_VISIBLE_DEVICES names first.
 */
#ifndef KV_REFERENCE_CUDA_MONITOR_H
#define KV_REFERENCE_CUDA_MONITOR_H

#include <glib.h>
#include <jansson.h>

typedef struct KvGpuMonitor KvGpuMonitor;

/* Begin to watch; NULL where there is no NVML or no GPU. */
KvGpuMonitor *kv_gpu_monitor_start(void);

/* Stop, and give what was seen: name, driver and, of sm_clock_MHz, memory_clock_MHz, power_watts
 * and temperature_C, the least, the mean and the most. Takes NULL, and then gives NULL. */
json_t *kv_gpu_monitor_stop(KvGpuMonitor *monitor);

#endif
