#include "models/llm/llm.h"

#include <string.h>

const char *const kv_attention_kind_names[] = {"full", "sliding", "latent", "none", NULL};

KvModel *kv_model_copy(const KvModel *model) {
  KvModel *copy = g_memdup2(model, sizeof *model);
  copy->id = g_strdup(model->id);
  copy->name = g_strdup(model->name);
  copy->source = g_strdup(model->source);
  copy->groups = g_memdup2(model->groups, model->n_groups * sizeof *model->groups);
  return copy;
}

void kv_model_free(KvModel *model) {
  if (!model)
    return;
  g_free(model->id);
  g_free(model->name);
  g_free(model->source);
  g_free(model->groups);
  g_free(model);
}

guint kv_model_layers(const KvModel *model) {
  guint layers = 0;
  for (guint i = 0; i < model->n_groups; i++)
    layers += model->groups[i].count;
  return layers;
}

void kv_attention_set_mamba(KvAttention *a, guint hidden, guint inner, guint state_dim,
                            guint conv_width, guint dt_rank) {
  guint64 D = hidden, I = inner, N = state_dim, W = conv_width, R = dt_rank;
  a->kind = KV_ATTENTION_NONE;
  a->inner = inner;
  a->state_dim = state_dim;
  a->conv_width = conv_width;
  a->dt_rank = dt_rank;
  a->state_elements = I * (W + N);
  /* in_proj, convolution with bias, x_proj, dt_proj with bias, A, D and out_proj, in this order. */
  a->mixer_parameters = D * 2 * I + I * (W + 1) + I * (R + 2 * N) + R * I + I + I * N + I + I * D +
                        (a->bias ? 2 * I + D : 0);
}

KvLayerGroup *kv_model_split_group(KvModel *model, guint group, guint layers) {
  g_return_val_if_fail(group < model->n_groups && layers > 0 && layers < model->groups[group].count,
                       NULL);
  model->groups = g_renew(KvLayerGroup, model->groups, model->n_groups + 1);
  KvLayerGroup *x = &model->groups[group];
  memmove(x + 1, x, (model->n_groups - group) * sizeof *x);
  model->n_groups++;
  x[0].count -= layers;
  x[1].count = layers;
  return x + 1;
}

/* Counts are summed as doubles: exact below 2^53, and no number of a file can overflow them. */

static double attention_parameters(const KvAttention *a, double hidden) {
  double h = a->n_heads, hkv = a->n_kv_heads, dk = a->head_dim, dv = a->value_head_dim;
  double norms = a->qk_norm ? 2 * dk : 0;
  switch (a->kind) {
  case KV_ATTENTION_NONE:
    return (double)a->mixer_parameters;
  case KV_ATTENTION_LATENT: {
    /* DeepSeek-V2 (2024), section 2.1: W_DQ, W_UQ, W_DKV with W_KR, W_UK with W_UV, W_O. */
    double r = a->kv_lora_rank, rope = a->rope_head_dim, rq = a->q_lora_rank;
    double queries = rq > 0 ? hidden * rq + rq + rq * h * dk : hidden * h * dk;
    return queries + hidden * (r + rope) + r + r * h * (dk - rope + dv) + h * dv * hidden + norms +
           (double)a->mixer_parameters;
  }
  case KV_ATTENTION_FULL:
  case KV_ATTENTION_SLIDING:
    break;
  }
  if (a->borrows_cache)
    hkv = 0;
  double biases = a->bias ? h * dk + hkv * (dk + dv) + hidden : 0;
  return hidden * (h * dk + hkv * (dk + dv)) + h * dv * hidden + biases + norms +
         (double)a->mixer_parameters;
}

static double mlp_parameters(double intermediate, gboolean gated, double hidden) {
  return (gated ? 3 : 2) * hidden * intermediate;
}

/* Parameters of everything but the experts, of all routed experts, and of the experts of one token.
 */
static void count_parameters(const KvModel *m, double *plain, double *experts, double *active) {
  double d = m->hidden, e = m->embedding_dim;
  double norm = d * (m->norm == KV_NORM_LAYER ? 2 : 1);
  double tables = m->vocab * e * (m->tied_embeddings ? 1 : 2);
  *plain = tables + (e != d ? 2 * e * d : 0) + norm;
  if (m->learned_positions)
    *plain += (double)m->max_context_tokens * d;
  *experts = *active = 0;
  for (guint i = 0; i < m->n_groups; i++) {
    const KvLayerGroup *g = &m->groups[i];
    const KvMlp *mlp = &g->mlp;
    gboolean mixes_only = mlp->intermediate + mlp->shared_intermediate + mlp->n_experts == 0;
    double layer = attention_parameters(&g->attention, d) + (mixes_only ? 1 : 2) * norm +
                   mlp_parameters((double)mlp->intermediate, mlp->gated, d) +
                   mlp_parameters((double)mlp->shared_intermediate, mlp->gated, d) +
                   d * mlp->n_experts; /* the router */
    if (g->attention.bias && !mlp->gated)
      layer += (double)mlp->intermediate + d;
    double expert = mlp_parameters((double)mlp->expert_intermediate, mlp->gated, d);
    *plain += g->count * layer;
    *experts += g->count * expert * mlp->n_experts;
    *active += g->count * expert * mlp->n_experts_per_token;
  }
}

guint64 kv_model_parameters(const KvModel *model) {
  double plain, experts, active;
  count_parameters(model, &plain, &experts, &active);
  return (guint64)MIN(plain + experts, 1e18);
}

guint64 kv_model_active_parameters(const KvModel *model) {
  double plain, experts, active;
  count_parameters(model, &plain, &experts, &active);
  return (guint64)MIN(plain + active, 1e18);
}

double kv_model_weight_bytes(const KvModel *model) {
  double plain, experts, active;
  count_parameters(model, &plain, &experts, &active);
  return plain * kv_dtype_bytes(model->weight_dtype) +
         experts * kv_dtype_bytes(model->expert_dtype);
}

double kv_model_cache_bytes_per_token(const KvModel *model, double element_bytes) {
  double elements = 0;
  for (guint i = 0; i < model->n_groups; i++) {
    const KvAttention *a = &model->groups[i].attention;
    if (a->kind == KV_ATTENTION_LATENT)
      elements += model->groups[i].count * ((double)a->kv_lora_rank + a->rope_head_dim);
    else if (a->kind != KV_ATTENTION_NONE && !a->borrows_cache)
      elements += model->groups[i].count * (double)a->n_kv_heads *
                  ((double)a->head_dim + a->value_head_dim);
  }
  return elements * element_bytes;
}
