#include "reference/cuda/count.h"

/* Tokens of context that the span's queries see together. */
static double tokens_attended(const KvHostSpan *span, guint window) {
  double past = (double)span->past - span->dropped;
  double first = past + 1.0, last = past + span->n_tokens;
  if (window == 0 || last <= window)
    return 0.5 * (first + last) * span->n_tokens;
  double sum = 0.0;
  for (guint32 t = 0; t < span->n_tokens; t++)
    sum += MIN((double)window, first + t);
  return sum;
}

/* A recurrent layer: its state is read, unless it begins, and written. */
static void count_scan(const KvCudaCount *c, guint l, double *flops, double *bytes) {
  const KvAttention *a = &c->weights->layers[l].attention;
  double state = (double)(c->cache->layers[l].value_offset * sizeof(KvBf16));
  for (guint s = 0; s < c->n_spans; s++) {
    *flops += (6.0 * a->state_dim + 2.0 * a->conv_width) * a->inner * c->spans[s].n_tokens;
    *bytes += (c->spans[s].past ? 2.0 : 1.0) * state;
  }
}

/* FLOPs of one query's attention to one token. */
static double flops_of_token(const KvAttention *a) {
  return a->kind == KV_ATTENTION_LATENT
             ? 2.0 * a->n_heads * (2.0 * a->kv_lora_rank + a->rope_head_dim)
             : 4.0 * a->n_heads * a->head_dim;
}

/* What the rows' experts take; of their weights, those of as many experts as rows choose, if no two
 * choose the same. */
static void count_experts(const KvMlp *m, double hidden, double rows, double *flops,
                          double *bytes) {
  double parameters = 3.0 * hidden * (double)m->expert_intermediate;
  double chosen = rows * m->n_experts_per_token;
  *flops += 2.0 * parameters * chosen;
  *bytes += parameters * sizeof(KvBf16) * MIN(chosen, (double)m->n_experts);
}

static void count_attention(const KvCudaCount *c, guint l, double *flops, double *bytes) {
  const KvAttention *a = &c->weights->layers[l].attention;
  guint window = a->kind == KV_ATTENTION_SLIDING ? a->window_tokens : 0;
  gsize elements = c->cache->layers[l].block_elements;
  if (elements == 0 && l > 0) /* the layer reads those of the one before */
    elements = c->cache->layers[l - 1].block_elements;
  double token_bytes = (double)(elements * sizeof(KvBf16)) / c->cache->block_tokens;
  for (guint s = 0; s < c->n_spans; s++) {
    const KvHostSpan *span = &c->spans[s];
    double held = (double)span->past + span->n_tokens - span->dropped;
    double read = window ? MIN(held, (double)window + span->n_tokens) : held;
    *flops += tokens_attended(span, window) * flops_of_token(a);
    *bytes += (read + span->n_tokens) * token_bytes;
  }
  *flops -= c->unread_tokens[l] * flops_of_token(a);
  *bytes -= (c->unread_tokens[l] + c->repeated_tokens) * token_bytes;
}

void kv_cuda_count(const KvCudaCount *c, double *flops, double *bytes) {
  const KvCudaWeights *w = c->weights;
  double rows = 0.0;
  for (guint s = 0; s < c->n_spans; s++)
    rows += c->spans[s].n_tokens;
  *flops +=
      2.0 * w->layer_parameters * rows + 2.0 * w->hidden * (double)w->vocab * MIN(c->samples, rows);
  *bytes += w->bytes;
  for (guint l = 0; l < w->n_layers; l++) {
    if (w->layers[l].attention.kind == KV_ATTENTION_NONE) {
      count_scan(c, l, flops, bytes);
      continue;
    }
    if (w->layers[l].mlp.n_experts)
      count_experts(&w->layers[l].mlp, w->hidden, rows, flops, bytes);
    count_attention(c, l, flops, bytes);
  }
}
