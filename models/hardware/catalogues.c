#include "models/hardware/read.h"

/* Each catalogue is opened at its first use and kept. */
#define CATALOGUE(function, prefix, entries_key)                                                   \
  const KvCatalogue *function(void) {                                                              \
    static KvCatalogue *opened;                                                                    \
    if (g_once_init_enter(&opened))                                                                \
      g_once_init_leave(&opened, kv_catalogue_open(prefix, entries_key));                          \
    return opened;                                                                                 \
  }

CATALOGUE(kv_device_catalogue, "/kvsim/hardware/devices/", "devices")
CATALOGUE(kv_link_catalogue, "/kvsim/hardware/links.json", "links")
CATALOGUE(kv_storage_catalogue, "/kvsim/hardware/storage.json", "storage")
CATALOGUE(kv_other_catalogue, "/kvsim/hardware/other.json", "other")
CATALOGUE(kv_platform_catalogue, "/kvsim/hardware/platforms.json", "platforms")

static KvJson *kept_document(KvJson **kept, const char *path) {
  if (g_once_init_enter(kept))
    g_once_init_leave(kept, kv_catalogue_document(path));
  return *kept;
}

KvJson *kv_hardware_defaults(void) {
  static KvJson *kept;
  return kept_document(&kept, "/kvsim/hardware/defaults.json");
}

KvJson *kv_hardware_economics(void) {
  static KvJson *kept;
  return kept_document(&kept, "/kvsim/hardware/economics.json");
}
