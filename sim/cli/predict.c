/* kvsim predict: the price of one step, kernel by kernel. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/format.h"
#include "sim/cli/cli.h"
#include "sim/cli/scenario_options.h"
#include "sim/engine/model_executor.h"
#include "sim/engine/simulation.h"

typedef struct {
  const char *phase;
  guint batch, context, chunk;
} Question;

typedef struct {
  KvStepCost cost;
  GArray *kernels; /* of KvPricedKernel */
  double resident_bytes, read_bytes;
  double tier_bytes[KV_N_TIERS];
} Answer;

/* Decode: `batch` sequences whose context is `context`, the new token counted. Prefill: `batch`
 * prompts of `context` tokens in one step, or their last `chunk` tokens. */
static gboolean ask(const KvSetup *setup, const Question *q, Answer *answer, GError **error) {
  gboolean decode = strcmp(q->phase, "decode") == 0;
  KvExecutor *executor =
      kv_model_executor_new(setup->model, setup->plan, &setup->curves, setup->platform,
                            &setup->scenario->engine, setup->scenario->tensor_parallel);
  double values[KV_MAX_CHANNELS] = {0}, slopes[KV_MAX_CHANNELS] = {0};
  g_autofree KvChunk *chunks = g_new0(KvChunk, q->batch);
  KvStep step = {.chunks = chunks, .repeat = 1};
  if (decode) {
    for (guint c = 0; c < setup->curves.n_channels; c++)
      values[c] =
          q->batch * kv_law_value(&setup->curves.laws[c], q->context, q->context, TRUE, NULL, NULL);
    step.decode = (KvDecodeBatch){.n = q->batch,
                                  .context_tokens = (double)q->batch * q->context,
                                  .longest_tokens = q->context,
                                  .values = values,
                                  .slopes = slopes};
  } else {
    guint tokens = q->chunk ? MIN(q->chunk, q->context) : q->context;
    step.n_chunks = q->batch;
    for (guint i = 0; i < q->batch; i++)
      chunks[i] = (KvChunk){.past = q->context - tokens, .tokens = tokens, .last = TRUE};
  }
  gboolean ok = executor->class->step(executor, &step, &answer->cost, error);
  answer->kernels = kv_model_executor_kernels(executor, &step);
  executor->class->destroy(executor);
  KvPlanCost one = kv_plan_cost(setup->plan, &setup->curves, q->context, q->context, decode);
  for (guint t = 0; t < KV_N_TIERS; t++) {
    answer->tier_bytes[t] = q->batch * one.resident_bytes[t];
    answer->resident_bytes += answer->tier_bytes[t];
  }
  answer->read_bytes = decode ? q->batch * one.read_bytes : 0.0;
  return ok;
}

/* The family whose fit a component's time rests on. */
static const KvKernelFamily families[KV_N_COMPONENTS] = {
    [KV_COMPONENT_QKV] = KV_KERNEL_GEMM,
    [KV_COMPONENT_PREFILL_ATTENTION] = KV_KERNEL_PREFILL_ATTENTION,
    [KV_COMPONENT_DECODE_ATTENTION] = KV_KERNEL_DECODE_ATTENTION,
    [KV_COMPONENT_OUTPUT_PROJECTION] = KV_KERNEL_GEMM,
    [KV_COMPONENT_MLP] = KV_KERNEL_GEMM,
    [KV_COMPONENT_ELEMENTWISE] = KV_KERNEL_ELEMENTWISE,
    [KV_COMPONENT_LM_HEAD] = KV_KERNEL_GEMM,
    [KV_COMPONENT_SAMPLING] = KV_KERNEL_ELEMENTWISE,
    [KV_COMPONENT_COMMUNICATION] = KV_KERNEL_ALL_REDUCE,
    [KV_COMPONENT_TECHNIQUE] = KV_KERNEL_ELEMENTWISE,
    [KV_COMPONENT_TRANSFER] = KV_KERNEL_ELEMENTWISE,
    [KV_COMPONENT_LAUNCH] = KV_KERNEL_ELEMENTWISE,
};

static KvTimeInterval interval_of(const KvSetup *setup, const Answer *a) {
  KvTimeInterval interval = {0};
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    kv_time_interval_add(&interval, setup->platform->device, families[c], KV_DTYPE_BF16,
                         a->cost.component_seconds[c]);
  return interval;
}

static void print_json(const KvSetup *setup, const Question *q, const Answer *a) {
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
    if (a->tier_bytes[t] > 0.0)
      json_object_set_new(tiers, kv_tier_names[t], json_real(a->tier_bytes[t]));
  const KvScenario *s = setup->scenario;
  KvTimeInterval interval = interval_of(setup, a);
  json_t *root = json_pack(
      "{s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:b, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:f, s:o}",
      "model", setup->model->id, "platform", setup->platform->id, "use", s->use, "tensor_parallel",
      (int)s->tensor_parallel, "phase", q->phase, "batch", (int)q->batch, "context_tokens",
      (int)q->context, "calibrated", setup->platform->device->calibrated, "time_seconds",
      a->cost.seconds, "time_low_seconds", kv_time_interval_low(&interval), "time_high_seconds",
      kv_time_interval_high(&interval), "kv_resident_bytes", a->resident_bytes, "kv_read_bytes",
      a->read_bytes, "kv_resident_bytes_by_tier", tiers, "flops",
      a->cost.flops * s->tensor_parallel, "hbm_bytes", a->cost.hbm_bytes * s->tensor_parallel,
      "launches", a->cost.launches, "components", components);
  char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
  puts(text);
  free(text);
  json_decref(root);
}

static void print_table(const KvSetup *setup, const Question *q, const Answer *a) {
  g_autofree char *time = kv_format_seconds(a->cost.seconds);
  g_autofree char *resident = kv_format_bytes(a->resident_bytes);
  g_autofree char *read = kv_format_bytes(a->read_bytes);
  g_autofree char *flops = kv_format_count(a->cost.flops * setup->scenario->tensor_parallel);
  printf("%s on %s%s%s: %s of %u x %u tokens%s\n", setup->model->id, setup->platform->id,
         *setup->scenario->use ? ", " : "", setup->scenario->use, q->phase, q->batch, q->context,
         setup->platform->device->calibrated ? "" : " (uncalibrated)");
  KvTimeInterval interval = interval_of(setup, a);
  g_autofree char *low = kv_format_seconds(kv_time_interval_low(&interval));
  g_autofree char *high = kv_format_seconds(kv_time_interval_high(&interval));
  printf("  %s (90 %% interval %s to %s)   KV cache %s resident, %s read   %sFLOP\n\n", time, low,
         high, resident, read, flops);
  printf("  %-28s %6s %10s %6s %10s %10s  %-8s %s\n", "kernel", "count", "time", "share", "FLOP",
         "HBM", "bound", "operands");
  for (guint i = 0; i < a->kernels->len; i++) {
    const KvPricedKernel *k = &g_array_index(a->kernels, KvPricedKernel, i);
    g_autofree char *seconds = kv_format_seconds(k->cost.seconds);
    g_autofree char *work = kv_format_count(k->cost.flops);
    g_autofree char *bytes = kv_format_bytes(k->cost.bytes);
    printf("  %-28s %6.0f %10s %5.1f%% %10s %10s  %-8s %s\n", k->name, k->count, seconds,
           100.0 * k->cost.seconds / a->cost.seconds, work, bytes, kv_bound_names[k->cost.bound],
           k->operands);
  }
}

static gboolean check(const Question *q, const KvSetup *setup, GError **error) {
  if (strcmp(q->phase, "decode") && strcmp(q->phase, "prefill")) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "--phase '%s', expected prefill or decode",
                q->phase);
    return FALSE;
  }
  if (setup && q->context > setup->model->max_context_tokens)
    fprintf(stderr, "kvsim: warning: %u tokens are beyond the %u of %s\n", q->context,
            setup->model->max_context_tokens, setup->model->id);
  return TRUE;
}

gboolean kv_command_predict(int argc, char **argv, GError **error) {
  KvScenarioOptions options = {0};
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
                (scenario = kv_scenario_options_apply(&options, error));
  if (ok && options.use) {
    g_autofree char *stack = g_strjoinv(",", options.use);
    g_free(scenario->use);
    scenario->use = g_steal_pointer(&stack);
  }
  kv_scenario_options_clear(&options);
  if (!ok)
    return FALSE;
  if (argc > 1 || batch < 1 || context < 1 || chunk < 0 || batch > 1000000 || context > 100000000) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "predict: %s, expected --batch from 1 to 1e6 and --context from 1 to 1e8",
                argc > 1 ? "takes no arguments" : "a count is out of range");
    return FALSE;
  }
  Question q = {phase ? phase : "decode", (guint)batch, (guint)context, (guint)chunk};
  g_autoptr(KvSetup) setup = NULL;
  if (!check(&q, NULL, error) || !(setup = kv_setup_new(scenario, FALSE, error)) ||
      !check(&q, setup, error))
    return FALSE;
  Answer answer = {0};
  ok = ask(setup, &q, &answer, error);
  if (ok && as_json)
    print_json(setup, &q, &answer);
  else if (ok)
    print_table(setup, &q, &answer);
  g_array_unref(answer.kernels);
  return ok;
}
