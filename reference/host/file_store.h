/* Blocks in a file: the tier KV_TIER_SSD of the executors that compute.
 *
 * The file is preallocated, read and written past the page cache (O_DIRECT) by a few threads, and
 * has no name any more once it is open, so that nothing is left behind however the program ends.
 * Where the file system has no direct access (tmpfs, some network file systems), the page cache
 * takes part, which is said in one line; times are then not the drive's.
 *
 * A block stands in a slot of whole pages, with the names of its tokens behind it (ledger.h). Names
 * are also kept in memory, and what is read must bear them: a block that was misplaced or cut short
 * is an error, and not another token some time later.
 */
#ifndef KV_REFERENCE_HOST_FILE_STORE_H
#define KV_REFERENCE_HOST_FILE_STORE_H

#include <glib.h>

typedef struct KvFileStore KvFileStore;

/* What one transfer moves: a slot's bytes, from or to page-aligned memory. */
typedef struct {
  gboolean write;
  guint32 block;
  void *memory; /* kv_file_store_slot_bytes() */
} KvFileTransfer;

/* n_blocks of `block_bytes` in `folder` (NULL or empty: $TMPDIR, else /tmp). NULL with *error set:
 * no such folder, no room. */
KvFileStore *kv_file_store_new(const char *folder, gsize block_bytes, guint block_tokens,
                               guint64 n_blocks, GError **error);
void kv_file_store_free(KvFileStore *store);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvFileStore, kv_file_store_free)

guint64 kv_file_store_blocks(const KvFileStore *store);
/* Bytes of a slot: the block, its names, and up to the next page. */
gsize kv_file_store_slot_bytes(const KvFileStore *store);
/* Past the page cache. */
gboolean kv_file_store_is_direct(const KvFileStore *store);
/* The names of the block's tokens, [block_tokens]; 0: never written. Whoever moves a block there
 * sets them first. */
guint64 *kv_file_store_names(KvFileStore *store, guint32 block);

/* Begin transfers; memory is the store's until kv_file_store_wait() returns. No two of those under
 * way may concern the same block. */
void kv_file_store_begin(KvFileStore *store, const KvFileTransfer *transfers, guint n);
/* Wait for all that were begun. FALSE with *error set to what went wrong first. */
gboolean kv_file_store_wait(KvFileStore *store, GError **error);

#endif
