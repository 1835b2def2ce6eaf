#include "traces/blocks.h"

#include "sim/base/random.h"

void kv_block_history_begin(KvBlockHistory *history, guint32 block_tokens) {
  *history = (KvBlockHistory){.names = g_array_new(FALSE, FALSE, sizeof(guint64)),
                              .block_tokens = block_tokens};
}

void kv_block_history_clear(KvBlockHistory *history) {
  g_clear_pointer(&history->names, g_array_unref);
}

void kv_block_history_restart(KvBlockHistory *history, guint64 seed) {
  g_array_set_size(history->names, 0);
  history->seed = kv_random_mix(seed);
  history->full_blocks = history->made = 0;
}

void kv_block_history_prompt(KvBlockHistory *history, guint64 kept_tokens, guint64 prompt_tokens) {
  guint64 block = history->block_tokens;
  guint64 keep = MIN(MIN(kept_tokens, prompt_tokens) / block, history->full_blocks);
  guint64 want = (prompt_tokens + block - 1) / block;
  g_array_set_size(history->names, (guint)keep);
  while (history->names->len < want) {
    guint64 name = kv_random_mix(history->seed + history->made++);
    g_array_append_val(history->names, name);
  }
  history->full_blocks = prompt_tokens / block;
}

void kv_block_history_share(KvBlockHistory *history, guint64 text, guint64 shared_tokens) {
  guint64 n = MIN(shared_tokens / history->block_tokens, history->full_blocks);
  guint64 seed = kv_random_mix(text);
  for (guint64 i = 0; i < n; i++)
    g_array_index(history->names, guint64, i) = kv_random_mix(seed ^ kv_random_mix(i + 1));
}

gboolean kv_blocks_complete(GArray *hashes, guint32 input_tokens, guint32 block_tokens,
                            guint64 salt) {
  guint32 whole = input_tokens / block_tokens;
  gboolean partial = input_tokens % block_tokens != 0;
  if (hashes->len == whole + (guint32)partial)
    return TRUE;
  if (hashes->len != whole)
    return FALSE;
  guint64 before = whole ? g_array_index(hashes, guint64, whole - 1) : 0;
  guint64 name = kv_random_mix(before ^ kv_random_mix(salt));
  g_array_append_val(hashes, name);
  return TRUE;
}
