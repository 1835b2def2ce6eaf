/* What only whole steps tell of a device, fitted to steps that a known device made. */
#include <math.h>
#include <string.h>

#include <glib/gstdio.h>

#include "sim/validate/calibration_runs.h"
#include "sim/validate/step_fit.h"
#include "traces/trace.h"

static void add_step(KvStepLog *log, guint decoding, guint32 context, guint32 past, guint32 chunk) {
  KvLoggedStep step = {.first_chunk = log->chunks->len,
                       .first_context = log->contexts->len,
                       .n_chunks = chunk > 0,
                       .n_decode = decoding};
  for (guint i = 0; i < decoding; i++) {
    guint32 each = context + 37 * i;
    g_array_append_val(log->contexts, each);
  }
  if (chunk) {
    KvChunk one = {.past = past, .tokens = chunk, .last = past > 0};
    g_array_append_val(log->chunks, one);
  }
  g_array_append_val(log->steps, step);
}

/* Steps of many shapes under the settings (as of --set, spaces between), as `truth` prices them. */
static KvStepLog *made_by(const KvDevice *truth, const char *settings) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvScenario) s = kv_scenario_new();
  g_auto(GStrv) each = g_strsplit(settings, " ", -1);
  kv_scenario_set(s, "model=llama-3.2-1b", &error);
  kv_scenario_set(s, "platform=h200", &error);
  kv_scenario_set(s, "engine.cuda_graph_prompts=false", &error);
  for (guint i = 0; each[i]; i++)
    if (*each[i])
      kv_scenario_set(s, each[i], &error);
  g_assert_no_error(error);
  KvStepLog *log = kv_step_log_new("cuda");
  log->scenario = g_steal_pointer(&s);
  for (guint decoding = 1; decoding <= 48; decoding = 2 * decoding + 1)
    for (guint32 context = 200; context <= 8000; context *= 3)
      add_step(log, decoding, context, 0, 0);
  for (guint32 chunk = 512; chunk <= 8192; chunk *= 2)
    for (guint32 past = 0; past <= 2048; past += 1024)
      add_step(log, chunk % 3, 900, past, chunk);
  g_assert_true(kv_step_log_price_by(log, truth, &error));
  for (guint i = 0; i < log->steps->len; i++) {
    KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
    step->measured_seconds = step->predicted_seconds;
  }
  return log;
}

static KvDevice *h200(void) {
  g_autoptr(GError) error = NULL;
  KvDevice *device = kv_device_load("h200", &error);
  g_assert_no_error(error);
  return device;
}

static void assert_within(double value, double expected, double share) {
  if (!(fabs(value - expected) <= share * fabs(expected)))
    g_error("%.9g is not within %g of %.9g", value, share, expected);
}

static void gaps_and_ramps_are_found(void) {
  KvDevice *truth = h200(), *device = h200();
  KvEfficiency *gemm = &truth->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16];
  truth->gap_seconds = 0.9e-6;
  truth->stream_gap_seconds = 1.6e-6;
  gemm->ramp_seconds = 6e-6;
  gemm->vector_share = 0.9;
  gemm->vector_seconds = 1e-6;
  gemm->vector_ramp_seconds = 2e-6;
  device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].vector_share = 0.9;
  device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].vector_seconds = 1e-6;
  g_autoptr(GPtrArray) logs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_step_log_free);
  GString *report = g_string_new(NULL);
  g_autoptr(GError) error = NULL;
  g_ptr_array_add(logs, made_by(truth, ""));
  g_ptr_array_add(logs, made_by(truth, "model=llama-3.1-8b"));
  g_assert_true(kv_step_fit(device, logs, report, &error));
  const KvEfficiency *found = &device->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16];
  assert_within(device->gap_seconds, 0.9e-6, 0.05);
  assert_within(device->stream_gap_seconds, 1.6e-6, 0.05);
  assert_within(found->ramp_seconds, 6e-6, 0.05);
  assert_within(found->vector_ramp_seconds, 2e-6, 0.05);
  g_assert_nonnull(strstr(report->str, "the engine"));
  g_string_free(report, TRUE);
  kv_device_free(truth);
  kv_device_free(device);
}

/* Two techniques beside the engine itself, the one in two logs; the plan's own estimate of their
 * work is no part of it. */
static void techniques_are_found(void) {
  static const struct {
    const char *id;
    KvTechniquePart part;
    double seconds;
  } parts[] = {{"snapkv", KV_TECHNIQUE_STEP, 3e-6},
               {"snapkv", KV_TECHNIQUE_PROMPT, 4e-5},
               {"fp8", KV_TECHNIQUE_CHUNK, 5e-6},
               {"fp8", KV_TECHNIQUE_SEQUENCE, 4e-7},
               {"fp8", KV_TECHNIQUE_CONTEXT, 2e-13}};
  KvDevice *truth = h200(), *device = h200();
  truth->gap_seconds = truth->stream_gap_seconds = 0.5e-6;
  truth->efficiency[KV_KERNEL_GEMM][KV_DTYPE_BF16].ramp_seconds = 4e-6;
  for (guint i = 0; i < 2; i++)
    g_strlcpy(truth->techniques[truth->n_techniques++].id, i ? "fp8" : "snapkv",
              sizeof truth->techniques[0].id);
  for (guint i = 0; i < G_N_ELEMENTS(parts); i++)
    ((KvTechniqueTimes *)kv_device_technique(truth, parts[i].id))->seconds[parts[i].part] =
        parts[i].seconds;
  g_autoptr(GPtrArray) logs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_step_log_free);
  GString *report = g_string_new(NULL);
  g_autoptr(GError) error = NULL;
  g_ptr_array_add(logs, made_by(truth, "use=snapkv:budget=256"));
  g_ptr_array_add(logs, made_by(truth, "precision.cache=fp8"));
  g_ptr_array_add(logs, made_by(truth, ""));
  g_ptr_array_add(logs, made_by(truth, "use=snapkv:budget=512"));
  g_assert_true(kv_step_fit(device, logs, report, &error));
  g_assert_no_error(error);
  g_assert_cmpuint(device->n_techniques, ==, 2);
  for (guint i = 0; i < G_N_ELEMENTS(parts); i++) {
    const KvTechniqueTimes *times = kv_device_technique(device, parts[i].id);
    g_assert_nonnull(times);
    assert_within(times->seconds[parts[i].part], parts[i].seconds, 0.15);
  }
  /* Whatever the parts: the steps are met. */
  for (guint l = 0; l < logs->len; l++) {
    KvStepLog *log = g_ptr_array_index(logs, l);
    g_assert_true(kv_step_log_price_by(log, device, &error));
    for (guint i = 0; i < log->steps->len; i++) {
      const KvLoggedStep *step = &g_array_index(log->steps, KvLoggedStep, i);
      assert_within(step->predicted_seconds, step->measured_seconds, 0.02);
    }
  }
  g_string_free(report, TRUE);
  kv_device_free(truth);
  kv_device_free(device);
}

static void two_techniques_are_refused(void) {
  KvDevice *device = h200();
  g_autoptr(GPtrArray) logs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_step_log_free);
  GString *report = g_string_new(NULL);
  g_autoptr(GError) error = NULL;
  g_ptr_array_add(logs, made_by(device, "use=snapkv:budget=256 precision.cache=fp8"));
  g_assert_false(kv_step_fit(device, logs, report, &error));
  g_assert_nonnull(strstr(error->message, "fp8 and snapkv at once, expected one"));
  g_string_free(report, TRUE);
  kv_device_free(device);
}

/* A folder of logs is read in the order of names, other files are passed over, and none is an
 * error. */
static void folders_are_read(void) {
  KvDevice *device = h200();
  g_autoptr(GError) error = NULL;
  g_autofree char *folder = g_dir_make_tmp("kvsim-runs-XXXXXX", NULL);
  g_autofree char *other = g_build_filename(folder, "a-note.txt", NULL);
  g_autoptr(GPtrArray) logs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_step_log_free);
  g_assert_true(g_file_set_contents(other, "nothing of ours\n", -1, NULL));
  g_assert_false(kv_calibration_runs_read(folder, "h200", logs, &error));
  g_assert_nonnull(strstr(error->message, "no step log in it"));
  g_clear_error(&error);
  static const char *const names[] = {"z.csv", "b.csv"};
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autofree char *path = g_build_filename(folder, names[i], NULL);
    g_autoptr(KvStepLog) log = made_by(device, i ? "precision.cache=fp8" : "");
    g_assert_true(kv_step_log_write(log, path, &error));
  }
  g_assert_true(kv_calibration_runs_read(folder, "h200", logs, &error));
  g_assert_cmpuint(logs->len, ==, 2);
  g_assert_cmpuint(((const KvStepLog *)g_ptr_array_index(logs, 0))->scenario->cache_dtype, ==,
                   KV_DTYPE_FP8);
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autofree char *path = g_build_filename(folder, names[i], NULL);
    g_unlink(path);
  }
  g_unlink(other);
  g_rmdir(folder);
  kv_device_free(device);
}

/* Few, many and long sequences are what their names say. */
static void loads_differ(void) {
  static const guint n[KV_CALIBRATION_LOADS] = {12, 44, 8};
  double mean[KV_CALIBRATION_LOADS];
  g_autofree char *folder = g_dir_make_tmp("kvsim-loads-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "trace.jsonl", NULL);
  for (guint load = 0; load < KV_CALIBRATION_LOADS; load++) {
    g_autoptr(GError) error = NULL;
    g_assert_true(kv_calibration_runs_write_trace(path, load, &error));
    g_autoptr(KvTraceReader) reader = kv_trace_reader_open(path, NULL, &error);
    KvTraceRequest request;
    double tokens = 0.0;
    guint requests = 0;
    while (kv_trace_reader_next(reader, &request, &error)) {
      tokens += request.input_tokens;
      requests++;
    }
    g_assert_no_error(error);
    g_assert_cmpuint(requests, ==, n[load]);
    mean[load] = tokens / requests;
  }
  g_assert_cmpfloat(mean[1], <, mean[0]); /* many are shorter than few */
  g_assert_cmpfloat(mean[2], >, 4.0 * mean[0]);
  g_unlink(path);
  g_rmdir(folder);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/step-fit/gaps", gaps_and_ramps_are_found);
  g_test_add_func("/step-fit/techniques", techniques_are_found);
  g_test_add_func("/step-fit/refused", two_techniques_are_refused);
  g_test_add_func("/step-fit/folders", folders_are_read);
  g_test_add_func("/step-fit/loads", loads_differ);
  return g_test_run();
}
