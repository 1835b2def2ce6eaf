/* Whole models against a naive twin in double precision without any cache: it computes every token
 * of the sequence anew for each token that it generates. And the weights that both read. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/executor.h"
#include "reference/host/weights.h"
#include "tests/reference/tiny_models.h"

enum { SEED = 7, PROMPT = 21, OUTPUT = 20, LONGEST = PROMPT + OUTPUT, WIDEST = 256 };

/* y[N] = x[K] w[K][N] + b[N]. */
static void twin_linear(double *y, const double *x, const float *w, const float *b, guint K,
                        guint N) {
  for (guint n = 0; n < N; n++) {
    y[n] = b ? b[n] : 0.0;
    for (guint k = 0; k < K; k++)
      y[n] += x[k] * w[k * N + n];
  }
}

/* With a bias, LayerNorm; without, RMSNorm. */
static void twin_norm(double *y, const double *x, const float *gain, const float *bias, guint D) {
  double mean = 0.0, variance = 0.0;
  for (guint i = 0; bias && i < D; i++)
    mean += x[i] / D;
  for (guint i = 0; i < D; i++)
    variance += (x[i] - mean) * (x[i] - mean) / D;
  for (guint i = 0; i < D; i++)
    y[i] = (x[i] - mean) / sqrt(variance + 1e-5) * gain[i] + (bias ? bias[i] : 0.0);
}

static void twin_head(double *x, const float *gain, gboolean rotary, guint position, guint d) {
  if (gain)
    twin_norm(x, x, gain, NULL, d);
  for (guint i = 0; rotary && i < d / 2; i++) {
    double angle = position / pow(10000.0, 2.0 * i / d), a = x[i], b = x[i + d / 2];
    x[i] = a * cos(angle) - b * sin(angle);
    x[i + d / 2] = a * sin(angle) + b * cos(angle);
  }
}

/* out[H d] of the query at `last`, whose window begins at `first`. */
static void twin_attend(double *out, const double *q, double (*k)[WIDEST], double (*v)[WIDEST],
                        const KvAttention *a, guint first, guint last) {
  guint d = a->head_dim;
  for (guint h = 0; h < a->n_heads; h++) {
    guint kv = h / (a->n_heads / a->n_kv_heads) * d;
    double total = 0.0, weighted[WIDEST] = {0};
    for (guint j = first; j <= last; j++) {
      double dot = 0.0;
      for (guint i = 0; i < d; i++)
        dot += q[h * d + i] * k[j][kv + i];
      double p = exp(dot / sqrt((double)d));
      total += p;
      for (guint i = 0; i < d; i++)
        weighted[i] += p * v[j][kv + i];
    }
    for (guint i = 0; i < d; i++)
      out[h * d + i] = weighted[i] / total;
  }
}

static void twin_attention(double (*x)[WIDEST], const KvHostWeights *w, const KvHostLayer *layer,
                           guint n) {
  static double q[LONGEST][WIDEST], k[LONGEST][WIDEST], v[LONGEST][WIDEST];
  const KvAttention *a = &layer->attention;
  guint d = a->head_dim, D = w->hidden;
  for (guint t = 0; t < n; t++) {
    double normed[WIDEST];
    twin_norm(normed, x[t], layer->attention_norm, layer->attention_norm_bias, D);
    twin_linear(q[t], normed, layer->query, layer->query_bias, D, a->n_heads * d);
    twin_linear(k[t], normed, layer->key, layer->key_bias, D, a->n_kv_heads * d);
    twin_linear(v[t], normed, layer->value, layer->value_bias, D, a->n_kv_heads * d);
    for (guint h = 0; h < a->n_heads; h++)
      twin_head(q[t] + (gsize)h * d, layer->query_norm, !w->positions, t, d);
    for (guint h = 0; h < a->n_kv_heads; h++)
      twin_head(k[t] + (gsize)h * d, layer->key_norm, !w->positions, t, d);
  }
  for (guint t = 0; t < n; t++) {
    double attended[WIDEST], added[WIDEST];
    gboolean slides = a->kind == KV_ATTENTION_SLIDING && t >= a->window_tokens;
    twin_attend(attended, q[t], k, v, a, slides ? t + 1 - a->window_tokens : 0, t);
    twin_linear(added, attended, layer->output, layer->output_bias, a->n_heads * d, D);
    for (guint i = 0; i < D; i++)
      x[t][i] += added[i];
  }
}

static void twin_pairs(double *x, guint position, guint d) {
  for (guint i = 0; i < d / 2; i++) {
    double angle = position / pow(10000.0, 2.0 * i / d), a = x[(gsize)2 * i],
           b = x[(gsize)2 * i + 1];
    x[(gsize)2 * i] = a * cos(angle) - b * sin(angle);
    x[2 * i + 1] = a * sin(angle) + b * cos(angle);
  }
}

/* Every head's keys and values made of the latents, as DeepSeek-V2 (2024) writes it down. */
static void twin_latent_attention(double (*x)[WIDEST], const KvHostWeights *w,
                                  const KvHostLayer *layer, guint n) {
  static double q[LONGEST][WIDEST], k[LONGEST][WIDEST], v[LONGEST][WIDEST];
  const KvAttention *a = &layer->attention;
  guint D = w->hidden, d = a->head_dim, rope = a->rope_head_dim, nope = d - rope;
  guint rank = a->kv_lora_rank, of_value = a->value_head_dim, H = a->n_heads;
  for (guint t = 0; t < n; t++) {
    double normed[WIDEST], low[WIDEST], latent[WIDEST], up[WIDEST];
    twin_norm(normed, x[t], layer->attention_norm, NULL, D);
    if (a->q_lora_rank) {
      twin_linear(low, normed, layer->query_down, NULL, D, a->q_lora_rank);
      twin_norm(low, low, layer->query_down_norm, NULL, a->q_lora_rank);
      twin_linear(q[t], low, layer->query_up, NULL, a->q_lora_rank, H * d);
    } else {
      twin_linear(q[t], normed, layer->query, NULL, D, H * d);
    }
    twin_linear(latent, normed, layer->latent, NULL, D, rank + rope);
    twin_norm(latent, latent, layer->latent_norm, NULL, rank);
    twin_pairs(latent + rank, t, rope);
    twin_linear(up, latent, layer->latent_up, NULL, rank, H * (nope + of_value));
    for (guint h = 0; h < H; h++) {
      twin_pairs(q[t] + (gsize)h * d + nope, t, rope);
      memcpy(k[t] + (gsize)h * d, up + (gsize)h * (nope + of_value), nope * sizeof(double));
      memcpy(k[t] + (gsize)h * d + nope, latent + rank, rope * sizeof(double));
      memcpy(v[t] + (gsize)h * of_value, up + (gsize)h * (nope + of_value) + nope,
             of_value * sizeof(double));
    }
  }
  for (guint t = 0; t < n; t++) {
    double attended[WIDEST] = {0}, added[WIDEST];
    for (guint h = 0; h < H; h++) {
      double p[LONGEST], total = 0.0;
      for (guint j = 0; j <= t; j++) {
        double dot = 0.0;
        for (guint i = 0; i < d; i++)
          dot += q[t][h * d + i] * k[j][h * d + i];
        total += p[j] = exp(dot / sqrt((double)d));
      }
      for (guint j = 0; j <= t; j++)
        for (guint i = 0; i < of_value; i++)
          attended[h * of_value + i] += p[j] / total * v[j][h * of_value + i];
    }
    twin_linear(added, attended, layer->output, NULL, H * of_value, D);
    for (guint i = 0; i < D; i++)
      x[t][i] += added[i];
  }
}

/* x += share * a gated MLP of normed. */
static void twin_expert(double *x, const double *normed, const float *gate, const float *up,
                        const float *down, guint D, guint E, double share) {
  double g[WIDEST], u[WIDEST], added[WIDEST];
  twin_linear(g, normed, gate, NULL, D, E);
  twin_linear(u, normed, up, NULL, D, E);
  for (guint i = 0; i < E; i++)
    u[i] *= g[i] / (1.0 + exp(-g[i]));
  twin_linear(added, u, down, NULL, E, D);
  for (guint i = 0; i < D; i++)
    x[i] += share * added[i];
}

/* An expert is chosen if fewer than k others have a greater logit; softmax over the chosen. */
static void twin_mixture(double *x, const KvHostWeights *w, const KvHostLayer *layer) {
  const KvMlp *m = &layer->mlp;
  guint D = w->hidden, X = m->n_experts, E = (guint)m->expert_intermediate;
  double normed[WIDEST], logits[WIDEST], total = 0.0;
  gboolean chosen[WIDEST];
  twin_norm(normed, x, layer->mlp_norm, NULL, D);
  twin_linear(logits, normed, layer->router, NULL, D, X);
  for (guint e = 0; e < X; e++) {
    guint greater = 0;
    for (guint other = 0; other < X; other++)
      greater += logits[other] > logits[e];
    chosen[e] = greater < m->n_experts_per_token;
    total += chosen[e] ? exp(logits[e]) : 0.0;
  }
  for (guint e = 0; e < X; e++)
    if (chosen[e])
      twin_expert(x, normed, layer->expert_gate + (gsize)e * D * E,
                  layer->expert_up + (gsize)e * D * E, layer->expert_down + (gsize)e * D * E, D, E,
                  exp(logits[e]) / total);
  if (m->shared_intermediate)
    twin_expert(x, normed, layer->shared_gate, layer->shared_up, layer->shared_down, D,
                (guint)m->shared_intermediate, 1.0);
}

static void twin_mlp(double *x, const KvHostWeights *w, const KvHostLayer *layer) {
  guint D = w->hidden, E = layer->intermediate;
  double normed[WIDEST], gate[WIDEST], inner[WIDEST], added[WIDEST];
  if (layer->mlp.n_experts) {
    twin_mixture(x, w, layer);
    return;
  }
  twin_norm(normed, x, layer->mlp_norm, layer->mlp_norm_bias, D);
  twin_linear(inner, normed, layer->up, layer->up_bias, D, E);
  if (layer->gated)
    twin_linear(gate, normed, layer->gate, NULL, D, E);
  for (guint i = 0; i < E; i++)
    inner[i] = layer->gated ? inner[i] * gate[i] / (1.0 + exp(-gate[i])) : fmax(inner[i], 0.0);
  twin_linear(added, inner, layer->down, layer->down_bias, E, D);
  for (guint i = 0; i < D; i++)
    x[i] += added[i];
}

/* The token after tokens[n]. */
static guint32 twin_next(const KvHostWeights *w, const guint32 *tokens, guint n) {
  static double x[LONGEST][WIDEST];
  double normed[WIDEST], logits[WIDEST];
  guint D = w->hidden;
  guint32 best = 0;
  for (guint t = 0; t < n; t++)
    for (guint i = 0; i < D; i++)
      x[t][i] = (double)w->embedding[tokens[t] * D + i] +
                (w->positions ? (double)w->positions[t * D + i] : 0.0);
  for (guint l = 0; l < w->n_layers; l++) {
    if (w->layers[l].attention.kind == KV_ATTENTION_LATENT)
      twin_latent_attention(x, w, &w->layers[l], n);
    else
      twin_attention(x, w, &w->layers[l], n);
    for (guint t = 0; t < n; t++)
      twin_mlp(x[t], w, &w->layers[l]);
  }
  twin_norm(normed, x[n - 1], w->final_norm, w->final_norm_bias, D);
  twin_linear(logits, normed, w->head, NULL, D, w->vocab);
  for (guint32 v = 1; v < w->vocab; v++)
    if (logits[v] > logits[best])
      best = v;
  return best;
}

static void test_tokens_are_those_of_the_twin(void) {
  for (guint m = 0; m < G_N_ELEMENTS(models); m++) {
    g_autoptr(KvHostWeights) weights = kv_host_weights_new(models[m], SEED, NULL);
    KvExecutor *executor = kv_host_executor_new(models[m], 4, 16, 0, 0, SEED, NULL);
    guint32 blocks[11], tokens[LONGEST];
    for (guint i = 0; i < 11; i++)
      blocks[i] = 3 + i;
    KvSequence sequence = {.index = 5,
                           .input_tokens = PROMPT,
                           .block_ids = blocks,
                           .n_block_ids = 11,
                           .computed_tokens = PROMPT};
    KvSequence *member = &sequence;
    KvChunk chunk = {&sequence, 0, PROMPT, TRUE};
    KvStep prefill = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
    KvStep decode = {.decode = {.n = 1, .members = &member}, .repeat = OUTPUT - 1};
    KvStepCost cost;
    g_assert_true(executor->class->step(executor, &prefill, &cost, NULL));
    g_assert_true(executor->class->step(executor, &decode, &cost, NULL));
    for (guint32 i = 0; i < PROMPT; i++)
      tokens[i] = kv_sequence_prompt_token(&sequence, i, 0, models[m]->vocab);
    for (guint n = PROMPT; n < LONGEST; n++)
      tokens[n] = twin_next(weights, tokens, n);
    guint n_output;
    const guint32 *output = kv_host_executor_output(executor, &sequence, &n_output);
    g_assert_cmpmem(output, n_output * sizeof *output, tokens + PROMPT, OUTPUT * sizeof *tokens);
    executor->class->forget(executor, &sequence);
    executor->class->destroy(executor);
  }
}

static void test_weights_follow_the_seed(void) {
  g_autoptr(KvHostWeights) a = kv_host_weights_new(&llama, 1, NULL);
  g_autoptr(KvHostWeights) b = kv_host_weights_new(&llama, 1, NULL);
  g_autoptr(KvHostWeights) c = kv_host_weights_new(&llama, 2, NULL);
  gsize bytes = (gsize)64 * 32 * sizeof(float);
  g_assert_cmpmem(a->layers[1].key, bytes, b->layers[1].key, bytes);
  g_assert_cmpint(memcmp(a->layers[1].key, c->layers[1].key, bytes), !=, 0);
  g_assert_cmpint(memcmp(a->layers[1].key, a->layers[1].value, bytes), !=, 0);
  g_assert_cmpint(memcmp(a->layers[1].key, a->layers[0].key, bytes), !=, 0);
}

static void test_a_tied_head_is_the_embedding(void) {
  g_autoptr(KvHostWeights) w = kv_host_weights_new(&opt, SEED, NULL);
  for (guint v = 0; v < w->vocab; v++)
    for (guint i = 0; i < w->hidden; i++)
      g_assert_cmpfloat(w->head[i * w->vocab + v], ==, w->embedding[v * w->hidden + i]);
}

/* Written out for the OPT-like model: embeddings, positions, final norm, and per layer four
 * projections with biases, two norms, two MLP matrices with biases. */
static void test_parameters_are_counted(void) {
  g_autoptr(KvHostWeights) w = kv_host_weights_new(&opt, SEED, NULL);
  guint64 layer = 4 * (60 * 60 + 60) + 2 * 2 * 60 + 2 * 60 * 120 + 120 + 60;
  g_assert_cmpuint(w->n_parameters, ==, 199 * 60 + 128 * 60 + 2 * 60 + 2 * layer);
  for (guint m = 3; m < G_N_ELEMENTS(models); m++) { /* latents and experts, as the simulator */
    g_autoptr(KvHostWeights) other = kv_host_weights_new(models[m], SEED, NULL);
    KvModel whole = *models[m];
    whole.embedding_dim = whole.hidden;
    g_assert_cmpuint(other->n_parameters, ==, kv_model_parameters(&whole));
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/forward/twin", test_tokens_are_those_of_the_twin);
  g_test_add_func("/reference/forward/seed", test_weights_follow_the_seed);
  g_test_add_func("/reference/forward/tied-head", test_a_tied_head_is_the_embedding);
  g_test_add_func("/reference/forward/parameters", test_parameters_are_counted);
  return g_test_run();
}
