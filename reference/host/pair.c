#include "reference/host/pair.h"

#include "reference/host/cache.h"
#include "reference/host/tensors.h"

typedef struct {
  const KvHostWeights *weights;
  KvHostCache *cache;
} Engine;

typedef struct {
  KvHostWeights *weights;
  Engine whole, compressed;
} HostPair;

static gboolean host_pass(gpointer engine, KvHostSpan *span, float *logits, GError **error) {
  const Engine *host = engine;
  KvHostWork work = {0};
  (void)error;
  span->logits = logits;
  kv_host_forward(host->weights, host->cache, span, 1, &work);
  return TRUE;
}

static void host_forget(gpointer engine) {
  kv_host_cache_forget(((Engine *)engine)->cache, 0);
}

static void host_pair_free(gpointer state) {
  HostPair *host = state;
  kv_host_cache_free(host->whole.cache);
  kv_host_cache_free(host->compressed.cache);
  kv_host_weights_free(host->weights);
  g_free(host);
}

KvEnginePair *kv_host_pair_new(const KvPairSettings *s, GError **error) {
  g_autoptr(KvHostWeights) weights = s->checkpoint
                                         ? kv_host_weights_load(s->model, s->checkpoint, error)
                                         : kv_host_weights_new(s->model, s->seed, error);
  g_autoptr(KvHostCache) whole =
      weights ? kv_host_cache_new(weights, s->block_tokens, s->n_blocks, 0, error) : NULL;
  g_autoptr(KvHostCache) compressed =
      whole ? kv_host_cache_new(weights, s->block_tokens, s->n_blocks, 0, error) : NULL;
  if (!compressed)
    return NULL;
  compressed->compression = *s->compression;
  HostPair *host = g_new0(HostPair, 1);
  host->whole = (Engine){weights, g_steal_pointer(&whole)};
  host->compressed = (Engine){weights, g_steal_pointer(&compressed)};
  host->weights = g_steal_pointer(&weights);
  KvEnginePair *pair = g_new(KvEnginePair, 1);
  *pair = (KvEnginePair){.pass = host_pass,
                         .whole = &host->whole,
                         .compressed = &host->compressed,
                         .forget = host_forget,
                         .free = host_pair_free,
                         .state = host};
  return pair;
}

void kv_engine_pair_free(KvEnginePair *pair) {
  if (!pair)
    return;
  pair->free(pair->state);
  g_free(pair);
}

gboolean kv_engine_pair_compare(KvEnginePair *pair, const KvPairSettings *s, const guint32 *tokens,
                                guint n, guint chunk, guint decoded, KvHostAgreement *agreement,
                                GError **error) {
  g_autofree guint32 *table = g_new(guint32, s->n_blocks);
  for (guint i = 0; i < s->n_blocks; i++) /* backwards */
    table[i] = s->n_blocks - 1 - i;
  gboolean compared =
      kv_host_agreement_run(agreement, pair->pass, pair->whole, pair->compressed, s->compression,
                            table, tokens, n, chunk, decoded, s->model->vocab, error);
  pair->forget(pair->whole);
  pair->forget(pair->compressed);
  return compared;
}
