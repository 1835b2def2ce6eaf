/* kvsim predict: the price of one step, kernel by kernel. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "models/techniques/quality.h"
#include "sim/base/error.h"
#include "sim/cli/cli.h"
#include "sim/cli/scenario_options.h"
#include "sim/engine/model_executor.h"
#include "sim/engine/predict.h"
#include "viz/format.h"

static const char *phase_name(const KvStepQuestion *q) {
  return q->decode ? "decode" : "prefill";
}

static double total_resident(const KvPrediction *prediction) {
  double bytes = 0.0;
  for (guint t = 0; t < KV_N_TIERS; t++)
    bytes += prediction->resident_bytes[t];
  return bytes;
}

static void print_json(const KvSetup *setup, const KvStepQuestion *q, const KvPrediction *a) {
  json_t *components = json_array();
  for (guint i = 0; i < a->kernels->len; i++) {
    const KvPricedKernel *k = &g_array_index(a->kernels, KvPricedKernel, i);
    json_array_append_new(components,
                          json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:s, s:s}", "name", k->name,
                                    "component", kv_component_names[k->component], "count",
                                    k->count, "seconds", k->cost.seconds, "flops", k->cost.flops,
                                    "hbm_bytes", k->cost.bytes, "bound",
                                    kv_bound_names[k->cost.bound], "operands", k->operands));
  }
  json_t *tiers = json_object();
  for (guint t = 0; t < KV_N_TIERS; t++)
    if (a->resident_bytes[t] > 0.0)
      json_object_set_new(tiers, kv_tier_names[t], json_real(a->resident_bytes[t]));
  const KvScenario *s = setup->scenario;
  g_autofree char *unmeasured = kv_setup_unmeasured(setup);
  KvTimeInterval interval = kv_prediction_interval(setup, a);
  json_t *root = json_pack(
      "{s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:b, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:f, s:o}",
      "model", setup->model->id, "platform", setup->platform->id, "use", s->use, "tensor_parallel",
      (int)s->tensor_parallel, "phase", phase_name(q), "batch", (int)q->batch, "context_tokens",
      (int)q->context_tokens, "calibrated", setup->platform->device->calibrated && !unmeasured,
      "time_seconds", a->cost.seconds, "time_low_seconds", kv_time_interval_low(&interval),
      "time_high_seconds", kv_time_interval_high(&interval), "kv_resident_bytes", total_resident(a),
      "kv_read_bytes", a->read_bytes, "kv_resident_bytes_by_tier", tiers, "flops",
      a->cost.flops * s->tensor_parallel, "hbm_bytes", a->cost.hbm_bytes * s->tensor_parallel,
      "launches", a->cost.launches, "components", components);
  g_autoptr(KvQuality) quality = kv_stack_quality(setup->stack);
  json_object_set_new(root, "quality", kv_quality_to_json(quality));
  char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
  puts(text);
  free(text);
  json_decref(root);
}

/* `value` in `unit`, right-aligned in `width` columns (printf would count the bytes of a "µ"). */
static void print_cell(KvUnit unit, double value, int width) {
  g_autofree char *text = kv_format(unit, value);
  printf(" %*s%s", MAX(0, width - (int)g_utf8_strlen(text, -1)), "", text);
}

static void print_kernel(const KvPricedKernel *k, double total_seconds) {
  printf("  %-28s %6.0f", k->name, k->count);
  print_cell(KV_UNIT_SECONDS, k->cost.seconds, 10);
  print_cell(KV_UNIT_SHARE, k->cost.seconds / total_seconds, 7);
  print_cell(KV_UNIT_FLOPS, k->cost.flops, 11);
  print_cell(KV_UNIT_BYTES, k->cost.bytes, 10);
  const char *operands = k->operands;
  printf(operands && *operands ? "  %-8s %s\n" : "  %s%s\n", kv_bound_names[k->cost.bound],
         operands ? operands : "");
}

/* What the stack does to answers; nothing if it leaves them as they are. */
static void print_quality(const KvSetup *setup) {
  g_autoptr(KvQuality) quality = kv_stack_quality(setup->stack);
  if (quality->exact)
    return;
  g_autofree char *range = kv_quality_describe(quality), *detail = kv_quality_explain(quality);
  printf("\n  quality: %s\n", range);
  if (*detail)
    printf("  %s\n", detail);
}

static void print_table(const KvSetup *setup, const KvStepQuestion *q, const KvPrediction *a) {
  g_autofree char *time = kv_format(KV_UNIT_SECONDS, a->cost.seconds);
  g_autofree char *resident = kv_format(KV_UNIT_BYTES, total_resident(a));
  g_autofree char *read = kv_format(KV_UNIT_BYTES, a->read_bytes);
  g_autofree char *flops =
      kv_format(KV_UNIT_FLOPS, a->cost.flops * setup->scenario->tensor_parallel);
  g_autofree char *unmeasured = kv_setup_unmeasured(setup);
  g_autofree char *mark = unmeasured ? g_strdup_printf(" (uncalibrated: %s)", unmeasured)
                          : setup->platform->device->calibrated ? g_strdup("")
                                                                : g_strdup(" (uncalibrated)");
  printf("%s on %s%s%s: %s of %u x %u tokens%s\n", setup->model->id, setup->platform->id,
         *setup->scenario->use ? ", " : "", setup->scenario->use, phase_name(q), q->batch,
         q->context_tokens, mark);
  KvTimeInterval interval = kv_prediction_interval(setup, a);
  g_autofree char *low = kv_format(KV_UNIT_SECONDS, kv_time_interval_low(&interval));
  g_autofree char *high = kv_format(KV_UNIT_SECONDS, kv_time_interval_high(&interval));
  printf("  %s (90 %% interval %s to %s) · KV cache %s resident, %s read · %s\n\n", time, low, high,
         resident, read, flops);
  printf("  %-28s %6s %10s %7s %11s %10s  %-8s %s\n", "kernel", "count", "time", "share", "FLOPs",
         "HBM", "bound", "operands");
  for (guint i = 0; i < a->kernels->len; i++)
    print_kernel(&g_array_index(a->kernels, KvPricedKernel, i), a->cost.seconds);
  print_quality(setup);
}

gboolean kv_command_predict(int argc, char **argv, GError **error) {
  g_auto(KvScenarioOptions) options = {0};
  g_autofree char *phase = NULL;
  int batch = 1, context = 1024, chunk = 0;
  gboolean as_json = FALSE;
  const GOptionEntry extra[] = {
      {"phase", 0, 0, G_OPTION_ARG_STRING, &phase, "prefill or decode (default)", "PHASE"},
      {"batch", 'b', 0, G_OPTION_ARG_INT, &batch, "sequences (default 1)", "N"},
      {"context", 'c', 0, G_OPTION_ARG_INT, &context,
       "tokens of each, the new one counted (default 1024)", "N"},
      {"chunk", 0, 0, G_OPTION_ARG_INT, &chunk,
       "prefill: only the last N tokens are new (default: all)", "N"},
      {"json", 0, 0, G_OPTION_ARG_NONE, &as_json, "print JSON", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autofree GOptionEntry *entries = kv_scenario_option_entries(&options, extra);
  g_autoptr(KvScenario) scenario = NULL;
  gboolean ok = kv_cli_parse(kv_command_find("predict"), entries, &argc, &argv, error) &&
                (scenario = kv_scenario_options_apply_all(&options, error));
  if (!ok)
    return FALSE;
  if (argc > 1 || batch < 1 || context < 1 || chunk < 0 || batch > 1000000 || context > 100000000) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "predict: %s, expected --batch from 1 to 1e6 and --context from 1 to 1e8",
                argc > 1 ? "takes no arguments" : "a count is out of range");
    return FALSE;
  }
  if (phase && strcmp(phase, "decode") != 0 && strcmp(phase, "prefill") != 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "--phase '%s', expected prefill or decode", phase);
    return FALSE;
  }
  KvStepQuestion q = {g_strcmp0(phase, "prefill") != 0, (guint)batch, (guint)context, (guint)chunk};
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  if (!setup)
    return FALSE;
  if (q.context_tokens > setup->model->max_context_tokens)
    fprintf(stderr, "kvsim: warning: %u tokens are beyond the %u of %s\n", q.context_tokens,
            setup->model->max_context_tokens, setup->model->id);
  KvPrediction prediction;
  ok = kv_predict(setup, &q, &prediction, error);
  if (ok && as_json)
    print_json(setup, &q, &prediction);
  else if (ok)
    print_table(setup, &q, &prediction);
  kv_prediction_clear(&prediction);
  return ok;
}
