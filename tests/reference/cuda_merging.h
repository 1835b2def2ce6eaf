/* The kernels of merged layers against reference/host/merging.h; part of test_cuda_kernels.c, whose
 * helpers these use. */
#ifndef KV_TESTS_REFERENCE_CUDA_MERGING_H
#define KV_TESTS_REFERENCE_CUDA_MERGING_H

#include "reference/cuda/merging.h"
#include "reference/host/merging.h"

/* Directions are bf16, and the tokens they are restored for; where the values of forty tokens all
 * but cancel, that was 1.01e-2 of what is left. */
#define MERGING_TOLERANCE 1.5e-2
/* Of a distance: the arc cosine of an fp32 sum. */
#define DISTANCE_TOLERANCE 2e-3f

enum { APPENDED = 3, PAIRS = 2, PAIR = 1 };

/* Two layers' exact caches under one table, and their merged one under another. */
typedef struct {
  Cache x;
  KvHostPages host_y;
  KvCudaPages gpu_y;
  Cache table; /* sequences and tables of the merged blocks alone */
  KvCudaMerged merged;
  KvHostCompression settings;
  guint width;      /* Hkv d */
  KvCudaKept *kept; /* [sequences] */
  gsize pool_elements;
} Pair;

/* The second layer's tokens lean to the first's by a share of their own, so that angles differ. */
static void pair_fill_second(Pair *p) {
  const Cache *c = &p->x;
  p->host_y = c->host;
  p->host_y.pool = g_new(float, c->floats);
  for (gsize i = 0; i < c->floats; i++)
    p->host_y.pool[i] = NAN;
  for (guint s = 0; s < c->n_sequences; s++)
    for (guint32 t = 0; t < c->contexts[s]; t++) {
      g_autofree float *y = random_floats(2 * (gsize)p->width, 2.0);
      float share = (float)kv_random_unit(&random_numbers) * 3.0f;
      for (guint part = 0; part < 2; part++)
        for (guint i = 0; i < p->width; i++) {
          guint h = i / c->head_dim, bt = c->block_tokens;
          const float *block =
              c->host.pool + c->table[c->starts[s] + t / bt] * c->host.block_floats;
          float *at = &y[part * p->width + i];
          *at += share * block[part * c->host.value_offset +
                               (gsize)(h * bt + t % bt) * c->head_dim + i % c->head_dim];
          *at = float_of(bf16_of(*at));
        }
      kv_host_pages_write(&p->host_y, c->table + c->starts[s], t, y, y + p->width);
    }
}

static void pair_init(Pair *p, guint n_kv_heads, guint head_dim, guint block_tokens,
                      const guint32 *contexts, guint n, float gamma) {
  *p = (Pair){.width = n_kv_heads * head_dim,
              .settings = {.format = KV_HOST_MINICACHE, .slerp = 0.6f, .gamma = gamma}};
  cache_init(&p->x, n_kv_heads, head_dim, block_tokens, contexts, n, TRUE);
  pair_fill_second(p);
  p->gpu_y = p->x.gpu;
  p->gpu_y.pool = upload_bf16(p->host_y.pool, p->x.floats);
  p->table = (Cache){.block_tokens = block_tokens,
                     .n_sequences = n,
                     .contexts = g_memdup2(contexts, n * sizeof *contexts)};
  cache_scatter(&p->table);
  p->table.tables =
      (KvCudaTables){.table = on_device(p->table.table, p->table.n_table * sizeof(guint32)),
                     .table_starts = on_device(p->table.starts, n * sizeof(guint32))};
  p->merged = (KvCudaMerged){.block_shift = shift_of(block_tokens),
                             .n_kv_heads = n_kv_heads,
                             .head_dim = head_dim,
                             .pair = PAIR};
  kv_cuda_merged_lay_out(&p->merged);
  g_assert_cmpuint(p->merged.block_elements % 8, ==, 0);
  p->pool_elements = p->merged.block_elements * p->table.n_blocks;
  p->merged.pool = poisoned(p->pool_elements * sizeof(KvBf16));
  p->kept = g_new0(KvCudaKept, n);
  for (guint s = 0; s < n; s++) {
    p->kept[s].capacity = contexts[s] + 1;
    p->kept[s].states = on_device(NULL, (gsize)PAIRS * 2 * sizeof(KvCudaKeptState));
    p->kept[s].rows =
        poisoned((gsize)PAIRS * 2 * p->kept[s].capacity * 2 * p->width * sizeof(KvBf16));
  }
}

static void pair_clear(Pair *p) {
  g_free(p->host_y.pool);
  g_free(p->kept);
  g_free(p->table.contexts);
  g_free(p->table.starts);
  g_free(p->table.table);
  cache_clear(&p->x);
}

/* Keys or values of a token of one layer. */
static void token_of(float *to, const Pair *p, const KvHostPages *pages, guint s, guint part,
                     guint32 t) {
  const Cache *c = &p->x;
  guint bt = c->block_tokens, d = c->head_dim;
  const float *block = pages->pool + c->table[c->starts[s] + t / bt] * pages->block_floats;
  for (guint h = 0; h < c->n_kv_heads; h++)
    memcpy(to + (gsize)h * d,
           block + (part ? pages->value_offset : pages->key_offset) + ((gsize)h * bt + t % bt) * d,
           d * sizeof(float));
}

static float distance_of(const Pair *p, guint s, guint part, guint32 t) {
  g_autofree float *x = g_new(float, p->width), *y = g_new(float, p->width);
  token_of(x, p, &p->x.host, s, part, t);
  token_of(y, p, &p->host_y, s, part, t);
  return kv_host_merge_distance(x, y, p->width);
}

/* A prompt of n tokens of sequence s: distances, choice, writing. */
static void merge_prompt(const Pair *p, guint s, guint32 n) {
  const guint32 *exact = p->x.tables.table + p->x.starts[s];
  float *distances = poisoned(2 * (gsize)n * sizeof(float));
  guint32 *index = poisoned(2 * (gsize)n * sizeof(guint32));
  KvCudaKeptState *states = p->kept[s].states + (gsize)2 * PAIR, read[2];
  g_autofree float *got = NULL;
  g_autofree guint32 *chosen = g_new(guint32, 2 * (gsize)n);
  LAUNCHED(kv_cuda_merge_measure(distances, &p->x.gpu, &p->gpu_y, exact, n, device->stream));
  LAUNCHED(kv_cuda_merge_choose(states, index, distances, n, p->settings.gamma, device->stream));
  LAUNCHED(kv_cuda_merge_write(&p->merged, p->table.tables.table + p->table.starts[s], &p->x.gpu,
                               &p->gpu_y, exact, index, &p->kept[s], n, p->settings.slerp,
                               device->stream));
  got = download_f32(distances, 2 * (gsize)n);
  OK(kv_cuda_download(device, chosen, index, 2 * (gsize)n * sizeof *chosen, &ok_error));
  OK(kv_cuda_download(device, read, states, sizeof read, &ok_error));
  for (guint part = 0; part < 2; part++) {
    const float *of = got + (gsize)part * n;
    float least = INFINITY, greatest = 0.0f;
    guint32 count = 0;
    for (guint32 t = 0; t < n; t++) {
      g_assert_cmpfloat(fabsf(of[t] - distance_of(p, s, part, t)), <, DISTANCE_TOLERANCE);
      least = MIN(least, of[t]);
      greatest = MAX(greatest, of[t]);
    }
    float threshold = kv_host_merge_threshold(&p->settings, least, greatest);
    g_assert_true(read[part].threshold == threshold ||
                  fabsf(read[part].threshold - threshold) < 1e-6f);
    for (guint32 t = 0; t < n; t++) {
      count += of[t] >= read[part].threshold;
      g_assert_cmpuint(chosen[(gsize)part * n + t], ==, of[t] >= read[part].threshold ? count : 0);
    }
    g_assert_cmpuint(read[part].count, ==, count);
  }
}

/* The tokens at contexts[s] - 1 of all sequences, [S][x, y][part][W]. */
static KvBf16 *stage_tokens(const Pair *p, const guint32 *contexts) {
  gsize row = 4 * (gsize)p->width, n = p->x.n_sequences;
  g_autofree float *staged = g_new0(float, n *row + 1);
  for (guint s = 0; s < n; s++)
    for (guint i = 0; i < 4 && contexts[s]; i++)
      token_of(staged + s * row + (gsize)i * p->width, p, i < 2 ? &p->x.host : &p->host_y, s, i % 2,
               contexts[s] - 1);
  return upload_bf16(staged, n * row);
}

/* The block's index of every token but the last: where it stays apart. Those of the host's twin
 * that do not, become what their layers read. */
static void merge_on_host(const Pair *p, KvHostPages *x, KvHostPages *y) {
  const Cache *c = &p->x;
  g_autofree KvBf16 *pool = g_new(KvBf16, p->pool_elements);
  g_autofree float *of_x = g_new(float, 2 * (gsize)p->width);
  g_autofree float *of_y = g_new(float, 2 * (gsize)p->width);
  OK(kv_cuda_download(device, pool, p->merged.pool, p->pool_elements * sizeof *pool, &ok_error));
  for (guint s = 0; s < c->n_sequences; s++) {
    KvCudaKeptState states[2];
    OK(kv_cuda_download(device, states, p->kept[s].states + (gsize)2 * PAIR, sizeof states,
                        &ok_error));
    for (guint32 t = 0; t + 1 < c->contexts[s]; t++) {
      const KvBf16 *block = pool + p->table.table[p->table.starts[s] + t / c->block_tokens] *
                                       p->merged.block_elements;
      for (guint part = 0; part < 2; part++) {
        guint32 index;
        float *vx = of_x + (gsize)part * p->width, *vy = of_y + (gsize)part * p->width;
        memcpy(&index,
               block + p->merged.index + 2 * ((gsize)part * c->block_tokens + t % c->block_tokens),
               sizeof index);
        token_of(vx, p, &p->x.host, s, part, t);
        token_of(vy, p, &p->host_y, s, part, t);
        float distance = kv_host_merge_distance(vx, vy, p->width);
        if (fabsf(distance - states[part].threshold) > DISTANCE_TOLERANCE)
          g_assert_cmpint(index != 0, ==, distance >= states[part].threshold);
        if (!index)
          kv_host_merge(&p->settings, vx, vy, p->width, NULL);
      }
      kv_host_pages_write(x, c->table + c->starts[s], t, of_x, of_x + p->width);
      kv_host_pages_write(y, c->table + c->starts[s], t, of_y, of_y + p->width);
    }
  }
}

static void check_merged_decode(const Pair *p, guint layer, const KvHostPages *pages,
                                const KvBf16 *staged, guint n_heads, guint32 split_tokens) {
  const Cache *c = &p->x;
  guint n = c->n_sequences;
  gsize width = (gsize)n_heads * c->head_dim, stride = width + 2 * (gsize)p->width;
  guint32 longest = 1;
  g_autofree float *rows = random_floats(n * stride, 1.0), *expected = g_new0(float, n *width);
  for (guint s = 0; s < n; s++) {
    g_autofree float *scores = g_new(float, c->contexts[s] + 1);
    longest = MAX(longest, c->contexts[s]);
    if (c->contexts[s])
      kv_host_attention(expected + s * width, rows + s * stride, pages, c->table + c->starts[s],
                        c->contexts[s] - 1, 1, n_heads, 0, scores);
  }
  guint32 splits = (longest + split_tokens - 1) / split_tokens + 1; /* one never used */
  gsize counter_bytes = (gsize)n * n_heads * sizeof(guint32);
  guint32 *counters = on_device(NULL, counter_bytes);
  void *scratch = poisoned(kv_cuda_decode_scratch_bytes(n, n_heads, c->head_dim, splits));
  void *q = upload_bf16(rows, n * stride);
  void *contexts = on_device(c->contexts, n * sizeof *c->contexts);
  void *split = on_device(&split_tokens, sizeof split_tokens);
  void *kept = on_device(p->kept, n * sizeof *p->kept);
  OK(kv_cuda_fill(device, counters, 0, counter_bytes, &ok_error));
  for (guint again = 0; again < 2; again++) { /* the counters must be left as they were found */
    KvBf16 *out = poisoned(n * width * sizeof(KvBf16));
    LAUNCHED(kv_cuda_decode_attention_merged(out, q, stride, &p->merged, layer, &p->table.tables,
                                             kept, staged, contexts, n, n_heads, split, splits,
                                             counters, scratch, device->stream));
    g_autofree float *got = download_bf16(out, n * width);
    for (guint s = 0; s < n; s++) {
      g_autofree char *what = g_strdup_printf(
          "merged decode: layer %u gamma %g H %u Hkv %u d %u block %u context %u split %u", layer,
          (double)p->settings.gamma, n_heads, c->n_kv_heads, c->head_dim, c->block_tokens,
          c->contexts[s], split_tokens);
      assert_close(what, got + s * width, expected + s * width, width, MERGING_TOLERANCE);
    }
  }
}

/* All but the last tokens of each sequence as a prompt that is merged at once, those appended. */
static void check_merging(guint n_heads, guint n_kv_heads, guint head_dim, guint block_tokens,
                          float gamma, guint32 split_tokens) {
  static const guint32 contexts[] = {1, 0, 2, 16, 17, 40, 64, 65, 300, 1300};
  enum { SEQUENCES = G_N_ELEMENTS(contexts) };
  guint32 prompts[SEQUENCES];
  const KvBf16 *staged = NULL;
  Pair p;
  pair_init(&p, n_kv_heads, head_dim, block_tokens, contexts, SEQUENCES, gamma);
  void *kept = on_device(p.kept, SEQUENCES * sizeof *p.kept);
  for (guint s = 0; s < SEQUENCES; s++) {
    prompts[s] = contexts[s] > APPENDED ? contexts[s] - APPENDED : contexts[s];
    if (prompts[s])
      merge_prompt(&p, s, prompts[s]);
  }
  for (guint i = 1; i <= APPENDED; i++) {
    guint32 now[SEQUENCES];
    for (guint s = 0; s < SEQUENCES; s++)
      now[s] = contexts[s] > APPENDED ? prompts[s] + i : 0;
    staged = stage_tokens(&p, now);
    for (guint again = 0; again < 2 && i < APPENDED; again++) /* the second changes nothing */
      LAUNCHED(kv_cuda_merge_append(&p.merged, &p.table.tables, kept, staged,
                                    on_device(now, sizeof now), SEQUENCES, p.settings.slerp,
                                    device->stream));
  }
  staged = stage_tokens(&p, contexts);
  KvHostPages x = p.x.host, y = p.host_y;
  x.pool = g_memdup2(p.x.host.pool, p.x.floats * sizeof(float));
  y.pool = g_memdup2(p.host_y.pool, p.x.floats * sizeof(float));
  merge_on_host(&p, &x, &y);
  check_merged_decode(&p, 0, &x, staged, n_heads, split_tokens);
  check_merged_decode(&p, 1, &y, staged, n_heads, split_tokens);
  g_free(x.pool);
  g_free(y.pool);
  pair_clear(&p);
}

static void test_merged_cache(void) {
  static const float gammas[] = {0.0f, 0.05f, 0.5f, 1.0f};
  static const guint blocks[] = {16, 1, 8, 64};
  static const guint32 splits[] = {64, 256, 2048};
  for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h++)
    check_merging(head_shapes[h][0], head_shapes[h][1], head_shapes[h][2], blocks[h % 4],
                  gammas[(h + h / 4) % 4], splits[h % 3]);
}

#endif
