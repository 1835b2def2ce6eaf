#include "reference/host/forward.h"

#include <string.h>

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

void kv_host_forward(const KvHostWeights *weights, KvHostCache *cache, KvHostSpan *spans,
                     guint n_spans, KvHostWork *work) {
  Pass pass = {
      .weights = weights, .cache = cache, .spans = spans, .n_spans = n_spans, .work = work};
  pass_begin(&pass);
  embed(&pass);
  for (guint l = 0; l < weights->n_layers; l++) {
    const KvHostLayer *layer = &weights->layers[l];
    if (layer->attention.kind == KV_ATTENTION_LATENT) {
      const KvHostLatent shape = kv_host_latent_of(&layer->attention, &weights->rotary);
      project_latents(&pass, layer, &shape);
      store_latents(&pass, &cache->layers[l]);
      attend_to_latents(&pass, layer, &shape, &cache->layers[l]);
    } else {
      project_inputs(&pass, layer);
      store(&pass, layer, &cache->layers[l]);
      attend(&pass, layer, &cache->layers[l], l);
      compress(&pass, layer, &cache->layers[l], l);
    }
    add_residual(&pass);
    if (layer->mlp.n_experts)
      mix_experts(&pass, layer);
    else
      feed_forward(&pass, layer);
    add_residual(&pass);
  }
  sample(&pass);
  work->bytes += (double)weights->n_parameters * sizeof(float);
  pass_end(&pass);
}
