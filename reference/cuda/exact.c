#include "reference/cuda/exact.h"

void kv_cuda_exact_init(KvCudaExact *x, const KvCudaCompressed *c) {
  kv_cuda_workspace_init(&x->workspace, c, FALSE);
  x->free = g_array_new(FALSE, FALSE, sizeof(guint32));
}

void kv_cuda_exact_clear(KvCudaExact *x, guint n_layers) {
  kv_cuda_workspace_clear(&x->workspace, n_layers);
  g_clear_pointer(&x->free, g_array_unref);
}

void kv_cuda_exact_release(KvCudaExact *x, GArray **blocks) {
  if (*blocks)
    g_array_append_vals(x->free, (*blocks)->data, (*blocks)->len);
  g_clear_pointer(blocks, g_array_unref);
}

/* So many more free blocks. */
static gboolean more_blocks(KvCudaExact *x, KvCudaCompressed *c, guint more, GError **error) {
  guint old = x->workspace.blocks;
  if (!kv_cuda_workspace_grow(&x->workspace, c, old + more, error))
    return FALSE;
  for (guint32 i = x->workspace.blocks; i-- > old;)
    g_array_append_val(x->free, i);
  return TRUE;
}

/* The exact blocks of a prompt so far, appended to the table. */
static gboolean add_blocks(KvCudaExact *x, KvCudaCompressed *c, const KvHostSpan *span,
                           GArray **blocks, GError **error) {
  guint need = kv_cuda_format_blocks(c, span);
  if (span->past == 0)
    kv_cuda_exact_release(x, blocks);
  if (!*blocks)
    *blocks = g_array_new(FALSE, FALSE, sizeof(guint32));
  if (need > (*blocks)->len) {
    guint more = need - (*blocks)->len;
    if (more > x->free->len && !more_blocks(x, c, more - x->free->len, error))
      return FALSE;
    g_array_set_size(x->free, x->free->len - more);
    g_array_append_vals(*blocks, (guint32 *)(void *)x->free->data + x->free->len, more);
  }
  g_array_append_vals(x->workspace.words, (*blocks)->data, need);
  return TRUE;
}

gboolean kv_cuda_exact_begin(KvCudaExact *x, KvCudaCompressed *c, guint prompts,
                             GArray **(*blocks)(gpointer owner), GError **error) {
  GArray *words = x->workspace.words;
  x->workspace.n_starts = prompts;
  g_array_set_size(words, prompts);
  for (guint s = 0; s < prompts; s++) {
    g_array_index(words, guint32, s) = words->len - prompts;
    if (!add_blocks(x, c, &c->spans[s], blocks(kv_cuda_format_owner(c, c->spans[s].owner)), error))
      return FALSE;
  }
  return kv_cuda_workspace_upload(&x->workspace, c, error);
}

const guint32 *kv_cuda_exact_table(const KvCudaExact *x, guint index) {
  const KvCudaWorkspace *w = &x->workspace;
  return w->device + w->n_starts + g_array_index(w->words, guint32, index);
}
