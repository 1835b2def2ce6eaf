#include "reference/host/file_store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "sim/base/error.h"

/* Direct access asks for multiples of the drive's block: 512 or 4,096 bytes. Transfers of some
 * hundred KiB, a few of them under way, are what a drive needs for its full rate. */
enum { PAGE = 4096, THREADS = 8 };

struct KvFileStore {
  char *folder;
  int file;
  gboolean direct;
  gsize block_bytes, names_bytes, slot_bytes;
  guint block_tokens;
  guint64 n_blocks;
  guint64 *names; /* [n_blocks][block_tokens] */
  GThreadPool *threads;
  GMutex lock; /* of what follows */
  GCond idle;
  guint under_way;
  GError *problem; /* the first one */
};

static gboolean fail(const KvFileStore *s, const char *what, int number, GError **error) {
  double gigabytes = (double)s->slot_bytes * (double)s->n_blocks / 1e9;
  g_autofree char *room = g_strdup_printf("a folder with %.3g GB free", gigabytes);
  gboolean full = number == ENOSPC || number == EFBIG || number == EDQUOT;
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
              "block file in %s: %s: %s, expected %s (prefix_cache.tier_folder)%s", s->folder, what,
              g_strerror(number), full ? room : "a folder that can be written",
              full ? " or a smaller prefix_cache.tier_GB" : "");
  return FALSE;
}

/* --- one slot -------------------------------------------------------------------------------- */

/* All of the slot: a signal or a full drive may cut a transfer short. 0, or what went wrong; EIO
 * where the file ends too early. */
static int transfer_bytes(const KvFileStore *s, const KvFileTransfer *t) {
  off_t offset = (off_t)(t->block * (guint64)s->slot_bytes);
  for (gsize done = 0; done < s->slot_bytes;) {
    char *at = (char *)t->memory + done;
    gsize left = s->slot_bytes - done;
    ssize_t n = t->write ? pwrite(s->file, at, left, offset + (off_t)done)
                         : pread(s->file, at, left, offset + (off_t)done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n < 0 ? errno : EIO;
    done += (gsize)n;
  }
  return 0;
}

static gboolean transfer(KvFileStore *s, const KvFileTransfer *t, GError **error) {
  char *names = (char *)t->memory + s->block_bytes;
  int number = transfer_bytes(s, t);
  if (number) {
    g_autofree char *what =
        g_strdup_printf("%s block %u", t->write ? "writing" : "reading", t->block);
    return fail(s, what, number, error);
  }
  if (t->write || memcmp(names, kv_file_store_names(s, t->block), s->names_bytes) == 0)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
              "block file in %s: block %u came back with other tokens than were stored there",
              s->folder, t->block);
  return FALSE;
}

static void run_transfer(gpointer data, gpointer user) {
  KvFileStore *s = user;
  g_autofree KvFileTransfer *t = data;
  GError *problem = NULL;
  transfer(s, t, &problem);
  g_mutex_lock(&s->lock);
  if (problem && !s->problem)
    s->problem = g_steal_pointer(&problem);
  if (--s->under_way == 0)
    g_cond_signal(&s->idle);
  g_mutex_unlock(&s->lock);
  g_clear_error(&problem);
}

void kv_file_store_begin(KvFileStore *s, const KvFileTransfer *transfers, guint n) {
  g_mutex_lock(&s->lock);
  s->under_way += n;
  g_mutex_unlock(&s->lock);
  for (guint i = 0; i < n; i++) {
    const KvFileTransfer *t = &transfers[i];
    if (t->write)
      memcpy((char *)t->memory + s->block_bytes, kv_file_store_names(s, t->block), s->names_bytes);
    g_thread_pool_push(s->threads, g_memdup2(t, sizeof *t), NULL);
  }
}

gboolean kv_file_store_wait(KvFileStore *s, GError **error) {
  g_mutex_lock(&s->lock);
  while (s->under_way > 0)
    g_cond_wait(&s->idle, &s->lock);
  GError *problem = g_steal_pointer(&s->problem);
  g_mutex_unlock(&s->lock);
  if (!problem)
    return TRUE;
  g_propagate_error(error, problem);
  return FALSE;
}

/* --- the file -------------------------------------------------------------------------------- */

/* Without a name from the beginning on, as long as all slots. */
static gboolean make_file(KvFileStore *s, GError **error) {
  g_autofree char *path = g_build_filename(s->folder, "kvsim-blocks-XXXXXX", NULL);
  off_t bytes = (off_t)(s->slot_bytes * s->n_blocks);
  s->file = g_mkstemp_full(path, O_RDWR | O_CLOEXEC, 0600);
  if (s->file < 0)
    return fail(s, "making it", errno, error);
  (void)unlink(path);
  if (fallocate(s->file, 0, 0, bytes) == 0)
    return TRUE;
  if (errno != EOPNOTSUPP)
    return fail(s, "taking room for it", errno, error);
  return ftruncate(s->file, bytes) == 0 || fail(s, "taking room for it", errno, error);
}

/* Whether the first slot can be written past the page cache; some file systems say so only then. */
static gboolean try_direct(KvFileStore *s) {
  int flags = fcntl(s->file, F_GETFL);
  if (flags < 0 || fcntl(s->file, F_SETFL, flags | O_DIRECT) != 0)
    return FALSE;
  void *memory = g_aligned_alloc0(1, s->slot_bytes, PAGE);
  const KvFileTransfer first = {.write = TRUE, .memory = memory};
  gboolean written = transfer_bytes(s, &first) == 0;
  g_aligned_free(memory);
  if (!written)
    (void)fcntl(s->file, F_SETFL, flags);
  return written;
}

KvFileStore *kv_file_store_new(const char *folder, gsize block_bytes, guint block_tokens,
                               guint64 n_blocks, GError **error) {
  g_return_val_if_fail(block_bytes > 0 && block_tokens > 0 && n_blocks > 0, NULL);
  g_autoptr(KvFileStore) s = g_new0(KvFileStore, 1);
  g_mutex_init(&s->lock);
  g_cond_init(&s->idle);
  s->folder = g_strdup(folder && *folder ? folder : g_get_tmp_dir());
  s->file = -1;
  s->block_bytes = block_bytes;
  s->block_tokens = block_tokens;
  s->n_blocks = n_blocks;
  s->names_bytes = block_tokens * sizeof(guint64);
  s->slot_bytes = (block_bytes + s->names_bytes + PAGE - 1) / PAGE * PAGE;
  if (n_blocks > G_MAXUINT32 || n_blocks > G_MAXINT64 / s->slot_bytes ||
      !(s->names = g_try_malloc0_n(n_blocks, s->names_bytes))) {
    fail(s, "its size", EFBIG, error);
    return NULL;
  }
  if (!make_file(s, error) ||
      !(s->threads = g_thread_pool_new(run_transfer, s, THREADS, FALSE, error)))
    return NULL;
  s->direct = try_direct(s);
  if (!s->direct)
    g_message("block file in %s: the file system has no direct access, so the page cache takes "
              "part in what is measured",
              s->folder);
  return g_steal_pointer(&s);
}

void kv_file_store_free(KvFileStore *s) {
  if (!s)
    return;
  if (s->threads)
    g_thread_pool_free(s->threads, FALSE, TRUE);
  if (s->file >= 0)
    (void)close(s->file);
  g_clear_error(&s->problem);
  g_mutex_clear(&s->lock);
  g_cond_clear(&s->idle);
  g_free(s->names);
  g_free(s->folder);
  g_free(s);
}

guint64 kv_file_store_blocks(const KvFileStore *s) {
  return s->n_blocks;
}

gsize kv_file_store_slot_bytes(const KvFileStore *s) {
  return s->slot_bytes;
}

gboolean kv_file_store_is_direct(const KvFileStore *s) {
  return s->direct;
}

guint64 *kv_file_store_names(KvFileStore *s, guint32 block) {
  return s->names + (gsize)block * s->block_tokens;
}
