#include "reference/host/forward.h"

#include <string.h>

#include "reference/host/format.h"
#include "reference/host/recurrent.h"
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
  float *latents;            /* [R][rank + rope]: latent attention's; q through its own in `up` */
  float *absorbed, *mixed;   /* [R][H (rank + rope)], [R][H rank] */
  float *expert;             /* [X + 2 E + D], of one token */
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
  gsize q = 0, kv = 0, E = 0, d = 0, longest = 0, latent = 0, absorbed = 0, expert = 0;
  for (guint l = 0; l < w->n_layers; l++) {
    const KvAttention *a = &w->layers[l].attention;
    const KvMlp *m = &w->layers[l].mlp;
    if (a->kind == KV_ATTENTION_LATENT) {
      latent = MAX(latent, (gsize)a->kv_lora_rank + a->rope_head_dim);
      absorbed = MAX(absorbed, (gsize)a->n_heads * (a->kv_lora_rank + a->rope_head_dim));
      q = MAX(q, (gsize)a->n_heads * a->value_head_dim);
    }
    if (m->n_experts)
      expert = MAX(expert, m->n_experts + 2 * m->expert_intermediate + w->hidden);
    E = MAX(E, MAX(m->shared_intermediate, a->q_lora_rank));
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
                             &pass->up,       &pass->cosine, &pass->sine,  &pass->latents,
                             &pass->absorbed, &pass->mixed};
  const gsize widths[] = {w->hidden, w->hidden, w->hidden, q,     q,      kv,       kv,
                          E,         E,         d / 2,     d / 2, latent, absorbed, absorbed};
  for (guint i = 0; i < G_N_ELEMENTS(buffers); i++)
    *buffers[i] = g_new(float, R *widths[i]);
  pass->scores = g_new(float, longest);
  pass->expert = g_new(float, expert);
  pass->lap_us = g_get_monotonic_time();
}

static void pass_end(Pass *pass) {
  float *const buffers[] = {pass->x,        pass->normed,   pass->added, pass->q,
                            pass->attended, pass->k,        pass->v,     pass->gate,
                            pass->up,       pass->cosine,   pass->sine,  pass->scores,
                            pass->latents,  pass->absorbed, pass->mixed, pass->expert};
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
  double ahead = 0.0, flops = 4.0 * R * D * kv;
  if (pass->format->look_ahead)
    pass->format->look_ahead(&at, &ahead);
  lap(pass, KV_COMPONENT_TECHNIQUE, ahead);
  kv_host_linear(pass->q, pass->normed, layer->query, layer->query_bias, R, D, q);
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

/* Rotate each query's part with position, and the key that all heads share. */
static void rotate_latent(Pass *pass, const KvHostLatent *shape) {
  gsize d = shape->nope + shape->rope, width = shape->rank + shape->rope, half = shape->rope / 2;
  for (gsize r = 0; r < pass->rows; r++) {
    float *cosine = pass->cosine + r * half, *sine = pass->sine + r * half;
    kv_host_rotary_angles(cosine, sine, pass->positions[r], shape->rope, &pass->weights->rotary);
    kv_host_rotary_pairs(pass->latents + r * width + shape->rank, cosine, sine, shape->rope);
    for (guint h = 0; h < shape->n_heads; h++)
      kv_host_rotary_pairs(pass->q + (r * shape->n_heads + h) * d + shape->nope, cosine, sine,
                           shape->rope);
  }
}

/* Queries of every row, absorbed, and latents: normalized, their keys rotated. */
static void project_latents(Pass *pass, const KvHostLayer *layer, const KvHostLatent *shape) {
  const KvHostWeights *w = pass->weights;
  guint R = pass->rows, D = w->hidden, down = layer->attention.q_lora_rank;
  guint d = shape->nope + shape->rope, width = shape->rank + shape->rope, q = shape->n_heads * d;
  norm(pass, pass->normed, pass->x, layer->attention_norm, layer->attention_norm_bias, R);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  if (down) {
    kv_host_linear(pass->up, pass->normed, layer->query_down, NULL, R, D, down);
    kv_host_rms_norm(pass->up, pass->up, layer->query_down_norm, w->epsilon, R, down);
    kv_host_linear(pass->q, pass->up, layer->query_up, NULL, R, down, q);
  } else {
    kv_host_linear(pass->q, pass->normed, layer->query, NULL, R, D, q);
  }
  kv_host_linear(pass->latents, pass->normed, layer->latent, NULL, R, D, width);
  lap(pass, KV_COMPONENT_QKV,
      2.0 * R * ((down ? (double)down * (D + q) : (double)D * q) + (double)D * width));
  for (gsize r = 0; r < R; r++) {
    float *latent = pass->latents + r * width;
    kv_host_rms_norm(latent, latent, layer->latent_norm, w->epsilon, 1, shape->rank);
  }
  rotate_latent(pass, shape);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  for (gsize r = 0; r < R; r++)
    kv_host_absorb_query(pass->absorbed + r * shape->n_heads * width, pass->q + r * q,
                         layer->latent_up, shape);
  lap(pass, KV_COMPONENT_QKV, 2.0 * R * shape->n_heads * shape->nope * (double)shape->rank);
}

static void store_latents(Pass *pass, const KvHostPages *pages) {
  gsize r = 0;
  for (guint s = 0; s < pass->n_spans; s++)
    for (guint32 t = 0; t < pass->spans[s].n_tokens; t++, r++)
      kv_host_pages_write(pages, pass->spans[s].block_table, pass->positions[r],
                          pass->latents + r * pages->head_dim, NULL);
  pass->work->bytes += (double)pass->rows * pages->head_dim * sizeof(float);
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
    double read = span->decoding && pass->format->tokens_read ? pass->format->tokens_read(&at, span)
                                                              : tokens_attended(span, window);
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

static void attend_to_latents(Pass *pass, const KvHostLayer *layer, const KvHostLatent *shape,
                              const KvHostPages *pages) {
  gsize width = shape->rank + shape->rope, H = shape->n_heads, values = H * shape->value, r = 0;
  for (guint s = 0; s < pass->n_spans; s++) {
    const KvHostSpan *span = &pass->spans[s];
    kv_host_latent_attention(pass->mixed + r * H * shape->rank, pass->absorbed + r * H * width,
                             pages, span->block_table, span->past, span->n_tokens, shape,
                             pass->scores);
    r += span->n_tokens;
    double read = tokens_attended(span, 0);
    pass->work->bytes += read * (double)width * sizeof(float);
    lap(pass, span->decoding ? KV_COMPONENT_DECODE_ATTENTION : KV_COMPONENT_PREFILL_ATTENTION,
        2.0 * read * (double)H * (2.0 * shape->rank + shape->rope));
  }
  for (r = 0; r < pass->rows; r++)
    kv_host_expand_latents(pass->attended + r * values, pass->mixed + r * H * shape->rank,
                           layer->latent_up, shape);
  kv_host_linear(pass->added, pass->attended, layer->output, NULL, pass->rows, (guint)values,
                 pass->weights->hidden);
  lap(pass, KV_COMPONENT_OUTPUT_PROJECTION,
      2.0 * pass->rows * (double)values * (shape->rank + (double)pass->weights->hidden));
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

/* A recurrent layer. All its products count as one component, as the simulator prices them. */
static void recur(Pass *pass, const KvHostLayer *layer, guint l) {
  const KvAttention *a = &layer->attention;
  const KvHostMixer *m = &layer->mixer;
  guint R = pass->rows, D = pass->weights->hidden, wide = a->dt_rank + 2 * a->state_dim;
  gsize I = a->inner, kept = (a->conv_width - 1) * I, row = 0;
  g_autofree float *both = g_new(float, 2 * (gsize)R * I), *x = g_new(float, (gsize)R *I);
  g_autofree float *selected = g_new(float, (gsize)R *wide), *delta = g_new(float, R *I);
  norm(pass, pass->normed, pass->x, layer->attention_norm, layer->attention_norm_bias, R);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  kv_host_linear(both, pass->normed, m->in, m->in_bias, R, D, 2 * a->inner);
  lap(pass, KV_COMPONENT_QKV, 4.0 * R * D * a->inner);
  for (guint s = 0; s < pass->n_spans; row += pass->spans[s++].n_tokens) {
    const KvHostSpan *span = &pass->spans[s];
    guint32 block = span->block_table[0];
    kv_host_causal_convolution(x + row * I, both + row * 2 * I, 2 * I, m->conv, m->conv_bias,
                               span->past ? kv_host_cache_state(pass->cache, l, block, span->state)
                                          : NULL,
                               kv_host_cache_state(pass->cache, l, block, !span->state),
                               span->n_tokens, a->inner, a->conv_width);
  }
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  kv_host_linear(selected, x, m->x, NULL, R, a->inner, wide);
  for (guint r = 0; r < R; r++)
    kv_host_linear(delta + r * I, selected + (gsize)r * wide, m->dt, NULL, 1, a->dt_rank, a->inner);
  lap(pass, KV_COMPONENT_QKV, 2.0 * R * I * (wide + (double)a->dt_rank));
  row = 0;
  for (guint s = 0; s < pass->n_spans; row += pass->spans[s++].n_tokens) {
    const KvHostSpan *span = &pass->spans[s];
    guint32 block = span->block_table[0];
    kv_host_selective_scan(
        x + row * I, x + row * I, both + row * 2 * I + I, 2 * I, delta + row * I, m->dt_bias,
        selected + row * wide + a->dt_rank, wide, m->decay, m->skip,
        span->past ? kv_host_cache_state(pass->cache, l, block, span->state) + kept : NULL,
        kv_host_cache_state(pass->cache, l, block, !span->state) + kept, span->n_tokens, a->inner,
        a->state_dim);
    pass->work->bytes += (span->past ? 2.0 : 1.0) * (double)kv_host_state_floats(a) * sizeof(float);
    lap(pass, span->decoding ? KV_COMPONENT_DECODE_ATTENTION : KV_COMPONENT_PREFILL_ATTENTION,
        (6.0 * a->state_dim + 2.0 * a->conv_width) * (double)I * span->n_tokens);
  }
  kv_host_linear(pass->added, x, m->out, m->out_bias, R, a->inner, D);
  lap(pass, KV_COMPONENT_QKV, 2.0 * R * (double)I * D);
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

/* Each row through the experts that the router chooses for it, and through the shared one. */
static void mix_experts(Pass *pass, const KvHostLayer *layer) {
  const KvMlp *m = &layer->mlp;
  guint R = pass->rows, D = pass->weights->hidden, X = m->n_experts, k = m->n_experts_per_token;
  guint S = (guint)m->shared_intermediate;
  const KvHostExperts all = {layer->expert_gate, layer->expert_up, layer->expert_down, D,
                             (guint)m->expert_intermediate};
  g_autofree float *logits = g_new(float, X), *shares = g_new(float, k), *mixed = g_new(float, D);
  g_autofree guint32 *experts = g_new(guint32, k);
  norm(pass, pass->normed, pass->x, layer->mlp_norm, layer->mlp_norm_bias, R);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  if (S) {
    kv_host_linear(pass->gate, pass->normed, layer->shared_gate, NULL, R, D, S);
    kv_host_linear(pass->up, pass->normed, layer->shared_up, NULL, R, D, S);
    kv_host_swiglu(pass->gate, pass->up, (gsize)R * S);
    kv_host_linear(pass->added, pass->gate, layer->shared_down, NULL, R, S, D);
  } else {
    memset(pass->added, 0, (gsize)R * D * sizeof *pass->added);
  }
  for (gsize r = 0; r < R; r++) {
    const float *x = pass->normed + r * D;
    kv_host_linear(logits, x, layer->router, NULL, 1, D, X);
    kv_host_route(experts, shares, logits, X, k, &pass->weights->routing, pass->expert);
    kv_host_mix_experts(mixed, x, &all, experts, shares, k, pass->expert + X);
    kv_host_add(pass->added + r * D, mixed, D);
  }
  lap(pass, KV_COMPONENT_MLP, 2.0 * R * D * (X + 3.0 * ((double)k * all.intermediate + (double)S)));
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
  if (pass.format->begin)
    pass.format->begin(cache, spans, n_spans);
  pass_begin(&pass);
  embed(&pass);
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvHostLayer *layer = &weights->layers[l];
    if (pass.format->enter)
      pass.format->enter(cache, l);
    lap(&pass, KV_COMPONENT_TRANSFER, 0.0);
    if (layer->attention.kind == KV_ATTENTION_NONE) {
      recur(&pass, layer, l);
      add_residual(&pass);
      continue;
    }
    if (layer->attention.kind == KV_ATTENTION_LATENT) {
      const KvHostLatent shape = kv_host_latent_of(&layer->attention, &weights->rotary);
      project_latents(&pass, layer, &shape);
      store_latents(&pass, &cache->layers[l]);
      attend_to_latents(&pass, layer, &shape, &cache->layers[l]);
    } else {
      project_inputs(&pass, layer, l);
      store(&pass, l);
      attend(&pass, layer, l);
      compress(&pass, l);
    }
    add_residual(&pass);
    if (layer->mlp.n_experts)
      mix_experts(&pass, layer);
    else
      feed_forward(&pass, layer);
    add_residual(&pass);
    if (pass.format->leave)
      pass.format->leave(cache, l);
    lap(&pass, KV_COMPONENT_TRANSFER, 0.0);
  }
  sample(&pass);
  count_shared_once(&pass);
  work->bytes += (double)weights->n_parameters * sizeof(float);
  pass_end(&pass);
  if (pass.format->end)
    pass.format->end(cache, spans, n_spans);
}
