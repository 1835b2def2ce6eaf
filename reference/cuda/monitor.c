#include "reference/cuda/monitor.h"

#include <dlfcn.h>
#include <math.h>

enum { EVERY_MICROSECONDS = 250000, TEXT_BYTES = 96 };

/* NVML's calls as nvml.h declares them: 0 is success, a device is a pointer. */
typedef struct {
  int (*init)(void), (*shutdown)(void);
  int (*by_index)(unsigned index, void **device);
  int (*by_uuid)(const char *uuid, void **device);
  int (*name)(void *device, char *text, unsigned length);
  int (*driver)(char *text, unsigned length);
  int (*clock)(void *device, int type, unsigned *megahertz);
  int (*power)(void *device, unsigned *milliwatts);
  int (*temperature)(void *device, int sensor, unsigned *celsius);
} Nvml;

enum { CLOCK_SM = 1, CLOCK_MEMORY = 2, SENSOR_GPU = 0 };

typedef enum { READ_SM_CLOCK, READ_MEMORY_CLOCK, READ_POWER, READ_TEMPERATURE, N_READINGS } Reading;

static const char *const reading_names[] = {"sm_clock_MHz", "memory_clock_MHz", "power_watts",
                                            "temperature_C"};

typedef struct {
  double least, sum, most;
  guint n;
} Seen;

struct KvGpuMonitor {
  void *library, *device;
  Nvml nvml;
  char name[TEXT_BYTES], driver[TEXT_BYTES];
  GThread *thread;
  GMutex lock;
  GCond stop;
  gboolean stopping;
  Seen seen[N_READINGS];
};

static void bind(KvGpuMonitor *m) {
  const struct {
    const char *symbol;
    void *call;
  } calls[] = {{"nvmlInit_v2", &m->nvml.init},
               {"nvmlShutdown", &m->nvml.shutdown},
               {"nvmlDeviceGetHandleByIndex_v2", &m->nvml.by_index},
               {"nvmlDeviceGetHandleByUUID", &m->nvml.by_uuid},
               {"nvmlDeviceGetName", &m->nvml.name},
               {"nvmlSystemGetDriverVersion", &m->nvml.driver},
               {"nvmlDeviceGetClockInfo", &m->nvml.clock},
               {"nvmlDeviceGetPowerUsage", &m->nvml.power},
               {"nvmlDeviceGetTemperature", &m->nvml.temperature}};
  for (guint i = 0; i < G_N_ELEMENTS(calls); i++)
    *(void **)calls[i].call = dlsym(m->library, calls[i].symbol);
}

/* The GPU that CUDA sees first. */
static gboolean find_device(KvGpuMonitor *m) {
  const char *visible = g_getenv("CUDA_VISIBLE_DEVICES");
  if (visible && g_str_has_prefix(visible, "GPU-") && m->nvml.by_uuid) {
    g_autofree char *uuid = g_strdelimit(g_strdup(visible), ",", '\0');
    return m->nvml.by_uuid(uuid, &m->device) == 0;
  }
  guint64 index = visible ? g_ascii_strtoull(visible, NULL, 10) : 0;
  return m->nvml.by_index((unsigned)index, &m->device) == 0;
}

static void note(Seen *seen, double value) {
  seen->least = seen->n ? MIN(seen->least, value) : value;
  seen->most = seen->n ? MAX(seen->most, value) : value;
  seen->sum += value;
  seen->n++;
}

static void read_once(KvGpuMonitor *m) {
  unsigned value;
  if (m->nvml.clock && m->nvml.clock(m->device, CLOCK_SM, &value) == 0)
    note(&m->seen[READ_SM_CLOCK], value);
  if (m->nvml.clock && m->nvml.clock(m->device, CLOCK_MEMORY, &value) == 0)
    note(&m->seen[READ_MEMORY_CLOCK], value);
  if (m->nvml.power && m->nvml.power(m->device, &value) == 0)
    note(&m->seen[READ_POWER], 1e-3 * value);
  if (m->nvml.temperature && m->nvml.temperature(m->device, SENSOR_GPU, &value) == 0)
    note(&m->seen[READ_TEMPERATURE], value);
}

static gpointer watch(gpointer user) {
  KvGpuMonitor *m = user;
  g_mutex_lock(&m->lock);
  while (!m->stopping) {
    gint64 until = g_get_monotonic_time() + EVERY_MICROSECONDS;
    read_once(m);
    while (!m->stopping && g_cond_wait_until(&m->stop, &m->lock, until))
      continue;
  }
  g_mutex_unlock(&m->lock);
  return NULL;
}

KvGpuMonitor *kv_gpu_monitor_start(void) {
  void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return NULL;
  KvGpuMonitor *m = g_new0(KvGpuMonitor, 1);
  m->library = library;
  bind(m);
  gboolean up = m->nvml.init && m->nvml.shutdown && m->nvml.by_index && m->nvml.init() == 0;
  if (!up || !find_device(m)) {
    if (up)
      m->nvml.shutdown();
    dlclose(library);
    g_free(m);
    return NULL;
  }
  if (m->nvml.name)
    m->nvml.name(m->device, m->name, TEXT_BYTES);
  if (m->nvml.driver)
    m->nvml.driver(m->driver, TEXT_BYTES);
  g_mutex_init(&m->lock);
  g_cond_init(&m->stop);
  m->thread = g_thread_new("gpu-monitor", watch, m);
  return m;
}

json_t *kv_gpu_monitor_stop(KvGpuMonitor *m) {
  if (!m)
    return NULL;
  g_mutex_lock(&m->lock);
  m->stopping = TRUE;
  g_cond_signal(&m->stop);
  g_mutex_unlock(&m->lock);
  g_thread_join(m->thread);
  json_t *gpu = json_object();
  if (*m->name)
    json_object_set_new(gpu, "name", json_string(m->name));
  if (*m->driver)
    json_object_set_new(gpu, "driver", json_string(m->driver));
  for (guint r = 0; r < N_READINGS; r++) {
    const Seen *seen = &m->seen[r];
    if (seen->n > 0)
      json_object_set_new(
          gpu, reading_names[r],
          json_pack("[f,f,f]", seen->least, round(10.0 * seen->sum / seen->n) / 10.0, seen->most));
  }
  m->nvml.shutdown();
  dlclose(m->library);
  g_mutex_clear(&m->lock);
  g_cond_clear(&m->stop);
  g_free(m);
  return gpu;
}
