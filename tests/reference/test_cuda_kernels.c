/* Every CUDA kernel against its plain C twin, on random and on hostile shapes. Inputs are rounded
 * to bf16 for both, so what differs is the kernel's arithmetic and the rounding of its result.
 * Outputs are poisoned first: what a kernel does not write is a NaN, and fails.
 *
 * With KV_TEST_FEW in the environment one shape of three is taken, and few random ones: for
 * compute-sanitizer, under which a kernel takes 10 to 50 times as long. */
#include <glib.h>
#include <math.h>
#include <string.h>

#include "reference/cuda/device.h"
#include "reference/cuda/forward.h"
#include "reference/cuda/gemm.h"
#include "reference/cuda/kernels.h"
#include "reference/cuda/sharing.h"
#include "reference/host/compression.h"
#include "reference/host/kernels.h"
#include "reference/host/pyramid.h"
#include "reference/host/recurrent.h"
#include "reference/host/tensors.h"
#include "sim/base/random.h"

/* Of a bf16 result: half a unit of its 8 bits is 2^-9 = 0.002. */
#define TOLERANCE 6e-3
#define EPSILON 1e-5f

static const KvHostRotary rotary = KV_HOST_ROTARY_DEFAULT;
static KvRandom random_numbers;
static KvCudaDevice *device;
static KvCudaGemm *gemm;
static GPtrArray *allocated; /* device memory of the test under way */
static guint every = 1;      /* shape of a table that is taken */

#define OK(call)                                                                                   \
  G_STMT_START {                                                                                   \
    g_autoptr(GError) ok_error = NULL;                                                             \
    gboolean ok_done = (call);                                                                     \
    g_assert_no_error(ok_error);                                                                   \
    g_assert_true(ok_done);                                                                        \
  }                                                                                                \
  G_STMT_END
#define LAUNCHED(call) g_assert_cmpint((call), ==, cudaSuccess)

static guint random_size(guint low, guint high) {
  return (guint)kv_random_integer(&random_numbers, low, high);
}

/* The float with the upper 16 bits of its bits alone, to nearest, ties to even. */
static KvBf16 bf16_of(float x) {
  guint32 bits;
  memcpy(&bits, &x, sizeof bits);
  return (KvBf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float float_of(KvBf16 x) {
  guint32 bits = (guint32)x << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* n normal numbers that bf16 holds exactly. */
static float *random_floats(gsize n, double deviation) {
  float *x = g_new(float, MAX(n, 1));
  for (gsize i = 0; i < n; i++)
    x[i] = float_of(bf16_of((float)(deviation * kv_random_normal(&random_numbers))));
  return x;
}

static void *on_device(const void *from, gsize bytes) {
  g_autoptr(GError) error = NULL;
  void *memory = kv_cuda_alloc(bytes, "a test's arrays", &error);
  g_assert_no_error(error);
  g_ptr_array_add(allocated, memory);
  if (bytes && from)
    OK(kv_cuda_upload(device, memory, from, bytes, &ok_error));
  return memory;
}

static KvBf16 *upload_bf16(const float *x, gsize n) {
  g_autofree KvBf16 *halves = g_new(KvBf16, MAX(n, 1));
  for (gsize i = 0; i < n; i++)
    halves[i] = isnan(x[i]) ? 0x7fff : bf16_of(x[i]);
  return on_device(halves, n * sizeof(KvBf16));
}

static float *upload_f32(const float *x, gsize n) {
  return on_device(x, n * sizeof(float));
}

/* Memory full of NaN, as bf16 and as fp32. */
static void *poisoned(gsize bytes) {
  void *memory = on_device(NULL, bytes);
  OK(kv_cuda_fill(device, memory, 0xff, MAX(bytes, 256), &ok_error));
  return memory;
}

static float *download_bf16(const void *from, gsize n) {
  g_autofree KvBf16 *halves = g_new(KvBf16, MAX(n, 1));
  float *x = g_new(float, MAX(n, 1));
  OK(kv_cuda_download(device, halves, from, n * sizeof(KvBf16), &ok_error));
  for (gsize i = 0; i < n; i++)
    x[i] = float_of(halves[i]);
  return x;
}

static float *download_f32(const void *from, gsize n) {
  float *x = g_new(float, MAX(n, 1));
  OK(kv_cuda_download(device, x, from, n * sizeof(float), &ok_error));
  return x;
}

static void release(void) {
  g_ptr_array_set_size(allocated, 0);
}

/* ||a - b|| / ||b||; a NaN anywhere makes it one, and no comparison passes. */
static double distance(const float *a, const float *b, gsize n) {
  double difference = 0.0, size = 0.0;
  for (gsize i = 0; i < n; i++) {
    difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    size += (double)b[i] * b[i];
  }
  return size > 0.0 ? sqrt(difference / size) : sqrt(difference);
}

static void assert_close(const char *what, const float *got, const float *expected, gsize n,
                         double tolerance) {
  double d = distance(got, expected, n);
  if (!(d < tolerance)) {
    g_test_message("%s: relative error %g over %" G_GSIZE_FORMAT " elements", what, d, n);
    for (gsize i = 0, shown = 0; i < n && shown < 4; i++)
      if (!(fabs((double)got[i] - expected[i]) < 0.05 * fabs((double)expected[i]) + 1e-3)) {
        g_test_message("  [%" G_GSIZE_FORMAT "] %g, expected %g", i, (double)got[i],
                       (double)expected[i]);
        shown++;
      }
    g_test_fail();
  }
}

/* --- norms, embedding, activation, sampling -------------------------------------------------- */

static void test_norms(void) {
  static const guint widths[] = {1, 3, 4, 64, 100, 255, 1028, 4096, 5120};
  for (guint s = 0; s < G_N_ELEMENTS(widths); s++)
    for (guint rows = 0; rows <= 7; rows += 7) {
      gsize D = widths[s], n = (gsize)rows * D;
      g_autofree float *x = random_floats(n, 3.0), *gain = random_floats(D, 1.0);
      g_autofree float *bias = random_floats(D, 1.0), *expected = g_new(float, MAX(n, 1));
      float *gpu_x = upload_f32(x, n);
      KvBf16 *gpu_gain = upload_bf16(gain, D), *gpu_bias = upload_bf16(bias, D);
      KvBf16 *out = poisoned(n * 2);
      LAUNCHED(kv_cuda_rms_norm(out, gpu_x, gpu_gain, EPSILON, rows, (guint)D, device->stream));
      kv_host_rms_norm(expected, x, gain, EPSILON, rows, (guint)D);
      g_autofree float *rms = download_bf16(out, n);
      assert_close("rms norm", rms, expected, n, TOLERANCE);
      LAUNCHED(kv_cuda_layer_norm(out, gpu_x, gpu_gain, gpu_bias, EPSILON, rows, (guint)D,
                                  device->stream));
      kv_host_layer_norm(expected, x, gain, bias, EPSILON, rows, (guint)D);
      g_autofree float *layer = download_bf16(out, n);
      assert_close("layer norm", layer, expected, n, TOLERANCE);
      release();
    }
}

static void test_embedding(void) {
  enum { V = 50, D = 100, P = 9, R = 6, S = 3 };
  const guint32 tokens[R] = {0, 49, 7, 7, 13, 48}, positions[R] = {0, 8, 1, 2, 3, 4};
  const guint32 rows[S] = {5, 0, 5};
  g_autofree float *table = random_floats((gsize)V * D, 1.0),
                   *learned = random_floats((gsize)P * D, 1.0);
  KvBf16 *gpu_table = upload_bf16(table, (gsize)V * D),
         *gpu_learned = upload_bf16(learned, (gsize)P * D);
  guint32 *gpu_tokens = on_device(tokens, sizeof tokens), *gpu_rows = on_device(rows, sizeof rows);
  guint32 *gpu_positions = on_device(positions, sizeof positions);
  float *x = poisoned((gsize)R * D * 4), *picked = poisoned((gsize)S * D * 4);
  for (guint with = 0; with < 2; with++) {
    LAUNCHED(kv_cuda_embed(x, gpu_tokens, gpu_positions, gpu_table, with ? gpu_learned : NULL, R, D,
                           device->stream));
    LAUNCHED(kv_cuda_gather_rows(picked, x, gpu_rows, S, D, device->stream));
    g_autofree float *got = download_f32(x, (gsize)R * D),
                     *gathered = download_f32(picked, (gsize)S * D);
    for (guint r = 0; r < R; r++)
      for (guint i = 0; i < D; i++)
        g_assert_cmpfloat(got[(gsize)r * D + i], ==,
                          table[(gsize)tokens[r] * D + i] +
                              (with ? learned[(gsize)positions[r] * D + i] : 0.0f));
    for (guint s = 0; s < S; s++)
      g_assert_cmpmem(gathered + (gsize)s * D, D * 4, got + (gsize)rows[s] * D, D * 4);
  }
  release();
}

static void test_random_weights(void) {
  enum { N = 100003 };
  KvBf16 *first = poisoned((gsize)N * 2), *second = poisoned((gsize)N * 2);
  LAUNCHED(kv_cuda_fill_random(first, N, 1.0f, 0.5f, 7, device->stream));
  LAUNCHED(kv_cuda_fill_random(second, N, 1.0f, 0.5f, 8, device->stream));
  g_autofree float *a = download_bf16(first, N), *b = download_bf16(second, N);
  double sum = 0.0, squares = 0.0;
  guint equal = 0;
  for (guint i = 0; i < N; i++) {
    g_assert_true(a[i] >= 0.5f && a[i] <= 1.5f);
    sum += a[i];
    squares += (a[i] - 1.0) * (a[i] - 1.0);
    equal += a[i] == b[i];
  }
  g_assert_cmpfloat(fabs(sum / N - 1.0), <, 0.01);
  g_assert_cmpfloat(fabs(squares / N - 0.25 / 3.0), <, 0.005); /* uniform of that reach */
  g_assert_cmpuint(equal, <, N / 20);
  release();
}

static void test_activations(void) {
  static const guint widths[] = {1, 7, 8, 96, 2049, 14336};
  for (guint s = 0; s < G_N_ELEMENTS(widths); s++)
    for (guint rows = 0; rows <= 5; rows += 5) {
      gsize E = widths[s], n = rows * E;
      g_autofree float *both = random_floats(2 * n, 4.0), *gate = g_new(float, MAX(n, 1));
      g_autofree float *up = g_new(float, MAX(n, 1));
      if (rows)
        both[0] = -100.0f; /* exp(100) overflows: silu must be 0, not NaN */
      for (gsize r = 0; r < rows; r++) {
        memcpy(gate + r * E, both + 2 * r * E, E * sizeof(float));
        memcpy(up + r * E, both + (2 * r + 1) * E, E * sizeof(float));
      }
      KvBf16 *gpu = upload_bf16(both, 2 * n), *out = poisoned(n * 2);
      LAUNCHED(kv_cuda_swiglu(out, gpu, rows, (guint)E, device->stream));
      g_autofree float *got = download_bf16(out, n);
      g_autofree float *relu = g_memdup2(both, 2 * n * sizeof(float));
      g_autofree float *gelu = g_memdup2(both, 2 * n * sizeof(float));
      kv_host_swiglu(gate, up, n);
      assert_close("swiglu", got, gate, n, TOLERANCE);
      KvBf16 *other = upload_bf16(both, 2 * n);
      LAUNCHED(kv_cuda_activate(gpu, 2 * n, KV_CUDA_RELU, device->stream));
      LAUNCHED(kv_cuda_activate(other, 2 * n, KV_CUDA_GELU, device->stream));
      g_autofree float *got_relu = download_bf16(gpu, 2 * n);
      g_autofree float *got_gelu = download_bf16(other, 2 * n);
      if (n) {
        kv_host_relu(relu, 2 * n);
        kv_host_gelu(gelu, 2 * n);
        assert_close("relu", got_relu, relu, 2 * n, 1e-9);
        assert_close("gelu", got_gelu, gelu, 2 * n, TOLERANCE);
      }
      release();
    }
}

static void test_bias(void) {
  enum { R = 5, N = 77 };
  g_autofree float *x = random_floats((gsize)R * N, 1.0), *bias = random_floats(N, 1.0);
  float *gpu = upload_f32(x, (gsize)R * N);
  LAUNCHED(kv_cuda_add_bias(gpu, upload_bf16(bias, N), R, N, device->stream));
  g_autofree float *got = download_f32(gpu, (gsize)R * N);
  for (guint i = 0; i < (gsize)R * N; i++)
    g_assert_cmpfloat(got[i], ==, x[i] + bias[i % N]);
  release();
}

static void test_argmax(void) {
  static const guint vocabs[] = {1, 2, 31, 32, 1000, 1025, 128256};
  for (guint s = 0; s < G_N_ELEMENTS(vocabs); s++) {
    enum { S = 4 };
    guint V = vocabs[s];
    g_autofree float *logits = random_floats((gsize)S * V, 1.0);
    for (guint v = 0; v < V; v++) { /* all equal; and lower than any number that is written down */
      logits[2 * (gsize)V + v] = 3.0f;
      logits[3 * (gsize)V + v] = -INFINITY;
    }
    logits[V - 1] = 50.0f;
    if (V > 40)
      logits[V + 37] = logits[V + 39] = 60.0f;
    float *gpu = upload_f32(logits, (gsize)S * V);
    guint32 *out = poisoned((gsize)S * 4), got[S];
    LAUNCHED(kv_cuda_argmax(out, gpu, S, V, device->stream));
    OK(kv_cuda_download(device, got, out, sizeof got, &ok_error));
    for (guint i = 0; i < S; i++)
      g_assert_cmpuint(got[i], ==, kv_host_argmax(logits + (gsize)i * V, V));
    release();
  }
}

/* --- products -------------------------------------------------------------------------------- */

static void check_product(guint R, guint K, guint N, gboolean out_f32, gboolean accumulate,
                          gboolean biased) {
  g_autofree float *x = random_floats((gsize)R * K, 1.0);
  g_autofree float *weight = random_floats((gsize)N * K, 1.0 / sqrt(K));
  g_autofree float *bias = random_floats(N, 1.0), *before = random_floats((gsize)R * N, 1.0);
  g_autofree float *turned = g_new(float, (gsize)K *N), *expected = g_new(float, (gsize)R *N);
  for (gsize n = 0; n < N; n++)
    for (gsize k = 0; k < K; k++)
      turned[k * N + n] = weight[n * K + k];
  kv_host_linear(expected, x, turned, biased ? bias : NULL, R, K, N);
  if (accumulate)
    kv_host_add(expected, before, (gsize)R * N);
  void *out = accumulate ? (void *)upload_f32(before, (gsize)R * N)
                         : poisoned((gsize)R * N * (out_f32 ? 4 : 2));
  KvCudaProduct product = {.out = out,
                           .out_f32 = out_f32,
                           .accumulate = accumulate,
                           .x = upload_bf16(x, (gsize)R * K),
                           .weight = upload_bf16(weight, (gsize)N * K),
                           .bias = biased ? upload_bf16(bias, N) : NULL,
                           .rows = R,
                           .inputs = K,
                           .outputs = N};
  OK(kv_cuda_gemm_run(gemm, &product, device->stream, &ok_error));
  g_autofree float *got =
      out_f32 ? download_f32(out, (gsize)R * N) : download_bf16(out, (gsize)R * N);
  g_autofree char *what =
      g_strdup_printf("product %u x %u x %u%s%s%s", R, K, N, out_f32 ? " fp32" : "",
                      accumulate ? " added" : "", biased ? " biased" : "");
  assert_close(what, got, expected, (gsize)R * N, out_f32 ? 1e-4 : TOLERANCE);
  release();
}

static void test_products(void) {
  static const guint rows[] = {1, 2, 3, 4, 5, 16, 33, 130};
  static const guint sizes[][2] = {{8, 1},    {8, 7},      {64, 64},   {72, 199},
                                   {1024, 8}, {4096, 513}, {60, 1000}, {344, 128}};
  for (guint r = 0; r < G_N_ELEMENTS(rows); r++)
    for (guint s = 0; s < G_N_ELEMENTS(sizes); s++) {
      check_product(rows[r], sizes[s][0], sizes[s][1], FALSE, FALSE, FALSE);
      check_product(rows[r], sizes[s][0], sizes[s][1], FALSE, FALSE, TRUE);
      check_product(rows[r], sizes[s][0], sizes[s][1], TRUE, FALSE, FALSE);
      check_product(rows[r], sizes[s][0], sizes[s][1], TRUE, TRUE, FALSE);
    }
}

/* --- the paged cache ------------------------------------------------------------------------- */

/* Sequences with contexts in blocks scattered over one pool, the same on both sides. Slots that no
 * token stands in are NaN: whoever reads them spoils its result. */
typedef struct {
  guint n_kv_heads, head_dim, block_tokens, n_blocks;
  gsize floats; /* of the pool */
  KvHostPages host;
  KvCudaPages gpu;
  guint n_sequences;
  guint32 *contexts, *starts, *table; /* starts: of each sequence's table in `table` */
  guint32 n_table;
  KvCudaTables tables;
} Cache;

static guint shift_of(guint block_tokens) {
  guint shift = 0;
  while (1u << shift < block_tokens)
    shift++;
  return shift;
}

static void cache_scatter(Cache *c) {
  c->starts = g_new(guint32, c->n_sequences);
  for (guint s = 0; s < c->n_sequences; s++) {
    c->starts[s] = c->n_table;
    c->n_table += (c->contexts[s] + c->block_tokens - 1) / c->block_tokens;
  }
  c->n_blocks = 2 * c->n_table + 3;
  c->table = g_new(guint32, c->n_blocks);
  for (guint i = 0; i < c->n_blocks; i++)
    c->table[i] = i;
  for (guint i = 0; i < c->n_table; i++) {
    guint j = random_size(i, c->n_blocks - 1);
    guint32 swapped = c->table[i];
    c->table[i] = c->table[j];
    c->table[j] = swapped;
  }
}

static void cache_init(Cache *c, guint n_kv_heads, guint head_dim, guint block_tokens,
                       const guint32 *contexts, guint n_sequences, gboolean filled) {
  gsize half = (gsize)n_kv_heads * block_tokens * head_dim, width = (gsize)n_kv_heads * head_dim;
  *c = (Cache){.n_kv_heads = n_kv_heads,
               .head_dim = head_dim,
               .block_tokens = block_tokens,
               .n_sequences = n_sequences,
               .contexts = g_memdup2(contexts, n_sequences * sizeof *contexts)};
  cache_scatter(c);
  c->floats = 2 * half * c->n_blocks;
  c->host = (KvHostPages){.pool = g_new(float, c->floats),
                          .block_floats = 2 * half,
                          .value_offset = half,
                          .block_tokens = block_tokens,
                          .n_kv_heads = n_kv_heads,
                          .head_dim = head_dim};
  for (gsize i = 0; i < c->floats; i++)
    c->host.pool[i] = NAN;
  for (guint s = 0; s < n_sequences && filled; s++) {
    g_autofree float *keys = random_floats(contexts[s] * width, 1.0);
    g_autofree float *values = random_floats(contexts[s] * width, 1.0);
    for (guint32 t = 0; t < contexts[s]; t++)
      kv_host_pages_write(&c->host, c->table + c->starts[s], t, keys + t * width,
                          values + t * width);
  }
  c->gpu = (KvCudaPages){.pool = upload_bf16(c->host.pool, c->floats),
                         .block_elements = 2 * half,
                         .value_offset = half,
                         .block_shift = shift_of(block_tokens),
                         .n_kv_heads = n_kv_heads,
                         .head_dim = head_dim};
  c->tables = (KvCudaTables){.table = on_device(c->table, c->n_table * sizeof(guint32)),
                             .table_starts = on_device(c->starts, n_sequences * sizeof(guint32))};
}

static void cache_clear(Cache *c) {
  g_free(c->contexts);
  g_free(c->starts);
  g_free(c->table);
  g_free(c->host.pool);
  release();
}

typedef struct {
  guint n_heads, n_kv_heads, head_dim, block_tokens;
  gboolean normalized, turned;
} Rotation;

static const Rotation rotations[] = {
    {4, 2, 16, 4, FALSE, TRUE},  {4, 4, 64, 16, TRUE, TRUE},    {1, 1, 128, 16, FALSE, TRUE},
    {7, 1, 128, 16, TRUE, TRUE}, {32, 8, 128, 16, FALSE, TRUE}, {12, 12, 64, 1, FALSE, FALSE},
    {5, 5, 80, 32, TRUE, TRUE},  {3, 3, 15, 8, FALSE, FALSE},
};

/* What the twins make of qkv[H + 2 Hkv][d] of the token at `position` of sequence `s`. */
static void rotate_on_host(float *row, Cache *c, const Rotation *a, guint s, guint32 position,
                           const float *query_gain, const float *key_gain) {
  gsize d = a->head_dim;
  float *keys = row + a->n_heads * d, *values = keys + a->n_kv_heads * d;
  if (a->normalized) {
    kv_host_rms_norm(row, row, query_gain, EPSILON, a->n_heads, a->head_dim);
    kv_host_rms_norm(keys, keys, key_gain, EPSILON, a->n_kv_heads, a->head_dim);
  }
  if (a->turned) {
    g_autofree float *cosine = g_new(float, d / 2), *sine = g_new(float, d / 2);
    kv_host_rotary_angles(cosine, sine, position, a->head_dim, &rotary);
    kv_host_rotary(row, cosine, sine, a->n_heads, a->head_dim);
    kv_host_rotary(keys, cosine, sine, a->n_kv_heads, a->head_dim);
  }
  kv_host_pages_write(&c->host, c->table + c->starts[s], position, keys, values);
}

static float2 *upload_angles(guint positions, guint d) {
  g_autofree float2 *angles = g_new(float2, (gsize)positions * (d / 2) + 1);
  g_autofree float *cosine = g_new(float, d), *sine = g_new(float, d);
  for (guint p = 0; p < positions; p++) {
    kv_host_rotary_angles(cosine, sine, p, d, &rotary);
    for (guint i = 0; i < d / 2; i++)
      angles[(gsize)p * (d / 2) + i] = (float2){cosine[i], sine[i]};
  }
  return on_device(angles, (gsize)positions * (d / 2) * sizeof *angles);
}

static void check_rotation(const Rotation *a) {
  const guint32 contexts[] = {1, 37, 0, 16};
  /* a decode, a chunk from the middle, and a padding row */
  const guint32 sequences[] = {0, 1, 1, 1, 1, G_MAXUINT32, 3},
                positions[] = {0, 33, 34, 35, 36, 0, 15};
  guint R = G_N_ELEMENTS(sequences), heads = a->n_heads + 2 * a->n_kv_heads;
  gsize d = a->head_dim, width = heads * d;
  Cache c;
  cache_init(&c, a->n_kv_heads, a->head_dim, a->block_tokens, contexts, 4, FALSE);
  g_autofree float *rows = random_floats(R * width, 1.0);
  g_autofree float *query_gain = random_floats(d, 1.0), *key_gain = random_floats(d, 1.0);
  KvBf16 *gpu = upload_bf16(rows, R * width);
  LAUNCHED(kv_cuda_rotate_and_store(
      gpu, &c.gpu, &c.tables, on_device(sequences, sizeof sequences),
      on_device(positions, sizeof positions), a->turned ? upload_angles(40, a->head_dim) : NULL,
      a->normalized ? upload_bf16(query_gain, d) : NULL,
      a->normalized ? upload_bf16(key_gain, d) : NULL, EPSILON, R, a->n_heads, device->stream));
  for (guint r = 0; r < R; r++)
    if (sequences[r] != G_MAXUINT32)
      rotate_on_host(rows + r * width, &c, a, sequences[r], positions[r], query_gain, key_gain);
  g_autofree float *got = download_bf16(gpu, R * width),
                   *pool = download_bf16(c.gpu.pool, c.floats);
  for (guint r = 0; r < R; r++)
    assert_close("turned queries", got + r * width, rows + r * width, a->n_heads * d, TOLERANCE);
  double difference = 0.0, size = 0.0;
  for (gsize i = 0; i < c.floats; i++) {
    g_assert_cmpint(isnan(pool[i]), ==, isnan(c.host.pool[i])); /* nothing else is written */
    if (!isnan(pool[i])) {
      difference += pow((double)pool[i] - c.host.pool[i], 2);
      size += pow(c.host.pool[i], 2);
    }
  }
  g_assert_cmpfloat(sqrt(difference / size), <, TOLERANCE);
  cache_clear(&c);
}

static void test_rotation(void) {
  for (guint i = 0; i < G_N_ELEMENTS(rotations); i++)
    check_rotation(&rotations[i]);
}

/* --- attention ------------------------------------------------------------------------------- */

static void check_decode(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens,
                         guint window, const guint32 *contexts, guint n, guint32 split_tokens) {
  gsize d = head_dim, width = n_heads * d, stride = width + (gsize)2 * n_kv_heads * d;
  guint32 longest = 1;
  Cache c;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, contexts, n, TRUE);
  g_autofree float *rows = random_floats(n * stride, 1.0);
  g_autofree float *expected = g_new0(float, n *width);
  for (guint s = 0; s < n; s++) {
    g_autofree float *scores = g_new(float, contexts[s] + 1);
    longest = MAX(longest, contexts[s]);
    if (contexts[s])
      kv_host_attention(expected + s * width, rows + s * stride, &c.host, c.table + c.starts[s],
                        contexts[s] - 1, 1, n_heads, window, scores);
  }
  guint32 splits = (longest + split_tokens - 1) / split_tokens + 1; /* one never used */
  gsize scratch_bytes = kv_cuda_decode_scratch_bytes(n, n_heads, head_dim, splits);
  void *scratch = poisoned(scratch_bytes), *q = upload_bf16(rows, n * stride);
  gsize counter_bytes = (gsize)n * n_heads * sizeof(guint32);
  guint32 *counters = on_device(NULL, counter_bytes);
  void *gpu_contexts = on_device(contexts, n * sizeof *contexts);
  void *gpu_split = on_device(&split_tokens, sizeof split_tokens);
  OK(kv_cuda_fill(device, counters, 0, counter_bytes, &ok_error));
  for (guint again = 0; again < 2; again++) { /* the counters must be left as they were found */
    KvBf16 *out = poisoned(n * width * 2);
    LAUNCHED(kv_cuda_decode_attention(out, q, stride, &c.gpu, &c.tables, gpu_contexts, n, n_heads,
                                      window, gpu_split, splits, counters, scratch,
                                      device->stream));
    g_autofree float *got = download_bf16(out, n * width);
    for (guint s = 0; s < n; s++) {
      g_autofree char *what =
          g_strdup_printf("decode H %u Hkv %u d %u block %u window %u context %u split %u", n_heads,
                          n_kv_heads, head_dim, block_tokens, window, contexts[s], split_tokens);
      assert_close(what, got + s * width, expected + s * width, width, TOLERANCE);
    }
  }
  cache_clear(&c);
}

static const guint head_shapes[][3] = {{1, 1, 64},   {4, 4, 128},  {8, 2, 128}, {32, 8, 128},
                                       {7, 1, 128},  {10, 2, 128}, {16, 1, 64}, {32, 1, 64},
                                       {40, 2, 128}, {6, 3, 80},   {4, 2, 96},  {12, 12, 64}};

static void test_decode_attention(void) {
  static const guint32 contexts[] = {1, 0, 2, 15, 16, 17, 63, 64, 65, 129, 500, 1000};
  static const guint blocks[] = {16, 1, 8, 64}, windows[] = {0, 1, 20, 64, 300};
  static const guint32 splits[] = {64, 128, 1024};
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h += every)
    for (guint s = 0; s < G_N_ELEMENTS(splits); s++)
      check_decode(head_shapes[h][0], head_shapes[h][1], head_shapes[h][2], blocks[(h + s) % 4],
                   windows[(h + s) % 5], contexts, G_N_ELEMENTS(contexts), splits[s]);
  for (guint i = 0; i < 20 / every; i++) {
    guint32 few[3] = {random_size(0, 300), random_size(1, 2000), random_size(0, 40)};
    const guint *shape = head_shapes[random_size(0, G_N_ELEMENTS(head_shapes) - 1)];
    check_decode(shape[0], shape[1], shape[2], 1u << random_size(0, 6),
                 random_size(0, 1) ? random_size(1, 500) : 0, few, 3, 64 * random_size(1, 9));
  }
}

typedef struct {
  guint32 past, tokens;
} Chunk;

/* Chunks of several sequences in one launch, cut into tiles. */
static void check_prefill(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens,
                          guint window, const Chunk *chunks, guint n) {
  gsize d = head_dim, width = n_heads * d, stride = width + (gsize)2 * n_kv_heads * d;
  g_autofree guint32 *contexts = g_new(guint32, n);
  guint32 rows = 0, first = 0, most = kv_cuda_prefill_tile_tokens(n_heads, n_kv_heads);
  for (guint s = 0; s < n; s++) {
    contexts[s] = chunks[s].past + chunks[s].tokens;
    rows += chunks[s].tokens;
  }
  Cache c;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, contexts, n, TRUE);
  g_autofree float *q = random_floats(rows * stride, 1.0), *expected = g_new(float, rows *width);
  GArray *tiles = g_array_new(FALSE, FALSE, sizeof(KvCudaTile));
  for (guint s = 0; s < n; first += chunks[s++].tokens) {
    g_autofree float *scores = g_new(float, contexts[s] + 1);
    g_autofree float *dense = g_new(float, MAX(chunks[s].tokens, 1) * width);
    for (guint32 t = 0; t < chunks[s].tokens; t++)
      memcpy(dense + t * width, q + (first + t) * stride, width * sizeof(float));
    kv_host_attention(expected + first * width, dense, &c.host, c.table + c.starts[s],
                      chunks[s].past, chunks[s].tokens, n_heads, window, scores);
    for (guint32 t = 0; t < chunks[s].tokens; t += most) {
      KvCudaTile tile = {s, first + t, chunks[s].past + t, MIN(most, chunks[s].tokens - t)};
      g_array_append_val(tiles, tile);
    }
  }
  KvBf16 *out = poisoned(rows * width * 2);
  LAUNCHED(kv_cuda_prefill_attention(out, upload_bf16(q, rows * stride), stride, &c.gpu, &c.tables,
                                     on_device(tiles->data, tiles->len * sizeof(KvCudaTile)),
                                     tiles->len, n_heads, window, device->stream));
  g_autofree float *got = download_bf16(out, rows * width);
  first = 0;
  for (guint s = 0; s < n; first += chunks[s++].tokens) {
    g_autofree char *what = g_strdup_printf(
        "prefill H %u Hkv %u d %u block %u window %u past %u tokens %u", n_heads, n_kv_heads,
        head_dim, block_tokens, window, chunks[s].past, chunks[s].tokens);
    assert_close(what, got + first * width, expected + first * width, chunks[s].tokens * width,
                 TOLERANCE);
  }
  g_array_unref(tiles);
  cache_clear(&c);
}

static void test_prefill_attention(void) {
  static const Chunk chunks[] = {{0, 1},   {0, 15}, {0, 0},   {5, 1},   {63, 1},
                                 {64, 65}, {0, 64}, {0, 200}, {300, 7}, {17, 130}};
  static const guint blocks[] = {16, 1, 8, 64}, windows[] = {0, 1, 20, 64, 150};
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h += every)
    for (guint w = 0; w < 3; w++)
      check_prefill(head_shapes[h][0], head_shapes[h][1], head_shapes[h][2], blocks[(h + w) % 4],
                    windows[(h + 2 * w) % 5], chunks, G_N_ELEMENTS(chunks));
  for (guint i = 0; i < 12 / every; i++) {
    Chunk few[2] = {{random_size(0, 300), random_size(1, 300)},
                    {random_size(0, 40), random_size(0, 40)}};
    const guint *shape = head_shapes[random_size(0, G_N_ELEMENTS(head_shapes) - 1)];
    check_prefill(shape[0], shape[1], shape[2], 1u << random_size(0, 6),
                  random_size(0, 1) ? random_size(1, 400) : 0, few, 2);
  }
  /* More jobs than multiprocessors: blocks take several, of different lengths. */
  static const Chunk many[] = {{0, 400}, {250, 150}};
  check_prefill(64, 64, 64, 16, 0, many, G_N_ELEMENTS(many));
}

/* Scores whose exponentials overflow: the largest must win without a NaN. */
static void test_attention_extremes(void) {
  const guint32 context = 100;
  Cache c;
  cache_init(&c, 1, 64, 16, &context, 1, TRUE);
  g_autofree float *q = random_floats(192, 300.0), *expected = g_new(float, 64);
  g_autofree float *scores = g_new(float, context);
  kv_host_attention(expected, q, &c.host, c.table, context - 1, 1, 1, 0, scores);
  KvBf16 *gpu_q = upload_bf16(q, 192), *out = poisoned(128), *other = poisoned(128);
  const guint32 split = 64;
  const guint32 zero = 0;
  void *scratch = poisoned(kv_cuda_decode_scratch_bytes(1, 1, 64, 2));
  LAUNCHED(kv_cuda_decode_attention(
      out, gpu_q, 192, &c.gpu, &c.tables, on_device(&context, sizeof context), 1, 1, 0,
      on_device(&split, sizeof split), 2, on_device(&zero, sizeof zero), scratch, device->stream));
  const KvCudaTile tile = {0, 0, context - 1, 1};
  LAUNCHED(kv_cuda_prefill_attention(other, gpu_q, 192, &c.gpu, &c.tables,
                                     on_device(&tile, sizeof tile), 1, 1, 0, device->stream));
  g_autofree float *decoded = download_bf16(out, 64), *prefilled = download_bf16(other, 64);
  assert_close("decode with large scores", decoded, expected, 64, TOLERANCE);
  assert_close("prefill with large scores", prefilled, expected, 64, TOLERANCE);
  cache_clear(&c);
}

/* A decoding sequence that begins with so many blocks of another, earlier one. */
typedef struct {
  guint32 context;
  guint like;
  guint32 blocks;
} Sharer;

/* Spare rows, without a context, come last. */
static KvCudaSharing *plan_sharing(const Cache *c, const Sharer *sharers, guint n, guint n_heads,
                                   guint over, guint multiprocessors) {
  KvCudaLayer layer = {.attention = {.n_heads = n_heads, .n_kv_heads = c->n_kv_heads}};
  const KvCudaWeights weights = {.n_layers = 1, .layers = &layer};
  KvCudaDevice smaller = *device;
  g_autofree KvHostSpan *spans = g_new0(KvHostSpan, n);
  guint decoding = 0;
  for (guint s = 0; s < n && sharers[s].context; s++)
    spans[decoding++] = (KvHostSpan){.block_table = c->table + c->starts[s],
                                     .past = sharers[s].context - 1,
                                     .n_tokens = 1,
                                     .decoding = TRUE};
  smaller.multiprocessors = multiprocessors;
  KvCudaSharing *sharing = kv_cuda_sharing_new(&smaller, &weights, c->block_tokens, over);
  kv_cuda_sharing_plan(sharing, spans, decoding);
  return sharing;
}

/* As the engine uploads it, with room that is not used. */
static KvCudaShared upload_sharing(const KvCudaSharing *sharing, const Cache *c, guint n,
                                   guint n_heads) {
  guint32 tiles = sharing->tiles->len, parts = kv_cuda_sharing_parts(sharing);
  guint decoding = sharing->found.members->len;
  g_autofree guint32 *firsts = g_new0(guint32, n), *starts = g_new(guint32, n + 1);
  g_autofree KvCudaSharedTile *at = g_new0(KvCudaSharedTile, tiles + 3);
  for (guint s = 0; s <= n; s++)
    starts[s] = s < decoding ? g_array_index(sharing->part_starts, guint32, s) : parts;
  memcpy(firsts, sharing->found.shared->data, decoding * sizeof *firsts);
  for (guint i = 0; i < tiles; i++) {
    at[i] = g_array_index(sharing->tiles, KvCudaSharedTile, i);
    at[i].table = c->starts[at[i].table];
  }
  return (KvCudaShared){
      .tiles = on_device(at, (tiles + 3) * sizeof *at),
      .n_tiles = on_device(&tiles, sizeof tiles),
      .members = on_device(sharing->found.members->data, decoding * sizeof(guint32)),
      .first_tokens = on_device(firsts, n * sizeof *firsts),
      .part_starts = on_device(starts, (n + 1) * sizeof *starts),
      .most_tiles = tiles + 3,
      .most_parts = parts + 2,
      .scratch = poisoned(kv_cuda_shared_scratch_bytes(parts + 2, n_heads, c->head_dim))};
}

static void check_shared(const guint *shape, guint block_tokens, const Sharer *sharers, guint n,
                         guint over, guint multiprocessors, guint32 split_tokens) {
  guint n_heads = shape[0];
  gsize d = shape[2], width = n_heads * d, stride = width + 2 * (gsize)shape[1] * d;
  g_autofree guint32 *contexts = g_new(guint32, n);
  Cache c;
  for (guint s = 0; s < n; s++)
    contexts[s] = sharers[s].context;
  cache_init(&c, shape[1], shape[2], block_tokens, contexts, n, TRUE);
  for (guint s = 0; s < n; s++)
    for (guint32 b = 0; b < sharers[s].blocks; b++)
      c.table[c.starts[s] + b] = c.table[c.starts[sharers[s].like] + b];
  c.tables.table = on_device(c.table, c.n_table * sizeof(guint32));
  KvCudaSharing *sharing = plan_sharing(&c, sharers, n, n_heads, over, multiprocessors);
  KvCudaShared shared = upload_sharing(sharing, &c, n, n_heads);
  kv_cuda_sharing_free(sharing);
  g_autofree float *rows = random_floats(n * stride, 1.0);
  g_autofree float *expected = g_new0(float, n *width);
  guint32 longest = 1;
  for (guint s = 0; s < n; s++) {
    g_autofree float *scores = g_new(float, contexts[s] + 1);
    longest = MAX(longest, contexts[s]);
    if (contexts[s])
      kv_host_attention(expected + s * width, rows + s * stride, &c.host, c.table + c.starts[s],
                        contexts[s] - 1, 1, n_heads, 0, scores);
  }
  guint32 splits = (longest + split_tokens - 1) / split_tokens + 1;
  void *scratch = poisoned(kv_cuda_decode_scratch_bytes(n, n_heads, shape[2], splits));
  KvBf16 *q = upload_bf16(rows, n * stride), *out = poisoned(n * width * sizeof *out);
  gsize counter_bytes = (gsize)n * n_heads * sizeof(guint32);
  guint32 *counters = on_device(NULL, counter_bytes);
  OK(kv_cuda_fill(device, counters, 0, counter_bytes, &ok_error));
  LAUNCHED(kv_cuda_shared_attention(&shared, q, stride, &c.gpu, c.tables.table, n_heads,
                                    device->stream));
  LAUNCHED(kv_cuda_decode_attention_shared(out, q, stride, &c.gpu, &c.tables,
                                           on_device(contexts, n * sizeof *contexts), n, n_heads,
                                           &shared, on_device(&split_tokens, sizeof split_tokens),
                                           splits, counters, scratch, device->stream));
  g_autofree float *got = download_bf16(out, n * width);
  for (guint s = 0; s < n; s++) {
    g_autofree char *what =
        g_strdup_printf("shared H %u Hkv %u d %u block %u, %u of %u: context %u", n_heads, shape[1],
                        shape[2], block_tokens, s, n, contexts[s]);
    assert_close(what, got + s * width, expected + s * width, width, TOLERANCE);
  }
  cache_clear(&c);
}

static void test_shared_attention(void) {
  /* Alone; two; nothing of its own but the newest token; a tree of three levels, another group, one
   * that shares nothing, and the graph's spare rows. Prefixes end within pieces and splits. */
  static const Sharer one[] = {{300, 0, 0}}, two[] = {{300, 0, 0}, {317, 0, 17}},
                      bare[] = {{273, 0, 0}, {273, 0, 17}, {257, 0, 16}, {17, 0, 1}, {16, 0, 1}},
                      tree[] = {{900, 0, 0},  {700, 0, 21}, {640, 1, 30}, {650, 2, 35},
                                {1, 4, 0},    {500, 5, 0},  {333, 5, 20}, {900, 0, 50},
                                {901, 0, 50}, {90, 9, 0},   {0, 10, 0},   {0, 11, 0}};
  static const guint wide[] = {96, 1, 64};
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h += every) {
    const guint *shape = head_shapes[h];
    check_shared(shape, 16, one, G_N_ELEMENTS(one), 1, 132, 64);
    check_shared(shape, 16, two, G_N_ELEMENTS(two), 1, 132, 64);
    check_shared(shape, 16, bare, G_N_ELEMENTS(bare), 1, 132, 128);
    check_shared(shape, 16, tree, G_N_ELEMENTS(tree), 1 + h % 2, h % 3 ? 132 : 1, h % 2 ? 64 : 512);
  }
  check_shared(wide, 16, tree, G_N_ELEMENTS(tree), 1, 132, 64);
  g_autofree Sharer *many = g_new(Sharer, 200);
  for (guint s = 0; s < 200; s++)
    many[s] = (Sharer){512 + random_size(1, 80), 0, s ? 512 / 64 : 0};
  check_shared(head_shapes[0], 64, many, 200, 1, 132, 64);
  check_shared(head_shapes[6], 64, many, 200, 1, 132, 1024);
}

static void test_block_copies(void) {
  enum { LAYERS = 3, BLOCKS = 9 };
  const guint64 bytes[LAYERS] = {16, 4096, 48};
  const guint32 from[] = {0, 8, 3}, to[] = {1, 2, 7};
  char *pools[LAYERS];
  g_autofree guint8 *before[LAYERS] = {NULL};
  for (guint l = 0; l < LAYERS; l++) {
    before[l] = g_malloc(bytes[l] * BLOCKS);
    for (gsize i = 0; i < bytes[l] * BLOCKS; i++)
      before[l][i] = (guint8)kv_random_u64(&random_numbers);
    pools[l] = on_device(before[l], bytes[l] * BLOCKS);
  }
  LAUNCHED(kv_cuda_copy_blocks(on_device(pools, sizeof pools), on_device(bytes, sizeof bytes),
                               LAYERS, on_device(from, sizeof from), on_device(to, sizeof to), 3,
                               device->stream));
  for (guint l = 0; l < LAYERS; l++) {
    g_autofree guint8 *after = g_malloc(bytes[l] * BLOCKS);
    OK(kv_cuda_download(device, after, pools[l], bytes[l] * BLOCKS, &ok_error));
    for (guint i = 0; i < G_N_ELEMENTS(from); i++)
      memcpy(before[l] + to[i] * bytes[l], before[l] + from[i] * bytes[l], bytes[l]);
    g_assert_cmpmem(after, bytes[l] * BLOCKS, before[l], bytes[l] * BLOCKS);
  }
  for (guint l = 1; l < LAYERS; l++)
    g_free(before[l]);
  release();
}

/* --- compressed caches ------------------------------------------------------------------------ */

/* A cache of `filled` tokens and its packed twin under the same table, empty, all NaN bits. */
static KvCudaPacked packed_beside(const Cache *c, const KvHostCompression *k, guint rings) {
  KvCudaPacked packed = {.bits = k->format == KV_HOST_FP8 ? 8 : k->bits,
                         .group = k->format == KV_HOST_FP8 ? 1 : k->group,
                         .residual = k->residual,
                         .block_shift = c->gpu.block_shift,
                         .n_kv_heads = c->n_kv_heads,
                         .head_dim = c->head_dim};
  kv_cuda_packed_lay_out(&packed);
  packed.pool = poisoned(packed.block_bytes * c->n_blocks);
  packed.ring = poisoned(packed.ring_elements * rings * sizeof(guint16));
  return packed;
}

/* Keys and values of the cache's token as a row of qkv; queries are random. */
static void row_of_token(float *row, const Cache *c, guint n_heads, guint s, guint32 token) {
  gsize d = c->head_dim, slot = token % c->block_tokens;
  const float *block =
      c->host.pool + c->table[c->starts[s] + token / c->block_tokens] * c->host.block_floats;
  for (guint h = 0; h < c->n_kv_heads; h++) {
    const float *key = block + ((gsize)h * c->block_tokens + slot) * d;
    memcpy(row + (n_heads + h) * d, key, d * sizeof *row);
    memcpy(row + (n_heads + c->n_kv_heads + h) * d, key + c->host.value_offset, d * sizeof *row);
  }
}

/* Decode attention over the packed cache against the twin over c->host. */
static void check_packed_decode(const char *name, const Cache *c, const KvCudaPacked *packed,
                                const guint32 *rings, guint n_heads, guint window,
                                guint32 split_tokens) {
  guint n = c->n_sequences;
  gsize d = c->head_dim, width = n_heads * d, stride = width + (gsize)2 * c->n_kv_heads * d;
  guint32 longest = 1;
  g_autofree float *rows = random_floats(n * stride, 1.0), *expected = g_new0(float, n *width);
  for (guint s = 0; s < n; s++) {
    g_autofree float *scores = g_new(float, c->contexts[s] + 1);
    longest = MAX(longest, c->contexts[s]);
    if (c->contexts[s])
      kv_host_attention(expected + s * width, rows + s * stride, &c->host, c->table + c->starts[s],
                        c->contexts[s] - 1, 1, n_heads, window, scores);
  }
  guint32 splits = (longest + split_tokens - 1) / split_tokens;
  gsize counter_bytes = (gsize)n * n_heads * sizeof(guint32);
  guint32 *counters = on_device(NULL, counter_bytes);
  void *scratch = poisoned(kv_cuda_decode_scratch_bytes(n, n_heads, c->head_dim, splits));
  void *q = upload_bf16(rows, n * stride);
  OK(kv_cuda_fill(device, counters, 0, counter_bytes, &ok_error));
  for (guint again = 0; again < 2; again++) {
    KvBf16 *out = poisoned(n * width * 2);
    LAUNCHED(kv_cuda_decode_attention_packed(
        out, q, stride, packed, &c->tables, rings ? on_device(rings, n * sizeof *rings) : NULL,
        on_device(c->contexts, n * sizeof *c->contexts), n, n_heads, window,
        on_device(&split_tokens, sizeof split_tokens), splits, counters, scratch, device->stream));
    g_autofree float *got = download_bf16(out, n * width);
    for (guint s = 0; s < n; s++) {
      g_autofree char *what = g_strdup_printf(
          "%s decode: %u bits, group %u, R %u, H %u Hkv %u d %u block %u window %u context %u split "
          "%u",
          name, packed->bits, packed->group, packed->residual, n_heads, c->n_kv_heads, c->head_dim,
          c->block_tokens, window, c->contexts[s], split_tokens);
      assert_close(what, got + s * width, expected + s * width, width, TOLERANCE);
    }
  }
}

static void check_fp8(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens,
                      guint window, const guint32 *contexts, guint n, guint32 split_tokens) {
  const KvHostCompression k = {.format = KV_HOST_FP8};
  gsize width = (n_heads + 2 * (gsize)n_kv_heads) * head_dim, r = 0, total = 0;
  Cache c;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, contexts, n, TRUE);
  KvCudaPacked packed = packed_beside(&c, &k, 0);
  for (guint s = 0; s < n; s++)
    total += contexts[s];
  g_autofree float *rows = random_floats((total + 1) * width, 1.0);
  g_autofree guint32 *sequences = g_new(guint32, total + 1), *slots = g_new(guint32, total + 1);
  for (guint s = 0; s < n; s++)
    for (guint32 t = 0; t < contexts[s]; t++, r++) {
      row_of_token(rows + r * width, &c, n_heads, s, t);
      sequences[r] = s;
      slots[r] = t;
    }
  sequences[total] = G_MAXUINT32; /* a padding row */
  slots[total] = 0;
  LAUNCHED(kv_cuda_store_fp8(upload_bf16(rows, (total + 1) * width), &packed, &c.tables,
                             on_device(sequences, (total + 1) * sizeof *sequences),
                             on_device(slots, (total + 1) * sizeof *slots), (guint)total + 1,
                             n_heads, device->stream));
  for (gsize i = 0; i < c.floats; i++)
    c.host.pool[i] = kv_host_round_e4m3(c.host.pool[i]);
  g_autofree guint32 *all = g_new(guint32, c.n_blocks);
  for (guint i = 0; i < c.n_blocks; i++)
    all[i] = i;
  KvCudaPages wide = c.gpu;
  wide.pool = poisoned(c.floats * sizeof(KvBf16));
  LAUNCHED(kv_cuda_widen_fp8(&wide, &packed, on_device(all, c.n_blocks * sizeof *all), c.n_blocks,
                             device->stream));
  g_autofree float *got = download_bf16(wide.pool, c.floats);
  for (gsize i = 0; i < c.floats; i++)
    if (!(got[i] == c.host.pool[i] || (isnan(got[i]) && isnan(c.host.pool[i])))) {
      g_test_message("e4m3 element %" G_GSIZE_FORMAT " is %g, expected %g", i, (double)got[i],
                     (double)c.host.pool[i]);
      g_test_fail();
      break;
    }
  check_packed_decode("fp8", &c, &packed, NULL, n_heads, window, split_tokens);
  cache_clear(&c);
}

static const guint packed_shapes[][3] = {{1, 1, 64},  {8, 2, 128}, {32, 8, 128},
                                         {7, 1, 128}, {40, 2, 64}, {12, 12, 64}};

static void test_fp8_cache(void) {
  static const guint32 contexts[] = {1, 0, 2, 15, 16, 17, 31, 32, 33, 65, 129, 500, 1000};
  static const guint blocks[] = {16, 1, 8, 64}, windows[] = {0, 1, 20, 64, 300};
  static const guint32 splits[] = {64, 256};
  for (guint h = 0; h < G_N_ELEMENTS(packed_shapes); h += every)
    for (guint s = 0; s < G_N_ELEMENTS(splits); s++)
      check_fp8(packed_shapes[h][0], packed_shapes[h][1], packed_shapes[h][2], blocks[(h + s) % 4],
                windows[(h + 3 * s) % 5], contexts, G_N_ELEMENTS(contexts), splits[s]);
}

/* All but the last tokens of each sequence as a prompt that is packed at once, those appended. */
static void check_kivi(const KvHostCompression *k, guint n_heads, guint n_kv_heads, guint head_dim,
                       guint block_tokens, const guint32 *contexts, guint n, guint appended,
                       guint32 split_tokens) {
  gsize width = (n_heads + 2 * (gsize)n_kv_heads) * head_dim;
  g_autofree guint32 *rings = g_new(guint32, n), *now = g_new(guint32, n);
  g_autofree float *rows = random_floats(n * width, 1.0);
  Cache c;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, contexts, n, TRUE);
  KvCudaPacked packed = packed_beside(&c, k, n);
  for (guint s = 0; s < n; s++) {
    rings[s] = n - 1 - s;
    now[s] = contexts[s] > appended ? contexts[s] - appended : contexts[s];
    LAUNCHED(kv_cuda_kivi_pack(&packed, c.tables.table + c.starts[s], &c.gpu,
                               c.tables.table + c.starts[s], rings[s], now[s], 1, device->stream));
  }
  for (guint step = 0; step < appended; step++) {
    g_autofree guint32 *active = g_new0(guint32, n);
    for (guint s = 0; s < n; s++)
      if (now[s] < contexts[s]) {
        row_of_token(rows + s * width, &c, n_heads, s, now[s]);
        active[s] = ++now[s];
      }
    KvBf16 *qkv = upload_bf16(rows, n * width);
    for (guint again = 0; again < 2; again++) /* a pass may be run twice */
      LAUNCHED(kv_cuda_kivi_append(qkv, &packed, &c.tables, on_device(rings, n * sizeof *rings),
                                   on_device(active, n * sizeof *active), n, n_heads,
                                   device->stream));
  }
  for (guint s = 0; s < n; s++) {
    kv_host_kivi_pack_keys(k, &c.host, c.table + c.starts[s], 0,
                           kv_host_kivi_packed_keys(k, contexts[s]));
    kv_host_kivi_pack_values(k, &c.host, c.table + c.starts[s], 0,
                             kv_host_kivi_packed_values(k, contexts[s]));
  }
  check_packed_decode("kivi", &c, &packed, rings, n_heads, 0, split_tokens);
  cache_clear(&c);
}

static void test_kivi_cache(void) {
  static const guint32 contexts[] = {1, 0, 31, 32, 33, 64, 127, 128, 129, 160, 191, 333, 517, 1000};
  static const struct {
    guint bits, group, residual, block_tokens;
  } settings[] = {{2, 32, 128, 32},  {4, 32, 128, 32}, {2, 32, 32, 64},   {4, 64, 64, 64},
                  {2, 64, 128, 128}, {4, 32, 96, 32},  {2, 128, 128, 128}};
  for (guint i = 0; i < G_N_ELEMENTS(settings); i++)
    for (guint h = 0; h < G_N_ELEMENTS(packed_shapes); h += every) {
      const KvHostCompression k = {.format = KV_HOST_KIVI,
                                   .bits = settings[i].bits,
                                   .group = settings[i].group,
                                   .residual = settings[i].residual};
      if (packed_shapes[h][2] % k.group)
        continue;
      check_kivi(&k, packed_shapes[h][0], packed_shapes[h][1], packed_shapes[h][2],
                 settings[i].block_tokens, contexts, G_N_ELEMENTS(contexts), (i + h) % 3 * 20,
                 h % 2 ? 64 : 256);
    }
}

/* Keys in bf16 with room for summaries: store, summarize, choose, attend, beside the twin. */
static void check_quest(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens,
                        const guint32 *contexts, guint n, guint chosen) {
  const KvHostCompression k = {.format = KV_HOST_QUEST, .pages = chosen};
  gsize d = head_dim, width = n_heads * d, stride = width + (gsize)2 * n_kv_heads * d, total = 0;
  Cache c;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, contexts, n, TRUE);
  KvCudaPages pages = c.gpu;
  pages.block_elements += (gsize)2 * n_kv_heads * d;
  pages.pool = poisoned(pages.block_elements * c.n_blocks * sizeof(KvBf16));
  guint32 most = 1;
  for (guint s = 0; s < n; s++) {
    total += contexts[s];
    most = MAX(most, (contexts[s] + block_tokens - 1) / block_tokens);
  }
  g_autofree float *rows = random_floats(total * stride, 1.0), *expected = g_new0(float, n *width);
  g_autofree guint32 *sequences = g_new(guint32, total), *slots = g_new(guint32, total);
  gsize r = 0;
  for (guint s = 0; s < n; s++)
    for (guint32 t = 0; t < contexts[s]; t++, r++) {
      row_of_token(rows + r * stride, &c, n_heads, s, t);
      sequences[r] = s;
      slots[r] = t;
    }
  KvBf16 *qkv = upload_bf16(rows, total * stride);
  guint32 *gpu_sequences = on_device(sequences, total * sizeof *sequences);
  guint32 *gpu_slots = on_device(slots, total * sizeof *slots);
  LAUNCHED(kv_cuda_store(qkv, &pages, &c.tables, gpu_sequences, gpu_slots, (guint)total, n_heads,
                         device->stream));
  LAUNCHED(
      kv_cuda_summarize(&pages, &c.tables, gpu_sequences, gpu_slots, (guint)total, device->stream));
  g_autofree float *queries = random_floats(n * stride, 1.0);
  g_autofree float *dense = g_new(float, n *width);
  for (guint s = 0; s < n; s++) {
    g_autofree float *scores = g_new(float, contexts[s] + 1);
    memcpy(dense + s * width, queries + s * stride, width * sizeof *dense);
    if (contexts[s])
      kv_host_quest_attention(&k, expected + s * width, dense + s * width, &c.host,
                              c.table + c.starts[s], contexts[s], n_heads, scores);
  }
  gsize ones = (gsize)n * n_kv_heads, counter_bytes = (gsize)n * n_heads * sizeof(guint32);
  g_autofree guint32 *starts = g_new(guint32, ones);
  for (gsize i = 0; i < ones; i++)
    starts[i] = (guint32)i * chosen;
  const guint32 split = 64, splits = (chosen * block_tokens + split - 1) / split;
  guint32 *table = poisoned(ones * chosen * sizeof *table), *held = poisoned(ones * sizeof *held);
  LAUNCHED(kv_cuda_choose_pages(table, held, poisoned(ones * most * sizeof(float)),
                                upload_bf16(queries, n * stride), stride, &pages, &c.tables,
                                on_device(contexts, n * sizeof *contexts), n, n_heads, chosen, most,
                                device->stream));
  KvCudaPages parts = pages;
  parts.block_elements = d;
  parts.n_kv_heads = 1;
  guint32 *counters = on_device(NULL, counter_bytes);
  OK(kv_cuda_fill(device, counters, 0, counter_bytes, &ok_error));
  KvBf16 *out = poisoned(n * width * 2);
  const KvCudaTables tables = {table, on_device(starts, ones * sizeof *starts)};
  LAUNCHED(kv_cuda_decode_attention(
      out, upload_bf16(dense, n * width), n_heads / n_kv_heads * d, &parts, &tables, held,
      (guint)ones, n_heads / n_kv_heads, 0, on_device(&split, sizeof split), splits, counters,
      poisoned(kv_cuda_decode_scratch_bytes((guint)ones, n_heads / n_kv_heads, head_dim, splits)),
      device->stream));
  g_autofree float *got = download_bf16(out, n * width);
  for (guint s = 0; s < n; s++) {
    g_autofree char *what =
        g_strdup_printf("quest H %u Hkv %u d %u page %u chosen %u context %u", n_heads, n_kv_heads,
                        head_dim, block_tokens, chosen, contexts[s]);
    assert_close(what, got + s * width, expected + s * width, width, TOLERANCE);
  }
  cache_clear(&c);
}

static void test_quest_cache(void) {
  static const guint32 contexts[] = {1, 0, 16, 17, 48, 63, 64, 65, 333, 1000};
  static const guint pages[] = {16, 8, 64}, chosen[] = {3, 10};
  for (guint h = 0; h < G_N_ELEMENTS(packed_shapes); h += every)
    for (guint i = 0; i < G_N_ELEMENTS(chosen); i++)
      check_quest(packed_shapes[h][0], packed_shapes[h][1], packed_shapes[h][2], pages[(h + i) % 3],
                  contexts, G_N_ELEMENTS(contexts), chosen[i]);
}

/* A prompt in chunks: the attention that its tokens draw, against the twin's sums query by query.
 */
static void check_sums(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens,
                       guint32 prompt, guint32 chunk) {
  guint group = n_heads / n_kv_heads;
  gsize d = head_dim, row = (n_heads + 2 * (gsize)n_kv_heads) * d, stride = prompt + 5;
  gsize n = n_kv_heads * stride;
  Cache c;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, &prompt, 1, TRUE);
  g_autofree float *q = random_floats(prompt * row, 1.0), *scratch = g_new(float, prompt);
  g_autofree float *expected = g_new0(float, n);
  float *sums[2] = {poisoned(n * sizeof(float)), poisoned(n * sizeof(float))};
  KvBf16 *queries = upload_bf16(q, prompt * row);
  for (guint32 past = 0, i = 0; past < prompt; past += chunk, i ^= 1) {
    guint32 tokens = MIN(chunk, prompt - past);
    for (guint32 t = past; t < past + tokens; t++)
      for (guint h = 0; h < n_kv_heads; h++)
        kv_host_h2o_add(expected + h * stride, q + t * row + (gsize)h * group * d, &c.host, c.table,
                        h, group, t + 1, scratch);
    for (guint again = 0; again < 2; again++) /* a pass may be run twice */
      LAUNCHED(kv_cuda_sum_attention(
          sums[i], sums[i ^ 1], stride, queries + past * row, row, &c.gpu, c.tables.table, past,
          tokens, n_heads, poisoned(kv_cuda_sum_attention_scratch_bytes(past, tokens, n_heads)),
          device->stream));
    g_autofree float *got = download_f32(sums[i], n);
    g_autofree char *what =
        g_strdup_printf("attention of H %u Hkv %u d %u block %u past %u tokens %u", n_heads,
                        n_kv_heads, head_dim, block_tokens, past, tokens);
    for (guint h = 0; h < n_kv_heads; h++)
      assert_close(what, got + h * stride, expected + h * stride, past + tokens, 1e-3);
  }
  cache_clear(&c);
}

static void test_attention_of_a_prompt(void) {
  static const guint32 chunks[][2] = {{1, 1},    {2, 1},     {63, 63},   {64, 64},  {65, 64},
                                      {130, 50}, {200, 200}, {257, 100}, {333, 128}};
  static const guint blocks[] = {16, 1, 64};
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h++)
    for (guint i = 0; i < G_N_ELEMENTS(chunks); i++)
      check_sums(head_shapes[h][0], head_shapes[h][1], head_shapes[h][2], blocks[(h + i) % 3],
                 chunks[i][0], chunks[i][1]);
}

/* A slot's row as the GPU has it, in host memory. */
typedef struct {
  guint32 *words;
  guint slots;
} Rows;

static float *row_scores(const Rows *x, guint row) {
  return (float *)(void *)(x->words + row * KV_CUDA_SLOT_WORDS(x->slots));
}

static guint32 *row_positions(const Rows *x, guint row) {
  return x->words + row * KV_CUDA_SLOT_WORDS(x->slots) + x->slots;
}

/* Many equal scores: the same choice as the twin's, and the slots' scores and positions after it.
 */
static void check_slots_of_prompt(guint n_kv_heads, guint32 n, guint32 slots, guint32 recent) {
  const KvHostCompression k = {.budget = slots, .window = recent, .kernel = 1};
  const guint first = 3;
  gsize stride = n + 7, kept_bytes = (gsize)n_kv_heads * slots * sizeof(guint32);
  gsize bytes = (first + n_kv_heads) * KV_CUDA_SLOT_WORDS(slots) * sizeof(guint32);
  KvCudaSlots gpu = {.words = poisoned(bytes), .slots = slots, .recent = recent};
  g_autofree float *scores = g_new(float, n_kv_heads *stride);
  g_autofree guint32 *kept = g_malloc(kept_bytes), *got = g_malloc(kept_bytes);
  Rows rows = {g_malloc(bytes), slots};
  guint32 *gpu_kept = poisoned(kept_bytes);
  for (gsize i = 0; i < n_kv_heads * stride; i++)
    scores[i] = (float)random_size(0, 40) / 16.0f;
  float *gpu_scores = upload_f32(scores, n_kv_heads * stride);
  if (n > slots) {
    for (guint h = 0; h < n_kv_heads; h++)
      kv_host_snapkv_select(&k, kept + (gsize)h * slots, scores + h * stride, n);
    LAUNCHED(kv_cuda_h2o_select(gpu_kept, gpu_scores, stride, n, slots, recent, n_kv_heads,
                                device->stream));
    OK(kv_cuda_download(device, got, gpu_kept, kept_bytes, &ok_error));
    g_assert_cmpmem(got, kept_bytes, kept, kept_bytes);
  }
  LAUNCHED(kv_cuda_h2o_fill(&gpu, first, gpu_scores, stride, n > slots ? gpu_kept : NULL, n,
                            n_kv_heads, device->stream));
  OK(kv_cuda_download(device, rows.words, gpu.words, bytes, &ok_error));
  for (guint i = 0; i < first * KV_CUDA_SLOT_WORDS(slots); i++) /* other layers' */
    g_assert_cmpuint(rows.words[i], ==, G_MAXUINT32);
  for (guint h = 0; h < n_kv_heads; h++) {
    for (guint32 i = 0; i < slots; i++) {
      guint32 position = n > slots ? kept[(gsize)h * slots + i] : i;
      g_assert_cmpuint(row_positions(&rows, first + h)[i], ==,
                       position < n ? position : G_MAXUINT32);
      g_assert_cmpfloat(row_scores(&rows, first + h)[i], ==,
                        position < n ? scores[h * stride + position] : 0.0f);
    }
    g_assert_cmpuint(row_positions(&rows, first + h)[slots], ==, n);
  }
  g_free(rows.words);
  release();
}

/* A sequence of a step: its slots as on the GPU, and the twin's. */
typedef struct {
  Rows rows;
  KvCudaSlots gpu;
  guint32 next; /* position */
} Evicting;

/* As after a prompt of `next` tokens: positions spread over it, the last ones all there. */
static void evicting_init(Evicting *x, guint32 slots, guint32 recent, guint32 next, guint first,
                          guint n_kv_heads) {
  gsize words = (first + n_kv_heads) * KV_CUDA_SLOT_WORDS(slots);
  guint32 old = slots - recent;
  *x = (Evicting){.rows = {g_new(guint32, words), slots}, .next = next};
  memset(x->rows.words, 0xff, words * sizeof(guint32));
  for (guint h = 0; h < n_kv_heads; h++) {
    for (guint32 i = 0; i < slots; i++) {
      guint32 spread = i < old ? (guint32)((guint64)i * (next - recent) / old) : next - slots + i;
      guint32 identity = i < next ? i : G_MAXUINT32;
      row_positions(&x->rows, first + h)[i] = next > slots ? spread : identity;
      row_scores(&x->rows, first + h)[i] = i < next ? (float)random_size(0, 40) / 16.0f : 0.0f;
    }
    row_positions(&x->rows, first + h)[slots] = next; /* seen */
  }
  x->gpu = (KvCudaSlots){
      .words = on_device(x->rows.words, words * sizeof(guint32)), .slots = slots, .recent = recent};
}

/* The twin's step, from the scores that the GPU has, which are its own up to rounding. */
static void evict_on_host(Evicting *x, Cache *c, guint s, const float *row, guint n_heads,
                          guint first) {
  guint group = n_heads / c->n_kv_heads;
  gsize d = c->head_dim, bytes = d * sizeof(float);
  guint32 held = MIN(x->next + 1, x->rows.slots);
  g_autofree float *scratch = g_new(float, held);
  for (guint h = 0; h < c->n_kv_heads; h++) {
    float *scores = row_scores(&x->rows, first + h);
    guint32 *positions = row_positions(&x->rows, first + h);
    guint32 slot = kv_host_h2o_slot(scores, positions, x->rows.slots, x->gpu.recent, x->next);
    float *key = c->host.pool +
                 c->table[c->starts[s] + slot / c->block_tokens] * c->host.block_floats +
                 ((gsize)h * c->block_tokens + slot % c->block_tokens) * d;
    memcpy(key, row + (n_heads + h) * d, bytes);
    memcpy(key + c->host.value_offset, row + (n_heads + c->n_kv_heads + h) * d, bytes);
    positions[slot] = x->next;
    scores[slot] = 0.0f;
    kv_host_h2o_add(scores, row + (gsize)h * group * d, &c->host, c->table + c->starts[s], h, group,
                    held, scratch);
    positions[x->rows.slots] = x->next + 1;
  }
  x->next++;
}

/* Several sequences, and one that is not there, take tokens. */
static void check_evicting(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens) {
  static const guint32 shapes[][3] = {/* slots, recent, prompt */
                                      {2, 1, 1},       {2, 1, 30},      {7, 6, 7},
                                      {16, 1, 100},    {65, 30, 64},    {100, 99, 400},
                                      {333, 160, 331}, {1000, 10, 3000}};
  enum { N = G_N_ELEMENTS(shapes), STEPS = 4 };
  const guint first = n_kv_heads, most = 1024;
  gsize row = (n_heads + 2 * (gsize)n_kv_heads) * head_dim;
  Evicting sequences[N];
  guint32 slots[N + 1];
  Cache c;
  for (guint s = 0; s < N; s++)
    slots[s] = shapes[s][0];
  slots[N] = 1;
  cache_init(&c, n_kv_heads, head_dim, block_tokens, slots, N + 1, TRUE);
  for (guint s = 0; s < N; s++)
    evicting_init(&sequences[s], shapes[s][0], shapes[s][1], shapes[s][2], first, n_kv_heads);
  float *scratch = poisoned((gsize)(N + 1) * n_heads * most * sizeof(float));
  for (guint step = 0; step < STEPS; step++) {
    g_autofree float *rows = random_floats((N + 1) * row, 1.0);
    KvCudaSlots gpu[N + 1] = {0};
    guint32 contexts[N + 1] = {0};
    for (guint s = 0; s < N; s++) {
      gpu[s] = sequences[s].gpu;
      gpu[s].position = sequences[s].next;
      contexts[s] = MIN(sequences[s].next + 1, slots[s]);
    }
    KvBf16 *qkv = upload_bf16(rows, (N + 1) * row);
    void *gpu_slots = on_device(gpu, sizeof gpu), *held = on_device(contexts, sizeof contexts);
    for (guint again = 0; again < 2; again++) { /* a pass may be run twice */
      LAUNCHED(kv_cuda_h2o_store(qkv, &c.gpu, &c.tables, held, gpu_slots, first, N + 1, n_heads,
                                 device->stream));
      LAUNCHED(kv_cuda_h2o_score(gpu_slots, first, scratch, qkv, row, &c.gpu, &c.tables, held,
                                 N + 1, n_heads, most, device->stream));
    }
    for (guint s = 0; s < N; s++) {
      Evicting *x = &sequences[s];
      gsize words = (first + n_kv_heads) * KV_CUDA_SLOT_WORDS(slots[s]);
      Rows got = {g_new(guint32, words), slots[s]};
      OK(kv_cuda_download(device, got.words, x->gpu.words, words * sizeof(guint32), &ok_error));
      evict_on_host(x, &c, s, rows + s * row, n_heads, first);
      g_autofree char *what =
          g_strdup_printf("scores H %u Hkv %u d %u block %u slots %u of %u step %u", n_heads,
                          n_kv_heads, head_dim, block_tokens, slots[s], x->next, step);
      for (guint r = 0; r < first; r++)
        g_assert_cmpuint(row_positions(&got, r)[0], ==, G_MAXUINT32);
      for (guint h = first; h < first + n_kv_heads; h++) {
        assert_close(what, row_scores(&got, h), row_scores(&x->rows, h), slots[s], 1e-3);
        g_assert_cmpmem(row_positions(&got, h), (slots[s] + 1) * sizeof(guint32),
                        row_positions(&x->rows, h), (slots[s] + 1) * sizeof(guint32));
        memcpy(row_scores(&x->rows, h), row_scores(&got, h), slots[s] * sizeof(float));
      }
      g_free(got.words);
    }
  }
  g_autofree float *pool = download_bf16(c.gpu.pool, c.floats);
  for (gsize i = 0; i < c.floats; i++)
    if (!(pool[i] == c.host.pool[i] || (isnan(pool[i]) && isnan(c.host.pool[i])))) {
      g_test_message("slots: element %" G_GSIZE_FORMAT " is %g, expected %g", i, (double)pool[i],
                     (double)c.host.pool[i]);
      g_test_fail();
      break;
    }
  for (guint s = 0; s < N; s++)
    g_free(sequences[s].rows.words);
  cache_clear(&c);
}

static void test_h2o_cache(void) {
  static const guint blocks[] = {16, 2, 64};
  static const guint32 prompts[][3] = {/* tokens, slots, recent */
                                       {3, 2, 1},    {1, 2, 1},        {100, 99, 1},
                                       {64, 64, 30}, {1000, 200, 100}, {4000, 2500, 1300}};
  for (guint i = 0; i < G_N_ELEMENTS(prompts); i++)
    check_slots_of_prompt(1 + i, prompts[i][0], prompts[i][1], prompts[i][2]);
  check_slots_of_prompt(8 * 32, 200, 100, 50); /* those of 32 layers */
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h++)
    check_evicting(head_shapes[h][0], head_shapes[h][1], head_shapes[h][2], blocks[h % 3]);
}

/* Each layer's tables against the twin's parts; some sequences without a pyramid, one not there. */
static void check_pyramid(const KvHostCompression *k) {
  enum { N = 5, BLOCKS = 1000, SPLITS = 3 };
  static const guint32 after[N] = {1, 0, 40, 300, 2}, applies[N] = {1, 1, 1, 0, 0};
  const guint32 split = KV_CUDA_SPLIT_UNIT;
  g_autofree KvHostPyramid *p = kv_host_pyramid_new(k);
  gsize L = k->n_layers, parts = L * p->whole_mean * sizeof(KvHostPart);
  guint room = (kv_host_pyramid_budget(p, 0) + 300) / k->block_tokens + 3, sequences = N + 2;
  gsize bytes = L * sequences * room * sizeof(guint32);
  guint32 contexts[N], starts[N];
  g_autofree guint32 *table = g_new(guint32, N * room), *got = g_malloc(bytes);
  g_autofree guint32 *held = g_new(guint32, L * sequences), *splits = g_new(guint32, L);
  for (guint s = 0; s < N; s++) {
    contexts[s] = after[s] ? k->budget + after[s] : 0;
    starts[s] = s * room;
  }
  for (guint i = 0; i < N * room; i++)
    table[i] = random_size(0, BLOCKS - 1);
  const KvCudaPyramid gpu = {.parts = on_device(p->parts, parts),
                             .starts = on_device(p->starts, L * sizeof(guint)),
                             .whole = on_device(p->whole, L * sizeof(guint)),
                             .n_layers = k->n_layers,
                             .whole_mean = p->whole_mean,
                             .block_shift = shift_of(k->block_tokens),
                             .blocks = BLOCKS};
  const KvCudaLayerTables out = {.table = poisoned(bytes),
                                 .contexts = poisoned(L * sequences * sizeof(guint32)),
                                 .split_tokens = poisoned(L * sizeof(guint32)),
                                 .sequences = sequences,
                                 .room = room};
  const KvCudaTables tables = {on_device(table, (gsize)N * room * sizeof *table),
                               on_device(starts, sizeof starts)};
  LAUNCHED(kv_cuda_pyramid_tables(&out, &gpu, &tables, on_device(contexts, sizeof contexts),
                                  on_device(applies, sizeof applies), N,
                                  on_device(&split, sizeof split), SPLITS, device->stream));
  OK(kv_cuda_download(device, got, out.table, bytes, &ok_error));
  OK(kv_cuda_download(device, held, out.contexts, L * sequences * sizeof *held, &ok_error));
  OK(kv_cuda_download(device, splits, out.split_tokens, L * sizeof *splits, &ok_error));
  for (guint l = 0; l < L; l++) {
    guint32 longest = 0;
    for (guint s = 0; s < N; s++) {
      guint32 budget = applies[s] ? kv_host_pyramid_budget(p, l) : k->budget;
      guint32 context = after[s] ? budget + after[s] : 0, at = l * sequences + s;
      longest = MAX(longest, context);
      g_assert_cmpuint(held[at], ==, context);
      for (guint32 i = 0; i < room; i++) {
        KvHostPart part = applies[s] ? kv_host_pyramid_part(p, l, i) : (KvHostPart){i, l};
        gboolean filled = i * k->block_tokens < context;
        g_assert_cmpuint(got[at * room + i], ==,
                         filled ? part.layer * BLOCKS + table[starts[s] + part.block]
                                : G_MAXUINT32);
      }
    }
    g_assert_cmpuint(splits[l], >=, split);
    g_assert_cmpuint(splits[l] % KV_CUDA_SPLIT_UNIT, ==, 0);
    g_assert_cmpuint((gsize)splits[l] * SPLITS, >=, longest);
  }
  release();
}

static void test_pyramidkv_tables(void) {
  static const guint layers[] = {1, 2, 24, 80}, blocks[] = {16, 1, 64};
  for (guint i = 0; i < G_N_ELEMENTS(layers); i++)
    for (guint n = 0; n < G_N_ELEMENTS(blocks); n++)
      check_pyramid(&(KvHostCompression){.format = KV_HOST_PYRAMIDKV,
                                         .budget = n ? 130 : 512,
                                         .window = 8,
                                         .beta = 20.0,
                                         .n_layers = layers[i],
                                         .block_tokens = blocks[n]});
}

/* --- recurrent layers --------------------------------------------------------------------------
 */

static const struct {
  guint n, tokens[5];
} span_sets[] = {
    {1, {1}},      {3, {1, 2, 5}}, {5, {3, 1, 40, 4, 17}}, {2, {8, 129}}, {5, {9, 64, 300, 7, 128}},
    {2, {515, 16}}};

/* Spans one after another, each with a state that it leaves and, every second, one that it
 * continues. State i of the pool [2 n] is `before` of it, as on the host. */
typedef struct {
  guint n, rows;
  const guint *tokens;
  KvCudaStates gpu;
  float *before; /* [2 n][floats]; those that are left are NaN */
  guint32 from[5], to[5];
  KvCudaTile tiles[5];
} Spans;

static void spans_init(Spans *s, guint set, guint inner, guint state, guint width) {
  KvAttention a = {.inner = inner, .state_dim = state, .conv_width = width};
  gsize floats = kv_host_state_floats(&a);
  *s = (Spans){.n = span_sets[set].n, .tokens = span_sets[set].tokens};
  s->before = random_floats((gsize)2 * s->n * floats, 1.0);
  for (guint i = 0; i < s->n; i++) {
    s->from[i] = i % 2 ? G_MAXUINT32 : 2 * (s->n - 1 - i);
    s->to[i] = 2 * (s->n - 1 - i) + 1;
    s->tiles[i] = (KvCudaTile){i, s->rows, 0, s->tokens[i]};
    for (gsize f = 0; f < floats; f++)
      s->before[s->to[i] * floats + f] = NAN;
    s->rows += s->tokens[i];
  }
  s->gpu = (KvCudaStates){.pool = upload_f32(s->before, (gsize)2 * s->n * floats),
                          .floats = floats,
                          .inner = inner,
                          .state_dim = state,
                          .conv_width = width,
                          .from = on_device(s->from, s->n * sizeof(guint32)),
                          .to = on_device(s->to, s->n * sizeof(guint32))};
}

static const float *continued(const Spans *s, guint i, gsize offset) {
  return s->from[i] == G_MAXUINT32 ? NULL : s->before + s->from[i] * s->gpu.floats + offset;
}

static void try_convolution(guint set, guint inner, guint width, gboolean biased) {
  Spans s;
  spans_init(&s, set, inner, 4, width);
  guint rows = s.rows + 3; /* of nobody */
  gsize I = inner, kept = (width - 1) * I;
  g_autofree float *x = random_floats((gsize)rows * 2 * I, 1.0),
                   *weight = random_floats(I * width, 0.5);
  g_autofree float *bias = random_floats(I, 1.0), *expected = g_new0(float, rows *I);
  g_autofree float *left = g_new(float, kept);
  g_autofree guint32 *sequences = g_new(guint32, rows), *places = g_new0(guint32, rows);
  for (guint i = 0, r = 0; i < s.n; i++)
    for (guint t = 0; t < s.tokens[i]; t++, r++)
      sequences[r] = i, places[r] = t;
  for (guint r = s.rows; r < rows; r++)
    sequences[r] = G_MAXUINT32;
  KvBf16 *out = poisoned(rows * I * 2);
  LAUNCHED(kv_cuda_causal_convolution(
      out, upload_bf16(x, (gsize)rows * 2 * I), 2 * I, upload_bf16(weight, I * width),
      biased ? upload_bf16(bias, I) : NULL, &s.gpu, on_device(sequences, rows * sizeof(guint32)),
      on_device(places, rows * sizeof(guint32)), rows, device->stream));
  g_autofree float *pool = download_f32(s.gpu.pool, (gsize)2 * s.n * s.gpu.floats);
  for (guint i = 0; i < s.n; i++) {
    gsize row = s.tiles[i].row;
    kv_host_causal_convolution(expected + row * I, x + row * 2 * I, 2 * I, weight,
                               biased ? bias : NULL, continued(&s, i, 0), left, s.tokens[i], inner,
                               width);
    g_assert_cmpmem(pool + s.to[i] * s.gpu.floats, kept * sizeof *left, left, kept * sizeof *left);
    if (s.from[i] != G_MAXUINT32)
      g_assert_cmpmem(pool + s.from[i] * s.gpu.floats, kept * sizeof *left,
                      s.before + s.from[i] * s.gpu.floats, kept * sizeof *left);
  }
  g_autofree float *got = download_bf16(out, rows * I);
  assert_close("convolution", got, expected, rows * I, TOLERANCE);
  g_free(s.before);
  release();
}

static void test_convolution(void) {
  static const guint widths[] = {8, 24, 1032};
  for (guint set = 0; set < G_N_ELEMENTS(span_sets); set++)
    for (guint w = 0; w < G_N_ELEMENTS(widths); w++)
      for (guint width = 2; width <= 4; width++)
        try_convolution(set, widths[w], width, (set + w + width) % 2);
}

/* As tiles, in one segment and in several, whole ones and not; or, where every span is a token, by
 * rows. */
static void try_scan(guint set, guint inner, guint state, gboolean by_rows) {
  Spans s;
  spans_init(&s, set, inner, state, 4);
  gsize I = inner, N = state, R = s.rows, kept = 3 * I, left = I * N;
  g_autofree float *x = random_floats(R * I, 1.0), *gate = random_floats(R * 2 * I, 1.0);
  g_autofree float *delta = random_floats(R * I, 1.5), *bc = random_floats(R * 2 * N, 1.0);
  g_autofree float *bias = random_floats(I, 1.0), *skip = random_floats(I, 1.0);
  g_autofree float *decay = random_floats(left, 0.7), *expected = g_new0(float, R *I);
  g_autofree float *states = g_new(float, left);
  delta[0] = 60.0f; /* its exponential is still a number, and its softplus is itself */
  KvBf16 *out = NULL;
  for (guint again = 0; again < 2; again++) { /* a pass may be run twice */
    out = poisoned(R * I * 2);
    LAUNCHED(kv_cuda_selective_scan(
        out, upload_bf16(x, R * I), upload_bf16(gate, R * 2 * I), 2 * I, upload_f32(delta, R * I),
        upload_bf16(bias, I), upload_f32(bc, R * 2 * N), upload_bf16(decay, left),
        upload_bf16(skip, I), &s.gpu, by_rows ? NULL : on_device(s.tiles, s.n * sizeof(KvCudaTile)),
        s.n, device->stream));
  }
  g_autofree float *pool = download_f32(s.gpu.pool, (gsize)2 * s.n * s.gpu.floats);
  for (guint i = 0; i < s.n; i++) {
    gsize row = s.tiles[i].row;
    kv_host_selective_scan(expected + row * I, x + row * I, gate + row * 2 * I, 2 * I,
                           delta + row * I, bias, bc + row * 2 * N, 2 * N, decay, skip,
                           continued(&s, i, kept), states, s.tokens[i], inner, state);
    assert_close("states", pool + s.to[i] * s.gpu.floats + kept, states, left, 1e-4);
    if (s.from[i] != G_MAXUINT32)
      g_assert_cmpmem(pool + s.from[i] * s.gpu.floats + kept, left * sizeof *states,
                      s.before + s.from[i] * s.gpu.floats + kept, left * sizeof *states);
  }
  g_autofree float *got = download_bf16(out, R * I);
  assert_close("scan", got, expected, R * I, TOLERANCE);
  g_free(s.before);
  release();
}

static void test_scan(void) {
  static const guint widths[] = {8, 24, 520};
  for (guint state = 4; state <= 128; state *= 2)
    for (guint w = 0; w < G_N_ELEMENTS(widths); w++) {
      for (guint set = 0; set < G_N_ELEMENTS(span_sets); set++)
        try_scan(set, widths[w], state, FALSE);
      try_scan(0, widths[w], state, TRUE);
    }
}

/* Decoding rows with a spare one. */
static void test_update_of_states(void) {
  enum { S = 3, I = 24, N = 16 };
  KvAttention a = {.inner = I, .state_dim = N, .conv_width = 4};
  gsize floats = kv_host_state_floats(&a), kept = (gsize)3 * I;
  const guint32 from[S] = {2, G_MAXUINT32, 4}, to[S] = {3, G_MAXUINT32, 1};
  g_autofree float *before = random_floats(6 * floats, 1.0), *x = random_floats((gsize)S * I, 1.0);
  g_autofree float *gate = random_floats((gsize)S * 2 * I, 1.0),
                   *delta = random_floats((gsize)S * I, 1.0);
  g_autofree float *bc = random_floats((gsize)S * 2 * N, 1.0), *bias = random_floats(I, 1.0);
  g_autofree float *skip = random_floats(I, 1.0), *decay = random_floats((gsize)I * N, 0.7);
  float expected[S * I] = {0}, states[I * N];
  KvCudaStates gpu = {.pool = upload_f32(before, 6 * floats),
                      .floats = floats,
                      .inner = I,
                      .state_dim = N,
                      .conv_width = 4,
                      .from = on_device(from, sizeof from),
                      .to = on_device(to, sizeof to)};
  KvBf16 *out = poisoned((gsize)S * I * 2);
  LAUNCHED(kv_cuda_selective_scan(
      out, upload_bf16(x, (gsize)S * I), upload_bf16(gate, (gsize)S * 2 * I), (gsize)2 * I,
      upload_f32(delta, (gsize)S * I), upload_bf16(bias, I), upload_f32(bc, (gsize)S * 2 * N),
      upload_bf16(decay, (gsize)I * N), upload_bf16(skip, I), &gpu, NULL, S, device->stream));
  g_autofree float *pool = download_f32(gpu.pool, 6 * floats),
                   *got = download_bf16(out, (gsize)S * I);
  for (guint s = 0; s < S; s += 2) {
    kv_host_selective_scan(expected + (gsize)s * I, x + (gsize)s * I, gate + (gsize)s * 2 * I,
                           (gsize)2 * I, delta + (gsize)s * I, bias, bc + (gsize)s * 2 * N,
                           (gsize)2 * N, decay, skip, before + from[s] * floats + kept, states, 1,
                           I, N);
    assert_close("updated states", pool + to[s] * floats + kept, states, (gsize)I * N, 1e-4);
  }
  assert_close("update", got, expected, (gsize)S * I, TOLERANCE);
  for (guint i = 0; i < 6; i++)
    if (i != 1 && i != 3)
      g_assert_cmpmem(pool + i * floats, floats * sizeof *pool, before + i * floats,
                      floats * sizeof *pool);
  release();
}

/* A whole model on both executors' engines, over the same spans. */
typedef struct {
  KvHostWeights *host;
  KvHostCache *host_cache;
  KvCudaWeights *weights;
  KvCudaCache *cache;
  KvCudaEngine *engine;
} Engines;

static KvLayerGroup small_mamba_groups[] = {
    {.count = 2,
     .attention = {
         .kind = KV_ATTENTION_NONE, .inner = 128, .state_dim = 16, .conv_width = 4, .dt_rank = 8}}};
static const KvModel small_mamba = {.id = (char *)"small-mamba",
                                    .hidden = 64,
                                    .embedding_dim = 64,
                                    .vocab = 200,
                                    .max_context_tokens = 128,
                                    .tied_embeddings = TRUE,
                                    .norm = KV_NORM_RMS,
                                    .n_groups = 1,
                                    .groups = small_mamba_groups};

/* The host computes with the numbers that the GPU has. */
static void round_weights(KvHostWeights *weights) {
  const KvLayerGroup *group = &small_mamba.groups[0];
  for (guint l = 0; l < weights->n_layers; l++)
    for (KvTensorId id = 0; id < KV_N_TENSORS; id++) {
      KvTensorShape shape = kv_tensor_shape(&small_mamba, &group->attention, &group->mlp, id);
      float *tensor = *kv_tensor_slot(weights, id, l);
      for (guint64 i = 0; tensor && shape.present && i < shape.rows * shape.columns; i++)
        tensor[i] = float_of(bf16_of(tensor[i]));
    }
  weights->head = kv_host_weights_tied_head(weights);
}

static void engines_init(Engines *p) {
  OK((p->host = kv_host_weights_new(&small_mamba, 7, &ok_error)) != NULL);
  round_weights(p->host);
  OK((p->host_cache = kv_host_cache_new(p->host, 2, 4, 0, &ok_error)) != NULL);
  OK((p->weights = kv_cuda_weights_new(device, &small_mamba, NULL, 7, &ok_error)) != NULL);
  OK((p->cache = kv_cuda_cache_new(device, p->weights, 2, 4, 4, &ok_error)) != NULL);
  OK((p->engine = kv_cuda_engine_new(device, p->weights, p->cache, 128, &ok_error)) != NULL);
}

static void engines_clear(Engines *p) {
  kv_cuda_engine_free(p->engine);
  kv_cuda_cache_free(p->cache);
  kv_cuda_weights_free(p->weights);
  kv_host_cache_free(p->host_cache);
  kv_host_weights_free(p->host);
}

/* Both run the spans, the GPU twice, which must change nothing: its first time is one to warm up,
 * one to capture where it can, and one that counts. Their states are then continued. */
static void engines_run(Engines *p, KvHostSpan *spans, guint n) {
  enum { V = 200, MOST = 4 };
  float expected[MOST * V];
  KvHostWork work = {0};
  for (guint s = 0; s < n; s++)
    spans[s].logits = expected + (gsize)s * V;
  kv_host_forward(p->host, p->host_cache, spans, n, &work);
  g_autofree float *before = NULL;
  for (guint run = 0; run < 2; run++) {
    KvCudaWork gpu_work = {0};
    OK(kv_cuda_engine_run(p->engine, spans, n, &gpu_work, &ok_error));
    g_autofree float *logits = download_f32(kv_cuda_engine_logits(p->engine), (gsize)n * V);
    assert_close("logits of a recurrent model", logits, expected, (gsize)n * V, 5e-2);
    if (run)
      g_assert_cmpmem(logits, (gsize)n * V * sizeof *logits, before, (gsize)n * V * sizeof *logits);
    before = run ? before : g_steal_pointer(&logits);
  }
  for (guint s = 0; s < n; s++) {
    spans[s].past += spans[s].n_tokens;
    spans[s].tokens += spans[s].n_tokens;
    spans[s].state = 1 - spans[s].state;
  }
}

/* Chunks, chunks beside decoding, decoding as a graph, spare rows in it, and a block that went to
 * the host and came back. */
static void test_recurrent_engine(void) {
  Engines p = {0};
  guint32 tokens[2][64], blocks[2] = {3, 1};
  double seconds;
  engines_init(&p);
  for (guint i = 0; i < 128; i++)
    tokens[i / 64][i % 64] = random_size(0, 199);
  KvHostSpan spans[2];
  for (guint s = 0; s < 2; s++)
    spans[s] = (KvHostSpan){
        .block_table = &blocks[s], .tokens = tokens[s], .owner = s, .state = 1, .sample = TRUE};
  for (guint chunk = 1; chunk <= 7; chunk += 2) { /* 1, 3, 5, 7 of the one */
    spans[0].n_tokens = chunk;
    engines_run(&p, spans, 1);
  }
  spans[0].n_tokens = 2, spans[1].n_tokens = 9; /* chunks of both */
  engines_run(&p, spans, 2);
  KvHostSpan mixed[2] = {spans[1], spans[0]}; /* prompts first */
  mixed[0].n_tokens = 2, mixed[1].n_tokens = 1, mixed[1].decoding = TRUE;
  engines_run(&p, mixed, 2);
  mixed[0].n_tokens = 1, mixed[0].decoding = TRUE;
  for (guint i = 0; i < 3; i++)
    engines_run(&p, mixed, 2);
  OK(kv_cuda_cache_move(p.cache, KV_TIER_HBM, 3, KV_TIER_DRAM, 2, &ok_error));
  OK(kv_cuda_cache_move(p.cache, KV_TIER_DRAM, 2, KV_TIER_HBM, 0, &ok_error));
  OK(kv_cuda_cache_flush(p.cache, &seconds, NULL, &ok_error));
  OK(kv_host_cache_move(p.host_cache, KV_TIER_HBM, 3, KV_TIER_HBM, 0, &ok_error));
  blocks[0] = 0;
  engines_run(&p, mixed, 2);
  KvHostSpan three[3] = {mixed[0], mixed[1], mixed[1]}; /* a graph for four rows */
  guint32 another = 2;
  three[2].block_table = &another;
  three[2].past = 0, three[2].state = 1, three[2].owner = 2;
  engines_run(&p, three, 3);
  engines_clear(&p);
}

/* To pinned memory and back, in pieces of every length. */
static void test_pieces(void) {
  static const guint64 bytes[] = {16, 4096, 48, 32768, 4112, 100016};
  enum { N = G_N_ELEMENTS(bytes) };
  const gsize room = 100032, all = N * room;
  g_autofree guint8 *before = g_malloc(all), *after = g_malloc(all);
  for (gsize i = 0; i < all; i++)
    before[i] = (guint8)kv_random_u64(&random_numbers);
  char *source = on_device(before, all), *target = poisoned(all), *pinned = NULL;
  g_assert_cmpint(cudaHostAlloc((void **)&pinned, all, cudaHostAllocDefault), ==, 0);
  memset(pinned, 0xff, all);
  KvCudaPiece out[N], in[N];
  for (guint i = 0; i < N; i++) {
    out[i] = (KvCudaPiece){pinned + i * room, source + i * room, bytes[i]};
    in[i] = (KvCudaPiece){target + (N - 1 - i) * room, pinned + i * room, bytes[i]};
  }
  LAUNCHED(kv_cuda_copy_pieces(on_device(out, sizeof out), N, device->stream));
  LAUNCHED(kv_cuda_copy_pieces(on_device(in, sizeof in), N, device->stream));
  OK(kv_cuda_download(device, after, target, all, &ok_error));
  for (guint i = 0; i < N; i++) {
    g_assert_cmpmem(after + (N - 1 - i) * room, bytes[i], before + i * room, bytes[i]);
    for (gsize b = bytes[i]; b < room; b++) /* nothing else is written */
      g_assert_true((guint8)pinned[i * room + b] == 0xff);
  }
  (void)cudaFreeHost(pinned);
  release();
}

#include "tests/reference/cuda_finish.h"
#include "tests/reference/cuda_low_rank.h"
#include "tests/reference/cuda_merging.h"
#include "tests/reference/cuda_speculation.h"

static void test_bad_shapes_are_refused(void) {
  KvCudaPages pages = {.n_kv_heads = 1, .head_dim = 48};
  KvCudaTables tables = {0};
  g_assert_cmpint(kv_cuda_decode_attention(NULL, NULL, 0, &pages, &tables, NULL, 1, 1, 0, NULL, 1,
                                           NULL, NULL, device->stream),
                  ==, cudaErrorInvalidValue);
  g_assert_cmpint(
      kv_cuda_prefill_attention(NULL, NULL, 0, &pages, &tables, NULL, 1, 1, 0, device->stream), ==,
      cudaErrorInvalidValue);
  g_assert_cmpint(kv_cuda_gemv(NULL, 0, 0, NULL, NULL, NULL, 1, 12, 1, device->stream), ==,
                  cudaErrorInvalidValue);
}

#include "tests/reference/cuda_latent.h"

int main(int argc, char **argv) {
  g_autoptr(GError) error = NULL;
  g_test_init(&argc, &argv, NULL);
  device = kv_cuda_device_open(&error);
  if (device)
    gemm = kv_cuda_gemm_new(&error);
  if (!gemm) {
    g_print("1..0 # SKIP %s\n", error->message);
    g_clear_pointer(&device, kv_cuda_device_close);
    return 0;
  }
  if (g_getenv("KV_TEST_FEW"))
    every = 3;
  g_test_set_nonfatal_assertions(); /* one run on a GPU is to show all that is wrong */
  allocated = g_ptr_array_new_with_free_func(kv_cuda_free);
  kv_random_seed(&random_numbers, 20, 1);
  g_test_add_func("/reference/cuda/norms", test_norms);
  g_test_add_func("/reference/cuda/embedding", test_embedding);
  g_test_add_func("/reference/cuda/random-weights", test_random_weights);
  g_test_add_func("/reference/cuda/activations", test_activations);
  g_test_add_func("/reference/cuda/bias", test_bias);
  g_test_add_func("/reference/cuda/argmax", test_argmax);
  g_test_add_func("/reference/cuda/products", test_products);
  g_test_add_func("/reference/cuda/rotation", test_rotation);
  g_test_add_func("/reference/cuda/decode-attention", test_decode_attention);
  g_test_add_func("/reference/cuda/prefill-attention", test_prefill_attention);
  g_test_add_func("/reference/cuda/attention-extremes", test_attention_extremes);
  g_test_add_func("/reference/cuda/shared-attention", test_shared_attention);
  g_test_add_func("/reference/cuda/block-copies", test_block_copies);
  g_test_add_func("/reference/cuda/fp8-cache", test_fp8_cache);
  g_test_add_func("/reference/cuda/kivi-cache", test_kivi_cache);
  g_test_add_func("/reference/cuda/kivi-layers", test_kivi_layers);
  g_test_add_func("/reference/cuda/snapkv-cache", test_snapkv_cache);
  g_test_add_func("/reference/cuda/cut-stack", test_cut_stack);
  g_test_add_func("/reference/cuda/quest-cache", test_quest_cache);
  g_test_add_func("/reference/cuda/attention-of-a-prompt", test_attention_of_a_prompt);
  g_test_add_func("/reference/cuda/h2o-cache", test_h2o_cache);
  g_test_add_func("/reference/cuda/pyramidkv-tables", test_pyramidkv_tables);
  g_test_add_func("/reference/cuda/low-rank-cache", test_low_rank_cache);
  g_test_add_func("/reference/cuda/merged-cache", test_merged_cache);
  g_test_add_func("/reference/cuda/speculation", test_speculation);
  g_test_add_func("/reference/cuda/convolution", test_convolution);
  g_test_add_func("/reference/cuda/scan", test_scan);
  g_test_add_func("/reference/cuda/update-of-states", test_update_of_states);
  g_test_add_func("/reference/cuda/recurrent-engine", test_recurrent_engine);
  g_test_add_func("/reference/cuda/pieces", test_pieces);
  g_test_add_func("/reference/cuda/bad-shapes", test_bad_shapes_are_refused);
  add_latent_tests();
  int status = g_test_run();
  g_ptr_array_unref(allocated);
  kv_cuda_gemm_free(gemm);
  kv_cuda_device_close(device);
  return status;
}
