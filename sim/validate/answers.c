#include "sim/validate/answers.h"

#include <string.h>

#include "reference/cuda/pair.h"
#include "reference/host/checkpoint.h"
#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/engine/arrival_source.h"
#include "sim/engine/simulation.h"

/* Under way. */
typedef struct {
  const KvSetup *setup;
  KvHostCompression compression;
  GPtrArray *sequences; /* of KvSequence: those that are compared, index as in the trace */
  guint32 hash_block_tokens;
  KvAnswers *answers;
} Job;

static void job_clear(Job *job) {
  g_clear_pointer(&job->sequences, g_ptr_array_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Job, job_clear)

static gboolean find_compression(const KvSetup *setup, KvHostCompression *compression,
                                 GError **error) {
  if (!kv_setup_compression(setup, compression, error))
    return FALSE;
  if (compression->format != KV_HOST_EXACT)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "validate: --quality: nothing changes the cache, so there is nothing to compare, "
              "expected --use with a technique that does, or precision.cache=fp8");
  return FALSE;
}

gboolean kv_answers_check(const KvScenario *scenario, GError **error) {
  KvHostCompression compression;
  if (strcmp(scenario->executor, "model") == 0) {
    g_set_error(
        error, KV_ERROR, KV_ERROR_USAGE,
        "validate: --quality: executor 'model' computes no tokens, expected --executor cuda "
        "or host");
    return FALSE;
  }
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  return setup && find_compression(setup, &compression, error);
}

static guint decoded_of(const KvSequence *sequence) {
  return MIN(sequence->output_tokens, KV_ANSWERS_DECODED);
}

/* The first requests that the engine would take. */
static gboolean read_requests(Job *job, const char *trace, const char *format, GError **error) {
  const KvEngineConfig *engine = &job->setup->scenario->engine;
  g_autoptr(GError) problem = NULL;
  g_autoptr(KvTraceReader) reader = kv_trace_reader_open(trace, format, error);
  if (!reader)
    return FALSE;
  job->hash_block_tokens = kv_trace_reader_block_tokens(reader);
  job->sequences = g_ptr_array_new_with_free_func((GDestroyNotify)kv_sequence_free);
  KvTraceRequest request;
  for (guint64 i = 0; job->sequences->len < KV_ANSWERS_REQUESTS &&
                      kv_trace_reader_next(reader, &request, &problem);
       i++)
    if ((guint64)request.input_tokens + request.output_tokens <= engine->max_model_len)
      g_ptr_array_add(job->sequences, kv_sequence_new(&request, i));
  if (problem) {
    g_propagate_error(error, g_steal_pointer(&problem));
    return FALSE;
  }
  if (job->sequences->len)
    return TRUE;
  kv_error_at(error, trace, 0, "no request fits %u tokens, expected a shorter one",
              engine->max_model_len);
  return FALSE;
}

static KvPairSettings pair_settings(const Job *job) {
  const KvScenario *s = job->setup->scenario;
  KvPairSettings settings = {.model = job->setup->model,
                             .checkpoint = kv_checkpoint_exists(s->model) ? s->model : NULL,
                             .seed = s->seed,
                             .compression = &job->compression,
                             .block_tokens = s->engine.block_tokens};
  for (guint i = 0; i < job->sequences->len; i++) {
    const KvSequence *sequence = g_ptr_array_index(job->sequences, i);
    settings.max_positions =
        MAX(settings.max_positions, sequence->input_tokens + decoded_of(sequence));
  }
  settings.n_blocks = settings.max_positions / settings.block_tokens + 1;
  return settings;
}

static void add(KvHostAgreement *sum, const KvHostAgreement *a) {
  sum->n += a->n;
  sum->equal += a->equal;
  sum->divergence_sum += a->divergence_sum;
  sum->divergence_max = MAX(sum->divergence_max, a->divergence_max);
}

static gboolean compare(Job *job, KvEnginePair *pair, const KvPairSettings *settings,
                        const KvSequence *sequence, GError **error) {
  const KvEngineConfig *engine = &job->setup->scenario->engine;
  guint32 n = sequence->input_tokens;
  guint chunk = engine->chunked_prefill ? MIN(n, engine->max_batched_tokens) : n;
  g_autofree guint32 *tokens = g_new(guint32, n);
  KvAnswerAgreement row = {.index = (guint)sequence->index, .prompt_tokens = n};
  for (guint32 i = 0; i < n; i++)
    tokens[i] =
        kv_sequence_prompt_token(sequence, i, job->hash_block_tokens, settings->model->vocab);
  if (!kv_engine_pair_compare(pair, settings, tokens, n, chunk, decoded_of(sequence),
                              &row.agreement, error))
    return FALSE;
  add(&job->answers->all, &row.agreement);
  g_array_append_val(job->answers->requests, row);
  return TRUE;
}

KvAnswers *kv_answers_new(const KvScenario *scenario, const char *trace, const char *format,
                          GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, FALSE, error);
  g_auto(Job) job = {.setup = setup};
  if (!setup || !find_compression(setup, &job.compression, error) ||
      !read_requests(&job, trace, format, error))
    return NULL;
  const KvPairSettings settings = pair_settings(&job);
  g_autoptr(KvEnginePair) pair = strcmp(scenario->executor, "cuda") == 0
                                     ? kv_cuda_pair_new(&settings, error)
                                     : kv_host_pair_new(&settings, error);
  if (!pair)
    return NULL;
  g_autoptr(KvAnswers) answers = g_new0(KvAnswers, 1);
  answers->executor = g_strdup(scenario->executor);
  answers->model = g_strdup(setup->model->id);
  answers->use = g_strdup(setup->scenario->use);
  answers->cache = g_strdup(kv_dtype_names[setup->scenario->cache_dtype]);
  answers->requests = g_array_new(FALSE, FALSE, sizeof(KvAnswerAgreement));
  job.answers = answers;
  for (guint i = 0; i < job.sequences->len; i++)
    if (kv_error_if_interrupted(error) ||
        !compare(&job, pair, &settings, g_ptr_array_index(job.sequences, i), error))
      return NULL;
  return g_steal_pointer(&answers);
}

void kv_answers_free(KvAnswers *answers) {
  if (!answers)
    return;
  g_free(answers->executor);
  g_free(answers->model);
  g_free(answers->use);
  g_free(answers->cache);
  g_array_unref(answers->requests);
  g_free(answers);
}

/* --- what is said ---------------------------------------------------------------------------- */

static void add_row(GString *text, const char *request, guint64 prompt, const KvHostAgreement *a) {
  g_string_append_printf(text, "  %-8s %10" G_GUINT64_FORMAT " %10u %12.4g %12.4g %10.1f %%\n",
                         request, prompt, a->n, a->divergence_sum / a->n, a->divergence_max,
                         100.0 * a->equal / a->n);
}

char *kv_answers_table(const KvAnswers *answers) {
  GString *text = g_string_new(NULL);
  guint64 prompts = 0;
  g_string_append_printf(
      text, "answers beside those of the whole cache, on the first %u requests (KL in nats)\n",
      answers->requests->len);
  g_string_append_printf(text, "  %-8s %10s %10s %12s %12s %12s\n", "request", "prompt", "compared",
                         "mean KL", "largest KL", "same token");
  for (guint i = 0; i < answers->requests->len; i++) {
    const KvAnswerAgreement *r = &g_array_index(answers->requests, KvAnswerAgreement, i);
    g_autofree char *index = g_strdup_printf("%u", r->index);
    add_row(text, index, r->prompt_tokens, &r->agreement);
    prompts += r->prompt_tokens;
  }
  add_row(text, "all", prompts, &answers->all);
  return g_string_free(text, FALSE);
}

static json_t *agreement_to_json(const KvHostAgreement *a) {
  return json_pack("{s:I, s:f, s:f, s:f}", "compared", (json_int_t)a->n, "mean_kl",
                   a->divergence_sum / a->n, "max_kl", a->divergence_max, "top1_rate",
                   (double)a->equal / a->n);
}

json_t *kv_answers_to_json(const KvAnswers *answers) {
  json_t *requests = json_array();
  for (guint i = 0; i < answers->requests->len; i++) {
    const KvAnswerAgreement *r = &g_array_index(answers->requests, KvAnswerAgreement, i);
    json_t *row = agreement_to_json(&r->agreement);
    json_object_set_new(row, "index", json_integer(r->index));
    json_object_set_new(row, "prompt", json_integer(r->prompt_tokens));
    json_array_append_new(requests, row);
  }
  return json_pack("{s:s, s:s, s:s, s:s, s:o, s:o}", "executor", answers->executor, "model",
                   answers->model, "use", answers->use, "cache", answers->cache, "all",
                   agreement_to_json(&answers->all), "requests", requests);
}

gboolean kv_answers_write(const KvAnswers *answers, const char *path, GError **error) {
  json_t *json = kv_answers_to_json(answers);
  char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
  json_decref(json);
  g_autofree char *line = g_strconcat(text, "\n", NULL);
  free(text);
  return kv_output_write_file(path, line, -1, error);
}
