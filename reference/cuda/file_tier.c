#include "reference/cuda/file_tier.h"

/* Of one buffer: enough transfers for all threads of the store. */
enum { HALF_BYTES = 32 << 20, MOST_SLOTS = 512 };

KvCudaFileTier *kv_cuda_file_tier_new(const char *folder, gsize block_bytes, guint block_tokens,
                                      guint64 n_blocks, GError **error) {
  g_autoptr(KvCudaFileTier) tier = g_new0(KvCudaFileTier, 1);
  tier->transfers = g_array_new(FALSE, FALSE, sizeof(KvFileTransfer));
  tier->store = kv_file_store_new(folder, block_bytes, block_tokens, n_blocks, error);
  if (!tier->store)
    return NULL;
  gsize slot = kv_file_store_slot_bytes(tier->store);
  tier->room = (guint)CLAMP(HALF_BYTES / slot, 1, MOST_SLOTS);
  for (guint h = 0; h < 2; h++)
    if (!KV_CUDA_OK(
            cudaHostAlloc((void **)&tier->halves[h], tier->room * slot, cudaHostAllocDefault),
            error))
      return NULL;
  return g_steal_pointer(&tier);
}

/* The store first: it waits for its threads, which may hold the buffers. */
void kv_cuda_file_tier_free(KvCudaFileTier *tier) {
  if (!tier)
    return;
  kv_file_store_free(tier->store);
  for (guint h = 0; h < 2; h++)
    if (tier->halves[h])
      (void)cudaFreeHost(tier->halves[h]);
  g_array_unref(tier->transfers);
  g_free(tier);
}

static char *slot_of(const KvCudaFileTier *tier, guint half, guint i) {
  return tier->halves[half] + i * kv_file_store_slot_bytes(tier->store);
}

/* Begin the file's side of moves[n] through that half. */
static void begin_transfers(KvCudaFileTier *tier, const KvCudaMove *moves, guint n, guint half,
                            gboolean write) {
  g_array_set_size(tier->transfers, 0);
  for (guint i = 0; i < n; i++) {
    KvFileTransfer t = {write, write ? moves[i].to : moves[i].from, slot_of(tier, half, i)};
    g_array_append_val(tier->transfers, t);
  }
  kv_file_store_begin(tier->store, (const KvFileTransfer *)(void *)tier->transfers->data, n);
}

/* Put the bus's side of them on the copy stream. */
static gboolean launch_copies(KvCudaFileTier *tier, const KvCudaBus *bus, const KvCudaMove *moves,
                              guint n, guint half, gboolean write, GError **error) {
  return bus->copy(bus->blocks, moves, n, tier->halves[half], kv_file_store_slot_bytes(tier->store),
                   !write, error);
}

static gboolean await_copies(const KvCudaBus *bus, GError **error) {
  return KV_CUDA_OK(cudaStreamSynchronize(bus->device->copies), error);
}

/* One half fills from the GPU while the other is written. */
static gboolean write_all(KvCudaFileTier *tier, const KvCudaBus *bus, const KvCudaMove *moves,
                          guint n, GError **error) {
  for (guint first = 0, half = 0; first < n; first += tier->room, half ^= 1) {
    guint count = MIN(tier->room, n - first);
    if (!launch_copies(tier, bus, moves + first, count, half, TRUE, error) ||
        !await_copies(bus, error) || !kv_file_store_wait(tier->store, error))
      return FALSE;
    begin_transfers(tier, moves + first, count, half, TRUE);
  }
  return kv_file_store_wait(tier->store, error);
}

/* One half is read while the other goes to the GPU. */
static gboolean read_all(KvCudaFileTier *tier, const KvCudaBus *bus, const KvCudaMove *moves,
                         guint n, GError **error) {
  begin_transfers(tier, moves, MIN(tier->room, n), 0, FALSE);
  for (guint first = 0, half = 0; first < n; first += tier->room, half ^= 1) {
    guint count = MIN(tier->room, n - first), next = first + count;
    if (!kv_file_store_wait(tier->store, error) || !await_copies(bus, error))
      return FALSE;
    if (next < n)
      begin_transfers(tier, moves + next, MIN(tier->room, n - next), half ^ 1, FALSE);
    if (!launch_copies(tier, bus, moves + first, count, half, FALSE, error))
      return FALSE;
  }
  return await_copies(bus, error);
}

gboolean kv_cuda_file_tier_run(KvCudaFileTier *tier, const KvCudaBus *bus, const KvCudaMove *moves,
                               guint n, double *seconds, GError **error) {
  g_autoptr(GArray) writes = g_array_new(FALSE, FALSE, sizeof(KvCudaMove));
  g_autoptr(GArray) reads = g_array_new(FALSE, FALSE, sizeof(KvCudaMove));
  for (guint i = 0; i < n; i++) {
    if (moves[i].to_tier == KV_TIER_SSD)
      g_array_append_val(writes, moves[i]);
    else if (moves[i].from_tier == KV_TIER_SSD)
      g_array_append_val(reads, moves[i]);
  }
  if (writes->len + reads->len == 0)
    return TRUE;
  if (!kv_cuda_wait(bus->device, error))
    return FALSE;
  gint64 began = g_get_monotonic_time();
  if (!write_all(tier, bus, (const KvCudaMove *)(void *)writes->data, writes->len, error) ||
      !read_all(tier, bus, (const KvCudaMove *)(void *)reads->data, reads->len, error))
    return FALSE;
  *seconds += (double)(g_get_monotonic_time() - began) * 1e-6;
  return TRUE;
}
