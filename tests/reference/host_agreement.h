/* What the tests of the host's formats share: a format against the whole cache, and whether a stack
 * is executed. */
#ifndef KV_TESTS_REFERENCE_HOST_AGREEMENT_H
#define KV_TESTS_REFERENCE_HOST_AGREEMENT_H

#include <string.h>

#include "reference/host/agreement.h"
#include "reference/host/forward.h"

enum { BLOCK_TOKENS = 8, BLOCKS = 32 };

typedef struct {
  const KvHostWeights *weights;
  KvHostCache *cache;
} Host;

static gboolean host_pass(gpointer engine, KvHostSpan *span, float *logits, GError **error) {
  const Host *host = engine;
  KvHostWork work = {0};
  span->logits = logits;
  kv_host_forward(host->weights, host->cache, span, 1, &work);
  return TRUE;
}

static KvHostAgreement host_agreement(const KvModel *model, const KvHostCompression *compression,
                                      guint prompt, guint decoded, guint chunk) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvHostWeights) weights = kv_host_weights_new(model, 7, &error);
  g_autoptr(KvHostCache) whole = kv_host_cache_new(weights, BLOCK_TOKENS, BLOCKS, 0, &error);
  g_autoptr(KvHostCache) other = kv_host_cache_new(weights, BLOCK_TOKENS, BLOCKS, 0, &error);
  g_autofree guint32 *tokens = g_new(guint32, prompt);
  guint32 table[BLOCKS];
  KvHostAgreement agreement = {0};
  for (guint i = 0; i < prompt; i++)
    tokens[i] = i * 37 % model->vocab;
  for (guint i = 0; i < BLOCKS; i++)
    table[i] = BLOCKS - 1 - i;
  g_assert_no_error(error);
  other->compression = *compression;
  g_assert_true(kv_host_agreement_run(&agreement, host_pass, &(Host){weights, whole},
                                      &(Host){weights, other}, compression, table, tokens, prompt,
                                      chunk, decoded, model->vocab, &error));
  g_assert_cmpuint(agreement.n, ==, decoded);
  return agreement;
}

/* The stack is executed (expected: NULL), or refused with a message that says so. */
static void check_stack(const char *use, const KvModel *model, KvDtype dtype,
                        const KvEngineConfig *engine, const char *expected) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(use, &error);
  KvHostCompression c;
  g_assert_no_error(error);
  gboolean executed = kv_host_compression_init(&c, stack, model, dtype, engine, &error);
  g_assert_cmpint(executed, ==, expected == NULL);
  if (expected)
    g_assert_nonnull(strstr(error->message, expected));
}

#endif
