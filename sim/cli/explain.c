/* kvsim explain: where a predicted time comes from.
 *
 * `explain step` walks a step's price back to formulas, operands, bounds and the device file's
 * parameters. `explain RUN` walks a request's latency back to what its instance did meanwhile, from
 * the run's requests.csv and operations.csv. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/cli/cli.h"
#include "sim/cli/scenario_options.h"
#include "sim/engine/model_executor.h"
#include "sim/engine/predict.h"
#include "traces/csv.h"
#include "viz/format.h"

/* What prices a component: the formula (models/kernels/ has it in full) and the family of its
 * parameters. */
static const struct {
  KvComponent component;
  const char *formula;
} origins[] = {
    {KV_COMPONENT_QKV,
     "2 m k n FLOP; weights k n and activations m (k + n) from HBM; tiles over SMs (gemm.c)"},
    {KV_COMPONENT_OUTPUT_PROJECTION,
     "2 m k n FLOP; weights k n and activations m (k + n) from HBM; tiles over SMs (gemm.c)"},
    {KV_COMPONENT_MLP,
     "2 m k n FLOP; weights k n and activations m (k + n) from HBM; tiles over SMs (gemm.c, moe.c)"},
    {KV_COMPONENT_LM_HEAD, "2 m k n FLOP for the rows that are sampled (gemm.c)"},
    {KV_COMPONENT_PREFILL_ATTENTION,
     "4 H d FLOP a pair of tokens, causal; blocks of query tiles by heads over SMs (attention.c)"},
    {KV_COMPONENT_DECODE_ATTENTION,
     "the cache read once a KV head; the context split over blocks (attention.c)"},
    {KV_COMPONENT_ELEMENTWISE, "bytes over bandwidth (elementwise.c)"},
    {KV_COMPONENT_SAMPLING, "10 bytes a logit, three kernels (elementwise.c)"},
    {KV_COMPONENT_COMMUNICATION,
     "all-reduce: the better of one shot and two; NCCL: steps of a ring (collective.c)"},
    {KV_COMPONENT_TECHNIQUE,
     "the plan's work: bytes over bandwidth, FLOPs over vector units (plan.h)"},
    {KV_COMPONENT_TRANSFER, "what streaming from lower tiers does not hide (model_executor.c)"},
    {KV_COMPONENT_LAUNCH, "launches that the GPU waits for (launch.c)"},
};

static void explain_parameters(const KvDevice *device, KvKernelFamily family, KvDtype dtype) {
  if (family == KV_N_KERNELS) {
    printf("      launch %.2f us, graph node %.2f us\n", device->launch_seconds * 1e6,
           device->graph_node_seconds * 1e6);
    return;
  }
  const KvEfficiency *e = &device->efficiency[family][dtype];
  printf("      %s of %s, %s: fixed %.2f us, %.0f %% of %.0f TFLOP/s, %.0f %% of %.0f GB/s, "
         "median error of the fit %.1f %%\n",
         kv_kernel_family_names[family], device->id, kv_dtype_names[dtype], e->fixed_seconds * 1e6,
         100.0 * e->flops_share, device->peak_flops[dtype] * 1e-12, 100.0 * e->bandwidth_share,
         device->memory_Bps * 1e-9, 100.0 * e->residual);
}

static void explain_kernels(const KvSetup *setup, const KvPrediction *prediction) {
  for (guint o = 0; o < G_N_ELEMENTS(origins); o++) {
    gboolean told = FALSE;
    for (guint i = 0; i < prediction->kernels->len; i++) {
      const KvPricedKernel *k = &g_array_index(prediction->kernels, KvPricedKernel, i);
      if (k->component != origins[o].component)
        continue;
      if (!told) {
        g_autofree char *seconds =
            kv_format(KV_UNIT_SECONDS, prediction->cost.component_seconds[origins[o].component]);
        printf("\n  %s: %s\n      %s\n", kv_component_names[origins[o].component], seconds,
               origins[o].formula);
        explain_parameters(setup->platform->device, k->family, k->dtype);
        told = TRUE;
      }
      g_autofree char *seconds = kv_format(KV_UNIT_SECONDS, k->cost.seconds);
      g_autofree char *flops = kv_format(KV_UNIT_FLOPS, k->cost.flops);
      g_autofree char *bytes = kv_format(KV_UNIT_BYTES, k->cost.bytes);
      printf("    %.0f x %s%s%s: %s, %s, %s; bound: %s\n", k->count, k->name,
             *k->operands ? " " : "", k->operands, seconds, flops, bytes,
             kv_bound_names[k->cost.bound]);
    }
  }
}

static gboolean explain_step(int argc, char **argv, GError **error) {
  g_auto(KvScenarioOptions) options = {0};
  g_autofree char *phase = NULL;
  int batch = 1, context = 1024;
  const GOptionEntry extra[] = {
      {"phase", 0, 0, G_OPTION_ARG_STRING, &phase, "prefill or decode (default)", "PHASE"},
      {"batch", 'b', 0, G_OPTION_ARG_INT, &batch, "sequences (default 1)", "N"},
      {"context", 'c', 0, G_OPTION_ARG_INT, &context, "tokens of each (default 1024)", "N"},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autofree GOptionEntry *entries = kv_scenario_option_entries(&options, extra);
  g_autoptr(KvScenario) scenario = NULL;
  if (!kv_cli_parse(kv_command_find("explain"), entries, &argc, &argv, error) ||
      !(scenario = kv_scenario_options_apply_all(&options, error)))
    return FALSE;
  gboolean prefill = g_strcmp0(phase, "prefill") == 0;
  if (argc > 1 || batch < 1 || context < 1 || batch > 1000000 || context > 100000000 ||
      (phase && !prefill && strcmp(phase, "decode") != 0)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "explain step: expected --phase prefill|decode, --batch from 1 to 1000000 and "
                "--context from 1 to 100000000");
    return FALSE;
  }
  KvStepQuestion question = {!prefill, (guint)batch, (guint)context, 0};
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  KvPrediction prediction;
  if (!setup || !kv_predict(setup, &question, &prediction, error))
    return FALSE;
  const KvDevice *device = setup->platform->device;
  g_autofree char *seconds = kv_format(KV_UNIT_SECONDS, prediction.cost.seconds);
  json_t *document = kv_hardware_document(device->id);
  const char *source = json_string_value(json_object_get(document, "efficiency_source"));
  printf(
      "%s of %d x %d tokens, %s on %s: %s\n  every kernel: fixed cost + smooth maximum of its FLOPs over "
      "what the GPU achieves and its bytes over the bandwidth\n  parameters: device file %s, %s\n",
      prefill ? "prefill" : "decode", batch, context, setup->model->id, setup->platform->id,
      seconds, device->id,
      source               ? source
      : device->calibrated ? device->source
                           : "not calibrated: shares of its generation");
  explain_kernels(setup, &prediction);
  json_decref(document);
  kv_prediction_clear(&prediction);
  return TRUE;
}

/* A request of a run, from requests.csv. Times are absolute. */
typedef struct {
  guint instance;
  double arrival, scheduled, first_token, last_token;
  gint64 input_tokens, hit_tokens, output_tokens, preemptions;
} Request;

static gboolean read_request(const char *path, gint64 index, Request *r, GError **error) {
  static const char *const columns[] = {"index",         "instance",   "input_tokens",
                                        "output_tokens", "hit_tokens", "preemptions"};
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return FALSE;
  GError *problem = NULL;
  gboolean found = FALSE;
  while (!found && kv_csv_row(&csv, &problem)) {
    gint64 whole[G_N_ELEMENTS(columns)];
    double queue, ttft, e2e;
    int status = kv_csv_column(&csv, "status");
    for (guint i = 0; i < G_N_ELEMENTS(columns) && !problem; i++)
      kv_csv_whole(&csv, kv_csv_column(&csv, columns[i]), 0, G_MAXINT64 / 2, &whole[i], &problem);
    if (problem)
      break;
    if (whole[0] != index || (status >= 0 && strcmp(csv.fields[status], "finished") != 0))
      continue;
    if (!kv_csv_number(&csv, kv_csv_column(&csv, "arrival_seconds"), 0, 1e15, &r->arrival,
                       &problem) ||
        !kv_csv_number(&csv, kv_csv_column(&csv, "queue_seconds"), 0, 1e15, &queue, &problem) ||
        !kv_csv_number(&csv, kv_csv_column(&csv, "ttft_seconds"), 0, 1e15, &ttft, &problem) ||
        !kv_csv_number(&csv, kv_csv_column(&csv, "e2e_seconds"), 0, 1e15, &e2e, &problem))
      break;
    found = TRUE;
    r->instance = (guint)whole[1];
    r->input_tokens = whole[2];
    r->output_tokens = whole[3];
    r->hit_tokens = whole[4];
    r->preemptions = whole[5];
    r->scheduled = r->arrival + queue;
    r->first_token = r->arrival + ttft;
    r->last_token = r->arrival + e2e;
  }
  kv_csv_clear(&csv);
  if (problem)
    g_propagate_error(error, problem);
  else if (!found)
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s: no finished request with index %" G_GINT64_FORMAT, path, index);
  return found;
}

/* What the instance did in a span of time. */
typedef struct {
  double seconds, prompts, decodes, idle;               /* prompts: in steps with prompt tokens */
  double steps, prompt_steps, prompt_tokens, sequences; /* sequences: decoding, times seconds */
} Span;

/* requests.csv rounds to microseconds: a step that only touches a span's edge is not in it. */
static const double CSV_ROUNDING_SECONDS = 2e-6;

static void add_step(Span *span, double from, double to, double start, double seconds,
                     double repeat, double chunk_tokens, double sequences) {
  double overlap = MIN(to, start + seconds) - MAX(from, start);
  if (overlap <= CSV_ROUNDING_SECONDS || seconds <= 0.0)
    return;
  double share = overlap / seconds;
  span->steps += share * repeat;
  span->sequences += sequences * overlap;
  if (chunk_tokens > 0.0) {
    span->prompts += overlap;
    span->prompt_steps += share * repeat;
    span->prompt_tokens += share * chunk_tokens;
  } else {
    span->decodes += overlap;
  }
}

static gboolean read_spans(const char *path, const Request *r, Span spans[3], GError **error) {
  static const char *const columns[] = {"instance", "start_seconds", "seconds",
                                        "repeat",   "chunk_tokens",  "decode_sequences"};
  const double edges[] = {r->arrival, r->scheduled, r->first_token, r->last_token};
  g_autoptr(KvTraceStream) stream = kv_trace_stream_open(path, error);
  KvCsv csv = {0};
  if (!stream || !kv_csv_begin(&csv, stream, error))
    return FALSE;
  GError *problem = NULL;
  while (kv_csv_row(&csv, &problem)) {
    double v[G_N_ELEMENTS(columns)];
    for (guint i = 0; i < G_N_ELEMENTS(columns) && !problem; i++)
      kv_csv_number(&csv, kv_csv_column(&csv, columns[i]), 0, 1e15, &v[i], &problem);
    if (problem)
      break;
    for (guint s = 0; s < 3 && v[0] == r->instance; s++)
      add_step(&spans[s], edges[s], edges[s + 1], v[1], v[2], v[3], v[4], v[5]);
  }
  kv_csv_clear(&csv);
  for (guint s = 0; s < 3; s++) {
    spans[s].seconds = edges[s + 1] - edges[s];
    double idle = spans[s].seconds - spans[s].prompts - spans[s].decodes;
    spans[s].idle = idle > CSV_ROUNDING_SECONDS ? idle : 0.0;
  }
  if (!problem)
    return TRUE;
  g_propagate_error(error, problem);
  return FALSE;
}

static void print_span(const char *name, const Span *span, const char *remark) {
  g_autofree char *seconds = kv_format(KV_UNIT_SECONDS, span->seconds);
  g_autofree char *prompts = kv_format(KV_UNIT_SECONDS, span->prompts);
  g_autofree char *decodes = kv_format(KV_UNIT_SECONDS, span->decodes);
  g_autofree char *idle = kv_format(KV_UNIT_SECONDS, span->idle);
  printf(
      "  %-12s %s: %s in steps with prompt tokens (%.0f, with %.0f tokens), %s in steps of decoding "
      "alone (%.0f), %s between steps\n",
      name, seconds, prompts, span->prompt_steps, span->prompt_tokens, decodes,
      span->steps - span->prompt_steps, idle);
  if (remark)
    printf("               %s\n", remark);
}

static gboolean explain_request(const char *folder, gint64 index, GError **error) {
  g_autofree char *requests = g_build_filename(folder, "requests.csv", NULL);
  g_autofree char *operations = g_build_filename(folder, "operations.csv", NULL);
  Request r;
  Span spans[3] = {0};
  if (!g_file_test(operations, G_FILE_TEST_EXISTS)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s: is not there, expected a run made with 'kvsim run --operations'", operations);
    return FALSE;
  }
  if (!read_request(requests, index, &r, error) || !read_spans(operations, &r, spans, error))
    return FALSE;
  double computed = (double)(r.input_tokens - r.hit_tokens);
  g_autofree char *e2e = kv_format(KV_UNIT_SECONDS, r.last_token - r.arrival);
  printf("request %" G_GINT64_FORMAT " on instance %u: %s from arrival to last token\n"
         "  prompt of %" G_GINT64_FORMAT " tokens, %" G_GINT64_FORMAT
         " of them in the cache; %" G_GINT64_FORMAT " output tokens; preempted %" G_GINT64_FORMAT
         " times\n",
         index, r.instance, e2e, r.input_tokens, r.hit_tokens, r.output_tokens, r.preemptions);
  print_span("queue", &spans[0], NULL);
  double others =
      spans[1].prompt_tokens >= computed + 0.5 ? spans[1].prompt_tokens - computed : 0.0;
  double own_share =
      spans[1].prompt_tokens > 0.0 ? MIN(1.0, computed / spans[1].prompt_tokens) : 0.0;
  g_autofree char *own = kv_format(KV_UNIT_SECONDS, own_share * spans[1].prompts);
  g_autofree char *theirs =
      kv_format(KV_UNIT_SECONDS, others > 0.0 ? (1.0 - own_share) * spans[1].prompts : 0.0);
  g_autofree char *shared =
      g_strdup_printf("of the prompt steps, by tokens: %s its own prompt (%.0f tokens), %s "
                      "prompts of others (%.0f tokens)",
                      own, computed, theirs, others);
  print_span("prefill", &spans[1], shared);
  double alone = spans[2].steps > spans[2].prompt_steps
                     ? spans[2].decodes / (spans[2].steps - spans[2].prompt_steps)
                     : 0.0;
  double lost = alone > 0.0 ? MAX(0.0, spans[2].prompts - spans[2].prompt_steps * alone) : 0.0;
  g_autofree char *step = kv_format(KV_UNIT_SECONDS, alone);
  g_autofree char *interference = kv_format(KV_UNIT_SECONDS, lost);
  g_autofree char *slowed = g_strdup_printf(
      "a step of decoding alone took %s with %.1f sequences; prompts of others in the same steps added %s",
      step, spans[2].seconds > 0.0 ? spans[2].sequences / spans[2].seconds : 0.0, interference);
  print_span("decode", &spans[2], spans[2].steps > 0.0 ? slowed : NULL);
  return TRUE;
}

gboolean kv_command_explain(int argc, char **argv, GError **error) {
  gint64 request = -1;
  if (argc > 1 && strcmp(argv[1], "step") == 0)
    return explain_step(argc - 1, argv + 1, error);
  const GOptionEntry entries[] = {
      {"request", 'r', 0, G_OPTION_ARG_INT64, &request, "index of the request in requests.csv",
       "N"},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  if (!kv_cli_parse(kv_command_find("explain"), entries, &argc, &argv, error))
    return FALSE;
  if (argc == 2 && request >= 0)
    return explain_request(argv[1], request, error);
  g_set_error(
      error, KV_ERROR, KV_ERROR_USAGE,
      "explain: %s, expected 'step' or a run directory and --request N (see 'kvsim explain --help')",
      argc == 2 ? "no request given" : "nothing to explain");
  return FALSE;
}
