/* The logits of every position of one sequence, computed on the GPU from a checkpoint: what
 * compare_logits.py holds against transformers.
 *
 *     cuda_logits FOLDER TOKENS.u32 LOGITS.f32 CHUNK GENERATE
 *
 * TOKENS.u32 holds token ids, LOGITS.f32 becomes [tokens][V] floats, both in this machine's byte
 * order. The prompt is computed CHUNK tokens at a time. Then GENERATE greedy tokens are decoded one
 * by one, on the GPU and by the host's fp32 twin, and one line of JSON says what they were.
 */
#include <stdio.h>
#include <string.h>

#include "models/llm/llm.h"
#include "reference/cuda/forward.h"
#include "reference/host/tensors.h"
#include "sim/base/error.h"

enum { BLOCK_TOKENS = 16 };

typedef struct {
  const char *folder, *logits_path;
  KvModel *model;
  guint32 *tokens; /* the prompt */
  guint n_tokens, chunk, n_generated;
  guint32 *table; /* one sequence's blocks, last first */
  guint n_blocks;
} Job;

static void job_clear(Job *job) {
  g_clear_pointer(&job->model, kv_model_free);
  g_free(job->tokens);
  g_free(job->table);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Job, job_clear)

static gboolean read_tokens(Job *job, const char *path, GError **error) {
  gsize bytes = 0;
  g_autoptr(GError) problem = NULL;
  if (!g_file_get_contents(path, (char **)&job->tokens, &bytes, &problem)) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s", problem->message);
    return FALSE;
  }
  job->n_tokens = (guint)(bytes / sizeof(guint32));
  for (guint i = 0; i < job->n_tokens; i++)
    if (job->tokens[i] >= job->model->vocab) {
      kv_error_at(error, path, 0, "token %u is %u, of a vocabulary of %u", i, job->tokens[i],
                  job->model->vocab);
      return FALSE;
    }
  if (job->n_tokens == 0)
    kv_error_at(error, path, 0, "no tokens, expected at least one");
  return job->n_tokens > 0;
}

static gboolean job_init(Job *job, char **argv, GError **error) {
  job->folder = argv[1];
  job->logits_path = argv[3];
  job->chunk = (guint)g_ascii_strtoull(argv[4], NULL, 10);
  job->n_generated = (guint)g_ascii_strtoull(argv[5], NULL, 10);
  if (job->chunk == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "chunk %s, expected a positive number", argv[4]);
    return FALSE;
  }
  job->model = kv_model_load(job->folder, error);
  if (!job->model || !read_tokens(job, argv[2], error))
    return FALSE;
  job->n_blocks = (job->n_tokens + job->n_generated) / BLOCK_TOKENS + 1;
  job->table = g_new(guint32, job->n_blocks);
  for (guint i = 0; i < job->n_blocks; i++) /* backwards */
    job->table[i] = job->n_blocks - 1 - i;
  return TRUE;
}

/* Everything on the GPU. */
typedef struct {
  KvCudaDevice *device;
  KvCudaWeights *weights;
  KvCudaCache *cache;
  KvCudaEngine *engine;
} Gpu;

static void gpu_clear(Gpu *gpu) {
  kv_cuda_engine_free(gpu->engine);
  kv_cuda_cache_free(gpu->cache);
  kv_cuda_weights_free(gpu->weights);
  kv_cuda_device_close(gpu->device);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Gpu, gpu_clear)

static gboolean gpu_init(Gpu *gpu, const Job *job, GError **error) {
  return (gpu->device = kv_cuda_device_open(error)) &&
         (gpu->weights = kv_cuda_weights_new(gpu->device, job->model, job->folder, 0, error)) &&
         (gpu->cache = kv_cuda_cache_new(gpu->device, gpu->weights, BLOCK_TOKENS, job->n_blocks, 0,
                                         error)) &&
         (gpu->engine = kv_cuda_engine_new(gpu->device, gpu->weights, gpu->cache,
                                           job->n_tokens + job->n_generated, error));
}

/* The prompt in chunks; the logits of all its rows go to the file. Sets *next to the token after.
 */
static gboolean prefill(Gpu *gpu, const Job *job, guint32 *next, GError **error) {
  FILE *file = fopen(job->logits_path, "wb");
  gsize V = job->model->vocab;
  g_autofree float *logits = g_new(float, MIN(job->chunk, job->n_tokens) * V);
  gboolean done = file != NULL;
  kv_cuda_engine_set_all_logits(gpu->engine, TRUE);
  for (guint past = 0; past < job->n_tokens && done; past += job->chunk) {
    guint n = MIN(job->chunk, job->n_tokens - past);
    KvHostSpan span = {.block_table = job->table,
                       .tokens = job->tokens + past,
                       .past = past,
                       .n_tokens = n,
                       .state = past / job->chunk % 2,
                       .sample = TRUE};
    KvCudaWork work = {0};
    if (!kv_cuda_engine_run(gpu->engine, &span, 1, &work, error) ||
        !kv_cuda_download(gpu->device, logits, kv_cuda_engine_logits(gpu->engine),
                          n * V * sizeof(float), error)) {
      (void)fclose(file);
      return FALSE;
    }
    *next = span.sampled;
    done = fwrite(logits, sizeof(float), n * V, file) == n * V;
  }
  if (!file || fclose(file) || !done) {
    kv_error_at(error, job->logits_path, 0, "cannot be written");
    return FALSE;
  }
  return TRUE;
}

static gboolean decode_on_gpu(Gpu *gpu, const Job *job, guint32 *tokens, GError **error) {
  guint chunks = (job->n_tokens + job->chunk - 1) / job->chunk;
  kv_cuda_engine_set_all_logits(gpu->engine, FALSE);
  for (guint i = 0; i + 1 < job->n_generated; i++) {
    KvHostSpan span = {.block_table = job->table,
                       .tokens = tokens + i,
                       .past = job->n_tokens + i,
                       .n_tokens = 1,
                       .state = (chunks + i) % 2,
                       .decoding = TRUE,
                       .sample = TRUE};
    KvCudaWork work = {0};
    if (!kv_cuda_engine_run(gpu->engine, &span, 1, &work, error))
      return FALSE;
    tokens[i + 1] = span.sampled;
  }
  return TRUE;
}

static gboolean generate_on_host(const Job *job, guint32 *tokens, GError **error) {
  g_autoptr(KvHostWeights) weights = kv_host_weights_load(job->model, job->folder, error);
  g_autoptr(KvHostCache) cache =
      weights ? kv_host_cache_new(weights, BLOCK_TOKENS, job->n_blocks, 0, error) : NULL;
  if (!cache)
    return FALSE;
  KvHostSpan span = {
      .block_table = job->table, .tokens = job->tokens, .n_tokens = job->n_tokens, .sample = TRUE};
  for (guint i = 0; i < job->n_generated; i++) {
    KvHostWork work = {0};
    kv_host_forward(weights, cache, &span, 1, &work);
    tokens[i] = span.sampled;
    span = (KvHostSpan){.block_table = job->table,
                        .tokens = tokens + i,
                        .past = job->n_tokens + i,
                        .n_tokens = 1,
                        .state = (i + 1) % 2,
                        .decoding = TRUE,
                        .sample = TRUE};
  }
  return TRUE;
}

static void print_tokens(const char *name, const guint32 *tokens, guint n) {
  printf("\"%s\": [", name);
  for (guint i = 0; i < n; i++)
    printf("%s%u", i ? ", " : "", tokens[i]);
  printf("]");
}

static gboolean run(char **argv, GError **error) {
  g_auto(Job) job = {0};
  g_auto(Gpu) gpu = {0};
  guint32 next = 0;
  if (!job_init(&job, argv, error) || !gpu_init(&gpu, &job, error) ||
      !prefill(&gpu, &job, &next, error))
    return FALSE;
  g_autofree guint32 *cuda = g_new(guint32, job.n_generated + 1);
  g_autofree guint32 *host = g_new(guint32, job.n_generated + 1);
  cuda[0] = next;
  if (!decode_on_gpu(&gpu, &job, cuda, error) || !generate_on_host(&job, host, error))
    return FALSE;
  guint equal = 0;
  while (equal < job.n_generated && cuda[equal] == host[equal])
    equal++;
  printf("{\"generated\": %u, \"equal_before_a_difference\": %u, ", job.n_generated, equal);
  print_tokens("cuda", cuda, job.n_generated);
  printf(", ");
  print_tokens("host", host, job.n_generated);
  puts("}");
  return TRUE;
}

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  if (argc != 6) {
    (void)fprintf(stderr, "cuda_logits: expected FOLDER TOKENS.u32 LOGITS.f32 CHUNK GENERATE\n");
    return 2;
  }
  if (run(argv, &error))
    return 0;
  (void)fprintf(stderr, "cuda_logits: %s\n", error->message);
  return 1;
}
