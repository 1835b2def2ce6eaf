/* The block store: pools of KV blocks in two tiers, HBM and DRAM, both ordinary memory here, and a
 * file for the SSD.
 *
 * A block holds `block_tokens` tokens of every layer, [layer][k, v][Hkv][block_tokens][d] floats;
 * layers may differ in Hkv and d. Beside each token slot stands the name of what was written there:
 * a hash of the token and of all before it. A read through a wrong block table is therefore an
 * error at the first wrong position, and not merely a different token some time later.
 *
 * A sequence of a recurrent model has one block, with room for two states of each layer in the
 * place of keys and of values: a pass reads the one and leaves its own in the other. Its two slots'
 * names are those of the prefixes that the states come from.
 */
#ifndef KV_REFERENCE_HOST_CACHE_H
#define KV_REFERENCE_HOST_CACHE_H

#include <glib.h>

#include "models/techniques/plan.h"
#include "reference/host/compression.h"
#include "reference/host/file_store.h"
#include "reference/host/kernels.h"
#include "reference/host/weights.h"

typedef struct {
  float *floats;  /* [n_blocks][block_floats] */
  guint64 *names; /* [n_blocks][block_tokens]; 0: never written */
  guint64 n_blocks;
} KvHostPool;

typedef struct {
  guint block_tokens, n_layers;
  gsize block_floats;
  KvHostPages *layers; /* of the HBM pool */
  KvHostPool hbm, dram;
  KvFileStore *file;             /* NULL: no tier SSD */
  void *slot;                    /* of the file, on its way */
  KvHostCompression compression; /* exact at first */
  GHashTable
      *owners;    /* what the format keeps of each sequence, by its owner; freed with g_free() */
  gpointer state; /* the format's own, NULL until it needs one */
  GDestroyNotify free_state;
} KvHostCache;

/* NULL with *error set if there is no such memory. */
KvHostCache *kv_host_cache_new(const KvHostWeights *weights, guint block_tokens, guint64 hbm_blocks,
                               guint64 dram_blocks, GError **error);
void kv_host_cache_free(KvHostCache *cache);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvHostCache, kv_host_cache_free)

/* Give the cache a tier SSD of that many blocks, a file in `folder` (file_store.h). */
gboolean kv_host_cache_open_file(KvHostCache *cache, const char *folder, guint64 blocks,
                                 GError **error);

/* The pool of a tier; NULL if it has none. */
KvHostPool *kv_host_cache_pool(KvHostCache *cache, KvTier tier);
/* What the format keeps of a sequence is no longer needed. */
void kv_host_cache_forget(KvHostCache *cache, guint64 owner);
/* Of the two states of a layer in a block of HBM, that one (recurrent.h). */
float *kv_host_cache_state(const KvHostCache *cache, guint layer, guint32 block, guint which);
/* Copy a block with its names; one end may be the file. Both must exist. */
gboolean kv_host_cache_move(KvHostCache *cache, KvTier from_tier, guint32 from, KvTier to_tier,
                            guint32 to, GError **error);
#endif
