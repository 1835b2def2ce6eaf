/* Attention on the CPU over a bf16 cache against the oracle's in fp32, on the same numbers. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/checkpoint.h"
#include "reference/host/cpu_attention.h"
#include "reference/host/kernels.h"
#include "sim/base/random.h"

static KvRandom random_numbers;

static float float_of(guint16 x) {
  guint32 bits = (guint32)x << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

static guint16 *random_halves(gsize n) {
  guint16 *x = g_new(guint16, n);
  for (gsize i = 0; i < n; i++)
    x[i] = kv_bf16_from_float((float)kv_random_normal(&random_numbers));
  return x;
}

static float *widened(const guint16 *x, gsize n) {
  float *y = g_new(float, n);
  for (gsize i = 0; i < n; i++)
    y[i] = float_of(x[i]);
  return y;
}

static void check(KvCpuAttention *attention, guint n_heads, guint n_kv_heads, guint head_dim,
                  guint block_tokens, const guint32 *contexts, guint n) {
  enum { BLOCKS = 64 };
  gsize half = (gsize)n_kv_heads * block_tokens * head_dim, width = (gsize)n_heads * head_dim;
  gsize stride = width + 2 * (gsize)n_kv_heads * head_dim + 24; /* rows apart */
  guint32 table[BLOCKS], used = 0;
  g_autofree guint16 *blocks = random_halves(2 * half * BLOCKS), *qkv = random_halves(n * stride);
  g_autofree guint16 *out = g_new(guint16, n * width + 1);
  g_autofree KvCpuRow *rows = g_new(KvCpuRow, n + 1);
  KvCpuPages pages = {blocks, 2 * half, half, block_tokens, n_heads, n_kv_heads, head_dim};
  memset(out, 0xff, (n * width + 1) * sizeof *out);
  for (guint i = 0; i < BLOCKS; i++)
    table[i] = (i * 23 + 5) % BLOCKS;
  for (guint r = 0; r < n; r++) {
    rows[r] = (KvCpuRow){table + used, contexts[r]};
    used += (contexts[r] + block_tokens - 1) / block_tokens;
  }
  g_assert_cmpuint(used, <=, BLOCKS);
  g_autofree float *pool = widened(blocks, 2 * half * BLOCKS), *in = widened(qkv, n * stride);
  kv_cpu_attention_run(attention, out, qkv, stride, &pages, rows, n);
  KvHostPages twin = {pool, 2 * half, 0, half, block_tokens, n_kv_heads, head_dim};
  g_autofree float *expected = g_new(float, width), *scores = g_new(float, 4096);
  for (guint r = 0; r < n; r++) {
    const float *row = in + r * stride;
    guint32 last = contexts[r] - 1;
    kv_host_pages_write(&twin, rows[r].block_table, last, row + width,
                        row + width + (gsize)n_kv_heads * head_dim);
    kv_host_attention(expected, row, &twin, rows[r].block_table, last, 1, n_heads, 0, scores);
    for (gsize i = 0; i < width; i++)
      g_assert_cmpfloat(fabsf(float_of(out[r * width + i]) - expected[i]), <=,
                        0.004f * fabsf(expected[i]) + 1e-4f);
  }
  for (gsize i = 0; i < 2 * half * BLOCKS; i++) /* the new tokens, and nothing else */
    g_assert_cmpfloat(float_of(blocks[i]), ==, pool[i]);
  g_assert_cmpuint(out[n * width], ==, 0xffff);
}

static void test_shapes(void) {
  static const guint32 one[] = {1}, some[] = {17, 1, 16, 33, 200, 15};
  for (guint threads = 1; threads <= 5; threads += 2) {
    g_autoptr(KvCpuAttention) attention = kv_cpu_attention_new(threads);
    check(attention, 4, 2, 64, 16, one, 0);
    check(attention, 1, 1, 64, 16, one, 1);
    check(attention, 8, 2, 128, 16, some, 6);
    check(attention, 5, 5, 80, 8, some, 6);
    check(attention, 8, 1, 96, 32, some, 6);
  }
}

/* Scores far apart: nothing overflows, and the largest takes all. */
static void test_extremes(void) {
  g_autoptr(KvCpuAttention) attention = kv_cpu_attention_new(0);
  enum { D = 64, N = 40 };
  guint16 blocks[2 * N * D] = {0}, qkv[3 * D] = {0}, out[D];
  static const guint32 table[] = {0};
  for (guint t = 0; t < N; t++)
    blocks[(gsize)t * D] = kv_bf16_from_float(t == 7 ? 1e4f : -1e4f);
  for (guint i = 0; i < D; i++)
    blocks[N * D + 7 * D + i] = kv_bf16_from_float(3.0f);
  qkv[0] = kv_bf16_from_float(1e4f);
  KvCpuPages pages = {blocks, (gsize)2 * N * D, (gsize)N * D, N, 1, 1, D};
  kv_cpu_attention_run(attention, out, qkv, (gsize)3 * D, &pages, &(KvCpuRow){table, N}, 1);
  for (guint i = 0; i < D; i++)
    g_assert_cmpfloat(float_of(out[i]), ==, 3.0f);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  kv_random_seed(&random_numbers, 22, 1);
  g_test_add_func("/reference/cpu-attention/shapes", test_shapes);
  g_test_add_func("/reference/cpu-attention/extremes", test_extremes);
  return g_test_run();
}
