/* Names of prefix blocks, where a trace does not give all of them.
 *
 * A KvBlockHistory is the text of one session as a chain of named blocks. Each turn keeps a number
 * of tokens of what was there and replaces or extends the rest: the whole blocks kept have their
 * old names, all behind get new ones, and the last, partial block of a prompt has a name of its
 * own, because an answer will fill it.
 */
#ifndef KV_TRACES_BLOCKS_H
#define KV_TRACES_BLOCKS_H

#include <glib.h>

typedef struct {
  GArray *names; /* guint64, a name for each block begun by the last prompt */
  guint32 block_tokens;
  guint64 seed, made;  /* names made so far: the next is a mix of both */
  guint64 full_blocks; /* of the last prompt */
} KvBlockHistory;

void kv_block_history_begin(KvBlockHistory *history, guint32 block_tokens);
void kv_block_history_clear(KvBlockHistory *history);

/* Begin a new session, whose names are told from others' by `seed`. */
void kv_block_history_restart(KvBlockHistory *history, guint64 seed);

/* The next prompt has `prompt_tokens`, the first `kept_tokens` of them as the session had them. */
void kv_block_history_prompt(KvBlockHistory *history, guint64 kept_tokens, guint64 prompt_tokens);

/* Overwrite the names of blocks that other sessions share: name i becomes that of block i of the
 * text `text`, for the whole blocks among the first `shared_tokens`. */
void kv_block_history_share(KvBlockHistory *history, guint64 text, guint64 shared_tokens);

/* Complete the names in `hashes` of a prompt of `input_tokens`: as many as blocks begun is what is
 * wanted; one fewer, when the source names whole blocks only, gets a last name that `salt` makes
 * unique. FALSE if the number is another. */
gboolean kv_blocks_complete(GArray *hashes, guint32 input_tokens, guint32 block_tokens,
                            guint64 salt);

#endif
