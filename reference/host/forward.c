#include "reference/host/forward.h"

#include <string.h>

#include "reference/host/format.h"
#include "reference/host/sharing.h"

/* The pass under way. R rows: the spans' tokens one after another. */
typedef struct {
  const KvHostWeights *weights;
  KvHostCache *cache;
  const KvHostFormatClass *format; /* of the cache */
  KvHostSpan *spans;
  guint n_spans, rows;
  guint32 *positions;        /* [R] */
  float *x, *normed, *added; /* [R][D]: residual stream; a block's input; its output */
  float *q, *attended;       /* [R][H d] */
  float *k, *v;              /* [R][Hkv d] */
  float *gate, *up;          /* [R][E] */
  float *scores;             /* [longest context] */
  float *cosine, *sine;      /* [R][d/2], of the layer's head size */
  KvHostWork *work;
  gint64 lap_us;
} Pass;

/* Everything since the last lap was `component`. */
static void lap(Pass *pass, KvComponent component, double flops) {
  gint64 now_us = g_get_monotonic_time();
  pass->work->wall_seconds[component] += (double)(now_us - pass->lap_us) * 1e-6;
  pass->work->flops[component] += flops;
  pass->lap_us = now_us;
}

static void pass_begin(Pass *pass) {
  const KvHostWeights *w = pass->weights;
  gsize q = 0, kv = 0, E = 0, d = 0, longest = 0;
  for (guint l = 0; l < w->n_layers; l++) {
    const KvAttention *a = &w->layers[l].attention;
    q = MAX(q, (gsize)a->n_heads * a->head_dim);
    kv = MAX(kv, (gsize)a->n_kv_heads * a->head_dim);
    d = MAX(d, a->head_dim);
    E = MAX(E, w->layers[l].intermediate);
  }
  for (guint s = 0; s < pass->n_spans; s++) {
    pass->rows += pass->spans[s].n_tokens;
    longest = MAX(longest, (gsize)pass->spans[s].past + pass->spans[s].n_tokens);
  }
  gsize R = pass->rows;
  pass->positions = g_new(guint32, R);
  float **const buffers[] = {&pass->x,        &pass->normed, &pass->added, &pass->q,
                             &pass->attended, &pass->k,      &pass->v,     &pass->gate,
                             &pass->up,       &pass->cosine, &pass->sine};
  const gsize widths[] = {w->hidden, w->hidden, w->hidden, q, q, kv, kv, E, E, d / 2, d / 2};
  for (guint i = 0; i < G_N_ELEMENTS(buffers); i++)
    *buffers[i] = g_new(float, R *widths[i]);
  pass->scores = g_new(float, longest);
  pass->lap_us = g_get_monotonic_time();
}

static void pass_end(Pass *pass) {
  float *const buffers[] = {pass->x,        pass->normed, pass->added, pass->q,
                            pass->attended, pass->k,      pass->v,     pass->gate,
                            pass->up,       pass->cosine, pass->sine,  pass->scores};
  for (guint i = 0; i < G_N_ELEMENTS(buffers); i++)
    g_free(buffers[i]);
  g_free(pass->positions);
}

static void embed(Pass *pass) {
  for (guint s = 0, r = 0; s < pass->n_spans; s++)
    for (guint32 t = 0; t < pass->spans[s].n_tokens; t++, r++) {
      const KvHostSpan *span = &pass->spans[s];
      pass->positions[r] = span->past + t;
      kv_host_weights_embed(pass->weights, pass->x + (gsize)r * pass->weights->hidden,
                            span->tokens[t], pass->positions[r]);
    }
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
}

static void norm(const Pass *pass, float *out, const float *x, const float *gain, const float *bias,
                 guint rows) {
  if (pass->weights->norm == KV_NORM_RMS)
    kv_host_rms_norm(out, x, gain, pass->weights->epsilon, rows, pass->weights->hidden);
  else
    kv_host_layer_norm(out, x, gain, bias, pass->weights->epsilon, rows, pass->weights->hidden);
}

static KvHostFormatLayer format_layer(const Pass *pass, guint l) {
  return (KvHostFormatLayer){.weights = pass->weights,
                             .cache = pass->cache,
                             .pages = &pass->cache->layers[l],
                             .layer = l,
                             .n_heads = pass->weights->layers[l].attention.n_heads,
                             .rows = pass->rows,
                             .q = pass->q,
                             .k = pass->k,
                             .v = pass->v,
                             .out = pass->attended,
                             .scores = pass->scores,
                             .in = pass->normed,
                             .added = pass->added,
                             .positions = pass->positions};
}

/* Rotate queries, and keys where there are some, by their positions. */
static void rotate(Pass *pass, const KvAttention *a, gboolean keys) {
  gsize d = a->head_dim, half = d / 2;
  for (gsize r = 0; r < pass->rows; r++) {
    float *cosine = pass->cosine + r * half, *sine = pass->sine + r * half;
    kv_host_rotary_angles(cosine, sine, pass->positions[r], a->head_dim, &pass->weights->rotary);
    kv_host_rotary(pass->q + r * a->n_heads * d, cosine, sine, a->n_heads, a->head_dim);
    if (keys)
      kv_host_rotary(pass->k + r * a->n_kv_heads * d, cosine, sine, a->n_kv_heads, a->head_dim);
  }
}

/* q, k, v of every row, normalized and rotated where the model does that. */
static void project_inputs(Pass *pass, const KvHostLayer *layer, guint l) {
  const KvAttention *a = &layer->attention;
  const KvHostFormatLayer at = format_layer(pass, l);
  guint R = pass->rows, D = pass->weights->hidden;
  guint q = a->n_heads * a->head_dim, kv = a->n_kv_heads * a->head_dim;
  norm(pass, pass->normed, pass->x, layer->attention_norm, layer->attention_norm_bias, R);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  kv_host_linear(pass->q, pass->normed, layer->query, layer->query_bias, R, D, q);
  double flops = 4.0 * R * D * kv;
  gboolean keys = !pass->format->project || !pass->format->project(&at, &flops);
  if (keys) {
    kv_host_linear(pass->k, pass->normed, layer->key, layer->key_bias, R, D, kv);
    kv_host_linear(pass->v, pass->normed, layer->value, layer->value_bias, R, D, kv);
  }
  lap(pass, KV_COMPONENT_QKV, 2.0 * R * D * q + flops);
  if (layer->query_norm) {
    kv_host_rms_norm(pass->q, pass->q, layer->query_norm, pass->weights->epsilon, R * a->n_heads,
                     a->head_dim);
    kv_host_rms_norm(pass->k, pass->k, layer->key_norm, pass->weights->epsilon, R * a->n_kv_heads,
                     a->head_dim);
  }
  if (!pass->weights->positions)
    rotate(pass, a, keys);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
}

static void store(Pass *pass, guint l) {
  const KvHostPages *pages = &pass->cache->layers[l];
  gsize width = (gsize)pages->n_kv_heads * pages->head_dim, r = 0;
  const KvHostFormatLayer at = format_layer(pass, l);
  if (pass->format->store)
    pass->format->store(&at);
  gboolean all =
      pass->format->write_all && pass->format->write_all(&at, pass->spans, pass->n_spans);
  for (guint s = 0; !all && s < pass->n_spans; s++) {
    const KvHostSpan *span = &pass->spans[s];
    gboolean written = pass->format->write && pass->format->write(&at, span, r);
    for (guint32 t = 0; t < span->n_tokens; t++, r++)
      if (!written)
        kv_host_pages_write(pages, span->block_table, pass->positions[r] - span->dropped,
                            pass->k + r * width, pass->v + r * width);
  }
  pass->work->bytes += 2.0 * (double)pass->rows * (double)width * sizeof(float);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  for (guint s = 0; pass->format->stored && s < pass->n_spans; s++)
    pass->format->stored(&at, &pass->spans[s]);
  lap(pass, KV_COMPONENT_TECHNIQUE, 0.0);
}

/* Tokens of context that the span's queries read together. */
static double tokens_attended(const KvHostSpan *span, guint window) {
  double sum = 0.0;
  for (guint32 t = 0; t < span->n_tokens; t++) {
    guint32 visible = span->past - span->dropped + t + 1;
    sum += window ? MIN(window, visible) : visible;
  }
  return sum;
}

static void attend(Pass *pass, const KvHostLayer *layer, guint l) {
  const KvHostPages *pages = &pass->cache->layers[l];
  const KvHostFormatLayer at = format_layer(pass, l);
  const KvAttention *a = &layer->attention;
  guint window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0;
  gsize width = (gsize)a->n_heads * a->head_dim, r = 0;
  for (guint s = 0; s < pass->n_spans; s++) {
    const KvHostSpan *span = &pass->spans[s];
    if (!pass->format->attend || !pass->format->attend(&at, span, r))
      kv_host_attention(pass->attended + r * width, pass->q + r * width, pages, span->block_table,
                        span->past - span->dropped, span->n_tokens, a->n_heads, window,
                        pass->scores);
    r += span->n_tokens;
    double read = tokens_attended(span, window);
    pass->work->bytes += 2.0 * read * a->n_kv_heads * a->head_dim * sizeof(float);
    lap(pass, span->decoding ? KV_COMPONENT_DECODE_ATTENTION : KV_COMPONENT_PREFILL_ATTENTION,
        4.0 * read * (double)width);
  }
  double flops = 2.0 * pass->rows * (double)width * pass->weights->hidden;
  if (!pass->format->output || !pass->format->output(&at, &flops))
    kv_host_linear(pass->added, pass->attended, layer->output, layer->output_bias, pass->rows,
                   (guint)width, pass->weights->hidden);
  lap(pass, KV_COMPONENT_OUTPUT_PROJECTION, flops);
}

/* What a technique does to a layer's cache once a prompt has attended to itself. */
static void compress(Pass *pass, guint l) {
  const KvHostFormatLayer at = format_layer(pass, l);
  gsize row = 0;
  for (guint s = 0; pass->format->attended && s < pass->n_spans; s++) {
    pass->format->attended(&at, &pass->spans[s], row);
    row += pass->spans[s].n_tokens;
  }
  lap(pass, KV_COMPONENT_TECHNIQUE, 0.0);
}

static void feed_forward(Pass *pass, const KvHostLayer *layer) {
  guint R = pass->rows, D = pass->weights->hidden, E = layer->intermediate;
  norm(pass, pass->normed, pass->x, layer->mlp_norm, layer->mlp_norm_bias, R);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  kv_host_linear(pass->up, pass->normed, layer->up, layer->up_bias, R, D, E);
  float *inner = pass->up;
  if (layer->gated) {
    kv_host_linear(pass->gate, pass->normed, layer->gate, NULL, R, D, E);
    kv_host_swiglu(pass->gate, pass->up, (gsize)R * E);
    inner = pass->gate;
  } else {
    kv_host_relu(pass->up, (gsize)R * E);
  }
  kv_host_linear(pass->added, inner, layer->down, layer->down_bias, R, E, D);
  lap(pass, KV_COMPONENT_MLP, (layer->gated ? 6.0 : 4.0) * R * D * E);
}

static void add_residual(Pass *pass) {
  kv_host_add(pass->x, pass->added, (gsize)pass->rows * pass->weights->hidden);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
}

/* The next token of every span that wants one, from its last row. */
static void sample(Pass *pass) {
  const KvHostWeights *w = pass->weights;
  g_autofree float *logits = g_new(float, w->vocab);
  gsize end = 0;
  for (guint s = 0; s < pass->n_spans; s++) {
    KvHostSpan *span = &pass->spans[s];
    end += span->n_tokens;
    if (!span->sample)
      continue;
    norm(pass, pass->normed, pass->x + (end - 1) * w->hidden, w->final_norm, w->final_norm_bias, 1);
    lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
    kv_host_linear(logits, pass->normed, w->head, NULL, 1, w->hidden, w->vocab);
    lap(pass, KV_COMPONENT_LM_HEAD, 2.0 * w->hidden * w->vocab);
    span->sampled = kv_host_argmax(logits, w->vocab);
    if (span->logits)
      memcpy(span->logits, logits, w->vocab * sizeof *logits);
    lap(pass, KV_COMPONENT_SAMPLING, 0.0);
  }
}

/* What several sequences share is read once, however often it is attended to. */
static void count_shared_once(const Pass *pass) {
  const KvHostCache *cache = pass->cache;
  g_auto(KvHostSharing) sharing = {0};
  if (!cache->compression.shared_over)
    return;
  kv_host_sharing_init(&sharing);
  kv_host_sharing_find(&sharing, pass->spans, pass->n_spans, cache->block_tokens,
                       cache->compression.shared_over);
  for (guint l = 0; l < cache->n_layers; l++)
    pass->work->bytes -= 2.0 * (double)sharing.repeated_tokens * cache->layers[l].n_kv_heads *
                         cache->layers[l].head_dim * sizeof(float);
}

void kv_host_forward(const KvHostWeights *weights, KvHostCache *cache, KvHostSpan *spans,
                     guint n_spans, KvHostWork *work) {
  Pass pass = {.weights = weights,
               .cache = cache,
               .format = kv_host_format(cache->compression.format),
               .spans = spans,
               .n_spans = n_spans,
               .work = work};
  pass_begin(&pass);
  embed(&pass);
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvHostLayer *layer = &weights->layers[l];
    project_inputs(&pass, layer, l);
    store(&pass, l);
    attend(&pass, layer, l);
    compress(&pass, l);
    add_residual(&pass);
    feed_forward(&pass, layer);
    add_residual(&pass);
  }
  sample(&pass);
  count_shared_once(&pass);
  work->bytes += (double)weights->n_parameters * sizeof(float);
  pass_end(&pass);
}
