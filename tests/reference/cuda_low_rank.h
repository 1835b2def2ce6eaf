/* The kernels of low-rank keys and values against reference/host/low_rank.h; part of
 * test_cuda_kernels.c, whose helpers these use. */
#ifndef KV_TESTS_REFERENCE_CUDA_LOW_RANK_H
#define KV_TESTS_REFERENCE_CUDA_LOW_RANK_H

#include "reference/cuda/low_rank.h"
#include "reference/host/low_rank.h"

/* Rebuilt keys are rounded to bf16 once more. */
#define LOW_RANK_TOLERANCE 1e-2

/* Latents of sequences in blocks scattered over one pool, on both sides; the bases are any numbers.
 */
typedef struct {
  Cache c; /* sequences and tables; no keys and values */
  KvHostRanks ranks;
  float *key_basis, *value_basis, *bias; /* bias: [Hkv d], or NULL */
  KvCudaLowRank gpu;
  const float2 *angles; /* NULL: not turned */
} Latents;

static KvBf16 *arranged(const KvHostRanks *r, const float *basis, guint rank) {
  gsize width = (gsize)r->heads * r->head_dim, n = (gsize)r->groups * rank * width;
  g_autofree float *to = g_new(float, n);
  for (gsize i = 0; i < n; i++)
    to[i] = NAN; /* every place is filled */
  for (guint g = 0; g < r->groups; g++)
    for (guint i = 0; i < rank; i++)
      for (guint o = 0; o < width; o++, basis++)
        to[kv_cuda_low_rank_arrange(r->head_dim, rank, g * r->heads + o / r->head_dim, i,
                                    o % r->head_dim)] = *basis;
  return upload_bf16(to, n);
}

static void latents_init(Latents *x, const KvHostRanks *r, guint block_tokens,
                         const guint32 *contexts, guint n, gboolean turned, gboolean biased) {
  gsize width = (gsize)r->heads * r->head_dim, kv = r->groups * width;
  guint32 longest = 1;
  *x = (Latents){.ranks = *r,
                 .c = {.n_kv_heads = r->groups * r->heads,
                       .head_dim = r->head_dim,
                       .block_tokens = block_tokens,
                       .n_sequences = n,
                       .contexts = g_memdup2(contexts, n * sizeof *contexts)}};
  cache_scatter(&x->c);
  gsize keys = (gsize)block_tokens * r->groups * r->key_rank;
  gsize block = keys + (gsize)block_tokens * r->groups * r->value_rank;
  x->c.floats = block * x->c.n_blocks;
  x->c.host = (KvHostPages){.pool = g_new(float, x->c.floats),
                            .block_floats = block,
                            .value_offset = keys,
                            .block_tokens = block_tokens};
  for (gsize i = 0; i < x->c.floats; i++)
    x->c.host.pool[i] = NAN;
  for (guint s = 0; s < n; s++)
    longest = MAX(longest, contexts[s]);
  x->key_basis = random_floats((gsize)r->groups * r->key_rank * width, 1.0 / sqrt(r->key_rank));
  x->value_basis =
      random_floats((gsize)r->groups * r->value_rank * width, 1.0 / sqrt(r->value_rank));
  x->bias = biased ? random_floats(kv, 0.5) : NULL;
  x->gpu = (KvCudaLowRank){.pool = upload_bf16(x->c.host.pool, x->c.floats),
                           .block_elements = block,
                           .value_offset = keys,
                           .block_shift = shift_of(block_tokens),
                           .groups = r->groups,
                           .heads = r->heads,
                           .head_dim = r->head_dim,
                           .key_rank = r->key_rank,
                           .value_rank = r->value_rank,
                           .key_basis = arranged(r, x->key_basis, r->key_rank),
                           .value_basis = arranged(r, x->value_basis, r->value_rank)};
  if (biased)
    x->gpu.key_bias = x->gpu.value_bias = upload_bf16(x->bias, kv);
  x->c.tables = (KvCudaTables){.table = on_device(x->c.table, x->c.n_table * sizeof(guint32)),
                               .table_starts = on_device(x->c.starts, n * sizeof(guint32))};
  x->angles = turned ? upload_angles(longest + block_tokens, r->head_dim) : NULL;
}

static void latents_clear(Latents *x) {
  g_free(x->key_basis);
  g_free(x->value_basis);
  g_free(x->bias);
  cache_clear(&x->c);
}

/* All tokens of all sequences through the store, and a row of no sequence; queries are turned. */
static void fill_latents(Latents *x, guint n_heads) {
  const KvHostRanks *r = &x->ranks;
  guint32 total = 0, row = 0;
  for (guint s = 0; s < x->c.n_sequences; s++)
    total += x->c.contexts[s];
  gsize d = r->head_dim, keys = (gsize)r->groups * r->key_rank;
  gsize width = n_heads * d + keys + (gsize)r->groups * r->value_rank;
  g_autofree float *rows = random_floats((total + 1) * width, 1.0);
  g_autofree float *cosine = g_new(float, d), *sine = g_new(float, d);
  g_autofree guint32 *sequences = g_new(guint32, total + 1), *slots = g_new0(guint32, total + 1);
  void *gpu = upload_bf16(rows, (total + 1) * width);
  for (guint s = 0; s < x->c.n_sequences; s++)
    for (guint32 t = 0; t < x->c.contexts[s]; t++, row++) {
      float *at = rows + row * width;
      kv_host_low_rank_write(r, &x->c.host, x->c.table + x->c.starts[s], t, at + n_heads * d,
                             at + n_heads * d + keys);
      kv_host_rotary_angles(cosine, sine, t, r->head_dim, &rotary);
      if (x->angles)
        kv_host_rotary(at, cosine, sine, n_heads, r->head_dim);
      sequences[row] = s;
      slots[row] = t;
    }
  sequences[total] = G_MAXUINT32;
  void *gpu_slots = on_device(slots, (total + 1) * sizeof *slots);
  LAUNCHED(kv_cuda_low_rank_store(gpu, &x->gpu, &x->c.tables,
                                  on_device(sequences, (total + 1) * sizeof *sequences), gpu_slots,
                                  gpu_slots, x->angles, total + 1, n_heads, device->stream));
  g_autofree float *got = download_bf16(gpu, (total + 1) * width);
  assert_close("low-rank rows", got, rows, (total + 1) * width, TOLERANCE);
  g_autofree float *pool = download_bf16(x->gpu.pool, x->c.floats);
  for (gsize i = 0; i < x->c.floats; i++)
    if (isnan(x->c.host.pool[i]) ? !isnan(pool[i]) : pool[i] != x->c.host.pool[i]) {
      g_test_message("low-rank pool: [%" G_GSIZE_FORMAT "] %g, expected %g", i, (double)pool[i],
                     (double)x->c.host.pool[i]);
      g_test_fail();
      return;
    }
}

/* The keys of sequence s, newly allocated. */
static float *keys_of(const Latents *x, guint s) {
  float *keys = g_new(float, (gsize)x->c.contexts[s] * x->c.n_kv_heads * x->c.head_dim + 1);
  kv_host_low_rank_keys(keys, &x->ranks, &x->c.host, x->c.table + x->c.starts[s], x->c.contexts[s],
                        x->key_basis, x->bias, x->angles ? &rotary : NULL);
  return keys;
}

static void check_low_rank_decode(Latents *x, guint n_heads, guint32 split_tokens) {
  const KvHostRanks *r = &x->ranks;
  guint n = x->c.n_sequences;
  gsize width = (gsize)n_heads * r->value_rank, heads = (gsize)n_heads * r->head_dim;
  gsize stride = heads + (gsize)r->groups * (r->key_rank + r->value_rank);
  guint32 longest = 1;
  g_autofree float *rows = random_floats(n * stride, 1.0), *expected = g_new0(float, n *width);
  for (guint s = 0; s < n; s++) {
    g_autofree float *keys = keys_of(x, s), *scores = g_new(float, x->c.contexts[s] + 1);
    longest = MAX(longest, x->c.contexts[s]);
    if (x->c.contexts[s])
      kv_host_low_rank_attention(expected + s * width, rows + s * stride, keys, r, &x->c.host,
                                 x->c.table + x->c.starts[s], x->c.contexts[s] - 1, 1, n_heads,
                                 scores);
  }
  guint32 splits = (longest + split_tokens - 1) / split_tokens + 1; /* one never used */
  gsize counter_bytes = (gsize)n * n_heads * sizeof(guint32);
  guint32 *counters = on_device(NULL, counter_bytes);
  void *scratch = poisoned(kv_cuda_decode_scratch_bytes(n, n_heads, r->value_rank, splits));
  void *q = upload_bf16(rows, n * stride);
  void *contexts = on_device(x->c.contexts, n * sizeof *x->c.contexts);
  void *split = on_device(&split_tokens, sizeof split_tokens);
  OK(kv_cuda_fill(device, counters, 0, counter_bytes, &ok_error));
  for (guint again = 0; again < 2; again++) { /* the counters must be left as they were found */
    KvBf16 *out = poisoned(n * width * sizeof(KvBf16));
    LAUNCHED(kv_cuda_decode_attention_low_rank(out, q, stride, &x->gpu, &x->c.tables, contexts,
                                               x->angles, n, n_heads, split, splits, counters,
                                               scratch, device->stream));
    g_autofree float *got = download_bf16(out, n * width);
    for (guint s = 0; s < n; s++) {
      g_autofree char *what = g_strdup_printf(
          "low-rank decode: H %u groups %u of %u d %u ranks %u %u block %u context %u split %u",
          n_heads, r->groups, r->heads, r->head_dim, r->key_rank, r->value_rank, x->c.block_tokens,
          x->c.contexts[s], split_tokens);
      assert_close(what, got + s * width, expected + s * width, width, LOW_RANK_TOLERANCE);
    }
  }
}

/* Every block of every sequence rebuilt, the sequences' blocks side by side. */
static void check_rebuild(Latents *x) {
  const KvHostRanks *r = &x->ranks;
  guint block = x->c.block_tokens, kv_heads = x->c.n_kv_heads, d = r->head_dim;
  gsize width = (gsize)kv_heads * d, half = width * block;
  g_autofree guint32 *positions = g_new(guint32, x->c.n_table + 1);
  for (guint s = 0; s < x->c.n_sequences; s++)
    for (guint i = 0; i * block < x->c.contexts[s]; i++)
      positions[x->c.starts[s] + i] = i * block;
  KvCudaPages pages = {.pool = poisoned(2 * half * MAX(1, x->c.n_table) * sizeof(KvBf16)),
                       .block_elements = 2 * half,
                       .value_offset = half,
                       .block_shift = shift_of(block),
                       .n_kv_heads = kv_heads,
                       .head_dim = d};
  LAUNCHED(kv_cuda_low_rank_rebuild(&pages, &x->gpu, x->c.tables.table,
                                    on_device(positions, x->c.n_table * sizeof *positions),
                                    x->angles, x->c.n_table, device->stream));
  g_autofree float *pool = download_bf16(pages.pool, 2 * half * x->c.n_table);
  KvHostRanks swapped = *r; /* values are keys of other latents that are not turned */
  KvHostPages values = x->c.host;
  swapped.key_rank = r->value_rank;
  values.key_offset = values.value_offset;
  for (guint s = 0; s < x->c.n_sequences; s++) {
    gsize n = x->c.contexts[s];
    g_autofree float *keys = keys_of(x, s), *expected = g_new(float, n *width + 1);
    g_autofree float *got_keys = g_new(float, n *width + 1);
    g_autofree float *got_values = g_new(float, n *width + 1);
    kv_host_low_rank_keys(expected, &swapped, &values, x->c.table + x->c.starts[s], (guint32)n,
                          x->value_basis, x->bias, NULL);
    for (guint part = 0; part < 2; part++)
      for (gsize t = 0; t < n; t++)
        for (guint h = 0; h < kv_heads; h++)
          memcpy((part ? got_values : got_keys) + (gsize)t * width + (gsize)h * d,
                 pool + (x->c.starts[s] + t / block) * 2 * half + part * half +
                     ((gsize)h * block + t % block) * d,
                 d * sizeof(float));
    assert_close("rebuilt keys", got_keys, keys, n * width, TOLERANCE);
    assert_close("rebuilt values", got_values, expected, n * width, TOLERANCE);
  }
}

static void test_low_rank_cache(void) {
  static const struct {
    guint n_heads;
    KvHostRanks ranks;
  } shapes[] = {{32, {2, 4, 128, 128, 384}}, {14, {1, 2, 64, 32, 96}},   {12, {3, 4, 64, 64, 192}},
                {4, {1, 4, 128, 128, 384}},  {28, {1, 4, 128, 48, 512}}, {1, {1, 1, 64, 16, 16}},
                {40, {2, 1, 64, 16, 64}},    {6, {1, 3, 80, 240, 16}},   {8, {2, 2, 96, 96, 144}},
                {16, {1, 16, 64, 256, 1024}}};
  static const guint32 contexts[] = {1, 0, 2, 31, 32, 33, 64, 65, 300, 700};
  static const guint blocks[] = {16, 1, 8, 64};
  static const guint32 splits[] = {64, 1024};
  for (guint h = 0; h < G_N_ELEMENTS(shapes); h++)
    for (guint s = 0; s < G_N_ELEMENTS(splits); s++) {
      Latents x;
      latents_init(&x, &shapes[h].ranks, blocks[(h + s) % 4], contexts, G_N_ELEMENTS(contexts),
                   (h + s) % 3 != 0, h % 2 == 0);
      fill_latents(&x, shapes[h].n_heads);
      check_low_rank_decode(&x, shapes[h].n_heads, splits[s]);
      check_rebuild(&x);
      latents_clear(&x);
    }
}

#endif
