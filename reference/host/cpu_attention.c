#include "reference/host/cpu_attention.h"

#include <math.h>
#include <string.h>

#include "reference/host/checkpoint.h"
#include "reference/host/wide.h"

/* Lanes of a register, or of two narrower ones. */
enum { LANES = 8, MOST_DIM = 256, TILE = 16 };
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef float HalfFloats __attribute__((vector_size(LANES / 2 * sizeof(float))));
typedef guint32 Words __attribute__((vector_size(LANES * sizeof(guint32))));
typedef guint16 Halves __attribute__((vector_size(LANES * sizeof(guint16))));

/* Work under way: every KV head of every row is a piece. */
struct KvCpuAttention {
  GThreadPool *pool;
  guint threads;
  guint16 *out;
  const guint16 *qkv;
  gsize stride;
  const KvCpuPages *pages;
  const KvCpuRow *rows;
  guint n_pieces;
  gint next; /* piece, atomic */
  GMutex lock;
  GCond idle;
  guint working; /* threads of the pool */
};

/* By address, because how such a vector is passed depends on the width. */
static inline void widen(Floats *out, const guint16 *x) {
  Halves halves;
  memcpy(&halves, x, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  memcpy(out, &words, sizeof *out);
}

/* By halves. */
static inline float sum_of(const Floats *x) {
  HalfFloats four[2];
  memcpy(four, x, sizeof four);
  four[0] += four[1];
  return (four[0][0] + four[0][1]) + (four[0][2] + four[0][3]);
}

/* Where a token's key stands. */
static inline const guint16 *key_of(const KvCpuPages *p, const KvCpuRow *row, guint head,
                                    guint32 token) {
  return p->blocks + row->block_table[token / p->block_tokens] * p->block_elements +
         ((gsize)head * p->block_tokens + token % p->block_tokens) * p->head_dim;
}

/* scores[group][context]: queries q[group][d] times keys. */
KV_FOR_EACH_WIDTH
static void score(float *scores, const float *q, const KvCpuPages *p, const KvCpuRow *row,
                  guint head, guint group) {
  guint parts = p->head_dim / LANES;
  Floats key[MOST_DIM / LANES];
  for (guint32 t = 0; t < row->context; t++) {
    const guint16 *from = key_of(p, row, head, t);
    for (guint i = 0; i < parts; i++)
      widen(&key[i], from + (gsize)i * LANES);
    for (guint g = 0; g < group; g++) {
      Floats sum = {0.0f}, query;
      for (guint i = 0; i < parts; i++) {
        memcpy(&query, q + (gsize)g * p->head_dim + (gsize)i * LANES, sizeof query);
        sum += query * key[i];
      }
      scores[(gsize)g * row->context + t] = sum_of(&sum);
    }
  }
}

/* sums[group][d] += weights[group][context] times values, a tile of them widened at a time. */
KV_FOR_EACH_WIDTH
static void weigh(float *sums, const float *weights, const KvCpuPages *p, const KvCpuRow *row,
                  guint head, guint group) {
  guint parts = p->head_dim / LANES;
  Floats tile[TILE][MOST_DIM / LANES], sum;
  for (guint32 first = 0; first < row->context; first += TILE) {
    guint n = MIN(TILE, row->context - first);
    for (guint t = 0; t < n; t++) {
      const guint16 *from = key_of(p, row, head, first + t) + p->value_offset;
      for (guint i = 0; i < parts; i++)
        widen(&tile[t][i], from + (gsize)i * LANES);
    }
    for (guint g = 0; g < group; g++)
      for (guint i = 0; i < parts; i++) {
        const float *weight = weights + (gsize)g * row->context + first;
        float *at = sums + (gsize)g * p->head_dim + (gsize)i * LANES;
        memcpy(&sum, at, sizeof sum);
        for (guint t = 0; t < n; t++)
          sum += weight[t] * tile[t][i];
        memcpy(at, &sum, sizeof sum);
      }
  }
}

static void softmax(float *x, guint32 n) {
  float largest = x[0], sum = 0.0f;
  for (guint32 i = 1; i < n; i++)
    largest = MAX(largest, x[i]);
  for (guint32 i = 0; i < n; i++)
    sum += x[i] = expf(x[i] - largest);
  for (guint32 i = 0; i < n; i++)
    x[i] /= sum;
}

/* One KV head of one row. */
static void run_piece(const KvCpuAttention *a, guint piece) {
  const KvCpuPages *p = a->pages;
  guint r = piece / p->n_kv_heads, head = piece % p->n_kv_heads, group = p->n_heads / p->n_kv_heads;
  const KvCpuRow *row = &a->rows[r];
  gsize d = p->head_dim, queries = (gsize)head * group * d;
  const guint16 *in = a->qkv + r * a->stride, *keys = in + p->n_heads * d + head * d;
  guint16 *key = (guint16 *)key_of(p, row, head, row->context - 1);
  memcpy(key, keys, d * sizeof *key);
  memcpy(key + p->value_offset, keys + p->n_kv_heads * d, d * sizeof *key);
  g_autofree float *q = g_new(float, group *d), *sums = g_new0(float, group *d);
  g_autofree float *scores = g_new(float, (gsize)group * row->context);
  float scale = 1.0f / sqrtf((float)d);
  for (gsize i = 0; i < group * d; i++) {
    guint32 bits = (guint32)in[queries + i] << 16;
    memcpy(&q[i], &bits, sizeof bits);
    q[i] *= scale;
  }
  score(scores, q, p, row, head, group);
  for (guint g = 0; g < group; g++)
    softmax(scores + (gsize)g * row->context, row->context);
  weigh(sums, scores, p, row, head, group);
  for (gsize i = 0; i < group * d; i++)
    a->out[(gsize)r * p->n_heads * d + queries + i] = kv_bf16_from_float(sums[i]);
}

static void run_pieces(KvCpuAttention *a) {
  for (guint piece; (piece = (guint)g_atomic_int_add(&a->next, 1)) < a->n_pieces;)
    run_piece(a, piece);
}

static void help(gpointer unused, gpointer user) {
  KvCpuAttention *a = user;
  run_pieces(a);
  g_mutex_lock(&a->lock);
  if (--a->working == 0)
    g_cond_signal(&a->idle);
  g_mutex_unlock(&a->lock);
}

KvCpuAttention *kv_cpu_attention_new(guint threads) {
  KvCpuAttention *a = g_new0(KvCpuAttention, 1);
  a->threads = threads ? threads : g_get_num_processors();
  a->pool = g_thread_pool_new(help, a, (gint)MAX(1, a->threads - 1), FALSE, NULL);
  g_mutex_init(&a->lock);
  g_cond_init(&a->idle);
  return a;
}

void kv_cpu_attention_free(KvCpuAttention *a) {
  if (!a)
    return;
  g_thread_pool_free(a->pool, FALSE, TRUE);
  g_mutex_clear(&a->lock);
  g_cond_clear(&a->idle);
  g_free(a);
}

void kv_cpu_attention_run(KvCpuAttention *a, guint16 *out, const guint16 *qkv, gsize stride,
                          const KvCpuPages *pages, const KvCpuRow *rows, guint n) {
  g_return_if_fail(pages->head_dim % LANES == 0 && pages->head_dim <= MOST_DIM);
  a->out = out;
  a->qkv = qkv;
  a->stride = stride;
  a->pages = pages;
  a->rows = rows;
  a->n_pieces = n * pages->n_kv_heads;
  a->working = MIN(a->threads, a->n_pieces);
  a->working -= a->working > 0; /* the caller is one of them */
  g_atomic_int_set(&a->next, 0);
  for (guint helpers = a->working; helpers > 0; helpers--)
    g_thread_pool_push(a->pool, a, NULL);
  run_pieces(a);
  g_mutex_lock(&a->lock);
  while (a->working > 0)
    g_cond_wait(&a->idle, &a->lock);
  g_mutex_unlock(&a->lock);
}
