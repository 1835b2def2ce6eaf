#include "models/hardware/hardware.h"

#include <glib/gstdio.h>
#include <string.h>

#include "sim/base/error.h"

static KvPlatform *load(const char *name) {
  g_autoptr(GError) error = NULL;
  KvPlatform *platform = kv_platform_load(name, &error);
  g_assert_no_error(error);
  return platform;
}

static void assert_close(double value, double expected) {
  g_assert_cmpfloat_with_epsilon(value, expected, 1e-9 * expected);
}

static void test_every_platform_loads(void) {
  guint n = 0;
  for (const char *const *id = kv_platform_ids(); *id; id++, n++) {
    g_autoptr(KvPlatform) p = load(*id);
    const KvDevice *d = p->device;
    g_assert_cmpstr(p->id, ==, *id);
    g_assert_cmpfloat(d->memory_bytes, >, 1e9);
    g_assert_cmpfloat(d->memory_Bps, >, 1e11);
    g_assert_cmpfloat(MAX(d->peak_flops[KV_DTYPE_BF16], d->peak_flops[KV_DTYPE_FP16]), >, 1e13);
    g_assert_nonnull(p->host_link);
    g_assert_nonnull(p->host_memory);
    g_assert_nonnull(p->ssd);
    g_assert_null(p->network);
    g_assert_cmpfloat(p->cpu_flops, >, 0);
    g_assert_cmpfloat(p->host_watts, >, 0);
    g_assert_cmpfloat(p->pue, >=, 1);
    g_assert_cmpfloat(p->electricity_usd_per_kWh, >, 0);
    g_assert_true((p->gpu_link != NULL) == (p->n_gpus_per_node > 1));
  }
  g_assert_cmpuint(n, >=, 48);
}

static void test_every_link_and_storage_loads(void) {
  g_autoptr(GError) error = NULL;
  guint n_links = 0, n_storage = 0;
  for (const char *const *id = kv_link_ids(); *id; id++, n_links++) {
    KvLink *link = kv_link_load(*id, &error);
    g_assert_no_error(error);
    g_assert_cmpfloat(link->peak_Bps, >, 1e9);
    g_assert_cmpfloat(link->achievable_share, <=, 1);
    g_assert_cmpfloat(link->pageable_share, <, link->achievable_share);
    g_assert_cmpfloat(link->duplex_share, >=, 0.5);
    kv_link_free(link);
  }
  for (const char *const *id = kv_storage_ids(); *id; id++, n_storage++) {
    KvStorage *storage = kv_storage_load(*id, &error);
    g_assert_no_error(error);
    g_assert_cmpfloat(storage->read_Bps, >, 0);
    g_assert_cmpfloat(storage->write_Bps, >, 0);
    kv_storage_free(storage);
  }
  g_assert_cmpuint(n_links, >=, 25);
  g_assert_cmpuint(n_storage, >=, 29);
}

/* Data sheets: GB/s, dense bf16 (fp16 where there is no bf16) TFLOP/s, multiprocessors, watts. */
static void test_data_sheets(void) {
  static const struct {
    const char *id;
    double GBps, TFLOPs, watts;
    guint sm;
  } sheets[] = {
      {"v100-32gb", 900, 125, 300, 80},   {"t4", 320, 65, 70, 40},
      {"a100-80gb", 2039, 312, 400, 108}, {"h100-sxm", 3350, 989.4, 700, 132},
      {"h200", 4800, 989.4, 700, 132},    {"b200", 8000, 2250, 1000, 148},
      {"mi300x", 5300, 1307.4, 750, 304}, {"rtx-4090", 1008, 165.2, 450, 128},
      {"tpu-v6e", 1638, 918, 0, 1},       {"apple-m2-ultra", 800, 27.2, 215, 76},
  };
  for (guint i = 0; i < G_N_ELEMENTS(sheets); i++) {
    g_autoptr(GError) error = NULL;
    KvDevice *d = kv_device_load(sheets[i].id, &error);
    g_assert_no_error(error);
    assert_close(d->memory_Bps, sheets[i].GBps * 1e9);
    assert_close(MAX(d->peak_flops[KV_DTYPE_BF16], d->peak_flops[KV_DTYPE_FP16]),
                 sheets[i].TFLOPs * 1e12);
    g_assert_cmpuint(d->n_sm, ==, sheets[i].sm);
    g_assert_cmpfloat(d->tdp_watts, ==, sheets[i].watts);
    kv_device_free(d);
  }
}

static void test_memory_is_what_the_driver_shows(void) {
  g_autoptr(KvPlatform) h200 = load("h200");
  g_assert_cmpfloat_with_epsilon(h200->device->memory_bytes, 150109880320.0, 1e5);
  g_autoptr(KvPlatform) a100 = load("a100-80gb");
  assert_close(a100->device->memory_bytes, 80.0 * (1 << 30));
  g_autoptr(KvPlatform) apple = load("apple-m2-ultra"); /* three quarters are the GPU's */
  assert_close(apple->device->memory_bytes, 144e9);
}

static void test_usual_server(void) {
  g_autoptr(KvPlatform) one = load("h100-sxm");
  g_assert_cmpuint(one->n_gpus_per_node, ==, 1);
  g_assert_null(one->gpu_link);
  g_assert_cmpstr(one->host_link->id, ==, "pcie5-x16");
  g_assert_cmpstr(one->host_memory->id, ==, "ddr5-4800-8ch");
  assert_close(one->host_memory->capacity_bytes, 512e9);
  assert_close(one->host_memory->read_Bps, 0.8 * 307.2e9);

  g_autoptr(KvPlatform) four = load("4xh100-sxm");
  g_assert_cmpuint(four->n_gpus_per_node, ==, 4);
  g_assert_cmpuint(four->n_nodes, ==, 1);
  g_assert_cmpstr(four->gpu_link->id, ==, "nvlink4");
  assert_close(four->gpu_link->peak_Bps, 450e9);
  assert_close(four->host_memory->capacity_bytes, 1024e9);
  assert_close(four->ssd->read_Bps, 4 * one->ssd->read_Bps);

  g_autoptr(KvPlatform) sixteen = load("2x8xh200");
  g_assert_cmpuint(sixteen->n_gpus_per_node, ==, 8);
  g_assert_cmpuint(sixteen->n_nodes, ==, 2);
  g_assert_cmpstr(sixteen->network->id, ==, "cx7-400g");
  assert_close(sixteen->host_memory->read_Bps, 2 * one->host_memory->read_Bps); /* two sockets */
  assert_close(sixteen->host_memory->capacity_bytes, 2048e9);
  assert_close(sixteen->cpu_flops, 2 * one->cpu_flops);
}

static void test_links_of_special_devices(void) {
  g_autoptr(KvPlatform) pcie = load("2xrtx-4090"); /* no port between GPUs: over PCIe */
  g_assert_cmpstr(pcie->gpu_link->id, ==, "pcie4-x16");
  g_autoptr(KvPlatform) bridge =
      load("2xa30"); /* the device's own rate on the bridge's behaviour */
  g_assert_cmpstr(bridge->gpu_link->id, ==, "nvlink3-bridge");
  assert_close(bridge->gpu_link->peak_Bps, 100e9);
  g_autoptr(KvPlatform) grace = load("2xgb200"); /* one Grace for two GPUs */
  assert_close(grace->host_link->peak_Bps, 225e9);
  assert_close(grace->host_memory->capacity_bytes, 480e9);
  assert_close(grace->host_memory->read_Bps, 0.85 * 512e9);
  g_autoptr(KvPlatform) unified = load("apple-m3-ultra"); /* no second tier */
  g_assert_cmpfloat(unified->host_memory->capacity_bytes, ==, 0);
  assert_close(unified->host_link->peak_Bps, unified->device->memory_Bps);
}

static void test_default_efficiency_follows_the_device(void) {
  g_autoptr(KvPlatform) p = load("mi300x");
  const KvDevice *d = p->device;
  g_assert_false(d->calibrated);
  assert_close(d->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].flops_share, 0.5);
  assert_close(d->efficiency[KV_KERNEL_PREFILL_ATTENTION][KV_DTYPE_FP8].flops_share, 0.4);
  assert_close(d->efficiency[KV_KERNEL_DECODE_ATTENTION][KV_DTYPE_BF16].bandwidth_share, 0.65);
  assert_close(d->efficiency[KV_KERNEL_ELEMENTWISE][KV_DTYPE_BF16].bandwidth_share, 0.81);
  for (const char *const *id = kv_device_ids(); *id; id++) {
    g_autoptr(KvPlatform) other = load(*id);
    for (guint k = 0; k < KV_N_KERNELS; k++)
      for (guint t = 0; t < KV_N_DTYPES; t++) {
        const KvEfficiency *e = &other->device->efficiency[k][t];
        if (k == KV_KERNEL_MOE && e->bandwidth_share == 0) { /* priced by GEMM's */
          g_assert_false(e->fitted);
          continue;
        }
        g_assert_cmpfloat(e->fixed_seconds, >=, 0);
        g_assert_cmpfloat(e->fixed_seconds, <, 1e-3);
        g_assert_cmpfloat(e->flops_share, >, 0);
        g_assert_cmpfloat(e->bandwidth_share, >, 0);
        g_assert_cmpfloat(e->sharpness, >=, 1);
      }
    g_assert_cmpuint(other->device->tile_m, >, 0);
    g_assert_cmpfloat(other->device->launch_seconds, >, other->device->graph_node_seconds);
  }
}

static const char calibrated_text[] =
    "{\"id\": \"x\", \"memory_GB\": 24, \"memory_GBps\": 1000, \"sm_count\": 80,"
    " \"architecture\": \"Hopper\", \"dense_TFLOPs\": {\"bf16\": 100, \"fp8\": 200},"
    " \"launch_us\": 7, \"graph_node_us\": 0.5, \"calibrated\": true, \"efficiency_source\": \"here\","
    " \"efficiency\": {\"gemm\": {"
    "   \"bf16\": {\"fixed_us\": 2.5, \"flops_share\": 0.7, \"bandwidth_share\": 0.9, \"sharpness\": 3,"
    "            \"residual\": 0.04},"
    "   \"fp8\": {\"flops_share\": 0.5}}}}";

/* What steps tell of a device, and the drive of the machine that it was measured in. */
static void test_times_of_a_file(void) {
  static const char text[] =
      "{\"id\": \"x\", \"memory_GB\": 24, \"memory_GBps\": 1000, \"sm_count\": 80,"
      " \"dense_TFLOPs\": {\"bf16\": 100}, \"gap_us\": 0.75,"
      " \"drive\": {\"read_GBps\": 2, \"write_GBps\": 1, \"latency_us\": 90},"
      " \"techniques\": {\"kivi\": {\"step_us\": 4, \"cache_us_per_MB\": 0.5, \"attention_share\": 0.1},"
      "                  \"fp8\": {\"chunk_us\": 2.5}}}";
  g_autoptr(GError) error = NULL;
  g_autoptr(KvPlatform) p = kv_platform_parse("x.json", text, strlen(text), &error);
  g_assert_no_error(error);
  const KvDevice *d = p->device;
  assert_close(d->gap_seconds, 0.75e-6);
  assert_close(p->ssd->read_Bps, 2e9);
  assert_close(p->ssd->write_Bps, 1e9);
  assert_close(p->ssd->latency_seconds, 90e-6);
  g_assert_cmpuint(d->n_techniques, ==, 2);
  const KvTechniqueTimes *kivi = kv_device_technique(d, "kivi");
  assert_close(kivi->seconds[KV_TECHNIQUE_STEP], 4e-6);
  assert_close(kivi->seconds[KV_TECHNIQUE_CACHE], 0.5e-12);
  assert_close(kivi->seconds[KV_TECHNIQUE_ATTENTION], 0.1);
  g_assert_cmpfloat(kivi->seconds[KV_TECHNIQUE_CHUNK], ==, 0);
  assert_close(kv_device_technique(d, "fp8")->seconds[KV_TECHNIQUE_CHUNK], 2.5e-6);
  g_assert_null(kv_device_technique(d, "h2o"));
  /* Only times are taken over. */
  g_autoptr(KvPlatform) h100 = load("h100-sxm");
  double memory = h100->device->memory_Bps;
  kv_device_take_times(h100->device, d);
  assert_close(h100->device->gap_seconds, 0.75e-6);
  g_assert_nonnull(kv_device_technique(h100->device, "kivi"));
  assert_close(h100->device->memory_Bps, memory);
}

static void test_efficiency_of_a_file(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvPlatform) p =
      kv_platform_parse("x.json", calibrated_text, strlen(calibrated_text), &error);
  g_assert_no_error(error);
  const KvEfficiency *gemm = p->device->efficiency[KV_KERNEL_GEMM];
  g_assert_true(p->device->calibrated);
  assert_close(gemm[KV_DTYPE_BF16].fixed_seconds, 2.5e-6);
  assert_close(gemm[KV_DTYPE_BF16].sharpness, 3);
  assert_close(gemm[KV_DTYPE_BF16].residual, 0.04);
  assert_close(gemm[KV_DTYPE_INT8].flops_share, 0.7); /* not given: as bf16 */
  assert_close(gemm[KV_DTYPE_FP8].flops_share, 0.5);
  assert_close(gemm[KV_DTYPE_FP8].bandwidth_share, 0.9);
  /* A family that the file does not give is as on the generation's measured device. */
  g_autoptr(KvPlatform) h100 = load("h100-sxm");
  assert_close(p->device->efficiency[KV_KERNEL_PREFILL_ATTENTION][KV_DTYPE_BF16].flops_share,
               h100->device->efficiency[KV_KERNEL_PREFILL_ATTENTION][KV_DTYPE_BF16].flops_share);
  g_assert_cmpfloat(p->device->efficiency[KV_KERNEL_PREFILL_ATTENTION][KV_DTYPE_BF16].residual, ==,
                    0);
  assert_close(p->device->launch_seconds, 7e-6);
  assert_close(p->device->graph_node_seconds, 0.5e-6);
}

static void test_power_and_price(void) {
  g_autoptr(KvPlatform) h100 = load("h100-sxm");
  assert_close(h100->device->idle_watts_share, 0.11);
  assert_close(h100->device->decode_watts_share, 0.88);
  assert_close(h100->device->prefill_watts_share, 0.97);
  assert_close(h100->device->price_per_hour, 4.835);
  g_assert_nonnull(strstr(h100->device->price_source, "on-demand"));
  g_autoptr(KvPlatform) unpriced = load("a6000");
  g_assert_cmpfloat(unpriced->device->price_per_hour, ==, 0);
}

static void test_examples(void) {
  g_autofree char *gpu = g_build_filename(g_getenv("KV_EXAMPLES"), "my-gpu.json", NULL);
  g_autofree char *server = g_build_filename(g_getenv("KV_EXAMPLES"), "my-server.json", NULL);
  g_autofree char *two = g_strconcat("2x", gpu, NULL);
  g_autoptr(KvPlatform) one = load(gpu);
  g_assert_cmpstr(one->device->id, ==, "my-gpu");
  g_autoptr(KvPlatform) l40s = load("l40s"); /* the measured Ada */
  assert_close(one->device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].flops_share,
               l40s->device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].flops_share);
  g_autoptr(KvPlatform) pair = load(two);
  g_assert_cmpuint(pair->n_gpus_per_node, ==, 2);
  g_autoptr(KvPlatform) p = load(server);
  g_assert_cmpstr(p->id, ==, "my-server");
  g_assert_cmpstr(p->device->id, ==, "my-gpu");
  g_assert_cmpuint(p->n_gpus_per_node, ==, 4);
  g_assert_cmpstr(p->host_link->id, ==, "pcie5-x16");
  assert_close(p->host_memory->capacity_bytes, 768e9);
  assert_close(p->ssd->read_Bps, 12e9);
  assert_close(p->host_watts, 500);
  assert_close(p->pue, 1.3);
}

static void test_documents(void) {
  const char *const *lists[] = {kv_platform_ids(), kv_device_ids(), kv_link_ids(), kv_storage_ids(),
                                kv_other_hardware_ids()};
  for (guint i = 0; i < G_N_ELEMENTS(lists); i++)
    for (const char *const *id = lists[i]; *id; id++) {
      g_assert_true(id == lists[i] || strcmp(id[-1], *id) < 0); /* sorted */
      json_t *document = kv_hardware_document(*id);
      g_assert_nonnull(document);
      g_assert_cmpstr(json_string_value(json_object_get(document, "id")), ==, *id);
      json_decref(document);
    }
  g_assert_null(kv_hardware_document("no-such-thing"));
  json_t *economics = kv_hardware_document("economics");
  g_assert_nonnull(json_object_get(economics, "carbon_g_per_kWh"));
  json_decref(economics);
}

static void test_unknown_names(void) {
  static const struct {
    const char *name, *message;
  } unknown[] = {
      {"h100-smx", "unknown platform 'h100-smx', did you mean 'h100-sxm'? (see `kvsim list "
                   "platforms`; 4xGPU, 2x8xGPU and JSON files are platforms too)"},
      {"4xh20O", "unknown platform 'h20O', did you mean 'h20'? (see `kvsim list platforms`; 4xGPU, "
                 "2x8xGPU and JSON files are platforms too)"},
      {"0xh200",
       "unknown platform '0xh200', did you mean 'h200'? (see `kvsim list platforms`; 4xGPU, 2x8xGPU and JSON "
       "files are platforms too)"},
      {"99999999999999999999xh200",
       "unknown platform '99999999999999999999xh200' (see `kvsim list platforms`; 4xGPU, 2x8xGPU "
       "and JSON files are platforms too)"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(unknown); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(kv_platform_load(unknown[i].name, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    g_assert_cmpstr(error->message, ==, unknown[i].message);
  }
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_link_load("pcie9", &error));
  g_assert_true(g_str_has_prefix(error->message, "unknown link 'pcie9'"));
}

/* Each file beside its error line. */
static void test_bad_files(void) {
  g_autofree char *folder = g_build_filename(g_getenv("KV_TEST_DATA"), "bad-hardware", NULL);
  g_autoptr(GError) problem = NULL;
  g_autoptr(GDir) dir = g_dir_open(folder, 0, &problem);
  g_assert_no_error(problem);
  g_assert_cmpint(g_chdir(folder), ==, 0);
  guint n = 0;
  for (const char *name; (name = g_dir_read_name(dir));) {
    if (!g_str_has_suffix(name, ".json"))
      continue;
    g_autofree char *stem = g_strndup(name, strlen(name) - strlen("json"));
    g_autofree char *expected_file = g_strconcat(stem, "error", NULL);
    g_autofree char *expected = NULL;
    g_autoptr(GError) error = NULL;
    g_assert_true(g_file_get_contents(expected_file, &expected, NULL, &error));
    g_assert_null(kv_platform_load(name, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_assert_cmpstr(error->message, ==, g_strchomp(expected));
    n++;
  }
  g_assert_cmpuint(n, >=, 20);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/hardware/every-platform-loads", test_every_platform_loads);
  g_test_add_func("/hardware/every-link-and-storage-loads", test_every_link_and_storage_loads);
  g_test_add_func("/hardware/data-sheets", test_data_sheets);
  g_test_add_func("/hardware/memory-is-what-the-driver-shows",
                  test_memory_is_what_the_driver_shows);
  g_test_add_func("/hardware/usual-server", test_usual_server);
  g_test_add_func("/hardware/links-of-special-devices", test_links_of_special_devices);
  g_test_add_func("/hardware/default-efficiency", test_default_efficiency_follows_the_device);
  g_test_add_func("/hardware/efficiency-of-a-file", test_efficiency_of_a_file);
  g_test_add_func("/hardware/device/times", test_times_of_a_file);
  g_test_add_func("/hardware/power-and-price", test_power_and_price);
  g_test_add_func("/hardware/examples", test_examples);
  g_test_add_func("/hardware/documents", test_documents);
  g_test_add_func("/hardware/unknown-names", test_unknown_names);
  g_test_add_func("/hardware/bad-files", test_bad_files);
  return g_test_run();
}
