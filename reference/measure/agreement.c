/* How far a technique changes what a model says (reference/host/agreement.h), as one line of JSON.
 *
 *     agreement EXECUTOR MODEL USE CACHE PROMPT DECODED [CHUNK]
 *
 * EXECUTOR is host, or cuda where the program was built with it; MODEL a catalogue id (weights from
 * seed 1) or a checkpoint folder; USE a stack as for kvsim run, or - for none; CACHE the cache's
 * type (bf16, fp8); PROMPT random tokens, then DECODED tokens that are compared.
 */
#include <stdio.h>
#include <string.h>

#include "reference/cuda/pair.h"
#include "sim/base/error.h"
#include "sim/base/random.h"

enum { SEED = 1 };

typedef struct {
  const char *executor, *model_name, *use, *cache;
  KvModel *model;
  KvHostCompression compression;
  guint prompt, decoded, chunk, block_tokens;
  guint32 *tokens;
  KvHostAgreement agreement;
} Job;

static void job_clear(Job *job) {
  g_clear_pointer(&job->model, kv_model_free);
  g_free(job->tokens);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Job, job_clear)

static gboolean find_dtype(const char *name, KvDtype *dtype, GError **error) {
  for (guint i = 0; kv_dtype_names[i]; i++)
    if (strcmp(kv_dtype_names[i], name) == 0) {
      *dtype = (KvDtype)i;
      return TRUE;
    }
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "no type '%s', expected bf16 or fp8", name);
  return FALSE;
}

/* The technique's plan must accept the model; what the executors take of it is checked after. */
static gboolean read_technique(Job *job, GError **error) {
  KvDtype dtype;
  KvEngineConfig engine = {.block_tokens = strstr(job->use, "kivi") ? 128 : 16}; /* G divides it */
  g_autoptr(KvStack) stack = kv_stack_parse(strcmp(job->use, "-") == 0 ? "" : job->use, error);
  if (!stack || !find_dtype(job->cache, &dtype, error))
    return FALSE;
  g_autoptr(KvPlan) plan = kv_stack_apply(stack, job->model, dtype, &engine, error);
  engine.prefix_caching = FALSE;
  job->block_tokens = engine.block_tokens;
  return plan &&
         kv_host_compression_init(&job->compression, stack, job->model, dtype, &engine, error);
}

static gboolean job_init(Job *job, int argc, char **argv, GError **error) {
  KvRandom random;
  job->executor = argv[1];
  job->model_name = argv[2];
  job->use = argv[3];
  job->cache = argv[4];
  job->prompt = (guint)g_ascii_strtoull(argv[5], NULL, 10);
  job->decoded = (guint)g_ascii_strtoull(argv[6], NULL, 10);
  job->chunk = argc > 7 ? (guint)g_ascii_strtoull(argv[7], NULL, 10) : job->prompt;
  if (!job->prompt || !job->decoded || !job->chunk) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "prompt %s, decoded %s, expected positive numbers",
                argv[5], argv[6]);
    return FALSE;
  }
  job->model = kv_model_load(job->model_name, error);
  if (!job->model || !read_technique(job, error))
    return FALSE;
  kv_random_seed(&random, SEED, 1);
  job->tokens = g_new(guint32, job->prompt);
  for (guint i = 0; i < job->prompt; i++)
    job->tokens[i] = (guint32)kv_random_integer(&random, 0, job->model->vocab - 1);
  return TRUE;
}

static gboolean compare(Job *job, GError **error) {
  gboolean folder = g_file_test(job->model_name, G_FILE_TEST_IS_DIR);
  const KvPairSettings settings = {.model = job->model,
                                   .checkpoint = folder ? job->model_name : NULL,
                                   .seed = SEED,
                                   .compression = &job->compression,
                                   .block_tokens = job->block_tokens,
                                   .n_blocks = (job->prompt + job->decoded) / job->block_tokens + 1,
                                   .max_positions = job->prompt + job->decoded};
  g_autoptr(KvEnginePair) pair = strcmp(job->executor, "cuda") == 0
                                     ? kv_cuda_pair_new(&settings, error)
                                     : kv_host_pair_new(&settings, error);
  return pair && kv_engine_pair_compare(pair, &settings, job->tokens, job->prompt, job->chunk,
                                        job->decoded, &job->agreement, error);
}

static gboolean run(int argc, char **argv, GError **error) {
  g_auto(Job) job = {0};
  if (!job_init(&job, argc, argv, error) || !compare(&job, error))
    return FALSE;
  const KvHostAgreement *a = &job.agreement;
  printf("{\"executor\": \"%s\", \"model\": \"%s\", \"use\": \"%s\", \"cache\": \"%s\", "
         "\"prompt\": %u, \"chunk\": %u, \"decoded\": %u, \"mean_kl\": %.9g, \"max_kl\": %.9g, "
         "\"top1_rate\": %.6g}\n",
         job.executor, job.model->id, job.use, job.cache, job.prompt, job.chunk, a->n,
         a->divergence_sum / a->n, a->divergence_max, (double)a->equal / a->n);
  return TRUE;
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  if (argc < 7 || argc > 8) {
    (void)fprintf(stderr, "agreement: expected EXECUTOR MODEL USE CACHE PROMPT DECODED [CHUNK]\n");
    return 2;
  }
  if (run(argc, argv, &error))
    return 0;
  (void)fprintf(stderr, "agreement: %s\n", error->message);
  return 1;
}
