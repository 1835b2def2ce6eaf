/* palu: latents in the place of keys and values, in the floats where those would stand. */
#include "reference/host/format.h"
#include "reference/host/low_rank.h"

/* The factors of the model's layers, made when the first pass meets them; of layers that are left
 * as they are, zero. */
typedef struct {
  guint n_layers;
  KvHostFactors *factors;                   /* [layers] */
  float **key_down, **value_down, **output; /* [layers]: [D][groups rank], [H value_rank][D] */
  float *attended;                          /* [rows][H value_rank] of the pass */
  gsize room;
} Palu;

static gboolean init(KvHostCompression *c, const KvTechniqueUse *use, const KvEngineConfig *engine,
                     GError **error) {
  c->palu = kv_palu_settings(use);
  if (kv_technique_value(use, "impl") == 1.0)
    return kv_host_format_refuse(error, "palu", "impl=released", "impl=ideal");
  if (kv_technique_value(use, "bits") != 3.0)
    return kv_host_format_refuse(error, "palu", "latents of fewer than 16 bits", "bits=16");
  return TRUE;
}

static gboolean check(const KvHostCompression *c, const KvAttention *a, GError **error) {
  if (!kv_host_format_check_full(c, a, error))
    return FALSE;
  if (a->qk_norm)
    return kv_host_format_refuse(error, "palu", "normalized keys, which no factor rebuilds",
                                 "a model without query and key norms");
  guint group = (guint)MIN(c->palu.group_size, a->n_kv_heads);
  return a->n_kv_heads % group == 0 ||
         kv_host_format_refuse(error, "palu", "a group_size that does not divide the KV heads",
                               "a divisor of them");
}

/* --- factors --------------------------------------------------------------------------------- */

/* to[columns][rows] = from[rows][columns]; NULL of NULL. */
static float *transposed(const float *from, gsize rows, gsize columns) {
  float *to = from ? g_new(float, rows *columns) : NULL;
  for (gsize r = 0; to && r < rows; r++)
    for (gsize c = 0; c < columns; c++)
      to[c * rows + r] = from[r * columns + c];
  return to;
}

static void make_layer(Palu *p, const KvHostLayer *layer, guint l, guint D,
                       const KvHostRanks *ranks) {
  const KvAttention *a = &layer->attention;
  gsize kv = (gsize)a->n_kv_heads * a->head_dim, q = (gsize)a->n_heads * a->head_dim;
  g_autofree float *key = transposed(layer->key, D, kv), *value = transposed(layer->value, D, kv);
  g_autofree float *output = transposed(layer->output, q, D);
  const KvHostProjections from = {.inputs = D,
                                  .n_heads = a->n_heads,
                                  .key = key,
                                  .value = value,
                                  .output = output,
                                  .value_bias = layer->value_bias,
                                  .output_bias = layer->output_bias};
  KvHostFactors *f = &p->factors[l];
  kv_host_factors_init(f, ranks, &from, 1);
  p->key_down[l] = transposed(f->key_down, (gsize)ranks->groups * ranks->key_rank, D);
  p->value_down[l] = transposed(f->value_down, (gsize)ranks->groups * ranks->value_rank, D);
  p->output[l] = transposed(f->output, D, (gsize)a->n_heads * ranks->value_rank);
}

static void free_palu(gpointer data) {
  Palu *p = data;
  for (guint l = 0; l < p->n_layers; l++) {
    kv_host_factors_clear(&p->factors[l]);
    g_free(p->key_down[l]);
    g_free(p->value_down[l]);
    g_free(p->output[l]);
  }
  float **const arrays[] = {p->key_down, p->value_down, p->output};
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_free(arrays[i]);
  g_free(p->factors);
  g_free(p->attended);
  g_free(p);
}

static Palu *palu_of(const KvHostFormatLayer *at) {
  if (at->cache->state)
    return at->cache->state;
  Palu *p = at->cache->state = g_new0(Palu, 1);
  at->cache->free_state = free_palu;
  p->n_layers = at->weights->n_layers;
  p->factors = g_new0(KvHostFactors, p->n_layers);
  p->key_down = g_new0(float *, p->n_layers);
  p->value_down = g_new0(float *, p->n_layers);
  p->output = g_new0(float *, p->n_layers);
  for (guint l = 0; l < p->n_layers; l++) {
    const KvHostLayer *layer = &at->weights->layers[l];
    KvHostRanks ranks;
    if (kv_host_low_rank_ranks(&ranks, &at->cache->compression.palu, &layer->attention, l,
                               p->n_layers))
      make_layer(p, layer, l, at->weights->hidden, &ranks);
  }
  return p;
}

/* NULL of a layer that is left as it is. */
static const KvHostFactors *factors_of(const KvHostFormatLayer *at) {
  const KvHostFactors *f = &palu_of(at)->factors[at->layer];
  return f->key_basis ? f : NULL;
}

/* --- in a pass ------------------------------------------------------------------------------- */

static gboolean project(const KvHostFormatLayer *at, double *flops) {
  const KvHostFactors *f = factors_of(at);
  if (!f)
    return FALSE;
  const Palu *p = palu_of(at);
  guint D = at->weights->hidden, keys = f->ranks.groups * f->ranks.key_rank;
  guint values = f->ranks.groups * f->ranks.value_rank;
  kv_host_linear(at->k, at->in, p->key_down[at->layer], NULL, at->rows, D, keys);
  kv_host_linear(at->v, at->in, p->value_down[at->layer], NULL, at->rows, D, values);
  *flops = 2.0 * at->rows * D * ((double)keys + values);
  return TRUE;
}

static gboolean write_latents(const KvHostFormatLayer *at, const KvHostSpan *spans, guint n_spans) {
  const KvHostFactors *f = factors_of(at);
  gsize r = 0;
  for (guint s = 0; f && s < n_spans; s++)
    for (guint32 t = 0; t < spans[s].n_tokens; t++, r++)
      kv_host_low_rank_write(&f->ranks, at->pages, spans[s].block_table, at->positions[r],
                             at->k + r * f->ranks.groups * f->ranks.key_rank,
                             at->v + r * f->ranks.groups * f->ranks.value_rank);
  return f != NULL;
}

static gboolean attend(const KvHostFormatLayer *at, const KvHostSpan *span, gsize row) {
  const KvHostFactors *f = factors_of(at);
  if (!f)
    return FALSE;
  Palu *p = palu_of(at);
  const KvHostLayer *layer = &at->weights->layers[at->layer];
  gsize width = (gsize)at->n_heads * f->ranks.value_rank, need = at->rows * width;
  guint32 n = span->past + span->n_tokens;
  g_autofree float *keys =
      g_new(float, (gsize)n * layer->attention.n_kv_heads * layer->attention.head_dim);
  if (need > p->room) {
    p->attended = g_renew(float, p->attended, need);
    p->room = need;
  }
  kv_host_low_rank_keys(keys, &f->ranks, at->pages, span->block_table, n, f->key_basis,
                        layer->key_bias, at->weights->positions ? NULL : &at->weights->rotary);
  kv_host_low_rank_attention(
      p->attended + row * width, at->q + row * at->n_heads * f->ranks.head_dim, keys, &f->ranks,
      at->pages, span->block_table, span->past, span->n_tokens, at->n_heads, at->scores);
  return TRUE;
}

static gboolean output(const KvHostFormatLayer *at, double *flops) {
  const KvHostFactors *f = factors_of(at);
  if (!f)
    return FALSE;
  const Palu *p = palu_of(at);
  guint width = at->n_heads * f->ranks.value_rank;
  kv_host_linear(at->added, p->attended, p->output[at->layer], f->output_bias, at->rows, width,
                 at->weights->hidden);
  *flops = 2.0 * at->rows * (double)width * at->weights->hidden;
  return TRUE;
}

const KvHostFormatClass kv_host_format_palu = {.technique = "palu",
                                               .init = init,
                                               .check = check,
                                               .project = project,
                                               .write_all = write_latents,
                                               .attend = attend,
                                               .output = output,
                                               .exact = TRUE};
