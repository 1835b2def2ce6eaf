/* Any bytes as a device or platform file: an error or a platform that is complete, with finite
 * rates. */
#include <math.h>
#include <stdint.h>

#include "models/hardware/hardware.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvPlatform) p = kv_platform_parse("fuzz.json", (const char *)bytes, size, &error);
  g_assert((p == NULL) == (error != NULL));
  if (!p)
    return 0;
  g_assert(p->n_gpus_per_node > 0 && p->n_nodes > 0);
  g_assert(p->host_link && p->host_memory && p->ssd);
  g_assert((p->gpu_link != NULL) || p->n_gpus_per_node == 1);
  g_assert(p->device->memory_Bps > 0 && isfinite(p->device->memory_Bps));
  g_assert(p->host_link->peak_Bps > 0 && isfinite(p->host_link->peak_Bps));
  g_assert(p->ssd->read_Bps > 0 && isfinite(p->ssd->read_Bps));
  return 0;
}
