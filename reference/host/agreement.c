#include "reference/host/agreement.h"

#include <math.h>
#include <string.h>

/* log of the sum of exponentials. */
static double log_sum(const float *logits, guint vocab) {
  double largest = logits[kv_host_argmax(logits, vocab)], sum = 0.0;
  for (guint i = 0; i < vocab; i++)
    sum += exp((double)logits[i] - largest);
  return largest + log(sum);
}

void kv_host_agreement_add(KvHostAgreement *a, const float *whole, const float *logits,
                           guint vocab) {
  double from = log_sum(whole, vocab), to = log_sum(logits, vocab), divergence = 0.0;
  for (guint i = 0; i < vocab; i++) {
    double p = (double)whole[i] - from, q = (double)logits[i] - to;
    divergence += exp(p) * (p - q);
  }
  a->n++;
  a->equal += kv_host_argmax(whole, vocab) == kv_host_argmax(logits, vocab);
  a->divergence_sum += divergence;
  a->divergence_max = MAX(a->divergence_max, divergence);
}

/* The prompt in chunks; logits of the token after it. */
static gboolean prefill(KvHostPass pass, gpointer engine, KvHostSpan span, const guint32 *tokens,
                        guint n, guint chunk, float *logits, GError **error) {
  for (guint past = 0; past < n; past += chunk) {
    span.past = past;
    span.tokens = tokens + past;
    span.n_tokens = MIN(chunk, n - past);
    span.last = span.sample = past + span.n_tokens == n;
    KvHostSpan part = span;
    if (!pass(engine, &part, span.last ? logits : NULL, error))
      return FALSE;
  }
  return TRUE;
}

gboolean kv_host_agreement_run(KvHostAgreement *agreement, KvHostPass pass, gpointer whole,
                               gpointer compressed, const KvHostCompression *compression,
                               const guint32 *block_table, const guint32 *tokens, guint n,
                               guint chunk, guint decoded, guint vocab, GError **error) {
  g_autofree float *expected = g_new(float, vocab), *logits = g_new(float, vocab);
  KvHostSpan span = {.block_table = block_table, .prompt_tokens = n};
  if (!prefill(pass, whole, span, tokens, n, chunk, expected, error) ||
      !prefill(pass, compressed, span, tokens, n, chunk, logits, error))
    return FALSE;
  for (guint i = 0; i < decoded; i++) {
    guint32 token = kv_host_argmax(expected, vocab);
    KvHostSpan next = {.block_table = block_table,
                       .tokens = &token,
                       .past = n + i,
                       .n_tokens = 1,
                       .prompt_tokens = n,
                       .decoding = TRUE,
                       .sample = TRUE};
    KvHostSpan other = next;
    other.dropped = kv_host_compression_dropped(compression, n, n + i + 1);
    if (!pass(whole, &next, expected, error) || !pass(compressed, &other, logits, error))
      return FALSE;
    kv_host_agreement_add(agreement, expected, logits, vocab);
  }
  return TRUE;
}
