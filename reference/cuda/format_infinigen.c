/* infinigen: all blocks lie in pinned host memory, and come to the GPU a layer at a time for
 * prompts alone (streamed_cache.h). Beside layer l, a stream of its own multiplies the input of its
 * decoding rows by layer l + 1's query weights, scores the partial keys, which are on the GPU, and
 * brings the tokens that count from host memory to the staging area that layer l - 1 has left, each
 * head's own side by side. How many they are stays on the GPU. The first layer's are all there are,
 * and are brought at the pass's beginning. Twin: reference/host/format_infinigen.c.
 *
 * Directions are found once, on the host, from the first prompt that is finished; before that
 * nothing is chosen. The columns of later prompts are chosen in the pass that finishes them.
 */
#include <string.h>

#include "reference/cuda/gemm.h"
#include "reference/cuda/speculation.h"
#include "reference/cuda/streamed_cache.h"
#include "reference/cuda/window.h"
#include "reference/host/speculation.h"
#include "sim/base/error.h"

/* Of a sequence: the columns of all layers, device. */
typedef struct {
  KvCudaWindow window; /* first */
  guint32 *columns;
} Owner;

typedef struct {
  KvCudaStreamedCache streamed;    /* first */
  cudaStream_t stream;             /* of the speculation */
  cudaEvent_t input, there[2];     /* it may begin; it is done, of even and odd layers */
  KvCudaGemm *gemm;                /* its own: the workspace is in use */
  KvCudaSkew *skews;               /* [layers]; none of the first */
  float *directions;               /* device, of all layers but the first */
  guint32 widest;                  /* columns of all heads of a layer */
  guint heads, kv_heads, head_dim; /* most of a layer */
  gboolean ready, was_ready;       /* directions are there; at the pass's beginning */
  void *choice;                    /* scratch of kv_cuda_choose_columns() */
  /* Of the pass: each span's blocks and where they begin, and what is known of decoding ones. */
  guint32 *words;
  gsize room_words;
  guint prompts, decode;
  KvCudaSpeculated *sequences;
  guint pass_longest, pass_most;
  gboolean all_fit; /* no cap is below its context */
  /* Room for so many decoding sequences, tokens before their newest, and tokens that one fetches.
   */
  guint room, longest, most;
  KvBf16 *inputs[2]; /* [room][D], of even and odd layers */
  KvBf16 *queries;   /* [room][H d] */
  float *partial;    /* [room][H][columns] */
  guint32 *chosen;   /* [room][Hkv][most] */
  guint32 *lengths;  /* [layers][room] */
  void *scores;
  /* Pieces of contexts that are shorter than the whole: their number and length, [1]. */
  guint max_splits;
  guint32 *split;
  void *scratch;
  gsize scratch_bytes;
} Infinigen;

/* --- beginning and end ----------------------------------------------------------------------- */

static void free_room(Infinigen *x) {
  void *memory[] = {x->inputs[0], x->inputs[1], x->queries, x->partial,
                    x->chosen,    x->lengths,   x->scores};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
  x->inputs[0] = x->inputs[1] = x->queries = NULL;
  x->partial = NULL;
  x->chosen = x->lengths = NULL;
  x->scores = NULL;
  x->room = x->longest = x->most = 0;
}

/* Partial keys of a layer, under the engine's ids. */
static gboolean make_layer(KvCudaCompressed *c, guint l, float *directions, GError **error) {
  Infinigen *x = c->state;
  KvCudaPages *partial = &x->skews[l].partial;
  *partial = c->cache->layers[l];
  x->skews[l].head_dim = partial->head_dim;
  x->skews[l].directions = directions;
  x->skews[l].first_column = (guint64)l * x->widest;
  partial->head_dim = kv_host_speculation_columns(c->settings->column_share, x->skews[l].head_dim);
  partial->block_elements =
      (guint64)partial->n_kv_heads * c->cache->block_tokens * partial->head_dim;
  partial->value_offset = 0;
  partial->pool = kv_cuda_alloc(c->cache->hbm_blocks * partial->block_elements * sizeof(KvBf16),
                                "the partial keys of a layer", error);
  return partial->pool != NULL;
}

/* Layers are alike (cache.c). */
static gboolean make_layers(KvCudaCompressed *c, GError **error) {
  Infinigen *x = c->state;
  const KvAttention *a = &c->weights->layers[0].attention;
  guint n = c->cache->n_layers;
  for (guint l = 0; l < n; l++)
    x->heads = MAX(x->heads, c->weights->layers[l].attention.n_heads);
  x->kv_heads = a->n_kv_heads;
  x->head_dim = a->head_dim;
  x->widest = a->n_kv_heads * kv_host_speculation_columns(c->settings->column_share, a->head_dim);
  gsize floats = (gsize)a->n_kv_heads * a->head_dim * a->head_dim;
  x->skews = g_new0(KvCudaSkew, n);
  if (!(x->directions = kv_cuda_alloc(n * floats * sizeof(float), "directions of keys", error)) ||
      !(x->choice = kv_cuda_alloc(kv_cuda_choose_columns_scratch_bytes(a->n_kv_heads),
                                  "choosing columns", error)) ||
      !(x->split = kv_cuda_alloc(sizeof *x->split, "a piece of a context", error)))
    return FALSE;
  for (guint l = 1; l < n; l++)
    if (!make_layer(c, l, x->directions + l * floats, error))
      return FALSE;
  return TRUE;
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  Infinigen *x = c->state = g_new0(Infinigen, 1);
  return kv_cuda_streamed_cache_make(c, TRUE, KV_HOST_DECODING_GATHERED, error) &&
         kv_cuda_streamed_cache_stream(&x->stream, error) &&
         kv_cuda_streamed_cache_event(&x->input, error) &&
         kv_cuda_streamed_cache_event(&x->there[0], error) &&
         kv_cuda_streamed_cache_event(&x->there[1], error) && (x->gemm = kv_cuda_gemm_new(error)) &&
         make_layers(c, error);
}

static void release(KvCudaCompressed *c) {
  Infinigen *x = c->state;
  cudaEvent_t events[] = {x->input, x->there[0], x->there[1]};
  if (x->stream)
    (void)cudaStreamSynchronize(x->stream);
  for (guint i = 0; i < G_N_ELEMENTS(events); i++)
    if (events[i])
      (void)cudaEventDestroy(events[i]);
  if (x->stream)
    (void)cudaStreamDestroy(x->stream);
  for (guint l = 1; x->skews && l < c->cache->n_layers; l++)
    kv_cuda_free(x->skews[l].partial.pool);
  void *memory[] = {x->directions, x->choice, x->split, x->words, x->sequences, x->scratch};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
  free_room(x);
  kv_cuda_gemm_free(x->gemm);
  kv_cuda_streamed_cache_release(c);
  g_free(x->skews);
  g_free(x);
}

static void forget(KvCudaCompressed *c, gpointer data) {
  kv_cuda_window_forget(c, data);
  kv_cuda_free(((Owner *)data)->columns);
}

/* --- before a pass --------------------------------------------------------------------------- */

/* Room for so many decoding sequences with such contexts. */
static gboolean make_room(KvCudaCompressed *c, guint n, GError **error) {
  Infinigen *x = c->state;
  if (n <= x->room && x->pass_longest <= x->longest && x->pass_most <= x->most)
    return TRUE;
  gsize room = MAX(n <= x->room ? x->room : 2 * n, 1);
  guint longest = x->pass_longest <= x->longest ? x->longest : 2 * x->pass_longest;
  guint most = x->pass_most <= x->most ? x->most : 2 * x->pass_most;
  gsize D = c->weights->hidden, width = (gsize)x->heads * x->head_dim;
  const char *what = "what is read of the next layer";
  if (!kv_cuda_wait(c->device, error))
    return FALSE;
  free_room(x);
  const struct {
    void *pointer;
    gsize bytes;
  } parts[] = {
      {&x->inputs[0], room * D * sizeof(KvBf16)},
      {&x->inputs[1], room * D * sizeof(KvBf16)},
      {&x->queries, room * width * sizeof(KvBf16)},
      {&x->partial, room * width * sizeof(float)},
      {&x->chosen, room * x->kv_heads * most * sizeof(guint32)},
      {&x->lengths, room * c->cache->n_layers * sizeof(guint32)},
      {&x->scores, kv_cuda_speculate_scratch_bytes((guint)room, x->heads, x->kv_heads, longest)}};
  for (guint i = 0; i < G_N_ELEMENTS(parts); i++) {
    void *memory = kv_cuda_alloc(parts[i].bytes, what, error);
    if (!memory)
      return FALSE;
    memcpy(parts[i].pointer, &memory, sizeof memory);
  }
  x->room = (guint)room;
  x->longest = longest;
  x->most = most;
  return TRUE;
}

/* Pieces of what is fetched, where that is less than the contexts. */
static gboolean split_contexts(KvCudaCompressed *c, guint n, GError **error) {
  Infinigen *x = c->state;
  guint splits = kv_cuda_decode_max_splits(n, x->kv_heads, c->device->multiprocessors);
  guint32 piece = (x->pass_most + 1 + splits - 1) / splits;
  piece = (piece + KV_CUDA_SPLIT_UNIT - 1) / KV_CUDA_SPLIT_UNIT * KV_CUDA_SPLIT_UNIT;
  gsize bytes = kv_cuda_decode_scratch_bytes(n, x->heads, x->head_dim, splits);
  x->max_splits = splits;
  if (bytes > x->scratch_bytes) {
    if (!kv_cuda_format_grow(c, &x->scratch, 0, 2 * bytes, "attention to what was fetched", error))
      return FALSE;
    x->scratch_bytes = 2 * bytes;
  }
  return kv_cuda_upload(c->device, x->split, &piece, sizeof piece, error);
}

/* The blocks of every span under the engine's ids, which are their places in host memory. */
static gboolean upload_blocks(KvCudaCompressed *c, GError **error) {
  Infinigen *x = c->state;
  g_autoptr(GArray) words = g_array_new(FALSE, FALSE, sizeof(guint32));
  g_array_set_size(words, c->n_spans);
  for (guint s = 0; s < c->n_spans; s++) {
    g_array_index(words, guint32, s) = words->len - c->n_spans;
    g_array_append_vals(words, c->spans[s].block_table, kv_cuda_format_blocks(c, &c->spans[s]));
  }
  if (words->len > x->room_words) {
    if (!kv_cuda_format_grow(c, &x->words, 0, 2 * (gsize)words->len * sizeof(guint32),
                             "the blocks of a pass", error))
      return FALSE;
    x->room_words = 2 * (gsize)words->len;
  }
  return kv_cuda_upload(c->device, x->words, words->data, words->len * sizeof(guint32), error);
}

static gboolean begin_decoding(KvCudaCompressed *c, guint prompts, GError **error) {
  Infinigen *x = c->state;
  guint n = c->n_spans - prompts;
  g_autofree KvCudaSpeculated *sequences = g_new(KvCudaSpeculated, n + 1);
  x->decode = n;
  x->pass_longest = x->pass_most = 1;
  x->all_fit = TRUE;
  for (guint s = 0; s < n; s++) {
    const KvHostSpan *span = &c->spans[prompts + s];
    const Owner *owner = kv_cuda_format_find(c, span->owner);
    if (!owner || !owner->columns) {
      g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                  "cuda executor: request %" G_GUINT64_FORMAT " decodes, expected its prompt first",
                  span->owner);
      return FALSE;
    }
    guint32 most = kv_host_speculation_most(c->settings->most_share, span->past);
    sequences[s] = (KvCudaSpeculated){owner->columns, span->past, most};
    x->pass_longest = MAX(x->pass_longest, span->past);
    x->pass_most = MAX(x->pass_most, most);
    x->all_fit &= most == span->past;
  }
  if (n == 0)
    return TRUE;
  gsize bytes = KV_CUDA_FORMAT_ROWS * sizeof *sequences;
  if (!x->sequences && !(x->sequences = kv_cuda_alloc(bytes, "the sequences of a step", error)))
    return FALSE;
  return make_room(c, n, error) && (x->all_fit || split_contexts(c, n, error)) &&
         kv_cuda_upload(c->device, x->sequences, sequences, n * sizeof *sequences, error);
}

/* Room for the columns of prompts that this pass finishes. */
static gboolean begin_prompts(KvCudaCompressed *c, guint prompts, GError **error) {
  const Infinigen *x = c->state;
  gsize bytes = (gsize)c->cache->n_layers * x->widest * sizeof(guint32);
  for (guint s = 0; s < prompts; s++) {
    Owner *owner = kv_cuda_format_owner(c, c->spans[s].owner);
    if (c->spans[s].last && !owner->columns &&
        !(owner->columns = kv_cuda_alloc(bytes, "the columns of a sequence", error)))
      return FALSE;
  }
  return kv_cuda_window_begin(c, prompts, error);
}

static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  Infinigen *x = c->state;
  x->prompts = prompts;
  x->was_ready = x->ready;
  return kv_cuda_streamed_cache_begin(c, error) && upload_blocks(c, error) &&
         begin_prompts(c, prompts, error) && begin_decoding(c, prompts, error);
}

/* Of the decoding spans: where they stand in host memory, and in a staging area. */
static KvCudaTables home_tables(const KvCudaCompressed *c) {
  const Infinigen *x = c->state;
  return (KvCudaTables){x->words + c->n_spans, x->words + x->prompts};
}

static KvCudaTables area_tables(const KvCudaCompressed *c) {
  const Infinigen *x = c->state;
  return (KvCudaTables){kv_cuda_streamed_cache_places(c), x->words + x->prompts};
}

static guint32 *lengths_of(const Infinigen *x, guint layer) {
  return layer > 0 ? x->lengths + (gsize)layer * x->room : NULL;
}

/* --- speculation ----------------------------------------------------------------------------- */

/* Bring a layer's tokens, once its area was left; then it is there. */
static gboolean gather(KvCudaCompressed *c, guint l, GError **error) {
  const Infinigen *x = c->state;
  const KvCudaPages area = kv_cuda_streamed_cache_area(c, l),
                    home = kv_cuda_streamed_cache_home(c, l);
  const KvCudaTables to = area_tables(c), from = home_tables(c);
  return KV_CUDA_OK(kv_cuda_gather_chosen(&area, &to, &home, &from, x->sequences, lengths_of(x, l),
                                          x->chosen, x->decode, l > 0 ? x->most : x->pass_longest,
                                          KV_CUDA_COPY_GROUPS, x->stream),
                    error) &&
         kv_cuda_streamed_cache_record(x->stream, x->there[l % 2], error);
}

/* The stream of the speculation goes on where the kernels' has got to. */
static gboolean follow(KvCudaCompressed *c, GError **error) {
  const Infinigen *x = c->state;
  return kv_cuda_streamed_cache_record(c->device->stream, x->input, error) &&
         kv_cuda_streamed_cache_await(x->stream, x->input, error);
}

/* Blocks are staged for prompts alone. */
static gboolean enter(KvCudaCompressed *c, guint l, GError **error) {
  const Infinigen *x = c->state;
  if (l == 0 && x->decode > 0 && (!follow(c, error) || !gather(c, 0, error)))
    return FALSE;
  if (l == 0 && x->decode > 0 && !c->settings->overlap &&
      !kv_cuda_streamed_cache_await(c->device->stream, x->there[0], error))
    return FALSE;
  return x->prompts == 0 || kv_cuda_streamed_cache_enter(c, l, error);
}

static gboolean leave(KvCudaCompressed *c, guint l, GError **error) {
  return ((const Infinigen *)c->state)->prompts == 0 || kv_cuda_streamed_cache_leave(c, l, error);
}

/* What the next layer fetches, with its query weights: those of a row are turned by its position
 * and cut to its own columns after. */
static gboolean speculate(KvCudaCompressed *c, guint next, const KvBf16 *input,
                          const KvCudaInput *in, GError **error) {
  Infinigen *x = c->state;
  const KvCudaLayer *layer = &c->weights->layers[next];
  const KvCudaSkew *skew = &x->skews[next];
  const KvCudaTables home = home_tables(c);
  KvCudaPages nowhere = c->cache->layers[next];
  guint n = x->decode, heads = layer->attention.n_heads;
  const KvCudaProduct product = {.out = x->queries,
                                 .x = input,
                                 .weight = layer->qkv,
                                 .bias = layer->qkv_bias,
                                 .rows = n,
                                 .inputs = c->weights->hidden,
                                 .outputs = heads * skew->head_dim};
  nowhere.pool = NULL;
  nowhere.n_kv_heads = 0; /* queries alone */
  return kv_cuda_gemm_run(x->gemm, &product, x->stream, error) &&
         KV_CUDA_OK(kv_cuda_rotate_and_store(x->queries, &nowhere, &home, in->row_sequences,
                                             in->positions, in->angles, layer->query_norm, NULL,
                                             c->weights->epsilon, n, heads, x->stream),
                    error) &&
         KV_CUDA_OK(kv_cuda_partial_queries(x->partial, skew, x->sequences, x->queries, n, heads,
                                            x->stream),
                    error) &&
         KV_CUDA_OK(kv_cuda_speculate(lengths_of(x, next), x->chosen, skew, x->sequences,
                                      x->partial, &home, n, heads, x->pass_longest, x->most,
                                      c->settings->alpha, x->scores, x->stream),
                    error);
}

/* The input is copied, because the layer goes on to write over it. */
static gboolean look_ahead(KvCudaCompressed *c, guint l, const KvCudaInput *in, GError **error) {
  Infinigen *x = c->state;
  KvBf16 *input = x->inputs[l % 2];
  if (x->decode == 0)
    return TRUE;
  return KV_CUDA_OK(cudaMemcpyAsync(input, in->normed,
                                    (gsize)x->decode * c->weights->hidden * sizeof(KvBf16),
                                    cudaMemcpyDeviceToDevice, c->device->stream),
                    error) &&
         follow(c, error) && speculate(c, l + 1, input, in, error) && gather(c, l + 1, error);
}

static gboolean await_fetched(KvCudaCompressed *c, guint l, GError **error) {
  const Infinigen *x = c->state;
  return x->decode == 0 || kv_cuda_streamed_cache_await(c->device->stream, x->there[l % 2], error);
}

/* --- in a pass ------------------------------------------------------------------------------- */

/* Columns of a prompt's layer, and its partial keys, from where its n tokens stand. */
static cudaError_t skew_prompt(KvCudaCompressed *c, guint layer, const KvHostSpan *span,
                               guint index, const KvCudaPages *pages, const guint32 *table) {
  const Infinigen *x = c->state;
  const Owner *owner = kv_cuda_format_find(c, span->owner);
  const KvCudaSkew *skew = &x->skews[layer];
  guint32 *columns = owner->columns + skew->first_column, first = 0;
  for (guint s = 0; s < index; s++)
    first += kv_cuda_format_blocks(c, &c->spans[s]);
  cudaError_t status = kv_cuda_choose_columns(
      columns, skew, owner->window.queries[layer], MIN(c->settings->window, span->prompt_tokens),
      c->weights->layers[layer].attention.n_heads, x->choice, c->device->stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_partial_keys(skew, columns, x->words + c->n_spans + first, pages,
                                    table + first, span->past + span->n_tokens, c->device->stream);
}

static cudaError_t store_prompts(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Infinigen *x = c->state;
  const KvCudaRows led = kv_cuda_streamed_cache_led(c, r);
  const KvCudaPages area = kv_cuda_streamed_cache_area(c, layer);
  cudaError_t status =
      kv_cuda_store(led.qkv, &c->cache->layers[layer], &led.tables, led.row_sequences, led.slots,
                    led.prefill_rows, led.n_heads, c->device->stream);
  if (status != cudaSuccess || layer == 0)
    return status;
  status = kv_cuda_window_keep(c, layer, r);
  for (guint s = 0; s < x->prompts && x->was_ready && status == cudaSuccess; s++)
    if (c->spans[s].last)
      status = skew_prompt(c, layer, &c->spans[s], s, &area, kv_cuda_streamed_cache_places(c));
  return status;
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Infinigen *x = c->state;
  const KvCudaPages area = kv_cuda_streamed_cache_area(c, layer);
  const KvCudaPages home = kv_cuda_streamed_cache_home(c, layer);
  const KvCudaTables to = area_tables(c), from = home_tables(c);
  cudaError_t status = x->prompts > 0 ? store_prompts(c, layer, r) : cudaSuccess;
  return status != cudaSuccess
             ? status
             : kv_cuda_store_newest(kv_cuda_format_decode_queries(r), &area, &to, &home, &from,
                                    layer > 0 ? &x->skews[layer] : NULL, x->sequences,
                                    lengths_of(x, layer), r->decode, r->n_heads, c->device->stream);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const KvCudaRows led = kv_cuda_streamed_cache_led(c, r);
  return kv_cuda_format_prefill_exact(c, layer, &led);
}

/* Where everything may be fetched, in the pieces of the whole cache: sums in the same order. */
static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Infinigen *x = c->state;
  const KvCudaPages area = kv_cuda_streamed_cache_area(c, layer);
  const KvCudaTables tables = area_tables(c);
  gboolean whole = layer == 0 || x->all_fit;
  return kv_cuda_decode_attention(
      kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r), r->stride, &area, &tables,
      layer == 0 ? r->contexts : lengths_of(x, layer), r->decode, r->n_heads, 0,
      whole ? r->split_tokens : x->split, whole ? r->max_splits : x->max_splits, r->counters,
      whole ? r->scratch : x->scratch, c->device->stream);
}

/* --- after a pass ---------------------------------------------------------------------------- */

static float float_of(KvBf16 x) {
  guint32 bits = (guint32)x << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* A layer's keys of a prompt of n tokens, [n][Hkv][d], from host memory. */
static float *keys_of(const KvCudaCompressed *c, const KvHostSpan *span, guint layer, gsize n) {
  const KvCudaPages home = kv_cuda_streamed_cache_home(c, layer);
  gsize d = home.head_dim, kv = home.n_kv_heads, tokens = c->cache->block_tokens;
  float *keys = g_new(float, n *kv *d);
  for (gsize t = 0; t < n; t++)
    for (gsize h = 0; h < kv; h++) {
      const KvBf16 *key = home.pool + span->block_table[t / tokens] * home.block_elements +
                          (h * tokens + t % tokens) * d;
      for (gsize i = 0; i < d; i++)
        keys[(t * kv + h) * d + i] = float_of(key[i]);
    }
  return keys;
}

static float *window_of(KvCudaCompressed *c, const Owner *owner, guint layer, guint n,
                        GError **error) {
  const KvAttention *a = &c->weights->layers[layer].attention;
  gsize elements = (gsize)n * a->n_heads * a->head_dim;
  g_autofree KvBf16 *halves = g_new(KvBf16, elements);
  if (!kv_cuda_download(c->device, halves, owner->window.queries[layer], elements * sizeof *halves,
                        error))
    return NULL;
  float *queries = g_new(float, elements);
  for (gsize i = 0; i < elements; i++)
    queries[i] = float_of(halves[i]);
  return queries;
}

/* The first prompt that is finished is the sample. */
static gboolean calibrate(KvCudaCompressed *c, const KvHostSpan *span, GError **error) {
  Infinigen *x = c->state;
  const Owner *owner = kv_cuda_format_find(c, span->owner);
  gsize floats = (gsize)x->kv_heads * x->head_dim * x->head_dim;
  g_autofree float *directions = g_new(float, floats);
  for (guint l = 1; l < c->cache->n_layers; l++) {
    KvHostSample sample = {.n_queries = MIN(c->settings->window, span->prompt_tokens),
                           .n_keys = span->past + span->n_tokens,
                           .n_heads = c->weights->layers[l].attention.n_heads,
                           .n_kv_heads = x->kv_heads,
                           .head_dim = x->head_dim};
    g_autofree float *queries = window_of(c, owner, l, sample.n_queries, error);
    g_autofree float *keys = keys_of(c, span, l, sample.n_keys);
    if (!queries)
      return FALSE;
    sample.queries = queries;
    sample.keys = keys;
    kv_host_speculation_calibrate(directions, &sample);
    if (!kv_cuda_upload(c->device, x->directions + l * floats, directions,
                        floats * sizeof *directions, error))
      return FALSE;
  }
  x->ready = TRUE;
  return TRUE;
}

/* The prompts of the pass that makes the sample get their columns and partial keys here. The time
 * is not the step's: calibration comes before all serving. */
static gboolean finish(KvCudaCompressed *c, const KvHostSpan *span, guint index, double *seconds,
                       GError **error) {
  Infinigen *x = c->state;
  if (!x->ready && !calibrate(c, span, error))
    return FALSE;
  for (guint l = 1; !x->was_ready && l < c->cache->n_layers; l++) {
    const KvCudaPages home = kv_cuda_streamed_cache_home(c, l);
    if (!KV_CUDA_OK(skew_prompt(c, l, span, index, &home, x->words + c->n_spans), error))
      return FALSE;
  }
  if (!x->was_ready && !kv_cuda_wait(c->device, error))
    return FALSE;
  kv_cuda_window_forget(c, kv_cuda_format_owner(c, span->owner));
  return TRUE;
}

static gboolean unread(KvCudaCompressed *c, double *tokens, GError **error) {
  const Infinigen *x = c->state;
  gsize n = (gsize)c->cache->n_layers * x->room;
  if (x->decode == 0)
    return TRUE;
  g_autofree guint32 *lengths = g_new(guint32, n);
  if (!kv_cuda_download(c->device, lengths, x->lengths, n * sizeof *lengths, error))
    return FALSE;
  for (guint l = 1; l < c->cache->n_layers; l++)
    for (guint s = 0; s < x->decode; s++)
      tokens[l] += (double)c->spans[x->prompts + s].past + 1.0 - lengths[(gsize)l * x->room + s];
  return TRUE;
}

const KvCudaFormat kv_cuda_format_infinigen = {.owner_bytes = sizeof(Owner),
                                               .make = make,
                                               .release = release,
                                               .begin = begin,
                                               .enter = enter,
                                               .leave = leave,
                                               .look_ahead = look_ahead,
                                               .await = await_fetched,
                                               .unread = unread,
                                               .store = store,
                                               .prefill = prefill,
                                               .decode = decode,
                                               .finish = finish,
                                               .forget = forget};
