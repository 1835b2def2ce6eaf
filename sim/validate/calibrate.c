#include "sim/validate/calibrate.h"

#include <math.h>
#include <string.h>

#include <glib/gstdio.h>

#include "models/kernels/fit.h"
#include "reference/cuda/measure.h"
#include "reference/cuda/monitor.h"
#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/output.h"
#include "sim/validate/calibration_runs.h"
#include "sim/validate/step_fit.h"

/* Enough rows of a kind that a fit of a few parameters no longer changes. */
enum { ROWS_PER_KIND = 2500 };

/* Rows shorter than this measure launches more than work. */
static const double shortest_seconds = 1e-5;

/* The families whose parameters rows of a kind fit. */
static const struct {
  KvObserved kind;
  KvKernelFamily family;
} fitted_families[] = {
    {KV_OBSERVED_GEMM, KV_KERNEL_GEMM},
    {KV_OBSERVED_PREFILL_ATTENTION, KV_KERNEL_PREFILL_ATTENTION},
    {KV_OBSERVED_DECODE_ATTENTION, KV_KERNEL_DECODE_ATTENTION},
    {KV_OBSERVED_MIXED_ATTENTION, KV_KERNEL_PREFILL_ATTENTION},
    {KV_OBSERVED_ALL_REDUCE, KV_KERNEL_ALL_REDUCE},
    {KV_OBSERVED_NCCL, KV_KERNEL_NCCL},
    {KV_OBSERVED_LATENT_PREFILL, KV_KERNEL_LATENT_PREFILL},
    {KV_OBSERVED_LATENT_DECODE, KV_KERNEL_LATENT_DECODE},
    {KV_OBSERVED_MOE, KV_KERNEL_MOE},
    {KV_OBSERVED_ELEMENTWISE, KV_KERNEL_ELEMENTWISE},
    {KV_OBSERVED_DECODE_STEP, KV_KERNEL_GEMM},
    {KV_OBSERVED_DECODE_STEP, KV_KERNEL_DECODE_ATTENTION},
    {KV_OBSERVED_DECODE_STEP, KV_KERNEL_ELEMENTWISE},
    {KV_OBSERVED_PREFILL_STEP, KV_KERNEL_GEMM},
    {KV_OBSERVED_PREFILL_STEP, KV_KERNEL_PREFILL_ATTENTION},
    {KV_OBSERVED_PREFILL_STEP, KV_KERNEL_ELEMENTWISE},
};

typedef struct {
  char **from, **files;
  char *device, *out, *source, *like;
  char *table; /* to write what is measured to */
  char *runs;  /* folder of step logs, written where something is measured */
  gboolean steps, measure;
} Options;

static void options_clear(Options *options) {
  g_strfreev(options->from);
  g_strfreev(options->files);
  g_free(options->device);
  g_free(options->out);
  g_free(options->source);
  g_free(options->like);
  g_free(options->table);
  g_free(options->runs);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

static gboolean has_tables(const Options *options) {
  return options->from || options->files;
}

static gboolean parse(Options *options, int *argc, char ***argv, GError **error) {
  const GOptionEntry entries[] = {
      {"from", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &options->from,
       "A table of measured times; may be repeated, and further arguments are tables too", "TABLE"},
      {"device", 0, 0, G_OPTION_ARG_STRING, &options->device, "The device that was measured", "D"},
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &options->out,
       "Write the device file with the fitted efficiencies", "OUT"},
      {"source", 0, 0, G_OPTION_ARG_STRING, &options->source,
       "What and when was measured, for the device file (default: the names of the tables)",
       "TEXT"},
      {"steps", 0, 0, G_OPTION_ARG_NONE, &options->steps,
       "List every whole step, predicted by the fit that did not see it", NULL},
      {"like", 0, 0, G_OPTION_ARG_STRING, &options->like,
       "Fit nothing: score the tables by the data sheet of --device and the efficiencies of D "
       "(DEVICE itself for its own)",
       "D"},
      {"measure", 0, 0, G_OPTION_ARG_NONE, &options->measure,
       "Measure the GPU of this machine by the reference engine's kernels, and fit that; with "
       "tables and --runs, the runs alone",
       NULL},
      {"table", 0, 0, G_OPTION_ARG_FILENAME, &options->table,
       "Keep what --measure measures, as a table for --from", "TABLE"},
      {"runs", 0, 0, G_OPTION_ARG_FILENAME, &options->runs,
       "Fit whole steps and techniques too, from the step logs in FOLDER; with --measure, made new "
       "there",
       "FOLDER"},
      {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &options->files, NULL, NULL},
      {NULL}};
  g_autoptr(GOptionContext) context = g_option_context_new("[TABLE…]");
  g_option_context_set_summary(
      context, "Fit a device's kernel efficiencies to tables of measured times. The residuals are\n"
               "those of rows that the scoring fit did not see, of 10 us and more.");
  g_option_context_set_description(
      context,
      "Example:\n  kvsim calibrate --device h200 --from ceilings.json steps.json -o h200.json\n"
      "  kvsim calibrate --measure --table kernels.csv --runs runs -o this-gpu.json\n");
  g_option_context_add_main_entries(context, entries, NULL);
  g_autoptr(GError) problem = NULL;
  if (!g_option_context_parse(context, argc, argv, &problem)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s (see `kvsim calibrate --help`)",
                problem->message);
    return FALSE;
  }
  gboolean runs_alone = options->measure && has_tables(options) && options->runs;
  if (options->measure && !runs_alone)
    return TRUE;
  const char *missing = !options->device                    ? "--device"
                        : !options->from && !options->files ? "--from (or --measure)"
                        : options->table                    ? "--measure, which --table goes with"
                                                            : NULL;
  if (missing)
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "calibrate: no %s (see `kvsim calibrate --help`)",
                missing);
  return !missing;
}

/* Append the tables' observations and names; what they say of launches and of a drive goes to
 * `launches`. */
static gboolean read_tables(char **paths, GArray *observations, GString *names, KvDevice *launches,
                            GError **error) {
  for (guint i = 0; paths && paths[i]; i++) {
    double launch, node;
    KvObservedDrive drive;
    if (!kv_observations_read(paths[i], observations, error) ||
        !kv_observations_launches(paths[i], &launch, &node, error) ||
        !kv_observations_drive(paths[i], &drive, error))
      return FALSE;
    if (drive.read_Bps > 0.0 && drive.write_Bps > 0.0) {
      launches->drive_read_Bps = drive.read_Bps;
      launches->drive_write_Bps = drive.write_Bps;
      launches->drive_latency_seconds = drive.latency_seconds;
    }
    launches->launch_seconds = launch > 0.0 ? launch : launches->launch_seconds;
    launches->graph_node_seconds = node > 0.0 ? node : launches->graph_node_seconds;
    g_autofree char *name = g_path_get_basename(paths[i]);
    g_string_append_printf(names, "%s%s", names->len ? ", " : "", name);
  }
  return TRUE;
}

/* Clocks and the like, as a device file's source gives them. */
static void describe_gpu(const json_t *gpu, GString *text) {
  static const char *const readings[] = {"sm_clock_MHz", "power_watts", "temperature_C"};
  const char *driver = gpu ? json_string_value(json_object_get(gpu, "driver")) : NULL;
  if (driver)
    g_string_append_printf(text, ", driver %s", driver);
  for (guint r = 0; r < G_N_ELEMENTS(readings); r++) {
    json_t *seen = gpu ? json_object_get(gpu, readings[r]) : NULL;
    if (seen)
      g_string_append_printf(text, ", %s %.0f to %.0f", readings[r],
                             json_number_value(json_array_get(seen, 0)),
                             json_number_value(json_array_get(seen, 2)));
  }
}

/* The catalogue's id of the GPU that calls itself `name`. */
static const char *device_of(const char *name, GError **error) {
  static const struct {
    const char *part, *id;
  } known[] = {{"H200", "h200"}, {"H100 PCIe", "h100-pcie"}, {"H100", "h100-sxm"}};
  for (guint i = 0; i < G_N_ELEMENTS(known); i++)
    if (strstr(name, known[i].part))
      return known[i].id;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "calibrate: the GPU is '%s', expected --device with the data sheet to start from",
              name);
  return NULL;
}

/* A folder that is named must be new or empty, so that no log of another GPU is taken for one of
 * this. */
static gboolean make_folder(const char *path, GError **error) {
  if (g_mkdir_with_parents(path, 0777) != 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "%s: no such folder can be made, expected --runs "
                "with one that can",
                path);
    return FALSE;
  }
  g_autoptr(GDir) directory = g_dir_open(path, 0, error);
  if (directory && g_dir_read_name(directory)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: not empty, expected a new folder for --runs",
                path);
    return FALSE;
  }
  return directory != NULL;
}

static gboolean measure_runs(const Options *options, GError **error) {
  return make_folder(options->runs, error) &&
         kv_calibration_runs_measure("cuda", options->device, options->runs, error);
}

/* Measure this GPU into the table at `path`. */
static gboolean measure(Options *options, const char *path, GError **error) {
  if (options->runs && !make_folder(options->runs, error))
    return FALSE;
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return FALSE;
  g_autofree char *name = NULL;
  KvGpuMonitor *monitor = kv_gpu_monitor_start();
  gboolean measured = kv_cuda_measure(output, &name, error);
  json_t *gpu = kv_gpu_monitor_stop(monitor);
  if (!measured) {
    kv_output_discard(output);
    json_decref(gpu);
    return FALSE;
  }
  if (!options->source) {
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *date = g_date_time_format(now, "%Y-%m-%d");
    GString *source = g_string_new(NULL);
    g_string_printf(source, "kvsim calibrate --measure on %s, %s", name, date);
    describe_gpu(gpu, source);
    options->source = g_string_free(source, FALSE);
  }
  json_decref(gpu);
  if (!kv_output_commit(output, error))
    return FALSE;
  if (!options->device)
    options->device = g_strdup(device_of(name, error));
  return options->device && (!options->runs || kv_calibration_runs_measure("cuda", options->device,
                                                                           options->runs, error));
}

/* Measure, and read what came out; the table stays if the user named one. */
static gboolean measure_table(Options *options, GArray *observations, GString *names,
                              KvDevice *launches, GError **error) {
  g_autofree char *folder = NULL, *temporary = NULL;
  const char *path = options->table;
  if (!path) {
    if (!(folder = g_dir_make_tmp("kvsim-calibrate-XXXXXX", error)))
      return FALSE;
    path = temporary = g_build_filename(folder, "kernels.csv", NULL);
  }
  char *paths[] = {(char *)path, NULL};
  gboolean done =
      measure(options, path, error) && read_tables(paths, observations, names, launches, error);
  if (temporary) {
    g_unlink(temporary);
    g_rmdir(folder);
  }
  return done;
}

/* The members of an efficiency as files and this command show them, and the families that have
 * them (a bit each). */
static const struct {
  const char *key;
  gsize offset;
  double unit;
  guint families;
} efficiency_members[] = {
#define MEMBER(key, name, unit, families)                                                          \
  { key, G_STRUCT_OFFSET(KvEfficiency, name), unit, families }
#define GEMM (1u << KV_KERNEL_GEMM)
#define PREFILL (1u << KV_KERNEL_PREFILL_ATTENTION | 1u << KV_KERNEL_LATENT_PREFILL)
#define DECODE (1u << KV_KERNEL_DECODE_ATTENTION | 1u << KV_KERNEL_LATENT_DECODE)
#define NCCL (1u << KV_KERNEL_NCCL)
#define MOE (1u << KV_KERNEL_MOE)
    MEMBER("fixed_us", fixed_seconds, 1e-6, ~0u),
    MEMBER("block_us", block_seconds, 1e-6, GEMM | PREFILL | DECODE | MOE),
    MEMBER("block_exposed", block_exposed, 1, DECODE),
    MEMBER("combine_us", combine_seconds, 1e-6, GEMM | DECODE | MOE),
    MEMBER("pack_us", pack_seconds, 1e-6, DECODE),
    MEMBER("fill_share", fill_share, 1, GEMM | DECODE | MOE),
    MEMBER("ramp_us", ramp_seconds, 1e-6, GEMM),
    MEMBER("vector_share", vector_share, 1, GEMM),
    MEMBER("vector_us", vector_seconds, 1e-6, GEMM),
    MEMBER("vector_ramp_us", vector_ramp_seconds, 1e-6, GEMM),
    MEMBER("flops_share", flops_share, 1, GEMM | PREFILL | DECODE | MOE),
    MEMBER("softmax_dims", softmax_dims, 1, PREFILL),
    MEMBER("tail_waves", tail_waves, 1, PREFILL),
    MEMBER("lone_factor", lone_factor, 1, PREFILL),
    MEMBER("sustained_share", sustained_share, 1, GEMM | PREFILL),
    MEMBER("bandwidth_share", bandwidth_share, 1, ~0u),
    MEMBER("quantize_share", quantize_share, 1, GEMM | MOE),
    MEMBER("sharpness", sharpness, 1, GEMM | PREFILL | MOE),
    MEMBER("step_us", step_seconds, 1e-6, NCCL),
    MEMBER("bulk_us", bulk_seconds, 1e-6, NCCL),
    MEMBER("quick_share", quick_share, 1, NCCL),
    MEMBER("crowding", crowding, 1, NCCL),
    MEMBER("residual", residual, 1, ~0u),
#undef MEMBER
};

static double member_value(const KvEfficiency *efficiency, guint member) {
  return *(const double *)((const char *)efficiency + efficiency_members[member].offset) /
         efficiency_members[member].unit;
}

static gboolean has_kernel(KvKernelFamily family) {
  return (PREFILL | DECODE) & 1u << family;
}

static void print_efficiency(KvKernelFamily family, KvDtype dtype, const KvEfficiency *efficiency) {
  g_print("  %s %s%s%s:", kv_kernel_family_names[family], kv_dtype_names[dtype],
          has_kernel(family) ? " " : "",
          has_kernel(family) ? kv_attention_kernel_names[efficiency->kernel] : "");
  for (guint i = 0; i < G_N_ELEMENTS(efficiency_members); i++)
    if (efficiency_members[i].families & 1u << family)
      g_print(" %s %.4g", efficiency_members[i].key, member_value(efficiency, i));
  g_print("\n");
}

static void print_heading(const KvDevice *device, guint n, const char *names) {
  g_print("%s: %u measured times from %s\n\n  %-18s %-5s %7s %10s %9s %9s %20s %8s\n", device->id,
          n, names, "rows not fitted", "type", "n", "median", "p95", "bias", "90 % interval",
          "covers");
}

static void print_residuals(const KvResidual *residual, KvDtype dtype) {
  for (guint kind = 0; kind < KV_N_OBSERVED; kind++)
    if (residual[kind].n > 0)
      g_print("  %-18s %-5s %7u %8.1f %% %7.1f %% %+7.1f %%  %+6.1f .. %+6.1f %% %6.1f %%\n",
              kv_observed_names[kind], kv_dtype_names[dtype], residual[kind].n,
              100 * residual[kind].median, 100 * residual[kind].p95, 100 * residual[kind].bias,
              100 * expm1(residual[kind].low_log_error), 100 * expm1(residual[kind].high_log_error),
              100 * residual[kind].coverage);
}

static void print_steps(const GArray *observations, const double *predicted) {
  g_print("\n  %-13s %8s %8s %8s %12s %12s %8s\n", "step", "batch", "past", "chunk", "measured us",
          "predicted us", "error");
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (row->shape)
      g_print("  %-13s %8.0f %8.0f %8.0f %12.1f %12.1f %+6.1f %%\n", kv_observed_names[row->kind],
              row->batch, row->past, row->chunk, row->seconds * 1e6, predicted[i] * 1e6,
              100 * (predicted[i] / row->seconds - 1));
  }
}

static double rounded(double value) {
  char text[G_ASCII_DTOSTR_BUF_SIZE];
  return g_ascii_strtod(g_ascii_formatd(text, sizeof text, "%.4g", value), NULL);
}

static void put(json_t *object, const char *key, double value) {
  json_object_set_new(object, key, json_real(rounded(value)));
}

/* The member `key` of `object`, made if it is not there. */
static json_t *member(json_t *object, const char *key) {
  if (!json_object_get(object, key))
    json_object_set_new(object, key, json_object());
  return json_object_get(object, key);
}

static void store(json_t *document, KvKernelFamily family, KvDtype dtype,
                  const KvEfficiency *efficiency) {
  json_t *of_family = member(member(document, "efficiency"), kv_kernel_family_names[family]);
  json_t *object = json_object();
  if (has_kernel(family))
    json_object_set_new(object, "kernel",
                        json_string(kv_attention_kernel_names[efficiency->kernel]));
  for (guint i = 0; i < G_N_ELEMENTS(efficiency_members); i++)
    if (efficiency_members[i].families & 1u << family && member_value(efficiency, i) > 0)
      put(object, efficiency_members[i].key, member_value(efficiency, i));
  json_object_set_new(
      object, "log_error",
      json_pack("[f,f]", rounded(efficiency->low_log_error), rounded(efficiency->high_log_error)));
  json_object_set_new(of_family, kv_dtype_names[dtype], object);
}

static json_t *device_document(const char *name, GError **error) {
  json_t *document = kv_hardware_document(name);
  if (document) {
    json_t *copy = json_deep_copy(document);
    json_decref(document);
    return copy;
  }
  g_autoptr(KvJson) json = kv_json_load(name, error);
  return json ? json_deep_copy(kv_json_root(json)) : NULL;
}

/* Fit one data type, print what came out and put it into the document. */
static void calibrate(KvDevice *device, const GArray *observations, KvDtype dtype, json_t *document,
                      double *predicted) {
  KvResidual residual[KV_N_OBSERVED];
  kv_fit_cross_validate(device, observations, dtype, ROWS_PER_KIND, shortest_seconds, residual,
                        predicted);
  KvMeasuring measuring = {0};
  kv_fit_start(device, &measuring);
  kv_fit(device, &measuring, observations, dtype, ROWS_PER_KIND);
  print_residuals(residual, dtype);
  /* A step's residual stands in for a family that was seen in steps only. */
  gboolean seen[KV_N_KERNELS] = {FALSE};
  for (guint i = 0; i < G_N_ELEMENTS(fitted_families); i++) {
    KvKernelFamily family = fitted_families[i].family;
    if (residual[fitted_families[i].kind].n == 0 || seen[family])
      continue;
    seen[family] = TRUE;
    KvDtype type = family == KV_KERNEL_ELEMENTWISE ? KV_DTYPE_BF16 : dtype;
    KvEfficiency *efficiency = &device->efficiency[family][type];
    const KvResidual *scored = &residual[fitted_families[i].kind];
    efficiency->residual = scored->median;
    efficiency->low_log_error = scored->low_log_error;
    efficiency->high_log_error = scored->high_log_error;
    print_efficiency(family, type, efficiency);
    store(document, family, type, efficiency);
  }
}

/* The tables by efficiencies that did not see them. */
static void score(const KvDevice *device, const GArray *observations, const char *names) {
  KvMeasuring measuring = {.l2_speedup = 2, .l2_share = 0.7, .write_passes = 1};
  g_autofree double *predicted = g_new0(double, observations->len);
  for (guint i = 0; i < observations->len; i++)
    predicted[i] =
        kv_observation_predict(device, &measuring, &g_array_index(observations, KvObservation, i));
  print_heading(device, observations->len, names);
  for (guint dtype = 0; dtype < KV_N_DTYPES; dtype++) {
    KvResidual residual[KV_N_OBSERVED];
    for (guint kind = 0; kind < KV_N_OBSERVED; kind++)
      residual[kind] = kv_fit_residual(observations, predicted, kind, dtype, shortest_seconds);
    print_residuals(residual, dtype);
  }
}

/* Give `device` the efficiencies of `name`; the kernels stay those that were measured. */
static gboolean borrow_efficiency(KvDevice *device, const char *name, GError **error) {
  KvDevice *other = kv_device_load(name, error);
  if (!other)
    return FALSE;
  for (guint k = 0; k < KV_N_KERNELS; k++) {
    for (guint d = 0; d < KV_N_DTYPES; d++) {
      KvAttentionKernel kernel = device->efficiency[k][d].kernel;
      device->efficiency[k][d] = other->efficiency[k][d];
      device->efficiency[k][d].kernel = kernel;
    }
  }
  kv_device_free(other);
  return TRUE;
}

static gboolean write_device(const Options *options, json_t *document, const char *names,
                             GError **error) {
  json_object_set_new(document, "efficiency_source",
                      json_string(options->source ? options->source : names));
  json_object_set_new(document, "calibrated", json_true());
  g_autofree char *text = json_dumps(document, JSON_INDENT(2) | JSON_REAL_PRECISION(8));
  g_autofree char *line = g_strdup_printf("%s\n", text);
  return kv_output_write_file(options->out, line, -1, error);
}

/* Fit every data type that the tables hold. */
static void calibrate_all(KvDevice *device, const GArray *observations, const char *names,
                          gboolean steps, json_t *document) {
  gboolean present[KV_N_DTYPES] = {FALSE};
  for (guint i = 0; i < observations->len; i++)
    present[g_array_index(observations, KvObservation, i).dtype] = TRUE;
  g_autofree double *predicted = g_new0(double, observations->len);
  print_heading(device, observations->len, names);
  for (guint dtype = 0; dtype < KV_N_DTYPES; dtype++)
    if (present[dtype])
      calibrate(device, observations, dtype, document, predicted);
  if (steps)
    print_steps(observations, predicted);
}

/* The reference engine's kernels are measured with pauses, so at the full clock: the power limit is
 * priced by the energies of the device's generation. */
static gboolean price_limit_apart(KvDevice *device, json_t *document, GError **error) {
  json_t *power = json_object_get(document, "power");
  json_object_del(power, "flop_pJ");
  json_object_del(power, "energy_basis");
  char *text = json_dumps(document, JSON_COMPACT);
  KvPlatform *platform = kv_platform_parse(device->id, text, strlen(text), error);
  free(text);
  if (!platform)
    return FALSE;
  device->flop_joules = platform->device->flop_joules;
  device->byte_joules = platform->device->byte_joules;
  kv_platform_free(platform);
  return TRUE;
}

static void put_drive(json_t *document, const KvDevice *measured) {
  if (measured->drive_read_Bps <= 0.0)
    return;
  json_t *drive = json_object();
  put(drive, "read_GBps", 1e-9 * measured->drive_read_Bps);
  put(drive, "write_GBps", 1e-9 * measured->drive_write_Bps);
  put(drive, "latency_us", 1e6 * measured->drive_latency_seconds);
  json_object_set_new(document, "drive", drive);
}

static json_t *technique_document(const KvTechniqueTimes *times) {
  json_t *object = json_object();
  for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++)
    if (times->seconds[p] > 0.0)
      put(object, kv_technique_parts[p].key, times->seconds[p] / kv_technique_parts[p].unit);
  return object;
}

/* Fit what whole steps tell, print how well, and put it into the document. */
static gboolean calibrate_steps(KvDevice *device, const Options *options, json_t *document,
                                GError **error) {
  g_autoptr(GPtrArray) logs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_step_log_free);
  GString *report = g_string_new(NULL);
  device->n_techniques = 0;
  gboolean fitted = kv_calibration_runs_read(options->runs, options->device, logs, error) &&
                    kv_step_fit(device, logs, report, error);
  if (fitted) {
    json_t *techniques = json_object();
    for (guint i = 0; i < device->n_techniques; i++)
      json_object_set_new(techniques, device->techniques[i].id,
                          technique_document(&device->techniques[i]));
    json_object_set_new(document, "techniques", techniques);
    put(document, "gap_us", 1e6 * device->gap_seconds);
    put(document, "stream_gap_us", 1e6 * device->stream_gap_seconds);
    static const KvKernelFamily families[] = {KV_KERNEL_GEMM, KV_KERNEL_MOE};
    for (guint i = 0; i < G_N_ELEMENTS(families); i++)
      store(document, families[i], KV_DTYPE_BF16, &device->efficiency[families[i]][KV_DTYPE_BF16]);
    g_print("%s", report->str);
  }
  g_string_free(report, TRUE);
  return fitted;
}

static gboolean is_fa2(KvAttentionKernel kernel) {
  return kernel == KV_ATTENTION_KERNEL_FA2 || kernel == KV_ATTENTION_KERNEL_FA2_SMALL;
}

static gboolean is_attention(const KvObservation *row) {
  return row->kind == KV_OBSERVED_PREFILL_ATTENTION || row->kind == KV_OBSERVED_DECODE_ATTENTION ||
         row->kind == KV_OBSERVED_MIXED_ATTENTION;
}

/* The kernel that most rows of a kind and type ran on becomes the device's; the tables do not tell
 * the tile of FlashAttention-2, which the device's generation does. Rows of other kernels, which
 * an engine falls back to for shapes that its first choice does not take, are left out: their
 * number. */
static guint settle_kernels(KvDevice *device, GArray *observations) {
  static const KvKernelFamily families[] = {KV_KERNEL_PREFILL_ATTENTION,
                                            KV_KERNEL_DECODE_ATTENTION};
  guint count[KV_N_KERNELS][KV_N_DTYPES][KV_N_ATTENTION_KERNELS + 1] = {0}, left_out = 0;
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (is_attention(row))
      count[families[row->kind == KV_OBSERVED_DECODE_ATTENTION]][row->dtype][row->kernel]++;
  }
  for (guint f = 0; f < G_N_ELEMENTS(families); f++) {
    for (guint d = 0; d < KV_N_DTYPES; d++) {
      KvAttentionKernel *kernel = &device->efficiency[families[f]][d].kernel;
      const guint *of = count[families[f]][d];
      guint most = 0;
      for (guint k = 1; k < KV_N_ATTENTION_KERNELS; k++)
        most = of[k] > of[most] ? k : most;
      if (of[most] > 0 && !(is_fa2(most) && is_fa2(*kernel)))
        *kernel = most;
    }
  }
  for (guint i = observations->len; i-- > 0;) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (!is_attention(row))
      continue;
    KvAttentionKernel used =
        device->efficiency[families[row->kind == KV_OBSERVED_DECODE_ATTENTION]][row->dtype].kernel;
    gboolean same = row->kernel == used || (is_fa2(row->kernel) && is_fa2(used));
    /* A chunk of one token is priced as decoding. */
    if (!same && !(row->kind == KV_OBSERVED_PREFILL_ATTENTION && row->chunk <= 1)) {
      g_array_remove_index(observations, i);
      left_out++;
    }
  }
  return left_out;
}

/* The same for a layer's routed experts. */
static guint settle_experts(GArray *observations) {
  const char *most[KV_N_DTYPES] = {NULL};
  guint highest[KV_N_DTYPES] = {0}, left_out = 0;
  g_autoptr(GHashTable) counts = g_hash_table_new(NULL, NULL); /* a table names a kernel by type */
  for (guint i = 0; i < observations->len; i++) {
    const KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (row->kind != KV_OBSERVED_MOE || !row->source)
      continue;
    gsize key = (gsize)row->source * KV_N_DTYPES + row->dtype;
    guint count = 1 + GPOINTER_TO_UINT(g_hash_table_lookup(counts, GSIZE_TO_POINTER(key)));
    g_hash_table_insert(counts, GSIZE_TO_POINTER(key), GUINT_TO_POINTER(count));
    if (count > highest[row->dtype]) {
      highest[row->dtype] = count;
      most[row->dtype] = row->source;
    }
  }
  guint kept = 0;
  for (guint i = 0; i < observations->len; i++) {
    KvObservation *row = &g_array_index(observations, KvObservation, i);
    if (row->kind == KV_OBSERVED_MOE && row->source && row->source != most[row->dtype])
      left_out++;
    else
      g_array_index(observations, KvObservation, kept++) = *row;
  }
  g_array_set_size(observations, kept);
  return left_out;
}

static gboolean run(Options *options, GError **error) {
  g_autoptr(GArray) observations = g_array_new(FALSE, FALSE, sizeof(KvObservation));
  g_autoptr(GString) names = g_string_new(NULL);
  KvDevice launches = {0};
  gboolean kernels = options->measure && !(has_tables(options) && options->runs);
  if ((kernels && !measure_table(options, observations, names, &launches, error)) ||
      (options->measure && options->runs && !measure_runs(options, error)) ||
      !read_tables(options->from, observations, names, &launches, error) ||
      !read_tables(options->files, observations, names, &launches, error))
    return FALSE;
  if (observations->len == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: no operation that can be fitted", names->str);
    return FALSE;
  }
  KvDevice *device = kv_device_load(options->device, error);
  if (!device)
    return FALSE;
  guint left_out = settle_kernels(device, observations);
  if (left_out > 0)
    g_print("%u rows of other attention kernels than the usual one are left out\n", left_out);
  left_out = settle_experts(observations);
  if (left_out > 0)
    g_print("%u rows of other expert kernels than the usual one are left out\n", left_out);
  if (options->like) {
    gboolean borrowed = borrow_efficiency(device, options->like, error);
    if (borrowed)
      score(device, observations, names->str);
    kv_device_free(device);
    return borrowed;
  }
  json_t *document = device_document(options->device, error);
  gboolean fine = document != NULL;
  if (fine) {
    put_drive(document, &launches);
    if (launches.launch_seconds > 0.0) {
      put(document, "launch_us", 1e6 * launches.launch_seconds);
      device->launch_seconds = launches.launch_seconds;
    }
    if (launches.graph_node_seconds > 0.0) {
      put(document, "graph_node_us", 1e6 * launches.graph_node_seconds);
      device->graph_node_seconds = launches.graph_node_seconds;
      fine = price_limit_apart(device, document, error);
    }
  }
  if (fine) {
    calibrate_all(device, observations, names->str, options->steps, document);
    fine = !options->runs || calibrate_steps(device, options, document, error);
    fine = fine && (!options->out || write_device(options, document, names->str, error));
  }
  json_decref(document);
  kv_device_free(device);
  return fine;
}

int kv_calibrate_command(int argc, char **argv, GError **error) {
  g_auto(Options) options = {0};
  GError *problem = NULL;
  g_set_prgname("kvsim calibrate");
  if (parse(&options, &argc, &argv, &problem) && run(&options, &problem))
    return 0;
  int status = kv_error_exit_status(problem);
  g_propagate_error(error, problem);
  return status;
}
