/* Two engines with the same weights, one with the whole cache and one that holds it in another
 * format: what an agreement (agreement.h) is taken of. reference/cuda/pair.h has them on a GPU. */
#ifndef KV_REFERENCE_HOST_PAIR_H
#define KV_REFERENCE_HOST_PAIR_H

#include "models/llm/llm.h"
#include "reference/host/agreement.h"

typedef struct {
  const KvModel *model;
  const char *checkpoint; /* a Hugging Face folder, or NULL: weights from the seed */
  guint64 seed;
  const KvHostCompression *compression;
  guint block_tokens, n_blocks; /* of each cache */
  guint max_positions;          /* longest sequence */
} KvPairSettings;

typedef struct {
  KvHostPass pass;
  gpointer whole, compressed;
  void (*forget)(gpointer engine); /* the sequence that was computed */
  void (*free)(gpointer state);
  gpointer state;
} KvEnginePair;

/* Borrows what the settings point to. NULL with *error set: as of the executor. */
KvEnginePair *kv_host_pair_new(const KvPairSettings *settings, GError **error);
void kv_engine_pair_free(KvEnginePair *pair);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvEnginePair, kv_engine_pair_free)

/* Add the agreement over the prompt tokens[n], computed `chunk` at a time, and `decoded` tokens
 * after it; blocks of both caches are taken from their ends. */
gboolean kv_engine_pair_compare(KvEnginePair *pair, const KvPairSettings *settings,
                                const guint32 *tokens, guint n, guint chunk, guint decoded,
                                KvHostAgreement *agreement, GError **error);

#endif
