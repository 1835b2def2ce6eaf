#include "reference/cuda/pass.h"

#include "reference/cuda/engine.h"
#include "reference/cuda/latent.h"
#include "reference/cuda/mixture.h"

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

gsize kv_cuda_pass_mixer_bytes(const KvAttention *a) {
  return mixer_at(NULL, a, 0).row_bytes;
}

static const float2 *angles_of(const KvCudaEngine *e, guint head_dim) {
  for (guint i = 0; i < e->angles->len; i++)
    if (g_array_index(e->angles, KvCudaAngles, i).head_dim == head_dim)
      return g_array_index(e->angles, KvCudaAngles, i).angles;
  return NULL; /* learned positions */
}

/* A step under launch. */
typedef struct {
  KvCudaEngine *e;
  KvCudaShape shape;
  KvCudaInputs in; /* device */
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
  const KvCudaShape *s = &p->shape;
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
  const KvCudaBuffers *b = &p->e->buffers;
  const KvCudaShape *s = &p->shape;
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
  const KvCudaBuffers *b = &p->e->buffers;
  const KvCudaShape *s = &p->shape;
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
  const KvCudaBuffers *b = &p->e->buffers;
  const KvCudaShape *s = &p->shape;
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
  const KvCudaBuffers *b = &e->buffers;
  const KvCudaShape *s = &p->shape;
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
  const KvCudaBuffers *b = &p->e->buffers;
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
  const KvCudaBuffers *b = &p->e->buffers;
  const KvCudaShape *s = &p->shape;
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
  const KvCudaBuffers *b = &p->e->buffers;
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
  const KvCudaBuffers *b = &p->e->buffers;
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
  const KvCudaBuffers *b = &p->e->buffers;
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
  const KvCudaBuffers *b = &p->e->buffers;
  const KvCudaShape *s = &p->shape;
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

gboolean kv_cuda_pass_launch(KvCudaEngine *e, const KvCudaShape *shape, GError **error) {
  const KvCudaWeights *w = e->weights;
  Pass p = {
      .e = e, .shape = *shape, .in = kv_cuda_inputs_at(e->buffers.inputs, shape), .error = error};
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
