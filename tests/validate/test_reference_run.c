/* A trace served by a real executor (the host's: its times are virtual and exact) beside its
 * simulation: what is logged, that it can be priced again, and the files. */
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "reference/host/executor.h"
#include "sim/base/error.h"
#include "sim/engine/predict.h"
#include "sim/validate/reference_run.h"

static char *data(const char *name) {
  return g_build_filename(g_getenv("KVSIM_TEST_DATA"), "reference", name, NULL);
}

static KvScenario *scenario_with(const char *setting) {
  g_autofree char *model = data("model.json");
  g_autofree char *of_model = g_strdup_printf("model=%s", model);
  const char *settings[] = {of_model, "executor=host", "platform=h200", setting};
  g_autoptr(GError) error = NULL;
  KvScenario *scenario = kv_scenario_new();
  for (guint i = 0; i < G_N_ELEMENTS(settings); i++)
    if (settings[i])
      kv_scenario_set(scenario, settings[i], &error);
  g_assert_no_error(error);
  return scenario;
}

static KvReferenceRun *serve(const KvScenario *scenario, const char *name, gboolean pace_wall) {
  g_autofree char *trace = data(name);
  KvReferenceOptions options = {.trace = trace, .pace_wall = pace_wall};
  g_autoptr(GError) error = NULL;
  KvReferenceRun *run = kv_reference_run_new(scenario, &options, &error);
  g_assert_no_error(error);
  return run;
}

/* The trace's five requests: prompts of 357 tokens, answers of 59. */
static void steps_cover_the_trace(void) {
  g_autoptr(KvScenario) scenario = scenario_with(NULL);
  g_autoptr(KvReferenceRun) run = serve(scenario, "trace.jsonl", FALSE);
  guint prompt = 0, sampled = 0, decoded = 0;
  double seconds = 0.0;
  for (guint i = 0; i < run->log->steps->len; i++) {
    const KvLoggedStep *step = &g_array_index(run->log->steps, KvLoggedStep, i);
    for (guint c = 0; c < step->n_chunks; c++) {
      const KvChunk *chunk = &g_array_index(run->log->chunks, KvChunk, step->first_chunk + c);
      prompt += chunk->tokens;
      sampled += chunk->last;
    }
    decoded += step->n_decode;
    seconds += step->measured_seconds;
    double parts = 0.0;
    for (guint c = 0; c < KV_N_COMPONENTS; c++)
      parts += step->measured_parts[c];
    g_assert_cmpfloat_with_epsilon(parts, step->measured_seconds, 1e-12);
  }
  g_assert_cmpuint(prompt, ==, 357);
  g_assert_cmpuint(sampled, ==, 5);
  g_assert_cmpuint(decoded, ==, 59 - 5);
  g_assert_cmpfloat(seconds, >, 0.0);
  /* The first request decodes alone after its prompt: its 90 tokens and the new one. */
  const KvLoggedStep *second = &g_array_index(run->log->steps, KvLoggedStep, 1);
  g_assert_cmpuint(second->n_decode, ==, 1);
  g_assert_cmpuint(g_array_index(run->log->contexts, guint32, second->first_context), ==, 91);
  g_assert_cmpuint(run->run->requests->len, ==, 5);
  g_assert_null(run->log->gpu);
}

typedef struct {
  guint64 sum, n;
} Tokens;

static void add_tokens(guint64 index, const guint32 *tokens, guint n, gpointer user) {
  Tokens *all = user;
  for (guint i = 0; i < n; i++)
    all->sum = all->sum * 31 + index * 7 + tokens[i];
  all->n += n;
}

static void add_line(const char *line, Tokens *all) {
  g_autoptr(GError) error = NULL;
  json_t *root = json_loads(line, 0, NULL), *token;
  gsize at;
  g_assert_nonnull(root);
  guint64 index = (guint64)json_integer_value(json_object_get(root, "index"));
  json_array_foreach(json_object_get(root, "tokens"), at, token) {
    all->sum = all->sum * 31 + index * 7 + (guint64)json_integer_value(token);
    all->n++;
  }
  json_decref(root);
}

/* Same tokens, same latencies as without anybody listening; and the tokens as a file. */
static void listening_changes_nothing(void) {
  g_autoptr(KvScenario) scenario = scenario_with(NULL);
  g_autofree char *trace = data("trace.jsonl"), *text = NULL;
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "outputs.jsonl", NULL);
  GError *error = NULL;
  Tokens plain = {0}, written = {0};
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, TRUE, &error);
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(trace, NULL, &error);
  KvSimulateOptions simulate = {.generated = add_tokens, .user = &plain};
  g_autoptr(KvSummary) summary = kv_simulate(setup, reader, &simulate, &error);
  g_assert_no_error(error);

  KvOutput *file = kv_output_open(path, &error);
  g_autoptr(KvOutputs) outputs = kv_outputs_new(file);
  KvReferenceOptions options = {.trace = trace, .outputs = outputs};
  g_autoptr(KvReferenceRun) run = kv_reference_run_new(scenario, &options, &error);
  g_assert_no_error(error);
  g_assert_true(kv_output_commit(file, &error));
  g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
  g_auto(GStrv) lines = g_strsplit(g_strchomp(text), "\n", -1);
  g_assert_cmpuint(g_strv_length(lines), ==, 5);
  for (guint i = 0; lines[i]; i++)
    add_line(lines[i], &written);
  g_assert_cmpuint(written.n, ==, 59);
  g_assert_cmpuint(written.n, ==, plain.n);
  g_assert_cmpuint(written.sum, ==, plain.sum);
  double e2e = 0.0;
  for (guint i = 0; i < 5; i++)
    e2e += g_array_index(run->run->requests, KvMeasuredRequest, i).seconds[KV_LATENCY_E2E] / 5.0;
  g_assert_cmpfloat_with_epsilon(e2e, summary->latency[KV_LATENCY_E2E].mean, 1e-9);
  g_unlink(path);
  g_rmdir(folder);
}

/* A logged shape costs what `predict` says of the same shape. */
static void priced_as_predict_does(void) {
  static const struct {
    gboolean decode;
    guint batch, context, chunk;
  } cases[] = {{TRUE, 3, 512, 0}, {TRUE, 1, 30, 0}, {FALSE, 2, 300, 300}, {FALSE, 1, 900, 200}};
  g_autoptr(KvScenario) scenario = scenario_with("model=llama-3.1-8b");
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStepLog) log = kv_step_log_new("cuda");
  kv_scenario_set(scenario, "executor=model", &error);
  log->scenario = kv_scenario_copy(scenario);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    KvLoggedStep step = {.first_chunk = log->chunks->len,
                         .first_context = log->contexts->len,
                         .measured_seconds = 1.0};
    for (guint k = 0; k < cases[i].batch; k++) {
      KvChunk chunk = {
          .past = cases[i].context - cases[i].chunk, .tokens = cases[i].chunk, .last = TRUE};
      guint32 context = cases[i].context;
      if (cases[i].decode)
        g_array_append_val(log->contexts, context);
      else
        g_array_append_val(log->chunks, chunk);
    }
    step.n_chunks = log->chunks->len - step.first_chunk;
    step.n_decode = log->contexts->len - step.first_context;
    g_array_append_val(log->steps, step);
  }
  g_assert_true(kv_step_log_price(log, &error));
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, &error);
  g_assert_no_error(error);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    KvStepQuestion question = {cases[i].decode, cases[i].batch, cases[i].context, cases[i].chunk};
    KvPrediction prediction;
    g_assert_true(kv_predict(setup, &question, &prediction, &error));
    g_assert_cmpfloat_with_epsilon(g_array_index(log->steps, KvLoggedStep, i).predicted_seconds /
                                       prediction.cost.seconds,
                                   1.0, 1e-12);
    kv_prediction_clear(&prediction);
  }
}

/* Steps with a prompt are launched kernel by kernel where the settings say so. */
static void prompts_without_graphs(void) {
  g_autoptr(KvScenario) scenario = scenario_with("model=llama-3.1-8b");
  g_autoptr(GError) error = NULL;
  double seconds[2][2];
  kv_scenario_set(scenario, "executor=model", &error);
  for (guint graphs = 0; graphs < 2; graphs++) {
    kv_scenario_set(scenario,
                    graphs ? "engine.cuda_graph_prompts=true" : "engine.cuda_graph_prompts=false",
                    &error);
    g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, &error);
    g_assert_no_error(error);
    for (guint decode = 0; decode < 2; decode++) {
      KvStepQuestion question = {decode, 1, 40, 0};
      KvPrediction prediction;
      g_assert_true(kv_predict(setup, &question, &prediction, &error));
      seconds[graphs][decode] = prediction.cost.seconds;
      kv_prediction_clear(&prediction);
    }
  }
  g_assert_cmpfloat(seconds[0][1], ==, seconds[1][1]);
  g_assert_cmpfloat(seconds[0][0], >, 1.2 * seconds[1][0]);
}

static void assert_same_steps(const KvStepLog *a, const KvStepLog *b) {
  g_assert_cmpuint(a->steps->len, ==, b->steps->len);
  g_assert_cmpuint(a->chunks->len, ==, b->chunks->len);
  g_assert_cmpmem(a->contexts->data, a->contexts->len * sizeof(guint32), b->contexts->data,
                  b->contexts->len * sizeof(guint32));
  for (guint i = 0; i < a->chunks->len; i++) {
    const KvChunk *x = &g_array_index(a->chunks, KvChunk, i);
    const KvChunk *y = &g_array_index(b->chunks, KvChunk, i);
    g_assert_true(x->past == y->past && x->tokens == y->tokens && x->last == y->last);
  }
  for (guint i = 0; i < a->steps->len; i++) {
    const KvLoggedStep *x = &g_array_index(a->steps, KvLoggedStep, i);
    const KvLoggedStep *y = &g_array_index(b->steps, KvLoggedStep, i);
    g_assert_cmpuint(x->n_chunks, ==, y->n_chunks);
    g_assert_cmpuint(x->n_decode, ==, y->n_decode);
    g_assert_cmpfloat_with_epsilon(x->measured_seconds / y->measured_seconds, 1.0, 1e-6);
    g_assert_cmpfloat_with_epsilon(x->predicted_seconds / y->predicted_seconds, 1.0, 1e-9);
  }
}

/* What a run has written is priced again to the same figures, without the executor. */
static void read_back(void) {
  g_autoptr(KvScenario) scenario = scenario_with(NULL);
  g_autoptr(KvReferenceRun) run = serve(scenario, "trace.jsonl", FALSE);
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "steps.csv", NULL);
  g_autoptr(GError) error = NULL;
  g_assert_true(kv_step_log_price(run->log, &error));
  g_assert_true(kv_step_log_write(run->log, path, &error));
  g_assert_true(kv_step_log_recognise(path));
  g_autoptr(KvStepLog) log = kv_step_log_read(path, NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpstr(log->executor, ==, "host");
  g_assert_true(kv_step_log_price(log, &error));
  assert_same_steps(run->log, log);
  g_autofree char *before = kv_step_log_table(run->log, FALSE);
  g_autofree char *after = kv_step_log_table(log, FALSE);
  g_assert_nonnull(strstr(before, "mixed steps"));
  g_assert_cmpuint(strlen(before), ==, strlen(after));
  /* Another platform is another price. */
  g_autoptr(KvStepLog) elsewhere = kv_step_log_read(path, "a100-80gb", &error);
  g_assert_true(kv_step_log_price(elsewhere, &error));
  g_assert_cmpfloat(g_array_index(elsewhere->steps, KvLoggedStep, 0).predicted_seconds, !=,
                    g_array_index(log->steps, KvLoggedStep, 0).predicted_seconds);
  g_unlink(path);
  g_rmdir(folder);
}

/* Errors: 10 % above, 10 % below and 50 % above. */
static void accuracy_by_hand(void) {
  static const double predicted[] = {1.1, 0.9, 1.5};
  g_autoptr(KvStepLog) log = kv_step_log_new("cuda");
  for (guint i = 0; i < 3; i++) {
    KvLoggedStep step = {.n_chunks = i == 0,
                         .n_decode = 1,
                         .measured_seconds = 1.0,
                         .predicted_seconds = predicted[i]};
    step.measured_parts[KV_COMPONENT_MLP] = i == 0 ? 0.5 : 0.0;
    step.predicted_parts[KV_COMPONENT_MLP] = 0.25;
    g_array_append_val(log->steps, step);
  }
  g_autoptr(GArray) rows = kv_step_log_accuracy(log);
  g_assert_cmpuint(rows->len, ==, 4);
  const KvOperationAccuracy *row = &g_array_index(rows, KvOperationAccuracy, 0);
  g_assert_cmpstr(row[0].name, ==, "decode steps");
  g_assert_cmpuint(row[0].n, ==, 2);
  g_assert_cmpstr(row[1].name, ==, "mixed steps");
  g_assert_cmpfloat_with_epsilon(row[1].bias, 0.1, 1e-12);
  g_assert_cmpstr(row[2].name, ==, "all steps");
  g_assert_cmpfloat_with_epsilon(row[2].median, 0.1, 1e-12);
  g_assert_cmpfloat_with_epsilon(row[2].p95, 0.46, 1e-12);
  g_assert_cmpfloat_with_epsilon(row[2].bias, 0.1, 1e-12);
  g_assert_cmpfloat_with_epsilon(row[2].predicted_seconds, 3.5, 1e-12);
  g_assert_cmpstr(row[3].name, ==, "MLP");
  g_assert_cmpuint(row[3].n, ==, 1);
  g_assert_cmpfloat_with_epsilon(row[3].bias, -0.5, 1e-12);
}

/* Swapped blocks go at the host's 10 GB/s, one copy after another: each alone takes its bytes. */
static void copies_are_logged(void) {
  g_autoptr(KvScenario) scenario = scenario_with("engine.num_blocks=20");
  g_autoptr(GError) error = NULL;
  kv_scenario_set(scenario, "use=vllm:preemption_mode=swap:swap_space=0.001", &error);
  g_assert_no_error(error);
  g_autoptr(KvReferenceRun) run = serve(scenario, "pressure.jsonl", FALSE);
  g_assert_cmpuint(run->log->copies->len, >=, 2);
  gboolean out = FALSE, in = FALSE;
  for (guint i = 0; i < run->log->copies->len; i++) {
    const KvLoggedCopy *copy = &g_array_index(run->log->copies, KvLoggedCopy, i);
    g_assert_cmpfloat_with_epsilon(copy->measured_seconds, copy->copy.bytes / KV_HOST_COPY_BPS,
                                   1e-12);
    out |= copy->copy.from == KV_TIER_HBM;
    in |= copy->copy.from == KV_TIER_DRAM;
  }
  g_assert_true(out && in);
  g_assert_true(kv_step_log_price(run->log, &error));
  const double quickest = 64e9; /* any link of the platform */
  for (guint i = 0; i < run->log->copies->len; i++) {
    const KvLoggedCopy *copy = &g_array_index(run->log->copies, KvLoggedCopy, i);
    g_assert_cmpfloat(copy->predicted_seconds, >, copy->copy.bytes / quickest);
  }
}

/* measured.json is a measured run like any other. */
static void measured_run_is_read(void) {
  g_autoptr(KvScenario) scenario = scenario_with(NULL);
  g_autoptr(KvReferenceRun) run = serve(scenario, "trace.jsonl", FALSE);
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "measured.json", NULL);
  g_autofree char *traces = data("");
  g_autoptr(GPtrArray) runs = g_ptr_array_new_with_free_func((GDestroyNotify)kv_measured_run_free);
  GError *error = NULL;
  const char *const folders[] = {traces, NULL};
  KvMeasuredOptions options = {.trace_folders = folders};
  g_assert_true(kv_reference_run_write(run, path, &error));
  g_assert_true(kv_measured_read(path, &options, runs, &error));
  g_assert_cmpuint(runs->len, ==, 1);
  const KvMeasuredRun *back = g_ptr_array_index(runs, 0);
  g_assert_cmpstr(back->scenario->executor, ==, "model");
  g_assert_cmpfloat(back->scenario->engine.step_gap_seconds, ==, 0.0);
  g_assert_false(back->scenario->engine.cuda_graph_prompts);
  g_assert_cmpuint(back->requests->len, ==, 5);
  for (guint i = 0; i < 5; i++) {
    const KvMeasuredRequest *x = &g_array_index(back->requests, KvMeasuredRequest, i);
    const KvMeasuredRequest *y = &g_array_index(run->run->requests, KvMeasuredRequest, i);
    g_assert_cmpuint(x->input_tokens, ==, y->input_tokens);
    g_assert_cmpfloat_with_epsilon(x->seconds[KV_LATENCY_E2E], y->seconds[KV_LATENCY_E2E], 1e-8);
  }
  g_assert_true(
      isnan(g_array_index(back->requests, KvMeasuredRequest, 2).seconds[KV_LATENCY_TPOT]));
  g_autoptr(KvComparison) comparison = kv_comparison_new(back, NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(comparison->requests->len, ==, 5);
  g_unlink(path);
  g_rmdir(folder);
}

static void assert_refused(const char *name, const char *text, const char *place) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, name, NULL);
  g_autofree char *expected = g_strdup_printf("%s%s", path, place);
  g_autoptr(GError) error = NULL;
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
  if (g_str_has_suffix(name, ".json")) {
    g_autoptr(GPtrArray) runs =
        g_ptr_array_new_with_free_func((GDestroyNotify)kv_measured_run_free);
    KvMeasuredOptions options = {0};
    g_assert_false(kv_measured_read(path, &options, runs, &error));
  } else {
    g_autoptr(KvStepLog) log = kv_step_log_read(path, NULL, &error);
    g_assert_null(log);
  }
  if (!g_str_has_prefix(error->message, expected))
    g_error("'%s' does not begin with '%s'", error->message, expected);
  g_unlink(path);
  g_rmdir(folder);
}

#define HEAD "# {\"kvsim_steps\":1,\"executor\":\"cuda\",\"scenario\":{}}\n"
#define COLUMNS                                                                                    \
  "chunks,contexts,measured_us,predicted_us,qkv_projection_us,prefill_attention_us,decode_"        \
  "attention_us,output_projection_us,mlp_us,element_wise_us,lm_head_us,sampling_us,"               \
  "communication_us,technique_us,transfers_us,launches_us\n"
#define REST ",,,,,,,,,,,,,\n"

static void wrong_files_are_refused(void) {
  static const struct {
    const char *name, *text, *place;
  } cases[] = {
      {"a.csv", "chunks\n", ":1: is no log of steps"},
      {"a.csv", "# {\"kvsim_steps\":1,\"executor\":\"cuda\"}\n", ":1: "},
      {"a.csv", "# {\"kvsim_steps\":1,\"executor\":\"cuda\",\"scenario\":{\"modle\":\"x\"}}\n",
       ":1: "},
      {"a.csv", HEAD "chunks,contexts\n", ":2: is not the header"},
      {"a.csv", HEAD COLUMNS, ": holds no step"},
      {"a.csv", HEAD COLUMNS "0+5*,,12\n", ":3: has not as many fields"},
      {"a.csv", HEAD COLUMNS "0+,,12" REST, ":3: chunks is no list"},
      {"a.csv", HEAD COLUMNS "0+5 ,,12" REST, ":3: chunks is no list"},
      {"a.csv", HEAD COLUMNS "0+99999999999,,12" REST, ":3: chunks is no list"},
      {"a.csv", HEAD COLUMNS ",5x0,12" REST, ":3: contexts is no list"},
      {"a.csv", HEAD COLUMNS ",5x4000000000,12" REST, ":3: contexts is no list"},
      {"a.csv", HEAD COLUMNS ",&1+1,12" REST, ":3: contexts is no list"},
      {"a.csv", HEAD COLUMNS ",5x2 &4,12" REST, ":3: contexts is no list"},
      {"a.csv", HEAD COLUMNS ",5x2 &4+4 5,12" REST, ":3: contexts is no list"},
      {"a.csv", HEAD COLUMNS ",,12" REST, ":3: has neither"},
      {"a.csv", HEAD COLUMNS ",5,nan" REST, ":3: measured_us is no time"},
      {"a.csv", HEAD COLUMNS ",5,0" REST, ":3: measured_us is no time"},
      {"a.json",
       "{\"kvsim_measured\":1,\"executor\":\"cuda\",\"trace\":\"t\",\"scenario\":{},\n"
       "\"requests\":[\n[1, 2, 3]]}",
       ":3: request 0 is none"},
      {"a.json",
       "{\"kvsim_measured\":1,\"executor\":\"cuda\",\"trace\":\"t\",\"scenario\":{},\n"
       "\"requests\":[\n[1, 2, 0, 0, -1, null, 1]]}",
       ":3: request 0 is none"},
      {"a.json",
       "{\"kvsim_measured\":1,\"executor\":\"cuda\",\"trace\":\"no/trace.jsonl\","
       "\"scenario\":{},\"requests\":[[1, 2, 0, 0, 1, null, 1]]}",
       ": its trace 'no/trace.jsonl' was not found"},
      {"a.json", "{\"kvsim_measured\":1,\"executor\":\"cuda\",\"trace\":\"t\",\"requests\":[]}",
       ":1: "},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    assert_refused(cases[i].name, cases[i].text, cases[i].place);
}

/* The last requests come after 40 ms, on the wall's clock too. */
static void wall_pace_waits(void) {
  g_autoptr(KvScenario) scenario = scenario_with(NULL);
  gint64 began = g_get_monotonic_time();
  g_autoptr(KvReferenceRun) run = serve(scenario, "trace.jsonl", TRUE);
  double elapsed = (double)(g_get_monotonic_time() - began) * 1e-6;
  g_assert_cmpfloat(elapsed, >=, 0.041);
  g_assert_cmpstr(run->pace, ==, "wall");
  const KvMeasuredRequest *last = &g_array_index(run->run->requests, KvMeasuredRequest, 4);
  g_assert_cmpfloat_with_epsilon(last->arrival_seconds, 0.041, 1e-9);
  /* No request took longer than everything did. */
  g_assert_cmpfloat(last->arrival_seconds + last->seconds[KV_LATENCY_E2E], <=, elapsed + 0.01);
}

static void model_cannot_be_served(void) {
  g_autoptr(KvScenario) scenario = scenario_with("executor=model");
  g_autofree char *trace = data("trace.jsonl");
  g_autoptr(GError) error = NULL;
  KvReferenceOptions options = {.trace = trace};
  g_assert_null(kv_reference_run_new(scenario, &options, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_clear_error(&error);
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, TRUE, &error);
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(trace, NULL, &error);
  KvSimulateOptions simulate = {.pace_wall = TRUE};
  g_assert_null(kv_simulate(setup, reader, &simulate, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference-run/steps-cover-the-trace", steps_cover_the_trace);
  g_test_add_func("/reference-run/listening-changes-nothing", listening_changes_nothing);
  g_test_add_func("/reference-run/priced-as-predict", priced_as_predict_does);
  g_test_add_func("/reference-run/prompts-without-graphs", prompts_without_graphs);
  g_test_add_func("/reference-run/read-back", read_back);
  g_test_add_func("/reference-run/accuracy-by-hand", accuracy_by_hand);
  g_test_add_func("/reference-run/copies", copies_are_logged);
  g_test_add_func("/reference-run/measured-run", measured_run_is_read);
  g_test_add_func("/reference-run/wrong-files", wrong_files_are_refused);
  g_test_add_func("/reference-run/wall-pace", wall_pace_waits);
  g_test_add_func("/reference-run/model-cannot", model_cannot_be_served);
  return g_test_run();
}
