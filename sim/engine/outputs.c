#include "sim/engine/outputs.h"

struct KvOutputs {
  KvOutput *file;
  GString *tokens; /* of the request that leaves next */
  guint64 index;
};

KvOutputs *kv_outputs_new(KvOutput *file) {
  KvOutputs *outputs = g_new0(KvOutputs, 1);
  outputs->file = file;
  outputs->tokens = g_string_new(NULL);
  outputs->index = G_MAXUINT64;
  return outputs;
}

void kv_outputs_free(KvOutputs *outputs) {
  if (!outputs)
    return;
  g_string_free(outputs->tokens, TRUE);
  g_free(outputs);
}

void kv_outputs_generated(KvOutputs *outputs, guint64 index, const guint32 *tokens, guint n) {
  outputs->index = index;
  g_string_truncate(outputs->tokens, 0);
  for (guint i = 0; i < n; i++)
    g_string_append_printf(outputs->tokens, "%s%u", i ? "," : "", tokens[i]);
}

void kv_outputs_left(KvOutputs *outputs, const KvSequence *sequence) {
  if (sequence->index != outputs->index) /* rejected: it has none */
    return;
  kv_output_print(outputs->file,
                  "{\"index\":%" G_GUINT64_FORMAT ",\"id\":%" G_GINT64_FORMAT ",\"tokens\":[%s]}\n",
                  sequence->index, sequence->id, outputs->tokens->str);
}
