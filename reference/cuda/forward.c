#include "reference/cuda/forward.h"

#include <math.h>
#include <string.h>

#include "reference/cuda/count.h"
#include "reference/cuda/latent.h"
#include "reference/cuda/mixture.h"
#include "reference/cuda/sharing.h"

/* What a captured launch depends on, and every offset into its inputs. Prefilling sequences come
 * before decoding ones, in rows as in tables. */
typedef struct {
  guint rows, prefill_rows; /* R; of them, of prompts */
  guint prefill, decode;    /* sequences */
  guint tiles;              /* of prefill attention */
  guint samples;            /* rows whose logits are wanted */
  guint max_splits;         /* of decode attention */
  guint shared_tiles;       /* room for tiles of tokens that sequences share; 0: they share none */
  guint shared_parts;       /* not of the launch: what there must be room for */
  guint states;             /* of recurrent layers: sequences, or 0 */
} Shape;

/* The step's numbers, uploaded as one piece: on the host where they are written, on the GPU where
 * they are read. */
typedef struct {
  guint32 *tokens, *positions, *row_sequences; /* [R] */
  guint32
      *slots; /* [R]: where keys and values go; of recurrent layers: the row's place in its span */
  guint32 *table_starts; /* [prefill + decode] */
  guint32 *contexts;     /* [decode] */
  guint32 *split_tokens; /* [1] */
  guint32 *sample_rows;  /* [samples] */
  guint32 *from, *to;    /* [states]: continued, and left (KvCudaStates) */
  KvCudaTile *tiles;     /* [tiles]; of recurrent layers a span each */
  /* Where sequences share tokens: [decode], [decode + 1], [decode], [1], [shared_tiles]. */
  guint32 *first_tokens, *part_starts, *members, *n_shared;
  KvCudaSharedTile *shared;
  guint32 *table; /* every sequence's block ids */
} Inputs;

static Inputs inputs_at(guint32 *words, const Shape *s) {
  Inputs in = {0};
  in.tokens = words;
  in.positions = in.tokens + s->rows;
  in.row_sequences = in.positions + s->rows;
  in.slots = in.row_sequences + s->rows;
  in.table_starts = in.slots + s->rows;
  in.contexts = in.table_starts + s->prefill + s->decode;
  in.split_tokens = in.contexts + s->decode;
  in.sample_rows = in.split_tokens + 1;
  in.from = in.sample_rows + s->samples;
  in.to = in.from + s->states;
  in.tiles = (KvCudaTile *)(in.to + s->states);
  in.table = (guint32 *)(in.tiles + s->tiles);
  if (s->shared_tiles) {
    in.first_tokens = in.table;
    in.part_starts = in.first_tokens + s->decode;
    in.members = in.part_starts + s->decode + 1;
    in.n_shared = in.members + s->decode;
    in.shared = (KvCudaSharedTile *)(in.n_shared + 1);
    in.table = (guint32 *)(in.shared + s->shared_tiles);
  }
  return in;
}

/* Cosines and sines for heads of one size. */
typedef struct {
  guint head_dim;
  float2 *angles; /* [max_positions][d/2], device */
} Angles;

/* Device memory that a pass works in. */
typedef struct {
  guint rows, samples; /* what there is room for */
  guint shared_parts;
  gsize words, scratch_bytes;
  float *x, *picked;                          /* [R][D], [samples][D] */
  KvBf16 *normed, *qkv, *attended, *up, *act; /* [R][...] */
  float *logits;                              /* [samples][V] */
  guint32 *sampled, *inputs, *counters;
  void *scratch; /* of decode attention */
  void *shared;  /* of what sequences share */
  char *mixer;   /* of recurrent layers, mixer_at() */
  void *work;    /* of latent attention, and of experts */
} Buffers;

struct KvCudaEngine {
  KvCudaDevice *device;
  const KvCudaWeights *weights;
  KvCudaCache *cache;
  KvCudaCompressed *compressed; /* NULL: the cache is bf16 and whole */
  KvCudaSharing *sharing;       /* NULL: every sequence reads for itself */
  KvCudaGemm *gemm;
  GArray *angles; /* of Angles */
  guint max_positions, graph_rows;
  gboolean all_logits, recurrent;
  gboolean apart;     /* some product is of decoding rows alone */
  gsize widest_mixer; /* bytes of a row */
  gsize widest_qkv, widest_heads, widest_up, widest_act, most_heads, widest_head;
  Buffers buffers;
  guint32 *staged;                    /* pinned, as long as buffers.inputs */
  guint32 *tokens;                    /* pinned, [buffers.samples] */
  GHashTable *graphs;                 /* of cudaGraphExec_t, by graph_key() */
  GHashTable *warm;                   /* warm_key() of what was launched before */
  GArray *events;                     /* of cudaEvent_t: the laps of one pass */
  GArray *laps;                       /* of KvComponent: what lay before event i + 1 */
  gboolean timing;                    /* laps are taken */
  guint divided_every, until_divided; /* of steps that are launched kernel by kernel */
};

/* --- beginning and end ---------------------------------------------------------------------- */

static gboolean make_angles(KvCudaEngine *e, guint head_dim, GError **error) {
  for (guint i = 0; i < e->angles->len; i++)
    if (g_array_index(e->angles, Angles, i).head_dim == head_dim)
      return TRUE;
  guint half = head_dim / 2;
  gsize n = (gsize)e->max_positions * half;
  g_autofree float2 *table = g_new(float2, n);
  g_autofree float *cosine = g_new(float, half), *sine = g_new(float, half);
  for (guint p = 0; p < e->max_positions; p++) {
    kv_host_rotary_angles(cosine, sine, p, head_dim, &e->weights->rotary);
    for (guint i = 0; i < half; i++)
      table[(gsize)p * half + i] = (float2){cosine[i], sine[i]};
  }
  Angles made = {head_dim, kv_cuda_alloc(n * sizeof *table, "rotary angles", error)};
  if (!made.angles)
    return FALSE;
  g_array_append_val(e->angles, made);
  return kv_cuda_upload(e->device, made.angles, table, n * sizeof *table, error);
}

static const float2 *angles_of(const KvCudaEngine *e, guint head_dim) {
  for (guint i = 0; i < e->angles->len; i++)
    if (g_array_index(e->angles, Angles, i).head_dim == head_dim)
      return g_array_index(e->angles, Angles, i).angles;
  return NULL; /* learned positions */
}

static void graph_free(gpointer graph) {
  (void)cudaGraphExecDestroy(graph);
}

/* What a recurrent layer keeps of R rows between its products. */
typedef struct {
  KvBf16 *x, *low;   /* [R][I]: convolved; [R][dt_rank]: step sizes before their last product */
  float *bc, *delta; /* [R][2 N], [R][I] */
  gsize row_bytes;   /* of all four */
} Mixer;

static Mixer mixer_at(char *memory, const KvAttention *a, gsize rows) {
  const gsize x = a->inner * sizeof(KvBf16), low = a->dt_rank * sizeof(KvBf16);
  const gsize bc = 2 * (gsize)a->state_dim * sizeof(float), delta = a->inner * sizeof(float);
  return (Mixer){.x = (KvBf16 *)(void *)memory,
                 .low = (KvBf16 *)(void *)(memory + rows * x),
                 .bc = (float *)(void *)(memory + rows * (x + low)),
                 .delta = (float *)(void *)(memory + rows * (x + low + bc)),
                 .row_bytes = x + low + bc + delta};
}

static gboolean measure_layers(KvCudaEngine *e, GError **error) {
  for (guint l = 0; l < e->weights->n_layers; l++) {
    const KvCudaLayer *layer = &e->weights->layers[l];
    const KvAttention *a = &layer->attention;
    if (a->kind == KV_ATTENTION_NONE) {
      e->recurrent = TRUE;
      e->widest_mixer = MAX(e->widest_mixer, mixer_at(NULL, a, 0).row_bytes);
      e->widest_qkv = MAX(e->widest_qkv, 2 * (gsize)a->inner);
      e->widest_heads = MAX(e->widest_heads, a->inner);
      continue;
    }
    gboolean latent = a->kind == KV_ATTENTION_LATENT;
    gsize heads = (gsize)a->n_heads * (latent ? a->value_head_dim : a->head_dim);
    e->widest_qkv = MAX(e->widest_qkv, latent ? kv_cuda_latents_width(a)
                                              : heads + 2 * (gsize)a->n_kv_heads * a->head_dim);
    e->widest_heads = MAX(e->widest_heads, heads);
    e->widest_up = MAX(e->widest_up, (gsize)layer->intermediate * (layer->gated ? 2 : 1));
    e->widest_act = MAX(e->widest_act, layer->intermediate);
    e->most_heads = MAX(e->most_heads, a->n_heads);
    e->widest_head = MAX(e->widest_head, latent ? a->kv_lora_rank : a->head_dim);
    if (!e->weights->positions && !make_angles(e, latent ? a->rope_head_dim : a->head_dim, error))
      return FALSE;
  }
  return TRUE;
}

KvCudaEngine *kv_cuda_engine_new(KvCudaDevice *device, const KvCudaWeights *weights,
                                 KvCudaCache *cache, guint max_positions, GError **error) {
  g_autoptr(KvCudaEngine) e = g_new0(KvCudaEngine, 1);
  e->device = device;
  e->weights = weights;
  e->cache = cache;
  e->max_positions = max_positions;
  e->graph_rows = 512;
  e->divided_every = 8;
  e->angles = g_array_new(FALSE, FALSE, sizeof(Angles));
  e->graphs = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, graph_free);
  e->warm = g_hash_table_new(g_direct_hash, g_direct_equal);
  e->events = g_array_new(FALSE, TRUE, sizeof(cudaEvent_t));
  e->laps = g_array_new(FALSE, FALSE, sizeof(KvComponent));
  if (!measure_layers(e, error) || !(e->gemm = kv_cuda_gemm_new(error)))
    return NULL;
  if (cache->compression.format != KV_HOST_EXACT &&
      !(e->compressed = kv_cuda_compressed_new(device, weights, cache, error)))
    return NULL;
  e->apart = e->compressed && kv_cuda_compressed_looks_ahead(e->compressed);
  kv_cuda_engine_set_graph_rows(e, e->graph_rows);
  if (cache->compression.shared_over)
    e->sharing =
        kv_cuda_sharing_new(device, weights, cache->block_tokens, cache->compression.shared_over);
  for (guint l = 0; e->compressed && l < weights->n_layers; l++) {
    const KvCudaProjections *own = kv_cuda_compressed_projections(e->compressed, l);
    if (own) {
      e->apart = TRUE;
      e->widest_qkv = MAX(e->widest_qkv, own->width);
      e->widest_heads = MAX(e->widest_heads, own->attended);
      e->widest_head = MAX(e->widest_head, own->attended / weights->layers[l].attention.n_heads);
    }
  }
  return g_steal_pointer(&e);
}

static void buffers_free(KvCudaEngine *e) {
  Buffers *b = &e->buffers;
  void *memory[] = {b->x,        b->picked,  b->normed, b->qkv,     b->attended,
                    b->up,       b->act,     b->logits, b->sampled, b->inputs,
                    b->counters, b->scratch, b->shared, b->mixer,   b->work};
  for (guint i = 0; i < G_N_ELEMENTS(memory); i++)
    kv_cuda_free(memory[i]);
  if (e->staged)
    (void)cudaFreeHost(e->staged);
  if (e->tokens)
    (void)cudaFreeHost(e->tokens);
  e->staged = e->tokens = NULL;
  *b = (Buffers){0};
}

void kv_cuda_engine_free(KvCudaEngine *e) {
  if (!e)
    return;
  kv_cuda_compressed_free(e->compressed);
  kv_cuda_sharing_free(e->sharing);
  g_hash_table_unref(e->graphs);
  g_hash_table_unref(e->warm);
  buffers_free(e);
  for (guint i = 0; i < e->angles->len; i++)
    kv_cuda_free(g_array_index(e->angles, Angles, i).angles);
  g_array_unref(e->angles);
  for (guint i = 0; i < e->events->len; i++)
    (void)cudaEventDestroy(g_array_index(e->events, cudaEvent_t, i));
  g_array_unref(e->events);
  g_array_unref(e->laps);
  kv_cuda_gemm_free(e->gemm);
  g_free(e);
}

void kv_cuda_engine_set_graph_rows(KvCudaEngine *e, guint rows) {
  e->graph_rows = e->compressed && kv_cuda_compressed_streams(e->compressed) ? 0 : rows;
}

void kv_cuda_engine_set_divided_every(KvCudaEngine *e, guint steps) {
  e->divided_every = steps;
}

void kv_cuda_engine_set_all_logits(KvCudaEngine *e, gboolean all) {
  e->all_logits = all;
}

void kv_cuda_engine_forget(KvCudaEngine *e, guint64 owner) {
  if (e->compressed)
    kv_cuda_compressed_forget(e->compressed, owner);
}

const float *kv_cuda_engine_logits(const KvCudaEngine *e) {
  return e->buffers.logits;
}

/* --- room ------------------------------------------------------------------------------------ */

/* What the widest layer works in beside the buffers. */
static gsize work_bytes(const KvCudaEngine *e, guint rows) {
  gsize bytes = 1;
  for (guint l = 0; l < e->weights->n_layers; l++) {
    const KvCudaLayer *layer = &e->weights->layers[l];
    if (layer->attention.kind == KV_ATTENTION_LATENT)
      bytes = MAX(bytes, kv_cuda_latents_work_bytes(&layer->attention, rows));
    if (layer->mlp.n_experts)
      bytes = MAX(bytes, kv_cuda_mixture_work_bytes(&layer->mlp, e->weights->hidden, rows));
  }
  return bytes;
}

/* Make room for the shape and `words` of inputs. Graphs hold the old addresses, so they go too. */
static gboolean make_room(KvCudaEngine *e, const Shape *shape, gsize words, GError **error) {
  const KvCudaWeights *w = e->weights;
  Buffers *b = &e->buffers;
  gsize scratch = kv_cuda_decode_scratch_bytes(shape->decode, (guint)e->most_heads,
                                               (guint)e->widest_head, shape->max_splits);
  if (shape->rows <= b->rows && shape->samples <= b->samples && words <= b->words &&
      scratch <= b->scratch_bytes && shape->shared_parts <= b->shared_parts)
    return TRUE;
  Buffers need = {.rows = MAX(b->rows, shape->rows),
                  .samples = MAX(b->samples, shape->samples),
                  .shared_parts = shape->shared_parts <= b->shared_parts ? b->shared_parts
                                                                         : 2 * shape->shared_parts,
                  .words = words <= b->words ? b->words : 2 * words,
                  .scratch_bytes = scratch <= b->scratch_bytes ? b->scratch_bytes : 2 * scratch};
  if (!kv_cuda_wait(e->device, error))
    return FALSE;
  g_hash_table_remove_all(e->graphs);
  buffers_free(e);
  gsize R = need.rows, S = need.samples, D = w->hidden;
  gsize shared =
      kv_cuda_shared_scratch_bytes(need.shared_parts, (guint)e->most_heads, (guint)e->widest_head);
  const struct {
    void *pointer;
    gsize bytes;
  } parts[] = {{&need.x, R * D * sizeof(float)},
               {&need.picked, S * D * sizeof(float)},
               {&need.normed, MAX(R, S) * D * sizeof(KvBf16)},
               {&need.qkv, R * e->widest_qkv * sizeof(KvBf16)},
               {&need.attended, R * e->widest_heads * sizeof(KvBf16)},
               {&need.up, R * e->widest_up * sizeof(KvBf16)},
               {&need.act, R * e->widest_act * sizeof(KvBf16)},
               {&need.logits, S * w->vocab * sizeof(float)},
               {&need.sampled, S * sizeof(guint32)},
               {&need.inputs, need.words * sizeof(guint32)},
               {&need.counters, R * e->most_heads * sizeof(guint32)},
               {&need.scratch, need.scratch_bytes},
               {&need.shared, shared},
               {&need.mixer, R * e->widest_mixer},
               {&need.work, work_bytes(e, need.rows)}};

  *b = need;
  for (guint i = 0; i < G_N_ELEMENTS(parts); i++) {
    void *memory = kv_cuda_alloc(parts[i].bytes, "the activations of a step", error);
    if (!memory)
      return FALSE;
    gsize field = (gsize)((char *)parts[i].pointer - (char *)&need);
    memcpy((char *)b + field, &memory, sizeof memory);
  }
  return kv_cuda_fill(e->device, b->counters, 0, R * e->most_heads * sizeof(guint32), error) &&
         KV_CUDA_OK(
             cudaHostAlloc((void **)&e->staged, need.words * sizeof(guint32), cudaHostAllocDefault),
             error) &&
         KV_CUDA_OK(
             cudaHostAlloc((void **)&e->tokens, (S + 1) * sizeof(guint32), cudaHostAllocDefault),
             error);
}

/* --- the kernels of a pass ------------------------------------------------------------------- */

/* A step under launch. */
typedef struct {
  KvCudaEngine *e;
  Shape shape;
  Inputs in; /* device */
  GError **error;
} Pass;

/* Everything since the last lap was `component`. */
static gboolean lap(Pass *p, KvComponent component) {
  KvCudaEngine *e = p->e;
  if (!e->timing)
    return TRUE;
  guint i = e->laps->len + 1; /* event 0 is the pass's beginning */
  if (i >= e->events->len) {
    g_array_set_size(e->events, i + 1);
    if (!KV_CUDA_OK(cudaEventCreate(&g_array_index(e->events, cudaEvent_t, i)), p->error))
      return FALSE;
  }
  g_array_append_val(e->laps, component);
  return KV_CUDA_OK(cudaEventRecord(g_array_index(e->events, cudaEvent_t, i), e->device->stream),
                    p->error);
}

static gboolean norm(Pass *p, KvBf16 *out, const float *x, const KvBf16 *gain, const KvBf16 *bias,
                     guint rows) {
  const KvCudaWeights *w = p->e->weights;
  cudaStream_t stream = p->e->device->stream;
  cudaError_t status =
      w->norm == KV_NORM_RMS
          ? kv_cuda_rms_norm(out, x, gain, w->epsilon, rows, w->hidden, stream)
          : kv_cuda_layer_norm(out, x, gain, bias, w->epsilon, rows, w->hidden, stream);
  return kv_cuda_ok(status, "norm", p->error) && lap(p, KV_COMPONENT_ELEMENTWISE);
}

static gboolean multiply(Pass *p, void *out, const KvBf16 *x, const KvBf16 *weight,
                         const KvBf16 *bias, guint inputs, guint outputs, KvComponent component) {
  KvCudaProduct product = {.out = out,
                           .x = x,
                           .weight = weight,
                           .bias = bias,
                           .rows = p->shape.rows,
                           .inputs = inputs,
                           .outputs = outputs};
  return kv_cuda_gemm_run(p->e->gemm, &product, p->e->device->stream, p->error) &&
         lap(p, component);
}

/* x += in . weight + bias of `rows` rows from `first`: the residual. */
static gboolean multiply_and_add(Pass *p, const KvBf16 *in, const KvBf16 *weight,
                                 const KvBf16 *bias, guint inputs, guint first, guint rows,
                                 KvComponent component) {
  guint D = p->e->weights->hidden;
  float *x = p->e->buffers.x + (gsize)first * D;
  KvCudaProduct product = {.out = x,
                           .out_f32 = TRUE,
                           .accumulate = TRUE,
                           .x = in,
                           .weight = weight,
                           .rows = rows,
                           .inputs = inputs,
                           .outputs = D};
  if (!kv_cuda_gemm_run(p->e->gemm, &product, p->e->device->stream, p->error))
    return FALSE;
  if (bias &&
      !kv_cuda_ok(kv_cuda_add_bias(x, bias, rows, D, p->e->device->stream), "bias", p->error))
    return FALSE;
  return lap(p, component);
}

/* The model's projections at a layer, or what the cache's format puts in their place. */
static KvCudaProjections projections_of(const KvCudaEngine *e, guint l) {
  const KvCudaLayer *layer = &e->weights->layers[l];
  const KvAttention *a = &layer->attention;
  const KvCudaProjections *replaced =
      e->compressed ? kv_cuda_compressed_projections(e->compressed, l) : NULL;
  gboolean latent = a->kind == KV_ATTENTION_LATENT;
  return replaced ? *replaced
                  : (KvCudaProjections){
                        .qkv = layer->qkv,
                        .qkv_bias = layer->qkv_bias,
                        .output = layer->output,
                        .output_bias = layer->output_bias,
                        .width = latent ? kv_cuda_latents_width(a)
                                        : (a->n_heads + 2 * a->n_kv_heads) * a->head_dim,
                        .attended = a->n_heads * (latent ? a->value_head_dim : a->head_dim)};
}

/* Attention back to the residual: where the format has an output of its own, decoding rows apart.
 */
static gboolean project_output(Pass *p, guint l, const KvCudaProjections *own) {
  const KvCudaLayer *layer = &p->e->weights->layers[l];
  const Shape *s = &p->shape;
  guint heads = own->output == layer->output ? own->attended
                                             : layer->attention.n_heads * layer->attention.head_dim;
  guint prompts = own->output == layer->output ? s->rows : s->prefill_rows;
  return (prompts == 0 ||
          multiply_and_add(p, p->e->buffers.attended, layer->output, layer->output_bias, heads, 0,
                           prompts, KV_COMPONENT_OUTPUT_PROJECTION)) &&
         (prompts == s->rows ||
          multiply_and_add(p, p->e->buffers.attended + (gsize)prompts * heads, own->output,
                           own->output_bias, own->attended, prompts, s->rows - prompts,
                           KV_COMPONENT_OUTPUT_PROJECTION));
}

/* The same where the cache is compressed: queries and keys are turned in place, and stored after.
 */
static gboolean attend_compressed(Pass *p, const KvCudaLayer *layer, guint l,
                                  const KvCudaProjections *own) {
  const KvAttention *a = &layer->attention;
  KvCudaCompressed *c = p->e->compressed;
  const Buffers *b = &p->e->buffers;
  const Shape *s = &p->shape;
  KvCudaPages nowhere = p->e->cache->layers[l];
  KvCudaRows rows = {
      .qkv = b->qkv,
      .attended = b->attended,
      .stride = own->width,
      .rows = s->rows,
      .prefill_rows = s->prefill_rows,
      .prefill = s->prefill,
      .decode = s->decode,
      .n_tiles = s->tiles,
      .n_heads = a->n_heads,
      .head_dim = a->head_dim,
      .window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0,
      .tables = {p->in.table, p->in.table_starts},
      .row_sequences = p->in.row_sequences,
      .slots = p->in.slots,
      .positions = p->in.positions,
      .angles = angles_of(p->e, a->head_dim),
      .contexts = p->in.contexts,
      .split_tokens = p->in.split_tokens,
      .tiles = p->in.tiles,
      .max_splits = s->max_splits,
      .counters = b->counters,
      .scratch = b->scratch,
  };
  nowhere.pool = NULL;
  return (own->qkv != layer->qkv || /* what has other projections turns what they give */
          kv_cuda_ok(kv_cuda_rotate_and_store(b->qkv, &nowhere, &rows.tables, rows.row_sequences,
                                              p->in.positions, rows.angles, layer->query_norm,
                                              layer->key_norm, p->e->weights->epsilon, s->rows,
                                              a->n_heads, p->e->device->stream),
                     "rotary", p->error)) &&
         lap(p, KV_COMPONENT_ELEMENTWISE) &&
         (!kv_cuda_compressed_looks_ahead(c) ||
          (kv_cuda_compressed_await(c, l, p->error) && lap(p, KV_COMPONENT_TRANSFER))) &&
         kv_cuda_ok(kv_cuda_compressed_store(c, l, &rows), "cache write", p->error) &&
         lap(p, KV_COMPONENT_TECHNIQUE) &&
         (!s->tiles ||
          (kv_cuda_ok(kv_cuda_compressed_prefill(c, l, &rows), "prefill attention", p->error) &&
           lap(p, KV_COMPONENT_PREFILL_ATTENTION))) &&
         (!s->decode ||
          (kv_cuda_ok(kv_cuda_compressed_decode(c, l, &rows), "decode attention", p->error) &&
           lap(p, KV_COMPONENT_DECODE_ATTENTION)));
}

/* Decode attention where sequences share leading tokens: those first, then what is their own. */
static cudaError_t decode_shared(const Pass *p, const KvAttention *a, const KvCudaPages *pages,
                                 const KvCudaTables *tables, KvBf16 *out, const KvBf16 *q,
                                 gsize stride) {
  const Buffers *b = &p->e->buffers;
  const Shape *s = &p->shape;
  cudaStream_t stream = p->e->device->stream;
  const KvCudaShared shared = {.tiles = p->in.shared,
                               .n_tiles = p->in.n_shared,
                               .members = p->in.members,
                               .first_tokens = p->in.first_tokens,
                               .part_starts = p->in.part_starts,
                               .most_tiles = s->shared_tiles,
                               .most_parts = b->shared_parts,
                               .scratch = b->shared};
  cudaError_t status =
      kv_cuda_shared_attention(&shared, q, stride, pages, tables->table, a->n_heads, stream);
  return status != cudaSuccess
             ? status
             : kv_cuda_decode_attention_shared(out, q, stride, pages, tables, p->in.contexts,
                                               s->decode, a->n_heads, &shared, p->in.split_tokens,
                                               s->max_splits, b->counters, b->scratch, stream);
}

static gboolean attend(Pass *p, const KvCudaLayer *layer, const KvCudaPages *pages) {
  const KvAttention *a = &layer->attention;
  const Buffers *b = &p->e->buffers;
  const Shape *s = &p->shape;
  cudaStream_t stream = p->e->device->stream;
  guint window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0;
  gsize width = (gsize)a->n_heads * a->head_dim;
  gsize stride = width + 2 * (gsize)a->n_kv_heads * a->head_dim;
  KvCudaTables tables = {p->in.table, p->in.table_starts};
  if (!kv_cuda_ok(kv_cuda_rotate_and_store(b->qkv, pages, &tables, p->in.row_sequences,
                                           p->in.positions, angles_of(p->e, a->head_dim),
                                           layer->query_norm, layer->key_norm,
                                           p->e->weights->epsilon, s->rows, a->n_heads, stream),
                  "rotary", p->error) ||
      !lap(p, KV_COMPONENT_ELEMENTWISE))
    return FALSE;
  if (s->tiles &&
      (!kv_cuda_ok(kv_cuda_prefill_attention(b->attended, b->qkv, stride, pages, &tables,
                                             p->in.tiles, s->tiles, a->n_heads, window, stream),
                   "prefill attention", p->error) ||
       !lap(p, KV_COMPONENT_PREFILL_ATTENTION)))
    return FALSE;
  if (!s->decode)
    return TRUE;
  tables.table_starts += s->prefill;
  KvBf16 *out = b->attended + s->prefill_rows * width;
  const KvBf16 *q = b->qkv + s->prefill_rows * stride;
  cudaError_t status =
      s->shared_tiles ? decode_shared(p, a, pages, &tables, out, q, stride)
                      : kv_cuda_decode_attention(out, q, stride, pages, &tables, p->in.contexts,
                                                 s->decode, a->n_heads, window, p->in.split_tokens,
                                                 s->max_splits, b->counters, b->scratch, stream);
  return kv_cuda_ok(status, "decode attention", p->error) && lap(p, KV_COMPONENT_DECODE_ATTENTION);
}

static gboolean attend_to_latents(Pass *p, const KvCudaLayer *layer, const KvCudaPages *pages) {
  const KvCudaEngine *e = p->e;
  const Buffers *b = &e->buffers;
  const Shape *s = &p->shape;
  const KvCudaLatents latents = {
      .layer = layer,
      .shape = kv_host_latent_of(&layer->attention, &e->weights->rotary),
      .pages = *pages,
      .tables = {p->in.table, p->in.table_starts},
      .rows = s->rows,
      .prefill_rows = s->prefill_rows,
      .prefill = s->prefill,
      .decode = s->decode,
      .n_tiles = s->tiles,
      .max_splits = s->max_splits,
      .row_sequences = p->in.row_sequences,
      .positions = p->in.positions,
      .contexts = p->in.contexts,
      .split_tokens = p->in.split_tokens,
      .tiles = p->in.tiles,
      .angles = angles_of(e, layer->attention.rope_head_dim),
      .epsilon = e->weights->epsilon,
      .qkv = b->qkv,
      .attended = b->attended,
      .work = b->work,
      .scratch = b->scratch,
      .gemm = e->gemm,
      .stream = e->device->stream,
  };
  return kv_cuda_latents_prepare(&latents, p->error) && lap(p, KV_COMPONENT_QKV) &&
         (!s->tiles || (kv_cuda_latents_prefill(&latents, p->error) &&
                        lap(p, KV_COMPONENT_PREFILL_ATTENTION))) &&
         (!s->decode ||
          (kv_cuda_latents_decode(&latents, p->error) && lap(p, KV_COMPONENT_DECODE_ATTENTION))) &&
         kv_cuda_latents_expand(&latents, p->error) && lap(p, KV_COMPONENT_OUTPUT_PROJECTION);
}

static gboolean mix_experts(Pass *p, const KvCudaLayer *layer) {
  const KvCudaEngine *e = p->e;
  const KvCudaMixture mixture = {.layer = layer,
                                 .routing = e->weights->routing,
                                 .rows = p->shape.rows,
                                 .hidden = e->weights->hidden,
                                 .row_sequences = p->in.row_sequences,
                                 .normed = e->buffers.normed,
                                 .x = e->buffers.x,
                                 .work = e->buffers.work,
                                 .gemm = e->gemm,
                                 .stream = e->device->stream};
  return kv_cuda_mixture_run(&mixture, p->error) && lap(p, KV_COMPONENT_MLP);
}

static gboolean activate(Pass *p, const KvCudaLayer *layer, const KvBf16 **inner) {
  const Buffers *b = &p->e->buffers;
  cudaStream_t stream = p->e->device->stream;
  guint R = p->shape.rows, E = layer->intermediate;
  *inner = layer->gated ? b->act : b->up;
  return kv_cuda_ok(layer->gated ? kv_cuda_swiglu(b->act, b->up, R, E, stream)
                                 : kv_cuda_activate(b->up, (guint64)R * E, KV_CUDA_RELU, stream),
                    "activation", p->error) &&
         lap(p, KV_COMPONENT_ELEMENTWISE);
}

/* Convolution and scan, of prompts and of decoding tokens; `states` of all sequences. */
static gboolean scan(Pass *p, const KvCudaMixer *m, const Mixer *x, KvCudaStates states) {
  const Buffers *b = &p->e->buffers;
  const Shape *s = &p->shape;
  cudaStream_t stream = p->e->device->stream;
  gsize I = states.inner, row = s->prefill_rows;
  const KvBf16 *gate = b->qkv + I;
  if (s->tiles && (!kv_cuda_ok(kv_cuda_selective_scan(b->attended, x->x, gate, 2 * I, x->delta,
                                                      m->dt_bias, x->bc, m->decay, m->skip, &states,
                                                      p->in.tiles, s->tiles, stream),
                               "scan of prompts", p->error) ||
                   !lap(p, KV_COMPONENT_PREFILL_ATTENTION)))
    return FALSE;
  if (!s->decode)
    return TRUE;
  states.from += s->prefill;
  states.to += s->prefill;
  return kv_cuda_ok(kv_cuda_selective_scan(b->attended + row * I, x->x + row * I,
                                           gate + row * 2 * I, 2 * I, x->delta + row * I,
                                           m->dt_bias, x->bc + row * 2 * states.state_dim, m->decay,
                                           m->skip, &states, NULL, s->decode, stream),
                    "update of states", p->error) &&
         lap(p, KV_COMPONENT_DECODE_ATTENTION);
}

/* x[R][outputs] in fp32 = in . weight. */
static gboolean multiply_f32(Pass *p, float *out, const KvBf16 *in, const KvBf16 *weight,
                             guint inputs, guint outputs) {
  KvCudaProduct product = {.out = out,
                           .out_f32 = TRUE,
                           .x = in,
                           .weight = weight,
                           .rows = p->shape.rows,
                           .inputs = inputs,
                           .outputs = outputs};
  return kv_cuda_gemm_run(p->e->gemm, &product, p->e->device->stream, p->error) &&
         lap(p, KV_COMPONENT_QKV);
}

/* A Mamba block. All its products count as one component, as the simulator prices them. */
static gboolean recur(Pass *p, guint l) {
  const KvCudaLayer *layer = &p->e->weights->layers[l];
  const KvAttention *a = &layer->attention;
  const KvCudaMixer *m = &layer->mixer;
  const Buffers *b = &p->e->buffers;
  const KvCudaPages *pages = &p->e->cache->layers[l];
  Mixer x = mixer_at(b->mixer, a, p->shape.rows);
  guint D = p->e->weights->hidden, I = a->inner;
  KvCudaStates states = {.pool = (float *)(void *)pages->pool,
                         .floats = pages->value_offset * sizeof(KvBf16) / sizeof(float),
                         .inner = I,
                         .state_dim = a->state_dim,
                         .conv_width = a->conv_width,
                         .from = p->in.from,
                         .to = p->in.to};
  return norm(p, b->normed, b->x, layer->attention_norm, layer->attention_norm_bias,
              p->shape.rows) &&
         multiply(p, b->qkv, b->normed, m->in, m->in_bias, D, 2 * I, KV_COMPONENT_QKV) &&
         kv_cuda_ok(kv_cuda_causal_convolution(x.x, b->qkv, 2 * (gsize)I, m->conv, m->conv_bias,
                                               &states, p->in.row_sequences, p->in.slots,
                                               p->shape.rows, p->e->device->stream),
                    "convolution", p->error) &&
         lap(p, KV_COMPONENT_ELEMENTWISE) &&
         multiply(p, x.low, x.x, m->x, NULL, I, a->dt_rank, KV_COMPONENT_QKV) &&
         multiply_f32(p, x.bc, x.x, m->x + (gsize)a->dt_rank * I, I, 2 * a->state_dim) &&
         multiply_f32(p, x.delta, x.low, m->dt, a->dt_rank, I) && scan(p, m, &x, states) &&
         multiply_and_add(p, b->attended, m->out, m->out_bias, I, 0, p->shape.rows,
                          KV_COMPONENT_QKV);
}

/* The dense MLP, or the expert that all tokens share, from `normed`. */
static gboolean run_mlp(Pass *p, const KvCudaLayer *layer) {
  const Buffers *b = &p->e->buffers;
  const KvBf16 *inner = NULL;
  return multiply(p, b->up, b->normed, layer->up, layer->up_bias, p->e->weights->hidden,
                  layer->intermediate * (layer->gated ? 2 : 1), KV_COMPONENT_MLP) &&
         activate(p, layer, &inner) &&
         multiply_and_add(p, inner, layer->down, layer->down_bias, layer->intermediate, 0,
                          p->shape.rows, KV_COMPONENT_MLP);
}

/* What the format finds out of a layer's input, beside the layer. */
static gboolean look_ahead(Pass *p, guint l) {
  const KvCudaEngine *e = p->e;
  gsize first = p->shape.prefill_rows;
  if (!e->compressed || !kv_cuda_compressed_looks_ahead(e->compressed) ||
      l + 1 == e->weights->n_layers)
    return TRUE;
  const KvCudaInput input = {
      .normed = e->buffers.normed + first * e->weights->hidden,
      .row_sequences = p->in.row_sequences + first,
      .positions = p->in.positions + first,
      .angles = angles_of(e, e->weights->layers[l + 1].attention.head_dim),
      .decode = p->shape.decode,
  };
  return kv_cuda_compressed_look_ahead(e->compressed, l, &input, p->error) &&
         lap(p, KV_COMPONENT_TECHNIQUE);
}

static gboolean run_layer(Pass *p, guint l) {
  const KvCudaLayer *layer = &p->e->weights->layers[l];
  const Buffers *b = &p->e->buffers;
  const KvCudaPages *pages = &p->e->cache->layers[l];
  if (layer->attention.kind == KV_ATTENTION_NONE)
    return recur(p, l);
  const KvCudaProjections own = projections_of(p->e, l);
  return norm(p, b->normed, b->x, layer->attention_norm, layer->attention_norm_bias,
              p->shape.rows) &&
         look_ahead(p, l) &&
         multiply(p, b->qkv, b->normed, own.qkv, own.qkv_bias, p->e->weights->hidden, own.width,
                  KV_COMPONENT_QKV) &&
         (layer->attention.kind == KV_ATTENTION_LATENT ? attend_to_latents(p, layer, pages)
          : p->e->compressed                           ? attend_compressed(p, layer, l, &own)
                                                       : attend(p, layer, pages)) &&
         project_output(p, l, &own) &&
         norm(p, b->normed, b->x, layer->mlp_norm, layer->mlp_norm_bias, p->shape.rows) &&
         (!layer->mlp.n_experts || mix_experts(p, layer)) && (!layer->up || run_mlp(p, layer));
}

/* A layer that the host brings to the GPU. The stream stands still for what was not hidden. */
static gboolean run_streamed_layer(Pass *p, guint l) {
  KvCudaCompressed *c = p->e->compressed;
  return kv_cuda_compressed_enter(c, l, p->error) && lap(p, KV_COMPONENT_TRANSFER) &&
         run_layer(p, l) && kv_cuda_compressed_leave(c, l, p->error) &&
         lap(p, KV_COMPONENT_TRANSFER);
}

/* Logits of the rows that want them, and the largest of each. */
static gboolean sample(Pass *p) {
  const KvCudaWeights *w = p->e->weights;
  const Buffers *b = &p->e->buffers;
  const Shape *s = &p->shape;
  cudaStream_t stream = p->e->device->stream;
  const float *rows = b->x;
  if (s->samples == 0)
    return TRUE;
  if (s->samples < s->rows) {
    if (!kv_cuda_ok(
            kv_cuda_gather_rows(b->picked, b->x, p->in.sample_rows, s->samples, w->hidden, stream),
            "rows", p->error))
      return FALSE;
    rows = b->picked;
  }
  KvCudaProduct product = {.out = b->logits,
                           .out_f32 = TRUE,
                           .x = b->normed,
                           .weight = w->head,
                           .rows = s->samples,
                           .inputs = w->hidden,
                           .outputs = w->vocab};
  return norm(p, b->normed, rows, w->final_norm, w->final_norm_bias, s->samples) &&
         kv_cuda_gemm_run(p->e->gemm, &product, stream, p->error) && lap(p, KV_COMPONENT_LM_HEAD) &&
         kv_cuda_ok(kv_cuda_argmax(b->sampled, b->logits, s->samples, w->vocab, stream), "sampling",
                    p->error) &&
         lap(p, KV_COMPONENT_SAMPLING);
}

static gboolean launch(KvCudaEngine *e, const Shape *shape, GError **error) {
  const KvCudaWeights *w = e->weights;
  Pass p = {.e = e, .shape = *shape, .in = inputs_at(e->buffers.inputs, shape), .error = error};
  if (!kv_cuda_ok(kv_cuda_embed(e->buffers.x, p.in.tokens, p.in.positions, w->embedding,
                                w->positions, shape->rows, w->hidden, e->device->stream),
                  "embedding", error) ||
      !lap(&p, KV_COMPONENT_ELEMENTWISE))
    return FALSE;
  gboolean streamed = e->compressed && kv_cuda_compressed_streams(e->compressed);
  for (guint l = 0; l < w->n_layers; l++)
    if (!(streamed ? run_streamed_layer(&p, l) : run_layer(&p, l)))
      return FALSE;
  return sample(&p);
}

/* --- a step's shape and inputs --------------------------------------------------------------- */

/* Entries of its table that kernels read. */
static guint blocks_of(const KvCudaEngine *e, const KvHostSpan *span) {
  if (e->recurrent)
    return 0;
  return (
      guint)(((guint64)span->past + span->n_tokens - span->dropped + e->cache->block_tokens - 1) /
             e->cache->block_tokens);
}

static guint tile_tokens(const KvCudaEngine *e) {
  guint tokens = G_MAXINT;
  if (e->recurrent) /* a span is not cut */
    return tokens;
  for (guint l = 0; l < e->weights->n_layers; l++) {
    const KvAttention *a = &e->weights->layers[l].attention;
    tokens = MIN(tokens, a->kind == KV_ATTENTION_LATENT
                             ? kv_cuda_latent_tile_tokens(a->n_heads)
                             : kv_cuda_prefill_tile_tokens(a->n_heads, a->n_kv_heads));
  }
  return tokens;
}

static guint64 round_up(guint64 n, guint64 unit) {
  return (n + unit - 1) / unit * unit;
}

/* Tokens of a context that its decode attention walks over: those that tiles cover are left out. */
static guint32 own_tokens(const KvCudaEngine *e, const Shape *shape, const KvHostSpan *span,
                          guint decoding) {
  guint32 context = span->past + 1 - span->dropped;
  return shape->shared_tiles
             ? context - g_array_index(e->sharing->found.shared, guint32, decoding) / 16 * 16
             : context;
}

/* Pieces for the decoding contexts, and the tokens of one: equal contexts fill the GPU; a context
 * far above the mean is cut finer, in one of a few grids so that graphs stay few. */
static guint32 split(const KvCudaEngine *e, const KvHostSpan *spans, guint n, Shape *shape) {
  guint64 sum = 0, longest = 1;
  for (guint s = 0, decoding = 0; s < n; s++)
    if (spans[s].decoding) {
      guint32 context = own_tokens(e, shape, &spans[s], decoding++);
      sum += context;
      longest = MAX(longest, context);
    }
  const KvAttention *a = &e->weights->layers[0].attention;
  guint parts = e->compressed ? kv_cuda_compressed_parts(e->compressed) : a->n_kv_heads;
  guint even =
      a->kind == KV_ATTENTION_LATENT
          ? kv_cuda_latent_max_splits(shape->decode, a->n_heads, e->device->multiprocessors)
          : kv_cuda_decode_max_splits(shape->decode, parts, e->device->multiprocessors);
  guint64 tokens = round_up(MAX(1, sum / ((guint64)even * shape->decode)), KV_CUDA_SPLIT_UNIT);
  shape->max_splits = even;
  while (shape->max_splits * tokens < longest && shape->max_splits < 16 * even)
    shape->max_splits *= 2;
  return (guint32)MAX(
      tokens, round_up((longest + shape->max_splits - 1) / shape->max_splits, KV_CUDA_SPLIT_UNIT));
}

/* Rows of the graph that serves a batch of n. */
static guint graph_rows(guint n) {
  return n <= 2 ? n : n <= 4 ? 4 : (n + 7) / 8 * 8;
}

/* The shape of the step, unpadded; *words of inputs. */
static Shape shape_of(const KvCudaEngine *e, const KvHostSpan *spans, guint n, gsize *words) {
  Shape s = {0};
  guint most = tile_tokens(e);
  gsize table = 0;
  for (guint i = 0; i < n; i++) {
    s.rows += spans[i].n_tokens;
    s.samples += spans[i].sample;
    table += blocks_of(e, &spans[i]);
    if (spans[i].decoding) {
      s.decode++;
    } else {
      s.prefill++;
      s.prefill_rows += spans[i].n_tokens;
      s.tiles += (spans[i].n_tokens + most - 1) / most;
    }
  }
  if (e->all_logits)
    s.samples = s.rows;
  if (!s.prefill && s.samples == s.rows && graph_rows(s.rows) <= e->graph_rows)
    s.rows = s.decode = s.samples = graph_rows(s.rows);
  s.states = e->recurrent ? s.prefill + s.decode : 0;
  if (e->sharing && e->sharing->tiles->len) {
    s.shared_tiles = MAX(16, 1u << g_bit_storage(e->sharing->tiles->len - 1)); /* few graphs */
    s.shared_parts = kv_cuda_sharing_parts(e->sharing);
  }
  gsize shared = s.shared_tiles ? 3 * (gsize)s.decode + 2 +
                                      s.shared_tiles * sizeof(KvCudaSharedTile) / sizeof(guint32)
                                : 0;
  *words = shared + 4 * (gsize)s.rows + s.prefill + 2 * (gsize)s.decode + 1 + s.samples +
           2 * (gsize)s.states + 4 * (gsize)s.tiles + table;
  return s;
}

static int by_weight(const void *a, const void *b) {
  const KvCudaTile *x = a, *y = b;
  return x->position != y->position ? (x->position < y->position ? 1 : -1)
         : x->row != y->row         ? (x->row < y->row ? -1 : 1)
                                    : 0;
}

/* What the decoding sequences share; tables have been placed. */
static void fill_shared(const KvCudaEngine *e, const Shape *shape, const Inputs *in) {
  const KvCudaSharing *sharing = e->sharing;
  guint n = sharing->found.members->len, tiles = sharing->tiles->len;
  guint parts = kv_cuda_sharing_parts(sharing);
  memcpy(in->first_tokens, sharing->found.shared->data, n * sizeof(guint32));
  memcpy(in->part_starts, sharing->part_starts->data, n * sizeof(guint32));
  memcpy(in->members, sharing->found.members->data, n * sizeof(guint32));
  for (guint s = n; s < shape->decode; s++) /* the graph's spare rows */
    in->first_tokens[s] = 0;
  for (guint s = n; s <= shape->decode; s++)
    in->part_starts[s] = parts;
  *in->n_shared = tiles;
  for (guint i = 0; i < tiles; i++) {
    in->shared[i] = g_array_index(sharing->tiles, KvCudaSharedTile, i);
    in->shared[i].table = in->table_starts[shape->prefill + in->shared[i].table];
  }
}

/* Write the step into `in` (host memory). */
static void fill_inputs(const KvCudaEngine *e, const Shape *shape, const KvHostSpan *spans, guint n,
                        const Inputs *in) {
  guint row = 0, table = 0, tiles = 0, samples = 0, decoding = 0, most = tile_tokens(e);
  for (guint s = 0; s < n; s++) {
    const KvHostSpan *span = &spans[s];
    in->table_starts[s] = table;
    memcpy(in->table + table, span->block_table, blocks_of(e, span) * sizeof(guint32));
    table += blocks_of(e, span);
    if (e->recurrent) {
      in->from[s] = span->past ? 2 * span->block_table[0] + span->state : G_MAXUINT32;
      in->to[s] = 2 * span->block_table[0] + 1 - span->state;
    }
    if (span->decoding)
      in->contexts[decoding++] = span->past + 1 - span->dropped;
    for (guint32 t = 0; !span->decoding && t < span->n_tokens; t += most)
      in->tiles[tiles++] = (KvCudaTile){s, row + t, span->past + t, MIN(most, span->n_tokens - t)};
    for (guint32 t = 0; t < span->n_tokens; t++, row++) {
      in->tokens[row] = span->tokens[t];
      in->positions[row] = span->past + t;
      in->slots[row] = e->recurrent ? t : span->past + t - span->dropped;
      in->row_sequences[row] = s;
      if (e->all_logits || (span->sample && t + 1 == span->n_tokens))
        in->sample_rows[samples++] = row;
    }
  }
  for (; row < shape->rows; row++, decoding++) { /* the graph's spare rows */
    in->tokens[row] = in->positions[row] = in->slots[row] = 0;
    in->row_sequences[row] = G_MAXUINT32;
    in->table_starts[row] = in->contexts[decoding] = 0;
    in->sample_rows[row] = row;
    if (e->recurrent)
      in->from[row] = in->to[row] = G_MAXUINT32;
  }
  if (shape->shared_tiles)
    fill_shared(e, shape, in);
  qsort(in->tiles, tiles, sizeof *in->tiles, by_weight);
}

/* --- a step ---------------------------------------------------------------------------------- */

static gpointer graph_key(const Shape *shape) {
  return GSIZE_TO_POINTER((gsize)shape->shared_tiles << 32 | shape->rows << 16 | shape->max_splits);
}

/* Capture the launch, for the next time. */
static gboolean capture(KvCudaEngine *e, const Shape *shape, GError **error) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t executable = NULL;
  if (!KV_CUDA_OK(cudaStreamBeginCapture(e->device->stream, cudaStreamCaptureModeThreadLocal),
                  error))
    return FALSE;
  gboolean launched = launch(e, shape, error);
  cudaError_t ended = cudaStreamEndCapture(e->device->stream, &graph);
  if (launched && KV_CUDA_OK(ended, error) &&
      KV_CUDA_OK(cudaGraphInstantiate(&executable, graph, 0), error))
    g_hash_table_insert(e->graphs, graph_key(shape), executable);
  if (graph)
    (void)cudaGraphDestroy(graph);
  return executable != NULL;
}

static gboolean run_kernels(KvCudaEngine *e, const Shape *shape, cudaGraphExec_t graph,
                            GError **error) {
  return graph ? KV_CUDA_OK(cudaGraphLaunch(graph, e->device->stream), error)
               : launch(e, shape, error);
}

/* Upload, compute, download, between the device's two events; with `laps`, timed part by part. */
static gboolean run_timed(KvCudaEngine *e, const Shape *shape, gsize words, cudaGraphExec_t graph,
                          gboolean laps, double *seconds, GError **error) {
  cudaStream_t stream = e->device->stream;
  if (e->events->len == 0) {
    g_array_set_size(e->events, 1);
    if (!KV_CUDA_OK(cudaEventCreate(&g_array_index(e->events, cudaEvent_t, 0)), error))
      return FALSE;
  }
  g_array_set_size(e->laps, 0);
  e->timing = laps;
  gboolean run =
      kv_cuda_clock_start(e->device, error) &&
      KV_CUDA_OK(cudaMemcpyAsync(e->buffers.inputs, e->staged, words * sizeof(guint32),
                                 cudaMemcpyHostToDevice, stream),
                 error) &&
      KV_CUDA_OK(cudaEventRecord(g_array_index(e->events, cudaEvent_t, 0), stream), error) &&
      run_kernels(e, shape, graph, error) &&
      KV_CUDA_OK(cudaMemcpyAsync(e->tokens, e->buffers.sampled, shape->samples * sizeof(guint32),
                                 cudaMemcpyDeviceToHost, stream),
                 error) &&
      kv_cuda_clock_stop(e->device, seconds, error);
  e->timing = FALSE;
  return run;
}

static gboolean read_laps(const KvCudaEngine *e, KvCudaWork *work, GError **error) {
  for (guint i = 0; i < e->laps->len; i++) {
    float milliseconds = 0.0f;
    if (!KV_CUDA_OK(cudaEventElapsedTime(&milliseconds, g_array_index(e->events, cudaEvent_t, i),
                                         g_array_index(e->events, cudaEvent_t, i + 1)),
                    error))
      return FALSE;
    work->component_seconds[g_array_index(e->laps, KvComponent, i)] += 1e-3 * (double)milliseconds;
  }
  return TRUE;
}

static void take_samples(const KvCudaEngine *e, KvHostSpan *spans, guint n) {
  guint row = 0, sample = 0;
  for (guint s = 0; s < n; s++) {
    row += spans[s].n_tokens;
    if (spans[s].sample)
      spans[s].sampled = e->tokens[e->all_logits ? row - 1 : sample++];
  }
}

/* What decides on the products and the attention of a pass. */
static gpointer warm_key(const KvCudaEngine *e, const Shape *shape) {
  return GSIZE_TO_POINTER((gsize)shape->rows << 32 | (e->apart ? shape->prefill_rows : 0) << 1 |
                          (shape->shared_tiles > 0));
}

/* A shape that comes for the first time is computed once untimed, so that loading kernels and
 * choosing algorithms is not measured: to compute a step again changes nothing (recurrent layers
 * leave their states elsewhere than where they found them). Sets *graph where
 * the step is one that is replayed. */
static gboolean warm_up(KvCudaEngine *e, const Shape *shape, gsize words, cudaGraphExec_t *graph,
                        GError **error) {
  double unused;
  gboolean captured = shape->prefill == 0 && shape->rows == shape->samples && !e->all_logits &&
                      shape->rows <= e->graph_rows && shape->rows == graph_rows(shape->rows);
  *graph = captured ? g_hash_table_lookup(e->graphs, graph_key(shape)) : NULL;
  if (*graph || (!captured && g_hash_table_contains(e->warm, warm_key(e, shape))))
    return TRUE;
  if (!run_timed(e, shape, words, NULL, FALSE, &unused, error))
    return FALSE;
  g_hash_table_add(e->warm, warm_key(e, shape));
  if (captured && !capture(e, shape, error))
    return FALSE;
  *graph = captured ? g_hash_table_lookup(e->graphs, graph_key(shape)) : NULL;
  return TRUE;
}

/* Every so many steps that are launched kernel by kernel, one is computed once more before, part by
 * part: the events between the kernels take time, and so stay out of the step's own. */
static gboolean divide(KvCudaEngine *e, const Shape *shape, gsize words, KvCudaWork *work,
                       GError **error) {
  double unused;
  if (e->divided_every == 0 || (e->until_divided && e->until_divided--))
    return TRUE;
  e->until_divided = e->divided_every - 1;
  return run_timed(e, shape, words, NULL, TRUE, &unused, error) && read_laps(e, work, error);
}

gboolean kv_cuda_engine_run(KvCudaEngine *e, KvHostSpan *spans, guint n_spans, KvCudaWork *work,
                            GError **error) {
  gsize words;
  double seconds = 0.0;
  if (e->sharing)
    kv_cuda_sharing_plan(e->sharing, spans, n_spans);
  Shape shape = shape_of(e, spans, n_spans, &words);
  guint32 split_tokens = KV_CUDA_SPLIT_UNIT;
  if (shape.decode && !e->recurrent)
    split_tokens = split(e, spans, n_spans, &shape);
  gboolean moved = FALSE;
  if (e->compressed && !kv_cuda_compressed_begin(e->compressed, spans, n_spans, &moved, error))
    return FALSE;
  if (moved)
    g_hash_table_remove_all(e->graphs);
  if (!make_room(e, &shape, words, error))
    return FALSE;
  Inputs in = inputs_at(e->staged, &shape);
  fill_inputs(e, &shape, spans, n_spans, &in);
  *in.split_tokens = split_tokens;
  cudaGraphExec_t graph = NULL;
  if (!warm_up(e, &shape, words, &graph, error) ||
      (!graph && !divide(e, &shape, words, work, error)) ||
      !run_timed(e, &shape, words, graph, FALSE, &seconds, error))
    return FALSE;
  double after = 0.0;
  g_autofree double *unread = g_new0(double, e->weights->n_layers);
  if (e->compressed && (!kv_cuda_compressed_finish(e->compressed, spans, n_spans, &after, error) ||
                        !kv_cuda_compressed_unread(e->compressed, unread, error)))
    return FALSE;
  work->component_seconds[KV_COMPONENT_TECHNIQUE] += after;
  seconds += after;
  work->seconds += seconds;
  work->replayed = graph != NULL;
  const KvCudaCount count = {
      .weights = e->weights,
      .cache = e->cache,
      .spans = spans,
      .n_spans = n_spans,
      .samples = shape.samples,
      .unread_tokens = unread,
      .repeated_tokens = shape.shared_tiles ? (double)e->sharing->found.repeated_tokens : 0.0};
  kv_cuda_count(&count, &work->flops, &work->bytes);
  take_samples(e, spans, n_spans);
  return TRUE;
}
