/* Devices, links and storage of a platform, and what a run moved over them. */
#include "viz/format.h"
#include "viz/graph.h"
#include "viz/graph_common.h"

enum { MOST_GPUS_DRAWN = 8 };

static char *rate(double Bps) {
  g_autofree char *bytes = kv_format(KV_UNIT_BYTES, Bps);
  return g_strconcat(bytes, "/s", NULL);
}

/* "\nmoved 12 GB", of what the run's summary says at `key` (and the entry `tier` of it); "" if
 * nothing. */
static char *moved(const json_t *summary, const char *key, const char *tier, const char *word) {
  json_t *value = json_object_get(summary, key);
  if (tier)
    value = json_object_get(value, tier);
  double bytes = json_is_number(value) ? json_number_value(value) : 0.0;
  if (bytes <= 0.0)
    return g_strdup("");
  g_autofree char *text = kv_format(KV_UNIT_BYTES, bytes);
  return g_strdup_printf("\\n%s %s", word, text);
}

static char *link_label(const KvLink *link, const char *flow) {
  g_autofree char *speed = rate(link->peak_Bps * link->achievable_share);
  return g_strdup_printf("%s\\n%s achievable%s", link->name ? link->name : link->id, speed, flow);
}

static char *storage_label(const char *what, const KvStorage *storage) {
  g_autofree char *size = kv_format(KV_UNIT_BYTES, storage->capacity_bytes);
  g_autofree char *read = rate(storage->read_Bps), *written = rate(storage->write_Bps);
  return g_strdup_printf("%s: %s\\n%s, reads %s, writes %s", what, storage->name, size, read,
                         written);
}

static char *device_label(const KvPlatform *p, guint index, guint drawn) {
  const KvDevice *d = p->device;
  g_autofree char *size = kv_format(KV_UNIT_BYTES, d->memory_bytes), *speed = rate(d->memory_Bps);
  g_autofree char *name = drawn < p->n_gpus_per_node && index + 1 == drawn
                              ? g_strdup_printf("%s x %u", d->name, p->n_gpus_per_node - drawn + 1)
                              : g_strdup(d->name);
  return g_strdup_printf("%s\\n%s at %s\\n%.0f TFLOP/s fp16%s", name, size, speed,
                         d->peak_flops[KV_DTYPE_FP16] * 1e-12,
                         d->calibrated ? "" : "\\nuncalibrated");
}

/* The GPUs between their own link and the host. */
static void draw_gpus(Agraph_t *graph, Agraph_t *frame, const KvPlatform *p, Agnode_t *host,
                      const json_t *summary) {
  guint drawn = MIN(p->n_gpus_per_node, MOST_GPUS_DRAWN);
  Agnode_t *between = NULL;
  if (p->gpu_link && p->n_gpus_per_node > 1) {
    g_autofree char *flow = moved(summary, "link_bytes", NULL, "moved");
    g_autofree char *label = link_label(p->gpu_link, flow);
    between = kv_graph_box(frame, "between", label, "#f3eefb");
  }
  g_autofree char *of_hbm = moved(summary, "hbm_bytes", NULL, "HBM traffic of all");
  g_autofree char *by_host = link_label(p->host_link, "");
  for (guint i = 0; i < drawn; i++) {
    g_autofree char *name = g_strdup_printf("gpu%u", i), *label = device_label(p, i, drawn);
    g_autofree char *whole = g_strconcat(label, i == 0 ? of_hbm : "", NULL);
    Agnode_t *gpu = kv_graph_box(frame, name, whole, "#dbeaf7");
    if (between)
      kv_graph_edge(graph, between, gpu, "", TRUE);
    kv_graph_edge(graph, gpu, host, i == 0 ? by_host : "", TRUE);
  }
}

/* One node; returns its host, which networks join. */
static Agnode_t *draw_node(Agraph_t *graph, const KvPlatform *p, guint node,
                           const json_t *summary) {
  g_autofree char *frame_name = g_strdup_printf("node%u", node);
  g_autofree char *frame_label =
      p->n_nodes > 1 ? g_strdup_printf("node 1 of %u, all alike", p->n_nodes) : g_strdup(p->id);
  Agraph_t *frame = kv_graph_frame(graph, frame_name, frame_label);
  Agnode_t *host = kv_graph_box(frame, "host", "host", "#e3eaf2");
  if (p->host_memory) {
    g_autofree char *label = storage_label("host memory", p->host_memory);
    g_autofree char *up = moved(summary, "fetched_bytes", "dram", "to the GPUs");
    g_autofree char *down = moved(summary, "stored_bytes", "dram", "from the GPUs");
    g_autofree char *flow = g_strconcat(up, down, NULL);
    kv_graph_edge(graph, host, kv_graph_box(frame, "dram", label, "#e8f3e6"), flow, TRUE);
  }
  if (p->ssd) {
    g_autofree char *label = storage_label("SSD", p->ssd);
    g_autofree char *up = moved(summary, "fetched_bytes", "ssd", "to the GPUs");
    g_autofree char *down = moved(summary, "stored_bytes", "ssd", "from the GPUs");
    g_autofree char *flow = g_strconcat(up, down, NULL);
    kv_graph_edge(graph, host, kv_graph_box(frame, "ssd", label, "#f7efe0"), flow, TRUE);
  }
  draw_gpus(graph, frame, p, host, summary);
  return host;
}

char *kv_graph_platform(const KvPlatform *platform, const json_t *summary) {
  Agraph_t *graph = kv_graph_new(platform->name ? platform->name : platform->id, "TB");
  Agnode_t *host = draw_node(graph, platform, 0, summary);
  if (platform->network && platform->n_nodes > 1) {
    g_autofree char *label = link_label(platform->network, "");
    g_autofree char *others = g_strdup_printf("%u further node%s", platform->n_nodes - 1,
                                              platform->n_nodes > 2 ? "s" : "");
    kv_graph_edge(graph, host, kv_graph_box(graph, "others", others, "#f2f5f8"), label, TRUE);
  }
  return kv_graph_text(graph);
}
