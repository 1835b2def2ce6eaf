/* Platforms: a number of nodes, each a number of equal GPUs in a server. What a name or a file does
 * not say about the server is that of the usual one, by the rules of catalogue/defaults.json. */
#include <math.h>
#include <string.h>

#include "models/hardware/read.h"
#include "sim/base/error.h"
#include "sim/base/names.h"

enum { MOST_GPUS = 1024, MOST_NODES = 4096 };

static const char *const platform_fields[] = {
    "id",
    "name",
    "source",
    "device",
    "gpus_per_node",
    "nodes",
    "gpu_link",
    "host_link",
    "network",
    "host_memory",
    "host_memory_GB",
    "ssd",
    "ssds_per_node",
    "csd",
    "csds_per_node",
    "cpu_TFLOPs",
    "host_watts",
    "pue",
    "electricity_usd_per_kWh",
    "carbon_g_per_kWh",
    NULL,
};

static double rule(json_t *object, const char *key) {
  return json_number_value(json_object_get(object, key));
}

static const char *rule_text(json_t *object, const char *key) {
  return json_string_value(json_object_get(object, key));
}

/* The entry of `servers` for a host link; the PCIe 4.0 server for a link that has none. */
static json_t *server_of(const char *host_link) {
  json_t *servers = json_object_get(kv_json_root(kv_hardware_defaults()), "servers");
  json_t *usual = NULL, *server;
  gsize i;
  json_array_foreach(servers, i, server) {
    const char *link = rule_text(server, "host_link");
    if (strcmp(link, host_link) == 0)
      return server;
    if (strcmp(link, "pcie4-x16") == 0)
      usual = server;
  }
  return usual;
}

static gpointer built_in(const KvHardwareKind *kind, const char *id) {
  const KvCatalogueEntry *entry = kv_catalogue_find(kind->catalogue(), id);
  return entry ? kind->read(entry->document, entry->object) : NULL;
}

static void multiply(KvStorage *storage, double n) {
  storage->capacity_bytes *= n;
  storage->read_Bps *= n;
  storage->write_Bps *= n;
  storage->read_iops *= n;
  storage->internal_Bps *= n;
  storage->internal_flops *= n;
}

static double economics(const char *key) {
  return rule(json_object_get(kv_json_root(kv_hardware_economics()), key), "value");
}

static double sockets_of(guint n_gpus) {
  json_t *rules = json_object_get(kv_json_root(kv_hardware_defaults()), "server");
  return ceil(n_gpus / rule(rules, "gpus_per_socket"));
}

/* The rate of the device's own port, on the link's behaviour; peers of a device without such ports
 * meet over PCIe. */
static void set_gpu_link(KvPlatform *p) {
  const KvDevice *device = p->device;
  if (p->n_gpus_per_node == 1 || p->gpu_link)
    return;
  p->gpu_link = built_in(&kv_link_kind, device->link ? device->link : device->host_link);
  if (!p->gpu_link)
    p->gpu_link = built_in(&kv_link_kind, "pcie4-x16");
  if (device->link_Bps > 0)
    p->gpu_link->peak_Bps = device->link_Bps;
}

/* A GPU that is sold with host memory brings its share of it; any other stands before the usual
 * server's. */
static void set_host_memory(KvPlatform *p, json_t *server) {
  json_t *rules = json_object_get(kv_json_root(kv_hardware_defaults()), "server");
  const KvDevice *device = p->device;
  guint n = p->n_gpus_per_node;
  if (device->host_memory)
    p->host_memory = built_in(&kv_storage_kind, device->host_memory);
  if (p->host_memory) {
    multiply(p->host_memory, n * device->host_memory_share);
    return;
  }
  p->host_memory = built_in(&kv_storage_kind, rule_text(server, "host_memory"));
  multiply(p->host_memory, sockets_of(n));
  if (p->host_memory->capacity_bytes > 0) /* unified memory has no second tier */
    p->host_memory->capacity_bytes =
        MAX(rule(rules, "host_memory_GB_least"), rule(rules, "host_memory_GB_per_gpu") * n) * 1e9;
}

/* Fill in what is still unset. */
static void complete(KvPlatform *p, double host_memory_GB) {
  json_t *rules = json_object_get(kv_json_root(kv_hardware_defaults()), "server");
  json_t *server = server_of(p->host_link ? p->host_link->id : p->device->host_link);
  guint n = p->n_gpus_per_node;
  set_gpu_link(p);
  if (!p->host_link) {
    p->host_link = built_in(&kv_link_kind, p->device->host_link);
    if (!p->host_link) /* a link that the reader complained about */
      p->host_link = built_in(&kv_link_kind, "pcie4-x16");
    if (p->device->host_link_Bps > 0)
      p->host_link->peak_Bps = p->device->host_link_Bps;
    if (strcmp(p->device->host_link, "unified") == 0)
      p->host_link->peak_Bps = p->device->memory_Bps;
  }
  if (p->n_nodes > 1 && !p->network)
    p->network = built_in(&kv_link_kind, rule_text(server, "network"));
  if (!p->host_memory)
    set_host_memory(p, server);
  if (host_memory_GB > 0)
    p->host_memory->capacity_bytes = host_memory_GB * 1e9;
  if (!p->ssd) {
    p->ssd = built_in(&kv_storage_kind, rule_text(server, "ssd"));
    multiply(p->ssd, n * rule(rules, "ssds_per_gpu"));
    if (p->device->drive_read_Bps > 0) {
      p->ssd->read_Bps = p->device->drive_read_Bps;
      p->ssd->write_Bps = p->device->drive_write_Bps;
      p->ssd->latency_seconds = p->device->drive_latency_seconds;
    }
  }
  if (!p->csd) /* no usual server has one: it stands in where a stack attends in storage */
    p->csd = built_in(&kv_storage_kind, rule_text(rules, "csd"));
  if (p->cpu_flops <= 0)
    p->cpu_flops = rule(server, "cpu_TFLOPs_per_socket") * 1e12 * sockets_of(n);
  if (p->host_watts <= 0)
    p->host_watts = rule(server, "host_watts_per_gpu") * n;
  if (p->pue <= 0)
    p->pue = economics("pue");
  if (p->electricity_usd_per_kWh <= 0)
    p->electricity_usd_per_kWh = economics("electricity_usd_per_kWh");
  if (p->carbon_g_per_kWh < 0)
    p->carbon_g_per_kWh = economics("carbon_g_per_kWh");
}

KvPlatform *kv_platform_usual(KvDevice *device, guint n_gpus, guint n_nodes, const char *id) {
  KvPlatform *p = g_new0(KvPlatform, 1);
  p->id = g_strdup(id);
  p->device = device;
  p->n_gpus_per_node = n_gpus;
  p->n_nodes = n_nodes;
  p->carbon_g_per_kWh = -1;
  g_autoptr(GString) name = g_string_new(NULL);
  if (n_nodes > 1)
    g_string_append_printf(name, "%u nodes of ", n_nodes);
  g_string_append_printf(name, "%u %s in a usual server", n_gpus, device->name);
  p->name = g_string_free(g_steal_pointer(&name), FALSE);
  complete(p, 0);
  return p;
}

KvPlatform *kv_platform_read(KvJson *json, json_t *object) {
  const double most = 1e9;
  if (!kv_json_has(object, "device")) { /* a device then, in its usual server */
    KvDevice *device = kv_device_read(json, object);
    return kv_platform_usual(device, 1, 1, device->id);
  }
  kv_json_only(json, object, platform_fields);
  KvPlatform *p = g_new0(KvPlatform, 1);
  p->device = kv_hardware_member(&kv_device_kind, json, object, "device");
  if (!p->device) {
    g_free(p);
    return NULL;
  }
  p->n_gpus_per_node = (guint)kv_json_integer(json, object, "gpus_per_node", 1, 1, MOST_GPUS);
  p->n_nodes = (guint)kv_json_integer(json, object, "nodes", 1, 1, MOST_NODES);
  p->id = g_strdup(kv_json_string(json, object, "id", p->device->id, FALSE));
  p->name = g_strdup(kv_json_string(json, object, "name", p->id, FALSE));
  p->gpu_link = kv_hardware_member(&kv_link_kind, json, object, "gpu_link");
  p->host_link = kv_hardware_member(&kv_link_kind, json, object, "host_link");
  p->network = kv_hardware_member(&kv_link_kind, json, object, "network");
  p->host_memory = kv_hardware_member(&kv_storage_kind, json, object, "host_memory");
  p->ssd = kv_hardware_member(&kv_storage_kind, json, object, "ssd");
  double n_ssds = kv_json_number(json, object, "ssds_per_node", 1, 1, 1024);
  if (p->ssd)
    multiply(p->ssd, n_ssds);
  p->csd = kv_hardware_member(&kv_storage_kind, json, object, "csd");
  double n_csds = kv_json_number(json, object, "csds_per_node", 1, 1, 1024);
  if (p->csd && p->csd->internal_Bps <= 0.0)
    kv_json_fail(json, object, "csd",
                 "'%s' cannot compute, expected storage with internal_GBps and internal_GFLOPs",
                 p->csd->id);
  if (p->csd)
    multiply(p->csd, n_csds);
  double host_memory_GB = kv_json_number(json, object, "host_memory_GB", 0, 1e-3, most);
  p->cpu_flops = kv_json_number(json, object, "cpu_TFLOPs", 0, 1e-3, 1e6) * 1e12;
  p->host_watts = kv_json_number(json, object, "host_watts", 0, 1e-3, 1e6);
  p->pue = kv_json_number(json, object, "pue", 0, 1, 10);
  p->electricity_usd_per_kWh =
      kv_json_number(json, object, "electricity_usd_per_kWh", 0, 1e-6, 1000);
  p->carbon_g_per_kWh = kv_json_number(json, object, "carbon_g_per_kWh", -1, 0, 1e5);
  complete(p, host_memory_GB);
  return p;
}

void kv_platform_free(KvPlatform *p) {
  if (!p)
    return;
  g_free(p->id);
  g_free(p->name);
  kv_device_free(p->device);
  kv_link_free(p->gpu_link);
  kv_link_free(p->host_link);
  kv_link_free(p->network);
  kv_storage_free(p->host_memory);
  kv_storage_free(p->ssd);
  kv_storage_free(p->csd);
  g_free(p);
}

static KvPlatform *finish(KvJson *json, KvPlatform *platform, GError **error) {
  if (kv_json_finish(json, error))
    return platform;
  kv_platform_free(platform);
  return NULL;
}

KvPlatform *kv_platform_parse(const char *name, const char *text, gsize length, GError **error) {
  g_autoptr(KvJson) json = kv_json_parse(name, text, length, error);
  return json ? finish(json, kv_platform_read(json, kv_json_root(json)), error) : NULL;
}

/* Take a leading "NUMBERx" off *rest: the number, or 0 if there is none. */
static guint leading_count(const char **rest, guint most) {
  if (!g_ascii_isdigit(**rest))
    return 0;
  char *end;
  guint64 count = g_ascii_strtoull(*rest, &end, 10);
  if ((*end != 'x' && *end != 'X') || !end[1] || count < 1 || count > most)
    return 0;
  *rest = end + 1;
  return (guint)count;
}

static gboolean is_file(const char *name) {
  return g_str_has_suffix(name, ".json") || g_file_test(name, G_FILE_TEST_IS_REGULAR);
}

static int compare_ids(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

const char *const *kv_platform_ids(void) {
  static const char **ids;
  if (g_once_init_enter(&ids)) {
    GPtrArray *all = g_ptr_array_new();
    const char *const *lists[] = {kv_platform_catalogue()->ids, kv_device_ids()};
    for (guint i = 0; i < G_N_ELEMENTS(lists); i++)
      for (const char *const *id = lists[i]; *id; id++)
        g_ptr_array_add(all, (gpointer)*id);
    g_ptr_array_sort(all, compare_ids);
    g_ptr_array_add(all, NULL);
    g_once_init_leave(&ids, (const char **)g_ptr_array_free(all, FALSE));
  }
  return ids;
}

KvPlatform *kv_platform_load(const char *name, GError **error) {
  g_return_val_if_fail(name != NULL, NULL);
  const KvCatalogueEntry *entry = kv_catalogue_find(kv_platform_catalogue(), name);
  if (entry)
    return finish(entry->document, kv_platform_read(entry->document, entry->object), error);
  const char *rest = name;
  guint first = leading_count(&rest, MOST_NODES);
  guint second = first ? leading_count(&rest, MOST_GPUS) : 0;
  if (is_file(name) && (!first || g_file_test(name, G_FILE_TEST_EXISTS))) {
    g_autoptr(KvJson) json = kv_json_load(name, error);
    return json ? finish(json, kv_platform_read(json, kv_json_root(json)), error) : NULL;
  }
  guint n_nodes = second ? first : 1, n_gpus = second ? second : MAX(first, 1);
  if (n_gpus <= MOST_GPUS &&
      (kv_catalogue_find(kv_device_kind.catalogue(), rest) || is_file(rest))) {
    KvDevice *device = kv_device_load(rest, error);
    return device ? kv_platform_usual(device, n_gpus, n_nodes, name) : NULL;
  }
  g_autofree char *unknown = kv_names_unknown("platform", rest, kv_platform_ids());
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%s (see `kvsim list platforms`; 4xGPU, 2x8xGPU and JSON files are platforms too)",
              unknown);
  return NULL;
}
