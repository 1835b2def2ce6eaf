#include "models/hardware/hardware.h"

#include <string.h>

#include "models/hardware/read.h"
#include "sim/base/error.h"
#include "sim/base/names.h"

static gpointer read_device(KvJson *json, json_t *object) {
  return kv_device_read(json, object);
}

static gpointer read_link(KvJson *json, json_t *object) {
  return kv_link_read(json, object);
}

static gpointer read_storage(KvJson *json, json_t *object) {
  return kv_storage_read(json, object);
}

static void release_device(gpointer device) {
  kv_device_free(device);
}

static void release_link(gpointer link) {
  kv_link_free(link);
}

static void release_storage(gpointer storage) {
  kv_storage_free(storage);
}

const KvHardwareKind kv_device_kind = {"device", "devices", kv_device_catalogue, read_device,
                                       release_device};
const KvHardwareKind kv_link_kind = {"link", "links", kv_link_catalogue, read_link, release_link};
const KvHardwareKind kv_storage_kind = {"storage", "storage", kv_storage_catalogue, read_storage,
                                        release_storage};

static gpointer load_file(const KvHardwareKind *kind, const char *path, GError **error) {
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return NULL;
  gpointer thing = kind->read(json, kv_json_root(json));
  if (kv_json_finish(json, error))
    return thing;
  kind->release(thing);
  return NULL;
}

gpointer kv_hardware_load(const KvHardwareKind *kind, const char *name, GError **error) {
  const KvCatalogueEntry *entry = kv_catalogue_find(kind->catalogue(), name);
  if (entry)
    return kind->read(entry->document, entry->object);
  if (g_str_has_suffix(name, ".json") || g_file_test(name, G_FILE_TEST_EXISTS))
    return load_file(kind, name, error);
  g_autofree char *unknown = kv_names_unknown(kind->kind, name, kind->catalogue()->ids);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s (see `kvsim list %s`, or name a JSON file)",
              unknown, kind->list);
  return NULL;
}

gpointer kv_hardware_member(const KvHardwareKind *kind, KvJson *json, json_t *object,
                            const char *key) {
  json_t *value = json_object_get(object, key);
  if (!value || json_is_object(value))
    return value ? kind->read(json, value) : NULL;
  const char *name = kv_json_string(json, object, key, NULL, FALSE);
  const KvCatalogueEntry *entry = kv_catalogue_find(kind->catalogue(), name);
  if (entry)
    return kind->read(entry->document, entry->object);
  if (!g_str_has_suffix(name, ".json")) {
    g_autofree char *unknown = kv_names_unknown(kind->kind, name, kind->catalogue()->ids);
    kv_json_fail(json, object, key,
                 "%s (see `kvsim list %s`), expected an id, a JSON file or an object", unknown,
                 kind->list);
    return NULL;
  }
  g_autofree char *folder = g_path_get_dirname(kv_json_name(json));
  gboolean as_it_is = g_path_is_absolute(name) || strcmp(folder, ".") == 0;
  g_autofree char *path = as_it_is ? g_strdup(name) : g_build_filename(folder, name, NULL);
  g_autoptr(GError) problem = NULL;
  gpointer thing = load_file(kind, path, &problem);
  if (!thing)
    kv_json_fail(json, object, key, "'%s' is of no use: %s", key, problem->message);
  return thing;
}

const KvTechniqueTimes *kv_device_technique(const KvDevice *device, const char *id) {
  for (guint i = 0; i < device->n_techniques; i++)
    if (strcmp(device->techniques[i].id, id) == 0)
      return &device->techniques[i];
  return NULL;
}

void kv_device_take_times(KvDevice *device, const KvDevice *from) {
  memcpy(device->efficiency, from->efficiency, sizeof device->efficiency);
  memcpy(device->techniques, from->techniques, sizeof device->techniques);
  device->n_techniques = from->n_techniques;
  device->launch_seconds = from->launch_seconds;
  device->graph_node_seconds = from->graph_node_seconds;
  device->gap_seconds = from->gap_seconds;
  device->stream_gap_seconds = from->stream_gap_seconds;
  device->flop_joules = from->flop_joules;
  device->byte_joules = from->byte_joules;
}

KvDevice *kv_device_load(const char *name, GError **error) {
  return kv_hardware_load(&kv_device_kind, name, error);
}

KvLink *kv_link_load(const char *name, GError **error) {
  return kv_hardware_load(&kv_link_kind, name, error);
}

KvStorage *kv_storage_load(const char *name, GError **error) {
  return kv_hardware_load(&kv_storage_kind, name, error);
}

void kv_device_free(KvDevice *device) {
  if (!device)
    return;
  char *texts[] = {device->id,           device->name,        device->vendor,
                   device->architecture, device->source,      device->link,
                   device->host_link,    device->host_memory, device->price_source,
                   device->power_source};
  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_free(device);
}

void kv_link_free(KvLink *link) {
  if (!link)
    return;
  g_free(link->id);
  g_free(link->name);
  g_free(link->source);
  g_free(link);
}

void kv_storage_free(KvStorage *storage) {
  if (!storage)
    return;
  g_free(storage->id);
  g_free(storage->name);
  g_free(storage->source);
  g_free(storage);
}

const char *const *kv_device_ids(void) {
  return kv_device_catalogue()->ids;
}

const char *const *kv_link_ids(void) {
  return kv_link_catalogue()->ids;
}

const char *const *kv_storage_ids(void) {
  return kv_storage_catalogue()->ids;
}

const char *const *kv_other_hardware_ids(void) {
  return kv_other_catalogue()->ids;
}

json_t *kv_hardware_document(const char *id) {
  const KvCatalogue *const catalogues[] = {kv_device_catalogue(), kv_link_catalogue(),
                                           kv_storage_catalogue(), kv_platform_catalogue(),
                                           kv_other_catalogue()};
  if (strcmp(id, "economics") == 0)
    return json_incref(kv_json_root(kv_hardware_economics()));
  if (strcmp(id, "defaults") == 0)
    return json_incref(kv_json_root(kv_hardware_defaults()));
  for (guint i = 0; i < G_N_ELEMENTS(catalogues); i++) {
    const KvCatalogueEntry *entry = kv_catalogue_find(catalogues[i], id);
    if (entry)
      return json_incref(entry->object);
  }
  return NULL;
}
