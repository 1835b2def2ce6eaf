#include "sim/engine/sequence.h"

#include <string.h>

#include "sim/base/random.h"

void kv_sequence_name_answer(KvSequence *sequence, const KvSequence *next,
                             guint32 hash_block_tokens) {
  /* The last token of an answer is never computed on, and so has no keys and values. */
  guint64 tokens = (guint64)sequence->input_tokens + sequence->output_tokens - 1;
  if (hash_block_tokens == 0 || sequence->n_calls > 0 || sequence->n_hashes == 0 ||
      next->n_hashes == 0 || next->input_tokens < tokens)
    return;
  guint32 whole = sequence->input_tokens / hash_block_tokens;
  if (memcmp(sequence->hashes, next->hashes, whole * sizeof(guint64)) != 0)
    return;
  sequence->answer_tokens = sequence->output_tokens - 1;
  sequence->n_hashes = (guint32)((tokens + hash_block_tokens - 1) / hash_block_tokens);
  sequence->hashes = g_renew(guint64, sequence->hashes, sequence->n_hashes);
  memcpy(sequence->hashes, next->hashes, sequence->n_hashes * sizeof(guint64));
}

guint32 kv_sequence_prompt_token(const KvSequence *sequence, guint32 i, guint32 hash_block_tokens,
                                 guint32 vocab) {
  g_return_val_if_fail(vocab && i < sequence->input_tokens, 0);
  if (i < sequence->n_tokens)
    return sequence->tokens[i] % vocab;
  /* A block's name stands for its content and all before it: where names are equal, so are tokens.
   * What is not named is the request's own; the constant keeps its index apart from a name of the
   * same value. */
  guint64 content = kv_random_mix(sequence->index) ^ 0x6b76756e6b6e6f77u;
  if (hash_block_tokens && i / hash_block_tokens < sequence->n_hashes)
    content = sequence->hashes[i / hash_block_tokens];
  return (guint32)(kv_random_mix(kv_random_mix(content) + i) % vocab);
}
