/* The file behind the tier SSD: what is written comes back, under its names or not at all, and
 * nothing is left in the folder. */
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#include "reference/host/executor.h"
#include "reference/host/file_store.h"
#include "sim/base/error.h"
#include "tests/reference/tiny_models.h"

enum { PAGE = 4096 };

static KvFileStore *new_store(gsize bytes, guint tokens, guint64 blocks) {
  g_autoptr(GError) error = NULL;
  KvFileStore *store = kv_file_store_new(NULL, bytes, tokens, blocks, &error);
  g_assert_no_error(error);
  return store;
}

/* Distinct bytes and names for a block. */
static void mark(KvFileStore *store, guint32 block, guint8 *memory, gsize bytes, guint tokens) {
  for (gsize i = 0; i < bytes; i++)
    memory[i] = (guint8)((gsize)block * 31 + i * 7 + i / 251);
  for (guint t = 0; t < tokens; t++)
    kv_file_store_names(store, block)[t] = 1 + block * 1000 + t;
}

static void check_round_trip(gsize bytes, guint tokens, guint n) {
  g_autoptr(KvFileStore) store = new_store(bytes, tokens, n);
  g_autoptr(GError) error = NULL;
  gsize slot = kv_file_store_slot_bytes(store);
  g_assert_cmpuint(kv_file_store_blocks(store), ==, n);
  g_assert_cmpuint(slot % PAGE, ==, 0);
  g_assert_cmpuint(slot, >=, bytes + tokens * sizeof(guint64));
  guint8 *memory = g_aligned_alloc0(n, slot, PAGE), *expected = g_malloc(bytes);
  g_autofree KvFileTransfer *transfers = g_new(KvFileTransfer, n);
  for (guint32 b = 0; b < n; b++) {
    transfers[b] = (KvFileTransfer){TRUE, b, memory + b * slot};
    mark(store, b, transfers[b].memory, bytes, tokens);
  }
  kv_file_store_begin(store, transfers, n);
  kv_file_store_wait(store, &error);
  g_assert_no_error(error);
  memset(memory, 0xa5, n * slot);
  for (guint32 i = 0; i < n; i++) /* in another order, elsewhere */
    transfers[i] = (KvFileTransfer){FALSE, (i * 7 + 3) % n, memory + i * slot};
  kv_file_store_begin(store, transfers, n);
  kv_file_store_wait(store, &error);
  g_assert_no_error(error);
  for (guint i = 0; i < n; i++) {
    mark(store, transfers[i].block, expected, bytes, tokens);
    g_assert_cmpmem(transfers[i].memory, bytes, expected, bytes);
  }
  g_free(expected);
  g_aligned_free(memory);
}

static void test_what_is_written_comes_back(void) {
  check_round_trip(1, 1, 1);
  check_round_trip(PAGE - 8, 1, 5); /* a page to the byte */
  check_round_trip(PAGE, 1, 5);
  check_round_trip(12288, 16, 97); /* 97: no multiple of 7 */
  check_round_trip(1 << 20, 64, 12);
}

static void test_nothing_to_wait_for(void) {
  g_autoptr(KvFileStore) store = new_store(PAGE, 4, 2);
  g_autoptr(GError) error = NULL;
  kv_file_store_begin(store, NULL, 0);
  g_assert_true(kv_file_store_wait(store, &error));
  g_assert_no_error(error);
}

static gboolean move(KvFileStore *store, gboolean write, guint32 block, void *memory,
                     GError **error) {
  const KvFileTransfer t = {write, block, memory};
  kv_file_store_begin(store, &t, 1);
  return kv_file_store_wait(store, error);
}

static void test_other_names_are_an_error(void) {
  g_autoptr(KvFileStore) store = new_store(PAGE, 4, 3);
  g_autoptr(GError) error = NULL;
  guint8 *memory = g_aligned_alloc0(1, kv_file_store_slot_bytes(store), PAGE);
  mark(store, 1, memory, PAGE, 4);
  g_assert_true(move(store, TRUE, 1, memory, NULL));
  kv_file_store_names(store, 1)[3]++;
  g_assert_false(move(store, FALSE, 1, memory, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_assert_nonnull(strstr(error->message, "block 1 came back with other tokens"));
  kv_file_store_names(store, 1)[3]--;
  g_assert_true(move(store, FALSE, 1, memory, NULL)); /* the error was of that transfer alone */
  g_aligned_free(memory);
}

static void test_a_bad_folder(void) {
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_file_store_new("/nowhere/at all", PAGE, 4, 3, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_assert_nonnull(strstr(error->message, "/nowhere/at all"));
  g_assert_nonnull(strstr(error->message, "expected a folder that can be written"));
}

/* Files of at most so many bytes, as on a full drive; the signal is the program's to ignore. */
static void limit_files(rlim_t bytes) {
  struct rlimit limit;
  g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &limit), ==, 0);
  limit.rlim_cur = bytes;
  g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &limit), ==, 0);
}

static void test_a_full_drive(void) {
  g_autoptr(GError) error = NULL;
  signal(SIGXFSZ, SIG_IGN);
  limit_files(10000);
  g_assert_null(kv_file_store_new(NULL, PAGE, 4, 3, &error));
  limit_files(RLIM_INFINITY);
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_assert_nonnull(strstr(error->message, "taking room"));
  g_assert_nonnull(strstr(error->message, "GB free"));
}

static void test_a_drive_that_fills_up(void) {
  g_autoptr(KvFileStore) store = new_store(PAGE, 4, 8);
  g_autoptr(GError) error = NULL;
  gsize slot = kv_file_store_slot_bytes(store);
  guint8 *memory = g_aligned_alloc0(8, slot, PAGE);
  KvFileTransfer transfers[8];
  for (guint32 b = 0; b < 8; b++)
    transfers[b] = (KvFileTransfer){TRUE, b, memory + b * slot};
  signal(SIGXFSZ, SIG_IGN);
  limit_files(3 * slot);
  kv_file_store_begin(store, transfers, 8);
  g_assert_false(kv_file_store_wait(store, &error));
  limit_files(RLIM_INFINITY);
  g_assert_error(error, KV_ERROR, KV_ERROR_FAILED);
  g_assert_nonnull(strstr(error->message, "writing block"));
  g_aligned_free(memory);
}

static void test_nothing_is_left_behind(void) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-store-XXXXXX", NULL);
  g_autoptr(KvFileStore) store = kv_file_store_new(folder, PAGE, 4, 3, NULL);
  g_assert_nonnull(store);
  g_assert_cmpint(g_rmdir(folder), ==, 0);
}

/* tmpfs has had no direct access for long: either way it works, and the store knows. */
static void test_without_direct_access(void) {
  g_autoptr(GError) error = NULL;
  if (!g_file_test("/dev/shm", G_FILE_TEST_IS_DIR)) {
    g_test_skip("no /dev/shm");
    return;
  }
  g_autoptr(KvFileStore) store = kv_file_store_new("/dev/shm", 100, 4, 3, &error);
  g_assert_no_error(error);
  g_test_message("direct: %d", kv_file_store_is_direct(store));
  guint8 *memory = g_aligned_alloc0(1, kv_file_store_slot_bytes(store), PAGE);
  mark(store, 2, memory, 100, 4);
  g_assert_true(move(store, TRUE, 2, memory, NULL));
  memset(memory, 0, 100);
  g_assert_true(move(store, FALSE, 2, memory, NULL));
  g_assert_cmpuint(memory[1], ==, (guint8)(2 * 31 + 7));
  g_aligned_free(memory);
}

/* A sequence's blocks go to the file and come back to others; what it generates then is what it
 * generates alone. A block of another sequence is found out. */
static void test_the_executor_reads_its_blocks_back(void) {
  enum { BLOCK_TOKENS = 4, BLOCKS = 32, PROMPT = 18 };
  guint32 outputs[2][6], table[8];
  for (guint away = 0; away < 2; away++) {
    g_autoptr(GError) error = NULL;
    KvExecutor *executor = kv_host_executor_new(&llama, BLOCK_TOKENS, BLOCKS, 0, 0, 7, &error);
    g_assert_no_error(error);
    g_assert_true(kv_host_executor_open_file(executor, NULL, 9, &error));
    KvSequence sequence = {.input_tokens = PROMPT, .block_ids = table, .n_block_ids = 8};
    KvSequence *member = &sequence;
    for (guint32 i = 0; i < 8; i++)
      table[i] = i;
    KvChunk chunk = {&sequence, 0, PROMPT, TRUE};
    KvStepCost cost;
    KvStep prefill = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
    g_assert_true(executor->class->step(executor, &prefill, &cost, &error));
    sequence.computed_tokens = PROMPT;
    for (guint32 i = 0; away && i < 5; i++) {
      executor->class->move_block(executor, KV_TIER_HBM, i, KV_TIER_SSD, 8 - i);
      executor->class->move_block(executor, KV_TIER_SSD, 8 - i, KV_TIER_HBM, 20 + i);
      table[i] = 20 + i;
    }
    for (guint s = 0; s < 5; s++) {
      KvStep step = {.decode = {.n = 1, .members = &member}, .repeat = 1};
      g_assert_true(executor->class->step(executor, &step, &cost, &error));
      sequence.computed_tokens++;
    }
    guint n;
    const guint32 *output = kv_host_executor_output(executor, &sequence, &n);
    g_assert_cmpuint(n, ==, 6);
    memcpy(outputs[away], output, sizeof outputs[away]);
    executor->class->move_block(executor, KV_TIER_SSD, 0, KV_TIER_HBM,
                                table[1]); /* never written */
    KvStep step = {.decode = {.n = 1, .members = &member}, .repeat = 1};
    g_assert_false(executor->class->step(executor, &step, &cost, &error));
    g_assert_nonnull(strstr(error->message, "holds nothing yet"));
    executor->class->forget(executor, &sequence);
    executor->class->destroy(executor);
  }
  g_assert_cmpmem(outputs[0], sizeof outputs[0], outputs[1], sizeof outputs[1]);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/file-store/round-trip", test_what_is_written_comes_back);
  g_test_add_func("/reference/file-store/nothing", test_nothing_to_wait_for);
  g_test_add_func("/reference/file-store/names", test_other_names_are_an_error);
  g_test_add_func("/reference/file-store/folder", test_a_bad_folder);
  g_test_add_func("/reference/file-store/full", test_a_full_drive);
  g_test_add_func("/reference/file-store/fills-up", test_a_drive_that_fills_up);
  g_test_add_func("/reference/file-store/left-behind", test_nothing_is_left_behind);
  g_test_add_func("/reference/file-store/page-cache", test_without_direct_access);
  g_test_add_func("/reference/file-store/executor", test_the_executor_reads_its_blocks_back);
  return g_test_run();
}
