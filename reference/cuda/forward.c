#include "reference/cuda/forward.h"

#include <string.h>

#include "reference/cuda/count.h"
#include "reference/cuda/engine.h"
#include "reference/cuda/latent.h"
#include "reference/cuda/mixture.h"
#include "reference/cuda/pass.h"

/* --- beginning and end ---------------------------------------------------------------------- */

static gboolean make_angles(KvCudaEngine *e, guint head_dim, GError **error) {
  for (guint i = 0; i < e->angles->len; i++)
    if (g_array_index(e->angles, KvCudaAngles, i).head_dim == head_dim)
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
  KvCudaAngles made = {head_dim, kv_cuda_alloc(n * sizeof *table, "rotary angles", error)};
  if (!made.angles)
    return FALSE;
  g_array_append_val(e->angles, made);
  return kv_cuda_upload(e->device, made.angles, table, n * sizeof *table, error);
}

static void graph_free(gpointer graph) {
  (void)cudaGraphExecDestroy(graph);
}

static gboolean measure_layers(KvCudaEngine *e, GError **error) {
  for (guint l = 0; l < e->weights->n_layers; l++) {
    const KvCudaLayer *layer = &e->weights->layers[l];
    const KvAttention *a = &layer->attention;
    if (a->kind == KV_ATTENTION_NONE) {
      e->recurrent = TRUE;
      e->widest_mixer = MAX(e->widest_mixer, kv_cuda_pass_mixer_bytes(a));
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
  e->angles = g_array_new(FALSE, FALSE, sizeof(KvCudaAngles));
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
  KvCudaBuffers *b = &e->buffers;
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
  *b = (KvCudaBuffers){0};
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
    kv_cuda_free(g_array_index(e->angles, KvCudaAngles, i).angles);
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
static gboolean make_room(KvCudaEngine *e, const KvCudaShape *shape, gsize words, GError **error) {
  const KvCudaWeights *w = e->weights;
  KvCudaBuffers *b = &e->buffers;
  gsize scratch = kv_cuda_decode_scratch_bytes(shape->decode, (guint)e->most_heads,
                                               (guint)e->widest_head, shape->max_splits);
  if (shape->rows <= b->rows && shape->samples <= b->samples && words <= b->words &&
      scratch <= b->scratch_bytes && shape->shared_parts <= b->shared_parts)
    return TRUE;
  KvCudaBuffers need = {
      .rows = MAX(b->rows, shape->rows),
      .samples = MAX(b->samples, shape->samples),
      .shared_parts =
          shape->shared_parts <= b->shared_parts ? b->shared_parts : 2 * shape->shared_parts,
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

/* --- a step ---------------------------------------------------------------------------------- */

static gpointer graph_key(const KvCudaShape *shape) {
  return GSIZE_TO_POINTER((gsize)shape->shared_tiles << 32 | shape->rows << 16 | shape->max_splits);
}

/* Capture the launch, for the next time. */
static gboolean capture(KvCudaEngine *e, const KvCudaShape *shape, GError **error) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t executable = NULL;
  if (!KV_CUDA_OK(cudaStreamBeginCapture(e->device->stream, cudaStreamCaptureModeThreadLocal),
                  error))
    return FALSE;
  gboolean launched = kv_cuda_pass_launch(e, shape, error);
  cudaError_t ended = cudaStreamEndCapture(e->device->stream, &graph);
  if (launched && KV_CUDA_OK(ended, error) &&
      KV_CUDA_OK(cudaGraphInstantiate(&executable, graph, 0), error))
    g_hash_table_insert(e->graphs, graph_key(shape), executable);
  if (graph)
    (void)cudaGraphDestroy(graph);
  return executable != NULL;
}

static gboolean run_kernels(KvCudaEngine *e, const KvCudaShape *shape, cudaGraphExec_t graph,
                            GError **error) {
  return graph ? KV_CUDA_OK(cudaGraphLaunch(graph, e->device->stream), error)
               : kv_cuda_pass_launch(e, shape, error);
}

/* Upload, compute, download, between the device's two events; with `laps`, timed part by part. */
static gboolean run_timed(KvCudaEngine *e, const KvCudaShape *shape, gsize words,
                          cudaGraphExec_t graph, gboolean laps, double *seconds, GError **error) {
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
static gpointer warm_key(const KvCudaEngine *e, const KvCudaShape *shape) {
  return GSIZE_TO_POINTER((gsize)shape->rows << 32 | (e->apart ? shape->prefill_rows : 0) << 1 |
                          (shape->shared_tiles > 0));
}

/* A shape that comes for the first time is computed once untimed, so that loading kernels and
 * choosing algorithms is not measured: to compute a step again changes nothing (recurrent layers
 * leave their states elsewhere than where they found them). Sets *graph where
 * the step is one that is replayed. */
static gboolean warm_up(KvCudaEngine *e, const KvCudaShape *shape, gsize words,
                        cudaGraphExec_t *graph, GError **error) {
  double unused;
  gboolean captured = shape->prefill == 0 && shape->rows == shape->samples && !e->all_logits &&
                      shape->rows <= e->graph_rows &&
                      shape->rows == kv_cuda_graph_rows(shape->rows);
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
static gboolean divide(KvCudaEngine *e, const KvCudaShape *shape, gsize words, KvCudaWork *work,
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
  KvCudaShape shape = kv_cuda_shape_of(e, spans, n_spans, &words);
  guint32 split_tokens = KV_CUDA_SPLIT_UNIT;
  if (shape.decode && !e->recurrent)
    split_tokens = kv_cuda_shape_split(e, spans, n_spans, &shape);
  gboolean moved = FALSE;
  if (e->compressed && !kv_cuda_compressed_begin(e->compressed, spans, n_spans, &moved, error))
    return FALSE;
  if (moved)
    g_hash_table_remove_all(e->graphs);
  if (!make_room(e, &shape, words, error))
    return FALSE;
  KvCudaInputs in = kv_cuda_inputs_at(e->staged, &shape);
  kv_cuda_inputs_fill(e, &shape, spans, n_spans, &in);
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
