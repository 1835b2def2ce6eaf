/* palu: latents in the engine's blocks; the factors of each layer beside the model's own weights,
 * which prompts' output projections still take. Decoding rebuilds keys where it reads them; a
 * prompt's chunk reads its whole context, rebuilt into bf16 blocks of a workspace, a layer at a
 * time. A layer whose ranks are its width is left as it is. */
#include <string.h>

#include "reference/cuda/format.h"
#include "reference/cuda/low_rank.h"
#include "reference/host/checkpoint.h"
#include "reference/host/low_rank.h"
#include "sim/base/error.h"

/* STAGE_ELEMENTS: go through the host at a time; TOGETHER: layers whose factors are found side by
 * side, so that all processors have one to find. */
enum { STAGE_ELEMENTS = 8 << 20, TOGETHER = 4 };

typedef struct {
  gboolean thin; /* FALSE: the layer is left as it is */
  KvCudaLowRank cache;
  KvCudaProjections own;
} Layer;

typedef struct {
  Layer *layers;
  guint n_layers;
  GPtrArray *memory; /* of the factors, device */
  KvBf16 *stage;     /* [STAGE_ELEMENTS], while factors are made */
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
  KvBf16 *stage = ((Palu *)c->state)->stage;
  for (gsize first = 0; first < n; first += STAGE_ELEMENTS) {
    gsize part = MIN(STAGE_ELEMENTS, n - first);
    kv_bf16_from_floats(stage, from + first, part);
    if (!kv_cuda_upload(c->device, to + first, stage, part * sizeof *stage, error))
      return FALSE;
  }
  return TRUE;
}

/* n elements as floats, in *to, whose memory is made to fit. */
static gboolean download(KvCudaCompressed *c, float **to, const KvBf16 *from, gsize n,
                         GError **error) {
  KvBf16 *stage = ((Palu *)c->state)->stage;
  *to = g_renew(float, *to, n);
  for (gsize first = 0; first < n; first += STAGE_ELEMENTS) {
    gsize part = MIN(STAGE_ELEMENTS, n - first);
    if (!kv_cuda_download(c->device, stage, from + first, part * sizeof *stage, error))
      return FALSE;
    for (gsize i = 0; i < part; i++) {
      guint32 bits = (guint32)stage[i] << 16;
      memcpy(*to + first + i, &bits, sizeof bits);
    }
  }
  return TRUE;
}

/* The model's matrices of one layer on the host. */
typedef struct {
  guint layer;
  float *key, *value, *output, *value_bias, *output_bias;
} Loaded;

/* Layers on their way; their matrices' memory serves the next ones too. */
typedef struct {
  guint n;
  Loaded layers[TOGETHER];
  KvHostRanks ranks[TOGETHER];
  KvHostFactors factors[TOGETHER];
} Batch;

static void batch_clear(Batch *b) {
  for (guint i = 0; i < TOGETHER; i++) {
    Loaded *x = &b->layers[i];
    float *const arrays[] = {x->key, x->value, x->output, x->value_bias, x->output_bias};
    for (guint a = 0; a < G_N_ELEMENTS(arrays); a++)
      g_free(arrays[a]);
    kv_host_factors_clear(&b->factors[i]);
  }
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Batch, batch_clear)

static gboolean load(KvCudaCompressed *c, Loaded *x, guint l, GError **error) {
  const KvCudaLayer *layer = &c->weights->layers[l];
  const KvAttention *a = &layer->attention;
  gsize D = c->weights->hidden, q = (gsize)a->n_heads * a->head_dim;
  gsize kv = (gsize)a->n_kv_heads * a->head_dim;
  x->layer = l;
  return download(c, &x->key, layer->qkv + q * D, kv * D, error) &&
         download(c, &x->value, layer->qkv + (q + kv) * D, kv * D, error) &&
         download(c, &x->output, layer->output, q * D, error) &&
         (!layer->qkv_bias || download(c, &x->value_bias, layer->qkv_bias + q + kv, kv, error)) &&
         (!layer->output_bias || download(c, &x->output_bias, layer->output_bias, D, error));
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

/* What a layer's cache is; FALSE with *error set if it cannot be. */
static gboolean describe(KvCudaCompressed *c, guint l, const KvHostRanks *r, GError **error) {
  Layer *to = &((Palu *)c->state)->layers[l];
  const KvCudaLayer *layer = &c->weights->layers[l];
  const KvAttention *a = &layer->attention;
  const KvCudaPages *pages = &c->cache->layers[l];
  gsize q = (gsize)a->n_heads * a->head_dim, kv = (gsize)a->n_kv_heads * a->head_dim;
  to->cache = (KvCudaLowRank){.pool = pages->pool,
                              .block_elements = pages->block_elements,
                              .value_offset = pages->value_offset,
                              .block_shift = pages->block_shift,
                              .groups = r->groups,
                              .heads = r->heads,
                              .head_dim = r->head_dim,
                              .key_rank = r->key_rank,
                              .value_rank = r->value_rank,
                              .key_bias = layer->qkv_bias ? layer->qkv_bias + q : NULL,
                              .value_bias = layer->qkv_bias ? layer->qkv_bias + q + kv : NULL};
  return check_ranks(&to->cache, error);
}

static gboolean upload_factors(KvCudaCompressed *c, guint l, const KvHostFactors *f,
                               GError **error) {
  Layer *to = &((Palu *)c->state)->layers[l];
  const KvCudaLayer *layer = &c->weights->layers[l];
  const KvHostRanks *r = &f->ranks;
  return (to->cache.key_basis = upload_basis(c, r, f->key_basis, r->key_rank, error)) &&
         (to->cache.value_basis = upload_basis(c, r, f->value_basis, r->value_rank, error)) &&
         upload_inputs(c, layer, f, &to->own, error) &&
         upload_output(c, f, layer->attention.n_heads, &to->own, error);
}

static gboolean factor(KvCudaCompressed *c, Batch *b, GError **error) {
  KvHostProjections from[TOGETHER];
  for (guint i = 0; i < b->n; i++) {
    const Loaded *x = &b->layers[i];
    const KvCudaLayer *layer = &c->weights->layers[x->layer];
    from[i] = (KvHostProjections){.inputs = c->weights->hidden,
                                  .n_heads = layer->attention.n_heads,
                                  .key = x->key,
                                  .value = x->value,
                                  .output = x->output,
                                  .value_bias = layer->qkv_bias ? x->value_bias : NULL,
                                  .output_bias = layer->output_bias ? x->output_bias : NULL};
  }
  kv_host_factors_init(b->factors, b->ranks, from, b->n);
  for (guint i = 0; i < b->n; i++) {
    if (!upload_factors(c, b->layers[i].layer, &b->factors[i], error))
      return FALSE;
    kv_host_factors_clear(&b->factors[i]);
  }
  b->n = 0;
  return TRUE;
}

static gboolean make_layers(KvCudaCompressed *c, GError **error) {
  Palu *p = c->state;
  g_auto(Batch) b = {0};
  for (guint l = 0; l < p->n_layers; l++) {
    KvHostRanks *ranks = &b.ranks[b.n];
    p->layers[l].thin = kv_host_low_rank_ranks(ranks, &c->settings->palu,
                                               &c->weights->layers[l].attention, l, p->n_layers);
    if (!p->layers[l].thin)
      continue;
    if (!describe(c, l, ranks, error) || !load(c, &b.layers[b.n++], l, error) ||
        (b.n == TOGETHER && !factor(c, &b, error)))
      return FALSE;
  }
  return factor(c, &b, error);
}

static gboolean make(KvCudaCompressed *c, GError **error) {
  Palu *p = c->state = g_new0(Palu, 1);
  p->n_layers = c->weights->n_layers;
  p->layers = g_new0(Layer, p->n_layers);
  p->memory = g_ptr_array_new_with_free_func(kv_cuda_free);
  p->stage = g_new(KvBf16, STAGE_ELEMENTS);
  kv_cuda_workspace_init(&p->workspace, c, TRUE);
  gboolean made = make_layers(c, error) && kv_cuda_wait(c->device, error);
  g_clear_pointer(&p->stage, g_free);
  return made;
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
