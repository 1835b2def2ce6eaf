#include "reference/cuda/sharing.h"

#include "reference/cuda/kernels.h"

/* Two blocks on a multiprocessor keep its tensor cores busy. A piece's part is written and read
 * again, so a short one costs more than it saves. */
enum { BLOCKS_EACH = 2, LEAST_PIECE = 4 * KV_CUDA_SHARED_UNIT };

KvCudaSharing *kv_cuda_sharing_new(const KvCudaDevice *device, const KvCudaWeights *weights,
                                   guint block_tokens, guint over) {
  KvCudaSharing *sharing = g_new0(KvCudaSharing, 1);
  kv_host_sharing_init(&sharing->found);
  sharing->tiles = g_array_new(FALSE, FALSE, sizeof(KvCudaSharedTile));
  sharing->part_starts = g_array_new(FALSE, TRUE, sizeof(guint32));
  sharing->over = over;
  sharing->block_tokens = block_tokens;
  sharing->multiprocessors = device->multiprocessors;
  sharing->tile_members = sharing->least_kv_heads = G_MAXUINT;
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvAttention *a = &weights->layers[l].attention;
    sharing->tile_members =
        MIN(sharing->tile_members, kv_cuda_shared_tile_members(a->n_heads, a->n_kv_heads));
    sharing->least_kv_heads = MIN(sharing->least_kv_heads, a->n_kv_heads);
  }
  return sharing;
}

void kv_cuda_sharing_free(KvCudaSharing *sharing) {
  if (!sharing)
    return;
  kv_host_sharing_clear(&sharing->found);
  g_array_unref(sharing->tiles);
  g_array_unref(sharing->part_starts);
  g_free(sharing);
}

static guint64 ceiling(guint64 n, guint64 unit) {
  return (n + unit - 1) / unit;
}

/* Tokens of a piece, of all runs alike. */
static guint32 piece_tokens(const KvCudaSharing *sharing) {
  guint64 work = 0, blocks = BLOCKS_EACH * (guint64)sharing->multiprocessors;
  for (guint i = 0; i < sharing->found.runs->len; i++) {
    const KvHostSharedRun *run = &g_array_index(sharing->found.runs, KvHostSharedRun, i);
    work += ceiling(run->members, sharing->tile_members) * (run->end - run->begin);
  }
  guint64 even = ceiling(work * sharing->least_kv_heads, blocks);
  return (guint32)MAX(LEAST_PIECE, ceiling(even, KV_CUDA_SHARED_UNIT) * KV_CUDA_SHARED_UNIT);
}

/* The run's tiles; parts[] are so far each sequence's number of parts, which is the same of all
 * that share a run. */
static void add_run(KvCudaSharing *sharing, const KvHostSharedRun *run, guint32 piece,
                    guint32 *parts) {
  const guint *members = &g_array_index(sharing->found.members, guint, run->first);
  guint32 part = parts[members[0]];
  for (guint32 begin = run->begin; begin < run->end; begin += piece, part++)
    for (guint m = 0; m < run->members; m += sharing->tile_members) {
      KvCudaSharedTile tile = {.table = members[0],
                               .begin = begin,
                               .end = MIN(begin + piece, run->end),
                               .first = run->first + m,
                               .members = MIN(sharing->tile_members, run->members - m),
                               .part = part};
      g_array_append_val(sharing->tiles, tile);
    }
  for (guint m = 0; m < run->members; m++)
    parts[members[m]] = part;
}

void kv_cuda_sharing_plan(KvCudaSharing *sharing, const KvHostSpan *spans, guint n_spans) {
  kv_host_sharing_find(&sharing->found, spans, n_spans, sharing->block_tokens, sharing->over);
  guint decoding = sharing->found.members->len;
  guint32 piece = piece_tokens(sharing), sum = 0;
  g_array_set_size(sharing->tiles, 0);
  g_array_set_size(sharing->part_starts, 0);
  g_array_set_size(sharing->part_starts, decoding + 1);
  guint32 *parts = (guint32 *)(void *)sharing->part_starts->data;
  for (guint i = 0; i < sharing->found.runs->len; i++)
    add_run(sharing, &g_array_index(sharing->found.runs, KvHostSharedRun, i), piece, parts);
  for (guint s = 0; s <= decoding; s++) { /* numbers become where they begin */
    guint32 own = parts[s];
    parts[s] = sum;
    sum += own;
  }
}

guint kv_cuda_sharing_parts(const KvCudaSharing *sharing) {
  return g_array_index(sharing->part_starts, guint32, sharing->part_starts->len - 1);
}
