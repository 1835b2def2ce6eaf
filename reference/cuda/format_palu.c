/* palu: latents in the engine's blocks; the factors of each layer beside the model's own weights,
 * which prompts' output projections still take. Decoding rebuilds keys where it reads them; a
 * prompt's chunk reads its whole context, rebuilt into bf16 blocks of a workspace, a layer at a
 * time. A layer whose ranks are its width is left as it is. */
#include <string.h>

#include "reference/cuda/format.h"
#include "reference/cuda/low_rank.h"
#include "reference/host/low_rank.h"
#include "reference/host/tensors.h"
#include "sim/base/error.h"

typedef struct {
  gboolean thin; /* FALSE: the layer is left as it is */
  KvCudaLowRank cache;
  KvCudaProjections own;
} Layer;

typedef struct {
  Layer *layers;
  guint n_layers;
  GPtrArray *memory; /* of the factors, device */
  KvCudaWorkspace workspace;
  guint n_rebuilt; /* blocks, in the pass under way */
} Palu;

/* --- factors --------------------------------------------------------------------------------- */

static KvBf16 *keep(KvCudaCompressed *c, gsize elements, GError **error) {
  KvBf16 *memory = kv_cuda_alloc(elements * sizeof(KvBf16), "low-rank factors", error);
  if (memory)
    g_ptr_array_add(((Palu *)c->state)->memory, memory);
  return memory;
}

static gboolean upload(KvCudaCompressed *c, KvBf16 *to, const float *from, gsize n,
                       GError **error) {
  g_autofree KvBf16 *halves = g_new(KvBf16, n);
  for (gsize i = 0; i < n; i++)
    halves[i] = kv_bf16_from_float(from[i]);
  return kv_cuda_upload(c->device, to, halves, n * sizeof *halves, error);
}

/* n elements as floats; NULL with *error set. */
static float *download(KvCudaCompressed *c, const KvBf16 *from, gsize n, GError **error) {
  g_autofree KvBf16 *halves = g_new(KvBf16, n);
  if (!kv_cuda_download(c->device, halves, from, n * sizeof *halves, error))
    return NULL;
  float *x = g_new(float, n);
  for (gsize i = 0; i < n; i++) {
    guint32 bits = (guint32)halves[i] << 16;
    memcpy(&x[i], &bits, sizeof bits);
  }
  return x;
}

/* The model's matrices of one layer on the host, and their factors; all NULL of a layer that is
 * left as it is. */
typedef struct {
  float *key, *value, *output, *value_bias, *output_bias;
  KvHostRanks ranks;
  KvHostProjections from;
  KvHostFactors factors;
} Loaded;

static void loaded_clear(Loaded *x) {
  float *const arrays[] = {x->key, x->value, x->output, x->value_bias, x->output_bias};
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_free(arrays[i]);
  kv_host_factors_clear(&x->factors);
}

static gboolean load_matrices(KvCudaCompressed *c, Loaded *x, const KvCudaLayer *layer,
                              GError **error) {
  const KvAttention *a = &layer->attention;
  gsize D = c->weights->hidden, q = (gsize)a->n_heads * a->head_dim;
  gsize kv = (gsize)a->n_kv_heads * a->head_dim;
  if (!(x->key = download(c, layer->qkv + q * D, kv * D, error)) ||
      !(x->value = download(c, layer->qkv + (q + kv) * D, kv * D, error)) ||
      !(x->output = download(c, layer->output, q * D, error)) ||
      (layer->qkv_bias && !(x->value_bias = download(c, layer->qkv_bias + q + kv, kv, error))) ||
      (layer->output_bias && !(x->output_bias = download(c, layer->output_bias, D, error))))
    return FALSE;
  x->from = (KvHostProjections){.inputs = c->weights->hidden,
                                .n_heads = a->n_heads,
                                .key = x->key,
                                .value = x->value,
                                .output = x->output,
                                .value_bias = x->value_bias,
                                .output_bias = x->output_bias};
  return TRUE;
}

static void factor(gpointer data, gpointer user) {
  Loaded *x = data;
  kv_host_factors_init(&x->factors, &x->ranks, &x->from);
}

/* basis[groups][rank][heads d], in the order of the tensor cores. */
static const KvBf16 *upload_basis(KvCudaCompressed *c, const KvHostRanks *r, const float *basis,
                                  guint rank, GError **error) {
  gsize width = (gsize)r->heads * r->head_dim, n = (gsize)r->groups * rank * width;
  g_autofree float *arranged = g_new(float, n);
  for (guint g = 0; g < r->groups; g++)
    for (guint i = 0; i < rank; i++)
      for (guint o = 0; o < width; o++, basis++)
        arranged[kv_cuda_low_rank_arrange(r->head_dim, rank, g * r->heads + o / r->head_dim, i,
                                          o % r->head_dim)] = *basis;
  KvBf16 *to = keep(c, n, error);
  return to && upload(c, to, arranged, n, error) ? to : NULL;
}

/* The queries' matrix and bias as they are, then the factors that give latents, without a bias. */
static gboolean upload_inputs(KvCudaCompressed *c, const KvCudaLayer *layer, const KvHostFactors *f,
                              KvCudaProjections *own, GError **error) {
  gsize D = c->weights->hidden, q = (gsize)layer->attention.n_heads * layer->attention.head_dim;
  gsize keys = (gsize)f->ranks.groups * f->ranks.key_rank;
  gsize values = (gsize)f->ranks.groups * f->ranks.value_rank;
  KvBf16 *qkv = keep(c, (q + keys + values) * D, error), *bias = NULL;
  if (!qkv || !kv_cuda_copy(c->device, qkv, layer->qkv, q * D * sizeof(KvBf16), error) ||
      !upload(c, qkv + q * D, f->key_down, keys * D, error) ||
      !upload(c, qkv + (q + keys) * D, f->value_down, values * D, error))
    return FALSE;
  if (layer->qkv_bias &&
      (!(bias = keep(c, q + keys + values, error)) ||
       !kv_cuda_fill(c->device, bias, 0, (q + keys + values) * sizeof(KvBf16), error) ||
       !kv_cuda_copy(c->device, bias, layer->qkv_bias, q * sizeof(KvBf16), error)))
    return FALSE;
  own->qkv = qkv;
  own->qkv_bias = bias;
  own->width = (guint)(q + keys + values);
  return TRUE;
}

static gboolean upload_output(KvCudaCompressed *c, const KvHostFactors *f, guint n_heads,
                              KvCudaProjections *own, GError **error) {
  gsize D = c->weights->hidden, width = (gsize)n_heads * f->ranks.value_rank;
  KvBf16 *output = keep(c, D * width, error), *bias = NULL;
  if (!output || !upload(c, output, f->output, D * width, error) ||
      (f->output_bias &&
       (!(bias = keep(c, D, error)) || !upload(c, bias, f->output_bias, D, error))))
    return FALSE;
  own->output = output;
  own->output_bias = bias;
  own->attended = (guint)width;
  return TRUE;
}

static gboolean check_ranks(const KvCudaLowRank *r, GError **error) {
  gboolean fits = r->key_rank % 16 == 0 && r->value_rank % 16 == 0 &&
                  r->key_rank <= KV_CUDA_LOW_RANK_MAX && r->value_rank <= KV_CUDA_LOW_RANK_MAX &&
                  kv_cuda_low_rank_shared_bytes(r) <= KV_CUDA_LOW_RANK_SHARED - 1024;
  if (!fits)
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "palu: ranks of %u and %u for a group of %u KV heads, the cuda executor expects "
                "multiples of 16, up to %d and not so large together (a smaller group_size)",
                r->key_rank, r->value_rank, r->heads, KV_CUDA_LOW_RANK_MAX);
  return fits;
}

static gboolean load_layer(KvCudaCompressed *c, guint l, Loaded *x, GError **error) {
  Layer *to = &((Palu *)c->state)->layers[l];
  const KvCudaLayer *layer = &c->weights->layers[l];
  const KvAttention *a = &layer->attention;
  const KvCudaPages *pages = &c->cache->layers[l];
  gsize q = (gsize)a->n_heads * a->head_dim, kv = (gsize)a->n_kv_heads * a->head_dim;
  to->thin = kv_host_low_rank_ranks(&x->ranks, &c->settings->palu, a, l, c->weights->n_layers);
  if (!to->thin)
    return TRUE;
  const KvHostRanks r = x->ranks;
  to->cache = (KvCudaLowRank){.pool = pages->pool,
                              .block_elements = pages->block_elements,
                              .value_offset = pages->value_offset,
                              .block_shift = pages->block_shift,
                              .groups = r.groups,
                              .heads = r.heads,
                              .head_dim = r.head_dim,
                              .key_rank = r.key_rank,
                              .value_rank = r.value_rank,
                              .key_bias = layer->qkv_bias ? layer->qkv_bias + q : NULL,
                              .value_bias = layer->qkv_bias ? layer->qkv_bias + q + kv : NULL};
  return check_ranks(&to->cache, error) && load_matrices(c, x, layer, error);
}

static gboolean upload_layer(KvCudaCompressed *c, guint l, const Loaded *x, GError **error) {
  Layer *to = &((Palu *)c->state)->layers[l];
  const KvCudaLayer *layer = &c->weights->layers[l];
  const KvHostFactors *f = &x->factors;
  return !to->thin || ((to->cache.key_basis =
                            upload_basis(c, &x->ranks, f->key_basis, x->ranks.key_rank, error)) &&
                       (to->cache.value_basis = upload_basis(c, &x->ranks, f->value_basis,
                                                             x->ranks.value_rank, error)) &&
                       upload_inputs(c, layer, f, &to->own, error) &&
                       upload_output(c, f, layer->attention.n_heads, &to->own, error));
}

/* A layer has few groups: several are factored side by side, to keep all processors busy. */
enum { TOGETHER = 8 };

static gboolean make_layers(KvCudaCompressed *c, guint first, guint n, Loaded *x, GError **error) {
  const Layer *layers = ((Palu *)c->state)->layers;
  for (guint i = 0; i < n; i++)
    if (!load_layer(c, first + i, &x[i], error))
      return FALSE;
  GThreadPool *pool = g_thread_pool_new(factor, NULL, (gint)n, FALSE, NULL);
  for (guint i = 0; i < n; i++)
    if (layers[first + i].thin)
      g_thread_pool_push(pool, &x[i], NULL);
  g_thread_pool_free(pool, FALSE, TRUE);
  for (guint i = 0; i < n; i++)
    if (!upload_layer(c, first + i, &x[i], error))
      return FALSE;
  return TRUE;
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  Palu *p = c->state = g_new0(Palu, 1);
  p->n_layers = c->weights->n_layers;
  p->layers = g_new0(Layer, p->n_layers);
  p->memory = g_ptr_array_new_with_free_func(kv_cuda_free);
  kv_cuda_workspace_init(&p->workspace, c, TRUE);
  gboolean made = TRUE;
  for (guint l = 0; l < p->n_layers && made; l += TOGETHER) {
    Loaded loaded[TOGETHER] = {0};
    made = make_layers(c, l, MIN(TOGETHER, p->n_layers - l), loaded, error);
    for (guint i = 0; i < TOGETHER; i++)
      loaded_clear(&loaded[i]);
  }
  return made && kv_cuda_wait(c->device, error);
}

static void release(KvCudaCompressed *c) {
  Palu *p = c->state;
  kv_cuda_workspace_clear(&p->workspace, p->n_layers);
  g_ptr_array_unref(p->memory);
  g_free(p->layers);
  g_free(p);
}

static const KvCudaProjections *projections(const KvCudaCompressed *c, guint layer) {
  const Layer *l = &((const Palu *)c->state)->layers[layer];
  return l->thin ? &l->own : NULL;
}

static guint parts(const KvCudaCompressed *c) {
  const Layer *l = &((const Palu *)c->state)->layers[0];
  const KvAttention *a = &c->weights->layers[0].attention;
  return l->thin ? kv_cuda_low_rank_parts(&l->cache, a->n_heads) : a->n_kv_heads;
}

/* --- a pass ---------------------------------------------------------------------------------- */

/* The positions of the rebuilt blocks' first tokens follow the blocks that they are made from. */
static gboolean begin(KvCudaCompressed *c, guint prompts, gboolean *moved, GError **error) {
  Palu *p = c->state;
  if (!kv_cuda_workspace_widen(&p->workspace, c, prompts, &p->n_rebuilt, error))
    return FALSE;
  for (guint s = 0; s < prompts; s++)
    for (guint i = 0; i < kv_cuda_format_blocks(c, &c->spans[s]); i++) {
      guint32 position = i * c->cache->block_tokens;
      g_array_append_val(p->workspace.words, position);
    }
  return kv_cuda_workspace_upload(&p->workspace, c, error);
}

static cudaError_t store(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Layer *l = &((const Palu *)c->state)->layers[layer];
  return l->thin ? kv_cuda_low_rank_store(r->qkv, &l->cache, &r->tables, r->row_sequences, r->slots,
                                          r->positions, r->angles, r->rows, r->n_heads,
                                          c->device->stream)
                 : kv_cuda_format_store_exact(c, layer, r);
}

static cudaError_t prefill(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Palu *p = c->state;
  const Layer *l = &p->layers[layer];
  if (!l->thin)
    return kv_cuda_prefill_attention(r->attended, r->qkv, r->stride, &c->cache->layers[layer],
                                     &r->tables, r->tiles, r->n_tiles, r->n_heads, r->window,
                                     c->device->stream);
  const guint32 *from = kv_cuda_workspace_sources(&p->workspace, p->n_rebuilt);
  cudaError_t status =
      kv_cuda_low_rank_rebuild(&p->workspace.layers[layer], &l->cache, from, from + p->n_rebuilt,
                               r->angles, p->n_rebuilt, c->device->stream);
  return status != cudaSuccess ? status : kv_cuda_workspace_prefill(&p->workspace, c, layer, r);
}

static cudaError_t decode(KvCudaCompressed *c, guint layer, const KvCudaRows *r) {
  const Layer *l = &((const Palu *)c->state)->layers[layer];
  if (!l->thin)
    return kv_cuda_format_decode_exact(c, layer, r);
  KvCudaTables tables = kv_cuda_format_decode_tables(r);
  return kv_cuda_decode_attention_low_rank(
      kv_cuda_format_decode_out(r), kv_cuda_format_decode_queries(r), r->stride, &l->cache, &tables,
      r->contexts, r->angles, r->decode, r->n_heads, r->split_tokens, r->max_splits, r->counters,
      r->scratch, c->device->stream);
}

const KvCudaFormat kv_cuda_format_palu = {.make = make,
                                          .release = release,
                                          .projections = projections,
                                          .parts = parts,
                                          .begin = begin,
                                          .store = store,
                                          .prefill = prefill,
                                          .decode = decode};
