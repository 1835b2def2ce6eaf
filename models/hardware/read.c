#include "models/hardware/read.h"

#include <string.h>

#include "sim/base/names.h"

const char *const kv_kernel_family_names[] = {
    "gemm", "prefill_attention", "decode_attention", "elementwise", "all_reduce",
    "nccl", "latent_prefill",    "latent_decode",    "moe",         NULL};

const char *const kv_attention_kernel_names[] = {"fa2",        "fa2-small", "fa3", "trtllm",
                                                 "flashinfer", "kvsim",     NULL};

#define GIGA 1e9
#define TERA 1e12
#define MEBI 1048576.0
#define MICRO 1e-6
#define MOST 1e9 /* of any number in a file's own unit */

static double number(KvJson *json, json_t *object, const char *key, double fallback, double scale) {
  double least = fallback == KV_JSON_REQUIRED ? 1e-9 : 0;
  return kv_json_number(json, object, key, fallback, least, MOST) * scale;
}

static double share(KvJson *json, json_t *object, const char *key, double fallback) {
  return kv_json_number(json, object, key, fallback, 1e-6, 1);
}

static char *text(KvJson *json, json_t *object, const char *key, const char *fallback) {
  return g_strdup(kv_json_string(json, object, key, fallback, FALSE));
}

static char *identity(KvJson *json, json_t *object) {
  const char *id = kv_json_string(json, object, "id", NULL, TRUE);
  if (!*id)
    kv_json_fail(json, object, "id", "'id' is empty, expected a short name");
  return g_strdup(id);
}

/* Efficiency: shares that are measured stand in the file; the rest follow from `achievable`, and
 * that from the generation of the architecture. */

static json_t *generation_of(const char *architecture) {
  json_t *generations = json_object_get(kv_json_root(kv_hardware_defaults()), "generations");
  gsize i;
  json_t *generation;
  json_array_foreach(generations, i, generation) {
    if (g_str_has_prefix(architecture, json_string_value(json_object_get(generation, "match"))))
      return generation;
  }
  return json_array_get(generations, json_array_size(generations) - 1);
}

typedef struct {
  double gemm, prefill_attention, decode_attention, memory;
  gboolean given; /* in the device's file */
} Achievable;

static Achievable read_achievable(KvJson *json, json_t *object, json_t *generation) {
  static const char *const known[] = {
      "gemm", "prefill_attention", "decode_attention", "memory", "basis", NULL};
  KvJson *defaults = kv_hardware_defaults();
  Achievable a = {
      .gemm = share(defaults, generation, "gemm", 0.6),
      .prefill_attention = share(defaults, generation, "prefill_attention", 0.4),
      .decode_attention = share(defaults, generation, "decode_attention", 0.65),
      .memory = share(defaults, generation, "memory", 0.8),
  };
  json_t *given = kv_json_object(json, object, "achievable", FALSE);
  if (!given)
    return a;
  kv_json_only(json, given, known);
  a.given = TRUE;
  a.gemm = share(json, given, "gemm", a.gemm);
  a.prefill_attention = share(json, given, "prefill_attention", a.prefill_attention);
  a.decode_attention = share(json, given, "decode_attention", a.decode_attention);
  a.memory = share(json, given, "memory", a.memory);
  return a;
}

/* The members of an efficiency that are plain numbers. */
static const struct {
  const char *key;
  gsize offset;
  double unit, least, most;
} efficiency_numbers[] = {
#define MEMBER(name) G_STRUCT_OFFSET(KvEfficiency, name)
    {"fixed_us", MEMBER(fixed_seconds), MICRO, 0, MOST},
    {"flops_share", MEMBER(flops_share), 1, 1e-6, 1},
    {"bandwidth_share", MEMBER(bandwidth_share), 1, 1e-6, 1},
    {"sustained_share", MEMBER(sustained_share), 1, 1e-6, 1},
    {"quantize_share", MEMBER(quantize_share), 1, 1e-6, 1},
    {"sharpness", MEMBER(sharpness), 1, 1, 1000},
    {"block_us", MEMBER(block_seconds), MICRO, 0, MOST},
    {"block_exposed", MEMBER(block_exposed), 1, 0, 1},
    {"combine_us", MEMBER(combine_seconds), MICRO, 0, MOST},
    {"pack_us", MEMBER(pack_seconds), MICRO, 0, MOST},
    {"fill_share", MEMBER(fill_share), 1, 1e-3, 10},
    {"ramp_us", MEMBER(ramp_seconds), MICRO, 0, MOST},
    {"vector_share", MEMBER(vector_share), 1, 1e-6, 1},
    {"vector_us", MEMBER(vector_seconds), MICRO, 0, MOST},
    {"vector_ramp_us", MEMBER(vector_ramp_seconds), MICRO, 0, MOST},
    {"softmax_dims", MEMBER(softmax_dims), 1, 0, 1000},
    {"tail_waves", MEMBER(tail_waves), 1, 0, 100},
    {"lone_factor", MEMBER(lone_factor), 1, 1e-3, 100},
    {"step_us", MEMBER(step_seconds), MICRO, 0, MOST},
    {"bulk_us", MEMBER(bulk_seconds), MICRO, 0, MOST},
    {"quick_share", MEMBER(quick_share), 1, 1e-6, 1},
    {"crowding", MEMBER(crowding), 1, 0, 10},
    {"residual", MEMBER(residual), 1, 0, 10},
#undef MEMBER
};

static void read_error_range(KvJson *json, json_t *object, KvEfficiency *e) {
  json_t *range = kv_json_array(json, object, "log_error", FALSE);
  if (!range)
    return;
  if (json_array_size(range) != 2 || !json_is_number(json_array_get(range, 0)) ||
      !json_is_number(json_array_get(range, 1)) ||
      json_number_value(json_array_get(range, 0)) > json_number_value(json_array_get(range, 1))) {
    kv_json_fail(json, object, "log_error",
                 "'log_error' is no range, expected [low, high]: percentiles 5 and 95 of "
                 "log(measured / predicted)");
    return;
  }
  e->low_log_error = json_number_value(json_array_get(range, 0));
  e->high_log_error = json_number_value(json_array_get(range, 1));
}

static KvEfficiency read_efficiency(KvJson *json, json_t *object, KvEfficiency e) {
  const char *known[G_N_ELEMENTS(efficiency_numbers) + 4] = {"kernel", "log_error", "basis"};
  e.residual = 0;
  for (guint i = 0; i < G_N_ELEMENTS(efficiency_numbers); i++) {
    known[i + 3] = efficiency_numbers[i].key;
    double *value = (double *)((char *)&e + efficiency_numbers[i].offset);
    double unit = efficiency_numbers[i].unit;
    if (json_object_get(object, efficiency_numbers[i].key))
      *value = kv_json_number(json, object, efficiency_numbers[i].key, KV_JSON_REQUIRED,
                              efficiency_numbers[i].least, efficiency_numbers[i].most) *
               unit;
  }
  kv_json_only(json, object, known);
  e.kernel = kv_json_choice(json, object, "kernel", kv_attention_kernel_names, e.kernel);
  read_error_range(json, object, &e);
  return e;
}

/* The error of a device that is predicted from another's efficiencies: of the family and type, or
 * as much as is known of them. */
static void uncalibrated_range(KvEfficiency *e, KvKernelFamily family, KvDtype dtype) {
  json_t *ranges = json_object_get(kv_json_root(kv_hardware_defaults()), "uncalibrated_log_error");
  json_t *of_family = json_object_get(ranges, kv_kernel_family_names[family]);
  json_t *range = json_object_get(of_family, kv_dtype_names[dtype]);
  if (!range)
    range = json_object_get(of_family, kv_dtype_names[KV_DTYPE_BF16]);
  if (!range)
    range = json_object_get(ranges, "others");
  e->low_log_error = json_number_value(json_array_get(range, 0));
  e->high_log_error = json_number_value(json_array_get(range, 1));
}

static void default_efficiency(KvDevice *device, const Achievable *a, json_t *generation) {
  KvJson *defaults = kv_hardware_defaults();
  json_t *root = kv_json_root(defaults), *kernels = json_object_get(root, "kernels");
  double all_reduce = share(defaults, root, "all_reduce_share", 0.8);
  guint attention_kernel =
      kv_json_choice(defaults, generation, "attention", kv_attention_kernel_names, 0);
  /* Decode attention is bound by memory; where it is not (many heads to a KV head, MLA) it
   * multiplies as prefill attention does. */
  const double flops[KV_N_KERNELS] = {a->gemm, a->prefill_attention, a->prefill_attention, 1, 1,
                                      1,       a->prefill_attention, a->prefill_attention, 0};
  const double bytes[KV_N_KERNELS] = {a->memory, a->memory,           a->decode_attention,
                                      a->memory, all_reduce,          all_reduce,
                                      a->memory, a->decode_attention, 0};
  for (guint k = 0; k < KV_N_KERNELS; k++) {
    json_t *kernel = json_object_get(kernels, kv_kernel_family_names[k]);
    KvEfficiency usual = {.kernel = attention_kernel,
                          .flops_share = flops[k],
                          .bandwidth_share = bytes[k],
                          .sustained_share = 1};
    for (guint d = 0; d < KV_N_DTYPES; d++) {
      device->efficiency[k][d] = read_efficiency(defaults, kernel, usual);
      uncalibrated_range(&device->efficiency[k][d], k, d);
    }
  }
}

/* A family that is given for one 16-bit type stands for every type that is not given: its shares
 * are of the peak of each type, so they scale with it. */
static void read_family(KvJson *json, json_t *family, KvEfficiency *row) {
  static const KvDtype stands_for_all[] = {KV_DTYPE_BF16, KV_DTYPE_FP16};
  kv_json_only(json, family, kv_dtype_names);
  for (guint i = 0; i < G_N_ELEMENTS(stands_for_all); i++) {
    json_t *given = json_object_get(family, kv_dtype_names[stands_for_all[i]]);
    if (!given)
      continue;
    KvEfficiency e = read_efficiency(json, given, row[stands_for_all[i]]);
    for (guint d = 0; d < KV_N_DTYPES; d++) {
      row[d] = e;
      row[d].fitted = d == KV_DTYPE_BF16 || d == KV_DTYPE_FP16; /* one rate, one traffic */
    }
    break;
  }
  for (guint d = 0; d < KV_N_DTYPES; d++) {
    json_t *given = kv_json_object(json, family, kv_dtype_names[d], FALSE);
    if (!given)
      continue;
    row[d] = read_efficiency(json, given, row[d]);
    row[d].fitted = TRUE;
  }
  if (json_object_get(family, kv_dtype_names[KV_DTYPE_FP8]) &&
      !json_object_get(family, kv_dtype_names[KV_DTYPE_FP8_BLOCK])) {
    row[KV_DTYPE_FP8_BLOCK] = row[KV_DTYPE_FP8];
    row[KV_DTYPE_FP8_BLOCK].fitted = FALSE;
  }
}

/* The fitted efficiencies of the generation's measured device: shares of peaks and times of starts
 * carry over within a generation better than usual values do. Which attention kernel runs is the
 * generation's own. A device that knows its own achievable shares has the borrowed ones in
 * proportion. */
static void borrow_efficiency(KvDevice *device, const Achievable *own, json_t *generation) {
  const char *like = json_string_value(json_object_get(generation, "like"));
  const KvCatalogueEntry *entry = like ? kv_catalogue_find(kv_device_kind.catalogue(), like) : NULL;
  json_t *efficiency = entry ? json_object_get(entry->object, "efficiency") : NULL;
  if (!efficiency)
    return;
  Achievable lent = own->given ? read_achievable(entry->document, entry->object, generation) : *own;
  const double flops[KV_N_KERNELS] = {own->gemm / lent.gemm,
                                      own->prefill_attention / lent.prefill_attention,
                                      1,
                                      1,
                                      1,
                                      1,
                                      own->prefill_attention / lent.prefill_attention,
                                      1,
                                      own->gemm / lent.gemm};
  const double bytes[KV_N_KERNELS] = {own->memory / lent.memory,
                                      1,
                                      own->decode_attention / lent.decode_attention,
                                      own->memory / lent.memory,
                                      1,
                                      1,
                                      1,
                                      own->decode_attention / lent.decode_attention,
                                      own->memory / lent.memory};
  for (guint k = 0; k < KV_N_KERNELS; k++) {
    json_t *family = json_object_get(efficiency, kv_kernel_family_names[k]);
    KvAttentionKernel kernel = device->efficiency[k][KV_DTYPE_BF16].kernel;
    if (!family)
      continue;
    read_family(entry->document, family, device->efficiency[k]);
    for (guint d = 0; d < KV_N_DTYPES; d++) {
      device->efficiency[k][d].kernel = kernel;
      device->efficiency[k][d].flops_share =
          MIN(device->efficiency[k][d].flops_share * flops[k], 1);
      device->efficiency[k][d].bandwidth_share =
          MIN(device->efficiency[k][d].bandwidth_share * bytes[k], 1);
      device->efficiency[k][d].residual = 0;
      device->efficiency[k][d].fitted = FALSE;
      uncalibrated_range(&device->efficiency[k][d], k, d);
    }
  }
}

static void read_efficiencies(KvJson *json, json_t *object, KvDevice *device) {
  json_t *efficiency = kv_json_object(json, object, "efficiency", FALSE);
  device->calibrated = kv_json_boolean(json, object, "calibrated", FALSE);
  if (device->calibrated) {
    kv_json_object(json, object, "efficiency", TRUE);
    kv_json_string(json, object, "efficiency_source", NULL, TRUE);
  }
  if (!efficiency)
    return;
  kv_json_only(json, efficiency, kv_kernel_family_names);
  for (guint k = 0; k < KV_N_KERNELS; k++) {
    json_t *family = kv_json_object(json, efficiency, kv_kernel_family_names[k], FALSE);
    if (family)
      read_family(json, family, device->efficiency[k]);
  }
}

const struct KvTechniquePartName kv_technique_parts[] = {
    [KV_TECHNIQUE_CHUNK] = {"chunk_us", MICRO},
    [KV_TECHNIQUE_TOKEN] = {"token_us", MICRO},
    [KV_TECHNIQUE_PROMPT] = {"prompt_us", MICRO},
    [KV_TECHNIQUE_CONTEXT] = {"context_us_per_MB", MICRO / 1e6},
    [KV_TECHNIQUE_ATTENTION] = {"attention_share", 1},
    [KV_TECHNIQUE_STEP] = {"step_us", MICRO},
    [KV_TECHNIQUE_SEQUENCE] = {"sequence_us", MICRO},
    [KV_TECHNIQUE_CACHE] = {"cache_us_per_MB", MICRO / 1e6},
};

/* Ids of techniques are not checked here: who asks for one knows its own. */
static void read_techniques(KvJson *json, json_t *object, KvDevice *device) {
  const char *known[KV_N_TECHNIQUE_PARTS + 1] = {NULL}, *id;
  json_t *list = kv_json_object(json, object, "techniques", FALSE), *one;
  for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++)
    known[p] = kv_technique_parts[p].key;
  json_object_foreach(list, id, one) {
    KvTechniqueTimes times = {0};
    if (device->n_techniques == KV_MAX_TECHNIQUE_TIMES || strlen(id) >= sizeof times.id) {
      kv_json_fail(json, list, id, "'%s' is one technique too many or no id, expected at most %d",
                   id, KV_MAX_TECHNIQUE_TIMES);
      return;
    }
    if (!kv_json_object(json, list, id, TRUE))
      return;
    kv_json_only(json, one, known);
    g_strlcpy(times.id, id, sizeof times.id);
    for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++)
      times.seconds[p] = number(json, one, known[p], 0, kv_technique_parts[p].unit);
    device->techniques[device->n_techniques++] = times;
  }
}

static void read_peaks(KvJson *json, json_t *object, KvDevice *device) {
  json_t *peaks = kv_json_object(json, object, "dense_TFLOPs", TRUE);
  if (!peaks)
    return;
  kv_json_only(json, peaks, kv_dtype_names);
  for (guint d = 0; d < KV_N_DTYPES; d++) {
    device->peak_flops[d] = number(json, peaks, kv_dtype_names[d], 0, TERA);
  }
  /* Multiplied as fp8. */
  static const KvDtype eight_bit[] = {KV_DTYPE_FP8_BLOCK, KV_DTYPE_MXFP4_FP8};
  for (guint i = 0; i < G_N_ELEMENTS(eight_bit); i++)
    if (device->peak_flops[eight_bit[i]] <= 0)
      device->peak_flops[eight_bit[i]] = device->peak_flops[KV_DTYPE_FP8];
  double sixteen = MAX(device->peak_flops[KV_DTYPE_BF16], device->peak_flops[KV_DTYPE_FP16]);
  if (sixteen <= 0)
    kv_json_fail(json, object, "dense_TFLOPs",
                 "'dense_TFLOPs' has neither bf16 nor fp16, expected the rate of one of them");
  /* A sixteenth of the matrix rate is what vector units do where no sheet says more. */
  device->fp32_flops = number(json, object, "fp32_TFLOPs", sixteen / 16 / TERA, TERA);
  if (device->peak_flops[KV_DTYPE_FP32] <= 0)
    device->peak_flops[KV_DTYPE_FP32] = device->fp32_flops;
}

static void read_power(KvJson *json, json_t *object, json_t *generation, KvDevice *device) {
  static const char *const power_fields[] = {
      "idle_share",    "decode_share", "decode_small_batch_share",
      "prefill_share", "flop_pJ",      "byte_pJ",
      "energy_basis",  "source",       NULL};
  json_t *power = kv_json_object(json, object, "power", FALSE);
  if (power) {
    kv_json_only(json, power, power_fields);
  } else {
    json = kv_hardware_defaults();
    power = json_object_get(kv_json_root(json), "power");
  }
  double flop = json_number_value(json_object_get(generation, "flop_pJ"));
  double byte = json_number_value(json_object_get(generation, "byte_pJ"));
  device->flop_joules = kv_json_number(json, power, "flop_pJ", flop, 0, 1e6) * 1e-12;
  device->byte_joules = kv_json_number(json, power, "byte_pJ", byte, 0, 1e6) * 1e-12;
  device->idle_watts_share = kv_json_number(json, power, "idle_share", KV_JSON_REQUIRED, 0, 1);
  device->decode_watts_share =
      kv_json_number(json, power, "decode_share", KV_JSON_REQUIRED, 0, 1.5);
  device->prefill_watts_share =
      kv_json_number(json, power, "prefill_share", KV_JSON_REQUIRED, 0, 1.5);
  device->power_source = text(json, power, "source", "no source given");
}

static void read_price(KvJson *json, json_t *object, KvDevice *device) {
  static const char *const known[] = {"usd_per_hour", "n", "low", "high", "dates", "source", NULL};
  json_t *price = kv_json_object(json, object, "price", FALSE);
  if (!price) {
    device->price_source = g_strdup("no price known");
    return;
  }
  kv_json_only(json, price, known);
  device->price_per_hour = kv_json_number(json, price, "usd_per_hour", KV_JSON_REQUIRED, 0, 1e6);
  device->price_source =
      g_strdup_printf("%s (%s)", kv_json_string(json, price, "source", "no source given", FALSE),
                      kv_json_string(json, price, "dates", "undated", FALSE));
}

/* What the driver shows is what engines can use; it is GiB where the name says GB. */
static double memory_bytes(KvJson *json, json_t *object) {
  double nominal = number(json, object, "memory_GB", KV_JSON_REQUIRED, GIGA);
  double visible = number(json, object, "visible_MiB", 0, MEBI);
  double usable = number(json, object, "usable_memory_GB", 0, GIGA);
  return usable > 0 ? usable : visible > 0 ? visible : nominal;
}

static void read_tile(KvJson *json, json_t *object, json_t *generation, KvDevice *device) {
  device->scaled_tile_by_rows =
      kv_json_boolean(kv_hardware_defaults(), generation, "scaled_tile_by_rows", FALSE);
  json_t *limits = json_object_get(generation, "own_all_reduce_MiB");
  for (guint i = 0; i < G_N_ELEMENTS(device->own_all_reduce_bytes); i++)
    device->own_all_reduce_bytes[i] =
        (limits ? json_number_value(json_array_get(limits, i)) : 8) * MEBI;
  json_t *tile = kv_json_array(json, object, "tile", FALSE);
  gint64 m = json_integer_value(json_array_get(tile, 0)),
         n = json_integer_value(json_array_get(tile, 1));
  if (tile && (json_array_size(tile) != 2 || m < 1 || m > 4096 || n < 1 || n > 4096)) {
    kv_json_fail(json, object, "tile",
                 "'tile' is no pair of whole numbers from 1 to 4096, expected [rows, columns]");
    tile = NULL;
  }
  if (!tile) {
    tile = json_object_get(generation, "tile");
    m = json_integer_value(json_array_get(tile, 0));
    n = json_integer_value(json_array_get(tile, 1));
  }
  device->tile_m = (guint)m;
  device->tile_n = (guint)n;
}

static const char *const device_fields[] = {
    "id",
    "name",
    "vendor",
    "architecture",
    "release_year",
    "source",
    "confidence",
    "memory_GB",
    "visible_MiB",
    "visible_basis",
    "usable_memory_GB",
    "memory_GBps",
    "l2_MiB",
    "sm_count",
    "tdp_watts",
    "dense_TFLOPs",
    "fp32_TFLOPs",
    "gpu_link",
    "gpu_link_GBps",
    "host_link",
    "host_link_GBps",
    "drive",
    "host_memory_share",
    "host_memory",
    "value_basis",
    "achievable",
    "power",
    "price",
    "launch_us",
    "graph_node_us",
    "gap_us",
    "stream_gap_us",
    "tile",
    "efficiency",
    "techniques",
    "efficiency_source",
    "calibrated",
    "extra",
    "note",
    NULL,
};

static void read_drive(KvJson *json, json_t *object, KvDevice *device) {
  static const char *const known[] = {"read_GBps", "write_GBps", "latency_us", NULL};
  json_t *drive = kv_json_object(json, object, "drive", FALSE);
  if (!drive)
    return;
  kv_json_only(json, drive, known);
  device->drive_read_Bps = number(json, drive, "read_GBps", KV_JSON_REQUIRED, GIGA);
  device->drive_write_Bps = number(json, drive, "write_GBps", KV_JSON_REQUIRED, GIGA);
  device->drive_latency_seconds = number(json, drive, "latency_us", 0, MICRO);
}

static void check_links(KvJson *json, json_t *object, const KvDevice *device) {
  const struct {
    const char *key, *id;
  } links[] = {{"gpu_link", device->link}, {"host_link", device->host_link}};
  for (guint i = 0; i < G_N_ELEMENTS(links); i++)
    if (links[i].id && !kv_catalogue_find(kv_link_catalogue(), links[i].id)) {
      g_autofree char *unknown = kv_names_unknown("link", links[i].id, kv_link_catalogue()->ids);
      kv_json_fail(json, object, links[i].key, "%s (see `kvsim list links`)", unknown);
    }
  if (device->host_memory && !kv_catalogue_find(kv_storage_catalogue(), device->host_memory)) {
    g_autofree char *unknown =
        kv_names_unknown("storage", device->host_memory, kv_storage_catalogue()->ids);
    kv_json_fail(json, object, "host_memory", "%s (see `kvsim list storage`)", unknown);
  }
}

KvDevice *kv_device_read(KvJson *json, json_t *object) {
  KvDevice *device = g_new0(KvDevice, 1);
  KvJson *defaults = kv_hardware_defaults();
  json_t *rules = kv_json_root(defaults);
  kv_json_only(json, object, device_fields);
  device->id = identity(json, object);
  device->name = text(json, object, "name", device->id);
  device->vendor = text(json, object, "vendor", "");
  device->architecture = text(json, object, "architecture", "");
  device->source = text(json, object, "source", kv_json_name(json));
  device->memory_bytes = memory_bytes(json, object);
  device->memory_Bps = number(json, object, "memory_GBps", KV_JSON_REQUIRED, GIGA);
  device->l2_bytes = number(json, object, "l2_MiB", 0, MEBI);
  device->n_sm = (guint)kv_json_integer(json, object, "sm_count", KV_JSON_REQUIRED, 1, 100000);
  device->tdp_watts = number(json, object, "tdp_watts", 0, 1);
  read_peaks(json, object, device);
  device->link = text(json, object, "gpu_link", NULL);
  device->host_link = text(json, object, "host_link", "pcie4-x16");
  device->host_link_Bps = number(json, object, "host_link_GBps", 0, GIGA);
  read_drive(json, object, device);
  device->host_memory = text(json, object, "host_memory", NULL);
  device->host_memory_share = share(json, object, "host_memory_share", 1);
  const KvCatalogueEntry *link =
      device->link ? kv_catalogue_find(kv_link_catalogue(), device->link) : NULL;
  double peak = link ? number(link->document, link->object, "GBps", 0, 1) : 0;
  device->link_Bps = device->link ? number(json, object, "gpu_link_GBps", peak, GIGA) : 0;

  json_t *generation = generation_of(device->architecture);
  Achievable achievable = read_achievable(json, object, generation);
  default_efficiency(device, &achievable, generation);
  borrow_efficiency(device, &achievable, generation);
  read_efficiencies(json, object, device);
  read_techniques(json, object, device);
  device->launch_seconds =
      number(json, object, "launch_us", number(defaults, rules, "launch_us", 6, 1), MICRO);
  device->graph_node_seconds =
      number(json, object, "graph_node_us", number(defaults, rules, "graph_node_us", 1, 1), MICRO);
  device->gap_seconds = number(json, object, "gap_us", 0, MICRO);
  device->stream_gap_seconds = number(json, object, "stream_gap_us", 0, MICRO);
  read_tile(json, object, generation, device);
  read_power(json, object, generation, device);
  read_price(json, object, device);
  check_links(json, object, device);
  return device;
}

static const char *const link_fields[] = {
    "id",
    "name",
    "source",
    "confidence",
    "release_year",
    "GBps",
    "achievable_share",
    "achievable_basis",
    "duplex_share",
    "duplex_basis",
    "latency_us",
    "copy_basis",
    "latency_basis",
    "per_copy_us",
    "pageable_share",
    "extra",
    "note",
    NULL,
};

KvLink *kv_link_read(KvJson *json, json_t *object) {
  KvLink *link = g_new0(KvLink, 1);
  KvJson *defaults = kv_hardware_defaults();
  json_t *usual = json_object_get(kv_json_root(defaults), "link");
  kv_json_only(json, object, link_fields);
  link->id = identity(json, object);
  link->name = text(json, object, "name", link->id);
  link->source = text(json, object, "source", kv_json_name(json));
  link->peak_Bps = number(json, object, "GBps", KV_JSON_REQUIRED, GIGA);
  link->achievable_share =
      share(json, object, "achievable_share", share(defaults, usual, "achievable_share", 0.8));
  /* Network and NVLink ports have a wire for each direction; PCIe shares the host's path behind it.
   */
  gboolean pcie = g_str_has_prefix(link->id, "pcie");
  double duplex = pcie ? share(defaults, usual, "duplex_share", 0.85) : 1;
  link->duplex_share = share(json, object, "duplex_share", duplex);
  link->latency_seconds =
      number(json, object, "latency_us", number(defaults, usual, "latency_us", 5, 1), MICRO);
  link->per_copy_seconds =
      number(json, object, "per_copy_us", number(defaults, usual, "per_copy_us", 4, 1), MICRO);
  /* Memory that is not pinned is copied by a processor core into a pinned buffer first, and then
   * over the link: the two rates add like resistances. */
  double staging = number(defaults, usual, "staging_GBps", 10.5, GIGA);
  double pinned = link->peak_Bps * link->achievable_share;
  link->pageable_share =
      share(json, object, "pageable_share", pinned * staging / (pinned + staging) / link->peak_Bps);
  return link;
}

static const char *const storage_fields[] = {
    "id",
    "kind",
    "name",
    "source",
    "confidence",
    "release_year",
    "capacity_GB",
    "capacity_range_GB",
    "capacity_basis",
    "read_GBps",
    "write_GBps",
    "write_basis",
    "achievable_share",
    "achievable_basis",
    "latency_us",
    "latency_basis",
    "read_kiops",
    "internal_GBps",
    "internal_share",
    "internal_basis",
    "internal_GFLOPs",
    "usd_per_GB",
    "price_source",
    "extra",
    "note",
    NULL,
};

KvStorage *kv_storage_read(KvJson *json, json_t *object) {
  KvStorage *storage = g_new0(KvStorage, 1);
  kv_json_only(json, object, storage_fields);
  storage->id = identity(json, object);
  storage->name = text(json, object, "name", storage->id);
  storage->source = text(json, object, "source", kv_json_name(json));
  storage->capacity_bytes =
      kv_json_number(json, object, "capacity_GB", KV_JSON_REQUIRED, 0, MOST) * GIGA;
  double achievable = share(json, object, "achievable_share", 1);
  storage->read_Bps = number(json, object, "read_GBps", KV_JSON_REQUIRED, GIGA) * achievable;
  storage->write_Bps = number(json, object, "write_GBps", KV_JSON_REQUIRED, GIGA) * achievable;
  storage->latency_seconds = number(json, object, "latency_us", KV_JSON_REQUIRED, MICRO);
  storage->read_iops = number(json, object, "read_kiops", 0, 1000);
  storage->price_per_GB = number(json, object, "usd_per_GB", 0, 1);
  storage->internal_Bps =
      number(json, object, "internal_GBps", 0, GIGA) * share(json, object, "internal_share", 1);
  storage->internal_flops = number(json, object, "internal_GFLOPs", 0, GIGA);
  return storage;
}
