#include "reference/host/format.h"

static void store(const KvHostFormatLayer *at) {
  gsize n = (gsize)at->rows * at->pages->n_kv_heads * at->pages->head_dim;
  for (gsize i = 0; i < n; i++) {
    at->k[i] = kv_host_round_e4m3(at->k[i]);
    at->v[i] = kv_host_round_e4m3(at->v[i]);
  }
}

static gboolean check(const KvHostCompression *c, const KvAttention *attention, GError **error) {
  return attention->kind != KV_ATTENTION_NONE ||
         kv_host_format_refuse(error, "precision.cache=fp8", "a layer that keeps a state",
                               "keys and values in every layer");
}

const KvHostFormatClass kv_host_format_fp8 = {.check = check, .store = store, .exact = TRUE};
