/* Measured steps of whole models: the readers, and the readings of reference/measured as a floor
 * under accuracy. */
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/validate/step_log.h"
#include "sim/validate/steps.h"

static char *measured(const char *name) {
  return g_build_filename(g_getenv("KV_MEASURED"), name, NULL);
}

static gint compare_doubles(gconstpointer a, gconstpointer b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Decode steps of one file, Llama-3-8B (which was fitted) left out if `unseen_only`. */
static void hold_decode_steps(const char *name, gboolean unseen_only, guint n, double median,
                              double worst) {
  g_autofree char *path = measured(name);
  g_autoptr(GError) error = NULL;
  g_autoptr(GArray) steps = kv_measured_steps(path, NULL, &error);
  g_autoptr(GArray) sizes = g_array_new(FALSE, FALSE, sizeof(double));
  g_assert_no_error(error);
  for (guint i = 0; i < steps->len; i++) {
    const KvMeasuredStep *step = &g_array_index(steps, KvMeasuredStep, i);
    if (!step->decode || (unseen_only && strcmp(step->model, "llama-3-8b") == 0))
      continue;
    double size = fabs(step->predicted_seconds / step->measured_seconds - 1.0);
    g_array_append_val(sizes, size);
  }
  g_assert_cmpuint(sizes->len, ==, n);
  g_array_sort(sizes, compare_doubles);
  g_assert_cmpfloat(g_array_index(sizes, double, n / 2), <=, median);
  g_assert_cmpfloat(g_array_index(sizes, double, n - 1), <=, worst);
}

static void unseen_models_on_h200(void) {
  hold_decode_steps("h200/pytorch_steps.json", TRUE, 33, 0.03, 0.06);
}

/* Fitted to kernels of vLLM only: no step of any model. */
static void unseen_steps_on_h100(void) {
  hold_decode_steps("h100/pytorch_steps.json", FALSE, 24, 0.03, 0.06);
}

static GArray *read_text(const char *text, const char *platform, GError **error) {
  g_autofree char *path = NULL;
  int fd = g_file_open_tmp("kvsim-steps-XXXXXX", &path, NULL);
  g_assert_cmpint(fd, >=, 0);
  g_close(fd, NULL);
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
  GArray *steps = kv_measured_steps(path, platform, error);
  g_unlink(path);
  return steps;
}

static void quickest_backend_and_median_repeat(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(GArray) json = read_text(
      "{\"device\": \"NVIDIA H200\", \"steps\": ["
      "{\"model\": \"llama-3-8b\", \"phase\": \"decode\", \"batch\": 1, \"context\": 512, \"us\": 5065},"
      "{\"model\": \"llama-3-8b\", \"phase\": \"decode\", \"batch\": 1, \"context\": 512, \"us\": 5010}]}",
      NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(json->len, ==, 1);
  g_assert_cmpfloat_with_epsilon(g_array_index(json, KvMeasuredStep, 0).measured_seconds, 5010e-6,
                                 1e-12);
  g_assert_cmpstr(g_array_index(json, KvMeasuredStep, 0).platform, ==, "h200");
  g_autoptr(GArray) csv = read_text(
      "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,"
      "e2e_time,tensor_parallel\n"
      "llama2-70b,a100-80gb,512,1,128,1.0,0.7,196.0,54.0,7168,2\n"
      "llama2-70b,a100-80gb,512,1,128,1.0,0.7,190.0,55.0,7165,2\n"
      "llama2-70b,a100-80gb,512,1,128,1.0,0.7,197.0,58.0,7160,2\n",
      NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(csv->len, ==, 2);
  const KvMeasuredStep *prompt = &g_array_index(csv, KvMeasuredStep, 0), *token = prompt + 1;
  g_assert_cmpfloat_with_epsilon(prompt->measured_seconds, 0.196, 1e-12);
  g_assert_cmpfloat_with_epsilon(token->measured_seconds, 0.055, 1e-12);
  g_assert_cmpuint(token->context_tokens, ==, 512 + 64);
  g_assert_cmpstr(token->group, ==, "llama-2-70b on 8xa100-80gb, TP 2, decode");
}

static void bad_files(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {
      {"[{\"model\": \"llama-3-8b\"}]", ":1: does not name its device, expected --platform"},
      {"{\"device\": \"h200\", \"steps\": [{\"model\": \"llama-3-8b\",\n\"phase\": \"sleep\"}]}",
       ":2: 'phase' is 'sleep', expected decode|prefill"},
      {"model,hardware,prompt_size\nllama2-70b,a100-80gb,512\n",
       ":2: not a row of measured steps, expected 11 columns as the header"},
      {"{\"device\": \"nogpu\", \"steps\": [{\"model\": \"llama-3-8b\", \"phase\": \"decode\", \"batch\": 1, "
       "\"context\": 512, \"us\": 5065}]}",
       "unknown platform 'nogpu'"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(read_text(cases[i].text, NULL, &error));
    g_assert_nonnull(strstr(error->message, cases[i].message));
    g_assert_cmpint(kv_error_exit_status(error), ==, 2);
  }
}

/* Every step of a run of the reference engine on an H200, of a model and a trace that the device
 * file of its own kernels was not fitted to. The limits are what is reached, and a little. */
static void assert_run(const char *name, double median, double p95) {
  g_autofree char *file = g_strdup_printf("h200/%s/steps.csv.gz", name);
  g_autofree char *path = measured(file), *device = measured("h200/device.json");
  GError *error = NULL;
  g_autoptr(KvStepLog) log = kv_step_log_read(path, device, &error);
  g_assert_no_error(error);
  g_assert_true(kv_step_log_price(log, &error));
  g_assert_no_error(error);
  g_autoptr(GArray) accuracies = kv_step_log_accuracy(log);
  gboolean found = FALSE;
  for (guint i = 0; i < accuracies->len; i++) {
    const KvOperationAccuracy *x = &g_array_index(accuracies, KvOperationAccuracy, i);
    if (strcmp(x->name, "all steps") != 0)
      continue;
    found = TRUE;
    g_assert_cmpuint(x->n, >, 600);
    g_assert_cmpfloat(x->median, <=, median);
    g_assert_cmpfloat(x->p95, <=, p95);
  }
  g_assert_true(found);
}

static void reference_engine_on_h200(void) {
  static const struct {
    const char *name;
    double median, p95;
  } runs[] = {{"0.5b-chat", 0.04, 0.12},
              {"8b-exact", 0.02, 0.06},
              {"8b-calls", 0.04, 0.06},
              {"8b-closed", 0.02, 0.08},
              {"8b-long", 0.03, 0.06},
              {"8b-fp8", 0.04, 0.08},
              {"8b-kivi-2bit", 0.03, 0.1},
              {"8b-kivi-4bit", 0.03, 0.1},
              {"8b-snapkv", 0.03, 0.07},
              {"8b-pyramidkv", 0.03, 0.06},
              {"8b-h2o", 0.04, 0.11},
              {"8b-quest", 0.03, 0.08},
              {"8b-minicache", 0.03, 0.07},
              {"8b-palu", 0.07, 0.16},
              {"1b-shared", 0.04, 0.08},
              {"1b-flexgen-half", 0.03, 0.06},
              {"1b-flexgen-streamed", 0.04, 0.06}};
  for (guint i = 0; i < G_N_ELEMENTS(runs); i++)
    assert_run(runs[i].name, runs[i].median, runs[i].p95);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/validate/steps/unseen-models-on-h200", unseen_models_on_h200);
  g_test_add_func("/validate/steps/unseen-steps-on-h100", unseen_steps_on_h100);
  g_test_add_func("/validate/steps/quickest-backend-and-median-repeat",
                  quickest_backend_and_median_repeat);
  g_test_add_func("/validate/steps/reference-engine-on-h200", reference_engine_on_h200);
  g_test_add_func("/validate/steps/bad-files", bad_files);
  return g_test_run();
}
