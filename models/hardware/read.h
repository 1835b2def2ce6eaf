/* The written form of devices, links, storage and platforms. Internal to models/hardware/.
 *
 * A reader takes one object of a parsed document, complains through the document, and returns a
 * value that is complete enough to be freed whatever was wrong; the caller checks with
 * kv_json_finish(). */
#ifndef KV_MODELS_HARDWARE_READ_H
#define KV_MODELS_HARDWARE_READ_H

#include "models/catalogue.h"
#include "models/hardware/hardware.h"
#include "sim/base/json.h"

KvDevice *kv_device_read(KvJson *json, json_t *object);
KvLink *kv_link_read(KvJson *json, json_t *object);
KvStorage *kv_storage_read(KvJson *json, json_t *object);

/* A platform, or a device in its usual server. NULL only after a complaint. */
KvPlatform *kv_platform_read(KvJson *json, json_t *object);

/* `n_nodes` nodes of `n_gpus` GPUs `device` (taken over) in the usual server that docs/hardware.md
 * describes. */
KvPlatform *kv_platform_usual(KvDevice *device, guint n_gpus, guint n_nodes, const char *id);

/* The documents of stated rules: defaults.json and economics.json. */
KvJson *kv_hardware_defaults(void);
KvJson *kv_hardware_economics(void);

/* What is alike for devices, links and storage: a catalogue, a reader and a free function. */
typedef struct {
  const char *kind, *list; /* as messages name one, and as `kvsim list` names all */
  const KvCatalogue *(*catalogue)(void);
  gpointer (*read)(KvJson *json, json_t *object);
  void (*release)(gpointer thing);
} KvHardwareKind;

extern const KvHardwareKind kv_device_kind, kv_link_kind, kv_storage_kind;

/* The thing called `name` in the catalogue, or that the JSON file `name` describes. */
gpointer kv_hardware_load(const KvHardwareKind *kind, const char *name, GError **error);

/* The thing that the member `key` of `object` gives: a catalogue id, a path relative to the
 * document, or an object. NULL if the member is absent, or after a complaint. */
gpointer kv_hardware_member(const KvHardwareKind *kind, KvJson *json, json_t *object,
                            const char *key);

/* The catalogues, opened at their first use. */
const KvCatalogue *kv_device_catalogue(void);
const KvCatalogue *kv_link_catalogue(void);
const KvCatalogue *kv_storage_catalogue(void);
const KvCatalogue *kv_platform_catalogue(void);
const KvCatalogue *kv_other_catalogue(void);

#endif
