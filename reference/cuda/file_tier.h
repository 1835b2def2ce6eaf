/* The tier KV_TIER_SSD of the GPU's block store: a file (reference/host/file_store.h), reached
 * through two pinned buffers in turn, so that the drive works on one while the bus fills or empties
 * the other.
 */
#ifndef KV_REFERENCE_CUDA_FILE_TIER_H
#define KV_REFERENCE_CUDA_FILE_TIER_H

#include "models/techniques/plan.h"
#include "reference/cuda/device.h"
#include "reference/host/file_store.h"

/* A block to be copied: to whom it is given is the block store's, cache.h. */
typedef struct {
  KvTier from_tier, to_tier;
  guint32 from, to;
} KvCudaMove;

typedef struct {
  KvFileStore *store;
  char *halves[2];   /* pinned, [room] slots each */
  guint room;        /* slots */
  GArray *transfers; /* of KvFileTransfer: those that are begun next */
} KvCudaFileTier;

/* As kv_file_store_new(). */
KvCudaFileTier *kv_cuda_file_tier_new(const char *folder, gsize block_bytes, guint block_tokens,
                                      guint64 n_blocks, GError **error);
void kv_cuda_file_tier_free(KvCudaFileTier *tier);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCudaFileTier, kv_cuda_file_tier_free)

/* Who copies between the blocks of HBM and DRAM and pinned memory laid out as a block of DRAM: put
 * on the copy stream the other ends of moves[n], to (back: from) slots slot_bytes apart. */
typedef struct {
  gpointer blocks;
  gboolean (*copy)(gpointer blocks, const KvCudaMove *moves, guint n, char *slots, gsize slot_bytes,
                   gboolean back, GError **error);
  KvCudaDevice *device;
} KvCudaBus;

/* Make those of moves[n] that have one end in the file; none depends on another. Adds to *seconds
 * what they took on the host's clock, until the drive has answered for all. */
gboolean kv_cuda_file_tier_run(KvCudaFileTier *tier, const KvCudaBus *bus, const KvCudaMove *moves,
                               guint n, double *seconds, GError **error);

#endif
