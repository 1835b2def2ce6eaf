/* quest: the engine's own blocks with a summary behind each; a decoding token's KV heads attend
 * each to a table of their own, of the pages that it chose. */
#include "reference/cuda/format.h"

/* Tokens of chosen pages that one block attends to. */
enum { CHOICE_SPLIT = 4 * KV_CUDA_SPLIT_UNIT };

/* Where decoding tokens choose their pages. */
typedef struct {
  guint sequences, most_pages, max_splits; /* room for */
  guint32 *table, *contexts, *starts, *split;
  float *bounds;
  KvBf16 *queries;
  void *scratch;
  gboolean all_fit; /* no context of the pass has more pages than are chosen */
} Choice;

static void choice_clear(Choice *y) {
  void *memory[] = {y->table, y->contexts, y->starts, y->split, y->bounds, y->queries, y->scratch};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
  *y = (Choice){.all_fit = y->all_fit};
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  c->state = g_new0(Choice, 1);
  return TRUE;
}

static void release(KvCudaCompressed *c) {
  choice_clear(c->state);
  g_free(c->state);
}

/* --- before a pass --------------------------------------------------------------------------- */

/* Room for so many decoding sequences and pages. */
static gboolean make_choice(KvCudaCompressed *c, guint sequences, guint most_pages, gboolean *moved,
                            GError **error) {
  Choice *y = c->state;
  guint heads = 0, kv = 0, d = 0, chosen = c->settings->pages;
  if (sequences <= y->sequences && most_pages <= y->most_pages)
    return TRUE;
  for (guint l = 0; l < c->weights->n_layers; l++) {
    const KvAttention *a = &c->weights->layers[l].attention;
    heads = MAX(heads, a->n_heads);
    kv = MAX(kv, a->n_kv_heads);
    d = MAX(d, a->head_dim);
  }
  Choice need = {.sequences = MAX(2 * sequences, y->sequences),
                 .most_pages = MAX(2 * most_pages, y->most_pages),
                 .all_fit = y->all_fit};
  need.max_splits = (chosen * c->cache->block_tokens + CHOICE_SPLIT - 1) / CHOICE_SPLIT;
  gsize ones = (gsize)need.sequences * kv;
  if (!kv_cuda_wait(c->device, error))
    return FALSE;
  choice_clear(y);
  *moved = TRUE;
  const char *what = "the choice of pages";
  *y = need;
  g_autofree guint32 *starts = g_new(guint32, ones);
  for (gsize i = 0; i < ones; i++)
    starts[i] = (guint32)i * chosen;
  const guint32 split = CHOICE_SPLIT;
  return (y->table = kv_cuda_alloc(ones * chosen * sizeof(guint32), what, error)) &&
         (y->contexts = kv_cuda_alloc(ones * sizeof(guint32), what, error)) &&
         (y->starts = kv_cuda_alloc(ones * sizeof(guint32), what, error)) &&
         (y->split = kv_cuda_alloc(sizeof split, what, error)) &&
         (y->bounds = kv_cuda_alloc(ones * need.most_pages * sizeof(float), what, error)) &&
         (y->queries =
              kv_cuda_alloc((gsize)need.sequences * heads * d * sizeof(KvBf16), what, error)) &&
         (y->scratch =
              kv_cuda_alloc(kv_cuda_decode_scratch_bytes(need.sequences, heads, d, need.max_splits),
                            what, error)) &&
         kv_cuda_upload(c->device, y->starts, starts, ones * sizeof *starts, error) &&
         kv_cuda_upload(c->device, y->split, &split, sizeof split, error);
}

/* The engine fills a batch up to one that it has a graph of: by fewer than 8 rows. */
static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  Choice *y = c->state;
  guint most = 1, decoding = c->n_spans - prompts;
  for (guint s = 0; s < c->n_spans; s++)
    if (c->spans[s].decoding)
      most = MAX(most, kv_cuda_format_blocks(c, &c->spans[s]));
  if (decoding == 0)
    return TRUE;
  *moved = y->all_fit != (most <= c->settings->pages);
  y->all_fit = most <= c->settings->pages;
  return make_choice(c, decoding + 7, most, moved, error);
}

/* --- in a pass ------------------------------------------------------------------------------- */

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  cudaError_t status = kv_cuda_format_store_exact(c, layer, r);
  return status != cudaSuccess
             ? status
             : kv_cuda_summarize(&c->cache->layers[layer], &r->tables, r->row_sequences, r->slots,
                                 r->rows, c->device->stream);
}

/* Each KV head of each sequence is a sequence of its own, over the pages that it chose. */
static cudaError_t decode_chosen(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  KvBf16 *out = kv_cuda_format_decode_out(r);
  const KvBf16 *q = kv_cuda_format_decode_queries(r);
  const Choice *y = c->state;
  const KvCudaPages *pages = &c->cache->layers[layer];
  KvCudaPages parts = *pages;
  KvCudaTables chosen = {y->table, y->starts};
  guint group = r->n_heads / pages->n_kv_heads;
  gsize width = (gsize)r->n_heads * r->head_dim, bytes = sizeof(KvBf16);
  cudaStream_t stream = c->device->stream;
  parts.block_elements = r->head_dim;
  parts.n_kv_heads = 1;
  cudaError_t status = kv_cuda_choose_pages(y->table, y->contexts, y->bounds, q, r->stride, pages,
                                            &tables, r->contexts, r->decode, r->n_heads,
                                            c->settings->pages, y->most_pages, stream);
  if (status == cudaSuccess) /* rows side by side, so that heads follow one another everywhere */
    status = cudaMemcpy2DAsync(y->queries, width * bytes, q, r->stride * bytes, width * bytes,
                               r->decode, cudaMemcpyDeviceToDevice, stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_decode_attention(out, y->queries, (gsize)group * r->head_dim, &parts,
                                        &chosen, y->contexts, r->decode * pages->n_kv_heads, group,
                                        0, y->split, y->max_splits, r->counters, y->scratch,
                                        stream);
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  return layer < c->settings->dense_layers || ((const Choice *)c->state)->all_fit
             ? kv_cuda_format_decode_exact(c, layer, r)
             : decode_chosen(c, layer, r);
}

const KvCudaFormat kv_cuda_format_quest = {
    .make = make, .release = release, .begin = begin, .store = store, .decode = decode};
