/* The kernels of speculation.cu against reference/host/speculation.h; part of test_cuda_kernels.c,
 * whose helpers these use. Where a choice is compared, its inputs are small multiples of a power of
 * two, whose sums are exact in any order: many tokens are equal, and the choice must be the same.
 */
#ifndef KV_TESTS_REFERENCE_CUDA_SPECULATION_H
#define KV_TESTS_REFERENCE_CUDA_SPECULATION_H

#include "reference/cuda/speculation.h"
#include "reference/host/speculation.h"

/* Contexts, of which the newest token is not in the partial keys yet. Columns of two layers. */
typedef struct {
  Cache c;
  guint n_heads, count;
  guint32 *columns; /* [S][2][Hkv][count], the second layer's are used */
  guint32 *gpu_columns;
  float *directions; /* [Hkv][d][d] */
  KvHostPages partial;
  gsize partial_floats;
  KvCudaSkew skew;
  KvCudaSpeculated *sequences, *gpu_sequences;
} Speculated;

/* n multiples of 1/8 between -1 and 1. */
static float *coarse_floats(gsize n) {
  float *x = g_new(float, MAX(n, 1));
  for (gsize i = 0; i < n; i++)
    x[i] = (float)kv_random_integer(&random_numbers, -8, 8) / 8.0f;
  return x;
}

/* Some of the columns, ascending. */
static void random_columns(guint32 *columns, guint count, guint d) {
  for (guint column = 0, taken = 0; taken < count; column++)
    if (random_size(0, d - column - 1) < count - taken)
      columns[taken++] = column;
}

static void speculated_init(Speculated *x, const guint *shape, guint block_tokens, double share,
                            double most, const guint32 *contexts, guint n) {
  guint kv = shape[1], d = shape[2];
  *x = (Speculated){.n_heads = shape[0], .count = kv_host_speculation_columns(share, d)};
  gsize of_layer = (gsize)kv * x->count;
  cache_init(&x->c, kv, d, block_tokens, contexts, n, TRUE);
  x->columns = g_new0(guint32, 2 * (gsize)n * of_layer + 1);
  for (gsize i = 0; i < (gsize)n * kv; i++)
    random_columns(x->columns + (2 * (i / kv) + 1) * of_layer + i % kv * x->count, x->count, d);
  x->gpu_columns = on_device(x->columns, 2 * (gsize)n * of_layer * sizeof(guint32));
  x->directions = random_floats((gsize)kv * d * d, 1.0 / sqrt(d));
  x->partial = (KvHostPages){.block_floats = of_layer * block_tokens,
                             .block_tokens = block_tokens,
                             .n_kv_heads = kv,
                             .head_dim = x->count};
  x->partial_floats = x->partial.block_floats * x->c.n_blocks;
  x->partial.pool = g_new(float, x->partial_floats);
  for (gsize i = 0; i < x->partial_floats; i++)
    x->partial.pool[i] = NAN;
  x->skew = (KvCudaSkew){.directions = upload_f32(x->directions, (gsize)kv * d * d),
                         .partial = {.pool = poisoned(x->partial_floats * sizeof(KvBf16)),
                                     .block_elements = x->partial.block_floats,
                                     .block_shift = shift_of(block_tokens),
                                     .n_kv_heads = kv,
                                     .head_dim = x->count},
                         .head_dim = d,
                         .first_column = of_layer};
  x->sequences = g_new(KvCudaSpeculated, n + 1);
  for (guint s = 0; s < n; s++)
    x->sequences[s] = (KvCudaSpeculated){.columns = x->gpu_columns + (gsize)2 * s * of_layer,
                                         .past = contexts[s] - 1,
                                         .most = kv_host_speculation_most(most, contexts[s] - 1)};
  x->gpu_sequences = on_device(x->sequences, n * sizeof *x->sequences);
}

static void speculated_clear(Speculated *x) {
  g_free(x->columns);
  g_free(x->directions);
  g_free(x->partial.pool);
  g_free(x->sequences);
  cache_clear(&x->c);
}

static const guint32 *columns_of(const Speculated *x, guint s, guint head) {
  return x->columns + ((gsize)(2 * s + 1) * x->c.n_kv_heads + head) * x->count;
}

/* The cache's pool in pinned memory, as it is in x->c. */
static KvCudaPages pinned_home(const Speculated *x) {
  KvCudaPages home = x->c.gpu;
  void *pinned = NULL;
  g_assert_cmpint(cudaHostAlloc(&pinned, x->c.floats * sizeof(KvBf16) + 16, cudaHostAllocDefault),
                  ==, cudaSuccess);
  g_assert_cmpint(
      cudaMemcpy(pinned, x->c.gpu.pool, x->c.floats * sizeof(KvBf16), cudaMemcpyDefault), ==,
      cudaSuccess);
  home.pool = pinned;
  return home;
}

/* --- columns, partial keys and queries -------------------------------------------------------- */

static void check_columns(const guint *shape, double share, guint n) {
  guint H = shape[0], kv = shape[1], d = shape[2], count = kv_host_speculation_columns(share, d);
  gsize floats = (gsize)kv * d * d, queries = (gsize)n * H * d;
  g_autofree float *directions = coarse_floats(floats), *q = coarse_floats(queries);
  g_autofree guint32 *expected = g_new(guint32, (gsize)kv * count), *got = NULL;
  const KvCudaSkew skew = {.directions = upload_f32(directions, floats),
                           .partial = {.n_kv_heads = kv, .head_dim = count},
                           .head_dim = d};
  gsize bytes = (gsize)kv * count * sizeof *expected;
  guint32 *columns = poisoned(bytes);
  for (guint h = 0; h < kv; h++)
    kv_host_speculation_choose_columns(expected + (gsize)h * count, directions + (gsize)h * d * d,
                                       q + (gsize)h * (H / kv) * d, (gsize)H * d, n, H / kv, d,
                                       count);
  LAUNCHED(kv_cuda_choose_columns(columns, &skew, upload_bf16(q, queries), n, H,
                                  poisoned(kv_cuda_choose_columns_scratch_bytes(kv)),
                                  device->stream));
  got = g_malloc(bytes);
  OK(kv_cuda_download(device, got, columns, bytes, &ok_error));
  g_assert_cmpmem(got, bytes, expected, bytes);
  release();
}

/* What partial keys a sequence has, of its first n tokens. */
static void project_on_host(Speculated *x, guint s, guint32 n) {
  Cache *c = &x->c;
  for (guint h = 0; h < c->n_kv_heads; h++)
    for (guint32 t = 0; t < n; t++) {
      guint32 block = c->table[c->starts[s] + t / c->block_tokens], at = t % c->block_tokens;
      gsize slot = (gsize)h * c->block_tokens + at;
      kv_host_speculation_project(x->partial.pool + block * x->partial.block_floats +
                                      slot * x->count,
                                  c->host.pool + block * c->host.block_floats + slot * c->head_dim,
                                  x->directions + (gsize)h * c->head_dim * c->head_dim,
                                  columns_of(x, s, h), x->count, c->head_dim);
    }
}

static void check_partial_keys(Speculated *x) {
  Cache *c = &x->c;
  gsize layer = (gsize)c->n_kv_heads * x->count;
  for (guint s = 0; s < c->n_sequences; s++) {
    const guint32 *table = c->tables.table + c->starts[s];
    project_on_host(x, s, c->contexts[s] - 1);
    LAUNCHED(kv_cuda_partial_keys(&x->skew, x->gpu_columns + (2 * (gsize)s + 1) * layer, table,
                                  &c->gpu, table, c->contexts[s] - 1, device->stream));
  }
  g_autofree float *got = download_bf16(x->skew.partial.pool, x->partial_floats);
  for (gsize i = 0; i < x->partial_floats; i++) { /* nothing else is written */
    g_assert_cmpint(isnan(got[i]), ==, isnan(x->partial.pool[i]));
    if (isnan(got[i]))
      got[i] = x->partial.pool[i] = 0.0f;
  }
  assert_close("partial keys", got, x->partial.pool, x->partial_floats, TOLERANCE);
}

static void check_partial_queries(const Speculated *x) {
  const Cache *c = &x->c;
  guint n = c->n_sequences, d = c->head_dim, group = x->n_heads / c->n_kv_heads;
  gsize queries = (gsize)n * x->n_heads, all = queries * x->count;
  g_autofree float *q = random_floats(queries * d, 1.0), *expected = g_new(float, all + 1);
  float *out = poisoned(all * sizeof(float));
  for (gsize i = 0; i < queries; i++) {
    guint head = (guint)(i % x->n_heads) / group;
    kv_host_speculation_project(expected + i * x->count, q + i * d,
                                x->directions + (gsize)head * d * d,
                                columns_of(x, (guint)(i / x->n_heads), head), x->count, d);
  }
  LAUNCHED(kv_cuda_partial_queries(out, &x->skew, x->gpu_sequences, upload_bf16(q, queries * d), n,
                                   x->n_heads, device->stream));
  g_autofree float *got = download_f32(out, all);
  assert_close("partial queries", got, expected, all, 1e-4);
}

/* --- the choice of tokens --------------------------------------------------------------------- */

/* What the twin makes of sequence s: tokens of a head, and which, unless all. */
static guint32 choose_on_host(const Speculated *x, guint s, const float *q, float alpha,
                              guint32 *chosen, guint32 stride) {
  const Cache *c = &x->c;
  guint kv = c->n_kv_heads, group = x->n_heads / kv;
  guint32 n = c->contexts[s] - 1;
  g_autofree float *relative = g_new(float, (gsize)kv *n + 1), *scores = g_new(float, n + 1);
  guint64 counted = 0;
  for (guint h = 0; h < kv; h++)
    counted += kv_host_speculation_score(relative + (gsize)h * n,
                                         q + ((gsize)s * x->n_heads + (gsize)h * group) * x->count,
                                         &x->partial, c->table + c->starts[s], h, group, n,
                                         1.0f / sqrtf((float)c->head_dim), alpha, scores);
  guint32 wanted = kv_host_speculation_tokens(counted, kv, x->sequences[s].most);
  for (guint h = 0; h < kv && wanted < n; h++)
    kv_host_speculation_choose(chosen + (gsize)h * stride, relative + (gsize)h * n, n, wanted);
  return wanted;
}

static void check_choice(Speculated *x, float alpha) {
  const Cache *c = &x->c;
  guint n = c->n_sequences, kv = c->n_kv_heads;
  guint32 longest = 1, most = 1;
  gsize queries = (gsize)n * x->n_heads * x->count;
  g_autofree float *q = coarse_floats(queries), *keys = coarse_floats(x->partial_floats);
  g_free(x->partial.pool);
  x->partial.pool = g_steal_pointer(&keys);
  x->skew.partial.pool = upload_bf16(x->partial.pool, x->partial_floats);
  for (guint s = 0; s < n; s++) {
    longest = MAX(longest, c->contexts[s] - 1);
    most = MAX(most, x->sequences[s].most);
  }
  most += 3; /* more than any takes */
  gsize places = (gsize)n * kv * most;
  g_autofree guint32 *expected = g_new(guint32, places + 1), *got = g_new(guint32, places + 1);
  g_autofree guint32 *lengths = g_new(guint32, n + 1);
  memset(expected, 0xff, places * sizeof *expected);
  guint32 *gpu_chosen = poisoned(places * sizeof *expected);
  guint32 *gpu_lengths = poisoned(n * sizeof *lengths);
  LAUNCHED(kv_cuda_speculate(
      gpu_lengths, gpu_chosen, &x->skew, x->gpu_sequences, upload_f32(q, queries), &c->tables, n,
      x->n_heads, longest, most, alpha,
      poisoned(kv_cuda_speculate_scratch_bytes(n, x->n_heads, kv, longest)), device->stream));
  OK(kv_cuda_download(device, got, gpu_chosen, places * sizeof *got, &ok_error));
  OK(kv_cuda_download(device, lengths, gpu_lengths, n * sizeof *lengths, &ok_error));
  for (guint s = 0; s < n; s++) {
    guint32 wanted = choose_on_host(x, s, q, alpha, expected + (gsize)s * kv * most, most);
    if (lengths[s] != wanted + 1) {
      g_test_message("H %u Hkv %u d %u columns %u context %u alpha %g: %u tokens, expected %u",
                     x->n_heads, kv, c->head_dim, x->count, c->contexts[s], (double)alpha,
                     lengths[s] - 1, wanted);
      g_test_fail();
    }
  }
  g_assert_cmpmem(got, places * sizeof *got, expected, places * sizeof *expected);
}

/* --- from host memory ------------------------------------------------------------------------- */

static float *slot_of(const KvHostPages *pages, const guint32 *table, guint head, guint32 slot,
                      gboolean value) {
  return pages->pool + table[slot / pages->block_tokens] * pages->block_floats +
         (value ? pages->value_offset : 0) +
         ((gsize)head * pages->block_tokens + slot % pages->block_tokens) * pages->head_dim;
}

/* Random tokens of each sequence, or all; then its newest token behind them, and in its own place.
 * Nothing else is written. */
static void check_gather(Speculated *x, gboolean all) {
  Cache *c = &x->c;
  guint n = c->n_sequences, kv = c->n_kv_heads, d = c->head_dim;
  guint32 most = 1;
  gsize width = ((gsize)x->n_heads + 2 * (gsize)kv) * d, bytes = d * sizeof(float);
  for (guint s = 0; s < n; s++)
    most = MAX(most, all ? c->contexts[s] - 1 : x->sequences[s].most);
  g_autofree guint32 *chosen = g_new0(guint32, (gsize)n * kv * most);
  g_autofree guint32 *lengths = g_new0(guint32, n + 1);
  g_autofree float *rows = random_floats(n * width, 1.0), *pool = g_new(float, c->floats);
  KvHostPages area = c->host;
  area.pool = pool;
  for (gsize i = 0; i < c->floats; i++)
    pool[i] = NAN;
  Cache places = {.block_tokens = c->block_tokens,
                  .n_sequences = n,
                  .contexts = g_memdup2(c->contexts, n * sizeof *c->contexts)};
  cache_scatter(&places);
  for (guint s = 0; s < n; s++) {
    guint32 past = c->contexts[s] - 1, wanted = all ? past : x->sequences[s].most;
    const guint32 *to = places.table + places.starts[s], *from = c->table + c->starts[s];
    lengths[s] = wanted + 1;
    for (guint h = 0; h < kv; h++) {
      guint32 *own = chosen + ((gsize)s * kv + h) * most;
      if (wanted < past)
        random_columns(own, wanted, past);
      for (guint value = 0; value < 2; value++) {
        for (guint32 i = 0; i < wanted; i++)
          memcpy(slot_of(&area, to, h, i, value),
                 slot_of(&c->host, from, h, wanted < past ? own[i] : i, value), bytes);
        const float *newest = rows + s * width + ((gsize)x->n_heads + h + (gsize)value * kv) * d;
        memcpy(slot_of(&area, to, h, wanted, value), newest, bytes);
        memcpy(slot_of(&c->host, from, h, past, value), newest, bytes);
      }
    }
    project_on_host(x, s, past + 1);
  }
  KvCudaPages home = pinned_home(x), gpu_area = c->gpu;
  gpu_area.pool = poisoned(c->floats * sizeof(KvBf16));
  const KvCudaTables area_tables = {on_device(places.table, places.n_table * sizeof(guint32)),
                                    on_device(places.starts, n * sizeof(guint32))};
  guint32 *gpu_lengths = all ? NULL : on_device(lengths, n * sizeof *lengths);
  LAUNCHED(kv_cuda_gather_chosen(&gpu_area, &area_tables, &home, &c->tables, x->gpu_sequences,
                                 gpu_lengths,
                                 on_device(chosen, (gsize)n * kv * most * sizeof *chosen), n, most,
                                 1 + n % 22, device->stream));
  for (guint again = 0; again < 2; again++) /* the second changes nothing */
    LAUNCHED(kv_cuda_store_newest(upload_bf16(rows, n * width), &gpu_area, &area_tables, &home,
                                  &c->tables, all ? NULL : &x->skew, x->gpu_sequences, gpu_lengths,
                                  n, x->n_heads, device->stream));
  OK(kv_cuda_wait(device, &ok_error));
  g_autofree float *got = download_bf16(gpu_area.pool, c->floats);
  g_autofree float *kept = download_bf16(home.pool, c->floats);
  for (gsize i = 0; i < c->floats; i++) {
    g_assert_true(got[i] == pool[i] || (isnan(got[i]) && isnan(pool[i])));
    g_assert_true(kept[i] == c->host.pool[i] || (isnan(kept[i]) && isnan(c->host.pool[i])));
  }
  if (!all) { /* of each newest token */
    g_autofree float *keys = download_bf16(x->skew.partial.pool, x->partial_floats);
    for (guint s = 0; s < n; s++)
      for (guint h = 0; h < kv; h++) {
        const guint32 *table = c->table + c->starts[s];
        KvHostPages gpu = x->partial;
        gpu.pool = keys;
        assert_close("the newest partial key", slot_of(&gpu, table, h, c->contexts[s] - 1, FALSE),
                     slot_of(&x->partial, table, h, c->contexts[s] - 1, FALSE), x->count,
                     2 * TOLERANCE);
      }
  }
  g_assert_cmpint(cudaFreeHost(home.pool), ==, cudaSuccess);
  g_free(places.contexts);
  g_free(places.starts);
  g_free(places.table);
}

static void check_speculation(const guint *shape, guint block_tokens, double share, double most,
                              float alpha, const guint32 *contexts, guint n) {
  Speculated x;
  speculated_init(&x, shape, block_tokens, share, most, contexts, n);
  check_partial_keys(&x);
  check_partial_queries(&x);
  check_gather(&x, FALSE);
  check_gather(&x, TRUE);
  check_choice(&x, alpha);
  speculated_clear(&x);
}

/* Each of the shapes with few columns and with all, few tokens and all; a context of one token has
 * nothing before its newest. At last, nobody at all. */
static void test_speculation(void) {
  static const guint32 contexts[] = {1, 2, 16, 17, 18, 65, 257, 258, 333, 1300};
  static const guint blocks[] = {16, 1, 8, 64}, windows[] = {1, 5, 128};
  static const double shares[] = {0.1, 0.2, 0.5, 1.0}, mosts[] = {0.2, 1.0, 0.01};
  static const float alphas[] = {0.25f, 1e6f, 1.5f, 0.75f};
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h += every) {
    check_columns(head_shapes[h], shares[h % 4], windows[h % 3]);
    check_speculation(head_shapes[h], blocks[h % 4], shares[(h + h / 4) % 4], mosts[h % 3],
                      alphas[(h + h / 3) % 4], contexts, G_N_ELEMENTS(contexts));
  }
  check_speculation(head_shapes[3], 16, 0.2, 0.2, 1.0f, contexts, 0);
}

#endif
