#include "reference/cuda/pair.h"

#include "reference/cuda/forward.h"

typedef struct {
  KvCudaDevice *device;
  KvCudaCache *cache;
  KvCudaEngine *engine;
  guint vocab;
} Engine;

typedef struct {
  KvCudaDevice *device;
  KvCudaWeights *weights;
  Engine whole, compressed;
} CudaPair;

static gboolean cuda_pass(gpointer engine, KvHostSpan *span, float *logits, GError **error) {
  const Engine *cuda = engine;
  KvCudaWork work = {0};
  return kv_cuda_engine_run(cuda->engine, span, 1, &work, error) &&
         (!logits || kv_cuda_download(cuda->device, logits, kv_cuda_engine_logits(cuda->engine),
                                      cuda->vocab * sizeof *logits, error));
}

static void cuda_forget(gpointer engine) {
  kv_cuda_engine_forget(((Engine *)engine)->engine, 0);
}

static void engine_clear(Engine *engine) {
  kv_cuda_engine_free(engine->engine);
  kv_cuda_cache_free(engine->cache);
}

static void cuda_pair_free(gpointer state) {
  CudaPair *cuda = state;
  engine_clear(&cuda->whole);
  engine_clear(&cuda->compressed);
  kv_cuda_weights_free(cuda->weights);
  kv_cuda_device_close(cuda->device);
  g_free(cuda);
}

static gboolean engine_init(Engine *engine, const CudaPair *cuda, const KvPairSettings *s,
                            const KvHostCompression *compression, GError **error) {
  engine->device = cuda->device;
  engine->vocab = s->model->vocab;
  return (engine->cache = kv_cuda_cache_new_compressed(cuda->device, cuda->weights, s->block_tokens,
                                                       s->n_blocks, 0, compression, error)) &&
         (engine->engine = kv_cuda_engine_new(cuda->device, cuda->weights, engine->cache,
                                              s->max_positions, error));
}

KvEnginePair *kv_cuda_pair_new(const KvPairSettings *s, GError **error) {
  CudaPair *cuda = g_new0(CudaPair, 1);
  if (!(cuda->device = kv_cuda_device_open(error)) ||
      !(cuda->weights =
            kv_cuda_weights_new(cuda->device, s->model, s->checkpoint, s->seed, error)) ||
      !engine_init(&cuda->whole, cuda, s, NULL, error) ||
      !engine_init(&cuda->compressed, cuda, s, s->compression, error)) {
    cuda_pair_free(cuda);
    return NULL;
  }
  KvEnginePair *pair = g_new(KvEnginePair, 1);
  *pair = (KvEnginePair){.pass = cuda_pass,
                         .whole = &cuda->whole,
                         .compressed = &cuda->compressed,
                         .forget = cuda_forget,
                         .free = cuda_pair_free,
                         .state = cuda};
  return pair;
}
