#include "models/kernels/calibrate.h"

#include <string.h>

#include "models/kernels/fit.h"
#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/output.h"

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
    {KV_OBSERVED_ALL_REDUCE, KV_KERNEL_ALL_REDUCE},
    {KV_OBSERVED_DECODE_STEP, KV_KERNEL_GEMM},
    {KV_OBSERVED_DECODE_STEP, KV_KERNEL_DECODE_ATTENTION},
    {KV_OBSERVED_DECODE_STEP, KV_KERNEL_ELEMENTWISE},
    {KV_OBSERVED_PREFILL_STEP, KV_KERNEL_GEMM},
    {KV_OBSERVED_PREFILL_STEP, KV_KERNEL_PREFILL_ATTENTION},
    {KV_OBSERVED_PREFILL_STEP, KV_KERNEL_ELEMENTWISE},
};

typedef struct {
  char **from, **files;
  char *device, *out, *source;
  gboolean steps;
} Options;

static void options_clear(Options *options) {
  g_strfreev(options->from);
  g_strfreev(options->files);
  g_free(options->device);
  g_free(options->out);
  g_free(options->source);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

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
      {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &options->files, NULL, NULL},
      {NULL}};
  g_autoptr(GOptionContext) context = g_option_context_new("[TABLE…]");
  g_option_context_set_summary(
      context, "Fit a device's kernel efficiencies to tables of measured times. The residuals are\n"
               "those of rows that the scoring fit did not see, of 10 us and more.");
  g_option_context_set_description(
      context,
      "Example:\n  kvsim calibrate --device h200 --from ceilings.json steps.json -o h200.json\n");
  g_option_context_add_main_entries(context, entries, NULL);
  g_autoptr(GError) problem = NULL;
  if (!g_option_context_parse(context, argc, argv, &problem)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s (see `kvsim calibrate --help`)",
                problem->message);
    return FALSE;
  }
  const char *missing = !options->device                    ? "--device"
                        : !options->from && !options->files ? "--from"
                                                            : NULL;
  if (missing)
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "calibrate: no %s (see `kvsim calibrate --help`)",
                missing);
  return !missing;
}

static gboolean read_tables(char **paths, GArray *observations, GString *names, GError **error) {
  for (guint i = 0; paths && paths[i]; i++) {
    if (!kv_observations_read(paths[i], observations, error))
      return FALSE;
    g_autofree char *name = g_path_get_basename(paths[i]);
    g_string_append_printf(names, "%s%s", names->len ? ", " : "", name);
  }
  return TRUE;
}

static void print_efficiency(const char *family, const char *dtype,
                             const KvEfficiency *efficiency) {
  g_print(
      "  %-18s %-5s fixed %6.2f us  flops %.3f  sustained %.3f  bandwidth %.3f  sharpness %.2f  block %.2f us\n",
      family, dtype, efficiency->fixed_seconds * 1e6, efficiency->flops_share,
      efficiency->sustained_share > 0 ? efficiency->sustained_share : 1.0,
      efficiency->bandwidth_share, efficiency->sharpness, efficiency->block_seconds * 1e6);
}

static void print_residuals(const KvResidual *residual, KvDtype dtype) {
  for (guint kind = 0; kind < KV_N_OBSERVED; kind++)
    if (residual[kind].n > 0)
      g_print("  %-18s %-5s %7u %8.1f %% %7.1f %% %+7.1f %%\n", kv_observed_names[kind],
              kv_dtype_names[dtype], residual[kind].n, 100 * residual[kind].median,
              100 * residual[kind].p95, 100 * residual[kind].bias);
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
  put(object, "fixed_us", efficiency->fixed_seconds * 1e6);
  if (efficiency->block_seconds > 0)
    put(object, "block_us", efficiency->block_seconds * 1e6);
  put(object, "flops_share", efficiency->flops_share > 0 ? efficiency->flops_share : 1);
  if (efficiency->sustained_share > 0)
    put(object, "sustained_share", efficiency->sustained_share);
  put(object, "bandwidth_share", efficiency->bandwidth_share);
  if (family == KV_KERNEL_GEMM && kv_dtype_bytes(dtype) < 2)
    put(object, "quantize_share", efficiency->quantize_share);
  put(object, "sharpness", efficiency->sharpness >= 1 ? efficiency->sharpness : 1);
  put(object, "residual", efficiency->residual);
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
    efficiency->residual = residual[fitted_families[i].kind].median;
    print_efficiency(kv_kernel_family_names[family], kv_dtype_names[type], efficiency);
    store(document, family, type, efficiency);
  }
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
  g_print("%s: %u measured times from %s\n\n  %-18s %-5s %7s %10s %9s %9s\n", device->id,
          observations->len, names, "rows not fitted", "type", "n", "median", "p95", "bias");
  for (guint dtype = 0; dtype < KV_N_DTYPES; dtype++)
    if (present[dtype])
      calibrate(device, observations, dtype, document, predicted);
  if (steps)
    print_steps(observations, predicted);
}

static gboolean run(const Options *options, GError **error) {
  g_autoptr(GArray) observations = g_array_new(FALSE, FALSE, sizeof(KvObservation));
  g_autoptr(GString) names = g_string_new(NULL);
  if (!read_tables(options->from, observations, names, error) ||
      !read_tables(options->files, observations, names, error))
    return FALSE;
  if (observations->len == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: no operation that can be fitted", names->str);
    return FALSE;
  }
  KvDevice *device = kv_device_load(options->device, error);
  if (!device)
    return FALSE;
  json_t *document = device_document(options->device, error);
  gboolean fine = document != NULL;
  if (fine) {
    calibrate_all(device, observations, names->str, options->steps, document);
    fine = !options->out || write_device(options, document, names->str, error);
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
