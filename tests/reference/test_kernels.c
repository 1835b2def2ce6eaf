/* Each kernel against a naive twin in double precision, on random and on hostile shapes; and the
 * promise of kernels.h that a row's bits do not depend on what is computed beside it. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/host/kernels.h"
#include "sim/base/random.h"

static KvRandom random_numbers;

static float *random_floats(gsize n) {
  float *x = g_new(float, n + 1);
  for (gsize i = 0; i < n; i++)
    x[i] = (float)kv_random_normal(&random_numbers);
  return x;
}

static guint random_size(guint low, guint high) {
  return (guint)kv_random_integer(&random_numbers, low, high);
}

/* |a - b| within `relative` of the larger of |b| and 1. */
static void assert_close(const float *a, const double *b, gsize n, double relative) {
  for (gsize i = 0; i < n; i++)
    if (!(fabs(a[i] - b[i]) <= relative * MAX(1.0, fabs(b[i])))) {
      g_test_message("element %zu of %zu: %.9g, expected %.9g", i, n, (double)a[i], b[i]);
      g_test_fail();
      return;
    }
}

typedef struct {
  guint rows, width;
} Shape;

static const Shape norm_shapes[] = {{1, 1}, {1, 7}, {3, 64}, {17, 33}, {2, 1000}};

static void twin_norm(double *out, const float *x, const float *weight, const float *bias,
                      Shape shape, gboolean centred) {
  for (guint r = 0; r < shape.rows; r++, x += shape.width, out += shape.width) {
    double mean = 0.0, variance = 0.0;
    for (guint i = 0; centred && i < shape.width; i++)
      mean += (double)x[i] / shape.width;
    for (guint i = 0; i < shape.width; i++)
      variance += (x[i] - mean) * (x[i] - mean) / shape.width;
    for (guint i = 0; i < shape.width; i++)
      out[i] = (x[i] - mean) / sqrt(variance + 1e-5) * (double)weight[i] +
               (centred ? (double)bias[i] : 0.0);
  }
}

static void test_norm(void) {
  for (guint s = 0; s < G_N_ELEMENTS(norm_shapes); s++) {
    Shape shape = norm_shapes[s];
    gsize n = (gsize)shape.rows * shape.width;
    g_autofree float *x = random_floats(n), *weight = random_floats(shape.width);
    g_autofree float *bias = random_floats(shape.width), *out = g_new(float, n);
    g_autofree double *twin = g_new(double, n);
    kv_host_rms_norm(out, x, weight, 1e-5f, shape.rows, shape.width);
    twin_norm(twin, x, weight, bias, shape, FALSE);
    assert_close(out, twin, n, 1e-4);
    kv_host_layer_norm(out, x, weight, bias, 1e-5f, shape.rows, shape.width);
    twin_norm(twin, x, weight, bias, shape, TRUE);
    assert_close(out, twin, n, 1e-4);
    kv_host_layer_norm(x, x, weight, bias, 1e-5f, shape.rows, shape.width);
    assert_close(x, twin, n, 1e-4);
  }
}

static void test_norm_of_zeros_and_of_huge_values(void) {
  float zeros[5] = {0}, out[5], weight[5] = {1, 1, 1, 1, 1}, bias[5] = {1, 2, 3, 4, 5};
  kv_host_rms_norm(out, zeros, weight, 1e-5f, 1, 5);
  for (guint i = 0; i < 5; i++)
    g_assert_cmpfloat(out[i], ==, 0.0f);
  kv_host_layer_norm(out, zeros, weight, bias, 1e-5f, 1, 5);
  for (guint i = 0; i < 5; i++)
    g_assert_cmpfloat(out[i], ==, bias[i]);
  float huge[2] = {1e18f, -1e18f};
  kv_host_rms_norm(out, huge, weight, 1e-5f, 1, 2);
  g_assert_cmpfloat_with_epsilon(out[0], 1.0f, 1e-5f);
  g_assert_cmpfloat_with_epsilon(out[1], -1.0f, 1e-5f);
}

static void test_rotary(void) {
  static const guint sizes[] = {2, 4, 16, 64};
  static const guint32 positions[] = {0, 1, 7, 8191, 1000000};
  for (guint s = 0; s < G_N_ELEMENTS(sizes); s++)
    for (guint p = 0; p < G_N_ELEMENTS(positions); p++) {
      guint d = sizes[s], H = 3;
      g_autofree float *x = random_floats((gsize)H * d);
      g_autofree float *cosine = g_new(float, d / 2), *sine = g_new(float, d / 2);
      g_autofree double *twin = g_new(double, (gsize)H *d);
      for (guint h = 0; h < H; h++)
        for (guint i = 0; i < d / 2; i++) { /* as a complex product */
          double angle = positions[p] / pow(10000.0, 2.0 * i / d);
          double re = x[h * d + i], im = x[h * d + i + d / 2];
          twin[h * d + i] = re * cos(angle) - im * sin(angle);
          twin[h * d + i + d / 2] = re * sin(angle) + im * cos(angle);
        }
      kv_host_rotary_angles(cosine, sine, positions[p], d, &KV_HOST_ROTARY_DEFAULT);
      kv_host_rotary(x, cosine, sine, H, d);
      assert_close(x, twin, (gsize)H * d, 1e-5);
    }
}

typedef struct {
  guint rows, inputs, outputs;
} Product;

static const Product products[] = {{1, 1, 1},    {1, 64, 199},   {5, 1, 63},  {16, 33, 64},
                                   {17, 65, 65}, {33, 128, 127}, {3, 300, 1}, {50, 7, 130}};

static void test_linear(void) {
  for (guint s = 0; s < G_N_ELEMENTS(products); s++)
    for (guint biased = 0; biased < 2; biased++) {
      gsize R = products[s].rows, K = products[s].inputs, N = products[s].outputs;
      g_autofree float *x = random_floats(R * K), *weight = random_floats(K * N);
      g_autofree float *bias = random_floats(N), *out = random_floats(R * N);
      g_autofree double *twin = g_new(double, R *N);
      for (gsize r = 0; r < R; r++)
        for (gsize n = 0; n < N; n++) {
          twin[r * N + n] = biased ? bias[n] : 0.0;
          for (gsize k = 0; k < K; k++)
            twin[r * N + n] += (double)x[r * K + k] * (double)weight[k * N + n];
        }
      kv_host_linear(out, x, weight, biased ? bias : NULL, R, K, N);
      assert_close(out, twin, R * N, 1e-4);
    }
}

static void test_linear_rows_are_independent(void) {
  for (guint s = 0; s < G_N_ELEMENTS(products); s++) {
    gsize R = products[s].rows, K = products[s].inputs, N = products[s].outputs;
    g_autofree float *x = random_floats(R * K), *weight = random_floats(K * N);
    g_autofree float *together = g_new(float, R *N), *alone = g_new(float, N);
    kv_host_linear(together, x, weight, NULL, R, K, N);
    for (gsize r = 0; r < R; r++) {
      kv_host_linear(alone, x + r * K, weight, NULL, 1, K, N);
      g_assert_cmpmem(alone, N * sizeof(float), together + r * N, N * sizeof(float));
    }
  }
}

static void test_activations(void) {
  enum { N = 103 };
  g_autofree float *gate = random_floats(N), *up = random_floats(N), *x = random_floats(N);
  g_autofree float *sum = g_memdup2(x, N * sizeof(float));
  double swiglu[N], relu[N], total[N];
  gate[0] = 100.0f;
  gate[1] = -100.0f; /* exp(100) overflows a float: silu must be 0, not NaN */
  x[2] = -0.5f;
  for (guint i = 0; i < N; i++) {
    swiglu[i] = gate[i] / (1.0 + exp(-(double)gate[i])) * up[i];
    relu[i] = x[i] < 0.0f ? 0.0 : x[i];
    total[i] = (double)sum[i] + up[i];
  }
  kv_host_swiglu(gate, up, N);
  assert_close(gate, swiglu, N, 1e-5);
  kv_host_relu(x, N);
  assert_close(x, relu, N, 0.0);
  kv_host_add(sum, up, N);
  assert_close(sum, total, N, 1e-6);
}

/* A context in contiguous arrays and, the same, in blocks scattered over a pool. */
typedef struct {
  guint n_heads, n_kv_heads, head_dim, block_tokens, window;
  guint32 past, tokens;
} Attention;

static const Attention attentions[] = {{1, 1, 1, 1, 0, 0, 1},     {4, 2, 16, 16, 0, 0, 1},
                                       {4, 2, 16, 16, 0, 15, 2},  {4, 4, 8, 16, 0, 16, 1},
                                       {6, 2, 5, 7, 0, 20, 13},   {8, 1, 32, 3, 0, 100, 4},
                                       {4, 2, 16, 16, 1, 33, 5},  {4, 2, 16, 16, 8, 0, 20},
                                       {4, 2, 16, 4, 1000, 9, 9}, {2, 2, 64, 128, 0, 300, 1}};

static void twin_attention(double *out, const float *q, const float *keys, const float *values,
                           const Attention *a) {
  gsize d = a->head_dim, Hkv = a->n_kv_heads, H = a->n_heads;
  for (guint t = 0; t < a->tokens; t++)
    for (gsize h = 0; h < H; h++) {
      gint64 last = a->past + t, first = a->window ? MAX(0, last - (gint64)a->window + 1) : 0;
      gsize kv = h * Hkv / H;
      double *o = out + (t * H + h) * d, total = 0.0;
      memset(o, 0, d * sizeof *o);
      for (gint64 j = first; j <= last; j++) {
        double dot = 0.0;
        for (gsize i = 0; i < d; i++)
          dot += (double)q[(t * H + h) * d + i] * (double)keys[(j * Hkv + kv) * d + i];
        double p = exp(dot / sqrt((double)d));
        total += p;
        for (gsize i = 0; i < d; i++)
          o[i] += p * values[(j * Hkv + kv) * d + i];
      }
      for (gsize i = 0; i < d; i++)
        o[i] /= total;
    }
}

/* Blocks of two layers' pages in a pool; the second layer is used, the first must stay as it is. */
static KvHostPages new_pages(const Attention *a, guint n_blocks, gsize *pool_floats) {
  gsize floats = (gsize)a->n_kv_heads * a->block_tokens * a->head_dim;
  *pool_floats = (gsize)4 * n_blocks * floats;
  float *pool = g_new(float, *pool_floats);
  for (gsize i = 0; i < *pool_floats; i++)
    pool[i] = NAN; /* whoever reads what was not written spoils its result */
  return (KvHostPages){.pool = pool,
                       .block_floats = 4 * floats,
                       .key_offset = 2 * floats,
                       .value_offset = 3 * floats,
                       .block_tokens = a->block_tokens,
                       .n_kv_heads = a->n_kv_heads,
                       .head_dim = a->head_dim};
}

static guint32 *shuffled_table(guint n_used, guint n_blocks) {
  guint32 *table = g_new(guint32, n_blocks);
  for (guint i = 0; i < n_blocks; i++)
    table[i] = i;
  for (guint i = 0; i < n_used; i++) {
    guint j = random_size(i, n_blocks - 1);
    guint32 swapped = table[i];
    table[i] = table[j];
    table[j] = swapped;
  }
  return table;
}

static void check_attention(const Attention *a) {
  gsize n = a->past + a->tokens, d = a->head_dim, Hkv = a->n_kv_heads, H = a->n_heads;
  guint used = (guint)((n + a->block_tokens - 1) / a->block_tokens), n_blocks = 2 * used + 3;
  g_autofree float *keys = random_floats(n * Hkv * d), *values = random_floats(n * Hkv * d);
  g_autofree float *q = random_floats(a->tokens * H * d), *scores = g_new(float, n);
  g_autofree float *out = g_new(float, a->tokens *H *d), *alone = g_new(float, H *d);
  g_autofree double *twin = g_new(double, a->tokens *H *d);
  g_autofree guint32 *table = shuffled_table(used, n_blocks);
  gsize pool_floats;
  KvHostPages pages = new_pages(a, n_blocks, &pool_floats);
  g_autofree float *pool = pages.pool;
  for (guint32 j = 0; j < n; j++)
    kv_host_pages_write(&pages, table, j, keys + j * Hkv * d, values + j * Hkv * d);
  gsize written = 0;
  for (gsize i = 0; i < pool_floats; i++)
    written += !isnan(pool[i]);
  g_assert_cmpuint(written, ==, 2 * n * Hkv * d);

  kv_host_attention(out, q, &pages, table, a->past, a->tokens, a->n_heads, a->window, scores);
  twin_attention(twin, q, keys, values, a);
  assert_close(out, twin, a->tokens * H * d, 1e-5);
  for (guint32 t = 0; t < a->tokens; t++) { /* one query at a time: the same bits */
    kv_host_attention(alone, q + t * H * d, &pages, table, a->past + t, 1, a->n_heads, a->window,
                      scores);
    g_assert_cmpmem(alone, H * d * sizeof(float), out + t * H * d, H * d * sizeof(float));
  }
}

/* Token 5 of a table {2, 0}: slot 1 of block 0, each head's row after the rows of the heads before
 * it. */
static void test_pages_layout(void) {
  Attention a = {2, 2, 3, 4, 0, 0, 1};
  gsize floats;
  KvHostPages pages = new_pages(&a, 3, &floats);
  g_autofree float *pool = pages.pool;
  const float keys[] = {1, 2, 3, 4, 5, 6}, values[] = {7, 8, 9, 10, 11, 12};
  const guint32 table[] = {2, 0};
  kv_host_pages_write(&pages, table, 5, keys, values);
  const gsize row = 3, layer = 16 * row, half = layer / 2; /* [2 kinds][Hkv][block_tokens][d] */
  g_assert_cmpmem(pool + layer + row, 12, keys, 12);
  g_assert_cmpmem(pool + layer + 5 * row, 12, keys + 3, 12);
  g_assert_cmpmem(pool + layer + half + row, 12, values, 12);
  g_assert_cmpmem(pool + layer + half + 5 * row, 12, values + 3, 12);
}

static void test_attention(void) {
  for (guint s = 0; s < G_N_ELEMENTS(attentions); s++)
    check_attention(&attentions[s]);
  for (guint i = 0; i < 60; i++) {
    guint kv_heads = random_size(1, 4);
    Attention a = {
        kv_heads * random_size(1, 4), kv_heads,           random_size(1, 40), random_size(1, 20),
        random_size(0, 30),           random_size(0, 60), random_size(1, 20)};
    check_attention(&a);
  }
}

static void test_attention_with_scores_that_overflow_an_exponential(void) {
  Attention a = {1, 1, 1, 2, 0, 2, 1};
  gsize floats;
  KvHostPages pages = new_pages(&a, 2, &floats);
  g_autofree float *pool = pages.pool;
  const float keys[] = {-1000.0f, 1000.0f, 0.0f}, values[] = {3.0f, 5.0f, 7.0f}, q = 10.0f;
  const guint32 table[] = {1, 0};
  float scores[3], out;
  for (guint32 j = 0; j < 3; j++)
    kv_host_pages_write(&pages, table, j, &keys[j], &values[j]);
  kv_host_attention(&out, &q, &pages, table, 2, 1, 1, 0, scores);
  g_assert_cmpfloat(out, ==, 5.0f);
}

static void test_argmax_takes_the_lowest_of_equals(void) {
  const float logits[] = {-3.0f, 2.0f, -1.0f, 2.0f, 2.0f}, lowest[] = {-INFINITY, -INFINITY};
  g_assert_cmpuint(kv_host_argmax(logits, 5), ==, 1);
  g_assert_cmpuint(kv_host_argmax(logits, 1), ==, 0);
  g_assert_cmpuint(kv_host_argmax(logits + 2, 3), ==, 1);
  g_assert_cmpuint(kv_host_argmax(lowest, 2), ==, 0);
}

/* By hand: of logarithms of shares, with and without groups, and of equals the lowest. */
static void test_routing(void) {
  static const float shares[8] = {0.05f, 0.3f, 0.1f, 0.1f, 0.2f, 0.05f, 0.1f, 0.1f};
  static const struct {
    KvHostRouting routing;
    guint chosen;
    guint32 experts[3];
    float shares[3];
  } cases[] = {
      {{.scale = 1.0f}, 3, {1, 4, 2}, {0.3f, 0.2f, 0.1f}},
      {{.scale = 16.0f}, 2, {1, 4}, {4.8f, 3.2f}},
      {{.normalized = TRUE, .scale = 1.0f}, 2, {1, 4}, {0.6f, 0.4f}},
      /* of (0 1) (2 3) (4 5) (6 7) the first and the third; then the second with the first */
      {{.scale = 1.0f, .groups = 4, .groups_kept = 2}, 3, {1, 4, 0}, {0.3f, 0.2f, 0.05f}},
      {{.scale = 1.0f, .groups = 4, .groups_kept = 3}, 3, {1, 4, 2}, {0.3f, 0.2f, 0.1f}},
      {{.scale = 1.0f, .groups = 2, .groups_kept = 1}, 3, {1, 2, 3}, {0.3f, 0.1f, 0.1f}},
  };
  float logits[8], scores[8], got[3];
  guint32 experts[3];
  for (guint i = 0; i < 8; i++)
    logits[i] = logf(shares[i]) + 100.0f; /* exp(100) overflows */
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    kv_host_route(experts, got, logits, 8, cases[c].chosen, &cases[c].routing, scores);
    for (guint k = 0; k < cases[c].chosen; k++) {
      g_assert_cmpuint(experts[k], ==, cases[c].experts[k]);
      g_assert_cmpfloat_with_epsilon(got[k], cases[c].shares[k], 1e-4);
    }
  }
  g_assert_true(kv_host_routing_fits(&cases[5].routing, 8, 3));
  g_assert_false(kv_host_routing_fits(&cases[5].routing, 8, 5)); /* 4 are left */
  g_assert_false(kv_host_routing_fits(&cases[5].routing, 7, 3));
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_set_nonfatal_assertions();
  kv_random_seed(&random_numbers, 20, 1);
  g_test_add_func("/reference/kernels/norm", test_norm);
  g_test_add_func("/reference/kernels/norm-extremes", test_norm_of_zeros_and_of_huge_values);
  g_test_add_func("/reference/kernels/rotary", test_rotary);
  g_test_add_func("/reference/kernels/linear", test_linear);
  g_test_add_func("/reference/kernels/linear-rows", test_linear_rows_are_independent);
  g_test_add_func("/reference/kernels/activations", test_activations);
  g_test_add_func("/reference/kernels/pages-layout", test_pages_layout);
  g_test_add_func("/reference/kernels/attention", test_attention);
  g_test_add_func("/reference/kernels/attention-extremes",
                  test_attention_with_scores_that_overflow_an_exponential);
  g_test_add_func("/reference/kernels/routing", test_routing);
  g_test_add_func("/reference/kernels/argmax", test_argmax_takes_the_lowest_of_equals);
  return g_test_run();
}
