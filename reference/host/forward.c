#include "reference/host/forward.h"

#include <string.h>

#include "reference/host/recurrent.h"

/* The pass under way. R rows: the spans' tokens one after another. */
typedef struct {
  const KvHostWeights *weights;
  KvHostCache *cache;
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

/* Rotate queries and keys by their positions. */
static void rotate(Pass *pass, const KvAttention *a) {
  gsize d = a->head_dim, half = d / 2;
  for (gsize r = 0; r < pass->rows; r++) {
    float *cosine = pass->cosine + r * half, *sine = pass->sine + r * half;
    kv_host_rotary_angles(cosine, sine, pass->positions[r], a->head_dim, &pass->weights->rotary);
    kv_host_rotary(pass->q + r * a->n_heads * d, cosine, sine, a->n_heads, a->head_dim);
    kv_host_rotary(pass->k + r * a->n_kv_heads * d, cosine, sine, a->n_kv_heads, a->head_dim);
  }
}

/* q, k, v of every row, normalized and rotated where the model does that. */
static void project_inputs(Pass *pass, const KvHostLayer *layer) {
  const KvAttention *a = &layer->attention;
  guint R = pass->rows, D = pass->weights->hidden;
  guint q = a->n_heads * a->head_dim, kv = a->n_kv_heads * a->head_dim;
  norm(pass, pass->normed, pass->x, layer->attention_norm, layer->attention_norm_bias, R);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  kv_host_linear(pass->q, pass->normed, layer->query, layer->query_bias, R, D, q);
  kv_host_linear(pass->k, pass->normed, layer->key, layer->key_bias, R, D, kv);
  kv_host_linear(pass->v, pass->normed, layer->value, layer->value_bias, R, D, kv);
  lap(pass, KV_COMPONENT_QKV, 2.0 * R * D * (q + 2.0 * kv));
  if (layer->query_norm) {
    kv_host_rms_norm(pass->q, pass->q, layer->query_norm, pass->weights->epsilon, R * a->n_heads,
                     a->head_dim);
    kv_host_rms_norm(pass->k, pass->k, layer->key_norm, pass->weights->epsilon, R * a->n_kv_heads,
                     a->head_dim);
  }
  if (!pass->weights->positions)
    rotate(pass, a);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
}

/* One more token: what leaves the exact rest is packed. */
static void kivi_append(const KvHostCompression *c, const KvHostPages *pages,
                        const KvHostSpan *span) {
  guint32 n = span->past + 1;
  kv_host_kivi_pack_keys(c, pages, span->block_table, kv_host_kivi_packed_keys(c, n - 1),
                         kv_host_kivi_packed_keys(c, n));
  kv_host_kivi_pack_values(c, pages, span->block_table, kv_host_kivi_packed_values(c, n - 1),
                           kv_host_kivi_packed_values(c, n));
}

static void store(Pass *pass, const KvHostLayer *layer, const KvHostPages *pages) {
  gsize width = (gsize)layer->attention.n_kv_heads * layer->attention.head_dim, r = 0;
  const KvHostCompression *c = &pass->cache->compression;
  for (gsize i = 0; c->format == KV_HOST_FP8 && i < pass->rows * width; i++) {
    pass->k[i] = kv_host_round_e4m3(pass->k[i]);
    pass->v[i] = kv_host_round_e4m3(pass->v[i]);
  }
  for (guint s = 0; s < pass->n_spans; s++)
    for (guint32 t = 0; t < pass->spans[s].n_tokens; t++, r++)
      kv_host_pages_write(pages, pass->spans[s].block_table,
                          pass->positions[r] - pass->spans[s].dropped, pass->k + r * width,
                          pass->v + r * width);
  pass->work->bytes += 2.0 * (double)pass->rows * (double)width * sizeof(float);
  lap(pass, KV_COMPONENT_ELEMENTWISE, 0.0);
  for (guint s = 0; c->format == KV_HOST_KIVI && s < pass->n_spans; s++)
    if (pass->spans[s].decoding)
      kivi_append(c, pages, &pass->spans[s]);
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

static void attend(Pass *pass, const KvHostLayer *layer, const KvHostPages *pages, guint l) {
  const KvAttention *a = &layer->attention;
  guint window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0;
  gsize width = (gsize)a->n_heads * a->head_dim, r = 0;
  const KvHostCompression *c = &pass->cache->compression;
  gboolean chooses = c->format == KV_HOST_QUEST && l >= c->dense_layers;
  for (guint s = 0; s < pass->n_spans; s++) {
    const KvHostSpan *span = &pass->spans[s];
    if (chooses && span->decoding)
      kv_host_quest_attention(c, pass->attended + r * width, pass->q + r * width, pages,
                              span->block_table, span->past + 1, a->n_heads, pass->scores);
    else
      kv_host_attention(pass->attended + r * width, pass->q + r * width, pages, span->block_table,
                        span->past - span->dropped, span->n_tokens, a->n_heads, window,
                        pass->scores);
    r += span->n_tokens;
    double read = tokens_attended(span, window);
    pass->work->bytes += 2.0 * read * a->n_kv_heads * a->head_dim * sizeof(float);
    lap(pass, span->decoding ? KV_COMPONENT_DECODE_ATTENTION : KV_COMPONENT_PREFILL_ATTENTION,
        4.0 * read * (double)width);
  }
  kv_host_linear(pass->added, pass->attended, layer->output, layer->output_bias, pass->rows,
                 (guint)width, pass->weights->hidden);
  lap(pass, KV_COMPONENT_OUTPUT_PROJECTION,
      2.0 * pass->rows * (double)width * pass->weights->hidden);
}

/* Keep the queries of the span that lie in the window at the prompt's end; q: its first row. */
static void keep_window(const Pass *pass, const KvHostSpan *span, const float *q, float *window,
                        gsize width) {
  guint32 first = span->prompt_tokens - pass->cache->compression.window;
  for (guint32 t = 0; t < span->n_tokens; t++)
    if (span->past + t >= first && span->past + t < span->prompt_tokens)
      memcpy(window + (span->past + t - first) * width, q + t * width, width * sizeof *q);
}

/* Cut the prompt's tokens of this layer to the budget. */
static void cut_prompt(const Pass *pass, const KvHostPages *pages, const KvHostSpan *span,
                       const float *window, guint n_heads) {
  const KvHostCompression *c = &pass->cache->compression;
  gsize voted = span->prompt_tokens - c->window;
  g_autofree float *votes = g_new(float, pages->n_kv_heads *voted);
  g_autofree guint32 *kept = g_new(guint32, (gsize)pages->n_kv_heads * c->budget);
  kv_host_snapkv_vote(votes, window, pages, span->block_table, span->prompt_tokens, n_heads,
                      c->window, pass->scores);
  for (guint h = 0; h < pages->n_kv_heads; h++)
    kv_host_snapkv_select(c, kept + (gsize)h * c->budget, votes + h * voted, span->prompt_tokens);
  kv_host_snapkv_compact(c, pages, span->block_table, kept, span->prompt_tokens,
                         span->past + span->n_tokens);
}

/* What a technique does to a layer's cache once a prompt has attended to itself. */
static void compress(Pass *pass, const KvHostLayer *layer, const KvHostPages *pages, guint l) {
  const KvHostCompression *c = &pass->cache->compression;
  gsize width = (gsize)layer->attention.n_heads * layer->attention.head_dim, row = 0;
  for (guint s = 0; s < pass->n_spans; row += pass->spans[s++].n_tokens) {
    const KvHostSpan *span = &pass->spans[s];
    guint32 n = span->past + span->n_tokens;
    if (c->format == KV_HOST_KIVI && span->last) {
      kv_host_kivi_pack_keys(c, pages, span->block_table, 0, kv_host_kivi_packed_keys(c, n));
      kv_host_kivi_pack_values(c, pages, span->block_table, 0, kv_host_kivi_packed_values(c, n));
    }
    if (span->decoding || !kv_host_compression_dropped(c, span->prompt_tokens))
      continue;
    float *window = kv_host_cache_window(pass->cache, pass->weights, span->owner)[l];
    keep_window(pass, span, pass->q + row * width, window, width);
    if (!span->last)
      continue;
    cut_prompt(pass, pages, span, window, layer->attention.n_heads);
    if (l + 1 == pass->weights->n_layers)
      kv_host_cache_drop_window(pass->cache, span->owner);
  }
  lap(pass, KV_COMPONENT_TECHNIQUE, 0.0);
}

/* A recurrent layer. All its products count as one component, as the simulator prices them. */
static void recur(Pass *pass, const KvHostLayer *layer, guint l) {
  const KvAttention *a = &layer->attention;
  const KvHostMixer *m = &layer->mixer;
  guint R = pass->rows, D = pass->weights->hidden, wide = a->dt_rank + 2 * a->state_dim;
  gsize I = a->inner, kept = (a->conv_width - 1) * I, row = 0;
  g_autofree float *both = g_new(float, 2 * R * I), *x = g_new(float, R *I);
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

void kv_host_forward(const KvHostWeights *weights, KvHostCache *cache, KvHostSpan *spans,
                     guint n_spans, KvHostWork *work) {
  Pass pass = {
      .weights = weights, .cache = cache, .spans = spans, .n_spans = n_spans, .work = work};
  pass_begin(&pass);
  embed(&pass);
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvHostLayer *layer = &weights->layers[l];
    if (layer->attention.kind == KV_ATTENTION_NONE) {
      recur(&pass, layer, l);
      add_residual(&pass);
      continue;
    }
    project_inputs(&pass, layer);
    store(&pass, layer, &cache->layers[l]);
    attend(&pass, layer, &cache->layers[l], l);
    compress(&pass, layer, &cache->layers[l], l);
    add_residual(&pass);
    feed_forward(&pass, layer);
    add_residual(&pass);
  }
  sample(&pass);
  work->bytes += (double)weights->n_parameters * sizeof(float);
  pass_end(&pass);
}
